//! Rules against harm: small numbers by hand, and what holds for all.

use proptest::prelude::*;
use tierline_federate::aggregate::Weight;
use tierline_federate::{Channel, Contribution, FederateError, InMemory, Layout, Part, Report, Rule, Vectors};

fn layout(length: usize) -> Layout {
    Layout {
        parameters: vec![Part { name: "w".into(), shape: vec![length] }],
        statistics: vec![],
        logits: vec![],
        ..Layout::default()
    }
}

const ONE: Weight = Weight { share: 1.0, factor: 1.0 };

fn put_together(rule: Rule, votes: &[Vec<f32>]) -> Vec<f32> {
    let mut aggregate = rule.aggregate(&layout(votes[0].len()), &[Channel::Model], Box::<InMemory>::default());
    for vote in votes {
        let vectors = Vectors::from([(Channel::Model, vote.clone())]);
        let report = Report { examples: 1, steps: 1, effective_steps: 1.0, ..Report::default() };
        aggregate.add(ONE, &Contribution { vectors, report }).unwrap();
    }
    aggregate.finish().unwrap().remove(&Channel::Model).unwrap()
}

fn votes(columns: &[[f32; 2]]) -> Vec<Vec<f32>> {
    columns.iter().map(|c| c.to_vec()).collect()
}

const RULES: [Rule; 6] = [
    Rule::Median,
    Rule::Trimmed { share: 0.25 },
    Rule::Krum { share: 0.2 },
    Rule::MultiKrum { share: 0.2 },
    Rule::Bulyan { share: 0.2 },
    Rule::Bounded { times: 1.0 },
];

#[test]
fn small_numbers_by_hand() {
    let five = votes(&[[1.0, 5.0], [2.0, 4.0], [3.0, 3.0], [4.0, 2.0], [100.0, -90.0]]);
    assert_eq!(put_together(Rule::Median, &five), [3.0, 3.0]);
    assert_eq!(put_together(Rule::Median, &five[..4]), [2.5, 3.5]);
    assert_eq!(put_together(Rule::Trimmed { share: 0.2 }, &five), [3.0, 3.0]);
    assert_eq!(put_together(Rule::Trimmed { share: 0.0 }, &five), [22.0, -15.2]);
    // The second is nearest to its two neighbours, then the third.
    let near = votes(&[[1.5, 4.5], [2.0, 4.0], [3.0, 3.0], [4.0, 2.0], [100.0, -90.0]]);
    assert_eq!(put_together(Rule::Krum { share: 0.2 }, &near), [2.0, 4.0]);
    assert_eq!(put_together(Rule::MultiKrum { share: 0.2 }, &near), [2.625, 3.375]);
    // Lengths 3, 4 and 10: all are cut to 4.
    let three = votes(&[[3.0, 0.0], [0.0, 4.0], [6.0, 8.0]]);
    let bounded = put_together(Rule::Bounded { times: 1.0 }, &three);
    assert!((bounded[0] - (3.0 + 0.0 + 2.4) / 3.0).abs() < 1e-6, "{bounded:?}");
    assert!((bounded[1] - (0.0 + 4.0 + 3.2) / 3.0).abs() < 1e-6, "{bounded:?}");
}

#[test]
fn one_vote_and_none() {
    for rule in RULES {
        let only = put_together(rule, &votes(&[[1.5, -2.0]]));
        assert_eq!(only, [1.5, -2.0], "{rule:?}");
        let mut aggregate = rule.aggregate(&layout(2), &[Channel::Model], Box::<InMemory>::default());
        assert_eq!(aggregate.finish(), Err(FederateError::Empty));
    }
}

#[test]
fn shares_beyond_what_a_rule_can_bear_are_refused() {
    for rule in [Rule::Trimmed { share: 0.5 }, Rule::Krum { share: -0.1 }, Rule::Bulyan { share: 0.25 }] {
        assert!(matches!(rule.check(), Err(FederateError::Range { what: "rule.share", .. })), "{rule:?}");
    }
    assert!(Rule::Bounded { times: 0.0 }.check().is_err());
    assert!(RULES.iter().all(|rule| rule.check().is_ok()));
}

proptest! {
    #[test]
    fn the_order_of_arrival_changes_no_bit(seed: u64, count in 1usize..14) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut all: Vec<Vec<f32>> = (0..count).map(|_| (0..7).map(|_| rng.f32() - 0.5).collect()).collect();
        // Some that are equal, too.
        if count > 2 { all[1] = all[0].clone(); }
        for rule in RULES {
            let one = put_together(rule, &all);
            let mut shuffled = all.clone();
            rng.shuffle(&mut shuffled);
            let other = put_together(rule, &shuffled);
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&one), bits(&other), "{:?}", rule);
        }
    }

    #[test]
    fn a_fifth_far_away_changes_little(seed: u64, far in prop_oneof![Just(-1e4f32), Just(1e4), Just(-30.0)]) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut all: Vec<Vec<f32>> = (0..15).map(|_| (0..9).map(|_| 1.0 + 0.2 * (rng.f32() - 0.5)).collect()).collect();
        for vote in &mut all[..3] {
            vote.iter_mut().for_each(|x| *x *= far);
        }
        for rule in RULES {
            let found = put_together(rule, &all);
            // Bounding only bounds: a fifth may still pull the other way.
            let reach = if matches!(rule, Rule::Bounded { .. }) { 0.5 } else { 0.11 };
            prop_assert!(found.iter().all(|x| (x - 1.0).abs() < reach), "{:?}: {:?}", rule, found);
        }
    }
}

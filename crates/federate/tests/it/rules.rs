//! Rules against harm: small numbers by hand, and what holds for all.

use proptest::prelude::*;
use tierline_codec::update::{self, Pipeline};
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

const ONE: Weight = Weight { share: 1.0, factor: 1.0, fresh: 1.0 };

fn put_together(rule: Rule, contributions: &[Vec<f32>]) -> Vec<f32> {
    let mut aggregate = rule.aggregate(&layout(contributions[0].len()), &[Channel::Model], Box::<InMemory>::default());
    for contribution in contributions {
        let vectors = Vectors::from([(Channel::Model, contribution.clone())]);
        let report = Report { examples: 1, steps: 1, effective_steps: 1.0, ..Report::default() };
        aggregate.add(ONE, Contribution { vectors, report }).unwrap();
    }
    aggregate.finish().unwrap().remove(&Channel::Model).unwrap()
}

fn contributions(columns: &[[f32; 2]]) -> Vec<Vec<f32>> {
    columns.iter().map(|c| c.to_vec()).collect()
}

const RULES: [Rule; 6] = [
    Rule::Median {},
    Rule::Trimmed { share: 0.25 },
    Rule::Krum { share: 0.2 },
    Rule::MultiKrum { share: 0.2 },
    Rule::Bulyan { share: 0.2 },
    Rule::Bounded { times: 1.0 },
];

#[test]
fn small_numbers_by_hand() {
    let five = contributions(&[[1.0, 5.0], [2.0, 4.0], [3.0, 3.0], [4.0, 2.0], [100.0, -90.0]]);
    assert_eq!(put_together(Rule::Median {}, &five), [3.0, 3.0]);
    assert_eq!(put_together(Rule::Median {}, &five[..4]), [2.5, 3.5]);
    assert_eq!(put_together(Rule::Trimmed { share: 0.2 }, &five), [3.0, 3.0]);
    assert_eq!(put_together(Rule::Trimmed { share: 0.0 }, &five), [22.0, -15.2]);
    // The second is nearest to its two neighbours, then the third.
    let near = contributions(&[[1.5, 4.5], [2.0, 4.0], [3.0, 3.0], [4.0, 2.0], [100.0, -90.0]]);
    assert_eq!(put_together(Rule::Krum { share: 0.2 }, &near), [2.0, 4.0]);
    assert_eq!(put_together(Rule::MultiKrum { share: 0.2 }, &near), [2.625, 3.375]);
    // Two of seven, to be sure of a fifth: those in the middle.
    let seven =
        contributions(&[[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0], [5.0, 5.0], [60.0, 60.0], [70.0, 70.0]]);
    assert_eq!(put_together(Rule::Trimmed { share: 0.2 }, &seven), [4.0, 4.0]);
    assert_eq!(put_together(Rule::MultiKrum { share: 0.2 }, &seven), [3.0, 3.0]);
    // Lengths 3, 4 and 10: all are cut to 4.
    let three = contributions(&[[3.0, 0.0], [0.0, 4.0], [6.0, 8.0]]);
    let bounded = put_together(Rule::Bounded { times: 1.0 }, &three);
    assert!((bounded[0] - (3.0 + 0.0 + 2.4) / 3.0).abs() < 1e-6, "{bounded:?}");
    assert!((bounded[1] - (0.0 + 4.0 + 3.2) / 3.0).abs() < 1e-6, "{bounded:?}");
}

#[test]
fn one_vote_and_none() {
    for rule in RULES {
        let only = put_together(rule, &contributions(&[[1.5, -2.0]]));
        assert_eq!(only, [1.5, -2.0], "{rule:?}");
        let mut aggregate = rule.aggregate(&layout(2), &[Channel::Model], Box::<InMemory>::default());
        assert_eq!(aggregate.finish(), Err(FederateError::Empty));
    }
}

#[test]
fn a_round_of_too_few_is_put_together_by_the_median() {
    // The demonstration's edges have four ends each; one of them does harm.
    let four = contributions(&[[1.0, 1.0], [2.0, 3.0], [3.0, 2.0], [1e6, -1e6]]);
    for rule in RULES.into_iter().filter(|rule| !matches!(rule, Rule::Bounded { .. })) {
        assert_eq!(put_together(rule, &four), [2.5, 1.5], "{rule:?}");
    }
    let bounded = put_together(Rule::Bounded { times: 1.0 }, &four);
    assert!(bounded.iter().all(|x| x.abs() < 3.0), "{bounded:?}");
    for (rule, count, needs) in [
        (Rule::Median {}, 2, 3),
        (Rule::Trimmed { share: 0.2 }, 4, 3),
        (Rule::Trimmed { share: 0.4 }, 4, 5),
        (Rule::Krum { share: 0.2 }, 4, 5),
        (Rule::Krum { share: 0.2 }, 5, 5),
        (Rule::Krum { share: 0.2 }, 6, 7),
        (Rule::MultiKrum { share: 0.2 }, 15, 9),
        (Rule::MultiKrum { share: 0.07 }, 100, 17),
        (Rule::Bulyan { share: 0.2 }, 14, 15),
        (Rule::Bulyan { share: 0.2 }, 15, 15),
        (Rule::Bulyan { share: 0.2 }, 16, 19),
        (Rule::Bulyan { share: 0.0 }, 3, 3),
    ] {
        assert_eq!(rule.needs(count), needs, "{rule:?} of {count}");
    }
}

#[test]
fn an_honest_change_of_weights_doesnt_vouch_for_statistics() {
    let layout = Layout { statistics: vec![Part { name: "variance".into(), shape: vec![1] }], ..layout(2) };
    for rule in RULES {
        let channels = [Channel::Model, Channel::Statistics];
        let mut aggregate = rule.aggregate(&layout, &channels, Box::<InMemory>::default());
        for i in 0..15 {
            // The first sends weights in the middle of all, and half a disaster.
            let statistic = if i == 0 { -1e3 } else { 0.5 };
            let model = vec![1.0 + 0.01 * ((i + 7) % 15) as f32; 2];
            let vectors = Vectors::from([(Channel::Model, model), (Channel::Statistics, vec![statistic])]);
            let report = Report { examples: 1, steps: 1, effective_steps: 1.0, ..Report::default() };
            aggregate.add(ONE, Contribution { vectors, report }).unwrap();
        }
        assert_eq!(aggregate.finish().unwrap()[&Channel::Statistics], [0.5], "{rule:?}");
    }
}

#[test]
fn signs_are_chosen_among_as_any_change() {
    let pipeline = Pipeline::parse(&["sign"]).unwrap();
    let mut rng = fastrand::Rng::with_seed(3);
    let truth: Vec<f32> = (0..200).map(|_| rng.f32() - 0.5).collect();
    let arrived = |contribution: &[f32]| {
        let mut bytes = Vec::new();
        pipeline.encode(contribution, &[vec![200]], 1, &mut bytes).unwrap();
        update::decode(&bytes, &[vec![200]]).unwrap()
    };
    let mut all: Vec<Vec<f32>> =
        (0..8).map(|_| arrived(&truth.iter().map(|x| x + 0.2 * (rng.f32() - 0.5)).collect::<Vec<_>>())).collect();
    let honest = all.clone();
    all.extend([-1.0, -50.0].map(|times| arrived(&truth.iter().map(|x| times * x).collect::<Vec<_>>())));
    for rule in [Rule::Krum { share: 0.2 }, Rule::MultiKrum { share: 0.2 }, Rule::Median {}] {
        let found = put_together(rule, &all);
        let along: f32 = found.iter().zip(&truth).map(|(x, y)| x * y).sum();
        assert!(along > 0.0, "{rule:?}");
        if matches!(rule, Rule::Krum { .. }) {
            assert!(honest.contains(&found), "an honest one is chosen, as it came");
        }
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
        for contribution in &mut all[..3] {
            contribution.iter_mut().for_each(|x| *x *= far);
        }
        for rule in RULES {
            let found = put_together(rule, &all);
            // Bounding only bounds: a fifth may still pull the other way.
            let reach = if matches!(rule, Rule::Bounded { .. }) { 0.5 } else { 0.11 };
            prop_assert!(found.iter().all(|x| (x - 1.0).abs() < reach), "{:?}: {:?}", rule, found);
        }
    }
}

//! Whom a round asks.

use tierline_federate::select::{Candidate, Last, Select};

fn candidates(names: &[String]) -> Vec<Candidate<'_>> {
    names.iter().map(|member| Candidate { member, examples: 100, available: 1.0, last: None }).collect()
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("end-{i:02}")).collect()
}

/// How often each is chosen.
fn counts(select: &Select, candidates: &[Candidate<'_>], count: usize) -> Vec<usize> {
    let mut counts = vec![0; candidates.len()];
    for seed in 0..1_000 {
        let chosen = select.choose(candidates, count, 10, &mut fastrand::Rng::with_seed(seed));
        assert_eq!(chosen.len(), count.min(candidates.len()));
        assert!(chosen.is_sorted_by(|a, b| a < b), "each once, in order");
        chosen.into_iter().for_each(|i| counts[i] += 1);
    }
    counts
}

const UTILITY: Select = Select::Utility { exploration: 0.2, slowness: 2.0 };

#[test]
fn random_gives_all_the_same_odds() {
    let names = names(10);
    let counts = counts(&Select::Random {}, &candidates(&names), 3);
    assert!(counts.iter().all(|c| (220..380).contains(c)), "{counts:?}");
}

#[test]
fn those_that_are_there_are_asked_more_often() {
    let names = names(10);
    let mut all = candidates(&names);
    all[..5].iter_mut().for_each(|c| c.available = 0.1);
    let counts = counts(&Select::Availability {}, &all, 3);
    let (rare, common) = counts.split_at(5);
    assert!(rare.iter().max() < common.iter().min(), "{counts:?}");
    assert!(rare.iter().all(|c| *c > 0), "nobody is left out for good: {counts:?}");
}

#[test]
fn utility_prefers_much_loss_and_little_time_and_tries_the_unknown() {
    let names = names(12);
    let mut all = candidates(&names);
    for (i, candidate) in all.iter_mut().enumerate().take(10) {
        let (loss, seconds) = if i < 3 {
            (2.0, 1.0)
        } else if i < 6 {
            (2.0, 10.0)
        } else {
            (0.5, 1.0)
        };
        candidate.last = Some(Last { loss, seconds, round: 9 });
    }
    let counts = counts(&UTILITY, &all, 5);
    // Fast with much to learn: mostly. Slow ones hardly ever. One place for the unknown.
    assert!(counts[..3].iter().min() > counts[6..10].iter().max().map(|c| 2 * c).as_ref(), "{counts:?}");
    assert!(counts[3..6].iter().all(|c| *c < 50), "{counts:?}");
    assert_eq!(counts[10] + counts[11], 1_000, "{counts:?}");
}

#[test]
fn everybody_is_asked_when_there_are_too_few() {
    let names = names(3);
    for select in [Select::Random {}, Select::Availability {}, UTILITY] {
        let chosen = select.choose(&candidates(&names), 5, 0, &mut fastrand::Rng::with_seed(1));
        assert_eq!(chosen, [0, 1, 2]);
        assert!(select.choose(&[], 5, 0, &mut fastrand::Rng::with_seed(1)).is_empty());
    }
}

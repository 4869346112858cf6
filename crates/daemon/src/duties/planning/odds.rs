//! How many requests leave at each exit: as calibrated at first, then more and
//! more as traffic shows.

use tierline_proto::v1::Reply;

use crate::models::PlacedExits;

/// What a calibration counts for: so many requests.
const CALIBRATED_WEIGHT: f64 = 64.0;

/// What the guess counts for that nobody leaves, where nothing is calibrated.
const GUESSED_WEIGHT: f64 = 4.0;

/// Requests after which one counts half.
const HALF_LIFE: f64 = 512.0;

/// Plans see shares in such steps: they are made anew when one changes.
const STEPS: f64 = 16.0;

/// What traffic shows of the exits of one model.
///
/// Who leaves at an exit is taken to be sure at every later one as well, so
/// that a request says something of all exits that were in use, and what was
/// seen with some of them holds for others.
#[derive(Debug, Clone, Default)]
pub(super) struct Odds {
    /// Per exit, requests that could have left there or before, and those of
    /// them that went on; old ones fading.
    seen: Vec<(f64, f64)>,
}

impl Odds {
    /// A request was answered; the exits of these numbers, from 1, were in use.
    pub(super) fn observe(&mut self, exits: &PlacedExits, used: &[usize], reply: &Reply) {
        self.seen.resize(exits.cuts.len(), (0.0, 0.0));
        let fade = 0.5f64.powf(1.0 / HALF_LIFE);
        let left = reply.exit as usize;
        for number in used {
            let Some(seen) = number.checked_sub(1).and_then(|index| self.seen.get_mut(index)) else { continue };
            let went_on = left == 0 || *number < left;
            *seen = (seen.0 * fade + 1.0, seen.1 * fade + f64::from(went_on));
        }
    }

    /// Per exit the share of those that reach it which go on.
    pub(super) fn go_on(&self, exits: &PlacedExits) -> Vec<f64> {
        // Shares of all requests that are still there behind each exit.
        let (mut calibrated, mut before) = (1.0, 1.0);
        let mut share = |(index, go_on): (usize, Option<f64>)| {
            let (weight, prior) = match go_on {
                Some(go_on) => {
                    calibrated *= go_on;
                    (CALIBRATED_WEIGHT, calibrated)
                }
                None => (GUESSED_WEIGHT, 1.0),
            };
            let (seen, went_on) = self.seen.get(index).copied().unwrap_or_default();
            let reach = ((prior * weight + went_on) / (weight + seen)).min(before);
            let reach = (reach * STEPS).round() / STEPS;
            let go_on = if before > 0.0 { (reach / before).min(1.0) } else { 1.0 };
            before = reach.min(before);
            go_on
        };
        exits.calibrated().into_iter().enumerate().map(&mut share).collect()
    }
}

#[cfg(test)]
mod tests {
    use tierline_graph::exits::{Calibration, Criterion, Exit, Exits, Point, Rule};

    use super::*;

    fn exits(leave: Option<Vec<f64>>) -> PlacedExits {
        let rule = |threshold| Some(Rule { criterion: Criterion::Confidence, threshold });
        let exit = |name: &str| Exit {
            outputs: [("end".to_owned(), name.to_owned())].into(),
            sureness: None,
            rule: rule(0.5),
        };
        let calibration = leave.map(|leave| Calibration {
            data: "held out".into(),
            examples: 100,
            criterion: Criterion::Confidence,
            accuracy: 0.9,
            macs: 1.0,
            points: vec![Point { thresholds: vec![Some(0.5), Some(0.5)], accuracy: 0.9, leave, macs: 0.5 }],
        });
        let stated = Exits { exits: vec![exit("a"), exit("b")], calibration, ..Exits::default() };
        PlacedExits { stated, judged: "end".into(), cuts: vec![0, 1] }
    }

    fn reply(exit: u32) -> Reply {
        Reply { exit, ..Reply::default() }
    }

    #[test]
    fn a_calibration_is_believed_until_traffic_says_otherwise() {
        let placed = exits(Some(vec![0.5, 0.25]));
        let mut odds = Odds::default();
        // Half leave at the first, half of the rest at the second.
        assert_eq!(odds.go_on(&placed), [0.5, 0.5]);
        (0..2_000).for_each(|_| odds.observe(&placed, &[1, 2], &reply(0)));
        assert_eq!(odds.go_on(&placed), [15.0 / 16.0, 1.0]);
        (0..4_000).for_each(|_| odds.observe(&placed, &[1, 2], &reply(1)));
        assert!(odds.go_on(&placed)[0] < 0.1);
    }

    #[test]
    fn an_exit_that_is_not_in_use_is_judged_by_nobody() {
        let placed = exits(Some(vec![0.5, 0.25]));
        let mut odds = Odds::default();
        // A quarter goes on behind the second, as calibrated for both together.
        (0..4_000).for_each(|n| odds.observe(&placed, &[2], &reply(if n % 4 == 0 { 0 } else { 2 })));
        assert_eq!(odds.go_on(&placed), [0.5, 0.5]);
        // Nobody leaves at either.
        (0..4_000).for_each(|_| odds.observe(&placed, &[2], &reply(0)));
        let [first, second] = odds.go_on(&placed)[..] else { panic!("two exits") };
        assert_eq!((first, second), (0.5, 1.0), "no more than get there");
    }

    #[test]
    fn without_a_calibration_few_requests_show_it() {
        let placed = exits(None);
        let mut odds = Odds::default();
        assert_eq!(odds.go_on(&placed), [1.0, 1.0]);
        (0..16).for_each(|_| odds.observe(&placed, &[1, 2], &reply(2)));
        assert_eq!(odds.go_on(&placed), [1.0, 3.0 / 16.0]);
    }
}

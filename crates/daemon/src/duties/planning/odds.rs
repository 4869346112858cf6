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
#[derive(Debug, Clone, Default)]
pub(super) struct Odds {
    /// Per exit, how many requests reached it and left there, old ones fading.
    seen: Vec<(f64, f64)>,
}

impl Odds {
    /// A request was answered.
    pub(super) fn observe(&mut self, exits: &PlacedExits, reply: &Reply) {
        self.seen.resize(exits.cuts.len(), (0.0, 0.0));
        let fade = 0.5f64.powf(1.0 / HALF_LIFE);
        let left = reply.exit as usize;
        for (index, (exit, seen)) in exits.stated.exits.iter().zip(&mut self.seen).enumerate() {
            if exit.rule.is_none() {
                continue;
            }
            if left == 0 || index < left {
                *seen = (seen.0 * fade + 1.0, seen.1 * fade + f64::from(index + 1 == left));
            }
        }
    }

    /// Per exit the share of those that reach it which go on.
    pub(super) fn go_on(&self, exits: &PlacedExits) -> Vec<f64> {
        let calibrated = exits.calibrated();
        let share = |(index, calibrated): (usize, Option<f64>)| {
            let (reached, left) = self.seen.get(index).copied().unwrap_or_default();
            let (prior, weight) = calibrated.map_or((1.0, GUESSED_WEIGHT), |share| (share, CALIBRATED_WEIGHT));
            let share = (prior * weight + reached - left) / (weight + reached);
            (share.clamp(0.0, 1.0) * STEPS).round() / STEPS
        };
        calibrated.into_iter().enumerate().map(share).collect()
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
        (0..2_000).for_each(|_| odds.observe(&placed, &reply(0)));
        assert_eq!(odds.go_on(&placed), [15.0 / 16.0, 15.0 / 16.0]);
        (0..4_000).for_each(|_| odds.observe(&placed, &reply(1)));
        assert!(odds.go_on(&placed)[0] < 0.1);
    }

    #[test]
    fn without_a_calibration_few_requests_show_it() {
        let placed = exits(None);
        let mut odds = Odds::default();
        assert_eq!(odds.go_on(&placed), [1.0, 1.0]);
        (0..16).for_each(|_| odds.observe(&placed, &reply(2)));
        assert_eq!(odds.go_on(&placed), [1.0, 3.0 / 16.0]);
    }
}

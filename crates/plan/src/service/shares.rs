//! Which member of a cascade answers, and how often: as calibrated at first,
//! then more and more as traffic shows. Start at [`Service::answered`].

use super::{CurvePoint, Kind, Service};

/// What a calibration counts for: so many requests.
const CALIBRATED_WEIGHT: f64 = 64.0;

impl Service {
    /// What the calibration says of the thresholds in force, if it does.
    #[must_use]
    pub fn point(&self) -> Option<&CurvePoint> {
        let thresholds: Vec<f64> = self.members.iter().filter_map(|member| member.threshold).collect();
        let points = self.calibration.iter().flat_map(|curve| &curve.points);
        points.into_iter().find(|point| point.thresholds == thresholds && point.answered.len() == self.members.len())
    }

    /// The share of requests that each member of a cascade answers, where that
    /// is calibrated or was seen: `seen` has the answers of each member so far.
    /// `None` for other kinds.
    #[must_use]
    pub fn answered(&self, seen: &[u64]) -> Option<Vec<f64>> {
        if self.kind != Kind::Cascade || seen.len() != self.members.len() {
            return None;
        }
        let calibrated = self.point().map(|point| self.audited(&point.answered));
        let all: u64 = seen.iter().sum();
        let weight = if calibrated.is_some() { CALIBRATED_WEIGHT } else { 0.0 };
        if weight + all as f64 == 0.0 {
            return None;
        }
        let share = |(member, seen): (usize, &u64)| {
            let prior = calibrated.as_ref().map_or(0.0, |shares| shares[member]);
            (prior * weight + *seen as f64) / (weight + all as f64)
        };
        Some(seen.iter().enumerate().map(share).collect())
    }

    /// Shares that answer when of the sure ones `audit` are asked further.
    fn audited(&self, answered: &[f64]) -> Vec<f64> {
        let (mut before, mut reach) = (1.0, 1.0);
        let last = answered.len().saturating_sub(1);
        let share = |(member, &answered): (usize, &f64)| {
            // Of those that get here, as calibrated.
            let sure = if before > 0.0 { (answered / before).clamp(0.0, 1.0) } else { 0.0 };
            before -= answered;
            let share = if member == last { reach } else { reach * sure * (1.0 - self.audit) };
            reach -= share;
            share
        };
        answered.iter().enumerate().map(share).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cascade(audit: f64) -> Service {
        let text = format!(
            "kind = \"cascade\"\naudit = {audit}\n
             [[member]]\nmodel = \"a\"\ncriterion = \"margin\"\nthreshold = 0.5\n
             [[member]]\nmodel = \"b\"\ncriterion = \"margin\"\nthreshold = 0.25\n
             [[member]]\nmodel = \"c\"\n
             [calibration]\ndata = \"held out\"\nexamples = 100\naccuracy = 0.9\n
             [[calibration.point]]\nthresholds = [0.5, 0.5]\naccuracy = 0.8\nanswered = [1.0, 0.0, 0.0]\n
             [[calibration.point]]\nthresholds = [0.5, 0.25]\naccuracy = 0.9\nanswered = [0.5, 0.25, 0.25]\n"
        );
        Service::parse(&text).unwrap()
    }

    #[test]
    fn a_calibration_is_believed_until_traffic_says_otherwise() {
        assert_eq!(cascade(0.0).answered(&[0, 0, 0]).unwrap(), [0.5, 0.25, 0.25]);
        let seen = cascade(0.0).answered(&[0, 0, 64 * 99]).unwrap();
        assert!((seen[2] - 0.9925).abs() < 1e-9 && (seen.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{seen:?}");
        // Of those that are sure, a half goes on: a quarter answers at once. Of the 3/4 that get to the second one half
        // is sure, and half of these go on.
        let audited = cascade(0.5).answered(&[0, 0, 0]).unwrap();
        assert_eq!(audited, [0.25, 0.1875, 0.5625]);
    }

    #[test]
    fn nothing_is_said_where_nothing_is_known() {
        let mut other = cascade(0.0);
        other.members[0].threshold = Some(0.4);
        assert_eq!(other.answered(&[0, 0, 0]), None);
        assert_eq!(other.answered(&[3, 1, 0]).unwrap(), [0.75, 0.25, 0.0]);
        assert_eq!(other.answered(&[3, 1]), None);
    }
}

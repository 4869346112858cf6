//! Spreads the whole model's time over its segments.
//!
//! A segment alone pays for entering and leaving its session (copies, layout
//! changes) and for fusions lost at its ends; a stage of many segments pays
//! once. So segments only give the shape of the curve "time up to cut k"; at
//! some cuts, the anchors, the two halves of the model are timed against the
//! whole, and the curve is drawn through these.

/// One anchor: the halves before and after a cut, over the whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Anchor {
    /// The cut's index.
    pub(super) cut: usize,
    /// Time of the part before it, over the whole.
    pub(super) before: f64,
    /// Time of the part after it, over the whole.
    pub(super) after: f64,
    /// Standard error of the height that follows from these, over the whole.
    pub(super) error: f64,
}

impl Anchor {
    /// The share of the time up to the cut; what the cut costs extra is split
    /// between its halves.
    fn height(&self) -> f64 {
        (self.before + 1. - self.after) / 2.
    }

    /// The same, drawn towards `expected` as far as the difference may be
    /// noise: on a busy device an anchor is often the less certain of the two.
    fn height_near(&self, expected: f64) -> f64 {
        let difference = self.height() - expected;
        let noise = NOISE_ERRORS * self.error;
        let trust = difference.powi(2) / (difference.powi(2) + noise.powi(2)).max(f64::MIN_POSITIVE);
        expected + trust * difference
    }
}

/// Standard errors at which a difference is as likely noise as not. Of 1, 2
/// and none, profiles taken under load agreed best with 2.
const NOISE_ERRORS: f64 = 2.;

/// A run of segments inside a stage takes no more than they take alone...
const STRETCH_MAX: f64 = 1.05;
/// ...and no less than this part of it: beyond that it is noise.
const STRETCH_MIN: f64 = 0.25;

/// Shares of the whole that fall to each segment, given each segment's time
/// alone over the whole's; they add up to 1.
pub(super) fn shares(alone: &[f64], anchors: &[Anchor]) -> Vec<f64> {
    let total: f64 = alone.iter().sum();
    if total <= 0. {
        return vec![1. / alone.len() as f64; alone.len()];
    }
    let expected = |a: &Anchor| alone[..=a.cut].iter().sum::<f64>() / total;
    let mut shares = alone.to_vec();
    let (mut from, mut below) = (0, 0.);
    for (to, now) in anchors.iter().map(|a| (a.cut + 1, a.height_near(expected(a)))).chain([(alone.len(), 1.)]) {
        let run = &mut shares[from..to];
        let sum: f64 = run.iter().sum();
        if sum > 0. {
            let stretch = ((now - below) / sum).clamp(STRETCH_MIN, STRETCH_MAX);
            run.iter_mut().for_each(|s| *s *= stretch);
        }
        (from, below) = (to, now);
    }
    let sum: f64 = shares.iter().sum();
    shares.iter().map(|s| s / sum).collect()
}

/// At most `count` cuts that part the time of `alone` as evenly as they can.
pub(super) fn places(alone: &[f64], count: usize) -> Vec<usize> {
    let sum: f64 = alone.iter().sum();
    let cuts = alone.len().saturating_sub(1);
    let mut chosen = Vec::new();
    let mut passed = 0.;
    let ends = alone[..cuts].iter().enumerate().map(|(cut, s)| {
        passed += s / sum.max(f64::MIN_POSITIVE);
        (cut, passed)
    });
    let ends: Vec<(usize, f64)> = ends.collect();
    for i in 1..=count.min(cuts) {
        let target = i as f64 / (count + 1) as f64;
        let near = ends.iter().min_by(|a, b| (a.1 - target).abs().total_cmp(&(b.1 - target).abs()));
        chosen.extend(near.map(|(cut, _)| *cut));
    }
    chosen.dedup();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_anchors_segments_keep_their_proportions() {
        assert_eq!(shares(&[0.5, 1.5], &[]), [0.25, 0.75]);
    }

    #[test]
    fn anchors_bend_the_curve_and_shares_add_up() {
        let anchor = Anchor { cut: 1, before: 0.52, after: 0.52, error: 0. };
        assert_eq!(shares(&[0.75, 0.75, 0.5, 0.5], &[anchor]), [0.25, 0.25, 0.25, 0.25]);
    }

    #[test]
    fn a_noisy_anchor_takes_no_segment_away() {
        let anchors = [
            Anchor { cut: 0, before: 0.6, after: 0.4, error: 0. },
            Anchor { cut: 1, before: 0.5, after: 0.5, error: 0. },
        ];
        let shares = shares(&[0.5, 0.3, 0.5], &anchors);
        assert!(shares.iter().all(|s| *s > 0.05), "{shares:?}");
        assert!((shares.iter().sum::<f64>() - 1.).abs() < 1e-12);
    }

    #[test]
    fn an_uncertain_anchor_moves_the_curve_less() {
        let first = |error| shares(&[0.72, 0.48], &[Anchor { cut: 0, before: 0.5, after: 0.5, error }])[0];
        assert!((first(0.) - 0.5).abs() < 1e-12, "{}", first(0.));
        // Two standard errors off: halfway.
        assert!((first(0.05) - 0.55).abs() < 1e-12, "{}", first(0.05));
        assert!((first(10.) - 0.6).abs() < 1e-3, "{}", first(10.));
    }

    #[test]
    fn places_part_the_time_evenly() {
        assert_eq!(places(&[1., 1., 1., 1.], 3), [0, 1, 2]);
        assert_eq!(places(&[0.1, 0.1, 5., 0.1], 3), [1, 2]);
        assert_eq!(places(&[1.], 3), [] as [usize; 0]);
    }
}

//! Accuracy without labels: confidences, corrected by what labelled examples
//! said of them, and averaged.
//!
//! Confidence-based performance estimation, as NannyML (2022) does it. It holds
//! while confidence means what it meant: where inputs drift towards rarer cases
//! of the kind that was there; where the classes themselves change it is blind.

use serde::{Deserialize, Serialize};

use crate::special::normal_quantile_above;

/// Groups of equally many labelled examples that are made before they are
/// joined.
const GROUPS: usize = 64;

/// Labelled examples below which no calibration is made.
pub const EXAMPLES_MIN: usize = 30;

/// What a confidence is worth: a share of right answers that never falls with
/// it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Step>", into = "Vec<Step>")]
pub struct Calibration {
    steps: Vec<Step>,
}

/// Confidences up to a bound.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Largest confidence of the step; the last step also has all above.
    pub upto: f64,
    /// Labelled examples.
    pub n: u64,
    /// Those answered rightly.
    pub right: u64,
}

impl Step {
    /// Share of right answers.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.n as f64
    }
}

/// Why no calibration is made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// Too few labelled examples.
    #[error("a calibration needs {EXAMPLES_MIN} labelled examples; there are {0}")]
    TooFew(usize),
    /// A confidence that is none.
    #[error("a confidence must be from 0 to 1")]
    NotConfidence,
    /// A document that no examples make.
    #[error("a calibration's steps are unsound: {0}")]
    Unsound(&'static str),
}

impl Calibration {
    /// Learns from pairs of a confidence and whether the answer was right:
    /// isotonic regression (Ayer and others, 1955) over 64 groups of neighbours.
    /// Sorts the pairs.
    pub fn learn(labelled: &mut [(f64, bool)]) -> Result<Self, CalibrationError> {
        if labelled.len() < EXAMPLES_MIN {
            return Err(CalibrationError::TooFew(labelled.len()));
        }
        if labelled.iter().any(|(confidence, _)| !(0.0..=1.0).contains(confidence)) {
            return Err(CalibrationError::NotConfidence);
        }
        labelled.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let mut steps: Vec<Step> = Vec::new();
        let size = labelled.len().div_ceil(GROUPS);
        let mut begin = 0;
        while begin < labelled.len() {
            let mut end = (begin + size).min(labelled.len());
            // Equal confidences stay together.
            while end < labelled.len() && labelled[end].0 == labelled[end - 1].0 {
                end += 1;
            }
            let group = &labelled[begin..end];
            let right = group.iter().filter(|(_, right)| *right).count() as u64;
            steps.push(Step { upto: group[group.len() - 1].0, n: group.len() as u64, right });
            // A step that is less often right than the one below joins it.
            while let [.., below, above] = steps[..] {
                if below.accuracy() < above.accuracy() {
                    break;
                }
                steps.truncate(steps.len() - 2);
                steps.push(Step { upto: above.upto, n: below.n + above.n, right: below.right + above.right });
            }
            begin = end;
        }
        Self::try_from(steps)
    }

    /// The steps, by ascending confidence.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Share of right answers among the labelled examples.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = self.steps.iter().map(|step| step.right).sum();
        right as f64 / self.n() as f64
    }

    /// Labelled examples.
    pub fn n(&self) -> u64 {
        self.steps.iter().map(|step| step.n).sum()
    }

    /// Counters of a window, at 0.
    pub fn counts(&self) -> Vec<u64> {
        vec![0; self.steps.len()]
    }

    /// The step of a confidence.
    pub fn step(&self, confidence: f64) -> usize {
        self.steps.partition_point(|step| step.upto < confidence).min(self.steps.len() - 1)
    }

    /// Expected accuracy of a window, given how many of its answers fell on each
    /// step; none of an empty window. `miss` is the chance that the accuracy of
    /// these very answers lies outside the bounds.
    pub fn estimate(&self, counts: &[u64], miss: f64) -> Option<Estimate> {
        let n: u64 = counts.iter().sum();
        if n == 0 || counts.len() != self.steps.len() {
            return None;
        }
        let n = n as f64;
        let (mut accuracy, mut variance) = (0.0, 0.0);
        for (count, step) in counts.iter().zip(&self.steps) {
            let (share, size) = (*count as f64 / n, step.n as f64);
            accuracy += share * step.accuracy();
            // A step that was always right isn't certain to be (Agresti, Coull, 1998).
            let shrunk = (step.right as f64 + 1.0) / (size + 2.0);
            let spread = shrunk * (1.0 - shrunk);
            // What the window's answers scatter by, and what the labelled did.
            variance += share * spread / n + share * share * spread / size;
        }
        let reach = normal_quantile_above(miss.clamp(1e-12, 1.0) / 2.0) * variance.sqrt();
        Some(Estimate {
            answers: n as u64,
            accuracy,
            low: (accuracy - reach).max(0.0),
            high: (accuracy + reach).min(1.0),
        })
    }
}

/// Accuracy that is expected of a window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Answers of the window.
    pub answers: u64,
    /// Expected share of right ones.
    pub accuracy: f64,
    /// Lower bound of the share that labels would show.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

impl TryFrom<Vec<Step>> for Calibration {
    type Error = CalibrationError;

    fn try_from(steps: Vec<Step>) -> Result<Self, CalibrationError> {
        let unsound = |fault| Err(CalibrationError::Unsound(fault));
        if steps.is_empty() || steps.len() > GROUPS {
            return unsound("there are none, or more than 64");
        }
        if steps.iter().any(|step| step.n == 0 || step.n > 1 << 50 || step.right > step.n) {
            return unsound("a step has no examples, too many, or more right ones than examples");
        }
        if steps.iter().any(|step| !(0.0..=1.0).contains(&step.upto)) {
            return Err(CalibrationError::NotConfidence);
        }
        let ascends = |pair: &[Step]| pair[0].upto < pair[1].upto && pair[0].accuracy() <= pair[1].accuracy();
        if !steps.windows(2).all(ascends) {
            return unsound("they don't ascend");
        }
        Ok(Self { steps })
    }
}

impl From<Calibration> for Vec<Step> {
    fn from(calibration: Calibration) -> Self {
        calibration.steps
    }
}

//! Early exits: how sure an answer is, and whether that is enough to leave.
//!
//! An answer is a tensor with an axis of classes; its first axis is the batch,
//! and every other index is a place that has a class of its own (one for a
//! classifier, one per token or pixel for others). An example is as sure as
//! its places are on average.
//!
//! Start at [`sureness`] for one answer, at [`Judge`] for a request that
//! passes exits one after the other, at [`calibrate`](mod@calibrate) for thresholds.

pub mod calibrate;
mod judge;

use tierline_graph::exits::{Criterion, Scores};
use tierline_graph::{Elements, Tensor};

pub use self::judge::{Judge, Verdict};

/// How an answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The axis of classes; negative counts from the last.
    pub axis: i64,
    /// What the numbers are.
    pub scores: Scores,
}

/// Why an answer can't be judged.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum JudgeError {
    /// Not floats.
    #[error("an answer of {0} can't be judged; it must be floats")]
    Type(tierline_graph::DataType),
    /// No axis of classes.
    #[error("an answer of shape {shape:?} has no axis {axis} of classes beside its batch")]
    Axis {
        /// The answer's shape.
        shape: Vec<usize>,
        /// The axis asked for.
        axis: i64,
    },
    /// Nothing to judge.
    #[error("an answer of shape {0:?} is empty")]
    Empty(Vec<usize>),
}

/// How sure each example of an answer is, by a rule that looks at this answer
/// alone: 0 to 1. What is no distribution (NaN, infinite, negative
/// probabilities) is not sure at all.
///
/// [`Criterion::Patience`] and [`Criterion::Learned`] look at more; for them
/// this is the confidence.
///
/// # Errors
/// [`JudgeError`].
pub fn sureness(answer: &Tensor, reading: Reading, criterion: Criterion) -> Result<Vec<f64>, JudgeError> {
    let of = |p: &[f64]| match criterion {
        Criterion::Confidence | Criterion::Patience | Criterion::Learned => top_two(p).0,
        Criterion::Margin => {
            let (first, second) = top_two(p);
            first - second
        }
        Criterion::Entropy => 1.0 - entropy(p) / (p.len() as f64).ln(),
    };
    each_example(answer, reading, |places| {
        let sum: f64 = places.iter().map(|place| place.as_deref().map_or(0.0, of)).sum();
        (sum / places.len() as f64).clamp(0.0, 1.0)
    })
}

/// The class at each place of each example; `None` where the numbers are no
/// distribution. Of equals the first.
///
/// # Errors
/// [`JudgeError`].
pub fn classes(answer: &Tensor, reading: Reading) -> Result<Vec<Vec<Option<usize>>>, JudgeError> {
    let best = |p: &Vec<f64>| (0..p.len()).fold(0, |best, class| if p[class] > p[best] { class } else { best });
    each_example(answer, reading, |places| places.iter().map(|place| place.as_ref().map(best)).collect())
}

/// The distribution at each place of each example; `None` where there is none.
///
/// # Errors
/// [`JudgeError`].
pub fn probabilities(answer: &Tensor, reading: Reading) -> Result<Vec<Vec<Option<Vec<f64>>>>, JudgeError> {
    each_example(answer, reading, <[Option<Vec<f64>>]>::to_vec)
}

/// Calls `judge` with the probabilities at each place of each example.
fn each_example<T>(
    answer: &Tensor,
    reading: Reading,
    judge: impl Fn(&[Option<Vec<f64>>]) -> T,
) -> Result<Vec<T>, JudgeError> {
    let shape = answer.shape();
    let wrong = || JudgeError::Axis { shape: shape.to_vec(), axis: reading.axis };
    let rank = shape.len() as i64;
    let axis = if reading.axis < 0 { reading.axis + rank } else { reading.axis };
    // Axis 0 is the batch.
    if axis < 1 || axis >= rank {
        return Err(wrong());
    }
    let axis = axis as usize;
    if answer.is_empty() {
        return Err(JudgeError::Empty(shape.to_vec()));
    }
    let values = floats(answer.elements()).ok_or(JudgeError::Type(answer.dtype()))?;
    let (batch, count) = (shape[0], shape[axis]);
    let inner: usize = shape[axis + 1..].iter().product();
    let outer: usize = shape[1..axis].iter().product();
    let stride = outer * count * inner;
    let example = |example: usize| {
        let mut places = Vec::with_capacity(outer * inner);
        for o in 0..outer {
            for i in 0..inner {
                let at = |class: usize| values(example * stride + (o * count + class) * inner + i);
                places.push(distribution((0..count).map(at).collect(), reading.scores));
            }
        }
        judge(&places)
    };
    Ok((0..batch).map(example).collect())
}

/// The numbers of a tensor of floats.
fn floats(elements: &Elements) -> Option<Box<dyn Fn(usize) -> f64 + '_>> {
    Some(match elements {
        Elements::F32(v) => Box::new(|i| f64::from(v[i])),
        Elements::F64(v) => Box::new(|i| v[i]),
        Elements::F16(v) => Box::new(|i| f64::from(v[i].to_f32())),
        Elements::BF16(v) => Box::new(|i| f64::from(v[i].to_f32())),
        _ => return None,
    })
}

/// Probabilities over the classes; one number alone is that of the second of two.
fn distribution(mut scores: Vec<f64>, kind: Scores) -> Option<Vec<f64>> {
    if scores.iter().any(|s| s.is_nan() || *s == f64::INFINITY) {
        return None;
    }
    match kind {
        Scores::Logits => {
            if let [logit] = scores[..] {
                scores = vec![0.0, logit];
            }
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            // Also when every one of them is impossible.
            if !most.is_finite() {
                return None;
            }
            scores.iter_mut().for_each(|s| *s = (*s - most).exp());
        }
        Scores::Probabilities => {
            if let [p] = scores[..] {
                scores = vec![1.0 - p, p];
            }
            if scores.iter().any(|s| *s < 0.0) {
                return None;
            }
        }
    }
    let sum: f64 = scores.iter().sum();
    if sum <= 0.0 || !sum.is_finite() {
        return None;
    }
    scores.iter_mut().for_each(|s| *s /= sum);
    Some(scores)
}

fn top_two(p: &[f64]) -> (f64, f64) {
    p.iter().fold(
        (0.0, 0.0),
        |(first, second), &p| {
            if p > first { (p, first) } else { (first, if p > second { p } else { second }) }
        },
    )
}

fn entropy(p: &[f64]) -> f64 {
    -p.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: Reading = Reading { axis: -1, scores: Scores::Logits };
    const PROBABILITIES: Reading = Reading { axis: -1, scores: Scores::Probabilities };

    fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::new(shape, Elements::F32(values.to_vec())).unwrap()
    }

    fn close(a: &[f64], b: &[f64]) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() < 1e-12, "{a} {b}");
        }
    }

    #[test]
    fn sureness_as_counted_by_hand() {
        // Of 0.5, 0.25, 0.25: entropy 1.5 bits of log2(3).
        let answer = tensor(&[2, 3], &[0.5, 0.25, 0.25, 1.0, 0.0, 0.0]);
        close(&sureness(&answer, PROBABILITIES, Criterion::Confidence).unwrap(), &[0.5, 1.0]);
        close(&sureness(&answer, PROBABILITIES, Criterion::Margin).unwrap(), &[0.25, 1.0]);
        close(&sureness(&answer, PROBABILITIES, Criterion::Entropy).unwrap(), &[1.0 - 1.5 / 3f64.log2(), 1.0]);
        // Logits: ln 2, 0, 0 are the same probabilities, however far they are shifted.
        let logits = tensor(&[1, 3], &[2f32.ln(), 0.0, 0.0]);
        assert!((sureness(&logits, LOGITS, Criterion::Confidence).unwrap()[0] - 0.5).abs() < 1e-7);
        let far = tensor(&[1, 3], &[1e38, -1e38, f32::NEG_INFINITY]);
        close(&sureness(&far, LOGITS, Criterion::Entropy).unwrap(), &[1.0]);
        // Ties.
        close(&sureness(&tensor(&[1, 2], &[3.0, 3.0]), LOGITS, Criterion::Margin).unwrap(), &[0.0]);
        close(&sureness(&tensor(&[1, 2], &[3.0, 3.0]), LOGITS, Criterion::Entropy).unwrap(), &[0.0]);
        assert_eq!(classes(&tensor(&[1, 2], &[3.0, 3.0]), LOGITS).unwrap(), [[Some(0)]]);
    }

    #[test]
    fn one_number_is_one_of_two_classes() {
        close(&sureness(&tensor(&[2, 1], &[0.0, 0.0]), LOGITS, Criterion::Confidence).unwrap(), &[0.5, 0.5]);
        let answer = tensor(&[2, 1], &[0.1, 0.8]);
        assert!((sureness(&answer, PROBABILITIES, Criterion::Confidence).unwrap()[0] - 0.9).abs() < 1e-6);
        assert_eq!(classes(&answer, PROBABILITIES).unwrap(), [[Some(0)], [Some(1)]]);
    }

    #[test]
    fn what_is_no_distribution_is_not_sure() {
        for bad in [f32::NAN, f32::INFINITY] {
            for reading in [LOGITS, PROBABILITIES] {
                for criterion in [Criterion::Confidence, Criterion::Entropy, Criterion::Margin] {
                    close(&sureness(&tensor(&[1, 2], &[bad, 1.0]), reading, criterion).unwrap(), &[0.0]);
                }
                assert_eq!(classes(&tensor(&[1, 2], &[bad, 1.0]), reading).unwrap(), [[None]]);
            }
        }
        for (answer, reading) in [
            (tensor(&[1, 2], &[f32::NEG_INFINITY; 2]), LOGITS),
            (tensor(&[1, 2], &[-0.5, 1.5]), PROBABILITIES),
            (tensor(&[1, 2], &[0.0, 0.0]), PROBABILITIES),
        ] {
            close(&sureness(&answer, reading, Criterion::Confidence).unwrap(), &[0.0]);
        }
    }

    #[test]
    fn places_have_classes_of_their_own() {
        // [batch 1, classes 2, places 2]: classes on axis 1.
        let answer = tensor(&[1, 2, 2], &[0.9, 0.4, 0.1, 0.6]);
        let reading = Reading { axis: 1, scores: Scores::Probabilities };
        assert_eq!(classes(&answer, reading).unwrap(), [[Some(0), Some(1)]]);
        assert!((sureness(&answer, reading, Criterion::Confidence).unwrap()[0] - 0.75).abs() < 1e-6);
    }

    #[test]
    fn what_cannot_be_judged_is_an_error() {
        let error = |tensor: &Tensor, axis| {
            sureness(tensor, Reading { axis, scores: Scores::Logits }, Criterion::Entropy).unwrap_err().to_string()
        };
        assert!(error(&tensor(&[4], &[0.0; 4]), -1).contains("no axis"));
        assert!(error(&tensor(&[1, 4], &[0.0; 4]), 2).contains("no axis"));
        assert!(error(&tensor(&[1, 4], &[0.0; 4]), 0).contains("no axis"));
        assert!(error(&tensor(&[1, 0], &[]), -1).contains("empty"));
        let integers = Tensor::new([1, 2], Elements::I64(vec![1, 2])).unwrap();
        assert!(error(&integers, -1).contains("floats"));
    }
}

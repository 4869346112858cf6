//! One answer of several: mean, vote.

use tierline_graph::Tensor;

use super::Combine;
use super::numbers::{TensorsError, f32s, numbers_of};
use crate::exits::{Reading, probabilities};

/// One member's answer, and what it counts.
#[derive(Debug, Clone, Copy)]
pub struct Voice<'t> {
    /// The member's name, for messages.
    pub name: &'t str,
    /// Its judged output.
    pub answer: &'t Tensor,
    /// How that is read.
    pub reading: Reading,
    /// What it counts.
    pub weight: f64,
}

/// Combines answers of one shape into one of f32, of the same shape; with one class
/// (a logit or a probability alone), two: against and for. What is no distribution
/// makes its places NaN. Ties in a vote go to the lowest class, within each member.
///
/// # Errors
/// When they don't fit each other.
pub fn combine(voices: &[Voice<'_>], how: Combine) -> Result<Tensor, TensorsError> {
    let Some(first) = voices.first() else { return Err(TensorsError::TooLarge("no answer to combine".to_owned())) };
    let total: f64 = voices.iter().map(|voice| voice.weight).sum();
    let mut sum: Option<(Vec<usize>, Vec<f64>)> = None;
    for voice in voices {
        let (shape, values) = match how {
            Combine::Values => (voice.answer.shape().to_vec(), numbers_of(voice.name, voice.answer)?),
            Combine::Mean => distributions(voice, |p| p.to_vec())?,
            Combine::Vote => distributions(voice, one_hot)?,
        };
        let (known, sums) = sum.get_or_insert_with(|| (shape.clone(), vec![0.0; values.len()]));
        if *known != shape {
            let needed = format!("{known:?}, as that of `{}`", first.name);
            return Err(TensorsError::Shape { name: voice.name.to_owned(), shape, needed });
        }
        // In f64, and divided once: the order of members changes no digit that f32 has.
        sums.iter_mut().zip(&values).for_each(|(sum, value)| *sum += voice.weight * value);
    }
    let (shape, mut sums) = sum.unwrap_or_default();
    sums.iter_mut().for_each(|sum| *sum /= total);
    f32s(shape, &sums)
}

fn one_hot(p: &[f64]) -> Vec<f64> {
    let best = (0..p.len()).fold(0, |best, class| if p[class] > p[best] { class } else { best });
    (0..p.len()).map(|class| f64::from(u8::from(class == best))).collect()
}

/// What `of` makes of the distribution at each place, in the answer's layout.
fn distributions(voice: &Voice<'_>, of: impl Fn(&[f64]) -> Vec<f64>) -> Result<(Vec<usize>, Vec<f64>), TensorsError> {
    let answer = voice.answer;
    let examples = probabilities(answer, voice.reading)?;
    let rank = answer.shape().len() as i64;
    let axis = (if voice.reading.axis < 0 { voice.reading.axis + rank } else { voice.reading.axis }) as usize;
    let mut shape = answer.shape().to_vec();
    shape[axis] = shape[axis].max(2);
    let (outer, count): (usize, usize) = (shape[1..axis].iter().product(), shape[axis]);
    let inner: usize = shape[axis + 1..].iter().product();
    let mut values = vec![f64::NAN; shape.iter().product()];
    for (example, places) in examples.iter().enumerate() {
        for (place, p) in places.iter().enumerate() {
            let Some(p) = p else { continue };
            let (o, i) = (place / inner, place % inner);
            for (class, value) in of(p).into_iter().enumerate() {
                values[((example * outer + o) * count + class) * inner + i] = value;
            }
        }
    }
    Ok((shape, values))
}

//! Few numbers in place of many features, at one addition each.

use serde::{Deserialize, Serialize};

use super::random::Random;

/// Features of an example at most.
pub const INPUTS_MAX: usize = 1 << 20;

/// Numbers of a sketch at most.
pub const NUMBERS_MAX: usize = 256;

/// A count sketch (Charikar, Chen, Farach-Colton, 2002): every feature is added
/// to, or taken from, one number that a seed decides. Few features are taken as
/// they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Document", into = "Document")]
pub struct Sketch {
    inputs: usize,
    numbers: usize,
    seed: u64,
    /// Number and sign of each feature, as `2 number + negative`; empty where
    /// features are taken as they are.
    places: Vec<u16>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    inputs: usize,
    numbers: usize,
    seed: u64,
}

/// A sketch out of bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a sketch takes up to {INPUTS_MAX} features and makes 1 to {NUMBERS_MAX} numbers; asked for {inputs} and {numbers}"
)]
pub struct SketchError {
    inputs: usize,
    numbers: usize,
}

impl Sketch {
    /// A sketch of `inputs` features as at most `numbers` numbers; none features
    /// make none.
    pub fn new(inputs: usize, numbers: usize, seed: u64) -> Result<Self, SketchError> {
        if inputs > INPUTS_MAX || numbers == 0 || numbers > NUMBERS_MAX {
            return Err(SketchError { inputs, numbers });
        }
        let mut random = Random::new(seed);
        let places = if inputs <= numbers {
            Vec::new()
        } else {
            (0..inputs).map(|_| random.below(2 * numbers) as u16).collect()
        };
        Ok(Self { inputs, numbers, seed, places })
    }

    /// Features that it takes.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Numbers that it makes.
    pub fn len(&self) -> usize {
        self.inputs.min(self.numbers)
    }

    /// Whether it makes none.
    pub fn is_empty(&self) -> bool {
        self.inputs == 0
    }

    /// Whether each number is a feature as it is.
    pub fn is_plain(&self) -> bool {
        self.places.is_empty()
    }

    /// Writes the sketch of `features` ([inputs]) over `numbers` ([len]).
    pub fn write(&self, features: &[f32], numbers: &mut [f32]) {
        if self.is_plain() {
            numbers.copy_from_slice(features);
            return;
        }
        numbers.fill(0.0);
        for (x, place) in features.iter().zip(&self.places) {
            let number = &mut numbers[usize::from(place >> 1)];
            *number += if place & 1 == 0 { *x } else { -*x };
        }
    }
}

impl TryFrom<Document> for Sketch {
    type Error = SketchError;

    fn try_from(document: Document) -> Result<Self, SketchError> {
        Self::new(document.inputs, document.numbers, document.seed)
    }
}

impl From<Sketch> for Document {
    fn from(sketch: Sketch) -> Self {
        Self { inputs: sketch.inputs, numbers: sketch.numbers, seed: sketch.seed }
    }
}

//! What of a model is learned, in which order: how flat vectors are cut.

use serde::{Deserialize, Serialize};

use crate::{Channel, FederateError, Vectors};

/// A tensor of the model that travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its name in the model.
    pub name: String,
    /// Its axes.
    pub shape: Vec<usize>,
}

impl Part {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What is learned of a model and shared: flat vectors hold its parts one
/// after another. Both sides of a hop must have the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Weights that follow gradients.
    pub parameters: Vec<Part>,
    /// Running statistics, which are averaged as they are and never optimised.
    pub statistics: Vec<Part>,
    /// Names of those statistics that are variances: never below zero.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variances: Vec<String>,
    /// What models say of public examples, where that travels: one part,
    /// `[examples, classes]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logits: Vec<Part>,
    /// What a model's first part makes of a member's examples, where that
    /// travels: one part, `[examples, ..]`. Its length differs from member to
    /// member, as those of logits and labels then do: [`Layout::of_examples`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<Part>,
    /// The classes of those examples: one part, `[examples]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Part>,
}

/// Numbers that a member may send of its examples, at most: a gigabyte.
pub const EXAMPLE_NUMBERS_MAX: u64 = 1 << 28;

/// Largest magnitude of a feature, or of what is said of an example: as much as
/// half a float holds. All members' examples are learned from together, and one
/// of 1e30 would leave nothing finite for anybody.
pub const EXAMPLE_VALUE_MAX: f32 = 65_504.0;

impl Layout {
    /// The parts of a channel.
    #[must_use]
    pub fn parts(&self, channel: Channel) -> &[Part] {
        match channel {
            Channel::Model | Channel::Control => &self.parameters,
            Channel::Statistics => &self.statistics,
            Channel::Logits => &self.logits,
            Channel::Features => &self.features,
            Channel::Labels => &self.labels,
        }
    }

    /// Elements of a channel's vector.
    #[must_use]
    pub fn len(&self, channel: Channel) -> usize {
        self.parts(channel).iter().map(Part::len).sum()
    }

    /// Whether nothing is shared.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty() && self.statistics.is_empty() && self.logits.is_empty()
    }

    /// Whether vectors are of members' own examples.
    #[must_use]
    pub fn is_of_examples(&self) -> bool {
        !self.features.is_empty()
    }

    /// The layout of a member with so many examples; the same one where nothing
    /// that travels is of examples.
    ///
    /// # Errors
    /// When that is more than [`EXAMPLE_NUMBERS_MAX`], or nothing.
    pub fn of_examples(&self, examples: u64) -> Result<Self, FederateError> {
        let mut layout = self.clone();
        if !self.is_of_examples() {
            return Ok(layout);
        }
        let each: u64 = [&self.logits, &self.features, &self.labels].into_iter().flatten().map(of_one).sum();
        let fits = examples > 0 && examples.checked_mul(each).is_some_and(|n| n <= EXAMPLE_NUMBERS_MAX);
        let Some(count) = usize::try_from(examples).ok().filter(|_| fits) else {
            return Err(FederateError::Examples { examples, each, max: EXAMPLE_NUMBERS_MAX });
        };
        for part in [&mut layout.logits, &mut layout.features, &mut layout.labels].into_iter().flatten() {
            part.shape[0] = count;
        }
        Ok(layout)
    }

    /// Shapes of a channel's parts, as codecs take them.
    #[must_use]
    pub fn shapes(&self, channel: Channel) -> Vec<Vec<usize>> {
        self.parts(channel).iter().map(|p| p.shape.clone()).collect()
    }

    /// Refuses a vector that isn't cut like this.
    ///
    /// # Errors
    /// [`FederateError::Length`].
    pub fn check(&self, channel: Channel, vector: &[f32]) -> Result<(), FederateError> {
        let expected = self.len(channel);
        if vector.len() == expected {
            return Ok(());
        }
        Err(FederateError::Length { channel: channel.name(), expected, given: vector.len() })
    }

    /// Refuses variances that nobody can have measured: means of them are
    /// variances as long as each of them is one.
    ///
    /// # Errors
    /// [`FederateError::Variance`].
    pub fn check_variances(&self, vectors: &Vectors) -> Result<(), FederateError> {
        let mut rest = vectors.get(&Channel::Statistics).map_or(&[][..], Vec::as_slice);
        for part in &self.statistics {
            let Some((values, behind)) = rest.split_at_checked(part.len()) else { return Ok(()) };
            rest = behind;
            if let Some(&value) = values.iter().find(|x| **x < 0.0)
                && self.variances.contains(&part.name)
            {
                return Err(FederateError::Variance { part: part.name.clone(), value });
            }
        }
        Ok(())
    }

    /// Refuses what is said of a member's own examples if others could not
    /// learn from it.
    ///
    /// # Errors
    /// [`FederateError::Value`], [`FederateError::Label`].
    pub fn check_examples(&self, vectors: &Vectors) -> Result<(), FederateError> {
        for channel in [Channel::Features, Channel::Logits] {
            let vector = vectors.get(&channel).map_or(&[][..], Vec::as_slice);
            if let Some(&value) = vector.iter().find(|x| x.is_nan() || x.abs() > EXAMPLE_VALUE_MAX) {
                return Err(FederateError::Value { channel: channel.name(), value, max: EXAMPLE_VALUE_MAX });
            }
        }
        self.check_labels(vectors.get(&Channel::Labels).map_or(&[], Vec::as_slice))
    }

    fn check_labels(&self, labels: &[f32]) -> Result<(), FederateError> {
        let classes = self.logits.first().and_then(|part| part.shape.last()).copied().unwrap_or(0);
        let fits = |label: &&f32| label.fract() == 0.0 && (0.0..classes as f32).contains(*label);
        match labels.iter().find(|label| !fits(label)) {
            Some(&label) => Err(FederateError::Label { label, classes }),
            None => Ok(()),
        }
    }

    /// Refuses vectors of another model, or with a number that isn't finite.
    ///
    /// # Errors
    /// [`FederateError::Length`], [`FederateError::NotFinite`].
    pub fn check_all(&self, vectors: &Vectors) -> Result<(), FederateError> {
        for (&channel, vector) in vectors {
            self.check(channel, vector)?;
            if let Some(index) = vector.iter().position(|x| !x.is_finite()) {
                let part = self.part_of(channel, index).unwrap_or_default().to_owned();
                return Err(FederateError::NotFinite { part, value: vector[index] });
            }
        }
        Ok(())
    }

    /// The part that holds an element, by its name.
    #[must_use]
    pub fn part_of(&self, channel: Channel, index: usize) -> Option<&str> {
        let mut end = 0;
        let holds = |part: &&Part| {
            end += part.len();
            index < end
        };
        self.parts(channel).iter().find(holds).map(|p| p.name.as_str())
    }
}

/// Numbers of one example.
fn of_one(part: &Part) -> u64 {
    part.shape.iter().skip(1).map(|n| *n as u64).product()
}

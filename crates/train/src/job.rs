//! A training job, as its file says it.

use std::path::PathBuf;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tierline_federate::Federation;
use tierline_federate::config::EPOCHS_MAX;
use tierline_graph::step::{Also, Clip, Decay, Loss, Optimizer, Recipe, Schedule, matches};

use crate::continual::Continual;
use crate::data::{Augment, BatchOptions, CLASSES_MAX, DataError, Dataset, Last, Normalize, Others, names_together};
use crate::error::TrainError;
use crate::run::RunOptions;

/// Names of classes of a job, bytes of UTF-8.
pub const CLASS_NAME_BYTES_MAX: usize = 255;

/// Examples of a batch, at most.
pub const BATCH_MAX: usize = 1 << 24;

/// A training job: what to train, on what, and how.
///
/// One that was read, from a file, a disk or another node, is one whose
/// numbers are in their ranges ([`Job::check`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Job {
    /// The ONNX file, seen from the job's own folder.
    pub model: PathBuf,
    /// Other models for some of the ends, of a federation in which answers
    /// travel rather than weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<Variant>,
    /// Where weights come from.
    #[serde(default)]
    pub weights: Weights,
    /// Data sets, by the names under which this node has them.
    pub data: Data,
    /// How often every example is seen; in a federation, in each round.
    pub epochs: u64,
    /// Decides fresh weights, the order of examples, their variation and
    /// dropout.
    #[serde(default)]
    pub seed: u64,
    /// How batches are made.
    #[serde(default)]
    pub batch: Batching,
    /// What is to become small.
    #[serde(default = "cross_entropy")]
    pub loss: Loss,
    /// The output that the loss is about; the first unless said.
    pub output: Option<String>,
    /// Further outputs that learn the same targets, such as early exits, and
    /// what their losses weigh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Also>,
    /// How weights follow their gradients.
    pub optimizer: Optimizer,
    /// Learning rate over time.
    pub schedule: LearningRateSchedule,
    /// Bounds on gradients.
    pub clip: Option<Clip>,
    /// Patterns (`*` any characters, `?` one) of weights that stay as they are.
    #[serde(default)]
    pub freeze: Vec<String>,
    /// Whether activations are computed again rather than kept: more time, less memory.
    #[serde(default)]
    pub recompute: bool,
    /// Epochs between two evaluations.
    #[serde(default = "one")]
    pub evaluate_every: u64,
    /// Steps between two checkpoints, besides those behind each epoch.
    #[serde(default)]
    pub checkpoint_every: u64,
    /// How it learns one task after the other; all at once when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continual: Option<Continual>,
    /// How many nodes train it together; it stays with this one when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub federation: Option<Federation>,
}

fn cross_entropy() -> Loss {
    Recipe::default().loss
}

fn one() -> u64 {
    1
}

/// Another model, for some of the ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// The ONNX file, seen from the job's own folder.
    pub model: PathBuf,
    /// Patterns of the names of nodes that train it: `*` any characters, `?`
    /// one.
    pub ends: Vec<String>,
}

/// Where weights come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// From the model's file.
    #[default]
    Keep,
    /// Drawn anew from the seed.
    Fresh,
}

/// The data sets of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// What is learned from: its split `train`, if it has one.
    pub train: String,
    /// What is held out: a data set, or the split `test` of `train`, if there
    /// is one.
    pub test: Option<String>,
    /// Share of the examples to hold out where there is no test set.
    pub hold_out: Option<f64>,
    /// Names of the classes, in the order in which the model numbers them.
    /// Whoever has examples of some of them only, or lists them in another
    /// order, takes these numbers. Left out, the data sets at hand where the
    /// job begins say them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// What becomes of examples of other classes.
    #[serde(default, skip_serializing_if = "is_refused")]
    pub other_classes: Others,
}

fn is_refused(others: &Others) -> bool {
    *others == Others::Refuse
}

impl Data {
    fn check(&self) -> Result<(), TrainError> {
        let wrong = |value: String, range| Err(TrainError::Range { what: "data.classes", value, range });
        if self.classes.len() > CLASSES_MAX {
            return wrong(format!("of {} names", self.classes.len()), "of at most 65536 names");
        }
        if self.classes.iter().any(|name| name.is_empty() || name.len() > CLASS_NAME_BYTES_MAX) {
            return wrong("of an empty name, or of one that is too long".to_owned(), "names of at most 255 bytes");
        }
        let mut sorted: Vec<&String> = self.classes.iter().collect();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => wrong(format!("of `{}` twice", pair[0]), "a name for each class"),
            None => Ok(()),
        }
    }

    /// A data set with the numbers that the job gives to its classes.
    ///
    /// # Errors
    /// As [`Dataset::numbered`].
    pub fn numbered(&self, dataset: &Dataset) -> Result<Dataset, DataError> {
        dataset.numbered(&self.classes, self.other_classes)
    }

    /// Agrees on names of classes, unless the job states them: those of data
    /// sets that are learned from and evaluated together.
    pub fn name_classes<'d>(&mut self, sets: impl IntoIterator<Item = &'d Dataset>) {
        if self.classes.is_empty() {
            self.classes = names_together(sets.into_iter().filter_map(Dataset::class_names));
        }
    }
}

/// How batches are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batching {
    /// Examples of a batch.
    pub size: usize,
    /// Whether each epoch takes the examples in another order.
    pub shuffle: bool,
    /// What becomes of a last batch with fewer examples.
    pub last: Last,
    /// How examples are varied.
    pub augment: Augment,
    /// Mean and deviation taken out of the scaled features: stated, or
    /// measured on the training examples.
    pub normalize: Option<Normalization>,
}

impl Default for Batching {
    fn default() -> Self {
        let BatchOptions { size, shuffle, last, augment, .. } = BatchOptions::default();
        Self { size, shuffle, last, augment, normalize: None }
    }
}

/// What is taken out of features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Normalization {
    /// `"measured"`: of the training examples.
    Measured(Measured),
    /// These numbers.
    Stated(Normalize),
}

/// The word `measured`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measured {
    /// Of the training examples.
    Measured,
}

/// Learning rate over time, counted in epochs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearningRateSchedule {
    /// The rate where nothing raises or lowers it.
    pub rate: f64,
    /// Epochs over which the rate rises in a line.
    #[serde(default)]
    pub warmup: f64,
    /// What happens then.
    #[serde(default)]
    pub decay: LearningRateDecay,
}

/// How a learning rate falls.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum LearningRateDecay {
    /// Not at all.
    #[default]
    Constant,
    /// By `factor` every `every` epochs.
    Step {
        /// Epochs between two falls.
        every: f64,
        /// What the rate is multiplied by.
        factor: f64,
    },
    /// By `factor` over every epoch, a little at each step.
    Exponential {
        /// What the rate is multiplied by.
        factor: f64,
    },
    /// In a line to `last` at the end of the job.
    Linear {
        /// The last rate.
        #[serde(default)]
        last: f64,
    },
    /// Along half a cosine to `last` at the end of the job.
    Cosine {
        /// The last rate.
        #[serde(default)]
        last: f64,
    },
}

impl<'de> Deserialize<'de> for Job {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let job = Self::deserialize(from)?;
        job.check().map_err(D::Error::custom)?;
        Ok(job)
    }
}

impl Serialize for Job {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, to)
    }
}

impl Job {
    /// Refuses numbers outside of their ranges.
    ///
    /// # Errors
    /// Naming the first of them.
    pub fn check(&self) -> Result<(), TrainError> {
        let range = |what, value: String, range| Err(TrainError::Range { what, value, range });
        if !(1..=EPOCHS_MAX).contains(&self.epochs) {
            return range("epochs", self.epochs.to_string(), "at least 1 and at most 2^32");
        }
        if !(1..=BATCH_MAX).contains(&self.batch.size) {
            return range("batch.size", self.batch.size.to_string(), "at least 1 and at most 2^24");
        }
        if let Some(share) = self.data.hold_out.filter(|share| !(*share > 0.0 && *share < 1.0)) {
            return range("data.hold_out", share.to_string(), "above 0 and below 1");
        }
        let LearningRateSchedule { warmup, decay, .. } = &self.schedule;
        let every = if let LearningRateDecay::Step { every, .. } = decay { *every } else { 1.0 };
        if !((0.0..=EPOCHS_MAX as f64).contains(warmup) && every > 0.0 && every <= EPOCHS_MAX as f64) {
            let what = "the schedule's warmup or every";
            return range(what, format!("{warmup}, {every}"), "epochs, at least 0 and above 0, at most 2^32");
        }
        self.data.check()?;
        self.recipe(1).check()?;
        self.continual.as_ref().map_or(Ok(()), Continual::check)?;
        self.federation.as_ref().map_or(Ok(()), |federation| Ok(federation.check()?))
    }

    /// Which of `models` an end trains, the first whose patterns match its
    /// name; `None` for the job's own.
    #[must_use]
    pub fn variant_of(&self, end: &str) -> Option<usize> {
        self.models.iter().position(|variant| variant.ends.iter().any(|pattern| matches(pattern, end)))
    }

    /// The schedule in steps, where an epoch has `per_epoch`.
    #[must_use]
    pub fn schedule(&self, per_epoch: usize) -> Schedule {
        let steps = |epochs: f64| (epochs * per_epoch as f64).round().max(0.0) as u64;
        let all = self.epochs.saturating_mul(per_epoch as u64);
        let warmup = steps(self.schedule.warmup);
        let decay = match self.schedule.decay {
            LearningRateDecay::Constant => Decay::Constant,
            LearningRateDecay::Step { every, factor } => Decay::Step { every: steps(every).max(1), factor },
            LearningRateDecay::Exponential { factor } => {
                Decay::Exponential { factor: factor.powf(1.0 / per_epoch.max(1) as f64) }
            }
            LearningRateDecay::Linear { last } => Decay::Linear { steps: all.max(warmup + 1), last },
            LearningRateDecay::Cosine { last } => Decay::Cosine { steps: all.max(warmup + 1), last },
        };
        Schedule { rate: self.schedule.rate, warmup, decay }
    }

    /// What the step graph is made by, where an epoch has `per_epoch` steps.
    #[must_use]
    pub fn recipe(&self, per_epoch: usize) -> Recipe {
        Recipe {
            loss: self.loss.clone(),
            output: self.output.clone(),
            also: self.also.clone(),
            optimizer: self.optimizer.clone(),
            schedule: self.schedule(per_epoch),
            clip: self.clip,
            freeze: self.freeze.clone(),
            seed: self.seed,
            recompute: self.recompute,
            steering: None,
        }
    }

    /// How the run goes; `normalize` is what was stated or measured.
    ///
    /// # Errors
    /// When a number is outside of its range.
    pub fn options(&self, normalize: Option<Normalize>) -> Result<RunOptions, TrainError> {
        if self.epochs == 0 {
            return Err(TrainError::Range { what: "epochs", value: "0".into(), range: "at least 1" });
        }
        let Batching { size, shuffle, last, augment, .. } = self.batch.clone();
        Ok(RunOptions {
            epochs: self.epochs,
            batch: BatchOptions { size, shuffle, last, seed: self.seed, augment, normalize },
            evaluate_every: self.evaluate_every,
            checkpoint_every: self.checkpoint_every,
        })
    }

    /// What is taken out of features, where every member must take the same.
    ///
    /// # Errors
    /// When each would measure its own.
    pub fn stated_normalization(&self) -> Result<Option<Normalize>, TrainError> {
        match &self.batch.normalize {
            None => Ok(None),
            Some(Normalization::Stated(normalize)) => Ok(Some(normalize.clone())),
            Some(Normalization::Measured(_)) => Err(TrainError::Measured),
        }
    }

    /// The job as text that is the same for jobs of which one may go on where
    /// the other stopped: how long they run, how often they look or save,
    /// and what they keep in memory doesn't count, unless the schedule leads to the last epoch.
    #[must_use]
    pub fn identity(&self) -> String {
        let ends = matches!(self.schedule.decay, LearningRateDecay::Linear { .. } | LearningRateDecay::Cosine { .. });
        let epochs = if ends { self.epochs } else { 0 };
        let kept = Self { epochs, evaluate_every: 0, checkpoint_every: 0, recompute: false, ..self.clone() };
        serde_json::to_string(&kept).unwrap_or_default()
    }
}

//! Examples of earlier tasks, kept within a quota.
//!
//! What is kept depends on the settings, the seed and the examples in the order
//! in which they came, on nothing else. Features are kept as the data set has
//! them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tierline_graph::{DataType, Elements, Tensor};

use super::pick::{self, Slot};
use super::settings::within;
use crate::data::{Dataset, Targets};
use crate::error::TrainError;

/// Examples that a memory holds, at most.
pub(super) const EXAMPLES_MAX: usize = 1 << 24;

/// Which examples are kept and how many.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Replay {
    /// Which.
    pub pick: Pick,
    /// Of each class, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_class: Option<usize>,
    /// In all, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples: Option<usize>,
    /// Bytes in all, at most, of features, targets and logits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Share of each batch that is of earlier tasks; when left out, as many
    /// parts as there were tasks, beside one for the new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Whether what the model said behind its task is kept with each example,
    /// and learned as a teacher's answer (Buzzega et al., 2020).
    pub logits: bool,
    /// Divides these logits, above 0, where no `lwf` says it.
    pub temperature: f64,
    /// What the divergence from them weighs, where no `lwf` says it.
    pub weight: f64,
    /// Epochs over what is kept, where the model begins anew; the job's when left
    /// out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u64>,
}

impl Default for Replay {
    fn default() -> Self {
        Self {
            pick: Pick::Reservoir,
            per_class: None,
            examples: None,
            bytes: None,
            share: None,
            logits: false,
            temperature: 1.0,
            weight: 1.0,
            epochs: None,
        }
    }
}

/// Which examples are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pick {
    /// Each of those that came with the same probability (Vitter, 1985).
    #[default]
    Reservoir,
    /// As many of each class, each of its examples with the same probability.
    Balanced,
    /// As many of each class: those whose features' mean is nearest to the
    /// class's, one after the other (Welling, 2009; iCaRL: Rebuffi et al., 2017).
    Herding,
    /// As many of each class, as they come; the model is trained anew on them
    /// alone (GDumb: Prabhu et al., 2020). A control: what does better than this
    /// learns something from going on.
    Gdumb,
}

impl Replay {
    pub(super) fn check(&self) -> Result<(), TrainError> {
        let counts = [self.per_class, self.examples].into_iter().flatten();
        for count in counts {
            let what = "continual.replay.per_class or examples";
            within(what, count as f64, (1..=EXAMPLES_MAX).contains(&count), "1 to 2^24")?;
        }
        if self.per_class.is_none() && self.examples.is_none() && self.bytes.is_none() {
            let text = "replay keeps examples without bound; say per_class, examples or bytes";
            return Err(TrainError::Continual(text.into()));
        }
        if let Some(share) = self.share {
            within("continual.replay.share", share, share > 0.0 && share < 1.0, "above 0 and below 1")?;
        }
        if let Some(epochs) = self.epochs {
            let most = tierline_federate::config::EPOCHS_MAX;
            within("continual.replay.epochs", epochs as f64, (1..=most).contains(&epochs), "1 to 2^32")?;
        }
        let temperature = self.temperature;
        within("continual.replay.temperature", temperature, temperature > 0.0, "above 0 and finite")?;
        within("continual.replay.weight", self.weight, self.weight >= 0.0, "at least 0 and finite")
    }
}

/// An example.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    /// Its features' bytes.
    pub(super) features: Box<[u8]>,
    pub(super) target: Target,
    /// What the model said of it; empty where that isn't kept.
    pub(super) logits: Vec<f32>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Target {
    Class(u32),
    Values(Vec<f32>),
}

impl Item {
    pub(super) fn class(&self) -> u32 {
        match self.target {
            Target::Class(class) => class,
            Target::Values(_) => 0,
        }
    }
}

/// What a memory's examples are like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Form {
    /// Of one example's features.
    pub(super) shape: Vec<usize>,
    /// As [`DataType::to_onnx`] numbers it.
    pub(super) dtype: i32,
    /// Classes that targets are of; none where they are numbers.
    pub(super) classes: Option<usize>,
    /// Shape of one example's target, where they are numbers.
    pub(super) values: Vec<usize>,
    /// Logits kept with each.
    pub(super) logits: usize,
}

impl Form {
    fn of(dataset: &Dataset, logits: usize) -> Result<Self, TrainError> {
        let values = match dataset.class_count() {
            Some(_) => Vec::new(),
            None => dataset.targets(&[0])?.shape()[1..].to_vec(),
        };
        Ok(Self {
            shape: dataset.example_shape().to_vec(),
            dtype: dataset.dtype().to_onnx(),
            classes: dataset.class_count(),
            values,
            logits,
        })
    }

    pub(super) fn dtype(&self) -> Option<DataType> {
        DataType::from_onnx(self.dtype)
    }

    /// Bytes of one example.
    pub(super) fn bytes(&self) -> u64 {
        let features = self.shape.iter().product::<usize>() * self.dtype().and_then(DataType::size).unwrap_or(1);
        let values: usize = if self.classes.is_some() { 1 } else { self.values.iter().product() };
        (features + 4 * values + 4 * self.logits) as u64
    }
}

/// Examples of earlier tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    pub(super) settings: Replay,
    pub(super) seed: u64,
    pub(super) form: Form,
    pub(super) items: Vec<Item>,
    /// Examples that came so far, of each class; of the only one, where targets
    /// are numbers.
    pub(super) came: BTreeMap<u32, u64>,
}

/// What is known of examples besides themselves, row after row.
#[derive(Debug, Clone, Copy, Default)]
pub struct Said<'a> {
    /// What the model says of each; empty where that isn't kept.
    pub logits: &'a [f32],
    /// Features by which herding compares, of those kept, then of the new;
    /// empty for others.
    pub features: &'a [f32],
}

impl Memory {
    /// An empty one, for examples like those of a data set.
    ///
    /// # Errors
    /// When not even one fits into the quota.
    pub fn new(settings: &Replay, seed: u64, like: &Dataset, logits: usize) -> Result<Self, TrainError> {
        let form = Form::of(like, if settings.logits { logits } else { 0 })?;
        let it = Self { settings: settings.clone(), seed, form, items: Vec::new(), came: BTreeMap::new() };
        if settings.bytes.is_some_and(|bytes| bytes < it.form.bytes()) {
            let one = it.form.bytes();
            let text = format!("replay.bytes is {}, and one example takes {one}", settings.bytes.unwrap_or(0));
            return Err(TrainError::Continual(text));
        }
        Ok(it)
    }

    /// Goes on with other settings, such as a smaller quota.
    pub(super) fn with(mut self, settings: &Replay, seed: u64) -> Self {
        (self.settings, self.seed) = (settings.clone(), seed);
        self
    }

    /// Examples it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Bytes of what it holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.items.len() as u64 * self.form.bytes()
    }

    /// Examples of each class that it holds.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<u32, usize> {
        let mut counts = BTreeMap::new();
        self.items.iter().for_each(|item| *counts.entry(item.class()).or_insert(0) += 1);
        counts
    }

    /// Examples that fit, of all classes and of one, where `classes` came.
    fn quota(&self, classes: usize) -> [usize; 2] {
        let Replay { per_class, examples, bytes, .. } = self.settings;
        let by_bytes = bytes.map(|bytes| usize::try_from(bytes / self.form.bytes().max(1)).unwrap_or(usize::MAX));
        let all = [examples, by_bytes, Some(EXAMPLES_MAX)].into_iter().flatten().min().unwrap_or(0);
        let classes = classes.max(1);
        let of_one = per_class.unwrap_or(usize::MAX).min(all / classes);
        // As many as there will be of each, whoever came first.
        let most = per_class.map_or(usize::MAX, |n| n.saturating_mul(self.form.classes.unwrap_or(1)));
        [all.min(most), of_one]
    }

    /// Refuses a data set of other examples.
    ///
    /// # Errors
    /// Naming what differs.
    pub fn check(&self, dataset: &Dataset) -> Result<(), TrainError> {
        let other = Form::of(dataset, self.form.logits)?;
        if other == self.form {
            return Ok(());
        }
        let said = |form: &Form| {
            let dtype = form.dtype().map_or("unknown".to_owned(), |d| d.to_string());
            let targets = form.classes.map_or_else(|| format!("{:?} numbers", form.values), |n| format!("{n} classes"));
            format!("{dtype} {:?} with {targets}", form.shape)
        };
        Err(TrainError::Continual(format!(
            "the memory holds examples of {}, and {} has {}; begin with an empty one",
            said(&self.form),
            dataset.name(),
            said(&other)
        )))
    }

    /// Offers it the examples of a task, in their order.
    ///
    /// # Errors
    /// When they are of another form, or what is said of them doesn't fit.
    pub fn add(&mut self, dataset: &Dataset, said: Said<'_>) -> Result<(), TrainError> {
        self.check(dataset)?;
        let expected = dataset.len() * self.form.logits;
        if self.form.logits > 0 && said.logits.len() != expected {
            return Err(TrainError::Vector { what: "logits kept with examples", expected, given: said.logits.len() });
        }
        let held = self.items.len();
        let classes = dataset.classes();
        let class = |row: usize| classes.as_ref().map_or(0, |classes| classes[row] as u32);
        let mut kept: Vec<Slot> =
            self.items.iter().enumerate().map(|(at, item)| Slot { class: item.class(), at }).collect();
        let new: Vec<Slot> = (0..dataset.len()).map(|row| Slot { class: class(row), at: held + row }).collect();
        let known: BTreeSet<u32> = self.came.keys().copied().chain(new.iter().map(|slot| slot.class)).collect();
        let quota = self.quota(known.len());
        let came = &mut self.came;
        match self.settings.pick {
            Pick::Reservoir => pick::reservoir(&mut kept, &new, came, quota[0], self.seed),
            Pick::Balanced => pick::balanced(&mut kept, &new, came, quota[1], self.seed),
            Pick::Gdumb => {
                let of_one = self.settings.per_class.unwrap_or(usize::MAX);
                pick::greedy(&mut kept, &new, came, [quota[0], of_one], self.seed);
            }
            Pick::Herding => {
                let rows = held + dataset.len();
                let width = said.features.len() / rows;
                if width == 0 || said.features.len() != rows * width {
                    let (expected, given) = (rows * width.max(1), said.features.len());
                    return Err(TrainError::Vector { what: "features to compare", expected, given });
                }
                pick::herded(&mut kept, &new, came, quota[1], (said.features, width));
            }
        }
        let items = kept.iter().map(|slot| match slot.at.checked_sub(held) {
            None => Ok(self.items[slot.at].clone()),
            Some(row) => self.item(dataset, row, said),
        });
        self.items = items.collect::<Result<_, TrainError>>()?;
        Ok(())
    }

    fn item(&self, dataset: &Dataset, row: usize, said: Said<'_>) -> Result<Item, TrainError> {
        let features = dataset.features(&[row])?.to_bytes().unwrap_or_default().to_vec().into();
        let targets = dataset.targets(&[row])?;
        let target = match targets.elements() {
            Elements::I64(classes) => Target::Class(classes.first().map_or(0, |&c| c as u32)),
            _ => Target::Values(targets.as_f32().unwrap_or_default().to_vec()),
        };
        let width = self.form.logits;
        Ok(Item { features, target, logits: said.logits[row * width..(row + 1) * width].to_vec() })
    }

    /// Its examples as a data set; none where it is empty.
    ///
    /// # Errors
    /// When they make none, which those that were checked can't.
    pub fn dataset(&self) -> Result<Option<Dataset>, TrainError> {
        if self.items.is_empty() {
            return Ok(None);
        }
        let name = "examples kept";
        let wrong = || TrainError::Continual("the memory's examples are of no known type".into());
        let bytes: Vec<u8> = self.items.iter().flat_map(|item| item.features.iter().copied()).collect();
        let shape = [&[self.items.len()], &self.form.shape[..]].concat();
        let features = Tensor::from_bytes(self.form.dtype().ok_or_else(wrong)?, shape, &bytes)?;
        let targets = match self.form.classes {
            Some(count) => {
                let classes = self.items.iter().map(Item::class).collect();
                Targets::Classes { classes, count, names: Vec::new() }
            }
            None => {
                let values = self.items.iter().flat_map(|item| match &item.target {
                    Target::Values(values) => values.clone(),
                    Target::Class(_) => Vec::new(),
                });
                let shape = [&[self.items.len()], &self.form.values[..]].concat();
                Targets::Values(Tensor::new(shape, Elements::F32(values.collect()))?)
            }
        };
        Ok(Some(Dataset::new(name, features, targets)?))
    }

    /// What was said of its examples, row after row; empty where that isn't kept.
    #[must_use]
    pub fn logits(&self) -> Vec<f32> {
        self.items.iter().flat_map(|item| item.logits.iter().copied()).collect()
    }
}

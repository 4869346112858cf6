//! Batches of f32 tensors, made ahead of the loop that trains on them.
//!
//! Which examples a batch holds and how they are varied depends only on the
//! seed, the epoch and the example: a run that starts again in the middle
//! sees what the unbroken run saw. Start at [`Batches`].

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use tierline_graph::{Elements, Tensor};

use super::augment::Augment;
use super::dataset::Dataset;
use super::elements::number;
use super::error::DataError;
use super::random::generator;

/// Batches ready before they are asked for: one in use, one next, and two to
/// even out pictures that take longer.
pub const BATCHES_AHEAD: usize = 4;

/// Keeps the order of examples and their variation apart.
const ORDER: u64 = 1;
const VARIATION: u64 = 2;

/// How batches are made.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchOptions {
    /// Examples of a batch.
    pub size: usize,
    /// Whether each epoch takes the examples in another order.
    pub shuffle: bool,
    /// What becomes of a last batch with fewer examples.
    pub last: Last,
    /// Decides the order and the variation.
    pub seed: u64,
    /// How examples are varied.
    pub augment: Augment,
    /// What is taken out of scaled features; nothing when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize: Option<Normalize>,
}

impl Default for BatchOptions {
    fn default() -> Self {
        let (shuffle, last, augment) = (true, Last::Keep, Augment::default());
        Self { size: 32, shuffle, last, seed: 0, augment, normalize: None }
    }
}

impl BatchOptions {
    /// The same scaling, every example once, in order and as it is.
    #[must_use]
    pub fn for_evaluation(&self) -> Self {
        Self { shuffle: false, last: Last::Keep, augment: Augment::default(), ..self.clone() }
    }
}

/// What becomes of the last batch of an epoch when examples run out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Last {
    /// It comes with fewer examples.
    #[default]
    Keep,
    /// It is left out: a step graph of a fixed batch size can't take it.
    Drop,
}

/// `(x - mean) / std` per channel: along the first axis of an example, so per
/// column of a table. x is scaled already: a byte over 255, or as stored.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalize {
    /// One per channel, or one for all.
    pub mean: Vec<f32>,
    /// One per channel, or one for all; above 0.
    pub std: Vec<f32>,
}

impl Normalize {
    /// The mean and standard deviation of a data set, per channel. A channel
    /// that never changes gets a deviation of 1.
    #[must_use]
    pub fn of(dataset: &Dataset) -> Self {
        let channels = dataset.example_shape().first().copied().unwrap_or(1);
        let per = dataset.example_len() / channels;
        let (mut sums, mut squares) = (vec![0f64; channels], vec![0f64; channels]);
        let mut features = vec![0f32; dataset.example_len()];
        // The first example as origin: squares of what is far from 0 lose digits.
        let mut origin = vec![0f32; channels];
        for example in 0..dataset.len() {
            scaled(dataset, example, &mut features);
            for (channel, values) in features.chunks_exact(per).enumerate() {
                if example == 0 {
                    origin[channel] = values[0];
                }
                for &value in values {
                    let off = f64::from(value) - f64::from(origin[channel]);
                    sums[channel] += off;
                    squares[channel] += off * off;
                }
            }
        }
        let count = (dataset.len() * per) as f64;
        let deviation = |(sum, square): (&f64, &f64)| {
            let std = (square / count - (sum / count).powi(2)).max(0.0).sqrt() as f32;
            if std > 0.0 { std } else { 1.0 }
        };
        Self {
            mean: sums.iter().zip(&origin).map(|(sum, &o)| (sum / count + f64::from(o)) as f32).collect(),
            std: sums.iter().zip(&squares).map(deviation).collect(),
        }
    }
}

/// Where in a run a batch is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// From 0.
    pub epoch: u64,
    /// From 0, within the epoch.
    pub batch: usize,
}

/// What a step graph takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// f32 of `[examples, ...]`.
    pub features: Tensor,
    /// i64 classes `[examples]`, or f32 `[examples, ...]`.
    pub targets: Tensor,
    /// How many there are.
    pub examples: usize,
    /// Where in the run it is.
    pub position: Position,
}

/// The batches of a run, in order, made on a thread of their own.
///
/// An iterator. Give a batch that is no longer needed to
/// [`recycle`](Self::recycle), and its memory serves again.
#[derive(Debug)]
pub struct Batches {
    /// `None` once dropped, to tell the thread that nobody listens.
    ready: Option<Receiver<Batch>>,
    used: SyncSender<Vec<f32>>,
    thread: Option<JoinHandle<()>>,
    per_epoch: usize,
}

impl Batches {
    /// Batches from `from` to the end of epoch `epochs - 1`.
    ///
    /// # Errors
    /// When an option makes no sense with this data set, `from` is beyond the
    /// batches of an epoch, or no thread can be started.
    pub fn start(dataset: &Dataset, options: &BatchOptions, from: Position, epochs: u64) -> Result<Self, DataError> {
        let maker = Maker::new(dataset.clone(), options.clone())?;
        let per_epoch = maker.per_epoch();
        if from.batch >= per_epoch {
            let reason = format!("an epoch has the batches 0 to {}; {} is beyond", per_epoch - 1, from.batch);
            return Err(DataError::Option { option: "from", reason });
        }
        let (to, ready) = sync_channel(BATCHES_AHEAD);
        let (used, spare) = sync_channel(BATCHES_AHEAD);
        let thread = std::thread::Builder::new()
            .name("batches".to_owned())
            .spawn(move || maker.run(from, epochs, &to, &spare))
            .map_err(|source| DataError::Io { path: dataset.name().into(), source })?;
        Ok(Self { ready: Some(ready), used, thread: Some(thread), per_epoch })
    }

    /// Batches of a whole epoch.
    #[must_use]
    pub fn per_epoch(&self) -> usize {
        self.per_epoch
    }

    /// Takes back a batch's memory.
    pub fn recycle(&self, batch: Batch) {
        if let (_, Elements::F32(buffer)) = batch.features.into_parts() {
            // With enough spare ones, or nobody to use them, it is freed.
            match self.used.try_send(buffer) {
                Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
        }
    }
}

impl Iterator for Batches {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        self.ready.as_ref()?.recv().ok()
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.ready = None;
        if let Some(thread) = self.thread.take() {
            // It makes one more batch at most, finds nobody listening, and ends.
            let _ended = thread.join();
        }
    }
}

/// Makes any batch of a run.
struct Maker {
    dataset: Dataset,
    options: BatchOptions,
    /// `[channels, height, width]`, when features have three axes.
    shape: Option<[usize; 3]>,
    /// Mean and the inverse of the deviation of each channel.
    affine: Vec<(f32, f32)>,
}

impl Maker {
    fn new(dataset: Dataset, options: BatchOptions) -> Result<Self, DataError> {
        let wrong = |option, reason: String| Err(DataError::Option { option, reason });
        if options.size == 0 {
            return wrong("size", "a batch holds at least one example".to_owned());
        }
        if options.last == Last::Drop && dataset.len() < options.size {
            let reason = format!("{} examples make no whole batch of {}; keep the last", dataset.len(), options.size);
            return wrong("last", reason);
        }
        let shape = <[usize; 3]>::try_from(dataset.example_shape()).ok();
        options.augment.check(shape)?;
        let channels = dataset.example_shape().first().copied().unwrap_or(1);
        let mut affine = Vec::new();
        if let Some(Normalize { mean, std }) = &options.normalize {
            let fits = |v: &[f32]| (v.len() == 1 || v.len() == channels) && v.iter().all(|x| x.is_finite());
            if !fits(mean) || !fits(std) || std.iter().any(|s| *s <= 0.0) {
                let reason = format!(
                    "{} means and {} deviations for {channels} channels; give one finite number each, \
                     deviations above 0",
                    mean.len(),
                    std.len()
                );
                return wrong("normalize", reason);
            }
            affine = (0..channels).map(|c| (mean[c % mean.len()], 1.0 / std[c % std.len()])).collect();
        }
        Ok(Self { dataset, options, shape, affine })
    }

    fn per_epoch(&self) -> usize {
        match self.options.last {
            Last::Keep => self.dataset.len().div_ceil(self.options.size),
            Last::Drop => self.dataset.len() / self.options.size,
        }
    }

    fn run(&self, from: Position, epochs: u64, to: &SyncSender<Batch>, spare: &Receiver<Vec<f32>>) {
        let mut first = from.batch;
        for epoch in from.epoch..epochs {
            let order = self.order(epoch);
            for batch in std::mem::take(&mut first)..self.per_epoch() {
                let buffer = spare.try_recv().unwrap_or_default();
                let made = self.batch(&order, Position { epoch, batch }, buffer);
                // Nobody listens any more, or the elements make no tensor,
                // which checked data cannot bring about.
                let Ok(made) = made else { return };
                if to.send(made).is_err() {
                    return;
                }
            }
        }
    }

    fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.dataset.len()).collect();
        if self.options.shuffle {
            generator(&[self.options.seed, ORDER, epoch]).shuffle(&mut order);
        }
        order
    }

    fn batch(&self, order: &[usize], position: Position, mut buffer: Vec<f32>) -> Result<Batch, DataError> {
        let start = position.batch * self.options.size;
        let examples = &order[start..order.len().min(start + self.options.size)];
        let per = self.dataset.example_len();
        buffer.clear();
        buffer.resize(examples.len() * per, 0.0);
        let mut still = vec![0f32; if self.options.augment.moves() { per } else { 0 }];
        for (&example, features) in examples.iter().zip(buffer.chunks_exact_mut(per)) {
            self.example(position.epoch, example, features, &mut still);
        }
        let shape = [&[examples.len()], self.dataset.example_shape()].concat();
        Ok(Batch {
            features: Tensor::new(shape, Elements::F32(buffer))?,
            targets: self.dataset.targets(examples)?,
            examples: examples.len(),
            position,
        })
    }

    fn example(&self, epoch: u64, example: usize, features: &mut [f32], still: &mut [f32]) {
        let augment = &self.options.augment;
        // Of the example, not of the batch: other batch sizes see the same.
        let mut rng = generator(&[self.options.seed, VARIATION, epoch, example as u64]);
        match self.shape {
            Some(shape) if augment.moves() => {
                scaled(&self.dataset, example, still);
                augment.geometry(&mut rng, shape, still, features);
            }
            _ => scaled(&self.dataset, example, features),
        }
        augment.add_noise(&mut rng, features);
        let per = features.len() / self.affine.len().max(1);
        for (channel, (mean, inverse)) in features.chunks_exact_mut(per).zip(&self.affine) {
            channel.iter_mut().for_each(|x| *x = (*x - mean) * inverse);
        }
    }
}

/// Features of one example as f32: bytes over 255, others as they are.
fn scaled(dataset: &Dataset, example: usize, features: &mut [f32]) {
    let per = features.len();
    let start = dataset.row(example) * per;
    match dataset.store().features.elements() {
        Elements::U8(v) => {
            features.iter_mut().zip(&v[start..start + per]).for_each(|(x, &byte)| *x = f32::from(byte) / 255.0);
        }
        Elements::F32(v) => features.copy_from_slice(&v[start..start + per]),
        other => features.iter_mut().enumerate().for_each(|(i, x)| *x = number(other, start + i) as f32),
    }
}

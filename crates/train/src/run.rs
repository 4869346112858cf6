//! Epochs over a data set: steps, evaluation, checkpoints.
//!
//! No files, clocks or screens: what happens is told as [`Event`]s, and
//! checkpoints are handed out to be kept. A run that is taken up from a
//! checkpoint ends with the same weights as one that was never interrupted.

use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::data::{BatchOptions, Batches, Dataset, Position};
use crate::error::TrainError;
use crate::trainer::{Scores, Trainer};
use tierline_engine::Stop;

/// How a run goes.
#[derive(Debug, Clone, PartialEq)]
pub struct RunOptions {
    /// How often every example is seen.
    pub epochs: u64,
    /// How batches are made.
    pub batch: BatchOptions,
    /// Epochs between two evaluations; the last epoch is always evaluated.
    pub evaluate_every: u64,
    /// Steps between two checkpoints, besides those behind each epoch; 0 for
    /// none.
    pub checkpoint_every: u64,
}

/// What an epoch gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// From 1.
    pub epoch: u64,
    /// Averaged over the epoch's examples, each before its step.
    pub loss: f64,
    /// Share of the epoch's examples that were right, each before its step.
    pub accuracy: Option<f64>,
    /// On the examples held out, behind the epoch.
    pub test: Option<Scores>,
    /// The last step's.
    pub learning_rate: f64,
    /// Examples seen.
    pub examples: u64,
}

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A step was taken.
    Step {
        /// Epoch and batch, from 0.
        at: Position,
        /// Batches of an epoch.
        batches: usize,
        /// Examples of the batch.
        examples: usize,
        /// Of the batch.
        loss: f64,
    },
    /// The examples held out are about to be evaluated.
    Evaluating,
    /// An epoch ended.
    Epoch(&'a Epoch),
    /// Something to go on from, should what follows fail.
    Checkpoint(Box<Checkpoint>),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingResult {
    /// Every epoch, those before a checkpoint included.
    pub epochs: Vec<Epoch>,
    /// Whether all epochs were run; else it was told to stop.
    pub finished: bool,
    /// What to go on from.
    pub checkpoint: Checkpoint,
}

/// Sums over the part of an epoch that is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sums {
    pub(crate) loss: f64,
    pub(crate) correct: u64,
    pub(crate) examples: u64,
    /// What the others are summed over: targets that aren't left out.
    #[serde(default)]
    pub(crate) counted: u64,
}

impl Sums {
    /// As a checkpoint says it; those from before targets could be left out
    /// say nothing of what counts.
    fn taken_up(self) -> Self {
        if self.counted == 0 { Self { counted: self.examples, ..self } } else { self }
    }
}

/// Trains a model on `train`, looking at `test` behind its epochs, from the
/// start or from a checkpoint, until it is done or `stop` is set.
///
/// # Errors
/// When the data doesn't fit the model, numbers stop being finite, the engine
/// fails, or `tell` does (such as a full disk at a checkpoint).
pub fn run(
    trainer: &mut Trainer,
    train: &Dataset,
    test: Option<&Dataset>,
    options: &RunOptions,
    from: Option<Checkpoint>,
    stop: &Stop,
    tell: &mut dyn FnMut(Event) -> Result<(), TrainError>,
) -> Result<TrainingResult, TrainError> {
    trainer.check(train)?;
    test.map_or(Ok(()), |test| trainer.check(test))?;
    let (mut at, mut epochs, mut sums) = match from {
        Some(checkpoint) => {
            trainer.set_state(&checkpoint.ordered(trainer.spec())?)?;
            (checkpoint.position, checkpoint.epochs, checkpoint.sums.taken_up())
        }
        None => (Position::default(), Vec::new(), Sums::default()),
    };
    let finished = |trainer: &Trainer, at, epochs: &[Epoch], sums, finished| -> Result<TrainingResult, TrainError> {
        let checkpoint = Checkpoint::of(trainer, at, epochs, sums)?;
        Ok(TrainingResult { epochs: epochs.to_vec(), finished, checkpoint })
    };
    if at.epoch >= options.epochs {
        return finished(trainer, at, &epochs, sums, true);
    }
    let mut batches = Batches::start(train, &options.batch, at, options.epochs)?;
    let per_epoch = batches.per_epoch();
    let mut since_checkpoint = 0;
    while let Some(batch) = batches.next() {
        if stop.is_pulled() {
            return finished(trainer, at, &epochs, sums, false);
        }
        trainer.heed(stop.clone(), None);
        let report = match trainer.step(&batch, at) {
            // The state is what it was before.
            Err(_) if stop.is_pulled() => return finished(trainer, at, &epochs, sums, false),
            report => report?,
        };
        sums.counted += report.counted;
        sums.loss += report.loss * report.counted as f64;
        sums.correct += report.correct.unwrap_or(0);
        sums.examples += batch.examples as u64;
        tell(Event::Step { at, batches: per_epoch, examples: batch.examples, loss: report.loss })?;
        batches.recycle(batch);
        at.batch += 1;
        since_checkpoint += 1;
        if at.batch == per_epoch {
            at = Position { epoch: at.epoch + 1, batch: 0 };
            let due = at.epoch == options.epochs || at.epoch.is_multiple_of(options.evaluate_every.max(1));
            let scores = match test.filter(|_| due) {
                Some(test) => {
                    tell(Event::Evaluating)?;
                    // An epoch is told with its scores, or again.
                    trainer.heed(Stop::never(), None);
                    Some(trainer.evaluate(test, &options.batch)?)
                }
                None => None,
            };
            let count = sums.counted.max(1) as f64;
            let epoch = Epoch {
                epoch: at.epoch,
                loss: sums.loss / count,
                accuracy: report.correct.map(|_| sums.correct as f64 / count),
                test: scores,
                learning_rate: report.learning_rate,
                examples: sums.examples,
            };
            tell(Event::Epoch(&epoch))?;
            epochs.push(epoch);
            sums = Sums::default();
        }
        let due = at.batch == 0 || options.checkpoint_every > 0 && since_checkpoint >= options.checkpoint_every;
        if due {
            since_checkpoint = 0;
            tell(Event::Checkpoint(Box::new(Checkpoint::of(trainer, at, &epochs, sums)?)))?;
        }
    }
    finished(trainer, at, &epochs, sums, true)
}

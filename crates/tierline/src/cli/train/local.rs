//! `tierline train --local`: all on this device.

use std::time::Instant;

use serde::Serialize;
use tierline_daemon::models;
use tierline_engine::LoadOptions;
use tierline_graph::step::Role;
use tierline_train::chart::Point;
use tierline_train::data::{Batches, Dataset, Normalize, Position};
use tierline_train::job::Normalization;
use tierline_train::{Checkpoint, Epoch, Event, Job, TrainError, Trainer, run};

use super::{Folder, Train, data, folder_beside, model, stopped_by_user};
use crate::cli::Global;
use crate::cli::engines;
use crate::cli::trainable::tell_untrained;
use crate::output::{self, CommandError, CommandResult, ExitCode, ExitWith};

/// One line of `--json`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line<'a> {
    Start {
        job: String,
        engine: &'a str,
        weights: u64,
        examples: usize,
        test_examples: usize,
        epochs: u64,
        steps_per_epoch: usize,
        epoch: u64,
    },
    Epoch {
        #[serde(flatten)]
        epoch: &'a Epoch,
        seconds: f64,
        examples_per_second: f64,
    },
    Done {
        accuracy: Option<f64>,
        loss: Option<f64>,
        seconds: f64,
        model: String,
        file: String,
    },
    Stopped {
        epoch: u64,
        batch: usize,
        checkpoint: String,
    },
}

pub fn local(global: &Global, args: &Train, job: Job) -> CommandResult {
    let path = folder_beside(&args.job, args.out.as_deref());
    let (folder, from) = if args.resume {
        let folder = Folder::take(path.clone())?;
        let from = resumed(&folder, &job)?;
        (Some(folder), Some(from))
    } else {
        (None, None)
    };
    let engine = engines::engine(global)?;
    let (seen, held_out) = data(global, &job)?;
    let normalize = match &job.batch.normalize {
        None => None,
        Some(Normalization::Stated(numbers)) => Some(numbers.clone()),
        Some(Normalization::Measured(_)) => Some(Normalize::of(&seen)),
    };
    let options = job.options(normalize).exit_with(ExitCode::Configuration)?;
    let per_epoch =
        Batches::start(&seen, &options.batch, Position::default(), 1).exit_with(ExitCode::Configuration)?.per_epoch();
    let recipe = job.recipe(per_epoch);
    let load = LoadOptions::with_threads(args.threads);
    let mut trainer = Trainer::new(&engine, model(global, &args.job, &job, &engine)?, &recipe, &load)?;
    let folder = folder.map_or_else(|| Folder::take_new(path, args.replace), Ok)?;

    let stop = stopped_by_user()?;

    let said = Said { global, job: &job, started: Instant::now() };
    let weights = trainer.spec().state.iter().filter(|s| s.role == Role::Parameter).count() as u64;
    let first = from.as_ref().map_or(0, |c| c.position.epoch);
    said.line(&Line::Start {
        job: args.job.display().to_string(),
        engine: engine.name(),
        weights,
        examples: seen.len(),
        test_examples: held_out.as_ref().map_or(0, Dataset::len),
        epochs: job.epochs,
        steps_per_epoch: per_epoch,
        epoch: first,
    })?;
    tell_untrained(global, &trainer.spec().untrained);
    let bar = global.output().progress(job.epochs.saturating_mul(per_epoch as u64), "training");
    let mut epoch_started = Instant::now();
    let identity = job.identity();
    let outcome = run(&mut trainer, &seen, held_out.as_ref(), &options, from, &stop, &mut |event| {
        match event {
            Event::Step { at, batches, examples, loss } => {
                bar.set_position(at.epoch * batches as u64 + at.batch as u64 + 1);
                let speed = (at.batch + 1) as f64 * examples as f64 / epoch_started.elapsed().as_secs_f64().max(1e-9);
                bar.set_message(format!(
                    "epoch {}/{}  loss {loss:.4}  {speed:.0} examples/s",
                    at.epoch + 1,
                    job.epochs
                ));
            }
            Event::Evaluating => bar.set_message("looking at the examples held out"),
            Event::Epoch(epoch) => {
                let seconds = epoch_started.elapsed().as_secs_f64();
                epoch_started = Instant::now();
                bar.suspend(|| said.epoch(epoch, seconds)).map_err(closed)?;
            }
            Event::Checkpoint(checkpoint) => {
                let checkpoint = checkpoint.with_job(&identity);
                checkpoint.save(&folder.checkpoint())?;
                if checkpoint.position.batch == 0 {
                    folder.curves(&points(&checkpoint.epochs), "epoch")?;
                }
            }
        }
        Ok(())
    });
    bar.finish_and_clear();
    let outcome = outcome.map_err(|e| failed(e, &folder))?;
    let at = outcome.checkpoint.position;
    outcome.checkpoint.with_job(&identity).save(&folder.checkpoint())?;
    let model = trainer.export()?;
    model.save(&folder.model())?;
    if !outcome.finished {
        let checkpoint = folder.checkpoint().display().to_string();
        said.line(&Line::Stopped { epoch: at.epoch, batch: at.batch, checkpoint })?;
        let hint = format!("tierline train {} --local --resume", args.job.display());
        let text =
            format!("stopped in epoch {}, behind batch {} of {per_epoch}; nothing is lost", at.epoch + 1, at.batch);
        return Err(CommandError::message(ExitCode::Interrupted, text).hint(hint));
    }
    folder.curves(&points(&outcome.epochs), "epoch")?;
    said.done(&outcome.epochs, &folder)
}

fn points(epochs: &[Epoch]) -> Vec<Point> {
    epochs.iter().map(Point::from).collect()
}

fn closed(failure: CommandError) -> TrainError {
    TrainError::Write { path: "stdout".into(), source: std::io::Error::other(format!("{:#}", failure.error)) }
}

fn failed(error: TrainError, folder: &Folder) -> CommandError {
    let kept = folder.checkpoint();
    let failure = CommandError::new(ExitCode::Failure, error);
    if kept.exists() { failure.hint(format!("the last good checkpoint is {}", kept.display())) } else { failure }
}

fn resumed(folder: &Folder, job: &Job) -> CommandResult<Checkpoint> {
    let checkpoint = Checkpoint::load(&folder.checkpoint())?;
    if checkpoint.job != job.identity() {
        let text = format!("{:?} belongs to another job, or to this one before it was changed", folder.checkpoint());
        return Err(CommandError::message(ExitCode::Configuration, text)
            .hint("start anew without --resume, or undo the change"));
    }
    Ok(checkpoint)
}

/// What the user is told.
struct Said<'a> {
    global: &'a Global,
    job: &'a Job,
    started: Instant,
}

impl Said<'_> {
    fn line(&self, line: &Line) -> CommandResult {
        if self.global.json {
            return self.global.output().event(line);
        }
        if let Line::Start { engine, weights, examples, test_examples, epochs, steps_per_epoch, epoch, .. } = line {
            let from = if *epoch > 0 { format!(", from epoch {}", epoch + 1) } else { String::new() };
            self.global.output().say(format!(
                "training {weights} weights on {examples} examples ({test_examples} held out), {epochs} epochs of \
                 {steps_per_epoch} steps{from}, on {engine}"
            ));
        }
        Ok(())
    }

    fn epoch(&self, epoch: &Epoch, seconds: f64) -> CommandResult {
        let examples_per_second = epoch.examples as f64 / seconds.max(1e-9);
        if self.global.json {
            return self.global.output().event(&Line::Epoch { epoch, seconds, examples_per_second });
        }
        let share =
            |accuracy: Option<f64>| accuracy.map_or(String::new(), |a| format!("  accuracy {:6.2}%", 100.0 * a));
        let test =
            epoch.test.map_or(String::new(), |t| format!("   held out: loss {:.4}{}", t.loss, share(t.accuracy)));
        output::line(&format!(
            "epoch {:>3}/{}  loss {:.4}{}{test}   {:.0} examples/s  {}",
            epoch.epoch,
            self.job.epochs,
            epoch.loss,
            share(epoch.accuracy),
            examples_per_second,
            output::duration((seconds * 1e9) as u64)
        ))
    }

    fn done(&self, epochs: &[Epoch], folder: &Folder) -> CommandResult {
        let seconds = self.started.elapsed().as_secs_f64();
        let last = epochs.last();
        let test = last.and_then(|e| e.test);
        let bytes = std::fs::read(folder.model())?;
        let model = models::digest(&bytes);
        let file = folder.model().display().to_string();
        let accuracy = test.map_or(last.and_then(|e| e.accuracy), |t| t.accuracy);
        let loss = test.map_or(last.map(|e| e.loss), |t| Some(t.loss));
        if self.global.json {
            return self.global.output().event(&Line::Done { accuracy, loss, seconds, model, file });
        }
        let curves = folder.path().join("curves.svg");
        output::line(&format!("\nmodel   {file}\ndigest  {model}\ncurves  {}", curves.display()))
    }
}

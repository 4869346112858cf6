//! `tierline train`: a job's model, trained on this device, in simulation, or
//! on the nodes of the site.

mod continual;
mod local;
mod rounds;
mod sim;
mod site;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tierline_engine::{Engine, Stop};
use tierline_graph::Model;
use tierline_train::chart::{self, Point};
use tierline_train::data::Dataset;
use tierline_train::federated::Models;
use tierline_train::job::Weights;
use tierline_train::{Job, TrainError, init};

pub use self::sim::Sim;
pub use self::site::{Followed, fetch_model, follow};
use super::{Global, usage};
use crate::cli::engines;
use crate::output::{CommandError, CommandResult, ExitCode, ExitWith};
use tierline_daemon::datasets::{Datasets, DatasetsError};
use tierline_daemon::{jobs, models};

#[derive(Debug, clap::Args)]
pub struct Train {
    /// The job's file
    job: PathBuf,
    /// Train on this device
    #[arg(long, conflicts_with = "sim")]
    local: bool,
    /// Simulate the job's federation with N ends in this process (more: `tierline sim`)
    #[arg(long, value_name = "N")]
    sim: Option<usize>,
    /// Edges of the simulation; none unless the job gives edges work, then as many as it asks
    #[arg(long, value_name = "N", requires = "sim")]
    edges: Option<usize>,
    /// Folder for the trained model, the checkpoint and the curves; beside the job unless said
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on from the folder's checkpoint
    #[arg(long, requires = "local")]
    resume: bool,
    /// Put the files over those of the folder's last run
    #[arg(long, conflicts_with = "resume")]
    replace: bool,
    /// Run more or fewer epochs than the job says
    #[arg(long, value_name = "N")]
    epochs: Option<u64>,
    /// The cloud's node; the one on this device unless said
    #[arg(long, value_name = "URL", conflicts_with_all = ["local", "sim"])]
    endpoint: Option<String>,
    /// Threads; every core unless said
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

pub fn train(global: &Global, args: &Train) -> CommandResult {
    let mut job = read(&args.job)?;
    if let Some(epochs) = args.epochs {
        job.epochs = epochs;
    }
    if args.local && job.continual.is_some() {
        return continual::continual(global, args, job);
    }
    if args.local {
        return local::local(global, args, job);
    }
    match args.sim {
        Some(ends) => sim::sim(global, &Sim::of(args, ends), job),
        None if job.federation.is_none() => {
            let text = "the job has no table [federation]; say where to train: --local trains on this device";
            Err(usage(text).hint(format!("tierline train {} --local", args.job.display())))
        }
        None => site::site(global, args, &job),
    }
}

/// `tierline sim`.
pub fn simulate(global: &Global, args: &Sim) -> CommandResult {
    let job = read(args.job())?;
    sim::sim(global, args, job)
}

/// Files of a run, which no other run has meanwhile.
pub struct Folder {
    path: PathBuf,
    /// Released with the process, however that ends.
    _lock: File,
}

/// Where a run's files go: beside its job unless said.
fn folder_beside(job: &Path, out: Option<&Path>) -> PathBuf {
    out.map_or_else(|| job.with_extension("run"), Path::to_owned)
}

impl Folder {
    /// Makes the folder if it isn't there, and takes it for this process.
    ///
    /// # Errors
    /// When another process has it, or the disk refuses.
    pub fn take(path: PathBuf) -> CommandResult<Self> {
        let cannot = |what: &str, e: &std::io::Error| {
            CommandError::message(ExitCode::Failure, format!("cannot {what} {}: {e}", path.display()))
        };
        std::fs::create_dir_all(&path).map_err(|e| cannot("create", &e))?;
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let mut lock = options.open(path.join(LOCK)).map_err(|e| cannot("write to", &e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Not every system lets it be read while it is held.
                let _ = lock.take(HOLDER_BYTES_MAX).read_to_string(&mut holder);
                let holder = if holder.is_empty() { "another process" } else { holder.trim_end() };
                let text = format!("{} is in use by {holder}", path.display());
                let hint = "wait until it ends, or end it; or give this run a folder of its own with --out DIR";
                return Err(CommandError::message(ExitCode::Failure, text).hint(hint));
            }
            // Some file systems have no locks.
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(e)) => return Err(cannot("lock", &e)),
        }
        let command: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
        let holder = format!("process {} ({})\n", std::process::id(), command.join(" "));
        // For people only.
        let _ = lock.set_len(0).and_then(|()| lock.write_all(holder.as_bytes()));
        Ok(Self { path, _lock: lock })
    }

    /// As [`Folder::take`], and refuses one with the files of a run, unless
    /// they may be replaced.
    ///
    /// # Errors
    /// Those of [`Folder::take`], and when a run's files would be lost.
    pub fn take_new(path: PathBuf, replace: bool) -> CommandResult<Self> {
        let folder = Self::take(path)?;
        let model = Some(folder.model()).filter(|model| model.exists());
        let checkpoint = Some(folder.checkpoint()).filter(|checkpoint| checkpoint.exists());
        match (model.or(checkpoint.clone()), replace) {
            (Some(file), false) => {
                let text = format!("{} is of an earlier run", file.display());
                let resume = if checkpoint.is_some() { "--resume goes on from it, " } else { "" };
                let hint = format!("{resume}--replace puts this run's files in its place, --out DIR elsewhere");
                Err(CommandError::message(ExitCode::Configuration, text).hint(hint))
            }
            _ => Ok(folder),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn model(&self) -> PathBuf {
        self.path.join("model.onnx")
    }

    /// Saves models that ends have of their own.
    fn save_ends(&self, own: &BTreeMap<String, Model>) -> CommandResult {
        let folder = self.path.join("ends");
        std::fs::create_dir_all(&folder)?;
        for (end, model) in own {
            model.save(&folder.join(end).with_extension("onnx"))?;
        }
        Ok(())
    }

    fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint.safetensors")
    }

    /// Draws the curves over epochs or rounds.
    fn curves(&self, points: &[Point], unit: &str) -> Result<(), TrainError> {
        let [svg, png] = ["curves.svg", "curves.png"].map(|name| self.path.join(name));
        let unwritten = |path: PathBuf, source| {
            // Half a picture helps nobody; the next one is drawn anew.
            let _ = std::fs::remove_file(&path);
            TrainError::Write { path, source }
        };
        std::fs::write(&svg, chart::svg(points, unit)).map_err(|source| unwritten(svg, source))?;
        chart::picture(points, unit).save(&png).map_err(|e| unwritten(png, std::io::Error::other(e)))
    }
}

/// Whose the folder is, for people; the lock on it is what counts.
const LOCK: &str = ".lock";

/// Bytes of that which are repeated.
const HOLDER_BYTES_MAX: u64 = 400;

/// Set when the user presses ctrl-C; a second time ends the process.
fn stopped_by_user() -> CommandResult<Stop> {
    let stop = Stop::asked();
    let asked = stop.clone();
    let signals = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        signals.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                // Asked twice, it can't wait for what is under way.
                if asked.is_pulled() {
                    std::process::exit(ExitCode::Interrupted as i32);
                }
                asked.pull();
            }
        });
    });
    Ok(stop)
}

/// The job's model, ready for training.
fn model(global: &Global, path: &Path, job: &Job, engine: &Arc<dyn Engine>) -> CommandResult<Model> {
    ready(global, path, &job.model, job, engine)
}

/// All models of a job.
fn job_models(global: &Global, path: &Path, job: &Job, engine: &Arc<dyn Engine>) -> CommandResult<Models> {
    let others = job.models.iter().map(|variant| ready(global, path, &variant.model, job, engine));
    Ok(Models { own: model(global, path, job, engine)?, others: others.collect::<CommandResult<_>>()? })
}

fn ready(global: &Global, job_file: &Path, model: &Path, job: &Job, engine: &Arc<dyn Engine>) -> CommandResult<Model> {
    let file = job_file.parent().unwrap_or(Path::new("")).join(model);
    let model = models::for_training(engines::load(global, &file)?, engine)?;
    Ok(if job.weights == Weights::Fresh { init::fresh(&model, job.seed)? } else { model })
}

fn read(path: &Path) -> CommandResult<Job> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| anyhow::anyhow!("cannot read {path:?}: {e}"))
        .exit_with(ExitCode::Configuration)?;
    jobs::read(&text)
        .map_err(|reason| anyhow::anyhow!("{}: {reason}", path.display()))
        .exit_with(ExitCode::Configuration)
}

fn open(global: &Global, name: &str) -> CommandResult<Dataset> {
    Datasets::of(&global.data_folder()).open(name).map_err(refused)
}

/// What is learned from, where each end holds out its own.
fn learned_from(global: &Global, job: &Job) -> CommandResult<Dataset> {
    let whole = open(global, &job.data.train)?;
    Ok(if whole.splits().contains(&"train") { whole.named_split("train")? } else { whole })
}

/// What is learned from, and what is held out, their classes numbered alike.
fn data(global: &Global, job: &Job) -> CommandResult<(Dataset, Option<Dataset>)> {
    let (seen, held_out) = divided(global, job)?;
    let mut data = job.data.clone();
    data.name_classes(held_out.iter().chain([&seen]));
    let numbered = |dataset: &Dataset| data.numbered(dataset).exit_with(ExitCode::Configuration);
    Ok((numbered(&seen)?, held_out.as_ref().map(numbered).transpose()?))
}

/// What is learned from, and what is held out, as they come.
fn divided(global: &Global, job: &Job) -> CommandResult<(Dataset, Option<Dataset>)> {
    let whole = open(global, &job.data.train)?;
    let split = |dataset: &Dataset, name: &str| -> CommandResult<Option<Dataset>> {
        Ok(if dataset.splits().contains(&name) { Some(dataset.named_split(name)?) } else { None })
    };
    let seen = split(&whole, "train")?.unwrap_or_else(|| whole.clone());
    let held_out = match (&job.data.test, job.data.hold_out) {
        (Some(_), Some(_)) => {
            return Err(CommandError::message(
                ExitCode::Configuration,
                "data.test and data.hold_out exclude each other",
            ));
        }
        (Some(name), None) => {
            let other = open(global, name)?;
            Some(split(&other, "test")?.unwrap_or(other))
        }
        (None, Some(share)) => {
            let (held_out, seen) = seen.split(share, job.seed).exit_with(ExitCode::Configuration)?;
            return Ok((seen, Some(held_out)));
        }
        (None, None) => split(&whole, "test")?,
    };
    Ok((seen, held_out))
}

pub fn refused(error: DatasetsError) -> CommandError {
    let help = error.help();
    let failure = CommandError::new(ExitCode::Failure, error);
    match help {
        Some(help) => failure.hint(help),
        None => failure,
    }
}

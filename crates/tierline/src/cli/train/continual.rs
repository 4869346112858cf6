//! `tierline train --local` of a job with a table `[continual]`: task after task.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use tierline_daemon::models;
use tierline_engine::LoadOptions;
use tierline_train::Job;
use tierline_train::continual::{Continual, Kept, Learner, Report, Task, Tested, forgetting, mean_accuracy};
use tierline_train::data::{Dataset, Normalize};
use tierline_train::job::{Data, Normalization};

use super::{Folder, Train, divided, folder_beside, model, stopped_by_user};
use crate::cli::Global;
use crate::cli::engines;
use crate::output::{self, CommandError, CommandResult, ExitCode, ExitWith};

/// One line of `--json`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line<'a> {
    Start {
        job: String,
        engine: &'a str,
        tasks: usize,
        learned_before: u64,
    },
    Task {
        task: usize,
        name: String,
        #[serde(flatten)]
        report: &'a Report,
        /// On the examples held out of each task so far.
        tests: &'a Tested,
        accuracy: Option<f64>,
        forgetting: Option<f64>,
        seconds: f64,
    },
    Done {
        accuracy: Option<f64>,
        forgetting: Option<f64>,
        seconds: f64,
        bytes: u64,
        model: String,
        file: String,
        kept: String,
    },
}

/// A task's examples.
struct Part {
    name: String,
    learned: bool,
    seen: Dataset,
    held_out: Option<Dataset>,
}

pub fn continual(global: &Global, args: &Train, job: Job) -> CommandResult {
    if args.resume {
        let text = "a job with a table [continual] isn't resumed within a task";
        let hint = "name what it kept as continual.from, and list the tasks that are done with learned = true";
        return Err(CommandError::message(ExitCode::Configuration, text).hint(hint));
    }
    let settings = job.continual.clone().unwrap_or_default();
    let beside = args.job.parent().unwrap_or(Path::new(""));
    let kept = match &settings.from {
        Some(from) => Kept::load(&beside.join(from)).exit_with(ExitCode::Configuration)?,
        None => Kept::default(),
    };
    let before = settings.tasks.iter().filter(|task| task.learned).count();
    let learned_before = kept.tasks;
    if before as u64 > learned_before {
        let text = format!("{before} tasks are said to be learned before, and {learned_before} were");
        return Err(CommandError::message(ExitCode::Configuration, text)
            .hint("name what an earlier job kept as continual.from"));
    }
    let engine = engines::engine(global)?;
    let parts = parts(global, &job, &settings)?;
    let normalize = match &job.batch.normalize {
        None => None,
        Some(Normalization::Stated(numbers)) => Some(numbers.clone()),
        // Later tasks come when this one is long learned.
        Some(Normalization::Measured(_)) if learned_before == 0 => Some(Normalize::of(&parts[0].seen)),
        Some(Normalization::Measured(_)) => {
            let text = "batch.normalize is `measured`, and the first task measured it";
            return Err(CommandError::message(ExitCode::Configuration, text)
                .hint("state `{ mean = [..], std = [..] }` as the first job said it"));
        }
    };
    let load = LoadOptions::with_threads(args.threads);
    let ready = model(global, &args.job, &job, &engine)?;
    let mut learner =
        Learner::new(&engine, ready, &job, normalize.clone(), kept, &load).exit_with(ExitCode::Configuration)?;
    if let Some(teacher) = &settings.teacher {
        let teacher = models::for_training(engines::load(global, &beside.join(&teacher.model))?, &engine)?;
        learner = learner.with_teacher(teacher).exit_with(ExitCode::Configuration)?;
    }
    let folder = Folder::take_new(folder_beside(&args.job, args.out.as_deref()), args.replace)?;
    let stop = stopped_by_user()?;
    let started = Instant::now();
    let said = Said { global, tasks: parts.len() - before };
    said.line(&Line::Start {
        job: args.job.display().to_string(),
        engine: engine.name(),
        tasks: said.tasks,
        learned_before,
    })?;
    if let (Some(Normalization::Measured(_)), Some(Normalize { mean, std })) = (&job.batch.normalize, &normalize) {
        global.output().say(format!("measured on the first task: normalize = {{ mean = {mean:?}, std = {std:?} }}"));
    }
    let kept_file = folder.path().join(KEPT);
    // Where the first of the tasks listed stands among all that were ever learned.
    let offset = learned_before as usize - before;
    let mut tests: Vec<Tested> = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let begun = Instant::now();
        let mut report = None;
        if !part.learned {
            let bar = global.output().progress(0, "learning");
            let outcome = learner.learn(&part.seen, &stop, &mut |progress| {
                bar.set_length(progress.steps);
                bar.set_position(progress.step + 1);
                bar.set_message(format!("task {}  loss {:.4}", part.name, progress.loss));
            });
            bar.finish_and_clear();
            let Some(done) = outcome? else {
                let text =
                    format!("stopped in task {}; what was learned before it is in {}", part.name, kept_file.display());
                let hint = "name that file as continual.from and the model beside it as model, and list the tasks that \
                            are done with learned = true";
                return Err(CommandError::message(ExitCode::Interrupted, text).hint(hint));
            };
            learner.model().save(&folder.model())?;
            learner.kept().save(&kept_file)?;
            report = Some(done);
        }
        let sets = parts[..=at].iter().enumerate().filter_map(|(i, p)| Some((offset + i, p.held_out.as_ref()?)));
        tests.push(learner.test(sets)?);
        if let (Some(report), Some(scores)) = (&report, tests.last()) {
            said.line(&Line::Task {
                task: at + 1 - before,
                name: part.name.clone(),
                report,
                tests: scores,
                accuracy: mean_accuracy(scores),
                forgetting: forgetting(&tests),
                seconds: begun.elapsed().as_secs_f64(),
            })?;
        }
    }
    if learner.kept().owners.is_some() {
        let own = folder.path().join("tasks");
        std::fs::create_dir_all(&own)?;
        for task in 0..learner.kept().tasks as usize {
            learner.model_of(task)?.save(&own.join(format!("{}.onnx", task + 1)))?;
        }
    }
    let bytes = std::fs::read(folder.model())?;
    said.line(&Line::Done {
        accuracy: tests.last().and_then(|scores| mean_accuracy(scores)),
        forgetting: forgetting(&tests),
        seconds: started.elapsed().as_secs_f64(),
        bytes: learner.kept().bytes(),
        model: models::digest(&bytes),
        file: folder.model().display().to_string(),
        kept: kept_file.display().to_string(),
    })
}

/// What is kept for later jobs, in the run's folder.
const KEPT: &str = "kept.safetensors";

/// The examples of each task, all classes numbered alike.
fn parts(global: &Global, job: &Job, settings: &Continual) -> CommandResult<Vec<Part>> {
    let tasks = if settings.tasks.is_empty() { vec![Task::default()] } else { settings.tasks.clone() };
    let mut sets: BTreeMap<String, (Dataset, Option<Dataset>)> = BTreeMap::new();
    for task in &tasks {
        let name = task.data.as_ref().unwrap_or(&job.data.train);
        if !sets.contains_key(name) {
            // What is held out is another's only where all tasks share it.
            let test = job.data.test.clone().filter(|_| *name == job.data.train);
            let data = Data { train: name.clone(), test, ..job.data.clone() };
            sets.insert(name.clone(), divided(global, &Job { data, ..job.clone() })?);
        }
    }
    let mut data = job.data.clone();
    data.name_classes(sets.values().flat_map(|(seen, held_out)| held_out.iter().chain([seen])));
    let mut parts = Vec::new();
    for (at, task) in tasks.iter().enumerate() {
        let (seen, held_out) = &sets[task.data.as_ref().unwrap_or(&job.data.train)];
        let own = |dataset: &Dataset| -> CommandResult<Dataset> {
            let numbered = data.numbered(dataset).exit_with(ExitCode::Configuration)?;
            task.of(&numbered).exit_with(ExitCode::Configuration)
        };
        let held_out = held_out.as_ref().map(own).transpose()?;
        parts.push(Part { name: task.called(at), learned: task.learned, seen: own(seen)?, held_out });
    }
    Ok(parts)
}

/// What the user is told.
struct Said<'a> {
    global: &'a Global,
    tasks: usize,
}

impl Said<'_> {
    fn line(&self, line: &Line) -> CommandResult {
        if self.global.json {
            return self.global.output().event(line);
        }
        let share = |share: f64| format!("{:.2}%", 100.0 * share);
        match line {
            Line::Start { engine, tasks, learned_before, .. } => {
                let before = match learned_before {
                    0 => String::new(),
                    n => format!(", behind {n} learned before"),
                };
                let tasks =
                    if *tasks == 1 { "1 task".to_owned() } else { format!("{tasks} tasks, one after the other") };
                self.global.output().say(format!("learning {tasks}{before}, on {engine}"));
                Ok(())
            }
            Line::Task { task, name, report, tests, accuracy, forgetting, seconds } => {
                let Report { examples, loss, remembered, bytes, .. } = report;
                let kept = match (remembered, bytes) {
                    (_, 0) => "nothing".to_owned(),
                    (0, bytes) => output::bytes(*bytes),
                    (n, bytes) => format!("{n} examples, {}", output::bytes(*bytes)),
                };
                output::line(&format!(
                    "task {name} ({task} of {})  {examples} examples  loss {loss:.4}  kept {kept}  {}",
                    self.tasks,
                    output::duration((seconds * 1e9) as u64)
                ))?;
                let each: Vec<String> = tests
                    .iter()
                    .map(|scores| scores.accuracy.map_or_else(|| format!("loss {:.4}", scores.loss), share))
                    .collect();
                if each.is_empty() {
                    return Ok(());
                }
                let mean = accuracy.map_or(String::new(), |mean| format!("   mean {}", share(mean)));
                let lost = forgetting.map_or(String::new(), |lost| format!(", forgotten {:.2} points", 100.0 * lost));
                output::line(&format!("  held out: {}{mean}{lost}", each.join("  ")))
            }
            Line::Done { file, kept, model, .. } => {
                output::line(&format!("\nmodel   {file}\ndigest  {model}\nkept    {kept}"))
            }
        }
    }
}

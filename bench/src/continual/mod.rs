//! Learning without forgetting on Fashion-MNIST, beside plain fine-tuning and
//! training on everything at once: five tasks of two new classes each, and five
//! looks of all classes.
//!
//! Settings were chosen on a seed of their own ([`CHOSEN_ON`]), and are reported
//! on others. Start at [`run`]; `streams` has the tasks.

mod streams;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};
use tierline_engine::{Engine, Evaluator, LoadOptions, Search, Stop};
use tierline_graph::Model;
use tierline_graph::fold::{Purpose, fold_for};
use tierline_train::Job;
use tierline_train::continual::{Kept, Learner, Tested, forgetting, mean_accuracy};
use tierline_train::data::{Dataset, Source};
use tierline_zoo::{Batch, Bn, Options};

use self::streams::Part;
use crate::training::fashion;

/// Weights, orders of examples and what is kept.
const SEEDS: [u64; 3] = [1, 2, 3];

/// The seed on which settings were chosen.
const CHOSEN_ON: u64 = 0;

/// Epochs of each task, and of everything at once.
const EPOCHS: u64 = 2;

/// Examples kept of each class, at most.
const PER_CLASS: usize = 200;

/// Goals: points below everything at once, and of what fine-tuning forgets.
const GOAL_POINTS: f64 = 10.0;
const GOAL_SHARE: f64 = 1.0 / 3.0;

/// A way to learn: its name, whether it keeps examples, and the table
/// `[continual]`; none for everything at once.
struct Way {
    name: String,
    examples: bool,
    settings: Option<Value>,
}

fn way(name: &str, examples: bool, settings: Value) -> Way {
    Way { name: name.to_owned(), examples, settings: Some(settings) }
}

/// The bounds, which stand first.
fn bounds() -> Vec<Way> {
    vec![Way { name: JOINT.to_owned(), examples: true, settings: None }, way(NAIVE, false, json!({}))]
}

const JOINT: &str = "everything at once";
const NAIVE: &str = "fine-tuning";

/// Ways for new classes.
fn for_classes() -> Vec<Way> {
    let replay = |pick: &str| json!({ "pick": pick, "per_class": PER_CLASS });
    [
        bounds(),
        vec![
            way("replay, reservoir", true, json!({ "replay": replay("reservoir") })),
            way("replay, balanced", true, json!({ "replay": replay("balanced") })),
            way("replay, herding", true, json!({ "replay": replay("herding") })),
            way(
                "replay with logits",
                true,
                json!({ "replay":
                { "pick": "balanced", "per_class": PER_CLASS, "logits": true, "weight": 0.5 } }),
            ),
            way("replay and LwF", true, json!({ "replay": replay("balanced"), "lwf": { "weight": 1.0 } })),
            way(
                "GDumb (control)",
                true,
                json!({ "replay":
                { "pick": "gdumb", "per_class": PER_CLASS, "epochs": 30 } }),
            ),
            way("EWC", false, json!({ "ewc": { "lambda": 1e4 } })),
            way("EWC, online", false, json!({ "ewc": { "lambda": 1e4, "variant": "online" } })),
            way("SI", false, json!({ "si": { "strength": 1.0 } })),
            way("LwF", false, json!({ "lwf": { "weight": 1.0 } })),
            way("isolation, told which task", false, json!({ "isolation": { "prune": 0.7 } })),
        ],
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Ways for new looks.
fn for_looks() -> Vec<Way> {
    [
        bounds(),
        vec![
            way("replay, reservoir", true, json!({ "replay": { "per_class": PER_CLASS } })),
            way("EWC", false, json!({ "ewc": { "lambda": 1e3, "labels": "given" } })),
            way("EWC, online", false, json!({ "ewc": { "lambda": 1e3, "labels": "given", "variant": "online" } })),
            way("SI", false, json!({ "si": { "strength": 3.0 } })),
            way("LwF", false, json!({ "lwf": { "weight": 0.3 } })),
            way("last layer only", false, json!({ "learn": "head" })),
            way("isolation, told which look", false, json!({ "isolation": { "prune": 0.7 } })),
        ],
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// New classes, then new looks.
    pub tables: Vec<Table>,
}

/// One stream of tasks.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    /// What it is of.
    pub name: &'static str,
    /// Its ways.
    pub rows: Vec<Row>,
}

/// One way.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What it is called.
    pub name: String,
    /// Whether it keeps examples.
    pub examples: bool,
    /// One per seed.
    pub runs: Vec<Run>,
}

/// One seed of a way.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Mean over tasks, at the end.
    pub accuracy: f64,
    /// Mean over tasks but the last of the best less the last.
    pub forgetting: Option<f64>,
    /// Accuracy on each task behind it, on average.
    pub learned: f64,
    /// Kept at the end, the model left out.
    pub bytes: u64,
    /// Of processors' time for learning, without tests.
    pub seconds: f64,
}

impl Row {
    fn mean(&self, of: impl Fn(&Run) -> f64) -> f64 {
        self.runs.iter().map(of).sum::<f64>() / self.runs.len().max(1) as f64
    }

    fn forgotten(&self) -> Option<f64> {
        let all: Option<Vec<f64>> = self.runs.iter().map(|run| run.forgetting).collect();
        all.map(|all| all.iter().sum::<f64>() / all.len().max(1) as f64)
    }
}

/// Runs the benchmark.
///
/// # Errors
/// When the pictures can't be had, or a training fails.
pub fn run() -> Result<Report> {
    let all = Source::detect(&fashion::data()?)?.load()?;
    let (train, test) = (all.named_split("train")?, all.named_split("test")?);
    let bench =
        Bench { engine: tierline_engine::discover(&Search::default()).engine, load: LoadOptions::with_threads(1) };
    let [seeds, streams, ways] = ["SEEDS", "STREAMS", "WAYS"].map(|name| {
        let words = std::env::var(format!("TIERLINE_CONTINUAL_{name}")).unwrap_or_default();
        words.split(';').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect::<Vec<_>>()
    });
    let seeds = match seeds.is_empty() {
        true => SEEDS.to_vec(),
        false => seeds.iter().map(|seed| seed.parse()).collect::<Result<_, _>>()?,
    };
    let wanted = |list: &[String], name: &str| list.is_empty() || list.iter().any(|word| name.contains(word.as_str()));
    let mut tables = Vec::new();
    for (name, mut all) in [("new classes", for_classes()), ("new looks", for_looks())] {
        // Settings to choose among: names and tables, as JSON.
        if let Ok(others) = std::env::var("TIERLINE_CONTINUAL_TRY") {
            let others: std::collections::BTreeMap<String, Value> = serde_json::from_str(&others)?;
            all = others.into_iter().map(|(name, settings)| way(&name, false, settings)).collect();
        }
        if !wanted(&streams, name) {
            continue;
        }
        let mut rows: Vec<Row> = all
            .iter()
            .filter(|way| wanted(&ways, &way.name))
            .map(|way| Row { name: way.name.clone(), examples: way.examples, runs: Vec::new() })
            .collect();
        for &seed in &seeds {
            let parts = if name == "new classes" {
                streams::classes(&train, &test)?
            } else {
                streams::looks(&train, &test, 100 * (seed + 1))?
            };
            for row in &mut rows {
                let way = all.iter().find(|way| way.name == row.name).context("a way")?;
                let run = bench.run(way, &parts, seed)?;
                eprintln!(
                    "  {name}, seed {seed}, {}: {:.2}% right, {:.2} points forgotten, {} bytes, {:.1} s",
                    way.name,
                    1e2 * run.accuracy,
                    1e2 * run.forgetting.unwrap_or(0.0),
                    run.bytes,
                    run.seconds
                );
                row.runs.push(run);
            }
        }
        tables.push(Table { name, rows });
    }
    Ok(Report { tables })
}

struct Bench {
    engine: Arc<dyn Engine>,
    load: LoadOptions,
}

impl Bench {
    fn run(&self, way: &Way, parts: &[Part], seed: u64) -> Result<Run> {
        let mut job = json!({
            "model": "mlp.onnx", "epochs": EPOCHS, "seed": seed,
            "data": { "train": "fashion" },
            "batch": { "size": 64, "normalize": { "mean": [0.2860], "std": [0.3530] } },
            "optimizer": { "kind": "sgd", "momentum": 0.9 },
            "schedule": { "rate": 0.02, "decay": { "kind": "cosine" } },
        });
        job["continual"] = way.settings.clone().unwrap_or(json!({}));
        let job: Job = serde_json::from_value(job)?;
        let normalize = job.stated_normalization()?;
        let mut learner = Learner::new(&self.engine, network(seed)?, &job, normalize, Kept::default(), &self.load)?;
        let together = match way.settings {
            None => Some(streams::together(parts)?),
            Some(_) => None,
        };
        let lessons: Vec<&Dataset> = match &together {
            Some(all) => vec![all],
            None => parts.iter().map(|part| &part.train).collect(),
        };
        let (mut tests, mut seconds) = (Vec::<Tested>::new(), 0.0);
        for (at, lesson) in lessons.iter().enumerate() {
            let begun = worked();
            learner.learn(lesson, &Stop::never(), &mut |_| ())?.context("nobody stopped it")?;
            seconds += (worked() - begun).as_secs_f64();
            let so_far = if together.is_some() { parts } else { &parts[..=at] };
            tests.push(learner.test(so_far.iter().map(|part| &part.test).enumerate())?);
        }
        let last = tests.last().context("there are tasks")?;
        let fresh: Vec<f64> =
            tests.iter().filter_map(|scores| scores.last().and_then(|scores| scores.accuracy)).collect();
        Ok(Run {
            accuracy: mean_accuracy(last).context("classes")?,
            forgetting: together.is_none().then(|| forgetting(&tests)).flatten(),
            learned: fresh.iter().sum::<f64>() / fresh.len().max(1) as f64,
            bytes: learner.kept().bytes(),
            seconds,
        })
    }
}

/// Processors' time of this process so far: others may work beside it.
fn worked() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn network(seed: u64) -> Result<Model> {
    let options = Options { bn: Bn::Kept, batch: Batch::Free, image: None, seed };
    let mut model = tierline_zoo::by_name("mlp", &options).context("a perceptron")?;
    fold_for(&mut model, &mut Evaluator(tierline_engine::rten()), Purpose::Training)?;
    Ok(model)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "A perceptron 784-128-10 (101.8 k weights, 407 kB) on Fashion-MNIST, {EPOCHS} epochs of each task, batches of 64, one thread, seeds \
             {SEEDS:?}; settings were\nchosen on seed {CHOSEN_ON}. Accuracy is the mean over the five tasks' test pictures \
             behind the last task, which is never told which\ntask a picture is of unless it says so; forgotten is the mean, \
             over all tasks but the last, of the best accuracy less the\nlast one. Bytes are kept between tasks besides \
             the model; LwF's teacher is the model itself."
        )?;
        for table in &self.tables {
            let of = |name: &str| table.rows.iter().find(|row| row.name == name);
            let what = if table.name == "new classes" {
                format!(
                    "five tasks of two classes, 12,000 pictures each; at most {PER_CLASS} pictures of a class are kept"
                )
            } else {
                let names: Vec<&str> = streams::LOOKS.iter().map(|(name, _)| *name).collect();
                format!("five tasks of 12,000 pictures each: {}", names.join(", "))
            };
            writeln!(f, "\n### {}: {what}\n", capital(table.name))?;
            writeln!(
                f,
                "| way | accuracy (least to most) | right behind its task | forgotten, points | of fine-tuning's | kept bytes | CPU seconds |"
            )?;
            writeln!(f, "| --- | --- | --- | --- | --- | --- | --- |")?;
            let naive = of(NAIVE).and_then(Row::forgotten);
            for row in &table.rows {
                let points: Vec<f64> = row.runs.iter().map(|run| 1e2 * run.accuracy).collect();
                let [low, high] = [f64::min, f64::max].map(|pick| points.iter().copied().reduce(pick).unwrap_or(0.0));
                let lost = row.forgotten();
                let share = lost.zip(naive).map(|(lost, naive)| format!("{:.2}", lost / naive));
                writeln!(
                    f,
                    "| {} | {:.2}% ({low:.2} to {high:.2}) | {} | {} | {} | {:.0} | {:.1} |",
                    row.name,
                    row.mean(|run| 1e2 * run.accuracy),
                    if row.name == JOINT {
                        "-".to_owned()
                    } else {
                        format!("{:.2}%", row.mean(|run| 1e2 * run.learned))
                    },
                    lost.map_or("-".to_owned(), |lost| format!("{:.2}", 1e2 * lost)),
                    share.unwrap_or("-".to_owned()),
                    row.mean(|run| run.bytes as f64),
                    row.mean(|run| run.seconds),
                )?;
            }
            writeln!(f, "\n{}", verdict(table))?;
        }
        Ok(())
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// Which ways reach the goals.
fn verdict(table: &Table) -> String {
    let of = |name: &str| table.rows.iter().find(|row| row.name == name);
    let joint = of(JOINT).map(|row| row.mean(|run| 1e2 * run.accuracy));
    let naive = of(NAIVE).and_then(Row::forgotten);
    let (Some(joint), Some(naive)) = (joint, naive) else { return "The bounds weren't run.".to_owned() };
    let keeps = |row: &&Row| row.forgotten().is_some_and(|lost| lost <= GOAL_SHARE * naive);
    let others = || table.rows.iter().filter(|row| row.name != JOINT && row.name != NAIVE);
    let names = |rows: Vec<&Row>| match rows.is_empty() {
        true => "none".to_owned(),
        false => rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>().join("; "),
    };
    if table.name == "new classes" {
        let near = |row: &&Row| joint - row.mean(|run| 1e2 * run.accuracy) <= GOAL_POINTS;
        let good = others().filter(|row| row.examples).filter(near).filter(keeps).collect();
        return format!(
            "Goal: with replay within {GOAL_POINTS} points of everything at once, and a third at most forgotten of what \
             fine-tuning forgets.\nReached by: {}.",
            names(good)
        );
    }
    let good = others().filter(|row| !row.examples).filter(keeps).collect();
    format!(
        "Goal: without kept examples, at most a third forgotten of what fine-tuning forgets, by two ways at least.\nReached by: {}.",
        names(good)
    )
}

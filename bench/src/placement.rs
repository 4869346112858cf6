//! How good plans are: on real processes over shaped links, the time of the
//! plan in force beside that of every single cut, of the end alone and of the
//! cloud alone.
//!
//! Two nodes, an end and a cloud. All placements are asked in turns, round by
//! round, so that whatever else the machine does meets all of them alike; the
//! best is chosen in one half of the rounds and compared in the other, so that
//! luck doesn't count as speed. Placements that take more than [`LATE_FACTOR`]
//! times as long as the plan are given up: they can't be the best. The cloud
//! alone is waited for. Start at [`run`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use tierline_demo::site::{Link, Node, Tierline};
use tierline_demo::{detector, picture};
use tierline_graph::{Elements, Model, Tensor};
use tierline_zoo::{Options, by_name};

/// Bandwidths of the link, as `link set` takes them, and their names.
const LINKS: [(&str, &str); 5] = [
    ("0.1 Mbit/s", "0.1mbit"),
    ("1 Mbit/s", "1mbit"),
    ("10 Mbit/s", "10mbit"),
    ("100 Mbit/s", "100mbit"),
    ("1 Gbit/s", "1gbit"),
];

/// How much slower the end is than the cloud, where every cut is measured.
const END_SLOWER: &str = "6";

/// ... and where only the plan and the tiers are.
const OTHER_ENDS: [&str; 2] = ["2", "20"];

/// Candidate cuts per model: each is measured on every link.
const CUTS: &str = "8";

/// Answers of each placement, in turns.
const ROUNDS: usize = 8;

/// A placement that takes so many times as long as the plan is late.
const LATE_FACTOR: u32 = 4;

/// ... and at least so long.
const LATE_MIN: Duration = Duration::from_secs(1);

/// The longest that an answer is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(180);

/// Time for the plan to follow a change of the link.
const SETTLE: Duration = Duration::from_secs(20);

/// The detector's canvas, `[height, width]`.
const CANVAS: [u32; 2] = [256, 480];

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// One per model and link, every cut measured.
    pub rows: Vec<Row>,
    /// The same for ends of other speeds, by how much slower they are: the plan
    /// and the tiers.
    pub others: Vec<(&'static str, Vec<Row>)>,
}

/// One model over one link. Times are milliseconds at the node that was asked,
/// from the request to its answer; medians of the rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The model.
    pub model: String,
    /// The link.
    pub link: &'static str,
    /// All on the end.
    pub end_ms: f64,
    /// All on the cloud, however late.
    pub cloud_ms: f64,
    /// The best of all placements measured, by one half of the rounds.
    pub best_ms: f64,
    /// Segments that the best one runs on the end.
    pub best_split: usize,
    /// Placements measured in time, and those that were late.
    pub measured: [usize; 2],
    /// The plan.
    pub plan_ms: f64,
    /// What was predicted of it, with each answer.
    pub predicted_ms: f64,
    /// The plan's time over the best's, in the other half of the rounds: the
    /// median, the least and the most.
    pub over_best: [f64; 3],
    /// Whether the plan is the best placement.
    pub is_best: bool,
    /// The share of coding in the plan's prediction.
    pub coding: f64,
    /// The plan in words.
    pub plan: String,
}

impl Row {
    /// The plan's time over the better single tier's.
    #[must_use]
    pub fn over_single(&self) -> f64 {
        self.plan_ms / self.end_ms.min(self.cloud_ms)
    }

    /// The prediction over what was measured.
    #[must_use]
    pub fn predicted(&self) -> f64 {
        self.predicted_ms / self.plan_ms
    }

    fn is_near_best(&self) -> bool {
        self.is_best || self.over_best[0] <= 1.05
    }

    /// Whether the plan is the better tier alone, or at most 2% slower.
    fn is_no_worse_than_a_tier(&self) -> bool {
        let better = if self.end_ms < self.cloud_ms { "everything on end" } else { "everything on cloud" };
        self.plan == better || self.over_single() <= 1.02
    }
}

/// Measures every model over every link.
///
/// # Errors
/// When the site can't be started or a model can't be run.
pub fn run() -> Result<Report> {
    let rows = site(END_SLOWER, true)?;
    let others = OTHER_ENDS.into_iter().map(|slower| Ok((slower, site(slower, false)?))).collect::<Result<_>>()?;
    Ok(Report { rows, others })
}

/// A site whose end is so much slower; with every cut, or the tiers only.
fn site(slower: &str, cuts: bool) -> Result<Vec<Row>> {
    let variable = |name: &str| {
        std::env::var_os(name).map(PathBuf::from).with_context(|| format!("{name} is not set; run `cargo xtask bench`"))
    };
    let assets = variable("TIERLINE_ASSETS")?;
    let folder = tempfile::tempdir()?;
    let tierline = Tierline::new(variable("TIERLINE_BINARY")?, folder.path());
    let cloud = tierline.node("cloud", &["--role", "cloud", "--listen", "127.0.0.1:0"])?;
    let link = tierline.link("link", &cloud.url, &["--bandwidth", "100mbit", "--delay", "5 ms"])?;
    let end = tierline.join(&cloud, "end", "end", &link.url(), &["--slowdown", slower])?;
    let mut rows = Vec::new();
    for (name, model, inputs) in models(&assets, folder.path())? {
        eprintln!("{name}, an end {slower}x slower: measured by both nodes");
        let file = folder.path().join(format!("{name}.onnx"));
        model.save(&file)?;
        link.set(&["--bandwidth", "1gbit"])?;
        let file = file.to_string_lossy().into_owned();
        let samples = inputs.iter().flat_map(|input| ["--sample", input.as_str()]);
        let add: Vec<&str> =
            ["model", "add", &file, "--name", &name, "--cuts", CUTS].into_iter().chain(samples).collect();
        cloud.ask(&add)?;
        let bench = Bench { end: &end, link: &link, model: &name, inputs: &inputs, folder: folder.path(), cuts };
        bench.until_planned()?;
        for (words, bandwidth) in LINKS {
            let row = bench.over(words, bandwidth)?;
            eprintln!(
                "  {words}: plan {:.1} ms, predicted {:.1}, best {:.1} at {} ({})",
                row.plan_ms, row.predicted_ms, row.best_ms, row.best_split, row.plan
            );
            rows.push(row);
        }
        cloud.ask(&["model", "rm", &name])?;
    }
    Ok(rows)
}

/// Models with an input each, as `--input` takes it.
fn models(assets: &Path, folder: &Path) -> Result<Vec<(String, Model, Vec<String>)>> {
    let mut models = Vec::new();
    for name in ["mobilenet_v2", "resnet50", "minilm"] {
        let model = by_name(name, &Options::default()).with_context(|| format!("no {name} in the zoo"))?;
        let mut inputs = Vec::new();
        for input in model.inputs() {
            let shape: Vec<usize> = input.shape.iter().flatten().map(|d| d.known().unwrap_or(1) as usize).collect();
            let count = shape.iter().product();
            let mut random = fastrand::Rng::with_seed(11);
            let elements = match input.dtype {
                Some(tierline_graph::DataType::I64) => Elements::I64(vec![1; count]),
                _ => Elements::F32((0..count).map(|_| random.f32() * 2.0 - 1.0).collect()),
            };
            let file = folder.join(format!("{name}-{}.npy", input.name));
            std::fs::write(&file, tierline_codec::npy::write(&Tensor::new(shape, elements)?)?)?;
            inputs.push(format!("{}=@{}", input.name, file.display()));
        }
        models.push((name.to_owned(), model, inputs));
    }
    let pixels = detector::with_pixels(&Model::load(&assets.join("models/ppocr-det.onnx"))?, CANVAS)?;
    let fitted = picture::fit(&picture::load(&assets.join("pictures/page.png"))?, CANVAS)?;
    let file = folder.join("page.npy");
    std::fs::write(&file, tierline_codec::npy::write(&fitted.tensor)?)?;
    models.push(("ppocr-det".to_owned(), pixels, vec![format!("{}=@{}", detector::INPUT, file.display())]));
    Ok(models)
}

struct Bench<'a> {
    end: &'a Node,
    link: &'a Link,
    model: &'a str,
    inputs: &'a [String],
    folder: &'a Path,
    cuts: bool,
}

impl Bench<'_> {
    fn until_planned(&self) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(180) {
            let measured = |p: &Value| {
                p["tiers"].as_array().map(Vec::len) == Some(2) && p["unmeasured"].as_array().is_some_and(Vec::is_empty)
            };
            if self.end.ask(&["plan", self.model]).is_ok_and(|p| measured(&p)) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        anyhow::bail!("{} was not planned in time", self.model)
    }

    fn infer(&self, args: &[&str]) -> Result<Value> {
        let out = self.folder.join("out").to_string_lossy().into_owned();
        let inputs = self.inputs.iter().flat_map(|input| ["--input", input.as_str()]);
        let asked: Vec<&str> = ["infer", "--model", self.model, "--out", &out]
            .into_iter()
            .chain(inputs)
            .chain(args.iter().copied())
            .collect();
        self.end.ask(&asked)
    }

    /// One answer and the milliseconds it took; none when it is late.
    fn time(&self, args: &[&str], late: Duration) -> Result<Option<(f64, Value)>> {
        let deadline = format!("{} ms", late.as_millis());
        let Ok(answer) = self.infer(&[args, &["--deadline", &deadline]].concat()) else { return Ok(None) };
        let took = answer["node_ms"].as_f64().context("no latency")?;
        Ok((answer["degraded"] != true).then_some((took, answer)))
    }

    /// Live requests until the plan stays and predicts what it takes, or
    /// [`SETTLE`] is over.
    fn settle(&self, thin: bool) -> Result<()> {
        let begun = Instant::now();
        let (mut same, mut last) = (0, Value::Null);
        // What a link that fell to a crawl carries, is known late.
        let least = if thin { SETTLE } else { SETTLE / 3 };
        while begun.elapsed() < SETTLE && (same < 8 || begun.elapsed() < least) {
            let answer = self.infer(&["--deadline", "180 s"])?;
            same = if answer["plan"] == last["plan"] { same + 1 } else { 0 };
            last = answer;
        }
        Ok(())
    }

    fn over(&self, link: &'static str, bandwidth: &str) -> Result<Row> {
        self.link.set(&["--bandwidth", bandwidth])?;
        self.settle(bandwidth == LINKS[0].1)?;
        let shown = self.end.ask(&["model", "show", self.model])?;
        let segments = shown["cuts"].as_array().map_or(1, |cuts| cuts.len() + 1);
        let splits: Vec<usize> = if self.cuts { (0..=segments).collect() } else { vec![0, segments] };
        let mut taken: Vec<Vec<f64>> = vec![Vec::new(); splits.len()];
        let (mut plans, mut predictions, mut words) = (Vec::new(), Vec::new(), Vec::new());
        let mut random = fastrand::Rng::with_seed(5);
        for round in 0..ROUNDS {
            // Drawn anew each time, so that nobody is always behind the same other
            // one: what follows a long wait finds caches and cores gone cold. The
            // plan is the last of them, and first in the first round.
            let mut order: Vec<usize> = (0..=splits.len()).rev().collect();
            if round > 0 {
                random.shuffle(&mut order);
            }
            for at in order {
                if at == splits.len() {
                    let (took, answer) = self.time(&[], ANSWER_MAX)?.context("the plan did not answer")?;
                    plans.push(took);
                    predictions.push(answer["predicted_ms"].as_f64().unwrap_or(0.0));
                    words.push(answer["plan"].as_str().unwrap_or_default().to_owned());
                    continue;
                }
                let late = (Duration::from_secs_f64(median(&plans) / 1e3) * LATE_FACTOR).max(LATE_MIN);
                // Late once is late always.
                if taken[at].len() == round
                    && let Some((took, _)) = self.time(&["--split", &splits[at].to_string()], late)?
                {
                    taken[at].push(took);
                }
            }
        }
        let in_time: Vec<usize> = (0..splits.len()).filter(|&at| taken[at].len() == ROUNDS).collect();
        let half = |times: &[f64], which: usize| -> Vec<f64> { times.iter().skip(which).step_by(2).copied().collect() };
        let by_half = |at: &&usize| median(&half(&taken[**at], 0));
        let best = in_time.iter().min_by(|a, b| by_half(a).total_cmp(&by_half(b))).copied();
        let best = best.context("no placement answered in time")?;
        let mut ratios: Vec<f64> =
            half(&plans, 1).iter().zip(half(&taken[best], 1)).map(|(plan, best)| plan / best).collect();
        ratios.sort_by(f64::total_cmp);
        // However late: whoever offloads everything waits for it.
        let mut waited = |split: usize| -> Result<f64> {
            let at = splits.iter().position(|s| *s == split).context("a tier is missing")?;
            if taken[at].len() < ROUNDS {
                let answer = self.infer(&["--split", &split.to_string(), "--deadline", "180 s"])?;
                anyhow::ensure!(answer["degraded"] != true, "a tier did not answer: {}", answer["reason"]);
                taken[at] = vec![answer["node_ms"].as_f64().context("no latency")?];
            }
            Ok(median(&taken[at]))
        };
        let (cloud_ms, end_ms) = (waited(0)?, waited(segments)?);
        let explained = self.end.ask(&["explain", self.model])?;
        let codec_ns: f64 = explained["evaluation"]["links"]
            .as_array()
            .map_or(0.0, |links| links.iter().filter_map(|l| l["codec_ns"].as_f64()).sum());
        let latency_ns = explained["evaluation"]["cost"]["latency_ns"].as_f64().unwrap_or(f64::INFINITY);
        words.sort();
        let plan = words[words.len() / 2].clone();
        Ok(Row {
            model: self.model.to_owned(),
            link,
            end_ms,
            cloud_ms,
            best_ms: median(&taken[best]),
            best_split: splits[best],
            measured: [in_time.len(), splits.len() - in_time.len()],
            plan_ms: median(&plans),
            predicted_ms: median(&predictions),
            over_best: [median(&ratios), ratios[0], ratios[ratios.len() - 1]],
            is_best: plan == placed(splits[best], segments),
            coding: codec_ns / latency_ns,
            plan,
        })
    }
}

/// A split as plans are written.
fn placed(split: usize, segments: usize) -> String {
    let part = |from: usize, to: usize, node: &str| match to - from {
        1 => format!("segment {from} on {node}"),
        _ => format!("segments {from}..{to} on {node}"),
    };
    match split {
        0 => "everything on cloud".to_owned(),
        _ if split == segments => "everything on end".to_owned(),
        _ => format!("{}, {}", part(0, split, "end"), part(split, segments, "cloud")),
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Arithmetic mean, and the most.
fn mean_and_most(values: impl Iterator<Item = f64>) -> [f64; 2] {
    let values: Vec<f64> = values.collect();
    [values.iter().sum::<f64>() / values.len() as f64, values.iter().copied().fold(0.0, f64::max)]
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.rows.len();
        writeln!(
            f,
            "End {END_SLOWER}x slower than the cloud, round trip 10 ms; milliseconds, medians of {ROUNDS} rounds in which every\n\
             placement is asked once. The best split is chosen in one half of the rounds and compared with the plan in the\n\
             other: median ratio, least and most. `=`: the plan is that split.\n"
        )?;
        writeln!(
            f,
            "| model | link | end only | cloud only | best split | plan | predicted | predicted / plan | plan / best | plan / best tier | splits in time + late |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|---|---|")?;
        for r in &self.rows {
            let [ratio, least, most] = r.over_best;
            writeln!(
                f,
                "| {} | {} | {:.1} | {:.1} | {:.1} (at {}) | {:.1} | {:.1} | {:.2} | {}{ratio:.2} ({least:.2} to {most:.2}) | {:.2} | {} + {} |",
                r.model,
                r.link,
                r.end_ms,
                r.cloud_ms,
                r.best_ms,
                r.best_split,
                r.plan_ms,
                r.predicted_ms,
                r.predicted(),
                if r.is_best { "= " } else { "" },
                r.over_single(),
                r.measured[0],
                r.measured[1],
            )?;
        }
        let within = self.rows.iter().filter(|r| r.is_near_best()).count();
        let single = self.rows.iter().filter(|r| r.is_no_worse_than_a_tier()).count();
        let foretold = self.rows.iter().filter(|r| (r.predicted() - 1.0).abs() <= 0.15).count();
        let coding = self.rows.iter().map(|r| r.coding).fold(0.0, f64::max);
        writeln!(
            f,
            "\nThe best split or within 5% of it: {within} of {count} rows (goal: all). The better tier, or at most 2% slower: {single}\n\
             (goal: all). Predicted within 15%: {foretold} (goal: 18 of 20). Encoding and decoding take at most {:.1}% of a plan's\n\
             time: that is all that could be hidden by coding while sending.\n",
            coding * 100.0
        )?;
        writeln!(
            f,
            "| end slower by | over cloud only: mean | median | most | over end only: mean | most | no slower than the better tier | predicted within 15% |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|")?;
        let all = std::iter::once((END_SLOWER, &self.rows)).chain(self.others.iter().map(|(s, rows)| (*s, rows)));
        for (slower, rows) in all {
            let [mean, most] = mean_and_most(rows.iter().map(|r| r.cloud_ms / r.plan_ms));
            let [end_mean, end_most] = mean_and_most(rows.iter().map(|r| r.end_ms / r.plan_ms));
            let middle = median(&rows.iter().map(|r| r.cloud_ms / r.plan_ms).collect::<Vec<_>>());
            let single = rows.iter().filter(|r| r.is_no_worse_than_a_tier()).count();
            let foretold = rows.iter().filter(|r| (r.predicted() - 1.0).abs() <= 0.15).count();
            writeln!(
                f,
                "| {slower}x | {mean:.1}x | {middle:.1}x | {most:.1}x | {end_mean:.1}x | {end_most:.1}x | {single} of {} | {foretold} of {} |",
                rows.len(),
                rows.len()
            )?;
        }
        writeln!(
            f,
            "\nCloud only counts with its true time, however late. Neurosurgeon (2017) reports 3.1x on average and 40.7x at\n\
             most over cloud only, on other devices, models and links."
        )
    }
}

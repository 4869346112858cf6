//! Applications: a model with early exits and a cascade of two models, asked
//! by an unmodified `tritonclient` at a device whose cable is cut meanwhile,
//! and the page that shows it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tierline_codec::npy;
use tierline_graph::{DataType, Model};
use tierline_zoo::build::{Attribute, Builder, Value as Computed};
use tierline_zoo::{Batch, Bn, Options};

use crate::classes;
use crate::federation::{register, scaled, some};
use crate::screen::Screen;
use crate::site::{Tierline, wait};

/// Pictures that the models learn from, that thresholds are found on, and that
/// the application asks about: none is in two of them.
const LEARNED: usize = 16_000;
const CALIBRATED: usize = 4_000;
const ASKED: usize = 1_000;

/// How much slower than this machine the board is.
const BOARD_SLOWER: &str = "8";

/// Its way to the cloud.
const LINK: [&str; 4] = ["--bandwidth", "10mbit", "--delay", "10 ms"];

/// Points of accuracy that exits and the cascade may lose.
const LOSS: &str = "0.5";

/// How long the application asks while the cable is cut, when that is, and
/// when it is mended.
const WATCHED: u64 = 9;
const CUT_AFTER: Duration = Duration::from_secs(3);
const CUT_FOR: Duration = Duration::from_secs(3);

const JOB: &str = r#"
model = "NAME.onnx"
weights = "fresh"
epochs = EPOCHS
seed = 1
[data]
train = "learned"
[batch]
size = 32
[optimizer]
kind = "sgd"
momentum = 0.9
[schedule]
rate = 0.03
"#;

const CASCADE: &str = r#"
kind = "cascade"
[[member]]
model = "small"
placement = "here"
criterion = "margin"
threshold = 0.5
[[member]]
model = "large"
placement = "cloud"
[examples]
policy = "features"
max_mb = 8.0
max_count = 1000
"#;

/// An answer as the application has it.
#[derive(Debug, Clone, Deserialize)]
struct Answered {
    /// Seconds since 1970.
    at: f64,
    ms: f64,
    right: bool,
    node: String,
    exit: u32,
    degraded: bool,
}

/// What the application got.
#[derive(Debug, Clone, Deserialize)]
struct Got {
    answers: Vec<Answered>,
    failed: Vec<String>,
}

impl Got {
    fn share(&self, of: impl Fn(&Answered) -> bool) -> f64 {
        self.answers.iter().filter(|answer| of(answer)).count() as f64 / self.answers.len().max(1) as f64
    }

    fn median_ms(&self) -> f64 {
        let mut times: Vec<f64> = self.answers.iter().map(|answer| answer.ms).collect();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Applications {
    /// Which pictures.
    pub pictures: &'static str,
    /// How many were asked about.
    pub asked: usize,
    /// Share that left at the first exit.
    pub left: f64,
    /// Multiply-adds of the average answer, as a share of the model's.
    pub work: f64,
    /// Accuracy with exits, and at the end alone.
    pub exit_accuracy: [f64; 2],
    /// Medians, milliseconds.
    pub exit_ms: [f64; 2],
    /// Share that the small model on the board answered.
    pub near: f64,
    /// Accuracy of the cascade, of the small model alone, of the large one alone.
    pub cascade_accuracy: [f64; 3],
    /// Medians of the cascade and of the large model on the cloud, milliseconds.
    pub cascade_ms: [f64; 2],
    /// Answers around the cut cable, those that were degraded, those that failed.
    pub cut: [usize; 3],
    /// The slowest of them, and the time from the cut to the first degraded one,
    /// milliseconds.
    pub cut_ms: [f64; 2],
    /// The page of the board with the cable cut, where a browser was found.
    pub page: Option<PathBuf>,
    /// Of all, training included.
    pub seconds: f64,
}

impl fmt::Display for Applications {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| format!("{:.1}%", 100.0 * share);
        let [with, without] = self.exit_accuracy;
        let [cascade, small, large] = self.cascade_accuracy;
        let [asked, degraded, failed] = self.cut;
        writeln!(
            f,
            "Exits:      {} pictures of {} asked by tritonclient at the board: {} left at exit 1, which makes {} of the\n            \
             multiply-adds; {} right ({} at the end alone), {:.2} ms beside {:.2}, medians",
            self.asked,
            self.pictures,
            percent(self.left),
            percent(self.work),
            percent(with),
            percent(without),
            self.exit_ms[0],
            self.exit_ms[1]
        )?;
        writeln!(
            f,
            "Cascade:    {} answered by the small model on the board, the rest by the large one on the cloud; {} right ({} small\n            \
             alone, {} large alone), {:.1} ms beside {:.1} at the cloud, medians",
            percent(self.near),
            percent(cascade),
            percent(small),
            percent(large),
            self.cascade_ms[0],
            self.cascade_ms[1]
        )?;
        write!(
            f,
            "Cable cut:  {asked} requests of tritonclient around it, {failed} failed, {degraded} answered by the board alone and flagged\n            \
             degraded, the first {:.0} ms after the cut; the slowest answer took {:.0} ms",
            self.cut_ms[1], self.cut_ms[0]
        )?;
        match &self.page {
            Some(page) => write!(f, "\n{}: the board's page meanwhile", page.display()),
            None => write!(f, "\n            (no Chromium on the PATH: no picture of the board's page)"),
        }
    }
}

/// Trains, deploys and asks.
///
/// # Errors
/// When the pictures can't be had, or a command fails.
pub fn run(binary: PathBuf, assets: &Path, output: &Path, screen: &Screen) -> Result<Applications> {
    let begun = Instant::now();
    let pictures = classes::fetch(assets)?;
    let temporary = tempfile::tempdir()?;
    let folder = temporary.path();
    let tierline = Tierline::new(binary, folder);
    screen.doing("starting a cloud and a board");
    let cloud =
        tierline.node("cloud", &["--role", "cloud", "--listen", "127.0.0.1:0", "--http", "off", "--grpc", "off"])?;
    let link = tierline.link("wan", &cloud.url, &LINK)?;
    let serve = ["--http", "127.0.0.1:0", "--grpc", "off", "--slowdown", BOARD_SLOWER];
    let board = tierline.join(&cloud, "end", "board", &link.url(), &serve)?;

    // A quarter where pictures are few.
    let learned = LEARNED.min(pictures.train.len() * 3 / 4);
    let rows: Vec<usize> = (learned..pictures.train.len().min(learned + CALIBRATED)).collect();
    register(&cloud, "learned", &some(&pictures.train, learned)?, &folder.join("learned"))?;
    register(&cloud, "calibrated", &pictures.train.subset(&rows)?, &folder.join("calibrated"))?;
    let asked = some(&pictures.test, ASKED)?;
    let [asked_file, labels_file] = ["asked.npy", "labels.npy"].map(|name| folder.join(name));
    let all: Vec<usize> = (0..asked.len()).collect();
    std::fs::write(&asked_file, npy::write(&scaled(&asked.features(&all)?)?)?)?;
    std::fs::write(&labels_file, npy::write(&asked.targets(&all)?)?)?;

    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let options = Options { bn: Bn::Kept, batch: Batch::Free, image: None, seed: 1 };
    let large = tierline_zoo::by_name("lenet", &options).context("no LeNet")?;
    for (name, model, epochs) in [("small", small(), 2), ("large", large, 5)] {
        screen.doing(format!("training the {name} model"));
        model.save(&folder.join(format!("{name}.onnx")))?;
        let job = JOB.replace("NAME", name).replace("EPOCHS", &(epochs * pictures.epochs).to_string());
        std::fs::write(folder.join(format!("{name}.toml")), job)?;
        let out = path(&format!("{name}.run"));
        cloud.follow(&["train", &path(&format!("{name}.toml")), "--local", "--out", &out], |_| ())?;
    }
    screen.doing("giving the large model an early exit");
    let exits = path("exits.onnx");
    let give = ["model", "add-exits", &path("large.run/model.onnx"), "--exits", "1", "--dataset", "calibrated"];
    let given = cloud.ask(&[&give[..], &["--loss", LOSS, "--out", &exits]].concat())?;
    let macs = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let (early, all) = (macs(&given["exits"][0]["macs"]), macs(&given["macs"]));
    let late = all + macs(&given["exits"][0]["head_macs"]);
    for (name, file) in [("large", exits), ("small", path("small.run/model.onnx"))] {
        cloud.ask(&["model", "add", &file, "--name", name, "--shape", "input=1,1,28,28"])?;
    }
    screen.doing("calibrating the cascade");
    let (service, calibrated) = (path("clothes.toml"), path("calibrated.toml"));
    std::fs::write(&service, CASCADE)?;
    let calibrate = ["model", "calibrate", &service, "--dataset", "calibrated", "--loss", LOSS, "--out", &calibrated];
    wait(Duration::from_secs(60), || cloud.ask(&calibrate).ok()).context("the cascade can't be calibrated")?;
    cloud.ask(&["model", "add", &calibrated, "--name", "clothes"])?;

    let address = board.http.trim_start_matches("http://").to_owned();
    let application = Application { address: &address, asked: &asked_file, labels: &labels_file, folder };
    let ready = || {
        let plan = board.ask(&["explain", "large"]).ok()?;
        (plan["tiers"].as_array()?.len() == 2 && plan["unmeasured"].as_array()?.is_empty()).then_some(())
    };
    wait(Duration::from_secs(60), ready).context("the board has no plan for the large model")?;
    screen.say(format!("applications are served at http://{address}, the page is http://{address}/dashboard"));
    screen.doing("tritonclient asks, with and without an exit, and the cascade");
    let end = r#"large={"exit": 0}"#;
    let far = r#"large={"exit": 0, "tier": "cloud"}"#;
    let got = finish(application.start("ask", &["large={}", end, "clothes={}", "small={}", far])?)?;
    let [with, without, cascade, alone, far] = &got[..] else { bail!("the application said too little") };
    screen.doing("the cable is cut under the application");
    let watching = application.start("watch", &["clothes", &WATCHED.to_string()])?;
    // Until the client asks.
    std::thread::sleep(CUT_AFTER);
    link.set(&["--cut"])?;
    let cut_at = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    screen.say("uplink of the board: down, under requests");
    let until = Instant::now() + CUT_FOR;
    let page = screenshot(&format!("http://{address}/dashboard"), &output.join("dashboard.png"))?;
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
    link.set(&["--restore"])?;
    let watched = finish(watching)?.pop().context("the application said nothing")?;
    let degraded = || watched.answers.iter().filter(|answer| answer.degraded && answer.at >= cut_at);
    let first = degraded().map(|answer| answer.at).fold(f64::INFINITY, f64::min);
    ensure!(first.is_finite(), "the cut went unnoticed");
    Ok(Applications {
        pictures: pictures.name,
        asked: asked.len(),
        left: with.share(|answer| answer.exit == 1),
        work: with.answers.iter().map(|a| if a.exit == 1 { early } else { late }).sum::<f64>()
            / (all * with.answers.len() as f64),
        exit_accuracy: [with.share(|a| a.right), without.share(|a| a.right)],
        exit_ms: [with.median_ms(), without.median_ms()],
        near: cascade.share(|answer| answer.node == "board"),
        cascade_accuracy: [cascade.share(|a| a.right), alone.share(|a| a.right), without.share(|a| a.right)],
        cascade_ms: [cascade.median_ms(), far.median_ms()],
        cut: [watched.answers.len() + watched.failed.len(), degraded().count(), watched.failed.len()],
        cut_ms: [watched.answers.iter().map(|answer| answer.ms).fold(0.0, f64::max), (first - cut_at) * 1e3],
        page,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// A perceptron on pictures of a quarter of the size: a tenth of LeNet's
/// multiply-adds.
fn small() -> Model {
    let mut b = Builder::new("small", 1);
    let x = b.input("input", DataType::F32, "batch 1 28 28");
    let two = || Attribute::Ints(vec![2, 2]);
    let x = b.op("AveragePool", &[&x], &[("kernel_shape", two()), ("strides", two())]);
    let x = Computed { width: 196, ..b.op("Flatten", &[&x], &[("axis", Attribute::Int(1))]) };
    let x = b.gemm(&x, 48);
    let x = b.op("Relu", &[&x], &[]);
    let x = b.gemm(&x, 10);
    b.output("logits", &x, DataType::F32, "batch 10");
    b.build()
}

/// An application beside the board.
struct Application<'a> {
    address: &'a str,
    asked: &'a Path,
    labels: &'a Path,
    folder: &'a Path,
}

impl Application<'_> {
    fn start(&self, verb: &str, more: &[&str]) -> Result<Child> {
        let python =
            std::env::var_os("TIERLINE_PYTHON").context("TIERLINE_PYTHON is not set; run `cargo xtask demo`")?;
        let script = self.folder.join("applications.py");
        std::fs::write(&script, include_str!("applications.py"))?;
        let mut command = Command::new(python);
        command.arg(script).args([verb, self.address]).args([self.asked, self.labels]).args(more);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?)
    }
}

/// What an application got, once it is through.
fn finish(application: Child) -> Result<Vec<Got>> {
    let output = application.wait_with_output()?;
    ensure!(output.status.success(), "the application failed");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A picture of a page, where a browser is found.
fn screenshot(url: &str, file: &Path) -> Result<Option<PathBuf>> {
    for browser in ["chromium", "chromium-browser", "google-chrome", "chrome"] {
        let profile = tempfile::tempdir()?;
        let mut command = Command::new(browser);
        command.args(["--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1280,1500"]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.args(["--virtual-time-budget=3000", &format!("--screenshot={}", file.display()), url]);
        let Ok(output) = command.stdin(Stdio::null()).output() else { continue };
        return Ok((output.status.success() && file.exists()).then(|| file.to_owned()));
    }
    Ok(None)
}

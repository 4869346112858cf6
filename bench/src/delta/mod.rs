//! Deltas beside `zstd --patch-from` and bsdiff: bytes of made-up changes and of
//! real training; time and memory of a model of 100 MB.
//!
//! zstd is the library that we use ourselves, with the old file as a prefix,
//! level 19 and a window over both files, as its command line does. bsdiff is
//! the Python package `bsdiff4`, the original's format. Start at [`run`].

use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tierline_update::delta::{self, Lossy, Options};
use tierline_zoo::{Batch, Bn};

use crate::training::{environment, fashion, peak};

const BSDIFF: &[&str] = &["bsdiff4==1.3.2"];

/// zstd's level, ours and the peer's.
const LEVEL: i32 = 19;

/// As which the benchmark runs itself for times and memory.
pub const VERB: &str = "delta-cost";

/// What was measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Bytes of each pair.
    pub rows: Vec<Row>,
    /// Costs of a large model.
    pub cost: Cost,
}

/// A pair of files.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What changed.
    pub change: String,
    /// Bytes of the new file.
    pub whole: u64,
    /// Of our delta.
    pub ours: u64,
    /// What codes most of it.
    pub coding: &'static str,
    /// Of zstd's.
    pub zstd: u64,
    /// Of bsdiff's.
    pub bsdiff: u64,
    /// Of ours with loss: 8 bits, 4 bits.
    pub lossy: [u64; 2],
    /// The root of the mean square error of the same, over that of the weights.
    pub error: [f64; 2],
}

/// Time and memory.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Bytes of the new file.
    pub whole: u64,
    /// Of its largest tensor.
    pub tensor: u64,
    /// Processor time of making it.
    pub make_s: f64,
    /// Of applying it, hashes of base and result included.
    pub apply_s: f64,
    /// Memory at the beginning, at the peak of making, and of applying.
    pub bytes: [u64; 3],
}

/// Runs the benchmark.
///
/// # Errors
/// When a peer can't be had, or a training fails.
pub fn run() -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let mut pairs = drawn(folder.path())?;
    let large = pairs.pop().context("the large pair")?;
    pairs.extend(trained(folder.path())?);
    let python = environment("bsdiff", "bsdiff", BSDIFF)?;
    let mut report = Report::default();
    for (change, old, new) in pairs {
        eprintln!("  {change}");
        report.rows.push(row(change, &old, &new, &python, folder.path())?);
    }
    eprintln!("  100 MB");
    report.cost = cost(&large.1, &large.2)?;
    Ok(report)
}

type Pair = (String, PathBuf, PathBuf);

/// Pairs that differ in known ways, and the large one.
fn drawn(folder: &Path) -> Result<Vec<Pair>> {
    let python = std::env::var_os("TIERLINE_PYTHON").context("TIERLINE_PYTHON is not set; run `cargo xtask bench`")?;
    let output = script(Path::new(&python), folder, "cases.py", include_str!("cases.py"), &[folder])?;
    let pair = |line: &str| {
        let mut words = line.split('\t');
        let mut word = || words.next().map(str::to_owned);
        Some((word()?, word()?.into(), word()?.into()))
    };
    output.lines().map(pair).collect::<Option<_>>().context("three words a line")
}

fn script(python: &Path, folder: &Path, name: &str, text: &str, arguments: &[&Path]) -> Result<String> {
    let file = folder.join(name);
    std::fs::write(&file, text)?;
    let output = Command::new(python).arg(&file).args(arguments).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{name} failed");
    Ok(String::from_utf8(output.stdout)?)
}

/// LeNet on Fashion-MNIST: an epoch, then more of it in several ways.
fn trained(folder: &Path) -> Result<Vec<Pair>> {
    let data = fashion::data()?;
    let options = tierline_zoo::Options { bn: Bn::Kept, batch: Batch::Free, image: None, seed: 1 };
    tierline_zoo::by_name("lenet", &options).context("LeNet")?.save(&folder.join("lenet.onnx"))?;
    let binary = std::env::var_os("TIERLINE_BINARY").context("TIERLINE_BINARY is not set; run `cargo xtask bench`")?;
    let tierline = |arguments: &[&str], more: &[&Path]| -> Result<()> {
        let mut command = Command::new(&binary);
        command.arg("--data").arg(folder.join("node")).arg("--quiet").args(arguments).args(more);
        ensure!(command.stdout(Stdio::null()).status()?.success(), "{command:?} failed");
        Ok(())
    };
    tierline(&["data", "add", "fashion"], &[&data])?;
    let train = |name: &str, model: &str, frozen: &str, size: usize, learn: &str| -> Result<PathBuf> {
        let (file, out) = (folder.join(format!("{name}.toml")), folder.join(name));
        let text = format!(
            "model = \"{model}\"\nepochs = 1\nseed = 1\nfreeze = [{frozen}]\n[data]\ntrain = \"fashion\"\n[batch]\n\
             size = {size}\nnormalize = \"measured\"\n{learn}"
        );
        std::fs::write(&file, text)?;
        tierline(&["train", "--local", "--replace"], &[&file, Path::new("--out"), &out])?;
        Ok(out.join("model.onnx"))
    };
    let sgd = "[optimizer]\nkind = \"sgd\"\nmomentum = 0.9\n[schedule]\nrate = 0.02\n";
    let adam = "[optimizer]\nkind = \"adam\"\n[schedule]\nrate = 0.001\n";
    let first = train("first", "lenet.onnx", "", 64, sgd)?;
    let but_last = frozen(&first)?;
    let ways = [
        ("an epoch of SGD (LeNet, Fashion-MNIST)", "sgd", "", 64, sgd),
        ("an epoch of Adam", "adam", "", 64, adam),
        ("15 steps of SGD", "steps", "", 4_096, sgd),
        ("an epoch of SGD, the last layer alone", "head", &but_last, 64, sgd),
    ];
    let pair = |(change, name, frozen, size, learn): (&str, &str, &str, usize, &str)| {
        Ok((change.to_owned(), first.clone(), train(name, "first/model.onnx", frozen, size, learn)?))
    };
    ways.into_iter().map(pair).collect()
}

/// All weights but those of the last layer.
fn frozen(model: &Path) -> Result<String> {
    let model = tierline_graph::Model::load(model)?;
    let names: Vec<String> = model.graph().initializer.iter().filter_map(|t| t.name.clone()).collect();
    let kept = names.len().saturating_sub(2);
    Ok(names[..kept].iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", "))
}

fn row(change: String, old: &Path, new: &Path, python: &Path, folder: &Path) -> Result<Row> {
    let (ours, coding, _) = ours(old, new, None)?;
    let mut lossy = ([0; 2], [0.0; 2]);
    for (at, bits) in [Lossy::Int8, Lossy::Int4].into_iter().enumerate() {
        let (bytes, _, error) = self::ours(old, new, Some(bits))?;
        (lossy.0[at], lossy.1[at]) = (bytes, error);
    }
    let patch = script(python, folder, "bsdiff.py", include_str!("bsdiff.py"), &[old, new])?;
    let bsdiff = patch.trim().parse()?;
    let (old, new) = (std::fs::read(old)?, std::fs::read(new)?);
    let zstd = patched(&old, &new)?;
    Ok(Row { change, whole: new.len() as u64, ours, coding, zstd, bsdiff, lossy: lossy.0, error: lossy.1 })
}

/// Bytes of our delta, what codes most of it, and its relative error; applied
/// to see that it is right.
fn ours(old: &Path, new: &Path, lossy: Option<Lossy>) -> Result<(u64, &'static str, f64)> {
    let (mut old, mut new) = (File::open(old)?, File::open(new)?);
    let (mut file, mut result, mut applied) = (Cursor::new(Vec::new()), Vec::new(), Vec::new());
    let report = delta::make(&mut old, &mut new, &Options { level: LEVEL, lossy }, &mut file, &mut result)?;
    delta::apply(&mut old, &mut file, &mut applied)?;
    ensure!(applied == result, "the delta gives something else");
    let coding = report.codings.iter().max_by_key(|coded| coded.coded_bytes).map_or("same", |coded| coded.coding);
    let error = report.deviation.map_or(0.0, |d| d.rms / d.weights_rms);
    Ok((report.header.delta_bytes(), coding, error))
}

/// Bytes of zstd with the old file as a prefix.
fn patched(old: &[u8], new: &[u8]) -> Result<u64> {
    let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(Vec::new(), LEVEL, old)?;
    let reach = (old.len() + new.len()) as u64;
    encoder.window_log((64 - reach.leading_zeros()).clamp(10, 30))?;
    encoder.write_all(new)?;
    Ok(encoder.finish()?.len() as u64)
}

/// Has a process of its own make and apply, so that its memory tells.
fn cost(old: &Path, new: &Path) -> Result<Cost> {
    let command = |verb: &str| -> Result<Vec<f64>> {
        let output = Command::new(std::env::current_exe()?).args([VERB, verb]).args([old, new]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let (made, applied) = (command("make")?, command("apply")?);
    Ok(Cost {
        whole: std::fs::metadata(new)?.len(),
        tensor: 4 * 2_500 * 2_500,
        make_s: made[0],
        apply_s: applied[0],
        bytes: [made[1].min(applied[1]) as u64, made[2] as u64, applied[2] as u64],
    })
}

/// Makes or applies the delta of two files; prints processor seconds, and memory
/// before and at its peak.
///
/// # Errors
/// When that fails.
pub fn child(verb: &str, old: &str, new: &str) -> Result<()> {
    let path = format!("{new}.delta");
    let (mut old, mut new) = (File::open(old)?, File::open(new)?);
    let before = peak()?;
    let begun = processor();
    if verb == "make" {
        let mut file = BufWriter::new(File::create(&path)?);
        delta::make(&mut old, &mut new, &Options::default(), &mut file, &mut std::io::sink())?;
    } else {
        let mut out = BufWriter::with_capacity(1 << 20, tempfile::tempfile()?);
        delta::apply(&mut old, &mut File::open(&path)?, &mut out)?;
    }
    let seconds = (processor() - begun).as_secs_f64();
    println!("{}", serde_json::json!([seconds, before, peak()?]));
    Ok(())
}

/// Time that this process has had.
fn processor() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Times smaller than the new file; all but the last column give it back byte for byte. zstd is the library with the\n\
             old file as a prefix (`--patch-from`) and level {LEVEL}, bsdiff the package `{}`. With loss, in brackets, the\n\
             root mean square error of the weights over theirs. Goal: at most 1% larger than the smaller of the peers.\n",
            BSDIFF[0]
        )?;
        writeln!(f, "| change | bytes | zstd | bsdiff | ours | ours / best | coded as | int8, int4 |")?;
        writeln!(f, "|---|---|---|---|---|---|---|---|")?;
        for row in &self.rows {
            let times = |bytes: u64| row.whole as f64 / bytes as f64;
            let lossy = |at: usize| format!("{:.1} ({:.1e})", times(row.lossy[at]), row.error[at]);
            writeln!(
                f,
                "| {} | {} | {:.2} | {:.2} | {:.2} | {:.3} | {} | {}, {} |",
                row.change,
                row.whole,
                times(row.zstd),
                times(row.bsdiff),
                times(row.ours),
                row.ours as f64 / row.zstd.min(row.bsdiff) as f64,
                row.coding,
                lossy(0),
                lossy(1)
            )?;
        }
        let Cost { whole, tensor, make_s, apply_s, bytes: [before, making, applying] } = &self.cost;
        let speed = |seconds: f64| *whole as f64 / 1e6 / seconds;
        let mb = |bytes: u64| bytes as f64 / 1e6;
        writeln!(
            f,
            "\nA model of {:.0} MB, all weights +-1%, largest tensor {:.0} MB, in a process of its own; time of the processor.\n",
            mb(*whole),
            mb(*tensor)
        )?;
        writeln!(f, "| | MB/s per core | goal | memory above that at the start | goal |")?;
        writeln!(f, "|---|---|---|---|---|")?;
        let goal = 2.0 * mb(*tensor);
        let above = |peak: u64| mb(peak.saturating_sub(*before));
        writeln!(f, "| make | {:.0} | | {:.1} MB | {goal:.0} MB |", speed(*make_s), above(*making))?;
        writeln!(f, "| apply | {:.0} | 100 | {:.1} MB | {goal:.0} MB |", speed(*apply_s), above(*applying))
    }
}

//! `tierline delta`: a new version of a file as what differs from the old one.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use tierline_update::delta::{self, Delta, DeltaError, Header, Lossy, Options, Report};

use super::Global;
use crate::output::{self, CommandError, CommandResult, ExitCode};

#[derive(Debug, clap::Subcommand)]
pub enum DeltaVerb {
    /// Write what makes a new file of an old one
    #[command(after_help = "Any two files will do; of ONNX models, weights are coded as differences of numbers. \
The delta is tried before it is kept.")]
    Make(Make),
    /// Make the new file of the old one and a delta
    Apply(Apply),
}

#[derive(Debug, clap::Args)]
pub struct Make {
    /// The file that others have
    old: PathBuf,
    /// The file that they are to have
    new: PathBuf,
    /// Where the delta goes
    #[arg(long, value_name = "DELTA")]
    out: PathBuf,
    /// Take weights as differences on a grid of so many bits: smaller, and only close to the new ones
    #[arg(long, value_name = "BITS", value_parser = ["int8", "int4"])]
    lossy: Option<String>,
    /// Where to write what the delta makes, to try it before others get it
    #[arg(long, value_name = "FILE")]
    result: Option<PathBuf>,
    /// zstd's level where zstd is the shortest
    #[arg(long, value_name = "N", default_value_t = 19, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
}

#[derive(Debug, clap::Args)]
pub struct Apply {
    /// The file that the delta was made from
    old: PathBuf,
    /// The delta
    delta: PathBuf,
    /// Where the new file goes
    #[arg(long, value_name = "NEW")]
    out: PathBuf,
}

/// What was made.
#[derive(Serialize)]
struct Made {
    delta: String,
    delta_bytes: u64,
    /// Bytes of the new file over those of the delta.
    times: f64,
    /// BLAKE3 of the old file.
    base: String,
    base_bytes: u64,
    /// BLAKE3 of what the delta makes.
    result: String,
    result_bytes: u64,
    lossy: bool,
    same_bytes: u64,
    text_bytes: u64,
    codings: Vec<Coded>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deviation: Option<Deviation>,
}

#[derive(Serialize)]
struct Coded {
    coding: &'static str,
    parts: u64,
    bytes: u64,
    coded_bytes: u64,
}

#[derive(Serialize)]
struct Deviation {
    largest: f64,
    rms: f64,
    weights_rms: f64,
    weights: u64,
}

/// What was applied.
#[derive(Serialize)]
struct Applied {
    out: String,
    base: String,
    result: String,
    result_bytes: u64,
    lossy: bool,
}

pub fn delta(global: &Global, verb: DeltaVerb) -> CommandResult {
    match verb {
        DeltaVerb::Make(args) => make(global, &args),
        DeltaVerb::Apply(args) => apply(global, &args),
    }
}

fn make(global: &Global, args: &Make) -> CommandResult {
    let (mut old, mut new) = (open(&args.old)?, open(&args.new)?);
    let lossy = args.lossy.as_deref().map(|bits| if bits == "int8" { Lossy::Int8 } else { Lossy::Int4 });
    let options = Options { level: args.level, lossy };
    let mut file = Staged::beside(&args.out)?;
    let mut result = args.result.as_deref().map(Staged::beside).transpose()?;
    let mut delta = BufWriter::new(file.file());
    let report = match &mut result {
        Some(result) => delta::make(&mut old, &mut new, &options, &mut delta, &mut BufWriter::new(result.file())),
        None => delta::make(&mut old, &mut new, &options, &mut delta, &mut std::io::sink()),
    };
    let report = report.map_err(failed)?;
    drop(delta);
    // Nobody else should be the first to find out.
    delta::apply(&mut old, &mut file.file(), &mut std::io::sink()).map_err(failed)?;
    file.keep()?;
    result.map_or(Ok(()), Staged::keep)?;
    let made = Made::of(&args.out, report);
    global.output().data(&made, Made::text)
}

fn apply(global: &Global, args: &Apply) -> CommandResult {
    let mut old = open(&args.old)?;
    let mut delta = Delta::open(open(&args.delta)?).map_err(failed)?;
    let header = delta.header().clone();
    let mut file = Staged::beside(&args.out)?;
    room(&args.out, header.result_bytes)?;
    delta.apply(&mut old, &mut BufWriter::with_capacity(1 << 20, file.file())).map_err(failed)?;
    file.keep()?;
    let Header { base, result, result_bytes, lossy, .. } = header;
    let out = args.out.display().to_string();
    let applied = Applied { out, base: base.to_string(), result: result.to_string(), result_bytes, lossy };
    global.output().data(&applied, |a| format!("{}  {}  {}", a.out, output::bytes(a.result_bytes), a.result))
}

/// What isn't what it should be is told apart from what the system refuses.
fn failed(error: DeltaError) -> CommandError {
    let verification = error.is_verification();
    CommandError::new(if verification { ExitCode::Verification } else { ExitCode::Failure }, error)
}

fn open(path: &Path) -> CommandResult<File> {
    Ok(File::open(path).with_context(|| format!("cannot open {}", path.display()))?)
}

/// Whether so many bytes have room where `path` goes.
fn room(path: &Path, bytes: u64) -> CommandResult {
    let folder = folder(path);
    let system = rustix::fs::statvfs(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    if bytes <= free {
        return Ok(());
    }
    let (bytes, free, folder) = (output::bytes(bytes), output::bytes(free), folder.display());
    Err(CommandError::message(ExitCode::Failure, format!("the new file needs {bytes}; {folder} has {free} left")))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file that appears whole or not at all.
struct Staged {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Staged {
    fn beside(path: &Path) -> CommandResult<Self> {
        let file = tempfile::Builder::new().prefix(".tierline-").tempfile_in(folder(path));
        let file = file.with_context(|| format!("cannot write beside {}", path.display()))?;
        Ok(Self { file, path: path.to_owned() })
    }

    fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    fn keep(self) -> CommandResult {
        use std::os::unix::fs::PermissionsExt;
        let Self { file, path } = self;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(())
    }
}

impl Made {
    fn of(path: &Path, report: Report) -> Self {
        let Report { header, same_bytes, text_bytes, codings, deviation } = report;
        let coded =
            |c: delta::Coded| Coded { coding: c.coding, parts: c.parts, bytes: c.bytes, coded_bytes: c.coded_bytes };
        Self {
            delta: path.display().to_string(),
            delta_bytes: header.delta_bytes(),
            times: header.result_bytes as f64 / header.delta_bytes() as f64,
            base: header.base.to_string(),
            base_bytes: header.base_bytes,
            result: header.result.to_string(),
            result_bytes: header.result_bytes,
            lossy: header.lossy,
            same_bytes,
            text_bytes,
            codings: codings.into_iter().map(coded).collect(),
            deviation: deviation.map(|d| Deviation {
                largest: d.largest,
                rms: d.rms,
                weights_rms: d.weights_rms,
                weights: d.weights,
            }),
        }
    }

    fn text(&self) -> String {
        let mut rows = vec![vec!["same".to_owned(), output::bytes(self.same_bytes), String::new()]];
        let coded = |c: &Coded| vec![c.coding.to_owned(), output::bytes(c.bytes), output::bytes(c.coded_bytes)];
        rows.extend(self.codings.iter().map(coded));
        if self.text_bytes > 0 {
            rows.push(vec!["text".to_owned(), output::bytes(self.text_bytes), String::new()]);
        }
        let mut text = output::table(&["coding", "of the result", "in the delta"], &rows);
        if let Some(d) = &self.deviation {
            let (largest, rms, weights) = (d.largest, d.rms, d.weights_rms);
            text.push_str(&format!(
                "\nWith loss: {} weights are at most {largest:.3e} away, {rms:.3e} in the mean square, of {weights:.3e}.\n",
                output::count(d.weights)
            ));
        }
        let (delta, result) = (output::bytes(self.delta_bytes), output::bytes(self.result_bytes));
        text.push_str(&format!("\n{}  {delta} for {result}: {:.2} times smaller\n", self.delta, self.times));
        text.push_str(&format!("base    {}\nresult  {}\n", self.base, self.result));
        text
    }
}

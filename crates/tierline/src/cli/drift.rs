//! `tierline drift`: what a model saw when it was made, and whether that has
//! changed.

use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;

use anyhow::Context as _;
use serde::Serialize;
use tierline_daemon::datasets::Datasets;
use tierline_daemon::models;
use tierline_engine::LoadOptions;
use tierline_graph::Tensor;
use tierline_graph::exits::{Answer as Form, answer};
use tierline_train::data::{BatchOptions, Dataset};
use tierline_train::exits::{Fitting, each_batch};
use tierline_update::drift::reference::BYTES_MAX;
use tierline_update::drift::stream::{Detector, Domain, Method, State};
use tierline_update::drift::{
    Answer, Builder, Correction, Example, Options, Reference, Report, Settings, Verdict, Window,
};

use super::{Global, engines, exits, usage};
use crate::output::{self, CommandError, CommandResult, ExitCode, ExitWith};

#[derive(Debug, clap::Subcommand)]
pub enum DriftVerb {
    /// Write what a classifier sees and says on a data set, to compare with later
    Reference(Box<MakeReference>),
    /// Compare what a classifier sees and says on a data set with its reference, without labels
    Check(Box<Check>),
}

pub fn drift(global: &Global, verb: &DriftVerb) -> CommandResult {
    match verb {
        DriftVerb::Reference(args) => reference(global, args),
        DriftVerb::Check(args) => check(global, args),
    }
}

#[derive(Debug, clap::Args)]
pub struct MakeReference {
    /// The ONNX file of a classifier
    model: PathBuf,
    /// The data set, in all
    #[arg(long, value_name = "NAME")]
    dataset: String,
    /// Its split; `test` unless said, where there is one: what a model learned it is surer of
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// The tensor whose numbers are the features; the answer's scores unless said
    #[arg(long, value_name = "TENSOR")]
    at: Option<String>,
    /// Where the reference goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Numbers that features are sketched as, at most
    #[arg(long, value_name = "N", default_value_t = 64)]
    numbers: usize,
    /// Random frequencies that features are watched together by; 0 for none, where an example takes
    /// under half a millisecond
    #[arg(long, value_name = "N", default_value_t = 64)]
    frequencies: usize,
    /// What the model takes out of its input: `measured` on the examples, or MEAN,..:STD,..
    #[arg(long, value_name = "NUMBERS")]
    normalize: Option<String>,
    /// Decides the sketch
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads; every core unless said
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

#[derive(Debug, clap::Args)]
pub struct Check {
    /// The ONNX file that the reference was made of
    model: PathBuf,
    /// The reference
    #[arg(long, value_name = "FILE")]
    reference: PathBuf,
    /// The data set; labels are used to say how right the model was, where there are any
    #[arg(long, value_name = "NAME")]
    dataset: String,
    /// Its split; the whole unless said
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// Examples of a window
    #[arg(long, value_name = "N", default_value_t = 500)]
    window: u64,
    /// Chance that a window in which nothing changed is called drift
    #[arg(long, value_name = "X", default_value_t = 0.01)]
    alpha: f64,
    /// How single features are corrected for their number: none, bonferroni, holm, benjamini-hochberg
    #[arg(long, value_name = "HOW", default_value = "holm", value_parser = Correction::from_str)]
    correction: Correction,
    /// Detectors that also watch, example by example: adwin, hddm-w, hddm-a, page-hinkley and kswin how
    /// unsure the model is; ddm and eddm its errors, by labels
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    stream: Vec<String>,
    /// What the model takes out of its input, as for `drift reference`
    #[arg(long, value_name = "NUMBERS")]
    normalize: Option<String>,
    /// Threads; every core unless said
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

#[derive(Serialize)]
struct Made {
    file: String,
    bytes: usize,
    model: String,
    data: String,
    features: String,
    numbers: usize,
    examples: u64,
    /// On the labelled examples; none without labels.
    accuracy: Option<f64>,
}

#[derive(Serialize)]
struct Checked {
    model: String,
    data: String,
    examples: u64,
    windows: Vec<OneWindow>,
    streams: Vec<OneStream>,
}

#[derive(Serialize)]
struct OneWindow {
    /// Number of its first example.
    first: u64,
    #[serde(flatten)]
    report: Report,
    /// By labels; none without.
    accuracy_by_labels: Option<f64>,
}

#[derive(Serialize)]
struct OneStream {
    method: &'static str,
    watches: &'static str,
    /// Examples at which it found drift.
    drifts: Vec<u64>,
    /// Examples that it could not use.
    refused: u64,
}

fn reference(global: &Global, args: &MakeReference) -> CommandResult {
    let run =
        Run::open(global, &args.model, &args.dataset, args.split.as_deref().or(Some("test")), args.split.is_some())?;
    let at = args.at.clone().unwrap_or_else(|| run.scores.clone());
    let mut builder: Option<Builder> = None;
    let settings = |features: usize| Settings {
        model: run.digest.clone(),
        source: at.clone(),
        numbers: args.numbers,
        frequencies: args.frequencies,
        seed: args.seed,
        ..Settings::of(features, run.classes)
    };
    run.each(global, args.normalize.as_deref(), args.threads, &at, &mut |example| {
        let builder = match &mut builder {
            Some(builder) => builder,
            None => builder.insert(Builder::new(settings(example.features.len())).exit_with(ExitCode::Failure)?),
        };
        builder.push(example);
        Ok(())
    })?;
    let builder = builder.ok_or_else(|| CommandError::message(ExitCode::Failure, "the data set has no examples"))?;
    let reference = builder.finish().exit_with(ExitCode::Failure)?;
    let written = reference.write();
    std::fs::write(&args.out, &written).with_context(|| format!("cannot write {:?}", args.out))?;
    let made = Made {
        file: args.out.display().to_string(),
        bytes: written.len(),
        model: run.digest.clone(),
        data: args.dataset.clone(),
        features: at.clone(),
        numbers: reference.features().len(),
        examples: reference.examples(),
        accuracy: reference.calibration().map(|calibration| calibration.accuracy()),
    };
    global.output().data(&made, |m| {
        let accuracy = m.accuracy.map_or_else(|| "unknown: no labels".to_owned(), |a| format!("{:.2}%", 100.0 * a));
        format!(
            "reference   {} ({})\nmodel       {}\nfeatures    {} numbers of `{}`\nexamples    {}\naccuracy    {accuracy}\n",
            m.file,
            output::bytes(m.bytes as u64),
            m.model,
            m.numbers,
            m.features,
            m.examples
        )
    })
}

fn check(global: &Global, args: &Check) -> CommandResult {
    if args.window == 0 {
        return Err(usage("--window is 0; it must have examples"));
    }
    if !(args.alpha > 0.0 && args.alpha < 1.0) {
        return Err(usage(format!("--alpha is {}; it must be between 0 and 1", args.alpha)));
    }
    let read = || -> anyhow::Result<Vec<u8>> {
        let size = std::fs::metadata(&args.reference)?.len();
        anyhow::ensure!(size <= BYTES_MAX as u64, "a reference has at most {BYTES_MAX} bytes; this has {size}");
        Ok(std::fs::read(&args.reference)?)
    };
    let bytes = read().with_context(|| format!("cannot read {:?}", args.reference))?;
    let reference = Arc::new(Reference::read(&bytes).exit_with(ExitCode::Failure)?);
    let run = Run::open(global, &args.model, &args.dataset, args.split.as_deref(), true)?;
    if reference.model() != run.digest {
        let text = format!("the reference is of model {}, and this is {}", reference.model(), run.digest);
        return Err(CommandError::message(ExitCode::Failure, text).hint("make one of it: tierline drift reference"));
    }
    let mut streams = args.stream.iter().map(|name| Stream::new(name)).collect::<CommandResult<Vec<_>>>()?;
    let options = Options {
        alpha: args.alpha,
        correction: args.correction,
        examples_min: Options::default().examples_min.min(args.window),
        ..Options::default()
    };
    let mut window = Window::new(Arc::clone(&reference));
    let (mut windows, mut at, mut first) = (Vec::new(), 0u64, 0u64);
    let mut labelled = (0u64, 0u64);
    let mut close = |window: &mut Window, first: u64, (right, n): (u64, u64)| {
        let report = window.report(&options);
        window.clear();
        let accuracy_by_labels = (n > 0).then(|| right as f64 / n as f64);
        windows.push(OneWindow { first, report, accuracy_by_labels });
    };
    run.each(global, args.normalize.as_deref(), args.threads, reference.source(), &mut |example| {
        window.push(example);
        for stream in &mut streams {
            stream.update(at, example);
        }
        if let Some(right) = example.right {
            labelled = (labelled.0 + u64::from(right), labelled.1 + 1);
        }
        at += 1;
        if at - first == args.window {
            close(&mut window, first, labelled);
            (first, labelled) = (at, (0, 0));
        }
        Ok(())
    })?;
    if at > first {
        close(&mut window, first, labelled);
    }
    let checked = Checked {
        model: run.digest.clone(),
        data: args.dataset.clone(),
        examples: at,
        windows,
        streams: streams.into_iter().map(Stream::end).collect(),
    };
    global.output().data(&checked, told)
}

fn told(c: &Checked) -> String {
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let rows: Vec<Vec<String>> = c
        .windows
        .iter()
        .map(|OneWindow { first, report, accuracy_by_labels }| {
            let p = |test: Option<tierline_update::drift::window::Test>| {
                test.map_or_else(|| "-".to_owned(), |test| format!("{:.1e}", test.p))
            };
            vec![
                format!("{first}.."),
                report.examples.to_string(),
                match report.verdict {
                    Verdict::TooFew => "too few",
                    Verdict::Stable => "stable",
                    Verdict::Drift => "drift",
                }
                .to_owned(),
                p(report.confidence),
                p(report.classes),
                p(report.together),
                format!("{} of {}", report.changed, report.features.len()),
                report.estimate.map_or_else(|| "-".to_owned(), |e| percent(e.accuracy)),
                accuracy_by_labels.map_or_else(|| "-".to_owned(), percent),
            ]
        })
        .collect();
    let names = [
        "window",
        "examples",
        "verdict",
        "p confidence",
        "p classes",
        "p features",
        "changed",
        "expected right",
        "right by labels",
    ];
    let mut text = output::table(&names, &rows);
    if let Some(first) = c.windows.iter().find(|window| window.report.verdict == Verdict::Drift) {
        text.push_str(&format!("\nthe first window with drift, from example {}:\n{}", first.first, first.report));
    }
    for stream in &c.streams {
        let at: Vec<String> = stream.drifts.iter().take(10).map(u64::to_string).collect();
        let more = stream.drifts.len().saturating_sub(at.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let found = if at.is_empty() { "none".to_owned() } else { format!("at example {}{more}", at.join(", ")) };
        text.push_str(&format!("\n{} on {}: {found}", stream.method, stream.watches));
    }
    if !c.streams.is_empty() {
        text.push('\n');
    }
    text
}

/// A detector on what a model says, one example at a time.
struct Stream {
    method: Method,
    detector: Detector,
    drifts: Vec<u64>,
    left_out: u64,
}

impl Stream {
    fn new(name: &str) -> CommandResult<Self> {
        let method = Method::from_str(name).map_err(usage)?;
        let detector = Detector::new(&method, 1).exit_with(ExitCode::Failure)?;
        Ok(Self { method, detector, drifts: Vec::new(), left_out: 0 })
    }

    fn update(&mut self, at: u64, example: &Example<'_>) {
        let x = match self.method.domain() {
            Domain::Error => example.right.map(|right| f64::from(u8::from(!right))),
            Domain::Real | Domain::Unit => example.answer.map(|answer| 1.0 - answer.confidence),
        };
        match x.map(|x| self.detector.update(x)) {
            Some(Ok(State::Drift)) => self.drifts.push(at),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => self.left_out += 1,
        }
    }

    fn end(self) -> OneStream {
        let watches = match self.method.domain() {
            Domain::Error => "errors by labels",
            Domain::Real | Domain::Unit => "how unsure the model is",
        };
        OneStream { method: self.method.name(), watches, drifts: self.drifts, refused: self.left_out }
    }
}

/// A classifier and the data that it is asked about.
struct Run {
    engine: Arc<dyn tierline_engine::Engine>,
    model: tierline_graph::Model,
    digest: String,
    scores: String,
    classes: usize,
    data: Dataset,
}

impl Run {
    /// `split` is taken where the data has it; where it must have it, `named`.
    fn open(
        global: &Global,
        model: &std::path::Path,
        dataset: &str,
        split: Option<&str>,
        named: bool,
    ) -> CommandResult<Self> {
        let engine = engines::engine(global)?;
        let model = engines::load(global, model)?;
        let digest = models::digest_of(&model);
        let (value, form, classes, _) = answer(&model).exit_with(ExitCode::Failure)?;
        if form != Form::Class {
            let text =
                format!("`{}` has more than one answer for each example; drift is watched in classifiers", value.name);
            return Err(CommandError::message(ExitCode::Failure, text));
        }
        let whole = Datasets::of(&global.data_folder()).open(dataset).map_err(super::train::refused)?;
        let data = match split {
            Some(split) if named || whole.splits().contains(&split) => whole.named_split(split)?,
            _ => whole,
        };
        let classes = usize::try_from(classes).unwrap_or(usize::MAX);
        Ok(Self { engine, model, digest, scores: value.name, classes, data })
    }

    /// Calls `each` with every example, in the data's order; features are those
    /// of tensor `at`.
    fn each(
        &self,
        global: &Global,
        normalize: Option<&str>,
        threads: usize,
        at: &str,
        each: &mut dyn FnMut(&Example<'_>) -> CommandResult<()>,
    ) -> CommandResult<()> {
        let normalize = exits::normalize(normalize, &self.data)?;
        let batch = BatchOptions { size: 64, normalize, ..BatchOptions::default() };
        let load = LoadOptions::with_threads(threads);
        let with = Fitting { engine: Arc::clone(&self.engine), load, data: &self.data, batch };
        let tensors = if at == self.scores { vec![at] } else { vec![self.scores.as_str(), at] };
        let bar = global.output().progress(self.data.len() as u64, "asking the model");
        let mut failure = None;
        let asked = each_batch(&with, &self.model, &tensors, &mut |outputs, targets| {
            match rows(outputs, targets, each) {
                Ok(n) => bar.inc(n),
                Err(e) => failure = Some(e),
            }
            Ok(failure.is_none())
        });
        bar.finish_and_clear();
        if let Some(failure) = failure {
            return Err(failure);
        }
        Ok(asked?)
    }
}

/// Splits what a model gave for a batch into examples.
fn rows(
    outputs: &[Tensor],
    targets: &Tensor,
    each: &mut dyn FnMut(&Example<'_>) -> CommandResult<()>,
) -> CommandResult<u64> {
    let no_numbers =
        || CommandError::message(ExitCode::Failure, "the model's answer or features are no tensors of f32");
    let (scores, features) = match outputs {
        [scores] => (scores, scores),
        [scores, features, ..] => (scores, features),
        [] => return Err(no_numbers()),
    };
    let n = scores.shape().first().copied().unwrap_or(0);
    if n == 0 || features.shape().first() != Some(&n) {
        let text = "the features don't come one row for each example";
        return Err(CommandError::message(ExitCode::Failure, text).hint("another tensor: --at"));
    }
    let (score_values, feature_values) =
        (scores.as_f32().ok_or_else(no_numbers)?, features.as_f32().ok_or_else(no_numbers)?);
    let labels = targets.as_i64().filter(|labels| labels.len() == n);
    let (width, of_features) = (score_values.len() / n, feature_values.len() / n);
    for i in 0..n {
        let answer = Answer::of(&score_values[i * width..][..width]);
        let label = labels.and_then(|labels| usize::try_from(labels[i]).ok());
        each(&Example {
            features: &feature_values[i * of_features..][..of_features],
            answer,
            right: answer.zip(label).map(|(answer, label)| answer.class == label),
        })?;
    }
    Ok(n as u64)
}

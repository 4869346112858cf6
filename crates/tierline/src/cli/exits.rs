//! `tierline model add-exits`: early exits for a model, fitted and calibrated.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::builder::PossibleValuesParser;
use serde::Serialize;
use tierline_daemon::datasets::Datasets;
use tierline_daemon::models;
use tierline_engine::LoadOptions;
use tierline_graph::exits::{Calibration, Criterion, Exits, Head, Point, Rule, Wanted, attach, learned, spread};
use tierline_graph::{Model, Tensor, infer_types};
use tierline_plan::exits::calibrate::{Choice, Samples, accuracy, calibrate, choose, kept, measure};
use tierline_plan::exits::{Reading, classes, sureness};
use tierline_train::Event;
use tierline_train::chart::calibration_svg;
use tierline_train::data::{BatchOptions, Dataset, Normalize};
use tierline_train::exits::{self as fitting, Fitting, Training};

use super::aims::{self, Aim};
use super::infer::parse_time;
use super::{Global, args, engines, usage};
use crate::output::{self, CommandError, CommandResult, ExitCode, ExitWith};

/// Share of the examples that are held out where the data set has no test split.
const HELD_OUT: f64 = 0.2;

/// Points of the curve that are kept in the file.
const POINTS_KEPT: usize = 64;

#[derive(Debug, clap::Args)]
pub struct AddExits {
    /// The ONNX file; where it has exits already and neither --at nor --exits is given, they are calibrated anew
    model: PathBuf,
    /// Tensors that heads read, in the order in which they are computed; `\,` is a comma of a name
    #[arg(long, value_name = "T1[,T2...]", conflicts_with = "exits")]
    at: Option<String>,
    /// Choose this many tensors, spread over the model's multiply-adds; 2 unless said
    #[arg(long, value_name = "N")]
    exits: Option<usize>,
    /// The data set: its split `train` is learned from, its split `test` held out, or a fifth of it
    #[arg(long, value_name = "NAME")]
    dataset: String,
    /// What is fitted: the heads in closed form, the heads step by step, or all weights together
    #[arg(long, value_name = "WHAT", default_value = "closed", value_parser = ["closed", "heads", "all"])]
    fit: String,
    /// Units of a layer between a head's features and its scores (--fit heads or all)
    #[arg(long, value_name = "N", default_value_t = 0)]
    hidden: u64,
    /// What an exit's sureness is
    #[arg(long, value_name = "NAME", default_value = "entropy", value_parser = criteria())]
    criterion: String,
    /// Points of accuracy that may be lost against the model's end
    #[arg(long, value_name = "POINTS", default_value_t = 0.5)]
    loss: f64,
    /// Multiply-adds of the average example at most, in percent of the model's, in place of a bound on accuracy
    #[arg(long, value_name = "PERCENT", conflicts_with_all = ["loss", "latency", "bytes"])]
    cost: Option<f64>,
    /// Time of the average example on this device at most, as in `500 us`, in place of a bound on accuracy
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with_all = ["loss", "bytes"])]
    latency: Option<Duration>,
    /// Bytes of the average example that go on behind the last exit at most, in percent of its input's,
    /// in place of a bound on accuracy
    #[arg(long, value_name = "PERCENT", conflicts_with = "loss")]
    bytes: Option<f64>,
    /// Where the model with exits goes
    #[arg(long, value_name = "FILE.onnx")]
    out: PathBuf,
    /// Draw accuracy over multiply-adds into this file
    #[arg(long, value_name = "FILE.svg")]
    curve: Option<PathBuf>,
    /// What the model takes out of its input: `measured` on the training examples, or MEAN,..:STD,..
    #[arg(long, value_name = "NUMBERS")]
    normalize: Option<String>,
    /// How often every example is seen (--fit heads or all)
    #[arg(long, value_name = "N", default_value_t = 3)]
    epochs: u64,
    /// Learning rate of Adam, which falls to 0 (--fit heads or all)
    #[arg(long = "lr", value_name = "X", default_value_t = 0.001)]
    rate: f64,
    /// Examples of a batch
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch: usize,
    /// Decides the order of examples, and which half of those held out thresholds are found on
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads; every core unless said
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

#[derive(Serialize)]
struct Report {
    file: String,
    digest: String,
    data: String,
    /// What was fitted; none where the file's own exits were calibrated.
    fit: Option<String>,
    criterion: Criterion,
    /// What answers are held against: the data's classes, or what the end says.
    against: &'static str,
    fitted_on: usize,
    calibrated_on: usize,
    checked_on: usize,
    /// Multiply-adds of the model without exits.
    macs: u64,
    exits: Vec<ExitLine>,
    /// On the half that thresholds were found on.
    calibrated: Outcome,
    /// On the half that had no part in it.
    checked: Outcome,
    curve: Option<String>,
}

#[derive(Serialize)]
struct ExitLine {
    output: String,
    /// The tensor that its head reads; none of exits that came with the file.
    tensor: Option<String>,
    threshold: Option<f64>,
    /// Share of the examples that leave here.
    leave: f64,
    /// Of those, the share of right answers.
    accuracy_of_those: Option<f64>,
    /// Share of right answers if everybody left here.
    accuracy: f64,
    /// Multiply-adds until here and of the head.
    macs: u64,
    head_macs: u64,
}

#[derive(Serialize)]
struct Outcome {
    /// Of the model's end alone.
    accuracy_end: f64,
    accuracy: f64,
    points_lost: f64,
    /// Of the average example.
    macs: f64,
    /// Of the multiply-adds without exits.
    share: f64,
    /// Time of the average example on this device, where that was bounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ns: Option<f64>,
    /// Bytes of the average example that go on, where they were bounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<f64>,
}

/// Criteria by name.
fn criteria() -> PossibleValuesParser {
    PossibleValuesParser::new(Criterion::ALL.map(Criterion::name))
}

pub fn add_exits(global: &Global, args: &AddExits) -> CommandResult {
    let criterion = Criterion::by_name(&args.criterion).unwrap_or(Criterion::Entropy);
    let aim = aim(args)?;
    let engine = engines::engine(global)?;
    let model = models::for_training(engines::load(global, &args.model)?, &engine)?;
    let exits = Exits::of(&model).exit_with(ExitCode::Failure)?;
    if args.fit == "closed" && args.hidden > 0 {
        return Err(usage("--hidden needs steps; add --fit heads or --fit all"));
    }
    let (seen, held_out) = data(global, &args.dataset, args.seed)?;
    let normalize = normalize(args.normalize.as_deref(), &seen)?;
    let batch = BatchOptions { size: args.batch, seed: args.seed, normalize, ..BatchOptions::default() };
    let load = LoadOptions::with_threads(args.threads);
    let with = Fitting { engine: engine.clone(), load: load.clone(), data: &seen, batch: batch.clone() };
    let calibrates = exits.is_some() && args.at.is_none() && args.exits.is_none();
    if exits.is_some() && !calibrates {
        let text = format!("{} has exits already", args.model.display());
        return Err(usage(text).hint("leave --at and --exits away to calibrate those"));
    }
    let (model, mut exits, heads) = match exits {
        Some(exits) => (model, exits, Vec::new()),
        None => fitted(global, args, criterion, &with, &model)?,
    };
    if criterion == Criterion::Learned && exits.exits.iter().any(|exit| exit.sureness.is_none()) {
        let text = "the file's exits have no output that says how sure they are; a learned criterion needs one of each";
        return Err(CommandError::message(ExitCode::Failure, text).hint("--criterion entropy"));
    }

    let held = Fitting { data: &held_out, ..with };
    let costs = aims::macs(&model, &exits, &held_out)?;
    let (aimed, target) =
        aim.costs(&engine, &exits.write(&model).exit_with(ExitCode::Failure)?, &held_out, &load, &costs)?;
    let (samples, against) = samples(&held, &model, &exits, criterion)?;
    let (find, check) = halves(&samples, args.seed);
    let curve = calibrate(&find, &costs, criterion).exit_with(ExitCode::Failure)?;
    let end = accuracy(&find.end);
    let within =
        if aimed == costs { None } else { Some(calibrate(&find, &aimed, criterion).exit_with(ExitCode::Failure)?) };
    let within = within.as_ref().unwrap_or(&curve);
    let chosen = choose(within, end, target).ok_or_else(|| {
        let least = within.first().map_or(100.0, |c| 100.0 * c.cost / aimed.end);
        let words = within.first().and_then(|c| aim.words(c.cost)).map_or_else(String::new, |w| format!(", {w}"));
        CommandError::message(
            ExitCode::Failure,
            format!("no choice of thresholds costs that little; the least is {least:.0}% of going to the end{words}"),
        )
    })?;
    let chosen = measure(&find, &costs, &chosen.thresholds).exit_with(ExitCode::Failure)?;
    let checked = measure(&check, &costs, &chosen.thresholds).exit_with(ExitCode::Failure)?;
    for (exit, threshold) in exits.exits.iter_mut().zip(&chosen.thresholds) {
        exit.rule = threshold.map(|threshold| Rule { criterion, threshold });
    }
    let points = kept(&curve, &chosen, POINTS_KEPT).into_iter().map(|choice| {
        let seen = measure(&check, &costs, &choice.thresholds).exit_with(ExitCode::Failure)?;
        Ok(Point { thresholds: seen.thresholds, accuracy: seen.accuracy, leave: seen.leave, macs: seen.cost })
    });
    let calibration = Calibration {
        data: args.dataset.clone(),
        examples: check.end.len() as u64,
        criterion,
        accuracy: accuracy(&check.end),
        macs: costs.end,
        points: points.collect::<CommandResult<_>>()?,
    };
    if let Some(path) = &args.curve {
        std::fs::write(path, calibration_svg(&calibration)).with_context(|| format!("cannot write {path:?}"))?;
    }
    exits.calibration = Some(calibration);
    let model = exits.write(&model).exit_with(ExitCode::Failure)?;
    model.save(&args.out)?;

    let outcome = |samples: &Samples, choice: &Choice| -> CommandResult<Outcome> {
        let accuracy_end = accuracy(&samples.end);
        let points_lost = 100.0 * (accuracy_end - choice.accuracy);
        let (macs, share) = (choice.cost, choice.cost / costs.end);
        let average = measure(samples, &aimed, &choice.thresholds).exit_with(ExitCode::Failure)?.cost;
        let latency_ns = matches!(aim, Aim::Latency(_)).then_some(average);
        let bytes = matches!(aim, Aim::Bytes(_)).then_some(average);
        Ok(Outcome { accuracy_end, accuracy: choice.accuracy, points_lost, macs, share, latency_ns, bytes })
    };
    let judged = exits.judged(&model).exit_with(ExitCode::Failure)?;
    let line = |i: usize| ExitLine {
        output: exits.exits[i].outputs[&judged].clone(),
        tensor: heads.get(i).map(|head| head.tensor.clone()),
        threshold: chosen.thresholds[i],
        leave: checked.leave[i],
        accuracy_of_those: checked.right[i],
        accuracy: accuracy(&check.right[i]),
        macs: (costs.before[i] + costs.heads[i]) as u64,
        head_macs: costs.heads[i] as u64,
    };
    let report = Report {
        file: args.out.display().to_string(),
        digest: models::digest_of(&model),
        data: args.dataset.clone(),
        fit: (!calibrates).then(|| args.fit.clone()),
        criterion,
        against,
        fitted_on: if calibrates { 0 } else { seen.len() },
        calibrated_on: find.end.len(),
        checked_on: check.end.len(),
        macs: costs.end as u64,
        exits: (0..exits.exits.len()).map(line).collect(),
        calibrated: outcome(&find, &chosen)?,
        checked: outcome(&check, &checked)?,
        curve: args.curve.as_ref().map(|path| path.display().to_string()),
    };
    global.output().data(&report, |report| told(report, aim))
}

fn told(r: &Report, aim: Aim) -> String {
    let percent = |share: f64| format!("{:.2}%", 100.0 * share);
    let rows: Vec<Vec<String>> = r
        .exits
        .iter()
        .map(|e| {
            vec![
                e.output.clone(),
                e.tensor.clone().unwrap_or_else(|| "-".to_owned()),
                e.threshold.map_or("unused".to_owned(), |t| format!("{t:.4}")),
                percent(e.leave),
                e.accuracy_of_those.map_or("-".to_owned(), percent),
                percent(e.accuracy),
                output::count(e.macs),
                output::count(e.head_macs),
            ]
        })
        .collect();
    let names =
        ["exit", "tensor", "threshold", "leave", "right of those", "right of all", "multiply-adds", "of the head"];
    let mut text = output::table(&names, &rows);
    let outcome = |o: &Outcome| {
        let more = o.latency_ns.or(o.bytes).and_then(|cost| aim.words(cost));
        format!(
            "accuracy {} ({} at the end alone, {:.2} points lost), {} of {} multiply-adds ({}){}",
            percent(o.accuracy),
            percent(o.accuracy_end),
            o.points_lost,
            output::count(o.macs as u64),
            output::count(r.macs),
            percent(o.share),
            more.map_or_else(String::new, |more| format!(", {more}"))
        )
    };
    let _ = write!(
        text,
        "\ncalibrated  {} on {} examples\nchecked     {} on {} others\nright means {}\nmodel       {}\ndigest      {}\n",
        outcome(&r.calibrated),
        r.calibrated_on,
        outcome(&r.checked),
        r.checked_on,
        r.against,
        r.file,
        r.digest
    );
    if let Some(curve) = &r.curve {
        let _ = writeln!(text, "curve       {curve}");
    }
    text
}

/// What thresholds must keep to.
fn aim(args: &AddExits) -> CommandResult<Aim> {
    let share = |percent: f64, option: &str| match (0.0..=100.0).contains(&percent) {
        true => Ok(percent / 100.0),
        false => Err(usage(format!("{option} is {percent}; it must be 0 to 100"))),
    };
    Ok(match (args.cost, args.latency, args.bytes) {
        (Some(cost), ..) => Aim::Macs(share(cost, "--cost")?),
        (None, Some(latency), _) => Aim::Latency(latency),
        (None, None, Some(bytes)) => Aim::Bytes(share(bytes, "--bytes")?),
        (None, None, None) => Aim::Loss(share(args.loss, "--loss")?),
    })
}

/// What is learned from, and what is held out.
pub(super) fn data(global: &Global, name: &str, seed: u64) -> CommandResult<(Dataset, Dataset)> {
    let whole = Datasets::of(&global.data_folder()).open(name).map_err(super::train::refused)?;
    if whole.splits().contains(&"test") {
        let seen = if whole.splits().contains(&"train") { whole.named_split("train")? } else { whole.clone() };
        return Ok((seen, whole.named_split("test")?));
    }
    let (held_out, seen) = whole.split(HELD_OUT, seed).exit_with(ExitCode::Configuration)?;
    Ok((seen, held_out))
}

pub(super) fn normalize(text: Option<&str>, seen: &Dataset) -> CommandResult<Option<Normalize>> {
    let Some(text) = text else { return Ok(None) };
    if text == "measured" {
        return Ok(Some(Normalize::of(seen)));
    }
    let numbers = |list: &str| list.split(',').map(|n| n.trim().parse::<f32>().ok()).collect::<Option<Vec<f32>>>();
    let stated = text.split_once(':').and_then(|(mean, std)| Some((numbers(mean)?, numbers(std)?)));
    let (mean, std) =
        stated.ok_or_else(|| usage("--normalize is `measured`, or means and deviations as in 0.5:0.25"))?;
    Ok(Some(Normalize { mean, std }))
}

/// A model with heads, fitted.
fn fitted(
    global: &Global,
    args: &AddExits,
    criterion: Criterion,
    with: &Fitting<'_>,
    model: &Model,
) -> CommandResult<(Model, Exits, Vec<Head>)> {
    let types = infer_types(model)?;
    let at = match &args.at {
        Some(text) => args::split_names(text, &|name| types.get(name).is_some())?,
        None => spread(model, args.exits.unwrap_or(2)).exit_with(ExitCode::Failure)?,
    };
    let hint = format!("tierline model inspect {}", args.model.display());
    let wanted = Wanted { at, hidden: args.hidden };
    let (mut model, mut exits, mut heads) =
        attach(model, &wanted).map_err(|e| CommandError::new(ExitCode::Failure, e).hint(hint))?;
    if args.hidden == 0 {
        model = fitting::closed(with, &model, &exits, &heads)?;
    }
    if args.fit != "closed" {
        let training =
            Training { epochs: args.epochs, rate: args.rate, with_trunk: args.fit == "all", seed: args.seed };
        let bar = global.output().progress(args.epochs, "fitting exits");
        let trained = fitting::train(with, &model, &exits, &heads, &training, &mut |event| {
            if let Event::Epoch(epoch) = event {
                bar.set_position(epoch.epoch);
                bar.set_message(format!("loss {:.4}", epoch.loss));
            }
            Ok(())
        });
        bar.finish_and_clear();
        model = trained?;
    }
    if criterion == Criterion::Learned {
        (model, exits) = learned(&model, &exits, &mut heads).exit_with(ExitCode::Failure)?;
        model = fitting::sureness(with, &model, &exits, &heads)?;
    }
    Ok((model, exits, heads))
}

/// What every example held out says at each exit and at the end, and what
/// counts as right.
fn samples(
    with: &Fitting<'_>,
    model: &Model,
    exits: &Exits,
    criterion: Criterion,
) -> CommandResult<(Samples, &'static str)> {
    let judged = exits.judged(model).exit_with(ExitCode::Failure)?;
    let mut names: Vec<&str> = exits.exits.iter().map(|exit| exit.outputs[&judged].as_str()).collect();
    names.push(&judged);
    let learned = exits.exits.iter().filter_map(|exit| exit.sureness.as_deref());
    names.extend(learned.filter(|_| criterion == Criterion::Learned));
    let (tensors, targets) = fitting::answers(with, model, &names)?;
    let reading = Reading { axis: exits.axis, scores: exits.scores };
    let count = exits.exits.len();
    let said: Vec<Vec<Vec<Option<usize>>>> = tensors[..=count]
        .iter()
        .map(|tensor| classes(tensor, reading))
        .collect::<Result<_, _>>()
        .exit_with(ExitCode::Failure)?;
    let one = said[count].iter().all(|places| places.len() == 1) && targets.iter().any(Option::is_some);
    let share = |own: &[Vec<Option<usize>>]| -> Vec<f64> {
        let of = |example: usize| {
            if one {
                let class = own[example][0];
                return f64::from(u8::from(class.is_some() && class == targets[example]));
            }
            let end = &said[count][example];
            let same = own[example].iter().zip(end).filter(|(a, b)| a.is_some() && a == b).count();
            same as f64 / end.len().max(1) as f64
        };
        (0..targets.len()).map(of).collect()
    };
    let sureness = (0..count)
        .map(|exit| match criterion {
            Criterion::Learned => Ok(says(&tensors[count + 1 + exit])),
            Criterion::Patience => Ok(Vec::new()),
            criterion => sureness(&tensors[exit], reading, criterion),
        })
        .collect::<Result<Vec<_>, _>>()
        .exit_with(ExitCode::Failure)?;
    let sureness = if criterion == Criterion::Patience { in_a_row(&said[..count]) } else { sureness };
    let samples =
        Samples { sureness, right: said[..count].iter().map(|s| share(s)).collect(), end: share(&said[count]) };
    Ok((samples, if one { "the class of the data set" } else { "the class that the model's end says" }))
}

/// What a learned output says of each example.
fn says(output: &Tensor) -> Vec<f64> {
    output.as_f32().unwrap_or_default().iter().map(|&v| f64::from(v)).collect()
}

/// For each exit, how many in a row said the same of each example, itself
/// included.
fn in_a_row(said: &[Vec<Vec<Option<usize>>>]) -> Vec<Vec<f64>> {
    let mut counts: Vec<Vec<f64>> = Vec::with_capacity(said.len());
    for (exit, own) in said.iter().enumerate() {
        let count = |example: usize| {
            if own[example].iter().any(Option::is_none) {
                return 0.0;
            }
            let same = exit > 0 && said[exit - 1][example] == own[example];
            if same { counts[exit - 1][example] + 1.0 } else { 1.0 }
        };
        let here = (0..own.len()).map(count).collect();
        counts.push(here);
    }
    counts
}

/// Two halves of the examples, drawn by a seed.
fn halves(samples: &Samples, seed: u64) -> (Samples, Samples) {
    let mut order: Vec<usize> = (0..samples.end.len()).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    let (find, check) = order.split_at(order.len().div_ceil(2));
    let of = |examples: &[usize]| {
        let taken = |list: &Vec<f64>| examples.iter().map(|&e| list[e]).collect::<Vec<f64>>();
        Samples {
            sureness: samples.sureness.iter().map(taken).collect(),
            right: samples.right.iter().map(taken).collect(),
            end: taken(&samples.end),
        }
    };
    (of(find), of(check))
}

//! `tierline model calibrate`: thresholds of a cascade from examples with labels.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tierline_daemon::datasets::Datasets;
use tierline_daemon::models::Manifest;
use tierline_daemon::services::{From, Wiring};
use tierline_graph::Tensor;
use tierline_graph::exits::Criterion;
use tierline_plan::exits::calibrate::{Choice, Costs, Samples, Target, calibrate, choose, kept};
use tierline_plan::exits::{classes, sureness};
use tierline_plan::service::{Curve, CurvePoint, Kind, Member, POINTS_MAX, Service};
use tierline_proto::v1::local_client::LocalClient;
use tierline_proto::v1::{ModelShowRequest, Placement};
use tierline_train::data::{BatchOptions, Batches, Dataset, Position};
use tonic::transport::Channel;

use super::infer::{self, Wanted, ask};
use super::{Global, block_on, client, usage};
use crate::output::{self, CommandError, CommandResult, ExitCode, ExitWith};

/// A threshold that no answer reaches.
const NEVER: f64 = 2.0;

#[derive(Debug, clap::Args)]
pub struct Calibrate {
    /// The cascade's TOML file; its models are asked at the node
    service: PathBuf,
    /// The data set: its split `test`, or all of it; bytes of pictures are taken from 0 to 1
    #[arg(long, value_name = "NAME")]
    dataset: String,
    /// Points of accuracy that may be lost against the last model alone
    #[arg(long, default_value_t = 0.5, value_name = "POINTS")]
    loss: f64,
    /// Look at so many examples at most, drawn at random
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    examples: usize,
    /// Write the service with its new thresholds and their curve, without the comments of the first file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Decides which examples are drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Time for each answer
    #[arg(long, default_value = "30 s", value_parser = infer::parse_time, value_name = "TIME")]
    deadline: Duration,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

#[derive(Serialize)]
struct Calibrated {
    dataset: String,
    examples: usize,
    /// Of the last model alone.
    accuracy: f64,
    chosen: Line,
    curve: Vec<Line>,
}

#[derive(Serialize, Clone)]
struct Line {
    thresholds: Vec<f64>,
    accuracy: f64,
    /// Share of the examples that each member answers.
    answered: Vec<f64>,
    /// Multiply-adds of the average example.
    macs: f64,
}

impl Line {
    fn of(choice: &Choice) -> Self {
        let last = 1.0 - choice.leave.iter().sum::<f64>();
        Self {
            thresholds: choice.thresholds.iter().map(|threshold| threshold.unwrap_or(NEVER)).collect(),
            accuracy: choice.accuracy,
            answered: choice.leave.iter().copied().chain([last.max(0.0)]).collect(),
            macs: choice.cost,
        }
    }
}

pub fn calibrate_service(global: &Global, args: &Calibrate) -> CommandResult {
    let text = std::fs::read_to_string(&args.service)
        .map_err(|e| anyhow::anyhow!("{}: {e}", args.service.display()))
        .exit_with(ExitCode::Usage)?;
    let mut service = Service::parse(&text)
        .map_err(|e| anyhow::anyhow!("{}: {e}", args.service.display()))
        .exit_with(ExitCode::Configuration)?;
    if service.kind != Kind::Cascade {
        return Err(usage(format!("thresholds are a cascade's; this is of kind {}", service.kind.word())));
    }
    if !(0.0..=100.0).contains(&args.loss) {
        return Err(usage("--loss is in points, from 0 to 100"));
    }
    let data = drawn(global, args)?;
    let (samples, costs) = block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        asked(global, &mut node, args, &service, &data).await
    })?;
    let end = samples.end.iter().sum::<f64>() / samples.end.len().max(1) as f64;
    let curve = calibrate(&samples, &costs, Criterion::Confidence).exit_with(ExitCode::Failure)?;
    let chosen = choose(&curve, end, Target::Loss(args.loss / 100.0)).ok_or_else(|| {
        CommandError::message(ExitCode::Failure, "no thresholds keep that accuracy on these examples")
    })?;
    let points = kept(&curve, chosen, POINTS_MAX).into_iter().map(Line::of).map(|line| CurvePoint {
        thresholds: line.thresholds,
        accuracy: line.accuracy,
        answered: line.answered,
    });
    let points = points.collect();
    let chosen = Line::of(chosen);
    for (member, threshold) in service.members.iter_mut().zip(&chosen.thresholds) {
        member.threshold = Some(*threshold);
    }
    let lines: Vec<Line> = curve.iter().map(Line::of).collect();
    let (name, count) = (args.dataset.clone(), data.len());
    service.calibration = Some(Curve { data: name.clone(), examples: count as u64, accuracy: end, points });
    if let Some(out) = &args.out {
        let text = service.write().exit_with(ExitCode::Failure)?;
        std::fs::write(out, text)
            .map_err(|e| anyhow::anyhow!("cannot write {}: {e}", out.display()))
            .exit_with(ExitCode::Failure)?;
    }
    let calibrated = Calibrated { dataset: name, examples: count, accuracy: end, chosen, curve: lines };
    global.output().data(&calibrated, |c| {
        let mut text = format!(
            "{} examples of {}; the last model alone is right in {:.2}%\n\n",
            c.examples,
            c.dataset,
            c.accuracy * 100.0
        );
        let row = |line: &Line| {
            let join =
                |numbers: &[f64], each: fn(&f64) -> String| numbers.iter().map(each).collect::<Vec<_>>().join(" ");
            vec![
                if line.thresholds == c.chosen.thresholds { "*" } else { "" }.to_owned(),
                join(&line.thresholds, |t| if *t > 1.0 { "never".to_owned() } else { format!("{t:.4}") }),
                format!("{:.2}%", line.accuracy * 100.0),
                join(&line.answered, |share| format!("{:.1}%", share * 100.0)),
                output::count(line.macs as u64),
            ]
        };
        let rows: Vec<Vec<String>> = c.curve.iter().map(row).collect();
        text.push_str(&output::table(&["", "thresholds", "accuracy", "answered by each", "multiply-adds"], &rows));
        text
    })
}

/// The examples that are looked at.
fn drawn(global: &Global, args: &Calibrate) -> CommandResult<Dataset> {
    let whole = Datasets::of(&global.data_folder()).open(&args.dataset);
    let whole = whole.map_err(|e| CommandError::new(ExitCode::Failure, e))?;
    let data = if whole.splits().contains(&"test") { whole.named_split("test")? } else { whole };
    if data.classes().is_none() {
        return Err(usage(format!("the targets of `{}` are no classes; thresholds need them", args.dataset)));
    }
    let mut all: Vec<usize> = (0..data.len()).collect();
    fastrand::Rng::with_seed(args.seed).shuffle(&mut all);
    all.truncate(args.examples.max(1));
    Ok(data.subset(&all)?)
}

/// What every model says of every example, and what they cost.
async fn asked(
    global: &Global,
    node: &mut LocalClient<Channel>,
    args: &Calibrate,
    service: &Service,
    data: &Dataset,
) -> CommandResult<(Samples, Costs)> {
    let mut manifests = Vec::new();
    for member in &service.members {
        let request = ModelShowRequest { model: member.model.clone() };
        let shown = node.model_show(request).await.map_err(|s| client::refused(&s))?.into_inner();
        if shown.manifest_json.is_empty() {
            return Err(usage(format!("member `{}` is a service; members are models", member.model)));
        }
        manifests.push(serde_json::from_str::<Manifest>(&shown.manifest_json)?);
    }
    let wiring = Wiring::of(service, &manifests).map_err(|text| CommandError::message(ExitCode::Failure, text))?;
    let [input] = &wiring.inputs[..] else {
        let names: Vec<&str> = wiring.inputs.iter().map(|input| input.name.as_str()).collect();
        return Err(usage(format!("a data set has one input; the service takes {}", names.join(", "))));
    };
    let last = service.members.len() - 1;
    let mut samples = Samples { sureness: vec![Vec::new(); last], right: vec![Vec::new(); last], end: Vec::new() };
    let options = BatchOptions { size: 1, shuffle: false, ..BatchOptions::default() };
    let batches = Batches::start(data, &options.for_evaluation(), Position::default(), 1)?;
    for (done, batch) in batches.enumerate() {
        let label = batch.targets.as_i64().and_then(|classes| classes.first().copied());
        let shape = shaped(input.shape.as_deref(), batch.features.shape());
        let (_, elements) = batch.features.into_parts();
        let features = Tensor::new(shape, elements)?;
        for (place, member) in service.members.iter().enumerate() {
            let named = wiring.feeds[place].iter().filter(|(_, from)| matches!(from, From::Input(_)));
            let inputs: Vec<(String, Tensor)> = named.map(|(own, _)| (own.name.clone(), features.clone())).collect();
            let answer = ask(node, &member.model, &inputs, args.deadline, &Wanted::at(Placement::Plan)).await?;
            let (sure, class) = read(member, &answer.outputs)?;
            let right = f64::from(u8::from(class.is_some() && class == label));
            if place == last {
                samples.end.push(right);
            } else {
                samples.sureness[place].push(sure);
                samples.right[place].push(right);
            }
        }
        if (done + 1) % 100 == 0 {
            global.output().say(format!("{} of {} examples", done + 1, data.len()));
        }
    }
    // Each that is asked costs its own, and those before it were asked as well.
    let mut sum = 0.0;
    let mut costs = manifests.iter().map(|manifest| {
        sum += manifest.macs.map_or(1.0, |macs| macs as f64);
        sum
    });
    let before: Vec<f64> = costs.by_ref().take(last).collect();
    let end = costs.next().unwrap_or_default();
    Ok((samples, Costs { heads: vec![0.0; last], before, end }))
}

/// The shape that a model takes an example in: its own, where that holds as many numbers.
fn shaped(wanted: Option<&[tierline_graph::Dim]>, given: &[usize]) -> Vec<usize> {
    let axes = wanted.unwrap_or_default().iter().enumerate();
    let wanted: Option<Vec<usize>> =
        axes.map(|(at, axis)| if at == 0 { Some(1) } else { axis.known().map(|n| n as usize) }).collect();
    let count: usize = given.iter().product();
    wanted
        .filter(|shape| !shape.is_empty() && shape.iter().product::<usize>() == count)
        .unwrap_or_else(|| given.to_vec())
}

/// How sure a model is of one example, and which class it says.
fn read(member: &Member, outputs: &[(String, Tensor)]) -> CommandResult<(f64, Option<i64>)> {
    let wrong = |e: &dyn std::fmt::Display| {
        CommandError::message(ExitCode::Failure, format!("member `{}` can't be judged: {e}", member.name()))
    };
    let judged = member.judged(outputs).map_err(|e| wrong(&e))?;
    let criterion = member.criterion.unwrap_or(Criterion::Confidence);
    let sure = sureness(judged, member.reading(), criterion).map_err(|e| wrong(&e))?;
    let said = classes(judged, member.reading()).map_err(|e| wrong(&e))?;
    match (&sure[..], &said[..]) {
        ([sure], [places]) if places.len() == 1 => Ok((*sure, places[0].map(|class| class as i64))),
        _ => Err(wrong(&"it doesn't say one class for each example")),
    }
}

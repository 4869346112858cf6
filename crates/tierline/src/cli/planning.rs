//! `tierline profile`, `tierline plan`, `tierline explain`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tierline_daemon::config::Factor;
use tierline_daemon::models::{self, Manifest, Prepared};
use tierline_daemon::profiling::{Measuring, Work};
use tierline_engine::Stop;
use tierline_engine::profiler::ProgressListener;
use tierline_graph::profile::{CutProfile, DeviceProfile, ModelProfile, TensorProfile};
use tierline_plan::problem::{Problem, Solution};
use tierline_plan::{Explanation, Limits, PlanError, Site};
use tierline_proto::v1::{Empty, PlanRequest as NodePlanRequest, ProfileRequest};
use tierline_store::disk;

use super::{Global, block_on, client, engines, usage};
use crate::output::{self, CommandError, CommandResult, ExitCode, ExitWith, Output};

#[derive(Debug, clap::Args)]
pub struct Profile {
    /// A model's name on a node, or an ONNX file to measure right here
    model: String,
    /// Keep the profile in a file (.toml or .json), beside those of other models
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// This device's name in the file
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// State the profile of a device so many times slower
    #[arg(long, value_name = "FACTOR", default_value = "1")]
    scale: Factor<0>,
    /// Threads within an operator; 0 takes every core (with a file)
    #[arg(long, default_value = "0")]
    threads: usize,
    /// Fix an input's free axes: NAME=1,3,224,224 (with a file)
    #[arg(long = "shape", value_name = "NAME=DIMS")]
    shapes: Vec<String>,
    /// A real input to measure with: NAME=@FILE.npy (with a file)
    #[arg(long = "sample", value_name = "NAME=@FILE")]
    samples: Vec<String>,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

fn is_file(model: &str) -> bool {
    let path = Path::new(model);
    path.extension().is_some_and(|e| e == "onnx") || path.is_file()
}

pub fn profile(global: &Global, args: &Profile) -> CommandResult {
    let measured = if is_file(&args.model) { profile_file(global, args)? } else { profile_on_node(global, args)? };
    let (engine, profile) = measured;
    let digest = profile.model.clone();
    let device = DeviceProfile {
        device: args.device.clone().unwrap_or_else(super::node::host_name),
        engine,
        threads: args.threads,
        scale: 1.0,
        models: BTreeMap::from([(digest.clone(), profile)]),
    };
    let name = device.device.clone();
    let device = if args.scale == Factor::ONE { device } else { device.scaled(&name, args.scale.get()) };
    if let Some(path) = &args.out {
        keep_profile(path, device.clone())?;
        global.output().say(format!("kept in {}", path.display()));
    }
    let profile = device.models.get(&digest).cloned().unwrap_or_else(|| unreachable!("it was put there above"));
    global.output().data(&profile, profile_text)
}

/// Measures a file on this device.
fn profile_file(global: &Global, args: &Profile) -> CommandResult<(String, ModelProfile)> {
    let engine = engines::engine(global)?;
    let samples = super::args::tensors(&args.samples)?;
    let (prepared, manifest) = prepare(global, Path::new(&args.model), &engine, &args.shapes, &samples)?;
    let mut inputs = Vec::new();
    for input in &manifest.inputs {
        let given = samples.iter().find(|(name, _)| *name == input.name);
        let shape = manifest.input_shapes.get(&input.name).cloned().unwrap_or_default();
        let dtype = input.dtype.unwrap_or(tierline_graph::DataType::F32);
        let tensor = match given {
            Some((_, tensor)) => tensor.clone(),
            None => tierline_daemon::profiling::synthetic(dtype, &shape).map_err(usage)?,
        };
        inputs.push((input.name.clone(), tensor));
    }
    let work = Work { engine: Arc::clone(&engine), model: &prepared.model, manifest: &manifest, inputs: &inputs };
    let steps = Arc::new(Steps::new(global));
    let shown = Arc::clone(&steps);
    let progress = ProgressListener::new(move |p| shown.at((p.done * 100.0) as u64, &p.phase.to_string()));
    let load = tierline_engine::LoadOptions::with_threads(args.threads);
    let profile =
        tierline_daemon::profiling::measure(&work, Measuring { load, slowdown: 1.0, progress, stop: Stop::never() })?;
    steps.bar.finish_and_clear();
    Ok((format!("{} {}", engine.name(), engine.version()), profile))
}

fn profile_on_node(global: &Global, args: &Profile) -> CommandResult<(String, ModelProfile)> {
    let mut found = None;
    block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let status = node.status(Empty {}).await.map_err(|s| client::refused(&s))?.into_inner();
        let request = ProfileRequest { model: args.model.clone(), ..ProfileRequest::default() };
        let mut stream = node.profile(request).await.map_err(|s| client::refused(&s))?.into_inner();
        let steps = Steps::new(global);
        let mut json = String::new();
        while let Some(progress) = stream.message().await.map_err(|s| client::refused(&s))? {
            steps.at(u64::from(progress.done), &progress.step);
            json = progress.profile_json;
        }
        steps.bar.finish_and_clear();
        found = Some((format!("{} {}", status.engine, status.engine_version), serde_json::from_str(&json)?));
        Ok(())
    })?;
    found.ok_or_else(|| CommandError::message(ExitCode::Failure, "the node sent no profile"))
}

/// Between two lines about a measurement where no bar can be drawn.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// How far a measurement is: a bar on a terminal, a line now and then elsewhere.
struct Steps {
    output: Output,
    bar: indicatif::ProgressBar,
    said: Mutex<Instant>,
}

impl Steps {
    fn new(global: &Global) -> Self {
        let output = global.output();
        Self { output, bar: output.progress(100, "measuring"), said: Mutex::new(Instant::now()) }
    }

    fn at(&self, percent: u64, step: &str) {
        if !self.bar.is_hidden() {
            self.bar.set_message(tierline_daemon::words::shown(step));
            self.bar.set_position(percent);
            return;
        }
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.elapsed() >= SAY_EVERY {
            *said = Instant::now();
            self.output.say(format!("measuring: {percent} %, {step}"));
        }
    }
}

/// A model file prepared as nodes prepare it, with its manifest.
fn prepare(
    global: &Global,
    path: &Path,
    engine: &Arc<dyn tierline_engine::Engine>,
    shapes: &[String],
    samples: &[(String, tierline_graph::Tensor)],
) -> CommandResult<(Prepared, Manifest)> {
    let prepared = engines::prepared(global, path, engine)?;
    let mut given = super::args::shapes(shapes)?;
    for (name, tensor) in samples {
        given.insert(name.clone(), tensor.shape().iter().map(|&d| d as u64).collect());
    }
    let shapes = models::profile_shapes(&prepared, given)?;
    let manifest = prepared.manifest("", String::new(), shapes, 0)?;
    Ok((prepared, manifest))
}

/// Adds to the profiles in a file, or begins one.
fn keep_profile(path: &Path, mut device: DeviceProfile) -> CommandResult {
    if path.exists() {
        let known = read_profile(path)?;
        for (digest, profile) in known.models {
            device.models.entry(digest).or_insert(profile);
        }
    }
    let json = path.extension().is_some_and(|e| e == "json");
    let text = if json { serde_json::to_string_pretty(&device)? } else { toml::to_string_pretty(&device)? };
    let written = disk::write_atomically(path, text.as_bytes(), 0o644, disk::Existing::Replace);
    written.map_err(|e| anyhow::anyhow!("cannot write {}: {e}", path.display())).exit_with(ExitCode::Failure)
}

fn read_profile(path: &Path) -> CommandResult<DeviceProfile> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| anyhow::anyhow!("cannot read the profile {}: {e}", path.display()))
        .exit_with(ExitCode::Configuration)?;
    if path.extension().is_some_and(|e| e == "json") {
        return serde_json::from_str(&text)
            .map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))
            .exit_with(ExitCode::Configuration);
    }
    Ok(tierline_daemon::config::parse(&text, path)?)
}

fn profile_text(p: &ModelProfile) -> String {
    let mut text = format!(
        "whole model {} (spread {:.1}%), loads in {}\n\n",
        output::duration(p.whole_ns),
        p.spread * 100.0,
        output::duration(p.load_ns)
    );
    let lossless = |c: &CutProfile| {
        let least = |t: &TensorProfile| t.codecs.iter().filter(|c| c.loss == 0.0).map(|c| c.bytes).min();
        c.tensors.iter().map(least).sum::<Option<u64>>()
    };
    let rows: Vec<Vec<String>> = p
        .segments
        .iter()
        .enumerate()
        .map(|(i, s)| {
            let cut = p.cuts.get(i);
            let bytes = cut.map_or(p.output_bytes, |c| c.tensors.iter().map(|t| t.bytes).sum());
            vec![
                i.to_string(),
                s.time_ns.map_or_else(|| "cannot run".to_owned(), output::duration),
                output::bytes(s.memory_bytes),
                output::bytes(bytes),
                cut.and_then(lossless).map_or_else(String::new, output::bytes),
            ]
        })
        .collect();
    text.push_str(&output::table(&["segment", "time", "memory", "sends", "lossless"], &rows));
    text
}

#[derive(Debug, clap::Args)]
pub struct Plan {
    /// A model's name on a node, or an ONNX file with --site
    #[arg(required_unless_present = "problem")]
    model: Option<String>,
    /// Solve a bare placement problem from a JSON file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "site"])]
    problem: Option<PathBuf>,
    /// The tiers and links to plan an ONNX file for
    #[arg(long, value_name = "SITE.toml")]
    site: Option<PathBuf>,
    /// What to make small: latency, energy, money, throughput, or three weights as in 1,0.5,0
    #[arg(long, value_parser = objective)]
    objective: Option<String>,
    /// Answer within, as in `200 ms`
    #[arg(long, value_name = "TIME", value_parser = super::infer::parse_time)]
    deadline: Option<std::time::Duration>,
    /// The first so many segments must stay on the lowest tier
    #[arg(long, value_name = "N")]
    private_segments: Option<usize>,
    /// A tensor that must not leave the lowest tier (repeat for more)
    #[arg(long = "private-tensor", value_name = "NAME")]
    private_tensors: Vec<String>,
    /// Relative error of the outputs that codecs may cause
    #[arg(long, value_name = "X")]
    max_loss: Option<f64>,
    /// Fix an input's free axes: NAME=1,3,224,224 (with --site)
    #[arg(long = "shape", value_name = "NAME=DIMS")]
    shapes: Vec<String>,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

fn objective(text: &str) -> Result<String, String> {
    text.parse::<tierline_plan::Objective>().map(|_| text.to_owned())
}

impl Plan {
    /// The limits asked for; `None` leaves the node's own.
    fn limits(&self) -> Option<Limits> {
        let mut limits = Limits::default();
        self.tighten(&mut limits);
        (limits != Limits::default()).then_some(limits)
    }

    /// Puts the limits asked for in place of `limits`.
    fn tighten(&self, limits: &mut Limits) {
        if let Some(deadline) = self.deadline {
            limits.deadline_ns = Some(u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX));
        }
        if let Some(segments) = self.private_segments {
            limits.private_segments = segments;
        }
        if !self.private_tensors.is_empty() {
            limits.private_tensors.clone_from(&self.private_tensors);
        }
        if let Some(loss) = self.max_loss {
            limits.max_loss = loss;
        }
    }
}

pub fn plan(global: &Global, args: &Plan, explain: bool) -> CommandResult {
    match (&args.problem, &args.site, &args.model) {
        (Some(file), _, _) => bare(global, file),
        (None, Some(site), Some(model)) => on_site(global, args, Path::new(model), site, explain),
        (None, None, Some(model)) => on_node(global, args, model, explain),
        _ => Err(usage("name a model, or give --problem FILE")),
    }
}

#[derive(Serialize)]
struct Solved {
    #[serde(flatten)]
    solution: Solution,
    /// How long it took, microseconds.
    solve_us: u64,
}

fn bare(global: &Global, file: &Path) -> CommandResult {
    let text = std::fs::read_to_string(file)
        .map_err(|e| anyhow::anyhow!("cannot read {}: {e}", file.display()))
        .exit_with(ExitCode::Failure)?;
    let problem: Problem = serde_json::from_str(&text)
        .map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))
        .exit_with(ExitCode::Configuration)?;
    let started = Instant::now();
    let solution = tierline_plan::problem::solve(&problem);
    // A part of a microsecond counts as one: 0 would say that nothing was solved.
    let solve_us = u64::try_from(started.elapsed().as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX);
    let solution = solution.map_err(|e| {
        let exit = if e.is_infeasible() { ExitCode::Infeasible } else { ExitCode::Configuration };
        CommandError::new(exit, e)
    })?;
    global.output().data(&Solved { solution, solve_us }, |Solved { solution: s, solve_us }| {
        let rows: Vec<Vec<String>> =
            s.assignment.iter().map(|(name, tier)| vec![name.clone(), tier.to_string()]).collect();
        format!(
            "{}\nobjective {}, {}, solved in {} us\n",
            output::table(&["node", "tier"], &rows),
            output::duration(s.objective_ns),
            if s.optimal {
                "proved the best".to_owned()
            } else {
                format!("at most {:.1}% from the best", s.gap * 100.0)
            },
            solve_us
        )
    })
}

#[derive(Serialize)]
struct SitePlan {
    /// The placement in words.
    placement: String,
    /// Names of the tiers, lowest first.
    tiers: Vec<String>,
    /// The cuts between segments: each frontier's tensors.
    cuts: Vec<Vec<String>>,
    #[serde(flatten)]
    plan: tierline_plan::Plan,
    /// What decided it.
    explanation: Explanation,
}

/// Plans a file for a site that is described, not running.
fn on_site(global: &Global, args: &Plan, model: &Path, file: &Path, explain: bool) -> CommandResult {
    let text = std::fs::read_to_string(file)
        .map_err(|e| anyhow::anyhow!("cannot read {}: {e}", file.display()))
        .exit_with(ExitCode::Configuration)?;
    let site = Site::parse(&text)
        .map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))
        .exit_with(ExitCode::Configuration)?;
    let engine = engines::engine(global)?;
    let (_, manifest) = prepare(global, model, &engine, &args.shapes, &[])?;
    let mut profiles = Vec::new();
    for name in site.names() {
        let source = site.source(&name).exit_with(ExitCode::Configuration)?;
        // Paths in a file are relative to the file.
        let path = file.parent().unwrap_or(Path::new(".")).join(source.profile);
        let device = read_profile(&path)?.scaled(&name, source.factor);
        let profile = device.models.get(&manifest.digest).cloned().ok_or_else(|| {
            CommandError::message(
                ExitCode::Configuration,
                format!("{} has no profile of {}", path.display(), model.display()),
            )
            .hint(format!("tierline profile {} --out {}", model.display(), path.display()))
        })?;
        profiles.push(profile);
    }
    let borrowed: Vec<&ModelProfile> = profiles.iter().collect();
    let mut request = site.request(&borrowed).exit_with(ExitCode::Configuration)?;
    if let Some(exits) = &manifest.exits {
        // Without a calibration nobody is known to leave.
        let go_on: Vec<f64> = exits.calibrated().into_iter().map(|go_on| go_on.unwrap_or(1.0)).collect();
        request.exits = exits.planned(&go_on, &borrowed);
    }
    if let Some(objective) = &args.objective {
        request.objective = objective.parse().map_err(|e: String| usage(e))?;
    }
    args.tighten(&mut request.limits);
    let plan = tierline_plan::plan_with_direct(&request, &site.conditions(), site.direct().as_ref()).map_err(|e| {
        let exit = if matches!(e, PlanError::Infeasible(_)) { ExitCode::Infeasible } else { ExitCode::Configuration };
        CommandError::new(exit, e)
    })?;
    let explanation = tierline_plan::explain(&request, &plan, None);
    let explanation = explanation.with_exits(&request, &plan, &site.conditions(), site.direct().as_ref());
    let placement = tierline_daemon::duties::planning::words(&plan.evaluation);
    let document = SitePlan { placement, tiers: site.names(), cuts: manifest.cuts, plan, explanation };
    global.output().data(&document, |d| {
        if explain {
            d.explanation.to_string()
        } else {
            tierline_daemon::duties::planning::describe_plan(&d.placement, &d.plan)
        }
    })
}

fn on_node(global: &Global, args: &Plan, model: &str, explain: bool) -> CommandResult {
    if is_file(model) {
        return Err(usage(format!("to plan the file {model}, say what site it is for: --site SITE.toml"))
            .hint("or give it to a node with `tierline model add`, and name it here"));
    }
    block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let limits_json = args.limits().map(|l| serde_json::to_string(&l)).transpose()?.unwrap_or_default();
        let request = NodePlanRequest {
            model: model.to_owned(),
            objective: args.objective.clone().unwrap_or_default(),
            limits_json,
        };
        let reply = if explain { node.explain(request).await } else { node.plan(request).await };
        let reply = reply.map_err(|s| client::refused(&s))?.into_inner();
        let document: serde_json::Value = serde_json::from_str(&reply.plan_json)?;
        global.output().data(&document, |_| reply.text)
    })
}

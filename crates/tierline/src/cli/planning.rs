//! `tierline profile`, `tierline plan`, `tierline explain`.

use std::path::{Path, PathBuf};

use tierline_plan::problem::Problem;
use tierline_plan::Limits;
use tierline_proto::v1::{PlanRequest as NodePlanRequest, ProfileRequest};

use super::{Global, block_on, client, usage};
use crate::output::{self, Exit, ExitWith, Failure, Outcome};

#[derive(Debug, clap::Args)]
pub struct Profile {
    /// The model's name, as `model ls` prints it
    model: String,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

pub fn profile(global: &Global, args: &Profile) -> Outcome {
    block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let request = ProfileRequest { model: args.model.clone(), ..ProfileRequest::default() };
        let mut stream = node.profile(request).await.map_err(|s| client::refused(&s))?.into_inner();
        let bar = global.output().progress(1, "measuring");
        let mut json = String::new();
        while let Some(progress) = stream.message().await.map_err(|s| client::refused(&s))? {
            bar.set_length(u64::from(progress.total));
            bar.set_position(u64::from(progress.done));
            json = progress.profile_json;
        }
        bar.finish_and_clear();
        let profile: tierline_graph::profile::ModelProfile = serde_json::from_str(&json)?;
        global.output().data(&profile, |p| {
            let mut text = format!(
                "whole model {} (spread {:.1}%), loads in {}\n\n",
                output::duration(p.whole_ns),
                p.spread * 100.0,
                output::duration(p.load_ns)
            );
            let rows: Vec<Vec<String>> = p
                .segments
                .iter()
                .enumerate()
                .map(|(i, s)| {
                    let cut = p.cuts.get(i);
                    let bytes = cut.map_or(p.output_bytes, |c| c.tensors.iter().map(|t| t.bytes).sum());
                    let small = cut.and_then(|c| {
                        c.tensors.iter().map(|t| t.codecs.iter().filter(|c| c.loss == 0.0).map(|c| c.bytes).min()).sum::<Option<u64>>()
                    });
                    vec![
                        i.to_string(),
                        s.time_ns.map_or_else(|| "cannot run".to_owned(), output::duration),
                        output::bytes(s.memory_bytes),
                        output::bytes(bytes),
                        small.map_or_else(String::new, output::bytes),
                    ]
                })
                .collect();
            text.push_str(&output::table(&["segment", "time", "memory", "sends", "lossless"], &rows));
            text
        })
    })
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
        let asked = self.deadline.is_some()
            || self.private_segments.is_some()
            || !self.private_tensors.is_empty()
            || self.max_loss.is_some();
        asked.then(|| {
            let default = Limits::default();
            Limits {
                private_segments: self.private_segments.unwrap_or(default.private_segments),
                private_tensors: self.private_tensors.clone(),
                deadline_ns: self.deadline.map(|d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)),
                max_loss: self.max_loss.unwrap_or(default.max_loss),
            }
        })
    }
}

pub fn plan(global: &Global, args: &Plan, explain: bool) -> Outcome {
    match (&args.problem, &args.site, &args.model) {
        (Some(file), _, _) => bare(global, file),
        (None, Some(_), Some(_)) => Err(usage("--site is not there yet")),
        (None, None, Some(model)) => on_node(global, args, model, explain),
        _ => Err(usage("name a model, or give --problem FILE")),
    }
}

fn bare(global: &Global, file: &Path) -> Outcome {
    let text = std::fs::read_to_string(file)
        .map_err(|e| anyhow::anyhow!("cannot read {}: {e}", file.display()))
        .exit_with(Exit::Failure)?;
    let problem: Problem = serde_json::from_str(&text)
        .map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))
        .exit_with(Exit::Configuration)?;
    let solution = tierline_plan::problem::solve(&problem).map_err(|e| {
        let exit = if e.is_infeasible() { Exit::Infeasible } else { Exit::Configuration };
        Failure::new(exit, e)
    })?;
    global.output().data(&solution, |s| {
        let rows: Vec<Vec<String>> = s.assignment.iter().map(|(name, tier)| vec![name.clone(), tier.to_string()]).collect();
        format!(
            "{}\nobjective {}, {}, solved in {} us\n",
            output::table(&["node", "tier"], &rows),
            output::duration(s.objective_ns),
            if s.optimal { "proved the best".to_owned() } else { format!("at most {:.1}% from the best", s.gap * 100.0) },
            s.solve_us
        )
    })
}

fn on_node(global: &Global, args: &Plan, model: &str, explain: bool) -> Outcome {
    if Path::new(model).extension().is_some_and(|e| e == "onnx") {
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

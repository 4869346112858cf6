//! `tierline rollout` and `tierline rollback`: another version of a model,
//! brought to nodes step by step, and the way back.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tierline_proto::Role;
use tierline_proto::v1::local_client::LocalClient;
use tierline_proto::v1::rollout_control_request::What;
use tierline_proto::v1::{
    Empty, ModelShowRequest, RolloutControlRequest, RolloutInfo, RolloutRequest, RolloutStartRequest,
};
use tierline_update::rollout::{Amount, Gate, Group, Seconds, Spec, Version};
use tonic::transport::Channel;

use super::{Global, client, infer, usage};
use crate::output::{self, CommandResult, ExitCode, ExitWith};

/// Lines of what a rollout told lately.
const TOLD_PRINTED_MAX: usize = 8;

/// Between two looks at a rollout that is waited for.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Subcommand)]
pub enum RolloutVerb {
    /// Begin to bring another version of a model to nodes
    Start(Box<Start>),
    /// Print how far rollouts are
    Status(Status),
    /// Ask no further node, until it is resumed
    Pause(Named),
    /// Go on
    Resume(Named),
    /// Go on with what waits for an approval
    Approve(Named),
    /// Bring every node back to the version before
    Abort(Named),
}

#[derive(Debug, clap::Args)]
pub struct Start {
    /// A TOML file with the rollout's specification, or a model's name
    what: String,
    /// The version to bring to nodes: a number or an alias; with a model's name
    #[arg(long, value_name = "VERSION")]
    to: Option<String>,
    /// A first wave of so many nodes: 1, or 5%
    #[arg(long, value_name = "N", requires = "to")]
    canary: Option<String>,
    /// Percent of all nodes that are asked by the end of each wave
    #[arg(long, value_delimiter = ',', value_name = "PERCENT", default_value = "100", requires = "to")]
    waves: Vec<f64>,
    /// Nodes at work at once: 10, or 10%
    #[arg(long, value_name = "N", default_value = "10%", requires = "to")]
    concurrency: String,
    /// How long each wave is watched before the next begins
    #[arg(long, value_parser = infer::parse_time, value_name = "TIME", default_value = "60 s", requires = "to")]
    watch: Duration,
    /// How long each node tries the new version before it keeps it
    #[arg(long, value_parser = infer::parse_time, value_name = "TIME", default_value = "10 s", requires = "to")]
    trial: Duration,
    /// Requests that the new version must have answered before a wave is passed
    #[arg(long, value_name = "N", default_value_t = 100, requires = "to")]
    runs: u64,
    /// Print the specification, and begin nothing
    #[arg(long)]
    print: bool,
    /// Wait until it is over
    #[arg(long)]
    wait: bool,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Status {
    /// Its number, or the model's name; every rollout when left out
    rollout: Option<String>,
    /// List its nodes
    #[arg(long, requires = "rollout")]
    nodes: bool,
    /// Wait until it is over
    #[arg(long, requires = "rollout")]
    wait: bool,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Named {
    /// Its number, or the model's name
    rollout: String,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Rollback {
    /// The model, or the rollout's number
    model: String,
    /// Wait until every node that can be reached is back
    #[arg(long)]
    wait: bool,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

/// A rollout, as it is printed.
#[derive(Serialize)]
struct Line {
    rollout: u64,
    model: String,
    from: String,
    to: String,
    state: String,
    created_ms: u64,
    #[serde(flatten)]
    shown: Value,
}

fn line(info: RolloutInfo) -> CommandResult<Line> {
    let RolloutInfo { rollout, model, from, to, state, json, created_ms } = info;
    let mut shown: Value = serde_json::from_str(&json)?;
    if let Some(progress) = shown.get_mut("progress").and_then(Value::as_object_mut) {
        // It stands beside it.
        progress.remove("rollout");
    }
    Ok(Line { rollout, model, from, to, state, created_ms, shown })
}

impl Line {
    fn count(&self, of: &Value, what: &str) -> u64 {
        of[what].as_u64().unwrap_or_default()
    }

    fn row(&self) -> Vec<String> {
        let total = &self.shown["progress"]["total"];
        vec![
            self.rollout.to_string(),
            self.model.clone(),
            format!("{} to {}", self.from, self.to),
            self.state.clone(),
            format!("{} of {}", self.count(total, "confirmed"), self.count(total, "devices")),
            self.count(total, "failed").to_string(),
        ]
    }

    fn text(&self, nodes: bool) -> String {
        let progress = &self.shown["progress"];
        let mut text =
            format!("rollout {} of {}: {} to {}, {}\n", self.rollout, self.model, self.from, self.to, self.state);
        if let Some(waits) = progress["waits_for"].as_str() {
            text.push_str(&format!("waits for {waits}\n"));
        }
        let groups = progress["groups"].as_array().into_iter().flatten().map(|group| {
            let counts = &group["counts"];
            let mut row = vec![
                group["name"].as_str().unwrap_or_default().to_owned(),
                format!("{} of {}", self.count(group, "wave"), self.count(group, "waves")),
            ];
            let columns = ["devices", "waiting", "asked", "confirmed", "failed", "returned", "away"];
            row.extend(columns.map(|what| self.count(counts, what).to_string()));
            row.push(format!("{:.0}%", counts["percent"].as_f64().unwrap_or_default()));
            row.push(format!("{:.0}%", counts["capacity_percent"].as_f64().unwrap_or_default()));
            row
        });
        let columns = [
            "group",
            "wave",
            "nodes",
            "waiting",
            "asked",
            "confirmed",
            "failed",
            "returned",
            "away",
            "done",
            "serving",
        ];
        text.push_str(&output::table(&columns, &groups.collect::<Vec<_>>()));
        let told: Vec<&str> = self.shown["told"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !told.is_empty() {
            text.push('\n');
            for line in &told[told.len().saturating_sub(TOLD_PRINTED_MAX)..] {
                text.push_str(&format!("{line}\n"));
            }
        }
        if nodes {
            let rows = self.shown["devices"].as_array().into_iter().flatten().map(|device| {
                let word = |what: &str| device[what].as_str().unwrap_or_default().to_owned();
                vec![word("device"), word("group"), word("state"), word("reason")]
            });
            text.push('\n');
            text.push_str(&output::table(&["node", "group", "state", "why"], &rows.collect::<Vec<_>>()));
        }
        text
    }
}

pub fn rollout(global: &Global, verb: RolloutVerb) -> CommandResult {
    match verb {
        RolloutVerb::Start(args) => start(global, &args),
        RolloutVerb::Status(args) => status(global, &args),
        RolloutVerb::Pause(args) => control(global, &args, What::Pause),
        RolloutVerb::Resume(args) => control(global, &args, What::Resume),
        RolloutVerb::Approve(args) => control(global, &args, What::Approve),
        RolloutVerb::Abort(args) => control(global, &args, What::Abort),
    }
}

/// The specification that a command line stands for.
async fn spec_of(node: &mut LocalClient<Channel>, args: &Start, to: &str) -> CommandResult<Spec> {
    let amount = |text: &str| -> CommandResult<Amount> {
        let json = text.parse::<u32>().map_or_else(|_| serde_json::json!(text), |n| serde_json::json!(n));
        serde_json::from_value(json).map_err(|e| usage(e.to_string()))
    };
    let asked = ModelShowRequest { model: args.what.clone() };
    let versions = node.version_list(asked).await.map_err(|s| client::refused(&s))?.into_inner().versions;
    let production = versions.into_iter().find(|version| version.aliases.iter().any(|alias| alias == "production"));
    let from = production.and_then(|version| version.entry).map_or(0, |entry| entry.version);
    let version = |text: &str| Version::new(text).map_err(|e| usage(e.to_string()));
    let mut group = Group::new("all");
    group.canary = args.canary.as_deref().map(amount).transpose()?;
    group.waves.clone_from(&args.waves);
    group.concurrency = amount(&args.concurrency)?;
    let nodes = node.nodes(Empty {}).await.map_err(|s| client::refused(&s))?.into_inner().nodes;
    let ends = nodes.iter().any(|node| node.role() == Role::End);
    let mut groups = vec![group];
    if ends {
        // Requests enter at ends; the tiers above follow, and are not waited for until somebody asks them.
        "ends".clone_into(&mut groups[0].name);
        groups[0].matches.roles = vec![Role::End.word().to_owned()];
        groups.push(Group::new("above"));
    }
    let mut spec = Spec::new(&args.what, version(&from.to_string())?, version(to)?, groups);
    spec.health.window_s = Seconds::new(args.watch.as_secs_f64()).map_err(|e| usage(e.to_string()))?;
    spec.health.runs_min = args.runs;
    if ends {
        let above = Gate { runs_min: 1, ..spec.health.clone() };
        spec.groups[1].health = Some(above);
    }
    spec.trial.window_s = Seconds::new(args.trial.as_secs_f64()).map_err(|e| usage(e.to_string()))?;
    spec.check().map_err(anyhow::Error::from).exit_with(ExitCode::Configuration)?;
    Ok(spec)
}

fn start(global: &Global, args: &Start) -> CommandResult {
    let file = PathBuf::from(&args.what);
    let text = match (&args.to, file.extension().is_some_and(|extension| extension == "toml")) {
        (None, true) => {
            let text = std::fs::read_to_string(&file)
                .map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))
                .exit_with(ExitCode::Usage)?;
            // A broken file is reported here, before anything is sent.
            Spec::parse(&text)
                .map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))
                .exit_with(ExitCode::Configuration)?;
            Some(text)
        }
        (Some(_), false) => None,
        (None, false) => return Err(usage("name the version with --to, or give a specification's TOML file")),
        (Some(_), true) => {
            return Err(usage("a specification's file names both versions; --to goes with a model's name"));
        }
    };
    super::block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let spec = match (text, &args.to) {
            (Some(text), _) => text,
            (None, to) => toml::to_string(&spec_of(&mut node, args, to.as_deref().unwrap_or_default()).await?)?,
        };
        if args.print {
            return global.output().data(&serde_json::json!({ "spec": spec }), |_| spec.clone());
        }
        let started =
            node.rollout_start(RolloutStartRequest { spec }).await.map_err(|s| client::refused(&s))?.into_inner();
        if args.wait {
            return wait(global, &mut node, started.rollout.to_string()).await;
        }
        print(global, started, false)
    })
}

fn print(global: &Global, info: RolloutInfo, nodes: bool) -> CommandResult {
    global.output().data(&line(info)?, |line| line.text(nodes))
}

/// Waits until a rollout is over; one that was rolled back ends in an error.
async fn wait(global: &Global, node: &mut LocalClient<Channel>, rollout: String) -> CommandResult {
    loop {
        let asked = RolloutRequest { rollout: rollout.clone() };
        let info = node.rollout_show(asked).await.map_err(|s| client::refused(&s))?.into_inner();
        match info.state.as_str() {
            "running" | "paused" | "waits for approval" | "rolling back" => tokio::time::sleep(LOOK).await,
            state => {
                let back = matches!(state, "rolled back" | "aborted");
                let said = format!("rollout {} of {} is {state}", info.rollout, info.model);
                print(global, info, back)?;
                return if back { Err(anyhow::anyhow!(said)).exit_with(ExitCode::RolledBack) } else { Ok(()) };
            }
        }
    }
}

fn status(global: &Global, args: &Status) -> CommandResult {
    super::block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        match &args.rollout {
            Some(rollout) if args.wait => wait(global, &mut node, rollout.clone()).await,
            Some(rollout) => {
                let asked = RolloutRequest { rollout: rollout.clone() };
                let info = node.rollout_show(asked).await.map_err(|s| client::refused(&s))?.into_inner();
                print(global, info, args.nodes)
            }
            None => {
                let reply = node.rollout_list(Empty {}).await.map_err(|s| client::refused(&s))?.into_inner();
                let lines = reply.rollouts.into_iter().map(line).collect::<CommandResult<Vec<_>>>()?;
                global.output().data(&serde_json::json!({ "rollouts": lines }), |_| {
                    let rows: Vec<Vec<String>> = lines.iter().map(Line::row).collect();
                    output::table(&["rollout", "model", "versions", "state", "confirmed", "failed"], &rows)
                })
            }
        }
    })
}

fn control(global: &Global, args: &Named, what: What) -> CommandResult {
    super::block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let request = RolloutControlRequest { rollout: args.rollout.clone(), what: what.into() };
        print(global, node.rollout_control(request).await.map_err(|s| client::refused(&s))?.into_inner(), false)
    })
}

pub fn rollback(global: &Global, args: &Rollback) -> CommandResult {
    super::block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let request = RolloutControlRequest { rollout: args.model.clone(), what: What::RollBack.into() };
        let info = node.rollout_control(request).await.map_err(|s| client::refused(&s))?.into_inner();
        if !args.wait {
            return print(global, info, false);
        }
        let rollout = info.rollout.to_string();
        loop {
            let asked = RolloutRequest { rollout: rollout.clone() };
            let info = node.rollout_show(asked).await.map_err(|s| client::refused(&s))?.into_inner();
            if matches!(info.state.as_str(), "aborted" | "rolled back") {
                return print(global, info, true);
            }
            tokio::time::sleep(LOOK).await;
        }
    })
}

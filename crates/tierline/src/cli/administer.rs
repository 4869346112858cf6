//! `tierline audit`, `tierline node log`, `config`, `tasks`: a node that runs,
//! looked into and turned while it does.

use serde::Serialize;
use serde_json::Value;
use tierline_proto::v1::{AuditRequest, Empty, LogFilterRequest};

use super::site::Target;
use super::{Global, block_on, client};
use crate::output::{self, CommandResult};

#[derive(Debug, clap::Args)]
pub struct Audit {
    /// Only this kind: operators, requests, refusals
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Only of this application or operator, by name or id
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// The last ones at most
    #[arg(long, default_value = "100", value_name = "COUNT")]
    last: u32,
    #[command(flatten)]
    target: Target,
}

#[derive(Serialize)]
struct Entries {
    entries: Vec<Value>,
}

/// Who asked a node for what.
pub fn audit(global: &Global, args: &Audit) -> CommandResult {
    block_on(async {
        let mut node = client::connect(global, args.target.endpoint()).await?;
        let request = AuditRequest {
            last: args.last.max(1),
            kind: args.kind.clone().unwrap_or_default(),
            application: args.by.clone().unwrap_or_default(),
        };
        let reply = node.audit(request).await.map_err(|s| client::refused(&s))?.into_inner();
        let entries = reply.lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        global.output().data(&Entries { entries }, |all| {
            let row = |entry: &Value| {
                let text = |key: &str| entry[key].as_str().unwrap_or_default().escape_debug().to_string();
                let time = super::running::moment(entry["time_ms"].as_u64().unwrap_or(0));
                let count = entry["count"].as_u64().unwrap_or(1).to_string();
                vec![time, text("kind"), text("who"), text("address"), text("call"), text("of"), text("code"), count]
            };
            let rows: Vec<Vec<String>> = all.entries.iter().map(row).collect();
            output::table(&["time", "kind", "who", "from", "call", "of", "came of it", "times"], &rows)
        })
    })
}

#[derive(Debug, clap::Args)]
pub struct LogArgs {
    /// What is logged from now on, as in `warn,tierline=debug`; without it, says what is
    filter: Option<String>,
    #[command(flatten)]
    target: Target,
}

#[derive(Serialize)]
struct Filter {
    filter: String,
}

/// What a node logs, until it starts again or reloads its file.
pub fn log(global: &Global, args: &LogArgs) -> CommandResult {
    block_on(async {
        let mut node = client::connect(global, args.target.endpoint()).await?;
        let request = LogFilterRequest { filter: args.filter.clone().unwrap_or_default() };
        let reply = node.log_filter(request).await.map_err(|s| client::refused(&s))?.into_inner();
        global.output().data(&Filter { filter: reply.filter }, |f| f.filter.clone())
    })
}

#[derive(Serialize)]
struct Config {
    config: toml::Table,
}

/// A node's configuration in force.
pub fn config(global: &Global, target: &Target) -> CommandResult {
    block_on(async {
        let mut node = client::connect(global, target.endpoint()).await?;
        let text = node.config(Empty {}).await.map_err(|s| client::refused(&s))?.into_inner().toml;
        let config = Config { config: text.parse()? };
        global.output().data(&config, |_| text)
    })
}

#[derive(Serialize)]
struct Tasks {
    tasks: Vec<Task>,
}

#[derive(Serialize)]
struct Task {
    name: String,
    running: u64,
    panics: u64,
    restarts: u64,
}

/// What runs on a node.
pub fn tasks(global: &Global, target: &Target) -> CommandResult {
    block_on(async {
        let mut node = client::connect(global, target.endpoint()).await?;
        let reply = node.task_list(Empty {}).await.map_err(|s| client::refused(&s))?.into_inner();
        let task = |t: tierline_proto::v1::TaskInfo| Task {
            name: t.name,
            running: t.running,
            panics: t.panics,
            restarts: t.restarts,
        };
        let tasks = Tasks { tasks: reply.tasks.into_iter().map(task).collect() };
        global.output().data(&tasks, |all| {
            let row =
                |t: &Task| vec![t.name.clone(), t.running.to_string(), t.panics.to_string(), t.restarts.to_string()];
            output::table(
                &["task", "running", "broke off", "begun again"],
                &all.tasks.iter().map(row).collect::<Vec<_>>(),
            )
        })
    })
}

//! `tierline job`: jobs of the site.

use std::path::PathBuf;

use serde::Serialize;
use tierline_daemon::{jobs, models};
use tierline_proto::v1::job_control_request::What;
use tierline_proto::v1::{Empty, JobControlRequest, JobInfo, JobRequest};

use super::client::{connect, refused};
use super::train::{Folder, Followed, fetch_model, follow};
use super::{Global, block_on};
use crate::output::{self, CommandResult, ExitCode, ExitWith};

#[derive(Debug, clap::Subcommand)]
pub enum JobVerb {
    /// Jobs that a node knows of, the newest first
    Ls(Where),
    /// One job: its round, its members, who was left out and why
    Show(Named),
    /// A job's rounds so far, and those to come; its model at the end
    Logs(Logs),
    /// Save a job's model; asked of an end that has a model of its own, that one
    Model(Save),
    /// Give out no new work; what is under way still counts
    Pause(Named),
    /// Give out work again
    Resume(Named),
    /// End a job where it is
    Cancel(Named),
}

#[derive(Debug, clap::Args)]
pub struct Where {
    /// Ask this node instead of the one on this device
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Named {
    /// Name of the job, its digest, or at least four digits of it
    job: String,
    #[command(flatten)]
    node: Where,
}

#[derive(Debug, clap::Args)]
pub struct Logs {
    #[command(flatten)]
    job: Named,
    /// Folder for the model and the curves; `NAME.run` unless said
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct Save {
    #[command(flatten)]
    job: Named,
    /// The file; `NAME.onnx` unless said
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A model that was saved.
#[derive(Debug, Serialize)]
struct Saved {
    file: PathBuf,
    model: String,
}

/// Every job, for programs.
#[derive(Debug, Serialize)]
struct List {
    jobs: Vec<Shown>,
}

/// A job, for programs.
#[derive(Debug, Serialize)]
struct Shown {
    job: String,
    name: String,
    state: String,
    round: u64,
    rounds: u64,
    counted: u32,
    goal: u32,
    ready: u32,
    members: u32,
    excluded: Vec<Excluded>,
    #[serde(skip_serializing_if = "String::is_empty")]
    waits_for: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    failure: String,
    created_ms: u64,
}

#[derive(Debug, Serialize)]
struct Excluded {
    node: String,
    reason: String,
}

/// The job's digest, in hexadecimal digits.
pub fn digest(info: &JobInfo) -> String {
    info.job.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl From<JobInfo> for Shown {
    fn from(info: JobInfo) -> Self {
        Self {
            job: digest(&info),
            name: info.name,
            state: info.state,
            round: info.round,
            rounds: info.rounds,
            counted: info.counted,
            goal: info.goal,
            ready: info.ready,
            members: info.members,
            excluded: info.excluded.into_iter().map(|m| Excluded { node: m.node, reason: m.reason }).collect(),
            waits_for: info.waits_for,
            notes: info.notes,
            failure: info.failure,
            created_ms: info.created_ms,
        }
    }
}

pub fn job(global: &Global, verb: JobVerb) -> CommandResult {
    block_on(async {
        match verb {
            JobVerb::Ls(place) => list(global, &place).await,
            JobVerb::Show(named) => show(global, &named).await,
            JobVerb::Logs(logs) => self::logs(global, &logs).await,
            JobVerb::Model(save) => self::save(global, &save).await,
            JobVerb::Pause(named) => control(global, &named, What::Pause).await,
            JobVerb::Resume(named) => control(global, &named, What::Resume).await,
            JobVerb::Cancel(named) => control(global, &named, What::Cancel).await,
        }
    })
}

async fn list(global: &Global, place: &Where) -> CommandResult {
    let mut node = connect(global, place.endpoint.as_deref()).await?;
    let jobs = node.job_list(Empty {}).await.map_err(|s| refused(&s))?.into_inner().jobs;
    let list = List { jobs: jobs.into_iter().map(Shown::from).collect() };
    global.output().data(&list, |List { jobs }| {
        if jobs.is_empty() {
            return "no job was given to this node; begin one with `tierline train JOB.toml`".to_owned();
        }
        let row = |j: &Shown| {
            let rounds = format!("{}/{}", j.round, j.rounds);
            vec![j.name.clone(), j.job[..8].to_owned(), j.state.clone(), rounds, j.members.to_string()]
        };
        let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
        output::table(&["job", "digest", "state", "rounds", "members"], &rows)
    })
}

async fn get(global: &Global, named: &Named) -> CommandResult<JobInfo> {
    let mut node = connect(global, named.node.endpoint.as_deref()).await?;
    let request = JobRequest { job: named.job.clone() };
    Ok(node.job_show(request).await.map_err(|s| refused(&s))?.into_inner())
}

async fn show(global: &Global, named: &Named) -> CommandResult {
    say(global, get(global, named).await?)
}

fn say(global: &Global, info: JobInfo) -> CommandResult {
    global.output().data(&Shown::from(info), |job| {
        let over = matches!(job.state.as_str(), "done" | "cancelled" | "failed");
        let mut text = format!(
            "job      {}\ndigest   {}\nstate    {}\nrounds   {} of {}",
            job.name, job.job, job.state, job.round, job.rounds
        );
        if over {
            text.push_str(&format!("\nmembers  {} took part", job.members));
        } else {
            text.push_str(&format!("\nmembers  {} known, {} ready", job.members, job.ready));
            text.push_str(&format!("\nanswers  {} of {} for the round under way", job.counted, job.goal));
        }
        if !job.waits_for.is_empty() {
            text.push_str(&format!("\nwaits    for {}", job.waits_for));
        }
        for note in &job.notes {
            text.push_str(&format!("\nnote     {note}"));
        }
        if !job.failure.is_empty() {
            text.push_str(&format!("\nfailure  {}", job.failure));
        }
        for out in &job.excluded {
            text.push_str(&format!("\nwithout  {}: {}", out.node, out.reason));
        }
        text
    })
}

async fn logs(global: &Global, logs: &Logs) -> CommandResult {
    let info = get(global, &logs.job).await?;
    let mut node = connect(global, logs.job.node.endpoint.as_deref()).await?;
    let folder = logs
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("{}.run", jobs::Name::of(&info.name, &digest(&info)))));
    match follow(global, &mut node, &info, Folder::take(folder)?).await? {
        Followed::Ended | Followed::Left => Ok(()),
    }
}

async fn save(global: &Global, save: &Save) -> CommandResult {
    let info = get(global, &save.job).await?;
    let mut node = connect(global, save.job.node.endpoint.as_deref()).await?;
    let bytes = fetch_model(&mut node, &info).await?;
    let file = save
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("{}.onnx", jobs::Name::of(&info.name, &digest(&info)))));
    std::fs::write(&file, &bytes)
        .map_err(|e| anyhow::anyhow!("cannot write {}: {e}", file.display()))
        .exit_with(ExitCode::Failure)?;
    let saved = Saved { file, model: models::digest(&bytes) };
    global.output().data(&saved, |saved| format!("model   {}\ndigest  {}", saved.file.display(), saved.model))
}

async fn control(global: &Global, named: &Named, what: What) -> CommandResult {
    let mut node = connect(global, named.node.endpoint.as_deref()).await?;
    let request = JobControlRequest { job: named.job.clone(), what: what.into() };
    say(global, node.job_control(request).await.map_err(|s| refused(&s))?.into_inner())
}

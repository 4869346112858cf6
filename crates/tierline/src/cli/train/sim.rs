//! `tierline train --sim` and `tierline sim`: a job's federation in one
//! process, under a virtual clock.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tierline_federate::Federation;
use tierline_sim::{Attack, Examples, Link, Scenario, SimError};
use tierline_train::Job;
use tierline_train::data::{Partition, partition};

use super::rounds::{Rounds, Without};
use super::{Folder, Train, data, folder_beside, job_models, learned_from, open, stopped_by_user};
use crate::cli::engines;
use crate::cli::{Global, usage};
use crate::output::{CommandError, CommandResult, ExitCode, ExitWith};

/// Round trip of a simulated link, at most: a day.
const RTT_MS_MAX: f64 = 86_400e3;

#[derive(Debug, clap::Args)]
pub struct Sim {
    /// The job's file; its data set is shared out to the ends
    job: PathBuf,
    /// Ends of the site
    #[arg(long, value_name = "N", default_value_t = 10)]
    ends: usize,
    /// Edges between the ends and the cloud; none unless the job gives edges work, then as many as it asks
    #[arg(long, value_name = "N")]
    edges: Option<usize>,
    /// How examples are shared out: iid, dirichlet:ALPHA, shards:N, groups or feature:N
    #[arg(long, value_name = "HOW", default_value = "iid")]
    partition: Partition,
    /// Link of each end, Mbit/s up, Mbit/s down, round trip in ms
    #[arg(long, value_name = "UP,DOWN,RTT")]
    end_link: Option<String>,
    /// Link of each edge to the cloud
    #[arg(long, value_name = "UP,DOWN,RTT")]
    edge_link: Option<String>,
    /// Examples that an end learns from in a second
    #[arg(long, value_name = "N", default_value_t = 1_000.0)]
    speed: f64,
    /// Each end is up to this many times as slow
    #[arg(long, value_name = "TIMES", default_value_t = 1.0)]
    spread: f64,
    /// Share of the time that an end can be reached
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    availability: f64,
    /// What some of the ends do to the others: sign-flip:SHARE, label-flip:SHARE or scale:SHARE:TIMES
    #[arg(long, value_name = "HARM")]
    attack: Option<Attack>,
    /// Folder for the trained model and the curves; beside the job unless said
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Put the files over those of the folder's last run
    #[arg(long)]
    replace: bool,
    /// Save each end's own model, too, where ends have one: as DIR/ends/END.onnx
    #[arg(long)]
    ends_too: bool,
    /// Threads; every core unless said
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

impl Sim {
    /// A site without links, for `tierline train --sim`.
    pub fn of(args: &Train, ends: usize) -> Self {
        Self {
            job: args.job.clone(),
            ends,
            edges: args.edges,
            partition: Partition::Iid,
            end_link: None,
            edge_link: None,
            speed: 1_000.0,
            spread: 1.0,
            availability: 1.0,
            attack: None,
            out: args.out.clone(),
            replace: args.replace,
            ends_too: false,
            threads: args.threads,
        }
    }

    pub fn job(&self) -> &Path {
        &self.job
    }

    fn scenario(&self, federation: &Federation) -> CommandResult<Scenario> {
        Ok(Scenario {
            edges: self.edges.unwrap_or_else(|| edges_of(federation, self.ends)),
            end_link: link(self.end_link.as_deref())?,
            edge_link: link(self.edge_link.as_deref())?,
            examples_per_s: self.speed,
            spread: self.spread,
            availability: self.availability,
            attack: self.attack,
            threads: self.threads,
            ..Scenario::default()
        })
    }
}

/// Edges that a job asks for: with one, edges would have nobody to average
/// with or to meet.
fn edges_of(federation: &Federation, ends: usize) -> usize {
    let clients = &federation.cloud.clients;
    let asked = clients.per_round.unwrap_or(clients.min).max(2);
    if federation.edge.is_some() { asked.min(ends) } else { 0 }
}

/// Refuses a site in which nobody would ever begin.
fn check(federation: &Federation, ends: usize, edges: usize) -> CommandResult {
    let least = federation.cloud.clients.min;
    let cloud = match federation.edge {
        Some(_) if edges > 0 => ("the cloud", least, "edges", edges),
        _ => ("the cloud", least, "ends", ends),
    };
    let edge = federation.edge.as_ref().filter(|_| edges > 0);
    let edge = edge.map(|edge| ("an edge", edge.clients.min, "ends", ends / edges));
    for (who, least, members, simulated) in std::iter::once(cloud).chain(edge) {
        if simulated < least {
            let text = format!("{who} waits for {least} {members}, with {simulated} simulated below it");
            return Err(CommandError::message(ExitCode::Infeasible, text)
                .hint(format!("simulate more {members}, or lower `clients.min` in the job's file")));
        }
    }
    Ok(())
}

fn link(text: Option<&str>) -> CommandResult<Link> {
    let Some(text) = text else { return Ok(Link::NONE) };
    let numbers: Vec<f64> = text.split(',').filter_map(|n| n.trim().parse().ok()).collect();
    match numbers[..] {
        [up, down, rtt] if up > 0.0 && down > 0.0 && (0.0..=RTT_MS_MAX).contains(&rtt) => Ok(Link {
            up_bytes_per_s: up * 1e6 / 8.0,
            down_bytes_per_s: down * 1e6 / 8.0,
            rtt: Duration::from_secs_f64(rtt / 1e3),
        }),
        _ => Err(usage(format!("`{text}` is no link: three numbers, Mbit/s up, Mbit/s down, milliseconds"))
            .hint("for example 10,50,40")),
    }
}

pub fn sim(global: &Global, args: &Sim, job: Job) -> CommandResult {
    let Some(federation) = &job.federation else {
        let text = "the job has no table [federation]: it says nothing of many nodes";
        let hint =
            format!("add [federation.cloud] with rounds = 10, or: tierline train {} --local", args.job.display());
        return Err(CommandError::message(ExitCode::Configuration, text).hint(hint));
    };
    federation.check().exit_with(ExitCode::Configuration)?;
    let rounds = federation.cloud.rounds;
    let scenario = args.scenario(federation)?;
    check(federation, args.ends, scenario.edges)?;
    let engine = engines::engine(global)?;
    let (seen, held_out) = if federation.evaluates_at_ends() {
        let hint = "add hold_out = 0.2 under [data]";
        if job.data.hold_out.is_none() {
            let text = "ends look at models with examples of their own, and the job says not how many they hold out";
            return Err(CommandError::message(ExitCode::Configuration, text).hint(hint));
        }
        (learned_from(global, &job)?, None)
    } else {
        data(global, &job)?
    };
    let shares = partition(&seen, &args.partition, args.ends, job.seed).exit_with(ExitCode::Configuration)?;
    let shares = shares.iter().map(|share| seen.subset(share)).collect::<Result<Vec<_>, _>>()?;
    let models = job_models(global, &args.job, &job, &engine)?;
    let public = federation.distillation().map(|distil| open(global, &distil.public)).transpose()?;
    let stop = stopped_by_user()?;

    let folder = Folder::take_new(folder_beside(&args.job, args.out.as_deref()), args.replace)?;
    let mut shown = Rounds::begin(global, &args.job.display().to_string(), rounds, Some(args.ends), folder)?;
    let mut closed = Ok(());
    let examples = Examples { ends: shares, test: held_out.as_ref(), public: public.as_ref() };
    let outcome = tierline_sim::run(&engine, models, &job, examples, &scenario, &stop, &mut |round| {
        if closed.is_ok() {
            closed = shown.round(round);
        }
    });
    closed?;
    let drawn = shown.draw();
    let outcome = outcome.map_err(|error| failed(error, args.ends))?;
    drawn?;
    outcome.model.save(&shown.folder().model())?;
    if args.ends_too {
        shown.folder().save_ends(&outcome.own)?;
    }
    for (end, reason) in &outcome.excluded {
        shown.without(Without::Excluded, Some(end), Some(reason))?;
    }
    shown.done()
}

fn failed(error: SimError, ends: usize) -> CommandError {
    let hint = match error {
        SimError::Stalled { .. } => Some(format!(
            "ask for fewer in `clients` of the job's file, or simulate more than {ends} ends, or more or fewer edges"
        )),
        _ => None,
    };
    let exit = match error {
        SimError::Stopped(_) => ExitCode::Interrupted,
        SimError::Scenario { .. } => ExitCode::Configuration,
        SimError::Stalled { .. } => ExitCode::Infeasible,
        _ => ExitCode::Failure,
    };
    let failure = CommandError::new(exit, error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

//! `tierline node status`, `tierline node stop`, `tierline logs`: a node that
//! runs, as seen by who looks after it.

use std::time::{Duration, Instant};

use serde::Serialize;
use tierline_daemon::config;
use tierline_proto::Role;
use tierline_proto::v1::{DrainRequest, Empty, Event, NodeStatus, WatchRequest};

use super::infer::parse_time;
use super::{Global, block_on, client};
use crate::output::{self, CommandError, CommandResult, ExitCode, time};

#[derive(Debug, clap::Args)]
pub struct Target {
    /// The node: https://host:port or unix:PATH; without it, this device's
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Stop {
    /// Time for requests under way to end, as in `3 s`
    #[arg(long, default_value = "3 s", value_parser = parse_time, value_name = "TIME")]
    grace: Duration,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub struct Logs {
    /// Go on as more happens
    #[arg(long, short)]
    follow: bool,
    /// Only this kind: link, lease, plan, degraded, model, node, job, application, fault, breach (repeat for more)
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<String>,
    #[command(flatten)]
    target: Target,
}

#[derive(Serialize)]
struct Status {
    name: String,
    role: &'static str,
    id: String,
    version: String,
    protocol: u32,
    engine: String,
    uptime_s: f64,
    draining: bool,
    parents: Vec<ParentLine>,
    /// Nodes below it that it knows of.
    below: usize,
    memory: Vec<MemoryLine>,
    memory_max_bytes: u64,
    /// Requests that wait.
    queued: u32,
    store_bytes: u64,
    certificate_not_after_s: u64,
}

#[derive(Serialize)]
struct ParentLine {
    url: String,
    name: String,
    state: String,
    /// Why it isn't connected.
    failure: Option<String>,
    /// Until it is tried again.
    next_try_ms: u64,
    /// Its circuit breaker: closed, open, probing.
    breaker: String,
    up_bytes_per_s: f64,
    rtt_ms: f64,
}

#[derive(Serialize)]
struct MemoryLine {
    kind: String,
    count: u64,
    bytes: u64,
}

impl From<NodeStatus> for Status {
    fn from(status: NodeStatus) -> Self {
        let load = status.load.unwrap_or_default();
        let parents = status.parents.into_iter().map(|parent| {
            let link = parent.link.unwrap_or_default();
            ParentLine {
                url: parent.url,
                name: parent.node_name,
                state: parent.state,
                failure: parent.failure.map(|failure| failure.to_string()),
                next_try_ms: parent.next_try_ms,
                breaker: parent.breaker,
                up_bytes_per_s: link.up_bytes_per_s,
                rtt_ms: link.rtt_ns as f64 / 1e6,
            }
        });
        let memory = status.memory.into_iter().map(|m| MemoryLine { kind: m.kind, count: m.count, bytes: m.bytes });
        Self {
            parents: parents.collect(),
            memory: memory.collect(),
            role: Role::try_from(status.role).unwrap_or(Role::Unspecified).word(),
            name: status.node_name,
            id: status.node_id,
            version: status.version,
            protocol: status.protocol,
            engine: format!("{} {}", status.engine, status.engine_version),
            uptime_s: status.uptime_ms as f64 / 1e3,
            draining: status.draining,
            below: status.children.len(),
            memory_max_bytes: load.memory_max_bytes,
            queued: load.queued,
            store_bytes: status.store_bytes,
            certificate_not_after_s: status.certificate_not_after_s,
        }
    }
}

/// What a node is at.
pub fn status(global: &Global, target: &Target) -> CommandResult {
    block_on(async {
        let mut node = client::connect(global, target.endpoint.as_deref()).await?;
        let status = node.status(Empty {}).await.map_err(|s| client::refused(&s))?.into_inner();
        global.output().data(&Status::from(status), describe)
    })
}

fn describe(status: &Status) -> String {
    let left = status.certificate_not_after_s.saturating_sub(tierline_daemon::runtime::events::now_ms() / 1_000);
    let stopping = if status.draining { ", stopping" } else { "" };
    let mut rows = vec![
        vec!["node".to_owned(), format!("{} ({}{stopping}), {}", status.name, status.role, status.id)],
        vec!["program".to_owned(), format!("tierline {}, protocol {}", status.version, status.protocol)],
        vec!["engine".to_owned(), status.engine.clone()],
        vec!["running for".to_owned(), time(status.uptime_s)],
    ];
    for parent in &status.parents {
        let who =
            if parent.name.is_empty() { parent.url.clone() } else { format!("{} at {}", parent.name, parent.url) };
        let how = match &parent.failure {
            Some(failure) if parent.next_try_ms > 0 => {
                format!("{failure}; tried again in {}", output::duration(parent.next_try_ms * 1_000_000))
            }
            Some(failure) => format!("{}: {failure}", parent.state),
            _ if matches!(parent.breaker.as_str(), "open" | "probing") => {
                format!("{}, circuit breaker {}: it failed again and again", parent.state, parent.breaker)
            }
            _ if parent.up_bytes_per_s > 0.0 => {
                format!("{}, {:.2} Mbit/s up, {:.0} ms", parent.state, parent.up_bytes_per_s * 8.0 / 1e6, parent.rtt_ms)
            }
            _ => parent.state.clone(),
        };
        rows.push(vec!["parent".to_owned(), format!("{who}: {how}")]);
    }
    if status.role != Role::End.word() {
        rows.push(vec!["nodes below".to_owned(), status.below.to_string()]);
    }
    rows.push(vec!["waiting".to_owned(), counted(status.queued.into(), "requests")]);
    let kept: Vec<String> =
        status.memory.iter().map(|m| format!("{}, {}", counted(m.count, &m.kind), output::bytes(m.bytes))).collect();
    rows.push(vec![
        "memory".to_owned(),
        format!("{} (at most {})", kept.join("; "), output::bytes(status.memory_max_bytes)),
    ]);
    rows.push(vec!["disk".to_owned(), format!("{} of models and jobs", output::bytes(status.store_bytes))]);
    rows.push(vec!["certificate".to_owned(), format!("good for {}", time(left as f64))]);
    let width = rows.iter().map(|row| row[0].len()).max().unwrap_or(0);
    rows.iter().map(|row| format!("{:width$}  {}\n", row[0], row[1])).collect()
}

/// `1 model`, `2 models`.
fn counted(count: u64, what: &str) -> String {
    format!("{count} {}", if count == 1 { what.trim_end_matches('s') } else { what })
}

/// Between two looks at whether a node is gone.
const LOOK: Duration = Duration::from_millis(50);

/// Time that a node takes to end at most, once its requests had theirs.
const END_TIME_MAX: Duration = Duration::from_secs(10);

/// Ends a node once its requests are done.
pub fn stop(global: &Global, args: &Stop) -> CommandResult {
    block_on(async {
        let mut node = client::connect(global, args.target.endpoint.as_deref()).await?;
        let name = node.status(Empty {}).await.map_err(|s| client::refused(&s))?.into_inner().node_name;
        let grace_ms = u32::try_from(args.grace.as_millis()).unwrap_or(u32::MAX);
        let request = DrainRequest { grace_ms, reason: "an operator stops it".to_owned() };
        node.drain(request).await.map_err(|s| client::refused(&s))?;
        if args.target.endpoint.is_some() {
            global.output().say(format!("{name} is stopping"));
            return Ok(());
        }
        let (socket, begun) = (global.data_folder().join(config::SOCKET), Instant::now());
        while socket.exists() {
            if begun.elapsed() > args.grace + END_TIME_MAX {
                return Err(CommandError::message(ExitCode::Timeout, format!("{name} is still stopping")));
            }
            tokio::time::sleep(LOOK).await;
        }
        global.output().say(format!("{name} has stopped"));
        Ok(())
    })
}

#[derive(Serialize)]
struct Line<'e> {
    time_ms: u64,
    kind: &'e str,
    text: &'e str,
    about: serde_json::Value,
}

/// What happened on a node.
pub fn logs(global: &Global, args: &Logs) -> CommandResult {
    block_on(async {
        let mut node = client::connect(global, args.target.endpoint.as_deref()).await?;
        let request = WatchRequest { kinds: args.kinds.clone(), past_only: !args.follow };
        let mut events = node.watch(request).await.map_err(|s| client::refused(&s))?.into_inner();
        while let Some(event) = events.message().await.map_err(|s| client::refused(&s))? {
            print(global, &event)?;
        }
        Ok(())
    })
}

fn print(global: &Global, event: &Event) -> CommandResult {
    if global.json {
        let about = serde_json::from_str(&event.json).unwrap_or_default();
        return global.output().event(&Line { time_ms: event.time_ms, kind: &event.kind, text: &event.text, about });
    }
    output::line(&format!("{}  {:<8}  {}", moment(event.time_ms), event.kind, event.text))
}

/// A moment as `2026-03-01 14:05:09.123`, in UTC.
pub fn moment(time_ms: u64) -> String {
    let (days, ms) = (time_ms / 86_400_000, time_ms % 86_400_000);
    let (year, month, day) = date(days);
    let (seconds, ms) = (ms / 1_000, ms % 1_000);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{ms:03}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

/// The date so many days after 1970-01-01, in the calendar of today: years
/// begin in March and come in eras of 400.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates() {
        for (time_ms, text) in [
            (0, "1970-01-01 00:00:00.000"),
            (951_782_399_999, "2000-02-28 23:59:59.999"),
            (951_782_400_000, "2000-02-29 00:00:00.000"),
            (1_709_251_199_001, "2024-02-29 23:59:59.001"),
            (4_102_444_800_000, "2100-01-01 00:00:00.000"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000"),
        ] {
            assert_eq!(moment(time_ms), text);
        }
    }
}

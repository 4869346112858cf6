//! What a node says of itself and its site, as rows.

use serde::Serialize;
use serde_json::Value;
use tierline_proto::Role;
use tierline_proto::v1::local_client::LocalClient;
use tierline_proto::v1::{Empty, LinkEstimate, NodeInfo, PlanRequest, WatchRequest};
use tonic::transport::Channel;

use super::super::client;
use crate::output::{self, CommandResult};

/// Models whose plans are asked for at each look.
const PLANS_MAX: usize = 16;

/// Counters that are shown, and what each label's value means.
const COUNTED: &[(&str, &str)] = &[
    ("tierline_requests_total", "requests"),
    ("tierline_degraded_total", "degraded"),
    ("tierline_exits_total", "exits"),
    ("tierline_service_answers_total", "services"),
];

/// One look at a node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Seen {
    pub name: String,
    pub role: &'static str,
    pub version: String,
    pub uptime_ms: u64,
    pub draining: bool,
    pub queued: u32,
    pub running: u32,
    pub utilisation: f64,
    pub memory_used_bytes: u64,
    pub memory_max_bytes: u64,
    pub nodes: Vec<NodeRow>,
    /// Nodes that are there and not listed.
    pub left_out: u64,
    pub plans: Vec<PlanRow>,
    pub counts: Vec<CountRow>,
    /// Newest first.
    pub events: Vec<EventRow>,
}

/// A node, and its link upwards.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeRow {
    pub name: String,
    pub role: &'static str,
    pub parent: String,
    pub state: String,
    /// Unknown: nothing.
    pub up_bytes_per_s: f64,
    pub rtt_ns: u64,
    pub queued: u32,
    pub utilisation: f64,
}

/// A model's plan.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct PlanRow {
    pub model: String,
    /// What runs where; or why there is no plan.
    pub placement: String,
    pub predicted_ns: Option<f64>,
    pub measured_ns: Option<f64>,
    /// Name of the step that takes most of the time.
    pub slowest: String,
    /// Share of the requests that leave at each early exit.
    pub leave: Vec<f64>,
}

/// A counter's value at one label.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CountRow {
    pub what: &'static str,
    pub of: String,
    pub count: f64,
    /// Of all of its kind.
    pub share: f64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventRow {
    pub time_ms: u64,
    pub kind: String,
    pub text: String,
}

/// Asks a node for everything that is shown.
pub async fn look(node: &mut LocalClient<Channel>) -> CommandResult<Seen> {
    let refused = |status: tonic::Status| client::refused(&status);
    let status = node.status(Empty {}).await.map_err(refused)?.into_inner();
    let listed = node.nodes(Empty {}).await.map_err(refused)?.into_inner();
    let models = node.model_list(Empty {}).await.map_err(refused)?.into_inner().models;
    let mut plans = Vec::new();
    for entry in models.into_iter().filter_map(|model| model.entry).take(PLANS_MAX) {
        let request = PlanRequest { model: entry.name.clone(), ..PlanRequest::default() };
        plans.push(match node.explain(request).await {
            Ok(reply) => plan(entry.name, &serde_json::from_str(&reply.into_inner().plan_json)?),
            Err(why) => PlanRow { model: entry.name, placement: why.message().to_owned(), ..PlanRow::default() },
        });
    }
    let numbers = node.metrics(Empty {}).await.map_err(refused)?.into_inner().text;
    let mut past = node.watch(WatchRequest { kinds: Vec::new(), past_only: true }).await.map_err(refused)?.into_inner();
    let mut events = Vec::new();
    while let Some(event) = past.message().await.map_err(refused)? {
        events.push(EventRow { time_ms: event.time_ms, kind: event.kind, text: event.text });
    }
    events.reverse();
    let load = status.load.unwrap_or_default();
    let mut nodes = nodes(listed.nodes);
    for parent in status.parents {
        let tiers = parent.path.unwrap_or_default().tiers;
        let reached = parent.state == "connected";
        for (at, tier) in tiers.iter().enumerate() {
            let link = tier.link_above.unwrap_or_default();
            let state = if !reached {
                "lost"
            } else if tier.reachable {
                "connected"
            } else {
                "cut off"
            };
            nodes.push(NodeRow {
                name: tier.node_name.clone(),
                role: role(tier.role),
                parent: tiers.get(at + 1).map_or_else(String::new, |above| above.node_name.clone()),
                state: state.to_owned(),
                up_bytes_per_s: link.up_bytes_per_s,
                rtt_ns: link.rtt_ns,
                queued: tier.load.map_or(0, |load| load.queued),
                utilisation: tier.load.map_or(0.0, |load| load.utilisation),
            });
        }
    }
    Ok(Seen {
        role: role(status.role),
        name: status.node_name,
        version: status.version,
        uptime_ms: status.uptime_ms,
        draining: status.draining,
        queued: load.queued,
        running: load.running,
        utilisation: load.utilisation,
        memory_used_bytes: load.memory_max_bytes.saturating_sub(load.memory_free_bytes),
        memory_max_bytes: load.memory_max_bytes,
        nodes,
        left_out: listed.left_out,
        plans,
        counts: counts(&numbers),
        events,
    })
}

fn role(role: i32) -> &'static str {
    Role::try_from(role).unwrap_or(Role::Unspecified).word()
}

fn nodes(listed: Vec<NodeInfo>) -> Vec<NodeRow> {
    let names: std::collections::HashMap<String, String> =
        listed.iter().map(|node| (node.node_id.clone(), node.node_name.clone())).collect();
    let row = |node: NodeInfo| {
        let LinkEstimate { up_bytes_per_s, rtt_ns, .. } = node.link.unwrap_or_default();
        NodeRow {
            parent: names.get(&node.parent_id).cloned().unwrap_or(node.parent_name),
            name: node.node_name,
            role: role(node.role),
            state: node.state,
            up_bytes_per_s,
            rtt_ns,
            queued: node.load.map_or(0, |load| load.queued),
            utilisation: node.load.map_or(0.0, |load| load.utilisation),
        }
    };
    listed.into_iter().map(row).collect()
}

fn plan(model: String, document: &Value) -> PlanRow {
    let said = &document["explanation"];
    let exits = said["exits"].as_array().map_or(&[][..], Vec::as_slice);
    PlanRow {
        model,
        placement: document["placement"].as_str().unwrap_or_default().to_owned(),
        predicted_ns: said["predicted_ns"].as_f64(),
        measured_ns: said["measured_ns"].as_f64(),
        slowest: said["slowest"].as_str().unwrap_or_default().to_owned(),
        leave: exits.iter().filter_map(|exit| exit["leave"].as_f64()).collect(),
    }
}

/// What was counted, out of Prometheus' lines.
fn counts(numbers: &str) -> Vec<CountRow> {
    let mut rows = Vec::new();
    for (name, what) in COUNTED {
        let of_name = numbers.lines().filter_map(|line| {
            let (label, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("\"} ")?;
            Some((label.split_once("=\"")?.1.to_owned(), value.parse::<f64>().ok()?))
        });
        let counted: Vec<(String, f64)> = of_name.filter(|(_, count)| *count > 0.0).collect();
        let all: f64 = counted.iter().map(|(_, count)| count).sum();
        rows.extend(counted.into_iter().map(|(of, count)| {
            let of = match (*what, of.as_str()) {
                ("exits", "0") => "the model's end".to_owned(),
                ("exits", exit) => format!("exit {exit}"),
                _ => of,
            };
            CountRow { what, of, count, share: count / all }
        }));
    }
    rows
}

impl NodeRow {
    pub fn cells(&self) -> Vec<String> {
        let link = if self.up_bytes_per_s > 0.0 {
            format!("{:.2} Mbit/s, {:.0} ms", self.up_bytes_per_s * 8.0 / 1e6, self.rtt_ns as f64 / 1e6)
        } else {
            "-".to_owned()
        };
        let parent = if self.parent.is_empty() { "-".to_owned() } else { self.parent.clone() };
        let busy = format!("{:.0} %", self.utilisation * 100.0);
        vec![self.name.clone(), self.role.to_owned(), parent, self.state.clone(), link, self.queued.to_string(), busy]
    }
}

impl PlanRow {
    pub fn cells(&self) -> Vec<String> {
        let time = |ns: Option<f64>| ns.map_or_else(|| "-".to_owned(), |ns| output::duration(ns as u64));
        let leave: Vec<String> = self.leave.iter().map(|share| format!("{:.0} %", share * 100.0)).collect();
        let exits = if leave.is_empty() { "-".to_owned() } else { leave.join(", ") };
        let (predicted, measured) = (time(self.predicted_ns), time(self.measured_ns));
        vec![self.model.clone(), self.placement.clone(), predicted, measured, self.slowest.clone(), exits]
    }
}

impl CountRow {
    pub fn cells(&self) -> Vec<String> {
        let share = format!("{:.0} %", self.share * 100.0);
        vec![self.what.to_owned(), self.of.clone(), format!("{:.0}", self.count), share]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_read_out_of_the_numbers() {
        let numbers = "# TYPE tierline_requests_total counter\ntierline_requests_total{outcome=\"ok\"} 3\n\
            tierline_requests_total{outcome=\"failed\"} 1\ntierline_requests_total{outcome=\"degraded\"} 0\n\
            tierline_exits_total{exit=\"0\"} 2\ntierline_exits_total{exit=\"2\"} 2\ntierline_sent_bytes_total 7\n";
        let rows: Vec<Vec<String>> = counts(numbers).iter().map(CountRow::cells).collect();
        let expected = [
            ["requests", "ok", "3", "75 %"],
            ["requests", "failed", "1", "25 %"],
            ["exits", "the model's end", "2", "50 %"],
            ["exits", "exit 2", "2", "50 %"],
        ];
        assert_eq!(rows, expected);
    }
}

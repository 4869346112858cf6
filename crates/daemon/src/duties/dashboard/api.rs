//! What the page draws, as JSON: the site, models and their plans, what would
//! be with another link, events, jobs, numbers. Nothing here changes anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tierline_proto::Role;
use tierline_proto::v1::{
    Code, Failure, JobInfo, LinkEstimate, LoadReport, NodeInfo, ParentStatus, PlanRequest, UpstreamTier,
};

use super::Dashboard;
use crate::duties::services::STEP;
use crate::net::plain::refusal;
use crate::runtime::{numbers as texts, tasks};

/// What the page draws of a link's speeds: from 0.1 Mbit/s to 10 Gbit/s, so
/// many for each tenfold.
const PER_TENFOLD: i32 = 12;
const SPEED_MIN_BYTES_PER_S: f64 = 12_500.0;
const TENFOLDS: i32 = 5;

type Duty = State<Arc<Dashboard>>;

/// A name in a path, where it is text.
type Named = Result<Path<String>, PathRejection>;

/// Every path of the interface.
pub fn router() -> Router<Arc<Dashboard>> {
    Router::new()
        .route("/api/v1/site", get(site))
        .route("/api/v1/models", get(models))
        .route("/api/v1/models/{model}", get(model))
        .route("/api/v1/models/{model}/what-if", get(what_if))
        .route("/api/v1/services", get(services))
        .route("/api/v1/events", get(events))
        .route("/api/v1/jobs", get(jobs))
        .route("/api/v1/jobs/{job}", get(job))
        .route("/api/v1/numbers", get(numbers))
}

fn answered(result: Result<Value, Failure>) -> Response {
    match result {
        Ok(value) => ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response(),
        Err(failure) => {
            let status = StatusCode::from_u16(failure.code().http_status());
            let text = match failure.code() {
                Code::Internal | Code::Corrupt | Code::StorageFull | Code::Ok => "the node failed; its log says why",
                _ => failure.message.as_str(),
            };
            refusal(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), text)
        }
    }
}

fn name(path: Named) -> Result<String, Failure> {
    path.map(|Path(name)| name).map_err(|_| Failure::new(Code::InvalidInput, "the path is no text"))
}

impl Dashboard {
    /// A text without the places of this machine.
    fn shown(&self, text: &str) -> String {
        let data = self.cx.me.config().data.display().to_string();
        if data.len() > 1 { text.replace(&data, "(data folder)") } else { text.to_owned() }
    }

    fn parent(&self, parent: ParentStatus) -> Value {
        json!({
            "name": parent.node_name,
            "role": role(parent.role),
            "state": parent.state,
            "why": parent.failure.map(|failure| self.shown(&failure.message)),
            "next_try_ms": parent.next_try_ms,
            "link": parent.link.map(link),
            "tiers": parent.path.unwrap_or_default().tiers.into_iter().map(tier).collect::<Vec<_>>(),
        })
    }

    fn job(&self, job: &JobInfo) -> Value {
        let excluded = job.excluded.iter().map(|e| json!({ "node": e.node, "reason": self.shown(&e.reason) }));
        json!({
            "id": hex(&job.job),
            "name": job.name,
            "state": job.state,
            "round": job.round,
            "rounds": job.rounds,
            "counted": job.counted,
            "goal": job.goal,
            "ready": job.ready,
            "members": job.members,
            "excluded": excluded.collect::<Vec<_>>(),
            "failure": self.shown(&job.failure),
            "waits_for": self.shown(&job.waits_for),
            "created_ms": job.created_ms,
        })
    }
}

fn role(role: i32) -> &'static str {
    Role::try_from(role).unwrap_or(Role::Unspecified).word()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn link(link: LinkEstimate) -> Value {
    json!({
        "up_bytes_per_s": link.up_bytes_per_s,
        "down_bytes_per_s": link.down_bytes_per_s,
        "rtt_ns": link.rtt_ns,
        "confidence": link.confidence,
        "age_ms": link.age_ms,
    })
}

fn load(load: LoadReport) -> Value {
    json!({
        "queued": load.queued,
        "running": load.running,
        "utilisation": load.utilisation,
        "wait_ns": load.wait_ns,
        "memory_free_bytes": load.memory_free_bytes,
        "memory_max_bytes": load.memory_max_bytes,
    })
}

fn node(node: NodeInfo) -> Value {
    json!({
        "id": node.node_id,
        "name": node.node_name,
        "role": role(node.role),
        "parent_id": node.parent_id,
        "parent_name": node.parent_name,
        "state": node.state,
        "last_seen_ms": node.last_seen_ms,
        "link": node.link.map(link),
        "load": node.load.map(load),
        "models": node.model_count,
    })
}

fn tier(tier: UpstreamTier) -> Value {
    json!({
        "id": tier.node_id,
        "name": tier.node_name,
        "role": role(tier.role),
        "reachable": tier.reachable,
        "link_above": tier.link_above.map(link),
        "load": tier.load.map(load),
    })
}

async fn site(State(dashboard): Duty) -> Response {
    let (status, listed) = (dashboard.site.status().await, dashboard.site.nodes());
    let memory = status.memory.iter().map(|m| json!({ "kind": m.kind, "count": m.count, "bytes": m.bytes }));
    answered(Ok(json!({
        "node": {
            "id": status.node_id,
            "name": status.node_name,
            "role": role(status.role),
            "version": status.version,
            "engine": format!("{} {}", status.engine, status.engine_version),
            "uptime_ms": status.uptime_ms,
            "draining": status.draining,
            "store_bytes": status.store_bytes,
            "load": status.load.map(load),
            "memory": memory.collect::<Vec<_>>(),
        },
        "nodes": listed.nodes.into_iter().map(node).collect::<Vec<_>>(),
        "left_out": listed.left_out,
        "parents": status.parents.into_iter().map(|parent| dashboard.parent(parent)).collect::<Vec<_>>(),
    })))
}

async fn models(State(dashboard): Duty) -> Response {
    let models = dashboard.catalogue.known.list().into_iter().map(|entry| {
        json!({
            "name": entry.manifest.name,
            "digest": entry.model.to_string(),
            "in_force": dashboard.planning.in_force(&entry),
            "exits": entry.manifest.exits.is_some(),
        })
    });
    answered(Ok(json!({ "models": models.collect::<Vec<_>>() })))
}

/// The best plan under the links as they are, beside what was measured of it.
async fn model(State(dashboard): Duty, path: Named) -> Response {
    let planned = name(path).and_then(|name| dashboard.catalogue.entry(&name)).and_then(|entry| {
        let reply = tasks::in_place(|| dashboard.planning.plan_now(&entry, &PlanRequest::default(), true))?;
        serde_json::from_str(&reply.plan_json).map_err(|e| Failure::new(Code::Internal, e.to_string()))
    });
    answered(planned)
}

/// Plans that would be chosen if the first link upwards were as fast as
/// `?up=BYTES_PER_S`; without it, over all speeds that links have.
async fn what_if(State(dashboard): Duty, path: Named, RawQuery(query): RawQuery) -> Response {
    let asked = || {
        let entry = dashboard.catalogue.entry(&name(path)?)?;
        let query = query.unwrap_or_default();
        let wrong = || Failure::new(Code::InvalidInput, "`up` is a speed in bytes per second, above zero");
        let speeds = match query.split('&').find_map(|part| part.strip_prefix("up=")) {
            Some(up) => {
                // Exponents have signs, which some write as `%2B`.
                let up = percent_decode_str(up).decode_utf8().ok().and_then(|up| up.parse().ok());
                let up = up.filter(|up: &f64| up.is_finite() && *up > 0.0);
                vec![up.ok_or_else(wrong)?]
            }
            None => sweep().collect(),
        };
        let chosen = tasks::in_place(|| dashboard.planning.what_if(&entry, &speeds))?;
        serde_json::to_value(chosen).map_err(|e| Failure::new(Code::Internal, e.to_string()))
    };
    answered(asked())
}

fn sweep() -> impl Iterator<Item = f64> {
    (0..=TENFOLDS * PER_TENFOLD).map(|at| SPEED_MIN_BYTES_PER_S * 10f64.powf(f64::from(at) / f64::from(PER_TENFOLD)))
}

/// Who answered for each cascade lately.
async fn services(State(dashboard): Duty) -> Response {
    let services = dashboard.services.lately().into_iter().map(|lately| {
        json!({ "name": lately.name, "members": lately.members, "step_s": STEP.as_secs(), "answers": lately.answers })
    });
    answered(Ok(json!({ "services": services.collect::<Vec<_>>() })))
}

async fn events(State(dashboard): Duty) -> Response {
    let (past, _) = dashboard.cx.events.subscribe();
    let events = past
        .iter()
        .map(|event| json!({ "time_ms": event.time_ms, "kind": event.kind, "text": dashboard.shown(&event.text) }));
    answered(Ok(json!({ "events": events.collect::<Vec<_>>() })))
}

async fn jobs(State(dashboard): Duty) -> Response {
    let listed = dashboard.jobs.job_list().await;
    answered(listed.map(|jobs| json!({ "jobs": jobs.iter().map(|job| dashboard.job(job)).collect::<Vec<_>>() })))
}

/// A job, and what its rounds came to.
async fn job(State(dashboard): Duty, path: Named) -> Response {
    let found = async {
        let info = dashboard.jobs.job_info(&name(path)?).await?;
        let (past, _) = dashboard.jobs.job_watch(&hex(&info.job)).await?;
        let rounds = past.iter().filter(|event| event.kind == "round");
        let rounds: Vec<Value> = rounds.filter_map(|event| serde_json::from_str(&event.json).ok()).collect();
        let mut job = dashboard.job(&info);
        job["curve"] = rounds.into();
        Ok(job)
    };
    answered(found.await)
}

/// Prometheus' lines as one object: what stands before the value is its key.
async fn numbers(State(dashboard): Duty) -> Response {
    let text = texts::text(&dashboard.cx);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let values = lines.filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        Some((series.to_owned(), value.parse::<f64>().ok()?))
    });
    answered(Ok(json!({ "numbers": values.collect::<BTreeMap<_, _>>() })))
}

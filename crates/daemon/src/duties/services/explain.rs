//! What a service does with a request, for people: who runs where, by which
//! rule it goes on, how often, and how long that takes. Start at
//! [`Services::explain`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tierline_plan::service::{self as plan, Kind, Service};
use tierline_proto::Role;
use tierline_proto::v1::{Code, Failure, PlanReply, PlanRequest};

use super::Services;
use crate::duties::catalogue::Composed;
use crate::duties::planning::Placed;
use crate::words::{duration, table};

/// Models that aren't here yet are waited for no longer.
const FETCH_TIME_MAX: Duration = Duration::from_secs(10);

/// A service, explained.
#[derive(Debug, Serialize)]
struct Explained {
    service: String,
    kind: &'static str,
    members: Vec<MemberPlan>,
    /// Ways that a request goes, and how often.
    paths: Vec<PathPlan>,
    /// Share of the requests that are answered without leaving this node, where
    /// shares are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    answered_near: Option<f64>,
    /// Of the average request, where shares and times are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ns: Option<f64>,
    /// Share of the sure answers that is asked further all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    audit: Option<f64>,
    /// Share of all answers that are to be the larger models', to which
    /// thresholds are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    agreement: Option<f64>,
    /// What shares were calibrated on, and how right answers are by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    calibrated: Option<Calibrated>,
    /// Answers on this node since it began.
    answers: u64,
}

#[derive(Debug, Serialize)]
struct Calibrated {
    data: String,
    examples: u64,
    accuracy: f64,
    /// Of the last model alone.
    accuracy_last: f64,
}

#[derive(Debug, Serialize)]
struct MemberPlan {
    member: String,
    model: String,
    /// Where it runs, in words.
    placement: String,
    /// Whether the service says where, in place of a plan.
    fixed: bool,
    /// Whether all of it runs on this node.
    here: bool,
    /// Members whose outputs it takes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    after: Vec<String>,
    /// When its answer stands, of a cascade: how sureness is computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    criterion: Option<&'static str>,
    /// The least sureness of an answer that stands: what is in force here.
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<f64>,
    /// Expected time; none where it isn't known yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ns: Option<u64>,
}

#[derive(Debug, Serialize)]
struct PathPlan {
    /// Who is asked.
    members: Vec<String>,
    /// Share of the requests, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<f64>,
    /// Expected time, where those of all are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ns: Option<u64>,
    /// Whether all of it runs on this node.
    here: bool,
}

impl Services {
    /// Explains a service; none where the name isn't one's.
    ///
    /// # Errors
    /// [`Code::InvalidInput`] for goals and limits, which are for models; what
    /// keeps a member from being placed.
    pub async fn explain(&self, request: &PlanRequest) -> Result<Option<PlanReply>, Failure> {
        let Some(composed) = self.catalogue.known.service(&request.model) else { return Ok(None) };
        if !request.objective.is_empty() || !request.limits_json.is_empty() {
            let text = format!("`{}` is made of several models, each with a plan of its own", composed.name);
            let help = "leave the goal and the limits away, or ask for one of its models";
            return Err(Failure::new(Code::InvalidInput, text).with_help(help));
        }
        let service = Arc::clone(&composed.service);
        let mut members = Vec::with_capacity(service.members.len());
        for place in 0..service.members.len() {
            members.push(self.member(&composed, place).await?);
        }
        let explained = self.explained(&composed, members);
        let plan_json = serde_json::to_string(&explained).map_err(|e| Failure::new(Code::Internal, e.to_string()))?;
        Ok(Some(PlanReply { plan_json, text: words(&explained) }))
    }

    async fn member(&self, composed: &Composed, place: usize) -> Result<MemberPlan, Failure> {
        let service = &composed.service;
        let member = &service.members[place];
        let entry = self.catalogue.entry(&member.model)?;
        let program = self.catalogue.program_within(&entry, Instant::now() + FETCH_TIME_MAX).await?;
        let at = |role| self.planning.all_at_role(&program, role);
        // A place that can't be reached is told of as one.
        let placed = match member.placement {
            plan::Placement::Plan => Ok(self.planning.current_plan(&entry, &program)),
            plan::Placement::Here => Ok(self.planning.all_here(&program)),
            plan::Placement::Edge => at(Role::Edge),
            plan::Placement::Cloud => at(Role::Cloud),
        };
        let placed =
            placed.unwrap_or_else(|failure| Placed { text: format!("nowhere: {failure}"), ..Placed::default() });
        let nowhere = placed.text.starts_with("nowhere");
        let rule = member.rule().filter(|_| service.kind == Kind::Cascade);
        Ok(MemberPlan {
            member: member.name().to_owned(),
            model: member.model.clone(),
            here: placed.boundaries.is_empty() && !nowhere,
            placement: placed.text,
            fixed: member.placement != plan::Placement::Plan,
            after: service.before(place).into_iter().map(|place| service.members[place].name().to_owned()).collect(),
            criterion: rule.map(|rule| rule.criterion.name()),
            threshold: rule.map(|rule| self.following.threshold(composed, place).unwrap_or(rule.threshold)),
            latency_ns: (placed.predicted_ns > 0).then_some(placed.predicted_ns),
        })
    }

    fn explained(&self, composed: &Composed, members: Vec<MemberPlan>) -> Explained {
        let service = &composed.service;
        let seen: Vec<u64> = members.iter().map(|member| self.numbers.of(&composed.name, &member.member)).collect();
        let shares = service.answered(&seen);
        let paths = match service.kind {
            Kind::Cascade => cascade(&members, shares.as_deref()),
            Kind::Ensemble => vec![together(&members, members.iter().map(|m| m.latency_ns).try_fold(0, longest))],
            Kind::Chain => vec![together(&members, chain(service, &members))],
        };
        let average = |of: &dyn Fn(&PathPlan) -> Option<f64>| {
            paths.iter().map(|path| Some(path.share? * of(path)?)).sum::<Option<f64>>()
        };
        let calibrated = service.calibration.as_ref().zip(service.point()).map(|(curve, point)| Calibrated {
            data: curve.data.clone(),
            examples: curve.examples,
            accuracy: point.accuracy,
            accuracy_last: curve.accuracy,
        });
        Explained {
            service: composed.name.clone(),
            kind: service.kind.word(),
            answered_near: average(&|path| Some(f64::from(u8::from(path.here)))),
            latency_ns: average(&|path| path.latency_ns.map(|ns| ns as f64)),
            audit: (service.audit > 0.0).then_some(service.audit),
            agreement: service.agreement,
            calibrated,
            answers: match service.kind {
                Kind::Cascade => seen.iter().sum(),
                _ => self.numbers.of_all(&composed.name),
            },
            members,
            paths,
        }
    }
}

/// One way for each member that may answer: past all before it.
fn cascade(members: &[MemberPlan], shares: Option<&[f64]>) -> Vec<PathPlan> {
    let path = |last: usize| {
        let asked = &members[..=last];
        PathPlan {
            members: asked.iter().map(|member| member.member.clone()).collect(),
            share: shares.and_then(|shares| shares.get(last).copied()),
            latency_ns: asked.iter().map(|member| member.latency_ns).sum(),
            here: asked.iter().all(|member| member.here),
        }
    };
    (0..members.len()).map(path).collect()
}

/// The only way, past all of them.
fn together(members: &[MemberPlan], latency_ns: Option<u64>) -> PathPlan {
    PathPlan {
        members: members.iter().map(|member| member.member.clone()).collect(),
        share: Some(1.0),
        latency_ns,
        here: members.iter().all(|member| member.here),
    }
}

fn longest(so_far: u64, next: Option<u64>) -> Option<u64> {
    next.map(|next| so_far.max(next))
}

/// Until the last of a chain has answered, each asked as soon as those that it
/// takes something of are done; of crops, for one batch.
fn chain(service: &Service, members: &[MemberPlan]) -> Option<u64> {
    let mut done: Vec<u64> = Vec::with_capacity(members.len());
    for (place, member) in members.iter().enumerate() {
        let begins = service.before(place).into_iter().filter_map(|before| done.get(before)).max().copied();
        done.push(begins.unwrap_or(0) + member.latency_ns?);
    }
    done.into_iter().max()
}

fn words(explained: &Explained) -> String {
    let time = |ns: Option<u64>| ns.map_or_else(|| "not known yet".to_owned(), duration);
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let how = match explained.kind {
        "cascade" => "asked one after the other, until one is sure",
        "ensemble" => "asked at once",
        _ => "each asked once it has what it takes of others",
    };
    let mut text =
        format!("{} is a {} of {} models, {how}\n\n", explained.service, explained.kind, explained.members.len());
    let last = explained.members.len() - 1;
    let row = |(place, member): (usize, &MemberPlan)| {
        let stands = match (member.criterion, member.threshold) {
            (Some(_), Some(threshold)) if threshold > 1.0 => "never by itself".to_owned(),
            (Some(criterion), Some(threshold)) => format!("{criterion} of at least {threshold:.4}"),
            _ if explained.kind == "cascade" && place == last => "it is asked".to_owned(),
            _ if !member.after.is_empty() => format!("after {}", member.after.join(", ")),
            _ => "at once".to_owned(),
        };
        let by = if member.fixed { "as the service says" } else { "by its plan" };
        vec![
            member.member.clone(),
            member.model.clone(),
            format!("{}, {by}", member.placement),
            stands,
            time(member.latency_ns),
        ]
    };
    let rows: Vec<Vec<String>> = explained.members.iter().enumerate().map(row).collect();
    let rule = if explained.kind == "cascade" { "answers when" } else { "asked" };
    text += &table(&["member", "model", "runs", rule, "predicted"], &rows);
    text.push('\n');
    let row = |path: &PathPlan| {
        let share = path.share.map_or_else(|| "not known yet".to_owned(), percent);
        vec![path.members.join(", "), share, time(path.latency_ns)]
    };
    let rows: Vec<Vec<String>> = explained.paths.iter().map(row).collect();
    text += &table(&["asked", "requests", "predicted"], &rows);
    text.push('\n');
    if let Some(near) = explained.answered_near {
        text += &format!("answered here  {}\n", percent(near));
    }
    if let Some(latency) = explained.latency_ns {
        text += &format!("average        {}\n", duration(latency as u64));
    }
    if let Some(audit) = explained.audit {
        text += &format!("audited        {} of the sure answers are asked further\n", percent(audit));
    }
    if let Some(agreement) = explained.agreement {
        text += &format!("agreement      thresholds follow traffic to keep {}\n", percent(agreement));
    }
    if let Some(by) = &explained.calibrated {
        text += &format!(
            "calibrated     on {}, {} examples: {} right, {} by the last model alone\n",
            by.data,
            by.examples,
            percent(by.accuracy),
            percent(by.accuracy_last)
        );
    }
    text += &format!("answers        {} on this node since it began\n", explained.answers);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, latency_ns: Option<u64>, here: bool) -> MemberPlan {
        MemberPlan {
            member: name.to_owned(),
            model: name.to_owned(),
            placement: String::new(),
            fixed: false,
            here,
            after: Vec::new(),
            criterion: None,
            threshold: None,
            latency_ns,
        }
    }

    #[test]
    fn a_cascade_takes_as_long_as_all_that_were_asked() {
        let members = [member("a", Some(3), true), member("b", Some(20), false)];
        let paths = cascade(&members, Some(&[0.75, 0.25]));
        let of = |path: &PathPlan| (path.members.len(), path.share, path.latency_ns, path.here);
        assert_eq!(of(&paths[0]), (1, Some(0.75), Some(3), true));
        assert_eq!(of(&paths[1]), (2, Some(0.25), Some(23), false));
        let members = [member("a", Some(3), true), member("b", None, false)];
        assert_eq!(cascade(&members, None)[1].latency_ns, None);
    }

    #[test]
    fn a_chain_takes_as_long_as_its_longest_way() {
        let text = "kind = \"chain\"\n[[member]]\nmodel = \"a\"\n[[member]]\nmodel = \"b\"\n
                    [[member]]\nmodel = \"c\"\ninputs = { x = { of = \"a\", output = \"y\" } }\n";
        let service = Service::parse(text).unwrap();
        let latencies = |b| [member("a", Some(5), true), member("b", b, true), member("c", Some(7), true)];
        assert_eq!(chain(&service, &latencies(Some(8))), Some(12), "b beside a and c");
        assert_eq!(chain(&service, &latencies(Some(13))), Some(13));
        assert_eq!(chain(&service, &latencies(None)), None);
    }
}

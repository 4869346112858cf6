//! What jobs say on the wire, and what the machines make of it: every
//! conversion between the two.

use std::io::ErrorKind;

use tierline_federate::down::DIFFERENCES_MAX;
use tierline_federate::{FederateError, HeldOut, Report};
use tierline_node::federation::{Assignment, MemberStatus, Task, Update, Verdict};
use tierline_proto::Digest;
use tierline_proto::limits::{MESSAGE_BYTES_MAX, TEXT_BYTES_MAX};
use tierline_proto::v1;
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{
    Code, Empty, Failure, JobAssignment, JobMember, JobStatus, JobVerdict, Neighbour, TaskFailure, UpdateHeader,
    WorkOrder, WorkReport, job_status, job_verdict,
};

pub(super) fn internal(error: impl std::fmt::Display) -> Failure {
    Failure::new(Code::Internal, error.to_string())
}

/// What a round can't be made for: passes if only room is missing.
pub(super) fn of_round(error: FederateError) -> Failure {
    match error {
        FederateError::SpillStore { kind: ErrorKind::StorageFull | ErrorKind::QuotaExceeded, .. } => {
            Failure::new(Code::StorageFull, error.to_string()).with_help("make room; the job goes on by itself")
        }
        error => internal(error),
    }
}

/// The digest in a message.
///
/// # Errors
/// [`Code::Protocol`] when it is none.
pub(super) fn digest(bytes: &[u8]) -> Result<Digest, Failure> {
    Digest::try_from(bytes).map_err(|e| Failure::new(Code::Protocol, e.to_string()))
}

/// The member that a child's message is about.
pub(super) fn member<'m>(child: &'m str, node: &'m str) -> &'m str {
    if node.is_empty() { child } else { node }
}

/// What is wanted for a job, of a child or of a member below it.
pub(super) fn assignment(job: Digest, node: &str, want: Want) -> JobAssignment {
    JobAssignment { job: job.to_bytes(), node: node.to_owned(), want: Some(want), classes: None }
}

/// Where a task's model is to be had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Start {
    /// Its artefact; none for the model that the job begins with.
    pub(super) model: Option<Digest>,
    /// Artefacts of what sets it, and those before it, apart from the one
    /// before each.
    pub(super) differences: Vec<Digest>,
    /// Of an edge that gossips: whom it meets.
    pub(super) neighbours: Vec<Neighbour>,
}

/// What a coordinator wants, and where its task's model is.
pub(super) fn want(assignment: Assignment, start: Start) -> Want {
    match assignment {
        Assignment::Wait => Want::Wait(Empty {}),
        Assignment::Over { .. } => Want::Over(Empty {}),
        Assignment::Out { reason } => Want::Out(Failure::new(Code::Forbidden, reason)),
        Assignment::Work { task, round, version, evaluate } => {
            let model = start.model.map(Digest::to_bytes).unwrap_or_default();
            let differences = start.differences.into_iter().map(Digest::to_bytes).collect();
            let neighbours = start.neighbours;
            Want::Work(WorkOrder { task: task.0, round, version, model, evaluate, differences, neighbours })
        }
    }
}

/// What a coordinator wants, and where its task's model is; `None` where it
/// only asks.
///
/// # Errors
/// [`Code::Protocol`] for a model that isn't a digest, or more differences than
/// anybody follows.
pub(super) fn assignment_of(want: Want) -> Result<Option<(Assignment, Start)>, Failure> {
    let none = Start::default();
    Ok(Some(match want {
        Want::Join(_) => return Ok(None),
        Want::Wait(_) => (Assignment::Wait, none),
        // Which model is the last one matters to nobody below.
        Want::Over(_) => (Assignment::Over { version: 0 }, none),
        Want::Out(failure) => (Assignment::Out { reason: failure.message }, none),
        Want::Work(WorkOrder { task, round, version, model, evaluate, differences, neighbours }) => {
            if differences.len() > DIFFERENCES_MAX {
                let text = format!("{} differences lead to a model; {DIFFERENCES_MAX} may", differences.len());
                return Err(Failure::new(Code::Protocol, text));
            }
            let model = if model.is_empty() { None } else { Some(digest(&model)?) };
            let differences = differences.iter().map(|bytes| digest(bytes)).collect::<Result<_, _>>()?;
            (Assignment::Work { task: Task(task), round, version, evaluate }, Start { model, differences, neighbours })
        }
    }))
}

/// A status as it travels, of a member that holds this model of its parent
/// and is reached there, if it is.
pub(super) fn status(job: Digest, status: &MemberStatus, holds: u64, url: &str) -> JobStatus {
    let failure = |reason: &str| Failure::new(Code::Infeasible, reason);
    let status = match status {
        MemberStatus::Preparing => job_status::Status::Preparing(Empty {}),
        MemberStatus::Ready { examples } => job_status::Status::Examples(*examples),
        MemberStatus::Unable { reason } => job_status::Status::Unable(failure(reason)),
        MemberStatus::Failed { task, reason, examples } => {
            job_status::Status::Failed(TaskFailure { task: task.0, reason: Some(failure(reason)), examples: *examples })
        }
    };
    let (job, node, url) = (job.to_bytes(), String::new(), url.to_owned());
    JobStatus { job, node, status: Some(status), holds, url, classes: Vec::new() }
}

/// Bytes that a job's members who don't take part make of an answer, at most:
/// half a message.
const LISTED_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 2;

/// Members that don't take part, and why: as many as fit an answer.
pub(super) fn listed(all: impl IntoIterator<Item = (String, String)>) -> Vec<JobMember> {
    let (mut listed, mut bytes, mut left) = (Vec::new(), 0, 0);
    for (node, reason) in all {
        bytes += node.len() + reason.len() + 16;
        match bytes <= LISTED_BYTES_MAX {
            true => listed.push(JobMember { node, reason }),
            false => left += 1,
        }
    }
    if left > 0 {
        let (node, reason) = (format!("{left} more"), "not listed, for want of room".to_owned());
        listed.push(JobMember { node, reason });
    }
    listed
}

/// A member's own words, which are kept and shown: cut where a sentence would
/// have ended long ago.
fn words(failure: &Failure) -> String {
    let mut text = failure.to_string();
    let end = (0..=text.len().min(TEXT_BYTES_MAX)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}

/// What a member says it is at; `None` when it is away, or for what this
/// version doesn't know.
pub(super) fn status_of(status: JobStatus) -> Option<MemberStatus> {
    Some(match status.status? {
        job_status::Status::Away(_) => return None,
        job_status::Status::Preparing(_) => MemberStatus::Preparing,
        job_status::Status::Examples(examples) => MemberStatus::Ready { examples },
        job_status::Status::Unable(failure) => MemberStatus::Unable { reason: words(&failure) },
        job_status::Status::Failed(failed) => MemberStatus::Failed {
            task: Task(failed.task),
            reason: failed.reason.as_ref().map_or_else(String::new, words),
            examples: failed.examples,
        },
    })
}

/// A verdict as it travels.
pub(super) fn verdict(verdict: &Verdict) -> JobVerdict {
    let (kind, reason) = match verdict {
        Verdict::Counted => (job_verdict::Kind::Counted, String::new()),
        Verdict::Late => (job_verdict::Kind::Late, String::new()),
        Verdict::Unknown => (job_verdict::Kind::Unknown, String::new()),
        Verdict::Refused { reason } => (job_verdict::Kind::Refused, reason.clone()),
    };
    JobVerdict { kind: kind.into(), reason }
}

/// What became of an update.
pub(super) fn verdict_of(message: &JobVerdict) -> Verdict {
    match message.kind() {
        job_verdict::Kind::Counted => Verdict::Counted,
        job_verdict::Kind::Late => Verdict::Late,
        job_verdict::Kind::Refused => Verdict::Refused { reason: message.reason.clone() },
        job_verdict::Kind::Unknown | job_verdict::Kind::Unspecified => Verdict::Unknown,
    }
}

/// What precedes an update's bytes.
pub(super) fn header(job: Digest, update: &Update) -> UpdateHeader {
    UpdateHeader {
        job: job.to_bytes(),
        task: update.task.0,
        digest: update.digest.to_bytes(),
        length: update.bytes,
        report: Some(report(&update.report)),
        node: String::new(),
    }
}

/// The update that a header is about.
///
/// # Errors
/// [`Code::Protocol`] when its digest is none.
pub(super) fn update_of(header: &UpdateHeader) -> Result<Update, Failure> {
    let report = report_of(header.report.unwrap_or_default());
    Ok(Update { task: Task(header.task), digest: digest(&header.digest)?, bytes: header.length, report })
}

fn report(report: &Report) -> WorkReport {
    WorkReport {
        examples: report.examples,
        steps: report.steps,
        effective_steps: report.effective_steps,
        loss: report.loss,
        accuracy: report.accuracy,
        seconds: report.seconds,
        bytes_up: report.bytes_up,
        bytes_down: report.bytes_down,
        held_out: report.held_out.map(|h| v1::HeldOut { examples: h.examples, loss: h.loss, accuracy: h.accuracy }),
    }
}

fn report_of(message: WorkReport) -> Report {
    Report {
        examples: message.examples,
        steps: message.steps,
        effective_steps: message.effective_steps,
        loss: message.loss,
        accuracy: message.accuracy,
        seconds: message.seconds,
        bytes_up: message.bytes_up,
        bytes_down: message.bytes_down,
        held_out: message.held_out.map(|h| HeldOut { examples: h.examples, loss: h.loss, accuracy: h.accuracy }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_members_say_is_bounded_where_it_is_kept_and_shown() {
        let failure = Failure { message: "é".repeat(1 << 20), ..Failure::default() };
        let said = JobStatus { status: Some(job_status::Status::Unable(failure)), ..JobStatus::default() };
        let Some(MemberStatus::Unable { reason }) = status_of(said) else { panic!("it is unable") };
        assert!(reason.len() <= TEXT_BYTES_MAX, "{}", reason.len());
        let all = (0..10_000).map(|i| (format!("end-{i}"), reason.clone()));
        let listed = listed(all);
        let bytes: usize = listed.iter().map(|m| m.node.len() + m.reason.len()).sum();
        assert!(bytes < MESSAGE_BYTES_MAX && listed.last().unwrap().node.ends_with("more"), "{bytes}");
    }
}

//! Members of a job: where they are, what they say and send, what they are
//! told.

use tierline_federate::{Contribution, Report, aggregate, wire};
use tierline_node::federation::{Assignment, Event, Standing, Task, Update};
use tierline_proto::envelope::FEDERATION;
use tierline_proto::v1::{ClassNames, Failure, JobAssignment, JobStanding, JobVerdict, UpdateHeader, job_standing};
use tierline_proto::{Digest, Role};
use tierline_store::State;
use tierline_store::jobs::Side;
use tokio::sync::oneshot;

use super::Coordination;
use crate::duties::federation::classes;
use crate::duties::federation::messages::{self, Start};
use crate::duties::federation::participant::ToParticipant;

impl Coordination {
    /// Whether a child is no member itself, but passes on what is said to those
    /// below it: an edge, where the job gives edges nothing to do.
    pub(super) fn passes_on(&self, child: &str) -> bool {
        let flat = self.side.below.is_none() && self.side.manifest.federation().edge.is_none();
        flat && self.side.jobs.cx.children.role_of(child) == Some(Role::Edge)
    }

    /// A child says what it, or a member below it, is at.
    pub(super) async fn stands(&mut self, child: &str, standing: JobStanding) -> Result<(), Failure> {
        let member = messages::member(child, &standing.node).to_owned();
        let passes_on = self.passes_on(child);
        if passes_on != (member != child) {
            // An edge that can't pass the job on; or a child that speaks for
            // others though that is not its part.
            if passes_on && let Some(Standing::Unable { reason }) = messages::standing_of(standing) {
                self.note_unable(&member, &reason);
            }
            return Ok(());
        }
        if let Some(job_standing::Standing::Away(_)) = standing.standing {
            return match self.routes.release(child, &member) {
                true => self.step(Event::Lost { member }).await,
                false => Ok(()),
            };
        }
        let said = standing.clone();
        let (holds, url) = (standing.holds, standing.url.clone());
        let Some(mut standing) = messages::standing_of(standing) else { return Ok(()) };
        if !self.routes.claim(child, &member) {
            return Ok(());
        }
        self.holds.insert(member.clone(), holds);
        self.reached_at(&member, url).await;
        self.held.remove(&member);
        match classes::checked(said.classes.clone()) {
            Err(failure) => standing = Standing::Unable { reason: failure.to_string() },
            Ok(names) => {
                let ready = matches!(standing, Standing::Ready { .. });
                if ready && !self.has_numbers(&member, names).await? {
                    self.held.insert(member.clone(), (child.to_owned(), said));
                    standing = Standing::Preparing;
                }
            }
        }
        match &standing {
            Standing::Unable { reason } => self.note_unable(&member, reason),
            _ => drop(self.unable.remove(&member)),
        }
        self.step(Event::Member { member, standing }).await
    }

    /// A member says which classes it names. Whether it can be asked for work:
    /// not while the node above has to be asked for their numbers.
    async fn has_numbers(&mut self, member: &str, names: Vec<String>) -> Result<bool, Failure> {
        let known = names.iter().all(|name| self.classes.names.contains(name));
        if self.classes.hear(member, names.clone()) {
            self.side.folder.save_classes(&self.classes.names)?;
        }
        match &self.side.below {
            Some(below) if !known => {
                let _ = below.send(ToParticipant::Names(names)).await;
                Ok(false)
            }
            _ => {
                if self.classes.is_waited_for() {
                    // Who comes a moment later has a say in it.
                    self.coordinator.hold_until_settled();
                }
                Ok(true)
            }
        }
    }

    /// The node above has told how classes are numbered.
    pub(super) async fn named(&mut self, names: Vec<String>) -> Result<(), Failure> {
        self.classes.names = names;
        for (member, (child, standing)) in std::mem::take(&mut self.held) {
            match standing.classes.iter().all(|name| self.classes.names.contains(name)) {
                true => self.stands(&child, standing).await?,
                // It finds out for itself that its classes aren't among them.
                false => self.tell(&member).await,
            }
        }
        Ok(())
    }

    fn note_unable(&mut self, member: &str, reason: &str) {
        let before = self.unable.insert(member.to_owned(), reason.to_owned());
        if before.as_deref() != Some(reason) {
            self.tell_watchers("unable", &serde_json::json!({ "node": member, "reason": reason }));
        }
    }

    /// Lets the coordinator know of an answer that it doesn't want, so that its
    /// task is not open for ever.
    pub(super) async fn unwanted(&mut self, member: &str, task: Task) -> Result<(), Failure> {
        let update = Update { task, digest: Digest([0; 32]), bytes: 0, report: Report::default() };
        self.step(Event::Arrived { member: member.to_owned(), update }).await
    }

    pub(super) async fn submitted(
        &mut self,
        member: String,
        header: UpdateHeader,
        answer: oneshot::Sender<JobVerdict>,
    ) -> Result<(), Failure> {
        let task = Task(header.task);
        let update = messages::update_of(&header)?;
        let file = self.side.folder.incoming(task.0, &update.digest.0);
        if let Some(verdict) = self.coordinator.would(&member, task) {
            // Decided while its bytes were on their way.
            if !self.coordinator.counts(task, update.digest) {
                self.side.folder.remove(&[file]);
            }
            let _ = answer.send(messages::verdict(&verdict));
            return self.unwanted(&member, task).await;
        }
        let report = update.report;
        let layout = self.aggregator.layout().of_examples(report.examples);
        let evaluate = self.coordinator.is_evaluation(task);
        let read = tokio::task::block_in_place(|| {
            let bytes = self.side.folder.read(&file)?;
            let check = || {
                let vectors = wire::decode_update(&bytes, &layout?)?;
                let contribution = Contribution { vectors, report };
                let checked = if evaluate {
                    aggregate::check_evaluation(&contribution)
                } else {
                    self.aggregator.check(&contribution)
                };
                checked.map(|()| contribution)
            };
            Ok::<_, Failure>(check())
        });
        let checked = match read {
            Ok(checked) => checked,
            Err(failure) => {
                // Its member is not answered, and sends it again.
                let text = format!("an update of {member} can't be read: {failure}");
                self.jobs().cx.events.record("job", text, &serde_json::json!({ "node": member }));
                return Ok(());
            }
        };
        self.waiting.insert((member.clone(), task), (answer, file.clone()));
        let event = match checked {
            Ok(contribution) => {
                self.bytes_up += header.length + report.bytes_up;
                self.bytes_down += report.bytes_down;
                if evaluate {
                    // All that it says is in the journal.
                    self.side.folder.remove(&[file]);
                } else {
                    self.checked.insert(task, contribution);
                }
                Event::Arrived { member, update }
            }
            Err(error) => Event::Unfit { member, task, reason: error.to_string() },
        };
        self.step(event).await
    }

    /// Why an update is not worth its bytes, before they come.
    pub(super) fn too_long(&self, header: &UpdateHeader) -> Option<String> {
        let examples = header.report.map_or(0, |report| report.examples);
        let layout = match self.aggregator.layout().of_examples(examples) {
            Ok(layout) => layout,
            Err(error) => return Some(error.to_string()),
        };
        let (length, most) = (header.length, wire::longest(&layout));
        (length > most).then(|| format!("an update of {length} bytes; one of this model has {most} at most"))
    }

    /// Where a model is to be had.
    async fn start(&mut self, version: u64) -> Start {
        let (jobs, id) = (self.jobs(), self.side.id);
        let leading: Vec<u64> = self.aggregator.down().into_iter().flat_map(|down| down.leading_to(version)).collect();
        let evaluate = move |state: &State| {
            let of = |side, version| state.version(id, side, version).ok().flatten();
            // None where one of them is gone: they are followed one behind the other.
            let differences: Option<_> =
                leading.iter().map(|version| of(Side::CoordinatorDifferences, *version)).collect();
            Ok((of(Side::Coordinator, version), differences.unwrap_or_default()))
        };
        // Who can't be told now is told again.
        let (model, differences) = jobs.cx.state.with(evaluate).await.unwrap_or_default();
        Start { model, differences, neighbours: Vec::new() }
    }

    /// Bytes that take a member to a model: the job's first one whole, others
    /// by what differs where they travel so.
    fn bytes_between(&self, holds: u64, version: u64) -> u64 {
        let followed = self.aggregator.down().filter(|_| version > 0).and_then(|down| down.bytes(holds, version));
        followed.unwrap_or(self.artefact_bytes)
    }

    /// Tells a member what is wanted of it now.
    pub(super) async fn tell(&mut self, member: &str) {
        let jobs = self.jobs();
        let assignment = self.coordinator.assignment(member);
        let mut start = Start::default();
        if let Assignment::Work { task, version, round, evaluate } = assignment {
            start = match self.tells_apart && !evaluate {
                true => Start { model: self.said.get(member).map(|said| said.digest), ..Start::default() },
                false => {
                    let neighbours = self.neighbours_of(member, round);
                    Start { neighbours, ..self.start(version).await }
                }
            };
            let told = self.told.insert(member.to_owned(), task);
            if told != Some(task) {
                // What was sent before a restart was counted by who is gone.
                let sent_before = told.is_none() && self.holds.get(member) == Some(&version);
                let holds = if sent_before { Some(version.saturating_sub(1)) } else { self.holds.get(member).copied() };
                self.bytes_down += match self.tells_apart && !evaluate {
                    true => self.said.get(member).map_or(0, |said| said.bytes),
                    false => self.bytes_between(holds.unwrap_or(0), version),
                };
                self.holds.insert(member.to_owned(), version);
            }
        }
        let want = messages::want(assignment, start);
        // A child that has said nothing yet is reached by its own name.
        let child = self.routes.via(member).unwrap_or(member);
        let further = if child == member { "" } else { member };
        let classes = Some(ClassNames { names: self.classes.told(member) });
        let assignment = JobAssignment { classes, ..messages::assignment(self.side.id, further, want) };
        jobs.cx.children.tell(child, FEDERATION, &assignment);
    }
}

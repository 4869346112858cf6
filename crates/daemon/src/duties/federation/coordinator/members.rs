//! Members of a job: where they are, what they say and send, what they are
//! told.

use tierline_node::federation::{Event, MemberStatus, Task, Verdict, stranger};
use tierline_proto::v1::{Failure, JobStatus, JobVerdict, UpdateHeader, job_status};
use tokio::sync::oneshot;

use super::Coordinating;
use crate::duties::federation::classes;
use crate::duties::federation::messages;
use crate::duties::federation::participant::ToParticipant;

impl Coordinating {
    /// A child says what it, or a member below it, is at.
    pub(super) async fn reported(&mut self, child: &str, status: JobStatus) -> Result<(), Failure> {
        let member = messages::member(child, &status.node).to_owned();
        let passes_on = self.world().passes_on(child);
        if passes_on != (member != child) {
            // An edge that can't pass the job on; or a child that speaks for
            // others though that is not its part.
            if passes_on && let Some(MemberStatus::Unable { reason }) = messages::status_of(status) {
                self.note_unable(&member, &reason);
            }
            return Ok(());
        }
        if let Some(job_status::Status::Away(_)) = status.status {
            return match self.rounds.effects.routes.release(child, &member) {
                true => self.rounds.step(Event::Lost { member }).await,
                false => Ok(()),
            };
        }
        let said = status.clone();
        let (holds, url) = (status.holds, status.url.clone());
        let Some(mut status) = messages::status_of(status) else { return Ok(()) };
        if !self.rounds.effects.routes.claim(child, &member) {
            return Ok(());
        }
        self.reached_at(&member, url).await;
        self.held.remove(&member);
        match classes::checked(said.classes.clone()) {
            Err(failure) => status = MemberStatus::Unable { reason: failure.to_string() },
            Ok(names) => {
                let ready = matches!(status, MemberStatus::Ready { .. });
                if ready && !self.has_numbers(&member, names).await? {
                    self.held.insert(member.clone(), (child.to_owned(), said));
                    status = MemberStatus::Preparing;
                }
            }
        }
        match &status {
            MemberStatus::Unable { reason } => self.note_unable(&member, reason),
            _ => drop(self.unable.remove(&member)),
        }
        self.rounds.reported(member, status, holds).await
    }

    /// A member says where it is reached: its neighbours should know.
    async fn reached_at(&mut self, member: &str, url: String) {
        if url.is_empty() || self.world().urls.get(member) == Some(&url) {
            return;
        }
        self.rounds.effects.urls.insert(member.to_owned(), url);
        let others: Vec<String> = self.rounds.assigned().filter(|other| *other != member).map(str::to_owned).collect();
        for other in &others {
            self.rounds.tell(other).await;
        }
    }

    /// A member says which classes it names. Whether it can be asked for work:
    /// not while the node above has to be asked for their numbers.
    async fn has_numbers(&mut self, member: &str, names: Vec<String>) -> Result<bool, Failure> {
        let world = &mut self.rounds.effects;
        let known = names.iter().all(|name| world.classes.names.contains(name));
        if world.classes.hear(member, names.clone()) {
            world.side.folder.save_classes(&world.classes.names)?;
        }
        match &world.side.below {
            Some(below) if !known => {
                let _ = below.send(ToParticipant::Names(names)).await;
                Ok(false)
            }
            _ => {
                if world.classes.is_waited_for() {
                    // Who comes a moment later has a say in it.
                    self.rounds.coordinator_mut().hold_until_settled();
                }
                Ok(true)
            }
        }
    }

    /// The node above has told how classes are numbered.
    pub(super) async fn named(&mut self, names: Vec<String>) -> Result<(), Failure> {
        self.rounds.effects.classes.names = names;
        for (member, (child, status)) in std::mem::take(&mut self.held) {
            match status.classes.iter().all(|name| self.world().classes.names.contains(name)) {
                true => self.reported(&child, status).await?,
                // It finds out for itself that its classes aren't among them.
                false => self.rounds.tell(&member).await,
            }
        }
        Ok(())
    }

    fn note_unable(&mut self, member: &str, reason: &str) {
        let before = self.unable.insert(member.to_owned(), reason.to_owned());
        if before.as_deref() != Some(reason) {
            self.world().tell_watchers("unable", &serde_json::json!({ "node": member, "reason": reason }));
        }
    }

    /// What would become of an update, before its bytes come.
    pub(super) async fn would(
        &mut self,
        child: &str,
        header: &UpdateHeader,
        answer: oneshot::Sender<Result<Option<JobVerdict>, Failure>>,
    ) -> Result<(), Failure> {
        let member = messages::member(child, &header.node);
        if !self.world().routes.speaks(child, member) {
            let _ = answer.send(Err(stranger(child, member)));
            return Ok(());
        }
        let task = Task(header.task);
        let mut verdict = self.rounds.coordinator().would(member, task);
        let examples = header.report.map_or(0, |report| report.examples);
        if verdict.is_some() {
            // Its task may be open though it is too late for it.
            self.rounds.unwanted(member, task).await?;
        } else if let Some(reason) = self.rounds.too_long(header.length, examples) {
            verdict = Some(Verdict::Refused { reason: reason.clone() });
            self.rounds.step(Event::Unfit { member: member.to_owned(), task, reason }).await?;
        }
        let _ = answer.send(Ok(verdict.as_ref().map(messages::verdict)));
        Ok(())
    }

    /// An update is on the disk.
    pub(super) async fn submitted(
        &mut self,
        member: String,
        header: UpdateHeader,
        answer: oneshot::Sender<JobVerdict>,
    ) -> Result<(), Failure> {
        let task = Task(header.task);
        let update = messages::update_of(&header)?;
        let folder = self.world().side.folder.clone();
        let file = folder.incoming(task.0, &update.digest.0);
        if let Some(verdict) = self.rounds.coordinator().would(&member, task) {
            // Decided while its bytes were on their way.
            if !self.rounds.coordinator().counts(task, update.digest) {
                folder.remove(&[file]);
            }
            let _ = answer.send(messages::verdict(&verdict));
            return self.rounds.unwanted(&member, task).await;
        }
        let bytes = match folder.read(&file) {
            Ok(bytes) => bytes,
            Err(failure) => {
                // Its member is not answered, and sends it again.
                let text = format!("an update of {member} can't be read: {failure}");
                self.jobs().cx.events.record("job", text, &serde_json::json!({ "node": member }));
                return Ok(());
            }
        };
        self.rounds.effects.waiting.insert((member.clone(), task), (answer, file));
        self.rounds.submitted(member, update, &bytes).await
    }
}

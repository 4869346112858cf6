//! What nodes do as coordinators: count updates, make models, end stretches.

use std::sync::Arc;

use tierline_federate::{Contribution, Counted, Report, aggregate, aggregator, wire};
use tierline_node::federation::{Action, Event, MemberEvent, Task, Update};
use tierline_train::federated::Kept;

use super::{Happening, Held, MESSAGE_BYTES, Made, SimError, Site};

impl Site {
    pub(super) fn submitted(&mut self, at: usize, update: Update) -> Result<(), SimError> {
        let parent = self.parent(at);
        let member = self.nodes[at].name.clone();
        let held = self.nodes[at].below.as_ref().and_then(|b| b.update.clone());
        let Some(Held { bytes, report, .. }) = held.filter(|held| held.task == update.task) else { return Ok(()) };
        let Some(above) = &mut self.nodes[parent].above else { return Ok(()) };
        let check = || {
            let vectors = wire::decode_update(&bytes, &above.aggregator.layout().of_examples(report.examples)?)?;
            let contribution = Contribution { vectors, report };
            let checked = match above.coordinator.is_evaluation(update.task) {
                true => aggregate::check_evaluation(&contribution),
                false => above.aggregator.check(&contribution),
            };
            checked.map(|()| contribution)
        };
        let event = match check() {
            Ok(contribution) => {
                above.inbox = Some((update.task, contribution));
                Event::Arrived { member, update }
            }
            Err(error) => Event::Unfit { member, task: update.task, reason: error.to_string() },
        };
        self.coordinate(parent, event)
    }

    pub(super) fn coordinate(&mut self, at: usize, event: Event) -> Result<(), SimError> {
        let now = self.clock.now();
        let Some(above) = &mut self.nodes[at].above else { return Ok(()) };
        let actions = above.coordinator.step(now, event);
        for action in actions {
            self.perform_above(at, action)?;
        }
        self.set_alarm(at);
        Ok(())
    }

    pub(super) fn perform_above(&mut self, at: usize, action: Action) -> Result<(), SimError> {
        match action {
            Action::Keep(_) => {}
            Action::Tell { member } => {
                let Some(above) = &self.nodes[at].above else { return Ok(()) };
                let assignment = above.coordinator.assignment(&member);
                let to = self.index[&member];
                self.down(to, MESSAGE_BYTES, Happening::Told(to, assignment));
            }
            Action::Answer { member, task, verdict } => {
                let to = self.index[&member];
                self.down(to, MESSAGE_BYTES, Happening::Answered(to, task, verdict));
            }
            Action::Add { member, update, version, staleness } => {
                let Some(above) = &mut self.nodes[at].above else { return Ok(()) };
                if let Some((_, contribution)) = above.inbox.take_if(|(task, _)| *task == update.task) {
                    // Those of an older model would teach what was known then.
                    if let Some(tutor) = self.tutor.as_mut().filter(|_| at == 0 && staleness == 0) {
                        tutor.hear(&member, above.aggregator.held(), &contribution)?;
                    }
                    above.aggregator.add(contribution, version, staleness)?;
                }
            }
            Action::Make { round, counted, members, last, .. } => {
                if let Some(exchange) = self.meets(at) {
                    return self.begin_exchange(at, exchange, &counted, members);
                }
                let Some(above) = &mut self.nodes[at].above else { return Ok(()) };
                above.aggregator.make(&counted, members)?;
                let version = above.aggregator.version();
                if let Some(tutor) = self.tutor.as_mut().filter(|_| at == 0) {
                    let taught = tutor.teach(&above.aggregator.server().model, round)?;
                    above.aggregator.replace(version, &taught);
                    let said = tutor.said().into_iter().flatten();
                    self.said.extend(said.map(|(member, said)| (self.index[member], Arc::new(said.clone()))));
                }
                self.publish(at, version)?;
                self.let_go(at, version);
                if at == 0 {
                    // The cloud's are evaluated first.
                    self.made.push_back(Made { round, counted, last, evaluate: false });
                } else {
                    self.coordinate(at, Event::Made { version, enough: false })?;
                }
            }
            Action::Looked { version, counted } => {
                if at == 0 {
                    self.made.push_back(Made { round: self.rounds, counted, last: true, evaluate: true });
                } else {
                    self.coordinate(at, Event::Made { version, enough: false })?;
                }
            }
            Action::Done { stretch, counted, .. } => self.done(at, stretch, &counted)?,
            Action::Excluded { member, reason } => self.excluded.push((member, reason)),
        }
        Ok(())
    }

    /// Keeps the models that members may still start from.
    pub(super) fn let_go(&mut self, at: usize, version: u64) {
        let Some(above) = &mut self.nodes[at].above else { return };
        let in_use = above.coordinator.versions_in_use();
        above.aggregator.retain(&in_use);
        above.published.retain(|v, _| *v == version || in_use.contains(v));
    }

    /// A stretch is done: the cloud's job, or an edge's task.
    pub(super) fn done(&mut self, at: usize, stretch: u64, counted: &[Counted]) -> Result<(), SimError> {
        if at == 0 {
            self.over = true;
            return Ok(());
        }
        let task = Task(stretch - 1);
        let parent = self.parent(at);
        let channels = self.nodes[parent].above.as_ref().map_or_else(Vec::new, |a| a.channels.clone());
        let Some(work) = self.nodes[at].below.as_ref().and_then(|b| b.participant.working()) else { return Ok(()) };
        let Some(above) = self.nodes[at].above.as_ref().filter(|_| work.task == task) else { return Ok(()) };
        // Nothing changes where ends only evaluate.
        let channels = if work.evaluate { Vec::new() } else { channels };
        let vectors = aggregator::change(&above.base, &above.aggregator.server().model, &channels);
        let contribution = Contribution { vectors, report: Report::together(counted) };
        let after = self.nodes[at].below.as_ref().map_or_else(Kept::new, |b| b.kept.clone());
        let update = self.hold(at, work, contribution, after)?;
        self.take_part(at, MemberEvent::Worked { task, result: Ok(update) });
        Ok(())
    }
}

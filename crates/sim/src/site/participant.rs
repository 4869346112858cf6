//! What nodes do as members: fetch, train, hold updates, send them.

use std::sync::Arc;

use tierline_engine::Stop;
use tierline_federate::{Contribution, Vectors};
use tierline_node::federation::{Event, MemberAction, MemberEvent, Task, Update, Work};
use tierline_proto::Digest;
use tierline_train::federated::Kept;

use super::{Happening, Held, MESSAGE_BYTES, Relay, SimError, Site, VERSIONS_KEPT, bytes_of};
use crate::clock::seconds;
use crate::workers::{Done, Order};

impl Site {
    pub(super) fn take_part(&mut self, at: usize, event: MemberEvent) {
        let now = self.clock.now();
        let Some(below) = &mut self.nodes[at].below else { return };
        let actions = below.participant.step(now, &mut self.rng, event);
        for action in actions {
            self.perform_below(at, action);
        }
        self.set_alarm(at);
    }

    pub(super) fn perform_below(&mut self, at: usize, action: MemberAction) {
        match action {
            // Processes don't die here; tests of the machines have them die.
            MemberAction::Keep(_) | MemberAction::Prepare => {}
            MemberAction::Report(standing) => {
                self.up(at, MESSAGE_BYTES, Happening::Stands(at, standing));
            }
            MemberAction::Work(work) => {
                let bytes = self.bytes_to(at, work);
                self.bytes_down += bytes;
                self.fetch(at, bytes + MESSAGE_BYTES, work);
            }
            MemberAction::Abandon(task) => {
                if let Some(trainee) = &mut self.nodes[at].trainee
                    && trainee.running.as_ref().is_some_and(|(work, ..)| work.task == task)
                    && let Some((_, _, stop)) = trainee.running.take()
                {
                    stop.pull();
                }
            }
            MemberAction::Send(update) => {
                let bytes = update.bytes;
                let task = update.task;
                match self.up(at, bytes + MESSAGE_BYTES, Happening::Submitted(at, update)) {
                    true => self.bytes_up += bytes,
                    false => self.take_part(at, MemberEvent::Unsent { task }),
                }
            }
            MemberAction::Settle { counted, .. } => {
                if let Some(below) = &mut self.nodes[at].below {
                    below.update = None;
                    if let Some((if_counted, if_not)) = below.next.take() {
                        below.kept = if counted { if_counted } else { if_not };
                    }
                }
            }
            MemberAction::Finish { .. } | MemberAction::Leave { .. } => {}
        }
    }

    /// Sends bytes up; `then` happens when they are there. Says whether the
    /// node can send.
    pub(super) fn up(&mut self, at: usize, bytes: u64, then: Happening) -> bool {
        let now = self.clock.now();
        let Some(below) = self.nodes[at].below.as_mut().filter(|b| b.reachable) else { return false };
        let there = below.pipes[0].carry(now, bytes);
        let then = match below.relay {
            Some(relay) => Happening::Rising { relay, bytes, then: Box::new(then) },
            None => then,
        };
        self.clock.at(there, then);
        true
    }

    /// Sends bytes down; `then` happens when they are there, if the node can
    /// be reached.
    pub(super) fn down(&mut self, at: usize, bytes: u64, then: Happening) {
        let Some(below) = self.nodes[at].below.as_ref().filter(|b| b.reachable) else { return };
        let now = self.clock.now();
        match below.relay {
            Some(relay) => {
                let there = self.relays[relay].pipes[1].carry(now, bytes);
                self.clock.at(there, Happening::Falling { to: at, bytes, then: Box::new(then) });
            }
            None => self.fall(at, bytes, then),
        }
    }

    /// Bytes take the last link to a node.
    pub(super) fn fall(&mut self, to: usize, bytes: u64, then: Happening) {
        let now = self.clock.now();
        let Some(below) = &mut self.nodes[to].below else { return };
        let there = below.pipes[1].carry(now, bytes);
        self.clock.at(there, then);
    }

    /// The model of a task comes down, once for all ends behind an edge.
    pub(super) fn fetch(&mut self, at: usize, bytes: u64, work: Work) {
        let now = self.clock.now();
        let then = Happening::Fetched(at, work);
        let reachable = self.nodes[at].below.as_ref().filter(|b| b.reachable);
        let Some(below) = reachable else { return self.clock.at(now, then) };
        let Some(relay) = below.relay else { return self.fall(at, bytes, then) };
        let Relay { pipes, models } = &mut self.relays[relay];
        // Versions far back are asked for no more.
        models.retain(|version, _| version + VERSIONS_KEPT > work.version);
        let there = *models.entry(work.version).or_insert_with(|| pipes[1].carry(now, bytes));
        self.clock.at(there, Happening::Falling { to: at, bytes, then: Box::new(then) });
    }

    /// What a member's task begins with: its parent's model, or what is said of
    /// its own examples.
    pub(super) fn start_of(&self, at: usize, work: Work) -> Option<Arc<Vectors>> {
        if self.tells_apart && !work.evaluate {
            return Some(self.said.get(&at).cloned().unwrap_or_default());
        }
        self.nodes[self.parent(at)].above.as_ref().and_then(|a| a.published.get(&work.version)).cloned()
    }

    /// Bytes that take a member to what a task begins with: a model whole, or by
    /// what differs where models travel so.
    pub(super) fn bytes_to(&self, at: usize, work: Work) -> u64 {
        let version = work.version;
        if self.tells_apart {
            return self.start_of(at, work).map_or(0, |start| bytes_of(&start));
        }
        let (Some(below), Some(above)) = (&self.nodes[at].below, &self.nodes[self.parent(at)].above) else { return 0 };
        let followed =
            above.aggregator.down().filter(|_| version > 0).and_then(|down| down.bytes(below.holds, version));
        followed.or_else(|| above.published.get(&version).map(|model| bytes_of(model))).unwrap_or(0)
    }

    /// The model of a task is there: an end trains, an edge begins rounds.
    pub(super) fn fetched(&mut self, at: usize, work: Work) -> Result<(), SimError> {
        let wanted = self.nodes[at].below.as_ref().and_then(|b| b.participant.working()) == Some(work);
        let start = self.start_of(at, work);
        let (true, Some(start)) = (wanted, start) else { return Ok(()) };
        let now = self.clock.now();
        self.moved_at = now;
        let node = &mut self.nodes[at];
        if let Some(below) = &mut node.below {
            below.holds = work.version;
        }
        if let Some(trainee) = &mut node.trainee {
            let stop = Stop::asked();
            // Looking takes next to nothing beside learning.
            let epochs = if work.evaluate { 0 } else { self.epochs };
            let examples = trainee.share.seen.len() as f64 * epochs as f64;
            let done = now + seconds(examples / trainee.examples_per_s);
            let order = Order {
                member: node.name.clone(),
                round: work.round,
                start,
                share: Arc::clone(&trainee.share),
                evaluate: work.evaluate,
                model: trainee.model,
                kept: node.below.as_ref().map_or_else(Kept::new, |b| b.kept.clone()),
                stop: stop.clone(),
            };
            trainee.running = Some((work, self.workers.order(done, order), stop));
            self.clock.at(done, Happening::Worked(at, work.task));
            return Ok(());
        }
        self.cut_short(at)?;
        let Some(above) = &mut self.nodes[at].above else { return Ok(()) };
        let version = above.aggregator.version() + 1;
        above.aggregator.begin(version, &start)?;
        above.base = Arc::new(above.aggregator.server().model.clone());
        self.publish(at, version)?;
        let stretch = work.task.0 + 1;
        let rounds = if work.evaluate { 0 } else { self.edge_rounds };
        self.coordinate(at, Event::Begin { version, rounds, evaluate: work.evaluate, stretch })
    }

    pub(super) fn worked(&mut self, at: usize, task: Task) -> Result<(), SimError> {
        self.moved_at = self.clock.now();
        let Some(trainee) = &mut self.nodes[at].trainee else { return Ok(()) };
        if trainee.running.as_ref().is_none_or(|(work, ..)| work.task != task) {
            return Ok(());
        }
        let Some((work, ticket, _)) = trainee.running.take() else { return Ok(()) };
        let Done { result, kept, own } = self.workers.collect(ticket).ok_or(SimError::Worker)?;
        if let Some(own) = own {
            self.own.insert(self.nodes[at].name.clone(), own);
        }
        let result = match result {
            Ok(Some(mut contribution)) => {
                let attack = self.nodes[at].trainee.as_ref().and_then(|t| t.attack);
                if let Some(attack) = attack {
                    attack.spoil(&mut contribution.vectors);
                }
                Ok(self.hold(at, work, contribution, kept)?)
            }
            Ok(None) => return Ok(()),
            Err(error) => Err(error.to_string()),
        };
        self.take_part(at, MemberEvent::Worked { task, result });
        Ok(())
    }

    /// Keeps a contribution, as it travels, until it is counted.
    pub(super) fn hold(
        &mut self,
        at: usize,
        work: Work,
        contribution: Contribution,
        after: Kept,
    ) -> Result<Update, SimError> {
        let parent = self.parent(at);
        let seed = tierline_train::federated::seed_of_update(self.seed, &self.nodes[at].name, work.task.number());
        let (Some(above), Contribution { vectors, report }) = (&self.nodes[parent].above, contribution) else {
            return Err(SimError::Worker);
        };
        let layout = &above.aggregator.layout().of_examples(report.examples)?;
        let before = self.nodes[at].below.as_ref().map_or_else(Kept::new, |b| b.kept.clone());
        let sent = above.sender.encode(layout, &vectors, &before, after, work.round, seed)?;
        let bytes = sent.bytes.len() as u64;
        let digest = Digest(*blake3::hash(&sent.bytes).as_bytes());
        if let Some(below) = &mut self.nodes[at].below {
            below.update = Some(Held { task: work.task, bytes: Arc::new(sent.bytes), report });
            below.next = Some((sent.counted, before));
        }
        Ok(Update { task: work.task, digest, bytes, report })
    }
}

//! Makes models of what was counted, keeps them, and lets go of them.

use tierline_federate::aggregate::mean_of;
use tierline_federate::{Contribution, Counted, HeldOut, Report, RoundScores, Vectors, aggregator, seed};

use super::{Coordination, Effects, News, Published};
use crate::federation::{Event, Task};

impl<E: Effects> Coordination<E> {
    /// An edge's task: rounds from this model, or only what members say of it.
    ///
    /// # Errors
    /// Those of the effects.
    pub async fn begin(&mut self, task: Task, model: &Vectors, evaluate: bool) -> Result<(), E::Error> {
        let stretch = task.0 + 1;
        let rounds = if evaluate { 0 } else { self.hop().rounds };
        // Of one that is under way the model has moved on.
        if !self.coordinator.knows(stretch) {
            self.cut_exchange_short().await?;
            let version = self.aggregator.version() + 1;
            E::compute(|| self.aggregator.begin(version, model)).map_err(E::failed)?;
            self.publish(version).await?;
            self.round_began = self.effects.now();
        }
        let version = self.aggregator.version();
        self.step(Event::Begin { version, rounds, evaluate, stretch }).await?;
        self.effects.sweep(&self.coordinator);
        Ok(())
    }

    /// Makes a model, keeps it, and evaluates it.
    pub(super) async fn make(
        &mut self,
        version: u64,
        round: u64,
        counted: &[Counted],
        members: usize,
        last: bool,
    ) -> Result<Event, E::Error> {
        E::compute(|| self.aggregator.make(counted, members)).map_err(E::failed)?;
        let (model, layout) = (&self.aggregator.server().model, self.aggregator.layout());
        if let Some(learned) = self.effects.teach(version, round, model, layout).await? {
            self.aggregator.replace(version, &learned);
        }
        self.publish(version).await?;
        let enough = if self.setting.is_edge { false } else { self.score(round + 1, counted, last).await? };
        Ok(Event::Made { version, enough })
    }

    /// Scores a round of the cloud, by its number from 1: whether it has reached
    /// what the job is for.
    async fn score(&mut self, number: u64, counted: &[Counted], last: bool) -> Result<bool, E::Error> {
        let evaluated = match self.setting.federation.evaluates_behind(number, last) {
            true => self.effects.evaluate(&self.aggregator.server().model)?,
            false => None,
        };
        let now = self.effects.now();
        let scores = RoundScores {
            round: number,
            accuracy: evaluated.and_then(|evaluation| evaluation.accuracy),
            loss: evaluated.map(|evaluation| evaluation.loss),
            train_loss: mean_of(counted, |report| report.loss),
            bytes_up: std::mem::take(&mut self.bytes_up),
            bytes_down: std::mem::take(&mut self.bytes_down),
            seconds: now.since(std::mem::replace(&mut self.round_began, now)).as_secs_f64(),
            clients: counted.len(),
        };
        let at_ends = self.setting.federation.evaluates_at_ends();
        let mut enough = false;
        if let Some(known) = self.board.ended(scores.clone(), HeldOut::together(counted), at_ends) {
            enough = self.setting.federation.is_reached(&known);
            self.effects.note(News::Round(&known)).await?;
        }
        if at_ends {
            self.effects.note(News::Pending(&scores)).await?;
        }
        Ok(enough)
    }

    /// Keeps the aggregator's model under a number, for members to fetch.
    pub(super) async fn publish(&mut self, version: u64) -> Result<(), E::Error> {
        let seed = seed::of_model(self.setting.seed, version);
        let difference = E::compute(|| self.aggregator.publish(seed)).map_err(E::failed)?;
        let published = Published {
            version,
            layout: self.aggregator.layout(),
            held: self.aggregator.held(),
            own: difference.is_some().then(|| &self.aggregator.server().model),
            difference,
            kept: &self.aggregator.server().kept,
        };
        self.model_bytes = self.effects.keep_model(published).await?;
        let mut needed = self.coordinator.versions_in_use();
        needed.insert(version);
        if self.setting.is_edge {
            // What its task began with: the change from it is what it sends.
            needed.insert(self.coordinator.base());
        }
        self.aggregator.retain(&needed);
        let differences: Option<Vec<u64>> = self.aggregator.down().map(|down| down.leading_to(version).collect());
        self.effects.retain(&needed, differences.as_deref()).await
    }

    /// All rounds of a stretch are done: the cloud's job, or an edge's task.
    pub(super) async fn done(&mut self, stretch: u64, version: u64, counted: &[Counted]) -> Result<(), E::Error> {
        if !self.setting.is_edge {
            return self.effects.finished(version, &self.aggregator.server().model).await;
        }
        let base = self.effects.load_model(self.coordinator.base()).await?;
        let channels = self.setting.federation.cloud.strategy.channels();
        let vectors = E::compute(|| aggregator::change(&base, &self.aggregator.server().model, &channels));
        let mut report = Report::together(counted);
        report.bytes_up += std::mem::take(&mut self.bytes_up);
        report.bytes_down += std::mem::take(&mut self.bytes_down);
        report.seconds = self.effects.now().since(self.round_began).as_secs_f64();
        self.effects.gathered(Task(stretch - 1), Contribution { vectors, report }).await;
        Ok(())
    }
}

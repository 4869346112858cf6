//! Where a hop's contributions become its next model.

use std::collections::{BTreeMap, BTreeSet};

use crate::aggregate::{self, Aggregate, Weight};
use crate::strategy::{Round, kept};
use crate::sum::TERM_MAX;
use crate::{
    Channel, Contribution, Counted, Down, FederateError, Hop, Layout, Memory, Report, Rule, Server, SpillStore,
    Strategy, Vectors, wire,
};

/// The models of one hop: the newest, those that members may still start
/// from, and what has come for the next.
///
/// A model is made of what was added since the last one. Nothing here depends
/// on the order of what is added, so an aggregator that is set up again after a crash
/// makes the same models of the same contributions.
pub struct Aggregator {
    layout: Layout,
    strategy: Strategy,
    rule: Rule,
    /// Whether members send how their estimates change (EF21).
    estimates: bool,
    server: Server,
    version: u64,
    /// Where members hold another model than the newest one: what is lost on
    /// the way down.
    down: Option<Down>,
    /// Models that members may still start from, where the strategy looks
    /// back at them.
    past: BTreeMap<u64, Vectors>,
    aggregate: Box<dyn Aggregate>,
}

impl Aggregator {
    /// A hop whose model is `server`'s, of this version. Where its rule needs
    /// all contributions of a round, they wait in the spill store.
    #[must_use]
    pub fn new(layout: Layout, hop: &Hop, version: u64, server: Server, spill: Box<dyn SpillStore>) -> Self {
        let (strategy, rule, estimates) = (hop.strategy.clone(), hop.rule, hop.memory() == Memory::Ef21 {});
        // What isn't averaged isn't added either.
        let averaged = if strategy.behaviour().transfers().is_some() { Vec::new() } else { strategy.channels() };
        let aggregate = rule.aggregate(&layout, &averaged, spill);
        let past = BTreeMap::from([(version, server.model.clone())]);
        let down = hop.down_from(&server.model);
        Self { layout, strategy, rule, estimates, server, version, down, past, aggregate }
    }

    /// The newest model and what the strategy remembers.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The newest model's number.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The model that members start from: the newest one, but for what was
    /// lost on its way down.
    #[must_use]
    pub fn held(&self) -> &Vectors {
        self.down.as_ref().map_or(&self.server.model, Down::held)
    }

    /// How models travel down, where they don't whole.
    #[must_use]
    pub fn down(&self) -> Option<&Down> {
        self.down.as_ref()
    }

    /// As [`Aggregator::down`], for what is known from before a crash.
    pub fn down_mut(&mut self) -> Option<&mut Down> {
        self.down.as_mut()
    }

    /// What is learned and shared.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Replaces the model by one that was made elsewhere, as an edge does with
    /// the cloud's. What the strategy remembers stays. Members have it once it
    /// is published.
    pub fn replace(&mut self, version: u64, model: &Vectors) {
        for (channel, vector) in model {
            if let Some(own) = self.server.model.get_mut(channel) {
                own.clone_from(vector);
            }
        }
        self.version = version;
    }

    /// Begins anew with a model that was made elsewhere: what was added for
    /// another is forgotten.
    ///
    /// # Errors
    /// When updates that wait for a rule can't be forgotten.
    pub fn begin(&mut self, version: u64, model: &Vectors) -> Result<(), FederateError> {
        self.replace(version, model);
        self.aggregate.clear()
    }

    /// Lets members have the newest model, [`Aggregator::held`] from now on: the
    /// difference that they follow, if it doesn't travel whole. `seed` decides
    /// what stages draw.
    ///
    /// # Errors
    /// When a number isn't finite.
    pub fn publish(&mut self, seed: u64) -> Result<Option<Vec<u8>>, FederateError> {
        let sent = match &mut self.down {
            Some(down) => Some(down.send(&self.layout, self.version, &self.server.model, seed)?),
            None => None,
        };
        if self.looks_back() {
            self.past.insert(self.version, self.held().clone());
        }
        Ok(sent)
    }

    /// A model that members may still start from, made before this aggregator was
    /// set up.
    pub fn remember(&mut self, version: u64, model: Vectors) {
        self.past.insert(version, model);
    }

    /// Whether older models are looked back at.
    #[must_use]
    pub fn looks_back(&self) -> bool {
        self.strategy.behaviour().rebases()
    }

    /// What members send, and get.
    #[must_use]
    pub fn channels(&self) -> Vec<Channel> {
        self.strategy.channels()
    }

    /// Reads an update as it travels: what its bytes are is known here and to
    /// [`Sender`](crate::Sender), and to nobody between them.
    ///
    /// # Errors
    /// When they are broken or of another model.
    pub fn read(&self, report: Report, update: &[u8]) -> Result<Contribution, FederateError> {
        let layout = self.layout.of_examples(report.examples)?;
        Ok(Contribution { vectors: wire::decode_update(update, &layout)?, report })
    }

    /// Refuses a contribution that can't be used here.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, contribution: &Contribution) -> Result<(), FederateError> {
        let layout = self.layout.of_examples(contribution.report.examples)?;
        aggregate::check(&layout, &self.strategy.channels(), contribution)?;
        if self.strategy.behaviour().transfers().is_some() {
            return layout.check_examples(&contribution.vectors);
        }
        // A late one counts less.
        aggregate::check_size(self.weigh(&contribution.report, 0), contribution)
    }

    /// How much a contribution counts: all the same under rules that count
    /// members alike, and where estimates are added up, of which each member
    /// has one.
    fn weigh(&self, report: &Report, staleness: u64) -> Weight {
        let weight = self.strategy.behaviour().weigh(report, staleness);
        let alike = self.estimates || self.rule != Rule::Mean {};
        Weight { share: if alike { 1.0 } else { weight.share }, ..weight }
    }

    /// Adds a contribution that starts from the model of that version.
    ///
    /// # Errors
    /// When it doesn't fit.
    pub fn add(&mut self, mut contribution: Contribution, version: u64, staleness: u64) -> Result<(), FederateError> {
        let behaviour = self.strategy.behaviour();
        if behaviour.transfers().is_some() {
            return Ok(());
        }
        if behaviour.rebases()
            && let Some(start) = self.past.get(&version)
        {
            // No more than what any member may add.
            let most = (0.5 * TERM_MAX / self.weigh(&contribution.report, staleness).share) as f32;
            rebase(&mut contribution.vectors, start, &self.server.model, most);
        }
        self.aggregate.add(self.weigh(&contribution.report, staleness), contribution)
    }

    /// Makes the next model of what was added; members have it once it is
    /// published. Where each side trains a part of the model, the next one is
    /// what the server makes of members' features, for [`Aggregator::replace`].
    ///
    /// # Errors
    /// When nothing was.
    pub fn make(&mut self, counted: &[Counted], members: usize) -> Result<(), FederateError> {
        if self.strategy.behaviour().transfers().is_some() {
            self.version += 1;
            return Ok(());
        }
        let mut means = self.aggregate.finish()?;
        if self.estimates {
            self.estimate(&mut means, counted.len(), members.max(counted.len()));
        }
        let round = Round { means: &means, counted, members };
        self.strategy.behaviour().apply(&mut self.server, &round);
        self.version += 1;
        Ok(())
    }

    /// EF21: what came is how some members' estimates changed, and the mean of
    /// all members' is what counts, of those as well who weren't asked. Kept is
    /// the sum, so that it stays right where members join.
    fn estimate(&mut self, means: &mut Vectors, counted: usize, members: usize) {
        let Some(mean) = means.get_mut(&Channel::Model) else { return };
        for (sum, m) in kept(&mut self.server, "ef21.model").iter_mut().zip(mean) {
            let all = f64::from(*sum) + counted as f64 * f64::from(*m);
            (*sum, *m) = (all as f32, (all / members as f64) as f32);
        }
    }

    /// Forgets models that nobody starts from any more.
    pub fn retain(&mut self, in_use: &BTreeSet<u64>) {
        self.past.retain(|version, _| in_use.contains(version));
    }
}

/// Sees a change from another point than the one it starts from.
fn rebase(change: &mut Vectors, start: &Vectors, now: &Vectors, most: f32) {
    for channel in [Channel::Model, Channel::Logits] {
        let (Some(change), Some(start), Some(now)) = (change.get_mut(&channel), start.get(&channel), now.get(&channel))
        else {
            continue;
        };
        for ((d, s), n) in change.iter_mut().zip(start).zip(now) {
            let seen = (f64::from(*d) + f64::from(*s) - f64::from(*n)) as f32;
            *d = seen.clamp(-most, most);
        }
    }
}

/// What a hop adds up to, for the hop above it: the change from the model that
/// it began with, and its statistics as they are.
///
/// Channels that the hop above doesn't share are left out.
#[must_use]
pub fn change(from: &Vectors, to: &Vectors, channels: &[Channel]) -> Vectors {
    let of = |channel: &Channel| {
        let (from, to) = (from.get(channel)?, to.get(channel)?);
        Some((*channel, apart(*channel, to, from)))
    };
    channels.iter().filter_map(of).collect()
}

/// What an update holds of a channel: how it changed, but for statistics,
/// which travel as they are.
#[must_use]
pub fn apart(channel: Channel, now: &[f32], start: &[f32]) -> Vec<f32> {
    match channel {
        Channel::Statistics => now.to_vec(),
        _ => now.iter().zip(start).map(|(x, y)| x - y).collect(),
    }
}

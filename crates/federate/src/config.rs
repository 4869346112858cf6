//! How a job is run on many nodes, as its file says it: the table
//! `[federation]`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use tierline_codec::update::Pipeline;

use crate::down::{self, Down};
use crate::strategy::{Distillation, FedGkt};
use crate::{
    FederateError, Gossip, Memory, Modifier, Personal, RoundScores, Rule, Seconds, Select, Sender, Strategy, Vectors,
};

/// Rounds of a hop, at most: numbers of rounds are added and multiplied.
pub const ROUNDS_MAX: u64 = 1 << 32;

/// Members that a round asks, at most.
pub const CLIENTS_MAX: usize = 1 << 20;

/// Members asked for each that is needed, at most.
pub const OVER_MAX: f64 = 1e3;

/// Epochs at a time, at most.
pub const EPOCHS_MAX: u64 = 1 << 32;

/// A federation.
///
/// The cloud puts together what the tier below sends. With `edge`, each edge
/// first puts together what its ends send, over some rounds of its own, and
/// sends the cloud what that gave; without, edges pass everything on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Federation {
    /// What the cloud does.
    pub cloud: Hop,
    /// What each edge does with its ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edge: Option<Hop>,
    /// What each end keeps for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personal: Option<Personal>,
    /// What is done to each end's update before anybody else sees it, in this
    /// order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modifiers: Vec<Modifier>,
    /// Ends the job before its last round.
    pub stop: Stop,
    /// Rounds between two evaluations on the examples held out; the last round is
    /// always evaluated.
    pub evaluate_every: u64,
    /// Who holds them out; the cloud when left out, and where each end has a
    /// model of its own, the ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluate_at: Option<EvaluateAt>,
}

/// Who holds examples out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvaluateAt {
    /// The cloud, which evaluates each model that it makes.
    Cloud,
    /// Each end, which evaluates each model that it gets.
    Ends,
}

impl Default for Federation {
    fn default() -> Self {
        Self {
            cloud: Hop::default(),
            edge: None,
            personal: None,
            modifiers: Vec::new(),
            stop: Stop::default(),
            evaluate_every: 1,
            evaluate_at: None,
        }
    }
}

/// What ends a job before its last round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stop {
    /// This accuracy on the examples held out, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

/// A node and its members: those below it that answer to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hop {
    /// The cloud's: of the job. An edge's: for each round of the cloud.
    pub rounds: u64,
    /// How the next model is made.
    pub strategy: Strategy,
    /// How updates are put together.
    pub rule: Rule,
    /// Whom a round asks, and how long it waits.
    pub clients: Clients,
    /// How members' updates travel: stages of a pipeline, such as `topk:0.01`,
    /// `int8`, `zstd`; all bits of every number when left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub up: Vec<String>,
    /// How members remember what didn't travel of changes of weights; when left
    /// out, [`Memory::of`] their stages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// How models travel to members that hold an earlier one: stages of what
    /// sets the two apart; whole when left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub down: Vec<String>,
    /// An edge's: how it exchanges models with other edges between its rounds; not at
    /// all when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gossip: Option<Gossip>,
}

impl Default for Hop {
    fn default() -> Self {
        Self {
            rounds: 1,
            strategy: Strategy::default(),
            rule: Rule::default(),
            clients: Clients::default(),
            up: Vec::new(),
            memory: None,
            down: Vec::new(),
            gossip: None,
        }
    }
}

/// Whom a round asks, and how long it waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Clients {
    /// Answers that make a round; all members when left out. Where answers
    /// are buffered: members at work at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_round: Option<usize>,
    /// Members that must be ready before a round begins, and answers without
    /// which none ends.
    pub min: usize,
    /// Asked are this many times as many as are needed: the slowest don't
    /// count.
    pub over: f64,
    /// Seconds after which a round ends with the answers it has; when left
    /// out, it waits for all that it asked and that are still there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<Seconds>,
    /// Seconds that a member may be away before a round no longer waits for
    /// it.
    pub patience_s: Seconds,
    /// How members are chosen.
    pub select: Select,
    /// What becomes of an answer to a round that has ended.
    pub late: Late,
}

impl Default for Clients {
    fn default() -> Self {
        Self {
            per_round: None,
            min: 1,
            over: 1.0,
            deadline_s: None,
            patience_s: Seconds::MINUTE,
            select: Select::default(),
            late: Late::default(),
        }
    }
}

/// What becomes of an answer to a round that has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Late {
    /// It is not used; the member begins anew, and remembers what it did
    /// before the work that was refused.
    #[default]
    Refuse,
    /// It counts for the round under way.
    Use,
}

impl Federation {
    /// What those do whose members are ends.
    #[must_use]
    pub fn of_ends(&self) -> &Hop {
        self.edge.as_ref().unwrap_or(&self.cloud)
    }

    /// Rounds that an end sees, over the whole job.
    #[must_use]
    pub fn rounds_of_ends(&self) -> u64 {
        self.cloud.rounds.saturating_mul(self.edge.as_ref().map_or(1, |edge| edge.rounds))
    }

    /// Whether ends evaluate models, rather than the cloud.
    #[must_use]
    pub fn evaluates_at_ends(&self) -> bool {
        self.own_models() || self.evaluate_at == Some(EvaluateAt::Ends)
    }

    /// What is learned of public examples, by ends or by the cloud.
    #[must_use]
    pub fn distillation(&self) -> Option<&Distillation> {
        let of_ends = self.of_ends().strategy.behaviour().members_distil();
        of_ends.or_else(|| self.cloud.strategy.behaviour().server_distils())
    }

    /// Whether public examples' own classes are learned, too.
    #[must_use]
    pub fn learns_public_classes(&self) -> bool {
        matches!(&self.of_ends().strategy, Strategy::FedMd(settings) if settings.pretrain > 0)
    }

    /// How the model is divided, where ends and the cloud each train a part.
    #[must_use]
    pub fn transfer(&self) -> Option<&FedGkt> {
        self.cloud.strategy.behaviour().transfers()
    }

    /// Whether each end has a model of its own.
    #[must_use]
    pub fn own_models(&self) -> bool {
        self.transfer().is_some()
            || self.personal.is_some()
            || self.of_ends().strategy.behaviour().members_distil().is_some()
    }

    /// Whether ends evaluate the model that they begin this round with.
    ///
    /// Rounds are an end's, from 0. Nothing is to be seen of the first model;
    /// and of the rounds that an edge runs for one of the cloud's, only the
    /// first begins with the cloud's model.
    #[must_use]
    pub fn evaluates_in(&self, round: u64) -> bool {
        let each = self.edge.as_ref().map_or(1, |edge| edge.rounds).max(1);
        let (of_cloud, within) = (round / each, round % each);
        // Where the model is divided, ends have no whole one before the end.
        self.transfer().is_none()
            && self.evaluates_at_ends()
            && round > 0
            && within == 0
            && of_cloud.is_multiple_of(self.evaluate_every.max(1))
    }

    /// Whether held-out examples are evaluated behind a round of this number,
    /// from 1.
    #[must_use]
    pub fn evaluates_behind(&self, number: u64, last: bool) -> bool {
        last || number.is_multiple_of(self.evaluate_every.max(1))
    }

    /// Whether a round has reached what the job stops at.
    #[must_use]
    pub fn is_reached(&self, round: &RoundScores) -> bool {
        self.stop.accuracy.zip(round.accuracy).is_some_and(|(goal, found)| found >= goal)
    }

    /// Refuses settings that make no sense.
    ///
    /// # Errors
    /// Naming the first of them.
    pub fn check(&self) -> Result<(), FederateError> {
        self.cloud.check("federation.cloud")?;
        self.edge.as_ref().map_or(Ok(()), |edge| edge.check("federation.edge"))?;
        self.personal.as_ref().map_or(Ok(()), Personal::check)?;
        self.modifiers.iter().try_for_each(|modifier| modifier.behaviour().check())?;
        self.validate_combination()?;
        if let Some(value) = self.stop.accuracy
            && !(value > 0.0 && value <= 1.0)
        {
            return Err(FederateError::Range {
                what: "federation.stop.accuracy",
                value,
                range: "above 0 and at most 1",
            });
        }
        Ok(())
    }
}

impl Hop {
    fn check(&self, what: &'static str) -> Result<(), FederateError> {
        let setting = |reason: &str| Err(FederateError::Setting { what, reason: reason.to_owned() });
        let Clients { per_round, min, over, .. } = self.clients;
        if self.rounds == 0 {
            return setting("rounds is 0; there is at least one");
        }
        if self.rounds > ROUNDS_MAX {
            return setting("rounds is at most 2^32");
        }
        if min > CLIENTS_MAX || per_round.is_some_and(|n| n > CLIENTS_MAX) {
            return setting("clients.min and clients.per_round are at most 2^20, as many as a node has members");
        }
        if min == 0 || per_round == Some(0) {
            return setting("a round needs at least one answer; give clients.min and clients.per_round 1 or more");
        }
        if per_round.is_some_and(|n| n < min) {
            return setting("clients.per_round is below clients.min");
        }
        if !(1.0..=OVER_MAX).contains(&over) {
            return setting("clients.over is at least 1 and at most 1000");
        }
        let pipeline = Pipeline::parse(&self.up).map_err(|e| FederateError::Setting { what, reason: e.to_string() })?;
        down::stages(what, &self.down)?;
        self.gossip.as_ref().map_or(Ok(()), Gossip::check)?;
        self.clients.select.check()?;
        self.rule.check()?;
        self.strategy.behaviour().check()?;
        self.validate_combination(what, &pipeline)
    }

    /// How its members' updates travel.
    #[must_use]
    pub fn sender(&self) -> Sender {
        Sender { pipeline: Pipeline::parse(&self.up).unwrap_or_default(), memory: self.memory() }
    }

    /// How its members remember what didn't travel.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.memory.unwrap_or_else(|| Memory::of(&Pipeline::parse(&self.up).unwrap_or_default()))
    }

    /// How models travel to members that hold this one.
    pub(crate) fn down_from(&self, held: &Vectors) -> Option<Down> {
        let pipeline = down::stages("down", &self.down).ok()??;
        Some(Down::new(pipeline, held.clone()))
    }
}

impl Clients {
    /// Time after which a round ends with what it has.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline_s.map(Seconds::duration)
    }

    /// Time that a member may be away.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.patience_s.duration()
    }
}

//! Gossip: edges that mix their models with those of neighbours, without
//! anybody in the middle.
//!
//! After [`Gossip::every`] rounds an edge moves towards each neighbour's model
//! by a share of what sets the two apart (Lian et al., "Can decentralized
//! algorithms outperform centralized algorithms?", 2017), the more the more
//! examples the neighbour's is made of (Metropolis and Hastings' weights). So
//! the mean of all models, weighted by examples, stays where it is, and models
//! come closer to it with every step. Start at [`Gossip`] and [`Mix`].

use std::time::Duration;

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use tierline_codec::update::Pipeline;

use crate::strategy::in_range;
use crate::{Channel, FederateError, Layout, Seconds, Vectors, wire};

/// How an edge exchanges models with its neighbours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gossip {
    /// Who is whose neighbour.
    pub graph: Graph,
    /// An edge's rounds between two exchanges; the last round of a task is one
    /// if they divide it.
    pub every: u64,
    /// How models travel between edges: stages that round, such as `fp16` or
    /// `int8`, and `zstd`; all bits of every number when left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<String>,
    /// Seconds after which an edge goes on without neighbours whose model isn't
    /// there yet; when left out, it waits for all that can be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<Seconds>,
    /// Seconds that a neighbour may be away before nobody waits for it.
    pub patience_s: Seconds,
}

impl Default for Gossip {
    fn default() -> Self {
        Self { graph: Graph::default(), every: 1, stages: Vec::new(), deadline_s: None, patience_s: Seconds::MINUTE }
    }
}

/// Who is whose neighbour, among the edges of a round of the cloud.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Graph {
    /// Each has two, by name.
    #[default]
    Ring,
    /// Each has two, drawn anew for every round of the cloud.
    Random,
    /// Everybody.
    Complete,
}

impl Gossip {
    /// Refuses settings that make no sense.
    ///
    /// # Errors
    /// Naming the setting.
    pub(crate) fn check(&self) -> Result<(), FederateError> {
        in_range("federation.edge.gossip.every", self.every as f64, self.every > 0, "at least 1")?;
        let setting = |reason| Err(FederateError::Setting { what: "federation.edge.gossip.stages", reason });
        match Pipeline::parse(&self.stages) {
            Err(error) => setting(error.to_string()),
            Ok(pipeline) if !pipeline.sends_all() => {
                setting("it is models that travel, not changes: name stages that round, such as int8".to_owned())
            }
            Ok(_) => Ok(()),
        }
    }

    /// How models travel between edges.
    #[must_use]
    pub fn pipeline(&self) -> Pipeline {
        Pipeline::parse(&self.stages).unwrap_or_default()
    }

    /// Whether edges exchange models behind this round of a task, from 0.
    #[must_use]
    pub fn meets_behind(&self, round: u64) -> bool {
        (round + 1).is_multiple_of(self.every.max(1))
    }

    /// Time after which an edge goes on without those that aren't there.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline_s.map(Seconds::duration)
    }

    /// Time that a neighbour may be away.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.patience_s.duration()
    }
}

impl Graph {
    /// An edge's neighbours among all edges of a round, by name; `seed` decides
    /// what is drawn. Whoever is somebody's neighbour has that one as its own.
    #[must_use]
    pub fn neighbours<'e>(self, edges: &[&'e str], of: &str, seed: u64) -> Vec<&'e str> {
        let mut order = edges.to_vec();
        order.sort_unstable();
        order.dedup();
        if self == Self::Random {
            Rng::with_seed(seed).shuffle(&mut order);
        }
        let Some(at) = order.iter().position(|edge| *edge == of) else { return Vec::new() };
        let count = order.len();
        let mut neighbours = match self {
            Self::Ring | Self::Random => vec![order[(at + 1) % count], order[(at + count - 1) % count]],
            Self::Complete => order,
        };
        neighbours.sort_unstable();
        neighbours.dedup();
        neighbours.retain(|edge| *edge != of);
        neighbours
    }
}

/// A model as neighbours get it.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// Examples that it was made of.
    pub examples: u64,
    /// The model.
    pub model: Vectors,
}

impl Offer {
    /// As it travels; `seed` decides what stages draw. Statistics keep all
    /// their bits.
    ///
    /// # Errors
    /// When a number isn't finite.
    pub fn encode(&self, layout: &Layout, stages: &Pipeline, seed: u64) -> Result<Vec<u8>, FederateError> {
        let mut frame = wire::Writer::new(self.model.len());
        for (&channel, vector) in &self.model {
            let shapes = layout.shapes(channel);
            let stages = if channel == Channel::Statistics { &stages.without_loss() } else { stages };
            frame.put(channel, |out| stages.encode(vector, &shapes, seed, out))?;
        }
        let mut bytes = self.examples.to_le_bytes().to_vec();
        bytes.extend(frame.finish());
        Ok(bytes)
    }

    /// What came.
    ///
    /// # Errors
    /// When the bytes are broken or of another model, or a number isn't
    /// finite.
    pub fn decode(bytes: &[u8], layout: &Layout) -> Result<Self, FederateError> {
        let (examples, rest) = bytes.split_first_chunk().ok_or(FederateError::Broken("it ends too early"))?;
        let (examples, model) = (u64::from_le_bytes(*examples), wire::decode(rest, layout)?);
        if examples == 0 {
            return Err(FederateError::Report { what: "examples", value: 0.0, range: "above 0" });
        }
        layout.check_all(&model)?;
        Ok(Self { examples, model })
    }
}

/// An edge's model on its way to the mixed one: sixteen bytes for each number,
/// however many neighbours there are.
///
/// What sets two edges apart is taken between their models as both know them,
/// rounded as they travelled: so a pair moves alike, and the edge's own model
/// keeps the bits that didn't travel.
pub struct Mix {
    model: Vectors,
    /// The edge's model as neighbours get it.
    own: Offer,
    /// What each number moves by.
    moves: Vec<Vec<f64>>,
    /// The share of an equal.
    share: f64,
}

impl Mix {
    /// An edge's model, and what it offers of it, before it meets so many
    /// neighbours.
    #[must_use]
    pub fn new(model: Vectors, own: Offer, neighbours: usize) -> Self {
        let moves = own.model.values().map(|vector| vec![0.0; vector.len()]).collect();
        Self { model, own, moves, share: 1.0 / (1.0 + neighbours as f64) }
    }

    /// Meets a neighbour. Sums are in f64, but depend on the order: by name.
    ///
    /// # Errors
    /// When its model has other vectors.
    pub fn meet(&mut self, other: &Offer) -> Result<(), FederateError> {
        let names = |model: &Vectors| model.keys().map(|c| c.name()).collect::<Vec<_>>().join(", ");
        if other.model.keys().ne(self.own.model.keys()) {
            return Err(FederateError::Channels { expected: names(&self.own.model), given: names(&other.model) });
        }
        for ((channel, own), other) in self.own.model.iter().zip(other.model.values()) {
            if own.len() != other.len() {
                let (expected, given) = (own.len(), other.len());
                return Err(FederateError::Length { channel: channel.name(), expected, given });
            }
        }
        let share = self.share * (other.examples as f64 / self.own.examples.max(1) as f64).min(1.0);
        for ((own, other), moves) in self.own.model.values().zip(other.model.values()).zip(&mut self.moves) {
            for ((x, y), by) in own.iter().zip(other).zip(moves) {
                *by += share * (f64::from(*y) - f64::from(*x));
            }
        }
        Ok(())
    }

    /// The mixed model.
    #[must_use]
    pub fn mixed(self) -> Vectors {
        let mut model = self.model;
        for (vector, moves) in model.values_mut().zip(&self.moves) {
            vector.iter_mut().zip(moves).for_each(|(x, by)| *x = (f64::from(*x) + by) as f32);
        }
        model
    }
}

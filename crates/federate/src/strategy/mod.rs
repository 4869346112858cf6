//! Strategies: what a hop's members do, how much each answer counts, and what
//! the next model is.
//!
//! # Adding a strategy
//!
//! 1. Write `mine.rs` with a struct of its settings (serde, with defaults,
//!    unknown ones refused) that implements [`Behaviour`]. Most need only
//!    [`Behaviour::apply`]: `round.means` holds the weighted means of what
//!    members sent, `server.model` the model that they will get next, and
//!    `server.kept` whatever you remember between rounds; name it after the
//!    strategy. Weights follow the strategy; statistics are averaged by
//!    `mix`, since a statistic has no gradient.
//! 2. Add it to [`Strategy`] and to [`Strategy::behaviour`]. Job files, nodes
//!    and simulation know strategies by that enum only.
//!    `combine.rs` says what it goes with: rules, memories, the other hop.
//! 3. Say in `tests/it/strategies.rs` what one round gives on small numbers,
//!    computed by hand from the paper; the laws there (order of arrival, equal
//!    members change nothing) hold for all.

mod diloco;
mod distillation;
mod fedadagrad;
mod fedadam;
mod fedasync;
mod fedavg;
mod fedbuff;
mod feddf;
mod fedgkt;
mod fedmd;
mod fednova;
mod fedopt;
mod fedprox;
mod fedyogi;
mod scaffold;

use serde::{Deserialize, Serialize};

pub use diloco::DiLoCo;
pub use distillation::Distillation;
pub use fedadagrad::FedAdagrad;
pub use fedadam::FedAdam;
pub use fedasync::FedAsync;
pub use fedavg::FedAvg;
pub use fedbuff::FedBuff;
pub use feddf::FedDf;
pub use fedgkt::FedGkt;
pub use fedmd::FedMd;
pub use fednova::FedNova;
pub use fedprox::FedProx;
pub use fedyogi::FedYogi;
pub use scaffold::Scaffold;

use crate::aggregate::Weight;
use crate::{Channel, Counted, FederateError, Report, Server, Vectors};

/// A strategy and its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Strategy {
    /// The mean, weighted by examples.
    FedAvg(FedAvg),
    /// Members are held near the model they got.
    FedProx(FedProx),
    /// Members' drift is corrected.
    Scaffold(Scaffold),
    /// Adam on the mean change.
    FedAdam(FedAdam),
    /// Yogi on the mean change.
    FedYogi(FedYogi),
    /// Adagrad on the mean change.
    FedAdagrad(FedAdagrad),
    /// Each member's change counts per step.
    FedNova(FedNova),
    /// The next model whenever a few answers are there.
    FedBuff(FedBuff),
    /// The next model with every answer.
    FedAsync(FedAsync),
    /// Nesterov's momentum on the mean change.
    DiLoCo(DiLoCo),
    /// What models say of public examples, learned by members.
    FedMd(FedMd),
    /// What models say of public examples, learned by the server.
    FedDf(FedDf),
    /// Features and what models say of them; ends and the server each train a
    /// part of the model.
    FedGkt(FedGkt),
}

impl Default for Strategy {
    fn default() -> Self {
        Self::FedAvg(FedAvg {})
    }
}

/// When a model is made of what has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// At the end of a round, for which members are asked together.
    Round,
    /// Whenever `size` answers are there; whoever has answered is asked again.
    Buffer {
        /// Answers that make a model.
        size: usize,
        /// Answers that start from a model older by more versions are refused.
        staleness_max: u64,
    },
}

/// What members do besides plain training.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LocalObjective {
    /// How strongly weights are pulled to those they started from: added to
    /// each gradient, times the distance.
    pub pull: f64,
    /// Whether gradients are corrected by control variates.
    pub control: bool,
}

/// What a round's answers amount to.
#[derive(Debug)]
pub struct Round<'a> {
    /// Weighted means of what members sent: of changes, and of statistics as
    /// they measured them.
    pub means: &'a Vectors,
    /// Whose they are.
    pub counted: &'a [Counted],
    /// Members there are, asked or not.
    pub members: usize,
}

/// What sets a strategy apart.
pub trait Behaviour {
    /// Refuses settings that make no sense.
    ///
    /// # Errors
    /// Naming the setting.
    fn check(&self) -> Result<(), FederateError> {
        Ok(())
    }

    /// What members do besides plain training.
    fn local_objective(&self) -> LocalObjective {
        LocalObjective::default()
    }

    /// What members learn of public examples, where that is all that travels.
    fn members_distil(&self) -> Option<&Distillation> {
        None
    }

    /// What the next model learns of public examples before it is used.
    fn server_distils(&self) -> Option<&Distillation> {
        None
    }

    /// How the model is divided, where members and the server each train a part.
    fn transfers(&self) -> Option<&FedGkt> {
        None
    }

    /// When a model is made.
    fn timing(&self) -> Timing {
        Timing::Round
    }

    /// How much an answer counts.
    fn weigh(&self, report: &Report, _staleness: u64) -> Weight {
        Weight { share: report.examples as f64, factor: 1.0, fresh: 1.0 }
    }

    /// Whether answers are seen from the model there is now rather than from
    /// the one that they started from.
    fn rebases(&self) -> bool {
        false
    }

    /// How much of what a round's members measured counts, together: 1 unless
    /// some of it is old.
    fn freshness(&self, round: &Round<'_>) -> f64 {
        // In the order of members, not of arrival.
        let mut sorted: Vec<&Counted> = round.counted.iter().collect();
        sorted.sort_by(|a, b| (&a.member, a.staleness).cmp(&(&b.member, b.staleness)));
        let weights: Vec<Weight> = sorted.iter().map(|c| self.weigh(&c.report, c.staleness)).collect();
        let shares: f64 = weights.iter().map(|w| w.share).sum();
        let counts: f64 = weights.iter().map(|w| w.share * w.fresh).sum();
        if shares > 0.0 { counts / shares } else { 0.0 }
    }

    /// The next model.
    fn apply(&self, server: &mut Server, round: &Round<'_>);
}

impl Strategy {
    /// What sets it apart.
    #[must_use]
    pub fn behaviour(&self) -> &dyn Behaviour {
        match self {
            Self::FedAvg(s) => s,
            Self::FedProx(s) => s,
            Self::Scaffold(s) => s,
            Self::FedAdam(s) => s,
            Self::FedYogi(s) => s,
            Self::FedAdagrad(s) => s,
            Self::FedNova(s) => s,
            Self::FedBuff(s) => s,
            Self::FedAsync(s) => s,
            Self::DiLoCo(s) => s,
            Self::FedMd(s) => s,
            Self::FedDf(s) => s,
            Self::FedGkt(s) => s,
        }
    }

    /// What members send.
    #[must_use]
    pub fn channels(&self) -> Vec<Channel> {
        if self.behaviour().transfers().is_some() {
            return vec![Channel::Logits, Channel::Features, Channel::Labels];
        }
        self.makes()
    }

    /// What the hop makes: as members send it, but where each side trains a part
    /// of the model.
    #[must_use]
    pub fn makes(&self) -> Vec<Channel> {
        if self.behaviour().members_distil().is_some() {
            return vec![Channel::Logits];
        }
        let mut channels = vec![Channel::Model, Channel::Statistics];
        channels.extend(self.behaviour().local_objective().control.then_some(Channel::Control));
        channels
    }
}

/// Adds `rate` times a mean to what the server has of a channel.
pub(crate) fn add(server: &mut Server, round: &Round<'_>, channel: Channel, rate: f64) {
    let (Some(own), Some(mean)) = (server.model.get_mut(&channel), round.means.get(&channel)) else { return };
    // One rounding per element, from f64.
    own.iter_mut().zip(mean).for_each(|(x, m)| *x = (f64::from(*x) + rate * f64::from(*m)) as f32);
}

/// Moves the server's statistics to the mean of what members measured, all the
/// way or a part of it, at most 1: between the two is always a mean of what
/// somebody measured.
pub(crate) fn mix(server: &mut Server, round: &Round<'_>, part: f64) {
    let channel = Channel::Statistics;
    let (Some(own), Some(mean)) = (server.model.get_mut(&channel), round.means.get(&channel)) else { return };
    own.iter_mut().zip(mean).for_each(|(x, m)| *x = ((1.0 - part) * f64::from(*x) + part * f64::from(*m)) as f32);
}

/// Something kept between rounds, shaped as the weights; zeros at first.
pub(crate) fn kept<'s>(server: &'s mut Server, name: &str) -> &'s mut Vec<f32> {
    let length = server.model.get(&Channel::Model).map_or(0, Vec::len);
    let vector = server.kept.entry(name.to_owned()).or_default();
    vector.resize(length, 0.0);
    vector
}

/// Refuses a number outside of its range.
pub(crate) fn in_range(what: &'static str, value: f64, fits: bool, range: &'static str) -> Result<(), FederateError> {
    if fits && value.is_finite() { Ok(()) } else { Err(FederateError::Range { what, value, range }) }
}

//! What is made up of a site, what a simulation learns from, and how it ends.

use std::collections::BTreeMap;
use std::time::Duration;

use tierline_federate::{FederateError, RoundScores};
use tierline_graph::Model;
use tierline_node::Rng;
use tierline_train::data::{Dataset, seed_of};
use tierline_train::{Job, TrainError};

use crate::attack::Attack;
use crate::link::Link;

/// What is made up.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// Edges between the ends and the cloud; 0 for none.
    pub edges: usize,
    /// Between an end and what is above it.
    pub end_link: Link,
    /// Between an edge and the cloud.
    pub edge_link: Link,
    /// Examples that an end learns from in a second.
    pub examples_per_s: f64,
    /// How much ends differ: each is up to this many times as slow.
    pub spread: f64,
    /// Share of the time that an end can be reached, above 0 and at most 1.
    pub availability: f64,
    /// How long an end is away at a time, on average.
    pub away: Duration,
    /// What some of the ends do to the others.
    pub attack: Option<Attack>,
    /// Threads that train; 0 for as many as there are cores.
    pub threads: usize,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            edges: 0,
            end_link: Link::NONE,
            edge_link: Link::NONE,
            examples_per_s: 1_000.0,
            spread: 1.0,
            availability: 1.0,
            away: Duration::from_secs(60),
            attack: None,
            threads: 0,
        }
    }
}

/// Why a simulation ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// The job can't be trained.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A model can't be made of what came.
    #[error(transparent)]
    Federate(#[from] FederateError),
    /// The scenario makes no sense.
    #[error("{what}: {reason}")]
    Scenario {
        /// Which part of it.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Nothing happens any more, and the job isn't done.
    #[error("the job stands still in round {round}: {reason}")]
    Stalled {
        /// From 1.
        round: u64,
        /// Why.
        reason: String,
    },
    /// It was told to stop.
    #[error("stopped behind round {0}")]
    Stopped(u64),
    /// A thread that trains is gone.
    #[error("a thread that trains ended by itself; this is a bug")]
    Worker,
}

/// How a simulation ended.
#[derive(Debug, Clone)]
pub struct SimulationResult {
    /// Every round of the cloud.
    pub rounds: Vec<RoundScores>,
    /// The last model.
    pub model: Model,
    /// Virtual time that it took.
    pub seconds: f64,
    /// Ends that were left out, and why.
    pub excluded: Vec<(String, String)>,
    /// Models of ends' own, where they have any.
    pub own: BTreeMap<String, Model>,
}

/// Names of the ends that `run` trains with, in the order of their data.
#[must_use]
pub fn end_name(index: usize) -> String {
    format!("end-{index:03}")
}

/// What a simulation learns from.
#[derive(Debug, Clone)]
pub struct Examples<'a> {
    /// One data set per end, which divides it as the job says.
    pub ends: Vec<Dataset>,
    /// Held out at the cloud.
    pub test: Option<&'a Dataset>,
    /// Those that everybody may see, where models learn from what others say
    /// of them.
    pub public: Option<&'a Dataset>,
}

/// Which ends mean harm: as many as were asked for, drawn by the job's seed.
pub(crate) fn harmful(job: &Job, scenario: &Scenario, ends: usize) -> Vec<Option<Attack>> {
    let count = scenario.attack.map_or(0, |a| (a.share * ends as f64).round() as usize);
    let mut harmful: Vec<Option<Attack>> = (0..ends).map(|i| scenario.attack.filter(|_| i < count)).collect();
    Rng::with_seed(seed_of(&[job.seed, HARM])).shuffle(&mut harmful);
    harmful
}

/// Keeps the draw of harmful ends apart from others.
const HARM: u64 = 0x6861_726d;

/// Beyond it no device is of use to anybody.
const SPREAD_MAX: f64 = 1e6;

pub(crate) fn check(scenario: &Scenario, ends: usize) -> Result<(), SimError> {
    let wrong = |what, reason: &str| Err(SimError::Scenario { what, reason: reason.to_owned() });
    if ends == 0 {
        return wrong("ends", "there is at least one");
    }
    if scenario.edges > ends {
        return wrong("edges", "there are more edges than ends");
    }
    let fast = scenario.examples_per_s > 0.0 && scenario.examples_per_s.is_finite();
    if !fast || !(1.0..=SPREAD_MAX).contains(&scenario.spread) {
        return wrong("speed", "examples per second above 0, and a spread of 1 to 1e6");
    }
    if !(scenario.availability > 0.0 && scenario.availability <= 1.0) {
        return wrong("availability", "a share above 0 and at most 1");
    }
    Ok(())
}

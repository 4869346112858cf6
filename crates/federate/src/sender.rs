//! What a member does to its vectors before they travel: what a lossy pipeline
//! leaves out of a change of weights is remembered, and sent later.
//!
//! Only such changes add up over rounds, so only they have a memory. Answers and
//! control variates are told anew each time, against what the receiver has:
//! they travel rounded, every number, and what was lost is part of the next
//! difference by itself. Statistics are sent as they are: half a variance is no
//! variance. Start at [`Sender::encode`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tierline_codec::update::{self, Pipeline, SentElements as Travelled};

use crate::{Channel, FederateError, Layout, Vectors, wire};

/// What a member keeps of SCAFFOLD: how its gradients differ from everybody's.
pub const CONTROL: &str = "control";

/// How what was left out is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum Memory {
    /// What didn't travel is added to the next update (Seide et al., "1-bit
    /// stochastic gradient descent", 2014; Karimireddy et al., 2019).
    Feedback {},
    /// Not at all.
    None {},
    /// Momentum is gathered where nothing travels (Lin et al., "Deep gradient
    /// compression", 2018); for `topk` and `random`.
    Dgc {
        /// How much of the last direction is kept, below 1.
        #[serde(default = "momentum")]
        momentum: f64,
        /// Rounds over which the share that travels falls from a quarter to
        /// what it will be.
        #[serde(default)]
        warmup: u64,
    },
    /// Both sides remember an estimate of the member's update, and what
    /// travels is how it changes (Richtarik, Sokolov and Fatkhullin, "EF21",
    /// 2021).
    Ef21 {},
}

fn momentum() -> f64 {
    0.9
}

impl Memory {
    /// What there is unless a hop says otherwise: feedback where something is
    /// lost for good, none where what arrives is right on average.
    #[must_use]
    pub fn of(pipeline: &Pipeline) -> Self {
        if pipeline.is_unbiased() { Self::None {} } else { Self::Feedback {} }
    }
}

/// By name: what a member keeps between its tasks.
pub type MemberState = BTreeMap<String, Vec<f32>>;

/// How a member's vectors travel.
#[derive(Debug, Clone, PartialEq)]
pub struct Sender {
    /// Stages of weights and control variates.
    pub pipeline: Pipeline,
    /// What is remembered of them.
    pub memory: Memory,
}

/// An update, ready to travel.
#[derive(Debug, Clone, PartialEq)]
pub struct Sent {
    /// The update.
    pub bytes: Vec<u8>,
    /// What the member keeps if it is counted. If it isn't, everything is as
    /// it was before the task: what counted before and didn't travel is still
    /// remembered, and the work behind this update is given up.
    pub counted: MemberState,
}

impl Sender {
    /// Encodes vectors of this round. `before` is what the member kept before
    /// the task that they come from, `after` what it keeps besides if they are
    /// counted; `seed` decides what stages draw.
    ///
    /// # Errors
    /// When a number isn't finite.
    pub fn encode(
        &self,
        layout: &Layout,
        vectors: &Vectors,
        before: &MemberState,
        after: MemberState,
        round: u64,
        seed: u64,
    ) -> Result<Sent, FederateError> {
        let mut frame = wire::Writer::of_update(vectors);
        let mut counted = after;
        for (&channel, vector) in vectors {
            let shapes = layout.shapes(channel);
            match channel {
                _ if channel.is_exact() || self.pipeline.is_lossless() => {
                    let plain = self.pipeline.without_loss();
                    frame.put(channel, |out| plain.encode(vector, &shapes, seed, out))?;
                }
                Channel::Model => {
                    let bytes = self.remembered(vector, &shapes, before, &mut counted, (round, seed))?;
                    frame.put_bytes(channel, &bytes);
                }
                Channel::Control => {
                    // Both sides move by what arrives, so that the receiver's
                    // stays the mean of members'.
                    let (bytes, arrives) = sent(&self.pipeline.rounded(), vector, &shapes, seed)?;
                    counted.insert(CONTROL.to_owned(), sum(&arrives, of(before, CONTROL, vector)));
                    frame.put_bytes(channel, &bytes);
                }
                Channel::Logits => frame.put_bytes(channel, &sent(&self.pipeline.rounded(), vector, &shapes, seed)?.0),
                _ => frame.put(channel, |out| self.pipeline.encode(vector, &shapes, seed, out))?,
            }
        }
        Ok(Sent { bytes: frame.finish(), counted })
    }

    /// A change of weights, with what was remembered of earlier ones.
    fn remembered(
        &self,
        vector: &[f32],
        shapes: &[Vec<usize>],
        before: &MemberState,
        counted: &mut MemberState,
        (round, seed): (u64, u64),
    ) -> Result<Vec<u8>, FederateError> {
        let pipeline = self.pipeline_of(round);
        let sent = |target: &[f32]| sent(&pipeline, target, shapes, seed);
        let mut keep = |name: &str, what| counted.insert(name.to_owned(), what);
        match self.memory {
            Memory::None {} => Ok(sent(vector)?.0),
            Memory::Feedback {} => {
                let target = sum(vector, of(before, FEEDBACK, vector));
                let (bytes, arrives) = sent(&target)?;
                keep(FEEDBACK, difference(&target, &arrives));
                Ok(bytes)
            }
            Memory::Dgc { momentum, .. } => {
                let carried = of(before, VELOCITY, vector);
                let carried = carried.map(|v| v.iter().map(|x| momentum as f32 * x).collect::<Vec<_>>());
                let mut velocity = sum(vector, carried.as_ref());
                let target = sum(&velocity, of(before, GATHERED, vector));
                let (bytes, arrives) = sent(&target)?;
                // Where something travels, momentum begins anew.
                if let Travelled::Indices(indices) = update::support_of(&bytes, shapes)? {
                    indices.iter().for_each(|&i| velocity[i as usize] = 0.0);
                }
                keep(VELOCITY, velocity);
                keep(GATHERED, difference(&target, &arrives));
                Ok(bytes)
            }
            Memory::Ef21 {} => {
                let estimate = of(before, ESTIMATE, vector).cloned().unwrap_or_else(|| vec![0.0; vector.len()]);
                let (bytes, arrives) = sent(&difference(vector, &estimate))?;
                keep(ESTIMATE, sum(&estimate, Some(&arrives)));
                Ok(bytes)
            }
        }
    }

    /// The pipeline in this round.
    fn pipeline_of(&self, round: u64) -> Pipeline {
        match (self.memory, self.pipeline.fraction()) {
            // From a quarter, in equal ratios.
            (Memory::Dgc { warmup, .. }, Some(last)) if round < warmup && last < 0.25 => {
                self.pipeline.with_fraction(0.25 * (last / 0.25).powf(round as f64 / warmup as f64))
            }
            _ => self.pipeline.clone(),
        }
    }
}

/// Names of what is remembered.
const FEEDBACK: &str = "feedback.model";
const VELOCITY: &str = "velocity.model";
const GATHERED: &str = "gathered.model";
const ESTIMATE: &str = "estimate.model";

/// A vector's bytes, and what of it arrives.
fn sent(
    pipeline: &Pipeline,
    vector: &[f32],
    shapes: &[Vec<usize>],
    seed: u64,
) -> Result<(Vec<u8>, Vec<f32>), FederateError> {
    let mut bytes = Vec::new();
    pipeline.encode(vector, shapes, seed, &mut bytes)?;
    let arrives = update::decode(&bytes, shapes)?;
    Ok((bytes, arrives))
}

/// What was kept of a vector of this length.
fn of<'k>(kept: &'k MemberState, name: &str, vector: &[f32]) -> Option<&'k Vec<f32>> {
    kept.get(name).filter(|kept| kept.len() == vector.len())
}

fn sum(a: &[f32], b: Option<&Vec<f32>>) -> Vec<f32> {
    match b {
        Some(b) => a.iter().zip(b).map(|(x, y)| x + y).collect(),
        None => a.to_vec(),
    }
}

fn difference(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(x, y)| x - y).collect()
}

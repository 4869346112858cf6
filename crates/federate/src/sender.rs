//! What a member does to its vectors before they travel: what a lossy pipeline
//! leaves out is remembered, and sent later.
//!
//! Statistics are sent as they are: half a variance is no variance. Start at
//! [`Sender::encode`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tierline_codec::update::{self, Kept as Travelled, Pipeline};

use crate::{FederateError, Layout, Vectors, wire};

/// How what was left out is remembered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum Memory {
    /// What didn't travel is added to the next update (Seide et al., "1-bit
    /// stochastic gradient descent", 2014; Karimireddy et al., 2019).
    #[default]
    Feedback,
    /// Not at all.
    None,
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
    Ef21,
}

fn momentum() -> f64 {
    0.9
}

/// By name: what a member keeps between its tasks.
pub type Kept = BTreeMap<String, Vec<f32>>;

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
    /// What the member keeps if it is counted.
    pub counted: Kept,
    /// And if it isn't: nothing of the work is lost.
    pub refused: Kept,
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
        before: &Kept,
        after: Kept,
        round: u64,
        seed: u64,
    ) -> Result<Sent, FederateError> {
        let mut frame = wire::Writer::new(vectors.len());
        let (mut counted, mut refused) = (after, before.clone());
        for (&channel, vector) in vectors {
            let shapes = layout.shapes(channel);
            if channel.is_exact() || self.pipeline.is_lossless() {
                let plain = self.pipeline.without_loss();
                frame.put(channel, |out| plain.encode(vector, &shapes, seed, out))?;
                continue;
            }
            let name = |what: &str| format!("{what}.{}", channel.name());
            let of = |what: &str| before.get(&name(what)).filter(|kept| kept.len() == vector.len());
            let pipeline = self.pipeline_of(round);
            let encoded = |target: &[f32]| -> Result<(Vec<u8>, Vec<f32>), FederateError> {
                let mut bytes = Vec::new();
                pipeline.encode(target, &shapes, seed, &mut bytes)?;
                let arrives = update::decode(&bytes, &shapes)?;
                Ok((bytes, arrives))
            };
            let bytes = match self.memory {
                Memory::None => encoded(vector)?.0,
                Memory::Feedback => {
                    let target = sum(vector, of("feedback"));
                    let (bytes, arrives) = encoded(&target)?;
                    counted.insert(name("feedback"), difference(&target, &arrives));
                    refused.insert(name("feedback"), target);
                    bytes
                }
                Memory::Dgc { momentum, .. } => {
                    let carried = of("velocity").map(|v| v.iter().map(|x| momentum as f32 * x).collect::<Vec<_>>());
                    let velocity = sum(vector, carried.as_ref());
                    let target = sum(&velocity, of("gathered"));
                    let (bytes, arrives) = encoded(&target)?;
                    // Where something travels, momentum begins anew.
                    let mut still = velocity.clone();
                    if let Travelled::Indices(indices) = update::support_of(&bytes, &shapes)? {
                        indices.iter().for_each(|&i| still[i as usize] = 0.0);
                    }
                    counted.insert(name("velocity"), still);
                    counted.insert(name("gathered"), difference(&target, &arrives));
                    refused.insert(name("velocity"), velocity);
                    refused.insert(name("gathered"), target);
                    bytes
                }
                Memory::Ef21 => {
                    let estimate = of("estimate").cloned().unwrap_or_else(|| vec![0.0; vector.len()]);
                    let (bytes, arrives) = encoded(&difference(vector, &estimate))?;
                    counted.insert(name("estimate"), sum(&estimate, Some(&arrives)));
                    bytes
                }
            };
            frame.put_bytes(channel, &bytes);
        }
        Ok(Sent { bytes: frame.finish(), counted, refused })
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

fn sum(a: &[f32], b: Option<&Vec<f32>>) -> Vec<f32> {
    match b {
        Some(b) => a.iter().zip(b).map(|(x, y)| x + y).collect(),
        None => a.to_vec(),
    }
}

fn difference(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(x, y)| x - y).collect()
}

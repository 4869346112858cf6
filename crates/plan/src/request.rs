//! A model to be placed: segments between candidate cuts, tensors that cross
//! them, tiers, links, the goal and its limits.
//!
//! Data only. What a placement costs is defined in [`crate::evaluate`], the
//! best one is found by [`crate::plan()`].

use serde::{Deserialize, Serialize};
use tierline_graph::profile::{CutProfile, ModelProfile};

pub use crate::evaluate::{Cost, Evaluation, LinkPrediction, StagePrediction, Violation};
use crate::plan::PlanError;

/// Bytes per second of links that plans are made for. Whatever is divided by
/// them stays finite.
pub const BANDWIDTH_RANGE: [f64; 2] = [1e-3, 1e18];

/// A link as it is now, towards the upper tier.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinkCondition {
    /// Bytes per second upwards.
    pub up_bytes_per_s: f64,
    /// Bytes per second downwards.
    pub down_bytes_per_s: f64,
    /// Round trip, nanoseconds.
    pub rtt_ns: u64,
}

impl LinkCondition {
    /// The same speed both ways.
    #[must_use]
    pub fn symmetric(bytes_per_s: f64, rtt_ns: u64) -> Self {
        Self { up_bytes_per_s: bytes_per_s, down_bytes_per_s: bytes_per_s, rtt_ns }
    }

    /// Whether anything gets through: what is slower than [`BANDWIDTH_RANGE`]
    /// takes longer than anybody waits.
    #[must_use]
    pub fn is_up(&self) -> bool {
        let carries = |rate: f64| rate.is_finite() && rate >= BANDWIDTH_RANGE[0];
        carries(self.up_bytes_per_s) && carries(self.down_bytes_per_s)
    }

    /// Refuses what is no bandwidth.
    pub(crate) fn check(&self) -> Result<(), PlanError> {
        for (what, rate) in [("up_bytes_per_s", self.up_bytes_per_s), ("down_bytes_per_s", self.down_bytes_per_s)] {
            if !(0.0..=BANDWIDTH_RANGE[1]).contains(&rate) {
                let needed = "it must be 0 (down) to 1e18 bytes per second";
                return Err(PlanError::Value { what: format!("`{what}` of a link"), value: rate.to_string(), needed });
            }
        }
        Ok(())
    }

    pub(crate) fn up_ns(&self, bytes: u64) -> f64 {
        bytes as f64 / self.up_bytes_per_s * 1e9
    }

    pub(crate) fn down_ns(&self, bytes: u64) -> f64 {
        bytes as f64 / self.down_bytes_per_s * 1e9
    }
}

/// A tier of the path, lowest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tier {
    /// Its name, for people.
    pub name: String,
    /// Time per segment, nanoseconds; `None` where it can't run.
    pub segment_ns: Vec<Option<u64>>,
    /// Memory its sessions may take, bytes; 0: no limit.
    pub memory_max: u64,
    /// Expected wait before a request begins, nanoseconds.
    pub wait_ns: u64,
    /// Power while computing, watts.
    pub watts: f64,
    /// Price of an hour of computing.
    pub price_per_hour: f64,
}

/// What a codec makes of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CodecOption {
    /// Its name.
    pub codec: String,
    /// Bytes sent.
    pub bytes: u64,
    /// Time to encode on each tier, nanoseconds.
    pub encode_ns: Vec<u64>,
    /// Time to decode on each tier, nanoseconds.
    pub decode_ns: Vec<u64>,
    /// Relative error of the model's outputs.
    pub loss: f64,
}

/// A tensor of a frontier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Crossing {
    /// Its name.
    pub tensor: String,
    /// Ways to send it.
    pub options: Vec<CodecOption>,
}

/// Energy and price of a link.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct LinkPrice {
    /// Joules per byte sent or received.
    pub joules_per_byte: f64,
    /// Price of a gigabyte.
    pub price_per_gb: f64,
}

/// What is to be small.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Time from request to answer, seconds.
    Latency,
    /// Joules per request.
    Energy,
    /// Money per request.
    Money,
    /// Time per request of the slowest stage or link when requests are
    /// pipelined, seconds.
    Throughput,
    /// A weighted sum of seconds, joules and money.
    Weighted {
        /// Per second.
        latency: f64,
        /// Per joule.
        energy: f64,
        /// Per unit of money.
        money: f64,
    },
}

impl std::str::FromStr for Objective {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "latency" => Self::Latency,
            "energy" => Self::Energy,
            "money" => Self::Money,
            "throughput" => Self::Throughput,
            other => {
                let unknown = || {
                    format!(
                        "`{other}` is no objective; use latency, energy, money, throughput, or the weights of seconds, joules and money as in 1,0.5,0"
                    )
                };
                let weights: Vec<f64> =
                    other.split(',').map(|w| w.trim().parse()).collect::<Result<_, _>>().map_err(|_| unknown())?;
                let [latency, energy, money] = weights[..] else { return Err(unknown()) };
                if weights.iter().any(|w| !w.is_finite() || *w < 0.0) || weights.iter().all(|w| *w == 0.0) {
                    return Err(format!("the weights of objective `{other}` must be 0 or more, and one above 0"));
                }
                Self::Weighted { latency, energy, money }
            }
        })
    }
}

/// What must hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Segments from the start that must run no higher.
    pub private_segments: usize,
    /// Tensors that must not be seen higher: neither sent there nor computed
    /// there.
    pub private_tensors: Vec<String>,
    /// Answer within, nanoseconds.
    pub deadline_ns: Option<u64>,
    /// Relative error of the outputs that codecs may cause together: the sum
    /// over the places that are sent.
    pub max_loss: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { private_segments: 0, private_tensors: Vec::new(), deadline_ns: None, max_loss: 1e-3 }
    }
}

/// An early exit: after `segment`, a share of the requests is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// Its number among the model's exits, from 1.
    pub number: usize,
    /// The head sits behind this segment.
    pub segment: usize,
    /// Share of the requests that reach it which go on, 0 to 1.
    pub go_on: f64,
    /// Time of the head on each tier, nanoseconds.
    pub head_ns: Vec<u64>,
}

/// Everything a plan depends on, but for the links.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanRequest {
    /// The path, lowest tier first.
    pub tiers: Vec<Tier>,
    /// Per boundary, for energy and money; missing ones cost nothing.
    pub link_prices: Vec<LinkPrice>,
    /// The direct link from the lowest tier to the highest.
    pub direct_price: LinkPrice,
    /// What crosses at each place: 0 is the model's inputs, `i` is behind
    /// segment `i - 1`; one more than the candidate cuts.
    pub crossings: Vec<Vec<Crossing>>,
    /// Memory of each segment's session, bytes.
    pub segment_memory: Vec<u64>,
    /// Bytes of the outputs, sent back down over every link crossed.
    pub output_bytes: u64,
    /// The goal.
    pub objective: Objective,
    /// The limits.
    pub limits: Limits,
    /// The highest tier that may see what the limits say is private.
    pub private_tier: usize,
    /// Early exits, in order.
    pub exits: Vec<Exit>,
}

impl PlanRequest {
    /// Bytes that it takes in memory, about.
    pub(crate) fn byte_len(&self) -> usize {
        let tier = |t: &Tier| size_of::<Tier>() + t.name.len() + size_of_val(t.segment_ns.as_slice());
        let option = |o: &CodecOption| {
            let times = size_of_val(o.encode_ns.as_slice()) + size_of_val(o.decode_ns.as_slice());
            size_of::<CodecOption>() + o.codec.len() + times
        };
        let crossing =
            |c: &Crossing| size_of::<Crossing>() + c.tensor.len() + c.options.iter().map(option).sum::<usize>();
        self.tiers.iter().map(tier).sum::<usize>()
            + self.crossings.iter().flatten().map(crossing).sum::<usize>()
            + size_of_val(self.segment_memory.as_slice())
    }

    /// A request from the profiles of the path's tiers, lowest first: least
    /// latency, no limits but the loss. Sizes and losses are those that the
    /// lowest tier measured, codec times each tier's own. `None` where
    /// [`check_profiles`] says why.
    #[must_use]
    pub fn from_profiles(names: &[String], profiles: &[&ModelProfile]) -> Option<Self> {
        check_profiles(names, profiles).ok()?;
        let lowest = profiles.first()?;
        let expected = lowest.segments.len();
        let tier = |(name, profile): (&String, &&ModelProfile)| Tier {
            name: name.clone(),
            segment_ns: profile.segments.iter().map(|s| s.time_ns).collect(),
            memory_max: 0,
            wait_ns: 0,
            watts: 0.0,
            price_per_hour: 0.0,
        };
        let places = |profile: &ModelProfile, place: usize| -> CutProfile {
            if place == 0 { profile.input.clone() } else { profile.cuts[place - 1].clone() }
        };
        let crossings = (0..expected).map(|place| {
            let cuts: Vec<CutProfile> = profiles.iter().map(|p| places(p, place)).collect();
            crossings_of(&cuts)
        });
        Some(Self {
            tiers: names.iter().zip(profiles).map(tier).collect(),
            link_prices: Vec::new(),
            direct_price: LinkPrice::default(),
            crossings: crossings.collect(),
            segment_memory: lowest.segments.iter().map(|s| s.memory_bytes).collect(),
            output_bytes: lowest.reply_codec().map_or(lowest.output_bytes, |(_, bytes)| bytes),
            objective: Objective::Latency,
            limits: Limits::default(),
            private_tier: 0,
            exits: Vec::new(),
        })
    }

    /// Number of segments.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.crossings.len()
    }

    /// Share of the requests that reach segment `segment`.
    pub(crate) fn reach(&self, segment: usize) -> f64 {
        self.exits.iter().filter(|e| e.segment < segment).map(|e| e.go_on).product()
    }

    /// The first place that may be sent above the private tier, by what is
    /// private there; `None` for segments.
    pub(crate) fn private_until(&self) -> (usize, Option<&String>) {
        // A tensor at place `p` is made by segment `p - 1` and used by later
        // ones, so all places up to its last must stay.
        let tensors = self.limits.private_tensors.iter().filter_map(|tensor| {
            let last = self.crossings.iter().rposition(|c| c.iter().any(|c| &c.tensor == tensor))?;
            Some((last + 1, Some(tensor)))
        });
        let segments = (self.limits.private_segments.min(self.segments()), None);
        tensors.chain([segments]).max_by_key(|(place, _)| *place).unwrap_or(segments)
    }
}

/// Whether profiles, one per name and lowest tier first, are of one model
/// with the same cuts.
///
/// # Errors
/// When there is none, or which differs how.
pub fn check_profiles(names: &[String], profiles: &[&ModelProfile]) -> Result<(), PlanError> {
    let lowest = profiles.first().filter(|_| names.len() == profiles.len()).ok_or(PlanError::Empty)?;
    let expected = lowest.segments.len();
    for (name, profile) in names.iter().zip(profiles) {
        if profile.model != lowest.model {
            let (actual, expected) = (profile.model.clone(), lowest.model.clone());
            return Err(PlanError::Model { tier: name.clone(), actual, expected });
        }
        let (segments, cuts) = (profile.segments.len(), profile.cuts.len() + 1);
        if segments != expected || cuts != expected {
            let actual = if segments == expected { cuts } else { segments };
            return Err(PlanError::Mismatch { tier: name.clone(), actual, expected });
        }
    }
    Ok(())
}

/// What crosses at one cut, given each tier's profile of it.
fn crossings_of(cuts: &[CutProfile]) -> Vec<Crossing> {
    let lowest = &cuts[0];
    let crossing = |tensor: &tierline_graph::profile::TensorProfile| {
        let raw = || CodecOption {
            codec: "raw".into(),
            bytes: tensor.bytes,
            encode_ns: vec![0; cuts.len()],
            decode_ns: vec![0; cuts.len()],
            loss: 0.0,
        };
        let options = tensor.codecs.iter().map(|codec| {
            let on = |cut: &CutProfile| {
                let there = cut.tensors.iter().find(|t| t.name == tensor.name);
                there.and_then(|t| t.codecs.iter().find(|c| c.codec == codec.codec)).unwrap_or(codec).clone()
            };
            CodecOption {
                codec: codec.codec.clone(),
                bytes: codec.bytes,
                encode_ns: cuts.iter().map(|cut| on(cut).encode_ns).collect(),
                decode_ns: cuts.iter().map(|cut| on(cut).decode_ns).collect(),
                loss: codec.loss,
            }
        });
        let mut options: Vec<CodecOption> = options.collect();
        if options.is_empty() {
            options.push(raw());
        }
        Crossing { tensor: tensor.name.clone(), options }
    };
    lowest.tensors.iter().map(crossing).collect()
}

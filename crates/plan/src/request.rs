//! A model to be placed: segments between candidate cuts, tensors that cross
//! them, tiers, links, the goal and its limits.

use serde::{Deserialize, Serialize};
use tierline_graph::profile::{CutProfile, ModelProfile, TensorProfile};

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

    fn up_ns(&self, bytes: u64) -> f64 {
        bytes as f64 / self.up_bytes_per_s.max(1.0) * 1e9
    }

    fn down_ns(&self, bytes: u64) -> f64 {
        bytes as f64 / self.down_bytes_per_s.max(1.0) * 1e9
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
    /// Encoding plus decoding, nanoseconds.
    pub time_ns: u64,
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
                let weights: Vec<f64> = other.split(',').filter_map(|w| w.trim().parse().ok()).collect();
                let [latency, energy, money] = weights[..] else {
                    return Err(format!(
                        "`{other}` is no objective; use latency, energy, money, throughput or three weights as in 1,0.5,0"
                    ));
                };
                Self::Weighted { latency, energy, money }
            }
        })
    }
}

/// What must hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Segments from the start that must run on the lowest tier.
    pub private_segments: usize,
    /// Tensors that must not leave the lowest tier.
    pub private_tensors: Vec<String>,
    /// Answer within, nanoseconds.
    pub deadline_ns: Option<u64>,
    /// Relative error of the outputs that codecs may cause together.
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
    /// Per boundary, for energy and money; may be shorter.
    pub link_prices: Vec<LinkPrice>,
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
    /// Early exits, in order.
    pub exits: Vec<Exit>,
}

impl PlanRequest {
    /// A request from the profiles of the path's tiers, lowest first. Sizes
    /// and losses are those that the lowest tier measured; codecs are charged
    /// the encoding there and the decoding of the next tier's profile.
    #[must_use]
    pub fn from_profiles(names: &[String], profiles: &[&ModelProfile]) -> Option<Self> {
        let lowest = profiles.first()?;
        let segments = lowest.segments.len();
        if profiles.len() != names.len()
            || profiles.iter().any(|p| p.segments.len() != segments || p.model != lowest.model)
        {
            return None;
        }
        let tiers = names
            .iter()
            .zip(profiles)
            .map(|(name, profile)| Tier {
                name: name.clone(),
                segment_ns: profile.segments.iter().map(|s| s.time_ns).collect(),
                memory_max: 0,
                wait_ns: 0,
                watts: 0.0,
                price_per_hour: 0.0,
            })
            .collect();
        let above = profiles.get(1).copied().unwrap_or(lowest);
        let crossing = |cut: &CutProfile, other: Option<&CutProfile>| -> Vec<Crossing> {
            cut.tensors.iter().map(|t| Crossing { tensor: t.name.clone(), options: options(t, other) }).collect()
        };
        let mut crossings = vec![crossing(&lowest.input, Some(&above.input))];
        crossings.extend(lowest.cuts.iter().enumerate().map(|(i, c)| crossing(c, above.cuts.get(i))));
        Some(Self {
            tiers,
            link_prices: Vec::new(),
            crossings,
            segment_memory: lowest.segments.iter().map(|s| s.memory_bytes).collect(),
            output_bytes: lowest.output_bytes,
            objective: Objective::Latency,
            limits: Limits::default(),
            exits: Vec::new(),
        })
    }

    /// Number of segments.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.crossings.len()
    }

    /// Share of the requests that reach segment `segment`.
    fn reach(&self, segment: usize) -> f64 {
        self.exits.iter().filter(|e| e.segment < segment).map(|e| e.go_on).product()
    }
}

fn options(tensor: &TensorProfile, other: Option<&CutProfile>) -> Vec<CodecOption> {
    let decode = |codec: &str, own: u64| {
        let above = other.and_then(|c| c.tensors.iter().find(|t| t.name == tensor.name));
        above.and_then(|t| t.codecs.iter().find(|c| c.codec == codec)).map_or(own, |c| c.decode_ns)
    };
    let mut options: Vec<CodecOption> = tensor
        .codecs
        .iter()
        .map(|c| CodecOption {
            codec: c.codec.clone(),
            bytes: c.bytes,
            time_ns: c.encode_ns + decode(&c.codec, c.decode_ns),
            loss: c.loss,
        })
        .collect();
    if options.is_empty() {
        options.push(CodecOption { codec: "raw".into(), bytes: tensor.bytes, time_ns: 0, loss: 0.0 });
    }
    options
}

/// Cost of one request in every currency.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Cost {
    /// From request to answer, nanoseconds.
    pub latency_ns: f64,
    /// Joules.
    pub joules: f64,
    /// Money.
    pub money: f64,
    /// The slowest stage or link, nanoseconds.
    pub bottleneck_ns: f64,
    /// Relative error that codecs cause together.
    pub loss: f64,
}

impl Cost {
    /// The number that the objective compares.
    #[must_use]
    pub fn objective(&self, objective: Objective) -> f64 {
        match objective {
            Objective::Latency => self.latency_ns / 1e9,
            Objective::Energy => self.joules,
            Objective::Money => self.money,
            Objective::Throughput => self.bottleneck_ns / 1e9,
            Objective::Weighted { latency, energy, money } => {
                latency * self.latency_ns / 1e9 + energy * self.joules + money * self.money
            }
        }
    }
}

/// A stage's part of a plan's prediction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StagePrediction {
    /// The tier's name.
    pub tier: String,
    /// Segments `[first, last)`.
    pub first: usize,
    /// One past the last.
    pub last: usize,
    /// Waiting and computing, nanoseconds.
    pub compute_ns: f64,
}

/// A link's part of a plan's prediction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkPrediction {
    /// Place that is sent: 0 the inputs, `i` behind segment `i - 1`.
    pub place: usize,
    /// Tensors and the codec chosen for each.
    pub tensors: Vec<(String, String)>,
    /// Bytes upwards.
    pub bytes: u64,
    /// Encoding and decoding, nanoseconds.
    pub codec_ns: f64,
    /// On the wire, up and back, nanoseconds.
    pub link_ns: f64,
}

/// A plan evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Per tier that runs something or passes something on.
    pub stages: Vec<StagePrediction>,
    /// Per link crossed.
    pub links: Vec<LinkPrediction>,
    /// The sums.
    pub cost: Cost,
}

/// Why a placement isn't allowed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A tier can't run a segment.
    #[error("tier `{tier}` cannot run segment {segment}")]
    Operator {
        /// The tier.
        tier: String,
        /// The segment.
        segment: usize,
    },
    /// Sessions exceed the tier's memory.
    #[error("segments {first}..{last} need {needed} bytes; tier `{tier}` has {available}")]
    Memory {
        /// The tier.
        tier: String,
        /// First segment.
        first: usize,
        /// One past the last.
        last: usize,
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        available: u64,
    },
    /// Something private would leave the lowest tier.
    #[error("{what} must not leave tier `{tier}`")]
    Privacy {
        /// The tier.
        tier: String,
        /// What is private.
        what: String,
    },
    /// No codec keeps the loss within the limit.
    #[error("no codec sends `{tensor}` with a loss of at most {max}")]
    Loss {
        /// The tensor.
        tensor: String,
        /// The limit.
        max: f64,
    },
    /// Too slow.
    #[error("it takes {needed:.1} ms; the deadline is {available:.1} ms")]
    Deadline {
        /// Milliseconds needed.
        needed: f64,
        /// Milliseconds allowed.
        available: f64,
    },
    /// A link on the way is down.
    #[error("the link above tier `{0}` is down")]
    LinkDown(String),
}

impl PlanRequest {
    /// What a placement costs under `links` (one per boundary; fewer: the
    /// tiers beyond can't be reached). `bounds[k]` is the first segment above
    /// tier `k`.
    ///
    /// A request pays each link's round trip once, the crossing tensors
    /// upwards, and the outputs downwards.
    ///
    /// # Errors
    /// The first limit it violates.
    pub fn evaluate(&self, bounds: &[usize], links: &[LinkCondition]) -> Result<Evaluation, Violation> {
        let (n, tiers) = (self.segments(), self.tiers.len());
        let mut out = Evaluation { stages: Vec::new(), links: Vec::new(), cost: Cost::default() };
        let mut first = 0;
        for (k, tier) in self.tiers.iter().enumerate() {
            let last = if k + 1 == tiers { n } else { bounds[k].clamp(first, n) };
            let reached = self.reach(first);
            let mut compute = if last > first { tier.wait_ns as f64 * reached } else { 0.0 };
            for segment in first..last {
                let time =
                    tier.segment_ns[segment].ok_or_else(|| Violation::Operator { tier: tier.name.clone(), segment })?;
                compute += time as f64 * self.reach(segment);
            }
            for exit in self.exits.iter().filter(|e| (first..last).contains(&e.segment)) {
                compute += exit.head_ns.get(k).copied().unwrap_or(0) as f64 * self.reach(exit.segment);
            }
            let needed: u64 = self.segment_memory[first..last].iter().sum();
            if tier.memory_max > 0 && needed > tier.memory_max {
                return Err(Violation::Memory {
                    tier: tier.name.clone(),
                    first,
                    last,
                    needed,
                    available: tier.memory_max,
                });
            }
            out.stages.push(StagePrediction { tier: tier.name.clone(), first, last, compute_ns: compute });
            out.cost.latency_ns += compute;
            out.cost.joules += compute / 1e9 * tier.watts;
            out.cost.money += compute / 3.6e12 * tier.price_per_hour;
            out.cost.bottleneck_ns = out.cost.bottleneck_ns.max(compute);
            if last == n {
                break;
            }
            if k == 0 {
                self.check_privacy(last)?;
            }
            let link = links.get(k).ok_or_else(|| Violation::LinkDown(tier.name.clone()))?;
            let crossed = self.cross(last, link, out.cost.loss)?;
            let share = self.reach(last);
            let price = self.link_prices.get(k).copied().unwrap_or_default();
            let total = (crossed.codec_ns + crossed.link_ns) * share;
            out.cost.latency_ns += total;
            out.cost.bottleneck_ns = out.cost.bottleneck_ns.max(link.up_ns(crossed.bytes) * share);
            let bytes = (crossed.bytes + self.output_bytes) as f64 * share;
            out.cost.joules += bytes * price.joules_per_byte;
            out.cost.money += bytes / 1e9 * price.price_per_gb;
            // The same codec again on the next link adds nothing: what was
            // rounded once stays as it is.
            out.cost.loss = out.cost.loss.max(self.loss_of(&crossed));
            out.links.push(crossed);
            first = last;
        }
        if let Some(deadline) = self.limits.deadline_ns
            && out.cost.latency_ns > deadline as f64
        {
            return Err(Violation::Deadline { needed: out.cost.latency_ns / 1e6, available: deadline as f64 / 1e6 });
        }
        Ok(out)
    }

    fn check_privacy(&self, place: usize) -> Result<(), Violation> {
        let tier = || self.tiers[0].name.clone();
        if place < self.limits.private_segments {
            let what = format!("the first {} segments", self.limits.private_segments);
            return Err(Violation::Privacy { tier: tier(), what });
        }
        let private = self.crossings[place].iter().find(|c| self.limits.private_tensors.contains(&c.tensor));
        match private {
            Some(c) => Err(Violation::Privacy { tier: tier(), what: format!("tensor `{}`", c.tensor) }),
            None => Ok(()),
        }
    }

    fn loss_of(&self, link: &LinkPrediction) -> f64 {
        let of = |(tensor, codec): &(String, String)| {
            let crossing = self.crossings[link.place].iter().find(|c| &c.tensor == tensor)?;
            Some(crossing.options.iter().find(|o| &o.codec == codec)?.loss)
        };
        link.tensors.iter().filter_map(of).sum()
    }

    /// The quickest way to send what crosses at `place`, per tensor the best codec.
    fn cross(&self, place: usize, link: &LinkCondition, _lost: f64) -> Result<LinkPrediction, Violation> {
        let mut tensors = Vec::new();
        let (mut bytes, mut codec_ns) = (0u64, 0.0);
        let share = self.limits.max_loss / self.crossings[place].len().max(1) as f64;
        for crossing in &self.crossings[place] {
            let time = |o: &CodecOption| o.time_ns as f64 + link.up_ns(o.bytes);
            let best = crossing
                .options
                .iter()
                .filter(|o| o.loss <= share)
                .min_by(|a, b| time(a).total_cmp(&time(b)))
                .ok_or_else(|| Violation::Loss { tensor: crossing.tensor.clone(), max: share })?;
            bytes += best.bytes;
            codec_ns += best.time_ns as f64;
            tensors.push((crossing.tensor.clone(), best.codec.clone()));
        }
        let link_ns = link.rtt_ns as f64 + link.up_ns(bytes) + link.down_ns(self.output_bytes);
        Ok(LinkPrediction { place, tensors, bytes, codec_ns, link_ns })
    }
}

//! What a placement costs: the definition that the search minimises.
//!
//! Straight loops, no shortcuts; `crate::search` does the same with prefix
//! sums and is tested against this. Start at [`PlanRequest::evaluate_with`].

use serde::{Deserialize, Serialize};

use crate::request::{LinkCondition, LinkPrice, Objective, PlanRequest};
use crate::search::Prepared;

/// Which way requests take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// From tier to tier.
    #[default]
    Line,
    /// From the lowest tier straight to the highest.
    Direct,
}

/// Cost of one request in every currency; with early exits, of the average
/// request.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Cost {
    /// From request to answer, nanoseconds.
    pub latency_ns: f64,
    /// Joules.
    pub joules: f64,
    /// Money.
    pub money: f64,
    /// The busiest stage or direction of a link, nanoseconds per request.
    pub bottleneck_ns: f64,
    /// Relative error that codecs cause together.
    pub loss: f64,
}

impl Cost {
    /// The number that the objective compares: seconds, joules, money.
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

/// A stage's part of a plan's prediction, nanoseconds of the average request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StagePrediction {
    /// The tier's name.
    pub tier: String,
    /// Segments `[first, last)`; none when it only passes on.
    pub first: usize,
    /// One past the last.
    pub last: usize,
    /// Until it begins.
    pub wait_ns: f64,
    /// Running its segments, and the heads of exits among them.
    pub compute_ns: f64,
    /// Decoding what comes from below.
    pub decode_ns: f64,
    /// Encoding what goes up.
    pub encode_ns: f64,
}

impl StagePrediction {
    /// Time in which it can do nothing else.
    #[must_use]
    pub fn busy_ns(&self) -> f64 {
        self.compute_ns + self.decode_ns + self.encode_ns
    }
}

/// A link's part of a plan's prediction, nanoseconds of the average request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkPrediction {
    /// The tier below.
    pub from: String,
    /// The tier above.
    pub to: String,
    /// Place that is sent: 0 the inputs, `i` behind segment `i - 1`.
    pub place: usize,
    /// Tensors and the codec chosen for each.
    pub tensors: Vec<(String, String)>,
    /// Share of the requests that get here.
    pub share: f64,
    /// Bytes upwards, when a request does.
    pub bytes: u64,
    /// Tensors upwards.
    pub up_ns: f64,
    /// Outputs downwards.
    pub down_ns: f64,
    /// Round trip.
    pub rtt_ns: f64,
    /// On the wire: the three together.
    pub link_ns: f64,
    /// Encoding below and decoding above; the stages count it too.
    pub codec_ns: f64,
}

/// A placement evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Per tier on the way, as far as requests go.
    pub stages: Vec<StagePrediction>,
    /// Per link crossed.
    pub links: Vec<LinkPrediction>,
    /// The sums.
    pub cost: Cost,
}

/// Why a placement isn't allowed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
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
    /// A link on the way is down.
    #[error("the link from tier `{from}` to tier `{to}` is down")]
    LinkDown {
        /// The tier below.
        from: String,
        /// The tier above.
        to: String,
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
    /// Something private would leave the tiers that may see it.
    #[error("{what} must not leave tier `{tier}`")]
    Privacy {
        /// The highest tier that may see it.
        tier: String,
        /// What is private.
        what: String,
    },
    /// Codecs lose too much.
    #[error("the codecs lose {needed:.1e} of the output; at most {available:.1e} may be lost")]
    Loss {
        /// The loss.
        needed: f64,
        /// The limit.
        available: f64,
    },
    /// Too slow.
    #[error("it takes {needed_ms:.1} ms; the deadline is {available_ms:.1} ms")]
    Deadline {
        /// Milliseconds needed.
        needed_ms: f64,
        /// Milliseconds allowed.
        available_ms: f64,
    },
}

impl Violation {
    /// Whether giving more room could help: a limit, not an impossibility.
    #[must_use]
    pub fn is_limit(&self) -> bool {
        !matches!(self, Self::Operator { .. } | Self::LinkDown { .. })
    }
}

/// The tiers of a route, and a link with its price behind all but the last.
pub(crate) struct Path {
    pub tiers: Vec<usize>,
    pub links: Vec<Option<LinkCondition>>,
    pub prices: Vec<LinkPrice>,
}

impl PlanRequest {
    pub(crate) fn path(&self, route: Route, line: &[LinkCondition], direct: Option<&LinkCondition>) -> Path {
        let levels = self.tiers.len() - 1;
        let up = |link: Option<&LinkCondition>| link.copied().filter(LinkCondition::is_up);
        match route {
            Route::Line => Path {
                tiers: (0..=levels).collect(),
                links: (0..levels).map(|k| up(line.get(k))).collect(),
                prices: (0..levels).map(|k| self.link_prices.get(k).copied().unwrap_or_default()).collect(),
            },
            Route::Direct => Path { tiers: vec![0, levels], links: vec![up(direct)], prices: vec![self.direct_price] },
        }
    }

    /// What a placement on the line costs with its best codecs. `bounds[k]` is
    /// the first segment above tier `k`.
    ///
    /// # Errors
    /// The first thing it violates; impossibilities before limits.
    ///
    /// # Panics
    /// When the request is malformed; [`crate::plan()`] checks.
    pub fn evaluate(&self, bounds: &[usize], links: &[LinkCondition]) -> Result<Evaluation, Violation> {
        self.evaluate_on(bounds, Route::Line, links, None)
    }

    /// The same on any route; on [`Route::Direct`] all bounds are the same.
    ///
    /// # Errors
    /// As [`PlanRequest::evaluate`].
    ///
    /// # Panics
    /// As [`PlanRequest::evaluate`].
    pub fn evaluate_on(
        &self,
        bounds: &[usize],
        route: Route,
        links: &[LinkCondition],
        direct: Option<&LinkCondition>,
    ) -> Result<Evaluation, Violation> {
        self.evaluate_prepared(&Prepared::new(self), bounds, route, links, direct)
    }

    pub(crate) fn evaluate_prepared(
        &self,
        prepared: &Prepared,
        bounds: &[usize],
        route: Route,
        links: &[LinkCondition],
        direct: Option<&LinkCondition>,
    ) -> Result<Evaluation, Violation> {
        let mut first = 0;
        let in_order = |bound: &usize| {
            first = (*bound).clamp(first, self.segments());
            first
        };
        let bounds: Vec<usize> = bounds.iter().map(in_order).collect();
        let findings = prepared.one(self, route, &bounds, links, direct);
        // One of the two is there: a placement is either admitted or refused.
        let found = findings.best.or(findings.refused);
        let codecs = found.map(|f| f.codecs).unwrap_or_default();
        self.evaluate_with(&bounds, &codecs, route, links, direct)
    }

    /// What a placement costs with the codecs given. `bounds[k]` is the first
    /// segment above tier `k`; on [`Route::Direct`] all are the same.
    /// `codecs[hop][i]` is the option of the `i`-th tensor crossing at that hop.
    ///
    /// A request pays each link's round trip once, the crossing tensors
    /// upwards, and the outputs downwards. Loss adds up over places; what is
    /// sent over several links at the same place was rounded once.
    ///
    /// # Errors
    /// The first thing it violates; impossibilities before limits.
    pub fn evaluate_with(
        &self,
        bounds: &[usize],
        codecs: &[Vec<usize>],
        route: Route,
        line: &[LinkCondition],
        direct: Option<&LinkCondition>,
    ) -> Result<Evaluation, Violation> {
        let (evaluation, violation) = self.examine(bounds, codecs, &self.path(route, line, direct))?;
        violation.map_or(Ok(evaluation), Err)
    }

    /// The cost, and the first limit violated; an error when it is impossible.
    pub(crate) fn examine(
        &self,
        bounds: &[usize],
        codecs: &[Vec<usize>],
        path: &Path,
    ) -> Result<(Evaluation, Option<Violation>), Violation> {
        let n = self.segments();
        let mut out = Evaluation { stages: Vec::new(), links: Vec::new(), cost: Cost::default() };
        let mut limits: Vec<Violation> = Vec::new();
        let mut first = 0;
        let mut decode_ns = 0.0;
        let mut losses: Vec<(usize, f64)> = Vec::new();
        for (hop, &k) in path.tiers.iter().enumerate() {
            let tier = &self.tiers[k];
            let last = bounds.get(k).map_or(n, |b| (*b).clamp(first, n));
            let mut compute_ns = 0.0;
            for segment in first..last {
                let missing = || Violation::Operator { tier: tier.name.clone(), segment };
                compute_ns += tier.segment_ns[segment].ok_or_else(missing)? as f64 * self.reach(segment);
            }
            for exit in self.exits.iter().filter(|e| (first..last).contains(&e.segment)) {
                compute_ns += exit.head_ns[k] as f64 * self.reach(exit.segment);
            }
            let wait_ns = if last > first { tier.wait_ns as f64 * self.reach(first) } else { 0.0 };
            let needed: u64 = self.segment_memory[first..last].iter().sum();
            if tier.memory_max > 0 && needed > tier.memory_max {
                let (tier, available) = (tier.name.clone(), tier.memory_max);
                limits.push(Violation::Memory { tier, first, last, needed, available });
            }
            let mut stage = StagePrediction {
                tier: tier.name.clone(),
                first,
                last,
                wait_ns,
                compute_ns,
                decode_ns,
                encode_ns: 0.0,
            };
            if last < n {
                let above = &self.tiers[path.tiers[hop + 1]];
                let down = || Violation::LinkDown { from: tier.name.clone(), to: above.name.clone() };
                let link = path.links[hop].ok_or_else(down)?;
                let share = self.reach(last);
                let (mut bytes, mut loss, mut tensors) = (0u64, 0.0, Vec::new());
                decode_ns = 0.0;
                for (crossing, choice) in self.crossings[last].iter().zip(&codecs[hop]) {
                    let option = &crossing.options[*choice];
                    bytes += option.bytes;
                    loss += option.loss;
                    stage.encode_ns += option.encode_ns[k] as f64 * share;
                    decode_ns += option.decode_ns[path.tiers[hop + 1]] as f64 * share;
                    tensors.push((crossing.tensor.clone(), option.codec.clone()));
                }
                match losses.last_mut().filter(|(place, _)| *place == last) {
                    Some((_, most)) => *most = loss.max(*most),
                    None => losses.push((last, loss)),
                }
                let (up_ns, down_ns) = (link.up_ns(bytes) * share, link.down_ns(self.output_bytes) * share);
                let moved = (bytes + self.output_bytes) as f64 * share;
                out.cost.joules += moved * path.prices[hop].joules_per_byte;
                out.cost.money += moved / 1e9 * path.prices[hop].price_per_gb;
                out.cost.bottleneck_ns = out.cost.bottleneck_ns.max(up_ns).max(down_ns);
                let rtt_ns = link.rtt_ns as f64 * share;
                out.cost.latency_ns += up_ns + down_ns + rtt_ns;
                let (from, to) = (tier.name.clone(), above.name.clone());
                out.links.push(LinkPrediction {
                    from,
                    to,
                    place: last,
                    tensors,
                    share,
                    bytes,
                    up_ns,
                    down_ns,
                    rtt_ns,
                    link_ns: up_ns + down_ns + rtt_ns,
                    codec_ns: stage.encode_ns + decode_ns,
                });
            }
            let busy_ns = stage.busy_ns();
            out.cost.latency_ns += wait_ns + busy_ns;
            out.cost.joules += busy_ns / 1e9 * tier.watts;
            out.cost.money += busy_ns / 3.6e12 * tier.price_per_hour;
            out.cost.bottleneck_ns = out.cost.bottleneck_ns.max(busy_ns);
            out.stages.push(stage);
            first = last;
            if last == n {
                break;
            }
        }
        out.cost.loss = losses.iter().map(|(_, loss)| loss).sum();
        limits.extend(self.privacy(bounds, path));
        if out.cost.loss > self.limits.max_loss {
            limits.push(Violation::Loss { needed: out.cost.loss, available: self.limits.max_loss });
        }
        if let Some(deadline) = self.limits.deadline_ns.filter(|d| out.cost.latency_ns > *d as f64) {
            let (needed_ms, available_ms) = (out.cost.latency_ns / 1e6, deadline as f64 / 1e6);
            limits.push(Violation::Deadline { needed_ms, available_ms });
        }
        Ok((out, limits.into_iter().next()))
    }

    fn privacy(&self, bounds: &[usize], path: &Path) -> Option<Violation> {
        let (until, tensor) = self.private_until();
        if path.tiers.last().is_none_or(|top| self.private_tier >= *top) {
            return None;
        }
        // Where requests leave the tiers that may see everything.
        let leave = path.tiers.iter().rev().skip(1).find(|k| **k <= self.private_tier)?;
        let what = match tensor {
            _ if bounds[*leave] >= until => return None,
            Some(tensor) => format!("tensor `{tensor}`"),
            None => format!("segments 0..{until}"),
        };
        let tier = self.tiers[self.private_tier].name.clone();
        Some(Violation::Privacy { tier, what })
    }
}

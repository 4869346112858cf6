//! Where requests go: the plan in force, or the place that a caller chose.

use std::time::Duration;

use tierline_node::Peer;
use tierline_node::adapt::Event;
use tierline_plan::Evaluation;
use tierline_proto::v1::{Boundary, Code, Failure, Route, TensorCodec};
use tierline_proto::{Digest, Role};

use super::Planning;
use super::tables::exits_of;
use crate::device::program::Program;
use crate::duties::catalogue::Entry;
use crate::net::Uplink;
use crate::runtime::ns;

/// Segment that begins behind `cut`; `None` is the model's inputs.
#[must_use]
pub fn segment_after(cut: Option<u32>) -> usize {
    cut.map_or(0, |c| c as usize + 1)
}

/// Where a request goes.
#[derive(Debug, Clone, Default)]
pub struct Placed {
    /// Boundaries on the way, nearest first; none: all here.
    pub boundaries: Vec<Boundary>,
    /// The parent that gets what lies behind the first.
    pub peer: Option<Peer>,
    /// Expected time, nanoseconds; 0 when unknown.
    pub predicted_ns: u64,
    /// The placement in words.
    pub text: String,
    /// Numbers of the exits that the plan uses, from 1; `None`: any.
    pub exits: Option<Vec<usize>>,
}

/// Where `evaluation` goes, past these exits; it takes so much beyond what
/// profiles say.
pub(super) fn place(peer: Option<Peer>, evaluation: &Evaluation, exits: Vec<usize>, beyond_ns: f64) -> Placed {
    let boundaries: Vec<Boundary> = evaluation
        .links
        .iter()
        .map(|link| Boundary {
            cut: link.place.checked_sub(1).map(|c| c as u32),
            tensors: link
                .tensors
                .iter()
                .map(|(name, codec)| TensorCodec { name: name.clone(), codec: codec.clone() })
                .collect(),
        })
        .collect();
    Placed {
        peer: peer.filter(|_| !boundaries.is_empty()),
        boundaries,
        predicted_ns: (evaluation.cost.latency_ns + beyond_ns).max(0.0) as u64,
        text: with_exits(words(evaluation), &exits),
        exits: Some(exits),
    }
}

/// `segments 0..12 on end, segments 12..25 on cloud`.
#[must_use]
pub fn words(evaluation: &Evaluation) -> String {
    let busy = || evaluation.stages.iter().filter(|stage| stage.last > stage.first);
    match (busy().next(), busy().nth(1)) {
        (Some(only), None) => everything_on(&only.tier),
        _ => busy().map(|stage| segments_on(stage.first, stage.last, &stage.tier)).collect::<Vec<_>>().join(", "),
    }
}

/// A placement, and the exits on its way: `everything on end, exits 1, 2`.
pub(super) fn with_exits(placement: String, exits: &[usize]) -> String {
    let numbers: Vec<String> = exits.iter().map(ToString::to_string).collect();
    match exits.len() {
        0 => placement,
        1 => format!("{placement}, exit {}", numbers[0]),
        _ => format!("{placement}, exits {}", numbers.join(", ")),
    }
}

fn everything_on(tier: &str) -> String {
    format!("everything on {tier}")
}

fn segments_on(first: usize, last: usize, tier: &str) -> String {
    match last - first {
        1 => format!("segment {first} on {tier}"),
        _ => format!("segments {first}..{last} on {tier}"),
    }
}

impl Planning {
    /// How the outputs of a model travel back down.
    #[must_use]
    pub fn reply_codec(&self, model: Digest) -> String {
        let profile = self.catalogue.known.profile(model);
        profile.and_then(|p| p.reply_codec().map(|(codec, _)| codec.to_owned())).unwrap_or_default()
    }

    /// Expected time of segments `from..to` here, waiting included; zero when
    /// not profiled.
    #[must_use]
    pub fn predicted(&self, program: &Program, from: usize, to: usize) -> Duration {
        let model = program.manifest.digest.parse().ok();
        let ratio = model.map_or(1.0, |model| self.lock().adapt.conditions().ratios.of(model, self.cx.me.name()));
        self.service(program, from, to).mul_f64(ratio) + self.cx.device.compute.expected_wait()
    }

    /// Expected time of segments `from..to` in the engine; zero when not
    /// profiled.
    #[must_use]
    pub fn service(&self, program: &Program, from: usize, to: usize) -> Duration {
        let model = program.manifest.digest.parse().ok();
        let Some(profile) = model.and_then(|model| self.catalogue.known.profile(model)) else { return Duration::ZERO };
        let time = match (from, to) {
            (0, to) if to == profile.segments.len() => profile.whole_ns,
            _ => profile.segments.get(from..to).map_or(0, |part| part.iter().filter_map(|s| s.time_ns).sum()),
        };
        Duration::from_nanos(time)
    }

    /// Expected time until the answer of a parent is here, for what lies
    /// behind the first of `boundaries`; without boundaries the parent runs
    /// the whole model. Zero when unknown.
    #[must_use]
    pub fn predicted_upstream(&self, peer: Peer, program: &Program, boundaries: &[Boundary]) -> Duration {
        let Ok(model) = program.manifest.digest.parse::<Digest>() else { return Duration::ZERO };
        let inner = self.lock();
        let Some(path) = inner.adapt.plans(model).and_then(|planned| planned.path_of(peer)) else {
            return Duration::ZERO;
        };
        let request = path.table.request();
        let mut bounds: Vec<usize> = boundaries.iter().map(|b| segment_after(b.cut)).collect();
        if bounds.is_empty() {
            bounds.push(0);
        }
        bounds.resize(request.tiers.len().saturating_sub(1), request.segments());
        match request.evaluate(&bounds, &path.links(inner.adapt.conditions())) {
            Ok(evaluation) => {
                let ratios = &inner.adapt.conditions().ratios;
                let own = evaluation.stages.first().map_or(0.0, |stage| stage.compute_ns);
                let above = evaluation.stages.iter().skip(1);
                let slower: f64 = above.map(|stage| stage.compute_ns * (ratios.of(model, &stage.tier) - 1.0)).sum();
                Duration::from_nanos((evaluation.cost.latency_ns - own + slower).max(0.0) as u64)
            }
            Err(_) => Duration::ZERO,
        }
    }

    /// Expected time in a parent's own engine, of what lies behind the first of
    /// `boundaries`. Zero when unknown.
    pub fn service_upstream(&self, peer: Peer, program: &Program, boundaries: &[Boundary]) -> Duration {
        let Ok(model) = program.manifest.digest.parse::<Digest>() else { return Duration::ZERO };
        let inner = self.lock();
        let Some(path) = inner.adapt.plans(model).and_then(|planned| planned.path_of(peer)) else {
            return Duration::ZERO;
        };
        let request = path.table.request();
        let mut bounds: Vec<usize> = boundaries.iter().map(|b| segment_after(b.cut)).collect();
        bounds.resize(request.tiers.len().saturating_sub(1), request.segments());
        let evaluated = request.evaluate(&bounds, &path.links(inner.adapt.conditions()));
        let ratios = &inner.adapt.conditions().ratios;
        let first = evaluated.ok().and_then(|evaluation| evaluation.stages.into_iter().nth(1));
        let time = first.map_or(0.0, |stage| stage.compute_ns * ratios.of(model, &stage.tier));
        Duration::from_nanos(time.max(0.0) as u64)
    }

    /// The plan that requests for a model run now; all here while there is none.
    pub fn current_plan(&self, entry: &Entry, program: &Program) -> Placed {
        let _ = self.lock().adapt.step(self.cx.clock.now(), Event::Requested { model: entry.model });
        self.cx.parents.iter().for_each(Uplink::wanted);
        match self.placed(entry.model) {
            Some((placed, _)) => placed,
            None => self.placed_last(entry.model).unwrap_or_else(|| self.not_planned(entry, program)),
        }
    }

    /// Everything on this node, for want of a plan.
    fn not_planned(&self, entry: &Entry, program: &Program) -> Placed {
        let why = match (self.catalogue.known.profile(entry.model), self.catalogue.known.check_fit(entry.model)) {
            (Some(_), _) => "no plan is made yet",
            (None, Ok(())) => "the model is still being measured here",
            (None, Err(_)) => "the model couldn't be measured here",
        };
        let here = self.all_here(program);
        Placed { text: format!("{}: {why}", here.text), ..here }
    }

    /// Everything on this node.
    #[must_use]
    pub fn all_here(&self, program: &Program) -> Placed {
        let segments = program.segments();
        let predicted_ns = ns(self.predicted(program, 0, segments));
        Placed { predicted_ns, text: everything_on(self.cx.me.name()), ..Placed::default() }
    }

    /// Everything on the nearest tier of a role.
    ///
    /// # Errors
    /// [`Code::Unreachable`] when there is none on any path.
    pub fn all_at_role(&self, program: &Program, role: Role) -> Result<Placed, Failure> {
        if self.cx.me.role() == role {
            return Ok(self.all_here(program));
        }
        // In the order of preference, those that are up before the others.
        let mut uplinks: Vec<_> = self.cx.parents.iter().collect();
        uplinks.sort_by_key(|uplink| !uplink.is_up());
        let found = uplinks.into_iter().find_map(|uplink| {
            let tier = uplink.path()?.tiers.iter().position(|tier| tier.role() == role)?;
            Some((uplink.peer, tier + 1))
        });
        let Some((peer, links)) = found else {
            let text = format!("no {} is above {}", role.word(), self.cx.me.name());
            return Err(Failure::new(Code::Unreachable, text).with_help("`tierline nodes` shows the site"));
        };
        Ok(self.along(program, peer, &vec![0; links]))
    }

    /// A route that the caller chose: where each tier hands on.
    ///
    /// # Errors
    /// [`Code::InvalidInput`] for cuts that don't exist or run backwards,
    /// [`Code::Unreachable`] without a parent.
    pub fn fixed(&self, program: &Program, route: &Route) -> Result<Placed, Failure> {
        let segments = program.segments();
        let places: Vec<usize> = route.boundaries.iter().map(|b| segment_after(b.cut)).collect();
        if places.iter().any(|&p| p > segments) || places.windows(2).any(|w| w[0] > w[1]) {
            let text = format!("places {places:?} don't lie in order within 0..{segments}");
            return Err(Failure::new(Code::InvalidInput, text)
                .with_help("`tierline model show` tells how many candidate cuts there are"));
        }
        if places.is_empty() {
            return Ok(self.all_here(program));
        }
        let first = self.cx.parents.first();
        let first = first.ok_or_else(|| Failure::new(Code::Unreachable, "this node has no parent"))?;
        Ok(self.along(program, first.peer, &places))
    }

    /// Hands on at `places` along the path of `peer`, with the best codecs.
    fn along(&self, program: &Program, peer: Peer, places: &[usize]) -> Placed {
        let model = program.manifest.digest.parse::<Digest>().ok();
        let inner = self.lock();
        let known = model
            .and_then(|model| inner.adapt.plans(model))
            .and_then(|planned| planned.path_of(peer))
            .and_then(|path| {
                let request = path.table.request();
                let mut bounds = places.to_vec();
                bounds.resize(request.tiers.len().checked_sub(1)?, request.segments());
                let evaluation = request.evaluate(&bounds, &path.links(inner.adapt.conditions())).ok()?;
                let beyond_ns = path.beyond_ns(model?, &evaluation, inner.adapt.conditions());
                let placed = place(Some(peer), &evaluation, exits_of(request), beyond_ns);
                // The caller chose the place, not the exits.
                Some(Placed { text: words(&evaluation), exits: None, ..placed })
            });
        known.unwrap_or_else(|| Placed {
            boundaries: places
                .iter()
                .map(|place| Boundary { cut: place.checked_sub(1).map(|c| c as u32), tensors: Vec::new() })
                .collect(),
            peer: Some(peer),
            predicted_ns: 0,
            text: format!("handed on at {places:?}"),
            exits: None,
        })
    }
}

//! Plans that would be chosen if a link were faster or slower: out of the very
//! table that requests go by.

use tierline_node::adapt::{Conditions, Plans};
use tierline_plan::Evaluation;
use tierline_proto::Digest;
use tierline_proto::v1::{Code, Failure};

use super::Planning;
use super::tables::{Path, is_split};
use crate::duties::catalogue::Entry;

/// What would be chosen at each of some speeds.
#[derive(Debug, serde::Serialize)]
pub struct WhatIf {
    model: String,
    /// The link that is thought of as other than it is: its lower and its upper
    /// end. None where nothing lies above this node.
    link: Option<[String; 2]>,
    /// Its speed as it is, bytes per second upwards; 0 where it is down.
    up_bytes_per_s: f64,
    /// The placement that requests run now.
    in_force: String,
    chosen: Vec<Chosen>,
}

/// What would be chosen at one speed.
#[derive(Debug, serde::Serialize)]
struct Chosen {
    up_bytes_per_s: f64,
    placement: String,
    /// From request to answer, waiting included.
    latency_ns: f64,
    #[serde(flatten)]
    evaluation: Evaluation,
}

impl Planning {
    /// The placement that requests for a model run now, if there is one.
    #[must_use]
    pub fn in_force(&self, entry: &Entry) -> Option<String> {
        let running = self.through(&self.lock(), entry);
        self.peek(running.map_or(entry.model, |variant| variant.model)).map(|(placed, _)| placed.text)
    }

    /// What would be chosen if the first link upwards had each of `speeds`,
    /// bytes per second, and everything else were as it is.
    ///
    /// # Errors
    /// [`Code::ModelNotReady`] before there are plans.
    pub fn what_if(&self, entry: &Entry, speeds: &[f64]) -> Result<WhatIf, Failure> {
        let inner = self.lock();
        let planned = inner.adapt.plans(entry.model).ok_or_else(|| {
            let text = format!("{} is not planned on {} yet", entry.manifest.name, self.cx.me.name());
            Failure::new(Code::ModelNotReady, text)
        })?;
        let now = inner.adapt.conditions();
        let running = self.through(&inner, entry).map_or(entry.model, |variant| variant.model);
        let running = inner.adapt.current(running).zip(inner.adapt.plans(running));
        let in_force = running.and_then(|(plan, planned)| planned.evaluate(plan, now));
        let upward = || planned.paths.iter().find(|path| !path.above.is_empty());
        // The way that requests go; else the first one.
        let path = in_force.as_ref().map(|(path, _)| *path).filter(|path| !path.above.is_empty()).or_else(upward);
        let mut answer = WhatIf {
            model: entry.manifest.name.clone(),
            link: path.map(|path| [self.cx.me.name().to_owned(), path.above[0].0.clone()]),
            up_bytes_per_s: path.and_then(|path| now.links.get(path.first_link)).map_or(0.0, |link| link.up),
            in_force: in_force.map_or_else(|| "none".to_owned(), |(path, evaluation)| path.words(&evaluation)),
            chosen: Vec::new(),
        };
        let Some(path) = path else { return Ok(answer) };
        let variants = self.variants(entry);
        let variants = variants.iter().filter_map(|v| Some((v.model, inner.adapt.plans(v.model)?)));
        let variants: Vec<(Digest, &super::Planned)> = variants.collect();
        for &up in speeds {
            let mut then = now.clone();
            if let Some(link) = then.links.get_mut(path.first_link) {
                let ratio = if link.up > 0.0 && link.down > 0.0 { link.down / link.up } else { 1.0 };
                (link.up, link.down) = (up, up * ratio);
            }
            let of = |(model, planned): (Digest, &super::Planned)| {
                let (path, evaluation) = chosen(planned, &then)?;
                let latency_ns = evaluation.cost.latency_ns + path.beyond_ns(model, &evaluation, &then);
                let placement = path.words(&evaluation);
                // A variant stands in only where it is divided.
                let stands = model == entry.model || is_split(&evaluation);
                stands.then_some(Chosen { up_bytes_per_s: up, placement, latency_ns, evaluation })
            };
            let all = std::iter::once((entry.model, planned)).chain(variants.iter().copied());
            answer.chosen.extend(all.filter_map(of).min_by(|a, b| a.latency_ns.total_cmp(&b.latency_ns)));
        }
        Ok(answer)
    }
}

/// The best plan, and the path that it goes.
fn chosen<'p>(planned: &'p super::Planned, conditions: &Conditions) -> Option<(&'p Path, Evaluation)> {
    let timed = (0..planned.count()).filter_map(|plan| Some((planned.predicted(plan, conditions)?, plan)));
    let (_, best) = timed.min()?;
    planned.evaluate(best, conditions)
}

//! Variants of a model that send a learned code (`tierline_graph::bottleneck`):
//! when one runs the requests for the model, and how people are told.
//!
//! A variant is a model like any other, with tables of its own. It stands in
//! only while its plan in force divides it: run by one node it would lose
//! points for nothing. Start at [`Planning::stand_in`].

use std::time::Duration;

use tierline_graph::bottleneck::Bottleneck;
use tierline_node::adapt::{Event, Plans as _};
use tierline_plan::Evaluation;
use tierline_proto::Digest;

use super::tables::is_split;
use super::{Inner, Planning};
use crate::device::memory;
use crate::duties::catalogue::Entry;

/// A variant must be faster by this share to take over: predictions tremble.
const FASTER_BY: f64 = 0.1;

/// What a learned code is, in words:
/// ``learned code of `relu2`: 64.0 times fewer bytes, 0.80 points lost``.
pub(super) fn in_words(bottleneck: &Bottleneck) -> String {
    let lost = bottleneck.points_lost().map_or_else(String::new, |lost| format!(", {lost:.2} points lost"));
    format!("learned code of `{}`: {:.1} times fewer bytes{lost}", bottleneck.of, bottleneck.times())
}

/// A bottleneck that requests go through.
#[derive(Debug, Clone, serde::Serialize)]
pub(super) struct Through {
    /// The variant's name.
    variant: String,
    #[serde(flatten)]
    bottleneck: Bottleneck,
    points_lost: Option<f64>,
}

impl Through {
    pub(super) fn of(entry: &Entry) -> Option<Self> {
        let bottleneck = entry.manifest.bottleneck.clone()?;
        let points_lost = bottleneck.points_lost();
        Some(Self { variant: entry.manifest.name.clone(), bottleneck, points_lost })
    }

    pub(super) fn in_words(&self) -> String {
        format!("bottleneck {}: {}", self.variant, self.bottleneck)
    }
}

impl Inner {
    /// What the plan in force of a model takes, and how it goes.
    fn in_force(&self, model: Digest) -> Option<(Duration, Evaluation)> {
        let (plan, plans) = (self.adapt.current(model)?, self.adapt.plans(model)?);
        let conditions = self.adapt.conditions();
        Some((plans.predicted(plan, conditions)?, plans.evaluate(plan, conditions)?.1))
    }
}

impl Planning {
    /// Variants that may stand for a model here: none where something is
    /// private, which is said of the model's own segments and tensors.
    pub(super) fn variants(&self, entry: &Entry) -> Vec<Entry> {
        let config = self.cx.me.config();
        if config.limits.private_segments > 0 || !config.limits.private_tensors.is_empty() {
            return Vec::new();
        }
        self.catalogue.known.variants(entry, config.bottleneck_loss_max)
    }

    /// The entry that a request for a model runs by its plan: that of a variant
    /// whose plan in force is divided and faster, else the model's own.
    #[must_use]
    pub fn stand_in(&self, entry: Entry) -> Entry {
        let variants = self.variants(&entry);
        if variants.is_empty() {
            return entry;
        }
        let now = self.cx.clock.now();
        let mut inner = self.lock();
        let before = inner.through.get(&entry.model).copied();
        let mut chosen: Option<(Duration, &Entry)> = None;
        // Both are wanted: what isn't in use now is what the link may ask for next.
        let _ = inner.adapt.step(now, Event::Requested { model: entry.model });
        let own = inner.in_force(entry.model).map(|(time, _)| time);
        for variant in &variants {
            let model = variant.model;
            let _ = inner.adapt.step(now, Event::Requested { model });
            let _ = self.memory.get::<()>(&memory::Key::Plans(model));
            if let Some(wanted) = inner.parted.get_mut(&model) {
                *wanted = true;
                self.changed.notify_one();
            }
            let Some((time, _)) = inner.in_force(model).filter(|(_, evaluation)| is_split(evaluation)) else {
                continue;
            };
            let needed = if before == Some(model) { 1.0 } else { 1.0 - FASTER_BY };
            let faster = own.is_some_and(|own| time.as_secs_f64() < needed * own.as_secs_f64());
            if faster && chosen.is_none_or(|(best, _)| time < best) {
                chosen = Some((time, variant));
            }
        }
        let through = chosen.map(|(_, variant)| variant.model);
        if through != before {
            match through {
                Some(variant) => inner.through.insert(entry.model, variant),
                None => inner.through.remove(&entry.model),
            };
            drop(inner);
            let name = &entry.manifest.name;
            let (text, by) = match chosen.and_then(|(_, variant)| Through::of(variant)) {
                Some(through) => (format!("{name} goes through {}", through.in_words()), Some(through)),
                None => (format!("{name} goes through no bottleneck"), None),
            };
            self.cx.events.record("plan", text, &serde_json::json!({ "model": name, "bottleneck": by }));
        }
        let chosen = chosen.map(|(_, variant)| variant.clone());
        chosen.unwrap_or(entry)
    }

    /// The variant that requests for a model go through now, if they do.
    pub(super) fn through(&self, inner: &Inner, entry: &Entry) -> Option<Entry> {
        let variant = *inner.through.get(&entry.model)?;
        self.catalogue.known.by_model(variant)
    }

    /// The entry whose model answered a request for another.
    pub(super) fn answered_by(&self, asked: Entry, model: &[u8]) -> Entry {
        let model = Digest::try_from(model).ok().filter(|model| *model != asked.model);
        let variant = model.and_then(|model| self.catalogue.known.by_model(model)).filter(|variant| {
            let bottleneck = variant.manifest.bottleneck.as_ref();
            bottleneck.is_some_and(|b| b.stands_for == asked.manifest.source_digest)
        });
        variant.unwrap_or(asked)
    }
}

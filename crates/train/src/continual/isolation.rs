//! Weights set apart: each task prunes what it learned, keeps the larger part
//! for itself and leaves the rest to later tasks (PackNet: Mallya and Lazebnik,
//! 2018).
//!
//! What a task has is never changed again, so that it is forgotten by nobody;
//! whoever asks must say which task is meant. Weights of one axis, such as
//! biases, belong to the first task whole.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tierline_graph::Model;
use tierline_graph::constant::{tensor_from_proto, tensor_to_proto};
use tierline_graph::{Elements, step};

use super::settings::within;
use crate::error::TrainError;
use crate::trainer::Flat;

/// How weights are set apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Isolation {
    /// Share of the weights that a task could train that it leaves to later
    /// ones: of each tensor the smallest.
    pub prune: f64,
    /// Epochs for what is left, once the others are gone.
    pub epochs: u64,
}

impl Default for Isolation {
    fn default() -> Self {
        Self { prune: 0.75, epochs: 1 }
    }
}

/// Tasks that can own weights: an owner is a byte, and nobody is one of them.
const OWNERS_MAX: usize = 255;

impl Isolation {
    pub(super) fn check(&self) -> Result<(), TrainError> {
        within("continual.isolation.prune", self.prune, (0.0..1.0).contains(&self.prune), "at least 0 and below 1")?;
        let most = tierline_federate::config::EPOCHS_MAX;
        within("continual.isolation.epochs", self.epochs as f64, self.epochs <= most, "at most 2^32")
    }
}

/// Whose each weight is: the task's place, from 1; 0 where it is nobody's. Of
/// each tensor of two axes or more, flat, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owners(pub BTreeMap<String, Vec<u8>>);

impl Owners {
    /// Nobody's: those of a model's weights that tasks share out.
    ///
    /// # Errors
    /// When the model has none.
    pub(super) fn free(model: &Model, freeze: &[String]) -> Result<Self, TrainError> {
        let weights = step::parameters(model, freeze)?;
        let graph = model.graph();
        let shared = graph
            .initializer
            .iter()
            .filter(|t| t.dims.iter().filter(|&&d| d > 1).count() >= 2 && weights.iter().any(|w| w == t.name()));
        let len = |dims: &[i64]| dims.iter().map(|&d| usize::try_from(d).unwrap_or(0)).product();
        Ok(Self(shared.map(|t| (t.name().to_owned(), vec![0; len(&t.dims)])).collect()))
    }

    /// Tasks that own something.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.0.values().flatten().copied().max().map_or(0, usize::from)
    }

    /// Share of the weights that are nobody's.
    #[must_use]
    pub fn free_share(&self) -> f64 {
        let all: usize = self.0.values().map(Vec::len).sum();
        let free = self.0.values().flatten().filter(|owner| **owner == 0).count();
        free as f64 / all.max(1) as f64
    }

    /// Ones where weights have this owner.
    pub(super) fn mask(&self, owner: u8) -> Flat {
        let one = |of: &Vec<u8>| of.iter().map(|own| f32::from(u8::from(*own == owner))).collect();
        self.0.iter().map(|(name, of)| (name.clone(), one(of))).collect()
    }

    /// Gives a task the largest of the weights that nobody has; the rest stays
    /// free. Of equals the first.
    ///
    /// # Errors
    /// When there can be no further owner, or nothing is left to own.
    pub(super) fn take(&mut self, weights: &Flat, prune: f64) -> Result<u8, TrainError> {
        let owner = self.tasks() + 1;
        let owner = u8::try_from(owner).map_err(|_| {
            TrainError::Continual(format!("isolation has weights of {OWNERS_MAX} tasks, and this is one more"))
        })?;
        let mut taken = 0;
        for (name, of) in &mut self.0 {
            let Some(values) = weights.get(name).filter(|values| values.len() == of.len()) else { continue };
            let mut free: Vec<usize> = (0..of.len()).filter(|&at| of[at] == 0).collect();
            let kept = free.len() - (free.len() as f64 * prune).floor() as usize;
            free.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()).then(a.cmp(&b)));
            free.iter().take(kept).for_each(|&at| of[at] = owner);
            taken += kept;
        }
        if taken == 0 {
            let text = "isolation has no weights left for this task; prune more of each, or take a larger model";
            return Err(TrainError::Continual(text.into()));
        }
        Ok(owner)
    }

    /// The model that a task asks: what it and those before it own; the rest is
    /// zero.
    ///
    /// # Errors
    /// When the result isn't valid.
    pub fn model(&self, model: &Model, task: u8) -> Result<Model, TrainError> {
        let mut proto = model.proto().clone();
        if let Some(graph) = proto.graph.as_mut() {
            for tensor in &mut graph.initializer {
                let Some(of) = self.0.get(tensor.name()) else { continue };
                let mut values = tensor_from_proto(tensor)?;
                let gone = |at: usize| of.get(at).is_some_and(|owner| *owner == 0 || *owner > task);
                match values.elements_mut() {
                    Elements::F32(v) => {
                        v.iter_mut().enumerate().filter(|(at, _)| gone(*at)).for_each(|(_, x)| *x = 0.0)
                    }
                    Elements::F64(v) => {
                        v.iter_mut().enumerate().filter(|(at, _)| gone(*at)).for_each(|(_, x)| *x = 0.0)
                    }
                    _ => {}
                }
                let name = tensor.name().to_owned();
                *tensor = tensor_to_proto(&name, &values);
            }
        }
        Ok(Model::from_proto(proto)?)
    }

    /// Weights that belong to the first task whole: those of one axis.
    pub(super) fn of_first(&self, model: &Model, freeze: &[String]) -> Result<Vec<String>, TrainError> {
        let weights = step::parameters(model, freeze)?;
        Ok(weights.into_iter().filter(|name| !self.0.contains_key(name)).collect())
    }

    /// Bytes of what is kept.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.values().map(|of| of.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners(of: &[u8]) -> Owners {
        Owners([("w".to_owned(), of.to_vec())].into())
    }

    fn weights(values: &[f32]) -> Flat {
        [("w".to_owned(), values.to_vec())].into()
    }

    #[test]
    fn each_task_keeps_the_largest_of_what_is_free() {
        let mut of = owners(&[0; 8]);
        assert_eq!(of.take(&weights(&[1.0, -8.0, 3.0, 0.0, 5.0, -2.0, 7.0, 6.0]), 0.5).unwrap(), 1);
        assert_eq!(of, owners(&[0, 1, 0, 0, 1, 0, 1, 1]));
        assert_eq!(of.take(&weights(&[1.0, 0.0, 3.0, 3.0, 9.0, 0.5, 9.0, 9.0]), 0.5).unwrap(), 2);
        assert_eq!(of, owners(&[0, 1, 2, 2, 1, 0, 1, 1]));
        assert_eq!(of.free_share(), 0.25);
        assert_eq!(of.mask(2)["w"], [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn equals_and_the_last_weight_have_an_owner() {
        let mut of = owners(&[0; 3]);
        of.take(&weights(&[1.0; 3]), 0.9).unwrap();
        assert_eq!(of, owners(&[1, 0, 0]));
        of.take(&weights(&[f32::NAN; 3]), 0.0).unwrap();
        assert_eq!(of, owners(&[1, 2, 2]));
        let refused = of.take(&weights(&[1.0; 3]), 0.0).unwrap_err().to_string();
        assert!(refused.contains("no weights left"), "{refused}");
    }

    #[test]
    fn there_are_as_many_owners_as_a_byte_tells_apart() {
        let mut of = owners(&[255, 0]);
        let refused = of.take(&weights(&[1.0; 2]), 0.5).unwrap_err().to_string();
        assert!(refused.contains("255 tasks"), "{refused}");
    }
}

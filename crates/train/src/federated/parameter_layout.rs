//! What of a model travels, and what stays: between the tensors of a training
//! step and the flat vectors of a federation.

use std::collections::HashSet;

use tierline_federate::strategy::LocalObjective;
use tierline_federate::{Channel, Federation, Layout, Part, Personal, Vectors};
use tierline_graph::onnx::NodeProto;
use tierline_graph::step::{self, Optimizer, Recipe, Role, Schedule, Slot, Spec, Steering, StepError};
use tierline_graph::{Elements, Model, Tensor};

use super::MemberState;
use super::transfer::{Divided, part_recipe};
use crate::error::TrainError;
use crate::job::Job;

/// Of what an end keeps: the weights and statistics of its own.
const OWN: &str = "own";

/// What a job shares of its model, without an engine: enough to put updates
/// together and to write the result.
#[derive(Clone)]
pub struct ParameterLayout {
    model: Model,
    spec: Spec,
    /// The state of a model that has not been trained yet.
    blank: Vec<Tensor>,
    /// For each piece of the state whether it travels, and whether each end
    /// has one of its own; counters and what optimisers remember do neither.
    shared: Vec<bool>,
    own: Vec<bool>,
    /// Whether an end's own model is a second one, besides the shared one.
    second: bool,
    layout: Layout,
    local_objective: LocalObjective,
}

impl ParameterLayout {
    /// Looks at a model, its constants folded for training.
    ///
    /// # Errors
    /// When it can't be trained, or not by a federation.
    ///
    /// Where ends and the cloud each train a part, it is of the cloud's.
    pub fn new(model: Model, job: &Job) -> Result<Self, TrainError> {
        if let Some(settings) = job.federation.as_ref().and_then(|f| f.transfer()) {
            let divided = Divided::new(&model, settings, job)?;
            let step = step::trainable(&divided.rest, &part_recipe(job)?)?;
            let (_, blank) = step.divided()?;
            let mut it = Self::of(divided.rest.clone(), step.spec, blank, job, false)?;
            divided.describe(&mut it.layout);
            return Ok(it);
        }
        let step = step::trainable(&model, &recipe(job)?)?;
        let (_, blank) = step.divided()?;
        Self::of(model, step.spec, blank, job, false)
    }

    /// `apart`: whether nothing of this model travels.
    pub(super) fn of(model: Model, spec: Spec, blank: Vec<Tensor>, job: &Job, apart: bool) -> Result<Self, TrainError> {
        let learned = |slot: &Slot| matches!(slot.role, Role::Parameter | Role::Statistic);
        for (slot, tensor) in spec.state.iter().zip(&blank).filter(|(slot, _)| learned(slot)) {
            if tensor.as_f32().is_none() {
                return Err(TrainError::Precision { name: slot.input.clone(), dtype: tensor.dtype() });
            }
        }
        let personal = job.federation.as_ref().and_then(|f| f.personal.as_ref());
        let teaching = job.federation.as_ref().and_then(|f| f.of_ends().strategy.behaviour().members_distil());
        if teaching.is_none() && !job.models.is_empty() {
            return Err(TrainError::Models);
        }
        let apart = apart || teaching.is_some();
        let stays = match apart.then_some(()) {
            Some(()) => spec.state.iter().map(|slot| &*slot.input).collect(),
            None => stays(&model, &spec, personal)?,
        };
        let shared: Vec<bool> = spec.state.iter().map(|s| learned(s) && !stays.contains(s.input.as_str())).collect();
        if !apart && !shared.contains(&true) {
            return Err(TrainError::Personal("every weight of the model stays with the ends: nothing is shared"));
        }
        let second = matches!(personal, Some(Personal::Ditto { .. }));
        let own = spec.state.iter().zip(&shared).map(|(slot, shared)| learned(slot) && (second || !shared)).collect();
        let parts = |role: Role| {
            let slots =
                spec.state.iter().zip(&blank).zip(&shared).filter(move |((slot, _), s)| **s && slot.role == role);
            slots.map(|((slot, tensor), _)| Part { name: slot.input.clone(), shape: tensor.shape().to_vec() }).collect()
        };
        let logits = match (teaching, spec.classes.map(usize::try_from)) {
            (None, _) => Vec::new(),
            (Some(distil), Some(Ok(classes))) => {
                vec![Part { name: distil.public.clone(), shape: vec![distil.examples, classes] }]
            }
            (Some(_), _) => return Err(TrainError::Public { name: "the job".into(), reason: NO_CLASSES.into() }),
        };
        let (parameters, statistics): (_, Vec<Part>) = (parts(Role::Parameter), parts(Role::Statistic));
        let normalised = step::variances_of_normalisation(&model);
        let variances = statistics.iter().map(|part| part.name.clone()).filter(|name| normalised.contains(name));
        let variances = variances.collect();
        let layout = Layout { parameters, statistics, variances, logits, ..Layout::default() };
        let local_objective = local_objective(job);
        Ok(Self { model, spec, blank, shared, own, second, layout, local_objective })
    }

    /// The model that is trained, its weights as they were at the start.
    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    /// Of its training step.
    pub(super) fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Whether an end has kept something of its own.
    pub(super) fn has_own(&self, kept: &MemberState) -> bool {
        kept.contains_key(OWN)
    }

    /// What is learned and shared.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Classes that the model tells apart; none where it gives numbers.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.spec.classes.and_then(|classes| usize::try_from(classes).ok()).unwrap_or(0)
    }

    /// What members do besides plain training.
    pub(super) fn local_objective(&self) -> LocalObjective {
        self.local_objective
    }

    /// The model as its file or its seed has it: version 0.
    #[must_use]
    pub fn initial(&self) -> Vectors {
        let mut vectors = self.vectors(&self.blank);
        if !self.layout.logits.is_empty() && !self.layout.is_of_examples() {
            // Nobody has said anything yet.
            return Vectors::from([(Channel::Logits, vec![0.0; self.layout.len(Channel::Logits)])]);
        }
        if self.local_objective.control {
            vectors.insert(Channel::Control, vec![0.0; self.layout.len(Channel::Control)]);
        }
        vectors
    }

    /// A model for use. What stays with the ends is in it as it was at the
    /// start.
    ///
    /// # Errors
    /// When the vectors are of another model.
    pub fn export(&self, model: &Vectors) -> Result<Model, TrainError> {
        Ok(self.spec.export(&self.model, &self.state(model)?)?)
    }

    /// A state that begins with this model, and with the untrained one where
    /// nothing is shared.
    pub(super) fn state(&self, model: &Vectors) -> Result<Vec<Tensor>, TrainError> {
        let mut state = self.blank.clone();
        for (channel, role) in ROLES {
            let flat = vector(model, channel);
            let expected = self.layout.len(channel);
            if flat.len() != expected {
                return Err(TrainError::Vector { what: channel.name(), expected, given: flat.len() });
            }
            let slots = self.spec.state.iter().zip(&self.shared).zip(&mut state);
            fill(slots.filter(|((slot, shared), _)| **shared && slot.role == role).map(|(_, tensor)| tensor), flat);
        }
        Ok(state)
    }

    /// A state that begins with an end's own model: this one, but for what the
    /// end keeps.
    pub(super) fn personal(&self, model: &Vectors, kept: &MemberState) -> Result<Vec<Tensor>, TrainError> {
        let mut state = self.state(model)?;
        // Nothing is kept at first.
        if let Some(flat) = kept.get(OWN) {
            fill(self.own.iter().zip(&mut state).filter(|(own, _)| **own).map(|(_, tensor)| tensor), flat);
        }
        Ok(state)
    }

    /// A state from which an end trains what is shared.
    pub(super) fn start(&self, model: &Vectors, kept: &MemberState) -> Result<Vec<Tensor>, TrainError> {
        if self.second { self.state(model) } else { self.personal(model, kept) }
    }

    /// Flat vectors of what a state shares.
    pub(super) fn vectors(&self, state: &[Tensor]) -> Vectors {
        let flat = |role: Role| {
            let slots = self.spec.state.iter().zip(&self.shared).zip(state);
            flat(slots.filter(|((slot, shared), _)| **shared && slot.role == role).map(|(_, tensor)| tensor))
        };
        ROLES.map(|(channel, role)| (channel, flat(role))).into()
    }

    /// Keeps what a state has of an end's own.
    pub(super) fn keep_own(&self, state: &[Tensor], kept: &mut MemberState) {
        if !self.own.contains(&true) {
            return;
        }
        kept.insert(
            OWN.to_owned(),
            flat(self.own.iter().zip(state).filter(|(own, _)| **own).map(|(_, tensor)| tensor)),
        );
    }

    /// All weights of a state, shared or not.
    pub(super) fn weights(&self, state: &[Tensor]) -> Vec<f32> {
        let slots = self.spec.state.iter().zip(state);
        flat(slots.filter(|(slot, _)| slot.role == Role::Parameter).map(|(_, tensor)| tensor))
    }

    /// Adds a vector of shared weights to one of all weights.
    pub(super) fn add_shared(&self, all: &mut [f32], shared: &[f32], factor: f32) {
        let (mut all, mut shared) = (all.iter_mut(), shared.iter());
        let weights = self.spec.state.iter().zip(&self.shared).zip(&self.blank);
        for ((_, travels), tensor) in weights.filter(|((slot, _), _)| slot.role == Role::Parameter) {
            let own = all.by_ref().take(tensor.len());
            if *travels {
                own.zip(shared.by_ref()).for_each(|(x, y)| *x += factor * y);
            } else {
                own.for_each(drop);
            }
        }
    }
}

/// Why models of numbers can't teach each other.
pub(super) const NO_CLASSES: &str =
    "what travels is what models say of classes; train with a cross-entropy loss on classes";

/// What travels of a state, by the vector it is in.
const ROLES: [(Channel, Role); 2] = [(Channel::Model, Role::Parameter), (Channel::Statistics, Role::Statistic)];

/// Names of the weights and statistics that stay with each end.
fn stays<'s>(model: &Model, spec: &'s Spec, personal: Option<&Personal>) -> Result<HashSet<&'s str>, TrainError> {
    let names = || spec.state.iter().filter(|s| matches!(s.role, Role::Parameter | Role::Statistic)).map(|s| &*s.input);
    match personal {
        Some(Personal::FedPer { keep }) => {
            if let Some(pattern) = keep.iter().find(|p| !names().any(|name| step::matches(p, name))) {
                let examples = names().take(5).map(|n| format!("`{n}`")).collect();
                let pattern = pattern.clone();
                return Err(StepError::Freeze { pattern, count: names().count(), examples }.into());
            }
            Ok(names().filter(|name| keep.iter().any(|p| step::matches(p, name))).collect())
        }
        Some(Personal::FedBn {}) => {
            let learned = step::learned_by_normalisation(model);
            let stays: HashSet<&str> = names().filter(|name| learned.contains(*name)).collect();
            if let Some((weight, layer)) = read_elsewhere(&model.graph().node, &stays) {
                return Err(TrainError::Tied { weight, layer });
            }
            match stays.is_empty() {
                true => Err(TrainError::Personal(
                    "fedbn keeps batch normalisations with the ends, and the model has none that are trained; try fedper \
                     or ditto",
                )),
                false => Ok(stays),
            }
        }
        _ => Ok(HashSet::new()),
    }
}

/// A weight of batch normalisations that another operator reads as well, and
/// what that one gives: it would have to stay with the ends and be shared.
fn read_elsewhere(nodes: &[NodeProto], weights: &HashSet<&str>) -> Option<(String, String)> {
    nodes.iter().find_map(|node| {
        let normalises = node.op_type() == "BatchNormalization" && node.domain().is_empty();
        let read = node
            .input
            .iter()
            .enumerate()
            .find(|(at, name)| weights.contains(name.as_str()) && !(normalises && *at > 0));
        let here = read.map(|(_, name)| (name.clone(), node.output.first().cloned().unwrap_or_default()));
        let bodies = node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs));
        here.or_else(|| bodies.into_iter().find_map(|body| read_elsewhere(&body.node, weights)))
    })
}

/// What ends do besides plain training.
fn local_objective(job: &Job) -> LocalObjective {
    job.federation.as_ref().map_or_else(LocalObjective::default, |f| f.of_ends().strategy.behaviour().local_objective())
}

/// What members' step graphs are made by.
pub(super) fn recipe(job: &Job) -> Result<Recipe, TrainError> {
    job.federation.as_ref().map_or(Ok(()), Federation::check)?;
    let local_objective = local_objective(job);
    // A control variate is the mean gradient: what a member moved by, over its
    // steps. Adaptive steps and bounds make that another number.
    if local_objective.control && !matches!(job.optimizer, Optimizer::Sgd { .. }) {
        return Err(TrainError::Control("optimizer adam or adamw scales every step; take sgd"));
    }
    if local_objective.control && job.clip.is_some() {
        return Err(TrainError::Control("clip shortens some of the steps; leave it out"));
    }
    let ditto = matches!(job.federation.as_ref().and_then(|f| f.personal.as_ref()), Some(Personal::Ditto { .. }));
    let pulled = local_objective.pull != 0.0 || ditto;
    let continual = job.continual.as_ref();
    let traced = continual.is_some_and(|settings| settings.si.is_some());
    let anchored = traced || continual.is_some_and(|settings| settings.ewc.is_some());
    if continual.is_some() && local_objective.control {
        return Err(TrainError::Continual("scaffold corrects what penalties add; take another strategy".into()));
    }
    let corrected = pulled || local_objective.control;
    let steering = Steering { pulled, corrected, anchored, masked: false, traced };
    // The rate of a round comes from outside: each task begins at step 0.
    Ok(Recipe { schedule: Schedule::constant(1.0), steering: Some(steering), ..job.recipe(1) })
}

pub(super) fn vector(vectors: &Vectors, channel: Channel) -> &[f32] {
    vectors.get(&channel).map_or(&[], Vec::as_slice)
}

fn flat<'t>(tensors: impl Iterator<Item = &'t Tensor>) -> Vec<f32> {
    tensors.flat_map(|tensor| tensor.as_f32().unwrap_or_default()).copied().collect()
}

/// Cuts a flat vector into tensors.
fn fill<'t>(tensors: impl Iterator<Item = &'t mut Tensor>, flat: &[f32]) {
    let mut rest = flat;
    for tensor in tensors {
        let Some((own, behind)) = rest.split_at_checked(tensor.len()) else { return };
        if let Elements::F32(values) = tensor.elements_mut() {
            values.copy_from_slice(own);
        }
        rest = behind;
    }
}

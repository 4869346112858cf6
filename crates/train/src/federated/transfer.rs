//! A network that ends and the cloud train in parts (FedGKT): which part is
//! whose, and what each does in a round.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use fastrand::Rng;
use tierline_engine::{Engine, LoadOptions, Stop};
use tierline_federate::strategy::FedGkt;
use tierline_federate::{Channel, Contribution, Layout, Part, Vectors};
use tierline_graph::constant::tensor_to_proto;
use tierline_graph::emit::{Attribute, Emitter};
use tierline_graph::infer::infer_types;
use tierline_graph::onnx::NodeProto;
use tierline_graph::slice::{slice, value_info_proto};
use tierline_graph::step::{self, Loss, Recipe, Spec};
use tierline_graph::{DataType, Dim, Elements, Model, Tensor, ValueInfo};

use super::knowledge::moved;
use super::local_trainer::{Learned, epochs_of, rate};
use super::parameter_layout::{ParameterLayout, recipe, vector};
use crate::data::{BatchOptions, Dataset, Targets, seed_of};
use crate::error::TrainError;
use crate::job::Job;
use crate::trainer::Trainer;

/// Keeps the weights of heads, and the order of features, apart from others.
const HEAD: u64 = 0x6865_6164;
const SERVER: u64 = 0x7365_7276;

/// A model, divided at its features.
pub(super) struct Divided {
    /// The first part, with a small head behind it.
    pub(super) small: Model,
    /// The rest, which takes features.
    pub(super) rest: Model,
    /// Axes of one example's features.
    features: Vec<usize>,
    classes: usize,
}

impl Divided {
    /// Divides a model, its constants folded for training.
    ///
    /// # Errors
    /// When there is no such tensor, more crosses there than that, or what is
    /// there has no known shape.
    pub(super) fn new(model: &Model, settings: &FedGkt, job: &Job) -> Result<Self, TrainError> {
        let refuse = |reason: String| TrainError::Transfer { features: settings.features.clone(), reason };
        let types = infer_types(model)?;
        let parts = slice(model, &types, &[vec![settings.features.clone()]]).map_err(|e| refuse(e.to_string()))?;
        let [first, rest] = <[Model; 2]>::try_from(parts).map_err(|_| refuse("it divides nothing".into()))?;
        if !step::parameters(&rest, &[]).is_ok_and(|weights| !weights.is_empty()) {
            return Err(refuse("nothing is left to train behind it".into()));
        }
        if let Some(weight) = learned_on_both_sides(model, &first, &rest, job)? {
            return Err(refuse(format!(
                "`{weight}` is read on both sides of it, and each side would train a copy of its own: divide the model \
                 where one side reads all that is shared, or freeze it"
            )));
        }
        let info = types.get(&settings.features);
        let shape =
            info.and_then(|info| info.shape.as_ref()).filter(|_| info.is_some_and(|i| i.dtype == Some(DataType::F32)));
        let known = |dim: &Dim| dim.known().and_then(|n| usize::try_from(n).ok());
        let axes = shape.filter(|s| s.len() >= 2).and_then(|s| s[1..].iter().map(known).collect::<Option<Vec<_>>>());
        let features = axes.ok_or_else(|| {
            refuse("it has to be f32 of [batch, ..] with known axes; export the model with fixed sizes".into())
        })?;
        let outputs = rest.graph().output.first().map(|o| o.name().to_owned());
        let logits = outputs.and_then(|name| types.get(&name).and_then(|t| t.shape.clone()));
        let classes = logits.filter(|s| s.len() == 2).and_then(|s| known(&s[1]));
        let classes = classes.ok_or_else(|| refuse("the model's output has to be [batch, classes]".into()))?;
        let known = model.graph().initializer.iter().map(|t| t.name());
        let taken: Vec<&str> = types.iter().map(|t| t.name.as_str()).chain(known).collect();
        let small = with_head(&first, &taken, &settings.features, &features, classes, job.seed)?;
        Ok(Self { small, rest, features, classes })
    }

    /// What ends and the cloud send each other, but for the number of examples.
    pub(super) fn describe(&self, layout: &mut Layout) {
        let part = |name: &str, axes: &[usize]| vec![Part { name: name.to_owned(), shape: [&[0], axes].concat() }];
        layout.logits = part("logits", &[self.classes]);
        layout.features = part("features", &self.features);
        layout.labels = part("labels", &[]);
    }
}

/// A weight or a running statistic of both parts that is trained: the first by
/// name. What is frozen stays the same on both sides.
fn learned_on_both_sides(model: &Model, first: &Model, rest: &Model, job: &Job) -> Result<Option<String>, TrainError> {
    let trained: HashSet<String> = step::parameters(model, &job.freeze)?.into_iter().collect();
    let layers = model.graph().node.iter().filter(|n| n.op_type() == "BatchNormalization" && n.domain().is_empty());
    let follows = |layer: &&NodeProto| layer.input.iter().skip(1).take(2).any(|name| trained.contains(name));
    let statistics: HashSet<&String> = layers.filter(follows).flat_map(|layer| layer.input.iter().skip(3)).collect();
    let of_first: HashSet<&str> = first.graph().initializer.iter().map(|t| t.name()).collect();
    let mut shared: Vec<&str> = rest.graph().initializer.iter().map(|t| t.name()).collect();
    shared.retain(|name| of_first.contains(name));
    shared.retain(|name| trained.contains(*name) || statistics.iter().any(|statistic| *statistic == name));
    Ok(shared.into_iter().min().map(str::to_owned))
}

/// A network with a head behind its features: their mean over space, and one
/// linear layer. Its names are none of those `taken`: the whole model is put
/// together again by name.
fn with_head(
    first: &Model,
    taken: &[&str],
    features: &str,
    axes: &[usize],
    classes: usize,
    seed: u64,
) -> Result<Model, TrainError> {
    let types = infer_types(first)?;
    let mut out = Emitter::new(types.iter().map(|t| t.name.as_str()).chain(taken.iter().copied()));
    let pooled = match axes.len() {
        1 => features.to_owned(),
        2 => out.op("Flatten", &[features], &[("axis", Attribute::Int(1))]),
        _ => {
            let mean = out.op("GlobalAveragePool", &[features], &[]);
            out.op("Flatten", &[&mean], &[("axis", Attribute::Int(1))])
        }
    };
    let width: usize = if axes.len() == 2 { axes.iter().product() } else { axes[0] };
    let (weight, bias, logits) = (out.name("head.weight"), out.name("head.bias"), out.name("head.logits"));
    out.named("Gemm", &[&pooled, &weight, &bias], &[&logits], &[("transB", Attribute::Int(1))]);
    let mut rng = Rng::with_seed(seed_of(&[seed, HEAD]));
    let bound = 1.0 / (width.max(1) as f64).sqrt();
    let mut draw = |name: &str, shape: &[usize]| -> Result<_, TrainError> {
        let count = shape.iter().product();
        let values = (0..count).map(|_| ((2.0 * rng.f64() - 1.0) * bound) as f32).collect();
        Ok(tensor_to_proto(name, &Tensor::new(shape.to_vec(), Elements::F32(values))?))
    };
    let weights = [draw(&weight, &[classes, width])?, draw(&bias, &[classes])?];
    let (nodes, constants) = out.finish();
    let mut proto = first.proto().clone();
    if let Some(graph) = proto.graph.as_mut() {
        graph.node.extend(nodes);
        graph.initializer.extend(constants.into_iter().chain(weights));
        let batch = types.get(features).and_then(|info| info.shape.clone()).and_then(|shape| shape.first().cloned());
        let shape = vec![batch.unwrap_or(Dim::Unknown), Dim::Known(classes as u64)];
        graph.output =
            vec![value_info_proto(&ValueInfo { name: logits, dtype: Some(DataType::F32), shape: Some(shape) })];
    }
    Ok(Model::from_proto(proto)?)
}

/// A trainer that learns classes and what the other side says.
fn taught(
    engine: &Arc<dyn Engine>,
    model: Model,
    settings: &FedGkt,
    job: &Job,
    options: &LoadOptions,
) -> Result<Trainer, TrainError> {
    let loss = Loss::Distil { temperature: settings.temperature, weight: settings.weight };
    Trainer::new(engine, model, &Recipe { loss, ..part_recipe(job)? }, options)
}

/// How a part is trained: its output is not the whole model's.
pub(super) fn part_recipe(job: &Job) -> Result<Recipe, TrainError> {
    Ok(Recipe { output: None, ..recipe(job)? })
}

/// Classes, and what the other side says of each example, as
/// [`Loss::Distil`] takes them.
fn lesson(name: &str, features: Tensor, classes: &[f32], logits: &[f32]) -> Result<Dataset, TrainError> {
    let width = logits.len() / classes.len().max(1);
    let rows = classes.iter().zip(logits.chunks(width.max(1)));
    let values = rows.flat_map(|(class, said)| std::iter::once(*class).chain(said.iter().copied())).collect();
    let values = Tensor::new([classes.len(), 1 + width], Elements::F32(values))?;
    Ok(Dataset::new(name, features, Targets::Values(values))?)
}

/// The state of an optimiser that remembers nothing, with the weights of
/// another step of the same model.
struct Pupil {
    trainer: Trainer,
    blank: Vec<Tensor>,
}

impl Pupil {
    fn new(trainer: Trainer) -> Result<Self, TrainError> {
        Ok(Self { blank: trainer.state()?, trainer })
    }

    fn take(&mut self, spec: &Spec, state: &[Tensor]) -> Result<(), TrainError> {
        let state = moved(spec, state, self.trainer.spec(), self.blank.clone());
        self.trainer.set_state(&state)
    }

    fn give(&self, spec: &Spec, state: Vec<Tensor>) -> Result<Vec<Tensor>, TrainError> {
        Ok(moved(self.trainer.spec(), &self.trainer.state()?, spec, state))
    }
}

/// An end's side: what it has besides its small network.
pub(super) struct Small {
    pupil: Pupil,
    /// The cloud's part.
    pub(super) server: ParameterLayout,
    /// The model as it will be used.
    whole: Model,
    settings: FedGkt,
    engine: Arc<dyn Engine>,
    options: LoadOptions,
}

impl Small {
    /// With the small network's training step.
    pub(super) fn new(
        engine: &Arc<dyn Engine>,
        whole: Model,
        small: Model,
        job: &Job,
        settings: &FedGkt,
        options: &LoadOptions,
    ) -> Result<Self, TrainError> {
        let pupil = Pupil::new(taught(engine, small, settings, job, options)?)?;
        let server = ParameterLayout::new(whole.clone(), job)?;
        let (settings, engine, options) = (settings.clone(), Arc::clone(engine), options.clone());
        Ok(Self { pupil, server, whole, settings, engine, options })
    }

    /// Learns classes and what the cloud's part says of the same examples;
    /// `None` where it has said nothing of them, or `stop` was set.
    pub(super) fn learn(
        &mut self,
        spec: &Spec,
        state: &[Tensor],
        data: &Dataset,
        said: &[f32],
        (options, epochs, pace): (&BatchOptions, u64, f64),
        stop: &Stop,
    ) -> Result<Option<(Vec<Tensor>, Learned)>, TrainError> {
        let rows: Vec<usize> = (0..data.len()).collect();
        let lesson = lesson(data.name(), data.features(&rows)?, &labels(data)?, said)?;
        self.pupil.take(spec, state)?;
        self.pupil.trainer.set_pace(pace);
        let Some(learned) = epochs_of(&mut self.pupil.trainer, &lesson, options, epochs, stop)? else {
            return Ok(None);
        };
        Ok(Some((self.pupil.give(spec, state.to_vec())?, learned)))
    }

    /// What the end sends of its examples.
    pub(super) fn vectors(
        &self,
        trainer: &Trainer,
        data: &Dataset,
        options: &BatchOptions,
    ) -> Result<Vectors, TrainError> {
        let features = trainer.values_of(&self.settings.features, data, options)?;
        let logits = trainer.answers(data, options)?;
        Ok(Vectors::from([(Channel::Features, features), (Channel::Logits, logits), (Channel::Labels, labels(data)?)]))
    }

    /// Whether so many numbers are said of these examples.
    pub(super) fn says_of(&self, data: &Dataset, said: &[f32]) -> bool {
        let classes = self.server.layout().logits.first().and_then(|part| part.shape.get(1));
        classes.is_some_and(|classes| !said.is_empty() && said.len() == data.len() * classes)
    }

    /// The whole network as the end uses it: its own first part, and the
    /// cloud's rest.
    pub(super) fn whole(&self, spec: &Spec, own: &[Tensor], rest: &Vectors, job: &Job) -> Result<Trainer, TrainError> {
        let mut trainer = Trainer::new(&self.engine, self.whole.clone(), &recipe(job)?, &self.options)?;
        let state = moved(self.server.spec(), &self.server.state(rest)?, trainer.spec(), trainer.state()?);
        let state = moved(spec, own, trainer.spec(), state);
        trainer.set_state(&state)?;
        Ok(trainer)
    }
}

fn labels(data: &Dataset) -> Result<Vec<f32>, TrainError> {
    let classes = data.classes().ok_or_else(|| TrainError::Public {
        name: data.name().to_owned(),
        reason: super::parameter_layout::NO_CLASSES.to_owned(),
    })?;
    Ok(classes.into_iter().map(|class| class as f32).collect())
}

/// The cloud's side: trains its part on what ends send, and says what it makes
/// of their examples.
pub(super) struct Server {
    parameter_layout: ParameterLayout,
    pupil: Pupil,
    settings: FedGkt,
    job: Job,
    /// Of the round under way, by member: the order of arrival is nobody's
    /// business.
    heard: BTreeMap<String, Contribution>,
    /// What it says of the examples of those heard last.
    pub(super) said: BTreeMap<String, Vectors>,
}

impl Server {
    pub(super) fn new(
        engine: &Arc<dyn Engine>,
        parameter_layout: &ParameterLayout,
        job: &Job,
        settings: &FedGkt,
        options: &LoadOptions,
    ) -> Result<Self, TrainError> {
        let pupil = Pupil::new(taught(engine, parameter_layout.model().clone(), settings, job, options)?)?;
        let (parameter_layout, settings, job) = (parameter_layout.clone(), settings.clone(), job.clone());
        Ok(Self { parameter_layout, pupil, settings, job, heard: BTreeMap::new(), said: BTreeMap::new() })
    }

    pub(super) fn hear(&mut self, member: &str, contribution: &Contribution) {
        self.heard.insert(member.to_owned(), contribution.clone());
    }

    /// The cloud's part, once it has learned what it has heard.
    pub(super) fn teach(&mut self, model: &Vectors, round: u64) -> Result<Vectors, TrainError> {
        let heard = std::mem::take(&mut self.heard);
        let state = self.parameter_layout.state(model)?;
        if heard.is_empty() {
            return Ok(model.clone());
        }
        let all = |channel: Channel| -> Vec<f32> {
            heard.values().flat_map(|c| vector(&c.vectors, channel)).copied().collect()
        };
        let (labels, logits) = (all(Channel::Labels), all(Channel::Logits));
        let data = lesson("features", self.features(all(Channel::Features), labels.len())?, &labels, &logits)?;
        self.pupil.take(self.parameter_layout.spec(), &state)?;
        self.pupil.trainer.set_pace(rate(&self.job, round));
        let options = BatchOptions { size: self.job.batch.size, ..BatchOptions::default() };
        let seed = seed_of(&[self.job.seed, round, SERVER]);
        let (learning, never) = (BatchOptions { seed, ..options.clone() }, Stop::asked());
        epochs_of(&mut self.pupil.trainer, &data, &learning, self.settings.epochs, &never)?;
        self.said.clear();
        for (member, contribution) in &heard {
            let labels = vector(&contribution.vectors, Channel::Labels);
            let features = self.features(vector(&contribution.vectors, Channel::Features).to_vec(), labels.len())?;
            let data = lesson("features", features, labels, vector(&contribution.vectors, Channel::Logits))?;
            let said = self.pupil.trainer.answers(&data, &options)?;
            self.said.insert(member.clone(), Vectors::from([(Channel::Logits, said)]));
        }
        let mut taught = model.clone();
        taught.extend(self.parameter_layout.vectors(&self.pupil.give(self.parameter_layout.spec(), state)?));
        Ok(taught)
    }

    fn features(&self, flat: Vec<f32>, examples: usize) -> Result<Tensor, TrainError> {
        let axes = self.parameter_layout.layout().features.first().map_or(&[][..], |part| &part.shape[1..]);
        Ok(Tensor::new([&[examples], axes].concat(), Elements::F32(flat))?)
    }

    pub(super) fn conclude(&self, last: &Vectors) -> Result<Model, TrainError> {
        self.parameter_layout.export(last)
    }
}

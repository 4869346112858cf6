//! The model as it is deployed, and its loss on a batch.

use std::collections::{HashMap, HashSet};

use super::loss::About;
use super::{Loss, Recipe, Role, Spec, StepError, logits, loss, normalise};
use crate::constant::tensor_from_proto;
use crate::emit::{Emitter, node};
use crate::error::LoadError;
use crate::infer::infer_types;
use crate::model::Model;
use crate::slice::value_info_proto;
use crate::types::{Dim, ValueInfo};

/// A graph that gives a model's loss on a batch, weights and running
/// statistics given with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// The graph. Outputs: the loss, averaged over the batch, and where
    /// targets are classes the number of examples that were right, and the
    /// number of those that count.
    pub model: Model,
    /// Of the state's slots, the positions that are inputs here, under the
    /// same names.
    pub weights: Vec<usize>,
}

/// The evaluation that goes with a training step of `model`.
///
/// # Errors
/// As [`super::trainable`].
pub fn evaluation(model: &Model, recipe: &Recipe, spec: &Spec) -> Result<Evaluation, StepError> {
    let model = crate::upgrade::upgraded(&deployed(model)?)?;
    let (model, logits) = logits::found(&model, &recipe.loss, &spec.predicts)?;
    let (model, attached) =
        loss::attach(&model, &recipe.loss, &[About { output: &spec.predicts, logits: &logits, weight: 1.0 }])?;
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let kept = [Some(&attached.loss), attached.correct.as_ref(), attached.counted.as_ref()];
    graph.output.retain(|o| kept.iter().flatten().any(|name| name.as_str() == o.name()));
    let mut weights = Vec::new();
    for (position, slot) in spec.state.iter().enumerate() {
        if !matches!(slot.role, Role::Parameter | Role::Statistic) {
            continue;
        }
        let Some(at) = graph.initializer.iter().position(|t| t.name() == slot.input) else { continue };
        let tensor = tensor_from_proto(&graph.initializer.remove(at))?;
        let shape = tensor.shape().iter().map(|&d| Dim::Known(d as u64)).collect();
        let info = ValueInfo { name: slot.input.clone(), dtype: Some(tensor.dtype()), shape: Some(shape) };
        graph.input.push(value_info_proto(&info));
        weights.push(position);
    }
    Ok(Evaluation { model: super::tidy(Model::from_proto(proto)?)?, weights })
}

/// The model for use, with the logits of `output` as its only output, as the
/// loss has them: of a model that ends in probabilities, what those are made
/// of.
///
/// # Errors
/// When the output holds probabilities and no logits can be found.
pub fn answering(model: &Model, loss: &Loss, output: &str) -> Result<Model, StepError> {
    let model = crate::upgrade::upgraded(&deployed(model)?)?;
    let (model, logits) = logits::found(&model, loss, output)?;
    let types = infer_types(&model)?;
    let info = types.get(&logits).cloned();
    let info = info.unwrap_or(ValueInfo { name: logits, dtype: None, shape: None });
    let mut proto = model.proto().clone();
    proto.graph.mut_or_insert_default().output = vec![value_info_proto(&info)];
    super::tidy(Model::from_proto(proto)?).map_err(StepError::from)
}

/// A step, its defaults taken out, that gives what is computed on the way: of
/// the forward pass every floating-point tensor, then every gradient. Also
/// what to call each of them.
///
/// # Errors
/// When the result isn't valid.
pub fn probe(step: &Model, model: &Model, spec: &Spec) -> Result<(Model, Vec<String>), StepError> {
    let types = infer_types(step)?;
    let own: HashSet<&str> = model.graph().node.iter().flat_map(|n| n.output.iter().map(String::as_str)).collect();
    let gradients: HashMap<&str, &str> =
        spec.state.iter().filter_map(|s| Some((s.gradient.as_deref()?, s.input.as_str()))).collect();
    let mut proto = step.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let (mut outputs, mut names) = (Vec::new(), Vec::new());
    for made in graph.node.iter().flat_map(|n| &n.output).filter(|n| !n.is_empty()) {
        let info = types.get(made).cloned();
        let info = info.unwrap_or(ValueInfo { name: made.clone(), dtype: None, shape: None });
        let name = match gradients.get(made.as_str()) {
            Some(weight) => format!("the gradient of `{weight}`"),
            None if own.contains(made.as_str()) && info.dtype.is_some_and(|d| d.is_float()) => format!("`{made}`"),
            None => continue,
        };
        let dtype = info.dtype.or(Some(crate::DataType::F32));
        outputs.push(value_info_proto(&ValueInfo { dtype, ..info }));
        names.push(name);
    }
    graph.output = outputs;
    Ok((Model::from_proto(proto)?, names))
}

/// The model for use: dropout passes everything on, and batch normalisation
/// takes its running statistics.
///
/// # Errors
/// When the result isn't valid.
pub fn deployed(model: &Model) -> Result<Model, LoadError> {
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let read: HashSet<String> = graph
        .node
        .iter()
        .flat_map(|n| n.input.iter().cloned())
        .chain(graph.output.iter().map(|o| o.name().to_owned()))
        .collect();
    let taken = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
    let mut out = Emitter::new(taken.chain(graph.initializer.iter().map(|t| t.name())));
    let mut nodes = Vec::with_capacity(graph.node.len());
    for mut own in std::mem::take(&mut graph.node) {
        match own.op_type() {
            "Dropout" if own.domain().is_empty() => {
                if own.output.get(1).is_none_or(|mask| !read.contains(mask)) {
                    own = node("Identity", &[&own.input[0]], &[&own.output[0]], &[]);
                } else {
                    // Without its third input it is as in use.
                    own.input.truncate(2);
                }
            }
            _ => normalise::as_used(&mut own, &mut out),
        }
        nodes.push(own);
        nodes.extend(out.take());
    }
    graph.node = nodes;
    Model::from_proto(proto)
}

//! The model as it is deployed, and its loss on a batch.

use std::collections::{HashMap, HashSet};

use super::{Recipe, Role, Spec, StepError, loss};
use crate::constant::tensor_from_proto;
use crate::emit::{Attribute, attribute, node};
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
    /// targets are classes the number of examples that were right.
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
    let (model, attached) = loss::attach(&model, &recipe.loss, &spec.predicts)?;
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let kept = [Some(&attached.loss), attached.correct.as_ref()];
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
    let mut model = Model::from_proto(proto)?;
    crate::fold::drop_unused(&mut model).map_err(|e| LoadError::Encode { reason: e.to_string() })?;
    Ok(Evaluation { model, weights })
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
    for own in graph.node.iter_mut().filter(|n| n.domain().is_empty()) {
        match own.op_type() {
            "Dropout" if own.output.get(1).is_none_or(|mask| !read.contains(mask)) => {
                *own = node("Identity", &[&own.input[0]], &[&own.output[0]], &[]);
            }
            "BatchNormalization" if crate::attributes::Attributes::of(own).flag("training_mode") => {
                own.attribute.retain(|a| a.name() != "training_mode");
                own.attribute.push(attribute("training_mode", &Attribute::Int(0)));
                own.output.truncate(1);
            }
            _ => {}
        }
    }
    Model::from_proto(proto)
}

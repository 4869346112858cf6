//! Batch normalisation in training: the batch's own statistics, and running
//! ones that follow them.

use std::collections::{HashMap, HashSet};

use super::optimizer::Update;
use super::{Role, StepError};
use crate::emit::{Attribute, Emitter, attribute};
use crate::infer::Types;
use crate::model::Model;
use crate::onnx::NodeProto;
use crate::tensor::DataType;

/// A layer's running statistics and the batch's.
struct Layer {
    /// Names of the running mean and variance.
    running: [String; 2],
    /// Names of the batch's mean and variance.
    batch: [String; 2],
    /// The layer's input, for the size of the batch.
    input: String,
    /// How much of the old statistics is kept.
    momentum: f64,
}

/// Running statistics of the layers in training.
pub(super) struct Statistics(Vec<Layer>);

/// Names of what batch normalisations learn: scales, biases and running
/// statistics.
#[must_use]
pub fn learned_by_normalisation(model: &Model) -> HashSet<String> {
    let nodes = model.graph().node.iter();
    let layers = nodes.filter(|n| n.op_type() == "BatchNormalization" && n.domain().is_empty());
    layers.flat_map(|n| n.input.iter().skip(1).cloned()).collect()
}

/// Names of batch normalisations' running variances.
#[must_use]
pub fn variances_of_normalisation(model: &Model) -> HashSet<String> {
    let nodes = model.graph().node.iter();
    let layers = nodes.filter(|n| n.op_type() == "BatchNormalization" && n.domain().is_empty());
    layers.filter_map(|n| n.input.get(4).cloned()).collect()
}

/// The model with every BatchNormalization whose scale or bias is trained in
/// training mode.
pub(super) fn in_training(model: &Model, parameters: &[String]) -> Result<(Model, Statistics), StepError> {
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let constants: HashMap<String, i32> =
        graph.initializer.iter().map(|t| (t.name().to_owned(), t.data_type())).collect();
    let values = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
    let mut names = Emitter::new(values.chain(constants.keys().map(String::as_str)));
    let mut layers: Vec<Layer> = Vec::new();
    for node in graph.node.iter_mut().filter(|n| n.op_type() == "BatchNormalization" && n.domain().is_empty()) {
        let trained = node.input[1..3].iter().any(|name| parameters.contains(name));
        let running = [node.input[3].clone(), node.input[4].clone()];
        // Computed statistics are the graph's own affair, and two layers can't
        // lead the same ones in two directions.
        let own = running.iter().all(|name| constants.contains_key(name));
        let shared = layers.iter().any(|l| l.running.iter().any(|name| running.contains(name)));
        if !trained || !own || shared {
            continue;
        }
        let momentum = node.attribute.iter().find(|a| a.name() == "momentum").map_or(0.9, |a| f64::from(a.f()));
        let batch = ["mean", "variance"].map(|what| names.name(&format!("{}.{what}", node.output[0])));
        layers.push(Layer { running, batch: batch.clone(), input: node.input[0].clone(), momentum });
        set(node, "training_mode", Attribute::Int(1));
        // With nothing kept, the outputs are the batch's statistics, which the
        // gradient needs as they are.
        set(node, "momentum", Attribute::Float(0.0));
        node.output.truncate(1);
        node.output.extend(batch);
    }
    Ok((Model::from_proto(proto)?, Statistics(layers)))
}

fn set(node: &mut NodeProto, name: &str, value: Attribute) {
    node.attribute.retain(|a| a.name() != name);
    node.attribute.push(attribute(name, &value));
}

impl Statistics {
    /// Writes the next running statistics. As in PyTorch the variance is the
    /// unbiased estimate, though the layer normalises by the biased one.
    pub(super) fn updates(self, out: &mut Emitter, dtype: DataType, types: &Types) -> Vec<Update> {
        let mut updates = Vec::new();
        for layer in self.0 {
            let dtype = types.get(&layer.running[0]).and_then(|t| t.dtype).unwrap_or(dtype);
            let to = [("to", Attribute::Int(i64::from(dtype.to_onnx())))];
            let (all, channels) = (out.op("Size", &[&layer.input], &[]), out.op("Size", &[&layer.batch[0]], &[]));
            let count = out.op("Div", &[&all, &channels], &[]);
            let count = out.op("Cast", &[&count], &to);
            let one = out.scalar(dtype, 1.0);
            let less = out.op("Sub", &[&count, &one], &[]);
            // A single value has no spread to estimate.
            let less = out.op("Max", &[&less, &one], &[]);
            let unbias = out.op("Div", &[&count, &less], &[]);
            let variance = out.op("Mul", &[&layer.batch[1], &unbias], &[]);
            for (running, batch) in layer.running.into_iter().zip([layer.batch[0].clone(), variance]) {
                let keep = out.scalar(dtype, layer.momentum);
                let take = out.scalar(dtype, 1.0 - layer.momentum);
                let old = out.op("Mul", &[&running, &keep], &[]);
                let new = out.op("Mul", &[&batch, &take], &[]);
                let value = out.op("Add", &[&old, &new], &[]);
                updates.push(Update { input: running, value, role: Role::Statistic, initial: None });
            }
        }
        updates
    }
}

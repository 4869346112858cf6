//! Batch normalisation in training: the batch's own statistics, and running
//! ones that follow them.
//!
//! A layer is put into training mode ([`in_training`]) so that its gradient
//! knows it by, and is written out at last ([`written_out`]): its statistics
//! are computed by nodes of their own, and the layer takes those. ONNX
//! Runtime's BatchNormalization in training mode writes its second and third
//! outputs over its fourth and fifth inputs, whoever else reads those.

use std::collections::{HashMap, HashSet};

use super::optimizer::Update;
use super::{Role, StepError, parameters};
use crate::attributes::Attributes;
use crate::emit::{Attribute, Emitter, attribute, node};
use crate::index::Index;
use crate::infer::{Types, infer_types};
use crate::kernels::Kernels;
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

/// Running statistics of the layers in training, in the order in which the
/// layers are computed.
pub(super) struct Statistics(Vec<Layer>);

/// Names of what batch normalisations learn: scales, biases and running
/// statistics, and what these are computed of.
#[must_use]
pub fn learned_by_normalisation(model: &Model) -> HashSet<String> {
    let index = Index::new(model);
    let layers = index.graph.node.iter().filter(|n| is_layer(n));
    let takes: Vec<&str> = layers.flat_map(|n| n.input.iter().skip(1)).map(String::as_str).collect();
    // What an input of the model takes part in is another layer's.
    let constant: Vec<&str> = takes.iter().copied().filter(|name| !index.is_dynamic(name)).collect();
    let parts = index.needed_for(&constant, &HashSet::new()).into_iter().flat_map(|n| index.reads[n].iter().copied());
    takes.iter().copied().chain(parts).map(str::to_owned).collect()
}

/// Names of batch normalisations' running variances.
#[must_use]
pub fn variances_of_normalisation(model: &Model) -> HashSet<String> {
    model.graph().node.iter().filter(|n| is_layer(n)).filter_map(|n| n.input.get(4).cloned()).collect()
}

/// Names of batch normalisations' running means, by which patterns name layers
/// without weights.
pub(super) fn means(model: &Model) -> impl Iterator<Item = &str> {
    model.graph().node.iter().filter(|n| is_layer(n)).filter_map(|n| n.input.get(3)).map(String::as_str)
}

fn is_layer(node: &NodeProto) -> bool {
    node.op_type() == "BatchNormalization" && node.domain().is_empty()
}

/// Whether a layer is in training mode, as a file says it.
fn trains(node: &NodeProto) -> bool {
    // Before set 14 it was the number of outputs that said so.
    Attributes::of(node).flag("training_mode") || node.output.len() > 1
}

/// The model with every BatchNormalization in training mode, those that are
/// frozen in inference mode: all of their weights are, or they have none and
/// a pattern matches their running mean. `weights` are all there are,
/// `parameters` those in training.
pub(super) fn in_training(
    model: &Model,
    weights: &[String],
    parameters: &[String],
    freeze: &[String],
) -> Result<(Model, Statistics), StepError> {
    let index = Index::new(model);
    let frozen: HashSet<usize> =
        (0..index.graph.node.len()).filter(|&n| is_frozen(&index, n, weights, parameters, freeze)).collect();
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let constants: HashSet<String> = graph.initializer.iter().map(|t| t.name().to_owned()).collect();
    let values = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
    let mut names = Emitter::new(values.chain(constants.iter().map(String::as_str)));
    let mut layers: Vec<Layer> = Vec::new();
    let mut nodes = std::mem::take(&mut graph.node);
    for &position in &index.order {
        let mut node = std::mem::take(&mut nodes[position]);
        if is_layer(&node) && node.input.len() >= 5 {
            if frozen.contains(&position) {
                as_used(&mut node, &mut names);
            } else {
                layers.extend(train(&mut node, &constants, &mut names));
            }
        }
        graph.node.push(node);
        graph.node.extend(names.take());
    }
    graph.initializer.extend(names.finish().1);
    Ok((Model::from_proto(proto)?, Statistics(layers)))
}

/// Puts a layer into training mode; what is known of it, if its running
/// statistics are constants, which then follow the batches.
fn train(node: &mut NodeProto, constants: &HashSet<String>, out: &mut Emitter) -> Option<Layer> {
    let running = [node.input[3].clone(), node.input[4].clone()];
    let own = running.iter().all(|name| constants.contains(name));
    if !own && !trains(node) {
        // Computed statistics are the graph's own affair.
        return None;
    }
    let momentum = momentum(node);
    let batch = ["mean", "variance"].map(|what| out.name(&format!("{}.{what}", node.output[0])));
    follow(node, &running, &batch, momentum, out);
    set(node, "training_mode", Attribute::Int(1));
    // With nothing kept, the outputs are the batch's statistics, which the
    // gradient needs as they are.
    set(node, "momentum", Attribute::Float(0.0));
    node.output.truncate(1);
    node.output.extend(batch.clone());
    own.then(|| Layer { running, batch, input: node.input[0].clone(), momentum })
}

/// Whether a layer stays as it is. Weights may reach it through other nodes.
fn is_frozen(index: &Index<'_>, position: usize, weights: &[String], parameters: &[String], freeze: &[String]) -> bool {
    let node = &index.graph.node[position];
    if !is_layer(node) || freeze.is_empty() {
        return false;
    }
    let takes: Vec<&str> = node.input.iter().take(3).skip(1).map(String::as_str).collect();
    let given = node.input.iter().take(1).map(String::as_str).collect();
    let before = index.needed_for(&takes, &given);
    let read: HashSet<&str> =
        before.iter().flat_map(|&n| index.reads[n].iter().copied()).chain(takes.iter().copied()).collect();
    let mut own = weights.iter().filter(|w| read.contains(w.as_str())).peekable();
    if own.peek().is_none() {
        return node.input.get(3).is_some_and(|mean| freeze.iter().any(|p| parameters::matches(p, mean)));
    }
    !own.any(|weight| parameters.contains(weight))
}

/// How much of the old statistics a layer keeps: the decimal that was written,
/// 0.9, and not the float that is nearest to it.
fn momentum(node: &NodeProto) -> f64 {
    let written = Attributes::of(node).float_or("momentum", 0.9);
    written.to_string().parse().unwrap_or_else(|_| f64::from(written))
}

/// What a layer's own second and third output say, for those who read them:
/// the running statistics behind this batch, as ONNX has them.
fn follow(node: &NodeProto, running: &[String; 2], batch: &[String; 2], momentum: f64, out: &mut Emitter) {
    for (i, name) in node.output.iter().enumerate().skip(1).take(2).filter(|(_, name)| !name.is_empty()) {
        let (keep, take) = (out.scalar(DataType::F32, momentum), out.scalar(DataType::F32, 1.0 - momentum));
        let [keep, take] = [keep, take].map(|share| out.op("CastLike", &[&share, &running[i - 1]], &[]));
        let old = out.op("Mul", &[&running[i - 1], &keep], &[]);
        let new = out.op("Mul", &[&batch[i - 1], &take], &[]);
        out.named("Add", &[&old, &new], &[name], &[]);
    }
}

/// Puts a layer into inference mode; who reads its second and third output
/// reads the running statistics as they are.
pub(super) fn as_used(node: &mut NodeProto, out: &mut Emitter) {
    if !is_layer(node) || !trains(node) {
        return;
    }
    node.attribute.retain(|a| a.name() != "training_mode");
    for (i, name) in node.output.iter().enumerate().skip(1).take(2).filter(|(_, name)| !name.is_empty()) {
        out.named("Identity", &[&node.input[i + 2]], &[name], &[]);
    }
    node.output.truncate(1);
}

/// The model with its layers in training mode written out: the batch's
/// statistics by nodes of their own, and the layer by those.
pub(super) fn written_out(model: Model, kernels: &Kernels) -> Result<Model, StepError> {
    if !model.graph().node.iter().any(|n| is_layer(n) && trains(n)) {
        return Ok(model);
    }
    let types = infer_types(&model)?;
    let mut out = Emitter::new(types.iter().map(|t| t.name.as_str()));
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    for mut layer in std::mem::take(&mut graph.node) {
        if !is_layer(&layer) || !trains(&layer) {
            out.push(layer);
            continue;
        }
        let x = layer.input[0].clone();
        let info = types.get(&x);
        let [mean, variance] = [1, 2].map(|i| layer.output[i].clone());
        if info.and_then(|t| t.dtype) == Some(DataType::F32) && kernels.has("BatchNormStatistics") {
            let mut own = node("BatchNormStatistics", &[&x], &[&mean, &variance], &[]);
            own.domain = Some(crate::kernels::DOMAIN.to_owned());
            out.push(own);
        } else {
            let rank = info.and_then(|t| t.shape.as_ref()).map_or(4, Vec::len) as i64;
            let others: Vec<i64> = (0..rank).filter(|&axis| axis != 1).collect();
            let others = out.ints(&others);
            let wide = out.op("ReduceMean", &[&x, &others], &[]);
            let centred = out.op("Sub", &[&x, &wide], &[]);
            let square = out.op("Mul", &[&centred, &centred], &[]);
            out.named("ReduceMean", &[&square, &others], &[&variance], &[("keepdims", Attribute::Int(0))]);
            let flat = out.ints(&[-1]);
            out.named("Reshape", &[&wide, &flat], &[&mean], &[]);
        }
        layer.attribute.retain(|a| a.name() != "training_mode" && a.name() != "momentum");
        layer.output.truncate(1);
        layer.input.truncate(3);
        layer.input.extend([mean, variance]);
        out.push(layer);
    }
    let (nodes, constants) = out.finish();
    graph.node = nodes;
    graph.initializer.extend(constants);
    crate::kernels::import(&mut proto);
    Ok(Model::from_proto(proto)?)
}

fn set(node: &mut NodeProto, name: &str, value: Attribute) {
    node.attribute.retain(|a| a.name() != name);
    node.attribute.push(attribute(name, &value));
}

impl Statistics {
    /// Writes the next running statistics. As in PyTorch the variance is the
    /// unbiased estimate, though the layer normalises by the biased one, and
    /// statistics that several layers share follow one layer after the other.
    /// A single value has no spread: the variance stays what it was.
    pub(super) fn updates(self, out: &mut Emitter, dtype: DataType, types: &Types) -> Vec<Update> {
        let mut order = Vec::new();
        let mut now: HashMap<String, String> = HashMap::new();
        for layer in self.0 {
            let dtype = types.get(&layer.running[0]).and_then(|t| t.dtype).unwrap_or(dtype);
            let to = [("to", Attribute::Int(i64::from(dtype.to_onnx())))];
            let (all, channels) = (out.op("Size", &[&layer.input], &[]), out.op("Size", &[&layer.batch[0]], &[]));
            let whole = out.op("Div", &[&all, &channels], &[]);
            let count = out.op("Cast", &[&whole], &to);
            let one = out.scalar(dtype, 1.0);
            let less = out.op("Sub", &[&count, &one], &[]);
            let less = out.op("Max", &[&less, &one], &[]);
            let unbias = out.op("Div", &[&count, &less], &[]);
            let variance = out.op("Mul", &[&layer.batch[1], &unbias], &[]);
            let single = out.int(1);
            let spread = out.op("Greater", &[&whole, &single], &[]);
            let (keep, take) = (out.scalar(dtype, layer.momentum), out.scalar(dtype, 1.0 - layer.momentum));
            for (i, batch) in [layer.batch[0].clone(), variance].into_iter().enumerate() {
                let running = &layer.running[i];
                let before = now.get(running).unwrap_or(running).clone();
                let old = out.op("Mul", &[&before, &keep], &[]);
                let new = out.op("Mul", &[&batch, &take], &[]);
                let mut value = out.op("Add", &[&old, &new], &[]);
                if i == 1 {
                    value = out.op("Where", &[&spread, &value, &before], &[]);
                }
                if now.insert(running.clone(), value).is_none() {
                    order.push(running.clone());
                }
            }
        }
        let update = |input: String| {
            let value = now[&input].clone();
            Update { input, value, role: Role::Statistic, initial: None }
        };
        order.into_iter().map(update).collect()
    }
}

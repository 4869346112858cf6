//! Undoes the layout that ONNX Runtime saves for one kind of machine.
//!
//! Optimised as far as it goes, it keeps channels in blocks as long as a
//! register, pads them to whole blocks, and orders the weights of convolutions
//! so. A machine with other registers computes something else from such a
//! file, without a word. In plain ONNX it is right everywhere, on every engine,
//! and may be cut; ONNX Runtime finds the blocks again when it loads it.

use std::collections::{HashMap, HashSet};

use crate::attributes::Attributes;
use crate::constant::{tensor_from_proto, tensor_to_proto};
use crate::emit::{Attribute, Emitter};
use crate::error::LoadError;
use crate::fold::{Evaluate, FoldError};
use crate::index::bodies;
use crate::infer::{Types, infer_types};
use crate::model::Model;
use crate::onnx::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto};
use crate::tensor::{Elements, Tensor};

/// Operators on blocked tensors.
const DOMAIN: &str = "com.microsoft.nchwc";

/// Others that take them: to these it is all the same where an element stands,
/// as long as all inputs have it in the same place.
const INDIFFERENT: [&str; 13] = [
    "Add",
    "Sum",
    "Mul",
    "Concat",
    "Relu",
    "LeakyRelu",
    "Sigmoid",
    "Tanh",
    "HardSigmoid",
    "HardSwish",
    "Gelu",
    "QuickGelu",
    "Identity",
];

/// The model without blocks; `None` where it has none.
///
/// # Errors
/// When no engine here knows blocks, they aren't this machine's, or an operator
/// isn't known: prepared elsewhere, the model may run on any machine.
pub(crate) fn unblocked(model: &Model, evaluator: &mut dyn Evaluate) -> Result<Option<Model>, FoldError> {
    if !any(&model.graph().node) {
        return Ok(None);
    }
    let Some(block) = block(evaluator)? else {
        let node = model.graph().node.iter().find(|n| any(std::slice::from_ref(n)));
        let node = node.and_then(|n| n.output.first()).cloned().unwrap_or_default();
        let reason = "no engine here knows how long its blocks are, ONNX Runtime does".to_owned();
        return Err(FoldError::Blocked { node, reason });
    };
    let types = infer_types(model).unwrap_or_default();
    let opset = model.opset("").unwrap_or(1);
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let taken: HashSet<String> = graph.node.iter().flat_map(|n| n.output.iter().chain(&n.input)).cloned().collect();
    let out = Emitter::new(taken.iter().map(String::as_str));
    let constants = std::mem::take(&mut graph.initializer);
    let (ordered, padded) = (HashSet::new(), HashMap::new());
    let mut plain = Plain { block, opset, types: &types, constants, ordered, padded, out };
    for node in std::mem::take(&mut graph.node) {
        plain.node(node).map_err(|(node, reason)| FoldError::Blocked { node, reason })?;
    }
    let (nodes, more) = plain.out.finish();
    graph.node = nodes;
    graph.initializer = plain.constants;
    graph.initializer.extend(more);
    Ok(Some(Model::from_proto(proto)?))
}

fn any(nodes: &[NodeProto]) -> bool {
    nodes.iter().any(|n| n.domain() == DOMAIN || bodies(n).any(|body| any(&body.node)))
}

/// Channels of a block here, by an engine that knows.
fn block(evaluator: &mut dyn Evaluate) -> Result<Option<usize>, LoadError> {
    let x = Tensor::new([1, 4, 1, 1], Elements::F32(vec![0.; 4])).expect("four elements");
    let mut out = Emitter::new([]);
    out.named("ReorderInput", &["x"], &["y"], &[]);
    let (mut nodes, _) = out.finish();
    nodes[0].domain = Some(DOMAIN.to_owned());
    let import = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(version),
        ..OperatorSetIdProto::default()
    };
    let graph = GraphProto {
        name: Some("block".to_owned()),
        node: nodes,
        initializer: vec![tensor_to_proto("x", &x)],
        output: vec![ValueInfoProto { name: Some("y".to_owned()), ..ValueInfoProto::default() }],
        ..GraphProto::default()
    };
    let proto = ModelProto {
        ir_version: Some(8),
        opset_import: vec![import("", 13), import(DOMAIN, 1)],
        graph: Some(graph).into(),
        ..ModelProto::default()
    };
    let made = evaluator.evaluate(&Model::from_proto(proto)?).unwrap_or_default();
    Ok(made.first().and_then(|y| y.shape().get(1).copied()).filter(|block| *block > 1))
}

/// A node, and what is wrong with it.
type Wrong = (String, String);

struct Plain<'t> {
    block: usize,
    opset: i64,
    types: &'t Types,
    constants: Vec<TensorProto>,
    /// Weights in their plain order already.
    ordered: HashSet<String>,
    /// Blocked tensors, with their channels where they are known, those that
    /// pad them included.
    padded: HashMap<String, Option<usize>>,
    out: Emitter,
}

impl Plain<'_> {
    fn node(&mut self, node: NodeProto) -> Result<(), Wrong> {
        let label = || node.output.first().cloned().unwrap_or_default();
        if node.domain() != DOMAIN {
            if bodies(&node).any(|body| any(&body.node)) {
                return Err((label(), "it stands in a body, where it isn't undone".to_owned()));
            }
            return self
                .other(node)
                .map_err(|(node, reason)| (node.output.first().cloned().unwrap_or_default(), reason));
        }
        let made = match node.op_type() {
            "Conv" => self.conv(&node),
            "MaxPool" | "AveragePool" | "GlobalMaxPool" | "GlobalAveragePool" => self.pool(&node),
            "ReorderInput" => self.reorder_input(&node),
            "ReorderOutput" => self.reorder_output(&node),
            "Upsample" => self.upsample(&node),
            other => Err(format!("operator {other} isn't known")),
        };
        made.map_err(|reason| (label(), reason))
    }

    /// A node of plain ONNX, perhaps on blocked tensors.
    fn other(&mut self, node: NodeProto) -> Result<(), (NodeProto, String)> {
        let blocked = node.input.iter().find_map(|i| self.padded.get(i).copied());
        let (Some(x), Some(y)) = (node.input.first().cloned(), node.output.first().cloned()) else {
            self.out.push(node);
            return Ok(());
        };
        match (blocked, node.op_type()) {
            (None, _) => self.out.push(node),
            // To five axes, the block the last of them, so that others of fewer
            // sizes fit, and back to four: in plain order they fit as they are.
            (Some(channels), "Reshape") => {
                self.padded.insert(y.clone(), channels);
                self.out.named("Identity", &[&x], &[&y], &[]);
            }
            (Some(_), operator) if INDIFFERENT.contains(&operator) => {
                self.padded.insert(y, None);
                self.out.push(node);
            }
            (Some(_), operator) => {
                let reason = format!("operator {operator} isn't known to take blocks");
                return Err((node, reason));
            }
        }
        Ok(())
    }

    fn conv(&mut self, node: &NodeProto) -> Result<(), String> {
        let ([x, w, ..], [y]) = (&node.input[..], &node.output[..]) else {
            return Err("its inputs are missing".into());
        };
        let (channels, inputs) = self.reorder(w)?;
        let group = Attributes::of(node).int_or("group", 1);
        let given = self.padded.get(x).copied().flatten();
        if let Some(given) = given.filter(|given| Some(*given) != inputs.checked_mul(group as usize)) {
            return Err(mismatch(given, self.block));
        }
        self.padded.insert(y.clone(), Some(channels));
        let bias = node.input.get(2).map_or("", String::as_str);
        let sum = node.input.get(3).filter(|s| !s.is_empty());
        let mut conv = NodeProto { op_type: Some("Conv".to_owned()), domain: None, ..node.clone() };
        conv.input = [x.as_str(), w, bias].iter().filter(|i| !i.is_empty()).map(|i| (*i).to_owned()).collect();
        conv.attribute.retain(|a| !a.name().starts_with("activation"));
        let activation = Attributes::of(node).text("activation").unwrap_or_default();
        conv.output = vec![self.out.name(&format!("{y}/conv"))];
        let mut made = conv.output[0].clone();
        self.out.push(conv);
        if let Some(sum) = sum {
            made = self.out.op("Add", &[&made, sum], &[]);
        }
        let params = node.attribute.iter().find(|a| a.name() == "activation_params");
        made = self.activated(activation, params.map_or(&[], |a| &a.floats), made)?;
        self.out.rename(&made, y);
        Ok(())
    }

    fn activated(&mut self, activation: &str, params: &[f32], x: String) -> Result<String, String> {
        let float = |name: &'static str, at: usize, default: f32| {
            (name, Attribute::Float(params.get(at).copied().unwrap_or(default)))
        };
        let made = match activation {
            "" => x,
            "Relu" | "Sigmoid" | "Tanh" => self.out.op(activation, &[&x], &[]),
            "LeakyRelu" => self.out.op("LeakyRelu", &[&x], &[float("alpha", 0, 0.01)]),
            "HardSigmoid" => self.out.op("HardSigmoid", &[&x], &[float("alpha", 0, 0.2), float("beta", 1, 0.5)]),
            "HardSwish" => {
                let share = [("alpha", Attribute::Float(1. / 6.)), ("beta", Attribute::Float(0.5))];
                let gate = self.out.op("HardSigmoid", &[&x], &share);
                self.out.op("Mul", &[&x, &gate], &[])
            }
            "Clip" if self.opset < 11 => {
                self.out.op("Clip", &[&x], &[float("min", 0, f32::MIN), float("max", 1, f32::MAX)])
            }
            "Clip" => {
                let [low, high] = [(0, f32::MIN), (1, f32::MAX)].map(|(at, default)| {
                    let value = params.get(at).copied().unwrap_or(default);
                    self.out.scalar(crate::tensor::DataType::F32, value.into())
                });
                self.out.op("Clip", &[&x, &low, &high], &[])
            }
            other => return Err(format!("activation {other} isn't known")),
        };
        Ok(made)
    }

    /// Brings the weight of a convolution into ONNX's order; gives its output
    /// and input channels. In blocks they are `[O/b, I, h, w, b]` where one group has
    /// fewer inputs than a block, else `[O/b, I/b, h, w, b of I, b of O]`.
    fn reorder(&mut self, name: &str) -> Result<(usize, usize), String> {
        let block = self.block;
        let constant = self.constants.iter_mut().find(|t| t.name() == name).ok_or("its weight is computed")?;
        let weight = tensor_from_proto(constant).map_err(|e| e.to_string())?;
        let (&[outputs, inputs, height, width], Elements::F32(from)) = (weight.shape(), weight.elements()) else {
            return Err("its weight is no matrix of windows".into());
        };
        if outputs % block != 0 || inputs > block && inputs % block != 0 {
            return Err(mismatch(if outputs % block == 0 { inputs } else { outputs }, block));
        }
        if !self.ordered.insert(name.to_owned()) {
            return Ok((outputs, inputs));
        }
        let inner = if inputs < block { 1 } else { block };
        let window = height * width;
        let mut to = vec![0f32; from.len()];
        for (at, value) in from.iter().enumerate() {
            let (o, rest) = (at % block, at / block);
            let (i, rest) = (rest % inner, rest / inner);
            let (place, rest) = (rest % window, rest / window);
            let (inputs_before, outputs_before) = (rest % (inputs / inner), rest / (inputs / inner));
            let (o, i) = (outputs_before * block + o, inputs_before * inner + i);
            to[(o * inputs + i) * window + place] = *value;
        }
        let plain = Tensor::new([outputs, inputs, height, width], Elements::F32(to)).map_err(|e| e.to_string())?;
        *constant = tensor_to_proto(name, &plain);
        Ok((outputs, inputs))
    }

    fn pool(&mut self, node: &NodeProto) -> Result<(), String> {
        let mut plain = NodeProto { domain: None, ..node.clone() };
        // Older operator sets don't have them.
        let default =
            |a: &AttributeProto| matches!(a.name(), "storage_order" | "ceil_mode" | "count_include_pad") && a.i() == 0;
        plain.attribute.retain(|a| !default(a));
        let channels = node.input.first().and_then(|x| self.padded.get(x).copied().flatten());
        self.padded.insert(node.output.first().cloned().unwrap_or_default(), channels);
        self.out.push(plain);
        Ok(())
    }

    fn reorder_input(&mut self, node: &NodeProto) -> Result<(), String> {
        let ([x], [y]) = (&node.input[..], &node.output[..]) else { return Err("it takes one input".into()) };
        let last = Attributes::of(node).flag("channels_last");
        let shape = self.types.get(x).and_then(|t| t.shape.as_deref());
        let channels = shape.and_then(|s| s.get(if last { 3 } else { 1 })?.known());
        let channels = channels.ok_or("the channels of what it takes aren't known")? as usize;
        let mut made = x.clone();
        if last {
            made = self.out.op("Transpose", &[&made], &[("perm", Attribute::Ints(vec![0, 3, 1, 2]))]);
        }
        let padded = channels.next_multiple_of(self.block);
        if padded > channels {
            let pads = vec![0, 0, 0, 0, 0, (padded - channels) as i64, 0, 0];
            made = if self.opset < 11 {
                self.out.op("Pad", &[&made], &[("pads", Attribute::Ints(pads))])
            } else {
                let pads = self.out.ints(&pads);
                self.out.op("Pad", &[&made, &pads], &[])
            };
        }
        self.padded.insert(y.clone(), Some(padded));
        self.end(&made, x, y);
        Ok(())
    }

    fn reorder_output(&mut self, node: &NodeProto) -> Result<(), String> {
        let ([x], [y]) = (&node.input[..], &node.output[..]) else { return Err("it takes one input".into()) };
        let attributes = Attributes::of(node);
        let channels = attributes.int("channels").filter(|c| *c > 0).ok_or("it doesn't say how many channels")?;
        let last = attributes.flag("channels_last");
        let padded = self.padded.get(x).copied().flatten();
        if let Some(padded) = padded.filter(|p| (channels as usize).next_multiple_of(self.block) != *p) {
            return Err(mismatch(padded, self.block));
        }
        let mut made = x.clone();
        if padded != Some(channels as usize) {
            let (starts, ends, axes) = (vec![0], vec![channels], vec![1]);
            made = if self.opset < 10 {
                let parts = [("starts", starts), ("ends", ends), ("axes", axes)];
                self.out.op("Slice", &[&made], &parts.map(|(name, ints)| (name, Attribute::Ints(ints))))
            } else {
                let [starts, ends, axes] = [starts, ends, axes].map(|ints| self.out.ints(&ints));
                self.out.op("Slice", &[&made, &starts, &ends, &axes], &[])
            };
        }
        if last {
            made = self.out.op("Transpose", &[&made], &[("perm", Attribute::Ints(vec![0, 2, 3, 1]))]);
        }
        self.end(&made, x, y);
        Ok(())
    }

    fn upsample(&mut self, node: &NodeProto) -> Result<(), String> {
        let ([x], [y]) = (&node.input[..], &node.output[..]) else { return Err("it takes one input".into()) };
        let attributes = Attributes::of(node);
        let scales: Vec<f32> = attributes.ints("scales").unwrap_or_default().iter().map(|&s| s as f32).collect();
        let mode = attributes.text("mode").unwrap_or("nearest");
        let places = attributes.text("coordinate_transformation_mode").unwrap_or("asymmetric");
        if self.opset < 11 && places != "asymmetric" || scales.len() != 4 {
            return Err(format!("places by {places} aren't known in operator set {}", self.opset));
        }
        let scales = Tensor::new([4], Elements::F32(scales)).map_err(|e| e.to_string())?;
        let scales = self.out.constant(&scales);
        let mut how = vec![("mode", Attribute::Text(mode.to_owned()))];
        if self.opset < 11 {
            let kind = if self.opset < 10 { "Upsample" } else { "Resize" };
            self.out.named(kind, &[x, &scales], &[y], &how);
        } else {
            how.push(("coordinate_transformation_mode", Attribute::Text(places.to_owned())));
            if mode == "nearest" {
                how.push(("nearest_mode", Attribute::Text("floor".to_owned())));
            }
            let roi = Tensor::new([0], Elements::F32(Vec::new())).map_err(|e| e.to_string())?;
            let roi = self.out.constant(&roi);
            self.out.named("Resize", &[x, &roi, &scales], &[y], &how);
        }
        let channels = self.padded.get(x).copied().flatten();
        self.padded.insert(y.clone(), channels);
        Ok(())
    }

    /// Gives what was made of `x` its name.
    fn end(&mut self, made: &str, x: &str, y: &str) {
        if made == x {
            self.out.named("Identity", &[x], &[y], &[]);
        } else {
            self.out.rename(made, y);
        }
    }
}

fn mismatch(channels: usize, block: usize) -> String {
    format!("it has {channels} channels where this machine takes {block} at once")
}

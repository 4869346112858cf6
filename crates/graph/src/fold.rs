//! Constant folding: whatever depends on constants only is computed once.
//!
//! Exported graphs compute shapes and even weights from constants; until they
//! are folded such values cross every frontier, and a model has hardly any
//! cut (one export went from 1 usable cut to 48).

use std::collections::HashSet;

use crate::constant::{tensor_from_proto, tensor_to_proto};
use crate::error::LoadError;
use crate::index::Index;
use crate::infer::infer_types;
use crate::model::Model;
use crate::onnx::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
use crate::slice::value_info_proto;
use crate::tensor::Tensor;
use crate::types::ValueInfo;

/// Bytes of one folded result at most: a weight of the largest layers passes,
/// an Expand to a whole activation doesn't.
pub const FOLDED_BYTES_MAX: u64 = 1 << 30;

/// Operators whose result isn't determined by their inputs.
const RANDOM: [&str; 6] = ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"];

/// Computes graphs that take no inputs.
pub trait Evaluate {
    /// The outputs of `model`, in order.
    ///
    /// # Errors
    /// When the model can't be computed here.
    fn evaluate(&mut self, model: &Model) -> Result<Vec<Tensor>, String>;
}

/// What folding did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FoldReport {
    /// Nodes before.
    pub nodes_before: usize,
    /// Nodes after.
    pub nodes_after: usize,
    /// Values computed.
    pub folded: usize,
    /// Values that no engine here could compute; their nodes stay.
    pub left: usize,
}

/// Why folding failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FoldError {
    /// The folded graph isn't valid.
    #[error("the model with its constants folded is not valid: {0}")]
    Invalid(#[from] LoadError),
}

/// Folds constants in place, and drops what nothing uses.
///
/// # Errors
/// When the result isn't a valid model; the model is then unchanged.
pub fn fold(model: &mut Model, evaluator: &mut dyn Evaluate) -> Result<FoldReport, FoldError> {
    let mut report = FoldReport { nodes_before: model.graph().node.len(), ..FoldReport::default() };
    let mut proto = model.proto().clone();
    modernise(&mut proto);
    literal_constants(&mut proto)?;
    drop_identities(&mut proto);
    let lifted = Model::from_proto(proto)?;
    let wanted = constant_values(&lifted);
    let mut folded: Vec<(String, Tensor)> = Vec::new();
    if !wanted.is_empty() {
        match evaluate(&lifted, &wanted, evaluator) {
            Some(tensors) => folded = wanted.iter().cloned().zip(tensors).collect(),
            // Something in there isn't for this engine: try one by one.
            None => {
                for name in &wanted {
                    match evaluate(&lifted, std::slice::from_ref(name), evaluator) {
                        Some(mut tensor) => folded.extend(tensor.pop().map(|t| (name.clone(), t))),
                        None => report.left += 1,
                    }
                }
            }
        }
    }
    let mut proto = lifted.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    for (name, tensor) in folded {
        if tensor.byte_len() <= FOLDED_BYTES_MAX {
            report.folded += 1;
            let makers: Vec<usize> =
                graph.node.iter().enumerate().filter(|(_, n)| n.output.contains(&name)).map(|(i, _)| i).collect();
            for i in makers {
                // The value now comes from the initialiser.
                for output in graph.node[i].output.iter_mut().filter(|o| **o == name) {
                    output.clear();
                }
            }
            graph.initializer.push(tensor_to_proto(&name, &tensor));
        }
    }
    sweep(graph);
    let result = Model::from_proto(proto)?;
    report.nodes_after = result.graph().node.len();
    *model = result;
    Ok(report)
}

/// Before IR 4 every initialiser had to be listed as an input; since then that
/// means a default that callers may replace. Files of the old kind mean
/// constants.
fn modernise(proto: &mut ModelProto) {
    if proto.ir_version() >= 4 {
        return;
    }
    proto.ir_version = Some(4);
    let graph = proto.graph.mut_or_insert_default();
    let constants: HashSet<String> = graph.initializer.iter().map(|t| t.name().to_owned()).collect();
    graph.input.retain(|i| !constants.contains(i.name()));
}

/// Constant nodes become initialisers.
fn literal_constants(proto: &mut ModelProto) -> Result<(), LoadError> {
    let graph = proto.graph.mut_or_insert_default();
    let mut lifted = Vec::new();
    for node in graph.node.iter().filter(|n| n.op_type() == "Constant" && n.domain().is_empty()) {
        if let (Some(name), Some(tensor)) = (node.output.first(), literal(node)?) {
            lifted.push((name.clone(), tensor));
        }
    }
    let names: HashSet<&String> = lifted.iter().map(|(n, _)| n).collect();
    let outputs: HashSet<&str> = graph.output.iter().map(|o| o.name()).collect();
    let gone = |n: &NodeProto| n.op_type() == "Constant" && n.output.first().is_some_and(|o| names.contains(o) && !outputs.contains(o.as_str()));
    let kept: Vec<NodeProto> = graph.node.iter().filter(|n| !gone(n)).cloned().collect();
    let outputs: HashSet<String> = outputs.into_iter().map(str::to_owned).collect();
    graph.node = kept;
    graph.initializer.extend(lifted.into_iter().filter(|(n, _)| !outputs.contains(n)).map(|(n, t)| match t {
        Literal::Proto(mut p) => {
            p.name = Some(n);
            *p
        }
        Literal::Tensor(t) => tensor_to_proto(&n, &t),
    }));
    Ok(())
}

enum Literal {
    Proto(Box<crate::onnx::TensorProto>),
    Tensor(Tensor),
}

fn literal(node: &NodeProto) -> Result<Option<Literal>, LoadError> {
    use crate::tensor::Elements;
    let Some(a) = node.attribute.first() else { return Ok(None) };
    let tensor = |shape: Vec<usize>, e: Elements| Tensor::new(shape, e).ok().map(Literal::Tensor);
    let text = |b: &bytes::Bytes| String::from_utf8_lossy(b).into_owned();
    Ok(match a.name() {
        "value" => match a.t.as_ref() {
            Some(t) => {
                tensor_from_proto(t)?;
                Some(Literal::Proto(Box::new(t.clone())))
            }
            None => None,
        },
        "value_float" => tensor(vec![], Elements::F32(vec![a.f()])),
        "value_int" => tensor(vec![], Elements::I64(vec![a.i()])),
        "value_floats" => tensor(vec![a.floats.len()], Elements::F32(a.floats.clone())),
        "value_ints" => tensor(vec![a.ints.len()], Elements::I64(a.ints.clone())),
        "value_string" => tensor(vec![], Elements::String(vec![String::from_utf8_lossy(a.s()).into_owned()])),
        "value_strings" => tensor(vec![a.strings.len()], Elements::String(a.strings.iter().map(text).collect())),
        _ => None,
    })
}

/// Identity, and Dropout at inference, pass their input on.
fn drop_identities(proto: &mut ModelProto) {
    let graph = proto.graph.mut_or_insert_default();
    let outputs: HashSet<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
    let mut rename: std::collections::HashMap<String, String> = std::collections::HashMap::new();
    let passes = |n: &NodeProto| {
        let training = n.input.get(2).is_some_and(|t| !t.is_empty());
        let mask = n.output.get(1).is_some_and(|m| !m.is_empty());
        n.domain().is_empty() && (n.op_type() == "Identity" || (n.op_type() == "Dropout" && !training && !mask))
    };
    let captured: HashSet<String> = graph
        .node
        .iter()
        .flat_map(|n| crate::index::reads(n).into_iter().skip(n.input.iter().filter(|i| !i.is_empty()).count()))
        .map(str::to_owned)
        .collect();
    graph.node.retain(|n| {
        let (Some(from), Some(to)) = (n.input.first(), n.output.first()) else { return true };
        // Names that are seen from outside keep their node.
        if !passes(n) || outputs.contains(to) || captured.contains(to) {
            return true;
        }
        let source = rename.get(from).cloned().unwrap_or_else(|| from.clone());
        rename.insert(to.clone(), source);
        false
    });
    for node in &mut graph.node {
        for input in &mut node.input {
            let mut hops = 0;
            while let Some(source) = rename.get(input.as_str()).filter(|_| hops < 1_000) {
                *input = source.clone();
                hops += 1;
            }
        }
    }
}

/// Values made of constants only and used by something that isn't.
fn constant_values(model: &Model) -> Vec<String> {
    let index = Index::new(model);
    let graph = index.graph;
    let mut constant: HashSet<&str> = index.initializer.keys().copied().collect();
    // An initialiser that is an input too may be replaced by the caller.
    for input in &graph.input {
        constant.remove(input.name());
    }
    let mut folding = vec![false; graph.node.len()];
    for &i in &index.order {
        let node = &graph.node[i];
        // Weights of quantised graphs stay behind their Dequantize: folded to
        // floats, nothing would run in integers any more.
        let keeps = RANDOM.contains(&node.op_type()) || matches!(node.op_type(), "DequantizeLinear" | "QuantizeLinear");
        let subgraph = node.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty());
        if !keeps && !subgraph && node.domain().is_empty() && index.reads[i].iter().all(|n| constant.contains(n)) {
            folding[i] = true;
            constant.extend(node.output.iter().filter(|o| !o.is_empty()).map(String::as_str));
        }
    }
    let outputs: HashSet<&str> = graph.output.iter().map(|o| o.name()).collect();
    let mut wanted: Vec<String> = Vec::new();
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, reads) in index.reads.iter().enumerate().filter(|(i, _)| !folding[*i]) {
        let _ = i;
        for name in reads {
            if index.producer.get(name).is_some_and(|&p| folding[p]) && !outputs.contains(name) && seen.insert(name) {
                wanted.push((*name).to_owned());
            }
        }
    }
    wanted
}

/// Computes constant values with a closed sub-model.
fn evaluate(model: &Model, wanted: &[String], evaluator: &mut dyn Evaluate) -> Option<Vec<Tensor>> {
    let index = Index::new(model);
    let mut nodes = HashSet::new();
    let mut stack: Vec<&str> = wanted.iter().map(String::as_str).collect();
    while let Some(name) = stack.pop() {
        if let Some(&node) = index.producer.get(name)
            && nodes.insert(node)
        {
            stack.extend(&index.reads[node]);
        }
    }
    let types = infer_types(model).ok()?;
    let used: HashSet<&str> = nodes.iter().flat_map(|&n| index.reads[n].iter().copied()).collect();
    let graph = GraphProto {
        name: Some("constants".to_owned()),
        node: index.order.iter().filter(|n| nodes.contains(n)).map(|&n| index.graph.node[n].clone()).collect(),
        initializer: index.graph.initializer.iter().filter(|t| used.contains(t.name())).cloned().collect(),
        output: wanted.iter().map(|n| declare(n, types.get(n))).collect(),
        ..GraphProto::default()
    };
    let proto = ModelProto { graph: Some(graph).into(), ..model.proto().clone() };
    let tensors = evaluator.evaluate(&Model::from_proto(proto).ok()?).ok()?;
    (tensors.len() == wanted.len()).then_some(tensors)
}

fn declare(name: &str, info: Option<&ValueInfo>) -> ValueInfoProto {
    match info {
        Some(info) if info.dtype.is_some() => value_info_proto(info),
        _ => ValueInfoProto { name: Some(name.to_owned()), ..ValueInfoProto::default() },
    }
}

/// Drops nodes, initialisers and declarations that no output needs.
fn sweep(graph: &mut GraphProto) {
    let mut needed: HashSet<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
    let mut keep = vec![false; graph.node.len()];
    // Producers may stand anywhere in a file that isn't sorted: repeat until
    // nothing is added.
    loop {
        let mut added = false;
        for (i, node) in graph.node.iter().enumerate() {
            if !keep[i] && node.output.iter().any(|o| !o.is_empty() && needed.contains(o)) {
                keep[i] = true;
                added = true;
                needed.extend(crate::index::reads(node).into_iter().map(str::to_owned));
            }
        }
        if !added {
            break;
        }
    }
    let mut kept = keep.iter();
    graph.node.retain(|_| kept.next().copied().unwrap_or(true));
    let inputs: HashSet<String> = graph.input.iter().map(|i| i.name().to_owned()).collect();
    let mut seen: HashSet<String> = HashSet::new();
    graph.initializer.retain(|t| (needed.contains(t.name()) || inputs.contains(t.name())) && seen.insert(t.name().to_owned()));
    graph.value_info.retain(|v| needed.contains(v.name()) && !seen.contains(v.name()));
}

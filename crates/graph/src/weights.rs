//! Which constants of a graph its layers learn.
//!
//! A file doesn't say, or says it in the ways of its exporter
//! ([`crate::exporter`]). Here is what operators learn ([`learned`]), of which
//! parts a weight is computed, and what only moves elements of such
//! ([`moves`]).

use std::collections::{HashMap, HashSet};

use crate::constant::tensor_from_proto;
use crate::exporter::{is_noted, is_own};
use crate::gradient::is_differentiated;
use crate::index::{Index, bodies, is_function_of_inputs};
use crate::onnx::{NodeProto, TensorProto};
use crate::tensor::{DataType, Elements};

/// Operators that move elements without changing them.
const LAYOUT: [&str; 7] = ["Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice"];

/// Operators of one input that make a weight of a number that is learned; a
/// mere constant would have been computed before it was written.
const UNARY: [&str; 12] =
    ["Exp", "Log", "Softplus", "Sigmoid", "HardSigmoid", "Tanh", "Sqrt", "Reciprocal", "Abs", "Relu", "Elu", "Erf"];

/// Operators that make tables of positions of frequencies: nothing behind them
/// is learned.
pub(crate) const TABLES: [&str; 2] = ["Sin", "Cos"];

/// A constant as large as this is a mask, not a bias.
const FAR_MIN: f64 = 1e4;

/// Whether a node moves elements of input `position` without changing them, or
/// rounds them as in training for integers.
pub(crate) fn moves(node: &NodeProto, position: usize) -> bool {
    let rounds = matches!(node.op_type(), "QuantizeLinear" | "DequantizeLinear");
    if rounds && matches!(node.domain(), "" | "com.microsoft") {
        return position == 0;
    }
    node.domain().is_empty() && (node.op_type() == "Concat" || position == 0 && LAYOUT.contains(&node.op_type()))
}

/// Whether a node gives the elements of its first input another order or
/// shape, each of them once.
pub(crate) fn turns(node: &NodeProto) -> bool {
    moves(node, 0) && !matches!(node.op_type(), "Slice" | "Concat" | "QuantizeLinear" | "DequantizeLinear")
}

pub(crate) fn is_float(tensor: &TensorProto) -> bool {
    DataType::from_onnx(tensor.data_type()).is_some_and(DataType::is_float)
}

/// Whether a step can train it: other types have no optimiser.
pub(crate) fn is_trainable_type(tensor: &TensorProto) -> bool {
    matches!(DataType::from_onnx(tensor.data_type()), Some(DataType::F32 | DataType::F64))
}

/// Whether a constant has numbers that only a mask has.
pub(crate) fn is_mask(tensor: &TensorProto) -> bool {
    is_far(tensor).unwrap_or(true)
}

fn is_far(tensor: &TensorProto) -> Option<bool> {
    all(tensor, |mut numbers| numbers.any(|x| !x.is_finite() || x.abs() >= FAR_MIN))
}

/// Whether a constant says of each element whether it counts.
fn is_switch(tensor: &TensorProto) -> bool {
    let of_both = |numbers: &mut dyn Iterator<Item = f64>| {
        let (mut zero, mut one) = (false, false);
        for x in numbers {
            zero |= x == 0.0;
            one |= x == 1.0;
            if x != 0.0 && x != 1.0 {
                return false;
            }
        }
        zero && one
    };
    all(tensor, |mut numbers| of_both(&mut numbers)).unwrap_or(false)
}

/// Whether nobody learns such numbers: evenly spaced ones, sines beside the
/// cosines of the same angles, or the same filter for every channel.
pub(crate) fn is_table(tensor: &TensorProto) -> bool {
    let sizes: Vec<usize> = tensor.dims.iter().filter(|d| **d != 1).map(|&d| usize::try_from(d).unwrap_or(0)).collect();
    let channels = tensor.dims.first().and_then(|&n| usize::try_from(n).ok()).unwrap_or(0);
    let depthwise = tensor.dims.len() > 2 && tensor.dims[1] == 1 && channels > 1;
    all(tensor, |numbers| {
        let numbers: Vec<f64> = numbers.collect();
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-4 * b.abs().max(1.0);
        match sizes[..] {
            _ if depthwise => {
                let each = numbers.len() / channels;
                let same = numbers.chunks(each.max(1)).all(|kernel| kernel == &numbers[..each]);
                same && numbers.iter().any(|x| *x != numbers[0])
            }
            [n] if n > 3 => {
                let step = (numbers[n - 1] - numbers[0]) / (n - 1) as f64;
                step != 0.0 && (0..n).all(|i| (numbers[i] - numbers[0] - step * i as f64).abs() <= 1e-4 * step.abs())
            }
            [rows, width] if rows > 3 && width > 3 && width % 2 == 0 => {
                let half = width / 2;
                let on_circle = |pair: &dyn Fn(usize) -> (usize, usize)| {
                    numbers
                        .chunks(width)
                        .all(|row| (0..half).map(pair).all(|(a, b)| close(row[a] * row[a] + row[b] * row[b], 1.0)))
                };
                on_circle(&|i| (2 * i, 2 * i + 1)) || on_circle(&|i| (i, half + i))
            }
            _ => false,
        }
    })
    .unwrap_or(false)
}

/// What is said of a constant's numbers, if it has such that are known.
pub(crate) fn all<T>(tensor: &TensorProto, said: impl FnOnce(Box<dyn Iterator<Item = f64> + '_>) -> T) -> Option<T> {
    match tensor_from_proto(tensor).ok()?.elements() {
        Elements::F32(v) => Some(said(Box::new(v.iter().map(|&x| f64::from(x))))),
        Elements::F64(v) => Some(said(Box::new(v.iter().copied()))),
        _ => None,
    }
}

/// Floating-point constants of more than one element, and what nodes make of
/// such by moving elements only.
pub(crate) fn moved_weights<'m>(index: &Index<'m>) -> HashSet<&'m str> {
    let several = |t: &&TensorProto| is_float(t) && t.dims.iter().product::<i64>() > 1;
    moved(index, index.graph.initializer.iter().filter(several).map(|t| t.name()).collect())
}

/// These, and what nodes make of them by moving elements only.
fn moved<'m>(index: &Index<'m>, mut found: HashSet<&'m str>) -> HashSet<&'m str> {
    for &position in &index.order {
        let node = &index.graph.node[position];
        let mut moved = node.input.iter().enumerate().filter(|(i, _)| moves(node, *i)).peekable();
        if moved.peek().is_some() && moved.all(|(_, name)| found.contains(name.as_str())) {
            found.extend(node.output.first().map(String::as_str));
        }
    }
    found
}

/// Where weights may stand in a graph, and what is computed of weights alone.
struct Known<'m> {
    /// Of more than one element, and what is moved of such.
    several: HashSet<&'m str>,
    /// Those that the file notes as learned, and what is moved of such.
    noted: HashSet<&'m str>,
    /// Those that a module of PyTorch has, and what is moved of such.
    own: HashSet<&'m str>,
    /// What nodes compute of weights and constants alone.
    made: HashSet<&'m str>,
    constants: HashMap<&'m str, &'m TensorProto>,
    /// All that depends on no input.
    fixed: HashSet<&'m str>,
}

impl<'m> Known<'m> {
    /// `stated` are no weights, whatever they look like.
    fn new(index: &Index<'m>, stated: &HashSet<String>) -> Self {
        let graph = index.graph;
        let constants = constants(index);
        let mut several = moved_weights(index);
        several.retain(|name| !stated.contains(*name));
        let of = |which: fn(&TensorProto) -> bool| {
            let found = graph.initializer.iter().filter(|t| is_float(t) && which(t) && !stated.contains(t.name()));
            moved(index, found.map(|t| t.name()).collect())
        };
        let (noted, own) = (of(is_noted), of(is_own));
        let mut known = Self { several, noted, own, made: HashSet::new(), constants, fixed: index.constant.clone() };
        let mut masked: HashSet<&str> = HashSet::new();
        for &position in &index.order {
            let node = &index.graph.node[position];
            if !known.computes(node) {
                continue;
            }
            let outputs = node.output.iter().map(String::as_str).filter(|o| !o.is_empty());
            let reads_masked = node.input.iter().any(|name| masked.contains(name.as_str()));
            if reads_masked || makes_mask(node, &known.constants) {
                masked.extend(outputs);
            } else if (0..node.input.len()).any(|i| known.takes(node, i, stated)) {
                known.made.extend(outputs);
            }
        }
        known
    }

    /// Whether a node computes a constant, through which gradients flow.
    fn computes(&self, node: &NodeProto) -> bool {
        is_function_of_inputs(node)
            && is_differentiated(node)
            && !TABLES.contains(&node.op_type())
            && node.input.iter().any(|i| !i.is_empty())
            && node.input.iter().all(|i| i.is_empty() || self.fixed.contains(i.as_str()))
    }

    /// Whether input `position` of a node that computes a constant is a part of
    /// a weight.
    fn takes(&self, node: &NodeProto, position: usize, stated: &HashSet<String>) -> bool {
        let name = node.input[position].as_str();
        let operator = node.op_type();
        let switch = || self.constants.get(name).is_some_and(|t| is_switch(t));
        if self.made.contains(name) || self.noted.contains(name) {
            return true;
        }
        if self.several.contains(name) {
            let divides = position == 1 && matches!(operator, "Div" | "Sub" | "Pow");
            let switches = operator == "Mul" && switch();
            return !divides && !switches && !self.is_direction(node, position);
        }
        let own = |t: &&TensorProto| is_float(t) && !stated.contains(t.name()) && t.name() == name;
        UNARY.contains(&operator) && self.constants.get(name).is_some_and(own)
    }

    /// Whether an input is a vector that a constant matrix is multiplied by: a
    /// spectral norm is measured along it.
    fn is_direction(&self, node: &NodeProto, position: usize) -> bool {
        let vector = |name: &str| self.constants.get(name).is_some_and(|t| t.dims.len() == 1);
        node.op_type() == "MatMul"
            && vector(&node.input[position])
            && node.input.iter().all(|i| self.fixed.contains(i.as_str()))
    }

    /// Whether input `position` of a node is something a layer learns, if it
    /// is a constant.
    fn learns(&self, node: &NodeProto, position: usize) -> bool {
        if !node.domain().is_empty() && node.domain() != "ai.onnx" {
            return false;
        }
        let name = node.input[position].as_str();
        let (several, made) = (self.several.contains(name), self.made.contains(name) || self.noted.contains(name));
        let own = made || self.own.contains(name);
        let switch = || self.constants.get(name).is_some_and(|t| is_switch(t));
        match node.op_type() {
            "Conv" | "ConvTranspose" | "Gemm" => position > 0,
            "MatMul" => !self.is_direction(node, position),
            "Einsum" => true,
            "PRelu" => position == 1,
            "Gather" | "GatherND" | "GatherElements" => position == 0,
            // A first state that is noted, or computed, is a weight as well.
            "LSTM" | "GRU" | "RNN" => (1..=3).contains(&position) || matches!(position, 5 | 6) && own,
            "Mul" => made || several && !switch(),
            "Add" | "Sum" | "Concat" => several || made,
            // Of a constant's own these are the architecture's.
            "Sub" | "Div" | "Pow" | "Max" | "Min" | "Mean" => own,
            "Where" | "Clip" => position > 0 && own,
            "Pad" | "ScatterND" | "ScatterElements" => position != 1 && own,
            "Expand" | "Tile" => position == 0 && (several || made),
            _ => normalises(node) && (position == 1 || position == 2),
        }
    }
}

/// Values of initialisers and Constant nodes.
pub(crate) fn constants<'m>(index: &Index<'m>) -> HashMap<&'m str, &'m TensorProto> {
    let held = index.graph.node.iter().filter(|n| n.op_type() == "Constant");
    let held = held.filter_map(|n| Some((n.output.first()?.as_str(), n.attribute.first()?.t.as_ref()?)));
    index.graph.initializer.iter().map(|t| (t.name(), t)).chain(held).collect()
}

/// Whether a node makes a mask: with numbers that only such have.
pub(crate) fn makes_mask(node: &NodeProto, constants: &HashMap<&str, &TensorProto>) -> bool {
    let far = |name: &String| constants.get(name.as_str()).is_some_and(|t| is_far(t) == Some(true));
    matches!(node.op_type(), "Add" | "Sub" | "Mul" | "Div" | "Where" | "Sum") && node.input.iter().any(far)
}

/// Names that stand where layers learn, if they are constants: those in front
/// of a change of layout, and the parts that a weight is computed of, as well.
/// `stated` are none, whatever they look like.
pub(crate) fn learned<'m>(index: &Index<'m>, stated: &HashSet<String>) -> HashSet<&'m str> {
    let known = Known::new(index, stated);
    let mut learned: HashSet<&str> = HashSet::new();
    for &position in index.order.iter().rev() {
        look(&index.graph.node[position], &known, stated, &mut learned);
    }
    learned
}

/// Adds what a node learns, and what its bodies learn of the graph around.
fn look<'m>(node: &'m NodeProto, known: &Known<'_>, stated: &HashSet<String>, learned: &mut HashSet<&'m str>) {
    for inner in bodies(node).flat_map(|body| body.node.iter().rev()) {
        look(inner, known, stated, learned);
    }
    // What is learned behind a change of layout is learned before it, and what
    // is computed is learned in its parts.
    let behind = node.output.iter().any(|o| learned.contains(o.as_str()));
    let computed = behind && node.output.iter().any(|o| known.made.contains(o.as_str()));
    // Of a constant that is computed those behind it say what it is.
    let open = !known.computes(node);
    for (i, name) in node.input.iter().enumerate() {
        if open && known.learns(node, i) || behind && moves(node, i) || computed && known.takes(node, i, stated) {
            learned.insert(name);
        }
    }
}

/// Whether a node is a normalisation that takes a scale and a bias.
pub(crate) fn normalises(node: &NodeProto) -> bool {
    matches!(
        node.op_type(),
        "BatchNormalization"
            | "InstanceNormalization"
            | "GroupNormalization"
            | "LayerNormalization"
            | "RMSNormalization"
    )
}

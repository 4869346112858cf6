//! What a loss on logits is computed of: of a network that ends in
//! probabilities, what they were made of.
//!
//! A Softmax or Sigmoid may be followed by nodes that only move elements:
//! those are written once more, behind what goes into it. Whatever else
//! stands between, the output still holds probabilities, which are no logits:
//! that is refused.

use std::collections::HashMap;

use super::{Loss, StepError};
use crate::attributes::Attributes;
use crate::constant::tensor_from_proto;
use crate::emit::Emitter;
use crate::index::Index;
use crate::infer::{Types, infer_types};
use crate::model::Model;
use crate::onnx::{NodeProto, TensorProto};
use crate::tensor::Elements;
use crate::types::Dim;

/// Classes are along this axis of an output.
const CLASSES: usize = 1;

/// The model with the logits of `output` in it, and their name: `output`
/// itself where it holds no probabilities, or the loss isn't one on logits.
///
/// # Errors
/// [`StepError::Probabilities`], where there are no logits to be found.
pub(super) fn found(model: &Model, loss: &Loss, output: &str) -> Result<(Model, String), StepError> {
    let wanted = match loss {
        Loss::Mse => return Ok((model.clone(), output.to_owned())),
        Loss::Bce => "Sigmoid",
        Loss::CrossEntropy { .. } | Loss::Kl { .. } | Loss::Distil { .. } => "Softmax",
    };
    let types = infer_types(model)?;
    let index = Index::new(model);
    let constants = index.graph.initializer.iter().map(|t| (t.name(), t)).collect();
    let out = Emitter::new(types.iter().map(|t| t.name.as_str()));
    let mut search = Search { index: &index, types: &types, constants, wanted, out };
    // Of a Sigmoid every element is for itself.
    let axis = if wanted == "Softmax" { Axis::At(CLASSES) } else { Axis::Any };
    if let Some(logits) = search.behind(output, axis, DEPTH_MAX) {
        let mut proto = model.proto().clone();
        let graph = proto.graph.mut_or_insert_default();
        graph.node.extend(search.out.finish().0);
        return Ok((Model::from_proto(proto)?, logits));
    }
    match search.probabilities(output, axis, DEPTH_MAX) {
        Some(made_by) => {
            Err(StepError::Probabilities { output: output.to_owned(), loss: loss.name(), made_by, wanted })
        }
        None => Ok((model.clone(), output.to_owned())),
    }
}

/// Nodes that are followed back from an output, one behind the other.
const DEPTH_MAX: usize = 64;

/// What is added to probabilities to keep them from zero is below this.
const SMALL: f64 = 1e-2;

/// Where the classes of an output are along the axes of a tensor before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Axis {
    At(usize),
    /// Nobody knows.
    Lost,
    /// It doesn't matter.
    Any,
}

struct Search<'m> {
    index: &'m Index<'m>,
    types: &'m Types,
    constants: HashMap<&'m str, &'m TensorProto>,
    /// The operator that makes probabilities of the loss's logits.
    wanted: &'static str,
    out: Emitter,
}

impl<'m> Search<'m> {
    fn made_by(&self, name: &str) -> Option<&'m NodeProto> {
        let node = &self.index.graph.node[*self.index.producer.get(name)?];
        node.domain().is_empty().then_some(node)
    }

    fn shape(&self, name: &str) -> Option<&'m [Dim]> {
        self.types.get(name)?.shape.as_deref()
    }

    fn ints(&self, name: &str) -> Option<Vec<i64>> {
        match tensor_from_proto(self.constants.get(name)?).ok()?.into_parts().1 {
            Elements::I64(values) => Some(values),
            Elements::I32(values) => Some(values.into_iter().map(i64::from).collect()),
            _ => None,
        }
    }

    /// What is to `name` as logits are to probabilities; the nodes between
    /// are written once more.
    fn behind(&mut self, name: &str, axis: Axis, depth: usize) -> Option<String> {
        let node = self.made_by(name).filter(|_| depth > 0)?;
        if node.op_type() == self.wanted {
            let same = axis == Axis::Any || self.softmax_axis(node).map(Axis::At) == Some(axis);
            return same.then(|| node.input[0].clone());
        }
        let moved = moved(node, self.is_float_cast(node));
        if moved == 0 {
            return None;
        }
        let mut again = node.clone();
        for input in &mut again.input[..moved] {
            let axis = self.before(node, name, input, axis);
            *input = self.behind(input, axis, depth - 1)?;
        }
        let mut logits = None;
        for output in again.output.iter_mut().filter(|o| !o.is_empty()) {
            let fresh = self.out.name(&format!("{output}.logits"));
            if output.as_str() == name {
                logits = Some(fresh.clone());
            }
            *output = fresh;
        }
        again.name = logits.as_ref().map(|logits| format!("{}:{logits}", node.op_type()));
        self.out.push(again);
        logits
    }

    /// The axis that a Softmax runs over.
    fn softmax_axis(&self, node: &NodeProto) -> Option<usize> {
        let rank = self.shape(&node.input[0])?.len() as i64;
        let axis = Attributes::of(node).int_or("axis", -1);
        usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()
    }

    fn is_float_cast(&self, node: &NodeProto) -> bool {
        let float = |name: &String| self.types.get(name).and_then(|t| t.dtype).is_some_and(|d| d.is_float());
        node.input.first().is_some_and(float) && node.output.first().is_some_and(float)
    }

    /// Where an axis of a node's output is in its input.
    fn before(&self, node: &NodeProto, output: &str, input: &str, axis: Axis) -> Axis {
        let Axis::At(at) = axis else { return axis };
        let (Some(from), Some(to)) = (self.shape(input), self.shape(output)) else { return Axis::Lost };
        let own = |name: &str, default: i64, rank: usize| {
            let axis = Attributes::of(node).int_or(name, default);
            usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()
        };
        let place = match node.op_type() {
            "Transpose" => {
                let order = Attributes::of(node).permutation(from.len()).ok();
                order.and_then(|order| order.get(at).copied())
            }
            "Squeeze" | "Unsqueeze" => {
                let wide = if node.op_type() == "Squeeze" { from.len() } else { to.len() } as i64;
                let axes = node.input.get(1).and_then(|name| self.ints(name));
                match axes.map(|axes| axes.iter().map(|&a| if a < 0 { a + wide } else { a }).collect::<Vec<_>>()) {
                    Some(axes) if node.op_type() == "Squeeze" => {
                        (0..from.len()).filter(|a| !axes.contains(&(*a as i64))).nth(at)
                    }
                    Some(axes) if !axes.contains(&(at as i64)) => {
                        Some((0..at).filter(|a| !axes.contains(&(*a as i64))).count())
                    }
                    Some(_) => None,
                    None => same_axis(from, to, at),
                }
            }
            "Reshape" | "Flatten" => same_axis(from, to, at),
            "Gather" => own("axis", 0, from.len()).and_then(|gathered| {
                let new = to.len() + 1 - from.len().min(to.len() + 1);
                if at < gathered { Some(at) } else { (at >= gathered + new).then(|| at + 1 - new) }
            }),
            "Expand" | "Tile" => at.checked_sub(to.len() - from.len().min(to.len())),
            "DepthToSpace" | "SpaceToDepth" | "GatherND" => None,
            "Concat" | "GatherElements" if own("axis", 0, to.len()) == Some(at) => None,
            // Elementwise, or along other axes.
            _ => (from.len() == to.len()).then_some(at),
        };
        // A part of the classes, or several of each, is another distribution.
        let whole = |&at: &usize| from.get(at).is_some_and(|size| same_size(size, to.get(axis_of(axis))));
        place.filter(whole).map_or(Axis::Lost, Axis::At)
    }

    /// What makes a tensor hold probabilities, if something surely does: a
    /// value within 0 and 1 that was made by what makes such.
    fn probabilities(&self, name: &str, axis: Axis, depth: usize) -> Option<String> {
        let node = self.made_by(name).filter(|_| depth > 0)?;
        let named = || Some(format!("{} `{name}`", node.op_type()));
        match node.op_type() {
            "Softmax" => match (axis, self.softmax_axis(node)) {
                // Along other axes than the classes it is a part of the network.
                (Axis::At(at), Some(own)) if at != own => None,
                _ => named(),
            },
            "Sigmoid" | "HardSigmoid" => named(),
            "Exp" => self.made_by(&node.input[0]).filter(|n| n.op_type() == "LogSoftmax").and_then(|_| named()),
            "Div" if self.constants.get(node.input[1].as_str()).is_some_and(|t| within(t, 1.0, f64::MAX)) => {
                self.probabilities(&node.input[0], axis, depth - 1)
            }
            "Div" => {
                let [above, below] = [0, 1].map(|i| self.made_by(&node.input[i]));
                let sums = |n: &NodeProto| n.op_type() == "ReduceSum" && n.input[0] == node.input[0];
                let logistic = |n: &NodeProto| n.op_type() == "Add" && self.adds_exp(n);
                let soft = above.is_some_and(|n| n.op_type() == "Exp") && below.is_some_and(sums);
                let one = self.constants.get(node.input[0].as_str()).is_some_and(|t| within(t, 1.0, 1.0));
                if soft || one && below.is_some_and(logistic) { named() } else { None }
            }
            "Reciprocal" => {
                self.made_by(&node.input[0]).filter(|n| n.op_type() == "Add" && self.adds_exp(n)).and_then(|_| named())
            }
            "Sub" => {
                let one = self.constants.get(node.input[0].as_str()).is_some_and(|t| within(t, 1.0, 1.0));
                one.then(|| self.probabilities(&node.input[1], Axis::Lost.or(axis), depth - 1)).flatten()
            }
            kind if moved(node, true) > 0 && kind != "Concat" => {
                self.probabilities(&node.input[0], self.before(node, name, &node.input[0], axis), depth - 1)
            }
            "Clip" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "AveragePool" | "MaxPool" | "GlobalAveragePool"
            | "GlobalMaxPool" | "Resize" | "Upsample" | "Sqrt" | "Pow" | "Pad" => {
                let axis = if kept_axes(node.op_type()) { axis } else { Axis::Lost.or(axis) };
                self.probabilities(&node.input[0], axis, depth - 1)
            }
            // Around half of a hyperbolic tangent, and the like.
            "Add" if self.is_raised_tanh(node) => named(),
            // Sums of probabilities before they are divided, and those that
            // are kept from zero by a small number.
            "Add" | "Sum" => {
                let small = |name: &String| self.constants.get(name.as_str()).is_some_and(|t| within(t, -SMALL, SMALL));
                let mut found = None;
                for input in node.input.iter().filter(|name| !small(name)) {
                    found = Some(self.probabilities(input, axis, depth - 1)?);
                }
                found
            }
            "Mul" | "Mean" | "Max" | "Min" | "Where" | "Concat" => {
                let first = usize::from(node.op_type() == "Where");
                let mut found = None;
                for input in &node.input[first..] {
                    match self.constants.get(input.as_str()) {
                        Some(tensor) if within(tensor, 0.0, 1.0) => {}
                        _ => found = Some(self.probabilities(input, axis, depth - 1)?),
                    }
                }
                found
            }
            _ => None,
        }
    }

    /// Whether a sum is a hyperbolic tangent, or half of one, raised above zero.
    fn is_raised_tanh(&self, node: &NodeProto) -> bool {
        let raised =
            |by: f64| node.input.iter().any(|i| self.constants.get(i.as_str()).is_some_and(|t| within(t, by, by)));
        let tanh = |name: &String| self.made_by(name).is_some_and(|n| n.op_type() == "Tanh");
        let half = |name: &String| {
            let halved = |n: &NodeProto| matches!(n.op_type(), "Mul" | "Div") && n.input.iter().any(tanh);
            self.made_by(name).is_some_and(halved)
        };
        raised(1.0) && node.input.iter().any(tanh) || raised(0.5) && node.input.iter().any(half)
    }

    /// Whether a sum is `1 + exp(..)`.
    fn adds_exp(&self, node: &NodeProto) -> bool {
        let one = |name: &String| self.constants.get(name.as_str()).is_some_and(|t| within(t, 1.0, 1.0));
        let exp = |name: &String| self.made_by(name).is_some_and(|n| n.op_type() == "Exp");
        node.input.iter().any(one) && node.input.iter().any(exp)
    }
}

impl Axis {
    /// This, unless the other doesn't matter.
    fn or(self, other: Self) -> Self {
        if other == Self::Any { other } else { self }
    }
}

fn axis_of(axis: Axis) -> usize {
    match axis {
        Axis::At(at) => at,
        Axis::Lost | Axis::Any => usize::MAX,
    }
}

/// How many of a node's first inputs it only moves elements of, or changes the
/// floating type of.
fn moved(node: &NodeProto, float: bool) -> usize {
    match node.op_type() {
        "Cast" | "CastLike" => usize::from(float),
        "Resize" => usize::from(Attributes::of(node).text("mode").is_none_or(|mode| mode == "nearest")),
        "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Transpose" | "Dropout" | "Slice" | "Split"
        | "Gather" | "GatherND" | "GatherElements" | "Expand" | "Tile" | "ReverseSequence" | "DepthToSpace"
        | "SpaceToDepth" | "Compress" => 1,
        "Concat" => node.input.len(),
        _ => 0,
    }
}

/// Whether an operator keeps the axes of its first input, all of them.
fn kept_axes(kind: &str) -> bool {
    !kind.starts_with("Reduce")
}

/// Whether all elements of a constant are within two numbers.
fn within(tensor: &TensorProto, low: f64, high: f64) -> bool {
    match tensor_from_proto(tensor).map(|t| t.into_parts().1) {
        Ok(Elements::F32(v)) => v.iter().all(|&x| (low..=high).contains(&f64::from(x))),
        Ok(Elements::F64(v)) => v.iter().all(|&x| (low..=high).contains(&x)),
        _ => false,
    }
}

fn same_size(one: &Dim, other: Option<&Dim>) -> bool {
    matches!(one, Dim::Known(_) | Dim::Symbol(_)) && Some(one) == other
}

/// The axis of `from` that is axis `at` of `to`, where both hold the same
/// elements in the same order: it has the same size, and as many elements
/// before or behind it.
fn same_axis(from: &[Dim], to: &[Dim], at: usize) -> Option<usize> {
    let size = to.get(at)?;
    (0..from.len()).find(|&axis| {
        same_size(&from[axis], Some(size))
            && (same_count(&from[axis + 1..], &to[at + 1..]) || same_count(&from[..axis], &to[..at]))
    })
}

/// Whether sizes surely have the same product.
fn same_count(one: &[Dim], other: &[Dim]) -> bool {
    let count = |dims: &[Dim]| {
        let known = dims.iter().filter_map(Dim::known).try_fold(1u64, u64::checked_mul)?;
        let mut names: Vec<String> = Vec::new();
        for dim in dims {
            match dim {
                Dim::Known(_) => {}
                Dim::Symbol(name) => names.push(name.clone()),
                Dim::Unknown => return None,
            }
        }
        names.sort();
        Some((known, names))
    };
    count(one).is_some_and(|product| Some(product) == count(other))
}

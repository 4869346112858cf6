//! Says plainly what exporters say in a roundabout way, so that folding and
//! gradients see through it.
//!
//! Passes of [`crate::fold`]: [`Casts`] and [`Sequences`].

use std::collections::{BTreeMap, HashMap};

use crate::attributes::Attributes;
use crate::constant::tensor_from_proto;
use crate::emit::{Attribute, Emitter};
use crate::infer::infer_types;
use crate::model::Model;
use crate::onnx::NodeProto;
use crate::rewrite::{Pass, Patch};
use crate::tensor::Elements;

/// A CastLike whose type is known is a Cast: a constant then stays one, though
/// what it is to be like isn't constant.
pub(crate) struct Casts;

impl Pass for Casts {
    fn name(&self) -> &'static str {
        "casts"
    }

    fn patch(&mut self, model: &Model) -> Result<Patch, String> {
        let graph = model.graph();
        let mut patch = Patch::default();
        if !graph.node.iter().any(|n| is(n, "CastLike")) {
            return Ok(patch);
        }
        let types = infer_types(model).unwrap_or_default();
        let mut out = Emitter::new([]);
        for (position, node) in graph.node.iter().enumerate().filter(|(_, n)| is(n, "CastLike")) {
            let dtype = node.input.get(1).and_then(|like| types.get(like)).and_then(|t| t.dtype);
            if let ([x, _], [y], Some(dtype)) = (&node.input[..], &node.output[..], dtype) {
                out.named("Cast", &[x], &[y], &[("to", Attribute::Int(dtype.to_onnx().into()))]);
                patch.remove_nodes.insert(position);
            }
        }
        patch.add_nodes = out.finish().0;
        Ok(patch)
    }
}

/// Sequences whose items are known give way to their items: what was taken out
/// of a sequence at a fixed place, or joined from all of it.
pub(crate) struct Sequences;

impl Pass for Sequences {
    fn name(&self) -> &'static str {
        "sequences"
    }

    fn patch(&mut self, model: &Model) -> Result<Patch, String> {
        let graph = model.graph();
        let mut patch = Patch::default();
        // Before set 13 sizes of a Split were an attribute.
        let known = model.opset("").is_some_and(|version| version >= 13);
        if !known || !graph.node.iter().any(|n| is(n, "SplitToSequence") || is(n, "SequenceConstruct")) {
            return Ok(patch);
        }
        let constants = Constants(graph.initializer.iter().map(|t| (t.name(), t)).collect());
        let types = infer_types(model).unwrap_or_default();
        let taken = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
        let mut out = Emitter::new(taken.chain(graph.initializer.iter().map(|t| t.name())));
        let mut items: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for node in &graph.node {
            let Some(sequence) = node.output.first() else { continue };
            if is(node, "SequenceConstruct") {
                items.insert(sequence, node.input.clone());
            } else if is(node, "SplitToSequence") && node.input.len() == 2 {
                let shape = types.get(&node.input[0]).and_then(|t| t.shape.as_deref());
                let axis = Attributes::of(node).int_or("axis", 0);
                let size = shape.and_then(|s| {
                    let axis = if axis < 0 { axis + s.len() as i64 } else { axis };
                    s.get(usize::try_from(axis).ok()?)?.known()
                });
                if let Some(sizes) = constants.sizes(&node.input[1], size) {
                    let lengths = out.ints(&sizes);
                    let inputs = [node.input[0].as_str(), &lengths];
                    items.insert(sequence, out.ops("Split", &inputs, sizes.len(), &[("axis", Attribute::Int(axis))]));
                }
            }
        }
        for (position, node) in graph.node.iter().enumerate() {
            let Some(items) = node.input.first().and_then(|sequence| items.get(sequence.as_str())) else { continue };
            let Some(y) = node.output.first() else { continue };
            if is(node, "SequenceAt") {
                let place = node.input.get(1).and_then(|name| constants.ints(name)).unwrap_or_default();
                let &[place] = &place[..] else { continue };
                let place = if place < 0 { place + items.len() as i64 } else { place };
                let Some(item) = usize::try_from(place).ok().and_then(|p| items.get(p)) else { continue };
                out.named("Identity", &[item], &[y], &[]);
            } else if is(node, "ConcatFromSequence") && !items.is_empty() {
                let axis = Attributes::of(node).int_or("axis", 0);
                let mut parts = items.clone();
                if Attributes::of(node).flag("new_axis") {
                    let axes = out.ints(&[axis]);
                    parts = parts.iter().map(|part| out.op("Unsqueeze", &[part, &axes], &[])).collect();
                }
                let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
                out.named("Concat", &parts, &[y], &[("axis", Attribute::Int(axis))]);
            } else {
                continue;
            }
            patch.remove_nodes.insert(position);
        }
        if !patch.remove_nodes.is_empty() {
            (patch.add_nodes, patch.add_constants) = out.finish();
        }
        Ok(patch)
    }
}

fn is(node: &NodeProto, kind: &str) -> bool {
    node.op_type() == kind && node.domain().is_empty()
}

/// Initialisers by name.
struct Constants<'m>(HashMap<&'m str, &'m crate::onnx::TensorProto>);

impl Constants<'_> {
    fn ints(&self, name: &str) -> Option<Vec<i64>> {
        match tensor_from_proto(self.0.get(name)?).ok()?.into_parts().1 {
            Elements::I64(values) => Some(values),
            Elements::I32(values) => Some(values.into_iter().map(i64::from).collect()),
            _ => None,
        }
    }

    /// Sizes of the parts of an axis: said one by one, or as the size of each
    /// but the last.
    fn sizes(&self, split: &str, axis: Option<u64>) -> Option<Vec<i64>> {
        let values = self.ints(split)?;
        if !self.0.get(split)?.dims.is_empty() {
            return Some(values);
        }
        let (each, mut left) = (values.first().copied().filter(|e| *e > 0)?, i64::try_from(axis?).ok()?);
        let mut sizes = Vec::new();
        while left > 0 && sizes.len() < PARTS_MAX {
            sizes.push(each.min(left));
            left -= each;
        }
        (left <= 0 && !sizes.is_empty()).then_some(sizes)
    }
}

/// Parts of one axis at most; a file that splits into more means a loop.
const PARTS_MAX: usize = 1_024;

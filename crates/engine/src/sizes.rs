//! What is known of a run before it begins: the bytes it takes at most, the
//! largest tensor, and the longest that one operator computes.
//!
//! Sizes follow from what a caller gives: from shapes, and from values, as in
//! Range, Expand or ConstantOfShape. What can be followed is worked out from
//! the inputs alone, with shape inference; what can't is said to be unknown.
//! Who asks: `apart` with shapes, to decide where a model runs, and `bounds`
//! with the inputs themselves, to refuse a run that wouldn't fit.

use std::collections::BTreeMap;

use tierline_graph::infer::Largest;
use tierline_graph::onnx::GraphProto;
use tierline_graph::{
    Dim, InferError, Model, Tensor, Types, ValueInfo, cost, infer_types_of, infer_types_with, memory,
};

/// Sizes that stand for free axes when a model is judged before a request
/// says what they are; the first that doesn't contradict the model counts.
const STAND_INS: [u64; 5] = [1, 2, 16, 64, 224];

/// What the sizes of a model's runs are worked out from: its graph, without
/// the data of its weights.
pub(crate) struct Sizes {
    outline: Model,
    /// Whether anything but shapes decides how much is computed: graphs that
    /// operators run as often as they like, functions.
    has_bodies: bool,
}

/// A run of which the types of all tensors are known, as far as they follow.
pub(crate) struct Run<'s> {
    outline: &'s Model,
    has_bodies: bool,
    types: Types,
}

impl Run<'_> {
    /// Whether every tensor's size is known; else it depends on values, or on
    /// how often a body runs, and the rest is what is known of it.
    pub(crate) fn is_known(&self) -> bool {
        let mut names = self.outline.graph().node.iter().flat_map(|node| &node.output).filter(|name| !name.is_empty());
        let known = |v: &ValueInfo| v.shape.iter().flatten().all(|d| matches!(d, Dim::Known(_))) && v.bytes().is_some();
        !self.has_bodies && names.all(|name| self.types.get(name).is_some_and(known))
    }

    /// Bytes of all tensors at the time when they are most, weights included.
    pub(crate) fn bytes(&self) -> u64 {
        memory::peak(self.outline, &self.types, 1)
    }

    /// Bytes of the weights, which are there before a run.
    pub(crate) fn weights(&self) -> u64 {
        let weights = self.outline.graph().initializer.iter();
        weights.filter_map(|t| self.types.get(t.name())?.bytes()).fold(0, u64::saturating_add)
    }

    /// The largest tensor.
    pub(crate) fn largest(&self) -> Option<&Largest> {
        self.types.largest()
    }

    /// Multiply-adds of the longest operator.
    pub(crate) fn longest(&self) -> u64 {
        cost::cost(self.outline, &self.types).iter().filter_map(|c| c.macs).max().unwrap_or(0)
    }
}

impl Sizes {
    pub(crate) fn new(model: &Model) -> Self {
        let has_bodies = has_bodies(model.graph()) || !model.proto().functions.is_empty();
        Self { outline: model.outline(), has_bodies }
    }

    /// Whether the model leaves no axis of its inputs free, nor their rank.
    pub(crate) fn is_fixed(&self) -> bool {
        let fixed =
            |v: &ValueInfo| v.shape.as_ref().is_some_and(|s| !s.is_empty() && s.iter().all(|d| d.known().is_some()));
        self.outline.inputs().iter().all(fixed)
    }

    /// A run at the shapes that the model declares; free axes are small, for the
    /// time being. `None` when it contradicts itself, or with no size of free
    /// axes is known.
    pub(crate) fn declared(&self) -> Option<Run<'_>> {
        if self.is_fixed() {
            return self.at(&BTreeMap::new());
        }
        let shapes = |size: u64| {
            let inputs = self.outline.inputs();
            let shape = |v: &ValueInfo| {
                let sizes = v.shape.as_ref()?.iter().map(|d| d.known().unwrap_or(size)).collect();
                Some((v.name.clone(), sizes))
            };
            inputs.iter().filter_map(shape).collect::<BTreeMap<String, Vec<u64>>>()
        };
        STAND_INS.iter().filter_map(|&size| self.at(&shapes(size))).find(Run::is_known)
    }

    /// A run on inputs of these shapes; `None` when they contradict the model.
    pub(crate) fn at(&self, shapes: &BTreeMap<String, Vec<u64>>) -> Option<Run<'_>> {
        self.run(infer_types_with(&self.outline, shapes))
    }

    /// A run on these inputs, values followed; `None` when they contradict the
    /// model.
    pub(crate) fn of(&self, inputs: &[(&str, &Tensor)]) -> Option<Run<'_>> {
        self.run(infer_types_of(&self.outline, inputs))
    }

    fn run(&self, types: Result<Types, InferError>) -> Option<Run<'_>> {
        Some(Run { outline: &self.outline, has_bodies: self.has_bodies, types: types.ok()? })
    }
}

/// Whether an operator runs graphs of its own (If, Loop, Scan and their like).
fn has_bodies(graph: &GraphProto) -> bool {
    graph.node.iter().any(|node| node.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty()))
}

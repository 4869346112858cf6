//! What is known of a run before it begins: the bytes it takes at most, and
//! the longest that one operator computes.

use std::collections::BTreeMap;

use tierline_graph::onnx::GraphProto;
use tierline_graph::{Dim, Model, ValueInfo, cost, infer_types_with};

use crate::profiler::memory;

/// Multiply-adds of one operator that may run where it can't be killed: no
/// engine stops within an operator, and this is some seconds on a small device.
pub(super) const KERNEL_MACS_MAX: u64 = 100_000_000_000;

/// Sizes that stand for free axes when a model is judged before a request
/// says what they are; the first that doesn't contradict the model counts.
const STAND_INS: [u64; 5] = [1, 2, 16, 64, 224];

/// What a run needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Need {
    /// Every tensor's size is known.
    Known {
        /// Weights and the most that is alive at once.
        bytes: u64,
        /// Multiply-adds of the longest operator.
        longest: u64,
    },
    /// It depends on values, or on how often a body runs.
    Unknown,
}

/// Whether the model leaves no axis of its inputs free.
pub(super) fn is_fixed(model: &Model) -> bool {
    let fixed = |v: &ValueInfo| v.shape.as_ref().is_some_and(|s| s.iter().all(|d| d.known().is_some()));
    model.inputs().iter().all(fixed)
}

/// What a run needs at the shapes that the model declares; free axes are
/// small, for the time being.
pub(super) fn need(model: &Model) -> Need {
    if is_fixed(model) {
        return need_at(model, &BTreeMap::new());
    }
    let shapes = |size: u64| {
        let inputs = model.inputs();
        let shape = |v: &ValueInfo| {
            let sizes = v.shape.as_ref()?.iter().map(|d| d.known().unwrap_or(size)).collect();
            Some((v.name.clone(), sizes))
        };
        inputs.iter().filter_map(shape).collect::<BTreeMap<String, Vec<u64>>>()
    };
    let needs = STAND_INS.iter().map(|&size| need_at(model, &shapes(size)));
    needs.into_iter().find(|need| *need != Need::Unknown).unwrap_or(Need::Unknown)
}

/// What a run needs when the inputs have these shapes.
pub(super) fn need_at(model: &Model, shapes: &BTreeMap<String, Vec<u64>>) -> Need {
    if has_bodies(model.graph()) || !model.proto().functions.is_empty() {
        return Need::Unknown;
    }
    let Ok(types) = infer_types_with(model, shapes) else { return Need::Unknown };
    let mut names = model.graph().node.iter().flat_map(|node| &node.output).filter(|name| !name.is_empty());
    let known = |v: &ValueInfo| v.shape.iter().flatten().all(|d| matches!(d, Dim::Known(_))) && v.bytes().is_some();
    if !names.all(|name| types.get(name).is_some_and(known)) {
        return Need::Unknown;
    }
    let costs = cost::cost(model, &types);
    let longest = costs.iter().filter_map(|c| c.macs).max().unwrap_or(0);
    Need::Known { bytes: memory::bytes(model, &types), longest }
}

/// Whether an operator runs graphs of its own (If, Loop, Scan and their like).
fn has_bodies(graph: &GraphProto) -> bool {
    graph.node.iter().any(|node| node.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty()))
}

#[cfg(test)]
mod tests {
    use tierline_zoo::{Batch, Options};

    use super::*;

    /// Models in use are known before they run: none of them pays for the others.
    #[test]
    fn the_zoo_is_known_before_it_runs() {
        for (name, build) in tierline_zoo::MODELS {
            for batch in [Batch::Fixed(1), Batch::Free] {
                let model = build(&Options { batch, ..Options::default() });
                let Need::Known { bytes, longest } = need(&model) else { panic!("{name} is not known") };
                assert!(bytes > 0 && longest < KERNEL_MACS_MAX, "{name}: {bytes} bytes, {longest} multiply-adds");
            }
        }
    }
}

//! What a graph's tensors take in memory while it runs.

use std::collections::HashMap;

use crate::index::Index;
use crate::infer::Types;
use crate::model::Model;
use crate::tensor::DataType;
use crate::types::ValueInfo;

/// Bytes of all tensors at the time when they are most, constants and inputs
/// included: nodes run in the file's order, each value goes after its last
/// reader, and every size that is free counts as `free`.
///
/// Values of unknown rank don't count; nor does what kernels need besides.
#[must_use]
pub fn peak(model: &Model, types: &Types, free: u64) -> u64 {
    let index = Index::new(model);
    let graph = index.graph;
    let end = index.order.len();
    let mut last: HashMap<&str, usize> = HashMap::new();
    for (place, &node) in index.order.iter().enumerate() {
        last.extend(index.reads[node].iter().map(|name| (*name, place)));
    }
    last.extend(graph.output.iter().map(|o| (o.name(), end)));
    let size = |name: &str| types.get(name).map_or(0, |info| bytes(info, free));
    let constants = graph.initializer.iter().map(|t| t.name());
    let inputs = graph.input.iter().map(|i| i.name());
    let given: std::collections::HashSet<&str> = constants.chain(inputs).collect();
    let always = given.iter().map(|name| size(name)).fold(0, u64::saturating_add);
    let mut dying: Vec<u64> = vec![0; end + 1];
    let (mut live, mut most) = (always, always);
    for (place, &node) in index.order.iter().enumerate() {
        for name in graph.node[node].output.iter().filter(|o| !o.is_empty()) {
            let size = size(name);
            live = live.saturating_add(size);
            let dies = &mut dying[last.get(name.as_str()).copied().unwrap_or(place)];
            *dies = dies.saturating_add(size);
        }
        most = most.max(live);
        live = live.saturating_sub(dying[place]);
    }
    most
}

/// Bytes of a tensor, every free size taken as `free`; 0 where the rank or the
/// type is unknown.
#[must_use]
pub(crate) fn bytes(info: &ValueInfo, free: u64) -> u64 {
    let width = info.dtype.and_then(DataType::size).unwrap_or(0) as u64;
    let Some(shape) = &info.shape else { return 0 };
    shape.iter().map(|d| d.known().unwrap_or(free)).fold(width, u64::saturating_mul)
}

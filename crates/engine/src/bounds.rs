//! Whether a run would fit into memory, told before it.
//!
//! An engine that can't have memory ends the process. What a run takes follows
//! from its inputs (`sizes`); what can't be followed is left to the engine.

use std::collections::HashSet;

use tierline_graph::index::reads;
use tierline_graph::infer::Largest;
use tierline_graph::onnx::{GraphProto, NodeProto};
use tierline_graph::{Model, Tensor};

use crate::error::EngineError;
use crate::sizes::Sizes;

/// What is needed to tell the sizes of a run.
pub(crate) struct Bounds {
    engine: &'static str,
    sizes: Sizes,
    /// Inputs whose values decide sizes.
    sizing: HashSet<String>,
    /// The last inputs found to fit: shapes, and values where they count.
    fitted: Option<Vec<Seen>>,
}

#[derive(PartialEq)]
enum Seen {
    Shape(Vec<usize>),
    Value(Tensor),
}

impl Bounds {
    pub(crate) fn new(engine: &'static str, model: &Model) -> Self {
        Self { engine, sizes: Sizes::new(model), sizing: sizing(model), fitted: None }
    }

    /// Refuses a run on `inputs` whose tensors don't fit into `available` bytes.
    pub(crate) fn check(&mut self, inputs: &[(&str, &Tensor)], available: impl Fn() -> u64) -> Result<(), EngineError> {
        let seen = |(name, tensor): &(&str, &Tensor)| {
            if self.sizing.contains(*name) {
                Seen::Value((*tensor).clone())
            } else {
                Seen::Shape(tensor.shape().to_vec())
            }
        };
        let seen: Vec<Seen> = inputs.iter().map(seen).collect();
        if self.fitted.as_ref() == Some(&seen) {
            return Ok(());
        }
        // What contradicts itself is the engine's to refuse.
        let Some(run) = self.sizes.of(inputs) else { return Ok(()) };
        let available = available();
        refuse(self.engine, run.largest(), available)?;
        // Weights are there already.
        let more = run.bytes().saturating_sub(run.weights());
        if more > available {
            let reason = format!("all tensors together take {more} bytes at these inputs; {available} are free");
            return Err(EngineError::Memory { engine: self.engine, reason });
        }
        self.fitted = Some(seen);
        Ok(())
    }
}

/// Refuses a tensor of more bytes than there are.
pub(crate) fn refuse(engine: &'static str, largest: Option<&Largest>, available: u64) -> Result<(), EngineError> {
    let Some(Largest { node, tensor, bytes }) = largest.filter(|l| l.bytes > available) else { return Ok(()) };
    let reason = format!("node `{node}` makes tensor `{tensor}` of {bytes} bytes; {available} are free");
    Err(EngineError::Memory { engine, reason })
}

/// Bytes that this process may still take: of the machine, and of the group
/// that it runs in; without limit where the system doesn't tell.
pub(crate) fn available() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let number = |text: String| text.trim().parse::<u64>().ok();
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?.trim();
        line.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let max = read("/sys/fs/cgroup/memory.max").and_then(number);
    let used = read("/sys/fs/cgroup/memory.current").and_then(number);
    let group = max.zip(used).map(|(max, used)| max.saturating_sub(used));
    machine.into_iter().chain(group).min().unwrap_or(u64::MAX)
}

/// Inputs of nodes that say how large their output is.
fn operands(operator: &str) -> &'static [usize] {
    match operator {
        "ConstantOfShape" | "HannWindow" | "HammingWindow" | "BlackmanWindow" | "Loop" => &[0],
        "Range" | "MelWeightMatrix" => &[0, 1, 2],
        "Expand" | "Tile" | "Pad" | "OneHot" | "Upsample" | "AffineGrid" | "CenterCropPad" | "Reshape" => &[1],
        "Resize" => &[1, 2, 3],
        "MaxUnpool" | "Col2Im" => &[1, 2],
        _ => &[],
    }
}

/// Inputs of a model whose values decide the size of some tensor: followed
/// back from operands that are sizes, as far as shapes.
fn sizing(model: &Model) -> HashSet<String> {
    let graph = model.graph();
    let mut wanted: HashSet<&str> = HashSet::new();
    for node in graph.node.iter().rev() {
        let shapes_only = matches!(node.op_type(), "Shape" | "Size");
        let decides = node.output.iter().any(|o| wanted.contains(o.as_str())) && !shapes_only;
        // What a body does with what it captures isn't followed.
        if decides || bodies(node).any(sizes_inside) {
            wanted.extend(reads(node));
        } else {
            wanted.extend(operands(node.op_type()).iter().filter_map(|&i| node.input.get(i)).map(String::as_str));
        }
    }
    graph.input.iter().map(|i| i.name()).filter(|name| wanted.contains(name)).map(str::to_owned).collect()
}

fn bodies(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs))
}

fn sizes_inside(graph: &GraphProto) -> bool {
    graph.node.iter().any(|n| !operands(n.op_type()).is_empty() || bodies(n).any(sizes_inside))
}

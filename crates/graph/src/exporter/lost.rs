//! Parameters that an exporter computed away, and how to export a model that
//! has them.

use std::collections::HashSet;

use crate::onnx::GraphProto;

use super::names::is_older_constant;
use super::notes::{computed_of, left_out};

/// A parameter that isn't trained as it was, and why.
pub(crate) struct Lost {
    pub(crate) parameter: String,
    /// The constant that was computed of it, and is in the file.
    computed: Option<String>,
    pub(crate) reason: String,
}

impl Lost {
    /// Names that it goes by.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.computed.iter().map(String::as_str).chain([self.parameter.as_str()])
    }
}

/// Parameters that a step with these weights doesn't train as they were, each
/// once.
pub(crate) fn lost(graph: &GraphProto, trained: &HashSet<&str>) -> Vec<Lost> {
    let mut found = gone(graph, trained);
    found.extend(joined(graph, trained));
    let reason = "the exporter left it out of the file, as it does with biases of zeros and with normalisations that it \
                  joins to a layer; export the model with optimize=False, which keeps them";
    let left_out = left_out(graph).map(|name| (name, reason));
    found.extend(left_out.map(|(name, reason)| Lost {
        parameter: name.to_owned(),
        computed: None,
        reason: reason.to_owned(),
    }));
    found
}

/// Parameters of PyTorch's module that the file doesn't have any more.
fn gone(graph: &GraphProto, trained: &HashSet<&str>) -> Vec<Lost> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for tensor in &graph.initializer {
        let name = tensor.name();
        let is = if trained.contains(name) { "is trained in its place" } else { "stays as it is" };
        for parameter in computed_of(tensor).filter(|p| seen.insert(*p)) {
            let reason = format!(
                "the exporter computed `{name}` of it, which {is}; export the model with optimize=False, which keeps its \
                 parameters apart"
            );
            found.push(Lost { parameter: parameter.to_owned(), computed: Some(name.to_owned()), reason });
        }
    }
    found
}

/// Weights that PyTorch's older exporter computed of parameters and that are
/// trained in their place. Where it joins a batch normalisation to a layer it
/// computes the bias, too: that is the layer's weight as well as any.
fn joined(graph: &GraphProto, trained: &HashSet<&str>) -> Vec<Lost> {
    let layers = graph.node.iter().filter(|n| matches!(n.op_type(), "Conv" | "ConvTranspose" | "Gemm"));
    let weights = layers.filter_map(|node| {
        let is_made = |i: usize| node.input.get(i).is_some_and(|name| is_older_constant(name));
        let weight = node.input.get(1).filter(|name| trained.contains(name.as_str()))?;
        (is_made(1) && !is_made(2)).then_some(weight)
    });
    let reason = "the exporter computed it of parameters that the file hasn't, and it is trained in their place; export the \
                  model with do_constant_folding=False, which keeps them apart";
    let mut seen = HashSet::new();
    let new = weights.filter(|name| seen.insert(name.as_str()));
    new.map(|name| Lost { parameter: name.clone(), computed: None, reason: reason.to_owned() }).collect()
}

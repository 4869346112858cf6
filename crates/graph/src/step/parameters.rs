//! Which constants of a model are weights.
//!
//! An ONNX file doesn't say. A floating-point constant is a weight where a
//! layer learns it: kernels and biases, both sides of a product, scales and
//! biases of normalisations, slopes, embeddings, recurrent weights, and what
//! is added, multiplied or concatenated with more than one element (biases
//! apart from their product, layer scales, class tokens, positions). Where a
//! weight is computed of constants, its parts are the weights: direction and
//! length of a normalised kernel, factors of a low-rank change, a temperature
//! behind Exp. Divisors, subtrahends, exponents, bounds, masks and single
//! numbers are constants of the architecture, unless the file notes that they
//! are learned, and so is what an exporter wrote as Constant nodes, or gave a
//! normalisation without weights. Running statistics follow the data, not a
//! gradient.

use std::collections::HashSet;

use super::StepError;
use crate::exporter::{is_noted, neutral};
use crate::index::Index;
use crate::model::Model;
use crate::onnx::TensorProto;
use crate::tensor::DataType;
use crate::weights::{is_mask, is_trainable_type, learned};

/// Names of weights, in the file's order.
pub(super) struct Found {
    /// All there are.
    pub(super) all: Vec<String>,
    /// Those that match no pattern: the ones to train.
    pub(super) trained: Vec<String>,
}

/// The weights of a model, and which of them are to be trained. Patterns may
/// also name a batch normalisation without weights by its running mean.
pub(super) fn find(model: &Model, freeze: &[String]) -> Result<Found, StepError> {
    let index = Index::new(model);
    let mut learned = learned(&index, &HashSet::new());
    for name in neutral(&index, false) {
        learned.remove(name);
    }
    let graph = model.graph();
    let inputs: HashSet<&str> = graph.input.iter().map(|i| i.name()).collect();
    let weights: Vec<&TensorProto> =
        graph.initializer.iter().filter(|t| learned.contains(t.name()) && !inputs.contains(t.name())).collect();
    let masks = |t: &TensorProto| is_mask(t) && !is_noted(t);
    let found = weights.iter().filter(|t| is_trainable_type(t) && !masks(t));
    let found: Vec<&str> = found.map(|t| t.name()).collect();
    if found.is_empty() {
        return Err(StepError::NoParameters { reason: reason(model, &weights) });
    }
    for pattern in freeze {
        if !found.iter().copied().chain(super::normalise::means(model)).any(|name| matches(pattern, name)) {
            let examples = found.iter().take(5).map(|n| format!("`{n}`")).collect();
            return Err(StepError::Freeze { pattern: pattern.clone(), count: found.len(), examples });
        }
    }
    let all: Vec<String> = found.into_iter().map(str::to_owned).collect();
    let trained: Vec<String> = all.iter().filter(|n| !freeze.iter().any(|p| matches(p, n))).cloned().collect();
    if trained.is_empty() {
        return Err(StepError::NoParameters { reason: ": all of them are frozen".to_owned() });
    }
    Ok(Found { all, trained })
}

fn reason(model: &Model, weights: &[&TensorProto]) -> String {
    if model.graph().node.iter().any(|n| n.op_type().contains("Linear") || n.op_type().contains("Integer")) {
        return ": it is quantised to integers, which have no gradients; train the floating-point model and quantise \
                the result"
            .to_owned();
    }
    match weights.first().and_then(|t| DataType::from_onnx(t.data_type())) {
        Some(dtype @ (DataType::F16 | DataType::BF16)) => {
            format!(": its weights are {dtype}; export the model in f32")
        }
        _ => String::new(),
    }
}

/// Whether a name matches a pattern: `*` is any characters, `?` one.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if p < pattern.len() && pattern[p] == '*' {
            star = Some((p, n));
            p += 1;
        } else if p < pattern.len() && (pattern[p] == '?' || pattern[p] == name[n]) {
            p += 1;
            n += 1;
        } else if let Some((at, from)) = star {
            // The last star takes one character more.
            star = Some((at, from + 1));
            p = at + 1;
            n = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("features.*", "features.0.weight", true),
            ("*.bias", "features.0.bias", true),
            ("*.bias", "features.0.bias.x", false),
            ("*a*b?", "xxaxxabc", true),
            ("?", "", false),
            ("*", "", true),
            ("exact", "exact", true),
            ("exact", "exactly", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}

//! Constants of the architecture, which exporters write as Constant nodes:
//! weights are initialisers.

use std::collections::HashSet;

use crate::constant::tensor_from_proto;
use crate::emit::{Attribute, Emitter};
use crate::index::{Index, is_function_of_inputs};
use crate::model::Model;
use crate::onnx::TensorProto;
use crate::rewrite::{Pass, Patch};
use crate::weights::{TABLES, constants, is_float, learned, makes_mask};

use super::neutral::neutral;

/// Constants that an exporter stated where a layer could learn them become
/// Constant nodes again: weights are initialisers, here as in most files, and
/// whoever trains the model, or a slice of it, tells them apart by that.
pub(crate) struct Stated {
    /// Of all constants that no weight takes part in.
    names: HashSet<String>,
}

impl Stated {
    /// Those of a model before anything is folded; `said` are initialisers that
    /// are stated by what the file says of them.
    pub(crate) fn of(model: &Model, said: HashSet<String>) -> Self {
        Self { names: stated(model, said) }
    }

    /// Those that stand where a layer could learn them, and are stated: all,
    /// or the neutral ones of a file that keeps its weights so.
    fn kept<'m>(&self, index: &Index<'m>) -> Vec<&'m TensorProto> {
        let given: HashSet<&str> = index.graph.input.iter().map(|i| i.name()).collect();
        let learned = learned(index, &HashSet::new());
        let here = |t: &&TensorProto| is_float(t) && learned.contains(t.name()) && !given.contains(t.name());
        let constants: Vec<&TensorProto> = index.graph.initializer.iter().filter(here).collect();
        let mut kept: Vec<&TensorProto> = constants.iter().copied().filter(|t| self.names.contains(t.name())).collect();
        if kept.len() == constants.len() {
            // A file that keeps its weights in Constant nodes, too.
            let neutral = neutral(index, true);
            kept.retain(|t| neutral.contains(t.name()));
        }
        kept
    }

    /// What is no weight, before anything is folded.
    pub(crate) fn no_weights(&self, model: &Model) -> HashSet<String> {
        let index = Index::new(model);
        let learned = learned(&index, &HashSet::new());
        let mut weights = index.graph.initializer.iter().filter(|t| is_float(t) && learned.contains(t.name()));
        if weights.all(|t| self.names.contains(t.name())) {
            return self.kept(&index).into_iter().map(|t| t.name().to_owned()).collect();
        }
        self.names.clone()
    }
}

impl Pass for Stated {
    fn name(&self) -> &'static str {
        "stated"
    }

    fn patch(&mut self, model: &Model) -> Result<Patch, String> {
        let kept = self.kept(&Index::new(model));
        let mut out = Emitter::new([]);
        for constant in &kept {
            let value = tensor_from_proto(constant).map_err(|e| e.to_string())?;
            out.named("Constant", &[], &[constant.name()], &[("value", Attribute::Tensor(value))]);
        }
        Ok(Patch {
            remove_constants: kept.iter().map(|t| t.name().to_owned()).collect(),
            add_nodes: out.finish().0,
            ..Patch::default()
        })
    }
}

/// Names of constants that come of Constant nodes and sizes alone, or are masks
/// and tables of positions: exporters keep weights as initialisers, and write
/// constants of the architecture so.
/// `said` are initialisers that are none, and stated as well.
fn stated(model: &Model, said: HashSet<String>) -> HashSet<String> {
    let index = Index::new(model);
    let floats = index.graph.initializer.iter().filter(|t| is_float(t) && !said.contains(t.name()));
    let mut weights: HashSet<&str> = floats.map(|t| t.name()).collect();
    let mut stated = said;
    let constants = constants(&index);
    for &position in &index.order {
        let node = &index.graph.node[position];
        let outputs = node.output.iter().filter(|o| !o.is_empty());
        // Of a weight's sizes nothing is learned.
        let sizes = matches!(node.op_type(), "Shape" | "Size");
        let of_weights = || !sizes && index.reads[position].iter().any(|name| weights.contains(name));
        let fixed = outputs.clone().any(|o| !index.is_dynamic(o));
        let mere = fixed && (TABLES.contains(&node.op_type()) || makes_mask(node, &constants));
        if !is_function_of_inputs(node) || !mere && of_weights() {
            weights.extend(outputs.map(String::as_str));
        } else {
            stated.extend(outputs.filter(|o| !index.is_dynamic(o)).cloned());
        }
    }
    stated
}

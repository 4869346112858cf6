//! Element type and shape of every tensor, without running anything.
//!
//! One pass over the nodes, each by the rule of its operator (`registry.rs`
//! lists them; one file per family). Small tensors are followed element by
//! element (`value.rs`), so that shapes computed by the graph itself resolve.
//! What isn't known stays unknown; what contradicts itself is an error.
//! Start at [`infer_types`]; to add an operator see `docs/adding-type-rules.md`.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};

use crate::Model;
use crate::types::{Dim, ValueInfo};

mod dims;
mod error;
mod op;
mod registry;
mod scope;
mod value;

mod arithmetic;
mod attention;
mod classic;
mod contrib;
mod control;
mod conv;
mod elementwise;
mod gather;
mod generate;
mod join;
mod matmul;
mod norm;
mod pool;
mod quantize;
mod recurrent;
mod reduce;
mod resize;
mod sequence;
mod shape;
mod signal;
mod text;
mod window;

pub(crate) use dims::axis_index;
pub use error::InferError;

/// Subgraphs and functions nest this deep at most: models in use nest two or
/// three levels, and inference recurses.
pub const DEPTH_MAX: usize = 32;

/// Nodes inferred at most, counting a function's at every call and a loop
/// body's in every round: a small file can describe exponentially many.
pub const NODES_MAX: u64 = 4_000_000;

/// Types of a graph's tensors, by name: inputs, initialisers, and every
/// node's outputs. Values inside If/Loop/Scan bodies aren't listed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Types {
    map: HashMap<String, ValueInfo>,
}

impl Types {
    /// What is known of a tensor; `None` for a name the graph doesn't have.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&ValueInfo> {
        self.map.get(name)
    }

    /// All tensors, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &ValueInfo> {
        self.map.values()
    }

    /// Number of tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are no tensors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

impl FromIterator<ValueInfo> for Types {
    fn from_iter<I: IntoIterator<Item = ValueInfo>>(values: I) -> Self {
        Self { map: values.into_iter().map(|v| (v.name.clone(), v)).collect() }
    }
}

/// Infers every tensor's element type and shape, with the axes that the
/// model leaves free kept as symbols where they can be followed.
///
/// Operators without a rule leave their outputs unknown.
///
/// # Errors
/// [`InferError`] when shapes or types contradict each other.
pub fn infer_types(model: &Model) -> Result<Types, InferError> {
    infer_types_with(model, &BTreeMap::new())
}

/// [`infer_types`] with concrete shapes for some or all inputs. A named axis
/// takes its size in every input that names it.
///
/// # Errors
/// As [`infer_types`]; also when `inputs` names an input that isn't there or
/// gives it a shape that the model doesn't take.
pub fn infer_types_with(model: &Model, inputs: &BTreeMap<String, Vec<u64>>) -> Result<Types, InferError> {
    let graph = model.graph();
    let free = model.inputs();
    if let Some(name) = inputs.keys().find(|name| !free.iter().any(|v| v.name == **name)) {
        let available: Vec<String> = free.iter().map(|v| format!("`{}`", v.name)).collect();
        return Err(InferError::UnknownInput { name: name.clone(), available: available.join(", ") });
    }
    let mut declared: Vec<value::Value> =
        graph.input.iter().map(|v| v.type_.as_ref().map(scope::declared_value).unwrap_or_default()).collect();
    let given: Vec<Option<&[u64]>> = graph.input.iter().map(|v| inputs.get(v.name()).map(Vec::as_slice)).collect();
    let bound = scope::bind(&declared, &given);
    for ((input, value), given) in graph.input.iter().zip(&mut declared).zip(&given) {
        value.shape = input_shape(input.name(), value.shape.take(), *given, &bound)?;
    }

    let functions = scope::functions(model.proto());
    let env = scope::Env {
        functions: &functions,
        opsets: &model.proto().opset_import,
        attributes: HashMap::new(),
        depth: 0,
        nodes: &Cell::new(0),
    };
    let mut scope = scope::Scope::default();
    scope.values.extend(graph.input.iter().map(|v| v.name()).zip(declared));
    scope::infer_graph(&env, &mut scope, graph)?;
    let info = |(name, v): (&str, value::Value)| ValueInfo { name: name.to_owned(), dtype: v.dtype, shape: v.shape };
    Ok(scope.values.into_iter().map(info).collect())
}

/// An input's shape: the caller's sizes where given, else the model's.
fn input_shape(
    name: &str,
    declared: Option<Vec<Dim>>,
    given: Option<&[u64]>,
    bound: &BTreeMap<String, u64>,
) -> Result<Option<Vec<Dim>>, InferError> {
    let size = |dim: &Dim| match dim {
        Dim::Symbol(s) => bound.get(s).map_or_else(|| dim.clone(), |n| Dim::Known(*n)),
        other => other.clone(),
    };
    let Some(given) = given else { return Ok(declared.map(|s| s.iter().map(size).collect())) };
    let fits = |declared: &Vec<Dim>| {
        declared.len() == given.len() && declared.iter().zip(given).all(|(d, g)| d.known().is_none_or(|d| d == *g))
    };
    match declared {
        Some(declared) if !fits(&declared) => {
            Err(InferError::InputShape { name: name.to_owned(), declared, given: given.to_vec() })
        }
        _ => Ok(Some(given.iter().map(|n| Dim::Known(*n)).collect())),
    }
}

/// Operators that have a rule, as (domain, name), sorted; `""` is the default
/// domain. Outputs of others stay unknown.
#[must_use]
pub fn operators() -> Vec<(&'static str, &'static str)> {
    registry::operators()
}

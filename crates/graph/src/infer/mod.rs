//! Element type and shape of every tensor, without running anything.
//!
//! One pass over the nodes, each by the rule of its operator (`registry.rs`
//! lists them; one file per family). Small tensors are followed element by
//! element (`value.rs`), so that shapes computed by the graph itself resolve.
//! What isn't known stays unknown; what contradicts itself is an error.
//! Start at [`infer_types`]; to add an operator see `docs/design/type-rules.md`.

use std::collections::{BTreeMap, HashMap};

use crate::Model;
use crate::tensor::Tensor;
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
pub use error::{Contradiction, InferError};
pub(crate) use value::ELEMENTS_MAX as FOLLOWED_MAX;

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
    contradictions: Vec<Contradiction>,
    largest: Option<Largest>,
}

/// The tensor of most bytes that a node makes, in bodies and functions too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Largest {
    /// The node.
    pub node: String,
    /// The tensor.
    pub tensor: String,
    /// Its bytes; more than a number holds count as the largest number.
    pub bytes: u64,
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

    /// Declared shapes that the model's nodes contradict.
    #[must_use]
    pub fn contradictions(&self) -> &[Contradiction] {
        &self.contradictions
    }

    /// The largest tensor that a node makes, of those whose size is known.
    #[must_use]
    pub fn largest(&self) -> Option<&Largest> {
        self.largest.as_ref()
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
        Self { map: values.into_iter().map(|v| (v.name.clone(), v)).collect(), ..Self::default() }
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
    infer(model, inputs, &scope::Run::default())
}

/// Types as they are in a run on these inputs: their shapes count, and the
/// values of those that are small, from which sizes may follow.
///
/// # Errors
/// As [`infer_types_with`].
pub fn infer_types_of(model: &Model, inputs: &[(&str, &Tensor)]) -> Result<Types, InferError> {
    let shape = |t: &Tensor| t.shape().iter().map(|&d| d as u64).collect();
    let shapes = inputs.iter().map(|(name, t)| ((*name).to_owned(), shape(t))).collect();
    let values = inputs.iter().map(|(name, t)| ((*name).to_owned(), value::Value::of(t))).collect();
    infer(model, &shapes, &scope::Run { inputs: values, ..scope::Run::default() })
}

/// [`infer_types`] from the operators and the inputs alone: shapes that the
/// model declares of what its nodes make are left aside. Exporters write the
/// sizes of their sample there, which would fix axes that are free.
///
/// # Errors
/// As [`infer_types`].
pub fn infer_computed_types(model: &Model) -> Result<Types, InferError> {
    infer(model, &BTreeMap::new(), &scope::Run { computed_only: true, ..scope::Run::default() })
}

/// An input that is declared without axes is a scalar, unless that contradicts
/// the model: exporters write the same for a rank that they don't know.
fn infer(model: &Model, inputs: &BTreeMap<String, Vec<u64>>, run: &scope::Run) -> Result<Types, InferError> {
    let empty = |v: &ValueInfo| v.shape.as_ref().is_some_and(Vec::is_empty) && !inputs.contains_key(&v.name);
    match infer_as(model, inputs, run, true) {
        Err(_) if model.inputs().iter().any(empty) => {
            run.contradictions.take();
            run.largest.take();
            infer_as(model, inputs, run, false)
        }
        types => types,
    }
}

fn infer_as(
    model: &Model,
    inputs: &BTreeMap<String, Vec<u64>>,
    run: &scope::Run,
    scalars: bool,
) -> Result<Types, InferError> {
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
        let declared = value.shape.take().filter(|axes| !axes.is_empty() || scalars && given.is_none());
        value.shape = input_shape(input.name(), declared, *given, &bound)?;
    }

    for (input, value) in graph.input.iter().zip(&mut declared) {
        if let Some(given) = run.inputs.get(input.name()) {
            *value = given.clone();
        }
    }

    let functions = scope::functions(model.proto());
    let (opsets, attributes) = (&model.proto().opset_import, HashMap::new());
    let env = scope::Env { functions: &functions, opsets, attributes, depth: 0, run };
    let mut scope = scope::Scope::default();
    scope.values.extend(graph.input.iter().map(|v| v.name()).zip(declared));
    scope::infer_graph(&env, &mut scope, graph)?;
    let info = |(name, v): (&str, value::Value)| ValueInfo { name: name.to_owned(), dtype: v.dtype, shape: v.shape };
    let map = scope.values.into_iter().map(info).map(|v| (v.name.clone(), v)).collect();
    Ok(Types { map, contradictions: run.contradictions.take(), largest: run.largest.take() })
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

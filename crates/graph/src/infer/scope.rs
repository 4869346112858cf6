//! Names in sight while a graph, a subgraph or a function is inferred.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use crate::attributes::Call;
use crate::inline::{self, Key};
use crate::onnx::{FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TypeProto};
use crate::tensor::DataType;
use crate::types::Dim;

use super::error::{Contradiction, InferError, node_name};
use super::op::Op;
use super::value::Value;
use super::{DEPTH_MAX, Largest, NODES_MAX, registry};

/// What stays the same within one graph or function body.
pub(super) struct Env<'a> {
    pub(super) functions: &'a HashMap<Key<'a>, &'a FunctionProto>,
    pub(super) opsets: &'a [OperatorSetIdProto],
    /// Attributes that a function was called with; empty in graphs.
    pub(super) attributes: Call<'a>,
    pub(super) depth: usize,
    /// What is kept over all graphs and functions.
    pub(super) run: &'a Run,
}

/// One inference of a model.
#[derive(Default)]
pub(super) struct Run {
    /// Whether shapes that the model declares of what nodes make are left
    /// aside: exporters write the sizes of their sample there.
    pub(super) computed_only: bool,
    /// Nodes inferred so far.
    pub(super) nodes: Cell<u64>,
    pub(super) contradictions: RefCell<Vec<Contradiction>>,
    pub(super) largest: RefCell<Option<Largest>>,
    /// What a run gives of the model's inputs.
    pub(super) inputs: HashMap<String, Value>,
}

impl Run {
    fn made(&self, node: &NodeProto, tensor: &str, value: &Value) {
        let Some(width) = value.dtype.and_then(DataType::size) else { return };
        let Some(axes) = value.shape.as_deref().and_then(super::dims::fixed) else { return };
        // A size that no number holds must count as one that no memory holds,
        // unless an axis is empty.
        let bytes = if axes.contains(&0) { 0 } else { axes.iter().fold(width as u64, |n, d| n.saturating_mul(*d)) };
        let mut largest = self.largest.borrow_mut();
        if largest.as_ref().is_none_or(|l| l.bytes < bytes) {
            *largest = Some(Largest { node: node_name(node), tensor: tensor.to_owned(), bytes });
        }
    }

    fn contradicted(&self, node: &NodeProto, tensor: &str, value: &Value, declared: &Value) {
        let mut list = self.contradictions.borrow_mut();
        // Bodies of loops are inferred several times.
        if list.len() < CONTRADICTIONS_MAX && !list.iter().any(|c| c.tensor == tensor) {
            list.push(Contradiction {
                node: node_name(node),
                tensor: tensor.to_owned(),
                declared: declared.describe(),
                inferred: value.describe(),
            });
        }
    }
}

/// Contradictions that are told: the first ones are cause enough to look.
const CONTRADICTIONS_MAX: usize = 256;

impl Env<'_> {
    fn opset(&self, domain: &str) -> i64 {
        let domain = canonical(domain);
        self.opsets.iter().find(|o| canonical(o.domain()) == domain).map_or(1, |o| o.version())
    }
}

/// The default domain has two names.
pub(super) fn canonical(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// Functions of a model as nodes call them.
pub(super) fn functions(model: &ModelProto) -> HashMap<Key<'_>, &FunctionProto> {
    model.functions.iter().map(|f| (inline::key(f), f)).collect()
}

/// Values by name; inner graphs see those of the graphs around them.
#[derive(Default)]
pub(super) struct Scope<'a> {
    pub(super) outer: Option<&'a Scope<'a>>,
    pub(super) values: HashMap<&'a str, Value>,
}

impl Scope<'_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name).or_else(|| self.outer?.get(name))
    }
}

/// Infers a graph's nodes into `scope`, which holds its inputs already.
pub(super) fn infer_graph<'a>(env: &Env<'_>, scope: &mut Scope<'a>, graph: &'a GraphProto) -> Result<(), InferError> {
    for tensor in &graph.initializer {
        scope.values.insert(tensor.name(), Value::constant(tensor));
    }
    let declared: HashMap<&str, &TypeProto> =
        graph.value_info.iter().chain(&graph.output).filter_map(|v| v.type_.as_ref().map(|t| (v.name(), t))).collect();
    infer_nodes(env, scope, &graph.node, &declared)
}

/// Infers nodes in order; `declared` types refine what they compute. Where a
/// declared shape contradicts the computed one, the computed one counts.
pub(super) fn infer_nodes<'a>(
    env: &Env<'_>,
    scope: &mut Scope<'a>,
    nodes: &'a [NodeProto],
    declared: &HashMap<&str, &TypeProto>,
) -> Result<(), InferError> {
    for node in nodes {
        let count = env.run.nodes.get() + 1;
        if count > NODES_MAX {
            return Err(InferError::TooLarge { node: node_name(node), max: NODES_MAX });
        }
        env.run.nodes.set(count);
        let values = infer_node(env, scope, node)?;
        let values = values.into_iter().map(Some).chain(std::iter::repeat(None));
        for (name, value) in node.output.iter().zip(values) {
            if name.is_empty() {
                continue;
            }
            let mut value = value.unwrap_or_default();
            if let Some(declared) = declared.get(name.as_str()) {
                let mut declared = declared_value(declared);
                if env.run.computed_only {
                    declared.forget_shape();
                }
                value = match refine(&value, &declared) {
                    Fit::Agrees(refined) => refined,
                    Fit::Shape => {
                        env.run.contradicted(node, name, &value, &declared);
                        value
                    }
                    Fit::Type => {
                        return Err(InferError::Declared {
                            node: node_name(node),
                            tensor: name.clone(),
                            declared: declared.describe(),
                            inferred: value.describe(),
                        });
                    }
                };
            }
            env.run.made(node, name, &value);
            scope.values.insert(name, value);
        }
    }
    Ok(())
}

fn infer_node(env: &Env<'_>, scope: &Scope<'_>, node: &NodeProto) -> Result<Vec<Value>, InferError> {
    let domain = canonical(node.domain());
    let inputs = node.input.iter().map(|name| if name.is_empty() { None } else { scope.get(name) }).collect();
    let op = Op { node, inputs, opset: env.opset(domain), env, scope };
    if let Some(function) = env.functions.get(&inline::called(node)) {
        return call(&op, function);
    }
    match registry::rule(domain, node.op_type()) {
        Some(rule) => rule(&op).map_err(|fault| fault.at(node)),
        None => Ok(Vec::new()),
    }
}

/// Infers a model-local function's body with the caller's inputs.
fn call(op: &Op<'_>, function: &FunctionProto) -> Result<Vec<Value>, InferError> {
    let depth = deeper(op)?;
    let mut attributes: Call<'_> = function.attribute_proto.iter().map(|a| (a.name(), a)).collect();
    for given in &op.node.attribute {
        if let Some(attribute) = op.attribute(given.name()) {
            attributes.insert(given.name(), attribute);
        }
    }
    let opsets = if function.opset_import.is_empty() { op.env.opsets } else { &function.opset_import };
    let env = Env { functions: op.env.functions, opsets, attributes, depth, run: op.env.run };
    let mut scope = Scope::default();
    for (name, value) in function.input.iter().zip(&op.inputs) {
        if let Some(value) = value {
            scope.values.insert(name, (*value).clone());
        }
    }
    let declared = function.value_info.iter().filter_map(|v| v.type_.as_ref().map(|t| (v.name(), t))).collect();
    infer_nodes(&env, &mut scope, &function.node, &declared)?;
    Ok(function.output.iter().map(|name| scope.get(name).cloned().unwrap_or_default()).collect())
}

/// Infers a subgraph of `op`, given its inputs, and returns its outputs.
pub(super) fn infer_body(op: &Op<'_>, body: &GraphProto, inputs: Vec<Value>) -> Result<Vec<Value>, InferError> {
    let env = Env {
        functions: op.env.functions,
        opsets: op.env.opsets,
        attributes: op.env.attributes.clone(),
        depth: deeper(op)?,
        run: op.env.run,
    };
    let mut scope = Scope { outer: Some(op.scope), values: HashMap::new() };
    let mut inputs = inputs.into_iter();
    for input in &body.input {
        let mut value = inputs.next().unwrap_or_default();
        if let Some(declared) = input.type_.as_ref() {
            // Exporters declare a loop's values as its first round has them.
            if let Fit::Agrees(refined) = refine(&value, &declared_value(declared)) {
                value = refined;
            }
        }
        scope.values.insert(input.name(), value);
    }
    infer_graph(&env, &mut scope, body)?;
    Ok(body.output.iter().map(|o| scope.get(o.name()).cloned().unwrap_or_default()).collect())
}

fn deeper(op: &Op<'_>) -> Result<usize, InferError> {
    let depth = op.env.depth + 1;
    if depth > DEPTH_MAX {
        return Err(InferError::TooDeep { node: node_name(op.node), max: DEPTH_MAX });
    }
    Ok(depth)
}

/// How a declaration fits what is computed.
enum Fit {
    /// What both say together.
    Agrees(Value),
    /// The element types differ: no engine takes that.
    Type,
    /// The shapes differ, which engines only warn of.
    Shape,
}

/// Joins what a node computes with what the model declares of it.
fn refine(value: &Value, declared: &Value) -> Fit {
    let dtype = match (value.dtype, declared.dtype) {
        (Some(a), Some(b)) if a != b => return Fit::Type,
        (a, b) => a.or(b),
    };
    let shape = match (&value.shape, &declared.shape) {
        (Some(a), Some(b)) => match refined_axes(a, b) {
            Some(shape) => Some(shape),
            None => return Fit::Shape,
        },
        // Some exporters write no axes where they don't know how many.
        (None, Some(axes)) if axes.is_empty() => None,
        (a, b) => a.clone().or_else(|| b.clone()),
    };
    let items = match (&value.items, &declared.items) {
        (Some(a), Some(b)) => match refine(a, b) {
            Fit::Agrees(items) => Some(Box::new(items)),
            other => return other,
        },
        (a, b) => a.clone().or_else(|| b.clone()),
    };
    Fit::Agrees(Value { dtype, shape, items, ..Value::default() }.with(value.elements.clone()))
}

/// Computed axes, and those declared where nothing is known. An axis of the
/// inputs that was followed here stays free, whatever size a sample had.
fn refined_axes(computed: &[Dim], declared: &[Dim]) -> Option<Vec<Dim>> {
    let axis = |(computed, declared): (&Dim, &Dim)| match (computed, declared) {
        (Dim::Known(a), Dim::Known(b)) if a != b => None,
        (Dim::Unknown, declared) => Some(declared.clone()),
        (computed, _) => Some(computed.clone()),
    };
    if computed.len() != declared.len() {
        return None;
    }
    computed.iter().zip(declared).map(axis).collect()
}

/// A declared type. A sequence's or optional's items are kept.
pub(super) fn declared_value(declared: &TypeProto) -> Value {
    if declared.has_sequence_type() {
        return Value { items: inner(declared.sequence_type().elem_type.as_ref()), ..Value::default() };
    }
    if declared.has_optional_type() {
        return Value { items: inner(declared.optional_type().elem_type.as_ref()), ..Value::default() };
    }
    let (dtype, shape) = crate::model::tensor_type(declared);
    Value::new(dtype, shape)
}

fn inner(declared: Option<&TypeProto>) -> Option<Box<Value>> {
    Some(Box::new(declared_value(declared?)))
}

/// Sizes of named axes, by the shapes given for inputs. A name given two
/// sizes is dropped: exporters reuse names for axes that differ.
pub(super) fn bind(declared: &[Value], given: &[Option<&[u64]>]) -> BTreeMap<String, u64> {
    let mut bound: BTreeMap<String, Option<u64>> = BTreeMap::new();
    for (value, sizes) in declared.iter().zip(given) {
        let (Some(shape), Some(sizes)) = (&value.shape, sizes) else { continue };
        for (dim, size) in shape.iter().zip(*sizes) {
            if let Dim::Symbol(name) = dim {
                bound.entry(name.clone()).and_modify(|b| *b = b.filter(|b| b == size)).or_insert(Some(*size));
            }
        }
    }
    bound.into_iter().filter_map(|(name, size)| Some((name, size?))).collect()
}

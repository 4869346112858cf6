//! Reverse mode on the graph: every operator has one rule that writes the
//! gradients of its inputs from those of its outputs, as ordinary nodes.
//!
//! Never executes. Start at [`backward`]; `docs/design/gradients.md` has the
//! decisions and the measurements behind the formulations.
//!
//! # Adding a rule
//!
//! 1. Write `fn mine(s: &mut RuleContext) -> Gradients` in the file of its family:
//!    take the output's gradient with `s.dy()?`, write nodes with `s.mul`,
//!    `s.op` and the like, and return one gradient per input, `None` where
//!    `s.wants(i)` is false or nothing flows. A gradient has the shape of its
//!    input; `s.reduced` undoes broadcasting. What the rule can't do is a
//!    `Fault` that says what to do instead.
//! 2. Add `("Mine", mine)` to the family's `RULES`. A new family is one file
//!    and one line in `registry.rs`.
//! 3. Add a case to `crates/engine/tests/it/gradients/cases.rs`: every rule is
//!    held against finite differences in double precision there, and a rule
//!    without a case fails the tests.

mod activation;
mod arithmetic;
mod branch;
mod context;
mod conv;
mod flat;
mod layout;
mod matmul;
mod max_pool;
mod norm;
mod pool;
mod quantise;
mod recurrent;
mod reduce;
mod registry;
mod resample;
mod select;
mod window;

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::emit::{Attribute, Emitter};
use crate::error::LoadError;
use crate::index::Index;
use crate::infer::{InferError, Types, infer_types};
use crate::kernels::{self, Kernels};
use crate::model::Model;
use crate::onnx::{NodeProto, TensorProto};
use crate::tensor::{DataType, Tensor};
use crate::types::{Dim, ValueInfo};

/// Why a model can't be differentiated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GradientError {
    /// An operator without a gradient.
    #[error(
        "node `{node}`: operator `{operator}`{} has no gradient rule; freeze what lies before it, or export the model \
         with other operators", in_domain(.domain)
    )]
    NoRule {
        /// The node.
        node: String,
        /// Its operator.
        operator: String,
        /// Its operator's domain.
        domain: String,
    },
    /// A form of an operator that isn't differentiated.
    #[error("node `{node}`, operator `{operator}`: {reason}")]
    Form {
        /// The node.
        node: String,
        /// Its operator.
        operator: String,
        /// Why, and what to do.
        reason: String,
    },
    /// No such tensor.
    #[error("the model has no tensor `{tensor}`")]
    Unknown {
        /// The name.
        tensor: String,
    },
    /// A tensor without a gradient.
    #[error("`{tensor}` has no gradient: nothing that is differentiated depends on it")]
    Unconnected {
        /// The tensor.
        tensor: String,
    },
    /// A body that isn't differentiated reads something that is.
    #[error(
        "node `{node}`, operator `{operator}`: its body reads `{tensor}`, and bodies other than those of If are not \
         differentiated; freeze what lies before it, or export the model with the loop unrolled"
    )]
    Captured {
        /// The node.
        node: String,
        /// Its operator.
        operator: String,
        /// What its body reads.
        tensor: String,
    },
    /// More nodes than a step may have.
    #[error("its gradients take more than {max} nodes; freeze the layers with the longest kernels, or export others")]
    TooLarge {
        /// Nodes at most.
        max: usize,
    },
    /// Only floating-point numbers have gradients.
    #[error("`{tensor}` holds {dtype} elements; only floating-point tensors have gradients")]
    NotFloat {
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: String,
    },
    /// Shapes that contradict each other.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// The graph with its gradients isn't a valid model.
    #[error("the graph with its gradients is not valid: {0}")]
    Invalid(#[from] LoadError),
}

fn in_domain(domain: &str) -> String {
    if domain.is_empty() { String::new() } else { format!(" of domain `{domain}`") }
}

/// Operators of the default domain that have a rule, sorted.
#[must_use]
pub fn operators() -> Vec<&'static str> {
    registry::operators()
}

/// Whether gradients flow through a node, as far as its operator is known.
pub(crate) fn is_differentiated(node: &NodeProto) -> bool {
    !registry::is_flat(node.domain(), node.op_type()) && registry::rule(node.domain(), node.op_type()).is_some()
}

/// Nodes that gradients take at most: a small file can ask for many.
const NODES_MAX: usize = 1 << 20;

/// Operators that take integers which stand for trained numbers: they undo
/// the quantisation, or move or bound such integers.
const QUANTISED: &[&str] =
    &["DequantizeLinear", "Clip", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"];

/// The graph that gradients are written behind.
#[derive(Debug)]
pub(crate) struct Forward<'m> {
    model: &'m Model,
    pub(crate) index: Index<'m>,
    pub(crate) types: Types,
    constants: Constants<'m>,
    kernels: &'m Kernels,
}

/// Constants by name.
type Constants<'m> = HashMap<&'m str, &'m TensorProto>;

impl<'m> Forward<'m> {
    pub(crate) fn new(model: &'m Model, kernels: &'m Kernels) -> Result<Self, InferError> {
        let constants = model.graph().initializer.iter().map(|t| (t.name(), t)).collect();
        Ok(Self { model, index: Index::new(model), types: infer_types(model)?, constants, kernels })
    }

    /// An emitter that leaves the graph's names alone.
    pub(crate) fn emitter(&self) -> Emitter {
        let graph = self.index.graph;
        let nodes = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
        let values = graph.input.iter().map(|v| v.name()).chain(graph.initializer.iter().map(|t| t.name()));
        let mut within = Vec::new();
        graph.node.iter().for_each(|n| crate::index::names_within(n, &mut within));
        Emitter::new(nodes.chain(values).chain(within))
    }

    /// Writes the gradients of `wanted`, given those of some tensors; the
    /// name of each gradient that there is, of the tensors on the way too.
    pub(crate) fn backward(
        &self,
        seeds: &[(&str, String)],
        wanted: &[&str],
        out: &mut Emitter,
    ) -> Result<BTreeMap<String, String>, GradientError> {
        let live = self.depends_on(wanted);
        // What is trained is a constant no more after the first step.
        let mut constants = self.constants.clone();
        constants.retain(|name, _| !wanted.contains(name));
        let mut parts: HashMap<&str, Vec<String>> = HashMap::new();
        for (tensor, gradient) in seeds {
            parts.entry(tensor).or_default().push(gradient.clone());
        }
        let mut gradients = BTreeMap::new();
        for &position in self.index.order.iter().rev() {
            let node = &self.index.graph.node[position];
            let upstream: Vec<Option<String>> = node
                .output
                .iter()
                .map(|name| {
                    let total = total(out, parts.remove(name.as_str())?);
                    gradients.insert(name.clone(), total.clone());
                    Some(total)
                })
                .collect();
            if upstream.iter().all(Option::is_none) || registry::is_flat(node.domain(), node.op_type()) {
                continue;
            }
            for (name, gradient) in self.captured(node, &upstream, &live, out)? {
                parts.entry(name).or_default().push(gradient);
            }
            let acts = |(i, name): (usize, &String)| i < acting(node) && live.contains(name.as_str());
            let mut wants: Vec<bool> = node.input.iter().enumerate().map(acts).collect();
            let nothing = node.output.iter().zip(&upstream).all(|(y, dy)| dy.is_none() || self.is_empty(y));
            for (name, wanted) in node.input.iter().zip(&mut wants) {
                // Of no elements, or of a result of none.
                if *wanted && (nothing || self.is_empty(name)) {
                    *wanted = false;
                    parts.entry(name).or_default().push(self.zeros(name, out));
                }
            }
            if !wants.contains(&true) {
                continue;
            }
            let found = self.apply(node, &constants, upstream, wants.clone(), out)?;
            let mut found = found.into_iter();
            for (i, (name, wanted)) in node.input.iter().zip(wants).enumerate() {
                match found.next().flatten().filter(|_| wanted) {
                    Some(gradient) => parts.entry(name).or_default().push(gradient),
                    None if wanted && !stands_still(node, i) => return Err(unknown(node, name)),
                    None => {}
                }
            }
            if out.len() > NODES_MAX {
                return Err(GradientError::TooLarge { max: NODES_MAX });
            }
        }
        // What is left belongs to inputs and constants.
        for &name in wanted {
            if let Some(found) = parts.remove(name) {
                gradients.insert(name.to_owned(), total(out, found));
            }
        }
        Ok(gradients)
    }

    fn apply(
        &self,
        node: &NodeProto,
        constants: &Constants<'_>,
        upstream: Vec<Option<String>>,
        wanted: Vec<bool>,
        out: &mut Emitter,
    ) -> Result<Vec<Option<String>>, GradientError> {
        let rule = registry::rule(node.domain(), node.op_type()).ok_or_else(|| GradientError::NoRule {
            node: label(node),
            operator: node.op_type().to_owned(),
            domain: node.domain().to_owned(),
        })?;
        let form = |reason| GradientError::Form { node: label(node), operator: node.op_type().to_owned(), reason };
        let integers = node.input.iter().zip(&wanted).find(|(name, wanted)| **wanted && !self.is_float(name));
        if let Some((name, _)) = integers.filter(|_| !QUANTISED.contains(&node.op_type())) {
            return Err(form(format!(
                "it reads `{name}`, integers that stand for numbers which are trained; gradients go through \
                 QuantizeLinear with DequantizeLinear behind it only: freeze what lies before it, or train the \
                 floating-point model and quantise the result"
            )));
        }
        let mut context = context::RuleContext {
            node,
            index: &self.index,
            types: &self.types,
            constants,
            kernels: self.kernels,
            out,
            upstream,
            wanted,
        };
        rule(&mut context).map_err(|fault| form(fault.0))
    }

    /// Gradients of what a node's bodies read of the graph around them.
    fn captured<'a>(
        &'a self,
        node: &'a NodeProto,
        upstream: &[Option<String>],
        live: &HashSet<&str>,
        out: &mut Emitter,
    ) -> Result<Vec<(&'a str, String)>, GradientError> {
        let names = branch::captures(node, &|name| live.contains(name));
        let Some(&first) = names.first() else { return Ok(Vec::new()) };
        if registry::is_default(node.domain()) && node.op_type() == "If" {
            return self.branches(node, &names, upstream, out);
        }
        Err(GradientError::Captured {
            node: label(node),
            operator: node.op_type().to_owned(),
            tensor: first.to_owned(),
        })
    }

    /// Zeros in the shape of a tensor.
    fn zeros(&self, like: &str, out: &mut Emitter) -> String {
        let dtype = self.types.get(like).and_then(|t| t.dtype).filter(|d| d.is_float()).unwrap_or(DataType::F32);
        let zero = Tensor::new([1], context::float(dtype, &[0.0])).expect("one element");
        let shape = out.op("Shape", &[like], &[]);
        out.op("ConstantOfShape", &[&shape], &[("value", Attribute::Tensor(zero))])
    }

    /// Whether a tensor is known to have no elements.
    fn is_empty(&self, name: &str) -> bool {
        let shape = self.types.get(name).and_then(|t| t.shape.as_deref());
        shape.is_some_and(|shape| shape.contains(&Dim::Known(0)))
    }

    fn is_float(&self, name: &str) -> bool {
        self.types.get(name).and_then(|t| t.dtype).is_none_or(|d| d.is_float())
    }

    /// Tensors through which one of these acts on what comes behind: numbers
    /// that depend on it, and integers that stand for such numbers.
    pub(crate) fn depends_on<'a>(&'a self, roots: &[&'a str]) -> HashSet<&'a str> {
        let mut live: HashSet<&str> = roots.iter().copied().collect();
        for &position in &self.index.order {
            let node = &self.index.graph.node[position];
            // Nothing flows through these.
            if registry::is_flat(node.domain(), node.op_type()) {
                continue;
            }
            let mut met =
                self.index.reads[position].iter().take(acting(node)).filter(|name| live.contains(*name)).peekable();
            if met.peek().is_none() {
                continue;
            }
            // Places and counts are whole numbers that jump; what quantisers
            // make, and what is made of that, isn't.
            let quantised = registry::quantises(node) || met.any(|name| !self.is_float(name));
            live.extend(node.output.iter().map(String::as_str).filter(|y| quantised || self.is_float(y)));
        }
        live
    }

    /// Nodes at which what depends on a tensor comes to an end, since nothing
    /// flows through them.
    pub(crate) fn ends_of(&self, tensor: &str) -> Vec<&NodeProto> {
        let live = self.depends_on(&[tensor]);
        let reads = |position: &usize| self.index.reads[*position].iter().any(|name| live.contains(name));
        let nodes = self.index.order.iter().filter(|position| reads(position));
        let ends = nodes.map(|&position| &self.index.graph.node[position]);
        ends.filter(|node| !node.output.iter().any(|y| live.contains(y.as_str()))).collect()
    }
}

/// How many of a node's inputs act on its result: of what a CastLike is like
/// only the type is copied.
fn acting(node: &NodeProto) -> usize {
    if node.op_type() == "CastLike" { 1 } else { usize::MAX }
}

/// Whether nothing flows to an input, though results depend on it: scales and
/// zero points are taken as they are, as in PyTorch.
fn stands_still(node: &NodeProto, position: usize) -> bool {
    position > 0 && matches!(node.op_type(), "QuantizeLinear" | "DequantizeLinear")
}

/// What flows to an input isn't known to its operator's rule.
fn unknown(node: &NodeProto, input: &str) -> GradientError {
    let reason = format!(
        "`{input}` is trained, or computed of what is, and the gradient of this input isn't known; freeze what lies before \
         it, or export the model with other operators"
    );
    GradientError::Form { node: label(node), operator: node.op_type().to_owned(), reason }
}

/// A node without a name is known by what it makes.
fn label(node: &NodeProto) -> String {
    if node.name().is_empty() { node.output.join(", ") } else { node.name().to_owned() }
}

/// The sum of gradients that reached one tensor on several ways.
fn total(out: &mut Emitter, mut parts: Vec<String>) -> String {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let names: Vec<&str> = parts.iter().map(String::as_str).collect();
    if names.len() == 2 { out.op("Add", &names, &[]) } else { out.op("Sum", &names, &[]) }
}

/// The gradients of a model at one of its cuts.
#[derive(Debug, Clone, PartialEq)]
pub struct Backward {
    /// The model with its gradients: the model's own inputs and outputs, and
    /// behind them the upstream gradients and the gradients.
    pub model: Model,
    /// Tensors whose gradients are given, and the inputs that take them.
    pub upstream: Vec<(String, String)>,
    /// Tensors whose gradients were asked for, and the outputs that give them.
    pub gradients: Vec<(String, String)>,
}

/// Adds to a model the gradients of `wanted` with respect to a loss of which
/// only the gradients at `given` are known: they become inputs.
///
/// Constants and inputs may be wanted as well as tensors between. Gradients
/// have the shape and type of their tensor. BatchNormalization and Dropout
/// stand as the model has them.
///
/// # Errors
/// [`GradientError`], naming the operator without a rule.
pub fn backward(model: &Model, given: &[&str], wanted: &[&str]) -> Result<Backward, GradientError> {
    backward_with(model, given, wanted, &Kernels::none())
}

/// [`backward`], for an engine that has these operators of its own.
///
/// # Errors
/// As [`backward`].
pub fn backward_with(
    model: &Model,
    given: &[&str],
    wanted: &[&str],
    kernels: &Kernels,
) -> Result<Backward, GradientError> {
    check_arity(model)?;
    let model = prepare(model)?;
    let forward = Forward::new(&model, kernels)?;
    let mut out = forward.emitter();
    for tensor in given.iter().chain(wanted) {
        let info = forward.types.get(tensor).ok_or_else(|| GradientError::Unknown { tensor: (*tensor).to_owned() })?;
        if let Some(dtype) = info.dtype.filter(|d| !d.is_float()) {
            return Err(GradientError::NotFloat { tensor: (*tensor).to_owned(), dtype: dtype.to_string() });
        }
    }
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let declared = |name: &str, like: &str| {
        let info = forward.types.get(like).cloned();
        let info = info.unwrap_or(ValueInfo { name: String::new(), dtype: None, shape: None });
        crate::slice::value_info_proto(&ValueInfo { name: name.to_owned(), ..info })
    };
    let mut upstream = Vec::new();
    for tensor in given {
        let name = out.name(&format!("{tensor}.gradient"));
        graph.input.push(declared(&name, tensor));
        upstream.push(((*tensor).to_owned(), name));
    }
    let seeds: Vec<(&str, String)> = given.iter().copied().zip(upstream.iter().map(|(_, g)| g.clone())).collect();
    let found = forward.backward(&seeds, wanted, &mut out)?;
    let mut gradients = Vec::new();
    for tensor in wanted {
        let gradient = found.get(*tensor).ok_or_else(|| GradientError::Unconnected { tensor: (*tensor).to_owned() })?;
        let name = out.name(&format!("{tensor}.gradient"));
        out.named("Identity", &[gradient], &[&name], &[]);
        graph.output.push(declared(&name, tensor));
        gradients.push(((*tensor).to_owned(), name));
    }
    let (nodes, constants) = out.finish();
    graph.node.extend(nodes);
    graph.initializer.extend(constants);
    kernels::import(&mut proto);
    Ok(Backward { model: Model::from_proto(proto)?, upstream, gradients })
}

/// Inputs that an operator must have for its rule to make sense of it.
fn inputs_min(operator: &str) -> usize {
    match operator {
        "BatchNormalization" => 5,
        "LSTM" | "GRU" | "RNN" | "Where" | "ScatterND" | "ScatterElements" => 3,
        "Add"
        | "Sub"
        | "Mul"
        | "Div"
        | "Pow"
        | "Mod"
        | "MatMul"
        | "Gemm"
        | "Conv"
        | "ConvTranspose"
        | "PRelu"
        | "LayerNormalization"
        | "RMSNormalization"
        | "InstanceNormalization"
        | "GroupNormalization"
        | "Reshape"
        | "Expand"
        | "Tile"
        | "Gather"
        | "GatherElements"
        | "GatherND"
        | "CumSum"
        | "QuantizeLinear"
        | "DequantizeLinear"
        | "CastLike" => 2,
        _ => 1,
    }
}

/// Refuses nodes that lack what their operator must have: the format's check
/// leaves that to engines, and rules rely on it.
pub(crate) fn check_arity(model: &Model) -> Result<(), GradientError> {
    for node in &model.graph().node {
        let operator = node.op_type();
        let known = registry::rule(node.domain(), operator).is_some() || operator == "Dropout";
        let needed = inputs_min(operator);
        let given = node.input.iter().take(needed).filter(|i| !i.is_empty()).count();
        let made = node.output.first().is_some_and(|o| !o.is_empty());
        if known && (given < needed || !made && operator != "LSTM" && operator != "GRU" && operator != "RNN") {
            let reason = if made {
                format!("it has {given} of the {needed} inputs it needs")
            } else {
                "it has no output".into()
            };
            return Err(GradientError::Form { node: label(node), operator: operator.to_owned(), reason });
        }
    }
    Ok(())
}

/// The model as gradients are written behind it: of an operator set that the
/// rules speak, its functions inlined where there are none, with pools whose
/// size all runtimes know, and with the outputs that rules read.
pub(crate) fn prepare(model: &Model) -> Result<Model, LoadError> {
    let model = crate::upgrade::upgraded(model)?;
    let types = crate::infer::infer_types(&model).unwrap_or_default();
    let mut proto = model.proto;
    let graph = proto.graph.mut_or_insert_default();
    graph.node.iter_mut().for_each(|node| window::without_ceiling(node, &types));
    let mut names = Emitter::new(graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str)));
    for node in graph.node.iter_mut().filter(|n| n.domain().is_empty()) {
        let outputs = match node.op_type() {
            "LSTM" => 3,
            "GRU" | "RNN" | "TopK" => 2,
            "Split" => node.output.len(),
            "BatchNormalization" if crate::attributes::Attributes::of(node).flag("training_mode") => 3,
            _ => continue,
        };
        for i in 0..outputs {
            if node.output.get(i).is_none_or(String::is_empty) {
                node.output.resize(node.output.len().max(i + 1), String::new());
                node.output[i] = names.name(&format!("{}.{i}", node.output[0]));
            }
        }
    }
    Model::from_proto(proto)
}

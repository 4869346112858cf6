//! Reverse mode on the graph: every operator has one rule that writes the
//! gradients of its inputs from those of its outputs, as ordinary nodes.
//!
//! Never executes. Start at [`backward`]; `docs/design/gradients.md` has the
//! decisions and the measurements behind the formulations.
//!
//! # Adding a rule
//!
//! 1. Write `fn mine(s: &mut Site) -> Gradients` in the file of its family:
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
mod conv;
mod layout;
mod matmul;
mod max_pool;
mod norm;
mod pool;
mod recurrent;
mod reduce;
mod registry;
mod resample;
mod select;
mod site;
mod window;

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::emit::Emitter;
use crate::error::LoadError;
use crate::index::Index;
use crate::infer::{InferError, Types, infer_types};
use crate::kernels::{self, Kernels};
use crate::model::Model;
use crate::onnx::{NodeProto, TensorProto};
use crate::types::ValueInfo;

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

/// The graph that gradients are written behind.
#[derive(Debug)]
pub(crate) struct Forward<'m> {
    pub(crate) index: Index<'m>,
    pub(crate) types: Types,
    constants: HashMap<&'m str, &'m TensorProto>,
    kernels: &'m Kernels,
}

impl<'m> Forward<'m> {
    pub(crate) fn new(model: &'m Model, kernels: &'m Kernels) -> Result<Self, InferError> {
        let constants = model.graph().initializer.iter().map(|t| (t.name(), t)).collect();
        Ok(Self { index: Index::new(model), types: infer_types(model)?, constants, kernels })
    }

    /// An emitter that leaves the graph's names alone.
    pub(crate) fn emitter(&self) -> Emitter {
        let graph = self.index.graph;
        let nodes = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
        let values = graph.input.iter().map(|v| v.name()).chain(graph.initializer.iter().map(|t| t.name()));
        Emitter::new(nodes.chain(values))
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
            if upstream.iter().all(Option::is_none) {
                continue;
            }
            let flows = |name: &String| live.contains(name.as_str()) && self.is_float(name);
            let wants: Vec<bool> = node.input.iter().map(flows).collect();
            if !wants.contains(&true) || registry::is_flat(node.domain(), node.op_type()) {
                continue;
            }
            let found = self.apply(node, upstream, wants.clone(), out)?;
            for ((name, gradient), wanted) in node.input.iter().zip(found).zip(wants) {
                if let Some(gradient) = gradient.filter(|_| wanted) {
                    parts.entry(name).or_default().push(gradient);
                }
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
        upstream: Vec<Option<String>>,
        wanted: Vec<bool>,
        out: &mut Emitter,
    ) -> Result<Vec<Option<String>>, GradientError> {
        let name = || if node.name().is_empty() { node.output.join(", ") } else { node.name().to_owned() };
        let rule = registry::rule(node.domain(), node.op_type()).ok_or_else(|| GradientError::NoRule {
            node: name(),
            operator: node.op_type().to_owned(),
            domain: node.domain().to_owned(),
        })?;
        let mut site = site::Site {
            node,
            types: &self.types,
            constants: &self.constants,
            kernels: self.kernels,
            out,
            upstream,
            wanted,
        };
        rule(&mut site).map_err(|fault| GradientError::Form {
            node: name(),
            operator: node.op_type().to_owned(),
            reason: fault.0,
        })
    }

    fn is_float(&self, name: &str) -> bool {
        self.types.get(name).and_then(|t| t.dtype).is_none_or(|d| d.is_float())
    }

    /// Tensors whose value depends on one of these.
    fn depends_on<'a>(&'a self, roots: &[&'a str]) -> HashSet<&'a str> {
        let mut live: HashSet<&str> = roots.iter().copied().collect();
        for &position in &self.index.order {
            let node = &self.index.graph.node[position];
            // Nothing flows through these, nor through a type that is copied.
            if registry::is_flat(node.domain(), node.op_type()) {
                continue;
            }
            let count = if node.op_type() == "CastLike" { 1 } else { usize::MAX };
            if self.index.reads[position].iter().take(count).any(|name| live.contains(name)) {
                live.extend(node.output.iter().map(String::as_str));
            }
        }
        live
    }
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
            let node = if node.name().is_empty() { node.output.join(", ") } else { node.name().to_owned() };
            return Err(GradientError::Form { node, operator: operator.to_owned(), reason });
        }
    }
    Ok(())
}

/// The model as gradients are written behind it: of an operator set that the
/// rules speak, its functions inlined where there are none, and with the
/// outputs that rules read.
pub(crate) fn prepare(model: &Model) -> Result<Model, LoadError> {
    let mut proto = crate::upgrade::upgraded(model)?.proto;
    let graph = proto.graph.mut_or_insert_default();
    let mut names = Emitter::new(graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str)));
    for node in graph.node.iter_mut().filter(|n| n.domain().is_empty()) {
        let outputs = match node.op_type() {
            "LSTM" => 3,
            "GRU" | "RNN" => 2,
            "BatchNormalization" if crate::upgrade::int(node, "training_mode") == Some(1) => 3,
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

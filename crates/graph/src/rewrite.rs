//! Changes to a model as patches: what goes, what comes, who reads what.
//!
//! A [`Pass`] looks at a model and says what it would change; [`apply`] makes
//! the change on a copy, checks the result as if it had come from a file, and
//! only then replaces the model. So a pass can't leave a broken model behind,
//! and a new pass touches nothing but its own file. [`crate::fold`] is made of
//! passes and serves as an example.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::error::LoadError;
use crate::index::{captured, defined};
use crate::model::Model;
use crate::onnx::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto};

/// One change to a model's main graph; the default changes nothing.
///
/// What is removed goes first, so a name that is removed may be made anew.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Patch {
    /// Positions, in the graph's node list, of nodes that go.
    pub remove_nodes: BTreeSet<usize>,
    /// Names of initialisers that go.
    pub remove_constants: BTreeSet<String>,
    /// Nodes that come, in any order.
    pub add_nodes: Vec<NodeProto>,
    /// Initialisers that come; weights are shared, not copied.
    pub add_constants: Vec<TensorProto>,
    /// Inputs that callers must give from now on.
    pub add_inputs: Vec<ValueInfoProto>,
    /// Outputs that callers get as well, behind those there are.
    pub add_outputs: Vec<ValueInfoProto>,
    /// Whoever read the first name reads the second: nodes that stay, and
    /// their subgraphs. Nodes that come are taken as they are. Chains are
    /// followed. Outputs of the graph keep their names and can't be rewired.
    pub rewire: BTreeMap<String, String>,
    /// Operator sets that added nodes need, by domain, where the model
    /// doesn't import the domain yet.
    pub imports: BTreeMap<String, i64>,
}

impl Patch {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Why a patch can't be applied. The model is then as it was.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// No node at this position.
    #[error("the patch removes node {position}; the graph has {nodes}")]
    NoNode {
        /// Position in the node list.
        position: usize,
        /// Nodes there are.
        nodes: usize,
    },
    /// No initialiser of this name.
    #[error("the patch removes initialiser `{tensor}`, which the graph does not have")]
    NoConstant {
        /// The name.
        tensor: String,
    },
    /// A name that nobody reads or makes.
    #[error("the patch rewires `{tensor}`, which no node makes and no input or initialiser gives")]
    NoTensor {
        /// The name.
        tensor: String,
    },
    /// Names that lead back to themselves.
    #[error("the patch rewires `{tensor}` in a circle")]
    Circular {
        /// A name of the circle.
        tensor: String,
    },
    /// Outputs are the model's interface.
    #[error("the patch rewires `{tensor}`, an output of the graph; make the output with another node instead")]
    Output {
        /// The output.
        tensor: String,
    },
    /// A subgraph gives the new name a meaning of its own.
    #[error(
        "node `{node}`: a body reads `{tensor}`, but `{target}`, which the patch puts in its place, is a name of the body's own"
    )]
    Shadowed {
        /// The node with the subgraph.
        node: String,
        /// The name rewired.
        tensor: String,
        /// Where it should lead.
        target: String,
    },
    /// Two versions of one operator set.
    #[error("the patch needs version {needed} of operator set `{domain}`; the model imports {imported}")]
    Import {
        /// The domain.
        domain: String,
        /// Version of the patch.
        needed: i64,
        /// Version of the model.
        imported: i64,
    },
}

/// Why a rewrite failed. The model is then as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RewriteError {
    /// The pass can't do its work on this model.
    #[error("pass `{pass}`: {reason}")]
    Pass {
        /// The pass.
        pass: &'static str,
        /// What it said.
        reason: String,
    },
    /// The patch doesn't fit the model.
    #[error("pass `{pass}`: {source}")]
    Patch {
        /// The pass.
        pass: &'static str,
        /// What doesn't fit.
        source: PatchError,
    },
    /// The patched graph isn't a valid model.
    #[error("pass `{pass}` leaves no valid model: {source}")]
    Invalid {
        /// The pass.
        pass: &'static str,
        /// What is wrong.
        source: LoadError,
    },
}

/// A rewrite of models, such as a fold, a change of precision or a gradient.
pub trait Pass {
    /// Its name, in errors.
    fn name(&self) -> &'static str;

    /// What it would change; an empty patch when there is nothing to do.
    ///
    /// # Errors
    /// Why it can't do its work on this model.
    fn patch(&mut self, model: &Model) -> Result<Patch, String>;
}

/// Runs a pass once; whether it changed anything.
///
/// # Errors
/// [`RewriteError`]; the model is then as it was.
pub fn run(model: &mut Model, pass: &mut dyn Pass) -> Result<bool, RewriteError> {
    let name = pass.name();
    let patch = pass.patch(model).map_err(|reason| RewriteError::Pass { pass: name, reason })?;
    if patch.is_empty() {
        return Ok(false);
    }
    *model = apply(model, name, patch)?;
    Ok(true)
}

/// The model with a patch applied: checked, its nodes in topological order.
///
/// # Errors
/// [`RewriteError`], under the name of `pass`.
pub fn apply(model: &Model, pass: &'static str, patch: Patch) -> Result<Model, RewriteError> {
    let mut proto = model.proto().clone();
    change(&mut proto, patch).map_err(|source| RewriteError::Patch { pass, source })?;
    Model::from_proto(proto).map_err(|source| RewriteError::Invalid { pass, source })
}

fn change(proto: &mut ModelProto, patch: Patch) -> Result<(), PatchError> {
    for (domain, version) in patch.imports {
        let imported = proto.opset_import.iter().find(|o| o.domain() == domain).map(|o| o.version());
        match imported {
            Some(imported) if imported == version => {}
            Some(imported) => return Err(PatchError::Import { domain, needed: version, imported }),
            None => proto.opset_import.push(OperatorSetIdProto {
                domain: Some(domain),
                version: Some(version),
                ..OperatorSetIdProto::default()
            }),
        }
    }
    let graph = proto.graph.mut_or_insert_default();
    if let Some(&position) = patch.remove_nodes.last().filter(|p| **p >= graph.node.len()) {
        return Err(PatchError::NoNode { position, nodes: graph.node.len() });
    }
    let names: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    if let Some(tensor) = patch.remove_constants.iter().find(|n| !names.contains(n.as_str())) {
        return Err(PatchError::NoConstant { tensor: tensor.clone() });
    }
    let rewire = targets(graph, &patch.rewire)?;
    let mut position = 0..;
    graph.node.retain(|_| position.next().is_none_or(|p| !patch.remove_nodes.contains(&p)));
    graph.initializer.retain(|t| !patch.remove_constants.contains(t.name()));
    if !rewire.is_empty() {
        graph.node.iter_mut().try_for_each(|node| redirect(node, &rewire))?;
    }
    graph.node.extend(patch.add_nodes);
    graph.initializer.extend(patch.add_constants);
    graph.input.extend(patch.add_inputs);
    graph.output.extend(patch.add_outputs);
    // What was said of values that are gone, or are constants now, would lie.
    let made: HashSet<&str> = graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    graph.value_info.retain(|v| made.contains(v.name()));
    let mut annotations = std::mem::take(&mut graph.quantization_annotation);
    let known = defined(graph);
    annotations.retain(|a| known.contains(a.tensor_name()));
    graph.quantization_annotation = annotations;
    Ok(())
}

/// Where each rewired name leads in the end.
fn targets(graph: &GraphProto, rewire: &BTreeMap<String, String>) -> Result<HashMap<String, String>, PatchError> {
    if rewire.is_empty() {
        return Ok(HashMap::new());
    }
    let known = defined(graph);
    let outputs: HashSet<&str> = graph.output.iter().map(|o| o.name()).collect();
    let mut ends = HashMap::with_capacity(rewire.len());
    for (from, to) in rewire {
        if !known.contains(from.as_str()) {
            return Err(PatchError::NoTensor { tensor: from.clone() });
        }
        if outputs.contains(from.as_str()) {
            return Err(PatchError::Output { tensor: from.clone() });
        }
        let mut end = to;
        let mut steps = 0;
        while let Some(next) = rewire.get(end) {
            steps += 1;
            if steps > rewire.len() {
                return Err(PatchError::Circular { tensor: from.clone() });
            }
            end = next;
        }
        ends.insert(from.clone(), end.clone());
    }
    Ok(ends)
}

/// Makes a node, and what its bodies capture, read other names.
fn redirect(node: &mut NodeProto, rewire: &HashMap<String, String>) -> Result<(), PatchError> {
    for input in &mut node.input {
        if let Some(target) = rewire.get(input.as_str()) {
            input.clone_from(target);
        }
    }
    let name = if node.name().is_empty() { node.output.first().cloned() } else { node.name.clone() };
    for body in node.attribute.iter_mut().flat_map(|a| a.g.as_mut().into_iter().chain(&mut a.graphs)) {
        // Names of the body's own mean something else inside it.
        let own: HashSet<String> = defined(body).into_iter().map(str::to_owned).collect();
        let inner: HashMap<String, String> =
            captured(body).into_iter().filter_map(|n| Some((n.to_owned(), rewire.get(n)?.clone()))).collect();
        if let Some((tensor, target)) = inner.iter().find(|(_, target)| own.contains(*target)) {
            let (tensor, target) = (tensor.clone(), target.clone());
            return Err(PatchError::Shadowed { node: name.unwrap_or_default(), tensor, target });
        }
        if inner.is_empty() {
            continue;
        }
        body.node.iter_mut().try_for_each(|inside| redirect(inside, &inner))?;
        for output in &mut body.output {
            if let Some(target) = inner.get(output.name()) {
                output.name = Some(target.clone());
            }
        }
    }
    Ok(())
}

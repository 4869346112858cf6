//! Puts the bodies of a model's own functions where they are called.
//!
//! Some exporters write every layer as a function, or the whole model as one:
//! inside nothing can be cut, folded or differentiated, and not every engine
//! knows functions. A function that speaks another version of an operator set
//! than the model stays a call.

use std::collections::{HashMap, HashSet};

use crate::attributes::Call;
use crate::emit::Emitter;
use crate::error::LoadError;
use crate::index::{bodies, defined, names_within};
use crate::model::Model;
use crate::onnx::{AttributeProto, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto};

/// Nodes of a model with its functions inlined: calls of calls can stand for
/// any number.
const NODES_MAX: usize = 200_000;

/// Calls within calls.
const DEPTH_MAX: usize = 64;

/// How a node calls a function: its domain, name and overload.
pub(crate) type Key<'a> = (&'a str, &'a str, &'a str);

pub(crate) fn called(node: &NodeProto) -> Key<'_> {
    (domain(node.domain()), node.op_type(), node.overload())
}

pub(crate) fn key(function: &FunctionProto) -> Key<'_> {
    (domain(function.domain()), function.name(), function.overload())
}

/// The default domain has two names.
fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

/// The model with its functions inlined where that says the same; `None` where
/// there are none, or they are too many.
///
/// # Errors
/// When the result isn't valid.
pub(crate) fn inlined(model: &Model) -> Result<Option<Model>, LoadError> {
    let whole = model.proto();
    let mut imports = whole.opset_import.clone();
    let mut functions: HashMap<Key<'_>, &FunctionProto> = HashMap::new();
    // A function of the default domain would be taken for the operator.
    for function in whole.functions.iter().filter(|f| !domain(f.domain()).is_empty()) {
        if agree(&mut imports, &function.opset_import) {
            functions.insert(key(function), function);
        }
    }
    if !any(&whole.graph.node, &functions) {
        return Ok(None);
    }
    let graph = model.graph();
    let mut taken = Vec::new();
    graph.node.iter().for_each(|node| names_within(node, &mut taken));
    taken.extend(defined(graph));
    let mut inline = Inline { functions: &functions, names: Emitter::new(taken), left: NODES_MAX };
    let Some(nodes) = inline.nodes(&graph.node, 0) else { return Ok(None) };
    let mut proto = whole.clone();
    proto.graph.mut_or_insert_default().node = nodes;
    proto.opset_import = imports;
    let mut used: HashSet<Key<'_>> = HashSet::new();
    for function in whole.functions.iter().filter(|f| !functions.contains_key(&key(f))) {
        used.insert(key(function));
        // What such a function calls is still called.
        calls(&function.node, &mut used);
    }
    let mut before = 0;
    while before < used.len() {
        before = used.len();
        let more: Vec<&FunctionProto> = whole.functions.iter().filter(|f| used.contains(&key(f))).collect();
        more.into_iter().for_each(|f| calls(&f.node, &mut used));
    }
    proto.functions.retain(|f| used.contains(&key(f)));
    Ok(Some(Model::from_proto(proto)?))
}

/// Whether a function's operator sets are the model's; what the model doesn't
/// import is added to it.
fn agree(imports: &mut Vec<OperatorSetIdProto>, own: &[OperatorSetIdProto]) -> bool {
    let of = |list: &[OperatorSetIdProto], name: &str| {
        list.iter().find(|o| domain(o.domain()) == domain(name)).map(OperatorSetIdProto::version)
    };
    if own.iter().any(|o| of(imports, o.domain()).is_some_and(|version| version != o.version())) {
        return false;
    }
    let new: Vec<_> = own.iter().filter(|o| of(imports, o.domain()).is_none()).cloned().collect();
    imports.extend(new);
    true
}

fn any(nodes: &[NodeProto], functions: &HashMap<Key<'_>, &FunctionProto>) -> bool {
    nodes.iter().any(|n| functions.contains_key(&called(n)) || bodies(n).any(|body| any(&body.node, functions)))
}

fn calls<'n>(nodes: &'n [NodeProto], used: &mut HashSet<Key<'n>>) {
    for node in nodes {
        used.insert(called(node));
        bodies(node).for_each(|body| calls(&body.node, used));
    }
}

struct Inline<'f> {
    functions: &'f HashMap<Key<'f>, &'f FunctionProto>,
    names: Emitter,
    left: usize,
}

/// What names within a function are called outside.
type Names = HashMap<String, String>;

impl Inline<'_> {
    /// `None` when it becomes too much.
    fn nodes(&mut self, nodes: &[NodeProto], depth: usize) -> Option<Vec<NodeProto>> {
        if depth > DEPTH_MAX {
            return None;
        }
        let mut made = Vec::with_capacity(nodes.len());
        for node in nodes {
            if let Some(function) = self.functions.get(&called(node)) {
                let body = self.body(node, function);
                made.extend(self.nodes(&body, depth + 1)?);
                continue;
            }
            self.left = self.left.checked_sub(1)?;
            let mut node = node.clone();
            for body in node.attribute.iter_mut().flat_map(|a| a.g.as_mut().into_iter().chain(&mut a.graphs)) {
                body.node = self.nodes(&body.node, depth + 1)?;
            }
            made.push(node);
        }
        Some(made)
    }

    /// The nodes of a function as one call has them.
    fn body(&mut self, call: &NodeProto, function: &FunctionProto) -> Vec<NodeProto> {
        let label = call.output.iter().find(|o| !o.is_empty()).cloned().unwrap_or_default();
        let mut given: Call<'_> = function.attribute_proto.iter().map(|a| (a.name(), a)).collect();
        given.extend(call.attribute.iter().map(|a| (a.name(), a)));
        let mut names: Names = HashMap::new();
        for (at, name) in function.input.iter().enumerate() {
            names.insert(name.clone(), call.input.get(at).cloned().unwrap_or_default());
        }
        // Outputs that a node of the function makes have the caller's name at once.
        let mut copies = Vec::new();
        for (inside, outside) in function.output.iter().zip(&call.output).filter(|(_, o)| !o.is_empty()) {
            match names.get(inside) {
                Some(other) => copies.push((other.clone(), outside.clone())),
                None => drop(names.insert(inside.clone(), outside.clone())),
            }
        }
        let mut nodes: Vec<NodeProto> =
            function.node.iter().map(|node| self.renamed(node, &mut names, &given, &label)).collect();
        for (from, to) in copies {
            let copy = crate::emit::node("Identity", &[&from], &[&to], &[]);
            nodes.push(copy);
        }
        nodes
    }

    /// A name for what a function or a body in it makes.
    fn fresh(&mut self, names: &mut Names, name: &str, label: &str) -> String {
        if name.is_empty() {
            return String::new();
        }
        if let Some(known) = names.get(name) {
            return known.clone();
        }
        let made = self.names.name(&format!("{label}/{name}"));
        names.insert(name.to_owned(), made.clone());
        made
    }

    fn renamed(&mut self, node: &NodeProto, names: &mut Names, given: &Call<'_>, label: &str) -> NodeProto {
        let mut made = node.clone();
        if !node.name().is_empty() {
            made.name = Some(format!("{label}/{}", node.name()));
        }
        // In a function nodes may stand in any order: a name may be read first.
        for name in made.input.iter_mut().chain(&mut made.output) {
            *name = self.fresh(names, name, label);
        }
        made.attribute = node.attribute.iter().filter_map(|a| self.attribute(a, names, given, label)).collect();
        made
    }

    /// An attribute as the call gives it; `None` where it gives none.
    fn attribute(
        &mut self,
        attribute: &AttributeProto,
        names: &mut Names,
        given: &Call<'_>,
        label: &str,
    ) -> Option<AttributeProto> {
        let mut made = match attribute.ref_attr_name() {
            "" => attribute.clone(),
            from => AttributeProto { name: attribute.name.clone(), ..(*given.get(from)?).clone() },
        };
        // What the call gives are its own graphs, with the caller's names.
        if attribute.ref_attr_name().is_empty() {
            for body in made.g.as_mut().into_iter().chain(&mut made.graphs) {
                self.graph(body, names, given, label);
            }
        }
        Some(made)
    }

    /// A body sees the names around it; its own are new ones.
    fn graph(&mut self, body: &mut GraphProto, names: &Names, given: &Call<'_>, label: &str) {
        let mut inner = names.clone();
        defined(body).into_iter().for_each(|own| drop(inner.remove(own)));
        let rename = |this: &mut Self, inner: &mut Names, name: &mut Option<String>| {
            if let Some(name) = name {
                *name = this.fresh(inner, name, label);
            }
        };
        for value in body.input.iter_mut().chain(&mut body.output).chain(&mut body.value_info) {
            rename(self, &mut inner, &mut value.name);
        }
        for constant in &mut body.initializer {
            rename(self, &mut inner, &mut constant.name);
        }
        for annotation in &mut body.quantization_annotation {
            rename(self, &mut inner, &mut annotation.tensor_name);
        }
        let nodes = std::mem::take(&mut body.node);
        body.node = nodes.iter().map(|node| self.renamed(node, &mut inner, given, label)).collect();
    }
}

//! One way to say a thing: what files may write in several ways, a
//! [`Model`](crate::Model) holds in one, so that nothing behind its door has
//! to know the others.
//!
//! - Nodes stand in topological order, in bodies and functions as well.
//! - The default operator domain is `""`; files also write `ai.onnx`. Domains in
//!   use are imported, also those that ONNX Runtime's own tools leave out.
//! - No two nodes of a graph have the same name; the others go without.
//! - What has its value in the file is a weight: it isn't listed among the
//!   inputs, as files before IR 4 had to and some exporters still do. Training
//!   steps are the exception.
//! - Constants are dense; sparse ones are written out.
//!
//! Runs behind [`crate::check`], which found the model sound.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use crate::constant::{tensor_from_proto, tensor_to_proto};
use crate::error::LoadError;
use crate::index::{bodies, reads};
use crate::onnx::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    TensorProto, attribute_proto,
};
use crate::tensor::{DataType, Elements, Tensor, element_count};

/// Bytes that the sparse constants of a model may take together once they are
/// dense: a few indices can stand for any number of zeros.
const DENSE_BYTES_MAX: u64 = 512 << 20;

/// The first IR version in which weights needn't be inputs.
const IR_WITHOUT_LISTING: i64 = 4;

/// Domains that ONNX Runtime takes as imported, with the versions it takes:
/// its optimiser of transformers writes their operators without an import.
pub(crate) const UNIMPORTED: [(&str, i64); 2] = [("com.microsoft", 1), ("com.microsoft.nchwc", 1)];

pub(crate) fn normalise(model: &mut ModelProto) -> Result<(), LoadError> {
    imports(model);
    let mut dense = Dense { left: DENSE_BYTES_MAX };
    for function in &mut model.functions {
        in_function(function, &mut dense)?;
    }
    let Some(graph) = model.graph.as_mut() else { return Ok(()) };
    in_graph(graph, &mut dense)?;
    // The state of a training step is given by whoever takes it, but for the
    // first time: its values are defaults.
    let is_step = model.metadata_props.iter().any(|entry| entry.key() == crate::step::METADATA);
    if !is_step && unlist(graph) {
        model.ir_version = Some(model.ir_version().max(IR_WITHOUT_LISTING));
    }
    Ok(())
}

/// The default domain has two names; where a model imports both, `""` counts.
fn imports(model: &mut ModelProto) {
    let lists = model.functions.iter_mut().map(|f| &mut f.opset_import).chain([&mut model.opset_import]);
    for list in lists {
        let short = list.iter().any(|o| o.domain().is_empty());
        list.retain(|o| !(short && o.domain() == ALIAS));
        list.iter_mut().filter(|o| o.domain() == ALIAS).for_each(|o| o.domain = None);
    }
    if let Some(graph) = model.graph.as_ref() {
        import_used(&graph.node, &mut model.opset_import);
    }
    model.functions.iter_mut().for_each(|f| import_used(&f.node, &mut f.opset_import));
}

const ALIAS: &str = "ai.onnx";

/// Imports what nodes, in bodies too, use of [`UNIMPORTED`].
fn import_used(nodes: &[NodeProto], list: &mut Vec<OperatorSetIdProto>) {
    for node in nodes {
        let known = UNIMPORTED.iter().find(|(domain, _)| *domain == node.domain());
        if let Some((domain, version)) = known.filter(|(domain, _)| list.iter().all(|o| o.domain() != *domain)) {
            let domain = Some((*domain).to_owned());
            list.push(OperatorSetIdProto { domain, version: Some(*version), ..OperatorSetIdProto::default() });
        }
        bodies(node).for_each(|body| import_used(&body.node, list));
    }
}

/// Takes what has a value in the file off the list of inputs; whether there
/// was any.
fn unlist(graph: &mut GraphProto) -> bool {
    let filled: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    let before = graph.input.len();
    graph.input.retain(|input| !filled.contains(input.name()));
    graph.input.len() < before
}

fn in_function(function: &mut FunctionProto, dense: &mut Dense) -> Result<(), LoadError> {
    if function.domain() == ALIAS {
        function.domain = None;
    }
    function.attribute_proto.iter_mut().try_for_each(|a| in_attribute(a, dense))?;
    in_nodes(&mut function.node, dense)
}

fn in_graph(graph: &mut GraphProto, dense: &mut Dense) -> Result<(), LoadError> {
    for sparse in std::mem::take(&mut graph.sparse_initializer) {
        let name = sparse.values.name().to_owned();
        graph.initializer.push(dense.tensor(&sparse, &name)?);
    }
    in_nodes(&mut graph.node, dense)
}

fn in_nodes(nodes: &mut Vec<NodeProto>, dense: &mut Dense) -> Result<(), LoadError> {
    for node in nodes.iter_mut() {
        if node.domain() == ALIAS {
            node.domain = None;
        }
        node.attribute.iter_mut().try_for_each(|a| in_attribute(a, dense))?;
        if node.op_type() == "Constant" && node.domain().is_empty() {
            let sparse = node.attribute.iter_mut().filter(|a| a.name() == "sparse_value");
            sparse.for_each(|a| a.name = Some("value".to_owned()));
        }
        // Branches take no inputs: what they list are weights of theirs.
        if node.op_type() == "If" {
            for branch in node.attribute.iter_mut().filter_map(|a| a.g.as_mut()) {
                unlist(branch);
            }
        }
    }
    sort(nodes);
    let mut names: HashSet<String> = HashSet::new();
    for node in nodes.iter_mut().filter(|n| !n.name().is_empty()) {
        if !names.insert(node.name().to_owned()) {
            node.name = None;
        }
    }
    Ok(())
}

fn in_attribute(attribute: &mut AttributeProto, dense: &mut Dense) -> Result<(), LoadError> {
    use attribute_proto::AttributeType::{SPARSE_TENSOR, SPARSE_TENSORS, TENSOR, TENSORS};
    let name = attribute.name().to_owned();
    if let Some(sparse) = attribute.sparse_tensor.take() {
        attribute.t = Some(dense.tensor(&sparse, &name)?).into();
    }
    for sparse in std::mem::take(&mut attribute.sparse_tensors) {
        attribute.tensors.push(dense.tensor(&sparse, &name)?);
    }
    // References to an attribute of a function say the type as well.
    for (from, to) in [(SPARSE_TENSOR, TENSOR), (SPARSE_TENSORS, TENSORS)] {
        if attribute.type_ == Some(from as i32) {
            attribute.type_ = Some(to as i32);
        }
    }
    attribute.g.as_mut().into_iter().chain(&mut attribute.graphs).try_for_each(|g| in_graph(g, dense))
}

/// Puts nodes into topological order, those that need no other in the file's.
fn sort(nodes: &mut Vec<NodeProto>) {
    let order = {
        let outputs = nodes.iter().enumerate().flat_map(|(i, n)| n.output.iter().map(move |o| (o.as_str(), i)));
        let producer: HashMap<&str, usize> = outputs.filter(|(name, _)| !name.is_empty()).collect();
        let reads: Vec<Vec<&str>> = nodes.iter().map(reads).collect();
        let waits = |(i, names): (usize, &Vec<&str>)| names.iter().any(|n| producer.get(n).is_some_and(|p| *p >= i));
        if !reads.iter().enumerate().any(waits) {
            return;
        }
        topological(&producer, &reads)
    };
    let mut old: Vec<Option<NodeProto>> = std::mem::take(nodes).into_iter().map(Some).collect();
    nodes.extend(order.into_iter().filter_map(|n| old[n].take()));
}

/// Positions of nodes, each behind those that make what it reads. Kahn's
/// algorithm, smallest position first, so that a valid list keeps its order.
fn topological(producer: &HashMap<&str, usize>, reads: &[Vec<&str>]) -> Vec<usize> {
    let mut missing = vec![0usize; reads.len()];
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); reads.len()];
    for (node, names) in reads.iter().enumerate() {
        for name in names {
            if let Some(&from) = producer.get(name) {
                users[from].push(node);
                missing[node] += 1;
            }
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..missing.len()).filter(|&n| missing[n] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(missing.len());
    while let Some(Reverse(node)) = ready.pop() {
        order.push(node);
        for &user in &users[node] {
            missing[user] -= 1;
            if missing[user] == 0 {
                ready.push(Reverse(user));
            }
        }
    }
    order
}

/// Writes sparse constants out, within what is left of [`DENSE_BYTES_MAX`].
struct Dense {
    left: u64,
}

impl Dense {
    /// Values at the places that `indices` names, zeros elsewhere. Places are
    /// one number each (`[values]`) or one for each axis (`[values, axes]`).
    fn tensor(&mut self, sparse: &SparseTensorProto, name: &str) -> Result<TensorProto, LoadError> {
        let invalid = |reason: String| LoadError::Tensor { tensor: name.to_owned(), reason };
        let values = tensor_from_proto(&sparse.values)?;
        let indices = tensor_from_proto(&sparse.indices)?;
        let sizes: Vec<usize> = sparse
            .dims
            .iter()
            .map(|&d| usize::try_from(d).map_err(|_| invalid(format!("a dimension of {d}"))))
            .collect::<Result<_, _>>()?;
        let count = element_count(&sizes).map_err(|e| invalid(e.to_string()))?;
        let width = values.dtype().size().ok_or_else(|| invalid("strings cannot be sparse".into()))?;
        let bytes = count as u64 * width as u64;
        self.left = self.left.checked_sub(bytes).ok_or_else(|| {
            invalid(format!(
                "it is sparse and takes {bytes} bytes when written out; a model's sparse constants may take \
                 {DENSE_BYTES_MAX} together; store it as a dense tensor"
            ))
        })?;
        let positions = positions(&indices, values.len(), &sizes).map_err(&invalid)?;
        let from = values.elements().as_bytes().unwrap_or_default();
        let mut to = vec![0; count * width];
        for (value, at) in from.chunks_exact(width).zip(positions) {
            to[at * width..][..width].copy_from_slice(value);
        }
        let tensor = Tensor::from_bytes(values.dtype(), sizes, &to).map_err(|e| invalid(e.to_string()))?;
        Ok(tensor_to_proto(name, &tensor))
    }
}

/// Where each value stands, row-major.
fn positions(indices: &Tensor, values: usize, sizes: &[usize]) -> Result<Vec<usize>, String> {
    let Elements::I64(numbers) = indices.elements() else {
        return Err(format!("its indices are {}; they must be {}", indices.dtype(), DataType::I64));
    };
    let flat = [element_count(sizes).map_err(|e| e.to_string())?];
    let axes: &[usize] = match indices.shape() {
        [n] if *n == values => &flat,
        [n, rank] if *n == values && *rank == sizes.len() => sizes,
        other => return Err(format!("{values} values and indices of shape {other:?}")),
    };
    let place = |index: &[i64]| {
        let inside = |(i, size): (&i64, &usize)| usize::try_from(*i).ok().filter(|i| i < size);
        let place = index.iter().zip(axes).try_fold(0, |at, (i, size)| Some(at * size + inside((i, size))?));
        place.ok_or_else(|| format!("index {index:?} lies outside of {sizes:?}"))
    };
    // A scalar has no axes, and nothing to index it by.
    if axes.is_empty() {
        return Ok(vec![0; values.min(1)]);
    }
    numbers.chunks_exact(axes.len()).map(place).collect()
}

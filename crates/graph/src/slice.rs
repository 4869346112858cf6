//! Divides a model at cuts into models that run one after the other.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::error::LoadError;
use crate::index::Index;
use crate::infer::Types;
use crate::model::Model;
use crate::onnx::{
    GraphProto, ModelProto, TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto,
};
use crate::types::{Dim, ValueInfo};

/// Why a model can't be divided there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SliceError {
    /// No such tensor.
    #[error("cut {cut}: the model has no tensor `{tensor}`{}", near.as_ref().map_or(String::new(), |n| format!("; did you mean `{n}`?")))]
    Unknown {
        /// Which cut, from 0.
        cut: usize,
        /// The name.
        tensor: String,
        /// A name like it.
        near: Option<String>,
    },
    /// The tensor is a constant: every slice has it anyway.
    #[error("cut {cut}: `{tensor}` is a constant, not a computed tensor; leave it out")]
    Constant {
        /// Which cut.
        cut: usize,
        /// The name.
        tensor: String,
    },
    /// The frontier leaves something out.
    #[error("cut {cut}: what follows also needs {}; add them to the cut", missing.iter().map(|m| format!("`{m}`")).collect::<Vec<_>>().join(", "))]
    Incomplete {
        /// Which cut.
        cut: usize,
        /// Tensors to add.
        missing: Vec<String>,
    },
    /// The cuts aren't in topological order.
    #[error("cut {cut} does not lie behind cut {}; give cuts in the order in which they are computed", cut - 1)]
    Order {
        /// Which cut.
        cut: usize,
    },
    /// The slice isn't a valid model.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Divides `model` at `at`, one frontier per cut in topological order; `n`
/// cuts give `n + 1` models. Slice `i` takes frontier `i - 1` and gives
/// frontier `i`; the last gives the model's outputs.
///
/// Every node that an output needs is in exactly one slice, save those that
/// depend on constants alone: they are in each slice that uses them.
///
/// # Errors
/// [`SliceError`].
pub fn slice(model: &Model, types: &Types, at: &[Vec<String>]) -> Result<Vec<Model>, SliceError> {
    let slicer = Slicer::new(model, types);
    slicer.check(at)?;
    let outputs: Vec<&str> = slicer.index.graph.output.iter().map(|v| v.name()).collect();
    // Nodes needed to get from one boundary to the next.
    let mut boundaries: Vec<Vec<&str>> = vec![slicer.index.inputs()];
    boundaries.extend(at.iter().map(|f| f.iter().map(String::as_str).collect()));
    boundaries.push(outputs);
    // All that the slices so far compute.
    let mut before: HashSet<usize> = HashSet::new();
    let mut slices = Vec::with_capacity(boundaries.len() - 1);
    for part in 0..boundaries.len() - 1 {
        slices.push(slicer.part(part, at.len(), &boundaries[part], &boundaries[part + 1], &mut before)?);
    }
    Ok(slices)
}

/// The model that takes one frontier, or the model's inputs, and gives other
/// tensors of `model`.
///
/// # Errors
/// [`SliceError`]; cut 0 is the frontier taken.
pub(crate) fn between(
    model: &Model,
    types: &Types,
    given: Option<&[String]>,
    wanted: &[&str],
) -> Result<Model, SliceError> {
    let slicer = Slicer::new(model, types);
    if let Some(given) = given {
        slicer.check(&[given.to_vec()])?;
    }
    // Outputs of a model may be constants; frontiers may not.
    let computed = wanted.iter().filter(|name| slicer.index.is_dynamic(name));
    slicer.check(&[computed.map(|name| (*name).to_owned()).collect()])?;
    let taken: Vec<&str> = match given {
        Some(given) => given.iter().map(String::as_str).collect(),
        None => slicer.index.inputs(),
    };
    slicer.part(usize::from(given.is_some()), 1, &taken, wanted, &mut HashSet::new())
}

/// What all slices of a model are made from.
struct Slicer<'m> {
    model: &'m Model,
    types: &'m Types,
    index: Index<'m>,
    position: HashMap<usize, usize>,
    declared: HashMap<&'m str, &'m ValueInfoProto>,
}

impl<'m> Slicer<'m> {
    fn new(model: &'m Model, types: &'m Types) -> Self {
        let index = Index::new(model);
        let graph = index.graph;
        let position = index.order.iter().enumerate().map(|(p, &n)| (n, p)).collect();
        let declared =
            graph.input.iter().chain(&graph.output).chain(&graph.value_info).map(|v| (v.name(), v)).collect();
        Self { model, types, index, position, declared }
    }

    /// Refuses frontiers of tensors that aren't there, or of constants.
    fn check(&self, at: &[Vec<String>]) -> Result<(), SliceError> {
        let (index, inputs) = (&self.index, self.index.inputs());
        for (cut, frontier) in at.iter().enumerate() {
            for tensor in frontier {
                if !index.is_dynamic(tensor) {
                    return Err(SliceError::Constant { cut, tensor: tensor.clone() });
                }
                if !index.producer.contains_key(tensor.as_str()) && !inputs.contains(&tensor.as_str()) {
                    let names = index.producer.keys().chain(&inputs).copied().filter(|name| index.is_dynamic(name));
                    return Err(SliceError::Unknown { cut, tensor: tensor.clone(), near: nearest(tensor, names) });
                }
            }
        }
        Ok(())
    }

    /// Slice `part` of those that `cuts` cuts make. `before` is what the slices
    /// before it compute.
    fn part<'n>(
        &self,
        part: usize,
        cuts: usize,
        given: &[&'n str],
        wanted: &[&'n str],
        before: &mut HashSet<usize>,
    ) -> Result<Model, SliceError>
    where
        'm: 'n,
    {
        let index = &self.index;
        let taken: HashSet<&str> = given.iter().copied().collect();
        let nodes = index.needed_for(wanted, &taken);
        if part > 0 {
            // Walking back past the frontier means that it isn't complete:
            // name the values that cross it, not their causes.
            index.add_needed(given, &HashSet::new(), before);
            let is_before = |name: &str| index.producer.get(name).is_none_or(|p| before.contains(p));
            let crossing: BTreeSet<String> = nodes
                .iter()
                .filter(|n| !before.contains(n))
                .flat_map(|&n| index.reads[n].iter().copied())
                .chain(wanted.iter().copied())
                .filter(|name| !taken.contains(*name) && index.is_dynamic(name) && is_before(name))
                .map(str::to_owned)
                .collect();
            if !crossing.is_empty() {
                let behind = wanted.iter().all(|name| is_before(name));
                if behind && part < cuts {
                    return Err(SliceError::Order { cut: part });
                }
                return Err(SliceError::Incomplete { cut: part - 1, missing: crossing.into_iter().collect() });
            }
        }
        let mut nodes: Vec<usize> = nodes.into_iter().collect();
        nodes.sort_unstable_by_key(|n| self.position[n]);
        build(self.model, self.types, index, &self.declared, Part { nodes: &nodes, given, wanted })
    }
}

/// What one slice is made of: its nodes in order, and its boundaries.
struct Part<'p> {
    nodes: &'p [usize],
    given: &'p [&'p str],
    wanted: &'p [&'p str],
}

fn build(
    model: &Model,
    types: &Types,
    index: &Index<'_>,
    declared: &HashMap<&str, &ValueInfoProto>,
    part: Part<'_>,
) -> Result<Model, SliceError> {
    let Part { nodes, given, wanted } = part;
    let whole = index.graph;
    let value = |name: &str| -> ValueInfoProto {
        let inferred = types.get(name).filter(|t| t.dtype.is_some());
        match (inferred, declared.get(name)) {
            (Some(info), _) => value_info_proto(info),
            (None, Some(declared)) => (*declared).clone(),
            (None, None) => ValueInfoProto { name: Some(name.to_owned()), ..ValueInfoProto::default() },
        }
    };
    // A boundary of the whole model keeps what the file says of it.
    let outer = |name: &str, list: &[ValueInfoProto]| list.iter().find(|v| v.name() == name).cloned();
    let used: HashSet<&str> =
        nodes.iter().flat_map(|&n| index.reads[n].iter().copied()).chain(wanted.iter().copied()).collect();
    let made: HashSet<&str> = nodes.iter().flat_map(|&n| whole.node[n].output.iter().map(String::as_str)).collect();
    let mut graph = GraphProto {
        name: whole.name.clone(),
        doc_string: whole.doc_string.clone(),
        node: nodes.iter().map(|&n| whole.node[n].clone()).collect(),
        initializer: whole.initializer.iter().filter(|t| used.contains(t.name())).cloned().collect(),
        quantization_annotation: whole
            .quantization_annotation
            .iter()
            .filter(|a| used.contains(a.tensor_name()) || made.contains(a.tensor_name()))
            .cloned()
            .collect(),
        metadata_props: whole.metadata_props.clone(),
        ..GraphProto::default()
    };
    graph.special_fields = whole.special_fields.clone();
    graph.input = given.iter().map(|n| outer(n, &whole.input).unwrap_or_else(|| value(n))).collect();
    graph.output = wanted.iter().map(|n| outer(n, &whole.output).unwrap_or_else(|| value(n))).collect();
    graph.value_info = made
        .iter()
        .filter(|n| !wanted.contains(n) && !n.is_empty())
        .filter_map(|n| types.get(n).filter(|t| t.dtype.is_some()).map(value_info_proto))
        .collect();
    graph.value_info.sort_by(|a, b| a.name.cmp(&b.name));
    let proto = ModelProto { graph: Some(graph).into(), ..model.proto().clone() };
    Ok(Model::from_proto(proto)?)
}

/// A value's declaration as the file format writes it.
#[must_use]
pub fn value_info_proto(info: &ValueInfo) -> ValueInfoProto {
    let mut tensor =
        type_proto::Tensor { elem_type: info.dtype.map(crate::tensor::DataType::to_onnx), ..Default::default() };
    if let Some(shape) = &info.shape {
        let dim = shape
            .iter()
            .map(|d| {
                let mut dim = tensor_shape_proto::Dimension::new();
                match d {
                    Dim::Known(n) => dim.set_dim_value(*n as i64),
                    Dim::Symbol(s) => dim.set_dim_param(s.clone()),
                    Dim::Unknown => {}
                }
                dim
            })
            .collect();
        tensor.shape = Some(TensorShapeProto { dim, ..Default::default() }).into();
    }
    let mut type_ = TypeProto::new();
    type_.set_tensor_type(tensor);
    ValueInfoProto { name: Some(info.name.clone()), type_: Some(type_).into(), ..ValueInfoProto::default() }
}

/// The name most like `name`, if one is much like it.
fn nearest<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> Option<String> {
    let shared = |other: &str| name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    names.map(|n| (shared(n), n)).filter(|(s, _)| *s * 2 > name.len()).max().map(|(_, n)| n.to_owned())
}

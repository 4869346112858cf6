//! What a file notes of its constants, where its exporter noted something.
//!
//! PyTorch's exporter says in the metadata of a value which initialiser is a
//! parameter and which a buffer, and of what it computed one itself; its older
//! one keeps the names of a module's own numbers apart from those of
//! constants. TensorFlow's names say what is read of a variable. What is known
//! so is written into the constants' own metadata ([`noted`]): other notes are
//! lost when nodes are computed and models divided.

use std::collections::{HashMap, HashSet};

use crate::error::LoadError;
use crate::index::Index;
use crate::model::Model;
use crate::onnx::{GraphProto, NodeProto, StringStringEntryProto, TensorProto};
use crate::weights::{is_float, is_table, turns};

use super::names::{is_of_module, is_of_pytorch, is_older_constant, is_turned, is_variable};

/// Of a constant that a layer learns, wherever it stands.
const LEARNED: &str = "tierline.learned";

/// Of a constant that is a parameter or a buffer of a module: a layer learns it
/// even where others have constants of their architecture.
const OWN: &str = "tierline.own";

/// Of a constant that the exporter computed of parameters: their names, one a
/// line.
const COMPUTED_OF: &str = "tierline.computed_of";

/// Of a graph: parameters that the exporter left out of it, one a line.
const LEFT_OUT: &str = "tierline.left_out";

/// PyTorch's note of what a value is, and of what it was computed.
const KIND: &str = "pkg.torch.export.graph_signature.InputSpec.kind";
const FOLDED_FROM: &str = "pkg.onnxscript.optimizer.folded_from";

/// PyTorch's list of all inputs, among the notes of the graph.
const SIGNATURE: &str = "pkg.torch.export.ExportedProgram.graph_signature";

/// Whether it is noted that a constant is learned.
pub(crate) fn is_noted(tensor: &TensorProto) -> bool {
    note(&tensor.metadata_props, LEARNED).is_some()
}

/// Whether it is noted that a constant is a module's own.
pub(crate) fn is_own(tensor: &TensorProto) -> bool {
    note(&tensor.metadata_props, OWN).is_some()
}

/// Parameters that the exporter computed a constant of, in whose place it is
/// trained.
pub(crate) fn computed_of(tensor: &TensorProto) -> impl Iterator<Item = &str> {
    note(&tensor.metadata_props, COMPUTED_OF).into_iter().flat_map(str::lines)
}

/// Parameters of a module that its exporter left out of the file, and computed
/// nothing of that is in it.
pub(crate) fn left_out(graph: &GraphProto) -> impl Iterator<Item = &str> {
    note(&graph.metadata_props, LEFT_OUT).into_iter().flat_map(str::lines)
}

/// PyTorch's note of the call that a node was made of.
const CALL: &str = "pkg.torch.onnx.fx_node";

/// The call that PyTorch's exporter made a node of.
pub(crate) fn call_of(node: &NodeProto) -> Option<&str> {
    note(&node.metadata_props, CALL)
}

/// A module's parameters, as PyTorch's exporter lists them: what calls name
/// them, and what the module does.
pub(crate) struct Signature<'g>(HashMap<&'g str, &'g str>);

impl<'g> Signature<'g> {
    pub(crate) fn of(graph: &'g GraphProto) -> Option<Self> {
        let list = note(&graph.metadata_props, SIGNATURE)?;
        let entry = |line: &'g str| {
            let (argument, rest) = line.split_once(": PARAMETER target=")?;
            Some((argument.trim(), quoted(rest).next()?))
        };
        Some(Self(list.lines().filter_map(entry).collect()))
    }

    pub(crate) fn has(&self, parameter: &str) -> bool {
        self.0.values().any(|name| *name == parameter)
    }

    /// Parameters that a call takes, in order.
    pub(crate) fn taken_by(&self, call: &str) -> Vec<&'g str> {
        let words = call.split('%').skip(1).map(|rest| {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
            &rest[..end]
        });
        words.filter_map(|argument| self.0.get(argument).copied()).collect()
    }
}

/// What is left out of a graph as an exporter wrote it; `None` where that is
/// known already, or there is no telling.
fn missing(graph: &GraphProto) -> Option<Vec<&str>> {
    let known = note(&graph.metadata_props, LEFT_OUT).is_some();
    let list = note(&graph.metadata_props, SIGNATURE).filter(|_| !known)?;
    let parameters: Vec<&str> = listed(list).collect();
    let values = graph.value_info.iter().map(|v| &v.metadata_props);
    let all = values.chain(graph.initializer.iter().map(|t| &t.metadata_props));
    let folded = all.filter_map(|notes| note(notes, FOLDED_FROM)).flat_map(quoted);
    let here: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).chain(folded).collect();
    // A file whose names are others' tells nothing.
    let any = parameters.iter().any(|name| here.contains(name));
    any.then(|| parameters.into_iter().filter(|name| !here.contains(name)).collect())
}

fn note<'p>(notes: impl IntoIterator<Item = &'p StringStringEntryProto>, key: &str) -> Option<&'p str> {
    notes.into_iter().find(|n| n.key() == key).map(|n| n.value())
}

/// The model with notes at its constants, and names of initialisers that the
/// file says are learned by nothing.
///
/// # Errors
/// When the model isn't valid.
pub(crate) fn noted(model: Model) -> Result<(Model, HashSet<String>), LoadError> {
    let notes = read(&model);
    let constants = notes.iter().filter(|(_, note)| matches!(note, Note::Constant)).map(|(name, _)| name.clone());
    let constants = constants.collect();
    let of = |tensor: &TensorProto| match notes.get(tensor.name())? {
        Note::Learned => Some((LEARNED, "yes".to_owned())),
        Note::Own => Some((OWN, "yes".to_owned())),
        Note::ComputedOf(parameters) => Some((COMPUTED_OF, parameters.join("\n"))),
        Note::Constant => None,
    };
    let new = |t: &TensorProto| of(t).filter(|(key, _)| note(&t.metadata_props, key).is_none());
    let missing = missing(model.graph()).map(|names| names.join("\n"));
    if missing.is_none() && !model.graph().initializer.iter().any(|t| new(t).is_some()) {
        return Ok((model, constants));
    }
    let mut proto = model.proto().clone();
    if let Some(names) = missing {
        let (key, value) = (Some(LEFT_OUT.to_owned()), Some(names));
        let note = StringStringEntryProto { key, value, ..Default::default() };
        proto.graph.mut_or_insert_default().metadata_props.push(note);
    }
    for tensor in &mut proto.graph.mut_or_insert_default().initializer {
        if let Some((key, value)) = new(tensor) {
            let (key, value) = (Some(key.to_owned()), Some(value));
            tensor.metadata_props.push(StringStringEntryProto { key, value, ..Default::default() });
        }
    }
    Ok((Model::from_proto(proto)?, constants))
}

/// Constants that PyTorch's exporters computed, and the parameters of which, as
/// far as that is noted: the older one only names them apart.
pub(crate) fn made_by_exporter(model: &Model) -> HashMap<String, Vec<String>> {
    let graph = model.graph();
    let parameters = parameters(graph);
    let floats: HashSet<&str> = graph.initializer.iter().filter(|t| is_float(t)).map(|t| t.name()).collect();
    let mut found = HashMap::new();
    for value in graph.value_info.iter().filter(|v| floats.contains(v.name())) {
        let from = note(&value.metadata_props, FOLDED_FROM).unwrap_or_default();
        let from: Vec<String> = quoted(from).filter(|n| parameters.contains(n)).map(str::to_owned).collect();
        if !from.is_empty() {
            found.insert(value.name().to_owned(), from);
        }
    }
    if is_of_pytorch(model) {
        let older = floats.iter().filter(|name| is_older_constant(name));
        found.extend(older.map(|name| ((*name).to_owned(), Vec::new())));
    }
    found
}

enum Note {
    Learned,
    Own,
    Constant,
    ComputedOf(Vec<String>),
}

fn read(model: &Model) -> HashMap<String, Note> {
    let graph = model.graph();
    let mut said: HashMap<&str, Vec<&StringStringEntryProto>> = HashMap::new();
    graph.value_info.iter().for_each(|v| said.entry(v.name()).or_default().extend(&v.metadata_props));
    graph.initializer.iter().for_each(|t| said.entry(t.name()).or_default().extend(&t.metadata_props));
    let of = |name: &str, key| said.get(name).and_then(|notes| note(notes.iter().copied(), key));
    let parameters = parameters(graph);
    let is_older = is_of_pytorch(model)
        && note(&graph.metadata_props, SIGNATURE).is_none()
        && !said.keys().any(|name| of(name, KIND).is_some());
    let before = before_weights(model);
    let mut found = HashMap::new();
    for tensor in graph.initializer.iter().filter(|t| is_float(t)) {
        let name = tensor.name();
        let folded = of(name, FOLDED_FROM);
        let from = quoted(folded.unwrap_or_default()).filter(|n| parameters.contains(n));
        let from: Vec<String> = from.map(str::to_owned).collect();
        let steps = || quoted(folded.unwrap_or_default()).chain([name]).filter(|n| !parameters.contains(n));
        let single = tensor.dims.iter().product::<i64>() == 1;
        let found_here = match of(name, KIND) {
            Some("PARAMETER") => Note::Learned,
            Some(_) => Note::Constant,
            // A weight that is only transposed is as good as itself.
            None if from.len() > 1 || from.len() == 1 && !steps().all(is_turned) => Note::ComputedOf(from),
            None if from.len() == 1 => Note::Learned,
            // Of buffers and constants alone.
            None if folded.is_some() && from.is_empty() && !parameters.is_empty() => Note::Constant,
            None if is_variable(name) => Note::Learned,
            None if is_older && is_older_constant(name) && !single && !before.contains(name) => Note::Own,
            None if !is_older || !is_of_module(name) => continue,
            // Preparation of the input isn't learned, though a module has it.
            None if before.contains(name) && (single || is_of_channels(tensor)) => Note::Constant,
            None if is_table(tensor) => Note::Constant,
            None if single => Note::Learned,
            None if !before.contains(name) => Note::Own,
            None => continue,
        };
        found.insert(name.to_owned(), found_here);
    }
    found
}

/// Names of all parameters that PyTorch's list has.
fn parameters(graph: &GraphProto) -> HashSet<&str> {
    listed(note(&graph.metadata_props, SIGNATURE).unwrap_or_default()).collect()
}

fn listed(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter_map(|line| quoted(line.split_once(": PARAMETER target=")?.1).next())
}

/// What stands between single quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('\'').skip(1).step_by(2)
}

/// Whether a constant has a number for each channel of a picture.
fn is_of_channels(tensor: &TensorProto) -> bool {
    matches!(tensor.dims[..], [_, 1, 1] | [1, _, 1, 1] | [_, 1, 1, 1] | [1, _, 1, 1, 1])
}

/// Constants that inputs are shifted and scaled by before anything else.
fn before_weights(model: &Model) -> HashSet<&str> {
    let index = Index::new(model);
    let mut raw: HashSet<&str> = index.inputs().into_iter().collect();
    let mut found = HashSet::new();
    let scales = |n: &NodeProto| matches!(n.op_type(), "Add" | "Sub" | "Mul" | "Div" | "Cast") || turns(n);
    for &position in &index.order {
        let node = &index.graph.node[position];
        let (inputs, constants): (Vec<&str>, Vec<&str>) = index.reads[position].iter().partition(|n| raw.contains(*n));
        if !inputs.is_empty() && scales(node) && constants.iter().all(|n| !index.is_dynamic(n)) {
            raw.extend(node.output.iter().map(String::as_str));
            found.extend(constants);
        }
    }
    found
}

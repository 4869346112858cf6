//! Weights that lie in files beside the model: read and written.
//!
//! A model names those files itself, so a path is never trusted: only plain
//! files below the model's own folder are opened, symbolic links resolved.

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use crate::check::DEPTH_MAX;
use crate::constant::tensor_from_proto;
use crate::error::LoadError;
use crate::onnx::{AttributeProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto};
use crate::tensor::DataType;

/// `data_location` of a tensor whose bytes lie elsewhere.
pub(crate) const EXTERNAL: i32 = 1;

/// Weights smaller than this stay in the model's own file: shapes and axes,
/// which readers look at before they open anything else.
const MOVED_BYTES_MIN: u64 = 1024;

/// Weights start at multiples of a page, so that a reader may map them.
const ALIGNMENT: u64 = 4096;

/// Loads external data into the model that `file` holds.
pub(crate) fn resolve(model: &mut ModelProto, file: &Path) -> Result<(), LoadError> {
    let mut files: HashMap<PathBuf, Bytes> = HashMap::new();
    each_tensor(model, &mut |tensor| {
        if tensor.data_location() == EXTERNAL { load(tensor, file, &mut files) } else { Ok(()) }
    })
}

/// External data in a model that came without files.
pub(crate) fn unresolved(tensor: &TensorProto, name: &str) -> LoadError {
    let reason = "the model came as bytes, without the files beside it; give the path of the model file";
    LoadError::External { tensor: name.to_owned(), location: location(tensor).to_owned(), reason: reason.to_owned() }
}

type Visit<'f> = dyn FnMut(&mut TensorProto) -> Result<(), LoadError> + 'f;

/// Visits every constant, wherever the format allows one.
fn each_tensor(model: &mut ModelProto, f: &mut Visit<'_>) -> Result<(), LoadError> {
    if let Some(graph) = model.graph.as_mut() {
        in_graph(graph, 0, f)?;
    }
    for function in &mut model.functions {
        in_nodes(&mut function.node, 0, f)?;
        function.attribute_proto.iter_mut().try_for_each(|a| in_attribute(a, 0, f))?;
    }
    Ok(())
}

fn in_graph(graph: &mut GraphProto, depth: usize, f: &mut Visit<'_>) -> Result<(), LoadError> {
    if depth > DEPTH_MAX {
        return Err(LoadError::TooDeep { node: graph.name().to_owned(), max: DEPTH_MAX });
    }
    graph.initializer.iter_mut().try_for_each(&mut *f)?;
    let sparse =
        graph.sparse_initializer.iter_mut().flat_map(|s| s.values.as_mut().into_iter().chain(s.indices.as_mut()));
    sparse.into_iter().try_for_each(&mut *f)?;
    in_nodes(&mut graph.node, depth, f)
}

fn in_nodes(nodes: &mut [NodeProto], depth: usize, f: &mut Visit<'_>) -> Result<(), LoadError> {
    nodes.iter_mut().flat_map(|n| &mut n.attribute).try_for_each(|a| in_attribute(a, depth, f))
}

fn in_attribute(attribute: &mut AttributeProto, depth: usize, f: &mut Visit<'_>) -> Result<(), LoadError> {
    attribute.t.as_mut().into_iter().chain(&mut attribute.tensors).try_for_each(&mut *f)?;
    let sparse = attribute.sparse_tensor.as_mut().into_iter().chain(&mut attribute.sparse_tensors);
    sparse.flat_map(|s| s.values.as_mut().into_iter().chain(s.indices.as_mut())).try_for_each(&mut *f)?;
    attribute.g.as_mut().into_iter().chain(&mut attribute.graphs).try_for_each(|g| in_graph(g, depth + 1, f))
}

fn entry<'t>(tensor: &'t TensorProto, key: &str) -> Option<&'t str> {
    tensor.external_data.iter().find(|e| e.key() == key).map(|e| e.value())
}

fn location(tensor: &TensorProto) -> &str {
    entry(tensor, "location").unwrap_or("")
}

fn error(tensor: &TensorProto, reason: impl Into<String>) -> LoadError {
    LoadError::External {
        tensor: tensor.name().to_owned(),
        location: location(tensor).to_owned(),
        reason: reason.into(),
    }
}

fn load(tensor: &mut TensorProto, file: &Path, files: &mut HashMap<PathBuf, Bytes>) -> Result<(), LoadError> {
    if entry(tensor, "location").is_none() {
        return Err(error(tensor, "it names no file"));
    }
    let path = inside(file, location(tensor)).map_err(|reason| error(tensor, reason))?;
    let number = |key: &str| {
        let parse = |v: &str| v.parse::<u64>().map_err(|_| error(tensor, format!("{key} `{v}` is no number")));
        entry(tensor, key).map(parse).transpose()
    };
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    let bytes = match files.get(&path) {
        Some(bytes) => bytes.clone(),
        None => {
            let bytes = Bytes::from(read(&path).map_err(|e| error(tensor, format!("cannot be read: {e}")))?);
            files.insert(path, bytes.clone());
            bytes
        }
    };
    let size = bytes.len() as u64;
    let end = length.map_or(Some(size), |l| offset.checked_add(l)).filter(|&e| e <= size && offset <= e);
    let Some(end) = end else {
        return Err(error(tensor, format!("bytes {offset}.. lie outside the file's {size}; is it whole?")));
    };
    tensor.raw_data = Some(bytes.slice(offset as usize..end as usize));
    tensor.external_data.clear();
    tensor.data_location = None;
    Ok(())
}

/// A plain file's bytes: a pipe or a device would never end.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a plain file"));
    }
    std::fs::read(path)
}

/// A file below the folder of the model `file`, or why `location` isn't one.
/// Where the model is a link, the folder that it leads to counts as well:
/// download caches link models and their data into one store.
fn inside(file: &Path, location: &str) -> Result<PathBuf, String> {
    let relative = Path::new(location);
    if location.is_empty() || !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err("it must be a plain path below the model's folder".into());
    }
    let real = |p: &Path| p.canonicalize().map_err(|e| format!("cannot be found: {e}"));
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let store = real(file)?.parent().map(Path::to_owned);
    let path = real(&folder.join(relative))?;
    if path.starts_with(real(folder)?) || store.is_some_and(|s| path.starts_with(s)) {
        Ok(path)
    } else {
        Err("it leads out of the model's folder".into())
    }
}

/// Moves weights out of the model and writes them to `data`; the model then
/// names the file `location`.
pub(crate) fn split(model: &mut ModelProto, location: &str, data: &Path) -> Result<(), LoadError> {
    let failed = |source| LoadError::Write { path: data.to_owned(), source };
    let mut out = BufWriter::with_capacity(1 << 20, std::fs::File::create(data).map_err(failed)?);
    let mut at = 0u64;
    if let Some(graph) = model.graph.as_mut() {
        weights(graph, &mut |tensor| {
            let Some(bytes) = movable(tensor)? else { return Ok(()) };
            let start = at.next_multiple_of(ALIGNMENT);
            let padding = [0; ALIGNMENT as usize];
            out.write_all(&padding[..(start - at) as usize]).map_err(failed)?;
            out.write_all(&bytes).map_err(failed)?;
            at = start + bytes.len() as u64;
            refer(tensor, location, start, bytes.len() as u64);
            Ok(())
        })?;
    }
    let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)
}

/// Visits weights: initialisers and Constant nodes, for which every engine
/// reads files; for other attributes not every engine does.
fn weights(graph: &mut GraphProto, f: &mut Visit<'_>) -> Result<(), LoadError> {
    graph.initializer.iter_mut().try_for_each(&mut *f)?;
    for node in &mut graph.node {
        let constant = node.op_type() == "Constant" && node.domain().is_empty();
        for attribute in &mut node.attribute {
            attribute.t.as_mut().into_iter().filter(|_| constant).try_for_each(&mut *f)?;
            attribute.g.as_mut().into_iter().chain(&mut attribute.graphs).try_for_each(|g| weights(g, f))?;
        }
    }
    Ok(())
}

/// A weight's bytes, when it is one that can be moved and is worth it.
fn movable(tensor: &TensorProto) -> Result<Option<Bytes>, LoadError> {
    let bytes = match &tensor.raw_data {
        Some(raw) => Some(raw.clone()),
        // Numbers in typed fields are the same bytes, written another way.
        None if DataType::from_onnx(tensor.data_type()).is_some() => tensor_from_proto(tensor)?.to_bytes(),
        None => None,
    };
    Ok(bytes.filter(|b| b.len() as u64 >= MOVED_BYTES_MIN))
}

fn refer(tensor: &mut TensorProto, location: &str, offset: u64, length: u64) {
    *tensor = TensorProto {
        name: tensor.name.take(),
        dims: std::mem::take(&mut tensor.dims),
        data_type: tensor.data_type,
        doc_string: tensor.doc_string.take(),
        metadata_props: std::mem::take(&mut tensor.metadata_props),
        special_fields: std::mem::take(&mut tensor.special_fields),
        data_location: Some(EXTERNAL),
        external_data: [
            ("location", location.to_owned()),
            ("offset", offset.to_string()),
            ("length", length.to_string()),
        ]
        .into_iter()
        .map(|(key, value)| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value),
            ..StringStringEntryProto::default()
        })
        .collect(),
        ..TensorProto::default()
    };
}

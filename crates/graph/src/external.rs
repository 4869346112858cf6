//! Weights that lie in files beside the model: read and written.
//!
//! A model names those files itself, so a path is never trusted: only plain
//! files below the model's own folder are opened, symbolic links resolved.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufWriter, Read, Seek, Write};
use std::ops::Range;
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

/// Loads external data into the model that `file` holds: of each file the
/// parts that tensors name, once, however many share them.
pub(crate) fn resolve(model: &mut ModelProto, file: &Path) -> Result<(), LoadError> {
    let mut wanted: BTreeMap<PathBuf, Vec<(Range<u64>, String)>> = BTreeMap::new();
    let mut places: VecDeque<(PathBuf, Range<u64>)> = VecDeque::new();
    each_external(model, &mut |tensor| {
        let (path, range) = place(tensor, file)?;
        wanted.entry(path.clone()).or_default().push((range.clone(), tensor.name().to_owned()));
        places.push_back((path, range));
        Ok(())
    })?;
    if places.is_empty() {
        return Ok(());
    }
    let mut read: BTreeMap<PathBuf, Vec<(u64, Bytes)>> = BTreeMap::new();
    for (path, mut ranges) in wanted {
        ranges.sort_unstable_by_key(|(range, _)| range.start);
        let failed = |tensor: &str, e: std::io::Error| LoadError::External {
            tensor: tensor.to_owned(),
            location: path.display().to_string(),
            reason: format!("cannot be read: {e}"),
        };
        let mut parts = Vec::new();
        let mut source = std::fs::File::open(&path).map_err(|e| failed(&ranges[0].1, e))?;
        for (range, tensor) in merged(ranges) {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            let from = std::io::SeekFrom::Start(range.start);
            source.seek(from).and_then(|_| source.read_exact(&mut bytes)).map_err(|e| failed(&tensor, e))?;
            parts.push((range.start, Bytes::from(bytes)));
        }
        read.insert(path, parts);
    }
    each_external(model, &mut |tensor| {
        let Some((path, range)) = places.pop_front() else { return Ok(()) };
        let parts = read.get(&path).map(Vec::as_slice).unwrap_or_default();
        let at = parts.partition_point(|(start, _)| *start <= range.start).saturating_sub(1);
        let Some((start, bytes)) = parts.get(at) else { return Ok(()) };
        let slice = (range.start - start) as usize..(range.end - start) as usize;
        tensor.raw_data = Some(bytes.slice(slice));
        tensor.external_data.clear();
        tensor.data_location = None;
        Ok(())
    })
}

/// Ranges that overlap or touch as one, each with a tensor that wants it.
fn merged(sorted: Vec<(Range<u64>, String)>) -> Vec<(Range<u64>, String)> {
    let mut merged: Vec<(Range<u64>, String)> = Vec::new();
    for (range, tensor) in sorted {
        match merged.last_mut() {
            Some((last, _)) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push((range, tensor)),
        }
    }
    merged
}

fn each_external(model: &mut ModelProto, f: &mut Visit<'_>) -> Result<(), LoadError> {
    each_tensor(model, &mut |tensor| if tensor.data_location() == EXTERNAL { f(tensor) } else { Ok(()) })
}

/// Forgets the data of constants with more elements than `elements_max`.
pub(crate) fn without_data(model: &mut ModelProto, elements_max: u64) {
    let forget = &mut |tensor: &mut TensorProto| {
        let count = tensor.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?));
        if count.is_none_or(|n| n > elements_max) {
            let (name, dims) = (tensor.name.take(), std::mem::take(&mut tensor.dims));
            *tensor = TensorProto { name, dims, data_type: tensor.data_type, ..TensorProto::default() };
        }
        Ok(())
    };
    // The only error is depth, which a checked model doesn't have.
    let _ = each_tensor(model, forget);
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

/// The file and the bytes of it that hold a tensor's data.
fn place(tensor: &TensorProto, file: &Path) -> Result<(PathBuf, Range<u64>), LoadError> {
    if entry(tensor, "location").is_none() {
        return Err(error(tensor, "it names no file"));
    }
    let path = inside(file, location(tensor)).map_err(|reason| error(tensor, reason))?;
    let number = |key: &str| {
        let parse = |v: &str| v.parse::<u64>().map_err(|_| error(tensor, format!("{key} `{v}` is no number")));
        entry(tensor, key).map(parse).transpose()
    };
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    // A pipe or a device would never end.
    let kind = std::fs::metadata(&path).map_err(|e| error(tensor, format!("cannot be read: {e}")))?;
    if !kind.is_file() {
        return Err(error(tensor, "cannot be read: it is not a plain file"));
    }
    let size = kind.len();
    // Without a length it is as long as its shape says.
    let length = length.or_else(|| own_bytes(tensor)).unwrap_or(size.saturating_sub(offset));
    match offset.checked_add(length).filter(|&e| e <= size) {
        Some(end) => Ok((path, offset..end)),
        None => Err(error(tensor, format!("bytes {offset}.. lie outside the file's {size}; is it whole?"))),
    }
}

/// Bytes that a tensor of its shape and type takes; `None` where its type has
/// no whole bytes, or its shape is refused later.
fn own_bytes(tensor: &TensorProto) -> Option<u64> {
    let width = DataType::from_onnx(tensor.data_type())?.size()? as u64;
    tensor.dims.iter().try_fold(width, |bytes, &d| bytes.checked_mul(u64::try_from(d).ok()?))
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

//! Weights kept in files beside the model.
//!
//! A model names these files itself, so names are not trusted: only files
//! below the model's own folder are opened, symbolic links resolved.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use crate::error::LoadError;
use crate::onnx::{GraphProto, ModelProto, TensorProto};

/// `data_location` of a tensor whose bytes lie elsewhere.
const EXTERNAL: i32 = 1;

/// Loads external data into the model.
pub(crate) fn resolve(model: &mut ModelProto, folder: &Path) -> Result<(), LoadError> {
    let mut files: HashMap<PathBuf, Bytes> = HashMap::new();
    let Some(graph) = model.graph.as_mut() else { return Ok(()) };
    visit(graph, 0, &mut |tensor| load(tensor, folder, &mut files))
}

/// Refuses external data, for models that come without a folder.
pub(crate) fn refuse(model: &ModelProto) -> Result<(), LoadError> {
    let Some(graph) = model.graph.as_ref() else { return Ok(()) };
    let mut graph = graph.clone();
    visit(&mut graph, 0, &mut |tensor| {
        if tensor.data_location() != EXTERNAL {
            return Ok(());
        }
        Err(error(tensor, "the model came as bytes, without the files beside it; give the path of the model file"))
    })
}

fn visit(graph: &mut GraphProto, depth: usize, f: &mut impl FnMut(&mut TensorProto) -> Result<(), LoadError>) -> Result<(), LoadError> {
    if depth > crate::check::DEPTH_MAX {
        return Err(LoadError::TooDeep { node: graph.name().to_owned(), max: crate::check::DEPTH_MAX });
    }
    for tensor in &mut graph.initializer {
        f(tensor)?;
    }
    for attribute in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
        for tensor in attribute.t.as_mut().into_iter().chain(&mut attribute.tensors) {
            f(tensor)?;
        }
        for subgraph in attribute.g.as_mut().into_iter().chain(&mut attribute.graphs) {
            visit(subgraph, depth + 1, f)?;
        }
    }
    Ok(())
}

fn entry<'t>(tensor: &'t TensorProto, key: &str) -> Option<&'t str> {
    tensor.external_data.iter().find(|e| e.key() == key).map(|e| e.value())
}

fn error(tensor: &TensorProto, reason: impl Into<String>) -> LoadError {
    LoadError::External {
        tensor: tensor.name().to_owned(),
        location: entry(tensor, "location").unwrap_or("").to_owned(),
        reason: reason.into(),
    }
}

fn load(tensor: &mut TensorProto, folder: &Path, files: &mut HashMap<PathBuf, Bytes>) -> Result<(), LoadError> {
    if tensor.data_location() != EXTERNAL {
        return Ok(());
    }
    let location = entry(tensor, "location").ok_or_else(|| error(tensor, "it names no file"))?;
    let path = inside(folder, location).map_err(|reason| error(tensor, reason))?;
    let number = |key: &str| entry(tensor, key).map(|v| v.parse::<u64>().map_err(|_| error(tensor, format!("{key} `{v}` is no number")))).transpose();
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    let bytes = match files.get(&path) {
        Some(bytes) => bytes.clone(),
        None => {
            let bytes = Bytes::from(std::fs::read(&path).map_err(|e| error(tensor, format!("cannot be read: {e}")))?);
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

/// A file below `folder`, or why `location` isn't one.
fn inside(folder: &Path, location: &str) -> Result<PathBuf, String> {
    let relative = Path::new(location);
    if location.is_empty() || !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err("it must be a plain path below the model's folder".into());
    }
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let real = |p: &Path| p.canonicalize().map_err(|e| format!("cannot be found: {e}"));
    let (root, path) = (real(folder)?, real(&folder.join(relative))?);
    if path.starts_with(&root) { Ok(path) } else { Err("it leads out of the model's folder".into()) }
}

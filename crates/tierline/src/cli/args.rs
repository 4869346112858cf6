//! Arguments that several verbs read the same way.

use std::collections::BTreeMap;
use std::path::Path;

use tierline_graph::Tensor;

use super::usage;
use crate::output::{Exit, ExitWith, Failure, Outcome};

/// `NAME=1,3,224,224` options as shapes by input name.
pub fn shapes(options: &[String]) -> Outcome<BTreeMap<String, Vec<u64>>> {
    options
        .iter()
        .map(|option| {
            let (name, dims) = option
                .split_once('=')
                .ok_or_else(|| usage(format!("--shape {option}: write it as NAME=1,3,224,224")))?;
            let dims =
                dims.split(',').map(|d| d.trim().parse::<u64>()).collect::<Result<Vec<_>, _>>().map_err(|_| {
                    usage(format!("--shape {option}: sizes are whole numbers, as in {name}=1,3,224,224"))
                })?;
            Ok((name.to_owned(), dims))
        })
        .collect()
}

/// `NAME=@FILE.npy` options as tensors.
pub fn tensors(options: &[String]) -> Outcome<Vec<(String, Tensor)>> {
    options
        .iter()
        .map(|option| {
            let (name, file) = option
                .split_once("=@")
                .ok_or_else(|| usage(format!("--input {option}: write it as NAME=@FILE.npy")))?;
            Ok((name.to_owned(), read_npy(Path::new(file))?))
        })
        .collect()
}

/// A tensor from a NumPy file.
pub fn read_npy(path: &Path) -> Outcome<Tensor> {
    let bytes =
        std::fs::read(path).map_err(|e| Failure::message(Exit::Failure, format!("cannot read {path:?}: {e}")))?;
    tierline_codec::npy::read(&bytes).map_err(|e| anyhow::anyhow!("{path:?}: {e}")).exit_with(Exit::Failure)
}

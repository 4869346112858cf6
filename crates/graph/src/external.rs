//! Weights kept in files beside the model.

use std::path::Path;

use crate::error::LoadError;
use crate::onnx::ModelProto;

pub(crate) fn resolve(_model: &mut ModelProto, _folder: &Path) -> Result<(), LoadError> {
    Ok(())
}

pub(crate) fn refuse(_model: &ModelProto) -> Result<(), LoadError> {
    Ok(())
}

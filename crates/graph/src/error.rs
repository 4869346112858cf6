//! Why a file isn't a model that Tierline can work on.

use std::path::PathBuf;

/// Why a model can't be loaded or saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file can't be read.
    #[error("cannot read {path:?}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes aren't an ONNX model.
    #[error("not an ONNX model: {reason}; is the file whole? export it again or copy it again")]
    NotOnnx {
        /// What the decoder said.
        reason: String,
    },
    /// More than one protobuf file can hold.
    #[error("the model is too large for one file: {reason}; save it with external data")]
    TooLarge {
        /// What the encoder said.
        reason: String,
    },
}

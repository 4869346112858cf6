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
    /// The file can't be written.
    #[error("cannot write {path:?}: {source}")]
    Write {
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
    /// The bytes are known to be something else.
    #[error("not an ONNX model: it is {what}; {instead}")]
    OtherFormat {
        /// The format.
        what: &'static str,
        /// What to do.
        instead: &'static str,
    },
    /// More than one protobuf file can hold.
    #[error(
        "the model takes {bytes} bytes where one file of the format holds at most {max}; saved to a path its weights lie beside it, but nodes and engines take it in one piece"
    )]
    TooLarge {
        /// Bytes that the file would have.
        bytes: u64,
        /// Bytes that it may have.
        max: u64,
    },
    /// The message can't be written.
    #[error("the model cannot be encoded: {reason}")]
    Encode {
        /// What the encoder said.
        reason: String,
    },
    /// Older than Tierline reads.
    #[error("{what} version {version} is not supported ({supported}); export the model again with a newer exporter")]
    Version {
        /// `IR` or `operator set`.
        what: &'static str,
        /// Version in the file.
        version: i64,
        /// Versions that are.
        supported: &'static str,
    },
    /// An operator set that nodes use isn't imported.
    #[error("node `{node}` uses operator `{operator}` of domain `{domain}`, which the model does not import")]
    NoImport {
        /// The node.
        node: String,
        /// Its operator.
        operator: String,
        /// Its domain.
        domain: String,
    },
    /// A node reads a tensor that nothing makes.
    #[error("node `{node}` ({operator}) reads tensor `{tensor}`, which nothing makes")]
    MissingTensor {
        /// The node.
        node: String,
        /// Its operator.
        operator: String,
        /// The tensor.
        tensor: String,
    },
    /// A graph output that nothing makes.
    #[error("output `{tensor}` is made by no node and given by no input")]
    DanglingOutput {
        /// The output.
        tensor: String,
    },
    /// Two makers of one name.
    #[error("tensor `{tensor}` is made twice, the second time by {maker}")]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// Who makes it again.
        maker: String,
    },
    /// Nodes that wait for each other.
    #[error("the graph has a cycle through node `{node}` ({operator}), which makes `{tensor}`")]
    Cycle {
        /// A node of the cycle.
        node: String,
        /// Its operator.
        operator: String,
        /// What it makes.
        tensor: String,
    },
    /// A constant whose dimensions, type and data disagree.
    #[error("constant `{tensor}`: {reason}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// An input that nobody could ever give.
    #[error("input `{tensor}`: {reason}")]
    Input {
        /// The input.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// External data that can't be had.
    #[error("constant `{tensor}`: external data {location:?}: {reason}")]
    External {
        /// The tensor.
        tensor: String,
        /// File named by the model.
        location: String,
        /// What is wrong.
        reason: String,
    },
    /// Subgraphs within subgraphs.
    #[error("subgraphs nest deeper than {max} at node `{node}`")]
    TooDeep {
        /// The node.
        node: String,
        /// Levels allowed.
        max: usize,
    },
}

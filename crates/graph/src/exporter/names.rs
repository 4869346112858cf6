//! How exporters name what they write: what a name says of a constant.

use crate::model::Model;

/// How PyTorch's older exporter begins the names of what it computed.
const OLDER_CONSTANT: &str = "onnx::";

/// Whether a model comes of one of PyTorch's exporters.
pub(super) fn is_of_pytorch(model: &Model) -> bool {
    model.proto().producer_name() == "pytorch"
}

/// Whether PyTorch's older exporter would name so what it computed.
pub(super) fn is_older_constant(name: &str) -> bool {
    name.starts_with(OLDER_CONSTANT)
}

/// Whether PyTorch's older exporter would name a parameter or a buffer so.
pub(super) fn is_of_module(name: &str) -> bool {
    !is_older_constant(name) && !is_named_constant(name) && !name.bytes().all(|b| b.is_ascii_digit())
}

/// Whether an initialiser's name is one that PyTorch's exporters give to
/// constants, and to what they compute of such.
pub(super) fn is_named_constant(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let counted = |text: &str| text.is_empty() || text.strip_prefix('_').is_some_and(number);
    let of_trace = |name: &str| {
        let (_, last) = name.rsplit_once('/').unwrap_or(("", name));
        last.strip_suffix("_output_0").and_then(|n| n.strip_prefix("Constant")).is_some_and(counted)
    };
    name.strip_prefix("val_").is_some_and(number) || of_trace(name)
}

/// Whether PyTorch's exporter would name a weight so that it turned: linear
/// layers have no name for it, others that of the operator.
pub(super) fn is_turned(name: &str) -> bool {
    let counted = name.rsplit_once('_').filter(|(_, n)| n.bytes().all(|b| b.is_ascii_digit()));
    let known = ["val", "t", "transpose", "permute", "view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten"];
    known.contains(&counted.map_or(name, |(operator, _)| operator))
}

/// Whether a name is what TensorFlow's exporters give to what they read of a
/// variable.
pub(super) fn is_variable(name: &str) -> bool {
    name.contains("ReadVariableOp")
}

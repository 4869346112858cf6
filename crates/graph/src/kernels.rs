//! Operators beyond ONNX's own that an engine may have: faster forms of what
//! gradients and optimisers write in plain nodes.
//!
//! A graph that uses them runs only where they are, so whoever writes one says
//! which there are. The plain form is always there, and is what they are held
//! against.

use std::collections::BTreeSet;

use crate::onnx::{ModelProto, NodeProto, OperatorSetIdProto};

/// The domain of these operators.
pub const DOMAIN: &str = "tierline";

/// The version of the domain that is written.
const VERSION: i64 = 1;

/// Names of the operators of [`DOMAIN`] that may be used. Empty: plain ONNX.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kernels(BTreeSet<String>);

impl Kernels {
    /// Plain ONNX only.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether the operator of this name may be used.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

impl<N: Into<String>> FromIterator<N> for Kernels {
    fn from_iter<I: IntoIterator<Item = N>>(names: I) -> Self {
        Self(names.into_iter().map(Into::into).collect())
    }
}

/// Whether a node is of [`DOMAIN`].
fn is_ours(node: &NodeProto) -> bool {
    node.domain() == DOMAIN
}

/// Imports the domain if a node of the model is of it.
pub(crate) fn import(proto: &mut ModelProto) {
    let used = proto.graph.node.iter().any(is_ours);
    if used && !proto.opset_import.iter().any(|o| o.domain() == DOMAIN) {
        proto.opset_import.push(OperatorSetIdProto {
            domain: Some(DOMAIN.to_owned()),
            version: Some(VERSION),
            ..OperatorSetIdProto::default()
        });
    }
}

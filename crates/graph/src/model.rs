//! An ONNX model in memory: the file's own messages, nothing translated.
//!
//! [`Model`] owns the protobuf message, so whatever Tierline doesn't
//! interpret is still there when the model is saved. Views over it
//! (producers, consumers, types) are computed where they are needed.

use std::path::Path;

use bytes::Bytes;
use protobuf::Message;

use crate::error::LoadError;
use crate::onnx::{GraphProto, ModelProto, TypeProto, ValueInfoProto};
use crate::tensor::DataType;
use crate::types::{Dim, ValueInfo};

/// A checked ONNX model.
///
/// Weights are shared slices of the file that was read ([`Bytes`]), so a
/// clone or a slice of the model doesn't copy them.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    pub(crate) proto: ModelProto,
}

impl Model {
    /// Reads, resolves external data, and checks a model file.
    ///
    /// # Errors
    /// [`LoadError`], naming node and tensor.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let bytes = std::fs::read(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        let mut model = Self::decode(Bytes::from(bytes))?;
        crate::external::resolve(&mut model.proto, path.parent().unwrap_or(Path::new("")))?;
        crate::check::check(&model)?;
        Ok(model)
    }

    /// Reads and checks a model from bytes; external data is refused.
    ///
    /// # Errors
    /// [`LoadError`], naming node and tensor.
    pub fn parse(bytes: Bytes) -> Result<Self, LoadError> {
        let model = Self::decode(bytes)?;
        crate::external::refuse(&model.proto)?;
        crate::check::check(&model)?;
        Ok(model)
    }

    /// Wraps a message built by Tierline itself, checking it all the same.
    ///
    /// # Errors
    /// [`LoadError`], naming node and tensor.
    pub fn from_proto(proto: ModelProto) -> Result<Self, LoadError> {
        let model = Self { proto };
        crate::check::check(&model)?;
        Ok(model)
    }

    fn decode(bytes: Bytes) -> Result<Self, LoadError> {
        let proto =
            ModelProto::parse_from_tokio_bytes(&bytes).map_err(|e| LoadError::NotOnnx { reason: e.to_string() })?;
        Ok(Self { proto })
    }

    /// The model as one self-contained ONNX file.
    ///
    /// # Errors
    /// When it exceeds protobuf's 2 GiB.
    pub fn to_bytes(&self) -> Result<Vec<u8>, LoadError> {
        self.proto.write_to_bytes().map_err(|e| LoadError::TooLarge { reason: e.to_string() })
    }

    /// Writes one self-contained file: whole, or not at all.
    ///
    /// # Errors
    /// When the disk refuses, or the model exceeds 2 GiB.
    pub fn save(&self, path: &Path) -> Result<(), LoadError> {
        let write = |source| LoadError::Write { path: path.to_owned(), source };
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        std::fs::write(&partial, self.to_bytes()?).map_err(write)?;
        std::fs::rename(&partial, path).map_err(write)
    }

    /// The underlying message.
    #[must_use]
    pub fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// The main graph's message.
    #[must_use]
    pub fn graph(&self) -> &GraphProto {
        &self.proto.graph
    }

    /// Inputs that a caller must give: graph inputs that no initialiser fills.
    #[must_use]
    pub fn inputs(&self) -> Vec<ValueInfo> {
        let filled: std::collections::HashSet<&str> = self.graph().initializer.iter().map(|t| t.name()).collect();
        self.graph().input.iter().filter(|v| !filled.contains(v.name())).map(value_info).collect()
    }

    /// The graph's outputs, in order.
    #[must_use]
    pub fn outputs(&self) -> Vec<ValueInfo> {
        self.graph().output.iter().map(value_info).collect()
    }

    /// Version of an imported operator set; the default domain is `""`.
    #[must_use]
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let canonical = |d: &str| if d == "ai.onnx" { String::new() } else { d.to_owned() };
        self.proto.opset_import.iter().find(|o| canonical(o.domain()) == canonical(domain)).map(|o| o.version())
    }
}

/// Name, element type and shape as declared by a message.
#[must_use]
pub fn value_info(v: &ValueInfoProto) -> ValueInfo {
    let (dtype, shape) = v.type_.as_ref().map_or((None, None), tensor_type);
    ValueInfo { name: v.name().to_owned(), dtype, shape }
}

pub(crate) fn tensor_type(t: &TypeProto) -> (Option<DataType>, Option<Vec<Dim>>) {
    if !t.has_tensor_type() {
        return (None, None);
    }
    let tensor = t.tensor_type();
    let shape = tensor.shape.as_ref().map(|s| {
        s.dim
            .iter()
            .map(|d| {
                if d.has_dim_value() && d.dim_value() >= 0 {
                    Dim::Known(d.dim_value() as u64)
                // Some exporters name every free axis `?`: that says nothing of any two.
                } else if d.has_dim_param() && !matches!(d.dim_param(), "" | "?") {
                    Dim::Symbol(d.dim_param().to_owned())
                } else {
                    Dim::Unknown
                }
            })
            .collect()
    });
    (DataType::from_onnx(tensor.elem_type()), shape)
}

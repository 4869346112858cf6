//! An ONNX model in memory: the file's own messages, nothing translated.
//!
//! [`Model`] owns the protobuf message, so whatever Tierline doesn't
//! interpret is still there when the model is saved. Views over it
//! (producers, consumers, types) are computed where they are needed.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use protobuf::Message;

use crate::error::LoadError;
use crate::onnx::{GraphProto, ModelProto, TypeProto, ValueInfoProto};
use crate::tensor::DataType;
use crate::types::{Dim, ValueInfo};

/// Bytes of a model's own file at most: protobuf's readers take lengths as
/// signed 32-bit numbers.
pub const FILE_BYTES_MAX: u64 = i32::MAX as u64;

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
        crate::external::resolve(&mut model.proto, path)?;
        crate::check::check(&model)?;
        Ok(model)
    }

    /// Reads and checks a model from bytes; external data is refused.
    ///
    /// # Errors
    /// [`LoadError`], naming node and tensor.
    pub fn parse(bytes: Bytes) -> Result<Self, LoadError> {
        let model = Self::decode(bytes)?;
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
        if let Err(reason) = check_fields(&bytes) {
            return Err(LoadError::NotOnnx { reason: reason.to_owned() });
        }
        let proto =
            ModelProto::parse_from_tokio_bytes(&bytes).map_err(|e| LoadError::NotOnnx { reason: e.to_string() })?;
        Ok(Self { proto })
    }

    /// The model as one self-contained ONNX file.
    ///
    /// # Errors
    /// When it exceeds [`FILE_BYTES_MAX`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, LoadError> {
        encode(&self.proto, FILE_BYTES_MAX)
    }

    /// Writes the model: one self-contained file where that can hold it, else
    /// with its weights beside it in `<file name>.data`.
    ///
    /// Files appear whole or not at all. With weights beside it, a model
    /// that stood there before is removed first, so that it is never read with
    /// the weights of another.
    ///
    /// # Errors
    /// When the disk refuses, or what must stay in the model's own file
    /// exceeds [`FILE_BYTES_MAX`].
    pub fn save(&self, path: &Path) -> Result<(), LoadError> {
        self.save_within(path, FILE_BYTES_MAX)
    }

    /// [`Model::save`] with a lower limit for the model's own file, in bytes.
    ///
    /// # Errors
    /// As [`Model::save`].
    pub fn save_within(&self, path: &Path, file_bytes_max: u64) -> Result<(), LoadError> {
        let max = file_bytes_max.min(FILE_BYTES_MAX);
        if self.proto.compute_size() <= max {
            let bytes = encode(&self.proto, max)?;
            return whole(path, |partial| write(partial, &bytes));
        }
        let data = beside(path, ".data");
        let Some(location) = data.file_name().and_then(|n| n.to_str()) else {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the file's name is not UTF-8");
            return Err(LoadError::Write { path: path.to_owned(), source });
        };
        let mut proto = self.proto.clone();
        let mut bytes = Vec::new();
        whole(&data, |partial| {
            crate::external::split(&mut proto, location, partial)?;
            bytes = encode(&proto, max)?;
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(LoadError::Write { path: path.to_owned(), source: e })
                }
                _ => Ok(()),
            }
        })?;
        whole(path, |partial| write(partial, &bytes))
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

/// Walks a message's outermost fields: the decoder takes a message that ends
/// within a field for one whose field is short.
fn check_fields(mut bytes: &[u8]) -> Result<(), &'static str> {
    const SHORT: &str = "the file ends within a field";
    fn varint(bytes: &mut &[u8]) -> Result<u64, &'static str> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = bytes.split_first().ok_or(SHORT)?;
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number has too many bytes")
    }
    while !bytes.is_empty() {
        let length = match varint(&mut bytes)? & 7 {
            0 => varint(&mut bytes).map(|_| 0)?,
            1 => 8,
            2 => varint(&mut bytes)?,
            5 => 4,
            _ => return Err("a field is of no known kind"),
        };
        let length = usize::try_from(length).ok().filter(|&l| l <= bytes.len()).ok_or(SHORT)?;
        bytes = &bytes[length..];
    }
    Ok(())
}

/// Bytes of a message at most `max` long.
fn encode(proto: &ModelProto, max: u64) -> Result<Vec<u8>, LoadError> {
    let failed = |e: protobuf::Error| LoadError::Encode { reason: e.to_string() };
    // The encoder itself would write lengths that no decoder takes.
    let size = proto.compute_size();
    if size > max {
        return Err(LoadError::TooLarge { bytes: size, max });
    }
    let mut bytes = Vec::with_capacity(size as usize);
    let mut out = protobuf::CodedOutputStream::vec(&mut bytes);
    proto.write_to_with_cached_sizes(&mut out).map_err(failed)?;
    out.flush().map_err(failed)?;
    drop(out);
    Ok(bytes)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), LoadError> {
    std::fs::write(path, bytes).map_err(|source| LoadError::Write { path: path.to_owned(), source })
}

/// Makes a file under a passing name, and gives it its own once it is whole.
fn whole(path: &Path, make: impl FnOnce(&Path) -> Result<(), LoadError>) -> Result<(), LoadError> {
    let partial = beside(path, ".partial");
    let made = make(&partial).and_then(|()| {
        std::fs::rename(&partial, path).map_err(|source| LoadError::Write { path: path.to_owned(), source })
    });
    if made.is_err() {
        // What is left of it helps nobody; the error that counts is `made`.
        let _ = std::fs::remove_file(&partial);
    }
    made
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

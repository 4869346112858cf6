//! An ONNX model in memory: the file's own messages, nothing translated.
//!
//! [`Model`] owns the protobuf message, so whatever Tierline doesn't
//! interpret is still there when the model is saved. Views over it
//! (producers, consumers, types) are computed where they are needed.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use protobuf::Message;

use crate::error::LoadError;
use crate::infer::Types;
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
        let mut proto = decode(Bytes::from(bytes))?;
        crate::external::resolve(&mut proto, path)?;
        Self::from_proto(proto)
    }

    /// Reads and checks a model from bytes; external data is refused.
    ///
    /// # Errors
    /// [`LoadError`], naming node and tensor.
    pub fn parse(bytes: Bytes) -> Result<Self, LoadError> {
        Self::from_proto(decode(bytes)?)
    }

    /// Checks a message, Tierline's own as well, and brings it into normal
    /// form: nodes in topological order, constants dense, weights that aren't
    /// inputs.
    ///
    /// # Errors
    /// [`LoadError`], naming node and tensor.
    pub fn from_proto(mut proto: ModelProto) -> Result<Self, LoadError> {
        crate::check::check(&proto)?;
        crate::normal::normalise(&mut proto)?;
        Ok(Self { proto })
    }

    /// The model as one self-contained ONNX file.
    ///
    /// # Errors
    /// When it exceeds [`FILE_BYTES_MAX`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, LoadError> {
        fits(&self.proto, FILE_BYTES_MAX)?;
        self.proto.write_to_bytes().map_err(|e| LoadError::Encode { reason: e.to_string() })
    }

    /// Writes the bytes of [`Model::to_bytes`], without a copy of them in
    /// memory and without its limit; gives their number.
    ///
    /// # Errors
    /// When `to` refuses them.
    pub fn write(&self, to: &mut dyn std::io::Write) -> std::io::Result<u64> {
        let bytes = self.proto.compute_size();
        let mut out = protobuf::CodedOutputStream::new(to);
        // The message's own writer refuses what no reader takes.
        self.proto.write_to_with_cached_sizes(&mut out)?;
        out.flush()?;
        Ok(bytes)
    }

    /// Refuses a model that doesn't fit into one file.
    ///
    /// # Errors
    /// When it exceeds [`FILE_BYTES_MAX`].
    pub fn check_one_file(&self) -> Result<(), LoadError> {
        fits(&self.proto, FILE_BYTES_MAX).map(drop)
    }

    /// Bytes of [`Model::to_bytes`], whether or not they fit into one file.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.proto.compute_size()
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
        if fits(&self.proto, max).is_ok() {
            return whole(path, |partial| write(partial, &self.proto));
        }
        let data = beside(path, ".data");
        let Some(location) = data.file_name().and_then(|n| n.to_str()) else {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the file's name is not UTF-8");
            return Err(LoadError::Write { path: path.to_owned(), source });
        };
        let mut proto = self.proto.clone();
        whole(&data, |partial| {
            crate::external::split(&mut proto, location, partial)?;
            fits(&proto, max)?;
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(LoadError::Write { path: path.to_owned(), source: e })
                }
                _ => Ok(()),
            }
        })?;
        whole(path, |partial| write(partial, &proto))
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

    /// Inputs that a caller must give, in order.
    #[must_use]
    pub fn inputs(&self) -> Vec<ValueInfo> {
        self.graph().input.iter().map(value_info).collect()
    }

    /// The same with its inputs declared as in `types`, such as with sizes for
    /// axes that were free.
    #[must_use]
    pub fn with_input_types(&self, types: &Types) -> Self {
        let mut proto = self.proto.clone();
        for input in &mut proto.graph.mut_or_insert_default().input {
            if let Some(info) = types.get(input.name()).filter(|t| t.dtype.is_some()) {
                input.type_ = crate::slice::value_info_proto(info).type_;
            }
        }
        Self { proto }
    }

    /// The model without the data of its large constants, whose shapes and
    /// types stay: enough to infer types again and again, not to be saved.
    #[must_use]
    pub fn outline(&self) -> Self {
        let mut proto = self.proto.clone();
        crate::external::without_data(&mut proto, crate::infer::FOLLOWED_MAX);
        Self { proto }
    }

    /// The graph's outputs, in order.
    #[must_use]
    pub fn outputs(&self) -> Vec<ValueInfo> {
        self.graph().output.iter().map(value_info).collect()
    }

    /// Version of an imported operator set; the default domain is `""`.
    #[must_use]
    pub fn opset(&self, domain: &str) -> Option<i64> {
        self.proto.opset_import.iter().find(|o| o.domain() == domain).map(|o| o.version())
    }
}

fn decode(bytes: Bytes) -> Result<ModelProto, LoadError> {
    let parse = |()| ModelProto::parse_from_tokio_bytes(&bytes).map_err(|e| e.to_string());
    check_fields(&bytes).map_err(str::to_owned).and_then(parse).map_err(|reason| match other_format(&bytes) {
        Some((what, instead)) => LoadError::OtherFormat { what, instead },
        None => LoadError::NotOnnx { reason },
    })
}

/// What is often given in a model's place, by its first bytes, and what to do
/// about it.
fn other_format(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    const EXPORT: &str = "export it to ONNX";
    const FETCH: &str = "fetch the file itself (`git lfs pull`)";
    const DOWNLOAD: &str = "download the file itself";
    const FORMATS: [(usize, &[u8], &str, &str); 9] = [
        (0, b"version https://git-lfs", "a Git LFS pointer", FETCH),
        (4, b"ORTM", "ONNX Runtime's own format", "give the ONNX file that it was made of"),
        (4, b"TFL3", "a TensorFlow Lite model", EXPORT),
        (0, b"PK\x03\x04", "an archive, as PyTorch saves models", "unpack it, or export the model to ONNX"),
        (0, b"\x89HDF", "an HDF5 file, as Keras saves models", EXPORT),
        (0, b"\x1f\x8b", "compressed", "unpack it"),
        (0, b"GGUF", "a GGUF file", EXPORT),
        (0, b"<!DOCTYPE", "a web page", DOWNLOAD),
        (0, b"<html", "a web page", DOWNLOAD),
    ];
    let found = FORMATS.iter().find(|(at, mark, ..)| bytes.get(*at..).is_some_and(|rest| rest.starts_with(mark)));
    found.map(|(_, _, what, instead)| (*what, *instead))
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

/// Refuses what no file can hold: the encoder itself would write lengths that
/// no decoder takes.
fn fits(proto: &ModelProto, max: u64) -> Result<u64, LoadError> {
    let bytes = proto.compute_size();
    if bytes > max { Err(LoadError::TooLarge { bytes, max }) } else { Ok(bytes) }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// Writes a message to a file, without a copy of it in memory.
fn write(path: &Path, proto: &ModelProto) -> Result<(), LoadError> {
    let failed = |source| LoadError::Write { path: path.to_owned(), source };
    let mut file = std::fs::File::create(path).map_err(failed)?;
    proto.write_to_writer(&mut file).map_err(|e| failed(e.into()))
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

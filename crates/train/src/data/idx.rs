//! IDX, the format of MNIST and its successors, plain or gzipped.
//!
//! A file is two zero bytes, a type, the number of axes, their sizes as
//! big-endian u32, and the elements, big-endian (LeCun, Cortes and Burges,
//! "The MNIST database", 1998).

use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use tierline_graph::tensor::element_count;
use tierline_graph::{DataType, Tensor};

use super::error::DataError;
use super::files;
use super::targets::{Part, TargetOptions};

/// An axis costs four bytes of header; pictures have three or four.
const RANK_MAX: usize = 8;

/// IDX files, `.gz` or not.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Idx {
    /// Features; u8 of `[n, height, width]` become `[n, 1, height, width]`.
    pub images: PathBuf,
    /// One label each.
    pub labels: PathBuf,
    /// Features of the split `test`; the others are `train` then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_images: Option<PathBuf>,
    /// Labels of the split `test`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_labels: Option<PathBuf>,
    /// How labels are taken.
    #[serde(default)]
    pub targets: TargetOptions,
}

impl Idx {
    pub(super) fn read(&self) -> Result<Vec<Part>, DataError> {
        let part = |split, images: &Path, labels: &Path| {
            Ok::<_, DataError>(Part {
                path: images.into(),
                split,
                features: with_channels(tensor(images)?)?,
                labels: tensor(labels)?.into(),
                groups: None,
                columns: Vec::new(),
                classes: Vec::new(),
                notes: Vec::new(),
            })
        };
        match (&self.test_images, &self.test_labels) {
            (None, None) => Ok(vec![part("", &self.images, &self.labels)?]),
            (Some(images), Some(labels)) => {
                Ok(vec![part("train", &self.images, &self.labels)?, part("test", images, labels)?])
            }
            _ => Err(DataError::Option {
                option: "test_images",
                reason: "test_images and test_labels come together; give both or neither".to_owned(),
            }),
        }
    }
}

/// Grey pictures have one channel.
pub(super) fn with_channels(tensor: Tensor) -> Result<Tensor, DataError> {
    match (tensor.dtype(), tensor.shape()) {
        (DataType::U8, &[n, height, width]) => Ok(Tensor::new([n, 1, height, width], tensor.into_parts().1)?),
        _ => Ok(tensor),
    }
}

fn tensor(path: &Path) -> Result<Tensor, DataError> {
    let bytes = files::read(path)?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return decode(path, &bytes[..], Some(bytes.len() as u64));
    }
    decode(path, MultiGzDecoder::new(&bytes[..]), None)
}

/// Reads the tensor, of which `available` bytes are there when known.
fn decode(path: &Path, mut from: impl Read, available: Option<u64>) -> Result<Tensor, DataError> {
    let format = |reason: String| DataError::Format { path: path.into(), format: "IDX", reason };
    let unread = |e: std::io::Error| format(format!("the header cannot be read: {e}"));
    let mut magic = [0; 4];
    from.read_exact(&mut magic).map_err(unread)?;
    let dtype = match magic {
        [0, 0, 0x08, _] => DataType::U8,
        [0, 0, 0x09, _] => DataType::I8,
        [0, 0, 0x0b, _] => DataType::I16,
        [0, 0, 0x0c, _] => DataType::I32,
        [0, 0, 0x0d, _] => DataType::F32,
        [0, 0, 0x0e, _] => DataType::F64,
        [0, 0, other, _] => return Err(format(format!("element type 0x{other:02x} is unknown"))),
        _ => return Err(format("the first two bytes aren't zero".to_owned())),
    };
    let rank = usize::from(magic[3]);
    if rank == 0 || rank > RANK_MAX {
        return Err(format(format!("it has {rank} axes; 1 to {RANK_MAX} are read")));
    }
    let mut sizes = vec![[0; 4]; rank];
    from.read_exact(sizes.as_flattened_mut()).map_err(unread)?;
    let shape: Vec<usize> = sizes.into_iter().map(|size| u32::from_be_bytes(size) as usize).collect();
    let size = dtype.size().unwrap_or(1);
    let expected = (element_count(&shape)? as u64).saturating_mul(size as u64);
    files::limit(path, "bytes", expected)?;
    if let Some(actual) = available.map(|all| all.saturating_sub(4 + 4 * rank as u64)).filter(|a| *a != expected) {
        return Err(DataError::Length { path: path.into(), expected, actual });
    }
    // Grows as bytes come: a header alone cannot make it allocate. The byte
    // beyond shows that more follows.
    let mut body = Vec::new();
    from.take(expected + 1).read_to_end(&mut body).map_err(|e| format(format!("decompression fails: {e}")))?;
    if body.len() as u64 != expected {
        return Err(DataError::Length { path: path.into(), expected, actual: body.len() as u64 });
    }
    if size > 1 {
        body.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    }
    Ok(Tensor::from_bytes(dtype, shape, &body)?)
}

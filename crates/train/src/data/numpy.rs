//! NumPy arrays: a pair of `.npy` files, or an `.npz` archive of several.

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use tierline_codec::npy;
use tierline_graph::{DataType, Elements, Tensor};
use zip::ZipArchive;

use super::error::DataError;
use super::files;
use super::idx::with_channels;
use super::targets::{Part, TargetOptions};

/// Arrays of one archive; real ones hold a handful.
const ARRAYS_MAX: usize = 4_096;

/// Names under which archives keep features, labels, and both of the split
/// `test`; the first whose features and labels are there are taken.
const USUAL_NAMES: &[[&str; 4]] = &[
    ["x", "y", "x_test", "y_test"],
    ["x_train", "y_train", "x_test", "y_test"],
    ["X", "y", "X_test", "y_test"],
    ["X_train", "y_train", "X_test", "y_test"],
    ["train_images", "train_labels", "test_images", "test_labels"],
    ["images", "labels", "test_images", "test_labels"],
    ["data", "labels", "test_data", "test_labels"],
    ["data", "target", "test_data", "test_target"],
    ["features", "labels", "test_features", "test_labels"],
];

/// Where pictures of u8 keep their channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Layout {
    /// `[n, channels, height, width]`, as PyTorch and ONNX have it.
    ChannelsFirst,
    /// `[n, height, width, channels]`, as Keras has it; turned round on load.
    ChannelsLast,
}

/// Two `.npy` files.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Npy {
    /// Features `[n, ...]`.
    pub features: PathBuf,
    /// Targets `[n]` or `[n, ...]`.
    pub labels: PathBuf,
    /// Features of the split `test`; the others are `train` then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_features: Option<PathBuf>,
    /// Targets of the split `test`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_labels: Option<PathBuf>,
    /// Of features with four axes. Left out, pictures of u8 show it by their 1
    /// or 3 channels, and other features are taken as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// How labels are taken.
    #[serde(default)]
    pub targets: TargetOptions,
}

/// An `.npz` archive, stored or deflated.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Npz {
    /// The archive.
    pub path: PathBuf,
    /// Name of the array of features. Left out, usual names are tried: `x`,
    /// `x_train`, `images`, `data`, `features` and their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<String>,
    /// Name of the array of labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
    /// Name of the features of the split `test`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_features: Option<String>,
    /// Name of the labels of the split `test`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_labels: Option<String>,
    /// As [`Npy::layout`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// How labels are taken.
    #[serde(default)]
    pub targets: TargetOptions,
}

impl Npy {
    pub(super) fn read(&self) -> Result<Vec<Part>, DataError> {
        let array = |path: &PathBuf| parse(path, &files::read(path)?);
        let test = pair(self.test_features.as_ref(), self.test_labels.as_ref())?;
        parts(self.layout, (&self.features, &self.labels), test, |path| path.clone(), array)
    }
}

impl Npz {
    pub(super) fn read(&self) -> Result<Vec<Part>, DataError> {
        let bytes = files::read(&self.path)?;
        let broken = |e| format(&self.path, &e);
        let mut archive = ZipArchive::new(Cursor::new(&bytes[..])).map_err(broken)?;
        if archive.len() > ARRAYS_MAX {
            let (needed, max) = (archive.len() as u64, ARRAYS_MAX as u64);
            return Err(DataError::TooLarge { path: self.path.clone(), what: "arrays", needed, max });
        }
        let files: Result<Vec<String>, _> = archive.file_names().map(|name| name.map(|n| n.into_owned())).collect();
        let names: Vec<String> =
            files.map_err(broken)?.iter().map(|name| name.strip_suffix(".npy").unwrap_or(name).to_owned()).collect();
        let has = |name: &str| names.iter().any(|n| n == name);
        let missing = |name: &str| DataError::Missing {
            path: self.path.clone(),
            what: "array",
            name: name.to_owned(),
            available: if names.is_empty() { "none".to_owned() } else { names.join(", ") },
        };
        let train = match pair(self.features.as_deref(), self.labels.as_deref())? {
            Some(stated) => stated,
            None => {
                let usual = USUAL_NAMES.iter().find(|[x, y, ..]| has(x) && has(y));
                usual.map(|[x, y, ..]| (*x, *y)).ok_or_else(|| missing("x (state features and labels)"))?
            }
        };
        let test = pair(self.test_features.as_deref(), self.test_labels.as_deref())?.or_else(|| {
            let usual =
                USUAL_NAMES.iter().find(|[x, y, x_test, y_test]| (*x, *y) == train && has(x_test) && has(y_test));
            usual.map(|[_, _, x_test, y_test]| (*x_test, *y_test))
        });
        let array = |name: &str| {
            let index = [format!("{name}.npy"), name.to_owned()].iter().find_map(|n| archive.index_for_name(n));
            let file = archive.by_index(index.ok_or_else(|| missing(name))?).map_err(broken)?;
            let place = self.path.join(name);
            files::limit(&place, "bytes", file.size())?;
            // Grows as bytes come: a declared size alone cannot make it allocate.
            let (declared, mut body) = (file.size(), Vec::new());
            let read = file.take(declared + 1).read_to_end(&mut body);
            read.map_err(|e| format(&place, &e))?;
            parse(&place, &body)
        };
        parts(self.layout, train, test, |name| self.path.join(name), array)
    }
}

fn format(path: &Path, reason: &dyn std::fmt::Display) -> DataError {
    DataError::Format { path: path.into(), format: "npz", reason: reason.to_string() }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Tensor, DataError> {
    npy::read(bytes).map_err(|source| DataError::Npy { path: path.into(), source })
}

fn pair<T>(features: Option<T>, labels: Option<T>) -> Result<Option<(T, T)>, DataError> {
    match (features, labels) {
        (Some(features), Some(labels)) => Ok(Some((features, labels))),
        (None, None) => Ok(None),
        _ => Err(DataError::Option {
            option: "features",
            reason: "features and labels come together; give both or neither".to_owned(),
        }),
    }
}

fn parts<N: Copy>(
    layout: Option<Layout>,
    train: (N, N),
    test: Option<(N, N)>,
    path: impl Fn(N) -> PathBuf,
    mut array: impl FnMut(N) -> Result<Tensor, DataError>,
) -> Result<Vec<Part>, DataError> {
    let named = match test {
        Some(test) => vec![("train", train), ("test", test)],
        None => vec![("", train)],
    };
    let part = |(split, (features, labels))| {
        Ok(Part {
            path: path(features),
            split,
            features: with_channels(arranged(&path(features), array(features)?, layout)?)?,
            labels: array(labels)?.into(),
            groups: None,
            columns: Vec::new(),
            classes: Vec::new(),
            notes: Vec::new(),
        })
    };
    named.into_iter().map(part).collect()
}

/// Channels first, where there are any.
fn arranged(path: &Path, tensor: Tensor, layout: Option<Layout>) -> Result<Tensor, DataError> {
    let &[n, a, b, c] = tensor.shape() else { return Ok(tensor) };
    let counts = |channels: usize| matches!(channels, 1 | 3);
    let layout = match layout {
        Some(layout) => layout,
        None if tensor.dtype() != DataType::U8 || (counts(a) && !counts(c)) => Layout::ChannelsFirst,
        None if counts(c) && !counts(a) => Layout::ChannelsLast,
        None => {
            let reason = format!(
                "`{}` has shape {:?}, which doesn't show where the channels are; \
                 state channels-first or channels-last",
                path.display(),
                tensor.shape()
            );
            return Err(DataError::Option { option: "layout", reason });
        }
    };
    if layout == Layout::ChannelsFirst || tensor.is_empty() {
        return Ok(tensor);
    }
    let dtype = tensor.dtype();
    let size = dtype.size().ok_or_else(|| DataError::Type { path: path.into(), what: "features", dtype })?;
    let source = tensor.elements().as_bytes().unwrap_or_default();
    let mut turned = Vec::with_capacity(source.len());
    for example in source.chunks_exact(a * b * c * size) {
        for channel in 0..c {
            let pixels = example.chunks_exact(c * size);
            pixels.for_each(|pixel| turned.extend_from_slice(&pixel[channel * size..(channel + 1) * size]));
        }
    }
    Ok(Tensor::new([n, c, a, b], Elements::from_bytes(dtype, &turned)?)?)
}

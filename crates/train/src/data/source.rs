//! Where a data set is, and how it is read.

use std::path::{Path, PathBuf};

use super::dataset::Dataset;
use super::error::DataError;
use super::files;
use super::folder::Folder;
use super::idx::Idx;
use super::numpy::{Npy, Npz};
use super::parquet::Parquet;
use super::pictures::{PictureOptions, says_picture};
use super::table::Csv;
use super::targets::{TargetOptions, assemble};

/// Where a data set is and how it is read, as configuration says it:
///
/// ```
/// # use tierline_train::data::Source;
/// let text = r#"{"format": "csv", "path": "iris.csv", "label": "species"}"#;
/// let source: Source = serde_json::from_str(text)?;
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "format", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Source {
    /// IDX files, as MNIST and Fashion-MNIST come.
    Idx(Idx),
    /// A NumPy archive.
    Npz(Npz),
    /// A pair of NumPy files.
    Npy(Npy),
    /// A table of comma-separated values.
    Csv(Csv),
    /// A folder of pictures per class.
    Folder(Folder),
    /// A Parquet file.
    Parquet(Parquet),
}

/// How a data set is stored; the names are those that configuration uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// [`Idx`].
    Idx,
    /// [`Npz`].
    Npz,
    /// [`Npy`].
    Npy,
    /// [`Csv`].
    Csv,
    /// [`Folder`].
    Folder,
    /// [`Parquet`].
    Parquet,
}

impl Format {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Idx, Self::Npz, Self::Npy, Self::Csv, Self::Folder, Self::Parquet];

    /// Its name, as in `idx`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Idx => "idx",
            Self::Npz => "npz",
            Self::Npy => "npy",
            Self::Csv => "csv",
            Self::Folder => "folder",
            Self::Parquet => "parquet",
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Format {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let names = || Self::ALL.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ");
        Self::ALL.iter().find(|format| format.name() == text).copied().ok_or_else(|| DataError::Option {
            option: "format",
            reason: format!("`{text}` is none; there are: {}", names()),
        })
    }
}

impl Source {
    /// What the file or folder at `path` must be, by names alone: an `.npz`,
    /// `.csv`, `.tsv` or `.parquet` file, a folder of IDX files in MNIST's
    /// names, of `x.npy` and `y.npy`, or of folders of pictures.
    ///
    /// # Errors
    /// [`DataError::Unrecognised`] when it could be nothing, or several things.
    pub fn detect(path: &Path) -> Result<Self, DataError> {
        if path.is_dir() { folder(path) } else { file(path) }
    }

    /// The file or folder at `path` in this format, with its usual options.
    ///
    /// # Errors
    /// When nothing is there, or IDX or NumPy files don't come as a folder that
    /// has them in usual names.
    pub fn of(format: Format, path: &Path) -> Result<Self, DataError> {
        let there = path.metadata().map_err(|source| DataError::Io { path: path.into(), source })?;
        let pair = |found: Option<Self>| {
            found.ok_or_else(|| DataError::Option {
                option: "labels",
                reason: if there.is_dir() {
                    format!("`{}` has no {format} files in the usual names; name both files", path.display())
                } else {
                    format!("`{}` is one of a pair of {format} files; name the one with labels too", path.display())
                },
            })
        };
        let (targets, pictures) = (TargetOptions::default(), PictureOptions::default());
        Ok(match format {
            Format::Idx => pair(if there.is_dir() { idx(path)? } else { None })?,
            Format::Npy => pair(if there.is_dir() { npy(path)? } else { None })?,
            Format::Npz => Self::Npz(Npz {
                path: path.into(),
                features: None,
                labels: None,
                test_features: None,
                test_labels: None,
                layout: None,
                targets,
            }),
            Format::Csv => Self::Csv(Csv {
                path: path.into(),
                test: None,
                header: true,
                delimiter: if ends_in(path, "tsv") { '\t' } else { ',' },
                label: None,
                group: None,
                drop: Vec::new(),
                targets,
            }),
            Format::Folder => Self::Folder(Folder { path: path.into(), pictures, targets }),
            Format::Parquet => Self::Parquet(Parquet {
                path: path.into(),
                test: None,
                label: None,
                group: None,
                drop: Vec::new(),
                pictures,
                targets,
            }),
        })
    }

    /// How it is stored.
    #[must_use]
    pub fn format(&self) -> Format {
        match self {
            Self::Idx(_) => Format::Idx,
            Self::Npz(_) => Format::Npz,
            Self::Npy(_) => Format::Npy,
            Self::Csv(_) => Format::Csv,
            Self::Folder(_) => Format::Folder,
            Self::Parquet(_) => Format::Parquet,
        }
    }

    /// The file or folder that people know it by; of a pair of files, their
    /// folder, as files in usual names say less.
    #[must_use]
    pub fn path(&self) -> &Path {
        fn parent(path: &Path) -> &Path {
            path.parent().unwrap_or(Path::new(""))
        }
        match self {
            Self::Idx(idx) => parent(&idx.images),
            Self::Npz(npz) => &npz.path,
            Self::Npy(npy) => parent(&npy.features),
            Self::Csv(csv) => &csv.path,
            Self::Folder(folder) => &folder.path,
            Self::Parquet(parquet) => &parquet.path,
        }
    }

    /// Every path in it, to be made absolute or moved.
    pub fn paths_mut(&mut self) -> Vec<&mut PathBuf> {
        let (always, test) = match self {
            Self::Idx(idx) => {
                (vec![&mut idx.images, &mut idx.labels], [idx.test_images.as_mut(), idx.test_labels.as_mut()])
            }
            Self::Npy(npy) => {
                (vec![&mut npy.features, &mut npy.labels], [npy.test_features.as_mut(), npy.test_labels.as_mut()])
            }
            Self::Npz(npz) => (vec![&mut npz.path], [None, None]),
            Self::Csv(csv) => (vec![&mut csv.path], [csv.test.as_mut(), None]),
            Self::Folder(folder) => (vec![&mut folder.path], [None, None]),
            Self::Parquet(parquet) => (vec![&mut parquet.path], [parquet.test.as_mut(), None]),
        };
        always.into_iter().chain(test.into_iter().flatten()).collect()
    }

    /// How its labels are taken.
    pub fn targets_mut(&mut self) -> &mut TargetOptions {
        match self {
            Self::Idx(idx) => &mut idx.targets,
            Self::Npz(npz) => &mut npz.targets,
            Self::Npy(npy) => &mut npy.targets,
            Self::Csv(csv) => &mut csv.targets,
            Self::Folder(folder) => &mut folder.targets,
            Self::Parquet(parquet) => &mut parquet.targets,
        }
    }

    /// Reads the data set and checks it.
    ///
    /// # Errors
    /// When a file can't be read, isn't the format, or holds something that no
    /// model can learn from: no examples, labels that are no classes, NaN.
    pub fn load(&self) -> Result<Dataset, DataError> {
        let (parts, targets) = match self {
            Self::Idx(idx) => (idx.read()?, &idx.targets),
            Self::Npz(npz) => (npz.read()?, &npz.targets),
            Self::Npy(npy) => (npy.read()?, &npy.targets),
            Self::Csv(csv) => (csv.read()?, &csv.targets),
            Self::Folder(folder) => (folder.read()?, &folder.targets),
            Self::Parquet(parquet) => (parquet.read()?, &parquet.targets),
        };
        assemble(&files::name(self.path()), parts, targets)
    }
}

fn unrecognised(path: &Path, found: &str) -> DataError {
    DataError::Unrecognised { path: path.into(), found: found.to_owned() }
}

/// Whether a name ends in `.extension`, in whatever case.
fn ends_in(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

fn file(path: &Path) -> Result<Source, DataError> {
    if let Err(source) = path.metadata() {
        return Err(DataError::Io { path: path.into(), source });
    }
    let named = [("npz", Format::Npz), ("csv", Format::Csv), ("tsv", Format::Csv), ("parquet", Format::Parquet)];
    match named.iter().find(|(extension, _)| ends_in(path, extension)) {
        Some((_, format)) => Source::of(*format, path),
        None if ends_in(path, "npy") => {
            Err(unrecognised(path, "one array has features or labels; give features and labels"))
        }
        None => Err(unrecognised(path, "the name ends in none of .npz, .csv, .tsv and .parquet")),
    }
}

fn folder(path: &Path) -> Result<Source, DataError> {
    let mut found: Vec<(&str, Source)> = Vec::new();
    found.extend(idx(path)?.map(|source| ("IDX files", source)));
    found.extend(npy(path)?.map(|source| ("NumPy files", source)));
    if holds_pictures(path)? {
        found.push(("folders of pictures", Source::of(Format::Folder, path)?));
    }
    match found.len() {
        1 => Ok(found.remove(0).1),
        0 => Err(unrecognised(path, "it holds neither IDX nor NumPy files in the usual names nor folders of pictures")),
        _ => {
            let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
            Err(unrecognised(path, &format!("it holds {}", names.join(" and "))))
        }
    }
}

/// The one file of these names; none, or an error when there are several.
fn one_of(folder: &Path, names: &[String]) -> Result<Option<PathBuf>, DataError> {
    let mut there = names.iter().map(|name| folder.join(name)).filter(|path| path.is_file());
    match (there.next(), there.next()) {
        (Some(_), Some(_)) => Err(unrecognised(folder, &format!("several files could be `{}`", names[0]))),
        (first, _) => Ok(first),
    }
}

fn idx(folder: &Path) -> Result<Option<Source>, DataError> {
    // Some copies have a dot where the original has a dash.
    let find = |split: &str, kind: &str, rank: u8| {
        let [dash, dot] = [format!("{split}-{kind}-idx{rank}-ubyte"), format!("{split}-{kind}.idx{rank}-ubyte")];
        let packed = [format!("{dash}.gz"), format!("{dot}.gz")];
        // An unpacked copy beside the packed one is the same data.
        Ok::<_, DataError>(one_of(folder, &[dash, dot])?.or(one_of(folder, &packed)?))
    };
    let pair = |split: &str| Ok::<_, DataError>(find(split, "images", 3)?.zip(find(split, "labels", 1)?));
    let targets = TargetOptions::default();
    Ok(match (pair("train")?, pair("t10k")?) {
        (Some((images, labels)), test) => {
            let (test_images, test_labels) = test.unzip();
            Some(Source::Idx(Idx { images, labels, test_images, test_labels, targets }))
        }
        (None, Some((images, labels))) => {
            Some(Source::Idx(Idx { images, labels, test_images: None, test_labels: None, targets }))
        }
        (None, None) => None,
    })
}

fn npy(folder: &Path) -> Result<Option<Source>, DataError> {
    let find = |names: &[&str]| one_of(folder, &names.iter().map(|name| format!("{name}.npy")).collect::<Vec<_>>());
    let features = find(&["x", "X", "x_train", "X_train", "features", "images"])?;
    let labels = find(&["y", "y_train", "labels"])?;
    let test = find(&["x_test", "X_test"])?.zip(find(&["y_test"])?);
    let (test_features, test_labels) = test.unzip();
    Ok(features.zip(labels).map(|(features, labels)| {
        let targets = TargetOptions::default();
        Source::Npy(Npy { features, labels, test_features, test_labels, layout: None, targets })
    }))
}

/// Whether a folder of folders has a picture some levels down.
fn holds_pictures(path: &Path) -> Result<bool, DataError> {
    fn within(folder: &Path, levels: usize) -> Result<bool, DataError> {
        let entries = files::list(folder)?;
        if entries.iter().any(|entry| says_picture(entry)) {
            return Ok(true);
        }
        let folders = entries.iter().filter(|entry| levels > 0 && !files::is_hidden(entry) && entry.is_dir());
        folders.map(|entry| within(entry, levels - 1)).find(|held| !matches!(held, Ok(false))).unwrap_or(Ok(false))
    }
    let folders = files::list(path)?;
    let folders = folders.iter().filter(|entry| !files::is_hidden(entry) && entry.is_dir());
    folders.map(|folder| within(folder, 2)).find(|held| !matches!(held, Ok(false))).unwrap_or(Ok(false))
}

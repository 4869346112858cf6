//! Where a data set is, and how it is read.

use std::path::{Path, PathBuf};

use super::dataset::Dataset;
use super::error::DataError;
use super::files;
use super::folder::{Folder, is_picture};
use super::idx::Idx;
use super::numpy::{Npy, Npz};
use super::parquet::Parquet;
use super::pictures::PictureOptions;
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

    /// Reads the data set and checks it.
    ///
    /// # Errors
    /// When a file can't be read, isn't the format, or holds something that no
    /// model can learn from: no examples, labels that are no classes, NaN.
    pub fn load(&self) -> Result<Dataset, DataError> {
        // Files in usual names say less than the folder they are in.
        let parent = |path: &Path| path.parent().unwrap_or(Path::new("")).to_owned();
        let (path, parts, targets) = match self {
            Self::Idx(idx) => (parent(&idx.images), idx.read()?, &idx.targets),
            Self::Npz(npz) => (npz.path.clone(), npz.read()?, &npz.targets),
            Self::Npy(npy) => (parent(&npy.features), npy.read()?, &npy.targets),
            Self::Csv(csv) => (csv.path.clone(), csv.read()?, &csv.targets),
            Self::Folder(folder) => (folder.path.clone(), folder.read()?, &folder.targets),
            Self::Parquet(parquet) => (parquet.path.clone(), parquet.read()?, &parquet.targets),
        };
        assemble(&files::name(&path), parts, targets)
    }
}

fn unrecognised(path: &Path, found: &str) -> DataError {
    DataError::Unrecognised { path: path.into(), found: found.to_owned() }
}

fn file(path: &Path) -> Result<Source, DataError> {
    if let Err(source) = path.metadata() {
        return Err(DataError::Io { path: path.into(), source });
    }
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let (path, targets) = (path.to_path_buf(), TargetOptions::default());
    Ok(match extension.as_str() {
        "npz" => Source::Npz(Npz {
            path,
            features: None,
            labels: None,
            test_features: None,
            test_labels: None,
            layout: None,
            targets,
        }),
        "csv" | "tsv" => Source::Csv(Csv {
            path,
            test: None,
            header: true,
            delimiter: if extension == "tsv" { '\t' } else { ',' },
            label: None,
            group: None,
            drop: Vec::new(),
            targets,
        }),
        "parquet" => Source::Parquet(Parquet {
            path,
            test: None,
            label: None,
            group: None,
            drop: Vec::new(),
            pictures: PictureOptions::default(),
            targets,
        }),
        "npy" => return Err(unrecognised(&path, "one array has features or labels; give features and labels")),
        _ => return Err(unrecognised(&path, "the name ends in none of .npz, .csv, .tsv and .parquet")),
    })
}

fn folder(path: &Path) -> Result<Source, DataError> {
    let mut found: Vec<(&str, Source)> = Vec::new();
    found.extend(idx(path)?.map(|source| ("IDX files", source)));
    found.extend(npy(path)?.map(|source| ("NumPy files", source)));
    if holds_pictures(path)? {
        let (pictures, targets) = (PictureOptions::default(), TargetOptions::default());
        found.push(("folders of pictures", Source::Folder(Folder { path: path.into(), pictures, targets })));
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

/// Whether a folder of folders has a picture one or two levels down.
fn holds_pictures(path: &Path) -> Result<bool, DataError> {
    for folder in files::list(path)?.iter().filter(|entry| entry.is_dir()) {
        for entry in files::list(folder)? {
            if is_picture(&entry) || (entry.is_dir() && files::list(&entry)?.iter().any(|file| is_picture(file))) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

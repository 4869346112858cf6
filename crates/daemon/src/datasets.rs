//! The data sets of a node: where they are and how they are read, by name.
//!
//! One file per name, `datasets/NAME.toml` in the node's data folder; the
//! examples stay where they were. Start at [`Datasets`].

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tierline_train::data::{DataError, Dataset, Source};

use tierline_store::disk::{self, Existing};

/// The folder's name in the data folder.
const FOLDER: &str = "datasets";

/// Names become names of files, which some systems limit to 255 bytes.
const NAME_BYTES_MAX: usize = 63;

/// Edits between a wrong name and the one it may stand for.
const NEAR_MAX: usize = 2;

/// The data sets of one node.
#[derive(Debug, Clone)]
pub struct Datasets {
    folder: PathBuf,
}

/// What is kept of a data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// As it was when it was added: lists need not read every example again.
    pub found: Found,
    /// Where it is and how it is read; all paths are absolute.
    pub source: Source,
}

/// What a data set holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// Number of examples.
    pub examples: usize,
    /// Number of classes; `None` when targets are numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Shape of one example.
    pub shape: Vec<usize>,
    /// Type of the stored features, as NumPy names it.
    pub dtype: String,
    /// What lay beside the examples and is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A line of the list.
#[derive(Debug)]
pub struct Listed {
    /// The data set's name.
    pub name: String,
    /// What is kept of it, or what is wrong with its file.
    pub record: Result<Record, DatasetsError>,
}

impl Found {
    /// Of a data set that was read.
    #[must_use]
    pub fn of(dataset: &Dataset) -> Self {
        Self {
            examples: dataset.len(),
            classes: dataset.class_count(),
            shape: dataset.example_shape().to_vec(),
            dtype: dataset.dtype().numpy().to_owned(),
            notes: dataset.notes().to_vec(),
        }
    }
}

/// Why a data set can't be registered or found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetsError {
    /// Not a name.
    #[error(
        "`{name}` is no name for a data set: up to {NAME_BYTES_MAX} lowercase letters, digits, `-`, `_` and `.`, \
         a letter or a digit first"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// Nothing has this name.
    #[error("no data set `{name}` is known here")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Names there are.
        known: Vec<String>,
    },
    /// The name is taken.
    #[error("`{name}` already names a data set")]
    Exists {
        /// The name.
        name: String,
    },
    /// What is to be added can't be read, or no model can learn from it.
    #[error(transparent)]
    Data(#[from] DataError),
    /// What was added once can't be read any more.
    #[error("the data set `{name}`: {source}")]
    Changed {
        /// Its name.
        name: String,
        /// What is wrong.
        source: DataError,
    },
    /// The file that is kept of it is wrong.
    #[error("`{path}`: {reason}")]
    Record {
        /// The data set's name.
        name: String,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The operating system refused.
    #[error("cannot {what} `{path}`: {source}")]
    Io {
        /// Read, write or remove.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl DatasetsError {
    /// What to do next.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Unknown { name, known } => {
                let edits = |known: &&String| strsim::damerau_levenshtein(known, &name.to_lowercase());
                let near = known.iter().min_by_key(edits).filter(|known| edits(known) <= NEAR_MAX);
                Some(match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None if known.is_empty() => "tierline data add NAME PATH".to_owned(),
                    None => format!("known data sets: {}; or: tierline data add {name} PATH", known.join(", ")),
                })
            }
            Self::Exists { .. } => Some("add --replace, or choose another name".to_owned()),
            Self::Changed { name, .. } => {
                Some(format!("bring its files back, or: tierline data add {name} PATH --replace"))
            }
            Self::Record { name, .. } => Some(format!("tierline data rm {name}, and add it again")),
            _ => None,
        }
    }
}

/// Whether `name` may name a data set. One case only: some file systems hold
/// `A` and `a` for the same.
///
/// # Errors
/// [`DatasetsError::Name`] with the rule.
pub fn check_name(name: &str) -> Result<(), DatasetsError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let inside = name.bytes().all(|byte| plain(byte) || b"-_.".contains(&byte));
    if inside && name.bytes().next().is_some_and(plain) && name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    Err(DatasetsError::Name { name: name.chars().take(80).collect() })
}

impl Datasets {
    /// Those of the node with this data folder.
    #[must_use]
    pub fn of(data: &Path) -> Self {
        Self { folder: data.join(FOLDER) }
    }

    /// Reads a data set, checks it, and registers it under a name.
    ///
    /// # Errors
    /// When the name is wrong or taken, or the data set is broken; nothing is
    /// registered then.
    pub fn add(&self, name: &str, mut source: Source, existing: Existing) -> Result<Record, DatasetsError> {
        check_name(name)?;
        let (path, taken) = (self.file(name), || DatasetsError::Exists { name: name.to_owned() });
        // Known before a large data set is read for nothing.
        if existing == Existing::Keep && path.exists() {
            return Err(taken());
        }
        for path in source.paths_mut() {
            *path = std::path::absolute(&*path).map_err(|e| failed("read", path, e))?;
        }
        let found = Found::of(&source.load()?);
        let record = Record { found, source };
        let text = toml::to_string_pretty(&record).map_err(|e| wrong(name, &path, &e))?;
        match disk::write_atomically(&path, text.as_bytes(), 0o600, existing) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Err(taken()),
            Err(e) => Err(failed("write", &path, e)),
            Ok(()) => Ok(record),
        }
    }

    /// Names there are, sorted.
    ///
    /// # Errors
    /// When the folder can't be read; one that isn't there has none.
    pub fn names(&self) -> Result<Vec<String>, DatasetsError> {
        let failed = |e| failed("read", &self.folder, e);
        let entries = match std::fs::read_dir(&self.folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(failed)?.file_name();
            names.extend(file.to_str().and_then(|file| file.strip_suffix(".toml")).map(str::to_owned));
        }
        names.retain(|name| check_name(name).is_ok());
        names.sort();
        Ok(names)
    }

    /// Every data set by name; one whose file is wrong doesn't hide the others.
    ///
    /// # Errors
    /// As [`names`](Self::names).
    pub fn list(&self) -> Result<Vec<Listed>, DatasetsError> {
        let names = self.names()?;
        Ok(names.into_iter().map(|name| Listed { record: self.record(&name), name }).collect())
    }

    /// What is kept of a data set.
    ///
    /// # Errors
    /// When the name is unknown, or its file is wrong.
    pub fn record(&self, name: &str) -> Result<Record, DatasetsError> {
        let path = self.known(name)?;
        let text = std::fs::read_to_string(&path).map_err(|e| failed("read", &path, e))?;
        toml::from_str(&text).map_err(|e| wrong(name, &path, &e.to_string().trim_end()))
    }

    /// When a name was last given to a data set; `None` for one that is unknown.
    #[must_use]
    pub fn told_at(&self, name: &str) -> Option<SystemTime> {
        check_name(name).ok()?;
        self.file(name).metadata().ok()?.modified().ok()
    }

    /// Reads a data set, checked anew.
    ///
    /// # Errors
    /// When the name is unknown, or its files no longer are a data set.
    pub fn open(&self, name: &str) -> Result<Dataset, DatasetsError> {
        let changed = |source| DatasetsError::Changed { name: name.to_owned(), source };
        Ok(self.record(name)?.source.load().map_err(changed)?.with_name(name))
    }

    /// Forgets a name; the examples stay where they are.
    ///
    /// # Errors
    /// When the name is unknown, or the file system refuses.
    pub fn remove(&self, name: &str) -> Result<(), DatasetsError> {
        let path = self.known(name)?;
        std::fs::remove_file(&path)
            .and_then(|()| disk::sync_folder(&self.folder))
            .map_err(|e| failed("remove", &path, e))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.toml"))
    }

    /// The file of a name that is registered; other names reach no disk.
    fn known(&self, name: &str) -> Result<PathBuf, DatasetsError> {
        let known = self.names()?;
        if known.iter().any(|other| other == name) {
            return Ok(self.file(name));
        }
        Err(DatasetsError::Unknown { name: name.to_owned(), known })
    }
}

fn failed(what: &'static str, path: &Path, source: std::io::Error) -> DatasetsError {
    DatasetsError::Io { what, path: path.to_owned(), source }
}

fn wrong(name: &str, path: &Path, reason: &dyn std::fmt::Display) -> DatasetsError {
    DatasetsError::Record { name: name.to_owned(), path: path.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_of_files() {
        for name in ["digits", "cifar_10", "iris-v1.2", "0"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", ".hidden", "-x", "../x", "a/b", "a b", "Digits", "é", &"x".repeat(64)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}

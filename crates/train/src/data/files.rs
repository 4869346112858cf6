//! Files read whole, within limits.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::error::DataError;

/// Bytes of a data set's features, and of any file it is read from: what a
/// machine that trains can hold beside the model. Larger sets are split.
pub const DATASET_BYTES_MAX: u64 = 8 << 30;

/// The bytes of a file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let failed = |source| DataError::Io { path: path.into(), source };
    // Before it is opened: a pipe would be waited for, a device has no end.
    if !path.metadata().map_err(failed)?.is_file() {
        let what = "is no file; name a file whose bytes are the data set's".to_owned();
        return Err(DataError::Stray { path: path.into(), what });
    }
    let file = File::open(path).map_err(failed)?;
    limit(path, "bytes", file.metadata().map_err(failed)?.len())?;
    let mut bytes = Vec::new();
    // It may grow while it is read.
    file.take(DATASET_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    limit(path, "bytes", bytes.len() as u64)?;
    Ok(bytes)
}

/// Refuses what exceeds [`DATASET_BYTES_MAX`].
pub(super) fn limit(path: &Path, what: &'static str, needed: u64) -> Result<(), DataError> {
    if needed > DATASET_BYTES_MAX {
        return Err(DataError::TooLarge { path: path.into(), what, needed, max: DATASET_BYTES_MAX });
    }
    Ok(())
}

/// Whether a name says that its file or folder isn't meant for people.
pub(super) fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// What is in a folder, sorted by name.
pub(super) fn list(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |source| DataError::Io { path: path.into(), source };
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        entries.push(entry.map_err(failed)?.path());
    }
    // Folders list in any order; examples and classes must not.
    entries.sort();
    Ok(entries)
}

/// The last part of a path, for names of data sets and classes.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

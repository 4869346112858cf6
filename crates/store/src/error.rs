//! What can go wrong with what a node keeps.

use std::path::{Path, PathBuf};

use tierline_proto::{Code, Failure};

/// The store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No room left.
    #[error("no room left in `{folder}`; remove models (`tierline model rm`) or free space there", folder = folder.display())]
    Full {
        /// The folder.
        folder: PathBuf,
    },
    /// No room left, not even to begin.
    #[error("no room left in `{folder}` to open this node's state; free some megabytes on that disk first: files of other programs, or the logs; of the folder itself nothing may go but what lies in `artefacts` (a node below fetches it again; a cloud loses those models), and it must not be moved away: `ca`, `identity` and `state.db` are this node, on a cloud the site's authority", folder = folder.display())]
    NoRoomToStart {
        /// The data folder.
        folder: PathBuf,
    },
    /// A file or folder can't be used.
    #[error("`{path}`: {source}", path = path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The state file is damaged or can't be used.
    #[error("the state in `{path}` can't be used: {source}; restore it from a backup; without one, a node that joined may join again into another folder, a cloud may not: its folder holds the site's authority", path = path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// The database's words.
        source: rusqlite::Error,
    },
    /// The state file is sound, as far as is known, but can't be written or read.
    #[error("`{path}` can't be opened for writing; this node's user must own the folder and be able to write to it: look at `ls -ld {folder}`, and at whether its file system is mounted read-only", path = path.display(), folder = path.parent().unwrap_or(path).display())]
    NoAccess {
        /// The file.
        path: PathBuf,
    },
    /// Written by a later version.
    #[error("the state in `{path}` was written by a newer version (schema {found}, this one knows {known}); update this node", path = path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// An artefact's file is another one.
    #[error("artefact {0} is damaged on the disk")]
    Corrupt(tierline_proto::Digest),
    /// An artefact isn't there.
    #[error("artefact {0} is not in the store")]
    Missing(tierline_proto::Digest),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Full { .. } | StoreError::NoRoomToStart { .. } => Code::StorageFull,
            StoreError::Missing(_) => Code::NotFound,
            StoreError::Corrupt(_) => Code::Corrupt,
            _ => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

impl StoreError {
    /// Whether it is for want of room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::NoRoomToStart { .. })
    }

    /// What an error of a file means for a node.
    pub(super) fn of_file(path: &Path, source: std::io::Error) -> Self {
        if super::disk::is_full(&source) {
            return Self::Full { folder: path.parent().unwrap_or(path).to_owned() };
        }
        match source.kind() {
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                Self::NoAccess { path: path.to_owned() }
            }
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    /// What an error of the database means for a node.
    pub(super) fn of_state(path: &Path, source: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{CannotOpen, DiskFull, PermissionDenied, ReadOnly};
        match source.sqlite_error_code() {
            Some(DiskFull) => return Self::Full { folder: path.parent().unwrap_or(path).to_owned() },
            Some(ReadOnly | CannotOpen | PermissionDenied) => return Self::NoAccess { path: path.to_owned() },
            _ => {}
        }
        Self::State { path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn a_folder_that_cant_be_written_is_no_damage() {
        let path = Path::new("/data/state.db");
        for kind in [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem] {
            let said = StoreError::of_file(path, Error::from(kind)).to_string();
            assert!(said.contains("ls -ld /data") && !said.contains("backup"), "{said}");
        }
        let code = |code| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        for refused in [rusqlite::ffi::SQLITE_READONLY, rusqlite::ffi::SQLITE_CANTOPEN, rusqlite::ffi::SQLITE_PERM] {
            let said = StoreError::of_state(path, code(refused)).to_string();
            assert!(said.contains("ls -ld /data"), "{said}");
        }
        let said = StoreError::of_state(path, code(rusqlite::ffi::SQLITE_CORRUPT)).to_string();
        assert!(said.contains("restore it from a backup"), "{said}");
    }
}

//! Files that are there whole or not at all, also after a power cut, and
//! folders that are their owner's alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Permissions of others and of the group.
const OTHERS: u32 = 0o077;

/// A folder that everybody may write to, but where everybody keeps to their own.
const SHARED: u32 = 0o1002;

/// What happens to a file that is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// The new content takes its place.
    Replace,
    /// It stays, and the call fails with [`io::ErrorKind::AlreadyExists`].
    Keep,
}

/// Writes `path` in one step: a temporary file beside it, synced, then moved
/// into place, then the folder synced. `mode` holds the Unix permissions.
///
/// # Errors
/// Those of the file system; the temporary file is removed.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32, existing: Existing) -> io::Result<()> {
    // A name by itself has an empty parent.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let temporary = temporary_beside(path);
    let written = (|| {
        let mut file = create_private(&temporary, mode)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        match existing {
            Existing::Replace => fs::rename(&temporary, path),
            // A hard link refuses to replace, which rename can't on all systems.
            Existing::Keep => fs::hard_link(&temporary, path),
        }
    })();
    // After a rename there is nothing left to remove.
    let _ = fs::remove_file(&temporary);
    written?;
    sync_folder(folder)
}

/// Syncs a folder, so that names created or removed in it survive.
///
/// # Errors
/// Those of the file system.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Creates a folder that only its owner may enter, whatever the umask; one
/// that exists stays as it is.
///
/// # Errors
/// Those of the file system.
pub fn create_private_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// A file that only its owner may read and write, whatever the umask: made
/// where there is none, else opened as it is.
///
/// # Errors
/// Those of the file system.
pub fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// A folder that can't be made one's own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// Everybody uses it.
    #[error("`{folder}` is shared by all users of this machine (mode {mode:04o}); choose a folder of your own with --data DIR", folder = folder.display())]
    Shared {
        /// The folder.
        folder: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It, or something in it, is another user's, who could read or change it.
    #[error("`{path}` belongs to user {owner}, and this is user {own}; run `chown -R {own} {folder}` if you trust what is in it, or choose another folder with --data DIR", path = path.display(), folder = folder.display())]
    Foreign {
        /// The data folder.
        folder: PathBuf,
        /// What belongs to somebody else.
        path: PathBuf,
        /// To whom.
        owner: u32,
        /// Who asks.
        own: u32,
    },
    /// The file system refused.
    #[error("cannot use the data folder: `{path}`: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

/// Makes a folder its owner's alone, and of what is in it the entries of these
/// names with all below them: permissions of others are taken away, whatever
/// they were. Files right in the folders `keys` are left to those who read
/// them: a key that was open is no key any more. Returns what others could
/// open before, and how; behind a folder that was closed they could nothing.
///
/// Entries of other names stay as they are: they are not ours to judge.
///
/// # Errors
/// [`ClaimError`] where others keep a hold on it all the same.
pub fn claim(folder: &Path, names: &[&str], keys: &[&str]) -> Result<Vec<(PathBuf, u32)>, ClaimError> {
    let own = rustix::process::geteuid().as_raw();
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ClaimError::Io { path, source }
    };
    create_private_folder(folder).map_err(failed(folder))?;
    let meta = fs::metadata(folder).map_err(failed(folder))?;
    if meta.mode() & SHARED == SHARED {
        return Err(ClaimError::Shared { folder: folder.to_owned(), mode: meta.mode() & 0o7777 });
    }
    let closed = meta.mode() & OTHERS == 0;
    let keys: Vec<PathBuf> = keys.iter().map(|name| folder.join(name)).collect();
    let mut open = Vec::new();
    // The folder first: nobody else enters while the rest is looked at.
    let mut left = vec![(folder.to_owned(), meta)];
    let mut at_top = true;
    while let Some((path, meta)) = left.pop() {
        // The superuser's files are as safe as the machine; and the superuser knows whose files it works on.
        if meta.uid() != own && meta.uid() != 0 && own != 0 {
            let folder = folder.to_owned();
            return Err(ClaimError::Foreign { folder, path, owner: meta.uid(), own });
        }
        let is_key = meta.is_file() && path.parent().is_some_and(|parent| keys.iter().any(|folder| folder == parent));
        if meta.mode() & OTHERS != 0 && !is_key && (meta.uid() == own || own == 0) {
            let narrow = fs::Permissions::from_mode(meta.mode() & 0o700);
            fs::set_permissions(&path, narrow).map_err(failed(&path))?;
            open.push((path.clone(), meta.mode() & 0o777));
        }
        if !meta.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&path).map_err(failed(&path))? {
            let entry = entry.map_err(failed(&path))?;
            if at_top && !names.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            match fs::symlink_metadata(entry.path()) {
                // A link has no permissions, and where it leads was somebody's decision.
                Ok(meta) if !meta.is_symlink() => left.push((entry.path(), meta)),
                Ok(_) => {}
                // Gone since it was listed.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed(&entry.path())(e)),
            }
        }
        at_top = false;
    }
    Ok(if closed { Vec::new() } else { open })
}

/// Whether the device, or the user's share of it, is full.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn create_private(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

fn temporary_beside(path: &Path) -> std::path::PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.{:08x}.tmp", std::process::id(), fastrand::u32(..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_claimed_folder_is_open_to_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir_all(data.join("identity/deeper")).unwrap();
        for file in ["state.db", "identity/deeper/x", "mine.txt"] {
            fs::write(data.join(file), "x").unwrap();
            fs::set_permissions(data.join(file), fs::Permissions::from_mode(0o666)).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", data.join("identity/link")).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(data.join("identity/key"), "x").unwrap();
        fs::set_permissions(data.join("identity/key"), fs::Permissions::from_mode(0o644)).unwrap();
        let open = claim(&data, &["identity", "state.db"], &["identity"]).unwrap();
        assert_eq!(open[0], (data.clone(), 0o777));
        for (path, wanted) in [("", 0o700), ("identity", 0o700), ("state.db", 0o600), ("identity/deeper/x", 0o600)] {
            assert_eq!(mode(&data.join(path)), wanted, "{path}");
        }
        assert_eq!(mode(&data.join("mine.txt")), 0o666, "not ours to judge");
        assert_eq!(mode(&data.join("identity/key")), 0o644, "refused where it is read");
        assert_eq!(claim(&data, &["identity", "state.db"], &["identity"]).unwrap(), [], "nothing is open any more");
    }

    #[test]
    fn a_folder_of_everybody_is_no_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(matches!(claim(folder.path(), &[], &[]), Err(ClaimError::Shared { mode: 0o1777, .. })));
    }
}

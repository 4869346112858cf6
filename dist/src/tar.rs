//! Tar archives with owners, modes and times as told, and the folders above
//! each file; the `tar` crate writes them.

use std::collections::BTreeSet;

use ::tar::{Builder, EntryType, Header};
use anyhow::{Context, Result, ensure};

use crate::checked;

/// An archive that is being written.
pub struct Tar {
    archive: Builder<Vec<u8>>,
    /// What comes before each path: `./` where packages want it.
    before: &'static str,
    time_s: u64,
    /// Folders that are there.
    folders: BTreeSet<String>,
}

/// Who owns an entry, by number.
pub type Owner = u32;

impl Tar {
    pub fn new(before: &'static str, time_s: u64) -> Self {
        Self { archive: Builder::new(Vec::new()), before, time_s, folders: BTreeSet::new() }
    }

    /// Adds a file, and the folders above it.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.above(path)?;
        self.entry(checked(path)?, EntryType::Regular, mode, 0, content)
    }

    /// Adds a folder, and those above it.
    pub fn folder(&mut self, path: &str, mode: u32, owner: Owner) -> Result<()> {
        self.above(path)?;
        self.folders.insert(path.to_owned());
        self.entry(&format!("{}/", checked(path)?), EntryType::Directory, mode, owner, &[])
    }

    /// The archive's bytes.
    pub fn finish(self) -> Result<Vec<u8>> {
        Ok(self.archive.into_inner()?)
    }

    fn above(&mut self, path: &str) -> Result<()> {
        for (at, _) in path.match_indices('/') {
            let folder = &path[..at];
            if !self.folders.contains(folder) {
                self.folder(folder, 0o755, 0)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &str, kind: EntryType, mode: u32, owner: Owner, content: &[u8]) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.into());
        header.set_gid(owner.into());
        header.set_mtime(self.time_s);
        header.set_size(content.len() as u64);
        if owner == 0 {
            header.set_username("root")?;
            header.set_groupname("root")?;
        }
        // `Header::set_path` would leave out `./`.
        let path = format!("{}{path}", self.before);
        let name = &mut header.as_old_mut().name;
        ensure!(path.len() <= name.len(), "`{path}` is too long for an archive");
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        self.archive.append(&header, content).with_context(|| format!("cannot pack `{path}`"))
    }
}

//! Tar archives (POSIX.1-1988 `ustar`), with owners, modes and times as told.

use anyhow::{Result, ensure};

use crate::checked;

const BLOCK: usize = 512;

/// An archive that is being written.
pub struct Tar {
    bytes: Vec<u8>,
    /// What comes before each path: `./` where packages want it.
    before: &'static str,
    time_s: u64,
    /// Folders that are there.
    folders: std::collections::BTreeSet<String>,
}

/// Who owns an entry, by number.
pub type Owner = u32;

impl Tar {
    pub fn new(before: &'static str, time_s: u64) -> Self {
        Self { bytes: Vec::new(), before, time_s, folders: std::collections::BTreeSet::new() }
    }

    /// Adds a file, and the folders above it.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.above(path)?;
        self.header(checked(path)?, b'0', mode, 0, content.len() as u64)?;
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    /// Adds a folder, and those above it.
    pub fn folder(&mut self, path: &str, mode: u32, owner: Owner) -> Result<()> {
        self.above(path)?;
        self.folders.insert(path.to_owned());
        self.header(&format!("{}/", checked(path)?), b'5', mode, owner, 0)
    }

    /// The archive's bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
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

    fn header(&mut self, path: &str, kind: u8, mode: u32, owner: Owner, size: u64) -> Result<()> {
        let path = format!("{}{path}", self.before);
        // A long path is split at a slash: a prefix of 155 bytes, a name of 100.
        let (prefix, name) = match path.len() {
            0..=100 => ("", path.as_str()),
            _ => path
                .match_indices('/')
                .map(|(at, _)| (&path[..at], &path[at + 1..]))
                .find(|(prefix, name)| prefix.len() <= 155 && (1..=100).contains(&name.len()))
                .unwrap_or(("", "")),
        };
        ensure!(!name.is_empty(), "`{path}` is too long for an archive");
        let mut block = [0; BLOCK];
        let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, &format!("{owner:07o}"));
        put(116, &format!("{owner:07o}"));
        put(124, &format!("{size:011o}"));
        put(136, &format!("{:011o}", self.time_s));
        put(148, "        ");
        put(257, "ustar\x0000");
        if owner == 0 {
            put(265, "root");
            put(297, "root");
        }
        put(329, "0000000");
        put(337, "0000000");
        put(345, prefix);
        block[156] = kind;
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&block);
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
    }
}

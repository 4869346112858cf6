//! Room on the disk that is kept for what can't wait: on a full disk a node
//! must still start, shut a member out, and let go of what takes the room.
//!
//! A file that takes room and holds nothing. Whoever needs the room lets go of
//! it, does what it has to, and takes it again as far as it goes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::disk;

/// Enough for the journal of some thousand small changes.
const BYTES: u64 = 4 << 20;

/// Of a small disk, no more than this share is kept.
const SHARE: u64 = 8;

/// Less than this is of no use.
const BYTES_MIN: u64 = 64 << 10;

/// The reserve of one folder.
#[derive(Debug, Clone)]
pub struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// That of the file system with this data folder; nothing is taken yet.
    #[must_use]
    pub fn of(data: &Path) -> Self {
        Self { path: data.join("reserve") }
    }

    /// Takes room, as much as there should be or as there is. A disk without
    /// any is no error: then there is none.
    pub fn hold(&self) {
        if self.held() >= self.wanted() {
            return;
        }
        let mut bytes = self.wanted();
        while bytes >= BYTES_MIN {
            match self.take(bytes) {
                Ok(()) => return,
                Err(error) if disk::is_full(&error) => bytes /= 2,
                Err(error) => {
                    tracing::debug!(%error, "no room is kept for a full disk");
                    return;
                }
            }
        }
        self.release();
    }

    /// Gives the room back; whether there was any.
    pub fn release(&self) -> bool {
        self.held() > 0 && std::fs::remove_file(&self.path).is_ok()
    }

    /// Bytes that are taken.
    fn held(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |meta| meta.len())
    }

    fn wanted(&self) -> u64 {
        let folder = self.path.parent().unwrap_or(&self.path);
        let size = statvfs(folder).map_or(0, |fs| fs.f_blocks.saturating_mul(fs.f_frsize));
        BYTES.min(size / SHARE)
    }

    fn take(&self, bytes: u64) -> io::Result<()> {
        let _ = std::fs::remove_file(&self.path);
        let file = disk::open_private(&self.path)?;
        let taken = match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            Err(error) if [rustix::io::Errno::OPNOTSUPP, rustix::io::Errno::NOSYS].contains(&error) => {
                fill(file, bytes)
            }
            other => other.map_err(io::Error::from),
        };
        if taken.is_err() {
            let _ = std::fs::remove_file(&self.path);
        }
        taken
    }
}

/// Some file systems take room only for what is written.
fn fill(mut file: std::fs::File, bytes: u64) -> io::Result<()> {
    let block = [1u8; 64 << 10];
    for _ in 0..bytes.div_ceil(block.len() as u64) {
        file.write_all(&block)?;
    }
    file.sync_all()
}

/// Bytes that are free for this user where `folder` lies.
#[must_use]
pub fn room(folder: &Path) -> u64 {
    statvfs(folder).map_or(u64::MAX, |fs| fs.f_bavail.saturating_mul(fs.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(folder.path());
        assert!(!reserve.release());
        reserve.hold();
        assert_eq!(reserve.held(), reserve.wanted());
        assert!(reserve.release() && reserve.held() == 0);
        assert!(room(folder.path()) > 0);
    }
}

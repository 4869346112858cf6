//! Updates that wait on the disk for a rule that needs all of a round.
//!
//! A file without a name: after a crash it is gone, and the updates are put on
//! the spill store again from their own files.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::PathBuf;

use tierline_federate::SpillStore;

/// Numbers that are turned into bytes, or back, at a time.
const CHUNK_NUMBERS: usize = 1 << 14;

/// Contributions in a file of a job's folder.
pub(super) struct OnDisk {
    folder: PathBuf,
    file: Option<File>,
    /// Where each contribution begins, and where the next one will.
    starts: Vec<u64>,
    end: u64,
}

impl OnDisk {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, file: None, starts: Vec::new(), end: 0 }
    }

    fn file(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile_in(&self.folder)?);
        }
        self.file.as_mut().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

impl SpillStore for OnDisk {
    fn put(&mut self, contribution: &[f32]) -> io::Result<()> {
        let end = self.end;
        let file = self.file()?;
        // What a contribution that found no room left behind is written over.
        file.seek(SeekFrom::Start(end))?;
        for chunk in contribution.chunks(CHUNK_NUMBERS) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|x| x.to_le_bytes()).collect();
            file.write_all(&bytes)?;
        }
        self.starts.push(end);
        self.end += 4 * contribution.len() as u64;
        Ok(())
    }

    fn read(&mut self, contribution: usize, at: usize, into: &mut [f32]) -> io::Result<()> {
        let start = self.starts[contribution] + 4 * at as u64;
        let file = self.file()?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = vec![0u8; 4 * CHUNK_NUMBERS.min(into.len())];
        for chunk in into.chunks_mut(CHUNK_NUMBERS) {
            let bytes = &mut bytes[..4 * chunk.len()];
            io::Read::read_exact(file, bytes)?;
            let numbers = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            chunk.iter_mut().zip(numbers).for_each(|(x, y)| *x = y);
        }
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        // With the file goes what it took of the disk.
        (self.file, self.end) = (None, 0);
        self.starts.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn votes_come_back_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = OnDisk::new(folder.path().to_owned());
        let contributions: Vec<Vec<f32>> =
            (0..3).map(|v| (0..40_000).map(|i| (v * 100_000 + i) as f32 * 0.5).collect()).collect();
        for _ in 0..2 {
            for contribution in &contributions {
                spill.put(contribution).unwrap();
            }
            for (number, contribution) in contributions.iter().enumerate().rev() {
                for (at, length) in [(0, 40_000), (17, 20_000), (39_999, 1), (5, 0)] {
                    let mut found = vec![0f32; length];
                    spill.read(number, at, &mut found).unwrap();
                    assert_eq!(found, contribution[at..at + length]);
                }
            }
            spill.clear().unwrap();
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it has no name");
    }
}

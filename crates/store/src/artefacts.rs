//! Artefacts by digest, each a file that is there whole or not at all. What is
//! fetched lies in a partial file until its digest is verified.

use std::fs;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tierline_proto::Digest;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use super::{StoreError, disk};

/// Bytes read at once when hashing or moving a partial file.
const BLOCK_BYTES: usize = 1 << 20;

/// The artefacts of one node.
#[derive(Debug, Clone)]
pub struct ArtefactStore {
    folder: PathBuf,
    whole: PathBuf,
    partial: PathBuf,
}

/// Something in the store's folders, and how long nobody has written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredArtefact {
    /// What it is, or will be.
    pub digest: Digest,
    /// Its length, so far.
    pub bytes: u64,
    /// Since it was last written or asked for.
    pub age: Duration,
}

/// A file of an artefact until it is whole, beside its place; removed with
/// this value where it never came to that.
struct Staged {
    path: PathBuf,
    place: PathBuf,
}

impl Staged {
    /// A name of its own for what is to lie at `place`. `#` is in no digest.
    fn beside(place: PathBuf) -> io::Result<Self> {
        let folder = place.parent().unwrap_or(&place);
        if !folder.is_dir() {
            disk::create_private_folder(folder)?;
            folder.parent().map_or(Ok(()), disk::sync_folder)?;
        }
        let mut name = place.file_name().unwrap_or_default().to_owned();
        name.push(format!("#{:016x}", fastrand::u64(..)));
        Ok(Self { path: place.with_file_name(name), place })
    }

    fn options() -> fs::OpenOptions {
        let mut options = fs::File::options();
        options.write(true).create_new(true).mode(0o600);
        options
    }

    /// Its bytes are on the disk: what names it may be written the moment after.
    fn finish(self) -> io::Result<()> {
        fs::rename(&self.path, &self.place)?;
        self.place.parent().map_or(Ok(()), disk::sync_folder)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Behind the renaming there is none.
        let _ = fs::remove_file(&self.path);
    }
}

impl ArtefactStore {
    /// The store in `folder`, made there if there is none.
    ///
    /// # Errors
    /// [`StoreError`] when the folder can't be used.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let partial = folder.join("partial");
        let whole = folder.join("whole");
        for path in [&partial, &whole] {
            disk::create_private_folder(path).map_err(|source| StoreError::Io { path: path.clone(), source })?;
        }
        Ok(Self { folder: folder.to_owned(), whole, partial })
    }

    fn path(&self, digest: Digest) -> PathBuf {
        // Two digits as folders keep directories short.
        let hex = digest.to_string();
        self.whole.join(&hex[..2]).join(hex)
    }

    fn failed(&self, digest: Digest, error: io::Error) -> StoreError {
        match error.kind() {
            ErrorKind::NotFound => StoreError::Missing(digest),
            _ => self.io(&self.path(digest), error),
        }
    }

    fn io(&self, path: &Path, source: io::Error) -> StoreError {
        if disk::is_full(&source) {
            StoreError::Full { folder: self.folder.clone() }
        } else {
            StoreError::Io { path: path.to_owned(), source }
        }
    }

    /// Stores bytes under their digest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put(&self, bytes: Bytes) -> Result<Digest, StoreError> {
        let digest = Digest(*blake3::hash(&bytes).as_bytes());
        if self.length(digest).await?.is_none() {
            self.write(digest, &bytes).await.map_err(|e| self.io(&self.path(digest), e))?;
        }
        Ok(digest)
    }

    async fn write(&self, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        let staged = Staged::beside(self.path(digest))?;
        let mut file = tokio::fs::OpenOptions::from(Staged::options()).open(&staged.path).await?;
        file.write_all(bytes).await?;
        file.flush().await?;
        file.sync_all().await?;
        staged.finish()
    }

    /// Stores what a file holds under its digest, which is what was expected if
    /// anything was. Blocks a part of the time; memory is of no matter.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_file(&self, mut file: &fs::File) -> Result<Digest, StoreError> {
        let unreadable = |e| self.io(&self.partial, e);
        let mut hasher = blake3::Hasher::new();
        let hash = || {
            file.seek(SeekFrom::Start(0))?;
            blocks(file, |block| {
                hasher.update(block);
            })?;
            file.seek(SeekFrom::Start(0))
        };
        tokio::task::block_in_place(hash).map_err(unreadable)?;
        let digest = Digest(*hasher.finalize().as_bytes());
        if self.length(digest).await?.is_none() {
            self.copy(digest, file)?;
        }
        Ok(digest)
    }

    /// A file without a name, which goes when it is closed, for what isn't an
    /// artefact yet. Blocks.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn unnamed(&self) -> Result<fs::File, StoreError> {
        let path = self.partial.join(format!("upload-{:032x}", fastrand::u128(..)));
        let open = fs::File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = open.map_err(|e| self.io(&path, e))?;
        fs::remove_file(&path).map_err(|e| self.io(&path, e))?;
        Ok(file)
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it means that the disk refused a file of [`ArtefactStore::unnamed`].
    #[must_use]
    pub fn refused(&self, error: io::Error) -> StoreError {
        self.io(&self.partial, error)
    }

    /// Removes an artefact; one that isn't there is as good.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove(&self, digest: Digest) -> Result<(), StoreError> {
        match tokio::fs::remove_file(self.path(digest)).await {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(self.failed(digest, e)),
            _ => Ok(()),
        }
    }

    /// A whole artefact, verified.
    ///
    /// # Errors
    /// [`StoreError::Missing`] where it isn't or its bytes are damaged.
    pub async fn get(&self, digest: Digest) -> Result<Bytes, StoreError> {
        let bytes = Bytes::from(tokio::fs::read(self.path(digest)).await.map_err(|e| self.failed(digest, e))?);
        if blake3::hash(&bytes).as_bytes() != &digest.0 {
            // Gone is better than wrong: it is fetched again.
            tracing::warn!(%digest, "a damaged artefact is removed");
            self.remove(digest).await?;
            return Err(StoreError::Missing(digest));
        }
        Ok(bytes)
    }

    /// An artefact's file, to read. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Missing`] where it isn't.
    pub fn file(&self, digest: Digest) -> Result<fs::File, StoreError> {
        fs::File::open(self.path(digest)).map_err(|e| self.failed(digest, e))
    }

    /// Reads a whole artefact again, and compares it with its digest. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Missing`] where it isn't; [`StoreError::Corrupt`] where it
    /// is another.
    pub fn verify(&self, digest: Digest) -> Result<(), StoreError> {
        let path = self.path(digest);
        let file = fs::File::open(&path).map_err(|e| self.failed(digest, e))?;
        let mut hasher = blake3::Hasher::new();
        blocks(&file, |block| {
            hasher.update(block);
        })
        .map_err(|e| self.io(&path, e))?;
        if hasher.finalize().as_bytes() == &digest.0 {
            return Ok(());
        }
        Err(StoreError::Corrupt(digest))
    }

    /// A range of an artefact, as far as it goes.
    ///
    /// # Errors
    /// [`StoreError::Missing`] where it isn't.
    pub async fn range(&self, digest: Digest, range: Range<u64>) -> Result<Bytes, StoreError> {
        let read = async {
            let mut file = tokio::fs::File::open(self.path(digest)).await?;
            let end = file.metadata().await?.len().min(range.end);
            let length = end.saturating_sub(range.start);
            let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
            file.seek(SeekFrom::Start(range.start)).await?;
            file.take(length).read_to_end(&mut bytes).await?;
            Ok(bytes)
        };
        read.await.map(Bytes::from).map_err(|e| self.failed(digest, e))
    }

    /// Length of an artefact that is here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn length(&self, digest: Digest) -> Result<Option<u64>, StoreError> {
        match tokio::fs::metadata(self.path(digest)).await {
            Ok(meta) => Ok(Some(meta.len())),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.failed(digest, e)),
        }
    }

    /// An artefact that is here is wanted again: it counts as new, so that it
    /// isn't taken for garbage before anything names it. Blocks.
    pub fn touch(&self, digest: Digest) {
        let path = self.path(digest);
        // Where it can't be, it isn't: then there is nothing to keep.
        let _ = fs::File::options().write(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
    }

    /// Bytes that there is room for. Blocks.
    #[must_use]
    pub fn room(&self) -> u64 {
        super::reserve::room(&self.folder)
    }

    /// Every artefact. Blocks.
    #[must_use]
    pub fn list(&self) -> Vec<StoredArtefact> {
        entries(&self.whole)
            .filter(|e| e.is_dir())
            .flat_map(|folder| entries(&folder))
            .filter_map(|e| stored(&e))
            .collect()
    }

    /// Transfers that were broken off, and those under way. Blocks.
    #[must_use]
    pub fn list_partial(&self) -> Vec<StoredArtefact> {
        entries(&self.partial).filter_map(|e| stored(&e)).collect()
    }

    /// Removes what was half written and left behind for longer than `age`:
    /// copies that a crash broke off. Blocks.
    pub fn clear_staged(&self, age: Duration) {
        let staged = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains('#'));
        for path in entries(&self.whole).filter(|e| e.is_dir()).flat_map(|folder| entries(&folder)).filter(staged) {
            if age_of(&path).is_some_and(|old| old >= age) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Removes all that is half written or half fetched under `folder`, for a
    /// node that can't start for want of room; it is fetched again.
    pub fn clear_unfinished(folder: &Path) {
        entries(&folder.join("partial")).for_each(|path| drop(fs::remove_file(path)));
        for path in entries(&folder.join("whole")).flat_map(|folder| entries(&folder)) {
            if path.to_string_lossy().contains('#') {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Bytes of all artefacts. Blocks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        size_of(&self.folder)
    }

    fn partial_path(&self, digest: Digest) -> PathBuf {
        self.partial.join(digest.to_string())
    }

    /// Bytes of a transfer that was broken off.
    #[must_use]
    pub fn partial_length(&self, digest: Digest) -> u64 {
        fs::metadata(self.partial_path(digest)).map_or(0, |m| m.len())
    }

    /// Appends to the partial file of a transfer.
    ///
    /// # Errors
    /// [`StoreError::Full`] and others of the file system.
    pub fn append(&self, digest: Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.partial_path(digest);
        let open = fs::OpenOptions::new().create(true).append(true).open(&path);
        open.and_then(|mut file| file.write_all(bytes)).map_err(|e| self.io(&path, e))
    }

    /// Empties the partial file of a transfer.
    pub fn discard(&self, digest: Digest) {
        // None there is as good.
        let _ = fs::remove_file(self.partial_path(digest));
    }

    /// As [`discard`](Self::discard), unless the transfer goes on: then it had
    /// a byte a moment ago.
    pub fn discard_idle(&self, digest: Digest) {
        const IDLE: Duration = Duration::from_secs(20);
        if age_of(&self.partial_path(digest)).is_some_and(|age| age >= IDLE) {
            self.discard(digest);
        }
    }

    /// Digest of the partial file.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn hash_partial(&self, digest: Digest) -> Result<Digest, StoreError> {
        let path = self.partial_path(digest);
        let mut hasher = blake3::Hasher::new();
        let hash = |file: fs::File| {
            blocks(&file, |block| {
                hasher.update(block);
            })
        };
        fs::File::open(&path).and_then(hash).map_err(|e| self.io(&path, e))?;
        Ok(Digest(*hasher.finalize().as_bytes()))
    }

    /// Moves the verified partial file into the store.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn commit(&self, digest: Digest) -> Result<(), StoreError> {
        let path = self.partial_path(digest);
        let file = tokio::task::block_in_place(|| fs::File::open(&path)).map_err(|e| self.io(&path, e))?;
        self.copy(digest, &file)?;
        self.discard(digest);
        Ok(())
    }

    /// Copies a file whose digest is known into the store. Blocks a part of the time.
    fn copy(&self, digest: Digest, mut from: &fs::File) -> Result<(), StoreError> {
        let copy = || {
            let staged = Staged::beside(self.path(digest))?;
            let mut file = Staged::options().open(&staged.path)?;
            io::copy(&mut from, &mut file)?;
            file.sync_all()?;
            staged.finish()
        };
        tokio::task::block_in_place(copy).map_err(|e| self.io(&self.path(digest), e))
    }
}

fn blocks(mut file: &fs::File, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(()),
            n => take(&block[..n]),
        }
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn age_of(path: &Path) -> Option<Duration> {
    let modified = fs::metadata(path).and_then(|meta| meta.modified()).ok()?;
    // A clock that was set back makes everything new, which only keeps it longer.
    Some(SystemTime::now().duration_since(modified).unwrap_or_default())
}

fn stored(path: &Path) -> Option<StoredArtefact> {
    let digest = path.file_name()?.to_str()?.parse().ok()?;
    Some(StoredArtefact { digest, bytes: fs::metadata(path).ok()?.len(), age: age_of(path)? })
}

fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => size_of(&entry.path()),
            _ => entry.metadata().map_or(0, |m| m.len()),
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_here_is_listed_and_what_was_left_half_written_goes() {
        let folder = tempfile::tempdir().unwrap();
        let store = ArtefactStore::open(folder.path()).unwrap();
        let digest = store.put(Bytes::from_static(b"whole")).await.unwrap();
        let other = Digest([7; 32]);
        store.append(other, b"part").unwrap();
        let staged = store.path(digest).with_extension("x#1");
        fs::write(&staged, "half").unwrap();
        let listed =
            |all: Vec<StoredArtefact>| all.into_iter().map(|kept| (kept.digest, kept.bytes)).collect::<Vec<_>>();
        assert_eq!((listed(store.list()), listed(store.list_partial())), (vec![(digest, 5)], vec![(other, 4)]));
        store.clear_staged(Duration::from_secs(60));
        assert!(staged.exists(), "somebody may be writing it");
        store.clear_staged(Duration::ZERO);
        assert!(!staged.exists());

        let old = SystemTime::now() - Duration::from_secs(900);
        let path = store.path(digest);
        fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
        assert!(store.list()[0].age >= Duration::from_secs(890));
        store.touch(digest);
        assert!(store.list()[0].age < Duration::from_secs(800), "it is wanted again");
        fs::write(&staged, "half").unwrap();
        ArtefactStore::clear_unfinished(folder.path());
        assert!(!staged.exists() && store.list_partial().is_empty() && store.list().len() == 1);
    }
}

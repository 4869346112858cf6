//! The results of a run, kept beside the pictures that it made: as long as
//! nothing that they come from has changed, another run says the same.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The file in the output folder.
const FILE: &str = "run.json";

/// A run that came to its end.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedRun {
    /// Digest of everything that the results come from.
    pub key: String,
    /// When it ended, seconds since 1970.
    pub ended_s: u64,
    /// What it printed.
    pub text: String,
    /// What it wrote, and the digest of each.
    pub files: Vec<(PathBuf, String)>,
}

impl CachedRun {
    /// Results of now.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn of(key: &str, text: &str, files: &[PathBuf]) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let files = files.iter().map(|file| Ok((file.clone(), digest(&[file])?))).collect::<Result<_>>()?;
        Ok(Self { key: key.to_owned(), ended_s: now.as_secs(), text: text.to_owned(), files })
    }

    /// Those in a folder, if they come from `key` and nobody has touched them.
    #[must_use]
    pub fn find(folder: &Path, key: &str) -> Option<Self> {
        let kept: Self = serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok()?;
        let whole = |(file, was): &(PathBuf, String)| digest(&[file]).is_ok_and(|is| is == *was);
        (kept.key == key && kept.files.iter().all(whole)).then_some(kept)
    }

    /// Keeps them in a folder.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn keep(&self, folder: &Path) -> Result<()> {
        Ok(std::fs::write(folder.join(FILE), serde_json::to_string_pretty(self)?)?)
    }

    /// How long ago it ended, in words.
    #[must_use]
    pub fn age(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        match now.saturating_sub(self.ended_s) {
            seconds @ 0..120 => format!("{seconds} seconds ago"),
            seconds @ 120..7_200 => format!("{} minutes ago", seconds / 60),
            seconds @ 7_200..172_800 => format!("{} hours ago", seconds / 3_600),
            seconds => format!("{} days ago", seconds / 86_400),
        }
    }
}

/// The digest of what is in these files, by name.
///
/// # Errors
/// When one can't be read.
pub fn digest(files: &[impl AsRef<Path>]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for path in files.iter().map(AsRef::as_ref) {
        let mut file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        hasher.update(path.as_os_str().as_encoded_bytes());
        hasher.update(&file.metadata()?.len().to_le_bytes());
        let mut block = vec![0; 1 << 20];
        loop {
            match file.read(&mut block)? {
                0 => break,
                length => hasher.update(&block[..length]),
            };
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_found_until_something_changes() {
        let folder = tempfile::tempdir().unwrap();
        let [input, made] = ["input", "made.png"].map(|name| folder.path().join(name));
        std::fs::write(&input, "x").unwrap();
        std::fs::write(&made, "picture").unwrap();
        let key = digest(&[&input]).unwrap();
        assert_eq!(CachedRun::find(folder.path(), &key), None);
        let kept = CachedRun::of(&key, "said", std::slice::from_ref(&made)).unwrap();
        kept.keep(folder.path()).unwrap();
        assert_eq!(CachedRun::find(folder.path(), &key), Some(kept));
        std::fs::write(&input, "y").unwrap();
        assert_eq!(CachedRun::find(folder.path(), &digest(&[&input]).unwrap()), None);
        std::fs::write(&made, "another").unwrap();
        assert_eq!(CachedRun::find(folder.path(), &key), None, "somebody drew on it");
    }
}

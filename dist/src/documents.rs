//! What a binary writes of itself: completions for shells, manual pages.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Shells, and where each looks for completions below `/usr`.
const SHELLS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/tierline"),
    ("zsh", "share/zsh/vendor-completions/_tierline"),
    ("fish", "share/fish/vendor_completions.d/tierline.fish"),
];

/// A file below `/usr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Where it belongs, relative to `/usr`.
    pub place: String,
    /// What it says.
    pub content: Vec<u8>,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// The binary's, as in `0.1.0`.
    pub version: String,
    /// Completions, then manual pages.
    pub all: Vec<Document>,
}

impl Documents {
    /// What a binary writes.
    ///
    /// # Errors
    /// When it doesn't run here.
    pub fn by(binary: &Path) -> Result<Self> {
        let version = String::from_utf8(said(binary, &["--version"])?)?;
        let version = version.trim().strip_prefix("tierline ").context("the binary is not tierline")?.to_owned();
        let mut all = Vec::new();
        for (shell, place) in SHELLS {
            all.push(Document { place: place.to_owned(), content: said(binary, &["completions", shell])? });
        }
        let folder = std::env::temp_dir().join(format!("tierline-manual-{}", std::process::id()));
        said(binary, &["manual", &folder.to_string_lossy()])?;
        let mut pages: Vec<_> = std::fs::read_dir(&folder)?.collect::<Result<_, _>>()?;
        pages.sort_by_key(std::fs::DirEntry::file_name);
        for page in pages {
            let name = page.file_name().to_string_lossy().into_owned();
            all.push(Document { place: format!("share/man/man1/{name}"), content: std::fs::read(page.path())? });
        }
        std::fs::remove_dir_all(&folder)?;
        Ok(Self { version, all })
    }
}

fn said(binary: &Path, args: &[&str]) -> Result<Vec<u8>> {
    let output =
        Command::new(binary).args(args).output().with_context(|| format!("cannot run {}", binary.display()))?;
    ensure!(
        output.status.success(),
        "{} {args:?}: {}{}",
        binary.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

//! Packs a binary as users install it: an archive, a Debian package, a
//! container image, a Python wheel. Builds nothing and starts nothing but that binary, which
//! writes its own completions and manual; needs no packaging tools.
//!
//! Start at [`Package::of`].

#![forbid(unsafe_code)]

mod archive;
mod debian;
mod documents;
mod elf;
mod image;
mod tar;
mod wheel;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use time::OffsetDateTime;

pub use documents::{Document, Documents};
pub use elf::Elf;

/// What is packed.
#[derive(Debug)]
pub struct Package {
    /// As in `0.1.0`.
    pub version: String,
    /// The binary's bytes.
    pub binary: Vec<u8>,
    /// What it is made for, and what it needs.
    pub elf: Elf,
    /// What belongs beside it.
    pub documents: Documents,
    /// The repository, for licences and the like.
    pub repository: PathBuf,
    /// When it was made, seconds since 1970, so that the same input gives the
    /// same files.
    pub time_s: u64,
    /// Who packs it, as in `Name <address>`.
    pub maintainer: String,
}

impl Package {
    /// A binary with what it writes of itself.
    ///
    /// # Errors
    /// When it can't be read, or doesn't run here.
    pub fn of(binary: &Path, repository: &Path, time_s: u64, maintainer: String) -> Result<Self> {
        let documents = Documents::by(binary)?;
        let bytes = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
        let elf = Elf::read(&bytes).with_context(|| format!("{} can't be packed", binary.display()))?;
        let version = documents.version.clone();
        Ok(Self { version, binary: bytes, elf, documents, repository: repository.to_owned(), time_s, maintainer })
    }

    /// Writes everything into a folder, and says what.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let machine = self.elf.machine;
        let archive = folder.join(format!("tierline-{}-{}-linux.tar.zst", self.version, machine.name()));
        fs::write(&archive, archive::pack(self)?)?;
        let deb = folder.join(format!("tierline_{}_{}.deb", self.version, machine.debian()));
        fs::write(&deb, debian::pack(self)?)?;
        let image = folder.join(format!("tierline-{}-{}.oci", self.version, machine.oci()));
        image::write(self, &image)?;
        let wheel = folder.join(wheel::name(self));
        fs::write(&wheel, wheel::pack(self)?)?;
        Ok(vec![archive, deb, image, wheel])
    }

    /// When it was made.
    fn time(&self) -> Result<OffsetDateTime> {
        Ok(OffsetDateTime::from_unix_timestamp(self.time_s.try_into()?)?)
    }

    /// A file of the repository.
    fn file(&self, path: &str) -> Result<Vec<u8>> {
        fs::read(self.repository.join(path)).with_context(|| format!("cannot read {path} in the repository"))
    }

    /// Files that every form holds, relative to `/usr`.
    fn shared(&self) -> Vec<(String, Vec<u8>)> {
        let documents = self.documents.all.iter();
        documents.map(|document| (document.place.clone(), document.content.clone())).collect()
    }
}

/// Compressed with gzip, the same bytes for the same input.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, bytes)?;
    Ok(encoder.finish()?)
}

/// A path as packages name it: relative, with no way out.
fn checked(path: &str) -> Result<&str> {
    let plain = !path.is_empty() && !path.starts_with('/') && path.split('/').all(|part| part != ".." && part != ".");
    ensure!(plain, "`{path}` is no path in a package");
    Ok(path)
}

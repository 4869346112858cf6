//! The archive for every Linux: unpack it into `/usr/local` or `~/.local`.

use anyhow::Result;

use crate::Package;
use crate::tar::Tar;

/// Zstandard's level: made once, fetched often.
const LEVEL: i32 = 19;

/// `tierline-VERSION/` with `bin`, `share` and `lib`.
pub fn pack(package: &Package) -> Result<Vec<u8>> {
    let mut tar = Tar::new("", package.time_s);
    let root = format!("tierline-{}", package.version);
    tar.file(&format!("{root}/bin/tierline"), 0o755, &package.binary)?;
    for (place, content) in package.shared() {
        tar.file(&format!("{root}/{place}"), 0o644, &content)?;
    }
    tar.file(&format!("{root}/lib/systemd/system/tierline.service"), 0o644, &package.file(crate::debian::UNIT)?)?;
    for name in ["LICENSE-APACHE", "LICENSE-MIT", "README.md", "CHANGELOG.md"] {
        tar.file(&format!("{root}/share/doc/tierline/{name}"), 0o644, &package.file(name)?)?;
    }
    Ok(zstd::bulk::compress(&tar.finish()?, LEVEL)?)
}

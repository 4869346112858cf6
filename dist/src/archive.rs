//! The archive for every Linux: unpack it into `/usr/local`, where its service
//! looks for the binary, or into `~/.local`.

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
        // The folder for completions that a distribution's packages don't use.
        let place = place.replace("zsh/vendor-completions", "zsh/site-functions");
        tar.file(&format!("{root}/{place}"), 0o644, &content)?;
    }
    let unit = String::from_utf8(package.file(crate::debian::UNIT)?)?.replace("/usr/bin/", "/usr/local/bin/");
    tar.file(&format!("{root}/lib/systemd/system/tierline.service"), 0o644, unit.as_bytes())?;
    let user = package.file("dist/files/sysusers.conf")?;
    tar.file(&format!("{root}/lib/sysusers.d/tierline.conf"), 0o644, &user)?;
    for name in ["LICENSE-APACHE", "LICENSE-MIT", "README.md", "CHANGELOG.md"] {
        tar.file(&format!("{root}/share/doc/tierline/{name}"), 0o644, &package.file(name)?)?;
    }
    Ok(zstd::bulk::compress(&tar.finish()?, LEVEL)?)
}

//! A Python wheel that carries the binary, as PyPA's "Binary distribution
//! format" 1.0 has it: the package `tierline`, and `tierline` among the scripts.

use std::io::{Cursor, Write};

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::Package;

/// The package's files, in the repository.
const FILES: [&str; 8] =
    ["__init__.py", "__main__.py", "_binary.py", "_tensors.py", "client.py", "py.typed", "server.py", "training.py"];

/// The oldest glibc that a wheel's tag can name; what needs none runs there, too.
const GLIBC_OLDEST: (u32, u32) = (2, 17);

/// The wheel's file name.
pub fn name(package: &Package) -> String {
    format!("tierline-{}-{}.whl", package.version, tag(package))
}

fn tag(package: &Package) -> String {
    let (major, minor) = package.elf.glibc.unwrap_or(GLIBC_OLDEST).max(GLIBC_OLDEST);
    format!("py3-none-manylinux_{major}_{minor}_{}", package.elf.machine.name())
}

/// The wheel's bytes.
pub fn pack(package: &Package) -> Result<Vec<u8>> {
    let info = format!("tierline-{}.dist-info", package.version);
    let readme = String::from_utf8(package.file("python/README.md")?)?;
    let metadata = format!(
        "Metadata-Version: 2.4\nName: tierline\nVersion: {}\n\
         Summary: Deep learning across end devices, edge nodes and the cloud\n\
         License-Expression: MIT OR Apache-2.0\nLicense-File: LICENSE-MIT\nLicense-File: LICENSE-APACHE\n\
         Requires-Python: >=3.10\nRequires-Dist: numpy>=1.24\n\
         Description-Content-Type: text/markdown\n\n{readme}",
        package.version
    );
    let wheel =
        format!("Wheel-Version: 1.0\nGenerator: tierline-dist\nRoot-Is-Purelib: false\nTag: {}\n", tag(package));
    let mut files: Vec<(String, u32, Vec<u8>)> = Vec::new();
    for file in FILES {
        files.push((format!("tierline/{file}"), 0o644, package.file(&format!("python/tierline/{file}"))?));
    }
    let script = format!("tierline-{}.data/scripts/tierline", package.version);
    files.push((script, 0o755, package.binary.clone()));
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        files.push((format!("{info}/licenses/{licence}"), 0o644, package.file(licence)?));
    }
    files.push((format!("{info}/METADATA"), 0o644, metadata.into_bytes()));
    files.push((format!("{info}/WHEEL"), 0o644, wheel.into_bytes()));
    let mut record = String::new();
    for (path, _, content) in &files {
        let hash = digest::digest(&digest::SHA256, content);
        record.push_str(&format!("{path},sha256={},{}\n", URL_SAFE_NO_PAD.encode(hash), content.len()));
    }
    record.push_str(&format!("{info}/RECORD,,\n"));
    files.push((format!("{info}/RECORD"), 0o644, record.into_bytes()));
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let at = package.time()?;
    let year = u16::try_from(at.year()).unwrap_or_default();
    let time = DateTime::from_date_and_time(year, at.month().into(), at.day(), at.hour(), at.minute(), at.second());
    // Years that the format can't say become its first.
    let time = time.unwrap_or_default();
    for (path, mode, content) in &files {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
        zip.start_file(path.as_str(), options.unix_permissions(*mode).last_modified_time(time))?;
        zip.write_all(content)?;
    }
    Ok(zip.finish()?.into_inner())
}

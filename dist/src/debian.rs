//! A Debian package: the binary, what belongs beside it, a systemd unit, and
//! a user for it.

use anyhow::Result;
use time::format_description::well_known::Rfc2822;

use crate::tar::Tar;
use crate::{Package, gzip};

/// The unit, in the repository.
pub const UNIT: &str = "dist/files/tierline.service";

/// What the unit is started with, in the package.
const DEFAULTS: &str = "etc/default/tierline";

/// Scripts that `dpkg` runs, in the repository and in the package.
const SCRIPTS: [(&str, &str); 3] =
    [("dist/files/postinst", "postinst"), ("dist/files/prerm", "prerm"), ("dist/files/postrm", "postrm")];

/// `deb(5)`: two archives in an archive.
pub fn pack(package: &Package) -> Result<Vec<u8>> {
    let files = files(package)?;
    let mut data = Tar::new("./", package.time_s);
    for (path, mode, content) in &files {
        data.file(path, *mode, content)?;
    }
    let mut control = Tar::new("./", package.time_s);
    control.file("control", 0o644, fields(package, &files).as_bytes())?;
    control.file("conffiles", 0o644, format!("/{DEFAULTS}\n").as_bytes())?;
    let sums = files.iter().filter(|(path, ..)| path != DEFAULTS);
    let sums: String = sums.map(|(path, _, content)| format!("{:x}  {path}\n", md5::compute(content))).collect();
    control.file("md5sums", 0o644, sums.as_bytes())?;
    for (path, name) in SCRIPTS {
        control.file(name, 0o755, &package.file(path)?)?;
    }
    let members = [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.gz", gzip(&control.finish()?)?),
        ("data.tar.gz", gzip(&data.finish()?)?),
    ];
    let mut archive = ar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = ar::Header::new(name.into(), content.len() as u64);
        header.set_mtime(package.time_s);
        header.set_mode(0o100_644);
        archive.append(&header, &content[..])?;
    }
    Ok(archive.into_inner()?)
}

/// Path, mode and content of every file.
fn files(package: &Package) -> Result<Vec<(String, u32, Vec<u8>)>> {
    let mut files = vec![
        (DEFAULTS.to_owned(), 0o644, package.file("dist/files/default")?),
        ("usr/bin/tierline".to_owned(), 0o755, package.binary.clone()),
        ("usr/lib/systemd/system/tierline.service".to_owned(), 0o644, package.file(UNIT)?),
        ("usr/lib/sysusers.d/tierline.conf".to_owned(), 0o644, package.file("dist/files/sysusers.conf")?),
    ];
    for (place, content) in package.shared() {
        // Policy, 12.1: manual pages are compressed.
        let manual = place.starts_with("share/man/");
        let content = if manual { gzip(&content)? } else { content };
        let place = if manual { format!("usr/{place}.gz") } else { format!("usr/{place}") };
        files.push((place, 0o644, content));
    }
    let doc = "usr/share/doc/tierline";
    files.push((format!("{doc}/copyright"), 0o644, copyright(package)?));
    files.push((format!("{doc}/CHANGELOG.md.gz"), 0o644, gzip(&package.file("CHANGELOG.md")?)?));
    files.push((format!("{doc}/changelog.gz"), 0o644, gzip(changelog(package)?.as_bytes())?));
    files.push((format!("{doc}/README.md"), 0o644, package.file("README.md")?));
    files.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(files)
}

fn fields(package: &Package, files: &[(String, u32, Vec<u8>)]) -> String {
    let kilobytes: usize = files.iter().map(|(.., content)| content.len().div_ceil(1_024)).sum();
    let mut needs = Vec::new();
    if let Some((major, minor)) = package.elf.glibc {
        needs.push(format!("libc6 (>= {major}.{minor})"));
    }
    if package.elf.needed.iter().any(|library| library.starts_with("libgcc_s.")) {
        needs.push("libgcc-s1".to_owned());
    }
    let depends = if needs.is_empty() { String::new() } else { format!("Depends: {}\n", needs.join(", ")) };
    format!(
        "Package: tierline\nVersion: {}\nArchitecture: {}\nMaintainer: {}\n\
         Installed-Size: {kilobytes}\n{depends}Section: science\nPriority: optional\n\
         Description: deep learning across end devices, edge nodes and the cloud\n \
         Tierline measures devices and links, decides which part of a model runs\n \
         where, runs it that way, and trains models where their examples are. This\n \
         package holds the one binary, its manual, and a service.\n",
        package.version,
        package.elf.machine.debian(),
        package.maintainer,
    )
}

/// What changed, in the form that tools read (Policy, 4.4): where to read it.
fn changelog(package: &Package) -> Result<String> {
    Ok(format!(
        "tierline ({}) unstable; urgency=medium\n\n  * What changed is in CHANGELOG.md.gz beside this file.\n\n \
         -- {}  {}\n",
        package.version,
        package.maintainer,
        package.time()?.format(&Rfc2822)?
    ))
}

/// Both licences (DEP 5's form).
fn copyright(package: &Package) -> Result<Vec<u8>> {
    let text = String::from_utf8(package.file("LICENSE-MIT")?)?;
    let indented: String = text
        .lines()
        .map(|line| if line.trim().is_empty() { " .\n".to_owned() } else { format!(" {}\n", line.trim_end()) })
        .collect();
    let holder = text.lines().find(|line| line.starts_with("Copyright")).unwrap_or("Copyright the authors of Tierline");
    Ok(format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: tierline\n\n\
         Files: *\nCopyright: {}\nLicense: Expat or Apache-2.0\n\nLicense: Expat\n{indented}\n\
         License: Apache-2.0\n On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n",
        holder.trim_start_matches("Copyright").trim()
    )
    .into_bytes())
}

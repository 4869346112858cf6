//! A container image as an OCI image layout (image-spec 1.0): a folder of
//! blobs by digest, with one layer. It holds the binary, the libraries that
//! the binary's loader finds on this machine, and a user without rights;
//! neither a shell nor anything else that isn't used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use crate::tar::Tar;
use crate::{Package, gzip};

/// Who a node runs as: nobody's number on the host.
const USER: u32 = 65_532;

/// Where the node keeps everything: a volume.
const DATA: &str = "data";

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Writes the layout; one that is there is replaced.
pub fn write(package: &Package, folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let put = |media: &str, bytes: &[u8]| -> Result<Value> {
        let digest = sha256(bytes);
        fs::write(blobs.join(&digest), bytes)?;
        Ok(json!({ "mediaType": media, "digest": format!("sha256:{digest}"), "size": bytes.len() }))
    };
    let tar = root(package)?;
    let layer = put(LAYER, &gzip(&tar)?)?;
    let created = package.time()?.format(&Rfc3339)?;
    let platform = json!({ "architecture": package.elf.machine.oci(), "os": "linux" });
    let config = json!({
        "created": created,
        "architecture": platform["architecture"],
        "os": platform["os"],
        "config": {
            "User": format!("{USER}:{USER}"),
            "ExposedPorts": { "7443/tcp": {} },
            "Env": ["PATH=/usr/bin", format!("TIERLINE_DATA=/{DATA}")],
            "Entrypoint": ["/usr/bin/tierline"],
            "Cmd": ["node"],
            "Volumes": { format!("/{DATA}"): {} },
            "WorkingDir": format!("/{DATA}"),
            "StopSignal": "SIGTERM",
            "Labels": labels(package),
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&tar))] },
        "history": [{ "created": created, "created_by": "cargo xtask dist" }],
    });
    let config = put(CONFIG, config.to_string().as_bytes())?;
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
    let mut manifest = put(MANIFEST, manifest.to_string().as_bytes())?;
    manifest["platform"] = platform;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": package.version });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    fs::write(folder.join("index.json"), index.to_string())?;
    fs::write(folder.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string())?;
    Ok(())
}

fn labels(package: &Package) -> Value {
    json!({
        "org.opencontainers.image.title": "tierline",
        "org.opencontainers.image.version": package.version,
        "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
    })
}

/// The file system of a container.
fn root(package: &Package) -> Result<Vec<u8>> {
    let mut tar = Tar::new("", package.time_s);
    tar.folder(DATA, 0o700, USER)?;
    tar.file("etc/passwd", 0o644, format!("tierline:x:{USER}:{USER}:tierline:/{DATA}:/bin/false\n").as_bytes())?;
    tar.file("etc/group", 0o644, format!("tierline:x:{USER}:\n").as_bytes())?;
    tar.folder("tmp", 0o1777, 0)?;
    tar.file("usr/bin/tierline", 0o755, &package.binary)?;
    for (place, found) in libraries(package)? {
        tar.file(&place, 0o755, &fs::read(&found).with_context(|| format!("cannot read {}", found.display()))?)?;
    }
    for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
        tar.file(&format!("usr/share/doc/tierline/{name}"), 0o644, &package.file(name)?)?;
    }
    tar.finish()
}

/// Where the loader looks for each library that the binary needs, directly or
/// not, and where it is here.
fn libraries(package: &Package) -> Result<Vec<(String, PathBuf)>> {
    let Some(loader) = &package.elf.loader else { return Ok(Vec::new()) };
    let binary = std::env::temp_dir().join(format!("tierline-image-{}", std::process::id()));
    fs::write(&binary, &package.binary)?;
    // As `ldd` asks, without running the binary.
    let output = Command::new(loader).arg("--list").arg(&binary).output();
    fs::remove_file(&binary)?;
    let output = output.with_context(|| format!("the binary's loader {loader} isn't here"))?;
    anyhow::ensure!(output.status.success(), "{loader} --list: {}", String::from_utf8_lossy(&output.stderr));
    // Lines such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)`.
    let text = String::from_utf8(output.stdout)?;
    let found = text.lines().filter_map(|line| line.split_once(" => ")?.1.split_whitespace().next());
    let mut paths: Vec<&str> = found.filter(|path| path.starts_with('/') && *path != loader).collect();
    paths.push(loader);
    Ok(paths.into_iter().map(|path| (path.trim_start_matches('/').to_owned(), PathBuf::from(path))).collect())
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

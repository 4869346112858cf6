//! Packages, held against the tools that read them where those are installed,
//! and against their formats everywhere. What is packed is a small program of
//! the system, or this test itself.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tierline_dist::{Document, Documents, Elf, Package};

fn repository() -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).parent().unwrap().to_owned()
}

fn package() -> Package {
    let binary = std::fs::read("/usr/bin/env").or_else(|_| std::fs::read("/proc/self/exe")).unwrap();
    let document = |place: &str, text: &str| Document { place: place.into(), content: text.into() };
    let all = vec![
        document("share/bash-completion/completions/tierline", "complete -F _tierline tierline\n"),
        document("share/man/man1/tierline.1", ".TH tierline 1\n"),
    ];
    let documents = Documents { version: "1.2.3".into(), all };
    let elf = Elf::read(&binary).unwrap();
    let maintainer = "Who Packs <packs@tierline.example>".into();
    let time_s = 1_000_000_000;
    Package { version: "1.2.3".into(), binary, elf, documents, repository: repository(), time_s, maintainer }
}

/// Everything, in a folder that goes with the value.
fn written() -> (tempfile::TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let paths = package().write(folder.path()).unwrap();
    (folder, paths)
}

/// What a tool prints; none where it isn't installed.
fn tool(program: &str, args: &[&str]) -> Option<String> {
    match Command::new(program).args(args).output() {
        Err(_) => {
            eprintln!("skipped: {program} isn't installed");
            None
        }
        Ok(output) => {
            assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
            Some(String::from_utf8(output.stdout).unwrap())
        }
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn archives_unpack_to_what_went_in() {
    let (folder, paths) = written();
    assert!(paths[0].to_string_lossy().ends_with("-linux.tar.zst"), "{paths:?}");
    let tar = zstd::stream::decode_all(std::fs::File::open(&paths[0]).unwrap()).unwrap();
    let plain = folder.path().join("plain.tar");
    std::fs::write(&plain, tar).unwrap();
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    tool("tar", &["-xf", &plain.to_string_lossy(), "-C", &out.to_string_lossy()]).expect("tar is everywhere");
    let root = out.join("tierline-1.2.3");
    assert_eq!(std::fs::read(root.join("bin/tierline")).unwrap(), package().binary);
    assert_eq!(mode(&root.join("bin/tierline")), 0o755);
    assert_eq!(std::fs::read_to_string(root.join("share/man/man1/tierline.1")).unwrap(), ".TH tierline 1\n");
    let unit = std::fs::read_to_string(root.join("lib/systemd/system/tierline.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/local/bin/tierline node"), "{unit}");
    assert!(root.join("lib/sysusers.d/tierline.conf").exists());
}

#[test]
fn the_same_input_gives_the_same_files() {
    let ((_a, first), (_b, second)) = (written(), written());
    for (first, second) in first.iter().zip(&second).take(2) {
        assert!(std::fs::read(first).unwrap() == std::fs::read(second).unwrap(), "{}", first.display());
    }
    let index = |paths: &[PathBuf]| std::fs::read(paths[2].join("index.json")).unwrap();
    assert_eq!(index(&first), index(&second));
}

#[test]
fn debian_packages_are_read_and_installed_by_dpkg() {
    let (folder, paths) = written();
    let deb = paths[1].to_string_lossy().into_owned();
    let Some(fields) = tool("dpkg-deb", &["--field", &deb]) else { return };
    let maintainer = "Maintainer: Who Packs <packs@tierline.example>";
    for line in ["Package: tierline", "Version: 1.2.3", maintainer, "Depends: libc6 (>= 2."] {
        assert!(fields.contains(line), "`{line}` is missing: {fields}");
    }
    let contents = tool("dpkg-deb", &["--contents", &deb]).unwrap();
    for entry in [
        "-rwxr-xr-x root/root",
        "./usr/bin/tierline",
        "./usr/lib/systemd/system/tierline.service",
        "./usr/lib/sysusers.d/tierline.conf",
        "./usr/share/man/man1/tierline.1.gz",
        "./etc/default/tierline",
    ] {
        assert!(contents.contains(entry), "`{entry}` is missing: {contents}");
    }
    let root = folder.path().join("root");
    tool("dpkg-deb", &["--extract", &deb, &root.to_string_lossy()]).unwrap();
    assert_eq!(std::fs::read(root.join("usr/bin/tierline")).unwrap(), package().binary);
    let control = folder.path().join("control");
    tool("dpkg-deb", &["--control", &deb, &control.to_string_lossy()]).unwrap();
    assert_eq!(mode(&control.join("postinst")), 0o755);
    if let Some(said) =
        tool("dpkg-parsechangelog", &["-l", &format!("{}/usr/share/doc/tierline/changelog.gz", root.display())])
    {
        assert!(said.contains("Version: 1.2.3") && said.contains("Date: Sun, 09 Sep 2001 01:46:40 +0000"), "{said}");
    }
    // The digests are those that coreutils compute.
    let sums = control.join("md5sums");
    let check = Command::new("md5sum").args(["--check", "--quiet"]).arg(sums).current_dir(&root).output();
    let Ok(output) = check else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn the_unit_is_one_that_systemd_reads_and_calls_safe() {
    let unit = repository().join("dist/files/tierline.service");
    let text = std::fs::read_to_string(&unit).unwrap();
    for line in
        ["User=tierline", "NoNewPrivileges=yes", "ProtectSystem=strict", "StateDirectory=tierline", "Type=notify"]
    {
        assert!(text.lines().any(|l| l == line), "`{line}` is missing");
    }
    let args = ["security", "--offline=true", "--threshold=20", &unit.to_string_lossy()];
    // Old ones can't judge a file.
    let Ok(output) = Command::new("systemd-analyze").args(args).output() else { return };
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let old = said.contains("unrecognized option") || said.contains("nvalid") || said.contains("not support");
    assert!(output.status.success() || old, "{said}");
}

/// A blob by its descriptor: there, as long and with the digest that it says.
fn blob(image: &Path, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let path = image.join("blobs/sha256").join(digest);
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(descriptor["size"], bytes.len());
    let Some(sum) = tool("sha256sum", &[&path.to_string_lossy()]) else { return bytes };
    assert_eq!(sum.split_whitespace().next(), Some(digest));
    bytes
}

#[test]
fn images_are_what_the_specification_says() {
    let (folder, paths) = written();
    let image = &paths[2];
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let read = |name: &str| json(&std::fs::read(image.join(name)).unwrap());
    assert_eq!(read("oci-layout")["imageLayoutVersion"], "1.0.0");
    let index = read("index.json");
    assert_eq!(index["schemaVersion"], 2);
    let entry = &index["manifests"][0];
    assert_eq!(entry["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(entry["platform"]["os"], "linux");
    let manifest = json(&blob(image, entry));
    assert_eq!(manifest["mediaType"], entry["mediaType"]);
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.oci.image.config.v1+json");
    let config = json(&blob(image, &manifest["config"]));
    assert_eq!(config["architecture"], entry["platform"]["architecture"]);
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/tierline");
    let layer = &manifest["layers"][0];
    assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&blob(image, layer)[..]).read_to_end(&mut tar).unwrap();
    let plain = folder.path().join("layer.tar");
    std::fs::write(&plain, &tar).unwrap();
    if let Some(sum) = tool("sha256sum", &[&plain.to_string_lossy()]) {
        let diff = format!("sha256:{}", sum.split_whitespace().next().unwrap());
        assert_eq!(config["rootfs"]["diff_ids"][0], Value::String(diff), "of the layer, unpacked");
    }
    let listed = tool("tar", &["--numeric-owner", "-tvf", &plain.to_string_lossy()]).expect("tar is everywhere");
    let owners: BTreeMap<&str, &str> =
        listed.lines().filter_map(|l| Some((l.rsplit(' ').next()?, l.split_whitespace().nth(1)?))).collect();
    assert_eq!(owners["data/"], "65532/65532", "{listed}");
    assert_eq!(owners["usr/bin/tierline"], "0/0");
    assert!(owners.keys().any(|path| path.ends_with("/libc.so.6")), "{listed}");
    assert!(owners.keys().any(|path| path.contains("ld-linux") || path.contains("/ld-")), "{listed}");
    let place = format!("oci:{}:1.2.3", image.display());
    if let Some(said) = tool("skopeo", &["inspect", "--config", &place]) {
        assert!(said.contains("\"/usr/bin/tierline\""), "{said}");
    }
}

#[test]
fn wheels_install_as_the_format_says() {
    let (folder, paths) = written();
    let wheel = &paths[3];
    let name = wheel.file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with("tierline-1.2.3-py3-none-manylinux_2_"), "{name}");
    let mut zip = zip::ZipArchive::new(std::fs::File::open(wheel).unwrap()).unwrap();
    let mut read = |name: &str| {
        let mut content = Vec::new();
        zip.by_name(name).unwrap_or_else(|e| panic!("{name}: {e}")).read_to_end(&mut content).unwrap();
        content
    };
    let record = String::from_utf8(read("tierline-1.2.3.dist-info/RECORD")).unwrap();
    assert!(record.lines().count() > 10, "{record}");
    assert!(record.contains("tierline-1.2.3.data/scripts/tierline,sha256="), "{record}");
    // Every module of the package is in it.
    for module in std::fs::read_dir(repository().join("python/tierline")).unwrap() {
        let module = module.unwrap().file_name().to_string_lossy().into_owned();
        if module != "__pycache__" {
            assert!(record.contains(&format!("tierline/{module},")), "{module}: {record}");
        }
    }
    let target = folder.path().join("installed");
    let (wheel, into) = (wheel.to_str().unwrap(), target.to_str().unwrap());
    // It checks the tag, and puts every file where it belongs.
    let install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", into, wheel];
    if tool("python3", &["-m", "pip", "--version"]).is_some() && tool("python3", &install).is_some() {
        assert!(std::fs::read(target.join("bin/tierline")).unwrap() == package().binary);
        assert_eq!(mode(&target.join("bin/tierline")) & 0o111, 0o111);
        assert!(target.join("tierline/py.typed").exists());
    }
}

//! What an earlier version left on the disk: this one goes on with it.
//! `tests/fixtures/README.md` says how it was made.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::SystemTime;

use tierline_identity::{Ca, Grant, Identity, NODE_VALIDITY};

use crate::harness::{Node, until, write_npy};

const FIXTURE: &[u8] = include_bytes!("../fixtures/data-of-0.1.0.zip");

/// The folders as they were, but readable by their owner alone, and with the
/// data set's file where it is now.
fn unpack(to: &Path) {
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(FIXTURE)).unwrap();
    for i in 0..archive.len() {
        let mut file = archive.by_index(i).unwrap();
        let path = to.join(file.enclosed_name().unwrap());
        let folder = path.parent().unwrap();
        fs::create_dir_all(folder).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    for node in ["cloud", "end"] {
        fs::set_permissions(to.join(node), fs::Permissions::from_mode(0o700)).unwrap();
        let named = to.join(node).join("datasets/kinds.toml");
        let text = fs::read_to_string(&named).unwrap();
        let old = text.lines().find(|line| line.starts_with("path = ")).unwrap();
        fs::write(&named, text.replace(old, &format!("path = '{}'", to.join("kinds.csv").display()))).unwrap();
    }
}

/// Certificates end; the same CA signs new ones for the same nodes.
fn renew(to: &Path) {
    let (ca, now) = (Ca::open(&to.join("cloud/ca")).unwrap(), SystemTime::now());
    for node in ["cloud", "end"] {
        let folder = to.join(node).join("identity");
        let peer = Identity::load(&folder, now).unwrap().peer().clone();
        let grant = Grant { id: &peer.id, role: peer.role, name: &peer.name, validity: NODE_VALIDITY };
        fs::remove_dir_all(&folder).unwrap();
        Identity::issue(&ca, &grant, now).unwrap().save(&folder).unwrap();
    }
}

#[test]
fn a_data_folder_of_0_1_0_opens_and_its_job_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    unpack(folder.path());
    renew(folder.path());
    let cloud = Node::start(&folder.path().join("cloud"), &["--listen", "127.0.0.1:0"]);
    let model = cloud.ask(&["model", "ls", "--json"]).json()["models"][0].clone();
    assert_eq!((model["name"].as_str(), model["state"].as_str()), (Some("tiny"), Some("ready")), "{model}");
    assert_eq!(model["profiled"], true, "its profile still counts");
    assert_eq!(cloud.ask(&["data", "ls", "--json"]).json()["datasets"][0]["name"], "kinds");
    let job = |name: &str| {
        let jobs = cloud.ask(&["job", "ls", "--json"]).json();
        let found = jobs["jobs"].as_array().unwrap().iter().find(|job| job["name"] == name).cloned();
        found.unwrap_or_else(|| panic!("{jobs}"))
    };
    assert_eq!((job("kinds")["state"].as_str(), job("kinds")["round"].as_u64()), (Some("done"), Some(2)));
    let before = job("long")["round"].as_u64().unwrap();
    assert!(before >= 17, "its rounds are known: {before}");
    // The end finds its place again, and with it the job goes on.
    let end = Node::start(&folder.path().join("end"), &["--parent", &cloud.url]);
    until("the next rounds", || (job("long")["round"].as_u64()? > before + 1).then_some(()));
    let input = folder.path().join("x.npy");
    write_npy(&input, vec![1, 4], vec![1.0, 2.0, 3.0, 4.0]);
    let ask = |node: &Node| {
        node.ask(&[
            "infer",
            "--model",
            "tiny",
            "--input",
            &format!("x=@{}", input.display()),
            "--placement",
            "here",
            "--json",
        ])
        .json()
    };
    assert_eq!(ask(&cloud)["outputs"], ask(&end)["outputs"]);
    assert_eq!(cloud.ask(&["job", "cancel", "long"]).code, 0);
    // What this version keeps of it, it reads again.
    let mut cloud = cloud;
    cloud.restart();
    assert_eq!(cloud.ask(&["model", "show", "tiny"]).code, 0);
}

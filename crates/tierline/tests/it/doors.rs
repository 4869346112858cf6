//! Strangers, members gone bad, full disks and open folders, against real nodes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use rustls::pki_types::ServerName;
use tierline_daemon::net::transport;
use tierline_identity::{Ca, Identity, KeyRequest, SERVER_NAME, tls};
use tierline_proto::v1::JoinRequest;
use tierline_proto::v1::enrollment_client::EnrollmentClient;
use tierline_proto::{Role, Versions};

use crate::faults::artefacts;
use crate::harness::{Node, Ran, Site, SmallDisk, binary, tierline, until};

/// Everything in a folder that others could open.
fn open_to_others(folder: &Path) -> Vec<String> {
    let meta = std::fs::symlink_metadata(folder).unwrap();
    let mut open = Vec::new();
    if meta.mode() & 0o077 != 0 {
        open.push(format!("{} {:o}", folder.display(), meta.mode()));
    }
    if meta.is_dir() {
        for entry in std::fs::read_dir(folder).unwrap() {
            open.extend(open_to_others(&entry.unwrap().path()));
        }
    }
    open
}

/// The binary, started by a shell with no umask at all.
fn without_umask() -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "umask 000 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_tierline")]);
    command.env("TIERLINE_ENGINE", "rten").env_remove("TIERLINE_DATA").env_remove("TIERLINE_TOKEN");
    command
}

#[test]
fn nothing_in_a_data_folder_is_open_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("cloud");
    std::fs::create_dir_all(data.join("artefacts/whole")).unwrap();
    for path in [data.clone(), data.join("artefacts"), data.join("artefacts/whole")] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
    }
    let mut cloud = Node::start_by(without_umask(), &data, &["--role", "cloud", "--listen", "127.0.0.1:0"]);
    assert!(cloud.log().contains("other users could open"), "{}", cloud.log());
    let model = crate::harness::Model::write(folder.path());
    assert_eq!(cloud.ask(&["model", "add", model.file.to_str().unwrap(), "--name", "digits"]).code, 0);
    let token = cloud.ask(&["token", "create", "--json"]).json()["token"].as_str().unwrap().to_owned();
    until("it is measured", || (artefacts(&cloud) == 3).then_some(()));
    assert_eq!(open_to_others(&data), [""; 0]);
    let joined = folder.path().join("end");
    std::fs::create_dir(&joined).unwrap();
    std::fs::set_permissions(&joined, PermissionsExt::from_mode(0o777)).unwrap();
    let mut join = without_umask();
    join.arg("--data").arg(&joined).args(["join", &cloud.url, "--name", "cam"]).env("TIERLINE_TOKEN", token);
    let ran = Ran::of(join.output().unwrap());
    assert!(ran.code == 0 && ran.stderr.contains("other users could open"), "{ran:?}");
    assert_eq!(open_to_others(&joined), [""; 0]);
    // Opened again between two starts.
    cloud.kill();
    for path in [data.clone(), data.join("state.db")] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
    }
    let _again = Node::start_by(without_umask(), &data, &["--listen", "127.0.0.1:0"]);
    assert_eq!(open_to_others(&data), [""; 0]);
}

#[test]
fn a_token_comes_from_a_file_or_from_stdin() {
    let site = Site::new();
    let join = |name: &str, how: &[&str], stdin: &str| {
        let data = site.folder.path().join(name);
        let mut command = binary();
        command.arg("--data").arg(&data).args(["join", &site.cloud.url, "--name", name]).args(how);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        Ran::of(child.wait_with_output().unwrap())
    };
    let file = site.folder.path().join("token");
    std::fs::write(&file, format!("\n{}\n", site.token("end"))).unwrap();
    assert_eq!(join("by-file", &["--token-file", file.to_str().unwrap()], "").code, 0);
    assert_eq!(join("by-stdin", &["--token", "-"], &format!("{}\n", site.token("end"))).code, 0);
    join("by-nothing", &[], "").refused(2, "--token-file");
    join("by-no-file", &["--token-file", "nowhere"], "").refused(2, "nowhere");
    std::fs::write(&file, "x".repeat(1 << 20)).unwrap();
    join("by-much", &["--token-file", file.to_str().unwrap()], "").refused(2, "no join token");
}

/// A device that asks to join without the command line: the same key as often as wished.
struct Device {
    runtime: tokio::runtime::Runtime,
    client: EnrollmentClient<tonic::transport::Channel>,
    csr: Vec<u8>,
}

impl Device {
    fn at(site: &Site) -> Self {
        let ca = Ca::open(&site.cloud.data.join("ca")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let endpoint = transport::endpoint(&site.cloud.url, tls::join_config(ca.certificate())).unwrap();
        let client = EnrollmentClient::new(runtime.block_on(endpoint.connect()).unwrap());
        Self { runtime, client, csr: KeyRequest::generate().unwrap().csr_der().unwrap() }
    }

    fn join(&self, token: &str, name: &str) -> Result<String, tonic::Status> {
        let request = JoinRequest {
            token: token.to_owned(),
            csr_der: self.csr.clone().into(),
            role: Role::Unspecified.into(),
            name: name.to_owned(),
            versions: Some(Versions::OURS.into()),
        };
        self.runtime.block_on(self.client.clone().join(request)).map(|reply| reply.into_inner().node_id)
    }
}

#[test]
fn a_token_that_is_over_gives_no_certificate_to_who_used_it() {
    let site = Site::new();
    let made = site.cloud.ask(&["token", "create", "--json"]).json();
    let (token, id) = (made["token"].as_str().unwrap(), made["id"].as_str().unwrap());
    let device = Device::at(&site);
    let node = device.join(token, "cam").unwrap();
    assert_eq!(device.join(token, "cam").unwrap(), node, "an answer that was lost is asked for again");
    assert_eq!(site.cloud.ask(&["token", "rm", id]).code, 0);
    let refused = device.join(token, "cam").unwrap_err();
    assert!(refused.code() == tonic::Code::Unauthenticated && refused.message().contains("taken back"), "{refused:?}");
}

#[test]
fn joins_that_fail_again_and_again_are_told_to_slow_down_and_good_ones_pass() {
    let site = Site::new();
    let device = Device::at(&site);
    let wrong = site.token("end").replace('1', "2");
    let begun = Instant::now();
    let codes: Vec<tonic::Code> = (0..60).map(|_| device.join(&wrong, "cam").unwrap_err().code()).collect();
    let looked_at = codes.iter().filter(|code| **code == tonic::Code::Unauthenticated).count() as u64;
    // Twenty at once, and one more every three seconds.
    assert!(looked_at <= 21 + begun.elapsed().as_secs() / 3, "{codes:?}");
    assert!(codes.iter().skip(20).all(|code| [tonic::Code::ResourceExhausted, codes[0]].contains(code)), "{codes:?}");
    device.join(&site.token("end"), "cam").unwrap();
}

#[test]
fn a_device_named_like_an_id_takes_nobodys_place() {
    let site = Site::new();
    let data = site.join("end", "cam", &site.cloud.url);
    let id = Identity::load(&data.join("identity"), SystemTime::now()).unwrap().peer().id.clone();
    site.cloud.ask(&["token", "create", "--name", &id]).refused(2, "looks like a node's id");
    let refused = Device::at(&site).join(&site.token("end"), &id).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
    let elsewhere = site.folder.path().join("lure");
    let token = site.token("end");
    tierline(["--data", elsewhere.to_str().unwrap(), "join", &site.cloud.url, "--name", &id, "--token", &token])
        .refused(2, "looks like a node's id");
    assert_eq!(site.cloud.ask(&["nodes", "revoke", &id]).code, 0);
    assert!(site.cloud.log().contains("cam is shut out"), "{}", site.cloud.log());
}

#[test]
fn only_tls_1_3_is_offered_to_a_parent() {
    let site = Site::new();
    let data = site.join("end", "cam", &site.cloud.url);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let parent = format!("https://{}", listener.local_addr().unwrap());
    let _end = Node::start(&data, &["--parent", &parent]);
    let (mut stream, _) = listener.accept().unwrap();
    let mut hello = vec![0; 5];
    stream.read_exact(&mut hello).unwrap();
    hello.resize(5 + usize::from(u16::from_be_bytes([hello[3], hello[4]])), 0);
    stream.read_exact(&mut hello[5..]).unwrap();
    // The extension `supported_versions` (RFC 8446, 4.2.1) with one entry.
    assert!(hello.windows(7).any(|bytes| bytes == [0x00, 0x2b, 0x00, 0x03, 0x02, 0x03, 0x04]), "{hello:02x?}");
}

/// Connections that say nothing.
fn silent(url: &str, how_many: usize) -> Vec<TcpStream> {
    let address = url.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches("/metrics");
    (0..how_many).map(|_| TcpStream::connect(address).unwrap()).collect()
}

#[test]
fn silent_strangers_keep_nobody_out() {
    let site = Site::new();
    let admin = site.join("operator", "admin", &site.cloud.url);
    let nodes = || {
        let args = ["--data", admin.to_str().unwrap(), "nodes", "--endpoint", &site.cloud.url];
        (tierline(args).code == 0).then_some(())
    };
    until("the operator is known", nodes);
    let _silent = silent(&site.cloud.url, 700);
    until("an operator gets in", nodes);
    let _end = site.end("cam", &site.cloud.url, &[]);
    let shown = || site.cloud.ask(&["nodes", "--json"]).json()["nodes"].as_array().unwrap().len();
    until("an end gets in", || (shown() == 2).then_some(()));
    let _slow = silent(&site.cloud.metrics, 100);
    until("Prometheus gets in", || {
        let mut stream = silent(&site.cloud.metrics, 1).pop()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(())
    });
}

#[test]
fn strangers_behind_tls_make_room_for_each_other_and_have_to_leave() {
    let site = Site::new();
    let ca = Ca::open(&site.cloud.data.join("ca")).unwrap();
    let config = tls::join_config(ca.certificate()).unwrap();
    let mut idle: Vec<_> = silent(&site.cloud.url, 150)
        .into_iter()
        .map(|stream| {
            let name = ServerName::try_from(SERVER_NAME).unwrap();
            let client = rustls::ClientConnection::new(Arc::clone(&config), name).unwrap();
            rustls::StreamOwned::new(client, stream)
        })
        .collect();
    for stream in &mut idle {
        // The first lines of HTTP/2, and nothing more. Some are let go already.
        let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00");
    }
    assert!(site.join("end", "cam", &site.cloud.url).exists());
    for mut stream in idle {
        // Reads until the node closes, whatever it says before.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
}

#[test]
fn a_node_has_descriptors_for_all_its_children() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -n 256 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_tierline")]);
    command.env("TIERLINE_ENGINE", "rten");
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("cloud");
    let cloud = Node::start_by(command, &data, &["--role", "cloud", "--listen", "127.0.0.1:0"]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", cloud.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [soft, hard] = numbers[..] else { panic!("{line}") };
    assert_eq!(soft, hard.min(65_536), "{line}");
}

#[test]
fn a_model_that_is_removed_leaves_no_byte_here_and_below() {
    let site = Site::new();
    let model = site.add_model();
    let edge = site.edge("edge-00");
    let end = site.end("cam", &edge.url, &[]);
    let nodes = [&site.cloud, &edge, &end];
    // Its manifest, itself, and a profile; others' profiles as they are planned with.
    until("all have it and have measured it", || nodes.iter().all(|node| artefacts(node) >= 3).then_some(()));
    // The same model by another name stays.
    let file = model.file.to_str().unwrap();
    assert_eq!(site.cloud.ask(&["model", "add", file, "--name", "again"]).code, 0);
    assert_eq!(site.cloud.ask(&["model", "rm", "digits"]).code, 0);
    let answer = site.cloud.ask(&["infer", "--model", "again", "--input", &model.input, "--json"]).json();
    assert_eq!(answer["outputs"][0]["shape"], serde_json::json!([1, 10]));
    assert_eq!(site.cloud.ask(&["model", "rm", "again"]).code, 0);
    until("nothing is left", || {
        let left = |node: &&Node| {
            let kept = std::fs::read_dir(node.data.join("artefacts/partial")).unwrap().count();
            // Nodes below may keep what others measured until it is old.
            kept == 0 && artefacts(node) <= if node.name == "cloud" { 0 } else { 2 }
        };
        nodes.iter().all(left).then_some(())
    });
}

#[test]
fn what_a_crash_left_half_done_goes_at_the_next_start() {
    let mut site = Site::new();
    site.add_model();
    // A profile that nothing names yet would rightly go as well.
    until("it is measured", || {
        (site.cloud.ask(&["model", "ls", "--json"]).json()["models"][0]["profiled"] == true).then_some(())
    });
    assert_eq!(artefacts(&site.cloud), 3);
    let folder = site.cloud.data.join("artefacts");
    site.cloud.kill();
    let shelf = std::fs::read_dir(folder.join("whole")).unwrap().next().unwrap().unwrap().path();
    let left = [folder.join("partial").join("ab".repeat(32)), shelf.join(format!("{}#3", "cd".repeat(32)))];
    left.iter().for_each(|path| std::fs::write(path, "half").unwrap());
    site.cloud.restart();
    assert!(left.iter().all(|path| !path.exists()));
    assert_eq!(artefacts(&site.cloud), 3, "what is named stays");
}

#[test]
fn of_two_copies_of_a_folder_one_is_turned_away_and_both_are_told() {
    let site = Site::new();
    let data = site.join("end", "cam", &site.cloud.url);
    let copy = site.folder.path().join("copy");
    let copied = Command::new("cp").arg("-a").arg(&data).arg(&copy).status().unwrap();
    assert!(copied.success());
    let first = Node::start(&data, &[]);
    let state = || {
        let nodes = site.cloud.ask(&["nodes", "--json"]).json();
        let found = nodes["nodes"].as_array()?.iter().find(|node| node["name"] == "cam")?;
        Some(found["state"].as_str()?.to_owned())
    };
    until("the first is connected", || state().filter(|state| state == "connected"));
    let second = Node::start(&copy, &[]);
    until("the site shows it", || state().filter(|state| state == "doubled"));
    until("one is told", || first.log().contains("turned away").then_some(()));
    until("the other is told", || second.log().contains("copy of this data").then_some(()));
    assert!(site.cloud.log().contains("two copies of cam's data folder"), "{}", site.cloud.log());
    drop(second);
    until("the first is back", || first.log().matches("connected to cloud").count().checked_sub(2));
}

#[test]
fn a_cloud_whose_disk_is_full_starts_and_shuts_members_out() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("cloud");
    let Some(disk) = SmallDisk::at(&data, 8) else { return };
    let args = ["--role", "cloud", "--listen", "127.0.0.1:0"];
    let mut cloud = disk.start(&args);
    let model = crate::harness::Model::write(folder.path());
    assert_eq!(cloud.ask(&["model", "add", model.file.to_str().unwrap(), "--name", "digits"]).code, 0);
    let joined = folder.path().join("cam");
    let token = cloud.ask(&["token", "create", "--json"]).json()["token"].as_str().unwrap().to_owned();
    let ran = tierline(["--data", joined.to_str().unwrap(), "join", &cloud.url, "--name", "cam", "--token", &token]);
    assert_eq!(ran.code, 0, "{ran:?}");
    disk.fill();
    cloud.kill();
    let mut cloud = disk.start(&args);
    assert_eq!(cloud.ask(&["nodes", "revoke", "cam", "--reason", "lost"]).code, 0);
    assert_eq!(cloud.ask(&["model", "rm", "digits"]).code, 0, "what takes the room can go");
    // And it holds.
    cloud.kill();
    let cloud = disk.start(&args);
    let ids = cloud.ask(&["nodes", "revoke", "cam"]);
    assert_eq!(ids.code, 0, "{ids:?}");
    assert!(!cloud.ask(&["model", "ls"]).stdout.contains("digits"));
}

#[test]
fn below_an_edge_without_room_a_model_is_there_all_the_same() {
    let site = Site::new();
    let data = site.join("edge", "edge-00", &site.cloud.url);
    let Some(disk) = SmallDisk::at(&data, 4) else { return };
    let edge = disk.start(&["--listen", "127.0.0.1:0"]);
    let end = site.end("cam", &edge.url, &[]);
    disk.fill();
    let model = site.add_model();
    let answer = |placement: &str| {
        until(placement, || {
            let args = ["infer", "--model", "digits", "--input", &model.input, "--placement", placement, "--json"];
            let ran = end.ask(&args);
            (ran.code == 0).then(|| ran.json())
        })
    };
    crate::harness::same_outputs(&answer("here"), &answer("cloud"));
    // As the edge sees its folder.
    let whole = format!("/proc/{}/root{}", edge.id(), edge.data.join("artefacts/whole").display());
    let folders = std::fs::read_dir(whole).unwrap().map(|folder| folder.unwrap().path());
    let kept: Vec<_> = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap()).collect();
    assert!(kept.is_empty(), "nothing is kept there but folders, perhaps: {kept:?}");
}

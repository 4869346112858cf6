//! A node under a supervisor: what it tells it, what it reads again, what it logs.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::{Node, binary, until};

/// The supervisor's end.
struct Supervisor {
    socket: UnixDatagram,
    heard: String,
}

impl Supervisor {
    fn at(address: &SocketAddr) -> Self {
        let socket = UnixDatagram::bind_addr(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        Self { socket, heard: String::new() }
    }

    /// Waits until a message has this line; all that was heard up to it.
    fn hears(&mut self, line: &str) -> String {
        let begun = Instant::now();
        let mut buffer = [0; 4_096];
        while begun.elapsed() < Duration::from_secs(30) {
            if let Some(at) = self.heard.find(line) {
                let rest = self.heard.split_off(at + line.len());
                return std::mem::replace(&mut self.heard, rest);
            }
            if let Ok(length) = self.socket.recv(&mut buffer) {
                self.heard += std::str::from_utf8(&buffer[..length]).unwrap();
                self.heard.push('\n');
            }
        }
        panic!("`{line}` was never heard, but {}", self.heard);
    }
}

fn cloud(data: &Path, socket: &str, more: &[(&str, &str)]) -> Node {
    let mut command = binary();
    command.env("NOTIFY_SOCKET", socket).envs(more.iter().copied());
    Node::start_by(command, data, &["--role", "cloud", "--listen", "127.0.0.1:0"])
}

fn hang_up(node: &Node) {
    assert!(Command::new("kill").args(["-HUP", &node.id().to_string()]).status().unwrap().success());
}

#[test]
fn a_supervisor_hears_how_a_node_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let mut supervisor = Supervisor::at(&SocketAddr::from_pathname(&path).unwrap());
    let data = folder.path().join("cloud");
    let mut node = cloud(&data, &path.to_string_lossy(), &[("WATCHDOG_USEC", "200000")]);
    supervisor.hears("READY=1\nSTATUS=cloud (cloud) is ready, listening on https://127.0.0.1:");
    let begun = Instant::now();
    (0..5).for_each(|_| drop(supervisor.hears("WATCHDOG=1")));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    hang_up(&node);
    let heard = supervisor.hears("READY=1");
    assert!(heard.contains("RELOADING=1\nMONOTONIC_USEC="), "{heard}");
    assert!(node.stop().success());
    supervisor.hears("STOPPING=1");
}

#[test]
fn sockets_without_a_file_are_spoken_to_and_another_process_s_watchdog_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let name = format!("tierline-test-{}", std::process::id());
    let mut supervisor = Supervisor::at(&SocketAddr::from_abstract_name(&name).unwrap());
    let watchdog = [("WATCHDOG_USEC", "50000"), ("WATCHDOG_PID", "1")];
    let mut node = cloud(&folder.path().join("cloud"), &format!("@{name}"), &watchdog);
    supervisor.hears("READY=1");
    std::thread::sleep(Duration::from_millis(300));
    assert!(node.stop().success());
    let heard = supervisor.hears("STOPPING=1");
    assert!(!heard.contains("WATCHDOG=1"), "{heard}");
}

#[test]
fn what_can_be_reloaded_is_and_the_rest_waits() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("cloud");
    let node = Node::start(&data, &["--role", "cloud", "--listen", "127.0.0.1:0"]);
    let file = data.join("node.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    let limit = || node.ask(&["node", "status", "--json"]).json()["memory_max_bytes"].clone();
    let changed = |more: &str| {
        let kept: String = before
            .lines()
            .filter(|l| !l.starts_with("memory_bytes") && !l.starts_with("profile_seconds"))
            .fold(String::new(), |t, l| t + l + "\n");
        std::fs::write(&file, format!("{more}\n{kept}")).unwrap();
        hang_up(&node);
    };
    changed("memory_bytes = 123456789\nprofile_seconds = 7\nlog = \"tierline=debug\"");
    until("it is in force", || (limit() == 123_456_789).then_some(()));
    let said = "reloaded node.toml: log, memory_bytes changed; profile_seconds from the next start on";
    until("it says so", || node.log().contains(said).then_some(()));
    changed("memory_bytes = 5\nthreds = 1");
    until("a wrong file is refused", || node.log().contains("nothing is reloaded: ").then_some(()));
    assert_eq!(limit(), 123_456_789);
    assert_eq!(node.ask(&["node", "status"]).code, 0, "it goes on");
}

#[test]
fn logs_are_documents_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("cloud");
    let mut node = Node::start(&data, &["--role", "cloud", "--listen", "127.0.0.1:0", "--log-format", "json"]);
    assert!(node.stop().success());
    let log = node.log();
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect();
    let goodbye = lines.iter().find(|l| l["message"] == "cloud says goodbye").unwrap_or_else(|| panic!("{log}"));
    assert_eq!(goodbye["level"], "INFO");
    assert!(goodbye["timestamp"].as_str().is_some_and(|t| t.ends_with('Z')), "{goodbye}");
    let wrong = crate::harness::Ran::of(
        binary().env("TIERLINE_LOG", "tierline=loud").arg("--data").arg(&data).arg("node").output().unwrap(),
    );
    wrong.refused(3, "TIERLINE_LOG: `tierline=loud` says not what to log");
}

#[test]
fn the_manual_has_a_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let ran = crate::harness::tierline(["manual", &folder.path().to_string_lossy()]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for page in ["tierline.1", "tierline-node.1", "tierline-node-status.1", "tierline-model-add.1"] {
        let text = std::fs::read_to_string(folder.path().join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
        assert!(text.contains(".TH "), "{page}");
    }
}

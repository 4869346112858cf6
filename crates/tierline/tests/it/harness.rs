//! Nodes as processes, and the command line beside them.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tierline_daemon::net::door::{Doors, Rooms};
use tierline_daemon::runtime::events::Events;
use tierline_daemon::runtime::tasks::Tasks;
use tierline_graph::{Elements, Tensor};

/// The longest a node may take to start, or anything to come about.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(output: std::process::Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The JSON document on stdout of a command that succeeded.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Ended with `code`, and said `text`.
    #[track_caller]
    pub fn refused(&self, code: i32, text: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.stderr.contains(text), "`{text}` is missing: {self:?}");
    }
}

/// The binary under test, on the embedded engine: no test depends on what is
/// installed.
pub fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tierline"));
    command.env("TIERLINE_ENGINE", "rten").env_remove("TIERLINE_DATA").env_remove("TIERLINE_TOKEN");
    command
}

/// The binary, with tasks that break off as they begin: `NAME:TIMES,...`.
pub fn breaking(tasks: &str) -> Command {
    let mut command = binary();
    command.env("TIERLINE_PANIC", tasks);
    command
}

/// Runs a command to its end.
pub fn tierline<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    Ran::of(binary().args(args).stdin(Stdio::null()).output().expect("the binary runs"))
}

/// A node as a process; ends with the value.
pub struct Node {
    child: Child,
    pub name: String,
    pub data: PathBuf,
    /// Where children reach it; empty for ends.
    pub url: String,
    /// Where it gives its numbers; empty if nowhere.
    pub metrics: String,
    /// Where applications reach it over HTTP; empty if nowhere.
    pub http: String,
    /// Where they reach it over gRPC; empty if nowhere.
    pub grpc: String,
    log: PathBuf,
    args: Vec<String>,
    /// Its data folder is seen from its own mount namespace only.
    pub apart: bool,
}

impl Node {
    /// Starts a node on `data` and waits until it is ready.
    pub fn start(data: &Path, args: &[&str]) -> Self {
        Self::start_by(binary(), data, args)
    }

    /// As [`Node::start`], by another command that ends in the binary.
    pub fn start_by(mut command: Command, data: &Path, args: &[&str]) -> Self {
        let log = data.with_extension("log");
        let stderr = File::options().create(true).append(true).open(&log).expect("a log file");
        let mut child = command
            .arg("--data")
            .arg(data)
            .args(["node", "--json", "--threads", "1"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("the node starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let ready: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("not ready: {}", std::fs::read_to_string(&log).unwrap_or_default()));
        assert_eq!(ready["event"], "ready");
        Self {
            child,
            name: ready["node"].as_str().unwrap_or_default().to_owned(),
            data: data.to_owned(),
            url: ready["url"].as_str().unwrap_or_default().to_owned(),
            metrics: ready["metrics"].as_str().unwrap_or_default().to_owned(),
            http: ready["http"].as_str().unwrap_or_default().to_owned(),
            grpc: ready["grpc"].as_str().unwrap_or_default().to_owned(),
            log,
            args: args.iter().map(|&a| a.to_owned()).collect(),
            apart: false,
        }
    }

    /// Runs a command against this node.
    pub fn ask(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).stdin(Stdio::null()).output().expect("the binary runs"))
    }

    /// A command against this node, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = binary();
        if self.apart {
            command = Command::new("nsenter");
            command.env("TIERLINE_ENGINE", "rten");
            command.args(["--user", "--mount", "--preserve-credentials", "-t", &self.id().to_string()]);
            command.arg(env!("CARGO_BIN_EXE_tierline"));
        }
        command.arg("--data").arg(&self.data).args(args);
        command
    }

    /// Its numbers, as Prometheus reads them.
    pub fn scrape(&self) -> String {
        let address = self.metrics.trim_start_matches("http://").trim_end_matches("/metrics");
        let mut stream = std::net::TcpStream::connect(address).expect("it listens");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: tierline\r\nConnection: close\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        body.to_owned()
    }

    /// Kills the process as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again, listening where it did.
    pub fn restart(&mut self) {
        self.restart_by(binary());
    }

    /// As [`Node::restart`], by another command that ends in the binary.
    pub fn restart_by(&mut self, command: Command) {
        self.kill();
        let mut args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let address = self.url.trim_start_matches("https://").to_owned();
        if let Some(at) = args.iter().position(|a| *a == "--listen") {
            args[at + 1] = &address;
        }
        *self = Self::start_by(command, &self.data, &args);
    }

    /// Asks it to stop, and says how it ended.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        let id = self.child.id().to_string();
        Command::new("kill").arg(&id).status().expect("kill runs");
        self.child.wait().expect("it ends")
    }

    /// Of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.name, self.log());
        }
    }
}

/// A command that mounts a file system of so many megabytes at `data`, in a
/// mount namespace of its own, and goes on as the binary. What the folder held
/// before is there, too.
///
/// Where nobody may mount, the test fails, unless `TIERLINE_SKIP_MOUNTS` says
/// that this is known: then there is no command.
pub fn on_small_disk(data: &Path, megabytes: u32) -> Option<Command> {
    let allowed = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).status();
    if !allowed.is_ok_and(|s| s.success()) {
        let skip = std::env::var_os("TIERLINE_SKIP_MOUNTS").is_some();
        assert!(
            skip,
            "`unshare --user --mount` is refused here; allow it, or set TIERLINE_SKIP_MOUNTS=1 to do without"
        );
        eprintln!("skipped: TIERLINE_SKIP_MOUNTS is set");
        return None;
    }
    std::fs::create_dir_all(data).expect("a folder");
    let script = format!(
        "cp -a '{data}' '{kept}' && mount -t tmpfs -o size={megabytes}m tmpfs '{data}' && cp -a '{kept}/.' '{data}' && exec \"$@\"",
        data = data.display(),
        kept = data.with_extension("kept").display(),
    );
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_tierline")]);
    command.env("TIERLINE_ENGINE", "rten");
    Some(command)
}

/// A small file system at a data folder, in a mount namespace of its own,
/// that outlives the nodes on it.
pub struct SmallDisk {
    holder: Child,
    data: PathBuf,
}

impl SmallDisk {
    /// As [`on_small_disk`].
    pub fn at(data: &Path, megabytes: u32) -> Option<Self> {
        let mut command = on_small_disk(data, megabytes)?;
        // Goes on as this instead of the binary.
        let program = command.get_program().to_owned();
        let args: Vec<_> = command
            .get_args()
            .take_while(|arg| *arg != env!("CARGO_BIN_EXE_tierline"))
            .map(ToOwned::to_owned)
            .collect();
        command = Command::new(program);
        let ready = data.with_extension("mounted");
        command.args(args).args(["sh", "-c", "touch \"$0\" && exec sleep 1000000"]).arg(&ready);
        let holder = command.stdin(Stdio::null()).spawn().expect("it runs");
        until("the small disk is mounted", || ready.exists().then_some(()));
        Some(Self { holder, data: data.to_owned() })
    }

    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--user", "--mount", "--preserve-credentials", "-t", &self.holder.id().to_string()]);
        command
    }

    /// A node on it.
    pub fn start(&self, args: &[&str]) -> Node {
        let mut command = self.enter();
        command.arg(env!("CARGO_BIN_EXE_tierline")).env("TIERLINE_ENGINE", "rten");
        let mut node = Node::start_by(command, &self.data, args);
        node.apart = true;
        node
    }

    /// Fills it to the last block.
    pub fn fill(&self) {
        let ballast = self.data.join("ballast");
        let script = format!("dd if=/dev/zero of='{}' bs=4k 2>/dev/null || true", ballast.display());
        assert!(self.enter().args(["sh", "-c", &script]).status().expect("it runs").success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The doors of a node with the usual number of descriptors, without the node.
pub fn doors() -> Arc<Doors> {
    Doors::new(Rooms::within(1_024), Tasks::new(Events::default()))
}

/// A site in a folder of its own.
pub struct Site {
    pub cloud: Node,
    /// Goes last: a node that failed a test shows its log from here.
    pub folder: tempfile::TempDir,
}

impl Site {
    /// A site with nothing but its cloud, which gives its numbers.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let args = ["--role", "cloud", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
        let cloud = Node::start(&folder.path().join("cloud"), &args);
        Self { folder, cloud }
    }

    pub fn token(&self, role: &str) -> String {
        let made = self.cloud.ask(&["token", "create", "--role", role, "--json"]).json();
        made["token"].as_str().expect("a token").to_owned()
    }

    /// Joins a device below `parent`, without starting it.
    pub fn join(&self, role: &str, name: &str, parent: &str) -> PathBuf {
        let data = self.folder.path().join(name);
        let token = self.token(role);
        let ran = tierline([
            "--data",
            data.to_str().expect("a plain path"),
            "join",
            parent,
            "--token",
            &token,
            "--name",
            name,
        ]);
        assert_eq!(ran.code, 0, "{ran:?}");
        data
    }

    pub fn edge(&self, name: &str) -> Node {
        let data = self.join("edge", name, &self.cloud.url);
        Node::start(&data, &["--listen", "127.0.0.1:0"])
    }

    pub fn end(&self, name: &str, parent: &str, args: &[&str]) -> Node {
        let data = self.join("end", name, parent);
        Node::start(&data, args)
    }

    /// Writes the test model and an input, and gives the model to the site.
    pub fn add_model(&self) -> Model {
        let model = Model::write(self.folder.path());
        let ran = self.cloud.ask(&["model", "add", model.file.to_str().expect("a plain path"), "--name", "digits"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        model
    }
}

/// A link before a node, changed while it runs.
pub struct Link {
    process: Child,
    pub listen: String,
    pub control: String,
}

impl Link {
    pub fn to(url: &str, shape: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_tierline"))
            .args(["link", "start", "--to", url.trim_start_matches("https://"), "--control", "127.0.0.1:0", "--json"])
            .args(shape)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        let text = |key: &str| ready[key].as_str().unwrap().to_owned();
        Self { process, listen: text("listen"), control: text("control") }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.listen)
    }

    pub fn set(&self, args: &[&str]) -> Value {
        tierline([&["link", "set", "--control", &self.control, "--json"], args].concat()).json()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A small network with seeded weights, and an input for it.
pub struct Model {
    pub file: PathBuf,
    /// As `--input` takes it.
    pub input: String,
    pub name: String,
}

impl Model {
    pub fn write(folder: &Path) -> Self {
        let model = tierline_zoo::lenet(&tierline_zoo::Options::default());
        let file = folder.join("digits.onnx");
        model.save(&file).expect("it is saved");
        let input = &model.inputs()[0];
        let shape: Vec<usize> =
            input.shape.as_ref().expect("a shape").iter().map(|d| d.known().unwrap_or(1) as usize).collect();
        let mut rng = fastrand::Rng::with_seed(3);
        let values = (0..shape.iter().product::<usize>()).map(|_| rng.f32()).collect();
        let name = input.name.clone();
        let npy = folder.join("input.npy");
        write_npy(&npy, shape, values);
        Self { file, input: format!("{name}=@{}", npy.display()), name }
    }
}

pub fn write_npy(path: &Path, shape: Vec<usize>, values: Vec<f32>) {
    let tensor = Tensor::new(shape, Elements::F32(values)).expect("a tensor");
    std::fs::write(path, tierline_codec::npy::write(&tensor).expect("it is encoded")).expect("it is written");
}

/// Waits until `check` gives something.
#[track_caller]
pub fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} did not come about within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until a node knows the model, and all tiers on its path have measured it.
pub fn until_planned(node: &Node) {
    until("a plan", || {
        let ran = node.ask(&["plan", "digits", "--json"]);
        (ran.code == 0 && ran.json()["unmeasured"] == serde_json::json!([])).then_some(())
    });
}

/// Outputs of an answer, by name.
pub fn outputs(answer: &Value) -> Vec<(String, Vec<f64>)> {
    let values = |v: &Value| v.as_array().expect("values").iter().map(|x| x.as_f64().expect("a number")).collect();
    let list = answer["outputs"].as_array().expect("outputs");
    list.iter().map(|o| (o["name"].as_str().expect("a name").to_owned(), values(&o["data"]))).collect()
}

/// Whether two answers agree within what codecs may cost by default.
#[track_caller]
pub fn same_outputs(a: &Value, b: &Value) {
    within(3e-3, a, b);
}

/// Whether two answers agree within `share` of the largest value.
#[track_caller]
pub fn within(share: f64, a: &Value, b: &Value) {
    let (a, b) = (outputs(a), outputs(b));
    assert_eq!(a.len(), b.len());
    for ((name, x), (other, y)) in a.iter().zip(&b) {
        assert_eq!(name, other);
        assert!(!x.is_empty() && x.len() == y.len());
        let largest = x.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let apart = x.iter().zip(y).fold(0.0f64, |m, (x, y)| m.max((x - y).abs()));
        assert!(apart <= share * largest, "{name}: {apart} apart");
    }
}

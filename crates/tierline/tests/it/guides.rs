//! Every command of README and of the guides, as it stands: in the order in
//! which it is written, in a folder that looks like a clone, on the site that
//! the page built.
//!
//! What comes from elsewhere is stood in for: `cargo install` did its work
//! before, `apt-get` and `dpkg` give small pictures. Ports are free ones.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tierline_graph::Model;

use crate::federation::{packed, part};
use crate::harness::{Ran, until};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn page(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// What a page asks of its reader, in its order.
enum Step<'p> {
    /// A line of a block of commands.
    Run(&'p str),
    /// A file to be written.
    Write(&'p str, &'p str),
}

/// A block of configuration is a file where the line before says so: "This is
/// `NAME`:".
fn steps(page: &str) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    let (mut rest, mut before) = (page, "");
    while let Some((text, after)) = rest.split_once("```") {
        before = text.trim_end().lines().last().unwrap_or(before);
        let (block, next) = after.split_once("```").expect("blocks are closed");
        let (language, body) = block.split_once('\n').unwrap_or((block, ""));
        match language {
            "sh" => steps.extend(body.lines().filter(|line| !line.trim().is_empty()).map(Step::Run)),
            "toml" if before.ends_with("`:") => {
                let name = before.rsplit('`').nth(1).expect("a name");
                steps.push(Step::Write(name, body));
            }
            _ => {}
        }
        rest = next;
    }
    steps
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        let left_by_others = name.to_string_lossy().ends_with(".run") || name.to_string_lossy().ends_with(".onnx");
        match entry.file_type().unwrap() {
            _ if left_by_others || name == "data" => {}
            kind if kind.is_dir() => copy(&entry.path(), &to.join(name)),
            _ => drop(std::fs::copy(entry.path(), to.join(name)).unwrap()),
        }
    }
}

fn script(path: &Path, text: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A reader at the root of a clone.
struct Reader {
    folder: tempfile::TempDir,
    ports: BTreeMap<u16, u16>,
    running: Vec<Child>,
}

impl Reader {
    /// `examples`: how many pictures the package has.
    fn new(examples: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for part in ["examples", "crates/proto/proto"] {
            copy(&root().join(part), &folder.path().join("clone").join(part));
        }
        std::fs::copy(root().join(".gitignore"), folder.path().join("clone/.gitignore")).unwrap();
        let (bin, package) = (folder.path().join("bin"), folder.path().join("package"));
        std::fs::create_dir_all(&bin).unwrap();
        symlink(env!("CARGO_BIN_EXE_tierline"), bin.join("tierline")).unwrap();
        part(&package, "train", examples, 1);
        part(&package, "t10k", 200, 2);
        packed(&package);
        let stand_ins = [
            ("cargo", "exit 0".to_owned()),
            ("apt-get", "touch dataset-fashion-mnist_1_all.deb".to_owned()),
            (
                "dpkg",
                format!(
                    "test -f \"$2\" && mkdir -p \"$3/usr/share/datasets\" && cp -r '{}' \"$3/usr/share/datasets/fashion-mnist\"",
                    package.display()
                ),
            ),
        ];
        for (name, text) in stand_ins {
            script(&bin.join(name), &text);
        }
        // Held until all are found: no two are the same.
        let listeners: Vec<_> = (0..9).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let free = listeners.iter().map(|listener| listener.local_addr().unwrap().port());
        let ports = [7443, 7444, 7500, 7501, 8000, 8001, 8080, 8443, 8444].into_iter().zip(free).collect();
        let reader = Self { folder, ports, running: Vec::new() };
        reader.git(&["init", "--quiet"]);
        reader.git(&["add", "--all"]);
        reader
    }

    /// What git says of the clone.
    fn git(&self, args: &[&str]) -> String {
        let output = Command::new("git").args(args).current_dir(self.path(".")).output().expect("git runs");
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("clone").join(name)
    }

    fn shell(&self, line: &str) -> Command {
        let mut line = line.to_owned();
        if line.contains("tierline serve ") && !line.contains("--http") {
            line += " --http 127.0.0.1:8000 --grpc 127.0.0.1:8001";
        }
        let line =
            self.ports.iter().fold(line, |line, (shown, free)| line.replace(&format!(":{shown}"), &format!(":{free}")));
        let mut command = Command::new("sh");
        let path = std::env::var("PATH").unwrap_or_default();
        command.args(["-ec", &line]).current_dir(self.path("."));
        command.env("PATH", format!("{}:{path}", self.folder.path().join("bin").display()));
        command.env("TIERLINE_ENGINE", "rten").env("TIERLINE_DATA", self.folder.path().join("home"));
        command.env_remove("TIERLINE_TOKEN").stdin(Stdio::null());
        command
    }

    fn run(&mut self, line: &str) {
        let commands = line.split(" #").next().unwrap_or(line).trim();
        if let Some(command) = commands.strip_suffix('&') {
            return self.begin(command.trim());
        }
        let ran = Ran::of(self.shell(line).output().expect("a shell"));
        assert_eq!(ran.code, 0, "{line}: {ran:?}");
    }

    /// What stays in the foreground, behind the shell; ready as a reader sees it.
    fn begin(&mut self, command: &str) {
        let said = self.folder.path().join(format!("said-{}", self.running.len()));
        let mut shell = self.shell(&format!("exec {command}"));
        shell.stdout(Stdio::null()).stderr(File::create(&said).unwrap());
        self.running.push(shell.spawn().expect("a shell"));
        until(command, || {
            let said = std::fs::read_to_string(&said).unwrap();
            assert!(!said.contains("error:"), "{command}: {said}");
            let ready = [" is ready", " leads to ", "serving "].iter().any(|words| said.contains(words));
            ready.then_some(())
        });
    }

    /// Does what a page asks, as far as `does` says.
    fn follow(&mut self, page: &str, does: impl Fn(&str) -> bool) -> usize {
        let mut ran = 0;
        for step in steps(page) {
            match step {
                Step::Write(name, text) => std::fs::write(self.path(name), text).unwrap(),
                Step::Run(line) if does(line) => {
                    self.run(line);
                    ran += 1;
                }
                Step::Run(_) => {}
            }
        }
        let left: Vec<String> =
            self.git(&["status", "--porcelain"]).lines().filter(|l| !l.starts_with("A ")).map(str::to_owned).collect();
        assert!(left.is_empty(), "git doesn't ignore what the page leaves: {left:?}");
        ran
    }

    fn made(&self, files: &[&str]) {
        for file in files {
            assert!(self.path(file).metadata().is_ok_and(|made| made.len() > 100 || made.is_dir()), "{file}");
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for number in 0..self.running.len() {
                let said = self.folder.path().join(format!("said-{number}"));
                eprintln!("--- {number} ---\n{}", std::fs::read_to_string(said).unwrap_or_default());
            }
        }
    }
}

#[test]
fn first_site() {
    let mut reader = Reader::new(10);
    let ran = reader.follow(&page("docs/guide/first-site.md"), |_| true);
    assert!(ran > 35, "{ran}");
    reader.made(&["try/answer/logits.npy"]);
}

/// Where the tests' Python can speak gRPC; it stands in for the one that the
/// guide installs.
fn with_grpc() -> Option<String> {
    let python = std::env::var("TIERLINE_PYTHON").ok()?;
    let found = Command::new(&python).args(["-c", "import grpc, grpc_tools, numpy"]).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success()).then_some(python)
}

#[test]
fn operating() {
    let mut reader = Reader::new(10);
    let python = with_grpc();
    match &python {
        Some(python) => {
            std::fs::create_dir_all(reader.path("try/python/bin")).unwrap();
            // A link would lead away from the packages beside it.
            script(&reader.path("try/python/bin/python"), &format!("exec '{python}' \"$@\""));
        }
        None => eprintln!("skipped: the tests' Python has no grpcio; run cargo xtask test"),
    }
    let openssl = Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_ok();
    if !openssl {
        eprintln!("skipped: there is no openssl");
    }
    let ran = reader.follow(&page("docs/guide/operating.md"), |line| match line {
        _ if line.contains("pip install") => false,
        _ if line.contains("try/python") => python.is_some(),
        _ if line.contains("try/ops/own") || line.contains("openssl") || line.contains("umask") => openssl,
        _ => true,
    });
    assert!(ran > 15, "{ran}");
}

#[test]
fn applications() {
    let curl = Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !curl {
        eprintln!("skipped: there is no curl");
    }
    let mut reader = Reader::new(10);
    let page = page("docs/guide/applications.md");
    assert!(reader.follow(&page, |line| curl || !line.starts_with("curl")) > 13);
    reader.made(&["try/apps/ca.pem", "try/apps/till/key.pem"]);
}

#[test]
fn serving() {
    let curl = Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !curl {
        eprintln!("skipped: there is no curl");
    }
    let mut reader = Reader::new(10);
    let page = page("docs/guide/serving.md");
    assert!(reader.follow(&page, |line| curl || !line.starts_with("curl")) > 4);
    reader.made(&["try/serve/mlp.onnx", "try/serve/ca.pem"]);
}

#[test]
fn cascades() {
    let mut reader = Reader::new(10);
    assert!(reader.follow(&page("docs/guide/cascades.md"), |_| true) > 8);
    reader.made(&["try/hard/features.npy", "try/hard/labels.npy"]);
}

#[test]
fn continual() {
    let mut reader = Reader::new(10);
    assert!(reader.follow(&page("docs/guide/continual.md"), |_| true) > 4);
    reader.made(&["try/tasks.run/model.onnx", "try/tasks.run/kept.safetensors", "try/later.run/kept.safetensors"]);
}

#[test]
fn training() {
    let mut reader = Reader::new(10);
    assert!(reader.follow(&page("docs/guide/training.md"), |_| true) > 7);
    let run = ["try/corners.run/model.onnx", "try/corners.run/curves.svg", "try/corners.run/curves.png"];
    reader.made(&[&run[..], &["try/samples.png", "try/step.onnx", "try/fresh.onnx", "try/again/model.onnx"]].concat());
}

#[test]
fn federations_on_nodes() {
    let mut reader = Reader::new(10);
    let on_nodes = |line: &str| line.contains("try/jobs") || line.contains("corners");
    assert!(reader.follow(&page("docs/guide/federations.md"), on_nodes) > 12);
    reader.made(&["examples/corners/two-ends.run/model.onnx", "try/jobs/logs/model.onnx"]);
}

/// What runs every simulation is done in so many tests, each with its share:
/// on a busy machine one alone would take minutes.
const PARTS: usize = 4;

fn simulations(part: usize) {
    let mut reader = Reader::new(240);
    let guide = page("docs/guide/federations.md");
    let simulated = std::cell::Cell::new(0);
    let mine = std::cell::RefCell::new(Vec::new());
    reader.follow(&guide, |line| {
        if line.contains("try/jobs") || line.contains("corners") {
            return false;
        }
        let Some(job) = line.strip_prefix("tierline sim ").and_then(|rest| rest.split(' ').next()) else { return true };
        simulated.set(simulated.get() + 1);
        if simulated.get() % PARTS != part {
            return false;
        }
        let out = line.split("--out ").nth(1).map_or_else(|| job.replace(".toml", ".run"), str::to_owned);
        mine.borrow_mut().push(out);
        true
    });
    let mine = mine.into_inner();
    assert!(simulated.get() >= 8 && mine.len() >= 2, "{mine:?} of {simulated:?}");
    for run in mine {
        Model::load(&reader.path(&run).join("model.onnx")).unwrap();
        reader.made(&[&format!("{run}/curves.svg"), &format!("{run}/curves.png")]);
    }
}

mod federations_simulated {
    #[test]
    fn first() {
        super::simulations(0);
    }

    #[test]
    fn second() {
        super::simulations(1);
    }

    #[test]
    fn third() {
        super::simulations(2);
    }

    #[test]
    fn fourth() {
        super::simulations(super::PARTS - 1);
    }
}

#[test]
fn readme() {
    let mut reader = Reader::new(600);
    // It is this very run.
    assert!(reader.follow(&page("README.md"), |line| !line.starts_with("cargo xtask")) > 25);
    let made = ["try/answer/logits.npy", "try/parts", "try/gateway.toml", "try/step.onnx"];
    reader.made(&made);
    reader.made(&["examples/corners/corners.run/model.onnx", "examples/jobs/fedavg.run/model.onnx"]);
}

#[test]
fn a_guide_and_its_example_say_the_same() {
    let guide = page("docs/guide/training.md");
    let shown = steps(&guide).into_iter().find_map(|step| match step {
        Step::Write("try/corners.toml", text) => Some(text),
        _ => None,
    });
    let file = page("examples/corners/corners.toml");
    assert!(file.ends_with(shown.unwrap()), "{file}");
}

//! The site of the demonstration: processes, links, and the command line
//! that drives them, as a user would.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// A process of the site; it ends with the value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The `tierline` binary.
#[derive(Clone)]
pub struct Tierline {
    binary: PathBuf,
    logs: PathBuf,
}

/// A running node.
pub struct Node {
    tierline: Tierline,
    process: Process,
    data: PathBuf,
    /// Where children reach it; empty for ends.
    pub url: String,
    /// Where applications and browsers reach it; empty where they don't.
    pub http: String,
    /// The same by gRPC.
    pub grpc: String,
}

/// A running link.
pub struct Link {
    tierline: Tierline,
    _process: Process,
    /// Where callers connect.
    pub listen: String,
    control: String,
}

impl Tierline {
    /// The binary, logging to files in `folder`.
    #[must_use]
    pub fn new(binary: PathBuf, folder: &Path) -> Self {
        Self { binary, logs: folder.to_owned() }
    }

    /// Runs a command that prints documents line by line, and gives each to
    /// `tell` as it comes.
    ///
    /// # Errors
    /// When the command fails, or prints something else.
    pub fn follow(&self, args: &[&str], mut tell: impl FnMut(&Value)) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command
            .args(args)
            .args(["--json", "--quiet"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.binary.display()))?;
        let stdout = child.stdout.take().context("no pipe")?;
        for line in BufReader::new(stdout).lines() {
            tell(&serde_json::from_str(&line?)?);
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("`tierline {}` failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Runs a command and gives the document it prints.
    ///
    /// # Errors
    /// When the command fails.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let output = Command::new(&self.binary).args(args).args(["--json", "--quiet"]).output()?;
        if !output.status.success() {
            bail!("`tierline {}` failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        // One document, or a line of JSON each.
        let text = String::from_utf8(output.stdout)?;
        match serde_json::from_str(&text) {
            Ok(value) => Ok(value),
            Err(_) => Ok(Value::Array(
                text.lines().filter(|l| !l.is_empty()).map(serde_json::from_str).collect::<Result<_, _>>()?,
            )),
        }
    }

    fn start(&self, name: &str, args: &[&str]) -> Result<(Process, Value)> {
        let log = std::fs::File::create(self.logs.join(format!("{name}.log")))?;
        let mut child = Command::new(&self.binary)
            .args(args)
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        let stdout = child.stdout.take().context("no pipe")?;
        let process = Process(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let log = || std::fs::read_to_string(self.logs.join(format!("{name}.log"))).unwrap_or_default();
        let ready: Value = serde_json::from_str(&line).with_context(|| format!("{name} did not start: {}", log()))?;
        ensure!(ready["event"] == "ready", "{name} did not start: {line}");
        Ok((process, ready))
    }

    /// Starts a node on a folder of its own.
    ///
    /// # Errors
    /// When the command fails.
    pub fn node(&self, name: &str, args: &[&str]) -> Result<Node> {
        let data = self.logs.join(name);
        let folder = data.to_string_lossy().into_owned();
        // One thread each: the nodes share this machine's cores.
        let (process, ready) = self.start(name, &[&["--data", &folder, "node", "--threads", "1"], args].concat())?;
        let text = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
        Ok(Node { tierline: self.clone(), process, data, url: text("url"), http: text("http"), grpc: text("grpc") })
    }

    /// Joins a device below `url` and starts it.
    ///
    /// # Errors
    /// When the command fails.
    pub fn join(&self, cloud: &Node, role: &str, name: &str, url: &str, args: &[&str]) -> Result<Node> {
        let made = cloud.ask(&["token", "create", "--role", role])?;
        let token = made["token"].as_str().context("no token")?;
        let data = self.logs.join(name).to_string_lossy().into_owned();
        // On a command line every user of this machine would see it.
        let mut file = tempfile::NamedTempFile::new_in(&self.logs)?;
        writeln!(file, "{token}")?;
        let token = file.path().to_string_lossy();
        self.json(&["--data", &data, "join", url, "--token-file", &token, "--name", name])?;
        self.node(name, args)
    }

    /// Starts a link to a node.
    ///
    /// # Errors
    /// When the command fails.
    pub fn link(&self, name: &str, url: &str, args: &[&str]) -> Result<Link> {
        let to = url.trim_start_matches("https://");
        let start = ["link", "start", "--to", to, "--control", "127.0.0.1:0"];
        let (process, ready) = self.start(name, &[&start, args].concat())?;
        let text = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
        Ok(Link { tierline: self.clone(), _process: process, listen: text("listen"), control: text("control") })
    }
}

impl Node {
    /// Its process.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.0.id()
    }

    /// As [`Tierline::follow`], against this node.
    ///
    /// # Errors
    /// When the command fails.
    pub fn follow(&self, args: &[&str], tell: impl FnMut(&Value)) -> Result<()> {
        let data = self.data.to_string_lossy().into_owned();
        self.tierline.follow(&[&["--data", &data], args].concat(), tell)
    }

    /// Runs a command against this node.
    ///
    /// # Errors
    /// When the command fails.
    pub fn ask(&self, args: &[&str]) -> Result<Value> {
        let data = self.data.to_string_lossy().into_owned();
        self.tierline.json(&[&["--data", &data], args].concat())
    }
}

impl Link {
    /// The address for `join`.
    pub fn url(&self) -> String {
        format!("https://{}", self.listen)
    }

    /// Changes the link.
    ///
    /// # Errors
    /// When the command fails.
    pub fn set(&self, args: &[&str]) -> Result<()> {
        self.tierline.json(&[&["link", "set", "--control", &self.control], args].concat()).map(drop)
    }
}

/// Asks until there is an answer.
pub fn wait<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if let Some(found) = ask() {
            return Some(found);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    None
}

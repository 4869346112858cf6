//! `docs/reference/benchmarks.md`: a head, then a part for each benchmark, of
//! which a run replaces its own.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{BENCHMARKS, Benchmark};

/// The page, in parts.
pub struct Page {
    path: PathBuf,
    head: String,
    /// Heading and text of each part.
    parts: Vec<(String, String)>,
}

impl Page {
    /// The page as it is.
    ///
    /// # Errors
    /// When nobody said where it is.
    pub fn open() -> Result<Self> {
        let page = Self::anew()?;
        match std::fs::read_to_string(&page.path) {
            Ok(text) => Ok(Self::read(page.path, &text)),
            Err(_) => Ok(page),
        }
    }

    /// A page with nothing but a head.
    ///
    /// # Errors
    /// When nobody said where it is.
    pub fn anew() -> Result<Self> {
        let repository = std::env::var_os("TIERLINE_REPOSITORY").map(PathBuf::from);
        let repository = repository.context("TIERLINE_REPOSITORY is not set; run `cargo xtask bench`")?;
        Ok(Self { path: repository.join("docs/reference/benchmarks.md"), head: head(), parts: Vec::new() })
    }

    fn read(path: PathBuf, text: &str) -> Self {
        let mut parts = text.split("\n## ");
        let head = parts.next().unwrap_or_default().trim_end().to_owned();
        let parts = parts.filter_map(|part| part.split_once('\n'));
        let parts = parts.map(|(heading, text)| (heading.to_owned(), text.trim().to_owned())).collect();
        Self { path, head, parts }
    }

    /// Replaces a benchmark's part, or puts it in its place.
    pub fn put(&mut self, benchmark: &Benchmark, text: &str) {
        let place = |heading: &str| BENCHMARKS.iter().position(|b| b.heading == heading);
        let command = benchmark.group.map_or(String::new(), |group| format!("{group} "));
        let text = format!("`cargo xtask bench {command}{}`, {}\n\n{text}", benchmark.name, today());
        self.parts.retain(|(heading, _)| heading != benchmark.heading);
        let own = place(benchmark.heading);
        let at = self.parts.iter().position(|(heading, _)| place(heading) > own).unwrap_or(self.parts.len());
        self.parts.insert(at, (benchmark.heading.to_owned(), text));
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn write(&self) -> Result<()> {
        let part = |(heading, text): &(String, String)| format!("\n## {heading}\n\n{text}\n");
        let parts: String = self.parts.iter().map(part).collect();
        std::fs::write(&self.path, format!("{}\n{parts}", self.head))?;
        eprintln!("written to {}", self.path.display());
        Ok(())
    }
}

/// What machine, and when.
fn head() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split(": ").nth(1))
        .unwrap_or("unknown processor")
        .to_owned();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "# Benchmarks\n\nWritten by `cargo xtask bench`, which runs each peer in the same run; compare ratios, not times of \
         different machines.\n\nMachine: {cpu}, {cores} cores, shared with others. Date: {}.",
        today()
    )
}

fn today() -> String {
    let date = Command::new("date").arg("+%F").output();
    date.map_or_else(|_| String::new(), |d| String::from_utf8_lossy(&d.stdout).trim().to_owned())
}

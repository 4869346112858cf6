//! The parts of a command: run in order, timed, listed at the end.

use std::time::Instant;

use anyhow::{Result, bail};

/// What ran, how long it took, how it ended.
#[derive(Default)]
pub struct Summary {
    parts: Vec<(String, f64, Result<()>)>,
}

impl Summary {
    /// Runs a part; whether it went well. A failure is kept for
    /// [`Summary::finish`], so that later parts still have their say.
    pub fn part(&mut self, name: &str, run: impl FnOnce() -> Result<()>) -> bool {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let result = run();
        if let Err(error) = &result {
            eprintln!("{name}: {error:#}");
        }
        let ok = result.is_ok();
        self.parts.push((name.to_owned(), start.elapsed().as_secs_f64(), result));
        ok
    }

    /// Prints the table; fails when a part did.
    pub fn finish(self) -> Result<()> {
        let width = self.parts.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
        eprintln!();
        for (name, seconds, result) in &self.parts {
            let verdict = if result.is_ok() { "ok" } else { "FAILED" };
            eprintln!("{name:width$}  {seconds:7.1} s  {verdict}");
        }
        let failed: Vec<&str> =
            self.parts.iter().filter(|(_, _, r)| r.is_err()).map(|(name, ..)| name.as_str()).collect();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

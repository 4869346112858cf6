//! Memory of running processes, by sampling: each page counts for every
//! process that has it by its share, so that what processes share counts once.
//! Start at [`MemorySampler`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(50);

/// Looks at processes until it is asked what it saw.
pub struct MemorySampler {
    over: Arc<AtomicBool>,
    looking: JoinHandle<Vec<u64>>,
}

impl MemorySampler {
    /// Looks at these processes, each with those of the group that it leads.
    #[must_use]
    pub fn start(processes: Vec<u32>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let looking = std::thread::spawn(move || {
            let mut peaks = vec![0; processes.len()];
            while !until.load(Ordering::Relaxed) {
                for (peak, now) in peaks.iter_mut().zip(shares(&processes)) {
                    *peak = now.max(*peak);
                }
                std::thread::sleep(EVERY);
            }
            peaks
        });
        Self { over, looking }
    }

    /// The most that each had, bytes.
    ///
    /// # Errors
    /// When the looking thread died.
    pub fn peaks(self) -> Result<Vec<u64>> {
        self.over.store(true, Ordering::Relaxed);
        self.looking.join().map_err(|_| anyhow!("nobody looked at the memory"))
    }
}

/// What each has now, its group included.
fn shares(leaders: &[u32]) -> Vec<u64> {
    let mut shares = vec![0; leaders.len()];
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let leader = |leader: &u32| *leader == process || Some(*leader) == group(process);
        if let Some(at) = leaders.iter().position(leader) {
            // It may have ended by now.
            shares[at] += share(process).unwrap_or_default();
        }
    }
    shares
}

fn group(process: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the name in brackets: state, parent, group.
    stat.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse().ok()
}

/// Proportional set size, bytes.
fn share(process: u32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}

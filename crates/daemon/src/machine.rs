//! What the machine under a node has: its memory, as limits follow from it.

/// Bytes assumed where the system doesn't say.
const MEMORY_UNKNOWN: u64 = 1 << 30;

/// Bytes of memory that this process may have: the machine's, or what its
/// control group allows it.
#[must_use]
pub fn memory() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| total(&text));
    // `max` where there is no limit.
    let group = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse::<u64>().ok());
    machine.into_iter().chain(group).min().unwrap_or(MEMORY_UNKNOWN)
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_own_words_are_read() {
        assert_eq!(total("MemTotal:        2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
        assert_eq!(total("nothing"), None);
        assert!(memory() > 0);
    }
}

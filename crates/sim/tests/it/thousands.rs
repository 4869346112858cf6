//! Thousands of ends in one process, in memory that doesn't grow with models
//! times ends.

use std::time::Duration;

use tierline_engine::Stop;
use tierline_sim::{Examples, Link, Scenario, run};
use tierline_train::data::{Partition, partition};

use crate::federations::{engine, job, network_named, pictures};

const ENDS: usize = 2_000;

/// Numbers of the network, of four bytes each.
const NUMBERS: usize = 101_770;

/// Most memory that this process had, bytes, where the system says so.
fn peak() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<usize>().ok()? << 10)
}

#[test]
fn thousands_of_ends_answer_in_a_round() {
    let all = pictures(4 * ENDS, 1);
    let shares = partition(&all, &Partition::Iid, ENDS, 9).unwrap();
    let data = shares.iter().map(|share| all.subset(share).unwrap()).collect();
    let text = "[federation.cloud]\nrounds = 2\nup = ['topk:0.01', 'int8']\nmemory = { kind = 'none' }\n";
    let link = Link { up_bytes_per_s: 1e6, down_bytes_per_s: 5e6, rtt: Duration::from_millis(20) };
    let scenario = Scenario { end_link: link, spread: 5.0, ..Scenario::default() };
    let examples = Examples { ends: data, test: None, public: None };
    let stop = Stop::asked();
    let outcome = run(&engine(), &network_named("mlp"), &job(text), examples, &scenario, &stop, &mut |_| {}).unwrap();
    assert!(outcome.rounds.iter().all(|round| round.clients == ENDS), "{:?}", outcome.rounds);
    if let Some(peak) = peak() {
        assert!(peak < ENDS * 4 * NUMBERS / 2, "{peak} bytes; their updates as numbers would be twice as many");
    }
}

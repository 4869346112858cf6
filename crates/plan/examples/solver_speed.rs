//! How long exact placement takes: `cargo run --release -p tierline-plan --example solver_speed`.
//!
//! `net` is wired like a neural network, `random` is not; `solve` counts the
//! check of the problem and the naming of the result, `cut` the search alone.

use std::time::Instant;

use tierline_plan::flow::MinCut;
use tierline_plan::problem::{self, Problem};
use tierline_plan::random::{self, Shape};

/// Makes a problem of some nodes from a seed.
type Make = fn(usize, u64) -> Problem;

fn main() {
    let kinds: [(&str, Make); 5] = [
        ("net, tensors return", |n, seed| random::net(n, 3, 0.002 * 2f64.powi((seed % 12) as i32), 0.0, seed)),
        ("net, one way", |n, seed| random::net(n, 3, 0.002 * 2f64.powi((seed % 12) as i32), 1.0, seed)),
        ("random, tensors return", |n, seed| random::problem(&Shape::model(n), seed)),
        ("random, one way", |n, seed| random::problem(&Shape { one_way: 1.0, ..Shape::model(n) }, seed)),
        ("unrelated costs, half one way", |n, seed| {
            random::problem(&Shape { one_way: 0.5, reach: 8, inputs_max: 2, lifelike: false, ..Shape::model(n) }, seed)
        }),
    ];
    println!("{:<48} {:>8} {:>8} {:>8}", "K=3", "p50 ms", "p90 ms", "worst");
    for (nodes, runs) in [(100, 200), (1_000, 120), (10_000, 24)] {
        for (kind, make) in kinds {
            let (mut whole, mut alone, mut cut) = (Vec::new(), Vec::new(), MinCut::new());
            for seed in 0..runs {
                let problem = make(nodes, seed);
                let start = Instant::now();
                let solution = problem::solve(&problem).expect("tier 0 can run everything");
                whole.push(start.elapsed().as_secs_f64() * 1e3);
                let network = problem::network(&problem).expect("well formed");
                let start = Instant::now();
                assert_eq!(cut.of(&network), solution.objective_ns);
                alone.push(start.elapsed().as_secs_f64() * 1e3);
            }
            print(&format!("n={nodes} {kind}: solve"), whole);
            print(&format!("n={nodes} {kind}: cut"), alone);
        }
    }
}

fn print(what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("{what:<48} {:>8.3} {:>8.3} {:>8.3}", at(0.5), at(0.9), at(1.0));
}

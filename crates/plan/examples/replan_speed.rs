//! How long a chain takes to plan, and to re-plan from a table:
//! `cargo run --release -p tierline-plan --example replan_speed`.

use std::time::Instant;

use tierline_plan::random::SplitMix;
use tierline_plan::request::{CodecOption, Crossing, LinkPrice, Tier};
use tierline_plan::{Grid, Limits, LinkCondition, Objective, PlanRequest, PlanTable, plan};

fn main() {
    println!("{:>8} {:>12} {:>14} {:>10} {:>11}", "segments", "plan us", "precompute ms", "plans", "choose us");
    for segments in [12, 25, 50, 100] {
        let request = chain(segments);
        let links = [LinkCondition::symmetric(2e6, 5_000_000), LinkCondition::symmetric(5e6, 30_000_000)];
        let one = time(|| assert!(plan(&request, &links).is_ok()));
        let start = Instant::now();
        let table = PlanTable::precompute(request, &Grid::default()).expect("nothing is limited");
        let precompute = start.elapsed().as_secs_f64() * 1e3;
        let choose = time(|| assert!(table.choose(&links).is_some()));
        println!("{segments:>8} {one:>12.1} {precompute:>14.1} {:>10} {choose:>11.2}", table.len());
    }
}

/// Median of many runs, microseconds.
fn time(mut f: impl FnMut()) -> f64 {
    let once = |f: &mut dyn FnMut()| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64() * 1e6
    };
    let mut times: Vec<f64> = (0..101).map(|_| once(&mut f)).collect();
    times.sort_by(f64::total_cmp);
    times[50]
}

/// Three tiers, tensors that shrink, four codecs.
fn chain(segments: usize) -> PlanRequest {
    let mut random = SplitMix(7);
    let tier = |k: usize, random: &mut SplitMix| Tier {
        name: ["end", "edge", "cloud"][k].into(),
        segment_ns: (0..segments).map(|_| Some((2_000_000 + random.below(4_000_000)) >> (2 * k))).collect(),
        memory_max: 0,
        wait_ns: 0,
        watts: 0.0,
        price_per_hour: 0.0,
    };
    let option = |(c, codec): (u64, &str), bytes: u64| CodecOption {
        codec: codec.into(),
        bytes: [bytes, bytes * 4 / 5, bytes / 2, bytes / 4][c as usize],
        encode_ns: vec![c * bytes, c * bytes / 4, c * bytes / 16],
        decode_ns: vec![c * bytes / 2, c * bytes / 8, c * bytes / 32],
        loss: [0.0, 0.0, 1e-4, 8e-4][c as usize],
    };
    let crossing = |place: usize, random: &mut SplitMix| {
        let bytes = (100_000 + random.below(900_000)) * (segments - place) as u64 / segments as u64;
        let options = (0..).zip(["raw", "planes", "fp16", "int8"]).map(|codec| option(codec, bytes)).collect();
        vec![Crossing { tensor: format!("t{place}"), options }]
    };
    PlanRequest {
        tiers: (0..3).map(|k| tier(k, &mut random)).collect(),
        link_prices: Vec::new(),
        direct_price: LinkPrice::default(),
        crossings: (0..segments).map(|place| crossing(place, &mut random)).collect(),
        segment_memory: vec![1; segments],
        output_bytes: 4_000,
        objective: Objective::Latency,
        limits: Limits::default(),
        private_tier: 0,
        exits: Vec::new(),
    }
}

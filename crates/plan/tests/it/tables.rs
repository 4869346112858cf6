//! The table of plans for all links.

use tierline_plan::request::Exit;
use tierline_plan::{Grid, LinkCondition, Objective, PlanTable, plan};

use crate::support::{Has, by_hand, links, request};

const PLAIN: Has = Has { missing: false, memory: false, privacy: false, exits: false, deadline: false, loss: true };

#[test]
fn on_grid_points_the_table_has_the_best_plan() {
    let grid = Grid::default();
    for seed in 0..6 {
        let objective = [Objective::Latency, Objective::Throughput][seed as usize % 2];
        let request = request(seed, 3, 12, objective, PLAIN);
        let table = PlanTable::precompute(request.clone(), &grid).unwrap();
        for (i, j) in [(0, 0), (0, 13), (5, 9), (13, 13)] {
            let at =
                |i: i32| LinkCondition::symmetric(1e4 * (1.5e8f64 / 1e4).powf(f64::from(i) / 13.0), grid.rtts_ns[0]);
            let links = [at(i), at(j)];
            let (_, value) = table.choose(&links).unwrap();
            let best = plan(&request, &links).unwrap().objective_value;
            assert!((value - best).abs() <= best * 1e-9, "{value} is not {best}");
        }
    }
}

#[test]
fn a_table_learns_what_its_grid_could_not_foresee() {
    // For fast links alone.
    let narrow = Grid { bandwidth: (1e8, 1.5e8), bandwidth_points: 2, rtts_ns: vec![1_000] };
    let fast = [LinkCondition::symmetric(1e8, 1_000); 2];
    let mut table = PlanTable::precompute(by_hand(), &narrow).unwrap();
    let before = table.len();
    assert_eq!(table.extend(&by_hand(), &fast), None, "on the grid there is nothing new");
    // The gateway turns out a thousand times slower than it was measured at the
    // last segment, the server at all others.
    let mut slower = by_hand();
    let (gateway, server) = (1, 2);
    slower.tiers[gateway].segment_ns[3] = slower.tiers[gateway].segment_ns[3].map(|time| time * 1_000);
    slower.tiers[server].segment_ns[..3].iter_mut().flatten().for_each(|time| *time *= 1_000);
    let best = plan(&slower, &fast).unwrap();
    assert_eq!(best.bounds, [0, 3]);
    assert!((0..before).all(|index| table.bounds(index) != best.bounds), "{:?}", best.bounds);
    assert_eq!(table.extend(&slower, &fast), Some(before));
    assert_eq!((table.len(), table.bounds(before)), (before + 1, &best.bounds[..]));
    assert_eq!(table.extend(&slower, &fast), None, "once");
    // And it is told what it costs as everything else is.
    assert!(table.evaluate(before, &fast).is_ok());
}

#[test]
fn between_grid_points_it_is_near() {
    let mut worst: f64 = 1.0;
    for seed in 0..20 {
        let request = request(seed, 3, 12, Objective::Latency, PLAIN);
        let table = PlanTable::precompute(request.clone(), &Grid::default()).unwrap();
        for other in 0..10 {
            let links = links(seed * 100 + other, 2)
                .iter()
                .map(|l| LinkCondition::symmetric(l.up_bytes_per_s, l.rtt_ns))
                .collect::<Vec<_>>();
            let (index, value) = table.choose(&links).unwrap();
            let best = plan(&request, &links).unwrap().objective_value;
            worst = worst.max(value / best);
            let evaluation = table.evaluate(index, &links).unwrap();
            assert!((evaluation.cost.objective(Objective::Latency) - value).abs() <= value * 1e-9);
        }
    }
    assert!(worst < 1.05, "a plan of the table was {worst} times the best");
}

#[test]
fn lost_links_leave_a_plan() {
    let table = PlanTable::precompute(by_hand(), &Grid::default()).unwrap();
    let fast = LinkCondition::symmetric(1e8, 1_000_000);
    let (all, _) = table.choose(&[fast, fast]).unwrap();
    assert!(table.bounds(all)[1] < 4, "the server helps");
    let (upper_lost, _) = table.choose(&[fast]).unwrap();
    assert_eq!(table.bounds(upper_lost)[1], 4);
    let (alone, _) = table.choose(&[]).unwrap();
    assert_eq!(table.bounds(alone), [4, 4]);
    assert!(table.evaluate(all, &[fast]).is_err(), "it needs the upper link");
    assert_eq!(table.plan(&[]).unwrap().bounds, [4, 4]);
}

#[test]
fn a_table_of_nothing_is_refused() {
    let mut request = by_hand();
    request.limits.deadline_ns = Some(1);
    assert!(PlanTable::precompute(request, &Grid::default()).is_err());
    let mut request = by_hand();
    request.exits = vec![Exit { number: 1, segment: 9, go_on: 0.5, head_ns: vec![1; 3] }];
    assert!(PlanTable::precompute(request, &Grid::default()).is_err());
}

/// Every number of a link that nobody has.
const ABSURD: [f64; 8] = [5e-324, 1e-300, 1e-4, 1e19, 1e300, f64::INFINITY, f64::NAN, -1.0];

#[test]
fn whatever_is_said_of_links_there_is_a_plan_or_a_reason() {
    for (seed, objective) in [Objective::Latency, Objective::Throughput, Objective::Energy].into_iter().enumerate() {
        let request = request(seed as u64, 3, 6, objective, PLAIN);
        let table = PlanTable::precompute(request.clone(), &Grid::default()).unwrap();
        for odd in ABSURD.into_iter().chain([0.0, 1e-3, 1e18]) {
            for rtt_ns in [0, u64::MAX] {
                let odd = LinkCondition { up_bytes_per_s: odd, down_bytes_per_s: 1e6, rtt_ns };
                let back = LinkCondition { up_bytes_per_s: 1e6, down_bytes_per_s: odd.up_bytes_per_s, rtt_ns };
                for links in [[odd, odd], [odd, back], [back, odd]] {
                    for index in 0..table.len() {
                        if let Ok(evaluation) = table.evaluate(index, &links) {
                            assert!(evaluation.cost.latency_ns.is_finite());
                        }
                    }
                    let (_, value) = table.choose(&links).expect("all below needs no link");
                    assert!(value.is_finite());
                    match plan(&request, &links) {
                        Ok(plan) => assert!(plan.objective_value.is_finite() && plan.gap >= 0.0),
                        Err(error) => assert!(error.to_string().contains("bytes per second"), "{error}"),
                    }
                    for bounds in [vec![0, 0], vec![3, 3], vec![9, 1], vec![usize::MAX, 0]] {
                        let _ = request.evaluate(&bounds, &links);
                    }
                }
            }
        }
    }
}

#[test]
fn numbers_that_nobody_can_have_measured_are_refused() {
    let good = by_hand();
    plan(&good, &[]).unwrap();
    type Change = fn(&mut tierline_plan::PlanRequest);
    let changes: [(Change, &str); 9] = [
        (|r| r.tiers[1].segment_ns[0] = Some(u64::MAX), "a time of tier"),
        (|r| r.tiers[0].wait_ns = u64::MAX, "a time of tier"),
        (|r| r.segment_memory[0] = u64::MAX, "memory"),
        (|r| r.output_bytes = u64::MAX, "size"),
        (|r| r.crossings[0][0].options[0].bytes = u64::MAX, "bytes of codec"),
        (|r| r.crossings[0][0].options[0].encode_ns[0] = u64::MAX, "a time of codec"),
        (|r| r.crossings[0][0].options[0].loss = f64::NAN, "`loss`"),
        (|r| r.tiers[0].watts = 1e300, "`watts`"),
        (|r| r.objective = Objective::Weighted { latency: 1e300, energy: 0.0, money: 0.0 }, "a weight"),
    ];
    for (change, what) in changes {
        let mut wrong = good.clone();
        change(&mut wrong);
        let error = plan(&wrong, &[]).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert_eq!(PlanTable::precompute(wrong, &Grid::default()).unwrap_err().to_string(), error);
    }
}

//! Plans for chains of segments against every placement with every codec.

use proptest::prelude::*;
use tierline_plan::evaluate::Evaluation;
use tierline_plan::{LinkCondition, Objective, PlanError, PlanRequest, Route, Violation, plan, plan_with_direct};

use crate::support::{self, Has, by_hand, links, request};

/// Every placement with every choice of codecs.
fn every(
    request: &PlanRequest,
    links: &[LinkCondition],
    direct: Option<&LinkCondition>,
    mut f: impl FnMut(&[usize], Route, Result<Evaluation, Violation>),
) {
    let (n, levels) = (request.segments(), request.tiers.len() - 1);
    let routes: &[Route] = if direct.is_some() { &[Route::Line, Route::Direct] } else { &[Route::Line] };
    for &route in routes {
        let wheels = if route == Route::Direct { 1 } else { levels };
        let mut bounds = vec![0; wheels];
        loop {
            if bounds.is_sorted() {
                let mut full = bounds.clone();
                full.resize(levels, bounds.last().copied().unwrap_or(n));
                let crossed: Vec<usize> = bounds.iter().copied().take_while(|b| *b < n).collect();
                for codecs in choices(request, &crossed) {
                    f(&full, route, request.evaluate_with(&full, &codecs, route, links, direct));
                }
            }
            let Some(wheel) = bounds.iter().position(|b| *b < n) else { break };
            bounds[wheel] += 1;
            bounds[..wheel].fill(0);
        }
    }
}

/// Every choice of an option per tensor per hop.
fn choices(request: &PlanRequest, places: &[usize]) -> Vec<Vec<Vec<usize>>> {
    let mut all: Vec<Vec<Vec<usize>>> = vec![Vec::new()];
    for place in places {
        let mut here: Vec<Vec<usize>> = vec![Vec::new()];
        for crossing in &request.crossings[*place] {
            here = here
                .iter()
                .flat_map(|c| (0..crossing.options.len()).map(move |o| c.iter().copied().chain([o]).collect()))
                .collect();
        }
        all =
            all.iter().flat_map(|c| here.iter().map(move |h| c.iter().cloned().chain([h.clone()]).collect())).collect();
    }
    all
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1e-12)
}

fn agrees(request: &PlanRequest, links: &[LinkCondition], direct: Option<&LinkCondition>) -> Result<(), TestCaseError> {
    let mut best: Option<f64> = None;
    // The best per placement, for the runner-up.
    let mut each: Vec<(Vec<usize>, Route, f64)> = Vec::new();
    let mut impossible = true;
    every(request, links, direct, |bounds, route, evaluated| match evaluated {
        Ok(evaluation) => {
            impossible = false;
            let value = evaluation.cost.objective(request.objective);
            best = Some(best.map_or(value, |b| b.min(value)));
            // Running all on the lowest tier is the same on every route.
            let route = if bounds[..].iter().all(|b| *b == request.segments()) { Route::Line } else { route };
            match each.iter_mut().find(|(b, r, _)| b == bounds && *r == route) {
                Some((.., least)) => *least = least.min(value),
                None => each.push((bounds.to_vec(), route, value)),
            }
        }
        Err(violation) => impossible &= !violation.is_limit(),
    });
    match (plan_with_direct(request, links, direct), best) {
        (Ok(plan), Some(best)) => {
            prop_assert!(near(plan.objective_value, best), "{} is not {best}: {plan:?}", plan.objective_value);
            prop_assert!(plan.gap == 0.0 && near(plan.bound, best));
            let again = request.evaluate_on(&plan.bounds, plan.route, links, direct);
            prop_assert_eq!(again.as_ref().ok().map(|e| near(e.cost.objective(request.objective), best)), Some(true));
            each.sort_by(|a, b| a.2.total_cmp(&b.2));
            match (&plan.runner_up, each.get(1)) {
                (Some(r), Some(second)) => {
                    prop_assert!(near(r.objective_value, second.2), "{r:?} is not {second:?}");
                    prop_assert!((&r.bounds, r.route) != (&plan.bounds, plan.route));
                }
                (None, None) => {}
                other => prop_assert!(false, "{other:?}"),
            }
            if let Some(binding) = &plan.refused {
                prop_assert!(binding.objective_value < best && binding.violation.is_limit());
            }
        }
        (Err(PlanError::Infeasible(violation)), None) => {
            prop_assert_eq!(!violation.is_limit(), impossible, "{}", violation);
        }
        (planned, best) => prop_assert!(false, "{planned:?} against {best:?}"),
    }
    Ok(())
}

fn objectives() -> impl Strategy<Value = Objective> {
    prop_oneof![
        Just(Objective::Latency),
        Just(Objective::Energy),
        Just(Objective::Money),
        Just(Objective::Throughput),
        Just(Objective::Weighted { latency: 1.0, energy: 0.3, money: 2.0 }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn plans_equal_brute_force(
        seed in any::<u64>(), tiers in 1usize..4, segments in 1usize..6, objective in objectives(),
        (missing, memory, privacy) in any::<(bool, bool, bool)>(),
        (exits, deadline, loss) in any::<(bool, bool, bool)>(),
        reachable in 0usize..4, with_direct in any::<bool>(),
    ) {
        let has = Has { missing, memory, privacy, exits, deadline, loss };
        let request = request(seed, tiers, segments, objective, has);
        let lines = links(seed, reachable.min(tiers - 1));
        let direct = links(!seed, 1)[0];
        let direct = (with_direct && tiers > 2).then_some(&direct);
        agrees(&request, &lines, direct)?;
    }

    // Four tiers, no extras: the odometers of all hops.
    #[test]
    fn plans_over_four_tiers_equal_brute_force(seed in any::<u64>(), segments in 1usize..4, objective in objectives()) {
        let has = Has { missing: false, memory: true, privacy: false, exits: true, deadline: false, loss: true };
        let request = request(seed, 4, segments, objective, has);
        agrees(&request, &links(seed, 3), None)?;
    }
}

const MBIT: f64 = 125_000.0;

#[test]
fn costs_followed_by_hand() {
    let request = by_hand();
    let links = [LinkCondition::symmetric(8.0 * MBIT, 5_000_000), LinkCondition::symmetric(80.0 * MBIT, 20_000_000)];
    // One segment on the camera, two on the gateway, one on the server, raw then int8.
    let e = request.evaluate_with(&[1, 3], &[vec![0], vec![1]], Route::Line, &links, None).unwrap();
    // 1 MB/s: 400 ms up, 1 ms back, 5 ms round trip; 10 MB/s: 2.5 up, 0.1 back, 20.
    assert_eq!(e.links[0].link_ns, 406e6);
    assert_eq!(e.links[1].link_ns, 22.6e6);
    // 100 + 20 + 1 ms of computing, a millisecond to encode and one to decode.
    assert_eq!(e.stages.iter().map(|s| s.busy_ns()).collect::<Vec<_>>(), [100e6, 21e6, 2e6]);
    assert_eq!(e.cost.latency_ns, 551.6e6);
    assert_eq!(e.cost.bottleneck_ns, 400e6);
    assert_eq!(e.cost.loss, 5e-4);
    let moved = (400_000.0 + 1_000.0) + (25_000.0 + 1_000.0);
    assert!(near(e.cost.joules, 0.123 * 2.0 + moved * 1e-6));
    assert!(near(e.cost.money, 0.123 * 0.5 + moved * 1e-9));
}

#[test]
fn an_exit_lets_fewer_requests_through() {
    let mut request = by_hand();
    request.exits = vec![tierline_plan::request::Exit {
        number: 1,
        segment: 0,
        go_on: 0.25,
        head_ns: vec![4_000_000, 400_000, 40_000],
    }];
    let links = [LinkCondition::symmetric(8.0 * MBIT, 5_000_000), LinkCondition::symmetric(80.0 * MBIT, 20_000_000)];
    let e = request.evaluate_with(&[1, 4], &[vec![0]], Route::Line, &links, None).unwrap();
    // The head runs for all, the rest for a quarter.
    assert_eq!(e.cost.latency_ns, 100e6 + 4e6 + 0.25 * (406e6 + 30e6));
}

fn bounds(request: &PlanRequest, links: &[LinkCondition]) -> String {
    match plan(request, links) {
        Ok(plan) => {
            let codecs: Vec<&str> = plan.evaluation.links.iter().map(|l| l.tensors[0].1.as_str()).collect();
            format!("{:?} {}", plan.bounds, codecs.join(" "))
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn slow_links_and_limits_move_the_cut() {
    let at = |mbit: f64| {
        [LinkCondition::symmetric(mbit * MBIT, 5_000_000), LinkCondition::symmetric(mbit * MBIT, 20_000_000)]
    };
    let mut lines = Vec::new();
    for mbit in [1_000.0, 100.0, 10.0, 1.0, 0.1] {
        lines.push(format!("{mbit} Mbit/s: {}", bounds(&by_hand(), &at(mbit))));
    }
    let with = |change: &dyn Fn(&mut PlanRequest)| {
        let mut request = by_hand();
        change(&mut request);
        bounds(&request, &at(1_000.0))
    };
    lines.push(format!("no loss: {}", with(&|r| r.limits.max_loss = 0.0)));
    lines.push(format!("two segments private: {}", with(&|r| r.limits.private_segments = 2)));
    lines.push(format!(
        "image must stay on the gateway: {}",
        with(&|r| {
            r.limits.private_tensors = vec!["image".into()];
            r.private_tier = 1;
        })
    ));
    lines.push(format!("neck is private: {}", with(&|r| r.limits.private_tensors = vec!["neck".into()])));
    lines.push(format!("server has room for two: {}", with(&|r| r.tiers[2].memory_max = 20)));
    lines.push(format!("server lacks an operator: {}", with(&|r| r.tiers[2].segment_ns[3] = None)));
    lines.push(format!("no time: {}", with(&|r| r.limits.deadline_ns = Some(1_000_000))));
    lines.push(format!("nobody can: {}", with(&|r| r.tiers.iter_mut().for_each(|t| t.segment_ns[1] = None))));
    lines.push(format!("links down: {}", bounds(&by_hand(), &[])));
    lines.push(format!("link of no speed: {}", bounds(&by_hand(), &[LinkCondition::symmetric(0.0, 0)])));
    lines.push(format!("unknown private tensor: {}", with(&|r| r.limits.private_tensors = vec!["imgae".into()])));
    lines.push(format!(
        "a time too few: {}",
        with(&|r| {
            r.tiers[1].segment_ns.pop();
        })
    ));
    lines.push(format!("negative watts: {}", with(&|r| r.tiers[1].watts = -1.0)));
    lines.push(format!("no codec: {}", with(&|r| r.crossings[2][0].options.clear())));
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn the_direct_link_wins_when_the_edge_is_slow() {
    let request = by_hand();
    let slow = LinkCondition::symmetric(0.5 * MBIT, 5_000_000);
    let direct = LinkCondition::symmetric(1_000.0 * MBIT, 30_000_000);
    let line = plan_with_direct(&request, &[slow, slow], None).unwrap();
    let both = plan_with_direct(&request, &[slow, slow], Some(&direct)).unwrap();
    assert_eq!((line.route, both.route), (Route::Line, Route::Direct));
    assert!(both.objective_value < line.objective_value);
    assert_eq!(both.bounds, [0, 0]);
    assert_eq!(both.evaluation.stages.iter().map(|s| s.tier.as_str()).collect::<Vec<_>>(), ["camera", "server"]);
}

#[test]
fn objectives_are_read_and_refused() {
    assert_eq!("throughput".parse(), Ok(Objective::Throughput));
    assert_eq!("1, 0.5,0".parse(), Ok(Objective::Weighted { latency: 1.0, energy: 0.5, money: 0.0 }));
    for bad in ["speed", "1,2", "1,x,2", "1,x,2,3", "-1,0,0", "0,0,0", "NaN,0,0"] {
        assert!(bad.parse::<Objective>().is_err(), "{bad}");
    }
}

#[test]
fn a_long_chain_of_many_tensors_is_planned() {
    let has = Has { missing: false, memory: true, privacy: true, exits: true, deadline: true, loss: true };
    let request = support::request(3, 3, 300, Objective::Latency, has);
    // Infeasible or not, it must be decided.
    match plan(&request, &links(3, 2)) {
        Ok(plan) => assert!(plan.gap == 0.0),
        Err(error) => assert!(matches!(error, PlanError::Infeasible(_)), "{error}"),
    }
}

/// Too many ways to encode a frontier are not all tried, and the plan says so.
#[test]
fn a_crowded_frontier_states_its_gap() {
    let mut request = by_hand();
    let mut random = tierline_plan::random::SplitMix(5);
    let crowd = |place: usize, random: &mut tierline_plan::random::SplitMix| {
        let tensor = |i: usize, random: &mut tierline_plan::random::SplitMix| {
            let option =
                |codec: u64, random: &mut tierline_plan::random::SplitMix| tierline_plan::request::CodecOption {
                    codec: format!("c{codec}"),
                    bytes: (50_000 + random.below(10_000)) >> codec,
                    encode_ns: vec![codec * (500_000 + random.below(1_000_000)); 3],
                    decode_ns: vec![codec * (500_000 + random.below(1_000_000)); 3],
                    loss: codec as f64 * 1e-5 * (1.0 + random.unit()),
                };
            let options = (0..4).map(|c| option(c, random)).collect();
            tierline_plan::request::Crossing { tensor: format!("t{place}_{i}"), options }
        };
        (0..8).map(|i| tensor(i, random)).collect()
    };
    request.crossings = (0..4).map(|place| crowd(place, &mut random)).collect();
    request.limits.max_loss = 2e-4;
    let links = [LinkCondition::symmetric(4e6, 1_000_000), LinkCondition::symmetric(8e6, 2_000_000)];
    let plan = plan(&request, &links).unwrap();
    assert!(!plan.evaluation.links.is_empty(), "something is sent");
    assert!(plan.evaluation.cost.loss <= 2e-4);
    assert!(plan.gap > 0.0 && plan.gap < 1.0, "gap {}", plan.gap);
    assert!(near(plan.objective_value * (1.0 - plan.gap), plan.bound));
    // No single codec for everything beats the bound.
    for codec in 0..4 {
        let codecs = vec![vec![codec; 8]; plan.evaluation.links.len()];
        if let Ok(e) = request.evaluate_with(&plan.bounds, &codecs, Route::Line, &links, None) {
            let value = e.cost.objective(request.objective);
            assert!(value >= plan.bound && value >= plan.objective_value * (1.0 - plan.gap));
        }
    }
}

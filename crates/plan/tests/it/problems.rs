//! The exact solver against brute force, and its refusals.

use proptest::prelude::*;
use tierline_plan::flow::{MinCut, NEVER};
use tierline_plan::problem::{self, Infeasible, Limit, Problem, SolveError};
use tierline_plan::random::{Shape, SplitMix, net, problem};

/// The least cost over all placements.
fn brute_force(problem: &Problem) -> Option<u64> {
    let n = problem.nodes.len();
    let mut tiers = vec![0; n];
    let mut best = None;
    loop {
        best = [best, problem::cost_of(problem, &tiers)].into_iter().flatten().min();
        let Some(wheel) = tiers.iter().position(|t| t + 1 < problem.tiers) else { return best };
        tiers[wheel] += 1;
        tiers[..wheel].fill(0);
    }
}

fn agrees(problem: &Problem) {
    let cheapest = brute_force(problem);
    match problem::solve(problem) {
        Ok(solution) => {
            assert_eq!(Some(solution.objective_ns), cheapest, "{problem:?}");
            let tiers: Vec<usize> = problem.nodes.iter().map(|n| solution.assignment[&n.name]).collect();
            assert_eq!(problem::cost_of(problem, &tiers), cheapest, "{problem:?}");
        }
        Err(error) => {
            assert!(error.is_infeasible(), "{error}: {problem:?}");
            assert_eq!(cheapest, None, "{error}: {problem:?}");
            if let SolveError::Infeasible(Infeasible::Contradiction(chain)) = &error {
                follows(problem, chain);
            }
        }
    }
    // One tier leaves nothing to cut.
    if let (true, Ok(network)) = (problem.tiers > 1, problem::network(problem)) {
        let value = MinCut::new().of(&network);
        assert_eq!((value < NEVER).then_some(value), cheapest);
    }
}

/// Every step of the reason given is true.
fn follows(problem: &Problem, chain: &[problem::Forced]) {
    let cost = |name: &str| &problem.nodes.iter().find(|n| n.name == name).unwrap().cost_ns;
    assert!(!chain.is_empty(), "{problem:?}");
    for (i, forced) in chain.iter().enumerate() {
        match &forced.by {
            None => assert!(i == 0 && cost(&forced.node)[..forced.lowest].iter().all(Option::is_none)),
            Some(by) => {
                assert_eq!(&chain[i - 1].node, by);
                let wall = forced.lowest - 1;
                // The producer lies above the wall, as it can't run between.
                assert!(
                    cost(by)[chain[i - 1].lowest..forced.lowest.max(chain[i - 1].lowest)].iter().all(Option::is_none)
                );
                assert!(
                    problem
                        .tensors
                        .iter()
                        .any(|t| &t.producer == by && t.consumers.contains(&forced.node) && t.down_ns[wall].is_none())
                );
            }
        }
    }
    let last = chain.last().unwrap();
    assert!(cost(&last.node)[last.lowest..].iter().all(Option::is_none));
}

#[test]
fn thousands_of_small_graphs_equal_brute_force() {
    for seed in 0..6_000u64 {
        let tiers = 1 + (seed % 4) as usize;
        let nodes = if tiers == 4 { 1 + (seed % 5) as usize } else { 1 + (seed % 7) as usize };
        let refused = [0.0, 0.2, 0.5][(seed / 4 % 3) as usize];
        let one_way = [0.0, 0.4, 1.0][(seed / 12 % 3) as usize];
        let shape = Shape { nodes, tiers, reach: 6, inputs_max: 3, refused, one_way, lifelike: seed % 5 == 0 };
        agrees(&problem(&shape, seed));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    // Nodes are listed in any order, and named so that order tells nothing.
    #[test]
    fn random_graphs_in_any_order_equal_brute_force(
        (tiers, n) in prop_oneof![(Just(2usize), 1usize..9), (Just(3), 1usize..7), (Just(4), 1usize..6)],
        turn in 0usize..9,
        costs in prop::collection::vec(prop::collection::vec(prop::option::weighted(0.8, 0u64..9), 4), 8),
        tensors in prop::collection::vec(
            (0usize..8, prop::collection::vec(1usize..8, 0..4), prop::collection::vec(0u64..6, 3),
             prop::collection::vec(prop::option::weighted(0.6, 0u64..6), 3)), 0..8),
    ) {
        let name = |v: usize| format!("v{v}");
        let mut nodes: Vec<problem::Node> = costs[..n].iter().enumerate()
            .map(|(v, c)| problem::Node { name: name(v), cost_ns: c[..tiers].to_vec() }).collect();
        nodes.rotate_left(turn % n);
        if turn % 2 == 1 {
            nodes.reverse();
        }
        let problem = Problem {
            tiers,
            nodes,
            tensors: tensors.iter().map(|(producer, consumers, up, down)| {
                let producer = producer % n;
                problem::Tensor {
                    producer: name(producer),
                    consumers: consumers.iter().filter(|ahead| producer + **ahead < n).map(|ahead| name(producer + ahead)).collect(),
                    up_ns: up[..tiers - 1].to_vec(),
                    down_ns: down[..tiers - 1].to_vec(),
                }
            }).collect(),
            limits: Vec::new(),
        };
        agrees(&problem);
    }

    #[test]
    fn limits_equal_brute_force_or_say_the_gap(
        seed in 0u64..1_000_000,
        tiers in 2usize..4,
        n in 1usize..8,
        one_way in prop_oneof![Just(0.0), Just(0.5), Just(1.0)],
        room in prop::collection::vec(0u64..60, 3),
        deadline in 0u64..80,
    ) {
        let shape = Shape { nodes: n, tiers, reach: 6, inputs_max: 2, refused: 0.1, one_way, lifelike: false };
        let mut problem = problem(&shape, seed);
        let mut random = SplitMix(seed);
        let bytes: Vec<u64> = (0..n).map(|_| random.below(20)).collect();
        let mut table = |rows: usize, columns: usize| -> Vec<Vec<u64>> {
            (0..rows).map(|_| (0..columns).map(|_| random.below(12)).collect()).collect()
        };
        let time = Limit {
            name: "deadline".into(),
            max: deadline,
            node_use: table(n, tiers),
            up_use: table(problem.tensors.len(), tiers - 1),
            down_use: table(problem.tensors.len(), tiers - 1),
        };
        problem.limits = (0..tiers).map(|t| Limit::memory(t, tiers, &bytes, room[t])).chain([time]).collect();
        let cheapest = brute_force(&problem);
        match problem::solve(&problem) {
            Ok(solution) => {
                let tiers: Vec<usize> = problem.nodes.iter().map(|n| solution.assignment[&n.name]).collect();
                prop_assert_eq!(problem::cost_of(&problem, &tiers), Some(solution.objective_ns));
                // So small a problem is always searched to the end.
                prop_assert!(solution.optimal && solution.gap == 0.0, "{:?}", solution);
                prop_assert_eq!(Some(solution.objective_ns), cheapest);
            }
            Err(error) => {
                prop_assert!(error.is_infeasible(), "{}", error);
                prop_assert_eq!(cheapest, None, "{}", error);
            }
        }
    }
}

/// A problem too large to search to the end: the gap must hold all the same.
#[test]
fn a_large_problem_under_limits_states_a_true_gap() {
    for seed in 0..3 {
        let mut problem = net(300, 3, 0.05, 0.5, seed);
        let free = problem::solve(&problem).unwrap();
        assert!(free.optimal);
        let bytes: Vec<u64> = (0..300).map(|v| 1_000 + (v * 7_919) % 5_000).collect();
        let half = bytes.iter().sum::<u64>() / 2;
        problem.limits = vec![Limit::memory(1, 3, &bytes, half), Limit::memory(2, 3, &bytes, half)];
        let solution = problem::solve(&problem).unwrap();
        let tiers: Vec<usize> = problem.nodes.iter().map(|n| solution.assignment[&n.name]).collect();
        assert_eq!(problem::cost_of(&problem, &tiers), Some(solution.objective_ns), "limits are kept to");
        assert!(solution.objective_ns >= free.objective_ns);
        let bound = solution.objective_ns as f64 * (1.0 - solution.gap);
        assert!(bound >= free.objective_ns as f64 * (1.0 - 1e-9), "the bound is no weaker than without limits");
        assert!(solution.gap < 0.01, "gap {}", solution.gap);
        assert_eq!(solution.optimal, solution.gap == 0.0);
    }
}

#[test]
fn an_impossible_limit_is_named() {
    let mut problem = net(20, 3, 0.05, 0.5, 1);
    // The input stays on tier 0.
    problem.limits = vec![Limit::memory(0, 3, &[10; 20], 9)];
    let error = problem::solve(&problem).unwrap_err();
    assert!(error.is_infeasible());
    insta::assert_snapshot!(error, @"no placement is possible: limit `memory of tier 0` allows 9, but at least 10 is used");
    problem.limits = (0..3).map(|t| Limit::memory(t, 3, &[10; 20], 60)).collect();
    let error = problem::solve(&problem).unwrap_err();
    assert!(error.is_infeasible(), "{error}");
    problem.limits[0].node_use.pop();
    let error = problem::solve(&problem).unwrap_err();
    assert!(!error.is_infeasible());
    insta::assert_snapshot!(error, @"limit `memory of tier 0` has 19 values in `node_use`; 20 are needed");
}

#[test]
fn large_networks_agree_with_their_placement() {
    for seed in 0..3 {
        let problem = problem(&Shape { one_way: 0.3, ..Shape::model(2_000) }, seed);
        let solution = problem::solve(&problem).unwrap();
        let tiers: Vec<usize> = problem.nodes.iter().map(|n| solution.assignment[&n.name]).collect();
        assert_eq!(problem::cost_of(&problem, &tiers), Some(solution.objective_ns));
    }
}

fn parse(text: &str) -> Result<Problem, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

fn refused(text: &str) -> String {
    match parse(text) {
        Ok(problem) => problem::solve(&problem).unwrap_err().to_string(),
        Err(error) => error,
    }
}

#[test]
fn the_fixed_shape() {
    let problem = parse(
        r#"{"tiers":2,"nodes":[{"name":"a","cost_ns":[1,null]},{"name":"b","cost_ns":[90,2]},{"name":"c","cost_ns":[90,3]}],
            "tensors":[{"producer":"a","consumers":["b","c"],"up_ns":[10],"down_ns":[null]}]}"#,
    );
    let solution = problem::solve(&problem.unwrap()).unwrap();
    insta::assert_snapshot!(
        serde_json::to_string(&solution).unwrap(),
        @r#"{"assignment":{"a":0,"b":1,"c":1},"objective_ns":16,"optimal":true,"gap":0.0}"#
    );
}

#[test]
fn ties_stay_low() {
    let problem = parse(r#"{"tiers":3,"nodes":[{"name":"a","cost_ns":[5,5,5]}],"tensors":[]}"#).unwrap();
    assert_eq!(problem::solve(&problem).unwrap().assignment["a"], 0);
}

#[test]
fn one_tier_and_no_nodes() {
    let one = parse(r#"{"tiers":1,"nodes":[{"name":"a","cost_ns":[7]}],"tensors":[]}"#).unwrap();
    assert_eq!(problem::solve(&one).unwrap().objective_ns, 7);
    let none = parse(r#"{"tiers":3,"nodes":[],"tensors":[]}"#).unwrap();
    assert_eq!(problem::solve(&none).unwrap().objective_ns, 0);
}

#[test]
fn refusals_say_what_is_wrong() {
    let node = r#"{"name":"a","cost_ns":[1,2]}"#;
    let cases = [
        r#"{"tiers":0,"nodes":[],"tensors":[]}"#.to_owned(),
        r#"{"tiers":65,"nodes":[],"tensors":[]}"#.to_owned(),
        format!(r#"{{"tiers":3,"nodes":[{node}],"tensors":[]}}"#),
        format!(r#"{{"tiers":2,"nodes":[{node},{node}],"tensors":[]}}"#),
        format!(r#"{{"tiers":2,"nodes":[{node}],"tensors":[{{"producer":"a","consumers":["b"],"up_ns":[1],"down_ns":[1]}}]}}"#),
        format!(r#"{{"tiers":2,"nodes":[{node}],"tensors":[{{"producer":"a","consumers":[],"up_ns":[1],"down_ns":[]}}]}}"#),
        r#"{"tiers":1,"nodes":[{"name":"a","cost_ns":[-4]}],"tensors":[]}"#.to_owned(),
        r#"{"tiers":1,"nodes":[{"name":"a","cost_ns":[0.5]}],"tensors":[]}"#.to_owned(),
        r#"{"tiers":2,"nodes":[{"name":"a","cost_ns":[18446744073709551615,1]}],"tensors":[]}"#.to_owned(),
        r#"{"tiers":2,"nodes":[{"name":"a","cost_ns":[null,null]}],"tensors":[]}"#.to_owned(),
        r#"{"tiers":3,"nodes":[{"name":"a","cost_ns":[null,null,1]},{"name":"b","cost_ns":[1,1,1]},{"name":"c","cost_ns":[1,null,null]}],
            "tensors":[{"producer":"a","consumers":["b"],"up_ns":[1,1],"down_ns":[null,1]},
                       {"producer":"b","consumers":["c"],"up_ns":[1,1],"down_ns":[null,null]}]}"#.to_owned(),
        r#"{"tiers":2,"nodes":[]}"#.to_owned(),
        r#"{"tiers":2,"nodes":[],"tensors":[],"tier":3}"#.to_owned(),
        r#"{"tiers":1,"nodes":[{"name":"a","cost_ns":["4"]}],"tensors":[]}"#.to_owned(),
        format!(r#"{{"tiers":2,"nodes":[{node}],"tensors":[{{"producer":"b","consumers":["a"],"up_ns":[1],"down_ns":[1]}}]}}"#),
        format!(r#"{{"tiers":2,"nodes":[{node}],"tensors":[{{"producer":"a","consumers":["a"],"up_ns":[1],"down_ns":[1]}}]}}"#),
        format!(r#"{{"tiers":2,"nodes":[{node}],"tensors":[{{"producer":"a","consumers":[],"up_ns":[null],"down_ns":[1]}}]}}"#),
        format!(r#"{{"tiers":2,"nodes":[{node}],"tensors":[{{"producer":"a","consumers":[],"up_ns":[1],"down_ns":[2.5]}}]}}"#),
        r#"{"tiers":1,"nodes":[{"name":"a","cost_ns":[1]},{"name":"b","cost_ns":[1]},{"name":"c","cost_ns":[1]},{"name":"d","cost_ns":[1]}],
            "tensors":[{"producer":"d","consumers":["a"],"up_ns":[],"down_ns":[]},{"producer":"a","consumers":["b"],"up_ns":[],"down_ns":[]},
                       {"producer":"b","consumers":["c"],"up_ns":[],"down_ns":[]},{"producer":"c","consumers":["a"],"up_ns":[],"down_ns":[]}]}"#.to_owned(),
    ];
    let text: Vec<String> = cases.iter().map(|case| refused(case)).collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn long_reasons_are_shortened() {
    let node = |i: usize, cost_ns: Vec<Option<u64>>| problem::Node { name: format!("n{i}"), cost_ns };
    let tensor = |i: usize, to: usize| problem::Tensor {
        producer: format!("n{i}"),
        consumers: vec![format!("n{to}")],
        up_ns: vec![3],
        down_ns: vec![None],
    };
    let n = 2_000;
    let mut problem = Problem {
        tiers: 2,
        nodes: (0..n).map(|i| node(i, vec![Some(1), Some(2)])).collect(),
        tensors: (1..n).map(|i| tensor(i - 1, i)).collect(),
        limits: Vec::new(),
    };
    assert_eq!(problem::solve(&problem).unwrap().objective_ns, n as u64);
    problem.nodes[0].cost_ns[0] = None;
    problem.nodes[n - 1].cost_ns[1] = None;
    let infeasible = problem::solve(&problem).unwrap_err();
    assert!(infeasible.is_infeasible());
    problem.tensors.push(tensor(n - 1, 0));
    let circle = problem::solve(&problem).unwrap_err();
    assert!(!circle.is_infeasible());
    insta::assert_snapshot!(format!("{infeasible}\n{circle}"));
}

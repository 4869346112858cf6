//! Where exits are judged and the slices that run them, by symbols as in
//! `cutting`: slices with exits give what the whole gives, and compute each
//! node of the model's end once.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;
use tierline_graph::cuts::{Cut, cuts};
use tierline_graph::exits::{
    Exit, Exits, Part, PlaceError, candidates, head_macs, macs_before, places, slice, trunk_macs,
};
use tierline_graph::slice::SliceError;
use tierline_graph::{Model, Types, infer_types};

use crate::cutting::{given, nodes, random_model, run};
use crate::text::model;

/// Exits of one output each, all standing for the only other output.
fn exits(model: &Model, names: &[&str]) -> Exits {
    let ends: Vec<String> =
        model.outputs().into_iter().map(|o| o.name).filter(|name| !names.contains(&name.as_str())).collect();
    let exit = |name: &&str| {
        let outputs = ends.iter().map(|end| (end.clone(), (*name).to_owned())).take(1).collect();
        Exit { outputs, sureness: None, rule: None }
    };
    Exits { judged: ends.first().cloned(), exits: names.iter().map(exit).collect(), ..Exits::default() }
}

fn frontiers(cuts: Vec<Cut>) -> Vec<Vec<String>> {
    cuts.into_iter().map(|cut| cut.tensors).collect()
}

/// x -> a -> b -> c -> end, heads on `a` and `b` written behind everything.
const TWO: &str = "
    x: f32[N,4]
    w = f32[4,4]
    h = f32[4,3]
    a = MatMul(x, w)
    b = MatMul(a, w)
    c = MatMul(b, w)
    end = MatMul(c, h)
    p = Relu(a)
    first = MatMul(p, h)
    second = MatMul(b, h)
";

#[test]
fn exits_are_judged_at_the_first_cut_behind_what_they_read() {
    let model = model(TWO);
    let exits = exits(&model, &["first", "second"]);
    exits.check(&model).unwrap();
    let types = infer_types(&model).unwrap();
    // Heads that stand behind everything keep nothing alive.
    let cuts = frontiers(cuts(&exits.trunk(&model).unwrap(), &types));
    assert_eq!(cuts, [["a"], ["b"], ["c"]]);
    assert_eq!(places(&model, &exits, &cuts).unwrap(), [0, 1]);
    assert_eq!(places(&model, &exits, &cuts[1..]).unwrap(), [0, 0]);
    assert_eq!(places(&model, &exits, &cuts[..1]).unwrap(), [0, 1]);
    assert_eq!(places(&model, &exits, &[]).unwrap(), [0, 0]);
}

#[test]
fn heads_cost_what_is_computed_for_them_alone() {
    let model = model(&TWO.replace("N,4", "2,4"));
    let types = infer_types(&model).unwrap();
    let exits = exits(&model, &["first", "second"]);
    assert_eq!(head_macs(&model, &types, &exits), [Some(2 * 12), Some(2 * 12)]);
    assert_eq!(macs_before(&model, &types, &exits), [Some(2 * 16), Some(2 * 32)]);
    assert_eq!(trunk_macs(&model, &types, &exits), Some(2 * (3 * 16 + 12)));
}

#[test]
fn what_an_exit_reads_must_be_held_by_the_cuts_before_it() {
    let text = "
        x: f32[2,4]
        a = Relu(x)
        b = Tanh(a)
        c = Sigmoid(b)
        end = Neg(c)
        late = Add(a, b)
    ";
    let model = model(text);
    let exits = exits(&model, &["late"]);
    let types = infer_types(&model).unwrap();
    let all = frontiers(cuts(&exits.trunk(&model).unwrap(), &types));
    assert_eq!(all, [["a"], ["b"], ["c"]]);
    // Between `a` and `b`, `a` is held; had a cut lain between them, it would have carried `a`.
    assert_eq!(places(&model, &exits, &all).unwrap(), [1]);
    let text = text.replace("late = Add(a, b)", "late = Add(a, c)");
    let model = self::model(&text);
    let error = places(&model, &exits, &all).unwrap_err();
    assert!(matches!(&error, PlaceError::Gone { exit: 1, cut: 1, tensor, .. } if tensor == "a"), "{error}");
    assert!(error.to_string().contains("carries only `b`"), "{error}");
    let fitting = frontiers(candidates(&model, &types, &exits, 32).unwrap());
    assert_eq!(fitting, [["a"], ["c"]]);
    assert_eq!(places(&model, &exits, &fitting).unwrap(), [1]);
    // A slice that would need what is gone is refused as well.
    let part = Part { cuts: &all, from: 2, to: 3, exits: &[0] };
    assert!(matches!(slice(&model, &types, &exits, part), Err(SliceError::Incomplete { .. })));
}

#[test]
fn exits_in_the_wrong_order_are_refused() {
    let model = model(TWO);
    let exits = exits(&model, &["second", "first"]);
    let types = infer_types(&model).unwrap();
    let cuts = frontiers(cuts(&exits.trunk(&model).unwrap(), &types));
    let error = places(&model, &exits, &cuts).unwrap_err();
    assert!(error.to_string().contains("exit 2 is computed before exit 1"), "{error}");
}

#[test]
fn the_cuts_of_exits_are_always_candidates() {
    let layers: String = (1..40).map(|i| format!("v{i} = Relu(v{})\n", i - 1)).collect();
    let text = format!("v0: f32[2,4]\n{layers}end = Neg(v39)\nfirst = Tanh(v7)\nsecond = Tanh(v23)\n");
    let model = model(&text);
    let exits = exits(&model, &["first", "second"]);
    let types = infer_types(&model).unwrap();
    for max in [2, 3, 8, 64] {
        let found = frontiers(candidates(&model, &types, &exits, max).unwrap());
        assert!(found.len() <= max);
        for tensor in ["v7", "v23"] {
            assert!(found.contains(&vec![tensor.to_owned()]), "{max}: {found:?}");
        }
    }
}

/// Runs segments between `bounds`, each giving the exits that are judged at
/// its end; what they give together.
fn run_segments(
    model: &Model,
    types: &Types,
    exits: &Exits,
    cuts: &[Vec<String>],
    bounds: &[usize],
) -> HashMap<String, u64> {
    let places = places(model, exits, cuts).unwrap();
    let mut values = given(model);
    let mut seen = HashMap::new();
    let mut made: HashSet<String> = HashSet::new();
    let trunk = exits.trunk(model).unwrap();
    let mut from = 0;
    for &to in bounds.iter().chain([&(cuts.len() + 1)]) {
        let judged: Vec<usize> = (0..places.len()).filter(|&e| (from..to).contains(&places[e])).collect();
        let part = slice(model, types, exits, Part { cuts, from, to, exits: &judged }).unwrap();
        values = run(&part, &values).into_iter().collect();
        seen.extend(values.clone());
        // No node of the model's end is computed twice.
        let index = tierline_graph::index::Index::new(model);
        let ends: HashSet<String> = needed(&trunk);
        for output in part.graph().node.iter().flat_map(|n| &n.output) {
            if ends.contains(output) && index.is_dynamic(output) {
                assert!(made.insert(output.clone()), "`{output}` is computed twice: {cuts:?} {bounds:?}");
            }
        }
        from = to;
    }
    seen
}

/// What the outputs of a model depend on.
fn needed(model: &Model) -> HashSet<String> {
    let mut found: HashSet<String> = model.outputs().into_iter().map(|o| o.name).collect();
    for node in model.graph().node.iter().rev() {
        if node.output.iter().any(|o| found.contains(o)) {
            found.extend(node.output.iter().cloned());
            found.extend(tierline_graph::index::reads(node).into_iter().map(str::to_owned));
        }
    }
    found
}

fn with_outputs(model: &Model, names: &[&str]) -> Model {
    let mut proto = model.proto().clone();
    proto.graph.mut_or_insert_default().output.retain(|o| names.contains(&o.name()));
    Model::from_proto(proto).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn slices_with_exits_are_the_whole(
        nodes in nodes(),
        keys in prop::collection::vec(any::<u32>(), 14),
        keep in prop::collection::vec(any::<bool>(), 16),
    ) {
        let model = random_model(&nodes, &keys);
        let types = infer_types(&model).unwrap();
        let outputs: Vec<String> = model.outputs().into_iter().map(|o| o.name).collect();
        prop_assume!(outputs.len() > 1);
        // One end, and the other outputs as exits, each where it belongs.
        let of = |names: &[&str]| {
            let exit = |name: &&str| Exit {
                outputs: BTreeMap::from([(outputs[0].clone(), (*name).to_owned())]),
                sureness: None,
                rule: None,
            };
            Exits { exits: names.iter().map(exit).collect(), ..Exits::default() }
        };
        let names: Vec<&str> = outputs[1..].iter().map(String::as_str).take(16).collect();
        let all = frontiers(cuts(&of(&names).trunk(&model).unwrap(), &types));
        let mut placed: Vec<(usize, &str)> = names
            .iter()
            .filter_map(|name| Some((places(&with_outputs(&model, &[&outputs[0], name]), &of(&[name]), &all).ok()?[0], *name)))
            .collect();
        placed.sort();
        let names: Vec<&str> = placed.into_iter().map(|(_, name)| name).collect();
        prop_assume!(!names.is_empty());
        let model = with_outputs(&model, &[&names[..], &[&outputs[0]]].concat());
        let exits = of(&names);
        let whole: HashMap<String, u64> = run(&model, &given(&model)).into_iter().collect();
        let some: Vec<usize> = (1..=all.len()).filter(|i| keep[i % keep.len()]).collect();
        for bounds in [(1..=all.len()).collect::<Vec<usize>>(), some, Vec::new()] {
            let found = run_segments(&model, &types, &exits, &all, &bounds);
            for name in names.iter().copied().chain([outputs[0].as_str()]) {
                prop_assert_eq!(found[name], whole[name]);
            }
        }
    }
}

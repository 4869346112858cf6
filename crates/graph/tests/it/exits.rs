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

mod attaching {
    use tierline_graph::cuts::cuts;
    use tierline_graph::exits::{AttachError, Exits, Scores, Wanted, attach, head_macs, learned, places, spread};
    use tierline_graph::{Model, infer_types};

    use super::frontiers;
    use crate::text::model;

    fn at(tensors: &[&str]) -> Wanted {
        Wanted { at: tensors.iter().map(|t| (*t).to_owned()).collect(), hidden: 0 }
    }

    /// The operators behind a tensor, in order, that the trunk doesn't have.
    fn head(text: &str, tensor: &str) -> String {
        let given = model(text);
        let (made, exits, _) = attach(&given, &at(&[tensor])).unwrap();
        exits.check(&made).unwrap();
        assert_eq!(Exits::of(&made).unwrap().unwrap(), exits);
        let types = infer_types(&made).unwrap();
        let shape = |name: &str| {
            let shape = types.get(name).and_then(|t| t.shape.clone()).unwrap();
            shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        };
        let nodes = &made.graph().node[given.graph().node.len()..];
        let node = |n: &tierline_graph::onnx::NodeProto| format!("{} [{}]", n.op_type(), shape(&n.output[0]));
        nodes.iter().map(node).collect::<Vec<_>>().join(" ")
    }

    const PICTURES: &str = "
        x: f32[N,1,12,12]
        w = f32[6,1,3,3]
        v = f32[384,10]
        a = Conv(x, w) pads=[1,1,1,1]
        b = Relu(a)
        c = MaxPool(b) kernel_shape=[2,2] strides=[2,2]
        d = Conv(c, u) pads=[1,1,1,1]
        u = f32[384,6,3,3]
        e = GlobalAveragePool(d)
        f = Flatten(e)
        end = MatMul(f, v)
    ";

    #[test]
    fn heads_by_the_form_of_what_they_read() {
        // A grid of places where sides are known, as large as is cheap.
        assert_eq!(head(PICTURES, "c"), "Flatten [N,216] Gemm [N,10]");
        assert_eq!(head(PICTURES, "b"), "AveragePool [N,6,6,6] Flatten [N,216] Gemm [N,10]");
        assert_eq!(head(PICTURES, "d"), "GlobalAveragePool [N,384,1,1] Flatten [N,384] Gemm [N,10]");
        assert_eq!(head(PICTURES, "f"), "Gemm [N,10]");
        let free = PICTURES.replace("N,1,12,12", "N,1,H,W");
        assert_eq!(head(&free, "c"), "GlobalAveragePool [N,6,1,1] Flatten [N,6] Gemm [N,10]");
        // Probabilities stand for probabilities.
        let soft = PICTURES.replace("end = MatMul(f, v)", "l = MatMul(f, v)\nend = Softmax(l)");
        assert_eq!(head(&soft, "f"), "Gemm [N,10] Softmax [N,10]");
        let (_, exits, heads) = attach(&model(&soft), &at(&["c", "f"])).unwrap();
        assert_eq!((exits.scores, heads[1].width), (Scores::Probabilities, 384));
    }

    #[test]
    fn sequences_and_maps() {
        let sequence = "
            x: f32[N,T,8]
            w = f32[8,8]
            v = f32[8,5]
            a = MatMul(x, w)
            b = Relu(a)
            c = MatMul(b, w)
            end = MatMul(c, v)
        ";
        assert_eq!(head(sequence, "b"), "MatMul [N,T,5] Add [N,T,5]");
        let pooled =
            sequence.replace("end = MatMul(c, v)", "p = ReduceMean(c) axes=[1] keepdims=0\nend = MatMul(p, v)");
        assert_eq!(head(&pooled, "b"), "Transpose [N,8,T] GlobalAveragePool [N,8,1] Flatten [N,8] Gemm [N,5]");
        let map = "
            x: f32[N,3,16,16]
            w = f32[8,3,3,3]
            v = f32[4,8,1,1]
            s = f32[4]
            a = Conv(x, w) pads=[1,1,1,1]
            b = MaxPool(a) kernel_shape=[4,4] strides=[4,4]
            c = Relu(a)
            end = Conv(c, v)
        ";
        let pool = "            b = MaxPool(a) kernel_shape=[4,4] strides=[4,4]\n";
        assert_eq!(head(&map.replace(pool, ""), "a"), "Conv [N,4,16,16]");
        let map = map.replace(
            "c = Relu(a)",
            "g = Relu(b)\nd = ConvTranspose(g, z) strides=[4,4]\nz = f32[8,8,4,4]\nc = Relu(d)",
        );
        assert_eq!(head(&map, "g"), "Conv [N,4,4,4] Resize [N,4,16,16]");
    }

    #[test]
    fn a_learned_criterion_looks_at_features_and_the_largest_probabilities() {
        let given = model(PICTURES);
        let (made, exits, mut heads) = attach(&given, &at(&["c", "f"])).unwrap();
        let before = made.graph().node.len();
        let (made, exits) = learned(&made, &exits, &mut heads).unwrap();
        assert_eq!(exits.exits[0].sureness.as_deref(), Some("exit_1_sureness"));
        let nodes: Vec<&str> = made.graph().node[before..before + 5].iter().map(|n| n.op_type()).collect();
        assert_eq!(nodes, ["Softmax", "TopK", "Concat", "Gemm", "Sigmoid"]);
        let types = infer_types(&made).unwrap();
        assert_eq!(types.get(&heads[0].sureness.clone().unwrap()[0]).unwrap().elements(), Some(219));
        let cuts = frontiers(cuts(&exits.trunk(&made).unwrap(), &types));
        let found = places(&made, &exits, &cuts).unwrap();
        let names: Vec<&str> = found.iter().map(|&p| cuts[p][0].as_str()).collect();
        assert_eq!(names, ["c", "f"]);
    }

    #[test]
    fn tensors_are_spread_over_the_multiply_adds() {
        let given = model(
            "
            x: f32[N,10]
            w = f32[10,10]
            wide = f32[10,40]
            back = f32[40,10]
            a = MatMul(x, w)
            b = Relu(a)
            c = MatMul(b, wide)
            d = Relu(c)
            e = MatMul(d, back)
            f = Add(e, b)
            end = MatMul(f, w)
        ",
        );
        // 100, 500 and 900 of 1,000; `d` isn't alone at its cut, `b` and `f` are.
        assert_eq!(spread(&given, 1).unwrap(), ["b"]);
        assert_eq!(spread(&given, 2).unwrap(), ["b", "f"]);
        let error = spread(&given, 3).unwrap_err();
        assert!(matches!(error, AttachError::NoCut { found: 2, wanted: 3 }), "{error}");
        assert!(spread(&given, 0).is_err());
    }

    #[test]
    fn heads_cost_little() {
        let given = model(&PICTURES.replace("f32[N,", "f32[1,"));
        let (made, exits, _) = attach(&given, &at(&["c"])).unwrap();
        assert_eq!(head_macs(&made, &infer_types(&made).unwrap(), &exits), [Some(2_160)]);
    }

    #[test]
    fn what_cannot_have_exits_is_told_why() {
        let cases = [
            ("x: f32[N,4]\na = Relu(x)\none = Neg(a)\ntwo = Abs(a)", "a", "gives 2 outputs (one, two)"),
            ("x: f32[N,4]\na = Relu(x)\nend = ArgMax(a) axis=1 keepdims=0", "a", "output `end` is i64"),
            ("x: f32[N,4]\na = Relu(x)\nend = ReduceSum(a) keepdims=1", "a", "output `end`"),
            ("x: f32[N,4]\na = Relu(x)\nend = Sigmoid(a)", "a", "Sigmoid"),
            ("x: f32[4,6]\na = Relu(x)\nend = Transpose(a)", "a", "output `end` is f32 [6, 4]"),
            ("x: f32[N,4]\na = Relu(x)\nend = Neg(a)", "nowhere", "no tensor `nowhere`"),
            ("x: f32[N,4]\na = Relu(x)\nend = Neg(a)", "x", "no tensor `x`"),
            ("x: f32[N,4]\na = Cast(x) to=7\nb = Cast(a) to=1\nend = Neg(b)", "a", "`a` is i64"),
            ("x: f32[N,T,4]\ny: f32[N,S,4]\na = Relu(y)\nb = Concat(x, a) axis=1\nend = Neg(b)", "a", "`a` is"),
        ];
        for (text, tensor, part) in cases {
            let error = attach(&model(text), &at(&[tensor])).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let (made, ..) = attach(&model(PICTURES), &at(&["c"])).unwrap();
        let error = attach(&made, &at(&["f"])).unwrap_err().to_string();
        assert!(error.contains("exits already: exit_1"), "{error}");
        let old: Model = model(&PICTURES.replace("\n        x:", "\n        opset 9\n        x:"));
        assert!(matches!(attach(&old, &at(&["c"])), Err(AttachError::Opset(9))));
    }
}

//! Cuts against brute force, and slices against the whole, by symbols: every
//! value is a number computed from what makes it, so that two graphs compute
//! the same exactly if their numbers agree. Engines repeat this with floats.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use proptest::prelude::*;
use proptest::sample::Index as Pick;
use protobuf::Message;
use tierline_graph::cuts::{Cut, FRONTIER_TENSORS_MAX, candidates, cuts};
use tierline_graph::fold::{Evaluate, fold};
use tierline_graph::index::{Index, reads};
use tierline_graph::onnx::{AttributeProto, GraphProto, ModelProto};
use tierline_graph::slice::{SliceError, slice};
use tierline_graph::{Model, Tensor, Types, infer_types};

use crate::assets;
use crate::text::{graph, model, proto};

fn symbol(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The model's outputs as symbols, in order.
pub(crate) fn run(model: &Model, inputs: &HashMap<String, u64>) -> Vec<(String, u64)> {
    let mut values: HashMap<&str, u64> = inputs.iter().map(|(name, v)| (name.as_str(), *v)).collect();
    let graph = model.graph();
    values.extend(graph.initializer.iter().map(|t| (t.name(), symbol((t.name(), t.raw_data().len())))));
    values.extend(graph.sparse_initializer.iter().map(|s| (s.values.name(), symbol(s.values.name()))));
    for node in Index::new(model).order.into_iter().map(|n| &graph.node[n]) {
        let attributes: Vec<(&str, u64)> = node.attribute.iter().map(|a| (a.name(), a.compute_size())).collect();
        let read: Vec<u64> = reads(node).into_iter().map(|name| values[name]).collect();
        let made = symbol((node.op_type(), attributes, read));
        values.extend(node.output.iter().enumerate().map(|(i, name)| (name.as_str(), symbol((made, i)))));
    }
    graph.output.iter().map(|o| (o.name().to_owned(), values[o.name()])).collect()
}

pub(crate) fn given(model: &Model) -> HashMap<String, u64> {
    model.inputs().into_iter().map(|v| (v.name.clone(), symbol(v.name))).collect()
}

/// Slices at these frontiers, run in order, give what the whole gives, and
/// hold each of its nodes once.
fn assert_slices_are_the_whole(model: &Model, types: &Types, at: &[Vec<String>]) {
    let slices = slice(model, types, at).unwrap_or_else(|e| panic!("{at:?}: {e}"));
    assert_eq!(slices.len(), at.len() + 1);
    let mut values = given(model);
    for part in &slices {
        let names: BTreeSet<String> = part.inputs().into_iter().map(|v| v.name).collect();
        assert!(names.iter().all(|n| values.contains_key(n)), "{at:?}: {names:?}");
        values = run(part, &values).into_iter().collect();
    }
    let whole = run(model, &given(model));
    assert_eq!(values, whole.into_iter().collect(), "{at:?}");

    let index = Index::new(model);
    let dynamic = |graph: &GraphProto| -> Vec<Vec<String>> {
        let outputs = graph.node.iter().map(|n| n.output.clone());
        let mut nodes: Vec<_> = outputs.filter(|o| o.iter().any(|o| !o.is_empty() && index.is_dynamic(o))).collect();
        nodes.sort();
        nodes
    };
    let mut parts: Vec<Vec<String>> = slices.iter().flat_map(|s| dynamic(s.graph())).collect();
    parts.sort();
    assert_eq!(parts, dynamic(model.graph()), "{at:?}");
}

fn found(text: &str) -> Vec<String> {
    found_in(&model(text))
}

fn found_in(model: &Model) -> Vec<String> {
    let types = infer_types(model).unwrap();
    let cuts = cuts(model, &types);
    let all: Vec<Vec<String>> = cuts.iter().map(|c| c.tensors.clone()).collect();
    all.iter().for_each(|at| assert_slices_are_the_whole(model, &types, std::slice::from_ref(at)));
    assert_slices_are_the_whole(model, &types, &all);
    cuts.iter().map(|c| c.tensors.join(" ")).collect()
}

#[test]
fn frontiers_of_small_graphs() {
    let cases: [(&str, &[&str]); 6] = [
        ("x: f32[4]\na = Relu(x)\nb = Exp(a)\nc = Abs(b)", &["a", "b"]),
        // A skip connection crosses every cut beside it.
        ("x: f32[4]\na = Relu(x)\nb = Exp(a)\nc = Abs(b)\nd = Add(a, c)\ne = Neg(d)", &["a", "a b", "a c", "d"]),
        // An input that is used late crosses as well.
        ("x: f32[4]\ny: f32[4]\na = Relu(x)\nb = Exp(a)\nc = Add(b, y)", &["y a", "y b"]),
        // An early output stays in the frontier to the end.
        ("x: f32[4]\na = Relu(x)\nearly = Exp(a)\nb = Abs(a)\nc = Neg(b)", &["a", "a early", "early b"]),
        // Constants and what is made of them never cross.
        ("x: f32[4]\nw = f32[4]\nv = Exp(w)\na = Add(x, v)\nb = Mul(a, v)\nc = Abs(b)", &["a", "b"]),
        ("x: f32[4]\na = Relu(x)", &[]),
    ];
    for (text, expected) in cases {
        assert_eq!(found(text), expected, "{text}");
    }
}

#[test]
fn bytes_and_positions() {
    let model = model("x: f32[N,4]\na = Relu(x)\nb = Shape(a)\nc = Reshape(a, b)\nd = Exp(c)");
    let types = tierline_graph::infer_types_with(&model, &BTreeMap::from([("x".to_owned(), vec![3, 4])])).unwrap();
    let cut = |tensors: &[&str], bytes, position| Cut {
        tensors: tensors.iter().map(|t| (*t).to_owned()).collect(),
        bytes: Some(bytes),
        position,
    };
    assert_eq!(cuts(&model, &types), [cut(&["a"], 48, 1), cut(&["a", "b"], 64, 2), cut(&["c"], 48, 3)]);
}

/// The smallest cuts of all are always among those worth measuring.
#[test]
fn candidates_are_few_in_order_and_hold_the_smallest() {
    // Wide, then narrower, then wide again: a neck after ten nodes.
    let mut text = "x: f32[1,64]\n".to_owned();
    let mut last = "x".to_owned();
    for i in 0..20 {
        let axes = if i < 10 { 64 - 6 * i } else { 64 };
        let from = if i == 0 {
            64
        } else if i <= 10 {
            64 - 6 * (i - 1)
        } else {
            64
        };
        text += &format!("w{i} = f32[{from},{axes}]\nv{i} = MatMul({last}, w{i})\n");
        last = format!("v{i}");
    }
    let model = model(&text);
    let types = infer_types(&model).unwrap();
    let all = cuts(&model, &types);
    assert_eq!(all.len(), 19);
    for max in [1, 2, 5, 12, 19, 30] {
        let chosen = candidates(&model, &types, &all, max);
        assert_eq!(chosen.len(), max.min(19));
        assert!(chosen.windows(2).all(|w| w[0].position < w[1].position));
        assert!(chosen.iter().any(|c| c.tensors == ["v9"] && c.bytes == Some(40)), "{max}: {chosen:?}");
    }
}

/// Puts a body into a node of the main graph.
fn with_bodies(text: &str, node: usize, bodies: &[(&str, &str)]) -> Model {
    let mut model = proto(text);
    for (name, body) in bodies {
        let mut attribute = AttributeProto::new();
        attribute.set_name((*name).to_owned());
        attribute.set_type(5);
        attribute.g = Some(graph(body)).into();
        let graph = model.graph.mut_or_insert_default();
        graph.node[node].attribute.push(attribute);
        // Read by a body: no output after all.
        let read: Vec<String> = reads(&graph.node[node]).into_iter().map(str::to_owned).collect();
        graph.output.retain(|o| !read.iter().any(|r| r == o.name()));
    }
    Model::from_proto(model).unwrap()
}

#[test]
fn nothing_is_cut_inside_a_body_and_captures_are_uses() {
    // `a` is read by nothing but the body, `w` by nothing but the other.
    let text = "x: f32[4]\nw = f32[4]\ncond: bool[]\na = Relu(x)\nb = Exp(x)\nc = If(cond)\nd = Add(b, c)\ne = Abs(d)";
    let bodies = [("then_branch", "t1 = Neg(a)\nt2 = Mul(t1, w)"), ("else_branch", "e1 = Neg(b)\ne2 = Mul(e1, a)")];
    let conditional = with_bodies(text, 2, &bodies);
    assert_eq!(found_in(&conditional), ["x cond a", "cond a b", "b c", "d"]);

    let text =
        "x: f32[4]\nn = i64{3}\ngo: bool[]\na = Relu(x)\nb = Exp(x)\nc = Loop(n, go, a)\nd = Add(b, c)\ne = Abs(d)";
    let body = "i: i64[]\ncont: bool[]\ncarried: f32[4]\nstop = Identity(cont)\nnext = Add(carried, b)";
    let looped = with_bodies(text, 2, &[("body", body)]);
    assert_eq!(found_in(&looped), ["x go a", "go a b", "b c", "d"]);

    let text = "x: f32[5,4]\nz: f32[4]\na = Relu(x)\nb = Exp(z)\nl, s = Scan(b, a) num_scan_inputs=1\nd = Abs(s)\ne = Add(d, l)";
    let body = "state: f32[4]\nrow: f32[4]\nnext = Add(state, row)\nrow_out = Mul(state, b)";
    let scanned = with_bodies(text, 2, &[("body", body)]);
    assert_eq!(found_in(&scanned), ["z a", "a b", "l s", "l d"]);
}

/// Weights behind Dequantize nodes at the head of the file hinder nothing, and
/// frontiers lie at floats before a pair, never within what is fused.
#[test]
fn quantised_graphs_are_cut_at_floats() {
    let text = "x: f32[1,2,8,8]\ns = f32[]\nz = u8[]\nwq = i8[2,2,3,3]\nwz = i8[]\n\
        w1 = DequantizeLinear(wq, s, wz)\nw2 = DequantizeLinear(wq, s, wz)\n\
        q1 = QuantizeLinear(x, s, z)\nd1 = DequantizeLinear(q1, s, z)\n\
        c1 = Conv(d1, w1) pads=[1,1,1,1]\n\
        q2 = QuantizeLinear(c1, s, z)\np = MaxPool(q2) kernel_shape=[2,2]\nd2 = DequantizeLinear(p, s, z)\n\
        c2 = Conv(d2, w2)\nq3 = QuantizeLinear(c2, s, z)\nd3 = DequantizeLinear(q3, s, z)\ny = Relu(d3)";
    assert_eq!(found(text), ["c1", "c2"]);

    let dynamic = "x: f32[2,4]\nwq = i8[4,4]\ns = f32[]\na = Relu(x)\nq, qs, qz = DynamicQuantizeLinear(a)\n\
        m = MatMulInteger(q, wq, qz)\nf = Cast(m) to=1\nk = Mul(qs, s)\ny = Mul(f, k)\nb = Relu(y)";
    assert_eq!(found(dynamic), ["a", "y"]);
}

#[test]
fn values_that_are_no_tensors_do_not_cross() {
    let text = "x: f32[4]\na = Relu(x)\nb = SequenceConstruct(a)\nn = i64[]\nc = SequenceAt(b, n)\nd = Abs(c)";
    assert_eq!(found(text), ["a", "c"]);
}

#[test]
fn tensors_that_no_memory_holds_do_not_cross() {
    let text = "x: f32[4]\ns = i64{4611686018427387904,4611686018427387904,4}\na = Relu(x)\nb = Expand(a, s)\nc = ReduceMax(b) keepdims=0\nd = Abs(c)";
    assert_eq!(found(text), ["a", "c"]);
}

#[test]
fn wrong_frontiers_are_named() {
    let model = model(
        "x: f32[4]\nw = f32[4]\nv = Exp(w)\nlayer1 = Add(x, v)\nlayer2 = Exp(layer1)\nlayer3 = Abs(layer2)\nend = Add(layer1, layer3)",
    );
    let types = infer_types(&model).unwrap();
    let error = |at: &[&[&str]]| -> SliceError {
        let at: Vec<Vec<String>> = at.iter().map(|f| f.iter().map(|t| (*t).to_owned()).collect()).collect();
        slice(&model, &types, &at).map(|parts| parts.len()).expect_err("no such cut")
    };
    let cases = [
        (error(&[&["layer9"]]), "cut 0: the model has no tensor `layer9`; did you mean `layer3`?"),
        (error(&[&["zzz"]]), "cut 0: the model has no tensor `zzz`"),
        (error(&[&["w"]]), "cut 0: `w` is a constant, not a computed tensor; leave it out"),
        (error(&[&["v"]]), "cut 0: `v` is a constant, not a computed tensor; leave it out"),
        (error(&[&["layer2"]]), "cut 0: what follows also needs `layer1`; add them to the cut"),
        (error(&[&[]]), "cut 0: what follows also needs `x`; add them to the cut"),
        (error(&[&["layer1", "layer2"], &["layer1"]]), "cut 1: what follows also needs `layer2`; add them to the cut"),
        (
            error(&[&["layer1", "layer2"], &["x"]]),
            "cut 1 does not lie behind cut 0; give cuts in the order in which they are computed",
        ),
    ];
    for (error, expected) in cases {
        assert_eq!(error.to_string(), expected);
    }
}

/// One node of a random graph.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    kind: u8,
    picks: Vec<Pick>,
    outputs: usize,
}

pub(crate) fn nodes() -> impl Strategy<Value = Vec<Random>> {
    let node = (0u8..8, prop::collection::vec(any::<Pick>(), 1..4), 1usize..4)
        .prop_map(|(kind, picks, outputs)| Random { kind, picks, outputs });
    prop::collection::vec(node, 1..14)
}

/// A graph of nodes that add values, mix them to several, capture them in
/// bodies, or make more of constants alone; in an order given by `keys`.
pub(crate) fn random_model(nodes: &[Random], keys: &[u32]) -> Model {
    let mut values: Vec<String> = ["x0", "x1", "w0"].map(str::to_owned).to_vec();
    let mut constants = vec!["w0".to_owned(), "w1".to_owned()];
    let mut text = "x0: f32[2,3]\nx1: f32[2,3]\nw0 = f32[2,3]\nw1 = f32[2,3]\n".to_owned();
    let mut bodies = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        let pool = if node.kind == 7 { &constants } else { &values };
        let picks: Vec<String> = node.picks.iter().map(|p| p.get(pool).clone()).collect();
        let outputs = if node.kind < 4 || node.kind == 7 { 1 } else { node.outputs };
        let made: Vec<String> = (0..outputs).map(|o| format!("v{i}_{o}")).collect();
        let (left, right) = (made.join(", "), picks.join(", "));
        match node.kind {
            0..=3 | 7 => text += &format!("{left} = Sum({right})\n"),
            4 | 5 => text += &format!("{left} = com.example.Mix({right})\n"),
            _ => {
                text += &format!("{left} = com.example.Body({})\n", picks[0]);
                bodies.push((i, format!("inner = Sum({right})")));
            }
        }
        text.extend(made.iter().map(|name| format!("{name}: f32[2,3] declared\n")));
        if node.kind == 7 {
            constants.extend(made.iter().cloned());
        }
        values.extend(made);
    }
    let mut model: ModelProto = proto(&text);
    let graph = model.graph.mut_or_insert_default();
    for (i, body) in bodies {
        let mut attribute = AttributeProto::new();
        attribute.set_name("body".to_owned());
        attribute.g = Some(self::graph(&body)).into();
        graph.node[i].attribute.push(attribute);
    }
    // Values that only a body reads were taken for outputs; so they stay.
    let mut order: Vec<usize> = (0..graph.node.len()).collect();
    order.sort_by_key(|i| keys.get(*i).copied().unwrap_or(0));
    graph.node = order.into_iter().map(|i| graph.node[i].clone()).collect();
    Model::from_proto(model).unwrap()
}

/// Every frontier by the definition: for each place in the order, the values
/// known before it that something behind it reads.
fn brute_force(model: &Model) -> Vec<Vec<String>> {
    let index = Index::new(model);
    let nodes = &model.graph().node;
    let inputs: Vec<&str> = model.graph().input.iter().map(|v| v.name()).collect();
    let outputs: Vec<&str> = model.graph().output.iter().map(|v| v.name()).collect();
    let mut found: Vec<Vec<String>> = Vec::new();
    for place in 1..index.order.len() {
        let (before, behind) = index.order.split_at(place);
        let made = before.iter().flat_map(|&n| nodes[n].output.iter().map(String::as_str));
        let known = inputs.iter().copied().chain(made);
        let is_read = |name: &str| outputs.contains(&name) || behind.iter().any(|&n| reads(&nodes[n]).contains(&name));
        let frontier: Vec<String> = known.filter(|n| index.is_dynamic(n) && is_read(n)).map(str::to_owned).collect();
        let useful = frontier.iter().any(|n| !inputs.contains(&n.as_str()));
        if useful && frontier.len() <= FRONTIER_TENSORS_MAX && found.last() != Some(&frontier) {
            found.push(frontier);
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn cuts_are_the_frontiers_of_brute_force(nodes in nodes(), keys in prop::collection::vec(any::<u32>(), 14)) {
        for keys in [&keys[..0], &keys[..]] {
            let model = random_model(&nodes, keys);
            let found = cuts(&model, &infer_types(&model).unwrap());
            let tensors: Vec<Vec<String>> = found.iter().map(|c| c.tensors.clone()).collect();
            prop_assert_eq!(tensors, brute_force(&model));
            prop_assert!(found.iter().all(|c| c.bytes == Some(24 * c.tensors.len() as u64)));
        }
    }

    #[test]
    fn slices_are_the_whole(
        nodes in nodes(),
        keys in prop::collection::vec(any::<u32>(), 14),
        keep in prop::collection::vec(any::<bool>(), 14),
    ) {
        let model = random_model(&nodes, &keys);
        let types = infer_types(&model).unwrap();
        let all = cuts(&model, &types);
        for cut in &all {
            assert_slices_are_the_whole(&model, &types, std::slice::from_ref(&cut.tensors));
        }
        let some: Vec<Vec<String>> = all.iter().zip(&keep).filter(|(_, k)| **k).map(|(c, _)| c.tensors.clone()).collect();
        assert_slices_are_the_whole(&model, &types, &some);
    }

    #[test]
    fn frontiers_that_miss_a_tensor_are_mended_by_the_error(nodes in nodes(), drop in any::<Pick>()) {
        let model = random_model(&nodes, &[]);
        let types = infer_types(&model).unwrap();
        for cut in cuts(&model, &types) {
            let mut tensors = cut.tensors.clone();
            tensors.remove(drop.index(tensors.len()));
            // What is left may do, where the rest can be computed from it;
            // else the error says what to add.
            match slice(&model, &types, std::slice::from_ref(&tensors)) {
                Ok(_) => assert_slices_are_the_whole(&model, &types, &[tensors]),
                Err(SliceError::Incomplete { cut: 0, missing }) => {
                    tensors.extend(missing);
                    assert_slices_are_the_whole(&model, &types, &[tensors]);
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}

/// Computes nothing: constants are lifted, and no more.
struct Never;

impl Evaluate for Never {
    fn evaluate(&mut self, _: &Model) -> Result<Vec<Tensor>, String> {
        Err("nothing is computed here".to_owned())
    }
}

#[test]
fn slices_of_real_models_are_the_whole_at_every_cut() {
    // Each cut alone where the model is small, and always a slice between
    // each two neighbours.
    for (name, each) in [
        ("ppocr-cls", true),
        ("light-squeezenet", true),
        ("ppocr-det", false),
        ("ppocr-rec", false),
        ("light-resnet50", false),
    ] {
        let Some(mut model) = assets::model(name) else { return };
        fold(&mut model, &mut Never).unwrap();
        let types = infer_types(&model).unwrap();
        let all = cuts(&model, &types);
        assert!(all.len() > 20, "{name}: {} cuts", all.len());
        for cut in all.iter().filter(|_| each) {
            assert_slices_are_the_whole(&model, &types, std::slice::from_ref(&cut.tensors));
        }
        let every: Vec<Vec<String>> = all.iter().map(|c| c.tensors.clone()).collect();
        assert_slices_are_the_whole(&model, &types, &every);
        println!("{name}: {} cuts of {} nodes", all.len(), model.graph().node.len());
    }
}

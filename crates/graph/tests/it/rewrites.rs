//! Patches are applied whole or not at all; folding is made of them.

use std::collections::{BTreeMap, BTreeSet};

use tierline_graph::constant::{tensor_from_proto, tensor_to_proto};
use tierline_graph::fold::{Evaluate, FoldReport, Purpose, fold, fold_for};
use tierline_graph::onnx::{AttributeProto, TensorAnnotation};
use tierline_graph::rewrite::{Pass, Patch, RewriteError, apply, run};
use tierline_graph::{DataType, Elements, Model, Tensor, infer_types};

use crate::text::{graph, model, proto};

const MODEL: &str = "x: f32[4]\nw = f32[4]\na = Relu(x)\nb = Add(a, w)\nc = Exp(b)\nb: f32[4] declared";

fn names(list: &[&str]) -> BTreeMap<String, String> {
    list.chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
}

fn operators(model: &Model) -> Vec<String> {
    let node = |n: &tierline_graph::onnx::NodeProto| {
        format!("{} = {}({})", n.output.join(","), n.op_type(), n.input.join(","))
    };
    model.graph().node.iter().map(node).collect()
}

#[test]
fn nodes_come_and_go() {
    let before = model(MODEL);
    // The sum becomes a product with a new weight; the nodes are given in an
    // order in which they can't be computed.
    let patch = Patch {
        remove_nodes: BTreeSet::from([1]),
        remove_constants: BTreeSet::from(["w".to_owned()]),
        add_nodes: graph("product = Mul(half, v)\nhalf = Div(a, v)").node,
        add_constants: vec![tensor_to_proto("v", &Tensor::new([4], Elements::F32(vec![2.0; 4])).unwrap())],
        rewire: names(&["b", "product"]),
        ..Patch::default()
    };
    let after = apply(&before, "test", patch).unwrap();
    assert_eq!(operators(&after), ["a = Relu(x)", "half = Div(a,v)", "product = Mul(half,v)", "c = Exp(product)"]);
    let constants: Vec<&str> = after.graph().initializer.iter().map(|t| t.name()).collect();
    assert_eq!(constants, ["v"]);
    // What was declared of the value that is gone is gone.
    assert!(after.graph().value_info.is_empty());
    assert_eq!(operators(&before), ["a = Relu(x)", "b = Add(a,w)", "c = Exp(b)"]);
}

#[test]
fn inputs_outputs_and_operator_sets_come() {
    let patch = Patch {
        add_nodes: graph("g = com.example.Grad(c, label)").node,
        add_inputs: graph("label: f32[4]").input,
        add_outputs: graph("label: f32[4]\ng = Neg(label)").output,
        imports: BTreeMap::from([("com.example".to_owned(), 1), (String::new(), 21)]),
        ..Patch::default()
    };
    let after = apply(&model(MODEL), "test", patch).unwrap();
    let inputs: Vec<String> = after.inputs().into_iter().map(|v| v.name).collect();
    let outputs: Vec<String> = after.outputs().into_iter().map(|v| v.name).collect();
    assert_eq!((inputs, outputs), (vec!["x".to_owned(), "label".to_owned()], vec!["c".to_owned(), "g".to_owned()]));
    assert_eq!(after.opset("com.example"), Some(1));
}

#[test]
fn annotations_follow_their_tensors() {
    let mut annotated = proto(MODEL);
    for name in ["b", "w", "x"] {
        let annotation = TensorAnnotation { tensor_name: Some(name.to_owned()), ..TensorAnnotation::default() };
        annotated.graph.mut_or_insert_default().quantization_annotation.push(annotation);
    }
    let patch = Patch { remove_nodes: BTreeSet::from([1]), rewire: names(&["b", "a"]), ..Patch::default() };
    let after = apply(&Model::from_proto(annotated).unwrap(), "test", patch).unwrap();
    let left: Vec<&str> = after.graph().quantization_annotation.iter().map(|a| a.tensor_name()).collect();
    assert_eq!(left, ["w", "x"]);
}

fn body(text: &str) -> AttributeProto {
    let mut attribute = AttributeProto::new();
    attribute.set_name("then_branch".to_owned());
    attribute.set_type(5);
    attribute.g = Some(graph(text)).into();
    attribute
}

/// `If` reading `b` in a body, where `own` is a name of the body's own.
fn with_body() -> Model {
    let mut model = proto("x: f32[4]\ncond: bool[]\na = Relu(x)\nb = Abs(a)\nc = If(cond)\nd = Add(b, c)");
    let inside = body("own = Neg(b)\nlast = Exp(own)");
    model.graph.mut_or_insert_default().node[2].attribute.push(inside);
    Model::from_proto(model).unwrap()
}

#[test]
fn bodies_are_rewired_with_the_nodes() {
    let patch = Patch { remove_nodes: BTreeSet::from([1]), rewire: names(&["b", "a"]), ..Patch::default() };
    let after = apply(&with_body(), "test", patch).unwrap();
    let inside = &after.graph().node[1].attribute[0].g.node[0];
    assert_eq!(inside.input, ["a"]);
    assert_eq!(operators(&after), ["a = Relu(x)", "c = If(cond)", "d = Add(a,c)"]);
}

#[test]
fn chains_of_names_are_followed() {
    let patch =
        Patch { remove_nodes: BTreeSet::from([0, 1]), rewire: names(&["b", "a", "a", "x"]), ..Patch::default() };
    assert_eq!(operators(&apply(&model(MODEL), "test", patch).unwrap()), ["c = Exp(x)"]);
}

#[test]
fn patches_that_do_not_fit_are_refused() {
    let refused = |model: &Model, patch: Patch| apply(model, "test", patch).expect_err("it doesn't fit").to_string();
    let whole = model(MODEL);
    let rewire = |pairs: &[&str]| Patch { rewire: names(pairs), ..Patch::default() };
    let cases = [
        (
            Patch { remove_nodes: BTreeSet::from([3]), ..Patch::default() },
            "pass `test`: the patch removes node 3; the graph has 3",
        ),
        (
            Patch { remove_constants: BTreeSet::from(["v".to_owned()]), ..Patch::default() },
            "pass `test`: the patch removes initialiser `v`, which the graph does not have",
        ),
        (
            rewire(&["ghost", "a"]),
            "pass `test`: the patch rewires `ghost`, which no node makes and no input or initialiser gives",
        ),
        (rewire(&["a", "b", "b", "a"]), "pass `test`: the patch rewires `a` in a circle"),
        (
            rewire(&["c", "b"]),
            "pass `test`: the patch rewires `c`, an output of the graph; make the output with another node instead",
        ),
        (
            Patch { imports: BTreeMap::from([(String::new(), 13)]), ..Patch::default() },
            "pass `test`: the patch needs version 13 of operator set ``; the model imports 21",
        ),
        // What a file couldn't be, a patch can't make.
        (
            rewire(&["a", "ghost"]),
            "pass `test` leaves no valid model: node `Add b` (Add) reads tensor `ghost`, which nothing makes",
        ),
        (
            Patch { remove_nodes: BTreeSet::from([0]), ..Patch::default() },
            "pass `test` leaves no valid model: node `Add b` (Add) reads tensor `a`, which nothing makes",
        ),
        (
            rewire(&["x", "b"]),
            "pass `test` leaves no valid model: the graph has a cycle through node `Add b` (Add), which makes `b`",
        ),
        (
            Patch { add_nodes: graph("b = Neg(a)").node, ..Patch::default() },
            "pass `test` leaves no valid model: tensor `b` is made twice, the second time by node `Neg b` (Neg)",
        ),
    ];
    for (patch, expected) in cases {
        assert_eq!(refused(&whole, patch), expected);
    }
    assert_eq!(
        refused(&with_body(), rewire(&["b", "own"])),
        "pass `test`: node `If c`: a body reads `b`, but `own`, which the patch puts in its place, is a name of the body's own"
    );
}

/// Removes a node that is needed, or fails.
struct Careless(bool);

impl Pass for Careless {
    fn name(&self) -> &'static str {
        "careless"
    }

    fn patch(&mut self, _: &Model) -> Result<Patch, String> {
        if self.0 {
            Err("not today".to_owned())
        } else {
            Ok(Patch { remove_nodes: BTreeSet::from([0]), ..Patch::default() })
        }
    }
}

struct Idle;

impl Pass for Idle {
    fn name(&self) -> &'static str {
        "idle"
    }

    fn patch(&mut self, _: &Model) -> Result<Patch, String> {
        Ok(Patch::default())
    }
}

#[test]
fn a_failed_pass_leaves_the_model_as_it_was() {
    let before = model(MODEL);
    let mut after = before.clone();
    assert!(matches!(run(&mut after, &mut Careless(false)), Err(RewriteError::Invalid { pass: "careless", .. })));
    let error = run(&mut after, &mut Careless(true)).unwrap_err();
    assert_eq!(error.to_string(), "pass `careless`: not today");
    assert!(!run(&mut after, &mut Idle).unwrap());
    assert_eq!(after, before);
}

/// Gives ones of the right shape, where the operators are among these.
struct Ones(&'static [&'static str]);

impl Evaluate for Ones {
    fn evaluate(&mut self, model: &Model) -> Result<Vec<Tensor>, String> {
        if let Some(node) = model.graph().node.iter().find(|n| !self.0.contains(&n.op_type())) {
            return Err(format!("no {} here", node.op_type()));
        }
        assert!(model.inputs().is_empty());
        let types = infer_types(model).map_err(|e| e.to_string())?;
        let ones = |name: String| {
            let info = types.get(&name).expect("inferred");
            let shape: Vec<usize> = info.shape.iter().flatten().map(|d| d.known().expect("known") as usize).collect();
            let count = shape.iter().product();
            let elements = match info.dtype {
                Some(DataType::F32) => Elements::F32(vec![1.0; count]),
                Some(DataType::I64) => Elements::I64(vec![1; count]),
                other => panic!("{other:?}"),
            };
            Tensor::new(shape, elements).expect("the shape fits")
        };
        Ok(model.outputs().into_iter().map(|o| ones(o.name)).collect())
    }
}

#[test]
fn constants_are_folded_and_the_unused_is_dropped() {
    let text = "x: f32[2,3]\nw = f32[2,3]\nunused = f32[9]\n\
        e = Exp(w)\nn = Neg(e)\na = Add(x, n)\nh = com.example.Foreign(w)\nb = Add(a, h)\n\
        i = Identity(b)\nd = Dropout(i)\ny = Mul(d, e)\nh: f32[2,3] declared";
    let mut folded = model(text);
    let report = fold(&mut folded, &mut Ones(&["Exp", "Neg"])).unwrap();
    assert_eq!(operators(&folded), ["a = Add(x,n)", "h = Foreign(w)", "b = Add(a,h)", "y = Mul(b,e)"]);
    assert_eq!(report, FoldReport { nodes_before: 8, nodes_after: 4, folded: 2, left: 0 });
    let constants: Vec<(&str, Tensor)> =
        folded.graph().initializer.iter().map(|t| (t.name(), tensor_from_proto(t).unwrap())).collect();
    let ones = Tensor::new([2, 3], Elements::F32(vec![1.0; 6])).unwrap();
    let zeros = Tensor::new([2, 3], Elements::F32(vec![0.0; 6])).unwrap();
    assert_eq!(constants, [("w", zeros), ("e", ones.clone()), ("n", ones)]);
}

#[test]
fn what_cannot_be_computed_stays_with_all_it_needs() {
    // `s` can't be computed here, so that what it is made of stays as well.
    let text = "x: f32[4]\nw = f32[4]\ne = Exp(w)\ns = Sin(e)\nn = Neg(w)\ny = Sum(x, s, n)";
    let mut folded = model(text);
    let report = fold(&mut folded, &mut Ones(&["Exp", "Neg"])).unwrap();
    assert_eq!(operators(&folded), ["e = Exp(w)", "s = Sin(e)", "y = Sum(x,s,n)"]);
    assert_eq!((report.folded, report.left), (1, 1));
}

#[test]
fn interfaces_survive_folding() {
    // A constant output keeps its node; what is an input and has its value in
    // the file is a weight like the others, whatever the file's age.
    for ir in [3, 8] {
        let mut listed =
            proto("x: f32[4]\nk: f32[4]\nk = f32[4]\nw = f32[4]\nfixed = Exp(w)\nm = Neg(k)\ny = Add(x, m)");
        listed.set_ir_version(ir);
        let mut folded = Model::from_proto(listed).unwrap();
        fold(&mut folded, &mut Ones(&["Exp", "Neg"])).unwrap();
        assert_eq!(operators(&folded), ["fixed = Exp(w)", "y = Add(x,m)"]);
        assert_eq!(folded.inputs().len(), 1);
        assert_eq!(folded.graph().input.len(), 1);
    }
}

#[test]
fn constant_nodes_become_initialisers() {
    let mut model = proto("x: f32[4]\nk = Constant() value_floats=1\nv = Constant() value_int=3\ny = Sum(x, k, v)");
    let graph = model.graph.mut_or_insert_default();
    graph.node[0].attribute[0].floats = vec![1.0, 2.0, 3.0, 4.0];
    let mut folded = Model::from_proto(model).unwrap();
    fold(&mut folded, &mut Ones(&[])).unwrap();
    assert_eq!(operators(&folded), ["y = Sum(x,k,v)"]);
    let constants: Vec<Tensor> = folded.graph().initializer.iter().map(|t| tensor_from_proto(t).unwrap()).collect();
    assert_eq!(constants[0], Tensor::new([4], Elements::F32(vec![1.0, 2.0, 3.0, 4.0])).unwrap());
    assert_eq!(constants[1], Tensor::new([], Elements::I64(vec![3])).unwrap());
}

#[test]
fn constants_of_types_that_are_only_passed_on_are_lifted_as_they_are() {
    let mut model = proto("x: f32[4]\nk = Constant() value=1\ny = com.example.Scale(x, k)");
    let float8 = tierline_graph::onnx::TensorProto {
        dims: vec![4],
        data_type: Some(17),
        raw_data: Some(vec![1, 2, 3, 4].into()),
        ..Default::default()
    };
    model.graph.mut_or_insert_default().node[0].attribute[0].t = Some(float8.clone()).into();
    let mut folded = Model::from_proto(model).unwrap();
    fold(&mut folded, &mut Ones(&[])).unwrap();
    let named = tierline_graph::onnx::TensorProto { name: Some("k".to_owned()), ..float8 };
    assert_eq!(folded.graph().initializer, [named]);
}

#[test]
fn training_dropout_and_captured_identities_stay() {
    let mut model = proto(
        "x: f32[4]\nratio: f32[]\ntrain: bool[]\ncond: bool[]\nd = Dropout(x, ratio, train)\ni = Identity(d)\nc = If(cond)\ny = Add(d, c)",
    );
    let graph = model.graph.mut_or_insert_default();
    graph.node[2].attribute.push(body("r = Neg(i)"));
    graph.output.retain(|o| o.name() == "y");
    let mut folded = Model::from_proto(model).unwrap();
    fold(&mut folded, &mut Ones(&[])).unwrap();
    assert_eq!(operators(&folded), ["d = Dropout(x,ratio,train)", "i = Identity(d)", "c = If(cond)", "y = Add(d,c)"]);
}

#[test]
fn sequences_of_known_items_give_way_to_their_items() {
    let mut folded = model(
        "x: f32[2,7]\nsizes = i64{4,3}\nlast = i64{-1}\n\
         s = SplitToSequence(x, sizes) axis=1\nb = SequenceAt(s, last)\n\
         c = SequenceConstruct(b, x)\nj = ConcatFromSequence(c) axis=1\n\
         t = SequenceConstruct(b, b)\ny = ConcatFromSequence(t) axis=0 new_axis=1\nz = Neg(j)",
    );
    fold(&mut folded, &mut Ones(&[])).unwrap();
    let expected = [
        "t/Split,t/Split.1 = Split(x,t/constant)",
        "j = Concat(t/Split.1,x)",
        "z = Neg(j)",
        "t/Unsqueeze = Unsqueeze(t/Split.1,t/constant.2)",
        "t/Unsqueeze.3 = Unsqueeze(t/Split.1,t/constant.2)",
        "y = Concat(t/Unsqueeze,t/Unsqueeze.3)",
    ];
    assert_eq!(operators(&folded), expected);
}

#[test]
fn a_constant_cast_like_an_input_is_constant() {
    let mut folded = model("x: f32[2]\nlow = f32[1]\nb = CastLike(low, x)\ny = Max(x, b)");
    fold(&mut folded, &mut Ones(&["Cast"])).unwrap();
    assert_eq!(operators(&folded), ["y = Max(x,b)"]);
}

#[test]
fn copies_of_a_weight_stay_one_weight_in_training() {
    let text = "x: f32[4,3]\nw = f32[5,3]\nat = i64{0,0,1,2}\ng = Gather(w, at)\ny = Add(x, g)";
    let mut folded = model(text);
    fold_for(&mut folded, &mut Ones(&["Gather"]), Purpose::Training).unwrap();
    assert_eq!(operators(&folded), ["g = Gather(w,at)", "y = Add(x,g)"]);
    fold(&mut folded, &mut Ones(&["Gather"])).unwrap();
    assert_eq!(operators(&folded), ["y = Add(x,g)"]);
}

#[test]
fn weights_are_found_behind_joints_and_slices() {
    let text = "x: f32[batch,3]\nlength: i64[1]\nw = f32[2,3]\nv = f32[2,3]\nplaces = f32[9,4]\nstart = i64{0}\n\
                j = Concat(w, v) axis=0\nt = Transpose(j)\nm = MatMul(x, t)\n\
                p = Slice(places, start, length)\ny = Add(m, p)";
    let found = tierline_graph::step::parameters(&model(text), &[]).unwrap();
    assert_eq!(found, ["w", "v", "places"]);
}

/// Computes nothing, and must not be asked to make more than `max` bytes.
struct Bounded {
    max: u64,
    asked: usize,
}

impl Evaluate for Bounded {
    fn evaluate(&mut self, model: &Model) -> Result<Vec<Tensor>, String> {
        let types = infer_types(model).map_err(|e| e.to_string())?;
        let made: Option<u64> = model
            .graph()
            .node
            .iter()
            .flat_map(|n| &n.output)
            .try_fold(0u64, |sum, name| sum.checked_add(types.get(name)?.bytes()?));
        assert!(made.is_some_and(|made| made <= self.max), "{made:?} bytes");
        self.asked += 1;
        Err("not here".to_owned())
    }
}

/// A few bytes of constants can stand for any number of elements: what would
/// be made is known before anything is.
#[test]
fn folding_computes_nothing_that_is_too_large() {
    let blown_up = [
        "s = i64{46341,46341}\nc = ConstantOfShape(s)\ny = Add(x, c)",
        "s = i64{46341,46341}\nk = f32[1]\nc = Expand(k, s)\ny = Add(x, c)",
        "s = i64{46341,46341}\nk = f32[1,1]\nc = Tile(k, s)\ny = Add(x, c)",
        "s = i64{1,1,46341,46341}\nk = f32[1,1,1,1]\nc = Resize(k, _, _, s)\ny = Add(x, c)",
        "s = i64{0,0,46340,46340}\nk = f32[1,1]\nc = Pad(k, s)\ny = Add(x, c)",
        // Large in between only.
        "s = i64{46341,46341}\nc = ConstantOfShape(s)\nr = ReduceSum(c)\ny = Add(x, r)",
        // Each is small enough, all together aren't.
        "s = i64{8000,8000}\na = ConstantOfShape(s)\nb = Neg(a)\nc = Exp(b)\nd = Sin(c)\ny = Sum(x, a, b, c, d)",
    ];
    for text in blown_up {
        let mut folded = model(&format!("x: f32[1]\n{text}"));
        fold(&mut folded, &mut Bounded { max: 512 << 20, asked: 0 }).unwrap();
    }
    let mut small = Bounded { max: 1 << 20, asked: 0 };
    fold(&mut model("x: f32[1]\ns = i64{4,4}\nc = ConstantOfShape(s)\ny = Add(x, c)"), &mut small).unwrap();
    assert!(small.asked > 0);
}

/// What follows from values is known once these are: folding goes on with it.
#[test]
fn folding_goes_on_where_values_tell_sizes() {
    let mut folded = model("x: f32[1]\nk = i64{3,0,5}\nn = NonZero(k)\nm = Neg(n)\nc = Cast(m) to=1\ny = Add(x, c)");
    struct Counting;
    impl Evaluate for Counting {
        fn evaluate(&mut self, model: &Model) -> Result<Vec<Tensor>, String> {
            let made = |name: String| match name.as_str() {
                "n" => Tensor::new([1, 2], Elements::I64(vec![0, 2])),
                _ => Tensor::new([1, 2], Elements::F32(vec![0.0, -2.0])),
            };
            model.outputs().into_iter().map(|o| made(o.name).map_err(|e| e.to_string())).collect()
        }
    }
    fold(&mut folded, &mut Counting).unwrap();
    assert_eq!(operators(&folded), ["y = Add(x,c)"]);
}

/// A normalisation whose scale is of sizes alone, behind a product with a weight.
const STATED: &str = "x: f32[2,3]\nw = f32[3,3]\nn = i64{3}\nh = MatMul(x, w)\ns = ConstantOfShape(n)\n\
                      y = LayerNormalization(h, s)";

#[test]
fn what_no_weight_takes_part_in_is_no_weight_after_folding_either() {
    for purpose in [Purpose::Training, Purpose::Inference] {
        let mut folded = model(STATED);
        fold_for(&mut folded, &mut Ones(&["ConstantOfShape"]), purpose).unwrap();
        let expected = ["h = MatMul(x,w)", "s = Constant()", "y = LayerNormalization(h,s)"];
        let mut made = operators(&folded);
        made.sort();
        assert_eq!(made, expected);
        assert_eq!(tierline_graph::step::parameters(&folded, &[]).unwrap(), ["w"]);
        // Folded once more, it stays so, to the byte.
        let mut again = folded.clone();
        fold_for(&mut again, &mut Ones(&[]), purpose).unwrap();
        assert_eq!(again, folded);
        // So do its slices.
        let types = infer_types(&folded).unwrap();
        let parts = tierline_graph::slice::slice(&folded, &types, &[vec!["h".to_owned()]]).unwrap();
        assert!(tierline_graph::step::parameters(&parts[1], &[]).is_err());
    }
}

#[test]
fn a_file_that_keeps_its_weights_as_constants_has_weights() {
    let text = "x: f32[2,3]\nn = i64{3}\nm = i64{3,3}\nw = ConstantOfShape(m)\nh = MatMul(x, w)\ns = ConstantOfShape(n)\n\
                y = LayerNormalization(h, s)";
    let mut folded = model(text);
    fold_for(&mut folded, &mut Ones(&["ConstantOfShape"]), Purpose::Training).unwrap();
    assert_eq!(tierline_graph::step::parameters(&folded, &[]).unwrap(), ["w"]);
}

//! What is trained of a model whose weights are computed of others, and what
//! folding for training leaves of them.

use tierline_graph::fold::{Evaluate, Purpose, fold_for};
use tierline_graph::onnx::{ModelProto, StringStringEntryProto, ValueInfoProto};
use tierline_graph::step::{Recipe, StepError, parameters, trainable};
use tierline_graph::{DataType, Elements, Model, Tensor, infer_types};

use crate::text::proto;

/// Computes everything: floats as halves, integers as ones.
struct Any;

impl Evaluate for Any {
    fn evaluate(&mut self, model: &Model) -> Result<Vec<Tensor>, String> {
        let types = infer_types(model).map_err(|e| e.to_string())?;
        let made = |name: String| {
            let info = types.get(&name).ok_or("unknown")?;
            let shape: Option<Vec<usize>> = info.shape.iter().flatten().map(|d| Some(d.known()? as usize)).collect();
            let shape = shape.ok_or("no shape")?;
            let count = shape.iter().product();
            let elements = match info.dtype {
                Some(DataType::I64) => Elements::I64(vec![1; count]),
                _ => Elements::F32(vec![0.5; count]),
            };
            Tensor::new(shape, elements).map_err(|e| e.to_string())
        };
        model.outputs().into_iter().map(|o| made(o.name)).collect()
    }
}

fn folded(proto: ModelProto, purpose: Purpose) -> Model {
    let mut model = Model::from_proto(proto).unwrap();
    fold_for(&mut model, &mut Any, purpose).unwrap();
    model
}

/// Names of the weights of a model that is folded for training.
fn trained(proto: ModelProto) -> Vec<String> {
    match parameters(&folded(proto, Purpose::Training), &[]) {
        Ok(names) => names,
        Err(StepError::NoParameters { .. }) => Vec::new(),
        Err(e) => panic!("{e}"),
    }
}

fn check(text: &str, expected: &[&str]) {
    assert_eq!(trained(proto(text)), expected, "{text}");
}

#[test]
fn a_computed_weight_is_trained_in_its_parts() {
    // Direction and length.
    check(
        "x: f32[2,3]\nv = f32[3,4]\ng = f32[1,4]\nl = ReduceL2(v) axes=[0]\nd = Div(v, l)\nw = Mul(d, g)\ny = MatMul(x, w)",
        &["v", "g"],
    );
    // A change of low rank, behind a change of layout.
    check(
        "x: f32[2,3]\nv = f32[4,3]\na = f32[4,1]\nb = f32[1,3]\np = MatMul(a, b)\nw = Add(v, p)\nt = Transpose(w)\ny = MatMul(x, t)",
        &["v", "a", "b"],
    );
    // A bias of two, and a kernel within a branch's reach.
    check(
        "x: f32[2,3]\nw = f32[3,4]\nb = f32[4]\nc = f32[4]\nd = Add(b, c)\nh = MatMul(x, w)\ny = Add(h, d)",
        &["w", "b", "c"],
    );
    // Less its own mean.
    check("x: f32[2,3]\nv = f32[3,4]\nm = ReduceMean(v)\nw = Sub(v, m)\ny = MatMul(x, w)", &["v"]);
    // A single number behind a function of it.
    check("x: f32[2,3]\nw = f32[3,4]\ns = f32[]\nh = MatMul(x, w)\ne = Exp(s)\ny = Mul(h, e)", &["w", "s"]);
    check("x: f32[2,3]\nw = f32[3,4]\ns = f32[1]\nh = MatMul(x, w)\ne = Softplus(s)\ny = Div(h, e)", &["w", "s"]);
}

#[test]
fn constants_of_a_computed_weight_are_none() {
    // A matrix that says what counts is drawn below; a vector along which a
    // norm is measured, a table of positions, numbers by themselves.
    check(
        "x: f32[2,3]\nw = f32[3,4]\nu = f32[3]\nv = f32[4]\nt = MatMul(w, v)\ns = MatMul(u, t)\nn = Div(w, s)\ny = MatMul(x, n)",
        &["w"],
    );
    check("x: f32[2,3]\nw = f32[3,4]\nf = f32[4]\na = Cos(f)\nh = MatMul(x, w)\ny = Mul(h, a)", &["w"]);
    check("x: f32[2,3]\nw = f32[3,4]\ne = f32[1]\na = Add(w, e)\nh = MatMul(x, a)\ny = Mul(h, e)", &["w"]);
    // Of a mask's parts nothing is learned.
    check(
        "x: f32[2,4]\nw = f32[4,4]\nm = f32[4]\nk = f32{-10000}\na = Mul(m, k)\nh = MatMul(x, w)\ny = Add(h, a)",
        &["w"],
    );
    check("x: f32[2,4]\nw = f32{0,1,1,0}\nv = f32[4]\na = Mul(v, w)\ny = Mul(x, a)", &["v"]);
    // As elsewhere, Constant nodes hold constants.
    check("x: f32[2,3]\nw = f32[3,4]\nn = i64{4}\nc = ConstantOfShape(n)\na = Mul(w, c)\ny = MatMul(x, a)", &["w"]);
}

#[test]
fn what_only_turns_is_folded_and_what_computes_stays() {
    let operators = |text: &str, purpose| {
        let model = folded(proto(text), purpose);
        model.graph().node.iter().map(|n| n.op_type().to_owned()).collect::<Vec<_>>().join(" ")
    };
    for (text, training) in [
        ("x: f32[2,3]\nw = f32[4,3]\nt = Transpose(w)\ny = MatMul(x, t)", "MatMul"),
        // Folded, these would be two weights.
        (
            "x: f32[2,4]\nw = f32[4,4]\nt = Transpose(w)\nu = Transpose(t)\nh = MatMul(x, t)\ny = MatMul(h, u)",
            "Transpose MatMul MatMul",
        ),
        ("x: f32[2,3]\nv = f32[3,4]\ng = f32[1,4]\nw = Mul(v, g)\ny = MatMul(x, w)", "Mul MatMul"),
        // Sizes don't depend on what a weight becomes, and what follows from them is no weight.
        (
            "x: f32[2,3]\nv = f32[3,4]\ng = f32[1,4]\ns = Shape(v)\nk = ConstantOfShape(s)\nw = Mul(v, g)\nz = Add(w, k)\ny = MatMul(x, z)",
            "Mul Constant Add MatMul",
        ),
        ("x: f32[2,3]\nv = f32[3,2]\nu = f32[3,2]\nw = Concat(v, u) axis=1\ny = MatMul(x, w)", "Concat MatMul"),
        // What nothing learns is computed.
        ("x: f32[2,3]\nw = f32[3,4]\nf = f32[4]\na = Cos(f)\nh = MatMul(x, w)\ny = Mul(h, a)", "MatMul Constant Mul"),
    ] {
        assert_eq!(operators(text, Purpose::Training), training, "{text}");
        let used = operators(text, Purpose::Inference);
        assert!(used.split(' ').all(|o| matches!(o, "MatMul" | "Mul" | "Constant")), "{text}: {used}");
    }
}

fn note(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_owned()), ..Default::default() }
}

/// Notes as PyTorch's exporter writes them: of each name what it is.
fn noted(text: &str, kinds: &[(&str, &str)]) -> ModelProto {
    let mut proto = proto(text);
    for (name, kind) in kinds {
        let metadata_props = vec![note("pkg.torch.export.graph_signature.InputSpec.kind", kind)];
        let info = ValueInfoProto { name: Some((*name).to_owned()), metadata_props, ..ValueInfoProto::default() };
        proto.graph.mut_or_insert_default().value_info.push(info);
    }
    proto
}

#[test]
fn what_a_file_notes_counts() {
    let text = "x: f32[2,3]\nw = f32[3,4]\np = f32[4]\ns = f32[1]\nd = f32[4]\nk = f32[1]\nh = MatMul(x, w)\na = Add(h, p)\n\
                b = Mul(a, s)\nc = Div(b, d)\ny = Pow(c, k)";
    assert_eq!(trained(proto(text)), ["w", "p"]);
    let kinds = [("w", "PARAMETER"), ("p", "BUFFER"), ("s", "PARAMETER"), ("d", "PARAMETER"), ("k", "PARAMETER")];
    let expected = ["w", "s", "d", "k"];
    assert_eq!(trained(noted(text, &kinds)), expected);
    // Notes last through folding, and slices have them.
    for purpose in [Purpose::Training, Purpose::Inference] {
        let model = folded(noted(text, &kinds), purpose);
        assert_eq!(parameters(&model, &[]).unwrap(), expected);
        let mut again = model.clone();
        fold_for(&mut again, &mut Any, Purpose::Training).unwrap();
        assert_eq!(parameters(&again, &[]).unwrap(), expected);
        let types = infer_types(&model).unwrap();
        let parts = tierline_graph::slice::slice(&model, &types, &[vec!["b".to_owned()]]).unwrap();
        assert_eq!(parameters(&parts[0], &[]).unwrap(), ["w", "s"]);
        assert_eq!(parameters(&parts[1], &[]).unwrap(), ["d", "k"]);
    }
    // A buffer's piece is as little a weight.
    let text = "x: f32[2,3]\nw = f32[3,3]\np = f32[9,3]\na = i64{0}\ne = i64{2}\nq = Slice(p, a, e)\nh = Add(x, q)\ny = MatMul(h, w)";
    assert_eq!(trained(noted(text, &[("w", "PARAMETER"), ("p", "BUFFER")])), ["w"]);
    assert_eq!(trained(proto(text)), ["w", "p"]);
}

#[test]
fn numbers_of_a_module_are_weights_by_their_names() {
    let text = "x: f32[2,3]\nmean = f32[1]\nstd = f32[1]\nw = f32[3,4]\nm.scale = f32[1]\nonnx::Mul_12 = f32[]\n\
                /m/Constant_1_output_0 = f32[]\nz = Sub(x, mean)\nn = Div(z, std)\nh = MatMul(n, w)\na = Mul(h, m.scale)\n\
                b = Mul(a, onnx::Mul_12)\ny = Div(b, /m/Constant_1_output_0)";
    assert_eq!(trained(proto(text)), ["w"]);
    let mut by_pytorch = proto(text);
    by_pytorch.producer_name = Some("pytorch".to_owned());
    assert_eq!(trained(by_pytorch), ["w", "m.scale"]);
}

/// What the exporter computed itself can't be trained apart any more.
#[test]
fn parameters_that_the_exporter_joined_are_told() {
    let mut proto = noted(
        "x: f32[2,3]\nmul = f32[3,4]\nb = f32[4]\nval_3 = f32[4,4]\nh = MatMul(x, mul)\na = Add(h, b)\ny = MatMul(a, val_3)",
        &[("b", "PARAMETER")],
    );
    let graph = proto.graph.mut_or_insert_default();
    let signature = "# inputs\np_g: PARAMETER target='l.g'\np_v: PARAMETER target='l.v'\np_b: PARAMETER target='b'\n\
                     p_w: PARAMETER target='k.w'\nb_u: BUFFER target='u'\nx: USER_INPUT";
    graph.metadata_props.push(note("pkg.torch.export.ExportedProgram.graph_signature", signature));
    for (name, from) in [("mul", "['div_1', 'l.g', 'l.v', 'u', 'val_0']"), ("val_3", "['k.w']")] {
        let metadata_props = vec![note("pkg.onnxscript.optimizer.folded_from", from)];
        let info = ValueInfoProto { name: Some(name.to_owned()), metadata_props, ..ValueInfoProto::default() };
        graph.value_info.push(info);
    }
    let model = folded(proto, Purpose::Training);
    let recipe = Recipe { loss: tierline_graph::step::Loss::Mse, ..Recipe::default() };
    let untrained = trainable(&model, &recipe).unwrap().spec.untrained;
    let said: Vec<(&str, bool)> = untrained.iter().map(|u| (u.weight.as_str(), u.reason.contains("`mul`"))).collect();
    assert_eq!(said, [("l.g", true), ("l.v", true)]);
}

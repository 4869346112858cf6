//! Random models of one operator each, whose sizes are known, partly known or
//! named.

use fastrand::Rng;
use tierline_graph::emit::{Attribute, node};
use tierline_graph::onnx::{self, type_proto};
use tierline_graph::{DataType, Elements, Model, Tensor, constant};

/// A model under construction: inputs are differentiated.
pub struct Case {
    graph: onnx::GraphProto,
}

pub type Attributes = Vec<(&'static str, Attribute)>;

pub fn ints(values: impl IntoIterator<Item = i64>) -> Attribute {
    Attribute::Ints(values.into_iter().collect())
}

pub fn text(value: &str) -> Attribute {
    Attribute::Text(value.to_owned())
}

impl Case {
    pub fn new() -> Self {
        Self { graph: onnx::GraphProto { name: Some("case".into()), ..Default::default() } }
    }

    /// An input whose shape is in words: `"batch 3 height 5"`.
    pub fn input(mut self, name: &str, shape: &str) -> Self {
        let info = value(name, DataType::F32, Some(shape));
        self.graph.input.push(info);
        self
    }

    pub fn ints(mut self, name: &str, values: &[i64]) -> Self {
        let tensor = Tensor::new([values.len()], Elements::I64(values.to_vec())).unwrap();
        self.graph.initializer.push(constant::tensor_to_proto(name, &tensor));
        self
    }

    pub fn floats(mut self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        let tensor = Tensor::new(shape, Elements::F32(values.to_vec())).unwrap();
        self.graph.initializer.push(constant::tensor_to_proto(name, &tensor));
        self
    }

    /// The one node, from `inputs` to `y` (and `y1`, ..), and the model.
    pub fn op(self, kind: &str, inputs: &[&str], outputs: usize, attributes: Attributes) -> Model {
        self.op_at(22, kind, inputs, outputs, attributes)
    }

    /// An input that is true or false.
    pub fn flag(mut self, name: &str) -> Self {
        self.graph.input.push(value(name, DataType::Bool, Some("")));
        self
    }

    /// Integers of any shape.
    pub fn numbers(mut self, name: &str, shape: &[usize], values: &[i64]) -> Self {
        let tensor = Tensor::new(shape, Elements::I64(values.to_vec())).unwrap();
        self.graph.initializer.push(constant::tensor_to_proto(name, &tensor));
        self
    }

    /// A node before the last.
    pub fn through(self, kind: &str, inputs: &[&str], output: &str, attributes: Attributes) -> Self {
        self.node(node(kind, inputs, &[output], &attributes))
    }

    pub fn node(mut self, node: onnx::NodeProto) -> Self {
        self.graph.node.push(node);
        self
    }

    /// As [`Case::op`], in an operator set.
    pub fn op_at(mut self, set: i64, kind: &str, inputs: &[&str], outputs: usize, attributes: Attributes) -> Model {
        let names: Vec<String> = (0..outputs).map(|i| if i == 0 { "y".into() } else { format!("y{i}") }).collect();
        let ends: Vec<&str> = names.iter().map(String::as_str).collect();
        self.graph.node.push(node(kind, inputs, &ends, &attributes));
        self.graph.output = vec![value("y", DataType::F32, None)];
        whole(set, self.graph)
    }
}

/// A graph as a model of an operator set.
pub fn whole(opset: i64, graph: onnx::GraphProto) -> Model {
    let operators = onnx::OperatorSetIdProto { version: Some(opset), ..Default::default() };
    let proto = onnx::ModelProto {
        ir_version: Some(10),
        opset_import: vec![operators],
        graph: protobuf::MessageField::some(graph),
        ..Default::default()
    };
    Model::from_proto(proto).unwrap()
}

pub fn value(name: &str, dtype: DataType, shape: Option<&str>) -> onnx::ValueInfoProto {
    let shape = shape.map(|words| {
        let dim = words.split_whitespace().map(|axis| {
            let mut dim = onnx::tensor_shape_proto::Dimension::new();
            match axis.parse() {
                Ok(n) => dim.set_dim_value(n),
                // An axis of which nothing is known, not even a name.
                Err(_) if axis == "?" => {}
                Err(_) => dim.set_dim_param(axis.to_owned()),
            }
            dim
        });
        onnx::TensorShapeProto { dim: dim.collect(), ..Default::default() }
    });
    let tensor = type_proto::Tensor { elem_type: Some(dtype.to_onnx()), shape: shape.into(), ..Default::default() };
    let mut kind = onnx::TypeProto::new();
    kind.set_tensor_type(tensor);
    onnx::ValueInfoProto { name: Some(name.into()), type_: protobuf::MessageField::some(kind), ..Default::default() }
}

/// A kind of model, how many, and what builds one.
type Kind = (&'static str, usize, fn(&mut Rng) -> Model);

/// Models with names, the same for the same seed.
pub fn random(seed: u64) -> Vec<(String, Model)> {
    let mut rng = Rng::with_seed(seed);
    let kinds: &[Kind] = &[
        ("conv", 60, conv),
        ("conv_transpose", 40, conv_transpose),
        ("pool", 40, pool),
        ("max_pool", 60, max_pool),
        ("binary", 40, binary),
        ("matmul", 36, matmul),
        ("gemm", 16, gemm),
        ("reduce", 40, reduce),
        ("slice", 40, slice),
        ("join", 16, join),
        ("gather", 20, gather),
        ("pad", 24, pad),
        ("resize", 40, resize),
        ("norm", 40, norm),
        ("recurrent", 36, recurrent),
        ("layout", 30, layout),
        ("bounded", 2, bounded),
    ];
    let mut all = Vec::new();
    for (kind, count, build) in kinds {
        all.extend((0..*count).map(|i| (format!("{kind}/{i}"), build(&mut rng))));
    }
    all
}

/// Sizes of a picture: numbers or names. The reference takes 7 for `height`
/// and 6 for `width`.
fn picture(rng: &mut Rng, axes: usize) -> Vec<String> {
    if axes == 2 && rng.u8(0..4) == 0 {
        return vec!["height".into(), "width".into()];
    }
    (0..axes).map(|_| rng.u8(5..9).to_string()).collect()
}

fn batch(rng: &mut Rng) -> &'static str {
    if rng.bool() { "batch" } else { "2" }
}

fn conv(rng: &mut Rng) -> Model {
    let axes = [1, 2, 2, 2, 3][rng.usize(0..5)];
    let group = [1, 1, 2, 3][rng.usize(0..4)];
    let (each, out_each) = ([1, 2][rng.usize(0..2)], [1, 2][rng.usize(0..2)]);
    let size = picture(rng, axes).join(" ");
    let kernel: Vec<i64> = (0..axes).map(|_| rng.i64(1..4)).collect();
    let same = size.starts_with(char::is_numeric) && rng.u8(0..6) == 0;
    let mut attributes = vec![
        ("group", Attribute::Int(group)),
        ("kernel_shape", ints(kernel.clone())),
        ("strides", ints((0..axes).map(|_| rng.i64(1..4)))),
    ];
    if same {
        attributes.push(("auto_pad", text(["SAME_UPPER", "SAME_LOWER", "VALID"][rng.usize(0..3)])));
    } else {
        attributes.push(("dilations", ints((0..axes).map(|_| rng.i64(1..3)))));
        attributes.push(("pads", ints((0..2 * axes).map(|_| rng.i64(0..3)))));
    }
    let taps = kernel.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let case = Case::new()
        .input("x", &format!("{} {} {size}", batch(rng), group * each))
        .input("w", &format!("{} {each} {taps}", group * out_each));
    if rng.bool() {
        return case.input("b", &(group * out_each).to_string()).op("Conv", &["x", "w", "b"], 1, attributes);
    }
    case.op("Conv", &["x", "w"], 1, attributes)
}

fn conv_transpose(rng: &mut Rng) -> Model {
    let axes = [1, 2, 2, 3][rng.usize(0..4)];
    let group = [1, 1, 2][rng.usize(0..3)];
    let (each, out_each) = (rng.i64(1..3), rng.i64(1..3));
    let size = picture(rng, axes).join(" ");
    let kernel: Vec<i64> = (0..axes).map(|_| rng.i64(2..4)).collect();
    let strides: Vec<i64> = (0..axes).map(|_| rng.i64(1..4)).collect();
    let attributes = vec![
        ("group", Attribute::Int(group)),
        ("kernel_shape", ints(kernel.clone())),
        ("output_padding", ints(strides.iter().map(|&s| rng.i64(0..s)))),
        ("strides", ints(strides.clone())),
        ("pads", ints((0..2 * axes).map(|_| rng.i64(0..2)))),
    ];
    let taps = kernel.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    Case::new()
        .input("x", &format!("{} {} {size}", batch(rng), group * each))
        .input("w", &format!("{} {out_each} {taps}", group * each))
        .input("b", &(group * out_each).to_string())
        .op("ConvTranspose", &["x", "w", "b"], 1, attributes)
}

fn pool(rng: &mut Rng) -> Model {
    let axes = [1, 2, 2, 3][rng.usize(0..4)];
    let fixed: Vec<String> = (0..axes).map(|_| rng.u8(5..9).to_string()).collect();
    let ceil = rng.u8(0..3) == 0;
    let size = if ceil { fixed.join(" ") } else { picture(rng, axes).join(" ") };
    let case = Case::new().input("x", &format!("{} 2 {size}", batch(rng)));
    let kind = ["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"][[0, 0, 1, 1, 1, 2, 3][rng.usize(0..7)]];
    if kind.starts_with("Global") {
        return case.op(kind, &["x"], 1, vec![]);
    }
    let mut attributes = vec![
        ("kernel_shape", ints((0..axes).map(|_| rng.i64(2..4)))),
        ("strides", ints((0..axes).map(|_| rng.i64(1..4)))),
        ("pads", ints((0..2 * axes).map(|_| rng.i64(0..2)))),
        ("ceil_mode", Attribute::Int(ceil.into())),
    ];
    if kind == "AveragePool" {
        attributes.push(("count_include_pad", Attribute::Int(rng.bool().into())));
    }
    case.op(kind, &["x"], 1, attributes)
}

fn max_pool(rng: &mut Rng) -> Model {
    let axes = [1, 2, 2, 2, 3][rng.usize(0..5)];
    let size = picture(rng, axes).join(" ");
    let fixed = size.starts_with(char::is_numeric);
    let case = Case::new().input("x", &format!("{} 2 {size}", batch(rng)));
    let kernel: Vec<i64> = (0..axes).map(|_| rng.i64(1..4)).collect();
    let mut attributes = vec![("kernel_shape", ints(kernel.clone()))];
    match rng.u8(0..4) {
        // Windows side by side.
        0 => attributes.push(("strides", ints(kernel))),
        1 if fixed => {
            // ONNX Runtime pads by less than nothing where strides are longer.
            let strides: Vec<i64> = kernel.iter().map(|&k| rng.i64(1..=k)).collect();
            attributes.push(("strides", ints(strides)));
            attributes.push(("auto_pad", text(["SAME_UPPER", "SAME_LOWER", "VALID"][rng.usize(0..3)])));
        }
        _ => {
            let pads: Vec<i64> = kernel.iter().chain(&kernel).map(|&k| rng.i64(0..k)).collect();
            attributes.push(("strides", ints((0..axes).map(|_| rng.i64(1..5)))));
            attributes.push(("dilations", ints((0..axes).map(|_| rng.i64(1..3)))));
            attributes.push(("pads", ints(pads)));
            attributes.push(("ceil_mode", Attribute::Int(rng.bool().into())));
        }
    }
    // Whether somebody reads the winners' places makes no difference.
    case.op("MaxPool", &["x"], rng.usize(1..3), attributes)
}

fn binary(rng: &mut Rng) -> Model {
    let kind = ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"][rng.usize(0..8)];
    let full = ["batch", "4", "3"];
    let side = |rng: &mut Rng| {
        let from = rng.usize(0..3);
        full[from..].iter().map(|d| if rng.u8(0..3) == 0 { "1" } else { d }).collect::<Vec<_>>().join(" ")
    };
    let (a, b) = (side(rng), side(rng));
    Case::new().input("a", &a).input("b", &b).op(kind, &["a", "b"], 1, vec![])
}

fn matmul(rng: &mut Rng) -> Model {
    let shapes = [
        ("2 3", "3 4"),
        ("batch 2 3", "3 4"),
        ("batch 2 3", "batch 3 4"),
        ("batch 5 2 3", "1 5 3 4"),
        ("2 3", "5 3 4"),
        ("batch 1 2 3", "5 3 4"),
        ("3", "3 4"),
        ("batch 2 3", "3"),
        ("3", "3"),
        ("3", "5 3 4"),
        ("1 2 3", "batch 3 4"),
        ("batch time 3", "3 4"),
        ("? 2 3", "batch 3 4"),
        ("1 2 3", "? 3 4"),
        ("batch 2 ?", "? 4"),
        ("1 2 3", "? 2 3 4"),
    ];
    let (a, b) = shapes[rng.usize(0..shapes.len())];
    Case::new().input("a", a).input("b", b).op("MatMul", &["a", "b"], 1, vec![])
}

/// A bound of the input's type, as exporters say it.
fn bounded(rng: &mut Rng) -> Model {
    let shape = ["batch 4", "3 4"][rng.usize(0..2)];
    let mut case = Case::new().input("x", shape).floats("low", &[], &[0.0]);
    case.graph.node.push(node("CastLike", &["low", "x"], &["bound"], &[]));
    case.op("Clip", &["x", "bound"], 1, vec![])
}

fn gemm(rng: &mut Rng) -> Model {
    let (ta, tb) = (rng.bool(), rng.bool());
    let attributes = vec![
        ("alpha", Attribute::Float(rng.f32() + 0.5)),
        ("beta", Attribute::Float(rng.f32() + 0.5)),
        ("transA", Attribute::Int(ta.into())),
        ("transB", Attribute::Int(tb.into())),
    ];
    let c = ["4", "1 4", "2 4", "2 1", "1"][rng.usize(0..5)];
    Case::new().input("a", if ta { "3 2" } else { "2 3" }).input("b", if tb { "4 3" } else { "3 4" }).input("c", c).op(
        "Gemm",
        &["a", "b", "c"],
        1,
        attributes,
    )
}

fn reduce(rng: &mut Rng) -> Model {
    let kinds = [
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceLogSumExp",
    ];
    let kind = kinds[rng.usize(0..kinds.len())];
    let keep = ("keepdims", Attribute::Int(rng.bool().into()));
    let axes: &[i64] = [&[0][..], &[1], &[-1], &[0, 2], &[1, 2], &[-1, 0]][rng.usize(0..6)];
    let case = Case::new().input("x", "batch 3 4");
    match rng.u8(0..5) {
        0 => case.op(kind, &["x"], 1, vec![keep]),
        1 => case.op(kind, &["x"], 1, vec![keep, ("noop_with_empty_axes", Attribute::Int(1))]),
        _ => case.ints("axes", axes).op(kind, &["x", "axes"], 1, vec![keep]),
    }
}

fn slice(rng: &mut Rng) -> Model {
    let steps = [1, 1, 2, 3, -1, -2];
    let count = rng.usize(1..3);
    let axes: Vec<i64> = if count == 2 { vec![1, -1] } else { vec![rng.i64(0..3)] };
    let (mut starts, mut ends, mut by) = (vec![], vec![], vec![]);
    for _ in &axes {
        let step = steps[rng.usize(0..6)];
        let (low, high) = (rng.i64(0..2), rng.i64(3..9));
        let low = if rng.bool() { low } else { low - 3 };
        let (start, end) = if step > 0 { (low, high) } else { (high, low.max(0)) };
        starts.push(start);
        ends.push(end);
        by.push(step);
    }
    Case::new()
        .input("x", if rng.bool() { "batch 6 5" } else { "4 6 5" })
        .ints("starts", &starts)
        .ints("ends", &ends)
        .ints("axes", &axes)
        .ints("steps", &by)
        .op("Slice", &["x", "starts", "ends", "axes", "steps"], 1, vec![])
}

fn join(rng: &mut Rng) -> Model {
    if rng.bool() {
        let (a, b) = [("batch 2 3", "batch 4 3"), ("2 2 3", "2 4 3")][rng.usize(0..2)];
        return Case::new().input("a", a).input("b", b).op("Concat", &["a", "b"], 1, vec![("axis", Attribute::Int(1))]);
    }
    let case = Case::new().input("x", "batch 5 4");
    let axis = ("axis", Attribute::Int([1, -2][rng.usize(0..2)]));
    if rng.bool() {
        return case.ints("sizes", &[1, 3, 1]).op("Split", &["x", "sizes"], 3, vec![axis]);
    }
    case.op("Split", &["x"], 2, vec![axis, ("num_outputs", Attribute::Int(2))])
}

fn gather(rng: &mut Rng) -> Model {
    let axis = rng.i64(-3..3);
    let case = Case::new().input("x", if rng.bool() { "batch 4 5" } else { "3 4 5" });
    // 0..3 is within every axis; some come twice.
    let picks: Vec<i64> = (0..4).map(|_| rng.i64(-3..3)).collect();
    let shape: &[usize] = [&[4][..], &[2, 2], &[]][rng.usize(0..3)];
    let picks = &picks[..shape.iter().product()];
    let mut case = case;
    let tensor = Tensor::new(shape, Elements::I64(picks.to_vec())).unwrap();
    case.graph.initializer.push(constant::tensor_to_proto("picks", &tensor));
    case.op("Gather", &["x", "picks"], 1, vec![("axis", Attribute::Int(axis))])
}

fn pad(rng: &mut Rng) -> Model {
    let mode = ["constant", "constant", "edge", "reflect", "wrap"][rng.usize(0..5)];
    let low = if mode == "constant" { -1 } else { 0 };
    let shape = if rng.bool() && mode == "constant" { "batch 4 5" } else { "3 4 5" };
    let case = Case::new().input("x", shape);
    let attributes = vec![("mode", text(mode))];
    if rng.bool() {
        let pads: Vec<i64> = (0..4).map(|_| rng.i64(low..3)).collect();
        return case.ints("pads", &pads).ints("axes", &[-1, 1]).op("Pad", &["x", "pads", "", "axes"], 1, attributes);
    }
    let pads: Vec<i64> = (0..6).map(|_| rng.i64(low.max(0)..3)).collect();
    case.ints("pads", &pads).op("Pad", &["x", "pads"], 1, attributes)
}

fn resize(rng: &mut Rng) -> Model {
    let mode = ["nearest", "linear", "cubic"][rng.usize(0..3)];
    let from = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"][rng.usize(0..4)];
    let mut attributes = vec![("mode", text(mode)), ("coordinate_transformation_mode", text(from))];
    if mode == "nearest" {
        let way = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"][rng.usize(0..4)];
        attributes.push(("nearest_mode", text(way)));
    }
    let case = Case::new().input("x", &format!("{} 2 4 5", batch(rng)));
    if rng.bool() {
        attributes.push(("axes", ints([2, 3])));
        let sizes = [rng.i64(2..10), rng.i64(2..10)];
        return case.ints("sizes", &sizes).op("Resize", &["x", "", "", "sizes"], 1, attributes);
    }
    let whole = [[2.0, 2.0], [1.0, 3.0], [2.0, 1.0]][rng.usize(0..3)];
    case.floats("scales", &[4], &[1.0, 1.0, whole[0], whole[1]]).op("Resize", &["x", "", "scales"], 1, attributes)
}

fn norm(rng: &mut Rng) -> Model {
    let size = picture(rng, 2).join(" ");
    let x = format!("{} 4 {size}", batch(rng));
    let pictures = Case::new().input("x", &x).input("scale", "4").input("bias", "4");
    let epsilon = ("epsilon", Attribute::Float(0.01));
    match rng.u8(0..6) {
        0 => {
            let training = vec![epsilon, ("training_mode", Attribute::Int(1)), ("momentum", Attribute::Float(0.0))];
            let statistics = pictures.floats("mean", &[4], &[0.0; 4]).floats("variance", &[4], &[1.0; 4]);
            statistics.op("BatchNormalization", &["x", "scale", "bias", "mean", "variance"], 3, training)
        }
        1 => {
            let statistics =
                pictures.floats("mean", &[4], &[0.1, 0.2, -0.3, 0.4]).floats("variance", &[4], &[0.5, 1.0, 2.0, 3.0]);
            statistics.op("BatchNormalization", &["x", "scale", "bias", "mean", "variance"], 1, vec![epsilon])
        }
        2 => pictures.op("InstanceNormalization", &["x", "scale", "bias"], 1, vec![epsilon]),
        3 => pictures.op(
            "GroupNormalization",
            &["x", "scale", "bias"],
            1,
            vec![epsilon, ("num_groups", Attribute::Int(2))],
        ),
        4 => {
            let (axis, shape) = [(-1, "5"), (1, "4 5"), (-2, "4 5")][rng.usize(0..3)];
            Case::new().input("x", "batch 4 5").input("scale", shape).input("bias", shape).op(
                "LayerNormalization",
                &["x", "scale", "bias"],
                1,
                vec![("axis", Attribute::Int(axis)), epsilon],
            )
        }
        _ => {
            let kind = ["Softmax", "LogSoftmax", "LpNormalization"][rng.usize(0..3)];
            Case::new().input("x", "batch 4 5").op(kind, &["x"], 1, vec![("axis", Attribute::Int(rng.i64(-3..3)))])
        }
    }
}

fn recurrent(rng: &mut Rng) -> Model {
    let (kind, gates) = [("LSTM", 4), ("GRU", 3), ("RNN", 1)][rng.usize(0..3)];
    let (way, directions) = [("forward", 1), ("reverse", 1), ("bidirectional", 2)][rng.usize(0..3)];
    let mut attributes = vec![("hidden_size", Attribute::Int(3)), ("direction", text(way))];
    if kind == "GRU" {
        attributes.push(("linear_before_reset", Attribute::Int(rng.bool().into())));
    }
    let rows = 3 * gates;
    let case = Case::new()
        .input("x", if rng.bool() { "time batch 2" } else { "4 3 2" })
        .input("w", &format!("{directions} {rows} 2"))
        .input("r", &format!("{directions} {rows} 3"));
    if rng.u8(0..4) == 0 {
        return case.op(kind, &["x", "w", "r"], 1, attributes);
    }
    let case = case.input("b", &format!("{directions} {}", 2 * rows)).input("h0", &format!("{directions} batch 3"));
    if kind == "LSTM" {
        let case = case.input("c0", &format!("{directions} batch 3"));
        return case.op(kind, &["x", "w", "r", "b", "", "h0", "c0"], 1, attributes);
    }
    case.op(kind, &["x", "w", "r", "b", "", "h0"], 1, attributes)
}

fn layout(rng: &mut Rng) -> Model {
    let x = Case::new().input("x", "batch 4 6");
    match rng.u8(0..8) {
        0 => x.ints("shape", &[0, -1, 2]).op("Reshape", &["x", "shape"], 1, vec![]),
        1 => x.op("Transpose", &["x"], 1, vec![("perm", ints([2, 0, 1]))]),
        2 => x.op("Flatten", &["x"], 1, vec![("axis", Attribute::Int(rng.i64(0..3)))]),
        3 => x.ints("axes", &[0, 2]).op("Unsqueeze", &["x", "axes"], 1, vec![]),
        4 => x.ints("repeats", &[2, 1, 3]).op("Tile", &["x", "repeats"], 1, vec![]),
        5 => x.op("Trilu", &["x"], 1, vec![("upper", Attribute::Int(rng.bool().into()))]),
        6 => {
            let case = Case::new().input("x", "batch 1 6").ints("shape", &[2, 1, 4, 6]);
            case.op("Expand", &["x", "shape"], 1, vec![])
        }
        _ => {
            let mode = ["DCR", "CRD"][rng.usize(0..2)];
            let case = Case::new().input("x", "batch 8 2 3");
            case.op("DepthToSpace", &["x"], 1, vec![("blocksize", Attribute::Int(2)), ("mode", text(mode))])
        }
    }
}

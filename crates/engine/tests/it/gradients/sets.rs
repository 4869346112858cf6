//! Every rule at the oldest operator set it claims, and at those at which its
//! operator changed: ONNX Runtime loads the gradients, and they are those of
//! the newest set.

use std::collections::BTreeSet;

use fastrand::Rng;
use tierline_engine::LoadOptions;
use tierline_graph::emit::{Attribute, node};
use tierline_graph::gradient::{backward, operators};
use tierline_graph::{DataType, Dim, Model, Tensor};

use super::cases::{Attributes, Case, ints, text};
use crate::support::{f32s, onnxruntime};

/// An operator, its sets from the oldest to the newest, and its model in each.
type Row = (&'static str, &'static [i64], fn(i64) -> Model);

fn unary(kind: &'static str, set: i64) -> Model {
    Case::new().input("x", "3 4").op_at(set, kind, &["x"], 1, vec![])
}

fn binary(kind: &'static str, set: i64) -> Model {
    Case::new().input("a", "3 4").input("b", "4").op_at(set, kind, &["a", "b"], 1, vec![])
}

/// Integers that became an input at set `moved`.
fn moved(
    kind: &'static str,
    set: i64,
    moved: i64,
    name: &'static str,
    values: &[i64],
    mut others: Attributes,
) -> Model {
    let x = Case::new().input("x", "1 4 6");
    if set < moved {
        others.push((name, ints(values.to_vec())));
        return x.op_at(set, kind, &["x"], 1, others);
    }
    x.ints(name, values).op_at(set, kind, &["x", name], 1, others)
}

fn reduction(kind: &'static str, set: i64) -> Model {
    let since = if kind == "ReduceSum" { 13 } else { 18 };
    moved(kind, set, since, "axes", &[1, -1], vec![("keepdims", Attribute::Int(0))])
}

fn window(pool: bool) -> Attributes {
    let mut attributes = vec![("strides", ints([2, 2])), ("pads", ints([1, 1, 0, 0])), ("kernel_shape", ints([3, 3]))];
    attributes.truncate(if pool { 3 } else { 2 });
    attributes
}

fn pool(kind: &'static str, set: i64, more: Attributes) -> Model {
    Case::new().input("x", "2 2 7 6").op_at(set, kind, &["x"], 1, [window(true), more].concat())
}

fn recurrent(kind: &'static str, gates: i64, set: i64) -> Model {
    let rows = 3 * gates;
    let case = Case::new().input("x", "4 3 2").input("w", &format!("1 {rows} 2")).input("r", &format!("1 {rows} 3"));
    case.op_at(set, kind, &["x", "w", "r"], 1, vec![("hidden_size", Attribute::Int(3))])
}

fn softmax(kind: &'static str, set: i64) -> Model {
    // Of the axes from 1 on as one, which newer sets say in three nodes.
    if set < 13 {
        return Case::new().input("x", "2 3 4").op_at(set, kind, &["x"], 1, vec![("axis", Attribute::Int(1))]);
    }
    Case::new()
        .input("x", "2 3 4")
        .ints("flat", &[2, 12])
        .ints("shape", &[2, 3, 4])
        .through("Reshape", &["x", "flat"], "f", vec![])
        .through(kind, &["f"], "s", vec![("axis", Attribute::Int(1))])
        .op_at(set, "Reshape", &["s", "shape"], 1, vec![])
}

fn upsampled(mode: &'static str, set: i64) -> Model {
    let scales = [1.0, 1.0, 2.0, 3.0];
    let case = Case::new().input("x", "1 2 3 4");
    match set {
        ..9 => case.op_at(
            set,
            "Upsample",
            &["x"],
            1,
            vec![("mode", text(mode)), ("scales", Attribute::Floats(scales.to_vec()))],
        ),
        9 => case.floats("s", &[4], &scales).op_at(set, "Upsample", &["x", "s"], 1, vec![("mode", text(mode))]),
        10 => case.floats("s", &[4], &scales).op_at(set, "Resize", &["x", "s"], 1, vec![("mode", text(mode))]),
        _ => {
            let attributes = vec![
                ("mode", text(mode)),
                ("coordinate_transformation_mode", text("asymmetric")),
                ("nearest_mode", text("floor")),
            ];
            let case = case.floats("roi", &[0], &[]).floats("s", &[4], &scales);
            case.op_at(set, "Resize", &["x", "roi", "s"], 1, attributes)
        }
    }
}

fn top_k(set: i64) -> Model {
    if set < 10 {
        return Case::new().input("x", "3 5").op_at(set, "TopK", &["x"], 2, vec![("k", Attribute::Int(2))]);
    }
    Case::new().input("x", "3 5").ints("k", &[2]).op_at(set, "TopK", &["x", "k"], 2, vec![])
}

fn sliced(set: i64) -> Model {
    let x = Case::new().input("x", "3 5 4");
    if set < 10 {
        let attributes = vec![("starts", ints([1, -3])), ("ends", ints([3, 4])), ("axes", ints([0, 2]))];
        return x.op_at(set, "Slice", &["x"], 1, attributes);
    }
    let x = x.ints("starts", &[1, -3]).ints("ends", &[3, 4]).ints("axes", &[0, 2]);
    x.op_at(set, "Slice", &["x", "starts", "ends", "axes"], 1, vec![])
}

fn clipped(set: i64) -> Model {
    let x = Case::new().input("x", "3 4");
    if set < 11 {
        let bounds = vec![("min", Attribute::Float(-0.7)), ("max", Attribute::Float(0.9))];
        return x.op_at(set, "Clip", &["x"], 1, bounds);
    }
    x.floats("low", &[], &[-0.7]).floats("high", &[], &[0.9]).op_at(set, "Clip", &["x", "low", "high"], 1, vec![])
}

fn normalised(set: i64) -> Model {
    let names = ["x", "scale", "bias", "mean", "variance"];
    let case = Case::new().input("x", "2 3 4").input("scale", "3").input("bias", "3");
    let case = case.floats("mean", &[3], &[0.1, 0.2, 0.3]).floats("variance", &[3], &[1.0, 0.5, 2.0]);
    case.op_at(set, "BatchNormalization", &names, 1, vec![])
}

fn scattered(set: i64) -> Model {
    let kind = if set < 11 { "Scatter" } else { "ScatterElements" };
    let case = Case::new().input("x", "3 3").input("u", "2 3").numbers("at", &[2, 3], &[0, 1, 2, 2, 0, 1]);
    case.op_at(set, kind, &["x", "at", "u"], 1, vec![])
}

fn picked(kind: &'static str, set: i64) -> Model {
    let case = Case::new().input("x", "3 4");
    let case = match kind {
        "Gather" => case.numbers("at", &[3], &[2, 0, 2]),
        "GatherND" => case.numbers("at", &[2, 2], &[0, 1, 2, 3]),
        _ => case.numbers("at", &[2, 4], &[0, 1, 2, 0, 1, 1, 0, 2]),
    };
    case.op_at(set, kind, &["x", "at"], 1, vec![])
}

/// Of numbers above zero.
fn positive(kind: &'static str, set: i64) -> Model {
    Case::new().input("x", "3 4").through("Exp", &["x"], "e", vec![]).op_at(set, kind, &["e"], 1, vec![])
}

/// Of numbers above one.
fn above_one(kind: &'static str, set: i64) -> Model {
    let case = Case::new().input("x", "3 4").floats("one", &[], &[1.0]).through("Exp", &["x"], "e", vec![]);
    case.through("Add", &["e", "one"], "t", vec![]).op_at(set, kind, &["t"], 1, vec![])
}

/// Of numbers between minus one and one.
fn small(kind: &'static str, set: i64) -> Model {
    let case = Case::new().input("x", "3 4").floats("share", &[], &[0.45]);
    case.through("Mul", &["x", "share"], "t", vec![]).op_at(set, kind, &["t"], 1, vec![])
}

/// Quantised and back by the same scale, one or one for each column.
fn rounded(scale: &[f32], set: i64) -> Model {
    let shape: &[usize] = if scale.len() == 1 { &[] } else { &[4] };
    let case = Case::new().input("x", "3 4").floats("scale", shape, scale);
    case.through("QuantizeLinear", &["x", "scale"], "q", vec![]).op_at(
        set,
        "DequantizeLinear",
        &["q", "scale"],
        1,
        vec![],
    )
}

/// The batch's own statistics, which before set 14 more outputs asked for.
fn trained(set: i64) -> Model {
    let names = ["x", "scale", "bias", "mean", "variance"];
    let case = Case::new().input("x", "4 3 2").input("scale", "3").input("bias", "3");
    let case = case.floats("mean", &[3], &[0.1, 0.2, 0.3]).floats("variance", &[3], &[1.0, 0.5, 2.0]);
    if set < 14 {
        return case.op_at(set, "BatchNormalization", &names, 5, vec![]);
    }
    case.op_at(set, "BatchNormalization", &names, 3, vec![("training_mode", Attribute::Int(1))])
}

fn raised(set: i64) -> Model {
    let case = Case::new().input("x", "3 4").input("p", "4").through("Exp", &["x"], "e", vec![]);
    case.op_at(set, "Pow", &["e", "p"], 1, vec![])
}

/// A kernel and nothing else.
fn bare(kind: &'static str, set: i64) -> Model {
    let x = Case::new().input("x", "2 2 6 5");
    if kind.ends_with("Pool") {
        return x.op_at(set, kind, &["x"], 1, vec![("kernel_shape", ints([3, 2]))]);
    }
    x.input("w", "2 2 3 2").op_at(set, kind, &["x", "w"], 1, vec![])
}

fn conv(kind: &'static str, set: i64) -> Model {
    let w = if kind == "Conv" { "4 2 3 3" } else { "2 4 3 3" };
    let case = Case::new().input("x", "2 2 6 5").input("w", w).input("b", "4");
    case.op_at(set, kind, &["x", "w", "b"], 1, window(false))
}

const ROWS: &[Row] = &[
    ("AveragePool", &[7, 10, 11, 18, 19, 22], |set| pool("AveragePool", set, vec![])),
    ("AveragePool", &[7, 10, 11, 18, 19, 22], |set| {
        pool("AveragePool", set, vec![("count_include_pad", Attribute::Int(1))])
    }),
    ("AveragePool", &[10, 11, 18, 19, 22], |set| pool("AveragePool", set, vec![("ceil_mode", Attribute::Int(1))])),
    ("MaxPool", &[7, 8, 10, 11, 12, 22], |set| pool("MaxPool", set, vec![])),
    ("GlobalAveragePool", &[7, 22], |set| {
        Case::new().input("x", "2 3 4 5").op_at(set, "GlobalAveragePool", &["x"], 1, vec![])
    }),
    ("GlobalMaxPool", &[7, 22], |set| Case::new().input("x", "2 3 4 5").op_at(set, "GlobalMaxPool", &["x"], 1, vec![])),
    ("LpPool", &[7, 11, 18, 22], |set| pool("LpPool", set, vec![])),
    ("LpPool", &[7, 11, 18, 22], |set| pool("LpPool", set, vec![("p", Attribute::Int(3))])),
    ("LpPool", &[7, 11, 18, 22], |set| bare("LpPool", set)),
    ("GlobalLpPool", &[7], |set| Case::new().input("x", "2 3 4 5").op_at(set, "GlobalLpPool", &["x"], 1, vec![])),
    ("LRN", &[7, 13], |set| {
        Case::new().input("x", "2 5 2 3").op_at(set, "LRN", &["x"], 1, vec![("size", Attribute::Int(3))])
    }),
    ("MeanVarianceNormalization", &[9, 13], |set| {
        Case::new().input("x", "2 3 2 2").op_at(set, "MeanVarianceNormalization", &["x"], 1, vec![])
    }),
    ("Conv", &[7, 11, 22], |set| conv("Conv", set)),
    ("ConvTranspose", &[7, 11, 22], |set| conv("ConvTranspose", set)),
    ("ReduceSum", &[7, 11, 13, 22], |set| reduction("ReduceSum", set)),
    ("ReduceMean", &[7, 11, 13, 18, 22], |set| reduction("ReduceMean", set)),
    ("ReduceMax", &[7, 11, 12, 13, 18, 20, 22], |set| reduction("ReduceMax", set)),
    ("ReduceMin", &[7, 11, 12, 13, 18, 20, 22], |set| reduction("ReduceMin", set)),
    ("ReduceProd", &[7, 11, 13, 18, 22], |set| reduction("ReduceProd", set)),
    ("ReduceL1", &[7, 11, 13, 18, 22], |set| reduction("ReduceL1", set)),
    ("ReduceL2", &[7, 11, 13, 18, 22], |set| reduction("ReduceL2", set)),
    ("ReduceSumSquare", &[7, 11, 13, 18, 22], |set| reduction("ReduceSumSquare", set)),
    ("ReduceLogSumExp", &[7, 11, 13, 18, 22], |set| reduction("ReduceLogSumExp", set)),
    ("Squeeze", &[7, 11, 13, 21, 23, 24, 25], |set| moved("Squeeze", set, 13, "axes", &[0], vec![])),
    ("Unsqueeze", &[7, 11, 13, 21, 23, 24, 25], |set| moved("Unsqueeze", set, 13, "axes", &[0, 2], vec![])),
    ("Split", &[7, 11, 13, 18], |set| moved("Split", set, 13, "split", &[6], vec![("axis", Attribute::Int(2))])),
    ("Split", &[7, 13, 18], |set| {
        let mut attributes = vec![("axis", Attribute::Int(1))];
        if set >= 18 {
            attributes.push(("num_outputs", Attribute::Int(2)));
        }
        Case::new().input("x", "2 4").op_at(set, "Split", &["x"], 2, attributes)
    }),
    ("Pad", &[7, 11, 13, 18, 19, 21, 23, 24, 25], |set| moved("Pad", set, 11, "pads", &[0, 1, 0, 0, 0, 2], vec![])),
    ("Pad", &[7, 11, 13, 18, 19, 21, 23, 24, 25], |set| {
        moved("Pad", set, 11, "pads", &[0, 1, 2, 0, 0, 3], vec![("mode", text("reflect"))])
    }),
    ("Slice", &[7, 10, 11, 13], sliced),
    ("Clip", &[7, 11, 12, 13], clipped),
    ("Softmax", &[7, 11, 13], |set| softmax("Softmax", set)),
    ("LogSoftmax", &[7, 11, 13], |set| softmax("LogSoftmax", set)),
    ("Resize", &[7, 9, 10, 11, 13, 18, 19], |set| upsampled("nearest", set)),
    ("Resize", &[7, 9, 10, 11, 13, 18, 19], |set| upsampled("linear", set)),
    ("TopK", &[7, 10, 11, 24], top_k),
    ("BatchNormalization", &[7, 9, 14, 15], normalised),
    ("ScatterElements", &[9, 10, 11, 13, 16, 18], scattered),
    ("Gather", &[7, 11, 13], |set| picked("Gather", set)),
    ("GatherElements", &[11, 13], |set| picked("GatherElements", set)),
    ("GatherND", &[11, 12, 13], |set| picked("GatherND", set)),
    ("LSTM", &[7, 14, 22], |set| recurrent("LSTM", 4, set)),
    ("GRU", &[7, 14, 22], |set| recurrent("GRU", 3, set)),
    ("RNN", &[7, 14, 22], |set| recurrent("RNN", 1, set)),
    ("Add", &[7, 13, 14], |set| binary("Add", set)),
    ("Sub", &[7, 13, 14], |set| binary("Sub", set)),
    ("Mul", &[7, 13, 14], |set| binary("Mul", set)),
    ("Div", &[7, 13, 14], |set| binary("Div", set)),
    ("Max", &[7, 8, 12, 13], |set| binary("Max", set)),
    ("Min", &[7, 8, 12, 13], |set| binary("Min", set)),
    ("Sum", &[7, 8, 13], |set| binary("Sum", set)),
    ("Mean", &[7, 8, 13], |set| binary("Mean", set)),
    ("PRelu", &[7, 9, 16], |set| binary("PRelu", set)),
    ("MatMul", &[7, 9, 13], |set| {
        Case::new().input("a", "3 4").input("b", "4 2").op_at(set, "MatMul", &["a", "b"], 1, vec![])
    }),
    ("Gemm", &[7, 9, 11, 13], |set| {
        let case = Case::new().input("a", "3 4").input("b", "4 2").input("c", "2");
        case.op_at(set, "Gemm", &["a", "b", "c"], 1, vec![("alpha", Attribute::Float(0.5))])
    }),
    ("Relu", &[7, 13, 14], |set| unary("Relu", set)),
    ("LeakyRelu", &[7, 16], |set| unary("LeakyRelu", set)),
    ("Elu", &[7, 22], |set| unary("Elu", set)),
    ("Selu", &[7, 22], |set| unary("Selu", set)),
    ("Sigmoid", &[7, 13], |set| unary("Sigmoid", set)),
    ("HardSigmoid", &[7, 22], |set| unary("HardSigmoid", set)),
    ("Tanh", &[7, 13], |set| unary("Tanh", set)),
    ("Softplus", &[7, 22], |set| unary("Softplus", set)),
    ("Softsign", &[7, 22], |set| unary("Softsign", set)),
    ("Exp", &[7, 13], |set| unary("Exp", set)),
    ("Abs", &[7, 13], |set| unary("Abs", set)),
    ("Neg", &[7, 13], |set| unary("Neg", set)),
    ("Reciprocal", &[7, 13], |set| unary("Reciprocal", set)),
    ("Sin", &[7, 22], |set| unary("Sin", set)),
    ("Cos", &[7, 22], |set| unary("Cos", set)),
    ("Tan", &[7, 22], |set| unary("Tan", set)),
    ("Atan", &[7, 22], |set| unary("Atan", set)),
    ("Sinh", &[9, 22], |set| unary("Sinh", set)),
    ("Cosh", &[9, 22], |set| unary("Cosh", set)),
    ("Asinh", &[9, 22], |set| unary("Asinh", set)),
    ("Erf", &[9, 13], |set| unary("Erf", set)),
    ("Identity", &[7, 13, 14, 16, 19, 21, 23, 24, 25], |set| unary("Identity", set)),
    ("Flatten", &[7, 9, 11, 13, 21, 23, 24, 25], |set| {
        Case::new().input("x", "2 3 4").op_at(set, "Flatten", &["x"], 1, vec![])
    }),
    ("Transpose", &[7, 13, 21, 23, 24, 25], |set| unary("Transpose", set)),
    ("Reshape", &[7, 13, 14, 19, 21, 23, 24, 25], |set| {
        Case::new().input("x", "3 4").ints("s", &[2, -1]).op_at(set, "Reshape", &["x", "s"], 1, vec![])
    }),
    ("Expand", &[8, 13], |set| {
        Case::new().input("x", "3 1").ints("s", &[3, 4]).op_at(set, "Expand", &["x", "s"], 1, vec![])
    }),
    ("Tile", &[7, 13], |set| {
        Case::new().input("x", "3 2").ints("r", &[1, 2]).op_at(set, "Tile", &["x", "r"], 1, vec![])
    }),
    ("Concat", &[7, 11, 13], |set| {
        let case = Case::new().input("a", "3 2").input("b", "3 4");
        case.op_at(set, "Concat", &["a", "b"], 1, vec![("axis", Attribute::Int(1))])
    }),
    ("DepthToSpace", &[7, 11, 13], |set| {
        Case::new().input("x", "1 8 2 3").op_at(set, "DepthToSpace", &["x"], 1, vec![("blocksize", Attribute::Int(2))])
    }),
    ("SpaceToDepth", &[7, 13], |set| {
        Case::new().input("x", "1 2 4 6").op_at(set, "SpaceToDepth", &["x"], 1, vec![("blocksize", Attribute::Int(2))])
    }),
    ("InstanceNormalization", &[7, 22], |set| {
        let case = Case::new().input("x", "2 3 5").input("scale", "3").input("bias", "3");
        case.op_at(set, "InstanceNormalization", &["x", "scale", "bias"], 1, vec![])
    }),
    ("LpNormalization", &[7, 22], |set| unary("LpNormalization", set)),
    ("CumSum", &[11, 14], |set| {
        Case::new().input("x", "3 4").numbers("axis", &[], &[1]).op_at(set, "CumSum", &["x", "axis"], 1, vec![])
    }),
    ("ReduceSum", &[7, 11, 13], |set| unary("ReduceSum", set)),
    ("ReduceMean", &[7, 11, 13, 18], |set| unary("ReduceMean", set)),
    ("ReduceMax", &[7, 11, 12, 13, 18, 20], |set| unary("ReduceMax", set)),
    ("ReduceMin", &[7, 11, 12, 13, 18, 20], |set| unary("ReduceMin", set)),
    ("ReduceProd", &[7, 11, 13, 18], |set| unary("ReduceProd", set)),
    ("ReduceL1", &[7, 11, 13, 18], |set| unary("ReduceL1", set)),
    ("ReduceL2", &[7, 11, 13, 18], |set| unary("ReduceL2", set)),
    ("ReduceSumSquare", &[7, 11, 13, 18], |set| unary("ReduceSumSquare", set)),
    ("ReduceLogSumExp", &[7, 11, 13, 18], |set| unary("ReduceLogSumExp", set)),
    ("ReduceLogSum", &[7, 11, 13, 18, 22], |set| positive("ReduceLogSum", set)),
    ("Softmax", &[7, 11, 13], |set| unary("Softmax", set)),
    ("LogSoftmax", &[7, 11, 13], |set| unary("LogSoftmax", set)),
    ("Clip", &[7, 11, 12, 13], |set| unary("Clip", set)),
    ("AveragePool", &[7, 10, 11, 19, 22], |set| bare("AveragePool", set)),
    ("MaxPool", &[7, 8, 10, 11, 12, 22], |set| bare("MaxPool", set)),
    ("Conv", &[7, 11, 22], |set| bare("Conv", set)),
    ("ConvTranspose", &[7, 11, 22], |set| bare("ConvTranspose", set)),
    ("Gemm", &[11, 13], |set| {
        Case::new().input("a", "3 4").input("b", "4 2").op_at(set, "Gemm", &["a", "b"], 1, vec![])
    }),
    ("Slice", &[10, 11, 13], |set| {
        let case = Case::new().input("x", "3 5 4").ints("starts", &[1, -3]).ints("ends", &[3, 4]);
        case.op_at(set, "Slice", &["x", "starts", "ends"], 1, vec![])
    }),
    ("Resize", &[11, 13, 18, 19], |set| {
        let case = Case::new().input("x", "1 2 3 4").floats("roi", &[0], &[]);
        case.floats("s", &[4], &[1.0, 1.0, 2.0, 1.5]).op_at(set, "Resize", &["x", "roi", "s"], 1, vec![])
    }),
    ("BatchNormalization", &[7, 9, 14, 15], trained),
    ("GroupNormalization", &[21], |set| {
        let case = Case::new().input("x", "2 4 3").input("scale", "4").input("bias", "4");
        let groups = vec![("num_groups", Attribute::Int(2))];
        case.op_at(set, "GroupNormalization", &["x", "scale", "bias"], 1, groups)
    }),
    ("LayerNormalization", &[17], |set| {
        let case = Case::new().input("x", "2 3 4").input("scale", "4").input("bias", "4");
        case.op_at(set, "LayerNormalization", &["x", "scale", "bias"], 1, vec![])
    }),
    ("RMSNormalization", &[23], |set| {
        let case = Case::new().input("x", "2 3 4").input("scale", "4");
        case.op_at(set, "RMSNormalization", &["x", "scale"], 1, vec![])
    }),
    ("Acos", &[7, 22], |set| small("Acos", set)),
    ("Asin", &[7, 22], |set| small("Asin", set)),
    ("Atanh", &[9, 22], |set| small("Atanh", set)),
    ("Acosh", &[9, 22], |set| above_one("Acosh", set)),
    ("Log", &[7, 13], |set| positive("Log", set)),
    ("Sqrt", &[7, 13], |set| positive("Sqrt", set)),
    ("Pow", &[7, 12, 13, 15], raised),
    ("Pow", &[12, 13, 15], |set| {
        Case::new().input("x", "3 4").ints("two", &[2]).op_at(set, "Pow", &["x", "two"], 1, vec![])
    }),
    ("Mod", &[10, 13], |set| {
        let case = Case::new().input("x", "3 4").floats("by", &[], &[0.7]);
        case.op_at(set, "Mod", &["x", "by"], 1, vec![("fmod", Attribute::Int(1))])
    }),
    ("Cast", &[7, 9, 13, 19, 21, 23, 24, 25], |set| {
        let case = Case::new().input("x", "3 4").through("Cast", &["x"], "d", vec![("to", Attribute::Int(11))]);
        case.op_at(set, "Cast", &["d"], 1, vec![("to", Attribute::Int(1))])
    }),
    ("CastLike", &[15, 19, 21, 23, 24, 25], |set| {
        let case = Case::new().input("x", "3 4").through("Cast", &["x"], "d", vec![("to", Attribute::Int(11))]);
        case.op_at(set, "CastLike", &["d", "x"], 1, vec![])
    }),
    ("Celu", &[12], |set| unary("Celu", set)),
    ("Gelu", &[20], |set| unary("Gelu", set)),
    ("HardSwish", &[14, 22], |set| unary("HardSwish", set)),
    ("Mish", &[18, 22], |set| unary("Mish", set)),
    ("Swish", &[24], |set| unary("Swish", set)),
    ("ThresholdedRelu", &[10, 22], |set| unary("ThresholdedRelu", set)),
    ("Trilu", &[14], |set| unary("Trilu", set)),
    ("Einsum", &[12], |set| {
        let equation = vec![("equation", text("ij,jk->ik"))];
        Case::new().input("a", "3 4").input("b", "4 2").op_at(set, "Einsum", &["a", "b"], 1, equation)
    }),
    ("Where", &[9, 16], |set| {
        let case = Case::new().input("a", "3 4").input("b", "4").through("Greater", &["a", "b"], "c", vec![]);
        case.op_at(set, "Where", &["c", "a", "b"], 1, vec![])
    }),
    ("ScatterND", &[11, 13, 16, 18], |set| {
        let case = Case::new().input("x", "3 4").input("u", "2 4").numbers("at", &[2, 1], &[2, 0]);
        case.op_at(set, "ScatterND", &["x", "at", "u"], 1, vec![])
    }),
    ("QuantizeLinear", &[10, 13, 19, 21, 23, 24, 25], |set| rounded(&[0.006], set)),
    ("DequantizeLinear", &[13, 19, 21, 23, 24, 25], |set| rounded(&[0.006, 0.1, 0.004, 1.0], set)),
    ("DynamicQuantizeLinear", &[11], |set| {
        let node = node("DynamicQuantizeLinear", &["x"], &["q", "scale", "zero"], &[]);
        Case::new().input("x", "3 4").node(node).op_at(set, "DequantizeLinear", &["q", "scale", "zero"], 1, vec![])
    }),
];

fn random(shape: &[usize], rng: &mut Rng) -> Tensor {
    // Apart from each other, so that nothing is equal by chance.
    let count = shape.iter().product::<usize>();
    let mut values: Vec<f32> = (0..count).map(|i| (i as f32 + 0.5) / count as f32 * 4.0 - 2.03).collect();
    rng.shuffle(&mut values);
    f32s(shape, &values)
}

#[test]
fn every_rule_speaks_the_oldest_operator_set_it_claims() {
    let tested: BTreeSet<&str> = ROWS.iter().map(|row| row.0).collect();
    let without: Vec<&str> = operators().into_iter().filter(|rule| !tested.contains(rule)).collect();
    assert!(without.is_empty(), "rules without a row: {without:?}");
    let Some(engine) = onnxruntime() else { return };
    let mut wrong = Vec::new();
    for (name, sets, model) in ROWS {
        let mut found: Vec<(i64, Vec<Tensor>)> = Vec::new();
        for &set in sets.iter().rev() {
            let forward = model(set);
            let float = |v: &tierline_graph::ValueInfo| v.dtype == Some(DataType::F32);
            let inputs: Vec<_> = forward.inputs().into_iter().filter(float).collect();
            let wanted: Vec<&str> = inputs.iter().map(|v| v.name.as_str()).collect();
            let made = match backward(&forward, &["y"], &wanted) {
                Ok(made) => made,
                Err(error) => {
                    wrong.push(format!("{name} {set}: {error}"));
                    continue;
                }
            };
            let mut rng = Rng::with_seed(3);
            let sizes = |v: &tierline_graph::ValueInfo| -> Vec<usize> {
                v.shape.iter().flatten().map(|d| d.known().map_or(2, |n| n as usize)).collect()
            };
            let mut given: Vec<(String, Tensor)> =
                inputs.iter().map(|v| (v.name.clone(), random(&sizes(v), &mut rng))).collect();
            let types = tierline_graph::infer_types(&forward).unwrap();
            let y = types.get("y").expect("it makes y");
            assert!(y.shape.iter().flatten().all(|d| matches!(d, Dim::Known(_))), "{name} {set}: {y:?}");
            given.push((made.upstream[0].1.clone(), random(&sizes(y), &mut rng)));
            let given: Vec<(&str, &Tensor)> = given.iter().map(|(n, t)| (n.as_str(), t)).collect();
            let session = engine.load(&made.model, &LoadOptions::with_threads(1));
            match session.and_then(|mut session| session.run(&given)) {
                Ok(all) => found.push((set, all[forward.outputs().len()..].to_vec())),
                Err(error) => wrong.push(format!("{name} {set}: {error}")),
            }
        }
        let Some(((newest, expected), older)) = found.split_first() else { continue };
        let close = |a: &Tensor, b: &Tensor| match (a.elements(), b.elements()) {
            (tierline_graph::Elements::F32(a), tierline_graph::Elements::F32(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1.0))
            }
            _ => false,
        };
        for (set, gradients) in older {
            let same = gradients.len() == expected.len() && gradients.iter().zip(expected).all(|(a, b)| close(a, b));
            if !same {
                wrong.push(format!("{name} {set}: {gradients:?}, not {expected:?} as in set {newest}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

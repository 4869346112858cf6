//! Classical machine learning (`ai.onnx.ml`) and optimiser steps
//! (`ai.onnx.preview.training`).

use crate::tensor::DataType::{self, F32, I64, String};
use crate::types::Dim;

use super::dims::known;
use super::elementwise::same;
use super::op::{Op, Outputs, Rule, one};
use super::value::Value;

pub(super) const RULES: &[(&str, Rule)] = &[
    ("ArrayFeatureExtractor", extract),
    ("Binarizer", same),
    ("CastMap", cast_map),
    ("CategoryMapper", categories),
    ("DictVectorizer", vectorize),
    ("FeatureVectorizer", features),
    ("Imputer", same),
    ("LabelEncoder", labels),
    ("LinearClassifier", classify),
    ("LinearRegressor", regress),
    ("Normalizer", floats),
    ("OneHotEncoder", one_hot),
    ("Scaler", floats),
    ("SVMClassifier", classify),
    ("SVMRegressor", regress),
    ("TreeEnsemble", regress),
    ("TreeEnsembleClassifier", classify),
    ("TreeEnsembleRegressor", regress),
];

pub(super) const TRAINING: &[(&str, Rule)] =
    &[("Adagrad", step), ("Adam", step), ("Momentum", step), ("Gradient", gradient)];

fn extract(op: &Op) -> Outputs {
    let picked = op.shape(1).and_then(|s| s.last().cloned()).unwrap_or(Dim::Unknown);
    let shape = op.shape(0).and_then(|s| match s {
        [] => None,
        [_] => Some(vec![known(1), picked]),
        [lead @ .., _] => Some([lead, &[picked]].concat()),
    });
    one(Value::new(op.dtype(0), shape))
}

fn cast_map(op: &Op) -> Outputs {
    let dtype = match op.text("cast_to") {
        Some("TO_STRING") => String,
        Some("TO_INT64") => I64,
        _ => F32,
    };
    one(Value::typed(dtype, None))
}

fn categories(op: &Op) -> Outputs {
    let dtype = op.dtype(0).map(|d| if d == String { I64 } else { String });
    one(Value::new(dtype, op.like(0).shape))
}

fn vectorize(_: &Op) -> Outputs {
    Ok(Vec::new())
}

fn features(op: &Op) -> Outputs {
    let widths =
        op.ints("inputdimensions").and_then(|w| w.iter().try_fold(0u64, |n, d| n.checked_add(u64::try_from(*d).ok()?)));
    let rows = op.shape(0).and_then(|s| s.first().cloned()).unwrap_or(Dim::Unknown);
    one(Value::typed(F32, Some(vec![rows, widths.map_or(Dim::Unknown, known)])))
}

fn labels(op: &Op) -> Outputs {
    let dtype = [
        ("values_strings", String),
        ("values_int64s", I64),
        ("values_floats", F32),
        // Before version 2 there was one list of strings, used both ways.
        ("classes_strings", if op.dtype(0) == Some(String) { I64 } else { String }),
    ];
    let by_list = dtype.into_iter().find(|(name, _)| op.attribute(name).is_some()).map(|(_, d)| d);
    let by_tensor = || DataType::from_onnx(op.tensor("values_tensor")?.data_type());
    one(Value::new(by_list.or_else(by_tensor), op.like(0).shape))
}

fn rows(op: &Op) -> Dim {
    match op.shape(0) {
        Some([_]) => known(1),
        Some([first, ..]) => first.clone(),
        _ => Dim::Unknown,
    }
}

fn classify(op: &Op) -> Outputs {
    let strings = ["classlabels_strings", "classlabels_string"].iter().find_map(|n| op.attribute(n));
    let strings = strings.map(|a| a.strings.len()).filter(|n| *n > 0);
    let numbers = ["classlabels_ints", "classlabels_int64s"].iter().find_map(|n| op.ints(n)).map(<[i64]>::len);
    let dtype = if strings.is_some() { String } else { I64 };
    // Of two classes, engines may score one or both.
    let classes = strings.or(numbers).filter(|n| *n > 2).map_or(Dim::Unknown, |n| known(n as u64));
    Ok(vec![Value::typed(dtype, Some(vec![rows(op)])), Value::typed(F32, Some(vec![rows(op), classes]))])
}

fn regress(op: &Op) -> Outputs {
    let targets = match op.kind() {
        "SVMRegressor" => Some(1),
        "LinearRegressor" => op.int("targets").or(Some(1)),
        _ => op.int("n_targets"),
    };
    let targets = targets.and_then(|n| u64::try_from(n).ok()).map_or(Dim::Unknown, known);
    let dtype = if op.kind() == "TreeEnsemble" { op.dtype(0) } else { Some(F32) };
    one(Value::new(dtype, Some(vec![rows(op), targets])))
}

fn floats(op: &Op) -> Outputs {
    one(Value::typed(F32, op.like(0).shape))
}

fn one_hot(op: &Op) -> Outputs {
    let strings = op.attribute("cats_strings").map(|a| a.strings.len()).filter(|n| *n > 0);
    let classes = strings.or(op.ints("cats_int64s").map(<[i64]>::len)).map_or(Dim::Unknown, |n| known(n as u64));
    one(Value::typed(F32, op.shape(0).map(|s| [s, &[classes]].concat())))
}

/// Inputs: rate, count, then tensors, gradients and states, a list of each;
/// outputs: new tensors and states, a list of each.
fn step(op: &Op) -> Outputs {
    let lists = if op.kind() == "Adam" { 4 } else { 3 };
    let count = op.inputs.len().saturating_sub(2) / lists;
    let tensors = 2..2 + count;
    let states = 2 + 2 * count..2 + lists * count;
    Ok(tensors.chain(states).map(|i| op.like(i)).collect())
}

fn gradient(op: &Op) -> Outputs {
    let count = op.attribute("xs").map_or(0, |a| a.strings.len());
    Ok((0..count).map(|i| op.like(i)).collect())
}

//! Real models: every tensor's inferred type against what ONNX Runtime
//! computed for it, and costs against published numbers.
//!
//! A fixture has a line per tensor, `name dtype axes`, inputs first; it was
//! written by running the model with every tensor as an output.

use std::collections::BTreeMap;

use tierline_graph::cost::{cost, parameters, total_macs};
use tierline_graph::{Dim, infer_types, infer_types_with};

use crate::assets::model;

struct Expected {
    inputs: BTreeMap<String, Vec<u64>>,
    tensors: Vec<(String, String, Vec<u64>)>,
}

fn expected(fixture: &str) -> Expected {
    let mut expected = Expected { inputs: BTreeMap::new(), tensors: Vec::new() };
    for line in fixture.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let axes = |text: &str| text.split(',').filter(|t| *t != "-").map(|t| t.parse().expect("an axis")).collect();
        match words[..] {
            ["input", name, _, shape] => drop(expected.inputs.insert(name.to_owned(), axes(shape))),
            [name, dtype, shape] => expected.tensors.push((name.to_owned(), dtype.to_owned(), axes(shape))),
            _ => panic!("not a fixture line: {line}"),
        }
    }
    expected
}

/// Concrete inputs: all known and equal. Free inputs: never contradicting.
fn check(name: &str, fixture: &str) {
    let Some(model) = model(name) else { return };
    let expected = expected(fixture);
    let concrete = infer_types_with(&model, &expected.inputs).unwrap_or_else(|e| panic!("{name}: {e}"));
    let free = infer_types(&model).unwrap_or_else(|e| panic!("{name}: {e}"));
    for (tensor, dtype, shape) in &expected.tensors {
        let inferred = concrete.get(tensor).expect("every output is listed");
        assert_eq!(inferred.dtype.map(|d| d.to_string()).as_ref(), Some(dtype), "{name}: {tensor}");
        let dims: Vec<Dim> = shape.iter().map(|n| Dim::Known(*n)).collect();
        assert_eq!(inferred.shape.as_ref(), Some(&dims), "{name}: {tensor}");

        let general = free.get(tensor).and_then(|v| v.shape.as_ref()).expect("the rank is known");
        assert_eq!(general.len(), shape.len(), "{name}: {tensor}");
        for (d, n) in general.iter().zip(shape) {
            assert!(d.known().is_none_or(|d| d == *n), "{name}: {tensor}: {d} is not {n}");
        }
    }
}

macro_rules! real {
    ($($test:ident $name:literal)*) => {
        $(#[test] fn $test() { check($name, include_str!(concat!("fixtures/", $name, ".txt"))); })*
    };
}

real! {
    pp_ocr_detection "ppocr-det"
    pp_ocr_recognition "ppocr-rec"
    pp_ocr_direction "ppocr-cls"
    squeezenet "light-squeezenet"
    resnet50 "light-resnet50"
    shufflenet "light-shufflenet"
    densenet121 "light-densenet121"
}

#[test]
fn free_axes_stay_symbols() {
    let Some(model) = model("ppocr-det") else { return };
    let types = infer_types(&model).unwrap();
    let batch = Dim::Symbol("p2o.DynamicDimension.0".to_owned());
    let convolutions = model.graph().node.iter().filter(|n| n.op_type() == "Conv");
    for conv in convolutions {
        let shape = types.get(&conv.output[0]).and_then(|v| v.shape.clone()).unwrap();
        assert_eq!(shape[0], batch, "{}", conv.name());
        assert!(shape[1].known().is_some(), "{}", conv.name());
    }
}

/// Multiply-adds and parameters in millions, published for these networks.
#[test]
fn costs_match_published_numbers() {
    let published = [
        // He et al., 2015, in torchvision's table: 4.09 GMACs, 25.6 M parameters.
        ("light-resnet50", 4_090.0, 25.6),
        // Simonyan and Zisserman, 2014: 19.6 GMACs, 143.7 M.
        ("light-vgg19", 19_632.0, 143.7),
        // Iandola et al., 2016 (version 1.1): 0.35 GMACs, 1.24 M.
        ("light-squeezenet", 350.0, 1.24),
        // Huang et al., 2016: 2.83 GMACs, 7.98 M and 0.17 M running statistics.
        ("light-densenet121", 2_830.0, 8.15),
    ];
    for (name, macs, millions) in published {
        let Some(model) = model(name) else { return };
        let types = infer_types(&model).unwrap();
        let costs = cost(&model, &types);
        let total = total_macs(&costs).expect("all shapes are known") as f64 / 1e6;
        let parameters = parameters(&model);
        println!("{name}: {total:.1} M multiply-adds, {parameters} parameters");
        assert!((total / macs - 1.0).abs() < 0.02, "{name}: {total} M multiply-adds, published {macs}");
        let ratio = parameters as f64 / 1e6 / millions;
        assert!((ratio - 1.0).abs() < 0.02, "{name}: {parameters} parameters, published {millions} M");
        assert_eq!(costs.iter().map(|c| c.parameters).sum::<u64>(), parameters);
        assert!(costs.iter().all(|c| c.bytes_read.is_some() && c.bytes_written.is_some()), "{name}");
    }
}

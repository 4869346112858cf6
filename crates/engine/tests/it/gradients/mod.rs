//! Every gradient rule against finite differences in double precision, on the
//! ONNX project's operator tests and on random models.

mod bodies;
mod cases;
mod edges;
mod mutations;
mod sets;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use protobuf::Message;
use serde::{Deserialize, Serialize};
use tierline_engine::LoadOptions;
use tierline_graph::gradient::{Backward, GradientError, backward};
use tierline_graph::onnx::TensorProto;
use tierline_graph::{DataType, Dim, Model, Tensor};

use crate::support::{asset, engines, f32s};

/// How far a slope may be from the difference quotient, relatively.
const SLOPE_MAX: f64 = 2e-4;

/// How far the engine's f32 gradients may be from the reference in f64.
const ENGINE_MAX: f64 = 2e-4;

#[derive(Serialize)]
pub struct Case {
    name: String,
    forward: PathBuf,
    backward: PathBuf,
    upstream: Vec<(String, String)>,
    gradients: Vec<(String, String)>,
    data: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Verdict {
    name: String,
    slope: Option<f64>,
    engine: Option<f64>,
    error: Option<String>,
}

/// The case of a model whose floating-point inputs are all differentiated.
fn case(folder: &Path, name: &str, model: &Model) -> Result<Option<Case>, GradientError> {
    let float = |v: &tierline_graph::ValueInfo| v.dtype.is_some_and(|d| d.is_float());
    let inputs: Vec<String> = model.inputs().into_iter().filter(float).map(|v| v.name).collect();
    let outputs: Vec<String> = model.outputs().into_iter().filter(float).map(|v| v.name).collect();
    if inputs.is_empty() || outputs.is_empty() {
        return Ok(None);
    }
    // Of several outputs the first: rules say which of the others they take.
    let given = [outputs[0].as_str()];
    let mut wanted: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let made = loop {
        match backward(model, &given, &wanted) {
            Ok(made) => break made,
            Err(GradientError::Unconnected { tensor }) if wanted.len() > 1 => wanted.retain(|w| *w != tensor),
            Err(GradientError::Unconnected { .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
    };
    Ok(Some(saved(folder, name, model, made)))
}

fn saved(folder: &Path, name: &str, model: &Model, made: Backward) -> Case {
    let [forward, backward] =
        ["forward", "backward"].map(|what| folder.join(format!("{}.{what}.onnx", name.replace('/', "_"))));
    model.save(&forward).unwrap();
    made.model.save(&backward).unwrap();
    Case { name: name.to_owned(), forward, backward, upstream: made.upstream, gradients: made.gradients, data: None }
}

/// What the reference says of the cases, by name: an empty text for those
/// that agree. `None`, said aloud, where there is no Python.
fn judged(cases: &[Case]) -> Option<BTreeMap<String, String>> {
    let Some(python) = std::env::var_os("TIERLINE_PYTHON") else {
        eprintln!("skipped: TIERLINE_PYTHON is not set; run cargo xtask test");
        return None;
    };
    let mut child = Command::new(python)
        .args(["-c", include_str!("reference.py")])
        .env("OMP_NUM_THREADS", "1")
        .env("OPENBLAS_NUM_THREADS", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python starts");
    let lines: String = cases.iter().map(|c| serde_json::to_string(c).unwrap() + "\n").collect();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().expect("Python reads the cases");
    assert!(output.status.success(), "the reference failed");
    let mut said = BTreeMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let verdict: Verdict = serde_json::from_str(line).unwrap();
        // What isn't a number is too far as well.
        let far = |distance: f64, max: f64| distance.is_nan() || distance > max;
        let fault = match (verdict.error, verdict.slope, verdict.engine) {
            (Some(error), ..) => error,
            (_, Some(slope), _) if far(slope, SLOPE_MAX) => format!("the slope is off by {slope:.1e}"),
            (_, _, Some(engine)) if far(engine, ENGINE_MAX) => format!("the engine is off by {engine:.1e}"),
            _ => String::new(),
        };
        said.insert(verdict.name, fault);
    }
    assert_eq!(said.len(), cases.len(), "the reference answers every case");
    Some(said)
}

/// The model with inputs that say what to do, such as axes or bounds, made
/// the constants that they are in real models.
fn baked(model: &Model, data: &Path) -> Model {
    let mut proto = model.proto().clone();
    let graph = proto.graph.as_mut().unwrap();
    let node = &graph.node[0];
    let says = |name: &str| {
        let position = node.input.iter().position(|i| i == name).unwrap_or(0);
        matches!((node.op_type(), position), ("Resize" | "Clip" | "Pad", 1..) | ("Dropout", 1))
    };
    let mut kept = Vec::new();
    for (position, input) in std::mem::take(&mut graph.input).into_iter().enumerate() {
        let dtype = DataType::from_onnx(input.type_.tensor_type().elem_type());
        if dtype.is_some_and(|d| d.is_float()) && !says(input.name()) {
            kept.push((position, input));
            continue;
        }
        let bytes = std::fs::read(data.join(format!("input_{position}.pb")));
        let tensor = bytes.ok().and_then(|b| TensorProto::parse_from_bytes(&b).ok());
        match tensor {
            Some(mut tensor) => {
                tensor.name = Some(input.name().to_owned());
                graph.initializer.push(tensor);
            }
            None => kept.push((position, input)),
        }
    }
    graph.input = kept.into_iter().map(|(_, input)| input).collect();
    Model::from_proto(proto).unwrap_or_else(|_| model.clone())
}

/// Operator tests of the ONNX project on which a rule stands, or is known not
/// to; the list may only shrink.
#[test]
fn rules_agree_with_finite_differences_on_the_operator_tests() {
    let Some(folder) = asset("onnx-node-tests") else { return };
    let temporary = tempfile::tempdir().unwrap();
    let rules: BTreeSet<&str> = tierline_graph::gradient::operators().into_iter().collect();
    let mut cases = Vec::new();
    let mut refused: BTreeMap<String, String> = BTreeMap::new();
    let mut tested: BTreeSet<String> = BTreeSet::new();
    let mut names: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    for path in names {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Ok(model) = Model::load(&path.join("model.onnx")) else { continue };
        let narrow = |v: &tierline_graph::ValueInfo| matches!(v.dtype, Some(DataType::F16 | DataType::BF16));
        if model.inputs().iter().chain(&model.outputs()).any(narrow) {
            // Double precision can't be had of half.
            continue;
        }
        let model = baked(&model, &path.join("test_data_set_0"));
        if !model.graph().node.iter().any(|n| rules.contains(n.op_type())) {
            continue;
        }
        match case(temporary.path(), &name, &model) {
            Ok(Some(case)) => {
                tested.extend(model.graph().node.iter().map(|n| n.op_type().to_owned()));
                cases.push(Case { data: Some(path.join("test_data_set_0")), ..case });
            }
            Ok(None) => {}
            Err(error) => drop(refused.insert(name, error.to_string())),
        }
    }
    let Some(said) = judged(&cases) else { return };
    let untested: Vec<&&str> = rules.iter().filter(|r| !tested.contains(**r)).collect();
    let wrong: BTreeMap<&String, &String> = said.iter().filter(|(_, fault)| !fault.is_empty()).collect();
    eprintln!("{} cases, {} agree, {} refused", said.len(), said.len() - wrong.len(), refused.len());
    let mut failed: BTreeMap<&str, &str> = refused.iter().map(|(name, e)| (name.as_str(), e.as_str())).collect();
    failed.extend(wrong.iter().map(|(name, e)| (name.as_str(), e.as_str())));
    let known: Vec<&str> = include_str!("known.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    let is = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    let mended: Vec<&&str> = known.iter().filter(|k| !failed.keys().any(|name| is(k, name))).collect();
    let new: Vec<_> = failed.iter().filter(|(name, _)| !known.iter().any(|k| is(k, name))).collect();
    assert!(new.is_empty(), "these fail and are not in known.txt: {new:#?}");
    assert!(mended.is_empty(), "these work now; take them out of known.txt: {mended:?}");
    assert!(untested.iter().all(|r| UNTESTED.contains(r)), "rules without an operator test: {untested:?}");
}

/// Rules without an operator test in single precision; random models have
/// them.
const UNTESTED: &[&str] = &["DequantizeLinear", "DynamicQuantizeLinear", "GlobalLpPool", "Trilu"];

/// Random models of every kind of operator whose rule looks at sizes.
#[test]
fn rules_agree_with_finite_differences_on_random_models() {
    let temporary = tempfile::tempdir().unwrap();
    let mut cases = Vec::new();
    for (name, model) in cases::random(1) {
        match case(temporary.path(), &name, &model) {
            Ok(Some(case)) => cases.push(case),
            Ok(None) => panic!("{name}: nothing to differentiate"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
    let Some(said) = judged(&cases) else { return };
    let wrong: BTreeMap<_, _> = said.iter().filter(|(_, fault)| !fault.is_empty()).collect();
    assert!(wrong.is_empty(), "of {} random models {} are wrong: {wrong:#?}", said.len(), wrong.len());
}

/// The gradient alone of a model of one input, of ones.
fn of_ones(model: &Model, shape: &[usize], out: &[usize]) -> Vec<f32> {
    let made = backward(model, &["y"], &["x"]).unwrap();
    let mut proto = made.model.proto().clone();
    // What only the forward pass needs isn't computed.
    proto.graph.as_mut().unwrap().output.retain(|o| o.name() == made.gradients[0].1);
    let alone = Model::from_proto(proto).unwrap();
    let [x, dy] = [shape, out].map(|shape| f32s(shape, &vec![1.0; shape.iter().product()]));
    let mut session = tierline_engine::rten().load(&alone, &LoadOptions::with_threads(1)).unwrap();
    let found = session.run(&[("x", &x), (made.upstream[0].1.as_str(), &dy)]).unwrap();
    let tierline_graph::Elements::F32(values) = found[0].elements() else { panic!("it is of f32") };
    values.clone()
}

#[test]
fn long_axes_take_no_table_of_all_places() {
    let resized = |from: usize, scale: f32, mode: &str| {
        let attributes = vec![("mode", cases::text(mode))];
        let case = cases::Case::new().input("x", &format!("1 1 {from}")).floats("scales", &[3], &[1.0, 1.0, scale]);
        case.op("Resize", &["x", "", "scales"], 1, attributes)
    };
    for (from, scale, mode, inside) in
        [(160_000, 2.0, "linear", 2.0), (160_000, 2.0, "nearest", 2.0), (320_000, 0.5, "linear", 0.5)]
    {
        let to = (from as f32 * scale) as usize;
        let found = of_ones(&resized(from, scale, mode), &[1, 1, from], &[1, 1, to]);
        assert_eq!(found.iter().map(|&x| f64::from(x)).sum::<f64>(), to as f64, "{mode} {scale}");
        assert!(found[9..from - 9].iter().all(|&x| x == inside), "{mode} {scale}");
    }
    let far = backward(&resized(1 << 20, 2048.0, "linear"), &["y"], &["x"]).unwrap_err().to_string();
    assert!(far.contains("from 1 to 4194304 is differentiated"), "{far}");
}

/// There and back as often as it takes, as NumPy pads.
#[test]
fn reflections_may_be_wider_than_the_axis() {
    let padded = |size: usize, before: i64, behind: i64| {
        let case = cases::Case::new().input("x", &size.to_string()).ints("pads", &[before, behind]);
        let model = case.op("Pad", &["x", "pads"], 1, vec![("mode", cases::text("reflect"))]);
        of_ones(&model, &[size], &[size + (before + behind) as usize])
    };
    // np.pad([0, 1, 2], (5, 4), "reflect") is 1 0 1 2 1 0 1 2 1 0 1 2.
    assert_eq!(padded(3, 2, 2), [2.0, 3.0, 2.0]);
    assert_eq!(padded(3, 5, 4), [3.0, 6.0, 3.0]);
    assert_eq!(padded(2, 3, 0), [2.0, 3.0]);
    assert_eq!(padded(1, 2, 3), [6.0]);
}

/// Pools are differentiated in nodes that every engine has.
#[test]
fn gradients_of_pools_are_the_same_on_every_engine() {
    let [rten, onnxruntime] = &engines()[..] else { return };
    let mut random = fastrand::Rng::with_seed(9);
    let mut compared = 0;
    for (name, model) in cases::random(2).into_iter().filter(|(name, _)| name.starts_with("max_pool")) {
        let both = backward(&model, &["y"], &["x"]).unwrap().model;
        let input = |v: tierline_graph::ValueInfo, like: Option<&[usize]>| {
            let named = |d: &Dim| match d {
                Dim::Known(n) => *n as usize,
                Dim::Symbol(name) if name.as_str() == "height" => 7,
                _ => 3,
            };
            let shape = like.map_or_else(|| v.shape.unwrap().iter().map(named).collect(), <[usize]>::to_vec);
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| f32::from(random.i8(-3..3))).collect();
            (v.name, f32s(&shape, &values))
        };
        let run = |engine: &dyn tierline_engine::Engine, model: &Model, given: &[(String, Tensor)]| {
            let given: Vec<(&str, &Tensor)> = given.iter().map(|(n, t)| (n.as_str(), t)).collect();
            engine.load(model, &LoadOptions::with_threads(1)).and_then(|mut session| session.run(&given))
        };
        let mut input = input;
        let mut inputs = both.inputs().into_iter();
        let x = vec![input(inputs.next().unwrap(), None)];
        let Ok(y) = run(&**rten, &model, &x) else {
            // A pool that rten doesn't run at all, such as one in three dimensions.
            continue;
        };
        let dy = input(inputs.next().unwrap(), Some(y[0].shape()));
        let given = [x, vec![dy]].concat();
        let expected = run(&**onnxruntime, &both, &given).unwrap();
        let made = run(&**rten, &both, &given).unwrap_or_else(|e| panic!("{name}: {e}"));
        // Small whole numbers: sums are exact, and equal elements frequent.
        assert_eq!(made[1], expected[1], "{name}");
        compared += 1;
    }
    assert!(compared > 20, "only {compared} pools ran on both");
}

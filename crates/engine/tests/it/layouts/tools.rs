//! Files as the public's tools leave them: quantised, optimised, converted,
//! with their weights elsewhere. `make.py` writes them, and what stock ONNX
//! Runtime makes of each; folded, and cut everywhere, they give the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protobuf::Message;
use serde::Deserialize;
use tierline_engine::{Engine, Evaluator, LoadOptions, StateSlot};
use tierline_graph::cuts::cuts;
use tierline_graph::fold::{FoldError, Purpose, fold, fold_for};
use tierline_graph::onnx::GraphProto;
use tierline_graph::slice::slice;
use tierline_graph::step::{Optimizer, Recipe, Role, Schedule, Slot, trainable_with};
use tierline_graph::{Elements, Kernels, Model, Tensor, infer_computed_types, infer_types};

use crate::support::{engines, onnxruntime, tensor};

/// Pairs of cuts tried of one model.
const PAIRS_MAX: usize = 12;

/// How near slices come to the whole on the same machine, relative to the
/// largest value, where nothing is rounded to few bits.
const APART_MAX: f64 = 1e-5;

/// Fixtures by the beginnings of their names; each group is a test.
const GROUPS: &[&[&str]] = &[
    &["quantised_cnn", "quantised_recurrent"],
    &["quantised_depthwise"],
    &["quantised_transformer", "dynamic"],
    &["bits", "narrow", "cast"],
    &["half"],
    &["saved_basic", "saved_all", "saved_beside"],
    &["saved_extended"],
    &["fused", "shapes"],
    &["converted"],
    &["beside", "listed", "shuffled", "unnamed", "one_name", "misdeclared", "annotated", "composed"],
    &["typed", "as_constants", "sparse", "odd", "functions", "bodies", "ends", "classic"],
];

#[derive(Deserialize)]
struct Settings {
    apart: f64,
    machine: bool,
}

struct Fixture {
    name: String,
    path: PathBuf,
    settings: Settings,
    /// Inputs, and what stock ONNX Runtime made of them.
    runs: Vec<(Values, Values)>,
}

type Values = BTreeMap<String, Tensor>;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/layouts/files")
}

fn names() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

impl Fixture {
    fn read(name: &str) -> Self {
        let folder = folder().join(name);
        let graph = GraphProto::parse_from_bytes(&std::fs::read(folder.join("values")).unwrap()).unwrap();
        let settings = serde_json::from_str(graph.doc_string()).unwrap();
        let mut runs: BTreeMap<usize, (Values, Values)> = BTreeMap::new();
        for constant in &graph.initializer {
            let mut parts = constant.name().splitn(3, '/');
            let mut part = || parts.next().unwrap();
            let (number, side, name) = (part(), part(), part());
            let run = runs.entry(number.parse().unwrap()).or_default();
            let values = if side == "given" { &mut run.0 } else { &mut run.1 };
            values.insert(name.to_owned(), tensor(constant).unwrap());
        }
        Self { name: name.to_owned(), path: folder.join("model.onnx"), settings, runs: runs.into_values().collect() }
    }

    /// What an engine makes of slices one after the other, for each input.
    fn run(&self, engine: &Arc<dyn Engine>, slices: &[Model]) -> Result<Vec<Values>, String> {
        let mut values: Vec<Values> = self.runs.iter().map(|(given, _)| given.clone()).collect();
        for (i, part) in slices.iter().enumerate() {
            let which = |e: &dyn std::fmt::Display| format!("slice {i} of {}: {e}", slices.len());
            // As other tools get them: written and read again.
            let part = Model::parse(part.to_bytes().unwrap().into()).map_err(|e| which(&e))?;
            let mut session = engine.load(&part, &LoadOptions::with_threads(1)).map_err(|e| which(&e))?;
            let names: Vec<String> = session.inputs().iter().map(|v| v.name.clone()).collect();
            for values in &mut values {
                let given: Vec<(&str, &Tensor)> = names.iter().map(|n| (n.as_str(), &values[n])).collect();
                let outputs = session.run(&given).map_err(|e| which(&e))?;
                *values = part.outputs().into_iter().map(|v| v.name).zip(outputs).collect();
            }
        }
        Ok(values)
    }

    fn compare(&self, made: &[Values], with: &[Values], apart_max: f64) -> Result<(), String> {
        for (made, expected) in made.iter().zip(with) {
            if !made.keys().eq(expected.keys()) {
                return Err(format!("outputs {:?} for {:?}", made.keys(), expected.keys()));
            }
            for (name, expected) in expected {
                let made = &made[name];
                if (made.shape(), made.dtype()) != (expected.shape(), expected.dtype()) {
                    return Err(format!("`{name}` is {:?} {}", made.shape(), made.dtype()));
                }
                let apart = apart(made, expected);
                // What isn't a number is too far as well.
                if apart.is_nan() || apart > apart_max {
                    return Err(format!("`{name}` differs by {apart:e}"));
                }
            }
        }
        Ok(())
    }
}

/// The largest difference, relative to the largest value; of what has no
/// fractions, 1 for any difference.
fn apart(a: &Tensor, b: &Tensor) -> f64 {
    let numbers = |t: &Tensor| -> Option<Vec<f64>> {
        Some(match t.elements() {
            Elements::F32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Elements::F64(v) => v.clone(),
            Elements::F16(v) => v.iter().map(|x| x.to_f64()).collect(),
            _ => return None,
        })
    };
    let (Some(x), Some(y)) = (numbers(a), numbers(b)) else { return f64::from(u8::from(a != b)) };
    let largest = y.iter().fold(1e-6, |m: f64, v| m.max(v.abs()));
    x.iter().zip(&y).map(|(x, y)| (x - y).abs() / largest).fold(0., |m, d| if d > m || d.is_nan() { d } else { m })
}

/// Patterns of what an engine refuses, as `engine name`; the list may only
/// shrink.
fn known() -> impl Iterator<Item = &'static str> {
    include_str!("refused.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#'))
}

fn is(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |stem| name.starts_with(stem))
}

/// What is wrong with a fixture.
fn tried(fixture: &Fixture, engines: &[Arc<dyn Engine>], runtime: &Arc<dyn Engine>) -> Result<Vec<String>, String> {
    let whole = Model::load(&fixture.path).map_err(|e| format!("loading: {e}"))?;
    let stored: Vec<Values> = fixture.runs.iter().map(|(_, made)| made.clone()).collect();
    let apart_max = fixture.settings.apart;
    // What this machine makes of the file as it is.
    let here = fixture.run(runtime, std::slice::from_ref(&whole)).map_err(|e| format!("as it is: {e}"));
    let here = here.and_then(|here| {
        fixture.compare(&here, &stored, apart_max).map_err(|e| format!("as it is: {e}"))?;
        Ok(here)
    });
    let mut folded = whole;
    let here = match here {
        Err(_) if fixture.settings.machine => {
            eprintln!("{} was saved on another kind of machine", fixture.name);
            let error = fold(&mut folded, &mut Evaluator(Arc::clone(runtime))).map(drop).unwrap_err();
            assert!(matches!(error, FoldError::Blocked { .. }), "{}: {error}", fixture.name);
            return Ok(Vec::new());
        }
        here => here?,
    };
    fold(&mut folded, &mut Evaluator(Arc::clone(runtime))).map_err(|e| format!("folding: {e}"))?;
    let blocked = folded.graph().node.iter().any(|n| n.domain() == "com.microsoft.nchwc");
    assert!(!blocked, "{} is for one kind of machine", fixture.name);
    let types = infer_types(&folded).map_err(|e| format!("types: {e}"))?;
    let computed = infer_computed_types(&folded).map_err(|e| format!("types: {e}"))?;
    let found: Vec<Vec<String>> = cuts(&folded, &types).into_iter().map(|c| c.tensors).collect();
    let at = places(&found);
    // Quantised values may be rounded otherwise where a cut lies between.
    let near = apart_max.max(APART_MAX);
    let mut wrong = Vec::new();
    for engine in engines {
        let refused = known().any(|pattern| is(pattern, &format!("{} {}", engine.name(), fixture.name)));
        for at in &at {
            let made = slice(&folded, &computed, at).map_err(|e| e.to_string());
            let made = made.and_then(|slices| fixture.run(engine, &slices));
            let whole = at.is_empty();
            if refused && whole {
                if made.is_ok() {
                    wrong.push(format!("{} is listed as refusing it", engine.name()));
                }
                break;
            }
            let result = made.and_then(|made| {
                fixture.compare(&made, &stored, apart_max)?;
                fixture.compare(&made, &here, near)
            });
            if let Err(error) = result {
                let places: Vec<String> = at.iter().map(|c| c.join(" + ")).collect();
                wrong.push(format!("{}, cut at [{}]: {error}", engine.name(), places.join(" | ")));
                if whole {
                    break;
                }
            }
        }
    }
    Ok(wrong)
}

/// Nowhere, at each cut, at pairs of them, and at all.
fn places(found: &[Vec<String>]) -> Vec<Vec<Vec<String>>> {
    let mut at: Vec<Vec<Vec<String>>> = vec![Vec::new()];
    at.extend(found.iter().map(|cut| vec![cut.clone()]));
    let pairs: Vec<[usize; 2]> = (0..found.len()).flat_map(|i| (i + 1..found.len()).map(move |j| [i, j])).collect();
    let step = pairs.len().div_ceil(PAIRS_MAX).max(1);
    at.extend(pairs.iter().step_by(step).map(|pair| pair.map(|i| found[i].clone()).to_vec()));
    at.push(found.to_vec());
    at
}

#[track_caller]
fn hold(group: usize) {
    let Some(runtime) = onnxruntime() else { return };
    let engines = engines();
    let mut wrong = Vec::new();
    for name in names().iter().filter(|name| GROUPS[group].iter().any(|stem| name.starts_with(stem))) {
        let fixture = Fixture::read(name);
        let found = tried(&fixture, &engines, &runtime).unwrap_or_else(|error| vec![error]);
        wrong.extend(found.into_iter().map(|w| format!("{name}: {w}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn quantised_convolutions() {
    hold(0);
}

#[test]
fn quantised_separable() {
    hold(1);
}

#[test]
fn quantised_and_dynamic_transformers() {
    hold(2);
}

#[test]
fn weights_of_few_bits() {
    hold(3);
}

#[test]
fn halves() {
    hold(4);
}

#[test]
fn saved_by_the_runtime() {
    hold(5);
}

#[test]
fn saved_with_fused_operators() {
    hold(6);
}

#[test]
fn fused_transformers_and_shapes() {
    hold(7);
}

#[test]
fn converted() {
    hold(8);
}

#[test]
fn files_and_lists() {
    hold(9);
}

#[test]
fn other_ways() {
    hold(10);
}

#[test]
fn every_fixture_is_in_one_group() {
    for name in names() {
        let groups = GROUPS.iter().filter(|group| group.iter().any(|stem| name.starts_with(stem))).count();
        assert_eq!(groups, 1, "{name}");
    }
}

/// As download caches keep them: files under their digests in a store, and a
/// folder of links with their names.
#[cfg(unix)]
#[test]
fn weights_beside_a_model_are_found_behind_links() {
    use std::os::unix::fs::symlink;
    fn linked(from: &Path, store: &Path, revision: &Path, up: &str) {
        std::fs::create_dir_all(revision).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                linked(&path, store, &revision.join(name), &format!("../{up}"));
                continue;
            }
            let digest = format!("{:x}", std::fs::read_dir(store).unwrap().count());
            std::fs::copy(&path, store.join(&digest)).unwrap();
            symlink(format!("{up}/blobs/{digest}"), revision.join(name)).unwrap();
        }
    }
    for name in names().iter().filter(|name| name.contains("beside")) {
        let cache = tempfile::tempdir().unwrap();
        let (store, revision) = (cache.path().join("blobs"), cache.path().join("snapshots/1"));
        std::fs::create_dir(&store).unwrap();
        linked(&folder().join(name), &store, &revision, "../..");
        let plain = Model::load(&folder().join(name).join("model.onnx")).unwrap();
        let behind = Model::load(&revision.join("model.onnx")).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(plain, behind, "{name}");
    }
}

/// Where the file can't be this machine's, nothing plausible comes of it.
#[test]
fn a_layout_of_another_machine_is_refused() {
    let Some(runtime) = onnxruntime() else { return };
    let mut proto = Model::load(&folder().join("saved_all_cnn/model.onnx")).unwrap().proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let weight = graph.initializer.iter_mut().find(|t| t.name() == "reorder").unwrap();
    (weight.dims[0], weight.dims[1]) = (weight.dims[0] / 4, weight.dims[1] * 4);
    let mut model = Model::from_proto(proto).unwrap();
    for engine in [runtime, tierline_engine::rten()] {
        let error = fold(&mut model, &mut Evaluator(engine)).unwrap_err();
        assert!(matches!(error, FoldError::Blocked { .. }), "{error}");
        assert!(error.to_string().contains("take the original file"), "{error}");
    }
}

/// Files that say the same network in other ways.
const SAME: &[&[&str]] = &[
    &[
        "unnamed",
        "annotated",
        "as_constants",
        "beside_by_ir",
        "beside_in_one_file",
        "converted_cnn_17_25",
        "converted_cnn_9_13",
        "converted_cnn_9_7",
        "listed_old",
        "misdeclared",
        "odd_names",
        "shapes_inferred_cnn",
        "shuffled_cnn",
    ],
    &[
        "beside_in_parts",
        "converted_transformer_22",
        "listed_new",
        "shapes_symbolic_transformer",
        "shuffled_transformer",
        "typed",
    ],
    &["beside_attributes", "beside_each_alone"],
    &["converted_recurrent_22", "one_name"],
];

/// The losses of a few steps, and what becomes of the weights' sum of squares.
fn steps(fixture: &Fixture, engine: &Arc<dyn Engine>) -> Result<Vec<f64>, String> {
    let mut model = Model::load(&fixture.path).map_err(|e| e.to_string())?;
    fold_for(&mut model, &mut Evaluator(Arc::clone(engine)), Purpose::Training).map_err(|e| e.to_string())?;
    let optimizer = Optimizer::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    let recipe = Recipe { optimizer, schedule: Schedule::constant(0.1), ..Recipe::default() };
    let step = trainable_with(&model, &recipe, &Kernels::none()).map_err(|e| e.to_string())?;
    let (graph, before) = step.divided().map_err(|e| e.to_string())?;
    let slot = |s: &Slot| StateSlot { input: s.input.clone(), output: s.output.clone() };
    let slots: Vec<StateSlot> = step.spec.state.iter().map(slot).collect();
    let loaded = engine.load_stateful(&graph, &LoadOptions::with_threads(1), &slots, before);
    let mut session = loaded.map_err(|e| e.to_string())?;
    let mut made = Vec::new();
    for (given, _) in fixture.runs.iter().cycle().take(3) {
        let rows = given.values().next().map_or(0, |t| t.shape()[0]);
        let target = Tensor::new([rows], Elements::I64((0..rows as i64).map(|i| (i + 1) % 4).collect())).unwrap();
        let mut inputs: Vec<(&str, &Tensor)> = given.iter().map(|(name, t)| (name.as_str(), t)).collect();
        inputs.push((step.spec.target.as_str(), &target));
        let mut outputs = Vec::new();
        session.run_into(&inputs, &mut outputs).map_err(|e| e.to_string())?;
        session.advance();
        let loss = session.outputs().iter().position(|v| v.name == step.spec.loss).ok_or("there is no loss")?;
        made.extend(outputs[loss].as_f32().into_iter().flatten().map(|&x| f64::from(x)));
    }
    for (slot, value) in step.spec.state.iter().zip(session.state().map_err(|e| e.to_string())?) {
        if let (Role::Parameter | Role::Statistic, Some(values)) = (slot.role, value.as_f32()) {
            made.push(values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum());
        }
    }
    // In whatever order the file lists them.
    made[3..].sort_by(f64::total_cmp);
    Ok(made)
}

/// What a file says is trained as what it says in another way: the same
/// weights, to the same values.
#[test]
fn a_layout_makes_no_difference_to_training() {
    let Some(runtime) = onnxruntime() else { return };
    let mut wrong = Vec::new();
    for group in SAME {
        let first = steps(&Fixture::read(group[0]), &runtime).unwrap_or_else(|e| panic!("{}: {e}", group[0]));
        assert!(first.len() > 5 && first[..3].iter().all(|l| *l > 0.1), "{}: {first:?}", group[0]);
        for name in &group[1..] {
            match steps(&Fixture::read(name), &runtime) {
                Ok(made) if made.len() == first.len() => {
                    let apart =
                        made.iter().zip(&first).map(|(a, b)| (a - b).abs() / (b.abs() + 1e-3)).fold(0., f64::max);
                    if apart > 1e-4 || apart.is_nan() {
                        wrong.push(format!("{name} is {apart:e} from {}: {made:?}, {first:?}", group[0]));
                    }
                }
                Ok(made) => wrong.push(format!("{name} trains {} values, {} {}", made.len(), group[0], first.len())),
                Err(error) => wrong.push(format!("{name}: {error}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

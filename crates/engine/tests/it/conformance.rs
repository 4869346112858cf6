//! The ONNX project's own operator tests, on every engine.
//!
//! Each engine's shortfalls are listed in `known-failures/ENGINE.txt`, one
//! case a line: name, state, reason. The list may only shrink: a case that
//! starts or stops passing fails the test until the list says so
//! (`TIERLINE_UPDATE_KNOWN=1 cargo test -p tierline-engine conformance` writes it;
//! the difference is for a reviewer to judge). `wrong` must never appear: what
//! an engine gets wrong is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use protobuf::Message;
use tierline_engine::{Engine, EngineError, LoadOptions};
use tierline_graph::onnx::{ModelProto, TensorProto, ValueInfoProto};
use tierline_graph::{DataType, Elements, Model, Tensor, with_elements};

use crate::support::{asset, onnxruntime, tensor};

/// What became of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
enum CaseResult {
    Pass,
    /// Refused when the model was loaded.
    Refused(String),
    /// Loaded, then failed with an error.
    Error(String),
    /// Ran, and gave something else: silently wrong.
    Wrong(String),
    /// Sequences, maps, and types that nodes don't exchange.
    Skipped(String),
}

impl CaseResult {
    /// State and reason in the list; `None` for what needs no entry.
    fn entry(&self) -> Option<(&'static str, String)> {
        let (state, reason) = match self {
            Self::Pass | Self::Skipped(_) => return None,
            Self::Refused(reason) => ("refused", reason),
            Self::Error(reason) => ("error", reason),
            Self::Wrong(reason) => ("wrong", reason),
        };
        // One line, without what differs from build to build.
        let reason = reason.lines().next().unwrap_or_default();
        Some((state, reason.chars().take(160).collect()))
    }
}

#[test]
fn rten_conforms() {
    check(&*tierline_engine::rten());
}

#[test]
fn onnxruntime_conforms() {
    if let Some(engine) = onnxruntime() {
        check(&*engine);
    }
}

/// What a case says needlessly, it may leave out: exporters do.
#[test]
fn rten_knows_defaults() {
    defaults_left_out(&*tierline_engine::rten());
}

#[test]
fn onnxruntime_knows_defaults() {
    if let Some(engine) = onnxruntime() {
        defaults_left_out(&*engine);
    }
}

fn defaults_left_out(engine: &dyn Engine) {
    let Some(folder) = asset("onnx-node-tests") else { return };
    let defaults = Defaults::read();
    let outcomes = run_all(&folder, &|case| {
        let model = match Model::load(&case.join("model.onnx")) {
            Ok(model) => model,
            Err(_) => return CaseResult::Pass,
        };
        let mut shorter = model.proto().clone();
        if !defaults.leave_out(&mut shorter) || run_model(engine, case, &model) != CaseResult::Pass {
            return CaseResult::Skipped("nothing to leave out, or not run as it is".to_owned());
        }
        run_model(engine, case, &Model::from_proto(shorter).expect("without defaults it is as sound"))
    });
    let tried = outcomes.values().filter(|o| !matches!(o, CaseResult::Skipped(_))).count();
    let worse: Vec<_> =
        outcomes.iter().filter(|(_, o)| !matches!(o, CaseResult::Pass | CaseResult::Skipped(_))).collect();
    println!("{}: {tried} cases without their defaults", engine.name());
    assert!(tried > 50 && worse.is_empty(), "{} of {tried}: {worse:#?}", worse.len());
}

/// Defaults of attributes: operator, attribute, first operator set, first set
/// without, kind and value. `onnx-defaults.py` writes the list.
struct Defaults(Vec<(&'static str, &'static str, i64, i64, &'static str, &'static str)>);

impl Defaults {
    fn read() -> Self {
        let lines = include_str!("../onnx-defaults.txt").lines().filter(|l| !l.starts_with('#'));
        let row = |line: &'static str| {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words[at].parse().expect("an operator set");
            (words[0], words[1], number(2), number(3), words[4], words.get(5).copied().unwrap_or_default())
        };
        Self(lines.map(row).collect())
    }

    /// Drops what says the default; whether anything did.
    fn leave_out(&self, model: &mut ModelProto) -> bool {
        let opset = model.opset_import.iter().find(|o| o.domain().is_empty()).map_or(1, |o| o.version());
        let mut dropped = false;
        for node in model.graph.mut_or_insert_default().node.iter_mut().filter(|n| n.domain().is_empty()) {
            let operator = node.op_type().to_owned();
            // With SAME pads a kernel's shape isn't a default of anything.
            let windowed = node.attribute.iter().any(|a| a.name() == "kernel_shape");
            let convolves = matches!(operator.as_str(), "Conv" | "ConvInteger" | "ConvTranspose" | "QLinearConv");
            let before = node.attribute.len();
            node.attribute.retain(|a| {
                let all = |value: i64| windowed && !a.ints.is_empty() && a.ints.iter().all(|n| *n == value);
                let said = match a.name() {
                    "strides" | "dilations" => all(1),
                    "pads" => all(0) && operator != "Pad",
                    "kernel_shape" => convolves,
                    name => self.0.iter().any(|&(op, attribute, from, until, kind, value)| {
                        let same = match kind {
                            "i" => value.parse() == Ok(a.i()),
                            "f" => value.parse::<f32>().is_ok_and(|v| v == a.f()),
                            _ => value.as_bytes() == a.s(),
                        };
                        op == operator && attribute == name && (from..until).contains(&opset) && same
                    }),
                };
                !said
            });
            dropped |= node.attribute.len() < before;
        }
        dropped
    }
}

fn check(engine: &dyn Engine) {
    let Some(folder) = asset("onnx-node-tests") else { return };
    let outcomes = run_all(&folder, &|case| run_case(engine, case));
    let count = |f: fn(&CaseResult) -> bool| outcomes.values().filter(|o| f(o)).count();
    println!(
        "{} {}: {} pass, {} refused with the reason, {} fail with an error, {} wrong, {} skipped (no tensors that \
         nodes exchange, or random), of {}",
        engine.name(),
        engine.version(),
        count(|o| *o == CaseResult::Pass),
        count(|o| matches!(o, CaseResult::Refused(_))),
        count(|o| matches!(o, CaseResult::Error(_))),
        count(|o| matches!(o, CaseResult::Wrong(_))),
        count(|o| matches!(o, CaseResult::Skipped(_))),
        outcomes.len(),
    );
    let wrong: Vec<_> = outcomes.iter().filter(|(_, o)| matches!(o, CaseResult::Wrong(_))).collect();
    if engine.name() == "onnxruntime" {
        against_python(&outcomes);
    }
    against_list(engine, &outcomes);
    assert!(wrong.is_empty(), "{} runs what it gets wrong; refuse it in refuse.rs: {wrong:#?}", engine.name());
}

/// At least 97% of what ONNX Runtime's own Python package passes.
fn against_python(outcomes: &BTreeMap<String, CaseResult>) {
    let reference = include_str!("../known-failures/python-onnxruntime-1.32.0.txt");
    let reference: BTreeSet<&str> = reference.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
    let passed = reference.iter().filter(|name| outcomes.get(**name) == Some(&CaseResult::Pass)).count();
    let skipped = reference.iter().filter(|n| matches!(outcomes.get(**n), Some(CaseResult::Skipped(_)))).count();
    let share = passed as f64 / (reference.len() - skipped) as f64;
    println!(
        "passes {passed} of the {} cases that the Python package passes ({:.1}%); {skipped} of these are skipped, of \
         the rest {:.1}% pass",
        reference.len(),
        100. * passed as f64 / reference.len() as f64,
        100. * share
    );
    assert!(share >= 0.97, "fewer than 97% of the cases that the Python package passes");
}

fn against_list(engine: &dyn Engine, outcomes: &BTreeMap<String, CaseResult>) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/known-failures/{}.txt", engine.name()));
    let now: BTreeMap<&str, (&str, String)> =
        outcomes.iter().filter_map(|(name, o)| Some((name.as_str(), o.entry()?))).collect();
    if std::env::var_os("TIERLINE_UPDATE_KNOWN").is_some() {
        let mut text = format!("# {} {}\n", engine.name(), engine.version());
        for (name, (state, reason)) in &now {
            text.push_str(&format!("{name} {state} {reason}\n"));
        }
        std::fs::write(&path, text).unwrap();
        return;
    }
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    if text.lines().next() != Some(&format!("# {} {}", engine.name(), engine.version())) {
        println!("{} is of another version; its list isn't compared", path.display());
        return;
    }
    let known: BTreeMap<&str, &str> = text
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| {
            let mut words = l.splitn(3, ' ');
            Some((words.next()?, words.next()?))
        })
        .collect();
    let mut changes = Vec::new();
    for (name, (state, reason)) in &now {
        // The list is of all processors.
        if reason.contains("on this processor") {
            continue;
        }
        match known.get(name) {
            None => changes.push(format!("{name} no longer passes: {state}, {reason}")),
            Some(before) if before != state => changes.push(format!("{name} was {before}, is {state}: {reason}")),
            Some(_) => {}
        }
    }
    for name in known.keys().filter(|n| outcomes.contains_key(**n) && !now.contains_key(*n)) {
        changes.push(format!("{name} passes now; take it off the list"));
    }
    assert!(changes.is_empty(), "{} differs:\n{}", path.display(), changes.join("\n"));
}

fn run_all(folder: &Path, run: &(dyn Fn(&Path) -> CaseResult + Sync)) -> BTreeMap<String, CaseResult> {
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    cases.retain(|c| c.join("model.onnx").is_file());
    cases.sort();
    assert!(cases.len() > 1_000, "only {} cases in {}", cases.len(), folder.display());
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(BTreeMap::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run(case);
                    let name = case.file_name().unwrap().to_string_lossy().into_owned();
                    outcomes.lock().unwrap().insert(name, outcome);
                }
            });
        }
    });
    outcomes.into_inner().unwrap()
}

fn run_case(engine: &dyn Engine, case: &Path) -> CaseResult {
    match Model::load(&case.join("model.onnx")) {
        Ok(model) => run_model(engine, case, &model),
        Err(e) => CaseResult::Refused(format!("graph: {e}")),
    }
}

/// Runs a case's model, or another that must give the same.
fn run_model(engine: &dyn Engine, case: &Path, model: &Model) -> CaseResult {
    let graph = model.graph();
    let inputs = match values(case, "input", &graph.input) {
        Ok(values) => values,
        Err(skipped) => return skipped,
    };
    let expected = match values(case, "output", &graph.output) {
        Ok(values) => values,
        Err(skipped) => return skipped,
    };
    let mut session = match engine.load(model, &LoadOptions::with_threads(1)) {
        Ok(session) => session,
        Err(EngineError::Refused { reason, node, .. }) => {
            return CaseResult::Refused(node.map_or(reason.clone(), |n| format!("{n}: {reason}")));
        }
        Err(e) => return CaseResult::Error(e.to_string()),
    };
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let made = match session.run(&given) {
        Ok(made) => made,
        Err(e) => return CaseResult::Error(e.to_string()),
    };
    let name = case.file_name().unwrap().to_string_lossy();
    let quantized = name.contains("quantizelinear");
    if RANDOM.iter().any(|r| name.starts_with(r)) {
        return CaseResult::Skipped("random by design".to_owned());
    }
    if made.len() != expected.len() {
        return CaseResult::Wrong(format!("{} outputs instead of {}", made.len(), expected.len()));
    }
    made.iter()
        .zip(&expected)
        .find_map(|(made, (name, expected))| {
            Some(CaseResult::Wrong(format!("{name}: {}", difference(made, expected, quantized)?)))
        })
        .unwrap_or(CaseResult::Pass)
}

fn values(case: &Path, what: &str, declared: &[ValueInfoProto]) -> Result<Vec<(String, Tensor)>, CaseResult> {
    let mut values = Vec::new();
    for (i, value) in declared.iter().enumerate() {
        let path = case.join(format!("test_data_set_0/{what}_{i}.pb"));
        if !value.type_.has_tensor_type() {
            return Err(CaseResult::Skipped(format!("{what} `{}` is no tensor", value.name())));
        }
        // A trailing optional input may be left out.
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let proto = TensorProto::parse_from_bytes(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let Some(tensor) = tensor(&proto) else {
            return Err(CaseResult::Skipped(format!(
                "{what} `{}` has element type {}",
                value.name(),
                proto.data_type()
            )));
        };
        values.push((value.name().to_owned(), tensor));
    }
    Ok(values)
}

/// Cases whose results are random by design; ONNX fixes no generator.
const RANDOM: &[&str] = &["test_training_dropout", "test_bernoulli"];

/// How two tensors differ. Floats by the ONNX runner's measure (relative 1e-3,
/// absolute 1e-7), widened by what the type can resolve: two steps of a 16-bit
/// float, and a millionth of the largest element where sums cancel to about
/// zero. Everything else exactly, except that a `quantized` integer may round
/// the other way.
fn difference(made: &Tensor, expected: &Tensor, quantized: bool) -> Option<String> {
    if made.dtype() != expected.dtype() {
        return Some(format!("type {} instead of {}", made.dtype(), expected.dtype()));
    }
    if made.shape() != expected.shape() {
        return Some(format!("shape {:?} instead of {:?}", made.shape(), expected.shape()));
    }
    let numbers = |t: &Tensor| -> Option<Vec<f64>> {
        use half::{bf16, f16};
        match t.elements() {
            Elements::F32(v) => Some(v.iter().map(|&x| f64::from(x)).collect()),
            Elements::F64(v) => Some(v.clone()),
            Elements::F16(v) => Some(v.iter().map(|&x: &f16| x.to_f64()).collect()),
            Elements::BF16(v) => Some(v.iter().map(|&x: &bf16| x.to_f64()).collect()),
            _ => None,
        }
    };
    let Some((a, b)) = numbers(made).zip(numbers(expected)) else {
        if let (true, Elements::U8(a), Elements::U8(b)) = (quantized, made.elements(), expected.elements()) {
            return a.iter().zip(b).any(|(a, b)| a.abs_diff(*b) > 1).then(|| format!("{a:?} instead of {b:?}"));
        }
        return (made.elements() != expected.elements()).then(|| {
            let show = |t: &Tensor| with_elements!(t.elements(), v => format!("{:.60?}", &v[..v.len().min(6)]), s => format!("{:?}", &s[..s.len().min(6)]));
            format!("{} instead of {}", show(made), show(expected))
        });
    };
    let relative = match made.dtype() {
        DataType::F16 => 2. / 1024.,
        DataType::BF16 => 2. / 128.,
        _ => 1e-3,
    };
    let largest = b.iter().filter(|x| x.is_finite()).fold(0f64, |m, x| m.max(x.abs()));
    let absolute = 1e-7 + 1e-6 * largest;
    let far = |a: f64, b: f64| !(a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= absolute + relative * b.abs());
    let at = a.iter().zip(&b).position(|(&a, &b)| far(a, b))?;
    let many = a.iter().zip(&b).filter(|&(&a, &b)| far(a, b)).count();
    Some(format!("{} instead of {} at {at}, {many} of {} differ", a[at], b[at], a.len()))
}

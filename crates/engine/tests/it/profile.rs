//! The profiler, on chains of small operators.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tierline_engine::profiler::{
    CodecProbe, NoCodecs, Phase, ProfileOptions, Progress, ProgressListener, Subject, profile, profile_with,
};
use tierline_engine::{Engine, EngineError};
use tierline_graph::DataType::F32;
use tierline_graph::profile::{CodecProfile, ModelProfile};
use tierline_graph::{Model, Tensor, infer_types};

use crate::support::{engines, f32s, model, node};

const SHAPE: &[&str] = &["1", "64"];

/// Steps `first..last` of a chain `v0 -> v1 -> ..`, each by its operator.
fn chain(operators: &[&str], first: usize, last: usize) -> Model {
    let name = |i: usize| format!("v{i}");
    let nodes = (first..last)
        .map(|i| {
            let inputs = [name(i), "one".to_owned()];
            let inputs: Vec<&str> =
                inputs[..if operators[i] == "Add" { 2 } else { 1 }].iter().map(|s| s.as_str()).collect();
            node(operators[i], &inputs, &[&name(i + 1)])
        })
        .collect();
    let (x, y) = (name(first), name(last));
    model(17, &[(&x, F32, SHAPE)], &[(&y, F32, SHAPE)], &[("one", f32s(&[1], &[1.]))], nodes)
}

fn brief() -> ProfileOptions {
    ProfileOptions {
        digest: "d".to_owned(),
        budget: Duration::from_millis(50),
        rounds_min: 3,
        ..ProfileOptions::default()
    }
}

fn sample() -> [(String, Tensor); 1] {
    [("v0".to_owned(), f32s(&[1, 64], &[0.5; 64]))]
}

/// Cuts at every step.
fn cuts(operators: &[&str]) -> Vec<Vec<String>> {
    (1..operators.len()).map(|i| vec![format!("v{i}")]).collect()
}

fn profiled(engine: &dyn Engine, operators: &[&str], codecs: &mut dyn CodecProbe) -> Result<ModelProfile, EngineError> {
    let whole = chain(operators, 0, operators.len());
    profile(engine, &whole, &cuts(operators), &sample(), &brief(), codecs)
}

/// Notes what it is given, and what the suffix makes of a value one higher.
#[derive(Default)]
struct Notes(Vec<(String, f32, f32)>);

impl CodecProbe for Notes {
    fn probe(
        &mut self,
        tensor: &str,
        value: &Tensor,
        run_suffix: &mut dyn FnMut(&Tensor) -> Result<Vec<Tensor>, EngineError>,
    ) -> Vec<CodecProfile> {
        let higher: Vec<f32> = value.as_f32().unwrap().iter().map(|x| x + 1.).collect();
        let Ok(outputs) = run_suffix(&f32s(value.shape(), &higher)) else { return Vec::new() };
        self.0.push((tensor.to_owned(), value.as_f32().unwrap()[0], outputs[0].as_f32().unwrap()[0]));
        vec![CodecProfile { codec: "note".to_owned(), bytes: 1, encode_ns: 1, decode_ns: 1, loss: 0. }]
    }
}

#[test]
fn a_profile_covers_cuts_segments_and_codecs() {
    for engine in engines() {
        let mut notes = Notes::default();
        let profile = profiled(&*engine, &["Add", "Add", "Relu", "Add"], &mut notes).unwrap();
        let names: Vec<&str> = profile.cuts.iter().map(|c| c.tensors[0].name.as_str()).collect();
        assert_eq!(names, ["v1", "v2", "v3"]);
        assert_eq!(profile.cuts[0].tensors[0].bytes, 256);
        assert_eq!(profile.input.tensors[0].codecs[0].codec, "note");
        assert_eq!(profile.output_bytes, 256);
        assert_eq!(profile.input_shapes["v0"], [1, 64]);
        assert!(profile.whole_ns > 0 && profile.load_ns > 0);
        let sum: u64 = profile.segments.iter().map(|s| s.time_ns.unwrap()).sum();
        assert!(sum.abs_diff(profile.whole_ns) <= 4, "{sum} {}", profile.whole_ns);
        // One weight, the input and the output.
        assert_eq!(profile.segments[0].memory_bytes, 4 + 256 + 256);
        // The value at each point, and the output when it is one higher; the
        // output itself last.
        let expected = [("v0", 0.5, 4.5), ("v1", 1.5, 4.5), ("v2", 2.5, 4.5), ("v3", 2.5, 4.5), ("v4", 3.5, 4.5)];
        assert_eq!(profile.output.tensors[0].bytes, 256);
        let noted: Vec<_> = notes.0.iter().map(|(n, a, b)| (n.as_str(), *a, *b)).collect();
        assert_eq!(noted, expected, "{}", engine.name());
    }
}

#[test]
fn a_refused_segment_has_the_reason_and_no_time() {
    // rten takes the sign of 0.0 for 1, so it is refused.
    let profile = profiled(&*tierline_engine::rten(), &["Add", "Sign", "Relu"], &mut Notes::default()).unwrap();
    let timed: Vec<bool> = profile.segments.iter().map(|s| s.time_ns.is_some()).collect();
    assert_eq!(timed, [true, false, true]);
    assert!(profile.segments[1].refused.as_ref().unwrap().contains("Sign"));
    assert_eq!(profile.cuts[1].tensors[0].bytes, 256);
}

#[test]
fn a_callers_own_slices_are_profiled() {
    let operators = ["Add", "Relu", "Add"];
    let whole = chain(&operators, 0, 3);
    let asked = Mutex::new(Vec::new());
    let slice = |at: &[Vec<String>]| {
        asked.lock().unwrap().push(at.len());
        let ends = at.iter().map(|cut| cut[0][1..].parse().unwrap()).chain([operators.len()]);
        let mut first = 0;
        Ok(ends.map(|last| chain(&operators, std::mem::replace(&mut first, last), last)).collect())
    };
    let (types, cuts, inputs) = (infer_types(&whole).unwrap(), cuts(&operators), sample());
    let subject = Subject { model: &whole, types: &types, cuts: &cuts, slice: &slice, inputs: &inputs };
    let profile = profile_with(&*tierline_engine::rten(), &subject, &brief(), &mut NoCodecs).unwrap();
    assert_eq!(profile.segments.len(), 3);
    // All cuts at once for the segments, then one at a time for the halves.
    let asked = asked.into_inner().unwrap();
    assert_eq!(asked[0], 2);
    assert!(asked.len() > 1 && asked[1..].iter().all(|&n| n == 1), "{asked:?}");
}

#[test]
fn progress_goes_through_every_phase() {
    let told: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let listener = Arc::clone(&told);
    let options =
        ProfileOptions { progress: ProgressListener::new(move |p| listener.lock().unwrap().push(p)), ..brief() };
    let operators = ["Add", "Relu", "Add"];
    let whole = chain(&operators, 0, 3);
    profile(&*tierline_engine::rten(), &whole, &cuts(&operators), &sample(), &options, &mut NoCodecs).unwrap();
    let told = told.lock().unwrap();
    let mut phases: Vec<Phase> = told.iter().map(|p| p.phase).collect();
    phases.dedup();
    assert_eq!(phases, [Phase::Load, Phase::Segments, Phase::Halves, Phase::Codecs]);
    for pair in told.windows(2).filter(|pair| pair[0].phase == pair[1].phase) {
        assert!(pair[0].done <= pair[1].done, "{pair:?}");
    }
    assert_eq!(told.last().unwrap().done, 1.);
}

#[test]
fn a_model_without_cuts_is_one_segment() {
    let profile = profiled(&*tierline_engine::rten(), &["Add"], &mut NoCodecs).unwrap();
    assert_eq!(profile.segments.len(), 1);
    assert_eq!(profile.segments[0].time_ns, Some(profile.whole_ns));
}

#[test]
fn what_cannot_be_profiled_says_why() {
    let whole = chain(&["Add", "Relu"], 0, 2);
    let at = |cut: &str| {
        let cuts = [vec![cut.to_owned()]];
        profile(&*tierline_engine::rten(), &whole, &cuts, &sample(), &brief(), &mut NoCodecs).unwrap_err()
    };
    assert!(matches!(at("v9"), EngineError::Prepare { .. }));
    assert!(at("v9").to_string().contains("no tensor `v9`"), "{}", at("v9"));
    // The caller's mistake is no refusal by the engine.
    let missing = profile(&*tierline_engine::rten(), &whole, &cuts(&["Add", "Relu"]), &[], &brief(), &mut NoCodecs);
    assert!(matches!(missing, Err(EngineError::MissingInput { .. })));
    // Nothing that the engine runs: its own words.
    let refused = profiled(&*tierline_engine::rten(), &["Sign"], &mut NoCodecs).unwrap_err();
    assert!(matches!(refused, EngineError::Refused { .. }), "{refused}");
}

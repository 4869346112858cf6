//! The profiler, on a chain of additions that is sliced by hand.

use std::time::Duration;

use tierline_engine::profiler::{CodecProbe, ProfileOptions, Subject, profile_with};
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

fn profiled(engine: &dyn Engine, operators: &[&str], codecs: &mut dyn CodecProbe) -> Result<ModelProfile, EngineError> {
    let whole = chain(operators, 0, operators.len());
    let cuts: Vec<Vec<String>> = (1..operators.len()).map(|i| vec![format!("v{i}")]).collect();
    let slice = |at: &[Vec<String>]| {
        let ends = at.iter().map(|cut| cut[0][1..].parse().unwrap()).chain([operators.len()]);
        let mut first = 0;
        Ok(ends.map(|last| chain(operators, std::mem::replace(&mut first, last), last)).collect())
    };
    let options = ProfileOptions {
        digest: "d".to_owned(),
        budget: Duration::from_millis(50),
        rounds_min: 3,
        ..ProfileOptions::default()
    };
    let (types, inputs) = (infer_types(&whole).unwrap(), [("v0".to_owned(), f32s(&[1, 64], &[0.5; 64]))]);
    let subject = Subject { model: &whole, types: &types, cuts: &cuts, slice: &slice, inputs: &inputs };
    profile_with(engine, &subject, &options, codecs)
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
        // The value at each point, and the output when it is one higher.
        let expected = [("v0", 0.5, 4.5), ("v1", 1.5, 4.5), ("v2", 2.5, 4.5), ("v3", 2.5, 4.5)];
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

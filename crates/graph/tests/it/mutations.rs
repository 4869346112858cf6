//! Mutation fuzzing of the loader and what stands behind it: model files with
//! bytes flipped, cut, repeated and inserted. Whatever comes is a model that
//! can be worked on or an error. `fuzz/fuzz_targets/onnx.rs` goes further, with
//! coverage.

use std::path::Path;

use bytes::Bytes;
use protobuf::Message;
use tierline_graph::cost::cost;
use tierline_graph::cuts::{candidates, cuts};
use tierline_graph::fold::{Evaluate, fold};
use tierline_graph::slice::slice;
use tierline_graph::{Model, Tensor, infer_types};

use crate::assets::asset;
use crate::text::proto;

const ROUNDS: usize = 50_000;

/// Bytes of a file at most: larger ones are weights, which nobody parses.
const FILE_BYTES_MAX: u64 = 48 << 10;

fn mutate(bytes: &mut Vec<u8>, rng: &mut fastrand::Rng) {
    for _ in 0..rng.usize(1..4) {
        let at = rng.usize(..bytes.len().max(1));
        // Mostly in place: a changed length spoils all that is around it.
        match rng.u8(..12) {
            _ if bytes.is_empty() => bytes.push(rng.u8(..)),
            0..4 => bytes[at] ^= 1 << rng.u8(..8),
            4..7 => bytes[at] = rng.u8(..),
            7 => {
                let length = rng.usize(1..12).min(bytes.len() - at);
                let from = rng.usize(..=bytes.len() - length);
                bytes.copy_within(from..from + length, at);
            }
            8 => bytes.truncate(at),
            9 => bytes.insert(at, rng.u8(..)),
            10 => drop(bytes.remove(at)),
            _ => {
                let end = (at + rng.usize(1..64)).min(bytes.len());
                bytes.extend_from_within(at..end);
            }
        }
    }
}

/// Computes nothing: constants are lifted, and no more.
pub struct Never;

impl Evaluate for Never {
    fn evaluate(&mut self, _: &Model) -> Result<Vec<Tensor>, String> {
        Err("nothing is computed here".to_owned())
    }
}

/// All that is done with a model before it runs.
fn work(mut model: Model) -> bool {
    let written = model.to_bytes().expect("what was read can be written");
    let again = Model::parse(written.clone().into()).expect("and read again");
    // By length: weights that are no numbers don't equal themselves, and
    // fields that the format doesn't know are written in any order.
    assert_eq!(again.to_bytes().expect("and written again").len(), written.len());
    fold(&mut model, &mut Never).expect("folding what is sound");
    let Ok(types) = infer_types(&model) else { return false };
    assert_eq!(cost(&model, &types).len(), model.graph().node.len());
    let all = cuts(&model, &types);
    for cut in candidates(&model, &types, &all, 3) {
        slice(&model, &types, std::slice::from_ref(&cut.tensors)).unwrap_or_else(|e| panic!("{:?}: {e}", cut.tensors));
    }
    true
}

fn files(folder: &Path, list: &mut Vec<Vec<u8>>) {
    let mut entries: Vec<_> =
        std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        let path = if path.is_dir() { path.join("model.onnx") } else { path };
        if std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= FILE_BYTES_MAX) {
            list.push(std::fs::read(&path).expect("a file"));
        }
    }
}

#[test]
fn damaged_files_are_models_or_errors() {
    let mut valid = vec![
        proto("x: f32[1,4]\nw = f32[4,4]\na = MatMul(x, w)\nb = Relu(a)\nc = Add(b, x)").write_to_bytes().unwrap(),
        proto("x: f32[N,3,8,8]\nw = f32[8,3,3,3]\ns = i64{0,-1}\nc = Conv(x, w) pads=[1,1,1,1]\ny = Reshape(c, s)")
            .write_to_bytes()
            .unwrap(),
    ];
    for folder in ["models", "onnx-node-tests"] {
        if let Some(folder) = asset(folder) {
            files(&folder, &mut valid);
        }
    }
    let mut rng = fastrand::Rng::with_seed(13);
    let (mut worked, mut loaded, mut refused) = (0, 0, 0);
    for _ in 0..ROUNDS {
        let mut bytes = rng.choice(&valid).expect("samples").clone();
        mutate(&mut bytes, &mut rng);
        match Model::parse(Bytes::from(bytes)) {
            Ok(model) => *(if work(model) { &mut worked } else { &mut loaded }) += 1,
            Err(e) => {
                refused += 1;
                assert!(!e.to_string().is_empty());
            }
        }
    }
    println!("{} files: {worked} worked on, {loaded} loaded only, {refused} refused", valid.len());
    assert!(worked > 100 && refused > 100, "{worked} worked on, {refused} refused");
}

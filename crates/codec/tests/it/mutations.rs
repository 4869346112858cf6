//! Mutation fuzzing: encodings and NumPy files with bytes flipped, cut,
//! repeated and inserted. Whatever comes is a tensor or an error.
//! `fuzz/fuzz_targets/codec.rs` and `npy.rs` go further, with coverage.

use tierline_codec::{codecs, npy};
use tierline_graph::{Elements, Tensor};

use crate::laws::encoded;

const ROUNDS: usize = 40_000;

fn mutate(bytes: &mut Vec<u8>, rng: &mut fastrand::Rng) {
    for _ in 0..rng.usize(1..4) {
        // Headers are short and matter most.
        let reach = if rng.bool() { bytes.len().min(48) } else { bytes.len() };
        let at = rng.usize(..reach.max(1)).min(bytes.len().saturating_sub(1));
        match rng.u8(..6) {
            _ if bytes.is_empty() => bytes.push(rng.u8(..)),
            0 => bytes[at] ^= 1 << rng.u8(..8),
            1 => bytes[at] = *rng.choice(&[0, 1, 0x7f, 0x80, 0xff, b'9', b'\'']).expect("not empty"),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, rng.u8(..)),
            4 => drop(bytes.remove(at)),
            _ => {
                let end = (at + rng.usize(1..16)).min(bytes.len());
                bytes.extend_from_within(at..end);
            }
        }
    }
}

fn samples() -> Vec<Tensor> {
    let floats = (0..120).map(|i| (i as f32).sin()).collect();
    let texts = ["", "a", "né", "longer text"].map(str::to_owned).to_vec();
    vec![
        Tensor::new([2, 3, 4, 5], Elements::F32(floats)).unwrap(),
        Tensor::new([], Elements::F32(vec![1.0])).unwrap(),
        Tensor::new([0, 3], Elements::F32(vec![])).unwrap(),
        Tensor::new([40], Elements::I64((0..40).collect())).unwrap(),
        Tensor::new([2, 2], Elements::String(texts)).unwrap(),
        Tensor::new([9], Elements::Bool(vec![1; 9])).unwrap(),
    ]
}

#[test]
fn damaged_encodings_are_tensors_or_errors() {
    let mut rng = fastrand::Rng::with_seed(11);
    let mut valid = Vec::new();
    for tensor in samples() {
        for codec in codecs().iter().filter(|c| c.accepts(tensor.dtype())) {
            valid.push(encoded(*codec, &tensor));
        }
    }
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..ROUNDS {
        let mut bytes = rng.choice(&valid).expect("samples").clone();
        mutate(&mut bytes, &mut rng);
        for codec in codecs() {
            match codec.decode(&bytes) {
                Ok(tensor) => {
                    taken += 1;
                    // What is taken is a tensor like any other.
                    let mut again = Vec::new();
                    if codec.encode(&tensor, &mut again).is_ok() {
                        assert_eq!(codec.decode(&again).map(|t| t.shape().to_vec()), Ok(tensor.shape().to_vec()));
                    }
                }
                Err(e) => {
                    refused += 1;
                    assert!(!e.to_string().is_empty());
                }
            }
        }
    }
    assert!(taken > 100 && refused > 100, "{taken} taken, {refused} refused");
}

#[test]
fn damaged_numpy_files_are_tensors_or_errors() {
    let mut rng = fastrand::Rng::with_seed(12);
    let valid: Vec<Vec<u8>> = samples().iter().map(|t| npy::write(t).unwrap()).collect();
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..ROUNDS {
        let mut bytes = rng.choice(&valid).expect("samples").clone();
        mutate(&mut bytes, &mut rng);
        match npy::read(&bytes) {
            Ok(tensor) => {
                taken += 1;
                let again = npy::read(&npy::write(&tensor).unwrap()).unwrap();
                assert_eq!(again.shape(), tensor.shape());
            }
            Err(e) => {
                refused += 1;
                assert!(!e.to_string().is_empty());
            }
        }
    }
    assert!(taken > 100 && refused > 100, "{taken} taken, {refused} refused");
}

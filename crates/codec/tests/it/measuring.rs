//! Measurements are of the codec that was asked for; times are only sane.

use std::time::Duration;

use tierline_codec::measure::{Loss, loss};
use tierline_codec::{CodecError, by_name, codecs, measure};
use tierline_graph::{Elements, Tensor};

#[test]
fn sizes_and_losses_are_the_codecs_own() {
    let values: Vec<f32> = (0..4096).map(|i| (i as f32 / 100.0).sin()).collect();
    let tensor = Tensor::new([1, 4, 32, 32], Elements::F32(values)).unwrap();
    for codec in codecs() {
        let m = measure(*codec, &tensor, Duration::from_millis(1)).unwrap();
        assert_eq!(m.bytes, super::laws::encoded(*codec, &tensor).len() as u64);
        assert!(m.encode_ns > 0 && m.decode_ns > 0);
        let (expected_max, expected_rms) = match codec.name() {
            "fp16" => (2.5e-4, 3e-4),
            "int8" => (0.5 * 2.0 / 255.0 + 1e-6, 4e-3),
            _ => (0.0, 0.0),
        };
        assert!(m.loss.max_abs <= expected_max, "{}: {m:?}", codec.name());
        assert!(m.loss.relative_rms <= expected_rms, "{}: {m:?}", codec.name());
        assert_eq!(m.loss == Loss::default(), codec.lossless(), "{}: {m:?}", codec.name());
    }
}

#[test]
fn losses_by_definition() {
    let floats = |v: &[f32]| Tensor::new([v.len()], Elements::F32(v.to_vec())).unwrap();
    let found = loss(&floats(&[3.0, 4.0, f32::NAN]), &floats(&[3.0, 4.5, f32::NAN]));
    assert_eq!(found, Loss { max_abs: 0.5, relative_rms: 0.1 });
    assert_eq!(loss(&floats(&[0.0]), &floats(&[0.0])), Loss::default());
    let strings = Tensor::new([1], Elements::String(vec!["a".to_owned()])).unwrap();
    assert_eq!(loss(&strings, &strings), Loss::default());
}

#[test]
fn what_a_codec_does_not_take_is_not_measured() {
    let tensor = Tensor::new([2], Elements::I64(vec![1, 2])).unwrap();
    let error = measure(by_name("int8").unwrap(), &tensor, Duration::ZERO).unwrap_err();
    assert!(matches!(error, CodecError::Type { .. }), "{error}");
}

//! What holds for every codec.

use half::{bf16, f16};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use tierline_codec::frame::{BYTES_MAX, Header, RANK_MAX};
use tierline_codec::{Codec, CodecError, by_name, codecs};
use tierline_graph::{DataType, Elements, Tensor, with_elements};

pub fn encoded(codec: &dyn Codec, tensor: &Tensor) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec.encode(tensor, &mut bytes).unwrap_or_else(|e| panic!("{}: {e}", codec.name()));
    bytes
}

fn roundtrip(codec: &str, tensor: &Tensor) -> Tensor {
    let codec = by_name(codec).expect("a codec");
    codec.decode(&encoded(codec, tensor)).unwrap_or_else(|e| panic!("{}: {e}", codec.name()))
}

/// Equal to the bit: NaN equals itself, 0 isn't -0.
fn same(a: &Tensor, b: &Tensor) -> bool {
    let bytes = |t: &Tensor| t.elements().as_bytes().map(<[u8]>::to_vec);
    match bytes(a) {
        Some(raw) => a.shape() == b.shape() && a.dtype() == b.dtype() && Some(raw) == bytes(b),
        None => a == b,
    }
}

/// Shapes of up to four axes: scalars, empty tensors and single elements among them.
pub fn shapes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1 => Just(0usize), 9 => 1usize..7], 0..5)
}

/// Tensors of every element type, of any bits.
pub fn tensors() -> impl Strategy<Value = Tensor> {
    (shapes(), 0usize..14, any::<u64>()).prop_map(|(shape, kind, seed)| {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 11
        };
        let count: usize = shape.iter().product();
        macro_rules! fill {
            ($kind:ident, $make:expr) => {
                Elements::$kind((0..count).map(|_| $make(next())).collect())
            };
        }
        let elements = match kind {
            0 => fill!(F32, |v| f32::from_bits(v as u32)),
            1 => fill!(F64, |v: u64| f64::from_bits(v.rotate_left(17))),
            2 => fill!(F16, |v| f16::from_bits(v as u16)),
            3 => fill!(BF16, |v| bf16::from_bits(v as u16)),
            4 => fill!(I8, |v| v as i8),
            5 => fill!(U8, |v| v as u8),
            6 => fill!(I16, |v| v as i16),
            7 => fill!(U16, |v| v as u16),
            8 => fill!(I32, |v| v as i32),
            9 => fill!(U32, |v| v as u32),
            10 => fill!(I64, |v: u64| v as i64 - (1 << 40)),
            11 => fill!(U64, |v| v),
            12 => fill!(Bool, |v| (v & 1) as u8),
            _ => fill!(String, |v: u64| "aé∑😀".chars().cycle().take(v as usize % 6).collect()),
        };
        Tensor::new(shape, elements).expect("as many as the shape holds")
    })
}

/// Floats of one magnitude, from the smallest to the largest there are.
fn floats() -> impl Strategy<Value = Tensor> {
    let magnitude = prop_oneof![4 => -3i32..4, 1 => -45i32..38];
    (shapes(), magnitude, any::<bool>(), any::<u64>()).prop_map(|(shape, magnitude, positive, seed)| {
        let mut state = seed;
        let count: usize = shape.iter().product();
        let value = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let unit = (state >> 11) as f64 / (1u64 << 53) as f64 - if positive { 0.0 } else { 0.5 };
            (unit * 6.0 * 10f64.powi(magnitude)) as f32
        };
        let values: Vec<f32> = (0..count).map(value).collect();
        Tensor::new(shape, Elements::F32(values)).expect("as many as the shape holds")
    })
}

fn f32s(tensor: &Tensor) -> &[f32] {
    tensor.as_f32().expect("floats")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lossless_codecs_give_back_every_bit(tensor in tensors()) {
        for codec in codecs().iter().filter(|c| c.lossless() && c.accepts(tensor.dtype())) {
            prop_assert!(same(&roundtrip(codec.name(), &tensor), &tensor), "{}", codec.name());
        }
    }

    #[test]
    fn a_codec_takes_what_it_accepts_and_nothing_else(tensor in tensors()) {
        for codec in codecs() {
            let result = codec.encode(&tensor, &mut Vec::new());
            match result {
                Ok(()) => prop_assert!(codec.accepts(tensor.dtype())),
                Err(CodecError::Type { codec: name, dtype }) => {
                    prop_assert_eq!((name, dtype), (codec.name(), tensor.dtype()));
                    prop_assert!(!codec.accepts(dtype));
                }
                Err(CodecError::Value { codec: name, index, value }) => {
                    prop_assert!(name == codec.name() && !codec.lossless());
                    prop_assert!(!value.is_finite() && f32s(&tensor)[index].to_bits() == value.to_bits());
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }

    #[test]
    fn halves_are_as_near_as_halves_can_be(tensor in floats()) {
        let decoded = roundtrip("fp16", &tensor);
        prop_assert_eq!(decoded.shape(), tensor.shape());
        for (&given, &got) in f32s(&tensor).iter().zip(f32s(&decoded)) {
            // Ten bits of mantissa, rounded; below the smallest normal half a
            // fixed step; above the largest the largest.
            let bound = (given.abs() / 2048.0).max(f32::from(f16::MIN_POSITIVE_SUBNORMAL) / 2.0);
            let expected = given.clamp(-65_504.0, 65_504.0);
            prop_assert!((got - expected).abs() <= bound, "{given} became {got}");
        }
    }

    #[test]
    fn int8_is_within_half_a_step_of_its_group(tensor in floats()) {
        let decoded = roundtrip("int8", &tensor);
        prop_assert_eq!(decoded.shape(), tensor.shape());
        let (given, got) = (f32s(&tensor), f32s(&decoded));
        let channel = int8_group(tensor.shape());
        for (given, got) in given.chunks(channel).zip(got.chunks(channel)) {
            let wide = |v: &f32| f64::from(*v);
            let (low, high) = given.iter().map(wide).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
            let step = (high - low) / 255.0;
            // Half a step, and the rounding of f32 itself: of the sums, and
            // of a step too small for it.
            let rounding = 4.0 * f64::from(f32::EPSILON) * low.abs().max(high.abs()) + 256.0 * 1.5e-45;
            for (a, b) in given.iter().map(wide).zip(got.iter().map(wide)) {
                prop_assert!((a - b).abs() <= 0.5 * step + rounding, "{a} became {b}, a step is {step}");
            }
        }
    }

    #[test]
    fn every_truncation_and_extension_is_refused(tensor in tensors()) {
        for codec in codecs().iter().filter(|c| c.accepts(tensor.dtype())) {
            let mut bytes = Vec::new();
            if codec.encode(&tensor, &mut bytes).is_err() {
                continue;
            }
            for length in 0..bytes.len() {
                let result = codec.decode(&bytes[..length]);
                prop_assert!(result.is_err(), "{}: {length} of {}", codec.name(), bytes.len());
            }
            bytes.push(0);
            prop_assert!(codec.decode(&bytes).is_err(), "{}: a byte too many", codec.name());
        }
    }
}

/// Values that share a scale: a channel's, where these are 16 or more, else
/// a batch item's, else all.
fn int8_group(shape: &[usize]) -> usize {
    let behind = |axis: usize| shape[axis.min(shape.len())..].iter().product::<usize>();
    let channel = match shape.len() {
        0 => 1,
        1 | 2 => shape[shape.len() - 1],
        _ => behind(2),
    };
    [channel, behind(1), behind(0)].into_iter().find(|n| *n >= 16).unwrap_or(behind(0)).max(1)
}

#[test]
fn channels_have_scales_of_their_own() {
    // One loud channel doesn't drown the quiet one.
    let values: Vec<f32> = (0..64).map(|i| if i < 32 { i as f32 * 1e3 } else { i as f32 * 1e-3 }).collect();
    let tensor = Tensor::new([1, 2, 4, 8], Elements::F32(values.clone())).unwrap();
    let decoded = roundtrip("int8", &tensor);
    for (a, b) in values.iter().zip(f32s(&decoded)) {
        assert!((a - b).abs() <= a.abs().max(0.03) * 0.01 + 62.0 * f32::from(u8::from(*a > 1.0)), "{a} became {b}");
    }
    // A vector per channel is no larger than its bytes and a scale per item.
    let vectors = Tensor::new([2, 1280, 1, 1], Elements::F32(vec![1.0; 2560])).unwrap();
    assert!(encoded(by_name("int8").unwrap(), &vectors).len() < 2560 + 64);
}

#[test]
fn extremes_of_the_range_survive_int8() {
    for (low, high) in [(f32::MIN, f32::MAX), (0.0, f32::MAX), (-1e-42, 1e-42), (3.0, 3.0), (-0.0, 0.0)] {
        let middle = (f64::from(low) / 2.0 + f64::from(high) / 2.0) as f32;
        let tensor = Tensor::new([3], Elements::F32(vec![low, middle, high])).unwrap();
        let decoded = roundtrip("int8", &tensor);
        let step = (f64::from(high) - f64::from(low)) / 255.0;
        for (a, b) in f32s(&tensor).iter().zip(f32s(&decoded)) {
            assert!(b.is_finite());
            assert!((f64::from(*a) - f64::from(*b)).abs() <= step * 0.501 + 256.0 * 1.5e-45, "{a} became {b}");
        }
    }
}

#[test]
fn values_that_are_no_numbers() {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e9, -1e9, 1e-9];
    let tensor = Tensor::new([7], Elements::F32(odd.to_vec())).unwrap();
    for codec in ["raw", "planes"] {
        assert!(same(&roundtrip(codec, &tensor), &tensor), "{codec}");
    }
    let halves = roundtrip("fp16", &tensor);
    let halves = f32s(&halves);
    assert!(halves[0].is_nan());
    assert_eq!(halves[1..6], [f32::INFINITY, f32::NEG_INFINITY, 0.0, 65_504.0, -65_504.0]);
    assert!(halves[3].is_sign_negative() && halves[6] == 0.0);
    for value in &odd[..3] {
        let tensor = Tensor::new([4], Elements::F32(vec![1.0, 1.0, *value, 1.0])).unwrap();
        let error = by_name("int8").unwrap().encode(&tensor, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, CodecError::Value { codec: "int8", index: 2, .. }), "{error}");
    }
}

#[test]
fn scalars_and_empty_tensors() {
    let large = usize::MAX / 2;
    for shape in [vec![], vec![1], vec![0], vec![3, 0, 2], vec![0, 5, large, large], vec![1; 16]] {
        let count: usize = shape.iter().product();
        let tensor = Tensor::new(shape, Elements::F32(vec![1.5; count])).unwrap();
        for codec in codecs() {
            assert_eq!(roundtrip(codec.name(), &tensor), tensor, "{}", codec.name());
        }
    }
}

#[test]
fn what_no_reader_takes_no_writer_writes() {
    let deep = Tensor::new(vec![1; RANK_MAX + 1], Elements::U8(vec![0])).unwrap();
    for codec in codecs().iter().filter(|c| c.accepts(DataType::U8)) {
        let error = codec.encode(&deep, &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "the encoding declares 17 axes; the limit is 16", "{}", codec.name());
    }
}

/// Headers that declare much and bring little cost little.
#[test]
fn declarations_are_checked_before_anything_is_allocated() {
    let lie = |dtype: DataType, shape: &[u64]| {
        let mut bytes = b"TL\x01".to_vec();
        bytes.push(dtype.to_onnx() as u8);
        bytes.push(shape.len() as u8);
        shape.iter().for_each(|d| bytes.extend_from_slice(&d.to_le_bytes()));
        bytes.extend([0; 12]);
        bytes
    };
    let max = BYTES_MAX as u64;
    let shapes: [&[u64]; 6] =
        [&[u64::MAX], &[max / 4 + 1], &[max / 4], &[1 << 32, 1 << 32], &[u64::MAX, 0], &[1 << 13, 1 << 13]];
    for codec in codecs() {
        for dtype in [DataType::F32, DataType::U8, DataType::String] {
            for shape in shapes {
                let error = codec.decode(&lie(dtype, shape)).expect_err("12 bytes hold no such tensor");
                assert!(!error.to_string().is_empty());
            }
        }
    }
    let largest = lie(DataType::F32, &[max / 4]);
    let (header, rest) = Header::read(&largest).expect("within the limit");
    assert_eq!((header.elements(), rest.len()), (BYTES_MAX / 4, 12));
    let error = Header::read(&lie(DataType::F32, &[max / 4 + 1])).unwrap_err();
    assert_eq!(error.to_string(), format!("the encoding declares {} bytes; the limit is {max}", max + 4));
}

#[test]
fn broken_encodings_say_what_is_wrong() {
    let tensor = Tensor::new([4], Elements::F32(vec![1.0, 2.0, 3.0, 4.0])).unwrap();
    let damaged = |codec: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let codec = by_name(codec).expect("a codec");
        let mut bytes = encoded(codec, &tensor);
        change(&mut bytes);
        codec.decode(&bytes).expect_err("it is broken").to_string()
    };
    let cases = [
        (damaged("raw", &|b| b[0] = b'X'), "the encoding is corrupt: the first bytes are not an encoded tensor's"),
        (damaged("raw", &|b| b[2] = 9), "encoding version 9 is unknown here; update this node"),
        (damaged("raw", &|b| b[3] = 99), "the encoding is corrupt: unknown element type"),
        (damaged("raw", &|b| b.truncate(4)), "the encoding is cut short: 5 bytes were expected, 4 are left"),
        (damaged("raw", &|b| b.truncate(20)), "7 bytes do not hold f32 elements (16 bytes would)"),
        (damaged("fp16", &|b| b[3] = 7), "codec `fp16` takes no i64 tensors; use `raw` or `planes`"),
        (damaged("int8", &|b| b[3] = 7), "codec `int8` takes no i64 tensors; use `raw` or `planes`"),
        (damaged("int8", &|b| b.push(0)), "1 bytes follow the end of the encoding"),
        (
            damaged("int8", &|b| b[13..17].copy_from_slice(&f32::NAN.to_le_bytes())),
            "the encoding is corrupt: a channel's scale is not a finite number",
        ),
        (damaged("planes", &|b| b[13] ^= 1), "the encoding is corrupt: zstd failed to decompress"),
    ];
    for (error, expected) in cases {
        assert_eq!(error, expected);
    }
}

#[test]
fn names_are_unique_and_known() {
    for codec in codecs() {
        assert_eq!(by_name(codec.name()).map(Codec::name), Some(codec.name()));
        assert_eq!(codecs().iter().filter(|c| c.name() == codec.name()).count(), 1);
    }
    assert!(by_name("mp3").is_none());
}

#[test]
fn element_types_are_all_covered() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..300 {
        let tensor = tensors().new_tree(&mut runner).unwrap().current();
        seen.insert(tensor.dtype());
        assert_eq!(with_elements!(tensor.elements(), v => v.len(), s => s.len()), tensor.len());
    }
    assert_eq!(seen.len(), 14);
}

#[test]
fn nothing_decodes_to_more_than_is_taken() {
    // A small encoding of much: planes make 16 KiB of it.
    let zeros = Tensor::new([1 << 20], Elements::F32(vec![0.0; 1 << 20])).unwrap();
    for codec in codecs() {
        let bytes = encoded(*codec, &zeros);
        let size = zeros.byte_len();
        assert_eq!(codec.decode_within(&bytes, size).unwrap().shape(), [1 << 20], "{}", codec.name());
        let error = codec.decode_within(&bytes, size - 1).unwrap_err();
        assert!(matches!(error, CodecError::TooLarge { what: "bytes", .. }), "{}: {error}", codec.name());
    }
    let strings = Tensor::new([2], Elements::String(vec![String::new(); 2])).unwrap();
    let raw = by_name("raw").unwrap();
    let bytes = encoded(raw, &strings);
    assert!(raw.decode_within(&bytes, 2).is_err(), "a string takes more than its text");
    assert!(raw.decode_within(&bytes, 1 << 10).is_ok());
}

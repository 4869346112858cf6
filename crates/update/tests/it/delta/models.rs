//! Models: what changed in them is what counts.

use half::{bf16, f16};
use tierline_update::delta::{Lossy, Options};

use super::{applied, made, through};

/// A tensor as it is written.
#[derive(Clone)]
pub struct Weights {
    name: String,
    /// `TensorProto.DataType`.
    data_type: u64,
    dims: Vec<u64>,
    /// The field of `TensorProto` that holds the values.
    field: u64,
    bytes: Vec<u8>,
}

impl Weights {
    pub fn f32(name: &str, dims: &[u64], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self { name: name.to_owned(), data_type: 1, dims: dims.to_vec(), field: 9, bytes }
    }

    fn floats(&self) -> impl Iterator<Item = f32> {
        self.bytes.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]))
    }

    fn map(&self, mut change: impl FnMut(f32) -> f32) -> Self {
        Self { bytes: self.floats().flat_map(|x| change(x).to_le_bytes()).collect(), ..self.clone() }
    }

    fn named(&self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self.clone() }
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(field: u64, value: u64, out: &mut Vec<u8>) {
    varint(field << 3, out);
    varint(value, out);
}

fn bytes(field: u64, value: &[u8], out: &mut Vec<u8>) {
    varint(field << 3 | 2, out);
    varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// A model file with a node for each tensor, and something said before and
/// behind the graph.
pub fn model(weights: &[Weights], said: &str) -> Vec<u8> {
    let mut graph = Vec::new();
    for tensor in weights {
        let mut node = Vec::new();
        bytes(1, b"x", &mut node);
        bytes(1, tensor.name.as_bytes(), &mut node);
        bytes(2, format!("{}_out", tensor.name).as_bytes(), &mut node);
        bytes(4, b"MatMul", &mut node);
        bytes(1, &node, &mut graph);
    }
    bytes(2, b"main", &mut graph);
    for tensor in weights {
        let mut message = Vec::new();
        tensor.dims.iter().for_each(|dim| number(1, *dim, &mut message));
        number(2, tensor.data_type, &mut message);
        bytes(8, tensor.name.as_bytes(), &mut message);
        bytes(tensor.field, &tensor.bytes, &mut message);
        bytes(5, &message, &mut graph);
    }
    let mut model = Vec::new();
    number(1, 8, &mut model);
    bytes(2, said.as_bytes(), &mut model);
    bytes(7, &graph, &mut model);
    let mut opset = Vec::new();
    number(2, 17, &mut opset);
    bytes(8, &opset, &mut model);
    model
}

pub fn drawn(rng: &mut fastrand::Rng, count: usize) -> Vec<f32> {
    // Sums of uniform numbers are about normal.
    (0..count).map(|_| (0..6).map(|_| rng.f32() - 0.5).sum::<f32>() * 0.05).collect()
}

fn layers(rng: &mut fastrand::Rng) -> Vec<Weights> {
    let sizes: [(&str, &[u64]); 5] = [
        ("conv", &[32, 16, 3, 3]),
        ("conv_bias", &[32]),
        ("hidden", &[120, 400]),
        ("hidden_bias", &[120]),
        ("head", &[10, 120]),
    ];
    sizes.map(|(name, dims)| Weights::f32(name, dims, &drawn(rng, dims.iter().product::<u64>() as usize))).to_vec()
}

#[test]
fn what_changed_is_what_it_costs() {
    let mut rng = fastrand::Rng::with_seed(1);
    let old = layers(&mut rng);
    let whole = model(&old, "before").len();
    let (bytes, report) = through(&model(&old, "before"), &model(&old, "before"));
    assert!(bytes < 140 && report.same_bytes == whole as u64, "nothing changed: {bytes}");

    let (bytes, report) = through(&model(&old, "before"), &model(&old, "behind!"));
    assert!(bytes < 180 && report.text_bytes > 0, "a word changed: {bytes}");

    let mut new = old.clone();
    new[4] = old[4].map(|x| x * 1.01);
    let (bytes, _) = through(&model(&old, "before"), &model(&new, "before"));
    assert!(bytes < 140 + 10 * 120 * 3, "the head changed: {bytes}");

    let new: Vec<_> = old.iter().map(|w| w.map(|x| x * (0.99 + 0.02 * rng.f32()))).collect();
    let (bytes, report) = through(&model(&old, "before"), &model(&new, "before"));
    assert!(bytes * 17 < whole * 10, "all by a percent: {bytes} of {whole}");
    assert_eq!(report.codings[0].coding, "difference");

    let new: Vec<_> = old.iter().map(|w| w.map(|x| if rng.u8(..100) == 0 { x * 1.5 } else { x })).collect();
    let (bytes, report) = through(&model(&old, "before"), &model(&new, "before"));
    assert!(bytes * 60 < whole, "one of a hundred: {bytes} of {whole}");
    assert!(["sparse", "difference"].contains(&report.codings[0].coding));
}

#[test]
fn weights_are_found_again_wherever_they_went() {
    let mut rng = fastrand::Rng::with_seed(2);
    let old = layers(&mut rng);
    let file = model(&old, "a model");
    let cheap = |new: &[Weights], most: usize| {
        let (bytes, _) = through(&file, &model(new, "a model"));
        assert!(bytes < most, "{bytes}");
    };
    let mut other = old.clone();
    other.reverse();
    cheap(&other, 500);
    cheap(&old[1..4], 400);
    let renamed: Vec<_> = old.iter().enumerate().map(|(at, w)| w.named(&format!("onnx::MatMul_{at}"))).collect();
    cheap(&renamed, 700);
    // Renamed and trained on.
    let nudged: Vec<_> = renamed.iter().map(|w| w.map(|x| f32::from_bits(x.to_bits() ^ 1))).collect();
    cheap(&nudged, 2_000);
    let mut more = old.clone();
    more.push(Weights::f32("new", &[500], &drawn(&mut rng, 500)));
    cheap(&more, 2_500);
    // Classes more, in either layout.
    let head = |dims: [u64; 2], of: &dyn Fn(usize, usize) -> f32| {
        let mut values = Vec::new();
        (0..dims[0]).for_each(|row| (0..dims[1]).for_each(|column| values.push(of(row as usize, column as usize))));
        Weights::f32("head", &dims, &values)
    };
    let at = |row: usize, column: usize| ((row * 131 + column * 17) % 1_000) as f32 / 777.0;
    for (before, after) in [([10, 120], [12, 120]), ([120, 10], [120, 12]), ([120, 12], [120, 10])] {
        let (old, new) = ([head(before, &at)], [head(after, &at)]);
        let (bytes, _) = through(&model(&old, "x"), &model(&new, "x"));
        assert!(bytes < 1_700, "{before:?} to {after:?}: {bytes}");
    }
}

#[test]
fn any_type_in_any_field_comes_back() {
    let mut rng = fastrand::Rng::with_seed(3);
    for (data_type, field, width) in [
        (1, 4, 4),
        (10, 9, 2),
        (16, 9, 2),
        (11, 10, 8),
        (7, 7, 1),
        (6, 5, 1),
        (3, 9, 1),
        (7, 9, 8),
        (22, 9, 1),
        (8, 6, 1),
    ] {
        for count in [0, 1, 7, 3_000] {
            let dims = vec![count];
            let mut bytes = vec![0; count as usize * width];
            rng.fill(&mut bytes);
            let old = Weights { name: "w".to_owned(), data_type, dims, field, bytes };
            let mut new = old.clone();
            let places = new.bytes.len();
            (0..places / 9).for_each(|_| new.bytes[rng.usize(..places)] = rng.u8(..));
            through(&model(std::slice::from_ref(&old), "x"), &model(&[new], "x"));
        }
    }
}

#[test]
fn odd_floats_come_back() {
    let odd = [
        0.0,
        -0.0,
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MIN_POSITIVE,
        1e-45,
        -1e-45,
        f32::MAX,
        1.0,
    ];
    let pairs = odd.iter().flat_map(|a| odd.iter().map(|b| (*a, *b)));
    let (old, new): (Vec<f32>, Vec<f32>) = pairs.cycle().take(5_000).unzip();
    let weights = |values: &[f32]| model(&[Weights::f32("w", &[50, 100], values)], "x");
    through(&weights(&old), &weights(&new));
    // With loss, what is no number stays exact.
    let options = Options { lossy: Some(Lossy::Int8), ..Options::default() };
    let (file, report, result) = made(&weights(&old), &weights(&new), &options);
    assert_eq!(result, weights(&new));
    assert!(report.deviation.is_none());
    assert_eq!(applied(&weights(&old), &file).unwrap(), result);
}

#[test]
fn with_loss_it_is_smaller_and_says_how_far_off() {
    let mut rng = fastrand::Rng::with_seed(4);
    let old = layers(&mut rng);
    let new: Vec<_> = old.iter().map(|w| w.map(|x| x * (0.99 + 0.02 * rng.f32()))).collect();
    let (old_file, new_file) = (model(&old, "x"), model(&new, "x"));
    let mut before = through(&old_file, &new_file).0;
    for (lossy, steps) in [(Lossy::Int8, 127.0), (Lossy::Int4, 7.0)] {
        let options = Options { lossy: Some(lossy), ..Options::default() };
        let (file, report, result) = made(&old_file, &new_file, &options);
        assert!(file.len() * 3 < before * 2, "{} after {before}", file.len());
        before = file.len();
        assert!(report.header.lossy);
        assert_eq!(applied(&old_file, &file).unwrap(), result);
        let deviation = report.deviation.unwrap();
        assert!(deviation.largest > 0.0 && deviation.rms < deviation.largest);
        let mut largest = 0f64;
        let at = |tensor: &Weights| new_file.windows(tensor.bytes.len()).position(|w| w == tensor.bytes).unwrap();
        for (old, new) in old.iter().zip(&new) {
            let bytes = &result[at(new)..at(new) + new.bytes.len()];
            let made = Weights { bytes: bytes.to_vec(), ..new.clone() };
            let most = old.floats().zip(new.floats()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            for (made, new) in made.floats().zip(new.floats()) {
                assert!((made - new).abs() <= most / steps * 0.5001 + 1e-9, "half a step at most");
                largest = largest.max(f64::from((made - new).abs()));
            }
            if new.dims.len() == 1 {
                assert_eq!(bytes, new.bytes, "biases stay exact");
            }
        }
        assert!((largest - deviation.largest).abs() < 1e-7 * largest.max(1.0));
    }
    // The same in halves.
    let half = |values: &[Weights], bf: bool| {
        let narrow = |x: f32| if bf { bf16::from_f32(x).to_le_bytes() } else { f16::from_f32(x).to_le_bytes() };
        let tensors = values.iter().map(|w| Weights {
            data_type: if bf { 16 } else { 10 },
            bytes: w.floats().flat_map(narrow).collect(),
            ..w.clone()
        });
        model(&tensors.collect::<Vec<_>>(), "x")
    };
    for bf in [false, true] {
        let options = Options { lossy: Some(Lossy::Int4), ..Options::default() };
        let (file, _, result) = made(&half(&old, bf), &half(&new, bf), &options);
        assert_eq!(applied(&half(&old, bf), &file).unwrap(), result);
    }
}

//! What a codec costs and loses on a tensor, measured here and now.

use std::time::{Duration, Instant};

use tierline_graph::{Elements, Tensor};

use crate::{Codec, CodecError};

/// What [`measure`] found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measurement {
    /// Time to encode on this device, median, nanoseconds.
    pub encode_ns: u64,
    /// Time to decode on this device, median, nanoseconds.
    pub decode_ns: u64,
    /// Encoded bytes, header included.
    pub bytes: u64,
    /// What is lost of the values.
    pub loss: Loss,
}

/// How far decoded values are from the given ones; zero for integers, booleans
/// and strings, which codecs keep. Values that are no finite numbers are left
/// out on both sides, as there is no distance to them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Loss {
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Root mean square of the difference over that of the given values; 0
    /// where both are 0.
    pub relative_rms: f64,
}

/// Runs at least; the median of fewer would follow one interruption.
const RUNS_MIN: usize = 5;

/// Encodes and decodes `tensor` for about `time`, at least five times each,
/// after one run that warms caches.
///
/// Time depends on the size, loss on the values: give a tensor that the model
/// really makes there, of the shape that it really has.
///
/// # Errors
/// When the codec doesn't take the tensor's type or values.
pub fn measure(codec: &dyn Codec, tensor: &Tensor, time: Duration) -> Result<Measurement, CodecError> {
    let mut encoded = Vec::new();
    codec.encode(tensor, &mut encoded)?;
    let decoded = codec.decode(&encoded)?;
    let bytes = encoded.len() as u64;
    let loss = loss(tensor, &decoded);
    let (mut encode, mut decode) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    while encode.len() < RUNS_MIN || begin.elapsed() < time {
        // The buffer is reused, as a sender does.
        encoded.clear();
        let start = Instant::now();
        codec.encode(tensor, &mut encoded)?;
        let middle = Instant::now();
        let decoded = codec.decode(&encoded)?;
        decode.push(middle.elapsed());
        encode.push(middle - start);
        std::hint::black_box(decoded);
    }
    Ok(Measurement { encode_ns: median(encode), decode_ns: median(decode), bytes, loss })
}

fn median(mut times: Vec<Duration>) -> u64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX))
}

/// How far `decoded` is from `given`, a tensor of the same shape and type.
#[must_use]
pub fn loss(given: &Tensor, decoded: &Tensor) -> Loss {
    match (given.elements(), decoded.elements()) {
        (Elements::F32(a), Elements::F32(b)) => differences(a, b, |v| f64::from(*v)),
        (Elements::F64(a), Elements::F64(b)) => differences(a, b, |v| *v),
        (Elements::F16(a), Elements::F16(b)) => differences(a, b, |v| v.to_f64()),
        (Elements::BF16(a), Elements::BF16(b)) => differences(a, b, |v| v.to_f64()),
        _ => Loss::default(),
    }
}

fn differences<T>(given: &[T], decoded: &[T], number: impl Fn(&T) -> f64) -> Loss {
    let (mut max_abs, mut squares, mut whole) = (0f64, 0f64, 0f64);
    for (a, b) in given.iter().map(&number).zip(decoded.iter().map(&number)) {
        if a.is_finite() && b.is_finite() {
            max_abs = max_abs.max((a - b).abs());
            squares += (a - b) * (a - b);
            whole += a * a;
        }
    }
    Loss { max_abs, relative_rms: if squares == 0.0 { 0.0 } else { (squares / whole).sqrt() } }
}

//! Between tensors in memory and tensors on the wire: codecs applied, frames
//! assembled, failures given their codes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tierline_codec::frame::Header;
use tierline_graph::{Tensor, ValueInfo};
use tierline_proto::limits::RUN_BYTES_MAX;
use tierline_proto::v1::{self, Code, Failure};
use tierline_proto::{Assembler, Encoded};
use tonic::Streaming;

use crate::device::budget::Held;
use crate::device::program::Named;

/// Tensors encoded for the wire, and the time that took.
pub struct Packed {
    /// The encoded tensors.
    pub tensors: Vec<Encoded>,
    /// Time spent encoding.
    pub time: Duration,
}

/// Encodes `tensors`, each with the codec `codec_of` names for it.
///
/// # Errors
/// When a codec is unknown or refuses a tensor.
pub fn pack<'a>(tensors: &[(String, Tensor)], codec_of: impl Fn(&str) -> &'a str) -> Result<Packed, Failure> {
    let started = Instant::now();
    let tensors = tensors
        .iter()
        .map(|(name, tensor)| {
            let wanted = codec_of(name);
            let named = tierline_codec::by_name(wanted).ok_or_else(|| {
                Failure::new(Code::Protocol, format!("tensor `{name}`: codec `{wanted}` is unknown here"))
            })?;
            // A codec chosen for floats may meet an integer mask in the same
            // frontier; raw carries everything.
            let codec = if named.accepts(tensor.dtype()) { named } else { raw() };
            let mut data = Vec::new();
            match codec.encode(tensor, &mut data) {
                Ok(()) => Ok(Encoded { name: name.clone(), codec: codec.name().to_owned(), data: Bytes::from(data) }),
                // Values a lossy codec can't hold (NaN, infinity) travel raw
                // rather than changed.
                Err(_) if !codec.lossless() => {
                    data.clear();
                    raw()
                        .encode(tensor, &mut data)
                        .map_err(|e| Failure::new(Code::InvalidInput, format!("tensor `{name}`: {e}")))?;
                    Ok(Encoded { name: name.clone(), codec: raw().name().to_owned(), data: Bytes::from(data) })
                }
                Err(e) => Err(Failure::new(Code::InvalidInput, format!("tensor `{name}`: {e}"))),
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Packed { tensors, time: started.elapsed() })
}

/// Decodes tensors from the wire, and says how long that took.
///
/// # Errors
/// When a codec is unknown or the bytes are broken.
pub fn unpack(encoded: &[Encoded]) -> Result<(Named, Duration), Failure> {
    let started = Instant::now();
    let named = encoded
        .iter()
        .map(|e| {
            let codec = tierline_codec::by_name(&e.codec)
                .ok_or_else(|| invalid(&e.name, format!("codec `{}` is unknown here", e.codec)))?;
            let size = head(e)?.bytes();
            let tensor = codec.decode_within(&e.data, size).map_err(|err| invalid(&e.name, err))?;
            Ok((e.name.clone(), tensor))
        })
        .collect::<Result<Named, Failure>>()?;
    Ok((named, started.elapsed()))
}

fn invalid(tensor: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(Code::InvalidInput, format!("tensor `{tensor}`: {why}"))
}

/// What an encoded tensor says of itself.
fn head(encoded: &Encoded) -> Result<Header, Failure> {
    Header::read(&encoded.data).map(|(header, _)| header).map_err(|e| invalid(&encoded.name, e))
}

/// Bytes that encoded tensors take once they are decoded.
///
/// # Errors
/// [`Code::InvalidInput`] when one doesn't say what it is.
pub fn decoded_bytes(encoded: &[Encoded]) -> Result<u64, Failure> {
    encoded.iter().try_fold(0u64, |sum, e| Ok(sum.saturating_add(head(e)?.bytes())))
}

/// Compares what encoded tensors say of themselves with what is wanted, before
/// any of them is decoded: names, element types, and axes that are fixed.
///
/// # Errors
/// [`Code::InvalidInput`], naming the tensor.
pub fn check_wanted(encoded: &[Encoded], wanted: &[ValueInfo]) -> Result<(), Failure> {
    let failure = |text: String| Err(Failure::new(Code::InvalidInput, text));
    let takes = || wanted.iter().map(|w| format!("`{}`", w.name)).collect::<Vec<_>>().join(", ");
    // Before what is missing: a wrong name makes a right one miss.
    if let Some(extra) = encoded.iter().find(|e| wanted.iter().all(|w| w.name != e.name)) {
        return failure(format!("the model has no input `{}`; it takes {}", extra.name, takes()));
    }
    for want in wanted {
        let Some(given) = encoded.iter().find(|e| e.name == want.name) else {
            return failure(format!("input `{}` is missing; the model takes {}", want.name, takes()));
        };
        let Header { dtype, shape } = head(given)?;
        if let Some(wanted) = want.dtype
            && wanted != dtype
        {
            return failure(format!("input `{}` is {dtype}, the model takes {wanted}", want.name));
        }
        if let Some(axes) = &want.shape {
            let fits = axes.len() == shape.len()
                && axes.iter().zip(&shape).all(|(d, &n)| d.known().is_none_or(|known| known == n as u64));
            if !fits {
                let axes: Vec<String> = axes.iter().map(ToString::to_string).collect();
                return failure(format!(
                    "input `{}` has shape {shape:?}, the model takes [{}]",
                    want.name,
                    axes.join(", ")
                ));
            }
        }
    }
    Ok(())
}

/// The codec that carries everything unchanged.
#[must_use]
pub fn raw() -> &'static dyn tierline_codec::Codec {
    tierline_codec::by_name("raw").unwrap_or(tierline_codec::codecs()[0])
}

/// Bytes of encoded tensors.
#[must_use]
pub fn total(tensors: &[Encoded]) -> u64 {
    tensors.iter().map(|t| t.data.len() as u64).sum()
}

/// Bytes of tensors in memory.
#[must_use]
pub fn bytes(tensors: &[(String, Tensor)]) -> u64 {
    tensors.iter().map(|(_, tensor)| tensor.byte_len()).sum()
}

/// Bytes that a header or reply declares.
#[must_use]
pub fn declared_bytes(declared: &[v1::TensorInfo]) -> u64 {
    declared.iter().fold(0, |sum, t| sum.saturating_add(t.length))
}

/// Collects the tensors declared in a header or reply from the chunks that
/// follow it; `chunk_of` takes the chunk out of the stream's message. The bytes
/// declared are admitted by the caller, before.
///
/// # Errors
/// When the stream breaks, ends early, or doesn't match the declaration.
pub async fn collect<M>(
    stream: &mut Streaming<M>,
    declared: Vec<v1::TensorInfo>,
    chunk_of: impl Fn(M) -> Option<v1::TensorChunk>,
) -> Result<Vec<Encoded>, Failure> {
    let protocol = |e: tierline_proto::FrameError| Failure::new(Code::Protocol, e.to_string());
    let mut assembler = Assembler::new(declared, RUN_BYTES_MAX).map_err(protocol)?;
    while !assembler.is_complete() {
        let message = stream.message().await.map_err(|s| Failure::from_status(&s))?;
        let Some(message) = message else { break };
        let chunk = chunk_of(message).ok_or_else(|| {
            Failure::new(Code::Protocol, "a tensor chunk was expected; the peers speak different protocols")
        })?;
        assembler.push(chunk).map_err(protocol)?;
    }
    assembler.finish().map_err(protocol)
}

/// Collects a request's tensors as [`collect`] does, into memory that it may
/// hold. A caller that stalls must not hold it for ever.
///
/// # Errors
/// Also [`Code::DeadlineExceeded`], and those of [`Held::take`].
pub async fn collect_by<M>(
    deadline: Instant,
    stream: &mut Streaming<M>,
    declared: Vec<v1::TensorInfo>,
    held: &Held,
    chunk_of: impl Fn(M) -> Option<v1::TensorChunk>,
) -> Result<Vec<Encoded>, Failure> {
    held.take(declared_bytes(&declared))?;
    let collected = tokio::time::timeout_at(deadline.into(), collect(stream, declared, chunk_of)).await;
    let late = |_| Failure::new(Code::DeadlineExceeded, "the request did not arrive whole in its time");
    collected.map_err(late)?
}

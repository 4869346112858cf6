//! Bytes that repeat parts of others: zstd with the others as a prefix, as in
//! `zstd --patch-from`.

use std::io::{Read, Write};

use super::super::error::DeltaError;

/// Largest window of zstd that is used, as a power of two: a decoder's memory.
pub const WINDOW_LOG_MAX: u32 = 27;

/// Appends `new`, with `prefix` before it.
pub fn encode(prefix: &[u8], new: &[u8], level: i32, out: &mut Vec<u8>) -> std::io::Result<()> {
    let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(out, level, prefix)?;
    let reach = (prefix.len() + new.len()).max(1) as u64;
    encoder.window_log((64 - reach.leading_zeros()).clamp(10, WINDOW_LOG_MAX))?;
    encoder.include_contentsize(false)?;
    encoder.include_checksum(false)?;
    encoder.long_distance_matching(prefix.len() > 8 << 20)?;
    encoder.write_all(new)?;
    encoder.finish().map(drop)
}

/// The `length` bytes that were encoded.
pub fn decode(prefix: &[u8], bytes: &[u8], length: usize) -> Result<Vec<u8>, DeltaError> {
    const BROKEN: DeltaError = DeltaError::Corrupt("a part of it doesn't unpack");
    let mut decoder = zstd::stream::read::Decoder::with_ref_prefix(bytes, prefix).map_err(|_| BROKEN)?.single_frame();
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(|_| BROKEN)?;
    let mut new = Vec::new();
    // Grows with what comes, and a byte more would be one too many.
    decoder.take(length as u64 + 1).read_to_end(&mut new).map_err(|_| BROKEN)?;
    if new.len() == length { Ok(new) } else { Err(BROKEN) }
}

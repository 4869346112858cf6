//! Ways to write bytes so that they are short beside those of the base.
//!
//! Each is one file; [`encode`] takes the shortest. What has no counterpart in
//! the base is coded beside zeros.

pub mod difference;
pub mod entropy;
pub mod lossy;
pub mod patch;
mod planes;

use super::bytes::Bytes;
use super::element::Element;
use super::error::DeltaError;

/// Writes a part at a level of compression.
type Encode<'p> = dyn Fn(i32, &mut Vec<u8>) + 'p;

/// How a part's changed bytes are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coding {
    /// As they are: nothing shorter was found.
    Stored = 0,
    /// zstd, without a look at the base.
    Plain = 1,
    /// Bits that differ, in byte planes, zstd.
    Planes = 2,
    /// Differences of elements.
    Difference = 3,
    /// Differences of those elements that changed.
    Sparse = 4,
    /// Differences on a coarse grid: with loss.
    Grid = 5,
    /// zstd with the base as a prefix.
    Patch = 6,
}

impl Coding {
    pub const ALL: [Self; 7] =
        [Self::Stored, Self::Plain, Self::Planes, Self::Difference, Self::Sparse, Self::Grid, Self::Patch];

    /// Its name, in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Plain => "plain",
            Self::Planes => "planes",
            Self::Difference => "difference",
            Self::Sparse => "sparse",
            Self::Grid => "grid",
            Self::Patch => "patch",
        }
    }
}

/// zstd's level for finding out what it would give.
pub const TRIAL_LEVEL: i32 = 1;

/// A trial that comes within an eighth of the best is done in earnest.
pub const TRIAL_SHARE: usize = 8;

/// The same of planes, of which a higher level makes little more.
const PLANES_TRIAL_SHARE: usize = 64;

/// The shortest coding of `new` beside `old`, which is as long, of whole
/// elements.
pub fn encode(old: &[u8], new: &[u8], element: Element, level: i32) -> (Coding, Element, Vec<u8>) {
    let mut best = (Coding::Stored, Element::U8, new.to_vec());
    let mut offer = |coding, payload: Vec<u8>| {
        if payload.len() < best.2.len() {
            best = (coding, element, payload);
        }
        best.2.len()
    };
    let code = |encode: &dyn Fn(&mut Vec<u8>)| {
        let mut payload = Vec::new();
        encode(&mut payload);
        payload
    };
    let width = element.width();
    let changed = old.chunks_exact(width).zip(new.chunks_exact(width)).filter(|(a, b)| a != b).count();
    offer(Coding::Difference, code(&|out| difference::encode(old, new, element, out)));
    if changed * 2 < new.len() / width {
        offer(Coding::Sparse, code(&|out| difference::encode_sparse(old, new, element, out)));
    }
    let planes = |level, out: &mut Vec<u8>| planes::encode(old, new, element, level, out);
    let plain = |level, out: &mut Vec<u8>| pack(new, level, out);
    let zstd: [(_, &Encode<'_>, _); 2] =
        [(Coding::Planes, &planes, PLANES_TRIAL_SHARE), (Coding::Plain, &plain, TRIAL_SHARE)];
    for (coding, encode, share) in zstd {
        let trial = code(&|out| encode(TRIAL_LEVEL, out));
        let length = trial.len();
        let shortest = offer(coding, trial);
        if length < shortest + shortest / share {
            offer(coding, code(&|out| encode(level, out)));
        }
    }
    best
}

/// The new bytes beside `old`, as many.
pub fn decode(coding: Coding, element: Element, old: &[u8], payload: &[u8]) -> Result<Vec<u8>, DeltaError> {
    if !old.len().is_multiple_of(element.width()) {
        return Err(DeltaError::Corrupt("a part of it holds no whole elements"));
    }
    let mut new = Vec::with_capacity(old.len());
    let mut bytes = Bytes::new(payload);
    match coding {
        Coding::Stored => new.extend_from_slice(payload),
        Coding::Plain => new = unpack(payload, old.len())?,
        Coding::Planes => planes::decode(old, element, payload, &mut new)?,
        Coding::Difference => {
            difference::decode(old, element, &mut bytes, &mut new)?;
            bytes.end()?;
        }
        Coding::Sparse => {
            difference::decode_sparse(old, element, &mut bytes, &mut new)?;
            bytes.end()?;
        }
        Coding::Grid => {
            lossy::decode(old, element, &mut bytes, &mut new)?;
            bytes.end()?;
        }
        Coding::Patch => return Err(DeltaError::Corrupt("a part of it has no prefix")),
    }
    if new.len() == old.len() { Ok(new) } else { Err(DeltaError::Corrupt("a part of it has another length")) }
}

/// Appends what zstd makes of it; as it is when zstd has no memory.
fn pack(bytes: &[u8], level: i32, out: &mut Vec<u8>) {
    match zstd::bulk::compress(bytes, level) {
        Ok(packed) => out.extend_from_slice(&packed),
        // Longer than stored, so it isn't taken.
        Err(_) => out.resize(out.len() + bytes.len() + 1, 0),
    }
}

fn unpack(bytes: &[u8], length: usize) -> Result<Vec<u8>, DeltaError> {
    let broken = || DeltaError::Corrupt("a part of it doesn't unpack");
    let unpacked = zstd::bulk::decompress(bytes, length).map_err(|_| broken())?;
    if unpacked.len() == length { Ok(unpacked) } else { Err(broken()) }
}

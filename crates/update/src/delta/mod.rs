//! Deltas: a new version of a file as what differs from the old one.
//!
//! Works on any two files and gives the new one back byte for byte. Of ONNX
//! models it knows where tensors lie, so that weights are coded as differences
//! of numbers; everything else is coded beside the bytes that resemble it.
//! With loss ([`Options::lossy`]) weights are only close to the new ones; the
//! result then has a digest of its own, which is what to sign and to gate.
//!
//! Files are read and written through `std::io`'s traits and never held in
//! memory: some MB at a time, whatever their size. What comes from elsewhere is
//! checked at the door ([`Delta::open`]); the base is verified by hashing it
//! before anything is written, the result while it is written.
//! `docs/design/delta.md` describes the format and says why.
//!
//! Start at [`make`] and [`apply`].

mod align;
mod apply;
mod bytes;
mod coding;
mod element;
mod error;
mod header;
mod make;
mod onnx;
mod table;

use std::io::{Read, Seek, Write};

pub use apply::{Delta, apply};
pub use error::DeltaError;
pub use header::{Digest, HEADER_BYTES, Header, VERSION};

use element::Element;
use table::{Part, Source};

/// How a delta is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// zstd's level where zstd is the shortest, 1 to 22.
    pub level: i32,
    /// Weights with loss, or exactly.
    pub lossy: Option<Lossy>,
}

impl Default for Options {
    fn default() -> Self {
        Self { level: 19, lossy: None }
    }
}

/// How coarse differences of weights become. Biases, scales and whatever isn't
/// a float of 32 or 16 bits stay exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lossy {
    /// 127 steps in each direction.
    Int8,
    /// 7 steps in each direction.
    Int4,
}

impl Lossy {
    fn steps(self) -> u8 {
        match self {
            Self::Int8 => 127,
            Self::Int4 => 7,
        }
    }
}

/// What became of the new file's bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The delta's header.
    pub header: Header,
    /// Bytes of the result that are copied from the base.
    pub same_bytes: u64,
    /// Bytes between tensors that aren't in the base.
    pub text_bytes: u64,
    /// What codes the others, those with the most bytes first.
    pub codings: Vec<Coded>,
    /// How far the result is from the new file; `None` when not at all.
    pub deviation: Option<Deviation>,
}

/// What one way of coding was used for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coded {
    /// Its name.
    pub coding: &'static str,
    /// Parts coded so.
    pub parts: u64,
    /// Bytes of the result.
    pub bytes: u64,
    /// Bytes of the delta.
    pub coded_bytes: u64,
}

/// How far the weights of a lossy result are from the new ones.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Deviation {
    /// The largest distance.
    pub largest: f64,
    /// The root of the mean square distance.
    pub rms: f64,
    /// The same of the weights themselves, to compare with.
    pub weights_rms: f64,
    /// How many weights there are.
    pub weights: u64,
}

/// Writes to `delta` what makes `new` of `base`.
///
/// `result` gets what [`apply`] will make of it: the bytes of `new`, or with
/// loss those close to it; [`std::io::sink`] where nobody asks.
///
/// # Errors
/// When the system refuses, or a file changes while it is read.
pub fn make(
    base: &mut (impl Read + Seek),
    new: &mut (impl Read + Seek),
    options: &Options,
    delta: &mut (impl Write + Seek),
    result: &mut impl Write,
) -> Result<Report, DeltaError> {
    make::Maker { base, new, delta, result, options }.make()
}

/// A report that still grows.
#[derive(Default)]
struct Tally {
    same_bytes: u64,
    codings: std::collections::BTreeMap<coding::Coding, Coded>,
    deviation: Option<Deviation>,
}

impl Tally {
    fn count(&mut self, part: &Part) {
        self.same_bytes +=
            part.runs.iter().filter(|run| matches!(run.source, Source::Same(_))).map(|run| run.length).sum::<u64>();
        if part.payload_bytes > 0 {
            let coded = self.codings.entry(part.coding).or_default();
            coded.coding = part.coding.name();
            coded.parts += 1;
            coded.bytes += part.changed();
            coded.coded_bytes += part.payload_bytes;
        }
    }

    /// Sums stay sums of squares until [`Tally::report`].
    fn deviates(&mut self, new: &[u8], made: &[u8], element: Element) {
        let sum = self.deviation.get_or_insert_default();
        for (new, made) in new.chunks_exact(element.width()).zip(made.chunks_exact(element.width())) {
            let (new, made) = (coding::lossy::read(new, element), coding::lossy::read(made, element));
            let (new, by) = (f64::from(new), f64::from(made) - f64::from(new));
            sum.largest = sum.largest.max(by.abs());
            sum.rms += by * by;
            sum.weights_rms += new * new;
            sum.weights += 1;
        }
    }

    fn report(self, header: Header, text_bytes: u64) -> Report {
        let mut codings: Vec<Coded> = self.codings.into_values().collect();
        codings.sort_by_key(|coded| std::cmp::Reverse(coded.bytes));
        let root = |sum: f64, count: u64| (sum / count.max(1) as f64).sqrt();
        let deviation = self.deviation.map(|d| Deviation {
            rms: root(d.rms, d.weights),
            weights_rms: root(d.weights_rms, d.weights),
            ..d
        });
        Report { header, same_bytes: self.same_bytes, text_bytes, codings, deviation }
    }
}

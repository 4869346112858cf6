//! What a delta consists of: parts in the order of the result, each some runs
//! of bytes and what codes those that changed.

use super::bytes::{Bytes, unzigzag, varint, zigzag};
use super::coding::Coding;
use super::element::Element;
use super::error::DeltaError;

/// Runs of a delta at most, dictionary ranges included.
pub const RUNS_MAX: u64 = 1 << 18;

/// Bytes of the table at most, before zstd.
pub const TABLE_BYTES_MAX: u64 = 8 << 20;

/// Changed bytes of a part at most: what is decoded at once.
pub const PART_BYTES_MAX: u64 = 4 << 20;

/// Bytes of the base that a part's prefix has at most.
pub const PREFIX_BYTES_MAX: u64 = 16 << 20;

/// Bytes of text at most: what lies between tensors and differs.
pub const TEXT_BYTES_MAX: u64 = 16 << 20;

/// zstd's level for the table.
const LEVEL: i32 = 19;

/// Where a run's bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The base, as they are there from this offset on.
    Same(u64),
    /// The part's payload, beside the base's from this offset on.
    Changed(u64),
    /// The part's payload, beside zeros.
    Fresh,
    /// The next bytes of the text.
    Text,
}

/// So many bytes of the result, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub source: Source,
    pub length: u64,
}

/// Runs that are decoded together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub coding: Coding,
    pub element: Element,
    pub payload_bytes: u64,
    /// Where in the base the prefix begins, and its length; of [`Coding::Patch`].
    pub prefix: (u64, u64),
    pub runs: Vec<Run>,
}

impl Part {
    /// Bytes that its payload codes.
    pub fn changed(&self) -> u64 {
        let coded = |run: &&Run| matches!(run.source, Source::Changed(_) | Source::Fresh);
        self.runs.iter().filter(coded).map(|run| run.length).sum()
    }
}

/// The bytes between tensors that aren't in the base, all together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text {
    pub length: u64,
    pub payload_bytes: u64,
    /// Ranges of the base before which zstd wrote it: where each begins, and its
    /// length.
    pub dictionary: Vec<(u64, u64)>,
}

/// All parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    pub parts: Vec<Part>,
    pub text: Text,
}

impl Table {
    /// The table's bytes, and how many they are without zstd.
    pub fn write(&self) -> std::io::Result<(Vec<u8>, u32)> {
        let mut out = Vec::new();
        varint(self.text.length, &mut out);
        if self.text.length > 0 {
            varint(self.text.payload_bytes, &mut out);
            varint(self.text.dictionary.len() as u64, &mut out);
            let mut end = 0;
            for (start, length) in &self.text.dictionary {
                varint(start - end, &mut out);
                varint(*length, &mut out);
                end = start + length;
            }
        }
        varint(self.parts.len() as u64, &mut out);
        let mut expected = 0u64;
        for part in &self.parts {
            out.push(part.coding as u8 | (part.element as u8) << 4);
            varint(part.payload_bytes, &mut out);
            if part.coding == Coding::Patch {
                varint(part.prefix.0, &mut out);
                varint(part.prefix.1, &mut out);
            }
            varint(part.runs.len() as u64, &mut out);
            for run in &part.runs {
                let (kind, base) = match run.source {
                    Source::Same(base) => (0, Some(base)),
                    Source::Changed(base) => (1, Some(base)),
                    Source::Fresh => (2, None),
                    Source::Text => (3, None),
                };
                varint(run.length << 2 | kind, &mut out);
                if let Some(base) = base {
                    varint(zigzag(base.wrapping_sub(expected) as i64), &mut out);
                    expected = base + run.length;
                }
            }
        }
        Ok((zstd::bulk::compress(&out, LEVEL)?, out.len() as u32))
    }

    /// Reads and checks it: every run within the base, all runs as long as the
    /// result, all payloads as long as `payload_bytes`.
    pub fn read(packed: &[u8], length: u32, sizes: Sizes) -> Result<Self, DeltaError> {
        if u64::from(length) > TABLE_BYTES_MAX {
            return Err(too_large("bytes of the table of parts", length.into(), TABLE_BYTES_MAX));
        }
        let unpacked = zstd::bulk::decompress(packed, length as usize)
            .map_err(|_| DeltaError::Corrupt("its table of parts doesn't unpack"))?;
        if unpacked.len() != length as usize {
            return Err(DeltaError::Corrupt("its table of parts has another length"));
        }
        let mut bytes = Bytes::new(&unpacked);
        let mut check = Check { sizes, runs: 0, result: 0, payload: 0, text: 0 };
        let text = text(&mut bytes, &mut check)?;
        let count = bytes.varint()?;
        check.count(count, bytes.len())?;
        let mut parts = Vec::with_capacity(count as usize);
        let mut expected = 0;
        for _ in 0..count {
            parts.push(part(&mut bytes, &mut check, &mut expected)?);
        }
        bytes.end()?;
        if check.result != sizes.result || check.payload != sizes.payload || check.text != text.length {
            return Err(DeltaError::Corrupt("its parts don't make up the result"));
        }
        Ok(Self { parts, text })
    }
}

/// Lengths that a table must agree with.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub base: u64,
    pub result: u64,
    pub payload: u64,
}

/// Sums of what was read.
struct Check {
    sizes: Sizes,
    runs: u64,
    result: u64,
    payload: u64,
    text: u64,
}

impl Check {
    /// So many more of what takes a byte each at least.
    fn count(&mut self, count: u64, left: usize) -> Result<(), DeltaError> {
        self.runs = self.runs.saturating_add(count);
        if self.runs > RUNS_MAX {
            return Err(too_large("runs of the delta", self.runs, RUNS_MAX));
        }
        if count > left as u64 { Err(DeltaError::Truncated) } else { Ok(()) }
    }

    fn within_base(&self, start: u64, length: u64) -> Result<(), DeltaError> {
        if start.checked_add(length).is_some_and(|end| end <= self.sizes.base) {
            return Ok(());
        }
        Err(DeltaError::Corrupt("a part of it lies behind the end of the base"))
    }

    fn payload(&mut self, length: u64) -> Result<(), DeltaError> {
        self.payload =
            self.payload.checked_add(length).filter(|sum| *sum <= self.sizes.payload).ok_or(DeltaError::Truncated)?;
        Ok(())
    }
}

fn text(bytes: &mut Bytes<'_>, check: &mut Check) -> Result<Text, DeltaError> {
    let length = bytes.varint()?;
    if length == 0 {
        return Ok(Text::default());
    }
    if length > TEXT_BYTES_MAX {
        return Err(too_large("bytes of text of the delta", length, TEXT_BYTES_MAX));
    }
    let payload_bytes = bytes.varint()?;
    check.payload(payload_bytes)?;
    let count = bytes.varint()?;
    check.count(count, bytes.len())?;
    let mut dictionary = Vec::with_capacity(count as usize);
    let (mut end, mut sum) = (0u64, 0u64);
    for _ in 0..count {
        let (gap, length) = (bytes.varint()?, bytes.varint()?);
        let start = end.checked_add(gap).ok_or(DeltaError::Truncated)?;
        check.within_base(start, length)?;
        end = start + length;
        sum += length;
        if sum > PREFIX_BYTES_MAX {
            return Err(too_large("bytes of a prefix in the delta", sum, PREFIX_BYTES_MAX));
        }
        dictionary.push((start, length));
    }
    Ok(Text { length, payload_bytes, dictionary })
}

fn part(bytes: &mut Bytes<'_>, check: &mut Check, expected: &mut u64) -> Result<Part, DeltaError> {
    let byte = usize::from(bytes.u8()?);
    let coding = Coding::ALL.get(byte & 0xf).ok_or(DeltaError::Corrupt("a part of it has an unknown coding"))?;
    let element = Element::ALL.get(byte >> 4).ok_or(DeltaError::Corrupt("a part of it has an unknown element"))?;
    let payload_bytes = bytes.varint()?;
    check.payload(payload_bytes)?;
    let prefix = if *coding == Coding::Patch { (bytes.varint()?, bytes.varint()?) } else { (0, 0) };
    check.within_base(prefix.0, prefix.1)?;
    if prefix.1 > PREFIX_BYTES_MAX {
        return Err(too_large("bytes of a prefix in the delta", prefix.1, PREFIX_BYTES_MAX));
    }
    let count = bytes.varint()?;
    check.count(count, bytes.len())?;
    let mut runs = Vec::with_capacity(count as usize);
    let mut changed = 0u64;
    for _ in 0..count {
        let head = bytes.varint()?;
        let length = head >> 2;
        let mut base = || {
            let start = expected.wrapping_add(unzigzag(bytes.varint()?) as u64);
            check.within_base(start, length)?;
            *expected = start + length;
            Ok::<_, DeltaError>(start)
        };
        let source = match head & 3 {
            0 => Source::Same(base()?),
            1 => Source::Changed(base()?),
            2 => Source::Fresh,
            _ => Source::Text,
        };
        let left = check.sizes.result - check.result;
        if length > left {
            return Err(DeltaError::Corrupt("its parts are longer than the result"));
        }
        check.result += length;
        match source {
            Source::Same(_) => {}
            Source::Changed(_) | Source::Fresh => changed += length,
            Source::Text => check.text += length,
        }
        runs.push(Run { source, length });
    }
    if changed > PART_BYTES_MAX {
        return Err(too_large("changed bytes of a part of the delta", changed, PART_BYTES_MAX));
    }
    // What isn't shorter is stored.
    if payload_bytes > changed {
        return Err(DeltaError::Corrupt("a part of it is longer than what it codes"));
    }
    Ok(Part { coding: *coding, element: *element, payload_bytes, prefix, runs })
}

fn too_large(what: &'static str, declared: u64, max: u64) -> DeltaError {
    DeltaError::TooLarge { what, declared, max }
}

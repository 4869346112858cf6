//! From two files, a delta.

use std::io::{Read, Seek, SeekFrom, Write};

use super::align::{Kind, Piece, pieces};
use super::apply::{Emit, digest, fill, gather, read};
use super::coding::{self, Coding, lossy, patch};
use super::element::Element;
use super::error::DeltaError;
use super::header::{Digest, HEADER_BYTES, Header};
use super::onnx;
use super::table::{PREFIX_BYTES_MAX, Part, Run, Source, TEXT_BYTES_MAX, Table, Text};
use super::{Lossy, Options, Report, Tally};

/// Changed bytes of a part: enough that tables of frequencies don't count,
/// little enough that a part's own statistics do.
const PART_BYTES: usize = 2 << 20;

/// The same of data without known structure: the prefix around it is read for
/// each.
const UNKNOWN_PART_BYTES: usize = 4 << 20;

/// Bytes that are compared at once.
const BLOCK_BYTES: usize = 4 << 10;

/// Equal bytes within a tensor that are worth a run of their own.
const SAME_BYTES_MIN: usize = 32 << 10;

/// Equal bytes between tensors that are.
const SAME_TEXT_BYTES_MIN: usize = 24;

/// How far around a part without known structure matches are looked for.
const PREFIX_REACH_BYTES: u64 = 4 << 20;

/// Runs after which tensors are no longer taken apart.
const RUNS_WANTED_MAX: usize = 1 << 17;

/// Tensors that stand beside each other at most: beyond, the file is treated
/// as one without structure.
const PIECES_MAX: usize = 1 << 16;

/// Bytes of a part by which the element of unknown data is guessed.
const SAMPLE_BYTES: usize = 64 << 10;

/// What data of unknown type may be.
const GUESSES: [Element; 5] = [Element::U8, Element::F32, Element::Bf16, Element::F16, Element::F64];

/// What making one needs.
pub(super) struct Maker<'a, B, N, D, R> {
    pub base: &'a mut B,
    pub new: &'a mut N,
    pub delta: &'a mut D,
    pub result: R,
    pub options: &'a Options,
}

impl<B: Read + Seek, N: Read + Seek, D: Write + Seek, R: Write> Maker<'_, B, N, D, R> {
    pub fn make(self) -> Result<Report, DeltaError> {
        let Self { base, new, delta, result, options } = self;
        let (base_digest, base_bytes) = digest(base, "the base")?;
        let new_bytes = new.seek(SeekFrom::End(0)).map_err(read("the new file"))?;
        let pieces = plan(base, base_bytes, new, new_bytes)?;
        let text = text(&pieces, base, new)?;
        let begin = delta.stream_position().map_err(write)?;
        delta.seek(SeekFrom::Start(begin + HEADER_BYTES)).map_err(write)?;
        let emit = Emit { text: &text.bytes, hash: blake3::Hasher::new(), out: result, buffer: vec![0; 256 << 10] };
        let table = Table::default();
        let mut building = Building {
            base,
            base_bytes,
            delta,
            emit,
            options,
            table,
            tally: Tally::default(),
            part: Open::default(),
            runs: 0,
        };
        let mut between = text.runs.into_iter();
        for piece in &pieces {
            match piece.kind {
                Kind::Values { element, base, weights } => {
                    building.values(new, piece, Bytes { elements: Some(element), base, lossy: weights })?;
                }
                Kind::Between { .. } => match between.next().flatten() {
                    Some(runs) => runs.into_iter().for_each(|run| building.part.push(run)),
                    None => {
                        let base = (piece.start < base_bytes).then_some(piece.start);
                        building.values(new, piece, Bytes { elements: None, base, lossy: false })?;
                    }
                },
            }
        }
        building.close()?;
        let Building { delta, emit, mut table, tally, .. } = building;
        let payload = table.parts.iter().map(|part| part.payload_bytes).sum::<u64>();
        table.text = Text {
            length: text.bytes.len() as u64,
            payload_bytes: text.payload.len() as u64,
            dictionary: text.dictionary,
        };
        delta.write_all(&text.payload).map_err(write)?;
        let (packed, table_bytes) = table.write().map_err(write)?;
        delta.write_all(&packed).map_err(write)?;
        let header = Header {
            base: base_digest,
            base_bytes,
            result: Digest(*emit.hash.finalize().as_bytes()),
            result_bytes: new_bytes,
            lossy: options.lossy.is_some(),
            table_start: HEADER_BYTES + payload + table.text.payload_bytes,
            table_packed_bytes: packed.len() as u32,
            table_bytes,
        };
        delta.seek(SeekFrom::Start(begin)).map_err(write)?;
        delta.write_all(&header.to_bytes()).map_err(write)?;
        delta.seek(SeekFrom::Start(begin + header.delta_bytes())).map_err(write)?;
        delta.flush().map_err(write)?;
        let mut result = emit.out;
        result.flush().map_err(|source| DeltaError::Write { what: "the result", source })?;
        Ok(tally.report(header, table.text.length))
    }
}

/// How the new file is taken apart: by its tensors, if both have some.
fn plan(
    base: &mut (impl Read + Seek),
    base_bytes: u64,
    new: &mut (impl Read + Seek),
    new_bytes: u64,
) -> Result<Vec<Piece>, DeltaError> {
    let olds = onnx::tensors(base).map_err(read("the base"))?;
    let news = onnx::tensors(new).map_err(read("the new file"))?;
    let whole = vec![Piece { start: 0, length: new_bytes, kind: Kind::Between { base: (0, u64::MAX) } }];
    let (Some(olds), Some(news)) = (olds, news) else { return Ok(whole) };
    let pieces = pieces((base, &olds, base_bytes), (new, &news, new_bytes))?;
    Ok(if pieces.len() > PIECES_MAX { whole } else { pieces })
}

/// What lies between tensors.
#[derive(Default)]
struct Between {
    /// For each such piece its runs; `None` where it is too large to be text.
    runs: Vec<Option<Vec<Run>>>,
    bytes: Vec<u8>,
    payload: Vec<u8>,
    dictionary: Vec<(u64, u64)>,
}

fn text(pieces: &[Piece], base: &mut (impl Read + Seek), new: &mut (impl Read + Seek)) -> Result<Between, DeltaError> {
    let mut between = Between::default();
    let mut seen = Vec::new();
    for piece in pieces {
        let Kind::Between { base: (start, length) } = piece.kind else { continue };
        if length > TEXT_BYTES_MAX || between.bytes.len() as u64 + piece.length > TEXT_BYTES_MAX {
            between.runs.push(None);
            continue;
        }
        let (mut bytes, mut old) = (Vec::new(), Vec::new());
        new.seek(SeekFrom::Start(piece.start)).map_err(read("the new file"))?;
        fill(new, &mut bytes, piece.length, "the new file")?;
        base.seek(SeekFrom::Start(start)).map_err(read("the base"))?;
        fill(base, &mut old, length, "the base")?;
        between.runs.push(Some(ends(&bytes, &old, start, &mut between.bytes)));
        seen.push((start, length));
    }
    if between.bytes.is_empty() {
        return Ok(between);
    }
    seen.sort_unstable();
    seen.dedup();
    let mut prefix = Vec::new();
    for (start, length) in seen {
        let end = between.dictionary.last().map_or(0, |(start, length): &(u64, u64)| start + length);
        if length > 0 && start >= end && prefix.len() as u64 + length <= TEXT_BYTES_MAX {
            base.seek(SeekFrom::Start(start)).map_err(read("the base"))?;
            fill(base, &mut prefix, length, "the base")?;
            between.dictionary.push((start, length));
        }
    }
    patch::encode(&prefix, &between.bytes, TEXT_LEVEL, &mut between.payload).map_err(write)?;
    let mut alone = Vec::new();
    patch::encode(&[], &between.bytes, TEXT_LEVEL, &mut alone).map_err(write)?;
    // A range takes about three bytes in the table.
    if alone.len() <= between.payload.len() + 3 * between.dictionary.len() {
        between.payload = alone;
        between.dictionary.clear();
    }
    Ok(between)
}

/// zstd's level for text, which is short.
const TEXT_LEVEL: i32 = 19;

/// What begins and ends as `old` does is the same; the rest goes to the text.
fn ends(new: &[u8], old: &[u8], start: u64, text: &mut Vec<u8>) -> Vec<Run> {
    let least = |count: usize| if count == new.len() || count >= SAME_TEXT_BYTES_MIN { count } else { 0 };
    let front = least(new.iter().zip(old).take_while(|(a, b)| a == b).count());
    let (new_rest, old_rest) = (&new[front..], &old[front.min(old.len())..]);
    let back = least(new_rest.iter().rev().zip(old_rest.iter().rev()).take_while(|(a, b)| a == b).count());
    let middle = &new_rest[..new_rest.len() - back];
    text.extend_from_slice(middle);
    let run = |source, count: usize| Run { source, length: count as u64 };
    let back_start = start + (old.len() - back) as u64;
    let runs = [run(Source::Same(start), front), run(Source::Text, middle.len()), run(Source::Same(back_start), back)];
    runs.into_iter().filter(|run| run.length > 0).collect()
}

/// Some bytes of the new file and what is known of them.
#[derive(Clone, Copy)]
struct Bytes {
    /// `None` where nothing is known.
    elements: Option<Element>,
    base: Option<u64>,
    lossy: bool,
}

/// A part that still grows.
#[derive(Default)]
struct Open {
    runs: Vec<Run>,
    new: Vec<u8>,
    /// Of what its changed bytes are, and whether with loss.
    kind: Option<(Option<Element>, bool)>,
    /// Where they begin in the new file.
    start: u64,
}

impl Open {
    /// Adds a run, or makes the last one longer.
    fn push(&mut self, run: Run) {
        if run.length == 0 {
            return;
        }
        if let Some(last) = self.runs.last_mut() {
            let next = match last.source {
                Source::Same(base) => Source::Same(base + last.length),
                Source::Changed(base) => Source::Changed(base + last.length),
                other => other,
            };
            if next == run.source {
                last.length += run.length;
                return;
            }
        }
        self.runs.push(run);
    }
}

struct Building<'a, B, D, R> {
    base: &'a mut B,
    base_bytes: u64,
    delta: &'a mut D,
    emit: Emit<'a, R>,
    options: &'a Options,
    table: Table,
    tally: Tally,
    part: Open,
    runs: usize,
}

impl<B: Read + Seek, D: Write + Seek, R: Write> Building<'_, B, D, R> {
    /// A piece of known or unknown type: what is the same, what changed.
    fn values(&mut self, new: &mut (impl Read + Seek), piece: &Piece, what: Bytes) -> Result<(), DeltaError> {
        let (mut bytes, mut old) = (Vec::new(), Vec::new());
        let at_once = if what.elements.is_some() { PART_BYTES } else { UNKNOWN_PART_BYTES };
        let mut at = 0;
        while at < piece.length {
            let count = (piece.length - at).min(at_once as u64);
            let start = piece.start + at;
            bytes.clear();
            new.seek(SeekFrom::Start(start)).map_err(read("the new file"))?;
            fill(new, &mut bytes, count, "the new file")?;
            old.clear();
            let base = what.base.map_or(self.base_bytes, |base| base + at).min(self.base_bytes);
            if base < self.base_bytes {
                self.base.seek(SeekFrom::Start(base)).map_err(read("the base"))?;
                fill(self.base, &mut old, count.min(self.base_bytes - base), "the base")?;
            }
            for Stretch { first, length, same } in stretches(&bytes, &old, self.runs < RUNS_WANTED_MAX) {
                let (source, place) = (base + first as u64, start + first as u64);
                if same {
                    self.same(source, length);
                } else {
                    self.changed(&bytes[first..first + length], Source::Changed(source), place, what)?;
                }
            }
            let beside = old.len();
            self.changed(&bytes[beside..], Source::Fresh, start + beside as u64, what)?;
            at += count;
        }
        Ok(())
    }

    fn same(&mut self, source: u64, length: usize) {
        self.part.push(Run { source: Source::Same(source), length: length as u64 });
        self.runs += 1;
    }

    /// Adds to the part that grows, or begins another where these bytes are of
    /// another kind.
    fn changed(&mut self, bytes: &[u8], source: Source, start: u64, what: Bytes) -> Result<(), DeltaError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let kind = (what.elements, what.lossy);
        let at_once = if what.elements.is_some() { PART_BYTES } else { UNKNOWN_PART_BYTES };
        if self.part.kind.is_some_and(|before| before != kind) || self.part.new.len() + bytes.len() > at_once {
            self.close()?;
        }
        if self.part.new.is_empty() {
            (self.part.kind, self.part.start) = (Some(kind), start);
        }
        self.part.new.extend_from_slice(bytes);
        self.part.push(Run { source, length: bytes.len() as u64 });
        self.runs += 1;
        Ok(())
    }

    /// Codes the part and writes its payload.
    fn close(&mut self) -> Result<(), DeltaError> {
        let Open { runs, new, kind, start } = std::mem::take(&mut self.part);
        if runs.is_empty() {
            return Ok(());
        }
        let mut old = Vec::new();
        gather(&runs, self.base, &mut old)?;
        let (elements, lossy) = kind.unwrap_or_default();
        let mut coded = self.lossless(&old, &new, elements, start)?;
        let mut made = None;
        if let (Some(element), Some(steps), true) = (elements, self.options.lossy.map(Lossy::steps), lossy) {
            made = self.lossy(&old, &new, element, steps, &mut coded);
        }
        let Coded { coding, element, payload, prefix } = coded;
        self.delta.write_all(&payload).map_err(write)?;
        let result = made.as_ref().unwrap_or(&new);
        self.emit.runs(&runs, result, self.base)?;
        let part = Part { coding, element, payload_bytes: payload.len() as u64, prefix, runs };
        self.tally.count(&part);
        self.table.parts.push(part);
        Ok(())
    }

    fn lossless(&mut self, old: &[u8], new: &[u8], elements: Option<Element>, start: u64) -> Result<Coded, DeltaError> {
        let level = self.options.level;
        let element = elements.unwrap_or_else(|| guess(old, new));
        let (coding, element, payload) = coding::encode(old, new, element, level);
        let mut coded = Coded { coding, element, payload, prefix: (0, 0) };
        if elements.is_some() || self.base_bytes == 0 || new.is_empty() {
            return Ok(coded);
        }
        let prefix = reach(start, new.len() as u64, self.base_bytes);
        let mut bytes = Vec::new();
        self.base.seek(SeekFrom::Start(prefix.0)).map_err(read("the base"))?;
        fill(self.base, &mut bytes, prefix.1, "the base")?;
        for level in [coding::TRIAL_LEVEL, level] {
            let mut payload = Vec::new();
            patch::encode(&bytes, new, level, &mut payload).map_err(write)?;
            let shortest = coded.payload.len();
            let worth_it = payload.len() < shortest + shortest / coding::TRIAL_SHARE;
            if payload.len() < shortest {
                coded = Coded { coding: Coding::Patch, element: Element::U8, payload, prefix };
            }
            if !worth_it {
                break;
            }
        }
        Ok(coded)
    }

    /// What is decoded instead of `new`, where that is shorter.
    fn lossy(&mut self, old: &[u8], new: &[u8], element: Element, steps: u8, coded: &mut Coded) -> Option<Vec<u8>> {
        if !lossy::takes(element) {
            return None;
        }
        let mut payload = Vec::new();
        let made = lossy::encode(old, new, element, steps, &mut payload)?;
        if payload.len() >= coded.payload.len() {
            return None;
        }
        *coded = Coded { coding: Coding::Grid, element, payload, prefix: (0, 0) };
        self.tally.deviates(new, &made, element);
        Some(made)
    }
}

/// A part's payload and what it takes to read it.
struct Coded {
    coding: Coding,
    element: Element,
    payload: Vec<u8>,
    prefix: (u64, u64),
}

/// The part of the base in which matches are looked for: all of it, or what lies
/// around the same place.
fn reach(start: u64, length: u64, base_bytes: u64) -> (u64, u64) {
    if base_bytes <= PREFIX_BYTES_MAX {
        return (0, base_bytes);
    }
    let begin = start.min(base_bytes).saturating_sub(PREFIX_REACH_BYTES);
    let end = start.saturating_add(length + PREFIX_REACH_BYTES).min(base_bytes);
    (begin, end - begin)
}

/// What unknown data seems to consist of, by what codes a piece of it shortest.
fn guess(old: &[u8], new: &[u8]) -> Element {
    let from = (new.len() / 2).saturating_sub(SAMPLE_BYTES / 2) & !7;
    let to = (from + SAMPLE_BYTES).min(new.len() & !7);
    if from >= to {
        return Element::U8;
    }
    let length = |element: &Element| {
        let mut payload = Vec::new();
        coding::difference::encode(&old[from..to], &new[from..to], *element, &mut payload);
        payload.len()
    };
    let whole = |element: &&Element| new.len().is_multiple_of(element.width());
    GUESSES.iter().filter(whole).min_by_key(|element| length(element)).copied().unwrap_or(Element::U8)
}

/// Some bytes that are the same in both, or not.
struct Stretch {
    first: usize,
    length: usize,
    same: bool,
}

/// Takes apart what stands beside each other: as a whole the same, or where
/// long stretches are.
fn stretches(new: &[u8], old: &[u8], apart: bool) -> Vec<Stretch> {
    let new = &new[..old.len()];
    if new == old {
        return vec![Stretch { first: 0, length: old.len(), same: true }];
    }
    let mut found: Vec<Stretch> = Vec::new();
    for (at, (new, old)) in new.chunks(BLOCK_BYTES).zip(old.chunks(BLOCK_BYTES)).enumerate() {
        let same = apart && new == old;
        match found.last_mut() {
            Some(last) if last.same == same => last.length += new.len(),
            _ => found.push(Stretch { first: at * BLOCK_BYTES, length: new.len(), same }),
        }
    }
    let mut stretches: Vec<Stretch> = Vec::with_capacity(found.len());
    for mut stretch in found {
        stretch.same &= stretch.length >= SAME_BYTES_MIN;
        match stretches.last_mut() {
            Some(last) if last.same == stretch.same => last.length += stretch.length,
            _ => stretches.push(stretch),
        }
    }
    stretches
}

fn write(source: std::io::Error) -> DeltaError {
    DeltaError::Write { what: "the delta", source }
}

//! Which bytes of the new file stand beside which of the base.
//!
//! Tensors by name, then by content (renamed ones that stayed), then by type
//! and shape in order (exporters number what has no name). A wrong pair costs
//! bytes, never correctness: what is coded beside what is written down.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};

use super::apply::{fill, read};
use super::element::Element;
use super::error::DeltaError;
use super::onnx::Tensor;

/// Bytes of the new file that are treated alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub start: u64,
    pub length: u64,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Values of a tensor, beside the base's from this offset on.
    Values {
        element: Element,
        base: Option<u64>,
        /// Whether these may come out slightly different: weights, not biases
        /// and scales.
        weights: bool,
    },
    /// What lies between tensors, and where in the base what probably is the
    /// same lies.
    Between { base: (u64, u64) },
}

/// Rows of a tensor whose shape changed at most: each is a run or two.
const ROWS_MAX: u64 = 1_024;

/// Pieces that make up the new file, in order.
pub fn pieces(
    (base, olds, base_bytes): (&mut (impl Read + Seek), &[Tensor], u64),
    (new, news, new_bytes): (&mut (impl Read + Seek), &[Tensor], u64),
) -> Result<Vec<Piece>, DeltaError> {
    let pairs = pairs(base, olds, new, news)?;
    let mut pieces = Vec::with_capacity(2 * news.len() + 1);
    let (mut at, mut base_at) = (0, 0);
    for (tensor, pair) in news.iter().zip(&pairs) {
        let old = pair.map(|old| &olds[old]);
        // What lies before a tensor most likely is what lay before it.
        let before = match (pair, old) {
            (Some(index), Some(old)) => {
                let start = index.checked_sub(1).map_or(0, |before| olds[before].start + olds[before].length);
                (start, old.start - start)
            }
            _ => (base_at, 0),
        };
        pieces.push(Piece { start: at, length: tensor.start - at, kind: Kind::Between { base: before } });
        match old {
            Some(old) => {
                values(tensor, old, &mut pieces);
                base_at = old.start + old.length;
            }
            None => pieces.push(whole(tensor, None)),
        }
        at = tensor.start + tensor.length;
    }
    let last = olds.last().map_or(0, |last| last.start + last.length);
    pieces.push(Piece { start: at, length: new_bytes - at, kind: Kind::Between { base: (last, base_bytes - last) } });
    Ok(pieces)
}

fn whole(tensor: &Tensor, base: Option<u64>) -> Piece {
    let weights = tensor.dims.len() > 1;
    let kind = Kind::Values { element: tensor.element, base, weights };
    Piece { start: tensor.start, length: tensor.length, kind }
}

/// A tensor beside another: as a whole, or row by row what both have.
fn values(tensor: &Tensor, old: &Tensor, pieces: &mut Vec<Piece>) {
    if tensor.length == old.length {
        return pieces.push(whole(tensor, Some(old.start)));
    }
    let differing = tensor.dims.iter().zip(&old.dims).position(|(a, b)| a != b).unwrap_or_default();
    let rows: u64 = tensor.dims[..differing].iter().fold(1u64, |rows, dim| rows.saturating_mul(*dim)).max(1);
    let width = tensor.element.width() as u64;
    let fits = |length: u64| length.is_multiple_of(rows) && (length / rows).is_multiple_of(width);
    let rows = if rows <= ROWS_MAX && fits(tensor.length) && fits(old.length) { rows } else { 1 };
    let (row, old_row) = (tensor.length / rows, old.length / rows);
    let common = row.min(old_row);
    let Piece { kind, .. } = whole(tensor, None);
    for at in 0..rows {
        let start = tensor.start + at * row;
        let Kind::Values { element, weights, .. } = kind else { return };
        let beside = Kind::Values { element, weights, base: Some(old.start + at * old_row) };
        pieces.push(Piece { start, length: common, kind: beside });
        if row > common {
            pieces.push(Piece { start: start + common, length: row - common, kind });
        }
    }
}

/// For each new tensor, which old one it stands beside; none twice.
fn pairs(
    base: &mut (impl Read + Seek),
    olds: &[Tensor],
    new: &mut (impl Read + Seek),
    news: &[Tensor],
) -> Result<Vec<Option<usize>>, DeltaError> {
    let old_contents = contents(base, olds, "the base")?;
    let new_contents = contents(new, news, "the new file")?;
    let mut pairs = vec![None; news.len()];
    let mut free = vec![true; olds.len()];
    for alike in ALIKE {
        let mut known: HashMap<Key<'_>, Vec<usize>> = HashMap::new();
        for (at, (old, content)) in olds.iter().zip(&old_contents).enumerate().rev().filter(|(at, _)| free[*at]) {
            if let Some(key) = alike(old, content) {
                known.entry(key).or_default().push(at);
            }
        }
        for (at, (tensor, content)) in news.iter().zip(&new_contents).enumerate() {
            if pairs[at].is_none()
                && let Some(old) = alike(tensor, content).and_then(|key| known.get_mut(&key)?.pop())
            {
                pairs[at] = Some(old);
                free[old] = false;
            }
        }
    }
    Ok(pairs)
}

/// What two tensors may have in common, as far as it is asked for.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
struct Key<'a> {
    content: &'a [u8],
    name: &'a str,
    element: u8,
    dims: &'a [u64],
    length: u64,
}

/// A tensor's key, from it and the digest of its values.
type Alike = for<'a> fn(&'a Tensor, &'a [u8; 32]) -> Option<Key<'a>>;

/// What pairs have in common, the most telling first; `None` where a tensor
/// hasn't got it.
const ALIKE: [Alike; 5] = [
    |tensor, content| Some(Key { content, name: &tensor.name, ..Key::default() }),
    |_, content| Some(Key { content, ..Key::default() }),
    |tensor, _| {
        let (name, length) = (tensor.name.as_str(), tensor.length);
        (!name.is_empty()).then_some(Key { name, element: tensor.element as u8, length, ..Key::default() })
    },
    |tensor, _| {
        let name = tensor.name.as_str();
        (!name.is_empty()).then_some(Key { name, element: tensor.element as u8, ..Key::default() })
    },
    |tensor, _| {
        let (dims, length) = (tensor.dims.as_slice(), tensor.length);
        Some(Key { element: tensor.element as u8, dims, length, ..Key::default() })
    },
];

/// Digests of all values.
fn contents(
    file: &mut (impl Read + Seek),
    tensors: &[Tensor],
    what: &'static str,
) -> Result<Vec<[u8; 32]>, DeltaError> {
    tensors.iter().map(|tensor| content(file, tensor, what)).collect()
}

fn content(file: &mut (impl Read + Seek), tensor: &Tensor, what: &'static str) -> Result<[u8; 32], DeltaError> {
    file.seek(SeekFrom::Start(tensor.start)).map_err(read(what))?;
    let (mut hash, mut buffer, mut left) = (blake3::Hasher::new(), Vec::new(), tensor.length);
    while left > 0 {
        let count = left.min(256 << 10);
        buffer.clear();
        fill(file, &mut buffer, count, what)?;
        hash.update(&buffer);
        left -= count;
    }
    Ok(*hash.finalize().as_bytes())
}

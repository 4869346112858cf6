//! What of a vector travels: all, the largest elements, a random mask, or
//! factors of its matrices.

use fastrand::Rng;

use super::{PipelineError, bits, elements, powersgd};
use crate::CodecError;
use crate::frame::Reader;

/// What of a vector travels.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub enum Support {
    /// Every element.
    #[default]
    All,
    /// This share of the elements, those of the largest magnitude.
    TopK(f64),
    /// This share of the elements, drawn by a seed that travels in their
    /// place.
    Random(f64),
    /// Each matrix as two factors of this rank (Vogels, Karimireddy and Jaggi,
    /// "PowerSGD", 2019).
    PowerSgd(usize),
}

/// Which elements travelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// All, if not exactly.
    All,
    /// These, in increasing order.
    Indices(Vec<u32>),
}

impl Support {
    pub(super) fn parse(stage: &str, name: &str, option: &str) -> Result<Self, PipelineError> {
        let wrong = |reason| PipelineError::Option { stage: stage.to_owned(), reason };
        let share = || {
            let share = option.parse::<f64>().ok().filter(|s| *s > 0.0 && *s <= 1.0);
            share.ok_or_else(|| wrong("a share above 0 and at most 1 follows the colon"))
        };
        match name {
            "topk" => Ok(Self::TopK(share()?)),
            "random" => Ok(Self::Random(share()?)),
            _ => {
                let rank = option.parse().ok().filter(|r| (1..=256).contains(r));
                rank.map(Self::PowerSgd).ok_or_else(|| wrong("a rank from 1 to 256 follows the colon"))
            }
        }
    }

    pub(super) fn stage(&self) -> Option<String> {
        match self {
            Self::All => None,
            Self::TopK(share) => Some(format!("topk:{share}")),
            Self::Random(share) => Some(format!("random:{share}")),
            Self::PowerSgd(rank) => Some(format!("powersgd:{rank}")),
        }
    }

    pub(super) fn code(&self) -> u8 {
        match self {
            Self::All => 0,
            Self::TopK(_) => 1,
            Self::Random(_) => 2,
            Self::PowerSgd(_) => 3,
        }
    }

    /// The numbers that travel; what the receiver needs to put them back goes
    /// into `out`.
    pub(super) fn take(&self, vector: &[f32], shapes: &[Vec<usize>], seed: u64, out: &mut Vec<u8>) -> Vec<f32> {
        match *self {
            Self::All => vector.to_vec(),
            Self::TopK(share) => {
                let indices = largest(vector, count(share, vector.len()));
                out.extend_from_slice(&(indices.len() as u64).to_le_bytes());
                let at = out.len();
                out.extend_from_slice(&[0; 8]);
                bits::write_indices(&indices, vector.len(), out);
                let written = (out.len() - at - 8) as u64;
                out[at..at + 8].copy_from_slice(&written.to_le_bytes());
                indices.iter().map(|&i| vector[i as usize]).collect()
            }
            Self::Random(share) => {
                let count = count(share, vector.len());
                out.extend_from_slice(&(count as u64).to_le_bytes());
                out.extend_from_slice(&seed.to_le_bytes());
                drawn(vector.len(), count, seed).iter().map(|&i| vector[i as usize]).collect()
            }
            Self::PowerSgd(rank) => {
                out.extend_from_slice(&(rank as u64).to_le_bytes());
                powersgd::factors(vector, shapes, rank, seed)
            }
        }
    }
}

/// Elements of a share of `length`: one at least, if there are any.
fn count(share: f64, length: usize) -> usize {
    ((share * length as f64).round() as usize).clamp(1.min(length), length)
}

/// The indices of the largest magnitudes, in increasing order; of equal ones
/// the first.
fn largest(vector: &[f32], count: usize) -> Vec<u32> {
    if count == 0 {
        return Vec::new();
    }
    // Magnitudes as integers of the same order.
    let size = |x: f32| x.abs().to_bits();
    let mut sizes: Vec<u32> = vector.iter().map(|&x| size(x)).collect();
    let (_, &mut threshold, _) = sizes.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
    let above = vector.iter().filter(|&&x| size(x) > threshold).count();
    let mut ties = count - above;
    let mut indices = Vec::with_capacity(count);
    for (i, &x) in vector.iter().enumerate() {
        let tie = size(x) == threshold && ties > 0;
        ties -= usize::from(tie);
        if tie || size(x) > threshold {
            indices.push(i as u32);
        }
    }
    indices
}

/// Indices drawn by a seed, in increasing order, each at most once (Knuth's
/// algorithm S).
fn drawn(length: usize, count: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::with_seed(seed ^ 0x6d61_736b);
    let mut indices = Vec::with_capacity(count);
    for i in 0..length {
        let (left, wanted) = (length - i, count - indices.len());
        if wanted == 0 {
            break;
        }
        if rng.usize(0..left) < wanted {
            indices.push(i as u32);
        }
    }
    indices
}

/// Where a receiver puts the numbers that travelled.
pub(super) enum Places {
    All(usize),
    Indices(Vec<u32>),
    Factors { rank: usize, count: usize },
}

/// Bytes in front of the numbers.
pub(super) fn head(kind: u8, body: &[u8]) -> Result<usize, CodecError> {
    let mut reader = Reader(body);
    Ok(match kind {
        0 => 0,
        1 => {
            reader.u64()?;
            let indices = usize::try_from(reader.u64()?).unwrap_or(usize::MAX);
            16usize.saturating_add(indices).min(body.len())
        }
        2 => 16.min(body.len()),
        _ => 8.min(body.len()),
    })
}

pub(super) fn read(kind: u8, shapes: &[Vec<usize>], reader: &mut Reader<'_>) -> Result<Places, CodecError> {
    let length = elements(shapes);
    let counted = |reader: &mut Reader<'_>| {
        let declared = reader.u64()?;
        let max = length as u64;
        if declared > max {
            Err(CodecError::TooLarge { what: "elements", declared, max })
        } else {
            Ok(declared as usize)
        }
    };
    match kind {
        0 => Ok(Places::All(length)),
        1 => {
            let count = counted(reader)?;
            let bytes = usize::try_from(reader.u64()?).unwrap_or(usize::MAX);
            Ok(Places::Indices(bits::read_indices(reader.take(bytes)?, length, count)?))
        }
        2 => {
            let count = counted(reader)?;
            Ok(Places::Indices(drawn(length, count, reader.u64()?)))
        }
        3 => {
            let rank = usize::try_from(reader.u64()?).ok().filter(|r| (1..=256).contains(r));
            let rank = rank.ok_or(CodecError::Corrupt("its factors have an impossible rank"))?;
            Ok(Places::Factors { rank, count: powersgd::count(shapes, rank) })
        }
        _ => Err(CodecError::Corrupt("it keeps elements in an unknown way")),
    }
}

impl Places {
    /// How many numbers travel.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::All(count) | Self::Factors { count, .. } => *count,
            Self::Indices(indices) => indices.len(),
        }
    }

    pub(super) fn kept(self) -> Kept {
        match self {
            Self::All(_) | Self::Factors { .. } => Kept::All,
            Self::Indices(indices) => Kept::Indices(indices),
        }
    }

    /// Puts numbers where they belong.
    pub(super) fn put(&self, values: &[f32], shapes: &[Vec<usize>], out: &mut [f32]) -> Result<(), CodecError> {
        match self {
            Self::All(_) => out.copy_from_slice(values),
            Self::Indices(indices) => indices.iter().zip(values).for_each(|(&i, &x)| out[i as usize] = x),
            Self::Factors { rank, .. } => powersgd::product(values, shapes, *rank, out),
        }
        // Products of finite factors may still be too large.
        match out.iter().all(|x| x.is_finite()) {
            true => Ok(()),
            false => Err(CodecError::Corrupt("it holds numbers that are not finite")),
        }
    }
}

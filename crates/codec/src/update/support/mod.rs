//! What of a vector survives, and how a receiver places it.

mod gaps;
mod powersgd;
mod random;
mod topk;

use crate::CodecError;
use crate::frame::Reader;
use powersgd::Factored;

/// What is sent of a vector.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Support {
    #[default]
    All,
    /// This fraction of the elements, the largest.
    TopK(f64),
    /// This fraction of the elements, at random.
    Random(f64),
    /// Matrices as factors of this rank.
    PowerSgd(u8),
}

/// Where the values sent go.
pub enum Placed {
    /// All elements in order.
    All,
    /// To these elements, ascending.
    At(Vec<u32>),
    /// Factors and parts, in order.
    Factored(Factored),
}

impl Support {
    /// As [`super::Pipeline::stages`] prints it.
    pub fn stage(self) -> Option<String> {
        match self {
            Self::All => None,
            Self::TopK(fraction) => Some(format!("topk:{fraction}")),
            Self::Random(fraction) => Some(format!("random:{fraction}")),
            Self::PowerSgd(rank) => Some(format!("powersgd:{rank}")),
        }
    }

    /// How it is written in the header.
    pub fn tag(self) -> u8 {
        match self {
            Self::All => 0,
            Self::TopK(_) => 1,
            Self::Random(_) => 2,
            Self::PowerSgd(_) => 3,
        }
    }

    /// What to write so that [`Support::read`] places the values, their
    /// places, and the values where they are not the vector itself.
    pub fn choose(self, vector: &[f32], shapes: &[Vec<usize>], seed: u64) -> (Vec<u8>, Placed, Option<Vec<f32>>) {
        let gather = |indices: &[u32]| indices.iter().map(|&i| vector[i as usize]).collect();
        let mut out = Vec::new();
        match self {
            Self::All => (out, Placed::All, None),
            Self::TopK(fraction) => {
                let indices = topk::indices(vector, kept(fraction, vector.len()));
                gaps::write(&indices, &mut out);
                let values = gather(&indices);
                (out, Placed::At(indices), Some(values))
            }
            Self::Random(fraction) => {
                let count = kept(fraction, vector.len());
                random::write(count, seed, &mut out);
                let indices = random::indices(vector.len(), count, seed);
                let values = gather(&indices);
                (out, Placed::At(indices), Some(values))
            }
            Self::PowerSgd(rank) => {
                out.push(rank);
                let factored = Factored::new(shapes, rank);
                let values = factored.factors(vector, seed);
                (out, Placed::Factored(factored), Some(values))
            }
        }
    }

    /// Where the values go, of a vector of `elements`; the reader is left in
    /// front of them.
    pub fn read(
        tag: u8,
        reader: &mut Reader<'_>,
        shapes: &[Vec<usize>],
        elements: usize,
    ) -> Result<Placed, CodecError> {
        match tag {
            0 => Ok(Placed::All),
            1 => gaps::read(reader, elements).map(Placed::At),
            2 => random::read(reader, elements).map(Placed::At),
            3 => Factored::read(reader, shapes).map(Placed::Factored),
            _ => Err(CodecError::Corrupt("unknown support of an update")),
        }
    }
}

impl Placed {
    /// Lengths of the runs of values that resemble each other, in order.
    pub fn segments(&self, elements: usize) -> Vec<usize> {
        match self {
            Self::All => vec![elements],
            Self::At(indices) => vec![indices.len()],
            Self::Factored(factored) => factored.segments(),
        }
    }

    /// Sets all of `out` to what the values sent say of it.
    pub fn place(&self, sent: &[f32], out: &mut [f32]) {
        match self {
            Self::All => out.copy_from_slice(sent),
            Self::At(indices) => {
                out.fill(0.0);
                for (&index, &value) in indices.iter().zip(sent) {
                    out[index as usize] = value;
                }
            }
            Self::Factored(factored) => factored.restore(sent, out),
        }
    }
}

/// Elements that a fraction of them is: one at least, where there is one.
fn kept(fraction: f64, elements: usize) -> usize {
    ((fraction * elements as f64).round() as usize).max(1).min(elements)
}

//! Matrices as two thin factors (PowerSGD, Vogels et al. 2019).
//!
//! A part `[rows, ...]` is a matrix M of `[rows, the rest]`; sent are P
//! (`[rank, rows]`, orthonormal) and Q = Mᵀ P (`[rank, columns]`), whose
//! product is M's projection on the space of P. Parts for which that isn't
//! smaller are sent as they are. Two power iterations from a random start;
//! the paper starts at the last round's Q, which would be memory.

use crate::CodecError;
use crate::frame::Reader;
use crate::update::pipeline::RANK_MAX;
use crate::update::rng::{Purpose, Rng};

const ITERATIONS: usize = 2;

/// What remains of a direction, relative to it, when it was nothing new:
/// below what f32 shows, above what f64 leaves of rounding.
const NOTHING_NEW: f64 = 1e-9;

/// How each part is sent.
pub struct Factored(Vec<Part>);

enum Part {
    Whole(usize),
    Factors { rows: usize, columns: usize, rank: usize },
}

impl Factored {
    pub fn new(shapes: &[Vec<usize>], rank: u8) -> Self {
        let part = |shape: &Vec<usize>| {
            let size: usize = shape.iter().product();
            let rows = shape.first().copied().unwrap_or(1);
            let columns = size.checked_div(rows).unwrap_or(0);
            let rank = usize::from(rank).min(rows).min(columns);
            match shape.len() > 1 && rank * (rows + columns) < size {
                true => Part::Factors { rows, columns, rank },
                false => Part::Whole(size),
            }
        };
        Self(shapes.iter().map(part).collect())
    }

    pub fn read(reader: &mut Reader<'_>, shapes: &[Vec<usize>]) -> Result<Self, CodecError> {
        match reader.take(1)?[0] {
            rank @ 1..=RANK_MAX => Ok(Self::new(shapes, rank)),
            _ => Err(CodecError::Corrupt("unknown rank of an update")),
        }
    }

    /// Lengths of what is sent: each factor and each whole part.
    pub fn segments(&self) -> Vec<usize> {
        let lens = self.0.iter().flat_map(|part| match *part {
            Part::Whole(size) => [size, 0],
            Part::Factors { rows, columns, rank } => [rank * rows, rank * columns],
        });
        lens.filter(|len| *len > 0).collect()
    }

    /// What is sent of `vector`: factors and whole parts.
    pub fn factors(&self, vector: &[f32], seed: u64) -> Vec<f32> {
        let mut rng = Rng::new(seed, Purpose::Start);
        let mut sent = Vec::with_capacity(self.segments().iter().sum());
        let mut rest = vector;
        for part in &self.0 {
            match *part {
                Part::Whole(size) => {
                    let (here, behind) = rest.split_at(size);
                    rest = behind;
                    sent.extend_from_slice(here);
                }
                Part::Factors { rows, columns, rank } => {
                    let (here, behind) = rest.split_at(rows * columns);
                    rest = behind;
                    let (p, q) = factor(here, columns, rank, &mut rng);
                    sent.extend(p.into_iter().chain(q).map(narrow));
                }
            }
        }
        sent
    }

    /// The vector of what was sent.
    pub fn restore(&self, sent: &[f32], out: &mut [f32]) {
        let (mut sent, mut out) = (sent, out);
        let mut take = |n: usize| {
            let (here, behind) = sent.split_at(n);
            sent = behind;
            here
        };
        for part in &self.0 {
            match *part {
                Part::Whole(size) => out.split_off_mut(..size).unwrap_or_default().copy_from_slice(take(size)),
                Part::Factors { rows, columns, rank } => {
                    let (p, q) = (take(rank * rows), take(rank * columns));
                    product(p, q, columns, out.split_off_mut(..rows * columns).unwrap_or_default());
                }
            }
        }
    }
}

/// P and Q of a matrix, `rank` vectors each. All sums are f64: no finite
/// matrix overflows them.
fn factor(matrix: &[f32], columns: usize, rank: usize, rng: &mut Rng) -> (Vec<f64>, Vec<f64>) {
    let rows = matrix.len() / columns;
    // From -1 to 1.
    let mut q: Vec<f64> = (0..rank * columns).map(|_| (rng.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0).collect();
    let mut p = vec![0.0; rank * rows];
    for _ in 0..ITERATIONS {
        // Each direction of its own, or all lean to the strongest.
        orthonormalise(&mut q, columns);
        for (row, values) in matrix.chunks_exact(columns).enumerate() {
            for (p, q) in p.chunks_exact_mut(rows).zip(q.chunks_exact(columns)) {
                p[row] = dot(values, q);
            }
        }
        orthonormalise(&mut p, rows);
        // As the receiver will see them, so that Q fits what is sent.
        p.iter_mut().for_each(|v| *v = f64::from(*v as f32));
        q.fill(0.0);
        for (row, values) in matrix.chunks_exact(columns).enumerate() {
            for (p, q) in p.chunks_exact(rows).zip(q.chunks_exact_mut(columns)) {
                let weight = p[row];
                q.iter_mut().zip(values).for_each(|(q, &value)| *q += weight * f64::from(value));
            }
        }
    }
    (p, q)
}

/// Makes vectors of `len` orthonormal (Gram-Schmidt), each twice since once
/// leaves rounding behind; those that bring nothing new become zero.
fn orthonormalise(vectors: &mut [f64], len: usize) {
    for at in 0..vectors.len() / len {
        let (before, rest) = vectors.split_at_mut(at * len);
        let this = &mut rest[..len];
        let given = norm(this);
        for _ in 0..2 {
            for other in before.chunks_exact(len) {
                let along: f64 = this.iter().zip(other).map(|(a, b)| a * b).sum();
                this.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
        }
        let left = norm(this);
        let scale = if left > given * NOTHING_NEW { 1.0 / left } else { 0.0 };
        this.iter_mut().for_each(|v| *v *= scale);
    }
}

fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn dot(values: &[f32], vector: &[f64]) -> f64 {
    // Four sums, which run side by side.
    let mut sums = [0.0; 4];
    for (values, vector) in values.chunks(4).zip(vector.chunks(4)) {
        for ((sum, &a), b) in sums.iter_mut().zip(values).zip(vector) {
            *sum += f64::from(a) * b;
        }
    }
    sums.iter().sum()
}

/// Sets `out` to the sum over the rank of P's vectors times Q's.
fn product(p: &[f32], q: &[f32], columns: usize, out: &mut [f32]) {
    let rows = out.len() / columns;
    let mut sums = vec![0f64; columns];
    for (row, out) in out.chunks_exact_mut(columns).enumerate() {
        sums.fill(0.0);
        for (p, q) in p.chunks_exact(rows).zip(q.chunks_exact(columns)) {
            let weight = f64::from(p[row]);
            sums.iter_mut().zip(q).for_each(|(sum, &q)| *sum += weight * f64::from(q));
        }
        out.iter_mut().zip(&sums).for_each(|(slot, &sum)| *slot = narrow(sum));
    }
}

/// The nearest finite f32.
fn narrow(value: f64) -> f32 {
    value.clamp(f32::MIN.into(), f32::MAX.into()) as f32
}

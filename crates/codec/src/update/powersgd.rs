//! Matrices as two thin factors, found by power iteration (Vogels, Karimireddy
//! and Jaggi, "PowerSGD: practical low-rank gradient compression", 2019).
//!
//! The paper goes on from the last round's factor; without a memory, one more
//! iteration from a random one serves as well.

use fastrand::Rng;

/// Power iterations: the second halves what the first misses.
const ITERATIONS: usize = 2;

/// A part as a matrix, rows first, if factors of this rank are smaller.
fn matrix(shape: &[usize], rank: usize) -> Option<(usize, usize)> {
    let (&rows, rest) = shape.split_first().filter(|(_, rest)| !rest.is_empty())?;
    let columns: usize = rest.iter().product();
    let smaller = rank.checked_mul(rows + columns)? < rows.checked_mul(columns)?;
    smaller.then_some((rows, columns))
}

/// Numbers that travel.
pub(super) fn count(shapes: &[Vec<usize>], rank: usize) -> usize {
    let of = |shape: &Vec<usize>| match matrix(shape, rank) {
        Some((rows, columns)) => rank * (rows + columns),
        None => shape.iter().product(),
    };
    shapes.iter().map(of).sum()
}

/// Both factors of each matrix, `[rows, rank]` and `[columns, rank]`; parts
/// that would not be smaller as they are.
pub(super) fn factors(vector: &[f32], shapes: &[Vec<usize>], rank: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::with_seed(seed ^ 0x706f_7765);
    let mut out = Vec::with_capacity(count(shapes, rank));
    let mut rest = vector;
    for shape in shapes {
        let (part, behind) = rest.split_at(shape.iter().product());
        rest = behind;
        let Some((rows, columns)) = matrix(shape, rank) else {
            out.extend_from_slice(part);
            continue;
        };
        let mut right: Vec<f64> = (0..columns * rank).map(|_| rng.f64() - 0.5).collect();
        let mut left = vec![0f64; rows * rank];
        for _ in 0..ITERATIONS {
            left.fill(0.0);
            for (row, left) in part.chunks_exact(columns).zip(left.chunks_exact_mut(rank)) {
                for (&x, right) in row.iter().zip(right.chunks_exact(rank)) {
                    left.iter_mut().zip(right).for_each(|(l, r)| *l += f64::from(x) * r);
                }
            }
            orthonormal(&mut left, rank);
            right.fill(0.0);
            for (row, left) in part.chunks_exact(columns).zip(left.chunks_exact(rank)) {
                for (&x, right) in row.iter().zip(right.chunks_exact_mut(rank)) {
                    right.iter_mut().zip(left).for_each(|(r, l)| *r += f64::from(x) * l);
                }
            }
        }
        out.extend(left.iter().chain(&right).map(|&x| x as f32));
    }
    out
}

/// The vector that factors give.
pub(super) fn product(values: &[f32], shapes: &[Vec<usize>], rank: usize, out: &mut [f32]) {
    let (mut values, mut out) = (values, out);
    for shape in shapes {
        let (part, behind) = out.split_at_mut(shape.iter().product());
        out = behind;
        let Some((rows, columns)) = matrix(shape, rank) else {
            let (own, rest) = values.split_at(part.len());
            part.copy_from_slice(own);
            values = rest;
            continue;
        };
        let (left, rest) = values.split_at(rows * rank);
        let (right, rest) = rest.split_at(columns * rank);
        values = rest;
        for (row, left) in part.chunks_exact_mut(columns).zip(left.chunks_exact(rank)) {
            for (x, right) in row.iter_mut().zip(right.chunks_exact(rank)) {
                *x = left.iter().zip(right).map(|(l, r)| f64::from(*l) * f64::from(*r)).sum::<f64>() as f32;
            }
        }
    }
}

/// Makes the columns of `[rows, rank]` orthonormal (modified Gram-Schmidt);
/// one that depends on those before it becomes zero.
fn orthonormal(matrix: &mut [f64], rank: usize) {
    for column in 0..rank {
        let before: f64 = matrix.chunks_exact(rank).map(|row| row[column] * row[column]).sum();
        for other in 0..column {
            let along: f64 = matrix.chunks_exact(rank).map(|row| row[column] * row[other]).sum();
            matrix.chunks_exact_mut(rank).for_each(|row| row[column] -= along * row[other]);
        }
        let norm: f64 = matrix.chunks_exact(rank).map(|row| row[column] * row[column]).sum();
        // What is left of a dependent column is rounding.
        let scale = if norm > 1e-20 * before && norm > 0.0 { 1.0 / norm.sqrt() } else { 0.0 };
        matrix.chunks_exact_mut(rank).for_each(|row| row[column] *= scale);
    }
}

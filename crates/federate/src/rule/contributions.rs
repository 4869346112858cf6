//! Contributions of a round that wait for a rule, and the ways to look at them.
//!
//! A contribution is one flat vector, of all channels behind one another. Contributions lie on
//! a [`SpillStore`], in memory or elsewhere, and are read a tile at a time: the
//! same places of all of them. So memory doesn't grow with their number where
//! the spill store isn't in memory.

use std::io;
use std::ops::Range;

use crate::FederateError;

/// Numbers of all contributions together that are in memory at a time: 16 megabytes.
const TILE_NUMBERS: usize = 1 << 22;

/// Numbers of one contribution that are read at a time, at least.
const TILE_MIN: usize = 256;

/// Sums kept side by side, so that the compiler may add them at once.
const LANES: usize = 8;

/// Where contributions lie until their round ends.
pub trait SpillStore: Send {
    /// Keeps one more contribution, behind the others.
    ///
    /// # Errors
    /// When there is no room; the contribution isn't kept then.
    fn put(&mut self, contribution: &[f32]) -> io::Result<()>;

    /// Reads a part of a contribution: as many numbers as `into` has, from `at`.
    ///
    /// # Errors
    /// When it can't be read.
    fn read(&mut self, contribution: usize, at: usize, into: &mut [f32]) -> io::Result<()>;

    /// Forgets all contributions.
    ///
    /// # Errors
    /// When the room can't be given back.
    fn clear(&mut self) -> io::Result<()>;
}

/// Contributions in memory.
#[derive(Debug, Default)]
pub struct InMemory(Vec<Vec<f32>>);

impl SpillStore for InMemory {
    fn put(&mut self, contribution: &[f32]) -> io::Result<()> {
        self.0.push(contribution.to_vec());
        Ok(())
    }

    fn read(&mut self, contribution: usize, at: usize, into: &mut [f32]) -> io::Result<()> {
        into.copy_from_slice(&self.0[contribution][at..at + into.len()]);
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.0.clear();
        Ok(())
    }
}

/// The contributions of a round, numbered by their content: the order of arrival
/// decides nothing, not even ties.
pub(super) struct Contributions<'a> {
    pub(super) spill: &'a mut dyn SpillStore,
    /// Where each lies in the spill store.
    pub(super) places: Vec<usize>,
    /// The numbers that are decided.
    pub(super) within: Range<usize>,
    /// Those that contributions are compared by.
    pub(super) compared: Range<usize>,
}

/// A contribution that takes part, and what its numbers are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Chosen {
    pub(super) contribution: usize,
    pub(super) scale: f64,
}

impl Chosen {
    pub(super) fn whole(contribution: usize) -> Self {
        Self { contribution, scale: 1.0 }
    }
}

impl Contributions<'_> {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn all(&self) -> Vec<Chosen> {
        (0..self.len()).map(Chosen::whole).collect()
    }

    /// Makes one number of those that some contributions have in a place, for each that
    /// is decided; sorted first, if the function wants them so.
    pub(super) fn per_number(
        &mut self,
        chosen: &[Chosen],
        sorted: bool,
        of: impl Fn(&[f32]) -> f64,
    ) -> Result<Vec<f32>, FederateError> {
        let mut made = Vec::with_capacity(self.within.len());
        let mut column = vec![0f32; chosen.len()];
        let numbers: Vec<usize> = chosen.iter().map(|c| c.contribution).collect();
        self.tiles(&numbers, self.within.clone(), |tile, width| {
            for (row, c) in tile.chunks_exact_mut(width).zip(chosen).filter(|(_, c)| c.scale != 1.0) {
                row.iter_mut().for_each(|x| *x = (f64::from(*x) * c.scale) as f32);
            }
            for i in 0..width {
                column.iter_mut().zip(tile[i..].iter().step_by(width)).for_each(|(x, y)| *x = *y);
                if sorted {
                    column.sort_unstable_by(f32::total_cmp);
                }
                made.push(of(&column) as f32);
            }
        })?;
        Ok(made)
    }

    /// The plain mean of some contributions.
    pub(super) fn mean(&mut self, chosen: &[Chosen]) -> Result<Vec<f32>, FederateError> {
        self.per_number(chosen, false, mean)
    }

    /// Lengths of all contributions, in what they are compared by.
    pub(super) fn norms(&mut self) -> Result<Vec<f64>, FederateError> {
        let all: Vec<usize> = (0..self.len()).collect();
        let mut squares = vec![0f64; all.len()];
        self.tiles(&all, self.compared.clone(), |tile, width| {
            let zeros = vec![0f32; width];
            for (sum, row) in squares.iter_mut().zip(tile.chunks_exact(width)) {
                *sum += squared_distance(row, &zeros);
            }
        })?;
        Ok(squares.into_iter().map(f64::sqrt).collect())
    }

    /// Squared distances of all pairs of contributions, in what they are compared by.
    pub(super) fn distances(&mut self) -> Result<Vec<Vec<f64>>, FederateError> {
        let all: Vec<usize> = (0..self.len()).collect();
        let mut distances = vec![vec![0f64; all.len()]; all.len()];
        self.tiles(&all, self.compared.clone(), |tile, width| {
            let rows: Vec<&[f32]> = tile.chunks_exact(width).collect();
            for i in 0..rows.len() {
                for j in 0..i {
                    let distance = squared_distance(rows[i], rows[j]);
                    distances[i][j] += distance;
                    distances[j][i] += distance;
                }
            }
        })?;
        Ok(distances)
    }

    /// Goes through a range of some contributions, tile by tile: rows of the width that
    /// is said, a contribution each.
    fn tiles(
        &mut self,
        contributions: &[usize],
        range: Range<usize>,
        mut see: impl FnMut(&mut [f32], usize),
    ) -> Result<(), FederateError> {
        let widest = (TILE_NUMBERS / contributions.len().max(1)).max(TILE_MIN).min(range.len());
        let mut tile = vec![0f32; widest * contributions.len()];
        let mut at = range.start;
        while at < range.end {
            let width = widest.min(range.end - at);
            let tile = &mut tile[..width * contributions.len()];
            for (row, contribution) in tile.chunks_exact_mut(width).zip(contributions) {
                self.spill.read(self.places[*contribution], at, row).map_err(|e| FederateError::of_spill_store(&e))?;
            }
            see(tile, width);
            at += width;
        }
        Ok(())
    }
}

pub(super) fn mean(numbers: &[f32]) -> f64 {
    numbers.iter().map(|x| f64::from(*x)).sum::<f64>() / numbers.len() as f64
}

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES];
    let square = |x: &f32, y: &f32| (f64::from(*x) - f64::from(*y)).powi(2);
    let (left, right) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = left.remainder().iter().zip(right.remainder()).map(|(x, y)| square(x, y)).sum();
    for (x, y) in left.zip(right) {
        lanes.iter_mut().zip(x.iter().zip(y)).for_each(|(lane, (x, y))| *lane += square(x, y));
    }
    lanes.iter().sum::<f64>() + rest
}

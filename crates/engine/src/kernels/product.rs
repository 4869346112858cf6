//! Sums of outer products over rows of places, the core of a convolution's
//! weight gradient: `tile[i][j] += sum over places of a[place][i] b[place][j]`.
//!
//! One tile stays in registers over a whole block of places; the widest
//! instructions the processor has are found at run time.

#[cfg(target_arch = "x86_64")]
use super::wide::{Width, width};

/// Rows of a tile.
pub(super) const ROWS: usize = 8;

/// Columns of a tile.
pub(super) const COLUMNS: usize = 32;

/// A tile, row-major.
pub(super) type Tile = [f32; ROWS * COLUMNS];

/// Where the places of `b` are.
pub(super) struct Places<'a> {
    /// Where each row of places starts in `b`.
    pub(super) starts: &'a [usize],
    /// Added to every start.
    pub(super) shift: usize,
    /// Places in a row.
    pub(super) count: usize,
    /// From one place to the next.
    pub(super) step: usize,
}

impl Places<'_> {
    /// The elements of one row, its places `step` apart.
    fn row<'b>(&self, b: &'b [f32], start: usize) -> &'b [f32] {
        &b[start + self.shift..][..(self.count - 1) * self.step + COLUMNS]
    }
}

/// Adds to `tile` the products of `a`, `[places, ROWS]`, and `b`. `count` is
/// above 0.
pub(super) fn accumulate(tile: &mut Tile, a: &[f32], b: &[f32], places: &Places<'_>) {
    #[cfg(target_arch = "x86_64")]
    match width() {
        // SAFETY: the processor has what the function is compiled for.
        Width::Avx512 => return unsafe { x86::accumulate_512(tile, a, b, places) },
        // SAFETY: as above.
        Width::Avx2 => return unsafe { x86::accumulate_256(tile, a, b, places) },
        Width::Portable => {}
    }
    portable(tile, a, b, places);
}

fn portable(tile: &mut Tile, a: &[f32], b: &[f32], places: &Places<'_>) {
    let (mut a, _) = a.as_chunks::<ROWS>();
    for &start in places.starts {
        let row = places.row(b, start);
        let (here, rest) = a.split_at(places.count);
        a = rest;
        for (place, a) in here.iter().enumerate() {
            let b = &row[place * places.step..][..COLUMNS];
            for (a, tile) in a.iter().zip(tile.chunks_exact_mut(COLUMNS)) {
                tile.iter_mut().zip(b).for_each(|(t, b)| *t += a * b);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
        _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{COLUMNS, Places, ROWS, Tile};

    #[target_feature(enable = "avx512f")]
    pub(super) fn accumulate_512(tile: &mut Tile, a: &[f32], b: &[f32], places: &Places<'_>) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        let (mut a, _) = a.as_chunks::<ROWS>();
        for &start in places.starts {
            let row = places.row(b, start);
            let (here, rest) = a.split_at(places.count);
            a = rest;
            for (place, a) in here.iter().enumerate() {
                let b: &[f32; COLUMNS] = row[place * places.step..].first_chunk().expect("a row has its places");
                // SAFETY: both halves of the 32 elements are 16.
                let b = unsafe { [_mm512_loadu_ps(b.as_ptr()), _mm512_loadu_ps(b.as_ptr().add(16))] };
                for (sums, &a) in sums.iter_mut().zip(a) {
                    let a = _mm512_set1_ps(a);
                    sums[0] = _mm512_fmadd_ps(a, b[0], sums[0]);
                    sums[1] = _mm512_fmadd_ps(a, b[1], sums[1]);
                }
            }
        }
        let (halves, _) = tile.as_chunks_mut::<16>();
        for (half, sum) in halves.iter_mut().zip(sums.as_flattened()) {
            // SAFETY: a half has the 16 elements that are read and written.
            unsafe { _mm512_storeu_ps(half.as_mut_ptr(), _mm512_add_ps(_mm512_loadu_ps(half.as_ptr()), *sum)) };
        }
    }

    /// Sixteen registers hold a quarter of the tile: four rows, half the
    /// columns.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn accumulate_256(tile: &mut Tile, a: &[f32], b: &[f32], places: &Places<'_>) {
        for (top, left) in [(0, 0), (4, 0), (0, 16), (4, 16)] {
            let mut sums = [[_mm256_setzero_ps(); 2]; 4];
            let (mut a, _) = a.as_chunks::<ROWS>();
            for &start in places.starts {
                let row = places.row(b, start);
                let (here, rest) = a.split_at(places.count);
                a = rest;
                for (place, a) in here.iter().enumerate() {
                    let b: &[f32; 16] = row[place * places.step + left..].first_chunk().expect("a row has its places");
                    // SAFETY: both halves of the 16 elements are 8.
                    let b = unsafe { [_mm256_loadu_ps(b.as_ptr()), _mm256_loadu_ps(b.as_ptr().add(8))] };
                    for (sums, &a) in sums.iter_mut().zip(&a[top..top + 4]) {
                        let a = _mm256_set1_ps(a);
                        sums[0] = _mm256_fmadd_ps(a, b[0], sums[0]);
                        sums[1] = _mm256_fmadd_ps(a, b[1], sums[1]);
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                let (parts, _) = tile[(top + i) * COLUMNS + left..][..16].as_chunks_mut::<8>();
                for (part, sum) in parts.iter_mut().zip(sums) {
                    // SAFETY: a part has the 8 elements that are read and written.
                    unsafe { _mm256_storeu_ps(part.as_mut_ptr(), _mm256_add_ps(_mm256_loadu_ps(part.as_ptr()), *sum)) };
                }
            }
        }
    }
}

//! The largest magnitudes of the whole vector (Aji and Heafield 2017; DGC, Lin
//! et al. 2018). Of equals the first.

/// Bits of a magnitude that tell the bins apart: exponent and seven bits
/// behind it, so that a bin holds a small part of any real update and its
/// counts stay in the cache.
const BIN_SHIFT: u32 = 16;
const BINS: usize = 1 << (31 - BIN_SHIFT);

/// Indices of the `count` (at most as many as there are) largest magnitudes,
/// ascending.
pub fn indices(vector: &[f32], count: usize) -> Vec<u32> {
    let Some(Threshold { bits, mut equals }) = threshold(vector, count) else { return Vec::new() };
    let mut indices = Vec::with_capacity(count);
    for (index, value) in vector.iter().enumerate() {
        let magnitude = magnitude(value);
        if magnitude >= bits {
            if magnitude == bits {
                if equals == 0 {
                    continue;
                }
                equals -= 1;
            }
            indices.push(index as u32);
        }
    }
    indices
}

/// The smallest magnitude kept, and how many that equal it are.
struct Threshold {
    bits: u32,
    equals: usize,
}

/// Ordered like the magnitude of finite values.
fn magnitude(value: &f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

fn threshold(vector: &[f32], count: usize) -> Option<Threshold> {
    // One pass finds the bin of the smallest magnitude kept; only that bin is
    // copied and put in order, not the vector.
    let mut bins = vec![0usize; BINS];
    for value in vector {
        bins[(magnitude(value) >> BIN_SHIFT) as usize] += 1;
    }
    let mut wanted = count.checked_sub(1)?;
    let bin = (0..BINS).rev().find(|&bin| match wanted.checked_sub(bins[bin]) {
        Some(left) => {
            wanted = left;
            false
        }
        None => true,
    })?;
    let inside = vector.iter().map(magnitude).filter(|m| (m >> BIN_SHIFT) as usize == bin);
    let mut inside: Vec<u32> = inside.collect();
    let (larger, &mut bits, _) = inside.select_nth_unstable_by(wanted, |a, b| b.cmp(a));
    let larger = larger.iter().filter(|m| **m > bits).count();
    Some(Threshold { bits, equals: wanted + 1 - larger })
}

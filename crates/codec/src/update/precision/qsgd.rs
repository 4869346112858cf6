//! Whole steps, up or down at random so that the mean is right (QSGD, Alistarh
//! et al. 2017), scaled by the largest magnitude of a block as in the paper's
//! experiments.
//!
//! A value is off by one step at most. Sums over many senders lose less than
//! with the nearest step, whose errors all lean the same way.

use super::blocks::{Quantiser, largest};
use super::nearest::{code, levels, restore, to_steps};
use crate::update::rng::{Purpose, Rng};

pub struct Qsgd {
    bits: usize,
    rng: Rng,
}

impl Qsgd {
    pub fn new(bits: u8, seed: u64) -> Self {
        Self { bits: bits.into(), rng: Rng::new(seed, Purpose::Rounding) }
    }
}

/// From above -1/2 to below 1/2, evenly: a whole number never moves. 23 bits,
/// so that neither end rounds to the half.
fn shift(random: u32) -> f32 {
    ((random >> 9) as f32 + 0.5) * (1.0 / (1 << 23) as f32) - 0.5
}

impl Quantiser for Qsgd {
    fn bits(&self) -> usize {
        self.bits
    }

    fn quantise(&mut self, values: &[f32], codes: &mut [u8]) -> f32 {
        let (largest, levels) = (largest(values), levels(self.bits));
        let step = largest / levels;
        let (up, inverse) = to_steps(largest, step);
        for (slots, values) in codes.chunks_mut(2).zip(values.chunks(2)) {
            let random = self.rng.next();
            for ((slot, value), random) in slots.iter_mut().zip(values).zip([random as u32, (random >> 32) as u32]) {
                *slot = code(value * up * inverse + shift(random), levels);
            }
        }
        step
    }

    fn restore(&self, scale: f32, codes: &[u8], values: &mut [f32]) {
        restore(scale, levels(self.bits), codes, values);
    }
}

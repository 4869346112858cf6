//! Whole steps to the nearest, symmetric around zero, the largest magnitude of
//! a block being the last step: 127 steps to a side for `int8`, 7 for `int4`.
//!
//! A value is off by half a step at most. Zero stays zero, and most of an
//! update is near it.

use super::blocks::{Quantiser, largest};

pub struct Nearest {
    pub bits: usize,
}

/// Added to a float, rounds it to a whole number that its lowest bits hold:
/// the last place of floats from 2^23 to 2^24 is one. Vectorises, as
/// `round` doesn't on every processor.
const WHOLE: f32 = 12_582_912.0;

/// Below it a block's values are brought up before they are divided: the
/// inverse of a subnormal step is infinite.
const SMALL: f32 = 1e-30;
const UP: f32 = (1u64 << 63) as f32;

/// What a block's values are multiplied by, twice, to count in steps.
pub fn to_steps(largest: f32, step: f32) -> (f32, f32) {
    match (step > 0.0, largest < SMALL) {
        (false, _) => (0.0, 0.0),
        (true, false) => (1.0, 1.0 / step),
        (true, true) => (UP, 1.0 / (step * UP)),
    }
}

/// The whole number nearest to `steps`, of `levels` at most to a side,
/// counted from the lowest.
pub fn code(steps: f32, levels: f32) -> u8 {
    (steps.clamp(-levels, levels) + (WHOLE + levels)).to_bits() as u8
}

/// Sets the value of each code; finite even where a step was rounded up.
pub fn restore(step: f32, levels: f32, codes: &[u8], values: &mut [f32]) {
    for (slot, &code) in values.iter_mut().zip(codes) {
        *slot = ((f32::from(code) - levels) * step).clamp(f32::MIN, f32::MAX);
    }
}

/// Steps to a side that codes of so many bits hold.
pub fn levels(bits: usize) -> f32 {
    ((1u32 << (bits - 1)) - 1) as f32
}

impl Quantiser for Nearest {
    fn bits(&self) -> usize {
        self.bits
    }

    fn quantise(&mut self, values: &[f32], codes: &mut [u8]) -> f32 {
        let (largest, levels) = (largest(values), levels(self.bits));
        let step = largest / levels;
        let (up, inverse) = to_steps(largest, step);
        for (slot, value) in codes.iter_mut().zip(values) {
            *slot = code(value * up * inverse, levels);
        }
        step
    }

    fn restore(&self, scale: f32, codes: &[u8], values: &mut [f32]) {
        restore(scale, levels(self.bits), codes, values);
    }
}

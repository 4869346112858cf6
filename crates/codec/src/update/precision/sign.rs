//! One bit per value, its sign, and the mean magnitude of a block (signSGD,
//! Bernstein et al. 2018; scaled, Karimireddy et al. 2019).
//!
//! The mean is the scale with the smallest square error; with it the error is
//! never larger than the vector itself. Zeros come back as plus or minus it.

use super::blocks::Quantiser;

pub struct Sign;

impl Quantiser for Sign {
    fn bits(&self) -> usize {
        1
    }

    fn quantise(&mut self, values: &[f32], codes: &mut [u8]) -> f32 {
        for (code, value) in codes.iter_mut().zip(values) {
            *code = (value.to_bits() >> 31) as u8;
        }
        // Several sums, which run side by side; in f64, which none overflows.
        let mut sums = [0f64; 8];
        for chunk in values.chunks(8) {
            for (sum, value) in sums.iter_mut().zip(chunk) {
                *sum += f64::from(value.abs());
            }
        }
        (sums.iter().sum::<f64>() / values.len().max(1) as f64) as f32
    }

    fn restore(&self, scale: f32, codes: &[u8], values: &mut [f32]) {
        for (slot, &code) in values.iter_mut().zip(codes) {
            *slot = f32::from_bits(scale.to_bits() | (u32::from(code) << 31));
        }
    }
}

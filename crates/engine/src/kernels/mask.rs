//! `ReluGrad(dy, y) -> dx` and `ClipGrad(dy, x) -> dx` (attributes `min`,
//! `max`): the gradient where the input was let through, else zero.

use super::wide::widest;
use super::workers::Workers;
use super::{Array, Attributes, Compute, Fault, Kernel};

pub(super) const RELU: Kernel = Kernel { name: "ReluGrad", inputs: 2, outputs: 1, make: |_| Ok(Box::new(Mask::Relu)) };

pub(super) const CLIP: Kernel = Kernel { name: "ClipGrad", inputs: 2, outputs: 1, make: clip };

fn clip(attributes: &Attributes<'_, '_>) -> Result<Box<dyn Compute>, Fault> {
    Ok(Box::new(Mask::Clip { min: attributes.float("min")?, max: attributes.float("max")? }))
}

pub(super) enum Mask {
    Relu,
    Clip { min: f32, max: f32 },
}

impl Compute for Mask {
    fn shapes(&self, inputs: &[&[usize]]) -> Result<Vec<Vec<usize>>, Fault> {
        super::same(inputs)?;
        Ok(vec![inputs[0].to_vec()])
    }

    fn run(&self, inputs: &[Array<'_>], mut outputs: Vec<&mut [f32]>, workers: &Workers<'_>) -> Result<(), Fault> {
        workers.pieces(outputs.remove(0), |at, dx| {
            let [dy, x] = [0, 1].map(|i| &inputs[i].data[at..][..dx.len()]);
            match *self {
                Self::Relu => above_zero(dx, dy, x),
                Self::Clip { min, max } => within(dx, dy, x, min, max),
            }
        })
    }
}

widest! {
    fn above_zero(dx: &mut [f32], dy: &[f32], y: &[f32]) {
        for ((dx, dy), y) in dx.iter_mut().zip(dy).zip(y) {
            *dx = if *y > 0.0 { *dy } else { 0.0 };
        }
    }
}

widest! {
    fn within(dx: &mut [f32], dy: &[f32], x: &[f32], min: f32, max: f32) {
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = if (*x > min) & (*x < max) { *dy } else { 0.0 };
        }
    }
}

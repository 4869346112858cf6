//! Optimisers in one pass over each weight.
//!
//! - `SgdUpdate(weight, gradient, velocity, rate) -> weight, velocity`,
//!   attributes `momentum`, `nesterov`, `weight_decay`;
//! - `AdamUpdate(weight, gradient, mean, square, pace, correction, shrink) ->
//!   weight, mean, square`, attributes `beta1`, `rest1`, `beta2`, `rest2`
//!   (one less beta, rounded from double), `epsilon`, `weight_decay`. `pace`
//!   is the rate over the mean's correction, `correction` the root of the
//!   square's; `shrink` the share of the weight that decays past the moments.

use super::wide::widest;
use super::workers::{PIECE, Workers};
use super::{Array, Attributes, Compute, Fault, Kernel};

pub(super) const SGD: Kernel = Kernel { name: "SgdUpdate", inputs: 4, outputs: 2, make: sgd };

pub(super) const ADAM: Kernel = Kernel { name: "AdamUpdate", inputs: 7, outputs: 3, make: adam };

fn sgd(attributes: &Attributes<'_, '_>) -> Result<Box<dyn Compute>, Fault> {
    Ok(Box::new(Sgd {
        momentum: attributes.float("momentum")?,
        nesterov: attributes.float("nesterov")? != 0.0,
        decay: attributes.float("weight_decay")?,
    }))
}

fn adam(attributes: &Attributes<'_, '_>) -> Result<Box<dyn Compute>, Fault> {
    let [beta1, rest1, beta2, rest2] = ["beta1", "rest1", "beta2", "rest2"].map(|name| attributes.float(name));
    let (epsilon, decay) = (attributes.float("epsilon")?, attributes.float("weight_decay")?);
    Ok(Box::new(Adam { beta1: beta1?, rest1: rest1?, beta2: beta2?, rest2: rest2?, epsilon, decay }))
}

#[derive(Clone, Copy)]
pub(super) struct Sgd {
    pub(super) momentum: f32,
    pub(super) nesterov: bool,
    pub(super) decay: f32,
}

#[derive(Clone, Copy)]
pub(super) struct Adam {
    pub(super) beta1: f32,
    pub(super) rest1: f32,
    pub(super) beta2: f32,
    pub(super) rest2: f32,
    pub(super) epsilon: f32,
    pub(super) decay: f32,
}

/// Some tensors of one shape, then numbers.
fn tensors_then_numbers(inputs: &[&[usize]], tensors: usize) -> Result<(), Fault> {
    super::same(&inputs[..tensors])?;
    match inputs[tensors..].iter().find(|shape| shape.iter().product::<usize>() != 1) {
        Some(shape) => Err(Fault::new(format!("a number is of shape {shape:?}"))),
        None => Ok(()),
    }
}

impl Compute for Sgd {
    fn shapes(&self, inputs: &[&[usize]]) -> Result<Vec<Vec<usize>>, Fault> {
        tensors_then_numbers(inputs, 3)?;
        Ok(vec![inputs[0].to_vec(); 2])
    }

    fn run(&self, inputs: &[Array<'_>], mut outputs: Vec<&mut [f32]>, workers: &Workers<'_>) -> Result<(), Fault> {
        let (velocity, weight) = (outputs.remove(1), outputs.remove(0));
        let rate = inputs[3].data[0];
        let items: Vec<_> = weight.chunks_mut(PIECE).zip(velocity.chunks_mut(PIECE)).enumerate().collect();
        workers.each(items, |(i, (weight, velocity))| {
            let old = [0, 1, 2].map(|k| &inputs[k].data[i * PIECE..][..weight.len()]);
            sgd_piece(weight, velocity, old, *self, rate);
        })
    }
}

widest! {
    fn sgd_piece(weight: &mut [f32], velocity: &mut [f32], old: [&[f32]; 3], s: Sgd, rate: f32) {
        let [w, g, v] = old;
        let next = weight.iter_mut().zip(velocity);
        for ((weight, velocity), ((w, g), v)) in next.zip(w.iter().zip(g).zip(v)) {
            let gradient = g + w * s.decay;
            *velocity = v * s.momentum + gradient;
            let change = if s.nesterov { gradient + *velocity * s.momentum } else { *velocity };
            *weight = w - change * rate;
        }
    }
}

impl Compute for Adam {
    fn shapes(&self, inputs: &[&[usize]]) -> Result<Vec<Vec<usize>>, Fault> {
        tensors_then_numbers(inputs, 4)?;
        Ok(vec![inputs[0].to_vec(); 3])
    }

    fn run(&self, inputs: &[Array<'_>], mut outputs: Vec<&mut [f32]>, workers: &Workers<'_>) -> Result<(), Fault> {
        let (square, mean, weight) = (outputs.remove(2), outputs.remove(1), outputs.remove(0));
        let numbers = [4, 5, 6].map(|k| inputs[k].data[0]);
        let next = weight.chunks_mut(PIECE).zip(mean.chunks_mut(PIECE)).zip(square.chunks_mut(PIECE));
        let items: Vec<_> = next.enumerate().collect();
        workers.each(items, |(i, ((weight, mean), square))| {
            let old = [0, 1, 2, 3].map(|k| &inputs[k].data[i * PIECE..][..weight.len()]);
            adam_piece(weight, mean, square, old, *self, numbers);
        })
    }
}

widest! {
    fn adam_piece(
        weight: &mut [f32],
        mean: &mut [f32],
        square: &mut [f32],
        old: [&[f32]; 4],
        a: Adam,
        numbers: [f32; 3],
    ) {
        let ([w, g, m, s], [pace, correction, shrink]) = (old, numbers);
        let next = weight.iter_mut().zip(mean).zip(square);
        for (((weight, mean), square), (((w, g), m), s)) in next.zip(w.iter().zip(g).zip(m).zip(s)) {
            let gradient = g + w * a.decay;
            *mean = m * a.beta1 + gradient * a.rest1;
            *square = s * a.beta2 + gradient * gradient * a.rest2;
            let below = square.sqrt() / correction + a.epsilon;
            *weight = (w - w * shrink) - *mean / below * pace;
        }
    }
}

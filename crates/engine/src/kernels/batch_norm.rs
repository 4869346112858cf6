//! Batch normalisation of `[batch, channels, ..]` in training, where statistics
//! are the batch's own (Ioffe and Szegedy, 2015):
//! `BatchNormStatistics(x) -> mean, variance`, the variance the biased one, and
//! `BatchNormGrad(dy, x, scale, mean, variance) -> dx, dscale, dbias`.
//!
//! Both read their inputs twice: for the sums, then for what follows of them.

use super::wide::{LANES, RUN, widest};
use super::workers::{PIECE, Workers};
use super::{Array, Attributes, Compute, Fault, Kernel};

pub(super) const GRADIENT: Kernel = Kernel { name: "BatchNormGrad", inputs: 5, outputs: 3, make };

pub(super) const STATISTICS: Kernel =
    Kernel { name: "BatchNormStatistics", inputs: 1, outputs: 2, make: |_| Ok(Box::new(Statistics)) };

/// Channels that share cache lines where pictures are small, and are looked at
/// together.
fn together(plane: usize) -> usize {
    (64 / plane.max(1)).clamp(1, 16)
}

pub(super) struct Statistics;

impl Compute for Statistics {
    fn shapes(&self, inputs: &[&[usize]]) -> Result<Vec<Vec<usize>>, Fault> {
        let channels = inputs[0].get(1).ok_or_else(|| Fault::new(format!("{:?} has no channels", inputs[0])))?;
        Ok(vec![vec![*channels]; 2])
    }

    fn run(&self, inputs: &[Array<'_>], mut outputs: Vec<&mut [f32]>, workers: &Workers<'_>) -> Result<(), Fault> {
        let (variance, mean) = (outputs.remove(1), outputs.remove(0));
        let x = inputs[0].data;
        let (examples, channels) = (inputs[0].shape[0], inputs[0].shape[1]);
        let plane = inputs[0].shape[2..].iter().product::<usize>();
        let count = (examples * plane) as f64;
        if x.is_empty() {
            mean.fill(0.0);
            variance.fill(0.0);
            return Ok(());
        }
        let together = together(plane);
        let items = mean.chunks_mut(together).zip(variance.chunks_mut(together)).enumerate().collect();
        workers.each(items, |(i, (mean, variance)): (usize, (&mut [f32], &mut [f32]))| {
            let of = |example: usize, slot: usize| &x[(example * channels + i * together + slot) * plane..][..plane];
            let mut sums = [0f64; 16];
            for (example, slot) in (0..examples).flat_map(|e| (0..mean.len()).map(move |slot| (e, slot))) {
                sums[slot] += total(of(example, slot));
            }
            let means = sums.map(|sum| sum / count);
            let mut spread = [0f64; 16];
            for (example, slot) in (0..examples).flat_map(|e| (0..mean.len()).map(move |slot| (e, slot))) {
                spread[slot] += apart(of(example, slot), means[slot] as f32);
            }
            for (slot, (mean, variance)) in mean.iter_mut().zip(variance).enumerate() {
                *mean = means[slot] as f32;
                *variance = (spread[slot] / count) as f32;
            }
        })
    }
}

fn make(attributes: &Attributes<'_, '_>) -> Result<Box<dyn Compute>, Fault> {
    Ok(Box::new(BatchNorm { epsilon: attributes.float("epsilon")? }))
}

pub(super) struct BatchNorm {
    pub(super) epsilon: f32,
}

/// `dx = dy * gain - ((x - mean) * slope + shift)`.
#[derive(Clone, Copy)]
struct Channel {
    mean: f32,
    gain: f32,
    slope: f32,
    shift: f32,
}

impl Compute for BatchNorm {
    fn shapes(&self, inputs: &[&[usize]]) -> Result<Vec<Vec<usize>>, Fault> {
        let (dy, x) = (inputs[0], inputs[1]);
        let channels = x.get(1).ok_or_else(|| Fault::new(format!("the input is {x:?}; it has no channels")))?;
        if dy != x || inputs[2..].iter().any(|s| *s != [*channels]) {
            return Err(Fault::new(format!("shapes {inputs:?} don't fit each other")));
        }
        Ok(vec![x.to_vec(), vec![*channels], vec![*channels]])
    }

    fn run(&self, inputs: &[Array<'_>], mut outputs: Vec<&mut [f32]>, workers: &Workers<'_>) -> Result<(), Fault> {
        let [dy, x, scale, mean, variance] = [0, 1, 2, 3, 4].map(|i| inputs[i].data);
        let (dbias, dscale, dx) = (outputs.remove(2), outputs.remove(1), outputs.remove(0));
        let channels = scale.len();
        let plane = inputs[1].shape[2..].iter().product::<usize>();
        let count = (inputs[1].shape[0] * plane) as f64;
        if x.is_empty() {
            dscale.fill(0.0);
            dbias.fill(0.0);
            return Ok(());
        }
        let mut found = vec![Channel { mean: 0.0, gain: 0.0, slope: 0.0, shift: 0.0 }; channels];
        let together = together(plane);
        let items: Vec<_> = found
            .chunks_mut(together)
            .zip(dscale.chunks_mut(together))
            .zip(dbias.chunks_mut(together))
            .enumerate()
            .collect();
        workers.each(items, |(i, ((found, dscale), dbias))| {
            let first = i * together;
            let mut sums = [(0f64, 0f64); 16];
            for example in 0..inputs[1].shape[0] {
                for (slot, sums) in sums.iter_mut().enumerate().take(found.len()) {
                    let at = (example * channels + first + slot) * plane;
                    let (all, along) = totals(&dy[at..][..plane], &x[at..][..plane], mean[first + slot]);
                    sums.0 += all;
                    sums.1 += along;
                }
            }
            for (slot, found) in found.iter_mut().enumerate() {
                let c = first + slot;
                let inverse = 1.0 / (f64::from(variance[c]) + f64::from(self.epsilon)).sqrt();
                let (all, along) = (sums[slot].0, sums[slot].1 * inverse);
                let gain = f64::from(scale[c]) * inverse;
                dbias[slot] = all as f32;
                dscale[slot] = along as f32;
                *found = Channel {
                    mean: mean[c],
                    gain: gain as f32,
                    slope: (along * inverse * gain / count) as f32,
                    shift: (all * gain / count) as f32,
                };
            }
        })?;
        let planes = (PIECE / plane).max(1);
        let items: Vec<_> = dx.chunks_mut(planes * plane).enumerate().collect();
        workers.each(items, |(i, dx)| {
            for (j, dx) in dx.chunks_mut(plane).enumerate() {
                let index = i * planes + j;
                let at = index * plane;
                spread(dx, &dy[at..][..plane], &x[at..][..plane], found[index % channels]);
            }
        })
    }
}

widest! {
    fn total(x: &[f32]) -> f64 {
        let mut total = 0f64;
        for x in x.chunks(RUN) {
            let mut all = [0f32; LANES];
            let (xs, x) = x.as_chunks::<LANES>();
            for x in xs {
                for i in 0..LANES {
                    all[i] += x[i];
                }
            }
            for (i, x) in x.iter().enumerate() {
                all[i] += x;
            }
            total += all.iter().map(|&sum| f64::from(sum)).sum::<f64>();
        }
        total
    }
}

widest! {
    /// The sum of `(x - mean)^2`.
    fn apart(x: &[f32], mean: f32) -> f64 {
        let mut total = 0f64;
        for x in x.chunks(RUN) {
            let mut all = [0f32; LANES];
            let (xs, x) = x.as_chunks::<LANES>();
            for x in xs {
                for i in 0..LANES {
                    all[i] += (x[i] - mean) * (x[i] - mean);
                }
            }
            for (i, x) in x.iter().enumerate() {
                all[i] += (x - mean) * (x - mean);
            }
            total += all.iter().map(|&sum| f64::from(sum)).sum::<f64>();
        }
        total
    }
}

widest! {
    /// Sums of `dy` and of `dy (x - mean)`.
    fn totals(dy: &[f32], x: &[f32], mean: f32) -> (f64, f64) {
        let mut total = (0f64, 0f64);
        for (dy, x) in dy.chunks(RUN).zip(x.chunks(RUN)) {
            let (mut all, mut along) = ([0f32; LANES], [0f32; LANES]);
            let ((dys, dy), (xs, x)) = (dy.as_chunks::<LANES>(), x.as_chunks::<LANES>());
            for (dy, x) in dys.iter().zip(xs) {
                for i in 0..LANES {
                    all[i] += dy[i];
                    along[i] += dy[i] * (x[i] - mean);
                }
            }
            for (i, (dy, x)) in dy.iter().zip(x).enumerate() {
                all[i] += dy;
                along[i] += dy * (x - mean);
            }
            for i in 0..LANES {
                total.0 += f64::from(all[i]);
                total.1 += f64::from(along[i]);
            }
        }
        total
    }
}

widest! {
    fn spread(dx: &mut [f32], dy: &[f32], x: &[f32], c: Channel) {
        for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = dy * c.gain - ((x - c.mean) * c.slope + c.shift);
        }
    }
}

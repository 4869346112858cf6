//! `MaxPoolGrad(dy, x) -> dx`: each output's gradient goes to the largest
//! element of its window, of equal ones the first.

use super::window::Window;
use super::workers::Workers;
use super::{Array, Attributes, Compute, Fault, Kernel};

pub(super) const KERNEL: Kernel = Kernel { name: "MaxPoolGrad", inputs: 2, outputs: 1, make };

fn make(attributes: &Attributes<'_, '_>) -> Result<Box<dyn Compute>, Fault> {
    Ok(Box::new(MaxPool(Window::read(attributes)?)))
}

pub(super) struct MaxPool(pub(super) Window);

impl Compute for MaxPool {
    fn shapes(&self, inputs: &[&[usize]]) -> Result<Vec<Vec<usize>>, Fault> {
        let (dy, x) = (self.0.picture(inputs[0])?, self.0.picture(inputs[1])?);
        let least = self.0.output(x)?;
        // With ceil_mode there may be one more window, partly outside.
        let fits = |axis: usize| (least[axis]..=least[axis] + 1).contains(&dy[2 + axis]);
        if dy[..2] != x[..2] || !fits(0) || !fits(1) {
            return Err(Fault::new(format!("the gradient is {:?}, the input {:?}", inputs[0], inputs[1])));
        }
        Ok(vec![inputs[1].to_vec()])
    }

    fn run(&self, inputs: &[Array<'_>], mut outputs: Vec<&mut [f32]>, workers: &Workers<'_>) -> Result<(), Fault> {
        let (dy, x) = (self.0.picture(inputs[0].shape)?, self.0.picture(inputs[1].shape)?);
        let dx = outputs.remove(0);
        if dx.is_empty() {
            return Ok(());
        }
        let (plane, out) = (x[2] * x[3], dy[2] * dy[3]);
        let together = (super::workers::PIECE / plane).max(1);
        let items: Vec<_> = dx.chunks_mut(together * plane).enumerate().collect();
        workers.each(items, |(i, dx)| {
            for (j, dx) in dx.chunks_mut(plane).enumerate() {
                let index = i * together + j;
                let from = &inputs[1].data[index * plane..][..plane];
                self.plane(dx, &inputs[0].data[index * out..][..out], from, [x[2], x[3]], dy[3]);
            }
        })
    }
}

impl MaxPool {
    fn plane(&self, dx: &mut [f32], dy: &[f32], x: &[f32], size: [usize; 2], width: usize) {
        dx.fill(0.0);
        let w = &self.0;
        for (row, dy) in dy.chunks(width).enumerate() {
            for (column, dy) in dy.iter().enumerate() {
                let mut winner: Option<usize> = None;
                for i in 0..w.kernel[0] {
                    let at = (row * w.strides[0] + i * w.dilations[0]).checked_sub(w.before[0]);
                    let Some(at) = at.filter(|&at| at < size[0]) else { continue };
                    for j in 0..w.kernel[1] {
                        let to = (column * w.strides[1] + j * w.dilations[1]).checked_sub(w.before[1]);
                        let Some(to) = to.filter(|&to| to < size[1]) else { continue };
                        let here = at * size[1] + to;
                        if winner.is_none_or(|winner| x[here] > x[winner]) {
                            winner = Some(here);
                        }
                    }
                }
                if let Some(winner) = winner {
                    dx[winner] += dy;
                }
            }
        }
    }
}

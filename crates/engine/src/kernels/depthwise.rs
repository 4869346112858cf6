//! `DepthwiseGrad(dy, x, w) -> dx, dw` of a convolution whose every channel
//! is a group of its own.
//!
//! Strides divide a padded picture into phases, one for each remainder of row
//! and column. Within its phase what one position of the kernel meets is the
//! gradient's own grid, shifted: with the gradient's rows as long as the
//! phase's, one product over contiguous elements, whatever the stride.

use super::wide::{LANES, RUN, widest};
use super::window::Window;
use super::workers::Workers;
use super::{Array, Attributes, Compute, Fault, Kernel};

pub(super) const KERNEL: Kernel = Kernel { name: "DepthwiseGrad", inputs: 3, outputs: 2, make };

fn make(attributes: &Attributes<'_, '_>) -> Result<Box<dyn Compute>, Fault> {
    Ok(Box::new(Depthwise(Window::read(attributes)?)))
}

pub(super) struct Depthwise(pub(super) Window);

impl Compute for Depthwise {
    fn shapes(&self, inputs: &[&[usize]]) -> Result<Vec<Vec<usize>>, Fault> {
        let (dy, x) = (self.0.picture(inputs[0])?, self.0.picture(inputs[1])?);
        let [rows, columns] = self.0.output(x)?;
        let weight = [&[x[1], 1], self.0.kernel_axes()].concat();
        if dy != [x[0], x[1], rows, columns] || inputs[2] != weight {
            return Err(Fault::new(format!("shapes {inputs:?} don't fit each other")));
        }
        Ok(vec![inputs[1].to_vec(), weight])
    }

    fn run(&self, inputs: &[Array<'_>], mut outputs: Vec<&mut [f32]>, workers: &Workers<'_>) -> Result<(), Fault> {
        let (dy, x) = (self.0.picture(inputs[0].shape)?, self.0.picture(inputs[1].shape)?);
        let (dw, dx) = (outputs.remove(1), outputs.remove(0));
        if dx.is_empty() || dw.is_empty() {
            dw.fill(0.0);
            return Ok(());
        }
        let grid = Grid::of(&self.0, x, [dy[2], dy[3]]);
        let (plane, out) = (x[2] * x[3], dy[2] * dy[3]);
        let mut channels: Vec<Channel<'_>> =
            dw.chunks_mut(self.0.taps()).enumerate().map(|(c, dw)| (c, dw, Vec::with_capacity(x[0]))).collect();
        for (i, dx) in dx.chunks_mut(plane).enumerate() {
            channels[i % x[1]].2.push(dx);
        }
        workers.each(channels, |(channel, dw, dx)| {
            let weight = &inputs[2].data[channel * dw.len()..][..dw.len()];
            let mut sums = vec![0f64; dw.len()];
            let (mut gradient, mut picture) = (vec![0f32; grid.span], vec![0f32; grid.len()]);
            for (example, dx) in dx.into_iter().enumerate() {
                let index = example * x[1] + channel;
                let from = &inputs[0].data[index * out..][..out];
                for (to, from) in gradient.chunks_mut(grid.pitch).zip(from.chunks(dy[3])) {
                    to[..from.len()].copy_from_slice(from);
                }
                grid.scatter(&mut picture, &inputs[1].data[index * plane..][..plane]);
                for (sum, at) in sums.iter_mut().zip(&grid.taps) {
                    *sum += dot(&gradient, &picture[*at..][..grid.span]);
                }
                picture.fill(0.0);
                for (weight, at) in weight.iter().zip(&grid.taps) {
                    add_scaled(&mut picture[*at..][..grid.span], &gradient, *weight);
                }
                grid.gather(dx, &picture);
                // What lies outside of the picture must be zero for the next.
                picture.fill(0.0);
            }
            dw.iter_mut().zip(sums).for_each(|(dw, sum)| *dw = sum as f32);
        })
    }
}

/// A channel, its part of the weight's gradient, and its pictures of `dx`.
type Channel<'o> = (usize, &'o mut [f32], Vec<&'o mut [f32]>);

/// Where a picture's elements are in its phases.
struct Grid {
    before: [usize; 2],
    strides: [usize; 2],
    /// Columns of the picture.
    columns: usize,
    /// Rows of a phase.
    rows: usize,
    /// Columns of a phase.
    pitch: usize,
    /// From the first to the last element of the gradient, with pitch.
    span: usize,
    /// Where each position of the kernel meets the gradient's first element.
    taps: Vec<usize>,
}

impl Grid {
    fn of(window: &Window, picture: [usize; 4], out: [usize; 2]) -> Self {
        let phase = |axis: usize| {
            let padded = picture[2 + axis] + window.before[axis] + window.behind[axis];
            padded.div_ceil(window.strides[axis])
        };
        let (rows, pitch) = (phase(0), phase(1));
        let mut grid = Self {
            before: window.before,
            strides: window.strides,
            columns: picture[3],
            rows,
            pitch,
            span: (out[0] - 1) * pitch + out[1],
            taps: Vec::new(),
        };
        grid.taps = (0..window.taps()).map(|tap| grid.at(window.offset(tap))).collect();
        grid
    }

    fn len(&self) -> usize {
        self.rows * self.pitch * self.strides[0] * self.strides[1]
    }

    /// Where an element of the padded picture is.
    fn at(&self, [row, column]: [usize; 2]) -> usize {
        let phase = row % self.strides[0] * self.strides[1] + column % self.strides[1];
        (phase * self.rows + row / self.strides[0]) * self.pitch + column / self.strides[1]
    }

    fn scatter(&self, to: &mut [f32], picture: &[f32]) {
        for (row, from) in picture.chunks(self.columns).enumerate() {
            for phase in 0..self.strides[1].min(self.columns) {
                let at = self.at([row + self.before[0], phase + self.before[1]]);
                if self.strides[1] == 1 {
                    to[at..][..from.len()].copy_from_slice(from);
                } else {
                    let from = from[phase..].iter().step_by(self.strides[1]);
                    to[at..].iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                }
            }
        }
    }

    fn gather(&self, picture: &mut [f32], from: &[f32]) {
        for (row, to) in picture.chunks_mut(self.columns).enumerate() {
            for phase in 0..self.strides[1].min(self.columns) {
                let at = self.at([row + self.before[0], phase + self.before[1]]);
                if self.strides[1] == 1 {
                    to.copy_from_slice(&from[at..][..self.columns]);
                } else {
                    let to = to[phase..].iter_mut().step_by(self.strides[1]);
                    to.zip(&from[at..]).for_each(|(to, from)| *to = *from);
                }
            }
        }
    }
}

widest! {
    fn dot(a: &[f32], b: &[f32]) -> f64 {
        let mut total = 0f64;
        for (a, b) in a.chunks(RUN).zip(b.chunks(RUN)) {
            let mut sums = [0f32; LANES];
            let ((left, a), (right, b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
            for (a, b) in left.iter().zip(right) {
                for i in 0..LANES {
                    sums[i] += a[i] * b[i];
                }
            }
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                sums[i] += a * b;
            }
            total += sums.iter().map(|&s| f64::from(s)).sum::<f64>();
        }
        total
    }
}

widest! {
    fn add_scaled(to: &mut [f32], from: &[f32], factor: f32) {
        for (to, from) in to.iter_mut().zip(from) {
            *to += from * factor;
        }
    }
}

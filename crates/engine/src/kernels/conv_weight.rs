//! `ConvWeightGrad(dy, x) -> dw`: the weight gradient of a convolution without
//! groups, `[out, in, kernel..]`.
//!
//! What each place saw is never written out: both inputs are laid out in
//! panels of channels once, and every position of the kernel reads the same
//! panels, shifted.

use super::product::{COLUMNS, Places, ROWS, Tile, accumulate};
use super::window::Window;
use super::workers::Workers;
use super::{Array, Attributes, Compute, Fault, Kernel};

pub(super) const KERNEL: Kernel = Kernel { name: "ConvWeightGrad", inputs: 2, outputs: 1, make };

/// Places whose products a tile collects in registers: their panels fit the
/// first-level cache.
const BLOCK_PLACES: usize = 128;

/// Tasks to divide the work into, where it is that large: enough for the
/// threads of small devices to share evenly.
const TASKS: usize = 16;

/// Rows of tiles in a task at most: they share what they read of `x`.
const TASK_PANELS_MAX: usize = 8;

fn make(attributes: &Attributes<'_, '_>) -> Result<Box<dyn Compute>, Fault> {
    Ok(Box::new(ConvWeight(Window::read(attributes)?)))
}

struct ConvWeight(Window);

impl Compute for ConvWeight {
    fn shapes(&self, inputs: &[&[usize]]) -> Result<Vec<Vec<usize>>, Fault> {
        let (dy, x) = (self.0.picture(inputs[0])?, self.0.picture(inputs[1])?);
        let [rows, columns] = self.0.output(x)?;
        if dy[0] != x[0] || dy[2..] != [rows, columns] {
            return Err(Fault::new(format!(
                "the gradient is {:?}; {:?} gives pictures of {rows} by {columns}",
                inputs[0], inputs[1]
            )));
        }
        Ok(vec![[&[dy[1], x[1]], self.0.kernel_axes()].concat()])
    }

    fn run(&self, inputs: &[Array<'_>], mut outputs: Vec<&mut [f32]>, workers: &Workers<'_>) -> Result<(), Fault> {
        let (dy, x) = (self.0.picture(inputs[0].shape)?, self.0.picture(inputs[1].shape)?);
        let dw = outputs.remove(0);
        if inputs[0].data.is_empty() || inputs[1].data.is_empty() {
            dw.fill(0.0);
            return Ok(());
        }
        let seen = Seen::of(&self.0, x, [dy[2], dy[3]]);
        let out_panels = dy[1].div_ceil(ROWS);
        workers.with_buffer(out_panels * ROWS * dy[0] * dy[2] * dy[3], |gradients| {
            workers.with_buffer(seen.len(), |pictures| {
                gradient_panels(gradients, inputs[0].data, dy, workers)?;
                seen.panels(pictures, inputs[1].data, workers)?;
                seen.products(dw, gradients, pictures, dy, workers)
            })
        })
    }
}

/// `dy` as `[panels, examples, places, ROWS]`, missing channels zero.
fn gradient_panels(to: &mut [f32], dy: &[f32], shape: [usize; 4], workers: &Workers<'_>) -> Result<(), Fault> {
    let [examples, channels, rows, columns] = shape;
    let places = rows * columns;
    let items: Vec<_> = to.chunks_mut(places * ROWS).enumerate().collect();
    workers.each(items, |(i, to)| {
        let (panel, example) = (i / examples, i % examples);
        let first = panel * ROWS;
        let count = ROWS.min(channels - first);
        let from = &dy[(example * channels + first) * places..][..count * places];
        interleave::<ROWS>(to, from, places, count);
    })
}

/// Rows of `places` elements side by side: `to[place][row]`, zero where there
/// are fewer rows than `WIDTH`.
fn interleave<const WIDTH: usize>(to: &mut [f32], from: &[f32], places: usize, count: usize) {
    let (to, _) = to.as_chunks_mut::<WIDTH>();
    if count < WIDTH {
        to.as_flattened_mut().fill(0.0);
    }
    for (row, from) in from.chunks_exact(places).take(count).enumerate() {
        for (to, from) in to.iter_mut().zip(from) {
            to[row] = *from;
        }
    }
}

/// How the pictures are laid out: `[examples, panels, rows, columns, COLUMNS]`.
struct Seen<'w> {
    window: &'w Window,
    picture: [usize; 4],
    /// Rows and columns of the output.
    places: [usize; 2],
    /// Whether a panel's channels are the picture's, read at every position
    /// of the kernel; else they are what each place saw, position by position.
    shared: bool,
    channels: usize,
    /// Rows and columns of a panel.
    size: [usize; 2],
}

impl<'w> Seen<'w> {
    fn of(window: &'w Window, picture: [usize; 4], places: [usize; 2]) -> Self {
        // Few channels would leave most of a panel empty.
        let shared = picture[1] * 2 > COLUMNS || window.taps() == 1;
        let padded = |axis: usize| picture[2 + axis] + window.before[axis] + window.behind[axis];
        let (channels, size) =
            if shared { (picture[1], [padded(0), padded(1)]) } else { (picture[1] * window.taps(), places) };
        Self { window, picture, places, shared, channels, size }
    }

    fn panel_count(&self) -> usize {
        self.channels.div_ceil(COLUMNS)
    }

    fn panel_len(&self) -> usize {
        self.size[0] * self.size[1] * COLUMNS
    }

    fn len(&self) -> usize {
        self.picture[0] * self.panel_count() * self.panel_len()
    }

    fn panels(&self, to: &mut [f32], x: &[f32], workers: &Workers<'_>) -> Result<(), Fault> {
        let items: Vec<_> = to.chunks_mut(self.panel_len()).enumerate().collect();
        workers.each(items, |(i, to)| {
            let (example, panel) = (i / self.panel_count(), i % self.panel_count());
            let each = self.picture[1] * self.picture[2] * self.picture[3];
            let x = &x[example * each..][..each];
            let channels = panel * COLUMNS..self.channels.min((panel + 1) * COLUMNS);
            if self.shared { self.padded(to, x, channels) } else { self.columns(to, x, channels) }
        })
    }

    /// The picture with its zeros around.
    fn padded(&self, to: &mut [f32], x: &[f32], channels: std::ops::Range<usize>) {
        let [.., rows, columns] = self.picture;
        let [top, left] = self.window.before;
        if self.size != [rows, columns] || channels.len() < COLUMNS {
            to.fill(0.0);
        }
        let (to, _) = to.as_chunks_mut::<COLUMNS>();
        for row in 0..rows {
            let to = &mut to[(top + row) * self.size[1] + left..][..columns];
            for (slot, channel) in channels.clone().enumerate() {
                let from = &x[(channel * rows + row) * columns..][..columns];
                for (to, from) in to.iter_mut().zip(from) {
                    to[slot] = *from;
                }
            }
        }
    }

    /// What each place saw, in the order of the weight: channel, position.
    fn columns(&self, to: &mut [f32], x: &[f32], channels: std::ops::Range<usize>) {
        let [.., rows, columns] = self.picture;
        to.fill(0.0);
        let (to, _) = to.as_chunks_mut::<COLUMNS>();
        for (slot, channel) in channels.enumerate() {
            let (channel, tap) = (channel / self.window.taps(), channel % self.window.taps());
            let [down, right] = self.window.offset(tap);
            for (row, to) in to.chunks_exact_mut(self.places[1]).enumerate() {
                let at = (row * self.window.strides[0] + down).checked_sub(self.window.before[0]);
                let Some(at) = at.filter(|&at| at < rows) else { continue };
                let from = &x[(channel * rows + at) * columns..][..columns];
                for (column, to) in to.iter_mut().enumerate() {
                    let at = (column * self.window.strides[1] + right).checked_sub(self.window.before[1]);
                    if let Some(from) = at.and_then(|at| from.get(at)) {
                        to[slot] = *from;
                    }
                }
            }
        }
    }

    fn products(
        &self,
        dw: &mut [f32],
        gradients: &[f32],
        pictures: &[f32],
        dy: [usize; 4],
        workers: &Workers<'_>,
    ) -> Result<(), Fault> {
        let taps = if self.shared { self.window.taps() } else { 1 };
        let out_panels = dy[1].div_ceil(ROWS);
        let group = (out_panels * self.panel_count() / TASKS).clamp(1, TASK_PANELS_MAX);
        // A task's part of each row of the weight lies in one piece.
        let mut tasks: Vec<Task<'_>> = (0..out_panels.div_ceil(group) * self.panel_count())
            .map(|i| Task { panel: i % self.panel_count(), first: i / self.panel_count() * group, rows: Vec::new() })
            .collect();
        for (out, row) in dw.chunks_mut(self.channels * taps).enumerate() {
            for (panel, part) in row.chunks_mut(COLUMNS * taps).enumerate() {
                tasks[out / (ROWS * group) * self.panel_count() + panel].rows.push(part);
            }
        }
        let places = dy[2] * dy[3];
        let whole = dy[0] * places;
        let step = if self.shared { self.window.strides[1] } else { 1 } * COLUMNS;
        let block_rows = BLOCK_PLACES.div_ceil(dy[3]);
        workers.each(tasks, |mut task| {
            let panels = task.rows.len().div_ceil(ROWS);
            let mut tiles: Vec<Tile> = vec![[0.0; ROWS * COLUMNS]; taps * panels];
            let starts: Vec<usize> = (0..dy[0] * dy[2]).map(|row| self.start(row, task.panel)).collect();
            for (block, starts) in starts.chunks(block_rows).enumerate() {
                let (from, len) = (block * block_rows * dy[3], starts.len() * dy[3]);
                for tap in 0..taps {
                    let [down, right] = if self.shared { self.window.offset(tap) } else { [0, 0] };
                    let shift = (down * self.size[1] + right) * COLUMNS;
                    let at = Places { starts, shift, count: dy[3], step };
                    for panel in 0..panels {
                        let a = &gradients[((task.first + panel) * whole + from) * ROWS..][..len * ROWS];
                        accumulate(&mut tiles[tap * panels + panel], a, pictures, &at);
                    }
                }
            }
            for (out, row) in task.rows.iter_mut().enumerate() {
                for (i, to) in row.iter_mut().enumerate() {
                    let (column, tap) = (i / taps, i % taps);
                    *to = tiles[tap * panels + out / ROWS][out % ROWS * COLUMNS + column];
                }
            }
        })
    }

    /// Where a row of places starts in a panel of its example.
    fn start(&self, row: usize, panel: usize) -> usize {
        let (example, row) = (row / self.places[0], row % self.places[0]);
        let down = if self.shared { row * self.window.strides[0] } else { row };
        (example * self.panel_count() + panel) * self.panel_len() + down * self.size[1] * COLUMNS
    }
}

/// A block of the weight: some outputs by one panel of inputs.
struct Task<'w> {
    panel: usize,
    /// The first panel of outputs.
    first: usize,
    /// The part of the weight of each output.
    rows: Vec<&'w mut [f32]>,
}

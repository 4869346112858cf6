//! `ConvWeightGrad(dy, x) -> dw`: the weight gradient of a convolution without
//! groups, `[out, in, kernel..]`.
//!
//! What each place saw is never written out: both inputs are laid out in
//! panels of channels once, and every position of the kernel reads the same
//! panels, shifted.

use super::product::{COLUMNS, Places, ROWS, accumulate};
use super::wide::LANES;
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

/// Places of a task at least.
const SEGMENT_PLACES_MIN: usize = 1024;

/// Rows of tiles in a task at most: they share what they read of `x`.
const TASK_PANELS_MAX: usize = 8;

fn make(attributes: &Attributes<'_, '_>) -> Result<Box<dyn Compute>, Fault> {
    Ok(Box::new(ConvWeight(Window::read(attributes)?)))
}

pub(super) struct ConvWeight(pub(super) Window);

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
        let places = [dy[2], dy[3]];
        // Of a point's products either side may be the panels; the one that
        // leaves less of them empty is.
        let area = |rows: usize, columns: usize| rows.next_multiple_of(ROWS) * columns.next_multiple_of(COLUMNS);
        let point = self.0.taps() == 1 && x[2..] == places && self.0.strides == [1, 1];
        let turned = point && area(x[1], dy[1]) < area(dy[1], x[1]);
        let (left, right, rows, picture) = match turned {
            true => (inputs[1].data, inputs[0].data, x, dy),
            false => (inputs[0].data, inputs[1].data, dy, x),
        };
        let seen = Seen::of(&self.0, picture, places);
        let plan = Plan::of(&seen, rows);
        workers.with_buffer(rows[1].next_multiple_of(ROWS) * plan.whole(), |gradients| {
            workers.with_buffer(seen.len(), |pictures| {
                workers.with_buffer(plan.len(), |sums| {
                    gradient_panels(gradients, left, rows, workers)?;
                    seen.panels(pictures, right, workers)?;
                    plan.products(sums, gradients, pictures, workers)?;
                    plan.collect(dw, sums, turned, workers)
                })
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
    // A few places at a time, for what is written to stay in the cache.
    for (block, to) in to.chunks_mut(LANES).enumerate() {
        for (row, from) in from.chunks_exact(places).take(count).enumerate() {
            for (to, from) in to.iter_mut().zip(&from[block * LANES..]) {
                to[row] = *from;
            }
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

    /// Where a row of places starts in a panel of its example.
    fn start(&self, row: usize, panel: usize) -> usize {
        let (example, row) = (row / self.places[0], row % self.places[0]);
        let down = if self.shared { row * self.window.strides[0] } else { row };
        (example * self.panel_count() + panel) * self.panel_len() + down * self.size[1] * COLUMNS
    }
}

/// How the products are divided into tasks.
struct Plan<'w> {
    seen: &'w Seen<'w>,
    /// `[examples, rows of tiles, rows of places, columns of places]`.
    shape: [usize; 4],
    /// Positions of the kernel that read the same panels.
    taps: usize,
    /// Rows of tiles, in eights, of a task.
    group: usize,
    groups: usize,
    /// Parts of the places, each summed by itself.
    segments: usize,
}

impl<'w> Plan<'w> {
    fn of(seen: &'w Seen<'w>, shape: [usize; 4]) -> Self {
        let panels = shape[1].div_ceil(ROWS);
        let group = panels.min(TASK_PANELS_MAX);
        let groups = panels.div_ceil(group);
        let places = shape[0] * shape[2] * shape[3];
        let most = (places / SEGMENT_PLACES_MIN).max(1);
        let segments = (TASKS / (groups * seen.panel_count())).clamp(1, most);
        let taps = if seen.shared { seen.window.taps() } else { 1 };
        Self { seen, shape, taps, group, groups, segments }
    }

    fn whole(&self) -> usize {
        self.shape[0] * self.shape[2] * self.shape[3]
    }

    /// Elements that a task sums.
    fn task_len(&self) -> usize {
        self.taps * self.group * ROWS * COLUMNS
    }

    fn len(&self) -> usize {
        self.segments * self.groups * self.seen.panel_count() * self.task_len()
    }

    /// Sums of `[segments, groups, panels, taps, group]` tiles.
    fn products(
        &self,
        sums: &mut [f32],
        gradients: &[f32],
        pictures: &[f32],
        workers: &Workers<'_>,
    ) -> Result<(), Fault> {
        let seen = self.seen;
        let [examples, channels, rows, columns] = self.shape;
        let rows = examples * rows;
        let step = if seen.shared { seen.window.strides[1] } else { 1 } * COLUMNS;
        let block_rows = BLOCK_PLACES.div_ceil(columns);
        let segment_rows = rows.div_ceil(self.segments);
        let items: Vec<_> = sums.chunks_mut(self.task_len()).enumerate().collect();
        workers.each(items, |(i, sums)| {
            let (rest, panel) = (i / seen.panel_count(), i % seen.panel_count());
            let (segment, group) = (rest / self.groups, rest % self.groups);
            let first = group * self.group;
            let panels = self.group.min(channels.div_ceil(ROWS) - first);
            sums.fill(0.0);
            let (tiles, _) = sums.as_chunks_mut::<{ ROWS * COLUMNS }>();
            let from = (segment * segment_rows).min(rows);
            let starts: Vec<usize> = (from..rows.min(from + segment_rows)).map(|row| seen.start(row, panel)).collect();
            for (block, starts) in starts.chunks(block_rows).enumerate() {
                let (place, len) = ((from + block * block_rows) * columns, starts.len() * columns);
                for tap in 0..self.taps {
                    let [down, right] = if seen.shared { seen.window.offset(tap) } else { [0, 0] };
                    let shift = (down * seen.size[1] + right) * COLUMNS;
                    let at = Places { starts, shift, count: columns, step };
                    for panel in 0..panels {
                        let a = &gradients[((first + panel) * self.whole() + place) * ROWS..][..len * ROWS];
                        accumulate(&mut tiles[tap * self.group + panel], a, pictures, &at);
                    }
                }
            }
        })
    }

    /// Adds the segments up, in their order, into `[out, in, kernel..]`; rows
    /// of tiles are the outputs, or the inputs if `turned`.
    fn collect(&self, dw: &mut [f32], sums: &[f32], turned: bool, workers: &Workers<'_>) -> Result<(), Fault> {
        let panels = self.seen.panel_count();
        let segment_len = self.groups * panels * self.task_len();
        let tap_len = self.group * ROWS * COLUMNS;
        let total = |row: usize, column: usize, tap: usize| {
            let (panel, row) = (row / ROWS, row % ROWS);
            let task = panel / self.group * panels + column / COLUMNS;
            let tile = task * self.task_len() + tap * tap_len + panel % self.group * ROWS * COLUMNS;
            let at = tile + row * COLUMNS + column % COLUMNS;
            (0..self.segments).map(|segment| sums[segment * segment_len + at]).sum::<f32>()
        };
        let row_len = if turned { self.shape[1] } else { self.seen.channels * self.taps };
        workers.each(dw.chunks_mut(row_len).enumerate().collect(), |(out, dw)| {
            for (i, dw) in dw.chunks_mut(self.taps).enumerate() {
                for (tap, dw) in dw.iter_mut().enumerate() {
                    *dw = if turned { total(i, out, tap) } else { total(out, i, tap) };
                }
            }
        })
    }
}

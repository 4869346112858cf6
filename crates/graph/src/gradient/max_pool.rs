//! The gradient of MaxPool in plain nodes, one axis after the other.
//!
//! A window's maximum is the largest of its rows' maxima, and the first winner
//! of a window is the first of its first winning row. So a gradient goes back
//! along the rows' places first, then along the columns': over as many
//! positions as kernels are long, not over all of their elements. The winners'
//! places aren't asked of the pool: some engines can't say them, and this is
//! faster (`docs/design/gradients.md`).

use super::context::{Fault, Gradients, RuleContext};
use super::window::Window;
use crate::emit::Attribute;

/// Elements along one axis of a kernel or stride at most: each takes several
/// nodes.
const LENGTH_MAX: i64 = 1_024;

/// Each output's gradient goes to the element that won, of equal ones the
/// first.
pub(super) fn max_pool(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let kernel = s.ints("kernel_shape").map(<[i64]>::to_vec).ok_or_else(|| Fault::new("it has no kernel_shape"))?;
    let window = Window::of(s, kernel)?;
    let axes = window.axes();
    if window.pads().any(|p| p < 0) {
        return Err(Fault::new("its pads are negative"));
    }
    // Of windows that don't overlap the plain form is as fast or faster: a
    // tenth of a LeNet's step on one thread.
    let overlap = window.kernel.iter().zip(&window.strides).any(|(length, stride)| length > stride);
    if overlap && (1..=2).contains(&axes) && s.has("MaxPoolGrad") {
        let dx = s.kernel("MaxPoolGrad", &[&dy, s.x(0)], &window.attributes(1)[..4]);
        return s.only(dx);
    }
    if let Some(length) = window.kernel.iter().chain(&window.strides).find(|&&n| n > LENGTH_MAX) {
        return Err(Fault::new(format!(
            "a kernel or stride of {length}; up to {LENGTH_MAX} is differentiated, and GlobalMaxPool for any picture"
        )));
    }
    let walked: Vec<Axis> = (0..axes).map(|axis| Axis::of(s, &window, axis)).filter(|a| !a.is_still()).collect();
    // From the input to the output, pooled along one axis more each time, the
    // last first.
    let mut stages = vec![s.x(0).to_owned()];
    for axis in walked.iter().skip(1).rev() {
        let pooled = axis.pooled(s, &stages[stages.len() - 1]);
        stages.push(pooled);
    }
    stages.push(s.y(0).to_owned());
    let mut gradient = dy;
    for (axis, ends) in walked.iter().zip(stages.windows(2).rev()) {
        gradient = axis.back(s, gradient, &ends[0], &ends[1]);
    }
    s.only(gradient)
}

/// One axis of a window, and its sizes where they are fixed.
struct Axis {
    /// Counted from the batch.
    axis: usize,
    /// Axes of the picture.
    axes: usize,
    kernel: i64,
    stride: i64,
    dilation: i64,
    before: i64,
    behind: i64,
    /// Whether the last window may reach beyond the pads.
    ceil: bool,
    size: Option<i64>,
    out: Option<i64>,
}

impl Axis {
    fn of(s: &RuleContext, window: &Window, axis: usize) -> Self {
        let (size, out) = (s.dim(s.x(0), axis + 2), s.dim(s.y(0), axis + 2));
        let mut found = Self {
            axis: axis + 2,
            axes: window.axes(),
            kernel: window.kernel[axis],
            stride: window.strides[axis],
            dilation: window.dilations[axis],
            before: window.before[axis],
            behind: window.behind[axis],
            ceil: s.flag("ceil_mode"),
            size,
            out,
        };
        if let (Some(size), Some(out)) = (size, out) {
            let covered = (out - 1) * found.stride + window.reach(axis);
            found.ceil &= covered > size + found.before + found.behind;
        }
        found
    }

    /// Whether every element is a window.
    fn is_still(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.before == 0 && self.behind == 0
    }

    /// `x` pooled along this axis alone.
    fn pooled(&self, s: &mut RuleContext, x: &str) -> String {
        let only = |value: i64, other: i64| -> Vec<i64> {
            (2..2 + self.axes).map(|axis| if axis == self.axis { value } else { other }).collect()
        };
        let attributes = [
            ("kernel_shape", Attribute::Ints(only(self.kernel, 1))),
            ("strides", Attribute::Ints(only(self.stride, 1))),
            ("dilations", Attribute::Ints(only(self.dilation, 1))),
            ("pads", Attribute::Ints([only(self.before, 0), only(self.behind, 0)].concat())),
            ("ceil_mode", Attribute::Int(self.ceil.into())),
        ];
        s.op("MaxPool", &[x], &attributes)
    }

    /// The gradient of `x`, which was pooled to `y` along this axis.
    fn back(&self, s: &mut RuleContext, dy: String, x: &str, y: &str) -> String {
        let beyond = if self.ceil { self.stride - 1 } else { 0 };
        let around = s.num(f64::NEG_INFINITY);
        let padded = self.padded(s, x, [self.before, self.behind + beyond], &around);
        // Strides divide the axis into phases: elements with the same
        // remainder. Within a phase, windows move by one.
        let mut phases = vec![None; self.stride as usize];
        let mut won = vec![Vec::new(); self.stride as usize];
        let shared = |phase: i64| (0..self.kernel - 1).filter(|i| i * self.dilation % self.stride == phase).count() > 1;
        // What no element has won yet.
        let mut rest = dy;
        for i in 0..self.kernel {
            let at = i * self.dilation;
            let (phase, place) = (at % self.stride, at / self.stride);
            if i + 1 == self.kernel {
                // Somebody wins.
                won[phase as usize].push((place, rest));
                break;
            }
            let here = if self.stride > 1 && shared(phase) {
                // Read with strides once for all of them.
                let elements = phases[phase as usize].get_or_insert_with(|| {
                    let [start, end] = [phase, i64::from(i32::MAX)].map(|n| s.out.ints(&[n]));
                    self.slice(s, &padded, &start, &end, self.stride)
                });
                self.taken(s, elements, place, 1, y)
            } else {
                self.taken(s, &padded, at, self.stride, y)
            };
            let wins = s.op("Equal", &[&here, y], &[]);
            let share = s.only_where(&wins, &rest);
            rest = s.except_where(&wins, &rest);
            won[phase as usize].push((place, share));
        }
        self.joined(s, won)
    }

    /// Every `step`th element from `start` on, as many as `y` has.
    fn taken(&self, s: &mut RuleContext, from: &str, start: i64, step: i64, y: &str) -> String {
        let end = match self.out {
            Some(out) => s.out.ints(&[start + (out - 1) * step + 1]),
            None => {
                let out = self.length(s, y);
                let (step, more) = (s.out.ints(&[step]), s.out.ints(&[start + 1 - step]));
                let span = s.mul(&out, &step);
                s.add(&span, &more)
            }
        };
        let start = s.out.ints(&[start]);
        self.slice(s, from, &start, &end, step)
    }

    /// Phases, each the sum of what its elements won at places shifted from
    /// the windows', as one axis of the input's size.
    fn joined(&self, s: &mut RuleContext, won: Vec<Vec<(i64, String)>>) -> String {
        let margin = self.margin();
        let mut phases: Vec<Option<String>> = Vec::with_capacity(won.len());
        let zero = s.num(0.0);
        for shares in won {
            let placed: Vec<String> = shares
                .into_iter()
                .map(|(place, share)| self.padded(s, &share, [place, margin - place], &zero))
                .collect();
            let names: Vec<&str> = placed.iter().map(String::as_str).collect();
            phases.push(match names[..] {
                [] => None,
                [one] => Some(one.to_owned()),
                _ => Some(s.op("Sum", &names, &[])),
            });
        }
        let full = if self.stride == 1 { phases.remove(0).unwrap_or(zero) } else { self.interleaved(s, &phases) };
        let covered = self.out.map(|out| (out + margin) * self.stride);
        if self.before == 0 && self.size.is_some() && self.size == covered {
            return full;
        }
        let start = s.out.ints(&[self.before]);
        let end = match self.size {
            Some(size) => s.out.ints(&[self.before + size]),
            None => {
                let size = self.length(s, s.x(0));
                s.add(&size, &start)
            }
        };
        self.slice(s, &full, &start, &end, 1)
    }

    /// The phases' elements in turn; nothing flows to those that no window
    /// meets.
    fn interleaved(&self, s: &mut RuleContext, phases: &[Option<String>]) -> String {
        let like = phases.iter().flatten().next().cloned().unwrap_or_default();
        let zeros = if phases.contains(&None) { s.zeros_like(&like) } else { String::new() };
        let new = s.out.ints(&[self.axis as i64 + 1]);
        let turns: Vec<String> =
            phases.iter().map(|phase| s.op("Unsqueeze", &[phase.as_ref().unwrap_or(&zeros), &new], &[])).collect();
        let turns: Vec<&str> = turns.iter().map(String::as_str).collect();
        let all = s.op("Concat", &turns, &[("axis", Attribute::Int(self.axis as i64 + 1))]);
        let shape = s.shape_of(&like);
        let times: Vec<i64> = (0..2 + self.axes).map(|axis| if axis == self.axis { self.stride } else { 1 }).collect();
        let times = s.out.ints(&times);
        let shape = s.mul(&shape, &times);
        s.op("Reshape", &[&all, &shape], &[])
    }

    /// How much longer than the output phases must be to hold every place
    /// that a window meets, and the whole input.
    fn margin(&self) -> i64 {
        let last = (self.kernel - 1) * self.dilation;
        let met = last / self.stride;
        match (self.size, self.out) {
            (Some(size), Some(out)) => met.max((self.before + size + self.stride - 1) / self.stride - out),
            // Less than a stride is left behind the last window.
            _ => met + i64::from(last % self.stride > self.behind),
        }
    }

    /// The length of this axis at run time.
    fn length(&self, s: &mut RuleContext, of: &str) -> String {
        let axis = self.axis as i64;
        s.op("Shape", &[of], &[("start", Attribute::Int(axis)), ("end", Attribute::Int(axis + 1))])
    }

    fn slice(&self, s: &mut RuleContext, x: &str, start: &str, end: &str, step: i64) -> String {
        let (axis, step) = (s.out.ints(&[self.axis as i64]), s.out.ints(&[step]));
        s.op("Slice", &[x, start, end, &axis, &step], &[])
    }

    /// `x` with so many elements before and behind.
    fn padded(&self, s: &mut RuleContext, x: &str, pads: [i64; 2], value: &str) -> String {
        if pads == [0, 0] {
            return x.to_owned();
        }
        let rank = 2 + self.axes;
        let mut all = vec![0; 2 * rank];
        (all[self.axis], all[rank + self.axis]) = (pads[0], pads[1]);
        let all = s.out.ints(&all);
        s.op("Pad", &[x, &all, value], &[])
    }
}

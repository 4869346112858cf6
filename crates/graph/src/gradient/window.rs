//! Kernels, strides, pads and dilations of convolutions and pools.

use super::context::{Fault, RuleContext};
use crate::attributes::{Attributes, Auto, Sliding};
use crate::emit::{Attribute, attribute};
use crate::infer::Types;
use crate::onnx::NodeProto;

/// Kernels, strides, dilations and pads above this along one axis are
/// refused: no picture is as large, and no product of them overflows.
const FAR_MAX: i64 = 1 << 20;

/// Longest axis that windows are laid over here.
const LONG_MAX: i64 = 1 << 40;

/// Positions of a kernel at most that are written one by one; each takes
/// several nodes.
const POSITIONS_MAX: i64 = 4_096;

/// A sliding window over the spatial axes, sizes per axis.
#[derive(Debug, Clone)]
pub(super) struct Window {
    pub(super) kernel: Vec<i64>,
    pub(super) strides: Vec<i64>,
    pub(super) dilations: Vec<i64>,
    /// Zeros before each axis.
    pub(super) before: Vec<i64>,
    /// Zeros behind each axis.
    pub(super) behind: Vec<i64>,
}

impl Window {
    /// The window of a node whose input 0 is `[batch, channels, spatial..]`.
    pub(super) fn of(s: &RuleContext, kernel: Vec<i64>) -> Result<Self, Fault> {
        let (mut window, auto) = Self::stated(s, kernel)?;
        if auto.is_same() {
            for axis in 0..window.axes() {
                let size = s.dim(s.x(0), axis + 2).ok_or_else(|| {
                    Fault::new("its padding follows from an axis of unknown size; export with fixed sizes")
                })?;
                let stride = window.strides[axis];
                let out = (size + stride - 1) / stride;
                let total = ((out - 1) * stride + window.reach(axis) - size).max(0);
                (window.before[axis], window.behind[axis]) = auto.divided(total);
            }
        }
        Ok(window)
    }

    /// The window of a transposed convolution: what isn't stated of its pads
    /// follows from the size of its output.
    pub(super) fn of_transposed(s: &RuleContext, kernel: Vec<i64>) -> Result<Self, Fault> {
        let (mut window, auto) = Self::stated(s, kernel)?;
        let axes = window.axes();
        let extra = s.attributes().output_padding(axes)?;
        if extra.iter().any(|e| *e > FAR_MAX) {
            return Err(Fault::new(format!("output_padding {extra:?} is out of range")));
        }
        if !auto.is_same() && s.attributes().output_shape(axes).is_none() {
            // What output_padding adds has no counterpart in the input: the
            // convolution back would make one place too many of it.
            window.behind.iter_mut().zip(&extra).for_each(|(behind, extra)| *behind -= extra);
            return Ok(window);
        }
        for (axis, extra) in extra.into_iter().enumerate() {
            let (Some(size), Some(out)) = (s.dim(s.x(0), axis + 2), s.dim(s.y(0), axis + 2)) else {
                return Err(Fault::new("its pads follow from sizes that are unknown; export with fixed sizes"));
            };
            let total = window.strides[axis] * (size - 1) + extra + window.reach(axis) - out;
            window.before[axis] = match auto {
                Auto::SameUpper => total.max(0) / 2,
                _ => total.max(0) - total.max(0) / 2,
            };
            // Less than nothing is cut off where the output is larger than
            // what the input covers.
            window.behind[axis] = total - window.before[axis];
        }
        Ok(window)
    }

    /// The window as its attributes have it, and what decides on its padding.
    fn stated(s: &RuleContext, kernel: Vec<i64>) -> Result<(Self, Auto), Fault> {
        let axes = kernel.len();
        if s.shape(s.x(0)).is_some_and(|shape| shape.len() != axes + 2) {
            return Err(Fault::new(format!("its kernel has {axes} axes, its picture other ones")));
        }
        let Sliding { strides, dilations, pads, auto } = s.attributes().sliding(axes)?;
        let small = |n: u64| i64::try_from(n).ok().filter(|n| *n <= FAR_MAX);
        let all = |values: Vec<u64>| values.into_iter().map(small).collect::<Option<Vec<i64>>>();
        let kernel_fits = kernel.iter().all(|n| (1..=FAR_MAX).contains(n));
        let pads_fit = pads.iter().all(|p| (-FAR_MAX..=FAR_MAX).contains(p));
        match (all(strides), all(dilations)) {
            (Some(strides), Some(dilations)) if kernel_fits && pads_fit => {
                let (before, behind) = (pads[..axes].to_vec(), pads[axes..].to_vec());
                Ok((Self { kernel, strides, dilations, before, behind }, auto))
            }
            _ => Err(Fault::new(format!(
                "its kernel, strides, dilations or pads are out of range; from 1 to {FAR_MAX} is differentiated"
            ))),
        }
    }

    /// Number of spatial axes.
    pub(super) fn axes(&self) -> usize {
        self.kernel.len()
    }

    /// Elements between the first and the last that one kernel covers, both
    /// included.
    pub(super) fn reach(&self, axis: usize) -> i64 {
        (self.kernel[axis] - 1) * self.dilations[axis] + 1
    }

    /// Whether the kernel is one element that moves by one.
    pub(super) fn is_point(&self) -> bool {
        let ones = |v: &[i64], x: i64| v.iter().all(|&i| i == x);
        ones(&self.kernel, 1) && ones(&self.strides, 1) && !self.is_padded()
    }

    /// Elements before and behind each axis.
    pub(super) fn pads(&self) -> impl Iterator<Item = i64> {
        self.before.iter().chain(&self.behind).copied()
    }

    /// Whether there are zeros around.
    pub(super) fn is_padded(&self) -> bool {
        self.pads().any(|p| p != 0)
    }

    /// Elements of the kernel.
    pub(super) fn taps(&self) -> Result<i64, Fault> {
        let taps = self.kernel.iter().try_fold(1i64, |n, k| n.checked_mul(*k));
        taps.ok_or_else(|| Fault::new("its kernel has more elements than can be counted"))
    }

    /// Every position within the kernel, row-major.
    pub(super) fn positions(&self) -> Result<Vec<Vec<i64>>, Fault> {
        let taps = self.taps()?;
        if taps > POSITIONS_MAX {
            return Err(Fault::new(format!("a kernel of {taps} elements; up to {POSITIONS_MAX} is differentiated")));
        }
        Ok(self.kernel.iter().fold(vec![vec![]], |all, &k| {
            all.iter().flat_map(|p| (0..k).map(move |i| [p.as_slice(), &[i]].concat())).collect()
        }))
    }

    /// Attributes of a convolution with this window; the first four are the
    /// window's own.
    pub(super) fn attributes(&self, group: i64) -> Vec<(&'static str, Attribute)> {
        vec![
            ("kernel_shape", Attribute::Ints(self.kernel.clone())),
            ("strides", Attribute::Ints(self.strides.clone())),
            ("dilations", Attribute::Ints(self.dilations.clone())),
            ("pads", Attribute::Ints([self.before.as_slice(), &self.behind].concat())),
            ("group", Attribute::Int(group)),
        ]
    }

    /// The transpose of the convolution: `dy` spread over an input like `x`,
    /// by `weight` `[channels of dy, channels of x / group, kernel..]`.
    pub(super) fn spread(&self, s: &mut RuleContext, dy: &str, weight: &str, group: i64) -> String {
        let (x, y) = (s.x(0), s.y(0));
        let axes = self.axes();
        // What a stride leaves uncovered at the far end of each axis.
        let left: Option<Vec<i64>> = (0..axes)
            .map(|axis| {
                if self.strides[axis] == 1 {
                    return Some(0);
                }
                let (size, out) = (s.dim(x, axis + 2)?, s.dim(y, axis + 2)?);
                let full = (out - 1) * self.strides[axis] + self.reach(axis);
                Some(size + self.before[axis] + self.behind[axis] - full)
            })
            .collect();
        if let Some(left) = left.filter(|l| l.iter().zip(&self.strides).all(|(l, s)| *l >= 0 && (l < s || *l == 0))) {
            let mut attributes = self.attributes(group);
            attributes.push(("output_padding", Attribute::Ints(left)));
            return s.op("ConvTranspose", &[dy, weight], &attributes);
        }
        // Sizes known at run time only: spread without pads, then cut to size.
        let bare = Self { before: vec![0; axes], behind: vec![0; axes], ..self.clone() };
        let full = s.op("ConvTranspose", &[dy, weight], &bare.attributes(group));
        let (size, spread) = (s.shape_of(x), s.shape_of(&full));
        let missing = s.sub(&size, &spread);
        let shift: Vec<i64> = [0, 0].iter().chain(&self.before).copied().collect();
        let shift = s.out.ints(&shift);
        let behind = s.add(&missing, &shift);
        let before = s.neg(&shift);
        let pads = s.op("Concat", &[&before, &behind], &[("axis", Attribute::Int(0))]);
        s.op("Pad", &[&full, &pads], &[])
    }

    /// `x` with its zeros around it.
    pub(super) fn padded(&self, s: &mut RuleContext, x: &str) -> String {
        if !self.is_padded() {
            return x.to_owned();
        }
        let zeros = [0, 0];
        let pads = [zeros.as_slice(), &self.before, &zeros, &self.behind].concat();
        let pads = s.out.ints(&pads);
        s.op("Pad", &[x, &pads], &[])
    }

    /// The elements of `padded` that meet one position of the kernel, in the
    /// spatial shape of `y`.
    pub(super) fn seen_at(&self, s: &mut RuleContext, padded: &str, position: &[i64], y: &str) -> String {
        let starts: Vec<i64> = position.iter().zip(&self.dilations).map(|(p, d)| p * d).collect();
        let axes: Vec<i64> = (2..2 + self.axes() as i64).collect();
        let spans: Option<Vec<i64>> =
            (0..self.axes()).map(|a| Some((s.dim(y, a + 2)? - 1) * self.strides[a] + 1)).collect();
        let ends = match spans {
            Some(spans) => {
                let ends: Vec<i64> = spans.iter().zip(&starts).map(|(span, start)| span + start).collect();
                s.out.ints(&ends)
            }
            None => {
                let sizes = s.op("Shape", &[y], &[("start", Attribute::Int(2))]);
                let strides = s.out.ints(&self.strides);
                let spans = s.mul(&sizes, &strides);
                let less: Vec<i64> =
                    starts.iter().zip(&self.strides).map(|(start, stride)| start + 1 - stride).collect();
                let less = s.out.ints(&less);
                s.add(&spans, &less)
            }
        };
        let starts = s.out.ints(&starts);
        let axes = s.out.ints(&axes);
        let strides = s.out.ints(&self.strides);
        s.op("Slice", &[padded, &starts, &ends, &axes, &strides], &[])
    }
}

/// Says of a pool in `ceil_mode` of which a window would begin in the padding
/// behind the picture, and is dropped, what it does without `ceil_mode`.
///
/// ONNX Runtime before operator set 22 takes that window into account when it
/// infers sizes, though not when it computes: what is written for the true
/// size wouldn't be loaded.
pub(super) fn without_ceiling(node: &mut NodeProto, types: &Types) {
    let attributes = Attributes::of(node);
    let pools = matches!(node.op_type(), "MaxPool" | "AveragePool" | "LpPool") && node.domain().is_empty();
    if !pools || !attributes.flag("ceil_mode") {
        return;
    }
    let sizes = |name: Option<&String>| -> Option<Vec<i64>> {
        let shape = types.get(name?)?.shape.as_ref()?;
        shape.iter().skip(2).map(|d| i64::try_from(d.known()?).ok()).collect()
    };
    let kernel = attributes.ints("kernel_shape").map(<[i64]>::to_vec);
    let (Some(kernel), Some(from), Some(to)) = (kernel, sizes(node.input.first()), sizes(node.output.first())) else {
        return;
    };
    let Some(Sliding { strides, dilations, mut pads, auto: Auto::Given }) = attributes.sliding(kernel.len()).ok()
    else {
        return;
    };
    let axes = kernel.len();
    if from.len() != axes || to.len() != axes {
        return;
    }
    let mut dropped = false;
    for axis in 0..axes {
        let far = |n: u64| i64::try_from(n).ok().filter(|n| *n <= FAR_MAX);
        let (Some(stride), Some(dilation)) = (far(strides[axis]), far(dilations[axis])) else { return };
        // Nothing below leaves the range of its type.
        let within = |n: i64, most: i64| (-most..=most).contains(&n);
        let given = [kernel[axis], pads[axis], pads[axis + axes]].into_iter().all(|n| within(n, FAR_MAX));
        if !given || ![from[axis], to[axis]].into_iter().all(|n| within(n, LONG_MAX)) {
            return;
        }
        let reach = (kernel[axis] - 1) * dilation + 1;
        let room = from[axis] + pads[axis] + pads[axis + axes] - reach;
        dropped |= room > 0 && room / stride + 1 == to[axis] && room % stride != 0;
        // A window that reaches beyond the padding gets more of it, which ONNX
        // Runtime takes as long as it is less than the kernel.
        let beyond = ((to[axis] - 1) * stride - room).max(0);
        pads[axis + axes] += beyond;
        if beyond > 0 && (attributes.flag("count_include_pad") || pads[axis + axes] >= kernel[axis]) {
            return;
        }
    }
    if dropped {
        node.attribute.retain(|a| !matches!(a.name(), "ceil_mode" | "pads"));
        node.attribute.push(attribute("pads", &Attribute::Ints(pads)));
    }
}

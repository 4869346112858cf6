//! Sizes of sliding windows, shared by convolutions and poolings.

use crate::types::Dim;

use super::dims::known;
use super::error::Fault;
use super::op::Op;

/// Attributes of a window over the spatial axes.
pub(super) struct Window {
    pub(super) kernel: Vec<Dim>,
    pub(super) strides: Vec<u64>,
    pub(super) dilations: Vec<u64>,
    /// Before each axis, then after each axis.
    pub(super) pads: Vec<i64>,
    pub(super) auto: Auto,
}

/// How padding is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Auto {
    Given,
    /// So that the output is the input divided by the stride.
    Same,
    /// None at all.
    Valid,
}

impl Window {
    /// Reads a node's attributes for `kernel.len()` spatial axes.
    pub(super) fn of(op: &Op, kernel: Vec<Dim>) -> Result<Self, Fault> {
        let axes = kernel.len();
        let positive = |name: &str| match op.ints(name) {
            None | Some([]) => Ok(vec![1; axes]),
            Some(v) if v.len() == axes && v.iter().all(|n| *n > 0) => Ok(v.iter().map(|n| *n as u64).collect()),
            Some(v) => Err(Fault::invalid(0, format!("{name} {v:?} are not {axes} positive numbers"))),
        };
        let pads = match op.ints("pads") {
            None | Some([]) => vec![0; 2 * axes],
            Some(v) if v.len() == 2 * axes => v.to_vec(),
            Some(v) => return Err(Fault::invalid(0, format!("pads {v:?} are not two for each of {axes} axes"))),
        };
        let auto = match op.text("auto_pad") {
            None | Some("NOTSET" | "") => Auto::Given,
            Some("SAME_UPPER" | "SAME_LOWER") => Auto::Same,
            Some("VALID") => Auto::Valid,
            Some(other) => return Err(Fault::invalid(0, format!("auto_pad `{other}` is unknown"))),
        };
        let (strides, dilations) = (positive("strides")?, positive("dilations")?);
        Ok(Self { kernel, strides, dilations, pads, auto })
    }

    /// Elements that the window spans along an axis.
    pub(super) fn span(&self, axis: usize) -> Option<u64> {
        self.kernel[axis].known()?.checked_sub(1)?.checked_mul(self.dilations[axis])?.checked_add(1)
    }

    pub(super) fn pad(&self, axis: usize) -> i64 {
        self.pads[axis].saturating_add(self.pads[axis + self.kernel.len()])
    }

    /// Output size of an axis of a convolution or pooling.
    pub(super) fn output(&self, axis: usize, input: &Dim, ceil: bool) -> Result<Dim, Fault> {
        let stride = self.strides[axis];
        if self.auto == Auto::Same {
            return Ok(match input {
                Dim::Known(n) => known(n.div_ceil(stride)),
                other if stride == 1 => other.clone(),
                _ => Dim::Unknown,
            });
        }
        let pad = if self.auto == Auto::Valid { 0 } else { self.pad(axis) };
        let Some(span) = self.span(axis).and_then(|s| i64::try_from(s).ok()) else { return Ok(Dim::Unknown) };
        let Some(size) = input.known().and_then(|n| i64::try_from(n).ok()) else {
            // A window that pads what it takes away keeps a free axis as it is.
            return Ok(if stride == 1 && pad == span - 1 { input.clone() } else { Dim::Unknown });
        };
        let room = size.saturating_add(pad).saturating_sub(span);
        if room < 0 {
            let reason = format!("axis of {size} with {pad} of padding is smaller than the window of {span}");
            return Err(Fault::invalid(0, reason));
        }
        let (room, size) = (room as u64, size as u64);
        let mut output = if ceil { room.div_ceil(stride) } else { room / stride } + 1;
        let before = if self.auto == Auto::Valid { 0 } else { self.pads[axis].max(0) as u64 };
        // A last window that would lie wholly in the padding after the input is dropped.
        if ceil && (output - 1).saturating_mul(stride) >= size.saturating_add(before) {
            output -= 1;
        }
        Ok(known(output))
    }
}

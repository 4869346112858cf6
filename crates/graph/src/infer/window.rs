//! Sizes of sliding windows, shared by convolutions and poolings.

use crate::attributes::Sliding;
use crate::types::Dim;

use super::dims::known;
use super::error::Fault;
use super::op::Op;

/// A window over the spatial axes.
pub(super) struct Window {
    pub(super) kernel: Vec<Dim>,
    pub(super) sliding: Sliding,
}

impl Window {
    /// Reads a node's attributes for `kernel.len()` spatial axes.
    pub(super) fn of(op: &Op, kernel: Vec<Dim>) -> Result<Self, Fault> {
        let sliding = op.attributes().sliding(kernel.len())?;
        Ok(Self { kernel, sliding })
    }

    /// Elements that the window spans along an axis.
    pub(super) fn span(&self, axis: usize) -> Option<u64> {
        self.kernel[axis].known()?.checked_sub(1)?.checked_mul(self.sliding.dilations[axis])?.checked_add(1)
    }

    pub(super) fn pad(&self, axis: usize) -> i64 {
        self.sliding.pads[axis].saturating_add(self.sliding.pads[axis + self.kernel.len()])
    }

    /// Output size of an axis of a convolution or pooling.
    pub(super) fn output(&self, axis: usize, input: &Dim, ceil: bool) -> Result<Dim, Fault> {
        let stride = self.sliding.strides[axis];
        if self.sliding.auto.is_same() {
            return Ok(match input {
                Dim::Known(n) => known(n.div_ceil(stride)),
                other if stride == 1 => other.clone(),
                _ => Dim::Unknown,
            });
        }
        let pad = self.pad(axis);
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
        let before = self.sliding.pads[axis].max(0) as u64;
        // A last window that would lie wholly in the padding after the input is dropped.
        if ceil && (output - 1).saturating_mul(stride) >= size.saturating_add(before) {
            output -= 1;
        }
        Ok(known(output))
    }
}

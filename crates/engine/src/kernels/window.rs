//! A window over one or two spatial axes, as two.

use super::{Attributes, Fault};

/// Kernel, strides, dilations and pads, rows first. One spatial axis is a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) kernel: [usize; 2],
    pub(super) strides: [usize; 2],
    pub(super) dilations: [usize; 2],
    pub(super) before: [usize; 2],
    pub(super) behind: [usize; 2],
    /// Spatial axes of the node.
    axes: usize,
}

/// Sizes above this are refused, so that no product overflows.
const SIZE_MAX: i64 = 1 << 20;

/// Places of a padded picture at most: pads alone must not take all memory.
const PLACES_MAX: usize = 1 << 28;

impl Window {
    pub(super) fn read(attributes: &Attributes<'_, '_>) -> Result<Self, Fault> {
        Self::of(|name| attributes.ints(name))
    }

    /// The window that these attributes give.
    pub(super) fn of(ints: impl Fn(&str) -> Option<Vec<i64>>) -> Result<Self, Fault> {
        let kernel = ints("kernel_shape").ok_or_else(|| Fault::new("it has no kernel_shape"))?;
        let axes = kernel.len();
        if !(1..=2).contains(&axes) {
            return Err(Fault::new(format!("{axes} spatial axes; it takes 1 or 2")));
        }
        let two = |name: &str, given: Option<&[i64]>, least: i64| {
            let missing = i64::from(name != "pads");
            let given = given.map_or_else(|| vec![missing; axes], <[i64]>::to_vec);
            let fits = given.len() == axes && given.iter().all(|n| (least..=SIZE_MAX).contains(n));
            match fits {
                true if axes == 1 => Ok([missing as usize, given[0] as usize]),
                true => Ok([given[0] as usize, given[1] as usize]),
                false => Err(Fault::new(format!("{name} {given:?} don't fit {axes} spatial axes"))),
            }
        };
        let pads = ints("pads").unwrap_or_else(|| vec![0; 2 * axes]);
        if pads.len() != 2 * axes {
            return Err(Fault::new(format!("{} pads for {axes} spatial axes", pads.len())));
        }
        Ok(Self {
            kernel: two("kernel_shape", Some(&kernel), 1)?,
            strides: two("strides", ints("strides").as_deref(), 1)?,
            dilations: two("dilations", ints("dilations").as_deref(), 1)?,
            before: two("pads", Some(&pads[..axes]), 0)?,
            behind: two("pads", Some(&pads[axes..]), 0)?,
            axes,
        })
    }

    /// Positions within the kernel.
    pub(super) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Row and column of a position, from the first.
    pub(super) fn offset(&self, tap: usize) -> [usize; 2] {
        [tap / self.kernel[1] * self.dilations[0], tap % self.kernel[1] * self.dilations[1]]
    }

    /// The kernel's axes as the node has them.
    pub(super) fn kernel_axes(&self) -> &[usize] {
        &self.kernel[2 - self.axes..]
    }

    /// `[examples, channels, rows, columns]` of an input.
    pub(super) fn picture(&self, shape: &[usize]) -> Result<[usize; 4], Fault> {
        match (self.axes, shape) {
            (1, &[n, c, w]) => Ok([n, c, 1, w]),
            (2, &[n, c, h, w]) => Ok([n, c, h, w]),
            _ => Err(Fault::new(format!("shape {shape:?}, with {} spatial axes", self.axes))),
        }
    }

    /// Rows and columns that a picture of `[.., rows, columns]` gives.
    pub(super) fn output(&self, picture: [usize; 4]) -> Result<[usize; 2], Fault> {
        let padded = [0, 1].map(|axis| picture[2 + axis] + self.before[axis] + self.behind[axis]);
        if padded[0].saturating_mul(padded[1]) > PLACES_MAX {
            return Err(Fault::new(format!(
                "a padded picture of {} by {}; it takes {PLACES_MAX} places",
                padded[0], padded[1]
            )));
        }
        let mut sizes = [0; 2];
        for (axis, padded) in padded.into_iter().enumerate() {
            let reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1;
            let room = padded.checked_sub(reach);
            let room = room.ok_or_else(|| Fault::new(format!("a window of {reach} over {padded} elements")))?;
            sizes[axis] = room / self.strides[axis] + 1;
        }
        Ok(sizes)
    }
}

//! Resizing, and whatever else is a fixed linear map along each axis.

use super::context::{Fault, Gradients, RuleContext, float};
use crate::emit::Attribute;
use crate::tensor::Tensor;

/// Numbers in the tables of one axis at most, some 32 MB.
const TABLE_MAX: i64 = 1 << 22;

/// Places of the output at most that one place of the input is gathered from,
/// each by a node; more are a product with a matrix.
const GATHERS_MAX: usize = 16;

/// A map along one axis of a tensor.
pub(super) struct Along {
    pub(super) axis: usize,
    /// Axes of the tensor.
    pub(super) rank: usize,
    /// Places of the input.
    pub(super) from: i64,
    /// Places of the output.
    pub(super) to: i64,
}

impl Along {
    /// Gradient of `y = A x` along the axis, by what each place of `y` is made
    /// of: which places of `x`, and how much of each.
    pub(super) fn back(
        &self,
        s: &mut RuleContext,
        dy: &str,
        parts: impl Fn(i64) -> Vec<(i64, f64)>,
    ) -> Result<String, Fault> {
        let (from, to) = (self.from, self.to);
        if !(1..=TABLE_MAX).contains(&from) || !(0..=TABLE_MAX).contains(&to) {
            return Err(Fault::new(format!(
                "an axis of {from} places becomes one of {to}; from 1 to {TABLE_MAX} is differentiated"
            )));
        }
        // What each place of the input went into.
        let mut seen: Vec<Vec<(i64, f64)>> = vec![Vec::new(); from as usize];
        for place in 0..to {
            for (of, weight) in parts(place).into_iter().filter(|(_, weight)| *weight != 0.0) {
                let met = &mut seen[of as usize];
                match met.last_mut().filter(|(last, _)| *last == place) {
                    Some((_, sum)) => *sum += weight,
                    None => met.push((place, weight)),
                }
            }
        }
        let most = seen.iter().map(Vec::len).max().unwrap_or(0).max(1);
        if most <= GATHERS_MAX && most as i64 * from <= TABLE_MAX {
            return self.gathered(s, dy, &seen, most);
        }
        if from.checked_mul(to).is_none_or(|n| n > TABLE_MAX) {
            return Err(Fault::new(format!(
                "an axis of {from} places becomes one of {to}, some of whose places {most} others are made of; that is \
                 too much for a table"
            )));
        }
        self.multiplied(s, dy, &seen)
    }

    /// The sum of what each place of the input went into, taken one by one:
    /// nothing that isn't finite reaches places that it doesn't belong to.
    fn gathered(&self, s: &mut RuleContext, dy: &str, seen: &[Vec<(i64, f64)>], most: usize) -> Result<String, Fault> {
        let mut dy = dy.to_owned();
        if seen.iter().any(|met| met.len() < most) {
            // One place more, of zeros, for those that went into fewer.
            let mut pads = vec![0; 2 * self.rank];
            pads[self.rank + self.axis] = 1;
            let pads = s.out.ints(&pads);
            dy = s.op("Pad", &[&dy, &pads], &[]);
        }
        let mut shape = vec![seen.len()];
        shape.extend(vec![1; self.rank - 1 - self.axis]);
        let mut sum = Vec::with_capacity(most);
        for i in 0..most {
            let of = |met: &Vec<(i64, f64)>| met.get(i).copied().unwrap_or((self.to, 1.0));
            let (places, weights): (Vec<i64>, Vec<f64>) = seen.iter().map(of).unzip();
            let places = s.out.ints(&places);
            let mut part = s.op("Gather", &[&dy, &places], &[("axis", Attribute::Int(self.axis as i64))]);
            if weights.iter().any(|w| *w != 1.0) {
                let weights = Tensor::new(shape.clone(), float(s.dtype(s.y(0)), &weights));
                let weights = s.out.constant(&weights.map_err(|e| Fault::new(e.to_string()))?);
                part = s.mul(&part, &weights);
            }
            sum.push(part);
        }
        let sum: Vec<&str> = sum.iter().map(String::as_str).collect();
        Ok(if let [one] = sum[..] { one.to_owned() } else { s.op("Sum", &sum, &[]) })
    }

    fn multiplied(&self, s: &mut RuleContext, dy: &str, seen: &[Vec<(i64, f64)>]) -> Result<String, Fault> {
        let (width, height) = (seen.len(), self.to as usize);
        let mut matrix = vec![0f64; width * height];
        for (of, met) in seen.iter().enumerate() {
            for &(place, weight) in met {
                matrix[place as usize * width + of] += weight;
            }
        }
        let matrix = Tensor::new([height, width], float(s.dtype(s.y(0)), &matrix));
        let matrix = s.out.constant(&matrix.map_err(|e| Fault::new(e.to_string()))?);
        if self.axis + 1 == self.rank {
            return Ok(s.matmul(dy, &matrix));
        }
        let mut last: Vec<usize> = (0..self.rank).collect();
        last.swap(self.axis, self.rank - 1);
        let turned = s.transpose(dy, &last);
        let product = s.matmul(&turned, &matrix);
        Ok(s.transpose(&product, &last))
    }
}

pub(super) fn resize(s: &mut RuleContext) -> Gradients {
    let mut dx = s.dy()?;
    let x = s.x(0);
    let rank = s.rank(x)?;
    if s.text("coordinate_transformation_mode") == "tf_crop_and_resize" || s.flag("antialias") {
        return Err(Fault::new("crops and antialiasing are not differentiated"));
    }
    if !matches!(s.text("keep_aspect_ratio_policy"), "" | "stretch") {
        return Err(Fault::new("only the aspect ratio policy `stretch` is differentiated"));
    }
    let sampling = Sampling::read(s)?;
    let y = s.y(0);
    if s.given(2) && s.constant(2).is_none() {
        return Err(Fault::new("its scales must be constants; fold the model's constants first"));
    }
    let stated = s.constant(2).filter(|t| !t.is_empty()).map(|t| match t.elements() {
        crate::Elements::F32(v) => v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let axes = s.ints("axes").map_or_else(|| (0..rank as i64).collect(), <[i64]>::to_vec);
    for (i, &axis) in axes.iter().enumerate() {
        let axis = s.axis(axis, rank)?;
        let free = |name: &str| s.shape(name).and_then(|shape| shape.get(axis)).filter(|d| d.known().is_none());
        if free(x).is_some() && free(x) == free(y) {
            // The same free axis on both sides, such as the batch.
            continue;
        }
        let (Some(from), Some(to)) = (s.dim(x, axis), s.dim(y, axis)) else {
            return Err(Fault::new("it resizes an axis of unknown size; export the model with fixed height and width"));
        };
        let scale = stated.as_ref().and_then(|v| v.get(i).copied()).unwrap_or(to as f64 / from as f64);
        if from == to && scale == 1.0 {
            continue;
        }
        if !(scale.is_finite() && scale > 0.0) {
            return Err(Fault::new(format!("a scale of {scale} has no gradient")));
        }
        if sampling.transformation == "align_corners" && (scale * from as f64).fract() != 0.0 {
            return Err(Fault::new(
                "engines differ on align_corners with a scale that gives no whole size; give sizes",
            ));
        }
        dx = Along { axis, rank, from, to }.back(s, &dx, |place| sampling.parts(place, from, to, scale))?;
    }
    s.only(dx)
}

/// How a Resize samples.
struct Sampling {
    mode: &'static str,
    transformation: &'static str,
    nearest: &'static str,
    /// The coefficient of cubic interpolation.
    cubic: f64,
}

impl Sampling {
    fn read(s: &RuleContext) -> Result<Self, Fault> {
        let transformations =
            ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"];
        let sampling = Self {
            mode: s.choice("mode", &["nearest", "linear", "cubic"])?,
            transformation: s.choice("coordinate_transformation_mode", &transformations)?,
            nearest: s.choice("nearest_mode", &["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])?,
            cubic: s.float_or("cubic_coeff_a", -0.75),
        };
        if sampling.mode == "cubic" && s.flag("exclude_outside") {
            return Err(Fault::new("exclude_outside is not differentiated"));
        }
        Ok(sampling)
    }

    /// What one place of the output is made of, as the specification of Resize
    /// says.
    fn parts(&self, place: i64, from: i64, to: i64, scale: f64) -> Vec<(i64, f64)> {
        let out = place as f64;
        let at = match self.transformation {
            "half_pixel_symmetric" => {
                let adjusted = to as f64 / (scale * from as f64);
                let centre = from as f64 / 2.0;
                centre * (1.0 - adjusted) + (out + 0.5) / scale - 0.5
            }
            "pytorch_half_pixel" | "align_corners" if to <= 1 => 0.0,
            "align_corners" => out * (from - 1) as f64 / (to - 1) as f64,
            "asymmetric" => out / scale,
            _ => (out + 0.5) / scale - 0.5,
        };
        let inside = |i: f64| (i as i64).clamp(0, from - 1);
        match self.mode {
            "linear" => {
                let low = at.floor();
                let high = at - low;
                vec![(inside(low), 1.0 - high), (inside(low + 1.0), high)]
            }
            "cubic" => {
                let a = self.cubic;
                let low = at.floor();
                let t = at - low;
                let near = |t: f64| ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0;
                let far = |t: f64| ((a * t - 5.0 * a) * t + 8.0 * a) * t - 4.0 * a;
                let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
                weights.into_iter().enumerate().map(|(i, w)| (inside(low - 1.0 + i as f64), w)).collect()
            }
            _ => {
                let nearest = match self.nearest {
                    "round_prefer_ceil" => (at + 0.5).floor(),
                    "floor" => at.floor(),
                    "ceil" => at.ceil(),
                    _ => (at - 0.5).ceil(),
                };
                vec![(inside(nearest), 1.0)]
            }
        }
    }
}

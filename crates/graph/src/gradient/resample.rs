//! Resizing: along each axis a fixed matrix, whose transpose takes gradients
//! back.

use super::site::{Fault, Gradients, Site};
use crate::tensor::{DataType, Elements, Tensor};

/// One row per place of the output: which places of the input it is made of,
/// and how much of each.
pub(super) type Rows = Vec<Vec<(i64, f64)>>;

/// Gradient of `y = A x` along one axis of `rank`: `A` given by rows, `x` of
/// `size` places there.
pub(super) fn back_along(
    s: &mut Site,
    dy: &str,
    axis: usize,
    rank: usize,
    rows: &Rows,
    size: i64,
) -> Result<String, Fault> {
    let width = usize::try_from(size).map_err(|_| Fault::new("an axis has a negative size"))?;
    let mut matrix = vec![0f64; rows.len() * width];
    for (row, parts) in rows.iter().enumerate() {
        for &(column, weight) in parts {
            matrix[row * width + column as usize] += weight;
        }
    }
    let elements = match s.dtype(s.y(0)) {
        DataType::F64 => Elements::F64(matrix),
        _ => Elements::F32(matrix.into_iter().map(|x| x as f32).collect()),
    };
    let matrix = Tensor::new([rows.len(), width], elements).map_err(|e| Fault::new(e.to_string()))?;
    let matrix = s.out.constant(&matrix);
    if axis + 1 == rank {
        return Ok(s.matmul(dy, &matrix));
    }
    let mut last: Vec<usize> = (0..rank).collect();
    last.swap(axis, rank - 1);
    let turned = s.transpose(dy, &last);
    let product = s.matmul(&turned, &matrix);
    Ok(s.transpose(&product, &last))
}

pub(super) fn resize(s: &mut Site) -> Gradients {
    let mut dx = s.dy()?;
    let x = s.x(0);
    let rank = s.rank(x)?;
    if !matches!(s.text("mode"), "" | "nearest" | "linear" | "cubic") {
        return Err(Fault::new(format!("mode {} is not differentiated", s.text("mode"))));
    }
    if s.text("coordinate_transformation_mode") == "tf_crop_and_resize" || s.int_or("antialias", 0) != 0 {
        return Err(Fault::new("crops and antialiasing are not differentiated"));
    }
    if !matches!(s.text("keep_aspect_ratio_policy"), "" | "stretch") {
        return Err(Fault::new("only the aspect ratio policy `stretch` is differentiated"));
    }
    let y = s.y(0);
    if s.given(2) && s.constant(2).is_none() {
        return Err(Fault::new("its scales must be constants; fold the model's constants first"));
    }
    let stated = s.constant(2).filter(|t| !t.is_empty()).map(|t| match t.elements() {
        Elements::F32(v) => v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let axes = s.ints("axes").map_or_else(|| (0..rank as i64).collect(), <[i64]>::to_vec);
    for (i, &axis) in axes.iter().enumerate() {
        let axis = s.axis(axis, rank)?;
        if s.shape(x).zip(s.shape(y)).is_some_and(|(a, b)| a[axis] == b[axis] && a[axis].known().is_none()) {
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
        if s.text("coordinate_transformation_mode") == "align_corners" && (scale * from as f64).fract() != 0.0 {
            return Err(Fault::new(
                "engines differ on align_corners with a scale that gives no whole size; give sizes",
            ));
        }
        let rows = (0..to).map(|place| parts(s, place, from, to, scale)).collect::<Result<Rows, Fault>>()?;
        dx = back_along(s, &dx, axis, rank, &rows, from)?;
    }
    s.only(dx)
}

/// What one place of the output is made of, as the specification of Resize
/// says.
fn parts(s: &Site, place: i64, from: i64, to: i64, scale: f64) -> Result<Vec<(i64, f64)>, Fault> {
    let out = place as f64;
    let at = match s.text("coordinate_transformation_mode") {
        "" | "half_pixel" => (out + 0.5) / scale - 0.5,
        "half_pixel_symmetric" => {
            let adjusted = to as f64 / (scale * from as f64);
            let centre = from as f64 / 2.0;
            centre * (1.0 - adjusted) + (out + 0.5) / scale - 0.5
        }
        "pytorch_half_pixel" if to > 1 => (out + 0.5) / scale - 0.5,
        "pytorch_half_pixel" => 0.0,
        "align_corners" if to > 1 => out * (from - 1) as f64 / (to - 1) as f64,
        "align_corners" => 0.0,
        "asymmetric" => out / scale,
        other => return Err(Fault::new(format!("coordinate_transformation_mode {other} is not differentiated"))),
    };
    let inside = |i: f64| (i as i64).clamp(0, from - 1);
    Ok(match s.text("mode") {
        "linear" => {
            let low = at.floor();
            let high = at - low;
            vec![(inside(low), 1.0 - high), (inside(low + 1.0), high)]
        }
        "cubic" => {
            if s.int_or("exclude_outside", 0) != 0 {
                return Err(Fault::new("exclude_outside is not differentiated"));
            }
            let a = s.float_or("cubic_coeff_a", -0.75);
            let low = at.floor();
            let t = at - low;
            let near = |t: f64| ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0;
            let far = |t: f64| ((a * t - 5.0 * a) * t + 8.0 * a) * t - 4.0 * a;
            let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
            weights.into_iter().enumerate().map(|(i, w)| (inside(low - 1.0 + i as f64), w)).collect()
        }
        _ => {
            let nearest = match s.text("nearest_mode") {
                "" | "round_prefer_floor" => (at - 0.5).ceil(),
                "round_prefer_ceil" => (at + 0.5).floor(),
                "floor" => at.floor(),
                "ceil" => at.ceil(),
                other => return Err(Fault::new(format!("nearest_mode {other} is not differentiated"))),
            };
            vec![(inside(nearest), 1.0)]
        }
    })
}

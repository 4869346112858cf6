//! Pooling; MaxPool is in `max_pool.rs`.

use super::max_pool::max_pool;
use super::registry::Family;
use super::site::{Fault, Gradients, Site};
use super::window::Window;
use crate::emit::Attribute;
use crate::tensor::{DataType, Elements, Tensor};

pub(super) const RULES: Family = &[
    ("MaxPool", max_pool),
    ("AveragePool", average_pool),
    ("GlobalAveragePool", global_average_pool),
    ("GlobalMaxPool", global_max_pool),
];

fn average_pool(s: &mut Site) -> Gradients {
    let dy = s.dy()?;
    let x = s.x(0);
    let kernel = s.ints("kernel_shape").map(<[i64]>::to_vec).ok_or_else(|| Fault::new("it has no kernel_shape"))?;
    let mut window = Window::of(s, kernel)?;
    let axes = window.axes();
    let channels = s.dim(x, 1).ok_or_else(|| Fault::new("its channels are unknown; export the model with shapes"))?;
    let taps = window.kernel.iter().product::<i64>();
    let ones = |s: &Site| match s.dtype(x) {
        DataType::F64 => Elements::F64(vec![1.0]),
        _ => Elements::F32(vec![1.0]),
    };
    // With ceil_mode the last windows may reach beyond picture and pads.
    let mut beyond = vec![0; axes];
    for (axis, beyond) in beyond.iter_mut().enumerate() {
        let (Some(size), Some(out)) = (s.dim(x, axis + 2), s.dim(s.y(0), axis + 2)) else {
            if s.int_or("ceil_mode", 0) != 0 {
                return Err(Fault::new("ceil_mode needs a picture of fixed size; export the model with one"));
            }
            continue;
        };
        let covered = (out - 1) * window.strides[axis] + window.reach(axis);
        *beyond = (covered - size - window.before[axis] - window.behind[axis]).max(0);
    }
    let counts_pads = s.int_or("count_include_pad", 0) != 0;
    let partial = beyond.iter().any(|&b| b > 0) || window.is_padded() && !counts_pads;
    let dy = if partial {
        // The share of each window that counts: ones where there is a picture
        // (and pads, if they count), zeros elsewhere, averaged.
        let sizes = s.op("Shape", &[x], &[("start", Attribute::Int(2))]);
        let one = s.out.ints(&[1, 1]);
        let plane = s.op("Concat", &[&one, &sizes], &[("axis", Attribute::Int(0))]);
        let fill = Tensor::new([1], ones(s)).expect("one element");
        let full = s.op("ConstantOfShape", &[&plane], &[("value", Attribute::Tensor(fill))]);
        let pads = [&[0, 0], window.before.as_slice(), &[0, 0], &window.behind].concat();
        let pads = s.out.ints(&pads);
        let around = s.num(if counts_pads { 1.0 } else { 0.0 });
        let mut full = s.op("Pad", &[&full, &pads, &around], &[]);
        if beyond.iter().any(|&b| b > 0) {
            let pads = [vec![0; 4 + axes], beyond.clone()].concat();
            let pads = s.out.ints(&pads);
            full = s.op("Pad", &[&full, &pads], &[]);
        }
        let bare = Window { before: vec![0; axes], behind: vec![0; axes], ..window.clone() };
        let mut attributes = bare.attributes(1);
        attributes.retain(|(name, _)| *name != "group");
        let share = s.op("AveragePool", &[&full], &attributes);
        s.div(&dy, &share)
    } else {
        dy
    };
    for (behind, beyond) in window.behind.iter_mut().zip(&beyond) {
        *behind += beyond;
    }
    let scaled = s.times(&dy, 1.0 / taps as f64);
    let mut shape = vec![channels, 1];
    shape.extend(&window.kernel);
    let shape = s.out.ints(&shape);
    let fill = Tensor::new([1], ones(s)).expect("one element");
    let weight = s.op("ConstantOfShape", &[&shape], &[("value", Attribute::Tensor(fill))]);
    let dx = window.spread(s, &scaled, &weight, channels);
    s.only(dx)
}

/// Axes of the picture.
fn spatial(s: &Site) -> Result<Vec<i64>, Fault> {
    Ok((2..s.rank(s.x(0))? as i64).collect())
}

fn global_average_pool(s: &mut Site) -> Gradients {
    let dy = s.dy()?;
    let x = s.x(0);
    let sizes: Option<i64> = (2..s.rank(x)?).map(|axis| s.dim(x, axis)).product();
    let share = match sizes {
        Some(places) => s.times(&dy, 1.0 / places as f64),
        None => {
            let sizes = s.op("Shape", &[x], &[("start", Attribute::Int(2))]);
            let places = s.op("ReduceProd", &[&sizes], &[("keepdims", Attribute::Int(0))]);
            let dtype = i64::from(s.dtype(x).to_onnx());
            let places = s.op("Cast", &[&places], &[("to", Attribute::Int(dtype))]);
            s.div(&dy, &places)
        }
    };
    let shape = s.shape_of(x);
    let dx = s.op("Expand", &[&share, &shape], &[]);
    s.only(dx)
}

fn global_max_pool(s: &mut Site) -> Gradients {
    let dy = s.dy()?;
    let axes = spatial(s)?;
    let dx = super::reduce::shared_among_winners(s, &dy, s.y(0), &axes);
    s.only(dx)
}

//! Pooling; MaxPool is in `max_pool.rs`.

use super::context::{Fault, Gradients, RuleContext};
use super::max_pool::max_pool;
use super::registry::Family;
use super::window::Window;
use crate::emit::Attribute;

pub(super) const RULES: Family = &[
    ("MaxPool", max_pool),
    ("AveragePool", average_pool),
    ("GlobalAveragePool", global_average_pool),
    ("GlobalMaxPool", global_max_pool),
    ("LpPool", lp_pool),
    ("GlobalLpPool", global_lp_pool),
];

/// How far the last windows reach beyond picture and pads, as they may with
/// `ceil_mode`.
fn beyond(s: &RuleContext, window: &Window) -> Result<Vec<i64>, Fault> {
    let mut beyond = vec![0; window.axes()];
    for (axis, beyond) in beyond.iter_mut().enumerate() {
        let (Some(size), Some(out)) = (s.dim(s.x(0), axis + 2), s.dim(s.y(0), axis + 2)) else {
            if s.flag("ceil_mode") {
                return Err(Fault::new("ceil_mode needs a picture of fixed size; export the model with one"));
            }
            continue;
        };
        let covered = (out - 1) * window.strides[axis] + window.reach(axis);
        *beyond = (covered - size - window.before[axis] - window.behind[axis]).max(0);
    }
    Ok(beyond)
}

fn average_pool(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let x = s.x(0);
    let kernel = s.ints("kernel_shape").map(<[i64]>::to_vec).ok_or_else(|| Fault::new("it has no kernel_shape"))?;
    let window = Window::of(s, kernel)?;
    let axes = window.axes();
    let channels = s.dim(x, 1).ok_or_else(|| Fault::new("its channels are unknown; export the model with shapes"))?;
    let taps = window.taps()?;
    let beyond = beyond(s, &window)?;
    let counts_pads = s.flag("count_include_pad");
    let partial = beyond.iter().any(|&b| b > 0) || window.is_padded() && !counts_pads;
    let dy = if partial {
        // The share of each window that counts: ones where there is a picture
        // (and pads, if they count), zeros elsewhere, averaged.
        let sizes = s.op("Shape", &[x], &[("start", Attribute::Int(2))]);
        let one = s.out.ints(&[1, 1]);
        let plane = s.op("Concat", &[&one, &sizes], &[("axis", Attribute::Int(0))]);
        let full = s.filled(&plane, s.dtype(x), 1.0);
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
        // Only a model of operator set 19 or newer says dilations of it.
        let dilated = window.dilations.iter().any(|&d| d != 1);
        attributes.retain(|(name, _)| *name != "group" && (dilated || *name != "dilations"));
        let share = s.op("AveragePool", &[&full], &attributes);
        s.div(&dy, &share)
    } else {
        dy
    };
    let scaled = s.times(&dy, 1.0 / taps as f64);
    let dx = over_windows(s, window, &beyond, &scaled, channels)?;
    s.only(dx)
}

/// `dy` of each window at every place of the picture that is within it.
fn over_windows(
    s: &mut RuleContext,
    mut window: Window,
    beyond: &[i64],
    dy: &str,
    channels: i64,
) -> Result<String, Fault> {
    window.behind.iter_mut().zip(beyond).for_each(|(behind, beyond)| *behind += beyond);
    let shape = [&[channels, 1], window.kernel.as_slice()].concat();
    let shape = s.out.ints(&shape);
    let weight = s.filled(&shape, s.dtype(s.x(0)), 1.0);
    Ok(window.spread(s, dy, &weight, channels))
}

/// `y = (sum |x|^p)^(1/p)` over each window.
fn lp_pool(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let x = s.x(0);
    let kernel = s.ints("kernel_shape").map(<[i64]>::to_vec).ok_or_else(|| Fault::new("it has no kernel_shape"))?;
    let window = Window::of(s, kernel)?;
    let channels = s.dim(x, 1).ok_or_else(|| Fault::new("its channels are unknown; export the model with shapes"))?;
    let beyond = beyond(s, &window)?;
    let p = order(s)?;
    let share = over_length(s, &dy, p);
    let spread = over_windows(s, window, &beyond, &share, channels)?;
    let dx = along_powers(s, &spread, p);
    s.only(dx)
}

/// `y = (sum |x|^p)^(1/p)` over the picture.
fn global_lp_pool(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let p = order(s)?;
    let share = over_length(s, &dy, p);
    let dx = along_powers(s, &share, p);
    s.only(dx)
}

fn order(s: &RuleContext) -> Result<i64, Fault> {
    let p = s.int_or("p", 2);
    if p < 1 {
        return Err(Fault::new(format!("the norm of order {p} is not differentiated")));
    }
    Ok(p)
}

/// `dy y^(1-p)`; of no length is no direction.
fn over_length(s: &mut RuleContext, dy: &str, p: i64) -> String {
    if p == 1 {
        return dy.to_owned();
    }
    let y = s.y(0);
    let less = s.num((p - 1) as f64);
    let power = s.op("Pow", &[y, &less], &[]);
    let share = s.div(dy, &power);
    let zero = s.num(0.0);
    let none = s.op("Equal", &[y, &zero], &[]);
    s.except_where(&none, &share)
}

/// `share |x|^(p-1) sign(x)`.
fn along_powers(s: &mut RuleContext, share: &str, p: i64) -> String {
    let x = s.x(0);
    if p == 2 {
        return s.mul(share, x);
    }
    let mut slope = s.sign(x);
    if p > 2 {
        let (size, less) = (s.op("Abs", &[x], &[]), s.num((p - 1) as f64));
        let power = s.op("Pow", &[&size, &less], &[]);
        slope = s.mul(&slope, &power);
    }
    s.mul(share, &slope)
}

fn global_average_pool(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let x = s.x(0);
    let places = |n: i64, axis: usize| n.checked_mul(s.dim(x, axis)?).filter(|n| *n > 0);
    let sizes: Option<i64> = (2..s.rank(x)?).try_fold(1, places);
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

/// The first of equal winners gets it all, as in every pool.
fn global_max_pool(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let x = s.x(0);
    let flat = s.reshape(x, &[0, 0, -1]);
    let attributes = [("axis", Attribute::Int(2)), ("keepdims", Attribute::Int(1))];
    let first = s.op("ArgMax", &[&flat], &attributes);
    let dy = s.reshape(&dy, &[0, 0, -1]);
    let shape = s.shape_of(&flat);
    let zeros = s.filled(&shape, s.dtype(x), 0.0);
    let dx = s.op("ScatterElements", &[&zeros, &first, &dy], &[("axis", Attribute::Int(2))]);
    let dx = s.reshape_like(&dx, x);
    s.only(dx)
}

//! Convolutions.
//!
//! The weight gradient has several plain forms; which is fastest depends on
//! the shape, and [`weight`] chooses by what was measured
//! (docs/design/gradients.md).

use super::context::{Fault, Gradients, RuleContext};
use super::registry::Family;
use super::window::Window;
use crate::emit::Attribute;

pub(super) const RULES: Family = &[("Conv", conv), ("ConvTranspose", conv_transpose)];

fn conv(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let kernel = kernel(s)?;
    let window = Window::of(s, kernel)?;
    let group = groups(s)?;
    if let Some((dx, dw)) = depthwise_at_once(s, &dy, &window, group) {
        let db = s.wants(2).then(|| bias(s, &dy, &window));
        return Ok(vec![Some(dx), Some(dw), db]);
    }
    let dx = s.wants(0).then(|| input(s, &dy, &window, group));
    let dw = s.wants(1).then(|| weight(s, &dy, &window, group)).transpose()?;
    let db = s.wants(2).then(|| bias(s, &dy, &window));
    Ok(vec![dx, dw, db])
}

fn kernel(s: &RuleContext) -> Result<Vec<i64>, Fault> {
    let weight = s.fixed(s.x(1)).filter(|w| w.len() > 2);
    let unknown = || Fault::new("the size of its kernel is unknown; export the model with shapes");
    weight.map(|w| w[2..].to_vec()).or_else(|| s.ints("kernel_shape").map(<[i64]>::to_vec)).ok_or_else(unknown)
}

/// Groups of channels, among which the weight's first axis is divided.
fn groups(s: &RuleContext) -> Result<i64, Fault> {
    let group = s.positive_or("group", 1)?;
    match s.dim(s.x(1), 0) {
        Some(channels) if channels % group != 0 => {
            Err(Fault::new(format!("{channels} channels do not divide into {group} groups")))
        }
        _ => Ok(group),
    }
}

fn bias(s: &mut RuleContext, dy: &str, window: &Window) -> String {
    let axes: Vec<i64> = [0].into_iter().chain(2..2 + window.axes() as i64).collect();
    s.sum(dy, &axes, false)
}

/// Gradient of the input.
fn input(s: &mut RuleContext, dy: &str, window: &Window, group: i64) -> String {
    let w = s.x(1);
    let fits = (0..window.axes()).all(|a| window.before[a] < window.reach(a) && window.behind[a] < window.reach(a));
    let unit = window.strides.iter().all(|&stride| stride == 1);
    let axes = window.axes();
    let shape = s.fixed(w);
    let (Some(shape), true) = (shape, unit && fits) else {
        return window.spread(s, dy, w, group);
    };
    // With stride 1 the transpose is a convolution by the flipped kernel,
    // which engines compute in one blocked pass.
    let mut flipped = if group > 1 && shape[1] == 1 && shape[0] == group {
        w.to_owned()
    } else if group > 1 {
        // Input and output channels change places within each group.
        let apart = [&[group, shape[0] / group, shape[1]], &shape[2..]].concat();
        let apart = s.reshape(w, &apart);
        let perm: Vec<usize> = [0, 2, 1].into_iter().chain(3..3 + axes).collect();
        let turned = s.transpose(&apart, &perm);
        let joined = [&[group * shape[1], shape[0] / group], &shape[2..]].concat();
        s.reshape(&turned, &joined)
    } else {
        let perm: Vec<usize> = [1, 0].into_iter().chain(2..2 + axes).collect();
        s.transpose(w, &perm)
    };
    if window.kernel.iter().any(|&k| k > 1) {
        let starts = s.out.ints(&vec![-1; axes]);
        let ends = s.out.ints(&vec![i64::MIN; axes]);
        let which: Vec<i64> = (2..2 + axes as i64).collect();
        let which = s.out.ints(&which);
        let steps = s.out.ints(&vec![-1; axes]);
        flipped = s.op("Slice", &[&flipped, &starts, &ends, &which, &steps], &[]);
    }
    let around = |pads: &[i64]| (0..axes).map(|a| window.reach(a) - 1 - pads[a]).collect();
    let back = Window { before: around(&window.before), behind: around(&window.behind), ..window.clone() };
    s.op("Conv", &[dy, &flipped], &back.attributes(group))
}

/// Gradient of the weight, `[out, in / group, kernel..]`.
fn weight(s: &mut RuleContext, dy: &str, window: &Window, group: i64) -> Result<String, Fault> {
    let Some(shape) = s.fixed(s.x(1)) else {
        return Err(Fault::new("the shape of its weight is unknown; export the model with shapes"));
    };
    let (out, each) = (shape[0], shape[1]);
    // Of single elements the picture is the matrix of columns already, and the
    // engine's product over it is faster: a ninth of a MobileNetV2's step.
    if group == 1 && window.axes() <= 2 && !window.is_point() && s.has("ConvWeightGrad") {
        return Ok(s.kernel("ConvWeightGrad", &[dy, s.x(0)], &window.attributes(1)[..4]));
    }
    let padded = window.padded(s, s.x(0));
    if group > 1 && each == 1 && out == group {
        return depthwise(s, dy, window, &padded, &shape);
    }
    let taps = window.taps()?;
    let sum = if group == 1 {
        // One product over all examples and places: [out, examples * places]
        // by what each place saw.
        let front: Vec<usize> = [1, 0].into_iter().chain(2..2 + window.axes()).collect();
        let padded = s.transpose(&padded, &front);
        let columns = columns(s, window, &padded, 0, &[taps * each, -1])?;
        let dy = s.transpose(dy, &front);
        let dy = s.reshape(&dy, &[out, -1]);
        let other = s.swapped(&columns, 2);
        s.matmul(&dy, &other)
    } else {
        let part = [0, group, each, -1];
        let columns = columns_by_group(s, window, &padded, &part)?;
        let dy = s.reshape(dy, &[0, group, out / group, -1]);
        let other = s.swapped(&columns, 4);
        let product = s.matmul(&dy, &other);
        s.sum(&product, &[0], false)
    };
    if taps == 1 {
        return Ok(s.reshape(&sum, &shape));
    }
    // Columns are ordered (tap, channel); weights (channel, tap).
    let apart = s.reshape(&sum, &[out, taps, each]);
    let turned = s.transpose(&apart, &[0, 2, 1]);
    Ok(s.reshape(&turned, &shape))
}

/// What each place of the output saw, tap by tap along `axis`, in `shape`.
fn columns(s: &mut RuleContext, window: &Window, padded: &str, axis: i64, shape: &[i64]) -> Result<String, Fault> {
    if window.is_point() {
        return Ok(s.reshape(padded, shape));
    }
    let seen: Vec<String> =
        window.positions()?.iter().map(|position| window.seen_at(s, padded, position, s.y(0))).collect();
    let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
    let all =
        if seen.len() == 1 { seen[0].to_owned() } else { s.op("Concat", &seen, &[("axis", Attribute::Int(axis))]) };
    Ok(s.reshape(&all, shape))
}

/// The same, `[batch, group, taps * channels, places]`; `part` is the shape of
/// one tap.
fn columns_by_group(s: &mut RuleContext, window: &Window, padded: &str, part: &[i64]) -> Result<String, Fault> {
    let mut seen = Vec::new();
    for position in window.positions()? {
        let tap = window.seen_at(s, padded, &position, s.y(0));
        seen.push(s.reshape(&tap, part));
    }
    let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
    Ok(if seen.len() == 1 { seen[0].to_owned() } else { s.op("Concat", &seen, &[("axis", Attribute::Int(2))]) })
}

/// Gradients of the input and the weight of a convolution by channel, where
/// the engine has them.
fn depthwise_at_once(s: &mut RuleContext, dy: &str, window: &Window, group: i64) -> Option<(String, String)> {
    let shape = s.fixed(s.x(1))?;
    let fits = group > 1 && shape[0] == group && shape[1] == 1 && window.axes() <= 2;
    if !(fits && s.wants(0) && s.wants(1) && s.has("DepthwiseGrad")) {
        return None;
    }
    let attributes = window.attributes(1);
    let mut both = s.out.kernel("DepthwiseGrad", &[dy, s.x(0), s.x(1)], 2, &attributes[..4]).into_iter();
    both.next().zip(both.next())
}

/// One channel, one kernel: a weighted sum per tap.
fn depthwise(s: &mut RuleContext, dy: &str, window: &Window, padded: &str, shape: &[i64]) -> Result<String, Fault> {
    let axes: Vec<i64> = [0].into_iter().chain(2..2 + window.axes() as i64).collect();
    let column = s.out.ints(&[1]);
    let taps: Vec<String> = window
        .positions()?
        .iter()
        .map(|position| {
            let seen = window.seen_at(s, padded, position, s.y(0));
            let weighted = s.mul(&seen, dy);
            let sum = s.sum(&weighted, &axes, false);
            s.op("Unsqueeze", &[&sum, &column], &[])
        })
        .collect();
    let taps: Vec<&str> = taps.iter().map(String::as_str).collect();
    let all = s.op("Concat", &taps, &[("axis", Attribute::Int(1))]);
    Ok(s.reshape(&all, shape))
}

/// `y = spread(x)`: the gradient of the input is the convolution itself, and
/// input and output change places in the gradient of the weight.
fn conv_transpose(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let kernel = kernel(s)?;
    let window = Window::of_transposed(s, kernel)?;
    let group = groups(s)?;
    let axes = window.axes();
    let dx = if s.wants(0) {
        let cut = window.clone();
        let dy = if cut.behind.iter().any(|&p| p < 0) {
            let pads: Vec<i64> = [0, 0]
                .into_iter()
                .chain(vec![0; axes])
                .chain([0, 0])
                .chain(cut.behind.iter().map(|&p| p.min(0)))
                .collect();
            let pads = s.out.ints(&pads);
            s.op("Pad", &[&dy, &pads], &[])
        } else {
            dy.clone()
        };
        let back = Window { behind: cut.behind.iter().map(|&p| p.max(0)).collect(), ..cut };
        Some(s.op("Conv", &[&dy, s.x(1)], &back.attributes(group)))
    } else {
        None
    };
    let dw = s.wants(1).then(|| transposed_weight(s, &dy, &window, group)).transpose()?;
    let db = s.wants(2).then(|| bias(s, &dy, &window));
    Ok(vec![dx, dw, db])
}

/// Gradient of a transposed convolution's weight, `[in, out / group, kernel..]`.
fn transposed_weight(s: &mut RuleContext, dy: &str, window: &Window, group: i64) -> Result<String, Fault> {
    let Some(shape) = s.fixed(s.x(1)) else {
        return Err(Fault::new("the shape of its weight is unknown; export the model with shapes"));
    };
    let (inputs, each) = (shape[0], shape[1]);
    let x = s.x(0);
    let padded = window.padded(s, dy);
    let part = [0, group, each, -1];
    let mut taps = Vec::new();
    for position in window.positions()? {
        let seen = window.seen_at(s, &padded, &position, x);
        taps.push(s.reshape(&seen, &part));
    }
    let taps: Vec<&str> = taps.iter().map(String::as_str).collect();
    let columns = s.op("Concat", &taps, &[("axis", Attribute::Int(2))]);
    let x = s.reshape(x, &[0, group, inputs / group, -1]);
    let other = s.swapped(&columns, 4);
    let product = s.matmul(&x, &other);
    let sum = s.sum(&product, &[0], false);
    let count = window.taps()?;
    let apart = s.reshape(&sum, &[inputs, count, each]);
    let turned = s.transpose(&apart, &[0, 2, 1]);
    Ok(s.reshape(&turned, &shape))
}

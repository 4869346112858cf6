//! Normalisations.

use super::context::{Fault, Gradients, RuleContext};
use super::registry::Family;
use crate::emit::Attribute;

pub(super) const RULES: Family = &[
    ("BatchNormalization", batch_norm),
    ("LayerNormalization", layer_norm),
    ("InstanceNormalization", |s| channel_groups(s, Groups::PerChannel)),
    ("GroupNormalization", |s| channel_groups(s, Groups::Stated)),
    ("RMSNormalization", rms_norm),
    ("LpNormalization", lp_norm),
    ("MeanVarianceNormalization", mean_variance),
    ("LRN", local_response),
];

/// In training mode the statistics are the batch's own and the gradient flows
/// through them (Ioffe and Szegedy, 2015); else they are what they are given
/// as, and the gradient flows to them.
fn batch_norm(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let x = s.x(0);
    let rank = s.rank(x)?;
    let training = s.flag("training_mode");
    let epsilon = s.float_or("epsilon", 1e-5);
    let others: Vec<i64> = (0..rank as i64).filter(|&axis| axis != 1).collect();
    let (mean, variance) = if !training {
        (s.x(3).to_owned(), s.x(4).to_owned())
    } else if s.float_or("momentum", 0.9) == 0.0 && !s.y(2).is_empty() {
        // With nothing kept, the running statistics are the batch's.
        (s.y(1).to_owned(), s.y(2).to_owned())
    } else {
        let mean = s.mean(x, &others, true);
        let centred = s.sub(x, &mean);
        let square = s.mul(&centred, &centred);
        let variance = s.mean(&square, &others, false);
        let flat = s.reshape(&mean, &[-1]);
        (flat, variance)
    };
    let (mean, variance) = (mean.as_str(), variance.as_str());
    if training && s.has("BatchNormGrad") {
        let attributes = [("epsilon", Attribute::Float(epsilon as f32))];
        let all = s.out.kernel("BatchNormGrad", &[&dy, x, s.x(1), mean, variance], 3, &attributes);
        let unread = unread_statistics(s);
        return Ok(all.into_iter().map(Some).chain(unread).collect());
    }
    let mut per_channel = vec![-1];
    per_channel.extend(vec![1; rank.saturating_sub(2)]);

    let shifted = s.plus(variance, epsilon);
    let deviation = s.op("Sqrt", &[&shifted], &[]);
    let inverse = s.op("Reciprocal", &[&deviation], &[]);
    let wide_mean = s.reshape(mean, &per_channel);
    let centred = s.sub(x, &wide_mean);
    let weighted = s.mul(&dy, &centred);
    let dot = s.sum(&weighted, &others, false);
    let dbias = s.sum(&dy, &others, false);
    let dscale = s.mul(&dot, &inverse);
    let gain = s.mul(s.x(1), &inverse);
    let wide_gain = s.reshape(&gain, &per_channel);
    let mut dx = s.mul(&dy, &wide_gain);
    if training && s.wants(0) {
        // dx = gain * (dy - dbias/m - centred * inverse^2 * dot/m).
        let count = s.share(x, mean);
        let each = s.div(&gain, &count);
        let slope = s.mul(&dscale, &inverse);
        let slope = s.mul(&slope, &each);
        let slope = s.reshape(&slope, &per_channel);
        let shift = s.mul(&dbias, &each);
        let shift = s.reshape(&shift, &per_channel);
        let tilt = s.mul(&centred, &slope);
        let tilt = s.add(&tilt, &shift);
        dx = s.sub(&dx, &tilt);
    }
    let statistics = if training {
        unread_statistics(s)
    } else {
        // y = gain * (x - mean) + bias, gain = scale / sqrt(variance + epsilon).
        let dmean = s.wants(3).then(|| {
            let up = s.mul(&dbias, &gain);
            s.neg(&up)
        });
        let dvariance = s.wants(4).then(|| {
            let along = s.mul(&dscale, &gain);
            let along = s.mul(&along, &inverse);
            s.times(&along, -0.5)
        });
        [dmean, dvariance]
    };
    Ok([Some(dx), Some(dscale), Some(dbias)].into_iter().chain(statistics).collect())
}

/// In training mode running statistics act on nothing but their successors.
fn unread_statistics(s: &mut RuleContext) -> [Option<String>; 2] {
    [3, 4].map(|i| s.wants(i).then(|| s.zeros_like(s.x(i))))
}

/// `inverse * (g - mean(g) - xhat * mean(g * xhat))` over `axes`.
fn through(s: &mut RuleContext, g: &str, xhat: &str, inverse: &str, axes: &[i64], centred: bool) -> String {
    let along = s.mul(g, xhat);
    let along = s.mean(&along, axes, true);
    let along = s.mul(xhat, &along);
    let mut rest = s.sub(g, &along);
    if centred {
        let level = s.mean(g, axes, true);
        rest = s.sub(&rest, &level);
    }
    s.mul(&rest, inverse)
}

/// `1 / sqrt(mean(x^2) + epsilon)` of what is centred already.
fn inverse_deviation(s: &mut RuleContext, centred: &str, axes: &[i64], epsilon: f64) -> String {
    let square = s.mul(centred, centred);
    let variance = s.mean(&square, axes, true);
    let shifted = s.plus(&variance, epsilon);
    let deviation = s.op("Sqrt", &[&shifted], &[]);
    s.op("Reciprocal", &[&deviation], &[])
}

fn layer_norm(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let x = s.x(0);
    let rank = s.rank(x)?;
    let first = s.axis(s.int_or("axis", -1), rank)? as i64;
    let axes: Vec<i64> = (first..rank as i64).collect();
    let epsilon = s.float_or("epsilon", 1e-5);
    // The operator can give both, but not on every engine, and asking it to
    // gains nothing that could be measured.
    let mean = s.mean(x, &axes, true);
    let centred = s.sub(x, &mean);
    let inverse = inverse_deviation(s, &centred, &axes, epsilon);
    let xhat = s.mul(&centred, &inverse);
    affine(s, &dy, &xhat, &inverse, &axes, true)
}

/// Gradients of `xhat * scale + bias`, and through `xhat`.
fn affine(s: &mut RuleContext, dy: &str, xhat: &str, inverse: &str, axes: &[i64], centred: bool) -> Gradients {
    let dx = if s.wants(0) {
        let g = s.mul(dy, s.x(1));
        Some(through(s, &g, xhat, inverse, axes, centred))
    } else {
        None
    };
    let dscale = if s.wants(1) {
        let full = s.mul(dy, xhat);
        Some(s.reduced(1, full, s.x(0))?)
    } else {
        None
    };
    let dbias = s.wants(2).then(|| s.reduced(2, dy.to_owned(), s.x(0))).transpose()?;
    Ok(vec![dx, dscale, dbias])
}

fn rms_norm(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let x = s.x(0);
    let rank = s.rank(x)?;
    let first = s.axis(s.int_or("axis", -1), rank)? as i64;
    let axes: Vec<i64> = (first..rank as i64).collect();
    let epsilon = s.float_or("epsilon", 1e-5);
    let inverse = inverse_deviation(s, x, &axes, epsilon);
    let xhat = s.mul(x, &inverse);
    affine(s, &dy, &xhat, &inverse, &axes, false)
}

enum Groups {
    PerChannel,
    Stated,
}

/// Instance and group normalisation: channels in groups, each group of each
/// example by itself, then a scale and a bias per channel.
fn channel_groups(s: &mut RuleContext, groups: Groups) -> Gradients {
    let dy = s.dy()?;
    let x = s.x(0);
    let rank = s.rank(x)?;
    let Some(channels) = s.dim(x, 1) else {
        return Err(Fault::new("its channels are unknown; export the model with shapes"));
    };
    let count = match groups {
        Groups::PerChannel => channels,
        Groups::Stated => s.positive_or("num_groups", channels)?,
    };
    if channels % count != 0 {
        return Err(Fault::new(format!("{channels} channels do not divide into {count} groups")));
    }
    if s.dim(s.x(1), 0).is_some_and(|n| n != channels) {
        return Err(Fault::new("its scale is per group, as before operator set 21; export the model with 21"));
    }
    let epsilon = s.float_or("epsilon", 1e-5);
    let grouped = s.reshape(x, &[0, count, -1]);
    let mean = s.mean(&grouped, &[2], true);
    let centred = s.sub(&grouped, &mean);
    let inverse = inverse_deviation(s, &centred, &[2], epsilon);
    let xhat = s.mul(&centred, &inverse);
    let mut per_channel = vec![-1];
    per_channel.extend(vec![1; rank.saturating_sub(2)]);
    let others: Vec<i64> = (0..rank as i64).filter(|&axis| axis != 1).collect();
    let dx = if s.wants(0) {
        let scale = s.reshape(s.x(1), &per_channel);
        let g = s.mul(&dy, &scale);
        let g = s.reshape(&g, &[0, count, -1]);
        let dx = through(s, &g, &xhat, &inverse, &[2], true);
        Some(s.reshape_like(&dx, x))
    } else {
        None
    };
    let dscale = s.wants(1).then(|| {
        let flat = s.reshape_like(&xhat, x);
        let full = s.mul(&dy, &flat);
        s.sum(&full, &others, false)
    });
    let dbias = s.wants(2).then(|| s.sum(&dy, &others, false));
    Ok(vec![dx, dscale, dbias])
}

/// `y = x / |x|`: `(dy - d|x|/dx sum(dy y)) / |x|`.
fn lp_norm(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let axis = s.int_or("axis", -1);
    let (x, y) = (s.x(0), s.y(0));
    let p = s.int_or("p", 2);
    if !(1..=2).contains(&p) {
        return Err(Fault::new(format!("the norm of order {p} is not differentiated")));
    }
    let (norm, slope) = if p == 1 {
        let size = s.op("Abs", &[x], &[]);
        (s.sum(&size, &[axis], true), s.sign(x))
    } else {
        let square = s.mul(x, x);
        let square = s.sum(&square, &[axis], true);
        (s.op("Sqrt", &[&square], &[]), y.to_owned())
    };
    let along = s.mul(&dy, y);
    let along = s.sum(&along, &[axis], true);
    let along = s.mul(&along, &slope);
    let rest = s.sub(&dy, &along);
    let dx = s.div(&rest, &norm);
    // Engines leave a vector of zeros as it is, whatever it was divided by.
    let zero = s.num(0.0);
    let none = s.op("Equal", &[&norm, &zero], &[]);
    let dx = s.except_where(&none, &dx);
    s.only(dx)
}

/// `y = (x - mean) / (deviation + 1e-9)`.
fn mean_variance(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let x = s.x(0);
    let axes = s.ints("axes").map_or_else(|| vec![0, 2, 3], <[i64]>::to_vec);
    let mean = s.mean(x, &axes, true);
    let centred = s.sub(x, &mean);
    let square = s.mul(&centred, &centred);
    let variance = s.mean(&square, &axes, true);
    let deviation = s.op("Sqrt", &[&variance], &[]);
    let below = s.plus(&deviation, 1e-9);
    let level = s.mean(&dy, &axes, true);
    let rest = s.sub(&dy, &level);
    let along = s.mul(&dy, &centred);
    let along = s.mean(&along, &axes, true);
    // Of what doesn't vary the deviation has no slope.
    let share = s.div(&along, &deviation);
    let share = s.div(&share, &below);
    let zero = s.num(0.0);
    let none = s.op("Equal", &[&deviation, &zero], &[]);
    let share = s.except_where(&none, &share);
    let along = s.mul(&centred, &share);
    let rest = s.sub(&rest, &along);
    let dx = s.div(&rest, &below);
    s.only(dx)
}

/// `y = x d^-b`, `d = k + a/n sum x^2` over `n` channels around each
/// (Krizhevsky et al., 2012).
fn local_response(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let x = s.x(0);
    let Some(channels) = s.dim(x, 1) else {
        return Err(Fault::new("its channels are unknown; export the model with shapes"));
    };
    let size = s.positive_or("size", 1)?;
    let (alpha, beta) = (s.float_or("alpha", 1e-4), s.float_or("beta", 0.75));
    let around = [(size - 1) / 2, size / 2];
    let square = s.mul(x, x);
    let mean = mean_of_channels(s, &square, channels, around);
    let mean = s.times(&mean, alpha);
    let bias = s.float_or("bias", 1.0);
    let d = s.plus(&mean, bias);
    let power = s.num(-beta);
    let power = s.op("Pow", &[&d, &power], &[]);
    let own = s.mul(&dy, &power);
    // What the others feel: of those around which this channel is.
    let felt = s.mul(&own, x);
    let felt = s.div(&felt, &d);
    let felt = mean_of_channels(s, &felt, channels, [around[1], around[0]]);
    let felt = s.mul(&felt, x);
    let felt = s.times(&felt, 2.0 * alpha * beta);
    let dx = s.sub(&own, &felt);
    s.only(dx)
}

/// The mean of each channel and so many before and behind it, zeros beyond
/// the first and the last.
fn mean_of_channels(s: &mut RuleContext, x: &str, channels: i64, [before, behind]: [i64; 2]) -> String {
    let rows = s.reshape(x, &[0, 1, channels, -1]);
    let attributes = [
        ("kernel_shape", Attribute::Ints(vec![before + 1 + behind, 1])),
        ("pads", Attribute::Ints(vec![before, 0, behind, 0])),
        ("count_include_pad", Attribute::Int(1)),
    ];
    let mean = s.op("AveragePool", &[&rows], &attributes);
    s.reshape_like(&mean, s.x(0))
}

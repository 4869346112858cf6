//! Reductions along axes, and running sums.

use super::registry::Family;
use super::site::{Fault, Gradients, Site};
use crate::emit::Attribute;

pub(super) const RULES: Family = &[
    ("ReduceSum", |s| reduction(s, |_, dy, _| dy.to_owned())),
    ("ReduceMean", mean),
    ("ReduceMax", extreme),
    ("ReduceMin", extreme),
    ("ReduceProd", |s| {
        reduction(s, |s, dy, y| {
            let full = s.mul(dy, y);
            s.div(&full, s.x(0))
        })
    }),
    ("ReduceL1", |s| {
        reduction(s, |s, dy, _| {
            let sign = s.op("Sign", &[s.x(0)], &[]);
            s.mul(dy, &sign)
        })
    }),
    ("ReduceL2", |s| {
        reduction(s, |s, dy, y| {
            let each = s.div(dy, y);
            s.mul(s.x(0), &each)
        })
    }),
    ("ReduceSumSquare", |s| {
        reduction(s, |s, dy, _| {
            let twice = s.times(dy, 2.0);
            s.mul(s.x(0), &twice)
        })
    }),
    ("ReduceLogSum", |s| {
        reduction(s, |s, dy, y| {
            let sum = s.op("Exp", &[y], &[]);
            s.div(dy, &sum)
        })
    }),
    ("ReduceLogSumExp", |s| {
        reduction(s, |s, dy, y| {
            let less = s.sub(s.x(0), y);
            let share = s.op("Exp", &[&less], &[]);
            s.mul(dy, &share)
        })
    }),
    ("CumSum", cumulative),
];

/// A value shaped as the output, with the reduced axes kept at size 1.
fn kept(s: &mut Site, value: &str) -> Result<String, Fault> {
    if s.int_or("keepdims", 1) != 0 {
        return Ok(value.to_owned());
    }
    if s.given(1) {
        let empty = s.const_ints(1).is_some_and(|axes| axes.is_empty());
        if !empty {
            return Ok(s.op("Unsqueeze", &[value, s.x(1)], &[]));
        }
    }
    if s.int_or("noop_with_empty_axes", 0) != 0 {
        return Ok(value.to_owned());
    }
    let ones = vec![1; s.rank(s.x(0))?];
    Ok(s.reshape(value, &ones))
}

/// The output's gradient and value meet every element that was reduced; the
/// result is stretched to the input's shape.
fn reduction(s: &mut Site, each: impl FnOnce(&mut Site, &str, &str) -> String) -> Gradients {
    let dy = s.dy()?;
    let dy = kept(s, &dy)?;
    let y = kept(s, s.y(0))?;
    let each = each(s, &dy, &y);
    let shape = s.shape_of(s.x(0));
    let dx = s.op("Expand", &[&each, &shape], &[]);
    s.only(dx)
}

fn mean(s: &mut Site) -> Gradients {
    reduction(s, |s, dy, _| {
        let (large, small) = (s.op("Size", &[s.x(0)], &[]), s.op("Size", &[s.y(0)], &[]));
        let count = s.div(&large, &small);
        let dtype = i64::from(s.dtype(s.y(0)).to_onnx());
        let count = s.op("Cast", &[&count], &[("to", Attribute::Int(dtype))]);
        s.div(dy, &count)
    })
}

/// Equal winners share the gradient, as in PyTorch.
fn extreme(s: &mut Site) -> Gradients {
    let dy = s.dy()?;
    let dy = kept(s, &dy)?;
    let y = kept(s, s.y(0))?;
    let (won, winners) = winners(s, &y, |s, won| {
        let noop = s.int_or("noop_with_empty_axes", 0);
        let keep = [("keepdims", Attribute::Int(1)), ("noop_with_empty_axes", Attribute::Int(noop))];
        if s.given(1) { s.op("ReduceSum", &[won, s.x(1)], &keep) } else { s.op("ReduceSum", &[won], &keep) }
    });
    let share = s.div(&dy, &winners);
    let dx = s.mul(&won, &share);
    s.only(dx)
}

/// `dy` shared among the elements along `axes` that equal `y`.
pub(super) fn shared_among_winners(s: &mut Site, dy: &str, y: &str, axes: &[i64]) -> String {
    let (won, winners) = winners(s, y, |s, won| s.sum(won, axes, true));
    let share = s.div(dy, &winners);
    s.mul(&won, &share)
}

fn winners(s: &mut Site, y: &str, count: impl FnOnce(&mut Site, &str) -> String) -> (String, String) {
    let equal = s.op("Equal", &[s.x(0), y], &[]);
    let dtype = i64::from(s.dtype(s.x(0)).to_onnx());
    let won = s.op("Cast", &[&equal], &[("to", Attribute::Int(dtype))]);
    let winners = count(s, &won);
    (won, winners)
}

/// What came before feels what comes after.
fn cumulative(s: &mut Site) -> Gradients {
    let dy = s.dy()?;
    let attributes = [
        ("exclusive", Attribute::Int(s.int_or("exclusive", 0))),
        ("reverse", Attribute::Int(1 - s.int_or("reverse", 0))),
    ];
    let dx = s.op("CumSum", &[&dy, s.x(1)], &attributes);
    s.only(dx)
}

//! Reductions along axes, and running sums.

use super::context::{Fault, Gradients, RuleContext};
use super::registry::Family;
use crate::emit::Attribute;

pub(super) const RULES: Family = &[
    ("ReduceSum", |s| reduction(s, |_, dy, _| dy.to_owned())),
    ("ReduceMean", mean),
    ("ReduceMax", extreme),
    ("ReduceMin", extreme),
    ("ReduceProd", |s| reduction(s, product)),
    ("ReduceL1", |s| {
        reduction(s, |s, dy, _| {
            let sign = s.sign(s.x(0));
            s.mul(dy, &sign)
        })
    }),
    ("ReduceL2", |s| {
        reduction(s, |s, dy, y| {
            // Of no length is no direction: nothing flows, as in PyTorch.
            let zero = s.num(0.0);
            let none = s.op("Equal", &[y, &zero], &[]);
            let direction = s.div(s.x(0), y);
            let direction = s.except_where(&none, &direction);
            s.mul(dy, &direction)
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
fn kept(s: &mut RuleContext, value: &str) -> Result<String, Fault> {
    if s.int_or("keepdims", 1) != 0 {
        return Ok(value.to_owned());
    }
    if s.given(1) {
        let empty = s.const_ints(1).is_some_and(|axes| axes.is_empty());
        if !empty {
            return Ok(s.op("Unsqueeze", &[value, s.x(1)], &[]));
        }
    }
    if s.flag("noop_with_empty_axes") {
        return Ok(value.to_owned());
    }
    let ones = vec![1; s.rank(s.x(0))?];
    Ok(s.reshape(value, &ones))
}

/// The output's gradient and value meet every element that was reduced; the
/// result is stretched to the input's shape.
fn reduction(s: &mut RuleContext, each: impl FnOnce(&mut RuleContext, &str, &str) -> String) -> Gradients {
    let dy = s.dy()?;
    let dy = kept(s, &dy)?;
    let y = kept(s, s.y(0))?;
    let each = each(s, &dy, &y);
    let shape = s.shape_of(s.x(0));
    let dx = s.op("Expand", &[&each, &shape], &[]);
    s.only(dx)
}

fn mean(s: &mut RuleContext) -> Gradients {
    reduction(s, |s, dy, _| {
        let count = s.share(s.x(0), s.y(0));
        s.div(dy, &count)
    })
}

/// Each element's gradient is the product of the others, zeros among them or
/// not.
fn product(s: &mut RuleContext, dy: &str, _: &str) -> String {
    let x = s.x(0);
    let (zero, one) = (s.num(0.0), s.num(1.0));
    let none = s.op("Equal", &[x, &zero], &[]);
    let factors = s.either(&none, &one, x);
    let rest = along_its_axes(s, "ReduceProd", &factors);
    let ones = s.cast(&none, s.dtype(x));
    let zeros = along_its_axes(s, "ReduceSum", &ones);
    // With no zero all are as said; with one zero only its own is not zero.
    let single = s.op("Equal", &[&zeros, &one], &[]);
    let own = s.op("And", &[&none, &single], &[]);
    let without = s.op("Equal", &[&zeros, &zero], &[]);
    let some = s.op("Or", &[&own, &without], &[]);
    let others = s.div(&rest, &factors);
    let others = s.only_where(&some, &others);
    s.mul(dy, &others)
}

/// `x`, shaped as the input, reduced as the node reduces, its axes kept.
fn along_its_axes(s: &mut RuleContext, kind: &str, x: &str) -> String {
    let noop = s.int_or("noop_with_empty_axes", 0);
    let keep = [("keepdims", Attribute::Int(1)), ("noop_with_empty_axes", Attribute::Int(noop))];
    if s.given(1) { s.op(kind, &[x, s.x(1)], &keep) } else { s.op(kind, &[x], &keep) }
}

/// Equal winners share the gradient, as in PyTorch.
fn extreme(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let dy = kept(s, &dy)?;
    let y = kept(s, s.y(0))?;
    let won = s.op("Equal", &[s.x(0), &y], &[]);
    let ones = s.cast(&won, s.dtype(s.x(0)));
    let winners = along_its_axes(s, "ReduceSum", &ones);
    let share = s.div(&dy, &winners);
    let dx = s.only_where(&won, &share);
    s.only(dx)
}

/// What came before feels what comes after.
fn cumulative(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let attributes = [
        ("exclusive", Attribute::Int(s.int_or("exclusive", 0))),
        ("reverse", Attribute::Int(1 - s.int_or("reverse", 0))),
    ];
    let dx = s.op("CumSum", &[&dy, s.x(1)], &attributes);
    s.only(dx)
}

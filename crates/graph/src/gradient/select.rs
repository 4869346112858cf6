//! Operators that pick elements by index: what wasn't picked gets zero, what
//! was picked twice gets the sum.

use super::context::{Fault, Gradients, RuleContext};
use super::registry::Family;
use crate::emit::Attribute;

pub(super) const RULES: Family = &[
    ("Gather", gather),
    ("GatherElements", gather_elements),
    ("GatherND", gather_nd),
    ("ScatterND", scatter_nd),
    ("ScatterElements", scatter_elements),
    ("TopK", top_k),
];

fn adding() -> (&'static str, Attribute) {
    ("reduction", Attribute::Text("add".into()))
}

fn gather(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let (x, picked) = (s.x(0), s.x(1));
    let rank = s.rank(x)?;
    let axis = s.axis(s.int_or("axis", 0), rank)?;
    let picked_rank = s.rank(picked)?;
    if picked_rank == 0
        && let Some(index) = super::layout::index(s, 1)
    {
        return one(s, &dy, axis, index);
    }
    let zeros = s.zeros_like(x);
    if axis == 0 {
        // Rows: whole rows are added at once.
        let column = s.out.ints(&[-1]);
        let rows = s.op("Unsqueeze", &[picked, &column], &[]);
        let dx = s.op("ScatterND", &[&zeros, &rows, &dy], &[adding()]);
        return s.only(dx);
    }
    // One axis of picks, whatever shape they had; the other axes stand still.
    let mut shape = vec![0; axis];
    shape.push(-1);
    for later in axis + 1..rank {
        let size = s.dim(x, later);
        shape.push(size.ok_or_else(|| Fault::new("axes behind the gathered one have unknown sizes"))?);
    }
    let flat = s.reshape(&dy, &shape);
    let mut around = vec![1; rank];
    around[axis] = -1;
    let around = s.reshape(picked, &around);
    let full = s.shape_of(&flat);
    let around = s.op("Expand", &[&around, &full], &[]);
    let attributes = [("axis", Attribute::Int(axis as i64)), adding()];
    let dx = s.op("ScatterElements", &[&zeros, &around, &flat], &attributes);
    s.only(dx)
}

/// One index: zeros before it and behind it.
fn one(s: &mut RuleContext, dy: &str, axis: usize, index: i64) -> Gradients {
    let x = s.x(0);
    let rank = s.rank(x)?;
    let which = s.out.ints(&[axis as i64]);
    let thin = s.op("Unsqueeze", &[dy, &which], &[]);
    if let Some(size) = s.dim(x, axis) {
        let from_front = if index < 0 { index.checked_add(size) } else { Some(index) };
        let index = from_front
            .filter(|i| (0..size).contains(i))
            .ok_or_else(|| Fault::new(format!("place {index} is outside of an axis of {size}")))?;
        let mut pads = vec![0; 2 * rank];
        pads[axis] = index;
        pads[rank + axis] = size - 1 - index;
        let pads = s.out.ints(&pads);
        let dx = s.op("Pad", &[&thin, &pads], &[]);
        return s.only(dx);
    }
    let zeros = s.zeros_like(x);
    let at = s.out.ints(&[index]);
    let mut around = vec![1; rank];
    around[axis] = -1;
    let around = s.reshape(&at, &around);
    let full = s.shape_of(&thin);
    let around = s.op("Expand", &[&around, &full], &[]);
    let attributes = [("axis", Attribute::Int(axis as i64)), adding()];
    let dx = s.op("ScatterElements", &[&zeros, &around, &thin], &attributes);
    s.only(dx)
}

fn gather_elements(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let zeros = s.zeros_like(s.x(0));
    let attributes = [("axis", Attribute::Int(s.int_or("axis", 0))), adding()];
    let dx = s.op("ScatterElements", &[&zeros, s.x(1), &dy], &attributes);
    s.only(dx)
}

fn gather_nd(s: &mut RuleContext) -> Gradients {
    if s.int_or("batch_dims", 0) != 0 {
        return Err(Fault::new("batch_dims above 0 is not differentiated"));
    }
    let dy = s.dy()?;
    let zeros = s.zeros_like(s.x(0));
    let dx = s.op("ScatterND", &[&zeros, s.x(1), &dy], &[adding()]);
    s.only(dx)
}

/// Whether a scatter replaces, adds, or does what isn't differentiated.
fn replaces(s: &RuleContext) -> Result<bool, Fault> {
    match s.choice("reduction", &["none", "add", "mul", "max", "min"])? {
        "none" => Ok(true),
        "add" => Ok(false),
        other => Err(Fault::new(format!("reduction {other} is not differentiated"))),
    }
}

fn scatter_nd(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let places = s.x(1);
    let data = if !s.wants(0) {
        None
    } else if replaces(s)? {
        let zeros = s.zeros_like(s.x(2));
        Some(s.op("ScatterND", &[&dy, places, &zeros], &[]))
    } else {
        Some(dy.clone())
    };
    let updates = s.wants(2).then(|| s.op("GatherND", &[&dy, places], &[]));
    Ok(vec![data, None, updates])
}

fn scatter_elements(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let places = s.x(1);
    let axis = ("axis", Attribute::Int(s.int_or("axis", 0)));
    let data = if !s.wants(0) {
        None
    } else if replaces(s)? {
        let zeros = s.zeros_like(s.x(2));
        Some(s.op("ScatterElements", &[&dy, places, &zeros], std::slice::from_ref(&axis)))
    } else {
        Some(dy.clone())
    };
    let updates = s.wants(2).then(|| s.op("GatherElements", &[&dy, places], &[axis]));
    Ok(vec![data, None, updates])
}

fn top_k(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let zeros = s.zeros_like(s.x(0));
    let attributes = [("axis", Attribute::Int(s.int_or("axis", -1))), adding()];
    let dx = s.op("ScatterElements", &[&zeros, s.y(1), &dy], &attributes);
    s.only(dx)
}

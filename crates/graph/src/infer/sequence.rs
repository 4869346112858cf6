//! Sequences and optionals: a value's `items` says what every item is.

use crate::tensor::DataType::{self, Bool, F32, I64};
use crate::types::Dim;

use super::dims::{self, known};
use super::op::{Op, Outputs, Rule, one};
use super::value::Value;

pub(super) const RULES: &[(&str, Rule)] = &[
    ("SequenceConstruct", construct),
    ("SequenceEmpty", empty),
    ("SequenceInsert", insert),
    ("SequenceErase", erase),
    ("SequenceAt", item),
    ("SequenceLength", length),
    ("SplitToSequence", split),
    ("ConcatFromSequence", concat),
    ("Optional", optional),
    ("OptionalGetElement", item),
    ("OptionalHasElement", has_element),
];

fn items(op: &Op, i: usize) -> Value {
    op.input(i).and_then(|v| v.items.as_deref().cloned()).unwrap_or_default()
}

fn construct(op: &Op) -> Outputs {
    let each = op.inputs.iter().map(|v| v.cloned().unwrap_or_default());
    one(Value::sequence(each.reduce(|a, b| a.join(&b)).unwrap_or_default()))
}

fn empty(op: &Op) -> Outputs {
    let dtype = if op.attribute("dtype").is_some() { op.dtype_attribute("dtype") } else { Some(F32) };
    one(Value::sequence(Value::new(dtype, None)))
}

fn insert(op: &Op) -> Outputs {
    let inserted = op.input(1).cloned().unwrap_or_default();
    let mut joined = items(op, 0).join(&inserted);
    joined.dtype = items(op, 0).dtype.or(inserted.dtype);
    one(Value::sequence(joined))
}

fn erase(op: &Op) -> Outputs {
    one(op.input(0).cloned().unwrap_or_default())
}

fn item(op: &Op) -> Outputs {
    // Taking the element of what isn't optional gives it back.
    let taken = op.input(0).map(|v| v.items.as_deref().unwrap_or(v).clone());
    one(taken.unwrap_or_default())
}

fn length(_: &Op) -> Outputs {
    one(Value::typed(I64, Some(Vec::new())))
}

fn split(op: &Op) -> Outputs {
    let dtype: Option<DataType> = op.dtype(0);
    let Some(from) = op.shape(0) else { return one(Value::sequence(Value::new(dtype, None))) };
    let axis = op.axis(0, op.int_or("axis", 0), from.len())?;
    let mut shape = from.to_vec();
    // Without sizes every item has one element, and may lose the axis.
    let size = match op.input(1) {
        None => Some(known(1)),
        Some(sizes) => match sizes.ints().as_deref() {
            Some([first, rest @ ..]) if rest.iter().all(|n| n == first) => {
                let even = from[axis].known().is_some_and(|n| *first > 0 && n.is_multiple_of(*first as u64));
                u64::try_from(*first).ok().filter(|_| even || sizes.rank() == Some(1)).map(known)
            }
            _ => None,
        },
    };
    shape[axis] = size.unwrap_or(Dim::Unknown);
    if op.input(1).is_none() && op.int_or("keepdims", 1) == 0 {
        shape.remove(axis);
    }
    one(Value::sequence(Value::new(dtype, Some(shape))))
}

fn concat(op: &Op) -> Outputs {
    let item = items(op, 0);
    let Some(mut shape) = item.shape else { return one(Value::new(item.dtype, None)) };
    let axis = op.int_or("axis", 0);
    if op.flag("new_axis") {
        let at = op.axis(0, axis, shape.len() + 1)?;
        shape.insert(at, Dim::Unknown);
    } else {
        let at = op.axis(0, axis, shape.len())?;
        shape[at] = Dim::Unknown;
    }
    one(Value::new(item.dtype, Some(shape)))
}

fn optional(op: &Op) -> Outputs {
    let declared = op.attribute("type").and_then(|a| a.tp.as_ref()).map(super::scope::declared_value);
    let inner = op.input(0).cloned().or(declared).unwrap_or_default();
    one(Value { items: Some(Box::new(inner.forget())), ..Value::default() })
}

fn has_element(_: &Op) -> Outputs {
    one(Value::typed(Bool, Some(dims::unknown(0))))
}

//! A node as its rule sees it: inputs, attributes, operator set version.

use crate::attributes::Attributes;
use crate::onnx::{AttributeProto, GraphProto, NodeProto, TensorProto};
use crate::tensor::DataType;
use crate::types::Dim;

use super::dims::{Shape, axis_index, meet_shapes};
use super::error::Fault;
use super::scope::{Env, Scope};
use super::value::Value;

/// What a rule returns: its outputs in order; missing ones stay unknown.
pub(super) type Outputs = Result<Vec<Value>, Fault>;

/// Types of a node's outputs from its inputs.
pub(super) type Rule = fn(&Op) -> Outputs;

pub(super) struct Op<'a> {
    pub(super) node: &'a NodeProto,
    /// `None` for an optional input left out.
    pub(super) inputs: Vec<Option<&'a Value>>,
    /// Version of the operator set that the node's domain has here.
    pub(super) opset: i64,
    pub(super) env: &'a Env<'a>,
    pub(super) scope: &'a Scope<'a>,
}

impl<'a> Op<'a> {
    pub(super) fn kind(&self) -> &'a str {
        self.node.op_type()
    }

    pub(super) fn input(&self, i: usize) -> Option<&'a Value> {
        self.inputs.get(i).copied().flatten()
    }

    pub(super) fn dtype(&self, i: usize) -> Option<DataType> {
        self.input(i)?.dtype
    }

    pub(super) fn shape(&self, i: usize) -> Option<&'a [Dim]> {
        self.input(i)?.shape.as_deref()
    }

    /// A copy of an input's type and shape, without elements.
    pub(super) fn like(&self, i: usize) -> Value {
        Value::new(self.dtype(i), self.shape(i).map(<[Dim]>::to_vec))
    }

    /// All elements of an input, when they are known integers.
    pub(super) fn ints_at(&self, i: usize) -> Option<Vec<i64>> {
        self.input(i)?.ints()
    }

    /// The attributes; inside a function, references go to the caller's.
    pub(super) fn attributes(&self) -> Attributes<'a> {
        Attributes::within(self.node, &self.env.attributes)
    }

    pub(super) fn attribute(&self, name: &str) -> Option<&'a AttributeProto> {
        self.attributes().get(name)
    }

    pub(super) fn int(&self, name: &str) -> Option<i64> {
        self.attributes().int(name)
    }

    pub(super) fn int_or(&self, name: &str, default: i64) -> i64 {
        self.attributes().int_or(name, default)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.attributes().flag(name)
    }

    /// A list that isn't empty.
    pub(super) fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.attributes().ints(name)
    }

    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.attributes().text(name)
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&'a TensorProto> {
        self.attributes().tensor(name)
    }

    pub(super) fn graph(&self, name: &str) -> Option<&'a GraphProto> {
        self.attributes().graph(name)
    }

    /// The element type that an attribute names; `None` also for types that
    /// Tierline doesn't carry.
    pub(super) fn dtype_attribute(&self, name: &str) -> Option<DataType> {
        DataType::from_onnx(i32::try_from(self.int(name)?).ok()?)
    }

    /// Integers given by an attribute or, later, by an input.
    pub(super) fn ints_or_input(&self, name: &str, input: usize) -> Option<Vec<i64>> {
        self.ints(name).map(<[i64]>::to_vec).or_else(|| self.ints_at(input))
    }

    /// An input's shape, which must have this many axes.
    pub(super) fn shape_of_rank(&self, i: usize, rank: usize, said: &'static str) -> Result<Option<&'a [Dim]>, Fault> {
        self.shape_where(i, said, |n| n == rank)
    }

    /// An input's shape, whose number of axes must satisfy `valid`.
    pub(super) fn shape_where(
        &self,
        i: usize,
        expected: &'static str,
        valid: impl Fn(usize) -> bool,
    ) -> Result<Option<&'a [Dim]>, Fault> {
        match self.shape(i) {
            Some(s) if !valid(s.len()) => Err(Fault::Rank { input: i, expected, actual: s.len() }),
            other => Ok(other),
        }
    }

    /// An axis of an input, counted from the end when negative.
    pub(super) fn axis(&self, i: usize, axis: i64, rank: usize) -> Result<usize, Fault> {
        axis_index(axis, rank).ok_or(Fault::Axis { input: i, axis, rank })
    }

    /// Refuses two inputs whose element types are known and differ.
    pub(super) fn same_dtype(&self, a: usize, b: usize) -> Result<Option<DataType>, Fault> {
        match (self.dtype(a), self.dtype(b)) {
            (Some(x), Some(y)) if x != y => {
                Err(Fault::ElementType { input: b, actual: y.to_string(), expected: x.to_string() })
            }
            (x, y) => Ok(x.or(y)),
        }
    }

    /// The more specific of two shapes that must be the same.
    pub(super) fn same_shape(&self, input: usize, a: &[Dim], b: &[Dim]) -> Result<Shape, Fault> {
        meet_shapes(a, b).ok_or_else(|| Fault::shapes(input, b, a, "they must be equal"))
    }
}

/// One output.
pub(super) fn one(value: Value) -> Outputs {
    Ok(vec![value])
}

//! A node as its gradient rule sees it, and the words rules are written in.

use std::collections::HashMap;

use crate::constant::tensor_from_proto;
use crate::emit::{Attribute, Emitter};
use crate::infer::Types;
use crate::kernels::Kernels;
use crate::onnx::{AttributeProto, NodeProto, TensorProto};
use crate::tensor::{DataType, Elements, Tensor};
use crate::types::Dim;

/// Why a rule can't be applied to a node; said of the node by the caller.
#[derive(Debug)]
pub(super) struct Fault(pub(super) String);

impl Fault {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// Gradients of a node's inputs in order; `None` (or none) where there is no
/// gradient, or none is wanted.
pub(super) type Gradients = Result<Vec<Option<String>>, Fault>;

/// Writes the gradients of a node's inputs from those of its outputs.
pub(super) type Rule = fn(&mut Site) -> Gradients;

/// One node of the forward graph.
pub(super) struct Site<'a> {
    pub(super) node: &'a NodeProto,
    pub(super) types: &'a Types,
    pub(super) constants: &'a HashMap<&'a str, &'a TensorProto>,
    pub(super) kernels: &'a Kernels,
    pub(super) out: &'a mut Emitter,
    /// Gradients of the outputs that have one.
    pub(super) upstream: Vec<Option<String>>,
    /// Inputs whose gradients are wanted.
    pub(super) wanted: Vec<bool>,
}

impl<'a> Site<'a> {
    /// Name of input `i`; empty when it is left out.
    pub(super) fn x(&self, i: usize) -> &'a str {
        self.node.input.get(i).map_or("", String::as_str)
    }

    /// Name of output `i`.
    pub(super) fn y(&self, i: usize) -> &'a str {
        self.node.output.get(i).map_or("", String::as_str)
    }

    /// Gradient of the first output. The others must have none.
    pub(super) fn dy(&self) -> Result<String, Fault> {
        if let Some(other) = self.upstream.iter().skip(1).position(Option::is_some) {
            return Err(Fault::new(format!(
                "the loss depends on output {}, through which no gradient flows",
                other + 1
            )));
        }
        self.dys(0).ok_or_else(|| Fault::new("its first output has no gradient"))
    }

    /// Gradient of output `i`, if it has one.
    pub(super) fn dys(&self, i: usize) -> Option<String> {
        self.upstream.get(i).cloned().flatten()
    }

    /// Whether the gradient of input `i` is wanted.
    pub(super) fn wants(&self, i: usize) -> bool {
        self.wanted.get(i).copied().unwrap_or(false)
    }

    pub(super) fn given(&self, i: usize) -> bool {
        !self.x(i).is_empty()
    }

    /// One gradient, for input 0.
    pub(super) fn only(&self, gradient: String) -> Gradients {
        Ok(vec![Some(gradient)])
    }

    // Attributes and constants.

    pub(super) fn attribute(&self, name: &str) -> Option<&'a AttributeProto> {
        self.node.attribute.iter().find(|a| a.name() == name)
    }

    pub(super) fn int_or(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, AttributeProto::i)
    }

    pub(super) fn float_or(&self, name: &str, default: f32) -> f64 {
        f64::from(self.attribute(name).map_or(default, AttributeProto::f))
    }

    pub(super) fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.attribute(name).map(|a| a.ints.as_slice())
    }

    pub(super) fn text(&self, name: &str) -> &'a str {
        self.attribute(name).and_then(|a| std::str::from_utf8(a.s()).ok()).unwrap_or_default()
    }

    /// The constant that input `i` is, if it is one.
    pub(super) fn constant(&self, i: usize) -> Option<Tensor> {
        tensor_from_proto(self.constants.get(self.x(i))?).ok()
    }

    /// The integers that input `i` holds, if it is a constant.
    pub(super) fn const_ints(&self, i: usize) -> Option<Vec<i64>> {
        match self.constant(i)?.elements() {
            Elements::I64(v) => Some(v.clone()),
            Elements::I32(v) => Some(v.iter().map(|&i| i64::from(i)).collect()),
            _ => None,
        }
    }

    // Types.

    pub(super) fn dtype(&self, name: &str) -> DataType {
        self.types.get(name).and_then(|t| t.dtype).unwrap_or(DataType::F32)
    }

    pub(super) fn shape(&self, name: &str) -> Option<&'a [Dim]> {
        self.types.get(name)?.shape.as_deref()
    }

    pub(super) fn rank(&self, name: &str) -> Result<usize, Fault> {
        let unknown = || Fault::new(format!("the rank of `{name}` is unknown; export the model with shapes"));
        self.shape(name).map(<[Dim]>::len).ok_or_else(unknown)
    }

    /// The sizes of an input whose axes are all fixed.
    pub(super) fn fixed(&self, name: &str) -> Option<Vec<i64>> {
        self.shape(name)?.iter().map(|d| d.known().and_then(|n| i64::try_from(n).ok())).collect()
    }

    /// Size of one axis, if it is fixed.
    pub(super) fn dim(&self, name: &str, axis: usize) -> Option<i64> {
        self.shape(name)?.get(axis)?.known().and_then(|n| i64::try_from(n).ok())
    }

    /// An axis counted from the front.
    pub(super) fn axis(&self, axis: i64, rank: usize) -> Result<usize, Fault> {
        let front = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(front)
            .ok()
            .filter(|&a| a < rank)
            .ok_or_else(|| Fault::new(format!("axis {axis} is outside of {rank} axes")))
    }

    // Words for nodes.

    /// Whether the engine's own operator of this name may stand in for plain
    /// nodes here: they all are of f32.
    pub(super) fn has(&self, kernel: &str) -> bool {
        let known = |name: &str| self.types.get(name).and_then(|t| t.dtype);
        self.kernels.has(kernel) && known(self.x(0)).or(known(self.y(0))) == Some(DataType::F32)
    }

    /// A node of the engine's own operator.
    pub(super) fn kernel(&mut self, kind: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        self.out.kernel(kind, inputs, 1, attributes).remove(0)
    }

    pub(super) fn op(&mut self, kind: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        self.out.op(kind, inputs, attributes)
    }

    pub(super) fn add(&mut self, a: &str, b: &str) -> String {
        self.op("Add", &[a, b], &[])
    }

    pub(super) fn sub(&mut self, a: &str, b: &str) -> String {
        self.op("Sub", &[a, b], &[])
    }

    pub(super) fn mul(&mut self, a: &str, b: &str) -> String {
        self.op("Mul", &[a, b], &[])
    }

    pub(super) fn div(&mut self, a: &str, b: &str) -> String {
        self.op("Div", &[a, b], &[])
    }

    pub(super) fn neg(&mut self, a: &str) -> String {
        self.op("Neg", &[a], &[])
    }

    /// A number of the type of the first output.
    pub(super) fn num(&mut self, value: f64) -> String {
        let dtype = self.dtype(self.y(0));
        self.out.scalar(dtype, value)
    }

    /// `a * value`.
    pub(super) fn times(&mut self, a: &str, value: f64) -> String {
        let value = self.num(value);
        self.mul(a, &value)
    }

    /// `a + value`.
    pub(super) fn plus(&mut self, a: &str, value: f64) -> String {
        let value = self.num(value);
        self.add(a, &value)
    }

    /// `value - a`.
    pub(super) fn number_minus(&mut self, value: f64, a: &str) -> String {
        let value = self.num(value);
        self.sub(&value, a)
    }

    /// `gradient` where `condition` holds, else zero; as a product, which
    /// engines compute several times faster than a choice.
    pub(super) fn masked(&mut self, condition: &str, gradient: &str) -> String {
        let dtype = i64::from(self.dtype(self.y(0)).to_onnx());
        let mask = self.op("Cast", &[condition], &[("to", Attribute::Int(dtype))]);
        self.mul(gradient, &mask)
    }

    /// `gradient` where `condition` holds, else zero, whatever it is there.
    pub(super) fn only_where(&mut self, condition: &str, gradient: &str) -> String {
        let zero = self.num(0.0);
        self.op("Where", &[condition, gradient, &zero], &[])
    }

    pub(super) fn matmul(&mut self, a: &str, b: &str) -> String {
        self.op("MatMul", &[a, b], &[])
    }

    pub(super) fn transpose(&mut self, x: &str, perm: &[usize]) -> String {
        let perm = perm.iter().map(|&p| p as i64).collect();
        self.op("Transpose", &[x], &[("perm", Attribute::Ints(perm))])
    }

    /// The last two of `rank` axes swapped.
    pub(super) fn swapped(&mut self, x: &str, rank: usize) -> String {
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 2, rank - 1);
        self.transpose(x, &perm)
    }

    /// Reshape to a constant shape (0 keeps an axis, -1 takes the rest).
    pub(super) fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.out.ints(shape);
        self.op("Reshape", &[x, &shape], &[])
    }

    pub(super) fn sum(&mut self, x: &str, axes: &[i64], keep: bool) -> String {
        let axes = self.out.ints(axes);
        self.op("ReduceSum", &[x, &axes], &[("keepdims", Attribute::Int(i64::from(keep)))])
    }

    pub(super) fn mean(&mut self, x: &str, axes: &[i64], keep: bool) -> String {
        let axes = self.out.ints(axes);
        self.op("ReduceMean", &[x, &axes], &[("keepdims", Attribute::Int(i64::from(keep)))])
    }

    pub(super) fn shape_of(&mut self, x: &str) -> String {
        self.op("Shape", &[x], &[])
    }

    /// `x` in the shape of `like`, whose elements are as many.
    pub(super) fn reshape_like(&mut self, x: &str, like: &str) -> String {
        match self.shape(like).map(reshape_target) {
            Some(Some(target)) => self.reshape(x, &target),
            _ => {
                let shape = self.shape_of(like);
                self.op("Reshape", &[x, &shape], &[])
            }
        }
    }

    /// Zeros in the shape of `like`.
    pub(super) fn zeros_like(&mut self, like: &str) -> String {
        let known = self.types.get(like).and_then(|t| t.dtype);
        let elements = match known.unwrap_or_else(|| self.dtype(self.y(0))) {
            DataType::F64 => Elements::F64(vec![0.0]),
            _ => Elements::F32(vec![0.0]),
        };
        let shape = self.shape_of(like);
        let zero = Tensor::new([1], elements).expect("one element");
        self.op("ConstantOfShape", &[&shape], &[("value", Attribute::Tensor(zero))])
    }

    /// Sums `gradient`, shaped as `of`, down to the shape of input `i`,
    /// which was broadcast to it.
    pub(super) fn reduced(&mut self, i: usize, gradient: String, of: &str) -> Result<String, Fault> {
        let x = self.x(i);
        let (rank, full) = (self.rank(x)?, self.rank(of)?);
        let lead = full - rank.min(full);
        let (small, large) = (self.shape(x).unwrap_or_default(), self.shape(of).unwrap_or_default());
        let mut axes: Vec<i64> = (0..lead as i64).collect();
        for (axis, (s, l)) in small.iter().zip(&large[lead..]).enumerate() {
            match (s, l) {
                (Dim::Unknown, Dim::Known(1)) => {}
                (s, l) if s == l && *s != Dim::Unknown => {}
                (Dim::Known(1), _) => axes.push((lead + axis) as i64),
                // An axis of a fixed size above 1 can't have been stretched.
                (Dim::Known(_), _) => {}
                _ => return Ok(self.reduced_at_run_time(x, &gradient, lead)),
            }
        }
        if axes.is_empty() {
            return Ok(gradient);
        }
        if axes.len() == lead {
            return Ok(self.sum(&gradient, &axes, false));
        }
        let sum = self.sum(&gradient, &axes, true);
        Ok(if lead == 0 { sum } else { self.reshape_like(&sum, x) })
    }

    /// [`Self::reduced`] for sizes that are known at run time only; `lead` axes
    /// of the gradient are before those of `x`.
    pub(super) fn reduced_at_run_time(&mut self, x: &str, gradient: &str, lead: usize) -> String {
        let shape = self.shape_of(x);
        let full = self.shape_of(gradient);
        let ones = self.out.ints(&vec![1; lead]);
        let padded = self.op("Concat", &[&ones, &shape], &[("axis", Attribute::Int(0))]);
        let same = self.op("Equal", &[&padded, &full], &[]);
        let stretched = self.op("Not", &[&same], &[]);
        let axes = self.op("NonZero", &[&stretched], &[]);
        let zero = self.out.ints(&[0]);
        let axes = self.op("Squeeze", &[&axes, &zero], &[]);
        let attributes = [("keepdims", Attribute::Int(1)), ("noop_with_empty_axes", Attribute::Int(1))];
        let sum = self.op("ReduceSum", &[gradient, &axes], &attributes);
        self.op("Reshape", &[&sum, &shape], &[])
    }
}

/// A shape as Reshape takes it: one free axis may be the rest.
fn reshape_target(shape: &[Dim]) -> Option<Vec<i64>> {
    let sizes: Vec<Option<i64>> = shape.iter().map(|d| d.known().and_then(|n| i64::try_from(n).ok())).collect();
    let free = sizes.iter().filter(|s| s.is_none()).count();
    // A size of 0 would mean "as it was".
    (free <= 1 && !sizes.contains(&Some(0))).then(|| sizes.into_iter().map(|s| s.unwrap_or(-1)).collect())
}

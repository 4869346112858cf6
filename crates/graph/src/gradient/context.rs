//! A node as its gradient rule sees it, and the words rules are written in.

use std::collections::HashMap;

use crate::attributes::{Attributes, Unfit};
use crate::constant::tensor_from_proto;
use crate::emit::{Attribute, Emitter};
use crate::index::Index;
use crate::infer::{Types, axis_index};
use crate::kernels::Kernels;
use crate::onnx::{NodeProto, TensorProto};
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

impl From<Unfit> for Fault {
    fn from(unfit: Unfit) -> Self {
        Self(unfit.0)
    }
}

/// Sizes above this count as unknown: no axis has as many places, and sums and
/// products of few of them with others' don't overflow.
const SIZE_MAX: i64 = 1 << 40;

/// Gradients of a node's inputs in order; `None` (or none) where there is no
/// gradient, or none is wanted.
pub(super) type Gradients = Result<Vec<Option<String>>, Fault>;

/// Writes the gradients of a node's inputs from those of its outputs.
pub(super) type Rule = fn(&mut RuleContext) -> Gradients;

/// What a rule gets: one node of the forward graph, and what is known of it.
pub(super) struct RuleContext<'a> {
    pub(super) node: &'a NodeProto,
    pub(super) index: &'a Index<'a>,
    pub(super) types: &'a Types,
    pub(super) constants: &'a HashMap<&'a str, &'a TensorProto>,
    pub(super) kernels: &'a Kernels,
    pub(super) out: &'a mut Emitter,
    /// Gradients of the outputs that have one.
    pub(super) upstream: Vec<Option<String>>,
    /// Inputs whose gradients are wanted.
    pub(super) wanted: Vec<bool>,
}

impl<'a> RuleContext<'a> {
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

    pub(super) fn attributes(&self) -> Attributes<'a> {
        Attributes::of(self.node)
    }

    pub(super) fn int_or(&self, name: &str, default: i64) -> i64 {
        self.attributes().int_or(name, default)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.attributes().flag(name)
    }

    pub(super) fn float_or(&self, name: &str, default: f32) -> f64 {
        f64::from(self.attributes().float_or(name, default))
    }

    /// A list that isn't empty.
    pub(super) fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.attributes().ints(name)
    }

    pub(super) fn text(&self, name: &str) -> &'a str {
        self.attributes().text(name).unwrap_or_default()
    }

    /// A text that is one of those known, the first where nothing is said.
    pub(super) fn choice(&self, name: &str, known: &[&'static str]) -> Result<&'static str, Fault> {
        Ok(self.attributes().choice(name, known)?)
    }

    /// A number above 0, as far as sizes go.
    pub(super) fn positive_or(&self, name: &str, default: i64) -> Result<i64, Fault> {
        let value = self.attributes().positive_or(name, default.max(1) as u64)?;
        let fits = i64::try_from(value).ok().filter(|n| *n <= SIZE_MAX);
        fits.ok_or_else(|| Fault::new(format!("{name} {value} is out of range")))
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
        self.shape(name)?.iter().map(size).collect()
    }

    /// Size of one axis, if it is fixed.
    pub(super) fn dim(&self, name: &str, axis: usize) -> Option<i64> {
        size(self.shape(name)?.get(axis)?)
    }

    /// An axis counted from the front.
    pub(super) fn axis(&self, axis: i64, rank: usize) -> Result<usize, Fault> {
        axis_index(axis, rank).ok_or_else(|| Fault::new(format!("axis {axis} is outside of {rank} axes")))
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

    /// `gradient` where `condition` holds, else zero, whatever it is there: a
    /// product with a mask would make no number of an infinite one.
    pub(super) fn only_where(&mut self, condition: &str, gradient: &str) -> String {
        let zero = self.num(0.0);
        self.either(condition, gradient, &zero)
    }

    /// Zero where `condition` holds, else `gradient`.
    pub(super) fn except_where(&mut self, condition: &str, gradient: &str) -> String {
        let zero = self.num(0.0);
        self.either(condition, &zero, gradient)
    }

    pub(super) fn either(&mut self, condition: &str, then: &str, other: &str) -> String {
        self.op("Where", &[condition, then, other], &[])
    }

    /// `x` as numbers of another type.
    pub(super) fn cast(&mut self, x: &str, dtype: DataType) -> String {
        self.op("Cast", &[x], &[("to", Attribute::Int(i64::from(dtype.to_onnx())))])
    }

    /// 1 above zero, -1 below it, else 0. Not by the operator Sign, which not
    /// every engine has right at zero.
    pub(super) fn sign(&mut self, x: &str) -> String {
        let dtype = self.dtype(x);
        let zero = self.num(0.0);
        let above = self.op("Greater", &[x, &zero], &[]);
        let below = self.op("Less", &[x, &zero], &[]);
        let (above, below) = (self.cast(&above, dtype), self.cast(&below, dtype));
        self.sub(&above, &below)
    }

    /// How many elements of `of` there are for each of `among`, as a number of
    /// the first output's type.
    pub(super) fn share(&mut self, of: &str, among: &str) -> String {
        let (all, parts) = (self.op("Size", &[of], &[]), self.op("Size", &[among], &[]));
        // Engines stop the process at a division of integers by zero.
        let one = self.out.int(1);
        let parts = self.op("Max", &[&parts, &one], &[]);
        let count = self.div(&all, &parts);
        self.cast(&count, self.dtype(self.y(0)))
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
        let dtype = self.types.get(like).and_then(|t| t.dtype).unwrap_or_else(|| self.dtype(self.y(0)));
        let shape = self.shape_of(like);
        self.filled(&shape, dtype, 0.0)
    }

    /// A tensor of this shape, which is a vector of sizes, of one number.
    pub(super) fn filled(&mut self, shape: &str, dtype: DataType, value: f64) -> String {
        let one = float(dtype, &[value]);
        let one = Tensor::new([1], one).expect("one element");
        self.op("ConstantOfShape", &[shape], &[("value", Attribute::Tensor(one))])
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

/// Numbers of a floating type.
pub(super) fn float(dtype: DataType, values: &[f64]) -> Elements {
    match dtype {
        DataType::F64 => Elements::F64(values.to_vec()),
        DataType::F16 => Elements::F16(values.iter().map(|&v| half::f16::from_f64(v)).collect()),
        DataType::BF16 => Elements::BF16(values.iter().map(|&v| half::bf16::from_f64(v)).collect()),
        _ => Elements::F32(values.iter().map(|&v| v as f32).collect()),
    }
}

/// A fixed size.
fn size(dim: &Dim) -> Option<i64> {
    dim.known().and_then(|n| i64::try_from(n).ok()).filter(|n| *n <= SIZE_MAX)
}

/// A shape as Reshape takes it: one free axis may be the rest.
fn reshape_target(shape: &[Dim]) -> Option<Vec<i64>> {
    let sizes: Vec<Option<i64>> = shape.iter().map(size).collect();
    let free = sizes.iter().filter(|s| s.is_none()).count();
    // A size of 0 would mean "as it was".
    (free <= 1 && !sizes.contains(&Some(0))).then(|| sizes.into_iter().map(|s| s.unwrap_or(-1)).collect())
}

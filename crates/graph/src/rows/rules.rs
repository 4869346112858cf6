//! What operators make of rows, by the specification of each. What isn't said
//! here is not known to keep them apart.

use super::{Class, Rows};
use crate::attributes::Attributes;
use crate::infer::axis_index;
use crate::onnx::NodeProto;
use crate::types::Dim;

/// Why a rule doesn't hold.
type Why = &'static str;

const MIXES: Why = "it mixes rows, or isn't known not to";
const NOT_THERE: Why = "its rows aren't where it keeps them apart";
const OTHERS: Why = "what it takes beside the rows differs with them";
const UNKNOWN: Why = "what it does along which axis is only known when it runs";

/// Element by element, with broadcasting between what it takes.
const ELEMENTWISE: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Div",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Where",
    "Xor",
];

/// Rows are the batch, axis 0 of the first input; the rest is weights.
const BATCHED: &[&str] = &[
    "AveragePool",
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "DepthToSpace",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "GroupNormalization",
    "InstanceNormalization",
    "LRN",
    "LpPool",
    "QLinearConv",
    "SpaceToDepth",
];

/// Along one axis, by default that one; every lane of it apart.
const ALONG: &[(&str, i64)] =
    &[("Concat", 0), ("CumSum", 0), ("LpNormalization", -1), ("Split", 0), ("TopK", -1), ("GatherElements", 0)];

const REDUCTIONS: &[&str] = &[
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
];

pub(super) struct Op<'o, 'm> {
    pub(super) rows: &'o Rows<'m>,
    pub(super) node: &'m NodeProto,
    pub(super) given: &'o [Option<Class>],
}

impl Op<'_, '_> {
    /// The class of each output.
    pub(super) fn classes(&self) -> Result<Vec<Class>, Why> {
        if !self.node.domain().is_empty() && self.node.domain() != "ai.onnx" {
            return Err(MIXES);
        }
        let kind = self.node.op_type();
        let one = |class: Result<Class, Why>| class.map(|class| vec![class; self.node.output.len()]);
        match kind {
            _ if ELEMENTWISE.contains(&kind) => one(self.elementwise()),
            _ if BATCHED.contains(&kind) => one(self.batched()),
            _ if REDUCTIONS.contains(&kind) => one(self.reduced()),
            _ if ALONG.iter().any(|(along, _)| *along == kind) => one(self.along()),
            "ArgMax" | "ArgMin" => one(self.arg()),
            "BatchNormalization" => one(self.batch_normalization()),
            "CastLike" => one(self.first()),
            "ConstantOfShape" => one(self.filled()),
            "DequantizeLinear" | "QuantizeLinear" => one(self.quantized()),
            "Dropout" => one(self.dropout()),
            "Expand" => one(self.expanded()),
            "Flatten" => one(self.flattened()),
            "GRU" | "LSTM" | "RNN" => self.recurrent(),
            "Gather" => one(self.gathered()),
            "Gemm" => one(self.gemm()),
            "Hardmax" | "LogSoftmax" | "Softmax" => one(self.softmax()),
            "LayerNormalization" | "RMSNormalization" => one(self.layer_normalization()),
            "MatMul" | "MatMulInteger" | "QLinearMatMul" => one(self.matmul()),
            "MaxPool" => one(self.max_pool()),
            "MeanVarianceNormalization" => one(self.mean_variance()),
            "OneHot" => one(self.one_hot()),
            "Pad" => one(self.padded()),
            "Tile" => one(self.first_with_fixed()),
            "Reshape" => one(self.reshaped()),
            "Resize" | "Upsample" => one(self.resized()),
            "Shape" => one(self.shape()),
            "Slice" => one(self.sliced()),
            "Squeeze" => one(self.squeezed()),
            "Transpose" => one(self.transposed()),
            "Trilu" => one(self.trilu()),
            "Unsqueeze" => one(self.unsqueezed()),
            _ => Err(MIXES),
        }
    }

    fn attributes(&self) -> Attributes<'_> {
        Attributes::of(self.node)
    }

    fn class(&self, input: usize) -> Option<Class> {
        self.given.get(input).copied().flatten()
    }

    fn input_shape(&self, input: usize) -> Option<&[Dim]> {
        self.rows.shape(self.node.input.get(input)?)
    }

    fn rank(&self, input: usize) -> Result<usize, Why> {
        self.input_shape(input).map(<[Dim]>::len).ok_or(UNKNOWN)
    }

    fn output_rank(&self) -> Result<usize, Why> {
        self.node.output.first().and_then(|name| self.rows.shape(name)).map(<[Dim]>::len).ok_or(UNKNOWN)
    }

    /// Where the rows of an input are.
    fn axis_of_rows(&self, input: usize) -> Result<usize, Why> {
        match self.class(input) {
            Some(Class::Rows(axis)) => Ok(axis),
            _ => Err(MIXES),
        }
    }

    /// Everything from input `first` on is the same whatever the rows.
    fn others_fixed(&self, first: usize) -> Result<(), Why> {
        let fixed = self.given.iter().skip(first).flatten().all(|class| *class == Class::Fixed);
        if fixed { Ok(()) } else { Err(OTHERS) }
    }

    fn axis(&self, axis: i64, rank: usize) -> Result<usize, Why> {
        axis_index(axis, rank).ok_or(UNKNOWN)
    }

    /// Integers of an attribute or, in later sets, of a constant input; `None`
    /// where nothing is said.
    fn ints(&self, attribute: &str, input: usize) -> Result<Option<Vec<i64>>, Why> {
        if let Some(ints) = self.attributes().ints(attribute) {
            return Ok(Some(ints.to_vec()));
        }
        match self.node.input.get(input).filter(|name| !name.is_empty()) {
            None => Ok(None),
            Some(name) => self.rows.ints(name).map(Some).ok_or(UNKNOWN),
        }
    }

    /// Axes of input 0, as positions.
    fn axes(&self, given: &[i64], rank: usize) -> Result<Vec<usize>, Why> {
        given.iter().map(|axis| self.axis(*axis, rank)).collect()
    }

    /// Where an axis of an input is among as many as the output has: they are
    /// laid beside each other from the last.
    fn aligned(&self, axis: usize, input: usize, out: usize) -> Result<usize, Why> {
        (axis + out).checked_sub(self.rank(input)?).ok_or(UNKNOWN)
    }

    fn first(&self) -> Result<Class, Why> {
        self.axis_of_rows(0).map(Class::Rows)
    }

    fn first_with_fixed(&self) -> Result<Class, Why> {
        self.others_fixed(1)?;
        self.first()
    }

    fn batched(&self) -> Result<Class, Why> {
        self.others_fixed(1)?;
        if self.axis_of_rows(0)? == 0 { Ok(Class::Rows(0)) } else { Err(NOT_THERE) }
    }

    /// Places of a second output count through the whole batch.
    fn max_pool(&self) -> Result<Class, Why> {
        if self.node.output.len() > 1 { Err(MIXES) } else { self.batched() }
    }

    fn elementwise(&self) -> Result<Class, Why> {
        let attributes = self.attributes();
        // Sets before 7 lay the second one along axes of their own.
        if attributes.get("broadcast").is_some() || (self.rows.opset < 7 && attributes.get("axis").is_some()) {
            return Err(UNKNOWN);
        }
        let out = self.output_rank()?;
        let mut at = None;
        for (input, class) in self.given.iter().enumerate() {
            match class {
                None | Some(Class::Fixed) => {}
                Some(Class::Rows(axis)) => {
                    let aligned = self.aligned(*axis, input, out)?;
                    if *at.get_or_insert(aligned) != aligned {
                        return Err(MIXES);
                    }
                }
                Some(Class::Sizes | Class::SizesBut(_)) => return Err(OTHERS),
            }
        }
        let rows = at.ok_or(MIXES)?;
        // What is the same for all rows has no axis of them, or one row for all.
        for input in (0..self.given.len()).filter(|input| self.class(*input) == Some(Class::Fixed)) {
            let shape = self.input_shape(input).ok_or(UNKNOWN)?;
            let own = (rows + shape.len()).checked_sub(out).and_then(|axis| shape.get(axis));
            if own.is_some_and(|dim| dim.known() != Some(1)) {
                return Err(MIXES);
            }
        }
        Ok(Class::Rows(rows))
    }

    fn along(&self) -> Result<Class, Why> {
        let kind = self.node.op_type();
        let default = ALONG.iter().find(|(along, _)| *along == kind).map_or(0, |(_, axis)| *axis);
        let rows = self.axis_of_rows(0)?;
        match kind {
            // Everything that lies behind each other, or is looked up beside it, has the rows.
            "Concat" | "GatherElements" if self.given.iter().any(|class| *class != Some(Class::Rows(rows))) => {
                return Err(OTHERS);
            }
            "Concat" | "GatherElements" => {}
            _ => self.others_fixed(1)?,
        }
        let axis = match kind {
            "CumSum" => self.ints("", 1)?.and_then(|axis| axis.first().copied()).ok_or(UNKNOWN)?,
            // Its first set had another default.
            "Concat" => self.attributes().int("axis").ok_or(UNKNOWN)?,
            _ => self.attributes().int_or("axis", default),
        };
        if self.axis(axis, self.rank(0)?)? == rows { Err(MIXES) } else { Ok(Class::Rows(rows)) }
    }

    fn reduced(&self) -> Result<Class, Why> {
        self.others_fixed(1)?;
        let (rows, rank) = (self.axis_of_rows(0)?, self.rank(0)?);
        let axes = self.ints("axes", 1)?.unwrap_or_default();
        if axes.is_empty() {
            return if self.attributes().flag("noop_with_empty_axes") { self.first() } else { Err(MIXES) };
        }
        let axes = self.axes(&axes, rank)?;
        self.without(rows, &axes, self.attributes().int_or("keepdims", 1) != 0)
    }

    fn arg(&self) -> Result<Class, Why> {
        let (rows, rank) = (self.axis_of_rows(0)?, self.rank(0)?);
        let axis = self.axis(self.attributes().int_or("axis", 0), rank)?;
        self.without(rows, &[axis], self.attributes().int_or("keepdims", 1) != 0)
    }

    /// Where rows are once other axes are gone, or of length one.
    fn without(&self, rows: usize, axes: &[usize], kept: bool) -> Result<Class, Why> {
        if axes.contains(&rows) {
            return Err(MIXES);
        }
        let before = axes.iter().filter(|axis| **axis < rows).count();
        Ok(Class::Rows(if kept { rows } else { rows - before }))
    }

    /// In training it takes means over the batch.
    fn batch_normalization(&self) -> Result<Class, Why> {
        let trains = self.attributes().flag("training_mode") || self.rows.opset < 7 || self.node.output.len() > 1;
        if trains { Err(MIXES) } else { self.batched() }
    }

    fn dropout(&self) -> Result<Class, Why> {
        let trains = self.rows.opset < 7 || self.node.input.get(2).is_some_and(|name| !name.is_empty());
        if trains || self.node.output.len() > 1 { Err(MIXES) } else { self.first_with_fixed() }
    }

    fn quantized(&self) -> Result<Class, Why> {
        let rows = self.axis_of_rows(0)?;
        self.others_fixed(1)?;
        let single = |shape: &[Dim]| shape.iter().all(|dim| dim.known() == Some(1)) && shape.len() < 2;
        if self.input_shape(1).is_some_and(single) {
            return Ok(Class::Rows(rows));
        }
        let list = self.rank(1)? == 1;
        let axis = self.axis(self.attributes().int_or("axis", 1), self.rank(0)?)?;
        if list && axis != rows { Ok(Class::Rows(rows)) } else { Err(MIXES) }
    }

    /// Before set 13 all axes from the one named are one.
    fn softmax(&self) -> Result<Class, Why> {
        let (rows, rank) = (self.axis_of_rows(0)?, self.rank(0)?);
        let old = self.rows.opset < 13;
        let axis = self.axis(self.attributes().int_or("axis", if old { 1 } else { -1 }), rank)?;
        let apart = if old { rows < axis } else { rows != axis };
        if apart { Ok(Class::Rows(rows)) } else { Err(MIXES) }
    }

    fn layer_normalization(&self) -> Result<Class, Why> {
        let (rows, rank) = (self.axis_of_rows(0)?, self.rank(0)?);
        self.others_fixed(1)?;
        let axis = self.axis(self.attributes().int_or("axis", -1), rank)?;
        if rows < axis && self.node.output.iter().skip(1).all(String::is_empty) {
            Ok(Class::Rows(rows))
        } else {
            Err(MIXES)
        }
    }

    fn mean_variance(&self) -> Result<Class, Why> {
        let rows = self.axis_of_rows(0)?;
        let axes = self.attributes().ints("axes").ok_or(MIXES)?.to_vec();
        let axes = self.axes(&axes, self.rank(0)?)?;
        self.without(rows, &axes, true)
    }

    fn matmul(&self) -> Result<Class, Why> {
        let out = self.output_rank()?;
        let (a, b) = match self.node.op_type() {
            "QLinearMatMul" => (0, 3),
            _ => (0, 1),
        };
        // Scales and zero points are the same for all rows.
        for input in (0..self.given.len()).filter(|input| *input != a && *input != b) {
            let single = self.input_shape(input).is_some_and(|s| s.iter().all(|dim| dim.known() == Some(1)));
            let absent = self.class(input).is_none();
            let of_columns = input > b && self.class(b) == Some(Class::Fixed) && self.rank(input).is_ok_and(|r| r == 1);
            let fixed = self.class(input) == Some(Class::Fixed);
            if !absent && !(fixed && (single || (of_columns && self.node.op_type() == "MatMulInteger" && input == 3))) {
                return Err(OTHERS);
            }
        }
        let place = |input: usize, axis: usize| -> Result<(usize, usize), Why> {
            let rank = self.rank(input)?;
            if rank < 2 { Err(MIXES) } else { Ok((self.aligned(axis, input, out)?, rank - axis)) }
        };
        match (self.class(a), self.class(b)) {
            // Rows of the product are those of the first factor, or of the batch.
            (Some(Class::Rows(axis)), Some(Class::Fixed)) => match place(a, axis)? {
                (at, back) if back >= 2 => Ok(Class::Rows(at)),
                _ => Err(MIXES),
            },
            (Some(Class::Fixed), Some(Class::Rows(axis))) => match place(b, axis)? {
                (at, back) if back > 2 => Ok(Class::Rows(at)),
                _ => Err(MIXES),
            },
            (Some(Class::Rows(of_a)), Some(Class::Rows(of_b))) => match (place(a, of_a)?, place(b, of_b)?) {
                (one, other) if one == other && one.1 > 2 => Ok(Class::Rows(one.0)),
                _ => Err(MIXES),
            },
            _ => Err(OTHERS),
        }
    }

    fn gemm(&self) -> Result<Class, Why> {
        if self.attributes().flag("transA") || self.axis_of_rows(0)? != 0 || self.class(1) != Some(Class::Fixed) {
            return Err(MIXES);
        }
        match self.class(2) {
            None | Some(Class::Fixed) => Ok(Class::Rows(0)),
            Some(Class::Rows(0)) if self.rank(2)? == 2 => Ok(Class::Rows(0)),
            _ => Err(OTHERS),
        }
    }

    fn shape(&self) -> Result<Class, Why> {
        let (rows, rank) = (self.axis_of_rows(0)? as i64, self.rank(0)? as i64);
        let place = |axis: i64| (if axis < 0 { axis.saturating_add(rank) } else { axis }).clamp(0, rank);
        let (start, end) = (place(self.attributes().int_or("start", 0)), place(self.attributes().int_or("end", rank)));
        if (start..end).contains(&rows) { Ok(Class::SizesBut((rows - start) as usize)) } else { Ok(Class::Fixed) }
    }

    /// Which of several sizes is taken.
    fn gathered(&self) -> Result<Class, Why> {
        match (self.class(0), self.class(1)) {
            (Some(Class::SizesBut(at)), Some(Class::Fixed)) => {
                let wanted = self.ints("", 1)?.ok_or(UNKNOWN)?;
                let count = self.input_shape(0).and_then(|s| s.first()?.known()).ok_or(UNKNOWN)?;
                let taken = |place: &i64| axis_index(*place, count as usize) == Some(at);
                Ok(if wanted.iter().any(taken) { Class::Sizes } else { Class::Fixed })
            }
            (Some(Class::Rows(rows)), Some(Class::Fixed)) => {
                let axis = self.axis(self.attributes().int_or("axis", 0), self.rank(0)?)?;
                let more = self.rank(1)?;
                match axis {
                    _ if axis == rows => Err(MIXES),
                    _ if axis < rows => Ok(Class::Rows(rows - 1 + more)),
                    _ => Ok(Class::Rows(rows)),
                }
            }
            (Some(Class::Fixed), Some(Class::Rows(rows))) => {
                let axis = self.axis(self.attributes().int_or("axis", 0), self.rank(0)?)?;
                Ok(Class::Rows(axis + rows))
            }
            _ => Err(OTHERS),
        }
    }

    fn sliced(&self) -> Result<Class, Why> {
        let rank = self.rank(0)?;
        if let Some(Class::SizesBut(at)) = self.class(0) {
            let (starts, ends) = (self.ints("starts", 1)?.ok_or(UNKNOWN)?, self.ints("ends", 2)?.ok_or(UNKNOWN)?);
            let steps = self.ints("", 4)?.unwrap_or_else(|| vec![1]);
            let count = self.input_shape(0).and_then(|s| s.first()?.known()).ok_or(UNKNOWN)? as i64;
            let ([start], [end], [1]) = (&starts[..], &ends[..], &steps[..]) else { return Err(UNKNOWN) };
            let place = |at: i64| (if at < 0 { at.saturating_add(count) } else { at }).clamp(0, count);
            let (start, end, at) = (place(*start), place(*end), at as i64);
            return Ok(if (start..end).contains(&at) { Class::SizesBut((at - start) as usize) } else { Class::Fixed });
        }
        let rows = self.axis_of_rows(0)?;
        self.others_fixed(1)?;
        let axes = match self.ints("axes", 3)? {
            Some(axes) => self.axes(&axes, rank)?,
            None => (0..self.ints("starts", 1)?.ok_or(UNKNOWN)?.len()).collect(),
        };
        self.without(rows, &axes, true)
    }

    /// What is added before the rows could be taken away behind them.
    fn padded(&self) -> Result<Class, Why> {
        self.others_fixed(1)?;
        let (rows, rank) = (self.axis_of_rows(0)?, self.rank(0)?);
        // Its first set named them otherwise.
        let pads = self.ints("pads", 1)?.ok_or(UNKNOWN)?;
        let axes = match self.ints("", 3)? {
            Some(axes) => self.axes(&axes, rank)?,
            None => (0..rank).collect(),
        };
        if pads.len() != 2 * axes.len() {
            return Err(UNKNOWN);
        }
        let padded = axes.iter().zip(pads.iter().zip(&pads[axes.len()..]));
        let moved = padded.filter(|(axis, _)| **axis == rows).any(|(_, (before, after))| (*before, *after) != (0, 0));
        if moved { Err(MIXES) } else { Ok(Class::Rows(rows)) }
    }

    fn flattened(&self) -> Result<Class, Why> {
        let axis = self.attributes().int_or("axis", 1);
        if self.axis_of_rows(0)? == 0 && axis == 1 { Ok(Class::Rows(0)) } else { Err(NOT_THERE) }
    }

    fn squeezed(&self) -> Result<Class, Why> {
        match self.class(0) {
            Some(Class::Rows(rows)) => {
                let axes = self.ints("axes", 1)?.ok_or(UNKNOWN)?;
                let axes = self.axes(&axes, self.rank(0)?)?;
                self.without(rows, &axes, false)
            }
            _ => Err(MIXES),
        }
    }

    fn unsqueezed(&self) -> Result<Class, Why> {
        let rows = self.axis_of_rows(0)?;
        let axes = self.ints("axes", 1)?.ok_or(UNKNOWN)?;
        let out = self.rank(0)? + axes.len();
        let added = self.axes(&axes, out)?;
        (0..out).filter(|axis| !added.contains(axis)).nth(rows).map(Class::Rows).ok_or(UNKNOWN)
    }

    fn transposed(&self) -> Result<Class, Why> {
        let rows = self.axis_of_rows(0)?;
        let permutation = self.attributes().permutation(self.rank(0)?).map_err(|_| UNKNOWN)?;
        permutation.iter().position(|from| *from == rows).map(Class::Rows).ok_or(UNKNOWN)
    }

    /// Whether what isn't known of the output's other axes can't depend on how
    /// many rows there are.
    fn rest_is_fixed(&self, sizes: Option<Class>, rows: usize) -> Result<(), Why> {
        let out = self.node.output.first().and_then(|name| self.rows.shape(name)).ok_or(UNKNOWN)?;
        let known = out.iter().enumerate().all(|(axis, dim)| axis == rows || *dim != Dim::Unknown);
        if known || sizes == Some(Class::Fixed) { Ok(()) } else { Err(UNKNOWN) }
    }

    /// Elements keep their order: as many rows as before are the same rows,
    /// where nothing before them changed.
    fn reshaped(&self) -> Result<Class, Why> {
        let rows = self.axis_of_rows(0)?;
        let sizes = self.class(1);
        if matches!(sizes, Some(Class::Rows(_))) {
            return Err(OTHERS);
        }
        let from = self.input_shape(0).ok_or(UNKNOWN)?;
        let to = self.node.output.first().and_then(|name| self.rows.shape(name)).ok_or(UNKNOWN)?;
        let before_known = |shape: &[Dim]| shape.get(..rows).is_some_and(|s| s.iter().all(|dim| dim.known().is_some()));
        if !before_known(from) || from.get(..rows) != to.get(..rows) {
            return Err(NOT_THERE);
        }
        self.rest_is_fixed(sizes, rows)?;
        Ok(Class::Rows(rows))
    }

    fn expanded(&self) -> Result<Class, Why> {
        let out = self.output_rank()?;
        let rows = match self.class(0) {
            Some(Class::Rows(axis)) => self.aligned(axis, 0, out)?,
            Some(Class::Fixed) => self.place_of_rows()?,
            _ => return Err(OTHERS),
        };
        if self.class(0) == Some(Class::Fixed) {
            // The one that is there stands for every row.
            let from = self.input_shape(0).ok_or(UNKNOWN)?;
            let own = (rows + from.len()).checked_sub(out).and_then(|axis| from.get(axis));
            if own.is_some_and(|dim| dim.known() != Some(1)) {
                return Err(MIXES);
            }
        }
        self.rest_is_fixed(self.class(1), rows)?;
        Ok(Class::Rows(rows))
    }

    fn filled(&self) -> Result<Class, Why> {
        let rows = self.place_of_rows()?;
        self.rest_is_fixed(self.class(0), rows)?;
        Ok(Class::Rows(rows))
    }

    /// The output's axis that is as long as there are rows.
    fn place_of_rows(&self) -> Result<usize, Why> {
        let out = self.node.output.first().and_then(|name| self.rows.shape(name)).ok_or(UNKNOWN)?;
        let rows = |dim: &Dim| matches!(dim, Dim::Symbol(symbol) if symbol == super::ROWS);
        out.iter().position(rows).ok_or(UNKNOWN)
    }

    fn resized(&self) -> Result<Class, Why> {
        let crops = self.attributes().text("coordinate_transformation_mode") == Some("tf_crop_and_resize");
        if crops || self.axis_of_rows(0)? != 0 {
            return Err(MIXES);
        }
        if self.given.iter().skip(1).flatten().any(|class| matches!(class, Class::Rows(_))) {
            return Err(OTHERS);
        }
        // Sizes may have rows at their place only.
        let sizes = self.given.iter().skip(1).flatten().find(|class| **class != Class::Fixed);
        self.rest_is_fixed(sizes.copied().or(Some(Class::Fixed)), 0)?;
        Ok(Class::Rows(0))
    }

    fn one_hot(&self) -> Result<Class, Why> {
        self.others_fixed(1)?;
        let rows = self.axis_of_rows(0)?;
        let axis = self.axis(self.attributes().int_or("axis", -1), self.rank(0)? + 1)?;
        Ok(Class::Rows(if axis <= rows { rows + 1 } else { rows }))
    }

    fn trilu(&self) -> Result<Class, Why> {
        self.others_fixed(1)?;
        let rows = self.axis_of_rows(0)?;
        if rows + 2 < self.rank(0)? { Ok(Class::Rows(rows)) } else { Err(MIXES) }
    }

    /// Every sequence of the batch apart, with states of its own.
    fn recurrent(&self) -> Result<Vec<Class>, Why> {
        let first = self.attributes().flag("layout");
        let batch = usize::from(!first);
        if self.axis_of_rows(0)? != batch {
            return Err(NOT_THERE);
        }
        // Weights, biases; lengths; initial states; peepholes.
        for input in 1..self.given.len() {
            let wanted = match input {
                4 => Class::Rows(0),
                5 | 6 => Class::Rows(batch),
                _ => Class::Fixed,
            };
            if self.class(input).is_some_and(|class| class != wanted) {
                return Err(OTHERS);
            }
        }
        let all = if first { 0 } else { 2 };
        Ok((0..self.node.output.len()).map(|output| Class::Rows(if output == 0 { all } else { batch })).collect())
    }
}

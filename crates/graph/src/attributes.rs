//! Attributes of nodes, read in one way by whoever needs them: shape
//! inference, gradients, costs, upgrades.
//!
//! A reader says what is given, and what the operators' specifications make
//! of it where that takes more than a look: defaults that depend on the number
//! of axes, permutations, padding. Start at [`Attributes`].

use std::collections::HashMap;

use crate::onnx::attribute_proto::AttributeType;
use crate::onnx::{AttributeProto, GraphProto, NodeProto, TensorProto};

/// Attributes that a function was called with, by name.
pub(crate) type Call<'a> = HashMap<&'a str, &'a AttributeProto>;

/// Attributes that make no sense, in words; said of the node by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unfit(pub(crate) String);

/// The attributes of one node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a> {
    node: &'a NodeProto,
    call: Option<&'a Call<'a>>,
}

impl<'a> Attributes<'a> {
    pub(crate) fn of(node: &'a NodeProto) -> Self {
        Self { node, call: None }
    }

    /// Of a node within a function: references lead to what it was called with.
    pub(crate) fn within(node: &'a NodeProto, call: &'a Call<'a>) -> Self {
        Self { node, call: Some(call) }
    }

    pub(crate) fn get(self, name: &str) -> Option<&'a AttributeProto> {
        let found = self.node.attribute.iter().find(|a| a.name() == name)?;
        if found.ref_attr_name().is_empty() { Some(found) } else { self.call?.get(found.ref_attr_name()).copied() }
    }

    /// Writers leave out a number that is zero: then its type says that it is
    /// one.
    pub(crate) fn int(self, name: &str) -> Option<i64> {
        self.get(name).filter(|a| a.has_i() || is(a, AttributeType::INT)).map(|a| a.i())
    }

    pub(crate) fn int_or(self, name: &str, default: i64) -> i64 {
        self.int(name).unwrap_or(default)
    }

    pub(crate) fn flag(self, name: &str) -> bool {
        self.int_or(name, 0) != 0
    }

    pub(crate) fn float(self, name: &str) -> Option<f32> {
        self.get(name).filter(|a| a.has_f() || is(a, AttributeType::FLOAT)).map(|a| a.f())
    }

    pub(crate) fn float_or(self, name: &str, default: f32) -> f32 {
        self.float(name).unwrap_or(default)
    }

    /// A list with something in it: exporters write an empty one for what they
    /// leave out, and engines take it so.
    pub(crate) fn ints(self, name: &str) -> Option<&'a [i64]> {
        self.get(name).map(|a| a.ints.as_slice()).filter(|ints| !ints.is_empty())
    }

    pub(crate) fn text(self, name: &str) -> Option<&'a str> {
        let given = self.get(name).filter(|a| a.has_s() || is(a, AttributeType::STRING));
        given.and_then(|a| std::str::from_utf8(a.s()).ok())
    }

    /// A text that is one of those the operator knows; the first of them, its
    /// default, where nothing or nothing at all is said.
    pub(crate) fn choice(self, name: &str, known: &[&'static str]) -> Result<&'static str, Unfit> {
        match self.text(name) {
            None | Some("") => Ok(known.first().copied().unwrap_or_default()),
            Some(text) => known
                .iter()
                .copied()
                .find(|k| *k == text)
                .ok_or_else(|| Unfit(format!("{name} `{text}` is unknown; there are {}", known.join(", ")))),
        }
    }

    pub(crate) fn tensor(self, name: &str) -> Option<&'a TensorProto> {
        self.get(name).and_then(|a| a.t.as_ref())
    }

    pub(crate) fn graph(self, name: &str) -> Option<&'a GraphProto> {
        self.get(name).and_then(|a| a.g.as_ref())
    }

    /// A number that counts something, so above 0.
    pub(crate) fn positive_or(self, name: &str, default: u64) -> Result<u64, Unfit> {
        let Some(value) = self.int(name) else { return Ok(default) };
        u64::try_from(value).ok().filter(|n| *n > 0).ok_or_else(|| Unfit(format!("{name} {value} is not positive")))
    }

    /// Which axis of the input each axis of the output is: what `perm` says,
    /// else all of them the other way round.
    pub(crate) fn permutation(self, rank: usize) -> Result<Vec<usize>, Unfit> {
        let Some(perm) = self.ints("perm") else { return Ok((0..rank).rev().collect()) };
        let wrong = || Unfit(format!("perm {perm:?} is no permutation of {rank} axes"));
        let axis = |p: &i64| if *p < 0 { p.checked_add(rank as i64) } else { Some(*p) };
        let axes: Option<Vec<usize>> = perm.iter().map(|p| usize::try_from(axis(p)?).ok()).collect();
        let axes = axes.ok_or_else(wrong)?;
        let mut seen = axes.clone();
        seen.sort_unstable();
        if seen.into_iter().eq(0..rank) { Ok(axes) } else { Err(wrong()) }
    }

    /// How a window of `axes` spatial axes slides.
    pub(crate) fn sliding(self, axes: usize) -> Result<Sliding, Unfit> {
        let each = |name: &str| match self.ints(name) {
            None => Ok(vec![1; axes]),
            Some(v) if v.len() == axes && v.iter().all(|n| *n > 0) => Ok(v.iter().map(|n| *n as u64).collect()),
            Some(v) => Err(Unfit(format!("{name} {v:?} are not {axes} positive numbers"))),
        };
        let pads = match self.ints("pads") {
            None => vec![0; 2 * axes],
            Some(v) if v.len() == 2 * axes => v.to_vec(),
            Some(v) => return Err(Unfit(format!("pads {v:?} are not two for each of {axes} axes"))),
        };
        let (auto, pads) = match self.choice("auto_pad", &["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])? {
            "SAME_UPPER" => (Auto::SameUpper, vec![0; 2 * axes]),
            "SAME_LOWER" => (Auto::SameLower, vec![0; 2 * axes]),
            "VALID" => (Auto::Given, vec![0; 2 * axes]),
            _ => (Auto::Given, pads),
        };
        Ok(Sliding { strides: each("strides")?, dilations: each("dilations")?, pads, auto })
    }

    /// What `output_padding` adds behind each axis of a transposed convolution.
    pub(crate) fn output_padding(self, axes: usize) -> Result<Vec<i64>, Unfit> {
        match self.ints("output_padding") {
            None => Ok(vec![0; axes]),
            Some(v) if v.len() == axes && v.iter().all(|n| *n >= 0) => Ok(v.to_vec()),
            Some(v) => Err(Unfit(format!("output_padding {v:?} are not {axes} numbers of at least 0"))),
        }
    }

    /// Sizes that a transposed convolution is told to give its spatial axes.
    pub(crate) fn output_shape(self, axes: usize) -> Option<&'a [i64]> {
        // Some exporters list batch and channels too.
        self.ints("output_shape").and_then(|sizes| sizes.get(sizes.len().checked_sub(axes)?..))
    }
}

fn is(attribute: &AttributeProto, kind: AttributeType) -> bool {
    attribute.type_.is_some_and(|t| t == kind as i32)
}

/// How a window slides over spatial axes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sliding {
    /// At least 1 each.
    pub(crate) strides: Vec<u64>,
    /// At least 1 each.
    pub(crate) dilations: Vec<u64>,
    /// Before each axis, then behind each; none where [`Auto`] decides.
    pub(crate) pads: Vec<i64>,
    pub(crate) auto: Auto,
}

/// Who says how much padding there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Auto {
    /// The attributes.
    Given,
    /// As much as makes the output the input divided by the stride; the odd
    /// one behind.
    SameUpper,
    /// The same, the odd one before.
    SameLower,
}

impl Auto {
    pub(crate) fn is_same(self) -> bool {
        self != Self::Given
    }

    /// A total of padding as what is before and what is behind.
    pub(crate) fn divided(self, total: i64) -> (i64, i64) {
        let less = total / 2;
        if self == Self::SameUpper { (less, total - less) } else { (total - less, less) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emit::{Attribute, node};

    fn with(attributes: &[(&str, Attribute)]) -> NodeProto {
        node("Conv", &["x", "w"], &["y"], attributes)
    }

    #[test]
    fn empty_lists_are_as_if_left_out() {
        let empty: Vec<(&str, Attribute)> = ["strides", "dilations", "pads", "output_padding", "perm"]
            .map(|name| (name, Attribute::Ints(vec![])))
            .into();
        let (empty, bare) = (with(&empty), with(&[]));
        let (empty, bare) = (Attributes::of(&empty), Attributes::of(&bare));
        assert_eq!(empty.sliding(2), bare.sliding(2));
        assert_eq!(empty.output_padding(2), Ok(vec![0, 0]));
        assert_eq!(empty.permutation(3), Ok(vec![2, 1, 0]));
    }

    #[test]
    fn a_number_that_a_writer_left_out_is_zero() {
        let mut node = with(&[("keepdims", Attribute::Int(0)), ("alpha", Attribute::Float(0.0))]);
        (node.attribute[0].i, node.attribute[1].f) = (None, None);
        assert_eq!(Attributes::of(&node).int_or("keepdims", 1), 0);
        assert_eq!(Attributes::of(&node).float_or("alpha", 0.2), 0.0);
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let said = |name: &'static str, values: &[i64]| {
            let node = with(&[(name, Attribute::Ints(values.to_vec()))]);
            let read = Attributes::of(&node);
            let all = [read.sliding(2).err(), read.permutation(2).err(), read.output_padding(2).err()];
            all.into_iter().flatten().map(|u| u.0).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(said("strides", &[1, 0]), "strides [1, 0] are not 2 positive numbers");
        assert_eq!(said("pads", &[1, 1]), "pads [1, 1] are not two for each of 2 axes");
        assert_eq!(said("perm", &[0, 0]), "perm [0, 0] is no permutation of 2 axes");
        assert_eq!(said("perm", &[0, i64::MIN]), format!("perm [0, {}] is no permutation of 2 axes", i64::MIN));
        assert_eq!(said("output_padding", &[1]), "output_padding [1] are not 2 numbers of at least 0");
    }
}

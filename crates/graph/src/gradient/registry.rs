//! The table of gradient rules. A new operator is one entry in its family's
//! `RULES`; a new family is one file and one line here.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::context::Rule;
use crate::onnx::NodeProto;

pub(super) type Family = &'static [(&'static str, Rule)];

/// Families of the default domain.
const FAMILIES: &[Family] = &[
    super::arithmetic::RULES,
    super::activation::RULES,
    super::matmul::RULES,
    super::conv::RULES,
    super::pool::RULES,
    super::norm::RULES,
    super::reduce::RULES,
    super::layout::RULES,
    super::select::RULES,
    super::recurrent::RULES,
    super::quantise::RULES,
];

/// Operators of ONNX Runtime's own domain that are those of the default one.
const ALIASES: &[&str] = &["QuantizeLinear", "DequantizeLinear"];

/// Operators whose results don't change, or jump, with their inputs: nothing
/// flows back through them.
const FLAT: &[&str] = &[
    "And",
    "ArgMax",
    "ArgMin",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Ceil",
    "ConstantOfShape",
    "Equal",
    "EyeLike",
    "Floor",
    "Greater",
    "GreaterOrEqual",
    "IsInf",
    "IsNaN",
    "Less",
    "LessOrEqual",
    "NonZero",
    "Not",
    "OneHot",
    "Or",
    "RandomNormalLike",
    "RandomUniformLike",
    "Round",
    "Shape",
    "Sign",
    "Size",
    "Xor",
];

static RULES: LazyLock<HashMap<&'static str, Rule>> =
    LazyLock::new(|| FAMILIES.iter().flat_map(|rules| rules.iter().copied()).collect());

/// The rule of an operator, if there is one.
pub(super) fn rule(domain: &str, operator: &str) -> Option<Rule> {
    let known = is_default(domain) || domain == "com.microsoft" && ALIASES.contains(&operator);
    known.then(|| RULES.get(operator).copied()).flatten()
}

/// Whether a domain is ONNX's own, which has two names.
pub(super) fn is_default(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

/// Whether a node makes integers that stand for the numbers it reads.
pub(super) fn quantises(node: &NodeProto) -> bool {
    rule(node.domain(), node.op_type()).is_some()
        && matches!(node.op_type(), "QuantizeLinear" | "DynamicQuantizeLinear")
}

/// Whether nothing flows back through an operator.
pub(super) fn is_flat(domain: &str, operator: &str) -> bool {
    is_default(domain) && FLAT.contains(&operator)
}

/// Operators with a rule, sorted.
pub(super) fn operators() -> Vec<&'static str> {
    let mut all: Vec<_> = RULES.keys().copied().collect();
    all.sort_unstable();
    all
}

//! The table of rules. A new operator is one entry in its family's `RULES`;
//! a new family is one file and one line here.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::op::Rule;

type Family = (&'static str, &'static [(&'static str, Rule)]);

/// Families by operator domain; `""` is the default domain.
const FAMILIES: &[Family] = &[
    ("", super::elementwise::RULES),
    ("", super::shape::RULES),
    ("", super::join::RULES),
    ("", super::gather::RULES),
    ("", super::conv::RULES),
    ("", super::pool::RULES),
    ("", super::matmul::RULES),
    ("", super::reduce::RULES),
    ("", super::norm::RULES),
    ("", super::resize::RULES),
    ("", super::generate::RULES),
    ("", super::recurrent::RULES),
    ("", super::quantize::RULES),
    ("", super::control::RULES),
    ("", super::sequence::RULES),
    ("", super::attention::RULES),
    ("", super::signal::RULES),
    ("", super::text::RULES),
    ("ai.onnx.preview", super::attention::PREVIEW),
    ("ai.onnx.ml", super::classic::RULES),
    ("ai.onnx.preview.training", super::classic::TRAINING),
    ("com.microsoft", super::contrib::RULES),
    ("com.microsoft", super::quantize::RULES),
    ("com.microsoft", super::recurrent::CONTRIB),
    ("com.microsoft.nchwc", super::contrib::BLOCKED),
];

static RULES: LazyLock<HashMap<(&'static str, &'static str), Rule>> = LazyLock::new(|| {
    FAMILIES.iter().flat_map(|(domain, rules)| rules.iter().map(|(name, rule)| ((*domain, *name), *rule))).collect()
});

/// The rule of an operator, if there is one.
pub(super) fn rule(domain: &str, name: &str) -> Option<Rule> {
    RULES.get(&(domain, name)).copied()
}

/// Operators with a rule, as (domain, name), sorted.
pub(super) fn operators() -> Vec<(&'static str, &'static str)> {
    let mut all: Vec<_> = RULES.keys().copied().collect();
    all.sort_unstable();
    all
}

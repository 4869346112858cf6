//! Recurrent layers.

use super::registry::Family;

pub(super) const RULES: Family = &[];

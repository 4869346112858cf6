//! What exporters do to a model's weights, and how that is told from a file.
//!
//! A model comes here as PyTorch's exporters (the one over traces, and the
//! newer one over exported programs), tf2onnx or others wrote it. What is known
//! of their ways is here and nowhere else:
//!
//! - [`notes`]: what they note of constants, in metadata or by a name alone.
//! - [`names`]: how they name parameters, constants, and what they computed.
//! - [`stated`]: the architecture's constants are Constant nodes, weights are
//!   initialisers.
//! - [`neutral`]: layers without weights get scales of ones and biases of zeros.
//! - [`untie`]: parameters that start alike are written once.
//! - [`copies`]: weights that were transposed, reshaped or measured when
//!   constants were folded.
//! - [`lost`]: parameters that are in the file no more, and how to export a
//!   model that has them.
//!
//! What operators learn, whoever wrote them, is in [`crate::weights`].

mod copies;
mod lost;
mod names;
mod neutral;
mod notes;
mod stated;
mod untie;

pub(crate) use copies::Copies;
pub(crate) use lost::lost;
pub(crate) use neutral::neutral;
pub(crate) use notes::{is_noted, is_own, noted};
pub(crate) use stated::Stated;
pub(crate) use untie::untied;

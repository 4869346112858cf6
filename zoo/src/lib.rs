//! Well-known architectures with seeded random weights, as ONNX models in the
//! shape that common exporters give them. To try things on, for tests and
//! benchmarks: layer shapes, parameters and multiply-adds are the published
//! ones, the answers mean nothing.
//!
//! Never executes a graph. Start at [`MODELS`] or a function such as
//! [`mobilenet_v2`]; [`build::Builder`] makes new ones, [`quantize`] and
//! [`half`] turn them into int8 and fp16.

#![forbid(unsafe_code)]

pub mod build;
pub mod half;
pub mod quantize;

mod bert;
mod mobilenet;
mod resnet;
mod small;
mod training;
mod unet;
mod vit;

pub use bert::minilm;
pub use mobilenet::mobilenet_v2;
pub use resnet::{resnet18, resnet18_small, resnet50};
pub use small::{lenet, lstm, mlp};
pub use training::{mlp_wide, mobilenet_v2_small, text_classifier};
pub use unet::unet_small;
pub use vit::vit_tiny;

use tierline_graph::Model;

/// What may differ between two copies of an architecture.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Batch normalisation folded into the convolutions, or kept.
    pub bn: Bn,
    /// Size of the batch axis; `None` leaves it free, with the name `batch`.
    pub batch: Batch,
    /// Height and width of pictures, where the architecture takes any;
    /// `None` for the published size.
    pub image: Option<u64>,
    /// Where the weights come from: the same seed gives the same bytes.
    pub seed: u64,
}

/// What becomes of batch normalisation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Bn {
    /// Folded into the convolution before it, as exporters for inference do.
    #[default]
    Folded,
    /// Kept as BatchNormalization nodes.
    Kept,
}

/// The batch axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// A fixed size.
    Fixed(u64),
    /// Free, with the name `batch`.
    Free,
}

impl Default for Batch {
    fn default() -> Self {
        Self::Fixed(1)
    }
}

impl std::fmt::Display for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Free => f.write_str("batch"),
        }
    }
}

/// An architecture: its name, and what builds it.
pub type Entry = (&'static str, fn(&Options) -> Model);

/// Every architecture of the zoo.
pub const MODELS: &[Entry] = &[
    ("mlp", mlp),
    ("lenet", lenet),
    ("lstm", lstm),
    ("unet_small", unet_small),
    ("mobilenet_v2", mobilenet_v2),
    ("resnet18", resnet18),
    ("resnet50", resnet50),
    ("vit_tiny", vit_tiny),
    ("minilm", minilm),
];

/// Architectures in the sizes at which training is measured, and the batch.
pub const TRAINED: &[(Entry, u64)] = &[
    (("mlp_wide", mlp_wide), 64),
    (("lenet", lenet), 64),
    (("resnet18_small", resnet18_small), 32),
    (("mobilenet_v2_small", mobilenet_v2_small), 16),
    (("text_classifier", text_classifier), 16),
];

/// The architecture of this name.
#[must_use]
pub fn by_name(name: &str, options: &Options) -> Option<Model> {
    MODELS
        .iter()
        .chain(TRAINED.iter().map(|(entry, _)| entry))
        .find(|(n, _)| *n == name)
        .map(|(_, build)| build(options))
}

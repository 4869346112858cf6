//! ONNX models as graphs: load, check, infer shapes, cost, cut, slice,
//! rewrite, save. Never executes a graph, and has no unsafe code.
//!
//! Start at [`Model`], then [`cuts`](mod@cuts), [`slice`](mod@slice) and
//! [`rewrite`].

#![forbid(unsafe_code)]

pub mod bottleneck;
pub mod constant;
pub mod cost;
pub mod cuts;
pub mod emit;
pub mod error;
pub mod exits;
pub mod fold;
pub mod gradient;
pub mod index;
pub mod infer;
pub mod kernels;
pub mod memory;
pub mod model;
pub mod profile;
pub mod rewrite;
pub mod rows;
pub mod slice;
pub mod step;
pub mod tensor;
pub mod types;
pub mod upgrade;
mod weights;

mod attributes;
mod blocked;
mod check;
mod exporter;
mod external;
mod inline;
mod lift;
mod normal;
mod plain;

/// ONNX messages, generated from `proto/onnx.proto`.
#[allow(missing_docs, clippy::all)]
#[rustfmt::skip]
pub mod onnx;

pub use error::LoadError;
pub use infer::{InferError, Types, infer_computed_types, infer_types, infer_types_of, infer_types_with};
pub use kernels::Kernels;
pub use model::Model;
pub use tensor::{DataType, Elements, Tensor, TensorError};
pub use types::{Dim, ValueInfo};

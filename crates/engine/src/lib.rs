//! Runs ONNX graphs: one small trait, two engines behind it, and the profiler
//! that times fused segments on this device.
//!
//! Knows nothing of networks, plans or codecs. Start at [`Engine`] and
//! [`discover`](fn@discover); then [`profiler`].
//!
//! - `rten` is pure Rust and always there.
//! - ONNX Runtime is a shared library, loaded when it is found; it is faster
//!   and takes more element types.
//!
//! What an engine is known to get wrong is refused at load (`refuse.rs`),
//! never run.

#![deny(unsafe_op_in_unsafe_fn)]

mod adapt;
mod apart;
mod bounds;
mod defaults;
mod discover;
mod error;
mod evaluate;
mod inputs;
mod kernels;
mod known;
mod library;
mod memory;
mod options;
mod ort;
mod overflow;
pub mod profiler;
mod refuse;
mod rten;
mod sizes;
mod stateful;
mod stop;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tierline_graph::{Model, Tensor, ValueInfo};

pub use apart::{Apart, apart, serve};
pub use discover::{CandidateState, Choice, Considered, Discovered, Search, discover};
pub use error::EngineError;
pub use evaluate::Evaluator;
pub use memory::give_back_memory;
pub use options::{LoadOptions, Provider, ProviderError, ProviderKind};
pub use stateful::{StateSlot, Stateful};
pub use stop::{PullOnDrop, Stop};

/// Something that loads ONNX models.
pub trait Engine: Send + Sync {
    /// `rten` or `onnxruntime`.
    fn name(&self) -> &'static str;

    /// The engine's own version, as it states it.
    fn version(&self) -> String;

    /// Operators of [`tierline_graph::kernels::DOMAIN`] that it has.
    fn kernels(&self) -> &'static [&'static str] {
        &[]
    }

    /// The shared library it is, where it is one.
    fn library(&self) -> Option<PathBuf> {
        None
    }

    /// Whether its runs can be stopped, and fail rather than take the process
    /// with them when memory lacks.
    fn is_stoppable(&self) -> bool {
        false
    }

    /// Prepares a model to run, unless `stop` ends it earlier. An engine that
    /// isn't [stoppable](Engine::is_stoppable) only looks before it begins.
    ///
    /// # Errors
    /// [`EngineError::Refused`] when the engine can't run the model or is
    /// known to get it wrong; [`EngineError::ProviderUnavailable`];
    /// [`EngineError::Stopped`].
    fn load_until(&self, model: &Model, options: &LoadOptions, stop: &Stop) -> Result<Box<dyn Session>, EngineError>;

    /// Prepares a model to run.
    ///
    /// # Errors
    /// As [`Engine::load_until`].
    fn load(&self, model: &Model, options: &LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        self.load_until(model, options, &Stop::never())
    }

    /// Prepares a model with state, such as a training step: `state` is given
    /// in the order of `slots`, and moves on with every run.
    ///
    /// # Errors
    /// As [`Engine::load`]; also when there isn't one tensor for each slot.
    fn load_stateful(
        &self,
        model: &Model,
        options: &LoadOptions,
        slots: &[StateSlot],
        state: Vec<Tensor>,
    ) -> Result<Box<dyn Stateful>, EngineError> {
        Ok(Box::new(stateful::Swapped::new(self.load(model, options)?, slots, state)?))
    }
}

/// A model ready to run.
pub trait Session: Send {
    /// The inputs to give, as the model declares them.
    fn inputs(&self) -> &[ValueInfo];

    /// The outputs, in the model's order.
    fn outputs(&self) -> &[ValueInfo];

    /// Runs the model into `outputs`, in the model's order, unless `stop` ends
    /// it earlier. Tensors already there lend their buffers where type and shape
    /// fit, so a caller that passes the same vector again allocates nothing.
    ///
    /// # Errors
    /// An input that is missing, unknown, or of another type or shape; a
    /// failure or panic of the engine; [`EngineError::Stopped`]. `outputs` is
    /// then unspecified; after [`EngineError::is_last`] the session is to be
    /// loaded anew.
    fn run_until(
        &mut self,
        inputs: &[(&str, &Tensor)],
        outputs: &mut Vec<Tensor>,
        stop: &Stop,
    ) -> Result<(), EngineError>;

    /// Runs the model into `outputs`, however long it takes.
    ///
    /// # Errors
    /// As [`Session::run_until`].
    fn run_into(&mut self, inputs: &[(&str, &Tensor)], outputs: &mut Vec<Tensor>) -> Result<(), EngineError> {
        self.run_until(inputs, outputs, &Stop::never())
    }

    /// Runs the model; outputs in the model's order.
    ///
    /// # Errors
    /// As [`Session::run_into`].
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EngineError> {
        let mut outputs = Vec::with_capacity(self.outputs().len());
        self.run_into(inputs, &mut outputs)?;
        Ok(outputs)
    }

    /// Bytes of the model that the session keeps beside what the engine made
    /// of it.
    fn kept_bytes(&self) -> u64 {
        0
    }

    /// What the caller should know about how the model was loaded, such as an
    /// execution provider that wasn't available.
    fn notes(&self) -> &[String] {
        &[]
    }
}

/// The embedded engine; always available.
#[must_use]
pub fn rten() -> Arc<dyn Engine> {
    Arc::new(rten::Rten)
}

/// ONNX Runtime, loaded from `path` (the library, or a folder that holds it),
/// or found as [`discover`](fn@discover) does.
///
/// # Errors
/// When there is no usable library; never panics.
pub fn onnxruntime(path: Option<&Path>) -> Result<Arc<dyn Engine>, EngineError> {
    match path {
        Some(path) => ort::engine(path),
        None => discover::onnxruntime(&Search::default()),
    }
}

/// ONNX Runtime's environment, once it is loaded. A process has only one; the
/// benchmarks call the runtime directly in it, beside [`Session::run`].
#[doc(hidden)]
#[must_use]
pub fn onnxruntime_environment() -> Option<::ort::environment::Environment> {
    ort::environment()
}

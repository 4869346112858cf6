//! Why an engine can't be had, can't load a model, or can't run it.

use std::path::PathBuf;

use tierline_graph::DataType;

/// Why an engine refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No ONNX Runtime library where it was looked for.
    #[error(
        "no ONNX Runtime library found ({}); `pip install onnxruntime` is enough where its folder is among \
         these; elsewhere set ORT_DYLIB_PATH to its capi/libonnxruntime.so.*, or use the embedded engine `rten`",
        looked(.tried)
    )]
    LibraryMissing {
        /// The places searched.
        tried: Vec<PathBuf>,
    },
    /// The library is there but can't be used.
    #[error(
        "cannot use the ONNX Runtime library {path:?}: {reason}; install one with `pip install onnxruntime` (1.{minor} \
         or newer) and set ORT_DYLIB_PATH to its capi/libonnxruntime.so.*",
        minor = crate::library::MINOR_MIN
    )]
    LibraryUnusable {
        /// The library.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// One process holds one ONNX Runtime.
    #[error("this process already runs the ONNX Runtime library {loaded:?}; restart it to use {requested:?}")]
    LibraryLoaded {
        /// The library in use.
        loaded: PathBuf,
        /// The other one asked for.
        requested: PathBuf,
    },
    /// A required execution provider isn't there.
    #[error(
        "execution provider `{provider}` is required but not available: {reason}; install an ONNX Runtime built with \
         it, or drop `required` to fall back to the CPU"
    )]
    ProviderUnavailable {
        /// The provider.
        provider: String,
        /// What the engine said.
        reason: String,
    },
    /// The engine doesn't run this model, or is known to run it wrongly.
    #[error("{engine} refuses the model{}: {reason}", at_node(.node))]
    Refused {
        /// The engine.
        engine: &'static str,
        /// The node it is about, if it is about one.
        node: Option<String>,
        /// Why.
        reason: String,
    },
    /// An input that the model needs is missing.
    #[error("input `{name}` is missing; the model takes {}", names(.inputs))]
    MissingInput {
        /// The missing input.
        name: String,
        /// All inputs of the model.
        inputs: Vec<String>,
    },
    /// An input that the model doesn't have.
    #[error("the model has no input `{name}`; it takes {}", names(.inputs))]
    ExtraInput {
        /// The unknown input.
        name: String,
        /// All inputs of the model.
        inputs: Vec<String>,
    },
    /// The same input was given twice.
    #[error("input `{name}` is given twice")]
    DuplicateInput {
        /// The input.
        name: String,
    },
    /// An input of another element type.
    #[error("input `{name}` has element type {given}; the model takes {expected}")]
    InputType {
        /// The input.
        name: String,
        /// The model's type.
        expected: DataType,
        /// The caller's type.
        given: DataType,
    },
    /// An input of another shape.
    #[error("input `{name}` has shape {given:?}; the model takes {expected}")]
    InputShape {
        /// The input.
        name: String,
        /// The model's shape, symbols included.
        expected: String,
        /// The caller's shape.
        given: Vec<usize>,
    },
    /// A value that the engine can't hold.
    #[error("input `{name}` holds {value} at element {index}, which {engine} cannot hold: {reason}")]
    InputValue {
        /// The input.
        name: String,
        /// Position of the offending element, row-major.
        index: usize,
        /// The offending element.
        value: String,
        /// The engine.
        engine: &'static str,
        /// Why it can't.
        reason: &'static str,
    },
    /// The engine made an output of another type than the model declares.
    #[error("{engine} made output `{name}` as {given}, the model declares {expected}; run it on another engine")]
    OutputType {
        /// The engine.
        engine: &'static str,
        /// The output.
        name: String,
        /// The declared type.
        expected: String,
        /// The type made.
        given: String,
    },
    /// The engine failed while running.
    #[error("{engine} failed while running the model: {reason}")]
    Run {
        /// The engine.
        engine: &'static str,
        /// What it said.
        reason: String,
    },
    /// There isn't the memory for it.
    #[error("{engine} does not run the model: {reason}; give smaller inputs, or run it where there is more memory")]
    Memory {
        /// The engine.
        engine: &'static str,
        /// What takes how much.
        reason: String,
    },
    /// The engine panicked; the process goes on.
    #[error("{engine} panicked while {during}: {message}")]
    Panicked {
        /// The engine.
        engine: &'static str,
        /// What it was doing.
        during: &'static str,
        /// The panic's message.
        message: String,
    },
    /// It was to end before it was done.
    #[error("{engine} was stopped after {after:.1?}: its time was over")]
    Stopped {
        /// The engine.
        engine: &'static str,
        /// How long it had run.
        after: std::time::Duration,
    },
    /// The process in which it ran is no more.
    #[error("the process in which {engine} ran the model is gone: {how}")]
    Ended {
        /// The engine.
        engine: &'static str,
        /// What is known of the end.
        how: String,
    },
    /// The model can't be cut or saved as asked.
    #[error("cannot prepare the model for the engine: {reason}")]
    Prepare {
        /// What the graph said.
        reason: String,
    },
}

impl EngineError {
    /// Whether a session that said this is to be loaded anew before it runs
    /// again.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Panicked { .. } | Self::Stopped { .. } | Self::Ended { .. })
    }
}

fn names(names: &[String]) -> String {
    if names.is_empty() {
        return "no inputs".to_owned();
    }
    /// Old exporters list every weight as an input.
    const SHOWN_MAX: usize = 8;
    let shown = names.iter().take(SHOWN_MAX).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn looked(tried: &[PathBuf]) -> String {
    if tried.is_empty() {
        return "nowhere was searched".to_owned();
    }
    format!("looked in {}", tried.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))
}

fn at_node(node: &Option<String>) -> String {
    node.as_ref().map(|n| format!(" at node `{n}`")).unwrap_or_default()
}

/// Runs `f`, turning a panic of the engine into an error: no node may abort
/// because of a model. (A build with `panic = "abort"` can't.)
pub(crate) fn guarded<T>(
    engine: &'static str,
    during: &'static str,
    f: impl FnOnce() -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    // A session that panicked may hold a half-written buffer of its own; every
    // run overwrites all of them before it reads them.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        Err(EngineError::Panicked { engine, during, message })
    })
}

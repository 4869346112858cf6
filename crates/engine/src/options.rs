//! How a model is loaded: threads, optimisation, execution providers.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How to load a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// Threads within an operator; 0 takes every core and shares one pool
    /// between all sessions of the process.
    pub threads: usize,
    /// Execution providers of ONNX Runtime, most wanted first; the CPU takes
    /// what they leave. rten only has the CPU.
    pub providers: Vec<Provider>,
    /// Whether the engine may fuse and rewrite the graph.
    pub optimize: bool,
    /// Whether idle threads of ONNX Runtime may busy-wait for the next
    /// operator: faster alone, slower where several processes share cores.
    pub spin: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { threads: 0, providers: Vec::new(), optimize: true, spin: true }
    }
}

impl LoadOptions {
    /// Defaults with this many threads; 0 takes every core.
    #[must_use]
    pub fn with_threads(threads: usize) -> Self {
        Self { threads, ..Self::default() }
    }
}

/// An execution provider, written `name[,required][,key=value...]`, such as
/// `cuda`, `tensorrt,required` or `cuda,device_id=1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Provider {
    /// Which one.
    pub kind: ProviderKind,
    /// Whether loading fails when it is missing; else the CPU steps in and
    /// the session's notes say so.
    pub required: bool,
    /// The provider's own options.
    pub options: BTreeMap<String, String>,
}

impl Provider {
    /// A provider that may be missing, with its default options.
    #[must_use]
    pub fn new(kind: ProviderKind) -> Self {
        Self { kind, required: false, options: BTreeMap::new() }
    }
}

macro_rules! providers {
    ($($variant:ident $name:literal $doc:literal;)*) => {
        /// Execution providers that Tierline can ask ONNX Runtime for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ProviderKind {
            $(#[doc = $doc] $variant,)*
        }

        impl ProviderKind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name used in configuration.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

providers! {
    Cpu "cpu" "The processor.";
    Cuda "cuda" "NVIDIA GPUs through CUDA.";
    TensorRt "tensorrt" "NVIDIA GPUs through TensorRT.";
    OpenVino "openvino" "Intel processors, GPUs and NPUs.";
    CoreMl "coreml" "Apple's accelerators.";
    DirectMl "directml" "Windows GPUs.";
    Rocm "rocm" "AMD GPUs through ROCm.";
    MiGraphX "migraphx" "AMD GPUs through MIGraphX.";
    Xnnpack "xnnpack" "Small processors through XNNPACK.";
    Qnn "qnn" "Qualcomm NPUs.";
    Nnapi "nnapi" "Android accelerators.";
    OneDnn "onednn" "Processors through oneDNN.";
    Cann "cann" "Huawei Ascend.";
    Acl "acl" "Arm processors through the Compute Library.";
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a string names no provider.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// No such provider.
    #[error("no execution provider `{name}`; known are {}", ProviderKind::ALL.iter().map(|k| k.name()).collect::<Vec<_>>().join(", "))]
    Unknown {
        /// The name given.
        name: String,
    },
    /// An option that is neither `required` nor `key=value`.
    #[error("`{part}` is neither `required` nor `key=value` in execution provider `{text}`")]
    Option {
        /// The offending part.
        part: String,
        /// The whole text.
        text: String,
    },
}

impl FromStr for Provider {
    type Err = ProviderError;

    fn from_str(text: &str) -> Result<Self, ProviderError> {
        let mut parts = text.split(',').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        // The names of ONNX Runtime itself are accepted as well.
        let short = name.strip_suffix("executionprovider").unwrap_or(&name);
        let kind = ProviderKind::ALL
            .iter()
            .copied()
            .find(|k| k.name() == short)
            .ok_or_else(|| ProviderError::Unknown { name: name.clone() })?;
        let mut provider = Self::new(kind);
        for part in parts {
            match part.split_once('=') {
                None if part == "required" => provider.required = true,
                // A NUL can't cross the C interface.
                Some((key, value)) if !key.is_empty() && !part.contains('\0') => {
                    provider.options.insert(key.trim().to_owned(), value.trim().to_owned());
                }
                _ => return Err(ProviderError::Option { part: part.to_owned(), text: text.to_owned() }),
            }
        }
        Ok(provider)
    }
}

impl TryFrom<String> for Provider {
    type Error = ProviderError;

    fn try_from(text: String) -> Result<Self, ProviderError> {
        text.parse()
    }
}

impl From<Provider> for String {
    fn from(provider: Provider) -> Self {
        provider.to_string()
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        if self.required {
            f.write_str(",required")?;
        }
        self.options.iter().try_for_each(|(k, v)| write!(f, ",{k}={v}"))
    }
}

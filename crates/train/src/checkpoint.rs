//! Checkpoints: the state of a run, as a safetensors file.
//!
//! Tensors are the step's state under the names of its inputs, so weights can
//! be read with the usual tools; where the run stands is in the header.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use tierline_graph::step::Spec;
use tierline_graph::{DataType, Tensor};

use crate::data::Position;
use crate::error::TrainError;
use crate::run::{Epoch, Sums};
use crate::trainer::Trainer;

/// Key in the file's header under which a run says where it stands.
const HEADER: &str = "tierline.checkpoint";

/// Version of what stands there.
const VERSION: u32 = 1;

/// Bytes of a checkpoint at most: larger models than one machine trains.
pub const CHECKPOINT_BYTES_MAX: u64 = 1 << 36;

/// The state of a run between two steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// The next batch.
    pub position: Position,
    /// Epochs that are done.
    pub epochs: Vec<Epoch>,
    /// What the run was, as whoever started it says: a run of another kind
    /// isn't taken up from here. Empty when nothing was said.
    pub job: String,
    pub(crate) sums: Sums,
    tensors: Vec<(String, Tensor)>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    position: Position,
    epochs: Vec<Epoch>,
    sums: Sums,
    job: String,
}

impl Checkpoint {
    pub(crate) fn of(trainer: &Trainer, position: Position, epochs: &[Epoch], sums: Sums) -> Result<Self, TrainError> {
        let names = trainer.spec().state.iter().map(|s| s.input.clone());
        let tensors = names.zip(trainer.state()?).collect();
        Ok(Self { position, epochs: epochs.to_vec(), job: String::new(), sums, tensors })
    }

    /// The same, saying what the run was.
    #[must_use]
    pub fn with_job(self, job: &str) -> Self {
        Self { job: job.to_owned(), ..self }
    }

    /// The state in the order in which a step takes it.
    pub(crate) fn ordered(&self, spec: &Spec) -> Result<Vec<Tensor>, TrainError> {
        let mut by_name: HashMap<&str, &Tensor> = self.tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let wrong = |reason: String| TrainError::Checkpoint { path: "of the run".into(), reason };
        let ordered: Vec<Tensor> = spec
            .state
            .iter()
            .map(|slot| {
                let missing = || wrong(format!("it has no `{}`; it belongs to another model or optimiser", slot.input));
                by_name.remove(slot.input.as_str()).cloned().ok_or_else(missing)
            })
            .collect::<Result<_, _>>()?;
        match by_name.keys().next() {
            Some(extra) => Err(wrong(format!("it has `{extra}`; it belongs to another model or optimiser"))),
            None => Ok(ordered),
        }
    }

    /// Writes the checkpoint; the file appears whole or not at all, and one
    /// that stood there before stays until then.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, path: &Path) -> Result<(), TrainError> {
        let failed = |reason: String| TrainError::Checkpoint { path: path.to_owned(), reason };
        let header = Header {
            version: VERSION,
            position: self.position,
            epochs: self.epochs.clone(),
            sums: self.sums,
            job: self.job.clone(),
        };
        let text = serde_json::to_string(&header).map_err(|e| failed(e.to_string()))?;
        let bytes: Vec<_> = self.tensors.iter().map(|(_, t)| t.to_bytes().unwrap_or_default()).collect();
        let views = self.tensors.iter().zip(&bytes).map(|((name, tensor), bytes)| {
            let dtype = dtype(tensor.dtype()).ok_or_else(|| failed(format!("`{name}` is {}", tensor.dtype())))?;
            let view = TensorView::new(dtype, tensor.shape().to_vec(), bytes).map_err(|e| failed(e.to_string()))?;
            Ok((name.clone(), view))
        });
        let views: Vec<(String, TensorView)> = views.collect::<Result<_, TrainError>>()?;
        let metadata = HashMap::from([(HEADER.to_owned(), text)]);
        let file = safetensors::serialize(views, Some(metadata)).map_err(|e| failed(e.to_string()))?;
        let partial = path.with_extension("safetensors.partial");
        whole(&partial, &file).and_then(|()| std::fs::rename(&partial, path)).map_err(|source| {
            // What is left of it helps nobody; the error that counts is `source`.
            let _ = std::fs::remove_file(&partial);
            TrainError::CheckpointWrite { path: path.to_owned(), source }
        })
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// When it can't be read, is broken, or of another version.
    pub fn load(path: &Path) -> Result<Self, TrainError> {
        let failed = |reason: String| TrainError::Checkpoint { path: path.to_owned(), reason };
        let size = std::fs::metadata(path).map_err(|e| failed(format!("cannot be read: {e}")))?.len();
        if size > CHECKPOINT_BYTES_MAX {
            return Err(failed(format!("{size} bytes are no checkpoint; the limit is {CHECKPOINT_BYTES_MAX}")));
        }
        let bytes = std::fs::read(path).map_err(|e| failed(format!("cannot be read: {e}")))?;
        Self::parse(&bytes).map_err(failed)
    }

    /// Reads a checkpoint from bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let broken = |e: &dyn std::fmt::Display| format!("it is broken ({e}); start anew, or from an older one");
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| broken(&e))?;
        let text = metadata.metadata().as_ref().and_then(|m| m.get(HEADER));
        let text = text.ok_or("it holds weights but no run; start a new run instead of resuming")?;
        let header: Header = serde_json::from_str(text).map_err(|e| broken(&e))?;
        if header.version != VERSION {
            return Err(format!("it is of version {}; this Tierline reads {VERSION}", header.version));
        }
        let file = SafeTensors::deserialize(bytes).map_err(|e| broken(&e))?;
        let mut tensors = Vec::with_capacity(file.len());
        for (name, view) in file.tensors() {
            let dtype = from_dtype(view.dtype()).ok_or_else(|| format!("`{name}` is {:?}", view.dtype()))?;
            let tensor = Tensor::from_bytes(dtype, view.shape(), view.data()).map_err(|e| broken(&e))?;
            tensors.push((name, tensor));
        }
        // Files sort their tensors; so that equal checkpoints are equal.
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        let Header { position, epochs, sums, job, .. } = header;
        Ok(Self { position, epochs, job, sums, tensors })
    }
}

/// Writes a file through to the disk: some say only then that they are full.
pub(crate) fn whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn dtype(dtype: DataType) -> Option<Dtype> {
    Some(match dtype {
        DataType::F32 => Dtype::F32,
        DataType::F64 => Dtype::F64,
        DataType::I64 => Dtype::I64,
        DataType::I32 => Dtype::I32,
        _ => return None,
    })
}

fn from_dtype(dtype: Dtype) -> Option<DataType> {
    Some(match dtype {
        Dtype::F32 => DataType::F32,
        Dtype::F64 => DataType::F64,
        Dtype::I64 => DataType::I64,
        Dtype::I32 => DataType::I32,
        _ => return None,
    })
}

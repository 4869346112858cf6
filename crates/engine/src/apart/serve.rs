//! What a worker process does: loads one model and runs it as it is asked,
//! under limits that the system enforces.

use std::io::{BufReader, BufWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use rustix::process::{Resource, Rlimit, setrlimit};
use tierline_graph::{Model, Tensor};

use super::frame::{self, Ask, Reply};
use crate::{EngineError, LoadOptions, Session};

/// Bytes that a worker takes beside the model: threads, the engine's library.
const OWN_BYTES: u64 = 256 << 20;

/// Serves the node that started this process, on its standard input, until
/// that closes; `memory_max` bytes are for the model and its runs.
///
/// # Errors
/// When the limits can't be set, or standard input is no stream of a node.
pub fn serve(memory_max: u64) -> std::io::Result<()> {
    let data = Some(memory_max.saturating_add(OWN_BYTES));
    setrlimit(Resource::Data, Rlimit { current: data, maximum: data })?;
    // An abort for want of memory shouldn't fill the disk.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // Where memory runs short all the same, the node isn't the one to go.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut to = BufWriter::new(stream.try_clone()?);
    let (send, asked) = mpsc::sync_channel(1);
    std::thread::Builder::new().name("asked".into()).spawn(move || {
        let mut from = BufReader::new(stream);
        while let Ok(ask) = Asked::read(&mut from, memory_max) {
            if send.send(ask).is_err() {
                break;
            }
        }
        // The node is gone, or wants nothing more: whatever runs ends too.
        std::process::exit(0);
    })?;
    let mut session: Option<Box<dyn Session>> = None;
    while let Ok(ask) = asked.recv() {
        match perform(&mut session, ask) {
            Ok(Done::Loaded) => {
                let Some(session) = &session else { continue };
                let (inputs, outputs) = (session.inputs().to_vec(), session.outputs().to_vec());
                let notes = session.notes().to_vec();
                frame::write_header(&mut to, &Reply::Loaded { inputs, outputs, notes })?;
            }
            Ok(Done::Ran(outputs)) => {
                let tensors = outputs.iter().map(|tensor| ("", tensor));
                frame::write_tensors(&mut to, |tensors| Reply::Ran { tensors }, tensors)?;
            }
            Err(error) => frame::write_header(&mut to, &Reply::Failed(error.into()))?,
        }
        to.flush()?;
    }
    Ok(())
}

/// What was asked, with all its bytes.
enum Asked {
    Load { engine: String, library: Option<std::path::PathBuf>, options: LoadOptions, model: Vec<u8> },
    Run(Vec<(String, Tensor)>),
}

impl Asked {
    fn read(from: &mut impl std::io::Read, memory_max: u64) -> std::io::Result<Self> {
        Ok(match frame::read_header(from)? {
            Ask::Load { engine, library, options, bytes } => {
                Self::Load { engine, library, options: options.into(), model: frame::read_bytes(from, bytes)? }
            }
            Ask::Run { tensors } => Self::Run(frame::read_tensors(from, tensors, memory_max)?),
        })
    }
}

enum Done {
    Loaded,
    Ran(Vec<Tensor>),
}

fn perform(session: &mut Option<Box<dyn Session>>, ask: Asked) -> Result<Done, EngineError> {
    let prepare = |reason: String| EngineError::Prepare { reason };
    match ask {
        Asked::Load { engine, library, options, model } => {
            let engine = match engine.as_str() {
                crate::rten::NAME => crate::rten(),
                _ => crate::onnxruntime(library.as_deref())?,
            };
            let model = Model::parse(model.into()).map_err(|e| prepare(e.to_string()))?;
            *session = Some(engine.load(&model, &options)?);
            Ok(Done::Loaded)
        }
        Asked::Run(tensors) => {
            let session = session.as_mut().ok_or_else(|| prepare("nothing is loaded".to_owned()))?;
            let given: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
            Ok(Done::Ran(session.run(&given)?))
        }
    }
}

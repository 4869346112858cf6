//! A worker process as the node sees it: a session whose process can be killed.

use std::io::{BufReader, BufWriter, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tierline_graph::{Model, Tensor, ValueInfo};

use super::Apart;
use super::frame::{self, Ask, Reply};
use crate::stop::Stop;
use crate::{Engine, EngineError, LoadOptions, Session, inputs};

/// Bytes of the stream that are gathered before they are written.
const GATHERED_BYTES: usize = 64 << 10;

/// A model that is loaded in a process of its own; it ends with the value.
pub(super) struct Process {
    engine: &'static str,
    how: Arc<Apart>,
    child: Child,
    stream: UnixStream,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    notes: Vec<String>,
    /// It broke off, or was stopped: nothing more comes of it.
    gone: bool,
}

impl Process {
    /// Starts a worker and has it load `model`.
    pub(super) fn load(
        how: &Arc<Apart>,
        engine: &dyn Engine,
        model: &Model,
        options: &LoadOptions,
        stop: &Stop,
    ) -> Result<Self, EngineError> {
        let bytes = model.to_bytes().map_err(|e| EngineError::Prepare { reason: e.to_string() })?;
        let library = engine.library();
        let engine = engine.name();
        let failed = |e: std::io::Error| EngineError::Prepare {
            reason: format!("no process to run it in could be started ({}): {e}", how.program.display()),
        };
        let (stream, theirs) = UnixStream::pair().map_err(failed)?;
        let child = Command::new(&how.program)
            .args(&how.args)
            .arg(how.memory_max.to_string())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let mut process = Self {
            engine,
            how: Arc::clone(how),
            child,
            stream,
            inputs: Vec::new(),
            outputs: Vec::new(),
            notes: Vec::new(),
            gone: false,
        };
        let ask = Ask::Load { engine: engine.to_owned(), library, options: options.into(), bytes: bytes.len() as u64 };
        let reply = process.talk(stop, |to| {
            frame::write_header(to, &ask)?;
            to.write_all(&bytes)
        })?;
        match reply.0 {
            Reply::Loaded { inputs, outputs, notes } => {
                (process.inputs, process.outputs, process.notes) = (inputs, outputs, notes);
                Ok(process)
            }
            _ => Err(process.odd()),
        }
    }

    /// Whether nothing more comes of it.
    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Says something and hears the answer, with its tensors.
    fn talk(
        &mut self,
        stop: &Stop,
        say: impl FnOnce(&mut BufWriter<&UnixStream>) -> std::io::Result<()>,
    ) -> Result<(Reply, Vec<(String, Tensor)>), EngineError> {
        let (started, engine) = (Instant::now(), self.engine);
        let stopped = |after: Duration| EngineError::Stopped { engine, after };
        if self.gone {
            return Err(EngineError::Ended { engine: self.engine, how: "it ended before".to_owned() });
        }
        let brake = self.stream.try_clone().map_err(|e| self.lost(&e))?;
        let stream = &self.stream;
        let bytes_max = self.how.memory_max;
        let talked = stop.during(
            // Whoever reads or writes learns of it at once; the process is killed after.
            move || drop(brake.shutdown(Shutdown::Both)),
            || {
                let mut to = BufWriter::with_capacity(GATHERED_BYTES, stream);
                say(&mut to)?;
                to.flush()?;
                let mut from = BufReader::with_capacity(GATHERED_BYTES, stream);
                match frame::read_header(&mut from)? {
                    Reply::Ran { tensors } => {
                        let tensors = frame::read_tensors(&mut from, tensors, bytes_max)?;
                        Ok((Reply::Ran { tensors: Vec::new() }, tensors))
                    }
                    other => Ok((other, Vec::new())),
                }
            },
        );
        match talked {
            None => Err(stopped(started.elapsed())),
            Some(Ok((Reply::Failed(said), _))) => Err(said.into_error(self.engine)),
            Some(Ok(answer)) => Ok(answer),
            Some(Err(_)) if stop.is_pulled() => {
                let error = stopped(started.elapsed());
                self.end();
                Err(error)
            }
            Some(Err(e)) => Err(self.lost(&e)),
        }
    }

    /// The process broke off: why, as far as it shows.
    fn lost(&mut self, error: &std::io::Error) -> EngineError {
        use std::os::unix::process::ExitStatusExt;
        // One that is still there broke the protocol.
        let own = self.child.try_wait().ok().flatten();
        let status = self.end().or(own);
        let how = match status.and_then(|s| s.signal()) {
            // Aborted for want of memory, or killed by the system for it.
            Some(6 | 9) => {
                format!(
                    "it needed more memory than the limit for one run on this device, {} bytes",
                    self.how.memory_max
                )
            }
            Some(signal) => format!("it ended by signal {signal}"),
            None => format!("it broke off: {error}"),
        };
        EngineError::Ended { engine: self.engine, how }
    }

    fn odd(&mut self) -> EngineError {
        self.end();
        EngineError::Ended { engine: self.engine, how: "it answered something else than was asked".to_owned() }
    }

    /// Ends the process; the way it ended if it did so by itself.
    fn end(&mut self) -> Option<std::process::ExitStatus> {
        self.gone = true;
        // One that is ending by itself is given the moment that takes: how it
        // ended says why.
        for _ in 0..ENDING_LOOKS {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(ENDING_LOOK);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }
}

/// Looks at a process whose stream broke before it is killed.
const ENDING_LOOKS: u32 = 20;

/// Time between them.
const ENDING_LOOK: Duration = Duration::from_millis(5);

impl Drop for Process {
    fn drop(&mut self) {
        if !self.gone {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Session for Process {
    fn inputs(&self) -> &[ValueInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[ValueInfo] {
        &self.outputs
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn run_until(
        &mut self,
        given: &[(&str, &Tensor)],
        outputs: &mut Vec<Tensor>,
        stop: &Stop,
    ) -> Result<(), EngineError> {
        let ordered = inputs::in_order(&self.inputs, given)?;
        let names: Vec<String> = self.inputs.iter().map(|v| v.name.clone()).collect();
        let tensors = names.iter().map(String::as_str).zip(ordered.iter().copied());
        let (reply, made) = self.talk(stop, |to| frame::write_tensors(to, |tensors| Ask::Run { tensors }, tensors))?;
        let fits = matches!(reply, Reply::Ran { .. }) && made.len() == self.outputs.len();
        if !fits {
            return Err(self.odd());
        }
        *outputs = made.into_iter().map(|(_, tensor)| tensor).collect();
        Ok(())
    }
}

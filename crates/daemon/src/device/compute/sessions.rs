//! What the worker does: sessions of slices, loaded, run, dropped.

use std::collections::HashSet;
use std::hash::RandomState;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tierline_engine::{Session, Stop};
use tierline_graph::{Model, Tensor, rows};

use super::together::Took;
use super::{ComputeError, ComputeOptions, Computed, Job, LastRuns, Work, bytes_of};
use crate::device::memory::Key;
use crate::device::program::{Named, Part, SliceKey};

/// When a run is to end.
pub(super) struct Due<'j> {
    pub(super) stop: &'j Stop,
    pub(super) deadline: Instant,
}

/// A loaded session.
pub(super) struct Warm {
    session: Mutex<Box<dyn Session>>,
    bytes: u64,
    /// Whether it takes any number of rows, and makes of each what it makes of
    /// that one alone, as far as its graph says.
    pub(super) row_by_row: bool,
}

/// The worker's sessions, kept in the node's memory for such.
pub(super) struct Sessions<'o> {
    pub(super) options: &'o ComputeOptions,
    /// Counts loads.
    pub(super) loaded: &'o AtomicU64,
    pub(super) freed: &'o AtomicBool,
    /// Models that some session of was loaded with free rows.
    pub(super) row_by_row: &'o Mutex<HashSet<String>>,
    /// Numbers kinds.
    pub(super) keyed: &'o RandomState,
    pub(super) last_runs: &'o LastRuns,
}

impl Sessions<'_> {
    /// Does a job, and tells whoever waits for it; says how long a run took
    /// that others may be measured by.
    pub(super) fn perform(&self, job: Job) -> Option<Took> {
        let queued = job.queued.elapsed();
        let (like, was_warm) = (job.like, self.is_warm(&job.key));
        // Whoever asked may be gone.
        match (job.work, job.part) {
            (Work::Evict { done }, _) => {
                self.options.memory.forget(&Key::Session(job.key));
                self.freed.store(true, Ordering::Relaxed);
                let _ = done.send(());
            }
            (Work::Forget, _) => {
                self.options.memory.forget_all(|key| match key {
                    Key::Session(session) => session.digest == job.key.digest,
                    _ => false,
                });
                self.freed.store(true, Ordering::Relaxed);
            }
            (Work::Warm { reply, .. }, Some(part)) => {
                let load = |s: &Self| s.session(&part, &job.key, &job.stop).map(|warm| warm.bytes);
                let _ = reply.send(self.guarded("session", &job.key, load));
            }
            (Work::Run { reply, .. }, _) if reply.is_closed() => {}
            (Work::Run { inputs, reply }, Some(part)) => {
                let due = Due { stop: &job.stop, deadline: job.deadline };
                let result = self.guarded("compute", &job.key, |s| s.run(&part, &job.key, &inputs, &due));
                let took = result.as_ref().ok().map(|computed| computed.compute);
                if let Some(took) = took {
                    self.last_runs.took(&job.key, bytes_of(&inputs), took);
                }
                let _ = reply.send(result.map(|computed| Computed { queued, ..computed }));
                let shown = like.zip(took).filter(|_| was_warm);
                return shown.map(|(like, took)| Took { kind: like.kind, rows: like.rows, took });
            }
            // Only evictions come without a program; who holds the device does its own work.
            (Work::Trial { .. } | Work::Hold { .. }, _) | (_, None) => {}
        }
        None
    }

    /// Whether the session of `key` is loaded.
    pub(super) fn is_warm(&self, key: &SliceKey) -> bool {
        self.options.memory.has(&Key::Session(key.clone()))
    }

    /// The session of `key`, where it is loaded.
    pub(super) fn warm_session(&self, key: &SliceKey) -> Option<Arc<Warm>> {
        self.options.memory.get(&Key::Session(key.clone()))
    }

    /// Does what `f` does; a session that panicked or is of no use any more is
    /// dropped.
    pub(super) fn guarded<T>(
        &self,
        name: &'static str,
        key: &SliceKey,
        f: impl FnOnce(&Self) -> Result<T, ComputeError>,
    ) -> Result<T, ComputeError> {
        let tasks = self.options.tasks.clone();
        let result = tasks.guarded(name, || f(self)).unwrap_or_else(|failure| {
            Err(ComputeError::Panicked { from: key.from, to: key.to, message: failure.message })
        });
        let last = match &result {
            Err(ComputeError::Engine(e)) => e.is_last(),
            Err(ComputeError::Panicked { .. }) => true,
            _ => false,
        };
        if last {
            self.options.memory.forget(&Key::Session(key.clone()));
        }
        result
    }

    fn run(&self, part: &Part, key: &SliceKey, inputs: &Named, due: &Due) -> Result<Computed, ComputeError> {
        let warm = self.session(part, key, due.stop)?;
        self.run_warm(&warm, key, inputs, due)
    }

    /// Runs a session that is loaded.
    pub(super) fn run_warm(
        &self,
        warm: &Warm,
        key: &SliceKey,
        inputs: &Named,
        due: &Due,
    ) -> Result<Computed, ComputeError> {
        let slowdown = self.options.slowdown;
        let mut session = warm.session.lock().unwrap_or_else(PoisonError::into_inner);
        let started = Instant::now();
        let given: Vec<(&str, &Tensor)> = session
            .inputs()
            .iter()
            .filter_map(|want| inputs.iter().find(|(n, _)| *n == want.name).map(|(n, t)| (n.as_str(), t)))
            .collect();
        // Names the slice doesn't know are passed on, so that the engine
        // names them in its error.
        let extra = inputs.iter().filter(|(n, _)| key.from == 0 && !given.iter().any(|(g, _)| g == n));
        let given: Vec<(&str, &Tensor)> = given.iter().copied().chain(extra.map(|(n, t)| (n.as_str(), t))).collect();
        let mut tensors = Vec::with_capacity(session.outputs().len());
        session.run_until(&given, &mut tensors, due.stop)?;
        let outputs = session.outputs().iter().map(|v| v.name.clone()).zip(tensors).collect();
        if slowdown > 1.0 {
            // Who waits for it gives up at the deadline all the same.
            let left = due.deadline.saturating_duration_since(Instant::now());
            std::thread::sleep(started.elapsed().mul_f64(slowdown - 1.0).min(left));
        }
        Ok(Computed { outputs, queued: Duration::ZERO, compute: started.elapsed(), batch: None })
    }

    pub(super) fn session(&self, part: &Part, key: &SliceKey, stop: &Stop) -> Result<Arc<Warm>, ComputeError> {
        let (from, to, segments) = (key.from, key.to, part.program.segments());
        if from >= to || to > segments {
            return Err(ComputeError::Range { from, to, segments });
        }
        let (memory, name) = (&self.options.memory, Key::Session(key.clone()));
        if let Some(warm) = memory.get(&name) {
            return Ok(warm);
        }
        let slice = part.source.as_ref().ok_or(ComputeError::Cold { from, to })?.slice(&part.program, from, to)?;
        let bytes = slice.byte_len();
        if !memory.make_room(bytes) {
            return Err(ComputeError::Memory { from, to, needed: bytes, limit: memory.max() });
        }
        let (session, row_by_row) = self.load(key, &slice, stop)?;
        self.loaded.fetch_add(1, Ordering::Relaxed);
        let bytes = bytes.saturating_add(session.kept_bytes());
        let warm = Arc::new(Warm { session: Mutex::new(session), bytes, row_by_row });
        memory.keep(name, &warm, bytes);
        Ok(warm)
    }

    /// Loads a slice, with its rows free where the graph keeps them apart.
    fn load(&self, key: &SliceKey, slice: &Model, stop: &Stop) -> Result<(Box<dyn Session>, bool), ComputeError> {
        let (engine, options) = (&self.options.engine, &self.options.load);
        if self.options.batches {
            match rows::freed(slice).map(|freed| engine.load_until(&freed, options, stop)) {
                Ok(Ok(session)) => {
                    let mut known = self.row_by_row.lock().unwrap_or_else(PoisonError::into_inner);
                    known.insert(key.digest.clone());
                    return Ok((session, true));
                }
                Ok(Err(error)) if stop.is_pulled() => return Err(error.into()),
                Ok(Err(error)) => tracing::debug!(model = key.digest, %error, "it isn't loaded with free rows"),
                Err(mixed) => {
                    tracing::debug!(model = key.digest, key.from, key.to, %mixed, "its rows don't stay apart")
                }
            }
        }
        Ok((engine.load_until(slice, options, stop)?, false))
    }
}

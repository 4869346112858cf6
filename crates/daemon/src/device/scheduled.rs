//! An engine whose runs ask the device's executor for their turn: training and
//! evaluation on a node that answers requests at the same time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tierline_engine::{Engine, EngineError, LoadOptions, Session, StateSlot, Stateful, Stop};
use tierline_graph::{Model, Tensor, ValueInfo};
use tierline_node::admit::Class;

use super::compute::Compute;

/// How much the last run counts in what the next is expected to take.
const NEWEST: u32 = 4;

/// The engine, in turns.
pub(super) struct Scheduled {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) turns: Turns,
}

/// The turns of one session, or of loads.
#[derive(Clone)]
pub(super) struct Turns {
    pub(super) compute: Compute,
    pub(super) class: Class,
    /// Names the engine in failures.
    pub(super) engine: &'static str,
    /// What a turn takes, about.
    pub(super) expected: Duration,
}

impl Turns {
    /// Does `f` once the device is free for it.
    fn take<T>(&mut self, stop: &Stop, f: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
        let asked = Instant::now();
        let Some(held) = self.compute.hold(self.class, self.expected, stop) else {
            return Err(EngineError::Stopped { engine: self.engine, after: asked.elapsed() });
        };
        let began = Instant::now();
        let done = f();
        let took = began.elapsed();
        drop(held);
        // The first one may also make things ready.
        self.expected = if self.expected.is_zero() { took } else { (self.expected * (NEWEST - 1) + took) / NEWEST };
        done
    }
}

impl Engine for Scheduled {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn version(&self) -> String {
        self.engine.version()
    }

    fn kernels(&self) -> &'static [&'static str] {
        self.engine.kernels()
    }

    fn library(&self) -> Option<PathBuf> {
        self.engine.library()
    }

    fn is_stoppable(&self) -> bool {
        self.engine.is_stoppable()
    }

    fn load_until(&self, model: &Model, options: &LoadOptions, stop: &Stop) -> Result<Box<dyn Session>, EngineError> {
        let inner = self.turns.clone().take(stop, || self.engine.load_until(model, options, stop))?;
        Ok(Box::new(InTurns { inner, turns: self.turns.clone() }))
    }

    fn load_stateful(
        &self,
        model: &Model,
        options: &LoadOptions,
        slots: &[StateSlot],
        state: Vec<Tensor>,
    ) -> Result<Box<dyn Stateful>, EngineError> {
        let load = || self.engine.load_stateful(model, options, slots, state);
        let inner = self.turns.clone().take(&Stop::never(), load)?;
        Ok(Box::new(InTurns { inner, turns: self.turns.clone() }))
    }
}

/// A session that runs in turns.
struct InTurns<S: ?Sized> {
    turns: Turns,
    inner: Box<S>,
}

impl Session for InTurns<dyn Session> {
    fn inputs(&self) -> &[ValueInfo] {
        self.inner.inputs()
    }

    fn outputs(&self) -> &[ValueInfo] {
        self.inner.outputs()
    }

    fn run_until(
        &mut self,
        inputs: &[(&str, &Tensor)],
        outputs: &mut Vec<Tensor>,
        stop: &Stop,
    ) -> Result<(), EngineError> {
        let Self { turns, inner } = self;
        turns.take(stop, || inner.run_until(inputs, outputs, stop))
    }

    fn kept_bytes(&self) -> u64 {
        self.inner.kept_bytes()
    }

    fn notes(&self) -> &[String] {
        self.inner.notes()
    }
}

impl Stateful for InTurns<dyn Stateful> {
    fn inputs(&self) -> &[ValueInfo] {
        self.inner.inputs()
    }

    fn outputs(&self) -> &[ValueInfo] {
        self.inner.outputs()
    }

    fn run_until(
        &mut self,
        given: &[(&str, &Tensor)],
        outputs: &mut Vec<Tensor>,
        stop: &Stop,
    ) -> Result<(), EngineError> {
        let Self { turns, inner } = self;
        turns.take(stop, || inner.run_until(given, outputs, stop))
    }

    fn advance(&mut self) {
        self.inner.advance();
    }

    fn state(&self) -> Result<Vec<Tensor>, EngineError> {
        self.inner.state()
    }

    fn set_state(&mut self, state: &[Tensor]) -> Result<(), EngineError> {
        self.inner.set_state(state)
    }
}

//! Models that could take this process down run in a process of their own.
//!
//! Most models are known before they run: every tensor's size follows from
//! the inputs' shapes, so what a run needs is compared with a limit, and
//! nothing can surprise. What isn't known (loops, sizes that follow from an
//! input's values) may take all time or memory there is; an engine that can
//! neither be stopped nor refused memory then takes the process with it. Such a
//! model is loaded and run by a worker process under limits of the system,
//! which is killed when its time is over. State that moves on with every run,
//! and sessions on other devices than the processor, stay here where the engine
//! can at least be stopped.
//!
//! `crate::sizes` says what is known of a run, `process` is a worker as seen from
//! here, [`serve`] what a worker does, `frame` what they say to each other.
//! Start at [`apart`].

mod frame;
mod process;
mod serve;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use tierline_graph::{Model, Tensor, ValueInfo};

pub use self::serve::serve;

use self::process::Process;
use crate::sizes::{Run, Sizes};
use crate::stateful::{StateSlot, Stateful};
use crate::stop::Stop;
use crate::{Engine, EngineError, LoadOptions, Session, inputs};

/// How workers are started, and what a run may take.
#[derive(Debug, Clone)]
pub struct Apart {
    /// The program that calls [`serve`].
    pub program: PathBuf,
    /// Its arguments; the limit in bytes follows them.
    pub args: Vec<String>,
    /// Bytes that one run may take, weights included.
    pub memory_max: u64,
}

/// Multiply-adds of one operator that may run where it can't be killed: no
/// engine stops within an operator, and this is some seconds on a small device.
const KERNEL_MACS_MAX: u64 = 100_000_000_000;

/// Sets of input shapes whose needs are remembered per session; a caller with
/// ever new ones has them worked out again.
const SHAPES_MAX: usize = 256;

/// The same engine, with models that could take the process down run apart.
#[must_use]
pub fn apart(engine: Arc<dyn Engine>, how: Apart) -> Arc<dyn Engine> {
    Arc::new(Guarded { engine, how: Arc::new(how) })
}

struct Guarded {
    engine: Arc<dyn Engine>,
    how: Arc<Apart>,
}

impl Guarded {
    /// Whether this engine may do such a run in this process.
    fn place(&self, run: Option<&Run<'_>>) -> Result<Place, EngineError> {
        let Some(run) = run.filter(|run| run.is_known()) else { return Ok(Place::Apart) };
        let (bytes, limit) = (run.bytes(), self.how.memory_max);
        if bytes > limit {
            let reason = format!("it takes about {bytes} bytes; the limit for one run on this device is {limit}");
            return Err(EngineError::Memory { engine: self.engine.name(), reason });
        }
        Ok(if run.longest() > KERNEL_MACS_MAX { Place::Apart } else { Place::Here })
    }

    /// As [`Guarded::place`], for what would lose too much apart: state that
    /// would be copied at every step, or a device whose driver a limit upsets.
    /// An engine that can be stopped runs it here, whatever it takes.
    fn place_of(&self, sizes: &Sizes, tied: bool) -> Result<Place, EngineError> {
        match self.place(sizes.declared().as_ref())? {
            Place::Apart if tied && self.engine.is_stoppable() => Ok(Place::Here),
            place => Ok(place),
        }
    }

    fn process(&self, model: &Model, options: &LoadOptions, stop: &Stop) -> Result<Process, EngineError> {
        Process::load(&self.how, self.engine.as_ref(), model, options, stop)
    }
}

/// Whether models run on something else than the processor.
fn is_tied(options: &LoadOptions) -> bool {
    options.providers.iter().any(|p| p.kind != crate::ProviderKind::Cpu)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Here,
    Apart,
}

impl Engine for Guarded {
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
        true
    }

    fn load_until(&self, model: &Model, options: &LoadOptions, stop: &Stop) -> Result<Box<dyn Session>, EngineError> {
        let (tied, sizes) = (is_tied(options), Sizes::new(model));
        match self.place_of(&sizes, tied)? {
            Place::Apart => Ok(Box::new(self.process(model, options, stop)?)),
            Place::Here => {
                let here = self.engine.load_until(model, options, stop)?;
                if tied || sizes.is_fixed() {
                    return Ok(here);
                }
                let guard = Self { engine: Arc::clone(&self.engine), how: Arc::clone(&self.how) };
                Ok(Box::new(ByShape {
                    guard,
                    sizes,
                    model: model.clone(),
                    options: options.clone(),
                    here,
                    elsewhere: None,
                    places: HashMap::new(),
                }))
            }
        }
    }

    fn load_stateful(
        &self,
        model: &Model,
        options: &LoadOptions,
        slots: &[StateSlot],
        state: Vec<Tensor>,
    ) -> Result<Box<dyn Stateful>, EngineError> {
        match self.place_of(&Sizes::new(model), true)? {
            Place::Here => self.engine.load_stateful(model, options, slots, state),
            Place::Apart => {
                let session = self.process(model, options, &Stop::never())?;
                Ok(Box::new(crate::stateful::Swapped::new(Box::new(session), slots, state)?))
            }
        }
    }
}

/// A model with free axes: what a run needs is worked out for every set of
/// shapes it comes with.
struct ByShape {
    guard: Guarded,
    sizes: Sizes,
    /// Shares its weights' bytes with whoever loaded it.
    model: Model,
    options: LoadOptions,
    here: Box<dyn Session>,
    elsewhere: Option<Process>,
    places: HashMap<Vec<Vec<usize>>, Place>,
}

impl Session for ByShape {
    fn inputs(&self) -> &[ValueInfo] {
        self.here.inputs()
    }

    fn outputs(&self) -> &[ValueInfo] {
        self.here.outputs()
    }

    fn kept_bytes(&self) -> u64 {
        self.model.byte_len()
    }

    fn notes(&self) -> &[String] {
        self.here.notes()
    }

    fn run_until(
        &mut self,
        given: &[(&str, &Tensor)],
        outputs: &mut Vec<Tensor>,
        stop: &Stop,
    ) -> Result<(), EngineError> {
        let ordered = inputs::in_order(self.here.inputs(), given)?;
        let key: Vec<Vec<usize>> = ordered.iter().map(|t| t.shape().to_vec()).collect();
        let place = match self.places.get(&key) {
            Some(place) => *place,
            None => {
                let sizes = |shape: &Vec<usize>| shape.iter().map(|&d| d as u64).collect();
                let names = self.here.inputs().iter().map(|v| v.name.clone());
                let shapes: BTreeMap<String, Vec<u64>> = names.zip(key.iter().map(sizes)).collect();
                let place = self.guard.place(self.sizes.at(&shapes).as_ref())?;
                if self.places.len() >= SHAPES_MAX {
                    self.places.clear();
                }
                self.places.insert(key, place);
                place
            }
        };
        match place {
            Place::Here => self.here.run_until(given, outputs, stop),
            Place::Apart => {
                if self.elsewhere.as_ref().is_none_or(Process::is_gone) {
                    self.elsewhere = Some(self.guard.process(&self.model, &self.options, stop)?);
                }
                match &mut self.elsewhere {
                    Some(process) => process.run_until(given, outputs, stop),
                    None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tierline_zoo::{Batch, Options};

    use super::*;

    /// Models in use are known before they run: none of them pays for the others.
    #[test]
    fn the_zoo_is_known_before_it_runs() {
        for (name, build) in tierline_zoo::MODELS {
            for batch in [Batch::Fixed(1), Batch::Free] {
                let sizes = Sizes::new(&build(&Options { batch, ..Options::default() }));
                let Some(run) = sizes.declared().filter(Run::is_known) else { panic!("{name} is not known") };
                let (bytes, longest) = (run.bytes(), run.longest());
                assert!(bytes > run.weights() && run.weights() > 0, "{name}: {bytes} bytes");
                assert!(longest < KERNEL_MACS_MAX, "{name}: {longest} multiply-adds");
            }
        }
    }
}

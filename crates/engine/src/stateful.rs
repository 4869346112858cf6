//! Models whose state goes in and comes out of every run, such as a training
//! step: the state stays with the engine in between.

use tierline_graph::{Tensor, ValueInfo};

use crate::error::EngineError;
use crate::{Session, Stop, inputs};

/// A loaded model with state.
pub trait Stateful: Send {
    /// The inputs to give at each run: those that aren't state.
    fn inputs(&self) -> &[ValueInfo];

    /// The outputs of each run: those that aren't state.
    fn outputs(&self) -> &[ValueInfo];

    /// Runs the model once, unless `stop` ends it earlier. The outputs that
    /// aren't state go into `outputs`, in the model's order; the state stays as
    /// it is until [`Stateful::advance`].
    ///
    /// # Errors
    /// As [`Session::run_until`]; the state can still be had then.
    fn run_until(
        &mut self,
        given: &[(&str, &Tensor)],
        outputs: &mut Vec<Tensor>,
        stop: &Stop,
    ) -> Result<(), EngineError>;

    /// Runs the model once, however long it takes.
    ///
    /// # Errors
    /// As [`Stateful::run_until`].
    fn run_into(&mut self, given: &[(&str, &Tensor)], outputs: &mut Vec<Tensor>) -> Result<(), EngineError> {
        self.run_until(given, outputs, &Stop::never())
    }

    /// Takes over the state that the last run made; nothing without a run.
    fn advance(&mut self);

    /// A copy of the state, in the order in which it was given.
    ///
    /// # Errors
    /// When the engine can't give it.
    fn state(&self) -> Result<Vec<Tensor>, EngineError>;

    /// Replaces the state.
    ///
    /// # Errors
    /// When it isn't of the same types and shapes.
    fn set_state(&mut self, state: &[Tensor]) -> Result<(), EngineError>;
}

/// A piece of state: the input it goes into and the output it comes out of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateSlot {
    /// Name of the input.
    pub input: String,
    /// Name of the output that is the input of the next run.
    pub output: String,
}

/// Refuses state that isn't shaped like what was there.
pub(crate) fn check_state(slots: &[StateSlot], old: &[Tensor], new: &[Tensor]) -> Result<(), EngineError> {
    if slots.len() != new.len() {
        let reason = format!("the state has {} tensors; {} were given", slots.len(), new.len());
        return Err(EngineError::Prepare { reason });
    }
    for ((slot, old), new) in slots.iter().zip(old).zip(new) {
        if old.dtype() != new.dtype() {
            let (name, expected, given) = (slot.input.clone(), old.dtype(), new.dtype());
            return Err(EngineError::InputType { name, expected, given });
        }
        if old.shape() != new.shape() {
            let (name, expected, given) = (slot.input.clone(), format!("{:?}", old.shape()), new.shape().to_vec());
            return Err(EngineError::InputShape { name, expected, given });
        }
    }
    Ok(())
}

/// Splits a model's values into those that are state and the others.
pub(crate) fn others(values: &[ValueInfo], state: impl Fn(&str) -> bool) -> Vec<ValueInfo> {
    values.iter().filter(|v| !state(&v.name)).cloned().collect()
}

/// State around any session: two sets of tensors that change places.
pub(crate) struct Swapped {
    session: Box<dyn Session>,
    slots: Vec<StateSlot>,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    state: Vec<Tensor>,
    /// Outputs of the last run, to be written over by the next.
    made: Vec<Tensor>,
    /// Whether `made` holds a state to take over.
    fresh: bool,
}

impl Swapped {
    pub(crate) fn new(session: Box<dyn Session>, slots: &[StateSlot], state: Vec<Tensor>) -> Result<Self, EngineError> {
        let inputs = others(session.inputs(), |name| slots.iter().any(|s| s.input == name));
        let outputs = others(session.outputs(), |name| slots.iter().any(|s| s.output == name));
        check_state(slots, &state, &state)?;
        Ok(Self { session, slots: slots.to_vec(), inputs, outputs, state, made: Vec::new(), fresh: false })
    }
}

impl Stateful for Swapped {
    fn inputs(&self) -> &[ValueInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[ValueInfo] {
        &self.outputs
    }

    fn run_until(
        &mut self,
        given: &[(&str, &Tensor)],
        outputs: &mut Vec<Tensor>,
        stop: &Stop,
    ) -> Result<(), EngineError> {
        inputs::in_order(&self.inputs, given)?;
        let state = self.slots.iter().map(|s| s.input.as_str()).zip(&self.state);
        let all: Vec<(&str, &Tensor)> = given.iter().copied().chain(state).collect();
        self.fresh = false;
        self.session.run_until(&all, &mut self.made, stop)?;
        self.fresh = true;
        outputs.clear();
        for (made, value) in self.made.iter().zip(self.session.outputs()) {
            if !self.slots.iter().any(|s| s.output == value.name) {
                outputs.push(made.clone());
            }
        }
        Ok(())
    }

    fn advance(&mut self) {
        if !std::mem::take(&mut self.fresh) {
            return;
        }
        for (made, value) in self.made.iter_mut().zip(self.session.outputs()) {
            if let Some(slot) = self.slots.iter().position(|s| s.output == value.name) {
                std::mem::swap(&mut self.state[slot], made);
            }
        }
    }

    fn state(&self) -> Result<Vec<Tensor>, EngineError> {
        Ok(self.state.clone())
    }

    fn set_state(&mut self, state: &[Tensor]) -> Result<(), EngineError> {
        check_state(&self.slots, &self.state, state)?;
        self.state = state.to_vec();
        Ok(())
    }
}

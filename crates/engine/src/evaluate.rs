//! Lets constant folding evaluate closed graphs on an engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tierline_graph::{Model, Tensor};

use crate::{Engine, EngineError, LoadOptions, Stop};

/// What takes longer than this isn't worth folding, and a loop may take for
/// ever.
const EVALUATION_TIME_MAX: Duration = Duration::from_secs(20);

/// Evaluates graphs without inputs; for constant folding.
pub struct Evaluator(pub Arc<dyn Engine>);

impl Evaluator {
    /// The outputs of a graph that takes no inputs, in order.
    ///
    /// # Errors
    /// As loading and running do.
    pub fn outputs(&self, model: &Model) -> Result<Vec<Tensor>, EngineError> {
        // One thread: the graphs are small, and pools aren't free. No
        // rewriting either, since nothing is run twice.
        let options = LoadOptions { threads: 1, optimize: false, ..LoadOptions::default() };
        let stop = Stop::at(Instant::now() + EVALUATION_TIME_MAX);
        let (mut session, mut outputs) = (self.0.load_until(model, &options, &stop)?, Vec::new());
        session.run_until(&[], &mut outputs, &stop)?;
        Ok(outputs)
    }
}

impl tierline_graph::fold::Evaluate for Evaluator {
    fn evaluate(&mut self, model: &Model) -> Result<Vec<Tensor>, String> {
        self.outputs(model).map_err(|e| e.to_string())
    }
}

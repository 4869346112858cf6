//! Lets constant folding evaluate closed graphs on an engine.

use std::sync::Arc;

use tierline_graph::{Model, Tensor};

use crate::{Engine, EngineError, LoadOptions};

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
        self.0.load(model, &options)?.run(&[])
    }
}

impl tierline_graph::fold::Evaluate for Evaluator {
    fn evaluate(&mut self, model: &Model) -> Result<Vec<Tensor>, String> {
        self.outputs(model).map_err(|e| e.to_string())
    }
}

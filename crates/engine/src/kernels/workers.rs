//! The session's threads, and memory between calls.

use std::sync::{Mutex, PoisonError};

use ort::operator::ComputeContext;

use super::Fault;

/// Elements of a piece of work that only passes over memory.
pub(super) const PIECE: usize = 16_384;

/// Buffers that a session's nodes pass around. ONNX Runtime computes one node
/// of a session after the other, so there are few.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<f32>>>);

/// What a node computes with.
pub(super) struct Workers<'c> {
    /// None: this thread alone.
    context: Option<&'c ComputeContext>,
    buffers: &'c Buffers,
}

impl<'c> Workers<'c> {
    pub(super) fn new(context: &'c ComputeContext, buffers: &'c Buffers) -> Self {
        Self { context: Some(context), buffers }
    }

    #[cfg(test)]
    pub(super) fn alone(buffers: &'c Buffers) -> Self {
        Self { context: None, buffers }
    }

    /// Does `work` to every item, on all threads of the session.
    pub(super) fn each<T: Send>(&self, items: Vec<T>, work: impl Fn(T) + Send + Sync) -> Result<(), Fault> {
        let slots: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
        let one = |i: usize| {
            let item = slots[i].lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(item) = item {
                work(item);
            }
        };
        match self.context {
            Some(context) if slots.len() > 1 => {
                context.par_for(slots.len(), 0, one).map_err(|e| Fault::new(e.to_string()))
            }
            _ => {
                (0..slots.len()).for_each(one);
                Ok(())
            }
        }
    }

    /// Does `work` to a tensor piece by piece, given where each starts.
    pub(super) fn pieces(&self, out: &mut [f32], work: impl Fn(usize, &mut [f32]) + Send + Sync) -> Result<(), Fault> {
        self.each(out.chunks_mut(PIECE).enumerate().collect(), |(i, piece)| work(i * PIECE, piece))
    }

    /// A buffer of this many elements, of any value, for the time of `use_it`.
    pub(super) fn with_buffer(
        &self,
        len: usize,
        use_it: impl FnOnce(&mut [f32]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let pool = || self.buffers.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = pool().pop().unwrap_or_default();
        if buffer.len() < len {
            // What was in it is of no use: don't copy it over.
            buffer = Vec::new();
            let lacking = |_| Fault::new(format!("there is no memory for {len} elements in between"));
            buffer.try_reserve_exact(len).map_err(lacking)?;
            buffer.resize(len, 0.0);
        }
        let result = use_it(&mut buffer[..len]);
        pool().push(buffer);
        result
    }
}

//! Telling the caller how far a profile is.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// What the profiler is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Loading the whole model and the segments.
    Load,
    /// Timing the segments.
    Segments,
    /// Timing halves of the model.
    Halves,
    /// Measuring codecs at the cuts.
    Codecs,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Load => "loading",
            Self::Segments => "timing segments",
            Self::Halves => "timing halves",
            Self::Codecs => "measuring codecs",
        })
    }
}

/// How far a profile is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// What it is doing. Phases follow each other in the order above; halves
    /// are left out where there are no cuts.
    pub phase: Phase,
    /// The part of the phase that is done, 0 to 1.
    pub done: f64,
}

type Callback = Arc<dyn Fn(Progress) + Send + Sync>;

/// Who is told of progress: by default nobody.
#[derive(Clone, Default)]
pub struct ProgressListener(Option<Callback>, Arc<Mutex<Option<Progress>>>);

impl ProgressListener {
    /// Calls `listener` between runs, on the thread that profiles; what it
    /// does there takes time from measuring, but isn't measured.
    pub fn new(listener: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(listener)), Arc::default())
    }

    pub(super) fn report(&self, phase: Phase, done: f64) {
        let Some(listener) = &self.0 else { return };
        let mut last = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        // How much is left is an estimate; nobody wants to see it grow.
        let before = last.filter(|l| l.phase == phase).map_or(0., |l| l.done);
        let progress = Progress { phase, done: done.clamp(before, 1.) };
        *last = Some(progress);
        drop(last);
        listener(progress);
    }
}

impl fmt::Debug for ProgressListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "ProgressListener(..)" } else { "ProgressListener" })
    }
}

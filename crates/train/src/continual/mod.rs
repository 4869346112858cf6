//! Learning the new while keeping the old: a model meets one task after the
//! other, and what it knew before is kept by examples, by holding weights, by
//! its own earlier answers, or by weights set apart.
//!
//! [`Continual`] is the job's table; [`Learner`] learns task after task and
//! holds what is [`Kept`] between them. What training costs in memory is what
//! the step graph takes; what is kept is listed with [`Kept::bytes`].
//!
//! # Adding a method
//!
//! 1. Write `mine.rs` with its settings (serde, unknown keys refused, numbers
//!    checked) and what it computes, as pure functions of flat vectors.
//! 2. Add it to [`Continual`], and what it keeps to [`Kept`] and to `kept.rs`,
//!    which reads and writes it.
//! 3. Use it in [`Learner::learn`], and hold it against a reference in
//!    `tests/it/continual/reference.py`.

mod fisher;
mod isolation;
mod kept;
mod learner;
mod memory;
mod penalty;
mod pick;
mod settings;

pub use fisher::{At, Labels, fisher};
pub use isolation::{Isolation, Owners};
pub use kept::{KEPT_BYTES_MAX, Kept};
pub use learner::{Learner, Report, Tested, forgetting, mean_accuracy};
pub use memory::{Memory, Pick, Replay, Said};
pub use penalty::{Ewc, Penalty, Si, Variant, importance};
pub use settings::{Continual, Learned, Lwf, TASKS_MAX, Task, Teacher};

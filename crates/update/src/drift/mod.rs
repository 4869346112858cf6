//! Drift: noticing that what a model sees, or how well it does, has changed.
//!
//! Not what to do about it: drift opens a candidate, never a deployment. Start
//! at [`stream`] for detectors on one stream of numbers; at [`reference`] and
//! [`Window`] for whole windows of examples without labels.

pub mod calibration;
pub mod cause;
pub mod correct;
pub mod grid;
pub mod ks;
pub mod mmd;
pub mod random;
pub mod reference;
pub mod sketch;
pub mod stream;
pub mod window;

pub use calibration::{Calibration, Estimate};
pub use correct::Correction;
pub use reference::{Answer, Builder, Example, Reference, ReferenceError, Settings};
pub use window::{Options, Report, Verdict, Window};

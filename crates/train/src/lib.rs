//! Local training: data sets, batches, the loop around the step graph.
//!
//! [`data`] reads data sets of the usual formats, makes batches of them ahead
//! of the loop, and shares them out to clients of federated experiments. It
//! knows tensors, no models. Start at [`data::Source`].

#![forbid(unsafe_code)]

pub mod data;

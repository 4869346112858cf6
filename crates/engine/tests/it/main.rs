//! Tests of the engines, all through the public trait.

mod conformance;
mod gradients;
mod kernels;
mod layouts;
mod models;
mod profile;
mod recompute;
mod rows;
mod run;
mod slices;
mod steps;
mod support;

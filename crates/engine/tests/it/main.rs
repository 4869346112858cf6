//! Tests of the engines, all through the public trait.

mod conformance;
mod models;
mod run;
mod slices;
mod support;

//! Integration tests of the update crate.

mod trust;

//! Integration tests of the update crate.

mod trust;
//! Tests of the crate as others use it.

mod rollouts;

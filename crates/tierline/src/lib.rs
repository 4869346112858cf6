//! The library behind the `tierline` binary.

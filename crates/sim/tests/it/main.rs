//! One test crate: federations of made-up sites on small networks.

mod federations;
mod thousands;
mod transfer;

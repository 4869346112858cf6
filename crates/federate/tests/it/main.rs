//! One test crate: exact sums, strategies on numbers worked out by hand,
//! selection, settings.

mod down;
mod gossip;
mod rules;
mod select;
mod senders;
mod settings;
mod strategies;
mod sums;

//! One test crate: exact sums, strategies on numbers worked out by hand,
//! selection, settings.

mod down;
mod rules;
mod select;
mod senders;
mod settings;
mod strategies;
mod sums;

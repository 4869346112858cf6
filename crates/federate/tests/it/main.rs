//! One test crate: exact sums, strategies on numbers worked out by hand,
//! selection, settings, reports.

mod down;
mod gossip;
mod modifiers;
mod reports;
mod rules;
mod select;
mod senders;
mod settings;
mod statistics;
mod strategies;
mod sums;

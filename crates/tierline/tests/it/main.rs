//! The binary as its users meet it: real processes, real sockets.

mod bad_input;
mod cli;
mod data;
mod doors;
mod earlier;
mod examples;
mod faults;
mod federation;
mod ghost;
mod gossip;
mod harness;
mod hostile;
mod hostile_models;
mod hostile_requests;
mod identity;
mod jobs;
mod layouts;
mod memory;
mod middle;
mod names;
mod panics;
mod reference;
mod site;
mod train;
mod transfer;
mod updates;

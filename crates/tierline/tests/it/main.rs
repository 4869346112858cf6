//! The binary as its users meet it: real processes, real sockets.

mod bad_input;
mod cli;
mod data;
mod faults;
mod federation;
mod ghost;
mod gossip;
mod harness;
mod identity;
mod site;
mod train;
mod transfer;
mod updates;

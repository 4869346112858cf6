//! The binary as its users meet it: real processes, real sockets.

mod bad_input;
mod cli;
mod data;
mod doors;
mod earlier;
mod examples;
mod exits;
mod faults;
mod federation;
mod ghost;
mod gossip;
mod guides;
mod harness;
mod hostile;
mod hostile_models;
mod hostile_requests;
mod identity;
mod jobs;
mod layouts;
mod lost;
mod memory;
mod middle;
mod names;
mod newcomer;
mod operators;
mod panics;
mod reference;
mod running;
<<<<<<< HEAD
mod services;
=======
mod serve;
>>>>>>> 0b595b3 (serving: tests through tritonclient and raw HTTP; docs)
mod site;
mod supervised;
mod train;
mod transfer;
mod updates;

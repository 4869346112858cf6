//! A checkpoint from a stranger: an error or a checkpoint, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tierline_train::Checkpoint;

fuzz_target!(|input: &[u8]| {
    // Whichever it is, it is said.
    let _ = Checkpoint::parse(input);
});

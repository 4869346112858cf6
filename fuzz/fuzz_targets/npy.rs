//! A NumPy file from a stranger: what is read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tierline_codec::npy;

fuzz_target!(|input: &[u8]| {
    let Ok(tensor) = npy::read(input) else { return };
    let written = npy::write(&tensor).expect("what was read can be written");
    let again = npy::read(&written).expect("and read again");
    assert_eq!((again.shape(), again.dtype()), (tensor.shape(), tensor.dtype()));
    assert_eq!(again.elements().as_bytes(), tensor.elements().as_bytes());
});

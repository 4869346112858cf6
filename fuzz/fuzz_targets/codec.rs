//! An encoded tensor from a stranger: the first byte chooses the codec, the
//! rest is the encoding. What is taken can be encoded and taken again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tierline_codec::codecs;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else { return };
    let codec = codecs()[usize::from(choice) % codecs().len()];
    let Ok(tensor) = codec.decode(bytes) else { return };
    let mut again = Vec::new();
    if codec.encode(&tensor, &mut again).is_err() {
        // A lossy codec takes fewer values than it can be made to give.
        assert!(!codec.lossless(), "{}", codec.name());
        return;
    }
    let decoded = codec.decode(&again).expect("what was encoded can be decoded");
    assert_eq!((decoded.shape(), decoded.dtype()), (tensor.shape(), tensor.dtype()));
    if codec.lossless() {
        assert_eq!(decoded.elements().as_bytes(), tensor.elements().as_bytes());
    }
});

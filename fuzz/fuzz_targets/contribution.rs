//! A member's contribution from a stranger, and what a node kept on its own
//! disk: refused, or taken as finite vectors of the right lengths.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tierline_federate::{Layout, Part, wire};

fuzz_target!(|bytes: &[u8]| {
    let part = |name: &str, shape: &[usize]| Part { name: name.to_owned(), shape: shape.to_vec() };
    let layout = Layout {
        parameters: vec![part("w", &[8, 4]), part("b", &[8])],
        statistics: vec![part("mean", &[3])],
        logits: vec![part("p", &[6, 2])],
        features: vec![part("f", &[6, 5])],
        labels: vec![part("l", &[6])],
        ..Layout::default()
    };
    if let Ok(vectors) = wire::decode(bytes, &layout) {
        for (channel, vector) in &vectors {
            assert_eq!(vector.len(), layout.len(*channel));
            assert!(vector.iter().all(|x| x.is_finite()));
        }
        let again = wire::encode(&vectors, &layout).expect("finite numbers");
        assert_eq!(wire::decode(&again, &layout).as_ref(), Ok(&vectors));
        // The model's, its control variates', and what is said of examples.
        assert!(vectors.len() <= 6);
    }
    if let Ok(kept) = wire::decode_named(bytes) {
        let mut again = Vec::new();
        wire::encode_named(&kept, &mut again);
        assert_eq!(wire::decode_named(&again).map(|k| k.len()), Ok(kept.len()));
    }
});

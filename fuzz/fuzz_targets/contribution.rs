//! A member's contribution from a stranger, and what a node kept on its own
//! disk: refused, or taken as finite vectors of the right lengths.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tierline_federate::{Contribution, Layout, Part, Report, aggregate, wire};

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
        // The door of whoever coordinates: what passes it can be added up.
        let channels: Vec<_> = vectors.keys().copied().collect();
        let number = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        let report = Report {
            examples: number(0),
            steps: number(8),
            effective_steps: f64::from_bits(number(16)),
            loss: f64::from_bits(number(24)),
            seconds: f64::from_bits(number(32)),
            bytes_up: number(40),
            ..Report::default()
        };
        let contribution = Contribution { vectors: vectors.clone(), report };
        if aggregate::check(&layout, &channels, &contribution).is_ok() {
            assert!(report.loss.is_finite() && report.effective_steps > 0.0 && report.examples > 0);
        }
        // The model's, its control variates', and what is said of examples.
        assert!(vectors.len() <= 6);
    }
    if let Ok(vectors) = wire::decode_update(bytes, &layout) {
        assert!(vectors.iter().all(|(channel, vector)| vector.len() == layout.len(*channel)));
    }
    if let Ok(kept) = wire::decode_named(bytes) {
        let mut again = Vec::new();
        wire::encode_named(&kept, &mut again);
        assert_eq!(wire::decode_named(&again).map(|k| k.len()), Ok(kept.len()));
    }
});

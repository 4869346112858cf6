//! An encoded update from a stranger: the first byte chooses the parts the
//! receiver expects, the rest is the encoding. What is taken is finite and as
//! long as it should be, and without loss it is taken again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tierline_codec::update::{SentElements, Pipeline, decode, decode_into, support_of};

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else { return };
    let shapes: [&[&[usize]]; 6] = [&[], &[&[]], &[&[300]], &[&[8, 4, 3], &[8]], &[&[0, 7], &[40, 30]], &[&[2_500]]];
    let shapes: Vec<Vec<usize>> = shapes[usize::from(choice) % 6].iter().map(|s| s.to_vec()).collect();
    let Ok(vector) = decode(bytes, &shapes) else { return };
    assert_eq!(vector.len(), shapes.iter().map(|s| s.iter().product::<usize>()).sum::<usize>());
    assert!(vector.iter().all(|v| v.is_finite()));
    if let SentElements::Indices(kept) = support_of(bytes, &shapes).expect("what decodes has a support") {
        assert!(kept.is_sorted_by(|a, b| a < b) && kept.last().is_none_or(|&last| (last as usize) < vector.len()));
        let sent = vector.iter().enumerate().filter(|(_, v)| v.to_bits() != 0);
        assert!(sent.map(|(i, _)| i as u32).all(|i| kept.binary_search(&i).is_ok()));
    }
    for stages in [&[][..], &["zstd"], &["topk:1", "zstd"]] {
        let mut again = Vec::new();
        Pipeline::parse(stages).expect("stages").encode(&vector, &shapes, 0, &mut again).expect("finite values");
        let mut decoded = vec![1.0; vector.len()];
        decode_into(&again, &shapes, &mut decoded).expect("what was encoded can be decoded");
        assert!(decoded.iter().zip(&vector).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
});

//! Tensors come out as they went in, and every deviation has its own error.

use bytes::Bytes;
use proptest::prelude::*;
use tierline_proto::frame::{Assembler, Encoded, FrameError, chunks, declare};
use tierline_proto::limits::{CHUNK_BYTES_MAX, RUN_BYTES_MAX, TENSORS_MAX};
use tierline_proto::v1::{TensorChunk, TensorInfo};

fn tensor(name: &str, data: &[u8]) -> Encoded {
    Encoded { name: name.to_owned(), codec: "raw".to_owned(), data: Bytes::copy_from_slice(data) }
}

fn info(name: &str, length: u64) -> TensorInfo {
    TensorInfo { name: name.to_owned(), codec: "raw".to_owned(), length }
}

fn chunk(tensor: u32, offset: u64, data: &'static [u8]) -> TensorChunk {
    TensorChunk { tensor, offset, data: Bytes::from_static(data) }
}

fn tensors() -> impl Strategy<Value = Vec<Encoded>> {
    let one = proptest::collection::vec(any::<u8>(), 0..200);
    proptest::collection::vec(one, 0..8)
        .prop_map(|all| all.iter().enumerate().map(|(i, data)| tensor(&format!("t{i}"), data)).collect())
}

proptest! {
    #[test]
    fn round_trip(tensors in tensors(), size in 1usize..300) {
        let mut assembler = Assembler::new(declare(&tensors), RUN_BYTES_MAX).unwrap();
        for chunk in chunks(tensors.clone(), size) {
            prop_assert!(!assembler.is_complete());
            prop_assert!(chunk.data.len() <= size && !chunk.data.is_empty());
            assembler.push(chunk).unwrap();
        }
        prop_assert_eq!(assembler.finish(), Ok(tensors));
    }

    #[test]
    fn a_missing_repeated_or_swapped_chunk_is_noticed(
        tensors in tensors(), size in 1usize..50, at in any::<prop::sample::Index>(), how in 0..3,
    ) {
        let mut all: Vec<TensorChunk> = chunks(tensors.clone(), size).collect();
        prop_assume!(all.len() >= 2);
        let at = at.index(all.len() - 1);
        match how {
            0 => { all.remove(at); }
            1 => { let again = all[at].clone(); all.insert(at, again); }
            _ => all.swap(at, at + 1),
        }
        let mut assembler = Assembler::new(declare(&tensors), RUN_BYTES_MAX).unwrap();
        let pushed = all.into_iter().try_for_each(|chunk| assembler.push(chunk));
        let result = pushed.and_then(|()| assembler.finish());
        prop_assert!(result.is_err());
    }
}

#[test]
fn sending_and_single_chunks_copy_nothing() {
    let data = Bytes::from(vec![7u8; 1000]);
    let encoded = Encoded { name: "t".into(), codec: "raw".into(), data: data.clone() };
    let sent: Vec<TensorChunk> = chunks(vec![encoded.clone()], 400).collect();
    assert_eq!(sent.iter().map(|c| c.data.as_ptr()).collect::<Vec<_>>(), [0, 400, 800].map(|o| data[o..].as_ptr()));
    let mut assembler = Assembler::new(declare(std::slice::from_ref(&encoded)), RUN_BYTES_MAX).unwrap();
    chunks(vec![encoded], 1000).for_each(|chunk| assembler.push(chunk).unwrap());
    assert_eq!(assembler.finish().unwrap()[0].data.as_ptr(), data.as_ptr());
}

#[test]
fn deviations_have_their_own_errors() {
    let push = |declared: &[TensorInfo], given: &[TensorChunk]| {
        let mut assembler = Assembler::new(declared.to_vec(), RUN_BYTES_MAX).unwrap();
        given.iter().cloned().try_for_each(|chunk| assembler.push(chunk)).and_then(|()| assembler.finish().map(drop))
    };
    let ab = [info("a", 2), info("none", 0), info("b", 2)];
    let (a, b) = (chunk(0, 0, &[1, 2]), chunk(2, 0, &[3, 4]));
    assert_eq!(push(&ab, &[a.clone(), b.clone()]), Ok(()));
    let out = |tensor, offset, expected_tensor, expected_offset| {
        Err(FrameError::OutOfOrder { tensor, offset, expected_tensor, expected_offset })
    };
    assert_eq!(push(&ab, std::slice::from_ref(&b)), out(2, 0, 0, 0));
    assert_eq!(push(&ab, &[a.clone(), a.clone()]), out(0, 0, 2, 0));
    assert_eq!(push(&ab, &[chunk(0, 1, &[2])]), out(0, 1, 0, 0));
    assert_eq!(
        push(&ab, &[chunk(0, 0, &[1, 2, 3])]),
        Err(FrameError::Overflow { name: "a".into(), declared: 2, excess: 1 })
    );
    assert_eq!(push(&ab, &[chunk(0, 0, &[])]), Err(FrameError::EmptyChunk { tensor: 0 }));
    assert_eq!(push(&ab, &[a.clone(), b.clone(), b]), Err(FrameError::AfterEnd));
    assert_eq!(push(&ab, &[a]), Err(FrameError::Truncated { received: 2, declared: 4 }));
    let long = TensorChunk { tensor: 0, offset: 0, data: Bytes::from(vec![0; CHUNK_BYTES_MAX + 1]) };
    assert_eq!(push(&ab, &[long]), Err(FrameError::ChunkTooLong { length: CHUNK_BYTES_MAX + 1 }));
}

#[test]
fn declarations_are_checked_before_memory_is_taken() {
    let new = |declared| Assembler::new(declared, RUN_BYTES_MAX).map(drop);
    assert_eq!(new(vec![info("a", u64::MAX)]), Err(FrameError::TooManyBytes { bytes: u64::MAX, max: RUN_BYTES_MAX }));
    let two = vec![info("a", u64::MAX), info("b", u64::MAX)];
    assert_eq!(new(two), Err(FrameError::TooManyBytes { bytes: u64::MAX, max: RUN_BYTES_MAX }));
    assert_eq!(new(vec![info("a", 1), info("a", 1)]), Err(FrameError::Duplicate { name: "a".into() }));
    assert_eq!(new(vec![info("", 1)]), Err(FrameError::Name { index: 0, length: 0, max: 512 }));
    let many = (0..=TENSORS_MAX).map(|i| info(&i.to_string(), 0)).collect();
    assert_eq!(new(many), Err(FrameError::TooManyTensors { count: TENSORS_MAX + 1 }));
    // The caller's own limit, when smaller.
    let small = Assembler::new(vec![info("a", 100)], 99).map(drop);
    assert_eq!(small, Err(FrameError::TooManyBytes { bytes: 100, max: 99 }));
    assert!(Assembler::new(vec![info("a", RUN_BYTES_MAX)], u64::MAX).is_ok());
}

//! Mutation fuzzing of what arrives: valid streams with bytes flipped, cut,
//! repeated and inserted. Nothing panics, and memory stays within what was
//! received. `fuzz/fuzz_targets/frames.rs` goes further, with coverage.

use bytes::Bytes;
use prost::Message;
use tierline_proto::door::Sound;
use tierline_proto::door::session::{FromChild, FromParent};
use tierline_proto::frame::{Assembler, Encoded, chunks, declare};
use tierline_proto::limits::RUN_BYTES_MAX;
use tierline_proto::v1::{
    Boundary, ChildMessage, Degraded, ParentMessage, Reply, Route, RunChunk, RunHeader, StageTiming, TensorCodec,
    run_chunk::Body,
};

const ROUNDS: usize = 60_000;

fn valid(rng: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    let tensor = |i: usize, rng: &mut fastrand::Rng| {
        let mut data = vec![0; rng.usize(0..64)];
        rng.fill(&mut data);
        Encoded { name: format!("t{i}"), codec: "raw".into(), data: data.into() }
    };
    let tensors: Vec<Encoded> = (0..rng.usize(0..4)).map(|i| tensor(i, rng)).collect();
    let codec = TensorCodec { name: "x".into(), codec: "fp16".into() };
    let first = if rng.bool() {
        Body::Header(RunHeader {
            request: Bytes::from_static(&[1; 16]),
            model: Bytes::from_static(&[2; 32]),
            route: Some(Route {
                from: Some(1),
                boundaries: vec![Boundary { cut: Some(2), tensors: vec![codec] }],
                reply_codec: "planes".into(),
            }),
            remaining_us: 100_000,
            tensors: declare(&tensors),
            ..RunHeader::default()
        })
    } else {
        Body::Reply(Reply {
            request: Bytes::from_static(&[1; 16]),
            degraded: Some(Degraded { cause: 2, reason: "late".into(), node: "e".into() }),
            stages: vec![StageTiming { node: "e".into(), ..StageTiming::default() }],
            tensors: declare(&tensors),
            ..Reply::default()
        })
    };
    let rest = chunks(tensors, rng.usize(1..32)).map(Body::Tensor);
    std::iter::once(first).chain(rest).map(|body| RunChunk { body: Some(body) }.encode_to_vec()).collect()
}

fn mutate(messages: &mut Vec<Vec<u8>>, rng: &mut fastrand::Rng) {
    for _ in 0..rng.usize(1..4) {
        let at = rng.usize(..messages.len());
        let message = &mut messages[at];
        match rng.u8(..7) {
            0 if !message.is_empty() => {
                let byte = rng.usize(..message.len());
                message[byte] ^= 1 << rng.u8(..8);
            }
            1 if !message.is_empty() => message.truncate(rng.usize(..message.len())),
            2 => message.insert(rng.usize(..=message.len()), rng.u8(..)),
            3 if !message.is_empty() => {
                let byte = rng.usize(..message.len());
                message[byte] = [0, 0x7f, 0x80, 0xff][rng.usize(..4)];
            }
            4 => {
                let again = message.clone();
                messages.insert(at, again);
            }
            5 if messages.len() > 1 => drop(messages.remove(at)),
            _ => {
                let other = rng.usize(..messages.len());
                messages.swap(at, other);
            }
        }
    }
}

/// Reads a stream as a node would; the bytes it holds at the end.
fn receive(messages: &[Vec<u8>]) -> usize {
    let mut assembler: Option<Assembler> = None;
    for message in messages {
        let Ok(RunChunk { body: Some(body) }) = RunChunk::decode(Bytes::copy_from_slice(message)) else { break };
        let declared = match (body, &mut assembler) {
            (Body::Header(header), None) => match Sound::read(header) {
                Ok(header) => header.into_inner().tensors,
                Err(_) => break,
            },
            (Body::Reply(reply), None) => match Sound::read_for([1; 16], reply) {
                Ok(reply) => reply.into_inner().tensors,
                Err(_) => break,
            },
            (Body::Tensor(chunk), Some(assembler)) => match assembler.push(chunk) {
                Ok(()) => continue,
                Err(_) => break,
            },
            _ => break,
        };
        match Assembler::new(declared, RUN_BYTES_MAX) {
            Ok(new) => assembler = Some(new),
            Err(_) => break,
        }
    }
    let held = assembler.as_ref().map_or(0, |assembler| assembler.progress().0 as usize);
    if let Some(Ok(tensors)) = assembler.map(Assembler::finish) {
        assert_eq!(tensors.iter().map(|t| t.data.len()).sum::<usize>(), held);
    }
    held
}

#[test]
fn mutated_streams_never_panic() {
    let mut rng = fastrand::Rng::with_seed(0x7469_6572);
    for _ in 0..ROUNDS {
        let mut messages = valid(&mut rng);
        mutate(&mut messages, &mut rng);
        let received: usize = messages.iter().map(Vec::len).sum();
        assert!(receive(&messages) <= received);
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut rng = fastrand::Rng::with_seed(0x6c69_6e65);
    for _ in 0..ROUNDS {
        let mut bytes = vec![0; rng.usize(0..80)];
        rng.fill(&mut bytes);
        let bytes = Bytes::from(bytes);
        let _ = RunChunk::decode(bytes.clone());
        let _ = ParentMessage::decode(bytes.clone()).map(FromParent::read);
        let _ = ChildMessage::decode(bytes).map(FromChild::read);
    }
}

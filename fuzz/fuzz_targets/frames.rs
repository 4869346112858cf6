//! A stream of run chunks as a node receives it: no input may panic, and what
//! is held never exceeds what came.
//!
//! The input is a sequence of messages, each preceded by its length in two
//! bytes, little endian.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use tierline_proto::door::Sound;
use tierline_proto::frame::Assembler;
use tierline_proto::limits::RUN_BYTES_MAX;
use tierline_proto::v1::{RunChunk, StageTiming, run_chunk::Body};

fuzz_target!(|input: &[u8]| {
    let mut rest = Bytes::copy_from_slice(input);
    let mut assembler: Option<Assembler> = None;
    while rest.len() >= 2 {
        let length = usize::from(u16::from_le_bytes([rest[0], rest[1]])).min(rest.len() - 2);
        let message = rest.slice(2..2 + length);
        rest = rest.slice(2 + length..);
        let Ok(RunChunk { body: Some(body) }) = RunChunk::decode(message) else { return };
        let declared = match (body, &mut assembler) {
            (Body::Header(header), None) => Sound::read(header).map(|header| header.into_inner().tensors),
            (Body::Reply(reply), None) => {
                let Ok(request) = reply.request.as_ref().try_into() else { return };
                Sound::read_for(request, reply).map(|reply| {
                    // Times that can be added up.
                    let spent = |s: &StageTiming| s.queue_ns + s.decode_ns + s.compute_ns + s.encode_ns + s.upstream_ns;
                    assert!(reply.stages.iter().map(spent).sum::<u64>() < u64::MAX / 2);
                    reply.into_inner().tensors
                })
            }
            (Body::Tensor(chunk), Some(assembler)) => {
                if assembler.push(chunk).is_err() {
                    return;
                }
                continue;
            }
            _ => return,
        };
        let Ok(declared) = declared else { return };
        let Ok(new) = Assembler::new(declared, RUN_BYTES_MAX) else { return };
        assembler = Some(new);
    }
    let Some(assembler) = assembler else { return };
    let (received, declared) = assembler.progress();
    assert!(received <= declared && received <= input.len() as u64);
    if let Ok(tensors) = assembler.finish() {
        assert_eq!(tensors.iter().map(|tensor| tensor.data.len() as u64).sum::<u64>(), declared);
    }
});

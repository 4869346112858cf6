//! A request of the Open Inference Protocol: no input may panic, and what is
//! made of it is what it says it is.
//!
//! The first byte chooses: JSON alone, JSON before bytes (the next two say how
//! long it is, little endian), or a message of gRPC.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use tierline_proto::oip::messages::ModelInferRequest;
use tierline_proto::oip::weigh::weigh;
use tierline_proto::oip::{Request, Response, Tensor, grpc, rest};

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = input.split_first() else { return };
    let read = match choice % 3 {
        0 => rest::read(&Bytes::copy_from_slice(rest), None),
        1 => {
            let Some((length, body)) = rest.split_first_chunk::<2>() else { return };
            rest::read(&Bytes::copy_from_slice(body), Some(&u16::from_le_bytes(*length).to_string()))
        }
        _ => {
            // As a node does: nothing is made of what weighs too much.
            let Ok(weight) = weigh(&mut &rest[..]) else { return };
            let Ok(message) = ModelInferRequest::decode(Bytes::copy_from_slice(rest)) else { return };
            let contents = message.inputs.iter().filter_map(|input| input.contents.as_ref());
            let made = contents.map(|c| 8 * c.int64_contents.len() + size_of::<Bytes>() * c.bytes_contents.len());
            assert!(made.sum::<usize>() as u64 <= weight);
            grpc::read(message)
        }
    };
    let Ok(Request { inputs, id, parameters, raw: None, .. }) = read else { return };
    for input in &inputs {
        // A request of few bytes is no tensor of many.
        assert!(input.data.len() <= 8 * rest.len(), "{} of {}", input.data.len(), rest.len());
        let again = Tensor::new(input.name.clone(), input.datatype, input.shape.clone(), input.data.clone());
        assert_eq!(again.as_ref(), Ok(input));
    }
    // What was read can be written, and is the same when it is read again.
    let response = Response { model: "m".into(), version: "1".into(), id, parameters, outputs: inputs.clone() };
    let Ok(body) = rest::write(&response, |_| true) else { return };
    assert!(body.bytes.len() >= inputs.iter().map(|input| input.data.len()).sum());
    let message = grpc::write(response.clone());
    assert_eq!(message.outputs.len(), inputs.len());
    if let Ok(body) = rest::write(&response, |_| false) {
        let json = String::from_utf8(body.bytes.to_vec()).expect("JSON is text");
        let again = rest::read(&Bytes::from(json.replacen("\"outputs\":", "\"inputs\":", 1)), None);
        if let Ok(again) = again {
            assert_eq!(again.inputs, inputs);
        }
    }
});

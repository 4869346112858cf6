//! What a request over gRPC will take once it is decoded, from its bytes.
//!
//! A few bytes can stand for much: an input without anything in it is two, and
//! a hundred times as large as a value. So messages are looked through before
//! anything is made of them. Nothing else is checked here.

use bytes::Buf;

use super::{PARAMETERS_MAX, invalid};
use crate::limits::TENSORS_MAX;
use crate::v1::{Code, Failure};

/// At least what an input or output takes, without what it points at.
const TENSOR_BYTES: u64 = 512;

/// A parameter in its table, without its texts.
const PARAMETER_BYTES: u64 = 128;

/// A slice of the message, and a text's place in a list.
const SLICE_BYTES: u64 = 32;

/// Lists grow by doubling.
const LIST_GROWTH: u64 = 2;

/// Bytes that a `ModelInferRequest` takes when it is decoded, beside its own.
///
/// # Errors
/// When it is none, or has more tensors or parameters than a request may have.
pub fn weigh(message: &mut impl Buf) -> Result<u64, Failure> {
    let (mut inputs, mut outputs, mut raw, mut parameters) = (0, 0, 0, 0);
    let mut bytes = 0;
    fields(message, 0, |message, field, length| {
        match (field, length) {
            (4, Length::Bytes(length)) => bytes += parameter(message, length, &mut parameters)?,
            (5, Length::Bytes(length)) => {
                count(&mut inputs, TENSORS_MAX, "inputs")?;
                bytes += input(message, length)?;
            }
            (6, Length::Bytes(length)) => {
                count(&mut outputs, TENSORS_MAX, "outputs")?;
                bytes += output(message, length)?;
            }
            (7, Length::Bytes(length)) => {
                count(&mut raw, TENSORS_MAX, "inputs")?;
                bytes += SLICE_BYTES;
                message.advance(length);
            }
            (_, Length::Bytes(length)) => {
                bytes += length as u64;
                message.advance(length);
            }
            (_, Length::Number) => {}
        }
        Ok(())
    })?;
    Ok(bytes)
}

fn input(message: &mut impl Buf, length: usize) -> Result<u64, Failure> {
    let (mut bytes, mut parameters) = (TENSOR_BYTES, 0);
    let end = message.remaining() - length;
    fields(message, end, |message, field, length| {
        match (field, length) {
            (4, Length::Bytes(length)) => bytes += parameter(message, length, &mut parameters)?,
            (3, length) => bytes += LIST_GROWTH * 8 * numbers(message, length),
            (5, Length::Bytes(length)) => bytes += contents(message, length)?,
            (_, Length::Bytes(length)) => {
                bytes += length as u64;
                message.advance(length);
            }
            (_, Length::Number) => {}
        }
        Ok(())
    })?;
    Ok(bytes)
}

fn output(message: &mut impl Buf, length: usize) -> Result<u64, Failure> {
    let (mut bytes, mut parameters) = (TENSOR_BYTES, 0);
    let end = message.remaining() - length;
    fields(message, end, |message, field, length| {
        if let Length::Bytes(length) = length {
            if field == 2 {
                bytes += parameter(message, length, &mut parameters)?;
            } else {
                bytes += length as u64;
                message.advance(length);
            }
        }
        Ok(())
    })?;
    Ok(bytes)
}

fn contents(message: &mut impl Buf, length: usize) -> Result<u64, Failure> {
    let mut bytes = 0;
    let end = message.remaining() - length;
    fields(message, end, |message, field, length| {
        bytes += LIST_GROWTH
            * match (field, length) {
                (1, length) => numbers(message, length),
                (2 | 4, length) => 4 * numbers(message, length),
                (3 | 5, length) => 8 * numbers(message, length),
                (8, Length::Bytes(length)) => {
                    message.advance(length);
                    SLICE_BYTES
                }
                // Floats are as wide on the wire.
                (_, Length::Bytes(length)) => {
                    message.advance(length);
                    length as u64
                }
                (_, Length::Number) => 8,
            };
        Ok(())
    })?;
    Ok(bytes)
}

/// How many numbers there are in a list, or in one field of it.
fn numbers(message: &mut impl Buf, length: Length) -> u64 {
    let Length::Bytes(mut left) = length else { return 1 };
    let mut numbers = 0;
    while left > 0 {
        let chunk = message.chunk();
        let step = chunk.len().min(left);
        numbers += chunk[..step].iter().filter(|byte| **byte < 0x80).count() as u64;
        message.advance(step);
        left -= step;
    }
    numbers
}

fn parameter(message: &mut impl Buf, length: usize, seen: &mut usize) -> Result<u64, Failure> {
    count(seen, PARAMETERS_MAX, "parameters")?;
    message.advance(length);
    Ok(PARAMETER_BYTES + length as u64)
}

fn count(seen: &mut usize, most: usize, what: &str) -> Result<(), Failure> {
    *seen += 1;
    if *seen > most {
        return Err(Failure::new(Code::TooLarge, format!("there are at most {most} {what}")));
    }
    Ok(())
}

/// What stands behind a field's number.
#[derive(Clone, Copy)]
enum Length {
    /// A number, which was read.
    Number,
    /// So many bytes, which weren't.
    Bytes(usize),
}

/// Goes through the fields of a message, until `end` bytes are left.
fn fields<B: Buf>(
    message: &mut B,
    end: usize,
    mut each: impl FnMut(&mut B, u64, Length) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let damaged = || invalid("the message is no inference request");
    while message.remaining() > end {
        let key = varint(message, end).ok_or_else(damaged)?;
        let length = match key & 7 {
            0 => {
                varint(message, end).ok_or_else(damaged)?;
                Length::Number
            }
            fixed @ (1 | 5) => {
                let width = if fixed == 1 { 8 } else { 4 };
                if message.remaining() - end < width {
                    return Err(damaged());
                }
                message.advance(width);
                Length::Number
            }
            2 => {
                let length = varint(message, end).and_then(|length| usize::try_from(length).ok());
                Length::Bytes(length.filter(|length| *length <= message.remaining() - end).ok_or_else(damaged)?)
            }
            _ => return Err(damaged()),
        };
        each(message, key >> 3, length)?;
    }
    Ok(())
}

fn varint(message: &mut impl Buf, end: usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        if message.remaining() <= end {
            return None;
        }
        let byte = message.get_u8();
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::oip::messages::infer_parameter::ParameterChoice;
    use crate::oip::messages::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
    use crate::oip::messages::{InferParameter, InferTensorContents, ModelInferRequest};

    fn weight(message: &ModelInferRequest) -> Result<u64, Code> {
        weigh(&mut &message.encode_to_vec()[..]).map_err(|f| f.code())
    }

    fn with(contents: InferTensorContents) -> ModelInferRequest {
        let input = InferInputTensor { contents: Some(contents), ..InferInputTensor::default() };
        ModelInferRequest { inputs: vec![input], ..ModelInferRequest::default() }
    }

    #[test]
    fn few_bytes_that_stand_for_many_weigh_what_they_become() {
        let texts =
            with(InferTensorContents { bytes_contents: vec![bytes::Bytes::new(); 1_000], ..Default::default() });
        assert!(weight(&texts).unwrap() >= 1_000 * size_of::<bytes::Bytes>() as u64);
        let longs = with(InferTensorContents { int64_contents: vec![1; 1_000], ..Default::default() });
        assert!((8_000..20_000).contains(&weight(&longs).unwrap()));
        let raw = ModelInferRequest {
            inputs: vec![InferInputTensor::default()],
            raw_input_contents: vec![vec![0; 1 << 20].into()],
            ..ModelInferRequest::default()
        };
        assert!(weight(&raw).unwrap() < 1_000, "raw elements stay where they are");
        assert!(size_of::<InferInputTensor>() as u64 <= TENSOR_BYTES);
        assert!(size_of::<(String, InferParameter)>() as u64 <= PARAMETER_BYTES);
        let inputs = ModelInferRequest { inputs: vec![InferInputTensor::default(); 257], ..Default::default() };
        let outputs = ModelInferRequest {
            outputs: vec![InferRequestedOutputTensor::default(); 257],
            ..ModelInferRequest::default()
        };
        let parameter = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
        let parameters = ModelInferRequest {
            parameters: (0..65).map(|n| (n.to_string(), parameter.clone())).collect(),
            ..ModelInferRequest::default()
        };
        for message in [inputs, outputs, parameters] {
            assert_eq!(weight(&message), Err(Code::TooLarge));
        }
    }

    proptest! {
        #[test]
        fn what_can_be_decoded_can_be_weighed(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let weighed = weigh(&mut &bytes[..]);
            if let Ok(message) = ModelInferRequest::decode(&bytes[..]) {
                // Groups, which no request has, are refused.
                let whole = message.encoded_len() == bytes.len();
                prop_assert!(!whole || weighed.is_ok(), "{weighed:?}");
            }
        }

        #[test]
        fn weight_is_never_less_than_what_is_made(
            shape in proptest::collection::vec(any::<i64>(), 0..40),
            ints in proptest::collection::vec(any::<i32>(), 0..40),
            texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..40),
            id in ".{0,40}",
        ) {
            let made = 8 * shape.len() + 4 * ints.len() + texts.len() * size_of::<bytes::Bytes>() + id.len();
            let contents = InferTensorContents {
                int_contents: ints,
                bytes_contents: texts.into_iter().map(bytes::Bytes::from).collect(),
                ..InferTensorContents::default()
            };
            let mut message = with(contents);
            message.inputs[0].shape = shape;
            message.id = id;
            prop_assert!(weight(&message).unwrap() >= made as u64);
            // In pieces it is the same.
            let encoded = message.encode_to_vec();
            let (head, tail) = encoded.split_at(encoded.len() / 3);
            prop_assert_eq!(weigh(&mut head.chain(tail)).unwrap(), weight(&message).unwrap());
        }
    }
}

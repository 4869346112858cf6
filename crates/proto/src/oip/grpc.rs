//! Requests and answers as gRPC's messages.

use bytes::Bytes;

use super::messages::infer_parameter::ParameterChoice;
use super::messages::model_infer_request::InferInputTensor;
use super::messages::model_infer_response::InferOutputTensor;
use super::messages::{DataType, InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse};
use super::tensor::{Datatype, Tensor, axes, elements};
use super::{Parameter, Parameters, Request, Response, Wanted, invalid, refuse_unknown};
use crate::limits::TENSORS_MAX;
use crate::v1::{Code, Failure};

/// Reads a request.
///
/// # Errors
/// When it isn't as the protocol has it.
pub fn read(message: ModelInferRequest) -> Result<Request, Failure> {
    if message.inputs.len() > TENSORS_MAX || message.outputs.len() > TENSORS_MAX {
        return Err(Failure::new(Code::TooLarge, format!("a request has at most {TENSORS_MAX} inputs and outputs")));
    }
    let raw = !message.raw_input_contents.is_empty();
    if raw && message.raw_input_contents.len() != message.inputs.len() {
        let text = format!(
            "{} inputs and {} raw_input_contents: either each has one or none",
            message.inputs.len(),
            message.raw_input_contents.len()
        );
        return Err(invalid(text));
    }
    let mut contents = message.raw_input_contents.into_iter();
    let input = |input: InferInputTensor| {
        let name = input.name;
        refuse_unknown(&name, &parameters(input.parameters)?)?;
        let datatype = Datatype::named(&input.datatype).map_err(|f| invalid(format!("`{name}`: {}", f.message)))?;
        let shape = axes(&name, &input.shape)?;
        let data = match contents.next() {
            Some(_) if input.contents.is_some() => {
                return Err(invalid(format!("`{name}` has contents and raw_input_contents")));
            }
            Some(data) => data,
            None => {
                elements(&name, datatype, &shape)?;
                bytes(&name, datatype, input.contents.unwrap_or_default())?
            }
        };
        Tensor::new(name, datatype, shape, data)
    };
    let inputs = message.inputs.into_iter().map(input).collect::<Result<_, Failure>>()?;
    let output = |output: super::messages::model_infer_request::InferRequestedOutputTensor| {
        refuse_unknown(&output.name, &parameters(output.parameters)?)?;
        Ok(Wanted { name: output.name, binary: None })
    };
    let outputs = message.outputs.into_iter().map(output).collect::<Result<_, Failure>>()?;
    let request = Request {
        id: message.id,
        parameters: parameters(message.parameters)?,
        inputs,
        raw: None,
        outputs,
        binary: true,
    };
    request.checked()
}

/// Writes an answer, its elements raw.
#[must_use]
pub fn write(response: Response) -> ModelInferResponse {
    let raw_output_contents = response.outputs.iter().map(|output| output.data.clone()).collect();
    let output = |output: Tensor| InferOutputTensor {
        name: output.name,
        datatype: output.datatype.name().to_owned(),
        shape: output.shape.iter().map(|axis| i64::try_from(*axis).unwrap_or(i64::MAX)).collect(),
        ..InferOutputTensor::default()
    };
    ModelInferResponse {
        model_name: response.model,
        model_version: response.version,
        id: response.id,
        parameters: response.parameters.into_iter().map(|(name, value)| (name, message(value))).collect(),
        outputs: response.outputs.into_iter().map(output).collect(),
        raw_output_contents,
    }
}

/// A datatype in a model's configuration.
#[must_use]
pub fn data_type(datatype: Datatype) -> DataType {
    DataType::from_str_name(datatype.config_name()).unwrap_or(DataType::TypeInvalid)
}

fn parameters(message: impl IntoIterator<Item = (String, InferParameter)>) -> Result<Parameters, Failure> {
    let read = |(name, parameter): (String, InferParameter)| {
        let value = match parameter.parameter_choice {
            Some(ParameterChoice::BoolParam(value)) => Parameter::Bool(value),
            Some(ParameterChoice::Int64Param(value)) => Parameter::Int(value),
            Some(ParameterChoice::StringParam(value)) => Parameter::Text(value),
            Some(ParameterChoice::DoubleParam(value)) => Parameter::Float(value),
            Some(ParameterChoice::Uint64Param(value)) => {
                i64::try_from(value).map_or(Parameter::Uint(value), Parameter::Int)
            }
            None => return Err(invalid("a parameter has no value")),
        };
        Ok((name, value))
    };
    message.into_iter().take(super::PARAMETERS_MAX + 1).map(read).collect()
}

fn message(value: Parameter) -> InferParameter {
    let choice = match value {
        Parameter::Bool(value) => ParameterChoice::BoolParam(value),
        Parameter::Int(value) => ParameterChoice::Int64Param(value),
        Parameter::Uint(value) => ParameterChoice::Uint64Param(value),
        Parameter::Float(value) => ParameterChoice::DoubleParam(value),
        Parameter::Text(value) => ParameterChoice::StringParam(value),
    };
    InferParameter { parameter_choice: Some(choice) }
}

/// Elements that came by kind.
fn bytes(name: &str, datatype: Datatype, contents: InferTensorContents) -> Result<Bytes, Failure> {
    let InferTensorContents {
        bool_contents: bools,
        int_contents: ints,
        int64_contents: longs,
        uint_contents: uints,
        uint64_contents: ulongs,
        fp32_contents: floats,
        fp64_contents: doubles,
        bytes_contents: texts,
    } = contents;
    let own = match datatype {
        Datatype::Bool => bools.len(),
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => ints.len(),
        Datatype::Int64 => longs.len(),
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => uints.len(),
        Datatype::Uint64 => ulongs.len(),
        Datatype::Fp32 => floats.len(),
        Datatype::Fp64 => doubles.len(),
        Datatype::Bytes => texts.len(),
        Datatype::Fp16 | Datatype::Bf16 => {
            return Err(invalid(format!("`{name}`: {datatype} elements come as raw_input_contents")));
        }
    };
    let all = bools.len() + ints.len() + longs.len() + uints.len() + ulongs.len();
    if all + floats.len() + doubles.len() + texts.len() != own {
        return Err(invalid(format!("`{name}` is {datatype}, and has contents of another kind")));
    }
    macro_rules! narrow {
        ($from:expr, $int:ty) => {
            $from
                .into_iter()
                .map(|x| <$int>::try_from(x).map(<$int>::to_le_bytes))
                .collect::<Result<Vec<_>, _>>()
                .map(|all| all.concat())
                .map_err(|_| invalid(format!("`{name}`: a number that is no {datatype}")))?
        };
    }
    macro_rules! plain {
        ($from:expr) => {
            $from.into_iter().flat_map(|x| x.to_le_bytes()).collect()
        };
    }
    let bytes: Vec<u8> = match datatype {
        Datatype::Bool => bools.into_iter().map(u8::from).collect(),
        Datatype::Int8 => narrow!(ints, i8),
        Datatype::Int16 => narrow!(ints, i16),
        Datatype::Int32 => plain!(ints),
        Datatype::Int64 => plain!(longs),
        Datatype::Uint8 => narrow!(uints, u8),
        Datatype::Uint16 => narrow!(uints, u16),
        Datatype::Uint32 => plain!(uints),
        Datatype::Uint64 => plain!(ulongs),
        Datatype::Fp32 => plain!(floats),
        Datatype::Fp64 => plain!(doubles),
        Datatype::Bytes => {
            let mut bytes = Vec::new();
            for text in texts {
                let length = u32::try_from(text.len()).map_err(|_| invalid("a text of more than 4 GiB"))?;
                bytes.extend_from_slice(&length.to_le_bytes());
                bytes.extend_from_slice(&text);
            }
            bytes
        }
        Datatype::Fp16 | Datatype::Bf16 => Vec::new(),
    };
    Ok(bytes.into())
}

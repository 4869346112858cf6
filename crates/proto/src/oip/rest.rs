//! Requests and answers over HTTP: JSON, with elements in it as lists or behind
//! it as bytes (Triton's binary extension).

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::data::{self, List};
use super::tensor::{Datatype, RANK_MAX, Tensor, axes};
use super::{Parameter, Parameters, Request, Response, Wanted, invalid, refuse_unknown};
use crate::limits::{NAME_BYTES_MAX, RUN_BYTES_MAX, TENSORS_MAX};
use crate::v1::{Code, Failure};

/// Says how many bytes of a body are JSON, where others follow.
pub const JSON_LENGTH_HEADER: &str = "inference-header-content-length";

/// Bytes of JSON in one request: beyond it, lists of numbers take more memory
/// and time than anybody means them to.
pub const JSON_BYTES_MAX: usize = 64 << 20;

/// Reads a request; `json` is the value of [`JSON_LENGTH_HEADER`], where there
/// is one.
///
/// # Errors
/// When it isn't as the protocol has it.
pub fn read(body: &Bytes, json: Option<&str>) -> Result<Request, Failure> {
    let length = match json {
        None => body.len(),
        Some(text) => {
            let length = text.trim().parse::<usize>().ok().filter(|length| *length <= body.len());
            length.ok_or_else(|| {
                let text: String = text.chars().take(32).collect();
                invalid(format!("`{JSON_LENGTH_HEADER}: {text}` with a body of {} bytes", body.len()))
            })?
        }
    };
    if length > JSON_BYTES_MAX {
        let text = format!("a request has at most {JSON_BYTES_MAX} bytes of JSON");
        return Err(Failure::new(Code::TooLarge, text).with_help("send elements as bytes behind it"));
    }
    if json.is_some() && length == 0 {
        return Ok(Request { raw: Some(body.clone()), binary: true, ..Request::default() });
    }
    let mut head = Head::default();
    let text = &body[..length];
    parse(text, &[], &mut head)?;
    if head.inputs.iter().any(|input| input.late) {
        // Data that came before its datatype is read once that is known.
        let known: Vec<Option<Datatype>> = head.inputs.iter().map(|input| input.datatype).collect();
        head = Head::default();
        parse(text, &known, &mut head)?;
    }
    head.request(&body.slice(length..))
}

fn parse(text: &[u8], known: &[Option<Datatype>], head: &mut Head) -> Result<(), Failure> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let parsed = HeadSeed { head, known }.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    parsed.map_err(|e| invalid(format!("this is no inference request: {e}")))
}

/// The only input of a model, from the bytes of a request that are nothing
/// else; `axes` are the model's, none where they are free.
///
/// # Errors
/// When they don't say what the shape is.
pub fn only_input(name: &str, datatype: Datatype, axes: &[Option<u64>], data: Bytes) -> Result<Tensor, Failure> {
    let unclear = || {
        let text = format!("input `{name}` has more than one free axis, so that its bytes alone don't say its shape");
        invalid(text).with_help("send them behind JSON that says it")
    };
    if data.is_empty() {
        return Err(invalid("the request has no bytes"));
    }
    let (count, data) = match datatype.size() {
        Some(size) if data.len().is_multiple_of(size) => (data.len() / size, data),
        Some(size) => return Err(invalid(format!("{} bytes are no elements of {size} bytes", data.len()))),
        // All of it is one text.
        None => {
            let length = u32::try_from(data.len()).map_err(|_| invalid("a text of more than 4 GiB"))?;
            (1, Bytes::from([&length.to_le_bytes(), &data[..]].concat()))
        }
    };
    let free = axes.iter().filter(|axis| axis.is_none()).count();
    let fixed = axes.iter().flatten().try_fold(1u64, |n, axis| n.checked_mul(*axis)).ok_or_else(unclear)?;
    if free > 1 && count != 1 {
        return Err(unclear());
    }
    let rest = if free == 0 { 1 } else { (count as u64).checked_div(fixed).unwrap_or(0) };
    let shape = axes.iter().map(|axis| axis.unwrap_or(rest) as usize).collect();
    Tensor::new(name.to_owned(), datatype, shape, data)
}

/// An input as its JSON has it.
#[derive(Default)]
struct Input {
    name: String,
    datatype: Option<Datatype>,
    shape: Option<Vec<i64>>,
    parameters: Parameters,
    list: Option<List>,
    /// Its data came before its datatype.
    late: bool,
}

/// A request as its JSON has it.
#[derive(Default)]
struct Head {
    id: String,
    parameters: Parameters,
    inputs: Vec<Input>,
    seen_inputs: bool,
    outputs: Vec<Wanted>,
}

impl Head {
    /// The request, with what stands behind its JSON.
    fn request(self, behind: &Bytes) -> Result<Request, Failure> {
        if !self.seen_inputs {
            return Err(invalid("the request has no `inputs`"));
        }
        let mut at = 0usize;
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for input in self.inputs {
            let name = input.name;
            refuse_unknown(&name, &input.parameters)?;
            let datatype = input.datatype.ok_or_else(|| invalid(format!("input `{name}` has no `datatype`")))?;
            let shape = input.shape.ok_or_else(|| invalid(format!("input `{name}` has no `shape`")))?;
            let shape = axes(&name, &shape)?;
            let size = size(&name, &input.parameters)?;
            let data = match (input.list, size) {
                (Some(_), Some(_)) => {
                    return Err(invalid(format!("input `{name}` has both `data` and `binary_data_size`")));
                }
                (None, None) => {
                    return Err(invalid(format!("input `{name}` has neither `data` nor `binary_data_size`")));
                }
                (Some(list), None) => {
                    super::tensor::elements(&name, datatype, &shape)?;
                    list.check(&name, &shape)?;
                    list.bytes.into()
                }
                (None, Some(size)) => {
                    let end = at.checked_add(size).filter(|end| *end <= behind.len());
                    let end = end.ok_or_else(|| {
                        invalid(format!("input `{name}`: {size} bytes are told of; {} are left", behind.len() - at))
                    })?;
                    behind.slice(std::mem::replace(&mut at, end)..end)
                }
            };
            inputs.push(Tensor::new(name, datatype, shape, data)?);
        }
        if at != behind.len() {
            return Err(invalid(format!("{} bytes follow that belong to no input", behind.len() - at)));
        }
        let binary = flag(&self.parameters, "binary_data_output")?.unwrap_or(false);
        let request =
            Request { id: self.id, parameters: self.parameters, inputs, raw: None, outputs: self.outputs, binary };
        request.checked()
    }
}

fn size(name: &str, parameters: &Parameters) -> Result<Option<usize>, Failure> {
    match parameters.get("binary_data_size") {
        None => Ok(None),
        Some(Parameter::Int(size)) if (0..=RUN_BYTES_MAX as i64).contains(size) => Ok(Some(*size as usize)),
        Some(_) => Err(invalid(format!("`{name}`: `binary_data_size` is a number of bytes"))),
    }
}

fn flag(parameters: &Parameters, name: &str) -> Result<Option<bool>, Failure> {
    match parameters.get(name) {
        None => Ok(None),
        Some(Parameter::Bool(yes)) => Ok(Some(*yes)),
        Some(_) => Err(invalid(format!("`{name}` is true or false"))),
    }
}

struct HeadSeed<'h> {
    head: &'h mut Head,
    known: &'h [Option<Datatype>],
}

impl<'de> DeserializeSeed<'de> for HeadSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeadSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `inputs`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = Seen::default();
        while let Some(key) = map.next_key::<String>()? {
            seen.once::<A::Error>(&key)?;
            match key.as_str() {
                "id" => self.head.id = map.next_value()?,
                "parameters" => self.head.parameters = map.next_value_seed(ParametersSeed)?,
                "inputs" => {
                    self.head.seen_inputs = true;
                    map.next_value_seed(InputsSeed { into: &mut self.head.inputs, known: self.known })?;
                }
                "outputs" => map.next_value_seed(OutputsSeed(&mut self.head.outputs))?,
                _ => map.next_value::<Skipped>().map(|_| ())?,
            }
        }
        Ok(())
    }
}

/// Keys of an object: each counts once.
#[derive(Default)]
struct Seen(std::collections::BTreeSet<String>);

impl Seen {
    fn once<E: Error>(&mut self, key: &str) -> Result<(), E> {
        if !self.0.insert(key.to_owned()) {
            return Err(E::custom(format_args!("`{}` is there twice", key.chars().take(64).collect::<String>())));
        }
        Ok(())
    }
}

struct InputsSeed<'h> {
    into: &'h mut Vec<Input>,
    known: &'h [Option<Datatype>],
}

impl<'de> DeserializeSeed<'de> for InputsSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for InputsSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of inputs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        loop {
            let known = self.known.get(self.into.len()).copied().flatten();
            match sequence.next_element_seed(InputSeed(known))? {
                None => return Ok(()),
                Some(_) if self.into.len() == TENSORS_MAX => {
                    return Err(A::Error::custom(format_args!("more than {TENSORS_MAX} inputs")));
                }
                Some(input) => self.into.push(input),
            }
        }
    }
}

struct InputSeed(Option<Datatype>);

impl<'de> DeserializeSeed<'de> for InputSeed {
    type Value = Input;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Input, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for InputSeed {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an input")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Input, A::Error> {
        let mut seen = Seen::default();
        let mut input = Input { datatype: self.0, ..Input::default() };
        while let Some(key) = map.next_key::<String>()? {
            seen.once::<A::Error>(&key)?;
            match key.as_str() {
                "name" => input.name = name::<A>(&mut map)?,
                "datatype" => {
                    let text: String = map.next_value()?;
                    input.datatype = Some(Datatype::named(&text).map_err(|f| A::Error::custom(f.message))?);
                }
                "shape" => {
                    let shape: Vec<i64> = map.next_value()?;
                    if shape.len() > RANK_MAX {
                        return Err(A::Error::custom(format_args!("a shape of more than {RANK_MAX} axes")));
                    }
                    input.shape = Some(shape);
                }
                "parameters" => input.parameters = map.next_value_seed(ParametersSeed)?,
                "data" => match input.datatype {
                    None => {
                        input.late = true;
                        map.next_value::<Skipped>()?;
                    }
                    Some(datatype) => {
                        let mut list = List::default();
                        map.next_value_seed(data::Read { datatype, list: &mut list, depth: 0 })?;
                        input.list = Some(list);
                    }
                },
                _ => map.next_value::<Skipped>().map(|_| ())?,
            }
        }
        // Without a datatype it is refused as such, not read again.
        input.late &= input.datatype.is_some();
        Ok(input)
    }
}

fn name<'de, A: MapAccess<'de>>(map: &mut A) -> Result<String, A::Error> {
    let name: String = map.next_value()?;
    if name.len() > NAME_BYTES_MAX {
        return Err(A::Error::custom(format_args!("a name of more than {NAME_BYTES_MAX} bytes")));
    }
    Ok(name)
}

struct OutputsSeed<'h>(&'h mut Vec<Wanted>);

impl<'de> DeserializeSeed<'de> for OutputsSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for OutputsSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of outputs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        while let Some(output) = sequence.next_element_seed(OutputSeed)? {
            if self.0.len() == TENSORS_MAX {
                return Err(A::Error::custom(format_args!("more than {TENSORS_MAX} outputs")));
            }
            self.0.push(output);
        }
        Ok(())
    }
}

struct OutputSeed;

impl<'de> DeserializeSeed<'de> for OutputSeed {
    type Value = Wanted;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Wanted, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for OutputSeed {
    type Value = Wanted;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an output")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Wanted, A::Error> {
        let mut seen = Seen::default();
        let mut wanted = Wanted { name: String::new(), binary: None };
        while let Some(key) = map.next_key::<String>()? {
            seen.once::<A::Error>(&key)?;
            match key.as_str() {
                "name" => wanted.name = name::<A>(&mut map)?,
                "parameters" => {
                    let parameters = map.next_value_seed(ParametersSeed)?;
                    let refused = |f: Failure| A::Error::custom(f.message);
                    refuse_unknown("output", &parameters).map_err(refused)?;
                    wanted.binary = flag(&parameters, "binary_data").map_err(refused)?;
                }
                _ => map.next_value::<Skipped>().map(|_| ())?,
            }
        }
        Ok(wanted)
    }
}

struct ParametersSeed;

impl<'de> DeserializeSeed<'de> for ParametersSeed {
    type Value = Parameters;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Parameters, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ParametersSeed {
    type Value = Parameters;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("parameters by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
        let mut parameters = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if parameters.len() > super::PARAMETERS_MAX {
                return Err(A::Error::custom("too many parameters"));
            }
            let name: String = key.chars().take(64).collect();
            if parameters.insert(key, map.next_value::<Parameter>()?).is_some() {
                return Err(A::Error::custom(format_args!("parameter `{name}` is there twice")));
            }
        }
        Ok(parameters)
    }
}

impl<'de> Deserialize<'de> for Parameter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Value;
        impl Visitor<'_> for Value {
            type Value = Parameter;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, a number or a text")
            }
            fn visit_bool<E: Error>(self, value: bool) -> Result<Parameter, E> {
                Ok(Parameter::Bool(value))
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Parameter, E> {
                Ok(Parameter::Int(value))
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Parameter, E> {
                Ok(i64::try_from(value).map_or(Parameter::Uint(value), Parameter::Int))
            }
            fn visit_f64<E: Error>(self, value: f64) -> Result<Parameter, E> {
                Ok(Parameter::Float(value))
            }
            fn visit_str<E: Error>(self, value: &str) -> Result<Parameter, E> {
                Ok(Parameter::Text(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Value)
    }
}

impl Serialize for Parameter {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::Uint(value) => serializer.serialize_u64(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(value) => serializer.serialize_str(value),
        }
    }
}

/// What nobody asks for; unlike serde's own it is only so deep.
struct Skipped;

impl<'de> Deserialize<'de> for Skipped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Skipped;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_bool<E: Error>(self, _: bool) -> Result<Skipped, E> {
                Ok(Skipped)
            }
            fn visit_i64<E: Error>(self, _: i64) -> Result<Skipped, E> {
                Ok(Skipped)
            }
            fn visit_u64<E: Error>(self, _: u64) -> Result<Skipped, E> {
                Ok(Skipped)
            }
            fn visit_f64<E: Error>(self, _: f64) -> Result<Skipped, E> {
                Ok(Skipped)
            }
            fn visit_str<E: Error>(self, _: &str) -> Result<Skipped, E> {
                Ok(Skipped)
            }
            fn visit_unit<E: Error>(self) -> Result<Skipped, E> {
                Ok(Skipped)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Skipped, A::Error> {
                while sequence.next_element::<Skipped>()?.is_some() {}
                Ok(Skipped)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Skipped, A::Error> {
                while map.next_entry::<Skipped, Skipped>()?.is_some() {}
                Ok(Skipped)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// An answer's body, and how many bytes of it are JSON where others follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// All of it.
    pub bytes: Bytes,
    /// Bytes of JSON, where elements stand behind them.
    pub json: Option<usize>,
}

/// Writes an answer; `is_binary` says of an output whether its elements stand
/// behind the JSON.
///
/// # Errors
/// When JSON has no words for an element.
pub fn write(response: &Response, is_binary: impl Fn(&str) -> bool) -> Result<Body, Failure> {
    let internal = |e: serde_json::Error| Failure::new(Code::Internal, e.to_string());
    let mut out = Vec::with_capacity(256);
    let text = |out: &mut Vec<u8>, text: &str| serde_json::to_writer(out, text).map_err(internal);
    out.extend_from_slice(b"{\"model_name\":");
    text(&mut out, &response.model)?;
    out.extend_from_slice(b",\"model_version\":");
    text(&mut out, &response.version)?;
    if !response.id.is_empty() {
        out.extend_from_slice(b",\"id\":");
        text(&mut out, &response.id)?;
    }
    if !response.parameters.is_empty() {
        out.extend_from_slice(b",\"parameters\":");
        serde_json::to_writer(&mut out, &response.parameters).map_err(internal)?;
    }
    out.extend_from_slice(b",\"outputs\":[");
    let mut behind = Vec::new();
    for (at, output) in response.outputs.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"name\":");
        text(&mut out, &output.name)?;
        out.extend_from_slice(b",\"datatype\":");
        text(&mut out, output.datatype.name())?;
        out.extend_from_slice(b",\"shape\":");
        serde_json::to_writer(&mut out, &output.shape).map_err(internal)?;
        if is_binary(&output.name) {
            out.extend_from_slice(format!(",\"parameters\":{{\"binary_data_size\":{}}}", output.data.len()).as_bytes());
            behind.push(&output.data);
        } else {
            out.extend_from_slice(b",\"data\":");
            data::write(output, &mut out)?;
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
    let json = (!behind.is_empty()).then_some(out.len());
    behind.iter().for_each(|data| out.extend_from_slice(data));
    Ok(Body { bytes: out.into(), json })
}

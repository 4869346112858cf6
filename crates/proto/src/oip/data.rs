//! Elements in JSON: lists, flat or nested, into bytes and back.

use std::fmt;

use half::{bf16, f16};
use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};

use super::invalid;
use super::tensor::{Datatype, RANK_MAX, Tensor};
use crate::limits::RUN_BYTES_MAX;
use crate::v1::Failure;

/// Elements read from a list, and how it was nested.
#[derive(Debug, Default)]
pub struct List {
    /// As the protocol has them in bytes.
    pub bytes: Vec<u8>,
    /// How many.
    count: usize,
    /// Length of the lists at each depth, outermost first.
    lengths: Vec<usize>,
    /// Depth at which elements stand.
    depth: Option<usize>,
    /// Lists of one depth differ in length, or elements in depth.
    ragged: bool,
}

impl List {
    /// Compares how the list was nested with a shape.
    ///
    /// # Errors
    /// When they differ; a flat list fits every shape of as many elements.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<(), Failure> {
        let wanted: usize = shape.iter().product();
        let flat = self.lengths.len() <= 1;
        if self.ragged || (!flat && self.lengths != shape) {
            return Err(invalid(format!("`{name}`: its data is nested otherwise than shape {shape:?}")));
        }
        if self.count != wanted {
            let text = format!("`{name}` of shape {shape:?} takes {wanted} elements; {} were given", self.count);
            return Err(invalid(text));
        }
        Ok(())
    }
}

/// Reads a list of elements of a datatype.
pub struct Read<'l> {
    /// What they are.
    pub datatype: Datatype,
    /// Where they go.
    pub list: &'l mut List,
    /// Lists around this one.
    pub depth: usize,
}

impl<'de> DeserializeSeed<'de> for Read<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Read<'_> {
    fn put<E: Error>(&mut self, bytes: &[u8]) -> Result<(), E> {
        if self.depth == 0 {
            return Err(E::custom("data is a list"));
        }
        if (self.list.bytes.len() + bytes.len()) as u64 > RUN_BYTES_MAX {
            return Err(E::custom("more data than a request may carry"));
        }
        self.list.ragged |= *self.list.depth.get_or_insert(self.depth) != self.depth;
        self.list.bytes.extend_from_slice(bytes);
        self.list.count += 1;
        Ok(())
    }

    fn wrong<E: Error>(&self, what: impl fmt::Display) -> E {
        E::custom(format_args!("{what} is no {}", self.datatype))
    }

    fn whole<E: Error>(&mut self, number: i128) -> Result<(), E> {
        macro_rules! put {
            ($int:ty) => {
                match <$int>::try_from(number) {
                    Ok(number) => self.put(&number.to_le_bytes()),
                    Err(_) => Err(self.wrong(number)),
                }
            };
        }
        match self.datatype {
            Datatype::Uint8 => put!(u8),
            Datatype::Uint16 => put!(u16),
            Datatype::Uint32 => put!(u32),
            Datatype::Uint64 => put!(u64),
            Datatype::Int8 => put!(i8),
            Datatype::Int16 => put!(i16),
            Datatype::Int32 => put!(i32),
            Datatype::Int64 => put!(i64),
            Datatype::Fp16 | Datatype::Fp32 | Datatype::Fp64 | Datatype::Bf16 => self.float(number as f64),
            Datatype::Bool if (0..=1).contains(&number) => self.put(&[number as u8]),
            Datatype::Bool | Datatype::Bytes => Err(self.wrong(number)),
        }
    }

    fn float<E: Error>(&mut self, number: f64) -> Result<(), E> {
        macro_rules! put {
            ($narrow:expr) => {{
                let narrow = $narrow;
                // JSON has no infinity: what became one was too large.
                if !narrow.is_finite() {
                    return Err(self.wrong(number));
                }
                self.put(&narrow.to_le_bytes())
            }};
        }
        match self.datatype {
            Datatype::Fp16 => put!(f16::from_f64(number)),
            Datatype::Bf16 => put!(bf16::from_f64(number)),
            Datatype::Fp32 => put!(number as f32),
            Datatype::Fp64 => put!(number),
            _ => Err(self.wrong(number)),
        }
    }
}

impl<'de> Visitor<'de> for Read<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {} elements", self.datatype)
    }

    fn visit_bool<E: Error>(mut self, value: bool) -> Result<(), E> {
        match self.datatype {
            Datatype::Bool => self.put(&[u8::from(value)]),
            _ => Err(self.wrong(value)),
        }
    }

    fn visit_u64<E: Error>(mut self, value: u64) -> Result<(), E> {
        self.whole(value.into())
    }

    fn visit_i64<E: Error>(mut self, value: i64) -> Result<(), E> {
        self.whole(value.into())
    }

    fn visit_f64<E: Error>(mut self, value: f64) -> Result<(), E> {
        self.float(value)
    }

    fn visit_str<E: Error>(mut self, value: &str) -> Result<(), E> {
        if self.datatype != Datatype::Bytes {
            return Err(self.wrong("a text"));
        }
        let length = u32::try_from(value.len()).map_err(E::custom)?.to_le_bytes();
        self.list.bytes.extend_from_slice(&length);
        self.put(value.as_bytes())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        let (datatype, list, depth) = (self.datatype, self.list, self.depth);
        if depth >= RANK_MAX {
            return Err(A::Error::custom(format_args!("lists more than {RANK_MAX} deep")));
        }
        let mut length = 0;
        // Its place among the lengths, before those of the lists in it.
        let known = list.lengths.len() > depth;
        if !known {
            list.lengths.push(0);
        }
        while sequence.next_element_seed(Read { datatype, list, depth: depth + 1 })?.is_some() {
            length += 1;
        }
        if known {
            list.ragged |= list.lengths[depth] != length;
        } else {
            list.lengths[depth] = length;
        }
        Ok(())
    }
}

/// Writes a tensor's elements as a flat list.
///
/// # Errors
/// When JSON has no words for one of them: NaN, infinities, BYTES that are no
/// text.
pub fn write(tensor: &Tensor, out: &mut Vec<u8>) -> Result<(), Failure> {
    macro_rules! numbers {
        ($number:ty) => {
            list(out, tensor.data.as_chunks().0.iter().map(|bytes| <$number>::from_le_bytes(*bytes)))
        };
    }
    macro_rules! floats {
        ($float:ty, $wide:expr) => {{
            let numbers = || tensor.data.as_chunks().0.iter().map(|bytes| $wide(<$float>::from_le_bytes(*bytes)));
            if numbers().any(|number| !number.is_finite()) {
                let text = format!("output `{}` holds NaN or infinity, which JSON has no numbers for", tensor.name);
                return Err(invalid(text).with_help("ask for it as bytes: parameter `binary_data`"));
            }
            list(out, numbers())
        }};
    }
    match tensor.datatype {
        Datatype::Bool => list(out, tensor.data.iter().map(|byte| *byte != 0)),
        Datatype::Uint8 => numbers!(u8),
        Datatype::Uint16 => numbers!(u16),
        Datatype::Uint32 => numbers!(u32),
        Datatype::Uint64 => numbers!(u64),
        Datatype::Int8 => numbers!(i8),
        Datatype::Int16 => numbers!(i16),
        Datatype::Int32 => numbers!(i32),
        Datatype::Int64 => numbers!(i64),
        Datatype::Fp16 => floats!(f16, f16::to_f32),
        Datatype::Bf16 => floats!(bf16, bf16::to_f32),
        Datatype::Fp32 => floats!(f32, |number: f32| number),
        Datatype::Fp64 => floats!(f64, |number: f64| number),
        Datatype::Bytes => {
            let texts: Result<Vec<&str>, _> = tensor.texts().map(std::str::from_utf8).collect();
            let texts = texts.map_err(|_| {
                let text = format!("output `{}` holds bytes that are no text", tensor.name);
                invalid(text).with_help("ask for it as bytes: parameter `binary_data`")
            })?;
            list(out, texts)
        }
    }
}

fn list<T: serde::Serialize>(out: &mut Vec<u8>, elements: impl IntoIterator<Item = T>) -> Result<(), Failure> {
    out.push(b'[');
    for (at, element) in elements.into_iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, &element).map_err(|e| invalid(e.to_string()))?;
    }
    out.push(b']');
    Ok(())
}

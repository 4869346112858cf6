//! Where the tensors of an ONNX file lie in it.
//!
//! Walks the messages that lead to tensors and passes over everything else,
//! so the file needn't be in memory. Nothing is interpreted beyond names, types
//! and shapes: a file that ends or nests otherwise than it should has no tensors.

use std::io::{BufReader, Read, Seek, SeekFrom};

use super::element::Element;

/// A tensor's values in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    pub element: Element,
    /// As the file says; tells tensors apart, and isn't relied on.
    pub dims: Vec<u64>,
    pub start: u64,
    pub length: u64,
}

/// Tensors of a file at most; the rest is left to what comes between.
const TENSORS_MAX: usize = 1 << 16;

/// Bytes of a name at most, and axes.
const NAME_BYTES_MAX: u64 = 4_096;
const AXES_MAX: usize = 16;

/// Values of fewer bytes are left to what comes between.
const LENGTH_MIN: u64 = 8;

/// Messages within messages: graphs within nodes take four each.
const DEPTH_MAX: u32 = 64;

/// Messages on the way to tensors, by their names in `onnx.proto`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Function,
    Node,
    Attribute,
    Sparse,
    Tensor,
}

impl Message {
    /// What a field of it holds, if that leads on.
    fn field(self, number: u64) -> Option<Self> {
        Some(match (self, number) {
            (Self::Model, 7) | (Self::Attribute, 6 | 11) => Self::Graph,
            (Self::Model, 25) => Self::Function,
            (Self::Graph, 1) | (Self::Function, 7) => Self::Node,
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::Sparse, 1 | 2) => Self::Tensor,
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Self::Sparse,
            (Self::Node, 5) | (Self::Function, 11) => Self::Attribute,
            _ => return None,
        })
    }
}

/// The tensors of a file, in its order; `None` where it is no ONNX model.
///
/// # Errors
/// Those of reading.
pub fn tensors(file: &mut (impl Read + Seek)) -> std::io::Result<Option<Vec<Tensor>>> {
    let end = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    let mut walk = Walk { file: BufReader::new(file), at: 0, tensors: Vec::new(), graph: false };
    match walk.message(Message::Model, end, 0) {
        Ok(()) if walk.graph => Ok(Some(walk.tensors)),
        Ok(()) | Err(Stop::Broken) => Ok(None),
        Err(Stop::Io(e)) => Err(e),
    }
}

enum Stop {
    Broken,
    Io(std::io::Error),
}

struct Walk<R> {
    file: BufReader<R>,
    at: u64,
    tensors: Vec<Tensor>,
    graph: bool,
}

impl<R: Read + Seek> Walk<R> {
    fn message(&mut self, message: Message, end: u64, depth: u32) -> Result<(), Stop> {
        if depth > DEPTH_MAX {
            return Err(Stop::Broken);
        }
        self.graph |= message == Message::Graph;
        if message == Message::Tensor {
            return self.tensor(end);
        }
        while self.at < end {
            let (number, length) = self.field(end)?;
            match (message.field(number), length) {
                (Some(inner), Some(length)) => self.message(inner, self.at + length, depth + 1)?,
                (_, Some(length)) => self.skip(length)?,
                (_, None) => {}
            }
        }
        Ok(())
    }

    fn tensor(&mut self, end: u64) -> Result<(), Stop> {
        let (mut name, mut dims, mut data_type, mut values) = (String::new(), Vec::new(), 0, None);
        while self.at < end {
            let (number, wire) = self.key()?;
            if wire == 0 {
                let value = self.varint()?;
                match number {
                    1 if dims.len() < AXES_MAX => dims.push(value),
                    2 => data_type = value,
                    _ => {}
                }
                continue;
            }
            let Some(length) = self.rest(wire, end)? else { continue };
            match number {
                1 => {
                    let end = self.at + length;
                    while self.at < end {
                        let value = self.varint()?;
                        if dims.len() < AXES_MAX {
                            dims.push(value);
                        }
                    }
                }
                8 if length <= NAME_BYTES_MAX => {
                    let mut bytes = vec![0; length as usize];
                    self.read(&mut bytes)?;
                    name = String::from_utf8_lossy(&bytes).into_owned();
                }
                4 | 5 | 7 | 9 | 10 | 11 => {
                    values = Some((number, self.at, length));
                    self.skip(length)?;
                }
                _ => self.skip(length)?,
            }
        }
        if let Some((field, start, length)) = values
            && length >= LENGTH_MIN
            && self.tensors.len() < TENSORS_MAX
        {
            let element = match field {
                9 => Element::of_onnx(data_type),
                4 => Element::F32,
                10 => Element::F64,
                // Numbers of variable length.
                _ => Element::U8,
            };
            let whole = length.is_multiple_of(element.width() as u64);
            let element = if whole { element } else { Element::U8 };
            self.tensors.push(Tensor { name, element, dims, start, length });
        }
        if self.at == end { Ok(()) } else { Err(Stop::Broken) }
    }

    /// The next field's number, and its length where it has one.
    fn field(&mut self, end: u64) -> Result<(u64, Option<u64>), Stop> {
        let (number, wire) = self.key()?;
        if wire == 0 {
            self.varint()?;
            return Ok((number, None));
        }
        Ok((number, self.rest(wire, end)?))
    }

    fn key(&mut self) -> Result<(u64, u64), Stop> {
        let key = self.varint()?;
        if key >> 3 == 0 { Err(Stop::Broken) } else { Ok((key >> 3, key & 7)) }
    }

    /// The length of a field that has one; passes over those that have not.
    fn rest(&mut self, wire: u64, end: u64) -> Result<Option<u64>, Stop> {
        let length = match wire {
            1 => 8,
            5 => 4,
            2 => self.varint()?,
            _ => return Err(Stop::Broken),
        };
        if end.checked_sub(self.at).is_none_or(|left| length > left) {
            return Err(Stop::Broken);
        }
        if wire == 2 {
            return Ok(Some(length));
        }
        self.skip(length)?;
        Ok(None)
    }

    fn varint(&mut self) -> Result<u64, Stop> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.read(&mut byte)?;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(value);
            }
        }
        Err(Stop::Broken)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Stop> {
        self.at += bytes.len() as u64;
        self.file.read_exact(bytes).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Stop::Broken,
            _ => Stop::Io(e),
        })
    }

    fn skip(&mut self, length: u64) -> Result<(), Stop> {
        let by = i64::try_from(length).map_err(|_| Stop::Broken)?;
        self.at += length;
        self.file.seek_relative(by).map_err(Stop::Io)
    }
}

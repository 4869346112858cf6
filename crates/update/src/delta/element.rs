//! What a tensor's bytes are, as far as differences care: how wide elements
//! are, and whether they are floats.

/// An element's layout, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    U8 = 0,
    I16 = 1,
    I32 = 2,
    I64 = 3,
    F16 = 4,
    Bf16 = 5,
    F32 = 6,
    F64 = 7,
}

impl Element {
    pub const ALL: [Self; 8] = [Self::U8, Self::I16, Self::I32, Self::I64, Self::F16, Self::Bf16, Self::F32, Self::F64];

    /// Bytes of one.
    pub fn width(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }

    /// Of a number in ONNX's `TensorProto.DataType`, stored raw; several
    /// elements in a byte, and text, are bytes.
    pub fn of_onnx(data_type: u64) -> Self {
        match data_type {
            1 | 14 => Self::F32,
            4 | 5 => Self::I16,
            6 | 12 => Self::I32,
            7 | 13 => Self::I64,
            10 => Self::F16,
            11 | 15 => Self::F64,
            16 => Self::Bf16,
            _ => Self::U8,
        }
    }

    /// Bits of the fraction, of floats.
    pub fn fraction_bits(self) -> Option<u32> {
        match self {
            Self::F16 => Some(10),
            Self::Bf16 => Some(7),
            Self::F32 => Some(23),
            Self::F64 => Some(52),
            _ => None,
        }
    }
}

/// The element at `bytes`' beginning, of `W` bytes.
#[inline]
pub fn load<const W: usize>(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..W].copy_from_slice(&bytes[..W]);
    u64::from_le_bytes(word)
}

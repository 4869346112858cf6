//! How the numbers of an update are rounded.

use fastrand::Rng;
use half::f16;

use super::PipelineError;
use super::bits::{Bits, Writer};
use crate::CodecError;
use crate::frame::Reader;

/// Numbers that share a scale.
const BLOCK: usize = 1_024;

/// How numbers are rounded. Scales are per 1,024 numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Precision {
    /// Not at all: f32.
    #[default]
    Full,
    /// To half precision; what is too large for it becomes the largest it has.
    Half,
    /// To the nearest of 255 steps between plus and minus the largest.
    Int8,
    /// To the nearest of 15 steps.
    Int4,
    /// To one of the two nearest of `2^bits - 1` steps, at random and right on
    /// average (Alistarh et al., "QSGD", 2017).
    Qsgd(u32),
    /// To plus or minus the mean magnitude (Bernstein et al., "signSGD", 2018;
    /// with the scale of Karimireddy et al., 2019).
    Sign,
}

impl Precision {
    pub(super) fn parse(stage: &str, name: &str, option: &str) -> Result<Self, PipelineError> {
        let plain = |precision| match option {
            "" => Ok(precision),
            _ => Err(PipelineError::Option { stage: stage.to_owned(), reason: "it has no option" }),
        };
        match name {
            "fp16" => plain(Self::Half),
            "int8" => plain(Self::Int8),
            "int4" => plain(Self::Int4),
            "sign" => plain(Self::Sign),
            "qsgd" => {
                let bits = option.parse().ok().filter(|bits| (2..=8).contains(bits));
                let reason = "2 to 8 bits follow the colon";
                bits.map(Self::Qsgd).ok_or_else(|| PipelineError::Option { stage: stage.to_owned(), reason })
            }
            _ => Err(PipelineError::Unknown { stage: stage.to_owned() }),
        }
    }

    pub(super) fn stage(self) -> Option<String> {
        match self {
            Self::Full => None,
            Self::Half => Some("fp16".to_owned()),
            Self::Int8 => Some("int8".to_owned()),
            Self::Int4 => Some("int4".to_owned()),
            Self::Qsgd(bits) => Some(format!("qsgd:{bits}")),
            Self::Sign => Some("sign".to_owned()),
        }
    }

    pub(super) fn code(self) -> [u8; 2] {
        match self {
            Self::Full => [0, 0],
            Self::Half => [1, 0],
            Self::Int8 => [2, 0],
            Self::Int4 => [3, 0],
            Self::Qsgd(bits) => [4, bits as u8],
            Self::Sign => [5, 0],
        }
    }

    pub(super) fn from_code(code: [u8; 2]) -> Result<Self, CodecError> {
        Ok(match code {
            [0, 0] => Self::Full,
            [1, 0] => Self::Half,
            [2, 0] => Self::Int8,
            [3, 0] => Self::Int4,
            [4, bits @ 2..=8] => Self::Qsgd(bits.into()),
            [5, 0] => Self::Sign,
            _ => return Err(CodecError::Corrupt("it is rounded in an unknown way")),
        })
    }

    /// Bytes of a number that are worth keeping apart before packing.
    pub(super) fn planes(self) -> usize {
        match self {
            Self::Full => 4,
            Self::Half => 2,
            _ => 1,
        }
    }

    /// Bits of a rounded number, where numbers share scales.
    fn bits(self) -> Option<u32> {
        match self {
            Self::Full | Self::Half => None,
            Self::Int8 => Some(8),
            Self::Int4 => Some(4),
            Self::Qsgd(bits) => Some(bits),
            Self::Sign => Some(1),
        }
    }

    /// Bytes that `count` numbers take.
    pub(super) fn bytes(self, count: usize) -> usize {
        match self.bits() {
            None => self.planes() * count,
            Some(bits) => 4 * count.div_ceil(BLOCK) + (count * bits as usize).div_ceil(8),
        }
    }

    /// Steps to either side of zero.
    fn steps(self) -> f32 {
        match self.bits() {
            Some(bits @ 2..) => ((1u32 << (bits - 1)) - 1) as f32,
            _ => 1.0,
        }
    }

    /// Appends numbers: all scales, then all codes.
    pub(super) fn write(self, values: &[f32], seed: u64, out: &mut Vec<u8>) {
        let Some(bits) = self.bits() else {
            match self {
                Self::Half => out.extend(values.iter().flat_map(|&x| {
                    let max = f16::MAX.to_f32();
                    f16::from_f32(x.clamp(-max, max)).to_le_bytes()
                })),
                _ => out.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            }
            return;
        };
        let scales: Vec<f32> = values.chunks(BLOCK).map(|block| self.scale(block)).collect();
        out.extend(scales.iter().flat_map(|s| s.to_le_bytes()));
        let steps = self.steps();
        let mut rng = Rng::with_seed(seed ^ 0x726f_756e);
        let mut writer = Writer::new(out);
        for (block, &scale) in values.chunks(BLOCK).zip(&scales) {
            // In f64: a scale of the smallest numbers has no inverse in f32.
            let inverse = if scale > 0.0 { f64::from(steps) / f64::from(scale) } else { 0.0 };
            for &x in block {
                let code = match self {
                    Self::Sign => u32::from(x >= 0.0),
                    Self::Qsgd(_) => {
                        let exact = f64::from(x) * inverse;
                        let below = exact.floor();
                        let up = rng.f64() < exact - below;
                        (below as i32 + i32::from(up) + steps as i32) as u32
                    }
                    _ => ((f64::from(x) * inverse).round() as i32 + steps as i32) as u32,
                };
                writer.put(code, bits);
            }
        }
        writer.finish();
    }

    fn scale(self, block: &[f32]) -> f32 {
        match self {
            Self::Sign => {
                let sum: f64 = block.iter().map(|x| f64::from(x.abs())).sum();
                (sum / block.len() as f64) as f32
            }
            _ => block.iter().fold(0f32, |largest, x| largest.max(x.abs())),
        }
    }

    /// The numbers that [`Precision::write`] wrote.
    pub(super) fn read(self, count: usize, reader: &mut Reader<'_>) -> Result<Vec<f32>, CodecError> {
        let Some(bits) = self.bits() else {
            let bytes = reader.take(self.planes() * count)?;
            let values: Vec<f32> = match self {
                Self::Half => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
                _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            };
            return Ok(values);
        };
        let mut scales = Vec::with_capacity(count.div_ceil(BLOCK));
        for _ in 0..count.div_ceil(BLOCK) {
            let scale = reader.f32()?;
            if !(scale.is_finite() && scale >= 0.0) {
                return Err(CodecError::Corrupt("a scale is not a finite number"));
            }
            scales.push(scale);
        }
        let mut codes = Bits::new(reader.take((count * bits as usize).div_ceil(8))?);
        let steps = self.steps();
        let mut values = Vec::with_capacity(count);
        for i in 0..count {
            let scale = f64::from(scales[i / BLOCK]);
            let code = codes.take(bits);
            let share = match self {
                Self::Sign => 2.0 * f64::from(code) - 1.0,
                _ => (f64::from(code) - f64::from(steps)) / f64::from(steps),
            };
            values.push((share * scale) as f32);
        }
        Ok(values)
    }
}

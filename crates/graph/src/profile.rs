//! What a device measured for the segments of a model. Data only: the engine
//! fills it, the planner reads it, files and wire messages carry it. Programs
//! write it, so fields that a reader doesn't know are passed by.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Measurements of one device, by prepared-model digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceProfile {
    /// The device's name.
    pub device: String,
    /// Engine and version the measurements were taken with.
    pub engine: String,
    /// Threads the engine ran on.
    pub threads: usize,
    /// Factor from the measured device to this one; 1 when measured here.
    pub scale: f64,
    /// Per model, by digest of the prepared model.
    pub models: BTreeMap<String, ModelProfile>,
}

/// Time, memory and cut sizes of one model on one device.
///
/// `n` cuts make `n + 1` segments: segment `i` lies between cut `i - 1` and
/// cut `i`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelProfile {
    /// Digest of the prepared model (BLAKE3, hexadecimal).
    pub model: String,
    /// Shapes of the inputs at which it was measured.
    pub input_shapes: BTreeMap<String, Vec<u64>>,
    /// Candidate cuts in topological order: the frontier's tensors.
    pub cuts: Vec<CutProfile>,
    /// Median time of each fused segment.
    pub segments: Vec<SegmentProfile>,
    /// Median time of the whole model in one session, nanoseconds.
    pub whole_ns: u64,
    /// Median absolute deviation of `whole_ns` over its median.
    pub spread: f64,
    /// Time to create the whole model's session, nanoseconds.
    pub load_ns: u64,
    /// Bytes of the model's outputs at these input shapes.
    pub output_bytes: u64,
    /// The outputs and their codecs; empty in profiles of older versions.
    #[serde(default)]
    pub output: CutProfile,
    /// Bytes of the model's inputs at these input shapes, and their codecs.
    pub input: CutProfile,
    /// Time that the head of each early exit adds to the segment that it sits
    /// behind, nanoseconds; `None` where the device can't run it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub head_ns: Vec<Option<u64>>,
}

/// One segment of a model on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SegmentProfile {
    /// Median time, nanoseconds; `None` when the device can't run it.
    pub time_ns: Option<u64>,
    /// Why it can't, when it can't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Weights plus peak activations, bytes.
    pub memory_bytes: u64,
    /// Multiply-adds, where the shapes tell.
    pub macs: Option<u64>,
}

/// One candidate cut at the profiled shapes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CutProfile {
    /// The frontier's tensors.
    pub tensors: Vec<TensorProfile>,
}

/// One tensor of a cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorProfile {
    /// The tensor's name in the prepared model.
    pub name: String,
    /// Bytes as computed, uncompressed.
    pub bytes: u64,
    /// What each codec makes of it.
    pub codecs: Vec<CodecProfile>,
}

/// A codec on one tensor, measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CodecProfile {
    /// The codec's name.
    pub codec: String,
    /// Encoded bytes.
    pub bytes: u64,
    /// Time to encode on this device, nanoseconds.
    pub encode_ns: u64,
    /// Time to decode on this device, nanoseconds.
    pub decode_ns: u64,
    /// Relative error of the model's outputs (root mean square of the
    /// difference over that of the output); 0 for lossless codecs.
    pub loss: f64,
}

/// Longest time of anything measured, nanoseconds: eleven days.
pub const TIME_NS_MAX: u64 = 1_000_000_000_000_000;

/// Most bytes of anything measured.
pub const BYTES_MAX: u64 = 1 << 50;

/// Segments of a profile, tensors of a cut, codecs of a tensor, at most.
pub const SEGMENTS_MAX: usize = 1_024;
const TENSORS_MAX: usize = 1_024;
const CODECS_MAX: usize = 64;

/// A profile that nobody can have measured.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// A number beyond what is possible.
    #[error("the profile's {what} is {value}; it must be {needed}")]
    Value {
        /// Which number.
        what: &'static str,
        /// The number.
        value: String,
        /// What it must be.
        needed: &'static str,
    },
    /// A list longer than any is.
    #[error("the profile has {count} {what}; at most {max} are taken")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// Limit.
        max: usize,
    },
    /// Cuts and segments that don't fit each other.
    #[error("the profile has {segments} segments and {cuts} cuts; there is one more segment than cuts")]
    Mismatch {
        /// Segments.
        segments: usize,
        /// Cuts.
        cuts: usize,
    },
}

/// A codec must save this share of the outputs' bytes to be worth its time.
const OUTPUT_SAVING_MIN: f64 = 0.2;

fn at_most(what: &'static str, value: u64, max: u64, needed: &'static str) -> Result<(), ProfileError> {
    if value > max { Err(ProfileError::Value { what, value: value.to_string(), needed }) } else { Ok(()) }
}

fn time(what: &'static str, ns: u64) -> Result<(), ProfileError> {
    at_most(what, ns, TIME_NS_MAX, "at most 1e15 ns")
}

fn size(what: &'static str, bytes: u64) -> Result<(), ProfileError> {
    at_most(what, bytes, BYTES_MAX, "at most 2^50 bytes")
}

fn share(what: &'static str, value: f64) -> Result<(), ProfileError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(ProfileError::Value { what, value: value.to_string(), needed: "a number of 0 or more" })
}

fn count(what: &'static str, count: usize, max: usize) -> Result<(), ProfileError> {
    if count > max { Err(ProfileError::TooMany { what, count, max }) } else { Ok(()) }
}

impl CutProfile {
    fn check(&self) -> Result<(), ProfileError> {
        count("tensors at a cut", self.tensors.len(), TENSORS_MAX)?;
        for tensor in &self.tensors {
            size("size of a tensor", tensor.bytes)?;
            count("codecs of a tensor", tensor.codecs.len(), CODECS_MAX)?;
            for codec in &tensor.codecs {
                size("encoded size of a tensor", codec.bytes)?;
                time("time to encode", codec.encode_ns)?;
                time("time to decode", codec.decode_ns)?;
                share("loss of a codec", codec.loss)?;
            }
        }
        Ok(())
    }
}

impl ModelProfile {
    /// Refuses numbers that nobody can have measured: a profile may come from
    /// another device. Sums of what passes are in range.
    ///
    /// # Errors
    /// The first of them.
    pub fn check(&self) -> Result<(), ProfileError> {
        let (segments, cuts) = (self.segments.len(), self.cuts.len());
        count("segments", segments, SEGMENTS_MAX)?;
        if segments != cuts + 1 {
            return Err(ProfileError::Mismatch { segments, cuts });
        }
        for segment in &self.segments {
            time("time of a segment", segment.time_ns.unwrap_or(0))?;
            size("memory of a segment", segment.memory_bytes)?;
        }
        time("time of the whole model", self.whole_ns)?;
        count("exits", self.head_ns.len(), crate::exits::EXITS_MAX)?;
        self.head_ns.iter().flatten().try_for_each(|ns| time("time of an exit's head", *ns))?;
        time("time to load", self.load_ns)?;
        share("spread", self.spread)?;
        size("size of the outputs", self.output_bytes)?;
        self.cuts.iter().chain([&self.input, &self.output]).try_for_each(CutProfile::check)
    }

    /// How outputs travel back: the lossless codec that makes them smallest,
    /// if that is worth its time, and their bytes then.
    #[must_use]
    pub fn reply_codec(&self) -> Option<(&str, u64)> {
        let names = self.output.tensors.first()?.codecs.iter().filter(|c| c.loss == 0.0).map(|c| c.codec.as_str());
        let bytes = |name: &str| {
            let of = |t: &TensorProfile| t.codecs.iter().find(|c| c.codec == name).map_or(t.bytes, |c| c.bytes);
            self.output.tensors.iter().map(of).sum::<u64>()
        };
        let least = names.map(|name| (name, bytes(name))).min_by_key(|(_, bytes)| *bytes)?;
        ((least.1 as f64) < self.output_bytes as f64 * (1.0 - OUTPUT_SAVING_MIN)).then_some(least)
    }
}

impl DeviceProfile {
    /// The profile of a device `factor` times slower (above 1) or faster.
    #[must_use]
    pub fn scaled(&self, device: &str, factor: f64) -> Self {
        let time = |ns: u64| (ns as f64 * factor).round() as u64;
        let mut scaled = self.clone();
        scaled.device = device.to_owned();
        scaled.scale *= factor;
        for model in scaled.models.values_mut() {
            model.whole_ns = time(model.whole_ns);
            model.load_ns = time(model.load_ns);
            for segment in &mut model.segments {
                segment.time_ns = segment.time_ns.map(time);
            }
            for head in &mut model.head_ns {
                *head = head.map(time);
            }
            for tensor in
                model.cuts.iter_mut().chain([&mut model.input, &mut model.output]).flat_map(|c| &mut c.tensors)
            {
                for codec in &mut tensor.codecs {
                    codec.encode_ns = time(codec.encode_ns);
                    codec.decode_ns = time(codec.decode_ns);
                }
            }
        }
        scaled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> ModelProfile {
        let codec = CodecProfile { codec: "raw".into(), bytes: 4, encode_ns: 1, decode_ns: 1, loss: 0.0 };
        let tensor = TensorProfile { name: "x".into(), bytes: 4, codecs: vec![codec] };
        let cut = CutProfile { tensors: vec![tensor] };
        let segment = SegmentProfile { time_ns: Some(5), refused: None, memory_bytes: 8, macs: None };
        ModelProfile {
            model: "m".into(),
            input_shapes: BTreeMap::new(),
            cuts: vec![cut.clone()],
            segments: vec![segment.clone(), segment],
            whole_ns: 9,
            spread: 0.1,
            load_ns: 3,
            output_bytes: 4,
            output: cut.clone(),
            input: cut,
            head_ns: vec![Some(2), None],
        }
    }

    #[test]
    fn numbers_that_nobody_can_have_measured_are_refused() {
        profile().check().unwrap();
        type Change = fn(&mut ModelProfile);
        let changes: [(Change, &str); 9] = [
            (|p| p.segments[0].time_ns = Some(u64::MAX), "time of a segment"),
            (|p| p.segments[1].memory_bytes = u64::MAX, "memory of a segment"),
            (|p| p.whole_ns = u64::MAX, "time of the whole model"),
            (|p| p.output_bytes = u64::MAX, "size of the outputs"),
            (|p| p.cuts[0].tensors[0].codecs[0].encode_ns = u64::MAX, "time to encode"),
            (|p| p.input.tensors[0].codecs[0].bytes = u64::MAX, "encoded size"),
            (|p| p.cuts[0].tensors[0].codecs[0].loss = f64::NAN, "loss of a codec"),
            (|p| p.cuts.clear(), "one more segment than cuts"),
            (|p| p.head_ns[0] = Some(u64::MAX), "time of an exit's head"),
        ];
        for (change, what) in changes {
            let mut wrong = profile();
            change(&mut wrong);
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}

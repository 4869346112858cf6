//! What a device measured for the segments of a model. Data only: the engine
//! fills it, the planner reads it, files and wire messages carry it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Measurements of one device, by prepared-model digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
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
}

/// One segment of a model on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
pub struct CutProfile {
    /// The frontier's tensors.
    pub tensors: Vec<TensorProfile>,
}

/// One tensor of a cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
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

/// A codec must save this share of the outputs' bytes to be worth its time.
const OUTPUT_SAVING_MIN: f64 = 0.2;

impl ModelProfile {
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

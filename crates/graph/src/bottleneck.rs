//! A learned bottleneck of a model: where few bytes stand for a tensor.
//!
//! A model with a bottleneck is a *variant* of another one: at one tensor it
//! encodes what is sent to 8-bit integers, and decodes them again. What it is
//! sent for, and what it loses, is data in the file under [`METADATA_KEY`].
//! Start at [`attach`]; [`best`] chooses the tensor; [`Bottleneck::of`] reads
//! what a file says.

mod attach;

use std::collections::HashSet;
use std::fmt;

pub use attach::{AttachError, Coder, Form, Wanted, attach, best};
use serde::{Deserialize, Serialize};

use crate::index::Index;
use crate::infer::infer_types;
use crate::model::Model;
use crate::onnx::StringStringEntryProto;
use crate::tensor::DataType;

/// The key of the model's `metadata_props` that holds a [`Bottleneck`] as JSON.
pub const METADATA_KEY: &str = "tierline.bottleneck";

/// Bytes of the metadata.
const METADATA_BYTES_MAX: usize = 1 << 16;

/// Bytes of a name in it.
const NAME_BYTES_MAX: usize = 1_024;

/// A bottleneck, and what is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bottleneck {
    /// The tensor that is sent, of u8.
    pub tensor: String,
    /// The tensor that it stands for, of f32.
    pub of: String,
    /// Digest of the file that this model is a variant of.
    pub stands_for: String,
    /// Bytes of `of`, for one example.
    pub bytes_before: u64,
    /// Bytes of `tensor`, for one example.
    pub bytes: u64,
    /// What it loses; none where nobody measured it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// What a bottleneck loses, on examples that it wasn't fitted on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// The data set's name.
    pub data: String,
    /// How many examples.
    pub examples: u64,
    /// Share of right answers of the model without it.
    pub accuracy_before: f64,
    /// Share of right answers with it.
    pub accuracy: f64,
}

impl Measured {
    /// Points of accuracy that it loses; below 0 where it gains.
    #[must_use]
    pub fn points_lost(&self) -> f64 {
        100.0 * (self.accuracy_before - self.accuracy)
    }

    /// Whether it loses no more than so many points.
    #[must_use]
    pub fn keeps_to(&self, points: f64) -> bool {
        // 90% less 89% is a little more than one point in floats.
        self.points_lost() <= points + 1e-9
    }
}

/// Why a file's bottleneck is none.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BottleneckError {
    /// Not JSON of this form.
    #[error("`{METADATA_KEY}` of the model's metadata: {0}")]
    Syntax(String),
    /// A number out of range.
    #[error("the bottleneck's {what} is {value}; it must be {needed}")]
    Value {
        /// Which number.
        what: &'static str,
        /// The number.
        value: String,
        /// What it must be.
        needed: &'static str,
    },
    /// A tensor that isn't what is sent.
    #[error("`{tensor}` is no bottleneck: {reason}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// Why not.
        reason: &'static str,
    },
}

impl fmt::Display for Bottleneck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes for {} of `{}`, ", self.bytes, self.bytes_before, self.of)?;
        let Some(measured) = &self.measured else { return f.write_str("what it loses is not measured") };
        let Measured { data, examples, accuracy_before, accuracy } = measured;
        let (lost, before, after) = (measured.points_lost(), 100.0 * accuracy_before, 100.0 * accuracy);
        write!(f, "{lost:.2} points lost ({after:.2}% of {before:.2}%) on {examples} examples of {data}")
    }
}

impl Bottleneck {
    /// The bottleneck that a model's file tells of; `None` when it tells of none.
    ///
    /// # Errors
    /// When what it says doesn't fit the model.
    pub fn of(model: &Model) -> Result<Option<Self>, BottleneckError> {
        let Some(entry) = model.proto().metadata_props.iter().find(|entry| entry.key() == METADATA_KEY) else {
            return Ok(None);
        };
        if entry.value().len() > METADATA_BYTES_MAX {
            return Err(BottleneckError::Syntax(format!("more than {METADATA_BYTES_MAX} bytes")));
        }
        let read = serde_json::from_str::<Self>(entry.value());
        let bottleneck = read.map_err(|e| BottleneckError::Syntax(e.to_string()))?;
        bottleneck.check()?;
        bottleneck.check_model(model)?;
        Ok(Some(bottleneck))
    }

    /// Refuses numbers that no bottleneck has.
    ///
    /// # Errors
    /// The first of them.
    pub fn check(&self) -> Result<(), BottleneckError> {
        let value = |what, value: String, needed| Err(BottleneckError::Value { what, value, needed });
        let data = self.measured.as_ref().map_or("", |measured| measured.data.as_str());
        if let Some(long) =
            [&self.tensor, &self.of, &self.stands_for, data].map(str::len).into_iter().find(|len| *len > NAME_BYTES_MAX)
        {
            return value("name", format!("{long} bytes"), "at most 1024");
        }
        if self.bytes == 0 || self.bytes >= self.bytes_before {
            return value("size", format!("{} of {} bytes", self.bytes, self.bytes_before), "smaller than before");
        }
        let Some(measured) = &self.measured else { return Ok(()) };
        for share in [measured.accuracy_before, measured.accuracy] {
            if !(0.0..=1.0).contains(&share) {
                return value("accuracy", share.to_string(), "0 to 1");
            }
        }
        Ok(())
    }

    /// Whether the model can be divided there.
    fn check_model(&self, model: &Model) -> Result<(), BottleneckError> {
        let refuse = |reason| Err(BottleneckError::Tensor { tensor: self.tensor.clone(), reason });
        let index = Index::new(model);
        if !index.producer.contains_key(self.tensor.as_str()) || !index.is_dynamic(&self.tensor) {
            return refuse("the model computes no such tensor");
        }
        let types = infer_types(model).unwrap_or_default();
        if types.get(&self.tensor).and_then(|info| info.dtype) != Some(DataType::U8) {
            return refuse("it doesn't hold 8-bit integers");
        }
        let outputs: Vec<&str> = index.graph.output.iter().map(|output| output.name()).collect();
        let behind = index.needed_for(&outputs, &HashSet::from([self.tensor.as_str()]));
        let inputs: HashSet<&str> = index.inputs().into_iter().collect();
        let past = behind.iter().any(|&node| index.reads[node].iter().any(|name| inputs.contains(name)));
        if past || outputs.iter().any(|output| inputs.contains(output)) {
            return refuse("what follows also needs what was computed before");
        }
        Ok(())
    }

    /// Writes it into a model.
    ///
    /// # Errors
    /// When it doesn't fit it.
    pub fn write(&self, model: &Model) -> Result<Model, BottleneckError> {
        self.check()?;
        self.check_model(model)?;
        let text = serde_json::to_string(self).map_err(|e| BottleneckError::Syntax(e.to_string()))?;
        let mut proto = model.proto().clone();
        proto.metadata_props.retain(|entry| entry.key() != METADATA_KEY);
        let (key, value) = (Some(METADATA_KEY.to_owned()), Some(text));
        proto.metadata_props.push(StringStringEntryProto { key, value, ..Default::default() });
        Ok(Model { proto })
    }

    /// How many times fewer bytes are sent.
    #[must_use]
    pub fn times(&self) -> f64 {
        self.bytes_before as f64 / self.bytes.max(1) as f64
    }

    /// Points of accuracy that it loses, where that was measured.
    #[must_use]
    pub fn points_lost(&self) -> Option<f64> {
        self.measured.as_ref().map(Measured::points_lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emit::{Attribute, node};
    use crate::onnx::{GraphProto, ModelProto, OperatorSetIdProto};
    use crate::slice::value_info_proto;
    use crate::types::{Dim, ValueInfo};

    /// x of 64 numbers -> Relu -> h -> Neg -> y.
    fn model() -> Model {
        let value = |name: &str| {
            let shape = Some(vec![Dim::Known(1), Dim::Known(64)]);
            value_info_proto(&ValueInfo { name: name.to_owned(), dtype: Some(DataType::F32), shape })
        };
        let graph = GraphProto {
            name: Some("g".to_owned()),
            node: vec![
                node("Relu", &["x"], &["h"], &[]),
                node("Softmax", &["h"], &["y"], &[("axis", Attribute::Int(1))]),
            ],
            input: vec![value("x")],
            output: vec![value("y")],
            ..GraphProto::default()
        };
        let opset = OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() };
        let (ir_version, opset_import) = (Some(8), vec![opset]);
        Model::from_proto(ModelProto { ir_version, opset_import, graph: Some(graph).into(), ..ModelProto::default() })
            .unwrap()
    }

    fn stating(change: impl Fn(&mut serde_json::Value)) -> String {
        let wanted = Wanted { at: "h".to_owned(), times: 16.0, stands_for: "file".to_owned() };
        let (model, bottleneck, _) = attach(&model(), &wanted).unwrap();
        let mut value = serde_json::to_value(&bottleneck).unwrap();
        change(&mut value);
        let mut proto = model.proto().clone();
        proto.metadata_props.iter_mut().for_each(|entry| entry.value = Some(value.to_string()));
        Bottleneck::of(&Model { proto }).map(|found| found.unwrap().to_string()).unwrap_or_else(|e| e.to_string())
    }

    #[test]
    fn what_is_written_is_read_again_and_what_does_not_fit_is_refused() {
        assert_eq!(stating(|_| {}), "16 bytes for 256 of `h`, what it loses is not measured");
        let measured = serde_json::json!({ "data": "d", "examples": 10, "accuracy_before": 0.9, "accuracy": 0.88 });
        let told = stating(|v| v["measured"] = measured.clone());
        assert_eq!(told, "16 bytes for 256 of `h`, 2.00 points lost (88.00% of 90.00%) on 10 examples of d");
        let cases: [(&str, serde_json::Value, &str); 6] = [
            ("tensor", "h".into(), "8-bit integers"),
            ("tensor", "nowhere".into(), "no such tensor"),
            ("bytes", 256.into(), "smaller than before"),
            ("bytes", 0.into(), "smaller than before"),
            ("extra", 1.into(), "extra"),
            ("of", "h".repeat(2_000).into(), "at most 1024"),
        ];
        for (key, value, part) in cases {
            let error = stating(|v| v[key] = value.clone());
            assert!(error.contains(part), "{key}: {error}");
        }
        let beyond = stating(|v| {
            v["measured"] = measured.clone();
            v["measured"]["accuracy"] = 1.5.into();
        });
        assert!(beyond.contains("0 to 1"), "{beyond}");
        assert!(Bottleneck::of(&model()).unwrap().is_none());
        let one = Measured { data: String::new(), examples: 100, accuracy_before: 0.9, accuracy: 0.89 };
        assert!(one.keeps_to(1.0) && !one.keeps_to(0.99));
    }
}

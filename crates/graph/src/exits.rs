//! Early exits of a model: outputs that answer before its end, and when.
//!
//! Data only, kept in the model's own file under [`METADATA_KEY`]. What an
//! exit's output says of its sureness is computed by `tierline_plan::exits`.
//! Start at [`Exits::of`], then [`places`](fn@places).

mod attach;
mod places;

use std::collections::{BTreeMap, BTreeSet};

pub use attach::{Answer, AttachError, Head, Wanted, answer, attach, learned, one_example, spread, with_weights};
pub(crate) use attach::{check_opset, described, names};
pub use places::{Part, PlaceError, candidates, giving, head_macs, macs_before, places, slice, trunk_macs};
use serde::{Deserialize, Serialize};

use crate::error::LoadError;
use crate::model::Model;
use crate::onnx::StringStringEntryProto;

/// The key of the model's `metadata_props` that holds [`Exits`] as JSON. A list
/// of output names stands for exits of a classifier without a rule yet.
pub const METADATA_KEY: &str = "tierline.exits";

/// Exits of one model.
pub const EXITS_MAX: usize = 16;

/// Points of a calibration curve.
pub const POINTS_MAX: usize = 1_024;

/// Bytes of the metadata.
const METADATA_BYTES_MAX: usize = 1 << 20;

/// How sure an exit's answer is: what is compared with a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Criterion {
    /// The largest probability.
    Confidence,
    /// 1 less the entropy over its maximum (BranchyNet: Teerapittayanon 2016).
    Entropy,
    /// The largest probability less the second largest.
    Margin,
    /// Exits in a row with the same class, this one included (Zhou 2020).
    Patience,
    /// What a small graph beside the head says: the probability that the
    /// model's end answers the same.
    Learned,
}

impl Criterion {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Confidence, Self::Entropy, Self::Margin, Self::Patience, Self::Learned];

    /// Its name in files and on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Confidence => "confidence",
            Self::Entropy => "entropy",
            Self::Margin => "margin",
            Self::Patience => "patience",
            Self::Learned => "learned",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|criterion| criterion.name() == name)
    }
}

/// When an exit answers: when its sureness is at least the threshold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// How sureness is computed.
    pub criterion: Criterion,
    /// The least sureness; at most 1, but for [`Criterion::Patience`], which counts exits.
    pub threshold: f64,
}

/// What the numbers that an answer is judged by are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scores {
    /// Before softmax.
    #[default]
    Logits,
    /// Probabilities over the classes.
    Probabilities,
}

/// One exit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    /// For each output of the model's end, the output that stands for it here.
    pub outputs: BTreeMap<String, String>,
    /// For [`Criterion::Learned`]: the output that says how sure it is, `[batch]` or `[batch, 1]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sureness: Option<String>,
    /// When it answers; never by itself without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
}

/// One choice of thresholds, on held-out data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// One for each exit; an exit that is not used has none.
    pub thresholds: Vec<Option<f64>>,
    /// Share of the examples answered rightly.
    pub accuracy: f64,
    /// Share of the examples that leave at each exit; the rest reach the end.
    pub leave: Vec<f64>,
    /// Multiply-adds of the average example, heads included.
    pub macs: f64,
}

/// How accuracy and work depend on the thresholds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// The data set's name.
    pub data: String,
    /// How many examples.
    pub examples: u64,
    /// The criterion of all points.
    pub criterion: Criterion,
    /// Accuracy of the model's end alone.
    pub accuracy: f64,
    /// Multiply-adds of the model without exits.
    pub macs: f64,
    /// From few multiply-adds to many.
    pub points: Vec<Point>,
}

/// The exits of a model, in the order in which they are computed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exits {
    /// The output of the model's end that exits are judged by; the only one, when it is not named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<String>,
    /// Its axis of classes; negative counts from the last.
    #[serde(default = "last_axis")]
    pub axis: i64,
    /// What its numbers are.
    #[serde(default)]
    pub scores: Scores,
    /// The exits.
    pub exits: Vec<Exit>,
    /// How their thresholds were found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
}

fn last_axis() -> i64 {
    -1
}

/// Why a file's exits are none.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExitsError {
    /// Not JSON of this form.
    #[error("`{METADATA_KEY}` of the model's metadata: {0}")]
    Syntax(String),
    /// More than is taken.
    #[error("{count} {what}; at most {max} are taken")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// Limit.
        max: usize,
    },
    /// An output that the model doesn't have.
    #[error("exit {exit}: the model has no output `{output}`")]
    NoOutput {
        /// Which exit, from 1.
        exit: usize,
        /// The name.
        output: String,
    },
    /// An output that means two things.
    #[error("output `{0}` belongs to two exits")]
    Twice(String),
    /// An exit that doesn't answer everything that the end answers.
    #[error("exit {exit} has nothing for output `{output}` of the model's end")]
    Incomplete {
        /// Which exit, from 1.
        exit: usize,
        /// The output that it lacks.
        output: String,
    },
    /// Nothing to judge by.
    #[error("`judged` must name one of the outputs of the model's end: {}", ends.join(", "))]
    Judged {
        /// Those there are.
        ends: Vec<String>,
    },
    /// A number out of range.
    #[error("{what} is {value}; it must be {needed}")]
    Value {
        /// Which number.
        what: &'static str,
        /// The number.
        value: String,
        /// What it must be.
        needed: &'static str,
    },
    /// A learned rule without the output it reads.
    #[error("exit {0} has a learned rule but no `sureness` output")]
    NoSureness(usize),
    /// Every output is an exit's.
    #[error("every output belongs to an exit; none is left for the model's end")]
    NoEnd,
}

impl Exits {
    /// The exits that a model's file tells of; `None` when it tells of none.
    ///
    /// # Errors
    /// When what it says doesn't fit the model.
    pub fn of(model: &Model) -> Result<Option<Self>, ExitsError> {
        let Some(entry) = model.proto().metadata_props.iter().find(|entry| entry.key() == METADATA_KEY) else {
            return Ok(None);
        };
        let text = entry.value();
        if text.len() > METADATA_BYTES_MAX {
            return Err(ExitsError::TooMany { what: "bytes of exits", count: text.len(), max: METADATA_BYTES_MAX });
        }
        let syntax = |e: serde_json::Error| ExitsError::Syntax(e.to_string());
        let exits = match serde_json::from_str::<Vec<String>>(text) {
            Ok(names) => Self::named(model, &names)?,
            Err(_) => serde_json::from_str::<Self>(text).map_err(syntax)?,
        };
        exits.check(model)?;
        Ok(Some(exits))
    }

    /// Exits of a classifier by the names of their outputs.
    fn named(model: &Model, names: &[String]) -> Result<Self, ExitsError> {
        let outputs = model.outputs();
        if let Some(index) = names.iter().position(|name| outputs.iter().all(|output| &output.name != name)) {
            return Err(ExitsError::NoOutput { exit: index + 1, output: names[index].clone() });
        }
        let mut ends = model.outputs().into_iter().map(|o| o.name).filter(|name| !names.contains(name));
        let (Some(end), None) = (ends.next(), ends.next()) else {
            let ends = model.outputs().into_iter().map(|o| o.name).filter(|name| !names.contains(name));
            return Err(ExitsError::Judged { ends: ends.collect() });
        };
        let exit = |name: &String| Exit { outputs: [(end.clone(), name.clone())].into(), sureness: None, rule: None };
        Ok(Self { axis: -1, exits: names.iter().map(exit).collect(), ..Self::default() })
    }

    /// Whether they fit the model.
    ///
    /// # Errors
    /// The first thing that doesn't.
    pub fn check(&self, model: &Model) -> Result<(), ExitsError> {
        let most = |what, count, max| if count > max { Err(ExitsError::TooMany { what, count, max }) } else { Ok(()) };
        most("exits", self.exits.len(), EXITS_MAX)?;
        let outputs: BTreeSet<String> = model.outputs().into_iter().map(|o| o.name).collect();
        let mut seen = BTreeSet::new();
        for (index, exit) in self.exits.iter().enumerate() {
            for name in exit.names() {
                if !outputs.contains(name) {
                    return Err(ExitsError::NoOutput { exit: index + 1, output: name.to_owned() });
                }
                if !seen.insert(name.to_owned()) {
                    return Err(ExitsError::Twice(name.to_owned()));
                }
            }
        }
        let ends: Vec<String> = self.ends(model);
        if ends.is_empty() {
            return Err(ExitsError::NoEnd);
        }
        for (index, exit) in self.exits.iter().enumerate() {
            if let Some(output) = ends.iter().find(|end| !exit.outputs.contains_key(*end)) {
                return Err(ExitsError::Incomplete { exit: index + 1, output: output.clone() });
            }
            if let Some(output) = exit.outputs.keys().find(|end| !ends.contains(end)) {
                return Err(ExitsError::NoOutput { exit: index + 1, output: output.clone() });
            }
            let Some(rule) = exit.rule else { continue };
            if rule.criterion == Criterion::Learned && exit.sureness.is_none() {
                return Err(ExitsError::NoSureness(index + 1));
            }
            if !rule.threshold.is_finite() {
                let value = rule.threshold.to_string();
                return Err(ExitsError::Value { what: "a threshold", value, needed: "a finite number" });
            }
        }
        if !self.exits.is_empty() {
            self.judged(model)?;
        }
        let Some(calibration) = &self.calibration else { return Ok(()) };
        most("points of the calibration", calibration.points.len(), POINTS_MAX)?;
        for point in &calibration.points {
            for (what, len) in [("thresholds of a point", point.thresholds.len()), ("shares", point.leave.len())] {
                if len != self.exits.len() {
                    return Err(ExitsError::Value { what, value: len.to_string(), needed: "one for each exit" });
                }
            }
            let shares = point.leave.iter().chain([&point.accuracy]);
            if let Some(share) = shares.into_iter().find(|share| !(0.0..=1.0).contains(*share)) {
                return Err(ExitsError::Value { what: "a share", value: share.to_string(), needed: "0 to 1" });
            }
        }
        Ok(())
    }

    /// Outputs of the model's end: those that belong to no exit.
    #[must_use]
    pub fn ends(&self, model: &Model) -> Vec<String> {
        let of_exits: BTreeSet<&str> = self.exits.iter().flat_map(Exit::names).collect();
        model.outputs().into_iter().map(|o| o.name).filter(|name| !of_exits.contains(name.as_str())).collect()
    }

    /// The output of the model's end that exits are judged by.
    ///
    /// # Errors
    /// [`ExitsError::Judged`] when none is named and there are several.
    pub fn judged(&self, model: &Model) -> Result<String, ExitsError> {
        let ends = self.ends(model);
        match (&self.judged, &ends[..]) {
            (Some(named), _) if ends.contains(named) => Ok(named.clone()),
            (None, [only]) => Ok(only.clone()),
            _ => Err(ExitsError::Judged { ends }),
        }
    }

    /// Writes them into a model.
    ///
    /// # Errors
    /// When they don't fit it.
    pub fn write(&self, model: &Model) -> Result<Model, ExitsError> {
        self.check(model)?;
        let text = serde_json::to_string(self).map_err(|e| ExitsError::Syntax(e.to_string()))?;
        let mut proto = model.proto().clone();
        proto.metadata_props.retain(|entry| entry.key() != METADATA_KEY);
        let (key, value) = (Some(METADATA_KEY.to_owned()), Some(text));
        proto.metadata_props.push(StringStringEntryProto { key, value, ..Default::default() });
        Ok(Model { proto })
    }

    /// The model without its exits: the same inputs, the outputs of its end,
    /// and all nodes still there.
    ///
    /// # Errors
    /// When that is no valid model.
    pub fn trunk(&self, model: &Model) -> Result<Model, LoadError> {
        let ends: BTreeSet<String> = self.ends(model).into_iter().collect();
        let mut proto = model.proto().clone();
        proto.metadata_props.retain(|entry| entry.key() != METADATA_KEY);
        proto.graph.mut_or_insert_default().output.retain(|output| ends.contains(output.name()));
        Model::from_proto(proto)
    }
}

impl Exit {
    /// The outputs of the model that belong to it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.outputs.values().chain(&self.sureness).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
    use crate::slice::value_info_proto;
    use crate::tensor::DataType;
    use crate::types::{Dim, ValueInfo};

    /// x -> Relu -> h -> Neg -> end, with `heads` of Identity on h.
    fn model(heads: &[&str]) -> Model {
        let node = |op: &str, from: &str, to: &str| NodeProto {
            op_type: Some(op.to_owned()),
            input: vec![from.to_owned()],
            output: vec![to.to_owned()],
            ..NodeProto::default()
        };
        let value = |name: &str| {
            let shape = Some(vec![Dim::Known(1), Dim::Known(3)]);
            value_info_proto(&ValueInfo { name: name.to_owned(), dtype: Some(DataType::F32), shape })
        };
        let mut graph = GraphProto {
            name: Some("g".to_owned()),
            node: vec![node("Relu", "x", "h"), node("Neg", "h", "end")],
            input: vec![value("x")],
            output: vec![value("end")],
            ..GraphProto::default()
        };
        for head in heads {
            graph.node.push(node("Identity", "h", head));
            graph.output.push(value(head));
        }
        let opset = OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() };
        let proto = ModelProto {
            ir_version: Some(8),
            opset_import: vec![opset],
            graph: Some(graph).into(),
            ..ModelProto::default()
        };
        Model::from_proto(proto).unwrap()
    }

    fn stating(heads: &[&str], text: &str) -> Result<Option<Exits>, ExitsError> {
        let mut proto = model(heads).proto().clone();
        let (key, value) = (Some(METADATA_KEY.to_owned()), Some(text.to_owned()));
        proto.metadata_props.push(StringStringEntryProto { key, value, ..Default::default() });
        Exits::of(&Model { proto })
    }

    #[test]
    fn criteria_have_one_name_everywhere() {
        for criterion in Criterion::ALL {
            assert_eq!(serde_json::to_value(criterion).unwrap(), criterion.name());
            assert_eq!(Criterion::by_name(criterion.name()), Some(criterion));
        }
        assert_eq!(Criterion::by_name("luck"), None);
    }

    #[test]
    fn a_list_of_outputs_is_enough() {
        let exits = stating(&["early", "later"], r#"["early","later"]"#).unwrap().unwrap();
        assert_eq!(exits.exits.len(), 2);
        assert_eq!(exits.exits[1].outputs["end"], "later");
        assert_eq!(exits.axis, -1);
        assert!(Exits::of(&model(&[])).unwrap().is_none());
    }

    #[test]
    fn what_is_written_is_read_again_and_the_trunk_has_no_exit() {
        let model = model(&["early"]);
        let rule = Some(Rule { criterion: Criterion::Entropy, threshold: 0.4 });
        let exit = Exit { outputs: [("end".to_owned(), "early".to_owned())].into(), sureness: None, rule };
        let exits = Exits { axis: -1, exits: vec![exit], ..Exits::default() };
        let written = exits.write(&model).unwrap();
        assert_eq!(Exits::of(&written).unwrap().unwrap(), exits);
        assert_eq!(exits.judged(&written).unwrap(), "end");
        let trunk = exits.trunk(&written).unwrap();
        assert_eq!(trunk.outputs().into_iter().map(|o| o.name).collect::<Vec<_>>(), ["end"]);
        assert!(Exits::of(&trunk).unwrap().is_none());
    }

    #[test]
    fn what_does_not_fit_the_model_is_refused() {
        let cases = [
            ("[\"nowhere\"]", "no output `nowhere`"),
            ("[\"early\", \"early\"]", "belongs to two exits"),
            ("[\"early\", \"end\"]", "`judged`"),
            ("{\"exits\": [{\"outputs\": {}}]}", "nothing for output"),
            (
                "{\"exits\": [{\"outputs\": {\"end\": \"early\"}, \"rule\": {\"criterion\": \"learned\", \"threshold\": 0.5}}]}",
                "no `sureness`",
            ),
            ("{\"exits\": [{\"outputs\": {\"end\": \"early\"}}], \"judged\": \"early\"}", "must name one"),
            ("{\"exits\": [{\"outputs\": {\"end\": \"early\"}}], \"extra\": 1}", "extra"),
            ("17", "metadata"),
        ];
        for (text, part) in cases {
            let error = stating(&["early"], text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

//! Which input and output of a step is what, kept in the file itself.

use serde::{Deserialize, Serialize};

use super::loss::Attached;
use super::{StepError, Untrained};
use crate::model::Model;
use crate::onnx::{ModelProto, StringStringEntryProto};

/// Key of the model's metadata under which a step describes itself, as JSON.
pub const METADATA: &str = "tierline.step";

/// What a piece of state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A weight that follows its gradient.
    Parameter,
    /// A running statistic.
    Statistic,
    /// What the optimiser remembers.
    Optimizer,
    /// How much of the loss's fall a weight brought, of a step that traces it.
    Path,
    /// The number of steps taken.
    Counter,
}

/// A piece of state: what is put in, and where its next value comes out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Name of the input, which is also the weight's name in the model.
    pub input: String,
    /// Name of the output that is the input of the next step.
    pub output: String,
    /// What it is.
    pub role: Role,
    /// Of a parameter, the tensor within the graph that is its gradient,
    /// before clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient: Option<String>,
}

/// Inputs and outputs of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The model's own inputs: the batch.
    pub inputs: Vec<String>,
    /// The input that takes targets.
    pub target: String,
    /// The output of the model that the loss is about.
    pub predicts: String,
    /// Number of classes, where targets are classes.
    pub classes: Option<u64>,
    /// The output that is the loss, averaged over the batch.
    pub loss: String,
    /// Further outputs, all scalars: `correct` (examples, or places, whose
    /// likeliest class is the target) and [`Spec::counted`] where targets are
    /// classes; `learning_rate`; `gradient_norm` (before clipping).
    pub metrics: Vec<String>,
    /// The output that is the number of examples, or places, whose target
    /// isn't left out ([`LEFT_OUT`](super::LEFT_OUT)), where targets are
    /// classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<String>,
    /// State, in the order in which it is given and comes out.
    pub state: Vec<Slot>,
    /// The scalar input that multiplies the learning rate, of a step that is
    /// steered from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pace: Option<String>,
    /// The scalar input that weights are pulled by, of a step that is steered
    /// so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<String>,
    /// Inputs that say how strongly weights are held, one for each parameter of
    /// `state` in its order; none unless the step is steered so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stiffness: Vec<String>,
    /// Inputs that say to where, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub anchors: Vec<String>,
    /// Inputs that weights' changes are multiplied by, in the same order; none
    /// unless the step is steered so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masks: Vec<String>,
    /// Inputs that are added to gradients, one for each parameter of `state`
    /// in its order; none unless the step is steered so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub corrections: Vec<String>,
    /// Weights that aren't trained though no pattern froze them, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub untrained: Vec<Untrained>,
}

impl Spec {
    pub(super) fn new(model: &Model, loss: &Attached, output: &str) -> Self {
        let inputs = model.inputs().into_iter().map(|i| i.name);
        Self {
            inputs: inputs.filter(|name| name != super::TARGET && name != super::STEP).collect(),
            target: super::TARGET.to_owned(),
            predicts: output.to_owned(),
            classes: loss.classes,
            loss: loss.loss.clone(),
            metrics: loss.correct.iter().chain(&loss.counted).cloned().collect(),
            counted: loss.counted.clone(),
            state: Vec::new(),
            pace: None,
            pull: None,
            stiffness: Vec::new(),
            anchors: Vec::new(),
            masks: Vec::new(),
            corrections: Vec::new(),
            untrained: Vec::new(),
        }
    }

    /// Inputs that steer the step, all with defaults that change nothing.
    pub fn steering(&self) -> impl Iterator<Item = &str> {
        let held = self.stiffness.iter().chain(&self.anchors).chain(&self.masks);
        self.pace.iter().chain(&self.pull).chain(held).chain(&self.corrections).map(String::as_str)
    }

    pub(super) fn write(&self, proto: &mut ModelProto) {
        let text = serde_json::to_string(self).expect("names and lists are JSON");
        proto.metadata_props.retain(|p| p.key() != METADATA);
        proto.metadata_props.push(StringStringEntryProto {
            key: Some(METADATA.to_owned()),
            value: Some(text),
            ..StringStringEntryProto::default()
        });
    }

    pub(super) fn read(model: &Model) -> Result<Self, StepError> {
        let entry = model.proto().metadata_props.iter().find(|p| p.key() == METADATA);
        let missing = || StepError::NotAStep { reason: format!("its metadata has no `{METADATA}`") };
        serde_json::from_str(entry.ok_or_else(missing)?.value())
            .map_err(|e| StepError::NotAStep { reason: format!("its metadata `{METADATA}` is broken: {e}") })
    }
}

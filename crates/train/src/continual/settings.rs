//! What a job's file says of learning without forgetting: the table
//! `[continual]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tierline_graph::Model;
use tierline_graph::step;

use super::{Ewc, Isolation, Penalty, Replay, Si};
use crate::data::Dataset;
use crate::error::TrainError;

/// Tasks of a job, at most.
pub const TASKS_MAX: usize = 1_024;

/// How a model learns one task after the other.
///
/// Methods go together; without any it is plain fine-tuning, which forgets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Continual {
    /// What is learned, one after the other; without any, the job's data is
    /// one task.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<Task>,
    /// What an earlier job kept, seen from the job's own folder; nothing is
    /// known of earlier tasks when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// Which weights learn.
    pub learn: Learned,
    /// Examples of earlier tasks, seen again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
    /// Weights that matter are held, by how steep the loss is in them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ewc: Option<Ewc>,
    /// Weights that matter are held, by what their moves brought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub si: Option<Si>,
    /// What the model said before of the new examples is learned with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lwf: Option<Lwf>,
    /// What a larger model says of the new examples is learned with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<Teacher>,
    /// Each task has weights of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
}

/// A task: which examples it has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Task {
    /// What it is called; its place when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A data set of its own; the job's when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Its classes, by name, or by number where they have no names; all when
    /// left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Whether an earlier job learned it: it is tested, and not learned again.
    pub learned: bool,
}

/// Which weights learn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Learned {
    /// All that the job doesn't freeze.
    #[default]
    All,
    /// Those of the last layer.
    Head,
    /// Those of so many last layers.
    Last(usize),
}

/// Learning without forgetting: the model's earlier answers to the new examples
/// are learned beside their classes (Li and Hoiem, 2016). Of classes that it
/// never saw before, its answer doesn't count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lwf {
    /// Divides the logits, above 0.
    pub temperature: f64,
    /// What the divergence from earlier answers weighs beside the classes.
    pub weight: f64,
}

impl Default for Lwf {
    fn default() -> Self {
        Self { temperature: 2.0, weight: 1.0 }
    }
}

/// A model from whose answers another one learns (Hinton et al., 2015): that of
/// the tier above, say. It may be of any architecture that takes the same
/// examples and tells the same classes apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    /// The ONNX file, seen from the job's own folder.
    pub model: PathBuf,
    /// Divides the logits, above 0.
    #[serde(default = "Teacher::temperature")]
    pub temperature: f64,
    /// What the divergence from its answers weighs beside the classes.
    #[serde(default = "Teacher::weight")]
    pub weight: f64,
    /// Whether classes are learned as well; examples that nobody labelled have
    /// none that count.
    #[serde(default = "Teacher::labels")]
    pub labels: bool,
}

impl Teacher {
    fn temperature() -> f64 {
        Lwf::default().temperature
    }

    fn weight() -> f64 {
        Lwf::default().weight
    }

    fn labels() -> bool {
        true
    }
}

/// Refuses a number outside of its range.
pub(super) fn within(what: &'static str, value: f64, holds: bool, range: &'static str) -> Result<(), TrainError> {
    if holds && value.is_finite() { Ok(()) } else { Err(TrainError::Range { what, value: value.to_string(), range }) }
}

impl Continual {
    /// Refuses settings that make no sense, or don't go together.
    ///
    /// # Errors
    /// Naming the first of them.
    pub fn check(&self) -> Result<(), TrainError> {
        if self.tasks.len() > TASKS_MAX {
            let (value, range) = (format!("of {}", self.tasks.len()), "of at most 1024 tasks");
            return Err(TrainError::Range { what: "continual.tasks", value, range });
        }
        if self.tasks.iter().skip_while(|task| task.learned).any(|task| task.learned) {
            return Err(TrainError::Continual("tasks that were learned before come first; list them so".into()));
        }
        if self.learn == Learned::Last(0) {
            let range = "of at least one layer";
            return Err(TrainError::Range { what: "continual.learn", value: "of no layer".into(), range });
        }
        if let Some(lwf) = &self.lwf {
            within("continual.lwf.temperature", lwf.temperature, lwf.temperature > 0.0, "above 0 and finite")?;
            within("continual.lwf.weight", lwf.weight, lwf.weight >= 0.0, "at least 0 and finite")?;
        }
        if let Some(teacher) = &self.teacher {
            let (temperature, weight) = (teacher.temperature, teacher.weight);
            within("continual.teacher.temperature", temperature, temperature > 0.0, "above 0 and finite")?;
            within("continual.teacher.weight", weight, weight >= 0.0, "at least 0 and finite")?;
            if self.lwf.is_some() {
                let text = "a teacher and lwf would both speak of the new examples; take one of the two";
                return Err(TrainError::Continual(text.into()));
            }
        }
        self.replay.as_ref().map_or(Ok(()), Replay::check)?;
        self.ewc.as_ref().map_or(Ok(()), Ewc::check)?;
        self.si.as_ref().map_or(Ok(()), Si::check)?;
        self.isolation.as_ref().map_or(Ok(()), Isolation::check)?;
        if self.isolation.is_some() && self.learn != Learned::All {
            return Err(TrainError::Continual("isolation shares out all weights; leave out continual.learn".into()));
        }
        if self.isolation.is_some() && self.replay.as_ref().is_some_and(|r| r.pick == super::Pick::Gdumb) {
            return Err(TrainError::Continual("gdumb begins anew, which isolation can't; take one of the two".into()));
        }
        Ok(())
    }

    /// What is held of what the methods keep, and how strongly.
    pub(crate) fn held(&self, of_ewc: Option<&Penalty>, of_si: Option<&Penalty>) -> Penalty {
        let mut held = Penalty::default();
        if let (Some(ewc), Some(penalty)) = (&self.ewc, of_ewc) {
            held = held.plus(&penalty.times(ewc.lambda));
        }
        if let (Some(si), Some(penalty)) = (&self.si, of_si) {
            // The penalty is the whole square, of which half is taken here.
            held = held.plus(&penalty.times(2.0 * si.strength));
        }
        held
    }

    /// Which weights of a model stay as they are, besides those that its job
    /// freezes.
    pub(super) fn frozen(&self, model: &Model) -> Result<Vec<String>, TrainError> {
        let last = match self.learn {
            Learned::All => return Ok(Vec::new()),
            Learned::Head => 1,
            Learned::Last(layers) => layers,
        };
        let layers = step::layers(model)?;
        let stay = layers.len().saturating_sub(last);
        Ok(layers.into_iter().take(stay).flat_map(|layer| layer.weights).collect())
    }
}

impl Task {
    /// Its examples among those of a data set.
    ///
    /// # Errors
    /// When it names a class that isn't there, or none of its examples is.
    pub fn of(&self, whole: &Dataset) -> Result<Dataset, TrainError> {
        if self.classes.is_empty() {
            return Ok(whole.clone());
        }
        let wrong = |reason: String| TrainError::Continual(reason);
        let (Some(classes), Some(count)) = (whole.classes(), whole.class_count()) else {
            return Err(wrong(format!("a task names classes, and {} has numbers for targets", whole.name())));
        };
        let mut wanted = vec![false; count];
        for name in &self.classes {
            let Some(class) = (0..count).find(|&class| whole.class_name(class) == *name) else {
                let known: Vec<String> = (0..count.min(12)).map(|class| whole.class_name(class)).collect();
                let known = known.join(", ");
                return Err(wrong(format!("a task names class `{name}`; {} has {known}", whole.name())));
            };
            wanted[class] = true;
        }
        let own: Vec<usize> = (0..whole.len()).filter(|&example| wanted[classes[example]]).collect();
        if own.is_empty() {
            return Err(wrong(format!("{} has no example of classes {}", whole.name(), self.classes.join(", "))));
        }
        Ok(whole.subset(&own)?)
    }

    /// What people call the task at a place, from 0.
    #[must_use]
    pub fn called(&self, at: usize) -> String {
        self.name.clone().unwrap_or_else(|| (at + 1).to_string())
    }
}

//! A service: several models under one name, as users write it (SERVICE.toml)
//! and as nodes keep it.
//!
//! Data only; a few short files beside it do what it takes with tensors:
//! [`judge`] says whether an answer is sure enough, [`combine`] makes one answer
//! of several, [`crops`] cuts pictures out of a picture, [`Service::answered`] says
//! how often each answers, [`follow`] keeps thresholds by what traffic shows. Asking the models is
//! for `tierline_node::composition`. Start at [`Service::parse`].

pub mod combine;
pub mod crops;
pub mod follow;
pub mod judge;
mod keys;
pub mod numbers;
mod shares;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tierline_graph::exits::{Criterion, Rule, Scores};

pub use self::keys::ServiceError;
use self::keys::value;

/// Models of one service.
pub const MEMBERS_MAX: usize = 16;

/// Bytes of a SERVICE.toml.
pub const TOML_BYTES_MAX: usize = 64 << 10;

/// Names that a member's inputs and outputs are given.
const NAMES_MAX: usize = 64;

/// Points of a calibration curve.
pub const POINTS_MAX: usize = 256;

/// Crops of one request, at most, whatever is declared.
pub const CROPS_MAX: usize = 1_024;

/// Pixels of one side of a crop.
const SIDE_MAX: usize = 4_096;

/// Several models under one name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// How they work together.
    pub kind: Kind,
    /// The models; of a cascade, the smallest first.
    #[serde(rename = "member", default)]
    pub members: Vec<Member>,
    /// Cascades: the share of sure answers that are asked further all the same.
    #[serde(default, skip_serializing_if = "is_default")]
    pub audit: f64,
    /// Cascades: the share of all answers that are to be those of the larger
    /// models; thresholds follow traffic to keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
    /// Cascades: pictures that no small model should decide on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
    /// Ensembles: how answers become one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub combine: Option<Combine>,
    /// Ensembles: what the combined output is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Ensembles: answers that are enough; all when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least: Option<usize>,
    /// What becomes of examples that the first model wasn't sure of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examples: Option<Examples>,
    /// How the thresholds were found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Curve>,
}

/// How models work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One after the other, until one is sure.
    Cascade,
    /// All at once, one answer of all.
    Ensemble,
    /// Each gets what those before it give.
    Chain,
}

impl Kind {
    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Cascade => "cascade",
            Self::Ensemble => "ensemble",
            Self::Chain => "chain",
        }
    }
}

/// How answers of an ensemble become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// The weighted mean of their probabilities.
    Mean,
    /// Each example's share of the weight that is for each class.
    Vote,
    /// The weighted mean of their values, whatever those are.
    Values,
}

/// One model of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// The model's name in the catalogue.
    pub model: String,
    /// What the service calls it; the model's name when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where its inputs come from, by its own names; those that aren't named here come
    /// from the service's input of the same name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, Source>,
    /// Its outputs by the names that the service gives them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, String>,
    /// The output that is judged or combined; its only one when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<String>,
    /// What the numbers of that output are.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scores: Scores,
    /// Its axis of classes; negative counts from the last.
    #[serde(default = "last_axis", skip_serializing_if = "is_last_axis")]
    pub axis: i64,
    /// Cascades, all but the last: how sureness is computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub criterion: Option<Criterion>,
    /// Cascades, all but the last: the least sureness that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// Cascades: the share of the time left that it may take before the next is asked beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Ensembles: what its answer counts; 1 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Where it runs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub placement: Placement,
    /// Chains: it runs on crops of a picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crops: Option<Crops>,
}

fn last_axis() -> i64 {
    -1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes references
fn is_last_axis(axis: &i64) -> bool {
    *axis == last_axis()
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Where a member runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// By its plan.
    #[default]
    Plan,
    /// On the node that is asked.
    Here,
    /// On the edge.
    Edge,
    /// On the cloud.
    Cloud,
}

/// Where an input of a member comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Source {
    /// An input of the service.
    Input(String),
    /// An output of a member before it.
    Output {
        /// The member's name in the service.
        of: String,
        /// The output.
        output: String,
    },
}

/// Pictures that no small model should decide on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// The input with the picture, `[batch, channels, height, width]`.
    pub input: String,
    /// The least variance of the picture's Laplacian, for values from 0 to 1; less is blurred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blur_min: Option<f64>,
    /// The least mean, for values from 0 to 1; less is too dark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dark_max: Option<f64>,
    /// The largest mean, for values from 0 to 1; more is too bright.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bright_min: Option<f64>,
    /// What stands for white in the input.
    #[serde(default = "one")]
    pub white: f64,
}

fn one() -> f64 {
    1.0
}

/// How boxes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boxes {
    /// Left, top, right, bottom.
    #[default]
    Xyxy,
    /// Left, top, width, height.
    Xywh,
    /// Centre, width, height.
    Cxcywh,
    /// Top, left, bottom, right.
    Yxyx,
}

/// A model that runs on crops of a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Crops {
    /// The member that gives the boxes.
    pub of: String,
    /// Its output with the boxes, `[n, 4]` or `[1, n, 4]`.
    pub boxes: String,
    /// How they are written.
    #[serde(default)]
    pub format: Boxes,
    /// Whether they count from 0 to 1 over the picture, rather than pixels.
    #[serde(default)]
    pub relative: bool,
    /// The member's output with one score for each box, `[n]` or `[1, n]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<String>,
    /// The least score of a box that is looked at.
    #[serde(default)]
    pub score_min: f64,
    /// Boxes that are looked at, those of the highest scores first.
    #[serde(default = "boxes_max")]
    pub boxes_max: usize,
    /// The service's input with the picture, `[1, channels, height, width]`.
    pub image: String,
    /// The model's input that the crops go into, `[batch, channels, height, width]`.
    pub input: String,
    /// Height and width of a crop, pixels.
    pub size: [usize; 2],
    /// Factor on the picture's values, before `mean` and `std`.
    #[serde(default = "one")]
    pub scale: f64,
    /// Subtracted from each channel; one number for all, or one for each.
    #[serde(default)]
    pub mean: Vec<f64>,
    /// Each channel is divided by; one number for all, or one for each.
    #[serde(default)]
    pub std: Vec<f64>,
    /// Crops in one request of the model.
    #[serde(default = "batch_max")]
    pub batch_max: usize,
}

fn boxes_max() -> usize {
    64
}

fn batch_max() -> usize {
    8
}

/// What is kept of an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The inputs as they came.
    Raw,
    /// What the first model made of them.
    Features,
    /// Nothing.
    #[default]
    None,
}

/// What becomes of examples that the first model wasn't sure of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Examples {
    /// What is kept.
    #[serde(default)]
    pub policy: Policy,
    /// Megabytes on each node.
    #[serde(default = "max_mb")]
    pub max_mb: f64,
    /// How many on each node.
    #[serde(default = "max_count")]
    pub max_count: usize,
}

fn max_mb() -> f64 {
    64.0
}

fn max_count() -> usize {
    1_000
}

/// How thresholds were found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// The data set's name.
    pub data: String,
    /// How many examples.
    pub examples: u64,
    /// Accuracy of the last model alone.
    pub accuracy: f64,
    /// From few examples asked further to many.
    #[serde(rename = "point", default)]
    pub points: Vec<CurvePoint>,
}

/// One choice of thresholds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// One for each member but the last; one that never answers has none.
    pub thresholds: Vec<f64>,
    /// Share of the examples answered rightly.
    pub accuracy: f64,
    /// Share of the examples that each member answers.
    pub answered: Vec<f64>,
}

impl Member {
    /// What the service calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.model)
    }

    /// When its answer is sure enough; never without a rule.
    #[must_use]
    pub fn rule(&self) -> Option<Rule> {
        Some(Rule { criterion: self.criterion?, threshold: self.threshold? })
    }
}

impl Service {
    /// Reads and checks a SERVICE.toml.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub fn parse(text: &str) -> Result<Self, ServiceError> {
        if text.len() > TOML_BYTES_MAX {
            return Err(ServiceError::TooMany { what: "bytes", count: text.len(), max: TOML_BYTES_MAX });
        }
        let syntax = |e: toml::de::Error| ServiceError::Syntax(e.to_string().trim_end().to_owned());
        let table: toml::Table = text.parse().map_err(syntax)?;
        keys::check(&table)?;
        let service: Self = toml::from_str(text).map_err(syntax)?;
        service.check()?;
        Ok(service)
    }

    /// As a SERVICE.toml.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self) -> Result<String, ServiceError> {
        toml::to_string(self).map_err(|e| ServiceError::Syntax(e.to_string()))
    }

    /// Names of its models, each once, in its order.
    #[must_use]
    pub fn models(&self) -> Vec<&str> {
        let mut seen = BTreeSet::new();
        self.members.iter().map(|m| m.model.as_str()).filter(|model| seen.insert(*model)).collect()
    }

    /// The place of a member by its name.
    #[must_use]
    pub fn place(&self, name: &str) -> Option<usize> {
        self.members.iter().position(|m| m.name() == name)
    }

    /// Members whose outputs a member takes, each once.
    #[must_use]
    pub fn before(&self, member: usize) -> Vec<usize> {
        let Some(member) = self.members.get(member) else { return Vec::new() };
        let of_inputs = member.inputs.values().filter_map(|source| match source {
            Source::Output { of, .. } => Some(of.as_str()),
            Source::Input(_) => None,
        });
        let names = of_inputs.chain(member.crops.iter().map(|crops| crops.of.as_str()));
        let places: BTreeSet<usize> = names.filter_map(|name| self.place(name)).collect();
        places.into_iter().collect()
    }

    /// How answers become one.
    #[must_use]
    pub fn combine(&self) -> Combine {
        self.combine.unwrap_or(Combine::Mean)
    }

    /// What an ensemble's output is called.
    #[must_use]
    pub fn output(&self) -> &str {
        self.output.as_deref().unwrap_or(match self.combine() {
            Combine::Mean => "probabilities",
            Combine::Vote => "votes",
            Combine::Values => "values",
        })
    }

    /// Refuses what can't be: it may come from another node.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), ServiceError> {
        let most =
            |what, count, max| if count > max { Err(ServiceError::TooMany { what, count, max }) } else { Ok(()) };
        most("members", self.members.len(), MEMBERS_MAX)?;
        if self.members.len() < 2 {
            return Err(ServiceError::TooFew(self.members.len()));
        }
        for (place, member) in self.members.iter().enumerate() {
            if self.members[..place].iter().any(|before| before.name() == member.name()) {
                return Err(ServiceError::Duplicate(member.name().to_owned()));
            }
            most("inputs of a member", member.inputs.len(), NAMES_MAX)?;
            most("outputs of a member", member.outputs.len(), NAMES_MAX)?;
            self.check_member(place, member)?;
        }
        value("the service", "audit", self.audit, 0.0..=1.0, "from 0 to 1")?;
        if let Some(agreement) = self.agreement {
            value("the service", "agreement", agreement, 0.5..=1.0, "from 0.5 to 1")?;
            if self.kind == Kind::Cascade && self.audit == 0.0 {
                // Nothing would show whether answers that stand are right.
                return Err(keys::wrong("the service", "audit", self.audit, "above 0 where `agreement` is kept to"));
            }
        }
        match self.kind {
            Kind::Cascade => {}
            _ if self.agreement.is_some() => return Err(self.only("agreement", Kind::Cascade)),
            _ if self.audit > 0.0 => return Err(self.only("audit", Kind::Cascade)),
            _ if self.quality.is_some() => return Err(self.only("quality", Kind::Cascade)),
            _ if self.examples.is_some() => return Err(self.only("examples", Kind::Cascade)),
            _ if self.calibration.is_some() => return Err(self.only("calibration", Kind::Cascade)),
            _ => {}
        }
        match self.kind {
            Kind::Ensemble => {
                if let Some(least) = self.least.filter(|least| !(1..=self.members.len()).contains(least)) {
                    let needed = "from 1 to the number of members";
                    return Err(keys::wrong("the service", "least", least, needed));
                }
            }
            _ if self.least.is_some() => return Err(self.only("least", Kind::Ensemble)),
            _ if self.combine.is_some() => return Err(self.only("combine", Kind::Ensemble)),
            _ if self.output.is_some() => return Err(self.only("output", Kind::Ensemble)),
            _ => {}
        }
        if let Some(quality) = &self.quality {
            for (key, number) in
                [("blur_min", quality.blur_min), ("dark_max", quality.dark_max), ("bright_min", quality.bright_min)]
            {
                value("[quality]", key, number.unwrap_or(0.0), 0.0..=1.0, "from 0 to 1")?;
            }
            value("[quality]", "white", quality.white, f64::MIN_POSITIVE..=f64::MAX, "above 0")?;
        }
        if let Some(examples) = &self.examples {
            value("[examples]", "max_mb", examples.max_mb, 0.0..=1e6, "from 0 to 1000000")?;
            most("examples to keep", examples.max_count, 1_000_000)?;
        }
        if let Some(curve) = &self.calibration {
            most("points of the calibration", curve.points.len(), POINTS_MAX)?;
        }
        Ok(())
    }

    fn only(&self, key: &'static str, of: Kind) -> ServiceError {
        ServiceError::OtherKind { key, of: of.word(), kind: self.kind.word() }
    }

    fn check_member(&self, place: usize, member: &Member) -> Result<(), ServiceError> {
        let owner = format!("member `{}`", member.name());
        let others = |key, wrong| if wrong { Err(self.only(key, Kind::Cascade)) } else { Ok(()) };
        match self.kind {
            Kind::Cascade => {
                let last = place + 1 == self.members.len();
                match (member.criterion, member.threshold) {
                    (None, _) | (_, None) if !last => return Err(ServiceError::NoRule(member.name().to_owned())),
                    (Some(_), _) | (_, Some(_)) if last => {
                        return Err(ServiceError::LastRule(member.name().to_owned()));
                    }
                    _ => {}
                }
                if let Some(criterion @ (Criterion::Patience | Criterion::Learned)) = member.criterion {
                    return Err(keys::wrong(&owner, "criterion", criterion.name(), "confidence, entropy or margin"));
                }
                // Above 1 it never answers by itself.
                value(&owner, "threshold", member.threshold.unwrap_or(0.0), 0.0..=2.0, "from 0 to 1, or 2 for never")?;
                value(&owner, "share", member.share.unwrap_or(0.5), 0.01..=1.0, "from 0.01 to 1")?;
            }
            _ => {
                others("criterion", member.criterion.is_some())?;
                others("threshold", member.threshold.is_some())?;
                others("share", member.share.is_some())?;
            }
        }
        match self.kind {
            Kind::Ensemble => {
                value(&owner, "weight", member.weight.unwrap_or(1.0), f64::MIN_POSITIVE..=1e9, "above 0")?;
            }
            _ if member.weight.is_some() => return Err(self.only("weight", Kind::Ensemble)),
            _ => {}
        }
        let of = member.inputs.values().filter_map(|source| match source {
            Source::Output { of, .. } => Some(of),
            Source::Input(_) => None,
        });
        for of in of.chain(member.crops.iter().map(|crops| &crops.of)) {
            if self.kind != Kind::Chain {
                return Err(self.only("of", Kind::Chain));
            }
            // Only those before it: a chain has no circle.
            if !self.members[..place].iter().any(|before| before.name() == of) {
                let known = self.members[..place].iter().map(|m| m.name());
                return Err(ServiceError::NotBefore {
                    member: member.name().to_owned(),
                    of: of.clone(),
                    suggestion: crate::keys::nearest(of, known),
                });
            }
        }
        let Some(crops) = &member.crops else { return Ok(()) };
        if self.members[..place].iter().any(|before| before.crops.is_some()) {
            return Err(ServiceError::TwoCrops);
        }
        if !(1..=CROPS_MAX).contains(&crops.boxes_max) {
            return Err(keys::wrong(&owner, "boxes_max", crops.boxes_max, "from 1 to 1024"));
        }
        if !(1..=crops.boxes_max).contains(&crops.batch_max) {
            return Err(keys::wrong(&owner, "batch_max", crops.batch_max, "from 1 to `boxes_max`"));
        }
        if crops.size.iter().any(|side| !(1..=SIDE_MAX).contains(side)) {
            return Err(keys::wrong(&owner, "size", format!("{:?}", crops.size), "two numbers from 1 to 4096"));
        }
        let finite = |numbers: &[f64]| numbers.len() <= 16 && numbers.iter().all(|n| n.is_finite());
        if !finite(&crops.mean) {
            return Err(keys::wrong(&owner, "mean", format!("{:?}", crops.mean), "up to 16 finite numbers"));
        }
        if !finite(&crops.std) || crops.std.contains(&0.0) {
            return Err(keys::wrong(&owner, "std", format!("{:?}", crops.std), "up to 16 numbers other than 0"));
        }
        value(&owner, "scale", crops.scale, f64::MIN_POSITIVE..=f64::MAX, "above 0")?;
        value(&owner, "score_min", crops.score_min, f64::MIN..=f64::MAX, "a number")
    }
}

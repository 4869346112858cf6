//! Gives a model early exits: small heads behind tensors within it.
//!
//! A head pools what a tensor holds of an example, and one layer (or two)
//! makes scores of it, in the form of the model's own output. Weights are
//! small numbers until somebody fits them. Start at [`attach`]; [`spread`]
//! chooses tensors.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Exit, Exits, ExitsError, Scores};
use crate::constant::tensor_to_proto;
use crate::cost;
use crate::cuts::cuts;
use crate::emit::{Attribute, Emitter};
use crate::error::LoadError;
use crate::index::Index;
use crate::infer::{InferError, Types, infer_types};
use crate::model::Model;
use crate::onnx::TensorProto;
use crate::slice::value_info_proto;
use crate::tensor::{DataType, Elements, Tensor};
use crate::types::{Dim, ValueInfo};

/// Features that a head pools a tensor to, at most: more cost more than they tell.
const FEATURES_MAX: u64 = 512;

/// Places along a picture's side that a head keeps apart, at most.
const GRID_MAX: u64 = 7;

/// A head costs at most this share of the model, where a smaller one can be had.
const HEAD_SHARE: f64 = 1.0 / 24.0;

/// Probabilities, the largest first, that the learned criterion looks at.
const TOP: u64 = 3;

/// Operator sets from this on have what heads are made of.
const OPSET_MIN: i64 = 11;

/// Heads to be made.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The tensors, in the order in which they are computed.
    pub at: Vec<String>,
    /// Units of a layer between features and scores, of a classifier; none for 0.
    pub hidden: u64,
}

/// A head that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The tensor that it reads.
    pub tensor: String,
    /// What it makes of it: `[batch, width]`, `[batch, positions, width]` or
    /// `[batch, width, height, width]`.
    pub features: String,
    /// Numbers of each place.
    pub width: u64,
    /// Scores before any softmax, of the form of the features.
    pub logits: String,
    /// The weights of its last layer: `[width, classes]`, or `[classes, width, 1, 1]`.
    pub weight: String,
    /// The biases of its last layer, `[classes]`.
    pub bias: String,
    /// All its weights.
    pub parameters: Vec<String>,
    /// Of a learned criterion, weight and bias.
    pub sureness: Option<[String; 2]>,
}

/// What a model answers with, as far as heads care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// `[batch, classes]`.
    Class,
    /// `[batch, positions, classes]`.
    Positions,
    /// `[batch, classes, height, width]`.
    Map,
}

/// Why a model can't have exits, or none there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// More outputs than one.
    #[error(
        "the model gives {} outputs ({}), and an exit must answer all that the end answers; heads are made for one output of \
         scores per class: detectors and models with post-processing can have exits only if their file brings them",
        .outputs.len(), outputs.join(", ")
    )]
    Several {
        /// Their names.
        outputs: Vec<String>,
    },
    /// Not scores of classes.
    #[error(
        "output `{output}` is {found}; exits are made for floats of [batch, classes], [batch, positions, classes] or \
         [batch, classes, height, width] with a fixed number of classes, at least 2"
    )]
    Answer {
        /// The output.
        output: String,
        /// What it is.
        found: String,
    },
    /// An output that says several things of an example.
    #[error(
        "output `{0}` ends in a Sigmoid: each class has a probability of its own, and exits are made for one class of several"
    )]
    Labels(String),
    /// It has exits.
    #[error("the model has exits already: {}; without --at and --exits they are calibrated anew", .0.join(", "))]
    Already(Vec<String>),
    /// No such tensor.
    #[error("the model has no tensor `{0}` that depends on its input; `tierline model inspect` lists its cuts")]
    NoTensor(String),
    /// A tensor that no head fits.
    #[error("`{tensor}` is {found}; a head for `{output}` takes {takes}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What it is.
        found: String,
        /// The model's output.
        output: String,
        /// What it takes.
        takes: &'static str,
    },
    /// Nowhere.
    #[error(
        "there are {found} cuts where a head fits and computing can still be spared, and {wanted} exits were asked for"
    )]
    NoCut {
        /// How many there are.
        found: usize,
        /// How many were wanted.
        wanted: usize,
    },
    /// An old model.
    #[error("the model uses operator set {0}; heads need 11 or newer: export it anew")]
    Opset(i64),
    /// More exits than are taken, or what they say doesn't fit.
    #[error(transparent)]
    Exits(#[from] ExitsError),
    /// A learned criterion where there is none.
    #[error("exits learn how sure they are of one class per example; `{0}` gives many")]
    NoLearned(String),
    /// Shapes that contradict each other.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// The result is no model.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// What a model answers with: the output, its form, its classes, and whether
/// they are probabilities.
///
/// # Errors
/// When no head can stand for it.
pub fn answer(model: &Model) -> Result<(ValueInfo, Answer, u64, Scores), AttachError> {
    let types = infer_types(model)?;
    let names: Vec<String> = model.outputs().into_iter().map(|o| o.name).collect();
    let [name] = &names[..] else { return Err(AttachError::Several { outputs: names }) };
    let declared = model.outputs().swap_remove(0);
    let info = types.get(name).cloned().unwrap_or(declared);
    let wrong = || AttachError::Answer { output: name.clone(), found: described(&info) };
    if info.dtype != Some(DataType::F32) {
        return Err(wrong());
    }
    let (form, classes) = match info.shape.as_deref() {
        Some([_, classes]) => (Answer::Class, classes),
        Some([_, _, classes]) => (Answer::Positions, classes),
        Some([_, classes, _, _]) => (Answer::Map, classes),
        _ => return Err(wrong()),
    };
    let classes = classes.known().filter(|n| *n > 1).ok_or_else(wrong)?;
    // An output that doesn't come one per example is no answer of one.
    let batch = |v: &ValueInfo| v.shape.as_ref().and_then(|s| s.first().cloned());
    let (given, made) = (model.inputs().first().and_then(batch), batch(&info));
    if let (Some(given), Some(made)) = (given, made)
        && given != made
        && made != Dim::Unknown
    {
        return Err(wrong());
    }
    let scores = match last_operator(model, name) {
        Some("Softmax") => Scores::Probabilities,
        Some("Sigmoid" | "HardSigmoid") => return Err(AttachError::Labels(name.clone())),
        _ => Scores::Logits,
    };
    Ok((info, form, classes, scores))
}

/// The operator that makes an output, past those that move or cast.
fn last_operator<'m>(model: &'m Model, output: &str) -> Option<&'m str> {
    let index = Index::new(model);
    let mut name = output;
    loop {
        let node = &model.graph().node[*index.producer.get(name)?];
        match node.op_type() {
            "Identity" | "Cast" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Transpose" => {
                name = model.graph().node[index.producer[name]].input.first()?;
            }
            op => return Some(op),
        }
    }
}

/// Gives a model without exits heads at these tensors: outputs `exit_1`, ...
/// in the order of the list, told of in its metadata.
///
/// # Errors
/// [`AttachError`].
pub fn attach(model: &Model, wanted: &Wanted) -> Result<(Model, Exits, Vec<Head>), AttachError> {
    if let Some(exits) = Exits::of(model)? {
        return Err(AttachError::Already(exits.exits.iter().flat_map(Exit::names).map(str::to_owned).collect()));
    }
    check_opset(model)?;
    let (output, form, classes, scores) = answer(model)?;
    let types = infer_types(model)?;
    let budget = budget(model)?;
    let index = Index::new(model);
    let mut exits = Exits {
        judged: Some(output.name.clone()),
        axis: if form == Answer::Map { 1 } else { -1 },
        scores,
        ..Exits::default()
    };
    let mut proto = model.proto().clone();
    let mut out = Emitter::new(names(model, &types));
    let (mut heads, mut weights) = (Vec::new(), Vec::new());
    for (number, tensor) in wanted.at.iter().enumerate() {
        let known = index.is_dynamic(tensor) && index.producer.contains_key(tensor.as_str());
        let info = types.get(tensor).filter(|_| known).ok_or_else(|| AttachError::NoTensor(tensor.clone()))?;
        let shape = Shape::of(&index, info, form, &output)?;
        let name = out.name(&format!("exit_{}", number + 1));
        let mut maker =
            Maker { out: &mut out, weights: &mut weights, name: &name, classes, budget, hidden: wanted.hidden };
        let mut head = maker.make(tensor, &shape);
        if scores == Scores::Probabilities {
            let axis = [("axis", Attribute::Int(exits.axis))];
            out.named("Softmax", &[&head.logits], &[&name], &axis);
        } else if !out.rename(&head.logits, &name) {
            out.named("Identity", &[&head.logits], &[&name], &[]);
        } else {
            head.logits.clone_from(&name);
        }
        let outputs = BTreeMap::from([(output.name.clone(), name.clone())]);
        exits.exits.push(Exit { outputs, sureness: None, rule: None });
        let shape = answer_shape(&output, info);
        proto.graph.mut_or_insert_default().output.push(value_info_proto(&ValueInfo {
            name,
            dtype: Some(DataType::F32),
            shape,
        }));
        heads.push(head);
    }
    finish(&mut proto.graph.mut_or_insert_default().node, out, &mut weights);
    let graph = proto.graph.mut_or_insert_default();
    graph.initializer.extend(weights);
    let model = exits.write(&Model::from_proto(proto)?)?;
    // A second look: what heads give must have the form of the end's answer.
    infer_types(&model)?;
    Ok((model, exits, heads))
}

fn finish(nodes: &mut Vec<crate::onnx::NodeProto>, out: Emitter, weights: &mut Vec<TensorProto>) {
    let (own, constants) = out.finish();
    nodes.extend(own);
    weights.extend(constants);
}

pub(crate) fn names<'m>(model: &'m Model, types: &'m Types) -> impl Iterator<Item = &'m str> {
    let graph = model.graph();
    let made = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
    types.iter().map(|t| t.name.as_str()).chain(made).chain(graph.initializer.iter().map(|t| t.name()))
}

pub(crate) fn check_opset(model: &Model) -> Result<(), AttachError> {
    let imports = &model.proto().opset_import;
    let version = imports.iter().find(|o| matches!(o.domain(), "" | "ai.onnx")).map_or(0, |o| o.version());
    if version < OPSET_MIN { Err(AttachError::Opset(version)) } else { Ok(()) }
}

/// An exit's answer has the end's form.
fn answer_shape(output: &ValueInfo, tensor: &ValueInfo) -> Option<Vec<Dim>> {
    let mut shape = output.shape.clone()?;
    if shape.first() == Some(&Dim::Unknown)
        && let Some(batch) = tensor.shape.as_ref().and_then(|s| s.first())
    {
        shape[0] = batch.clone();
    }
    Some(shape)
}

/// Multiply-adds that a head may cost, where shapes tell.
fn budget(model: &Model) -> Result<f64, AttachError> {
    let types = crate::infer::infer_types_with(model, &one_example(model))?;
    let all = cost::total_macs(&cost::cost(model, &types));
    Ok(all.map_or(f64::INFINITY, |macs| macs as f64 * HEAD_SHARE))
}

/// Shapes of inputs for a batch of one, where only the batch is free.
#[must_use]
pub fn one_example(model: &Model) -> BTreeMap<String, Vec<u64>> {
    let one = |v: ValueInfo| {
        let shape = v.shape?;
        let sizes = shape.iter().enumerate().map(|(i, d)| if i == 0 { d.known().or(Some(1)) } else { d.known() });
        Some((v.name, sizes.collect::<Option<Vec<u64>>>()?))
    };
    model.inputs().into_iter().filter_map(one).collect()
}

/// What a head starts from.
enum Shape {
    /// `[batch, width]`.
    Row { width: u64 },
    /// `[batch, channels, height, width]` of a picture; sides where they are fixed.
    Picture { channels: u64, sides: Option<[u64; 2]> },
    /// `[batch, channels, ..]` to be averaged over all that follows.
    Channels { channels: u64 },
    /// `[batch, positions, width]`, averaged for one answer.
    Sequence { width: u64, mean: bool },
    /// `[batch, channels, height, width]`, each place for itself, enlarged.
    Map { channels: u64, times: [u64; 2] },
}

impl Shape {
    fn of(index: &Index<'_>, tensor: &ValueInfo, form: Answer, output: &ValueInfo) -> Result<Self, AttachError> {
        let takes = match form {
            Answer::Class => "floats of [batch, width], [batch, channels, height, width] or [batch, positions, width]",
            Answer::Positions => "floats of [batch, positions, width] with the output's positions",
            Answer::Map => "floats of [batch, channels, height, width] whose sides divide the output's",
        };
        let wrong = || AttachError::Tensor {
            tensor: tensor.name.clone(),
            found: described(tensor),
            output: output.name.clone(),
            takes,
        };
        let shape = tensor.shape.as_deref().filter(|_| tensor.dtype == Some(DataType::F32)).ok_or_else(wrong)?;
        let size = |axis: usize| shape.get(axis).and_then(Dim::known).filter(|n| *n > 0).ok_or_else(wrong);
        let given = output.shape.as_deref().unwrap_or_default();
        match (form, shape.len()) {
            (Answer::Class, 2) => Ok(Self::Row { width: size(1)? }),
            (Answer::Class, 3) if is_channels_first(index, &tensor.name) => Ok(Self::Channels { channels: size(1)? }),
            (Answer::Class, 3) => Ok(Self::Sequence { width: size(2)?, mean: true }),
            (Answer::Class, 4) => {
                let sides = size(2).ok().zip(size(3).ok()).map(|(h, w)| [h, w]);
                Ok(Self::Picture { channels: size(1)?, sides })
            }
            (Answer::Class, 5) => Ok(Self::Channels { channels: size(1)? }),
            (Answer::Positions, 3) if given.get(1) == shape.get(1) && shape[1] != Dim::Unknown => {
                Ok(Self::Sequence { width: size(2)?, mean: false })
            }
            (Answer::Map, 4) => {
                let times = |axis: usize| match (&shape[axis], given.get(axis)) {
                    (Dim::Known(own), Some(Dim::Known(whole))) if *own > 0 && whole % own == 0 => Ok(whole / own),
                    (Dim::Symbol(own), Some(Dim::Symbol(whole))) if own == whole => Ok(1),
                    _ => Err(wrong()),
                };
                Ok(Self::Map { channels: size(1)?, times: [times(2)?, times(3)?] })
            }
            _ => Err(wrong()),
        }
    }
}

/// Whether channels come second in a tensor of three axes: what made it, past
/// operators that keep the order, works on such.
fn is_channels_first(index: &Index<'_>, tensor: &str) -> bool {
    let mut name = tensor;
    let mut steps = 0;
    while let Some(&node) = index.producer.get(name) {
        let node = &index.graph.node[node];
        match node.op_type() {
            "Conv"
            | "ConvTranspose"
            | "BatchNormalization"
            | "InstanceNormalization"
            | "MaxPool"
            | "AveragePool"
            | "GlobalAveragePool"
            | "GlobalMaxPool"
            | "QLinearConv" => return true,
            "Relu" | "LeakyRelu" | "Sigmoid" | "Tanh" | "Clip" | "Add" | "Mul" | "Identity" | "Dropout"
            | "HardSwish" | "PRelu" | "Elu" | "Selu" | "Gelu" | "DequantizeLinear" | "QuantizeLinear" | "Cast" => {}
            _ => return false,
        }
        let Some(before) = node.input.first() else { return false };
        name = before;
        steps += 1;
        if steps > index.graph.node.len() {
            return false;
        }
    }
    false
}

struct Maker<'o> {
    out: &'o mut Emitter,
    weights: &'o mut Vec<TensorProto>,
    name: &'o str,
    classes: u64,
    budget: f64,
    hidden: u64,
}

impl Maker<'_> {
    fn make(&mut self, tensor: &str, shape: &Shape) -> Head {
        let (features, width) = self.features(tensor, shape);
        let mut parameters = Vec::new();
        let (mut input, mut units) = (features.clone(), width);
        let plain = matches!(shape, Shape::Row { .. } | Shape::Picture { .. } | Shape::Channels { .. })
            || matches!(shape, Shape::Sequence { mean: true, .. });
        if plain && self.hidden > 0 {
            let weight = self.weight("hidden.weight", &[units, self.hidden], units);
            let bias = self.weight("hidden.bias", &[self.hidden], units);
            input = self.out.op("Gemm", &[&input, &weight, &bias], &[]);
            input = self.out.op("Relu", &[&input], &[]);
            units = self.hidden;
            parameters.extend([weight, bias]);
        }
        let (weight, bias, logits);
        match shape {
            Shape::Sequence { mean: false, .. } => {
                weight = self.weight("weight", &[units, self.classes], units);
                bias = self.weight("bias", &[self.classes], units);
                let product = self.out.op("MatMul", &[&input, &weight], &[]);
                logits = self.out.op("Add", &[&product, &bias], &[]);
            }
            Shape::Map { times, .. } => {
                weight = self.weight("weight", &[self.classes, units, 1, 1], units);
                bias = self.weight("bias", &[self.classes], units);
                let scores = self.out.op("Conv", &[&input, &weight, &bias], &[]);
                logits = if *times == [1, 1] { scores } else { self.enlarged(&scores, *times) };
            }
            _ => {
                weight = self.weight("weight", &[units, self.classes], units);
                bias = self.weight("bias", &[self.classes], units);
                logits = self.out.op("Gemm", &[&input, &weight, &bias], &[]);
            }
        }
        parameters.extend([weight.clone(), bias.clone()]);
        Head {
            tensor: tensor.to_owned(),
            features: input,
            width: units,
            logits,
            weight,
            bias,
            parameters,
            sureness: None,
        }
    }

    /// What is pooled of a tensor, and how many numbers.
    fn features(&mut self, tensor: &str, shape: &Shape) -> (String, u64) {
        match *shape {
            Shape::Row { width } | Shape::Sequence { width, mean: false } => (tensor.to_owned(), width),
            Shape::Map { channels, .. } => (tensor.to_owned(), channels),
            Shape::Channels { channels } => (self.mean(tensor), channels),
            Shape::Sequence { width, mean: true } => {
                let order = [("perm", Attribute::Ints(vec![0, 2, 1]))];
                let turned = self.out.op("Transpose", &[tensor], &order);
                (self.mean(&turned), width)
            }
            Shape::Picture { channels, sides: None } => (self.mean(tensor), channels),
            Shape::Picture { channels, sides: Some([height, width]) } => {
                let grid = self.grid(channels, height, width);
                if grid == 1 {
                    return (self.mean(tensor), channels);
                }
                let mut pooled = tensor.to_owned();
                if [height, width] != [grid, grid] {
                    let [down, across] = [height, width].map(|side| side / grid);
                    let window = |side: u64, step: u64| (side - (grid - 1) * step) as i64;
                    let kernel = Attribute::Ints(vec![window(height, down), window(width, across)]);
                    let strides = Attribute::Ints(vec![down as i64, across as i64]);
                    pooled = self.out.op("AveragePool", &[&pooled], &[("kernel_shape", kernel), ("strides", strides)]);
                }
                let flat = self.out.op("Flatten", &[&pooled], &[("axis", Attribute::Int(1))]);
                (flat, channels * grid * grid)
            }
        }
    }

    fn mean(&mut self, tensor: &str) -> String {
        let mean = self.out.op("GlobalAveragePool", &[tensor], &[]);
        self.out.op("Flatten", &[&mean], &[("axis", Attribute::Int(1))])
    }

    /// Places along a side that are kept apart: as many as the budget allows,
    /// and evenly where nearly as many are.
    fn grid(&self, channels: u64, height: u64, width: u64) -> u64 {
        let units = if self.hidden > 0 { self.hidden } else { self.classes };
        let fits = |grid: u64| {
            let features = channels * grid * grid;
            features <= FEATURES_MAX && (features * units) as f64 <= self.budget
        };
        let most = (2..=GRID_MAX.min(height).min(width)).rev().find(|grid| fits(*grid)).unwrap_or(1);
        let even = |grid: &u64| height.is_multiple_of(*grid) && width.is_multiple_of(*grid);
        (1..=most).rev().take_while(|grid| grid * 3 >= most * 2).find(even).unwrap_or(most)
    }

    /// Between places in a line, as pictures are resized.
    fn enlarged(&mut self, scores: &str, times: [u64; 2]) -> String {
        let scales = Elements::F32(vec![1.0, 1.0, times[0] as f32, times[1] as f32]);
        let scales = self.out.constant(&Tensor::new([4], scales).unwrap_or_else(|_| unreachable!("four numbers")));
        let mode = ("mode", Attribute::Text("linear".to_owned()));
        self.out.op("Resize", &[scores, "", &scales], &[mode])
    }

    /// A weight of small numbers, the same every time.
    fn weight(&mut self, what: &str, shape: &[u64], inputs: u64) -> String {
        let name = self.out.name(&format!("{}.{what}", self.name));
        let count: u64 = shape.iter().product();
        let reach = (2.0 / inputs.max(1) as f64).sqrt();
        let values = (0..count).map(|i| (noise(&name, i) * reach) as f32).collect();
        let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
        let tensor = Tensor::new(shape, Elements::F32(values)).unwrap_or_else(|_| unreachable!("as many as its shape"));
        self.weights.push(tensor_to_proto(&name, &tensor));
        name
    }
}

/// Between -1 and 1, decided by a name and a number (SplitMix64: Steele 2014).
fn noise(name: &str, at: u64) -> f64 {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut z = seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// Gives every exit an output that says how sure it is: a logistic layer on
/// what the head sees and its largest probabilities.
///
/// # Errors
/// When exits answer more than one class per example.
pub fn learned(model: &Model, exits: &Exits, heads: &mut [Head]) -> Result<(Model, Exits), AttachError> {
    let types = infer_types(model)?;
    let (judged, mut exits) = (exits.judged(model)?, exits.clone());
    let mut proto = model.proto().clone();
    let mut out = Emitter::new(names(model, &types));
    let mut weights = Vec::new();
    for (head, exit) in heads.iter_mut().zip(&mut exits.exits) {
        let answer = exit.outputs[&judged].clone();
        let info = types.get(&answer);
        let shape = info.and_then(|t| t.shape.as_deref());
        let Some([batch, Dim::Known(classes)]) = shape else { return Err(AttachError::NoLearned(answer)) };
        let top = TOP.min(*classes);
        let name = out.name(&format!("{answer}_sureness"));
        let (budget, hidden) = (f64::INFINITY, 0);
        let mut maker = Maker { out: &mut out, weights: &mut weights, name: &name, classes: 1, budget, hidden };
        let width = head.width + top;
        let weight = maker.weight("weight", &[width, 1], width);
        let bias = maker.weight("bias", &[1], width);
        let axis = ("axis", Attribute::Int(1));
        let shares = out.op("Softmax", &[&head.logits], std::slice::from_ref(&axis));
        let count = out.ints(&[top as i64]);
        let best = out.ops("TopK", &[&shares, &count], 2, std::slice::from_ref(&axis)).swap_remove(0);
        let seen = out.op("Concat", &[&head.features, &best], &[axis]);
        let score = out.op("Gemm", &[&seen, &weight, &bias], &[]);
        out.named("Sigmoid", &[&score], &[&name], &[]);
        let shape = Some(vec![batch.clone(), Dim::Known(1)]);
        let graph = proto.graph.mut_or_insert_default();
        graph.output.push(value_info_proto(&ValueInfo { name: name.clone(), dtype: Some(DataType::F32), shape }));
        exit.sureness = Some(name);
        head.sureness = Some([weight, bias]);
    }
    let graph = proto.graph.mut_or_insert_default();
    finish(&mut graph.node, out, &mut weights);
    graph.initializer.extend(weights);
    let model = exits.write(&Model::from_proto(proto)?)?;
    infer_types(&model)?;
    Ok((model, exits))
}

/// The model with other weights.
///
/// # Errors
/// When it has no initialiser of a name, or the result isn't valid.
pub fn with_weights(model: &Model, weights: &HashMap<String, Tensor>) -> Result<Model, AttachError> {
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    for (name, tensor) in weights {
        let own = graph.initializer.iter_mut().find(|t| t.name() == name);
        *own.ok_or_else(|| AttachError::NoTensor(name.clone()))? = tensor_to_proto(name, tensor);
    }
    Ok(Model::from_proto(proto)?)
}

/// Up to `count` tensors for heads, spread evenly over the multiply-adds of
/// the model: each alone at a cut, as late as costs nothing more.
///
/// # Errors
/// When there are fewer, or the model can't have exits.
pub fn spread(model: &Model, count: usize) -> Result<Vec<String>, AttachError> {
    let (output, form, ..) = answer(model)?;
    let types = infer_types(model)?;
    let sized = crate::infer::infer_types_with(model, &one_example(model))?;
    let costs = cost::cost(model, &sized);
    let index = Index::new(model);
    let none = HashSet::new();
    // Where shapes don't tell, nodes count.
    let weight = |node: usize| costs[node].macs.map_or(1.0, |macs| macs as f64);
    let all: f64 = (0..costs.len()).map(weight).sum();
    let mut found: Vec<(f64, String)> = Vec::new();
    for cut in cuts(model, &types) {
        let [tensor] = &cut.tensors[..] else { continue };
        let Some(info) = types.get(tensor) else { continue };
        if *tensor == output.name || Shape::of(&index, info, form, &output).is_err() {
            continue;
        }
        let before: f64 = index.needed_for(&[tensor.as_str()], &none).into_iter().map(weight).sum();
        if before <= 0.0 || before > SPENT_MAX * all {
            continue;
        }
        // Behind the last operation that costs nothing more.
        match found.last_mut() {
            Some((spent, last)) if *spent == before => last.clone_from(tensor),
            _ => found.push((before, tensor.clone())),
        }
    }
    if count == 0 || found.len() < count {
        return Err(AttachError::NoCut { found: found.len(), wanted: count });
    }
    let mut chosen: Vec<usize> = Vec::with_capacity(count);
    for exit in 1..=count {
        let goal = all * exit as f64 / (count + 1) as f64;
        let from = chosen.last().map_or(0, |last| last + 1);
        // As many must be left as are still to be chosen.
        let to = found.len() - (count - exit);
        let near = (from..to).min_by(|&a, &b| (found[a].0 - goal).abs().total_cmp(&(found[b].0 - goal).abs()));
        chosen.extend(near);
    }
    Ok(chosen.into_iter().map(|i| found[i].1.clone()).collect())
}

/// Behind this share of the model an exit spares too little.
const SPENT_MAX: f64 = 0.9;

pub(crate) fn described(info: &ValueInfo) -> String {
    let dtype = info.dtype.map_or("of no tensor type".to_owned(), |d| d.to_string());
    let shape = info.shape.as_ref().map_or("of unknown shape".to_owned(), |s| {
        format!("[{}]", s.iter().map(Dim::to_string).collect::<Vec<_>>().join(", "))
    });
    format!("{dtype} {shape}")
}

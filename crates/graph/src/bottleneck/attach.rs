//! Gives a model a bottleneck: an encoder, 8-bit integers, a decoder.
//!
//! The encoder is one linear map of patches of the tensor, the decoder one
//! back, past the Relu that made the tensor where there was one. Numbers are
//! sent in sixteenths of their standard deviation. Weights are zeros until
//! somebody fits them.

use std::collections::{HashMap, HashSet};

use super::{Bottleneck, BottleneckError};
use crate::constant::tensor_to_proto;
use crate::cost;
use crate::cuts::cuts;
use crate::emit::{Attribute, Emitter};
use crate::error::LoadError;
use crate::exits::{Exits, check_opset, described, names, one_example};
use crate::index::{Index, reads};
use crate::infer::{InferError, infer_types, infer_types_with};
use crate::model::Model;
use crate::onnx::TensorProto;
use crate::tensor::{DataType, Elements, Tensor};
use crate::types::ValueInfo;

/// Numbers of a patch, at most: the principal components of more take long to find.
const PATCH_MAX: u64 = 1_024;

/// Places along a side of a patch, at most.
const SIDE_MAX: u64 = 8;

/// An encoder costs at most this share of the model, where a smaller one can be had.
const CODER_SHARE: f64 = 0.1;

/// Behind this share of the model a bottleneck comes too late.
const SPENT_MAX: f64 = 0.9;

/// What one step of the integers stands for, in standard deviations.
const STEP: f32 = 1.0 / 16.0;

/// The integer that stands for the mean.
const MIDDLE: u8 = 128;

/// Bytes of a number before it is encoded.
const NUMBER_BYTES: u64 = 4;

/// A bottleneck to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The tensor.
    pub at: String,
    /// How many times fewer bytes are to be sent, above 4.
    pub times: f64,
    /// Digest of the file that the model came from.
    pub stands_for: String,
}

/// What a patch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// All of `[batch, width]`.
    Row,
    /// One position of `[batch, positions, width]`.
    Position,
    /// All channels of `side` x `side` places of `[batch, channels, height, width]`.
    Places {
        /// Places along a side.
        side: u64,
    },
}

/// An encoder and its decoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coder {
    /// What is encoded.
    pub tensor: String,
    /// What a patch is.
    pub form: Form,
    /// Numbers of a patch; of places, those of a channel follow one another,
    /// row after row.
    pub width: u64,
    /// Integers that stand for it.
    pub codes: u64,
    /// Weight and bias of the encoder: `[codes, channels, side, side]` of
    /// places, `[width, codes]` otherwise; `[codes]`.
    pub encoder: [String; 2],
    /// Weight and bias of the decoder: `[width, codes, 1, 1]` of places,
    /// `[codes, width]` otherwise; `[width]`.
    pub decoder: [String; 2],
    /// Channels of places; 1 otherwise.
    pub channels: u64,
    /// Multiply-adds of the encoder, for one example.
    pub macs: u64,
}

/// Why a model can't have a bottleneck, or none there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// It has one.
    #[error("the model has a bottleneck already, at `{0}`; make another one of the model that it was made of")]
    Already(String),
    /// It has exits.
    #[error(
        "the model has early exits, whose heads would read what the bottleneck has changed; take the model without them"
    )]
    HasExits,
    /// No such tensor.
    #[error("the model has no tensor `{0}` that depends on its input; `tierline model inspect` lists its cuts")]
    NoTensor(String),
    /// A tensor beside which others flow.
    #[error(
        "`{0}` is no cut by itself: what follows also needs other tensors; `tierline model inspect` lists the cuts"
    )]
    NoCut(String),
    /// A tensor that no encoder fits.
    #[error(
        "`{tensor}` is {found}; an encoder takes floats of [batch, width], [batch, positions, width] or [batch, channels, \
         height, width] with fixed sizes behind the batch"
    )]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What it is.
        found: String,
    },
    /// A tensor that is too small for that.
    #[error("`{tensor}` has {width} numbers in its largest patch, too few to be sent in {times} times fewer bytes")]
    TooSmall {
        /// The tensor.
        tensor: String,
        /// Numbers of a patch.
        width: u64,
        /// How many times fewer bytes were wanted.
        times: f64,
    },
    /// Nowhere.
    #[error("no cut of the model has one tensor that an encoder fits and that leaves enough to be computed behind it")]
    Nowhere,
    /// How many times fewer bytes can't be.
    #[error("{0} times fewer bytes; it must be more than 4, which 8-bit integers are by themselves, and at most 4096")]
    Times(f64),
    /// What the result says doesn't fit it.
    #[error(transparent)]
    Bottleneck(#[from] BottleneckError),
    /// An old model, or one whose exits are none.
    #[error(transparent)]
    Exits(#[from] crate::exits::AttachError),
    /// Shapes that contradict each other.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// The result is no model.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// How a tensor is cut into patches.
#[derive(Debug, Clone, Copy)]
struct Patches {
    form: Form,
    width: u64,
    codes: u64,
    /// Patches of one example.
    count: u64,
    /// Channels of places.
    channels: u64,
}

impl Patches {
    fn new(form: Form, width: u64, count: u64, channels: u64, times: f64) -> Self {
        let codes = ((width * NUMBER_BYTES) as f64 / times) as u64;
        Self { form, width, codes, count, channels }
    }

    /// Multiply-adds of the encoder; the decoder's are as many.
    fn macs(&self) -> u64 {
        self.count * self.width * self.codes
    }

    fn of(tensor: &ValueInfo, times: f64, budget: f64) -> Result<Self, AttachError> {
        let wrong = || AttachError::Tensor { tensor: tensor.name.clone(), found: described(tensor) };
        let shape = tensor.shape.as_deref().filter(|_| tensor.dtype == Some(DataType::F32)).ok_or_else(wrong)?;
        let sizes = shape.iter().skip(1).map(|d| d.known().filter(|n| *n > 0)).collect::<Option<Vec<u64>>>();
        let sizes = sizes.ok_or_else(wrong)?;
        let ways: Vec<Self> = match sizes[..] {
            [width] => vec![Self::new(Form::Row, width, 1, 1, times)],
            [positions, width] => vec![Self::new(Form::Position, width, positions, 1, times)],
            [channels, height, across] => (1..=SIDE_MAX)
                .filter(|side| height.is_multiple_of(*side) && across.is_multiple_of(*side))
                .map(|side| {
                    let count = (height / side) * (across / side);
                    Self::new(Form::Places { side }, channels * side * side, count, channels, times)
                })
                .collect(),
            _ => return Err(wrong()),
        };
        // A picture's places have more in common the more of them are taken together.
        let fits = |way: &&Self| way.codes > 0 && way.width <= PATCH_MAX;
        let cheap = ways.iter().rev().filter(fits).find(|way| way.macs() as f64 <= budget);
        cheap.or_else(|| ways.iter().find(fits)).copied().ok_or_else(|| {
            let width = ways.last().map_or(0, |way| way.width);
            AttachError::TooSmall { tensor: tensor.name.clone(), width, times }
        })
    }
}

/// Multiply-adds that an encoder may cost, where shapes tell.
fn budget(all: Option<u64>) -> f64 {
    all.map_or(f64::INFINITY, |macs| macs as f64 * CODER_SHARE)
}

fn check(model: &Model, times: f64) -> Result<(), AttachError> {
    if !(times > NUMBER_BYTES as f64 && times <= 4_096.0) {
        return Err(AttachError::Times(times));
    }
    if let Some(bottleneck) = Bottleneck::of(model)? {
        return Err(AttachError::Already(bottleneck.of));
    }
    if Exits::of(model).map_err(crate::exits::AttachError::from)?.is_some() {
        return Err(AttachError::HasExits);
    }
    Ok(check_opset(model)?)
}

/// The tensor at which a bottleneck serves best: where the share of the model
/// that is computed before it, encoder included, and the share of the input's
/// bytes that is still sent make the least together.
///
/// # Errors
/// When there is none, or the model can't have one.
pub fn best(model: &Model, times: f64) -> Result<String, AttachError> {
    check(model, times)?;
    let types = infer_types(model)?;
    let sized = infer_types_with(model, &one_example(model))?;
    let costs = cost::cost(model, &sized);
    let index = Index::new(model);
    // Where shapes don't tell, nodes count.
    let weight = |node: usize| costs[node].macs.map_or(1.0, |macs| macs as f64);
    let all: f64 = (0..costs.len()).map(weight).sum();
    let inputs: u64 = index.inputs().into_iter().filter_map(|name| sized.get(name)?.bytes()).sum();
    let outputs: Vec<String> = model.outputs().into_iter().map(|output| output.name).collect();
    let mut least: Option<(f64, String)> = None;
    for cut in cuts(model, &types) {
        let [tensor] = &cut.tensors[..] else { continue };
        let Some(patches) = sized.get(tensor).and_then(|info| Patches::of(info, times, all * CODER_SHARE).ok()) else {
            continue;
        };
        let before = index.needed_for(&[tensor.as_str()], &HashSet::new()).into_iter().map(weight).sum::<f64>();
        if outputs.contains(tensor) || before <= 0.0 || before > SPENT_MAX * all {
            continue;
        }
        let sent = (patches.count * patches.codes) as f64 / inputs.max(1) as f64;
        let score = (before + patches.macs() as f64) / all + sent;
        // Of equals the last: behind the Relu rather than before it.
        if least.as_ref().is_none_or(|(best, _)| score <= *best) {
            least = Some((score, tensor.clone()));
        }
    }
    least.map(|(_, tensor)| tensor).ok_or(AttachError::Nowhere)
}

/// Gives a model a bottleneck: what followed the tensor follows what its
/// decoder makes.
///
/// # Errors
/// [`AttachError`].
pub fn attach(model: &Model, wanted: &Wanted) -> Result<(Model, Bottleneck, Coder), AttachError> {
    check(model, wanted.times)?;
    let tensor = wanted.at.as_str();
    let types = infer_types(model)?;
    let sized = infer_types_with(model, &one_example(model))?;
    let index = Index::new(model);
    let Some(&producer) = index.producer.get(tensor).filter(|_| index.is_dynamic(tensor)) else {
        return Err(AttachError::NoTensor(tensor.to_owned()));
    };
    let is_cut = cuts(model, &types).iter().any(|cut| cut.tensors == [tensor]);
    let outputs = model.outputs();
    // A body's captures are read by name, and would go on to read the tensor.
    let captured = |node: &crate::onnx::NodeProto| {
        let within = reads(node).iter().filter(|name| **name == tensor).count();
        within > node.input.iter().filter(|name| *name == tensor).count()
    };
    if !is_cut || outputs.iter().any(|o| o.name == tensor) || index.graph.node.iter().any(captured) {
        return Err(AttachError::NoCut(tensor.to_owned()));
    }
    let info = sized.get(tensor).ok_or_else(|| AttachError::NoTensor(tensor.to_owned()))?;
    let patches = Patches::of(info, wanted.times, budget(cost::total_macs(&cost::cost(model, &sized))))?;

    let mut out = Emitter::new(names(model, &types));
    let mut weights = Vec::new();
    let coder = Coder {
        tensor: tensor.to_owned(),
        form: patches.form,
        width: patches.width,
        codes: patches.codes,
        encoder: ["encoder.weight", "encoder.bias"].map(|what| out.name(&format!("bottleneck.{what}"))),
        decoder: ["decoder.weight", "decoder.bias"].map(|what| out.name(&format!("bottleneck.{what}"))),
        channels: patches.channels,
        macs: patches.macs(),
    };
    let relu = index.graph.node[producer].op_type() == "Relu";
    let (sent, decoded) = coder.emit(&mut out, &mut weights, relu);
    let bottleneck = Bottleneck {
        tensor: sent,
        of: tensor.to_owned(),
        stands_for: wanted.stands_for.clone(),
        bytes_before: info.bytes().unwrap_or(patches.count * patches.width * NUMBER_BYTES),
        bytes: patches.count * patches.codes,
        measured: None,
    };
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    for node in &mut graph.node[producer + 1..] {
        node.input.iter_mut().filter(|name| *name == tensor).for_each(|name| name.clone_from(&decoded));
    }
    let (nodes, constants) = out.finish();
    graph.node.splice(producer + 1..producer + 1, nodes);
    graph.initializer.extend(weights.into_iter().chain(constants));
    let model = bottleneck.write(&Model::from_proto(proto)?)?;
    infer_types(&model)?;
    Ok((model, bottleneck, coder))
}

impl Coder {
    /// The shapes of the encoder's and the decoder's weights.
    fn shapes(&self) -> [Vec<u64>; 2] {
        match self.form {
            Form::Row | Form::Position => [vec![self.width, self.codes], vec![self.codes, self.width]],
            Form::Places { side } => [vec![self.codes, self.channels, side, side], vec![self.width, self.codes, 1, 1]],
        }
    }

    /// Writes its nodes; the integers' name, and that of what is decoded.
    fn emit(&self, out: &mut Emitter, weights: &mut Vec<TensorProto>, relu: bool) -> (String, String) {
        let [encoder, decoder] = self.shapes();
        let zeros = [
            (&self.encoder[0], encoder),
            (&self.encoder[1], vec![self.codes]),
            (&self.decoder[0], decoder),
            (&self.decoder[1], vec![self.width]),
        ];
        for (name, shape) in zeros {
            let shape: Vec<usize> = shape.into_iter().map(|n| n as usize).collect();
            let count = shape.iter().product();
            let tensor = Tensor::new(shape, Elements::F32(vec![0.0; count]));
            let tensor = tensor.unwrap_or_else(|_| unreachable!("as many as its shape"));
            weights.push(tensor_to_proto(name, &tensor));
        }
        let scale = out.scalar(DataType::F32, f64::from(STEP));
        let zero = Tensor::new([], Elements::U8(vec![MIDDLE])).unwrap_or_else(|_| unreachable!("one number"));
        let zero = out.constant(&zero);
        let encoded = self.map(out, &self.tensor, &self.encoder);
        let sent = out.name("bottleneck");
        out.named("QuantizeLinear", &[&encoded, &scale, &zero], &[&sent], &[]);
        let received = out.op("DequantizeLinear", &[&sent, &scale, &zero], &[]);
        let mut decoded = self.map(out, &received, &self.decoder);
        if let Form::Places { side } = self.form
            && side > 1
        {
            let mode = ("mode", Attribute::Text("CRD".to_owned()));
            decoded = out.op("DepthToSpace", &[&decoded], &[("blocksize", Attribute::Int(side as i64)), mode]);
        }
        if relu {
            decoded = out.op("Relu", &[&decoded], &[]);
        }
        (sent, decoded)
    }

    /// A linear map of patches: the first takes them, the second makes them.
    fn map(&self, out: &mut Emitter, input: &str, [weight, bias]: &[String; 2]) -> String {
        match self.form {
            Form::Places { side } if *weight == self.encoder[0] => {
                let ints = |n: u64| Attribute::Ints(vec![n as i64; 2]);
                out.op("Conv", &[input, weight, bias], &[("kernel_shape", ints(side)), ("strides", ints(side))])
            }
            Form::Places { .. } => out.op("Conv", &[input, weight, bias], &[]),
            Form::Row | Form::Position => {
                let product = out.op("MatMul", &[input, weight], &[]);
                out.op("Add", &[&product, bias], &[])
            }
        }
    }

    /// Its weights, fitted: `components` are `codes` directions of `width`
    /// numbers each, orthonormal, `deviations` how much patches vary along
    /// them, `mean` is the patches' mean.
    #[must_use]
    pub fn weights(&self, components: &[f64], deviations: &[f64], mean: &[f64]) -> HashMap<String, Tensor> {
        let (width, codes) = (self.width as usize, self.codes as usize);
        let at = |code: usize, number: usize| components[code * width + number];
        let places = matches!(self.form, Form::Places { .. });
        let (mut encoder, mut decoder) = (vec![0f32; width * codes], vec![0f32; width * codes]);
        let mut bias = vec![0f32; codes];
        for code in 0..codes {
            let deviation = deviations[code];
            for number in 0..width {
                let (by_code, by_number) = (code * width + number, number * codes + code);
                let (to, from) = if places { (by_code, by_number) } else { (by_number, by_code) };
                encoder[to] = (at(code, number) / deviation) as f32;
                decoder[from] = (at(code, number) * deviation) as f32;
            }
            let along: f64 = (0..width).map(|number| at(code, number) * mean[number]).sum();
            bias[code] = (-along / deviation) as f32;
        }
        let [encoder_shape, decoder_shape] = self.shapes();
        let tensor = |shape: Vec<u64>, values: Vec<f32>| {
            let shape: Vec<usize> = shape.into_iter().map(|n| n as usize).collect();
            Tensor::new(shape, Elements::F32(values)).unwrap_or_else(|_| unreachable!("as many as its shape"))
        };
        let mean = mean.iter().map(|v| *v as f32).collect();
        HashMap::from([
            (self.encoder[0].clone(), tensor(encoder_shape, encoder)),
            (self.encoder[1].clone(), tensor(vec![self.codes], bias)),
            (self.decoder[0].clone(), tensor(decoder_shape, decoder)),
            (self.decoder[1].clone(), tensor(vec![self.width], mean)),
        ])
    }

    /// Names of all that the model reads on the way to what is encoded.
    #[must_use]
    pub fn before(&self, model: &Model) -> HashSet<String> {
        let index = Index::new(model);
        let nodes = index.needed_for(&[self.tensor.as_str()], &HashSet::new());
        nodes.into_iter().flat_map(|node| index.reads[node].iter()).map(|name| (*name).to_owned()).collect()
    }

    /// The names of all its weights.
    pub fn parameters(&self) -> impl Iterator<Item = &String> {
        self.encoder.iter().chain(&self.decoder)
    }
}

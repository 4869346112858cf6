//! Squared gradients of a model's loss, summed over runs: with one example a
//! run, the diagonal of its Fisher information, times their number.

use super::{Recipe, StepError, answers, deployed, loss, parameters};
use crate::constant::tensor_from_proto;
use crate::gradient::Forward;
use crate::kernels::{self, Kernels};
use crate::model::Model;
use crate::slice::value_info_proto;
use crate::tensor::{DataType, Tensor};
use crate::types::{Dim, ValueInfo};

/// A graph that adds the squares of the gradients of a loss to sums that it is
/// given.
#[derive(Debug, Clone, PartialEq)]
pub struct Squares {
    /// The graph; it takes a batch, targets and the sums. The weights are in it.
    pub model: Model,
    /// The model's own inputs: the batch.
    pub inputs: Vec<String>,
    /// The input that takes targets.
    pub target: String,
    /// The sums.
    pub sums: Vec<SquareSum>,
}

/// The sum of a weight's squared gradients.
#[derive(Debug, Clone, PartialEq)]
pub struct SquareSum {
    /// The weight.
    pub weight: String,
    /// Name of the input that is the sum so far.
    pub input: String,
    /// Name of the output that is the next one.
    pub output: String,
    /// Zeros, shaped as the weight.
    pub zero: Tensor,
}

/// The squared gradients of a model's loss, as it is deployed: without dropout,
/// batch normalisation by its running statistics. The loss is averaged over the
/// batch, so that squares are those of single examples only where a batch is
/// one example, or the same one over and over.
///
/// # Errors
/// As [`super::trainable`].
pub fn squares(model: &Model, recipe: &Recipe, kernels: &Kernels) -> Result<Squares, StepError> {
    recipe.check()?;
    let model = deployed(model)?;
    crate::gradient::check_arity(&model)?;
    let model = crate::gradient::prepare(&model)?;
    let parameters::Found { trained: parameters, .. } = parameters::find(&model, &recipe.freeze)?;
    let inputs: Vec<String> = model.inputs().into_iter().map(|i| i.name).collect();
    let (model, answers) = answers(&model, recipe)?;
    let (model, loss) = loss::attach(&model, &recipe.loss, &answers.about())?;

    let forward = Forward::new(&model, kernels)?;
    let mut out = forward.emitter();
    let dtype = forward.types.get(&loss.loss).and_then(|t| t.dtype).unwrap_or(DataType::F32);
    let one = out.scalar(dtype, 1.0);
    let names: Vec<&str> = parameters.iter().map(String::as_str).collect();
    let gradients = forward.backward(&[(loss.loss.as_str(), one)], &names, &mut out)?;
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let mut sums = Vec::new();
    let (mut given, mut made) = (Vec::new(), Vec::new());
    for tensor in &graph.initializer {
        let (true, Some(gradient)) = (names.contains(&tensor.name()), gradients.get(tensor.name())) else { continue };
        let weight = tensor_from_proto(tensor)?;
        let [input, output] = ["square", "square.next"].map(|what| out.name(&format!("{}.{what}", tensor.name())));
        let square = out.op("Mul", &[gradient, gradient], &[]);
        out.named("Add", &[&input, &square], &[&output], &[]);
        let shape = weight.shape().iter().map(|&d| Dim::Known(d as u64)).collect();
        let info = ValueInfo { name: input.clone(), dtype: Some(weight.dtype()), shape: Some(shape) };
        made.push(value_info_proto(&ValueInfo { name: output.clone(), ..info.clone() }));
        given.push(value_info_proto(&info));
        let zero = Tensor::zeros(weight.dtype(), weight.shape()).expect("a weight's shape and type");
        sums.push(SquareSum { weight: tensor.name().to_owned(), input, output, zero });
    }
    if sums.is_empty() {
        return Err(StepError::NoParameters { reason: format!(" that `{}` depends on", answers.output) });
    }
    let (nodes, emitted) = out.finish();
    graph.node.extend(nodes);
    graph.initializer.extend(emitted);
    graph.input.extend(given);
    graph.output = made;
    kernels::import(&mut proto);
    let model = super::tidy(Model::from_proto(proto)?)?;
    crate::infer::infer_types(&model)?;
    Ok(Squares { model, inputs, target: super::TARGET.to_owned(), sums })
}

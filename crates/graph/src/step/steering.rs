//! What a step takes from outside at every run: how members of a federation
//! are kept together.

use std::collections::HashMap;

use super::metadata::Slot;
use crate::emit::{Attribute, Emitter};
use crate::onnx::TensorProto;
use crate::tensor::DataType;

/// Inputs of a step besides state and batch. Each has a default that changes
/// nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steering {
    /// Whether there is a scalar input that is added to the gradient of each
    /// weight, times the weight. With a correction of minus this times a
    /// point, weights are pulled to that point (FedProx, Ditto).
    pub pulled: bool,
    /// Whether each weight has an input, shaped as it is, that is added to its
    /// gradient.
    pub corrected: bool,
}

/// Name of the scalar input that the learning rate is multiplied by.
pub(super) const PACE: &str = "pace";

/// Name of the scalar input that weights are pulled by.
pub(super) const PULL: &str = "pull";

/// The input whose value is added to a weight's gradient.
pub(super) fn correction_of(weight: &str) -> String {
    format!("{weight}.correction")
}

/// A scalar input, all of which are f32, as another type.
pub(super) fn of_type(input: &str, dtype: DataType, out: &mut Emitter) -> String {
    match dtype {
        DataType::F32 => input.to_owned(),
        other => out.op("Cast", &[input], &[("to", Attribute::Int(other.to_onnx().into()))]),
    }
}

impl Steering {
    /// Scalar inputs that the step needs for itself.
    pub(super) fn names(self) -> impl Iterator<Item = &'static str> {
        [PACE].into_iter().chain(self.pulled.then_some(PULL))
    }

    /// The gradient of a weight with what comes from outside.
    pub(super) fn gradient(&self, weight: &str, gradient: &str, dtype: DataType, out: &mut Emitter) -> String {
        let mut steered = gradient.to_owned();
        if self.pulled {
            let pull = of_type(PULL, dtype, out);
            let pull = out.op("Mul", &[weight, &pull], &[]);
            steered = out.op("Add", &[&steered, &pull], &[]);
        }
        if self.corrected {
            steered = out.op("Add", &[&steered, &correction_of(weight)], &[]);
        }
        steered
    }
}

/// Zeros shaped as the parameters among `state`: what corrections are unless
/// they are given.
pub(super) fn defaults(state: &[Slot], constants: &HashMap<String, TensorProto>) -> Vec<TensorProto> {
    let parameters = state.iter().filter(|slot| slot.gradient.is_some());
    let zeros = parameters.filter_map(|slot| {
        let like = constants.get(&slot.input)?;
        let shape: Vec<usize> = like.dims.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
        let zeros = crate::tensor::Tensor::zeros(DataType::from_onnx(like.data_type())?, shape).ok()?;
        Some(crate::constant::tensor_to_proto(&correction_of(&slot.input), &zeros))
    });
    zeros.collect()
}

//! What a step takes from outside at every run: how members of a federation
//! are kept together, and how weights keep what they have learned.

use std::collections::HashMap;

use super::Role;
use super::metadata::Slot;
use super::optimizer::Update;
use crate::emit::{Attribute, Emitter};
use crate::onnx::TensorProto;
use crate::tensor::{DataType, Elements, Tensor};

/// Inputs of a step besides state and batch. Each has a default that changes
/// nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Steering {
    /// Whether there is a scalar input that is added to the gradient of each
    /// weight, times the weight. With a correction of minus this times a
    /// point, weights are pulled to that point (FedProx, Ditto).
    pub pulled: bool,
    /// Whether each weight has an input, shaped as it is, that is added to its
    /// gradient.
    pub corrected: bool,
    /// Whether each weight has two inputs, shaped as it is: what is added to
    /// its gradient is the first, its stiffness, times the distance from the
    /// second, its anchor. That is the gradient of half the sum of stiffness
    /// times squared distance (EWC: Kirkpatrick et al., 2017). The whole
    /// gradient is then divided by one plus stiffness times the learning rate,
    /// which makes a step of plain descent implicit in the penalty: it leads to
    /// the same place, and overshoots for no stiffness.
    pub anchored: bool,
    /// Whether each weight has an input, shaped as it is, that its change is
    /// multiplied by, whatever the optimiser: where it is zero, the weight
    /// stays.
    pub masked: bool,
    /// Whether the state has a path for each weight: the sum over steps of
    /// minus the loss's gradient times the weight's change, which is how much
    /// of the loss's fall the weight brought (SI: Zenke et al., 2017). What
    /// steers isn't part of that gradient.
    pub traced: bool,
}

/// Name of the scalar input that the learning rate is multiplied by.
pub(super) const PACE: &str = "pace";

/// Name of the scalar input that weights are pulled by.
pub(super) const PULL: &str = "pull";

/// The input whose value is added to a weight's gradient.
pub(super) fn correction_of(weight: &str) -> String {
    format!("{weight}.correction")
}

/// The input that says how strongly a weight is held.
pub(super) fn stiffness_of(weight: &str) -> String {
    format!("{weight}.stiffness")
}

/// The input that says to where.
pub(super) fn anchor_of(weight: &str) -> String {
    format!("{weight}.anchor")
}

/// The input that a weight's change is multiplied by.
pub(super) fn mask_of(weight: &str) -> String {
    format!("{weight}.mask")
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

    /// The gradient of a weight with what comes from outside. `dtype` are the types
    /// of the weight and of the rate.
    pub(super) fn gradient(
        &self,
        weight: &str,
        gradient: &str,
        rate: &str,
        dtype: [DataType; 2],
        out: &mut Emitter,
    ) -> String {
        let [dtype, of_rate] = dtype;
        let mut steered = gradient.to_owned();
        if self.pulled {
            let pull = of_type(PULL, dtype, out);
            let pull = out.op("Mul", &[weight, &pull], &[]);
            steered = out.op("Add", &[&steered, &pull], &[]);
        }
        if self.corrected {
            steered = out.op("Add", &[&steered, &correction_of(weight)], &[]);
        }
        if self.anchored {
            let stiffness = stiffness_of(weight);
            let distance = out.op("Sub", &[weight, &anchor_of(weight)], &[]);
            let force = out.op("Mul", &[&distance, &stiffness], &[]);
            steered = out.op("Add", &[&steered, &force], &[]);
            let rate = match dtype == of_rate {
                true => rate.to_owned(),
                false => out.op("Cast", &[rate], &[("to", Attribute::Int(dtype.to_onnx().into()))]),
            };
            let (slow, one) = (out.op("Mul", &[&stiffness, &rate], &[]), out.scalar(dtype, 1.0));
            let slow = out.op("Add", &[&slow, &one], &[]);
            steered = out.op("Div", &[&steered, &slow], &[]);
        }
        steered
    }
}

/// What an optimiser makes of a weight and its gradient, as it was before
/// anything steered it.
pub(super) struct Move<'a> {
    pub(super) weight: &'a str,
    pub(super) gradient: &'a str,
    /// The weight's first value, for shape and type.
    pub(super) like: &'a TensorProto,
}

impl Steering {
    /// A weight's next value, held where its mask says so, and the path that
    /// it has come.
    pub(super) fn moved(&self, of: &Move<'_>, next: &str, out: &mut Emitter) -> (String, Option<Update>) {
        if !self.masked && !self.traced {
            return (next.to_owned(), None);
        }
        let mut change = out.op("Sub", &[next, of.weight], &[]);
        let mut next = next.to_owned();
        if self.masked {
            change = out.op("Mul", &[&change, &mask_of(of.weight)], &[]);
            next = out.op("Add", &[of.weight, &change], &[]);
        }
        let traced = self.traced.then(|| {
            let input = out.name(&format!("{}.path", of.weight));
            let gain = out.op("Mul", &[of.gradient, &change], &[]);
            let value = out.op("Sub", &[&input, &gain], &[]);
            Update { input, value, role: Role::Path, initial: filled(of.like, 0.0) }
        });
        (next, traced)
    }
}

/// Inputs shaped as the parameters among `state`, and what they are unless
/// they are given.
pub(super) fn defaults(
    of: fn(&str) -> String,
    value: f64,
    state: &[Slot],
    constants: &HashMap<String, TensorProto>,
) -> Vec<TensorProto> {
    let parameters = state.iter().filter(|slot| slot.role == Role::Parameter);
    let made = parameters.filter_map(|slot| {
        let tensor = filled(constants.get(&slot.input)?, value)?;
        Some(crate::constant::tensor_to_proto(&of(&slot.input), &tensor))
    });
    made.collect()
}

/// A tensor of one number, shaped as a weight.
fn filled(like: &TensorProto, value: f64) -> Option<Tensor> {
    let shape: Vec<usize> = like.dims.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
    let mut tensor = Tensor::zeros(DataType::from_onnx(like.data_type())?, shape).ok()?;
    match tensor.elements_mut() {
        Elements::F32(values) => values.fill(value as f32),
        Elements::F64(values) => values.fill(value),
        _ => {}
    }
    Some(tensor)
}

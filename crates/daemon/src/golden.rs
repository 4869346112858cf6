//! Inputs of a model with the outputs that are expected of them: whether an
//! engine on this device gives those.
//!
//! The files are artefacts beside the model. Start at [`Golden::read`], then
//! [`differs`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tierline_engine::{Engine, EngineError, LoadOptions, Stop};
use tierline_graph::{Elements, Model, Tensor, ValueInfo};
use tierline_proto::Digest;

/// How far an output may be from what is expected, as a part of its largest
/// value, unless told otherwise: engines add in another order.
pub const TOLERANCE_DEFAULT: f64 = 1e-3;

/// Starts of the names under which they are sent.
pub const INPUT: &str = "golden/input/";
/// See [`INPUT`].
pub const OUTPUT: &str = "golden/output/";

/// Tensors by name.
pub type Values<'v> = &'v [(String, Tensor)];

/// Golden inputs of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Golden {
    /// Digests of NumPy files, by input.
    pub inputs: BTreeMap<String, String>,
    /// Digests of NumPy files, by output.
    pub outputs: BTreeMap<String, String>,
    /// How far an output may be off, as a part of the largest value expected.
    pub tolerance: f64,
}

impl Golden {
    /// Reads what came beside a model: NumPy files by the names under which they
    /// were sent. None where there are none.
    ///
    /// # Errors
    /// What doesn't fit the model's inputs and outputs.
    pub fn read(
        files: &BTreeMap<String, bytes::Bytes>,
        tolerance: f64,
        inputs: &[ValueInfo],
        outputs: &[ValueInfo],
    ) -> Result<Option<Self>, String> {
        if files.is_empty() {
            return Ok(None);
        }
        let tolerance = if tolerance == 0.0 { TOLERANCE_DEFAULT } else { tolerance };
        let of = |start: &str, known: &[ValueInfo], what: &str| -> Result<BTreeMap<String, String>, String> {
            let mut digests = BTreeMap::new();
            for (file, npy) in files {
                let Some(name) = file.strip_prefix(start) else { continue };
                let tensor = tierline_codec::npy::read(npy).map_err(|e| format!("golden {what} `{name}`: {e}"))?;
                let value = known.iter().find(|value| value.name == name);
                let value = value.ok_or_else(|| format!("the model has no {what} `{name}` for golden values"))?;
                if value.dtype.is_some_and(|dtype| dtype != tensor.dtype()) {
                    return Err(format!("golden {what} `{name}` is of type {}", tensor.dtype().numpy()));
                }
                digests.insert(name.to_owned(), crate::models::digest(npy));
            }
            Ok(digests)
        };
        let golden = Self { inputs: of(INPUT, inputs, "input")?, outputs: of(OUTPUT, outputs, "output")?, tolerance };
        golden.check(inputs, outputs)?;
        Ok(Some(golden))
    }

    /// Refuses what no manifest has.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, inputs: &[ValueInfo], outputs: &[ValueInfo]) -> Result<(), String> {
        if !(self.tolerance > 0.0 && self.tolerance.is_finite()) {
            return Err(format!("a tolerance of {} for golden outputs; it must be above 0", self.tolerance));
        }
        if let Some(missing) = inputs.iter().find(|input| !self.inputs.contains_key(&input.name)) {
            return Err(format!("input `{}` has no golden value", missing.name));
        }
        if self.outputs.is_empty() {
            return Err("no output is expected of the golden inputs".to_owned());
        }
        let known = |of: &[ValueInfo], name: &String| of.iter().any(|value| value.name == *name);
        let unknown = self.inputs.keys().find(|name| !known(inputs, name));
        if let Some(name) = unknown.or_else(|| self.outputs.keys().find(|name| !known(outputs, name))) {
            return Err(format!("golden values of `{name}`, which the model doesn't have"));
        }
        self.digests().try_for_each(|digest| digest.parse::<Digest>().map(drop).map_err(|e| e.to_string()))
    }

    /// Its files.
    pub fn digests(&self) -> impl Iterator<Item = &String> {
        self.inputs.values().chain(self.outputs.values())
    }
}

/// Runs a model on its golden inputs: what is other than expected, in words;
/// none where nothing is.
///
/// # Errors
/// Those of the engine.
pub fn differs(
    engine: &dyn Engine,
    load: &LoadOptions,
    model: &Model,
    (inputs, expected): (Values<'_>, Values<'_>),
    tolerance: f64,
    stop: &Stop,
) -> Result<Option<String>, EngineError> {
    let mut session = engine.load_until(model, load, stop)?;
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut outputs = Vec::new();
    session.run_until(&given, &mut outputs, stop)?;
    let named: Vec<(&str, &Tensor)> = session.outputs().iter().map(|o| o.name.as_str()).zip(&outputs).collect();
    Ok(wrong(&named, expected, tolerance))
}

/// What outputs are other than expected, in words; none where nothing is. An
/// output of which nothing is expected has a number at least.
#[must_use]
pub fn wrong(outputs: &[(&str, &Tensor)], expected: Values<'_>, tolerance: f64) -> Option<String> {
    for (name, wanted) in expected {
        let Some((_, got)) = outputs.iter().find(|(own, _)| own == name) else {
            return Some(format!("golden inputs: it gives no output `{name}`"));
        };
        if let Some(how) = off(got, wanted, tolerance) {
            return Some(format!("golden inputs: output `{name}` {how}"));
        }
    }
    let blank = |(name, tensor): &&(&str, &Tensor)| {
        expected.iter().all(|(known, _)| known != name)
            && floats(tensor).is_some_and(|numbers| !numbers.is_empty() && numbers.iter().all(|x| x.is_nan()))
    };
    outputs.iter().find(blank).map(|(name, _)| format!("output `{name}` is not a number in any place"))
}

/// How a tensor is other than wanted; none where it is near enough.
fn off(got: &Tensor, wanted: &Tensor, tolerance: f64) -> Option<String> {
    if got.dtype() != wanted.dtype() || got.shape() != wanted.shape() {
        let of = |tensor: &Tensor| format!("{} {:?}", tensor.dtype().numpy(), tensor.shape());
        return Some(format!("is {} where {} is expected", of(got), of(wanted)));
    }
    let (Some(numbers), Some(expected)) = (floats(got), floats(wanted)) else {
        return (got != wanted).then(|| "has other values than are expected".to_owned());
    };
    let largest = expected.iter().filter(|v| v.is_finite()).fold(0.0f64, |most, v| most.max(v.abs()));
    let apart = |(a, b): (&f64, &f64)| match (a.is_nan(), b.is_nan()) {
        (true, true) => 0.0,
        (false, false) if a == b => 0.0,
        (false, false) => (a - b).abs(),
        _ => f64::INFINITY,
    };
    let most = numbers.iter().zip(&expected).map(apart).fold(0.0, f64::max);
    let allowed = tolerance * if largest > 0.0 { largest } else { 1.0 };
    (most > allowed).then(|| format!("is off by {most:.3e} where {allowed:.3e} is allowed"))
}

fn floats(tensor: &Tensor) -> Option<Vec<f64>> {
    Some(match tensor.elements() {
        Elements::F32(v) => v.iter().map(|x| f64::from(*x)).collect(),
        Elements::F64(v) => v.clone(),
        Elements::F16(v) => v.iter().map(|x| f64::from(*x)).collect(),
        Elements::BF16(v) => v.iter().map(|x| f64::from(*x)).collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new([values.len()], Elements::F32(values.to_vec())).unwrap()
    }

    #[test]
    fn near_enough_is_a_part_of_the_largest_value() {
        let wanted = tensor(&[0.0, 100.0, -3.0]);
        assert_eq!(off(&tensor(&[0.05, 100.05, -3.0]), &wanted, 1e-3), None);
        assert!(off(&tensor(&[0.2, 100.0, -3.0]), &wanted, 1e-3).unwrap().contains("off by 2.000e-1"));
        assert!(off(&tensor(&[f32::NAN, 100.0, -3.0]), &wanted, 1e-3).is_some());
        assert!(off(&tensor(&[f32::INFINITY, 100.0, -3.0]), &wanted, 1e-3).is_some());
        let odd = tensor(&[f32::NAN, f32::INFINITY]);
        assert_eq!(off(&odd, &odd, 1e-3), None);
        assert!(off(&tensor(&[0.0, 100.0]), &wanted, 1e-3).unwrap().contains("is expected"));
        assert_eq!(off(&tensor(&[0.0005]), &tensor(&[0.0]), 1e-3), None);
        let whole = |n| Tensor::new([1], Elements::I64(vec![n])).unwrap();
        assert_eq!(off(&whole(7), &whole(7), 1e-3), None);
        assert!(off(&whole(7_000_001), &whole(7_000_000), 1e-3).is_some());
    }
}

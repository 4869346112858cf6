//! The segments as sessions, and the values between them on the sample input.

use std::collections::BTreeMap;

use tierline_graph::profile::{CutProfile, TensorProfile};
use tierline_graph::{Model, Tensor};

use super::measure::Runner;
use super::{CodecProbe, Phase, ProfileOptions, Subject, memory};
use crate::{Engine, EngineError, Session, Stop};

pub(super) type Values = BTreeMap<String, Tensor>;

pub(super) struct Chain {
    /// A session per segment, or why there is none.
    pub(super) links: Vec<Result<Box<dyn Session>, String>>,
    /// What each segment takes: the inputs, then each cut's tensors.
    pub(super) frontiers: Vec<Values>,
    /// The model's outputs, where the last segment runs.
    pub(super) outputs: Option<Vec<Tensor>>,
    stop: Stop,
}

impl Chain {
    /// Loads every segment and runs it once.
    pub(super) fn new(
        engine: &dyn Engine,
        subject: &Subject,
        segments: &[Model],
        options: &ProfileOptions,
    ) -> Result<Self, EngineError> {
        let Subject { types, cuts, inputs, .. } = *subject;
        let frontiers = vec![inputs.iter().cloned().collect()];
        let mut chain = Self { links: Vec::new(), frontiers, outputs: None, stop: options.stop.clone() };
        for (i, segment) in segments.iter().enumerate() {
            options.progress.report(Phase::Load, i as f64 / segments.len() as f64);
            let given = &chain.frontiers[i];
            let loaded = engine.load_until(segment, &options.load, &options.stop).and_then(|mut session| {
                let mut made = Vec::new();
                session.run_until(&pick(session.as_ref(), given), &mut made, &options.stop)?;
                Ok((session, made))
            });
            let (link, made) = match loaded {
                Ok((session, made)) => (Ok(session), Some(made)),
                Err(e) if cannot(&e) => (Err(e.to_string()), None),
                Err(other) => return Err(other),
            };
            match cuts.get(i) {
                Some(names) => {
                    let made: Values = match (&link, made) {
                        (Ok(session), Some(made)) => {
                            session.outputs().iter().map(|v| v.name.clone()).zip(made).collect()
                        }
                        _ => Values::new(),
                    };
                    let value = |name: &String| {
                        let known = made.get(name).or_else(|| given.get(name)).cloned();
                        Ok((name.clone(), known.map_or_else(|| memory::made_up(name, types), Ok)?))
                    };
                    let next = names.iter().map(value).collect::<Result<_, EngineError>>()?;
                    chain.frontiers.push(next);
                }
                None => chain.outputs = made,
            }
            chain.links.push(link);
        }
        Ok(chain)
    }

    /// The segments that run, each with what it is fed.
    pub(super) fn runners<'c>(&'c mut self, stop: &'c Stop) -> Vec<Runner<'c>> {
        let links = self.links.iter_mut().zip(&self.frontiers);
        links.filter_map(|(link, values)| Some(Runner::new(link.as_mut().ok()?.as_mut(), values, stop))).collect()
    }

    /// Measures the codecs on the tensors that enter segment `from`.
    pub(super) fn probe<'n>(
        &mut self,
        from: usize,
        names: impl Iterator<Item = &'n str>,
        codecs: &mut dyn CodecProbe,
    ) -> CutProfile {
        let mut tensors = Vec::new();
        for name in names {
            let Some(value) = self.frontiers[from].get(name).cloned() else { continue };
            let mut suffix = |other: &Tensor| self.suffix(from, name, other);
            let codecs = codecs.probe(name, &value, &mut suffix);
            tensors.push(TensorProfile { name: name.to_owned(), bytes: value.byte_len(), codecs });
        }
        CutProfile { tensors }
    }

    /// Measures the codecs on the model's outputs, where they are known.
    pub(super) fn probe_outputs<'n>(
        &mut self,
        names: impl Iterator<Item = &'n str>,
        codecs: &mut dyn CodecProbe,
    ) -> CutProfile {
        let outputs = self.outputs.iter().flatten();
        let tensors = names.zip(outputs).map(|(name, value)| TensorProfile {
            name: name.to_owned(),
            bytes: value.byte_len(),
            // Nothing runs behind the outputs: their error is the model's.
            codecs: codecs.probe(name, value, &mut |changed| Ok(vec![changed.clone()])),
        });
        CutProfile { tensors: tensors.collect() }
    }

    /// The model's outputs when `name` is `value` on entering segment `from`.
    fn suffix(&mut self, from: usize, name: &str, value: &Tensor) -> Result<Vec<Tensor>, EngineError> {
        // The unchanged value is what every probe asks for first.
        if let Some(outputs) = &self.outputs
            && self.frontiers[from].get(name) == Some(value)
        {
            return Ok(outputs.clone());
        }
        let mut values = self.frontiers[from].clone();
        values.insert(name.to_owned(), value.clone());
        let last = self.links.len() - 1;
        for (at, link) in self.links.iter_mut().enumerate().skip(from) {
            let session = link.as_mut().map_err(|reason| EngineError::Prepare { reason: reason.clone() })?;
            let mut made = Vec::new();
            session.run_until(&pick(session.as_ref(), &values), &mut made, &self.stop)?;
            if at == last {
                return Ok(made);
            }
            // What passes a segment by is still there behind it.
            values.extend(session.outputs().iter().map(|v| v.name.clone()).zip(made));
        }
        Err(EngineError::Prepare { reason: format!("there is no segment {from}") })
    }
}

/// Whether this engine can't run the model, rather than the caller having
/// asked for something wrong.
pub(super) fn cannot(error: &EngineError) -> bool {
    use EngineError::{Ended, InputValue, Memory, OutputType, Panicked, Refused, Run};
    let out_of_reach = matches!(error, Memory { .. } | Ended { .. });
    out_of_reach
        || matches!(error, Refused { .. } | Panicked { .. } | Run { .. } | OutputType { .. } | InputValue { .. })
}

/// Those of `values` that the session takes.
pub(super) fn pick<'v>(session: &dyn Session, values: &'v Values) -> Vec<(&'v str, &'v Tensor)> {
    session.inputs().iter().filter_map(|v| values.get_key_value(&v.name)).map(|(n, t)| (n.as_str(), t)).collect()
}

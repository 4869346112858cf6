//! The segments as sessions, and the values between them on the sample input.

use std::collections::BTreeMap;

use tierline_graph::profile::{CutProfile, TensorProfile};
use tierline_graph::{Model, Tensor, Types};

use super::{CodecProbe, ProfileOptions, memory};
use crate::{Engine, EngineError, Session};

pub(super) type Values = BTreeMap<String, Tensor>;

pub(super) struct Chain {
    /// A session per segment, or why there is none.
    pub(super) links: Vec<Result<Box<dyn Session>, String>>,
    /// What each segment takes: the inputs, then each cut's tensors.
    pub(super) frontiers: Vec<Values>,
}

impl Chain {
    pub(super) fn new(
        engine: &dyn Engine,
        types: &Types,
        segments: &[Model],
        cuts: &[Vec<String>],
        inputs: &[(String, Tensor)],
        options: &ProfileOptions,
    ) -> Result<Self, EngineError> {
        let mut links = Vec::with_capacity(segments.len());
        let mut frontiers: Vec<Values> = vec![inputs.iter().cloned().collect()];
        for (i, segment) in segments.iter().enumerate() {
            let mut link = match engine.load(segment, &options.load) {
                Ok(session) => Ok(session),
                Err(e @ (EngineError::Refused { .. } | EngineError::Panicked { .. })) => Err(e.to_string()),
                Err(other) => return Err(other),
            };
            if let Some(names) = cuts.get(i) {
                let made = match &mut link {
                    Ok(session) => run(session.as_mut(), &frontiers[i])?,
                    Err(_) => Values::new(),
                };
                let value = |name: &String| {
                    let known = made.get(name).or_else(|| frontiers[i].get(name)).cloned();
                    Ok((name.clone(), known.map_or_else(|| memory::made_up(name, types), Ok)?))
                };
                let next = names.iter().map(value).collect::<Result<_, EngineError>>()?;
                frontiers.push(next);
            }
            links.push(link);
        }
        Ok(Self { links, frontiers })
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

    /// The model's outputs when `name` is `value` on entering segment `from`.
    fn suffix(&mut self, from: usize, name: &str, value: &Tensor) -> Result<Vec<Tensor>, EngineError> {
        let mut values = self.frontiers[from].clone();
        values.insert(name.to_owned(), value.clone());
        let last = self.links.len() - 1;
        for link in &mut self.links[from..last] {
            let session = link.as_mut().map_err(|reason| EngineError::Prepare { reason: reason.clone() })?;
            values = run(session.as_mut(), &values)?;
        }
        let session = self.links[last].as_mut().map_err(|reason| EngineError::Prepare { reason: reason.clone() })?;
        let given = pick(session.as_ref(), &values);
        session.run(&given)
    }
}

/// Those of `values` that the session takes.
pub(super) fn pick<'v>(session: &dyn Session, values: &'v Values) -> Vec<(&'v str, &'v Tensor)> {
    session.inputs().iter().filter_map(|v| values.get_key_value(&v.name)).map(|(n, t)| (n.as_str(), t)).collect()
}

fn run(session: &mut dyn Session, values: &Values) -> Result<Values, EngineError> {
    let made = session.run(&pick(session, values))?;
    Ok(session.outputs().iter().map(|v| v.name.clone()).zip(made).collect())
}

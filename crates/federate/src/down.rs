//! How models travel down: as what sets them apart from the model that members
//! already hold, through stages that lose some of it.
//!
//! What is lost is not lost for good: members' model, which the coordinator
//! knows bit for bit, is what the next difference is taken from (EF21-P:
//! Gruntkowska, Tyurin and Richtarik, 2023). Statistics are sent as they are:
//! half a variance is no variance. Start at [`Down`]; [`follow`] is the
//! members' side.

use std::collections::BTreeMap;

use tierline_codec::update::Pipeline;

use crate::{Channel, FederateError, Layout, Vectors, wire};

/// Differences one behind the other that a member follows, at most: each is
/// fetched by itself.
pub const DIFFERENCES_MAX: usize = 64;

/// A hop's models on their way down.
#[derive(Debug, Clone, PartialEq)]
pub struct Down {
    pipeline: Pipeline,
    /// What members hold who have followed: the model that they start from.
    held: Vectors,
    /// Bytes of the differences on offer, by the version that each leads to.
    ///
    /// Invariant: without a gap, fewer bytes together than a whole model.
    offered: BTreeMap<u64, u64>,
}

impl Down {
    /// Members that hold this model, sent to by these stages from now on.
    #[must_use]
    pub fn new(pipeline: Pipeline, held: Vectors) -> Self {
        Self { pipeline, held, offered: BTreeMap::new() }
    }

    /// What members hold.
    #[must_use]
    pub fn held(&self) -> &Vectors {
        &self.held
    }

    /// What members hold from a time before this process.
    pub fn hold(&mut self, held: Vectors) {
        self.held = held;
    }

    /// Takes members towards a model: the difference's bytes. `seed` decides
    /// what stages draw.
    ///
    /// # Errors
    /// When a number isn't finite.
    pub fn send(
        &mut self,
        layout: &Layout,
        version: u64,
        model: &Vectors,
        seed: u64,
    ) -> Result<Vec<u8>, FederateError> {
        let mut frame = wire::Writer::new(model.len());
        for (&channel, vector) in model {
            let shapes = layout.shapes(channel);
            match (channel, self.held.get(&channel)) {
                (Channel::Statistics, _) | (_, None) => {
                    let plain = self.pipeline.without_loss();
                    frame.put(channel, |out| plain.encode(vector, &shapes, seed, out))?;
                }
                (_, Some(held)) => {
                    let apart: Vec<f32> = vector.iter().zip(held).map(|(x, h)| x - h).collect();
                    frame.put(channel, |out| self.pipeline.encode(&apart, &shapes, seed, out))?;
                }
            }
        }
        let bytes = frame.finish();
        // As members do it, so that they have the same bits.
        self.held = follow(&bytes, layout, &self.held)?;
        self.offer(version, bytes.len() as u64);
        Ok(bytes)
    }

    /// A difference that leads to a version is there.
    pub fn offer(&mut self, version: u64, bytes: u64) {
        if self.offered.last_key_value().is_some_and(|(last, _)| *last + 1 != version && *last != version) {
            self.offered.clear();
        }
        self.offered.insert(version, bytes);
        let whole = 4 * self.held.values().map(|v| v.len() as u64).sum::<u64>();
        while self.offered.len() > DIFFERENCES_MAX || self.offered.values().sum::<u64>() >= whole {
            if self.offered.pop_first().is_none() {
                break;
            }
        }
    }

    /// Versions that a difference leads to, one behind the other up to this
    /// one: whoever holds a version in front of any of them may follow from
    /// there. None where the whole model is fewer bytes.
    pub fn leading_to(&self, version: u64) -> impl Iterator<Item = u64> {
        let known = self.offered.contains_key(&version);
        self.offered.range(..=version).map(|(v, _)| *v).filter(move |_| known)
    }

    /// Bytes from a version that a member holds to another; `None` where it
    /// takes the whole model.
    #[must_use]
    pub fn bytes(&self, holds: u64, version: u64) -> Option<u64> {
        if holds == version {
            return Some(0);
        }
        let followed = self.leading_to(version).any(|v| v == holds + 1);
        followed.then(|| self.offered.range(holds + 1..=version).map(|(_, bytes)| bytes).sum())
    }
}

/// The model that a difference leads to, from the one in front of it.
///
/// # Errors
/// When the bytes are broken or of another model.
pub fn follow(bytes: &[u8], layout: &Layout, held: &Vectors) -> Result<Vectors, FederateError> {
    let mut model = wire::decode(bytes, layout)?;
    for (channel, vector) in &mut model {
        if let (false, Some(held)) = (*channel == Channel::Statistics, held.get(channel)) {
            layout.check(*channel, held)?;
            vector.iter_mut().zip(held).for_each(|(x, h)| *x += h);
        }
    }
    Ok(model)
}

/// The stages of a way down.
///
/// # Errors
/// When they make no sense, or lose nothing: such a difference is no smaller
/// than the model.
pub(crate) fn stages(what: &'static str, stages: &[String]) -> Result<Option<Pipeline>, FederateError> {
    let setting = |reason: String| FederateError::Setting { what, reason };
    if stages.is_empty() {
        return Ok(None);
    }
    let pipeline = Pipeline::parse(stages).map_err(|e| setting(format!("down: {e}")))?;
    if pipeline.is_lossless() {
        let reason = "down: what differs from the members' model takes as many bits as the model; name a stage that \
                      leaves something out, such as int8 or topk:0.1, or leave `down` out";
        return Err(setting(reason.to_owned()));
    }
    if !pipeline.is_contraction() {
        let reason = "down: qsgd below six bits may lose more than there was, and members' model would leave the \
                      coordinator's behind; name qsgd:6 or int4";
        return Err(setting(reason.to_owned()));
    }
    Ok(Some(pipeline))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_offered_while_they_are_fewer_bytes_than_the_model() {
        // A whole model has 400 bytes.
        let held = Vectors::from([(Channel::Model, vec![0.0; 100])]);
        let mut down = Down::new(Pipeline::default(), held);
        (1..=3).for_each(|version| down.offer(version, 150));
        assert_eq!(down.leading_to(3).collect::<Vec<_>>(), [2, 3], "three are more than the model");
        assert_eq!(down.leading_to(2).collect::<Vec<_>>(), [2]);
        let bytes = |holds| down.bytes(holds, 3);
        assert_eq!([bytes(0), bytes(1), bytes(2), bytes(3)], [None, Some(300), Some(150), Some(0)]);
        assert_eq!(down.bytes(3, 2), None, "nobody goes back");
        down.offer(3, 150);
        assert_eq!(down.leading_to(3).count(), 2, "one that is made again is the same");
        down.offer(4, 500);
        assert_eq!((down.leading_to(4).count(), down.bytes(3, 4)), (0, None));
        down.offer(5, 1);
        down.offer(9, 1);
        assert_eq!(down.leading_to(9).collect::<Vec<_>>(), [9], "one behind the other");
        (10..=9 + 2 * DIFFERENCES_MAX as u64).for_each(|version| down.offer(version, 1));
        assert_eq!(down.leading_to(9 + 2 * DIFFERENCES_MAX as u64).count(), DIFFERENCES_MAX);
    }
}

//! What stands before tensors: a run's header, and its reply.
//!
//! The tensors that they declare are checked here too; the chunks that follow
//! are for [`crate::frame::Assembler`].

use super::{Breach, Door, Sound, TIME_NS_MAX, bytes, count, cut, digest};
use crate::Digest;
use crate::frame;
use crate::limits::{
    BOUNDARIES_MAX, CODEC_NAME_BYTES_MAX, DEADLINE_MS_MAX, EXITS_MAX, HOPS_MAX, MODEL_NAME_BYTES_MAX, NAME_BYTES_MAX,
    RUN_BYTES_MAX, STAGES_MAX, TENSORS_MAX, TEXT_BYTES_MAX, URL_BYTES_MAX, WORD_BYTES_MAX,
};
use crate::v1::{ExitRule, InferHeader, Placement, Reply, Route, RunHeader, StageTiming};

/// Names a request everywhere it runs.
pub type RequestId = [u8; 16];

impl Door for RunHeader {
    fn check(&mut self) -> Result<(), Breach> {
        let _: RequestId = request_id(&self.request)?;
        digest("the model", &mut self.model)?;
        self.route.as_mut().ok_or(Breach::Missing("route"))?.check()?;
        if self.hops > HOPS_MAX {
            return Err(Breach::Hops(self.hops));
        }
        if self.remaining_us > DEADLINE_MS_MAX * 1_000 {
            return Err(Breach::Deadline(self.remaining_us));
        }
        bytes("trace", self.trace.as_bytes(), NAME_BYTES_MAX)?;
        exits(&self.exits)?;
        frame::check(&self.tensors, RUN_BYTES_MAX)?;
        Ok(())
    }
}

impl Sound<RunHeader> {
    /// The request.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        request_id(&self.request).unwrap_or_default()
    }

    /// The prepared model.
    #[must_use]
    pub fn model(&self) -> Digest {
        Digest::try_from(&self.model).unwrap_or(Digest([0; 32]))
    }
}

impl Door for InferHeader {
    fn check(&mut self) -> Result<(), Breach> {
        bytes("a model's name", self.model.as_bytes(), MODEL_NAME_BYTES_MAX)?;
        bytes("trace", self.trace.as_bytes(), NAME_BYTES_MAX)?;
        if Placement::try_from(self.placement).is_err() {
            // Run elsewhere than asked, its answer would not be what was asked for.
            return Err(Breach::Unknown { what: "placement", number: self.placement });
        }
        self.route.as_mut().map_or(Ok(()), Door::check)?;
        if let Some(exit) = self.exit.filter(|exit| *exit as usize > EXITS_MAX) {
            return Err(Breach::Exit(exit));
        }
        if !(0.0..1.0).contains(&self.hedge) {
            let value = self.hedge.to_string();
            return Err(Breach::Number { what: "hedge", value, needed: "0, or between 0 and 1" });
        }
        frame::check(&self.tensors, RUN_BYTES_MAX)?;
        Ok(())
    }
}

impl Door for Route {
    /// Cuts in order, bounded lists and names.
    fn check(&mut self) -> Result<(), Breach> {
        count("boundaries", self.boundaries.len(), BOUNDARIES_MAX)?;
        bytes("the reply's codec", self.reply_codec.as_bytes(), CODEC_NAME_BYTES_MAX)?;
        let mut before = self.from;
        for boundary in &self.boundaries {
            // Equal where a tier runs nothing and passes on; the inputs (`None`)
            // come before every cut.
            if boundary.cut < before {
                return Err(Breach::Order { before, next: boundary.cut });
            }
            before = boundary.cut;
            count("tensors of a boundary", boundary.tensors.len(), TENSORS_MAX)?;
            for tensor in &boundary.tensors {
                bytes("a tensor's name", tensor.name.as_bytes(), NAME_BYTES_MAX)?;
                bytes("a codec's name", tensor.codec.as_bytes(), CODEC_NAME_BYTES_MAX)?;
            }
        }
        Ok(())
    }
}

impl Door for Reply {
    fn check(&mut self) -> Result<(), Breach> {
        let _: RequestId = request_id(&self.request)?;
        count("stages", self.stages.len(), STAGES_MAX)?;
        self.stages.iter_mut().try_for_each(Door::check)?;
        if let Some(degraded) = &mut self.degraded {
            cut(&mut degraded.reason, 4 * TEXT_BYTES_MAX);
            cut(&mut degraded.node, URL_BYTES_MAX);
        }
        super::failure(&mut self.failure)?;
        cut(&mut self.member, TEXT_BYTES_MAX);
        if self.exit as usize > EXITS_MAX {
            return Err(Breach::Exit(self.exit));
        }
        frame::check(&self.tensors, RUN_BYTES_MAX)?;
        Ok(())
    }
}

impl Sound<Reply> {
    /// Checks the reply to `request`.
    ///
    /// # Errors
    /// The first thing that breaks the protocol.
    pub fn read_for(request: RequestId, reply: Reply) -> Result<Self, Breach> {
        let reply = Self::read(reply)?;
        if reply.request.as_ref() == request { Ok(reply) } else { Err(Breach::OtherRequest) }
    }
}

impl Door for StageTiming {
    fn check(&mut self) -> Result<(), Breach> {
        bytes("a node's name", self.node.as_bytes(), NAME_BYTES_MAX)?;
        let times = [
            &mut self.queue_ns,
            &mut self.decode_ns,
            &mut self.compute_ns,
            &mut self.encode_ns,
            &mut self.upstream_ns,
            &mut self.receive_ns,
        ];
        // So that they can be added up.
        times.into_iter().for_each(|time| *time = (*time).min(TIME_NS_MAX));
        [&mut self.sent_bytes, &mut self.received_bytes]
            .into_iter()
            .for_each(|bytes| *bytes = (*bytes).min(super::BYTES_MAX));
        Ok(())
    }
}

/// Rules of exits: in order, each at most once, with thresholds that are numbers.
fn exits(rules: &[ExitRule]) -> Result<(), Breach> {
    count("exits", rules.len(), EXITS_MAX)?;
    let mut before = 0;
    for rule in rules {
        if rule.exit <= before || rule.exit as usize > EXITS_MAX {
            return Err(Breach::Exit(rule.exit));
        }
        before = rule.exit;
        bytes("a criterion's name", rule.criterion.as_bytes(), WORD_BYTES_MAX)?;
        if !rule.threshold.is_finite() {
            return Err(Breach::Threshold(rule.threshold));
        }
    }
    Ok(())
}

fn request_id(bytes: &[u8]) -> Result<RequestId, Breach> {
    bytes.try_into().map_err(|_| Breach::Request(bytes.len()))
}

pub(super) fn place(cut: Option<u32>) -> String {
    cut.map_or_else(|| "the inputs".to_owned(), |cut| format!("cut {cut}"))
}

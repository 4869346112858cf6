//! What a child and its parent say to each other on a session's stream.

use super::{
    BYTES_MAX, Breach, Door, Sound, bytes, count, digest, digest_or_none, failure, finite, id, id_or_none, long, word,
};
use crate::envelope;
use crate::limits::{
    ALIASES_MAX, CERTIFICATE_BYTES_MAX, DELTAS_MAX, HINTS_MAX, MODELS_MAX, PATH_TIERS_MAX, RENAMES_MAX,
    REVERSE_BYTES_MAX, REVOCATIONS_MAX, ROLLOUT_BYTES_MAX, ROLLOUT_REPORTS_MAX, ROLLOUT_WANTS_MAX, ROLLOUTS_MAX,
    SERVICES_MAX, SUBTREE_NODES_MAX, VERSIONS_IN_USE_MAX, WORD_BYTES_MAX,
};
use crate::name::{self, NodeName};
use crate::v1::{
    Catalogue, ChildMessage, EnrolmentNews, Envelope, Goodbye, Heartbeat, HeartbeatAck, HelloReply, HelloRequest,
    ModelEntry, ModelOffer, Names, NodeInfo, Offers, ParentMessage, ReverseReply, ReverseRequest, Revocations,
    RolloutReports, RolloutWants, ServiceEntry, SiteReport, Subtree, UpstreamPath, UpstreamTier, WarmHints,
    child_message, enrolment_news, parent_message, reverse_reply, reverse_request, site_report,
};

/// What a child says.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum FromChild {
    Heartbeat(Sound<Heartbeat>),
    Goodbye(Sound<Goodbye>),
    /// What one of its duties says.
    Envelope(Sound<Envelope>),
}

impl FromChild {
    /// Reads a message; `None` for a kind that this version doesn't know.
    ///
    /// # Errors
    /// How it breaks the protocol.
    pub fn read(message: ChildMessage) -> Result<Option<Self>, Breach> {
        use child_message::Body;
        Ok(Some(match message.body {
            None => return Ok(None),
            Some(Body::Heartbeat(m)) => Self::Heartbeat(Sound::read(m)?),
            Some(Body::Goodbye(m)) => Self::Goodbye(Sound::read(m)?),
            Some(other) => match envelope::of_child(other) {
                Some(envelope) => Self::Envelope(Sound::read(envelope)?),
                None => return Ok(None),
            },
        }))
    }
}

/// What a parent says.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum FromParent {
    Ack(Sound<HeartbeatAck>),
    Goodbye(Sound<Goodbye>),
    /// What one of its duties says.
    Envelope(Sound<Envelope>),
}

impl FromParent {
    /// Reads a message; `None` for a kind that this version doesn't know.
    ///
    /// # Errors
    /// How it breaks the protocol.
    pub fn read(message: ParentMessage) -> Result<Option<Self>, Breach> {
        use parent_message::Body;
        Ok(Some(match message.body {
            None => return Ok(None),
            Some(Body::Ack(m)) => Self::Ack(Sound::read(m)?),
            Some(Body::Goodbye(m)) => Self::Goodbye(Sound::read(m)?),
            Some(other) => match envelope::of_parent(other) {
                Some(envelope) => Self::Envelope(Sound::read(envelope)?),
                None => return Ok(None),
            },
        }))
    }
}

impl Door for Envelope {
    fn check(&mut self) -> Result<(), Breach> {
        word("a duty", &self.duty, WORD_BYTES_MAX)
    }
}

impl Door for EnrolmentNews {
    fn check(&mut self) -> Result<(), Breach> {
        use enrolment_news::Body;
        match &mut self.body {
            Some(Body::Revocations(list)) => list.check(),
            Some(Body::Names(names)) => names.check(),
            None => Ok(()),
        }
    }
}

impl Door for SiteReport {
    fn check(&mut self) -> Result<(), Breach> {
        use site_report::Body;
        match &mut self.body {
            Some(Body::Load(load)) => load.check(),
            Some(Body::Offers(offers)) => offers.check(),
            Some(Body::Subtree(subtree)) => subtree.check(),
            Some(Body::Reply(reply)) => reply.check(),
            None => Ok(()),
        }
    }
}

impl Door for HelloRequest {
    fn check(&mut self) -> Result<(), Breach> {
        // Who it is, its certificate says.
        self.node_name.clear();
        features(&mut self.features);
        Ok(())
    }
}

impl Door for HelloReply {
    fn check(&mut self) -> Result<(), Breach> {
        id(&self.node_id)?;
        NodeName::new(&self.node_name)?;
        features(&mut self.features);
        Ok(())
    }
}

/// What isn't known here matters to nobody here.
fn features(said: &mut Vec<String>) {
    let knows = said.iter().any(|feature| feature == envelope::FEATURE);
    *said = if knows { envelope::features() } else { Vec::new() };
}

impl Door for Heartbeat {
    fn check(&mut self) -> Result<(), Breach> {
        self.link.as_mut().map_or(Ok(()), Door::check)
    }
}

impl Door for HeartbeatAck {
    fn check(&mut self) -> Result<(), Breach> {
        self.held_ns = self.held_ns.min(super::TIME_NS_MAX);
        Ok(())
    }
}

impl Door for Goodbye {
    fn check(&mut self) -> Result<(), Breach> {
        failure(&mut self.reason)
    }
}

impl Door for Offers {
    fn check(&mut self) -> Result<(), Breach> {
        offers(&mut self.models)
    }
}

fn offers(models: &mut [ModelOffer]) -> Result<(), Breach> {
    count("models in an offer", models.len(), MODELS_MAX)?;
    for offer in models {
        digest("a model that is offered", &mut offer.model)?;
        digest_or_none("the profile of a model that is offered", &mut offer.profile)?;
    }
    Ok(())
}

impl Door for WarmHints {
    fn check(&mut self) -> Result<(), Breach> {
        count("sessions to be loaded", self.hints.len(), HINTS_MAX)?;
        for hint in &mut self.hints {
            digest("a model to be loaded", &mut hint.model)?;
        }
        Ok(())
    }
}

impl Door for Subtree {
    fn check(&mut self) -> Result<(), Breach> {
        // Older versions send all of them in one message; the rest counts.
        let beyond = self.nodes.len().saturating_sub(SUBTREE_NODES_MAX);
        self.nodes.truncate(SUBTREE_NODES_MAX);
        self.left_out = self.left_out.saturating_add(beyond as u64).min(u32::MAX.into());
        self.nodes.iter_mut().try_for_each(Door::check)
    }
}

impl Door for NodeInfo {
    fn check(&mut self) -> Result<(), Breach> {
        id(&self.node_id)?;
        NodeName::new(&self.node_name)?;
        id_or_none(&self.parent_id)?;
        word("a node's state", &self.state, WORD_BYTES_MAX)?;
        word("a node's version", &self.version, WORD_BYTES_MAX)?;
        // Whoever lists a node knows its parent.
        self.parent_name.clear();
        self.link.as_mut().map_or(Ok(()), Door::check)?;
        self.load.as_mut().map_or(Ok(()), Door::check)?;
        // Nobody above needs more of them than their number.
        let models = u32::try_from(self.models.len()).unwrap_or(u32::MAX);
        self.model_count = self.model_count.max(models).min(MODELS_MAX as u32);
        self.models = Vec::new();
        Ok(())
    }
}

impl Door for Catalogue {
    fn check(&mut self) -> Result<(), Breach> {
        count("models in a catalogue", self.models.len(), MODELS_MAX)?;
        count("names removed", self.removed.len(), MODELS_MAX)?;
        count("services in a catalogue", self.services.len(), SERVICES_MAX)?;
        count("versions in a catalogue", self.versions.len(), VERSIONS_IN_USE_MAX)?;
        count("aliases in a catalogue", self.aliases.len(), ALIASES_MAX)?;
        count("deltas in a catalogue", self.deltas.len(), DELTAS_MAX)?;
        for delta in &mut self.deltas {
            digest("a delta's base", &mut delta.base)?;
            digest("a delta's model", &mut delta.model)?;
            digest("a delta", &mut delta.delta)?;
            delta.bytes = delta.bytes.min(BYTES_MAX);
        }
        for alias in &self.aliases {
            name::check_model(&alias.model)?;
            name::check_alias(&alias.alias)?;
        }
        self.models.iter_mut().chain(&mut self.versions).try_for_each(Door::check)?;
        self.services.iter_mut().try_for_each(Door::check)?;
        self.removed.iter().try_for_each(|name| Ok(name::check_model(name)?))
    }
}

impl Door for RolloutWants {
    fn check(&mut self) -> Result<(), Breach> {
        count("wants of a rollout", self.wants.len(), ROLLOUT_WANTS_MAX)?;
        count("models that are watched", self.watched.len(), ROLLOUTS_MAX)?;
        for want in &self.wants {
            id(&want.node_id)?;
            name::check_model(&want.model)?;
            bytes("a want", &want.want, ROLLOUT_BYTES_MAX)?;
        }
        self.watched.iter().try_for_each(|name| Ok(name::check_model(name)?))
    }
}

impl Door for RolloutReports {
    fn check(&mut self) -> Result<(), Breach> {
        count("reports of a rollout", self.reports.len(), ROLLOUT_REPORTS_MAX)?;
        for report in &self.reports {
            id(&report.node_id)?;
            name::check_model(&report.model)?;
            bytes("a report", &report.report, ROLLOUT_BYTES_MAX)?;
        }
        Ok(())
    }
}

impl Door for ServiceEntry {
    fn check(&mut self) -> Result<(), Breach> {
        name::check_model(&self.name)?;
        digest("a service", &mut self.document)?;
        Ok(())
    }
}

impl Door for ModelEntry {
    fn check(&mut self) -> Result<(), Breach> {
        name::check_model(&self.name)?;
        digest("a manifest", &mut self.manifest)?;
        digest("a model", &mut self.model)?;
        self.bytes = self.bytes.min(BYTES_MAX);
        Ok(())
    }
}

impl Door for UpstreamPath {
    fn check(&mut self) -> Result<(), Breach> {
        // Further ones than anybody plans with are left away.
        self.tiers.truncate(PATH_TIERS_MAX);
        self.tiers.iter_mut().try_for_each(Door::check)
    }
}

impl Door for UpstreamTier {
    fn check(&mut self) -> Result<(), Breach> {
        id(&self.node_id)?;
        NodeName::new(&self.node_name)?;
        offers(&mut self.models)?;
        self.link_above.as_mut().map_or(Ok(()), Door::check)?;
        self.load.as_mut().map_or(Ok(()), Door::check)
    }
}

impl Door for Revocations {
    fn check(&mut self) -> Result<(), Breach> {
        count("revocations", self.revoked.len(), REVOCATIONS_MAX)?;
        for revoked in &mut self.revoked {
            bytes("a certificate's serial number", &revoked.serial, WORD_BYTES_MAX)?;
            revoked.serial = bytes::Bytes::copy_from_slice(&revoked.serial);
            id_or_none(&revoked.node_id)?;
        }
        Ok(())
    }
}

impl Door for Names {
    fn check(&mut self) -> Result<(), Breach> {
        count("nodes with another name", self.nodes.len(), RENAMES_MAX)?;
        for node in &self.nodes {
            id(&node.node_id)?;
            NodeName::new(&node.name)?;
        }
        Ok(())
    }
}

impl Door for ReverseRequest {
    fn check(&mut self) -> Result<(), Breach> {
        use reverse_request::Body;
        match &mut self.body {
            Some(Body::Warm(warm)) => {
                count("models to be loaded", warm.models.len(), HINTS_MAX)?;
                warm.models.iter_mut().try_for_each(|model| digest("a model to be loaded", model).map(drop))
            }
            Some(Body::Profile(profile)) => name::check_model(&profile.model).map_err(Into::into),
            Some(Body::Fetch(fetch)) => digest("an artefact", &mut fetch.digest).map(drop),
            Some(Body::Drain(drain)) => {
                super::cut(&mut drain.reason, crate::limits::TEXT_BYTES_MAX);
                Ok(())
            }
            Some(Body::Status(_)) | None => Ok(()),
        }
    }
}

impl Door for ReverseReply {
    fn check(&mut self) -> Result<(), Breach> {
        use reverse_reply::Body;
        match &mut self.body {
            Some(Body::Failure(failure)) => failure.check(),
            Some(Body::Data(data)) => long("an answer", data.len() as u64, REVERSE_BYTES_MAX as u64),
            // Of a child that answers for itself.
            Some(Body::Status(status)) => {
                bytes("a node's name", status.node_name.as_bytes(), CERTIFICATE_BYTES_MAX)?;
                status.children.clear();
                status.parents.clear();
                status.load.as_mut().map_or(Ok(()), |load| finite("the utilisation", load.utilisation).map(drop))
            }
            Some(Body::Done(_)) | None => Ok(()),
        }
    }
}

//! What a child and its parent say to each other on a session's stream.

use super::{
    BYTES_MAX, Breach, Door, Sound, bytes, count, digest, digest_or_none, failure, finite, id, id_or_none, long, word,
};
use crate::limits::{
    CERTIFICATE_BYTES_MAX, HINTS_MAX, MODELS_MAX, PATH_TIERS_MAX, RENAMES_MAX, REVERSE_BYTES_MAX, REVOCATIONS_MAX,
    SUBTREE_NODES_MAX, WORD_BYTES_MAX,
};
use crate::name::{self, NodeName};
use crate::v1::{
    Catalogue, ChildMessage, Goodbye, Heartbeat, HeartbeatAck, HelloReply, HelloRequest, JobAssignment, JobStanding,
    LoadReport, ModelEntry, ModelOffer, Names, NodeInfo, Offers, ParentMessage, ReverseReply, ReverseRequest,
    Revocations, Subtree, UpstreamPath, UpstreamTier, WarmHints, child_message, parent_message, reverse_reply,
    reverse_request,
};

/// What a child says.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum FromChild {
    Heartbeat(Sound<Heartbeat>),
    Load(Sound<LoadReport>),
    Offers(Sound<Offers>),
    Reply(Sound<ReverseReply>),
    Goodbye(Sound<Goodbye>),
    Subtree(Sound<Subtree>),
    Hints(Sound<WarmHints>),
    Standing(Sound<JobStanding>),
}

impl FromChild {
    /// Reads a message; `None` for a kind that this version doesn't know.
    ///
    /// # Errors
    /// How it breaks the protocol.
    pub fn read(message: ChildMessage) -> Result<Option<Self>, Breach> {
        use child_message::Body;
        let Some(body) = message.body else { return Ok(None) };
        Ok(Some(match body {
            Body::Heartbeat(m) => Self::Heartbeat(Sound::read(m)?),
            Body::Load(m) => Self::Load(Sound::read(m)?),
            Body::Offers(m) => Self::Offers(Sound::read(m)?),
            Body::Reply(m) => Self::Reply(Sound::read(m)?),
            Body::Goodbye(m) => Self::Goodbye(Sound::read(m)?),
            Body::Subtree(m) => Self::Subtree(Sound::read(m)?),
            Body::Hints(m) => Self::Hints(Sound::read(m)?),
            Body::Standing(m) => Self::Standing(Sound::read(m)?),
        }))
    }
}

/// What a parent says.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum FromParent {
    Ack(Sound<HeartbeatAck>),
    Catalogue(Sound<Catalogue>),
    Path(Sound<UpstreamPath>),
    Revocations(Sound<Revocations>),
    Request(Sound<ReverseRequest>),
    Goodbye(Sound<Goodbye>),
    Assignment(Sound<JobAssignment>),
    Names(Sound<Names>),
}

impl FromParent {
    /// Reads a message; `None` for a kind that this version doesn't know.
    ///
    /// # Errors
    /// How it breaks the protocol.
    pub fn read(message: ParentMessage) -> Result<Option<Self>, Breach> {
        use parent_message::Body;
        let Some(body) = message.body else { return Ok(None) };
        Ok(Some(match body {
            Body::Ack(m) => Self::Ack(Sound::read(m)?),
            Body::Catalogue(m) => Self::Catalogue(Sound::read(m)?),
            Body::Path(m) => Self::Path(Sound::read(m)?),
            Body::Revocations(m) => Self::Revocations(Sound::read(m)?),
            Body::Request(m) => Self::Request(Sound::read(m)?),
            Body::Goodbye(m) => Self::Goodbye(Sound::read(m)?),
            Body::Assignment(m) => Self::Assignment(Sound::read(m)?),
            Body::Names(m) => Self::Names(Sound::read(m)?),
        }))
    }
}

impl Door for HelloRequest {
    fn check(&mut self) -> Result<(), Breach> {
        // Who it is, its certificate says; what it can do that isn't known
        // here, matters to nobody here.
        self.node_name.clear();
        self.features.clear();
        Ok(())
    }
}

impl Door for HelloReply {
    fn check(&mut self) -> Result<(), Breach> {
        id(&self.node_id)?;
        NodeName::new(&self.node_name)?;
        self.features.clear();
        Ok(())
    }
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
        self.models.iter_mut().try_for_each(Door::check)?;
        self.removed.iter().try_for_each(|name| Ok(name::check_model(name)?))
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

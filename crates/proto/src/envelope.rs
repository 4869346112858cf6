//! Envelopes: what a duty of one node says to the same duty of another.
//!
//! A session carries the lease and envelopes, and knows nothing of what is in
//! them, so that a new duty needs no change here. Versions before envelopes
//! had a body of its own for each message; [`of_child`] and [`of_parent`] put
//! those into envelopes, [`to_parent`] and [`to_child`] take them out again for
//! such a node.

use bytes::Bytes;
use prost::Message;

use crate::v1::{
    Catalogue, ChildMessage, EnrolmentNews, Envelope, JobAssignment, JobStatus, ParentMessage, ReverseRequest,
    SiteReport, UpstreamPath, WarmHints, child_message, enrolment_news, parent_message, site_report,
};

/// Said in a hello by whoever understands envelopes.
pub const FEATURE: &str = "envelopes";

/// Duty: who is here and below.
pub const SITE: &str = "site";
/// Duty: who is in, and who is out.
pub const ENROLMENT: &str = "enrolment";
/// Duty: who asks as an application.
pub const APPLICATIONS: &str = "applications";
/// Duty: which models there are.
pub const CATALOGUE: &str = "catalogue";
/// Duty: what runs where.
pub const PLANNING: &str = "planning";
/// Duty: which versions nodes run.
pub const ROLLOUT: &str = "rollout";
/// Duty: federated jobs.
pub const FEDERATION: &str = "federation";

/// What this version says in its hello.
#[must_use]
pub fn features() -> Vec<String> {
    vec![FEATURE.to_owned()]
}

impl Envelope {
    /// What `duty` says.
    #[must_use]
    pub fn new(duty: &str, message: &impl Message) -> Self {
        Self { duty: duty.to_owned(), payload: Bytes::from(message.encode_to_vec()) }
    }
}

/// The envelope in what a child says, if it is one.
#[must_use]
pub fn of_child(body: child_message::Body) -> Option<Envelope> {
    use child_message::Body;
    let report = |body| Envelope::new(SITE, &SiteReport { body: Some(body) });
    Some(match body {
        Body::Envelope(envelope) => envelope,
        Body::Load(m) => report(site_report::Body::Load(m)),
        Body::Offers(m) => report(site_report::Body::Offers(m)),
        Body::Subtree(m) => report(site_report::Body::Subtree(m)),
        Body::Reply(m) => report(site_report::Body::Reply(m)),
        Body::Hints(m) => Envelope::new(PLANNING, &m),
        Body::Status(m) => Envelope::new(FEDERATION, &m),
        Body::Heartbeat(_) | Body::Goodbye(_) => return None,
    })
}

/// The envelope in what a parent says, if it is one.
#[must_use]
pub fn of_parent(body: parent_message::Body) -> Option<Envelope> {
    use parent_message::Body;
    Some(match body {
        Body::Envelope(envelope) => envelope,
        Body::Revocations(m) => {
            Envelope::new(ENROLMENT, &EnrolmentNews { body: Some(enrolment_news::Body::Revocations(m)) })
        }
        Body::Catalogue(m) => Envelope::new(CATALOGUE, &m),
        Body::Path(m) => Envelope::new(PLANNING, &m),
        Body::Assignment(m) => Envelope::new(FEDERATION, &m),
        Body::Request(m) => Envelope::new(SITE, &m),
        Body::Ack(_) | Body::Goodbye(_) => return None,
    })
}

/// An envelope as a parent takes it; `None` when it is of a version that
/// doesn't know what is in it.
#[must_use]
pub fn to_parent(envelope: Envelope, takes_envelopes: bool) -> Option<ChildMessage> {
    use child_message::Body;
    if takes_envelopes {
        return Some(ChildMessage { body: Some(Body::Envelope(envelope)) });
    }
    let Envelope { duty, payload } = envelope;
    let body = match duty.as_str() {
        SITE => match SiteReport::decode(payload).ok()?.body? {
            site_report::Body::Load(m) => Body::Load(m),
            site_report::Body::Offers(m) => Body::Offers(m),
            site_report::Body::Subtree(m) => Body::Subtree(m),
            site_report::Body::Reply(m) => Body::Reply(m),
        },
        PLANNING => Body::Hints(WarmHints::decode(payload).ok()?),
        FEDERATION => Body::Status(JobStatus::decode(payload).ok()?),
        _ => return None,
    };
    Some(ChildMessage { body: Some(body) })
}

/// An envelope as a child takes it; `None` when it is of a version that doesn't
/// know what is in it.
#[must_use]
pub fn to_child(envelope: Envelope, takes_envelopes: bool) -> Option<ParentMessage> {
    use parent_message::Body;
    if takes_envelopes {
        return Some(ParentMessage { body: Some(Body::Envelope(envelope)) });
    }
    let Envelope { duty, payload } = envelope;
    let body = match duty.as_str() {
        ENROLMENT => match EnrolmentNews::decode(payload).ok()?.body? {
            enrolment_news::Body::Revocations(m) => Body::Revocations(m),
            enrolment_news::Body::Names(_) => return None,
        },
        CATALOGUE => Body::Catalogue(Catalogue::decode(payload).ok()?),
        PLANNING => Body::Path(UpstreamPath::decode(payload).ok()?),
        FEDERATION => Body::Assignment(JobAssignment::decode(payload).ok()?),
        SITE => Body::Request(ReverseRequest::decode(payload).ok()?),
        _ => return None,
    };
    Some(ParentMessage { body: Some(body) })
}

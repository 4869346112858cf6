//! What children and parents say on a session's stream: no input may panic,
//! and what passes the door can be reckoned with. The first byte says whose
//! message the rest is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use tierline_proto::door::session::{FromChild, FromParent};
use tierline_proto::door::{BANDWIDTH_RANGE, TIME_NS_MAX};
use tierline_proto::envelope::{to_child, to_parent};
use tierline_proto::limits::{APPLICATIONS_MAX, MODELS_MAX, PATH_TIERS_MAX, SUBTREE_NODES_MAX};
use tierline_proto::name;
use tierline_proto::Sound;
use tierline_proto::v1::{
    Applications, ApplicationsNews, Catalogue, ChildMessage, EnrolmentNews, Envelope, JobAssignment, JobStatus, LinkEstimate, ParentMessage, ReverseRequest,
    SiteReport, UpstreamPath, WarmHints, site_report,
};

fn sound(link: &LinkEstimate) {
    for rate in [link.up_bytes_per_s, link.down_bytes_per_s] {
        assert!(rate == 0.0 || (BANDWIDTH_RANGE[0]..=BANDWIDTH_RANGE[1]).contains(&rate));
    }
    assert!(link.rtt_ns <= TIME_NS_MAX && (0.0..=1.0).contains(&link.confidence));
}

/// What a duty makes of its payload: whichever duty it is, all of them try.
fn opened(envelope: &Envelope) {
    let payload = || envelope.payload.clone();
    if let Ok(path) = Sound::<UpstreamPath>::decode(payload()) {
        assert!(path.tiers.len() <= PATH_TIERS_MAX);
        path.tiers.iter().filter_map(|tier| tier.link_above.as_ref()).for_each(sound);
    }
    if let Ok(catalogue) = Sound::<Catalogue>::decode(payload()) {
        assert!(catalogue.models.len() <= MODELS_MAX);
    }
    if let Ok(report) = Sound::<SiteReport>::decode(payload())
        && let Some(site_report::Body::Subtree(subtree)) = &report.body
    {
        assert!(subtree.nodes.len() <= SUBTREE_NODES_MAX);
        subtree.nodes.iter().filter_map(|node| node.link.as_ref()).for_each(sound);
    }
    let _ = Sound::<EnrolmentNews>::decode(payload());
    let _ = Sound::<ApplicationsNews>::decode(payload());
    if let Ok(list) = Sound::<Applications>::decode(payload()) {
        assert!(list.applications.len() <= APPLICATIONS_MAX);
        for application in &list.applications {
            assert!(application.rate_per_s >= 0.0 && application.rate_per_s.is_finite());
            for pattern in &application.models {
                assert!(name::matches("*", pattern) && (name::matches(pattern, pattern) || pattern.contains('*')));
            }
        }
    }
    let _ = Sound::<ReverseRequest>::decode(payload());
    let _ = Sound::<WarmHints>::decode(payload());
    let _ = Sound::<JobStatus>::decode(payload());
    let _ = Sound::<JobAssignment>::decode(payload());
}

fuzz_target!(|input: &[u8]| {
    let Some((whose, message)) = input.split_first() else { return };
    if whose % 2 == 0 {
        let Ok(message) = ChildMessage::decode(message) else { return };
        match FromChild::read(message) {
            Ok(Some(FromChild::Heartbeat(beat))) => beat.link.iter().for_each(sound),
            Ok(Some(FromChild::Envelope(envelope))) => {
                opened(&envelope);
                let _ = to_parent(envelope.into_inner(), false);
            }
            _ => {}
        }
        return;
    }
    let Ok(message) = ParentMessage::decode(message) else { return };
    if let Ok(Some(FromParent::Envelope(envelope))) = FromParent::read(message) {
        opened(&envelope);
        let _ = to_child(envelope.into_inner(), false);
    }
});

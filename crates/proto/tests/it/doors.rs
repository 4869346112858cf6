//! What breaks the protocol stays outside, and what is only absurd comes in as
//! the nearest thing that isn't.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use tierline_proto::door::session::{FromChild, FromParent};
use tierline_proto::door::{BANDWIDTH_RANGE, Breach, Door, Sound, TIME_NS_MAX};
use tierline_proto::envelope;
use tierline_proto::limits::{
    BOUNDARIES_MAX, HINTS_MAX, HOPS_MAX, LEADING_MAX, MODELS_MAX, PATH_TIERS_MAX, REVERSE_BYTES_MAX, REVOCATIONS_MAX,
    STAGES_MAX, SUBTREE_NODES_MAX, TEXT_BYTES_MAX, UPDATE_BYTES_MAX,
};
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{
    Boundary, Catalogue, ChildMessage, Code, Envelope, Failure, Heartbeat, JobAssignment, JobStatus, JoinRequest,
    LinkEstimate, LoadReport, ModelEntry, ModelOffer, NodeInfo, Offers, ParentMessage, ProbeChunk, Reply, ReverseReply,
    ReverseRequest, Revocations, Revoked, Route, RunHeader, SiteReport, StageTiming, Subtree, TensorInfo, UpdateHeader,
    UpstreamPath, UpstreamTier, WarmHint, WarmHints, WorkOrder, child_message, job_status, parent_message,
    reverse_reply, site_report,
};

const DIGEST: Bytes = Bytes::from_static(&[2; 32]);
const ID: &str = "0123456789abcdef0123456789abcdef";

fn header() -> RunHeader {
    RunHeader {
        request: Bytes::from_static(&[1; 16]),
        model: DIGEST,
        route: Some(Route::default()),
        ..RunHeader::default()
    }
}

#[track_caller]
fn refused<M: Door + std::fmt::Debug + Clone>(message: M, why: &str) {
    let breach = Sound::read(message.clone()).expect_err(&format!("{message:?}"));
    assert!(breach.to_string().contains(why), "`{why}` is missing in: {breach}");
}

#[test]
fn headers_are_checked() {
    let sound = Sound::read(header()).unwrap();
    assert_eq!((sound.request_id(), sound.model().0), ([1; 16], [2; 32]));
    let wrong = |change: fn(&mut RunHeader)| {
        let mut header = header();
        change(&mut header);
        Sound::read(header).unwrap_err()
    };
    assert_eq!(wrong(|h| h.request = Bytes::from_static(&[1; 15])), Breach::Request(15));
    assert!(matches!(wrong(|h| h.model = Bytes::new()), Breach::Digest { .. }));
    assert_eq!(wrong(|h| h.route = None), Breach::Missing("route"));
    assert_eq!(wrong(|h| h.hops = HOPS_MAX + 1), Breach::Hops(HOPS_MAX + 1));
    assert_eq!(wrong(|h| h.remaining_us = u64::MAX), Breach::Deadline(u64::MAX));
    let endless = wrong(|h| {
        h.tensors = vec![TensorInfo { name: "x".into(), codec: "raw".into(), length: u64::MAX }];
    });
    assert_eq!(endless.failure().code(), Code::TooLarge);
}

#[test]
fn routes_are_checked() {
    let route = |from, cuts: &[Option<u32>]| {
        let boundaries = cuts.iter().map(|cut| Boundary { cut: *cut, tensors: vec![] }).collect();
        Sound::read(Route { from, boundaries, ..Route::default() }).map(drop)
    };
    assert_eq!(route(None, &[None, Some(0), Some(3), Some(3), Some(9)]), Ok(()));
    assert_eq!(route(Some(0), &[Some(0)]), Ok(()));
    assert_eq!(route(Some(0), &[None]), Err(Breach::Order { before: Some(0), next: None }));
    let back = route(None, &[Some(3), Some(2)]).unwrap_err();
    assert_eq!(back.to_string(), "cut 2 comes after cut 3 in the route; a route never goes back");
    assert!(matches!(route(None, &[None; BOUNDARIES_MAX + 1]), Err(Breach::TooMany { .. })));
}

#[test]
fn replies_are_checked() {
    let reply = Reply { request: Bytes::from_static(&[1; 16]), ..Reply::default() };
    assert!(Sound::read_for([1; 16], reply.clone()).is_ok());
    assert_eq!(Sound::read_for([2; 16], reply.clone()).unwrap_err(), Breach::OtherRequest);
    let stages = vec![StageTiming::default(); STAGES_MAX + 1];
    refused(Reply { stages, ..reply.clone() }, "stages; the limit");
    // Times that can be added up, whatever was said.
    let long =
        StageTiming { queue_ns: u64::MAX, upstream_ns: u64::MAX, sent_bytes: u64::MAX, ..StageTiming::default() };
    let sound = Sound::read(Reply { stages: vec![long], ..reply.clone() }).unwrap();
    assert_eq!(sound.stages[0].queue_ns + sound.stages[0].upstream_ns, 2 * TIME_NS_MAX);
    // A newer node's code is a failure, too, and never an answer.
    let failure = Some(Failure { code: 999, message: "gone".into(), ..Failure::default() });
    let sound = Sound::read(Reply { failure, ..reply }).unwrap();
    let failure = sound.failure.as_ref().unwrap();
    assert_eq!((failure.code(), failure.message.as_str()), (Code::Internal, "gone (its code 999 is not known here)"));
}

fn tier(link: LinkEstimate) -> UpstreamTier {
    UpstreamTier {
        node_id: ID.into(),
        node_name: "edge-1".into(),
        link_above: Some(link),
        load: Some(LoadReport { wait_ns: u64::MAX, ..LoadReport::default() }),
        ..UpstreamTier::default()
    }
}

#[test]
fn links_have_a_bandwidth_that_can_be_or_none() {
    let link = |up| LinkEstimate { up_bytes_per_s: up, rtt_ns: u64::MAX, confidence: 7.0, ..LinkEstimate::default() };
    for wrong in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, -5e-324] {
        refused(UpstreamPath { sequence: 1, tiers: vec![tier(link(wrong))] }, "a number of 0 or more");
        refused(Heartbeat { link: Some(link(wrong)), ..Heartbeat::default() }, "a number of 0 or more");
    }
    for (said, taken) in [(5e-324, BANDWIDTH_RANGE[0]), (1e300, BANDWIDTH_RANGE[1]), (0.0, 0.0), (1e6, 1e6)] {
        let path = Sound::read(UpstreamPath { sequence: 1, tiers: vec![tier(link(said))] }).unwrap();
        let link = path.tiers[0].link_above.unwrap();
        assert_eq!((link.up_bytes_per_s, link.confidence, link.rtt_ns), (taken, 1.0, TIME_NS_MAX));
        assert_eq!(path.tiers[0].load.unwrap().wait_ns, TIME_NS_MAX);
    }
    let many = UpstreamPath { sequence: 1, tiers: vec![tier(link(1e6)); 3 * PATH_TIERS_MAX] };
    assert_eq!(Sound::read(many).unwrap().tiers.len(), PATH_TIERS_MAX);
}

#[test]
fn lists_and_names_are_bounded() {
    let offer = ModelOffer { model: DIGEST, ..ModelOffer::default() };
    refused(Offers { models: vec![offer.clone(); MODELS_MAX + 1], ..Offers::default() }, "models in an offer");
    refused(Offers { models: vec![ModelOffer::default()], ..Offers::default() }, "a digest has 32 bytes");
    let hint = WarmHint { model: DIGEST, ..WarmHint::default() };
    refused(WarmHints { hints: vec![hint; HINTS_MAX + 1] }, "sessions to be loaded");
    let revoked = Revoked { node_id: ID.into(), ..Revoked::default() };
    refused(Revocations { sequence: 1, revoked: vec![revoked; REVOCATIONS_MAX + 1] }, "revocations");
    refused(
        Revocations { sequence: 1, revoked: vec![Revoked { node_id: "x".into(), ..Revoked::default() }] },
        "identity",
    );
    let model = ModelEntry { name: "m".into(), manifest: DIGEST, model: DIGEST, bytes: 1, version: 1 };
    let catalogue = |models| Catalogue { sequence: 1, full: true, models, ..Catalogue::default() };
    refused(catalogue(vec![model.clone(); MODELS_MAX + 1]), "models in a catalogue");
    refused(catalogue(vec![ModelEntry { name: "a\u{1b}[2J".into(), ..model }]), "is no model's name");
    let order = WorkOrder { differences: vec![DIGEST; LEADING_MAX + 1], ..WorkOrder::default() };
    let assignment = JobAssignment { job: DIGEST, want: Some(Want::Work(order)), node: String::new(), classes: None };
    refused(assignment, "differences that lead to a model");
    let status = |node: &str| JobStatus { job: DIGEST, node: node.into(), ..JobStatus::default() };
    refused(status(&"x".repeat(1 << 20)), "is no node's name");
    refused(status("a\u{1b}]0;b\u{7}"), "is no node's name");
    refused(JobStatus { url: "https://a\u{9b}31m".into(), ..status("a") }, "no word of this protocol");
    refused(
        UpdateHeader { job: DIGEST, digest: DIGEST, length: UPDATE_BYTES_MAX + 1, ..UpdateHeader::default() },
        "an update",
    );
    let data = Some(reverse_reply::Body::Data(Bytes::from(vec![0; REVERSE_BYTES_MAX + 1])));
    refused(ReverseReply { call: 1, body: data }, "an answer");
    refused(ProbeChunk { want_bytes: u64::MAX, ..ProbeChunk::default() }, "padding wanted");
    refused(JoinRequest { token: "t".repeat(2_000), ..JoinRequest::default() }, "a token of 2000 bytes");
}

#[test]
fn nodes_below_are_counted_not_carried() {
    let offer = ModelOffer { model: DIGEST, profile: DIGEST, ..ModelOffer::default() };
    let node = NodeInfo { node_id: ID.into(), node_name: "end".into(), models: vec![offer; 30], ..NodeInfo::default() };
    let subtree = Subtree { nodes: vec![node.clone(); SUBTREE_NODES_MAX + 10], ..Subtree::default() };
    let sound = Sound::read(subtree).unwrap();
    assert_eq!((sound.nodes.len(), sound.left_out), (SUBTREE_NODES_MAX, 10));
    assert_eq!((sound.nodes[0].models.len(), sound.nodes[0].model_count), (0, 30));
    refused(
        Subtree { nodes: vec![NodeInfo { node_name: "\u{202e}".into(), ..node }], ..Subtree::default() },
        "no node's name",
    );
}

#[test]
fn texts_for_people_are_cut_not_refused() {
    let reason = Failure { code: Code::Internal.into(), message: "é".repeat(1 << 19), ..Failure::default() };
    let status = Some(job_status::Status::Unable(reason));
    let sound = Sound::read(JobStatus { job: DIGEST, status, ..JobStatus::default() }).unwrap();
    let Some(job_status::Status::Unable(reason)) = &sound.status else { panic!("{sound:?}") };
    assert!(reason.message.len() <= TEXT_BYTES_MAX);
}

#[test]
fn what_a_newer_node_says_is_passed_by() {
    // A kind of message, and a field, that nobody here knows.
    let unknown_kind = [0xfa, 0x3f, 0x03, b'n', b'e', b'w'];
    let message = ChildMessage::decode(&unknown_kind[..]).unwrap();
    assert_eq!(FromChild::read(message), Ok(None));
    let message = ParentMessage::decode(&unknown_kind[..]).unwrap();
    assert_eq!(FromParent::read(message), Ok(None));
    let load = LoadReport { queued: 3, ..LoadReport::default() };
    let known = ChildMessage { body: Some(child_message::Body::Load(load)) };
    let mut bytes = known.encode_to_vec();
    bytes.extend_from_slice(&unknown_kind);
    let said = FromChild::read(ChildMessage::decode(&bytes[..]).unwrap());
    let Ok(Some(FromChild::Envelope(envelope))) = said else { panic!("{said:?}") };
    assert_eq!(envelope.duty, envelope::SITE);
    let report = Sound::<SiteReport>::decode(envelope.payload.clone()).unwrap();
    assert_eq!(report.body, Some(site_report::Body::Load(load)));
}

#[test]
fn duties_hear_the_same_of_nodes_that_know_no_envelopes() {
    let child = [
        child_message::Body::Load(LoadReport { queued: 3, ..LoadReport::default() }),
        child_message::Body::Offers(Offers { sequence: 4, ..Offers::default() }),
        child_message::Body::Subtree(Subtree { left_out: 5, ..Subtree::default() }),
        child_message::Body::Reply(ReverseReply { call: 6, body: None }),
        child_message::Body::Hints(WarmHints { hints: vec![WarmHint { model: DIGEST, ..WarmHint::default() }] }),
        child_message::Body::Status(JobStatus { job: DIGEST, holds: 7, ..JobStatus::default() }),
    ];
    for body in child {
        let envelope = envelope::of_child(body.clone()).unwrap();
        assert_eq!(envelope::to_parent(envelope.clone(), false), Some(ChildMessage { body: Some(body) }));
        let whole = envelope::to_parent(envelope.clone(), true).unwrap();
        assert_eq!(whole.body.and_then(envelope::of_child), Some(envelope));
    }
    let parent = [
        parent_message::Body::Catalogue(Catalogue { sequence: 3, ..Catalogue::default() }),
        parent_message::Body::Path(UpstreamPath { sequence: 4, tiers: vec![tier(LinkEstimate::default())] }),
        parent_message::Body::Revocations(Revocations { sequence: 5, revoked: Vec::new() }),
        parent_message::Body::Request(ReverseRequest { call: 6, ..ReverseRequest::default() }),
        parent_message::Body::Assignment(JobAssignment { job: DIGEST, ..JobAssignment::default() }),
    ];
    for body in parent {
        let envelope = envelope::of_parent(body.clone()).unwrap();
        assert_eq!(envelope::to_child(envelope.clone(), false), Some(ParentMessage { body: Some(body) }));
        let whole = envelope::to_child(envelope.clone(), true).unwrap();
        assert_eq!(whole.body.and_then(envelope::of_parent), Some(envelope));
    }
    // A duty that such a node doesn't have is not said to it, nor is nonsense.
    let new = Envelope { duty: "tides".into(), payload: DIGEST };
    assert_eq!((envelope::to_parent(new.clone(), false), envelope::to_child(new, false)), (None, None));
    let nonsense = Envelope { duty: envelope::PLANNING.into(), payload: Bytes::from_static(&[0xff; 8]) };
    assert_eq!(
        (envelope::to_parent(nonsense.clone(), false), envelope::to_child(nonsense.clone(), false)),
        (None, None)
    );
    assert!(matches!(Sound::<WarmHints>::decode(nonsense.payload), Err(Breach::Unreadable(_))));
    refused(Envelope { duty: "x".repeat(1 << 10), payload: DIGEST }, "a duty");
}

proptest! {
    #[test]
    fn whatever_numbers_are_said_those_inside_can_be_reckoned_with(
        up in any::<f64>(), down in any::<f64>(), rtt in any::<u64>(), confidence in any::<f64>(), wait in any::<u64>(),
    ) {
        let link = LinkEstimate { up_bytes_per_s: up, down_bytes_per_s: down, rtt_ns: rtt, confidence, age_ms: rtt };
        if let Ok(link) = Sound::read(link) {
            for rate in [link.up_bytes_per_s, link.down_bytes_per_s] {
                prop_assert!(rate == 0.0 || (BANDWIDTH_RANGE[0]..=BANDWIDTH_RANGE[1]).contains(&rate));
            }
            prop_assert!((0.0..=1.0).contains(&link.confidence) && link.rtt_ns <= TIME_NS_MAX);
        }
        let load = Sound::read(LoadReport { wait_ns: wait, utilisation: up, ..LoadReport::default() });
        prop_assert!(load.map_or(true, |load| load.wait_ns <= TIME_NS_MAX && load.utilisation <= 1.0));
    }
}

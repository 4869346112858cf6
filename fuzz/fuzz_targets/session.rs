//! What children and parents say on a session's stream: no input may panic,
//! and what passes the door can be reckoned with. The first byte says whose
//! message the rest is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use tierline_proto::door::session::{FromChild, FromParent};
use tierline_proto::door::{BANDWIDTH_RANGE, TIME_NS_MAX};
use tierline_proto::limits::{MODELS_MAX, PATH_TIERS_MAX, SUBTREE_NODES_MAX};
use tierline_proto::v1::{ChildMessage, LinkEstimate, ParentMessage};

fn sound(link: &LinkEstimate) {
    for rate in [link.up_bytes_per_s, link.down_bytes_per_s] {
        assert!(rate == 0.0 || (BANDWIDTH_RANGE[0]..=BANDWIDTH_RANGE[1]).contains(&rate));
    }
    assert!(link.rtt_ns <= TIME_NS_MAX && (0.0..=1.0).contains(&link.confidence));
}

fuzz_target!(|input: &[u8]| {
    let Some((whose, message)) = input.split_first() else { return };
    if whose % 2 == 0 {
        let Ok(message) = ChildMessage::decode(message) else { return };
        match FromChild::read(message) {
            Ok(Some(FromChild::Heartbeat(beat))) => beat.link.iter().for_each(sound),
            Ok(Some(FromChild::Subtree(subtree))) => {
                assert!(subtree.nodes.len() <= SUBTREE_NODES_MAX);
                subtree.nodes.iter().filter_map(|node| node.link.as_ref()).for_each(sound);
            }
            _ => {}
        }
        return;
    }
    let Ok(message) = ParentMessage::decode(message) else { return };
    match FromParent::read(message) {
        Ok(Some(FromParent::Path(path))) => {
            assert!(path.tiers.len() <= PATH_TIERS_MAX);
            path.tiers.iter().filter_map(|tier| tier.link_above.as_ref()).for_each(sound);
        }
        Ok(Some(FromParent::Catalogue(catalogue))) => assert!(catalogue.models.len() <= MODELS_MAX),
        _ => {}
    }
});

//! Failures keep their code through a gRPC status; digests through text.

use proptest::prelude::*;
use tierline_proto::limits::TEXT_BYTES_MAX;
use tierline_proto::{Code, Digest, Failure};

#[test]
fn every_code_survives_a_status() {
    let codes: Vec<Code> = (1..100).filter_map(|number| Code::try_from(number).ok()).collect();
    assert!(codes.len() >= 20);
    for code in codes {
        let failure = Failure::new(code, "what failed").with_help("what to do").at("gate-1");
        let status = failure.clone().into_status();
        assert_eq!(Failure::from_status(&status), failure);
        assert_eq!(status.message(), "gate-1: what failed; what to do");
    }
}

#[test]
fn foreign_statuses_get_the_nearest_code() {
    let of = |code| Failure::from_status(&tonic::Status::new(code, "x")).code();
    assert_eq!(of(tonic::Code::Unavailable), Code::Unreachable);
    assert_eq!(of(tonic::Code::DeadlineExceeded), Code::DeadlineExceeded);
    assert_eq!(of(tonic::Code::Unauthenticated), Code::Unauthenticated);
    // Details that are no failure, or one that claims success.
    let empty = tonic::Status::with_details(tonic::Code::Internal, "x", bytes::Bytes::from_static(&[8, 0]));
    assert_eq!(Failure::from_status(&empty).code(), Code::Internal);
    let garbage = tonic::Status::with_details(tonic::Code::DataLoss, "x", bytes::Bytes::from_static(&[255; 9]));
    assert_eq!(Failure::from_status(&garbage).code(), Code::Corrupt);
}

#[test]
fn messages_are_cut_at_a_character() {
    let failure = Failure::new(Code::Internal, "é".repeat(TEXT_BYTES_MAX));
    assert!(failure.message.len() <= TEXT_BYTES_MAX);
    assert!(failure.message.ends_with('é'));
}

#[test]
fn the_first_node_stays_named() {
    assert_eq!(Failure::new(Code::Engine, "x").at("cloud").at("edge").node, "cloud");
}

proptest! {
    #[test]
    fn digests_survive_text(bytes in any::<[u8; 32]>()) {
        let digest = Digest(bytes);
        prop_assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        prop_assert_eq!(Digest::try_from(&digest.to_bytes()), Ok(digest));
    }

    #[test]
    fn other_text_is_no_digest(text in ".{0,80}") {
        if let Ok(digest) = text.parse::<Digest>() {
            prop_assert_eq!(digest.to_string(), text);
        }
    }
}

//! Negotiation is symmetric, picks the highest common version, and says who
//! has to be upgraded.

use proptest::prelude::*;
use tierline_proto::versions::{VersionError, Versions};

fn range() -> impl Strategy<Value = Versions> {
    (0u32..8, 0u32..8).prop_map(|(min, max)| Versions { min, max })
}

proptest! {
    #[test]
    fn highest_common_version_or_none(ours in range(), theirs in range()) {
        prop_assume!(ours.min >= 1 && ours.min <= ours.max);
        let common = (ours.min..=ours.max).rev().find(|v| *v >= theirs.min && *v <= theirs.max && theirs.min >= 1);
        let agreed = ours.agree(theirs);
        prop_assert_eq!(agreed.ok(), common);
        if theirs.min >= 1 && theirs.min <= theirs.max {
            prop_assert_eq!(theirs.agree(ours).ok(), common);
        }
    }
}

#[test]
fn says_who_is_too_old() {
    let of = |min, max| Versions { min, max };
    assert_eq!(of(3, 5).agree(of(1, 2)), Err(VersionError::PeerTooOld { theirs: 2, ours: 3 }));
    assert_eq!(of(1, 2).agree(of(3, 5)), Err(VersionError::PeerTooNew { theirs: 3, ours: 2 }));
    assert_eq!(of(1, 2).agree_with(None), Err(VersionError::Malformed { min: 0, max: 0 }));
    assert_eq!(of(1, 2).agree(of(2, 1)), Err(VersionError::Malformed { min: 2, max: 1 }));
    assert_eq!(Versions::OURS.agree(Versions::OURS), Ok(tierline_proto::versions::NEWEST));
}

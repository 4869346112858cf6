//! Participants with several parents: one that is up is never left, one that
//! is away for long is.

use std::collections::BTreeSet;

use tierline_node::federation::Home;
use tierline_node::federation::home::{Change, STRAYED};
use tierline_node::{Peer, Time};

use crate::harness::{ms, seeds};

#[test]
fn a_parent_that_is_up_is_kept_and_one_that_strayed_is_left() {
    let (a, b) = (Peer(0), Peer(1));
    let mut home = Home::default();
    assert_eq!(home.asked(a), (true, Some(Change::Up)));
    assert_eq!(home.asked(b), (false, None), "another one knows the job");
    let now = Time::ZERO + ms(5);
    assert_eq!(home.down(now, a), Some(Change::Down));
    assert_eq!((home.wake(), home.wakes(now)), (Some(now + STRAYED), None), "too early");
    assert_eq!((home.wakes(now + STRAYED), home.parent()), (Some(Change::Up), Some(b)));
    // The first comes back: it isn't the parent any more.
    assert_eq!((home.up(a), home.asked(a)), (None, (false, None)));
    // Without another one, it is waited for.
    let mut home = Home::default();
    home.up(a);
    home.down(now, a);
    assert_eq!((home.wakes(now + STRAYED), home.parent()), (None, Some(a)));
    assert_eq!(home.asked(b), (true, Some(Change::Up)), "one that asks meanwhile is taken");
}

#[test]
fn whatever_parents_do_changes_follow_each_other() {
    seeds(1_000, |rng| {
        let (mut home, mut now, mut up) = (Home::default(), Time::ZERO, BTreeSet::new());
        for _ in 0..200 {
            now = now + ms(rng.u64(0..4_000));
            let peer = Peer(rng.u32(0..3));
            let before = home.parent();
            let change = match rng.u8(..4) {
                0 => {
                    up.insert(peer);
                    home.up(peer)
                }
                1 => {
                    up.remove(&peer);
                    home.down(now, peer)
                }
                2 => {
                    up.insert(peer);
                    let (own, change) = home.asked(peer);
                    assert_eq!(own, home.parent() == Some(peer));
                    change
                }
                _ => home.wakes(now),
            };
            let after = home.parent();
            if before != after {
                assert!(before.is_none_or(|parent| !up.contains(&parent)), "one that is up was left");
                assert!(after.is_some_and(|parent| up.contains(&parent)), "for one that isn't");
                assert_eq!(change, Some(Change::Up));
            }
            assert!(home.wake().is_none() || after.is_some_and(|parent| !up.contains(&parent)));
        }
    });
}

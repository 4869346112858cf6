//! Edges that ask their neighbours: each is mixed in or absent, once, and in
//! time.

use std::collections::BTreeSet;
use std::time::Duration;

use tierline_federate::{Gossip, Seconds};
use tierline_node::Time;
use tierline_node::federation::Exchange;
use tierline_node::federation::exchange::{ANSWER_PATIENCE, ASK_AGAIN, Action, Event};
use tierline_proto::{Code, Failure};

use crate::harness::{ms, seeds};

const SCHEDULES: u64 = 1_000;

fn gossip(deadline_s: Option<f64>, patience_s: f64) -> Gossip {
    let seconds = |s: f64| Seconds::try_from(s).unwrap();
    Gossip { deadline_s: deadline_s.map(seconds), patience_s: seconds(patience_s), ..Gossip::default() }
}

#[test]
fn whatever_neighbours_do_an_exchange_ends_in_time() {
    seeds(SCHEDULES, |rng| {
        let names: Vec<String> = (0..rng.usize(0..5)).map(|n| format!("edge-{n}")).collect();
        let deadline = rng.bool().then(|| rng.f64() * 60.0 + 0.1);
        let patience = rng.f64() * 60.0 + 1.0;
        let mut exchange = Exchange::new(names.clone(), &gossip(deadline, patience));
        let (mut now, mut mixed, mut absent) = (Time::ZERO, Vec::new(), Vec::new());
        let mut actions = exchange.step(now, Event::Start);
        // A neighbour's state: how often it fails before it is ready, and how.
        let mut tries = 0;
        let done = loop {
            let mut asked = None;
            let mut done = false;
            for action in std::mem::take(&mut actions) {
                match action {
                    Action::Ask { neighbour, patience } => {
                        assert!(
                            asked.is_none() && patience >= ASK_AGAIN && patience <= 2 * ANSWER_PATIENCE,
                            "{patience:?}"
                        );
                        asked = Some((neighbour, patience));
                    }
                    Action::Absent { neighbour, .. } => absent.push(neighbour),
                    Action::Done => done = true,
                }
            }
            if done {
                break now;
            }
            tries += 1;
            assert!(tries < 10_000, "it never ends");
            actions = match asked {
                Some((neighbour, patience)) => {
                    let (took, event) = match rng.u8(..8) {
                        0 | 1 => (patience.mul_f64(rng.f64()), Event::Mixed),
                        2 => (ms(1), Event::Failed(Failure::new(Code::NotFound, "gone"))),
                        3 | 4 => (patience, Event::Failed(Failure::new(Code::DeadlineExceeded, "not yet"))),
                        5 => {
                            (ANSWER_PATIENCE.min(patience), Event::Failed(Failure::new(Code::ModelNotReady, "not yet")))
                        }
                        _ => (ms(rng.u64(1..300)), Event::Failed(Failure::new(Code::Unreachable, "away"))),
                    };
                    if event == Event::Mixed {
                        mixed.push(neighbour);
                    }
                    now = now + took;
                    exchange.step(now, event)
                }
                None => {
                    let wake = exchange.wake().expect("it waits for something");
                    assert!(wake > now, "a wake that doesn't move on");
                    // Too early does nothing.
                    assert_eq!(exchange.step(now, Event::Wake), []);
                    now = wake;
                    exchange.step(now, Event::Wake)
                }
            };
        };
        let all: BTreeSet<&String> = mixed.iter().chain(&absent).collect();
        assert_eq!((all.len(), mixed.len() + absent.len()), (names.len(), names.len()), "each once");
        assert_eq!(exchange.step(now, Event::Wake), [], "nothing comes behind the end");
        if let Some(deadline) = deadline {
            // Behind the deadline each is asked once more, for the shortest time.
            let latest = Duration::from_secs_f64(deadline) + 2 * ANSWER_PATIENCE + ASK_AGAIN * (names.len() as u32 + 1);
            assert!(done.since(Time::ZERO) <= latest, "{done:?} behind {latest:?}");
        }
    });
}

#[test]
fn one_that_is_away_is_given_up_and_one_that_works_is_not() {
    let away = || Event::Failed(Failure::new(Code::Unreachable, "away"));
    let mut exchange = Exchange::new(["a".to_owned()], &gossip(None, 2.0));
    let mut now = Time::ZERO;
    exchange.step(now, Event::Start);
    for _ in 0..4 {
        assert_eq!(exchange.step(now, away()), []);
        now = exchange.wake().unwrap();
        assert!(matches!(&exchange.step(now, Event::Wake)[..], [Action::Ask { .. }]));
    }
    assert!(matches!(&exchange.step(now, away())[..], [Action::Absent { .. }, Action::Done]), "two seconds are over");
    let mut exchange = Exchange::new(["a".to_owned()], &gossip(None, 2.0));
    exchange.step(Time::ZERO, Event::Start);
    for n in 1..100 {
        let not_ready = Event::Failed(Failure::new(Code::ModelNotReady, "not yet"));
        let asked = exchange.step(Time::ZERO + ANSWER_PATIENCE * n, not_ready);
        assert!(matches!(&asked[..], [Action::Ask { .. }]), "{asked:?}");
    }
    // One that says so at once isn't asked without end.
    let now = Time::ZERO + ANSWER_PATIENCE * 99;
    let not_ready = Event::Failed(Failure::new(Code::ModelNotReady, "not yet"));
    assert_eq!(exchange.step(now + ms(1), not_ready), []);
    assert_eq!(exchange.wake(), Some(now + ASK_AGAIN));
}

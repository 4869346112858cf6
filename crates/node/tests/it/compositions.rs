//! The machine of a request to several models: forms, fallbacks, deadlines,
//! and seeded schedules of everything that may go wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tierline_node::composition::{ABREAST_MAX, Action, Ask, Composition, Event, Form, Outcome, Setup};
use tierline_node::{Rng, Time};
use tierline_proto::v1::degraded::Cause;
use tierline_proto::{Code, Failure};

use crate::harness::{Schedule, between, ms, seeds};

const DEADLINE: Duration = ms(1_000);

fn machine(form: Form) -> Composition {
    Composition::new(Setup { node: "here".to_owned(), deadline: Time::ZERO + DEADLINE, form })
}

fn at(ms: u64) -> Time {
    Time::ZERO + Duration::from_millis(ms)
}

fn answered(ask: u32, sure: bool) -> Event {
    Event::Answered { ask: Ask(ask), sure, degraded: None, pieces: 0 }
}

fn failed(ask: u32, code: Code) -> Event {
    Event::Failed { ask: Ask(ask), failure: Failure::new(code, "no") }
}

/// Steps asked, as `step` or `step.piece`, and the end.
fn said(actions: Vec<Action>) -> String {
    let word = |action| match action {
        Action::Ask { step, piece: 0, recover, .. } => format!("ask {step}{}", if recover { "" } else { "!" }),
        Action::Ask { step, piece, .. } => format!("ask {step}.{piece}"),
        Action::Abandon { ask } => format!("abandon {}", ask.0),
        Action::Finish(Outcome::Failed(failure)) => format!("failed {}", failure.code().as_str_name()),
        Action::Finish(Outcome::Answer { steps, degraded }) => {
            let why = degraded.map_or(String::new(), |degraded| format!(" {:?}", degraded.cause()));
            format!("answer {steps:?}{why}")
        }
    };
    actions.into_iter().map(word).collect::<Vec<_>>().join(", ")
}

fn two() -> Composition {
    let mut cascade = machine(Form::cascade(&[None, None]));
    assert_eq!(said(cascade.step(Time::ZERO, Event::Start)), "ask 0");
    cascade
}

#[test]
fn a_sure_model_answers_alone() {
    assert_eq!(said(two().step(at(10), answered(0, true))), "answer [0]");
}

#[test]
fn what_is_not_sure_is_asked_further_and_kept() {
    let mut cascade = two();
    // Nobody recovers for the large model: the small one's answer is at hand.
    assert_eq!(said(cascade.step(at(10), answered(0, false))), "ask 1!");
    assert_eq!(said(cascade.step(at(50), answered(1, true))), "answer [1]");

    for (event, cause) in [
        (failed(1, Code::Unreachable), "LinkDown"),
        (failed(1, Code::Overloaded), "UpstreamOverloaded"),
        (failed(1, Code::ModelNotReady), "UpstreamFailure"),
        (failed(1, Code::InvalidInput), "UpstreamFailure"),
        (Event::Silent { ask: Ask(1), reason: "gone".to_owned() }, "LinkDown"),
    ] {
        let mut cascade = two();
        cascade.step(at(10), answered(0, false));
        let end = said(cascade.step(at(50), event));
        assert!(end.ends_with(&format!("answer [0] {cause}")), "{end}");
    }

    let mut cascade = two();
    cascade.step(at(10), answered(0, false));
    assert_eq!(said(cascade.step(at(979), Event::Wake)), "");
    assert_eq!(cascade.wake(), Some(at(980)));
    assert_eq!(said(cascade.step(at(980), Event::Wake)), "abandon 1, answer [0] UpstreamTimeout");
}

#[test]
fn a_small_model_that_fails_leaves_it_to_the_large_one() {
    let mut cascade = two();
    // Without an answer at hand the large one's request recovers by itself.
    assert_eq!(said(cascade.step(at(10), failed(0, Code::Engine))), "ask 1");
    assert_eq!(said(cascade.step(at(20), answered(1, true))), "answer [1]");
    let mut cascade = two();
    cascade.step(at(10), failed(0, Code::Engine));
    assert_eq!(said(cascade.step(at(20), failed(1, Code::Unreachable))), "failed CODE_UNREACHABLE");
    // The request itself is wrong: nobody else would answer it.
    assert_eq!(said(two().step(at(10), failed(0, Code::InvalidInput))), "failed CODE_INVALID_INPUT");
}

#[test]
fn a_late_small_model_is_not_given_up() {
    let mut cascade = two();
    assert_eq!(cascade.wake(), Some(at(490)));
    assert_eq!(said(cascade.step(at(490), Event::Wake)), "ask 1");
    assert_eq!(said(cascade.step(at(600), answered(0, true))), "abandon 1, answer [0]");
    let mut cascade = two();
    cascade.step(at(490), Event::Wake);
    assert_eq!(said(cascade.step(at(600), answered(0, false))), "");
    assert_eq!(said(cascade.step(at(980), Event::Wake)), "abandon 1, answer [0] UpstreamTimeout");
    // The large one overtakes it.
    let mut cascade = two();
    cascade.step(at(490), Event::Wake);
    assert_eq!(said(cascade.step(at(600), answered(1, true))), "abandon 0, answer [1]");
}

#[test]
fn of_three_the_latest_answer_counts() {
    let mut cascade = machine(Form::cascade(&[Some(0.2), Some(0.5), None]));
    assert_eq!(said(cascade.step(Time::ZERO, Event::Start)), "ask 0");
    assert_eq!(said(cascade.step(at(10), answered(0, false))), "ask 1!");
    assert_eq!(said(cascade.step(at(20), answered(1, false))), "ask 2!");
    assert_eq!(said(cascade.step(at(30), failed(2, Code::Unreachable))), "answer [1] LinkDown");

    let mut cascade = machine(Form::cascade(&[None, None, None]));
    cascade.step(Time::ZERO, Event::Start);
    cascade.step(at(10), answered(0, false));
    // The third stands behind the same link as the second.
    let gone = Event::Silent { ask: Ask(1), reason: "gone".to_owned() };
    assert_eq!(said(cascade.step(at(20), gone)), "abandon 1, answer [0] LinkDown");

    let mut cascade = machine(Form::cascade(&[None, None, None]));
    cascade.step(Time::ZERO, Event::Start);
    cascade.step(at(10), answered(0, false));
    assert_eq!(said(cascade.step(at(20), failed(1, Code::Overloaded))), "ask 2!");
    // A failure on the way doesn't make the best answer a worse one.
    assert_eq!(said(cascade.step(at(30), answered(2, true))), "answer [2]");
}

#[test]
fn an_ensemble_answers_with_those_that_came() {
    let begun = |least| {
        let mut ensemble = machine(Form::ensemble(3, least));
        assert_eq!(said(ensemble.step(Time::ZERO, Event::Start)), "ask 0, ask 1, ask 2");
        ensemble
    };
    let mut all = begun(3);
    assert_eq!(said(all.step(at(1), answered(1, false))), "");
    assert_eq!(said(all.step(at(2), answered(0, false))), "");
    assert_eq!(said(all.step(at(3), answered(2, false))), "answer [0, 1, 2]");

    let mut some = begun(2);
    some.step(at(1), answered(1, false));
    some.step(at(2), failed(0, Code::Overloaded));
    assert_eq!(said(some.step(at(3), answered(2, false))), "answer [1, 2] UpstreamOverloaded");

    let mut late = begun(1);
    late.step(at(1), answered(1, false));
    assert_eq!(said(late.step(at(980), Event::Wake)), "abandon 0, abandon 2, answer [1] UpstreamTimeout");

    let mut few = begun(3);
    few.step(at(1), answered(1, false));
    assert_eq!(said(few.step(at(2), failed(0, Code::Engine))), "abandon 2, failed CODE_ENGINE");
}

#[test]
fn a_chain_asks_in_pieces() {
    let begun = || {
        let mut chain = machine(Form::chain(&[(vec![], false), (vec![0], true)]));
        assert_eq!(said(chain.step(Time::ZERO, Event::Start)), "ask 0");
        chain
    };
    let boxes = |pieces| Event::Answered { ask: Ask(0), sure: false, degraded: None, pieces };
    let mut chain = begun();
    assert_eq!(said(chain.step(at(1), boxes(6))), "ask 1, ask 1.1, ask 1.2, ask 1.3");
    assert_eq!(said(chain.step(at(2), answered(2, false))), "ask 1.4");
    assert_eq!(said(chain.step(at(2), answered(5, false))), "ask 1.5");
    for ask in [1, 3, 4] {
        assert_eq!(said(chain.step(at(3), answered(ask, false))), "");
    }
    assert_eq!(said(chain.step(at(4), answered(6, false))), "answer [0, 1]");
    // Nothing was found: nothing is asked.
    assert_eq!(said(begun().step(at(1), boxes(0))), "answer [0, 1]");
    let mut chain = begun();
    chain.step(at(1), boxes(2));
    assert_eq!(said(chain.step(at(2), failed(1, Code::Engine))), "abandon 2, failed CODE_ENGINE");
}

#[test]
fn a_caller_that_goes_leaves_nothing_behind() {
    let mut cascade = two();
    assert_eq!(said(cascade.step(at(1), Event::Cancel)), "abandon 0");
    assert!(cascade.is_done() && cascade.wake().is_none());
    assert!(cascade.step(at(2), answered(0, true)).is_empty());
}

/// A service of any shape.
fn any_form(rng: &mut Rng) -> Form {
    let members = rng.usize(2..=5);
    match rng.u8(0..3) {
        0 => Form::cascade(&(0..members).map(|_| rng.bool().then(|| rng.f64())).collect::<Vec<_>>()),
        1 => Form::ensemble(members, rng.usize(1..=members)),
        _ => {
            let before = |place: usize, rng: &mut Rng| {
                let after: Vec<usize> = (0..place).filter(|_| rng.u8(0..3) == 0).collect();
                let pieces = !after.is_empty() && rng.u8(0..3) == 0;
                (after, pieces)
            };
            Form::chain(&(0..members).map(|place| before(place, rng)).collect::<Vec<_>>())
        }
    }
}

#[test]
fn every_request_ends_once_and_in_time() {
    seeds(1_000, |rng| {
        let form = any_form(rng);
        let deadline = Time::ZERO + ms(rng.u64(1..=1_000));
        let mut machine = Composition::new(Setup { node: "here".to_owned(), deadline, form: form.clone() });
        let mut schedule = Schedule::new();
        let begins = ms(rng.u64(0..=5));
        schedule.after(begins, Event::Start);
        if rng.u8(0..10) == 0 {
            schedule.after(between(rng, [ms(0), ms(500)]), Event::Cancel);
        }
        let mut out: BTreeMap<Ask, usize> = BTreeMap::new();
        let (mut asked, mut sure, mut answered_by) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (mut end, mut cancelled) = (None, false);
        let mut woken = None;
        while let Some(event) = schedule.next(deadline + ms(10)) {
            cancelled |= event == Event::Cancel && end.is_none();
            if let Event::Answered { ask, sure: is_sure, .. } = &event
                && let Some(step) = out.get(ask)
            {
                answered_by.insert(*step);
                if *is_sure {
                    sure.insert(*step);
                }
            }
            if let Event::Answered { ask, .. } | Event::Failed { ask, .. } = &event {
                out.remove(ask);
            }
            let now = schedule.now();
            for action in machine.step(now, event) {
                assert!(end.is_none() && !cancelled || matches!(action, Action::Abandon { .. }), "after its end");
                match action {
                    Action::Ask { ask, step, piece, deadline: until, .. } => {
                        assert!(until <= deadline && now < until);
                        assert!(asked.insert((step, piece)), "asked twice");
                        assert!(out.insert(ask, step).is_none());
                        assert!(out.values().filter(|other| **other == step).count() <= ABREAST_MAX);
                        for before in &form.steps[step].after {
                            // Of nothing found, nothing is asked.
                            let nothing = form.steps[*before].pieces;
                            assert!(nothing || asked.iter().any(|(step, _)| step == before), "out of turn");
                        }
                        let news = match rng.u8(0..10) {
                            // It hangs.
                            0 => continue,
                            1 => Event::Silent { ask, reason: "gone".to_owned() },
                            2 | 3 => {
                                let codes =
                                    [Code::Unreachable, Code::Engine, Code::InvalidInput, Code::DeadlineExceeded];
                                Event::Failed { ask, failure: Failure::new(codes[rng.usize(0..4)], "no") }
                            }
                            _ => {
                                let is_sure = rng.bool();
                                Event::Answered { ask, sure: is_sure, degraded: None, pieces: rng.usize(0..9) }
                            }
                        };
                        schedule.after(between(rng, [ms(0), ms(400)]), news.clone());
                        // Twice, or from before: nothing comes of it.
                        if rng.u8(0..8) == 0 {
                            schedule.after(between(rng, [ms(0), ms(600)]), news);
                        }
                    }
                    Action::Abandon { ask } => assert!(out.remove(&ask).is_some(), "nothing was out"),
                    Action::Finish(outcome) => end = Some((now, outcome)),
                }
            }
            match machine.wake() {
                Some(at) if woken != Some(at) => {
                    woken = Some(at);
                    schedule.at(at, Event::Wake);
                }
                _ => {}
            }
        }
        assert!(machine.is_done() && out.is_empty(), "something is out behind the end");
        let Some((ended, outcome)) = end else {
            assert!(cancelled, "it never ended");
            return;
        };
        assert!(ended <= deadline.max(Time::ZERO + begins));
        match outcome {
            Outcome::Failed(failure) => assert!(failure.code() != Code::Ok && failure.node == "here"),
            Outcome::Answer { steps, degraded } => {
                let pieced = |step: &usize| form.steps[*step].pieces;
                assert!(steps.iter().all(|step| answered_by.contains(step) || pieced(step)), "nobody answered so");
                if let [step] = steps[..]
                    && form.steps[1].gate == tierline_node::composition::Gate::Unsure
                {
                    let behind = step + 1 < form.steps.len();
                    assert!(sure.contains(&step) || !behind || degraded.is_some(), "nobody is told");
                    assert!(degraded.is_none_or(|degraded| degraded.cause() != Cause::Unspecified));
                }
            }
        }
    });
}

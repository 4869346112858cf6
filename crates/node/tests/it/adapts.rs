//! Switching plans and keeping sessions warm, under links that wander.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tierline_node::adapt::{
    Action, Adapt, Conditions, DWELL, Event, GAIN, HOLD, IDLE, Link, Plans, Session, SessionKey, Why,
};
use tierline_node::{Span, Time};
use tierline_proto::Digest;

use crate::harness::{Alarm, Schedule, between, ms, seeds};

const SCHEDULES: u64 = 1_000;

/// Plans over one link: `compute` here and above, `bytes` across.
#[derive(Debug, Clone)]
struct Table {
    model: Digest,
    /// Compute time, bytes sent up (0: all here), memory here.
    plans: Vec<(Duration, u64, u64)>,
}

impl Table {
    fn session(&self, plan: usize) -> Session {
        let span = Span { first: 0, last: plan as u32 + 1 };
        Session { key: SessionKey { model: self.model, span }, bytes: self.plans[plan].2 }
    }
}

impl Plans for Table {
    fn count(&self) -> usize {
        self.plans.len()
    }
    fn predicted(&self, plan: usize, conditions: &Conditions) -> Option<Duration> {
        let (compute, bytes, _) = self.plans[plan];
        if bytes == 0 {
            return Some(compute);
        }
        let link = conditions.links.first()?;
        Some(compute + link.rtt + Duration::from_secs_f64(bytes as f64 / link.up))
    }
    fn sessions(&self, plan: usize) -> Vec<Session> {
        vec![self.session(plan)]
    }
    fn whole(&self) -> Option<Session> {
        self.plans.iter().position(|plan| plan.1 == 0).map(|plan| self.session(plan))
    }
}

/// All here in 200 ms, a cut in 60 ms and 20 kB, all above in 10 ms and 200 kB.
fn table(n: u8) -> Table {
    let plans = vec![(ms(200), 0, 100), (ms(60), 20_000, 50), (ms(10), 200_000, 10)];
    Table { model: Digest([n; 32]), plans }
}

fn link(mbit: f64) -> Conditions {
    Conditions {
        links: vec![Link { up: mbit * 125_000.0, down: mbit * 125_000.0, rtt: ms(10) }],
        ..Conditions::default()
    }
}

fn conditions(conditions: Conditions, changed: bool) -> Event<Table> {
    Event::Conditions { conditions, changed }
}

/// Loads what is asked for at once.
fn settle(adapt: &mut Adapt<Table>, now: Time, mut actions: Vec<Action>) -> Vec<Action> {
    let mut all = vec![];
    while !actions.is_empty() {
        let mut next = vec![];
        for action in actions {
            match action {
                Action::Warm(key) => next.extend(adapt.step(now, Event::Warmed { key, result: Ok(0) })),
                Action::Evict(key) => next.extend(adapt.step(now, Event::Evicted { key })),
                _ => {}
            }
            all.push(action);
        }
        actions = next;
    }
    all
}

fn used(actions: &[Action]) -> Vec<(usize, Why)> {
    let of = |action: &Action| match action {
        Action::Use { plan, why, .. } => Some((*plan, *why)),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

fn step(adapt: &mut Adapt<Table>, now: Time, event: Event<Table>) -> Vec<(usize, Why)> {
    let actions = adapt.step(now, event);
    used(&settle(adapt, now, actions))
}

#[test]
fn follows_the_link_down_and_up() {
    let at = |t: u64| Time::ZERO + ms(t);
    let mut adapt = Adapt::new(1_000);
    let _ = step(&mut adapt, at(0), conditions(link(100.0), true));
    assert_eq!(step(&mut adapt, at(0), Event::Model { model: Digest([1; 32]), plans: table(1) }), [(2, Why::First)]);
    // Detected changes are followed at once, and everything likely was warm.
    assert_eq!(step(&mut adapt, at(9_000), conditions(link(10.0), true)), [(1, Why::Faster)]);
    assert_eq!(step(&mut adapt, at(18_000), conditions(link(0.5), true)), [(0, Why::Faster)]);
    assert_eq!(step(&mut adapt, at(27_000), conditions(link(10.0), true)), [(1, Why::Faster)]);
    // A lost tier leaves no choice, and no hold.
    assert_eq!(step(&mut adapt, at(27_001), conditions(Conditions::default(), false)), [(0, Why::Lost)]);
    // Back, unannounced: held first.
    assert_eq!(step(&mut adapt, at(40_000), conditions(link(100.0), false)), []);
    assert_eq!(adapt.wake(), Some(at(40_000) + HOLD));
    assert_eq!(step(&mut adapt, at(40_000) + HOLD, Event::Wake), [(2, Why::Faster)]);
}

#[test]
fn small_and_short_gains_are_left_alone() {
    let at = |t: u64| Time::ZERO + ms(t);
    let mut adapt = Adapt::new(1_000);
    let _ = step(&mut adapt, at(0), conditions(link(10.0), true));
    let _ = step(&mut adapt, at(0), Event::Model { model: Digest([1; 32]), plans: table(1) });
    assert_eq!(adapt.current(Digest([1; 32])), Some(1));
    // Between 28 and 32 Mbit/s plans 1 and 2 are within a tenth.
    for t in 1..200 {
        let mbit = if t % 2 == 0 { 28.0 } else { 32.0 };
        assert_eq!(step(&mut adapt, at(t * 100), conditions(link(mbit), t % 7 == 0)), []);
    }
    // Spikes shorter than the hold.
    for t in 201..300 {
        let mbit = if t % 5 == 0 { 100.0 } else { 10.0 };
        assert_eq!(step(&mut adapt, at(t * 100), conditions(link(mbit), false)), []);
    }
    assert!(GAIN > 0.05 && DWELL >= HOLD);
}

#[test]
fn the_old_plan_runs_until_the_new_one_is_warm() {
    let at = |t: u64| Time::ZERO + ms(t);
    let mut adapt = Adapt::new(155);
    let _ = step(&mut adapt, at(0), conditions(link(1.0), true));
    let _ = step(&mut adapt, at(0), Event::Model { model: Digest([1; 32]), plans: table(1) });
    // 155 bytes hold the whole (100) and the cut (50), which was likely enough
    // to be warm; the tiny session is not.
    let next = SessionKey { model: Digest([1; 32]), span: Span { first: 0, last: 3 } };
    assert!(!adapt.is_warm(next));
    let actions = adapt.step(at(5_000), conditions(link(1_000.0), true));
    assert!(used(&actions).is_empty());
    let Some(Action::Evict(gone)) = actions.iter().find(|a| matches!(a, Action::Evict(_))) else {
        panic!("{actions:?}")
    };
    assert_eq!(gone.span.last, 2);
    let actions = adapt.step(at(5_010), Event::Evicted { key: *gone });
    assert_eq!(actions, [Action::Warm(next)]);
    assert_eq!(adapt.current(Digest([1; 32])), Some(0));
    let actions = adapt.step(at(5_020), Event::Warmed { key: next, result: Ok(0) });
    assert_eq!(used(&actions), [(2, Why::Faster)]);
}

#[test]
fn a_session_that_cannot_be_loaded_leads_to_another_plan() {
    let at = |t: u64| Time::ZERO + ms(t);
    let mut adapt = Adapt::new(1_000);
    let _ = adapt.step(at(0), conditions(link(1_000.0), true));
    let actions = adapt.step(at(0), Event::Model { model: Digest([1; 32]), plans: table(1) });
    assert_eq!(used(&actions), [(2, Why::First)]);
    let Some(Action::Warm(key)) = actions.last().copied() else { panic!("{actions:?}") };
    let actions = adapt.step(at(1), Event::Warmed { key, result: Err("the engine refuses it".into()) });
    assert_eq!(used(&actions), [(1, Why::Refused)]);
    // A model whose every plan needs the tier that is gone.
    let only = Table { model: Digest([2; 32]), plans: vec![(ms(10), 1_000, 10)] };
    let _ = adapt.step(at(2), Event::Model { model: Digest([2; 32]), plans: only });
    let actions = adapt.step(at(3), conditions(Conditions::default(), false));
    assert!(actions.contains(&Action::Unusable { model: Digest([2; 32]) }));
}

enum Ev {
    Link,
    Wake,
    Loaded(SessionKey),
    Dropped(SessionKey),
    Model(u8),
    Request(u8),
}

#[test]
fn memory_is_kept_switches_are_warm_and_rare_whatever_the_link_does() {
    seeds(SCHEDULES, |rng| {
        let memory_max = [120, 160, 250, 400][rng.usize(..4)];
        let mut adapt = Adapt::new(memory_max);
        let mut schedule = Schedule::new();
        let mut loaded: BTreeMap<SessionKey, u64> = BTreeMap::new();
        let mut warm: BTreeSet<SessionKey> = BTreeSet::new();
        let mut last_switch: BTreeMap<Digest, Time> = BTreeMap::new();
        let (mut refused, mut alarm) = (false, Alarm::default());
        let (mut now_is, mut hurried) = (link(10.0), Time::ZERO);
        let end = Time::ZERO + ms(60_000);
        schedule.after(ms(0), Ev::Link);
        for n in 0..3 {
            schedule.after(between(rng, [ms(0), ms(20_000)]), Ev::Model(n));
        }
        while let Some(event) = schedule.next(end) {
            let now = schedule.now();
            let event = match event {
                Ev::Link => {
                    schedule.after(between(rng, [ms(10), ms(3_000)]), Ev::Link);
                    let changed = rng.u8(..6) == 0;
                    now_is = match rng.u8(..12) {
                        0 => Conditions::default(),
                        // Wanders, or jumps by decades.
                        1..6 => link(10f64.powf(rng.f64() * 5.0 - 2.0)),
                        _ => match now_is.links.first() {
                            Some(old) => link(old.up / 125_000.0 * (0.8 + 0.4 * rng.f64())),
                            None => link(1.0),
                        },
                    };
                    if changed {
                        hurried = now;
                    }
                    conditions(now_is.clone(), changed)
                }
                Ev::Wake => {
                    alarm.ring();
                    Event::Wake
                }
                Ev::Loaded(key) => {
                    warm.insert(key);
                    let result = if rng.u8(..50) == 0 { Err("no".to_owned()) } else { Ok(0) };
                    if result.is_err() {
                        refused = true;
                        loaded.remove(&key);
                        warm.remove(&key);
                    }
                    Event::Warmed { key, result }
                }
                Ev::Dropped(key) => {
                    loaded.remove(&key);
                    Event::Evicted { key }
                }
                Ev::Model(n) => {
                    schedule.after(ms(10), Ev::Request(n));
                    Event::Model { model: Digest([n; 32]), plans: table(n) }
                }
                Ev::Request(n) => {
                    schedule.after(between(rng, [ms(10), ms(5_000)]), Ev::Request(n));
                    Event::Requested { model: Digest([n; 32]) }
                }
            };
            for action in adapt.step(now, event) {
                match action {
                    Action::Warm(key) => {
                        let bytes = table(key.model.0[0]).session(key.span.last as usize - 1).bytes;
                        assert!(loaded.insert(key, bytes).is_none(), "loaded twice");
                        assert!(loaded.values().sum::<u64>() <= memory_max, "over the memory limit");
                        schedule.after(between(rng, [ms(1), ms(900)]), Ev::Loaded(key));
                    }
                    Action::Evict(key) => {
                        assert!(warm.remove(&key), "dropped while loading, or twice");
                        schedule.after(between(rng, [ms(1), ms(300)]), Ev::Dropped(key));
                    }
                    Action::Use { model, plan, why } => {
                        let table = table(model.0[0]);
                        assert!(table.predicted(plan, &now_is).is_some(), "a plan for a tier that is gone");
                        if why == Why::Faster {
                            let both: u64 = table.plans.iter().map(|plan| plan.2).max().unwrap() + 50;
                            let ready = table.sessions(plan).iter().all(|session| warm.contains(&session.key));
                            assert!(ready || both > memory_max, "switched to a cold plan");
                            let rested = last_switch.get(&model).is_none_or(|at| now.since(*at) >= HOLD.min(DWELL));
                            // Hurried: decided then, done when warm.
                            assert!(rested || now.since(hurried) < ms(3_000), "flapped");
                        }
                        last_switch.insert(model, now);
                    }
                    Action::Unusable { model } => assert!(refused, "{model} has a plan that runs here"),
                }
            }
            assert_eq!(adapt.memory(), loaded.values().sum::<u64>());
            assert!(adapt.wake().is_none_or(|wake| wake > now), "it would never sleep");
            if let Some(wake) = alarm.set(adapt.wake()) {
                schedule.at(wake, Ev::Wake);
            }
        }
    });
}

/// Without a link only the whole model is ever run; what stood by for a link is
/// let go after a while, unless the link comes back.
#[test]
fn sessions_that_no_plan_wants_are_let_go_after_a_while() {
    let mut adapt = Adapt::new(1_000);
    let model = table(1);
    let (whole, split) = (model.session(0).key, model.session(1).key);
    let mut now = Time::ZERO + ms(1);
    let first = adapt.step(now, conditions(link(8.0), true));
    settle(&mut adapt, now, first);
    let added = adapt.step(now, Event::Model { model: model.model, plans: model });
    settle(&mut adapt, now, added);
    assert!(adapt.is_warm(whole) && adapt.is_warm(split), "they stand by");
    for comes_back in [true, false] {
        now = now + DWELL;
        let lost = adapt.step(now, conditions(Conditions::default(), true));
        settle(&mut adapt, now, lost);
        assert!(adapt.is_warm(split), "not at once");
        let later = now + IDLE;
        assert!(adapt.wake().is_some_and(|at| at <= later));
        if comes_back {
            let back = adapt.step(now + IDLE / 2, conditions(link(8.0), true));
            settle(&mut adapt, now + IDLE / 2, back);
            now = later;
        }
        let woken = adapt.step(later, Event::Wake);
        assert_eq!(woken.contains(&Action::Evict(split)), !comes_back, "{woken:?}");
        settle(&mut adapt, later, woken);
        assert_eq!((adapt.is_warm(whole), adapt.is_warm(split)), (true, comes_back));
    }
}

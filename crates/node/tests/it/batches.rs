//! What runs as one, under random loads, held against a schedule made by hand:
//! each job once, nobody late because of others' company, callers in turns.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tierline_node::Time;
use tierline_node::admit::{Action, Caller, Class, Event, Job, JobId, Limits, Priority, Queue};
use tierline_node::batch::{Batch, Bounds, Kind, Trial};

use crate::harness::{Schedule, between, ms, seeds};

const SCHEDULES: u64 = 1_000;

/// Of whole loads, which take longer.
const LOADS: u64 = 200;

/// A device on which so many rows of a kind take a fixed time and one for each.
#[derive(Debug, Clone, Copy)]
struct Speed {
    fixed: Duration,
    row: Duration,
}

impl Speed {
    fn time(self, rows: u32) -> Duration {
        self.fixed + self.row * rows
    }
}

/// A queue to which the device's speed was shown by trials.
fn shown(limits: Limits, speeds: &BTreeMap<Kind, Speed>, bounds: Bounds) -> Queue {
    let mut queue = Queue::new(limits);
    for (kind, speed) in speeds {
        let mut rows = 2;
        while rows <= bounds.rows_max {
            let trial = Trial::Held { together: speed.time(rows), alone: speed.time(1) };
            queue.step(Time::ZERO, Event::Tried { kind: *kind, rows, bounds, trial });
            rows *= 2;
        }
    }
    queue
}

fn job(id: u64, caller: u64, deadline: Time, service: Duration, batch: Option<Batch>) -> Job {
    Job {
        id: JobId(id),
        caller: Caller(caller),
        class: Class::Interactive,
        priority: Priority::NONE,
        deadline,
        service,
        after: Duration::ZERO,
        batch,
    }
}

enum Ev {
    Submit,
    Done(JobId),
    Wake,
}

/// What one schedule came to.
#[derive(Default)]
struct Outcome {
    answered: BTreeSet<JobId>,
    late: BTreeSet<JobId>,
    refused: BTreeSet<JobId>,
    runs: usize,
    joined: usize,
    end: Time,
}

/// The same random load with or without company; times are as expected.
fn run(seed: u64, together: bool, delay: Duration) -> Outcome {
    let mut rng = fastrand::Rng::with_seed(seed);
    let rng = &mut rng;
    let kinds = rng.u64(1..4);
    let speeds: BTreeMap<Kind, Speed> = (0..kinds)
        .map(|kind| (Kind(kind), Speed { fixed: between(rng, [ms(1), ms(20)]), row: between(rng, [ms(0), ms(10)]) }))
        .collect();
    let extra_max = between(rng, [ms(0), ms(60)]);
    let bounds = Bounds { rows_max: if together { 16 } else { 1 }, bytes_max: 1_000, extra_max, delay };
    let limits = Limits { slots: 1, waiting: 40 };
    let mut queue = shown(limits, &speeds, bounds);
    let mut schedule = Schedule::new();
    let loads: Vec<(Duration, u64, u64, Duration, u32, u64)> = (0..60)
        .map(|_| {
            let at = between(rng, [ms(0), ms(500)]);
            (at, rng.u64(..4), rng.u64(..kinds), between(rng, [ms(20), ms(900)]), rng.u32(1..3), rng.u64(..300))
        })
        .collect();
    let mut loads_left: BTreeMap<usize, _> = loads.iter().copied().enumerate().collect();
    for (at, ..) in &loads {
        schedule.after(*at, Ev::Submit);
    }
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_by_key(|i| (loads[*i].0, *i));
    let mut order = order.into_iter();
    let mut jobs: BTreeMap<JobId, Job> = BTreeMap::new();
    let mut waiting: BTreeSet<JobId> = BTreeSet::new();
    let mut running: Option<(JobId, Vec<JobId>)> = None;
    let mut outcome = Outcome::default();
    while let Some(event) = schedule.next(Time::from_ns(u64::MAX)) {
        let now = schedule.now();
        let event = match event {
            Ev::Submit => {
                let index = order.next().unwrap();
                let (_, caller, kind, patience, rows, bytes) = loads_left.remove(&index).unwrap();
                let batch = Batch { kind: Kind(kind), rows, bytes, bounds, arrived: now };
                let service = speeds[&Kind(kind)].time(rows);
                let job = job(index as u64, caller, now + patience, service, Some(batch));
                jobs.insert(job.id, job);
                waiting.insert(job.id);
                Event::Submit(job)
            }
            Ev::Done(id) => {
                let (of, members) = running.take().unwrap();
                assert_eq!(of, id);
                for id in members {
                    if now > jobs[&id].deadline {
                        outcome.late.insert(id);
                    }
                    outcome.answered.insert(id);
                }
                outcome.end = now;
                Event::Done(id)
            }
            Ev::Wake => Event::Wake,
        };
        let before = waiting.clone();
        for action in queue.step(now, event) {
            match action {
                Action::Start(id) => {
                    assert!(waiting.remove(&id) && running.is_none());
                    running = Some((id, vec![id]));
                    outcome.runs += 1;
                }
                Action::Join(id) => {
                    assert!(waiting.remove(&id), "{id:?} joins twice");
                    running.as_mut().unwrap().1.push(id);
                    outcome.joined += 1;
                }
                Action::Refuse(id, _) => {
                    assert!(waiting.remove(&id));
                    outcome.refused.insert(id);
                }
                Action::Try(..) => {}
            }
        }
        if let Some((id, members)) = running.as_ref().filter(|(id, _)| before.contains(id)) {
            let of = |id: &JobId| jobs[id].batch.unwrap();
            let rows: u32 = members.iter().map(|id| of(id).rows).sum();
            let time = speeds[&of(id).kind].time(rows);
            assert!(members.iter().all(|other| of(other).kind == of(id).kind), "kinds differ");
            if members.len() > 1 {
                assert!(rows <= bounds.rows_max && members.iter().map(|id| of(id).bytes).sum::<u64>() <= 1_000);
                assert!(time <= jobs[id].service + bounds.extra_max + Duration::from_nanos(100), "too long for others");
                let apart: Duration = members.iter().map(|id| jobs[id].service).sum();
                assert!(time.as_secs_f64() <= 0.901 * apart.as_secs_f64(), "{time:?} for {apart:?}");
                assert!(members.iter().all(|id| now + time <= jobs[id].deadline + Duration::from_nanos(100)));
            }
            schedule.after(time, Ev::Done(*id));
        }
        if let Some(wake) = queue.wake() {
            schedule.at(wake, Ev::Wake);
        }
    }
    assert!(waiting.is_empty(), "forgotten: {waiting:?}");
    assert_eq!(outcome.answered.len() + outcome.refused.len(), 60);
    assert!(outcome.late.is_empty(), "{:?} late; what is started is in time", outcome.late);
    outcome
}

#[test]
fn each_job_once_within_bounds_and_in_time() {
    let sums = std::cell::RefCell::new((0, 0, 0, [0, 0]));
    seeds(LOADS, |rng| {
        let (apart, together, joined, runs) = &mut *sums.borrow_mut();
        let seed = rng.u64(..);
        let (alone, with) = (run(seed, false, ms(0)), run(seed, true, ms(0)));
        assert_eq!(alone.joined, 0);
        *apart += alone.answered.len();
        *together += with.answered.len();
        *joined += with.joined;
        runs[0] += alone.runs;
        runs[1] += with.runs;
        run(seed, true, ms(3));
    });
    let (apart, together, joined, runs) = sums.into_inner();
    println!("{apart} answered apart in {} runs, {together} with company in {}; {joined} went along", runs[0], runs[1]);
    assert!(together > apart, "company spares time, so more are in time");
    assert!(joined > 500);
}

/// At every start, who would be in time if all of them ran one after the other,
/// in the order in which they do run, is in time with company.
#[test]
fn nobody_is_late_for_others() {
    let helped = std::cell::Cell::new(0);
    seeds(SCHEDULES, |rng| {
        let bounds = Bounds { rows_max: 16, bytes_max: u64::MAX, extra_max: ms(200), delay: ms(0) };
        let speeds: BTreeMap<Kind, Speed> = (0..3)
            .map(|kind| {
                let speed = Speed { fixed: between(rng, [ms(0), ms(20)]), row: between(rng, [ms(0), ms(10)]) };
                (Kind(kind), speed)
            })
            .collect();
        let build = || {
            let mut queue = shown(Limits { slots: 1, waiting: 40 }, &speeds, bounds);
            queue.step(Time::ZERO, Event::Submit(job(u64::MAX, 99, Time::from_ns(u64::MAX / 2), ms(1), None)));
            queue
        };
        // By hand: the same queue whose jobs have no company, one after the other. Only jobs that both take in
        // are compared: with company more fit in.
        let (mut queue, mut apart) = (build(), build());
        let mut jobs = BTreeMap::new();
        for id in 0..rng.u64(2..24) {
            let kind = Kind(rng.u64(..3));
            let service = speeds[&kind].time(1);
            let batch = Batch { kind, rows: 1, bytes: 0, bounds, arrived: Time::ZERO };
            let deadline = Time::ZERO + between(rng, [ms(5), ms(500)]);
            let job = job(id, rng.u64(..5), deadline, service, Some(batch));
            if !apart.step(Time::ZERO, Event::Submit(Job { batch: None, ..job })).is_empty() {
                continue;
            }
            match queue.step(Time::ZERO, Event::Submit(job)).is_empty() {
                true => drop(jobs.insert(JobId(id), job)),
                false => drop(apart.step(Time::ZERO, Event::Cancel(JobId(id)))),
            }
        }
        let now = Time::ZERO + ms(1);
        let (mut at, mut last, mut in_time) = (now, JobId(u64::MAX), BTreeSet::new());
        while let Some(Action::Start(id)) = {
            let actions = apart.step(at, Event::Done(last));
            actions.into_iter().find(|action| matches!(action, Action::Start(_)))
        } {
            at = at + jobs[&id].service;
            in_time.insert(id);
            last = id;
        }
        // With company.
        let (mut at, mut last, mut answered) = (now, JobId(u64::MAX), BTreeSet::new());
        loop {
            let actions = queue.step(at, Event::Done(last));
            let Some(Action::Start(id)) = actions.iter().find(|action| matches!(action, Action::Start(_))) else {
                break;
            };
            let joined: Vec<JobId> =
                actions.iter().filter_map(|a| if let Action::Join(id) = a { Some(*id) } else { None }).collect();
            at = at + speeds[&jobs[id].batch.unwrap().kind].time(1 + joined.len() as u32);
            assert!(joined.iter().chain([id]).all(|id| at <= jobs[id].deadline + Duration::from_nanos(100)));
            answered.extend(joined.iter().chain([id]).copied());
            last = *id;
        }
        let lost: Vec<&JobId> = in_time.difference(&answered).collect();
        assert!(lost.is_empty(), "in time alone, late with company: {lost:?}");
        helped.set(helped.get() + answered.len() - in_time.len());
    });
    let helped = helped.get();
    println!("{helped} are in time only because of it");
    assert!(helped > 100);
}

/// One caller sends without end, another now and then, of a kind of its own.
#[test]
fn whoever_floods_the_queue_delays_others_by_one_batch() {
    let bounds = Bounds { rows_max: 32, bytes_max: u64::MAX, extra_max: ms(8), delay: ms(0) };
    let speeds =
        BTreeMap::from([(Kind(0), Speed { fixed: ms(10), row: ms(1) }), (Kind(1), Speed { fixed: ms(5), row: ms(1) })]);
    let mut queue = shown(Limits { slots: 1, waiting: 64 }, &speeds, bounds);
    let far = Time::from_ns(u64::MAX / 2);
    let of = |kind| Some(Batch { kind: Kind(kind), rows: 1, bytes: 0, bounds, arrived: Time::ZERO });
    let (mut now, mut next) = (Time::ZERO, 1_000);
    let mut running = JobId(0);
    queue.step(now, Event::Submit(job(0, 1, far, ms(11), of(0))));
    let mut waits = Vec::new();
    for good in 1..50 {
        for _ in 0..40 {
            queue.step(now, Event::Submit(job(next, 1, far, ms(11), of(0))));
            next += 1;
        }
        let came = now;
        // Where the queue is full, the last of the flood gives way.
        let gave_way = queue.step(now, Event::Submit(job(good, 2, far, ms(6), of(1))));
        assert!(gave_way.iter().all(|action| matches!(action, Action::Refuse(JobId(1_000..), _))), "{gave_way:?}");
        loop {
            let actions = queue.step(now, Event::Done(running));
            let Action::Start(id) = actions[0] else { panic!("{actions:?}") };
            running = id;
            let joined = actions.iter().filter(|action| matches!(action, Action::Join(_))).count() as u32;
            if id == JobId(good) {
                waits.push(now.since(came));
                now = now + speeds[&Kind(1)].time(1 + joined);
                break;
            }
            assert_eq!(joined, 8, "as many as its bound of time allows");
            now = now + speeds[&Kind(0)].time(1 + joined);
        }
    }
    // One run of the flood is under way when it comes, one more may be before it.
    assert!(waits.iter().all(|wait| *wait <= ms(11) + ms(8)), "{waits:?}");
}

/// With a window, a request waits for others while nothing else is to be done.
#[test]
fn a_window_is_waited_for_and_no_longer() {
    let bounds = Bounds { rows_max: 4, bytes_max: u64::MAX, extra_max: ms(20), delay: ms(5) };
    let speeds = BTreeMap::from([(Kind(0), Speed { fixed: ms(10), row: ms(1) })]);
    let queue = || shown(Limits { slots: 1, waiting: 64 }, &speeds, bounds);
    let at = |time: u64| Time::ZERO + ms(time);
    let one = |id: u64, arrived: u64, deadline: u64| {
        let batch = Batch { kind: Kind(0), rows: 1, bytes: 0, bounds, arrived: at(arrived) };
        Event::Submit(job(id, id, at(deadline), ms(11), Some(batch)))
    };
    let mut waits = queue();
    assert_eq!(waits.step(at(0), one(0, 0, 900)), []);
    assert_eq!(waits.wake(), Some(at(5)));
    assert_eq!(waits.step(at(3), one(1, 3, 900)), []);
    assert_eq!(waits.step(at(5), Event::Wake), [Action::Start(JobId(0)), Action::Join(JobId(1))]);
    // As many as run together wait no longer.
    let mut full = queue();
    for id in 0..3 {
        assert_eq!(full.step(at(0), one(id, 0, 900)), []);
    }
    assert_eq!(full.step(at(1), one(3, 1, 900)).len(), 4);
    // Nor does what would be late, what others wait behind, or what is of a kind that nothing is known of.
    assert_eq!(queue().step(at(0), one(0, 0, 18)), [Action::Start(JobId(0))]);
    let mut mixed = queue();
    assert_eq!(mixed.step(at(0), one(0, 0, 900)), []);
    assert_eq!(mixed.step(at(1), Event::Submit(job(1, 1, at(900), ms(5), None))), [Action::Start(JobId(0))]);
    let mut unknown = Queue::new(Limits { slots: 1, waiting: 64 });
    assert_eq!(unknown.step(at(0), one(0, 0, 900)), [Action::Start(JobId(0))]);
}

/// Sizes are tried where somebody waits, and only then is anything run as one.
#[test]
fn nothing_runs_as_one_before_it_was_tried() {
    let bounds = Bounds { extra_max: ms(50), ..Bounds::default() };
    let mut queue = Queue::new(Limits { slots: 1, waiting: 64 });
    let now = Time::ZERO;
    let one = |id: u64| {
        let batch = Batch { kind: Kind(0), rows: 1, bytes: 0, bounds, arrived: now };
        Event::Submit(job(id, id, Time::from_ns(u64::MAX / 2), ms(10), Some(batch)))
    };
    assert_eq!(queue.step(now, one(0)), [Action::Start(JobId(0))], "nobody waits: nothing is to be found out");
    for id in 1..10 {
        assert_eq!(queue.step(now, one(id)), []);
    }
    assert_eq!(queue.step(now, Event::Done(JobId(0))), [Action::Start(JobId(1)), Action::Try(JobId(1), 2)]);
    let held = Trial::Held { together: ms(11), alone: ms(10) };
    queue.step(now, Event::Tried { kind: Kind(0), rows: 2, bounds, trial: held });
    let next = queue.step(now, Event::Done(JobId(1)));
    assert_eq!(next, [Action::Start(JobId(2)), Action::Join(JobId(3)), Action::Try(JobId(2), 4)]);
    queue.step(now, Event::Tried { kind: Kind(0), rows: 4, bounds, trial: Trial::Broken });
    assert_eq!(queue.step(now, Event::Done(JobId(2))), [Action::Start(JobId(4))], "never again");
}

//! The queue under random loads: nothing lost, nothing twice, slots kept,
//! deadlines met or refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tierline_node::Time;
use tierline_node::admit::{Action, Caller, Class, Event, Job, JobId, Limits, Priority, Queue, Refusal};

use crate::harness::{Schedule, between, ms, seeds};

const SCHEDULES: u64 = 2_000;

enum Ev {
    Submit,
    Done(JobId),
    Wake,
}

/// Of each class one job waits at all times; what each gets of the time.
fn parts(with_requests: bool) -> BTreeMap<Class, f64> {
    const STEPS: u32 = 20_000;
    let mut queue = Queue::new(Limits { slots: 1, waiting: 64 });
    let mut now = Time::ZERO;
    let (mut classes, mut waiting) = (Vec::new(), BTreeSet::new());
    let (mut running, mut got) = (None, BTreeMap::<Class, f64>::new());
    for _ in 0..STEPS {
        for class in Class::ALL {
            let wanted = class.is_background() || (with_requests && class == Class::Interactive);
            if wanted && waiting.insert(class) {
                let id = JobId(classes.len() as u64);
                classes.push(class);
                let deadline = now + ms(3_600_000);
                let job = Job {
                    id,
                    caller: Caller(0),
                    class,
                    priority: Priority::NONE,
                    deadline,
                    service: ms(10),
                    after: ms(0),
                    batch: None,
                };
                begin(&queue.step(now, Event::Submit(job)), &classes, &mut waiting, &mut running);
            }
        }
        let JobId(id) = running.take().expect("something runs");
        *got.entry(classes[id as usize]).or_default() += 1.0 / f64::from(STEPS);
        now = now + ms(10);
        begin(&queue.step(now, Event::Done(JobId(id))), &classes, &mut waiting, &mut running);
    }
    got
}

fn begin(actions: &[Action], classes: &[Class], waiting: &mut BTreeSet<Class>, running: &mut Option<JobId>) {
    for action in actions {
        let Action::Start(id) = action else { panic!("{action:?}") };
        waiting.remove(&classes[id.0 as usize]);
        *running = Some(*id);
    }
}

#[test]
fn background_work_shares_what_is_left_by_weight() {
    let parts = parts(false);
    for (class, part) in [(Class::Batch, 4.0 / 7.0), (Class::Training, 2.0 / 7.0), (Class::Profiling, 1.0 / 7.0)] {
        assert!((parts[&class] - part).abs() < 0.01, "{parts:?}");
    }
}

#[test]
fn background_work_keeps_its_floor_beside_requests() {
    let parts = parts(true);
    for (class, floor) in [(Class::Batch, 0.05), (Class::Training, 0.05), (Class::Profiling, 0.02)] {
        assert!((parts[&class] - floor).abs() < 0.005, "{parts:?}");
    }
    assert!(parts[&Class::Interactive] > 0.87, "{parts:?}");
}

#[test]
fn a_floor_makes_no_request_late() {
    for (deadline, first) in [(ms(35), Class::Training), (ms(25), Class::Interactive)] {
        let mut queue = Queue::new(Limits { slots: 1, waiting: 64 });
        let job = |id: u64, class, deadline| {
            let caller = Caller(id);
            Event::Submit(Job {
                id: JobId(id),
                caller,
                class,
                priority: Priority::NONE,
                deadline,
                service: ms(10),
                after: ms(0),
                batch: None,
            })
        };
        let far = Time::ZERO + ms(10_000);
        assert_eq!(queue.step(Time::ZERO, job(0, Class::Interactive, far)), [Action::Start(JobId(0))]);
        assert_eq!(queue.step(Time::ZERO, job(1, Class::Training, far)), []);
        assert_eq!(queue.step(Time::ZERO, job(2, Class::Interactive, Time::ZERO + deadline)), []);
        let next = if first == Class::Training { JobId(1) } else { JobId(2) };
        assert_eq!(queue.step(Time::ZERO + ms(10), Event::Done(JobId(0))), [Action::Start(next)], "{deadline:?}");
    }
    // A recovery waits for nobody.
    let mut queue = Queue::new(Limits { slots: 1, waiting: 64 });
    let far = Time::ZERO + ms(10_000);
    for (id, class) in [Class::Interactive, Class::Training, Class::Recovery].into_iter().enumerate() {
        let (id, caller) = (JobId(id as u64), Caller(id as u64));
        queue.step(
            Time::ZERO,
            Event::Submit(Job {
                id,
                caller,
                class,
                priority: Priority::NONE,
                deadline: far,
                service: ms(10),
                after: ms(0),
                batch: None,
            }),
        );
    }
    assert_eq!(queue.step(Time::ZERO + ms(10), Event::Done(JobId(0))), [Action::Start(JobId(2))]);
}

#[test]
fn every_job_is_started_or_refused_once_and_slots_are_kept() {
    seeds(SCHEDULES, |rng| {
        let limits = Limits { slots: rng.usize(1..4), waiting: rng.usize(0..12) };
        let mut queue = Queue::new(limits);
        let mut schedule = Schedule::new();
        let mut jobs: BTreeMap<JobId, Job> = BTreeMap::new();
        let (mut open, mut running) = (BTreeSet::new(), BTreeSet::new());
        let mut cancelled = 0;
        // Actual times equal predicted ones in half of the schedules.
        let exact = rng.bool();
        for _ in 0..60 {
            schedule.after(between(rng, [ms(0), ms(600)]), Ev::Submit);
        }
        while let Some(event) = schedule.next(Time::from_ns(u64::MAX)) {
            let now = schedule.now();
            let event = match event {
                Ev::Submit => {
                    let id = JobId(jobs.len() as u64);
                    let class = [Class::Recovery, Class::Interactive, Class::Batch][rng.usize(..3)];
                    let (service, after) = (between(rng, [ms(1), ms(60)]), between(rng, [ms(0), ms(20)]));
                    let (caller, deadline) = (Caller(rng.u64(..4)), now + between(rng, [ms(1), ms(400)]));
                    let job =
                        Job { id, caller, class, priority: Priority::NONE, deadline, service, after, batch: None };
                    jobs.insert(id, job);
                    open.insert(id);
                    Event::Submit(job)
                }
                Ev::Done(id) => {
                    assert!(running.remove(&id));
                    Event::Done(id)
                }
                Ev::Wake => Event::Wake,
            };
            let mut actions = queue.step(now, event);
            if rng.u8(..20) == 0
                && let Some(id) = open.iter().next().copied()
                && !actions.iter().any(|a| matches!(a, Action::Start(of) | Action::Refuse(of, _) if *of == id))
            {
                open.remove(&id);
                cancelled += 1;
                actions.extend(queue.step(now, Event::Cancel(id)));
            }
            for action in actions {
                match action {
                    Action::Start(id) => {
                        assert!(open.remove(&id), "{id:?} started twice or after a cancel");
                        let job = jobs[&id];
                        assert!(now + job.service + job.after <= job.deadline, "started too late");
                        running.insert(id);
                        assert!(running.len() <= limits.slots);
                        let actual = if exact { job.service } else { job.service.mul_f64(0.2 + 2.0 * rng.f64()) };
                        schedule.after(actual, Ev::Done(id));
                    }
                    Action::Join(_) | Action::Try(..) => unreachable!("nothing here runs with others"),
                    Action::Refuse(id, refusal) => {
                        assert!(open.remove(&id));
                        if let Refusal::Full { waiting } = refusal {
                            let background = jobs[&id].class == Class::Batch;
                            let most = if background { limits.waiting.div_ceil(4) } else { limits.waiting };
                            assert!(waiting >= most && waiting <= limits.waiting, "{waiting} of {most}");
                        }
                    }
                }
            }
            let (waiting, busy) = queue.depth();
            assert!(waiting <= limits.waiting.max(1) && busy == running.len());
            assert!(waiting == 0 || busy == limits.slots, "a slot is free and work waits");
            if let Some(wake) = queue.wake() {
                schedule.at(wake, Ev::Wake);
            }
        }
        assert!(open.is_empty(), "{} jobs forgotten", open.len());
        assert_eq!(jobs.len(), 60);
        assert!(cancelled <= 60);
    });
}

fn job(id: u64, class: Class, deadline: u64, service: u64) -> Job {
    let (deadline, service) = (Time::ZERO + ms(deadline), ms(service));
    Job {
        id: JobId(id),
        caller: Caller(0),
        class,
        priority: Priority::NONE,
        deadline,
        service,
        after: Duration::ZERO,
        batch: None,
    }
}

#[test]
fn priorities_order_a_callers_own_jobs_and_nobody_elses() {
    let mut queue = Queue::new(Limits { slots: 1, waiting: 9 });
    let caller = |id: u64, caller: u64, said: u32| {
        let job = job(id, Class::Interactive, 10_000, 10);
        Event::Submit(Job { caller: Caller(caller), priority: Priority::of(said), ..job })
    };
    assert_eq!(queue.step(Time::ZERO, caller(0, 9, 0)), [Action::Start(JobId(0))]);
    // One caller says nothing, the other that all of its are urgent, one more than the other.
    for (id, of, said) in [(1, 1, 0), (2, 1, 0), (3, 2, 2), (4, 2, 1)] {
        assert_eq!(queue.step(Time::ZERO, caller(id, of, said)), []);
    }
    let order: Vec<u64> = (0..4)
        .scan(0, |running, _| {
            let [Action::Start(next)] = queue.step(Time::ZERO, Event::Done(JobId(*running)))[..] else { return None };
            *running = next.0;
            Some(next.0)
        })
        .collect();
    // They take turns; within the second's, the more urgent goes first.
    let place = |id: u64| order.iter().position(|other| *other == id).unwrap();
    assert!(place(4) < place(3), "{order:?}");
    assert!(place(1) < place(3) && place(1).abs_diff(place(4)) == 1, "{order:?}");
    assert_eq!(order.len(), 4);
}

#[test]
fn recoveries_first_then_the_nearest_deadline() {
    let mut queue = Queue::new(Limits { slots: 1, waiting: 9 });
    let now = Time::ZERO;
    assert_eq!(queue.step(now, Event::Submit(job(0, Class::Interactive, 900, 10))), [Action::Start(JobId(0))]);
    for waiting in [
        job(1, Class::Batch, 50, 1),
        job(2, Class::Interactive, 800, 10),
        job(3, Class::Interactive, 200, 10),
        job(4, Class::Recovery, 700, 10),
        job(5, Class::Interactive, 200, 10),
    ] {
        assert_eq!(queue.step(now, Event::Submit(waiting)), []);
    }
    let mut order = vec![];
    let mut last = JobId(0);
    while let [Action::Start(id)] = queue.step(now, Event::Done(last))[..] {
        order.push(id.0);
        last = id;
    }
    assert_eq!(order, [4, 3, 5, 2, 1]);
}

#[test]
fn who_cannot_make_it_is_refused_at_once() {
    let mut queue = Queue::new(Limits { slots: 1, waiting: 2 });
    let now = Time::ZERO;
    let _ = queue.step(now, Event::Submit(job(0, Class::Interactive, 900, 100)));
    let late = queue.step(now, Event::Submit(job(1, Class::Interactive, 110, 20)));
    assert_eq!(late, [Action::Refuse(JobId(1), Refusal::TooLate { late: ms(10) })]);
    assert_eq!(queue.step(now, Event::Submit(job(2, Class::Interactive, 150, 20))), []);
    assert_eq!(queue.expected_wait(now), ms(120));
    assert_eq!(queue.step(now, Event::Submit(job(3, Class::Interactive, 900, 20))), []);
    let full = queue.step(now, Event::Submit(job(4, Class::Interactive, 900, 1)));
    assert_eq!(full, [Action::Refuse(JobId(4), Refusal::Full { waiting: 2 })]);
    // The one at work takes longer than predicted: who waits is told in time.
    assert_eq!(queue.wake(), Some(Time::ZERO + ms(130) + Duration::from_nanos(1)));
    let gone = queue.step(Time::ZERO + ms(131), Event::Wake);
    assert_eq!(gone, [Action::Refuse(JobId(2), Refusal::TooLate { late: ms(1) })]);
    let _ = queue.step(now, Event::Drain);
    let draining = queue.step(now, Event::Submit(job(5, Class::Interactive, 900, 1)));
    assert_eq!(draining, [Action::Refuse(JobId(5), Refusal::Draining)]);
    assert_eq!(queue.step(now, Event::Submit(job(6, Class::Recovery, 900, 1))), []);
}

#[test]
fn consecutive_requests_overlap_their_stages() {
    // Each computes for 10 ms, then sends for 10 ms: ten take 110 ms, not 200.
    let mut stages = [0, 1].map(|_| Queue::new(Limits { slots: 1, waiting: 16 }));
    let mut schedule: Schedule<(usize, Event)> = Schedule::new();
    for id in 0..10 {
        schedule.after(ms(0), (0, Event::Submit(job(id, Class::Interactive, 900, 10))));
    }
    let mut sent = 0;
    let mut end = Time::ZERO;
    while let Some((stage, event)) = schedule.next(Time::from_ns(u64::MAX)) {
        if let Event::Done(id) = event {
            if stage == 0 {
                schedule.after(ms(0), (1, Event::Submit(job(id.0, Class::Interactive, 900, 10))));
            } else {
                sent += 1;
                end = schedule.now();
            }
        }
        for action in stages[stage].step(schedule.now(), event) {
            let Action::Start(id) = action else { panic!("{action:?}") };
            schedule.after(ms(10), (stage, Event::Done(id)));
        }
    }
    assert_eq!((sent, end), (10, Time::ZERO + ms(110)));
}

#[test]
fn background_work_leaves_room_for_requests() {
    let mut queue = Queue::new(Limits { slots: 1, waiting: 8 });
    let far = Time::from_ns(u64::MAX / 2);
    let mut submit = |id, class| queue.step(Time::ZERO, Event::Submit(Job { deadline: far, ..job(id, class, 0, 0) }));
    assert_eq!(submit(0, Class::Batch), [Action::Start(JobId(0))]);
    assert!(submit(1, Class::Batch).is_empty() && submit(2, Class::Batch).is_empty());
    assert_eq!(submit(3, Class::Batch), [Action::Refuse(JobId(3), Refusal::Full { waiting: 2 })]);
    assert!((4..10).all(|id| submit(id, Class::Interactive).is_empty()), "a quarter waits, the rest is free");
    assert_eq!(submit(10, Class::Recovery), [Action::Refuse(JobId(10), Refusal::Full { waiting: 8 })]);
}

/// One caller that sends without end, always more urgent, and recoveries too.
#[test]
fn whoever_floods_the_queue_delays_others_by_one_job() {
    let mut queue = Queue::new(Limits { slots: 1, waiting: 8 });
    let now = Time::ZERO;
    let flood = |id| job(id, [Class::Recovery, Class::Interactive][id as usize % 2], 500, 10);
    let mut started = queue.step(now, Event::Submit(flood(0)));
    for id in 1..=8 {
        assert_eq!(queue.step(now, Event::Submit(flood(id))), []);
    }
    // The queue is full: of whoever has most, the last one gives way.
    let good = Job { caller: Caller(1), ..job(100, Class::Interactive, 900, 10) };
    let gave_way = queue.step(now, Event::Submit(good));
    assert!(matches!(gave_way[..], [Action::Refuse(JobId(1..=8), Refusal::Full { waiting: 8 })]), "{gave_way:?}");
    let more = queue.step(now, Event::Submit(flood(9)));
    assert_eq!(more, [Action::Refuse(JobId(9), Refusal::Full { waiting: 8 })]);
    let mut order = vec![];
    for id in 10..16 {
        let [Action::Start(next)] = started[..] else { panic!("{started:?}") };
        order.push(next.0);
        started = queue.step(now, Event::Done(next));
        assert_eq!(queue.step(now, Event::Submit(flood(id))), []);
        let good = Job { caller: Caller(1), id: JobId(100 + id), ..good };
        let gave_way = queue.step(now, Event::Submit(good));
        assert!(matches!(gave_way[..], [] | [Action::Refuse(JobId(..100), Refusal::Full { .. })]), "{gave_way:?}");
    }
    let turns: Vec<bool> = order.iter().map(|id| *id >= 100).collect();
    assert_eq!(turns, [false, true, false, true, false, true], "{order:?}");
}

//! Federations: rounds, journals and members, alone and in a whole [`world`].

mod coordinations;
mod exchanges;
mod homes;
mod world;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tierline_federate::{Clients, Late, Report, Seconds, Timing};
use tierline_node::federation::{
    Action, Assignment, Coordinator, Event, MemberAction, MemberEvent, MemberRecord, MemberStatus, Participant, Phase,
    Record, Task, Terms, Update, Verdict,
};
use tierline_node::{Rng, Time};
use tierline_proto::Digest;

use self::world::{Happening, World, name, terms};
use crate::harness::{Link, ms, seeds};

fn seconds(seconds: f64) -> Seconds {
    Seconds::new(seconds).unwrap()
}

const ROUGH: Link = Link { delay: [ms(1), ms(300)], loss: 0.1, partitioned: false };

#[test]
fn rounds_end_and_count_everybody() {
    let mut world = World::new(1, 5, 3, terms(Clients { min: 5, ..Clients::default() }, Timing::Round), Link::GOOD);
    world.run(Duration::from_secs(300));
    assert!(world.models.values().all(|tasks| tasks.len() == 5));
    assert!(world.members.iter().all(|m| m.settled.len() == 3));
}

#[test]
fn whatever_dies_every_update_counts_once() {
    let from_snapshot = AtomicUsize::new(0);
    seeds(2_000, |rng| {
        let members = rng.usize(1..8);
        let late = if rng.bool() { Late::Use } else { Late::Refuse };
        let deadline_s = rng.bool().then(|| seconds(8.0));
        let per_round = rng.bool().then(|| rng.usize(1..=members));
        let min = rng.usize(1..=per_round.unwrap_or(members));
        let over = if rng.bool() { 1.5 } else { 1.0 };
        let clients =
            Clients { per_round, min, over, deadline_s, late, patience_s: seconds(20.0), ..Clients::default() };
        let timing =
            if rng.bool() { Timing::Round } else { Timing::Buffer { size: rng.usize(1..4), staleness_max: 3 } };
        let mut world = World::new(rng.u64(..), members, 4, terms(clients, timing), ROUGH);
        world.mortality = 0.01;
        world.evaluate = rng.bool();
        world.members.iter_mut().for_each(|member| member.stumbles = rng.usize(0..4) == 0);
        if rng.bool() {
            let at = Time::ZERO + Duration::from_millis(rng.u64(0..15_000));
            world.schedule.at(at, Happening::Order(Event::Pause));
        }
        for _ in 0..rng.usize(0..4) {
            let at = Time::ZERO + Duration::from_millis(rng.u64(0..20_000));
            world.schedule.at(at, Happening::KillCoordinator);
            world.schedule.at(at, Happening::KillMember(rng.usize(0..members)));
        }
        world.run(Duration::from_secs(3_600));
        from_snapshot.fetch_add(world.from_snapshot, Ordering::Relaxed);
    });
    let from_snapshot = from_snapshot.into_inner();
    assert!(from_snapshot > 1_000, "{from_snapshot} restarts began with a snapshot");
}

#[test]
fn an_update_from_before_a_restart_is_sent_though_the_data_are_gone() {
    let update = update(Task(3));
    let mut rng = Rng::with_seed(1);
    let (mut participant, _) = Participant::restored([MemberRecord::Held(update.clone())]);
    let now = Time::ZERO + ms(10);
    participant.step(now, &mut rng, MemberEvent::Prepared(Err("no data".to_owned())));
    let sent = participant.step(now, &mut rng, MemberEvent::LinkUp);
    assert!(sent.contains(&MemberAction::Send(update)), "{sent:?}");
    assert_eq!(participant.status(), MemberStatus::Preparing, "its task is not over yet");
    let answered = MemberEvent::Answered { task: Task(3), verdict: Verdict::Counted };
    let last = participant.step(now, &mut rng, answered);
    let unable = MemberStatus::Unable { reason: "no data".to_owned() };
    assert!(last.contains(&MemberAction::Report(unable)), "{last:?}");
}

const NONE: Vec<Record> = Vec::new();

fn ready(member: usize) -> Event {
    Event::Member { member: name(member), status: MemberStatus::Ready { examples: 100 } }
}

fn update(task: Task) -> Update {
    let report = Report { examples: 100, steps: 10, effective_steps: 10.0, ..Report::default() };
    Update { task, digest: Digest([task.number() as u8; 32]), bytes: 1_000, report }
}

/// The task that a member was given.
fn task_of(coordinator: &Coordinator, member: usize) -> Option<Task> {
    match coordinator.assignment(&name(member)) {
        Assignment::Work { task, .. } => Some(task),
        _ => None,
    }
}

fn answer(coordinator: &mut Coordinator, now: Time, member: usize) -> Vec<Action> {
    let task = task_of(coordinator, member).unwrap();
    coordinator.step(now, Event::Arrived { member: name(member), update: update(task) })
}

#[test]
fn what_a_stretch_that_was_given_up_counted_is_of_no_other() {
    let clients = Clients { per_round: Some(3), min: 3, ..Clients::default() };
    let terms = Terms { sums_up: true, ..terms(clients, Timing::Round) };
    let (mut coordinator, _) = Coordinator::restored(terms, NONE, Time::ZERO);
    let begin = |stretch, version| Event::Begin { version, rounds: 1, evaluate: false, stretch };
    let now = Time::ZERO + ms(10);
    coordinator.step(now, begin(1, 0));
    for member in 0..3 {
        coordinator.step(now, ready(member));
    }
    for member in 0..2 {
        answer(&mut coordinator, now, member);
    }
    let left = task_of(&coordinator, 2).unwrap();
    coordinator.step(now, begin(2, 5));
    assert_eq!(coordinator.would(&name(2), left), Some(Verdict::Late), "nobody waits for it any more");
    let done: Vec<Action> = (0..3).flat_map(|member| answer(&mut coordinator, now, member)).collect();
    let made = done.iter().find_map(|action| match action {
        Action::Make { version, counted, .. } => Some((*version, counted.len())),
        _ => None,
    });
    assert_eq!(made, Some((6, 3)), "all three were asked again");
    let last = coordinator.step(now, Event::Made { version: 6, enough: false });
    let counted = last.iter().find_map(|action| match action {
        Action::Done { stretch: 2, counted, .. } => Some(counted.len()),
        _ => None,
    });
    assert_eq!(counted, Some(3), "and nothing of before is reported");
}

#[test]
fn who_takes_too_long_is_not_waited_for_where_too_few_have_answered() {
    let clients = Clients { per_round: Some(2), min: 2, deadline_s: Some(seconds(60.0)), ..Clients::default() };
    let (mut coordinator, _) = Coordinator::restored(terms(clients, Timing::Round), NONE, Time::ZERO);
    let now = Time::ZERO + ms(10);
    coordinator.step(now, Event::Begin { version: 0, rounds: 1, evaluate: false, stretch: 1 });
    for member in 0..3 {
        coordinator.step(now, ready(member));
    }
    let asked: Vec<usize> = (0..3).filter(|at| task_of(&coordinator, *at).is_some()).collect();
    let [quick, silent] = asked[..] else { panic!("{asked:?}") };
    let other = (0..3).find(|at| !asked.contains(at)).unwrap();
    answer(&mut coordinator, now, quick);
    let overdue = coordinator.wake().unwrap();
    coordinator.step(overdue, Event::Wake);
    assert!(task_of(&coordinator, silent).is_some(), "it may still answer");
    let last = answer(&mut coordinator, overdue, other);
    assert!(last.iter().any(|action| matches!(action, Action::Make { counted, .. } if counted.len() == 2)), "{last:?}");
}

#[test]
fn a_member_whose_task_failed_is_asked_again_by_a_coordinator_that_was_killed() {
    let clients = Clients { per_round: Some(1), min: 1, ..Clients::default() };
    let terms = terms(clients, Timing::Round);
    let (mut coordinator, _) = Coordinator::restored(terms.clone(), NONE, Time::ZERO);
    let now = Time::ZERO + ms(10);
    let mut journal = Vec::new();
    let mut step = |coordinator: &mut Coordinator, event| {
        for action in coordinator.step(now, event) {
            if let Action::Keep(record) = action {
                journal.push(record);
            }
        }
    };
    step(&mut coordinator, Event::Begin { version: 0, rounds: 1, evaluate: false, stretch: 1 });
    step(&mut coordinator, ready(0));
    let task = task_of(&coordinator, 0).unwrap();
    // It says so until it is given other work, to whoever coordinates then.
    let status = MemberStatus::Failed { task, reason: "no memory".to_owned(), examples: 100 };
    let (mut restored, _) = Coordinator::restored(terms, journal, now);
    restored.step(now, Event::Member { member: name(0), status: status.clone() });
    restored.step(now, Event::Member { member: name(0), status });
    assert!(task_of(&restored, 0).is_some_and(|again| again != task));
}

#[test]
fn a_member_whose_task_failed_is_told_again_of_the_next_one() {
    let terms = terms(Clients { per_round: Some(1), min: 1, ..Clients::default() }, Timing::Round);
    let (mut coordinator, _) = Coordinator::restored(terms, NONE, Time::ZERO);
    let now = Time::ZERO + ms(10);
    coordinator.step(now, Event::Begin { version: 0, rounds: 1, evaluate: false, stretch: 1 });
    coordinator.step(now, ready(0));
    let task = task_of(&coordinator, 0).unwrap();
    let status = MemberStatus::Failed { task, reason: "no memory".to_owned(), examples: 100 };
    let failed = Event::Member { member: name(0), status };
    let told = |actions: Vec<Action>| actions.contains(&Action::Tell { member: name(0) });
    assert!(told(coordinator.step(now, failed.clone())));
    assert!(task_of(&coordinator, 0).is_some_and(|again| again != task));
    // That was lost on the way, so it says the same once more.
    assert!(told(coordinator.step(now, failed)), "or the job stands still");
}

#[test]
fn members_whose_answers_would_come_too_late_begin_anew() {
    let clients = Clients { per_round: Some(2), min: 1, ..Clients::default() };
    let timing = Timing::Buffer { size: 1, staleness_max: 2 };
    let (mut coordinator, _) = Coordinator::restored(terms(clients, timing), NONE, Time::ZERO);
    let now = Time::ZERO + ms(10);
    coordinator.step(now, Event::Begin { version: 0, rounds: 9, evaluate: false, stretch: 1 });
    coordinator.step(now, ready(0));
    coordinator.step(now, ready(1));
    let slow = task_of(&coordinator, 1).unwrap();
    for version in 1..=3 {
        assert_eq!(task_of(&coordinator, 1), Some(slow));
        answer(&mut coordinator, now, 0);
        coordinator.step(now, Event::Made { version, enough: false });
    }
    assert!(task_of(&coordinator, 1).is_some_and(|task| task != slow));
    assert_eq!(coordinator.versions_in_use(), BTreeSet::from([3]), "older models aren't kept for it");
}

#[test]
fn tasks_of_another_coordinator_are_none_of_ones_own() {
    let mut rng = Rng::with_seed(1);
    let now = Time::ZERO + ms(10);
    let work = |task| MemberEvent::Assigned(Assignment::Work { task, round: 0, version: 0, evaluate: false });
    let (ours, theirs) = (Task::new(1, 7), Task::new(2, 3));
    let begins = |actions: &[MemberAction], task: Task| {
        actions.iter().any(|action| matches!(action, MemberAction::Work(work) if work.task == task))
    };
    let settled = [MemberRecord::Settled { task: ours, counted: true }];
    let (mut participant, _) = Participant::restored(settled);
    participant.step(now, &mut rng, MemberEvent::Prepared(Ok(100)));
    assert!(!begins(&participant.step(now, &mut rng, work(ours)), ours), "an echo");
    let actions = participant.step(now, &mut rng, work(theirs));
    assert!(begins(&actions, theirs), "its number is lower, and it is another's: {actions:?}");
    // What nobody knew when it came may be wanted by who gave it.
    let settled = [MemberRecord::Settled { task: ours, counted: false }];
    let (mut participant, _) = Participant::restored(settled);
    participant.step(now, &mut rng, MemberEvent::Prepared(Ok(100)));
    assert!(begins(&participant.step(now, &mut rng, work(ours)), ours));
    let terms = Terms { tag: 2, ..terms(Clients::default(), Timing::Round) };
    let (coordinator, _) = Coordinator::restored(terms, NONE, now);
    assert_eq!(coordinator.would(&name(0), ours), Some(Verdict::Unknown));
}

#[test]
fn a_journal_does_not_grow_with_the_rounds() {
    let longest = |rounds| {
        let mut world =
            World::new(2, 4, rounds, terms(Clients { min: 4, ..Clients::default() }, Timing::Round), Link::GOOD);
        world.run(Duration::from_secs(3_600));
        world.longest
    };
    let (few, many) = (longest(5), longest(200));
    assert!(many.0 <= few.0 + 1, "{many:?} after 200 rounds, {few:?} after 5");
    // Numbers have more digits.
    assert!(many.1 < 2 * few.1, "{many:?} after 200 rounds, {few:?} after 5");
}

#[test]
fn a_machine_that_waits_is_not_woken_over_and_over() {
    let terms = terms(Clients { min: 3, ..Clients::default() }, Timing::Round);
    let (mut coordinator, _) = Coordinator::restored(terms, [], Time::ZERO);
    coordinator.step(Time::ZERO, Event::Begin { version: 0, rounds: 1, evaluate: false, stretch: 1 });
    let status = MemberStatus::Ready { examples: 100 };
    coordinator.step(Time::ZERO + ms(10), Event::Member { member: name(0), status });
    // Two members are missing, for ever.
    let mut wakes = 0;
    while let Some(time) = coordinator.wake() {
        assert_eq!(coordinator.step(time, Event::Wake), []);
        wakes += 1;
    }
    assert!(wakes <= 1, "woken {wakes} times");
}

#[test]
fn everybody_looks_at_the_last_model() {
    let clients = Clients { per_round: Some(2), min: 2, ..Clients::default() };
    let mut world = World::new(2, 5, 3, terms(clients, Timing::Round), Link::GOOD);
    world.evaluate = true;
    world.run(Duration::from_secs(300));
    assert!(world.models.values().all(|tasks| tasks.len() == 2));
    assert_eq!(world.evaluated.unwrap().1.len(), 5, "those who weren't asked to learn evaluate as well");
}

#[test]
fn a_model_is_done_though_nobody_is_left_to_look_at_it() {
    let mut world = World::new(2, 2, 1, terms(Clients::default(), Timing::Round), Link::GOOD);
    world.evaluate = true;
    let made = (1..60_000).find(|&at| {
        world.run_until(ms(at));
        !world.models.is_empty() && world.members.iter().all(|member| member.settled.len() == 1)
    });
    assert!(made.is_some() && world.evaluated.is_none());
    for at in 0..2 {
        world.members[at].running = None;
        world.members[at].life += 1;
        world.coordinate(Event::Lost { member: name(at) });
    }
    world.run(Duration::from_secs(300));
    assert_eq!(world.evaluated.unwrap().1.len(), 0);
}

#[test]
fn the_slowest_are_not_waited_for_when_more_are_asked_than_needed() {
    let clients = Clients { per_round: Some(6), min: 4, over: 1.5, ..Clients::default() };
    let mut world = World::new(3, 9, 4, terms(clients, Timing::Round), Link::GOOD);
    world.run(Duration::from_secs(60));
    // Members 0 and 7 take twenty times as long.
    assert!(world.schedule.now() < Time::ZERO + Duration::from_secs(150));
    assert!(world.models.values().all(|tasks| tasks.len() == 6));
}

#[test]
fn a_member_whose_update_is_unfit_is_left_out_and_the_job_goes_on() {
    let mut world = World::new(4, 4, 3, terms(Clients { min: 2, ..Clients::default() }, Timing::Round), Link::GOOD);
    world.members[2].bad = true;
    world.run(Duration::from_secs(300));
    let excluded = world.coordinator.as_ref().unwrap().excluded();
    assert_eq!(excluded, [("end-002", "not a number")]);
    assert!(world.members[2].finished);
    assert!(world.members[2].settled.values().all(|counted| !counted));
}

#[test]
fn a_member_that_keeps_failing_is_left_out() {
    let mut world = World::new(5, 3, 6, terms(Clients { min: 1, ..Clients::default() }, Timing::Round), Link::GOOD);
    world.members[1].fails = true;
    world.run(Duration::from_secs(300));
    let coordinator = world.coordinator.as_ref().unwrap();
    let [(member, reason)] = coordinator.excluded()[..] else { panic!("{:?}", coordinator.excluded()) };
    assert_eq!(member, "end-001");
    assert!(reason.contains("no memory"), "{reason}");
}

#[test]
fn a_round_waits_for_members_that_come_back_and_not_for_those_that_do_not() {
    let clients = Clients { min: 2, patience_s: seconds(20.0), ..Clients::default() };
    let mut world = World::new(6, 3, 2, terms(clients, Timing::Round), Link::GOOD);
    // Gone for good in the middle of the first round.
    world.run_until(ms(700));
    world.members[1].running = None;
    world.members[1].life += 1;
    world.coordinate(Event::Lost { member: name(1) });
    world.run(Duration::from_secs(300));
    assert!(world.models[&1].len() >= 2);
    assert_eq!(world.models[&2].len(), 2);
}

#[test]
fn a_paused_job_gives_out_no_work_until_it_goes_on() {
    let mut world = World::new(8, 3, 4, terms(Clients { min: 3, ..Clients::default() }, Timing::Round), Link::GOOD);
    world.run_until(ms(1_500));
    world.coordinate(Event::Pause);
    world.run_until(ms(60_000));
    let coordinator = world.coordinator.as_ref().unwrap();
    assert_eq!(coordinator.phase(), Phase::Paused);
    let made = world.models.len();
    assert!(made < 4);
    world.kill_coordinator();
    world.run_until(ms(120_000));
    assert_eq!(world.coordinator.as_ref().unwrap().phase(), Phase::Paused, "a restart doesn't unpause");
    assert_eq!(world.models.len(), made);
    world.coordinate(Event::Resume);
    world.run(Duration::from_secs(600));
}

#[test]
fn members_are_let_go_at_the_end() {
    let mut world = World::new(9, 3, 1, terms(Clients::default(), Timing::Round), Link::GOOD);
    world.run(Duration::from_secs(300));
    world.coordinate(Event::End);
    let settle = world.schedule.now() + Duration::from_secs(60);
    while let Some(happening) = world.schedule.next(settle) {
        world.happen(happening);
    }
    assert!(world.members.iter().all(|m| m.finished));
}

#[test]
fn members_that_are_killed_each_second_hold_up_no_first_round() {
    let clients = Clients { min: 2, ..Clients::default() };
    let (mut coordinator, _) = Coordinator::restored(terms(clients, Timing::Round), NONE, Time::ZERO);
    coordinator.step(Time::ZERO, Event::Begin { version: 0, rounds: 1, evaluate: false, stretch: 1 });
    let begun = (1..60).find(|second| {
        // One of three is started again, and is soon back.
        let (at, member) = (Time::ZERO + ms(1_000 * second), *second as usize % 3);
        coordinator.step(at, Event::Lost { member: name(member) });
        let preparing = Event::Member { member: name(member), status: MemberStatus::Preparing };
        coordinator.step(at + ms(300), preparing);
        coordinator.step(at + ms(600), ready(member));
        if let Some(wake) = coordinator.wake().filter(|wake| *wake < at + ms(1_000)) {
            coordinator.step(wake, Event::Wake);
        }
        (0..3).any(|member| task_of(&coordinator, member).is_some())
    });
    let begun = begun.expect("it begins although nobody has been quiet for long");
    assert!(begun <= 15, "in second {begun}");
}

#[test]
fn a_coordinator_that_was_killed_goes_on_once_those_it_knows_are_back() {
    let clients = Clients { min: 2, ..Clients::default() };
    let terms = terms(clients, Timing::Round);
    let (mut coordinator, _) = Coordinator::restored(terms.clone(), NONE, Time::ZERO);
    let mut journal = Vec::new();
    let mut keep = |actions: Vec<Action>| {
        let kept = actions.into_iter().filter_map(|action| match action {
            Action::Keep(record) => Some(record),
            _ => None,
        });
        journal.extend(kept);
    };
    keep(coordinator.step(Time::ZERO, Event::Begin { version: 0, rounds: 3, evaluate: false, stretch: 1 }));
    (0..3).for_each(|member| keep(coordinator.step(Time::ZERO + ms(10), ready(member))));
    let settled = coordinator.wake().unwrap();
    keep(coordinator.step(settled, Event::Wake));
    (0..3).for_each(|member| keep(answer(&mut coordinator, settled, member)));
    keep(coordinator.step(settled, Event::Made { version: 1, enough: false }));
    // Between two rounds it is killed: nobody is asked before all are back.
    let now = settled + ms(5_000);
    journal.retain(|record| !matches!(record, Record::Asked { round: 1, .. }));
    let (mut coordinator, _) = Coordinator::restored(terms, journal, now);
    coordinator.step(now + ms(100), ready(0));
    coordinator.step(now + ms(200), ready(1));
    assert_eq!(task_of(&coordinator, 0), None, "the third may be on its way");
    coordinator.step(now + ms(300), ready(2));
    assert!((0..3).all(|member| task_of(&coordinator, member).is_some()), "all are back");
}

#[test]
fn a_coordinator_that_was_killed_before_the_first_round_waits_for_those_it_has_met() {
    let terms = terms(Clients { min: 2, ..Clients::default() }, Timing::Round);
    let (mut coordinator, _) = Coordinator::restored(terms.clone(), NONE, Time::ZERO);
    let begin = Event::Begin { version: 0, rounds: 3, evaluate: false, stretch: 1 };
    let mut journal = Vec::new();
    for event in [begin, ready(0), ready(1), ready(0)] {
        let actions = coordinator.step(Time::ZERO + ms(10), event);
        journal.extend(actions.into_iter().filter_map(|action| match action {
            Action::Keep(record) => Some(record),
            _ => None,
        }));
    }
    assert_eq!(task_of(&coordinator, 0), None, "others may come");
    let met = journal.iter().filter(|record| matches!(record, Record::Met { .. })).count();
    assert_eq!(met, 2, "{journal:?}");
    let now = Time::ZERO + ms(1_000);
    let (mut coordinator, _) = Coordinator::restored(terms, journal, now);
    coordinator.step(now + ms(100), ready(1));
    assert_eq!(task_of(&coordinator, 1), None);
    coordinator.step(now + ms(200), ready(0));
    assert!((0..2).all(|member| task_of(&coordinator, member).is_some()), "all are back");
}

//! One device, killed between any two actions, with its journal torn.

use std::collections::{BTreeSet, VecDeque};

use tierline_update::rollout::{
    Ask, Kind, Limits, Now, Phase, Seconds, Swap, SwapAction, SwapEvent, SwapRecord, Terms, Version, Want, Window,
    journal,
};

use super::device::{At, Became, Device, Disk, Flaw, version};

fn want(number: u64, name: &str, kind: Kind) -> Want {
    let terms = Terms { window_s: Seconds::new(5.0).unwrap(), ..Terms::default() };
    Want { ask: Ask { rollout: 1, number }, version: version(name), kind, limits: Limits::default(), terms }
}

fn update(number: u64, name: &str) -> Want {
    want(number, name, Kind::Update)
}

/// How a crash leaves the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Torn {
    /// As it was when the action was about to begin.
    Before,
    /// The record that the action writes is half there.
    Half,
    /// The action was done.
    After,
    /// The action was done, and the disk forgot the last record all the same.
    Forgot,
}

const TEARS: [Torn; 4] = [Torn::Before, Torn::Half, Torn::After, Torn::Forgot];

/// What a run does from outside, by the number of the action before which it
/// comes.
#[derive(Debug, Clone, Default)]
struct Script {
    wants: Vec<(u64, Want)>,
    crashes: Vec<(u64, Torn)>,
    flaws: Vec<(&'static str, At, Flaw)>,
    memory_max: Option<u64>,
}

struct Run {
    device: Device,
    script: Script,
    steps: u64,
    now_ms: u64,
    /// How often a flaw took the process with it.
    kills: u32,
}

impl Run {
    fn new(script: Script) -> Self {
        let mut disk = Disk::default();
        let _new = (disk.staged.insert(version("v1")), disk.fetched.insert(version("v1")));
        let device = Device::on(disk, BTreeSet::new(), script.memory_max);
        Self { device, script, steps: 0, now_ms: 0, kills: 0 }
    }

    /// Runs until nothing is left to do; how many actions that were.
    fn run_out(mut self) -> Self {
        while self.process() {
            assert!(self.kills < 20, "it is killed again and again");
        }
        self
    }

    /// One life of the process; whether it was killed.
    fn process(&mut self) -> bool {
        let mut events: VecDeque<SwapEvent> = [SwapEvent::Started { installed: Some(version("v1")) }].into();
        // The orchestrator says again what it wanted last.
        let said: Vec<Want> =
            self.script.wants.iter().filter(|(at, _)| *at <= self.steps).map(|(_, want)| want.clone()).collect();
        events.extend(said.last().map(|want| SwapEvent::Want(Box::new(want.clone()))));
        for _ in 0..2_000 {
            let event = match events.pop_front() {
                Some(event) => event,
                None => {
                    let Some(at) = self.device.swap.next_deadline() else {
                        let Some(late) = self.late_want() else { return false };
                        events.push_back(late);
                        continue;
                    };
                    assert!(at <= self.now_ms + 120_000, "it waits for longer than anything takes");
                    self.now_ms = self.now_ms.max(at);
                    SwapEvent::Tick
                }
            };
            let now = Now { monotonic_ms: self.now_ms, unix_ms: None };
            for action in self.device.swap.step(now, event) {
                self.steps += 1;
                if let Some((_, torn)) = self.script.crashes.iter().find(|(at, _)| *at == self.steps).copied() {
                    self.crash(&action, torn);
                    return true;
                }
                if self.acts(&action, &mut events) {
                    self.die();
                    return true;
                }
                self.device.check();
                let steps = self.steps;
                let due = self.script.wants.iter().filter(|(at, _)| *at == steps);
                events.extend(due.map(|(_, want)| SwapEvent::Want(Box::new(want.clone()))));
            }
        }
        panic!("it never comes to rest: {:?}", self.device.swap);
    }

    /// A want that was to come behind the last action.
    fn late_want(&mut self) -> Option<SwapEvent> {
        let at = self.script.wants.iter().position(|(at, _)| *at > self.steps)?;
        self.script.wants[at].0 = self.steps;
        Some(SwapEvent::Want(Box::new(self.script.wants[at].1.clone())))
    }

    /// Performs an action; whether it took the process with it.
    fn acts(&mut self, action: &SwapAction, events: &mut VecDeque<SwapEvent>) -> bool {
        let flaws = self.script.flaws.clone();
        let flaw = |version: &Version, at: At| {
            flaws
                .iter()
                .find(|(name, flaw_at, _)| *name == version.as_str() && *flaw_at == at)
                .map(|(_, _, flaw)| *flaw)
        };
        match self.device.perform(action, flaw) {
            Became::Nothing => {}
            Became::Event(event) => events.push_back(event),
            Became::Killed => {
                self.kills += 1;
                return true;
            }
        }
        false
    }

    fn crash(&mut self, action: &SwapAction, torn: Torn) {
        match (torn, action) {
            (Torn::Before, _) => {}
            (Torn::Half, SwapAction::Keep(record)) => {
                let line = journal::encode(record).unwrap();
                if record.replaces_earlier() {
                    // Replacing is atomic: the old journal stays.
                } else {
                    self.device.disk.journal.extend(&line[..line.len() / 2]);
                }
            }
            (Torn::Half, _) => {}
            (Torn::After | Torn::Forgot, _) => {
                let _killed = self.acts(action, &mut VecDeque::new());
                if torn == Torn::Forgot {
                    let journal = &mut self.device.disk.journal;
                    let last = journal[..journal.len().saturating_sub(1)].iter().rposition(|byte| *byte == b'\n');
                    journal.truncate(last.map_or(0, |at| at + 1));
                }
            }
        }
        self.die();
    }

    fn die(&mut self) {
        let (disk, committed) = (self.device.disk.clone(), self.device.committed.clone());
        self.device = Device::on(disk, committed, self.script.memory_max);
    }

    /// What must be so when it has come to rest.
    fn rests(mut self) -> (Option<Version>, Option<Version>) {
        self.device.check();
        let report = self.device.swap.report();
        assert_eq!(self.device.serving, report.running, "what is said runs");
        assert_eq!(self.device.swap.current(), report.running.as_ref(), "what runs at rest has proved itself");
        assert!(report.confirmed && report.phase == Phase::Idle, "{report:?}");
        let asked = self.script.wants.iter().find(|(_, want)| Some(want.ask) == report.ask);
        let done = asked.is_none_or(|(_, want)| report.running.as_ref() == Some(&want.version));
        assert!(done || report.failed.is_some(), "what didn't come to be is said to have failed: {report:?}");
        assert_eq!(self.device.swap.wanted(), None);
        assert_eq!(self.device.loaded.len(), 1, "{:?} are in memory", self.device.loaded);
        (report.running, self.device.swap.previous().cloned())
    }
}

fn end(script: Script) -> (Option<Version>, Option<Version>) {
    Run::new(script).run_out().rests()
}

fn steps(script: &Script) -> u64 {
    Run::new(script.clone()).run_out().steps
}

/// Scripts that cover the machine's ways.
fn scripts() -> Vec<(&'static str, Script)> {
    let two = |memory_max| Script { wants: vec![(4, update(1, "v2"))], memory_max, ..Script::default() };
    let mut scripts = vec![
        ("an update", two(None)),
        ("an update in little memory", two(Some(100))),
        ("two updates", Script { wants: vec![(4, update(1, "v2")), (900, update(2, "v3"))], ..Script::default() }),
        (
            "a rollback",
            Script { wants: vec![(4, update(1, "v2")), (900, want(2, "v1", Kind::Rollback))], ..Script::default() },
        ),
        (
            "a rollback in little memory",
            Script {
                wants: vec![(4, update(1, "v2")), (900, want(2, "v1", Kind::Rollback))],
                memory_max: Some(100),
                ..Script::default()
            },
        ),
        (
            "a rollback to what isn't here",
            Script { wants: vec![(4, want(2, "v0", Kind::Rollback))], ..Script::default() },
        ),
    ];
    for at in [At::Fetch, At::Verify, At::Stage, At::Load, At::Test, At::Switch, At::Probe] {
        for flaw in [Flaw::Fails, Flaw::Hangs, Flaw::Kills] {
            // Only what has a limit may hang; fetching, which the fleet's
            // deadline bounds, and what the disk does have none.
            let bounded = matches!(at, At::Load | At::Test | At::Probe);
            if flaw == Flaw::Hangs && !bounded {
                continue;
            }
            for memory_max in [None, Some(100)] {
                scripts.push(("a bad one", Script { flaws: vec![("v2", at, flaw)], ..two(memory_max) }));
            }
        }
    }
    scripts
}

#[test]
fn a_good_version_is_confirmed_and_a_bad_one_leaves_no_trace() {
    for (what, script) in scripts() {
        let run = Run::new(script.clone()).run_out();
        // Before its own code runs it is tried some times more.
        let early = script.flaws.iter().any(|(_, at, _)| matches!(at, At::Fetch | At::Verify | At::Stage));
        assert!(run.kills <= if early { 5 } else { 1 }, "killed {} times by {:?}", run.kills, script.flaws);
        let (running, previous) = run.rests();
        let expected = match what {
            "an update" | "an update in little memory" => ("v2", Some("v1")),
            "two updates" => ("v3", Some("v2")),
            "a rollback" | "a rollback in little memory" => ("v1", None),
            "a rollback to what isn't here" => ("v0", Some("v1")),
            _ => ("v1", None),
        };
        let name = |version: &Option<Version>| version.as_ref().map(|version| version.as_str().to_owned());
        assert_eq!(
            (name(&running).as_deref(), name(&previous).as_deref()),
            (Some(expected.0), expected.1),
            "{what} {:?} {:?}",
            script.flaws,
            script.memory_max
        );
    }
}

#[test]
fn a_crash_anywhere_leaves_a_version_that_proved_itself() {
    let mut runs = 0;
    for (_, script) in scripts() {
        for at in 1..=steps(&script) {
            for torn in TEARS {
                let crashed = Script { crashes: vec![(at, torn)], ..script.clone() };
                let (running, _) = end(crashed);
                assert!(running.is_some());
                runs += 1;
            }
        }
    }
    assert!(runs > 1_000, "{runs}");
}

#[test]
fn a_second_crash_on_the_way_back_changes_nothing() {
    for (what, script) in scripts().into_iter().filter(|(what, _)| *what != "a bad one") {
        for first in 1..=steps(&script) {
            for torn in [Torn::Half, Torn::After, Torn::Forgot] {
                let once = Script { crashes: vec![(first, torn)], ..script.clone() };
                for second in first + 1..=steps(&once).min(first + 10) {
                    let twice = Script { crashes: vec![(first, torn), (second, Torn::Half)], ..script.clone() };
                    assert!(end(twice).0.is_some(), "{what}");
                }
            }
        }
    }
}

#[test]
fn another_want_at_any_moment_wins_whatever_crashes() {
    let base = Script { wants: vec![(4, update(1, "v2"))], ..Script::default() };
    for memory_max in [None, Some(100)] {
        for next in [update(2, "v3"), update(2, "v2"), want(2, "v1", Kind::Rollback)] {
            for moment in 4..=steps(&base) {
                let wants = vec![(4, update(1, "v2")), (moment, next.clone())];
                let script = Script { wants, memory_max, ..Script::default() };
                let (running, _) = end(script.clone());
                assert_eq!(running.as_ref(), Some(&next.version), "at {moment}");
                for crash in moment..=steps(&script) {
                    for torn in TEARS {
                        let (running, previous) = end(Script { crashes: vec![(crash, torn)], ..script.clone() });
                        assert!(
                            running.is_some() && previous != running,
                            "want at {moment}, crash at {crash}, {torn:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn an_older_want_that_comes_late_is_passed_over() {
    let script = Script { wants: vec![(4, update(2, "v3")), (900, update(1, "v2"))], ..Script::default() };
    assert_eq!(end(script).0, Some(version("v3")));
}

#[test]
fn a_version_that_cannot_be_loaded_any_more_gives_way_to_the_one_before() {
    let mut run = Run::new(Script { wants: vec![(4, update(1, "v2"))], ..Script::default() }).run_out();
    let _was = run.device.disk.staged.remove(&version("v2"));
    let mut run = Run { script: Script::default(), ..run };
    run.device.committed.insert(version("v2"));
    let (disk, committed) = (run.device.disk.clone(), run.device.committed.clone());
    let mut device = Device::on(disk, committed, None);
    let mut now_ms = 0;
    let mut events: VecDeque<SwapEvent> = [SwapEvent::Started { installed: None }].into();
    for _ in 0..200 {
        let event = events.pop_front().unwrap_or(SwapEvent::Tick);
        now_ms += 500;
        for action in device.swap.step(Now { monotonic_ms: now_ms, unix_ms: None }, event) {
            if let Became::Event(event) = device.perform(&action, |_, _| None) {
                events.push_back(event);
            }
        }
    }
    assert_eq!(device.serving, Some(version("v1")));
    assert_eq!((device.swap.current(), device.swap.previous()), (Some(&version("v1")), None));
}

#[test]
fn a_closed_window_holds_the_switch_back_and_an_unknown_time_too() {
    let noon = 12 * 3_600_000;
    let limits = Limits { window: Some(Window::new("22:00", "04:00", "+00:00").unwrap()), ..Limits::default() };
    for (unix_ms, enters) in [(Some(noon), false), (None, false), (Some(noon + 11 * 3_600_000), true)] {
        let mut device = Run::new(Script::default()).device;
        let mut events: VecDeque<SwapEvent> = [
            SwapEvent::Started { installed: Some(version("v1")) },
            SwapEvent::Want(Box::new(Want { limits: limits.clone(), ..update(1, "v2") })),
        ]
        .into();
        for tick in 0..400 {
            let event = events.pop_front().unwrap_or(SwapEvent::Tick);
            let now = Now { monotonic_ms: tick * 1_000, unix_ms: unix_ms.map(|at| at + tick * 1_000) };
            for action in device.swap.step(now, event) {
                if let Became::Event(event) = device.perform(&action, |_, _| None) {
                    events.push_back(event);
                }
            }
        }
        assert_eq!(device.serving, Some(version(if enters { "v2" } else { "v1" })), "{unix_ms:?}");
        assert_eq!(device.swap.report().phase, if enters { Phase::Idle } else { Phase::Waiting });
    }
}

#[test]
fn a_trial_ends_at_once_when_the_version_breaks_or_fails_requests() {
    use tierline_update::rollout::{Health, Latency};
    let slow = |ms: u64| {
        let mut latency = Latency::default();
        (0..50).for_each(|_| latency.note_ns(ms * 1_000_000));
        latency
    };
    let sample = |name: &str, errors: u64, ms: u64| SwapEvent::Health {
        version: version(name),
        health: Health { runs: 50 + errors, errors, latency: slow(ms), ..Health::default() },
    };
    for (events, stays) in [
        (vec![sample("v2", 0, 5)], true),
        (vec![sample("v1", 0, 5), sample("v2", 0, 6)], true),
        (vec![sample("v1", 0, 5), sample("v2", 0, 20)], false),
        (vec![sample("v2", 30, 5)], false),
        (vec![sample("v1", 30, 5)], true),
        (vec![SwapEvent::Broke { version: version("v2"), reason: "out of memory".into() }], false),
        (vec![SwapEvent::Broke { version: version("v1"), reason: "late".into() }], true),
        (vec![SwapEvent::RollBack { reason: "it looks odd".into() }], false),
    ] {
        let mut device = Run::new(Script::default()).device;
        let mut asked = update(1, "v2");
        asked.terms.latency_p95_ratio_max = Some(1.5);
        let mut queue: VecDeque<SwapEvent> =
            [SwapEvent::Started { installed: Some(version("v1")) }, SwapEvent::Want(Box::new(asked))].into();
        let (mut given, mut now_ms) = (false, 0);
        for _ in 0..400 {
            let trial = device.swap.on_trial();
            if trial && !given {
                given = true;
                queue.extend(events.clone());
            }
            let event = queue.pop_front().unwrap_or(SwapEvent::Tick);
            now_ms += 100;
            for action in device.swap.step(Now { monotonic_ms: now_ms, unix_ms: None }, event) {
                if let Became::Event(event) = device.perform(&action, |_, _| None) {
                    queue.push_back(event);
                }
                device.check();
            }
        }
        assert!(given);
        assert_eq!(device.serving, Some(version(if stays { "v2" } else { "v1" })), "{events:?}");
        assert_eq!(device.swap.report().failed.is_some(), !stays, "{events:?}");
    }
}

#[test]
fn an_operator_goes_back_at_once_and_only_once() {
    let mut run = Run::new(Script { wants: vec![(4, update(1, "v2"))], ..Script::default() }).run_out();
    let back = |run: &mut Run| {
        let mut queue: VecDeque<SwapEvent> = [SwapEvent::RollBack { reason: "it looks odd".into() }].into();
        while let Some(event) = queue.pop_front() {
            let now = Now { monotonic_ms: run.now_ms, unix_ms: None };
            for action in run.device.swap.step(now, event) {
                let _killed = run.acts(&action, &mut queue);
                run.device.check();
            }
        }
        run.device.serving.clone()
    };
    assert_eq!(back(&mut run), Some(version("v1")));
    assert_eq!(back(&mut run), Some(version("v1")), "there is nothing before it");
    assert_eq!(run.device.swap.previous(), None, "what was left is no way back");
}

#[test]
fn a_journal_stays_short_and_says_the_same() {
    let wants = (1..60).map(|n| (n * 40, update(n, if n % 2 == 0 { "v2" } else { "v3" }))).collect();
    let run = Run::new(Script { wants, ..Script::default() }).run_out();
    let (records, _) = Device::records(&run.device.disk);
    assert!(records.len() < 80, "{} records", records.len());
    assert!(records.iter().any(SwapRecord::replaces_earlier));
    let again = Swap::recover(records, None);
    assert_eq!((again.current(), again.previous()), (run.device.swap.current(), run.device.swap.previous()));
}

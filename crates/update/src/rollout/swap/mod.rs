//! A device's machine: changes one model over to another version, and back.
//!
//! Fetch, verify, stage, load, self-test, a durable mark that a trial begins,
//! the switch, a window in which the new version must show that it works,
//! commit. A crash anywhere leaves the version that was committed last, and the
//! one before it as the way back; a version that wasn't committed is neither.
//!
//! No I/O and no clock. Start at [`Swap::step`]; what it must not forget is in
//! [`SwapLedger`], which [`SwapRecord`]s make.

mod back;
mod event;
mod record;
mod terms;

use std::collections::{BTreeMap, BTreeSet};

pub use event::{SwapAction, SwapEvent, Work};
pub use record::{SwapLedger, SwapRecord};
pub use terms::Terms;

use record::Fate;

use super::message::{Ask, Kind, Phase, Report, Want};
use super::time::Clock;
use super::words::plain;
use super::{Health, Now, Version};

/// Times that a fetch, or the load of what ran before, is tried.
const TRIES: u32 = 4;

/// Between two tries; doubled each time.
const PAUSE_MS: u64 = 1_000;

/// The longest pause between two tries of what must not be given up.
const PAUSE_MAX_MS: u64 = 60_000;

/// Starts of work for one want that end before its version is loaded.
const BEGUN_MAX: u32 = 5;

/// A window is looked at this often: clocks are set.
const LOOK_MS: u64 = 60_000;

/// Records after which a snapshot takes their place.
const RECORDS_MAX: usize = 64;

/// What the machine is at, until the process ends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Doing {
    /// Nothing; [`SwapEvent::Started`] comes first.
    Off,
    Idle,
    /// Loads what was committed; then switches to it.
    Starting {
        tries: u32,
    },
    /// Work for the want, up to the switch.
    Fetching {
        tries: u32,
    },
    Verifying,
    Staging,
    Waiting,
    Loading,
    Testing,
    /// To the new version; the mark is durable.
    Switching,
    Trial {
        since_ms: u64,
    },
    /// Golden inputs, at the end of a trial that saw too few requests.
    Probing,
    /// Loads what was committed, where the new version took its place in
    /// memory; then switches to it.
    Restoring {
        tries: u32,
    },
    /// Switches to what was committed.
    Returning {
        tries: u32,
    },
    /// Loads the version before, to roll back to it.
    LoadingBack,
}

/// One model on one device.
#[derive(Debug)]
pub struct Swap {
    ledger: SwapLedger,
    doing: Doing,
    clock: Clock,
    now: Now,
    /// What answers requests.
    running: Option<Version>,
    /// Versions in memory.
    loaded: Vec<Version>,
    /// Bytes of memory that versions take, of those that said so.
    sizes: BTreeMap<Version, u64>,
    /// Versions whose bytes this machine named, and those that it doesn't name
    /// any more.
    held: BTreeSet<Version>,
    freed: BTreeSet<Version>,
    memory_max: Option<u64>,
    /// The work under way, and when it is given up or taken up again.
    op: u64,
    busy: bool,
    until_ms: Option<u64>,
    /// An operator here wants the version before.
    back: Option<String>,
    /// How the trial's version does, and how the one before did.
    new: Health,
    old: Health,
    sequence: u64,
    records: usize,
    out: Vec<SwapAction>,
}

impl Swap {
    /// Takes a model up from its journal, which may be empty.
    ///
    /// `memory_max` are the bytes that its versions may take together; the old
    /// one is unloaded first where both don't fit.
    #[must_use]
    pub fn recover(records: impl IntoIterator<Item = SwapRecord>, memory_max: Option<u64>) -> Self {
        let mut ledger = SwapLedger::default();
        let mut count = 0;
        for record in records {
            ledger.apply(&record);
            count += 1;
        }
        Self {
            ledger,
            doing: Doing::Off,
            clock: Clock::default(),
            now: Now { monotonic_ms: 0, unix_ms: None },
            running: None,
            loaded: Vec::new(),
            sizes: BTreeMap::new(),
            held: BTreeSet::new(),
            freed: BTreeSet::new(),
            memory_max,
            op: 0,
            busy: false,
            until_ms: None,
            back: None,
            new: Health::default(),
            old: Health::default(),
            sequence: 0,
            records: count,
            out: Vec::new(),
        }
    }

    /// The version that was committed last: what runs, or will once it is
    /// loaded.
    #[must_use]
    pub fn current(&self) -> Option<&Version> {
        self.ledger.current.as_ref()
    }

    /// The way back: the version that was committed before.
    #[must_use]
    pub fn previous(&self) -> Option<&Version> {
        self.ledger.previous.as_ref()
    }

    /// The version on its way in, if there is one.
    #[must_use]
    pub fn wanted(&self) -> Option<&Version> {
        self.ledger.want.as_ref().filter(|_| self.ledger.fate != Fate::Over).map(|want| &want.version)
    }

    /// Versions whose bytes must stay on the disk.
    #[must_use]
    pub fn kept(&self) -> BTreeSet<Version> {
        let named = [self.current(), self.previous(), self.wanted(), self.running()];
        named.into_iter().flatten().chain(&self.loaded).chain(&self.freed).cloned().collect()
    }

    /// What answers requests now.
    #[must_use]
    pub fn running(&self) -> Option<&Version> {
        self.running.as_ref()
    }

    /// Whether that is a version on trial.
    #[must_use]
    pub fn on_trial(&self) -> bool {
        self.running.is_some() && self.running != self.ledger.current
    }

    /// What it says of itself; each one has a number of its own, and is to be
    /// sent again every half minute.
    pub fn report(&mut self) -> Report {
        self.sequence += 1;
        Report {
            session: self.ledger.session,
            sequence: self.sequence,
            running: self.running.clone(),
            confirmed: self.running.is_some() && !self.on_trial(),
            ask: self.ledger.want.as_ref().map(|want| want.ask),
            phase: match self.doing {
                Doing::Off | Doing::Starting { .. } => Phase::Starting,
                Doing::Idle => Phase::Idle,
                Doing::Fetching { .. } => Phase::Fetching,
                Doing::Verifying => Phase::Verifying,
                Doing::Staging => Phase::Staging,
                Doing::Waiting => Phase::Waiting,
                Doing::Loading => Phase::Loading,
                Doing::Testing => Phase::Testing,
                Doing::Switching => Phase::Switching,
                Doing::Trial { .. } | Doing::Probing => Phase::Trial,
                Doing::Restoring { .. } | Doing::Returning { .. } | Doing::LoadingBack => Phase::Returning,
            },
            failed: self.ledger.failed.clone(),
        }
    }

    /// One step.
    pub fn step(&mut self, now: Now, event: SwapEvent) -> Vec<SwapAction> {
        let _passed = self.clock.advance(now);
        self.now = now;
        match event {
            SwapEvent::Started { installed } => {
                if self.doing == Doing::Off {
                    self.start(installed);
                }
            }
            _ if self.doing == Doing::Off => {}
            SwapEvent::Want(want) => self.want(*want),
            SwapEvent::Done { op, result } => {
                if self.busy && op == self.op {
                    (self.busy, self.until_ms) = (false, None);
                    self.done(result.map_err(|reason| plain(&reason)));
                }
            }
            SwapEvent::Health { version, health } => self.health(&version, health),
            SwapEvent::Broke { version, reason } => self.broke(&version, &reason),
            SwapEvent::RollBack { reason } => self.roll_back(&reason),
            SwapEvent::Tick => {}
        }
        if self.doing != Doing::Off {
            self.tick();
        }
        self.actions()
    }

    /// The monotonic time, in milliseconds, at which it wants
    /// [`SwapEvent::Tick`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let look = || {
            let window = self.ledger.want.as_ref()?.limits.window?;
            let change = self.now.unix_ms.map_or(LOOK_MS, |unix_ms| window.until_change_ms(unix_ms));
            Some(self.clock.elapsed_ms() + change.clamp(1, LOOK_MS))
        };
        let window = if self.doing == Doing::Waiting { look() } else { None };
        let trial = match self.doing {
            Doing::Trial { since_ms } => Some(since_ms + self.terms().window_s.ms()),
            _ => None,
        };
        self.until_ms.into_iter().chain(window).chain(trial).min().map(|at| self.clock.monotonic_ms(at))
    }

    // Wants.

    fn want(&mut self, want: Want) {
        let newest = self.ledger.want.as_ref().map(|want| want.ask);
        if newest.is_some_and(|newest| want.ask < newest) {
            return;
        }
        if newest == Some(want.ask) {
            return self.tell();
        }
        let adopts = self.on_trial()
            && self.running.as_ref() == Some(&want.version)
            && want.kind == Kind::Update
            && self.ledger.fate == Fate::Trial
            && matches!(self.doing, Doing::Trial { .. } | Doing::Probing);
        let ask = want.ask;
        self.keep(SwapRecord::Wanted(Box::new(want)));
        if adopts {
            // The same version, under a newer name: its trial goes on.
            self.keep(SwapRecord::Trial { ask });
            return self.tell();
        }
        self.leave();
        self.tell();
    }

    /// Leaves the work for an earlier want; what is wanted now follows when
    /// what was committed answers requests.
    fn leave(&mut self) {
        match self.doing {
            // A switch is atomic and short: what follows is decided behind it.
            Doing::Off | Doing::Switching | Doing::Starting { .. } | Doing::Returning { .. } => {}
            Doing::Restoring { .. } if self.busy => {}
            // Where what was committed can't be loaded, something newer may.
            Doing::Idle | Doing::Restoring { .. } => {
                self.until_ms = None;
                self.pursue();
            }
            Doing::Fetching { .. }
            | Doing::Verifying
            | Doing::Staging
            | Doing::Waiting
            | Doing::Loading
            | Doing::Testing
            | Doing::Trial { .. }
            | Doing::Probing
            | Doing::LoadingBack => {
                self.stop();
                self.restore();
            }
        }
    }

    /// Begins what is wanted, if it isn't so already. Only when idle.
    fn pursue(&mut self) {
        self.doing = Doing::Idle;
        if self.back.is_some() {
            return self.load_back();
        }
        let Some(want) = self.ledger.want.clone().filter(|_| self.ledger.fate == Fate::Open) else { return };
        if self.running.as_ref() == Some(&want.version) && !self.on_trial() {
            self.keep(SwapRecord::Committed { ask: want.ask });
            return self.tell();
        }
        if want.kind == Kind::Rollback && self.ledger.previous.as_ref() == Some(&want.version) {
            return self.load_back();
        }
        if self.ledger.begun >= BEGUN_MAX {
            return self.fail(&format!("it was interrupted {BEGUN_MAX} times before it was loaded"));
        }
        self.keep(SwapRecord::Begun { ask: want.ask });
        self.fetch(0);
    }

    fn fetch(&mut self, tries: u32) {
        let Some(want) = self.ledger.want.clone() else { return };
        self.doing = Doing::Fetching { tries };
        self.work(Work::Fetch { version: want.version, limits: want.limits }, None);
    }

    // Starts.

    fn start(&mut self, installed: Option<Version>) {
        self.keep(SwapRecord::Session { session: self.ledger.session + 1 });
        if let (None, None, Some(version)) = (&self.ledger.current, &self.ledger.want, installed) {
            self.keep(SwapRecord::Installed { version });
        }
        let interrupted = match self.ledger.fate {
            Fate::Open | Fate::Over => None,
            Fate::Tried => Some("the device restarted while the version was loaded or tested"),
            Fate::Trial => Some("the device restarted while the version was on trial"),
        };
        if let (Some(reason), Some(ask)) = (interrupted, self.ask()) {
            self.keep(SwapRecord::Failed { ask, reason: reason.to_owned() });
            self.say(format!("{} isn't taken up: {reason}", self.wanted_name()));
        }
        self.load_current(0);
    }

    fn load_current(&mut self, tries: u32) {
        self.doing = Doing::Starting { tries };
        match self.ledger.current.clone() {
            Some(version) => self.load(version),
            None => self.pursue(),
        }
    }

    // Work.

    fn done(&mut self, result: Result<u64, String>) {
        match (self.doing.clone(), result) {
            (Doing::Off | Doing::Idle | Doing::Waiting | Doing::Trial { .. }, _) => {}
            (Doing::Starting { .. } | Doing::Restoring { .. }, Ok(bytes)) => {
                if let Some(version) = self.ledger.current.clone() {
                    self.has_loaded(&version, bytes);
                }
                self.switch_back(0);
            }
            (Doing::Starting { tries }, Err(reason)) => self.start_failed(tries, &reason),
            (Doing::Restoring { tries }, Err(reason)) => {
                self.say(format!("{} can't be loaded, and is tried again: {reason}", self.current_name()));
                if self.ledger.fate == Fate::Open {
                    return self.pursue();
                }
                self.pause(tries);
                self.doing = Doing::Restoring { tries: tries + 1 };
            }
            (Doing::Returning { .. }, Ok(_)) => self.has_returned(),
            (Doing::Returning { tries }, Err(reason)) => {
                self.say(format!("{} can't be switched to, and is tried again: {reason}", self.current_name()));
                self.pause(tries);
                self.doing = Doing::Returning { tries: tries + 1 };
            }
            (Doing::Fetching { .. }, Ok(_)) => {
                self.doing = Doing::Verifying;
                self.work_on(|version| Work::Verify { version }, None);
            }
            (Doing::Fetching { tries }, Err(_)) if tries + 1 < TRIES => {
                self.pause(tries);
                self.doing = Doing::Fetching { tries: tries + 1 };
            }
            (Doing::Verifying, Ok(_)) => {
                self.doing = Doing::Staging;
                self.work_on(|version| Work::Stage { version }, None);
            }
            (Doing::Staging, Ok(bytes)) => {
                if let Some(version) = self.wanted().cloned() {
                    self.sizes.insert(version, bytes);
                }
                self.doing = Doing::Waiting;
                self.enter();
            }
            (Doing::Loading, Ok(bytes)) => {
                if let Some(version) = self.wanted().cloned() {
                    self.has_loaded(&version, bytes);
                }
                self.doing = Doing::Testing;
                let limit_ms = self.terms().self_test_s.ms();
                self.work_on(|version| Work::SelfTest { version, limit_ms }, Some(limit_ms));
            }
            (Doing::Testing, Ok(_)) => {
                let Some(ask) = self.ask() else { return };
                // Durable before the switch: whatever runs behind a crash, this
                // says that it hasn't proved itself.
                self.keep(SwapRecord::Trial { ask });
                self.doing = Doing::Switching;
                self.work_on(|version| Work::Switch { version }, None);
            }
            (Doing::Switching, Ok(_)) => self.has_switched(),
            (Doing::Probing, Ok(_)) => self.commit(),
            (Doing::LoadingBack, Ok(bytes)) => {
                if let Some(version) = self.ledger.previous.clone() {
                    self.has_loaded(&version, bytes);
                }
                self.has_loaded_back();
            }
            (Doing::LoadingBack, Err(reason)) => {
                let by_hand = self.back.take().is_some();
                let text = format!("the version before can't be loaded: {reason}");
                if by_hand {
                    self.say(text);
                    return self.restore();
                }
                self.fail(&text);
            }
            (
                Doing::Fetching { .. }
                | Doing::Verifying
                | Doing::Staging
                | Doing::Loading
                | Doing::Testing
                | Doing::Switching
                | Doing::Probing,
                Err(reason),
            ) => {
                let what = match self.doing {
                    Doing::Fetching { .. } => "fetching it",
                    Doing::Verifying => "verifying it",
                    Doing::Staging => "staging it",
                    Doing::Loading => "loading it",
                    Doing::Testing => "its self-test",
                    Doing::Switching => "switching to it",
                    _ => "its trial",
                };
                // A want that was left meanwhile has failed by that.
                if self.doing == Doing::Switching && self.ledger.fate != Fate::Trial {
                    return self.restore();
                }
                self.fail(&format!("{what} failed: {reason}"));
            }
        }
    }

    /// Loads the new version, once its window is open.
    fn enter(&mut self) {
        let Some(want) = self.ledger.want.clone() else { return };
        if want.limits.window.is_some_and(|window| !window.is_open(self.now.unix_ms)) {
            return;
        }
        let needs = self.sizes.get(&want.version).copied().unwrap_or(0);
        if let Some(max) = self.memory_max.filter(|max| needs > *max) {
            return self.fail(&format!("it takes {needs} bytes of memory; {max} may be taken"));
        }
        self.keep(SwapRecord::Tried { ask: want.ask });
        self.doing = Doing::Loading;
        self.load(want.version);
    }

    fn has_switched(&mut self) {
        let Some(want) = self.ledger.want.clone() else { return };
        // What was switched to is what the mark named; something else may be
        // wanted since.
        self.running = self.loaded.last().cloned();
        if self.ledger.fate != Fate::Trial || self.running.as_ref() != Some(&want.version) {
            return self.restore();
        }
        self.new = Health::default();
        self.doing = Doing::Trial { since_ms: self.clock.elapsed_ms() };
        self.say(format!("{} runs on trial", want.version));
        self.tell();
    }

    fn commit(&mut self) {
        let Some(ask) = self.ask() else { return };
        self.keep(SwapRecord::Committed { ask });
        self.doing = Doing::Idle;
        self.unload_all_but_running();
        self.say(format!("{} has proved itself, and stays", self.current_name()));
        self.tell();
        self.pursue();
    }

    /// The want has failed: back to what was committed.
    fn fail(&mut self, reason: &str) {
        let Some(ask) = self.ask() else { return };
        self.say(format!("{} isn't taken up: {reason}", self.wanted_name()));
        self.keep(SwapRecord::Failed { ask, reason: plain(reason) });
        self.restore();
    }

    // Trials.

    fn health(&mut self, version: &Version, health: Health) {
        if health.check().is_err() {
            return;
        }
        let on_trial = self.on_trial() && self.running.as_ref() == Some(version);
        if on_trial && matches!(self.doing, Doing::Trial { .. } | Doing::Probing) {
            self.new = health;
            if let Some(reason) = self.terms().breach(&self.new, &self.old, false) {
                self.stop();
                self.fail(&reason);
            }
        } else if self.ledger.current.as_ref() == Some(version) {
            self.old = health;
        }
    }

    fn broke(&mut self, version: &Version, reason: &str) {
        let on_trial = self.on_trial() && self.running.as_ref() == Some(version);
        if on_trial && matches!(self.doing, Doing::Trial { .. } | Doing::Probing) {
            self.stop();
            return self.fail(&format!("it broke: {}", plain(reason)));
        }
        self.say(format!("{version} broke: {}", plain(reason)));
    }

    fn tick(&mut self) {
        let elapsed = self.clock.elapsed_ms();
        if let Doing::Trial { since_ms } = self.doing
            && elapsed >= since_ms + self.terms().window_s.ms()
        {
            return match self.terms().breach(&self.new, &self.old, true) {
                Some(reason) => self.fail(&reason),
                None if self.terms().has_run(&self.new) => self.commit(),
                None => {
                    self.doing = Doing::Probing;
                    let limit_ms = self.terms().self_test_s.ms();
                    self.work_on(|version| Work::Probe { version, limit_ms }, Some(limit_ms));
                }
            };
        }
        if self.doing == Doing::Waiting {
            return self.enter();
        }
        if self.until_ms.is_none_or(|until| elapsed < until) {
            return;
        }
        self.until_ms = None;
        if self.busy {
            self.stop();
            return self.done(Err("it took too long".into()));
        }
        match self.doing.clone() {
            Doing::Starting { tries } => self.load_current(tries),
            Doing::Fetching { tries } => self.fetch(tries),
            Doing::Restoring { tries } => {
                self.restore();
                if matches!(self.doing, Doing::Restoring { .. }) {
                    self.doing = Doing::Restoring { tries };
                }
            }
            Doing::Returning { tries } => self.switch_back(tries),
            _ => {}
        }
    }

    // Helpers.

    fn ask(&self) -> Option<Ask> {
        self.ledger.want.as_ref().map(|want| want.ask)
    }

    fn terms(&self) -> Terms {
        self.ledger.want.as_ref().map_or_else(Terms::default, |want| want.terms.clone())
    }

    fn wanted_name(&self) -> String {
        self.ledger.want.as_ref().map_or("nothing".into(), |want| want.version.to_string())
    }

    fn current_name(&self) -> String {
        self.ledger.current.as_ref().map_or("nothing".into(), Version::to_string)
    }

    fn has_loaded(&mut self, version: &Version, bytes: u64) {
        self.loaded.retain(|loaded| loaded != version);
        self.loaded.push(version.clone());
        self.sizes.insert(version.clone(), bytes);
    }

    /// Loads a version beside what is in memory, or in its place where both
    /// don't fit, or aren't known to.
    fn load(&mut self, version: Version) {
        let of = |version: &Version| self.sizes.get(version).copied().filter(|bytes| *bytes > 0);
        let sum = self.loaded.iter().chain([&version]).try_fold(0u64, |sum, v| of(v)?.checked_add(sum));
        let fits = self.memory_max.is_none_or(|max| sum.is_some_and(|sum| sum <= max));
        let mut unload_first = Vec::new();
        if !fits {
            unload_first = std::mem::take(&mut self.loaded);
            self.running = None;
        }
        let limit_ms = self.terms().load_s.ms();
        self.work(Work::Load { version, unload_first }, Some(limit_ms));
    }

    fn unload_all_but_running(&mut self) {
        let running = self.running.clone();
        let (kept, rest): (Vec<Version>, Vec<Version>) =
            std::mem::take(&mut self.loaded).into_iter().partition(|version| Some(version) == running.as_ref());
        self.loaded = kept;
        self.out.extend(rest.into_iter().map(|version| SwapAction::Unload { version }));
    }

    fn work_on(&mut self, work: impl FnOnce(Version) -> Work, limit_ms: Option<u64>) {
        if let Some(want) = &self.ledger.want {
            let work = work(want.version.clone());
            self.work(work, limit_ms);
        }
    }

    fn work(&mut self, work: Work, limit_ms: Option<u64>) {
        self.op += 1;
        self.busy = true;
        self.until_ms = limit_ms.map(|limit| self.clock.elapsed_ms() + limit);
        self.out.push(SwapAction::Do { op: self.op, work });
    }

    /// Gives up the work under way.
    fn stop(&mut self) {
        if self.busy {
            self.out.push(SwapAction::Stop { op: self.op });
        }
        (self.busy, self.until_ms) = (false, None);
    }

    fn pause(&mut self, tries: u32) {
        let pause_ms = (PAUSE_MS << tries.min(16)).min(PAUSE_MAX_MS);
        self.until_ms = Some(self.clock.elapsed_ms() + pause_ms);
    }

    /// Versions whose bytes may go: nothing names them any more, and a record
    /// lies behind the one that let them go. A disk that forgets its last record
    /// thus still has all that the record before it names.
    fn released(&mut self, recorded: bool) -> Vec<Version> {
        let mut released = Vec::new();
        if recorded {
            let freed = std::mem::take(&mut self.freed);
            let kept = self.kept();
            released.extend(freed.into_iter().filter(|version| !kept.contains(version)));
        }
        let kept = self.kept();
        let held = std::mem::replace(&mut self.held, kept.clone());
        self.freed.extend(held.into_iter().filter(|version| !kept.contains(version) && !released.contains(version)));
        self.sizes.retain(|version, _| kept.contains(version));
        released
    }

    fn keep(&mut self, record: SwapRecord) {
        self.ledger.apply(&record);
        self.records += 1;
        self.out.push(SwapAction::Keep(record));
    }

    fn say(&mut self, text: String) {
        self.out.push(SwapAction::Notify { text });
    }

    fn tell(&mut self) {
        let report = self.report();
        self.out.push(SwapAction::Report(report));
    }

    /// What the step gives out: records first, and the last report only.
    fn actions(&mut self) -> Vec<SwapAction> {
        let is_report = |action: &SwapAction| matches!(action, SwapAction::Report(_));
        let out = std::mem::take(&mut self.out);
        let reports = out.iter().filter(|action| is_report(action)).count();
        let (mut records, rest): (Vec<SwapAction>, Vec<SwapAction>) = out
            .into_iter()
            .filter(|action| !is_report(action))
            .partition(|action| matches!(action, SwapAction::Keep(_)));
        let recorded = !records.is_empty();
        if self.records > RECORDS_MAX {
            records.push(SwapAction::Keep(SwapRecord::Snapshot(Box::new(self.ledger.clone()))));
            self.records = 1;
        }
        records.extend(rest);
        records.extend(self.released(recorded).into_iter().map(|version| SwapAction::Release { version }));
        if reports > 0 {
            let report = self.report();
            records.push(SwapAction::Report(report));
        }
        records
    }
}

//! The orchestrator's machine: which device shall run which version.
//!
//! No I/O and no clock. Start at [`Fleet::step`]; what it must not forget is in
//! [`Ledger`], which [`Record`]s make.

mod event;
mod index;
mod ledger;
mod progress;
mod waves;

use std::collections::{BTreeMap, BTreeSet};

pub use event::{Action, Command, Event, Outcome};
pub use ledger::{Closed, Fact, Ledger, Record, Stop};
pub use progress::{Counts, GroupProgress, Progress, Standing};

use index::{CLASSES, Class, Index};
use ledger::{Changed, Stage, State};

use super::gates::Measured;
use super::message::{Ask, Attributes, Kind, Limits, Phase, Report, Want};
use super::spec::Other;
use super::time::Clock;
use super::words::{NAME_BYTES_MAX, plain};
use super::{Health, Now, RolloutError, Spec, Verdict, Version};

/// Devices that one rollout looks at: those that one node lists.
pub const DEVICES_MAX: usize = 65_536;

/// A want that nobody answers is said again after so long.
const RESEND_MS: u64 = 15_000;

/// Measures of all devices are put together at most this often.
const JUDGE_MS: u64 = 1_000;

/// While something is waited for, that time passed is a record this often.
const CHECKPOINT_MS: u64 = 30_000;

/// A window is looked at this often: clocks are set.
const LOOK_MS: u64 = 60_000;

/// What is known of a device, until this process ends.
#[derive(Debug, Default)]
struct Seen {
    present: bool,
    attributes: Attributes,
    report: Report,
    new: Samples,
    old: Samples,
    /// What was said of it to people, so that it is said once.
    said: Option<String>,
}

/// How a version does on a device: counts of its start, and of the starts
/// before.
#[derive(Debug, Default)]
struct Samples {
    session: u64,
    current: Health,
    past: Health,
}

impl Samples {
    fn note(&mut self, session: u64, health: Health) {
        if session > self.session {
            let before = std::mem::take(&mut self.current);
            self.past.add(&before);
            self.session = session;
        }
        // Counts only grow: fewer runs are an older message.
        if session == self.session && health.runs >= self.current.runs {
            self.current = health;
        }
    }

    fn total(&self) -> Health {
        let mut total = self.current.clone();
        self.add_past(&mut total);
        total
    }

    fn add_to(&self, sum: &mut Health) {
        sum.add(&self.current);
        self.add_past(sum);
    }

    fn add_past(&self, sum: &mut Health) {
        if self.past.runs > 0 {
            sum.add(&self.past);
        }
    }

    fn runs(&self) -> u64 {
        self.past.runs.saturating_add(self.current.runs)
    }
}

/// One rollout.
#[derive(Debug)]
pub struct Fleet {
    ledger: Ledger,
    index: Index,
    clock: Clock,
    /// Milliseconds of the clock's with the window open.
    open_ms: u64,
    now: Now,
    seen: BTreeMap<String, Seen>,
    /// Edges that have the new version's bytes, and those that were told to get
    /// them.
    holders: BTreeSet<String>,
    fetching: BTreeSet<String>,
    resend_ms: u64,
    judged_ms: u64,
    kept_ms: u64,
    /// When this process began, by the machine's clock.
    began_ms: u64,
    /// Records since the journal was begun or replaced.
    records: usize,
    /// Groups whose measures changed since they were judged, and the verdicts.
    changed: BTreeSet<usize>,
    verdicts: BTreeMap<usize, Verdict>,
    /// What groups lack of the old version to compare with.
    lacks: BTreeMap<usize, Option<String>>,
    waits_for: Option<String>,
    /// What the group under way was said to wait for, by group and wave.
    said_hold: Option<(usize, Option<usize>)>,
    out: Vec<Action>,
}

/// Whether a rollout may begin beside those of the same model that are not
/// over. The rollouts that it takes the place of are to be told
/// [`Command::Supersede`].
///
/// # Errors
/// [`RolloutError::Busy`] unless the specification says that it supersedes.
pub fn admit<'a>(spec: &Spec, others: impl IntoIterator<Item = &'a Fleet>) -> Result<Vec<u64>, RolloutError> {
    let mut superseded = Vec::new();
    for other in others.into_iter().filter(|other| other.spec().model == spec.model) {
        match other.outcome() {
            Some(Outcome::Superseded) => {}
            None if !spec.supersede => {
                return Err(RolloutError::Busy { rollout: other.rollout(), model: spec.model.clone() });
            }
            // One that is over still looks after devices that come late.
            _ => superseded.push(other.rollout()),
        }
    }
    Ok(superseded)
}

impl Fleet {
    /// Begins a rollout, whose number is greater than that of every earlier
    /// one.
    ///
    /// # Errors
    /// [`RolloutError`] for a specification that can't be run.
    pub fn new(spec: Spec, rollout: u64, now: Now) -> Result<(Self, Vec<Action>), RolloutError> {
        spec.check()?;
        let mut fleet = Self::of(Ledger::new(rollout, spec.clone()), 0, 0);
        let _passed = fleet.clock.advance(now);
        fleet.now = now;
        fleet.note(Fact::Started { rollout, spec: Box::new(spec) });
        let text = format!(
            "rollout {rollout} of `{}` begins: {} to {}",
            fleet.ledger.spec.model, fleet.ledger.spec.from, fleet.ledger.spec.to
        );
        fleet.say(text);
        let actions = fleet.actions();
        Ok((fleet, actions))
    }

    /// Takes a rollout up again from its journal; none from an empty one.
    /// Devices count as away until they are seen again.
    ///
    /// # Errors
    /// [`RolloutError::Journal`] for records that no rollout wrote.
    pub fn recover(records: impl IntoIterator<Item = Record>) -> Result<Option<Self>, RolloutError> {
        let mut ledger: Option<Ledger> = None;
        let (mut at_ms, mut open_ms, mut count) = (0, 0, 0);
        for record in records {
            count += 1;
            (at_ms, open_ms) = (record.at_ms, record.open_ms);
            match (&mut ledger, &record.fact) {
                (_, Fact::Started { rollout, spec }) => {
                    spec.check()?;
                    ledger = Some(Ledger::new(*rollout, (**spec).clone()));
                }
                (Some(ledger), fact) if ledger.knows(fact) => drop(ledger.apply(&record)),
                (None, Fact::Snapshot(kept)) if kept.knows(&record.fact) => {
                    kept.spec.check()?;
                    ledger = Some((**kept).clone());
                }
                (_, fact) => {
                    let fact = plain(&format!("{fact:?}"));
                    return Err(RolloutError::Journal(format!("record {count} names what isn't there: {fact}")));
                }
            }
        }
        Ok(ledger.map(|ledger| {
            let mut fleet = Self::of(ledger, at_ms, open_ms);
            fleet.records = count;
            fleet.changed = (0..fleet.ledger.groups.len()).collect();
            fleet
        }))
    }

    fn of(ledger: Ledger, at_ms: u64, open_ms: u64) -> Self {
        Self {
            index: Index::of(&ledger, |_| false),
            ledger,
            clock: Clock::from(at_ms),
            open_ms,
            now: Now { monotonic_ms: 0, unix_ms: None },
            seen: BTreeMap::new(),
            holders: BTreeSet::new(),
            fetching: BTreeSet::new(),
            resend_ms: 0,
            judged_ms: 0,
            kept_ms: at_ms,
            began_ms: at_ms,
            records: 0,
            changed: BTreeSet::new(),
            verdicts: BTreeMap::new(),
            lacks: BTreeMap::new(),
            waits_for: None,
            said_hold: None,
            out: Vec::new(),
        }
    }

    /// Its number.
    #[must_use]
    pub fn rollout(&self) -> u64 {
        self.ledger.rollout
    }

    /// What it shall do.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.ledger.spec
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        match self.ledger.stage {
            Stage::Finished(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        progress::of(&self.ledger, &self.index, self.waits_for.clone())
    }

    /// Devices with their group's name and what they are at in a word (and
    /// why, for those that failed).
    pub fn devices(&self) -> impl Iterator<Item = (&str, &str, &'static str, Option<&str>)> {
        self.ledger.members.iter().map(|(device, member)| {
            let group = self.ledger.spec.groups[member.group].name.as_str();
            let (word, reason) = match &member.state {
                State::Waiting => ("waiting", None),
                State::Asked { .. } => ("asked", None),
                State::Confirmed { .. } => ("confirmed", None),
                State::Failed { reason } => ("failed", Some(reason.as_str())),
                State::Returning => ("returning", None),
                State::Returned => ("returned", None),
            };
            (device.as_str(), group, word, reason)
        })
    }

    /// One step.
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Action> {
        let passed = self.clock.advance(now);
        if self.window_is_open() {
            self.open_ms += passed;
        }
        self.now = now;
        match event {
            Event::Seen { device, attributes, report } => self.is_seen(device, attributes, report.checked()),
            Event::Lost { device } => {
                if let Some(seen) = self.seen.get_mut(&device) {
                    seen.present = false;
                }
                self.refresh(&device);
            }
            Event::Report { device, report } => {
                if let Some(seen) = self.seen.get_mut(&device)
                    && report.is_after(seen.report.session, seen.report.sequence)
                {
                    seen.report = report.checked();
                    self.heard(&device);
                }
            }
            Event::Health { device, session, version, health } => self.samples(&device, session, &version, health),
            Event::Holds { edge, version, holds } => {
                if version == self.ledger.spec.to {
                    self.holds(edge, holds);
                }
            }
            Event::Command(command) => self.command(command),
            Event::Tick => {}
        }
        if self.outcome() != Some(Outcome::Superseded) {
            self.advance();
            self.say_again();
            self.checkpoint();
        }
        self.actions()
    }

    /// The monotonic time, in milliseconds, at which it wants [`Event::Tick`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        if self.outcome() == Some(Outcome::Superseded) {
            return None;
        }
        let elapsed = self.clock.elapsed_ms();
        let mut times = self.deadlines();
        // That time passes is worth a record only while something waits for it.
        if !times.is_empty() {
            times.push((self.kept_ms + CHECKPOINT_MS).max(elapsed + 1));
        }
        if self.works() {
            times.push(self.resend_ms);
        }
        let next = times.into_iter().filter(|at| *at > elapsed).min();
        let look = self.ledger.spec.limits.window.filter(|_| !self.is_idle()).map(|window| {
            let change = self.now.unix_ms.map_or(LOOK_MS, |unix_ms| window.until_change_ms(unix_ms));
            elapsed + change.clamp(1, LOOK_MS)
        });
        next.into_iter().chain(look).min().map(|at| self.clock.monotonic_ms(at))
    }

    /// Whether any device is at work.
    fn works(&self) -> bool {
        let busy = |group| self.index.present(group, Class::Asked) + self.index.present(group, Class::Returning) > 0;
        (0..self.ledger.groups.len()).any(busy)
    }

    /// Whether nothing is to be done but for devices that come late.
    fn is_idle(&self) -> bool {
        let due = |group| self.index.count(group, Class::Due) > 0;
        self.outcome().is_some() && !self.works() && !(0..self.ledger.groups.len()).any(due)
    }

    fn window_is_open(&self) -> bool {
        self.ledger.spec.limits.window.is_none_or(|window| window.is_open(self.now.unix_ms))
    }

    // Facts.

    fn note(&mut self, fact: Fact) {
        let record = Record { at_ms: self.clock.elapsed_ms(), open_ms: self.open_ms, fact };
        match self.ledger.apply(&record) {
            Changed::Some(devices) => devices.iter().for_each(|device| self.refresh(device)),
            Changed::All => {
                let seen = &self.seen;
                self.index = Index::of(&self.ledger, |device| seen.get(device).is_some_and(|seen| seen.present));
            }
        }
        self.kept_ms = record.at_ms;
        self.records += 1;
        self.out.push(Action::Keep(record));
    }

    /// A device's state or presence may have changed.
    fn refresh(&mut self, device: &str) {
        let present = self.seen.get(device).is_some_and(|seen| seen.present);
        let member = self.ledger.members.get(device);
        if let Some(member) = member {
            let _new = self.changed.insert(member.group);
        }
        self.index.set(device, member, present);
    }

    fn say(&mut self, text: String) {
        self.out.push(Action::Notify { text });
    }

    /// Says something of a device, once.
    fn say_of(&mut self, device: &str, text: String) {
        if let Some(seen) = self.seen.get_mut(device) {
            if seen.said.as_ref() == Some(&text) {
                return;
            }
            seen.said = Some(text.clone());
        }
        self.say(text);
    }

    /// What the step gives out: records first.
    fn actions(&mut self) -> Vec<Action> {
        let (mut records, rest): (Vec<Action>, Vec<Action>) =
            std::mem::take(&mut self.out).into_iter().partition(|action| matches!(action, Action::Keep(_)));
        // A journal is as long as its devices are many, not as it is old.
        if self.records > 4 * self.ledger.members.len() + 1_024 {
            let fact = Fact::Snapshot(Box::new(self.ledger.clone()));
            let record = Record { at_ms: self.clock.elapsed_ms(), open_ms: self.open_ms, fact };
            records.push(Action::Keep(record));
            self.records = 1;
        }
        records.extend(rest);
        records
    }

    fn checkpoint(&mut self) {
        let elapsed = self.clock.elapsed_ms();
        let waits = !self.deadlines().is_empty();
        if waits && elapsed >= self.kept_ms + CHECKPOINT_MS {
            self.note(Fact::Elapsed);
        }
    }

    // Devices.

    fn is_seen(&mut self, device: String, attributes: Attributes, report: Report) {
        if device.is_empty() || device.len() > NAME_BYTES_MAX {
            return self.say("a device whose name is empty or too long is left out".into());
        }
        if let Err(error) = attributes.check() {
            return self.say(format!("device `{device}` is left out: {error}"));
        }
        if self.seen.len() >= DEVICES_MAX && !self.seen.contains_key(&device) {
            return self.say(format!("device `{device}` is left out: there are {DEVICES_MAX} devices already"));
        }
        let seen = self.seen.entry(device.clone()).or_default();
        (seen.present, seen.attributes, seen.report) = (true, attributes, report);
        self.refresh(&device);
        self.heard(&device);
    }

    /// Puts a device into its group, if it has none and the group takes it.
    fn place(&mut self, device: &str) {
        let Some(seen) = self.seen.get(device) else { return };
        if seen.report.phase == Phase::Starting && seen.report.running.is_none() {
            return;
        }
        let spec = &self.ledger.spec;
        let Some(group) = spec.group_of(device, &seen.attributes) else { return };
        let state = &self.ledger.groups[group];
        let begun = state.wave.is_some() || state.closed.is_some();
        if begun && !spec.groups[group].dynamic {
            return;
        }
        let running = seen.report.running.clone();
        let known = running.as_ref() == Some(&spec.from) || running.as_ref() == Some(&spec.to);
        if known || spec.other == Other::Update {
            self.note(Fact::Placed { device: device.to_owned(), group });
            return self.join(device, group);
        }
        if !self.ledger.others.contains(device) {
            self.note(Fact::Other { device: device.to_owned() });
            let runs = running.map_or("no version of it".to_owned(), |version| version.to_string());
            self.say(format!("device `{device}` runs {runs}, which the rollout doesn't name; it is left as it is"));
        }
    }

    /// Puts a device that came late into the waves that have begun, if they
    /// have room.
    fn join(&mut self, device: &str, group: usize) {
        let (spec, state) = (&self.ledger.spec.groups[group], &self.ledger.groups[group]);
        let members = self.index.members(group);
        let in_waves = members - self.index.count(group, Class::Pool);
        let room = match (state.closed, state.wave) {
            (Some(Closed::Through | Closed::WithError), _) => true,
            (Some(Closed::Skipped | Closed::RolledBack), _) | (None, None) => false,
            (None, Some(wave)) => in_waves < spec.asked_by(wave, members),
        };
        if room && !self.goes_back(group) {
            self.note(Fact::Joined { device: device.to_owned() });
        }
    }

    /// Whether the group's devices shall run the old version, as far as is
    /// decided.
    fn goes_back(&self, group: usize) -> bool {
        match &self.ledger.stage {
            Stage::Returning { group: None, .. } | Stage::Finished(Outcome::RolledBack | Outcome::Aborted) => true,
            Stage::Returning { group: Some(of), .. } if *of == group => true,
            _ => self.ledger.groups[group].closed == Some(Closed::RolledBack),
        }
    }

    /// Takes note of what a device said last.
    fn heard(&mut self, device: &str) {
        if self.outcome() == Some(Outcome::Superseded) {
            return;
        }
        if !self.ledger.members.contains_key(device) {
            self.place(device);
        }
        let (Some(seen), Some(member)) = (self.seen.get(device), self.ledger.members.get(device)) else { return };
        let (spec, report, group) = (&self.ledger.spec, &seen.report, member.group);
        let asked = Ask { rollout: self.ledger.rollout, number: member.number };
        let heard = report.ask == Some(asked);
        let failed =
            report.failed.as_ref().filter(|failed| heard && failed.ask == asked).map(|failed| failed.reason.clone());
        let runs_new = report.running.as_ref() == Some(&spec.to);
        let runs_old = report.running.as_ref() == Some(&spec.from);
        let confirmed = report.confirmed;
        // Between two versions it runs none for a moment.
        let settled = report.phase == Phase::Idle;
        let session = report.session;
        let runs = report.running.as_ref().map_or("none".to_owned(), Version::to_string);
        match &member.state {
            State::Waiting if self.goes_back(group) && runs_new => self.back(device),
            State::Waiting if runs_new && settled => {
                let text = format!("device `{device}` runs {runs} without having been asked; it doesn't count yet");
                self.say_of(device, text);
            }
            State::Waiting if spec.other == Other::Skip && settled && !runs_old && !runs_new => {
                self.note(Fact::Other { device: device.to_owned() });
                self.say(format!(
                    "device `{device}` runs {runs} now, which the rollout doesn't name; it is left as it is"
                ));
            }
            State::Waiting | State::Returned if !runs_new => {}
            State::Waiting => {}
            State::Asked { .. } => match failed {
                Some(reason) => self.fail(device, &reason),
                None if heard && runs_new && confirmed => self.confirm(device, session),
                None if heard => {}
                None => self.send(device),
            },
            State::Confirmed { .. } if settled && !runs_new => {
                self.fail(device, &format!("it had confirmed the new version, and runs {runs} now"));
            }
            State::Confirmed { .. } => {}
            State::Failed { .. } if heard && failed.is_none() && runs_new && confirmed => self.confirm(device, session),
            State::Failed { .. } if heard => {}
            State::Failed { .. } => self.send(device),
            State::Returning => match failed {
                Some(reason) => self.say_of(device, format!("device `{device}` can't go back: {reason}")),
                None if heard && runs_old && confirmed => self.note(Fact::Returned { device: device.to_owned() }),
                None if heard => {}
                None => self.send(device),
            },
            State::Returned => self.back(device),
        }
    }

    fn confirm(&mut self, device: &str, session: u64) {
        self.note(Fact::Confirmed { device: device.to_owned(), session });
    }

    fn back(&mut self, device: &str) {
        self.note(Fact::Back { device: device.to_owned() });
        self.send(device);
    }

    /// A device failed: it is asked again, or counts as failed.
    fn fail(&mut self, device: &str, reason: &str) {
        let Some(member) = self.ledger.members.get(device) else { return };
        let group = member.group;
        let again = member.attempts < self.ledger.spec.groups[group].attempts;
        let may = matches!(self.ledger.stage, Stage::Running | Stage::Finished(Outcome::Succeeded));
        let there = self.seen.get(device).is_some_and(|seen| seen.present);
        let at_work = matches!(member.state, State::Asked { .. });
        if again && may && there && at_work && self.window_is_open() {
            self.say(format!("device `{device}` is asked again: {reason}"));
            return self.ask(device);
        }
        let text = format!("device `{device}` failed: {reason}");
        self.note(Fact::Failed { device: device.to_owned(), reason: plain(reason) });
        self.say(text);
    }

    /// Asks a device for the new version.
    fn ask(&mut self, device: &str) {
        let old = self.seen.get(device).map(|seen| &seen.old).filter(|old| old.runs() > 0);
        let baseline = old.map(Samples::total);
        let number = self.ledger.numbers + 1;
        self.note(Fact::Asked { device: device.to_owned(), number, baseline });
        self.send(device);
    }

    /// Tells a device what it shall run, if it can be reached, and if the edge
    /// above it has the bytes.
    fn send(&mut self, device: &str) {
        let (Some(seen), Some(member)) = (self.seen.get(device), self.ledger.members.get(device)) else { return };
        let spec = &self.ledger.spec;
        let (version, kind) = match member.state {
            State::Waiting => return,
            State::Asked { .. } | State::Confirmed { .. } | State::Failed { .. } => (spec.to.clone(), Kind::Update),
            State::Returning | State::Returned => (spec.from.clone(), Kind::Rollback),
        };
        if !seen.present {
            return;
        }
        let edge = seen.attributes.site.clone().filter(|edge| spec.limits.through_edge && edge != device);
        if let (Kind::Update, Some(edge)) = (kind, &edge)
            && !self.holders.contains(edge)
        {
            let edge = edge.clone();
            return self.prefetch(edge);
        }
        let limits = Limits {
            bytes_per_s: spec.limits.device_bytes_per_s,
            through: edge,
            window: spec.limits.window.filter(|_| kind == Kind::Update),
        };
        let ask = Ask { rollout: self.ledger.rollout, number: member.number };
        let want = Want { ask, version, kind, limits, terms: spec.trial.clone() };
        self.out.push(Action::Want { device: device.to_owned(), want });
    }

    fn prefetch(&mut self, edge: String) {
        if !self.fetching.insert(edge.clone()) {
            return;
        }
        let spec = &self.ledger.spec;
        let limits = Limits { bytes_per_s: spec.limits.site_bytes_per_s, ..Limits::default() };
        self.out.push(Action::Prefetch { edge, version: spec.to.clone(), limits });
    }

    fn holds(&mut self, edge: String, holds: bool) {
        if edge.len() > NAME_BYTES_MAX || self.holders.len() >= DEVICES_MAX {
            return;
        }
        let _was = self.fetching.remove(&edge);
        if !holds {
            let _was = self.holders.remove(&edge);
            return;
        }
        if self.holders.insert(edge.clone()) {
            let waits = |device: &String| {
                self.seen.get(device).is_some_and(|seen| seen.attributes.site.as_ref() == Some(&edge))
            };
            let devices: Vec<String> = self.unheard().into_iter().filter(waits).collect();
            devices.iter().for_each(|device| self.send(device));
        }
    }

    /// Devices in reach that were asked for something and haven't heard it.
    fn unheard(&self) -> Vec<String> {
        let classes = [Class::Asked, Class::Returning, Class::Failed];
        let groups = 0..self.ledger.groups.len();
        let devices =
            groups.flat_map(|group| classes.into_iter().flat_map(move |class| self.index.all_present(group, class)));
        devices
            .filter(|device| {
                let asked =
                    self.ledger.members.get(*device).map(|m| Ask { rollout: self.ledger.rollout, number: m.number });
                self.seen.get(*device).is_some_and(|seen| seen.report.ask != asked)
            })
            .map(str::to_owned)
            .collect()
    }

    /// Says again what nobody has answered.
    fn say_again(&mut self) {
        let elapsed = self.clock.elapsed_ms();
        if elapsed < self.resend_ms {
            return;
        }
        self.resend_ms = elapsed + RESEND_MS;
        self.fetching.clear();
        let told: BTreeSet<String> = self
            .out
            .iter()
            .filter_map(|action| if let Action::Want { device, .. } = action { Some(device.clone()) } else { None })
            .collect();
        self.fetching.extend(self.out.iter().filter_map(|action| match action {
            Action::Prefetch { edge, .. } => Some(edge.clone()),
            _ => None,
        }));
        let devices = self.unheard();
        devices.iter().filter(|device| !told.contains(*device)).for_each(|device| self.send(device));
    }

    // Health.

    fn samples(&mut self, device: &str, session: u64, version: &Version, health: Health) {
        if let Err(error) = health.check() {
            return self.say_of(device, format!("a sample of device `{device}` is left out: {error}"));
        }
        let spec = &self.ledger.spec;
        let (new, old) = (version == &spec.to, version == &spec.from);
        let Some(seen) = self.seen.get_mut(device) else { return };
        // Of a start that isn't known, or is over.
        if session != seen.report.session || !(new || old) {
            return;
        }
        let samples = if new { &mut seen.new } else { &mut seen.old };
        samples.note(session, health);
        if let Some(member) = self.ledger.members.get(device) {
            let _new = self.changed.insert(member.group);
        }
    }

    /// What the gate of a group looks at: devices that have confirmed.
    fn measured(&self, group: usize) -> Measured {
        let mut measured = Measured::default();
        for device in self.index.all(group, Class::Confirmed) {
            let (Some(seen), Some(member)) = (self.seen.get(device), self.ledger.members.get(device)) else { continue };
            if seen.new.runs() == 0 {
                continue;
            }
            measured.devices += 1;
            seen.new.add_to(&mut measured.new);
            if let Some(old) = &member.baseline {
                seen.new.add_to(&mut measured.paired_new);
                measured.paired_old.add(old);
            }
        }
        for class in CLASSES {
            for device in self.index.all(group, class) {
                let kept = self.ledger.members.get(device).and_then(|member| member.baseline.as_ref());
                match (kept, self.seen.get(device)) {
                    (Some(old), _) => measured.old.add(old),
                    (None, Some(seen)) if seen.old.runs() > 0 => seen.old.add_to(&mut measured.old),
                    (None, _) => {}
                }
            }
        }
        measured
    }

    // Operators.

    fn command(&mut self, command: Command) {
        let stage = self.ledger.stage.clone();
        match (command, stage) {
            (Command::Pause, Stage::Running) => {
                let reason = "an operator paused it".to_owned();
                self.note(Fact::Stopped { stop: Stop::Pause, reason: reason.clone() });
                self.say(reason);
            }
            (Command::Resume, Stage::Stopped { stop: Stop::Pause, .. })
            | (Command::Approve, Stage::Stopped { stop: Stop::Approval, .. }) => {
                self.note(Fact::Resumed);
                self.say("an operator lets it go on".into());
            }
            (Command::Skip { group }, stage) if !matches!(stage, Stage::Finished(_)) => {
                let found = self.ledger.spec.groups.iter().position(|spec| spec.name == group);
                match found.filter(|at| self.ledger.groups[*at].closed.is_none()) {
                    Some(at) => {
                        self.note(Fact::Closed { group: at, how: Closed::Skipped, stop: None });
                        self.say(format!("an operator passes group `{group}` over"));
                    }
                    None => self.say(format!("there is no open group `{}` to pass over", plain(&group))),
                }
            }
            (
                Command::Abort { reason },
                Stage::Running
                | Stage::Stopped { .. }
                | Stage::Returning { group: Some(_), .. }
                | Stage::Finished(Outcome::Succeeded),
            ) => self.roll_back(None, Outcome::Aborted, format!("an operator aborted it: {}", plain(&reason))),
            (Command::Supersede { by }, stage) if stage != Stage::Finished(Outcome::Superseded) => {
                self.finish(Outcome::Superseded, format!("rollout {by} takes its place"));
            }
            (command, _) => {
                let is = self.progress().stage.words();
                self.say(format!("`{}` means nothing to this rollout now: {is}", command.word()));
            }
        }
    }

    /// Sends devices back to the old version, all at once.
    fn roll_back(&mut self, group: Option<usize>, outcome: Outcome, reason: String) {
        self.say(format!("devices go back to {}: {reason}", self.ledger.spec.from));
        self.note(Fact::Returning { group, outcome, reason });
        for at in 0..self.ledger.groups.len() {
            let devices: Vec<String> = self.index.all_present(at, Class::Returning).map(str::to_owned).collect();
            devices.iter().for_each(|device| self.send(device));
        }
    }

    fn finish(&mut self, outcome: Outcome, reason: String) {
        self.note(Fact::Finished { outcome });
        self.say(format!("rollout {} is over, {}: {reason}", self.ledger.rollout, outcome.words()));
        self.out.push(Action::Finished(outcome));
    }
}

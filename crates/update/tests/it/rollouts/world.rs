//! A fleet in one process, under a virtual clock: the orchestrator's machine,
//! a machine on each device, and links and processes that fail by a seed.
//!
//! The world watches, from outside, what must never happen.

mod watch;

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use tierline_update::rollout::fleet::{Closed, Fact};
use tierline_update::rollout::{
    Action, Attributes, Command, Event, Fleet, Health, Kind, Now, Outcome, Record, Report, Spec, SwapAction, SwapEvent,
    Version, Want, journal,
};

use super::device::{At, Became, Device, Disk, Flaw, version};

/// What the new version is like, where it is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nature {
    Good,
    Corrupt,
    FailsTest,
    HangsTest,
    KillsOnLoad,
    KillsOnTest,
    /// Too seldom for a device to tell, too often for the fleet.
    Errors,
    Slow,
    Wrong,
}

impl Nature {
    fn flaw(self, at: At) -> Option<Flaw> {
        match (self, at) {
            (Self::Corrupt, At::Verify) | (Self::FailsTest, At::Test) => Some(Flaw::Fails),
            (Self::HangsTest, At::Test) => Some(Flaw::Hangs),
            (Self::KillsOnLoad, At::Load) | (Self::KillsOnTest, At::Test) => Some(Flaw::Kills),
            _ => None,
        }
    }
}

/// What a world is like.
#[derive(Debug, Clone)]
pub struct Setting {
    pub spec: Spec,
    pub ends: usize,
    pub edges: usize,
    /// Devices that appear only later, at a time of their own.
    pub late: usize,
    /// Devices that run a third version.
    pub strangers: usize,
    /// Devices that claim to run the new version whatever they run.
    pub liars: usize,
    pub nature: Nature,
    /// Share of devices on which it is so.
    pub bad: f64,
    /// Whether devices say how versions do.
    pub mute: bool,
    pub loss: f64,
    pub doubled: f64,
    pub delay_max_ms: u64,
    pub cloud_kill: f64,
    pub device_kill: f64,
    /// Faults of links and devices per device and minute.
    pub faults: f64,
    pub tight_memory: bool,
    pub beat_ms: u64,
    /// When faults end, and the run.
    pub heal_ms: u64,
    pub end_ms: u64,
    pub commands: Vec<(u64, Command)>,
    /// Whether every device's journal is read anew at each record.
    pub strict: bool,
}

#[derive(Debug)]
enum Ev {
    ToCloud { from: usize, message: Message },
    ToDevice { to: usize, want: Want },
    Prefetch { to: usize },
    Work { device: usize, life: u64, event: SwapEvent },
    DeviceTick { device: usize, life: u64 },
    Beat { device: usize },
    Connect { device: usize },
    Lease { device: usize },
    Boot { device: usize },
    Crash { device: usize },
    Cut { device: usize },
    Mend { device: usize },
    CloudTick,
    CloudStart,
    Operator(Command),
    Heal,
}

#[derive(Debug, Clone)]
enum Message {
    Report(Report),
    Health { session: u64, version: Version, health: Health },
    Holds,
}

struct Dev {
    name: String,
    attributes: Attributes,
    device: Option<Device>,
    disk: Disk,
    committed: BTreeSet<Version>,
    life: u64,
    linked: bool,
    connected: bool,
    nature: Nature,
    liar: bool,
    installed: Version,
    /// How versions did in this life.
    tallies: BTreeMap<Version, Health>,
    holds: bool,
    /// The newest want that it heard.
    told: Option<Kind>,
    alarm: Option<u64>,
}

/// What the orchestrator's journal and the world's own eyes say of it.
#[derive(Debug, Default)]
struct Watch {
    asked: BTreeSet<String>,
    confirmed: BTreeSet<String>,
    resumed: bool,
    closed: BTreeSet<usize>,
    passed: BTreeMap<usize, usize>,
    waves: BTreeMap<usize, usize>,
    wave_confirmed: BTreeMap<usize, u64>,
    groups: BTreeMap<String, usize>,
    /// What was heard of the new version since the orchestrator began, by
    /// device and its start.
    heard: BTreeMap<String, BTreeMap<u64, Health>>,
    /// Devices that failed behind their success, by group.
    failed_after: BTreeMap<usize, usize>,
    pub finished: Vec<Outcome>,
    pub returned_ms: Option<u64>,
}

pub struct World {
    pub setting: Setting,
    rng: Rng,
    now_ms: u64,
    posted: u64,
    queue: BTreeMap<(u64, u64), Ev>,
    cloud: Option<Fleet>,
    journal: Vec<u8>,
    cloud_alarm: Option<u64>,
    devices: Vec<Dev>,
    by_name: BTreeMap<String, usize>,
    watch: Watch,
    healed: bool,
    last_boot_ms: u64,
    rests_ms: u64,
    pub cloud_kills: u64,
    pub events: u64,
    pub notes: Vec<String>,
}

/// Where the old process's version lies before the first start.
const FROM: &str = "v1";
const TO: &str = "v2";

impl World {
    pub fn new(setting: Setting, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut devices = Vec::new();
        let site = |at: usize| format!("edge-{at}");
        for at in 0..setting.edges {
            devices.push((site(at), Attributes { role: "edge".into(), tier: 1, ..Attributes::default() }));
        }
        for at in 0..setting.ends {
            let edge = (setting.edges > 0).then(|| site(at % setting.edges));
            let labels = [("line".to_owned(), ["a", "b"][at % 2].to_owned())].into();
            devices.push((format!("end-{at}"), Attributes { role: "end".into(), tier: 2, site: edge, labels }));
        }
        let count = devices.len();
        let devices: Vec<Dev> = devices
            .into_iter()
            .enumerate()
            .map(|(at, (name, attributes))| {
                let bad = rng.f64() < setting.bad;
                // The last ones are the strange ones.
                let liar = at + setting.liars >= count;
                let stranger = !liar && at + setting.liars + setting.strangers >= count;
                let installed = version(if stranger { "v0" } else { FROM });
                let mut disk = Disk::default();
                let _new = (disk.staged.insert(installed.clone()), disk.fetched.insert(installed.clone()));
                Dev {
                    name,
                    attributes,
                    device: None,
                    disk,
                    committed: BTreeSet::new(),
                    life: 0,
                    linked: true,
                    connected: false,
                    nature: if bad { setting.nature } else { Nature::Good },
                    liar,
                    installed,
                    tallies: BTreeMap::new(),
                    holds: false,
                    told: None,
                    alarm: None,
                }
            })
            .collect();
        let by_name = devices.iter().enumerate().map(|(at, dev)| (dev.name.clone(), at)).collect();
        let mut world = Self {
            rng,
            now_ms: 0,
            posted: 0,
            queue: BTreeMap::new(),
            cloud: None,
            journal: Vec::new(),
            cloud_alarm: None,
            devices,
            by_name,
            watch: Watch::default(),
            healed: false,
            last_boot_ms: 0,
            rests_ms: u64::MAX,
            cloud_kills: 0,
            events: 0,
            notes: Vec::new(),
            setting,
        };
        let (late, beat) = (world.setting.late, world.setting.beat_ms);
        for at in 0..count {
            // Ends in the middle are the late ones.
            let is_late = at >= world.setting.edges && at < world.setting.edges + late;
            let boot =
                if is_late { world.rng.u64(5_000..world.setting.heal_ms + 200_000) } else { world.rng.u64(0..2_000) };
            world.last_boot_ms = world.last_boot_ms.max(boot);
            world.after(boot, Ev::Boot { device: at });
            let phase = world.rng.u64(0..beat);
            world.after(phase, Ev::Beat { device: at });
            if world.setting.faults > 0.0 {
                world.next_fault(at);
            }
        }
        for (at, command) in world.setting.commands.clone() {
            world.after(at, Ev::Operator(command));
        }
        world.after(world.setting.heal_ms, Ev::Heal);
        world.after(100, Ev::CloudStart);
        world
    }

    fn after(&mut self, delay_ms: u64, event: Ev) {
        self.posted += 1;
        self.queue.insert((self.now_ms + delay_ms, self.posted), event);
    }

    fn next_fault(&mut self, device: usize) {
        let mean = 60_000.0 / self.setting.faults;
        let delay = (-mean * (1.0 - self.rng.f64()).ln()) as u64;
        let event = if self.rng.bool() { Ev::Crash { device } } else { Ev::Cut { device } };
        self.after(delay + 1, event);
    }

    /// Runs to the end.
    pub fn run(mut self) -> Self {
        while let Some(entry) = self.queue.first_entry() {
            let at = entry.key().0;
            if at > self.setting.end_ms || at > self.rests_ms {
                break;
            }
            let event = entry.remove();
            self.now_ms = at;
            self.events += 1;
            self.happens(event);
            // Behind the end there is time for what was lost, and for devices
            // that come late.
            if self.rests_ms == u64::MAX && self.healed && self.outcome().is_some() {
                self.rests_ms = self.now_ms.max(self.last_boot_ms) + 150_000;
            }
        }
        self
    }

    fn happens(&mut self, event: Ev) {
        match event {
            Ev::ToCloud { from, message } => {
                let device = self.devices[from].name.clone();
                self.hears(&device, &message);
                let edge = device.clone();
                let event = match message {
                    Message::Report(report) => Event::Report { device, report },
                    Message::Health { session, version, health } => Event::Health { device, session, version, health },
                    Message::Holds => Event::Holds { edge, version: version(TO), holds: true },
                };
                self.cloud_step(event);
            }
            Ev::ToDevice { to, want } => {
                if self.devices[to].connected && self.devices[to].device.is_some() {
                    self.devices[to].told = Some(want.kind);
                    self.device_step(to, SwapEvent::Want(Box::new(want)));
                }
            }
            Ev::Prefetch { to } => {
                if self.devices[to].connected {
                    self.devices[to].holds = true;
                    self.says(to, Message::Holds);
                }
            }
            Ev::Work { device, life, event } => {
                if self.devices[device].life == life {
                    self.device_step(device, event);
                }
            }
            Ev::DeviceTick { device, life } => {
                if self.devices[device].life == life && self.devices[device].alarm == Some(self.now_ms) {
                    self.devices[device].alarm = None;
                    self.device_step(device, SwapEvent::Tick);
                }
            }
            Ev::Beat { device } => {
                self.beats(device);
                self.after(self.setting.beat_ms, Ev::Beat { device });
            }
            Ev::Connect { device } => self.connects(device),
            Ev::Lease { device } => {
                if !self.devices[device].connected {
                    self.cloud_step(Event::Lost { device: self.devices[device].name.clone() });
                }
            }
            Ev::Boot { device } => self.boots(device),
            Ev::Crash { device } => {
                if !self.healed {
                    self.crashes(device);
                    self.next_fault(device);
                }
            }
            Ev::Cut { device } => {
                if !self.healed {
                    self.devices[device].linked = false;
                    self.disconnects(device);
                    let away = self.away_ms();
                    self.after(away, Ev::Mend { device });
                    self.next_fault(device);
                }
            }
            Ev::Mend { device } => {
                self.devices[device].linked = true;
                self.connects(device);
            }
            Ev::CloudTick => {
                if self.cloud_alarm == Some(self.now_ms) {
                    self.cloud_alarm = None;
                    self.cloud_step(Event::Tick);
                }
            }
            Ev::CloudStart => self.cloud_starts(),
            Ev::Operator(command) => {
                self.watch.resumed |= matches!(command, Command::Resume | Command::Approve);
                if self.cloud.is_some() {
                    self.cloud_step(Event::Command(command));
                } else {
                    // Operators try again.
                    self.after(1_000, Ev::Operator(command));
                }
            }
            Ev::Heal => self.healed = true,
        }
    }

    /// Mostly short, sometimes for longer than a deadline.
    fn away_ms(&mut self) -> u64 {
        if self.rng.f64() < 0.1 { self.rng.u64(30_000..150_000) } else { self.rng.u64(500..15_000) }
    }

    // Devices.

    fn boots(&mut self, at: usize) {
        if self.devices[at].device.is_some() {
            return;
        }
        let memory_max = self.setting.tight_memory.then_some(100);
        let dev = &mut self.devices[at];
        let mut device = Device::on(dev.disk.clone(), dev.committed.clone(), memory_max);
        device.strict = self.setting.strict;
        dev.device = Some(device);
        dev.life += 1;
        dev.alarm = None;
        dev.tallies.clear();
        let installed = Some(dev.installed.clone());
        self.device_step(at, SwapEvent::Started { installed });
        self.connects(at);
    }

    fn crashes(&mut self, at: usize) {
        let dev = &mut self.devices[at];
        let Some(device) = dev.device.take() else { return };
        (dev.disk, dev.committed) = (device.disk, device.committed);
        dev.life += 1;
        self.disconnects(at);
        let away = if self.healed { 1_000 } else { self.away_ms() };
        self.after(away, Ev::Boot { device: at });
    }

    fn connects(&mut self, at: usize) {
        let dev = &mut self.devices[at];
        if self.cloud.is_none() || !dev.linked || dev.connected {
            return;
        }
        let Some(device) = &mut dev.device else { return };
        dev.connected = true;
        let mut report = device.swap.report();
        if dev.liar {
            report.running = Some(version(TO));
            report.confirmed = true;
        }
        let event = Event::Seen { device: dev.name.clone(), attributes: dev.attributes.clone(), report };
        self.cloud_step(event);
    }

    fn disconnects(&mut self, at: usize) {
        self.devices[at].connected = false;
        self.after(3_000, Ev::Lease { device: at });
    }

    /// Sends a message to the cloud: it may be lost, late, or come twice.
    fn says(&mut self, from: usize, message: Message) {
        if !self.devices[from].connected {
            return;
        }
        let copies = 1 + usize::from(self.rng.f64() < self.setting.doubled);
        for _ in 0..copies {
            if self.rng.f64() >= self.setting.loss {
                let delay = self.rng.u64(1..=self.setting.delay_max_ms);
                self.after(delay, Ev::ToCloud { from, message: message.clone() });
            }
        }
    }

    fn beats(&mut self, at: usize) {
        let mute = self.setting.mute;
        let dev = &mut self.devices[at];
        let Some(device) = &mut dev.device else { return };
        let mut told = Vec::new();
        let mut local = None;
        if let Some(serving) = device.serving.clone() {
            let bad = if serving == version(TO) { dev.nature } else { Nature::Good };
            let tally = dev.tallies.entry(serving.clone()).or_default();
            for _ in 0..self.rng.u64(8..16) {
                tally.runs += 1;
                if self.rng.f64() < if bad == Nature::Errors { 0.06 } else { 0.0005 } {
                    tally.errors += 1;
                    continue;
                }
                let ms = if bad == Nature::Slow { 30 } else { 10 };
                tally.latency.note_ns(ms * 1_000_000 + self.rng.u64(0..3_000_000));
                tally.labelled += 1;
                tally.correct += u64::from(self.rng.f64() < if bad == Nature::Wrong { 0.5 } else { 0.95 });
            }
            local = Some(SwapEvent::Health { version: serving.clone(), health: tally.clone() });
            if !mute {
                let session = device.swap.report().session;
                told.push(Message::Health { session, version: serving, health: tally.clone() });
            }
        }
        let mut report = device.swap.report();
        if dev.liar {
            report.running = Some(version(TO));
            report.confirmed = true;
            report.failed = None;
        }
        told.push(Message::Report(report));
        if dev.holds {
            told.push(Message::Holds);
        }
        told.into_iter().for_each(|message| self.says(at, message));
        if let Some(event) = local {
            self.device_step(at, event);
        }
    }

    fn device_step(&mut self, at: usize, event: SwapEvent) {
        let (now_ms, kill) = (self.now_ms, if self.healed { 0.0 } else { self.setting.device_kill });
        let dev = &mut self.devices[at];
        let Some(device) = &mut dev.device else { return };
        let now = Now { monotonic_ms: now_ms + 77 * dev.life, unix_ms: Some(now_ms) };
        let life = dev.life;
        let mut reports = Vec::new();
        let mut work = Vec::new();
        let mut killed = false;
        for action in device.swap.step(now, event) {
            if kill > 0.0 && self.rng.f64() < kill {
                if let SwapAction::Keep(record) = &action
                    && !record.replaces_earlier()
                {
                    let line = journal::encode(record).unwrap();
                    let cut = self.rng.usize(0..=line.len());
                    device.disk.journal.extend(&line[..cut]);
                    // A line that got through whole counts.
                    if cut == line.len() {
                        device.committed.extend(device.swap.current().cloned());
                    }
                }
                killed = true;
                break;
            }
            let nature = dev.nature;
            let flaw = |of: &Version, step: At| if of.as_str() == TO { nature.flaw(step) } else { None };
            if let SwapAction::Report(report) = &action {
                reports.push(report.clone());
            }
            match device.perform(&action, flaw) {
                Became::Nothing => {}
                Became::Event(event) => {
                    work.push(event);
                }
                Became::Killed => {
                    killed = true;
                    break;
                }
            }
            device.check();
            // On trial or not, it is one of the two, or what it came with.
            let known = [FROM, TO, dev.installed.as_str()];
            assert!(device.serving.iter().all(|serving| known.contains(&serving.as_str())), "{:?}", device.serving);
        }
        if killed {
            return self.crashes(at);
        }
        let next = device.swap.next_deadline().map(|at_ms| at_ms.saturating_sub(77 * life).max(now_ms));
        for event in work {
            let delay = self.rng.u64(20..800);
            self.after(delay, Ev::Work { device: at, life, event });
        }
        if !self.devices[at].liar {
            reports.into_iter().for_each(|report| self.says(at, Message::Report(report)));
        }
        if let Some(next) = next
            && self.devices[at].alarm != Some(next)
        {
            self.devices[at].alarm = Some(next);
            self.after(next - now_ms, Ev::DeviceTick { device: at, life });
        }
    }

    // The orchestrator.

    fn cloud_starts(&mut self) {
        let (records, end) = journal::decode::<Record>(&self.journal).unwrap();
        self.journal.truncate(end);
        self.watch_recovered(&records);
        let now = self.cloud_now();
        let actions = match Fleet::recover(records).unwrap() {
            Some(fleet) => {
                self.cloud = Some(fleet);
                Vec::new()
            }
            None => {
                let (fleet, actions) = Fleet::new(self.setting.spec.clone(), 7, now).unwrap();
                self.cloud = Some(fleet);
                actions
            }
        };
        self.cloud_does(actions);
        self.cloud_step(Event::Tick);
        for device in 0..self.devices.len() {
            let delay = self.rng.u64(10..3_000);
            self.after(delay, Ev::Connect { device });
        }
    }

    fn cloud_now(&self) -> Now {
        Now { monotonic_ms: self.now_ms + 1_000 * self.cloud_kills, unix_ms: Some(self.now_ms) }
    }

    fn cloud_step(&mut self, event: Event) {
        let now = self.cloud_now();
        let Some(fleet) = &mut self.cloud else { return };
        let actions = fleet.step(now, event);
        self.cloud_does(actions);
    }

    fn cloud_does(&mut self, actions: Vec<Action>) {
        let mut recorded = false;
        for action in actions {
            if !self.healed && self.setting.cloud_kill > 0.0 && self.rng.f64() < self.setting.cloud_kill {
                if let Action::Keep(record) = &action
                    && !record.replaces_earlier()
                {
                    let line = journal::encode(record).unwrap();
                    let cut = self.rng.usize(0..line.len());
                    self.journal.extend(&line[..cut]);
                }
                return self.cloud_dies();
            }
            match action {
                Action::Keep(record) => {
                    if record.replaces_earlier() {
                        self.journal.clear();
                    }
                    self.journal.extend(journal::encode(&record).unwrap());
                    self.watch_record(&record);
                    recorded = true;
                }
                Action::Want { device, want } => {
                    if want.kind == Kind::Update {
                        assert!(self.watch.asked.contains(&device), "{device} is told before it is a record");
                    }
                    let to = self.by_name[&device];
                    if self.rng.f64() >= self.setting.loss {
                        let delay = self.rng.u64(1..=self.setting.delay_max_ms);
                        self.after(delay, Ev::ToDevice { to, want: want.clone() });
                    }
                    if self.rng.f64() < self.setting.doubled {
                        let delay = self.rng.u64(1..=self.setting.delay_max_ms * 4);
                        self.after(delay, Ev::ToDevice { to, want });
                    }
                }
                Action::Prefetch { edge, .. } => {
                    if let Some(to) = self.by_name.get(&edge).copied()
                        && self.rng.f64() >= self.setting.loss
                    {
                        self.after(2_000, Ev::Prefetch { to });
                    }
                }
                Action::Notify { text } => self.notes.push(format!("{:>7} {text}", self.now_ms)),
                Action::Finished(outcome) => self.watch.finished.push(outcome),
            }
        }
        let Some(fleet) = &self.cloud else { return };
        // Of many devices only now and then: it looks at each of them.
        if recorded && (self.devices.len() < 1_000 || self.events.is_multiple_of(499)) {
            self.watch_places();
        }
        let next = fleet.next_deadline().map(|at| at.saturating_sub(1_000 * self.cloud_kills).max(self.now_ms + 1));
        if let Some(next) = next
            && self.cloud_alarm != Some(next)
        {
            self.cloud_alarm = Some(next);
            self.after(next - self.now_ms, Ev::CloudTick);
        }
    }

    fn cloud_dies(&mut self) {
        self.cloud = None;
        self.cloud_kills += 1;
        self.cloud_alarm = None;
        self.watch.heard.clear();
        self.devices.iter_mut().for_each(|dev| dev.connected = false);
        let delay = self.rng.u64(200..8_000);
        self.after(delay, Ev::CloudStart);
    }

    // The end.

    pub fn outcome(&self) -> Option<Outcome> {
        self.cloud.as_ref().and_then(Fleet::outcome)
    }

    pub fn fleet(&self) -> &Fleet {
        self.cloud.as_ref().unwrap()
    }

    pub fn asked(&self) -> usize {
        self.watch.asked.len()
    }

    pub fn passed(&self) -> usize {
        self.watch.passed.len()
    }

    pub fn journal_bytes(&self) -> usize {
        self.journal.len()
    }

    /// Devices with what they run, by name; those that are up.
    pub fn runs(&self) -> BTreeMap<String, Option<Version>> {
        let up = self.devices.iter().filter(|dev| dev.connected && !dev.liar);
        up.map(|dev| (dev.name.clone(), dev.device.as_ref().and_then(|device| device.serving.clone()))).collect()
    }

    /// What must be so at the end, when all faults were over for a while.
    pub fn rests(&self) {
        let runs = self.runs();
        assert!(!runs.is_empty());
        let states: BTreeMap<String, &'static str> =
            self.fleet().devices().map(|(device, _, word, _)| (device.to_owned(), word)).collect();
        for (device, running) in &runs {
            assert!(running.is_some(), "{device} runs nothing");
            let running = running.as_ref().unwrap().as_str();
            match (self.outcome(), states.get(device)) {
                (Some(Outcome::RolledBack | Outcome::Aborted), Some(_)) => assert_eq!(running, FROM, "{device}"),
                (_, Some(&"confirmed")) => assert_eq!(running, TO, "{device}"),
                (_, Some(&"waiting" | &"returned")) => assert_eq!(running, FROM, "{device}"),
                (Some(Outcome::Succeeded), Some(&"asked")) => panic!("{device} is still at work"),
                (_, None) => assert_ne!(running, TO, "{device}"),
                _ => {}
            }
        }
    }
}

//! Artefacts over connections that break, from sources that lie, onto disks
//! that fill, through crashes of the node.

use std::collections::{BTreeMap, BTreeSet};

use tierline_node::fetch::{Action, Event, FRUITLESS_MAX, FetchError, Fetcher, Found, TRANSFERS_MAX, Transfer, Waiter};
use tierline_node::{Peer, Rng, Time};
use tierline_proto::limits::ARTEFACT_BYTES_MAX;
use tierline_proto::{Code, Digest};

use crate::harness::{Schedule, between, ms, seeds};

const SCHEDULES: u64 = 2_000;
const CHUNK: usize = 64;
const FAULTS_END: Time = Time::from_ns(60_000_000_000);
const END: Time = Time::from_ns(400_000_000_000);

fn digest(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

/// What a schedule may do besides breaking connections.
#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    breaks: bool,
    corrupts: bool,
    fills: bool,
    crashes: bool,
}

enum Ev {
    Machine(u32, Event),
    Wake(u32),
    /// The next chunk of a transfer leaves its source.
    Serve(u32, Transfer),
    Down(Peer),
    Up(Peer),
    Crash,
    Want(Digest),
}

struct Serving {
    source: Peer,
    digest: Digest,
    offset: usize,
}

#[derive(Default)]
struct Disk {
    whole: BTreeMap<Digest, Vec<u8>>,
    partial: BTreeMap<Digest, Vec<u8>>,
    full: bool,
}

struct World<'a> {
    rng: &'a mut Rng,
    weather: Weather,
    schedule: Schedule<Ev>,
    machine: Fetcher,
    parents: Vec<Peer>,
    /// Starts of the process.
    life: u32,
    disk: Disk,
    artefacts: BTreeMap<Digest, Vec<u8>>,
    /// Which parents have which artefact; lists in order of preference.
    has: BTreeSet<(Peer, Digest)>,
    up: BTreeSet<Peer>,
    serving: BTreeMap<Transfer, Serving>,
    /// Bytes on their way to be appended.
    arriving: Vec<u8>,
    waiting: BTreeMap<Waiter, Digest>,
    ended: Vec<(Digest, Result<(), FetchError>)>,
    waiters: u64,
    /// Bytes appended in all.
    appended: usize,
}

impl<'a> World<'a> {
    fn new(rng: &'a mut Rng, weather: Weather) -> Self {
        let mut artefacts = BTreeMap::new();
        for _ in 0..rng.usize(1..5) {
            let mut bytes = vec![0; rng.usize(0..2_000)];
            rng.fill(&mut bytes);
            artefacts.insert(digest(&bytes), bytes);
        }
        let sources: Vec<Peer> = (0..rng.u32(1..3)).map(Peer).collect();
        // The first parent may lack some; the last has all.
        let last = *sources.last().unwrap();
        let mut has = BTreeSet::new();
        for digest in artefacts.keys() {
            has.extend(sources.iter().filter(|s| **s == last || rng.bool()).map(|s| (*s, *digest)));
        }
        Self {
            rng,
            weather,
            schedule: Schedule::new(),
            machine: Fetcher::new(sources.clone()),
            parents: sources.clone(),
            life: 0,
            disk: Disk::default(),
            artefacts,
            has,
            up: sources.into_iter().collect(),
            serving: BTreeMap::new(),
            arriving: Vec::new(),
            waiting: BTreeMap::new(),
            ended: Vec::new(),
            waiters: 0,
            appended: 0,
        }
    }

    fn event(&mut self, event: Event) {
        let now = self.schedule.now();
        let actions = self.machine.step(now, self.rng, event);
        let life = self.life;
        for action in actions {
            match action {
                Action::Look(digest) => {
                    let found = if self.disk.whole.contains_key(&digest) {
                        Found::Whole
                    } else {
                        Found::Partial(self.disk.partial.get(&digest).map_or(0, Vec::len) as u64)
                    };
                    self.schedule.after(ms(1), Ev::Machine(life, Event::Looked { digest, found }));
                }
                Action::Fetch { transfer, source, digest, offset } => {
                    assert!(self.up.contains(&source));
                    assert!(!self.serving.values().any(|other| other.digest == digest), "not a single flight");
                    let have = self.disk.partial.get(&digest).map_or(0, Vec::len);
                    assert_eq!(offset as usize, have, "it goes on where the file ends");
                    self.serving.insert(transfer, Serving { source, digest, offset: offset as usize });
                    assert!(self.serving.len() <= TRANSFERS_MAX);
                    self.schedule.after(ms(20), Ev::Serve(life, transfer));
                }
                Action::Append(digest) => {
                    self.appended += self.arriving.len();
                    self.disk.partial.entry(digest).or_default().append(&mut self.arriving);
                    if self.disk.full {
                        let failed = Event::WriteFailed { digest, full: true, reason: "no space".into() };
                        self.schedule.after(ms(0), Ev::Machine(life, failed));
                    }
                }
                Action::Stop(transfer) => drop(self.serving.remove(&transfer)),
                Action::Discard(digest) => drop(self.disk.partial.remove(&digest)),
                Action::Verify(wanted) => {
                    let got = digest(self.disk.partial.entry(wanted).or_default());
                    self.schedule.after(ms(5), Ev::Machine(life, Event::Hashed { digest: wanted, got }));
                }
                Action::Commit(wanted) => {
                    let bytes = self.disk.partial.remove(&wanted).unwrap();
                    assert_eq!(digest(&bytes), wanted, "committed unverified");
                    self.disk.whole.insert(wanted, bytes);
                    self.schedule.after(ms(1), Ev::Machine(life, Event::Committed { digest: wanted }));
                }
                Action::Done { digest, waiters, result } => {
                    for waiter in waiters {
                        assert_eq!(self.waiting.remove(&waiter), Some(digest), "told twice, or not asked");
                    }
                    assert_eq!(result.is_ok(), self.disk.whole.contains_key(&digest));
                    self.ended.push((digest, result));
                }
            }
        }
        if let Some(wake) = self.machine.wake() {
            self.schedule.at(wake, Ev::Wake(life));
        }
    }

    fn want(&mut self, digest: Digest) {
        self.waiters += 1;
        let waiter = Waiter(self.waiters);
        self.waiting.insert(waiter, digest);
        self.event(Event::Want { digest, waiter, most: ARTEFACT_BYTES_MAX });
    }

    fn serve(&mut self, transfer: Transfer) {
        let Some(serving) = self.serving.get_mut(&transfer) else { return };
        let (source, wanted) = (serving.source, serving.digest);
        let ended = |failure: Option<(Code, String)>| Event::Ended { transfer, failure };
        if !self.has.contains(&(source, wanted)) {
            return self.end(transfer, ended(Some((Code::NotFound, "unknown".into()))));
        }
        if self.weather.breaks && self.schedule.now() < FAULTS_END {
            match self.rng.u8(..40) {
                0 => return self.end(transfer, ended(Some((Code::Unreachable, "reset".into())))),
                1 => return self.end(transfer, ended(None)),
                2 => return self.end(transfer, ended(Some((Code::ModelNotReady, "fetching it".into())))),
                // It hangs: nothing more comes.
                3 => return,
                4 => {
                    self.schedule.after(ms(0), Ev::Down(source));
                    return;
                }
                _ => {}
            }
        }
        let bytes = &self.artefacts[&wanted];
        let end = bytes.len().min(serving.offset + CHUNK);
        let mut data = bytes[serving.offset.min(end)..end].to_vec();
        let (total, offset, length) = (bytes.len() as u64, serving.offset as u64, data.len() as u64);
        serving.offset = end;
        if self.weather.corrupts && !data.is_empty() && self.rng.u8(..30) == 0 {
            data[0] ^= 1;
        }
        self.arriving = data;
        self.event(Event::Chunk { transfer, total, offset, length });
        if self.serving.contains_key(&transfer) {
            self.schedule.after(ms(30), Ev::Serve(self.life, transfer));
        }
    }

    fn end(&mut self, transfer: Transfer, event: Event) {
        self.serving.remove(&transfer);
        self.event(event);
    }

    fn run(mut self) -> Self {
        self.up.clone().into_iter().for_each(|source| self.event(Event::SourceUp(source)));
        let digests: Vec<Digest> = self.artefacts.keys().copied().collect();
        for digest in digests {
            for _ in 0..self.rng.usize(1..4) {
                let delay = between(self.rng, [ms(0), ms(3_000)]);
                self.schedule.after(delay, Ev::Want(digest));
            }
        }
        if self.weather.crashes {
            (0..3).for_each(|n| self.schedule.after(ms(700 * (n + 1)), Ev::Crash));
        }
        self.disk.full = self.weather.fills;
        while let Some(event) = self.schedule.next(END) {
            match event {
                Ev::Machine(life, event) if life == self.life => self.event(event),
                Ev::Wake(life) if life == self.life => self.event(Event::Wake),
                Ev::Serve(life, transfer) if life == self.life => self.serve(transfer),
                Ev::Machine(..) | Ev::Wake(_) | Ev::Serve(..) => {}
                Ev::Want(digest) => self.want(digest),
                Ev::Down(source) => {
                    self.up.remove(&source);
                    self.event(Event::SourceDown(source));
                    assert!(!self.serving.values().any(|serving| serving.source == source));
                    let pause = between(self.rng, [ms(10), ms(5_000)]);
                    self.schedule.after(pause, Ev::Up(source));
                }
                Ev::Up(source) => {
                    self.up.insert(source);
                    self.event(Event::SourceUp(source));
                }
                Ev::Crash => {
                    self.life += 1;
                    self.machine = Fetcher::new(self.parents.clone());
                    self.serving.clear();
                    let asked: Vec<Digest> = std::mem::take(&mut self.waiting).into_values().collect();
                    self.up.clone().into_iter().for_each(|source| self.event(Event::SourceUp(source)));
                    asked.into_iter().for_each(|digest| self.want(digest));
                }
            }
        }
        assert!(self.waiting.is_empty(), "{} waiters forgotten", self.waiting.len());
        self
    }
}

#[test]
fn broken_connections_and_crashes_cost_no_byte_twice() {
    let weather = Weather { breaks: true, crashes: true, ..Weather::default() };
    seeds(SCHEDULES, |rng| {
        let world = World::new(rng, weather).run();
        for (digest, result) in &world.ended {
            assert_eq!(result, &Ok(()), "{digest}");
            assert_eq!(world.disk.whole[digest], world.artefacts[digest]);
        }
        assert!(world.disk.partial.is_empty());
        assert_eq!(world.appended, world.artefacts.values().map(Vec::len).sum::<usize>());
    });
}

#[test]
fn wrong_bytes_are_never_committed_and_fetched_once_more() {
    let weather = Weather { breaks: true, corrupts: true, ..Weather::default() };
    let (good, bad) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    seeds(SCHEDULES, |rng| {
        let world = World::new(rng, weather).run();
        for (digest, result) in &world.ended {
            match result {
                Ok(()) => good.set(good.get() + 1),
                Err(FetchError::Corrupt { wanted, got }) => {
                    assert!(wanted == digest && got != digest);
                    bad.set(bad.get() + 1);
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(world.disk.whole.iter().all(|(of, bytes)| digest(bytes) == *of));
    });
    assert!(good.get() > 1_000 && bad.get() > 20, "{good:?} {bad:?}");
}

#[test]
fn a_full_disk_is_a_typed_error_and_leaves_nothing_behind() {
    let weather = Weather { fills: true, ..Weather::default() };
    seeds(200, |rng| {
        let world = World::new(rng, weather).run();
        for (digest, result) in &world.ended {
            let empty = world.artefacts[digest].is_empty();
            assert!(empty || *result == Err(FetchError::StorageFull(*digest)), "{result:?}");
        }
        assert!(world.disk.partial.is_empty());
    });
}

#[test]
fn what_nobody_has_is_not_found_and_what_never_comes_is_given_up() {
    let wanted = digest(b"x");
    let mut rng = Rng::with_seed(1);
    let mut fetcher = Fetcher::default();
    let mut step = |now: u64, event| fetcher.step(Time::ZERO + ms(now), &mut rng, event);
    let _ = step(0, Event::SourceUp(Peer(0)));
    let _ = step(0, Event::Want { digest: wanted, waiter: Waiter(1), most: ARTEFACT_BYTES_MAX });
    let actions = step(0, Event::Looked { digest: wanted, found: Found::Partial(0) });
    assert!(matches!(actions[..], [Action::Fetch { transfer: Transfer(1), source: Peer(0), offset: 0, .. }]));
    let not_found = Event::Ended { transfer: Transfer(1), failure: Some((Code::NotFound, "no".into())) };
    let done = Action::Done { digest: wanted, waiters: vec![Waiter(1)], result: Err(FetchError::NotFound(wanted)) };
    assert_eq!(step(1, not_found), [done]);
    // Fruitless attempts are counted.
    let _ = step(2, Event::Want { digest: wanted, waiter: Waiter(2), most: ARTEFACT_BYTES_MAX });
    let mut actions = step(2, Event::Looked { digest: wanted, found: Found::Partial(0) });
    for attempt in 0..FRUITLESS_MAX {
        let [Action::Fetch { transfer, .. }] = actions[..] else { panic!("{actions:?}") };
        let failure = Some((Code::Unreachable, "reset".into()));
        let ended = step(u64::from(attempt) * 10_000 + 10, Event::Ended { transfer, failure });
        if attempt + 1 == FRUITLESS_MAX {
            let result = Err(FetchError::Unreachable { digest: wanted, reason: "reset".into() });
            assert_eq!(ended, [Action::Done { digest: wanted, waiters: vec![Waiter(2)], result }]);
            return;
        }
        actions = if ended.is_empty() { step(u64::from(attempt + 1) * 10_000, Event::Wake) } else { ended };
    }
}

#[test]
fn without_waiters_a_transfer_stops_and_its_bytes_stay() {
    let wanted = digest(b"x");
    let mut rng = Rng::with_seed(1);
    let mut fetcher = Fetcher::default();
    let mut step = |event| fetcher.step(Time::ZERO, &mut rng, event);
    let _ = step(Event::SourceUp(Peer(0)));
    let _ = step(Event::Want { digest: wanted, waiter: Waiter(1), most: ARTEFACT_BYTES_MAX });
    let _ = step(Event::Want { digest: wanted, waiter: Waiter(2), most: ARTEFACT_BYTES_MAX });
    let _ = step(Event::Looked { digest: wanted, found: Found::Partial(7) });
    let transfer = Transfer(1);
    assert_eq!(step(Event::Chunk { transfer, total: 100, offset: 7, length: 10 }), [Action::Append(wanted)]);
    assert_eq!(step(Event::Forget { digest: wanted, waiter: Waiter(1) }), []);
    assert_eq!(step(Event::Forget { digest: wanted, waiter: Waiter(2) }), [Action::Stop(transfer)]);
    // Late bytes of the stopped transfer are not appended.
    assert_eq!(step(Event::Chunk { transfer, total: 100, offset: 17, length: 10 }), []);
    // A source that changes its mind about the length is not believed.
    let _ = step(Event::Want { digest: wanted, waiter: Waiter(3), most: ARTEFACT_BYTES_MAX });
    let _ = step(Event::Looked { digest: wanted, found: Found::Partial(17) });
    let transfer = Transfer(2);
    let _ = step(Event::Chunk { transfer, total: 100, offset: 17, length: 10 });
    let lied = step(Event::Chunk { transfer, total: 99, offset: 27, length: 10 });
    let result = Err(FetchError::Length { digest: wanted, bytes: 99, max: 100 });
    assert_eq!(lied, [Action::Stop(transfer), Action::Done { digest: wanted, waiters: vec![Waiter(3)], result }]);
}

#[test]
fn a_source_that_says_more_than_is_wanted_is_not_heard_out() {
    let wanted = digest(b"x");
    let mut rng = Rng::with_seed(1);
    let mut fetcher = Fetcher::default();
    let mut step = |event| fetcher.step(Time::ZERO, &mut rng, event);
    let _ = step(Event::SourceUp(Peer(0)));
    let _ = step(Event::Want { digest: wanted, waiter: Waiter(1), most: 100 });
    let _ = step(Event::Looked { digest: wanted, found: Found::Partial(0) });
    let transfer = Transfer(1);
    let lied = step(Event::Chunk { transfer, total: 101, offset: 0, length: 10 });
    let result = Err(FetchError::Length { digest: wanted, bytes: 101, max: 100 });
    assert_eq!(lied, [Action::Stop(transfer), Action::Done { digest: wanted, waiters: vec![Waiter(1)], result }]);
}

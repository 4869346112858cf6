//! The interpreter by itself: small models by hand, on a disk in memory that
//! outlives it.

use std::collections::{BTreeMap, BTreeSet};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tierline_federate::gossip::{Gossip, Offer};
use tierline_federate::sender::MemberState;
use tierline_federate::strategy::{FedAsync, FedAvg};
use tierline_federate::{
    Aggregator, Channel, Clients, Contribution, FederateError, Federation, Hop, InMemory, Layout, Part, Report,
    RoundScores, Scoreboard, Server, Strategy, Vectors,
};
use tierline_node::Time;
use tierline_node::federation::coordination::{
    Effects, Evaluation, Neighbourhood, News, Published, Setting, Start, Taken,
};
use tierline_node::federation::participation::Encoder;
use tierline_node::federation::{
    Assignment, Coordination, Coordinator, Event, MemberStatus, Record, Task, Terms, Update, Verdict, Work,
};
use tierline_proto::{Code, Failure};

/// What outlives a process.
#[derive(Debug, Clone, Default)]
struct Disk {
    journal: Vec<Record>,
    models: BTreeMap<u64, Vectors>,
    kept: BTreeMap<u64, BTreeMap<String, Vec<f32>>>,
    updates: BTreeMap<Task, Vec<u8>>,
    neighbourhood: Option<Neighbourhood>,
    offers: BTreeMap<u64, Vec<u8>>,
    rounds: Vec<RoundScores>,
    finished: Option<Vectors>,
}

#[derive(Debug, Default)]
struct World {
    disk: Disk,
    now: Time,
    told: Vec<(String, Assignment, Start)>,
    answers: Vec<(String, Verdict)>,
    gathered: Vec<(Task, Contribution)>,
    asked: Option<(u64, String)>,
    absent: Vec<String>,
    excluded: Vec<String>,
}

impl Effects for World {
    type Error = FederateError;

    fn failed(error: FederateError) -> FederateError {
        error
    }

    fn now(&self) -> Time {
        self.now
    }

    async fn keep(&mut self, records: Vec<Record>) -> Result<(), FederateError> {
        for record in records {
            if matches!(record, Record::Snapshot(_)) {
                self.disk.journal.clear();
            }
            self.disk.journal.push(record);
        }
        Ok(())
    }

    async fn keep_model(&mut self, model: Published<'_>) -> Result<u64, FederateError> {
        assert!(model.own.is_none() && model.difference.is_none(), "models travel whole here");
        self.disk.models.insert(model.version, model.held.clone());
        self.disk.kept.insert(model.version, model.kept.clone());
        Ok(4 * model.held.values().map(|vector| vector.len() as u64).sum::<u64>())
    }

    async fn retain(&mut self, models: &BTreeSet<u64>, _: Option<&[u64]>) -> Result<(), FederateError> {
        self.disk.models.retain(|version, _| *version == 0 || models.contains(version));
        Ok(())
    }

    async fn load_model(&mut self, version: u64) -> Result<Vectors, FederateError> {
        Ok(self.disk.models[&version].clone())
    }

    async fn load_update(&mut self, update: &Update) -> Result<Vec<u8>, FederateError> {
        Ok(self.disk.updates[&update.task].clone())
    }

    fn forget_update(&mut self, update: &Update) {
        self.disk.updates.remove(&update.task);
    }

    fn sweep(&mut self, coordinator: &Coordinator) {
        self.disk.updates.retain(|task, _| coordinator.needs(*task));
    }

    async fn tell(&mut self, member: &str, assignment: Assignment, start: Start) {
        self.told.push((member.to_owned(), assignment, start));
    }

    fn answer(&mut self, member: &str, _: Task, verdict: &Verdict) {
        self.answers.push((member.to_owned(), verdict.clone()));
    }

    fn gossips(&self, _: &str) -> bool {
        false
    }

    fn neighbourhood(&self) -> Option<Neighbourhood> {
        self.disk.neighbourhood.clone()
    }

    async fn offer(&mut self, exchange: u64, oldest: u64, model: Vec<u8>) -> Result<(), FederateError> {
        self.disk.offers.retain(|number, _| *number >= oldest);
        let before = self.disk.offers.insert(exchange, model.clone());
        assert!(before.is_none_or(|before| before == model), "neighbours may have mixed in the one before");
        Ok(())
    }

    fn ask(&mut self, exchange: u64, neighbour: &str, _: Duration) {
        self.asked = Some((exchange, neighbour.to_owned()));
    }

    fn ask_no_more(&mut self) {
        self.asked = None;
    }

    async fn gathered(&mut self, task: Task, contribution: Contribution) {
        self.gathered.push((task, contribution));
    }

    async fn finished(&mut self, _: u64, model: &Vectors) -> Result<(), FederateError> {
        self.disk.finished = Some(model.clone());
        Ok(())
    }

    fn listen(&mut self, _: &str, _: &Vectors, _: &Contribution) -> Result<(), FederateError> {
        Ok(())
    }

    async fn teach(&mut self, _: u64, _: u64, _: &Vectors, _: &Layout) -> Result<Option<Vectors>, FederateError> {
        Ok(None)
    }

    fn said_bytes(&self, _: &str) -> u64 {
        0
    }

    fn evaluate(&mut self, model: &Vectors) -> Result<Option<Evaluation>, FederateError> {
        Ok(Some(Evaluation { loss: f64::from(model[&Channel::Model][0]), accuracy: None }))
    }

    async fn note(&mut self, news: News<'_>) -> Result<(), FederateError> {
        match news {
            News::Round(round) => self.disk.rounds.push(round.clone()),
            News::Excluded { member, .. } => self.excluded.push(member.to_owned()),
            News::Absent { neighbour, .. } => self.absent.push(neighbour.to_owned()),
            News::Pending(_) => {}
        }
        Ok(())
    }
}

fn ready<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a disk in memory isn't waited for"),
    }
}

fn layout() -> Layout {
    let part = |name: &str, shape: &[usize]| Part { name: name.to_owned(), shape: shape.to_vec() };
    Layout { parameters: vec![part("w", &[2])], statistics: vec![part("mean", &[1])], ..Layout::default() }
}

fn model(w: f32) -> Vectors {
    Vectors::from([(Channel::Model, vec![w, 2.0 * w]), (Channel::Statistics, vec![0.0])])
}

/// A side that has just begun, or begins again from its disk.
fn begun(federation: &Federation, is_edge: bool, disk: Disk, now: Time) -> Coordination<World> {
    let hop: &Hop = federation.edge.as_ref().filter(|_| is_edge).unwrap_or(&federation.cloud);
    let timing = hop.strategy.behaviour().timing();
    let terms = Terms { clients: hop.clients.clone(), timing, seed: 1, tag: u32::from(is_edge), sums_up: is_edge };
    let (coordinator, actions) = Coordinator::restored(terms, disk.journal.iter().cloned(), now);
    let version = coordinator.version();
    let mut disk = disk;
    disk.models.entry(0).or_insert_with(|| model(0.0));
    let server =
        Server { model: disk.models[&version].clone(), kept: disk.kept.get(&version).cloned().unwrap_or_default() };
    let mut aggregator = Aggregator::new(layout(), hop, version, server, Box::<InMemory>::default());
    for past in coordinator.versions_in_use() {
        aggregator.remember(past, disk.models[&past].clone());
    }
    let setting = Setting { seed: 1, node: "here".to_owned(), is_edge, federation: federation.clone() };
    let taken = Taken { coordinator, aggregator, board: Scoreboard::default(), model_bytes: 12 };
    let mut side = Coordination::new(setting, taken, World { disk, now, ..World::default() });
    ready(side.perform(actions)).unwrap();
    if !is_edge {
        let begin = Event::Begin { version: 0, rounds: federation.cloud.rounds, evaluate: false, stretch: 1 };
        ready(side.step(begin)).unwrap();
    }
    side
}

/// One process with a disk, which may be killed between any two steps.
struct Process {
    federation: Federation,
    is_edge: bool,
    members: Vec<&'static str>,
    side: Option<Coordination<World>>,
    now: Time,
    /// Steps after which it is killed.
    killed_after: Option<usize>,
    steps: usize,
}

impl Process {
    fn start(federation: &Federation, is_edge: bool, members: &[&'static str], killed_after: Option<usize>) -> Self {
        let now = Time::ZERO + Duration::from_secs(1);
        let side = Some(begun(federation, is_edge, Disk::default(), now));
        let (federation, members) = (federation.clone(), members.to_vec());
        let mut it = Self { federation, is_edge, members, side, now, killed_after, steps: 0 };
        it.gather();
        it
    }

    fn side(&mut self) -> &mut Coordination<World> {
        self.side.as_mut().unwrap()
    }

    /// Members say that they are there, and are waited for no longer.
    fn gather(&mut self) {
        for member in self.members.clone() {
            ready(self.side().reported(member.to_owned(), MemberStatus::Ready { examples: 1 }, 0)).unwrap();
        }
        self.now = self.now + Duration::from_secs(30);
        let now = self.now;
        self.side().effects.now = now;
        ready(self.side().wakes()).unwrap();
    }

    fn killed(&mut self) {
        self.steps += 1;
        if self.killed_after == Some(self.steps) {
            let disk = self.side.take().unwrap().effects.disk;
            self.side = Some(begun(&self.federation, self.is_edge, disk, self.now));
            self.gather();
        }
    }

    /// What a member was told to do last.
    fn work_of(&mut self, member: &str) -> Work {
        match self.side().coordinator().assignment(member) {
            Assignment::Work { task, round, version, evaluate } => Work { task, round, version, evaluate },
            other => panic!("{member} is told {other:?}"),
        }
    }

    /// A member sends how its weights changed.
    fn sends(&mut self, member: &str, work: Work, change: f32) {
        let vectors = Vectors::from([(Channel::Model, vec![change, 2.0 * change]), (Channel::Statistics, vec![0.0])]);
        let report = Report { examples: 1, steps: 1, effective_steps: 1.0, ..Report::default() };
        let sender = self.federation.cloud.sender();
        let encoder = Encoder { sender: &sender, layout: &layout(), seed: 1, member };
        let contribution = Contribution { vectors, report };
        let none = MemberState::new();
        let encoded = encoder.encode(work, &contribution, &none, none.clone()).unwrap();
        // Whole on the disk before anybody hears of it.
        self.side().effects.disk.updates.insert(work.task, encoded.bytes.to_vec());
        ready(self.side().submitted(member.to_owned(), encoded.update, &encoded.bytes)).unwrap();
        self.killed();
    }
}

/// Each answer moves the model towards the member's own, wherever it started
/// from, and so it does where the process was killed in between.
#[test]
fn an_asynchronous_model_moves_towards_each_answer() {
    let strategy = Strategy::FedAsync(FedAsync { alpha: 0.5, exponent: 0.0, staleness_max: 10 });
    let clients = Clients { min: 2, ..Clients::default() };
    let cloud = Hop { rounds: 4, strategy, clients, ..Hop::default() };
    let federation = Federation { cloud, ..Federation::default() };
    for killed_after in [None, Some(1), Some(2), Some(3)] {
        let mut it = Process::start(&federation, false, &["a", "b"], killed_after);
        let (a, b) = (it.work_of("a"), it.work_of("b"));
        assert_eq!((a.version, b.version), (0, 0));
        // Half the way to 2, then half the way to 4.
        it.sends("a", a, 2.0);
        it.sends("b", b, 4.0);
        // It begins with 1 and gets to 2; with 2.5 to 0.5.
        let (a, b) = (it.work_of("a"), it.work_of("b"));
        assert_eq!((a.version, b.version), (1, 2), "{killed_after:?}");
        it.sends("a", a, 1.0);
        it.sends("b", b, -2.0);
        let finished = it.side().effects.disk.finished.clone().expect("four rounds are done");
        let expected = [0.0f32, 2.0, 4.0, 2.0, 0.5].into_iter().reduce(|x, own| x + 0.5 * (own - x)).unwrap();
        assert_eq!(finished[&Channel::Model], [expected, 2.0 * expected], "{killed_after:?}");
        let losses: Vec<Option<f64>> = it.side().effects.disk.rounds.iter().map(|round| round.loss).collect();
        assert_eq!(losses, [Some(1.0), Some(2.5), Some(2.25), Some(1.375)], "{killed_after:?}");
    }
}

/// An edge sends what its rounds changed, whatever happened to it meanwhile.
#[test]
fn an_edge_sums_up_what_its_rounds_changed() {
    let hop = Hop {
        strategy: Strategy::FedAvg(FedAvg {}),
        clients: Clients { min: 2, ..Clients::default() },
        ..Hop::default()
    };
    let edge = Hop { rounds: 2, ..hop.clone() };
    let federation = Federation { cloud: hop, edge: Some(edge), ..Federation::default() };
    for killed_after in [None, Some(1), Some(2), Some(3), Some(4)] {
        let mut it = Process::start(&federation, true, &["a", "b"], killed_after);
        let task = Task::new(9, 3);
        ready(it.side().begin(task, &model(10.0), false)).unwrap();
        for round in 0..2 {
            for (member, change) in [("a", 1.0), ("b", 3.0)] {
                let work = it.work_of(member);
                assert_eq!(work.round, round, "{killed_after:?}");
                it.sends(member, work, change);
            }
        }
        // Asked again by who was killed meanwhile.
        ready(it.side().begin(task, &model(10.0), false)).unwrap();
        let (of, contribution) = it.side().effects.gathered.last().cloned().expect("its task is done");
        assert_eq!((of, &contribution.vectors[&Channel::Model][..]), (task, &[4.0, 8.0][..]), "{killed_after:?}");
        assert_eq!(contribution.report.examples, 2, "each member's once");
    }
}

/// An edge goes halfway to a neighbour that has as many examples, whatever else
/// is said to it, and whenever it is killed; what it offers is the same again.
#[test]
fn an_edge_that_gossips_is_mixed_with_its_neighbours() {
    let clients = Clients { min: 2, ..Clients::default() };
    let hop = Hop { clients, ..Hop::default() };
    let gossip = Gossip { stages: vec!["qsgd:6".to_owned()], ..Gossip::default() };
    let edge = Hop { gossip: Some(gossip.clone()), ..hop.clone() };
    let federation = Federation { cloud: hop, edge: Some(edge), ..Federation::default() };
    let theirs = Offer { examples: 2, model: model(16.0) };
    let theirs = theirs.encode(&layout(), &Gossip::default().pipeline(), 1).unwrap();
    let gone = || Err(Failure::new(Code::NotFound, "it is at a later exchange"));
    for killed_after in [None, Some(1), Some(2), Some(3)] {
        for there in [true, false] {
            let mut it = Process::start(&federation, true, &["a", "b"], killed_after);
            let (task, neighbours) = (Task::new(9, 3), vec!["east".to_owned()]);
            it.side().effects.disk.neighbourhood = Some(Neighbourhood { task, round: 5, neighbours });
            ready(it.side().begin(task, &model(10.0), false)).unwrap();
            for (member, change) in [("a", 1.0), ("b", 3.0)] {
                let work = it.work_of(member);
                it.sends(member, work, change);
            }
            // The exchange is under way, and may be cut off here.
            it.killed();
            assert_eq!(it.side().effects.asked, Some((5, "east".to_owned())), "{killed_after:?}");
            let own = Offer::decode(&it.side().effects.disk.offers[&5], &layout()).unwrap();
            assert_eq!(own.examples, 2);
            ready(it.side().heard(4, "east", Ok(theirs.clone()))).unwrap();
            ready(it.side().heard(5, "west", Ok(theirs.clone()))).unwrap();
            assert!(it.side().effects.gathered.is_empty(), "of another exchange, or of nobody who was asked");
            let answer = if there { Ok(theirs.clone()) } else { gone() };
            ready(it.side().heard(5, "east", answer)).unwrap();
            ready(it.side().heard(5, "east", Ok(theirs.clone()))).unwrap();
            let (_, contribution) = it.side().effects.gathered.pop().expect("its task is done");
            // What sets the two apart is taken between models as they travelled.
            let apart = |at: usize| [16.0, 32.0][at] - own.model[&Channel::Model][at];
            let moved = |at: usize| if there { 0.5 * apart(at) } else { 0.0 };
            let expected = [2.0 + moved(0), 4.0 + moved(1)];
            let made = &contribution.vectors[&Channel::Model];
            assert!(made.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-5), "{made:?}, not {expected:?}");
            assert_eq!(it.side().effects.absent.is_empty(), there);
            assert!(contribution.report.bytes_up >= if there { theirs.len() as u64 } else { 0 });
        }
    }
}

/// What can't be used costs its sender the job, and nobody else anything.
#[test]
fn an_update_that_is_no_update_leaves_its_member_out() {
    let cloud = Hop { clients: Clients { min: 1, ..Clients::default() }, ..Hop::default() };
    let federation = Federation { cloud, ..Federation::default() };
    let mut it = Process::start(&federation, false, &["a", "b"], None);
    let (a, b) = (it.work_of("a"), it.work_of("b"));
    let report = Report { examples: 1, steps: 1, effective_steps: 1.0, ..Report::default() };
    let update = Update { task: a.task, digest: tierline_proto::Digest([1; 32]), bytes: 3, report };
    ready(it.side().submitted("a".to_owned(), update, b"no!")).unwrap();
    assert_eq!(it.side().effects.excluded, ["a"]);
    assert!(matches!(it.side().effects.answers[..], [(_, Verdict::Refused { .. })]));
    it.sends("b", b, 4.0);
    assert_eq!(it.side().effects.disk.finished.clone().unwrap()[&Channel::Model], [4.0, 8.0]);
    let round = &it.side().effects.disk.rounds[0];
    assert_eq!((round.clients, round.bytes_down), (1, 24), "two were told to start from a model of twelve bytes");
}

//! The site: nodes, and what happens between them.

mod coordinator;
mod exchange;
mod participant;
mod run;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tierline_engine::Stop;
use tierline_federate::gossip::Offer;
use tierline_federate::{
    Aggregator, Channel, Contribution, Counted, Gossip, InMemory, Report, Sender, Server, Vectors,
};
use tierline_graph::Model;
use tierline_node::federation::{
    Action, Assignment, Coordinator, Event, MemberEvent, Participant, Standing, Task, Terms, Update, Verdict, Work,
};
use tierline_node::{Rng, Time};
use tierline_train::Job;
use tierline_train::data::seed_of;
use tierline_train::federated::{Kept, ParameterLayout, Share, Tutor};

use self::exchange::Neighbourhood;
pub use self::run::run;
use crate::attack::Attack;
use crate::clock::{Clock, seconds};
use crate::link::{Link, Pipe};
use crate::scenario::{Scenario, SimError, end_name};
use crate::workers::{Ticket, Workers};

/// Bytes of a message without an update or a model, with what the transport
/// adds.
const MESSAGE_BYTES: u64 = 200;

/// Versions of a model that an edge remembers to have fetched.
const VERSIONS_KEPT: u64 = 64;

/// A site in which nobody has worked for so long stands still, though members
/// still say that they are there; where ends come and go, for longer.
const STILL: Duration = Duration::from_secs(3_600);
const STILL_WITH_AWAY: Duration = Duration::from_secs(30 * 24 * 3_600);

/// What happens between nodes, each by its index: the cloud, then edges, then
/// ends.
enum Happening {
    /// A member says what it is at.
    Stands(usize, Standing),
    /// A member is told what to do.
    Told(usize, Assignment),
    /// The model of a task is there.
    Fetched(usize, Work),
    /// A task is done.
    Worked(usize, Task),
    /// An update arrives.
    Submitted(usize, Update),
    /// A member hears what became of its update.
    Answered(usize, Task, Verdict),
    /// A neighbour's model is at an edge that gossips.
    Met {
        at: usize,
        from: usize,
        number: u64,
        offer: Arc<Offer>,
    },
    /// It doesn't wait for others any longer.
    MeetingEnds(usize, u64),
    Away(usize),
    Back(usize),
    Wake(usize),
    /// Bytes from an end are at the edge that passes them on.
    Rising {
        relay: usize,
        bytes: u64,
        then: Box<Happening>,
    },
    /// Bytes for an end are there.
    Falling {
        to: usize,
        bytes: u64,
        then: Box<Happening>,
    },
}

/// An edge that only passes on: its ends share its link.
struct Relay {
    pipes: [Pipe; 2],
    /// When versions of the model are there: fetched once for all ends.
    models: BTreeMap<u64, Time>,
}

/// A model that the cloud has made, or had evaluated.
struct Made {
    round: u64,
    counted: Vec<Counted>,
    last: bool,
    evaluate: bool,
}

/// The participant of a node.
struct Below {
    parent: usize,
    participant: Participant,
    pipes: [Pipe; 2],
    /// The edge that passes on what it says and hears.
    relay: Option<usize>,
    reachable: bool,
    /// The parent's model that it has, but for the first one.
    holds: u64,
    /// The update that waits to be counted, as it travels.
    update: Option<Held>,
    kept: Kept,
    /// Kept if the update is counted, and if it isn't.
    next: Option<(Kept, Kept)>,
}

/// An update on its way to being counted.
#[derive(Clone)]
struct Held {
    task: Task,
    bytes: Arc<Vec<u8>>,
    report: Report,
}

/// The coordinator of a node.
struct Above {
    coordinator: Coordinator,
    aggregator: Aggregator,
    published: BTreeMap<u64, Arc<Vectors>>,
    /// The update that has just arrived.
    inbox: Option<(Task, Contribution)>,
    /// What its stretch began with.
    base: Arc<Vectors>,
    channels: Vec<Channel>,
    /// How members' updates travel.
    sender: Sender,
}

/// What an end trains on.
struct Trainee {
    share: Arc<Share>,
    /// 0 for the job's own, else one more than its place in [`Job::models`].
    model: usize,
    examples_per_s: f64,
    attack: Option<Attack>,
    running: Option<(Work, Ticket, Stop)>,
}

struct Node {
    name: String,
    below: Option<Below>,
    above: Option<Above>,
    trainee: Option<Trainee>,
    neighbourhood: Neighbourhood,
    wakes_at: Option<Time>,
}

impl Node {
    fn aggregator(&self) -> &Aggregator {
        &self.above.as_ref().expect("a node that coordinates").aggregator
    }
}

struct Site {
    clock: Clock<Happening>,
    rng: Rng,
    nodes: Vec<Node>,
    relays: Vec<Relay>,
    index: BTreeMap<String, usize>,
    workers: Workers,
    /// The cloud's, where models learn of public examples or of features.
    tutor: Option<Tutor>,
    /// Whether tasks begin with what is said of a member's own examples, and
    /// what that is.
    tells_apart: bool,
    said: BTreeMap<usize, Arc<Vectors>>,
    epochs: u64,
    /// The job's.
    seed: u64,
    edge_rounds: u64,
    /// How edges meet between their rounds.
    gossip: Option<Gossip>,
    /// Rounds of the job, and whether ends evaluate models.
    rounds: u64,
    evaluate: bool,
    availability: f64,
    away: Duration,
    bytes_up: u64,
    bytes_down: u64,
    round_began: Time,
    /// When somebody last began or ended some work.
    moved_at: Time,
    made: VecDeque<Made>,
    excluded: Vec<(String, String)>,
    own: BTreeMap<String, Model>,
    over: bool,
}

impl Site {
    fn new(job: &Job, place: &ParameterLayout, shares: Vec<Share>, scenario: &Scenario, workers: Workers) -> Self {
        let federation = job.federation.clone().unwrap_or_default();
        let initial = place.initial();
        let above = |hop: &tierline_federate::Hop, index: u64| {
            let channels = hop.strategy.makes();
            let model: Vectors =
                initial.iter().filter(|(c, _)| channels.contains(c)).map(|(c, v)| (*c, v.clone())).collect();
            let published = BTreeMap::from([(0, Arc::new(model.clone()))]);
            let base = Arc::new(model.clone());
            let server = Server { model, kept: BTreeMap::new() };
            let aggregator = Aggregator::new(place.layout().clone(), hop, 0, server, Box::<InMemory>::default());
            let timing = hop.strategy.behaviour().timing();
            let seed = seed_of(&[job.seed, index]);
            let tag = index as u32;
            let terms = Terms { clients: hop.clients.clone(), timing, seed, tag, sums_up: index > 0 };
            let (coordinator, sender) = (Coordinator::new(terms), hop.sender());
            Above { coordinator, aggregator, published, inbox: None, base, channels, sender }
        };
        let node = |name: String| Node {
            name,
            below: None,
            above: None,
            trainee: None,
            neighbourhood: Neighbourhood::default(),
            wakes_at: None,
        };
        let below = |parent: usize, link: &Link, relay: Option<usize>| {
            let (participant, _) = Participant::new();
            Below {
                parent,
                participant,
                pipes: Pipe::pair(link),
                relay,
                reachable: true,
                holds: 0,
                update: None,
                kept: Kept::new(),
                next: None,
            }
        };
        let mut rng = Rng::with_seed(seed_of(&[job.seed, u64::MAX]));
        let mut nodes = vec![Node { above: Some(above(&federation.cloud, 0)), ..node("cloud".to_owned()) }];
        if let Some(hop) = &federation.edge {
            for edge in 0..scenario.edges.max(1) {
                nodes.push(Node {
                    above: Some(above(hop, 1 + edge as u64)),
                    below: Some(below(0, &scenario.edge_link, None)),
                    ..node(format!("edge-{edge:02}"))
                });
            }
        }
        let edges = nodes.len() - 1;
        let ends = shares.len();
        let passing = if edges == 0 { scenario.edges } else { 0 };
        let relay = |_| Relay { pipes: Pipe::pair(&scenario.edge_link), models: BTreeMap::new() };
        let relays = (0..passing).map(relay).collect();
        for (end, share) in shares.into_iter().enumerate() {
            let parent = if edges == 0 { 0 } else { 1 + end * edges / ends };
            let relay = (passing > 0).then(|| end * passing / ends);
            let slow = 1.0 + rng.f64() * (scenario.spread - 1.0);
            let examples_per_s = scenario.examples_per_s / slow;
            let model = job.variant_of(&end_name(end)).map_or(0, |variant| variant + 1);
            let trainee = Trainee { share: Arc::new(share), model, examples_per_s, attack: None, running: None };
            let below = Some(below(parent, &scenario.end_link, relay));
            nodes.push(Node { below, trainee: Some(trainee), ..node(end_name(end)) });
        }
        Self {
            clock: Clock::new(),
            rng,
            index: nodes.iter().enumerate().map(|(i, n)| (n.name.clone(), i)).collect(),
            nodes,
            relays,
            workers,
            tutor: None,
            tells_apart: federation.transfer().is_some(),
            said: BTreeMap::new(),
            epochs: job.epochs,
            seed: job.seed,
            edge_rounds: federation.edge.as_ref().map_or(1, |e| e.rounds),
            gossip: federation.edge.as_ref().and_then(|e| e.gossip.clone()),
            rounds: federation.cloud.rounds,
            evaluate: federation.evaluates_at_ends(),
            availability: scenario.availability,
            away: scenario.away,
            bytes_up: 0,
            bytes_down: 0,
            round_began: Time::ZERO,
            moved_at: Time::ZERO,
            made: VecDeque::new(),
            excluded: Vec::new(),
            own: BTreeMap::new(),
            over: false,
        }
    }

    /// Makes ends mean harm, in their order.
    fn spoil(&mut self, harmful: &[Option<Attack>]) {
        let trainees = self.nodes.iter_mut().filter_map(|node| node.trainee.as_mut());
        trainees.zip(harmful).for_each(|(trainee, attack)| trainee.attack = *attack);
    }

    fn begin(&mut self) {
        let begin = Event::Begin { version: 0, rounds: self.rounds, evaluate: self.evaluate, stretch: 1 };
        let cloud = self.nodes[0].above.as_mut().expect("the cloud coordinates");
        let actions = cloud.coordinator.step(self.clock.now(), begin);
        debug_assert!(actions.iter().all(|a| matches!(a, Action::Keep(_))), "nobody is there yet");
        for at in 1..self.nodes.len() {
            let examples = self.nodes[at].trainee.as_ref().map_or(1, |t| t.share.seen.len() as u64);
            self.take_part(at, MemberEvent::LinkUp);
            self.take_part(at, MemberEvent::Prepared(Ok(examples)));
            if self.nodes[at].trainee.is_some() && self.availability < 1.0 {
                let up = seconds(self.away.as_secs_f64() * self.availability / (1.0 - self.availability));
                let time = self.clock.now() + self.draw(up);
                self.clock.at(time, Happening::Away(at));
            }
        }
    }

    /// An exponential draw of this mean.
    fn draw(&mut self, mean: Duration) -> Duration {
        seconds(mean.as_secs_f64() * -(1.0 - self.rng.f64()).ln())
    }

    /// Whether nobody works, and nobody has for long.
    fn stands_still(&self) -> bool {
        let still = if self.availability < 1.0 { STILL_WITH_AWAY } else { STILL };
        let works = |node: &Node| node.trainee.as_ref().is_some_and(|trainee| trainee.running.is_some());
        self.clock.now().since(self.moved_at) > still && !self.nodes.iter().any(works)
    }

    fn standstill(&self) -> String {
        let coordinator = &self.nodes[0].above.as_ref().expect("the cloud coordinates").coordinator;
        let progress = coordinator.progress();
        let excluded: Vec<String> = self.excluded.iter().map(|(who, why)| format!("{who}: {why}")).collect();
        let mut text = format!("{} of {} members can work", progress.ready, progress.members);
        if !excluded.is_empty() {
            text.push_str(&format!("; left out: {}", excluded.join("; ")));
        }
        text
    }

    fn happen(&mut self, happening: Happening) -> Result<(), SimError> {
        match happening {
            Happening::Stands(at, standing) => {
                let parent = self.parent(at);
                let member = self.nodes[at].name.clone();
                self.coordinate(parent, Event::Member { member, standing })
            }
            Happening::Told(at, assignment) => {
                self.take_part(at, MemberEvent::Assigned(assignment));
                Ok(())
            }
            Happening::Fetched(at, work) => self.fetched(at, work),
            Happening::Worked(at, task) => self.worked(at, task),
            Happening::Submitted(at, update) => self.submitted(at, update),
            Happening::Answered(at, task, verdict) => {
                self.take_part(at, MemberEvent::Answered { task, verdict });
                Ok(())
            }
            Happening::Rising { relay, bytes, then } => {
                let there = self.relays[relay].pipes[0].carry(self.clock.now(), bytes);
                self.clock.at(there, *then);
                Ok(())
            }
            Happening::Falling { to, bytes, then } => {
                self.fall(to, bytes, *then);
                Ok(())
            }
            Happening::Met { at, from, number, offer } => self.hear(at, from, number, offer),
            Happening::MeetingEnds(at, number) => self.meeting_ends(at, number),
            Happening::Away(at) => {
                self.reach(at, false);
                self.take_part(at, MemberEvent::LinkDown);
                let (parent, member) = (self.parent(at), self.nodes[at].name.clone());
                let time = self.clock.now() + self.draw(self.away);
                self.clock.at(time, Happening::Back(at));
                self.coordinate(parent, Event::Lost { member })
            }
            Happening::Back(at) => {
                self.reach(at, true);
                self.take_part(at, MemberEvent::LinkUp);
                let up = seconds(self.away.as_secs_f64() * self.availability / (1.0 - self.availability));
                let time = self.clock.now() + self.draw(up);
                self.clock.at(time, Happening::Away(at));
                Ok(())
            }
            Happening::Wake(at) => {
                if self.nodes[at].wakes_at.is_some_and(|t| t <= self.clock.now()) {
                    self.nodes[at].wakes_at = None;
                }
                if self.nodes[at].below.is_some() {
                    self.take_part(at, MemberEvent::Wake);
                }
                if self.nodes[at].above.is_some() {
                    self.coordinate(at, Event::Wake)?;
                }
                self.set_alarm(at);
                Ok(())
            }
        }
    }

    fn parent(&self, at: usize) -> usize {
        self.nodes[at].below.as_ref().map_or(0, |b| b.parent)
    }

    fn reach(&mut self, at: usize, reachable: bool) {
        if let Some(below) = &mut self.nodes[at].below {
            below.reachable = reachable;
        }
    }

    /// Posts the time at which a node's machines want to be woken.
    fn set_alarm(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let below = node.below.as_ref().and_then(|b| b.participant.wake());
        let above = node.above.as_ref().and_then(|a| a.coordinator.wake());
        let Some(wake) = below.into_iter().chain(above).min() else { return };
        if node.wakes_at.is_none_or(|t| wake < t) {
            node.wakes_at = Some(wake);
            self.clock.at(wake, Happening::Wake(at));
        }
    }
}

fn bytes_of(vectors: &Vectors) -> u64 {
    vectors.values().map(|v| 4 * v.len() as u64).sum()
}

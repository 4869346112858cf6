//! The site: nodes, and what happens between them.

mod coordinator;
mod network;
mod participant;
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tierline_engine::Stop;
use tierline_federate::{Aggregator, Federation, Hop, InMemory, RoundScores, Scoreboard, Sender, Server, Vectors};
use tierline_graph::Model;
use tierline_node::federation::coordination::{Setting, Start, Taken};
use tierline_node::federation::{
    Assignment, Coordination, Coordinator, Event, MemberEvent, MemberStatus, Participant, Participation, Task, Terms,
    Update, Verdict, Work,
};
use tierline_node::{Peer, Rng, Time};
use tierline_proto::v1::Failure;
use tierline_train::Job;
use tierline_train::data::seed_of;
use tierline_train::federated::{ParameterLayout, Share};

use self::coordinator::{Cloud, CoordinatorWorld};
use self::participant::MemberWorld;
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

/// A simulated node has one parent.
const PARENT: Peer = Peer(0);

/// What happens between nodes, each by its index: the cloud, then edges, then
/// ends.
enum Happening {
    /// A member says what it is at, and which of its parent's models it holds.
    Reported(usize, MemberStatus, u64),
    /// A member is told what to do, and where that starts.
    Told(usize, Assignment, Start),
    /// The model of a task is there.
    Fetched(usize, Work),
    /// A task is done.
    Worked(usize, Task),
    /// A member says which update it has.
    Offered(usize, Update),
    /// A member hears that its update is wanted.
    Wanted(usize, Update),
    /// An update arrives.
    Submitted(usize, Update),
    /// A member hears what became of its update.
    Answered(usize, Task, Verdict),
    /// An edge is asked for its model of an exchange.
    Asked {
        at: usize,
        from: usize,
        exchange: u64,
        ask: u64,
    },
    /// A neighbour's model is at an edge that gossips, or won't be.
    Heard {
        at: usize,
        from: usize,
        exchange: u64,
        model: Result<Arc<Vec<u8>>, Failure>,
    },
    /// An edge doesn't wait any longer for its neighbour to answer.
    PatienceEnds {
        at: usize,
        from: usize,
        exchange: u64,
        ask: u64,
    },
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

/// The participant of a node.
struct Below {
    parent: usize,
    member: Participation<MemberWorld>,
    pipes: [Pipe; 2],
    /// The edge that passes on what it says and hears.
    relay: Option<usize>,
    reachable: bool,
    /// The parent's model that it has, but for the first one.
    holds: u64,
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

/// What an edge that gossips has for its neighbours.
#[derive(Default)]
struct Offers {
    /// Its models, by exchange.
    models: BTreeMap<u64, Arc<Vec<u8>>>,
    /// Exchanges of which neighbours want a model that isn't made yet, and by
    /// which of their questions.
    wanted: BTreeMap<(u64, usize), u64>,
    /// How often it has asked, and which of its questions was answered last.
    asks: u64,
    answered: u64,
}

struct Node {
    name: String,
    below: Option<Below>,
    above: Option<Coordination<CoordinatorWorld>>,
    trainee: Option<Trainee>,
    offers: Offers,
    wakes_at: Option<Time>,
}

impl Node {
    fn coordination(&self) -> &Coordination<CoordinatorWorld> {
        self.above.as_ref().expect("a node that coordinates")
    }
}

struct Site {
    clock: Clock<Happening>,
    rng: Rng,
    nodes: Vec<Node>,
    relays: Vec<Relay>,
    index: BTreeMap<String, usize>,
    workers: Workers,
    federation: Federation,
    epochs: u64,
    /// The job's.
    seed: u64,
    availability: f64,
    away: Duration,
    /// When somebody last began or ended some work.
    moved_at: Time,
    /// Rounds of which all is known, and nobody was told yet.
    rounds: Vec<RoundScores>,
    excluded: Vec<(String, String)>,
    own: BTreeMap<String, Model>,
    over: bool,
}

/// What becomes of a future that waits for nothing.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => unreachable!("in virtual time nothing waits"),
    }
}

/// A side that coordinates, of the cloud (index 0) or of an edge.
fn coordination(
    job: &Job,
    place: &ParameterLayout,
    name: &str,
    index: usize,
    hop: &Hop,
    world: CoordinatorWorld,
) -> Coordination<CoordinatorWorld> {
    let channels = hop.strategy.makes();
    let model: Vectors = place.initial().into_iter().filter(|(c, _)| channels.contains(c)).collect();
    let model_bytes = network::bytes_of(&model);
    let server = Server { model, kept: BTreeMap::new() };
    let aggregator = Aggregator::new(place.layout().clone(), hop, 0, server, Box::<InMemory>::default());
    let terms = Terms {
        clients: hop.clients.clone(),
        timing: hop.strategy.behaviour().timing(),
        seed: seed_of(&[job.seed, index as u64]),
        tag: index as u32,
        sums_up: index > 0,
    };
    let setting = Setting {
        seed: job.seed,
        node: name.to_owned(),
        is_edge: index > 0,
        federation: job.federation.clone().unwrap_or_default(),
    };
    let coordinator = Coordinator::new(terms);
    let taken = Taken { coordinator, aggregator, board: Scoreboard::default(), model_bytes };
    Coordination::new(setting, taken, world)
}

impl Site {
    fn new(
        job: &Job,
        place: &ParameterLayout,
        shares: Vec<Share>,
        scenario: &Scenario,
        workers: Workers,
        cloud: Cloud,
    ) -> Self {
        let federation = job.federation.clone().unwrap_or_default();
        let node = |name: String| Node {
            name,
            below: None,
            above: None,
            trainee: None,
            offers: Offers::default(),
            wakes_at: None,
        };
        let below = |at: usize, parent: usize, link: &Link, relay: Option<usize>| {
            let (participant, _) = Participant::new();
            let rng = Rng::with_seed(seed_of(&[job.seed, u64::MAX, at as u64]));
            let member = Participation::new(participant, rng, MemberWorld::default());
            Below { parent, member, pipes: Pipe::pair(link), relay, reachable: true, holds: 0 }
        };
        let mut rng = Rng::with_seed(seed_of(&[job.seed, u64::MAX]));
        let names = (0..scenario.edges.max(1)).map(|edge| format!("edge-{edge:02}"));
        let edges: Vec<String> = if federation.edge.is_some() { names.collect() } else { Vec::new() };
        let initial = Arc::new(place.initial());
        let world = CoordinatorWorld::new(&initial, edges.iter().cloned().collect(), Some(cloud));
        let above = coordination(job, place, "cloud", 0, &federation.cloud, world);
        let mut nodes = vec![Node { above: Some(above), ..node("cloud".to_owned()) }];
        if let Some(hop) = &federation.edge {
            for name in edges {
                let at = nodes.len();
                let world = CoordinatorWorld::new(&initial, BTreeSet::new(), None);
                nodes.push(Node {
                    above: Some(coordination(job, place, &name, at, hop, world)),
                    below: Some(below(at, 0, &scenario.edge_link, None)),
                    ..node(name)
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
            let below = Some(below(nodes.len(), parent, &scenario.end_link, relay));
            nodes.push(Node { below, trainee: Some(trainee), ..node(end_name(end)) });
        }
        Self {
            clock: Clock::new(),
            rng,
            index: nodes.iter().enumerate().map(|(i, n)| (n.name.clone(), i)).collect(),
            nodes,
            relays,
            workers,
            federation,
            epochs: job.epochs,
            seed: job.seed,
            availability: scenario.availability,
            away: scenario.away,
            moved_at: Time::ZERO,
            rounds: Vec::new(),
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

    fn begin(&mut self) -> Result<(), SimError> {
        let (rounds, evaluate) = (self.federation.cloud.rounds, self.federation.evaluates_at_ends());
        self.coordinate(0, Event::Begin { version: 0, rounds, evaluate, stretch: 1 })?;
        for at in 1..self.nodes.len() {
            let examples = self.nodes[at].trainee.as_ref().map_or(1, |t| t.share.seen.len() as u64);
            self.links(at, true)?;
            self.take_part(at, MemberEvent::Prepared(Ok(examples)))?;
            if self.nodes[at].trainee.is_some() && self.availability < 1.0 {
                let up = seconds(self.away.as_secs_f64() * self.availability / (1.0 - self.availability));
                let time = self.clock.now() + self.draw(up);
                self.clock.at(time, Happening::Away(at));
            }
        }
        Ok(())
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
        let progress = self.nodes[0].coordination().coordinator().progress();
        let excluded: Vec<String> = self.excluded.iter().map(|(who, why)| format!("{who}: {why}")).collect();
        let mut text = format!("{} of {} members can work", progress.ready, progress.members);
        if !excluded.is_empty() {
            text.push_str(&format!("; left out: {}", excluded.join("; ")));
        }
        text
    }

    fn happen(&mut self, happening: Happening) -> Result<(), SimError> {
        match happening {
            Happening::Reported(at, status, holds) => {
                let (parent, member) = (self.parent(at), self.nodes[at].name.clone());
                self.with_side(parent, async |side| side.reported(member, status, holds).await)
            }
            Happening::Told(at, assignment, start) => self.told(at, assignment, start),
            Happening::Fetched(at, work) => self.fetched(at, work),
            Happening::Worked(at, task) => self.worked(at, task),
            Happening::Offered(at, update) => self.offered(at, update),
            Happening::Wanted(at, update) => self.send_update(at, update),
            Happening::Submitted(at, update) => self.submitted(at, update),
            Happening::Answered(at, task, verdict) => match self.is_reachable(at) {
                true => self.take_part(at, MemberEvent::Answered { task, verdict }),
                false => Ok(()),
            },
            Happening::Rising { relay, bytes, then } => {
                let there = self.relays[relay].pipes[0].carry(self.clock.now(), bytes);
                self.clock.at(there, *then);
                Ok(())
            }
            Happening::Falling { to, bytes, then } => {
                self.fall(to, bytes, *then);
                Ok(())
            }
            Happening::Asked { at, from, exchange, ask } => {
                self.asked(at, from, exchange, ask);
                Ok(())
            }
            Happening::Heard { at, from, exchange, model } => self.heard(at, from, exchange, model),
            Happening::PatienceEnds { at, from, exchange, ask } => self.patience_ends(at, from, exchange, ask),
            Happening::Away(at) => {
                self.reach(at, false);
                self.links(at, false)?;
                let (parent, member) = (self.parent(at), self.nodes[at].name.clone());
                let time = self.clock.now() + self.draw(self.away);
                self.clock.at(time, Happening::Back(at));
                self.coordinate(parent, Event::Lost { member })
            }
            Happening::Back(at) => {
                self.reach(at, true);
                self.links(at, true)?;
                let up = seconds(self.away.as_secs_f64() * self.availability / (1.0 - self.availability));
                let time = self.clock.now() + self.draw(up);
                self.clock.at(time, Happening::Away(at));
                Ok(())
            }
            Happening::Wake(at) => {
                if self.nodes[at].wakes_at.is_some_and(|t| t <= self.clock.now()) {
                    self.nodes[at].wakes_at = None;
                }
                self.with_member(at, async |member| member.wakes().await)?;
                self.with_side(at, async |side| side.wakes().await)
            }
        }
    }

    fn parent(&self, at: usize) -> usize {
        self.nodes[at].below.as_ref().map_or(0, |b| b.parent)
    }

    fn is_reachable(&self, at: usize) -> bool {
        self.nodes[at].below.as_ref().is_some_and(|below| below.reachable)
    }

    fn reach(&mut self, at: usize, reachable: bool) {
        if let Some(below) = &mut self.nodes[at].below {
            below.reachable = reachable;
        }
    }

    /// Posts the time at which a node's machines want to be woken.
    fn set_alarm(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let below = node.below.as_ref().and_then(|b| b.member.wake());
        let above = node.above.as_ref().and_then(|above| above.wake());
        let Some(wake) = below.into_iter().chain(above).min() else { return };
        if node.wakes_at.is_none_or(|t| wake < t) {
            node.wakes_at = Some(wake);
            self.clock.at(wake, Happening::Wake(at));
        }
    }

    /// How updates travel to a node.
    fn sender_to(&self, parent: usize) -> Sender {
        match (&self.federation.edge, parent) {
            (Some(edge), 1..) => edge.sender(),
            _ => self.federation.cloud.sender(),
        }
    }
}

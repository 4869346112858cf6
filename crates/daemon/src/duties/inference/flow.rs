//! One request through this node: performs what the request machine asks
//! (`tierline_node::request`), with real tensors, sessions and connections.
//!
//! Entry and relay are the same flow; they differ in where the tensors come
//! from and who chose the route.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tierline_node::admit::{Class, Priority};
use tierline_node::request::{
    Action, DEEP_BUDGET_SPENT, Event, Local, Op, Ran, Recovery, Request, RequestOutcome, Setup, Upstream,
};
use tierline_node::{Peer, Span};
use tierline_proto::otlp::{Kind, known};
use tierline_proto::v1::degraded::Cause;
use tierline_proto::v1::{Boundary, Code, Degraded, Failure, Reply, Route, RunHeader, StageTiming};
use tierline_proto::{Digest, Encoded};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::exits::{ExitAnswer, Judged, Judging};
use super::{Inference, calls, exits, wire};
use crate::device::budget::Held;
use crate::device::compute::Turn;
use crate::device::program::{ActiveExit, Named, Program, SliceKey};
use crate::duties::planning::segment_after;
use crate::runtime::tasks::in_place_over;
use crate::runtime::traces::{Open, Within};
use crate::runtime::{ns, wait_until};

/// A plan's next tier is given up on after this many times its prediction
/// and [`PATIENCE_FLOOR`]: past that a cut link is likelier than a slow one.
const PATIENCE_FACTOR: u32 = 4;

/// Noise that no prediction sees.
const PATIENCE_FLOOR: Duration = Duration::from_millis(300);

/// Runs and calls of one request that have ended and are not looked at yet;
/// others wait with what they have.
const DONE_MAX: usize = 16;

/// A request's tensors, and the segment they enter.
pub struct Inputs {
    /// First segment they feed.
    pub segment: usize,
    /// Bytes received.
    pub received: u64,
    /// As they came over the wire: to be decoded when something runs here, and
    /// relayed without another encoding.
    encoded: Vec<Encoded>,
    decoded: tokio::sync::OnceCell<(Arc<Named>, Duration)>,
    /// What the request holds of the node's memory.
    held: Arc<Held>,
}

impl Inputs {
    /// Tensors that enter segment `segment`; `held` covers them as they came.
    #[must_use]
    pub fn new(segment: usize, encoded: Vec<Encoded>, held: Arc<Held>) -> Self {
        let received = wire::total(&encoded);
        Self { segment, received, encoded, decoded: tokio::sync::OnceCell::new(), held }
    }

    /// The tensors, decoded when they are first needed.
    async fn tensors(&self) -> Result<Arc<Named>, Failure> {
        let decode = || async {
            self.held.take(wire::decoded_bytes(&self.encoded)?)?;
            let (tensors, time) = in_place_over(self.received, || wire::unpack(&self.encoded))?;
            Ok::<_, Failure>((Arc::new(tensors), time))
        };
        self.decoded.get_or_try_init(decode).await.map(|(tensors, _)| Arc::clone(tensors))
    }

    /// The tensors as they came.
    pub(super) fn encoded(&self) -> &[Encoded] {
        &self.encoded
    }

    /// What the request holds of the node's memory.
    pub(super) fn held(&self) -> &Held {
        &self.held
    }

    /// The same, for whoever sends the answer.
    pub(super) fn shared(&self) -> Arc<Held> {
        Arc::clone(&self.held)
    }

    /// Time spent decoding; none where they were only passed on.
    fn decode_time(&self) -> Duration {
        self.decoded.get().map_or(Duration::ZERO, |(_, time)| *time)
    }
}

/// What is to be done with a request.
pub struct RoutedRequest {
    /// 16 bytes that name it at every node it passes.
    pub id: Vec<u8>,
    /// The model.
    pub program: Arc<Program>,
    /// Boundaries from here on, nearest first.
    pub boundaries: Vec<Boundary>,
    /// Who runs what lies behind the first boundary.
    pub peer: Option<Peer>,
    /// When it must be answered.
    pub deadline: Instant,
    /// Relays it has passed.
    pub hops: u32,
    /// Trace context, passed on.
    pub trace: String,
    /// Whether this node may answer by itself when the next tier fails.
    pub fallback: bool,
    /// Codec of outputs on their way back through this node's uplink.
    pub reply_codec: String,
    /// Whether to run here as well once the next tier is much later than
    /// predicted, rather than wait until the deadline is near.
    pub hedged: bool,
    /// Time after which a second copy goes another way, where one is wanted.
    pub hedge: Option<Duration>,
    /// Exits that may answer, from here on.
    pub exits: Vec<ActiveExit>,
    /// How urgent it is beside its caller's others: 0, or from 1.
    pub priority: u32,
    /// Whether the caller's budget of deep inferences is counted here.
    pub guarded: bool,
}

impl RoutedRequest {
    /// One past the last segment that runs here by its route.
    pub(super) fn first_end(&self) -> usize {
        self.boundaries.first().map_or(self.program.segments(), |boundary| segment_after(boundary.cut))
    }
}

/// A request's end.
pub struct Answer {
    /// Outputs, decoded; empty when failed.
    pub outputs: Named,
    /// Stages and how it ended.
    pub reply: Reply,
    /// What the request holds of the node's memory, until the answer is out.
    pub held: Option<Arc<Held>>,
    /// Numbers of the exits that could have answered, from 1.
    pub exits: Vec<usize>,
}

/// What a run or call produced.
enum Product {
    Ran { outputs: Named, timing: StageTiming, exit: Option<ExitAnswer> },
    Called { outputs: Named, sent: u64, encode: Duration, waited: Duration, stages: Vec<StageTiming>, exit: u32 },
}

/// What became of a run or call.
type Done = (Event, Option<(Op, Product)>);

/// Work that ends with what became of it.
type Working = Pin<Box<dyn Future<Output = Done> + Send>>;

/// Runs under way here, each polled by the request's own task: to start one for
/// each would wake other threads for little.
#[derive(Default)]
struct Running(Vec<(Op, Working)>);

impl Running {
    /// The next one that ends; waits for ever while there is none.
    fn next(&mut self) -> impl Future<Output = Done> {
        poll_fn(|cx| {
            let polled = self.0.iter_mut().enumerate().find_map(|(at, (_, run))| match run.as_mut().poll(cx) {
                Poll::Ready(done) => Some((at, done)),
                Poll::Pending => None,
            });
            let Some((at, done)) = polled else { return Poll::Pending };
            drop(self.0.swap_remove(at));
            Poll::Ready(done)
        })
    }
}

/// Counts a request as long as it lives.
struct UnderWay<'n>(&'n watch::Sender<usize>);

impl<'n> UnderWay<'n> {
    fn count(all: &'n watch::Sender<usize>) -> Self {
        all.send_modify(|under_way| *under_way += 1);
        Self(all)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|under_way| *under_way -= 1);
    }
}

/// Runs one request to its end.
pub async fn answer(duty: &Arc<Inference>, request: RoutedRequest, inputs: Inputs) -> Answer {
    let _counted = UnderWay::count(&duty.under_way);
    Flow::new(duty, request, inputs).run().await
}

struct Flow<'n> {
    duty: &'n Arc<Inference>,
    request: Arc<RoutedRequest>,
    inputs: Arc<Inputs>,
    /// Segment of the first boundary: where the planned local run ends.
    split: usize,
    /// The last frontier computed, and the segment behind it.
    frontier: Option<(usize, Arc<Named>)>,
    judging: Arc<Judging>,
    /// Where its spans belong, where it is traced.
    trace: Option<Within>,
    products: HashMap<Op, Product>,
    runs: Running,
    /// Calls under way.
    tasks: HashMap<Op, AbortHandle>,
    /// Bytes that a call has to send.
    sending: Arc<AtomicU64>,
    done: mpsc::Sender<Done>,
    inbox: mpsc::Receiver<Done>,
    /// What ran here of the plan, so far.
    own: Option<StageTiming>,
    /// Whether the last exit above was told to answer, sure or not.
    capped: bool,
}

impl<'n> Flow<'n> {
    fn new(duty: &'n Arc<Inference>, request: RoutedRequest, inputs: Inputs) -> Self {
        let split = request.first_end();
        let (done, inbox) = mpsc::channel(DONE_MAX);
        let judging = Judging::new(request.exits.clone());
        let trace = duty.cx.traces.within(&request.trace);
        Self {
            duty,
            request: Arc::new(request),
            inputs: Arc::new(inputs),
            split,
            frontier: None,
            judging,
            trace,
            products: HashMap::new(),
            runs: Running::default(),
            tasks: HashMap::new(),
            sending: Arc::default(),
            done,
            inbox,
            own: None,
            capped: false,
        }
    }

    fn setup(&self) -> Result<Setup, Failure> {
        let (first, segments) = (self.inputs.segment, self.request.program.segments());
        if self.split < first || self.split > segments || first > segments {
            let text = format!(
                "a route from segment {first} to {} of {segments}; the nodes hold different models",
                self.split
            );
            return Err(Failure::new(Code::Protocol, text).with_help("add the model again on the cloud"));
        }
        let predict = |from: usize, to: usize| self.duty.planning.predicted(&self.request.program, from, to);
        let local = |from: usize, to: usize| Local { span: span(from, to), predicted: predict(from, to) };
        let upstream = self.request.peer.filter(|_| self.split < segments).map(|peer| Upstream {
            peer,
            predicted: self.duty.planning.predicted_upstream(peer, &self.request.program, &self.request.boundaries),
            back: Duration::ZERO,
        });
        let mut recoveries = Vec::new();
        if self.request.fallback && upstream.is_some() {
            // From the frontier, which costs least, unless that part would have
            // to be loaded first, and the whole is there.
            let digest = &self.request.program.manifest.digest;
            let warm =
                |from| self.duty.cx.device.compute.is_warm(&SliceKey { digest: digest.clone(), from, to: segments });
            let frontier = self.split.max(first);
            let from = if !warm(frontier) && warm(first) { first } else { frontier };
            recoveries.push(Recovery::Here(local(from, segments)));
        }
        let others = if self.request.fallback { self.duty.cx.parents.others(self.request.peer) } else { Vec::new() };
        for other in others {
            recoveries.push(Recovery::Above(Upstream {
                peer: other,
                predicted: self.duty.planning.predicted_upstream(other, &self.request.program, &[]),
                back: Duration::ZERO,
            }));
        }
        let patience = upstream
            .filter(|u| self.request.hedged && !u.predicted.is_zero())
            .map(|u| u.predicted.saturating_mul(PATIENCE_FACTOR) + PATIENCE_FLOOR);
        // Without a next tier everything runs here.
        let split = if upstream.is_some() { self.split } else { segments };
        let steps = self.request.program.steps(first, split, self.judging.exits());
        Ok(Setup {
            node: self.duty.cx.me.name().to_owned(),
            deadline: self.duty.cx.clock.time_of(self.request.deadline),
            local: steps.into_iter().map(|(from, to)| local(from, to)).collect(),
            upstream,
            patience,
            hedge: self.request.hedge,
            recoveries,
        })
    }

    async fn run(mut self) -> Answer {
        let setup = match self.setup() {
            Ok(setup) => setup,
            Err(failure) => return self.failed(failure),
        };
        let next = setup.upstream.filter(|_| setup.patience.is_some()).map(|upstream| upstream.peer);
        let uplink = next.and_then(|peer| self.duty.cx.parents.get(peer).ok());
        let sending = Arc::clone(&self.sending);
        let mut silence = std::pin::pin!(async move {
            match uplink {
                Some(uplink) => uplink.silence(&sending).await,
                None => std::future::pending().await,
            }
        });
        let mut is_silent = false;
        let mut changes = self.duty.cx.parents.changes();
        let mut machine = Request::new(setup, self.duty.cx.parents.down());
        let mut actions = machine.step(self.duty.cx.clock.now(), Event::Start);
        loop {
            for action in std::mem::take(&mut actions) {
                match action {
                    Action::Run { op, span, recovery, .. } => self.start_run(op, span, recovery),
                    Action::Call { op, peer, remaining, whole } => self.start_call(op, peer, remaining, whole),
                    Action::Abandon { op } => {
                        self.runs.0.retain(|(running, _)| *running != op);
                        if let Some(task) = self.tasks.remove(&op) {
                            task.abort();
                        }
                    }
                    Action::Finish(outcome) => {
                        self.duty.numbers.hedged(machine.second(), &outcome);
                        return self.finish(outcome);
                    }
                }
            }
            let wake = machine.wake().map(|t| self.duty.cx.clock.instant_of(t));
            let event = tokio::select! {
                done = self.runs.next() => self.ended(done),
                Some(done) = self.inbox.recv() => self.ended(done),
                change = changes.recv() => match change {
                    Ok(change) => change,
                    // What was missed is how things are now.
                    Err(_) => {
                        for change in self.duty.cx.parents.now() {
                            actions.extend(machine.step(self.duty.cx.clock.now(), change));
                        }
                        continue;
                    }
                },
                (peer, reason) = &mut silence, if !is_silent => {
                    is_silent = true;
                    Event::Silent { peer, reason }
                }
                () = wait_until(wake) => Event::Wake,
            };
            actions = machine.step(self.duty.cx.clock.now(), event);
        }
    }

    /// A run or call has ended; what came of it is kept.
    fn ended(&mut self, (event, product): Done) -> Event {
        if let Some((op, product)) = product {
            self.keep(op, product);
        }
        event
    }

    fn keep(&mut self, op: Op, product: Product) {
        if let Product::Ran { outputs, timing, exit } = &product {
            let answers = exit.as_ref().map_or(0, |exit| wire::bytes(&exit.outputs));
            self.inputs.held.count(wire::bytes(outputs) + answers);
            let last = timing.last_segment as usize;
            if last < self.request.program.segments() {
                self.frontier = Some((last, Arc::new(outputs.clone())));
                self.own = Some(joined(self.own.take(), timing));
            }
        }
        self.products.insert(op, product);
    }

    fn start_run(&mut self, op: Op, span: Span, recovery: bool) {
        let (first, last) = (span.first as usize, span.last as usize);
        let frontier = self.frontier.as_ref().filter(|(at, _)| *at == first && first != self.inputs.segment);
        let frontier = frontier.map(|(_, tensors)| Arc::clone(tensors));
        // Without the frontier a recovery starts from the inputs.
        let first = if frontier.is_none() { self.inputs.segment } else { first };
        let key = SliceKey { digest: self.request.program.manifest.digest.clone(), from: first, to: last };
        let planned = !recovery && key.to < self.request.program.segments();
        let whole = key.from == 0 && key.to == self.request.program.segments();
        let turn = Turn {
            caller: self.inputs.held.caller(),
            // What has begun goes first, and is finished also where nothing new is taken.
            class: if recovery || key.from > self.inputs.segment { Class::Recovery } else { Class::Interactive },
            priority: Priority::of(self.request.priority),
            deadline: self.request.deadline,
            service: self.duty.planning.service(&self.request.program, key.from, key.to),
            after: self.request.peer.filter(|_| planned).map_or(Duration::ZERO, |peer| {
                self.duty.planning.predicted_upstream(peer, &self.request.program, &self.request.boundaries)
            }),
            bounds: Some(self.duty.cx.me.config().batching.bounds(&self.request.program.manifest.name)),
        };
        let fit = key.digest.parse().map_or(Ok(()), |model| self.duty.catalogue.known.check_fit(model));
        let (catalogue, program) = (Arc::clone(&self.duty.catalogue), Arc::clone(&self.request.program));
        let (name, role, inputs) =
            (self.duty.cx.me.name().to_owned(), self.duty.cx.me.role().into(), Arc::clone(&self.inputs));
        let (judging, clock, duty) = (Arc::clone(&self.judging), self.duty.cx.clock, Arc::clone(self.duty));
        let guarded = (self.request.guarded && !recovery).then(|| judging.last()).flatten();
        let caller = self.inputs.held.caller();
        let trace = self.trace.clone();
        let work = async move {
            let begun = Instant::now();
            let tensors = match (fit, frontier) {
                (Err(failure), _) => Err(failure),
                (Ok(()), Some(frontier)) => Ok(frontier),
                (Ok(()), None) => inputs.tensors().await,
            };
            let tensors = match tensors {
                Ok(tensors) => tensors,
                Err(failure) => return (Event::RunDone { op, result: Err(failure.at(&name)) }, None),
            };
            let ready = Instant::now();
            match catalogue.run_here(&program, key, tensors, turn).await {
                Ok(mut computed) => {
                    let ran_until = Instant::now();
                    let judged = judging.judge(&program, last, &mut computed.outputs);
                    if let Some(trace) = &trace {
                        // It may wait for the session as well.
                        let ran_from = ran_until.checked_sub(computed.compute).unwrap_or(ready).max(ready);
                        let of = |from: usize, to: usize| {
                            vec![
                                known("tierline.first_segment", from as u64),
                                known("tierline.last_segment", to as u64),
                            ]
                        };
                        if !inputs.decode_time().is_zero() && first == inputs.segment {
                            trace.leaf("decode", (begun, ready), vec![known("tierline.bytes", inputs.received)]);
                        }
                        trace.leaf("queue", (ready, ran_from), Vec::new());
                        trace.leaf("run", (ran_from, ran_until), of(first, last));
                        if let Ok(Judged { answer: Some(answer), ran }) = &judged {
                            let exit = known("tierline.exit", answer.index as u64 + 1);
                            let leaves = known("tierline.leaves", *ran == Ran::Sure);
                            trace.leaf("exit", (ran_until, Instant::now()), vec![exit, leaves]);
                        }
                    }
                    let (mut ran, exit) = match judged {
                        Ok(judged) => (judged.ran, judged.answer),
                        Err(failure) => return (Event::RunDone { op, result: Err(failure.at(&name)) }, None),
                    };
                    // Behind the last exit here the model is run to its end.
                    if ran == Ran::Unsure && guarded == Some(last) && !duty.deep.may(clock.now(), &caller) {
                        ran = Ran::Capped;
                    }
                    let at_entry = first == inputs.segment;
                    let timing = StageTiming {
                        node: name,
                        role,
                        first_segment: first as u32,
                        last_segment: last as u32,
                        queue_ns: ns(computed.queued),
                        decode_ns: if at_entry { ns(inputs.decode_time()) } else { 0 },
                        compute_ns: ns(computed.compute),
                        batch_requests: computed.batch.map_or(0, |(requests, _)| requests),
                        batch_rows: computed.batch.map_or(0, |(_, rows)| rows),
                        received_bytes: if at_entry { inputs.received } else { 0 },
                        ..StageTiming::default()
                    };
                    let product = Product::Ran { outputs: computed.outputs, timing, exit };
                    (Event::RunDone { op, result: Ok(ran) }, Some((op, product)))
                }
                Err(failure) => {
                    let mut failure = failure.at(&name);
                    if let Some(trace) = &trace {
                        trace.child("run", Kind::Internal, ready).end(Some(&failure));
                    }
                    // What a part of the model doesn't take, the whole may.
                    if failure.code() == Code::InvalidInput && !whole {
                        failure.code = Code::Engine.into();
                    }
                    (Event::RunDone { op, result: Err(failure) }, None)
                }
            }
        };
        let (tasks, node) = (self.duty.cx.tasks.clone(), self.duty.cx.me.name().to_owned());
        let run = async move {
            let broken = |failure: Failure| (Event::RunDone { op, result: Err(failure.at(&node)) }, None);
            tasks.caught("run", work).await.unwrap_or_else(broken)
        };
        self.runs.0.push((op, Box::pin(run)));
    }

    fn start_call(&mut self, op: Op, peer: Peer, remaining: Duration, whole: bool) {
        let (duty, request, inputs) = (Arc::clone(self.duty), Arc::clone(&self.request), Arc::clone(&self.inputs));
        let (split, sending) = (self.split, Arc::clone(&self.sending));
        let frontier = self.frontier.as_ref().filter(|(at, _)| *at == split).map(|(_, tensors)| Arc::clone(tensors));
        // Exits above are the last that a caller without a budget gets to.
        let above = self.judging.last().is_some_and(|last| last > split);
        let capped = self.request.guarded
            && above
            && !whole
            && !self.duty.deep.may(self.duty.cx.clock.now(), &inputs.held.caller());
        self.capped |= capped;
        let trace = self.trace.clone();
        let work = async move {
            let call = Call { peer, remaining, whole, split, sending, capped, trace };
            let result = self::call(&duty, &request, &inputs, frontier, call).await;
            match result {
                Ok((product, degraded)) => (Event::CallDone { op, result: Ok(degraded) }, Some((op, product))),
                Err(failure) => (Event::CallDone { op, result: Err(failure) }, None),
            }
        };
        // Encoding may take long; the request hears of other things meanwhile.
        let (done, node) = (self.done.clone(), self.duty.cx.me.name().to_owned());
        let task = self.duty.cx.tasks.spawn_then("call above", work, move |ended| async move {
            let broken = |failure: Failure| (Event::CallDone { op, result: Err(failure.at(&node)) }, None);
            // A request that is answered wants no more.
            let _ = done.send(ended.unwrap_or_else(broken)).await;
        });
        self.tasks.insert(op, task.abort_handle());
    }

    fn finish(mut self, outcome: RequestOutcome) -> Answer {
        self.runs.0.clear();
        for (_, task) in self.tasks.drain() {
            task.abort();
        }
        let (op, mut degraded) = match outcome {
            RequestOutcome::Failed(failure) => return self.failed(failure),
            RequestOutcome::Answer { op, degraded } => (op, degraded),
        };
        let mut stages: Vec<StageTiming> = self.own.take().into_iter().collect();
        let (outputs, exit) = match self.products.remove(&op) {
            None => return self.failed(Failure::new(Code::Internal, "the answer was lost on its way")),
            // It is among the stages already.
            Some(Product::Ran { exit: Some(exit), .. }) => (exit.outputs, exit.index as u32 + 1),
            Some(Product::Ran { outputs, timing, exit: None }) => {
                match stages.pop() {
                    Some(own) if own.last_segment == timing.first_segment => stages.push(joined(Some(own), &timing)),
                    own => stages.extend(own.into_iter().chain([timing])),
                }
                (outputs, 0)
            }
            Some(Product::Called { outputs, sent, encode, waited, stages: above, exit }) => {
                if stages.is_empty() {
                    // Nothing ran here: the stage is the relaying itself.
                    let at = self.inputs.segment as u32;
                    stages.push(StageTiming {
                        node: self.duty.cx.me.name().to_owned(),
                        role: self.duty.cx.me.role().into(),
                        first_segment: at,
                        last_segment: at,
                        decode_ns: ns(self.inputs.decode_time()),
                        received_bytes: self.inputs.received,
                        ..StageTiming::default()
                    });
                }
                if let Some(own) = stages.last_mut() {
                    (own.sent_bytes, own.encode_ns, own.upstream_ns) = (sent, ns(encode), ns(waited));
                }
                stages.extend(above);
                let last = self.judging.exits().last().map_or(0, |exit| exit.index as u32 + 1);
                if self.capped && exit == last && degraded.is_none() {
                    let reason = DEEP_BUDGET_SPENT.to_owned();
                    let node = self.duty.cx.me.name().to_owned();
                    degraded = Some(Degraded { cause: Cause::DeepBudget.into(), reason, node });
                }
                (outputs, exit)
            }
        };
        if self.request.guarded && exit == 0 && self.judging.last().is_some() {
            self.duty.deep.count(self.duty.cx.clock.now(), self.inputs.held.caller());
        }
        if let Some(degraded) = &degraded {
            self.duty.numbers.degraded(degraded);
        }
        Answer {
            outputs,
            held: Some(Arc::clone(&self.inputs.held)),
            exits: self.judging.exits().iter().map(|exit| exit.index + 1).collect(),
            reply: Reply {
                request: self.request.id.clone().into(),
                failure: None,
                degraded,
                stages,
                tensors: Vec::new(),
                exit,
                ..Reply::default()
            },
        }
    }

    fn failed(&self, failure: Failure) -> Answer {
        let failure = failure.at(self.duty.cx.me.name());
        Answer {
            outputs: Vec::new(),
            held: None,
            exits: Vec::new(),
            reply: Reply {
                request: self.request.id.clone().into(),
                failure: Some(failure),
                degraded: None,
                stages: self.own.iter().cloned().collect(),
                tensors: Vec::new(),
                ..Reply::default()
            },
        }
    }
}

impl Drop for Flow<'_> {
    fn drop(&mut self) {
        // A caller that went away wants nothing more done.
        for task in self.tasks.values() {
            task.abort();
        }
    }
}

struct Call {
    peer: Peer,
    remaining: Duration,
    whole: bool,
    split: usize,
    /// Whether the last exit answers, sure or not.
    capped: bool,
    /// Told how much there is to send.
    sending: Arc<AtomicU64>,
    trace: Option<Within>,
}

/// Hands a request to a parent and waits for its answer.
async fn call(
    duty: &Arc<Inference>,
    request: &RoutedRequest,
    inputs: &Inputs,
    frontier: Option<Arc<Named>>,
    call: Call,
) -> Result<(Product, Option<Degraded>), Failure> {
    let Call { peer, remaining, whole, split, capped, sending, trace } = call;
    let uplink = duty.cx.parents.get(peer)?;
    let first = request.boundaries.first().filter(|_| !whole);
    let codec_of = |name: &str| {
        first.and_then(|b| b.tensors.iter().find(|t| t.name == name)).map_or(wire::raw().name(), |t| t.codec.as_str())
    };
    let at_inputs = whole || split == inputs.segment;
    // Relayed as they came where they can be: decoding and encoding again would
    // only cost.
    let relayed = request.hops > 0 || inputs.encoded.iter().all(|e| e.codec == codec_of(&e.name));
    let begun = Instant::now();
    let (tensors, encode) = match &frontier {
        Some(frontier) if !at_inputs => encode_blocking(Arc::clone(frontier), codec_of).await?,
        _ if relayed => (inputs.encoded.clone(), Duration::ZERO),
        _ => encode_blocking(inputs.tensors().await?, codec_of).await?,
    };
    let sent = wire::total(&tensors);
    sending.store(sent, Ordering::Relaxed);
    let span = trace.map(|trace| {
        if !encode.is_zero() {
            trace.leaf("encode", (begun, Instant::now()), vec![known("tierline.bytes", sent)]);
        }
        let mut span = trace.child("send", Kind::Client, Instant::now());
        span.attributes = vec![known("tierline.to", uplink.name()), known("tierline.bytes", sent)];
        span
    });
    // What was made for this call is held until its answer is here.
    let made = if at_inputs && relayed { 0 } else { sent };
    inputs.held.count(made);
    let _given_back = GiveBack { held: &inputs.held, bytes: made };
    let segment = if at_inputs { inputs.segment } else { split };
    let header = RunHeader {
        request: request.id.clone().into(),
        model: digest_bytes(&request.program.manifest.digest)?,
        route: Some(Route {
            from: segment.checked_sub(1).map(|c| c as u32),
            boundaries: if whole { Vec::new() } else { request.boundaries.iter().skip(1).cloned().collect() },
            reply_codec: request.reply_codec.clone(),
        }),
        remaining_us: u64::try_from(remaining.as_micros()).unwrap_or(u64::MAX),
        hops: request.hops + 1,
        trace: span.as_ref().map_or_else(|| request.trace.clone(), Open::context),
        tensors: tierline_proto::frame::declare(&tensors),
        no_fallback: !request.fallback,
        priority: request.priority,
        forwarded: false,
        exits: if whole { Vec::new() } else { exits::told(&request.exits, segment, capped) },
    };
    let started = Instant::now();
    let predicted =
        duty.planning.predicted_upstream(peer, &request.program, if whole { &[] } else { &request.boundaries });
    let asking = uplink.ask(sent, request.deadline.min(started + remaining), predicted)?;
    let answered = tokio::select! {
        answered = calls::run(&duty.cx, &uplink, header, tensors, &inputs.held) => asking.ended(answered),
        never = uplink.report_pending(sent, predicted) => match never {},
    };
    if let Some(span) = span {
        span.end(match &answered {
            Ok((reply, _)) => reply.failure.as_ref(),
            Err(failure) => Some(failure),
        });
    }
    let (reply, encoded) = answered?;
    let waited = started.elapsed();
    let received = wire::total(&encoded);
    uplink.observe_transfer(sent, received, waited, &reply.stages);
    if let Some(failure) = reply.failure.filter(|f| f.code() != Code::Ok) {
        return Err(failure);
    }
    inputs.held.take(wire::decoded_bytes(&encoded)?)?;
    let (outputs, _) = in_place_over(received, || wire::unpack(&encoded))?;
    inputs.held.give_back(received);
    let Reply { stages, degraded, exit, .. } = reply;
    Ok((Product::Called { outputs, sent, encode, waited, stages, exit }, degraded))
}

/// Two steps in one, where the second follows the first.
fn joined(before: Option<StageTiming>, timing: &StageTiming) -> StageTiming {
    let Some(mut joined) = before else { return timing.clone() };
    joined.last_segment = timing.last_segment;
    // Of several steps, the longest says in what company.
    if timing.compute_ns > joined.compute_ns {
        (joined.batch_requests, joined.batch_rows) = (timing.batch_requests, timing.batch_rows);
    }
    joined.queue_ns += timing.queue_ns;
    joined.compute_ns += timing.compute_ns;
    joined
}

/// Gives back what a call held of a request's memory.
struct GiveBack<'h> {
    held: &'h Held,
    bytes: u64,
}

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        self.held.give_back(self.bytes);
    }
}

async fn encode_blocking<'a>(
    tensors: Arc<Named>,
    codec_of: impl Fn(&str) -> &'a str,
) -> Result<(Vec<Encoded>, Duration), Failure> {
    let packed = in_place_over(wire::bytes(&tensors), || wire::pack(&tensors, codec_of))?;
    Ok((packed.tensors, packed.time))
}

fn span(from: usize, to: usize) -> Span {
    Span { first: from as u32, last: to as u32 }
}

/// A model's digest as a message field.
fn digest_bytes(digest: &str) -> Result<bytes::Bytes, Failure> {
    digest.parse::<Digest>().map(Digest::to_bytes).map_err(|e| Failure::new(Code::Corrupt, e.to_string()))
}

//! One request past the models of a service: performs what the composition's
//! machine asks (`tierline_node::composition`), with real tensors and requests.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use tierline_graph::{DataType, Elements, Tensor};
use tierline_node::composition::{Action, Ask, Composition, Event, Form, Outcome, Setup};
use tierline_plan::Service;
use tierline_plan::service::Member;
use tierline_plan::service::combine::{Voice, combine};
use tierline_plan::service::crops::{Chosen, join};
use tierline_plan::service::follow::Seen;
use tierline_plan::service::numbers::{TensorsError, named};
use tierline_plan::service::{self as plan, Kind};
use tierline_proto::v1::{Code, Failure, InferHeader, Placement, Reply};
use tierline_proto::{Digest, Encoded};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::Services;
use super::examples::{Mined, said};
use crate::device::budget::Held;
use crate::device::program::Named;
use crate::duties::catalogue::Composed;
use crate::duties::inference::members::Asked;
use crate::duties::inference::{Answer, Entered, wire};
use crate::runtime::tasks::in_place;
use crate::runtime::wait_until;
use crate::services::{CROPS_OUTPUT, From, Wiring};

/// Ends of asking that aren't looked at yet; others wait with what they have.
const DONE_MAX: usize = 16;

/// Answers a request for a service.
pub async fn answer(
    duty: &Arc<Services>,
    id: Vec<u8>,
    header: InferHeader,
    encoded: Vec<Encoded>,
    deadline: Instant,
    held: Arc<Held>,
) -> Entered {
    let failed = |id: &[u8], failure: Failure| Entered::failed(id.to_vec(), failure.at(duty.cx.me.name()));
    let Some(composed) = duty.catalogue.known.service(&header.model) else {
        return failed(&id, Failure::new(Code::UnknownModel, format!("no service `{}` is known here", header.model)));
    };
    if let Err(failure) = check_wish(&composed.name, &header) {
        return failed(&id, failure);
    }
    let wiring = match duty.catalogue.wiring(&composed.service) {
        Ok(wiring) => wiring,
        Err(failure) => return failed(&id, failure),
    };
    if let Err(failure) = wire::check_wanted(&encoded, &wiring.inputs) {
        let help = format!("`tierline model show {}` lists the inputs", composed.name);
        return failed(&id, failure.with_help(help));
    }
    let flow = Flow {
        picked: None,
        beyond: Vec::new(),
        duty,
        id,
        header,
        wiring,
        composed,
        encoded,
        decoded: None,
        held,
        deadline,
        asked: Vec::new(),
        answers: BTreeMap::new(),
        chosen: BTreeMap::new(),
        tasks: HashMap::new(),
    };
    flow.run().await
}

/// Refuses what can be asked of one model only: answered all the same, it would
/// not be what was asked for.
fn check_wish(name: &str, header: &InferHeader) -> Result<(), Failure> {
    let what = match header {
        _ if header.exit.is_some() => "an exit",
        _ if header.placement() == Placement::Fixed => "a route",
        _ => return Ok(()),
    };
    let text = format!("{what} is asked for, and `{name}` is made of several models");
    Err(Failure::new(Code::InvalidInput, text).with_help("ask one of its models, or leave that away"))
}

/// What is heard of an asking.
type Heard = (Ask, usize, usize, What);

enum What {
    Ended(Box<Entered>),
    Silent(String),
}

struct Flow<'n> {
    duty: &'n Arc<Services>,
    id: Vec<u8>,
    header: InferHeader,
    composed: Composed,
    wiring: Wiring,
    encoded: Vec<Encoded>,
    /// The inputs, decoded when they are first needed.
    decoded: Option<Arc<Named>>,
    held: Arc<Held>,
    deadline: Instant,
    /// Stages of every member that was asked and answered, in order.
    asked: Vec<Reply>,
    /// Answers by step, then piece.
    answers: BTreeMap<usize, BTreeMap<usize, Entered>>,
    /// Boxes that members on crops look at, by step.
    chosen: BTreeMap<usize, Chosen>,
    tasks: HashMap<Ask, AbortHandle>,
    /// Why the first model's answer doesn't stand, and how sure it was.
    picked: Option<(&'static str, f64)>,
    /// Members that were asked beyond, and how sure each was: a fair sample of
    /// all requests.
    beyond: Vec<(usize, f64)>,
}

impl Flow<'_> {
    fn service(&self) -> &Service {
        &self.composed.service
    }

    fn form(&self) -> Form {
        let service = self.service();
        match service.kind {
            Kind::Cascade => Form::cascade(&service.members.iter().map(|member| member.share).collect::<Vec<_>>()),
            Kind::Ensemble => {
                let all = service.members.len();
                Form::ensemble(all, service.least.unwrap_or(all))
            }
            Kind::Chain => {
                let before = |place| (service.before(place), service.members[place].crops.is_some());
                Form::chain(&(0..service.members.len()).map(before).collect::<Vec<_>>())
            }
        }
    }

    async fn run(mut self) -> Entered {
        let (send, mut inbox) = mpsc::channel(DONE_MAX);
        let clock = self.duty.cx.clock;
        let setup = Setup {
            node: self.duty.cx.me.name().to_owned(),
            deadline: clock.time_of(self.deadline),
            form: self.form(),
        };
        let poor = match self.poor() {
            Ok(poor) => poor,
            Err(failure) => return self.failed(failure),
        };
        let mut machine = Composition::new(setup);
        let mut actions = machine.step(clock.now(), Event::Start);
        loop {
            // A step that can't be asked fails at once, which may begin others.
            let mut events = Vec::new();
            for action in std::mem::take(&mut actions) {
                match action {
                    Action::Ask { ask, step, piece, deadline, recover } => {
                        let deadline = clock.instant_of(deadline);
                        match self.asked(step, piece, deadline, recover) {
                            Ok(asked) => self.begin(&send, (ask, step, piece), asked),
                            Err(failure) => events.push(Event::Failed { ask, failure }),
                        }
                    }
                    Action::Abandon { ask } => {
                        if let Some(task) = self.tasks.remove(&ask) {
                            task.abort();
                        }
                    }
                    Action::Finish(outcome) => return self.finish(outcome),
                }
            }
            if events.is_empty() {
                let wake = machine.wake().map(|t| clock.instant_of(t));
                events.push(tokio::select! {
                    Some(heard) = inbox.recv() => self.hear(heard, poor),
                    () = wait_until(wake) => Event::Wake,
                });
            }
            for event in events {
                actions.extend(machine.step(clock.now(), event));
            }
        }
    }

    /// What is wrong with the request's pictures, where the service looks.
    fn poor(&mut self) -> Result<Option<&'static str>, Failure> {
        let Some(quality) = self.service().quality.clone() else { return Ok(None) };
        let inputs = self.inputs()?;
        in_place(|| quality.poor(&inputs)).map_err(|e| Failure::new(Code::InvalidInput, e.to_string()))
    }

    fn inputs(&mut self) -> Result<Arc<Named>, Failure> {
        if let Some(decoded) = &self.decoded {
            return Ok(Arc::clone(decoded));
        }
        self.held.take(wire::decoded_bytes(&self.encoded)?)?;
        let (tensors, _) = in_place(|| wire::unpack(&self.encoded))?;
        Ok(Arc::clone(self.decoded.insert(Arc::new(tensors))))
    }

    /// The request to a member.
    fn asked(&mut self, step: usize, piece: usize, deadline: Instant, recover: bool) -> Result<Asked, Failure> {
        let mut encoded = Vec::new();
        for (input, from) in self.wiring.feeds[step].clone() {
            let tensor = match from {
                From::Input(name) => {
                    let given = self.encoded.iter().find(|given| given.name == name).cloned();
                    let given = given.ok_or_else(|| missing(&name))?;
                    encoded.push(Encoded { name: input.name, ..given });
                    continue;
                }
                From::Output(place, output) => self.output(place, &output)?,
                From::Crops => {
                    let (service, inputs) = (Arc::clone(&self.composed.service), self.inputs()?);
                    let crops = service.members[step].crops.as_ref().ok_or_else(|| missing("crops"))?;
                    let chosen = self.chosen.get(&step).ok_or_else(|| missing("boxes"))?;
                    let boxes = &chosen.boxes[chosen.batch(piece, crops.batch_max)];
                    let picture = named(&inputs, &crops.image).map_err(wrong)?;
                    let dtype = input.dtype.unwrap_or(DataType::F32);
                    in_place(|| crops.cut(picture, boxes, dtype)).map_err(wrong)?
                }
            };
            self.held.take(tensor.byte_len())?;
            let packed = in_place(|| wire::pack(&[(input.name, tensor)], |_| wire::raw().name()))?;
            encoded.extend(packed.tensors);
        }
        let member = &self.service().members[step];
        let placement = match (self.header.placement(), member.placement) {
            // What the caller asks for holds for all of them.
            (Placement::Here, _) => Placement::Here,
            (Placement::Edge, _) => Placement::Edge,
            (Placement::Cloud, _) => Placement::Cloud,
            (_, plan::Placement::Here) => Placement::Here,
            (_, plan::Placement::Edge) => Placement::Edge,
            (_, plan::Placement::Cloud) => Placement::Cloud,
            (_, plan::Placement::Plan) => Placement::Plan,
        };
        Ok(Asked {
            model: member.model.clone(),
            placement,
            encoded,
            deadline,
            held: Arc::clone(&self.held),
            trace: self.header.trace.clone(),
            priority: self.header.priority,
            hedge: self.header.hedge,
            recover,
        })
    }

    fn begin(&mut self, send: &mpsc::Sender<Heard>, of: (Ask, usize, usize), asked: Asked) {
        let (ask, step, piece) = of;
        let (inference, silent, done) = (Arc::clone(&self.duty.inference), send.clone(), send.clone());
        let work = async move {
            let on_silence = move |reason| {
                // Who hears nothing hears of the end all the same.
                let _ = silent.try_send((ask, step, piece, What::Silent(reason)));
            };
            inference.ask_member(asked, on_silence).await
        };
        let node = self.duty.cx.me.name().to_owned();
        let task = self.duty.cx.tasks.spawn_then("service member", work, move |ended| async move {
            let entered = ended.unwrap_or_else(|failure| Entered::failed(Vec::new(), failure.at(&node)));
            // A request that is answered wants no more.
            let _ = done.send((ask, step, piece, What::Ended(Box::new(entered)))).await;
        });
        self.tasks.insert(ask, task.abort_handle());
    }

    /// What the machine is told.
    fn hear(&mut self, heard: Heard, poor: Option<&'static str>) -> Event {
        let (ask, step, piece, what) = heard;
        let mut entered = match what {
            What::Silent(reason) => return Event::Silent { ask, reason },
            What::Ended(entered) => *entered,
        };
        self.tasks.remove(&ask);
        if let Some(failure) = entered.answer.reply.failure.take().filter(|failure| failure.code() != Code::Ok) {
            return Event::Failed { ask, failure };
        }
        let service = Arc::clone(&self.composed.service);
        let last = step + 1 == service.members.len();
        let member = &service.members[step];
        let sure = match service.kind {
            Kind::Cascade if last => true,
            Kind::Cascade => match in_place(|| self.in_force(step).judge(&entered.answer.outputs)) {
                Ok(verdict) => {
                    let doubt = match poor {
                        Some(poor) => Some(poor),
                        None if !verdict.sure => Some("unsure"),
                        None => (fastrand::f64() < service.audit).then_some("audit"),
                    };
                    if let (0, Some(why)) = (step, doubt) {
                        self.picked = Some((why, verdict.sureness));
                    }
                    // Of the unsure ones as large a share as of the others. What pictures are picked for
                    // says nothing of thresholds.
                    let drawn = || verdict.sure || fastrand::f64() < service.audit;
                    if doubt.is_some() && poor.is_none() && drawn() {
                        self.beyond.push((step, verdict.sureness));
                    }
                    doubt.is_none()
                }
                Err(e) => {
                    let text = format!("the answer of `{}` can't be judged: {e}", member.name());
                    return Event::Failed { ask, failure: Failure::new(Code::Engine, text) };
                }
            },
            _ => false,
        };
        let degraded = entered.answer.reply.degraded.clone();
        self.asked.push(Reply { stages: entered.answer.reply.stages.clone(), ..Reply::default() });
        self.answers.entry(step).or_default().insert(piece, entered);
        match self.choose(step) {
            Ok(pieces) => Event::Answered { ask, sure, degraded, pieces },
            Err(failure) => Event::Failed { ask, failure },
        }
    }

    /// A member with the threshold that is in force.
    fn in_force(&self, step: usize) -> Member {
        let member = self.service().members[step].clone();
        match self.duty.following.threshold(&self.composed, step) {
            Some(threshold) => Member { threshold: Some(threshold), ..member },
            None => member,
        }
    }

    /// Tells of each member that was asked beyond whether the last answer is the
    /// same.
    fn follow(&self) {
        let Some((last, of_last)) = self.answers.last_key_value() else { return };
        let class = |step: usize, pieces: &BTreeMap<usize, Entered>| {
            let outputs = &pieces.values().next()?.answer.outputs;
            said(&self.service().members[step], outputs)
        };
        let Some(told) = class(*last, of_last) else { return };
        for (step, sureness) in self.beyond.iter().filter(|(step, _)| step < last) {
            let Some(own) = self.answers.get(step).and_then(|pieces| class(*step, pieces)) else { continue };
            let seen = Seen { sureness: *sureness, agrees: own == told };
            self.duty.following.observe(&self.composed, *step, seen);
        }
    }

    /// How many pieces a step's answer makes for the one behind it on crops.
    fn choose(&mut self, step: usize) -> Result<usize, Failure> {
        let service = Arc::clone(&self.composed.service);
        let behind = service.members.iter().enumerate().find_map(|(place, member)| {
            member.crops.as_ref().filter(|crops| service.place(&crops.of) == Some(step)).map(|crops| (place, crops))
        });
        let Some((place, crops)) = behind else { return Ok(0) };
        let inputs = self.inputs()?;
        let picture = named(&inputs, &crops.image).map_err(wrong)?;
        let outputs = self.outputs(step)?;
        let chosen = in_place(|| crops.choose(&outputs, picture)).map_err(wrong)?;
        let pieces = chosen.batches(crops.batch_max);
        self.chosen.insert(place, chosen);
        Ok(pieces)
    }

    fn output(&self, place: usize, output: &str) -> Result<Tensor, Failure> {
        named(&self.outputs(place)?, output).map_err(wrong).cloned()
    }

    /// A step's outputs, of all its pieces.
    fn outputs(&self, step: usize) -> Result<Named, Failure> {
        let pieces = self.answers.get(&step);
        if self.service().members[step].crops.is_none() {
            let first = pieces.and_then(|pieces| pieces.values().next());
            return Ok(first.map(|entered| entered.answer.outputs.clone()).unwrap_or_default());
        }
        let of_pieces = pieces.into_iter().flat_map(BTreeMap::values).map(|entered| entered.answer.outputs.clone());
        let none = self.wiring.names[step].iter().map(|(info, _)| {
            let rest = info.shape.iter().flatten().skip(1).map(|axis| axis.known().unwrap_or(0) as usize);
            (info.name.clone(), info.dtype.unwrap_or(DataType::F32), rest.collect())
        });
        in_place(|| join(&of_pieces.collect::<Vec<_>>(), &none.collect::<Vec<_>>())).map_err(wrong)
    }

    fn finish(mut self, outcome: Outcome) -> Entered {
        for (_, task) in self.tasks.drain() {
            task.abort();
        }
        let (steps, degraded) = match outcome {
            Outcome::Failed(failure) => return self.failed(failure),
            Outcome::Answer { steps, degraded } => (steps, degraded),
        };
        let made = match self.service().kind {
            Kind::Cascade => self.of_cascade(&steps),
            Kind::Ensemble => self.of_ensemble(&steps),
            Kind::Chain => self.of_chain(),
        };
        let outputs = match made {
            Ok(outputs) => outputs,
            Err(failure) => return self.failed(failure),
        };
        let members: Vec<&str> = steps.iter().map(|step| self.service().members[*step].name()).collect();
        let member = members.join(", ");
        if self.service().agreement.is_some() {
            in_place(|| self.follow());
        }
        self.mine();
        self.duty.numbers.answered(self.duty.cx.clock.now(), &self.composed.name, &member);
        let of = |step: &usize| self.answers.get(step).and_then(|pieces| pieces.values().next());
        let (exit, model) = match &steps[..] {
            [one] => of(one).map_or((0, self.document()), |e| (e.answer.reply.exit, e.model.clone())),
            _ => (0, self.document()),
        };
        let plans = self.answers.iter().filter_map(|(step, pieces)| {
            let plan = &pieces.values().next()?.plan;
            Some(format!("{}: {}", self.service().members[*step].name(), if plan.is_empty() { "none" } else { plan }))
        });
        let plan = plans.collect::<Vec<_>>().join("; ");
        let reply = Reply {
            request: self.id.clone().into(),
            degraded,
            stages: self.asked.iter().flat_map(|reply| reply.stages.iter().cloned()).collect(),
            exit,
            member,
            ..Reply::default()
        };
        let answer = Answer { outputs, reply, held: Some(Arc::clone(&self.held)), exits: Vec::new() };
        Entered { predicted: 0, plan, model, version: 0, answer }
    }

    /// Hands what the first model wasn't sure of to whoever keeps examples.
    fn mine(&mut self) {
        let Some((why, sureness)) = self.picked else { return };
        let service = Arc::clone(&self.composed.service);
        let Some(rules) = service.examples.clone().filter(|rules| rules.policy != plan::Policy::None) else { return };
        let inputs = match rules.policy {
            plan::Policy::Raw => match self.inputs() {
                Ok(inputs) => Some(inputs),
                // What doesn't fit into memory isn't kept.
                Err(_) => return,
            },
            _ => None,
        };
        let of = |(step, pieces): (&usize, &BTreeMap<usize, Entered>)| {
            let entered = pieces.values().next()?;
            Some((service.members[*step].clone(), entered.answer.outputs.clone()))
        };
        let answers = self.answers.iter().filter_map(of).collect();
        self.duty.keep(Mined { service: self.composed.name.clone(), rules, why, sureness, inputs, answers });
    }

    fn document(&self) -> bytes::Bytes {
        Digest::to_bytes(self.composed.document)
    }

    fn failed(&self, failure: Failure) -> Entered {
        let mut entered = Entered::failed(self.id.clone(), failure.at(self.duty.cx.me.name()));
        entered.answer.reply.stages = self.asked.iter().flat_map(|reply| reply.stages.iter().cloned()).collect();
        entered
    }

    /// A cascade's answer, by the names of its last model.
    fn of_cascade(&self, steps: &[usize]) -> Result<Named, Failure> {
        let step = steps.first().copied().unwrap_or_default();
        let outputs = self.outputs(step)?;
        let mut answer = Vec::new();
        for wanted in &self.wiring.outputs {
            let names = self.wiring.names[step].iter();
            let own = names.filter(|(_, name)| name.as_deref() == Some(&wanted.name)).map(|(own, _)| &own.name).next();
            let tensor = named(&outputs, own.unwrap_or(&wanted.name)).map_err(wrong)?;
            answer.push((wanted.name.clone(), tensor.clone()));
        }
        Ok(answer)
    }

    fn of_ensemble(&self, steps: &[usize]) -> Result<Named, Failure> {
        let service = self.service();
        let outputs = steps.iter().map(|step| self.outputs(*step)).collect::<Result<Vec<_>, _>>()?;
        let voices = steps.iter().zip(&outputs).map(|(step, outputs)| {
            let member = &service.members[*step];
            let answer = member.judged(outputs).map_err(wrong)?;
            let weight = member.weight.unwrap_or(1.0);
            Ok(Voice { name: member.name(), answer, reading: member.reading(), weight })
        });
        let voices = voices.collect::<Result<Vec<_>, Failure>>()?;
        let combined = in_place(|| combine(&voices, service.combine())).map_err(wrong)?;
        Ok(vec![(service.output().to_owned(), combined)])
    }

    /// What each model of a chain gave.
    fn of_chain(&self) -> Result<Named, Failure> {
        let mut answer = Vec::new();
        for (step, names) in self.wiring.names.iter().enumerate() {
            if self.service().members[step].crops.is_some() {
                let places = self.chosen.get(&step).map(|chosen| chosen.places.clone()).unwrap_or_default();
                let places: Vec<i64> = places.into_iter().map(|place| place as i64).collect();
                let tensor = Tensor::new(vec![places.len()], Elements::I64(places));
                let tensor = tensor.map_err(|e| Failure::new(Code::Internal, e.to_string()))?;
                answer.push((CROPS_OUTPUT.to_owned(), tensor));
            }
            let outputs = self.outputs(step)?;
            for (own, name) in names {
                let Some(name) = name else { continue };
                answer.push((name.clone(), named(&outputs, &own.name).map_err(wrong)?.clone()));
            }
        }
        Ok(answer)
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

/// What models gave each other doesn't fit: no fault of the request's.
fn wrong(error: TensorsError) -> Failure {
    let code = match error {
        TensorsError::TooLarge(_) => Code::TooLarge,
        _ => Code::Engine,
    };
    Failure::new(code, error.to_string())
}

fn missing(what: &str) -> Failure {
    Failure::new(Code::Internal, format!("the service lost its {what}"))
}

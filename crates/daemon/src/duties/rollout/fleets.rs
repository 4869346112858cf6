//! The cloud's part: rollouts, each a machine `tierline_update::rollout::Fleet`.
//!
//! What a machine decides is in its journal before anybody hears of it; after a
//! crash it goes on from there. One task runs all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use tierline_proto::Role;
use tierline_proto::limits::ROLLOUTS_MAX;
use tierline_proto::v1::rollout_control_request::What;
use tierline_proto::v1::{Code, Failure, NodeInfo, RolloutInfo};
use tierline_store::State;
use tierline_update::rollout::fleet::admit;
use tierline_update::rollout::{
    Action, Attributes, Command, Event, Fleet, Outcome, Progress, Record, Spec, Version, Want,
};
use tokio::sync::{mpsc, oneshot};

use super::relay::Told;
use super::{Rollouts, journal, now};
use crate::duties::catalogue::Catalogue;
use crate::duties::catalogue::versions::{CANDIDATE, PRODUCTION};
use crate::duties::site::Site;
use crate::runtime::duty::Assembly;
use crate::runtime::events::now_ms;
use crate::runtime::{Context, wait_until};

/// News that wait for the machines; who brings more waits with them.
const NEWS_MAX: usize = 1_024;

/// Between two looks at who is there.
const LOOK: Duration = Duration::from_secs(1);

/// Rollouts that are remembered once they are over.
const REMEMBERED_MAX: usize = 100;

/// A delta to the new version is waited for so long before a rollout begins
/// without one.
const DELTA_TIME: Duration = Duration::from_secs(60);

/// What a rollout told people lately, and is shown with it.
const TOLD_MAX: usize = 50;

/// Devices listed of a rollout.
const DEVICES_SHOWN_MAX: usize = 20_000;

/// What the machines' task hears.
enum News {
    Heard { node: String, model: String, told: Box<Told> },
    Start { spec: String, reply: oneshot::Sender<Result<RolloutInfo, Failure>> },
    Control { rollout: String, what: What, reply: oneshot::Sender<Result<RolloutInfo, Failure>> },
}

/// The duty's part on the cloud.
pub struct Fleets {
    cx: Context,
    catalogue: Arc<Catalogue>,
    site: Arc<Site>,
    door: mpsc::Sender<News>,
    inbox: tokio::sync::Mutex<mpsc::Receiver<News>>,
    /// Those that aren't over, and the last of those that are.
    machines: Mutex<BTreeMap<u64, Machine>>,
}

/// One rollout.
struct Machine {
    fleet: Fleet,
    created_ms: u64,
    /// Devices that it takes for reachable.
    here: BTreeSet<String>,
    /// What it told people lately, the newest last.
    told: VecDeque<String>,
}

/// All that is shown of a rollout.
#[derive(Serialize)]
struct Shown<'f> {
    progress: Progress,
    told: &'f VecDeque<String>,
    devices: Vec<Device<'f>>,
    spec: &'f Spec,
}

#[derive(Serialize)]
struct Device<'f> {
    device: &'f str,
    group: &'f str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'f str>,
}

impl Machine {
    fn new(fleet: Fleet, created_ms: u64) -> Self {
        Self { fleet, created_ms, here: BTreeSet::new(), told: VecDeque::new() }
    }

    fn is_over(&self) -> bool {
        self.fleet.outcome().is_some()
    }

    fn info(&self) -> Result<RolloutInfo, Failure> {
        let (spec, progress) = (self.fleet.spec(), self.fleet.progress());
        let word = progress.stage.words().to_owned();
        let device = |(device, group, state, reason)| Device { device, group, state, reason };
        let devices = self.fleet.devices().take(DEVICES_SHOWN_MAX).map(device).collect();
        Ok(RolloutInfo {
            rollout: self.fleet.rollout(),
            model: spec.model.clone(),
            from: spec.from.to_string(),
            to: spec.to.to_string(),
            state: word,
            json: crate::duties::json(&Shown { progress, told: &self.told, devices, spec })?,
            created_ms: self.created_ms,
        })
    }
}

impl Fleets {
    pub(super) fn new(assembly: &Assembly) -> Arc<Self> {
        let (door, inbox) = mpsc::channel(NEWS_MAX);
        Arc::new(Self {
            cx: assembly.cx.clone(),
            catalogue: assembly.get(),
            site: assembly.get(),
            door,
            inbox: tokio::sync::Mutex::new(inbox),
            machines: Mutex::default(),
        })
    }

    fn machines(&self) -> MutexGuard<'_, BTreeMap<u64, Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, model: &str, text: String) {
        self.cx.events.record("rollout", text, &serde_json::json!({ "model": model }));
    }

    /// Takes up the rollouts that there are.
    pub(super) async fn open(&self) -> Result<(), Failure> {
        let read = |state: &State| {
            let mut all = Vec::new();
            for row in state.rollouts()? {
                let records = state.rollout_records(row.id)?;
                all.push((row, records));
            }
            Ok(all)
        };
        for (row, lines) in self.cx.state.with(read).await? {
            let records: Result<Vec<Record>, _> = lines.iter().map(|line| serde_json::from_str(line)).collect();
            let fleet = records
                .map_err(|e| e.to_string())
                .and_then(|records| Fleet::recover(records).map_err(|e| e.to_string()));
            match fleet {
                Ok(Some(fleet)) => {
                    let machine = Machine::new(fleet, row.created_ms);
                    self.machines().insert(row.id, machine);
                }
                // It never began.
                Ok(None) => {}
                Err(error) => {
                    self.record(&row.model, format!("rollout {} can't be taken up: {error}", row.id));
                }
            }
        }
        Ok(())
    }

    pub(super) fn begin(self: &Arc<Self>, rollouts: &Arc<Rollouts>) {
        let of = Arc::downgrade(rollouts);
        self.cx.keep("rollouts", self, move |fleets| Fleets::run(fleets, Weak::clone(&of)));
    }

    /// How a node does with a model.
    pub(super) fn heard(&self, node: &str, model: &str, told: Told) {
        let news = News::Heard { node: node.to_owned(), model: model.to_owned(), told: Box::new(told) };
        // One that is lost is mended by the next.
        let _ = self.door.try_send(news);
    }

    /// Begins a rollout.
    ///
    /// # Errors
    /// A specification that can't be run, versions that there are not, another
    /// rollout of the model.
    pub async fn start(&self, spec: String) -> Result<RolloutInfo, Failure> {
        let (reply, answer) = oneshot::channel();
        self.ask(News::Start { spec, reply }, answer).await
    }

    /// Does something to a rollout.
    ///
    /// # Errors
    /// When there is no such rollout.
    pub async fn control(&self, rollout: String, what: What) -> Result<RolloutInfo, Failure> {
        let (reply, answer) = oneshot::channel();
        self.ask(News::Control { rollout, what, reply }, answer).await
    }

    async fn ask(
        &self,
        news: News,
        answer: oneshot::Receiver<Result<RolloutInfo, Failure>>,
    ) -> Result<RolloutInfo, Failure> {
        let ended = || Failure::new(Code::Internal, "rollouts broke off; the node's log says where");
        self.door.send(news).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Every rollout, the newest first.
    ///
    /// # Errors
    /// Those of writing it down.
    pub fn list(&self) -> Result<Vec<RolloutInfo>, Failure> {
        self.machines().values().rev().map(Machine::info).collect()
    }

    /// A rollout, by its number or by its model's name.
    ///
    /// # Errors
    /// When there is none.
    pub fn show(&self, rollout: &str) -> Result<RolloutInfo, Failure> {
        let machines = self.machines();
        let id = find(&machines, rollout)?;
        machines[&id].info()
    }

    pub(super) fn numbers(&self, out: &mut String) {
        let machines = self.machines();
        let mut rows = Vec::new();
        for machine in machines.values().filter(|machine| !machine.is_over()) {
            let total = machine.fleet.progress().total;
            let model = machine.fleet.spec().model.clone();
            for (state, count) in [
                ("waiting", total.waiting),
                ("asked", total.asked),
                ("confirmed", total.confirmed),
                ("failed", total.failed),
                ("returning", total.returning),
                ("returned", total.returned),
            ] {
                rows.push(([("model", model.clone()), ("state", state.to_owned())], count as u64));
            }
        }
        let help = "Devices of a rollout that isn't over, by what they are at.";
        crate::runtime::numbers::labelled_by(out, ("tierline_rollout_devices", "gauge", help), rows);
    }

    /// Models that are in a rollout.
    fn watched(&self) -> BTreeSet<String> {
        self.machines().values().filter(|m| !m.is_over()).map(|m| m.fleet.spec().model.clone()).collect()
    }

    /// Runs the machines, until the node ends.
    async fn run(self: Arc<Self>, rollouts: Weak<Rollouts>) {
        let mut inbox = self.inbox.lock().await;
        let mut running =
            Running { fleets: &self, rollouts, names: HashMap::new(), named: HashMap::new(), told: HashMap::new() };
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let deadline = {
                let machines = self.machines();
                let next = machines.values().filter_map(|machine| machine.fleet.next_deadline()).min();
                next.map(|at| Instant::now() + Duration::from_millis(at.saturating_sub(now(&self.cx).monotonic_ms)))
            };
            let done = tokio::select! {
                news = inbox.recv() => match news {
                    Some(news) => running.news(news).await,
                    None => return,
                },
                _ = look.tick() => running.look().await,
                () = wait_until(deadline) => running.tick().await,
            };
            if let Err(failure) = done {
                // What isn't on the disk was not decided: the machines go on from what is.
                tracing::warn!(%failure, "rollouts are taken up anew");
                self.machines().clear();
                if let Err(failure) = self.open().await {
                    tracing::warn!(%failure, "rollouts can't be read");
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

/// The number of a rollout that is named by it, or by its model: then the
/// newest.
fn find(machines: &BTreeMap<u64, Machine>, rollout: &str) -> Result<u64, Failure> {
    let numbered = rollout.parse().ok().filter(|id| machines.contains_key(id));
    let named = || machines.iter().rev().find(|(_, m)| m.fleet.spec().model == rollout).map(|(id, _)| *id);
    numbered.or_else(named).ok_or_else(|| {
        let rollout: String = rollout.chars().take(80).collect();
        let text = format!("there is no rollout `{}`", rollout.escape_debug());
        Failure::new(Code::NotFound, text).with_help("`tierline rollout status` lists them")
    })
}

/// What the machines' task has at hand.
struct Running<'f> {
    fleets: &'f Arc<Fleets>,
    rollouts: Weak<Rollouts>,
    /// Identities of nodes, by name, and the other way round.
    names: HashMap<String, String>,
    named: HashMap<String, String>,
    /// What each node told last, by identity and model.
    told: HashMap<(String, String), Told>,
}

impl Running<'_> {
    async fn news(&mut self, news: News) -> Result<(), Failure> {
        match news {
            News::Heard { node, model, told } => {
                self.told.insert((node.clone(), model.clone()), (*told).clone());
                match self.named.get(&node).cloned() {
                    Some(name) => self.heard(&name, &model, &told).await,
                    // It is seen with the next look.
                    None => Ok(()),
                }
            }
            News::Start { spec, reply } => {
                let started = self.start(&spec).await;
                let _ = reply.send(started);
                self.publish(Vec::new());
                Ok(())
            }
            News::Control { rollout, what, reply } => {
                let done = self.control(&rollout, what).await;
                let _ = reply.send(done);
                self.publish(Vec::new());
                Ok(())
            }
        }
    }

    /// Who is there, and who isn't any more.
    async fn look(&mut self) -> Result<(), Failure> {
        if self.fleets.watched().is_empty() {
            self.told.clear();
            return Ok(());
        }
        let nodes = self.fleets.site.nodes().nodes;
        let is_here = |node: &NodeInfo| matches!(node.state.as_str(), "connected" | "doubled" | "renaming");
        self.names = nodes.iter().map(|node| (node.node_name.clone(), node.node_id.clone())).collect();
        self.named = nodes.iter().map(|node| (node.node_id.clone(), node.node_name.clone())).collect();
        let roles: HashMap<&str, (Role, &str)> =
            nodes.iter().map(|node| (node.node_id.as_str(), (node.role(), node.node_name.as_str()))).collect();
        let parents: HashMap<&str, &str> =
            nodes.iter().map(|node| (node.node_id.as_str(), node.parent_id.as_str())).collect();
        let mut events: Vec<(u64, Event)> = Vec::new();
        let mut seen: Vec<(String, String)> = Vec::new();
        {
            let mut machines = self.fleets.machines();
            for (id, machine) in machines.iter_mut().filter(|(_, machine)| !machine.is_over()) {
                let model = machine.fleet.spec().model.clone();
                let mut here = BTreeSet::new();
                for node in nodes.iter().filter(|node| is_here(node)) {
                    let Some(told) = self.told.get(&(node.node_id.clone(), model.clone())) else { continue };
                    here.insert(node.node_name.clone());
                    if machine.here.contains(&node.node_name) {
                        continue;
                    }
                    let above = roles.get(node.parent_id.as_str()).filter(|(role, _)| *role == Role::Edge);
                    let mut tier = 0;
                    let mut at = node.node_id.as_str();
                    while let Some(parent) = parents.get(at).filter(|parent| !parent.is_empty() && tier < 8) {
                        (at, tier) = (parent, tier + 1);
                    }
                    let attributes = Attributes {
                        role: node.role().word().to_owned(),
                        tier,
                        site: above.map(|(_, name)| (*name).to_owned()),
                        labels: told.labels.clone(),
                    };
                    let (device, report) = (node.node_name.clone(), told.report.clone());
                    events.push((*id, Event::Seen { device, attributes, report }));
                    seen.push((node.node_name.clone(), model.clone()));
                }
                let lost = machine.here.difference(&here);
                events.extend(lost.map(|device| (*id, Event::Lost { device: device.clone() })));
                machine.here = here;
            }
        }
        for (id, event) in events {
            self.step(id, event).await?;
        }
        for (name, model) in seen {
            let told = self.names.get(&name).and_then(|id| self.told.get(&(id.clone(), model.clone()))).cloned();
            if let Some(told) = told {
                self.heard(&name, &model, &told).await?;
            }
        }
        self.tick().await
    }

    async fn tick(&mut self) -> Result<(), Failure> {
        let ids: Vec<u64> = self.fleets.machines().keys().copied().collect();
        for id in ids {
            self.step(id, Event::Tick).await?;
        }
        Ok(())
    }

    /// A device says how it does.
    async fn heard(&mut self, name: &str, model: &str, told: &Told) -> Result<(), Failure> {
        let ids: Vec<(u64, [Version; 2])> = {
            let machines = self.fleets.machines();
            let of = |m: &&Machine| m.fleet.spec().model == model && m.here.contains(name);
            let versions = |m: &Machine| [m.fleet.spec().from.clone(), m.fleet.spec().to.clone()];
            machines.values().filter(of).map(|m| (m.fleet.rollout(), versions(m))).collect()
        };
        for (id, versions) in ids {
            let device = || name.to_owned();
            self.step(id, Event::Report { device: device(), report: told.report.clone() }).await?;
            for (version, health) in told.health.iter().filter(|(version, _)| versions.contains(version)) {
                let (version, health) = (version.clone(), health.clone());
                let event = Event::Health { device: device(), session: told.report.session, version, health };
                self.step(id, event).await?;
            }
            for version in versions {
                let holds = told.holds.contains(&version);
                self.step(id, Event::Holds { edge: device(), version, holds }).await?;
            }
        }
        Ok(())
    }

    async fn step(&mut self, id: u64, event: Event) -> Result<(), Failure> {
        let now = now(&self.fleets.cx);
        let actions = match self.fleets.machines().get_mut(&id) {
            Some(machine) => machine.fleet.step(now, event),
            None => return Ok(()),
        };
        self.perform(id, actions).await
    }

    async fn perform(&mut self, id: u64, actions: Vec<Action>) -> Result<(), Failure> {
        let mut wants: Vec<(String, Want)> = Vec::new();
        let mut rest = actions.into_iter().peekable();
        let (model, from, to) = {
            let machines = self.fleets.machines();
            let Some(machine) = machines.get(&id) else { return Ok(()) };
            let spec = machine.fleet.spec();
            (spec.model.clone(), spec.from.clone(), spec.to.clone())
        };
        while let Some(action) = rest.next() {
            match action {
                Action::Keep(record) => {
                    let mut records = vec![record];
                    while let Some(Action::Keep(next)) = rest.next_if(|next| matches!(next, Action::Keep(_))) {
                        records.push(next);
                    }
                    self.keep(id, &records).await?;
                }
                Action::Want { device, want } => wants.push((device, want)),
                // Edges get every version that is in use, by themselves.
                Action::Prefetch { .. } => {}
                Action::Notify { text } => {
                    if let Some(machine) = self.fleets.machines().get_mut(&id) {
                        machine.told.push_back(text.clone());
                        let surplus = machine.told.len().saturating_sub(TOLD_MAX);
                        machine.told.drain(..surplus);
                    }
                    self.fleets.record(&model, text);
                }
                Action::Finished(outcome) => self.finished(&model, (&from, &to), outcome).await?,
            }
        }
        let wants = wants.into_iter().filter_map(|(device, want)| {
            let node = self.names.get(&device)?.clone();
            let json = serde_json::to_vec(&want).ok()?;
            Some(((node, model.clone()), want, Bytes::from(json)))
        });
        self.publish(wants.collect());
        Ok(())
    }

    /// Hands on what nodes shall run.
    fn publish(&self, wants: Vec<((String, String), Want, Bytes)>) {
        if let Some(rollouts) = self.rollouts.upgrade() {
            rollouts.wanted(wants, self.fleets.watched());
        }
    }

    /// Writes records through to the disk.
    async fn keep(&self, id: u64, records: &[Record]) -> Result<(), Failure> {
        let (lines, whole) = journal(records, Record::replaces_earlier)?;
        let write = move |state: &State| match whole {
            true => state.rollout_records_replace(id, &lines),
            false => state.rollout_records_add(id, &lines),
        };
        self.fleets.cx.state.with(write).await
    }

    /// What a name means follows how its rollout ended.
    async fn finished(&self, model: &str, (from, to): (&Version, &Version), outcome: Outcome) -> Result<(), Failure> {
        let number = |version: &Version| version.as_str().parse::<u64>().ok();
        let catalogue = &self.fleets.catalogue;
        let means = catalogue.known.named(model).map(|entry| entry.manifest.version);
        let done = match outcome {
            Outcome::Succeeded => match number(to) {
                Some(to) => catalogue.rolled_out(model, to).await,
                None => Ok(()),
            },
            Outcome::RolledBack | Outcome::Aborted => match number(from) {
                Some(from) if means == number(to) => catalogue.rolled_out(model, from).await,
                _ => catalogue.tag(model, 0, CANDIDATE).await,
            },
            Outcome::Superseded => Ok(()),
        };
        if let Err(failure) = done {
            self.fleets.record(model, format!("the catalogue doesn't follow the rollout of {model}: {failure}"));
        }
        Ok(())
    }

    async fn start(&mut self, text: &str) -> Result<RolloutInfo, Failure> {
        let invalid = |e: &dyn std::fmt::Display| Failure::new(Code::InvalidInput, e.to_string());
        let mut spec = Spec::parse(text).map_err(|e| invalid(&e))?;
        let catalogue = &self.fleets.catalogue;
        // Aliases may mean others tomorrow.
        let mut resolved = Vec::new();
        for version in [&spec.from, &spec.to] {
            let row = catalogue.registered(&format!("{}@{version}", spec.model)).await?;
            resolved.push(Version::new(&row.version.to_string()).map_err(|e| invalid(&e))?);
        }
        let [from, to] =
            <[Version; 2]>::try_from(resolved).map_err(|_| Failure::new(Code::Internal, "two versions"))?;
        (spec.from, spec.to) = (from, to);
        spec.check().map_err(|e| invalid(&e))?;
        let production = catalogue.registered(&format!("{}@{PRODUCTION}", spec.model)).await?.version.to_string();
        if spec.from.as_str() != production && spec.to.as_str() != production {
            let text = format!("`{}` means version {production}, and neither of the two", spec.model);
            return Err(Failure::new(Code::InvalidInput, text)
                .with_help(format!("roll out from {production}, or tag another version as {PRODUCTION} first")));
        }
        let superseded = {
            let machines = self.fleets.machines();
            let active = machines.values().filter(|machine| !machine.is_over()).count();
            if active >= ROLLOUTS_MAX {
                let text = format!("{active} rollouts are under way, as many as there may be");
                return Err(Failure::new(Code::TooLarge, text));
            }
            let others = machines.values().filter(|machine| !machine.is_over()).map(|machine| &machine.fleet);
            admit(&spec, others).map_err(|e| Failure::new(Code::AlreadyExists, e.to_string()))?
        };
        let number = spec.to.as_str().parse().unwrap_or_default();
        // Whoever has the old version needn't fetch all of the new one.
        let base = spec.from.as_str().parse().unwrap_or_default();
        match tokio::time::timeout(DELTA_TIME, catalogue.make_delta(&spec.model, base, number)).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => self.fleets.record(&spec.model, format!("there is no delta: {failure}")),
            Err(_) => self
                .fleets
                .record(&spec.model, format!("there is no delta: it takes longer than {} s", DELTA_TIME.as_secs())),
        }
        // Nodes hear of the version before they are told to run it.
        catalogue.tag(&spec.model, number, CANDIDATE).await?;
        let (model, created_ms) = (spec.model.clone(), now_ms());
        let (of, kept) = (model.clone(), text.to_owned());
        let id = self.fleets.cx.state.with(move |state| state.add_rollout(&of, &kept, created_ms)).await?;
        for other in superseded {
            self.step(other, Event::Command(Command::Supersede { by: id })).await?;
        }
        let (fleet, actions) = Fleet::new(spec, id, now(&self.fleets.cx)).map_err(|e| invalid(&e))?;
        self.fleets.machines().insert(id, Machine::new(fleet, created_ms));
        self.perform(id, actions).await?;
        self.forget_oldest().await?;
        self.fleets.machines()[&id].info()
    }

    async fn control(&mut self, rollout: &str, what: What) -> Result<RolloutInfo, Failure> {
        let id = find(&self.fleets.machines(), rollout)?;
        let command = match what {
            What::Approve => Command::Approve,
            What::Pause => Command::Pause,
            What::Resume => Command::Resume,
            What::Abort => Command::Abort { reason: "by `rollout abort`".to_owned() },
            What::RollBack => Command::Abort { reason: "by `rollback`".to_owned() },
            What::Unspecified => return Err(Failure::new(Code::InvalidInput, "nothing that can be done to a rollout")),
        };
        self.step(id, Event::Command(command)).await?;
        self.fleets.machines()[&id].info()
    }

    /// Of those that are over only the last are remembered.
    async fn forget_oldest(&self) -> Result<(), Failure> {
        let surplus: Vec<u64> = {
            let machines = self.fleets.machines();
            let over: Vec<u64> = machines.iter().filter(|(_, m)| m.is_over()).map(|(id, _)| *id).collect();
            over[..over.len().saturating_sub(REMEMBERED_MAX)].to_vec()
        };
        for id in surplus {
            self.fleets.cx.state.with(move |state| state.remove_rollout(id)).await?;
            self.fleets.machines().remove(&id);
        }
        Ok(())
    }
}

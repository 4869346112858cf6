//! Which version of a model each node runs, and how another one gets there.
//!
//! The cloud decides (`fleets`): it goes from group to group and from wave to
//! wave, and looks how those do that came first. Every node changes itself over
//! (`swapping`), the cloud too: fetches, tests on golden inputs, switches on
//! trial, and goes back where the new version doesn't prove itself. Between
//! them nodes pass on what they hear (`relay`). What is decided, on either
//! side, is decided by the machines of `tierline_update::rollout`.

mod fleets;
mod relay;
mod swapping;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use tierline_identity::Peer;
use tierline_node::policy::{Roles, Rule};
use tierline_proto::envelope::ROLLOUT;
use tierline_proto::v1::{Code, Failure, RolloutReports, RolloutWants};
use tierline_proto::{Breach, Sound};
use tierline_store::rollouts;
use tierline_update::rollout::{Now, Want};
use tokio::sync::Notify;

use self::fleets::Fleets;
use self::relay::{Down, Told, Up};
use self::swapping::Swapping;
use super::site::Site;
use crate::net::Uplink;
use crate::runtime::Context;
use crate::runtime::duty::{Assembly, Duty, Registration};
use crate::runtime::events::now_ms;

/// Between two looks at what has to be passed on, at most: nodes come and go
/// below without a word to this duty.
const LOOK: Duration = Duration::from_secs(1);

/// News that come together are passed on together.
const PAUSE: Duration = Duration::from_millis(100);

/// Its line in the registry.
pub const DUTY: Registration = Registration {
    name: ROLLOUT,
    tables: rollouts::TABLES,
    rules: &[
        Rule::new("/tierline.v1.Local/RolloutStart", Roles::OPERATOR, Roles::CLOUD),
        Rule::new("/tierline.v1.Local/RolloutList", Roles::OPERATOR, Roles::CLOUD),
        Rule::new("/tierline.v1.Local/RolloutShow", Roles::OPERATOR, Roles::CLOUD),
        Rule::new("/tierline.v1.Local/RolloutControl", Roles::OPERATOR, Roles::CLOUD),
    ],
    make: |assembly| {
        let rollouts = Rollouts::new(assembly);
        Box::new(assembly.add(rollouts))
    },
};

/// Names of children, by the identities of nodes that are reached through them.
type Ways = HashMap<String, String>;

/// The duty.
pub struct Rollouts {
    cx: Context,
    site: Arc<Site>,
    /// The cloud's part.
    pub fleets: Arc<Fleets>,
    swapping: Arc<Swapping>,
    down: Mutex<Down>,
    up: Mutex<Up>,
    /// Through which child each node below is reached, and since when that is known.
    at: Mutex<Option<(Instant, Arc<Ways>)>>,
    /// Rings when there is something to pass on.
    news: Notify,
}

/// The time, as the machines take it.
fn now(cx: &Context) -> Now {
    let uptime = cx.clock.uptime().as_millis();
    Now { monotonic_ms: u64::try_from(uptime).unwrap_or(u64::MAX), unix_ms: Some(now_ms()) }
}

/// Records as lines of a journal, and whether they take the place of all that
/// is in it: those before one that does so are left out.
fn journal<R: Serialize>(records: &[R], replaces: impl Fn(&R) -> bool) -> Result<(Vec<String>, bool), Failure> {
    let last = records.iter().rposition(replaces);
    let lines = records.iter().skip(last.unwrap_or(0)).map(serde_json::to_string);
    let lines = lines.collect::<Result<_, _>>().map_err(|e| Failure::new(Code::Internal, e.to_string()))?;
    Ok((lines, last.is_some()))
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rollouts {
    fn new(assembly: &Assembly) -> Arc<Self> {
        Arc::new(Self {
            cx: assembly.cx.clone(),
            site: assembly.get(),
            fleets: Fleets::new(assembly),
            swapping: Swapping::new(assembly),
            down: Mutex::default(),
            up: Mutex::default(),
            at: Mutex::default(),
            news: Notify::new(),
        })
    }

    /// What nodes here and below shall run, and which models are watched, from
    /// above or from the cloud's own machines.
    fn wanted(&self, wants: Vec<((String, String), Want, Bytes)>, watched: BTreeSet<String>) {
        let mut own = Vec::new();
        {
            let mut down = lock(&self.down);
            let mut changed = down.watch(watched);
            for (of, want, json) in wants {
                let (mine, model) = (of.0 == self.cx.me.id(), of.1.clone());
                let news = down.want(of, &want, json);
                if news && mine {
                    own.push((model, want));
                }
                changed |= news;
            }
            if !changed {
                return;
            }
            lock(&self.up).keep(down.watched());
            self.swapping.watch(down.watched());
        }
        for (model, want) in own {
            self.swapping.want(&model, want);
        }
        self.news.notify_one();
    }

    /// How a node here or below does.
    fn heard(&self, node: &str, model: &str, json: Bytes) {
        if !lock(&self.up).hear((node.to_owned(), model.to_owned()), json.clone()) {
            return;
        }
        if self.cx.parents.is_empty()
            && let Ok(told) = Told::read(&json)
        {
            self.fleets.heard(node, model, told);
        }
        self.news.notify_one();
    }

    /// Passes on what there is, until the node ends.
    async fn pass(self: Arc<Self>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.news.notified() => tokio::time::sleep(PAUSE).await,
                () = self.swapping.something_told() => tokio::time::sleep(PAUSE).await,
                _ = look.tick() => {}
            }
            // Models may have come or gone since it was said which are watched.
            let watched = lock(&self.down).watched().clone();
            self.swapping.watch(&watched);
            self.swapping.forget_removed().await;
            for (model, told) in self.swapping.told() {
                if let Ok(json) = told.write() {
                    self.heard(self.cx.me.id(), &model, json);
                }
            }
            self.pass_down();
            for message in lock(&self.up).messages() {
                self.cx.parents.iter().for_each(|parent| parent.tell(ROLLOUT, &message));
            }
        }
    }

    /// As [`Site::children_by_node`], which is looked up once in a while.
    fn children_by_node(&self) -> Arc<Ways> {
        let mut at = lock(&self.at);
        if let Some((since, known)) = at.as_ref()
            && since.elapsed() < LOOK
        {
            return Arc::clone(known);
        }
        let known = Arc::new(self.site.children_by_node());
        *at = Some((Instant::now(), Arc::clone(&known)));
        known
    }

    fn pass_down(&self) {
        let children = self.cx.children.names();
        if children.is_empty() {
            return;
        }
        let at = self.children_by_node();
        for child in children {
            let messages = lock(&self.down).messages(&child, |node| at.get(node).is_some_and(|via| *via == child));
            for message in messages {
                self.cx.children.tell(&child, ROLLOUT, &message);
            }
        }
    }
}

#[tonic::async_trait]
impl Duty for Arc<Rollouts> {
    async fn open(&self) -> Result<(), Failure> {
        self.swapping.open().await?;
        self.fleets.open().await
    }

    async fn begin(&self) -> Result<(), Failure> {
        self.swapping.begin();
        self.fleets.begin(self);
        self.cx.keep("rollout messages", self, Rollouts::pass);
        Ok(())
    }

    fn parent_up(&self, _: &Arc<Uplink>) {
        lock(&self.up).again();
        self.news.notify_one();
    }

    fn child_up(&self, child: &Peer) {
        *lock(&self.at) = None;
        lock(&self.down).forget(&child.name);
        self.news.notify_one();
    }

    async fn hear_parent(&self, parent: &Arc<Uplink>, payload: Bytes) -> Result<(), Breach> {
        let message = Sound::<RolloutWants>::decode(payload)?.into_inner();
        // Parents of one site tell the same; the preferred one that is up counts.
        if self.cx.parents.first().is_none_or(|first| first.peer != parent.peer) {
            return Ok(());
        }
        let wants = message.wants.into_iter().filter_map(|want| {
            // One of a newer version, perhaps; the others count all the same.
            let read = serde_json::from_slice::<Want>(&want.want).ok()?;
            Some(((want.node_id, want.model), read, want.want))
        });
        self.wanted(wants.collect(), message.watched.into_iter().collect());
        Ok(())
    }

    fn hear_child(&self, child: &Peer, payload: Bytes) -> Result<(), Breach> {
        let message = Sound::<RolloutReports>::decode(payload)?.into_inner();
        let at = self.children_by_node();
        for report in message.reports {
            // Of itself, or of a node that it has below it; nobody speaks for others.
            let below = at.get(&report.node_id).is_some_and(|via| *via == child.name);
            if report.node_id == child.id || (below && !self.cx.revoked.has(&report.node_id)) {
                self.heard(&report.node_id, &report.model, report.report);
            }
        }
        Ok(())
    }

    async fn needs(&self, needed: &mut std::collections::HashSet<tierline_proto::Digest>) -> Result<(), Failure> {
        self.swapping.needs(needed);
        Ok(())
    }

    fn numbers(&self, out: &mut String) {
        self.fleets.numbers(out);
        self.swapping.numbers(out);
    }
}

impl Rollouts {
    /// Whether what was told may be acted on: a rollout is the cloud's.
    ///
    /// # Errors
    /// [`Code::Forbidden`].
    pub fn the_fleets(&self) -> Result<&Arc<Fleets>, Failure> {
        if self.cx.parents.is_empty() {
            return Ok(&self.fleets);
        }
        Err(Failure::new(Code::Forbidden, "rollouts are decided on the cloud").with_help("ask there"))
    }
}

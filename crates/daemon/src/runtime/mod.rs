//! What every node has, whatever it does: who it is, its time, tasks, events
//! and state, its parents and children, its device. Duties get it as their
//! [`Context`], and nothing of each other but what they ask for by name.
//!
//! [`start`] has a node's beginning and end, [`duty`] what a duty is.

pub mod audit;
pub mod duty;
pub mod events;
pub mod filter;
pub mod numbers;
pub mod records;
pub mod start;
pub mod tasks;
pub mod traces;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tierline_identity::Identity;
use tierline_identity::tls::LiveIdentity;
use tierline_node::Time;
use tierline_proto::Role;
use tokio::sync::watch;

use self::audit::Audit;
use self::duty::Duties;
use self::events::Events;
use self::filter::Filter;
use self::records::Records;
use self::tasks::Tasks;
use self::traces::Traces;
use crate::config::NodeConfig;
use crate::device::Device;
use crate::net::{Applications, Children, Parents, Revoked};

/// What a duty gets of the node that it is a duty of; clones share it.
#[derive(Clone)]
pub struct Context {
    /// Who the node is.
    pub me: Arc<Me>,
    /// Its time.
    pub clock: Clock,
    /// What runs on it.
    pub tasks: Tasks,
    /// What happened.
    pub events: Events,
    /// Who asked for what.
    pub audit: Audit,
    /// What it logs.
    pub filter: Filter,
    /// What requests spend their time on.
    pub traces: Traces,
    /// What it keeps in its database.
    pub state: Records,
    /// Nodes above.
    pub parents: Parents,
    /// Nodes below.
    pub children: Children,
    /// Certificates that count no more.
    pub revoked: Revoked,
    /// Who may ask as an application.
    pub applications: Applications,
    /// What it computes with.
    pub device: Device,
    /// Every duty of it.
    pub duties: Duties,
    /// Its end.
    pub end: End,
}

impl Context {
    /// Keeps a part of a duty at work for as long as the node lives; `begin`
    /// makes it anew where it broke off.
    pub fn keep<T, F>(&self, name: &'static str, of: &Arc<T>, begin: impl Fn(Arc<T>) -> F + Send + Sync + 'static)
    where
        T: Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let kept = Arc::clone(of);
        self.tasks.keep(name, move || begin(Arc::clone(&kept)));
    }

    /// Ends the node once running requests are done.
    pub fn drain(&self, grace: Duration) {
        self.end.is_for_good();
        self.children.drain();
        self.duties.each(|duty| duty.drain());
        let end = self.end.clone();
        self.tasks.spawn("drain", async move {
            tokio::time::sleep(grace).await;
            end.begin();
        });
    }
}

/// Who a node is, and what it was told.
pub struct Me {
    config: NodeConfig,
    identity: LiveIdentity,
    id: String,
    role: Role,
    /// Where other nodes reach it, once it listens.
    url: OnceLock<String>,
    /// Changes with every start.
    pub incarnation: u64,
}

impl Me {
    /// A node of this identity.
    #[must_use]
    pub fn new(config: NodeConfig, identity: LiveIdentity, incarnation: u64) -> Self {
        let current = identity.get();
        let (id, role) = (current.peer().id.clone(), current.peer().role);
        Self { config, identity, id, role, url: OnceLock::new(), incarnation }
    }

    /// Its name, for people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Its identity, from its certificate.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its role, from its certificate.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// What it was told.
    #[must_use]
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Key, certificate and CA.
    #[must_use]
    pub fn identity(&self) -> Arc<Identity> {
        self.identity.get()
    }

    /// Key and certificate as connections use them, renewed ones included.
    #[must_use]
    pub fn live_identity(&self) -> &LiveIdentity {
        &self.identity
    }

    /// Where other nodes reach it; empty for those that aren't called.
    #[must_use]
    pub fn url(&self) -> &str {
        self.url.get().map_or("", String::as_str)
    }

    /// It listens, and is reached here.
    pub fn is_reached_at(&self, url: String) {
        // It listens once.
        let _ = self.url.set(url);
    }
}

/// A node's time: that of its machines, from its start on.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Time begins now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The machines' time.
    #[must_use]
    pub fn now(self) -> Time {
        self.time_of(Instant::now())
    }

    /// A moment as the machines count it.
    #[must_use]
    pub fn time_of(self, at: Instant) -> Time {
        Time::ZERO + at.saturating_duration_since(self.0)
    }

    /// The moment of a machine's time.
    #[must_use]
    pub fn instant_of(self, time: Time) -> Instant {
        // Machines use far times for "never"; a day is as good.
        self.0 + time.since(Time::ZERO).min(self.0.elapsed() + Duration::from_secs(86_400))
    }

    /// Time since the start.
    #[must_use]
    pub fn uptime(self) -> Duration {
        self.0.elapsed()
    }
}

/// Whether a node is to end; clones share it.
#[derive(Debug, Clone)]
pub struct End {
    begun: watch::Sender<bool>,
    /// Whether it is to begin anew behind its end.
    anew: Arc<AtomicBool>,
    /// Whether somebody wants it to end, and not to begin anew.
    for_good: Arc<AtomicBool>,
}

impl Default for End {
    fn default() -> Self {
        Self { begun: watch::Sender::new(false), anew: Arc::default(), for_good: Arc::default() }
    }
}

impl End {
    /// It is to end now.
    pub fn begin(&self) {
        self.begun.send_replace(true);
    }

    /// It is to end now, and to begin anew behind that.
    pub fn begin_anew(&self) {
        self.anew.store(true, Ordering::Relaxed);
        self.begin();
    }

    /// It is not to begin anew, whatever it ends for.
    pub fn is_for_good(&self) {
        self.for_good.store(true, Ordering::Relaxed);
    }

    /// Whether it is to begin anew behind its end.
    #[must_use]
    pub fn is_anew(&self) -> bool {
        self.anew.load(Ordering::Relaxed) && !self.for_good.load(Ordering::Relaxed)
    }

    /// Whether it is to end.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        *self.begun.borrow()
    }

    /// Waits until it is to end.
    pub async fn begun(&self) {
        let _ = self.begun.subscribe().wait_for(|end| *end).await;
    }
}

/// Sleeps until `at`; forever without one.
pub async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Nanoseconds, saturating.
#[must_use]
pub fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

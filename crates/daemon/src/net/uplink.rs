//! One parent of this node: performs what the lease machine asks
//! (`tierline_node::lease`), and carries requests and artefacts upwards. What its
//! link does, `link` watches.

mod link;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tierline_identity::tls;
use tierline_node::breaker::{self, Breaker};
use tierline_node::estimate::{Estimator, Event as LinkEvent};
use tierline_node::lease::{Child, ChildAction, ChildEvent, ChildState, Granted};
use tierline_node::request::Event as RequestEvent;
use tierline_node::silence::Silence;
use tierline_node::{Peer, Rng, Time};
use tierline_proto::door::session::FromParent;
use tierline_proto::envelope;
use tierline_proto::v1::{
    self, ChildMessage, Code, Envelope, Failure, Goodbye, Heartbeat, HelloRequest, ParentMessage, ParentStatus,
    UpstreamPath, child_message,
};
use tierline_proto::{Digest, Sound, Versions};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

pub use self::link::Occupied;
use self::link::lock;
use super::Net;
use super::transport::{self, Chunks, Pair};
use crate::runtime::wait_until;

/// Messages to the parent waiting for the stream. An edge repeats at once what
/// all members below it have said of several jobs; more mean that nothing flows.
const OUTBOX_MAX: usize = 8_192;

/// What the machine hears of its connections; more than a few mean that it
/// stands still, and whoever has news waits.
const NEWS_MAX: usize = 64;

/// How often parents look whether their load has changed.
const LOAD_TOLD_EVERY: Duration = Duration::from_secs(1);

/// A request that was sent to a parent; what became of it, its circuit breaker
/// hears.
pub struct Asking<'u> {
    uplink: &'u Arc<Uplink>,
    bytes: u64,
    begun: Instant,
    until: Instant,
    predicted: Duration,
    _occupied: Occupied,
    has_ended: bool,
}

impl Asking<'_> {
    /// The call has ended so.
    pub fn ended<T>(mut self, result: Result<T, Failure>) -> Result<T, Failure> {
        self.has_ended = true;
        let of = result.as_ref().map(|_| ()).map_err(Failure::code);
        self.uplink.breaker().ended(self.uplink.net.clock.now(), Some(of));
        result
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.uplink.still_pending(self.bytes, self.predicted, self.begun.elapsed());
            // Given up: because its time was over, or because nobody wants it.
            let (now, mut breaker) = (self.uplink.net.clock.now(), self.uplink.breaker());
            if Instant::now() >= self.until {
                breaker.lapsed(now, self.until.saturating_duration_since(self.begun), self.predicted);
            } else {
                breaker.ended(now, None);
            }
        }
    }
}

/// Where one keeper of the lease hears of its connections.
type News = mpsc::Sender<ChildEvent>;

/// A parent, shared between the lease task and the requests.
pub struct Uplink {
    /// Its place in the configuration.
    pub peer: Peer,
    /// Where it listens.
    pub url: String,
    shared: RwLock<Shared>,
    /// Bandwidth and round trip to it.
    link: Mutex<Estimator>,
    net: Net,
    /// Cancelled when the parent is let go of for good.
    left: CancellationToken,
    /// Rings when the estimator's next wake may have moved.
    stir: tokio::sync::Notify,
    /// The second in which somebody last planned with the link.
    wanted: AtomicU64,
    /// Whether it is worth asking.
    breaker: Mutex<Breaker>,
    /// Transfers under way.
    transfers: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Shared {
    pair: Option<Pair>,
    outbox: Option<mpsc::Sender<ChildMessage>>,
    parent: Option<Sound<v1::HelloReply>>,
    path: Option<Sound<UpstreamPath>>,
    /// When it was told.
    path_at: Option<Instant>,
    up: bool,
    copied: bool,
    state: &'static str,
    failure: Option<Failure>,
    /// When the next try begins, where one is waited for.
    next_try: Option<Time>,
    /// Where whoever keeps the lease listens.
    news: Option<News>,
    /// When the parent last said something.
    heard: Option<Instant>,
    /// How long it may be silent.
    silence: Silence,
}

impl Uplink {
    /// A parent that isn't dialled yet.
    #[must_use]
    pub fn new(peer: Peer, url: String, net: Net) -> Self {
        Self {
            peer,
            url,
            shared: RwLock::new(Shared { state: "dialling", ..Shared::default() }),
            link: Mutex::new(Estimator::default()),
            net,
            left: CancellationToken::new(),
            stir: tokio::sync::Notify::new(),
            wanted: AtomicU64::new(u64::MAX),
            breaker: Mutex::default(),
            transfers: Arc::default(),
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request of so many bytes is about to be sent there, to be answered by
    /// `until`, and `predicted` to take so long.
    ///
    /// # Errors
    /// [`Code::Unreachable`] while its circuit breaker is open.
    pub fn ask(self: &Arc<Self>, bytes: u64, until: Instant, predicted: Duration) -> Result<Asking<'_>, Failure> {
        let now = self.net.clock.now();
        if self.breaker().may_ask(now) {
            let (begun, _occupied) = (Instant::now(), self.occupied());
            return Ok(Asking { uplink: self, bytes, begun, until, predicted, _occupied, has_ended: false });
        }
        let text = format!("the circuit breaker towards {} is open: it failed again and again", self.name());
        Err(Failure::new(Code::Unreachable, text))
    }

    /// Whether its circuit breaker keeps requests from it now.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.breaker().state(self.net.clock.now()) != breaker::State::Closed
    }

    /// What its circuit breaker is at, and how often it opened.
    #[must_use]
    pub fn breaker_state(&self) -> (breaker::State, u64) {
        let breaker = self.breaker();
        (breaker.state(self.net.clock.now()), breaker.opened())
    }

    /// How long requests wait there, and when that was so; `None` before the
    /// parent told of it.
    #[must_use]
    pub fn waits(&self) -> Option<(Duration, Time)> {
        let shared = self.read();
        let load = shared.path.as_ref()?.tiers.first()?.load.as_ref()?;
        let told = shared.path_at?;
        // What isn't told again is as it was, up to when it was last looked at.
        let looked = shared.heard.and_then(|heard| heard.checked_sub(LOAD_TOLD_EVERY)).unwrap_or(told);
        Some((Duration::from_nanos(load.wait_ns), self.net.clock.time_of(looked.max(told))))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Shared> {
        self.shared.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Shared> {
        self.shared.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the lease is held.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.read().up
    }

    /// Why the lease isn't held.
    #[must_use]
    pub fn reason(&self) -> String {
        let shared = self.read();
        shared
            .failure
            .as_ref()
            .map_or_else(|| format!("there is no connection to {} yet", self.url), Failure::to_string)
    }

    /// The parent's name, once it said hello.
    #[must_use]
    pub fn name(&self) -> String {
        self.read().parent.as_ref().map_or_else(|| self.url.clone(), |p| p.node_name.clone())
    }

    /// The parent's identity, once it said hello.
    #[must_use]
    pub fn parent_id(&self) -> String {
        self.read().parent.as_ref().map_or_else(String::new, |p| p.node_id.clone())
    }

    /// The tiers above, nearest first, as the parent last told.
    #[must_use]
    pub fn path(&self) -> Option<UpstreamPath> {
        self.read().path.clone().map(Sound::into_inner)
    }

    /// The parent tells of the tiers from it upwards.
    pub fn set_path(&self, path: Sound<UpstreamPath>) {
        let mut shared = self.write();
        shared.path = Some(path);
        shared.path_at = Some(Instant::now());
    }

    /// For `tierline nodes` and `status`.
    #[must_use]
    pub fn status(&self) -> ParentStatus {
        let now = self.net.clock.now();
        let shared = self.read();
        ParentStatus {
            url: self.url.clone(),
            node_name: shared.parent.as_ref().map_or_else(String::new, |p| p.node_name.clone()),
            role: shared.parent.as_ref().map_or(0, |p| p.role),
            state: shared.state.to_owned(),
            failure: shared.failure.clone(),
            link: Some(self.estimate()),
            path: shared.path.clone().map(Sound::into_inner),
            breaker: self.breaker_state().0.name().to_owned(),
            next_try_ms: shared.next_try.map_or(0, |at| u64::try_from(at.since(now).as_millis()).unwrap_or(u64::MAX)),
        }
    }

    fn pair(&self) -> Result<Pair, Failure> {
        // The guard ends here: `reason` takes it again.
        let pair = self.read().pair.clone();
        pair.ok_or_else(|| Failure::new(Code::Unreachable, self.reason()))
    }

    /// Lets go of the parent for good if it is the node of this id.
    pub fn leave_if(&self, id: &str) {
        if self.read().parent.as_ref().is_some_and(|parent| parent.node_id == id) {
            self.left.cancel();
        }
    }

    /// Clients for artefacts and probes.
    ///
    /// # Errors
    /// When the parent isn't connected.
    pub fn connections(&self) -> Result<Pair, Failure> {
        self.pair()
    }

    /// The parent's role; unspecified until it was greeted.
    #[must_use]
    pub fn parent_role(&self) -> tierline_proto::Role {
        self.read().parent.as_ref().map_or(tierline_proto::Role::Unspecified, |parent| parent.role())
    }

    /// Tells the same duty of the parent something, if its session is open.
    pub fn tell(&self, duty: &str, message: &impl prost::Message) {
        let takes_envelopes = self.read().parent.as_ref().is_some_and(|parent| !parent.features.is_empty());
        // What it doesn't know is of no use to it.
        if let Some(message) = envelope::to_parent(Envelope::new(duty, message), takes_envelopes) {
            self.send(message);
        }
    }

    /// Sends a message on the session's stream, if there is one. What doesn't
    /// fit ends the session: at the next one everything is told anew, so that
    /// the parent misses nothing.
    fn send(&self, message: ChildMessage) {
        let sent = self.read().outbox.as_ref().map(|outbox| outbox.try_send(message));
        if let Some(Err(TrySendError::Full(_))) = sent {
            tracing::warn!("{} reads nothing; its session begins anew", self.name());
            self.write().outbox = None;
        }
    }

    /// What a call of the parent failed with.
    pub fn failure(&self, status: &tonic::Status) -> Failure {
        Failure::from_status(status).at(&self.name())
    }

    /// Keeps the lease until the node ends.
    pub async fn keep(self: Arc<Self>) {
        let clock = self.net.clock;
        self.begin_anew();
        // What is under way from before a fault has no say any more.
        let (news, mut inbox) = mpsc::channel(NEWS_MAX);
        self.write().news = Some(news.clone());
        let (mut child, mut left) = (Child::default(), false);
        let mut rng = Rng::new();
        let mut actions = VecDeque::from(child.step(clock.now(), &mut rng, ChildEvent::Start));
        loop {
            while let Some(action) = actions.pop_front() {
                self.perform(&news, action);
            }
            self.show(&child);
            let wake = child.wake().map(|t| clock.instant_of(t));
            let probe = lock(&self.link).wake().map(|t| clock.instant_of(t));
            let event = tokio::select! {
                Some(event) = inbox.recv() => event,
                () = self.left.cancelled(), if !left => {
                    left = true;
                    ChildEvent::Stop
                }
                () = wait_until(wake) => ChildEvent::Wake,
                () = self.stir.notified() => continue,
                () = wait_until(probe) => {
                    self.observe(LinkEvent::Wake);
                    continue;
                }
            };
            actions.extend(child.step(clock.now(), &mut rng, event));
        }
    }

    /// Lets go of what a keeper that broke off has left behind.
    fn begin_anew(self: &Arc<Self>) {
        let was_up = {
            let mut shared = self.write();
            (shared.pair, shared.outbox) = (None, None);
            std::mem::take(&mut shared.up)
        };
        if was_up {
            self.observe(LinkEvent::LinkDown);
            let failure = Failure::new(Code::Internal, "whoever keeps the lease broke off");
            self.went(&failure);
        }
    }

    fn show(&self, child: &Child) {
        let before = self.read().failure.clone();
        let (state, failure, next_try) = match child.state() {
            ChildState::Stopped => ("stopped", None, None),
            ChildState::Dialling { .. } | ChildState::Greeting { .. } => ("dialling", before.clone(), None),
            ChildState::Held(_) => ("connected", None, None),
            ChildState::Waiting { failure, until } => ("waiting", Some(failure.clone()), Some(*until)),
            ChildState::Refused(failure) => ("refused", Some(failure.clone()), None),
        };
        if let (Some(failure), Some(_)) = (&failure, next_try)
            && before.as_ref() != Some(failure)
        {
            // Once, however often it is tried: what was lost is told elsewhere.
            let text = format!("not connected to {}: {}; it is tried again and again", self.url, failure.message);
            self.net.events.record("link", text, &serde_json::json!({ "url": self.url, "up": false }));
        }
        let mut shared = self.write();
        (shared.state, shared.failure, shared.next_try) = (state, failure, next_try);
    }

    fn perform(self: &Arc<Self>, news: &News, action: ChildAction) {
        match action {
            ChildAction::Dial { conn } => self.dial(news, conn),
            ChildAction::SayHello { conn } => self.say_hello(news, conn),
            ChildAction::Up { conn, granted } => self.open(news, conn, &granted),
            ChildAction::Heartbeat { session, sequence, .. } => {
                if let Some(pair) = &self.read().pair {
                    pair.rest();
                }
                let link = Some(self.estimate());
                let beat = Heartbeat { session, sequence, sent_ns: 0, link };
                self.send(ChildMessage { body: Some(child_message::Body::Heartbeat(beat)) });
            }
            ChildAction::Rtt(rtt) => {
                self.write().silence.answered(rtt);
                self.observe(LinkEvent::Rtt(rtt));
            }
            ChildAction::Down { failure } => {
                {
                    let mut shared = self.write();
                    (shared.up, shared.outbox, shared.failure) = (false, None, Some(failure.clone()));
                }
                self.observe(LinkEvent::LinkDown);
                self.went(&failure);
            }
            ChildAction::Close { .. } => {
                let mut shared = self.write();
                (shared.pair, shared.outbox) = (None, None);
            }
            ChildAction::Refused(failure) => {
                self.net.events.record(
                    "link",
                    format!("{} refuses this node: {failure}", self.url),
                    &serde_json::json!({ "url": self.url }),
                );
                self.write().failure = Some(failure);
            }
        }
    }

    fn dial(self: &Arc<Self>, news: &News, conn: u64) {
        let (this, news) = (Arc::clone(self), news.clone());
        self.net.tasks.spawn("dial", async move {
            let connected = async {
                let tls = tls::client_config(this.net.me.live_identity());
                let endpoint = transport::endpoint(&this.url, tls).map_err(|e| crate::words::chain(&e))?;
                Pair::connect(&endpoint).await.map_err(|e| crate::words::chain(&e))
            };
            let event = match connected.await {
                Ok(pair) => {
                    this.write().pair = Some(pair);
                    ChildEvent::Connected { conn }
                }
                Err(why) => {
                    let text = format!("cannot reach {}: {why}", this.url);
                    ChildEvent::Disconnected { conn, failure: Failure::new(Code::Unreachable, text) }
                }
            };
            let _ = news.send(event).await;
        });
    }

    fn say_hello(self: &Arc<Self>, news: &News, conn: u64) {
        let (this, news) = (Arc::clone(self), news.clone());
        self.net.tasks.spawn("hello", async move {
            let result = async {
                let hello = HelloRequest {
                    versions: Some(Versions::OURS.into()),
                    node_name: this.net.me.name().to_owned(),
                    role: this.net.me.role().into(),
                    features: envelope::features(),
                    incarnation: this.net.me.incarnation,
                };
                let reply = this.pair()?.control().hello(hello).await.map_err(|s| this.failure(&s))?.into_inner();
                let reply = Sound::read(reply)?;
                let granted = Granted {
                    version: reply.version,
                    session: reply.session,
                    lease: Duration::from_millis(reply.lease_ms.into()),
                    heartbeat: Duration::from_millis(reply.heartbeat_ms.into()),
                };
                if this.net.revoked.has(&reply.node_id) {
                    let text = format!("{} is shut out of the site", reply.node_name);
                    return Err(Failure::new(Code::Unauthenticated, text).with_help("join through another parent"));
                }
                this.write().parent = Some(reply);
                Ok(granted)
            };
            let result = result.await;
            if let Err(failure) = &result
                && failure.code() == Code::AlreadyExists
                && this.read().failure.as_ref() != Some(failure)
            {
                let json = serde_json::json!({ "url": this.url, "copied": true });
                this.net.events.record("link", format!("turned away: {failure}"), &json);
                this.write().failure = Some(failure.clone());
            }
            let _ = news.send(ChildEvent::Hello { conn, result }).await;
        });
    }

    /// Opens the session's stream and listens to it.
    fn open(self: &Arc<Self>, news: &News, conn: u64, granted: &Granted) {
        let (send, receive) = mpsc::channel(OUTBOX_MAX);
        {
            let mut shared = self.write();
            (shared.up, shared.outbox) = (true, Some(send));
        }
        self.write().silence.forget();
        let name = self.name();
        tracing::debug!(version = granted.version, "lease held with {name}");
        let (this, news) = (Arc::clone(self), news.clone());
        let told = news.clone();
        let work = async move { this.listen(&news, conn, receive).await };
        self.net.tasks.spawn_then("session above", work, move |ended| async move {
            let failure = ended.unwrap_or_else(|failure| failure);
            let _ = told.send(ChildEvent::Disconnected { conn, failure }).await;
        });
    }

    async fn listen(self: &Arc<Self>, news: &News, conn: u64, receive: mpsc::Receiver<ChildMessage>) -> Failure {
        let mut client = match self.pair() {
            Ok(pair) => pair.control(),
            Err(failure) => return failure,
        };
        let mut stream = match client.session(ReceiverStream::new(receive)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return self.failure(&status),
        };
        self.observe(LinkEvent::LinkUp);
        self.came();
        loop {
            match stream.message().await {
                Ok(Some(message)) => self.hear(news, conn, message).await,
                Ok(None) => return Failure::new(Code::Unreachable, format!("{} closed the session", self.name())),
                Err(status) => return self.failure(&status),
            }
        }
    }

    async fn hear(self: &Arc<Self>, news: &News, conn: u64, message: ParentMessage) {
        let said = match FromParent::read(message) {
            Ok(Some(said)) => said,
            // A newer parent's, of no concern to this version.
            Ok(None) => return,
            // What it said before holds.
            Err(breach) => return self.net.events.breach(&self.name(), &breach),
        };
        match said {
            FromParent::Ack(ack) => {
                self.write().heard = Some(Instant::now());
                self.told_of_copy(ack.copied);
                let held = Duration::from_nanos(ack.held_ns);
                let [lease, heartbeat] = [ack.lease_ms, ack.heartbeat_ms].map(|ms| Duration::from_millis(ms.into()));
                let _ = news.send(ChildEvent::Lease { conn, lease, heartbeat }).await;
                let _ = news.send(ChildEvent::Ack { conn, sequence: ack.sequence, held }).await;
            }
            FromParent::Goodbye(goodbye) => {
                let Goodbye { reason, return_after_ms } = goodbye.into_inner();
                let reason = reason.unwrap_or_else(|| Failure::new(Code::Draining, "the parent said goodbye"));
                let return_after = Duration::from_millis(return_after_ms.into());
                let _ = news.send(ChildEvent::Goodbye { conn, reason, return_after }).await;
            }
            FromParent::Envelope(envelope) => {
                let Envelope { duty, payload } = envelope.into_inner();
                let Some(duty) = self.net.duties.named(&duty) else { return };
                if let Err(breach) = duty.hear_parent(self, payload).await {
                    self.net.events.breach(&self.name(), &breach);
                }
            }
        }
    }

    /// The session is open.
    fn came(self: &Arc<Self>) {
        self.breaker().reset();
        let _ = self.net.changes.send(RequestEvent::PeerUp { peer: self.peer });
        let name = self.name();
        let json = serde_json::json!({ "parent": name, "up": true });
        self.net.events.record("lease", format!("connected to {name}"), &json);
        self.net.duties.each(|duty| duty.parent_up(self));
    }

    /// The lease is lost.
    fn went(self: &Arc<Self>, failure: &Failure) {
        let name = self.name();
        let reason = format!("the lease with {name} is lost: {failure}");
        let _ = self.net.changes.send(RequestEvent::PeerDown { peer: self.peer, reason });
        let json = serde_json::json!({ "parent": name, "up": false });
        self.net.events.record("lease", format!("lost {name}: {failure}"), &json);
        self.net.duties.each(|duty| duty.parent_down(self));
    }

    /// The parent says whether it turns a copy of this node away.
    fn told_of_copy(&self, copied: bool) {
        let before = std::mem::replace(&mut self.write().copied, copied);
        if copied && !before {
            let text = format!(
                "another process with this node's identity wants to connect to {} and is turned away: a copy of this data \
                 folder runs somewhere; stop one of the two",
                self.name()
            );
            self.net.events.record("link", text, &serde_json::json!({ "url": self.url, "copied": true }));
        }
    }

    /// Fetches an artefact from the parent, from an offset on.
    ///
    /// # Errors
    /// When the parent has it not.
    pub async fn fetch(&self, digest: Digest, offset: u64) -> Result<Chunks, Failure> {
        let from = self.name();
        let mut chunks = self.pair()?.fetch(digest, offset).await.map_err(|failure| failure.at(&from))?;
        chunks.from = from;
        chunks.occupied = Some(self.occupied());
        Ok(chunks)
    }
}

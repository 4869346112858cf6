//! Artefacts on this node, fetched from above when they are missing: performs
//! what the fetch machine asks (`tierline_node::fetch`). `library` says what
//! stays, `upload` takes in what operators give, `service` hands out.

mod deltas;
mod library;
mod service;
pub mod upload;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tierline_node::fetch::{Action, Event, FetchError, Fetcher, Found, Transfer, Waiter};
use tierline_node::policy::{Roles, Rule};
use tierline_node::{Peer, Rng};
use tierline_proto::Digest;
use tierline_proto::limits::{ARTEFACT_BYTES_MAX, DOCUMENT_BYTES_MAX, MESSAGE_BYTES_MAX};
use tierline_proto::v1::bulk_server::BulkServer;
use tierline_proto::v1::{Code, Failure, FetchChunk};
use tierline_store::artefacts::StoredArtefact;
use tierline_store::{ArtefactStore, StoreError};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tonic::service::RoutesBuilder;

use self::service::BulkService;
use crate::documents::{self, Document};
use crate::net::Uplink;
use crate::net::gate::Door;
use crate::net::transport::Chunks;
use crate::runtime::duty::{Assembly, Duty, Registration};
use crate::runtime::tasks::{Owned, in_place};
use crate::runtime::{Context, wait_until};

/// News for the fetching duty that wait for it; others wait with theirs.
const NEWS_MAX: usize = 256;

/// A copy within the store that nobody has written to for so long was broken off.
const STAGED_MAX: Duration = Duration::from_secs(15 * 60);

/// Artefacts that go past this node without being kept, at once: each takes a
/// share of the link above.
const PASSING_MAX: usize = 4;

/// A piece of an artefact that is fetched slowly waits no longer: whoever sends
/// it would give up.
const PACE_WAIT_MAX: Duration = Duration::from_secs(30);

/// Artefacts of which it is known what room they need.
const NO_ROOM_MAX: usize = 1_024;

/// What the fetching duty hears.
enum News {
    /// Somebody needs an artefact.
    Want { digest: Digest, waiter: Waiter, most: u64, done: oneshot::Sender<Result<(), FetchError>> },
    /// A parent came or went.
    Parent(Peer),
    /// Bytes arrived; whoever has fetched them waits until they are kept.
    Chunk { event: Event, data: Bytes, kept: oneshot::Sender<()> },
    /// Anything else.
    Event(Event),
}

type Inlet = mpsc::Sender<News>;

/// Its line in the registry.
pub const DUTY: Registration = Registration {
    name: "artefacts",
    tables: &[],
    rules: &[
        Rule::new("/tierline.v1.Bulk/Stat", Roles::CHILDREN, Roles::PARENTS),
        Rule::new("/tierline.v1.Bulk/Fetch", Roles::CHILDREN, Roles::PARENTS),
        Rule::new("/tierline.v1.Bulk/Probe", Roles::CHILDREN, Roles::PARENTS),
    ],
    make: |assembly| {
        let artefacts = Artefacts::new(assembly);
        Box::new(assembly.add(artefacts))
    },
};

/// What is in the store's folders.
#[derive(Debug, Default)]
pub struct Listed {
    /// Whole artefacts.
    pub whole: Vec<StoredArtefact>,
    /// Parts of some.
    pub partial: Vec<StoredArtefact>,
}

/// The artefacts, and the way to the duty that fetches them.
pub struct Artefacts {
    /// For which there was no room, and how much they need.
    no_room: Mutex<HashMap<Digest, u64>>,
    passing: Arc<Semaphore>,
    /// Bytes per second with which some are fetched, at most.
    paces: Mutex<HashMap<Digest, u64>>,
    uploads: Arc<Semaphore>,
    store: ArtefactStore,
    /// What is stored and not named yet must not be taken for what nothing
    /// names: whoever names, and whoever takes away, holds this.
    pub naming: tokio::sync::Mutex<()>,
    /// What was uploaded is read and checked one after the other.
    pub reading: tokio::sync::Mutex<()>,
    cx: Context,
    /// Of the duty that is at work: one that broke off hears nothing more.
    door: Mutex<Inlet>,
    /// For the first one: who wants something before it begins is heard.
    inbox: Mutex<Option<mpsc::Receiver<News>>>,
    waiter: AtomicU64,
}

impl Artefacts {
    fn new(assembly: &Assembly) -> Arc<Self> {
        let (door, inbox) = mpsc::channel(NEWS_MAX);
        Arc::new(Self {
            no_room: Mutex::default(),
            passing: Arc::new(Semaphore::new(PASSING_MAX)),
            paces: Mutex::default(),
            uploads: upload::places(),
            store: assembly.get::<ArtefactStore>().as_ref().clone(),
            naming: tokio::sync::Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            cx: assembly.cx.clone(),
            door: Mutex::new(door),
            inbox: Mutex::new(Some(inbox)),
            waiter: AtomicU64::new(0),
        })
    }

    fn door(&self) -> Inlet {
        self.door.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stores bytes under their digest.
    ///
    /// # Errors
    /// [`Code::StorageFull`] and others of the store.
    pub async fn put(&self, bytes: Bytes) -> Result<Digest, Failure> {
        let digest = self.store.put(bytes).await?;
        // It may have been here before, as garbage: whoever stores it now is about to name it.
        in_place(|| self.store.touch(digest));
        Ok(digest)
    }

    /// Stores what a file holds under its digest.
    ///
    /// # Errors
    /// [`Code::StorageFull`] and others of the store.
    pub async fn put_file(&self, file: &std::fs::File) -> Result<Digest, Failure> {
        let digest = self.store.put_file(file).await?;
        in_place(|| self.store.touch(digest));
        Ok(digest)
    }

    /// A whole artefact that is here.
    ///
    /// # Errors
    /// [`Code::NotFound`] where it isn't.
    pub async fn get(&self, digest: Digest) -> Result<Bytes, Failure> {
        Ok(self.store.get(digest).await?)
    }

    /// Removes an artefact that nothing names any more, and what was fetched
    /// of it so far.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn remove(&self, digest: Digest) -> Result<(), Failure> {
        in_place(|| self.store.discard_idle(digest));
        Ok(self.store.remove(digest).await?)
    }

    /// Removes what was fetched of an artefact so far.
    pub fn discard(&self, digest: Digest) {
        in_place(|| self.store.discard(digest));
    }

    /// What there is on the disk; copies that a crash broke off are cleared away.
    pub async fn list(&self) -> Listed {
        let store = self.store.clone();
        let list = move || {
            store.clear_staged(STAGED_MAX);
            Listed { whole: store.list(), partial: store.list_partial() }
        };
        self.cx.tasks.blocking("artefact list", list).await.unwrap_or_default()
    }

    /// Clears away copies that an earlier start broke off.
    pub async fn clear_staged(&self) {
        let store = self.store.clone();
        // Nothing to do about a disk that refuses; they are tried again.
        let _ = self.cx.tasks.blocking("artefact list", move || store.clear_staged(Duration::ZERO)).await;
    }

    /// An artefact is fetched with so many bytes per second at most, from now on;
    /// none: as fast as the link is.
    pub fn set_pace(&self, digest: Digest, bytes_per_s: Option<u64>) {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        match bytes_per_s {
            Some(pace) => drop(paces.insert(digest, pace.max(1))),
            None => drop(paces.remove(&digest)),
        }
    }

    /// Waits as long as bytes that came have to take.
    async fn keep_pace(&self, digest: Digest, bytes: u64) {
        let pace = self.paces.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).copied();
        if let Some(pace) = pace {
            tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / pace as f64).min(PACE_WAIT_MAX)).await;
        }
    }

    /// Whether the disk still has no room for an artefact that was tried: then
    /// it isn't asked for again to no end.
    fn lacks_room(&self, digest: Digest) -> bool {
        let known = self.no_room.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).copied();
        let lacks = known.is_some_and(|needed| in_place(|| self.store.room()) < needed);
        if known.is_some() && !lacks {
            self.no_room.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
        }
        lacks
    }

    /// There is no room for an artefact that needs so much.
    fn note_no_room(&self, digest: Digest, needed: u64) {
        let mut known = self.no_room.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= NO_ROOM_MAX {
            known.clear();
        }
        known.insert(digest, needed);
    }

    /// Bytes of all artefacts.
    pub async fn bytes(&self) -> u64 {
        let store = self.store.clone();
        // Only for people to read.
        self.cx.tasks.blocking("store size", move || store.bytes()).await.unwrap_or(0)
    }

    /// Points a name at a manifest.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn name(&self, name: &str, manifest: Digest) -> Result<(), Failure> {
        let name = name.to_owned();
        self.cx.state.with(move |state| state.set_name(&name, manifest)).await
    }

    /// Forgets a name.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn unname(&self, name: &str) -> Result<(), Failure> {
        let name = name.to_owned();
        self.cx.state.with(move |state| state.remove_name(&name)).await
    }

    /// Keeps the digest of this device's profile of a model.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn keep_profile(&self, model: Digest, profile: Digest) -> Result<(), Failure> {
        self.cx.state.with(move |state| state.set_profile(model, profile)).await
    }

    /// A parent can be asked now, or can't any more.
    fn parent_changed(&self, peer: Peer) {
        self.tell(News::Parent(peer));
    }

    /// Tells the duty, from where nobody can wait for it.
    fn tell(&self, news: News) {
        let door = self.door();
        if let Err(TrySendError::Full(news)) = door.try_send(news) {
            self.cx.tasks.spawn("artefact news", async move {
                let _ = door.send(news).await;
            });
        }
    }

    /// Fetches what is wanted, until the node ends. Begins with an empty
    /// machine: who waited for one that broke off is told so, and what it has
    /// fetched is on the disk.
    async fn run(self: Arc<Self>) {
        let first = self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut inbox = first.unwrap_or_else(|| {
            let (door, inbox) = mpsc::channel(NEWS_MAX);
            *self.door.lock().unwrap_or_else(PoisonError::into_inner) = door;
            inbox
        });
        let mut fetching = Fetching {
            artefacts: &self,
            door: self.door(),
            fetcher: Fetcher::new(self.cx.parents.iter().map(|uplink| uplink.peer)),
            rng: Rng::new(),
            waiters: HashMap::new(),
            transfers: HashMap::new(),
        };
        for uplink in self.cx.parents.iter() {
            fetching.hear(News::Parent(uplink.peer)).await;
        }
        loop {
            let wake = fetching.fetcher.wake().map(|t| self.cx.clock.instant_of(t));
            tokio::select! {
                Some(news) = inbox.recv() => fetching.hear(news).await,
                () = wait_until(wake) => fetching.drive(Event::Wake, None).await,
            }
        }
    }

    /// Waits until an artefact is here, of at most so many bytes.
    async fn ensure_of(&self, digest: Digest, most: u64) -> Result<(), Failure> {
        if self.store.length(digest).await?.is_some() {
            in_place(|| self.store.touch(digest));
            return Ok(());
        }
        if self.lacks_room(digest) {
            let failure = FetchError::StorageFull(digest);
            return Err(Failure::new(failure.code(), failure.to_string()).at(self.cx.me.name()));
        }
        let waiter = Waiter(self.waiter.fetch_add(1, Ordering::Relaxed));
        let (done, waiting) = oneshot::channel();
        // A caller that goes away must not keep a transfer alive.
        let mut leave = Leave { artefacts: self, digest, waiter, waits: true };
        let told = self.door().send(News::Want { digest, waiter, most, done }).await;
        let heard = match told {
            Ok(()) => waiting.await.ok(),
            Err(_) => None,
        };
        leave.waits = false;
        match heard {
            Some(result) => result.map_err(|e| Failure::new(e.code(), e.to_string()).at(self.cx.me.name())),
            None => {
                let text = format!("fetching artefact {} broke off; ask again", digest.short());
                Err(Failure::new(Code::Cancelled, text).at(self.cx.me.name()))
            }
        }
    }
}

struct Leave<'a> {
    artefacts: &'a Artefacts,
    digest: Digest,
    waiter: Waiter,
    waits: bool,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.artefacts.tell(News::Event(Event::Forget { digest: self.digest, waiter: self.waiter }));
        }
    }
}

/// The machine, and what is under way for it.
struct Fetching<'a> {
    artefacts: &'a Arc<Artefacts>,
    door: Inlet,
    fetcher: Fetcher,
    rng: Rng,
    waiters: HashMap<Waiter, oneshot::Sender<Result<(), FetchError>>>,
    transfers: HashMap<Transfer, Owned<()>>,
}

impl Fetching<'_> {
    async fn hear(&mut self, news: News) {
        match news {
            News::Want { digest, waiter, most, done } => {
                self.waiters.insert(waiter, done);
                self.drive(Event::Want { digest, waiter, most }, None).await;
            }
            // As it is now: news of it may come late.
            News::Parent(peer) => match self.artefacts.cx.parents.get(peer).is_ok_and(|uplink| uplink.is_up()) {
                true => self.drive(Event::SourceUp(peer), None).await,
                false => self.drive(Event::SourceDown(peer), None).await,
            },
            News::Chunk { event, data, kept } => {
                self.drive(event, Some(data)).await;
                // A transfer that was stopped meanwhile brings nothing more.
                let _ = kept.send(());
            }
            News::Event(event) => {
                if let Event::Forget { waiter, .. } = &event {
                    self.waiters.remove(waiter);
                }
                self.drive(event, None).await;
            }
        }
    }

    /// Steps the machine and performs what it asks, in its order; `data` is
    /// the chunk that the event reports.
    async fn drive(&mut self, event: Event, data: Option<Bytes>) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            if let Event::Ended { transfer, .. } = &event {
                self.transfers.remove(transfer);
            }
            for action in self.fetcher.step(self.artefacts.cx.clock.now(), &mut self.rng, event) {
                events.extend(self.perform(action, data.as_ref()).await);
            }
        }
    }

    /// Performs an action; what came of it, where that is known at once.
    async fn perform(&mut self, action: Action, data: Option<&Bytes>) -> Option<Event> {
        let store = self.artefacts.store.clone();
        match action {
            Action::Look(digest) => self.begin("artefact look", digest, async move {
                let found = match store.length(digest).await {
                    Ok(Some(_)) => Found::Whole,
                    _ => Found::Partial(in_place(|| store.partial_length(digest))),
                };
                Event::Looked { digest, found }
            }),
            Action::Fetch { transfer, source, digest, offset } => {
                let (artefacts, door) = (Arc::clone(self.artefacts), self.door.clone());
                let fetched = async move { fetch(&artefacts, &door, transfer, source, digest, offset).await };
                let door = self.door.clone();
                let task = self.artefacts.cx.tasks.spawn_then("transfer", fetched, move |fetched| async move {
                    let failure = fetched.flatten().err().map(|f| (f.code(), f.to_string()));
                    let _ = door.send(News::Event(Event::Ended { transfer, failure })).await;
                });
                self.transfers.insert(transfer, task.owned());
            }
            Action::Append(digest) => {
                let data = data.cloned().unwrap_or_default();
                let append = move || store.append(digest, &data);
                return match self.artefacts.cx.tasks.blocking("artefact bytes", append).await {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(write_failed(digest, &error)),
                    Err(failure) => Some(write_broke_off(digest, &failure)),
                };
            }
            Action::Stop(transfer) => drop(self.transfers.remove(&transfer)),
            // What stays behind is hashed, and found to be wrong.
            Action::Discard(digest) => {
                drop(self.artefacts.cx.tasks.blocking("artefact bytes", move || store.discard(digest)).await)
            }
            Action::Verify(digest) => self.begin("artefact hash", digest, async move {
                match in_place(|| store.hash_partial(digest)) {
                    Ok(got) => Event::Hashed { digest, got },
                    Err(error) => write_failed(digest, &error),
                }
            }),
            Action::Commit(digest) => self.begin("artefact commit", digest, async move {
                match store.commit(digest).await {
                    Ok(()) => Event::Committed { digest },
                    Err(error) => write_failed(digest, &error),
                }
            }),
            Action::Done { waiters, result, .. } => {
                for waiter in waiters {
                    if let Some(waiting) = self.waiters.remove(&waiter) {
                        // Who gave up meanwhile doesn't want to know.
                        let _ = waiting.send(result.clone());
                    }
                }
            }
        }
        None
    }

    /// Starts work on an artefact's files; the machine hears of its end.
    fn begin(&self, name: &'static str, digest: Digest, work: impl Future<Output = Event> + Send + 'static) {
        let door = self.door.clone();
        self.artefacts.cx.tasks.spawn_then(name, work, move |ended| async move {
            let event = ended.unwrap_or_else(|failure| write_broke_off(digest, &failure));
            let _ = door.send(News::Event(event)).await;
        });
    }
}

fn write_broke_off(digest: Digest, failure: &Failure) -> Event {
    Event::WriteFailed { digest, full: false, reason: failure.message.clone() }
}

fn write_failed(digest: Digest, error: &StoreError) -> Event {
    Event::WriteFailed { digest, full: matches!(error, StoreError::Full { .. }), reason: error.to_string() }
}

async fn fetch(
    artefacts: &Artefacts,
    door: &Inlet,
    transfer: Transfer,
    source: Peer,
    digest: Digest,
    offset: u64,
) -> Result<(), Failure> {
    let mut chunks = artefacts.cx.parents.get(source)?.fetch(digest, offset).await?;
    let gone = || Failure::new(Code::Cancelled, "nobody keeps what is fetched any more");
    let mut first = true;
    while let Some(FetchChunk { total, offset, data }) = chunks.next().await? {
        // Known before the last free byte is written for nothing. What is
        // verified is copied into the store, so it takes room twice for a moment.
        let needed = total.saturating_mul(2).saturating_sub(offset);
        if std::mem::take(&mut first) && in_place(|| artefacts.store.room()) < needed {
            artefacts.note_no_room(digest, needed);
            let reason = FetchError::StorageFull(digest).to_string();
            let event = Event::WriteFailed { digest, full: true, reason };
            return door.send(News::Event(event)).await.map_err(|_| gone());
        }
        let length = data.len() as u64;
        let event = Event::Chunk { transfer, total, offset, length };
        let (kept, is_kept) = oneshot::channel();
        door.send(News::Chunk { event, data, kept }).await.map_err(|_| gone())?;
        is_kept.await.map_err(|_| gone())?;
        artefacts.keep_pace(digest, length).await;
    }
    Ok(())
}

impl Artefacts {
    /// A place for an upload.
    ///
    /// # Errors
    /// When there is none.
    fn place(&self) -> Result<OwnedSemaphorePermit, tokio::sync::TryAcquireError> {
        Arc::clone(&self.uploads).try_acquire_owned()
    }

    /// The store itself, for files that aren't artefacts yet.
    #[must_use]
    pub fn store(&self) -> &ArtefactStore {
        &self.store
    }

    /// Length of an artefact that is here.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn length(&self, digest: Digest) -> Result<Option<u64>, Failure> {
        Ok(self.store.length(digest).await?)
    }

    /// A range of an artefact that is here.
    ///
    /// # Errors
    /// [`Code::NotFound`] where it isn't.
    pub async fn range(&self, digest: Digest, range: Range<u64>) -> Result<Bytes, Failure> {
        Ok(self.store.range(digest, range).await?)
    }

    /// Makes sure that an artefact is here, fetched from above if need be.
    ///
    /// # Errors
    /// [`FetchError`]'s codes.
    pub async fn ensure(&self, digest: Digest) -> Result<(), Failure> {
        self.ensure_of(digest, ARTEFACT_BYTES_MAX).await
    }

    /// Reads an artefact that is here again, and compares it with its digest;
    /// a damaged one is let go, so that it is fetched anew.
    ///
    /// # Errors
    /// [`Code::NotFound`], [`Code::Corrupt`].
    pub async fn check(&self, digest: Digest) -> Result<(), Failure> {
        let store = self.store.clone();
        let checked = self.cx.tasks.blocking("artefact check", move || store.verify(digest)).await?;
        if let Err(StoreError::Corrupt(_)) = &checked {
            self.remove(digest).await?;
        }
        Ok(checked?)
    }

    /// A document that is named by its digest, fetched from above if need be.
    ///
    /// # Errors
    /// [`FetchError`]'s codes, and those of [`documents::read`].
    pub async fn document<D: Document>(&self, digest: Digest) -> Result<D, Failure> {
        let kept = self.ensure_of(digest, DOCUMENT_BYTES_MAX).await;
        // It may have been here before, as something else.
        let length = self.length(digest).await?.unwrap_or(0);
        if length > DOCUMENT_BYTES_MAX {
            let text = format!("{} has {length} bytes; at most {DOCUMENT_BYTES_MAX} are read", D::WHAT);
            return Err(Failure::new(Code::TooLarge, text));
        }
        documents::read(&self.kept_or_passing(digest, kept, DOCUMENT_BYTES_MAX).await?)
    }

    /// A whole artefact: from the disk, fetched there if need be; where the
    /// disk has no room, into memory only, up to `bytes_max`.
    ///
    /// # Errors
    /// [`FetchError`]'s codes.
    pub async fn whole(&self, digest: Digest, bytes_max: u64) -> Result<Bytes, Failure> {
        let kept = self.ensure(digest).await;
        self.kept_or_passing(digest, kept, bytes_max).await
    }

    /// An artefact that is kept here, or else as it passes.
    async fn kept_or_passing(
        &self,
        digest: Digest,
        kept: Result<(), Failure>,
        bytes_max: u64,
    ) -> Result<Bytes, Failure> {
        match kept {
            Ok(()) => self.get(digest).await,
            Err(failure) if failure.code() == Code::StorageFull && !self.cx.parents.is_empty() => {
                let (_turn, mut passing) = self.pass(digest, 0).await?;
                let mut bytes = Vec::new();
                while let Some(chunk) = passing.next().await? {
                    if chunk.total > bytes_max || chunk.offset != bytes.len() as u64 {
                        return Err(failure);
                    }
                    bytes.extend_from_slice(&chunk.data);
                }
                if blake3::hash(&bytes).as_bytes() != &digest.0 {
                    let text = format!("artefact {} came damaged, or not whole", digest.short());
                    return Err(Failure::new(Code::Unreachable, text).at(self.cx.me.name()));
                }
                Ok(bytes.into())
            }
            Err(failure) => Err(failure),
        }
    }

    /// The rest of an artefact as it comes from above, for somebody below: it
    /// isn't kept here. The permit goes with the stream.
    ///
    /// # Errors
    /// [`Code::ModelNotReady`] when too many pass already; when no parent can be asked.
    pub async fn pass(&self, digest: Digest, offset: u64) -> Result<(OwnedSemaphorePermit, Chunks), Failure> {
        let turn = Arc::clone(&self.passing).try_acquire_owned().map_err(|_| {
            let text =
                format!("{} has no room to keep artefacts, and {PASSING_MAX} are passing already", self.cx.me.name());
            Failure::new(Code::ModelNotReady, text)
        })?;
        let parent = self.cx.parents.first();
        let parent = parent.ok_or_else(|| Failure::new(Code::Unreachable, "this node has no parent"))?;
        Ok((turn, parent.fetch(digest, offset).await?))
    }
}

#[tonic::async_trait]
impl Duty for Arc<Artefacts> {
    async fn open(&self) -> Result<(), Failure> {
        self.clear_up().await;
        Ok(())
    }

    async fn begin(&self) -> Result<(), Failure> {
        self.cx.keep("artefacts", self, Artefacts::run);
        self.cx.keep("house", self, Artefacts::keep_house);
        Ok(())
    }

    fn serve(&self, door: Door, routes: &mut RoutesBuilder) {
        if door == Door::Network {
            let service = BulkServer::new(BulkService::new(Arc::clone(self)));
            routes.add_service(service.max_decoding_message_size(MESSAGE_BYTES_MAX));
        }
    }

    fn parent_up(&self, parent: &Arc<Uplink>) {
        self.parent_changed(parent.peer);
    }

    fn parent_down(&self, parent: &Arc<Uplink>) {
        self.parent_changed(parent.peer);
    }
}

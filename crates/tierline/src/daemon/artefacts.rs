//! Artefacts on this node, fetched from above when they are missing: performs
//! what the fetch machine asks (`tierline_node::fetch`).

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tierline_node::fetch::{Action, Event, FetchError, Fetcher, Found, Transfer, Waiter};
use tierline_node::{Peer, Rng};
use tierline_proto::Digest;
use tierline_proto::v1::{Code, Failure};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use super::Node;
use crate::store::{ArtefactStore, State, StoreError};

struct Inner {
    fetcher: Fetcher,
    rng: Rng,
    waiters: HashMap<Waiter, oneshot::Sender<Result<(), FetchError>>>,
    transfers: HashMap<Transfer, AbortHandle>,
}

/// The artefacts, and the transfers under way.
pub struct Artefacts {
    store: ArtefactStore,
    state: Arc<State>,
    inner: Mutex<Inner>,
    waiter: AtomicU64,
    /// Rings when the machine's next wake may have moved.
    stir: Notify,
}

impl Artefacts {
    /// No transfer yet; `parents` can be asked once they are up.
    #[must_use]
    pub fn new(store: ArtefactStore, state: Arc<State>, parents: impl IntoIterator<Item = Peer>) -> Self {
        let inner = Inner {
            fetcher: Fetcher::new(parents),
            rng: Rng::new(),
            waiters: HashMap::new(),
            transfers: HashMap::new(),
        };
        Self { store, state, inner: Mutex::new(inner), waiter: AtomicU64::new(0), stir: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores bytes under their digest.
    ///
    /// # Errors
    /// [`Code::StorageFull`] and others of the store.
    pub async fn put(&self, bytes: Bytes) -> Result<Digest, Failure> {
        Ok(self.store.put(bytes).await?)
    }

    /// A whole artefact that is here.
    ///
    /// # Errors
    /// [`Code::NotFound`] where it isn't.
    pub async fn get(&self, digest: Digest) -> Result<Bytes, Failure> {
        Ok(self.store.get(digest).await?)
    }

    /// Removes an artefact that nothing names any more.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn remove(&self, digest: Digest) -> Result<(), Failure> {
        Ok(self.store.remove(digest).await?)
    }

    /// Bytes of all artefacts.
    pub async fn bytes(&self) -> u64 {
        self.store.bytes().await
    }

    /// Points a name at a manifest.
    ///
    /// # Errors
    /// Those of the store.
    pub fn name(&self, name: &str, manifest: Digest) -> Result<(), Failure> {
        Ok(self.state.set_name(name, manifest)?)
    }

    /// Forgets a name.
    ///
    /// # Errors
    /// Those of the store.
    pub fn unname(&self, name: &str) -> Result<(), Failure> {
        Ok(self.state.remove_name(name)?)
    }

    /// Keeps the digest of this device's profile of a model.
    ///
    /// # Errors
    /// Those of the store.
    pub fn keep_profile(&self, model: Digest, profile: Digest) -> Result<(), Failure> {
        Ok(self.state.set_profile(model, profile)?)
    }

    /// A parent can be asked.
    pub fn source_up(&self, node: &Arc<Node>, peer: Peer) {
        self.drive(node, Event::SourceUp(peer), None);
    }

    /// A parent can't be asked any more.
    pub fn source_down(&self, node: &Arc<Node>, peer: Peer) {
        self.drive(node, Event::SourceDown(peer), None);
    }

    /// Wakes the machine when it wants, until the node ends.
    pub async fn watch(&self, node: &Arc<Node>) {
        loop {
            let wake = self.lock().fetcher.wake().map(|t| node.instant_of(t));
            tokio::select! {
                () = self.stir.notified() => {}
                () = super::wait_until(wake) => self.drive(node, Event::Wake, None),
            }
        }
    }

    /// Steps the machine and performs what it asks; `data` is the chunk that
    /// the event reports.
    fn drive(&self, node: &Arc<Node>, event: Event, data: Option<&[u8]>) {
        let mut events = VecDeque::from([event]);
        let mut inner = self.lock();
        while let Some(event) = events.pop_front() {
            let Inner { fetcher, rng, .. } = &mut *inner;
            let actions = fetcher.step(node.now(), rng, event);
            for action in actions {
                self.perform(node, &mut inner, action, data, &mut events);
            }
        }
        drop(inner);
        self.stir.notify_one();
    }

    fn perform(
        &self,
        node: &Arc<Node>,
        inner: &mut Inner,
        action: Action,
        data: Option<&[u8]>,
        events: &mut VecDeque<Event>,
    ) {
        match action {
            Action::Look(digest) => {
                let node = Arc::clone(node);
                tokio::spawn(async move {
                    let found = match node.artefacts.store.length(digest).await {
                        Ok(Some(_)) => Found::Whole,
                        _ => Found::Partial(node.artefacts.store.partial_length(digest)),
                    };
                    node.artefacts.drive(&node, Event::Looked { digest, found }, None);
                });
            }
            Action::Fetch { transfer, source, digest, offset } => {
                let node = Arc::clone(node);
                let task = tokio::spawn(async move {
                    let failure = fetch(&node, transfer, source, digest, offset).await.err();
                    node.artefacts.lock().transfers.remove(&transfer);
                    let failure = failure.map(|f| (f.code(), f.to_string()));
                    node.artefacts.drive(&node, Event::Ended { transfer, failure }, None);
                });
                inner.transfers.insert(transfer, task.abort_handle());
            }
            Action::Append(digest) => {
                let appended = self.store.append(digest, data.unwrap_or_default());
                if let Err(error) = appended {
                    events.push_back(write_failed(digest, &error));
                }
            }
            Action::Stop(transfer) => {
                if let Some(task) = inner.transfers.remove(&transfer) {
                    task.abort();
                }
            }
            Action::Discard(digest) => self.store.discard(digest),
            Action::Verify(digest) => {
                let node = Arc::clone(node);
                tokio::task::spawn_blocking(move || {
                    let event = match node.artefacts.store.hash_partial(digest) {
                        Ok(got) => Event::Hashed { digest, got },
                        Err(error) => write_failed(digest, &error),
                    };
                    node.artefacts.drive(&node, event, None);
                });
            }
            Action::Commit(digest) => {
                let node = Arc::clone(node);
                tokio::spawn(async move {
                    let event = match node.artefacts.store.commit(digest).await {
                        Ok(()) => Event::Committed { digest },
                        Err(error) => write_failed(digest, &error),
                    };
                    node.artefacts.drive(&node, event, None);
                });
            }
            Action::Done { waiters, result, .. } => {
                for waiter in waiters {
                    if let Some(waiting) = inner.waiters.remove(&waiter) {
                        // Who gave up meanwhile doesn't want to know.
                        let _ = waiting.send(result.clone());
                    }
                }
            }
        }
    }

    /// Waits until an artefact is here.
    async fn ensure(&self, node: &Arc<Node>, digest: Digest) -> Result<(), Failure> {
        if self.store.length(digest).await?.is_some() {
            return Ok(());
        }
        let waiter = Waiter(self.waiter.fetch_add(1, Ordering::Relaxed));
        let (done, waiting) = oneshot::channel();
        self.lock().waiters.insert(waiter, done);
        // A caller that goes away must not keep a transfer alive.
        let _leave = Leave { node, digest, waiter };
        self.drive(node, Event::Want { digest, waiter }, None);
        match waiting.await {
            Ok(result) => result.map_err(|e| Failure::new(e.code(), e.to_string()).at(node.name())),
            Err(_) => Err(Failure::new(Code::Draining, "this node is shutting down")),
        }
    }
}

struct Leave<'n> {
    node: &'n Arc<Node>,
    digest: Digest,
    waiter: Waiter,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let waits = self.node.artefacts.lock().waiters.remove(&self.waiter).is_some();
        if waits {
            self.node.artefacts.drive(self.node, Event::Forget { digest: self.digest, waiter: self.waiter }, None);
        }
    }
}

fn write_failed(digest: Digest, error: &StoreError) -> Event {
    Event::WriteFailed { digest, full: matches!(error, StoreError::Full { .. }), reason: error.to_string() }
}

async fn fetch(node: &Arc<Node>, transfer: Transfer, source: Peer, digest: Digest, offset: u64) -> Result<(), Failure> {
    let uplink = node.uplink(source)?;
    uplink
        .fetch(digest, offset, |total, offset, data| {
            let event = Event::Chunk { transfer, total, offset, length: data.len() as u64 };
            tokio::task::block_in_place(|| node.artefacts.drive(node, event, Some(&data)));
            Ok(())
        })
        .await
}

impl Node {
    /// Length of an artefact that is here.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn artefact_length(&self, digest: Digest) -> Result<Option<u64>, Failure> {
        Ok(self.artefacts.store.length(digest).await?)
    }

    /// A range of an artefact that is here.
    ///
    /// # Errors
    /// [`Code::NotFound`] where it isn't.
    pub async fn artefact_range(&self, digest: Digest, range: Range<u64>) -> Result<Bytes, Failure> {
        Ok(self.artefacts.store.range(digest, range).await?)
    }

    /// Makes sure that an artefact is here, fetched from above if need be.
    ///
    /// # Errors
    /// [`FetchError`]'s codes.
    pub async fn ensure_artefact(self: &Arc<Self>, digest: Digest) -> Result<(), Failure> {
        self.artefacts.ensure(self, digest).await
    }
}

//! Memory for what a node keeps because it may be wanted again: one limit for
//! all of it, whatever it is.
//!
//! What was used longest ago goes first, and what is in use never. Whoever
//! holds the value of an entry uses it; so values that others own (plans) are
//! kept here by a stand-in, and their owner hears of those that went
//! ([`Memory::gone`]).
//!
//! Models are read again in less time than anything is made of them, so they
//! only have the room that nothing else needs. One that is in use stays,
//! beyond the limit if need be: sessions are loaded from one model at a time.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tierline_proto::Digest;
use tokio::sync::Notify;

use super::program::SliceKey;

/// Names what is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// A model, as sessions are loaded from it.
    Model(Digest),
    /// A session.
    Session(SliceKey),
    /// The plans of a model.
    Plans(Digest),
}

/// What is kept, as numbers tell of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Models.
    Models,
    /// Sessions.
    Sessions,
    /// Plans.
    Plans,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Models, Self::Sessions, Self::Plans];

    /// For people and numbers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Models => "models",
            Self::Sessions => "sessions",
            Self::Plans => "plans",
        }
    }
}

impl Key {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Model(_) => Kind::Models,
            Self::Session(_) => Kind::Sessions,
            Self::Plans(_) => Kind::Plans,
        }
    }
}

type Value = Arc<dyn Any + Send + Sync>;

struct Entry {
    value: Value,
    bytes: u64,
    used: u64,
}

impl Entry {
    fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.value) > 1
    }
}

#[derive(Default)]
struct Entries {
    clock: u64,
    entries: HashMap<Key, Entry>,
    /// What went to make room, and nobody has asked about yet.
    gone: HashSet<Key>,
}

struct Inner {
    max: AtomicU64,
    entries: Mutex<Entries>,
    /// Rings when something went to make room.
    bell: Notify,
}

/// The accountant; clones share it.
#[derive(Clone)]
pub struct Memory(Arc<Inner>);

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// What it is.
    pub kind: Kind,
    /// How many.
    pub count: usize,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl Memory {
    /// Nothing yet; all that is kept may take `max` bytes.
    #[must_use]
    pub fn new(max: u64) -> Self {
        Self(Arc::new(Inner { max: max.into(), entries: Mutex::default(), bell: Notify::new() }))
    }

    /// Bytes that all of it may take.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.0.max.load(Ordering::Relaxed)
    }

    /// From now on it may take `max` bytes; what is beyond and not in use goes.
    pub fn set_max(&self, max: u64) {
        self.0.max.store(max, Ordering::Relaxed);
        self.make_room(0);
    }

    /// How much is kept of each kind.
    #[must_use]
    pub fn kept(&self) -> [MemoryUse; Kind::ALL.len()] {
        let entries = self.lock();
        Kind::ALL.map(|kind| {
            let of_kind = entries.entries.iter().filter(|(key, _)| key.kind() == kind);
            let (count, bytes) = of_kind.fold((0, 0), |(count, bytes), (_, e)| (count + 1, bytes + e.bytes));
            MemoryUse { kind, count, bytes }
        })
    }

    /// Bytes of all that is kept.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.kept().iter().map(|kept| kept.bytes).sum()
    }

    /// Whether something is kept, without using it.
    #[must_use]
    pub fn has(&self, key: &Key) -> bool {
        self.lock().entries.contains_key(key)
    }

    /// Something that is kept; it counts as used now, and as in use until the
    /// value is let go.
    #[must_use]
    pub fn get<T: Any + Send + Sync>(&self, key: &Key) -> Option<Arc<T>> {
        let mut entries = self.lock();
        entries.clock += 1;
        let now = entries.clock;
        let entry = entries.entries.get_mut(key)?;
        entry.used = now;
        Arc::clone(&entry.value).downcast().ok()
    }

    /// Lets go what was used longest ago until `bytes` more fit; whether they do.
    pub fn make_room(&self, bytes: u64) -> bool {
        let (fits, gone) = self.lock().make_room(self.max().checked_sub(bytes));
        self.went(gone);
        fits
    }

    /// Keeps something of so many bytes, and makes room for it.
    pub fn keep<T: Any + Send + Sync>(&self, key: Key, value: &Arc<T>, bytes: u64) {
        let mut entries = self.lock();
        entries.clock += 1;
        let entry = Entry { value: Arc::clone(value) as Value, bytes, used: entries.clock };
        entries.gone.remove(&key);
        let before = entries.entries.insert(key, entry);
        let (_, gone) = entries.make_room(Some(self.max()));
        drop(entries);
        drop(before);
        self.went(gone);
    }

    /// Lets something go.
    pub fn forget(&self, key: &Key) {
        let gone = self.lock().entries.remove(key);
        // Not under the lock: a session's end may take a moment.
        drop(gone);
    }

    /// Lets everything go that is like this.
    pub fn forget_all(&self, like: impl Fn(&Key) -> bool) {
        let gone: Vec<Entry> = self.lock().entries.extract_if(|key, _| like(key)).map(|(_, entry)| entry).collect();
        drop(gone);
    }

    /// What went to make room since this was asked last, other than models.
    #[must_use]
    pub fn gone(&self) -> HashSet<Key> {
        std::mem::take(&mut self.lock().gone)
    }

    /// Until something has gone to make room.
    pub async fn until_gone(&self) {
        self.0.bell.notified().await;
    }

    fn went(&self, gone: Vec<(Key, Entry)>) {
        if gone.iter().any(|(key, _)| key.kind() != Kind::Models) {
            self.0.bell.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    /// Takes out what isn't in use until the rest fits into `limit`; whether it
    /// does, models in use left aside.
    fn make_room(&mut self, limit: Option<u64>) -> (bool, Vec<(Key, Entry)>) {
        let Some(limit) = limit else { return (false, Vec::new()) };
        let counts = |(key, entry): &(&Key, &Entry)| key.kind() != Kind::Models || !entry.is_in_use();
        let mut bytes: u64 = self.entries.iter().filter(counts).map(|(_, entry)| entry.bytes).sum();
        let mut gone = Vec::new();
        while bytes > limit {
            let idle = self.entries.iter().filter(|(_, entry)| !entry.is_in_use());
            let oldest = idle.min_by_key(|(key, entry)| (key.kind() != Kind::Models, entry.used));
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { break };
            let Some(entry) = self.entries.remove(&key) else { break };
            bytes -= entry.bytes;
            if key.kind() != Kind::Models {
                self.gone.insert(key.clone());
            }
            gone.push((key, entry));
        }
        (bytes <= limit, gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    fn session(n: u8) -> Key {
        Key::Session(SliceKey { digest: digest(n).to_string(), from: 0, to: 1 })
    }

    fn all(memory: &Memory) -> Vec<Key> {
        let mut keys: Vec<Key> = memory.lock().entries.keys().cloned().collect();
        keys.sort_by_key(|key| format!("{key:?}"));
        keys
    }

    #[test]
    fn what_was_used_longest_ago_goes_whatever_it_is() {
        let memory = Memory::new(100);
        memory.keep(session(1), &Arc::new(1), 40);
        memory.keep(Key::Plans(digest(2)), &Arc::new(()), 40);
        assert_eq!(memory.get::<i32>(&session(1)).as_deref(), Some(&1));
        memory.keep(session(3), &Arc::new(3), 40);
        assert_eq!(all(&memory), [session(1), session(3)]);
        assert_eq!(memory.gone(), HashSet::from([Key::Plans(digest(2))]));
        assert!(memory.gone().is_empty(), "it is told once");
        assert_eq!(memory.kept().map(|k| (k.count, k.bytes)), [(0, 0), (2, 80), (0, 0)]);
    }

    #[test]
    fn what_is_in_use_stays() {
        let memory = Memory::new(100);
        memory.keep(session(1), &Arc::new(1), 60);
        let used = memory.get::<i32>(&session(1));
        assert!(!memory.make_room(50), "it is in use");
        assert!(memory.has(&session(1)) && memory.make_room(40));
        drop(used);
        assert!(memory.make_room(50) && !memory.has(&session(1)));
        assert!(!memory.make_room(101), "it never fits");
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn models_have_the_room_that_nothing_else_needs() {
        let memory = Memory::new(100);
        let model = Arc::new("model");
        memory.keep(session(1), &Arc::new(1), 40);
        memory.keep(Key::Model(digest(1)), &model, 40);
        let _ = memory.get::<&str>(&Key::Model(digest(1)));
        // In use, it takes nobody's room: what is loaded from it finds its own.
        assert!(memory.make_room(60));
        memory.keep(session(2), &Arc::new(2), 60);
        assert_eq!(memory.used(), 140);
        drop(model);
        assert!(memory.make_room(0));
        assert_eq!(all(&memory), [session(1), session(2)]);
        assert!(memory.gone().is_empty(), "nobody asks about models");
    }

    #[test]
    fn what_is_kept_anew_takes_the_place_of_the_old() {
        let memory = Memory::new(100);
        memory.keep(Key::Plans(digest(1)), &Arc::new(()), 90);
        memory.keep(Key::Plans(digest(1)), &Arc::new(()), 30);
        assert_eq!((memory.used(), memory.gone().len()), (30, 0));
        memory.keep(session(1), &Arc::new(1), 10);
        memory.forget_all(|key| key.kind() == Kind::Sessions);
        memory.forget(&Key::Plans(digest(1)));
        assert_eq!((memory.used(), memory.gone().len()), (0, 0));
    }
}

//! Stopping what runs: at a moment, or on a word from another thread.
//!
//! A [`Stop`] goes along with loads and runs. The engine hangs its brake on it
//! for as long as one takes ([`Stop::during`]); whoever holds another handle
//! pulls all of them, the alarm at a deadline those that are due. One thread
//! keeps all deadlines.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Instant;

type Brake = Box<dyn Fn() + Send>;

/// When a load or a run must end. Clones are handles of the same one.
#[derive(Debug, Clone, Default)]
pub struct Stop(Option<Arc<Inner>>);

#[derive(Default)]
struct Inner {
    deadline: Option<Instant>,
    /// Shared by those with other deadlines ([`Stop::no_later_than`]).
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    asked: bool,
    next: u64,
    /// Of what runs now.
    brakes: BTreeMap<u64, Brake>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stop").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl Stop {
    /// Takes as long as it takes.
    #[must_use]
    pub const fn never() -> Self {
        Self(None)
    }

    /// Ends when [`Stop::pull`] is called.
    #[must_use]
    pub fn asked() -> Self {
        Self(Some(Arc::default()))
    }

    /// Ends at `deadline`, or earlier when [`Stop::pull`] is called.
    #[must_use]
    pub fn at(deadline: Instant) -> Self {
        Self(Some(Arc::new(Inner { deadline: Some(deadline), state: Arc::default() })))
    }

    /// The same, but no later than `deadline`: such as for one of many steps.
    #[must_use]
    pub fn no_later_than(&self, deadline: Instant) -> Self {
        let Some(own) = &self.0 else { return Self::at(deadline) };
        let deadline = own.deadline.map_or(deadline, |earlier| earlier.min(deadline));
        Self(Some(Arc::new(Inner { deadline: Some(deadline), state: Arc::clone(&own.state) })))
    }

    /// Ends what runs, and what would begin later. Nothing for [`Stop::never`].
    pub fn pull(&self) {
        if let Some(inner) = &self.0 {
            inner.pull();
        }
    }

    /// Whether it is to end, or should have ended.
    #[must_use]
    pub fn is_pulled(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.lock().asked || inner.deadline.is_some_and(|at| at <= Instant::now()))
    }

    /// Runs `f`; `brake` is called, from another thread, when it is to end
    /// meanwhile. Where that was so before, `f` doesn't begin: `None`.
    pub(crate) fn during<T>(&self, brake: impl Fn() + Send + 'static, f: impl FnOnce() -> T) -> Option<T> {
        let Some(inner) = &self.0 else { return Some(f()) };
        if self.is_pulled() {
            return None;
        }
        let id = {
            let mut state = inner.lock();
            // It may have been pulled this moment.
            if state.asked {
                return None;
            }
            let id = state.next;
            state.next += 1;
            state.brakes.insert(id, Box::new(brake));
            id
        };
        // Taken away even when `f` panics: a brake belongs to one run.
        let _hung = Hung { inner, id, alarm: inner.deadline.map(|at| alarm().set(at, inner, id)) };
        Some(f())
    }
}

/// Pulls a stop when it goes: what nobody waits for any more ends.
#[derive(Debug)]
pub struct PullOnDrop(pub Stop);

impl Drop for PullOnDrop {
    fn drop(&mut self) {
        self.0.pull();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pull(&self) {
        let mut state = self.lock();
        state.asked = true;
        // Under the lock: a brake is never pulled after its run.
        state.brakes.values().for_each(|brake| brake());
    }

    /// The time of one run is over.
    fn is_due(&self, id: u64) {
        if let Some(brake) = self.lock().brakes.get(&id) {
            brake();
        }
    }
}

struct Hung<'s> {
    inner: &'s Arc<Inner>,
    id: u64,
    alarm: Option<(Instant, u64)>,
}

impl Drop for Hung<'_> {
    fn drop(&mut self) {
        self.inner.lock().brakes.remove(&self.id);
        if let Some(key) = self.alarm {
            alarm().clear(key);
        }
    }
}

/// The thread that pulls brakes at their deadlines.
struct Alarm {
    waiting: Mutex<Waiting>,
    bell: Condvar,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    stops: BTreeMap<(Instant, u64), (Weak<Inner>, u64)>,
    /// When the thread looks next; an earlier deadline wakes it.
    looks: Option<Instant>,
}

fn alarm() -> &'static Alarm {
    static ALARM: OnceLock<Alarm> = OnceLock::new();
    static THREAD: OnceLock<()> = OnceLock::new();
    let alarm = ALARM.get_or_init(|| Alarm { waiting: Mutex::default(), bell: Condvar::new() });
    THREAD.get_or_init(|| {
        let spawned = std::thread::Builder::new().name("alarm".into()).spawn(|| alarm.run());
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread to keep deadlines; runs may outlast theirs");
        }
    });
    alarm
}

impl Alarm {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, at: Instant, inner: &Arc<Inner>, brake: u64) -> (Instant, u64) {
        let mut waiting = self.lock();
        let key = (at, waiting.next);
        waiting.next += 1;
        waiting.stops.insert(key, (Arc::downgrade(inner), brake));
        // What was cleared stays in `looks`: it wakes the thread once for
        // nothing, which is cheaper than waking it for every run.
        if waiting.looks.is_none_or(|looks| at < looks) {
            waiting.looks = Some(at);
            self.bell.notify_one();
        }
        key
    }

    fn clear(&self, key: (Instant, u64)) {
        self.lock().stops.remove(&key);
    }

    fn run(&self) {
        let mut waiting = self.lock();
        loop {
            let now = Instant::now();
            let mut due = Vec::new();
            while let Some(entry) = waiting.stops.first_entry().filter(|entry| entry.key().0 <= now) {
                due.push(entry.remove());
            }
            if !due.is_empty() {
                // Not under the lock: a brake may take a moment.
                drop(waiting);
                let due = due.iter().filter_map(|(inner, brake)| Some((inner.upgrade()?, *brake)));
                due.for_each(|(inner, brake)| inner.is_due(brake));
                waiting = self.lock();
                continue;
            }
            waiting.looks = waiting.stops.first_key_value().map(|((at, _), _)| *at);
            waiting = match waiting.looks {
                Some(at) => {
                    self.bell
                        .wait_timeout(waiting, at.saturating_duration_since(now))
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self.bell.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Waits until the brake of `stop` is pulled.
    fn braked(stop: &Stop) -> bool {
        let (send, pulled) = mpsc::channel();
        let brake = move || {
            let _ = send.send(());
        };
        stop.during(brake, || pulled.recv_timeout(Duration::from_secs(60)).is_ok()).unwrap_or(false)
    }

    #[test]
    fn a_deadline_and_a_word_pull_the_brake() {
        assert!(braked(&Stop::at(Instant::now() + Duration::from_millis(20))));
        let stop = Stop::asked();
        let handle = stop.clone();
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            handle.pull();
        });
        assert!(braked(&stop));
        other.join().unwrap();
        assert!(stop.is_pulled());
    }

    #[test]
    fn what_is_to_end_does_not_begin() {
        let stop = Stop::at(Instant::now());
        assert_eq!(stop.during(|| {}, || 1), None);
        assert_eq!(Stop::never().during(|| {}, || 1), Some(1));
    }

    #[test]
    fn an_earlier_deadline_is_met_beside_a_later_one() {
        let late = Stop::at(Instant::now() + Duration::from_secs(3_600));
        let hung = late.during(|| {}, || braked(&Stop::at(Instant::now() + Duration::from_millis(20))));
        assert_eq!(hung, Some(true));
        assert!(!late.is_pulled());
    }

    #[test]
    fn one_of_many_steps_has_its_own_deadline() {
        let whole = Stop::asked();
        let step = whole.no_later_than(Instant::now() + Duration::from_millis(20));
        assert!(braked(&step) && step.is_pulled());
        assert!(!whole.is_pulled(), "the next step may begin");
        assert!(Stop::at(Instant::now()).no_later_than(Instant::now() + Duration::from_secs(60)).is_pulled());
        let next = whole.no_later_than(Instant::now() + Duration::from_secs(3_600));
        let other = std::thread::spawn({
            let whole = whole.clone();
            move || {
                std::thread::sleep(Duration::from_millis(20));
                whole.pull();
            }
        });
        assert!(braked(&next) && next.is_pulled() && whole.is_pulled());
        other.join().unwrap();
    }

    #[test]
    fn a_brake_is_gone_after_its_run() {
        let stop = Stop::asked();
        let (send, pulled) = mpsc::channel::<()>();
        let brake = move || {
            let _ = send.send(());
        };
        stop.during(brake, || ());
        stop.pull();
        assert!(pulled.try_recv().is_err());
    }
}

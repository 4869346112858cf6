//! Memory for requests under way: one limit for the node, and for each caller
//! half of what others leave of it, so that there is something left for one
//! more, however many are in league (dynamic thresholds: Choudhury and Hahne,
//! 1998). What would go beyond is refused as busy, before it is collected or
//! decoded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tierline_proto::v1::{Code, Failure};

/// The part of what others leave that one caller may hold: another must always
/// find some.
const SHARE: u64 = 2;

/// The node's memory for requests; clones share it.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: AtomicU64,
    held: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: u64,
    /// By caller; those that hold nothing aren't kept.
    callers: HashMap<Arc<str>, u64>,
}

impl Budget {
    /// Requests may hold `max` bytes together.
    #[must_use]
    pub fn new(max: u64) -> Self {
        Self(Arc::new(Inner { max: max.into(), held: Mutex::default() }))
    }

    /// From now on they may hold `max` bytes; what is held stays.
    pub fn set_max(&self, max: u64) {
        self.0.max.store(max, Ordering::Relaxed);
    }

    /// What a request of `caller` holds: nothing yet.
    #[must_use]
    pub fn request(&self, caller: &str) -> Held {
        Held { inner: Arc::clone(&self.0), caller: caller.into(), bytes: Mutex::new(0) }
    }

    /// Bytes that requests hold, and that they may hold.
    #[must_use]
    pub fn state(&self) -> (u64, u64) {
        (self.0.lock().all, self.0.max())
    }
}

impl Inner {
    fn max(&self) -> u64 {
        self.max.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one request holds; given back when it goes.
#[derive(Debug)]
pub struct Held {
    inner: Arc<Inner>,
    caller: Arc<str>,
    bytes: Mutex<u64>,
}

impl Held {
    /// Whose request it is.
    #[must_use]
    pub fn caller(&self) -> Arc<str> {
        Arc::clone(&self.caller)
    }

    /// Takes `bytes` more.
    ///
    /// # Errors
    /// [`Code::Overloaded`] when that is more than is left, [`Code::TooLarge`]
    /// when it is more than any request may hold here.
    pub fn take(&self, bytes: u64) -> Result<(), Failure> {
        let share = self.inner.max() / SHARE;
        let mut own = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if own.saturating_add(bytes) > share {
            let text = format!("the request's tensors take more than {share} bytes, the most that one may hold here");
            return Err(Failure::new(Code::TooLarge, text).with_help("a node with more `requests_bytes` takes it"));
        }
        let mut counts = self.inner.lock();
        let caller = counts.callers.get(&self.caller).copied().unwrap_or(0);
        let others = counts.all - caller;
        let share = self.inner.max().saturating_sub(others) / SHARE;
        if caller.saturating_add(bytes) > share {
            let text = format!(
                "requests under way hold {} of {} bytes, of which {caller} are the caller's; another {bytes} don't fit now",
                counts.all,
                self.inner.max()
            );
            return Err(Failure::new(Code::Overloaded, text).with_help("send fewer at once"));
        }
        counts.all += bytes;
        if bytes > 0 {
            *counts.callers.entry(Arc::clone(&self.caller)).or_default() += bytes;
        }
        *own += bytes;
        Ok(())
    }

    /// Counts `bytes` that are there already: what a model made of the request.
    /// They are refused to others, not to it.
    pub fn count(&self, bytes: u64) {
        let mut own = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counts = self.inner.lock();
        let bytes = bytes.min(u64::MAX - counts.all);
        counts.all += bytes;
        if bytes > 0 {
            *counts.callers.entry(Arc::clone(&self.caller)).or_default() += bytes;
        }
        *own += bytes;
    }

    /// Gives `bytes` back before the request ends.
    pub fn give_back(&self, bytes: u64) {
        let mut own = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = bytes.min(*own);
        *own -= bytes;
        self.inner.release(&self.caller, bytes);
    }
}

impl Inner {
    fn release(&self, caller: &str, bytes: u64) {
        let mut counts = self.lock();
        counts.all -= bytes;
        if let Some(own) = counts.callers.get_mut(caller) {
            *own -= bytes;
            if *own == 0 {
                counts.callers.remove(caller);
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.inner.release(&self.caller, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(result: Result<(), Failure>) -> Option<Code> {
        result.err().map(|f| f.code())
    }

    #[test]
    fn nothing_goes_beyond_the_limit_and_all_of_it_comes_back() {
        let budget = Budget::new(100);
        let (a, b, c) = (budget.request("a"), budget.request("b"), budget.request("c"));
        assert_eq!(code(a.take(40)), None);
        assert_eq!(code(b.take(30)), None);
        assert_eq!(code(c.take(20)), Some(Code::Overloaded));
        assert_eq!(code(c.take(15)), None);
        assert_eq!(budget.state(), (85, 100));
        drop(a);
        c.give_back(10);
        assert_eq!(budget.state(), (35, 100));
        drop((b, c));
        assert_eq!(budget.state(), (0, 100));
        assert!(budget.0.lock().callers.is_empty());
    }

    #[test]
    fn however_many_take_what_they_can_one_more_finds_some() {
        let budget = Budget::new(1 << 20);
        let mut held = Vec::new();
        for caller in 0..8 {
            let request = budget.request(&format!("caller {caller}"));
            while (0..20).rev().any(|power| request.take(1 << power).is_ok()) {}
            held.push(request);
        }
        assert_eq!(code(budget.request("another").take(1 << 11)), None, "{:?}", budget.state());
    }

    #[test]
    fn one_caller_leaves_room_for_another() {
        let budget = Budget::new(100);
        let (first, second) = (budget.request("a"), budget.request("a"));
        assert_eq!(code(first.take(30)), None);
        assert_eq!(code(second.take(30)), Some(Code::Overloaded));
        assert_eq!(code(budget.request("b").take(35)), None);
        // What never fits is said to be too large, not to be tried again.
        assert_eq!(code(budget.request("c").take(51)), Some(Code::TooLarge));
        assert_eq!(code(second.take(u64::MAX)), Some(Code::TooLarge));
    }
}

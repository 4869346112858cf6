//! The site's applications, as this node knows them: who one is that shows a
//! token or a certificate, and whether it asks too often.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tierline_identity::{AppToken, Peer};
use tierline_node::Time;
use tierline_node::applications::{Application, Known, Stranger};
use tierline_node::rate::Bucket;

use crate::runtime::numbers;

/// What an application shows.
#[derive(Debug, Clone)]
pub enum Shown {
    /// A token.
    Token(AppToken),
    /// A certificate, which TLS found to be the site's.
    Certificate(Peer),
}

/// The list, and how often each asked lately; clones share it.
#[derive(Clone)]
pub struct Applications(Arc<Inner>);

struct Inner {
    known: RwLock<Arc<Known>>,
    buckets: Mutex<HashMap<String, Bucket>>,
    /// Requests at the doors that were refused, by why.
    refused: Mutex<BTreeMap<&'static str, u64>>,
    wall: Wall,
}

impl Default for Applications {
    fn default() -> Self {
        let (known, buckets, refused) = (RwLock::default(), Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { known, buckets, refused, wall: Wall::start() }))
    }
}

impl Applications {
    /// The list.
    #[must_use]
    pub fn known(&self) -> Arc<Known> {
        Arc::clone(&self.0.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over a list, if it is newer.
    pub fn hear(&self, list: Known) -> bool {
        let mut known = self.0.known.write().unwrap_or_else(PoisonError::into_inner);
        if !list.replaces(&known) {
            return false;
        }
        *known = Arc::new(list);
        let known = Arc::clone(&known);
        self.buckets().retain(|id, _| known.iter().any(|application| application.id() == id));
        true
    }

    /// Who shows this, now.
    ///
    /// # Errors
    /// When that is nobody, or nobody any more.
    pub fn who(&self, shown: &Shown) -> Result<Arc<Application>, Stranger> {
        let (known, now_s) = (self.known(), self.0.wall.now_s());
        match shown {
            Shown::Token(token) => known.by_token(&token.id, now_s, |digest| token.has_digest(digest)).cloned(),
            Shown::Certificate(peer) => known.by_certificate(&peer.id, unix_s(peer.not_after), now_s).cloned(),
        }
    }

    /// Counts one request of an application.
    ///
    /// # Errors
    /// How long it has to wait.
    pub fn take(&self, now: Time, application: &Application) -> Result<(), Duration> {
        match application.allowance() {
            None => Ok(()),
            Some(allowance) => {
                let mut buckets = self.buckets();
                // As many as there are applications.
                buckets.entry(application.id().to_owned()).or_default().take(now, allowance)
            }
        }
    }

    /// Somebody was refused at a door.
    pub fn count_refused(&self, why: &'static str) {
        *self.0.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(why).or_default() += 1;
    }

    /// Its numbers, in Prometheus' text format.
    pub fn numbers(&self, out: &mut String) {
        let known = self.known();
        let help = "Applications that have an identity, as this node knows them.";
        numbers::single(out, "tierline_applications", "gauge", help, known.iter().count());
        let help = "When the list of applications was signed that this node knows, Unix time; 0: there is none.";
        numbers::single(out, "tierline_applications_signed_seconds", "gauge", help, known.signed_s());
        let refused = self.0.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let help = "Requests refused at the doors for applications, by why.";
        let head = ("tierline_applications_refused_total", "counter", help);
        numbers::labelled(out, head, "why", refused.iter().map(|(why, count)| (*why, *count)));
    }

    /// Unix time, as far as it can be trusted.
    #[must_use]
    pub fn now_s(&self) -> u64 {
        self.0.wall.now_s()
    }

    fn buckets(&self) -> MutexGuard<'_, HashMap<String, Bucket>> {
        self.0.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The system's clock, except that it doesn't go back while the node runs.
struct Wall {
    begun: Instant,
    at: Duration,
}

impl Wall {
    fn start() -> Self {
        // To the fraction of a second: what has just expired must not count again when the clock is set back.
        Self { begun: Instant::now(), at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() }
    }

    fn now_s(&self) -> u64 {
        unix_s(SystemTime::now()).max((self.at + self.begun.elapsed()).as_secs())
    }
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_goes_on() {
        let now = unix_s(SystemTime::now());
        let wall = Wall { begun: Instant::now(), at: Duration::from_secs(now + 3_600) };
        assert!(wall.now_s() >= now + 3_600, "the system's clock is an hour behind by now");
        let wall = Wall { begun: Instant::now(), at: Duration::from_secs(now.saturating_sub(3_600)) };
        assert!(wall.now_s() >= now, "it was an hour behind and is right by now");
    }
}

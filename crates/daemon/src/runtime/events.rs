//! What happened on this node, for whoever subscribes: a bounded history and a
//! live feed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tierline_proto::Breach;
use tierline_proto::v1::Event;
use tokio::sync::broadcast;

/// Events kept for a subscriber that comes late.
const HISTORY_MAX: usize = 256;

/// Events a slow subscriber may fall behind before it misses some.
const FEED_MAX: usize = 256;

/// Senders whose breaches of the protocol are counted one by one.
const BREACHING_MAX: usize = 1_024;

/// The node's event log; clones share it.
#[derive(Clone)]
pub struct Events {
    history: Arc<Mutex<VecDeque<Event>>>,
    /// Messages that were passed by, by sender.
    breaches: Arc<Mutex<HashMap<String, u64>>>,
    feed: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self { history: Arc::default(), breaches: Arc::default(), feed: broadcast::channel(FEED_MAX).0 }
    }
}

impl Events {
    /// Records an event of `kind` (`link`, `lease`, `plan`, `degraded`, `model`, `node`,
    /// `job`, `application`, `fault`, `breach`).
    pub fn record(&self, kind: &str, text: impl Into<String>, json: &serde_json::Value) {
        let event = Event { time_ms: now_ms(), kind: kind.to_owned(), text: text.into(), json: json.to_string() };
        tracing::info!(kind, "{}", crate::words::shown(&event.text));
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        if history.len() == HISTORY_MAX {
            history.pop_front();
        }
        history.push_back(event.clone());
        drop(history);
        // Nobody subscribed is the usual case.
        let _ = self.feed.send(event);
    }

    /// A message broke the protocol and was passed by. Said of the first, and
    /// then ever more rarely: who means harm shall not fill the log.
    pub fn breach(&self, from: &str, breach: &Breach) {
        let mut breaches = self.breaches.lock().unwrap_or_else(PoisonError::into_inner);
        if breaches.len() >= BREACHING_MAX && !breaches.contains_key(from) {
            breaches.clear();
        }
        let count = breaches.entry(from.to_owned()).or_default();
        *count += 1;
        let count = *count;
        drop(breaches);
        if count.is_power_of_two() {
            let text = format!("{from} said something that can't be, and it is passed by ({count} so far): {breach}");
            self.record("breach", text, &serde_json::json!({ "node": from, "count": count }));
        }
    }

    /// What happened so far, oldest first, and the feed of what comes.
    pub fn subscribe(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        (history.iter().cloned().collect(), self.feed.subscribe())
    }
}

/// Milliseconds since 1970-01-01 UTC.
#[must_use]
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

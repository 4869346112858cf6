//! How models do whose requests enter here: counted for those that somebody
//! watches, while a version is on trial or on its way through the site.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use tierline_proto::Digest;
use tierline_proto::v1::{Code, Reply};
use tierline_update::rollout::Health;

use crate::runtime::ns;

/// Counts of models that are watched.
#[derive(Debug, Default)]
pub struct Watched(RwLock<HashMap<Digest, Mutex<Health>>>);

impl Watched {
    /// From now on these are watched, and no others; who was before is counted
    /// on.
    pub fn watch(&self, models: impl IntoIterator<Item = Digest>) {
        let mut watched = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *watched);
        *watched = models.into_iter().map(|model| (model, before.remove(&model).unwrap_or_default())).collect();
    }

    /// How a model did since it is watched.
    #[must_use]
    pub fn of(&self, model: Digest) -> Option<Health> {
        let watched = self.0.read().unwrap_or_else(PoisonError::into_inner);
        watched.get(&model).map(|health| health.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// A request for a model ended.
    pub(super) fn observe(&self, model: &[u8], total: Duration, reply: &Reply) {
        let watched = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if watched.is_empty() {
            return;
        }
        let model = <[u8; 32]>::try_from(model).map(Digest);
        let Some(health) = model.ok().and_then(|model| watched.get(&model)) else { return };
        let mut health = health.lock().unwrap_or_else(PoisonError::into_inner);
        match reply.failure.as_ref().map(tierline_proto::v1::Failure::code) {
            None | Some(Code::Ok) => {
                health.runs += 1;
                health.latency.note_ns(ns(total));
            }
            Some(code) if is_the_models(code) => {
                health.runs += 1;
                health.errors += 1;
            }
            // The caller's fault, or the site's.
            Some(_) => {}
        }
    }
}

/// Whether a model may be to blame for a failure.
const fn is_the_models(code: Code) -> bool {
    matches!(code, Code::Engine | Code::Internal | Code::DeadlineExceeded | Code::Infeasible | Code::Corrupt)
}

#[cfg(test)]
mod tests {
    use tierline_proto::v1::Failure;

    use super::*;

    #[test]
    fn only_what_is_watched_counts_and_only_the_models_faults() {
        let (one, two) = (Digest([1; 32]), Digest([2; 32]));
        let watched = Watched::default();
        let took = Duration::from_millis(3);
        watched.observe(&one.0, took, &Reply::default());
        watched.watch([one]);
        let failed = |code| Reply { failure: Some(Failure::new(code, "it failed")), ..Reply::default() };
        for reply in [Reply::default(), failed(Code::InvalidInput), failed(Code::Engine), failed(Code::Unreachable)] {
            watched.observe(&one.0, took, &reply);
            watched.observe(&two.0, took, &reply);
        }
        watched.observe(&[1], took, &Reply::default());
        let health = watched.of(one).unwrap();
        assert_eq!((health.runs, health.errors, health.latency.count()), (2, 1, 1));
        assert_eq!(watched.of(two), None);
        watched.watch([one, two]);
        assert_eq!((watched.of(one).unwrap().runs, watched.of(two).unwrap().runs), (2, 0));
    }
}

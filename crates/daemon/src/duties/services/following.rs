//! Thresholds of this node's cascades that follow traffic
//! (`tierline_plan::service::follow`). They begin at what the service says when
//! the node begins, or the service is another one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tierline_plan::service::follow::{Follower, Seen};
use tierline_proto::Digest;

use crate::duties::catalogue::Composed;
use crate::runtime::numbers;

/// By the service's name: its document, and its members that may go on.
type Followed = BTreeMap<String, (Digest, Vec<Follower>)>;

/// All of them.
#[derive(Default)]
pub struct Following(Mutex<Followed>);

impl Following {
    fn lock(&self) -> MutexGuard<'_, Followed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The threshold of a member now; none where it doesn't follow anything.
    pub fn threshold(&self, of: &Composed, member: usize) -> Option<f64> {
        let followed = self.lock();
        let (document, followers) = followed.get(&of.name)?;
        followers.get(member).filter(|_| *document == of.document).map(Follower::threshold)
    }

    /// A request was asked beyond a member.
    pub fn observe(&self, of: &Composed, member: usize, seen: Seen) {
        let Some(agreement) = of.service.agreement else { return };
        let mut followed = self.lock();
        let new = || {
            let thresholds = of.service.members.iter().filter_map(|member| member.threshold);
            (of.document, thresholds.map(|threshold| Follower::new(agreement, threshold)).collect())
        };
        // As many as there were services.
        let (document, followers) = followed.entry(of.name.clone()).or_insert_with(new);
        if *document != of.document {
            (*document, *followers) = new();
        }
        let Some(follower) = followers.get_mut(member) else { return };
        let before = follower.threshold();
        if follower.observe(seen) {
            let (now, member) = (follower.threshold(), of.service.members[member].name());
            tracing::info!(service = of.name, member, before, now, "a threshold follows what traffic shows");
        }
    }

    /// Thresholds in force, as Prometheus reads them.
    pub fn text(&self, out: &mut String) {
        let followed = self.lock();
        let thresholds: Vec<(String, f64)> = followed
            .iter()
            .flat_map(|(name, (_, followers))| {
                followers.iter().enumerate().map(move |(at, f)| (format!("{name}/{}", at + 1), f.threshold()))
            })
            .collect();
        let help = "Thresholds of cascades that follow traffic, by service and place of the member.";
        let thresholds = thresholds.iter().map(|(member, threshold)| (member.as_str(), *threshold));
        numbers::labelled(out, ("tierline_service_threshold", "gauge", help), "member", thresholds);
    }
}

//! Several parents that could take a request alike: which one does.
//!
//! A plan names one; where others stand on paths of the same roles and offer
//! the model too, each takes its share by how busy it is
//! (`tierline_node::choose`).

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tierline_node::Peer;
use tierline_node::choose::{Candidate, Choice};
use tierline_proto::Digest;
use tierline_proto::v1::UpstreamPath;

use super::Inference;
use crate::device::program::Program;
use crate::duties::planning::Placed;
use crate::net::Uplink;

/// A request's choice, given back when it goes.
pub struct Chosen {
    duty: Arc<Inference>,
    choice: Choice<Peer>,
}

impl Drop for Chosen {
    fn drop(&mut self) {
        self.duty.chooser.lock().unwrap_or_else(PoisonError::into_inner).ended(self.choice);
    }
}

impl Inference {
    /// Lets another parent than the planned one take a request, where it is
    /// likely to answer as soon. None where there is no other.
    pub(super) fn choose(self: &Arc<Self>, program: &Program, placed: &mut Placed) -> Option<Chosen> {
        let planned = placed.peer?;
        let model = program.manifest.digest.parse::<Digest>().ok()?;
        let path = self.cx.parents.get(planned).ok()?.path()?;
        let candidates: Vec<Candidate<Peer>> = self
            .cx
            .parents
            .iter()
            .filter(|uplink| uplink.is_up() && !uplink.is_broken())
            .filter(|uplink| {
                uplink.peer == planned || uplink.path().is_some_and(|other| is_alike(&path, &other, model))
            })
            .filter_map(|uplink| self.candidate(uplink, program, placed))
            .collect();
        if candidates.len() < 2 || candidates.iter().all(|candidate| candidate.neighbour != planned) {
            return None;
        }
        let mut chooser = self.chooser.lock().unwrap_or_else(PoisonError::into_inner);
        let choice = chooser.choose(self.cx.clock.now(), &mut fastrand::Rng::new(), &candidates)?;
        drop(chooser);
        if choice.neighbour != planned {
            self.numbers.elsewhere();
        }
        placed.peer = Some(choice.neighbour);
        Some(Chosen { duty: Arc::clone(self), choice })
    }

    fn candidate(&self, uplink: &Arc<Uplink>, program: &Program, placed: &Placed) -> Option<Candidate<Peer>> {
        let predicted = self.planning.predicted_upstream(uplink.peer, program, &placed.boundaries);
        let (wait, heard) = uplink.waits()?;
        // What it adds to the wait of others is no more than what it takes.
        let service = self.planning.service_upstream(uplink.peer, program, &placed.boundaries);
        (predicted > Duration::ZERO).then_some(Candidate { neighbour: uplink.peer, predicted, wait, heard, service })
    }
}

/// Whether two paths take a request alike: tiers of the same roles, and the
/// model at the first.
fn is_alike(one: &UpstreamPath, other: &UpstreamPath, model: Digest) -> bool {
    let roles = |path: &UpstreamPath| path.tiers.iter().map(|tier| (tier.role, tier.reachable)).collect::<Vec<_>>();
    let offered = |path: &UpstreamPath| {
        let offers = path.tiers.first().map(|tier| &tier.models[..]).unwrap_or_default();
        offers.iter().any(|offer| Digest::try_from(&offer.model) == Ok(model))
    };
    !other.tiers.is_empty() && roles(one) == roles(other) && offered(other)
}

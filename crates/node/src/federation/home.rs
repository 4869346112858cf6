//! Which of a node's parents a participant answers to.
//!
//! Parents of one site know the same jobs. The first that asks for work keeps
//! the participant for as long as it is up; one that is away for long is left
//! for another that knows the job.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::{Peer, Time};

/// A parent that is away for so long is left for another.
pub const STRAYED: Duration = Duration::from_secs(10);

/// What a change means for the participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It has a parent that can be reached, from now on or again.
    Up,
    /// Its parent can't be reached any more.
    Down,
}

/// The choice.
///
/// Invariant: a parent that is up is never left.
#[derive(Debug, Clone, Default)]
pub struct Home {
    parent: Option<Peer>,
    up: BTreeSet<Peer>,
    /// Others that know the job, the first that said so first.
    others: Vec<Peer>,
    strayed_at: Option<Time>,
}

impl Home {
    /// The parent that it answers to.
    #[must_use]
    pub fn parent(&self) -> Option<Peer> {
        self.parent
    }

    /// A parent's session opened.
    pub fn up(&mut self, peer: Peer) -> Option<Change> {
        self.up.insert(peer);
        let own = *self.parent.get_or_insert(peer) == peer;
        if own {
            self.strayed_at = None;
        }
        own.then_some(Change::Up)
    }

    /// A parent's session ended.
    pub fn down(&mut self, now: Time, peer: Peer) -> Option<Change> {
        self.up.remove(&peer);
        let own = self.parent == Some(peer);
        if own {
            self.strayed_at = Some(now + STRAYED);
        }
        own.then_some(Change::Down)
    }

    /// A parent wants something: whether the participant hears it, and what
    /// else that changes.
    pub fn asked(&mut self, peer: Peer) -> (bool, Option<Change>) {
        // Whoever speaks is there.
        let was_up = !self.up.insert(peer);
        let adopts = match self.parent {
            None => true,
            Some(parent) if parent == peer => !was_up,
            Some(parent) => !self.up.contains(&parent),
        };
        if adopts {
            (self.parent, self.strayed_at) = (Some(peer), None);
        }
        let own = self.parent == Some(peer);
        if !own && !self.others.contains(&peer) {
            self.others.push(peer);
        }
        (own, adopts.then_some(Change::Up))
    }

    /// When the parent will have been away for long.
    #[must_use]
    pub fn wake(&self) -> Option<Time> {
        self.strayed_at
    }

    /// The time that [`Home::wake`] named.
    pub fn wakes(&mut self, now: Time) -> Option<Change> {
        self.strayed_at.take_if(|at| *at <= now)?;
        let other = self.others.iter().copied().find(|peer| self.up.contains(peer));
        // One that comes later asks for itself.
        let other = other?;
        self.others.retain(|peer| *peer != other);
        self.others.extend(self.parent.replace(other));
        Some(Change::Up)
    }
}

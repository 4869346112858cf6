//! Where along a model its exits are judged, what their heads cost, and the
//! slices that run them.
//!
//! An exit is judged at a cut: behind the segment that ends there, whose slice
//! gives the exit's outputs beside the frontier. Start at [`places`], then
//! [`slice`].

use std::collections::{BTreeSet, HashSet};

use crate::cost;
use crate::cuts::{self, Cut};
use crate::error::LoadError;
use crate::exits::Exits;
use crate::index::Index;
use crate::infer::{InferError, Types};
use crate::model::Model;
use crate::slice::{self, SliceError};

/// Why exits can't be judged at these cuts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// What the exit reads is gone by then.
    #[error(
        "exit {exit} is computed behind cut {cut} but reads `{tensor}` from before it, and cut {cut} carries only {}; leave \
         this cut out, or give the exit a head that reads one tensor",
        carried.iter().map(|t| format!("`{t}`")).collect::<Vec<_>>().join(", ")
    )]
    Gone {
        /// Which exit, from 1.
        exit: usize,
        /// Which cut, from 0.
        cut: usize,
        /// What it reads.
        tensor: String,
        /// The cut's frontier.
        carried: Vec<String>,
    },
    /// Exits in another order than their tensors.
    #[error(
        "exit {exit} is computed before exit {}; list exits in the order in which they are computed",
        exit - 1
    )]
    Order {
        /// Which exit, from 1.
        exit: usize,
    },
    /// The model without its exits is none.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Shapes that contradict each other.
    #[error(transparent)]
    Infer(#[from] InferError),
}

/// The cut at which each exit is judged: an exit of place `k` once everything
/// before cut `k` ran, which is the end of segment `k`. The place of an exit
/// that needs more than lies before the last cut is the number of cuts: it
/// spares nothing.
///
/// `cuts` are frontiers of the model without its exits ([`Exits::trunk`]), in
/// topological order.
///
/// # Errors
/// When an exit reads something that a cut before its place doesn't carry, or
/// exits aren't in the order in which they are computed.
pub fn places(model: &Model, exits: &Exits, cuts: &[Vec<String>]) -> Result<Vec<usize>, PlaceError> {
    let view = View::new(model, exits);
    let before: Vec<HashSet<usize>> = cuts.iter().map(|cut| view.behind(cut)).collect();
    let mut found: Vec<usize> = Vec::with_capacity(exits.exits.len());
    for exit in 0..exits.exits.len() {
        let place = before.iter().position(|nodes| view.ready(exit, nodes)).unwrap_or(cuts.len());
        // The segment that ends there begins no later than the cut before.
        if let Some(cut) = place.checked_sub(1)
            && let Some(tensor) = view.gone(exit, &cuts[cut], &before[cut])
        {
            return Err(PlaceError::Gone { exit: exit + 1, cut, tensor, carried: cuts[cut].clone() });
        }
        if found.last().is_some_and(|last| *last > place) {
            return Err(PlaceError::Order { exit: exit + 1 });
        }
        found.push(place);
    }
    Ok(found)
}

/// Multiply-adds of each exit's head: of what is computed for the exit alone.
/// What two exits share is the first one's. `None` where shapes don't tell.
#[must_use]
pub fn head_macs(model: &Model, types: &Types, exits: &Exits) -> Vec<Option<u64>> {
    let view = View::new(model, exits);
    let costs = cost::cost(model, types);
    let mut counted = view.trunk.clone();
    let mut macs = |needed: &HashSet<usize>| {
        let own: Vec<usize> = needed.iter().copied().filter(|node| counted.insert(*node)).collect();
        own.into_iter().try_fold(0u64, |sum, node| sum.checked_add(costs[node].macs?))
    };
    view.needed.iter().map(&mut macs).collect()
}

/// Multiply-adds of the model without its exits; `None` where shapes don't tell.
#[must_use]
pub fn trunk_macs(model: &Model, types: &Types, exits: &Exits) -> Option<u64> {
    let costs = cost::cost(model, types);
    View::new(model, exits).trunk.into_iter().try_fold(0u64, |sum, node| sum.checked_add(costs[node].macs?))
}

/// Multiply-adds of the model, without its exits, that lie before what each
/// exit reads: what has been spent on the model itself when it answers.
#[must_use]
pub fn macs_before(model: &Model, types: &Types, exits: &Exits) -> Vec<Option<u64>> {
    let view = View::new(model, exits);
    let costs = cost::cost(model, types);
    let spent = |needed: &HashSet<usize>| {
        let mut of_trunk = needed.intersection(&view.trunk);
        of_trunk.try_fold(0u64, |sum, &node| sum.checked_add(costs[node].macs?))
    };
    view.needed.iter().map(spent).collect()
}

/// Cuts of a model with exits that are worth profiling, at most `max`: as
/// [`cuts::candidates`] of the model without its exits, and with them the
/// first cut at which each exit can be judged. Cuts that would keep an exit
/// from what it reads are left out.
///
/// # Errors
/// When exits aren't in the order in which they are computed.
pub fn candidates(model: &Model, types: &Types, exits: &Exits, max: usize) -> Result<Vec<Cut>, PlaceError> {
    let trunk = exits.trunk(model)?;
    let mut all = cuts::cuts(&trunk, types);
    loop {
        let tensors: Vec<Vec<String>> = all.iter().map(|cut| cut.tensors.clone()).collect();
        match places(model, exits, &tensors) {
            Ok(places) => {
                let keep: BTreeSet<usize> = places.into_iter().filter(|&place| place < all.len()).collect();
                return Ok(cuts::candidates_with(&trunk, types, &all, max, &keep));
            }
            Err(PlaceError::Gone { cut, .. }) => drop(all.remove(cut)),
            Err(other) => return Err(other),
        }
    }
}

/// A run of segments of a model with exits: of `n` cuts there are `n + 1`
/// segments, and segment `i` ends at cut `i`.
#[derive(Debug, Clone, Copy)]
pub struct Part<'p> {
    /// Frontiers of the model without its exits.
    pub cuts: &'p [Vec<String>],
    /// First segment.
    pub from: usize,
    /// One past the last segment.
    pub to: usize,
    /// Exits that it gives, from 0: those with places from `from` up to
    /// `to - 1` can be had.
    pub exits: &'p [usize],
}

/// The model of some segments. It takes the frontier before them, or the
/// model's inputs; it gives the frontier behind them, or the outputs of the
/// model's end, and then those of the exits, in their order. A tensor that is
/// both is given once.
///
/// # Errors
/// When cuts don't fit the model, or an exit can't be had there.
pub fn slice(model: &Model, types: &Types, exits: &Exits, part: Part<'_>) -> Result<Model, SliceError> {
    let names = part.exits.iter().filter_map(|&exit| exits.exits.get(exit)).flat_map(|exit| exit.names());
    let ends = exits.ends(model);
    let mut wanted: Vec<&str> = match part.to.checked_sub(1).and_then(|cut| part.cuts.get(cut)) {
        Some(frontier) => frontier.iter().map(String::as_str).collect(),
        None => ends.iter().map(String::as_str).collect(),
    };
    for name in names {
        if !wanted.contains(&name) {
            wanted.push(name);
        }
    }
    let given = part.from.checked_sub(1).map(|cut| part.cuts.get(cut).map_or(&[][..], Vec::as_slice));
    slice::between(model, types, given, &wanted)
}

/// The model that gives these tensors, whatever else it gives left out.
///
/// # Errors
/// When there is no such tensor.
pub fn giving(model: &Model, types: &Types, tensors: &[&str]) -> Result<Model, SliceError> {
    slice::between(model, types, None, tensors)
}

/// Which nodes are whose.
struct View<'m> {
    index: Index<'m>,
    /// Nodes that the model's end needs.
    trunk: HashSet<usize>,
    /// Of each exit, its outputs.
    outputs: Vec<Vec<&'m str>>,
    /// Of each exit, all nodes that it needs.
    needed: Vec<HashSet<usize>>,
}

impl<'m> View<'m> {
    fn new(model: &'m Model, exits: &Exits) -> Self {
        let index = Index::new(model);
        let none = HashSet::new();
        let all: Vec<&str> = index.graph.output.iter().map(|o| o.name()).collect();
        let ends = exits.ends(model);
        let ends: Vec<&str> = all.iter().copied().filter(|name| ends.iter().any(|end| end == name)).collect();
        let trunk = index.needed_for(&ends, &none);
        let of = |exit: &super::Exit| -> Vec<&'m str> {
            exit.names().filter_map(|name| all.iter().copied().find(|output| *output == name)).collect()
        };
        let outputs: Vec<Vec<&str>> = exits.exits.iter().map(of).collect();
        let needed = outputs.iter().map(|names| index.needed_for(names, &none)).collect();
        Self { index, trunk, outputs, needed }
    }

    /// Nodes that a frontier depends on.
    fn behind(&self, frontier: &[String]) -> HashSet<usize> {
        let names: Vec<&str> = frontier.iter().map(String::as_str).collect();
        self.index.needed_for(&names, &HashSet::new())
    }

    /// Whether all that an exit needs of the trunk is computed when these nodes are.
    fn ready(&self, exit: usize, nodes: &HashSet<usize>) -> bool {
        let of_trunk = |node: &&usize| self.trunk.contains(node) && !self.is_constant(**node);
        self.needed[exit].iter().filter(of_trunk).all(|node| nodes.contains(node))
    }

    /// Constants are computed in every slice that needs them.
    fn is_constant(&self, node: usize) -> bool {
        self.index.graph.node[node].output.iter().all(|name| !self.index.is_dynamic(name))
    }

    /// What an exit reads that was computed before a frontier which doesn't carry it.
    fn gone(&self, exit: usize, frontier: &[String], before: &HashSet<usize>) -> Option<String> {
        let given: HashSet<&str> = frontier.iter().map(String::as_str).collect();
        let behind = self.index.needed_for(&self.outputs[exit], &given);
        let is_before = |name: &str| self.index.producer.get(name).is_none_or(|node| before.contains(node));
        let reads = behind.iter().filter(|node| !before.contains(node)).flat_map(|&node| self.index.reads[node].iter());
        let gone = reads
            .chain(&self.outputs[exit])
            .filter(|name| !given.contains(**name) && self.index.is_dynamic(name) && is_before(name));
        gone.min().map(|name| (*name).to_owned())
    }
}

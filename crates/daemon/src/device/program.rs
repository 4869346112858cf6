//! What runs on a device: a model in segments, and the slices that sessions are
//! loaded from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tierline_graph::exits::{self, Rule};
use tierline_graph::infer::Types;
use tierline_graph::slice::SliceError;
use tierline_graph::{Model, Tensor, ValueInfo};

use crate::models::Manifest;

/// Tensors by name.
pub type Named = Vec<(String, Tensor)>;

/// A run of consecutive segments of a model: `from..to` counted in segments
/// between the manifest's candidate cuts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SliceKey {
    /// Digest of the prepared model.
    pub digest: String,
    /// First segment.
    pub from: usize,
    /// One past the last segment.
    pub to: usize,
}

/// What a request needs to know of a model: its segments, and what enters them.
#[derive(Debug)]
pub struct Program {
    /// The model's manifest.
    pub manifest: Manifest,
    /// Types of the tensors at its cuts, by name.
    at_cuts: BTreeMap<String, ValueInfo>,
}

impl Program {
    /// The program of a model.
    #[must_use]
    pub fn new(manifest: Manifest, source: &Source) -> Self {
        let at_cuts = manifest.cuts.iter().flatten();
        let at_cuts = at_cuts.filter_map(|name| Some((name.clone(), source.types.get(name)?.clone()))).collect();
        Self { manifest, at_cuts }
    }

    /// Number of segments.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.manifest.cuts.len() + 1
    }

    /// Exits judged once `to` segments have run.
    pub fn exits_at(&self, to: usize) -> impl Iterator<Item = usize> + '_ {
        let cuts = self.manifest.exits.iter().flat_map(|exits| &exits.cuts).enumerate();
        cuts.filter(move |(_, cut)| *cut + 1 == to && to < self.segments()).map(|(exit, _)| exit)
    }

    /// The exits that answer by their own rules.
    #[must_use]
    pub fn ruled_exits(&self) -> Vec<ActiveExit> {
        let Some(exits) = &self.manifest.exits else { return Vec::new() };
        let rules = exits.stated.exits.iter().map(|exit| exit.rule).zip(&exits.cuts).enumerate();
        let active = |(index, (rule, cut)): (usize, (Option<Rule>, &usize))| {
            Some(ActiveExit { index, segment: cut + 1, rule: rule? })
        };
        rules.filter_map(active).filter(|exit| exit.segment < self.segments()).collect()
    }

    /// Where segments `first..last` are interrupted to judge exits: the
    /// ends of the steps between, `last` among them.
    #[must_use]
    pub fn steps(&self, first: usize, last: usize, exits: &[ActiveExit]) -> Vec<(usize, usize)> {
        let ends: BTreeSet<usize> =
            exits.iter().map(|exit| exit.segment).filter(|at| first < *at && *at < last).collect();
        let ends: Vec<usize> = ends.into_iter().chain([last]).collect();
        std::iter::once(first).chain(ends.iter().copied()).zip(ends.iter().copied()).filter(|(a, b)| a < b).collect()
    }

    /// Names of the tensors that enter segment `index`: the model's inputs
    /// for the first, else the frontier before it.
    #[must_use]
    pub fn entering(&self, index: usize) -> Vec<String> {
        match index {
            0 => self.manifest.inputs.iter().map(|i| i.name.clone()).collect(),
            i => self.manifest.cuts[i - 1].clone(),
        }
    }

    /// What the tensors that enter segment `index` must be like.
    #[must_use]
    pub fn taken(&self, index: usize) -> Vec<ValueInfo> {
        let known = |name: String| match self.at_cuts.get(&name) {
            Some(value) => value.clone(),
            None => ValueInfo { name, dtype: None, shape: None },
        };
        match index {
            0 => self.manifest.inputs.clone(),
            i => self.entering(i).into_iter().map(known).collect(),
        }
    }
}

/// A model that sessions are loaded from.
#[derive(Debug)]
pub struct Source {
    /// The prepared model.
    pub model: Model,
    /// Types for what slices declare: the model's free axes are theirs, so
    /// that they take every size that the whole takes.
    pub types: Types,
}

/// An exit that may answer a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActiveExit {
    /// Its place among the model's exits, from 0.
    pub index: usize,
    /// Segments that have run when it is judged.
    pub segment: usize,
    /// When it answers.
    pub rule: Rule,
}

impl Source {
    /// The model of segments `from..to` of `program`: it gives the frontier
    /// behind them, and the answers of exits that are judged there.
    ///
    /// # Errors
    /// When the cuts don't fit the model.
    pub fn slice(&self, program: &Program, from: usize, to: usize) -> Result<Model, SliceError> {
        let cuts = &program.manifest.cuts;
        if let Some(exits) = &program.manifest.exits {
            let judged: Vec<usize> = program.exits_at(to).collect();
            let part = exits::Part { cuts, from, to, exits: &judged };
            return exits::slice(&self.model, &self.types, &exits.stated, part);
        }
        let mut at = Vec::new();
        if from > 0 {
            at.push(cuts[from - 1].clone());
        }
        if to < program.segments() {
            at.push(cuts[to - 1].clone());
        }
        if at.is_empty() {
            return Ok(self.model.clone());
        }
        let mut parts = tierline_graph::slice::slice(&self.model, &self.types, &at)?;
        Ok(parts.swap_remove(usize::from(from > 0)))
    }
}

/// What a session is loaded from, and how it is cut out.
#[derive(Debug, Clone)]
pub struct Part {
    /// The model's segments.
    pub program: Arc<Program>,
    /// The model, where the session may have to be loaded.
    pub source: Option<Arc<Source>>,
}

//! From a model file to what nodes run: the *prepared* model.
//!
//! Preparing folds constants once, so that every node sees the same graph,
//! the same digest and the same candidate cuts, whatever its engine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tierline_codec::frame::RANK_MAX;
use tierline_engine::{
    Apart, Discovered, Engine, EngineError, Evaluator, LoadOptions, Search, Session, StateSlot, Stateful, Stop,
};
use tierline_graph::bottleneck::Bottleneck;
use tierline_graph::cuts::{Cut, candidates, cuts};
use tierline_graph::exits::{self, Exits};
use tierline_graph::fold::{Purpose, fold, fold_for};
use tierline_graph::infer::{Types, infer_types, infer_types_with};
use tierline_graph::profile::ModelProfile;
use tierline_graph::{DataType, Dim, Model, Tensor, ValueInfo};
use tierline_plan::request::Exit;
use tierline_proto::limits::RUN_BYTES_MAX;

use crate::error::{ErrorKind, NodeError, NodeResult, OfKind};
use crate::golden::Golden;

/// Candidate cuts a manifest keeps: more would cost every node profiling time
/// and sessions, and past a few dozen the best plan no longer improves.
pub const CANDIDATE_CUTS_MAX: usize = 24;

/// What nodes know of a model by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The name it is asked for by.
    pub name: String,
    /// Which version of its name, 1 and up.
    #[serde(default = "first", skip_serializing_if = "is_first")]
    pub version: u64,
    /// Digest of the prepared model.
    pub digest: String,
    /// Bytes of the prepared model.
    pub bytes: u64,
    /// Digest of the file as it was given.
    pub source_digest: String,
    /// Inputs a caller gives.
    pub inputs: Vec<ValueInfo>,
    /// Outputs it answers with.
    pub outputs: Vec<ValueInfo>,
    /// Input shapes it is profiled at.
    pub input_shapes: BTreeMap<String, Vec<u64>>,
    /// Candidate cuts in topological order: each frontier's tensors.
    pub cuts: Vec<Vec<String>>,
    /// Sample inputs by name: digests of NumPy files in the store.
    pub sample: BTreeMap<String, String>,
    /// Nodes of the prepared model.
    pub nodes: u64,
    /// Elements of its weights.
    pub parameters: u64,
    /// Multiply-adds at `input_shapes`, where known; those of exits' heads aside.
    pub macs: Option<u64>,
    /// Early exits, where it has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exits: Option<PlacedExits>,
    /// Inputs with what is expected of them, where somebody gave some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden: Option<Golden>,
    /// What it is a variant for, where it sends a learned code at its only cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bottleneck: Option<Bottleneck>,
}

/// The version of a name that never had another.
const fn first() -> u64 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_first(version: &u64) -> bool {
    *version == first()
}

/// Early exits of a model, and where they are judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlacedExits {
    /// What the model's file says.
    pub stated: Exits,
    /// The output of the model's end that they are judged by.
    pub judged: String,
    /// Per exit the candidate cut at which it is judged; one more than there
    /// are for an exit that comes too late to spare anything.
    pub cuts: Vec<usize>,
}

/// A model folded for training: Dropout stays, and shared weights stay one.
///
/// # Errors
/// When folding breaks it.
pub fn for_training(mut model: Model, engine: &Arc<dyn Engine>) -> NodeResult<Model> {
    fold_for(&mut model, &mut Evaluator(Arc::clone(engine)), Purpose::Training).of_kind(ErrorKind::Other)?;
    Ok(model)
}

/// A model that is checked, folded and named by its digest.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The folded model.
    pub model: Model,
    /// BLAKE3 of its bytes, hexadecimal.
    pub digest: String,
    /// How many bytes.
    bytes: u64,
}

impl Prepared {
    /// Folds a loaded model.
    ///
    /// # Errors
    /// When folding breaks it.
    pub fn fold(mut model: Model, engine: &Arc<dyn Engine>) -> NodeResult<Self> {
        fold(&mut model, &mut Evaluator(Arc::clone(engine))).of_kind(ErrorKind::Other)?;
        let (digest, bytes) = named(&model);
        Ok(Self { model, digest, bytes })
    }

    /// Its bytes, as nodes store it and send it to each other.
    ///
    /// # Errors
    /// When it exceeds one file.
    pub fn to_bytes(&self) -> Result<Bytes, tierline_graph::LoadError> {
        Ok(Bytes::from(self.model.to_bytes()?))
    }

    /// A prepared model read back from a store.
    ///
    /// # Errors
    /// When the bytes are no valid model.
    pub fn from_store(bytes: Bytes) -> Result<Self, tierline_graph::LoadError> {
        let (digest, length) = (digest(&bytes), bytes.len() as u64);
        Ok(Self { model: Model::parse(bytes)?, digest, bytes: length })
    }

    /// Types of every value, with the free axes of the inputs fixed by `shapes`.
    ///
    /// # Errors
    /// When shapes contradict the model.
    pub fn types(&self, shapes: &BTreeMap<String, Vec<u64>>) -> NodeResult<Types> {
        let inputs = self.model.inputs();
        if let Some(name) = shapes.keys().find(|n| inputs.iter().all(|i| &i.name != *n)) {
            let known: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
            return Err(NodeError::message(
                ErrorKind::Input,
                format!("the model has no input `{name}`; its inputs are {}", known.join(", ")),
            ));
        }
        let types = if shapes.is_empty() { infer_types(&self.model) } else { infer_types_with(&self.model, shapes) };
        types.of_kind(ErrorKind::Other)
    }

    /// The manifest under which nodes share this model, with at most
    /// `cuts_max` candidate cuts; 0 takes [`CANDIDATE_CUTS_MAX`].
    ///
    /// # Errors
    /// When shapes contradict the model.
    pub fn manifest(
        &self,
        name: &str,
        source_digest: String,
        shapes: BTreeMap<String, Vec<u64>>,
        cuts_max: usize,
    ) -> NodeResult<Manifest> {
        let cuts_max = if cuts_max == 0 { CANDIDATE_CUTS_MAX } else { cuts_max.min(CANDIDATE_CUTS_MAX) };
        let types = self.types(&shapes)?;
        let stated = Exits::of(&self.model).of_kind(ErrorKind::Input)?;
        let bottleneck = Bottleneck::of(&self.model).of_kind(ErrorKind::Input)?;
        let chosen = |chosen: Vec<Cut>| chosen.into_iter().map(|c| c.tensors).collect();
        let cuts: Vec<Vec<String>> = match (&bottleneck, &stated) {
            // Anywhere else it is the model that it stands for, and worse.
            (Some(bottleneck), _) => vec![vec![bottleneck.tensor.clone()]],
            (None, Some(stated)) => {
                chosen(exits::candidates(&self.model, &types, stated, cuts_max).of_kind(ErrorKind::Input)?)
            }
            (None, None) => chosen(candidates(&self.model, &types, &cuts(&self.model, &types), cuts_max)),
        };
        let (mut outputs, mut macs) =
            (self.model.outputs(), tierline_graph::cost::total_macs(&tierline_graph::cost::cost(&self.model, &types)));
        let placed = match stated {
            Some(stated) => {
                let ends = stated.ends(&self.model);
                outputs.retain(|output| ends.contains(&output.name));
                macs = exits::trunk_macs(&self.model, &types, &stated);
                let judged = stated.judged(&self.model).of_kind(ErrorKind::Input)?;
                let cuts = exits::places(&self.model, &stated, &cuts).of_kind(ErrorKind::Input)?;
                Some(PlacedExits { stated, judged, cuts })
            }
            None => None,
        };
        Ok(Manifest {
            name: name.to_owned(),
            version: first(),
            digest: self.digest.clone(),
            bytes: self.bytes,
            source_digest,
            inputs: self.model.inputs(),
            outputs,
            input_shapes: shapes,
            cuts,
            sample: BTreeMap::new(),
            nodes: self.model.graph().node.len() as u64,
            parameters: tierline_graph::cost::parameters(&self.model),
            macs,
            exits: placed,
            golden: None,
            bottleneck,
        })
    }
}

/// A shape in words.
#[must_use]
pub fn shape_text(shape: Option<&Vec<Dim>>) -> String {
    shape.map_or("any shape".into(), |s| format!("[{}]", s.iter().map(Dim::to_string).collect::<Vec<_>>().join(", ")))
}

/// Input shapes given, or the fixed ones the model declares.
///
/// # Errors
/// When one has free axes and isn't given.
pub fn profile_shapes(
    prepared: &Prepared,
    given: BTreeMap<String, Vec<u64>>,
) -> NodeResult<BTreeMap<String, Vec<u64>>> {
    let mut shapes = given;
    for input in prepared.model.inputs() {
        if shapes.contains_key(&input.name) {
            continue;
        }
        let dims = input.shape.as_ref().and_then(|s| s.iter().map(Dim::known).collect::<Option<Vec<u64>>>());
        match dims {
            Some(dims) => {
                shapes.insert(input.name, dims);
            }
            None => {
                return Err(NodeError::message(
                    ErrorKind::Input,
                    format!(
                        "input `{0}` has free axes {1}; say what size to plan for: --shape {0}={2}",
                        input.name,
                        shape_text(input.shape.as_ref()),
                        input.shape.as_ref().map_or("1,3,224,224".to_owned(), |axes| {
                            let size = |axis: &Dim| axis.known().unwrap_or(1).to_string();
                            axes.iter().map(size).collect::<Vec<_>>().join(",")
                        })
                    ),
                ));
            }
        }
    }
    Ok(shapes)
}

/// Tensors of one cut that a manifest may name.
const CUT_TENSORS_MAX: usize = 1_024;

impl Manifest {
    /// Refuses what no manifest has: it may come from another node.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        tierline_proto::name::check_model(&self.name).map_err(|e| e.to_string())?;
        self.digest.parse::<tierline_proto::Digest>().map_err(|e| e.to_string())?;
        if self.bytes > tierline_proto::limits::ARTEFACT_BYTES_MAX {
            return Err(format!("a model of {} bytes", self.bytes));
        }
        if self.cuts.len() > CANDIDATE_CUTS_MAX {
            return Err(format!("{} candidate cuts; at most {CANDIDATE_CUTS_MAX} are planned with", self.cuts.len()));
        }
        if let Some(crowd) = self.cuts.iter().map(Vec::len).find(|len| *len > CUT_TENSORS_MAX) {
            return Err(format!("{crowd} tensors at a cut; at most {CUT_TENSORS_MAX} are taken"));
        }
        if let Some(exits) = &self.exits {
            exits.check(self.cuts.len())?;
        }
        if let Some(golden) = &self.golden {
            golden.check(&self.inputs, &self.outputs)?;
        }
        if let Some(bottleneck) = &self.bottleneck {
            bottleneck.check().map_err(|e| e.to_string())?;
        }
        // What can't be sent to it, it can't be measured at either.
        let mut bytes = 0u64;
        for input in &self.inputs {
            let Some(shape) = self.input_shapes.get(&input.name) else { continue };
            if shape.len() > RANK_MAX {
                return Err(format!("input `{}` has {} axes; at most {RANK_MAX} are taken", input.name, shape.len()));
            }
            let size = input.dtype.and_then(DataType::size).unwrap_or(1) as u64;
            bytes = bytes.saturating_add(shape.iter().fold(size, |n, d| n.saturating_mul(*d)));
            if bytes > RUN_BYTES_MAX {
                return Err(format!(
                    "input `{}` of shape {shape:?} makes a request of more than {RUN_BYTES_MAX} bytes, which no node \
                     takes; plan for a smaller one",
                    input.name
                ));
            }
        }
        Ok(())
    }

    /// The candidate cuts with their sizes at the profiled shapes.
    #[must_use]
    pub fn candidate_cuts(&self, types: &Types) -> Vec<Cut> {
        self.cuts
            .iter()
            .enumerate()
            .map(|(position, tensors)| Cut {
                tensors: tensors.clone(),
                bytes: tensors.iter().try_fold(0u64, |sum, t| Some(sum + types.get(t)?.bytes()?)),
                position,
            })
            .collect()
    }
}

/// Exits that plans may leave out: each doubles the plans. Later ones stay.
const WAYS_OF: usize = 3;

/// Bytes of a tensor's name in what another node says of exits.
const NAME_BYTES_MAX: usize = tierline_proto::limits::NAME_BYTES_MAX;

impl PlacedExits {
    /// What the calibration says of the thresholds in force, if it does.
    #[must_use]
    pub fn point(&self) -> Option<&exits::Point> {
        let rules: Vec<Option<f64>> = self.stated.exits.iter().map(|exit| exit.rule.map(|r| r.threshold)).collect();
        self.stated.calibration.iter().flat_map(|c| &c.points).find(|point| point.thresholds == rules)
    }

    /// Per exit the share of the examples that reach it which go on, as it was
    /// calibrated: `None` where the file doesn't say for these thresholds.
    #[must_use]
    pub fn calibrated(&self) -> Vec<Option<f64>> {
        let Some(point) = self.point() else { return vec![None; self.stated.exits.len()] };
        let mut reach = 1.0;
        let go_on = |leave: &f64| {
            let go_on = if reach > 0.0 { (1.0 - leave / reach).clamp(0.0, 1.0) } else { 1.0 };
            reach -= leave;
            Some(go_on)
        };
        point.leave.iter().map(go_on).collect()
    }

    /// The exits that answer by their own rules, for a plan: `go_on` is the
    /// share that goes on at each exit, `profiles` are those of the tiers.
    #[must_use]
    pub fn planned(&self, go_on: &[f64], profiles: &[&ModelProfile]) -> Vec<Exit> {
        let segments = profiles.first().map_or(0, |profile| profile.segments.len());
        let ruled = self.stated.exits.iter().zip(&self.cuts).zip(go_on).enumerate();
        let ruled = ruled.filter(|(_, ((exit, cut), _))| exit.rule.is_some() && **cut + 1 < segments);
        let head = |index: usize| profiles.iter().map(move |p| p.head_ns.get(index).copied().flatten().unwrap_or(0));
        ruled
            .map(|(index, ((_, cut), go_on))| Exit {
                number: index + 1,
                segment: *cut,
                go_on: *go_on,
                head_ns: head(index).collect(),
            })
            .collect()
    }

    /// Ways to use the exits of a plan: all of them, and without those that
    /// may not be worth their heads. Who would have left at an exit that is
    /// left out is taken to leave at the next one: answers get no worse.
    #[must_use]
    pub fn ways(exits: Vec<Exit>) -> Vec<Vec<Exit>> {
        let count = exits.len().min(WAYS_OF);
        let mut ways: Vec<Vec<Exit>> = Vec::with_capacity(1 << count);
        for left_out in 0..1usize << count {
            let mut way = Vec::with_capacity(exits.len());
            // Shares of all requests that are still there.
            let (mut before, mut reach) = (1.0, 1.0);
            for (at, exit) in exits.iter().enumerate() {
                reach *= exit.go_on;
                if at >= count || left_out & (1 << at) == 0 {
                    let go_on = if before > 0.0 { reach / before } else { 1.0 };
                    way.push(Exit { go_on, ..exit.clone() });
                    before = reach;
                }
            }
            ways.push(way);
        }
        ways
    }

    /// Refuses what no manifest has.
    fn check(&self, cuts: usize) -> Result<(), String> {
        let exits = &self.stated.exits;
        if exits.len() > exits::EXITS_MAX || self.cuts.len() != exits.len() {
            return Err(format!("{} exits, {} places of such", exits.len(), self.cuts.len()));
        }
        if self.cuts.iter().any(|cut| *cut > cuts) || self.cuts.windows(2).any(|pair| pair[0] > pair[1]) {
            return Err(format!("exits at cuts {:?} of {cuts}", self.cuts));
        }
        let names = exits.iter().flat_map(|exit| exit.outputs.keys().map(String::as_str).chain(exit.names()));
        if let Some(long) = names.chain([self.judged.as_str()]).map(str::len).find(|len| *len > NAME_BYTES_MAX) {
            return Err(format!("a tensor's name of {long} bytes"));
        }
        if exits.iter().filter_map(|exit| exit.rule).any(|rule| !rule.threshold.is_finite()) {
            return Err("a threshold that is no number".to_owned());
        }
        if self.stated.calibration.as_ref().is_some_and(|c| c.points.len() > exits::POINTS_MAX) {
            return Err("a calibration with too many points".to_owned());
        }
        Ok(())
    }
}

/// Shapes that a file declares wrongly, shown one by one; of the rest their number.
const CONTRADICTIONS_SHOWN_MAX: usize = 5;

/// Reads and checks a model file; `warn` hears what it declares wrongly.
///
/// # Errors
/// When it is no valid model.
pub fn load(path: &Path, warn: &mut dyn FnMut(String)) -> NodeResult<Model> {
    let loaded = Model::load(path).map_err(|e| anyhow::Error::new(e).context(format!("{}", path.display())));
    let model = loaded.of_kind(ErrorKind::Other)?;
    // A model whose operators contradict each other is refused where it is used.
    let types = infer_types(&model).unwrap_or_default();
    let wrong = types.contradictions();
    for contradiction in wrong.iter().take(CONTRADICTIONS_SHOWN_MAX) {
        warn(format!("warning: {}: {contradiction}", path.display()));
    }
    if let Some(more) = wrong.len().checked_sub(CONTRADICTIONS_SHOWN_MAX).filter(|more| *more > 0) {
        warn(format!("warning: {}: {more} more shapes are declared wrongly", path.display()));
    }
    Ok(model)
}

/// BLAKE3 of a model's bytes, hexadecimal, and how many there are, without
/// holding them.
fn named(model: &Model) -> (String, u64) {
    let mut hasher = blake3::Hasher::new();
    let written = model.write(&mut hasher);
    let bytes = written.unwrap_or_else(|e| unreachable!("a hasher takes any bytes: {e}"));
    (hasher.finalize().to_hex().to_string(), bytes)
}

/// BLAKE3 of a model's bytes, hexadecimal.
#[must_use]
pub fn digest_of(model: &Model) -> String {
    named(model).0
}

/// BLAKE3 in hexadecimal: the name of every artefact.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Which engines are found from a data folder, `choice` being `auto` or a name.
///
/// # Errors
/// When `choice` names no engine.
pub fn discover(choice: &str, data: &Path) -> NodeResult<Discovered> {
    let choice = choice.parse().map_err(|e: String| NodeError::message(ErrorKind::Configuration, e))?;
    Ok(tierline_engine::discover(&Search { choice, folders: vec![data.join("lib")], ..Search::default() }))
}

/// The engine found, unless another one was asked for by name.
///
/// # Errors
/// [`ErrorKind::Configuration`] with what was tried.
pub fn usable(found: Discovered, choice: &str) -> NodeResult<Arc<dyn Engine>> {
    if found.fallback {
        let text = format!("engine `{choice}` is not available here");
        return Err(NodeError::message(ErrorKind::Configuration, text).hint("tierline doctor"));
    }
    Ok(found.engine)
}

/// The best engine of this device, found when the first model is loaded: a
/// node without models needs none, and ONNX Runtime's library alone takes 20 MB.
pub struct OnDemand {
    data: PathBuf,
    apart: Apart,
    found: OnceLock<Arc<dyn Engine>>,
}

impl OnDemand {
    /// Looks in this data folder too, later; models that could take this
    /// process down run as `apart` says.
    #[must_use]
    pub fn new(data: &Path, apart: Apart) -> Self {
        Self { data: data.to_owned(), apart, found: OnceLock::new() }
    }

    fn engine(&self) -> &Arc<dyn Engine> {
        self.found.get_or_init(|| {
            let search = Search { folders: vec![self.data.join("lib")], ..Search::default() };
            tierline_engine::apart(tierline_engine::discover(&search).engine, self.apart.clone())
        })
    }
}

impl Engine for OnDemand {
    fn name(&self) -> &'static str {
        self.found.get().map_or("auto", |engine| engine.name())
    }

    fn version(&self) -> String {
        self.found.get().map_or_else(|| "not loaded yet".to_owned(), |engine| engine.version())
    }

    fn kernels(&self) -> &'static [&'static str] {
        self.engine().kernels()
    }

    fn library(&self) -> Option<PathBuf> {
        self.engine().library()
    }

    fn is_stoppable(&self) -> bool {
        self.engine().is_stoppable()
    }

    fn load_until(&self, model: &Model, options: &LoadOptions, stop: &Stop) -> Result<Box<dyn Session>, EngineError> {
        self.engine().load_until(model, options, stop)
    }

    fn load_stateful(
        &self,
        model: &Model,
        options: &LoadOptions,
        slots: &[StateSlot],
        state: Vec<Tensor>,
    ) -> Result<Box<dyn Stateful>, EngineError> {
        self.engine().load_stateful(model, options, slots, state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_that_is_left_out_leaves_its_requests_to_the_next() {
        let exit = |number, go_on| Exit { number, segment: number, go_on, head_ns: vec![1] };
        let ways = PlacedExits::ways(vec![exit(1, 0.5), exit(2, 0.5)]);
        let shares: Vec<Vec<(usize, f64)>> =
            ways.iter().map(|way| way.iter().map(|exit| (exit.number, exit.go_on)).collect()).collect();
        assert_eq!(shares, [vec![(1, 0.5), (2, 0.5)], vec![(2, 0.25)], vec![(1, 0.5)], vec![]]);
        assert_eq!(PlacedExits::ways(Vec::new()), [vec![]]);
        // Nobody gets past the first.
        let ways = PlacedExits::ways(vec![exit(1, 0.0), exit(2, 0.5)]);
        assert_eq!(ways[0].iter().map(|exit| exit.go_on).collect::<Vec<_>>(), [0.0, 1.0]);
        assert_eq!(PlacedExits::ways((1..=6).map(|n| exit(n, 0.5)).collect()).len(), 8);
    }
}

//! Constant folding: whatever depends on constants only is computed once.
//!
//! Exported graphs compute shapes and even weights from constants; until they
//! are folded such values cross every frontier, and a model has hardly any
//! cut (one export went from 1 usable cut to 48).

use std::collections::{BTreeMap, HashMap, HashSet};

use protobuf::Message;

use crate::blocked::unblocked;
use crate::constant::{tensor_from_proto, tensor_to_proto};
use crate::cost::cost;
use crate::error::LoadError;
use crate::exporter::{Copies, Stated, noted, untied};
use crate::index::{Index, captured, is_function_of_inputs};
use crate::infer::{Types, infer_types};
use crate::inline::inlined;
use crate::lift::lifted;
use crate::model::Model;
use crate::onnx::{GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, ValueInfoProto};
use crate::plain::{Casts, Sequences};
use crate::rewrite::{Pass, Patch, RewriteError, run};
use crate::slice::value_info_proto;
use crate::tensor::{DataType, Elements, Tensor};
use crate::types::ValueInfo;
use crate::weights::{is_trainable_type, learned, turns};

/// Bytes of one folded result at most: a weight of the largest layers passes,
/// an Expand to a whole activation doesn't.
pub const FOLDED_BYTES_MAX: u64 = 1 << 30;

/// Bytes that folding may make, results and what they are made from together:
/// these in any case (masks, positions, shapes), and so many times the bytes
/// of the constants given, which exporters transpose, cast and reshape.
const MADE_BYTES_MAX: u64 = 256 << 20;
const MADE_TIMES_MAX: u64 = 8;

/// Multiply-adds that folding may spend: some seconds.
const MADE_MACS_MAX: u64 = 20_000_000_000;

/// Bytes of an element whose type isn't known, and of a short string.
const ELEMENT_BYTES_MAX: u64 = 16;

/// Computes graphs that take no inputs.
pub trait Evaluate {
    /// The outputs of `model`, in order.
    ///
    /// # Errors
    /// When the model can't be computed here.
    fn evaluate(&mut self, model: &Model) -> Result<Vec<Tensor>, String>;
}

/// What folding did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FoldReport {
    /// Nodes before.
    pub nodes_before: usize,
    /// Nodes after.
    pub nodes_after: usize,
    /// Values computed.
    pub folded: usize,
    /// Values that no engine here could compute; their nodes stay.
    pub left: usize,
}

/// Why folding failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FoldError {
    /// The folded graph isn't valid.
    #[error("the model with its constants folded is not valid: {0}")]
    Invalid(#[from] LoadError),
    /// A rewrite failed.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    /// What ONNX Runtime saved for another kind of machine.
    #[error(
        "node `{node}` is saved in the layout of one kind of machine, which can't be undone here: {reason}; take the \
         original file, or save it optimised at ORT_ENABLE_EXTENDED at most"
    )]
    Blocked {
        /// The node, by what it makes.
        node: String,
        /// Why.
        reason: String,
    },
}

/// What a model is folded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be run: weights are constants, Dropout does nothing.
    Inference,
    /// To be trained: Dropout stays, what is computed of weights stays behind
    /// them, copies of a weight as well, and weights within bodies become the
    /// graph's own.
    Training,
}

/// Folds constants in place, and drops what nothing uses.
///
/// # Errors
/// When the result isn't a valid model; the model is then unchanged.
pub fn fold(model: &mut Model, evaluator: &mut dyn Evaluate) -> Result<FoldReport, FoldError> {
    fold_for(model, evaluator, Purpose::Inference)
}

/// [`fold`] for a purpose.
///
/// # Errors
/// As [`fold`].
pub fn fold_for(model: &mut Model, evaluator: &mut dyn Evaluate, purpose: Purpose) -> Result<FoldReport, FoldError> {
    let nodes_before = model.graph().node.len();
    let flat = inlined(model)?;
    let whole = flat.as_ref().unwrap_or(model);
    let plain = unblocked(whole, evaluator)?;
    let mut apart = corrected(plain.as_ref().unwrap_or(whole))?;
    if purpose == Purpose::Training {
        apart = untied(apart)?;
    }
    let (mut folded, said) = noted(apart)?;
    if purpose == Purpose::Training {
        folded = lifted(&folded)?;
        run(&mut folded, &mut Copies)?;
    }
    // Constants that are cast to be like what isn't constant are stated, too.
    run(&mut folded, &mut Casts)?;
    let mut stated = Stated::of(&folded, said);
    run(&mut folded, &mut Literals)?;
    run(&mut folded, &mut Sequences)?;
    run(&mut folded, &mut Identities { purpose })?;
    let allowed = Allowed::new(&folded);
    let weights = Weights { purpose, stated: stated.no_weights(&folded) };
    let mut computed = Computed { evaluator, weights, allowed, report: FoldReport::default() };
    // Sizes that follow from values are known once those are computed.
    while run(&mut folded, &mut computed)? {}
    let report = computed.report;
    run(&mut folded, &mut Unused)?;
    run(&mut folded, &mut stated)?;
    *model = folded;
    Ok(FoldReport { nodes_before, nodes_after: model.graph().node.len(), ..report })
}

/// The model without declarations that its nodes contradict: engines, slices
/// and steps would each make of them what they like.
fn corrected(model: &Model) -> Result<Model, LoadError> {
    let types = infer_types(model).unwrap_or_default();
    let wrong: HashSet<&str> = types.contradictions().iter().map(|c| c.tensor.as_str()).collect();
    if wrong.is_empty() {
        return Ok(model.clone());
    }
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    graph.value_info.retain(|v| !wrong.contains(v.name()));
    for output in graph.output.iter_mut().filter(|o| wrong.contains(o.name())) {
        if let Some(info) = types.get(output.name()) {
            *output = ValueInfoProto { doc_string: output.doc_string.take(), ..value_info_proto(info) };
        }
    }
    Model::from_proto(proto)
}

fn outputs(model: &Model) -> HashSet<&str> {
    model.graph().output.iter().map(|o| o.name()).collect()
}

/// Constant nodes become initialisers.
struct Literals;

impl Pass for Literals {
    fn name(&self) -> &'static str {
        "literals"
    }

    fn patch(&mut self, model: &Model) -> Result<Patch, String> {
        let outputs = outputs(model);
        let mut patch = Patch::default();
        for (position, node) in model.graph().node.iter().enumerate() {
            let Some(name) = node.output.first().filter(|n| !n.is_empty() && !outputs.contains(n.as_str())) else {
                continue;
            };
            if node.op_type() == "Constant"
                && node.domain().is_empty()
                && let Some(constant) = literal(node, name)
            {
                patch.remove_nodes.insert(position);
                patch.add_constants.push(constant);
            }
        }
        Ok(patch)
    }
}

/// What a Constant node holds, as an initialiser of this name.
fn literal(node: &NodeProto, name: &str) -> Option<TensorProto> {
    let a = node.attribute.first()?;
    let text = |b: &bytes::Bytes| String::from_utf8_lossy(b).into_owned();
    let (shape, elements) = match a.name() {
        "value" => {
            let value = a.t.as_ref()?;
            // Raw bytes are shared by every clone and slice of the model;
            // numbers in typed fields would be copied each time. Types that
            // Tierline only passes on stay as they are.
            let typed = DataType::from_onnx(value.data_type()).is_some() && value.raw_data.is_none();
            return if typed {
                tensor_from_proto(value).ok().map(|tensor| tensor_to_proto(name, &tensor))
            } else {
                Some(TensorProto { name: Some(name.to_owned()), ..value.clone() })
            };
        }
        "value_float" => (vec![], Elements::F32(vec![a.f()])),
        "value_int" => (vec![], Elements::I64(vec![a.i()])),
        "value_floats" => (vec![a.floats.len()], Elements::F32(a.floats.clone())),
        "value_ints" => (vec![a.ints.len()], Elements::I64(a.ints.clone())),
        "value_string" => (vec![], Elements::String(vec![String::from_utf8_lossy(a.s()).into_owned()])),
        "value_strings" => (vec![a.strings.len()], Elements::String(a.strings.iter().map(text).collect())),
        _ => return None,
    };
    Tensor::new(shape, elements).ok().map(|tensor| tensor_to_proto(name, &tensor))
}

/// Identity, and Dropout at inference, pass their input on.
struct Identities {
    purpose: Purpose,
}

impl Pass for Identities {
    fn name(&self) -> &'static str {
        "identities"
    }

    fn patch(&mut self, model: &Model) -> Result<Patch, String> {
        let outputs = outputs(model);
        let nodes = &model.graph().node;
        // A body might give the name of the source another meaning.
        let bodies = nodes.iter().flat_map(|n| &n.attribute).flat_map(|a| a.g.iter().chain(&a.graphs));
        let captured: HashSet<&str> = bodies.flat_map(captured).collect();
        let mut patch = Patch::default();
        for (position, node) in nodes.iter().enumerate() {
            let (Some(from), Some(to)) = (node.input.first(), node.output.first()) else { continue };
            let seen = outputs.contains(to.as_str()) || captured.contains(to.as_str());
            if passes_on(node, self.purpose) && !seen && !from.is_empty() && !to.is_empty() {
                patch.remove_nodes.insert(position);
                patch.rewire.insert(to.clone(), from.clone());
            }
        }
        Ok(patch)
    }
}

fn passes_on(node: &NodeProto, purpose: Purpose) -> bool {
    let training = node.input.get(2).is_some_and(|t| !t.is_empty());
    let mask = node.output.get(1).is_some_and(|m| !m.is_empty());
    let dropout = node.op_type() == "Dropout" && !training && !mask && purpose == Purpose::Inference;
    node.domain().is_empty() && (node.op_type() == "Identity" || dropout)
}

/// What folding may still make.
struct Allowed {
    bytes: u64,
    macs: u64,
}

impl Allowed {
    fn new(model: &Model) -> Self {
        let given: u64 = model.graph().initializer.iter().map(TensorProto::compute_size).sum();
        Self { bytes: given.saturating_mul(MADE_TIMES_MAX).saturating_add(MADE_BYTES_MAX), macs: MADE_MACS_MAX }
    }

    /// Whether a node may be computed: what it makes must be known before, and
    /// fit in what is left.
    fn take(&mut self, node: &NodeProto, types: &Types, macs: Option<u64>) -> bool {
        let each = node.output.iter().filter(|o| !o.is_empty()).map(|output| bytes_at_most(node, output, types));
        let made = each.map(|b| b.filter(|b| *b <= FOLDED_BYTES_MAX)).try_fold(0u64, |sum, b| sum.checked_add(b?));
        let left = made.and_then(|made| self.bytes.checked_sub(made)).zip(self.macs.checked_sub(macs.unwrap_or(0)));
        if let Some((bytes, macs)) = left {
            *self = Self { bytes, macs };
        }
        left.is_some()
    }
}

/// Bytes of an output before it is computed; `None` when there is no telling.
fn bytes_at_most(node: &NodeProto, output: &str, types: &Types) -> Option<u64> {
    let wide = |info: &ValueInfo| info.dtype.and_then(DataType::size).map_or(ELEMENT_BYTES_MAX, |size| size as u64);
    let info = types.get(output)?;
    if let Some(elements) = info.elements() {
        return elements.checked_mul(wide(info));
    }
    // Of these the input says how many there can be.
    let from = types.get(node.input.first()?)?;
    let each = match node.op_type() {
        "NonZero" => from.shape.as_ref()?.len() as u64,
        "Compress" | "Unique" => 1,
        _ => return None,
    };
    from.elements()?.checked_mul(each)?.checked_mul(ELEMENT_BYTES_MAX)
}

/// Nodes that depend on constants alone give way to what they compute.
struct Computed<'e> {
    evaluator: &'e mut dyn Evaluate,
    weights: Weights,
    allowed: Allowed,
    report: FoldReport,
}

impl Pass for Computed<'_> {
    fn name(&self) -> &'static str {
        "constants"
    }

    fn patch(&mut self, model: &Model) -> Result<Patch, String> {
        self.report.left = 0;
        let index = Index::new(model);
        if wanted(model, &index, &self.weights.foldable(&index, &mut |_| true)).is_empty() {
            return Ok(Patch::default());
        }
        let types = infer_types(model).unwrap_or_default();
        let costs = cost(model, &types);
        let folding = self.weights.foldable(&index, &mut |position| {
            let macs = costs.get(position).and_then(|c| c.macs);
            self.allowed.take(&index.graph.node[position], &types, macs)
        });
        let wanted = wanted(model, &index, &folding);
        let mut computed = self.compute(model, &index, &types, &wanted);
        computed.retain(|_, tensor| tensor.byte_len() <= FOLDED_BYTES_MAX);
        // From the outputs to the inputs: a node goes unless something that
        // stays reads a value of it that wasn't computed.
        let mut patch = Patch::default();
        let mut needed = outputs(model);
        for &position in index.order.iter().rev() {
            let made = || index.graph.node[position].output.iter().map(String::as_str).filter(|o| !o.is_empty());
            if folding[position] && made().all(|name| !needed.contains(name) || computed.contains_key(name)) {
                patch.remove_nodes.insert(position);
                continue;
            }
            // The node makes these itself, whatever is known of them.
            made().for_each(|name| drop(computed.remove(name)));
            needed.extend(&index.reads[position]);
        }
        if computed.is_empty() {
            return Ok(Patch::default());
        }
        self.report.folded += computed.len();
        let noted = |name: &str| notes_of_moved(&index, name);
        let proto = |(name, tensor): (&&str, &Tensor)| TensorProto {
            metadata_props: noted(name),
            ..tensor_to_proto(name, tensor)
        };
        patch.add_constants = computed.iter().map(proto).collect();
        Ok(patch)
    }
}

impl Computed<'_> {
    /// The values of these names, save those that no engine here computes.
    fn compute<'m>(
        &mut self,
        model: &Model,
        index: &Index<'m>,
        types: &Types,
        wanted: &[&'m str],
    ) -> BTreeMap<&'m str, Tensor> {
        if wanted.is_empty() {
            return BTreeMap::new();
        }
        if let Some(tensors) = evaluate(model, index, types, wanted, self.evaluator) {
            return wanted.iter().copied().zip(tensors).collect();
        }
        // Something in there isn't for this engine: try one by one.
        let mut computed = BTreeMap::new();
        for &name in wanted {
            match evaluate(model, index, types, &[name], self.evaluator).and_then(|mut t| t.pop()) {
                Some(tensor) => drop(computed.insert(name, tensor)),
                None => self.report.left += 1,
            }
        }
        computed
    }
}

/// What a model is trained of, which folding leaves as it is.
struct Weights {
    purpose: Purpose,
    /// Constants that are no weights.
    stated: HashSet<String>,
}

impl Weights {
    /// Nodes that may be computed once and for all, as far as `allowed` goes: it
    /// is asked for each of them, in topological order.
    ///
    /// For training, nodes that compute a weight of others stay: these are
    /// trained. So do copies of a weight, and what several nodes make of one:
    /// they would part ways.
    fn foldable(&self, index: &Index<'_>, allowed: &mut dyn FnMut(usize) -> bool) -> Vec<bool> {
        let mut weights = self.trained(index);
        // Sizes are the same whatever a weight becomes.
        let measures = |node: &NodeProto| matches!(node.op_type(), "Shape" | "Size");
        let mut readers: HashMap<&str, usize> = HashMap::new();
        let reading = index.reads.iter().zip(&index.graph.node).filter(|(_, node)| !measures(node));
        reading.flat_map(|(reads, _)| reads).for_each(|name| *readers.entry(name).or_default() += 1);
        let mut folding = vec![false; index.graph.node.len()];
        let mut staying: HashSet<&str> = HashSet::new();
        for &position in &index.order {
            let node = &index.graph.node[position];
            let reads = &index.reads[position];
            // Weights of quantised graphs stay behind their Dequantize: folded to
            // floats, nothing would run in integers any more.
            let quantised = matches!(node.op_type(), "DequantizeLinear" | "QuantizeLinear");
            let fixed = |name: &&str| !index.is_dynamic(name) && !staying.contains(*name);
            let of_weights = !measures(node) && reads.iter().any(|name| weights.contains(name));
            let turned = turns(node) && reads.first().is_some_and(|name| readers[name] == 1);
            let may = !quantised && is_function_of_inputs(node) && reads.iter().all(fixed) && (!of_weights || turned);
            folding[position] = may && allowed(position);
            let outputs = node.output.iter().map(String::as_str).filter(|o| !o.is_empty());
            if !folding[position] {
                staying.extend(outputs.clone());
            }
            if of_weights {
                weights.extend(outputs.filter(|o| !index.is_dynamic(o)));
            }
        }
        folding
    }

    /// Constants that are trained, as they are.
    fn trained<'m>(&self, index: &Index<'m>) -> HashSet<&'m str> {
        if self.purpose == Purpose::Inference {
            return HashSet::new();
        }
        let learned = learned(index, &self.stated);
        let own = |t: &&TensorProto| learned.contains(t.name()) && !self.stated.contains(t.name());
        index.graph.initializer.iter().filter(|t| is_trainable_type(t)).filter(own).map(|t| t.name()).collect()
    }
}

/// What the file notes of the constant whose elements are only moved to make
/// this one.
fn notes_of_moved(index: &Index<'_>, name: &str) -> Vec<StringStringEntryProto> {
    let mut name = name;
    while let Some(node) = index.producer.get(name).map(|&p| &index.graph.node[p]).filter(|n| turns(n)) {
        name = &node.input[0];
    }
    let own = index.graph.initializer.iter().find(|t| t.name() == name);
    own.map(|t| t.metadata_props.clone()).unwrap_or_default()
}

/// Values of folding nodes that others read.
fn wanted<'m>(model: &Model, index: &Index<'m>, folding: &[bool]) -> Vec<&'m str> {
    let outputs = outputs(model);
    let mut seen: HashSet<&str> = HashSet::new();
    let read = index.reads.iter().enumerate().filter(|(position, _)| !folding[*position]).flat_map(|(_, reads)| reads);
    let made = read.copied().filter(|name| index.producer.get(name).is_some_and(|&p| folding[p]));
    made.filter(|name| !outputs.contains(name) && seen.insert(name)).collect()
}

/// Computes constant values with a closed sub-model.
fn evaluate(
    model: &Model,
    index: &Index<'_>,
    types: &Types,
    wanted: &[&str],
    evaluator: &mut dyn Evaluate,
) -> Option<Vec<Tensor>> {
    let nodes = index.needed_for(wanted, &HashSet::new());
    let used: HashSet<&str> = nodes.iter().flat_map(|&n| index.reads[n].iter().copied()).collect();
    let graph = GraphProto {
        name: Some("constants".to_owned()),
        node: index.order.iter().filter(|n| nodes.contains(n)).map(|&n| index.graph.node[n].clone()).collect(),
        initializer: index.graph.initializer.iter().filter(|t| used.contains(t.name())).cloned().collect(),
        output: wanted.iter().map(|n| declare(n, types.get(n))).collect(),
        ..GraphProto::default()
    };
    let proto = ModelProto { graph: Some(graph).into(), ..model.proto().clone() };
    let tensors = evaluator.evaluate(&Model::from_proto(proto).ok()?).ok()?;
    (tensors.len() == wanted.len()).then_some(tensors)
}

fn declare(name: &str, info: Option<&ValueInfo>) -> ValueInfoProto {
    match info {
        Some(info) if info.dtype.is_some() => value_info_proto(info),
        _ => ValueInfoProto { name: Some(name.to_owned()), ..ValueInfoProto::default() },
    }
}

/// Drops the nodes and constants that no output needs.
///
/// # Errors
/// When the rest isn't a valid model; the model is then unchanged.
pub(crate) fn drop_unused(model: &mut Model) -> Result<bool, RewriteError> {
    run(model, &mut Unused)
}

/// Nodes and initialisers that no output needs.
struct Unused;

impl Pass for Unused {
    fn name(&self) -> &'static str {
        "unused"
    }

    fn patch(&mut self, model: &Model) -> Result<Patch, String> {
        let index = Index::new(model);
        let outputs: Vec<&str> = index.graph.output.iter().map(|o| o.name()).collect();
        let needed = index.needed_for(&outputs, &HashSet::new());
        let mut read: HashSet<&str> = needed.iter().flat_map(|&n| index.reads[n].iter().copied()).collect();
        // What callers may give stays, used or not: inputs are an interface.
        read.extend(outputs.into_iter().chain(index.graph.input.iter().map(|i| i.name())));
        let constants = index.graph.initializer.iter().map(|t| t.name());
        Ok(Patch {
            remove_nodes: (0..index.graph.node.len()).filter(|n| !needed.contains(n)).collect(),
            remove_constants: constants.filter(|name| !read.contains(name)).map(str::to_owned).collect(),
            ..Patch::default()
        })
    }
}

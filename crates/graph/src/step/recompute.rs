//! Recomputation: the backward pass computes parts of the forward pass again
//! instead of keeping all of its activations (Chen et al., "Training Deep Nets
//! with Sublinear Memory Cost", 2016).
//!
//! The forward pass is divided at some of its cuts. What crosses them is kept;
//! what gradients read between two of them is computed once more from there,
//! just before the backward pass enters that part. The last part is not:
//! it has just been computed. Cuts are chosen so that what is kept and the
//! largest part together are smallest.
//!
//! Runtimes order nodes by what they depend on and merge those that compute the
//! same. So each part is computed again from inputs that depend on a gradient
//! that only exists once the parts behind it are done: a Reshape to their own
//! shape, to which zero is added that was made of that gradient.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::cuts::{Cut, cuts};
use crate::emit::{Attribute, Emitter};
use crate::gradient::Forward;
use crate::index::is_function_of_inputs;
use crate::memory::bytes;
use crate::model::Model;
use crate::onnx::NodeProto;
use crate::tensor::DataType;
use crate::types::ValueInfo;

/// Stands for sizes that are unknown, such as the batch's: only proportions count.
const FREE: u64 = 16;

/// Smaller tensors are kept: statistics of channels, lengths, scalars.
const BYTES_MIN: u64 = 4096;

/// Cuts looked at, at most; evenly chosen of more.
const CUTS_MAX: usize = 256;

/// Bounds on the largest part that are tried.
const BOUNDS: usize = 64;

/// Makes the nodes that were written behind a forward pass read activations
/// that are computed again; what is known of the tensors in which parts begin.
pub(super) fn recompute(
    model: &Model,
    forward: &Forward<'_>,
    gradients: &BTreeMap<String, String>,
    out: &mut Emitter,
) -> Vec<ValueInfo> {
    let backward = out.take();
    let pass = Pass::new(forward, &backward);
    let chosen = pass.choose(pass.candidates(cuts(model, &forward.types), gradients));
    let kept: HashSet<&str> = chosen.iter().flat_map(|c| c.cut.tensors.iter().map(String::as_str)).collect();
    let mut renamed = HashMap::new();
    let (mut begin, mut late) = (0, Vec::new());
    for place in &chosen {
        let end = place.cut.position;
        pass.again(begin..end, &kept, &gradients[&place.anchor], &mut renamed, &mut late, out);
        begin = end;
    }
    for mut node in backward {
        for input in &mut node.input {
            if let Some(again) = renamed.get(input.as_str()) {
                input.clone_from(again);
            }
        }
        out.push(node);
    }
    late
}

/// A forward pass and what gradients read of it.
struct Pass<'f> {
    forward: &'f Forward<'f>,
    /// Where in the order each value is made; the model's inputs are not in it.
    made: HashMap<&'f str, usize>,
    /// First place in the order at which each value is read.
    first_read: HashMap<&'f str, usize>,
    /// Bytes that the backward pass reads of what each place makes.
    bytes: Vec<u64>,
    /// Activations that may be computed again, by place.
    saved: Vec<Vec<&'f str>>,
}

/// A cut, and the tensor whose gradient says that all behind it is done.
struct Place {
    cut: Cut,
    anchor: String,
}

impl<'f> Pass<'f> {
    fn new(forward: &'f Forward<'f>, backward: &[NodeProto]) -> Self {
        let index = &forward.index;
        let (mut made, mut first_read) = (HashMap::new(), HashMap::new());
        for (place, &node) in index.order.iter().enumerate() {
            made.extend(index.graph.node[node].output.iter().map(|o| (o.as_str(), place)));
            for &name in &index.reads[node] {
                first_read.entry(name).or_insert(place);
            }
        }
        let read: HashSet<&str> = backward.iter().flat_map(|n| n.input.iter().map(String::as_str)).collect();
        // Names within bodies aren't renamed.
        let captured: HashSet<&str> =
            backward.iter().flat_map(|n| crate::index::reads(n).into_iter().skip(n.input.len())).collect();
        let mut bytes = vec![0; index.order.len()];
        let mut saved = vec![Vec::new(); index.order.len()];
        for (&name, &place) in &made {
            let node = &index.graph.node[index.order[place]];
            let again = index.is_dynamic(name) && is_function_of_inputs(node) && !captured.contains(name);
            let size = forward.types.get(name).map_or(0, size);
            if read.contains(name) && again && size >= BYTES_MIN {
                bytes[place] += size;
                saved[place].push(name);
            }
        }
        Self { forward, made, first_read, bytes, saved }
    }

    /// Cuts behind which a gradient exists that nothing before them takes part in.
    fn candidates(&self, cuts: Vec<Cut>, gradients: &BTreeMap<String, String>) -> Vec<Place> {
        let anchor = |cut: &Cut| {
            let behind = |t: &&String| self.first_read.get(t.as_str()).is_some_and(|&p| p >= cut.position);
            let found = cut.tensors.iter().filter(|t| gradients.contains_key(*t)).filter(behind);
            found.max_by_key(|t| self.made.get(t.as_str())).cloned()
        };
        let all: Vec<Place> = cuts.into_iter().filter_map(|cut| Some(Place { anchor: anchor(&cut)?, cut })).collect();
        let every = all.len().div_ceil(CUTS_MAX).max(1);
        all.into_iter().step_by(every).collect()
    }

    /// Bytes of a cut's tensors that are made from `begin` on.
    fn crossing(&self, cut: &Cut, begin: usize) -> u64 {
        let here = cut.tensors.iter().filter(|t| self.made.get(t.as_str()).is_some_and(|&p| p >= begin));
        here.filter_map(|t| self.forward.types.get(t)).map(size).sum()
    }

    /// The cuts at which what is kept and the largest part need the fewest
    /// bytes together; none where keeping everything does.
    fn choose(&self, places: Vec<Place>) -> Vec<Place> {
        let sums: Vec<u64> = std::iter::once(0)
            .chain(self.bytes.iter().scan(0, |sum, b| {
                *sum += b;
                Some(*sum)
            }))
            .collect();
        let end = self.bytes.len();
        let all = sums[end];
        // Parts begin at 0 or at a place, and end at a place or at the end.
        let starts: Vec<usize> = std::iter::once(0).chain(places.iter().map(|p| p.cut.position)).collect();
        let mut best = (all, Vec::new());
        for share in 1..=BOUNDS as u64 {
            let bound = all / BOUNDS as u64 * share;
            // Fewest bytes kept up to each start, and the start before it.
            let mut kept: Vec<Option<(u64, usize)>> = vec![None; starts.len()];
            kept[0] = Some((0, 0));
            for (to, place) in places.iter().enumerate() {
                for from in (0..=to).rev() {
                    if sums[starts[to + 1]] - sums[starts[from]] > bound {
                        break;
                    }
                    let Some((before, _)) = kept[from] else { continue };
                    let bytes = before + self.crossing(&place.cut, starts[from]);
                    if kept[to + 1].is_none_or(|(least, _)| bytes < least) {
                        kept[to + 1] = Some((bytes, from));
                    }
                }
            }
            for (last, found) in kept.iter().enumerate() {
                let Some((bytes, _)) = *found else { continue };
                let total = bytes + bound;
                if sums[end] - sums[starts[last]] > bound || total >= best.0 {
                    continue;
                }
                let mut chosen = Vec::new();
                let mut at = last;
                while let Some((_, from)) = kept[at].filter(|_| at > 0) {
                    chosen.push(at - 1);
                    at = from;
                }
                chosen.reverse();
                best = (total, chosen);
            }
        }
        let chosen: HashSet<usize> = best.1.into_iter().collect();
        places.into_iter().enumerate().filter(|(i, _)| chosen.contains(i)).map(|(_, place)| place).collect()
    }

    /// Writes a part of the forward pass once more, as far as gradients read it.
    fn again(
        &self,
        part: std::ops::Range<usize>,
        kept: &HashSet<&str>,
        gradient: &str,
        renamed: &mut HashMap<&'f str, String>,
        late: &mut Vec<ValueInfo>,
        out: &mut Emitter,
    ) {
        let index = &self.forward.index;
        let mut wanted: Vec<&str> = self.saved[part.clone()].iter().flatten().copied().collect();
        wanted.retain(|name| !kept.contains(name));
        let mut needed: HashSet<usize> = HashSet::new();
        let mut stack = wanted.clone();
        while let Some(name) = stack.pop() {
            if let Some(&place) = self.made.get(name)
                && part.contains(&place)
                && self.is_made_again(name, kept)
                && needed.insert(place)
            {
                stack.extend(&index.reads[index.order[place]]);
            }
        }
        if needed.is_empty() {
            return;
        }
        let zero = zero_of(gradient, out);
        let mut names: HashMap<&str, String> = HashMap::new();
        for place in part.filter(|p| needed.contains(p)) {
            let original = &index.graph.node[index.order[place]];
            let mut node = original.clone();
            for (input, name) in node.input.iter_mut().zip(&original.input) {
                if name.is_empty() || !index.is_dynamic(name) {
                    continue;
                }
                let same = names.entry(name.as_str()).or_insert_with(|| {
                    let same = after(name, &zero, out);
                    let known = self.forward.types.get(name);
                    late.extend(known.map(|info| ValueInfo { name: same.clone(), ..info.clone() }));
                    same
                });
                input.clone_from(same);
            }
            for (output, name) in node.output.iter_mut().zip(&original.output).filter(|(_, n)| !n.is_empty()) {
                *output = out.name(&format!("{name}.again"));
                names.insert(name, output.clone());
            }
            node.name = Some(format!("{}.again", original.name()));
            out.push(node);
        }
        for name in wanted {
            if let Some(again) = names.remove(name) {
                renamed.insert(name, again);
            }
        }
    }

    /// Whether a value is to be computed again rather than read where it is.
    fn is_made_again(&self, name: &str, kept: &HashSet<&str>) -> bool {
        let index = &self.forward.index;
        let node = &index.graph.node[index.producer[name]];
        index.is_dynamic(name) && is_function_of_inputs(node) && !kept.contains(name)
    }
}

fn size(info: &ValueInfo) -> u64 {
    bytes(info, FREE)
}

/// An integer 0 that no runtime can know before the gradient is there.
fn zero_of(gradient: &str, out: &mut Emitter) -> String {
    let flat = out.ints(&[-1]);
    let flat = out.op("Reshape", &[gradient, &flat], &[]);
    let (begin, end) = (out.ints(&[0]), out.ints(&[1]));
    let first = out.op("Slice", &[&flat, &begin, &end], &[]);
    // Through a boolean, since a number that is none has no integer.
    let truth = out.op("Cast", &[&first], &[("to", Attribute::Int(DataType::Bool.to_onnx().into()))]);
    let whole = out.op("Cast", &[&truth], &[("to", Attribute::Int(DataType::I64.to_onnx().into()))]);
    let none = out.int(0);
    let zero = out.op("Mul", &[&whole, &none], &[]);
    out.op("ReduceSum", &[&zero], &[("keepdims", Attribute::Int(0))])
}

/// The same tensor, not before `zero` is there.
fn after(name: &str, zero: &str, out: &mut Emitter) -> String {
    let shape = out.op("Shape", &[name], &[]);
    let shape = out.op("Add", &[&shape, zero], &[]);
    out.op("Reshape", &[name, &shape], &[])
}

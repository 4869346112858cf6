//! Copies that an exporter made of weights when it folded constants: turned,
//! reshaped, or their lengths alone. They would be trained apart from what
//! they were made of, so each becomes what it was: a node behind its weight.
//!
//! A pass of [`crate::fold`]. Which constants an exporter made is told by its
//! notes and names ([`super::notes`]); what of, by the
//! numbers themselves.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::constant::tensor_from_proto;
use crate::emit::{Attribute, Emitter};
use crate::index::Index;
use crate::model::Model;
use crate::onnx::{NodeProto, TensorProto};
use crate::rewrite::{Pass, Patch};
use crate::tensor::Elements;
use crate::weights::{is_float, turns};

use super::notes::made_by_exporter;

/// Axes of a copy at most: its orders are tried one by one.
const AXES_MAX: usize = 4;

/// How far a length may be from what it is computed as here.
const LENGTH_APART_MAX: f64 = 1e-4;

/// Copies become nodes behind what they are copies of.
pub(crate) struct Copies;

/// A constant's sizes and numbers.
struct Numbers<'m> {
    name: &'m str,
    sizes: Vec<usize>,
    values: Vec<f64>,
}

impl Pass for Copies {
    fn name(&self) -> &'static str {
        "copies"
    }

    fn patch(&mut self, model: &Model) -> Result<Patch, String> {
        let made = made_by_exporter(model);
        if made.is_empty() {
            return Ok(Patch::default());
        }
        let graph = model.graph();
        let index = Index::new(model);
        let interface = graph.input.iter().chain(&graph.output).map(|v| v.name());
        let mut settled: HashSet<&str> = interface.collect();
        let names = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
        let mut out = Emitter::new(names.chain(graph.initializer.iter().map(|t| t.name())));
        let mut patch = Patch::default();
        let all = alike(&graph.initializer, &made);
        for group in all.values() {
            for (i, copy) in group.iter().enumerate() {
                let Some(sources) = made.get(copy.name).filter(|_| !settled.contains(copy.name)) else { continue };
                // Parameters first, else the first of several copies.
                let own = |of: &&Numbers| !made.contains_key(of.name);
                let others = group.iter().filter(own).chain(group[..i].iter().filter(|of| !own(of)));
                let of = others.filter(|of| fits(copy, of, sources, made.get(of.name))).find_map(|of| {
                    let of_kept = !patch.remove_constants.contains(of.name);
                    of_kept.then(|| Some((of.name, copy_kind(copy, of)?))).flatten()
                });
                let Some((of, order)) = of else { continue };
                settled.insert(copy.name);
                patch.remove_constants.insert(copy.name.to_owned());
                match order {
                    CopyKind::Same => drop(patch.rewire.insert(copy.name.to_owned(), of.to_owned())),
                    CopyKind::Turned(perm) => {
                        out.named("Transpose", &[of], &[copy.name], &[("perm", Attribute::Ints(perm))])
                    }
                    CopyKind::Reshaped => {
                        let sizes: Vec<i64> = copy.sizes.iter().map(|&n| n as i64).collect();
                        let sizes = out.ints(&sizes);
                        out.named("Reshape", &[of, &sizes], &[copy.name], &[]);
                    }
                }
            }
        }
        let newest = model.opset("").is_none_or(|set| set >= 18);
        for (length, of, axes) in lengths(&index, &made) {
            if settled.insert(length) && !patch.remove_constants.contains(of) {
                patch.remove_constants.insert(length.to_owned());
                if newest {
                    let axes = out.ints(&axes);
                    out.named("ReduceL2", &[of, &axes], &[length], &[]);
                } else {
                    out.named("ReduceL2", &[of], &[length], &[("axes", Attribute::Ints(axes))]);
                }
            }
        }
        (patch.add_nodes, patch.add_constants) = out.finish();
        Ok(patch)
    }
}

/// Constants of the same numbers in whatever order, by what tells such apart,
/// where one of them was made by the exporter; in the file's order.
fn alike<'m>(
    constants: &'m [TensorProto],
    made: &HashMap<String, Vec<String>>,
) -> BTreeMap<(usize, u64), Vec<Numbers<'m>>> {
    let count = |t: &TensorProto| t.dims.iter().product::<i64>();
    let counts: HashSet<i64> = constants.iter().filter(|t| made.contains_key(t.name())).map(count).collect();
    let mut all: BTreeMap<(usize, u64), Vec<Numbers>> = BTreeMap::new();
    for tensor in constants.iter().filter(|t| is_float(t) && count(t) > 1 && counts.contains(&count(t))) {
        if let Some(numbers) = Numbers::of(tensor) {
            all.entry((numbers.values.len(), numbers.print())).or_default().push(numbers);
        }
    }
    all.retain(|_, group| group.len() > 1);
    all
}

/// Whether a constant may be a copy of another: of one that it is noted to be
/// made of alone; else the numbers must tell it, which those that are all the
/// same don't: a layer's first biases, say.
fn fits(copy: &Numbers<'_>, of: &Numbers<'_>, sources: &[String], others: Option<&Vec<String>>) -> bool {
    let telling = copy.values.iter().any(|x| *x != copy.values[0]);
    match others {
        _ if sources.is_empty() => copy.name != of.name && telling,
        None => sources.iter().any(|name| name == of.name) && (telling || sources.len() == 1),
        Some(others) => sources == others.as_slice() && telling,
    }
}

/// How a copy was made.
enum CopyKind {
    Same,
    Turned(Vec<i64>),
    Reshaped,
}

fn copy_kind(copy: &Numbers<'_>, of: &Numbers<'_>) -> Option<CopyKind> {
    if copy.values == of.values {
        return Some(if copy.sizes == of.sizes { CopyKind::Same } else { CopyKind::Reshaped });
    }
    let rank = of.sizes.len();
    if rank != copy.sizes.len() || !(2..=AXES_MAX).contains(&rank) {
        return None;
    }
    let perm = permutations(rank).into_iter().find(|perm| {
        perm.iter().zip(&copy.sizes).all(|(&axis, size)| of.sizes[axis] == *size) && of.turned_by(perm, &copy.values)
    })?;
    Some(CopyKind::Turned(perm.into_iter().map(|axis| axis as i64).collect()))
}

/// All orders of so many axes.
fn permutations(rank: usize) -> Vec<Vec<usize>> {
    (0..rank).fold(vec![vec![]], |all, _| {
        let longer = |order: &Vec<usize>| {
            let order = order.clone();
            (0..rank)
                .filter(|axis| !order.contains(axis))
                .map(|axis| [&order[..], &[axis]].concat())
                .collect::<Vec<_>>()
        };
        all.iter().flat_map(longer).collect()
    })
}

impl<'m> Numbers<'m> {
    fn of(tensor: &'m TensorProto) -> Option<Self> {
        let read = tensor_from_proto(tensor).ok()?;
        let sizes = read.shape().to_vec();
        let values: Vec<f64> = match read.elements() {
            Elements::F32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Elements::F64(v) => v.clone(),
            _ => return None,
        };
        Some(Self { name: tensor.name(), sizes, values })
    }

    /// The same for the same numbers in any order, another for most others.
    fn print(&self) -> u64 {
        let mixed = |x: &f64| {
            let bits = x.to_bits().wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (bits ^ (bits >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
        };
        self.values.iter().map(mixed).fold(0, u64::wrapping_add)
    }

    /// Whether these are `other` when the axes are put in this order.
    fn turned_by(&self, perm: &[usize], other: &[f64]) -> bool {
        let mut strides = vec![1; self.sizes.len()];
        for axis in (1..self.sizes.len()).rev() {
            strides[axis - 1] = strides[axis] * self.sizes[axis];
        }
        let mut place = vec![0; perm.len()];
        other.iter().all(|value| {
            let at: usize = perm.iter().zip(&place).map(|(&axis, p)| strides[axis] * p).sum();
            for (p, &axis) in place.iter_mut().zip(perm).rev() {
                *p += 1;
                if *p < self.sizes[axis] {
                    break;
                }
                *p = 0;
            }
            self.values[at] == *value
        })
    }

    /// Lengths along some axes, which are kept with size 1.
    fn lengths(&self, axes: &[i64]) -> Vec<f64> {
        let kept = |axis: usize| !axes.contains(&(axis as i64));
        let mut squares = vec![0.0; (0..self.sizes.len()).filter(|&a| kept(a)).map(|a| self.sizes[a]).product()];
        for (i, value) in self.values.iter().enumerate() {
            let (mut rest, mut at, mut stride) = (i, 0, 1);
            for axis in (0..self.sizes.len()).rev() {
                let place = rest % self.sizes[axis];
                rest /= self.sizes[axis];
                if kept(axis) {
                    at += place * stride;
                    stride *= self.sizes[axis];
                }
            }
            squares[at] += value * value;
        }
        squares.into_iter().map(f64::sqrt).collect()
    }
}

/// Constants that are lengths of a weight which they divide, that weight, and
/// the axes along which.
fn lengths<'m>(index: &Index<'m>, made: &HashMap<String, Vec<String>>) -> Vec<(&'m str, &'m str, Vec<i64>)> {
    let constants: HashMap<&str, &TensorProto> = index.graph.initializer.iter().map(|t| (t.name(), t)).collect();
    let behind = |mut name: &'m str, passes: &dyn Fn(&NodeProto) -> bool| {
        while let Some(node) = index.producer.get(name).map(|&at| &index.graph.node[at]).filter(|n| passes(n)) {
            name = node.input.first().map_or("", String::as_str);
        }
        name
    };
    let bounds = |n: &NodeProto| matches!(n.op_type(), "Clip" | "Max" | "Expand" | "Identity") && n.domain().is_empty();
    let mut found = Vec::new();
    for node in index.graph.node.iter().filter(|n| n.op_type() == "Div" && n.domain().is_empty()) {
        let [above, below] = &node.input[..] else { continue };
        let (of, length) = (behind(above, &turns), behind(below, &bounds));
        let (Some(of), Some(length)) = (constants.get(of), constants.get(length)) else { continue };
        let floats = is_float(of) && is_float(length) && of.dims.len() == length.dims.len();
        if !floats || !made.contains_key(length.name()) || of.name() == length.name() {
            continue;
        }
        let pairs = || of.dims.iter().zip(&length.dims);
        let axes: Vec<i64> = (0i64..).zip(pairs()).filter(|(_, (a, b))| **b == 1 && **a != 1).map(|(i, _)| i).collect();
        if axes.is_empty() || !pairs().all(|(a, b)| a == b || *b == 1) {
            continue;
        }
        let (Some(of), Some(length)) = (Numbers::of(of), Numbers::of(length)) else { continue };
        let close = |(a, b): (&f64, &f64)| (a - b).abs() <= LENGTH_APART_MAX * b.abs();
        if of.lengths(&axes).iter().zip(&length.values).all(close) {
            found.push((length.name, of.name, axes));
        }
    }
    found
}

//! The gradient of If: another If, whose branches compute the first one's
//! again and then the gradients of what they read of the graph around them.
//!
//! What a branch computes on the way isn't seen outside of it, so it is
//! computed twice rather than handed out.

use std::collections::{HashMap, HashSet};

use super::{Forward, GradientError};
use crate::attributes::Attributes;
use crate::emit::{Attribute, Emitter};
use crate::error::LoadError;
use crate::index::{bodies, captured};
use crate::kernels::Kernels;
use crate::model::Model;
use crate::onnx::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
use crate::slice::value_info_proto;
use crate::types::ValueInfo;

/// Names of the graph around that a node's bodies read and that are live, each
/// once.
pub(super) fn captures<'g>(node: &'g NodeProto, live: &dyn Fn(&str) -> bool) -> Vec<&'g str> {
    let mut seen = HashSet::new();
    bodies(node).flat_map(captured).filter(|name| live(name) && seen.insert(*name)).collect()
}

impl Forward<'_> {
    /// Gradients of `names`, which the branches of an If read.
    pub(super) fn branches<'a>(
        &self,
        node: &NodeProto,
        names: &[&'a str],
        upstream: &[Option<String>],
        out: &mut Emitter,
    ) -> Result<Vec<(&'a str, String)>, GradientError> {
        let [then, other] = ["then_branch", "else_branch"].map(|name| Attributes::of(node).graph(name));
        let (Some(then), Some(other)) = (then, other) else {
            let reason = "it lacks a branch".to_owned();
            return Err(GradientError::Form { node: super::label(node), operator: "If".to_owned(), reason });
        };
        let then = self.branch(then, names, upstream, out)?;
        let other = self.branch(other, names, upstream, out)?;
        let branches = [("then_branch", Attribute::Graph(then)), ("else_branch", Attribute::Graph(other))];
        let condition = node.input.first().map_or("", String::as_str);
        let gradients = out.ops("If", &[condition], names.len(), &branches);
        Ok(names.iter().copied().zip(gradients).collect())
    }

    /// A branch that gives the gradients of `names`, zeros of those it doesn't
    /// read.
    fn branch(
        &self,
        body: &GraphProto,
        names: &[&str],
        upstream: &[Option<String>],
        out: &mut Emitter,
    ) -> Result<GraphProto, GradientError> {
        let model = self.alone(body)?;
        // Engines' own operators are for graphs of their own.
        let plain = Kernels::none();
        let forward = Forward::new(&model, &plain)?;
        let outer = out.enter();
        let seeds: Vec<(&str, String)> =
            body.output.iter().zip(upstream).filter_map(|(y, dy)| Some((y.name(), dy.clone()?))).collect();
        let read: HashSet<&str> = captured(body).into_iter().collect();
        let wanted: Vec<&str> = names.iter().copied().filter(|name| read.contains(name)).collect();
        let found = forward.backward(&seeds, &wanted, out)?;
        let mut outputs = Vec::with_capacity(names.len());
        for &name in names {
            let gradient = match found.get(name) {
                Some(gradient) => out.op("Identity", &[gradient], &[]),
                None => self.zeros(name, out),
            };
            let dtype = self.types.get(name).and_then(|t| t.dtype);
            outputs.push(value_info_proto(&ValueInfo { name: gradient, dtype, shape: None }));
        }
        let (nodes, constants) = out.leave(outer);
        let mut graph = GraphProto { output: outputs, ..body.clone() };
        graph.node.extend(nodes);
        graph.initializer.extend(constants);
        Ok(graph)
    }

    /// A body as a model by itself, whose inputs are what it reads of the
    /// graph around it.
    fn alone(&self, body: &GraphProto) -> Result<Model, LoadError> {
        let mut graph = body.clone();
        let declared: HashMap<&str, &ValueInfoProto> =
            self.index.graph.input.iter().map(|input| (input.name(), input)).collect();
        for name in captured(body) {
            if let Some(&constant) = self.constants.get(name) {
                graph.initializer.push(constant.clone());
                continue;
            }
            let known = self.types.get(name).filter(|info| info.dtype.is_some()).map(value_info_proto);
            let bare = || ValueInfoProto { name: Some(name.to_owned()), ..ValueInfoProto::default() };
            graph.input.push(known.or_else(|| declared.get(name).map(|v| (*v).clone())).unwrap_or_else(bare));
        }
        let whole = self.model.proto();
        Model::from_proto(ModelProto {
            ir_version: whole.ir_version,
            opset_import: whole.opset_import.clone(),
            functions: whole.functions.clone(),
            graph: Some(graph).into(),
            ..ModelProto::default()
        })
    }
}

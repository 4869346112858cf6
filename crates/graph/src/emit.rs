//! Writes nodes: names that nobody has, constants that are there once.
//!
//! Whatever adds to a graph (gradients, losses, optimisers, upgrades) writes
//! through an [`Emitter`] and then hands over what it wrote.

use std::collections::{HashMap, HashSet};

use protobuf::MessageField;

use crate::constant::tensor_to_proto;
use crate::onnx::attribute_proto::AttributeType;
use crate::onnx::{AttributeProto, GraphProto, NodeProto, TensorProto};
use crate::tensor::{DataType, Elements, Tensor};

/// An attribute of a node.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Attribute {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
    Floats(Vec<f32>),
    Text(String),
    Tensor(Tensor),
    Graph(GraphProto),
}

/// An attribute as ONNX writes it.
#[must_use]
pub fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut proto = AttributeProto { name: Some(name.to_owned()), ..AttributeProto::default() };
    let kind = match value {
        Attribute::Int(i) => {
            proto.i = Some(*i);
            AttributeType::INT
        }
        Attribute::Ints(ints) => {
            proto.ints.clone_from(ints);
            AttributeType::INTS
        }
        Attribute::Float(f) => {
            proto.f = Some(*f);
            AttributeType::FLOAT
        }
        Attribute::Floats(floats) => {
            proto.floats.clone_from(floats);
            AttributeType::FLOATS
        }
        Attribute::Text(text) => {
            proto.s = Some(text.clone().into());
            AttributeType::STRING
        }
        Attribute::Tensor(tensor) => {
            proto.t = MessageField::some(tensor_to_proto(name, tensor));
            AttributeType::TENSOR
        }
        Attribute::Graph(graph) => {
            proto.g = MessageField::some(graph.clone());
            AttributeType::GRAPH
        }
    };
    proto.type_ = Some(kind as i32);
    proto
}

/// A node of the default domain; the empty name leaves an input or output out.
#[must_use]
pub fn node(kind: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, Attribute)]) -> NodeProto {
    NodeProto {
        op_type: Some(kind.to_owned()),
        name: outputs.iter().find(|o| !o.is_empty()).map(|o| format!("{kind}:{o}")),
        input: inputs.iter().map(|i| (*i).to_owned()).collect(),
        output: outputs.iter().map(|o| (*o).to_owned()).collect(),
        attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
        ..NodeProto::default()
    }
}

/// What was written before a body was begun.
pub(crate) struct Outer {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    known: HashMap<Key, String>,
}

/// A constant's type, shape and bytes.
type Key = (i32, Vec<usize>, Vec<u8>);

/// Nodes and constants under construction.
#[derive(Debug, Default)]
pub struct Emitter {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    taken: HashSet<String>,
    /// Names of constants.
    known: HashMap<Key, String>,
    next: usize,
}

impl Emitter {
    /// An emitter that leaves these names alone.
    pub fn new<'n>(taken: impl IntoIterator<Item = &'n str>) -> Self {
        Self { taken: taken.into_iter().map(str::to_owned).collect(), ..Self::default() }
    }

    /// What was written: nodes in topological order, and constants.
    #[must_use]
    pub fn finish(self) -> (Vec<NodeProto>, Vec<TensorProto>) {
        (self.nodes, self.constants)
    }

    /// How many nodes there are so far.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Begins a body: what is written from now on is the body's, under names
    /// that nobody has, until [`Emitter::leave`].
    pub(crate) fn enter(&mut self) -> Outer {
        Outer {
            nodes: std::mem::take(&mut self.nodes),
            constants: std::mem::take(&mut self.constants),
            known: std::mem::take(&mut self.known),
        }
    }

    /// Ends a body; its nodes and constants.
    pub(crate) fn leave(&mut self, outer: Outer) -> (Vec<NodeProto>, Vec<TensorProto>) {
        self.known = outer.known;
        (std::mem::replace(&mut self.nodes, outer.nodes), std::mem::replace(&mut self.constants, outer.constants))
    }

    /// The nodes written so far, to be written anew with [`Emitter::push`].
    pub(crate) fn take(&mut self) -> Vec<NodeProto> {
        std::mem::take(&mut self.nodes)
    }

    /// A name that nobody has, like the one wanted.
    pub fn name(&mut self, wanted: &str) -> String {
        if self.taken.insert(wanted.to_owned()) {
            return wanted.to_owned();
        }
        loop {
            self.next += 1;
            let name = format!("{wanted}.{}", self.next);
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }

    /// A node with one output of a new name.
    pub fn op(&mut self, kind: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        self.ops(kind, inputs, 1, attributes).remove(0)
    }

    /// A node with `outputs` outputs of new names.
    pub fn ops(
        &mut self,
        kind: &str,
        inputs: &[&str],
        outputs: usize,
        attributes: &[(&str, Attribute)],
    ) -> Vec<String> {
        let stem = format!("t/{kind}");
        let names: Vec<String> = (0..outputs).map(|_| self.name(&stem)).collect();
        let ends: Vec<&str> = names.iter().map(String::as_str).collect();
        self.nodes.push(node(kind, inputs, &ends, attributes));
        names
    }

    /// A node of [`crate::kernels::DOMAIN`] with `outputs` outputs of new names.
    pub fn kernel(
        &mut self,
        kind: &str,
        inputs: &[&str],
        outputs: usize,
        attributes: &[(&str, Attribute)],
    ) -> Vec<String> {
        let names = self.ops(kind, inputs, outputs, attributes);
        let node = self.nodes.last_mut().expect("the node was just written");
        node.domain = Some(crate::kernels::DOMAIN.to_owned());
        names
    }

    /// A node whose outputs have names already.
    pub fn named(&mut self, kind: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, Attribute)]) {
        self.nodes.push(node(kind, inputs, outputs, attributes));
    }

    /// A node as it is.
    pub fn push(&mut self, node: NodeProto) {
        self.nodes.push(node);
    }

    /// Gives what an emitted node makes another name, wherever it is read here;
    /// whether there is such a node.
    pub fn rename(&mut self, from: &str, to: &str) -> bool {
        let made = self.nodes.iter_mut().flat_map(|n| &mut n.output).find(|o| *o == from);
        let Some(output) = made else { return false };
        to.clone_into(output);
        for input in self.nodes.iter_mut().flat_map(|n| &mut n.input).filter(|i| *i == from) {
            to.clone_into(input);
        }
        true
    }

    /// A constant; equal ones share a name.
    pub fn constant(&mut self, tensor: &Tensor) -> String {
        let bytes = tensor.to_bytes().unwrap_or_default().to_vec();
        let key = (tensor.dtype().to_onnx(), tensor.shape().to_vec(), bytes);
        if let Some(name) = self.known.get(&key) {
            return name.clone();
        }
        let name = self.name("t/constant");
        self.constants.push(tensor_to_proto(&name, tensor));
        self.known.insert(key, name.clone());
        name
    }

    /// A vector of 64-bit integers, such as axes or a shape.
    pub fn ints(&mut self, values: &[i64]) -> String {
        let tensor = Tensor::new([values.len()], Elements::I64(values.to_vec()));
        self.constant(&tensor.expect("a vector has its length"))
    }

    /// A 64-bit integer without axes.
    pub fn int(&mut self, value: i64) -> String {
        self.constant(&Tensor::new([], Elements::I64(vec![value])).expect("a scalar has one element"))
    }

    /// A number of this floating type, without axes.
    pub fn scalar(&mut self, dtype: DataType, value: f64) -> String {
        let elements = match dtype {
            DataType::F64 => Elements::F64(vec![value]),
            DataType::F16 => Elements::F16(vec![half::f16::from_f64(value)]),
            DataType::BF16 => Elements::BF16(vec![half::bf16::from_f64(value)]),
            _ => Elements::F32(vec![value as f32]),
        };
        self.constant(&Tensor::new([], elements).expect("a scalar has one element"))
    }
}

//! Whether a model treats its rows apart: along axis 0 of every input, row by
//! row, so that inputs of several callers run as one and come apart again.
//!
//! Every value is followed from the inputs: is it the same whatever the rows
//! (`Fixed`), a row for each row of the inputs along some axis (`Rows`), or a
//! function of how many there are (`Sizes`)? What an operator makes of that
//! says its rule (`rules.rs`); one without a rule may do anything, so nothing
//! of a model with one is called row by row. That axes are as long as there
//! are rows is taken from type inference, with axis 0 of every input free.
//!
//! Never executes a graph: an engine may still be wrong, which only a run
//! shows. Start at [`freed`].

mod rules;
mod stack;

use std::collections::HashMap;

pub use self::stack::{alike, count, joined, parted, varied};

use crate::attributes::Attributes;
use crate::constant::{tensor_from_proto, tensor_to_proto};
use crate::index::is_function_of_inputs;
use crate::model::Model;
use crate::onnx::tensor_shape_proto::dimension;
use crate::onnx::{NodeProto, TensorProto, TypeProto, ValueInfoProto};
use crate::tensor::{Elements, Tensor};
use crate::types::Dim;
use crate::{Types, infer_computed_types};

/// Names axis 0 of a freed model's inputs and outputs.
pub const ROWS: &str = "tierline.rows";

/// Why rows of a model don't stay apart, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {why}")]
pub struct Mixed {
    /// The input, node or output.
    pub at: String,
    /// What is the matter there.
    pub why: String,
}

impl Mixed {
    fn at(at: impl Into<String>, why: impl Into<String>) -> Self {
        Self { at: at.into(), why: why.into() }
    }
}

/// What is known of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// The same whatever the rows are, and however many.
    Fixed,
    /// One for each row along this axis, from that row alone.
    Rows(usize),
    /// A function of how many rows there are.
    Sizes,
    /// A list of sizes: that at this place is how many rows there are, the
    /// others are fixed.
    SizesBut(usize),
}

/// The model with axis 0 of its inputs and outputs free, where every output
/// has a row for each row of the inputs, made of that row alone. With one row
/// it does what the model as given does.
///
/// # Errors
/// [`Mixed`], the first reason why that can't be said of it.
pub fn freed(model: &Model) -> Result<Model, Mixed> {
    let freed = with_free_axes(model)?;
    let types = infer_computed_types(&freed).map_err(|e| Mixed::at("shapes", e.to_string()))?;
    let rows = Rows::new(&freed, &types);
    rows.follow()?;
    Ok(freed)
}

/// Frees axis 0 of inputs and outputs. A target of Reshape that begins with the
/// one row it was exported with copies that axis instead.
fn with_free_axes(model: &Model) -> Result<Model, Mixed> {
    let as_it_is = infer_computed_types(model).map_err(|e| Mixed::at("shapes", e.to_string()))?;
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    for input in &mut graph.input {
        free_input(input)?;
    }
    for output in &mut graph.output {
        if let Some(first) = first_axis(output.type_.as_mut()) {
            *first = Some(dimension::Value::DimParam(ROWS.to_owned()));
        }
    }
    // What is declared of values between has the sizes of the exporter's sample.
    graph.value_info.clear();
    let mut added: Vec<TensorProto> = Vec::new();
    let one_row = |name: &str| {
        let shape = as_it_is.get(name).and_then(|value| value.shape.as_ref());
        shape.is_some_and(|axes| axes.first() == Some(&Dim::Known(1)))
    };
    let constants: HashMap<&str, &TensorProto> = graph.initializer.iter().map(|t| (t.name(), t)).collect();
    for (at, node) in graph.node.iter_mut().enumerate() {
        let reshapes = node.op_type() == "Reshape" && node.domain().is_empty() && node.input.len() == 2;
        if !reshapes || Attributes::of(node).flag("allowzero") || !one_row(&node.input[0]) {
            continue;
        }
        let target = constants.get(node.input[1].as_str()).and_then(|t| tensor_from_proto(t).ok());
        let Some((shape, Elements::I64(mut sizes))) = target.map(Tensor::into_parts) else { continue };
        if sizes.first() != Some(&1) {
            continue;
        }
        sizes[0] = 0;
        let name = format!("{ROWS}.{at}");
        let Ok(tensor) = Tensor::new(shape, Elements::I64(sizes)) else { continue };
        added.push(tensor_to_proto(&name, &tensor));
        node.input[1] = name;
    }
    graph.initializer.extend(added);
    Model::from_proto(proto).map_err(|e| Mixed::at("the model", e.to_string()))
}

/// Inputs that aren't there once for each row can't differ between callers.
fn free_input(input: &mut ValueInfoProto) -> Result<(), Mixed> {
    let name = input.name().to_owned();
    let Some(first) = first_axis(input.type_.as_mut()) else {
        return Err(Mixed::at(format!("input `{name}`"), "it has no axis for rows"));
    };
    match first {
        Some(dimension::Value::DimValue(n)) if *n != 1 => {
            return Err(Mixed::at(format!("input `{name}`"), format!("its first axis is {n} long, always")));
        }
        _ => *first = Some(dimension::Value::DimParam(ROWS.to_owned())),
    }
    let others = input.type_.as_ref().and_then(|t| t.tensor_type().shape.as_ref());
    match others.is_some_and(|shape| shape.dim.iter().skip(1).any(|d| d.has_dim_param() && d.dim_param() == ROWS)) {
        true => Err(Mixed::at(format!("input `{name}`"), "two of its axes are rows")),
        false => Ok(()),
    }
}

fn first_axis(declared: Option<&mut TypeProto>) -> Option<&mut Option<dimension::Value>> {
    let declared = declared.filter(|t| t.has_tensor_type())?;
    declared.mut_tensor_type().shape.as_mut()?.dim.first_mut().map(|dim| &mut dim.value)
}

/// One model's values, followed from its inputs.
struct Rows<'m> {
    model: &'m Model,
    types: &'m Types,
    opset: i64,
    constants: HashMap<&'m str, &'m TensorProto>,
    classes: HashMap<&'m str, Class>,
}

impl<'m> Rows<'m> {
    fn new(model: &'m Model, types: &'m Types) -> Self {
        let graph = model.graph();
        let constants: HashMap<&str, &TensorProto> = graph.initializer.iter().map(|t| (t.name(), t)).collect();
        let fixed = constants.keys().map(|name| (*name, Class::Fixed));
        let given = graph.input.iter().map(|input| (input.name(), Class::Rows(0)));
        let classes = given.chain(fixed).collect();
        let opset = model.opset("").unwrap_or(1);
        Self { model, types, opset, constants, classes }
    }

    fn follow(mut self) -> Result<(), Mixed> {
        let graph = self.model.graph();
        for node in &graph.node {
            let class = self.classes_of(node)?;
            for (name, class) in node.output.iter().zip(class).filter(|(name, _)| !name.is_empty()) {
                if let Class::Rows(axis) = class {
                    self.check_axis(node, name, axis)?;
                }
                self.classes.insert(name, class);
            }
        }
        for output in &graph.output {
            let class = self.classes.get(output.name());
            if class != Some(&Class::Rows(0)) {
                return Err(Mixed::at(
                    format!("output `{}`", output.name()),
                    "it has no row for each row of the inputs",
                ));
            }
        }
        Ok(())
    }

    /// What a node makes, by what it is given.
    fn classes_of(&self, node: &'m NodeProto) -> Result<Vec<Class>, Mixed> {
        let given: Vec<Option<Class>> = node
            .input
            .iter()
            .map(|name| self.classes.get(name.as_str()).copied().filter(|_| !name.is_empty()))
            .collect();
        if node.input.iter().zip(&given).any(|(name, class)| !name.is_empty() && class.is_none()) {
            return Err(self.mixed(node, "it takes a value that nothing makes"));
        }
        let known = is_function_of_inputs(node);
        let all = |fits: fn(&Class) -> bool| known && given.iter().flatten().all(fits);
        let one = if all(|class| *class == Class::Fixed) {
            Class::Fixed
        } else {
            let op = rules::Op { rows: self, node, given: &given };
            match op.classes() {
                Ok(classes) => return Ok(classes),
                // Whatever it makes of sizes depends on sizes.
                Err(_) if all(|class| !matches!(class, Class::Rows(_))) => Class::Sizes,
                Err(why) => return Err(self.mixed(node, why)),
            }
        };
        Ok(vec![one; node.output.len()])
    }

    /// That axis is as long as there are rows, and no other is.
    fn check_axis(&self, node: &NodeProto, name: &str, axis: usize) -> Result<(), Mixed> {
        let Some(shape) = self.shape(name) else { return Err(self.mixed(node, "its shape isn't known")) };
        let rows = |dim: &Dim| matches!(dim, Dim::Symbol(symbol) if symbol == ROWS);
        let places: Vec<usize> = shape.iter().enumerate().filter(|(_, dim)| rows(dim)).map(|(at, _)| at).collect();
        if places != [axis] {
            let axes: Vec<String> = shape.iter().map(ToString::to_string).collect();
            let why = format!("`{name}` [{}] isn't known to have a row for each of the inputs'", axes.join(", "));
            return Err(self.mixed(node, why));
        }
        Ok(())
    }

    fn mixed(&self, node: &NodeProto, why: impl Into<String>) -> Mixed {
        let name = if node.name().is_empty() { node.output.first().map_or("", String::as_str) } else { node.name() };
        Mixed::at(format!("{} `{name}`", node.op_type()), why)
    }

    fn shape(&self, name: &str) -> Option<&'m [Dim]> {
        self.types.get(name)?.shape.as_deref()
    }

    /// The integers of a constant.
    fn ints(&self, name: &str) -> Option<Vec<i64>> {
        let made = || {
            let node = self.model.graph().node.iter().find(|node| node.output.iter().any(|o| o == name))?;
            Attributes::of(node).tensor("value").filter(|_| node.op_type() == "Constant")
        };
        let tensor = self.constants.get(name).copied().or_else(made)?;
        match tensor_from_proto(tensor).ok()?.into_parts().1 {
            Elements::I64(ints) => Some(ints),
            Elements::I32(ints) => Some(ints.into_iter().map(i64::from).collect()),
            _ => None,
        }
    }
}

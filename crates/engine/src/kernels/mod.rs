//! Operators of our own for ONNX Runtime: what gradients and optimisers write
//! in many plain nodes, in one pass over memory.
//!
//! All take and give f32 on the CPU. They share the session's threads, and
//! give the same bits whatever their number: work is divided by shape alone,
//! and every sum has one order. What doesn't fit is a [`Fault`] before
//! anything is written.
//!
//! Start at [`Kernel`] and [`ALL`]; `runtime.rs` is the bridge to the runtime.
//!
//! # Adding an operator
//!
//! 1. One file: a type that implements [`Compute`] (the shapes of its outputs,
//!    or why the inputs don't fit; then the values, over `workers.each`), and
//!    `pub(super) const KERNEL: Kernel` with its name and how it is made of
//!    its attributes. List it in [`ALL`].
//! 2. Have the gradient rule in `tierline_graph` write it where
//!    `s.has("Mine")`, beside the plain form, which stays.
//! 3. Add a case to `crates/engine/tests/it/kernels.rs`: both forms of the
//!    rule must agree, and one and two threads to the bit.

mod batch_norm;
mod conv_weight;
mod depthwise;
mod mask;
mod max_pool;
#[allow(unsafe_code)]
mod product;
mod runtime;
#[cfg(test)]
mod tests;
mod update;
mod wide;
mod window;
mod workers;

pub(crate) use runtime::{Attributes, domain};
use workers::Workers;

/// Every operator, by family.
const ALL: &[Kernel] = &[
    conv_weight::KERNEL,
    depthwise::KERNEL,
    batch_norm::GRADIENT,
    batch_norm::STATISTICS,
    mask::RELU,
    mask::CLIP,
    max_pool::KERNEL,
    update::SGD,
    update::ADAM,
];

/// Names of the operators.
pub(crate) const NAMES: &[&str] = &{
    let mut names = [""; ALL.len()];
    let mut i = 0;
    while i < ALL.len() {
        names[i] = ALL[i].name;
        i += 1;
    }
    names
};

/// An operator.
struct Kernel {
    name: &'static str,
    /// How many inputs it takes.
    inputs: usize,
    /// How many outputs it gives.
    outputs: usize,
    /// Reads a node's attributes.
    make: fn(&Attributes) -> Result<Box<dyn Compute>, Fault>,
}

/// A node's computation.
trait Compute: Send {
    /// Shapes of the outputs, or why the inputs' shapes don't fit.
    fn shapes(&self, inputs: &[&[usize]]) -> Result<Vec<Vec<usize>>, Fault>;

    /// Writes every element of the outputs, whose shapes are what
    /// [`Compute::shapes`] said.
    fn run(&self, inputs: &[Array<'_>], outputs: Vec<&mut [f32]>, workers: &Workers<'_>) -> Result<(), Fault>;
}

/// An input, row-major.
#[derive(Clone, Copy)]
struct Array<'a> {
    shape: &'a [usize],
    data: &'a [f32],
}

/// Why an operator can't be computed.
#[derive(Debug)]
struct Fault(String);

impl Fault {
    fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// Refuses shapes that aren't all the same.
fn same(shapes: &[&[usize]]) -> Result<(), Fault> {
    match shapes.iter().find(|shape| **shape != shapes[0]) {
        Some(other) => Err(Fault::new(format!("shapes {:?} and {other:?} should be the same", shapes[0]))),
        None => Ok(()),
    }
}

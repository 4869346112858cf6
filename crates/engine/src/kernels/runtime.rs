//! The bridge to ONNX Runtime: operators as it calls them.

use std::sync::Arc;

use ort::operator::{ComputeContext, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::workers::{Buffers, Workers};
use super::{ALL, Array, Compute, Fault, Kernel};

/// Our domain with all of its operators, for one session.
pub(crate) fn domain() -> ort::Result<OperatorDomain> {
    let buffers = Arc::new(Buffers::default());
    let empty = OperatorDomain::new(tierline_graph::kernels::DOMAIN)?;
    ALL.iter().try_fold(empty, |domain, kernel| domain.add(Registered { kernel, buffers: buffers.clone() }))
}

/// Attributes of a node.
pub(crate) struct Attributes<'c, 'k>(&'c KernelContext<'k>);

impl Attributes<'_, '_> {
    /// Integers; none where there is no such attribute.
    pub(super) fn ints(&self, name: &str) -> Option<Vec<i64>> {
        self.0.get(name)
    }

    /// A number that must be there.
    pub(super) fn float(&self, name: &str) -> Result<f32, Fault> {
        self.0.get(name).ok_or_else(|| Fault::new(format!("it has no attribute `{name}`")))
    }
}

struct Registered {
    kernel: &'static Kernel,
    buffers: Arc<Buffers>,
}

impl Operator for Registered {
    type Kernel<'attr> = Node;

    fn name(&self) -> &str {
        self.kernel.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        (0..self.kernel.inputs).map(|_| OperatorInput::required(TensorElementType::Float32))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        (0..self.kernel.outputs).map(|_| OperatorOutput::required(TensorElementType::Float32))
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Node> {
        let compute = (self.kernel.make)(&Attributes(context)).map_err(|fault| error(self.kernel, &fault))?;
        Ok(Node { kernel: self.kernel, compute, buffers: self.buffers.clone() })
    }
}

fn error(kernel: &Kernel, fault: &Fault) -> ort::Error {
    ort::Error::new(format!("{}: {}", kernel.name, fault.0))
}

/// One node of a session.
struct Node {
    kernel: &'static Kernel,
    compute: Box<dyn Compute>,
    buffers: Arc<Buffers>,
}

impl ort::operator::Kernel for Node {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new(format!("{}: an input or output is missing", self.kernel.name));
        let values =
            (0..self.kernel.inputs).map(|i| context.input(i)?.ok_or_else(missing)).collect::<ort::Result<Vec<_>>>()?;
        let parts = values.iter().map(|v| v.try_extract_tensor::<f32>()).collect::<ort::Result<Vec<_>>>()?;
        // The runtime gives sizes of tensors that are there: none is negative.
        let shapes: Vec<Vec<usize>> =
            parts.iter().map(|(shape, _)| shape.iter().map(|&n| n as usize).collect()).collect();
        let views: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let wanted = self.compute.shapes(&views).map_err(|fault| error(self.kernel, &fault))?;
        let mut made = Vec::with_capacity(wanted.len());
        for (i, shape) in wanted.into_iter().enumerate() {
            let shape: Vec<i64> = shape.into_iter().map(|n| n as i64).collect();
            made.push(context.output(i, shape)?.ok_or_else(missing)?);
        }
        let outputs = made
            .iter_mut()
            .map(|value| Ok(value.try_extract_tensor_mut::<f32>()?.1))
            .collect::<ort::Result<Vec<&mut [f32]>>>()?;
        let inputs: Vec<Array<'_>> =
            shapes.iter().zip(&parts).map(|(shape, (_, data))| Array { shape, data }).collect();
        let workers = Workers::new(context, &self.buffers);
        self.compute.run(&inputs, outputs, &workers).map_err(|fault| error(self.kernel, &fault))
    }
}

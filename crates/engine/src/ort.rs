//! ONNX Runtime, through its shared library.
//!
//! Inputs are handed over without a copy, outputs are copied once out of the
//! runtime's arena into the caller's buffers.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ::ort::AsPointer;
use ::ort::environment::{Environment, GlobalThreadPoolOptions};
use ::ort::ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProvider};
use ::ort::logging::LogLevel;
use ::ort::session::builder::{BuilderResult, GraphOptimizationLevel, SessionBuilder};
use ::ort::session::{RunOptions, Session as OrtSession, SessionInputValue, SessionOutputs};
use ::ort::value::{DynValue, Outlet, PrimitiveTensorElementType, TensorElementType, TensorRef, ValueType};
use tierline_graph::onnx::{AttributeProto, GraphProto, TensorProto};
use tierline_graph::{DataType, Dim, Elements, Model, Tensor, ValueInfo};

use crate::error::{EngineError, guarded};
use crate::options::{LoadOptions, Provider, ProviderKind};
use crate::stateful::{self, StateSlot, Stateful};
use crate::{Engine, Session, Stop, inputs, kernels, library, refuse};

pub(crate) const NAME: &str = "onnxruntime";

/// The optimiser that makes one node of a quantised operation and its scales.
const QUANTISED_FUSIONS: &str = "QDQSelectorActionTransformer";

/// How exactly products with weights of few bits are computed that the file
/// writes in several nodes: 0 for as it says.
const FEW_BITS_ACCURACY: &str = "session.qdq_matmulnbits_accuracy_level";

/// Whether products of unsigned and signed bytes are computed as of unsigned
/// ones where the processor would sum them in too few bits.
const WHOLE_SUMS: &str = "session.x64quantprecision";

/// ONNX's numbers of the element types of two bits.
const TWO_BITS: [i32; 2] = [25, 26];

/// The one ONNX Runtime of this process. Its environment is never dropped:
/// the library allows only one per process, ever.
static LOADED: Mutex<Option<OnnxRuntime>> = Mutex::new(None);

#[derive(Clone)]
struct OnnxRuntime {
    environment: Environment,
    path: PathBuf,
    version: String,
}

/// The engine from the library at `path`, or in the folder `path`.
pub(crate) fn engine(path: &Path) -> Result<Arc<dyn Engine>, EngineError> {
    let path = if path.is_dir() {
        crate::discover::in_folder(path)
            .into_iter()
            .next()
            .ok_or_else(|| EngineError::LibraryMissing { tried: vec![path.to_owned()] })?
    } else {
        path.to_owned()
    };
    let path = path.canonicalize().map_err(|_| EngineError::LibraryMissing { tried: vec![path.clone()] })?;
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = loaded.as_ref() {
        if runtime.path == path {
            return Ok(Arc::new(runtime.clone()));
        }
        return Err(EngineError::LibraryLoaded { loaded: runtime.path.clone(), requested: path });
    }
    let unusable = |reason: String| EngineError::LibraryUnusable { path: path.clone(), reason };
    let version = library::version(&path).map_err(unusable)?;
    let environment = guarded(NAME, "loading its library", || {
        let builder = ::ort::init_from(&path).map_err(|e| unusable(e.to_string()))?;
        builder
            .with_name("tierline")
            .with_telemetry(false)
            .with_global_thread_pool(GlobalThreadPoolOptions::default())
            .with_logger(Arc::new(log))
            .build()
            .map_err(|e| unusable(e.to_string()))
    })?;
    environment.set_log_level(LogLevel::Warning);
    let runtime = OnnxRuntime { environment, path, version };
    *loaded = Some(runtime.clone());
    Ok(Arc::new(runtime))
}

/// The runtime's own log, at debug level: what matters comes back as errors.
fn log(level: LogLevel, category: &str, _id: &str, place: &str, message: &str) {
    tracing::debug!(?level, category, place, "{message}");
}

/// The environment in use, if ONNX Runtime is loaded; see
/// [`crate::onnxruntime_environment`].
pub(crate) fn environment() -> Option<Environment> {
    LOADED.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|r| r.environment.clone())
}

/// The library in use, if one is.
pub(crate) fn loaded() -> Option<PathBuf> {
    LOADED.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|r| r.path.clone())
}

impl Engine for OnnxRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn kernels(&self) -> &'static [&'static str] {
        kernels::NAMES
    }

    fn library(&self) -> Option<PathBuf> {
        Some(self.path.clone())
    }

    fn is_stoppable(&self) -> bool {
        true
    }

    fn load_until(&self, model: &Model, options: &LoadOptions, stop: &Stop) -> Result<Box<dyn Session>, EngineError> {
        Ok(Box::new(self.loaded(model, options, stop, Ok)?))
    }

    fn load_stateful(
        &self,
        model: &Model,
        options: &LoadOptions,
        slots: &[StateSlot],
        state: Vec<Tensor>,
    ) -> Result<Box<dyn Stateful>, EngineError> {
        // A pattern is one block for all tensors of a run, beside what the first
        // run without it took: half as much again at the peak.
        let builder = |builder: SessionBuilder| builder.with_memory_pattern(false);
        let loaded = self.loaded(model, options, &Stop::never(), builder)?;
        stateful::check_state(slots, &state, &state)?;
        let values = slots.iter().zip(&state).map(|(slot, t)| owned(&slot.input, t)).collect::<Result<_, _>>()?;
        let inputs = stateful::others(&loaded.inputs, |name| slots.iter().any(|s| s.input == name));
        let outputs = stateful::others(&loaded.outputs, |name| slots.iter().any(|s| s.output == name));
        let slots = slots.to_vec();
        Ok(Box::new(StatefulSession { session: loaded.session, inputs, outputs, slots, values, next: Vec::new() }))
    }
}

impl OnnxRuntime {
    fn loaded(
        &self,
        model: &Model,
        options: &LoadOptions,
        stop: &Stop,
        adjust: impl FnOnce(SessionBuilder) -> BuilderResult,
    ) -> Result<Loaded, EngineError> {
        refuse::check(NAME, model)?;
        let bytes = model.to_bytes().map_err(|e| EngineError::Prepare { reason: e.to_string() })?;
        guarded(NAME, "loading the model", || {
            let (builder, notes) = self.builder(options)?;
            let mut builder = adjust(builder).map_err(|e| refused(e.message()))?;
            if holds_two_bits(model.graph()) {
                // It fuses a product with such a weight wrongly where the width is
                // no multiple of 4 (seen in 1.32: other values each time).
                builder = builder.with_disabled_optimizers(QUANTISED_FUSIONS).map_err(|e| refused(e.message()))?;
            }
            if model.opset(tierline_graph::kernels::DOMAIN).is_some() {
                let domain = kernels::domain().map_err(|e| refused(e.message()))?;
                builder = builder.with_operators(domain).map_err(|e| refused(e.message()))?;
            }
            let (started, canceler) = (Instant::now(), builder.canceler());
            let brake = move || drop(canceler.cancel());
            let session = match stop.during(brake, || builder.commit_from_memory(&bytes)) {
                Some(Ok(session)) => session,
                Some(Err(e)) if !stop.is_pulled() => return Err(refused(e.message())),
                _ => return Err(EngineError::Stopped { engine: NAME, after: started.elapsed() }),
            };
            let all = |outlets: &[Outlet], declared: &[ValueInfo]| {
                outlets.iter().map(|o| outlet(o.name(), o.dtype(), declared)).collect::<Result<Vec<_>, _>>()
            };
            let inputs = all(session.inputs(), &model.inputs())?;
            let outputs = all(session.outputs(), &model.outputs())?;
            let running = Arc::new(RunOptions::new().map_err(|e| refused(e.message()))?);
            Ok(Loaded { session: Stoppable { session, running }, inputs, outputs, notes })
        })
    }

    fn builder(&self, options: &LoadOptions) -> Result<(SessionBuilder, Vec<String>), EngineError> {
        let level = if options.optimize { GraphOptimizationLevel::All } else { GraphOptimizationLevel::Disable };
        let mut builder = OrtSession::builder(&self.environment)
            .map_err(|e| refused(e.message()))?
            .with_optimization_level(level)
            // Where it finds a product with a weight of four bits it would round
            // the other side to eight, which the file doesn't say, and finds
            // some in a slice that it doesn't find in the whole.
            .and_then(|b| b.with_config_entry(FEW_BITS_ACCURACY, "0"))
            // Older processors would cut sums off; see [`overflow`](crate::overflow).
            .and_then(|b| b.with_config_entry(WHOLE_SUMS, "1"))
            .map_err(|e| refused(e.message()))?;
        // The shared pool has every core and spins; anything else needs its own.
        if options.threads != 0 || !options.spin {
            builder = builder
                .with_independent_thread_pool()
                .and_then(|b| b.with_intra_threads(options.threads))
                .and_then(|b| b.with_intra_op_spinning(options.spin))
                .map_err(|e| refused(e.message()))?;
        }
        let mut notes = Vec::new();
        for provider in &options.providers {
            match register(provider, &mut builder) {
                Ok(()) => {}
                Err(reason) if provider.required => {
                    return Err(EngineError::ProviderUnavailable { provider: provider.kind.to_string(), reason });
                }
                Err(reason) => {
                    let note = format!(
                        "execution provider `{}` is not available ({reason}); using the next one",
                        provider.kind
                    );
                    tracing::warn!("{note}");
                    notes.push(note);
                }
            }
        }
        Ok((builder, notes))
    }
}

/// Whether a weight, in bodies too, has elements of two bits.
fn holds_two_bits(graph: &GraphProto) -> bool {
    let two = |t: &TensorProto| TWO_BITS.contains(&t.data_type());
    let within = |a: &AttributeProto| a.t.as_ref().is_some_and(two) || a.g.iter().chain(&a.graphs).any(holds_two_bits);
    graph.initializer.iter().any(two) || graph.node.iter().flat_map(|n| &n.attribute).any(within)
}

fn refused(reason: &str) -> EngineError {
    EngineError::Refused { engine: NAME, node: None, reason: reason.to_owned() }
}

fn register(provider: &Provider, builder: &mut SessionBuilder) -> Result<(), String> {
    fn add<E: ExecutionProvider>(ep: E, builder: &mut SessionBuilder) -> Result<(), String> {
        if !E::is_available().map_err(|e| e.to_string())? {
            return Err("this ONNX Runtime was built without it".to_owned());
        }
        ep.register(builder).map_err(|e| e.to_string())
    }
    fn fixed<E: ExecutionProvider>(ep: E, wanted: &Provider, builder: &mut SessionBuilder) -> Result<(), String> {
        match wanted.options.keys().next() {
            Some(key) => Err(format!("it takes no options; `{key}` was given")),
            None => add(ep, builder),
        }
    }
    fn tuned<E>(ep: E, wanted: &Provider, builder: &mut SessionBuilder) -> Result<(), String>
    where
        E: ExecutionProvider + ArbitrarilyConfigurableExecutionProvider,
    {
        add(wanted.options.iter().fold(ep, |ep, (key, value)| ep.with_arbitrary_config(key, value)), builder)
    }
    match provider.kind {
        // Always there, and always last.
        ProviderKind::Cpu => Ok(()),
        ProviderKind::Cuda => tuned(ep::CUDA::default(), provider, builder),
        ProviderKind::TensorRt => tuned(ep::TensorRT::default(), provider, builder),
        ProviderKind::OpenVino => tuned(ep::OpenVINO::default(), provider, builder),
        ProviderKind::CoreMl => tuned(ep::CoreML::default(), provider, builder),
        ProviderKind::DirectMl => fixed(ep::DirectML::default(), provider, builder),
        ProviderKind::Rocm => tuned(ep::ROCm::default(), provider, builder),
        ProviderKind::MiGraphX => fixed(ep::MIGraphX::default(), provider, builder),
        ProviderKind::Xnnpack => tuned(ep::XNNPACK::default(), provider, builder),
        ProviderKind::Qnn => tuned(ep::QNN::default(), provider, builder),
        ProviderKind::Nnapi => fixed(ep::NNAPI::default(), provider, builder),
        ProviderKind::OneDnn => tuned(ep::OneDNN::default(), provider, builder),
        ProviderKind::Cann => tuned(ep::CANN::default(), provider, builder),
        ProviderKind::Acl => fixed(ep::ACL::default(), provider, builder),
    }
}

/// An input or output as the runtime knows it: it infers what the file leaves
/// out.
fn outlet(name: &str, kind: &ValueType, declared: &[ValueInfo]) -> Result<ValueInfo, EngineError> {
    let ValueType::Tensor { ty, shape, dimension_symbols } = kind else {
        return Err(refused(&format!("`{name}` is a {kind}; nodes exchange tensors only")));
    };
    let dtype = data_type(*ty)
        .ok_or_else(|| refused(&format!("`{name}` has element type {ty}, which Tierline does not carry")))?;
    let sizes: Vec<Dim> = shape
        .iter()
        .zip(dimension_symbols.iter())
        .map(|(&n, symbol)| match u64::try_from(n) {
            Ok(n) => Dim::Known(n),
            Err(_) if symbol.is_empty() => Dim::Unknown,
            Err(_) => Dim::Symbol(symbol.clone()),
        })
        .collect();
    // It reports a tensor of unknown rank like a scalar; the file tells which.
    let scalar = || declared.iter().any(|v| v.name == name && v.shape.is_some());
    let shape = (!sizes.is_empty() || scalar()).then_some(sizes);
    Ok(ValueInfo { name: name.to_owned(), dtype: Some(dtype), shape })
}

fn data_type(t: TensorElementType) -> Option<DataType> {
    use TensorElementType as T;
    Some(match t {
        T::Float32 => DataType::F32,
        T::Uint8 => DataType::U8,
        T::Int8 => DataType::I8,
        T::Uint16 => DataType::U16,
        T::Int16 => DataType::I16,
        T::Int32 => DataType::I32,
        T::Int64 => DataType::I64,
        T::String => DataType::String,
        T::Bool => DataType::Bool,
        T::Float16 => DataType::F16,
        T::Float64 => DataType::F64,
        T::Uint32 => DataType::U32,
        T::Uint64 => DataType::U64,
        T::Bfloat16 => DataType::BF16,
        _ => return None,
    })
}

/// A session whose runs can be stopped.
struct Stoppable {
    session: OrtSession,
    /// Stops a run from another thread.
    running: Arc<RunOptions>,
}

type Given<'t> = Vec<(Cow<'t, str>, SessionInputValue<'t>)>;

impl Stoppable {
    fn run(&mut self, values: Given<'_>, stop: &Stop) -> Result<SessionOutputs<'_>, EngineError> {
        let Self { session, running } = self;
        let (started, brake) = (Instant::now(), Arc::clone(running));
        let brake = move || drop(brake.terminate());
        match stop.during(brake, || session.run_with_options(values, running)) {
            Some(Ok(made)) => Ok(made),
            Some(Err(e)) if !stop.is_pulled() => Err(failed(&e)),
            _ => {
                // A flag that was raised stays so: the next run needs its own.
                running.unterminate().map_err(|e| failed(&e))?;
                Err(EngineError::Stopped { engine: NAME, after: started.elapsed() })
            }
        }
    }
}

struct Loaded {
    session: Stoppable,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    notes: Vec<String>,
}

impl Session for Loaded {
    fn inputs(&self) -> &[ValueInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[ValueInfo] {
        &self.outputs
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn run_until(
        &mut self,
        given: &[(&str, &Tensor)],
        outputs: &mut Vec<Tensor>,
        stop: &Stop,
    ) -> Result<(), EngineError> {
        let ordered = inputs::in_order(&self.inputs, given)?;
        guarded(NAME, "running the model", || {
            let values = self
                .inputs
                .iter()
                .zip(&ordered)
                .map(|(value, tensor)| Ok((Cow::from(value.name.as_str()), view(&value.name, tensor)?)))
                .collect::<Result<Vec<_>, EngineError>>()?;
            let made = self.session.run(values, stop)?;
            for (i, value) in self.outputs.iter().enumerate() {
                let previous = (i < outputs.len()).then(|| std::mem::replace(&mut outputs[i], empty()));
                let tensor = take(&value.name, &made[i], previous)?;
                match outputs.get_mut(i) {
                    Some(slot) => *slot = tensor,
                    None => outputs.push(tensor),
                }
            }
            outputs.truncate(self.outputs.len());
            Ok(())
        })
    }
}

/// A session whose state never leaves the runtime: what a run made is what
/// the next takes.
struct StatefulSession {
    session: Stoppable,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    slots: Vec<StateSlot>,
    values: Vec<DynValue>,
    /// What the last run made of them; empty when it is taken over.
    next: Vec<DynValue>,
}

impl Stateful for StatefulSession {
    fn inputs(&self) -> &[ValueInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[ValueInfo] {
        &self.outputs
    }

    fn run_until(
        &mut self,
        given: &[(&str, &Tensor)],
        outputs: &mut Vec<Tensor>,
        stop: &Stop,
    ) -> Result<(), EngineError> {
        let ordered = inputs::in_order(&self.inputs, given)?;
        guarded(NAME, "running the model", || {
            let mut values = self
                .inputs
                .iter()
                .zip(&ordered)
                .map(|(value, tensor)| Ok((Cow::from(value.name.as_str()), view(&value.name, tensor)?)))
                .collect::<Result<Vec<_>, EngineError>>()?;
            let state = self.slots.iter().zip(&self.values);
            values.extend(state.map(|(slot, value)| (Cow::from(slot.input.as_str()), value.into())));
            // What an earlier run made is void, however this one ends.
            self.next.clear();
            let mut made = self.session.run(values, stop)?;
            let taken = self
                .outputs
                .iter()
                .enumerate()
                .map(|(i, value)| {
                    let previous = outputs.get_mut(i).map(|slot| std::mem::replace(slot, empty()));
                    take(&value.name, &made[value.name.as_str()], previous)
                })
                .collect::<Result<Vec<_>, _>>()?;
            let mut next = Vec::with_capacity(self.slots.len());
            for slot in &self.slots {
                let missing = || EngineError::Run { engine: NAME, reason: format!("no output `{}`", slot.output) };
                next.push(made.remove(&slot.output).ok_or_else(missing)?);
            }
            self.next = next;
            *outputs = taken;
            Ok(())
        })
    }

    fn advance(&mut self) {
        if !self.next.is_empty() {
            self.values = std::mem::take(&mut self.next);
        }
    }

    fn state(&self) -> Result<Vec<Tensor>, EngineError> {
        self.slots.iter().zip(&self.values).map(|(slot, value)| take(&slot.input, value, None)).collect()
    }

    fn set_state(&mut self, state: &[Tensor]) -> Result<(), EngineError> {
        stateful::check_state(&self.slots, &self.state()?, state)?;
        let values = self.slots.iter().zip(state).map(|(slot, t)| owned(&slot.input, t));
        self.values = values.collect::<Result<_, _>>()?;
        self.next.clear();
        Ok(())
    }
}

/// A copy of a tensor that the runtime keeps.
fn owned(name: &str, tensor: &Tensor) -> Result<DynValue, EngineError> {
    let shape = tensor.shape().to_vec();
    let made = match tensor.elements() {
        Elements::F32(v) => ::ort::value::Tensor::from_array((shape, v.clone())).map(|t| t.into_dyn()),
        Elements::F64(v) => ::ort::value::Tensor::from_array((shape, v.clone())).map(|t| t.into_dyn()),
        Elements::I64(v) => ::ort::value::Tensor::from_array((shape, v.clone())).map(|t| t.into_dyn()),
        Elements::I32(v) => ::ort::value::Tensor::from_array((shape, v.clone())).map(|t| t.into_dyn()),
        other => {
            let reason = format!("state `{name}` is {}; state is f32, f64, i32 or i64", other.dtype());
            return Err(EngineError::Prepare { reason });
        }
    };
    made.map_err(|e| failed(&e))
}

fn empty() -> Tensor {
    Tensor::new([0], Elements::U8(Vec::new())).expect("no elements have shape [0]")
}

fn failed(e: &::ort::Error) -> EngineError {
    EngineError::Run { engine: NAME, reason: e.message().to_owned() }
}

/// The tensor as the runtime takes it; only strings are copied.
fn view<'t>(name: &str, tensor: &'t Tensor) -> Result<SessionInputValue<'t>, EngineError> {
    fn numbers<'t, T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static>(
        shape: &'t [usize],
        elements: &'t [T],
    ) -> Result<SessionInputValue<'t>, EngineError> {
        Ok(TensorRef::from_array_view((shape, elements)).map_err(|e| failed(&e))?.into())
    }
    let shape = tensor.shape();
    match tensor.elements() {
        Elements::F32(v) => numbers(shape, v),
        Elements::U8(v) => numbers(shape, v),
        Elements::I8(v) => numbers(shape, v),
        Elements::U16(v) => numbers(shape, v),
        Elements::I16(v) => numbers(shape, v),
        Elements::I32(v) => numbers(shape, v),
        Elements::I64(v) => numbers(shape, v),
        Elements::F16(v) => numbers(shape, v),
        Elements::F64(v) => numbers(shape, v),
        Elements::U32(v) => numbers(shape, v),
        Elements::U64(v) => numbers(shape, v),
        Elements::BF16(v) => numbers(shape, v),
        Elements::Bool(v) => {
            let bools = bytemuck::checked::try_cast_slice::<u8, bool>(v).map_err(|_| {
                let index = v.iter().position(|&b| b > 1).unwrap_or(0);
                value_error(name, index, v[index].to_string(), "a boolean is 0 or 1")
            })?;
            numbers(shape, bools)
        }
        Elements::String(v) => {
            if let Some(index) = v.iter().position(|s| s.contains('\0')) {
                let reason = "its strings end at the first NUL";
                return Err(value_error(name, index, format!("{:?}", v[index]), reason));
            }
            let value = ::ort::value::Tensor::from_string_array((shape, v.as_slice())).map_err(|e| failed(&e))?;
            Ok(value.into())
        }
        _ => Err(EngineError::Run { engine: NAME, reason: format!("input `{name}` is {}", tensor.dtype()) }),
    }
}

fn value_error(name: &str, index: usize, value: String, reason: &'static str) -> EngineError {
    EngineError::InputValue { name: name.to_owned(), index, value, engine: NAME, reason }
}

/// Copies an output out of the runtime, into `previous` where that fits.
fn take(name: &str, value: &DynValue, previous: Option<Tensor>) -> Result<Tensor, EngineError> {
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err(output_type(name, &value.dtype().to_string()));
    };
    if !is_dense(value) {
        return Err(output_type(name, "a sparse tensor"));
    }
    let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
    macro_rules! copy {
        ($($ty:ident: $rust:ty => $variant:ident;)*) => {
            match ty {
                $(TensorElementType::$ty => {
                    let (_, made) = value.try_extract_tensor::<$rust>().map_err(|e| failed(&e))?;
                    match previous {
                        Some(mut tensor) if tensor.shape() == shape && matches!(tensor.elements(), Elements::$variant(_)) => {
                            if let Elements::$variant(buffer) = tensor.elements_mut() {
                                buffer.copy_from_slice(made);
                            }
                            return Ok(tensor);
                        }
                        _ => Elements::$variant(made.to_vec()),
                    }
                })*
                TensorElementType::Bool => {
                    let (_, made) = value.try_extract_tensor::<bool>().map_err(|e| failed(&e))?;
                    Elements::Bool(bytemuck::cast_slice::<bool, u8>(made).to_vec())
                }
                // The runtime can't give the content of a tensor without elements.
                TensorElementType::String if shape.contains(&0) => Elements::String(Vec::new()),
                TensorElementType::String => {
                    Elements::String(value.try_extract_strings().map_err(|e| failed(&e))?.1)
                }
                other => return Err(output_type(name, &other.to_string())),
            }
        };
    }
    let elements = copy! {
        Float32: f32 => F32;
        Uint8: u8 => U8;
        Int8: i8 => I8;
        Uint16: u16 => U16;
        Int16: i16 => I16;
        Int32: i32 => I32;
        Int64: i64 => I64;
        Float16: half::f16 => F16;
        Float64: f64 => F64;
        Uint32: u32 => U32;
        Uint64: u64 => U64;
        Bfloat16: half::bf16 => BF16;
    };
    Tensor::new(shape, elements).map_err(|e| EngineError::Run { engine: NAME, reason: e.to_string() })
}

/// Whether a value is a tensor of elements in a row. The bindings take sparse
/// tensors for such, and read past their end.
#[allow(unsafe_code)]
fn is_dense(value: &DynValue) -> bool {
    let mut kind = ::ort::sys::ONNXType::ONNX_TYPE_UNKNOWN;
    // SAFETY: the value is alive for the call, which only writes `kind`.
    let status = unsafe { (::ort::api().GetValueType)(value.ptr(), &mut kind) };
    status.0.is_null() && kind == ::ort::sys::ONNXType::ONNX_TYPE_TENSOR
}

fn output_type(name: &str, given: &str) -> EngineError {
    EngineError::OutputType {
        engine: NAME,
        name: name.to_owned(),
        expected: "a tensor that Tierline carries".to_owned(),
        given: given.to_owned(),
    }
}

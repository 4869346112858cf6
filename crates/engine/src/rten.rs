//! rten, the embedded engine: pure Rust, nothing to install.
//!
//! It holds f32, i32, i8 and u8. i64 and booleans become i32 at its boundary
//! (with a range check), f16 becomes f32; outputs come back in the types that
//! the model declares.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use ::rten::{
    Model as RtenModel, ModelOptions, NodeId, RunOptions, ShapeInferenceMode, ThreadPool, Value, ValueOrView, ValueView,
};
use half::f16;
use rten_tensor::Layout;
use tierline_graph::{DataType, Elements, Model, Tensor, ValueInfo};

use crate::bounds::{self, Bounds};
use crate::error::{EngineError, guarded};
use crate::options::{LoadOptions, ProviderKind};
use crate::{Engine, Session, Stop, adapt, inputs, refuse};

pub(crate) const NAME: &str = "rten";

/// The version of the crate that is built in.
pub(crate) const VERSION: &str = "0.27";

pub(crate) struct Rten;

impl Engine for Rten {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> String {
        VERSION.to_owned()
    }

    fn load_until(&self, model: &Model, options: &LoadOptions, stop: &Stop) -> Result<Box<dyn Session>, EngineError> {
        begin(stop)?;
        refuse::check(NAME, model)?;
        let mut notes = Vec::new();
        for provider in options.providers.iter().filter(|p| p.kind != ProviderKind::Cpu) {
            let reason = "rten runs on the CPU only".to_owned();
            if provider.required {
                return Err(EngineError::ProviderUnavailable { provider: provider.kind.to_string(), reason });
            }
            notes.push(format!("execution provider `{}` is not available ({reason})", provider.kind));
        }
        let loaded = load(model, options)?;
        let (inputs, outputs) = (model.inputs(), model.outputs());
        let ids = |values: &[ValueInfo]| {
            values
                .iter()
                .map(|v| {
                    loaded.find_node(&v.name).ok_or_else(|| EngineError::Refused {
                        engine: NAME,
                        node: None,
                        reason: format!("its optimizer lost the value `{}`", v.name),
                    })
                })
                .collect::<Result<Vec<NodeId>, _>>()
        };
        let (input_ids, output_ids) = (ids(&inputs)?, ids(&outputs)?);
        Ok(Box::new(Loaded {
            model: loaded,
            inputs,
            outputs,
            input_ids,
            output_ids,
            pool: pool(options.threads),
            bounds: Bounds::new(NAME, model),
            notes,
        }))
    }
}

fn load(model: &Model, options: &LoadOptions) -> Result<RtenModel, EngineError> {
    let prepare = |e: tierline_graph::LoadError| EngineError::Prepare { reason: e.to_string() };
    let read = |infers: bool| {
        let bytes = match adapt::adapt(model) {
            Some(adapted) => Model::from_proto(adapted).and_then(|m| m.to_bytes()).map_err(prepare)?,
            None => model.to_bytes().map_err(prepare)?,
        };
        guarded(NAME, "loading the model", || {
            ModelOptions::with_all_ops()
                .enable_optimization(options.optimize)
                .shape_inference(if infers { ShapeInferenceMode::On } else { ShapeInferenceMode::Off })
                .prepack_weights(options.optimize)
                .load(bytes)
                .map_err(|e| EngineError::Refused { engine: NAME, node: e.node().map(str::to_owned), reason: full(&e) })
        })
    };
    // Its inference of shapes only serves optimisation, and panics on some
    // models that it runs well without.
    match read(true) {
        Err(EngineError::Panicked { .. }) => read(false),
        other => other,
    }
}

/// It can't be stopped; what is too late before it begins needn't begin.
fn begin(stop: &Stop) -> Result<(), EngineError> {
    if stop.is_pulled() { Err(EngineError::Stopped { engine: NAME, after: std::time::Duration::ZERO }) } else { Ok(()) }
}

/// The error with its causes; rten names the operator in a cause.
fn full(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// Sessions with the same number of threads share one pool.
fn pool(threads: usize) -> Arc<ThreadPool> {
    static POOLS: OnceLock<Mutex<HashMap<usize, Weak<ThreadPool>>>> = OnceLock::new();
    let threads = if threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { threads };
    let mut pools = POOLS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = pools.get(&threads).and_then(Weak::upgrade) {
        return pool;
    }
    let pool = Arc::new(ThreadPool::with_num_threads(threads));
    pools.insert(threads, Arc::downgrade(&pool));
    pool
}

struct Loaded {
    model: RtenModel,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    input_ids: Vec<NodeId>,
    output_ids: Vec<NodeId>,
    pool: Arc<ThreadPool>,
    bounds: Bounds,
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
        begin(stop)?;
        let ordered = inputs::in_order(&self.inputs, given)?;
        self.bounds.check(given, bounds::available)?;
        guarded(NAME, "running the model", || {
            let values = self
                .input_ids
                .iter()
                .zip(&self.inputs)
                .zip(&ordered)
                .map(|((&id, value), tensor)| Ok((id, view(&value.name, tensor)?)))
                .collect::<Result<Vec<_>, EngineError>>()?;
            let options = RunOptions::default().with_thread_pool(Some(self.pool.clone()));
            let made = self
                .model
                .run(values, &self.output_ids, Some(options))
                .map_err(|e| EngineError::Run { engine: NAME, reason: full(&e) })?;
            // rten gives its buffers away, so the old ones are only dropped.
            outputs.clear();
            for (value, made) in self.outputs.iter().zip(made) {
                outputs.push(take(value, made)?);
            }
            Ok(())
        })
    }
}

/// The tensor as rten takes it: f32, i32, i8 and u8 without a copy.
fn view<'t>(name: &str, tensor: &'t Tensor) -> Result<ValueOrView<'t>, EngineError> {
    let shape = tensor.shape();
    let wrong = |e: &dyn std::fmt::Display| EngineError::Run { engine: NAME, reason: format!("input `{name}`: {e}") };
    macro_rules! borrowed {
        ($v:expr) => {
            ValueView::from_shape(shape, $v.as_slice()).map(ValueOrView::from).map_err(|e| wrong(&e))
        };
    }
    macro_rules! converted {
        ($v:expr) => {
            Value::from_shape(shape, $v).map(ValueOrView::from).map_err(|e| wrong(&e))
        };
    }
    match tensor.elements() {
        Elements::F32(v) => borrowed!(v),
        Elements::I32(v) => borrowed!(v),
        Elements::I8(v) => borrowed!(v),
        Elements::U8(v) => borrowed!(v),
        Elements::F16(v) => converted!(v.iter().map(|x| x.to_f32()).collect::<Vec<f32>>()),
        Elements::Bool(v) => converted!(v.iter().map(|&b| i32::from(b != 0)).collect::<Vec<i32>>()),
        Elements::I64(v) => {
            let small = v
                .iter()
                .enumerate()
                .map(|(index, &x)| {
                    i32::try_from(x).map_err(|_| EngineError::InputValue {
                        name: name.to_owned(),
                        index,
                        value: x.to_string(),
                        engine: NAME,
                        reason: "it computes i64 in 32 bits",
                    })
                })
                .collect::<Result<Vec<i32>, _>>()?;
            converted!(small)
        }
        _ => Err(EngineError::Run {
            engine: NAME,
            reason: format!("input `{name}` has element type {}, which it does not hold", tensor.dtype()),
        }),
    }
}

/// An output in the type that the model declares.
fn take(declared: &ValueInfo, made: Value) -> Result<Tensor, EngineError> {
    let shape = made.shape().to_vec();
    let kind = made.dtype().to_string();
    let wrong = |expected: String| EngineError::OutputType {
        engine: NAME,
        name: declared.name.clone(),
        expected,
        given: kind.clone(),
    };
    let elements = match (declared.dtype, made) {
        (Some(DataType::F32) | None, Value::FloatTensor(t)) => Elements::F32(t.into_data()),
        (Some(DataType::F16), Value::FloatTensor(t)) => {
            Elements::F16(t.into_data().into_iter().map(f16::from_f32).collect())
        }
        (Some(DataType::I32) | None, Value::Int32Tensor(t)) => Elements::I32(t.into_data()),
        (Some(DataType::I64), Value::Int32Tensor(t)) => {
            Elements::I64(t.into_data().into_iter().map(i64::from).collect())
        }
        (Some(DataType::Bool), Value::Int32Tensor(t)) => {
            Elements::Bool(t.into_data().into_iter().map(|x| u8::from(x != 0)).collect())
        }
        (Some(DataType::I8) | None, Value::Int8Tensor(t)) => Elements::I8(t.into_data()),
        (Some(DataType::U8) | None, Value::UInt8Tensor(t)) => Elements::U8(t.into_data()),
        (expected, _) => return Err(wrong(expected.map_or("a tensor".to_owned(), |t| t.to_string()))),
    };
    Tensor::new(shape, elements).map_err(|e| EngineError::Run { engine: NAME, reason: e.to_string() })
}

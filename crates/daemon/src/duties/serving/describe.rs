//! What the node and its models say of themselves.

use serde_json::{Value, json};
use tierline_graph::{Dim, ValueInfo};
use tierline_proto::oip::messages::model_metadata_response::TensorMetadata;
use tierline_proto::oip::messages::model_version_policy::{Latest, PolicyChoice};
use tierline_proto::oip::messages::repository_index_response::ModelIndex;
use tierline_proto::oip::messages::{
    ModelConfig, ModelDynamicBatching, ModelInput, ModelMetadataResponse, ModelOutput, ModelStatistics,
    ModelVersionPolicy, ServerMetadataResponse, StatisticDuration,
};
use tierline_proto::oip::{Datatype, grpc};

use super::{Model, Serving, tensors};
use crate::net::asking::Asker;

/// What runs models, as metadata name it.
const PLATFORM: &str = "tierline_onnx";

/// What the node does beyond the protocol.
const EXTENSIONS: [&str; 5] =
    ["binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics"];

/// The node.
pub fn server() -> ServerMetadataResponse {
    ServerMetadataResponse {
        name: "tierline".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS.map(str::to_owned).to_vec(),
    }
}

/// What a model takes and gives.
pub fn metadata(model: &Model) -> ModelMetadataResponse {
    let tensor = |value: &ValueInfo| TensorMetadata {
        name: value.name.clone(),
        datatype: datatype(value).map_or_else(String::new, |datatype| datatype.name().to_owned()),
        shape: axes(value),
    };
    ModelMetadataResponse {
        name: model.name.clone(),
        versions: model.versions.clone(),
        platform: PLATFORM.to_owned(),
        inputs: model.inputs.iter().map(tensor).collect(),
        outputs: model.outputs.iter().map(tensor).collect(),
    }
}

/// The same as Triton's configuration has it.
pub fn config(model: &Model) -> ModelConfig {
    let kind = |value: &ValueInfo| datatype(value).map_or(0, |datatype| grpc::data_type(datatype).into());
    ModelConfig {
        name: model.name.clone(),
        platform: PLATFORM.to_owned(),
        version_policy: Some(ModelVersionPolicy {
            policy_choice: Some(PolicyChoice::Latest(Latest { num_versions: 1 })),
        }),
        // Shapes are as the model has them, rows included.
        max_batch_size: 0,
        dynamic_batching: model.batching.map(|delay| ModelDynamicBatching {
            preferred_batch_size: Vec::new(),
            max_queue_delay_microseconds: u64::try_from(delay.as_micros()).unwrap_or(u64::MAX),
        }),
        input: model
            .inputs
            .iter()
            .map(|value| ModelInput { name: value.name.clone(), data_type: kind(value), dims: axes(value) })
            .collect(),
        output: model
            .outputs
            .iter()
            .map(|value| ModelOutput { name: value.name.clone(), data_type: kind(value), dims: axes(value) })
            .collect(),
        default_model_filename: "model.onnx".to_owned(),
        backend: "tierline".to_owned(),
    }
}

fn datatype(value: &ValueInfo) -> Option<Datatype> {
    value.dtype.and_then(tensors::datatype)
}

/// Axes, -1 where they are free.
fn axes(value: &ValueInfo) -> Vec<i64> {
    let axis = |dim: &Dim| dim.known().and_then(|size| i64::try_from(size).ok()).unwrap_or(-1);
    value.shape.iter().flatten().map(axis).collect()
}

impl Serving {
    /// Models by name, of those that somebody may use.
    pub fn index(&self, asker: &Asker, only_ready: bool) -> Vec<ModelIndex> {
        let index = |model: Model| {
            let ready = self.is_ready(&model);
            let reason = match ready {
                true => "",
                false if self.cx.end.has_begun() => "the node ends",
                false if self.is_warming(&model) => "it is being loaded",
                false => "it can't be run on this node",
            };
            ModelIndex {
                name: model.name,
                version: model.version,
                state: if ready { "READY" } else { "UNAVAILABLE" }.to_owned(),
                reason: reason.to_owned(),
            }
        };
        let all = self.models().into_iter().filter(|model| asker.may_use(&model.name)).map(index);
        all.filter(|model| !only_ready || model.state == "READY").collect()
    }

    /// Statistics of one model, or of all that somebody may use.
    pub(super) fn statistics(&self, asker: &Asker, model: Option<&Model>) -> Vec<ModelStatistics> {
        match model {
            Some(model) => vec![self.counts.message(model)],
            None => {
                let models = self.models();
                let seen = models.iter().filter(|model| asker.may_use(&model.name));
                seen.map(|model| self.counts.message(model)).collect()
            }
        }
    }
}

/// [`server`] over HTTP.
pub fn server_json() -> Value {
    let server = server();
    json!({ "name": server.name, "version": server.version, "extensions": server.extensions })
}

/// [`metadata`] over HTTP.
pub fn metadata_json(model: &Model) -> Value {
    let of = metadata(model);
    let tensors = |tensors: Vec<TensorMetadata>| -> Vec<Value> {
        let tensor = |t: TensorMetadata| json!({ "name": t.name, "datatype": t.datatype, "shape": t.shape });
        tensors.into_iter().map(tensor).collect()
    };
    json!({
        "name": of.name,
        "versions": of.versions,
        "platform": of.platform,
        "inputs": tensors(of.inputs),
        "outputs": tensors(of.outputs),
    })
}

/// [`config`] over HTTP.
pub fn config_json(model: &Model) -> Value {
    let of = config(model);
    let tensors = |values: &[ValueInfo]| -> Vec<Value> {
        let tensor = |value: &ValueInfo| {
            let kind = datatype(value).map_or("TYPE_INVALID", Datatype::config_name);
            json!({ "name": value.name, "data_type": kind, "dims": axes(value) })
        };
        values.iter().map(tensor).collect()
    };
    let mut config = json!({
        "name": of.name,
        "platform": of.platform,
        "backend": of.backend,
        "version_policy": { "latest": { "num_versions": 1 } },
        "max_batch_size": of.max_batch_size,
        "input": tensors(&model.inputs),
        "output": tensors(&model.outputs),
        "default_model_filename": of.default_model_filename,
    });
    if let Some(of) = of.dynamic_batching {
        config["dynamic_batching"] = json!({
            "preferred_batch_size": of.preferred_batch_size,
            "max_queue_delay_microseconds": of.max_queue_delay_microseconds,
        });
    }
    config
}

/// An index over HTTP.
pub fn index_json(index: Vec<ModelIndex>) -> Value {
    let model = |m: ModelIndex| match m.reason.is_empty() {
        true => json!({ "name": m.name, "version": m.version, "state": m.state }),
        false => json!({ "name": m.name, "version": m.version, "state": m.state, "reason": m.reason }),
    };
    index.into_iter().map(model).collect()
}

/// Statistics over HTTP.
pub fn statistics_json(statistics: Vec<ModelStatistics>) -> Value {
    let sum = |sum: Option<StatisticDuration>| {
        let sum = sum.unwrap_or_default();
        json!({ "count": sum.count, "ns": sum.ns })
    };
    let model = |m: ModelStatistics| {
        let of = m.inference_stats.unwrap_or_default();
        let batches: Vec<Value> = m
            .batch_stats
            .into_iter()
            .map(|batch| {
                json!({
                    "batch_size": batch.batch_size,
                    "compute_input": sum(batch.compute_input),
                    "compute_infer": sum(batch.compute_infer),
                    "compute_output": sum(batch.compute_output),
                })
            })
            .collect();
        json!({
            "name": m.name,
            "version": m.version,
            "last_inference": m.last_inference,
            "inference_count": m.inference_count,
            "execution_count": m.execution_count,
            "inference_stats": {
                "success": sum(of.success),
                "fail": sum(of.fail),
                "queue": sum(of.queue),
                "compute_input": sum(of.compute_input),
                "compute_infer": sum(of.compute_infer),
                "compute_output": sum(of.compute_output),
                "cache_hit": sum(of.cache_hit),
                "cache_miss": sum(of.cache_miss),
            },
            "batch_stats": batches,
        })
    };
    json!({ "model_stats": statistics.into_iter().map(model).collect::<Vec<_>>() })
}

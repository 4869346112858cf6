//! A server without a model: what the transport alone costs. It reads every
//! request whole and answers with the same few numbers.

use anyhow::{Context, Result};
use tierline_proto::limits::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use tierline_proto::oip::messages::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use tierline_proto::oip::messages::model_infer_response::InferOutputTensor;
use tierline_proto::oip::messages::{
    ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
    ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest, ModelStatisticsResponse,
    ModelStreamInferResponse, RepositoryIndexRequest, RepositoryIndexResponse, ServerLiveRequest, ServerLiveResponse,
    ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
};
use tonic::{Request, Response, Status, Streaming};

/// How this program is asked to be one: with the address, and how many numbers
/// an answer has.
pub const VERB: &str = "bare-server";

/// Longer than any request here.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

type Answer<T> = Result<Response<T>, Status>;

struct Bare {
    answer: ModelInferResponse,
}

/// Serves until it is killed.
///
/// # Errors
/// When the address is taken.
pub fn serve(address: &str, numbers: &str) -> Result<()> {
    let numbers: usize = numbers.parse().context("how many numbers an answer has")?;
    let output = InferOutputTensor {
        name: "y".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, numbers as i64],
        ..InferOutputTensor::default()
    };
    let answer = ModelInferResponse {
        outputs: vec![output],
        raw_output_contents: vec![vec![0; 4 * numbers].into()],
        ..ModelInferResponse::default()
    };
    let service = GrpcInferenceServiceServer::new(Bare { answer }).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tonic::transport::Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .add_service(service)
            .serve(address.parse()?)
            .await
            .map_err(anyhow::Error::from)
    })
}

fn none<T>() -> Answer<T> {
    Err(Status::unimplemented("this server has no model"))
}

#[tonic::async_trait]
impl GrpcInferenceService for Bare {
    type ModelStreamInferStream = tokio_stream::Empty<Result<ModelStreamInferResponse, Status>>;

    async fn model_infer(&self, _: Request<ModelInferRequest>) -> Answer<ModelInferResponse> {
        Ok(Response::new(self.answer.clone()))
    }

    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Answer<ServerLiveResponse> {
        none()
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Answer<ServerReadyResponse> {
        none()
    }

    async fn model_ready(&self, _: Request<ModelReadyRequest>) -> Answer<ModelReadyResponse> {
        none()
    }

    async fn server_metadata(&self, _: Request<ServerMetadataRequest>) -> Answer<ServerMetadataResponse> {
        none()
    }

    async fn model_metadata(&self, _: Request<ModelMetadataRequest>) -> Answer<ModelMetadataResponse> {
        none()
    }

    async fn model_stream_infer(
        &self,
        _: Request<Streaming<ModelInferRequest>>,
    ) -> Answer<Self::ModelStreamInferStream> {
        none()
    }

    async fn model_config(&self, _: Request<ModelConfigRequest>) -> Answer<ModelConfigResponse> {
        none()
    }

    async fn model_statistics(&self, _: Request<ModelStatisticsRequest>) -> Answer<ModelStatisticsResponse> {
        none()
    }

    async fn repository_index(&self, _: Request<RepositoryIndexRequest>) -> Answer<RepositoryIndexResponse> {
        none()
    }
}

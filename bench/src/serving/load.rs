//! Clients of the open protocol over gRPC, each with a connection and one
//! request at a time.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tierline_graph::Tensor;
use tierline_proto::oip::messages::grpc_inference_service_client::GrpcInferenceServiceClient;
use tierline_proto::oip::messages::infer_parameter::ParameterChoice;
use tierline_proto::oip::messages::model_infer_request::InferInputTensor;
use tierline_proto::oip::messages::{ModelInferRequest, ModelInferResponse};
use tonic::transport::Endpoint;

/// Relative error of an answer beside the engine's: sums in another order.
const TOLERANCE: f32 = 1e-4;

/// A request, and what it is answered by.
#[derive(Clone)]
pub struct Asked {
    /// The model's name.
    pub model: String,
    /// Its input.
    pub input: String,
    /// The input's shape.
    pub shape: Vec<usize>,
    /// The input.
    pub x: Tensor,
    /// Its elements.
    pub values: Vec<f32>,
    /// The first output; empty where it isn't compared.
    pub expected: Vec<f32>,
}

/// What an answer to it was like.
pub struct Answered {
    /// When it was there.
    pub at: Instant,
    /// Milliseconds.
    pub ms: f64,
    /// Whether it is from nearer than planned.
    pub degraded: bool,
}

impl Asked {
    fn request(&self) -> ModelInferRequest {
        let bytes: Vec<u8> = self.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        ModelInferRequest {
            model_name: self.model.clone(),
            id: "1".to_owned(),
            inputs: vec![InferInputTensor {
                name: self.input.clone(),
                datatype: "FP32".to_owned(),
                shape: self.shape.iter().map(|n| *n as i64).collect(),
                parameters: HashMap::new(),
                contents: None,
            }],
            raw_input_contents: vec![bytes.into()],
            ..ModelInferRequest::default()
        }
    }

    fn check(&self, answer: &ModelInferResponse) -> Result<()> {
        if self.expected.is_empty() {
            return Ok(());
        }
        let raw = answer.raw_output_contents.first().map(|bytes| {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect::<Vec<f32>>()
        });
        let told = || answer.outputs.first().and_then(|o| o.contents.as_ref()).map(|c| c.fp32_contents.clone());
        let got = raw.or_else(told).context("an answer without an output")?;
        let largest = self.expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= TOLERANCE * largest;
        ensure!(got.len() == self.expected.len() && got.iter().zip(&self.expected).all(near), "a wrong answer");
        Ok(())
    }
}

/// So many clients at once.
pub struct Load {
    runtime: tokio::runtime::Runtime,
    clients: usize,
}

impl Load {
    /// Clients on one thread: they are to take little from the servers.
    pub fn new(clients: usize) -> Result<Self> {
        Ok(Self { runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?, clients })
    }

    /// Asks for so long; milliseconds of every answer.
    pub fn run(&self, server: SocketAddr, asked: &Arc<Asked>, time: Duration) -> Result<Vec<f64>> {
        Ok(self.answers(server, asked, time)?.into_iter().map(|answer| answer.ms).collect())
    }

    /// The same, with more of every answer; one that fails is an error.
    pub fn answers(&self, server: SocketAddr, asked: &Arc<Asked>, time: Duration) -> Result<Vec<Answered>> {
        let client = |asked: Arc<Asked>| async move {
            let request = asked.request();
            let channel = Endpoint::from_shared(format!("http://{server}"))?.connect().await?;
            let mut client = GrpcInferenceServiceClient::new(channel);
            let (end, mut taken) = (Instant::now() + time, Vec::new());
            while Instant::now() < end {
                let began = Instant::now();
                let answer = client.model_infer(request.clone()).await?.into_inner();
                let (at, ms) = (Instant::now(), began.elapsed().as_secs_f64() * 1e3);
                asked.check(&answer)?;
                let degraded = answer.parameters.get("degraded").and_then(|p| p.parameter_choice.as_ref());
                taken.push(Answered { at, ms, degraded: matches!(degraded, Some(ParameterChoice::BoolParam(true))) });
            }
            Ok::<_, anyhow::Error>(taken)
        };
        self.runtime.block_on(async {
            let mut clients = tokio::task::JoinSet::new();
            (0..self.clients).for_each(|_| drop(clients.spawn(client(Arc::clone(asked)))));
            let taken: Result<Vec<Vec<Answered>>> = clients.join_all().await.into_iter().collect();
            Ok(taken?.into_iter().flatten().collect())
        })
    }
}

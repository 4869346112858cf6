//! What applications send is counted before it is whole: packed bodies, and
//! messages over gRPC, against the node's memory for requests.

use std::io::{Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use hyper::body::{Body as HttpBody, Frame};
use prost::Message;
use serde_json::Value;
use tierline_proto::oip::messages::grpc_inference_service_client::GrpcInferenceServiceClient;
use tierline_proto::oip::messages::model_infer_request::InferInputTensor;
use tierline_proto::oip::messages::{InferTensorContents, ModelInferRequest};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tonic::codec::CompressionEncoding;
use tonic::codegen::http;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower_service::Service;

use crate::harness::{Node, until};
use crate::serve::{Http, INFER, Served, ones};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

#[test]
fn packed_bodies_are_taken_and_given() {
    let folder = tempfile::tempdir().expect("a folder");
    let served = Served::mlp(folder.path());
    let mut request = ones(&served.input());
    request["inputs"][0]["shape"] = serde_json::json!([64, 784]);
    request["inputs"][0]["data"] = serde_json::json!(vec![1; 64 * 784]);
    let body = request.to_string().into_bytes();
    let mut http = served.connect();
    let (status, plain) = http.post(INFER, "", &body);
    assert_eq!(status, 200, "{plain}");
    for (encoding, packed) in [("gzip", gzip(&body)), ("deflate", deflate(&body)), ("identity", body.clone())] {
        let (status, answer) = http.post(INFER, &format!("Content-Encoding: {encoding}\r\n"), &packed);
        assert_eq!((status, &answer["outputs"]), (200, &plain["outputs"]), "{encoding}");
    }
    let head =
        format!("POST {INFER} HTTP/1.1\r\nHost: t\r\nAccept-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", body.len());
    http.write(&[head.as_bytes(), &body].concat());
    let (status, head, packed) = http.answer();
    assert!(status == 200 && head.contains("\r\ncontent-encoding: gzip\r\n"), "{head}");
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).expect("gzip");
    let answer: Value = serde_json::from_slice(&unpacked).expect("JSON");
    assert_eq!(answer["outputs"], plain["outputs"]);
    // Far more than a request may have, in half a megabyte.
    let bomb = gzip(&vec![b' '; 600 << 20]);
    assert!(bomb.len() < 1 << 20);
    let before = peak(served.child.id());
    let (status, answer) = http.post(INFER, "Content-Encoding: gzip\r\n", &bomb);
    assert_eq!(status, 413, "{answer}");
    assert!(peak(served.child.id()) - before < 64 << 20);
    assert_eq!(http.post(INFER, "", &body).0, 200);
    assert_eq!(held(&served.http), 0);
}

/// Bytes that requests may hold together at the node under test.
const REQUESTS_BYTES: u64 = 64 << 20;

/// Most memory that a process ever had, bytes.
fn peak(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
    line.split_whitespace().next().expect("a number").parse::<u64>().expect("a number") << 10
}

/// Bytes that requests hold now, as the node tells it.
fn held(http: &str) -> u64 {
    let mut http = Http::connect(http.trim_start_matches("http://"));
    http.write(b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n");
    let text = String::from_utf8(http.answer().2).expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix("tierline_request_memory_bytes "));
    line.expect("it is told").parse().expect("a number")
}

/// A body of pieces as they come; without more of them it stays open.
struct Pieces(mpsc::UnboundedReceiver<Bytes>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_recv(cx).map(|piece| Some(Ok(Frame::data(piece?))))
    }
}

/// A node with little memory for requests, and connections to it.
struct Little {
    node: Node,
    runtime: Runtime,
    _folder: tempfile::TempDir,
}

impl Little {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("cloud");
        std::fs::create_dir_all(&data).expect("a folder");
        std::fs::write(data.join("node.toml"), format!("requests_bytes = {REQUESTS_BYTES}\n")).expect("written");
        let places = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"];
        let node = Node::start(&data, &[&["--role", "cloud", "--listen", "127.0.0.1:0"], &places[..]].concat());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let little = Self { node, runtime: runtime.expect("threads"), _folder: folder };
        let file = little._folder.path().join("mlp.onnx");
        let file = file.to_str().expect("UTF-8");
        assert_eq!(crate::harness::tierline(["model", "zoo", "mlp", "--out", file]).code, 0);
        let ran = little.node.ask(&["model", "add", file, "--name", "mlp", "--shape", "input=1,784"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        little
    }

    fn connect(&self) -> Channel {
        let url = format!("http://{}", self.node.grpc.trim_start_matches("http://"));
        let endpoint = Endpoint::from_shared(url).expect("an address");
        self.runtime.block_on(endpoint.connect()).expect("it listens")
    }

    /// Begins a call with bytes as they are; how it ended comes later.
    fn call(&self, mut channel: Channel, encoding: Option<&str>, pieces: Vec<Bytes>, ends: bool) -> Call {
        let (send, receive) = mpsc::unbounded_channel();
        pieces.into_iter().for_each(|piece| send.send(piece).expect("it is there"));
        let uri = format!("http://{}/inference.GRPCInferenceService/ModelInfer", self.node.grpc);
        let mut request = http::Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
        if let Some(encoding) = encoding {
            request = request.header("grpc-encoding", encoding);
        }
        let request = request.body(tonic::body::Body::new(Pieces(receive))).expect("a request");
        let ended = self.runtime.spawn(async move {
            std::future::poll_fn(|cx| channel.poll_ready(cx)).await.expect("connected");
            let response = channel.call(request).await.expect("answered");
            if let Some(status) = Status::from_header_map(response.headers()) {
                return status.code();
            }
            // Behind a message the status is in the trailers.
            let mut body = Box::pin(response.into_body());
            loop {
                let frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await;
                let frame = frame.expect("trailers").expect("a frame");
                if let Ok(trailers) = frame.into_trailers() {
                    return Status::from_header_map(&trailers).expect("a status").code();
                }
            }
        });
        Call { _rest: (!ends).then_some(send), ended }
    }

    /// Sends bytes as they are, and gives the code of the answer.
    fn code(&self, encoding: Option<&str>, pieces: Vec<Bytes>) -> Code {
        let call = self.call(self.connect(), encoding, pieces, true);
        self.runtime.block_on(call.ended).expect("it ends")
    }

    #[track_caller]
    fn is_well(&self) {
        until("nothing is held any more", || (held(&self.node.http) == 0).then_some(()));
        assert_eq!(self.code(None, vec![framed(0, &good())]), Code::Ok);
    }
}

/// One under way.
struct Call {
    _rest: Option<mpsc::UnboundedSender<Bytes>>,
    ended: tokio::task::JoinHandle<Code>,
}

/// A request that is answered.
fn good() -> Vec<u8> {
    let floats: Vec<u8> = std::iter::repeat_n(1f32.to_le_bytes(), 784).flatten().collect();
    let input = InferInputTensor {
        name: "input".into(),
        datatype: "FP32".into(),
        shape: vec![1, 784],
        ..InferInputTensor::default()
    };
    let request = ModelInferRequest {
        model_name: "mlp".into(),
        inputs: vec![input],
        raw_input_contents: vec![floats.into()],
        ..ModelInferRequest::default()
    };
    request.encode_to_vec()
}

fn framed(packed: u8, message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("a message");
    Bytes::from([&[packed], &length.to_be_bytes()[..], message].concat())
}

#[test]
fn messages_over_grpc_are_held_before_they_are_whole() {
    let little = Little::start();
    little.is_well();
    let before = peak(little.node.id());
    // All but the last byte of 20 MiB, forty times: one fits into a caller's half.
    let length: u32 = 20 << 20;
    let pieces: Vec<Bytes> = std::iter::once(Bytes::from([&[0], &length.to_be_bytes()[..]].concat()))
        .chain(std::iter::repeat_n(Bytes::from(vec![0u8; 1 << 20]), 19))
        .chain([Bytes::from(vec![0u8; (1 << 20) - 1])])
        .collect();
    let calls: Vec<Call> = (0..40).map(|_| little.call(little.connect(), None, pieces.clone(), false)).collect();
    let refused = until("those beyond it are refused", || {
        let refused = calls.iter().filter(|call| call.ended.is_finished()).count();
        (refused >= 39).then_some(refused)
    });
    assert_eq!(refused, 39);
    assert_eq!(held(&little.node.http), u64::from(length));
    // A small one finds room meanwhile.
    assert_eq!(little.code(None, vec![framed(0, &good())]), Code::Ok);
    let mut open = 0;
    for call in calls {
        if call.ended.is_finished() {
            assert_eq!(little.runtime.block_on(call.ended).expect("it ends"), Code::ResourceExhausted);
        } else {
            // Whoever goes away holds nothing.
            call.ended.abort();
            open += 1;
        }
    }
    assert_eq!(open, 1);
    little.is_well();
    let grown = peak(little.node.id()) - before;
    assert!(grown < REQUESTS_BYTES + (64 << 20), "it grew by {} MiB", grown >> 20);
}

#[test]
fn what_a_message_says_of_itself_is_checked_before_it_is_decoded() {
    let little = Little::start();
    let before = peak(little.node.id());
    // An input without anything in it is two bytes, and hundreds once it is a value.
    let inputs = [0x2a, 0x00].repeat(8 << 20);
    // A text likewise.
    let texts = InferTensorContents { bytes_contents: vec![Bytes::new(); 4 << 20], ..InferTensorContents::default() };
    let input = InferInputTensor { contents: Some(texts), ..InferInputTensor::default() };
    let texts = ModelInferRequest { inputs: vec![input], ..ModelInferRequest::default() }.encode_to_vec();
    let zeros = vec![0u8; 100 << 20];
    let bomb = gzip(&zeros);
    let too_long = Bytes::from([&[0], &u32::MAX.to_be_bytes()[..]].concat());
    let cases: Vec<(&str, Option<&str>, Bytes, Code)> = vec![
        ("inputs of nothing", None, framed(0, &inputs), Code::ResourceExhausted),
        ("texts of nothing", None, framed(0, &texts), Code::ResourceExhausted),
        ("a bomb", Some("gzip"), framed(1, &bomb), Code::ResourceExhausted),
        ("a length of 4 GiB", None, too_long, Code::ResourceExhausted),
        ("half of it", None, framed(0, &good()).slice(..100), Code::InvalidArgument),
        ("half a prefix", None, Bytes::from_static(&[0, 0]), Code::InvalidArgument),
        ("no message", None, framed(0, b"\xff\xff\xff"), Code::InvalidArgument),
        ("packed, but how?", None, framed(1, &gzip(&good())), Code::InvalidArgument),
        ("packed otherwise", Some("gzip"), framed(1, &deflate(&good())), Code::InvalidArgument),
        ("a flag that is none", Some("gzip"), framed(2, &good()), Code::InvalidArgument),
        ("an unknown encoding", Some("snappy"), framed(1, &good()), Code::Unimplemented),
        ("gzip", Some("gzip"), framed(1, &gzip(&good())), Code::Ok),
        ("deflate", Some("deflate"), framed(1, &deflate(&good())), Code::Ok),
        ("gzip, and plain all the same", Some("gzip"), framed(0, &good()), Code::Ok),
        ("identity", Some("identity"), framed(0, &good()), Code::Ok),
    ];
    for (what, encoding, bytes, code) in cases {
        // However it is cut.
        let pieces = [bytes.len(), 1 << 14, 7].map(|size| match bytes.len() / size {
            0..10_000 => bytes.chunks(size).map(|piece| bytes.slice_ref(piece)).collect(),
            _ => vec![bytes.clone()],
        });
        for pieces in pieces {
            assert_eq!(little.code(encoding, pieces), code, "{what}");
            little.is_well();
        }
    }
    let grown = peak(little.node.id()) - before;
    assert!(grown < REQUESTS_BYTES + (64 << 20), "it grew by {} MiB", grown >> 20);
    // One that stops in its middle is not waited for, nor is its memory.
    let half = framed(0, &good()).slice(..100);
    let call = little.call(little.connect(), None, vec![half], false);
    let ended = async { tokio::time::timeout(Duration::from_secs(30), call.ended).await };
    assert_eq!(little.runtime.block_on(ended).expect("in time").expect("it ends"), Code::DeadlineExceeded);
    little.is_well();
}

#[test]
fn answers_over_grpc_are_packed_as_the_request_was() {
    let little = Little::start();
    let channel = little.connect();
    let request = ModelInferRequest::decode(&good()[..]).expect("a request");
    little.runtime.block_on(async {
        let mut plain = GrpcInferenceServiceClient::new(channel.clone()).accept_compressed(CompressionEncoding::Gzip);
        let mut packing = plain.clone().send_compressed(CompressionEncoding::Gzip);
        let answer = plain.model_infer(request.clone()).await.expect("answered");
        assert_eq!(answer.metadata().get("grpc-encoding"), None);
        let packed = packing.model_infer(request.clone()).await.expect("answered");
        assert_eq!(packed.metadata().get("grpc-encoding").expect("packed"), "gzip");
        assert_eq!(answer.into_inner().raw_output_contents, packed.into_inner().raw_output_contents);
        // A stream of many that holds no more than the last ones.
        let many = tokio_stream::iter(std::iter::repeat_n(request, 500));
        let mut answers = packing.model_stream_infer(many).await.expect("answered").into_inner();
        let mut count = 0;
        while let Some(answer) = answers.message().await.expect("answered") {
            assert!(answer.error_message.is_empty(), "{}", answer.error_message);
            count += 1;
        }
        assert_eq!(count, 500);
    });
    little.is_well();
}

//! A member with a certificate that sends what it likes: the node's memory stays
//! under its limit, and the next good request is answered.

use std::time::{Duration, SystemTime};

use tierline_daemon::net::transport::{self, Endpoint, Pair};
use tierline_graph::{DataType, Elements, Tensor};
use tierline_identity::Identity;
use tierline_proto::Encoded;
use tierline_proto::frame::{chunks, declare};
use tierline_proto::v1::{Code, FetchRequest, ProbeChunk, Reply, Route, RunChunk, RunHeader, TensorInfo, run_chunk};
use tierline_zoo::build::Builder;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::ReceiverStream;

use crate::harness::{Node, Site, outputs, until, write_npy};

/// Bytes that requests may hold together at the node under test.
const REQUESTS_BYTES: u64 = 64 << 20;

/// A cloud with a model that adds any number of values to themselves, and a
/// member's connection to it.
struct Attacked {
    runtime: Runtime,
    endpoint: Endpoint,
    pair: Pair,
    model: bytes::Bytes,
    site: Site,
}

impl Attacked {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("cloud");
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("node.toml"), format!("requests_bytes = {REQUESTS_BYTES}\n")).unwrap();
        let cloud = Node::start(&data, &["--role", "cloud", "--listen", "127.0.0.1:0"]);
        let site = Site { cloud, folder };
        let mut b = Builder::new("twice", 1);
        let x = b.input("x", DataType::F32, "n");
        let y = b.op("Add", &[&x, &x], &[]);
        b.output("y", &y, DataType::F32, "n");
        let file = site.folder.path().join("twice.onnx");
        b.build().save(&file).unwrap();
        let add = ["model", "add", file.to_str().unwrap(), "--name", "twice", "--shape", "x=3"];
        assert_eq!(site.cloud.ask(&add).code, 0);
        let shown = site.cloud.ask(&["model", "show", "twice", "--json"]).json();
        let digest: tierline_proto::Digest = shown["digest"].as_str().expect("a digest").parse().unwrap();
        let data = site.join("end", "mallory", &site.cloud.url);
        let identity = Identity::load(&data.join("identity"), SystemTime::now()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let endpoint = transport::endpoint(&site.cloud.url, transport::client_tls(&identity)).unwrap();
        let pair = runtime.block_on(Pair::connect(&endpoint)).unwrap();
        Self { runtime, endpoint, pair, model: digest.to_bytes(), site }
    }

    fn header(&self, tensors: Vec<TensorInfo>) -> RunHeader {
        RunHeader {
            request: fastrand::u128(..).to_be_bytes().to_vec().into(),
            model: self.model.clone(),
            route: Some(Route::default()),
            remaining_us: 20_000_000,
            tensors,
            ..RunHeader::default()
        }
    }

    /// Most memory the node ever had, bytes.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.site.cloud.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
    }

    /// What the most grew by since `before`, bytes: nothing where it reads as less, for the system counts a process's
    /// pages per processor and adds them up roughly.
    fn grown(&self, before: u64) -> u64 {
        self.peak().saturating_sub(before)
    }

    #[track_caller]
    fn is_well(&self) {
        let npy = self.site.folder.path().join("x.npy");
        write_npy(&npy, vec![2], vec![1.0, 2.0]);
        let input = format!("x=@{}", npy.display());
        let ran = self.site.cloud.ask(&["infer", "--model", "twice", "--input", &input, "--json"]);
        assert_eq!(outputs(&ran.json())[0].1, [2.0, 4.0]);
    }
}

/// Sends a request; its answer, and the tensors' stream kept open.
async fn run(pair: &Pair, header: RunHeader, tensors: Vec<Encoded>) -> Result<Reply, tonic::Status> {
    let (send, receive) = tokio::sync::mpsc::channel(4);
    let feeder = tokio::spawn(async move {
        let bodies = std::iter::once(run_chunk::Body::Header(header))
            .chain(chunks(tensors, 1 << 18).map(run_chunk::Body::Tensor));
        for body in bodies {
            if send.send(RunChunk { body: Some(body) }).await.is_err() {
                return;
            }
        }
    });
    let mut stream = pair.infer().run(ReceiverStream::new(receive)).await?.into_inner();
    let first = stream.message().await?;
    feeder.abort();
    match first {
        Some(RunChunk { body: Some(run_chunk::Body::Reply(reply)) }) => Ok(reply),
        other => panic!("{other:?}"),
    }
}

fn code(result: Result<Reply, tonic::Status>) -> Code {
    match result {
        Ok(reply) => reply.failure.map_or(Code::Ok, |f| f.code()),
        Err(status) => tierline_proto::Failure::from_status(&status).code(),
    }
}

#[test]
fn a_little_that_decodes_to_much_is_not_decoded() {
    let attacked = Attacked::start();
    let before = attacked.peak();
    // 512 MiB of zeros, of the right type and of any length; and of another type.
    let bomb = |elements: Elements, shape: usize| {
        let mut data = Vec::new();
        let tensor = Tensor::new([shape], elements).unwrap();
        tierline_codec::by_name("planes").unwrap().encode(&tensor, &mut data).unwrap();
        assert!(data.len() < 64 << 10, "{}", data.len());
        vec![Encoded { name: "x".into(), codec: "planes".into(), data: data.into() }]
    };
    let floats = bomb(Elements::F32(vec![0.0; 128 << 20]), 128 << 20);
    let bytes = bomb(Elements::U8(vec![0; 512 << 20]), 512 << 20);
    let codes = attacked.runtime.block_on(async {
        let mut codes = Vec::new();
        for _ in 0..4 {
            for tensors in [&floats, &bytes] {
                codes.push(code(run(&attacked.pair, attacked.header(declare(tensors)), tensors.clone()).await));
            }
        }
        codes
    });
    assert!(codes.chunks(2).all(|c| c == [Code::TooLarge, Code::InvalidInput]), "{codes:?}");
    let grown = attacked.grown(before);
    assert!(grown < 100 << 20, "{grown} bytes");
    attacked.is_well();
}

#[test]
fn requests_under_way_hold_no_more_than_they_may() {
    let attacked = Attacked::start();
    let before = attacked.peak();
    // 20 MiB each, 32 at once, all but the last chunk sent: they stay.
    let data = bytes::Bytes::from(vec![0u8; 20 << 20]);
    let tensors = vec![Encoded { name: "x".into(), codec: "raw".into(), data }];
    let declared = vec![TensorInfo { name: "x".into(), codec: "raw".into(), length: (20 << 20) + 1 }];
    let codes = attacked.runtime.block_on(async {
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..32 {
            let (pair, header, tensors) = (attacked.pair.clone(), attacked.header(declared.clone()), tensors.clone());
            let header = RunHeader { remaining_us: 5_000_000, ..header };
            calls.spawn(async move { code(run(&pair, header, tensors).await) });
        }
        calls.join_all().await
    });
    let of = |code| codes.iter().filter(|c| **c == code).count();
    // One fits into a caller's share.
    assert!(of(Code::Overloaded) >= 31 - 3, "{codes:?}");
    assert_eq!(of(Code::Ok), 0, "{codes:?}");
    // One that could never fit is told so.
    let huge = vec![TensorInfo { name: "x".into(), codec: "raw".into(), length: 512 << 20 }];
    let huge = attacked.runtime.block_on(run(&attacked.pair, attacked.header(huge), Vec::new()));
    assert_eq!(code(huge), Code::TooLarge);
    let grown = attacked.grown(before);
    assert!(grown < 2 * REQUESTS_BYTES, "{grown} bytes");
    attacked.is_well();
}

#[test]
fn artefacts_that_nobody_reads_keep_little() {
    let attacked = Attacked::start();
    let mut b = Builder::new("large", 1);
    let x = b.input("x", DataType::F32, "1 1024");
    let w = b.weights(&[1_024, 2_048], 0.1);
    let y = b.op("MatMul", &[&x, &w], &[]);
    b.output("y", &y, DataType::F32, "1 2048");
    let file = attacked.site.folder.path().join("large.onnx");
    b.build().save(&file).unwrap();
    assert_eq!(attacked.site.cloud.ask(&["model", "add", file.to_str().unwrap(), "--name", "large"]).code, 0);
    let shown = attacked.site.cloud.ask(&["model", "show", "large", "--json"]).json();
    let digest: tierline_proto::Digest = shown["digest"].as_str().expect("a digest").parse().unwrap();
    until("it is measured", || {
        let models = attacked.site.cloud.ask(&["model", "ls", "--json"]).json();
        models["models"].as_array()?.iter().all(|model| model["profiled"] == true).then_some(())
    });
    let before = attacked.peak();
    let unread = attacked.runtime.block_on(async {
        let mut unread = Vec::new();
        for _ in 0..4 {
            let pair = Pair::connect(&attacked.endpoint).await.unwrap();
            for _ in 0..60 {
                let (mut bulk, digest) = (pair.bulk(), digest.to_bytes());
                let request = FetchRequest { digest, offset: 0, length: 0 };
                unread.push(tokio::spawn(async move { bulk.fetch(request).await }));
            }
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        unread
    });
    let grown = attacked.grown(before);
    assert!(grown < 48 << 20, "{grown} bytes");
    // Others are served meanwhile.
    let other = attacked.site.join("end", "end-1", &attacked.site.cloud.url);
    let other = Node::start(&other, &["--parent", &attacked.site.cloud.url]);
    until("another one has fetched it", || {
        let models = other.ask(&["model", "ls", "--json"]).json();
        let ready = |model: &serde_json::Value| model["name"] == "large" && model["state"] == "ready";
        models["models"].as_array()?.iter().any(ready).then_some(())
    });
    drop(unread);
    attacked.is_well();
}

#[test]
fn probes_that_nobody_reads_keep_little() {
    let attacked = Attacked::start();
    let before = attacked.peak();
    attacked.runtime.block_on(async {
        let mut unread = Vec::new();
        for _ in 0..60 {
            let ask = ProbeChunk { want_bytes: 4 << 20, ..ProbeChunk::default() };
            let (send, receive) = tokio::sync::mpsc::channel(1);
            send.send(ask).await.unwrap();
            drop(send);
            let mut bulk = attacked.pair.bulk();
            let asked = tokio::spawn(async move { bulk.probe(ReceiverStream::new(receive)).await });
            unread.push(tokio::time::timeout(Duration::from_millis(200), asked).await);
        }
        let refused = unread.iter().filter(|r| matches!(r, Ok(Ok(Err(_))))).count();
        assert!(refused > 0, "so many at once aren't taken");
    });
    let grown = attacked.grown(before);
    assert!(grown < 100 << 20, "{grown} bytes");
    attacked.is_well();
}

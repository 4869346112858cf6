//! One limit for all that a node keeps in memory: many models through little of it.

use std::collections::BTreeMap;

use tierline_daemon::duties::artefacts::upload::UPLOADS_MAX;
use tierline_graph::{DataType, Elements, Tensor};
use tierline_proto::limits::CHUNK_BYTES;
use tierline_proto::v1::local_client::LocalClient;
use tierline_proto::v1::model_add_chunk::Body;
use tierline_proto::v1::{Code, Failure, ModelAddChunk, ModelAddHeader, ModelFile};
use tierline_zoo::build::Builder;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::harness::{Node, Site, outputs, until, write_npy};

/// Room for four of the models' sessions or so.
const MEMORY_BYTES: u64 = 1_200_000;

/// Rows and columns of the models' weights: 256 KiB of them.
const WIDTH: usize = 256;

const MODELS: usize = 10;

/// Numbers of a node without labels, and those with them by what stands in braces.
fn numbers(node: &Node) -> BTreeMap<String, f64> {
    let text = node.scrape();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.rsplit_once(' ')).map(|(name, n)| (name.to_owned(), n.parse().unwrap())).collect()
}

/// Bytes kept, by kind.
fn kept(numbers: &BTreeMap<String, f64>) -> [f64; 3] {
    ["models", "sessions", "plans"].map(|kind| numbers[&format!("tierline_memory_bytes{{kind=\"{kind}\"}}")])
}

/// Memory of the process that isn't a file's, bytes.
fn resident(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// `y = factor * x`, by a large weight, for any number of rows.
fn add(site: &Site, factor: usize) {
    let mut b = Builder::new("scaled", 1);
    let x = b.input("x", DataType::F32, "n 256");
    let diagonal = (0..WIDTH * WIDTH).map(|i| if i % (WIDTH + 1) == 0 { factor as f32 } else { 0.0 }).collect();
    let w = b.constant(&Tensor::new([WIDTH, WIDTH], Elements::F32(diagonal)).unwrap());
    let h = b.op("MatMul", &[&x, &w], &[]);
    let y = b.op("Identity", &[&h], &[]);
    b.output("y", &y, DataType::F32, "n 256");
    let file = site.folder.path().join(format!("{factor}.onnx"));
    b.build().save(&file).unwrap();
    let name = format!("times-{factor}");
    let ran = site.cloud.ask(&["model", "add", file.to_str().unwrap(), "--name", &name, "--shape", "x=1,256"]);
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn many_models_are_answered_through_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let memory = MEMORY_BYTES.to_string();
    let args = ["--role", "cloud", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--memory", &memory];
    let cloud = Node::start(&folder.path().join("cloud"), &args);
    let site = Site { cloud, folder };
    for factor in 1..=MODELS {
        add(&site, factor);
    }
    let npy = site.folder.path().join("x.npy");
    write_npy(&npy, vec![1, WIDTH], (0..WIDTH).map(|i| i as f32).collect());
    let input = format!("x=@{}", npy.display());
    let ask = |factor: usize| {
        let ran = site.cloud.ask(&["infer", "--model", &format!("times-{factor}"), "--input", &input, "--json"]);
        let wanted: Vec<f64> = (0..WIDTH).map(|i| (i * factor) as f64).collect();
        assert_eq!(outputs(&ran.json())[0].1, wanted, "model {factor}");
        let numbers = numbers(&site.cloud);
        let [models, sessions, plans] = kept(&numbers);
        assert_eq!(numbers["tierline_memory_max_bytes"], MEMORY_BYTES as f64);
        assert!(sessions + plans <= MEMORY_BYTES as f64, "{sessions} + {plans}");
        // One that is being loaded and one that is being measured may come on top.
        assert!(models + sessions + plans <= (MEMORY_BYTES + 2 * (WIDTH * WIDTH * 5) as u64) as f64);
        numbers
    };
    let first: Vec<_> = (1..=MODELS).map(ask).collect();
    let loaded = |n: &BTreeMap<String, f64>| n["tierline_sessions_loaded_total"];
    assert!(loaded(&first[MODELS - 1]) >= MODELS as f64);
    until("all are measured", || {
        let planned = (1..=MODELS).all(|n| site.cloud.ask(&["plan", &format!("times-{n}"), "--json"]).code == 0);
        planned.then_some(())
    });
    // Sessions and plans don't push each other out where nobody asks for them.
    let mut before = -1.0;
    until("rest", || {
        std::thread::sleep(std::time::Duration::from_secs(1));
        let now = loaded(&numbers(&site.cloud));
        (std::mem::replace(&mut before, now) == now).then_some(())
    });
    let settled = resident(&site.cloud);
    for _ in 0..4 {
        (1..=MODELS).for_each(|factor| drop(ask(factor)));
    }
    let last = ask(1);
    assert!(loaded(&last) >= before + (4 * (MODELS - 5)) as f64, "sessions went and came again");
    // Had nothing gone, it would be 40 sessions more.
    assert!(resident(&site.cloud) < settled + (12 << 20), "{} after {settled}", resident(&site.cloud));

    let list = site.cloud.ask(&["nodes", "--json"]).json();
    let (used, max) = (list["nodes"][0]["memory_used_bytes"].as_u64(), list["nodes"][0]["memory_max_bytes"].as_u64());
    assert!(used.is_some_and(|used| used > 0 && used <= MEMORY_BYTES) && max == Some(MEMORY_BYTES), "{list}");
    assert!(site.cloud.ask(&["nodes"]).stdout.contains("1.2 MB"), "people see it, too");
    // The one limit holds for what alone exceeds it as well.
    let mut b = Builder::new("large", 1);
    let x = b.input("x", DataType::F32, "1 1024");
    let w = b.constant(&Tensor::new([1024, 1024], Elements::F32(vec![0.5; 1 << 20])).unwrap());
    let y = b.op("MatMul", &[&x, &w], &[]);
    b.output("y", &y, DataType::F32, "1 1024");
    let file = site.folder.path().join("large.onnx");
    b.build().save(&file).unwrap();
    assert_eq!(site.cloud.ask(&["model", "add", file.to_str().unwrap(), "--name", "large"]).code, 0);
    write_npy(&npy, vec![1, 1024], vec![1.0; 1024]);
    let ran = site.cloud.ask(&["infer", "--model", "large", "--input", &input]);
    assert!(ran.code != 0 && ran.stderr.contains("this node keeps 1200000 bytes"), "{ran:?}");
    ask_again(&site, &npy, &input);
}

/// What was refused took nobody's place.
fn ask_again(site: &Site, npy: &std::path::Path, input: &str) {
    write_npy(npy, vec![1, WIDTH], vec![1.0; WIDTH]);
    let ran = site.cloud.ask(&["infer", "--model", "times-3", "--input", input, "--json"]);
    assert_eq!(outputs(&ran.json())[0].1, vec![3.0; WIDTH]);
}

/// The beginning of an upload of a model: the stream stays open while the
/// sender is held.
async fn upload(node: &Node, declared: u64, sent: usize) -> (Sender<ModelAddChunk>, JoinHandle<Code>) {
    let socket = format!("unix://{}", node.data.join("tierline.sock").display());
    let channel = Endpoint::from_shared(socket).unwrap().connect().await.unwrap();
    let (send, receive) = tokio::sync::mpsc::channel(4);
    let call = tokio::spawn(async move {
        let ran = LocalClient::new(channel).model_add(ReceiverStream::new(receive)).await;
        ran.map_or_else(|status| Failure::from_status(&status).code(), |_| Code::Ok)
    });
    let file = ModelFile { name: "model.onnx".into(), length: declared };
    let header = ModelAddHeader { name: "uploaded".into(), files: vec![file], ..ModelAddHeader::default() };
    let bodies =
        std::iter::once(Body::Header(header)).chain((0..sent).map(|_| Body::Data(vec![0; CHUNK_BYTES].into())));
    for body in bodies {
        if send.send(ModelAddChunk { body: Some(body) }).await.is_err() {
            break;
        }
    }
    (send, call)
}

#[test]
fn what_is_uploaded_takes_no_memory_until_it_is_whole() {
    let site = Site::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let chunks = (64 << 20) / CHUNK_BYTES;
    let before = resident(&site.cloud);
    runtime.block_on(async {
        let mut open = Vec::new();
        for _ in 0..UPLOADS_MAX {
            open.push(upload(&site.cloud, 256 << 20, chunks).await);
        }
        // What doesn't get a place is told so before it sends anything.
        let (_held, refused) = upload(&site.cloud, 1, 0).await;
        assert_eq!(refused.await.unwrap(), Code::Overloaded);
        let uploading = resident(&site.cloud);
        assert!(uploading < before + (48 << 20), "{uploading} bytes after {before}: 256 MB were sent");
        // More than was announced, and less.
        let (send, call) = open.pop().unwrap();
        for _ in 0..4 * chunks {
            if send.send(ModelAddChunk { body: Some(Body::Data(vec![0; CHUNK_BYTES].into())) }).await.is_err() {
                break;
            }
        }
        assert_eq!(call.await.unwrap(), Code::Protocol);
        let (send, call) = open.pop().unwrap();
        drop(send);
        assert_eq!(call.await.unwrap(), Code::Protocol);
        // More than the disk has, more than is ever taken, and nothing at all.
        for (declared, code) in [(u64::MAX, Code::TooLarge), (0, Code::InvalidInput)] {
            let (send, call) = upload(&site.cloud, declared, 0).await;
            drop(send);
            assert_eq!(call.await.unwrap(), code, "{declared}");
        }
    });
    // Those that went have left nothing behind.
    let partial = site.cloud.data.join("artefacts/partial");
    assert_eq!(std::fs::read_dir(partial).unwrap().count(), 0);
    let model = site.add_model();
    assert_eq!(site.cloud.ask(&["infer", "--model", "digits", "--input", &model.input]).code, 0);
}

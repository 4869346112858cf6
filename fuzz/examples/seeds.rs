//! Writes what a corpus starts from: valid inputs of the targets whose
//! formats coverage alone doesn't find.
//!
//! `cargo run --manifest-path fuzz/Cargo.toml --example seeds`; those of
//! `onnx` and `step` are the engine's models for tests.

#[path = "../../crates/train/tests/it/samples.rs"]
#[allow(dead_code)]
mod samples;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use image::ImageFormat;
use parquet::basic::Compression;
use prost::Message;
use tierline_codec::update::Pipeline;
use tierline_codec::{codecs, npy};
use tierline_federate::{Channel, Layout, Part, wire};
use tierline_graph::{Elements, Tensor};
use tierline_proto::oip::messages::model_infer_request::InferInputTensor;
use tierline_proto::oip::messages::{InferTensorContents, ModelInferRequest};
use tierline_update::delta::{self, Options};

fn main() {
    let npy: Vec<Vec<u8>> = tensors().iter().filter_map(|tensor| npy::write(tensor).ok()).collect();
    keep("npy", npy);
    let encoded = codecs().iter().enumerate().flat_map(|(choice, codec)| {
        tensors().into_iter().filter_map(move |tensor| {
            let mut bytes = vec![choice as u8];
            codec.encode(&tensor, &mut bytes).ok().map(|()| bytes)
        })
    });
    keep("codec", encoded.collect());
    keep("update", updates());
    keep("contribution", contributions());
    keep("data", data());
    keep("delta", deltas());
    keep("oip", requests());
}

/// One file for each, named by its place.
fn keep(target: &str, inputs: Vec<Vec<u8>>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    std::fs::create_dir_all(&folder).expect("the folder is the project's");
    for (at, input) in inputs.iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{at:02}")), input).expect("the disk has room");
    }
    println!("{target}: {} inputs", inputs.len());
}

fn tensors() -> Vec<Tensor> {
    let numbers: Vec<f32> = (0..24).map(|i| (i as f32 - 12.0) * 0.37).collect();
    let tensor = |shape: &[usize], elements| Tensor::new(shape, elements).expect("as many as the shape says");
    vec![
        tensor(&[2, 3, 4], Elements::F32(numbers.clone())),
        tensor(&[24], Elements::F64(numbers.iter().map(|x| f64::from(*x)).collect())),
        tensor(&[], Elements::I64(vec![-7])),
        tensor(&[0, 5], Elements::F32(Vec::new())),
        tensor(&[4, 6], Elements::U8((0..24).collect())),
        tensor(&[3], Elements::I32(vec![i32::MIN, 0, 5])),
        tensor(&[2], Elements::Bool(vec![1, 0])),
    ]
}

/// Requests of applications, in each form.
fn requests() -> Vec<Vec<u8>> {
    let json = |choice: u8, text: &str| [&[choice], text.as_bytes()].concat();
    let behind = r#"{"id":"a","inputs":[{"name":"x","shape":[2,1],"datatype":"FP16","parameters":{"binary_data_size":4}}],"outputs":[{"name":"y","parameters":{"binary_data":false}}]}"#;
    let length = (behind.len() as u16).to_le_bytes();
    let input = |datatype: &str, contents| InferInputTensor {
        name: datatype.to_lowercase(),
        datatype: datatype.to_owned(),
        shape: vec![2],
        contents,
        ..InferInputTensor::default()
    };
    let ints = InferTensorContents { int_contents: vec![-1, 2], ..InferTensorContents::default() };
    let texts = InferTensorContents { bytes_contents: vec!["a".into(), "bc".into()], ..InferTensorContents::default() };
    let typed = ModelInferRequest {
        model_name: "m".to_owned(),
        inputs: vec![input("INT8", Some(ints)), input("BYTES", Some(texts))],
        ..ModelInferRequest::default()
    };
    let raw = ModelInferRequest {
        inputs: vec![input("BF16", None), input("BOOL", None)],
        raw_input_contents: vec![vec![1, 2, 3, 4].into(), vec![0, 1].into()],
        ..ModelInferRequest::default()
    };
    vec![
        json(
            0,
            r#"{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2.5],[-3e2,0]]}],"parameters":{"tier":"here"}}"#,
        ),
        json(0, r#"{"inputs":[{"data":["a","\u00fc"],"name":"x","shape":[2],"datatype":"BYTES"}]}"#),
        json(
            0,
            r#"{"inputs":[{"name":"x","shape":[1],"datatype":"BOOL","data":[true]},{"name":"n","shape":[1],"datatype":"UINT64","data":[18446744073709551615]}]}"#,
        ),
        [&[1], &length[..], behind.as_bytes(), &[0, 60, 0, 61]].concat(),
        [vec![2], typed.encode_to_vec()].concat(),
        [vec![2], raw.encode_to_vec()].concat(),
    ]
}

/// Of each shape that the target knows, through each kind of stage.
fn updates() -> Vec<Vec<u8>> {
    let shapes: [Vec<Vec<usize>>; 3] = [vec![vec![300]], vec![vec![8, 4, 3], vec![8]], vec![vec![0, 7], vec![40, 30]]];
    let stages: [&[&str]; 7] =
        [&[], &["zstd"], &["topk:0.1"], &["topk:0.1", "int8", "zstd"], &["fp16"], &["sign"], &["powersgd:2"]];
    let mut inputs = Vec::new();
    for (choice, shapes) in (2u8..).zip(&shapes) {
        let count: usize = shapes.iter().map(|shape| shape.iter().product::<usize>()).sum();
        let vector: Vec<f32> = (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        for stages in stages {
            let mut bytes = vec![choice];
            let pipeline = Pipeline::parse(stages).expect("stages that there are");
            if pipeline.encode(&vector, shapes, 0, &mut bytes).is_ok() {
                inputs.push(bytes);
            }
        }
    }
    inputs
}

/// What the target's layout holds, in channels of every kind.
fn contributions() -> Vec<Vec<u8>> {
    let part = |name: &str, shape: &[usize]| Part { name: name.to_owned(), shape: shape.to_vec() };
    let layout = Layout {
        parameters: vec![part("w", &[8, 4]), part("b", &[8])],
        statistics: vec![part("mean", &[3])],
        logits: vec![part("p", &[6, 2])],
        features: vec![part("f", &[6, 5])],
        labels: vec![part("l", &[6])],
        ..Layout::default()
    };
    let vectors = |channels: &[Channel]| {
        let vector = |channel: &Channel| (*channel, vec![0.25; layout.len(*channel)]);
        channels.iter().map(vector).collect::<BTreeMap<_, _>>()
    };
    let said = [Channel::Model, Channel::Statistics, Channel::Logits, Channel::Features, Channel::Labels];
    let mut inputs: Vec<Vec<u8>> =
        said.chunks(2).map(|channels| wire::encode(&vectors(channels), &layout).expect("finite numbers")).collect();
    let mut named = Vec::new();
    wire::encode_named(&BTreeMap::from([("w".to_owned(), vec![1.0; 4])]), &mut named);
    inputs.push(named);
    inputs
}

/// Of each source that the target knows: which, where the first of two files
/// ends, the files.
fn data() -> Vec<Vec<u8>> {
    let images = samples::idx(8, &[6, 4, 5], &(0..120).collect::<Vec<u8>>());
    let classes = samples::idx(8, &[6], &[0, 1, 2, 0, 1, 2]);
    let array = npy::write(&samples::counting(&[6, 3, 4, 4])).expect("a tensor of bytes");
    let truth = npy::write(&samples::labels(&[0, 1, 2, 0, 1, 2])).expect("a tensor of labels");
    let archive = samples::npz(&[("x", samples::counting(&[6, 3, 3])), ("y", samples::labels(&[0, 1, 0, 1, 2, 2]))]);
    let rows: Vec<_> = (0..6).map(|i| (f64::from(i), [0.5, 1.0], i64::from(i % 3))).collect();
    let picture = |format, of: u8| samples::picture(format, 5, 4, [of, 0, 200]);
    let hub: Vec<_> =
        (0..4).map(|i| (picture(ImageFormat::Png, i * 40), Some(["dark", "light"][i as usize % 2]))).collect();
    let (png, jpeg) = (picture(ImageFormat::Png, 9), picture(ImageFormat::Jpeg, 90));
    let table = b"user,size,label\nann,1,cat\nbob,3,dog\nann,6e0,cat\n".to_vec();
    let tabbed = b"cat\tann\t1\ndog\tbob\t2.5\n".to_vec();
    let packings = [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(Default::default())];
    let one = |choice: u8, file: &[u8]| [&[choice, 255], file].concat();
    let two = |choice: u8, first: &[u8], second: &[u8]| {
        let whole = first.len() + second.len();
        // The target's own arithmetic must find the end of the first again.
        let share = (0..=255u8).find(|share| whole * usize::from(*share) / 255 == first.len());
        // Bytes behind a file's end make the lengths fit.
        share.map(|share| [&[choice, share], first, second].concat())
    };
    let padded = |choice: u8, first: &[u8], second: &[u8]| {
        (0..300).find_map(|more| two(choice, first, &[second, &vec![0; more]].concat()))
    };
    let mut inputs: Vec<Vec<u8>> = vec![one(2, &archive), one(3, &archive), one(4, &table), one(5, &tabbed)];
    inputs.extend(packings.map(|packing| one(8, &samples::parquet(&rows, packing))));
    inputs.push(one(9, &samples::parquet_pictures(&hub)));
    let pairs = [(0, &images, &classes), (1, &array, &truth), (6, &png, &jpeg), (7, &jpeg, &png)];
    inputs.extend(pairs.into_iter().filter_map(|(choice, first, second)| padded(choice, first, second)));
    inputs
}

/// Of each way to code: where the base ends, the base, the delta.
fn deltas() -> Vec<Vec<u8>> {
    let floats = |by: f32| -> Vec<u8> { (0..60).flat_map(|i| ((i as f32).sin() * by).to_le_bytes()).collect() };
    let some = {
        let mut bytes = floats(1.0);
        bytes[100] ^= 9;
        bytes
    };
    let text = b"a text that is said again, a text that is said again".to_vec();
    let pairs = [(floats(1.0), floats(1.01)), (floats(1.0), some), (text.clone(), text[9..].to_vec()), (Vec::new(), text)];
    let delta = |(old, new): &(Vec<u8>, Vec<u8>)| {
        let mut made = Cursor::new(Vec::new());
        delta::make(&mut Cursor::new(old), &mut Cursor::new(new), &Options::default(), &mut made, &mut std::io::sink())
            .expect("memory doesn't fail");
        let whole = old.len() + made.get_ref().len();
        // The target's own arithmetic must find the end of the base again.
        (0..2_000).find_map(|more| {
            let share = (0..=255u8).find(|share| (whole + more) * usize::from(*share) / 255 == old.len())?;
            let more = vec![0; more];
            Some([&[share], &old[..], made.get_ref(), &more].concat())
        })
    };
    pairs.iter().filter_map(delta).collect()
}

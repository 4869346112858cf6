//! Other people's models: none of them keeps a node from answering the next
//! request, whatever it does with time and memory.

use std::path::{Path, PathBuf};

use tierline_graph::{DataType, Elements, Model, Tensor};
use tierline_zoo::build::{Attribute, Builder, Value};

use crate::harness::{Node, Site, until};

/// A cloud alone, on an engine.
struct Cloud {
    node: Node,
    folder: tempfile::TempDir,
}

/// What the configuration says of limits: small, so that tests meet them soon.
const LIMITS: &str = "profile_seconds = 3\nrun_bytes = 268435456\n";

impl Cloud {
    fn start(engine: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("cloud");
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("node.toml"), format!("engine = \"{engine}\"\n{LIMITS}")).unwrap();
        let node = Node::start(&data, &["--role", "cloud", "--listen", "127.0.0.1:0", "--engine", engine]);
        Self { node, folder }
    }

    fn add(&self, name: &str, model: &Model, more: &[&str]) -> crate::harness::Ran {
        let file = self.folder.path().join(format!("{name}.onnx"));
        model.save(&file).unwrap();
        self.node.ask(&[&["model", "add", file.to_str().unwrap(), "--name", name], more].concat())
    }

    fn infer(&self, name: &str, inputs: &[String], deadline: &str) -> crate::harness::Ran {
        let mut args = vec!["infer", "--model", name, "--deadline", deadline, "--json"];
        for input in inputs {
            args.extend(["--input", input]);
        }
        self.node.ask(&args)
    }

    /// A good model that answers, now as before.
    #[track_caller]
    fn is_well(&self) {
        let ran = self.infer("good", &[input(self.folder.path(), "x", f32s(&[4], &[1.0, 2.0, 3.0, 4.0]))], "5s");
        let y = crate::harness::outputs(&ran.json());
        assert_eq!(y[0].1, [2.0, 4.0, 6.0, 8.0]);
    }

    fn with_good_model(self) -> Self {
        let mut b = Builder::new("good", 1);
        let x = b.input("x", DataType::F32, "4");
        let y = b.op("Add", &[&x, &x], &[]);
        b.output("y", &y, DataType::F32, "4");
        assert_eq!(self.add("good", &b.build(), &[]).code, 0);
        self
    }
}

/// The engines that are set up here.
fn engines() -> Vec<&'static str> {
    let onnxruntime = std::env::var_os("ORT_DYLIB_PATH").map(|_| "onnxruntime");
    std::iter::once("rten").chain(onnxruntime).collect()
}

fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(shape, Elements::F32(values.to_vec())).unwrap()
}

fn i64s(values: &[i64]) -> Tensor {
    Tensor::new([values.len()], Elements::I64(values.to_vec())).unwrap()
}

/// A tensor as `--input` takes it.
fn input(folder: &Path, name: &str, tensor: Tensor) -> String {
    let path: PathBuf = folder.join(format!("{name}-{}.npy", fastrand::u32(..)));
    std::fs::write(&path, tierline_codec::npy::write(&tensor).unwrap()).unwrap();
    format!("{name}=@{}", path.display())
}

/// A loop that doubles its value `rounds` times; from an input where there is
/// no number.
fn doubling(rounds: Option<i64>) -> Model {
    let body = {
        let mut b = Builder::new("body", 1);
        b.input("i", DataType::I64, "");
        let (go, v) = (b.input("go", DataType::Bool, ""), b.input("v", DataType::F32, "1"));
        let (on, twice) = (b.op("Identity", &[&go], &[]), b.op("Add", &[&v, &v], &[]));
        b.output("on", &on, DataType::Bool, "");
        b.output("twice", &twice, DataType::F32, "1");
        b.build().graph().clone()
    };
    let mut b = Builder::new("doubling", 1);
    let x = b.input("x", DataType::F32, "1");
    let count = match rounds {
        Some(n) => b.constant(&Tensor::new([], Elements::I64(vec![n])).unwrap()),
        None => b.input("n", DataType::I64, ""),
    };
    let go = b.constant(&Tensor::new([], Elements::Bool(vec![1])).unwrap());
    let y = b.op("Loop", &[&count, &go, &x], &[("body", Attribute::Graph(body))]);
    b.output("y", &y, DataType::F32, "1");
    b.build()
}

#[test]
fn an_endless_loop_keeps_nobody_waiting() {
    for engine in engines() {
        let cloud = Cloud::start(engine).with_good_model();
        // As many rounds as the engine can count.
        let rounds = if engine == "rten" { i64::from(i32::MAX) } else { 1 << 40 };
        assert_eq!(cloud.add("endless", &doubling(Some(rounds)), &[]).code, 0);
        let x = || input(cloud.folder.path(), "x", f32s(&[1], &[0.0]));
        // While it is measured, and when that was given up.
        for _ in 0..2 {
            let ran = cloud.infer("endless", &[x()], "1s");
            assert!(ran.code != 0, "{engine}: {ran:?}");
            cloud.is_well();
        }
        until("the model is given up", || {
            let ran = cloud.infer("endless", &[x()], "2s");
            ran.stderr.contains("can't be run here").then_some(())
        });
        cloud.is_well();
    }
}

#[test]
fn a_loop_that_ends_gives_its_values_on_every_engine() {
    for engine in engines() {
        let cloud = Cloud::start(engine).with_good_model();
        assert_eq!(cloud.add("doubling", &doubling(None), &[]).code, 0);
        let folder = cloud.folder.path();
        let ask = |n: i64, deadline| {
            let count = Tensor::new([], Elements::I64(vec![n])).unwrap();
            cloud.infer("doubling", &[input(folder, "x", f32s(&[1], &[3.0])), input(folder, "n", count)], deadline)
        };
        let answer = |n| crate::harness::outputs(&ask(n, "20s").json())[0].1.clone();
        assert_eq!(answer(0), [3.0]);
        assert_eq!(answer(5), [96.0]);
        // As many rounds as the caller says; as long as the caller waits.
        assert!(ask(2_000_000_000, "1s").code != 0);
        cloud.is_well();
        assert_eq!(answer(5), [96.0]);
    }
}

/// `op` makes a tensor whose size follows from the input `n`.
fn sized(op: &str) -> Model {
    let mut b = Builder::new(op, 1);
    let n = b.input("n", DataType::I64, "1");
    let one = b.constant(&f32s(&[1], &[1.0]));
    let (zero, step) =
        (Tensor::new([], Elements::I64(vec![0])).unwrap(), Tensor::new([], Elements::I64(vec![1])).unwrap());
    let none: &[(&str, Attribute)] = &[];
    let made: Value = match op {
        "ConstantOfShape" => b.op("ConstantOfShape", &[&n], none),
        "Expand" | "Tile" => b.op(op, &[&one, &n], none),
        "Range" => {
            let (zero, step) = (b.constant(&zero), b.constant(&step));
            let axes = b.ints(&[0]);
            let limit = b.op("Squeeze", &[&n, &axes], none);
            let whole = b.op("Range", &[&zero, &limit, &step], none);
            b.op("Cast", &[&whole], &[("to", Attribute::Int(1))])
        }
        "Resize" => {
            let picture = b.constant(&f32s(&[1, 1, 1, 1], &[1.0]));
            let ones = b.ints(&[1, 1, 1]);
            let sizes = b.op("Concat", &[&ones, &n], &[("axis", Attribute::Int(0))]);
            let mode = [("mode", Attribute::Text("nearest".into()))];
            b.op("Resize", &[&picture, &Builder::absent(), &Builder::absent(), &sizes], &mode)
        }
        other => unreachable!("{other}"),
    };
    let y = b.op("ReduceSum", &[&made], &[("keepdims", Attribute::Int(0))]);
    b.output("y", &y, DataType::F32, "");
    b.build()
}

#[test]
fn a_size_that_follows_from_a_value_fails_its_request_only() {
    for engine in engines() {
        let cloud = Cloud::start(engine).with_good_model();
        for (op, sum) in [("ConstantOfShape", 0.0), ("Expand", 7.0), ("Tile", 7.0), ("Range", 21.0), ("Resize", 7.0)] {
            assert_eq!(cloud.add(op, &sized(op), &[]).code, 0, "{engine} {op}");
            let ask = |n: i64| cloud.infer(op, &[input(cloud.folder.path(), "n", i64s(&[n]))], "20s");
            assert_eq!(crate::harness::outputs(&ask(7).json())[0].1, [sum], "{engine} {op}");
            // More than a run may take; more than there is; more than can be said.
            for huge in [300_000_000, 2_000_000_000, 1 << 45] {
                let ran = ask(huge);
                assert!(ran.code != 0 && ran.code != 101, "{engine} {op} {huge}: {ran:?}");
            }
            assert_eq!(crate::harness::outputs(&ask(7).json())[0].1, [sum], "{engine} {op}, again");
        }
        cloud.is_well();
    }
}

#[test]
fn shapes_that_no_request_could_have_are_refused_with_words() {
    let site = Site::new();
    let mut b = Builder::new("wide", 1);
    let x = b.input("x", DataType::F32, "n");
    let y = b.op("Add", &[&x, &x], &[]);
    b.output("y", &y, DataType::F32, "n");
    let file = site.folder.path().join("wide.onnx");
    b.build().save(&file).unwrap();
    let add =
        |shape: &str| site.cloud.ask(&["model", "add", file.to_str().unwrap(), "--name", "wide", "--shape", shape]);
    let ran = add("x=100000000000");
    assert!(ran.code != 0 && ran.stderr.contains("which no node takes"), "{ran:?}");
    assert_eq!(add("x=4").code, 0);
}

#[test]
fn a_model_that_needs_more_than_this_device_has_is_not_offered_here() {
    let cloud = Cloud::start("rten").with_good_model();
    // A sum over a million by a thousand: 4 GB in between.
    let mut b = Builder::new("outer", 1);
    let (x, y) = (b.input("x", DataType::F32, "1000000 1"), b.input("y", DataType::F32, "1 1000"));
    let sums = b.op("Add", &[&x, &y], &[]);
    let z = b.op("ReduceMax", &[&sums], &[("keepdims", Attribute::Int(0))]);
    b.output("z", &z, DataType::F32, "");
    assert_eq!(cloud.add("outer", &b.build(), &[]).code, 0);
    let folder = cloud.folder.path();
    let inputs = [
        input(folder, "x", f32s(&[1_000_000, 1], &vec![1.0; 1_000_000])),
        input(folder, "y", f32s(&[1, 1_000], &[1.0; 1_000])),
    ];
    until("it is said", || cloud.infer("outer", &inputs, "5s").stderr.contains("limit for one run").then_some(()));
    cloud.is_well();
}

//! Several models under one name: cascades over a link that is cut, ensembles,
//! chains, and what the catalogue refuses of them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::Link;
use crate::harness::{Node, Ran, Site, outputs, tierline, until, within, write_npy};

/// As `--input` takes it.
struct Digits {
    folder: PathBuf,
    input: String,
}

impl Digits {
    /// Adds networks with seeded weights under these names, and writes an input.
    fn add(site: &Site, names: &[&str]) -> Self {
        let folder = site.folder.path().to_owned();
        for (seed, name) in names.iter().enumerate() {
            let options = tierline_zoo::Options { seed: seed as u64 + 1, ..tierline_zoo::Options::default() };
            let file = folder.join(format!("{name}.onnx"));
            tierline_zoo::lenet(&options).save(&file).unwrap();
            let shape = "input=1,1,28,28";
            let add = ["model", "add", file.to_str().unwrap(), "--name", name, "--shape", shape, "--wait", "20 s"];
            assert_eq!(site.cloud.ask(&add).code, 0);
        }
        let npy = folder.join("input.npy");
        let mut rng = fastrand::Rng::with_seed(3);
        write_npy(&npy, vec![1, 1, 28, 28], (0..784).map(|_| rng.f32()).collect());
        Self { input: format!("input=@{}", npy.display()), folder }
    }

    fn service(&self, site: &Site, name: &str, toml: &str) -> Ran {
        let file = self.folder.join(format!("{name}.toml"));
        std::fs::write(&file, toml).unwrap();
        site.cloud.ask(&["model", "add", file.to_str().unwrap(), "--name", name, "--replace", "--wait", "20 s"])
    }

    fn ask(&self, node: &Node, model: &str, deadline: &str) -> Ran {
        node.ask(&["infer", "--model", model, "--input", &self.input, "--deadline", deadline, "--json"])
    }
}

impl Ran {
    /// Did not succeed, and said `text`.
    #[track_caller]
    fn refuses(&self, text: &str) {
        assert!(self.code != 0 && self.stderr.contains(text), "`{text}` is missing: {self:?}");
    }
}

fn example(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/services").join(name);
    std::fs::read_to_string(file).unwrap()
}

/// The example cascade with another threshold.
fn cascade(threshold: f64) -> String {
    let text = example("cascade.toml").replace("threshold = 0.8", &format!("threshold = {threshold}"));
    assert!(text.contains(&format!("threshold = {threshold}")));
    text.replace("audit = 0.01", "audit = 0.0")
}

fn nodes_of(answer: &Value) -> Vec<&str> {
    answer["stages"].as_array().unwrap().iter().map(|stage| stage["node"].as_str().unwrap()).collect()
}

/// Waits until a node answers.
fn answering(what: &str, mut ask: impl FnMut() -> Ran) -> Value {
    until(what, || Some(ask()).filter(|ran| ran.code == 0).map(|ran| ran.json()))
}

#[test]
fn a_cascade_asks_the_large_model_and_falls_back_to_the_small_one() {
    let site = Site::new();
    let link = Link::to(&site.cloud.url, &["--bandwidth", "50mbit", "--delay", "5 ms"]);
    let end = site.end("end-1", &link.url(), &[]);
    let digits = Digits::add(&site, &["small", "large"]);

    assert_eq!(digits.service(&site, "sure", &cascade(0.01)).code, 0);
    let added = digits.service(&site, "unsure", &cascade(2.0));
    assert_eq!(added.code, 0, "{added:?}");
    assert!(added.stderr.contains("all 2 nodes know it"), "{added:?}");
    let small = answering("the small model", || digits.ask(&end, "small", "5 s"));
    let large = answering("the large model", || digits.ask(&end, "large", "5 s"));

    let sure = answering("a sure answer", || digits.ask(&end, "sure", "5 s"));
    assert_eq!((&sure["member"], &sure["degraded"]), (&"small".into(), &false.into()));
    assert_eq!(nodes_of(&sure), ["end-1"]);
    within(1e-6, &sure, &small);

    let unsure = answering("the large model's answer", || {
        Some(digits.ask(&end, "unsure", "5 s"))
            .filter(|ran| ran.json()["degraded"] == false)
            .unwrap_or_else(|| tierline(["nothing"]))
    });
    assert_eq!(unsure["member"], "large");
    assert!(nodes_of(&unsure).contains(&"cloud"), "{unsure}");
    within(3e-3, &unsure, &large);

    link.set(&["--cut"]);
    let begun = Instant::now();
    let fallen_back = digits.ask(&end, "unsure", "5 s").json();
    // The small model's answer was at hand: nobody waits for the deadline.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!((&fallen_back["member"], &fallen_back["degraded"]), (&"small".into(), &true.into()));
    within(1e-6, &fallen_back, &small);
    assert_eq!(digits.ask(&end, "sure", "5 s").json()["degraded"], false);

    link.set(&["--restore"]);
    until("the large model answers again", || {
        (digits.ask(&end, "unsure", "5 s").json()["member"] == "large").then_some(())
    });
}

#[test]
fn explain_says_who_answers_by_which_rule_and_how_long_that_takes() {
    let site = Site::new();
    let end = site.end("end-1", &site.cloud.url, &[]);
    let digits = Digits::add(&site, &["small", "large", "middle"]);
    let calibration = "\n[calibration]\ndata = \"held out\"\nexamples = 100\naccuracy = 0.9\n
        [[calibration.point]]\nthresholds = [0.8]\naccuracy = 0.875\nanswered = [0.75, 0.25]\n";
    assert_eq!(digits.service(&site, "cascade", &(cascade(0.8) + calibration)).code, 0);
    assert_eq!(digits.service(&site, "ensemble", &example("ensemble.toml")).code, 0);
    let document = until("both models are measured there", || {
        let ran = end.ask(&["explain", "cascade", "--json"]);
        let document = Some(ran).filter(|ran| ran.code == 0)?.json();
        document["latency_ns"].is_number().then_some(document)
    });
    let member = |place: usize| &document["members"][place];
    assert_eq!((&member(0)["member"], &member(0)["here"]), (&"small".into(), &true.into()));
    assert_eq!((&member(0)["criterion"], &member(0)["threshold"]), (&"confidence".into(), &0.8.into()));
    assert_eq!((&member(1)["placement"], &member(1)["here"]), (&"everything on cloud".into(), &false.into()));
    assert!(member(1)["threshold"].is_null());
    assert_eq!(document["answered_near"], 0.75);
    assert_eq!(document["calibrated"]["accuracy"], 0.875);
    let ns = |of: &Value| of["latency_ns"].as_f64().unwrap_or_else(|| panic!("{document}"));
    let (first, second) = (&document["paths"][0], &document["paths"][1]);
    assert_eq!((&first["share"], &second["share"]), (&0.75.into(), &0.25.into()));
    assert_eq!(ns(first), ns(member(0)));
    assert_eq!(ns(second), ns(member(0)) + ns(member(1)));
    assert!((ns(&document) - 0.75 * ns(first) - 0.25 * ns(second)).abs() < 1.0, "{document}");
    let text = end.ask(&["explain", "cascade"]).stdout;
    for part in ["confidence of at least 0.8000", "everything on cloud, as the service says", "75.0%", "small, large"] {
        assert!(text.contains(part), "`{part}` is missing: {text}");
    }

    // Traffic moves the shares: untrained models are never sure.
    until("the large model answers", || {
        let ran = digits.ask(&end, "cascade", "5 s");
        (ran.code == 0 && ran.json()["member"] == "large").then_some(())
    });
    let after = end.ask(&["explain", "cascade", "--json"]).json();
    assert!(after["answered_near"].as_f64().unwrap() < 0.75, "{after}");
    assert!(after["answers"].as_u64().unwrap() >= 1, "{after}");

    // Goals are for models, and what doesn't exist is said not to.
    end.ask(&["explain", "cascade", "--objective", "energy"]).refuses("made of several models");
    end.ask(&["explain", "nobody"]).refuses("nobody");

    let document = until("all of the ensemble are measured", || {
        let ran = end.ask(&["explain", "ensemble", "--json"]);
        let document = Some(ran).filter(|ran| ran.code == 0)?.json();
        document["paths"][0]["latency_ns"].is_number().then_some(document)
    });
    let longest = document["members"].as_array().unwrap().iter().filter_map(|m| m["latency_ns"].as_u64()).max();
    assert_eq!(document["paths"][0]["latency_ns"].as_u64(), longest, "{document}");
    assert_eq!(document["kind"], "ensemble");
}

#[test]
fn thresholds_follow_what_audits_show() {
    let site = Site::new();
    let digits = Digits::add(&site, &["small", "other"]);
    let cascade = |threshold: f64, last: &str| {
        format!(
            "kind = \"cascade\"\naudit = 0.9\nagreement = 0.98\n\
             [[member]]\nmodel = \"small\"\nname = \"near\"\ncriterion = \"confidence\"\nthreshold = {threshold}\n\
             [[member]]\nmodel = \"{last}\"\nname = \"far\"\n"
        )
    };
    // One model twice says the same; one of other weights says something else of this input.
    assert_eq!(digits.service(&site, "same", &cascade(0.8, "small")).code, 0);
    assert_eq!(digits.service(&site, "differs", &cascade(0.01, "other")).code, 0);
    let threshold = |service: &str| {
        let document = site.cloud.ask(&["explain", service, "--json"]).json();
        assert_eq!(document["agreement"], 0.98);
        document["members"][0]["threshold"].as_f64().unwrap_or_else(|| panic!("{document}"))
    };
    assert_eq!((threshold("same"), threshold("differs")), (0.8, 0.01));
    for service in ["same", "differs"] {
        let asked = ["infer", "--model", service, "--input", &digits.input, "--repeat", "260", "--json"];
        assert_eq!(site.cloud.ask(&asked).code, 0);
    }
    let (same, differs) = (threshold("same"), threshold("differs"));
    assert!(same < 0.8 && differs > 0.01 && differs > same, "{same} and {differs}");
    let text = site.cloud.scrape();
    assert!(text.contains(&format!("tierline_service_threshold{{member=\"same/1\"}} {same}")), "{text}");
    // Without audits nothing would show it.
    let blind = cascade(0.8, "other").replace("audit = 0.9\n", "");
    digits.service(&site, "blind", &blind).refuses("`audit` is 0; it must be above 0");
}

#[test]
fn three_models_on_three_tiers() {
    let site = Site::new();
    let edge = site.edge("edge-1");
    let end = site.end("end-1", &edge.url, &[]);
    let digits = Digits::add(&site, &["small", "middle", "large"]);
    let three = |low: &str, high: &str| {
        example("three.toml")
            .replace("threshold = 0.5", &format!("threshold = {low}"))
            .replace("threshold = 0.4", &format!("threshold = {high}"))
    };
    for (thresholds, member, node) in
        [(("0", "0"), "small", "end-1"), (("2", "0"), "middle", "edge-1"), (("2", "2"), "large", "cloud")]
    {
        assert_eq!(digits.service(&site, "three", &three(thresholds.0, thresholds.1)).code, 0);
        let wanted = answering(member, || digits.ask(&end, member, "10 s"));
        let answer = until("an answer as planned", || {
            let ran = digits.ask(&end, "three", "10 s");
            (ran.code == 0)
                .then(|| ran.json())
                .filter(|answer| answer["degraded"] == false && answer["member"] == member)
        });
        assert_eq!(nodes_of(&answer).last(), Some(&node), "{answer}");
        within(3e-3, &answer, &wanted);
    }
    // A node above is gone: the edge's model is the best that is left.
    let mut cloud = site.cloud;
    cloud.kill();
    let answer = digits.ask(&end, "three", "5 s").json();
    assert_eq!((&answer["member"], &answer["degraded"]), (&"middle".into(), &true.into()));
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f64::MIN, f64::max);
    let e: Vec<f64> = logits.iter().map(|x| (x - most).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|x| x / sum).collect()
}

#[test]
fn an_ensemble_is_the_mean_of_its_models() {
    let site = Site::new();
    let digits = Digits::add(&site, &["small", "middle", "large"]);
    assert_eq!(digits.service(&site, "all", &example("ensemble.toml")).code, 0);
    let alone = |model: &str| outputs(&digits.ask(&site.cloud, model, "10 s").json())[0].1.clone();
    let parts = [(1.0, alone("small")), (1.0, alone("middle")), (2.0, alone("large"))];
    let answer = digits.ask(&site.cloud, "all", "10 s").json();
    assert_eq!((&answer["member"], &answer["degraded"]), (&"small, middle, large".into(), &false.into()));
    let (name, values) = &outputs(&answer)[0];
    assert_eq!(name, "probabilities");
    for (class, value) in values.iter().enumerate() {
        let mean = parts.iter().map(|(weight, logits)| weight * softmax(logits)[class]).sum::<f64>() / 4.0;
        assert!((mean - value).abs() < 1e-6, "{class}: {value} is not {mean}");
    }
    let vote = example("ensemble.toml").replace("\"mean\"", "\"vote\"");
    assert_eq!(digits.service(&site, "all", &vote).code, 0);
    let votes = outputs(&digits.ask(&site.cloud, "all", "10 s").json())[0].1.clone();
    assert!((votes.iter().sum::<f64>() - 1.0).abs() < 1e-6);
    assert!(votes.iter().all(|share| [0.0, 0.25, 0.5, 0.75, 1.0].contains(share)), "{votes:?}");
}

#[test]
fn a_chain_reads_what_it_finds() {
    let site = Site::new();
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/services");
    for (name, shape) in [("finder", None), ("reader", Some("x=1,3,8,12"))] {
        let file = files.join(format!("{name}.onnx"));
        let mut add = vec!["model", "add", file.to_str().unwrap(), "--name", name];
        add.extend(shape.map(|_| "--shape").into_iter().chain(shape));
        let ran = site.cloud.ask(&add);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    let chain = files.join("../../../../../examples/services/chain.toml");
    let ran = site.cloud.ask(&["model", "add", chain.to_str().unwrap(), "--name", "labels"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let input = format!("image=@{}", files.join("image.npy").display());
    let answer = site.cloud.ask(&["infer", "--model", "labels", "--input", &input, "--json"]).json();
    let wanted: Value = serde_json::from_str(&std::fs::read_to_string(files.join("chain.json")).unwrap()).unwrap();
    let lines = answer["outputs"].as_array().unwrap();
    assert_eq!(lines.len(), 4, "{answer}");
    for line in lines {
        let reference = &wanted[line["name"].as_str().unwrap()];
        assert_eq!(line["shape"], reference["shape"], "{line}");
        let numbers =
            |value: &Value| value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<f64>>();
        for (got, wanted) in numbers(&line["data"]).iter().zip(numbers(&reference["data"])) {
            assert!((got - wanted).abs() <= 1e-4 * wanted.abs().max(1.0), "{}: {got} is not {wanted}", line["name"]);
        }
    }
    // Nothing is sure enough to be looked at: there is nothing to read, and that is an answer.
    let none = example("chain.toml").replace("score_min = 0.3", "score_min = 2.0");
    let file = site.folder.path().join("none.toml");
    std::fs::write(&file, none).unwrap();
    assert_eq!(site.cloud.ask(&["model", "add", file.to_str().unwrap(), "--name", "none"]).code, 0);
    let answer = site.cloud.ask(&["infer", "--model", "none", "--input", &input, "--json"]).json();
    let shape = |name: &str| {
        answer["outputs"].as_array().unwrap().iter().find(|line| line["name"] == name).unwrap()["shape"].clone()
    };
    assert_eq!((shape("label"), shape("crops")), (serde_json::json!([0, 5]), serde_json::json!([0])));
}

#[test]
fn what_does_not_fit_is_refused() {
    let site = Site::new();
    let digits = Digits::add(&site, &["small", "large"]);
    let add = |name: &str, text: &str| digits.service(&site, name, text);
    add("bad", &cascade(0.5).replace("threshold", "treshold")).refused(3, "did you mean `threshold`?");
    add("bad", &cascade(0.5).replace("\"large\"", "\"lage\"")).refuses("did you mean `large`?");
    let judged = cascade(0.5).replace("threshold =", "judged = \"nothing\"\nthreshold =");
    add("bad", &judged).refuses("`judged` must name one of the outputs of `small`: `logits`");
    add("small", &cascade(0.5)).refuses("`small` already names a model");
    assert_eq!(add("digits", &cascade(0.5)).code, 0);
    // A service isn't made of services, itself included.
    let of_services = cascade(0.5).replace("\"large\"", "\"digits\"");
    add("more", &of_services).refuses("member `digits` is a service");
    add("digits", &of_services).refuses("member `digits` is a service");

    let file = digits.folder.join("small.onnx");
    let shape = ["--shape", "input=1,1,28,28"];
    let taken = [&["model", "add", file.to_str().unwrap(), "--name", "digits"][..], &shape].concat();
    site.cloud.ask(&taken).refuses("`digits` names a service already");
    site.cloud.ask(&["model", "rm", "small"]).refuses("`small` is a member of `digits`");
    site.cloud.ask(&["model", "rename", "small", "tiny"]).refuses("`small` is a member of `digits`");
    site.cloud.ask(&["model", "rename", "digits", "small"]).refuses("`small` names a model already");
    // It has no plan of its own: those of its members are told.
    let planned = site.cloud.ask(&["plan", "digits"]);
    assert!(planned.stdout.contains("digits is a cascade of 2 models"), "{planned:?}");

    let wrong = digits.folder.join("wrong.npy");
    write_npy(&wrong, vec![1, 3, 28, 28], vec![0.0; 3 * 784]);
    let input = format!("input=@{}", wrong.display());
    site.cloud.ask(&["infer", "--model", "digits", "--input", &input]).refuses("has shape [1, 3, 28, 28]");

    let right = digits.folder.join("right.npy");
    write_npy(&right, vec![1, 1, 28, 28], vec![0.0; 784]);
    let input = format!("input=@{}", right.display());
    let asked = ["infer", "--model", "digits", "--input", &input];
    // What only one model has: a service would answer something else.
    site.cloud.ask(&[&asked[..], &["--exit", "1"]].concat()).refuses("an exit is asked for");
    site.cloud.ask(&[&asked[..], &["--split", "1"]].concat()).refuses("a route is asked for");
    assert_eq!(site.cloud.ask(&asked).code, 0);

    // By another name it goes on; after a restart as well; and once it is gone, its models may go.
    assert_eq!(site.cloud.ask(&["model", "rename", "digits", "numbers"]).code, 0);
    let mut cloud = site.cloud;
    cloud.restart();
    assert_eq!(digits.ask(&cloud, "numbers", "10 s").code, 0);
    digits.ask(&cloud, "digits", "10 s").refuses("no model `digits` is known here");
    let listed = cloud.ask(&["model", "ls", "--json"]).json();
    assert_eq!(listed["services"][0]["members"], serde_json::json!(["small", "large"]));
    assert_eq!(cloud.ask(&["model", "rm", "numbers"]).code, 0);
    assert_eq!(cloud.ask(&["model", "rm", "small"]).code, 0);
}

#[test]
fn what_a_small_model_was_not_sure_of_is_kept_to_train_on() {
    let site = Site::new();
    let mut end = site.end("end-1", &site.cloud.url, &[]);
    let digits = Digits::add(&site, &["small", "large"]);
    let with = |policy: &str, count: usize| {
        cascade(2.0)
            .replace("\"raw\"", &format!("\"{policy}\""))
            .replace("max_count = 1000", &format!("max_count = {count}"))
    };
    let kept =
        |end: &Node| end.ask(&["examples", "ls", "digits", "--json"]).json()["examples"].as_array().unwrap().clone();
    let ask = |end: &Node| {
        until("the large model's answer", || {
            let ran = digits.ask(end, "digits", "10 s");
            (ran.code == 0).then(|| ran.json()).filter(|answer| answer["member"] == "large")
        })
    };
    assert_eq!(digits.service(&site, "digits", &with("none", 9)).code, 0);
    ask(&end);
    assert!(kept(&end).is_empty());

    assert_eq!(digits.service(&site, "digits", &with("raw", 3)).code, 0);
    let answer = ask(&end);
    until("an example is kept", || (!kept(&end).is_empty()).then_some(()));
    // What is kept is on the disk: a power cut takes none of it.
    end.kill();
    end.restart();
    let example = kept(&end)[0].clone();
    assert_eq!((&example["why"], &example["node"]), (&"unsure".into(), &"end-1".into()));
    let number = example["example"].to_string();
    let shown = end.ask(&["examples", "show", &number, "--json"]).json();
    let best = |values: &[f64]| (0..values.len()).max_by(|a, b| values[*a].total_cmp(&values[*b])).unwrap();
    assert_eq!(shown["labels"], serde_json::json!([best(&outputs(&answer)[0].1)]));
    let held: Vec<String> =
        shown["tensors"].as_array().unwrap().iter().map(|t| format!("{}/{}", t["member"], t["name"])).collect();
    assert_eq!(held, ["\"\"/\"input\"", "\"small\"/\"logits\"", "\"large\"/\"logits\""]);
    for _ in 0..5 {
        ask(&end);
    }
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(kept(&end).len(), 3, "more than the quota");

    let out = digits.folder.join("hard");
    let exported = end.ask(&["examples", "export", "digits", "--out", out.to_str().unwrap(), "--json"]).json();
    assert_eq!((&exported["examples"], &exported["shape"]), (&3.into(), &serde_json::json!([3, 1, 28, 28])));
    let added = end.ask(&["data", "add", "hard", out.to_str().unwrap(), "--json"]);
    assert_eq!(added.code, 0, "{added:?}");

    // Features only: no input leaves memory.
    assert_eq!(digits.service(&site, "digits", &with("features", 3)).code, 0);
    assert_eq!(end.ask(&["examples", "rm", "--service", "digits"]).code, 0);
    ask(&end);
    let number = until("an example is kept", || kept(&end).first().map(|example| example["example"].to_string()));
    let shown = end.ask(&["examples", "show", &number, "--json"]).json();
    assert!(shown["tensors"].as_array().unwrap().iter().all(|tensor| tensor["member"] != ""), "{shown}");
    end.ask(&["examples", "show", "12345"]).refuses("there is no example 12345 on end-1");
    let exported = end.ask(&["examples", "export", "digits", "--out", out.to_str().unwrap(), "--json"]).json();
    assert_eq!(exported["shape"], serde_json::json!([1, 10]));
}

#[test]
fn thresholds_are_found_on_examples_with_labels() {
    const EXAMPLES: usize = 12;
    let site = Site::new();
    let digits = Digits::add(&site, &["small", "large"]);
    let mut rng = fastrand::Rng::with_seed(5);
    let pictures: Vec<Vec<f32>> = (0..EXAMPLES).map(|_| (0..784).map(|_| rng.f32() * 4.0 - 2.0).collect()).collect();
    let logits = |model: &str, picture: &[f32]| {
        let npy = digits.folder.join("one.npy");
        write_npy(&npy, vec![1, 1, 28, 28], picture.to_vec());
        let input = format!("input=@{}", npy.display());
        outputs(&site.cloud.ask(&["infer", "--model", model, "--input", &input, "--json"]).json())[0].1.clone()
    };
    let best = |values: &[f64]| (0..values.len()).max_by(|a, b| values[*a].total_cmp(&values[*b])).unwrap();
    // The large model is right, by these labels.
    let labels: Vec<usize> = pictures.iter().map(|picture| best(&logits("large", picture))).collect();
    let small: Vec<(f64, bool)> = pictures
        .iter()
        .zip(&labels)
        .map(|(picture, label)| {
            let said = logits("small", picture);
            (softmax(&said)[best(&said)], best(&said) == *label)
        })
        .collect();
    let set = digits.folder.join("set");
    std::fs::create_dir_all(&set).unwrap();
    write_npy(&set.join("features.npy"), vec![EXAMPLES, 1, 28, 28], pictures.concat());
    let tensor = tierline_graph::Tensor::new(
        [EXAMPLES],
        tierline_graph::Elements::I64(labels.iter().map(|label| *label as i64).collect()),
    );
    std::fs::write(set.join("labels.npy"), tierline_codec::npy::write(&tensor.unwrap()).unwrap()).unwrap();
    let added = site.cloud.ask(&["data", "add", "set", set.to_str().unwrap(), "--classes", "10"]);
    assert_eq!(added.code, 0, "{added:?}");

    let file = digits.folder.join("cascade.toml");
    std::fs::write(&file, cascade(0.5)).unwrap();
    let out = digits.folder.join("calibrated.toml");
    for loss in ["0", "25", "100"] {
        let args = ["model", "calibrate", file.to_str().unwrap(), "--dataset", "set", "--loss", loss, "--json"];
        let found = site.cloud.ask(&[&args[..], &["--out", out.to_str().unwrap()]].concat()).json();
        assert_eq!((&found["examples"], &found["accuracy"]), (&EXAMPLES.into(), &1.0.into()));
        let threshold = found["chosen"]["thresholds"][0].as_f64().unwrap();
        let right = small.iter().filter(|(sure, right)| *sure < threshold || *right).count() as f64 / EXAMPLES as f64;
        let answered = small.iter().filter(|(sure, _)| *sure >= threshold).count() as f64 / EXAMPLES as f64;
        let close = |a: f64, b: &Value| (a - b.as_f64().unwrap()).abs() < 1e-9;
        assert!(
            close(right, &found["chosen"]["accuracy"]) && close(answered, &found["chosen"]["answered"][0]),
            "{found}"
        );
        assert!(right >= 1.0 - loss.parse::<f64>().unwrap() / 100.0);
        if loss == "100" {
            assert_eq!(answered, 1.0, "it costs least to leave all to the small model");
        }
    }
    // What is written is a service, with its curve.
    let text = std::fs::read_to_string(&out).unwrap();
    assert!(text.contains("[[calibration.point]]"), "{text}");
    assert_eq!(digits.service(&site, "digits", &text).code, 0);
    let args = ["model", "calibrate", file.to_str().unwrap(), "--dataset", "nothing"];
    site.cloud.ask(&args).refuses("nothing");
}

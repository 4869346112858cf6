//! Federations on real processes: data stays where it is, and whatever is
//! killed, the same model comes out.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tierline_daemon::datasets::Datasets;
use tierline_engine::{Evaluator, Stop};
use tierline_graph::Model;
use tierline_graph::fold::{Purpose, fold_for};
use tierline_sim::{Examples, Scenario, SimulationResult};
use tierline_train::federated::Models;
use tierline_train::{Job, init};
use tierline_zoo::{Batch, Bn, Options};

use crate::harness::{Node, Ran, Site, until};

/// Pictures of ten classes as IDX files, each a bright square at its own
/// place on noise.
pub fn pictures(folder: &Path, examples: usize, seed: u64) {
    part(folder, "train", examples, seed);
}

/// One part (`train`, `t10k`) of such files.
pub fn part(folder: &Path, part: &str, examples: usize, seed: u64) {
    std::fs::create_dir_all(folder).unwrap();
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut pixels, mut classes) = (Vec::new(), Vec::new());
    for _ in 0..examples {
        let class = rng.usize(0..10);
        let (top, left) = ((class / 4) * 7, (class % 4) * 7);
        for i in 0..784 {
            let inside = (top..top + 7).contains(&(i / 28)) && (left..left + 7).contains(&(i % 28));
            pixels.push(rng.u8(0..50) + if inside { 200 } else { 0 });
        }
        classes.push(class as u8);
    }
    let big = |n: usize| (n as u32).to_be_bytes();
    let file = |magic: u32, sizes: &[usize], bytes: &[u8]| {
        let mut file = magic.to_be_bytes().to_vec();
        sizes.iter().for_each(|&n| file.extend_from_slice(&big(n)));
        file.extend_from_slice(bytes);
        file
    };
    std::fs::write(folder.join(format!("{part}-images-idx3-ubyte")), file(0x803, &[examples, 28, 28], &pixels))
        .unwrap();
    std::fs::write(folder.join(format!("{part}-labels-idx1-ubyte")), file(0x801, &[examples], &classes)).unwrap();
}

/// The same files as packages bring them.
pub fn packed(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let file = std::fs::File::create(format!("{}.gz", path.display())).unwrap();
        let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        gz.write_all(&std::fs::read(&path).unwrap()).unwrap();
        gz.finish().unwrap();
        std::fs::remove_file(path).unwrap();
    }
}

fn job(federation: &str) -> String {
    format!(
        "model = 'net.onnx'\nweights = 'fresh'\nepochs = 1\nseed = 5\n[data]\ntrain = 'squares'\ntest = 'held-out'\n\
         [batch]\nsize = 16\n[optimizer]\nkind = 'sgd'\nmomentum = 0.9\n[schedule]\nrate = 0.05\n{federation}"
    )
}

/// Examples of each end.
pub const EXAMPLES: usize = 120;

/// A cloud with a job's file and data held out.
pub struct Federation {
    pub site: Site,
    pub folder: tempfile::TempDir,
}

impl Federation {
    pub fn new(federation: &str) -> Self {
        let (site, folder) = (Site::new(), tempfile::tempdir().unwrap());
        let options = Options { bn: Bn::Kept, batch: Batch::Free, image: None, seed: 3 };
        tierline_zoo::mlp(&options).save(&folder.path().join("net.onnx")).unwrap();
        std::fs::write(folder.path().join("squares.toml"), job(federation)).unwrap();
        let it = Self { site, folder };
        it.add_data(&it.site.cloud, "held-out", 200, 99);
        it
    }

    pub fn add_data(&self, node: &Node, name: &str, examples: usize, seed: u64) {
        let folder = self.folder.path().join(format!("{name}-{seed}"));
        pictures(&folder, examples, seed);
        let ran = node.ask(&["data", "add", name, folder.to_str().unwrap()]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }

    pub fn end(&self, number: u64, parent: &str) -> Node {
        let end = self.site.end(&format!("end-{number:03}"), parent, &[]);
        self.add_data(&end, "squares", EXAMPLES, number);
        end
    }

    pub fn train(&self) -> Ran {
        let job = self.folder.path().join("squares.toml");
        self.site.cloud.ask(&["train", job.to_str().unwrap(), "--json", "--replace"])
    }

    /// Gives the job to the site, and follows it.
    pub fn watch(&self) -> std::process::Child {
        let job = self.folder.path().join("squares.toml");
        let mut command = self.site.cloud.command(&["train", job.to_str().unwrap(), "--quiet", "--replace"]);
        command.stdout(Stdio::null()).spawn().unwrap()
    }

    /// As [`Self::watch`], for what it prints.
    pub fn watch_lines(&self) -> std::process::Child {
        let job = self.folder.path().join("squares.toml");
        let mut command = self.site.cloud.command(&["train", job.to_str().unwrap(), "--json", "--replace"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The model that the simulation makes of the same data.
    pub fn simulated(&self, ends: &[&Node], scenario: &Scenario) -> Vec<u8> {
        self.outcome(ends, scenario).model.to_bytes().unwrap()
    }

    /// What the simulation makes of the same data.
    fn outcome(&self, ends: &[&Node], scenario: &Scenario) -> SimulationResult {
        // As the tests' nodes.
        let engine = tierline_engine::rten();
        let job: Job =
            toml::from_str(&std::fs::read_to_string(self.folder.path().join("squares.toml")).unwrap()).unwrap();
        let ready = |file: &Path| {
            let mut model = Model::load(&self.folder.path().join(file)).unwrap();
            fold_for(&mut model, &mut Evaluator(Arc::clone(&engine)), Purpose::Training).unwrap();
            init::fresh(&model, job.seed).unwrap()
        };
        let others = job.models.iter().map(|variant| ready(&variant.model)).collect();
        let models = Models { own: ready(&job.model), others };
        let distil = job.federation.as_ref().and_then(|federation| federation.distillation());
        let public = distil.map(|d| Datasets::of(&self.site.cloud.data).open(&d.public).unwrap());
        let data = ends.iter().map(|end| Datasets::of(&end.data).open("squares").unwrap());
        let stop = Stop::asked();
        let examples = Examples { ends: data.collect(), test: None, public: public.as_ref() };
        tierline_sim::run(&engine, models, &job, examples, scenario, &stop, &mut |_| ()).unwrap()
    }

    pub fn model(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join("squares.run/model.onnx")).unwrap()
    }

    /// Trains on the nodes and in simulation: what is shared and what is ends'
    /// own is the same.
    pub fn own_models_are_as_simulated(&self, ends: &[Node], edges: usize) {
        let lines = lines(&self.train());
        let scenario = Scenario { edges, ..Scenario::default() };
        let simulated = self.outcome(&ends.iter().collect::<Vec<_>>(), &scenario);
        assert!(self.model() == simulated.model.to_bytes().unwrap(), "what is shared, bit for bit");
        let rounds = rounds(&lines);
        assert_eq!(rounds.len(), simulated.rounds.len());
        for (round, same) in rounds.iter().zip(&simulated.rounds) {
            assert_eq!(round["accuracy"].as_f64(), same.accuracy, "{round}");
            assert_eq!(round["loss"].as_f64(), same.loss, "{round}");
        }
        for (number, end) in ends.iter().enumerate() {
            let file = self.folder.path().join(format!("{number}.onnx"));
            let ran = end.ask(&["job", "model", "squares", "--out", file.to_str().unwrap(), "--json"]);
            assert_eq!(ran.code, 0, "{ran:?}");
            let own = std::fs::read(&file).unwrap();
            assert_eq!(ran.json()["model"], blake3::hash(&own).to_hex().as_str());
            let same = &simulated.own[&format!("end-{number:03}")];
            assert!(own == same.to_bytes().unwrap(), "what is its own, bit for bit");
            assert!(own != self.model());
        }
    }
}

pub fn lines(ran: &Ran) -> Vec<Value> {
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn rounds(lines: &[Value]) -> Vec<&Value> {
    lines.iter().filter(|l| l["event"] == "round").collect()
}

#[test]
fn ends_train_a_model_together() {
    let federation = Federation::new("[federation.cloud]\nrounds = 4\nclients = { min = 3 }\n");
    let ends: Vec<Node> = (0..3).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
    let lines = lines(&federation.train());
    let rounds = rounds(&lines);
    assert_eq!(rounds.len(), 4);
    for (i, round) in rounds.iter().enumerate() {
        assert_eq!(round["round"], i + 1);
        assert_eq!(round["clients"], 3);
        // 784 * 128 + 128 + 128 * 10 + 10 weights of four bytes, from three ends.
        assert!(round["bytes_up"].as_u64().unwrap() >= 3 * 4 * 101_770, "{round}");
    }
    let done = lines.last().unwrap();
    assert_eq!(done["event"], "done");
    assert!(done["accuracy"].as_f64().unwrap() > 0.9, "{done}");
    assert_eq!(done["model"], blake3::hash(&federation.model()).to_hex().as_str());
    let listed = federation.site.cloud.ask(&["job", "ls", "--json"]).json();
    assert_eq!(listed["jobs"][0]["state"], "done");
    until("ends hear of the end", || {
        ends.iter().all(|end| end.ask(&["job", "show", "squares", "--json"]).json()["state"] == "over").then_some(())
    });
}

#[test]
fn nodes_make_the_model_that_the_simulation_makes() {
    let jobs = [
        "strategy = { kind = 'fedavg' }\nup = ['topk:0.05', 'int8', 'zstd']",
        "strategy = { kind = 'scaffold' }",
        "strategy = { kind = 'fedprox', mu = 0.1 }\nup = ['powersgd:2', 'int8']",
        "strategy = { kind = 'fednova' }\nup = ['qsgd:4']",
        "rule = { kind = 'median' }\nup = ['int8', 'zstd']",
        "rule = { kind = 'bounded' }\nup = ['sign']",
        "up = ['topk:0.05', 'int4']\nmemory = { kind = 'dgc', momentum = 0.5, warmup = 2 }",
        "up = ['topk:0.05', 'fp16']\nmemory = { kind = 'ef21' }",
    ];
    for job in jobs {
        let federation = Federation::new(&format!("[federation.cloud]\nrounds = 3\nclients = {{ min = 3 }}\n{job}\n"));
        let ends: Vec<Node> = (0..3).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
        let lines = lines(&federation.train());
        let simulated = federation.outcome(&ends.iter().collect::<Vec<_>>(), &Scenario::default());
        assert!(federation.model() == simulated.model.to_bytes().unwrap(), "{job}: bit for bit");
        let bytes: Vec<_> = rounds(&lines).iter().map(|round| round["bytes_up"].as_u64().unwrap()).collect();
        let expected: Vec<_> = simulated.rounds.iter().map(|round| round.bytes_up).collect();
        assert_eq!(bytes, expected, "{job}: byte for byte");
    }
}

#[test]
fn what_a_strategy_remembers_outlives_its_cloud() {
    for strategy in ["kind = 'fedadam', rate = 0.02", "kind = 'diloco'", "kind = 'scaffold'"] {
        let text = format!("[federation.cloud]\nrounds = 6\nclients = {{ min = 2 }}\nstrategy = {{ {strategy} }}\n");
        let mut federation = Federation::new(&text);
        let ends: Vec<Node> = (0..2).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
        let mut watcher = federation.watch();
        until("some rounds have ended", || (round_of(&federation.site.cloud)? >= 2).then_some(()));
        federation.site.cloud.kill();
        let _ended = watcher.wait();
        federation.site.cloud.restart();
        federation.done();
        let simulated = federation.simulated(&ends.iter().collect::<Vec<_>>(), &Scenario::default());
        assert!(std::fs::read(federation.folder.path().join("out/model.onnx")).unwrap() == simulated, "{strategy}");
    }
}

#[test]
fn asynchronous_jobs_outlive_their_cloud() {
    for (strategy, size) in [("kind = 'fedasync'", 1), ("kind = 'fedbuff', size = 2", 2)] {
        let text = format!(
            "[federation.cloud]\nrounds = 12\nstrategy = {{ {strategy} }}\nclients = {{ per_round = 3 }}\nup = ['int8']\n"
        );
        let mut federation = Federation::new(&text);
        let mut ends: Vec<Node> = (0..3).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
        let mut watcher = federation.watch();
        until("some models are made", || (round_of(&federation.site.cloud)? >= 3).then_some(()));
        ends[1].kill();
        federation.site.cloud.kill();
        let _ended = watcher.wait();
        federation.site.cloud.restart();
        ends[1].restart();
        let rounds = federation.done();
        let numbers: Vec<u64> = rounds.iter().map(|round| round["round"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (1..=12).collect::<Vec<u64>>(), "{strategy}: each model once");
        assert!(rounds.iter().all(|round| round["clients"] == size), "{strategy}: {rounds:?}");
        assert!(rounds.last().unwrap()["accuracy"].as_f64().unwrap() > 0.7, "{strategy}: {rounds:?}");
    }
}

#[test]
fn edges_average_their_ends_and_the_cloud_its_edges() {
    let text = "[federation.cloud]\nrounds = 3\nclients = { min = 2 }\n\
                [federation.edge]\nrounds = 2\nclients = { min = 2 }\n";
    let federation = Federation::new(text);
    let edges: Vec<Node> = (0..2).map(|i| federation.site.edge(&format!("edge-{i:02}"))).collect();
    let ends: Vec<Node> = (0..4).map(|i| federation.end(i, &edges[i as usize / 2].url)).collect();
    let lines = lines(&federation.train());
    let rounds = rounds(&lines);
    assert!(rounds.iter().all(|r| r["clients"] == 2), "{rounds:?}");
    // Two updates from edges and twice two from each edge's ends.
    let model = 4 * 101_770;
    assert!(rounds[1]["bytes_up"].as_u64().unwrap() >= (2 + 8) * model, "{rounds:?}");
    assert!(lines.last().unwrap()["accuracy"].as_f64().unwrap() > 0.8);
    let scenario = Scenario { edges: 2, ..Scenario::default() };
    let simulated = federation.simulated(&ends.iter().collect::<Vec<_>>(), &scenario);
    assert!(federation.model() == simulated, "bit for bit");
}

#[test]
fn models_travel_as_what_sets_them_apart() {
    let text = "[federation.cloud]\nrounds = 5\nup = ['int8', 'zstd']\ndown = ['topk:0.05', 'int8', 'zstd']\n\
                clients = { min = 3 }\n";
    let federation = Federation::new(text);
    let ends: Vec<Node> = (0..3).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
    let lines = lines(&federation.train());
    let simulated = federation.outcome(&ends.iter().collect::<Vec<_>>(), &Scenario::default());
    assert!(federation.model() == simulated.model.to_bytes().unwrap(), "bit for bit");
    let bytes: Vec<_> = rounds(&lines).iter().map(|round| round["bytes_down"].as_u64().unwrap()).collect();
    let expected: Vec<_> = simulated.rounds.iter().map(|round| round.bytes_down).collect();
    assert_eq!(bytes[1..], expected[1..], "byte for byte, behind the model that the job begins with");
    assert!(bytes[1..].iter().all(|round| *round < 3 * 4 * 101_770 / 40), "{bytes:?}");
}

#[test]
fn members_that_lost_their_model_get_it_again() {
    let text = "[federation.cloud]\nrounds = 12\ndown = ['int4']\nclients = { min = 2 }\n";
    let mut federation = Federation::new(text);
    let mut ends: Vec<Node> = (0..2).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
    let mut watcher = federation.watch();
    until("some rounds have ended", || (round_of(&federation.site.cloud)? >= 3).then_some(()));
    ends[1].kill();
    let lost = ends[1].data.join("artefacts");
    assert!(lost.is_dir());
    std::fs::remove_dir_all(lost).unwrap();
    // And a coordinator that goes on from its disk.
    federation.site.cloud.kill();
    let _ended = watcher.wait();
    federation.site.cloud.restart();
    ends[1].restart();
    let rounds = federation.done();
    let simulated = federation.outcome(&ends.iter().collect::<Vec<_>>(), &Scenario::default());
    let made = std::fs::read(federation.folder.path().join("out/model.onnx")).unwrap();
    assert!(made == simulated.model.to_bytes().unwrap(), "bit for bit");
    let total = |bytes: &mut dyn Iterator<Item = u64>| bytes.skip(1).sum::<u64>();
    let down = total(&mut rounds.iter().map(|round| round["bytes_down"].as_u64().unwrap()));
    assert!(down > total(&mut simulated.rounds.iter().map(|round| round.bytes_down)), "what is sent again counts");
}

#[test]
fn whatever_is_killed_the_same_model_comes_out() {
    whatever_is_killed("[]", "[]");
}

#[test]
fn whatever_is_killed_members_follow_the_same_models() {
    whatever_is_killed("['int8', 'zstd']", "['topk:0.1', 'fp16']");
}

fn whatever_is_killed(from_cloud: &str, from_edges: &str) {
    let text = format!(
        "[federation.cloud]\nrounds = 4\ndown = {from_cloud}\nclients = {{ min = 2 }}\n\
         [federation.edge]\nrounds = 3\ndown = {from_edges}\nclients = {{ min = 2 }}\n"
    );
    let mut federation = Federation::new(&text);
    let mut edges: Vec<Node> = (0..2).map(|i| federation.site.edge(&format!("edge-{i:02}"))).collect();
    let mut ends: Vec<Node> = (0..4).map(|i| federation.end(i, &edges[i as usize / 2].url)).collect();
    // Whoever watches the job dies with the cloud; the job doesn't.
    let mut watcher = federation.watch();
    until("the first round has ended", || (round_of(&federation.site.cloud)? >= 1).then_some(()));
    ends[1].kill();
    std::thread::sleep(Duration::from_millis(200));
    edges[0].kill();
    std::thread::sleep(Duration::from_millis(200));
    federation.site.cloud.kill();
    ends[1].restart();
    edges[0].restart();
    federation.site.cloud.restart();
    let _ended = watcher.wait();
    until("the job is done", || {
        let shown = federation.site.cloud.ask(&["job", "show", "squares", "--json"]);
        (shown.code == 0 && shown.json()["state"] == "done").then_some(())
    });
    let out = federation.folder.path().join("again");
    let ran = federation.site.cloud.ask(&["job", "logs", "squares", "--out", out.to_str().unwrap(), "--json"]);
    assert_eq!(rounds(&lines(&ran)).len(), 4);
    let made = std::fs::read(out.join("model.onnx")).unwrap();
    let scenario = Scenario { edges: 2, ..Scenario::default() };
    let simulated = federation.simulated(&ends.iter().collect::<Vec<_>>(), &scenario);
    assert!(made == simulated, "bit for bit, kills or not");
}

#[test]
fn edges_pass_a_flat_job_on_and_any_node_may_die() {
    edges_pass_on("[]");
}

#[test]
fn edges_pass_differences_on_and_any_node_may_die() {
    edges_pass_on("['topk:0.1', 'int8', 'zstd']");
}

fn edges_pass_on(down: &str) {
    let text =
        format!("[federation.cloud]\nrounds = 8\nup = ['topk:0.05', 'int8']\ndown = {down}\nclients = {{ min = 4 }}\n");
    let mut federation = Federation::new(&text);
    let mut edges: Vec<Node> = (0..2).map(|i| federation.site.edge(&format!("edge-{i:02}"))).collect();
    let mut ends: Vec<Node> = (0..4).map(|i| federation.end(i, &edges[i as usize / 2].url)).collect();
    let mut watcher = federation.watch();
    until("the first round has ended", || (round_of(&federation.site.cloud)? >= 1).then_some(()));
    edges[1].kill();
    std::thread::sleep(Duration::from_millis(300));
    edges[1].restart();
    until("another round has ended", || (round_of(&federation.site.cloud)? >= 3).then_some(()));
    ends[0].kill();
    edges[0].kill();
    ends[0].restart();
    edges[0].restart();
    until("one more has ended", || (round_of(&federation.site.cloud)? >= 5).then_some(()));
    federation.site.cloud.kill();
    let _ended = watcher.wait();
    federation.site.cloud.restart();
    let rounds = federation.done();
    assert!(rounds.len() == 8 && rounds.iter().all(|round| round["clients"] == 4), "{rounds:?}");
    let simulated = federation.simulated(&ends.iter().collect::<Vec<_>>(), &Scenario::default());
    let made = std::fs::read(federation.folder.path().join("out/model.onnx")).unwrap();
    assert!(made == simulated, "bit for bit, as if the edges weren't there");
    until("all hear of the end", || {
        let over = |node: &Node| node.ask(&["job", "show", "squares", "--json"]).json()["state"] == "over";
        edges.iter().chain(&ends).all(over).then_some(())
    });
}

#[test]
fn ends_have_models_of_their_own_and_look_at_them_themselves() {
    for (federation, edges) in [
        ("[federation.personal]\nkind = 'ditto'\n[federation.cloud]\nrounds = 3\nclients = { min = 2 }\n", 0),
        (
            "[federation.personal]\nkind = 'fedper'\nkeep = ['w2', 'w3']\n[federation.cloud]\nrounds = 2\n\
             clients = { min = 2 }\n[federation.edge]\nrounds = 2\nclients = { min = 2 }\n",
            2,
        ),
    ] {
        let federation = Federation::new(federation);
        let job = federation.folder.path().join("squares.toml");
        let text = std::fs::read_to_string(&job).unwrap().replace("test = 'held-out'", "hold_out = 0.25");
        std::fs::write(&job, text).unwrap();
        let parents: Vec<Node> = (0..edges).map(|i| federation.site.edge(&format!("edge-{i:02}"))).collect();
        let parent = |end: u64| parents.get(end as usize / 2).map_or(&federation.site.cloud.url, |edge| &edge.url);
        let ends: Vec<Node> = (0..2 * edges.max(1) as u64).map(|i| federation.end(i, parent(i))).collect();
        federation.own_models_are_as_simulated(&ends, edges);
    }
}

#[test]
fn ends_teach_each_other_by_what_their_models_say() {
    let public = "distil = { public = 'public', examples = 60 }";
    for (text, kinds, edges) in [
        (format!("rounds = 3\nstrategy = {{ kind = 'fedmd', {public} }}\n"), 2, 0),
        (
            format!(
                "rounds = 2\nstrategy = {{ kind = 'fedmd', {public} }}\n[federation.edge]\nrounds = 2\n\
                 strategy = {{ kind = 'fedmd', {public} }}\nclients = {{ min = 2 }}\n"
            ),
            1,
            2,
        ),
    ] {
        let federation = Federation::new(&format!("[federation.cloud]\nclients = {{ min = 2 }}\n{text}"));
        let job = federation.folder.path().join("squares.toml");
        let mut text = std::fs::read_to_string(&job).unwrap().replace("test = 'held-out'", "hold_out = 0.25");
        if kinds == 2 {
            text.push_str("[[models]]\nmodel = 'small.onnx'\nends = ['*1']\n");
            let options = Options { bn: Bn::Kept, batch: Batch::Free, image: None, seed: 3 };
            tierline_zoo::lenet(&options).save(&federation.folder.path().join("small.onnx")).unwrap();
        }
        std::fs::write(&job, text).unwrap();
        federation.train().refused(5, "tierline data add public");
        federation.add_data(&federation.site.cloud, "public", 100, 50);
        let parents: Vec<Node> = (0..edges).map(|i| federation.site.edge(&format!("edge-{i:02}"))).collect();
        let parent = |end: u64| parents.get(end as usize / 2).map_or(&federation.site.cloud.url, |edge| &edge.url);
        let ends: Vec<Node> = (0..2 * edges.max(1) as u64).map(|i| federation.end(i, parent(i))).collect();
        ends.iter().for_each(|end| federation.add_data(end, "public", 100, 50));
        federation.own_models_are_as_simulated(&ends, edges);
    }
}

#[test]
fn the_cloud_teaches_the_mean_and_may_die() {
    let text = "[federation.cloud]\nrounds = 4\nclients = { min = 3 }\n\
                strategy = { kind = 'feddf', distil = { public = 'public', examples = 60, epochs = 2 } }\n";
    let mut federation = Federation::new(text);
    federation.add_data(&federation.site.cloud, "public", 100, 50);
    let ends: Vec<Node> = (0..3).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
    let mut watcher = federation.watch();
    until("the first round has ended", || (round_of(&federation.site.cloud)? >= 1).then_some(()));
    federation.site.cloud.kill();
    let _ended = watcher.wait();
    federation.site.cloud.restart();
    assert_eq!(federation.done().len(), 4);
    let simulated = federation.simulated(&ends.iter().collect::<Vec<_>>(), &Scenario::default());
    let made = std::fs::read(federation.folder.path().join("out/model.onnx")).unwrap();
    assert!(made == simulated, "bit for bit");
}

/// Rounds that have ended, of the only job.
pub fn round_of(cloud: &Node) -> Option<u64> {
    let ran = cloud.ask(&["job", "ls", "--json"]);
    (ran.code == 0).then(|| ran.json()["jobs"][0]["round"].as_u64()).flatten()
}

#[test]
fn jobs_that_make_no_sense_are_refused_with_the_reason() {
    let federation = Federation::new("[federation.cloud]\nrounds = 1\nstrategy = { kind = 'fedprox', mu = -1.0 }\n");
    federation.train().refused(3, "mu is -1");
    let job = federation.folder.path().join("squares.toml");
    std::fs::write(
        &job,
        self::job("[federation.cloud]\nrounds = 1\n").replace("[batch]", "[batch]\nnormalize = 'measured'"),
    )
    .unwrap();
    federation.train().refused(2, "every member would measure its own");
    std::fs::write(&job, self::job("")).unwrap();
    federation.train().refused(2, "--local");
    let missing = federation.site.cloud.ask(&["job", "show", "nothing"]);
    assert!(missing.code != 0 && missing.stderr.contains("no job `nothing`"), "{missing:?}");
    let end = federation.end(0, &federation.site.cloud.url);
    let refused = end.ask(&["train", job.to_str().unwrap()]);
    assert_ne!(refused.code, 0);
}

#[test]
fn ends_without_the_data_say_so_and_the_others_go_on() {
    let federation = Federation::new("[federation.cloud]\nrounds = 2\nclients = { min = 2 }\n");
    let ends: Vec<Node> = (0..2).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
    let bare = federation.site.end("bare", &federation.site.cloud.url, &[]);
    let wrong = federation.site.end("wrong", &federation.site.cloud.url, &[]);
    let table = federation.folder.path().join("table.csv");
    std::fs::write(&table, "a,b,label\n1,2,x\n3,4,y\n5,6,x\n").unwrap();
    let ran = wrong.ask(&["data", "add", "squares", table.to_str().unwrap(), "--label-column", "label"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let mut watcher = federation.watch();
    let said = until("both say why not", || {
        let shown = federation.site.cloud.ask(&["job", "show", "squares", "--json"]);
        let excluded = (shown.code == 0).then(|| shown.json()["excluded"].clone())?;
        (excluded.as_array()?.len() == 2).then_some(excluded)
    });
    let reason = |node: &str| {
        let found = said.as_array().unwrap().iter().find(|e| e["node"] == node).unwrap();
        found["reason"].as_str().unwrap().to_owned()
    };
    assert!(reason("bare").contains("no data set `squares`"), "{said}");
    assert!(reason("wrong").contains("[2]"), "{said}");
    assert!(watcher.wait().unwrap().success());
    drop((ends, bare));
}

//! A network that ends and the cloud train in parts (FedGKT), on real processes.

use tierline_sim::Scenario;

use crate::federation::{Federation, round_of};
use crate::harness::{Node, until};

const DIVIDED: &str = "strategy = { kind = 'fedgkt', features = 'Relu_1_out0', epochs = 2 }\n";

fn federation(settings: &str) -> Federation {
    let federation = Federation::new(settings);
    let job = federation.folder.path().join("squares.toml");
    let text = std::fs::read_to_string(&job).unwrap().replace("test = 'held-out'", "hold_out = 0.25");
    std::fs::write(&job, text).unwrap();
    federation
}

#[test]
fn ends_and_the_cloud_train_parts_as_in_simulation() {
    for (edges, up) in [(0, "[]"), (2, "['int8', 'zstd']")] {
        let federation =
            federation(&format!("[federation.cloud]\nrounds = 4\nup = {up}\nclients = {{ min = 3 }}\n{DIVIDED}"));
        let parents: Vec<Node> = (0..edges).map(|i| federation.site.edge(&format!("edge-{i:02}"))).collect();
        let parent = |end: usize| parents.get(end * edges / 3).map_or(&federation.site.cloud.url, |edge| &edge.url);
        let ends: Vec<Node> = (0..3).map(|i| federation.end(i as u64, parent(i))).collect();
        federation.own_models_are_as_simulated(&ends, edges);
    }
}

#[test]
fn whatever_is_killed_both_parts_come_out_the_same() {
    let mut federation = federation(&format!("[federation.cloud]\nrounds = 8\nclients = {{ min = 2 }}\n{DIVIDED}"));
    let mut ends: Vec<Node> = (0..2).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
    let mut watcher = federation.watch();
    until("some rounds have ended", || (round_of(&federation.site.cloud)? >= 2).then_some(()));
    ends[1].kill();
    ends[1].restart();
    until("and more", || (round_of(&federation.site.cloud)? >= 4).then_some(()));
    federation.site.cloud.kill();
    let _ended = watcher.wait();
    federation.site.cloud.restart();
    federation.done();
    let made = std::fs::read(federation.folder.path().join("out/model.onnx")).unwrap();
    let simulated = federation.simulated(&ends.iter().collect::<Vec<_>>(), &Scenario::default());
    assert!(made == simulated, "bit for bit, kills or not");
}

#[test]
fn a_model_that_cannot_be_divided_there_is_refused() {
    let federation =
        federation("[federation.cloud]\nrounds = 1\nstrategy = { kind = 'fedgkt', features = 'Relu_7' }\n");
    federation.train().refused(2, "can't be divided at `Relu_7`");
}

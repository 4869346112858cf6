//! Edges that gossip, on real processes: their models go from edge to edge, and
//! nobody above is needed for it.

use std::time::Duration;

use tierline_sim::Scenario;

use crate::federation::{Federation, lines, round_of, rounds};
use crate::harness::{Node, until};

fn edges(federation: &Federation, count: usize) -> (Vec<Node>, Vec<Node>) {
    let edges: Vec<Node> = (0..count).map(|i| federation.site.edge(&format!("edge-{i:02}"))).collect();
    let ends = (0..count).map(|i| federation.end(i as u64, &edges[i].url)).collect();
    (edges, ends)
}

fn simulated(federation: &Federation, ends: &[Node], edges: usize) -> Vec<u8> {
    let scenario = Scenario { edges, ..Scenario::default() };
    federation.simulated(&ends.iter().collect::<Vec<_>>(), &scenario)
}

#[test]
fn edges_meet_and_the_cloud_gets_what_they_came_to() {
    let text = "[federation.cloud]\nrounds = 2\nclients = { min = 4 }\n\
                [federation.edge]\nrounds = 4\ngossip = { every = 2 }\n";
    let federation = Federation::new(text);
    let (_edges, ends) = edges(&federation, 4);
    let lines = lines(&federation.train());
    assert!(federation.model() == simulated(&federation, &ends, 4), "bit for bit");
    // In each of the cloud's rounds: four updates from edges, four times four
    // from ends, and twice a model of each edge to two others.
    let model = 4 * 101_770;
    for round in rounds(&lines) {
        let bytes = round["bytes_up"].as_u64().unwrap();
        assert!((36 * model..36 * (model + 200)).contains(&bytes), "{bytes}");
    }
}

#[test]
fn edges_go_on_without_the_cloud_and_wait_for_one_that_was_killed() {
    let text = "[federation.cloud]\nrounds = 1\nclients = { min = 3 }\n\
                [federation.edge]\nrounds = 14\ngossip = { graph = 'complete', stages = ['qsgd:6'] }\n";
    let mut federation = Federation::new(text);
    let (mut edges, ends) = edges(&federation, 3);
    let mut watcher = federation.watch();
    let at = |edge: &Node, round: u64| until("edges go on", || (round_of(edge)? >= round).then_some(()));
    at(&edges[0], 2);
    federation.site.cloud.kill();
    let _ended = watcher.wait();
    let begun = round_of(&edges[0]).unwrap();
    at(&edges[0], begun + 2);
    edges[1].kill();
    // The others are at most one meeting further.
    std::thread::sleep(Duration::from_millis(500));
    let stopped = [0, 2].map(|i| round_of(&edges[i]).unwrap());
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!([0, 2].map(|i| round_of(&edges[i]).unwrap()), stopped, "nobody goes on without a neighbour");
    edges[1].restart();
    at(&edges[1], stopped[0] + 1);
    edges[2].kill();
    edges[2].restart();
    federation.site.cloud.restart();
    federation.done();
    let made = std::fs::read(federation.folder.path().join("out/model.onnx")).unwrap();
    assert!(made == simulated(&federation, &ends, 3), "bit for bit, kills or not");
}

#[test]
fn an_edge_that_stays_away_holds_nobody_up_for_ever() {
    let text = "[federation.cloud]\nrounds = 1\nclients = { min = 2, patience_s = 3.0 }\n\
                [federation.edge]\nrounds = 8\ngossip = { patience_s = 2.0 }\n";
    let federation = Federation::new(text);
    let (mut edges, _ends) = edges(&federation, 3);
    let mut watcher = federation.watch();
    until("edges have begun", || (round_of(&edges[0])? >= 1).then_some(()));
    edges[1].kill();
    let rounds = federation.done();
    assert_eq!(rounds[0]["clients"], 2, "{rounds:?}");
    let _ended = watcher.wait();
}

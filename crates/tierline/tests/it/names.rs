//! Classes by name on real nodes: ends whose folders differ learn one model.

use std::path::Path;

use tierline_sim::Scenario;

use crate::federation::{Federation, lines, rounds};
use crate::harness::{Node, until};

const ALL: [&str; 3] = ["ant", "bee", "cow"];

/// Pictures of some of the classes, a folder each: a bright band per class.
fn zoo(folder: &Path, classes: &[&str], seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    for class in classes {
        let at = folder.join(class);
        std::fs::create_dir_all(&at).unwrap();
        let band = 9 * ALL.iter().position(|name| name == class).unwrap_or(2) as u32;
        for i in 0..24 {
            let picture = image::GrayImage::from_fn(28, 28, |_, y| {
                image::Luma([rng.u8(0..60) + if (band..band + 9).contains(&y) { 180 } else { 0 }])
            });
            picture.save(at.join(format!("{i}.png"))).unwrap();
        }
    }
}

fn end(federation: &Federation, number: usize, parent: &str, classes: &[&str]) -> Node {
    let end = federation.site.end(&format!("end-{number:03}"), parent, &[]);
    let folder = federation.folder.path().join(format!("zoo-{number}"));
    zoo(&folder, classes, number as u64);
    let ran = end.ask(&["data", "add", "squares", folder.to_str().unwrap(), "--grey"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    end
}

/// A site whose cloud has no data set: ends hold examples out.
fn among_ends(federation: &str, data: &str) -> Federation {
    let federation = Federation::new(federation);
    let job = federation.folder.path().join("squares.toml");
    let text = std::fs::read_to_string(&job).unwrap().replace("test = 'held-out'", data);
    std::fs::write(job, text).unwrap();
    federation
}

/// Ends agree although the first one has no ants and nobody above has any data.
fn agree(text: &str, edges: usize) {
    let federation = among_ends(text, "hold_out = 0.25");
    let edges: Vec<Node> = (0..edges).map(|i| federation.site.edge(&format!("edge-{i:02}"))).collect();
    let parent = |i: usize| edges.get(i).map_or(&federation.site.cloud.url, |edge| &edge.url);
    let ends = [end(&federation, 0, parent(0), &ALL[1..]), end(&federation, 1, parent(1), &ALL)];
    let lines = lines(&federation.train());
    let last = rounds(&lines).last().unwrap()["accuracy"].as_f64().unwrap();
    assert!(last > 0.9, "{lines:?}");
    let scenario = Scenario { edges: edges.len(), ..Scenario::default() };
    assert!(federation.model() == federation.simulated(&ends.iter().collect::<Vec<_>>(), &scenario), "bit for bit");
}

#[test]
fn ends_of_a_cloud_agree() {
    agree("[federation]\nevaluate_at = 'ends'\n[federation.cloud]\nrounds = 4\nclients = { min = 2 }\n", 0);
}

#[test]
fn ends_agree_through_edges_that_pass_on() {
    agree("[federation]\nevaluate_at = 'ends'\n[federation.cloud]\nrounds = 4\nclients = { min = 2 }\n", 2);
}

#[test]
fn ends_of_edges_that_coordinate_agree() {
    let text = "[federation]\nevaluate_at = 'ends'\n[federation.cloud]\nrounds = 4\nclients = { min = 2 }\n\
                [federation.edge]\nrounds = 1\nclients = { min = 1 }\n";
    agree(text, 2);
}

#[test]
fn what_the_cloud_holds_out_names_the_classes() {
    let federation = Federation::new("[federation.cloud]\nrounds = 4\nclients = { min = 2 }\n");
    let cloud = &federation.site.cloud;
    let held_out = federation.folder.path().join("zoo-held-out");
    zoo(&held_out, &ALL, 99);
    let ran = cloud.ask(&["data", "add", "held-out", held_out.to_str().unwrap(), "--grey", "--replace"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let _ends = [end(&federation, 0, &cloud.url, &ALL[1..]), end(&federation, 1, &cloud.url, &ALL)];
    // One of a class that nobody held out learns nothing.
    let _stranger = end(&federation, 2, &cloud.url, &["bee", "dog"]);
    let lines = lines(&federation.train());
    assert!(rounds(&lines).last().unwrap()["accuracy"].as_f64().unwrap() > 0.9, "{lines:?}");
    let unable = lines.iter().find(|line| line["event"] == "unable").unwrap();
    assert_eq!(unable["node"], "end-002");
    let reason = unable["reason"].as_str().unwrap();
    assert!(reason.contains("`dog`") && reason.contains("ant, bee, cow"), "{reason}");
}

#[test]
fn a_class_that_the_model_has_no_room_for_is_refused_by_name() {
    let text = "[federation]\nevaluate_at = 'ends'\n[federation.cloud]\nrounds = 50\nclients = { min = 1 }\n";
    let federation = among_ends(text, "hold_out = 0.25\nclasses = ['bee', 'cow']");
    let mut watcher = federation.watch();
    let _knows = end(&federation, 0, &federation.site.cloud.url, &ALL[1..]);
    let _stranger = end(&federation, 1, &federation.site.cloud.url, &ALL);
    // Before its data set is added it says that it has none.
    let reason = until("it says which", || Some(federation.reason("end-001")).filter(|r| r.contains("`ant`")));
    assert!(reason.contains("bee, cow"), "{reason}");
    let ran = federation.site.cloud.ask(&["job", "cancel", "squares"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let _cancelled = watcher.wait();
    until("it is over", || federation.shown().filter(|job| job["state"] == "cancelled"));
}

//! Updates of members that repeat themselves, lie, or mean harm.

use tierline_federate::wire;
use tierline_proto::Role;
use tierline_proto::v1::{Code, Empty, NodeInfo, Subtree, WorkReport, child_message, job_status, job_verdict};

use crate::faults::{number, of};
use crate::federation::{Federation, lines};
use crate::ghost::Ghost;
use crate::harness::{Ran, until};

#[test]
fn an_update_counts_once_however_often_it_is_sent() {
    let federation = Federation::new("[federation.cloud]\nrounds = 2\nclients = { min = 1 }\n");
    let ghost = Ghost::new(&federation, "ghost");
    let mut watcher = federation.watch();
    let first = ghost.work();
    let update = ghost.update(1.0);
    assert_eq!(ghost.submit(&first, 0, "", &update).unwrap(), job_verdict::Kind::Counted);
    assert_eq!(ghost.submit(&first, 0, "", &update).unwrap(), job_verdict::Kind::Counted);
    // Other bytes for a task that is answered change nothing.
    assert_eq!(ghost.submit(&first, 0, "", &ghost.update(7.0)).unwrap(), job_verdict::Kind::Counted);
    let second = until("the next round", || Some(ghost.work()).filter(|(_, task)| *task != first.1));
    assert_eq!(ghost.submit(&first, 0, "", &update).unwrap(), job_verdict::Kind::Counted, "of a model that is made");
    assert_eq!(ghost.submit(&second, 90, "", &update).unwrap(), job_verdict::Kind::Unknown);
    let stolen = ghost.submit(&second, 0, "somebody", &update).unwrap_err();
    assert_eq!(stolen.code(), Code::Unreachable, "{stolen}");
    assert!(stolen.message.contains("has not said that somebody is below it"), "{stolen}");
    assert_eq!(ghost.submit(&second, 0, "", &ghost.update(0.5)).unwrap(), job_verdict::Kind::Counted);
    assert!(watcher.wait().unwrap().success());
    let rounds = federation.done();
    assert!(rounds.len() == 2 && rounds.iter().all(|round| round["clients"] == 1), "{rounds:?}");
}

#[test]
fn a_member_can_neither_spoil_nor_take_what_another_one_sent() {
    let federation = Federation::new("[federation.cloud]\nrounds = 1\nclients = { min = 2 }\n");
    let (good, bad) = (Ghost::new(&federation, "good"), Ghost::new(&federation, "spoiler"));
    let mut watcher = federation.watch();
    let (work, own) = (good.work(), bad.work());
    assert_eq!(good.submit(&work, 0, "", &good.update(1.0)).unwrap(), job_verdict::Kind::Counted);
    // In its own name, for the other one's task.
    assert_eq!(bad.submit(&work, 0, "", &bad.update(9.0)).unwrap(), job_verdict::Kind::Late);
    assert_eq!(of(&federation.site.cloud.scrape(), "tierline_job_updates_total{", "\"late\""), Some(1.0));
    // What was counted must still be there after a crash.
    let mut federation = federation;
    federation.site.cloud.kill();
    let _ended = watcher.wait();
    federation.site.cloud.restart();
    let bad = bad.again(&federation);
    let _good = good.again(&federation);
    let verdict = until("the job is taken up", || bad.submit(&own, 0, "", &bad.update(1.0)).ok());
    assert_eq!(verdict, job_verdict::Kind::Counted);
    assert_eq!(federation.done()[0]["clients"], 2);
}

#[test]
fn an_edge_speaks_for_nobody_who_is_here_or_behind_another() {
    let federation = Federation::new("[federation.cloud]\nrounds = 1\nclients = { min = 2 }\n");
    let good = Ghost::new(&federation, "good");
    let (edge, liar) = (Ghost::named(&federation, "edge", "honest"), Ghost::named(&federation, "edge", "liar"));
    let mut watcher = federation.watch();
    let job = edge.job();
    let behind = federation.site.join("end", "behind", &federation.site.cloud.url);
    // Of somebody of whom the cloud doesn't know that it is there, nobody speaks.
    liar.reported(&job, "behind", job_status::Status::Examples(50));
    edge.has_below(&[&behind]);
    edge.reported(&job, "behind", job_status::Status::Examples(50));
    liar.has_below(&[&behind, &federation.site.folder.path().join("good")]);
    let work = good.work();
    let behind = edge.work();
    // Of a node that is here, and of one behind the other edge.
    for (node, work) in [("good", &work), ("behind", &behind)] {
        liar.reported(&job, node, job_status::Status::Examples(1));
        liar.reported(&job, node, job_status::Status::Away(Empty {}));
        let refused = liar.submit(work, 0, node, &liar.update(9.0)).unwrap_err();
        assert!(refused.message.contains(&format!("liar has not said that {node} is below it")), "{refused}");
    }
    assert_eq!(good.submit(&work, 0, "", &good.update(1.0)).unwrap(), job_verdict::Kind::Counted);
    assert_eq!(edge.submit(&behind, 0, "behind", &edge.update(1.0)).unwrap(), job_verdict::Kind::Counted);
    assert!(watcher.wait().unwrap().success());
    assert_eq!(federation.done()[0]["clients"], 2);
    // Edges that pass a job on are no members of it.
    assert_eq!(number(&federation.site.cloud.scrape(), "tierline_job_members{"), Some(2.0));
}

#[test]
fn who_is_not_there_has_no_say() {
    let federation = Federation::new("[federation.cloud]\nrounds = 1\nclients = { min = 2 }\n");
    let edge = federation.site.edge("edge");
    let (good, other) = (Ghost::new(&federation, "good"), Ghost::below(&federation, "end", "other", &edge.url));
    let rogue = Ghost::named(&federation, "edge", "rogue");
    let mut watcher = federation.watch();
    let job = other.job();
    // An end speaks for itself, though it is behind an edge that passes on.
    let absent = federation.site.join("end", "absent", &edge.url);
    other.has_below(&[&absent]);
    other.reported(&job, "absent", job_status::Status::Examples(9));
    // An edge speaks for nobody whom the site doesn't have.
    let made_up = |name: &str| NodeInfo {
        node_id: "0123456789abcdef0123456789abcdef".into(),
        node_name: name.to_owned(),
        role: Role::End.into(),
        ..NodeInfo::default()
    };
    for name in ["nobody", "a\u{1b}[2Jb", &"x".repeat(1 << 20)] {
        let subtree = Subtree { nodes: vec![made_up(name)], news: true, ..Subtree::default() };
        rogue.say(child_message::Body::Subtree(subtree));
        rogue.reported(&job, name, job_status::Status::Examples(9));
    }
    let work = (good.work(), other.work());
    let stolen = other.submit(&work.1, 0, "absent", &other.update(9.0)).unwrap_err();
    assert!(stolen.message.contains("other has not said that absent is below it"), "{stolen}");
    assert_eq!(good.submit(&work.0, 0, "", &good.update(1.0)).unwrap(), job_verdict::Kind::Counted);
    assert_eq!(other.submit(&work.1, 0, "", &other.update(1.0)).unwrap(), job_verdict::Kind::Counted);
    assert!(watcher.wait().unwrap().success());
    assert_eq!(number(&federation.site.cloud.scrape(), "tierline_job_members{"), Some(2.0));
    let nodes = federation.site.cloud.ask(&["nodes", "--json"]).json();
    let here = nodes["nodes"].as_array().unwrap().iter().filter(|n| n["state"] != "never");
    let mut names: Vec<&str> = here.filter_map(|n| n["name"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["cloud", "edge", "good", "other", "rogue"]);
}

#[test]
fn updates_that_will_not_do_leave_their_sender_out_and_the_job_goes_on() {
    let federation = Federation::new("[federation.cloud]\nrounds = 2\nclients = { min = 1 }\n");
    let names = ["short", "nan", "cut", "huge", "strange", "long", "idle"];
    let good = Ghost::new(&federation, "good");
    let bad: Vec<Ghost> = names.iter().map(|name| Ghost::new(&federation, name)).collect();
    let mut watcher = federation.watch();
    let work = good.work();
    let fit = good.update(1.0);
    let layout = good.parameter_layout.layout();
    let with = |spoil: &dyn Fn(&mut Vec<f32>)| {
        let mut vectors = good.parameter_layout.initial();
        vectors.values_mut().for_each(spoil);
        vectors
    };
    let mut other = layout.clone();
    other.parameters.truncate(1);
    let shorter = with(&|vector| vector.truncate(other.parameters[0].len()));
    // Stages refuse to write it: it is put in a number's place.
    let mut not_a_number = fit.clone();
    let last = fit.windows(4).rposition(|bytes| bytes == 1f32.to_le_bytes()).unwrap();
    not_a_number[last..last + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let report = WorkReport { examples: 100, steps: 8, effective_steps: 8.0, ..WorkReport::default() };
    let cases = [
        (wire::encode(&shorter, &other).unwrap(), report, "the shapes of the parts hold 101770"),
        (not_a_number, report, "not a finite number"),
        (fit[..fit.len() / 2].to_vec(), report, "it ends too early"),
        (wire::encode(&with(&|vector| vector.fill(1e30)), layout).unwrap(), report, "beyond"),
        (b"no update at all".to_vec(), report, "can't be read"),
        (vec![7; 40 * fit.len()], report, "at most"),
        (fit.clone(), WorkReport { examples: 0, ..report }, "examples"),
    ];
    for ((ghost, name), (update, report, expected)) in bad.iter().zip(names).zip(cases) {
        let verdict = ghost.submit_with(&ghost.work(), report, &update).unwrap();
        assert_eq!(verdict.kind(), job_verdict::Kind::Refused, "{name}: {verdict:?}");
        assert!(verdict.reason.contains(expected), "{name}: {verdict:?}");
        assert_eq!(federation.reason(name), verdict.reason);
    }
    assert_eq!(good.submit(&work, 0, "", &fit).unwrap(), job_verdict::Kind::Counted);
    let second = until("the next round", || Some(good.work()).filter(|(_, task)| *task != work.1));
    assert_eq!(good.submit(&second, 0, "", &fit).unwrap(), job_verdict::Kind::Counted);
    let text = federation.site.cloud.scrape();
    assert!(watcher.wait().unwrap().success());
    assert!(federation.done().iter().all(|round| round["clients"] == 1));
    assert_eq!(of(&text, "tierline_job_updates_total{", "refused"), Some(names.len() as f64), "{text}");
    // Who was left out is known still.
    let shown = federation.shown().unwrap();
    let out: Vec<&str> = shown["excluded"].as_array().unwrap().iter().filter_map(|e| e["node"].as_str()).collect();
    let mut expected = names;
    expected.sort_unstable();
    assert_eq!(out, expected);
}

#[test]
fn several_streams_of_one_update_are_one() {
    let federation = Federation::new("[federation.cloud]\nrounds = 2\nclients = { min = 1 }\n");
    let ghost = Ghost::new(&federation, "ghost");
    let mut watcher = federation.watch();
    let first = ghost.work();
    let (update, other) = (ghost.update(1.0), ghost.update(2.0));
    // Its link was gone for a moment: it sends again while the old stream lives.
    let old = ghost.begin(&first, &update);
    let new = ghost.begin(&first, &update);
    let gone = ghost.finish(old, &update).unwrap_err();
    assert!(gone.message.contains("newer stream"), "{gone}");
    // Broken bytes for the same task are no harm to the good ones.
    let broken = ghost.begin(&first, &other[..other.len() / 2]);
    drop((new, broken));
    let counted = until("it gets through", || ghost.submit(&first, 0, "", &update).ok());
    assert_eq!(counted, job_verdict::Kind::Counted);
    let second = until("the next round", || Some(ghost.work()).filter(|(_, task)| *task != first.1));
    let counted = until("and so does the next", || ghost.submit(&second, 0, "", &other).ok());
    assert_eq!(counted, job_verdict::Kind::Counted);
    assert!(watcher.wait().unwrap().success());
    let rounds = federation.done();
    assert!(rounds.len() == 2 && rounds.iter().all(|round| round["clients"] == 1), "{rounds:?}");
    let bytes = update.len() as u64;
    assert!(rounds.iter().all(|round| round["bytes_up"] == bytes), "each update weighs once: {rounds:?}");
}

#[test]
fn an_update_that_is_not_finite_is_refused_and_its_sender_left_out() {
    let federation = Federation::new("[federation.cloud]\nrounds = 1\nclients = { min = 1 }\n");
    let _end = federation.end(0, &federation.site.cloud.url);
    let ghost = Ghost::new(&federation, "ghost");
    let watcher = federation.watch_lines();
    let work = ghost.work();
    let mut update = ghost.update(1.0);
    // Wherever numbers begin, one of them has no bit that is not set.
    let middle = update.len() / 2;
    update[middle..middle + 8].fill(0xff);
    assert_eq!(ghost.submit(&work, 0, "", &update).unwrap(), job_verdict::Kind::Refused);
    assert_eq!(of(&federation.site.cloud.scrape(), "tierline_job_updates_total{", "\"refused\""), Some(1.0));
    let lines = lines(&Ran::of(watcher.wait_with_output().unwrap()));
    let excluded = lines.iter().find(|line| line["event"] == "excluded").expect("a line says so");
    assert_eq!(excluded["node"], "ghost");
    assert!(excluded["reason"].as_str().unwrap().contains("finite"), "{excluded}");
    assert_eq!(federation.done()[0]["clients"], 1);
}

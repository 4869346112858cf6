//! A site at work: placements agree, faults are answered, state survives.

use std::time::{Duration, Instant};

use crate::harness::{Link, Model, Node, Site, outputs, same_outputs, tierline, until, until_planned, within};

/// A cloud, an edge and an end, planned.
struct Three {
    site: Site,
    edge: Node,
    end: Node,
    model: Model,
}

impl Three {
    fn start() -> Self {
        let site = Site::new();
        let edge = site.edge("edge-1");
        let end = site.end("end-1", &edge.url, &[]);
        let model = site.add_model();
        until_planned(&end);
        Self { site, edge, end, model }
    }

    /// Everything on the end: what all other ways must equal.
    fn reference(&self) -> serde_json::Value {
        self.end
            .ask(&["infer", "--model", "digits", "--input", &self.model.input, "--placement", "here", "--json"])
            .json()
    }
}

#[test]
fn every_placement_gives_the_same_answer() {
    let site = Site::new();
    let edge = site.edge("edge-1");
    let end = site.end("end-1", &edge.url, &["--slowdown", "3"]);
    let model = site.add_model();
    until_planned(&end);
    let ask = |placement: &str| {
        end.ask(&["infer", "--model", "digits", "--input", &model.input, "--placement", placement, "--json"]).json()
    };
    let here = ask("here");
    assert_eq!(here["stages"][0]["node"], "end-1");
    for (placement, node) in [("edge", "edge-1"), ("cloud", "cloud")] {
        let answer = ask(placement);
        let last = answer["stages"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(last["node"], node, "{answer}");
        assert!(last["compute_ms"].as_f64().unwrap() > 0.0);
        same_outputs(&here, &answer);
    }
    let planned = ask("plan");
    assert_eq!(planned["degraded"], false);
    assert!(planned["predicted_ms"].as_f64().unwrap() > 0.0);
    same_outputs(&here, &planned);
    let cuts = end.ask(&["model", "show", "digits", "--json"]).json()["cuts"].as_array().unwrap().len();
    for split in 0..=cuts {
        let places = format!("{split},{}", (split + 2).min(cuts + 1));
        let answer =
            end.ask(&["infer", "--model", "digits", "--input", &model.input, "--split", &places, "--json"]).json();
        assert_eq!(answer["degraded"], false, "{answer}");
        same_outputs(&here, &answer);
    }
}

#[test]
fn without_loss_allowed_every_split_is_exact() {
    let site = Site::new();
    let edge = site.edge("edge-1");
    let data = site.join("end", "end-1", &edge.url);
    let mut config = std::fs::read_to_string(data.join("node.toml")).unwrap();
    config = config.replace("max_loss = 0.001", "max_loss = 0.0");
    assert!(config.contains("max_loss = 0.0"), "{config}");
    std::fs::write(data.join("node.toml"), config).unwrap();
    let end = Node::start(&data, &[]);
    let model = site.add_model();
    until_planned(&end);
    let ask = |how: &[&str]| {
        end.ask(&[&["infer", "--model", "digits", "--input", &model.input, "--json"], how].concat()).json()
    };
    let here = ask(&["--placement", "here"]);
    for split in ["0,0", "0,4", "2,2", "3,6", "7,7"] {
        within(1e-5, &here, &ask(&["--split", split]));
    }
}

#[test]
fn an_end_may_sit_directly_below_the_cloud() {
    let site = Site::new();
    let model = site.add_model();
    let end = site.end("end-1", &site.cloud.url, &[]);
    until_planned(&end);
    let answer =
        end.ask(&["infer", "--model", "digits", "--input", &model.input, "--placement", "cloud", "--json"]).json();
    assert_eq!(answer["stages"].as_array().unwrap().last().unwrap()["node"], "cloud");
}

#[test]
fn an_end_that_cannot_hold_the_model_is_answered_from_above() {
    let site = Site::new();
    let edge = site.edge("edge-1");
    let end = site.end("end-1", &edge.url, &["--memory", "1000"]);
    let model = site.add_model();
    until_planned(&end);
    let ask = |placement: &str| {
        end.ask(&["infer", "--model", "digits", "--input", &model.input, "--placement", placement, "--json"]).json()
    };
    let planned = ask("plan");
    assert_eq!(planned["degraded"], false, "a plan that needs no memory here is no emergency: {planned}");
    assert_ne!(planned["stages"].as_array().unwrap().last().unwrap()["node"], "end-1");
    let here = ask("here");
    assert_eq!(here["degraded"], true, "{here}");
    same_outputs(&planned, &here);
}

#[test]
fn a_killed_edge_degrades_answers_until_it_is_back() {
    let Three { site: _site, mut edge, end, model } = Three::start();
    let ask = || {
        end.ask(&[
            "infer",
            "--model",
            "digits",
            "--input",
            &model.input,
            "--placement",
            "cloud",
            "--deadline",
            "5 s",
            "--json",
        ])
    };
    let whole = ask().json();
    assert_eq!(whole["degraded"], false);
    edge.kill();
    let degraded = ask().json();
    assert_eq!(degraded["degraded"], true, "{degraded}");
    assert!(!degraded["reason"].as_str().unwrap().is_empty());
    same_outputs(&whole, &degraded);
    edge.restart();
    until("answers from the cloud again", || {
        let answer = ask();
        (answer.code == 0 && answer.json()["degraded"] == false).then_some(())
    });
}

#[test]
fn a_killed_cloud_leaves_its_site_answering_and_forgets_nothing() {
    let mut site = Site::new();
    let edge = site.edge("edge-1");
    let end = site.end("end-1", &edge.url, &[]);
    let model = site.add_model();
    until_planned(&end);
    until_planned(&edge);
    let ask = |placement: &str| {
        end.ask(&["infer", "--model", "digits", "--input", &model.input, "--placement", placement, "--json"])
    };
    let before = ask("cloud").json();
    site.cloud.kill();
    let by_edge = ask("cloud").json();
    assert_eq!(by_edge["degraded"], true, "{by_edge}");
    same_outputs(&before, &by_edge);
    assert_eq!(ask("edge").json()["degraded"], false);
    site.cloud.restart();
    let models = site.cloud.ask(&["model", "ls", "--json"]).json();
    assert_eq!(models["models"][0]["name"], "digits");
    until("the cloud answering again", || {
        let answer = ask("cloud");
        (answer.code == 0 && answer.json()["degraded"] == false).then_some(())
    });
}

#[test]
fn a_node_killed_amid_requests_answers_each_of_them_somehow() {
    let mut three = Three::start();
    let reference = three.reference();
    let Three { edge, end, model, .. } = &mut three;
    let (end, model) = (&*end, &*model);
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    end.ask(&[
                        "infer",
                        "--model",
                        "digits",
                        "--input",
                        &model.input,
                        "--placement",
                        "edge",
                        "--repeat",
                        "400",
                        "--json",
                    ])
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        edge.kill();
        for asked in asking {
            let ran = asked.join().unwrap();
            assert_eq!(ran.code, 0, "{ran:?}");
            let answers: Vec<serde_json::Value> =
                ran.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            assert_eq!(answers.len(), 400);
            for answer in &answers {
                same_outputs(&reference, answer);
            }
            assert_eq!(answers.last().unwrap()["degraded"], true);
        }
    });
}

#[test]
fn an_end_with_two_parents_goes_through_the_one_that_is_up() {
    let site = Site::new();
    let (mut first, second) = (site.edge("edge-1"), site.edge("edge-2"));
    let end = site.end("end-1", &first.url, &["--parent", &first.url, "--parent", &second.url]);
    let model = site.add_model();
    until_planned(&end);
    let through = |edge: &str| {
        let ran = end.ask(&["infer", "--model", "digits", "--input", &model.input, "--placement", "cloud", "--json"]);
        let answer = ran.json();
        let nodes = answer["stages"].as_array()?.iter().map(|s| s["node"].as_str().unwrap().to_owned());
        (answer["degraded"] == false && nodes.collect::<Vec<_>>() == ["end-1", edge, "cloud"]).then_some(answer)
    };
    let before = until("answers through the first", || through("edge-1"));
    first.kill();
    let after = until("answers through the second", || through("edge-2"));
    same_outputs(&before, &after);
    first.restart();
    until("answers through the first again", || through("edge-1"));
}

#[test]
fn a_site_of_two_edges_and_four_ends_answers_everywhere() {
    let site = Site::new();
    let edges = [site.edge("edge-1"), site.edge("edge-2")];
    let model = site.add_model();
    let ends: Vec<Node> =
        (0..4).map(|i| site.end(&format!("end-{i}"), &edges[i % 2].url, &["--scale-of-parent", "2"])).collect();
    ends.iter().for_each(until_planned);
    let nodes = until("all nodes being known to the cloud", || {
        let nodes = site.cloud.ask(&["nodes", "--json"]).json()["nodes"].as_array()?.clone();
        (nodes.len() == 7 && nodes.iter().all(|n| n["state"] == "connected")).then_some(nodes)
    });
    let parent = |name: &str| nodes.iter().find(|n| n["name"] == name).map(|n| n["parent"].clone());
    assert_eq!((parent("end-0"), parent("end-3")), (Some("edge-1".into()), Some("edge-2".into())));
    std::thread::scope(|scope| {
        for end in &ends {
            scope.spawn(|| {
                let args = ["infer", "--model", "digits", "--input", &model.input, "--repeat", "5", "--json"];
                let ran = end.ask(&args);
                assert_eq!((ran.code, ran.stdout.lines().count()), (0, 5), "{ran:?}");
            });
        }
    });
}

#[test]
fn models_flow_down_once_and_names_can_be_taken_back() {
    let site = Site::new();
    let edge = site.edge("edge-1");
    let end = site.end("end-1", &edge.url, &[]);
    site.add_model();
    let names = |node: &Node| {
        let models = node.ask(&["model", "ls", "--json"]).json();
        models["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    until("the end knowing the model", || (names(&end) == ["digits"]).then_some(()));
    end.ask(&["model", "rm", "digits"]).refused(6, "kept on the cloud");
    assert_eq!(site.cloud.ask(&["model", "rm", "digits"]).code, 0);
    until("the end forgetting it", || names(&end).is_empty().then_some(()));
}

#[test]
fn a_broken_transfer_is_resumed() {
    let site = Site::new();
    let mut edge = site.edge("edge-1");
    let end = site.end("end-1", &edge.url, &[]);
    let large = tierline_zoo::mobilenet_v2(&tierline_zoo::Options::default());
    let file = site.folder.path().join("large.onnx");
    large.save(&file).unwrap();
    assert_eq!(site.cloud.ask(&["model", "add", file.to_str().unwrap(), "--name", "large"]).code, 0);
    // The edge dies while the model flows through it.
    edge.kill();
    edge.restart();
    let ready = || {
        let models = end.ask(&["model", "ls", "--json"]).json();
        models["models"].as_array()?.iter().any(|m| m["name"] == "large" && m["state"] == "ready").then_some(())
    };
    until("the end having the model", ready);
}

#[test]
fn artefacts_that_were_whole_but_unhashed_are_taken() {
    let site = Site::new();
    let mut edge = site.edge("edge-1");
    site.add_model();
    let ready = |edge: &Node| {
        let models = edge.ask(&["model", "ls", "--json"]).json();
        let model = models["models"].as_array()?.iter().find(|m| m["name"] == "digits" && m["state"] == "ready")?;
        model["digest"].as_str().map(str::to_owned)
    };
    let digest = until("the edge having the model", || ready(&edge));
    edge.kill();
    // As if it had died after the last byte, before the hash.
    let whole = edge.data.join("artefacts/whole").join(&digest[..2]).join(&digest);
    let partial = edge.data.join("artefacts/partial").join(&digest);
    std::fs::rename(&whole, &partial).unwrap();
    let bytes = std::fs::read(&partial).unwrap();
    // What comes from the cloud now would be of no use.
    let above = site.cloud.data.join("artefacts/whole").join(&digest[..2]).join(&digest);
    std::fs::write(above, vec![0; bytes.len()]).unwrap();
    edge.restart();
    until("the edge having it again", || ready(&edge));
    assert!(std::fs::read(&whole).unwrap() == bytes);
}

#[test]
fn a_node_told_to_stop_ends_well_and_soon() {
    let mut site = Site::new();
    let begun = Instant::now();
    let status = site.cloud.stop();
    assert!(status.success(), "{status:?}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(!site.cloud.data.join("tierline.sock").exists());
}

#[test]
fn concurrent_requests_are_all_answered() {
    let three = Three::start();
    let reference = three.reference();
    let Three { end, model, .. } = &three;
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    end.ask(&[
                        "infer",
                        "--model",
                        "digits",
                        "--input",
                        &model.input,
                        "--split",
                        "3,5",
                        "--repeat",
                        "10",
                        "--json",
                    ])
                })
            })
            .collect();
        for asked in asking {
            let ran = asked.join().unwrap();
            assert_eq!(ran.code, 0, "{ran:?}");
            for line in ran.stdout.lines() {
                let answer: serde_json::Value = serde_json::from_str(line).unwrap();
                assert!(!outputs(&answer).is_empty());
                same_outputs(&reference, &answer);
            }
        }
    });
}

#[test]
fn a_cut_link_is_answered_in_time_and_found_again() {
    let site = Site::new();
    let link = Link::to(&site.cloud.url, &["--bandwidth", "50mbit", "--delay", "5 ms"]);
    let end = site.end("end-1", &link.url(), &[]);
    let model = site.add_model();
    until_planned(&end);
    let ask = |placement: &str| {
        end.ask(&[
            "infer",
            "--model",
            "digits",
            "--input",
            &model.input,
            "--placement",
            placement,
            "--deadline",
            "3 s",
            "--json",
        ])
    };
    let whole = ask("cloud").json();
    assert_eq!(whole["degraded"], false);
    assert_eq!(link.set(&["--cut"])["cut"], true);
    let begun = Instant::now();
    let cut = ask("cloud").json();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(cut["degraded"], true);
    same_outputs(&whole, &cut);
    // Its own answers never needed the link.
    assert_eq!(ask("here").json()["degraded"], false);
    link.set(&["--restore"]);
    until("answers over the link again", || (ask("cloud").json()["degraded"] == false).then_some(()));
}

/// How long an answer here takes beyond the engine's time, once the loss of
/// the link is known: 50 ms, or two round trips.
const KNOWN_LOSS_MAX: Duration = Duration::from_millis(80);

/// And until it is known: the silence that a parent may keep, and as much again
/// for a machine that others keep busy. Patience with a late answer would be more.
const NEW_LOSS_MAX: Duration = Duration::from_millis(400);

#[test]
fn a_request_on_a_cut_link_waits_for_a_sign_of_life_and_no_longer() {
    let site = Site::new();
    let link = Link::to(&site.cloud.url, &["--bandwidth", "100mbit", "--delay", "20 ms"]);
    let end = site.end("end-1", &link.url(), &["--slowdown", "400"]);
    let model = site.add_model();
    until_planned(&end);
    let ask = |placement: &str| {
        let args = ["infer", "--model", "digits", "--input", &model.input, "--placement", placement, "--json"];
        end.ask(&[&args[..], &["--deadline", "20 s"]].concat()).json()
    };
    let latency = |answer: &serde_json::Value| Duration::from_secs_f64(answer["latency_ms"].as_f64().unwrap() / 1e3);
    let offloads = || {
        let answer = ask("plan");
        (answer["stages"].as_array()?.len() > 1 && answer["degraded"] == false).then_some(())
    };
    until("a plan that uses the link", offloads);
    let here = (0..3).map(|_| latency(&ask("here"))).max().unwrap();
    // The best of some: others use this machine as well.
    let (mut new, mut known) = (Duration::MAX, Duration::MAX);
    for _ in 0..4 {
        link.set(&["--cut"]);
        let first = ask("plan");
        assert_eq!(first["degraded"], true);
        let reason = first["reason"].as_str().unwrap();
        if reason.contains("no sign of life") {
            new = new.min(latency(&first).saturating_sub(here));
        }
        let lost = || {
            let status = end.ask(&["node", "status", "--json"]).json();
            (status["parents"][0]["state"] != "connected").then_some(())
        };
        until("the lease is lost", lost);
        known = known.min(latency(&ask("plan")).saturating_sub(here));
        link.set(&["--restore"]);
        until("the link is used again", offloads);
        if new < NEW_LOSS_MAX && known < KNOWN_LOSS_MAX {
            return;
        }
    }
    panic!("{new:?} until a new loss was known, {known:?} with a known one, beyond the {here:?} of an answer here");
}

#[test]
fn a_model_that_flows_when_the_link_breaks_arrives_whole() {
    let site = Site::new();
    let link = Link::to(&site.cloud.url, &["--bandwidth", "20mbit"]);
    let end = site.end("end-1", &link.url(), &[]);
    let large = tierline_zoo::mobilenet_v2(&tierline_zoo::Options::default());
    let file = site.folder.path().join("large.onnx");
    large.save(&file).unwrap();
    assert_eq!(site.cloud.ask(&["model", "add", file.to_str().unwrap(), "--name", "large"]).code, 0);
    let down = || link.set(&[])["down_bytes"].as_u64().unwrap();
    until("the model being under way", || (down() > 1_000_000).then_some(()));
    link.set(&["--cut"]);
    std::thread::sleep(Duration::from_millis(300));
    link.set(&["--restore", "--bandwidth", "unlimited"]);
    let state = || {
        let models = end.ask(&["model", "ls", "--json"]).json();
        models["models"].as_array()?.iter().any(|m| m["name"] == "large" && m["state"] == "ready").then_some(())
    };
    until("the end having the model", state);
}

#[test]
fn a_link_is_as_fast_as_it_is_told_to_be() {
    use std::io::{Read, Write};
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("https://{}", server.local_addr().unwrap());
    let link = Link::to(&target, &["--up", "8mbit", "--down", "unlimited", "--delay", "30 ms"]);
    let far = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(b"done").unwrap();
        all.len()
    });
    let mut stream = std::net::TcpStream::connect(&link.listen).unwrap();
    let begun = Instant::now();
    stream.write_all(&vec![7; 1_000_000]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    // A million bytes at 8 Mbit/s and two delays: never sooner; later on a busy machine.
    assert!(begun.elapsed() >= Duration::from_millis(1_040), "{:?}", begun.elapsed());
    assert_eq!((far.join().unwrap(), answer.as_str()), (1_000_000, "done"));
    let state = link.set(&["--bandwidth", "1gbit"]);
    assert_eq!((state["up_bytes"].as_u64(), state["up_bits_per_s"].as_f64()), (Some(1_000_000), Some(1e9)));
    tierline(["link", "show", "--control", "127.0.0.1:1"]).refused(4, "no link answers");
    tierline(["link", "set", "--control", &link.control, "--loss", "200%"]).refused(1, "loss");
}

#[test]
fn a_certificate_is_renewed_through_the_edge_by_its_holder_only() {
    use tierline_daemon::net::transport;
    use tierline_identity::{Identity, KeyRequest};
    use tierline_proto::v1::enrollment_client::EnrollmentClient;
    let site = Site::new();
    let edge = site.edge("edge-1");
    let data = site.join("end", "end-1", &edge.url);
    let now = std::time::SystemTime::now();
    let identity = Identity::load(&data.join("identity"), now).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let endpoint = transport::endpoint(&edge.url, transport::client_tls(&identity)).unwrap();
        let mut enrollment = EnrollmentClient::new(endpoint.connect().await.unwrap());
        let key = KeyRequest::generate().unwrap();
        let request = identity.renewal(&key).unwrap();
        // Signed for another key.
        let other = KeyRequest::generate().unwrap().csr_der().unwrap();
        let stolen = tierline_proto::v1::RenewRequest { csr_der: other.into(), ..request.clone() };
        let refused = enrollment.renew(stolen).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused:?}");
        let reply = enrollment.renew(request).await.unwrap().into_inner();
        let chain =
            reply.certificate_chain.iter().map(|c| rustls::pki_types::CertificateDer::from(c.to_vec())).collect();
        let renewed = key.accept(chain, identity.ca().clone(), now).unwrap();
        assert_eq!((&renewed.peer().id, &renewed.peer().name), (&identity.peer().id, &identity.peer().name));
        assert_ne!(renewed.peer().serial, identity.peer().serial);
    });
}

#[test]
fn predictions_follow_a_device_that_is_slower_than_when_it_was_measured() {
    let site = Site::new();
    let data = site.join("end", "end-1", &site.cloud.url);
    let model = site.add_model();
    let mut end = Node::start(&data, &[]);
    until_planned(&end);
    end.stop();
    // A flag is for once: what was measured stays.
    let end = Node::start(&data, &["--slowdown", "6"]);
    until_planned(&end);
    let ask =
        || end.ask(&["infer", "--model", "digits", "--input", &model.input, "--placement", "here", "--json"]).json();
    let planned_ms = || {
        let plan = end.ask(&["plan", "digits", "--json"]).json();
        plan["evaluation"]["stages"][0]["compute_ns"].as_f64().unwrap() / 1e6
    };
    let measured = planned_ms();
    until("plans follow", || {
        drop(ask());
        (planned_ms() > 3.0 * measured).then_some(())
    });
    let answer = ask();
    assert!(answer["predicted_ms"].as_f64().unwrap() > 2.0 * measured, "{measured} ms were measured: {answer}");
}

#[test]
fn requests_leave_a_device_that_is_slower_than_when_it_was_measured() {
    let site = Site::new();
    let data = site.join("end", "end-1", &site.cloud.url);
    let model = site.add_model();
    let mut end = Node::start(&data, &[]);
    until_planned(&end);
    end.stop();
    let end = Node::start(&data, &["--slowdown", "40"]);
    until_planned(&end);
    let ask = || end.ask(&["infer", "--model", "digits", "--input", &model.input, "--json"]).json();
    // No table made of what was measured has a plan that leaves.
    let answer = until("a plan that leaves the end", || {
        let answer = ask();
        (answer["stages"].as_array()?.len() > 1).then_some(answer)
    });
    assert_eq!(answer["degraded"], false, "{answer}");
    let explained = end.ask(&["explain", "digits", "--json"]).json();
    assert_ne!(explained["in_force"], "everything on end-1", "{explained}");
}

//! Nothing is lost: while links are cut and nodes killed, every request is
//! answered or refused with a reason, within its deadline. `TIERLINE_REQUESTS`
//! and `TIERLINE_FAULTS` ask for more of both.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tierline::cli::infer::{Wanted, ask};
use tierline_graph::{Elements, Tensor};
use tierline_proto::v1::Placement;
use tierline_proto::v1::local_client::LocalClient;
use tonic::transport::Endpoint;

use crate::harness::{Link, Node, Site, until, until_planned};

/// What a request may take beyond its deadline until its end is seen, where
/// others keep the machine busy.
const NOISE: Duration = Duration::from_secs(2);

const DEADLINE: Duration = Duration::from_secs(2);

const CALLERS: u64 = 4;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// What became of requests, counted.
#[derive(Default, Debug)]
struct Ends {
    planned: u64,
    degraded: u64,
    /// By the exit code that a command would end with.
    refused: BTreeMap<String, u64>,
}

#[test]
fn every_request_ends_once_and_in_time_through_cuts_and_kills() {
    let (requests, faults) = (number("TIERLINE_REQUESTS", 400), number("TIERLINE_FAULTS", 8));
    let seed = number("TIERLINE_SEED", fastrand::u64(..));
    println!("TIERLINE_SEED={seed}");
    let mut site = Site::new();
    let upper = Link::to(&site.cloud.url, &["--bandwidth", "100mbit", "--delay", "2 ms"]);
    let data = site.join("edge", "edge-1", &upper.url());
    let mut edge = Node::start(&data, &["--listen", "127.0.0.1:0"]);
    let lower = Link::to(&edge.url, &["--bandwidth", "50mbit", "--delay", "2 ms"]);
    let end = site.end("end-1", &lower.url(), &[]);
    let model = site.add_model();
    until_planned(&end);
    let input = tierline_codec::npy::read(&std::fs::read(site.folder.path().join("input.npy")).unwrap()).unwrap();
    let inputs = [(model.name.clone(), input)];
    let socket = format!("unix://{}", end.data.join("tierline.sock").display());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let expected = runtime.block_on(async {
        let mut node = LocalClient::new(Endpoint::from_shared(socket.clone()).unwrap().connect().await.unwrap());
        ask(&mut node, "digits", &inputs, DEADLINE, &Wanted::at(Placement::Here)).await.unwrap().outputs
    });
    let (sent, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let callers: Vec<Ends> = std::thread::scope(|scope| {
        let call = |caller: u64| {
            let (inputs, expected, sent, socket, over) = (&inputs, &expected, &sent, &socket, &over);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut rng = fastrand::Rng::with_seed(seed ^ caller);
            runtime.block_on(async move {
                let channel = Endpoint::from_shared(socket.clone()).unwrap().connect().await.unwrap();
                let (mut node, mut ends) = (LocalClient::new(channel), Ends::default());
                // Goes on until the faults are over as well.
                while sent.fetch_add(1, Ordering::Relaxed) < requests || !over.load(Ordering::Relaxed) {
                    let wanted = match rng.u8(..4) {
                        0 => Wanted::at(Placement::Plan),
                        1 => Wanted::at(Placement::Edge),
                        2 => Wanted::at(Placement::Cloud),
                        _ => Wanted::split(&[rng.u32(0..3), rng.u32(3..5)]),
                    };
                    let begun = Instant::now();
                    let answered = ask(&mut node, "digits", inputs, DEADLINE, &wanted).await;
                    assert!(begun.elapsed() < DEADLINE + NOISE, "{:?}: {wanted:?}", begun.elapsed());
                    match answered {
                        Ok(answer) => {
                            same(&answer.outputs, expected);
                            let degraded = answer.reply.reply.as_ref().is_some_and(|reply| reply.degraded.is_some());
                            *(if degraded { &mut ends.degraded } else { &mut ends.planned }) += 1;
                        }
                        Err(refused) => {
                            assert!(!refused.error.to_string().is_empty());
                            *ends.refused.entry(format!("{:?}", refused.exit)).or_default() += 1;
                        }
                    }
                }
                ends
            })
        };
        let callers: Vec<_> = (0..CALLERS).map(|caller| scope.spawn(move || call(caller))).collect();
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..faults {
            let pause = |rng: &mut fastrand::Rng| std::thread::sleep(Duration::from_millis(rng.u64(20..600)));
            match rng.u8(..6) {
                fault @ 0..4 => {
                    let link = if fault % 2 == 0 { &lower } else { &upper };
                    link.set(&["--cut"]);
                    pause(&mut rng);
                    link.set(&["--restore"]);
                }
                4 => edge.restart(),
                _ => site.cloud.restart(),
            }
            pause(&mut rng);
        }
        over.store(true, Ordering::Relaxed);
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    let mut all = Ends::default();
    for ends in callers {
        (all.planned, all.degraded) = (all.planned + ends.planned, all.degraded + ends.degraded);
        for (exit, count) in ends.refused {
            *all.refused.entry(exit).or_default() += count;
        }
    }
    let ended = all.planned + all.degraded + all.refused.values().sum::<u64>();
    println!("{ended} requests through {faults} faults: {all:?}");
    assert!(ended >= requests && all.planned > 0, "{all:?}");
    // The end holds the model: it can answer whatever happens above.
    assert!(all.refused.values().sum::<u64>() * 100 <= ended, "{all:?}");
    // And the site is whole again.
    until("an answer of the cloud", || {
        let cloud = ["infer", "--model", "digits", "--input", &model.input, "--placement", "cloud", "--json"];
        let ran = end.ask(&cloud);
        (ran.code == 0 && ran.json()["degraded"] == false).then_some(())
    });
}

#[track_caller]
fn same(given: &[(String, Tensor)], expected: &[(String, Tensor)]) {
    assert_eq!(given.len(), expected.len());
    for ((name, a), (other, b)) in given.iter().zip(expected) {
        let (Elements::F32(a), Elements::F32(b)) = (a.elements(), b.elements()) else { panic!("floats") };
        let largest = b.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        assert!(name == other && a.len() == b.len());
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 5e-3 * largest), "{a:?} {b:?}");
    }
}

/// What was admitted before a node is told to stop is answered.
#[test]
fn a_node_that_is_told_to_stop_answers_what_it_admitted() {
    let site = Site::new();
    let mut end = site.end("end-1", &site.cloud.url, &["--slowdown", "600"]);
    let model = site.add_model();
    until("the model", || {
        let shown = end.ask(&["model", "ls", "--json"]).json();
        shown["models"].as_array()?.iter().any(|m| m["name"] == "digits").then_some(())
    });
    let here = ["infer", "--model", "digits", "--input", &model.input, "--placement", "here", "--deadline", "20 s"];
    // Loaded, and known how long it takes.
    let begun = Instant::now();
    assert_eq!(end.ask(&here).code, 0);
    let one = begun.elapsed();
    let asking = end.command(&[&here[..], &["--json"]].concat()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::thread::sleep(one / 4);
    let status = end.stop();
    let ran = crate::harness::Ran::of(asking.wait_with_output().unwrap());
    assert_eq!(ran.json()["degraded"], false);
    assert!(status.success());
}

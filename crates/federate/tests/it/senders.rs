//! What doesn't travel of changes of weights is remembered, and nothing of
//! those that counted is lost; all else is told anew.

use tierline_codec::update::Pipeline;
use tierline_federate::sender::{CONTROL, MemberState, Memory, Sender, Sent};
use tierline_federate::{Channel, Layout, Part, Vectors, wire};

fn layout() -> Layout {
    let part = |name: &str, shape: &[usize]| Part { name: name.to_owned(), shape: shape.to_vec() };
    Layout {
        parameters: vec![part("w", &[8, 10]), part("b", &[20])],
        statistics: vec![part("mean", &[4])],
        ..Layout::default()
    }
}

fn sender(stages: &[&str], memory: Memory) -> Sender {
    Sender { pipeline: Pipeline::parse(stages).unwrap(), memory }
}

fn update(rng: &mut fastrand::Rng) -> Vectors {
    let mut draw = |n: usize| (0..n).map(|_| rng.f32() - 0.5).collect::<Vec<f32>>();
    Vectors::from([(Channel::Model, draw(100)), (Channel::Statistics, draw(4))])
}

fn send(sender: &Sender, vectors: &Vectors, kept: &MemberState, round: u64) -> (Sent, Vectors) {
    let sent = sender.encode(&layout(), vectors, kept, kept.clone(), round, 10 + round).unwrap();
    let arrived = wire::decode_update(&sent.bytes, &layout()).unwrap();
    (sent, arrived)
}

/// Sends updates one after another; the sum of those that counted, and of what
/// arrived of them.
fn rounds(sender: &Sender, count: u64, refuse: impl Fn(u64) -> bool) -> (Vec<f64>, Vec<f64>, MemberState) {
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut wanted, mut arrived) = (vec![0f64; 100], vec![0f64; 100]);
    let mut kept = MemberState::new();
    for round in 0..count {
        let vectors = update(&mut rng);
        let (sent, got) = send(sender, &vectors, &kept, round);
        assert_eq!(got[&Channel::Statistics], vectors[&Channel::Statistics], "statistics travel whole");
        if refuse(round) {
            continue;
        }
        wanted.iter_mut().zip(&vectors[&Channel::Model]).for_each(|(a, x)| *a += f64::from(*x));
        arrived.iter_mut().zip(&got[&Channel::Model]).for_each(|(a, x)| *a += f64::from(*x));
        kept = sent.counted;
    }
    (wanted, arrived, kept)
}

#[test]
fn with_feedback_what_arrives_and_what_is_kept_are_all_there_was() {
    for stages in [&["topk:0.05"][..], &["topk:0.1", "int4"], &["sign"], &["qsgd:2", "zstd"], &["powersgd:1"]] {
        let (wanted, arrived, kept) = rounds(&sender(stages, Memory::Feedback {}), 30, |round| round % 5 == 3);
        for ((w, a), k) in wanted.iter().zip(&arrived).zip(&kept["feedback.model"]) {
            assert!((w - a - f64::from(*k)).abs() < 1e-4, "{stages:?}: {w} of {a} and {k}");
        }
    }
}

#[test]
fn momentum_is_gathered_where_nothing_travels() {
    let dgc = |momentum| Memory::Dgc { momentum, warmup: 0 };
    // Without momentum it is feedback.
    let (_, plain, _) = rounds(&sender(&["topk:0.05"], Memory::Feedback {}), 20, |_| false);
    let (_, gathered, kept) = rounds(&sender(&["topk:0.05"], dgc(0.0)), 20, |_| false);
    assert_eq!(plain, gathered);
    assert!(kept.contains_key("velocity.model"));
    // By hand: two elements, one travels; the other gathers 1, then 1.9 more.
    let layout = Layout {
        parameters: vec![Part { name: "w".into(), shape: vec![2] }],
        statistics: vec![],
        logits: vec![],
        ..Layout::default()
    };
    let vectors = Vectors::from([(Channel::Model, vec![10.0, 1.0])]);
    let sender = sender(&["topk:0.5"], dgc(0.9));
    let first = sender.encode(&layout, &vectors, &MemberState::new(), MemberState::new(), 0, 1).unwrap();
    assert_eq!(first.counted["velocity.model"], [0.0, 1.0]);
    assert_eq!(first.counted["gathered.model"], [0.0, 1.0]);
    let second = sender.encode(&layout, &vectors, &first.counted, first.counted.clone(), 1, 1).unwrap();
    assert_eq!(second.counted["velocity.model"], [0.0, 1.9]);
    assert_eq!(second.counted["gathered.model"], [0.0, 2.9]);
}

#[test]
fn a_warm_up_begins_with_a_quarter() {
    let sender = sender(&["topk:0.01"], Memory::Dgc { momentum: 0.9, warmup: 2 });
    let travelled = |round| {
        let vectors = update(&mut fastrand::Rng::with_seed(3));
        send(&sender, &vectors, &MemberState::new(), round).1[&Channel::Model].iter().filter(|x| **x != 0.0).count()
    };
    assert_eq!([travelled(0), travelled(1), travelled(2), travelled(9)], [25, 5, 1, 1]);
}

#[test]
fn an_estimate_comes_near_an_update_that_stays() {
    let sender = sender(&["topk:0.2"], Memory::Ef21 {});
    let vectors = update(&mut fastrand::Rng::with_seed(4));
    let (mut kept, mut estimate) = (MemberState::new(), vec![0f32; 100]);
    for round in 0..5 {
        let (sent, arrived) = send(&sender, &vectors, &kept, round);
        estimate.iter_mut().zip(&arrived[&Channel::Model]).for_each(|(e, x)| *e += x);
        kept = sent.counted;
        assert_eq!(kept["estimate.model"], estimate, "both sides have the same");
    }
    // A fifth of it each time: after five rounds all of it.
    assert!(estimate.iter().zip(&vectors[&Channel::Model]).all(|(e, x)| (e - x).abs() < 1e-6));
}

#[test]
fn without_loss_nothing_is_remembered() {
    let (wanted, arrived, kept) = rounds(&sender(&["zstd"], Memory::Feedback {}), 3, |_| false);
    assert_eq!(wanted, arrived);
    assert!(kept.is_empty());
}

#[test]
fn broken_updates_are_refused() {
    let vectors = update(&mut fastrand::Rng::with_seed(5));
    let (sent, _) = send(&sender(&["topk:0.1", "int8", "zstd"], Memory::None {}), &vectors, &MemberState::new(), 0);
    for end in 0..sent.bytes.len() {
        assert!(wire::decode_update(&sent.bytes[..end], &layout()).is_err(), "cut at {end}");
    }
    let mut longer = sent.bytes.clone();
    longer.push(0);
    assert!(wire::decode_update(&longer, &layout()).is_err());
    let other = Layout { statistics: vec![], ..layout() };
    assert!(wire::decode_update(&sent.bytes, &other).is_err(), "of another model");
    let kept = MemberState::from([("a".to_owned(), vec![1.0, -0.0]), ("b".to_owned(), vec![])]);
    let mut bytes = Vec::new();
    wire::encode_named(&kept, &mut bytes);
    assert_eq!(wire::decode_named(&bytes).unwrap(), kept);
    for end in 1..bytes.len() {
        let cut = wire::decode_named(&bytes[..end]);
        assert!(cut.is_err() || cut.unwrap().len() < 2, "cut at {end}");
    }
}

#[test]
fn unless_said_otherwise_what_is_lost_for_good_is_remembered() {
    for (stages, memory) in [
        (&[][..], Memory::None {}),
        (&["qsgd:2", "zstd"], Memory::None {}),
        (&["fp16"], Memory::Feedback {}),
        (&["sign"], Memory::Feedback {}),
        (&["random:0.1"], Memory::Feedback {}),
        (&["topk:0.1", "qsgd:6"], Memory::Feedback {}),
        (&["powersgd:2"], Memory::Feedback {}),
    ] {
        assert_eq!(Memory::of(&Pipeline::parse(stages).unwrap()), memory, "{stages:?}");
    }
}

const MEMORIES: [Memory; 4] =
    [Memory::None {}, Memory::Feedback {}, Memory::Dgc { momentum: 0.9, warmup: 0 }, Memory::Ef21 {}];

#[test]
fn an_update_that_is_refused_leaves_no_trace() {
    // SCAFFOLD's two channels and FedMD's, each in rounds of which some are
    // refused: what is sent then is what it would be had they never been.
    let layout = Layout { logits: vec![Part { name: "p".into(), shape: vec![10, 10] }], ..layout() };
    let channels = [&[Channel::Model, Channel::Control][..], &[Channel::Logits]];
    for (memory, channels) in MEMORIES.into_iter().flat_map(|memory| channels.map(|c| (memory, c))) {
        let sender = sender(&["topk:0.1", "int8"], memory);
        let run = |refused: bool| {
            let mut rng = fastrand::Rng::with_seed(7);
            let (mut kept, mut bytes) = (MemberState::new(), Vec::new());
            for round in 0..12 {
                let mut draw = || (0..100).map(|_| rng.f32() - 0.5).collect::<Vec<f32>>();
                let vectors: Vectors = channels.iter().map(|c| (*c, draw())).collect();
                if round % 4 != 3 {
                    let sent = sender.encode(&layout, &vectors, &kept, kept.clone(), round, round).unwrap();
                    (kept, bytes) = (sent.counted, sent.bytes);
                } else if refused {
                    sender.encode(&layout, &vectors, &kept, kept.clone(), round, round).unwrap();
                }
            }
            (kept, bytes)
        };
        assert_eq!(run(true), run(false), "{memory:?} {channels:?}");
    }
}

#[test]
fn answers_and_control_variates_have_no_memory_and_travel_whole() {
    let layout = Layout { logits: vec![Part { name: "p".into(), shape: vec![10, 10] }], ..layout() };
    let mut rng = fastrand::Rng::with_seed(8);
    let vector: Vec<f32> = (0..100).map(|_| rng.f32() - 0.5).collect();
    for memory in MEMORIES {
        for channel in [Channel::Control, Channel::Logits] {
            for stages in [&["topk:0.01"][..], &["topk:0.1", "sign"], &["qsgd:2"], &["powersgd:1", "fp16"]] {
                let vectors = Vectors::from([(channel, vector.clone())]);
                let mut kept = MemberState::new();
                for round in 0..3 {
                    let sent = sender(stages, memory).encode(&layout, &vectors, &kept, kept.clone(), round, 1).unwrap();
                    let arrived = wire::decode_update(&sent.bytes, &layout).unwrap().remove(&channel).unwrap();
                    let near = arrived.iter().zip(&vector).all(|(a, x)| (a - x).abs() <= 0.5 / 254.0 + 1e-6);
                    assert!(near, "{memory:?} {channel:?} {stages:?}: round {round}");
                    kept = sent.counted;
                    kept.remove(CONTROL);
                    assert!(kept.is_empty(), "{kept:?}");
                }
            }
        }
    }
}

#[test]
fn the_mean_of_members_control_variates_is_what_the_server_has() {
    let sender = sender(&["topk:0.1", "int4"], Memory::Feedback {});
    let mut rng = fastrand::Rng::with_seed(9);
    let (mut server, mut members) = (vec![0f64; 100], vec![MemberState::new(); 3]);
    for round in 0..10 {
        for (i, kept) in members.iter_mut().enumerate() {
            let draw: Vec<f32> = (0..100).map(|_| rng.f32() - 0.5).collect();
            let vectors = Vectors::from([(Channel::Control, draw.clone())]);
            // As training leaves it: moved by all bits.
            let own = kept.get(CONTROL).cloned().unwrap_or_else(|| vec![0.0; 100]);
            let after = MemberState::from([(CONTROL.to_owned(), own.iter().zip(&draw).map(|(c, d)| c + d).collect())]);
            let sent = sender.encode(&layout(), &vectors, kept, after, round, round).unwrap();
            if (round + i as u64).is_multiple_of(4) {
                continue;
            }
            let arrived = wire::decode_update(&sent.bytes, &layout()).unwrap();
            server.iter_mut().zip(&arrived[&Channel::Control]).for_each(|(c, d)| *c += f64::from(*d) / 3.0);
            *kept = sent.counted;
        }
        for (j, c) in server.iter().enumerate() {
            let mean =
                members.iter().filter_map(|kept| kept.get(CONTROL)).map(|own| f64::from(own[j])).sum::<f64>() / 3.0;
            assert!((c - mean).abs() < 1e-5, "round {round}: {c} for {mean}");
        }
    }
}

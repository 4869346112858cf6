//! Running statistics stay a mean of what members measured and of what the job
//! began with: whatever the strategy, the stages, the rule, and however stale
//! the answers.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tierline_federate::{
    Aggregator, Channel, Contribution, Counted, FederateError, Hop, InMemory, Layout, Part, Report, Server, Vectors,
    aggregator, wire,
};

const SETTINGS: [&str; 16] = [
    "",
    "clients = { late = 'use' }",
    "strategy = { kind = 'fedprox' }",
    "strategy = { kind = 'fedadam', rate = 3.0 }",
    "strategy = { kind = 'fedyogi' }",
    "strategy = { kind = 'fedadagrad' }",
    "strategy = { kind = 'fednova' }",
    "strategy = { kind = 'diloco', rate = 5.0, momentum = 0.99 }",
    "strategy = { kind = 'fedbuff', size = 2 }",
    "strategy = { kind = 'fedbuff', size = 3, rate = 4.0, exponent = 0.0 }",
    "strategy = { kind = 'fedbuff', size = 1, rate = 0.1, exponent = 3.0 }",
    "strategy = { kind = 'fedasync', alpha = 1.0, exponent = 0.0 }",
    "strategy = { kind = 'fedasync' }",
    "up = ['topk:0.5']\nmemory = { kind = 'ef21' }",
    "up = ['int4']\ndown = ['int4']",
    "rule = { kind = 'trimmed', share = 0.4 }",
];

fn layout() -> Layout {
    let part = |name: &str, length: usize| Part { name: name.to_owned(), shape: vec![length] };
    Layout {
        parameters: vec![part("w", 4)],
        statistics: vec![part("mean", 2), part("variance", 2)],
        variances: vec!["variance".to_owned()],
        ..Layout::default()
    }
}

fn report(examples: u64) -> Report {
    Report { examples, steps: 1, effective_steps: 1.0, ..Report::default() }
}

/// A hop whose model begins with these statistics.
fn hop(settings: &str, statistics: [f32; 4]) -> (Hop, Aggregator) {
    let hop: Hop = toml::from_str(settings).unwrap();
    let model = Vectors::from([(Channel::Model, vec![0.5; 4]), (Channel::Statistics, statistics.to_vec())]);
    let server = Server { model, ..Server::default() };
    let aggregator = Aggregator::new(layout(), &hop, 0, server, Box::<InMemory>::default());
    (hop, aggregator)
}

/// An update as it comes through the hop's stages.
fn arrives(hop: &Hop, aggregator: &Aggregator, statistics: [f32; 4], change: f32, examples: u64) -> Contribution {
    let vectors = Vectors::from([(Channel::Model, vec![change; 4]), (Channel::Statistics, statistics.to_vec())]);
    let none = Default::default();
    let sent = hop.sender().encode(aggregator.layout(), &vectors, &none, Default::default(), 0, 7).unwrap();
    Contribution { vectors: wire::decode_update(&sent.bytes, aggregator.layout()).unwrap(), report: report(examples) }
}

proptest! {
    #[test]
    fn they_stay_between_what_was_measured(seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        for settings in SETTINGS {
            let (hop, mut aggregator) = hop(settings, [0.0, 1.0, 1.0, 1e-3]);
            let (mut low, mut high) = ([0.0f32, 1.0, 1.0, 1e-3], [0.0f32, 1.0, 1.0, 1e-3]);
            for _ in 0..12 {
                let mut counted = Vec::new();
                for member in 0..rng.usize(1..4) {
                    // As of some model before this one, of features large and small.
                    let version = aggregator.version() - rng.u64(0..=aggregator.version().min(3));
                    let scale = 10f32.powi(rng.i32(-6..3));
                    let measured = [scale * (rng.f32() - 0.5), scale, scale * rng.f32(), scale * scale];
                    for ((low, high), x) in low.iter_mut().zip(&mut high).zip(measured) {
                        (*low, *high) = (low.min(x), high.max(x));
                    }
                    let contribution = arrives(&hop, &aggregator, measured, rng.f32() - 0.5, rng.u64(1..1_000));
                    aggregator.check(&contribution).unwrap();
                    let staleness = aggregator.version() - version;
                    counted.push(Counted { member: member.to_string(), report: contribution.report, staleness });
                    aggregator.add(contribution, version, staleness).unwrap();
                }
                aggregator.make(&counted, 5).unwrap();
                aggregator.publish(1).unwrap();
                for model in [&aggregator.server().model, aggregator.held()] {
                    for (i, x) in model[&Channel::Statistics].iter().enumerate() {
                        // Twelve models in single precision, one made of the other.
                        let near = 1e-5 * (high[i].abs() + low[i].abs());
                        // Sums lie on a grid of 2^-44, and are divided by weights as small as a stale
                        // answer's: that shows next to numbers as small as the first's alone.
                        let near = if i == 0 { near + 1e-9 } else { near };
                        prop_assert!((low[i] - near..=high[i] + near).contains(x), "{settings}: {x} of {i}");
                    }
                }
            }
            aggregator.retain(&BTreeSet::new());
        }
    }
}

/// What was 1 and is measured as a billionth: of a change from one to the
/// other, single precision keeps nothing.
#[test]
fn small_ones_next_to_large_ones_keep_their_bits() {
    for settings in ["", "strategy = { kind = 'diloco' }", "strategy = { kind = 'fedbuff', size = 2 }"] {
        let (hop, mut aggregator) = hop(settings, [0.0, 0.0, 1.0, 1e6]);
        let counted: Vec<Counted> = ["a", "b"]
            .into_iter()
            .map(|member| {
                let contribution = arrives(&hop, &aggregator, [0.5, 0.5, 1e-9, 0.01], 0.0, 1);
                aggregator.add(contribution, 0, 0).unwrap();
                Counted { member: member.to_owned(), report: report(1), staleness: 0 }
            })
            .collect();
        let before = aggregator.server().model.clone();
        aggregator.make(&counted, 2).unwrap();
        // Exact to the grid of sums.
        let measured = [0.5, 0.5, 1e-9, 0.01];
        let found = aggregator.server().model[&Channel::Statistics].clone();
        assert!(found.iter().zip(measured).all(|(x, m): (&f32, f32)| (x - m).abs() <= 1e-13), "{settings}: {found:?}");
        // An edge passes on what that came to.
        let passed = aggregator::change(&before, &aggregator.server().model, &[Channel::Model, Channel::Statistics]);
        assert_eq!(passed[&Channel::Statistics], found);
    }
}

/// Under the first version's byte, older nodes send how statistics changed.
#[test]
fn changes_of_older_nodes_are_not_taken_for_what_was_measured() {
    let (hop, aggregator) = hop("", [0.0, 0.0, 1.0, 1.0]);
    let vectors = Vectors::from([(Channel::Model, vec![0.0; 4]), (Channel::Statistics, vec![0.1; 4])]);
    let older = wire::encode(&vectors, aggregator.layout()).unwrap();
    let refused = wire::decode_update(&older, aggregator.layout());
    assert!(matches!(refused, Err(FederateError::Broken(why)) if why.contains("update its node")), "{refused:?}");
    let channels = [Channel::Model, Channel::Statistics];
    assert!(!wire::is_current(older.first().copied(), aggregator.layout(), &channels));
    // Where there are none, both send the same.
    let plain = Layout { statistics: vec![], variances: vec![], ..layout() };
    let vectors = Vectors::from([(Channel::Model, vec![0.5; 4]), (Channel::Statistics, vec![])]);
    let older = wire::encode(&vectors, &plain).unwrap();
    assert_eq!(wire::decode_update(&older, &plain).unwrap(), vectors);
    let newer = hop.sender().encode(&plain, &vectors, &Default::default(), Default::default(), 0, 1).unwrap();
    assert_eq!(newer.bytes, older);
}

//! Models on their way down: whoever follows has the same bits as the
//! coordinator thinks, and is never far from its model.

use proptest::prelude::*;
use tierline_federate::{
    Aggregator, Channel, Contribution, Counted, Hop, InMemory, Layout, Part, Report, Server, Vectors, down,
};

const WEIGHTS: usize = 200;

fn layout() -> Layout {
    let part = |name: &str, shape: &[usize]| Part { name: name.to_owned(), shape: shape.to_vec() };
    Layout {
        parameters: vec![part("w", &[10, 18]), part("b", &[20])],
        statistics: vec![part("mean", &[4])],
        ..Layout::default()
    }
}

fn hop(settings: &str) -> Hop {
    toml::from_str(settings).unwrap()
}

fn vectors(rng: &mut fastrand::Rng, size: f32) -> Vectors {
    let mut draw = |n: usize| (0..n).map(|_| size * (rng.f32() - 0.5)).collect::<Vec<f32>>();
    Vectors::from([(Channel::Model, draw(WEIGHTS)), (Channel::Statistics, draw(4))])
}

fn aggregator(settings: &str) -> Aggregator {
    let model = vectors(&mut fastrand::Rng::with_seed(7), 1.0);
    Aggregator::new(layout(), &hop(settings), 0, Server { model, ..Server::default() }, Box::<InMemory>::default())
}

/// A round in which one member moves the model.
fn round(aggregator: &mut Aggregator, vectors: Vectors) -> Option<Vec<u8>> {
    let report = Report { examples: 1, steps: 1, effective_steps: 1.0, ..Report::default() };
    aggregator.add(Contribution { vectors, report }, aggregator.version(), 0).unwrap();
    aggregator.make(&[Counted { member: "end".to_owned(), report, staleness: 0 }], 1).unwrap();
    aggregator.publish(100 + aggregator.version()).unwrap()
}

fn apart(aggregator: &Aggregator) -> f64 {
    let pairs = aggregator.server().model[&Channel::Model].iter().zip(&aggregator.held()[&Channel::Model]);
    pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}

const STAGES: [&str; 6] =
    ["'topk:0.05'", "'topk:0.1', 'int8', 'zstd'", "'random:0.3', 'fp16'", "'int4'", "'qsgd:6', 'zstd'", "'powersgd:2'"];

#[test]
fn whoever_follows_has_the_coordinators_bits() {
    for stages in STAGES {
        for strategy in ["fedavg", "scaffold", "fedadam"] {
            let mut rng = fastrand::Rng::with_seed(3);
            let settings = format!("down = [{stages}]\nstrategy = {{ kind = '{strategy}' }}");
            let mut aggregator = aggregator(&settings);
            let mut draw = || {
                let mut vectors = vectors(&mut rng, 0.1);
                if strategy == "scaffold" {
                    vectors.insert(Channel::Control, vectors[&Channel::Model].clone());
                }
                vectors
            };
            let mut member = aggregator.held().clone();
            for version in 1..=12 {
                let bytes = round(&mut aggregator, draw()).unwrap();
                member = down::follow(&bytes, &layout(), &member).unwrap();
                assert_eq!(&member, aggregator.held(), "{settings}, model {version}");
                assert_eq!(member[&Channel::Statistics], aggregator.server().model[&Channel::Statistics], "{settings}");
                assert!(apart(&aggregator) > 0.0, "something is lost on the way");
            }
        }
    }
}

#[test]
fn members_catch_up_with_a_model_that_stands_still() {
    for stages in STAGES {
        let mut aggregator = aggregator(&format!("down = [{stages}]"));
        round(&mut aggregator, vectors(&mut fastrand::Rng::with_seed(1), 5.0));
        let first = apart(&aggregator);
        let still = Vectors::from([(Channel::Model, vec![0.0; WEIGHTS]), (Channel::Statistics, vec![0.0; 4])]);
        for _ in 0..60 {
            round(&mut aggregator, still.clone());
        }
        assert!(apart(&aggregator) < 1e-3 * first, "{stages}: {} of {first}", apart(&aggregator));
    }
}

#[test]
fn without_stages_members_hold_the_model_itself() {
    let mut aggregator = aggregator("");
    assert_eq!(round(&mut aggregator, vectors(&mut fastrand::Rng::with_seed(1), 5.0)), None);
    assert_eq!(aggregator.held(), &aggregator.server().model);
}

#[test]
fn a_desk_that_is_set_up_again_sends_the_same_bytes() {
    let settings = "down = ['random:0.2', 'int8']\nstrategy = { kind = 'diloco' }";
    let mut whole = aggregator(settings);
    let mut rng = fastrand::Rng::with_seed(2);
    for version in 0..10 {
        // What is on the disk: the model, what the strategy remembers, what members hold.
        let Server { model, kept } = whole.server().clone();
        let initial = aggregator(settings).server().model.clone();
        let mut again = Aggregator::new(
            layout(),
            &hop(settings),
            version,
            Server { model: initial, kept },
            Box::<InMemory>::default(),
        );
        again.replace(version, &model);
        again.down_mut().unwrap().hold(whole.held().clone());
        let change = vectors(&mut rng, 0.1);
        assert_eq!(round(&mut whole, change.clone()), round(&mut again, change), "model {version}");
        assert_eq!(whole.server(), again.server());
        assert_eq!(whole.held(), again.held());
    }
}

#[test]
fn differences_of_other_models_are_refused() {
    let mut aggregator = aggregator("down = ['int8']");
    let bytes = round(&mut aggregator, vectors(&mut fastrand::Rng::with_seed(1), 1.0)).unwrap();
    for cut in 0..bytes.len() {
        assert!(down::follow(&bytes[..cut], &layout(), aggregator.held()).is_err());
    }
    let short = Vectors::from([(Channel::Model, vec![0.0; 3])]);
    assert!(down::follow(&bytes, &layout(), &short).is_err());
}

proptest! {
    /// Sending the largest share `s` of what differs leaves at most
    /// `sqrt(1 - s)` of its length; so with steps of length `l` members are
    /// never farther than `l sqrt(1 - s) / (1 - sqrt(1 - s))`.
    #[test]
    fn members_are_never_far(share in 1u32..=9, seed in any::<u64>(), rounds in 1usize..30) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut aggregator = aggregator(&format!("down = ['topk:0.{share}']"));
        let kept = (1.0 - f64::from(share) / 10.0).sqrt();
        let mut longest = 0f64;
        for _ in 0..rounds {
            let change = vectors(&mut rng, 0.2);
            let length = change[&Channel::Model].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            longest = longest.max(length);
            round(&mut aggregator, change);
            prop_assert!(apart(&aggregator) <= longest * kept / (1.0 - kept) * 1.001, "{} {longest}", apart(&aggregator));
        }
    }
}

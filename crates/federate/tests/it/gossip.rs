//! Gossip: who meets whom, and what of it stays the same.

use proptest::prelude::*;
use tierline_codec::update::Pipeline;
use tierline_federate::gossip::{Graph, Mix, Offer};
use tierline_federate::{Channel, FederateError, Federation, Layout, Part, Vectors};

const GRAPHS: [Graph; 3] = [Graph::Ring, Graph::Random, Graph::Complete];

fn layout() -> Layout {
    let part = |name: &str, n: usize| Part { name: name.to_owned(), shape: vec![n] };
    Layout { parameters: vec![part("w", 3)], statistics: vec![part("mean", 1)], logits: vec![], ..Layout::default() }
}

fn offer(examples: u64, weights: [f32; 3], mean: f32) -> Offer {
    let model = Vectors::from([(Channel::Model, weights.to_vec()), (Channel::Statistics, vec![mean])]);
    Offer { examples, model }
}

/// An edge whose neighbours get all bits of its model.
fn mix(own: &Offer, neighbours: usize) -> Mix {
    Mix::new(own.model.clone(), own.clone(), neighbours)
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("edge-{i:02}")).collect()
}

#[test]
fn a_neighbour_has_one_as_its_own() {
    for graph in GRAPHS {
        for count in 1..=9 {
            let names = names(count);
            let edges: Vec<&str> = names.iter().map(String::as_str).collect();
            for edge in &edges {
                let neighbours = graph.neighbours(&edges, edge, 7);
                let expected = if graph == Graph::Complete { count - 1 } else { (count - 1).min(2) };
                assert_eq!(neighbours.len(), expected, "{graph:?} of {count}");
                assert!(!neighbours.contains(edge));
                assert!(neighbours.iter().all(|other| graph.neighbours(&edges, other, 7).contains(edge)));
            }
            // All are joined, over however many steps.
            let mut reached = vec![edges[0]];
            for at in 0.. {
                let Some(edge) = reached.get(at).copied() else { break };
                let further = graph.neighbours(&edges, edge, 7);
                reached.extend(further.into_iter().filter(|e| !reached.contains(e)).collect::<Vec<_>>());
            }
            assert_eq!(reached.len(), count, "{graph:?}");
        }
    }
    let names = names(9);
    let edges: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut backwards = edges.clone();
    backwards.reverse();
    assert_eq!(Graph::Random.neighbours(&edges, "edge-03", 1), Graph::Random.neighbours(&backwards, "edge-03", 1));
    let draws: std::collections::BTreeSet<_> =
        (0..20).map(|seed| Graph::Random.neighbours(&edges, "edge-03", seed)).collect();
    assert!(draws.len() > 5, "{draws:?}");
    assert!(Graph::Ring.neighbours(&edges, "somebody else", 1).is_empty());
}

#[test]
fn an_edge_moves_by_hand_worked_shares() {
    // Two neighbours: a third of the way to an equal, a sixth to one of half as many examples.
    let mut meeting = mix(&offer(100, [0.0, 3.0, 6.0], 1.0), 2);
    meeting.meet(&offer(100, [3.0, 3.0, 0.0], 4.0)).unwrap();
    meeting.meet(&offer(50, [6.0, 3.0, 6.0], 7.0)).unwrap();
    let mixed = meeting.mixed();
    assert_eq!(mixed[&Channel::Model], [2.0, 3.0, 4.0]);
    assert_eq!(mixed[&Channel::Statistics], [3.0]);
    // One of more examples counts as an equal; a neighbour that didn't come moves nothing.
    let mut meeting = mix(&offer(100, [0.0; 3], 0.0), 2);
    meeting.meet(&offer(900, [3.0; 3], 3.0)).unwrap();
    assert_eq!(meeting.mixed()[&Channel::Model], [1.0; 3]);
}

#[test]
fn what_is_no_model_of_the_job_is_refused() {
    let good = offer(3, [1.0, 2.0, 3.0], 4.0);
    let bytes = good.encode(&layout(), &Pipeline::default(), 1).unwrap();
    assert_eq!(Offer::decode(&bytes, &layout()).unwrap(), good);
    for cut in 0..bytes.len() {
        assert!(Offer::decode(&bytes[..cut], &layout()).is_err(), "{cut}");
    }
    let nobody = offer(0, [1.0; 3], 1.0).encode(&layout(), &Pipeline::default(), 1).unwrap();
    assert!(matches!(Offer::decode(&nobody, &layout()), Err(FederateError::Report { .. })));
    let mut meeting = mix(&good, 1);
    let fewer = Vectors::from([(Channel::Model, vec![1.0; 3])]);
    let error = meeting.meet(&Offer { examples: 1, model: fewer }).unwrap_err();
    assert!(matches!(error, FederateError::Channels { .. }), "{error}");
    let short = Vectors::from([(Channel::Model, vec![1.0; 2]), (Channel::Statistics, vec![1.0])]);
    let error = meeting.meet(&Offer { examples: 1, model: short }).unwrap_err();
    assert!(matches!(error, FederateError::Length { .. }), "{error}");
    assert_eq!(meeting.mixed(), good.model, "what was refused has moved nothing");
}

#[test]
fn rounded_models_move_a_pair_alike() {
    let stages = Pipeline::parse(&["int4"]).unwrap();
    let models = [offer(5, [0.11, -0.93, 0.47], 0.3), offer(5, [0.87, 0.29, -0.61], 0.9)];
    let rounded = models.clone().map(|model| {
        let bytes = model.encode(&layout(), &stages, 1).unwrap();
        Offer::decode(&bytes, &layout()).unwrap()
    });
    assert_ne!(rounded, models);
    let mixed = [0, 1].map(|at| {
        let mut meeting = Mix::new(models[at].model.clone(), rounded[at].clone(), 1);
        meeting.meet(&rounded[1 - at]).unwrap();
        meeting.mixed()
    });
    let sum = |of: [&Vectors; 2], i: usize| of[0][&Channel::Model][i] + of[1][&Channel::Model][i];
    for i in 0..3 {
        let (before, after) = (sum([&models[0].model, &models[1].model], i), sum([&mixed[0], &mixed[1]], i));
        assert!((before - after).abs() < 1e-6, "the mean stays, whatever was rounded: {before} {after}");
    }
    assert_eq!(mixed[0][&Channel::Statistics], [0.6], "statistics keep their bits");
}

#[test]
fn settings_say_where_and_how_often() {
    let read = |text: &str| toml::from_str::<Federation>(text).unwrap();
    let gossip = read("[edge]\nrounds = 6\ngossip = { every = 2 }\n").edge.unwrap().gossip.unwrap();
    let meets: Vec<u64> = (0..6).filter(|round| gossip.meets_behind(*round)).collect();
    assert_eq!(meets, [1, 3, 5]);
    assert_eq!(read("[edge]\ngossip = {}\n").edge.unwrap().gossip.unwrap().graph, Graph::Ring);
}

proptest! {
    /// All edges mix at once: their mean, weighted by examples, stays, and no
    /// model leaves the range that the models span.
    #[test]
    fn the_mean_stays_and_models_come_closer(
        edges in prop::collection::vec((1u64..1_000, prop::array::uniform3(-100f32..100.0)), 2..8),
        seed in any::<u64>(),
        which in 0usize..3,
    ) {
        let names = names(edges.len());
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        let graph = GRAPHS[which];
        let total: f64 = edges.iter().map(|(n, _)| *n as f64).sum();
        let mean = |models: &[Vectors], i: usize| {
            let sum: f64 = models.iter().zip(&edges).map(|(m, (n, _))| *n as f64 * f64::from(m[&Channel::Model][i])).sum();
            sum / total
        };
        let spread = |models: &[Vectors], i: usize| {
            let values = models.iter().map(|m| m[&Channel::Model][i]);
            values.clone().fold(f32::MIN, f32::max) - values.fold(f32::MAX, f32::min)
        };
        let mut models: Vec<Vectors> = edges.iter().map(|(n, w)| offer(*n, *w, 0.0).model).collect();
        let first = models.clone();
        for _ in 0..40 {
            let offers: Vec<Offer> =
                models.iter().zip(&edges).map(|(m, (n, _))| Offer { examples: *n, model: m.clone() }).collect();
            let before = models.clone();
            for (at, model) in models.iter_mut().enumerate() {
                let neighbours = graph.neighbours(&all, all[at], seed);
                let mut meeting = mix(&offers[at], neighbours.len());
                for neighbour in neighbours {
                    let other = all.iter().position(|edge| *edge == neighbour).unwrap();
                    meeting.meet(&offers[other]).unwrap();
                }
                *model = meeting.mixed();
            }
            for i in 0..3 {
                prop_assert!(spread(&models, i) <= spread(&before, i) * 1.0001 + 1e-4);
            }
        }
        for i in 0..3 {
            prop_assert!((mean(&models, i) - mean(&first, i)).abs() < 1e-2);
        }
        let equal = edges.iter().all(|(n, _)| 2 * n >= edges.iter().map(|(n, _)| *n).max().unwrap());
        if graph == Graph::Complete && equal {
            prop_assert!(spread(&models, 0) < 1e-2, "{}", spread(&models, 0));
        }
    }
}

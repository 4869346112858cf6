//! One or two rounds of each strategy on small numbers, worked out by hand,
//! and what holds for all.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tierline_federate::aggregate::{self, Aggregate, Mean};
use tierline_federate::strategy::Round;
use tierline_federate::{
    Aggregator, Channel, Contribution, Counted, FederateError, Hop, InMemory, Layout, Part, Report, Server,
    Strategy as Kind, Vectors,
};

fn part(name: &str, length: usize) -> Part {
    Part { name: name.to_owned(), shape: vec![length] }
}

fn layout() -> Layout {
    Layout {
        parameters: vec![part("w", 1), part("b", 1)],
        statistics: vec![part("mean", 1)],
        logits: vec![],
        ..Layout::default()
    }
}

fn strategy(text: &str) -> Kind {
    toml::from_str(text).unwrap()
}

fn contribution(kind: &Kind, model: [f32; 2], statistic: f32, examples: u64, steps: u64) -> Contribution {
    let mut vectors: Vectors =
        BTreeMap::from([(Channel::Model, model.to_vec()), (Channel::Statistics, vec![statistic])]);
    if kind.channels().contains(&Channel::Control) {
        vectors.insert(Channel::Control, model.iter().map(|x| -x).collect());
    }
    let report = Report { examples, steps, effective_steps: steps as f64, loss: 1.0, ..Report::default() };
    Contribution { vectors, report }
}

fn server(kind: &Kind) -> Server {
    let layout = layout();
    let model = kind.channels().into_iter().map(|c| (c, vec![0.0; layout.len(c)])).collect();
    Server { model, kept: BTreeMap::new() }
}

/// A round of these contributions, each of the given staleness.
fn round(kind: &Kind, server: &mut Server, members: usize, contributions: &[(Contribution, u64)]) {
    let layout = layout();
    let mut mean = Mean::new(&layout, &kind.channels());
    let mut counted = Vec::new();
    for (contribution, staleness) in contributions {
        aggregate::check(&layout, &kind.channels(), contribution).unwrap();
        mean.add(kind.behaviour().weigh(&contribution.report, *staleness), contribution.clone()).unwrap();
        let Report { examples, steps, .. } = contribution.report;
        counted.push(Counted {
            member: format!("{examples} {steps}"),
            report: contribution.report,
            staleness: *staleness,
        });
    }
    let means = mean.finish().unwrap();
    kind.behaviour().apply(server, &Round { means: &means, counted: &counted, members });
}

#[track_caller]
fn expect(server: &Server, model: [f32; 2], statistic: f32) {
    let near = |a: f32, b: f32| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
    let found = &server.model[&Channel::Model];
    assert!(near(found[0], model[0]) && near(found[1], model[1]), "{found:?} for {model:?}");
    let found = server.model[&Channel::Statistics][0];
    assert!(near(found, statistic), "{found} for {statistic}");
}

/// One member of 1 example, one of 3.
fn two(kind: &Kind) -> [(Contribution, u64); 2] {
    [(contribution(kind, [1.0, 0.0], 4.0, 1, 1), 0), (contribution(kind, [0.0, 2.0], 8.0, 3, 3), 0)]
}

#[test]
fn fedavg_and_fedprox_weigh_by_examples() {
    for text in ["kind = 'fedavg'", "kind = 'fedprox'\nmu = 0.1"] {
        let kind = strategy(text);
        let mut server = server(&kind);
        round(&kind, &mut server, 2, &two(&kind));
        expect(&server, [0.25, 1.5], 7.0);
    }
}

#[test]
fn scaffold_counts_members_alike_and_moves_its_control_by_those_asked() {
    let kind = strategy("kind = 'scaffold'\nrate = 0.5");
    let mut server = server(&kind);
    round(&kind, &mut server, 4, &two(&kind));
    expect(&server, [0.25, 0.5], 6.0);
    assert_eq!(server.model[&Channel::Control], [-0.25, -0.5]);
}

#[test]
fn fednova_counts_per_step() {
    let kind = strategy("kind = 'fednova'");
    let mut server = server(&kind);
    round(&kind, &mut server, 2, &two(&kind));
    // tau = 1/4 * 1 + 3/4 * 3 = 2.5; means 1/4 * 1 and 3/4 * 2/3.
    expect(&server, [2.5 * 0.25, 2.5 * 0.5], 7.0);
}

#[test]
fn adaptive_servers_take_the_steps_of_the_paper() {
    // beta1 = 0: the step is rate * d / (sqrt(v) + tau), v before is tau^2.
    let settings = "rate = 0.1\nbeta1 = 0.0\nbeta2 = 0.9\ntau = 0.5";
    let d = [0.25f64, 1.5];
    let adam = |d: f64| 0.1 * d / ((0.9 * 0.25 + 0.1 * d * d).sqrt() + 0.5);
    let yogi = |d: f64| 0.1 * d / ((0.25 - 0.1 * d * d * (0.25 - d * d).signum()).sqrt() + 0.5);
    let adagrad = |d: f64| 0.1 * d / ((0.25 + d * d).sqrt() + 0.5);
    let cases: [(&str, &dyn Fn(f64) -> f64); 3] = [("fedadam", &adam), ("fedyogi", &yogi), ("fedadagrad", &adagrad)];
    for (name, step) in cases {
        let kind = strategy(&format!("kind = '{name}'\n{settings}"));
        let mut server = server(&kind);
        round(&kind, &mut server, 2, &two(&kind));
        expect(&server, [step(d[0]) as f32, step(d[1]) as f32], 7.0);
    }
}

#[test]
fn yogi_stays_where_the_square_is_what_it_was() {
    let kind = strategy("kind = 'fedyogi'\nrate = 1.0\nbeta1 = 0.0\nbeta2 = 0.5\ntau = 0.5");
    let mut server = server(&kind);
    let same = [(contribution(&kind, [0.5, 1.0], 0.0, 1, 1), 0)];
    round(&kind, &mut server, 1, &same);
    assert_eq!(server.kept["fedyogi.square"], [0.25, 0.75]);
}

#[test]
fn adaptive_servers_carry_on_the_mean_change() {
    let kind = strategy("kind = 'fedadam'\nrate = 1.0\nbeta1 = 0.5\nbeta2 = 0.0\ntau = 1.0");
    let mut server = server(&kind);
    let same = [(contribution(&kind, [1.0, 0.0], 0.0, 1, 1), 0)];
    round(&kind, &mut server, 1, &same);
    round(&kind, &mut server, 1, &same);
    // m = 0.5, then 0.75; v = 1 both times: steps of 0.25 and 0.375.
    expect(&server, [0.625, 0.0], 0.0);
}

#[test]
fn stale_answers_count_less_in_a_buffer() {
    let kind = strategy("kind = 'fedbuff'\nsize = 2\nrate = 2.0");
    let mut server = server(&kind);
    let [first, (second, _)] = two(&kind);
    round(&kind, &mut server, 2, &[first, (second, 3)]);
    // Halves; the second counts half at 3 versions: (1 + 3)^-0.5.
    // Statistics are a mean in which it counts half, and go no further than there.
    expect(&server, [2.0 * 0.5, 2.0 * 0.5 * 2.0 * 0.5], (4.0 + 0.5 * 8.0) / 1.5);
}

#[test]
fn fedasync_moves_part_of_the_way() {
    let kind = strategy("kind = 'fedasync'\nalpha = 0.5");
    assert!(kind.behaviour().rebases());
    let mut server = server(&kind);
    round(&kind, &mut server, 2, &[(contribution(&kind, [1.0, 2.0], 4.0, 1, 1), 0)]);
    expect(&server, [0.5, 1.0], 2.0);
}

#[test]
fn diloco_looks_ahead() {
    let kind = strategy("kind = 'diloco'\nrate = 0.5\nmomentum = 0.5");
    let mut server = server(&kind);
    let same = [(contribution(&kind, [1.0, 0.0], 0.0, 1, 1), 0)];
    round(&kind, &mut server, 1, &same);
    expect(&server, [0.5 * (1.0 + 0.5), 0.0], 0.0);
    round(&kind, &mut server, 1, &same);
    expect(&server, [0.75 + 0.5 * (1.0 + 0.5 * 1.5), 0.0], 0.0);
}

const ALL: [&str; 10] =
    ["fedavg", "fedprox", "scaffold", "fedadam", "fedyogi", "fedadagrad", "fednova", "fedbuff", "fedasync", "diloco"];

proptest! {
    #[test]
    fn the_order_of_arrival_changes_no_bit(seed: u64, members in 2usize..12) {
        for name in ALL {
            let kind = strategy(&format!("kind = '{name}'"));
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut all: Vec<(Contribution, u64)> = (0..members)
                .map(|_| {
                    let mut draw = || rng.f32() * 2.0 - 1.0;
                    let (a, b, c) = (draw(), draw(), draw());
                    (contribution(&kind, [a, b], c, rng.u64(1..1_000), rng.u64(1..100)), rng.u64(0..4))
                })
                .collect();
            let (mut one, mut other) = (server(&kind), server(&kind));
            round(&kind, &mut one, members, &all);
            // FedAsync has one answer a round: there is no order.
            if name == "fedasync" { continue; }
            rng.shuffle(&mut all);
            round(&kind, &mut other, members, &all);
            let bits = |s: &Server| s.model.values().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&one), bits(&other), "{}", name);
        }
    }

    #[test]
    fn who_changes_nothing_changes_nothing(members in 1usize..6) {
        for name in ALL {
            let kind = strategy(&format!("kind = '{name}'"));
            let still: Vec<_> = (0..members).map(|_| (contribution(&kind, [0.0, 0.0], 0.0, 5, 2), 0)).collect();
            let mut server = server(&kind);
            round(&kind, &mut server, members, &still);
            prop_assert!(server.model.values().flatten().all(|x| *x == 0.0), "{name}");
        }
    }
}

#[test]
fn contributions_that_do_not_fit_are_refused() {
    let kind = strategy("kind = 'fedavg'");
    let check = |c: &Contribution| aggregate::check(&layout(), &kind.channels(), c);
    let good = contribution(&kind, [1.0, 2.0], 3.0, 1, 1);
    assert_eq!(check(&good), Ok(()));
    let mut bad = good.clone();
    bad.vectors.insert(Channel::Model, vec![1.0; 3]);
    assert!(matches!(check(&bad), Err(FederateError::Length { channel: "model", expected: 2, given: 3 })));
    let mut bad = good.clone();
    bad.vectors.insert(Channel::Model, vec![1.0, f32::NAN]);
    assert!(matches!(check(&bad), Err(FederateError::NotFinite { part, .. }) if part == "b"));
    let mut bad = good.clone();
    bad.vectors.remove(&Channel::Statistics);
    assert!(matches!(check(&bad), Err(FederateError::Channels { .. })));
    let mut bad = good.clone();
    bad.report.steps = 0;
    assert!(matches!(check(&bad), Err(FederateError::Report { .. })));
    let mut bad = good;
    bad.report.effective_steps = f64::NAN;
    assert!(matches!(check(&bad), Err(FederateError::Report { .. })));
}

#[test]
fn a_round_of_nothing_is_no_round() {
    let mut mean = Mean::new(&layout(), &Kind::default().channels());
    assert_eq!(mean.finish(), Err(FederateError::Empty));
}

#[test]
fn fedmd_counts_members_alike_and_moves_what_is_said() {
    let kind = strategy("kind = 'fedmd'\ndistil = { public = 'p', examples = 2 }");
    assert_eq!(kind.channels(), [Channel::Logits]);
    let layout = Layout { logits: vec![Part { name: "p".into(), shape: vec![2, 1] }], ..Layout::default() };
    let mut server = Server { model: BTreeMap::from([(Channel::Logits, vec![1.0, -1.0])]), kept: BTreeMap::new() };
    let mut mean = Mean::new(&layout, &kind.channels());
    for (change, examples) in [([2.0, 0.0], 1), ([0.0, 4.0], 99)] {
        let report = Report { examples, steps: 1, effective_steps: 1.0, ..Report::default() };
        let said = Contribution { vectors: BTreeMap::from([(Channel::Logits, change.to_vec())]), report };
        aggregate::check(&layout, &kind.channels(), &said).unwrap();
        mean.add(kind.behaviour().weigh(&report, 0), said).unwrap();
    }
    kind.behaviour().apply(&mut server, &Round { means: &mean.finish().unwrap(), counted: &[], members: 2 });
    assert_eq!(server.model[&Channel::Logits], [2.0, 1.0], "half of 2 and half of 4 more, whoever has more examples");
}

/// A hop whose members say things of two public examples.
fn said(settings: &str) -> Aggregator {
    let layout = Layout { logits: vec![part("p", 2)], ..Layout::default() };
    let hop: Hop = toml::from_str(settings).unwrap();
    let server = Server { model: BTreeMap::from([(Channel::Logits, vec![0.0; 2])]), kept: BTreeMap::new() };
    Aggregator::new(layout, &hop, 0, server, Box::<InMemory>::default())
}

fn says(aggregator: &mut Aggregator, version: u64, told: &[f32], answers: [f32; 2]) {
    let change = answers.iter().zip(told).map(|(x, t)| x - t).collect();
    let report = Report { examples: 1, steps: 1, effective_steps: 1.0, ..Report::default() };
    let contribution = Contribution { vectors: BTreeMap::from([(Channel::Logits, change)]), report };
    aggregator.check(&contribution).unwrap();
    aggregator.add(contribution, version, aggregator.version() - version).unwrap();
    aggregator.make(&[Counted { member: "end".into(), report, staleness: 0 }], 1).unwrap();
    aggregator.publish(aggregator.version()).unwrap();
}

#[test]
fn fedmd_is_what_members_say_whatever_they_were_told() {
    let strategy = "strategy = { kind = 'fedmd', distil = { public = 'p', examples = 2 } }";
    for down in ["", "down = ['topk:0.5']", "down = ['sign']"] {
        let mut aggregator = said(&format!("{strategy}\n{down}"));
        for answers in [[4.0, 1.0], [3.0, -7.0], [2.0, 2.0]] {
            let (version, told) = (aggregator.version(), aggregator.held()[&Channel::Logits].clone());
            says(&mut aggregator, version, &told, answers);
            assert_eq!(aggregator.server().model[&Channel::Logits], answers, "{down}");
        }
        // One that comes late, of what was told before.
        let (version, told) = (aggregator.version(), aggregator.held()[&Channel::Logits].clone());
        says(&mut aggregator, version, &told, [5.0, 5.0]);
        says(&mut aggregator, version, &told, [6.0, 1.0]);
        assert_eq!(aggregator.server().model[&Channel::Logits], [6.0, 1.0], "{down}");
    }
}

#[test]
fn variances_never_fall_below_zero() {
    let layout = Layout {
        statistics: vec![part("mean", 1), part("variance", 1)],
        variances: vec!["variance".into()],
        ..layout()
    };
    for rule in ["mean", "median", "bounded"] {
        let hop: Hop = toml::from_str(&format!("rule = {{ kind = '{rule}' }}")).unwrap();
        let model = Vectors::from([(Channel::Model, vec![0.0; 2]), (Channel::Statistics, vec![0.5, 0.5])]);
        let server = Server { model, ..Server::default() };
        let mut aggregator = Aggregator::new(layout.clone(), &hop, 0, server, Box::<InMemory>::default());
        let report = Report { examples: 1, steps: 1, effective_steps: 1.0, ..Report::default() };
        let of = |statistics: [f32; 2]| {
            let vectors = Vectors::from([(Channel::Model, vec![0.0; 2]), (Channel::Statistics, statistics.to_vec())]);
            Contribution { vectors, report }
        };
        let refused = aggregator.check(&of([-1e3, -1e-9]));
        assert!(matches!(refused, Err(FederateError::Variance { ref part, .. }) if part == "variance"), "{refused:?}");
        aggregator.check(&of([-1e3, 0.0])).unwrap();
        aggregator.add(of([-1e3, 0.0]), 0, 0).unwrap();
        aggregator.make(&[Counted { member: "end".into(), report, staleness: 0 }], 1).unwrap();
        assert_eq!(aggregator.server().model[&Channel::Statistics], [-1e3, 0.0], "{rule}");
    }
}

#[test]
fn with_ef21_the_mean_of_members_estimates_counts() {
    /// A member, its examples, and how its estimate changes.
    type Answer = (usize, u64, [f32; 2]);

    let hop: Hop = toml::from_str("up = ['topk:0.5']\nmemory = { kind = 'ef21' }").unwrap();
    let model = Vectors::from([(Channel::Model, vec![0.0; 2]), (Channel::Statistics, vec![0.0])]);
    let server = Server { model, ..Server::default() };
    let mut aggregator = Aggregator::new(layout(), &hop, 0, server, Box::<InMemory>::default());
    // By how many members there are: the last one joins late.
    let rounds: [(usize, &[Answer]); 3] = [
        (3, &[(0, 1, [3.0, 0.0]), (1, 999, [0.0, 6.0])]),
        (3, &[(1, 999, [0.0, -3.0])]),
        (4, &[(0, 1, [1.0, 0.0]), (3, 5, [8.0, 8.0])]),
    ];
    let (mut estimates, mut expected) = ([[0f32; 2]; 4], [0f32; 2]);
    for (members, answers) in rounds {
        let mut counted = Vec::new();
        for (member, examples, change) in answers {
            let report = Report { examples: *examples, steps: 1, effective_steps: 1.0, ..Report::default() };
            let vectors = Vectors::from([(Channel::Model, change.to_vec()), (Channel::Statistics, vec![0.0])]);
            aggregator.add(Contribution { vectors, report }, aggregator.version(), 0).unwrap();
            counted.push(Counted { member: member.to_string(), report, staleness: 0 });
            estimates[*member].iter_mut().zip(change).for_each(|(e, d)| *e += d);
        }
        aggregator.make(&counted, members).unwrap();
        for (i, x) in expected.iter_mut().enumerate() {
            *x += estimates.iter().map(|e| e[i]).sum::<f32>() / members as f32;
        }
        let found = &aggregator.server().model[&Channel::Model];
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?} for {expected:?}");
    }
}

#[test]
fn sizes_are_of_what_is_added() {
    let report = |examples| Report { examples, steps: 1, effective_steps: 1.0, ..Report::default() };
    let of = |settings: &str, examples: u64, statistic: f32| {
        let hop: Hop = toml::from_str(settings).unwrap();
        let aggregator = Aggregator::new(layout(), &hop, 0, Server::default(), Box::<InMemory>::default());
        let vectors = Vectors::from([(Channel::Model, vec![1.0; 2]), (Channel::Statistics, vec![statistic])]);
        aggregator.check(&Contribution { vectors, report: report(examples) })
    };
    let large = |result: Result<(), FederateError>| matches!(result, Err(FederateError::Sum { .. }));
    // An edge of three million examples whose variances move by thousands.
    assert_eq!(of("", 3_000_000, 10_000.0), Ok(()));
    assert!(large(of("", 3_000_000, 20_000.0)));
    assert_eq!(of("rule = { kind = 'median' }", 3_000_000, 20_000.0), Ok(()), "examples don't count there");
    assert!(large(of("rule = { kind = 'median' }", 1, 1e30)));
}

#[test]
fn feddf_begins_with_the_mean() {
    let kind = strategy("kind = 'feddf'\ndistil = { public = 'p' }");
    assert_eq!(kind.behaviour().server_distils().map(|d| (d.examples, d.epochs)), Some((1_000, 1)));
    let mut server = server(&kind);
    round(&kind, &mut server, 2, &two(&kind));
    expect(&server, [0.25, 1.5], 7.0);
}

#[test]
fn what_is_of_examples_is_as_long_as_they_are_many() {
    let part = |shape: &[usize]| vec![Part { name: "x".into(), shape: shape.to_vec() }];
    let layout = Layout { logits: part(&[0, 2]), features: part(&[0, 3]), labels: part(&[0]), ..Layout::default() };
    let hop: Hop = toml::from_str("strategy = { kind = 'fedgkt', features = 'x' }").unwrap();
    let aggregator = Aggregator::new(layout.clone(), &hop, 0, Server::default(), Box::<InMemory>::default());
    let contribution = |examples: u64, vectors: [(Channel, Vec<f32>); 3]| Contribution {
        vectors: Vectors::from(vectors),
        report: Report { examples, steps: 1, effective_steps: 1.0, ..Report::default() },
    };
    let of = |logits: usize, features: usize, labels: usize| {
        [
            (Channel::Logits, vec![0.5; logits]),
            (Channel::Features, vec![0.5; features]),
            (Channel::Labels, vec![1.0; labels]),
        ]
    };
    aggregator.check(&contribution(4, of(8, 12, 4))).unwrap();
    for wrong in [of(8, 12, 3), of(8, 11, 4), of(7, 12, 4)] {
        let error = aggregator.check(&contribution(4, wrong)).unwrap_err();
        assert!(matches!(error, FederateError::Length { .. }), "{error}");
    }
    for (place, value) in [(0, 1e30), (1, -7e4)] {
        let mut vectors = of(8, 12, 4);
        vectors[place].1[3] = value;
        let error = aggregator.check(&contribution(4, vectors)).unwrap_err();
        assert!(matches!(error, FederateError::Value { .. }), "{error}");
    }
    for label in [2.0, -1.0, 0.5, 1e9] {
        let mut vectors = of(8, 12, 4);
        vectors[2].1[3] = label;
        let error = aggregator.check(&contribution(4, vectors)).unwrap_err();
        assert!(matches!(error, FederateError::Label { .. }), "{error}");
    }
    // Whatever a member says, nothing is allocated for more than may travel.
    for examples in [0, u64::MAX, (1 << 28) / 6 + 1] {
        let error = layout.of_examples(examples).unwrap_err();
        assert!(matches!(error, FederateError::Examples { .. }), "{error}");
    }
    assert_eq!(layout.of_examples(5).unwrap().len(Channel::Features), 15);
}

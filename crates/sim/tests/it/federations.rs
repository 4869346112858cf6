//! Strategies on a small network and made-up pictures: they learn, in any
//! topology, and do so again in the same way.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tierline_engine::{Engine, LoadOptions, Stop};
use tierline_federate::{Channel, RoundScores};
use tierline_graph::fold::{Purpose, fold_for};
use tierline_graph::{Elements, Model, Tensor};
use tierline_sim::{Examples, Link, Scenario, SimError, SimulationResult, run};
use tierline_train::Job;
use tierline_train::data::{Dataset, Partition, Targets, partition};
use tierline_train::federated::{LocalTrainer, Models, ParameterLayout, Share};
use tierline_train::job::Variant;
use tierline_zoo::{Batch, Bn, Options};

pub fn engine() -> Arc<dyn Engine> {
    tierline_engine::rten()
}

fn network() -> Model {
    network_named("mlp")
}

pub fn network_named(name: &str) -> Model {
    let options = Options { bn: Bn::Kept, batch: Batch::Free, image: None, seed: 3 };
    let mut model = tierline_zoo::by_name(name, &options).unwrap();
    fold_for(&mut model, &mut tierline_engine::Evaluator(engine()), Purpose::Training).unwrap();
    model
}

/// Pictures of ten classes, each a bright square at its own place on noise.
pub fn pictures(examples: usize, seed: u64) -> Dataset {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut pixels = Vec::with_capacity(examples * 784);
    let mut classes = Vec::with_capacity(examples);
    for _ in 0..examples {
        let class = rng.usize(0..10);
        let (top, left) = ((class / 4) * 7, (class % 4) * 7);
        for i in 0..784 {
            let inside = (top..top + 7).contains(&(i / 28)) && (left..left + 7).contains(&(i % 28));
            pixels.push(rng.u8(0..120) + if inside { 100 } else { 0 });
        }
        classes.push(class as u32);
    }
    let features = Tensor::new([examples, 1, 28, 28], Elements::U8(pixels)).unwrap();
    Dataset::new("pictures", features, Targets::Classes { classes, count: 10, names: Vec::new() }).unwrap()
}

pub fn job(federation: &str) -> Job {
    read(federation).unwrap()
}

fn read(federation: &str) -> Result<Job, toml::de::Error> {
    let text = format!(
        "model = 'mlp.onnx'\nepochs = 1\nseed = 5\n[data]\ntrain = 'pictures'\n[batch]\nsize = 16\n\
         [optimizer]\nkind = 'sgd'\nmomentum = 0.5\n[schedule]\nrate = 0.05\n{federation}"
    );
    toml::from_str(&text)
}

fn simulate(
    federation: &str,
    ends: usize,
    scenario: &Scenario,
) -> Result<(SimulationResult, Vec<RoundScores>), SimError> {
    simulate_on(&Partition::Dirichlet { alpha: 0.5 }, federation, ends, scenario)
}

fn simulate_on(
    how: &Partition,
    federation: &str,
    ends: usize,
    scenario: &Scenario,
) -> Result<(SimulationResult, Vec<RoundScores>), SimError> {
    let all = pictures(400, 1);
    let shares = partition(&all, how, ends, 9).unwrap();
    let data = shares.iter().map(|share| all.subset(share).unwrap()).collect();
    let test = pictures(200, 2);
    let mut told = Vec::new();
    let stop = Stop::asked();
    let examples = Examples { ends: data, test: Some(&test), public: None };
    let outcome = run(&engine(), &network(), &job(federation), examples, scenario, &stop, &mut |round| {
        told.push(round.clone());
    })?;
    Ok((outcome, told))
}

fn accuracy(outcome: &SimulationResult) -> f64 {
    outcome.rounds.last().unwrap().accuracy.unwrap()
}

#[test]
fn a_job_that_nobody_could_begin_is_told_of() {
    let outcome = simulate("[federation.cloud]\nrounds = 2\nclients = { min = 9 }\n", 3, &Scenario::default());
    let Err(SimError::Stalled { round: 1, reason }) = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("3 of 3 members can work"), "{reason}");
}

#[test]
fn every_strategy_learns() {
    for (strategy, rounds) in [
        ("kind = 'fedavg'", 10),
        ("kind = 'fedprox', mu = 0.1", 10),
        ("kind = 'scaffold'", 10),
        ("kind = 'fedadam', rate = 0.02", 10),
        ("kind = 'fedyogi', rate = 0.02", 10),
        ("kind = 'fedadagrad', rate = 0.05", 10),
        ("kind = 'fednova'", 10),
        ("kind = 'diloco', rate = 0.5", 10),
        ("kind = 'fedbuff', size = 3", 30),
        ("kind = 'fedasync', alpha = 0.4", 120),
    ] {
        let text = format!("[federation.cloud]\nrounds = {rounds}\nstrategy = {{ {strategy} }}\n");
        let scenario = Scenario { spread: 4.0, ..Scenario::default() };
        let (outcome, told) = simulate(&text, 6, &scenario).unwrap();
        assert_eq!(told, outcome.rounds);
        assert_eq!(told.len(), rounds);
        assert!(accuracy(&outcome) > 0.8, "{strategy}: {:.3}", accuracy(&outcome));
    }
}

#[test]
fn small_updates_teach_as_well() {
    let model = 4 * 101_770;
    for (up, memory, smaller) in [
        ("'int8', 'zstd'", "feedback", 4),
        ("'topk:0.05', 'int8', 'zstd'", "feedback", 40),
        ("'random:0.3', 'fp16'", "feedback", 6),
        ("'sign', 'zstd'", "feedback", 29),
        ("'qsgd:4', 'zstd'", "none", 8),
        ("'powersgd:2', 'zstd'", "feedback", 40),
        ("'topk:0.1', 'zstd'", "ef21", 7),
        ("'topk:0.02', 'int8', 'zstd'", "dgc", 40),
    ] {
        let more = if memory == "dgc" { ", momentum = 0.5, warmup = 2" } else { "" };
        let text = format!("[federation.cloud]\nrounds = 12\nup = [{up}]\nmemory = {{ kind = '{memory}'{more} }}\n");
        let (outcome, rounds) = simulate(&text, 4, &Scenario::default()).unwrap();
        assert!(accuracy(&outcome) > 0.75, "{up}: {:.3}", accuracy(&outcome));
        let last = rounds.last().unwrap().bytes_up;
        assert!(last < 4 * model / smaller, "{up}: {last} bytes are {} times less", 4 * model / last);
    }
}

#[test]
fn models_that_travel_as_differences_teach_as_well() {
    let model = 4 * 101_770;
    let down_in = |settings: &str, scenario: &Scenario| {
        let (outcome, rounds) = simulate(settings, 4, scenario).unwrap();
        assert!(accuracy(&outcome) > 0.8, "{settings}: {:.3}", accuracy(&outcome));
        rounds.iter().map(|round| round.bytes_down).collect::<Vec<_>>()
    };
    for (down, strategy, models, smaller) in [
        ("'int8', 'zstd'", "kind = 'fedavg'", 4, 4),
        ("'topk:0.05', 'int8', 'zstd'", "kind = 'fedavg'", 4, 40),
        ("'random:0.3', 'fp16'", "kind = 'fedprox'", 4, 6),
        ("'topk:0.1', 'int8', 'zstd'", "kind = 'scaffold'", 8, 16),
        ("'sign', 'zstd'", "kind = 'fedadam', rate = 0.02", 4, 25),
        ("'powersgd:4', 'zstd'", "kind = 'diloco', rate = 0.5", 4, 20),
    ] {
        let text = format!("[federation.cloud]\nrounds = 12\ndown = [{down}]\nstrategy = {{ {strategy} }}\n");
        let bytes = down_in(&text, &Scenario::default());
        assert_eq!(bytes[0], models * model, "nobody holds a model before the first round");
        for round in &bytes[1..] {
            assert!(*round < models * model / smaller, "{down}: {round} bytes of {}", models * model);
        }
    }
    // Whoever was not asked for some rounds follows all of them.
    let some = "[federation.cloud]\nrounds = 24\ndown = ['topk:0.05', 'int8', 'zstd']\nclients = { per_round = 2 }\n";
    let bytes = down_in(some, &Scenario::default());
    assert!(bytes[1..].iter().sum::<u64>() < 23 * 2 * model / 10, "{bytes:?}");
    assert!(bytes[1..].iter().all(|round| *round > 0), "{bytes:?}");
    // Both hops, each in its own way; and models that are made whenever answers are there.
    let edged = "[federation.cloud]\nrounds = 6\ndown = ['int8', 'zstd']\n\
                 [federation.edge]\nrounds = 2\ndown = ['topk:0.1', 'fp16', 'zstd']\n";
    let bytes = down_in(edged, &Scenario { edges: 2, ..Scenario::default() });
    assert!(bytes[1..].iter().all(|round| *round < (2 + 8) * model / 4), "{bytes:?}");
    let buffered = "[federation.cloud]\nrounds = 30\ndown = ['topk:0.1', 'int8', 'zstd']\n\
                    strategy = { kind = 'fedbuff', size = 3 }\n";
    let bytes = down_in(buffered, &Scenario { spread: 4.0, ..Scenario::default() });
    assert!(bytes[2..].iter().all(|round| *round < 3 * model / 4), "{bytes:?}");
}

#[test]
fn rules_hold_where_the_mean_breaks() {
    let accuracy_of = |rule: &str, attack: Option<&str>| {
        let text = format!("[federation.cloud]\nrounds = 10\nrule = {{ kind = '{rule}' }}\n");
        let attack = attack.map(|a| a.parse().unwrap());
        let all = pictures(600, 1);
        let shares = partition(&all, &Partition::Iid, 10, 9).unwrap();
        let ends = shares.iter().map(|share| all.subset(share).unwrap()).collect();
        let test = pictures(200, 2);
        let scenario = Scenario { attack, ..Scenario::default() };
        let examples = Examples { ends, test: Some(&test), public: None };
        let outcome = run(&engine(), &network(), &job(&text), examples, &scenario, &Stop::never(), &mut |_| ());
        accuracy(&outcome.unwrap())
    };
    let clean = accuracy_of("mean", None);
    assert!(clean > 0.9, "{clean}");
    let broken = accuracy_of("mean", Some("scale:0.2:-20"));
    assert!(broken < clean - 0.2, "the attack does nothing: {broken}");
    for rule in ["median", "trimmed", "krum", "multikrum", "bulyan", "bounded"] {
        for attack in ["scale:0.2:-20", "sign-flip:0.2", "label-flip:0.2"] {
            let held = accuracy_of(rule, Some(attack));
            // One contribution alone learns from a tenth of the examples.
            let lost = if rule == "krum" { 0.25 } else { 0.1 };
            assert!(held > clean - lost, "{rule} under {attack}: {held:.3} of {clean:.3}");
        }
    }
}

#[test]
fn a_simulation_is_the_same_again() {
    let text = "[federation.cloud]\nrounds = 3\nstrategy = { kind = 'scaffold' }\nclients = { per_round = 4 }\n";
    let scenario = Scenario { spread: 3.0, threads: 2, ..Scenario::default() };
    let (one, _) = simulate(text, 6, &scenario).unwrap();
    let (other, _) = simulate(text, 6, &Scenario { threads: 1, ..scenario }).unwrap();
    assert_eq!(one.rounds, other.rounds);
    assert_eq!(one.model.to_bytes().unwrap(), other.model.to_bytes().unwrap());
}

#[test]
fn edges_average_their_ends_first() {
    let text = "[federation.cloud]\nrounds = 5\n[federation.edge]\nrounds = 2\nclients = { min = 3 }\n";
    let scenario = Scenario { edges: 2, ..Scenario::default() };
    let (outcome, rounds) = simulate(text, 6, &scenario).unwrap();
    assert!(accuracy(&outcome) > 0.8, "{}", accuracy(&outcome));
    assert!(rounds.iter().all(|r| r.clients == 2), "the cloud counts edges: {rounds:?}");
    // A model is 4 * (784 * 128 + 128 + 1290) bytes; up go 2 from edges and 12 from ends a round.
    let model = rounds[1].bytes_up / 14;
    assert_eq!(rounds[1].bytes_up, 14 * model);
    assert!(model > 400_000, "{model}");
}

#[test]
fn one_edge_with_one_round_is_no_edge_at_all() {
    let (flat, _) = simulate("[federation.cloud]\nrounds = 2\n", 4, &Scenario::default()).unwrap();
    let text = "[federation.cloud]\nrounds = 2\n[federation.edge]\nrounds = 1\n";
    let (edged, _) = simulate(text, 4, &Scenario { edges: 1, ..Scenario::default() }).unwrap();
    let apart = flat.rounds.iter().zip(&edged.rounds).map(|(a, b)| (a.loss.unwrap() - b.loss.unwrap()).abs());
    // The edge's change is rounded once more on its way up.
    assert!(apart.fold(0.0, f64::max) < 1e-5);
}

#[test]
fn thin_links_take_their_time_and_shared_ones_more() {
    let text = "[federation.cloud]\nrounds = 2\n";
    let link = Link { up_bytes_per_s: 1e5, down_bytes_per_s: 1e6, rtt: Duration::from_millis(100) };
    let (near, _) = simulate(text, 4, &Scenario::default()).unwrap();
    let (far, _) = simulate(text, 4, &Scenario { end_link: link, ..Scenario::default() }).unwrap();
    let bytes = near.rounds[1].bytes_up as f64 / 4.0;
    let more = far.rounds[1].seconds - near.rounds[1].seconds;
    let expected = bytes / 1e5 + bytes / 1e6 + 0.2;
    assert!((more - expected).abs() < 0.1, "{more} for {expected}");
}

#[test]
fn ends_that_come_and_go_only_delay_the_job() {
    let text = "[federation.cloud]\nrounds = 6\nclients = { min = 2, deadline_s = 5.0, patience_s = 5.0 }\n";
    let away = Duration::from_secs(1);
    let scenario = Scenario { availability: 0.6, away, examples_per_s: 100.0, spread: 2.0, ..Scenario::default() };
    let (outcome, rounds) = simulate(text, 6, &scenario).unwrap();
    assert_eq!(rounds.len(), 6);
    assert!(rounds.iter().any(|r| r.clients < 6) && rounds.iter().all(|r| r.clients >= 2), "{rounds:?}");
    assert!(accuracy(&outcome) > 0.6);
}

#[test]
fn a_goal_ends_the_job_early() {
    let text = "[federation.cloud]\nrounds = 50\n[federation.stop]\naccuracy = 0.5\n";
    let (outcome, rounds) = simulate(text, 4, &Scenario::default()).unwrap();
    assert!(rounds.len() < 20 && accuracy(&outcome) >= 0.5, "{}", rounds.len());
}

#[test]
fn scenarios_that_make_no_sense_are_refused() {
    for (scenario, what) in [
        (Scenario { edges: 9, ..Scenario::default() }, "edges"),
        (Scenario { spread: 0.5, ..Scenario::default() }, "speed"),
        (Scenario { availability: 0.0, ..Scenario::default() }, "availability"),
    ] {
        let error = simulate("[federation.cloud]\nrounds = 1\n", 4, &scenario).unwrap_err();
        assert!(error.to_string().starts_with(what), "{error}");
    }
}

#[test]
fn ends_that_look_see_what_the_cloud_would() {
    let all = pictures(480, 1);
    let shares = partition(&all, &Partition::Dirichlet { alpha: 0.5 }, 6, 9).unwrap();
    let ends: Vec<Dataset> = shares.iter().map(|share| all.subset(share).unwrap()).collect();
    let told = |federation: &str, ends: Vec<Dataset>, test: Option<&Dataset>, scenario: &Scenario| {
        let mut job = job(federation);
        job.data.hold_out = Some(0.25);
        let mut told = Vec::new();
        let examples = Examples { ends, test, public: None };
        let stop = Stop::asked();
        let outcome =
            run(&engine(), &network(), &job, examples, scenario, &stop, &mut |round| told.push(round.clone())).unwrap();
        assert_eq!(outcome.rounds, told);
        (told, outcome.model.to_bytes().unwrap())
    };
    let at_ends = "[federation]\nevaluate_at = 'ends'\n[federation.cloud]\nrounds = 3\n";
    let mut holding_out = job(at_ends);
    holding_out.data.hold_out = Some(0.25);
    let divided: Vec<Share> = ends.iter().map(|end| Share::of(end, &holding_out).unwrap()).collect();
    let (rounds, model) = told(at_ends, ends.clone(), None, &Scenario::default());
    assert_eq!(rounds.iter().map(|r| r.round).collect::<Vec<_>>(), [1, 2, 3]);

    let seen = divided.iter().map(|share| share.seen.clone()).collect();
    let (alone, same) = told("[federation.cloud]\nrounds = 3\n", seen, None, &Scenario::default());
    assert!(model == same, "looking changes nothing");
    assert!(alone.iter().all(|r| r.accuracy.is_none()));

    // Each end's examples at the cloud in turn; together they are what ends say.
    let (mut right, mut examples, mut loss) = (0.0, 0.0, 0.0);
    for share in &divided {
        let test = share.held_out.as_ref().unwrap();
        let seen = divided.iter().map(|share| share.seen.clone()).collect();
        let (at_cloud, _) = told("[federation.cloud]\nrounds = 3\n", seen, Some(test), &Scenario::default());
        let n = test.len() as f64;
        right += at_cloud[2].accuracy.unwrap() * n;
        loss += at_cloud[2].loss.unwrap() * n;
        examples += n;
    }
    let last = rounds.last().unwrap();
    assert!((last.accuracy.unwrap() - right / examples).abs() < 1e-9);
    assert!((last.loss.unwrap() - loss / examples).abs() < 1e-6);

    // Through an edge it is the same.
    let through = format!("{at_ends}[federation.edge]\nrounds = 1\n");
    let (through, _) = told(&through, ends, None, &Scenario { edges: 1, ..Scenario::default() });
    for (a, b) in rounds.iter().zip(&through) {
        assert!((a.accuracy.unwrap() - b.accuracy.unwrap()).abs() < 0.02, "{a:?} {b:?}");
    }
}

#[test]
fn models_of_ends_own_beat_a_shared_one_where_ends_differ() {
    let shared = personal("[federation]\nevaluate_at = 'ends'\n", 0);
    for kind in
        ["kind = 'finetune'\nepochs = 3", "kind = 'ditto'\nlambda = 0.05", "kind = 'fedper'\nkeep = ['w2', 'w3']"]
    {
        for edges in [0, 2] {
            let outcome = personal(&format!("[federation.personal]\n{kind}\n"), edges);
            assert!(
                accuracy(&outcome) > accuracy(&shared) + 0.1,
                "{kind}: {} {}",
                accuracy(&outcome),
                accuracy(&shared)
            );
            assert_eq!(outcome.own.len(), 6, "each end has its own");
            assert!(outcome.rounds.iter().all(|r| r.accuracy.is_some()));
        }
    }
}

#[test]
fn models_of_two_kinds_learn_from_what_each_other_say() {
    let public = pictures(200, 77);
    let told = |federation: &str, edges: usize| {
        // Few examples each, of few classes, all of which count at the end.
        let all = pictures(160, 1);
        let shares = partition(&all, &Partition::Dirichlet { alpha: 0.3 }, 4, 9).unwrap();
        let ends = shares.iter().map(|share| all.subset(share).unwrap()).collect();
        let test = pictures(200, 2);
        let mut job = job(federation);
        job.models = vec![Variant { model: "lenet.onnx".into(), ends: vec!["*1".into(), "*2".into()] }];
        job.data.hold_out = Some(0.25);
        job.epochs = 3;
        let models = Models { own: network(), others: vec![network_named("lenet")] };
        let examples = Examples { ends, test: None, public: Some(&public) };
        let scenario = Scenario { edges, ..Scenario::default() };
        let outcome = run(&engine(), models, &job, examples, &scenario, &Stop::never(), &mut |_| ()).unwrap();
        let sizes: HashSet<usize> = outcome.own.values().map(|m| m.to_bytes().unwrap().len()).collect();
        assert_eq!((outcome.own.len(), sizes.len()), (4, 2), "each end's model is of the kind that its name says");
        let right: Vec<f64> = outcome.own.values().map(|model| accuracy_of(model, &test)).collect();
        (right.iter().sum::<f64>() / 4.0, accuracy_of(&outcome.model, &test), outcome.rounds[0].bytes_up)
    };
    let md = |rounds: u64, epochs: u64, edge: &str| {
        let kind =
            format!("{{ kind = 'fedmd', distil = {{ public = 'pictures', examples = 150, epochs = {epochs} }} }}");
        let edge = if edge.is_empty() { String::new() } else { format!("{edge}strategy = {kind}\n") };
        format!("[federation.cloud]\nrounds = {rounds}\nstrategy = {kind}\n{edge}")
    };
    let (alone, _, _) = told(&md(1, 1, ""), 0);
    let (together, student, bytes) = told(&md(6, 3, ""), 0);
    assert!(together > alone + 0.15, "{alone} {together}");
    assert!(student > alone + 0.15, "the job's own model learns what all say: {alone} {student}");
    assert!(bytes < 4 * (150 * 10 * 4 + 500), "answers travel, not weights: {bytes}");
    let (over_edges, _, _) = told(&md(6, 3, "[federation.edge]\nrounds = 1\n"), 2);
    assert!(over_edges > alone + 0.15, "{alone} {over_edges}");
}

#[test]
fn the_mean_learns_what_members_say_together() {
    let told = |strategy: &str| {
        let all = pictures(400, 1);
        let shares = partition(&all, &Partition::Dirichlet { alpha: 0.3 }, 6, 9).unwrap();
        let ends = shares.iter().map(|share| all.subset(share).unwrap()).collect();
        let (test, public) = (pictures(200, 2), pictures(300, 77));
        let mut job = job(&format!("[federation.cloud]\nrounds = 2\nstrategy = {strategy}\n"));
        job.epochs = 5;
        let examples = Examples { ends, test: Some(&test), public: Some(&public) };
        let stop = Stop::asked();
        let again = || {
            let examples = Examples { ends: Vec::clone(&examples.ends), ..examples };
            run(&engine(), &network(), &job, examples, &Scenario::default(), &stop, &mut |_| ()).unwrap()
        };
        let (first, second) = (again(), again());
        assert!(first.model.to_bytes().unwrap() == second.model.to_bytes().unwrap(), "it is the same again");
        accuracy(&first)
    };
    let plain = told("{ kind = 'fedavg' }");
    let taught = told("{ kind = 'feddf', distil = { public = 'pictures', examples = 300, epochs = 20 } }");
    assert!(taught > plain + 0.02, "{plain} {taught}");
}

#[test]
fn jobs_of_public_examples_that_make_no_sense_are_refused() {
    let told = |federation: &str, models: Models, variants: &[&str], public: Option<&Dataset>| {
        let mut job = job(federation);
        job.models =
            variants.iter().map(|ends| Variant { model: "other.onnx".into(), ends: vec![(*ends).into()] }).collect();
        job.data.hold_out = Some(0.25);
        let examples = Examples { ends: vec![pictures(40, 1), pictures(40, 2)], test: None, public };
        let stop = Stop::asked();
        let ran = run(&engine(), models, &job, examples, &Scenario::default(), &stop, &mut |_| ());
        ran.map(drop).unwrap_err().to_string()
    };
    let md =
        "[federation.cloud]\nrounds = 1\nstrategy = { kind = 'fedmd', distil = { public = 'p', examples = 50 } }\n";
    let own = || Models::from(&network());
    let both = || Models { own: network(), others: vec![network_named("lenet")] };
    let few = pictures(49, 3);
    assert!(told(md, own(), &[], Some(&few)).contains("there are 49, and the job uses 50"));
    assert!(told(md, own(), &[], None).contains("it isn't given"));
    let plain = "[federation.cloud]\nrounds = 1\n";
    assert!(told(plain, both(), &["*"], None).contains("models"), "{}", told(plain, both(), &["*"], None));
    for (federation, what) in [
        (format!("{md}[federation.personal]\nkind = 'finetune'\nepochs = 1\n"), "federation.personal"),
        (format!("{md}[federation.edge]\nrounds = 1\n"), "federation.edge.strategy"),
        (format!("[federation]\nevaluate_at = 'cloud'\n{md}"), "federation.evaluate_at"),
        (md.replace("examples = 50", "temperature = 0"), "distil.temperature"),
    ] {
        let error = read(&federation).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

/// The share of a data set that a model gets right.
pub fn accuracy_of(model: &Model, data: &Dataset) -> f64 {
    let job = job("[federation.cloud]\nrounds = 1\n");
    let mut place = LocalTrainer::new(&engine(), model.clone(), &job, &LoadOptions::default()).unwrap();
    let initial = place.parameter_layout().initial();
    place.evaluate(&initial, data).unwrap().accuracy.unwrap()
}

/// Six ends, half of which call things by other names.
fn personal(federation: &str, edges: usize) -> SimulationResult {
    let ends = (0..6).map(|end| {
        let pictures = pictures(80, 10 + end);
        pictures.relabelled(|class, count| if end % 2 == 0 { class } else { (class + 3) % count }).unwrap()
    });
    let edge = if edges > 0 { "[federation.edge]\nrounds = 2\n" } else { "" };
    let mut job = job(&format!("{federation}[federation.cloud]\nrounds = 4\n{edge}"));
    job.data.hold_out = Some(0.25);
    job.epochs = 3;
    let scenario = Scenario { edges, ..Scenario::default() };
    let examples = Examples { ends: ends.collect(), test: None, public: None };
    run(&engine(), &network(), &job, examples, &scenario, &Stop::never(), &mut |_| ()).unwrap()
}

/// Edges with two ends each, which meet between their rounds.
fn gossip(rounds: &str, gossip: &str, edges: usize) -> SimulationResult {
    let text = format!("[federation.cloud]\n{rounds}[federation.edge]\nrounds = 8\n{gossip}");
    let scenario = Scenario { edges, ..Scenario::default() };
    simulate(&text, 2 * edges, &scenario).unwrap().0
}

#[test]
fn edges_that_gossip_need_nobody_in_the_middle() {
    let alone = gossip("rounds = 1\n", "", 4);
    for graph in ["ring", "random", "complete"] {
        let settings = format!("gossip = {{ graph = '{graph}' }}\n");
        let outcome = gossip("rounds = 1\n", &settings, 4);
        assert!(accuracy(&outcome) > 0.8, "{graph}: {:.3}", accuracy(&outcome));
        // Each edge's model goes to its neighbours behind each of eight rounds.
        let neighbours = if graph == "complete" { 3 } else { 2 };
        let met = outcome.rounds[0].bytes_up - alone.rounds[0].bytes_up;
        let model = 4 * 101_770;
        assert!((8 * 4 * neighbours * model..8 * 4 * neighbours * (model + 100)).contains(&met), "{graph}: {met}");
        assert_eq!(outcome.model, gossip("rounds = 1\n", &settings, 4).model, "again the same");
    }
    let rounded = gossip("rounds = 1\n", "gossip = { stages = ['int8', 'zstd'] }\n", 4);
    assert!(accuracy(&rounded) > 0.8, "{:.3}", accuracy(&rounded));
    let met = rounded.rounds[0].bytes_up - alone.rounds[0].bytes_up;
    assert!(3 * met < 8 * 4 * 2 * 4 * 101_770, "{met}");
    // Less often, and with the cloud's mean between.
    let seldom = gossip("rounds = 2\n", "gossip = { every = 4 }\n", 3);
    assert!(accuracy(&seldom) > 0.8, "{:.3}", accuracy(&seldom));
}

#[test]
fn gossip_with_everybody_is_what_a_cloud_does() {
    // Equal shares: all models become their mean, as if the cloud had averaged
    // them behind each round; but for the rounding of numbers.
    let scenario = Scenario { edges: 4, ..Scenario::default() };
    let model = |text: &str| simulate_on(&Partition::Iid, text, 8, &scenario).unwrap().0.model;
    let met = model("[federation.cloud]\nrounds = 1\n[federation.edge]\nrounds = 2\ngossip = { graph = 'complete' }\n");
    let averaged = model("[federation.cloud]\nrounds = 2\n[federation.edge]\nrounds = 1\n");
    let weights =
        |model: &Model| ParameterLayout::new(model.clone(), &job("")).unwrap().initial()[&Channel::Model].clone();
    let (met, averaged) = (weights(&met), weights(&averaged));
    let apart = met.iter().zip(&averaged).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(met.len() == averaged.len() && apart < 1e-5, "{apart}");
}

#[test]
fn edges_wait_for_neighbours_no_longer_than_they_are_told_to() {
    // Ends of one edge are many times slower.
    let slow = Scenario { edges: 2, spread: 50.0, examples_per_s: 10.0, ..Scenario::default() };
    let job = |gossip: &str| format!("[federation.cloud]\nrounds = 1\n[federation.edge]\nrounds = 4\n{gossip}");
    let [apart, waits, hurries, patient] =
        ["", "gossip = {}\n", "gossip = { deadline_s = 1.0 }\n", "gossip = { deadline_s = 1e5 }\n"]
            .map(|gossip| simulate(&job(gossip), 2, &slow).unwrap().0);
    let [of_apart, of_waits, of_hurries] = [&apart, &waits, &hurries].map(|outcome| outcome.rounds[0].seconds);
    assert!(of_hurries < of_waits + 1e-6 && of_hurries < of_apart + 5.0, "{of_apart} {of_hurries} {of_waits}");
    assert!((of_apart - of_waits).abs() < 5.0, "the slowest decides in any case");
    assert_ne!(hurries.model, waits.model, "who goes on without a neighbour has nothing of its model");
    assert_eq!(patient.model, waits.model, "a deadline that doesn't come changes nothing");
}

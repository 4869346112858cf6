//! Members' tasks: what travels, and what ends keep for themselves.

use std::collections::BTreeMap;

use tierline_engine::{LoadOptions, Stop};
use tierline_federate::{Channel, Contribution, Vectors};
use tierline_graph::fold::{Purpose, fold_for};
use tierline_graph::{DataType, Elements, Model, Tensor};
use tierline_train::data::{Dataset, Targets};
use tierline_train::federated::{LocalTask, LocalTrainer, MemberState, ParameterLayout, Share};
use tierline_train::{Job, TrainError};
use tierline_zoo::build::{Builder, Value};
use tierline_zoo::{Batch, Bn, Options};

fn network(name: &str) -> Model {
    let options = Options { bn: Bn::Kept, batch: Batch::Free, image: Some(32), seed: 3 };
    let mut model = tierline_zoo::by_name(name, &options).unwrap();
    let mut evaluator = tierline_engine::Evaluator(tierline_engine::rten());
    fold_for(&mut model, &mut evaluator, Purpose::Training).unwrap();
    model
}

fn job(federation: &str) -> Job {
    read(federation).unwrap()
}

/// What is wrong with a member of such a job, where it is read or set up.
fn wrong(name: &str, federation: &str) -> String {
    match read(federation) {
        Ok(_) => Member::new(name, federation, 0).err().unwrap().to_string(),
        Err(error) => error.to_string(),
    }
}

fn read(federation: &str) -> Result<Job, toml::de::Error> {
    let text = format!(
        "model = 'm.onnx'\nepochs = 2\nseed = 5\n[data]\ntrain = 'pictures'\nhold_out = 0.25\n[batch]\nsize = 16\n\
         [optimizer]\nkind = 'sgd'\nmomentum = 0.5\n[schedule]\nrate = 0.05\n\
         {federation}[federation.cloud]\nrounds = 4\n"
    );
    toml::from_str(&text)
}

/// Pictures of the ten classes, each a bright row of its own; `turn` says
/// which row is which class.
fn pictures(examples: usize, turn: usize, seed: u64) -> Dataset {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut pixels, mut classes) = (Vec::new(), Vec::new());
    for _ in 0..examples {
        let row = rng.usize(0..10);
        pixels.extend((0..784).map(|i| rng.u8(0..100) + if i / 78 == row { 100 } else { 0 }));
        classes.push(((row + turn) % 10) as u32);
    }
    let features = Tensor::new([examples, 1, 28, 28], Elements::U8(pixels)).unwrap();
    Dataset::new("pictures", features, Targets::Classes { classes, count: 10, names: Vec::new() }).unwrap()
}

/// What each end sends is what it would have sent without, made shorter.
#[test]
fn modifiers_change_what_is_sent_whatever_the_strategy() {
    for strategy in ["", "[federation.cloud.strategy]\nkind = 'fedprox'\nmu = 0.1\n"] {
        let sent = |modifiers: &str| {
            let mut member = Member::new("lenet", &format!("{modifiers}{strategy}"), 0).unwrap();
            let start = member.place.initial();
            member.work(0, &start)
        };
        let (plain, clipped) = (sent(""), sent("[[federation.modifiers]]\nkind = 'clip'\nnorm = 0.25\n"));
        let norm =
            |c: &Contribution| c.vectors[&Channel::Model].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let (long, short) = (norm(&plain), norm(&clipped));
        assert!(long > 0.3 && (short - 0.25).abs() < 1e-6, "{long} {short}");
        let factor = 0.25 / long;
        for (x, y) in plain.vectors[&Channel::Model].iter().zip(&clipped.vectors[&Channel::Model]) {
            assert!((f64::from(*x) * factor - f64::from(*y)).abs() <= 1e-9 + 1e-6 * f64::from(y.abs()), "{x} {y}");
        }
        assert_eq!(plain.report, clipped.report);
    }
}

struct Member {
    place: LocalTrainer,
    share: Share,
    kept: MemberState,
}

impl Member {
    fn new(name: &str, federation: &str, turn: usize) -> Result<Self, TrainError> {
        let job = job(federation);
        let place = LocalTrainer::new(&tierline_engine::rten(), network(name), &job, &LoadOptions::with_threads(1))?;
        let share = Share::of(&pictures(160, turn, 1 + turn as u64), &job)?;
        Ok(Self { place, share, kept: MemberState::new() })
    }

    fn work(&mut self, round: u64, start: &Vectors) -> Contribution {
        let task = LocalTask { member: "end", round, start };
        self.place.work(task, &self.share, &mut self.kept, &Stop::never()).unwrap().unwrap()
    }

    /// How its own model does, and the model.
    fn conclude(&mut self, start: &Vectors) -> (f64, Option<Model>) {
        let task = LocalTask { member: "end", round: 4, start };
        let stop = Stop::asked();
        let (report, own) = self.place.conclude(task, &self.share, &self.kept, &stop).unwrap().unwrap();
        let held_out = report.held_out.unwrap();
        assert_eq!(held_out.examples, self.share.held_out.as_ref().unwrap().len() as u64);
        (held_out.accuracy.unwrap(), own)
    }
}

/// The next model: the mean of the changes.
fn next(start: &Vectors, changes: &[Contribution]) -> Vectors {
    let mut model = start.clone();
    for (channel, vector) in &mut model {
        for change in changes {
            vector.iter_mut().zip(&change.vectors[channel]).for_each(|(x, d)| *x += d / changes.len() as f32);
        }
    }
    model
}

/// Two members whose pictures mean different things, after four rounds: how
/// each one's model does on its own pictures, and their models.
fn rounds(federation: &str) -> Vec<(f64, Option<Model>)> {
    let mut members = [0, 5].map(|turn| Member::new("lenet", federation, turn).unwrap());
    let mut model = members[0].place.parameter_layout().initial();
    for round in 0..4 {
        let changes = members.each_mut().map(|member| member.work(round, &model));
        model = next(&model, &changes);
    }
    members.iter_mut().map(|member| member.conclude(&model)).collect()
}

fn weights(model: &Model) -> BTreeMap<String, Vec<u8>> {
    let tensors = model.proto().graph.initializer.iter();
    tensors.map(|t| (t.name().to_owned(), t.raw_data().to_vec())).collect()
}

#[test]
fn models_of_ends_own_do_where_a_shared_one_cannot() {
    let shared = rounds("[federation]\nevaluate_at = 'ends'\n");
    for (accuracy, own) in &shared {
        assert!(*accuracy < 0.75, "pictures that mean two things were told apart: {accuracy}");
        assert!(own.is_none());
    }
    for personal in
        ["kind = 'finetune'\nepochs = 4", "kind = 'ditto'\nlambda = 0.1", "kind = 'fedper'\nkeep = ['fc*', 'w*']"]
    {
        // LeNet's names differ by exporter; either pattern may match none.
        let personal = personal.replace("['fc*', 'w*']", &format!("{:?}", heads()));
        let own = rounds(&format!("[federation.personal]\n{personal}\n"));
        for (accuracy, model) in &own {
            assert!(*accuracy > 0.9, "{personal}: {accuracy}");
            assert!(model.is_some());
        }
        assert_ne!(weights(own[0].1.as_ref().unwrap()), weights(own[1].1.as_ref().unwrap()), "{personal}");
    }
}

/// Names of LeNet's weights behind its convolutions.
fn heads() -> Vec<String> {
    let place = Member::new("lenet", "", 0).unwrap().place;
    let parts = &place.parameter_layout().layout().parameters;
    parts.iter().filter(|p| p.shape.len() < 3).skip(2).map(|p| p.name.clone()).collect()
}

#[test]
fn what_an_end_keeps_does_not_travel() {
    let all = Member::new("lenet", "", 0).unwrap().place.parameter_layout().layout().clone();
    let keep = heads();
    assert!(!keep.is_empty());
    let mut member =
        Member::new("lenet", &format!("[federation.personal]\nkind = 'fedper'\nkeep = {keep:?}\n"), 0).unwrap();
    let layout = member.place.parameter_layout().layout().clone();
    let names = |parts: &[tierline_federate::Part]| parts.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    assert_eq!(
        names(&layout.parameters),
        names(&all.parameters).into_iter().filter(|n| !keep.contains(n)).collect::<Vec<_>>()
    );
    let start = member.place.parameter_layout().initial();
    let change = member.work(0, &start);
    assert_eq!(change.vectors[&Channel::Model].len(), layout.len(Channel::Model));
    let kept: usize = member.kept.values().map(Vec::len).sum();
    assert_eq!(kept + layout.len(Channel::Model), all.len(Channel::Model));

    // What it keeps is where it goes on: a second task from the same shared
    // model isn't the first one again, and a member that kept nothing is.
    let again = member.work(0, &start);
    assert_ne!(again.vectors, change.vectors);
    member.kept.clear();
    assert_eq!(member.work(0, &start).vectors, change.vectors);

    // The whole model is the shared part and what was kept.
    let own = weights(&member.conclude(&start).1.unwrap());
    let shared = weights(&member.place.parameter_layout().export(&start).unwrap());
    for (name, bytes) in &own {
        assert_eq!(shared[name] != *bytes, keep.contains(name), "{name}");
    }
}

#[test]
fn batch_normalisations_stay_with_the_end() {
    // No engine is asked: not all of them have normalisations that learn.
    let of = |text: &str| ParameterLayout::new(network("resnet18_small"), &job(text)).unwrap().layout().clone();
    let (layout, all) = (of("[federation.personal]\nkind = 'fedbn'\n"), of(""));
    assert!(!all.statistics.is_empty() && layout.statistics.is_empty());
    assert_eq!(2 * all.variances.len(), all.statistics.len(), "half of them are variances");
    assert!(all.variances.iter().all(|name| all.statistics.iter().any(|part| part.name == *name)));
    // Each normalisation has a scale and a bias, a mean and a variance.
    assert_eq!(all.parameters.len() - layout.parameters.len(), all.statistics.len());
}

#[test]
fn a_stronger_pull_keeps_the_second_model_nearer() {
    let distance = |lambda: f64| {
        let text = format!("[federation.personal]\nkind = 'ditto'\nlambda = {lambda}\n");
        let mut member = Member::new("lenet", &text, 0).unwrap();
        let start = member.place.parameter_layout().initial();
        let change = member.work(0, &start);
        let own: f64 =
            member.kept["own"].iter().zip(&start[&Channel::Model]).map(|(v, w)| f64::from(v - w).powi(2)).sum();
        (own.sqrt(), change.vectors)
    };
    let (free, change) = distance(0.0);
    let (near, same) = distance(5.0);
    assert!(near < free / 2.0, "{near} beside {free}");
    assert_eq!(change, same, "the shared model knows nothing of it");
}

#[test]
fn settings_that_keep_nothing_or_everything_are_refused() {
    for (name, personal, says) in [
        ("lenet", "kind = 'fedper'\nkeep = ['head.*']", "`head.*` matches none of the"),
        ("lenet", "kind = 'fedper'\nkeep = ['*']", "nothing is shared"),
        ("lenet", "kind = 'fedper'\nkeep = []", "keep names no weights"),
        ("lenet", "kind = 'fedbn'", "the model has none that are trained"),
        ("lenet", "kind = 'ditto'\nlambda = -1", "at least 0"),
        ("lenet", "kind = 'finetune'\nepochs = 0", "at least one"),
    ] {
        let error = wrong(name, &format!("[federation.personal]\n{personal}\n"));
        assert!(error.contains(says), "{personal}: {error}");
    }
    let both = "[federation]\nevaluate_at = 'cloud'\n[federation.personal]\nkind = 'fedbn'\n";
    let error = wrong("lenet", both);
    assert!(error.contains("each end has a model of its own"), "{error}");
}

#[test]
fn control_variates_are_of_plain_steps() {
    let scaffold = "[federation.cloud]\nrounds = 4\nstrategy = { kind = 'scaffold' }\n";
    let of = |from: &str, to: &str| {
        let text = "model = 'm.onnx'\nepochs = 1\n[data]\ntrain = 'pictures'\n[optimizer]\nkind = 'sgd'\n[schedule]\nrate = 0.1\n";
        let job: Job = toml::from_str(&format!("{}{scaffold}", text.replace(from, to))).unwrap();
        ParameterLayout::new(network("mlp"), &job).map(drop)
    };
    of("", "").unwrap();
    of("'sgd'", "'sgd'\nmomentum = 0.9\nnesterov = true").unwrap();
    for (from, to, says) in [
        ("'sgd'", "'adam'", "take sgd"),
        ("'sgd'", "'adamw'", "take sgd"),
        ("[schedule]", "[clip]\nnorm = 1.0\n[schedule]", "clip shortens"),
    ] {
        let error = of(from, to).unwrap_err().to_string();
        assert!(error.contains(says), "{to}: {error}");
    }
}

/// Six inputs, six classes: the first weight turns features of four back to
/// six, so it is read on both sides of `h`. With `scale`, a normalisation whose
/// scale is read once more.
fn tied(scale: bool) -> Model {
    let mut b = Builder::new("tied", 3);
    let x = b.input("x", DataType::F32, "batch 6");
    let weight = b.weights(&[6, 4], 0.5);
    let mut h = b.op("MatMul", &[&x, &weight], &[]);
    if scale {
        let [scale, shift, mean] = [1.0, 0.0, 0.0].map(|mean| b.around(&[4], mean, 0.1));
        let variance = b.around(&[4], 1.0, 0.1);
        h = b.op("BatchNormalization", &[&h, &scale, &shift, &mean, &variance], &[]);
        h = b.op("Mul", &[&h, &scale], &[]);
    }
    let middle = b.weights(&[4, 4], 0.5);
    let h = b.op("MatMul", &[&h, &middle], &[]);
    let h = b.op("Tanh", &[&h], &[]);
    b.output("h", &h, DataType::F32, "batch 4");
    let back = b.transpose(&weight, &[1, 0]);
    let y = b.op("MatMul", &[&Value { name: "h".to_owned(), width: 4 }, &back], &[]);
    b.output("y", &y, DataType::F32, "batch 6");
    let mut proto = b.build().proto().clone();
    let graph = proto.graph.as_mut().unwrap();
    graph.output.retain(|output| output.name() == "y");
    Model::from_proto(proto).unwrap()
}

#[test]
fn a_weight_that_both_sides_of_a_cut_would_train_is_refused_by_name() {
    let cloud = "strategy = { kind = 'fedgkt', features = 'h' }\n";
    let of = |settings: &str| {
        let text = format!(
            "model = 'm.onnx'\nepochs = 1\n{settings}[data]\ntrain = 'd'\n[optimizer]\nkind = 'sgd'\n[schedule]\nrate = 0.1\n\
             [federation]\nevaluate_at = 'ends'\n[federation.cloud]\nrounds = 1\n{cloud}"
        );
        ParameterLayout::new(tied(false), &toml::from_str(&text).unwrap())
    };
    let refused = of("").map(|_| ()).unwrap_err();
    assert!(matches!(refused, TrainError::Transfer { .. }), "{refused}");
    assert!(refused.to_string().contains("`w0` is read on both sides"), "{refused}");
}

#[test]
fn a_weight_that_would_stay_and_be_shared_is_refused_by_name() {
    let refused =
        ParameterLayout::new(tied(true), &job("[federation.personal]\nkind = 'fedbn'\n")).map(|_| ()).unwrap_err();
    let TrainError::Tied { weight, .. } = &refused else { panic!("{refused}") };
    assert_eq!(weight, "w1", "{refused}");
    // What is named stays, wherever it is read.
    let named = job("[federation.personal]\nkind = 'fedper'\nkeep = ['w1']\n");
    let layout = ParameterLayout::new(tied(true), &named).unwrap().layout().clone();
    assert!(layout.parameters.iter().all(|part| part.name != "w1"));
}

#[test]
fn a_member_that_was_told_to_stop_works_on_the_next_task() {
    let mut members = [0, 0].map(|turn| Member::new("lenet", "", turn).unwrap());
    let model = members[0].place.parameter_layout().initial();
    let stop = Stop::asked();
    stop.pull();
    let task = LocalTask { member: "end", round: 0, start: &model };
    let first = &mut members[0];
    assert!(first.place.work(task, &first.share, &mut first.kept, &stop).unwrap().is_none());
    assert!(first.place.conclude(task, &first.share, &first.kept, &stop).unwrap().is_none());
    let [stopped, unbroken] = members.each_mut().map(|member| member.work(0, &model));
    assert_eq!(stopped.vectors, unbroken.vectors);
}

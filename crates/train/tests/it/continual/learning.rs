//! Tasks one after the other: what is forgotten, and what isn't.

use tierline_engine::Stop;
use tierline_graph::{Elements, Tensor};
use tierline_train::Job;
use tierline_train::continual::{Kept, Learner, Report, Task, Tested, forgetting, mean_accuracy};
use tierline_train::data::{Dataset, Targets};

use crate::training::{engines, network, options, pictures};

/// A job for small pictures, with this table `[continual]`.
pub fn job(continual: &str) -> Job {
    let text = format!(
        "model = 'net.onnx'\nepochs = 3\nseed = 4\n[data]\ntrain = 'pictures'\n[batch]\nsize = 16\n[optimizer]\nkind = 'sgd'\n\
         momentum = 0.9\n[schedule]\nrate = 0.05\n[continual]\n{continual}"
    );
    toml::from_str(&text).unwrap()
}

/// Ten classes in five tasks, and what is held out of each.
pub fn tasks() -> Vec<[Dataset; 2]> {
    let (seen, held_out) = (pictures(500, 1, 28, 1), pictures(200, 1, 28, 2));
    let of = |task: usize, data: &Dataset| {
        let classes = [2 * task, 2 * task + 1].map(|class| class.to_string()).to_vec();
        Task { classes, ..Task::default() }.of(data).unwrap()
    };
    (0..5).map(|task| [of(task, &seen), of(task, &held_out)]).collect()
}

pub fn learner(job: &Job, kept: Kept) -> Learner {
    // The last is the fastest there is.
    let engine = engines().pop().unwrap();
    Learner::new(&engine, network("mlp"), job, None, kept, &options()).unwrap()
}

fn learned(continual: &str, tasks: &[[Dataset; 2]]) -> (Learner, Vec<Tested>, Vec<Report>) {
    let mut learner = learner(&job(continual), Kept::default());
    let (mut tests, mut reports) = (Vec::new(), Vec::new());
    for (at, [seen, _]) in tasks.iter().enumerate() {
        reports.push(learner.learn(seen, &Stop::never(), &mut |_| ()).unwrap().unwrap());
        tests.push(learner.test(tasks[..=at].iter().map(|[_, test]| test).enumerate()).unwrap());
    }
    (learner, tests, reports)
}

#[test]
fn what_is_kept_is_not_forgotten() {
    let tasks = tasks();
    let (_, tests, reports) = learned("", &tasks);
    let naive = forgetting(&tests).unwrap();
    assert!(naive > 0.5, "{tests:?}");
    assert_eq!(reports.iter().map(|report| report.bytes).sum::<u64>(), 0);
    for (table, most) in [
        ("[continual.replay]\nper_class = 10", 0.3),
        ("[continual.replay]\nper_class = 10\npick = 'balanced'", 0.3),
        ("[continual.replay]\nper_class = 10\npick = 'herding'", 0.3),
        ("[continual.replay]\nexamples = 100\npick = 'balanced'\nlogits = true", 0.3),
        ("[continual.replay]\nbytes = 78900\n[continual.lwf]", 0.3),
        ("[continual.replay]\nper_class = 10\npick = 'gdumb'\nepochs = 20", 0.3),
        ("[continual.isolation]\nprune = 0.6", 0.0),
    ] {
        let (learner, tests, reports) = learned(table, &tasks);
        let lost = forgetting(&tests).unwrap();
        assert!(lost <= most * naive, "{table}: {lost} of {naive}, {tests:?}");
        let accuracy = mean_accuracy(tests.last().unwrap()).unwrap();
        // A few weights are left for the last tasks, and few examples to train them.
        assert!(accuracy > if learner.kept().owners.is_some() { 0.5 } else { 0.8 }, "{table}: {accuracy}, {tests:?}");
        assert_eq!(reports.last().unwrap().bytes, learner.kept().bytes());
        if let Some(memory) = &learner.kept().memory {
            assert!(memory.len() <= 100 && memory.len() >= 90, "{table}: {}", memory.len());
        }
        assert_eq!(learner.kept().classes, (0..10).collect::<Vec<u32>>());
    }
}

#[test]
fn weights_that_are_held_forget_less() {
    // The same classes, then upside down in brightness.
    let inverted = |data: &Dataset| {
        let rows: Vec<usize> = (0..data.len()).collect();
        let features = data.features(&rows).unwrap();
        let Elements::U8(pixels) = features.elements() else { unreachable!() };
        let pixels = pixels.iter().map(|p| 255 - p).collect();
        let classes = data.classes().unwrap().into_iter().map(|c| c as u32).collect();
        let features = Tensor::new(features.shape(), Elements::U8(pixels)).unwrap();
        Dataset::new("inverted", features, Targets::Classes { classes, count: 10, names: Vec::new() }).unwrap()
    };
    let (seen, held_out) = (pictures(400, 1, 28, 1), pictures(200, 1, 28, 2));
    let tasks = [[seen.clone(), held_out.clone()], [inverted(&seen), inverted(&held_out)]];
    let lost = |table: &str| {
        let (_, tests, _) = learned(table, &tasks);
        (forgetting(&tests).unwrap(), tests[1][1].accuracy.unwrap())
    };
    let (naive, _) = lost("");
    assert!(naive > 0.2, "{naive}");
    for table in [
        "[continual.ewc]\nlambda = 1000",
        "[continual.ewc]\nlambda = 1000\nvariant = 'online'\nlabels = 'given'",
        "[continual.si]\nstrength = 1",
        "[continual.ewc]\nlambda = 300\n[continual.si]\nstrength = 0.3",
    ] {
        let (held, new) = lost(table);
        eprintln!("{table}: {held} of {naive}, and {new} of the new");
        assert!(held < naive + 0.05, "{table}: {held} of {naive}");
    }
    // Any stiffness does: nothing moves, and nothing overflows.
    let (held, _) = lost("[continual.ewc]\nlambda = 1e15");
    assert!(held < 0.5 * naive, "{held} of {naive}");
}

#[test]
fn only_the_last_layers_learn_where_it_is_said() {
    let tasks = tasks();
    for (learn, stays) in [("'head'", true), ("{ last = 1 }", true), ("{ last = 2 }", false), ("'all'", false)] {
        let mut learner = learner(&job(&format!("learn = {learn}")), Kept::default());
        let before = learner.model().clone();
        learner.learn(&tasks[0][0], &Stop::never(), &mut |_| ()).unwrap().unwrap();
        let same: Vec<bool> = before
            .graph()
            .initializer
            .iter()
            .map(|t| learner.model().graph().initializer.iter().any(|other| other == t))
            .collect();
        assert_eq!(same.len(), 4);
        assert_eq!(same.iter().filter(|same| **same).count(), if stays { 2 } else { 0 }, "{learn}: {same:?}");
    }
}

#[test]
fn the_same_seed_leads_to_the_same_model_and_memory() {
    let tasks = &tasks()[..2];
    let table =
        "[continual.replay]\nexamples = 30\npick = 'balanced'\n[continual.ewc]\n[continual.si]\n[continual.lwf]";
    let (one, _, _) = learned(table, tasks);
    let (other, _, _) = learned(table, tasks);
    assert_eq!(one.kept(), other.kept());
    assert_eq!(one.model(), other.model());
}

#[test]
fn a_job_goes_on_where_another_ended() {
    let tasks = &tasks()[..3];
    let table = "[continual.replay]\nexamples = 30\n[continual.ewc]\n[continual.si]";
    let (whole, _, _) = learned(table, tasks);
    let (first, _, _) = learned(table, &tasks[..2]);
    let kept = Kept::parse(&first.kept().to_bytes().unwrap()).unwrap();
    assert_eq!(&kept, first.kept());
    let engine = engines().pop().unwrap();
    let model = first.model().clone();
    let mut later = Learner::new(&engine, model, &job(table), None, kept, &options()).unwrap();
    later.learn(&tasks[2][0], &Stop::never(), &mut |_| ()).unwrap().unwrap();
    assert_eq!(later.kept(), whole.kept());
    assert_eq!(later.model(), whole.model());
}

#[test]
fn one_class_and_one_example_are_tasks() {
    let data = pictures(40, 1, 28, 1);
    let one = data.subset(&[0]).unwrap();
    let class = Task { classes: vec![data.classes().unwrap()[1].to_string()], ..Task::default() }.of(&data).unwrap();
    for table in [
        "[continual.replay]\nper_class = 1",
        "[continual.replay]\nper_class = 1\npick = 'herding'",
        "[continual.replay]\nexamples = 1\npick = 'balanced'",
        "[continual.replay]\nexamples = 1\npick = 'gdumb'",
        "[continual.ewc]\n[continual.si]\n[continual.lwf]",
        "[continual.isolation]",
    ] {
        let mut learner = learner(&job(table), Kept::default());
        for task in [&one, &class, &one] {
            let report = learner.learn(task, &Stop::never(), &mut |_| ()).unwrap().unwrap();
            assert!(report.loss.is_finite(), "{table}: {report:?}");
        }
        assert_eq!(learner.kept().tasks, 3);
    }
}

#[test]
fn what_is_stopped_leaves_everything_as_it_was() {
    let tasks = tasks();
    let mut learner = learner(&job("[continual.replay]\nexamples = 9\n[continual.ewc]"), Kept::default());
    let before = learner.model().clone();
    let stop = Stop::asked();
    let pulled = stop.clone();
    let done = learner.learn(&tasks[0][0], &stop, &mut |progress| {
        if progress.step == 3 {
            pulled.pull();
        }
    });
    assert_eq!(done.unwrap(), None);
    assert_eq!((learner.model(), learner.kept()), (&before, &Kept::default()));
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    for (table, says) in [
        ("[continual.replay]", "say per_class, examples or bytes"),
        ("[continual.replay]\nper_class = 0", "1 to 2^24"),
        ("[continual.replay]\nexamples = 9\nshare = 1.0", "above 0 and below 1"),
        ("[continual.replay]\nexamples = 9\ntemperature = 0", "temperature"),
        ("[continual.ewc]\nlambda = -1", "continual.ewc.lambda"),
        ("[continual.ewc]\nlambda = nan", "continual.ewc.lambda"),
        ("[continual.ewc]\nexamples = 0", "continual.ewc.examples"),
        ("[continual.ewc]\ndecay = 1.5", "continual.ewc.decay"),
        ("[continual.si]\ndamping = 0", "continual.si.damping"),
        ("[continual.lwf]\ntemperature = inf", "continual.lwf.temperature"),
        ("[continual.isolation]\nprune = 1", "continual.isolation.prune"),
        ("learn = 'head'\n[continual.isolation]", "shares out all weights"),
        ("learn = { last = 0 }", "of at least one layer"),
        ("[[continual.tasks]]\n[[continual.tasks]]\nlearned = true", "come first"),
        ("forgetting = 1", "unknown field"),
    ] {
        let text = format!(
            "model = 'm'\nepochs = 1\n[data]\ntrain = 'd'\n[optimizer]\nkind = 'sgd'\n[schedule]\nrate = 0.1\n[continual]\n\
             {table}"
        );
        let refused = toml::from_str::<Job>(&text).unwrap_err().to_string();
        assert!(refused.contains(says), "{table}: {refused}");
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let tasks = tasks();
    let refused = |table: &str, change: &dyn Fn(&mut Job), kept: Kept| {
        let mut job = job(table);
        change(&mut job);
        let engine = engines().pop().unwrap();
        let mut learner = match Learner::new(&engine, network("mlp"), &job, None, kept, &options()) {
            Err(refused) => return refused.to_string(),
            Ok(learner) => learner,
        };
        learner.learn(&tasks[0][0], &Stop::never(), &mut |_| ()).unwrap_err().to_string()
    };
    let none = |_: &mut Job| ();
    let says = refused("[continual.lwf]", &|job| job.loss = tierline_graph::step::Loss::Mse, Kept::default());
    assert!(says.contains("plain cross-entropy"), "{says}");
    let says = refused("[continual.replay]\nexamples = 1", &|job| job.batch.size = 1, Kept::default());
    assert!(says.contains("no room for replay"), "{says}");
    let says = refused("[continual.replay]\nbytes = 100", &none, Kept::default());
    assert!(says.contains("one example takes 788"), "{says}");
    let (isolated, _, _) = learned("[continual.isolation]", &tasks[..1]);
    let says = refused("", &none, isolated.kept().clone());
    assert!(says.contains("set apart"), "{says}");
    let (shared, _, _) = learned("[continual.ewc]", &tasks[..1]);
    let says = refused("[continual.isolation]", &none, shared.kept().clone());
    assert!(says.contains("begins with the first task"), "{says}");
    // Kept of another model, or of other examples.
    let engine = engines().pop().unwrap();
    let other = Learner::new(&engine, network("lenet"), &job(""), None, shared.kept().clone(), &options());
    let says = other.err().unwrap().to_string();
    assert!(says.contains("of another model"), "{says}");
    let (remembers, _, _) = learned("[continual.replay]\nexamples = 5", &tasks[..1]);
    let mut learner = learner(&job("[continual.replay]\nexamples = 5"), remembers.kept().clone());
    let says = learner.learn(&pictures(20, 1, 20, 1), &Stop::never(), &mut |_| ()).unwrap_err().to_string();
    assert!(says.contains("the memory holds examples of"), "{says}");
}

#[test]
fn tasks_name_their_classes() {
    let data = pictures(60, 1, 28, 1);
    let of = |classes: &[&str]| {
        Task { classes: classes.iter().map(|c| (*c).to_owned()).collect(), ..Task::default() }.of(&data)
    };
    assert_eq!(of(&[]).unwrap().len(), 60);
    let two = of(&["3", "7"]).unwrap();
    assert!(two.classes().unwrap().iter().all(|class| [3, 7].contains(class)));
    assert_eq!(two.class_count(), Some(10));
    let says = of(&["trousers"]).unwrap_err().to_string();
    assert!(says.contains("`trousers`") && says.contains("0, 1, 2"), "{says}");
}

#[test]
fn a_student_of_another_architecture_learns_from_a_teacher() {
    let (seen, held_out) = (pictures(600, 1, 28, 1), pictures(200, 1, 28, 2));
    let engine = engines().pop().unwrap();
    let mut large = Learner::new(&engine, network("lenet"), &job(""), None, Kept::default(), &options()).unwrap();
    large.learn(&seen, &Stop::never(), &mut |_| ()).unwrap().unwrap();
    // Nobody labels what was collected: the labels here are wrong.
    let collected = pictures(600, 1, 28, 3).relabelled(|_, _| 0).unwrap();
    let table = "[continual.teacher]\nmodel = 'lenet.onnx'\nlabels = false\nweight = 0.5";
    let small = || Learner::new(&engine, network("mlp"), &job(table), None, Kept::default(), &options()).unwrap();
    let says = small().learn(&collected, &Stop::never(), &mut |_| ()).unwrap_err().to_string();
    assert!(says.contains("isn't at hand"), "{says}");
    let mut student = small().with_teacher(large.model().clone()).unwrap();
    student.learn(&collected, &Stop::never(), &mut |_| ()).unwrap().unwrap();
    let right = |learner: &Learner| learner.test([(0, &held_out)]).unwrap()[0].accuracy.unwrap();
    let (teacher, student) = (right(&large), right(&student));
    assert!(teacher > 0.9 && student > teacher - 0.1, "{teacher} {student}");
}

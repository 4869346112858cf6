//! Members of a federation that meet one task after the other.

use tierline_engine::Stop;
use tierline_federate::{Channel, Vectors};
use tierline_train::Job;
use tierline_train::continual::Task;
use tierline_train::data::Dataset;
use tierline_train::federated::{LocalTask, LocalTrainer, MemberState, Share};

use crate::training::{engines, network, options, pictures};

const ROUNDS: u64 = 6;

fn job(continual: &str) -> Job {
    let text = format!(
        "model = 'm.onnx'\nepochs = 2\nseed = 5\n[data]\ntrain = 'pictures'\n[batch]\nsize = 16\n[optimizer]\nkind = 'sgd'\n\
         momentum = 0.5\n[schedule]\nrate = 0.05\n[continual]\ntasks = [{{ classes = ['0', '1', '2', '3', '4'] }}, {{ classes \
         = ['5', '6', '7', '8', '9'] }}]\n{continual}\n[federation.cloud]\nrounds = {ROUNDS}\n"
    );
    toml::from_str(&text).unwrap()
}

/// Accuracy on the first task behind it, and on both behind the second, and
/// what the first end keeps.
fn learned(continual: &str) -> ([f64; 3], MemberState) {
    let engine = engines().pop().unwrap();
    let mut place = LocalTrainer::new(&engine, network("mlp"), &job(continual), &options()).unwrap();
    let ends: Vec<Share> = (0..3).map(|end| Share { seen: pictures(150, 1, 28, 10 + end), held_out: None }).collect();
    let held_out = pictures(200, 1, 28, 2);
    let of = |classes: std::ops::Range<usize>| -> Dataset {
        Task { classes: classes.map(|class| class.to_string()).collect(), ..Task::default() }.of(&held_out).unwrap()
    };
    let tests = [of(0..5), of(5..10)];
    let mut kept = vec![MemberState::new(); ends.len()];
    let mut model: Vectors = place.initial();
    let mut scores = [0.0; 3];
    for round in 0..ROUNDS {
        let mut next = model.clone();
        for (end, (share, kept)) in ends.iter().zip(&mut kept).enumerate() {
            let name = format!("end-{end}");
            let task = LocalTask { member: &name, round, start: &model };
            let done = place.work(task, share, kept, &Stop::never()).unwrap().unwrap();
            let mean = next.get_mut(&Channel::Model).unwrap();
            mean.iter_mut().zip(&done.vectors[&Channel::Model]).for_each(|(x, d)| *x += d / 3.0);
        }
        model = next;
        if round + 1 == ROUNDS / 2 {
            scores[0] = place.evaluate(&model, &tests[0]).unwrap().accuracy.unwrap();
        }
    }
    for (score, test) in scores[1..].iter_mut().zip(&tests) {
        *score = place.evaluate(&model, test).unwrap().accuracy.unwrap();
    }
    (scores, kept.swap_remove(0))
}

#[test]
fn ends_keep_what_all_learned_together() {
    let ([behind, old, new], _) = learned("");
    assert!(behind > 0.9 && old < 0.5 && new > 0.9, "{behind} {old} {new}");
    let names = |kept: &MemberState| {
        kept.keys().map(|name| name.trim_start_matches("continual.").to_owned()).collect::<Vec<_>>()
    };
    // Held so firmly that nothing moves any more.
    let ([behind, firm, _], kept) = learned("[continual.ewc]\nlambda = 1e15\n");
    assert!(behind > 0.9 && firm > old + 0.3, "{behind} {firm}, without {old}");
    assert_eq!(names(&kept), ["classes", "ewc.anchor", "ewc.stiffness", "fisher", "start", "task"]);
    let ([behind, _, _], kept) = learned("[continual.si]\nstrength = 1\n[continual.lwf]\n");
    assert!(behind > 0.9, "{behind}");
    assert_eq!(names(&kept), ["classes", "path", "said", "si.anchor", "si.stiffness", "start", "task"]);
    assert!(kept["continual.si.stiffness"].iter().all(|x| *x >= 0.0 && x.is_finite()));
    assert!(kept["continual.si.stiffness"].iter().any(|x| *x > 0.0));
    // Of the first task's classes alone the model said something before.
    let said = &kept["continual.said"];
    assert!(said.chunks(10).all(|row| row[..5].iter().all(|x| *x > -1e3) && row[5..].iter().all(|x| *x < -1e29)));
    // The same again.
    assert_eq!(learned("[continual.si]\nstrength = 1\n[continual.lwf]\n").1, kept);
}

#[test]
fn what_members_cannot_do_is_refused() {
    let refused = |change: &dyn Fn(&mut Job), table: &str| {
        let mut job = job(table);
        change(&mut job);
        LocalTrainer::new(&engines().pop().unwrap(), network("mlp"), &job, &options()).err().unwrap().to_string()
    };
    let none = |_: &mut Job| ();
    let says = refused(&none, "[continual.replay]\nexamples = 5\n");
    assert!(says.contains("by ewc, si and lwf"), "{says}");
    let says = refused(&|job| job.continual.as_mut().unwrap().tasks[1].data = Some("other".into()), "");
    assert!(says.contains("classes of their own examples"), "{says}");
    let rounds = |job: &mut Job| job.federation.as_mut().unwrap().cloud.rounds = 1;
    let says = refused(&rounds, "");
    assert!(says.contains("run more rounds"), "{says}");
}

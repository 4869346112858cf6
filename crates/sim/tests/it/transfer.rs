//! A network that ends and the cloud train in parts (FedGKT).

use tierline_engine::Stop;
use tierline_sim::{Examples, Scenario, SimulationResult, run};
use tierline_train::data::{Partition, partition};

use crate::federations::{accuracy_of, engine, job, network_named, pictures};

/// LeNet, divided behind its first pool: 6 x 14 x 14 features.
const FEATURES: usize = 6 * 14 * 14;
const EXAMPLES: usize = 400;

fn trained(strategy: &str, rounds: u64, up: &str, edges: usize) -> Result<SimulationResult, String> {
    let all = pictures(EXAMPLES, 1);
    let shares = partition(&all, &Partition::Iid, 4, 9).unwrap();
    let ends = shares.iter().map(|share| all.subset(share).unwrap()).collect();
    let text =
        format!("[federation.cloud]\nrounds = {rounds}\nup = [{up}]\nstrategy = {{ kind = 'fedgkt', {strategy} }}\n");
    let mut job = job(&text);
    job.data.hold_out = Some(0.25);
    job.epochs = 2;
    let examples = Examples { ends, test: None, public: None };
    let scenario = Scenario { edges, ..Scenario::default() };
    let ran = run(&engine(), &network_named("lenet"), &job, examples, &scenario, &Stop::never(), &mut |_| ());
    ran.map_err(|e| e.to_string())
}

#[test]
fn ends_and_the_cloud_each_train_a_part() {
    let divided = "features = 'MaxPool_2_out0', epochs = 4";
    let outcome = trained(divided, 10, "", 0).unwrap();
    let last = outcome.rounds.last().unwrap();
    assert!(last.accuracy.unwrap() > 0.8, "ends look at the whole at the end: {last:?}");
    assert!(outcome.rounds[..9].iter().all(|round| round.accuracy.is_none()), "and only then");
    // What ends send is of their examples: features, ten numbers that the model says, and a class.
    let seen = EXAMPLES as u64 * 3 / 4;
    let bytes = seen * 4 * (FEATURES as u64 + 10 + 1);
    let up = |outcome: &SimulationResult, round: usize| outcome.rounds[round].bytes_up;
    assert!((bytes..bytes + 5_000).contains(&up(&outcome, 1)), "{} {bytes}", up(&outcome, 1));
    assert_eq!(outcome.rounds[0].bytes_down, 0, "nothing is said before anybody was heard");
    assert_eq!(outcome.rounds[1].bytes_down, seen * 10 * 4);
    // The cloud's part takes features; ends have the whole, each its own.
    assert_eq!(outcome.model.inputs()[0].name, "MaxPool_2_out0");
    let test = pictures(200, 2);
    let own: Vec<f64> = outcome.own.values().map(|model| accuracy_of(model, &test)).collect();
    assert!(own.len() == 4 && own.iter().all(|right| *right > 0.6), "{own:?}");
    let firsts: std::collections::BTreeSet<_> = outcome.own.values().map(|m| m.to_bytes().unwrap()).collect();
    assert_eq!(firsts.len(), 4);
    let again = trained(divided, 10, "", 2).unwrap();
    assert_eq!(again.own, outcome.own, "the same again, also behind edges that pass it on");
    let rounded = trained(divided, 10, "'int8', 'zstd'", 0).unwrap();
    assert!(rounded.rounds.last().unwrap().accuracy.unwrap() > 0.75);
    assert!(3 * up(&rounded, 1) < up(&outcome, 1), "{} {}", up(&rounded, 1), up(&outcome, 1));
}

#[test]
fn what_the_cloud_says_reaches_ends_and_does_no_harm() {
    // The same rounds, but nobody listens to the other side: these pictures
    // are learned without that as well.
    let told = trained("features = 'MaxPool_2_out0', epochs = 4", 6, "", 0).unwrap();
    let deaf = trained("features = 'MaxPool_2_out0', epochs = 4, weight = 0.0", 6, "", 0).unwrap();
    assert_ne!(told.model, deaf.model);
    let accuracy = |outcome: &SimulationResult| outcome.rounds[5].accuracy.unwrap();
    let (of_told, of_deaf) = (accuracy(&told), accuracy(&deaf));
    assert!(of_told > 0.9 && of_told > of_deaf - 0.05, "{of_told} with what is said, {of_deaf} without");
}

#[test]
fn models_that_cannot_be_divided_there_are_refused() {
    for (features, why) in [("MaxPool", "did you mean `MaxPool_"), ("logits", "divided"), ("conv1.weight", "divided")] {
        let error = trained(&format!("features = '{features}'"), 1, "", 0).unwrap_err();
        assert!(error.contains(why) && error.contains("tierline model inspect"), "{error}");
    }
}

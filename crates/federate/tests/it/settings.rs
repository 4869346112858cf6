//! Job files: what is taken, what is refused and why.

use tierline_federate::{Federation, Late, Select, Strategy};

fn read(text: &str) -> Result<Federation, String> {
    let federation: Federation = toml::from_str(text).map_err(|e| e.to_string())?;
    federation.check().map_err(|e| e.to_string())?;
    Ok(federation)
}

#[test]
fn nothing_said_is_fedavg_over_all() {
    let federation = read("").unwrap();
    assert_eq!(federation, Federation::default());
    assert_eq!(federation.cloud.strategy, Strategy::default());
    assert_eq!(federation.evaluate_every, 1);
}

#[test]
fn a_whole_table_is_read_and_written_back() {
    let text = "
        [cloud]
        rounds = 30
        strategy = { kind = 'fedadam', rate = 0.1 }
        clients = { per_round = 10, min = 5, over = 1.3, deadline_s = 60.0, late = 'use', select = { kind = 'utility' } }
        [edge]
        rounds = 2
        strategy = { kind = 'fedprox', mu = 0.1 }
        [stop]
        accuracy = 0.9
    ";
    let federation = read(text).unwrap();
    assert_eq!(federation.cloud.clients.late, Late::Use);
    assert!(matches!(federation.cloud.clients.select, Select::Utility { .. }));
    assert_eq!(federation.edge.as_ref().map(|e| e.rounds), Some(2));
    let again = read(&toml::to_string(&federation).unwrap()).unwrap();
    assert_eq!(again, federation);
}

#[test]
fn what_makes_no_sense_is_refused_with_the_reason() {
    for (text, reason) in [
        ("[cloud]\nrounds = 0", "rounds is 0"),
        ("[cloud]\nclients = { min = 0 }", "at least one answer"),
        ("[cloud]\nclients = { min = 5, per_round = 3 }", "below clients.min"),
        ("[cloud]\nclients = { over = 0.5 }", "clients.over"),
        ("[cloud]\nclients = { deadline_s = -1.0 }", "deadline_s"),
        ("[cloud]\nstrategy = { kind = 'fedprox', mu = -1.0 }", "mu is -1"),
        ("[cloud]\nstrategy = { kind = 'fedavg', mu = 1.0 }", "unknown field"),
        ("[cloud]\nstrategy = { kind = 'fedadam', beta1 = 1.0 }", "beta1 is 1"),
        ("[cloud]\nstrategy = { kind = 'fedmagic' }", "unknown variant"),
        ("[cloud]\nround = 3", "unknown field"),
        ("[cloud]\nstrategy = { kind = 'scaffold' }\n[edge]", "edges don't train"),
        ("[edge]\nstrategy = { kind = 'fedbuff' }", "buffer at the cloud"),
        ("[cloud]\nup = ['topl:0.1']", "there is no stage"),
        ("[cloud]\nup = ['int8']\nmemory = { kind = 'dgc' }", "begin `up` with topk"),
        ("[cloud]\ndown = ['topl:0.1']", "there is no stage"),
        ("[cloud]\ndown = ['zstd']", "as many bits as the model"),
        ("[edge]\ndown = ['zstd']", "federation.edge: down"),
        ("[cloud]\ngossip = {}", "it is edges that gossip"),
        ("[edge]\ngossip = { every = 0 }", "at least 1"),
        ("[edge]\ngossip = { patience_s = 0.0 }", "above 0"),
        ("[edge]\ngossip = { deadline_s = -1.0 }", "above 0"),
        ("[edge]\ngossip = { stages = ['topk:0.1'] }", "stages that round"),
        ("[edge]\ngossip = { stages = ['int9'] }", "there is no stage"),
        ("[cloud]\nstrategy = { kind = 'fedgkt', features = 'f', temperature = 0.0 }", "above 0"),
        ("[cloud]\nstrategy = { kind = 'fedgkt', features = 'f', weight = -1.0 }", "at least 0"),
        ("[cloud]\nstrategy = { kind = 'fedgkt', features = 'f' }\nup = ['topk:0.1']", "stages that round"),
        (
            "[cloud]\nstrategy = { kind = 'fedgkt', features = 'f' }\nrule = { kind = 'median' }",
            "leave rule and down out",
        ),
        ("[cloud]\nstrategy = { kind = 'fedgkt', features = 'f' }\n[edge]\n", "edges then pass it on"),
        ("[cloud]\nstrategy = { kind = 'fedgkt', features = 'f' }\n[personal]\nkind = 'fedbn'", "a model of its own"),
        ("evaluate_at = 'cloud'\n[cloud]\nstrategy = { kind = 'fedgkt', features = 'f' }\n", "can't look at"),
        ("[stop]\naccuracy = 90.0", "at most 1"),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.contains(reason), "{text}: {error}");
    }
}

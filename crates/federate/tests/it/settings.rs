//! Job files: what is taken, what is refused and why.

use tierline_federate::{Federation, Hop, Late, Select, Strategy};

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
        ("[cloud]\nclients = { deadline_s = 1e20 }", "at most 1e9"),
        ("[cloud]\nclients = { patience_s = nan }", "above 0"),
        ("[cloud]\nclients = { patience_s = inf }", "at most 1e9"),
        ("[edge]\ngossip = { deadline_s = 1e300 }", "at most 1e9"),
        ("[cloud]\nrounds = 9223372036854775807", "at most 2^32"),
        ("[cloud]\nclients = { min = 2000000 }", "at most 2^20"),
        ("[cloud]\nclients = { over = 1e300 }", "at most 1000"),
        ("[cloud]\nstrategy = { kind = 'fedbuff', size = 9223372036854775807 }", "at most 2^20"),
        ("[cloud]\nstrategy = { kind = 'feddf', distil = { public = 'p', examples = 99999999999 } }", "2^24"),
        ("[personal]\nkind = 'finetune'\nepochs = 9223372036854775807", "at most 2^32"),
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
        ("[cloud]\nclients = { select = { kind = 'utility', exploration = 1.5 } }", "exploration is 1.5"),
        ("[cloud]\nclients = { select = { kind = 'utility', slowness = nan } }", "slowness is NaN"),
        ("[cloud]\nclients = { select = { kind = 'utility', slowness = -1.0 } }", "slowness is -1"),
        ("evaluate_at = 'cloud'\n[cloud]\nstrategy = { kind = 'fedgkt', features = 'f' }\n", "can't evaluate"),
        ("[stop]\naccuracy = 90.0", "at most 1"),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.contains(reason), "{text}: {error}");
    }
}

const FEDMD: &str = "strategy = { kind = 'fedmd', distil = { public = 'p' } }";
const FEDDF: &str = "strategy = { kind = 'feddf', distil = { public = 'p' } }";
const FEDGKT: &str = "strategy = { kind = 'fedgkt', features = 'f' }";
const SCAFFOLD: &str = "strategy = { kind = 'scaffold' }";
const FEDNOVA: &str = "strategy = { kind = 'fednova' }";
const FEDBUFF: &str = "strategy = { kind = 'fedbuff', size = 10 }";
const FEDASYNC: &str = "strategy = { kind = 'fedasync' }";
const FEDADAM: &str = "strategy = { kind = 'fedadam' }";
const MEDIAN: &str = "rule = { kind = 'median' }";
const BOUNDED: &str = "rule = { kind = 'bounded' }";
const KRUM: &str = "rule = { kind = 'krum' }";
const EF21: &str = "memory = { kind = 'ef21' }";
const DGC: &str = "memory = { kind = 'dgc' }";
const FEEDBACK: &str = "memory = { kind = 'feedback' }";
const NONE: &str = "memory = { kind = 'none' }";
const TOPK: &str = "up = ['topk:0.1', 'int8']";
const RANDOM: &str = "up = ['random:0.1']";
const POWERSGD: &str = "up = ['powersgd:2']";
const INT8: &str = "up = ['int8']";
const SIGN: &str = "up = ['sign']";
const QSGD: &str = "up = ['qsgd:2', 'zstd']";
const DOWN: &str = "down = ['topk:0.1']";

/// What goes with what on one hop, and why the rest doesn't.
#[test]
fn settings_of_a_hop_go_together_or_say_why_not() {
    let table: &[(&[&str], &str)] = &[
        // Rules compare numbers that all send.
        (&[MEDIAN, INT8], ""),
        (&[MEDIAN, SIGN], ""),
        (&[KRUM, SIGN], ""),
        (&[KRUM, QSGD], ""),
        (&[MEDIAN, DOWN], ""),
        (&[MEDIAN, TOPK], "another part of its change"),
        (&[KRUM, RANDOM], "another part of its change"),
        (&[MEDIAN, POWERSGD], "another part of its change"),
        (&[MEDIAN, TOPK, DGC], "another part of its change"),
        (&[BOUNDED, TOPK], ""),
        (&[BOUNDED, TOPK, DGC], ""),
        (&[BOUNDED, POWERSGD], ""),
        (&[MEDIAN, FEDADAM], ""),
        (&[KRUM, FEDNOVA], ""),
        (&[MEDIAN, FEDBUFF], ""),
        (&[MEDIAN, FEDASYNC], "rule median needs 3 answers, and a round has 1"),
        (&[MEDIAN, FEDMD], ""),
        (&[MEDIAN, SCAFFOLD], "made of all members"),
        (&[BOUNDED, FEDDF], "made of all members"),
        (&[MEDIAN, FEDGKT], "leave rule and down out"),
        // And need enough of them.
        (&[KRUM, "clients = { per_round = 4 }"], "rule krum needs 5 answers, and a round has 4"),
        (&[KRUM, "clients = { per_round = 5 }"], ""),
        (&[KRUM, "clients = { per_round = 6 }"], "needs 7 answers"),
        (&["rule = { kind = 'bulyan' }", "clients = { per_round = 14 }"], "needs 15 answers"),
        (&["rule = { kind = 'bulyan' }", "clients = { per_round = 15 }"], ""),
        (&["rule = { kind = 'trimmed', share = 0.4 }", "clients = { per_round = 4 }"], "needs 5 answers"),
        (&[BOUNDED, "clients = { per_round = 2 }"], "needs 3 answers"),
        // Memories are of changes that add up.
        (&[TOPK], ""),
        (&[TOPK, DGC], ""),
        (&[TOPK, FEDBUFF], ""),
        (&[TOPK, FEDASYNC, DGC], ""),
        (&[TOPK, SCAFFOLD, FEEDBACK], ""),
        (&[TOPK, FEDNOVA], ""),
        (&[INT8, DGC], "begin `up` with topk"),
        (&[POWERSGD, DGC], "begin `up` with topk"),
        (&[TOPK, "memory = { kind = 'dgc', momentum = 1.0 }"], "memory.momentum"),
        (&[QSGD], ""),
        (&[QSGD, NONE], ""),
        (&[QSGD, FEEDBACK], "name qsgd:6"),
        (&["up = ['topk:0.1', 'qsgd:4']"], "name qsgd:6"),
        (&["up = ['topk:0.1', 'qsgd:4']", NONE], ""),
        (&["up = ['topk:0.1', 'qsgd:6']"], ""),
        (&["down = ['qsgd:4']"], "name qsgd:6"),
        (&["down = ['qsgd:6']", TOPK], ""),
        // EF21's estimates add up by the plain mean only.
        (&[EF21, TOPK], ""),
        (&[EF21, POWERSGD], ""),
        (&[EF21, TOPK, FEDADAM], ""),
        (&[EF21, TOPK, DOWN], ""),
        (&[EF21, TOPK, "strategy = { kind = 'diloco' }"], ""),
        (&[EF21, TOPK, "clients = { late = 'use' }"], ""),
        (&[EF21], "`up` loses nothing"),
        (&[EF21, "up = ['zstd']"], "`up` loses nothing"),
        (&[EF21, QSGD], "name qsgd:6"),
        (&[EF21, INT8, MEDIAN], "leave rule or memory out"),
        (&[EF21, TOPK, BOUNDED], "leave rule or memory out"),
        (&[EF21, TOPK, SCAFFOLD], "every change to count alike"),
        (&[EF21, TOPK, FEDNOVA], "every change to count alike"),
        (&[EF21, TOPK, FEDBUFF], "every change to count alike"),
        (&[EF21, TOPK, FEDASYNC], "every change to count alike"),
        (&[EF21, INT8, FEDDF], "every change to count alike"),
        // Answers and features are no changes.
        (&[FEDMD, INT8], ""),
        (&[FEDMD, INT8, NONE], ""),
        (&[FEDMD, DOWN], ""),
        (&[FEDMD, TOPK], "stages that round"),
        (&[FEDMD, INT8, FEEDBACK], "no memory"),
        (&[FEDGKT, INT8], ""),
        (&[FEDGKT, POWERSGD], "stages that round"),
        (&[FEDGKT, INT8, FEEDBACK], "no memory"),
        (&[FEDGKT, DOWN], "leave rule and down out"),
        (&[FEDDF, INT8], ""),
        (&[FEDDF, DOWN], ""),
        (&[FEDDF, TOPK], "makes another one"),
    ];
    for (settings, reason) in table {
        let text = format!("[cloud]\n{}", settings.join("\n"));
        match read(&text) {
            Ok(_) => assert_eq!(*reason, "", "{text}: goes together"),
            Err(error) => assert!(!reason.is_empty() && error.contains(reason), "{text}: {error}"),
        }
    }
}

/// The same of two hops, and of ends' own models.
#[test]
fn hops_and_ends_go_together_or_say_why_not() {
    let (other, fedprox) =
        ("strategy = { kind = 'fedmd', distil = { public = 'q' } }", "strategy = { kind = 'fedprox' }");
    let (fedbn, fedper) = ("kind = 'fedbn'", "kind = 'fedper'\nkeep = ['x']");
    let (ditto, finetune) = ("kind = 'ditto'", "kind = 'finetune'");
    for (cloud, edge, personal, reason) in [
        ("", Some(SCAFFOLD), "", ""),
        ("", Some(fedprox), ditto, ""),
        (FEDBUFF, Some(SCAFFOLD), "", ""),
        (FEDDF, Some(fedprox), "", ""),
        (FEDMD, Some(FEDMD), "", ""),
        (MEDIAN, Some("up = ['topk:0.1']"), "", ""),
        ("up = ['topk:0.1']", Some(MEDIAN), fedbn, ""),
        (SCAFFOLD, Some(""), "", "edges don't train"),
        (FEDMD, Some(""), "", "same distil"),
        (FEDMD, Some(other), "", "same distil"),
        ("", Some(FEDDF), "", "edges don't train"),
        ("", Some(FEDBUFF), "", "buffer at the cloud"),
        (FEDGKT, Some(""), "", "edges then pass it on"),
        ("", Some("rule = { kind = 'krum' }\nup = ['topk:0.1']"), "", "federation.edge: with topk"),
        (SCAFFOLD, None, fedbn, ""),
        (MEDIAN, None, fedper, ""),
        (FEDDF, None, ditto, ""),
        (FEDDF, None, finetune, ""),
        (FEDDF, None, fedbn, "keep a part at home"),
        (FEDDF, None, fedper, "keep a part at home"),
        (FEDMD, None, ditto, "a model of its own"),
        (FEDGKT, None, ditto, "a model of its own"),
    ] {
        let edge = edge.map(|edge| format!("[edge]\n{edge}\n")).unwrap_or_default();
        let personal = if personal.is_empty() { String::new() } else { format!("[personal]\n{personal}\n") };
        let text = format!("[cloud]\n{cloud}\n{edge}{personal}");
        match read(&text) {
            Ok(_) => assert_eq!(reason, "", "{text}: goes together"),
            Err(error) => assert!(!reason.is_empty() && error.contains(reason), "{text}: {error}"),
        }
    }
}

#[test]
fn keys_that_a_kind_doesnt_know_are_refused() {
    for text in [
        "rule = { kind = 'mean', share = 0.1 }",
        "rule = { kind = 'median', share = 0.1 }",
        "memory = { kind = 'none', momentum = 0.9 }",
        "memory = { kind = 'ef21', momentum = 0.9 }",
        "clients = { select = { kind = 'random', exploration = 0.1 } }",
        "strategy = { kind = 'fedavg', rate = 1.0 }",
    ] {
        let error = toml::from_str::<Hop>(text).unwrap_err().to_string();
        assert!(error.contains("unknown field"), "{text}: {error}");
    }
}

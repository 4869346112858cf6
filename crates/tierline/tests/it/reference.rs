//! The page on configuration says every key of a job's file, and its default.

use std::collections::BTreeMap;

use tierline_federate::{Federation, Gossip};
use tierline_train::Job;
use toml::Value;

const PAGE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/configuration.md"));

/// Rows of the table below a heading whose first column is called so: their
/// first cells, and the others.
fn table<'p>(heading: &str, column: &str) -> BTreeMap<&'p str, Vec<&'p str>> {
    let (_, section) = PAGE.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let section = section.split("\n#").next().unwrap();
    let head = format!("| {column} |");
    let rows = section.lines().skip_while(|line| !line.starts_with(&head)).skip(2).take_while(|l| l.starts_with('|'));
    let cells = rows.map(|row| row.trim_matches('|').split(" | ").map(|cell| cell.trim()).collect::<Vec<_>>());
    let table: BTreeMap<_, _> = cells.map(|cells| (cells[0].trim_matches('`'), cells[1..].to_vec())).collect();
    assert!(!table.is_empty(), "{heading}: no table with a column {column}");
    table
}

/// What a job's parser knows in place of `zzz`.
fn known(text: &str) -> Vec<String> {
    let error = toml::from_str::<Job>(text).expect_err(text).to_string();
    assert!(error.contains("`zzz`"), "{text}: {error}");
    let Some((_, names)) = error.split_once("expected") else { return Vec::new() };
    names.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn names(table: &BTreeMap<&str, Vec<&str>>) -> Vec<String> {
    table.keys().map(|&key| key.to_owned()).collect()
}

#[track_caller]
fn same(documented: &BTreeMap<&str, Vec<&str>>, mut known: Vec<String>) {
    known.sort();
    assert_eq!(names(documented), known);
}

#[test]
fn every_key_of_a_training_job_is_documented() {
    let mut keys = Vec::new();
    for key in known("zzz = 0") {
        match key.as_str() {
            "data" | "batch" | "schedule" => {
                let inner = known(&format!("{key} = {{ zzz = 0 }}"));
                keys.extend(inner.into_iter().map(|inner| format!("{key}.{inner}")));
            }
            "loss" | "optimizer" => keys.push(format!("{key}.kind")),
            _ => keys.push(key),
        }
    }
    keys.iter_mut().filter(|key| *key == "schedule.decay").for_each(|key| key.push_str(".kind"));
    same(&table("## A training job", "key"), keys);
}

#[test]
fn every_key_of_a_federation_is_documented_with_its_default() {
    let defaults = Value::try_from(Federation::default()).unwrap();
    let gossip = Value::try_from(Gossip::default()).unwrap();
    let within = |key: &str| key.split('.').fold(&defaults, |value, key| &value[key]);
    for (heading, text, defaults) in [
        ("### `[federation]`", "federation = { zzz = 0 }", &defaults),
        ("### `[federation.cloud]` and `[federation.edge]`", "federation.cloud = { zzz = 0 }", within("cloud")),
        ("### `clients`", "federation.cloud.clients = { zzz = 0 }", within("cloud.clients")),
        ("### `gossip`", "federation.edge.gossip = { zzz = 0 }", &gossip),
        ("### `[[models]]`", "models = [{ zzz = 0 }]", &Value::Table(toml::Table::new())),
    ] {
        let documented = table(heading, "key");
        same(&documented, known(text));
        for (key, cells) in &documented {
            let written = cells[0].trim_matches('`');
            match defaults.get(key) {
                Some(Value::Table(inner)) => match inner.get("kind") {
                    Some(kind) => assert_eq!(written, format!("{{ kind = {kind} }}"), "{heading}: {key}"),
                    None => assert_eq!(written, "{}", "{heading}: {key}"),
                },
                Some(value) => assert_eq!(written, value.to_string().trim_matches('"'), "{heading}: {key}"),
                None => assert!(
                    !written.is_empty() && written.parse::<f64>().is_err(),
                    "{heading}: {key} has no default `{written}`"
                ),
            }
        }
    }
    assert_eq!(known("federation.stop = { zzz = 0 }"), ["accuracy"]);
    assert!(table("### `[federation]`", "key")["stop"][1].contains("`accuracy`"));
    let distil = known("federation.cloud.strategy = { kind = 'feddf', distil = { zzz = 0 } }");
    same(&table("### `strategy`", "key of `strategy.distil`"), distil);
}

#[test]
fn every_kind_is_documented_with_its_settings_and_their_defaults() {
    for (heading, path, column) in [
        ("### `clients`", "federation.cloud.clients.select", "`clients.select.kind`"),
        ("### `strategy`", "federation.cloud.strategy", "`strategy.kind`"),
        ("### `rule`", "federation.cloud.rule", "`rule.kind`"),
        ("### `memory`", "federation.cloud.memory", "`memory.kind`"),
        ("### `[federation.personal]`", "federation.personal", "`personal.kind`"),
        ("### `[[federation.modifiers]]`", "federation.modifiers", "`modifiers.kind`"),
    ] {
        let documented = table(heading, column);
        same(&documented, known(&one(path, "kind = 'zzz'")));
        for (kind, cells) in documented {
            // Those without a default.
            let required = match kind {
                "fedmd" | "feddf" => ", distil = { public = 'p' }",
                "fedgkt" => ", features = 'f'",
                "fedper" => ", keep = ['k']",
                "clip" => ", norm = 1.0",
                _ => "",
            };
            let mut settings = known_of_kind(path, kind);
            settings.sort();
            let mut named: Vec<_> = cells[0].split('`').skip(1).step_by(2).map(str::to_owned).collect();
            named.sort();
            assert_eq!(named, settings, "{path}: {kind}");
            let rest = "model = 'm'\nepochs = 1\ndata = { train = 'd' }\noptimizer = { kind = 'sgd' }\nschedule = { rate = 0.1 }\n";
            // Some memories are of what is left out.
            let beside = if path.ends_with("memory") { "federation.cloud.up = ['topk:0.01']\n" } else { "" };
            let text = format!("{rest}{beside}{}", one(path, &format!("kind = '{kind}'{required}")));
            let job: Job = toml::from_str(&text).unwrap();
            let job = Value::try_from(job).unwrap();
            let made = path.split('.').fold(&job, |value, key| &value[key]);
            let made = made.as_array().map_or(made, |list| &list[0]);
            for (key, value) in made.as_table().unwrap() {
                let without = ["kind", "distil", "features", "keep", "norm"].contains(&key.as_str());
                let wanted = format!("`{key}` {value}");
                let found = cells[0].split(", ").any(|setting| setting == wanted);
                assert!(without || found, "{path}: {kind} lacks {wanted}: {}", cells[0]);
            }
        }
    }
}

/// One thing of a kind, in a list where there may be several.
fn one(path: &str, settings: &str) -> String {
    match path {
        "federation.modifiers" => format!("{path} = [{{ {settings} }}]"),
        _ => format!("{path} = {{ {settings} }}"),
    }
}

/// Settings of a kind; of one that has none, nothing is said.
fn known_of_kind(path: &str, kind: &str) -> Vec<String> {
    let text = one(path, &format!("kind = '{kind}', zzz = 0"));
    let error = toml::from_str::<Job>(&text).expect_err("parts of a job are missing").to_string();
    if error.contains("`zzz`") { known(&text) } else { Vec::new() }
}

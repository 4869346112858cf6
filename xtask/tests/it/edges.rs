//! Dependencies between our crates are the ones that ARCHITECTURE.md allows.

use std::collections::{BTreeMap, BTreeSet};

use crate::workspace::{list, members, root, text};

/// Of a crate: what it may use, what its tests may use beside.
type Edges = BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)>;

#[test]
fn our_crates_depend_as_architecture_md_allows() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert_eq!(faults(&allowed(&page), &actual()), Vec::<String>::new());
}

#[test]
fn a_new_edge_is_a_fault() {
    let allowed =
        allowed("| crate | may use | its tests also |\n| --- | --- | --- |\n| `a` | `b` | – |\n| `b` | – | – |");
    let edges = |uses: &[&str]| (uses.iter().map(ToString::to_string).collect(), BTreeSet::new());
    let actual = Edges::from([("a".into(), edges(&["b"])), ("b".into(), edges(&["a"])), ("c".into(), edges(&[]))]);
    assert_eq!(
        faults(&allowed, &actual),
        ["`b` uses `a`, which ARCHITECTURE.md does not allow", "ARCHITECTURE.md says nothing about `c`"]
    );
}

/// The table whose head is "crate | may use | its tests also".
fn allowed(page: &str) -> Edges {
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    page.lines()
        .map(|line| line.trim().trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>())
        .skip_while(|cells| *cells != ["crate", "may use", "its tests also"])
        .skip(2)
        .map_while(|cells| match cells[..] {
            [name, uses, tests] => Some((names(name).pop_first()?, (names(uses), names(tests)))),
            _ => None,
        })
        .collect()
}

fn actual() -> Edges {
    let members = members();
    let ours: BTreeSet<&str> = members.iter().map(|p| text(&p["name"])).collect();
    members
        .iter()
        .map(|package| {
            let (tests, uses): (Vec<_>, Vec<_>) = list(&package["dependencies"])
                .filter(|d| ours.contains(text(&d["name"])))
                .partition(|d| text(&d["kind"]) == "dev");
            let names = |d: Vec<&serde_json::Value>| d.iter().map(|d| text(&d["name"]).to_owned()).collect();
            (text(&package["name"]).to_owned(), (names(uses), names(tests)))
        })
        .collect()
}

fn faults(allowed: &Edges, actual: &Edges) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, (uses, tests)) in actual {
        let Some((may_use, may_test)) = allowed.get(name) else {
            faults.push(format!("ARCHITECTURE.md says nothing about `{name}`"));
            continue;
        };
        let forbidden = uses.difference(may_use).map(|other| (name.clone(), other));
        let in_tests = tests.iter().filter(|t| !may_use.contains(*t) && !may_test.contains(*t));
        let in_tests = in_tests.map(|other| (format!("{name} (tests)"), other));
        for (who, other) in forbidden.chain(in_tests) {
            faults.push(format!("`{who}` uses `{other}`, which ARCHITECTURE.md does not allow"));
        }
    }
    let gone = allowed.keys().filter(|name| !actual.contains_key(*name));
    faults.extend(gone.map(|name| format!("ARCHITECTURE.md lists `{name}`, which does not exist")));
    faults
}

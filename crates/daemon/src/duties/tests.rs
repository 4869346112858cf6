//! Who may call what: every call, every caller, every server.

use std::collections::BTreeSet;
use std::fmt::Write;

use tierline_node::policy::{Caller, Rule, check};
use tierline_proto::{Code, Role};

use super::REGISTRY;
use crate::net::children;

fn rules() -> impl Iterator<Item = &'static Rule> {
    children::RULES.iter().chain(REGISTRY.iter().flat_map(|duty| duty.rules))
}

const CALLERS: [Caller; 7] = [
    Caller::Anonymous,
    Caller::Identified(Role::Unspecified),
    Caller::Identified(Role::End),
    Caller::Identified(Role::Edge),
    Caller::Identified(Role::Cloud),
    Caller::Identified(Role::Operator),
    Caller::Socket,
];

fn word(caller: Caller) -> &'static str {
    match caller {
        Caller::Anonymous => "anyone",
        Caller::Socket => "socket",
        Caller::Identified(role) => role.word(),
    }
}

#[test]
fn the_table() {
    let mut rules: Vec<&Rule> = self::rules().collect();
    rules.sort_unstable_by_key(|rule| rule.rpc);
    let mut table = String::new();
    for rule in rules {
        let _ = write!(table, "{:<22}", rule.rpc.trim_start_matches("/tierline.v1."));
        for server in [Role::End, Role::Edge, Role::Cloud] {
            let allowed = CALLERS.iter().filter(|caller| check(self::rules(), rule.rpc, **caller, server).is_ok());
            let allowed: Vec<&str> = allowed.map(|caller| word(*caller)).collect();
            let _ =
                write!(table, " {}:{}", server.word(), if allowed.is_empty() { "-".into() } else { allowed.join(",") });
        }
        table.push('\n');
    }
    insta::assert_snapshot!(table);
}

#[test]
fn what_the_table_does_not_name_is_refused() {
    for caller in CALLERS {
        for server in [Role::Unspecified, Role::End, Role::Edge, Role::Cloud, Role::Operator] {
            for rpc in ["", "/", "/tierline.v1.Local/Nope", "/tierline.v1.Infer/run", "tierline.v1.Infer/Run"] {
                assert_eq!(check(rules(), rpc, caller, server).unwrap_err().code(), Code::Forbidden, "{rpc}");
            }
            for rule in rules() {
                let serves = [Role::End, Role::Edge, Role::Cloud].contains(&server);
                assert!(serves || check(rules(), rule.rpc, caller, server).is_err());
                // Without identity there is only the way to get one.
                if caller == Caller::Anonymous && !rule.rpc.ends_with("Enrollment/Join") {
                    assert!(check(rules(), rule.rpc, caller, server).is_err(), "{}", rule.rpc);
                }
                assert!(
                    caller != Caller::Identified(Role::Unspecified)
                        || check(rules(), rule.rpc, caller, server).is_err()
                );
            }
        }
    }
}

#[test]
fn every_call_of_the_protocol_has_one_rule() {
    let proto = include_str!("../../../proto/proto/tierline.proto");
    let mut service = "";
    let mut rpcs = Vec::new();
    for line in proto.lines().map(str::trim) {
        let word = |prefix| line.strip_prefix(prefix).and_then(|rest: &str| rest.split([' ', '(']).next());
        service = word("service ").unwrap_or(service);
        rpcs.extend(word("rpc ").map(|rpc| format!("/tierline.v1.{service}/{rpc}")));
    }
    let mut ruled: Vec<&str> = rules().map(|rule| rule.rpc).collect();
    rpcs.sort_unstable();
    ruled.sort_unstable();
    assert_eq!(rpcs, ruled);
}

#[test]
fn every_duty_has_a_name_of_its_own() {
    let names: BTreeSet<&str> = REGISTRY.iter().map(|duty| duty.name).collect();
    assert_eq!(names.len(), REGISTRY.len());
}

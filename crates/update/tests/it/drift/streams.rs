//! Detectors beside river and frouros on the same streams (`streams.py` wrote
//! what they say).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;
use tierline_update::drift::random::Random;
use tierline_update::drift::stream::{Detector, Method, State};

#[derive(Deserialize)]
struct Row {
    name: String,
    seed: u64,
    parts: Vec<Part>,
    river: BTreeMap<String, Said>,
    frouros: BTreeMap<String, Option<u64>>,
}

#[derive(Deserialize)]
struct Part {
    kind: String,
    n: u32,
    from: f64,
    to: Option<f64>,
    deviation: Option<f64>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Said {
    drifts: Vec<u64>,
    warnings: u64,
}

fn rows() -> Vec<Row> {
    serde_json::from_str(include_str!("streams.json")).unwrap()
}

fn values(row: &Row) -> Vec<f64> {
    let mut random = Random::new(row.seed);
    let mut values = Vec::new();
    for part in &row.parts {
        let step = (part.to.unwrap_or(part.from) - part.from) / f64::from(part.n);
        for i in 0..part.n {
            let level = part.from + step * f64::from(i);
            values.push(match part.kind.as_str() {
                "errors" => f64::from(u8::from(random.uniform() < level)),
                "numbers" => {
                    level + part.deviation.unwrap() * ((0..12).fold(0.0, |sum, _| sum + random.uniform()) - 6.0)
                }
                _ => level,
            });
        }
    }
    values
}

fn method(name: &str) -> Method {
    let options = match name {
        "hddm-a, two-sided" => json!({ "method": "hddm-a", "two_sided_test": true }),
        "hddm-w, two-sided" => json!({ "method": "hddm-w", "two_sided_test": true }),
        "adwin, others" => json!({
            "method": "adwin", "delta": 0.05, "clock": 1, "max_buckets": 3, "min_window_length": 20, "grace_period": 100
        }),
        "page-hinkley, others" => json!({
            "method": "page-hinkley", "min_instances": 100, "delta": 0.02, "threshold": 20.0, "alpha": 0.99, "mode": "up"
        }),
        "kswin, others" => json!({ "method": "kswin", "alpha": 0.0001, "window_size": 200, "stat_size": 50 }),
        name => json!({ "method": name }),
    };
    serde_json::from_value(options).unwrap()
}

fn said(method: &Method, values: &[f64]) -> Said {
    let mut detector = Detector::new(method, 7).unwrap();
    let mut said = Said { drifts: Vec::new(), warnings: 0 };
    for (i, &x) in values.iter().enumerate() {
        match detector.update(x).unwrap() {
            State::Drift => said.drifts.push(i as u64),
            State::Warning => said.warnings += 1,
            State::Stable => {}
        }
    }
    said
}

/// Every drift at the same index, and as many warnings.
#[test]
fn detectors_say_what_river_says() {
    let mut compared = 0;
    for row in rows() {
        let values = values(&row);
        for (name, expected) in &row.river {
            if name == "hddm-w as it is" {
                continue;
            }
            assert_eq!(&said(&method(name), &values), expected, "{name} on `{}` of seed {}", row.name, row.seed);
            compared += 1;
        }
    }
    assert!(compared == 420, "{compared}");
}

/// Where frouros reads the papers as we do: HDDM_W and DDM fire at the same
/// index; its HDDM_A, whose bound has another factor, up to 40 numbers earlier.
#[test]
fn detectors_say_what_frouros_says() {
    for row in rows() {
        let values = values(&row);
        for (name, expected) in &row.frouros {
            let first = || said(&method(name), &values).drifts.first().copied();
            let place = format!("{name} on `{}` of seed {}", row.name, row.seed);
            match name.as_str() {
                "ddm" | "hddm-w" => assert_eq!(first(), *expected, "{place}"),
                "hddm-a" => {
                    let (ours, theirs) = (first().unwrap_or(u64::MAX), expected.unwrap_or(u64::MAX));
                    assert!(theirs <= ours && ours - theirs <= 40, "{place}: {ours}, frouros {theirs}");
                }
                _ => {}
            }
        }
    }
}

/// No alarm on streams that never change, of the detectors used by default;
/// HDDM_W is held to 3 in 20,000.
#[test]
fn defaults_are_quiet_where_nothing_changes() {
    for row in rows().iter().filter(|row| row.name.contains("none") || row.name.contains("constant")) {
        let values = values(row);
        assert!(said(&method("adwin"), &values).drifts.is_empty(), "{} {}", row.name, row.seed);
        if row.name.starts_with("errors") {
            assert!(said(&method("hddm-a"), &values).drifts.is_empty(), "{} {}", row.name, row.seed);
            assert!(said(&method("hddm-w"), &values).drifts.len() <= 3, "{} {}", row.name, row.seed);
        }
    }
}

/// Options at their edges neither panic nor hang, whatever comes.
#[test]
fn edges_of_options_hold() {
    for options in [
        json!({ "method": "adwin", "clock": 1, "max_buckets": 1, "min_window_length": 1, "grace_period": 0, "delta": 0.999 }),
        json!({ "method": "kswin", "window_size": 2, "stat_size": 1, "alpha": 0.999 }),
        json!({ "method": "ddm", "warm_start": 0, "drift_threshold": 0.0, "warning_threshold": 0.0 }),
        json!({ "method": "eddm", "warm_start": 0, "alpha": 1.0, "beta": 1.0 }),
        json!({ "method": "page-hinkley", "min_instances": 0, "threshold": 0.0, "delta": 0.0, "alpha": 1.0 }),
        json!({ "method": "hddm-w", "lambda": 0.999, "drift_confidence": 0.999 }),
        json!({ "method": "hddm-a", "drift_confidence": 0.999, "warning_confidence": 0.999, "two_sided_test": true }),
    ] {
        let method: Method = serde_json::from_value(options).unwrap();
        let mut detector = Detector::new(&method, 3).unwrap();
        let mut random = Random::new(5);
        for i in 0..5_000 {
            let x = match i % 5 {
                0 => 0.0,
                1 => 1.0,
                2 => random.uniform(),
                3 => 1e100 * (random.uniform() - 0.5),
                _ => f64::from_bits(random.bits()),
            };
            let _ = detector.update(x);
        }
        assert!(detector.taken() > 1_000, "{method:?}");
    }
}

#[test]
fn options_out_of_range_are_named() {
    for (options, named) in [
        (json!({ "method": "adwin", "delta": 0.0 }), "`delta` is 0; it must be between 0 and 1"),
        (json!({ "method": "adwin", "clock": 0 }), "`clock`"),
        (json!({ "method": "adwin", "max_buckets": 1000 }), "`max_buckets`"),
        (json!({ "method": "kswin", "window_size": 1_000_000 }), "`window_size`"),
        (json!({ "method": "kswin", "stat_size": 51 }), "`stat_size`"),
        (json!({ "method": "hddm-w", "lambda": 1.0 }), "`lambda`"),
        (json!({ "method": "hddm-a", "warning_confidence": 2.0 }), "`warning_confidence`"),
        (json!({ "method": "ddm", "drift_threshold": -1.0 }), "`drift_threshold`"),
        (json!({ "method": "eddm", "alpha": 0.5, "beta": 0.6 }), "`beta`"),
        (json!({ "method": "page-hinkley", "alpha": 1.5 }), "`alpha`"),
    ] {
        let method: Method = serde_json::from_value(options).unwrap();
        let error = Detector::new(&method, 0).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

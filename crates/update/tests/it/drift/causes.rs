//! Root causes beside a brute force over every set of attributes.

use std::collections::{BTreeMap, BTreeSet};

use tierline_update::drift::cause::{DeviceReport, Fleet, FleetError, Measure, Thresholds};
use tierline_update::drift::random::Random;

type Attributes = BTreeMap<String, String>;

fn report(device: &str, attributes: &[(&str, &str)], drifted: bool) -> DeviceReport {
    let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    DeviceReport { device: device.to_owned(), attributes, drifted }
}

/// Every subset of every report's attributes, counted one report at a time.
fn brute_force(reports: &[DeviceReport], thresholds: &Thresholds) -> Vec<Attributes> {
    let mut sets: BTreeSet<Attributes> = BTreeSet::new();
    for report in reports {
        let all: Vec<_> = report.attributes.iter().collect();
        for mask in 1u32..1 << all.len() {
            if mask.count_ones() as usize <= thresholds.depth {
                let chosen = all.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1);
                sets.insert(chosen.map(|(_, (name, value))| ((*name).clone(), (*value).clone())).collect());
            }
        }
    }
    let has = |report: &DeviceReport, set: &Attributes| {
        set.iter().all(|(name, value)| report.attributes.get(name) == Some(value))
    };
    let mut drifted: Vec<bool> = reports.iter().map(|report| report.drifted).collect();
    let measure = |set: &Attributes, drifted: &[bool]| {
        let with = reports.iter().filter(|report| has(report, set)).count() as u64;
        let both = reports.iter().zip(drifted).filter(|(report, drifted)| **drifted && has(report, set)).count() as u64;
        Measure::of(reports.len() as u64, drifted.iter().filter(|drifted| **drifted).count() as u64, with, both)
    };
    let mut causes: Vec<Attributes> = Vec::new();
    loop {
        let mut passing: Vec<(Measure, &Attributes)> = sets
            .iter()
            .map(|set| (measure(set, &drifted), set))
            .filter(|(measure, _)| measure.passes(thresholds))
            .collect();
        passing.sort_by(|(a, x), (b, y)| {
            let by_ratio = b.risk_ratio.total_cmp(&a.risk_ratio);
            by_ratio.then(b.drifted.cmp(&a.drifted)).then(x.len().cmp(&y.len())).then_with(|| x.cmp(y))
        });
        let Some((_, best)) = passing.first() else { break };
        for (drifted, report) in drifted.iter_mut().zip(reports) {
            *drifted &= !has(report, best);
        }
        causes.push((*best).clone());
    }
    let coarser =
        |a: &Attributes, b: &Attributes| a.len() < b.len() && a.iter().all(|(name, value)| b.get(name) == Some(value));
    causes.iter().filter(|cause| !causes.iter().any(|other| coarser(other, cause))).cloned().collect()
}

#[test]
fn causes_equal_brute_force() {
    let mut found = 0;
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let names = ["weather", "place", "camera", "hour"];
        let guilty: Vec<(usize, usize)> =
            (0..1 + random.below(2)).map(|_| (random.below(4), random.below(3))).collect();
        let reports: Vec<DeviceReport> = (0..150)
            .map(|i| {
                let values: Vec<usize> = names.iter().map(|_| random.below(3)).collect();
                let hit = guilty.iter().all(|&(name, value)| values[name] == value);
                let drifted = random.uniform() < if hit { 0.9 } else { 0.1 };
                let attributes =
                    names.iter().zip(&values).map(|(name, value)| ((*name).to_owned(), format!("v{value}")));
                DeviceReport { device: format!("d{}", i % 10), attributes: attributes.collect(), drifted }
            })
            .collect();
        for thresholds in [
            Thresholds::default(),
            Thresholds { confidence: 0.3, risk_ratio: 1.5, depth: 4, reports_min: 2, ..Thresholds::default() },
        ] {
            let mut fleet = Fleet::default();
            reports.iter().for_each(|report| fleet.push(report).unwrap());
            let findings = fleet.findings(&thresholds).unwrap();
            let causes: Vec<Attributes> = findings.causes.iter().map(|cause| cause.attributes.clone()).collect();
            assert_eq!(causes, brute_force(&reports, &thresholds), "seed {seed}");
            found += causes.len();
            // The order of reports doesn't matter.
            let mut turned = Fleet::default();
            reports.iter().rev().for_each(|report| turned.push(report).unwrap());
            assert_eq!(turned.findings(&thresholds).unwrap(), findings);
        }
    }
    assert!(found > 60, "{found}");
}

#[test]
fn a_coarse_cause_swallows_fine_ones_and_a_fine_one_prunes_coarse_ones() {
    let fleet = |snowy_only_at: Option<&str>| {
        let mut fleet = Fleet::default();
        for i in 0..400 {
            let weather = ["snow", "sun"][i % 2];
            let place = ["bern", "rome", "oslo", "kyiv"][i / 2 % 4];
            let drifted = weather == "snow" && snowy_only_at.is_none_or(|only| only == place) || i % 50 == 7;
            fleet.push(&report(&format!("cam{}", i % 21), &[("weather", weather), ("place", place)], drifted)).unwrap();
        }
        fleet.findings(&Thresholds::default()).unwrap()
    };
    insta::assert_snapshot!(fleet(None), @r"
    208 of 400 reports drifted.
      weather = snow: 200 of 200 drifted, 25.0 times as often as without
    ");
    insta::assert_snapshot!(fleet(Some("oslo")), @r"
    58 of 400 reports drifted.
      place = oslo and weather = snow: 50 of 50 drifted, 43.8 times as often as without
    ");
}

#[test]
fn no_data_and_bad_data_hold() {
    let thresholds = Thresholds::default();
    let empty = Fleet::default().findings(&thresholds).unwrap();
    assert!(empty.causes.is_empty() && empty.devices.is_empty());
    let mut fleet = Fleet::default();
    for _ in 0..4 {
        fleet.push(&report("a", &[("x", "1")], true)).unwrap();
    }
    fleet.push(&report("b", &[], false)).unwrap();
    assert!(fleet.findings(&thresholds).unwrap().causes.is_empty(), "four reports are too few");
    let many: Vec<(String, String)> = (0..40).map(|i| (format!("a{i}"), String::new())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert!(matches!(fleet.push(&report("a", &many, true)), Err(FleetError::Attributes { n: 40, .. })));
    assert_eq!(fleet.push(&report("a", &[("x", &"y".repeat(200))], true)), Err(FleetError::Text));
    assert_eq!(fleet.len(), 5);
    for broken in [
        Thresholds { confidence: f64::NAN, ..thresholds },
        Thresholds { occurrence: 2.0, ..thresholds },
        Thresholds { risk_ratio: f64::INFINITY, ..thresholds },
        Thresholds { depth: 0, ..thresholds },
        Thresholds { depth: 9, ..thresholds },
    ] {
        assert!(fleet.findings(&broken).is_err());
    }
}

/// Ten thousand reports with many values each are mined in bounded time.
#[test]
fn many_values_are_bounded() {
    let mut random = Random::new(1);
    let mut fleet = Fleet::default();
    for i in 0..5_000 {
        let attributes: Vec<(String, String)> =
            (0..12).map(|j| (format!("a{j}"), format!("{}", random.below(4)))).collect();
        let attributes: Vec<(&str, &str)> = attributes.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        fleet.push(&report(&format!("d{}", i % 100), &attributes, random.uniform() < 0.5)).unwrap();
    }
    let thresholds =
        Thresholds { occurrence: 0.0, support: 0.0, confidence: 0.0, risk_ratio: 0.0, depth: 3, reports_min: 1 };
    let findings = fleet.findings(&Thresholds { risk_ratio: 1.3, confidence: 0.6, ..thresholds }).unwrap();
    assert!(findings.cut);
}

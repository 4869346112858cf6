//! Which devices drifted, and what they have in common.
//!
//! Reports of devices carry attributes (place, weather, camera) and whether
//! drift was found. Sets of attributes that are frequent among drifted reports
//! are mined, kept where they pass four thresholds, and pruned by asking what
//! would be left if a cause were gone, after "Nazar: Monitoring and adapting ML
//! models on mobile devices" (arXiv 2305.07772, 2023); the risk ratio is that of
//! epidemiology. Start at [`Fleet`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::correct::Correction;
use crate::special::binomial_at_least;

/// Reports at most.
pub const REPORTS_MAX: usize = 1 << 17;

/// Attributes of a report at most.
pub const ATTRIBUTES_MAX: usize = 32;

/// Bytes of a name or a value at most.
pub const TEXT_MAX: usize = 128;

/// Attributes of a cause at most.
pub const DEPTH_MAX: usize = 4;

/// Sets that are looked at on one level at most; of more, those with the most
/// drifted reports, and the findings say so.
const SETS_MAX: usize = 2_048;

/// Causes that are named at most.
const CAUSES_MAX: usize = 16;

/// What one device, at one time, said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceReport {
    /// The device's name.
    pub device: String,
    /// Attributes: a value by name.
    pub attributes: BTreeMap<String, String>,
    /// Whether it found drift.
    pub drifted: bool,
}

/// When a set of attributes is a cause.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Thresholds {
    /// Share of all reports that must have the attributes; 0.01 unless said.
    pub occurrence: f64,
    /// Share of all reports that must have them and have drifted; 0.01 unless said.
    pub support: f64,
    /// Share of reports with them that must have drifted; 0.51 unless said.
    pub confidence: f64,
    /// How many times likelier drift must be with them than without; 1.1 unless said.
    pub risk_ratio: f64,
    /// Drifted reports with them, in number; 5 unless said.
    pub reports_min: u64,
    /// Attributes of a cause at most; 3 unless said.
    pub depth: usize,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { occurrence: 0.01, support: 0.01, confidence: 0.51, risk_ratio: 1.1, reports_min: 5, depth: 3 }
    }
}

/// Input that is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// More reports than are kept.
    #[error("more than {REPORTS_MAX} reports; take a shorter time")]
    TooMany,
    /// More attributes than a report may have.
    #[error("`{device}` reports {n} attributes; at most {ATTRIBUTES_MAX} are taken")]
    Attributes {
        /// The device.
        device: String,
        /// How many.
        n: usize,
    },
    /// A text that is too long.
    #[error("a device's name, or an attribute's name or value, has more than {TEXT_MAX} bytes")]
    Text,
    /// Thresholds out of range.
    #[error("`{option}` is {value}; it must be {range}")]
    Threshold {
        /// Which.
        option: &'static str,
        /// What it is.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
}

/// The reports of a fleet.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    /// Attribute and value, as an item's number.
    items: BTreeMap<(String, String), usize>,
    /// Which reports have each item.
    having: Vec<Bits>,
    drifted: Bits,
    reports: usize,
    /// Reports and drifted ones by device.
    devices: BTreeMap<String, (u64, u64)>,
}

/// A set of reports.
#[derive(Debug, Clone, Default, PartialEq)]
struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, i: usize) {
        if self.0.len() <= i / 64 {
            self.0.resize(i / 64 + 1, 0);
        }
        self.0[i / 64] |= 1 << (i % 64);
    }

    fn and(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a & b).collect())
    }

    fn without(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= !b);
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    fn common(&self, other: &Self) -> u64 {
        self.0.iter().zip(&other.0).map(|(a, b)| u64::from((a & b).count_ones())).sum()
    }
}

/// A set of items, and the reports that have them all.
#[derive(Debug, Clone)]
struct Set {
    items: Vec<usize>,
    having: Bits,
}

impl Fleet {
    /// Takes one report.
    pub fn push(&mut self, report: &DeviceReport) -> Result<(), FleetError> {
        if self.reports == REPORTS_MAX {
            return Err(FleetError::TooMany);
        }
        if report.attributes.len() > ATTRIBUTES_MAX {
            let device = report.device.chars().take(TEXT_MAX).collect();
            return Err(FleetError::Attributes { device, n: report.attributes.len() });
        }
        let texts = report.attributes.iter().flat_map(|(name, value)| [name, value]).chain([&report.device]);
        if texts.into_iter().any(|text| text.len() > TEXT_MAX) {
            return Err(FleetError::Text);
        }
        let place = self.reports;
        self.reports += 1;
        for (name, value) in &report.attributes {
            let next = self.having.len();
            let item = *self.items.entry((name.clone(), value.clone())).or_insert(next);
            if item == next {
                self.having.push(Bits::default());
            }
            self.having[item].set(place);
        }
        let device = self.devices.entry(report.device.clone()).or_default();
        device.0 += 1;
        if report.drifted {
            self.drifted.set(place);
            device.1 += 1;
        }
        Ok(())
    }

    /// Reports taken.
    pub fn len(&self) -> usize {
        self.reports
    }

    /// Whether none was taken.
    pub fn is_empty(&self) -> bool {
        self.reports == 0
    }

    /// Finds causes and devices. The same reports, in whatever order, give the
    /// same findings.
    pub fn findings(&self, thresholds: &Thresholds) -> Result<Findings, FleetError> {
        check(thresholds)?;
        let (sets, cut) = self.frequent(thresholds);
        let causes = self.prune(sets, thresholds);
        Ok(Findings {
            reports: self.reports as u64,
            drifted: self.drifted.count(),
            causes: causes.into_iter().map(|set| self.describe(&set)).collect(),
            devices: self.odd_devices(),
            cut,
        })
    }

    /// Sets that occur often enough, level by level: no set does of which a part
    /// doesn't (Agrawal, Srikant, 1994).
    fn frequent(&self, thresholds: &Thresholds) -> (Vec<Set>, bool) {
        let n = self.reports as f64;
        let often = |having: &Bits| {
            let drifted = having.common(&self.drifted);
            having.count() as f64 >= thresholds.occurrence * n
                && drifted as f64 >= thresholds.support * n
                && drifted >= thresholds.reports_min.max(1)
        };
        // In the order of names, so that the order of reports doesn't matter.
        let items: Vec<(usize, &String)> = self.items.iter().map(|((name, _), &item)| (item, name)).collect();
        let name_of: BTreeMap<usize, &String> = items.iter().copied().collect();
        let rank: BTreeMap<usize, usize> = items.iter().enumerate().map(|(rank, (item, _))| (*item, rank)).collect();
        let mut cut = false;
        let mut all: Vec<Set> = Vec::new();
        let mut level: Vec<Set> = items
            .iter()
            .map(|(item, _)| Set { items: vec![*item], having: self.having[*item].clone() })
            .filter(|set| often(&set.having))
            .collect();
        for depth in 1..=thresholds.depth {
            cut |= self.keep_most(&mut level);
            all.extend(level.iter().cloned());
            if depth == thresholds.depth {
                break;
            }
            let singles: Vec<Set> = all.iter().filter(|set| set.items.len() == 1).cloned().collect();
            let mut next = Vec::new();
            for set in &level {
                let last = set.items.last().map_or(0, |item| rank[item]);
                for single in &singles {
                    let item = single.items[0];
                    // One value of an attribute; sets are built in one order.
                    if rank[&item] <= last || set.items.iter().any(|other| name_of[other] == name_of[&item]) {
                        continue;
                    }
                    let having = set.having.and(&single.having);
                    if often(&having) {
                        let mut items = set.items.clone();
                        items.push(item);
                        next.push(Set { items, having });
                    }
                }
                if next.len() > 2 * SETS_MAX {
                    cut |= self.keep_most(&mut next);
                }
            }
            level = next;
        }
        (all, cut)
    }

    /// Keeps the sets with the most drifted reports, where there are too many.
    fn keep_most(&self, sets: &mut Vec<Set>) -> bool {
        if sets.len() <= SETS_MAX {
            return false;
        }
        // Stable: among equals the order of names decides.
        sets.sort_by_cached_key(|set| std::cmp::Reverse(set.having.common(&self.drifted)));
        sets.truncate(SETS_MAX);
        true
    }

    /// The causes: again and again the set of the largest risk ratio among those
    /// that pass, after which the reports that it explains no longer count as
    /// drifted; at last, without those that a coarser cause contains.
    fn prune(&self, mut sets: Vec<Set>, thresholds: &Thresholds) -> Vec<Set> {
        let mut left = self.drifted.clone();
        let mut causes: Vec<Set> = Vec::new();
        while causes.len() < CAUSES_MAX {
            // A set that a stronger cause hid may pass once that is gone; one whose
            // drifted reports are explained never does again.
            sets.retain(|set| set.having.common(&left) > 0);
            let best = sets
                .iter()
                .enumerate()
                .map(|(i, set)| (i, set, self.measure(&set.having, &left)))
                .filter(|(_, _, measure)| measure.passes(thresholds))
                .max_by(|(_, a, of_a), (_, b, of_b)| {
                    let by_ratio = of_a.risk_ratio.total_cmp(&of_b.risk_ratio).then(of_a.drifted.cmp(&of_b.drifted));
                    by_ratio.then(b.items.len().cmp(&a.items.len())).then_with(|| self.names(b).cmp(&self.names(a)))
                });
            let Some((best, ..)) = best else { break };
            let cause = sets.swap_remove(best);
            left.without(&cause.having);
            causes.push(cause);
        }
        let coarser = |cause: &Set| {
            causes.iter().any(|other| {
                other.items.len() < cause.items.len() && other.items.iter().all(|item| cause.items.contains(item))
            })
        };
        let redundant: Vec<bool> = causes.iter().map(coarser).collect();
        let mut redundant = redundant.into_iter();
        causes.retain(|_| !redundant.next().unwrap_or(false));
        causes
    }

    fn measure(&self, having: &Bits, drifted: &Bits) -> Measure {
        let (with, drifted_with) = (having.count(), having.common(drifted));
        Measure::of(self.reports as u64, drifted.count(), with, drifted_with)
    }

    fn names(&self, set: &Set) -> BTreeSet<(&str, &str)> {
        self.items
            .iter()
            .filter(|(_, item)| set.items.contains(item))
            .map(|((name, value), _)| (name.as_str(), value.as_str()))
            .collect()
    }

    fn describe(&self, set: &Set) -> Cause {
        let attributes = self.names(set).into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Cause { attributes, measure: self.measure(&set.having, &self.drifted) }
    }

    /// Devices that drifted more often than the others' rate explains.
    fn odd_devices(&self) -> Vec<OddDevice> {
        let (all, all_drifted) = (self.reports as u64, self.drifted.count());
        let p: Vec<f64> = self
            .devices
            .values()
            .map(|&(reports, drifted)| {
                let (others, of_them) = (all - reports, all_drifted - drifted);
                if others == 0 {
                    return 1.0;
                }
                // One drifted report more than there was: a rate of 0 can't be known.
                binomial_at_least(reports, drifted, ((of_them + 1) as f64 / (others + 1) as f64).min(1.0))
            })
            .collect();
        let adjusted = Correction::BenjaminiHochberg.adjust(&p);
        let mut odd: Vec<OddDevice> = self
            .devices
            .iter()
            .zip(adjusted)
            .filter(|(_, adjusted)| *adjusted <= DEVICE_ALPHA)
            .map(|((device, &(reports, drifted)), p)| OddDevice { device: device.clone(), reports, drifted, p })
            .collect();
        odd.sort_by(|a, b| a.p.total_cmp(&b.p).then_with(|| a.device.cmp(&b.device)));
        odd
    }
}

/// Share of false ones among odd devices.
const DEVICE_ALPHA: f64 = 0.01;

fn check(thresholds: &Thresholds) -> Result<(), FleetError> {
    let Thresholds { occurrence, support, confidence, risk_ratio, depth, .. } = *thresholds;
    for (option, value) in [("occurrence", occurrence), ("support", support), ("confidence", confidence)] {
        if !(0.0..=1.0).contains(&value) {
            return Err(FleetError::Threshold { option, value, range: "from 0 to 1" });
        }
    }
    if !(0.0..f64::INFINITY).contains(&risk_ratio) {
        return Err(FleetError::Threshold { option: "risk_ratio", value: risk_ratio, range: "0 or more, and finite" });
    }
    if !(1..=DEPTH_MAX).contains(&depth) {
        return Err(FleetError::Threshold { option: "depth", value: depth as f64, range: "from 1 to 4" });
    }
    Ok(())
}

/// How a set of attributes goes with drift.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// Reports with the attributes.
    pub reports: u64,
    /// Of these, drifted.
    pub drifted: u64,
    /// Share of all reports that have them.
    pub occurrence: f64,
    /// Share of all reports that have them and drifted.
    pub support: f64,
    /// Share of the reports with them that drifted.
    pub confidence: f64,
    /// That share over the share without them. Where no report without them
    /// drifted, half of one is taken; where none is without, 1.
    pub risk_ratio: f64,
}

impl Measure {
    /// Of `all` reports, `all_drifted` drifted; of the `with` that have the
    /// attributes, `drifted`.
    pub fn of(all: u64, all_drifted: u64, with: u64, drifted: u64) -> Self {
        let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        let (without, drifted_without) = (all - with, all_drifted - drifted);
        let confidence = share(drifted, with);
        let risk_ratio =
            if without == 0 { 1.0 } else { confidence / ((drifted_without as f64).max(0.5) / without as f64) };
        Self {
            reports: with,
            drifted,
            occurrence: share(with, all),
            support: share(drifted, all),
            confidence,
            risk_ratio,
        }
    }

    /// Whether it meets every threshold.
    pub fn passes(&self, thresholds: &Thresholds) -> bool {
        self.occurrence >= thresholds.occurrence
            && self.support >= thresholds.support
            && self.confidence >= thresholds.confidence
            && self.risk_ratio >= thresholds.risk_ratio
            && self.drifted >= thresholds.reports_min.max(1)
    }
}

/// Attributes that explain drift.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    /// The attributes.
    pub attributes: BTreeMap<String, String>,
    /// How they go with drift.
    #[serde(flatten)]
    pub measure: Measure,
}

/// A device that drifted more often than others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OddDevice {
    /// Its name.
    pub device: String,
    /// Its reports.
    pub reports: u64,
    /// Of these, drifted.
    pub drifted: u64,
    /// Chance of that many at the others' rate, corrected for the number of
    /// devices (Benjamini, Hochberg).
    pub p: f64,
}

/// What a fleet's reports say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// Reports.
    pub reports: u64,
    /// Of these, drifted.
    pub drifted: u64,
    /// Causes, the strongest first.
    pub causes: Vec<Cause>,
    /// Devices that drifted more often than others, the oddest first.
    pub devices: Vec<OddDevice>,
    /// Whether there were too many sets of attributes to look at all.
    pub cut: bool,
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} of {} reports drifted.", self.drifted, self.reports)?;
        if self.causes.is_empty() {
            writeln!(f, "  no attribute explains it")?;
        }
        for cause in &self.causes {
            let words: Vec<String> = cause.attributes.iter().map(|(name, value)| format!("{name} = {value}")).collect();
            let Measure { reports, drifted, risk_ratio, .. } = cause.measure;
            writeln!(
                f,
                "  {}: {drifted} of {reports} drifted, {risk_ratio:.1} times as often as without",
                words.join(" and ")
            )?;
        }
        for device in &self.devices {
            writeln!(f, "  device {}: {} of {} drifted", device.device, device.drifted, device.reports)?;
        }
        if self.cut {
            writeln!(f, "  (rarer combinations were not looked at: there were too many)")?;
        }
        Ok(())
    }
}

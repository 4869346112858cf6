//! The specification of a rollout: one declarative file that names both
//! versions. Everything that decides is in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::words::check_name;
use super::{Attributes, Gate, RolloutError, Seconds, Terms, Version, Window};

/// Bytes of a file that are read: one with every group and name there may be is
/// smaller.
pub const SPEC_BYTES_MAX: usize = 1 << 20;

/// Groups of a rollout; each device is compared with all of them.
pub const GROUPS_MAX: usize = 64;

/// Waves of a group.
pub const WAVES_MAX: usize = 32;

/// Names and patterns that a group chooses by, at most.
pub const NAMES_MAX: usize = 4_096;

/// Times that a device is asked again after it failed.
pub const ATTEMPTS_MAX: u32 = 100;

/// A rollout, as its file says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The model, by its name in the catalogue.
    pub model: String,
    /// The version that devices come from, and go back to.
    pub from: Version,
    /// The version that they shall run.
    pub to: Version,
    /// What becomes of devices that run neither.
    #[serde(default)]
    pub other: Other,
    /// Whether it takes the place of a rollout of the same model that isn't
    /// over.
    #[serde(default)]
    pub supersede: bool,
    /// Seconds that the first wave waits for devices to be seen, one behind the
    /// other, when the rollout or its orchestrator begins.
    #[serde(default = "a_moment")]
    pub gather_s: Seconds,
    /// Devices that may fail, over all groups; more roll everything back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures_max: Option<Amount>,
    /// Deadlines, windows, bandwidth.
    #[serde(default)]
    pub limits: LimitSpec,
    /// What a device's own trial must show.
    #[serde(default)]
    pub trial: Terms,
    /// What waves must show, where their group says nothing else.
    #[serde(default)]
    pub health: Gate,
    /// Groups, updated one behind the other; a device belongs to the first that
    /// matches it.
    #[serde(rename = "group")]
    pub groups: Vec<Group>,
}

/// What becomes of devices that run neither of the two versions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Other {
    /// They are left as they are, and said to be.
    #[default]
    Skip,
    /// They are updated like the rest; a rollback brings them to `from`.
    Update,
}

/// Deadlines, windows, bandwidth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSpec {
    /// Seconds from being asked until the device has confirmed, while the window
    /// is open.
    pub deadline_s: Seconds,
    /// Bytes per second that a device may fetch with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_bytes_per_s: Option<u64>,
    /// Bytes per second that an edge may fetch with, for its site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site_bytes_per_s: Option<u64>,
    /// Whether a site gets the bytes once, through its edge.
    pub through_edge: bool,
    /// When devices may be asked, and switch; at any time when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

impl Default for LimitSpec {
    fn default() -> Self {
        Self {
            deadline_s: Seconds::of(1_800.0),
            device_bytes_per_s: None,
            site_bytes_per_s: None,
            through_edge: true,
            window: None,
        }
    }
}

/// So many devices: a number, or a share of the group such as `"10%"`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Amount {
    /// Devices.
    Devices(u32),
    /// Percent of the group, 0 to 100.
    Percent(f64),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Devices(u32),
    Percent(String),
}

impl Amount {
    /// How many that are of `all`, rounded down.
    #[must_use]
    pub fn floor(self, all: usize) -> usize {
        match self {
            Self::Devices(devices) => devices as usize,
            // A hair is added: 7% of 100 are 7.000000000000001.
            Self::Percent(percent) => (percent * all as f64 / 100.0 + 1e-9).floor() as usize,
        }
    }

    /// How many that are of `all`, rounded up and at most all.
    #[must_use]
    pub fn ceil(self, all: usize) -> usize {
        match self {
            Self::Devices(devices) => (devices as usize).min(all),
            Self::Percent(percent) => ((percent * all as f64 / 100.0 - 1e-9).ceil().max(0.0) as usize).min(all),
        }
    }
}

impl TryFrom<Written> for Amount {
    type Error = RolloutError;

    fn try_from(written: Written) -> Result<Self, RolloutError> {
        let text = match written {
            Written::Devices(devices) => return Ok(Self::Devices(devices)),
            Written::Percent(text) => text,
        };
        let percent = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
        match percent {
            Some(percent) if (0.0..=100.0).contains(&percent) => Ok(Self::Percent(percent)),
            _ => {
                let start: String = text.chars().take(40).collect();
                let reason = format!("`{}` is neither a number of devices nor such as \"10%\"", start.escape_debug());
                Err(RolloutError::Setting { place: "an amount of devices".into(), reason })
            }
        }
    }
}

impl From<Amount> for Written {
    fn from(amount: Amount) -> Self {
        match amount {
            Amount::Devices(devices) => Self::Devices(devices),
            Amount::Percent(percent) => Self::Percent(format!("{percent}%")),
        }
    }
}

/// A group of devices, and how it is updated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its name, for people.
    pub name: String,
    /// Who belongs to it; every device when left out.
    #[serde(default, rename = "match")]
    pub matches: Matches,
    /// Whether devices that appear later belong to it as well.
    #[serde(default = "yes")]
    pub dynamic: bool,
    /// A first wave of so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Amount>,
    /// Percent of the group that have been asked by the end of each wave; the
    /// last is 100.
    #[serde(default = "all_at_once")]
    pub waves: Vec<f64>,
    /// Devices at work at once; those that failed keep their place. At least
    /// one.
    #[serde(default = "tenth")]
    pub concurrency: Amount,
    /// Devices that may be at work, failed or away at once, of the whole group;
    /// any number when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable_max: Option<Amount>,
    /// Devices that may fail; more are an error.
    #[serde(default = "none")]
    pub failures_max: Amount,
    /// How often a device is asked before it counts as failed.
    #[serde(default = "one")]
    pub attempts: u32,
    /// What a wave must show; what the rollout says when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Gate>,
    /// What follows a wave that passed its gate, when there is another.
    #[serde(default)]
    pub on_wave: OnSuccess,
    /// What follows the group's last wave.
    #[serde(default)]
    pub on_success: OnSuccess,
    /// What follows too many failures, a gate that is breached, or one that
    /// holds for too long.
    #[serde(default)]
    pub on_error: OnError,
}

/// Who belongs to a group: whoever meets every condition that is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Matches {
    /// Names; `*` stands for any letters.
    pub names: Vec<String>,
    /// Roles: `end`, `edge`, `cloud`.
    pub roles: Vec<String>,
    /// Tiers above: 0 is the cloud.
    pub tiers: Vec<u32>,
    /// Edges that devices hang below.
    pub sites: Vec<String>,
    /// Labels with their values.
    pub labels: BTreeMap<String, String>,
}

/// What follows success.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnSuccess {
    /// The next wave, the next group, the end.
    #[default]
    Next,
    /// An operator approves first.
    Approve,
    /// It pauses.
    Pause,
}

/// What follows an error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// The next group, with the group as it is.
    Next,
    /// An operator approves before it goes on where it stopped.
    Approve,
    /// It pauses.
    Pause,
    /// The group goes back to the old version, and it pauses.
    RollBackGroup,
    /// All devices go back to the old version, and it is over.
    #[default]
    RollBackAll,
}

fn a_moment() -> Seconds {
    Seconds::of(3.0)
}

fn yes() -> bool {
    true
}

fn one() -> u32 {
    1
}

fn none() -> Amount {
    Amount::Devices(0)
}

fn tenth() -> Amount {
    Amount::Percent(10.0)
}

fn all_at_once() -> Vec<f64> {
    vec![100.0]
}

impl Group {
    /// A group of this name with every device, in one wave, a tenth of them at
    /// work at once.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            matches: Matches::default(),
            dynamic: yes(),
            canary: None,
            waves: all_at_once(),
            concurrency: tenth(),
            unavailable_max: None,
            failures_max: none(),
            attempts: one(),
            health: None,
            on_wave: OnSuccess::default(),
            on_success: OnSuccess::default(),
            on_error: OnError::default(),
        }
    }
}

impl Spec {
    /// A rollout of these groups, with everything else as it is when left out.
    #[must_use]
    pub fn new(model: &str, from: Version, to: Version, groups: Vec<Group>) -> Self {
        Self {
            model: model.to_owned(),
            from,
            to,
            other: Other::default(),
            supersede: false,
            gather_s: a_moment(),
            failures_max: None,
            limits: LimitSpec::default(),
            trial: Terms::default(),
            health: Gate::default(),
            groups,
        }
    }

    /// Reads and checks a file's text.
    ///
    /// # Errors
    /// [`RolloutError`] with the place and what to do.
    pub fn parse(text: &str) -> Result<Self, RolloutError> {
        if text.len() > SPEC_BYTES_MAX {
            return Err(RolloutError::Long { bytes: text.len(), max: SPEC_BYTES_MAX });
        }
        let spec: Self =
            toml::from_str(text).map_err(|error| RolloutError::Syntax(error.to_string().trim_end().to_owned()))?;
        spec.check()?;
        Ok(spec)
    }

    /// Whether it can be run. A file that was parsed is checked already.
    ///
    /// # Errors
    /// [`RolloutError::Setting`] with the place and what to do.
    pub fn check(&self) -> Result<(), RolloutError> {
        check_name("model", &self.model)?;
        if self.from == self.to {
            return Err(setting("the rollout", "to", "it is the version that devices come from; name another"));
        }
        if self.supersede && self.other == Other::Skip {
            let reason = "devices that the other rollout moved would be left behind; say `other = \"update\"` too";
            return Err(setting("the rollout", "supersede", reason));
        }
        if !(1..=GROUPS_MAX).contains(&self.groups.len()) {
            return Err(setting("the rollout", "group", &format!("there are 1 to {GROUPS_MAX} groups")));
        }
        for (key, rate) in
            [("device_bytes_per_s", self.limits.device_bytes_per_s), ("site_bytes_per_s", self.limits.site_bytes_per_s)]
        {
            if rate == Some(0) {
                return Err(setting("limits", key, "nothing would ever arrive; leave it out or give at least 1"));
            }
        }
        self.trial.check()?;
        self.health.check("health")?;
        let mut names = std::collections::BTreeSet::new();
        for group in &self.groups {
            group.check()?;
            if !names.insert(group.name.as_str()) {
                return Err(setting("group", "name", &format!("there are two groups `{}`", group.name)));
            }
        }
        Ok(())
    }

    /// The group that a device belongs to: the first that matches.
    #[must_use]
    pub fn group_of(&self, device: &str, attributes: &Attributes) -> Option<usize> {
        self.groups.iter().position(|group| group.matches.matches(device, attributes))
    }

    /// What a group's waves must show.
    #[must_use]
    pub fn gate_of(&self, group: &Group) -> Gate {
        group.health.as_ref().unwrap_or(&self.health).clone()
    }
}

impl Group {
    fn check(&self) -> Result<(), RolloutError> {
        check_name("a group's name", &self.name)?;
        let place = format!("group `{}`", self.name);
        if !(1..=WAVES_MAX).contains(&self.waves.len()) {
            return Err(setting(&place, "waves", &format!("there are 1 to {WAVES_MAX} waves")));
        }
        let ascends = self.waves.windows(2).all(|pair| pair[0] < pair[1]);
        let percents = self.waves.iter().all(|percent| *percent > 0.0 && *percent <= 100.0);
        if !ascends || !percents || self.waves.last() != Some(&100.0) {
            return Err(setting(&place, "waves", "they are percents that grow from above 0 to 100, the last"));
        }
        if !(1..=ATTEMPTS_MAX).contains(&self.attempts) {
            return Err(setting(&place, "attempts", &format!("they are 1 to {ATTEMPTS_MAX}")));
        }
        for (key, amount) in [
            ("canary", self.canary),
            ("concurrency", Some(self.concurrency)),
            ("unavailable_max", self.unavailable_max),
        ] {
            if matches!(amount, Some(Amount::Devices(0) | Amount::Percent(0.0))) {
                return Err(setting(&place, key, "no device would ever be asked; give at least 1"));
            }
        }
        let m = &self.matches;
        let names = m.names.len() + m.roles.len() + m.tiers.len() + m.sites.len() + m.labels.len();
        if names > NAMES_MAX {
            let reason = format!("it has {names} names; at most {NAMES_MAX} are read, and `*` stands for many");
            return Err(setting(&place, "match", &reason));
        }
        let texts = m.names.iter().chain(&m.roles).chain(&m.sites).chain(m.labels.keys());
        for text in texts {
            check_name(&format!("{place}: match"), text)?;
        }
        if let Some(role) = m.roles.iter().find(|role| !["end", "edge", "cloud"].contains(&role.as_str())) {
            let reason = format!("`{role}` is none; roles are `end`, `edge` and `cloud`");
            return Err(setting(&place, "match.roles", &reason));
        }
        self.health.as_ref().map_or(Ok(()), |gate| gate.check(&format!("{place}: health")))
    }

    /// Waves, the canary included.
    #[must_use]
    pub fn stages(&self) -> usize {
        self.waves.len() + usize::from(self.canary.is_some())
    }

    /// How many of `members` have been asked by the end of a wave.
    #[must_use]
    pub fn asked_by(&self, wave: usize, members: usize) -> usize {
        let before = usize::from(self.canary.is_some());
        match (self.canary, wave) {
            (Some(canary), 0) => canary.ceil(members).max(1).min(members),
            _ => self.waves.get(wave - before).map_or(members, |percent| Amount::Percent(*percent).ceil(members)),
        }
    }
}

impl Matches {
    /// Whether a device meets every condition.
    #[must_use]
    pub fn matches(&self, device: &str, attributes: &Attributes) -> bool {
        let one_of = |words: &[String], word: &str| words.is_empty() || words.iter().any(|w| w == word);
        (self.names.is_empty() || self.names.iter().any(|pattern| stands_for(pattern, device)))
            && one_of(&self.roles, &attributes.role)
            && (self.tiers.is_empty() || self.tiers.contains(&attributes.tier))
            && (self.sites.is_empty() || attributes.site.as_ref().is_some_and(|site| self.sites.contains(site)))
            && self.labels.iter().all(|(key, value)| attributes.labels.get(key) == Some(value))
    }
}

/// Whether a pattern, in which `*` stands for any letters, stands for a name.
/// Takes time in proportion to the product of their lengths at most.
fn stands_for(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    false
}

/// What is wrong with a setting.
pub(super) fn setting(place: &str, key: &str, reason: &str) -> RolloutError {
    RolloutError::Setting { place: format!("{place}: {key}"), reason: reason.to_owned() }
}

/// Whether a number is a share.
pub(super) fn share(place: &str, key: &str, value: Option<f64>) -> Result<(), RolloutError> {
    if value.is_none_or(|v| (0.0..=1.0).contains(&v)) {
        return Ok(());
    }
    Err(setting(place, key, "it is a share, 0 to 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
model = "detector"
from = "v1"
to = "v2"
other = "update"
supersede = true
gather_s = 3
failures_max = "5%"

[limits]
deadline_s = 600
device_bytes_per_s = 125000
site_bytes_per_s = 500000
through_edge = true
window = { from = "22:00", to = "04:00", utc_offset = "+02:00" }

[trial]
window_s = 10

[health]
window_s = 30
runs_min = 50

[[group]]
name = "lab"
match = { names = ["lab-*"], roles = ["end"], tiers = [2], sites = ["edge-1"], labels = { line = "a" } }
canary = 2
waves = [10, 50, 100]
concurrency = "20%"
unavailable_max = 5
failures_max = "2.5%"
attempts = 2
on_wave = "approve"
on_success = "pause"
on_error = "roll-back-group"
health = { errors_max = 0.1, latency_p95_ratio_max = 1.2, accuracy_drop_max = 0.01, pseudo_labels = true }

[[group]]
name = "rest"
dynamic = false
"#;

    #[test]
    fn a_whole_file_is_read_and_written() {
        let spec = Spec::parse(WHOLE).unwrap();
        assert_eq!(spec.groups[0].stages(), 4);
        assert_eq!(spec.groups[1].waves, [100.0]);
        assert_eq!(spec.gate_of(&spec.groups[1]).runs_min, 50);
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), spec);
        assert_eq!(Spec::parse(&toml::to_string(&spec).unwrap()).unwrap(), spec);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_in_a_sentence() {
        for (right, wrong, says) in [
            ("to = \"v2\"", "to = \"v1\"", "name another"),
            ("to = \"v2\"", "to = \"\"", "is no name"),
            ("to = \"v2\"", "", "missing field `to`"),
            ("other = \"update\"", "", "would be left behind"),
            ("other = \"update\"", "other = \"maybe\"", "unknown variant"),
            ("\"5%\"", "\"105%\"", "neither a number"),
            ("\"5%\"", "\"NaN%\"", "neither a number"),
            ("\"5%\"", "-5", "failures_max"),
            ("deadline_s = 600", "deadline_s = 0", "no time to wait"),
            ("deadline_s = 600", "deadline_s = inf", "no time to wait"),
            ("= 125000", "= 0", "nothing would ever arrive"),
            ("\"22:00\"", "\"25:00\"", "time of day"),
            ("runs_min = 50", "runs_min = 0", "without data would pass"),
            ("runs_min = 50", "runs = 50", "unknown field `runs`"),
            ("canary = 2", "canary = 0", "ever be asked"),
            ("[10, 50, 100]", "[]", "1 to 32 waves"),
            ("[10, 50, 100]", "[10, 5, 100]", "grow"),
            ("[10, 50, 100]", "[10, 50]", "the last"),
            ("[10, 50, 100]", "[nan, 100]", "grow"),
            ("\"20%\"", "\"0%\"", "ever be asked"),
            ("attempts = 2", "attempts = 0", "1 to 100"),
            ("[\"end\"]", "[\"phone\"]", "roles are"),
            ("errors_max = 0.1", "errors_max = 1.1", "a share"),
            ("latency_p95_ratio_max = 1.2", "latency_p95_ratio_max = 0", "above 0"),
            ("name = \"rest\"", "name = \"lab\"", "two groups `lab`"),
        ] {
            assert!(WHOLE.contains(right), "{right}");
            let error = Spec::parse(&WHOLE.replacen(right, wrong, 1)).unwrap_err().to_string();
            assert!(error.contains(says), "{wrong}: {error}");
        }
        assert!(Spec::parse(&"#".repeat(SPEC_BYTES_MAX + 1)).unwrap_err().to_string().contains("at most"));
        assert!(Spec::parse("model = \"m\"\nfrom = \"a\"\nto = \"b\"\ngroup = []").is_err());
    }

    #[test]
    fn amounts_round_towards_caution() {
        for (amount, all, floor, ceil) in [
            (Amount::Percent(10.0), 5, 0, 1),
            (Amount::Percent(7.0), 100, 7, 7),
            (Amount::Percent(100.0), 3, 3, 3),
            (Amount::Percent(33.0), 3, 0, 1),
            (Amount::Devices(5), 3, 5, 3),
            (Amount::Percent(0.0), 3, 0, 0),
        ] {
            assert_eq!((amount.floor(all), amount.ceil(all)), (floor, ceil), "{amount:?} of {all}");
        }
    }

    #[test]
    fn groups_match_by_every_condition() {
        let spec = Spec::parse(WHOLE).unwrap();
        let labels = |line: &str| [("line".to_owned(), line.to_owned())].into();
        let whole = Attributes { role: "end".into(), tier: 2, site: Some("edge-1".into()), labels: labels("a") };
        assert_eq!(spec.group_of("lab-1", &whole), Some(0));
        for (name, other) in [
            ("labs-1", whole.clone()),
            ("lab-1", Attributes { role: "edge".into(), ..whole.clone() }),
            ("lab-1", Attributes { tier: 1, ..whole.clone() }),
            ("lab-1", Attributes { site: None, ..whole.clone() }),
            ("lab-1", Attributes { labels: labels("b"), ..whole.clone() }),
        ] {
            assert_eq!(spec.group_of(name, &other), Some(1), "{name} {other:?}");
        }
        for (pattern, name, stands) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*a", "aba", true),
            ("*a*", "bab", true),
            ("a*a", "a", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXcYb", false),
            ("*", "", true),
            ("**", "x", true),
            ("*ab", "aab", true),
        ] {
            assert_eq!(stands_for(pattern, name), stands, "{pattern} {name}");
        }
    }
}

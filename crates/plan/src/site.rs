//! What users write about their machines and links: SITE.toml.
//!
//! Text in, checked data out; no files are read here. `docs/design/planning.md`
//! says what each number does to a plan, `examples/sites` has one to copy.
//! Start at [`Site::parse`], then [`Site::request`].

use serde::Deserialize;
use tierline_graph::profile::ModelProfile;

use crate::keys::{self, UnknownKey, nearest, suggest};
use crate::plan::PlanError;
use crate::request::{Limits, LinkCondition, LinkPrice, Objective, PlanRequest, check_profiles};

/// Bytes per second of one Mbit/s.
const MBIT: f64 = 125_000.0;

/// Keys of each table, for suggestions.
const KEYS: [(&str, &[&str]); 4] = [
    ("", &["name", "objective", "tier", "link", "limits"]),
    ("tier", &["name", "role", "profile", "scale_of", "factor", "memory_mb", "watts", "price_per_second", "wait_ms"]),
    ("link", &["from", "to", "up_mbit", "down_mbit", "rtt_ms", "price_per_gb", "joules_per_mb"]),
    ("limits", &["private_tier", "private_segments", "private_tensors", "deadline_ms", "max_loss"]),
];

const WEIGHTS: &[&str] = &["latency", "energy", "money"];

/// Machines, links and wishes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Site {
    /// Its name, for people.
    #[serde(default)]
    pub name: String,
    /// What is to be small.
    #[serde(default = "latency", deserialize_with = "objective")]
    pub objective: Objective,
    /// The machines, lowest first.
    #[serde(rename = "tier", default)]
    pub tiers: Vec<SiteTier>,
    /// The links between them.
    #[serde(rename = "link", default)]
    pub links: Vec<SiteLink>,
    /// What must hold.
    #[serde(default)]
    pub limits: SiteLimits,
}

/// What a machine is to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Where requests begin.
    End,
    /// Between.
    Edge,
    /// At the top.
    Cloud,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct SiteTier {
    /// Its name, unlike any other's.
    pub name: String,
    /// What it is to the others.
    pub role: Role,
    /// File of the profile measured there.
    pub profile: Option<String>,
    /// The tier whose profile it has, scaled.
    pub scale_of: Option<String>,
    /// So many times slower than that one.
    pub factor: Option<f64>,
    /// Memory for sessions, megabytes; none: no limit.
    pub memory_mb: Option<f64>,
    /// Joules per second of computing.
    #[serde(default)]
    pub watts: f64,
    /// Money per second of computing.
    #[serde(default)]
    pub price_per_second: f64,
    /// Expected wait before a request begins, milliseconds.
    #[serde(default)]
    pub wait_ms: f64,
}

/// A link between two machines.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct SiteLink {
    /// The tier below.
    pub from: String,
    /// The tier above.
    pub to: String,
    /// Mbit/s upwards.
    pub up_mbit: f64,
    /// Mbit/s downwards; the same as upwards when not given.
    pub down_mbit: Option<f64>,
    /// Round trip, milliseconds.
    #[serde(default)]
    pub rtt_ms: f64,
    /// Money per gigabyte.
    #[serde(default)]
    pub price_per_gb: f64,
    /// Joules per megabyte.
    #[serde(default)]
    pub joules_per_mb: f64,
}

/// What must hold.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct SiteLimits {
    /// Name of the highest tier that may see what is private; the lowest when
    /// not given.
    pub private_tier: Option<String>,
    /// Segments from the start that must run no higher.
    #[serde(default)]
    pub private_segments: usize,
    /// Tensors that must not be seen higher.
    #[serde(default)]
    pub private_tensors: Vec<String>,
    /// Answer within, milliseconds.
    pub deadline_ms: Option<f64>,
    /// Relative error of the outputs that codecs may cause together.
    pub max_loss: Option<f64>,
}

/// Where a tier's profile comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Source<'a> {
    /// File of a measured profile.
    pub profile: &'a str,
    /// So many times slower is the tier; 1 where it was measured.
    pub factor: f64,
}

/// What is wrong with a SITE.toml.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SiteError {
    /// Not TOML, or a value of the wrong type.
    #[error("{0}")]
    Syntax(String),
    /// A key that means nothing.
    #[error(transparent)]
    UnknownKey(#[from] UnknownKey),
    /// A number out of range.
    #[error("{owner}: `{key}` is {value}; it must be {needed}")]
    Value {
        /// Tier, link or limits.
        owner: String,
        /// The key.
        key: &'static str,
        /// What stands there.
        value: String,
        /// What should.
        needed: &'static str,
    },
    /// A tier is named that isn't there.
    #[error("{owner}: `{key}` names tier `{name}`, which the site does not have{}", suggest(.suggestion))]
    UnknownTier {
        /// Tier, link or limits.
        owner: String,
        /// The key.
        key: &'static str,
        /// The name.
        name: String,
        /// The likeliest meant.
        suggestion: Option<String>,
    },
    /// No tiers.
    #[error("the site has no [[tier]]; list its machines, lowest first")]
    NoTiers,
    /// Two tiers of one name.
    #[error("two tiers are called `{0}`; names must differ")]
    Duplicate(String),
    /// Roles that go down.
    #[error("tier `{below}` is listed before tier `{above}`, whose role is lower; list end, edge, cloud in this order")]
    Order {
        /// The first of the two.
        below: String,
        /// The second.
        above: String,
    },
    /// A tier without times.
    #[error("tier `{0}` needs either `profile`, or `scale_of` and `factor`")]
    NoProfile(String),
    /// Scaled in a circle.
    #[error("tier `{0}` is scaled from itself, by way of others; one of them needs a `profile`")]
    ScaleCircle(String),
    /// Two neighbours without a link.
    #[error("there is no [[link]] from `{from}` to `{to}`")]
    NoLink {
        /// The tier below.
        from: String,
        /// The tier above.
        to: String,
    },
    /// Two links between the same tiers.
    #[error("two links go from `{from}` to `{to}`")]
    DuplicateLink {
        /// The tier below.
        from: String,
        /// The tier above.
        to: String,
    },
    /// A link that no plan could use.
    #[error("the link from `{from}` to `{to}` joins neither neighbours nor the lowest tier and the highest, upwards")]
    BadLink {
        /// The tier it says is below.
        from: String,
        /// The tier it says is above.
        to: String,
    },
}

fn latency() -> Objective {
    Objective::Latency
}

fn objective<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Objective, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Name(String),
        Weights {
            #[serde(default)]
            latency: f64,
            #[serde(default)]
            energy: f64,
            #[serde(default)]
            money: f64,
        },
    }
    let text = match Written::deserialize(deserializer)? {
        Written::Name(name) => name,
        Written::Weights { latency, energy, money } => format!("{latency},{energy},{money}"),
    };
    text.parse().map_err(serde::de::Error::custom)
}

impl Site {
    /// Reads and checks a SITE.toml.
    ///
    /// # Errors
    /// [`SiteError`].
    pub fn parse(text: &str) -> Result<Self, SiteError> {
        let syntax = |e: toml::de::Error| SiteError::Syntax(e.to_string().trim_end().to_owned());
        let table: toml::Table = text.parse().map_err(syntax)?;
        check_keys(&table, "", "the site")?;
        if let Some(toml::Value::Table(weights)) = table.get("objective") {
            keys::check(weights, WEIGHTS, "`objective`")?;
        }
        for key in ["tier", "link", "limits"] {
            match table.get(key) {
                Some(toml::Value::Array(tables)) => {
                    for (i, table) in tables.iter().enumerate() {
                        let Some(table) = table.as_table() else { continue };
                        check_keys(table, key, &format!("[[{key}]] {}", i + 1))?;
                    }
                }
                Some(toml::Value::Table(table)) => check_keys(table, key, &format!("[{key}]"))?,
                _ => {}
            }
        }
        let site: Self = toml::from_str(text).map_err(syntax)?;
        site.check()?;
        Ok(site)
    }

    fn check(&self) -> Result<(), SiteError> {
        if self.tiers.is_empty() {
            return Err(SiteError::NoTiers);
        }
        for (i, tier) in self.tiers.iter().enumerate() {
            let owner = || format!("tier `{}`", tier.name);
            if self.tiers[..i].iter().any(|t| t.name == tier.name) {
                return Err(SiteError::Duplicate(tier.name.clone()));
            }
            if let Some(below) = i.checked_sub(1).map(|b| &self.tiers[b]).filter(|below| below.role > tier.role) {
                return Err(SiteError::Order { below: below.name.clone(), above: tier.name.clone() });
            }
            above_zero(owner, "factor", tier.factor)?;
            above_zero(owner, "memory_mb", tier.memory_mb)?;
            not_negative(owner, "watts", tier.watts)?;
            not_negative(owner, "price_per_second", tier.price_per_second)?;
            not_negative(owner, "wait_ms", tier.wait_ms)?;
        }
        for tier in &self.tiers {
            self.source(&tier.name)?;
        }
        for (i, link) in self.links.iter().enumerate() {
            let owner = || format!("link {}", i + 1);
            let (from, to) = (self.tier(&link.from, owner, "from")?, self.tier(&link.to, owner, "to")?);
            let (first, second) = (link.from.clone(), link.to.clone());
            let straight = from == 0 && to + 1 == self.tiers.len() && to > 1;
            if to != from + 1 && !straight {
                return Err(SiteError::BadLink { from: first, to: second });
            }
            if self.links[..i].iter().any(|l| l.from == link.from && l.to == link.to) {
                return Err(SiteError::DuplicateLink { from: first, to: second });
            }
            above_zero(owner, "up_mbit", Some(link.up_mbit))?;
            above_zero(owner, "down_mbit", link.down_mbit)?;
            not_negative(owner, "rtt_ms", link.rtt_ms)?;
            not_negative(owner, "price_per_gb", link.price_per_gb)?;
            not_negative(owner, "joules_per_mb", link.joules_per_mb)?;
        }
        for pair in self.tiers.windows(2) {
            if self.link(&pair[0].name, &pair[1].name).is_none() {
                return Err(SiteError::NoLink { from: pair[0].name.clone(), to: pair[1].name.clone() });
            }
        }
        let owner = || "limits".to_owned();
        above_zero(owner, "deadline_ms", self.limits.deadline_ms)?;
        not_negative(owner, "max_loss", self.limits.max_loss.unwrap_or(0.0))?;
        if let Some(name) = &self.limits.private_tier {
            self.tier(name, owner, "private_tier")?;
        }
        Ok(())
    }

    fn tier(&self, name: &str, owner: impl Fn() -> String, key: &'static str) -> Result<usize, SiteError> {
        self.tiers.iter().position(|t| t.name == name).ok_or_else(|| {
            let suggestion = nearest(name, self.tiers.iter().map(|t| t.name.as_str()));
            SiteError::UnknownTier { owner: owner(), key, name: name.to_owned(), suggestion }
        })
    }

    fn link(&self, from: &str, to: &str) -> Option<&SiteLink> {
        self.links.iter().find(|l| l.from == from && l.to == to)
    }

    /// The measured profile that tier `name` gets its times from, by way of
    /// `scale_of`.
    ///
    /// # Errors
    /// When there is no such tier, or no profile to be had.
    pub fn source(&self, name: &str) -> Result<Source<'_>, SiteError> {
        let mut tier = &self.tiers[self.tier(name, || "source".into(), "tier")?];
        let mut factor = 1.0;
        for _ in 0..=self.tiers.len() {
            match (&tier.profile, &tier.scale_of, tier.factor) {
                (Some(profile), None, None) => return Ok(Source { profile, factor }),
                (None, Some(of), Some(more)) => {
                    factor *= more;
                    let owner = format!("tier `{}`", tier.name);
                    tier = &self.tiers[self.tier(of, || owner.clone(), "scale_of")?];
                }
                _ => return Err(SiteError::NoProfile(tier.name.clone())),
            }
        }
        Err(SiteError::ScaleCircle(name.to_owned()))
    }

    /// Names of the tiers, lowest first.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.tiers.iter().map(|t| t.name.clone()).collect()
    }

    /// The links of the line as the site describes them, lowest first.
    #[must_use]
    pub fn conditions(&self) -> Vec<LinkCondition> {
        let pairs = self.tiers.windows(2);
        pairs.filter_map(|pair| self.link(&pair[0].name, &pair[1].name)).map(SiteLink::condition).collect()
    }

    /// The direct link from the lowest tier to the highest, if there is one.
    #[must_use]
    pub fn direct(&self) -> Option<LinkCondition> {
        self.direct_link().map(SiteLink::condition)
    }

    fn direct_link(&self) -> Option<&SiteLink> {
        let [first, _, .., last] = &self.tiers[..] else { return None };
        self.link(&first.name, &last.name)
    }

    /// What to plan: the model's profile on each tier, lowest first, with the
    /// site's limits, prices and objective.
    ///
    /// # Errors
    /// When the profiles don't fit each other.
    pub fn request(&self, profiles: &[&ModelProfile]) -> Result<PlanRequest, PlanError> {
        let names = self.names();
        check_profiles(&names, profiles)?;
        let mut request = PlanRequest::from_profiles(&names, profiles).ok_or(PlanError::Empty)?;
        for (tier, site) in request.tiers.iter_mut().zip(&self.tiers) {
            tier.memory_max = site.memory_mb.map_or(0, |mb| (mb * 1e6) as u64);
            tier.watts = site.watts;
            tier.price_per_hour = site.price_per_second * 3_600.0;
            tier.wait_ns = (site.wait_ms * 1e6) as u64;
        }
        let pairs = self.tiers.windows(2);
        request.link_prices =
            pairs.filter_map(|pair| self.link(&pair[0].name, &pair[1].name)).map(SiteLink::price).collect();
        request.direct_price = self.direct_link().map(SiteLink::price).unwrap_or_default();
        request.objective = self.objective;
        let highest = self.limits.private_tier.as_ref().and_then(|n| self.tiers.iter().position(|t| &t.name == n));
        request.private_tier = highest.unwrap_or(0);
        request.limits = Limits {
            private_segments: self.limits.private_segments,
            private_tensors: self.limits.private_tensors.clone(),
            deadline_ns: self.limits.deadline_ms.map(|ms| (ms * 1e6) as u64),
            max_loss: self.limits.max_loss.unwrap_or(Limits::default().max_loss),
        };
        Ok(request)
    }
}

impl SiteLink {
    fn condition(&self) -> LinkCondition {
        LinkCondition {
            up_bytes_per_s: self.up_mbit * MBIT,
            down_bytes_per_s: self.down_mbit.unwrap_or(self.up_mbit) * MBIT,
            rtt_ns: (self.rtt_ms * 1e6) as u64,
        }
    }

    fn price(&self) -> LinkPrice {
        LinkPrice { joules_per_byte: self.joules_per_mb / 1e6, price_per_gb: self.price_per_gb }
    }
}

fn check_keys(table: &toml::Table, kind: &str, place: &str) -> Result<(), SiteError> {
    let known = KEYS.iter().find(|(name, _)| *name == kind).map_or(&[][..], |(_, keys)| keys);
    Ok(keys::check(table, known, place)?)
}

fn above_zero(owner: impl Fn() -> String, key: &'static str, value: Option<f64>) -> Result<(), SiteError> {
    match value.filter(|v| !v.is_finite() || *v <= 0.0) {
        Some(v) => Err(SiteError::Value { owner: owner(), key, value: v.to_string(), needed: "above 0" }),
        None => Ok(()),
    }
}

fn not_negative(owner: impl Fn() -> String, key: &'static str, value: f64) -> Result<(), SiteError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(SiteError::Value { owner: owner(), key, value: value.to_string(), needed: "0 or more" })
}

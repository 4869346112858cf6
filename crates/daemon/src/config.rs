//! What a node is told: `node.toml` in its data folder, under flags.
//!
//! Precedence: flag, environment, file, default. Unknown keys are refused
//! with the nearest known one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tierline_engine::{Apart, LoadOptions, Provider};
use tierline_node::admit::{Share, Shares};
use tierline_node::batch::Bounds;
use tierline_plan::{Limits, Objective};
use tierline_proto::Role;
use tierline_proto::limits::CHILDREN_MAX;
use tierline_store::disk;

use crate::device::Device;
use crate::error::{ErrorKind, NodeError, NodeResult, OfKind};

/// The file's name in the data folder.
pub const FILE: &str = "node.toml";

/// Where the socket of a node lies in its data folder.
pub const SOCKET: &str = "tierline.sock";

/// What a node keeps in its data folder; nobody else may open any of it.
const KEPT: &[&str] = &[
    FILE,
    "artefacts",
    "audit",
    "ca",
    "datasets",
    "identity",
    "jobs",
    "node.lock",
    "reserve",
    "state.db",
    "state.db-shm",
    "state.db-wal",
];

/// Makes the data folder this user's alone; a warning to say aloud where it
/// wasn't.
///
/// # Errors
/// [`ErrorKind::Configuration`] where others keep a hold on it.
pub fn claim(data: &Path) -> NodeResult<Option<String>> {
    let open = disk::claim(data, KEPT, &["ca", "identity"]).of_kind(ErrorKind::Configuration)?;
    let Some((first, mode)) = open.first() else { return Ok(None) };
    let more = open.len() - 1;
    let more = if more == 0 { String::new() } else { format!(" and {more} more below it") };
    Ok(Some(format!(
        "warning: other users could open {} (mode {mode:03o}){more}; they can't any more. \
         Who could may have copied keys or made tokens: look at `tierline token ls` and `tierline nodes`",
        first.display()
    )))
}

/// Where a node that serves others listens, unless told otherwise.
pub const LISTEN_DEFAULT: &str = "0.0.0.0:7443";

/// The part of this machine's memory that models, sessions and plans may take
/// together, unless told otherwise.
const MEMORY_SHARE: u64 = 4;

/// Time for measuring a model, unless told otherwise: enough for one that
/// takes a second for a run.
const PROFILE_SECONDS_DEFAULT: u64 = 120;

/// Points of accuracy that a learned bottleneck may lose, unless told otherwise.
const BOTTLENECK_LOSS_MAX_DEFAULT: f64 = 2.0;

/// Longest time for measuring a model.
const PROFILE_SECONDS_MAX: u64 = 3_600;

/// Least memory for requests under way: a few pictures at once.
const REQUESTS_BYTES_MIN: u64 = 256 << 20;

/// Bytes of examples on a node, unless told otherwise.
const EXAMPLES_BYTES_DEFAULT: u64 = 1_000_000_000;

/// How many times as long something takes: `LEAST` at least, above 0 at any
/// rate, and at most `FACTOR_MAX`. So whatever is computed of it is a time.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Factor<const LEAST: u32>(f64);

/// Beyond it no device is of use to anybody.
const FACTOR_MAX: f64 = 1e6;

impl<const LEAST: u32> Factor<LEAST> {
    /// As long as it takes.
    pub const ONE: Self = Self(1.0);

    /// As a number.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl<const LEAST: u32> TryFrom<f64> for Factor<LEAST> {
    type Error = String;

    fn try_from(factor: f64) -> Result<Self, String> {
        let least = f64::from(LEAST).max(1.0 / FACTOR_MAX);
        if (least..=FACTOR_MAX).contains(&factor) {
            return Ok(Self(factor));
        }
        Err(format!("{factor} is no such factor; it must be between {least} and {FACTOR_MAX}"))
    }
}

impl<const LEAST: u32> From<Factor<LEAST>> for f64 {
    fn from(factor: Factor<LEAST>) -> Self {
        factor.0
    }
}

impl<const LEAST: u32> FromStr for Factor<LEAST> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.trim().parse::<f64>().map_err(|_| format!("`{text}` is no number"))?.try_into()
    }
}

impl<const LEAST: u32> std::fmt::Display for Factor<LEAST> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a class of background work gets of the device.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// Beside other background work: in proportion to these, above 0.
    pub weight: f64,
    /// Part of the device's time that it gets also while requests wait, 0 to
    /// 0.5, where no request is late for it.
    pub floor: f64,
}

/// The table `[shares]`: background work beside requests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SharesConfig {
    /// Loading sessions, and requests of those who can wait.
    pub batch: ShareConfig,
    /// Training and evaluation.
    pub training: ShareConfig,
    /// Measuring models.
    pub profiling: ShareConfig,
}

impl Default for SharesConfig {
    fn default() -> Self {
        let Shares { batch, training, profiling } = Shares::default();
        let of = |Share { weight, floor }| ShareConfig { weight, floor };
        Self { batch: of(batch), training: of(training), profiling: of(profiling) }
    }
}

impl SharesConfig {
    /// As the executor takes them.
    #[must_use]
    pub fn shares(self) -> Shares {
        let of = |ShareConfig { weight, floor }| Share { weight, floor };
        Shares { batch: of(self.batch), training: of(self.training), profiling: of(self.profiling) }
    }
}

/// The most rows that may be asked to run as one.
const BATCH_ROWS_MAX: u32 = 256;

/// The longest that a request may be asked to wait for others.
const BATCH_DELAY_US_MAX: u64 = 1_000_000;

/// The table `[batching]`: requests that run as one. Those of a model stand in
/// `[batching.models.NAME]`, where what isn't said is as for all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchingConfig {
    /// Rows at most; 1 runs every request by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_max: Option<u32>,
    /// Bytes of inputs at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<u64>,
    /// Milliseconds by which a run may take longer than its first request alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra_ms: Option<u64>,
    /// Microseconds that a request waits for others while the device is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_us: Option<u64>,
    /// By model.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, BatchingConfig>,
}

impl BatchingConfig {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether anything may run as one.
    #[must_use]
    pub fn is_on(&self) -> bool {
        let names = self.models.keys().map(String::as_str).chain([""]);
        names.map(|name| self.bounds(name)).any(|bounds| bounds.rows_max > 1)
    }

    /// What may run as one of a model.
    #[must_use]
    pub fn bounds(&self, model: &str) -> Bounds {
        let own = self.models.get(model);
        let default = Bounds::default();
        let extra = own.and_then(|own| own.extra_ms).or(self.extra_ms).map(Duration::from_millis);
        let delay = own.and_then(|own| own.delay_us).or(self.delay_us).map(Duration::from_micros);
        Bounds {
            rows_max: own.and_then(|own| own.rows_max).or(self.rows_max).unwrap_or(default.rows_max),
            bytes_max: own.and_then(|own| own.bytes_max).or(self.bytes_max).unwrap_or(default.bytes_max),
            extra_max: extra.unwrap_or(default.extra_max),
            delay: delay.unwrap_or(default.delay),
        }
    }

    fn check(&self, at: &str) -> Result<(), String> {
        if let Some(rows) = self.rows_max.filter(|rows| !(1..=BATCH_ROWS_MAX).contains(rows)) {
            return Err(format!("{at}.rows_max = {rows}: it must be between 1 and {BATCH_ROWS_MAX}"));
        }
        if let Some(delay) = self.delay_us.filter(|delay| *delay > BATCH_DELAY_US_MAX) {
            return Err(format!("{at}.delay_us = {delay}: it must be at most {BATCH_DELAY_US_MAX}"));
        }
        for (name, own) in &self.models {
            if !own.models.is_empty() {
                return Err(format!("{at}.models.{name}.models: models stand side by side"));
            }
            own.check(&format!("{at}.models.{name}"))?;
        }
        Ok(())
    }
}

/// The table `[serve]`: applications that speak the Open Inference Protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeConfig {
    /// Address for HTTP, or `off`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Address for gRPC, or `off`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
    /// Whether anybody may ask who reaches an address beyond this machine.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub open: bool,
    /// Who has to show an identity; only who calls from beyond this machine,
    /// when it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require: Option<Required>,
    /// Where TLS ends; at the node beyond this machine, when it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// A file with the certificate that applications are shown, and those that
    /// signed it (PEM); the node's own when it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// A file with that certificate's key (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// Who has to show an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Required {
    /// Whoever calls from beyond this machine.
    Network,
    /// Everybody.
    All,
}

/// Where the applications' TLS ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// At the node.
    Own,
    /// In front of it: a proxy speaks plainly to it.
    Front,
    /// Nowhere: there is none.
    None,
}

/// The table `[traces]`: what requests spend their time on, for a collector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracesConfig {
    /// A collector that speaks OpenTelemetry's protocol over gRPC
    /// (`http://host:4317`); nothing is recorded when it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The share of requests that are traced of those whose caller doesn't say,
    /// 0 to 1.
    pub share: f64,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self { endpoint: None, share: 0.01 }
    }
}

impl TracesConfig {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// An address that a node is to answer at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish<'c> {
    /// None.
    Nowhere,
    /// One that it can do without.
    Default(&'static str),
    /// One that was asked for.
    At(&'c str),
}

/// Where ends answer applications on their own machine, unless told otherwise.
const HTTP_DEFAULT: &str = "127.0.0.1:8000";
const GRPC_DEFAULT: &str = "127.0.0.1:8001";

impl ServeConfig {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses what contradicts itself.
    fn check(&self) -> NodeResult {
        let wrong = |text: &str| Err(NodeError::message(ErrorKind::Configuration, text));
        if self.open && self.require == Some(Required::All) {
            return wrong("serve: `open = true` lets anybody in, and `require = \"all\"` nobody without an identity");
        }
        if self.certificate.is_some() != self.key.is_some() {
            return wrong("serve: `certificate` and `key` belong together: name both files, or none");
        }
        if self.certificate.is_some() && matches!(self.tls, Some(Tls::Front | Tls::None)) {
            return wrong("serve: a certificate is of no use where the node doesn't speak TLS itself");
        }
        Ok(())
    }

    /// Where a node of this role answers HTTP.
    #[must_use]
    pub fn http(&self, role: Role) -> Wish<'_> {
        wish(self.http.as_deref(), role, HTTP_DEFAULT)
    }

    /// Where a node of this role answers gRPC.
    #[must_use]
    pub fn grpc(&self, role: Role) -> Wish<'_> {
        wish(self.grpc.as_deref(), role, GRPC_DEFAULT)
    }
}

fn wish<'c>(said: Option<&'c str>, role: Role, default: &'static str) -> Wish<'c> {
    match said {
        Some("off") => Wish::Nowhere,
        Some(address) => Wish::At(address),
        None if role == Role::End => Wish::Default(default),
        None => Wish::Nowhere,
    }
}

/// One node's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Its data folder; never in the file.
    #[serde(skip)]
    pub data: PathBuf,
    /// Its name; a node that joined has it in its certificate.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Address to listen on; ends don't listen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Where other edges reach this one (`https://host:port`); without it, the
    /// address it listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
    /// Address where Prometheus may read this node's numbers, over plain HTTP;
    /// nobody may when it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
    /// Who serves applications, and where.
    #[serde(skip_serializing_if = "ServeConfig::is_default")]
    pub serve: ServeConfig,
    /// Who is told what requests spend their time on.
    #[serde(skip_serializing_if = "TracesConfig::is_default")]
    pub traces: TracesConfig,
    /// What is logged, as in `warn,tierline=debug`; TIERLINE_LOG goes before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// What people write on the node: rollouts choose nodes by it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Addresses of the tiers above (`https://host:port`), most wanted first.
    pub parents: Vec<String>,
    /// Addresses of edges that help this one when it is busy, and that it helps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub siblings: Vec<String>,
    /// Children at once; as many as the limit of open files leaves room for
    /// when it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub children_max: Option<usize>,
    /// `auto`, `onnxruntime` or `rten`.
    pub engine: String,
    /// Threads within an operator; 0 takes every core.
    pub threads: usize,
    /// ONNX Runtime's execution providers, most wanted first, as in `cuda`.
    pub providers: Vec<Provider>,
    /// Every run takes this many times as long: stands for a slower device.
    pub slowdown: Factor<1>,
    /// Don't measure: this device is so many times slower than the nearest
    /// tier above that has measured. For devices that can't be kept busy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_of_parent: Option<Factor<0>>,
    /// Bytes that models, sessions and plans may take together; a quarter of
    /// this machine's memory when it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Bytes that one run of a model may take; half of this machine's memory
    /// when it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_bytes: Option<u64>,
    /// Bytes that requests under way may hold together; an eighth of this
    /// machine's memory when it is missing, and 256 MiB at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_bytes: Option<u64>,
    /// What loading, training and profiling get of the device beside requests.
    pub shares: SharesConfig,
    /// Requests that run as one.
    #[serde(skip_serializing_if = "BatchingConfig::is_default")]
    pub batching: BatchingConfig,
    /// Seconds in which a model must be measured; one that takes longer isn't
    /// offered here.
    pub profile_seconds: u64,
    /// Inferences of each caller that may go past every early exit, in a
    /// minute; any number when it is missing. Beyond it the caller gets the
    /// deepest exit's answer, marked as degraded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deep_per_minute: Option<u32>,
    /// Bytes that examples of all services may take together; 1 GB when it is
    /// missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples_bytes: Option<u64>,
    /// Points of accuracy that a learned bottleneck may lose for requests to go through it.
    pub bottleneck_loss_max: f64,
    /// What plans make small.
    pub objective: Objective,
    /// What plans must keep.
    pub limits: Limits,
    /// Power while computing, watts; for the objectives that count energy.
    pub watts: f64,
    /// Price of an hour of computing; for the objectives that count money.
    pub price_per_hour: f64,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            data: PathBuf::new(),
            name: String::new(),
            listen: None,
            advertise: None,
            metrics: None,
            serve: ServeConfig::default(),
            traces: TracesConfig::default(),
            log: None,
            parents: Vec::new(),
            labels: BTreeMap::new(),
            siblings: Vec::new(),
            children_max: None,
            engine: "auto".to_owned(),
            threads: 0,
            providers: Vec::new(),
            slowdown: Factor::ONE,
            scale_of_parent: None,
            memory_bytes: None,
            run_bytes: None,
            requests_bytes: None,
            shares: SharesConfig::default(),
            batching: BatchingConfig::default(),
            profile_seconds: PROFILE_SECONDS_DEFAULT,
            deep_per_minute: None,
            examples_bytes: None,
            bottleneck_loss_max: BOTTLENECK_LOSS_MAX_DEFAULT,
            objective: Objective::Latency,
            limits: Limits::default(),
            watts: 0.0,
            price_per_hour: 0.0,
        }
    }
}

impl NodeConfig {
    /// The configuration in a data folder; the default where there is no file.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`] for a file that can't be read or is wrong.
    pub fn load(data: &Path) -> NodeResult<Self> {
        let path = data.join(FILE);
        let mut config = match std::fs::read_to_string(&path) {
            Ok(text) => parse::<Self>(&text, &path)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Self::default(),
            Err(e) => {
                return Err(NodeError::message(
                    ErrorKind::Configuration,
                    format!("cannot read {}: {e}", path.display()),
                ));
            }
        };
        data.clone_into(&mut config.data);
        config.check()?;
        Ok(config)
    }

    /// Refuses values that make no sense.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`], naming the key.
    pub fn check(&self) -> NodeResult {
        let wrong = |text: String| Err(NodeError::message(ErrorKind::Configuration, text));
        if !(1..=PROFILE_SECONDS_MAX).contains(&self.profile_seconds) {
            return wrong(format!(
                "profile_seconds = {}: it must be between 1 and {PROFILE_SECONDS_MAX}",
                self.profile_seconds
            ));
        }
        if let Some(max) = self.children_max.filter(|max| !(1..=CHILDREN_MAX).contains(max)) {
            return wrong(format!("children_max = {max}: it must be between 1 and {CHILDREN_MAX}"));
        }
        let SharesConfig { batch, training, profiling } = self.shares;
        for (class, share) in [("batch", batch), ("training", training), ("profiling", profiling)] {
            if !(share.weight > 0.0 && share.weight.is_finite()) {
                return wrong(format!("shares.{class}.weight = {}: it must be above 0", share.weight));
            }
            if !(0.0..=0.5).contains(&share.floor) {
                return wrong(format!("shares.{class}.floor = {}: it must be between 0 and 0.5", share.floor));
            }
        }
        if !(0.0..=100.0).contains(&self.bottleneck_loss_max) {
            return wrong(format!("bottleneck_loss_max = {}: it must be between 0 and 100", self.bottleneck_loss_max));
        }
        self.serve.check()?;
        if let Some(url) = self.traces.endpoint.as_ref().filter(|url| !is_plain_address(url)) {
            return wrong(format!("traces.endpoint: `{url}` is no address of a collector; write http://host:4317"));
        }
        if !(0.0..=1.0).contains(&self.traces.share) {
            return wrong(format!("traces.share = {}: it must be between 0 and 1", self.traces.share));
        }
        if let Err(text) = self.batching.check("batching") {
            return wrong(text);
        }
        if let Some(url) = self.parents.iter().find(|url| !url.starts_with("https://")) {
            return wrong(format!("parents: `{url}` is no address; write https://host:port"));
        }
        if let Some(url) = self.siblings.iter().find(|url| !url.starts_with("https://")) {
            return wrong(format!("siblings: `{url}` is no address; write https://host:port"));
        }
        if let Some(url) = self.advertise.as_ref().filter(|url| !url.starts_with("https://")) {
            return wrong(format!("advertise: `{url}` is no address; write https://host:port"));
        }
        Ok(())
    }

    /// Bytes that models, sessions and plans may take together.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes.unwrap_or_else(|| crate::machine::memory() / MEMORY_SHARE)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&self) -> NodeResult {
        let path = self.data.join(FILE);
        let text = toml::to_string_pretty(self).of_kind(ErrorKind::Other)?;
        disk::write_atomically(&path, text.as_bytes(), 0o600, disk::Existing::Replace)
            .map_err(|e| NodeError::message(ErrorKind::Other, format!("cannot write {}: {e}", path.display())))
    }

    /// What the file is to say from now on, where it says nothing yet of what
    /// `given` sets, and the keys that are new in it.
    ///
    /// # Errors
    /// When one of the configurations can't be written.
    pub fn remembering(&self, given: &Self) -> NodeResult<(Self, Vec<String>)> {
        let (mut file, given, default) = (table(self)?, table(given)?, table(&Self::default())?);
        let mut new = Vec::new();
        for (key, value) in given {
            if file.get(&key) == default.get(&key) && Some(&value) != default.get(&key) {
                new.push(key.clone());
                file.insert(key, value);
            }
        }
        Ok((Self { data: self.data.clone(), ..file.try_into().of_kind(ErrorKind::Other)? }, new))
    }

    /// Keys whose values differ in another configuration.
    ///
    /// # Errors
    /// When one of the configurations can't be written.
    pub fn differences(&self, other: &Self) -> NodeResult<Vec<String>> {
        let (own, other) = (table(self)?, table(other)?);
        let keys: std::collections::BTreeSet<&String> = own.keys().chain(other.keys()).collect();
        Ok(keys.into_iter().filter(|key| own.get(*key) != other.get(*key)).cloned().collect())
    }

    /// What is in force on a node, as its file would say it: what it says
    /// nothing of has what the node chose.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn in_force(&self, role: Role, device: &Device) -> NodeResult<String> {
        let at = |wish: Wish<'_>| match wish {
            Wish::Nowhere => "off".to_owned(),
            Wish::Default(address) => address.to_owned(),
            Wish::At(address) => address.to_owned(),
        };
        let (http, grpc) = (Some(at(self.serve.http(role))), Some(at(self.serve.grpc(role))));
        let in_force = Self {
            listen: self.listen.clone().or_else(|| (role != Role::End).then(|| LISTEN_DEFAULT.to_owned())),
            serve: ServeConfig { http, grpc, ..self.serve.clone() },
            memory_bytes: Some(device.memory.max()),
            run_bytes: Some(self.run_bytes()),
            requests_bytes: Some(device.budget.state().1),
            examples_bytes: Some(self.examples_bytes()),
            ..self.clone()
        };
        toml::to_string_pretty(&in_force).of_kind(ErrorKind::Other)
    }

    /// Bytes that one run of a model may take.
    #[must_use]
    pub fn run_bytes(&self) -> u64 {
        self.run_bytes.unwrap_or_else(|| crate::machine::memory() / 2)
    }

    /// Bytes that requests under way may hold together.
    #[must_use]
    pub fn requests_bytes(&self) -> u64 {
        self.requests_bytes.unwrap_or_else(|| (crate::machine::memory() / 8).max(REQUESTS_BYTES_MIN))
    }

    /// Bytes that examples of all services may take together.
    #[must_use]
    pub fn examples_bytes(&self) -> u64 {
        self.examples_bytes.unwrap_or(EXAMPLES_BYTES_DEFAULT)
    }

    /// How models that could take the node down are run.
    #[must_use]
    pub fn apart(&self) -> Apart {
        // By this name it is found though an update has put another in its place.
        let program = if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() };
        Apart {
            program: program.unwrap_or_else(|_| "tierline".into()),
            args: vec!["apart".to_owned()],
            memory_max: self.run_bytes(),
        }
    }

    /// How the engine loads sessions.
    #[must_use]
    pub fn load_options(&self) -> LoadOptions {
        // Several processes share a device more often than not, and a waiting
        // thread that spins takes the core another one needs.
        LoadOptions { threads: self.threads, providers: self.providers.clone(), optimize: true, spin: false }
    }
}

/// Parses a TOML file; an unknown key comes with the nearest known one.
///
/// # Errors
/// [`ErrorKind::Configuration`] with line, column and what to write instead.
pub fn parse<T: serde::de::DeserializeOwned>(text: &str, path: &Path) -> NodeResult<T> {
    toml::from_str(text).map_err(|e| {
        let message = e.to_string();
        let failure =
            NodeError::message(ErrorKind::Configuration, format!("{}: {}", path.display(), message.trim_end()));
        match nearest(e.message()) {
            Some(key) => failure.hint(format!("did you mean `{key}`?")),
            None => failure,
        }
    })
}

/// Whether a URL is `http://` and an address.
fn is_plain_address(url: &str) -> bool {
    let uri = url.parse::<axum::http::Uri>().ok();
    uri.is_some_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()))
}

/// The known key nearest to the one that an error calls unknown.
fn nearest(message: &str) -> Option<String> {
    let mut names = message.split('`').skip(1).step_by(2);
    let wrong = names.next().filter(|_| message.starts_with("unknown field"))?;
    names.min_by_key(|known| strsim::damerau_levenshtein(known, wrong)).map(str::to_owned)
}

/// A configuration as its file's table.
fn table(config: &NodeConfig) -> NodeResult<toml::Table> {
    toml::Table::try_from(config).of_kind(ErrorKind::Other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_key_names_the_right_one() {
        let failure = parse::<NodeConfig>("threds = 2\n", Path::new("node.toml")).unwrap_err();
        assert_eq!(failure.kind, ErrorKind::Configuration);
        assert_eq!(failure.hint.as_deref(), Some("did you mean `threads`?"));
    }

    #[test]
    fn factors_that_make_no_time_are_refused() {
        for wrong in ["inf", "-inf", "nan", "-1", "0", "1e300", "1000001", "fast", ""] {
            assert!(wrong.parse::<Factor<0>>().is_err() && wrong.parse::<Factor<1>>().is_err(), "{wrong}");
        }
        assert!("0.5".parse::<Factor<1>>().is_err());
        assert_eq!("0.5".parse::<Factor<0>>().map(f64::from), Ok(0.5));
        assert_eq!("1e6".parse::<Factor<1>>().map(f64::from), Ok(1e6));
        let failure = parse::<NodeConfig>("slowdown = inf\n", Path::new("node.toml")).unwrap_err();
        assert!(failure.error.to_string().contains("between 1 and 1000000"), "{}", failure.error);
    }

    #[test]
    fn what_a_node_is_first_told_is_remembered() {
        let file = NodeConfig { name: "gateway".into(), threads: 2, ..NodeConfig::default() };
        let given = NodeConfig { listen: Some("0.0.0.0:9".into()), threads: 4, slowdown: Factor(8.0), ..file.clone() };
        let (kept, new) = file.remembering(&given).unwrap();
        assert_eq!(new, ["listen", "slowdown"], "what the file says stays: a flag is for once then");
        assert_eq!(kept, NodeConfig { threads: 2, ..given.clone() });
        assert_eq!(kept.remembering(&given).unwrap(), (kept, vec![]));
    }

    #[test]
    fn differences_are_named() {
        let file = NodeConfig { threads: 2, memory_bytes: Some(1), ..NodeConfig::default() };
        let other = NodeConfig { memory_bytes: Some(2), log: Some("debug".into()), ..file.clone() };
        assert_eq!(file.differences(&other).unwrap(), ["log", "memory_bytes"]);
        assert_eq!(other.differences(&other).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_model_may_have_bounds_of_its_own() {
        let text = "[batching]\nrows_max = 8\n[batching.models.mlp]\ndelay_us = 500\n";
        let config = parse::<NodeConfig>(text, Path::new("x")).unwrap();
        let (all, own) = (config.batching.bounds("lenet"), config.batching.bounds("mlp"));
        assert_eq!((all.rows_max, all.delay), (8, Duration::ZERO));
        assert_eq!((own.rows_max, own.delay), (8, Duration::from_micros(500)));
        for (wrong, key) in [
            ("[batching]\nrows_max = 0\n", "batching.rows_max"),
            ("[batching.models.mlp]\ndelay_us = 2000000\n", "batching.models.mlp.delay_us"),
            ("[batching.models.mlp.models.mlp]\nrows_max = 2\n", "batching.models.mlp.models"),
        ] {
            let error = parse::<NodeConfig>(wrong, Path::new("x")).unwrap().check().unwrap_err();
            assert!(error.error.to_string().starts_with(key), "{}", error.error);
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let config =
            NodeConfig { slowdown: Factor(8.0), parents: vec!["https://edge:7443".into()], ..NodeConfig::default() };
        let text = toml::to_string_pretty(&config).unwrap();
        assert_eq!(parse::<NodeConfig>(&text, Path::new("x")).unwrap(), config);
    }
}

//! What a link is like.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A TCP segment on an ordinary path, bytes: what a loss takes.
pub const SEGMENT_BYTES: usize = 1_448;

/// A link as it is to be.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkConfig {
    /// Bits per second from the listening side to the target; none: as fast
    /// as the machine.
    pub up_bits_per_s: Option<f64>,
    /// Bits per second back.
    pub down_bits_per_s: Option<f64>,
    /// One-way delay, seconds.
    pub delay_s: f64,
    /// Up to this much more, uniformly, seconds; order is kept.
    pub jitter_s: f64,
    /// Share of segments lost, 0 to 1.
    pub loss: f64,
    /// Nothing passes.
    pub cut: bool,
}

/// What is to change of a link; absent fields stay.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Change {
    /// New bandwidth upwards; zero lifts the limit.
    pub up_bits_per_s: Option<f64>,
    /// New bandwidth downwards; zero lifts the limit.
    pub down_bits_per_s: Option<f64>,
    /// New delay.
    pub delay_s: Option<f64>,
    /// New jitter.
    pub jitter_s: Option<f64>,
    /// New loss.
    pub loss: Option<f64>,
    /// Cut or restored.
    pub cut: Option<bool>,
}

/// A link that can't be, or can't be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// A number that makes no sense.
    #[error("{what} = {value}: it must be {rule}")]
    Value {
        /// The field.
        what: &'static str,
        /// What was given.
        value: f64,
        /// What would do.
        rule: &'static str,
    },
    /// The address can't be listened on.
    #[error("cannot listen on {address}: {source}; choose another with --listen")]
    Listen {
        /// The address.
        address: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// The control address doesn't answer.
    #[error("no link answers at {address}: {source}; is `tierline link start` running with --control {address}?")]
    Control {
        /// The address.
        address: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// The running link refused a change.
    #[error("the link refused: {0}")]
    Refused(String),
}

impl LinkConfig {
    /// Refuses numbers that make no sense.
    ///
    /// # Errors
    /// [`LinkError::Value`].
    pub fn check(&self) -> Result<(), LinkError> {
        let ensure =
            |ok: bool, what, value, rule| if ok { Ok(()) } else { Err(LinkError::Value { what, value, rule }) };
        for (what, rate) in [("up bandwidth", self.up_bits_per_s), ("down bandwidth", self.down_bits_per_s)] {
            let rate = rate.unwrap_or(1e9);
            ensure((1e3..=1e12).contains(&rate), what, rate, "1 kbit/s to 1 Tbit/s")?;
        }
        ensure((0.0..=60.0).contains(&self.delay_s), "delay", self.delay_s, "0 to 60 s")?;
        ensure((0.0..=60.0).contains(&self.jitter_s), "jitter", self.jitter_s, "0 to 60 s")?;
        ensure((0.0..0.9).contains(&self.loss), "loss", self.loss, "0 to 90%")
    }

    /// The link after a change.
    ///
    /// # Errors
    /// [`LinkError::Value`]; the link stays as it was.
    pub fn with(&self, change: &Change) -> Result<Self, LinkError> {
        let rate = |old: Option<f64>, new: Option<f64>| match new {
            None => old,
            Some(0.0) => None,
            some => some,
        };
        let changed = Self {
            up_bits_per_s: rate(self.up_bits_per_s, change.up_bits_per_s),
            down_bits_per_s: rate(self.down_bits_per_s, change.down_bits_per_s),
            delay_s: change.delay_s.unwrap_or(self.delay_s),
            jitter_s: change.jitter_s.unwrap_or(self.jitter_s),
            loss: change.loss.unwrap_or(self.loss),
            cut: change.cut.unwrap_or(self.cut),
        };
        changed.check()?;
        Ok(changed)
    }

    /// Bits per second that TCP gets out of a direction: its bandwidth, and
    /// under loss at most the rate of Mathis et al. (1997),
    /// `segment * 1.22 / (rtt * sqrt(loss))`.
    #[must_use]
    pub fn rate(&self, bits_per_s: Option<f64>) -> Option<f64> {
        if self.loss <= 0.0 {
            return bits_per_s;
        }
        // Even on loopback a round trip takes some time.
        let rtt = (2.0 * self.delay_s).max(1e-4);
        let mathis = SEGMENT_BYTES as f64 * 8.0 * 1.22 / (rtt * self.loss.sqrt());
        Some(bits_per_s.map_or(mathis, |rate| rate.min(mathis)))
    }

    /// How long a lost segment holds up what follows it: a retransmission
    /// after a timeout, as on thin links.
    #[must_use]
    pub fn stall(&self) -> Duration {
        Duration::from_secs_f64((4.0 * self.delay_s).max(0.2))
    }
}

/// `10mbit`, `100 kbit/s`, `1.5 Gbit/s` as bits per second; `0` or
/// `unlimited` as zero.
///
/// # Errors
/// What to write instead.
pub fn parse_bandwidth(text: &str) -> Result<f64, String> {
    let lower = text.trim().to_lowercase();
    if lower == "unlimited" || lower == "0" {
        return Ok(0.0);
    }
    let split = lower.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(split);
    let wrong = || format!("`{text}` is no bandwidth; write 10mbit, 100kbit, 1gbit or unlimited");
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.trim().trim_end_matches("/s").trim_end_matches("ps");
    let factor = match unit {
        "bit" => 1.0,
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        _ => return Err(wrong()),
    };
    Ok(number * factor)
}

/// `1%` or `0.01` as a share.
///
/// # Errors
/// What to write instead.
pub fn parse_loss(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is no share; write 1% or 0.01");
    match text.trim().strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|p| p / 100.0).map_err(|_| wrong()),
        None => text.trim().parse().map_err(|_| wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read() {
        assert_eq!(parse_bandwidth("10mbit"), Ok(1e7));
        assert_eq!(parse_bandwidth("0.1 Mbit/s"), Ok(1e5));
        assert_eq!(parse_bandwidth("unlimited"), Ok(0.0));
        assert!(parse_bandwidth("fast").is_err() && parse_bandwidth("10").is_err());
        assert_eq!(parse_loss("1%"), Ok(0.01));
    }

    #[test]
    fn changes_that_make_no_sense_change_nothing() {
        let link = LinkConfig { up_bits_per_s: Some(1e6), ..LinkConfig::default() };
        assert!(link.with(&Change { loss: Some(2.0), ..Change::default() }).is_err());
        assert!(link.with(&Change { up_bits_per_s: Some(1.0), ..Change::default() }).is_err());
        let free = link.with(&Change { up_bits_per_s: Some(0.0), cut: Some(true), ..Change::default() }).unwrap();
        assert_eq!((free.up_bits_per_s, free.cut), (None, true));
    }

    #[test]
    fn loss_caps_the_rate() {
        let link = LinkConfig { delay_s: 0.05, loss: 0.01, ..LinkConfig::default() };
        let rate = link.rate(Some(1e9)).unwrap();
        assert!((rate - 1_448.0 * 8.0 * 1.22 / (0.1 * 0.1)).abs() < 1.0);
        assert_eq!(link.rate(Some(1e5)), Some(1e5));
    }
}

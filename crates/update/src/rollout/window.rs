//! Maintenance windows: a time of day in a stated offset from UTC.

use serde::{Deserialize, Serialize};

use super::RolloutError;

const DAY_MS: u64 = 24 * 60 * MINUTE_MS;
const MINUTE_MS: u64 = 60_000;

/// A part of each day, `from` its first minute to the one before `to`; past
/// midnight where `to` isn't after `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Window {
    /// Minutes of the day, local.
    from_min: u16,
    to_min: u16,
    /// Minutes that local time is ahead of UTC.
    offset_min: i16,
}

/// As a file says it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    from: String,
    to: String,
    utc_offset: String,
}

impl Window {
    /// A window of texts such as `22:00`, `04:30`, `+02:00`.
    ///
    /// # Errors
    /// [`RolloutError::Setting`] with the text that is no such time.
    pub fn new(from: &str, to: &str, utc_offset: &str) -> Result<Self, RolloutError> {
        let wrong = |text: &str, rule: &str| RolloutError::Setting {
            place: "window".into(),
            reason: format!("`{}` is no {rule}", text.chars().take(40).collect::<String>().escape_debug()),
        };
        let of_day = |text: &str| minutes(text, 23).ok_or_else(|| wrong(text, "time of day such as `22:00`"));
        let offset = match utc_offset.split_at_checked(1) {
            Some(("+", rest)) => minutes(rest, 14).map(|m| m as i16),
            Some(("-", rest)) => minutes(rest, 14).map(|m| -(m as i16)),
            _ => None,
        };
        let offset_min =
            offset.ok_or_else(|| wrong(utc_offset, "offset from UTC such as `+02:00`, at most 14 hours"))?;
        let (from_min, to_min) = (of_day(from)?, of_day(to)?);
        if from_min == to_min {
            return Err(wrong(
                to,
                "end of a window that begins at the same minute; leave the window out for the whole day",
            ));
        }
        Ok(Self { from_min, to_min, offset_min })
    }

    /// Whether it is open. Never, where nobody knows what time it is.
    #[must_use]
    pub fn is_open(&self, unix_ms: Option<u64>) -> bool {
        let Some(unix_ms) = unix_ms else { return false };
        self.since_opening_ms(unix_ms) < self.length_ms()
    }

    /// Milliseconds until it opens or, when it is open, closes.
    #[must_use]
    pub fn until_change_ms(&self, unix_ms: u64) -> u64 {
        let since = self.since_opening_ms(unix_ms);
        if since < self.length_ms() { self.length_ms() - since } else { DAY_MS - since }
    }

    fn length_ms(&self) -> u64 {
        let minutes = (i64::from(self.to_min) - i64::from(self.from_min)).rem_euclid(24 * 60);
        minutes as u64 * MINUTE_MS
    }

    fn since_opening_ms(&self, unix_ms: u64) -> u64 {
        let of_day = (unix_ms % DAY_MS) as i64;
        let opening = (i64::from(self.from_min) - i64::from(self.offset_min)) * MINUTE_MS as i64;
        (of_day - opening).rem_euclid(DAY_MS as i64) as u64
    }
}

/// Minutes of `HH:MM`, the hours at most `hours_max`.
fn minutes(text: &str, hours_max: u16) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str, max: u16| {
        let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|n| digits && *n <= max)
    };
    Some(number(hours, hours_max)? * 60 + number(minutes, 59)?)
}

impl TryFrom<Written> for Window {
    type Error = RolloutError;

    fn try_from(written: Written) -> Result<Self, RolloutError> {
        Self::new(&written.from, &written.to, &written.utc_offset)
    }
}

impl From<Window> for Written {
    fn from(window: Window) -> Self {
        let clock = |minutes: u16| format!("{:02}:{:02}", minutes / 60, minutes % 60);
        let sign = if window.offset_min < 0 { '-' } else { '+' };
        let utc_offset = format!("{sign}{}", clock(window.offset_min.unsigned_abs()));
        Self { from: clock(window.from_min), to: clock(window.to_min), utc_offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(hours: u64, minutes: u64) -> u64 {
        20_000 * DAY_MS + (hours * 60 + minutes) * MINUTE_MS
    }

    #[test]
    fn a_window_is_open_by_its_own_clock() {
        for (window, at, open, until_min) in [
            (("08:00", "10:00", "+00:00"), utc(8, 0), true, 120),
            (("08:00", "10:00", "+00:00"), utc(10, 0), false, 22 * 60),
            (("08:00", "10:00", "+02:00"), utc(6, 30), true, 90),
            (("22:00", "04:00", "+00:00"), utc(23, 0), true, 300),
            (("22:00", "04:00", "+00:00"), utc(3, 59), true, 1),
            (("22:00", "04:00", "+00:00"), utc(12, 0), false, 600),
            (("22:00", "04:00", "-05:30"), utc(3, 30), true, 360),
            (("00:00", "01:00", "+14:00"), utc(10, 15), true, 45),
        ] {
            let it = Window::new(window.0, window.1, window.2).unwrap();
            assert_eq!(it.is_open(Some(at)), open, "{window:?}");
            assert_eq!(it.until_change_ms(at), until_min * MINUTE_MS, "{window:?}");
            assert!(!it.is_open(None), "who doesn't know the time waits");
            let text = serde_json::to_string(&it).unwrap();
            assert_eq!(serde_json::from_str::<Window>(&text).unwrap(), it, "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for (from, to, offset) in [
            ("24:00", "01:00", "+00:00"),
            ("1:00", "02:00", "+00:00"),
            ("+1:00", "02:00", "+00:00"),
            ("01:60", "02:00", "+00:00"),
            ("01:00", "01:00", "+00:00"),
            ("01:00", "02:00", "02:00"),
            ("01:00", "02:00", "+15:00"),
            ("01:00", "02:00", ""),
            ("01:00", "02:00", "é1:00"),
        ] {
            assert!(Window::new(from, to, offset).is_err(), "{from} {to} {offset}");
        }
    }
}

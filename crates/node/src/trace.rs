//! Where a request stands in a trace, as W3C's Trace Context says it
//! (`traceparent`, version 00), and which requests are traced.

use std::fmt::Write;

/// A place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The trace; not zero.
    pub trace: u128,
    /// The span that whatever follows is part of; not zero.
    pub span: u64,
    /// Whether its spans are recorded.
    pub sampled: bool,
}

impl Place {
    /// Reads a `traceparent`; none where it is none. Versions to come begin as
    /// this one does.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version = hex(parts.next()?, 2)?;
        let (trace, span) = (hex(parts.next()?, 32)?, hex(parts.next()?, 16)?);
        let flags = hex(parts.next()?, 2)?;
        let more = parts.next().is_some();
        if version == 0xff || (version == 0 && more) || trace == 0 || span == 0 {
            return None;
        }
        Some(Self { trace, span: u64::try_from(span).ok()?, sampled: flags & 1 == 1 })
    }

    /// As [`Place::read`] reads it.
    #[must_use]
    pub fn written(self) -> String {
        let mut text = String::with_capacity(55);
        let _ = write!(text, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled));
        text
    }

    /// A span in the same trace.
    #[must_use]
    pub fn below(self, span: u64) -> Self {
        Self { span: span.max(1), ..self }
    }
}

/// Digits of that many, in lower case, as a number.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let fit = text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    u128::from_str_radix(text, 16).ok().filter(|_| fit)
}

/// Which requests are traced: those whose caller has them traced, and of those
/// that come without a place in a trace a share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling(u64);

impl Sampling {
    /// A share of requests, from 0 to 1.
    #[must_use]
    pub fn share(share: f64) -> Self {
        Self(if share >= 1.0 { u64::MAX } else { (share.max(0.0) * 2f64.powi(64)) as u64 })
    }

    /// The place of a request that came without one; `trace` and `span` are drawn
    /// at random. Nodes that draw the same share trace the same requests.
    #[must_use]
    pub fn begin(self, trace: u128, span: u64) -> Place {
        let trace = trace.max(1);
        let low = trace as u64;
        Place { trace, span: span.max(1), sampled: low < self.0 || self.0 == u64::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        // The example of the recommendation.
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let place = Place::read(text).unwrap();
        assert_eq!((place.trace, place.span), (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7));
        assert!(place.sampled);
        assert_eq!(place.written(), text);
        assert!(!Place::read(&text.replace("-01", "-00")).unwrap().sampled);
        assert!(Place::read(&text.replace("-01", "-03")).unwrap().sampled);
        assert!(Place::read(&text.replacen("00-", "01-", 1)).is_some());
        assert!(Place::read(&(text.replacen("00-", "01-", 1) + "-more")).is_some());
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-+0f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        ] {
            assert_eq!(Place::read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_share_of_requests_is_traced() {
        let mut rng = fastrand::Rng::with_seed(1);
        for share in [0.0, 0.1, 0.5, 1.0] {
            let sampling = Sampling::share(share);
            let traced = (0..10_000).filter(|_| sampling.begin(rng.u128(..), rng.u64(..)).sampled).count();
            assert!((traced as f64 - share * 10_000.0).abs() < 200.0, "{share}: {traced}");
        }
        assert!(Sampling::share(1.0).begin(u128::MAX, 0).sampled);
        assert!(!Sampling::share(f64::NAN).begin(0, 0).sampled);
    }
}

//! When a node renews its certificate: long before it ends, again and again
//! until it is done, and at once when it says a name that isn't the node's any
//! more.

use std::time::Duration;

use crate::Time;

/// How often it is looked at: a device that wakes for an hour a day renews. It
/// is looked at, not waited for: a clock may be set, and a device sleep.
pub const LOOK: Duration = Duration::from_secs(600);

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The node begins, or the time that [`Renewal::wake`] named has come; and
    /// whether the certificate has passed the part of its life after which it
    /// is renewed.
    Checked {
        /// Whether it has.
        due: bool,
    },
    /// The node has another name than its certificate says.
    Renamed,
    /// A renewal has ended.
    Ended {
        /// Whether there is a new certificate.
        renewed: bool,
    },
}

/// What the shell shall do: renew it; then [`Event::Ended`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renew;

/// The renewal of one certificate. The shell does one renewal at a time, and
/// tells what happened meanwhile behind it.
#[derive(Debug, Default)]
pub struct Renewal {
    /// The node was renamed, and the certificate hasn't been renewed since.
    renamed: bool,
    look_at: Time,
}

impl Renewal {
    /// One step.
    pub fn step(&mut self, now: Time, event: Event) -> Option<Renew> {
        let wanted = match event {
            Event::Checked { due } => {
                self.look_at = now + LOOK;
                due || self.renamed
            }
            Event::Renamed => {
                self.renamed = true;
                true
            }
            // There are weeks left to try again what failed.
            Event::Ended { renewed } => {
                self.renamed &= !renewed;
                false
            }
        };
        wanted.then_some(Renew)
    }

    /// When it wants to be told whether it is due.
    #[must_use]
    pub fn wake(&self) -> Time {
        self.look_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_again_when_it_is_looked_at() {
        let mut it = Renewal::default();
        let mut now = it.wake();
        assert_eq!(it.step(now, Event::Checked { due: false }), None);
        for _ in 0..3 {
            now = it.wake();
            assert_eq!(it.step(now, Event::Checked { due: true }), Some(Renew));
            assert_eq!(it.step(now, Event::Ended { renewed: false }), None, "not at once");
        }
        assert_eq!(it.wake(), now + LOOK);
        assert_eq!(it.step(it.wake(), Event::Checked { due: true }), Some(Renew));
        assert_eq!(it.step(now, Event::Ended { renewed: true }), None);
        assert_eq!(it.step(it.wake(), Event::Checked { due: false }), None);
    }

    #[test]
    fn a_name_is_certified_however_often_it_changes() {
        let (mut it, now) = (Renewal::default(), Time::ZERO);
        assert_eq!(it.step(now, Event::Renamed), Some(Renew));
        assert_eq!(it.step(now, Event::Ended { renewed: true }), None);
        assert_eq!(it.step(now, Event::Renamed), Some(Renew), "meanwhile: that one may say the name before");
        assert_eq!(it.step(now, Event::Ended { renewed: false }), None);
        assert_eq!(it.step(it.wake(), Event::Checked { due: false }), Some(Renew), "it isn't certified yet");
        assert_eq!(it.step(now, Event::Ended { renewed: true }), None);
        assert_eq!(it.step(it.wake(), Event::Checked { due: false }), None);
    }
}

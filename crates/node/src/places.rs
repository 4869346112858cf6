//! Who may hold how many of a node's connections.
//!
//! Places are few, and whoever is slow or silent must not keep the others
//! out: each holder (an address, or a member) has a share, and where a share
//! or the whole is used up, the place held longest by whoever holds most is
//! given to the newcomer. A place that is younger than a grace is left alone,
//! so that many who come at once don't push each other out; then the newcomer
//! has to come again. Some places are kept for holders that are known.
//!
//! Pure: told the time and who comes, says who goes. Start at [`Places`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::time::Time;

/// How many places there are, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// In all.
    pub total: usize,
    /// Of these, only for holders that are known.
    pub kept_for_known: usize,
    /// One holder's.
    pub each: usize,
    /// One known holder's.
    pub each_known: usize,
    /// A place is safe for so long.
    pub grace: Duration,
}

/// Names a place that somebody holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub u64);

/// What a newcomer gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A place.
    Enter(Place),
    /// A place that another has to leave.
    Instead {
        /// The newcomer's.
        place: Place,
        /// Taken away.
        of: Place,
    },
    /// None.
    Refused,
}

#[derive(Debug)]
struct Held<H> {
    holder: H,
    known: bool,
    since: Time,
}

/// Places and their holders.
///
/// Invariants: never more than the total is held; a holder never holds more
/// than its share; those that aren't known never hold what is kept.
#[derive(Debug)]
pub struct Places<H> {
    shares: Shares,
    /// By age: numbers only grow.
    held: BTreeMap<Place, Held<H>>,
    /// Places of each holder.
    counts: BTreeMap<H, usize>,
    unknown: usize,
    next: u64,
}

impl<H: Ord + Clone> Places<H> {
    /// All free.
    #[must_use]
    pub fn new(shares: Shares) -> Self {
        Self { shares, held: BTreeMap::new(), counts: BTreeMap::new(), unknown: 0, next: 0 }
    }

    /// Somebody comes.
    pub fn enter(&mut self, now: Time, holder: H, known: bool) -> Entry {
        let each = if known { self.shares.each_known } else { self.shares.each };
        let open = self.shares.total - self.shares.kept_for_known.min(self.shares.total);
        let own = self.count(&holder);
        let of = if own >= each {
            match self.oldest(now, |held| held.holder == holder) {
                Some(place) => Some(place),
                None => return Entry::Refused,
            }
        } else if self.held.len() >= self.shares.total || (!known && self.unknown >= open) {
            // Strangers make room for those who are known, never the other way about.
            let most = self.most();
            let crowds = |held: &Held<H>| !held.known && most.is_some_and(|most| self.count(&held.holder) >= most);
            let fallback = |held: &Held<H>| known && held.known && self.count(&held.holder) > own;
            match self.oldest(now, crowds).or_else(|| self.oldest(now, fallback)) {
                Some(place) => Some(place),
                None => return Entry::Refused,
            }
        } else {
            None
        };
        if let Some(of) = of {
            self.leave(of);
        }
        let place = Place(self.next);
        self.next += 1;
        *self.counts.entry(holder.clone()).or_insert(0) += 1;
        self.unknown += usize::from(!known);
        self.held.insert(place, Held { holder, known, since: now });
        of.map_or(Entry::Enter(place), |of| Entry::Instead { place, of })
    }

    /// Somebody goes; who has gone already doesn't matter.
    pub fn leave(&mut self, place: Place) {
        let Some(held) = self.held.remove(&place) else { return };
        self.unknown -= usize::from(!held.known);
        if let Some(count) = self.counts.get_mut(&held.holder) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&held.holder);
            }
        }
    }

    /// Places taken and who holds them, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &H)> {
        self.held.iter().map(|(place, held)| (*place, &held.holder))
    }

    /// Places taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether nobody is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    fn count(&self, holder: &H) -> usize {
        self.counts.get(holder).copied().unwrap_or(0)
    }

    /// The most places that one holder who isn't known has.
    fn most(&self) -> Option<usize> {
        self.held.values().filter(|held| !held.known).map(|held| self.count(&held.holder)).max()
    }

    /// The place held longest among those that `may` go, if its grace is over.
    fn oldest(&self, now: Time, may: impl Fn(&Held<H>) -> bool) -> Option<Place> {
        let (place, held) = self.held.iter().find(|(_, held)| may(held))?;
        (now.since(held.since) >= self.shares.grace).then_some(*place)
    }
}

/// Who answers for an address: one of IPv4, or the 64 bits of IPv6 that a
/// site or a subscriber has as its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network(IpAddr);

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(six) => {
                let [a, b, c, d, ..] = six.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            four => four,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARES: Shares =
        Shares { total: 6, kept_for_known: 2, each: 3, each_known: 4, grace: Duration::from_secs(2) };

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_holder_has_its_share_and_gives_up_its_own_oldest() {
        let mut places = Places::new(SHARES);
        for _ in 0..3 {
            assert!(matches!(places.enter(at(0), "a", false), Entry::Enter(_)));
        }
        assert_eq!(places.enter(at(1), "a", false), Entry::Refused, "they are all too young to go");
        assert_eq!(places.enter(at(2), "a", false), Entry::Instead { place: Place(3), of: Place(0) });
        assert!(matches!(places.enter(at(2), "b", false), Entry::Enter(_)), "others have their own");
    }

    #[test]
    fn who_holds_most_makes_room() {
        let mut places = Places::new(SHARES);
        assert!(matches!(places.enter(at(0), "b", false), Entry::Enter(_)));
        for _ in 0..3 {
            places.enter(at(1), "a", false);
        }
        // Four are open to strangers.
        assert_eq!(places.enter(at(9), "c", false), Entry::Instead { place: Place(4), of: Place(1) });
        // Two more only to those who are known.
        assert!(matches!(places.enter(at(9), "m", true), Entry::Enter(_)));
        assert!(matches!(places.enter(at(9), "m", true), Entry::Enter(_)));
        assert_eq!(places.enter(at(9), "n", true), Entry::Instead { place: Place(7), of: Place(2) });
        assert_eq!(places.len(), 6);
    }

    #[test]
    fn strangers_never_push_out_who_is_known() {
        let mut places = Places::new(SHARES);
        for holder in ["k", "l", "m"] {
            places.enter(at(0), holder, true);
            places.enter(at(0), holder, true);
        }
        assert_eq!(places.enter(at(99), "s", false), Entry::Refused);
        assert_eq!(places.enter(at(99), "n", true), Entry::Instead { place: Place(6), of: Place(0) });
        assert_eq!(places.iter().next(), Some((Place(1), &"k")));
        places.leave(Place(1));
        places.leave(Place(1));
        assert!(matches!(places.enter(at(99), "s", false), Entry::Enter(_)));
    }

    #[test]
    fn any_order_keeps_the_limits() {
        let mut rng = crate::Rng::with_seed(11);
        let mut places = Places::new(SHARES);
        for step in 0..20_000u64 {
            let holder = rng.u8(0..12);
            if rng.bool() {
                places.enter(at(step / 7), holder, holder < 4);
            } else {
                places.leave(Place(rng.u64(0..=places.next)));
            }
            assert!(places.len() <= SHARES.total);
            assert!(places.unknown <= SHARES.total - SHARES.kept_for_known);
            assert_eq!(places.counts.values().sum::<usize>(), places.len());
            assert!(places.counts.iter().all(|(h, n)| *n <= if *h < 4 { SHARES.each_known } else { SHARES.each }));
        }
    }

    #[test]
    fn one_subscriber_is_one_network() {
        let of = |text: &str| Network::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}

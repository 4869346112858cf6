//! Applications: who they are, which models they may use, how often.
//!
//! The list is the site's, signed by its authority, and the same on every
//! node; whoever isn't on it any more is nobody. Pure: told the time, and
//! whether a secret is the right one. Start at [`Known`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tierline_proto::Sound;
use tierline_proto::name;
use tierline_proto::v1;

use crate::rate::Allowance;

/// The applications of a site, as a node knows them.
#[derive(Debug, Default)]
pub struct Known {
    sequence: u64,
    signed_s: u64,
    by_id: HashMap<String, Arc<Application>>,
}

/// Why a caller is nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stranger {
    /// It shows nothing.
    Missing,
    /// What it shows is no identity of any site.
    Malformed,
    /// What it shows is none of this site, or none any more.
    Unknown,
    /// It was one; its time is over.
    Expired,
}

impl Known {
    /// The applications of a list.
    #[must_use]
    pub fn of(list: Sound<v1::Applications>) -> Self {
        let v1::Applications { sequence, signed_s, applications } = list.into_inner();
        let by_id = applications.into_iter().map(|of| (of.id.clone(), Arc::new(Application { of }))).collect();
        Self { sequence, signed_s, by_id }
    }

    /// Whether this list is to take the place of another one. The same list,
    /// signed again, tells a node the time.
    #[must_use]
    pub fn replaces(&self, other: &Self) -> bool {
        (self.sequence, self.signed_s) > (other.sequence, other.signed_s)
    }

    /// When it was signed, Unix time.
    #[must_use]
    pub fn signed_s(&self) -> u64 {
        self.signed_s
    }

    /// Grows with every change.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Application>> {
        self.by_id.values()
    }

    /// The application whose token is shown; `is_secret` says of a digest
    /// whether it is that of the token's secret.
    ///
    /// # Errors
    /// When there is none, none any more, or its time is over.
    pub fn by_token(
        &self,
        id: &str,
        now_s: u64,
        is_secret: impl Fn(&[u8]) -> bool,
    ) -> Result<&Arc<Application>, Stranger> {
        let application = self.by_id.get(id).ok_or(Stranger::Unknown)?;
        // Every digest is looked at, whichever fits.
        let fitting = application.of.tokens.iter().filter(|token| is_secret(&token.digest));
        let until_s = fitting.map(|token| token.not_after_s).max().ok_or(Stranger::Unknown)?;
        // The list can't have been signed later than now: a clock that was set back doesn't make good what is over.
        if now_s.max(self.signed_s) > until_s { Err(Stranger::Expired) } else { Ok(application) }
    }

    /// The application whose certificate is shown, which TLS found to be the
    /// site's; it counts until `not_after_s`.
    ///
    /// # Errors
    /// When it counts no more.
    pub fn by_certificate(&self, id: &str, not_after_s: u64, now_s: u64) -> Result<&Arc<Application>, Stranger> {
        let application = self.by_id.get(id).filter(|application| application.of.certificate);
        let application = application.ok_or(Stranger::Unknown)?;
        if now_s.max(self.signed_s) > not_after_s { Err(Stranger::Expired) } else { Ok(application) }
    }
}

/// One application.
#[derive(Debug)]
pub struct Application {
    of: v1::Application,
}

impl Application {
    /// Names it for good.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.of.id
    }

    /// For people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.of.name
    }

    /// What the list says of it.
    #[must_use]
    pub fn entry(&self) -> &v1::Application {
        &self.of
    }

    /// Whether it may use a model, or one that would be called so.
    #[must_use]
    pub fn may_use(&self, model: &str) -> bool {
        self.of.models.iter().any(|pattern| name::matches(pattern, model))
    }

    /// Whether it may look at dashboards.
    #[must_use]
    pub fn may_look(&self) -> bool {
        self.of.dashboard
    }

    /// How often it may ask one node; any number without.
    #[must_use]
    pub fn allowance(&self) -> Option<Allowance> {
        let rate = self.of.rate_per_s;
        (rate > 0.0).then(|| Allowance {
            burst: self.of.burst.max(1),
            // A rate too small for a time is as good as none at all.
            every: Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX).max(Duration::from_nanos(1)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    fn known(change: impl FnOnce(&mut v1::Application)) -> Known {
        let token = |digest: u8, not_after_s| v1::ApplicationToken { digest: vec![digest; 32].into(), not_after_s };
        let mut application = v1::Application {
            id: ID.into(),
            name: "shop".into(),
            tokens: vec![token(1, 100), token(2, 200)],
            models: vec!["detector*".into(), "reader".into()],
            ..v1::Application::default()
        };
        change(&mut application);
        let list = v1::Applications { sequence: 3, signed_s: 50, applications: vec![application] };
        Known::of(Sound::read(list).unwrap())
    }

    fn of(known: &Known, secret: u8, now_s: u64) -> Result<&str, Stranger> {
        known.by_token(ID, now_s, |digest| digest[0] == secret).map(|application| application.name())
    }

    #[test]
    fn a_token_counts_until_its_time_is_over() {
        let known = known(|_| {});
        assert_eq!([of(&known, 1, 100), of(&known, 2, 200)], [Ok("shop"); 2]);
        assert_eq!(of(&known, 1, 101), Err(Stranger::Expired));
        assert_eq!(of(&known, 3, 60), Err(Stranger::Unknown));
        let other = known.by_token("f", 60, |_| true).map(|_| ());
        assert_eq!(other, Err(Stranger::Unknown));
        assert_eq!(known.by_certificate(ID, 300, 60).map(|_| ()), Err(Stranger::Unknown), "it has no certificate");
    }

    #[test]
    fn a_clock_set_back_makes_nothing_good_again() {
        let mut known = known(|application| application.certificate = true);
        known.signed_s = 150;
        assert_eq!(of(&known, 1, 0), Err(Stranger::Expired));
        assert_eq!(of(&known, 2, 0), Ok("shop"));
        assert_eq!(known.by_certificate(ID, 149, 0).map(|_| ()), Err(Stranger::Expired));
        assert!(known.by_certificate(ID, 150, 0).is_ok());
    }

    #[test]
    fn it_may_use_what_its_patterns_stand_for() {
        let known = known(|_| {});
        let application = known.iter().next().unwrap();
        for (model, may) in
            [("detector", true), ("detector-2", true), ("reader", true), ("reader-2", false), ("", false)]
        {
            assert_eq!(application.may_use(model), may, "{model}");
        }
        assert!(!application.may_look() && application.allowance().is_none());
    }

    #[test]
    fn any_rate_is_an_allowance() {
        for (rate, every) in
            [(2.0, Duration::from_millis(500)), (1e-300, Duration::MAX), (1e6, Duration::from_micros(1))]
        {
            let known = known(|application| (application.rate_per_s, application.burst) = (rate, 0));
            let allowance = known.iter().next().unwrap().allowance().unwrap();
            assert_eq!((allowance.burst, allowance.every), (1, every), "{rate}");
            let mut bucket = crate::rate::Bucket::default();
            let now = crate::Time::from_ns(7);
            assert_eq!(bucket.take(now, allowance), Ok(()), "{rate}");
            assert!(bucket.take(now, allowance).is_err(), "{rate}");
        }
    }

    #[test]
    fn the_newest_list_counts() {
        let list = |sequence, signed_s| Known { sequence, signed_s, by_id: HashMap::new() };
        assert!(list(2, 10).replaces(&list(1, 20)));
        assert!(list(2, 11).replaces(&list(2, 10)));
        assert!(!list(2, 10).replaces(&list(2, 10)) && !list(1, 99).replaces(&list(2, 10)));
    }
}

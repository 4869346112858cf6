//! Who may ask nodes as an application.

use std::collections::HashSet;

use super::{Breach, Door, bytes, count, finite, id};
use crate::limits::{
    APPLICATION_MODELS_MAX, APPLICATION_TOKENS_MAX, APPLICATIONS_BYTES_MAX, APPLICATIONS_MAX, CERTIFICATE_BYTES_MAX,
    RATE_PER_S_MAX,
};
use crate::name::{self, NodeName};
use crate::v1::{Application, Applications, ApplicationsNews};

/// Bytes of a secret's digest.
const DIGEST_BYTES: u64 = 32;

impl Door for ApplicationsNews {
    fn check(&mut self) -> Result<(), Breach> {
        bytes("the list of applications", &self.list, APPLICATIONS_BYTES_MAX)?;
        bytes("a signature", &self.signature, CERTIFICATE_BYTES_MAX)
    }
}

impl Door for Applications {
    fn check(&mut self) -> Result<(), Breach> {
        count("applications", self.applications.len(), APPLICATIONS_MAX)?;
        self.applications.iter_mut().try_for_each(Door::check)?;
        let mut seen = HashSet::new();
        // With two of one name or identity, readers could disagree about who it is.
        let twice = self.applications.iter().find(|a| !seen.insert(a.id.as_str()) || !seen.insert(a.name.as_str()));
        match twice {
            Some(twice) => Err(Breach::Word { what: "another application is also called", text: twice.name.clone() }),
            None => Ok(()),
        }
    }
}

impl Door for Application {
    fn check(&mut self) -> Result<(), Breach> {
        id(&self.id)?;
        NodeName::new(&self.name)?;
        count("tokens of an application", self.tokens.len(), APPLICATION_TOKENS_MAX)?;
        for token in &mut self.tokens {
            if token.digest.len() as u64 != DIGEST_BYTES {
                let length = token.digest.len() as u64;
                return Err(Breach::Long { what: "a secret's digest", length, max: DIGEST_BYTES });
            }
            // Else it would keep the whole list alive that it came in.
            token.digest = bytes::Bytes::copy_from_slice(&token.digest);
        }
        count("models of an application", self.models.len(), APPLICATION_MODELS_MAX)?;
        for pattern in &self.models {
            name::check_pattern(pattern)?;
        }
        self.rate_per_s = finite("requests per second", self.rate_per_s)?.min(RATE_PER_S_MAX);
        self.burst = self.burst.min(RATE_PER_S_MAX as u32);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sound;
    use crate::v1::ApplicationToken;

    fn good() -> Application {
        Application {
            id: "0123456789abcdef0123456789abcdef".into(),
            name: "shop".into(),
            tokens: vec![ApplicationToken { digest: vec![7; 32].into(), not_after_s: 9 }],
            certificate: false,
            models: vec!["detector*".into()],
            dashboard: false,
            rate_per_s: 10.0,
            burst: 20,
            since_s: 1,
            certificate_not_after_s: 0,
        }
    }

    fn refused(change: impl FnOnce(&mut Application)) -> bool {
        let mut application = good();
        change(&mut application);
        Sound::read(Applications { applications: vec![application], ..Applications::default() }).is_err()
    }

    #[test]
    fn what_no_authority_signs_is_refused() {
        assert!(!refused(|_| {}));
        assert!(refused(|a| a.id = "..".into()));
        assert!(refused(|a| a.id.clear()));
        assert!(refused(|a| a.name = "Shop\r\nX: y".into()));
        assert!(refused(|a| a.tokens[0].digest = vec![7; 31].into()));
        assert!(refused(|a| a.tokens[0].digest = bytes::Bytes::new()));
        assert!(refused(|a| a.tokens = vec![a.tokens[0].clone(); APPLICATION_TOKENS_MAX + 1]));
        assert!(refused(|a| a.models = vec!["m".into(); APPLICATION_MODELS_MAX + 1]));
        assert!(refused(|a| a.models = vec!["\u{202e}".into()]));
        assert!(refused(|a| a.rate_per_s = f64::NAN));
        assert!(refused(|a| a.rate_per_s = -1.0));
        let list = |applications| Sound::read(Applications { applications, ..Applications::default() });
        assert!(list(vec![good(); 2]).is_err(), "one identity twice");
        let other = Application { id: "f".repeat(32), ..good() };
        assert!(list(vec![good(), other]).is_err(), "one name twice");
        let many = |n: usize| {
            (0..n).map(|i| Application { id: format!("{i:032x}"), name: format!("a{i}"), ..good() }).collect()
        };
        assert!(list(many(APPLICATIONS_MAX)).is_ok() && list(many(APPLICATIONS_MAX + 1)).is_err());
        let fast = Application { rate_per_s: 1e300, burst: u32::MAX, ..good() };
        assert_eq!(list(vec![fast]).unwrap().applications[0].rate_per_s, RATE_PER_S_MAX);
    }
}

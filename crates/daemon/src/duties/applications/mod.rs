//! Who may ask as an application: the cloud issues identities and takes them
//! back; every node below hears of it, and judges by itself who asks.
//!
//! What travels is the whole list, signed by the site's authority, so that no
//! node between makes an application. [`issue`] is the cloud's part.

mod issue;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tierline_identity::{Ca, is_signed_list};
use tierline_node::applications::Known;
use tierline_node::policy::{Roles, Rule};
use tierline_proto::envelope::APPLICATIONS;
use tierline_proto::v1::{AppListReply, Application, Applications, ApplicationsNews, Code, Envelope, Failure};
use tierline_proto::{Breach, Sound};
use tierline_store::State;
use tierline_store::applications;

use crate::net::Uplink;
use crate::runtime::Context;
use crate::runtime::duty::{Assembly, Duty, Registration};

/// The cloud signs its list anew so often, which tells nodes the time: one
/// whose clock was set back takes nothing for good that is over.
const SIGNED_ANEW: Duration = Duration::from_secs(3_600);

/// Its line in the registry.
pub const DUTY: Registration = Registration {
    name: APPLICATIONS,
    tables: applications::TABLES,
    rules: &[
        Rule::new("/tierline.v1.Local/AppCreate", Roles::OPERATOR, Roles::CLOUD),
        Rule::new("/tierline.v1.Local/AppToken", Roles::OPERATOR, Roles::CLOUD),
        Rule::new("/tierline.v1.Local/AppRevoke", Roles::OPERATOR, Roles::CLOUD),
        Rule::new("/tierline.v1.Local/AppList", Roles::OPERATOR, Roles::NODES),
    ],
    make: |assembly| {
        let identities = Identities::new(assembly);
        Box::new(assembly.add(identities))
    },
};

/// The duty.
pub struct Identities {
    cx: Context,
    /// Of the cloud.
    ca: Option<Arc<Ca>>,
    /// The list as it travels.
    signed: Mutex<ApplicationsNews>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

impl Identities {
    fn new(assembly: &Assembly) -> Arc<Self> {
        let (cx, ca) = (assembly.cx.clone(), assembly.find::<Ca>());
        Arc::new(Self { cx, ca, signed: Mutex::default(), changing: tokio::sync::Mutex::default() })
    }

    /// Applications as this node knows them, without what would help to be one.
    #[must_use]
    pub fn list(&self) -> AppListReply {
        let known = self.cx.applications.known();
        let shown = |entry: &Application| {
            let mut entry = entry.clone();
            entry.tokens.iter_mut().for_each(|token| token.digest = Bytes::new());
            entry
        };
        let mut applications: Vec<Application> = known.iter().map(|known| shown(known.entry())).collect();
        applications.sort_by(|a, b| a.name.cmp(&b.name));
        AppListReply { applications, signed_s: known.signed_s() }
    }

    /// Takes over a list, if it is newer; whether it is.
    ///
    /// # Errors
    /// When it isn't one, or not of this site's authority.
    fn take(&self, news: &ApplicationsNews) -> Result<bool, Breach> {
        if !is_signed_list(self.cx.me.identity().ca(), &news.list, &news.signature) {
            return Err(Breach::Missing("signature of the site's authority on the list of applications"));
        }
        let known = Known::of(Sound::<Applications>::decode(news.list.clone())?);
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = self.cx.applications.hear(known);
        if newer {
            signed.clone_from(news);
        }
        Ok(newer)
    }

    /// Takes over a list, keeps it, and passes it on.
    async fn hear(&self, news: &ApplicationsNews) -> Result<(), Breach> {
        if !self.take(news)? {
            return Ok(());
        }
        let (list, signature) = (news.list.clone(), news.signature.clone());
        if let Err(error) = self.cx.state.with(move |state| state.keep_applications(&list, &signature)).await {
            tracing::warn!(%error, "the list of applications holds until the next start only");
        }
        self.cx.children.tell_all(APPLICATIONS, news);
        Ok(())
    }

    fn signed(&self) -> ApplicationsNews {
        self.signed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[tonic::async_trait]
impl Duty for Arc<Identities> {
    async fn open(&self) -> Result<(), Failure> {
        if let Some((list, signature)) = self.cx.state.with(State::applications).await? {
            // Another site's, where the node has joined anew.
            if let Err(breach) = self.take(&ApplicationsNews { list: list.into(), signature: signature.into() }) {
                tracing::warn!(%breach, "the list of applications that was kept is of no use");
            }
        }
        Ok(())
    }

    async fn begin(&self) -> Result<(), Failure> {
        if self.ca.is_some() {
            self.cx.keep("applications", self, issue::keep_signed);
        }
        Ok(())
    }

    fn greetings(&self) -> Vec<Envelope> {
        let signed = self.signed();
        if signed.list.is_empty() { Vec::new() } else { vec![Envelope::new(APPLICATIONS, &signed)] }
    }

    fn numbers(&self, out: &mut String) {
        self.cx.applications.numbers(out);
    }

    async fn hear_parent(&self, _: &Arc<Uplink>, payload: Bytes) -> Result<(), Breach> {
        self.hear(&Sound::<ApplicationsNews>::decode(payload)?.into_inner()).await
    }
}

/// The failure of a message that breaks the protocol, which this node made.
fn internal(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::Internal, error.to_string())
}

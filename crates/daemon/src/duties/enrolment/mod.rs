//! Who is in, and who is out: tokens, joins, renewals, revocations. The cloud
//! signs; edges pass joins and renewals on; all of them hear who is out.

mod authority;
mod renewal;
mod service;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tierline_identity::Ca;
use tierline_node::policy::{Roles, Rule};
use tierline_proto::envelope::ENROLMENT;
use tierline_proto::v1::enrollment_server::EnrollmentServer;
use tierline_proto::v1::{
    Code, EnrolmentNews, Envelope, Failure, JoinReply, Names, NodeRenameRequest, NodeRevokeRequest, RenewRequest,
    Revocations, enrolment_news,
};
use tierline_proto::{Breach, Role, Sound};
use tierline_store::State;
use tierline_store::members::{self, NodeRow};
use tokio::sync::Notify;
use tonic::service::RoutesBuilder;

pub use self::authority::Authority;
pub use self::renewal::renewed;
use self::service::EnrollmentService;
use crate::net::Uplink;
use crate::net::door::Doors;
use crate::net::gate::Door;
use crate::runtime::Context;
use crate::runtime::duty::{Assembly, Duty, Registration};

/// A token, a request for a certificate, the certificate in use.
const ENROLLMENT_BYTES_MAX: usize = 64 << 10;

/// Its line in the registry. An edge passes enrolments on to the cloud, which
/// alone has the CA's key and the lists that go with it.
pub const DUTY: Registration = Registration {
    name: ENROLMENT,
    tables: members::TABLES,
    rules: &[
        Rule::new("/tierline.v1.Enrollment/Join", Roles::NODES, Roles::PARENTS).for_strangers(),
        Rule::new("/tierline.v1.Enrollment/Renew", Roles::NODES.and(Roles::OPERATOR), Roles::PARENTS),
        Rule::new("/tierline.v1.Local/TokenCreate", Roles::OPERATOR, Roles::CLOUD),
        Rule::new("/tierline.v1.Local/TokenList", Roles::OPERATOR, Roles::CLOUD),
        Rule::new("/tierline.v1.Local/TokenRevoke", Roles::OPERATOR, Roles::CLOUD),
        Rule::new("/tierline.v1.Local/NodeRevoke", Roles::OPERATOR, Roles::CLOUD),
        Rule::new("/tierline.v1.Local/NodeRename", Roles::OPERATOR, Roles::CLOUD),
    ],
    make: |assembly| {
        let enrolment = Enrolment::new(assembly);
        Box::new(assembly.add(enrolment))
    },
};

/// The duty.
pub struct Enrolment {
    cx: Context,
    /// Of the cloud.
    authority: Option<Authority>,
    doors: Arc<Doors>,
    /// Of others: nodes whose certificates don't say their newest names, as is
    /// told above.
    names: Mutex<Names>,
    /// Rings when this node has another name than its certificate says.
    renamed: Notify,
    /// For every door the same, since it counts who joins.
    service: Mutex<Option<EnrollmentService>>,
}

impl Enrolment {
    fn new(assembly: &Assembly) -> Arc<Self> {
        let cx = assembly.cx.clone();
        let authority = assembly.find::<Ca>().map(|ca| Authority::new(ca, &cx));
        Arc::new(Self {
            cx,
            authority,
            doors: assembly.get(),
            names: Mutex::default(),
            renamed: Notify::new(),
            service: Mutex::default(),
        })
    }

    /// The signing part, on the cloud.
    #[must_use]
    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    /// The signing part, or why it isn't here.
    ///
    /// # Errors
    /// On nodes that don't hold the CA.
    pub fn the_authority(&self) -> Result<&Authority, Failure> {
        self.authority.as_ref().ok_or_else(|| {
            let text = format!("{} does not hold the site's CA", self.cx.me.name());
            Failure::new(Code::Forbidden, text).with_help("ask the cloud node")
        })
    }

    /// Whether there may be a node of this identity, name and role: the cloud
    /// knows all that there are.
    #[must_use]
    pub fn may_exist(&self, id: &str, name: &str, role: Role) -> bool {
        self.authority.as_ref().is_none_or(|authority| authority.knows(id, name, role))
    }

    /// Shuts a node out, everywhere.
    ///
    /// # Errors
    /// Those of [`Authority::node_revoke`].
    pub async fn node_revoke(&self, request: &NodeRevokeRequest) -> Result<(), Failure> {
        let list = self.the_authority()?.node_revoke(self.cx.me.id(), request).await?;
        self.hear(&list).await;
        Ok(())
    }

    /// Signs a new key of a node that is in.
    ///
    /// # Errors
    /// Those of [`Authority::renew`].
    pub async fn renew(&self, request: &RenewRequest) -> Result<JoinReply, Failure> {
        let (reply, renamed) = self.the_authority()?.renew(request).await?;
        if renamed {
            self.tell_names();
        }
        Ok(reply)
    }

    /// Gives a node another name.
    ///
    /// # Errors
    /// Those of [`Authority::node_rename`].
    pub async fn node_rename(&self, request: &NodeRenameRequest) -> Result<(), Failure> {
        if self.the_authority()?.node_rename(self.cx.me.id(), request).await? {
            self.tell_names();
        }
        Ok(())
    }

    /// Shuts a node out that isn't yet, and forgets it.
    ///
    /// # Errors
    /// Those of [`Authority::revoke`], and of the store.
    pub async fn node_remove(&self, row: &NodeRow) -> Result<(), Failure> {
        let authority = self.the_authority()?;
        if !self.cx.revoked.has(&row.id) {
            let list = authority.revoke(self.cx.me.id(), row, "removed").await?;
            self.hear(&list).await;
        }
        authority.forget(row).await?;
        self.tell_names();
        Ok(())
    }

    /// Nodes with newer names than their certificates say, as this node knows
    /// them.
    fn names(&self) -> Names {
        match &self.authority {
            Some(authority) => authority.names(),
            None => self.names.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    fn tell_names(&self) {
        self.cx.children.tell_all(ENROLMENT, &news(enrolment_news::Body::Names(self.names())));
    }

    /// A parent tells of nodes with newer names: one that is meant itself gets
    /// a certificate of that name, and begins anew with it.
    fn hear_names(&self, names: Names) {
        let me = &self.cx.me;
        let meant = names.nodes.iter().any(|named| named.node_id == me.id() && named.name != me.name());
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
        self.tell_names();
        if meant {
            self.renamed.notify_one();
        }
    }

    /// Takes over a list of those that are out, if it is newer.
    async fn hear(&self, list: &Revocations) {
        let cx = &self.cx;
        if !cx.revoked.hear(list) {
            return;
        }
        let kept = list.clone();
        if let Err(error) = cx.state.with(move |state| state.keep_revocations(&kept)).await {
            tracing::warn!(%error, "the revocations hold until the next start only");
        }
        for revoked in &list.revoked {
            cx.children.revoke(&revoked.node_id);
            for uplink in cx.parents.iter() {
                uplink.leave_if(&revoked.node_id);
            }
        }
        cx.children.tell_all(ENROLMENT, &news(enrolment_news::Body::Revocations(list.clone())));
        self.shut_out(list);
    }

    /// Closes the connections of nodes that are out, once they could hear why.
    fn shut_out(&self, list: &Revocations) {
        /// Enough for a goodbye on a thin link.
        const LAST_WORDS: Duration = Duration::from_secs(3);
        let doors = Arc::clone(&self.doors);
        let out: HashSet<String> = list.revoked.iter().map(|revoked| revoked.node_id.clone()).collect();
        self.cx.tasks.spawn("last words", async move {
            tokio::time::sleep(LAST_WORDS).await;
            doors.shut(&out);
        });
    }
}

fn news(body: enrolment_news::Body) -> EnrolmentNews {
    EnrolmentNews { body: Some(body) }
}

#[tonic::async_trait]
impl Duty for Arc<Enrolment> {
    async fn open(&self) -> Result<(), Failure> {
        self.cx.revoked.hear(&self.cx.state.with(State::revocations).await?);
        match &self.authority {
            Some(authority) => authority.open().await,
            None => Ok(()),
        }
    }

    async fn begin(&self) -> Result<(), Failure> {
        self.cx.keep("renewal", self, renewal::keep);
        Ok(())
    }

    fn serve(&self, door: Door, routes: &mut RoutesBuilder) {
        if door != Door::Socket {
            let mut kept = self.service.lock().unwrap_or_else(PoisonError::into_inner);
            let service = kept.get_or_insert_with(|| EnrollmentService::new(Arc::clone(self))).clone();
            routes.add_service(EnrollmentServer::new(service).max_decoding_message_size(ENROLLMENT_BYTES_MAX));
        }
    }

    fn greetings(&self) -> Vec<Envelope> {
        let (out, names) = (self.cx.revoked.list(), self.names());
        [enrolment_news::Body::Revocations(out), enrolment_news::Body::Names(names)]
            .map(|body| Envelope::new(ENROLMENT, &news(body)))
            .into()
    }

    async fn hear_parent(&self, _: &Arc<Uplink>, payload: Bytes) -> Result<(), Breach> {
        match Sound::<EnrolmentNews>::decode(payload)?.into_inner().body {
            Some(enrolment_news::Body::Revocations(list)) => self.hear(&list).await,
            Some(enrolment_news::Body::Names(names)) => self.hear_names(names),
            None => {}
        }
        Ok(())
    }
}

//! Certificates are renewed by themselves, long before they end.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use tierline_identity::{Identity, KeyRequest};
use tierline_node::renewal::{Event, Renewal};
use tierline_proto::Sound;
use tierline_proto::v1::enrollment_client::EnrollmentClient;
use tierline_proto::v1::{Code, Failure};
use tonic::transport::Channel;

use super::Enrolment;
use crate::config::NodeConfig;
use crate::runtime::tasks::in_place;
use crate::runtime::wait_until;

/// Renews when the machine says so, until the node ends. A node that has another
/// name then begins anew with it.
pub async fn keep(enrolment: Arc<Enrolment>) {
    let cx = &enrolment.cx;
    let mut machine = Renewal::default();
    let checked = || Event::Checked { due: cx.me.identity().peer().renewal_due(SystemTime::now()) };
    let mut event = checked();
    loop {
        if machine.step(cx.clock.now(), event).is_none() {
            event = tokio::select! {
                () = enrolment.renamed.notified() => Event::Renamed,
                () = wait_until(Some(cx.clock.instant_of(machine.wake()))) => checked(),
            };
            continue;
        }
        let renewed = renew(&enrolment).await;
        match &renewed {
            Ok(()) => cx.events.record("node", "the certificate is renewed", &serde_json::json!({ "renewed": true })),
            Err(failure) => tracing::warn!(%failure, "the certificate could not be renewed yet"),
        }
        if renewed.is_ok() && cx.me.identity().peer().name != cx.me.name() {
            cx.end.begin_anew();
        }
        event = Event::Ended { renewed: renewed.is_ok() };
    }
}

/// Gets a certificate for a new key, keeps it, and uses it from now on.
///
/// # Errors
/// When the cloud can't be reached or refuses.
async fn renew(enrolment: &Enrolment) -> Result<(), Failure> {
    let me = &enrolment.cx.me;
    let current = me.identity();
    let renewed: Identity = match enrolment.authority() {
        Some(authority) => authority.renew_own(current.peer())?,
        None => renewed(&current, enrolment.cx.parents.first_connection()?.enrollment()).await?,
    };
    in_place(|| renewed.save(&me.config().data.join("identity"))).map_err(|e| internal(&e))?;
    if renewed.peer().name != me.name() {
        in_place(|| keep_name(&me.config().data, &renewed.peer().name));
    }
    me.live_identity().replace(renewed).map_err(|e| internal(&e))
}

/// The same identity with a certificate for a new key, from a node that signs
/// such or passes requests on. It is not kept anywhere yet.
///
/// # Errors
/// When the node refuses, or can't pass it on.
pub async fn renewed(current: &Identity, mut node: EnrollmentClient<Channel>) -> Result<Identity, Failure> {
    let key = KeyRequest::generate().map_err(|e| internal(&e))?;
    let request = current.renewal(&key).map_err(|e| internal(&e))?;
    let reply = node.renew(request).await.map_err(|s| Failure::from_status(&s))?.into_inner();
    let reply = Sound::read(reply)?;
    let chain = reply.certificate_chain.iter().map(|c| CertificateDer::from(c.to_vec())).collect();
    key.accept(chain, current.ca().clone(), SystemTime::now()).map_err(|e| internal(&e))
}

fn internal(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::Internal, error.to_string())
}

/// The configuration says the name that the certificate says, which counts.
fn keep_name(data: &std::path::Path, name: &str) {
    let kept = NodeConfig::load(data).and_then(|file| NodeConfig { name: name.to_owned(), ..file }.save());
    if let Err(failure) = kept {
        tracing::warn!(error = %failure.error, "the configuration still says the node's name of before");
    }
}

//! Certificates are renewed by themselves, long before they end.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use tierline_identity::{Identity, KeyRequest};
use tierline_proto::Sound;
use tierline_proto::v1::{Code, Failure};

use super::Node;
use super::tasks::in_place;
use crate::config::NodeConfig;

/// How often it is looked at: a device that wakes for an hour a day renews.
const LOOK: Duration = Duration::from_secs(600);

/// Renews when it is due, until the node ends.
pub async fn keep(node: Arc<Node>) {
    loop {
        let due = node.identity().peer().renewal_due(SystemTime::now());
        if due {
            match renew(&node).await {
                Ok(()) => {
                    node.events.record("node", "the certificate is renewed", &serde_json::json!({ "renewed": true }))
                }
                // There are weeks left to try again.
                Err(failure) => tracing::warn!(%failure, "the certificate could not be renewed yet"),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Gets a certificate for a new key, keeps it, and uses it from now on.
///
/// # Errors
/// When the cloud can't be reached or refuses.
pub async fn renew(node: &Arc<Node>) -> Result<(), Failure> {
    let internal = |e: &dyn std::fmt::Display| Failure::new(Code::Internal, e.to_string());
    let current = node.identity();
    let renewed: Identity = match node.authority() {
        Some(authority) => authority.renew_own(current.peer())?,
        None => {
            let key = KeyRequest::generate().map_err(|e| internal(&e))?;
            let request = current.renewal(&key).map_err(|e| internal(&e))?;
            let mut above = node.first_connection()?.enrollment();
            let reply = above.renew(request).await.map_err(|s| Failure::from_status(&s))?.into_inner();
            let reply = Sound::read(reply)?;
            let chain = reply.certificate_chain.iter().map(|c| CertificateDer::from(c.to_vec())).collect();
            key.accept(chain, current.ca().clone(), SystemTime::now()).map_err(|e| internal(&e))?
        }
    };
    in_place(|| renewed.save(&node.config().data.join("identity"))).map_err(|e| internal(&e))?;
    if renewed.peer().name != node.name() {
        in_place(|| keep_name(&node.config().data, &renewed.peer().name));
    }
    node.identity.replace(renewed).map_err(|e| internal(&e))
}

/// The configuration says the name that the certificate says, which counts.
fn keep_name(data: &std::path::Path, name: &str) {
    let kept = NodeConfig::load(data).and_then(|file| NodeConfig { name: name.to_owned(), ..file }.save());
    if let Err(failure) = kept {
        tracing::warn!(error = %failure.error, "the configuration still says the node's name of before");
    }
}

//! New devices: a token becomes a certificate. The cloud signs; an edge
//! passes the request on.

use std::sync::Arc;

use tierline_proto::v1::enrollment_server::Enrollment;
use tierline_proto::v1::{JoinReply, JoinRequest, RenewRequest};
use tonic::{Request, Response, Status};

use super::gate;
use crate::daemon::Node;

/// The service.
pub struct EnrollmentService(pub Arc<Node>);

#[tonic::async_trait]
impl Enrollment for EnrollmentService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let request = request.into_inner();
        let reply = match self.0.authority() {
            Some(authority) => authority.join(&self.0, &request)?,
            None => {
                let mut above = self.0.first_connection()?.enrollment();
                above.join(request).await?.into_inner()
            }
        };
        Ok(Response::new(reply))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<JoinReply>, Status> {
        let peer = gate::caller(&request)?;
        let request = request.into_inner();
        let reply = match self.0.authority() {
            Some(authority) => authority.renew(&self.0, &peer, &request)?,
            None => {
                // Renewal is bound to the caller's certificate, which an edge
                // can't present for it.
                return Err(tierline_proto::v1::Failure::new(
                    tierline_proto::v1::Code::Forbidden,
                    "an edge cannot renew certificates",
                )
                .with_help("renew directly at the cloud, or join again with a new token")
                .into());
            }
        };
        Ok(Response::new(reply))
    }
}

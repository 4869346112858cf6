//! New devices: a token becomes a certificate. The cloud signs; an edge
//! passes joins and renewals on.

use std::sync::Arc;

use tierline_proto::Sound;
use tierline_proto::v1::enrollment_server::Enrollment;
use tierline_proto::v1::{JoinReply, JoinRequest, RenewRequest};
use tonic::{Request, Response, Status};

use crate::daemon::Node;

/// The service.
pub struct EnrollmentService(pub Arc<Node>);

#[tonic::async_trait]
impl Enrollment for EnrollmentService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let request = Sound::read(request.into_inner())?.into_inner();
        let reply = match self.0.authority() {
            Some(authority) => authority.join(&self.0, &request).await?,
            None => {
                let mut above = self.0.first_connection()?.enrollment();
                above.join(request).await?.into_inner()
            }
        };
        Ok(Response::new(reply))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<JoinReply>, Status> {
        let request = Sound::read(request.into_inner())?.into_inner();
        let reply = match self.0.authority() {
            Some(authority) => authority.renew(&self.0, &request).await?,
            None => {
                let mut above = self.0.first_connection()?.enrollment();
                above.renew(request).await?.into_inner()
            }
        };
        Ok(Response::new(reply))
    }
}

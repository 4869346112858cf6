//! New devices: a token becomes a certificate. The cloud signs; an edge
//! passes joins and renewals on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tierline_node::places::Network;
use tierline_node::rate::{self, Allowance, RateLimiter};
use tierline_proto::Sound;
use tierline_proto::v1::enrollment_server::Enrollment;
use tierline_proto::v1::{Code, Failure, JoinReply, JoinRequest, RenewRequest};
use tonic::{Request, Response, Status};

use super::Enrolment;
use crate::net::door;

/// Joins that failed, of one address or through one edge: enough for a person
/// who mistypes and for a row of devices with an old token, too few to matter.
const FAILED: Allowance = Allowance { burst: 20, every: Duration::from_secs(3) };

/// Joins that went well, of all: a fleet is in within minutes, and a token
/// that leaked fills no disk at once.
const JOINED: Allowance = Allowance { burst: 256, every: Duration::from_millis(50) };

/// Who asks to join, as far as that can be told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// A device by itself.
    Network(Network),
    /// An edge, for a device below it.
    Node(String),
}

/// How many joined and failed to lately.
struct Joins {
    failed: RateLimiter<Source>,
    joined: RateLimiter<()>,
}

/// The service; clones share what they count.
#[derive(Clone)]
pub struct EnrollmentService {
    enrolment: Arc<Enrolment>,
    joins: Arc<Mutex<Joins>>,
}

impl EnrollmentService {
    /// The service of the duty.
    #[must_use]
    pub fn new(enrolment: Arc<Enrolment>) -> Self {
        Self {
            enrolment,
            joins: Arc::new(Mutex::new(Joins { failed: RateLimiter::new(FAILED), joined: RateLimiter::new(JOINED) })),
        }
    }

    fn joins(&self) -> MutexGuard<'_, Joins> {
        self.joins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a device in, here or above.
    async fn let_in(&self, source: Source, request: JoinRequest) -> Result<JoinReply, Failure> {
        let now = self.enrolment.cx.clock.now();
        let (late, busy) = {
            let joins = self.joins();
            (joins.failed.wait(now, &source), joins.joined.wait(now, &()))
        };
        if !busy.is_zero() {
            return Err(slow_down("many devices are joining", busy));
        }
        let reply = match self.enrolment.authority() {
            // A good token is taken also where others of the same address have none.
            Some(authority) => authority.join(&request).await,
            // The way up is thin: what fails again and again isn't passed on.
            None if !late.is_zero() => return Err(slow_down(FAILED_OFTEN, late)),
            None => match self.enrolment.cx.parents.first_connection() {
                Ok(above) => {
                    let reply = above.enrollment().join(request).await;
                    reply.map(Response::into_inner).map_err(|status| Failure::from_status(&status))
                }
                Err(failure) => Err(failure),
            },
        };
        match &reply {
            Ok(_) => self.joins().joined.count(now, ()),
            // What isn't the caller's fault isn't held against it.
            Err(failure) if failure.code().retryable() => {}
            Err(_) => {
                self.joins().failed.count(now, source);
                if !late.is_zero() {
                    return Err(slow_down(FAILED_OFTEN, late));
                }
            }
        }
        reply
    }
}

const FAILED_OFTEN: &str = "too many joins from this address failed";

fn slow_down(why: &str, wait: Duration) -> Failure {
    Failure::new(Code::Overloaded, format!("{why}; try again in {} s", rate::seconds(wait)))
}

#[tonic::async_trait]
impl Enrollment for EnrollmentService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let source = match request.extensions().get::<door::Caller>() {
            Some(door::Caller { peer: Some(peer), .. }) => Source::Node(peer.id.clone()),
            Some(caller) => Source::Network(caller.from),
            None => return Err(Failure::new(Code::Internal, "nobody knows who called").into()),
        };
        Ok(Response::new(self.let_in(source, Sound::read(request.into_inner())?.into_inner()).await?))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<JoinReply>, Status> {
        let request = Sound::read(request.into_inner())?.into_inner();
        let reply = match self.enrolment.authority() {
            Some(_) => self.enrolment.renew(&request).await?,
            None => {
                let mut above = self.enrolment.cx.parents.first_connection()?.enrollment();
                above.renew(request).await?.into_inner()
            }
        };
        Ok(Response::new(reply))
    }
}

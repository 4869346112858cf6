//! Talks to a node: the one on this device through its socket, another one
//! through mTLS with an operator's identity.

use std::path::Path;
use std::time::Duration;

use tierline_daemon::net::transport;
use tierline_daemon::{config, words};
use tierline_identity::Identity;
use tierline_proto::v1::local_client::LocalClient;
use tonic::transport::{Channel, Endpoint};

use super::Global;
use crate::output::{Exit, Failure, Outcome};

/// Time to reach a node that is there; a longer wait would only hide that it
/// isn't.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// Messages between a node and its operator carry plans and profiles whole.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Connects to `endpoint`, or to the node of the data folder.
pub async fn connect(global: &Global, endpoint: Option<&str>) -> Outcome<LocalClient<Channel>> {
    let data = global.data_folder();
    let channel = match endpoint {
        None => socket(&data.join(config::SOCKET)).await?,
        Some(url) if url.starts_with("unix:") => {
            socket(Path::new(url.trim_start_matches("unix:").trim_start_matches("//"))).await?
        }
        Some(url) => remote(url, &data).await?,
    };
    Ok(LocalClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

async fn socket(path: &Path) -> Outcome<Channel> {
    if !path.exists() {
        return Err(Failure::message(
            Exit::Unreachable,
            format!("no node runs on this device: {} is missing", path.display()),
        )
        .hint("start one with `tierline node --role cloud`, or name another with --endpoint URL or --data DIR"));
    }
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()))?.connect_timeout(CONNECT_TIME_MAX);
    endpoint.connect().await.map_err(|e| {
        Failure::message(
            Exit::Unreachable,
            format!("the node behind {} does not answer: {}", path.display(), words::chain(&e)),
        )
        .hint("is it still running? start it again with `tierline node`")
    })
}

async fn remote(url: &str, data: &Path) -> Outcome<Channel> {
    let identity = Identity::load(&data.join("identity"), std::time::SystemTime::now()).map_err(|e| {
        Failure::new(identity_exit(&e), e)
            .hint("a node answers operators only: `tierline token create --role operator` there, `tierline join URL --token-file FILE` here")
    })?;
    let endpoint = transport::endpoint(url, transport::client_tls(&identity))
        .map_err(|e| Failure::message(Exit::Usage, format!("--endpoint: {e}")))?;
    endpoint.connect().await.map_err(|e| {
        Failure::message(Exit::Unreachable, format!("cannot reach {url}: {}", words::chain(&e))).hint("tierline doctor")
    })
}

/// What it means that there is no usable identity.
fn identity_exit(error: &tierline_identity::IdentityError) -> Exit {
    match error {
        tierline_identity::IdentityError::NotJoined { .. } => Exit::Configuration,
        _ => Exit::Verification,
    }
}

/// A node's refusal as a failed command.
pub fn refused(status: &tonic::Status) -> Failure {
    use tonic::Code;
    let exit = match status.code() {
        Code::Unavailable => Exit::Unreachable,
        Code::DeadlineExceeded => Exit::Timeout,
        Code::InvalidArgument => Exit::Usage,
        Code::FailedPrecondition => Exit::Infeasible,
        Code::Unauthenticated | Code::PermissionDenied | Code::DataLoss => Exit::Verification,
        _ => Exit::Failure,
    };
    Failure::message(exit, status.message())
}

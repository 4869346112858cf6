//! Talks to a node: the one on this device through its socket, another one
//! through mTLS with an operator's identity.

use std::path::Path;
use std::time::{Duration, SystemTime};

use tierline_daemon::duties::enrolment;
use tierline_daemon::net::transport;
use tierline_daemon::{config, words};
use tierline_identity::Identity;
use tierline_proto::Role;
use tierline_proto::v1::enrollment_client::EnrollmentClient;
use tierline_proto::v1::local_client::LocalClient;
use tonic::transport::{Channel, Endpoint};

use super::Global;
use crate::output::{CommandError, CommandResult, ExitCode, Output};

/// Time to reach a node that is there; a longer wait would only hide that it
/// isn't.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// Time that a renewal may take from the command that it comes before.
const RENEWAL_TIME_MAX: Duration = Duration::from_secs(5);

/// Messages between a node and its operator carry plans and profiles whole.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Connects to `endpoint`, or to the node of the data folder.
pub async fn connect(global: &Global, endpoint: Option<&str>) -> CommandResult<LocalClient<Channel>> {
    let data = global.data_folder();
    let channel = match endpoint {
        None => socket(&data.join(config::SOCKET)).await?,
        Some(url) if url.starts_with("unix:") => {
            socket(Path::new(url.trim_start_matches("unix:").trim_start_matches("//"))).await?
        }
        Some(url) => remote(url, &data, global.output()).await?,
    };
    Ok(LocalClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

async fn socket(path: &Path) -> CommandResult<Channel> {
    if !path.exists() {
        return Err(CommandError::message(
            ExitCode::Unreachable,
            format!("no node runs on this device: {} is missing", path.display()),
        )
        .hint("start one with `tierline node --role cloud`, or name another with --endpoint URL or --data DIR"));
    }
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()))?.connect_timeout(CONNECT_TIME_MAX);
    endpoint.connect().await.map_err(|e| {
        CommandError::message(
            ExitCode::Unreachable,
            format!("the node behind {} does not answer: {}", path.display(), words::chain(&e)),
        )
        .hint("is it still running? start it again with `tierline node`")
    })
}

async fn remote(url: &str, data: &Path, output: Output) -> CommandResult<Channel> {
    let folder = data.join("identity");
    let identity = Identity::load(&folder, SystemTime::now()).map_err(|e| {
        CommandError::new(identity_exit(&e), e)
            .hint("a node answers operators only: `tierline token create --role operator` there, `tierline join URL --token-file FILE` here")
    })?;
    let peer = identity.peer();
    if SystemTime::now() > peer.not_after {
        // Nodes would only close the connection.
        let text = format!("the certificate of {} in {} has expired", peer.name, folder.display());
        return Err(CommandError::message(ExitCode::Verification, text)
            .hint("join again with a new token: `tierline token create` on the cloud, `tierline join` here"));
    }
    let endpoint = transport::endpoint(url, transport::client_tls(&identity))
        .map_err(|e| CommandError::message(ExitCode::Usage, format!("--endpoint: {e}")))?;
    let channel = endpoint.connect().await.map_err(|e| {
        CommandError::message(ExitCode::Unreachable, format!("cannot reach {url}: {}", words::chain(&e)))
            .hint("tierline doctor")
    })?;
    // Nodes renew their own while they run.
    if peer.role == Role::Operator && peer.renewal_due(SystemTime::now()) {
        output.say(renewal(&identity, channel.clone(), &folder).await);
    }
    Ok(channel)
}

/// Gets and keeps a new certificate for an operator, and says what came of it:
/// the command goes on with the one that there is.
async fn renewal(identity: &Identity, channel: Channel, folder: &Path) -> String {
    let renewed = async {
        let asked = enrolment::renewed(identity, EnrollmentClient::new(channel));
        let asked = tokio::time::timeout(RENEWAL_TIME_MAX, asked).await;
        let renewed = asked.map_err(|_| "the site's cloud doesn't answer".to_owned())?.map_err(|f| f.to_string())?;
        renewed.save(folder).map_err(|e| e.to_string())
    };
    let peer = identity.peer();
    match renewed.await {
        Ok(()) => format!("the certificate of {} is renewed", peer.name),
        Err(why) => {
            let left = peer.not_after.duration_since(SystemTime::now()).unwrap_or_default();
            let left = words::time(left.as_secs_f64());
            format!("warning: the certificate of {} ends in {left}, and could not be renewed yet: {why}", peer.name)
        }
    }
}

/// What it means that there is no usable identity.
fn identity_exit(error: &tierline_identity::IdentityError) -> ExitCode {
    match error {
        tierline_identity::IdentityError::NotJoined { .. } => ExitCode::Configuration,
        _ => ExitCode::Verification,
    }
}

/// A node's refusal as a failed command.
pub fn refused(status: &tonic::Status) -> CommandError {
    use tonic::Code;
    let exit = match status.code() {
        Code::Unavailable => ExitCode::Unreachable,
        Code::DeadlineExceeded => ExitCode::Timeout,
        Code::InvalidArgument => ExitCode::Usage,
        Code::FailedPrecondition => ExitCode::Infeasible,
        Code::Unauthenticated | Code::PermissionDenied | Code::DataLoss => ExitCode::Verification,
        _ => ExitCode::Failure,
    };
    CommandError::message(exit, status.message())
}

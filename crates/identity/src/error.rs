//! What can go wrong with identities, and what to do next.

use std::io;
use std::path::PathBuf;

/// Making, keeping or checking an identity failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file system refused.
    #[error("`{path}`: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A private key that others on this machine could read.
    #[error("`{path}` holds a private key but others may read it (mode {mode:03o}); run `chmod 600 {path}`", path = path.display())]
    KeyExposed {
        /// The key's file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file that is there but makes no sense.
    #[error("`{path}` is damaged: {reason}; restore it from a backup; without one, remove it and join again (a cloud's own can't be made again: its site would end)", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file of somebody else's that makes no sense.
    #[error("`{path}`: {reason}", path = path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No identity in the folder.
    #[error("no identity in `{folder}`; join first: `tierline join URL --token-file FILE`", folder = folder.display())]
    NotJoined {
        /// The folder searched.
        folder: PathBuf,
    },
    /// A name that can't stand in a certificate.
    #[error("`{name}` can't name a node: use 1 to 63 of a-z, 0-9 and `-`, not starting or ending with `-`")]
    BadName {
        /// The name.
        name: String,
    },
    /// A name that could be taken for another node's id.
    #[error(
        "`{name}` can't name a node: it looks like a node's id; use fewer or more than 32 digits, or another letter than a to f"
    )]
    NameLikeId {
        /// The name.
        name: String,
    },
    /// A signing request that can't be granted.
    #[error("the certificate request was refused: {reason}")]
    BadRequest {
        /// Why.
        reason: String,
    },
    /// What came back from the authority doesn't fit what was asked.
    #[error("the certificate received was refused: {reason}")]
    BadReply {
        /// Why.
        reason: String,
    },
    /// Text that is no join token; the text itself is not repeated.
    #[error("this is no join token: {reason}; copy it whole, as `tierline token create` printed it")]
    MalformedToken {
        /// What is missing.
        reason: &'static str,
    },
    /// The system's random numbers failed.
    #[error("the system gives no random numbers")]
    Random,
    /// The cryptographic library failed.
    #[error("cryptography failed: {0}")]
    Crypto(String),
}

impl IdentityError {
    pub(super) fn io(path: &std::path::Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

impl From<rcgen::Error> for IdentityError {
    fn from(error: rcgen::Error) -> Self {
        Self::Crypto(error.to_string())
    }
}

/// A connection that could not be secured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The other side's certificate was signed by somebody else.
    #[error("the other side's certificate is from another site (its authority is not ours)")]
    Foreign,
    /// The other side's certificate ended.
    #[error("the other side's certificate has expired; it must renew or join again (and check both clocks)")]
    Expired,
    /// The other side's certificate has not begun.
    #[error("the other side's certificate is not valid yet; this device's clock is probably behind")]
    NotYetValid,
    /// A valid certificate, but of a node that may not serve under that name.
    #[error("the other side's certificate doesn't allow it to serve as `{expected}`")]
    WrongServer {
        /// The name asked for.
        expected: String,
    },
    /// None of the certificates sent is the one the token names.
    #[error("the server is not the one that made this token: expected authority {expected}, it sent {presented}")]
    WrongFingerprint {
        /// From the token.
        expected: String,
        /// From the server, the authority's (last) certificate.
        presented: String,
    },
    /// The other side refused our certificate because it ended.
    #[error("the other side says that our certificate has expired; renew it, or join again with a new token")]
    OursExpired,
    /// The other side refused our certificate.
    #[error("the other side refused our certificate ({alert}); is this node joined to that site?")]
    OursRefused {
        /// The TLS alert.
        alert: String,
    },
    /// The other side insists on a certificate and we have none.
    #[error("the other side wants a certificate and this node has none; join first")]
    OursMissing,
    /// The other side doesn't speak TLS.
    #[error("the other side doesn't speak TLS; check address and port")]
    NotTls,
    /// No answer in time.
    #[error("`{address}` didn't answer within {seconds} s")]
    Timeout {
        /// Host and port.
        address: String,
        /// The limit.
        seconds: u64,
    },
    /// The network refused.
    #[error("`{address}`: {source}")]
    Network {
        /// Host and port.
        address: String,
        /// The system's words.
        source: io::Error,
    },
    /// Anything else TLS complains about.
    #[error("TLS failed: {0}")]
    Other(String),
}

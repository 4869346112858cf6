//! How a command ends, or the start of a node: an exit code per kind of
//! outcome, what failed and why, what to try next.

use tierline_proto::Code;
use tierline_proto::v1::Failure as WireFailure;

/// How a command ended, as its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something failed.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A configuration file or value is wrong.
    Configuration = 3,
    /// A node can't be reached.
    Unreachable = 4,
    /// No plan satisfies the limits.
    Infeasible = 5,
    /// A digest, signature or certificate doesn't verify.
    Verification = 6,
    /// The deadline passed.
    Timeout = 124,
    /// The user interrupted.
    Interrupted = 130,
}

/// A failed command: what and why, what to try next, and the exit code.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub exit: Exit,
    /// What failed and why.
    pub error: anyhow::Error,
    /// The next command to try.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure with this exit code.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into(), hint: None }
    }

    /// A failure described by a sentence.
    pub fn message(exit: Exit, text: impl std::fmt::Display) -> Self {
        Self { exit, error: anyhow::anyhow!("{text}"), hint: None }
    }

    /// What a node said.
    #[must_use]
    pub fn of(failure: &WireFailure) -> Self {
        let exit = match failure.code() {
            Code::InvalidInput => Exit::Usage,
            Code::Infeasible => Exit::Infeasible,
            Code::DeadlineExceeded => Exit::Timeout,
            Code::Unreachable | Code::Draining => Exit::Unreachable,
            Code::Unauthenticated | Code::Forbidden | Code::Corrupt => Exit::Verification,
            _ => Exit::Failure,
        };
        let node = if failure.node.is_empty() { String::new() } else { format!("{}: ", failure.node) };
        let out = Self::message(exit, format!("{node}{}", failure.message));
        if failure.help.is_empty() { out } else { out.hint(failure.help.clone()) }
    }

    /// The same failure with what to try next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(Exit::Failure, error)
    }
}

/// A command's outcome.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Attaches an exit code to any error.
pub trait ExitWith<T> {
    /// The error as a [`Failure`] with this exit code.
    ///
    /// # Errors
    /// The error itself.
    fn exit_with(self, exit: Exit) -> Outcome<T>;
}

impl<T, E: Into<anyhow::Error>> ExitWith<T> for Result<T, E> {
    fn exit_with(self, exit: Exit) -> Outcome<T> {
        self.map_err(|e| Failure::new(exit, e))
    }
}

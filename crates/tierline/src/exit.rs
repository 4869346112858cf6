//! How a command ends: with an exit code, what failed and why, and what to
//! try next.

use tierline_daemon::error::{ErrorKind, NodeError};
use tierline_proto::{Code, Failure};

/// How a command ended, as its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
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
    /// It was rolled back.
    RolledBack = 7,
    /// The deadline passed.
    Timeout = 124,
    /// The user interrupted.
    Interrupted = 130,
}

/// Why a command failed, what to try next, and the exit code.
#[derive(Debug)]
pub struct CommandError {
    /// With which the command ends.
    pub exit: ExitCode,
    /// What failed and why.
    pub error: anyhow::Error,
    /// The next command to try.
    pub hint: Option<String>,
}

impl CommandError {
    /// An error with this exit code.
    pub fn new(exit: ExitCode, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into(), hint: None }
    }

    /// One that a sentence describes.
    pub fn message(exit: ExitCode, text: impl std::fmt::Display) -> Self {
        Self { exit, error: anyhow::anyhow!("{text}"), hint: None }
    }

    /// What a node said.
    #[must_use]
    pub fn of(failure: &Failure) -> Self {
        NodeError::from(failure.clone()).into()
    }

    /// The same error with what to try next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<ErrorKind> for ExitCode {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Input | ErrorKind::Refused(Code::InvalidInput) => Self::Usage,
            ErrorKind::Configuration => Self::Configuration,
            ErrorKind::Verification | ErrorKind::Refused(Code::Unauthenticated | Code::Forbidden | Code::Corrupt) => {
                Self::Verification
            }
            ErrorKind::Refused(Code::Infeasible) => Self::Infeasible,
            ErrorKind::Refused(Code::DeadlineExceeded) => Self::Timeout,
            ErrorKind::Refused(Code::Unreachable | Code::Draining) => Self::Unreachable,
            _ => Self::Failure,
        }
    }
}

/// A node's error brings its kind and its hint, whichever way it came here.
impl<E: Into<anyhow::Error>> From<E> for CommandError {
    fn from(error: E) -> Self {
        let error = error.into();
        match error.downcast_ref::<NodeError>() {
            Some(of) => Self { exit: of.kind.into(), hint: of.hint.clone(), error },
            None => Self::new(ExitCode::Failure, error),
        }
    }
}

/// What a command gives, or why it fails.
pub type CommandResult<T = ()> = Result<T, CommandError>;

/// Attaches an exit code to any error.
pub trait ExitWith<T> {
    /// The error as a [`CommandError`] with this exit code.
    ///
    /// # Errors
    /// The error itself.
    fn exit_with(self, exit: ExitCode) -> CommandResult<T>;
}

impl<T, E: Into<anyhow::Error>> ExitWith<T> for Result<T, E> {
    fn exit_with(self, exit: ExitCode) -> CommandResult<T> {
        self.map_err(|e| CommandError::new(exit, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_node_s_error_brings_its_exit_code_and_its_hint_whichever_way_it_comes() {
        let wrong = || NodeError::message(ErrorKind::Configuration, "no such key").hint("look again");
        let ways: [CommandError; 3] = [
            wrong().into(),
            anyhow::Error::from(wrong()).into(),
            Err::<(), _>(wrong()).context("at the start").unwrap_err().into(),
        ];
        for error in &ways {
            assert_eq!((error.exit, error.hint.as_deref()), (ExitCode::Configuration, Some("look again")));
        }
        assert_eq!(ways.each_ref().map(|e| e.error.to_string()), ["no such key", "no such key", "at the start"]);
    }

    #[test]
    fn what_nodes_refuse_is_told_apart_by_exit_codes() {
        let exit = |code| CommandError::of(&Failure::new(code, "no")).exit as u8;
        let codes = [Code::InvalidInput, Code::Unreachable, Code::Infeasible, Code::Corrupt, Code::DeadlineExceeded];
        assert_eq!(codes.map(exit), [2, 4, 5, 6, 124]);
        assert_eq!([Code::Internal, Code::NotFound].map(exit), [1, 1]);
        let far = Failure::new(Code::Infeasible, "it does not fit").with_help("smaller").at("edge-1");
        let error = CommandError::of(&far);
        assert_eq!(
            (error.error.to_string().as_str(), error.hint.as_deref()),
            ("edge-1: it does not fit", Some("smaller"))
        );
    }
}

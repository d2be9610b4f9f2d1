//! Why a command failed.

use std::io;
use std::path::PathBuf;

use limosa_api::Problem;
use limosa_api::client::CallError;
use limosa_api::tls::TlsError;
use limosa_model::{Failure, FailureKind, Outcome, TaskId};

use crate::exit;

/// Why a command failed. [`crate::render::error`] tells it.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The server said no.
    #[error(transparent)]
    Refused(Box<Problem>),
    /// The server could not be asked.
    #[error(transparent)]
    Call(CallError),
    /// A task did not do what was asked.
    #[error("{failure}")]
    Failed {
        /// What was being done, as in `migrate web`.
        doing: String,
        /// Why it failed.
        failure: Failure,
        /// Where the VM is, where one is concerned and that is known.
        outcome: Option<Outcome>,
    },
    /// Something failed, and has been told already.
    #[error("it failed, as told above")]
    Told {
        /// The exit code of what failed first.
        code: u8,
    },
    /// The user stopped looking.
    #[error("nobody looks any more; what was begun goes on")]
    Interrupted {
        /// The tasks that go on.
        tasks: Vec<TaskId>,
    },
    /// The command line or a file that it names makes no sense.
    #[error("{what}")]
    Invalid {
        /// What is wrong.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// A file could not be read or written.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// What was being done with it.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A certificate or key is not what it should be.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The terminal, or another stream, broke.
    #[error("cannot {doing}: {source}")]
    Stream {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A daemon could not start, or had to end.
    #[error("the {daemon} ended: {source}")]
    Daemon {
        /// Which one.
        daemon: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl CliError {
    /// An error in what the user asked for.
    pub fn invalid(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), remedy: remedy.into() }
    }

    /// The code with which the command ends.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(problem) => exit::code(problem.code),
            Self::Call(CallError::Refused(problem)) => exit::code(problem.code),
            Self::Call(_) => exit::UNREACHABLE,
            Self::Failed { failure, .. } => exit::code(failure.kind),
            Self::Told { code } => *code,
            Self::Interrupted { .. } => exit::INTERRUPTED,
            Self::Invalid { .. } => exit::code(FailureKind::Invalid),
            Self::File { .. } | Self::Tls(_) | Self::Stream { .. } | Self::Daemon { .. } => exit::LOCAL,
        }
    }
}

impl From<CallError> for CliError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(problem) => Self::Refused(problem),
            error => Self::Call(error),
        }
    }
}

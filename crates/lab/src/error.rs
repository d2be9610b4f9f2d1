//! Why the lab could not do something, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use limosa_cli::error::CliError;

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the lab could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call or a file operation failed.
    #[error("{doing}")]
    Io {
        /// What was being done, and with which object.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program that the lab uses failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: String,
        /// What it said, shortened.
        stderr: String,
    },
    /// A name is not one that the lab can carry.
    #[error("`{text}` is not a {what}: {why}")]
    Invalid {
        /// What was expected.
        what: &'static str,
        /// What was given, shortened.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No lab of that name is up.
    #[error("the lab `{name}` is not up: start it with `limosa-lab up --name {name}`")]
    NotUp {
        /// The lab's name.
        name: String,
    },
    /// The lab is up, but has no such host.
    #[error(
        "the lab `{name}` has no {room}: it has {hosts} hosts, h1 to h{hosts}, and switch, server, client"
    )]
    NoSuchRoom {
        /// The lab's name.
        name: String,
        /// The room that was asked for.
        room: String,
        /// How many hosts there are.
        hosts: u8,
    },
    /// A process cannot be moved into a namespace once it has threads.
    #[error(
        "this process has {threads} threads; it can only move into a namespace before it starts the second"
    )]
    TooManyThreads {
        /// How many there are.
        threads: usize,
    },
    /// Something that is built or fetched for the lab is not as expected.
    #[error("{what}; {remedy}")]
    Asset {
        /// What is wrong.
        what: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A guest, an emulator or QEMU gave an answer that is none.
    #[error("{peer} answered `{answer}`: {why}")]
    Answer {
        /// Who answered.
        peer: String,
        /// The answer, shortened.
        answer: String,
        /// What is wrong with it.
        why: String,
    },
    /// A cluster did not do what it was asked.
    #[error("{doing}")]
    Cluster {
        /// What was being done.
        doing: String,
        /// What it said.
        source: Box<CliError>,
    },
    /// What was waited for did not happen in time.
    #[error("{what} did not happen within {limit:?}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
}

impl Error {
    /// The error and what caused it, as one line. (`Display` alone leaves the cause to
    /// [`source`](std::error::Error::source).)
    pub fn with_cause(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }

    /// For `map_err`: an I/O error while something was being done.
    pub(crate) fn io<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source: source.into() }
    }

    /// For `map_err`: an I/O error with a file.
    pub(crate) fn path<'a, E: Into<io::Error>>(
        verb: &'static str,
        path: impl AsRef<Path> + 'a,
    ) -> impl FnOnce(E) -> Self + 'a {
        move |source| {
            let path: PathBuf = path.as_ref().to_path_buf();
            Self::Io { doing: format!("{verb} {}", path.display()), source: source.into() }
        }
    }

    pub(crate) fn answer(peer: impl Into<String>, answer: &str, why: impl ToString) -> Self {
        Self::Answer { peer: peer.into(), answer: shortened(answer), why: why.to_string() }
    }

    pub(crate) fn invalid(what: &'static str, text: &str, why: &'static str) -> Self {
        Self::Invalid { what, text: shortened(text), why }
    }
}

/// At most 200 characters: what comes from outside does not flood an error message.
pub(crate) fn shortened(text: &str) -> String {
    text.trim().chars().take(200).collect()
}

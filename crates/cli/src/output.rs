//! Where results go: the standard output, as text or as JSON.

use std::io::{self, Write as _};

use serde::Serialize;

use crate::args::Format;
use crate::error::CliError;
use crate::render::{Account, plain};

/// Prints results in one format.
#[derive(Debug, Clone, Copy, Default)]
pub struct Output {
    format: Format,
}

impl Output {
    /// Prints in this format.
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether programs read it.
    pub fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// One result: the object for programs, `text` of it for people.
    ///
    /// # Errors
    /// [`CliError::Stream`] if nobody reads any more.
    pub fn show<T: Serialize>(self, result: &T, text: impl FnOnce(&T) -> String) -> Result<(), CliError> {
        match self.format {
            Format::Text => self.write(&plain(&text(result))),
            Format::Json => self.write(&json(serde_json::to_string_pretty(result))),
        }
    }

    /// One of many results: one line for programs.
    ///
    /// # Errors
    /// [`CliError::Stream`] if nobody reads any more.
    pub fn item<T: Serialize>(self, result: &T, text: impl FnOnce(&T) -> String) -> Result<(), CliError> {
        match self.format {
            Format::Text => self.write(&plain(&text(result))),
            Format::Json => self.write(&json(serde_json::to_string(result))),
        }
    }

    /// Words for people; nothing for programs.
    ///
    /// # Errors
    /// [`CliError::Stream`] if nobody reads any more.
    pub fn say(self, text: &str) -> Result<(), CliError> {
        if self.is_json() { Ok(()) } else { self.write(&plain(text)) }
    }

    /// A failure, on the standard error stream. Nothing where all has been told.
    pub fn fail(self, error: &CliError) {
        let told = Account::of(error).map(|account| match self.format {
            Format::Text => account.paragraph(),
            Format::Json => json(serde_json::to_string(&account)),
        });
        if let Some(told) = told {
            eprintln!("{told}");
        }
    }

    fn write(self, text: &str) -> Result<(), CliError> {
        let newline = if text.ends_with('\n') { "" } else { "\n" };
        let mut stdout = io::stdout().lock();
        write!(stdout, "{text}{newline}")
            .and_then(|()| stdout.flush())
            .map_err(|source| CliError::Stream { doing: "print", source })
    }
}

fn json(written: serde_json::Result<String>) -> String {
    written.expect("the API's objects have nothing that JSON has not")
}

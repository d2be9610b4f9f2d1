//! PEM files that are there whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::TlsError;

/// Longest PEM file that is read, in bytes.
const LIMIT_BYTES: u64 = 64 * 1024;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrecy {
    /// Everybody.
    Public,
    /// Its owner alone.
    Secret,
}

pub(super) fn read(path: &Path) -> Result<String, TlsError> {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        File::open(path)?.take(LIMIT_BYTES + 1).read_to_string(&mut text)?;
        if text.len() as u64 > LIMIT_BYTES {
            return Err(io::Error::other(format!("it is longer than {LIMIT_BYTES} bytes")));
        }
        Ok(text)
    };
    read().map_err(|source| TlsError::File { what: "read", path: path.to_owned(), source })
}

/// Replaces the file at once: a crash leaves the old content or the new one. Durable when it returns.
pub(super) fn write(path: &Path, text: &str, secrecy: Secrecy) -> Result<(), TlsError> {
    let write = || -> io::Result<()> {
        let name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
        let mut temporary = name.to_owned();
        temporary.push(".new");
        let temporary = path.with_file_name(temporary);
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mode = if secrecy == Secrecy::Secret { 0o600 } else { 0o644 };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| TlsError::File { what: "write", path: path.to_owned(), source })
}

//! The file of keyed values.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use limosa_model::JournalId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::frame::{self, Key};
use crate::medium::Medium;

const MAGIC: &[u8; 8] = b"LIMOSAJ1";
const START: u64 = 8 + 32;

/// The file grows by this much at a time, in bytes.
const STRETCH: u64 = 1 << 20;

/// The file is written anew when it is longer than this and less than half of it counts, in bytes.
const TIDY_ABOVE: u64 = 4 << 20;

/// What can go wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system failed.
    #[error(
        "the journal {path} cannot be {doing}: {source}; free some space or repair the disk, nothing was changed"
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The file is damaged in its middle, or not a journal.
    #[error(
        "the journal {path} is damaged ({what}); move it aside to begin a new one: the VMs that run are adopted, and migrations under way are asked for at the server"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and how.
        what: String,
    },
    /// A value that cannot be stored.
    #[error("the value for {key} cannot be stored: {why}")]
    Value {
        /// The key.
        key: String,
        /// Why not.
        why: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Body<'k> {
    key: std::borrow::Cow<'k, str>,
    value: Option<Value>,
}

/// A file of keyed values, the latest of each key counting.
pub struct Journal {
    medium: Box<dyn Medium>,
    path: PathBuf,
    key: Key,
    values: BTreeMap<String, Value>,
    /// Where the next record goes.
    end: u64,
    number: u64,
    live: u64,
    fresh: bool,
    /// The file was written anew, and its name may not be on stable storage yet: no sync counts before it is.
    folder_unsynced: bool,
}

impl Journal {
    /// Opens the journal at `path`, or begins one there. The folder must exist.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let fail = |doing| move |source| JournalError::Io { path: path.to_owned(), doing, source };
        if !path.try_exists().map_err(fail("looked for"))? {
            Self::begin(path, &BTreeMap::new(), JournalId::new()).map_err(fail("begun"))?;
            sync_folder(path).map_err(fail("begun"))?;
            let mut journal = Self::read(path)?;
            journal.fresh = true;
            return Ok(journal);
        }
        Self::read(path)
    }

    fn read(path: &Path) -> Result<Self, JournalError> {
        let fail = |doing| move |source| JournalError::Io { path: path.to_owned(), doing, source };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(fail("opened"))?;
        Self::over(Box::new(file), path)
    }

    /// Opens the journal that lies on `medium`; `path` is for messages, and for writing it anew.
    pub fn over(medium: Box<dyn Medium>, path: &Path) -> Result<Self, JournalError> {
        let fail = |source| JournalError::Io { path: path.to_owned(), doing: "read", source };
        let damaged = |what: String| JournalError::Damaged { path: path.to_owned(), what };
        let bytes = medium.read_from(0).map_err(fail)?;
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(damaged("it is cut short".into()))?;
        let (key, records) = rest.split_first_chunk::<32>().ok_or(damaged("it is cut short".into()))?;
        if magic != MAGIC {
            return Err(damaged("it does not begin as a journal does".into()));
        }
        let mut journal = Self {
            medium,
            path: path.to_owned(),
            key: *key,
            values: BTreeMap::new(),
            end: START,
            number: 0,
            live: 0,
            fresh: false,
            folder_unsynced: false,
        };
        let mut rest = records;
        while let Some((number, body)) = frame::decode(&journal.key, rest) {
            if number != journal.number {
                break;
            }
            let body_len = body.len();
            let body: Body<'_> = serde_json::from_slice(body)
                .map_err(|error| damaged(format!("record {number} is not understood: {error}")))?;
            journal.keep(body.key.into_owned(), body.value);
            journal.number += 1;
            journal.end += (frame::HEAD + body_len) as u64;
            rest = &rest[frame::HEAD + body_len..];
        }
        journal.check_tail(rest).map_err(damaged)?;
        Ok(journal)
    }

    /// Behind the first record that is not whole there must be no later one that is.
    fn check_tail(&self, tail: &[u8]) -> Result<(), String> {
        let tail = &tail[..tail.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)];
        for at in 1..tail.len().saturating_sub(frame::HEAD) {
            if tail[at..at + 4] == [0; 4] {
                continue;
            }
            if let Some((number, _)) = frame::decode(&self.key, &tail[at..])
                && number > self.number
            {
                return Err(format!("record {} is broken and record {number} follows it", self.number));
            }
        }
        Ok(())
    }

    /// Writes a new journal with these values beside `path`, then puts it in its place. When this returns, the file at
    /// `path` is the new one; that it stays so when the host loses power takes [`sync_folder`].
    fn begin(path: &Path, values: &BTreeMap<String, Value>, id: JournalId) -> io::Result<Begun> {
        let beside = path.with_extension("new");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        let key = *blake3::hash(format!("{id}{}", JournalId::new()).as_bytes()).as_bytes();
        let mut bytes = Vec::from(MAGIC);
        bytes.extend_from_slice(&key);
        let identity = Value::String(id.to_string());
        let first = std::iter::once((ID_KEY, &identity));
        let others = values.iter().map(|(k, v)| (k.as_str(), v)).filter(|(k, _)| *k != ID_KEY);
        let mut number = 0;
        for (k, value) in first.chain(others) {
            let body = serde_json::to_vec(&Body { key: k.into(), value: Some(value.clone()) })?;
            bytes.extend_from_slice(&frame::encode(&key, number, &body));
            number += 1;
        }
        let end = bytes.len() as u64;
        Medium::set_aside(&file, end + STRETCH)?;
        Medium::write_at(&file, &bytes, 0)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        Ok(Begun { file, key, end, number })
    }

    /// Which journal this is.
    pub fn id(&self) -> Result<JournalId, JournalError> {
        let text = self.get::<String>(ID_KEY)?.unwrap_or_default();
        text.parse().map_err(|_| JournalError::Damaged {
            path: self.path.clone(),
            what: "it does not say which journal it is".into(),
        })
    }

    /// Whether it was begun by this opening.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The latest value of a key.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, JournalError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        T::deserialize(value).map(Some).map_err(|error| JournalError::Damaged {
            path: self.path.clone(),
            what: format!("the value of {key} is not understood: {error}"),
        })
    }

    /// The latest values of all keys that begin with `prefix`, with what follows it.
    pub fn list<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, T)>, JournalError> {
        let keys: Vec<_> = self
            .values
            .range(prefix.to_owned()..)
            .map(|(k, _)| k)
            .take_while(|k| k.starts_with(prefix))
            .collect();
        let mut found = Vec::new();
        for key in keys {
            if let Some(value) = self.get(key)? {
                found.push((key[prefix.len()..].to_owned(), value));
            }
        }
        Ok(found)
    }

    /// Stores a value so that it survives the death of this process.
    pub fn put<T: Serialize>(&mut self, key: &str, value: &T) -> Result<(), JournalError> {
        let value = serde_json::to_value(value)
            .map_err(|error| JournalError::Value { key: key.to_owned(), why: error.to_string() })?;
        self.append(key, Some(value), false)
    }

    /// Stores a value, and returns once it survives the death of the host, with all that was stored before it.
    pub fn put_synced<T: Serialize>(&mut self, key: &str, value: &T) -> Result<(), JournalError> {
        let value = serde_json::to_value(value)
            .map_err(|error| JournalError::Value { key: key.to_owned(), why: error.to_string() })?;
        self.append(key, Some(value), true)
    }

    /// Forgets a key.
    pub fn remove(&mut self, key: &str) -> Result<(), JournalError> {
        if !self.values.contains_key(key) {
            return Ok(());
        }
        self.append(key, None, false)
    }

    /// Takes the space for `bytes` more from the disk, so that they can be stored when it is full.
    pub fn set_aside(&mut self, bytes: u64) -> Result<(), JournalError> {
        self.medium.set_aside(self.end + bytes).map_err(|source| self.failed("made room in", source))
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> JournalError {
        JournalError::Io { path: self.path.clone(), doing, source }
    }

    fn append(&mut self, key: &str, value: Option<Value>, sync: bool) -> Result<(), JournalError> {
        let refuse = |why: String| JournalError::Value { key: key.to_owned(), why };
        let body = serde_json::to_vec(&Body { key: key.into(), value: value.clone() })
            .map_err(|error| refuse(error.to_string()))?;
        if body.len() > frame::BODY_MAX {
            return Err(refuse(format!("{} bytes are more than {}", body.len(), frame::BODY_MAX)));
        }
        let record = frame::encode(&self.key, self.number, &body);
        let end = self.end + record.len() as u64;
        let len = self.medium.size().map_err(|source| self.failed("measured", source))?;
        if end + frame::HEAD as u64 > len {
            // Where no room can be made, the record is tried all the same: it may fit the block that is there.
            if let Err(error) = self.medium.set_aside(end + STRETCH) {
                tracing::warn!(%error, journal = %self.path.display(), "no space could be set aside");
            }
        }
        self.medium.write_at(&record, self.end).map_err(|source| self.failed("written", source))?;
        if sync && self.folder_unsynced {
            sync_folder(&self.path).map_err(|source| self.failed("synced", source))?;
            self.folder_unsynced = false;
        }
        if sync {
            // A failed sync may have dropped the bytes: the next append writes them, or others, to the same place.
            self.medium.sync().map_err(|source| self.failed("synced", source))?;
        }
        self.end = end;
        self.number += 1;
        self.keep(key.to_owned(), value);
        if self.end > TIDY_ABOVE && self.live * 2 < self.end {
            self.tidy();
        }
        Ok(())
    }

    fn keep(&mut self, key: String, value: Option<Value>) {
        let size = |key: &str, value: &Value| (key.len() + value.to_string().len() + frame::HEAD + 24) as u64;
        let before = match &value {
            Some(value) => {
                self.live += size(&key, value);
                self.values.insert(key.clone(), value.clone())
            }
            None => self.values.remove(&key),
        };
        if let Some(before) = before {
            self.live = self.live.saturating_sub(size(&key, &before));
        }
    }

    /// Writes the file anew with only what counts. Where that fails, the old one goes on; once the new one is in its
    /// place, there is no old one to go on with, whatever fails then.
    fn tidy(&mut self) {
        let anew = || -> Result<Begun, JournalError> {
            Self::begin(&self.path, &self.values, self.id()?)
                .map_err(|source| self.failed("written anew", source))
        };
        match anew() {
            Ok(Begun { file, key, end, number }) => {
                (self.medium, self.key, self.end, self.number) = (Box::new(file), key, end, number);
                self.live = end;
                self.folder_unsynced = true;
            }
            Err(error) => tracing::warn!(%error, "the journal stays as it is"),
        }
    }
}

/// A file that has just been begun.
struct Begun {
    file: File,
    key: Key,
    end: u64,
    number: u64,
}

/// Returns once the name of the file at `path` is on stable storage.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

const ID_KEY: &str = "journal";

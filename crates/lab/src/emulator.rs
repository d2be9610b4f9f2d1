//! The link emulator: a process between a room's port and its bridge that delays and loses frames.
//!
//! ```text
//!  h1 migr0 ──veth── h1-migr ─ [h1-migr-b] ─ h1-migr-i │ this process │ h1-migr-o ─ [migr]
//!                                                tap    │ two queues   │  tap
//! ```
//!
//! Each direction has a [`queue::DelayQueue`]. The process reads frames from one tap, keeps them for as long as
//! the [`Impairment`] says, and writes them to the other. It answers on a unix socket, one line of JSON for one:
//! an [`Impairment`] sets it, `null` changes nothing; both are answered with [`Counters`]. The socket arrives
//! as its standard input, so whoever starts it can talk to it at once. If the process dies, the link is dead
//! until the link is shaped again or unshaped.

pub mod queue;
mod run;
mod tap;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use queue::Loss;
pub use run::run;

use crate::error::{Error, Result};

/// How long the emulator may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The longest line that either end accepts, in bytes.
pub(crate) const LINE_LIMIT: u64 = 4096;

/// What the emulator does to each direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Impairment {
    /// How long each frame is kept, one way, in microseconds; the round trip grows by twice that.
    pub delay_us: u64,
    /// Up to how much longer, at random, in microseconds. Frames are never reordered.
    pub jitter_us: u64,
    /// The share of frames that are lost, each way.
    pub loss: Loss,
    /// Loses everything, while the link seems to be up.
    pub cut: bool,
}

/// What the emulator has done since it started, both directions together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Frames passed on.
    pub passed: u64,
    /// Frames lost by chance or because the link is cut.
    pub lost: u64,
    /// Frames lost because the queue was full.
    pub overflowed: u64,
}

/// Asks the emulator behind a socket, and sets it first if an impairment is given.
///
/// # Errors
/// When nobody answers there, or not in this language.
pub fn ask(socket: &Path, impairment: Option<&Impairment>) -> Result<Counters> {
    let talking = || Error::path("talk to the link emulator at", socket);
    let mut stream = UnixStream::connect(socket).map_err(talking())?;
    stream.set_read_timeout(Some(ANSWER_LIMIT)).map_err(talking())?;
    let mut line = serde_json::to_string(&impairment).expect("an impairment is numbers and flags");
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(talking())?;
    let mut answer = String::new();
    BufReader::new(stream.take(LINE_LIMIT)).read_line(&mut answer).map_err(talking())?;
    serde_json::from_str(&answer).map_err(|error| Error::answer("the link emulator", &answer, error))
}

//! Talks to the guest's control port: a line of words out, a line of JSON back.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::namespace::Namespace;
use crate::wait;

const PORT: u16 = 9000;
/// One attempt to connect; also the pause between ARP requests that nobody answers.
const ATTEMPT_LIMIT: Duration = Duration::from_millis(500);
/// A full pass over a large guest takes its time on TCG.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// Longer answers are rubbish.
const ANSWER_LIMIT_BYTES: u64 = 64 * 1024;

/// What the guest says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// Made at each boot: another one means that the guest has restarted.
    pub boot_id: String,
    /// The guest's own monotonic clock.
    pub uptime_ms: u64,
    /// Page writes since boot.
    pub generation: u64,
    /// Pages that are stamped.
    pub pages: u64,
    /// Pages that were stamped at least once; equal to `pages` once the first fill is over.
    pub pages_filled: u64,
    /// Pages checked since boot.
    pub pages_verified: u64,
    /// Times that every page was checked.
    pub passes: u64,
    /// Pages that did not hold what was last written to them. Never goes back to zero.
    pub error_count: u64,
    /// The first few of them.
    pub errors: Vec<PageFault>,
    /// The disk, if the guest stamps one.
    pub disk: Option<DiskStatus>,
    /// The guest's clocks.
    pub time: TimeStatus,
    /// How fast it rewrites its pages.
    pub dirty_mib_s: u64,
}

/// A page that did not hold what was last written to it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PageFault {
    /// Which page.
    pub page: u64,
    /// The generation that it should have had.
    pub expected: u64,
    /// What it had, in words.
    pub found: String,
}

/// What the guest says of its disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DiskStatus {
    /// Blocks written, each followed by fdatasync.
    pub written: u64,
    /// Blocks read back.
    pub verified: u64,
    /// Reads and writes that failed, and blocks that did not hold what was last written to them.
    pub error_count: u64,
    /// The first few of them, in words.
    pub errors: Vec<String>,
}

/// What the guest says of its clocks, since boot or since [`GuestConnection::reset_time`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct TimeStatus {
    /// The longest time between two ticks of a millisecond, on the monotonic clock.
    pub max_gap_ms: u64,
    /// How many of these were above 20 ms.
    pub jumps: u64,
    /// The largest step of the wall clock against the monotonic one.
    pub realtime_max_jump_ms: u64,
    /// How many steps were above 20 ms.
    pub realtime_jumps: u64,
}

/// What a full check showed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Verified {
    /// Whether no page and no block was ever found wrong.
    pub ok: bool,
    /// The status after the check.
    #[serde(flatten)]
    pub status: Status,
}

/// A connection to the guest's control port.
#[derive(Debug)]
pub struct GuestConnection {
    stream: BufReader<TcpStream>,
    peer: String,
}

impl GuestConnection {
    /// Connects from a namespace, trying until the guest has booted.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when it does not answer in time.
    pub fn wait(namespace: &Namespace, address: Ipv4Addr, limit: Duration) -> Result<Self> {
        let server = SocketAddr::from((address, PORT));
        let what = format!("an answer of the guest at {server}");
        namespace.run(|| {
            wait::until(&what, limit, || {
                // Refused, unreachable or silent: it has not booted that far.
                let Ok(stream) = TcpStream::connect_timeout(&server, ATTEMPT_LIMIT) else { return Ok(None) };
                Self::over(stream, server).map(Some)
            })
        })?
    }

    fn over(stream: TcpStream, server: SocketAddr) -> Result<Self> {
        let peer = format!("the guest at {server}");
        let set = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(ANSWER_LIMIT)));
        set.map_err(Error::io(format!("connect to {peer}")))?;
        Ok(Self { stream: BufReader::new(stream), peer })
    }

    /// What the guest says of itself.
    ///
    /// # Errors
    /// When it does not answer, or not in this language.
    pub fn status(&mut self) -> Result<Status> {
        self.ask("status")
    }

    /// Has the guest check every page and every block that it has written, beginning now.
    ///
    /// # Errors
    /// When it does not answer, or not in this language. A check that finds faults is no error: see
    /// [`Verified::ok`].
    pub fn verify(&mut self) -> Result<Verified> {
        self.ask("verify")
    }

    /// Sets how fast the guest rewrites its pages.
    ///
    /// # Errors
    /// When it does not answer, or not in this language.
    pub fn set_dirty_mib_s(&mut self, rate: u64) -> Result<Status> {
        self.ask(&format!("set dirty_mib_s {rate}"))
    }

    /// Forgets the gaps and jumps of the guest's clocks so far (booting has some).
    ///
    /// # Errors
    /// When it does not answer, or not in this language.
    pub fn reset_time(&mut self) -> Result<Status> {
        self.ask("reset time")
    }

    /// Has the guest power itself off.
    ///
    /// # Errors
    /// When it does not take the command.
    pub fn power_off(mut self) -> Result<()> {
        self.command("poweroff")
    }

    /// Has the guest restart.
    ///
    /// # Errors
    /// When it does not take the command.
    pub fn reboot(mut self) -> Result<()> {
        self.command("reboot")
    }

    /// Has the guest's kernel panic.
    ///
    /// # Errors
    /// When it does not take the command.
    pub fn panic(mut self) -> Result<()> {
        self.command("panic")
    }

    fn command(&mut self, line: &str) -> Result<()> {
        self.ask::<serde_json::Value>(line).map(drop)
    }

    fn ask<T: DeserializeOwned>(&mut self, line: &str) -> Result<T> {
        let asking = || Error::io(format!("ask {} for `{line}`", self.peer));
        let written = self.stream.get_mut().write_all(format!("{line}\n").as_bytes());
        written.map_err(asking())?;
        let mut answer = String::new();
        self.stream.by_ref().take(ANSWER_LIMIT_BYTES).read_line(&mut answer).map_err(asking())?;
        parse(&self.peer, &answer)
    }
}

fn parse<T: DeserializeOwned>(peer: &str, answer: &str) -> Result<T> {
    serde_json::from_str(answer).map_err(|error| Error::answer(peer, answer, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = r#"{"ok":false,"boot_id":"x","uptime_ms":1,"generation":2,"pages":3,"pages_filled":3,
        "pages_verified":4,"passes":5,"error_count":1,"errors":[{"page":7,"expected":9,"found":"zero page"}],
        "disk":{"written":1,"verified":2,"error_count":0,"errors":[]},
        "time":{"max_gap_ms":1,"jumps":0,"realtime_max_jump_ms":0,"realtime_jumps":0},"dirty_mib_s":8}"#;

    #[test]
    fn a_guests_answer_is_read_whole() {
        let verified: Verified = parse("guest", STATUS).unwrap();
        assert!(!verified.ok);
        assert_eq!(verified.status.errors[0].found, "zero page");
        assert_eq!(verified.status.disk.unwrap().verified, 2);
    }

    #[test]
    fn rubbish_is_an_error_that_shows_it() {
        for answer in ["", "{}", "\u{0}\u{1}", "{\"error\":\"unknown command\"}"] {
            let error = parse::<Status>("guest", answer).unwrap_err().to_string();
            assert!(error.contains(answer), "{error}");
        }
    }
}

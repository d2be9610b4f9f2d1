//! Questions and commands on TCP port 9000: a line of words in, a line of JSON out.
//!
//! | line | answer |
//! |---|---|
//! | `status` | `boot_id`, `uptime_ms`, `generation`, `pages`, `pages_filled`, `pages_verified`, `passes`, `error_count`, `errors`, `disk`, `time`, `dirty_mib_s` |
//! | `verify` | the same and `ok`, after every page and every written block was checked once more |
//! | `set dirty_mib_s N` | the status |
//! | `reset time` | the status, with the clocks' records forgotten |
//! | `poweroff`, `reboot`, `panic` | `{"ok":true}`, then it happens |
//!
//! Anything else is answered with `{"error":…}`. A line is at most 256 bytes; a longer one ends the connection.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::clock::Jumps;
use crate::disk::{self, Disk};
use crate::memory::{self, Memory};
use crate::{json_string, lock, power, spawn, sys};

const PORT: u16 = 9000;
const LINE_LIMIT: u64 = 256;

/// All that can be asked about.
pub(crate) struct Guest {
    pub(crate) boot_id: String,
    pub(crate) memory: Memory,
    pub(crate) disk: Option<Disk>,
    pub(crate) clock: Arc<Mutex<Jumps>>,
}

/// Listens, and serves each connection in a thread of its own.
pub(crate) fn serve(guest: Arc<Guest>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    spawn("control", move || {
        for stream in listener.incoming().flatten() {
            let guest = Arc::clone(&guest);
            // A client that cannot be served or goes away ends its own thread and nothing else.
            drop(spawn("control-client", move || drop(converse(&guest, &stream))));
        }
    })
}

fn converse(guest: &Guest, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        reader.by_ref().take(LINE_LIMIT).read_line(&mut line)?;
        if !line.ends_with('\n') {
            return Ok(());
        }
        let command = Command::parse(&line);
        let mut answer = guest.answer(command.as_ref());
        answer.push('\n');
        writer.write_all(answer.as_bytes())?;
        match command {
            Some(Command::PowerOff) => power::off(),
            Some(Command::Reboot) => power::reboot(),
            Some(Command::Panic) => power::panic()?,
            _ => {}
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Command {
    Status,
    Verify,
    SetDirtyRate(u64),
    ResetTime,
    PowerOff,
    Reboot,
    Panic,
}

impl Command {
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        Some(match words[..] {
            ["status"] => Self::Status,
            ["verify"] => Self::Verify,
            ["set", "dirty_mib_s", rate] => Self::SetDirtyRate(rate.parse().ok()?),
            ["reset", "time"] => Self::ResetTime,
            ["poweroff"] => Self::PowerOff,
            ["reboot"] => Self::Reboot,
            ["panic"] => Self::Panic,
            _ => return None,
        })
    }
}

impl Guest {
    fn answer(&self, command: Option<&Command>) -> String {
        match command {
            None => "{\"error\":\"unknown command: status, verify, set dirty_mib_s N, reset time, poweroff, reboot and \
                     panic are known\"}"
                .to_owned(),
            Some(Command::PowerOff | Command::Reboot | Command::Panic) => "{\"ok\":true}".to_owned(),
            Some(Command::Verify) => self.verified(),
            Some(Command::Status) => self.status(),
            Some(Command::SetDirtyRate(rate)) => {
                self.memory.set_dirty_mib_s(*rate);
                self.status()
            }
            Some(Command::ResetTime) => {
                *lock(&self.clock) = Jumps::default();
                self.status()
            }
        }
    }

    fn status(&self) -> String {
        self.describe(None, &self.memory.status(), self.disk.as_ref().map(Disk::status).as_ref())
    }

    fn verified(&self) -> String {
        let Some(memory) = self.memory.verify() else {
            return "{\"error\":\"the memory stamper has died\"}".to_owned();
        };
        let disk = match &self.disk {
            None => None,
            Some(disk) => match disk.verify() {
                None => return "{\"error\":\"the disk stamper has died\"}".to_owned(),
                verified => verified,
            },
        };
        let ok = memory.fault_count == 0 && disk.as_ref().is_none_or(|disk| disk.error_count == 0);
        self.describe(Some(ok), &memory, disk.as_ref())
    }

    fn describe(&self, ok: Option<bool>, memory: &memory::Status, disk: Option<&disk::Status>) -> String {
        let mut json = String::from("{");
        let mut field = |name: &str, value: String| {
            let comma = if json.len() > 1 { "," } else { "" };
            // Writing to a string cannot fail.
            let _ = write!(json, "{comma}\"{name}\":{value}");
        };
        if let Some(ok) = ok {
            field("ok", ok.to_string());
        }
        field("boot_id", json_string(&self.boot_id));
        field("uptime_ms", (sys::monotonic_ns() / 1_000_000).to_string());
        field("generation", memory.generation.to_string());
        field("pages", memory.pages.to_string());
        field("pages_filled", memory.filled.to_string());
        field("pages_verified", memory.verified.to_string());
        field("passes", memory.passes.to_string());
        field("error_count", memory.fault_count.to_string());
        field("errors", faults(&memory.faults));
        field("disk", disk.map_or("null".to_owned(), disk_status));
        field("time", time(*lock(&self.clock)));
        field("dirty_mib_s", self.memory.dirty_mib_s().to_string());
        json.push('}');
        json
    }
}

fn faults(faults: &[memory::Fault]) -> String {
    let each = faults.iter().map(|fault| {
        let found = json_string(&fault.found);
        format!("{{\"page\":{},\"expected\":{},\"found\":{found}}}", fault.page, fault.expected)
    });
    format!("[{}]", each.collect::<Vec<_>>().join(","))
}

fn disk_status(disk: &disk::Status) -> String {
    let errors: Vec<_> = disk.errors.iter().map(|error| json_string(error)).collect();
    let (written, verified, count) = (disk.written, disk.verified, disk.error_count);
    let errors = errors.join(",");
    format!("{{\"written\":{written},\"verified\":{verified},\"error_count\":{count},\"errors\":[{errors}]}}")
}

fn time(jumps: Jumps) -> String {
    format!(
        "{{\"max_gap_ms\":{},\"jumps\":{},\"realtime_max_jump_ms\":{},\"realtime_jumps\":{}}}",
        jumps.max_gap_ns / 1_000_000,
        jumps.count,
        jumps.realtime_max_ns / 1_000_000,
        jumps.realtime_count
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_whole_lines_of_known_words() {
        assert_eq!(Command::parse("status\n"), Some(Command::Status));
        assert_eq!(Command::parse("  set dirty_mib_s 50\r\n"), Some(Command::SetDirtyRate(50)));
        for rubbish in ["", "\n", "status now", "set dirty_mib_s", "set dirty_mib_s -1", "STATUS", "\u{0}"] {
            assert_eq!(Command::parse(rubbish), None, "{rubbish:?}");
        }
    }

    #[test]
    fn faults_are_a_json_array() {
        let fault = memory::Fault { page: 5, expected: 9, found: "zero page".to_owned() };
        assert_eq!(faults(&[]), "[]");
        assert_eq!(
            faults(&[fault.clone(), fault]),
            "[{\"page\":5,\"expected\":9,\"found\":\"zero page\"},{\"page\":5,\"expected\":9,\"found\":\"zero page\"}]"
        );
    }
}

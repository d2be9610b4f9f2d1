//! What a move costs, read from the kernel's own counters.

use std::fs;

use serde_json::Value;

use crate::command::run;
use crate::error::{Error, Result};
use crate::lab::Lab;
use crate::names::{Network, Room};

/// The kernel counts CPU time for user space in hundredths of a second on every architecture of ours (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// The counters at one instant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gauge {
    wire_bytes: u64,
    cpu_ticks: u64,
}

/// What was spent between two instants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spent {
    /// Through one host's interface on the migration network, both directions, headers included.
    pub(super) wire_mb: f64,
    /// By all processes of all hosts, guests included.
    pub(super) cpu_s: f64,
}

impl Gauge {
    pub(super) fn read(lab: &Lab) -> Result<Self> {
        Ok(Self { wire_bytes: wire_bytes(lab, Room::Host(1))?, cpu_ticks: cpu_ticks(lab)? })
    }

    pub(super) fn since(self, before: Self) -> Spent {
        Spent {
            wire_mb: (self.wire_bytes.saturating_sub(before.wire_bytes)) as f64 / 1e6,
            cpu_s: (self.cpu_ticks.saturating_sub(before.cpu_ticks)) as f64 / TICKS_PER_SECOND,
        }
    }
}

fn wire_bytes(lab: &Lab, host: Room) -> Result<u64> {
    let (namespace, interface) = (lab.namespace(host)?, Network::Migration.interface());
    let answer = run("ip", &["-n", namespace.name(), "-s", "-j", "link", "show", "dev", &interface])?;
    parse_bytes(&answer).ok_or_else(|| Error::answer("ip", &answer, "it holds no counters"))
}

/// Sent and received bytes in the JSON of `ip -s -j link`.
fn parse_bytes(answer: &str) -> Option<u64> {
    let links: Value = serde_json::from_str(answer).ok()?;
    let counters = links.get(0)?.get("stats64")?;
    let bytes = |direction: &str| counters.get(direction)?.get("bytes")?.as_u64();
    bytes("rx")?.checked_add(bytes("tx")?)
}

/// The time of all processes on the hosts, and of the ended ones that they, or this process, have waited for.
fn cpu_ticks(lab: &Lab) -> Result<u64> {
    let mut ticks = stat_ticks("/proc/self/stat").map_or(0, |[_, _, user, system]| user + system);
    for host in lab.hosts() {
        for pid in lab.namespace(host)?.processes()? {
            // One that has just ended is counted by whoever waited for it.
            ticks += stat_ticks(&format!("/proc/{pid}/stat")).map_or(0, |fields| fields.iter().sum());
        }
    }
    Ok(ticks)
}

fn stat_ticks(path: &str) -> Option<[u64; 4]> {
    parse_ticks(&fs::read_to_string(path).ok()?)
}

/// Fields 14 to 17 of `/proc/PID/stat`: user and system time, own and of children that were waited for.
fn parse_ticks(stat: &str) -> Option<[u64; 4]> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut field = || fields.next()?.parse().ok();
    Some([field()?, field()?, field()?, field()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interfaces_bytes_are_those_of_both_directions() {
        let answer = r#"[{"ifname":"migr0","stats64":{"rx":{"bytes":7,"packets":1},"tx":{"bytes":5}}}]"#;
        assert_eq!(parse_bytes(answer), Some(12));
        for rubbish in ["", "[]", "{}", r#"[{"stats64":{"rx":{"bytes":-1},"tx":{"bytes":5}}}]"#] {
            assert_eq!(parse_bytes(rubbish), None, "{rubbish}");
        }
    }

    #[test]
    fn a_process_has_its_own_time_and_that_of_its_children() {
        let line = "7 (a b) c) S 1 7 7 0 -1 4194560 1 2 3 4 11 12 13 14 20 0 1 0 98765 10 11\n";
        assert_eq!(parse_ticks(line), Some([11, 12, 13, 14]));
        assert_eq!(parse_ticks("7 (a) S 1 7"), None);
    }
}

//! What the lab's tests share: whether they can run, labs that go away, waiting for pings.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use limosa_lab::{Config, Lab, LabGuard, LabName, Network, Pinger, Process, Room, wait};

pub(crate) const HOST_1: Room = Room::Host(1);
pub(crate) const HOST_2: Room = Room::Host(2);
/// Enough for anything on a busy machine; nothing is judged by how long it took.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// Whether this machine can run a lab. Says why if not.
pub(crate) fn can_run(programs: &[&str]) -> bool {
    let root = rustix::process::geteuid().is_root();
    let folders: Vec<_> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let is_there = |program: &&str| folders.iter().any(|folder| folder.join(program).is_file());
    let missing: Vec<_> = programs.iter().filter(|program| !is_there(program)).collect();
    if root && missing.is_empty() {
        return true;
    }
    let why = format!("root: {root}, missing programs: {missing:?}");
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "the lab's tests must run in CI ({why})");
    eprintln!("SKIPPED: no lab can be brought up here ({why})");
    false
}

pub(crate) fn config(name: &str, hosts: u8) -> Config {
    Config::new(name.parse().unwrap(), hosts)
}

pub(crate) fn up(name: &str, hosts: u8) -> LabGuard {
    Lab::up_until_dropped(&config(name, hosts)).unwrap()
}

/// Everything that could be left of a lab: namespaces, files, processes whose command line names it.
pub(crate) fn remains(name: &LabName) -> Vec<String> {
    let mut found = Vec::new();
    let prefix = format!("limosa-lab-{name}-");
    let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    found.extend(
        namespaces.map(|entry| entry.path().display().to_string()).filter(|path| path.contains(&prefix)),
    );
    let directory = limosa_lab::default_state_root().join(name.as_str());
    found.extend(directory.exists().then(|| directory.display().to_string()));
    let state = format!("{}/", directory.display());
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command_line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command_line = String::from_utf8_lossy(&command_line).replace('\0', " ");
        found.extend(command_line.contains(&state).then(|| command_line.clone()));
    }
    found
}

pub(crate) fn sleeper(lab: &Lab, room: Room) -> Process {
    let mut command = Command::new("sleep");
    command.arg("600");
    lab.spawn(room, "sleeper", command).unwrap()
}

pub(crate) fn pinger(lab: &Lab, from: Room, to: Ipv4Addr) -> Pinger {
    Pinger::start(&lab.namespace(from).unwrap(), to).unwrap()
}

/// Waits until so many more pings than now were answered.
pub(crate) fn await_replies(pinger: &Pinger, more: u64) {
    let before = pinger.snapshot().received;
    let enough = || Ok((pinger.snapshot().received >= before + more).then_some(()));
    wait::until("replies to pings", LIMIT, enough).unwrap();
}

/// Waits until so many more pings than now were sent, and gives how many of these were answered.
pub(crate) fn replies_within(pinger: &Pinger, more: u64) -> u64 {
    let before = pinger.snapshot();
    let enough = || Ok((pinger.snapshot().sent >= before.sent + more).then_some(()));
    wait::until("pings to be sent", LIMIT, enough).unwrap();
    pinger.snapshot().received - before.received
}

pub(crate) fn address(network: Network, room: Room) -> Ipv4Addr {
    network.address(room).unwrap()
}

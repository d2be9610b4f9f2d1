//! The lab, the agents and the guest of the matrix, and one cell from its beginning to its end.

use std::process::{Command, Stdio};
use std::time::Duration;

use limosa_api::agent::{MigrationOptions, MigrationStatus, Signal, VmAction, VmOnHost};
use limosa_lab::assets::Assets;
use limosa_lab::bare::{BareCluster, guest_spec};
use limosa_lab::guest::{GuestConfig, GuestConnection};
use limosa_lab::{Lab, Network, Pinger, Room, Shape, wait};
use limosa_migration::Ticket;
use limosa_model::{Epoch, Millis, PowerState, VmId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal as UnixSignal, kill_process, pidfd_open};

use crate::common::LIMIT;
use crate::expected::Expected;
use crate::fault::Fault;
use crate::hold::Hold;

/// How long something is stopped or cut off: long enough to be noticed, shorter than what limits a switchover.
const WHILE: Duration = Duration::from_millis(1200);

/// What limits a switchover in the matrix.
const SWITCHOVER_LIMIT_MS: u64 = 20_000;

/// How often an agent says again what was not answered, and a little, in microseconds.
const TURN_US: u64 = 600_000;

/// Where a lost guest is looked for: so many pings in a row without an answer.
const SILENT_PINGS: u64 = 25;

/// A process of one of the hosts, by what its command line has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Agent,
    Worker,
    Qemu,
}

pub(crate) struct Stage<'l> {
    pub(crate) lab: &'l Lab,
    pub(crate) cluster: BareCluster<'l>,
    pub(crate) target: VmOnHost,
    pub(crate) config: GuestConfig,
    /// Where the VM is, and by which right.
    pub(crate) at: usize,
    pub(crate) epoch: Epoch,
    pub(crate) guest: Option<GuestConnection>,
    pub(crate) boot_id: String,
    /// What was stopped and must be let go.
    stopped: Vec<i32>,
    pub(crate) last: Option<Ticket>,
}

impl<'l> Stage<'l> {
    pub(crate) fn start(lab: &'l Lab, assets: &Assets) -> Self {
        let cluster = BareCluster::start(lab, assets).unwrap();
        let mut config = GuestConfig::new("stamp", Room::Host(1));
        config.memory_mib = 128;
        config.fill_mib = 24;
        config.dirty_mib_s = 4;
        config.disk = Some("on-the-shared-datastore".into());
        let target = cluster.target(VmId::new(), &guest_spec(&config));
        let mut stage = Self {
            lab,
            cluster,
            target,
            config,
            at: 0,
            epoch: Epoch(0),
            guest: None,
            boot_id: String::new(),
            stopped: Vec::new(),
            last: None,
        };
        stage.boot();
        stage
    }

    /// Starts the VM on the first host, and waits for its guest.
    pub(crate) fn boot(&mut self) {
        let started = self.cluster.start_vm(0, &self.target).unwrap();
        self.target.spec.machine.machine_type = started.machine_type;
        self.epoch = started.epoch;
        self.at = 0;
        self.connect();
    }

    /// Connects to the guest, and notes which boot of it this is.
    pub(crate) fn connect(&mut self) {
        let client = self.lab.namespace(Room::Client).unwrap();
        let mut guest = GuestConnection::wait(&client, self.config.address, LIMIT).unwrap();
        let filled = || {
            let status = guest.status()?;
            Ok((status.pages_filled == status.pages).then_some(status.boot_id))
        };
        self.boot_id = wait::until("the guest to have filled its memory", LIMIT, filled).unwrap();
        self.guest = Some(guest);
    }

    pub(crate) fn other(&self) -> usize {
        1 - self.at
    }

    pub(crate) fn room(n: usize) -> Room {
        Room::Host(n as u8 + 1)
    }

    fn options(&self) -> MigrationOptions {
        MigrationOptions {
            compare_memory: true,
            switchover_limit_ms: Millis::new(SWITCHOVER_LIMIT_MS),
            ..MigrationOptions::default()
        }
    }

    /// The process of this kind on a host, if there is one.
    pub(crate) fn process(&self, n: usize, part: Part) -> Option<i32> {
        let wanted = match part {
            Part::Agent => " agent ",
            Part::Worker => " worker ",
            Part::Qemu => "qemu-system",
        };
        let all = self.lab.processes_in(Self::room(n)).unwrap();
        all.into_iter().find(|(_, line)| line.contains(wanted)).map(|(pid, _)| pid)
    }

    pub(crate) fn send(&self, pid: i32, signal: UnixSignal) {
        // A process that has gone in the meantime needs no signal.
        let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
    }

    pub(crate) fn freeze(&mut self, n: usize, part: Part) {
        let pid = self.process(n, part).unwrap_or_else(|| panic!("{part:?} on host {n}"));
        self.send(pid, UnixSignal::STOP);
        // A thread that is in the kernel stops when it comes out: only then does nothing go on.
        wait::until("a process to stand still", LIMIT, || Ok(stands_still(pid).then_some(()))).unwrap();
        self.stopped.push(pid);
    }

    pub(crate) fn thaw(&mut self, n: usize, part: Part) {
        if let Some(pid) = self.process(n, part) {
            self.send(pid, UnixSignal::CONT);
            self.stopped.retain(|stopped| *stopped != pid);
        }
    }

    /// Everything that was stopped goes on, every link is whole.
    pub(crate) fn release(&mut self) {
        for pid in std::mem::take(&mut self.stopped) {
            self.send(pid, UnixSignal::CONT);
        }
        for n in [0, 1] {
            for network in [Network::Management, Network::Migration] {
                self.lab.heal(Self::room(n), network).unwrap();
            }
            self.lab.unshape(Self::room(n), Network::Migration).unwrap();
        }
    }

    pub(crate) fn status(&self, n: usize) -> Option<MigrationStatus> {
        self.cluster.migration(n, self.last?.migration).ok()
    }

    fn await_state(&self, n: usize, states: &[&str]) -> Result<(), String> {
        wait::until(&format!("host {n} to be in {states:?}"), LIMIT, || {
            Ok(self.status(n).filter(|status| states.contains(&status.state.as_str())).map(drop))
        })
        .map_err(|error| {
            let at = [0, 1].map(|n| self.status(n).map(|s| (s.state, s.failure)));
            format!("{error}; they are {at:?}")
        })
    }

    /// Waits until the guest does not answer any more: QEMU has stopped it.
    fn await_silence(&self) -> Result<(), String> {
        let client = self.lab.namespace(Room::Client).unwrap();
        let pinger = Pinger::start(&client, self.config.address).unwrap();
        let mut last = (0, 0);
        wait::until("the guest to be stopped", LIMIT, || {
            let now = pinger.snapshot();
            if now.received > last.0 {
                last = (now.received, now.sent);
            }
            Ok((now.sent >= last.1 + SILENT_PINGS).then_some(()))
        })
        .map_err(|error| error.to_string())
    }

    /// Brings a new migration to this point and holds it there.
    pub(crate) fn hold(&mut self, hold: Hold) -> Result<(), String> {
        let (from, to) = (self.at, self.other());
        let options = self.options();
        let target = self.target.clone();
        let failed =
            |error: limosa_api::client::CallError| format!("a migration could not be ordered: {error}");
        let slow = Shape { rate: Some("4Mbit".parse().unwrap()), ..Shape::default() };
        if hold >= Hold::Transferring {
            self.lab.shape(Self::room(from), Network::Migration, &slow).unwrap();
        }
        let ticket = self.cluster.ticket(from, to, &target, self.epoch);
        self.last = Some(ticket);
        let source = self.cluster.order_end(from, to, ticket, &target, &options, None).map_err(failed)?;
        if hold == Hold::Ordered {
            return Ok(());
        }
        if hold == Hold::Reserved {
            self.freeze(from, Part::Agent);
        }
        self.cluster.order_end(to, from, ticket, &target, &options, source.fingerprint).map_err(failed)?;
        if hold == Hold::Reserved {
            return self.await_state(to, &["ready"]);
        }
        self.await_state(from, &["transferring"])?;
        wait::until("memory to be sent", LIMIT, || {
            let sent = self.status(from).and_then(|s| s.progress).is_some_and(|p| p.wire.as_bytes() > 0);
            Ok(sent.then_some(()))
        })
        .map_err(|error| error.to_string())?;
        if hold == Hold::Transferring {
            return Ok(());
        }
        self.freeze(from, Part::Agent);
        self.lab.unshape(Self::room(from), Network::Migration).unwrap();
        self.await_silence()?;
        if hold == Hold::PreSwitchover {
            return Ok(());
        }
        if hold == Hold::Switching {
            self.freeze(to, Part::Qemu);
            self.thaw(from, Part::Agent);
            return self.await_state(from, &["switching"]);
        }
        self.freeze(to, Part::Agent);
        self.thaw(from, Part::Agent);
        wait::until("the source to have sent everything", LIMIT, || {
            Ok(self.status(from).filter(|s| s.state == "switching" && s.measured.wire_bytes > 0).map(drop))
        })
        .map_err(|error| error.to_string())?;
        self.freeze(from, Part::Agent);
        self.thaw(to, Part::Agent);
        self.await_state(to, &["loaded"])?;
        if hold == Hold::Loaded {
            return Ok(());
        }
        self.pass_word(to, from, "handedover")?;
        if hold == Hold::HandedOver {
            return Ok(());
        }
        self.pass_word(from, to, "running")
    }

    /// The speaker's agent goes, the listener's stands still. Lets what the speaker says come to the listener, and
    /// stops the speaker before it can hear the answer. An agent says again what was not answered; so where nothing
    /// was on its way yet, it is given another turn.
    fn pass_word(&mut self, speaker: usize, listener: usize, state: &str) -> Result<(), String> {
        for _ in 0..20 {
            let clock = |stage: &Self| stage.status(speaker).map(|status| status.now_us);
            let began = clock(self).ok_or("the speaker does not answer")?;
            wait::until("the speaker to have had a turn", LIMIT, || {
                Ok(clock(self).filter(|now| *now > began + TURN_US).map(drop))
            })
            .map_err(|error| error.to_string())?;
            self.freeze(speaker, Part::Agent);
            self.thaw(listener, Part::Agent);
            if (0..40).any(|_| self.status(listener).is_some_and(|status| status.state == state)) {
                return Ok(());
            }
            self.freeze(listener, Part::Agent);
            self.thaw(speaker, Part::Agent);
        }
        Err(format!("host {listener} does not come to {state}"))
    }

    fn kill(&mut self, n: usize, part: Part) {
        let pid = self.process(n, part).unwrap_or_else(|| panic!("{part:?} on host {n}"));
        // By this it is gone with all its threads, and what it had open is closed.
        let held = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        self.send(pid, UnixSignal::KILL);
        self.stopped.retain(|stopped| *stopped != pid);
        let limit = Timespec::try_from(LIMIT).unwrap();
        let gone = poll(&mut [PollFd::new(&held, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(gone, 1, "{part:?} on host {n} does not die");
    }

    fn stop_for_a_while(&mut self, n: usize, part: Part) {
        let Some(pid) = self.process(n, part) else { return };
        self.send(pid, UnixSignal::STOP);
        std::thread::sleep(WHILE);
        self.send(pid, UnixSignal::CONT);
        self.stopped.retain(|stopped| *stopped != pid);
    }

    fn cut_for_a_while(&mut self, network: Network) {
        let room = Self::room(self.other());
        self.lab.partition(room, network).unwrap();
        // What was held goes on while the network is cut.
        for pid in std::mem::take(&mut self.stopped) {
            self.send(pid, UnixSignal::CONT);
        }
        std::thread::sleep(WHILE);
        self.lab.heal(room, network).unwrap();
    }

    /// Another process opens the VM's disk for writing, and so takes its lock.
    fn lock_image(&self) -> Result<Locker, String> {
        let image = self.cluster.shared().join("vms").join(self.target.vm.to_string()).join("root.raw");
        let socket = self.lab.directory().join("locker");
        let pid_file = self.lab.directory().join("locker.pid");
        // It returns once it serves, and so once it has opened the image.
        let served = Command::new("qemu-nbd")
            .args(["--fork", "--persistent", "--format=raw"])
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--pid-file={}", pid_file.display()))
            .arg(&image)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .map_err(|error| format!("qemu-nbd: {error}"))?;
        if !served.success() {
            return Err("the image could not be locked".into());
        }
        let pid = std::fs::read_to_string(&pid_file).map_err(|error| error.to_string())?;
        Ok(Locker(pid.trim().parse().map_err(|error| format!("{pid:?}: {error}"))?))
    }

    /// Lets the fault happen. Says whether the guest is still of use afterwards.
    pub(crate) fn inflict(&mut self, hold: Hold, fault: Fault) -> Result<GuestIs, String> {
        let (from, to) = (self.at, self.other());
        let vm = self.target.vm;
        match fault {
            Fault::Nothing => {}
            Fault::Cancel => {
                self.thaw(from, Part::Agent);
                let answer = self.cluster.signal(from, self.last.unwrap().migration, Signal::Cancel);
                if hold >= Hold::HandedOver && answer.is_ok() {
                    return Err("a cancel behind the handover was not called too late".into());
                }
            }
            Fault::KillSourceAgent => self.kill_agent(from),
            Fault::KillDestinationAgent => self.kill_agent(to),
            Fault::KillSourceWorker => self.kill(from, Part::Worker),
            Fault::KillDestinationWorker => self.kill(to, Part::Worker),
            Fault::KillSourceQemu => self.kill(from, Part::Qemu),
            Fault::KillDestinationQemu => self.kill(to, Part::Qemu),
            Fault::StopSourceAgent => self.stop_for_a_while(from, Part::Agent),
            Fault::StopDestinationAgent => self.stop_for_a_while(to, Part::Agent),
            Fault::StopSourceWorker => self.stop_for_a_while(from, Part::Worker),
            Fault::StopDestinationWorker => self.stop_for_a_while(to, Part::Worker),
            Fault::StopSourceQemu => self.stop_for_a_while(from, Part::Qemu),
            Fault::StopDestinationQemu => self.stop_for_a_while(to, Part::Qemu),
            Fault::CutManagement => self.cut_for_a_while(Network::Management),
            Fault::CutMigration => self.cut_for_a_while(Network::Migration),
            Fault::ImageLocked => {
                let locker = self.lock_image()?;
                self.release();
                // Held until the destination has given up; the source goes on once the lock is free.
                let refused = self.await_state(to, &["refused"]);
                drop(locker);
                refused?;
            }
            Fault::GuestPowersOff => {
                self.guest.take().unwrap().power_off().map_err(|e| e.to_string())?;
                return Ok(GuestIs::Ended);
            }
            Fault::GuestReboots => {
                self.guest.take().unwrap().reboot().map_err(|e| e.to_string())?;
                return Ok(GuestIs::Rebooted);
            }
            Fault::GuestPanics => {
                self.guest.take().unwrap().panic().map_err(|e| e.to_string())?;
                return Ok(GuestIs::Dead);
            }
            Fault::UserStops => {
                let at = if hold == Hold::Arrived { to } else { from };
                self.thaw(at, Part::Agent);
                let epoch = if at == to { self.last.unwrap().epoch } else { self.epoch };
                let action = VmAction::Stop { timeout_ms: Millis::new(20_000) };
                let _ = self.cluster.act(at, vm, epoch, action);
                return Ok(GuestIs::Stopping);
            }
            Fault::UserKills => {
                self.thaw(from, Part::Agent);
                let _ = self.cluster.act(from, vm, self.epoch, VmAction::Kill);
            }
            Fault::UserPauses => {
                self.thaw(from, Part::Agent);
                let _ = self.cluster.act(from, vm, self.epoch, VmAction::Pause);
                return Ok(GuestIs::PerhapsPaused);
            }
            Fault::UserDeletes => {
                for n in [from, to] {
                    self.thaw(n, Part::Agent);
                    let running = self.cluster.report(n).is_ok_and(|r| r.vms.iter().any(|v| v.pid.is_some()));
                    if running && self.cluster.delete_disks(n, &self.target).is_ok() {
                        return Err(format!("host {n} removed the disks of a VM that runs"));
                    }
                }
            }
        }
        Ok(GuestIs::Well)
    }

    fn kill_agent(&mut self, n: usize) {
        self.kill(n, Part::Agent);
        self.cluster.restart_agent(n).unwrap();
    }

    /// One cell.
    pub(crate) fn cell(&mut self, hold: Hold, fault: Fault, expected: Expected) -> Result<String, String> {
        self.hold(hold)?;
        let guest = self.inflict(hold, fault)?;
        self.release();
        if hold == Hold::Ordered {
            self.order_destination();
        }
        let outcome = self.settle(expected, guest)?;
        self.retry()?;
        Ok(outcome)
    }

    /// The server orders the destination, late. Where the source has given up meanwhile, it need not come to anything.
    fn order_destination(&mut self) {
        let (from, to) = (self.at, self.other());
        let Some(ticket) = self.last else { return };
        let Some(fingerprint) = self.status(from).map(|status| status.fingerprint) else { return };
        let _ = self.cluster.order_end(to, from, ticket, &self.target, &self.options(), fingerprint);
    }

    /// Moves the VM once more, undisturbed.
    fn retry(&mut self) -> Result<(), String> {
        let expected = Expected::Destination;
        self.hold(Hold::Ordered)?;
        self.order_destination();
        self.settle(expected, GuestIs::Well).map(drop).map_err(|error| format!("the retry: {error}"))
    }

    /// After a cell that failed: everything anew.
    pub(crate) fn start_over(&mut self) {
        self.release();
        for n in [0, 1] {
            for part in [Part::Agent, Part::Qemu, Part::Worker] {
                while self.process(n, part).is_some() {
                    self.kill(n, part);
                }
            }
            let directory = self.lab.room_directory(Self::room(n)).unwrap();
            let _ = std::fs::remove_file(directory.join("state/journal"));
            let _ = std::fs::remove_dir_all(directory.join("run"));
            self.cluster.restart_agent(n).unwrap();
        }
        self.guest = None;
        self.boot();
    }

    /// The ends of both agents' logs.
    pub(crate) fn evidence(&self) -> String {
        let mut text = String::new();
        for host in self.cluster.hosts() {
            let log = std::fs::read_to_string(host.agent.log()).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(25).collect();
            text.push_str(&format!("--- {}\n", host.room));
            for line in lines.iter().rev() {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }

    /// What the agents report of the VM.
    pub(crate) fn powers(&self) -> Result<Vec<(usize, PowerState, Epoch)>, String> {
        let mut found = Vec::new();
        for n in [0, 1] {
            let report =
                self.cluster.report(n).map_err(|error| format!("host {n} does not report: {error}"))?;
            found.extend(
                report.vms.iter().filter(|vm| vm.vm == self.target.vm).map(|vm| (n, vm.power, vm.epoch)),
            );
        }
        Ok(found)
    }
}

/// Whether every thread of a process is stopped.
fn stands_still(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The state follows the name, which is in parentheses. A thread that has gone has no state.
        stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('T'))
    })
}

/// A process that holds the image's lock for as long as this lives.
struct Locker(i32);

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_raw(self.0).unwrap(), UnixSignal::TERM);
    }
}

/// What the fault has done to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestIs {
    /// It runs as before.
    Well,
    /// It has powered off.
    Ended,
    /// It was asked to power off.
    Stopping,
    /// It boots again.
    Rebooted,
    /// Its kernel has crashed.
    Dead,
    /// It may have been paused, and is resumed.
    PerhapsPaused,
}

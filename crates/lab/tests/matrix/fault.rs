//! What happens to a migration that is held, and what that does to its guest.

use std::process::{Command, Stdio};
use std::time::Duration;

use limosa_api::agent::{Signal, VmAction};
use limosa_lab::Network;
use limosa_model::Millis;
use rustix::process::{Pid, Signal as UnixSignal, kill_process};

use crate::hold::Hold;
use crate::processes::Part;
use crate::stage::Stage;

/// How long something is stopped or cut off: long enough to be noticed, shorter than what limits a switchover.
const WHILE: Duration = Duration::from_millis(1200);

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing: the hold alone does no harm.
    Nothing,
    Cancel,
    KillSourceAgent,
    KillDestinationAgent,
    KillSourceWorker,
    KillDestinationWorker,
    KillSourceQemu,
    KillDestinationQemu,
    /// Stopped for a while, then let go on.
    StopSourceAgent,
    StopDestinationAgent,
    StopSourceWorker,
    StopDestinationWorker,
    StopSourceQemu,
    StopDestinationQemu,
    /// The destination is cut off, then connected again.
    CutManagement,
    CutMigration,
    /// Another process locks the VM's disk for a while.
    ImageLocked,
    GuestPowersOff,
    GuestReboots,
    GuestPanics,
    UserStops,
    UserKills,
    UserPauses,
    UserDeletes,
}

impl Fault {
    pub(crate) const ALL: [Self; 24] = [
        Self::Nothing,
        Self::Cancel,
        Self::KillSourceAgent,
        Self::KillDestinationAgent,
        Self::KillSourceWorker,
        Self::KillDestinationWorker,
        Self::KillSourceQemu,
        Self::KillDestinationQemu,
        Self::StopSourceAgent,
        Self::StopDestinationAgent,
        Self::StopSourceWorker,
        Self::StopDestinationWorker,
        Self::StopSourceQemu,
        Self::StopDestinationQemu,
        Self::CutManagement,
        Self::CutMigration,
        Self::ImageLocked,
        Self::GuestPowersOff,
        Self::GuestReboots,
        Self::GuestPanics,
        Self::UserStops,
        Self::UserKills,
        Self::UserPauses,
        Self::UserDeletes,
    ];
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

impl Stage<'_> {
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
}

/// A process that holds the image's lock for as long as this lives.
struct Locker(i32);

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_raw(self.0).unwrap(), UnixSignal::TERM);
    }
}

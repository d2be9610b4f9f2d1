//! What must hold once everything has settled.

use std::fs;
use std::time::Duration;

use limosa_api::agent::VmAction;
use limosa_lab::wait;
use limosa_model::{Fact, PowerState};

use crate::common::LIMIT;
use crate::expected::Expected;
use crate::fault::GuestIs;
use crate::stage::Stage;

/// How long the ends of a migration may take to agree: the longest limit in them, and time for a busy machine.
const SETTLE: Duration = Duration::from_secs(60);

impl Stage<'_> {
    /// Waits until both ends have ended, and checks where the VM is and that it is whole.
    pub(crate) fn settle(&mut self, expected: Expected, guest: GuestIs) -> Result<String, String> {
        self.await_ends()?;
        if guest == GuestIs::Stopping && matches!(expected, Expected::Anything) {
            self.finish_stopping()?;
        }
        if matches!(guest, GuestIs::Ended | GuestIs::Stopping) && expected == Expected::Stopped {
            self.await_stopped()?;
        }
        let outcome = self.locate(guest)?;
        let allowed = matches!(
            (expected, outcome),
            (Expected::Source, Some(true))
                | (Expected::Destination, Some(false))
                | (Expected::Stopped, None)
                | (Expected::Either, Some(_))
                | (Expected::DestinationOrStopped, Some(false) | None)
                | (Expected::Anything, _)
        );
        let name = match outcome {
            Some(true) => "on the source",
            Some(false) => "on the destination",
            None => "stopped",
        };
        if !allowed {
            return Err(format!("the VM is {name}, expected: {expected:?}; {}", self.ends()));
        }
        self.check_guest(outcome, guest)?;
        self.await_nothing_left()?;
        self.forget();
        if outcome.is_none() || guest == GuestIs::Dead {
            self.guest = None;
            if outcome.is_some() {
                self.end_vm()?;
            }
            self.boot();
        }
        Ok(name.to_owned())
    }

    fn ends(&self) -> String {
        let end = |n| match self.status(n) {
            Some(status) => format!("{} ({:?})", status.state, status.failure.map(|f| f.what)),
            None => "unknown".into(),
        };
        format!("source {}, destination {}", end(self.at), end(self.other()))
    }

    fn await_ends(&self) -> Result<(), String> {
        wait::until("both ends to end", SETTLE, || {
            let ended = [0, 1].iter().all(|n| self.status(*n).is_none_or(|status| status.ended));
            Ok(ended.then_some(()))
        })
        .map_err(|error| format!("{error}: {}", self.ends()))
    }

    /// A guest that was asked to power off while it stood still does so once it goes on, or is let alone.
    fn finish_stopping(&mut self) -> Result<(), String> {
        let Some((n, _, epoch)) =
            self.powers()?.into_iter().find(|(_, power, _)| *power != PowerState::Stopped)
        else {
            return Ok(());
        };
        let _ = self.cluster.act(n, self.target.vm, epoch, VmAction::Kill);
        self.await_stopped()
    }

    fn await_stopped(&self) -> Result<(), String> {
        wait::until("the VM to stop", LIMIT, || {
            let stopped =
                self.powers().is_ok_and(|powers| powers.iter().all(|(_, p, _)| *p == PowerState::Stopped));
            Ok(stopped.then_some(()))
        })
        .map_err(|error| format!("{error}: {:?}", self.powers()))
    }

    /// Where the VM is: `Some(true)` on the source, `Some(false)` on the destination, `None` nowhere. There is never
    /// more than one, and the facts say the same.
    fn locate(&mut self, guest: GuestIs) -> Result<Option<bool>, String> {
        let (from, to) = (self.at, self.other());
        if guest == GuestIs::PerhapsPaused {
            for (n, power, epoch) in self.powers()? {
                if power == PowerState::Paused {
                    self.cluster
                        .act(n, self.target.vm, epoch, VmAction::Resume)
                        .map_err(|e| format!("resume: {e}"))?;
                }
            }
        }
        let powers = self.powers()?;
        let here: Vec<_> = powers.iter().filter(|(_, power, _)| *power != PowerState::Stopped).collect();
        if here.len() > 1 {
            return Err(format!("two copies: {powers:?}"));
        }
        let facts = [from, to].map(|n| self.status(n).and_then(|status| status.fact).map(|told| told.fact));
        let Some((n, power, epoch)) = here.first() else { return Ok(None) };
        if *power != PowerState::Running {
            return Err(format!("the VM on host {n} is {power:?}; {}", self.ends()));
        }
        let on_source = *n == from;
        let told = match on_source {
            true => facts[0] == Some(Fact::Resumed) || facts[0].is_none() && facts[1].is_none(),
            false => facts[1] == Some(Fact::Running),
        };
        if !told {
            return Err(format!("the VM runs on host {n}, the facts are {facts:?}"));
        }
        self.at = *n;
        self.epoch = *epoch;
        Ok(Some(on_source))
    }

    /// The guest's memory and disk are whole, and it is the same boot of it.
    fn check_guest(&mut self, outcome: Option<bool>, guest: GuestIs) -> Result<(), String> {
        match (outcome, guest) {
            (None, _) | (Some(_), GuestIs::Dead) => return Ok(()),
            (Some(_), GuestIs::Rebooted) => self.connect(),
            (Some(_), _) => {}
        }
        let Some(connection) = self.guest.as_mut() else {
            return Err("the connection to the guest is gone".into());
        };
        let verified = connection.verify().map_err(|error| format!("the guest does not answer: {error}"))?;
        if !verified.ok {
            return Err(format!("the guest is not whole: {verified:?}"));
        }
        if verified.status.boot_id != self.boot_id {
            return Err("the guest has booted again".into());
        }
        Ok(())
    }

    /// Ends a VM whose guest is of no use any more.
    fn end_vm(&mut self) -> Result<(), String> {
        self.cluster
            .act(self.at, self.target.vm, self.epoch, VmAction::Kill)
            .map_err(|e| format!("kill: {e}"))?;
        self.await_stopped()
    }

    fn forget(&mut self) {
        let Some(ticket) = self.last.take() else { return };
        for n in [0, 1] {
            // One end may never have heard of it.
            let _ = self.cluster.forget(n, ticket.migration);
        }
    }

    /// Processes, taps, folders: what belongs to the VM where it is, and nothing else.
    fn await_nothing_left(&self) -> Result<(), String> {
        let mut left = Vec::new();
        wait::until("everything to be cleared away", SETTLE, || {
            left = self.left_over();
            Ok(left.is_empty().then_some(()))
        })
        .map_err(|_| format!("left over: {left:?}"))
    }

    fn left_over(&self) -> Vec<String> {
        let mut left = Vec::new();
        let powers = self.powers().unwrap_or_default();
        for n in [0, 1] {
            let here = powers.iter().any(|(at, power, _)| *at == n && *power != PowerState::Stopped);
            let room = Self::room(n);
            let processes = self.lab.processes_in(room).unwrap();
            let qemus = processes.iter().filter(|(_, line)| line.contains("qemu-system")).count();
            if qemus != usize::from(here) {
                left.push(format!("{qemus} QEMUs on {room}"));
            }
            left.extend(
                processes
                    .iter()
                    .filter(|(_, line)| line.contains(" worker "))
                    .map(|(_, l)| format!("{room}: {l}")),
            );
            let taps = self.lab.namespace(room).unwrap().run(taps).unwrap();
            if taps.len() != usize::from(here) {
                left.push(format!("taps on {room}: {taps:?}"));
            }
            let run = self.lab.room_directory(room).unwrap().join("run");
            let entries = |folder: &str| fs::read_dir(run.join(folder)).map_or(0, Iterator::count);
            if entries("vms") != usize::from(here) || entries("migrations") != 0 {
                left.push(format!(
                    "{} VM folders, {} migration folders on {room}",
                    entries("vms"),
                    entries("migrations")
                ));
            }
        }
        left
    }
}

/// The VMs' taps in the calling thread's namespace.
fn taps() -> Vec<String> {
    let devices = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let names = devices.lines().filter_map(|line| line.trim().split(':').next().map(str::to_owned));
    names.filter(|name| name.starts_with("lm") && !name.contains(' ')).collect()
}

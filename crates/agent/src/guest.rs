//! A VM that has a QEMU here: what is known of it between questions, and who watches it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use limosa_model::{Epoch, PowerState, VmId};
use limosa_qemu::{BlockErrorAction, Event, EventsError, TimedEvent};
use limosa_vm::{Exit, Vm, remove_runtime};

use crate::agent::{Agent, now_us};

/// How long the end of a VM that could not be written down waits.
const END_AGAIN: Duration = Duration::from_secs(1);

/// How long a report waits for one QEMU.
const SOON: Duration = Duration::from_millis(250);

/// A QEMU with what was seen of it.
pub(crate) struct Guest {
    pub vm: Vm,
    seen: Mutex<Seen>,
    /// What it did when it was last asked and answered.
    power: Mutex<PowerState>,
    /// The agent ends this QEMU on purpose: its end is no crash.
    pub dismissed: AtomicBool,
}

/// What QEMU said of itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub io_error: bool,
    pub panicked: bool,
    pub guest_shut_down: bool,
    /// QEMU's clock when the CPUs were last let go.
    pub resumed_us: Option<u64>,
}

impl Guest {
    pub(crate) fn new(vm: Vm) -> Arc<Self> {
        Arc::new(Self {
            vm,
            seen: Mutex::default(),
            power: Mutex::new(PowerState::Paused),
            dismissed: AtomicBool::new(false),
        })
    }

    pub(crate) fn id(&self) -> VmId {
        self.vm.id()
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.vm.epoch()
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn see(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether the VM does not run of its own accord: a disk or the guest's kernel stopped it.
    pub(crate) fn is_held(&self) -> bool {
        let seen = self.seen();
        seen.io_error || seen.panicked
    }

    /// What it does; or did, where QEMU does not answer soon, as while it sends the last of a migration.
    pub(crate) async fn power(&self) -> PowerState {
        let last = |known: &Mutex<PowerState>| *known.lock().unwrap_or_else(PoisonError::into_inner);
        match tokio::time::timeout(SOON, self.vm.power_state()).await {
            Ok(Ok(power)) => {
                *self.power.lock().unwrap_or_else(PoisonError::into_inner) = power;
                power
            }
            _ => last(&self.power),
        }
    }

    /// Ends QEMU and removes what it used here. Returns when it is gone.
    pub(crate) async fn dismiss(&self) -> Result<(), limosa_vm::VmError> {
        self.dismissed.store(true, Ordering::SeqCst);
        self.vm.kill().await?;
        remove_runtime(self.vm.runtime_dir())
    }

    fn take(&self, timed: &TimedEvent) -> bool {
        let at_us = time_us(timed);
        match &timed.event {
            Event::Stop => {}
            Event::Resume => self.see(|seen| {
                seen.resumed_us = Some(at_us);
                seen.io_error = false;
                seen.panicked = false;
            }),
            Event::BlockIoError(error) if error.action == BlockErrorAction::Stop => {
                self.see(|seen| seen.io_error = true);
            }
            Event::GuestPanicked(_) => self.see(|seen| seen.panicked = true),
            Event::Shutdown(cause) => self.see(|seen| seen.guest_shut_down = cause.guest),
            _ => return false,
        }
        true
    }
}

/// When an event happened by QEMU's clock, in microseconds since 1970.
pub(crate) fn time_us(TimedEvent { at, .. }: &TimedEvent) -> u64 {
    let whole = u64::try_from(at.seconds).ok().map(|s| s * 1_000_000 + at.microseconds.unsigned_abs());
    whole.unwrap_or_else(now_us)
}

/// Watches a guest until its QEMU is gone, then tells the agent.
pub(crate) fn watch(agent: &Arc<Agent>, guest: &Arc<Guest>) {
    let (agent, guest) = (agent.clone(), guest.clone());
    tokio::spawn(async move {
        let mut events = guest.vm.qmp().subscribe();
        let mut listening = true;
        let exit = loop {
            tokio::select! {
                exit = guest.vm.exited() => break exit,
                event = events.next(), if listening => match event {
                    Ok(event) => {
                        if guest.take(&event) {
                            agent.changed.notify_one();
                        }
                        if matches!(event.event, Event::Shutdown(_)) {
                            // The guest is off; its QEMU only waits to be told to go.
                            if let Err(error) = guest.vm.kill().await {
                                tracing::error!(vm = %guest.id(), %error, "the QEMU of a guest that is off could not be ended");
                            }
                        }
                    }
                    Err(EventsError::Missed(_)) => {}
                    Err(EventsError::Closed) => listening = false,
                },
            }
        };
        gone(&agent, &guest, exit).await;
    });
}

/// A QEMU has ended, by whomever.
async fn gone(agent: &Arc<Agent>, guest: &Arc<Guest>, exit: Exit) {
    let (vm, epoch) = (guest.id(), guest.epoch());
    tracing::info!(%vm, %epoch, ?exit, "QEMU has ended");
    if !guest.dismissed.load(Ordering::SeqCst) {
        let reason = if guest.seen().guest_shut_down {
            "the guest powered off".to_owned()
        } else {
            format!("QEMU ended: {exit}")
        };
        end_record(agent, vm, epoch, &reason);
        if let Err(error) = remove_runtime(guest.vm.runtime_dir()) {
            tracing::warn!(%vm, %error, "a VM has left something behind");
        }
    }
    agent.remove_guest(guest);
    if let Some(migration) = agent.open_migration_of(vm) {
        migration.qemu_gone(epoch);
    }
}

/// Writes down that a VM does not run here any more under this epoch, for good.
/// Where that fails, as on a full disk, it is tried again until it does not: without it the server waits for the VM.
pub(crate) fn end_record(agent: &Arc<Agent>, vm: VmId, epoch: Epoch, reason: &str) {
    if write_end(agent, vm, epoch, reason) {
        return;
    }
    let (agent, reason) = (agent.clone(), reason.to_owned());
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(END_AGAIN).await;
            if write_end(&agent, vm, epoch, &reason) {
                return;
            }
        }
    });
}

fn write_end(agent: &Agent, vm: VmId, epoch: Epoch, reason: &str) -> bool {
    if agent.record(vm).is_none_or(|record| record.epoch != epoch || record.ended.is_some()) {
        return true;
    }
    let written = agent.update_record(vm, epoch, |record| record.ended = Some(reason.to_owned()));
    if let Err(error) = &written {
        tracing::error!(%vm, %error, "the end of a VM could not be written down");
    }
    written.is_ok()
}

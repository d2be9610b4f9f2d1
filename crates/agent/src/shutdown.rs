//! Stopping the guests of a host that is about to be switched off.
//!
//! Runs after the agent has stopped: it takes the agent's place, and its state, for as long as it lasts. Guests are
//! asked to power off, each gets the time that its policy gives it, and those that have not by then are ended. A VM
//! that is in the middle of a migration is left alone: whose it is has to be agreed first.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::join_all;

use crate::AgentError;
use crate::agent::Agent;
use crate::config::Config;
use crate::guest::{Guest, end_record};
use crate::ledger::MigrationRecord;
use crate::{recovery, start};

/// How many guests were stopped, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stopped {
    /// They powered off by themselves.
    pub cleanly: usize,
    /// They had to be ended.
    pub by_force: usize,
    /// They are in a migration that has not ended, and were left alone.
    pub left_alone: usize,
}

/// Stops the guests of this host, beside each other, and returns when they are off.
///
/// # Errors
/// [`AgentError::Locked`] while the agent runs; otherwise as for [`run`](crate::run).
pub async fn stop_guests(config: Config) -> Result<Stopped, AgentError> {
    let (agent, _lock) = start::prepare(config).await?;
    let silent = recovery::adopt(&agent).await?;
    for record in agent.ledger.vms()? {
        agent.load_record(record);
    }
    let moving: Vec<_> = agent.ledger.migrations()?.into_iter().filter(|m| !m.part.has_ended()).collect();
    let stops = agent.guests().into_iter().map(|guest| stop(&agent, guest, &moving));
    let mut stopped = Stopped::default();
    for adopted in silent {
        if moving.iter().any(|record| record.part.ticket().vm == adopted.vm) {
            stopped.left_alone += 1;
            continue;
        }
        match adopted.process.kill().await {
            Ok(_) => end_record(&agent, adopted.vm, adopted.epoch, "the host was switched off"),
            Err(error) => tracing::error!(vm = %adopted.vm, %error, "could not be ended"),
        }
        stopped.by_force += 1;
    }
    for outcome in join_all(stops).await {
        match outcome {
            Outcome::Cleanly => stopped.cleanly += 1,
            Outcome::ByForce => stopped.by_force += 1,
            Outcome::LeftAlone => stopped.left_alone += 1,
        }
    }
    Ok(stopped)
}

enum Outcome {
    Cleanly,
    ByForce,
    LeftAlone,
}

async fn stop(agent: &Arc<Agent>, guest: Arc<Guest>, moving: &[MigrationRecord]) -> Outcome {
    let (vm, epoch) = (guest.id(), guest.epoch());
    if moving.iter().any(|record| record.part.ticket().vm == vm) {
        tracing::warn!(%vm, "is in a migration that has not ended: left alone");
        return Outcome::LeftAlone;
    }
    // Its end is ours, whoever notices it first.
    guest.dismissed.store(true, Ordering::SeqCst);
    let limit = guest.vm.plan().spec.policy.stop_timeout_ms;
    let asked = guest.vm.qmp().system_powerdown().await;
    let powered_off = match asked {
        Ok(()) => tokio::time::timeout(limit.duration(), powered_off(&guest)).await.is_ok(),
        Err(error) => {
            tracing::warn!(%vm, %error, "cannot be asked to power off");
            false
        }
    };
    if let Err(error) = guest.dismiss().await {
        tracing::error!(%vm, %error, "could not be ended");
    }
    // The promise not to run it again under this epoch: after the boot it needs the server's word.
    end_record(agent, vm, epoch, "the host was switched off");
    match powered_off {
        true => Outcome::Cleanly,
        false => Outcome::ByForce,
    }
}

/// Returns when the guest is off. Its QEMU may stay, and be told to go.
async fn powered_off(guest: &Guest) {
    let mut events = guest.vm.qmp().subscribe();
    loop {
        let off = guest.vm.power_state().await.is_ok_and(|state| state == limosa_model::PowerState::Stopped);
        if off {
            return;
        }
        tokio::select! {
            _ = guest.vm.exited() => return,
            _ = events.next() => {}
        }
    }
}

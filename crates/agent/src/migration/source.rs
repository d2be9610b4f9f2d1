//! The source's effects.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use limosa_migration::Source;
use limosa_migration::source::{Effect, Event, State};
use limosa_model::{Fact, Failure, FailureKind};
use limosa_qemu::Qmp;
use limosa_qemu::commands::run::RunState;
use serde_json::Value;

use super::{Conducted, Migration, lock, stream, telling};
use crate::agent::{Agent, now_us};
use crate::guest::Guest;
use crate::worker;

/// How often QEMU is asked whether it has cleared away a stream that has ended.
const FORGET_AGAIN: Duration = Duration::from_millis(10);

/// How long QEMU may take to cancel a stream.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);

impl Conducted for Source {
    const TICK: Event = Event::Tick;

    async fn perform(agent: &Arc<Agent>, migration: &Arc<Migration>, effect: Effect) {
        // What must not wait for a QEMU that does not answer: its end, and words. A port is closed as soon as it does.
        let waits = match effect {
            Effect::StartStream | Effect::ContinueSwitchover | Effect::StopStream | Effect::ResumeGuest => {
                true
            }
            Effect::ClosePort | Effect::KillQemu | Effect::Tell(_) | Effect::Ask | Effect::AskToRefuse => {
                false
            }
        };
        if waits {
            agent.heard_of(migration.vm()).await;
        }
        match effect {
            Effect::StartStream => stream::start(agent, migration),
            Effect::ContinueSwitchover => stream::continue_switchover(agent, migration).await,
            Effect::StopStream => stop_stream(agent, migration).await,
            Effect::ResumeGuest => resume_guest(agent, migration).await,
            Effect::ClosePort => close_port(agent, migration).await,
            Effect::KillQemu => kill_qemu(agent, migration).await,
            Effect::Tell(fact) => telling::tell(agent, migration, fact),
            Effect::Ask => telling::ask(agent, migration, false),
            Effect::AskToRefuse => telling::ask(agent, migration, true),
        }
    }
}

/// The QEMU that the VM leaves, if it is still there.
pub(super) fn guest_of(agent: &Agent, migration: &Migration) -> Option<Arc<Guest>> {
    let ticket = migration.record().part.ticket();
    agent.guest(ticket.vm).filter(|guest| guest.epoch() == ticket.source_epoch)
}

async fn stop_stream(agent: &Arc<Agent>, migration: &Arc<Migration>) {
    migration.stop_watching();
    stream::keep_figures(agent, migration).await;
    worker::dismiss(&agent.worker_dir(migration.id())).await;
    let Some(guest) = guest_of(agent, migration) else { return };
    let qmp = guest.vm.qmp();
    let cancelled = async {
        let mut events = qmp.subscribe();
        // Asked for before anything else: a QEMU that is busy does it when it comes to it, whoever waits for that.
        if let Err(error) = qmp.migrate_cancel().await {
            tracing::debug!(migration = %migration.id(), %error, "QEMU does not cancel");
        }
        loop {
            let status = qmp.query_migrate().await.map(|info| info.status);
            match status {
                Ok(status) if status.is_over() && has_forgotten(qmp).await => return,
                Ok(status) if status.is_over() => {
                    tokio::time::sleep(FORGET_AGAIN).await;
                    continue;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(migration = %migration.id(), %error, "QEMU does not say how its stream is");
                    return;
                }
            }
            if let Err(error) = qmp.migrate_cancel().await {
                tracing::debug!(migration = %migration.id(), %error, "QEMU does not cancel");
            }
            // The end of the stream is an event; the question above is for those that came before.
            let _ = tokio::time::timeout(Duration::from_millis(200), events.next()).await;
        }
    };
    if tokio::time::timeout(CANCEL_LIMIT, cancelled).await.is_err() {
        tracing::error!(migration = %migration.id(), "QEMU has not cancelled its stream in time");
    }
}

/// Whether QEMU has cleared away an ended stream. Until then it takes no other, and nothing says when: it is asked.
async fn has_forgotten(qmp: &Qmp) -> bool {
    let instances = qmp.execute::<_, Vec<Value>>("query-yank", &serde_json::json!({})).await;
    !instances.is_ok_and(|all| all.iter().any(|instance| instance["type"] == "migration"))
}

/// Lets the guest go on as it was: running, unless a user, a disk or its own kernel had stopped it before. Where that
/// does not succeed (another process has taken a disk meanwhile), the timer asks for it again.
async fn resume_guest(agent: &Arc<Agent>, migration: &Arc<Migration>) {
    let Some(guest) = guest_of(agent, migration) else {
        migration.post_source(Event::Going);
        return;
    };
    if !migration.machine::<Source>().is_some_and(|m| m.state == State::Resumed { going: false }) {
        return;
    }
    let vm = guest.id();
    let paused = agent.record(vm).is_some_and(|record| record.paused);
    let went_on = async {
        guest.vm.open_ports(&agent.net).await.map_err(|error| error.to_string())?;
        let runs = guest.vm.run_state().await.map_err(|error| error.to_string())? == RunState::Running;
        if !runs && !paused && !guest.is_held() {
            guest.vm.qmp().cont().await.map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(())
    };
    match went_on.await {
        Ok(()) => {
            migration.measure(|m| m.continued_us = Some(now_us()));
            migration.note(agent);
            migration.post_source(Event::Going);
        }
        Err(error) => {
            let warning = format!("the VM cannot go on at the source yet: {error}");
            tracing::error!(%vm, warning);
            migration.measure(|m| {
                if !m.warnings.contains(&warning) && m.warnings.len() < 16 {
                    m.warnings.push(warning);
                }
            });
        }
    }
}

/// The guest is about to appear elsewhere: nothing of it may leave this host any more.
async fn close_port(agent: &Arc<Agent>, migration: &Arc<Migration>) {
    let Some(guest) = guest_of(agent, migration) else { return };
    if let Err(error) = guest.vm.close_ports(&agent.net).await {
        migration.measure(|m| m.warnings.push(format!("a port of the VM could not be closed: {error}")));
    }
}

async fn kill_qemu(agent: &Arc<Agent>, migration: &Arc<Migration>) {
    migration.stop_watching();
    stream::keep_figures(agent, migration).await;
    worker::dismiss(&agent.worker_dir(migration.id())).await;
    let ticket = migration.record().part.ticket();
    if let Err(error) = agent.end_silent(ticket.vm, ticket.source_epoch).await {
        tracing::error!(migration = %migration.id(), %error, "the VM's QEMU could not be ended");
        return;
    }
    agent.heard_of(ticket.vm).await;
    if let Some(guest) = guest_of(agent, migration) {
        if let Err(error) = guest.dismiss().await {
            // Without its death there is no going on; the timer asks for it again.
            tracing::error!(migration = %migration.id(), %error, "the VM's QEMU could not be ended");
            return;
        }
        agent.remove_guest(&guest);
    }
    // A late order to start it under an earlier right must find more than that it is not here.
    if let Err(error) = tokio::task::block_in_place(|| agent.ledger.put_floor(ticket.vm, ticket.epoch)) {
        tracing::error!(migration = %migration.id(), %error, "that the VM has left could not be written down yet");
        return;
    }
    if agent.record(ticket.vm).is_some_and(|record| record.epoch == ticket.source_epoch) {
        agent.forget_record(ticket.vm);
    }
    migration.note(agent);
    migration.post_source(Event::QemuGone);
}

impl Migration {
    /// Once both memories are known, or where they need not be compared, the destination's `loaded` counts.
    pub(super) fn compare_memory(&self) {
        let wanted = self.record().order.options.compare_memory;
        let ticket = self.record().part.ticket();
        {
            let live = lock(&self.live);
            if !live.loaded_waits {
                return;
            }
            if wanted {
                match (&live.own_memory, &live.peer_memory) {
                    (Some(own), Some(peer)) if own == peer => {}
                    (None, _) => return,
                    (Some(own), peer) => {
                        let differs = Failure::new(
                            FailureKind::Peer,
                            format!("the two memories differ: {own} here, {peer:?} on the destination"),
                            "this must not be: keep both hosts' logs and report it",
                        );
                        drop(live);
                        self.fail(differs);
                        self.post_source(Event::Abort);
                        return;
                    }
                }
            }
        }
        self.measure(|m| m.memory_compared = wanted);
        self.post_source(Event::Loaded(ticket));
    }

    /// What a task finds wrong ends the migration, as long as it can be ended.
    pub(super) fn abort_source(&self, failure: Failure) {
        self.fail(failure);
        self.post_source(Event::Abort);
    }
}

/// Whether QEMU's end of this migration must not be touched any more.
pub(super) fn is_decided(migration: &Migration) -> bool {
    migration.machine::<Source>().and_then(|machine| machine.fact()).is_some_and(|fact| fact != Fact::Resumed)
}

/// A failure of the worker's process.
pub(super) fn worker_failure(doing: &str, error: &io::Error) -> Failure {
    worker::failure(doing, error)
}

//! The destination's effects.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use limosa_api::agent::Signal;
use limosa_migration::Destination;
use limosa_migration::destination::{Effect, Event, State};
use limosa_model::{Failure, FailureKind};
use limosa_net::Schedule;
use limosa_qemu::commands::migration::{Announcement, MigrationParameters, MigrationStatus};
use limosa_qemu::commands::run::RunState;
use limosa_qemu::{Event as QemuEvent, EventsError};
use limosa_transport::TcpOptions;
use limosa_worker::control::Start;

use super::{Conducted, Migration, lock, memory, stream, telling};
use crate::agent::{Agent, now_us};
use crate::guest::{self, Guest};
use crate::ledger::{StreamEnd, VmRecord};
use crate::resolve::launch_plan;
use crate::worker::{self, Worker};

/// How long a QEMU that has loaded everything may not answer once the right to run has come.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How often QEMU is asked whether it has loaded everything, beside its own word.
const LOOK: Duration = Duration::from_millis(200);

impl Conducted for Destination {
    const TICK: Event = Event::Tick;

    async fn perform(agent: &Arc<Agent>, migration: &Arc<Migration>, effect: Effect) {
        if matches!(effect, Effect::Reserve | Effect::KillQemu) {
            let ticket = migration.record().part.ticket();
            if let Err(error) = agent.end_silent(ticket.vm, ticket.epoch).await {
                // Without its death there is no going on; the timer asks for it again.
                tracing::error!(migration = %migration.id(), %error, "the QEMU of a migration could not be ended");
                return;
            }
        }
        let answers = agent.heard_of(migration.vm());
        match effect {
            Effect::TellReady | Effect::Tell(_) | Effect::Ask => {}
            // The source has handed over and waits: nothing has run here, so the VM goes back.
            Effect::ActivateDisks => {
                if tokio::time::timeout(ANSWER_LIMIT, answers).await.is_err() {
                    let what = "QEMU on the destination does not answer";
                    migration.abort_destination(Failure::new(FailureKind::Qemu, what, "see its host's log"));
                    return;
                }
            }
            _ => answers.await,
        }
        match effect {
            Effect::Reserve => match reserve(agent, migration).await {
                Ok(()) => migration.post_destination(Event::Reserved),
                Err(failure) => migration.abort_destination(failure),
            },
            Effect::TellReady => tell_ready(agent, migration),
            Effect::AwaitArrival => await_arrival(agent, migration),
            Effect::TellLoaded => tell_loaded(agent, migration),
            Effect::ActivateDisks => activate_disks(agent, migration).await,
            Effect::Continue { run } => continue_guest(agent, migration, run).await,
            Effect::KillQemu => kill_qemu(agent, migration).await,
            Effect::Tell(fact) => telling::tell(agent, migration, fact),
            Effect::Ask => telling::ask(agent, migration, false),
        }
    }
}

impl Migration {
    fn abort_destination(&self, failure: Failure) {
        self.fail(failure);
        self.post_destination(Event::Abort);
    }
}

/// The QEMU that the VM comes to, if there is one.
fn guest_of(agent: &Agent, migration: &Migration) -> Option<Arc<Guest>> {
    let ticket = migration.record().part.ticket();
    agent.guest(ticket.vm).filter(|guest| guest.epoch() == ticket.epoch)
}

/// Makes everything ready to receive. What an earlier attempt left is removed first.
async fn reserve(agent: &Arc<Agent>, migration: &Arc<Migration>) -> Result<(), Failure> {
    let _one_at_a_time = agent.lifecycle.lock().await;
    let record = migration.record();
    let ticket = record.part.ticket();
    let options = &record.order.options;
    if let Some(left) = guest_of(agent, migration) {
        left.dismiss().await.map_err(|e| vm_failure("clear away an earlier attempt", &e))?;
        agent.remove_guest(&left);
    }
    let dir = agent.worker_dir(migration.id());
    worker::dismiss(&dir).await;
    let io = |doing: &'static str| move |error: std::io::Error| worker::failure(doing, &error);
    dir.create(&agent.config).map_err(io("given a folder"))?;
    let control = worker::listen_unix(&dir.control(), &agent.config).map_err(io("given a socket"))?;
    let address = SocketAddr::new(agent.config.migration_address(), 0);
    let listener = std::net::TcpListener::bind(address).map_err(|error| {
        Failure::new(
            FailureKind::Resource,
            format!("the address {} on the migration network cannot be listened on: {error}", address.ip()),
            "correct `migration_address` in the agent's configuration",
        )
    })?;
    let listens_at = listener.local_addr().map_err(io("given a port"))?;
    worker::spawn(&dir, control.into(), listener.into(), &agent.config).map_err(io("started"))?;

    let root = agent.runtime_root();
    let plan = launch_plan(&record.order.target, ticket.epoch, Some(ticket.migration), &agent.place(&root))?;
    let vm = limosa_vm::launch(plan, &agent.net).await.map_err(|e| vm_failure("start QEMU", &e))?;
    let guest = Guest::new(vm);
    agent.add_guest(guest.clone());
    guest::watch(agent, &guest);
    let qmp = guest.vm.qmp();
    let refused = |error: limosa_qemu::Error| {
        Failure::new(
            FailureKind::Qemu,
            format!("QEMU cannot receive: {error}"),
            "see the log of the destination",
        )
    };
    qmp.migrate_set_capabilities(&stream::capabilities(options.channels, false)).await.map_err(refused)?;
    let parameters = MigrationParameters {
        multifd_channels: (options.channels > 0).then_some(options.channels),
        ..MigrationParameters::default()
    };
    qmp.migrate_set_parameters(&parameters).await.map_err(refused)?;
    qmp.migrate_incoming(&format!("unix:{}", dir.stream().display())).await.map_err(refused)?;

    let peer =
        record.order.peer_fingerprint.as_deref().and_then(|text| text.parse().ok()).ok_or_else(|| {
            Failure::new(
                FailureKind::Invalid,
                "the order has no valid fingerprint of the source's worker",
                "try again",
            )
        })?;
    let mut worker = Worker::connect(&dir).await.map_err(io("reached"))?;
    let fingerprint = worker.fingerprint().await.map_err(io("asked"))?;
    let start = Start::Destination {
        migration: ticket.migration,
        peer,
        qemu_socket: dir.stream(),
        tcp: TcpOptions::default(),
    };
    worker.start(start).await.map_err(io("started"))?;
    migration.set_stream(agent, StreamEnd { addresses: vec![listens_at], fingerprint });
    Ok(())
}

fn vm_failure(doing: &str, error: &limosa_vm::VmError) -> Failure {
    Failure::new(
        error.kind(),
        format!("the destination could not {doing}: {error}"),
        "see the log of the destination",
    )
}

/// Tells the source where to send, and measures how far the two clocks are apart on the way.
fn tell_ready(agent: &Arc<Agent>, migration: &Arc<Migration>) {
    let record = migration.record();
    let Some(stream) = record.stream else { return };
    let signal = Signal::Ready {
        ticket: record.part.ticket(),
        addresses: stream.addresses,
        fingerprint: stream.fingerprint,
    };
    send(agent, migration, signal);
}

fn tell_loaded(agent: &Arc<Agent>, migration: &Arc<Migration>) {
    let memory = lock(&migration.live).own_memory.clone();
    if memory.is_none() && migration.record().order.options.compare_memory {
        // A restarted agent has forgotten it: what stands still can be read again.
        await_arrival(agent, migration);
        return;
    }
    send(agent, migration, Signal::Loaded { ticket: migration.record().part.ticket(), memory });
}

fn send(agent: &Arc<Agent>, migration: &Arc<Migration>, signal: Signal) {
    let (agent, migration) = (agent.clone(), migration.clone());
    tokio::spawn(async move {
        let Ok(client) = agent.peer(&migration.record().order.peer) else { return };
        let sent_us = now_us();
        match client.signal(migration.id(), &signal).await {
            Ok(status) => {
                let middle_us = sent_us / 2 + now_us() / 2;
                let ahead = status.now_us as i64 - middle_us as i64;
                migration.measure(|m| m.peer_clock_ahead_us = Some(ahead));
                telling::hear(&migration, &status);
            }
            Err(error) => tracing::debug!(migration = %migration.id(), %error, "the source has not heard"),
        }
    });
}

/// Watches QEMU load. Returns at once.
fn await_arrival(agent: &Arc<Agent>, migration: &Arc<Migration>) {
    let mut live = lock(&migration.live);
    if live.stream.as_ref().is_some_and(|task| !task.is_finished()) {
        return;
    }
    let task = {
        let (agent, migration) = (agent.clone(), migration.clone());
        tokio::spawn(async move {
            match arrive(&agent, &migration).await {
                Ok(()) => {
                    migration.post_destination(Event::Arrived);
                    if migration.machine::<Destination>().is_some_and(|m| m.state == State::Loaded) {
                        tell_loaded(&agent, &migration);
                    }
                }
                Err(failure) => migration.abort_destination(failure),
            }
        })
    };
    live.stream = Some(task);
}

/// Returns once QEMU has loaded everything, and stands still.
async fn arrive(agent: &Arc<Agent>, migration: &Arc<Migration>) -> Result<(), Failure> {
    let gone = || Failure::new(FailureKind::Qemu, "QEMU has ended on the destination", "see its log there");
    let guest = guest_of(agent, migration).ok_or_else(gone)?;
    let qmp = guest.vm.qmp();
    let mut events = qmp.subscribe();
    loop {
        let info = qmp.query_migrate().await.map_err(|_| gone())?;
        match info.status {
            MigrationStatus::Completed => {
                let state = guest.vm.run_state().await.map_err(|_| gone())?;
                if !matches!(state, RunState::InMigrate) {
                    break;
                }
            }
            MigrationStatus::Failed | MigrationStatus::Cancelled => {
                let why = info.error_desc.unwrap_or_else(|| "the stream broke".into());
                return Err(Failure::new(
                    FailureKind::Peer,
                    format!("QEMU on the destination stopped receiving: {why}"),
                    "check the network between the hosts, then try again",
                ));
            }
            _ => {}
        }
        tokio::select! {
            event = events.next() => match event {
                Err(EventsError::Closed) => return Err(gone()),
                Ok(event) if !matches!(event.event, QemuEvent::Migration(_)) => {}
                _ => {}
            },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    if migration.record().order.options.compare_memory {
        let digest = memory::digest_of(&guest.vm).await?;
        lock(&migration.live).own_memory = Some(digest);
    }
    Ok(())
}

/// Takes the disks while the guest still stands still. QEMUs before 10 take them when the guest is let go.
async fn activate_disks(agent: &Arc<Agent>, migration: &Arc<Migration>) {
    let Some(guest) = guest_of(agent, migration) else {
        migration.post_destination(Event::QemuGone);
        return;
    };
    match guest.vm.qmp().blockdev_set_active(true, None).await {
        Ok(()) => migration.post_destination(Event::Activated),
        Err(error) if error.is_command_not_found() => migration.post_destination(Event::Activated),
        Err(error) => migration.abort_destination(Failure::new(
            FailureKind::Storage,
            format!("the VM's disks cannot be taken on the destination: {error}"),
            "does another process use them? the VM goes on at the source",
        )),
    }
}

/// The VM is here for good. Nothing that goes wrong from here on leads back: it is a warning.
async fn continue_guest(agent: &Arc<Agent>, migration: &Arc<Migration>, run: bool) {
    let record = migration.record();
    let ticket = record.part.ticket();
    let mut warnings = Vec::new();
    if let Some(guest) = guest_of(agent, migration) {
        if let Err(error) = guest.vm.open_ports(&agent.net).await {
            warnings.push(format!("a port of the VM could not be opened: {error}"));
        }
        let wanted = run && agent.record(ticket.vm).is_none_or(|r| r.epoch != ticket.epoch || !r.paused);
        if wanted && !matches!(guest.vm.run_state().await, Ok(RunState::Running)) {
            if let Err(error) = guest.vm.qmp().cont().await {
                warnings.push(format!("the VM could not be let go: {error}"));
            }
            migration.measure(|m| m.continued_us = Some(now_us()));
        }
        announce_guest(agent, &guest, &mut warnings).await;
    } else {
        warnings.push("QEMU ended before the VM was let go".into());
    }
    let here = VmRecord {
        target: record.order.target.clone(),
        epoch: ticket.epoch,
        boot: agent.boot.clone(),
        paused: !run,
        ended: None,
    };
    let known = agent.record(ticket.vm).is_some_and(|r| r.epoch >= ticket.epoch);
    if !known && let Err(error) = agent.put_record(here) {
        warnings.push(error.to_string());
    }
    if let Some(guest) = guest_of(agent, migration) {
        if let Some(at) = guest.seen().resumed_us.filter(|_| run) {
            migration.measure(|m| m.continued_us = Some(at));
        }
    } else {
        guest::end_record(agent, ticket.vm, ticket.epoch, "QEMU ended before the VM was let go");
    }
    for warning in &warnings {
        tracing::warn!(migration = %migration.id(), warning);
    }
    migration.measure(|m| m.warnings.extend(warnings));
    keep_figures(agent, migration).await;
    migration.note(agent);
    migration.post_destination(Event::Continued);
    worker::dismiss(&agent.worker_dir(migration.id())).await;
}

/// Tells the network where the VM is: by QEMU through its own port, and by us for the addresses that are known.
async fn announce_guest(agent: &Agent, guest: &Guest, warnings: &mut Vec<String>) {
    if let Err(error) = guest.vm.qmp().announce_self(&Announcement::default()).await {
        warnings.push(format!("QEMU does not announce the VM: {error}"));
    }
    match guest.vm.announce(&agent.net, Schedule::default()).await {
        Ok(rounds) => drop(tokio::spawn(async move {
            for rounds in rounds {
                if let Err(error) = rounds.finished().await {
                    tracing::warn!(%error, "a VM was not announced to the end");
                }
            }
        })),
        Err(error) => warnings.push(format!("the VM could not be announced: {error}")),
    }
}

async fn keep_figures(agent: &Agent, migration: &Migration) {
    stream::keep_figures(agent, migration).await;
}

async fn kill_qemu(agent: &Arc<Agent>, migration: &Arc<Migration>) {
    migration.stop_watching();
    worker::dismiss(&agent.worker_dir(migration.id())).await;
    if let Some(guest) = guest_of(agent, migration) {
        if let Err(error) = guest.dismiss().await {
            tracing::error!(migration = %migration.id(), %error, "the QEMU of a migration could not be killed");
            return;
        }
        agent.remove_guest(&guest);
    }
    migration.note(agent);
    migration.post_destination(Event::QemuGone);
}

//! QEMU's own stream at the source: started, watched, pushed along the convergence ladder, and switched over.

use std::sync::Arc;
use std::time::Duration;

use limosa_migration::Source;
use limosa_migration::converge::{Advice, Allowed, Pass, advise, time_to_send};
use limosa_migration::source::{Event, State};
use limosa_model::{Bandwidth, ByteSize, Failure, FailureKind, Millis, Phase, Progress};
use limosa_qemu::commands::migration::{Capability, MigrationInfo, MigrationParameters, MigrationStatus};
use limosa_qemu::commands::run::RunState;
use limosa_qemu::{Error as QmpError, Event as QemuEvent};
use limosa_transport::TcpOptions;
use limosa_worker::control::Start;
use tokio::time::Instant;

use super::source::{guest_of, is_decided, worker_failure};
use super::{Migration, lock, memory, telling};
use crate::agent::{Agent, now_us};
use crate::guest::{Guest, time_us};
use crate::worker::Worker;

/// How often QEMU is asked how far it is.
const LOOK: Duration = Duration::from_millis(100);

/// How long nothing may arrive at the destination before the stream counts as stalled.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// What every stream uses. The same on both ends.
pub(super) fn capabilities(channels: u8, throttle: bool) -> Vec<Capability> {
    let mut on = vec![
        Capability::Events,
        Capability::ReturnPath,
        Capability::PauseBeforeSwitchover,
        Capability::LateBlockActivate,
    ];
    if channels > 0 {
        on.push(Capability::Multifd);
    }
    if throttle {
        on.push(Capability::AutoConverge);
    }
    on
}

/// Watches the stream, and starts it where it has not begun. Returns at once.
pub(super) fn start(agent: &Arc<Agent>, migration: &Arc<Migration>) {
    let mut live = lock(&migration.live);
    if live.stream.as_ref().is_some_and(|task| !task.is_finished()) {
        return;
    }
    let task = {
        let (agent, migration) = (agent.clone(), migration.clone());
        tokio::spawn(async move {
            if let Err(failure) = run(&agent, &migration).await {
                migration.abort_source(failure);
            }
        })
    };
    live.stream = Some(task);
}

fn qmp_failure(doing: &str, error: &QmpError) -> Failure {
    Failure::new(
        FailureKind::Qemu,
        format!("QEMU on the source did not {doing}: {error}"),
        "see the agent's log",
    )
}

async fn run(agent: &Arc<Agent>, migration: &Arc<Migration>) -> Result<(), Failure> {
    let guest = guest_of(agent, migration).ok_or_else(|| {
        Failure::new(FailureKind::Qemu, "the VM's QEMU has ended on the source", "start the VM again")
    })?;
    let mut events = guest.vm.qmp().subscribe();
    let info = guest.vm.qmp().query_migrate().await.map_err(|e| qmp_failure("answer", &e))?;
    let under_way = !info.status.is_over();
    let sent = guest.vm.run_state().await.is_ok_and(|state| state == RunState::PostMigrate);
    if !under_way && !sent {
        begin(agent, migration, &guest).await?;
    }
    let mut watch = Watch::new(migration);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Ok(event) => match event.event {
                    QemuEvent::Migration(_) | QemuEvent::MigrationPass(_) => {}
                    QemuEvent::Stop => {
                        watch.stop_us = Some(time_us(&event));
                        if watch.said_stopped {
                            migration.measure(|m| m.stopped_us = watch.stop_us);
                        }
                    }
                    _ => continue,
                },
                Err(limosa_qemu::EventsError::Missed(_)) => {}
                Err(limosa_qemu::EventsError::Closed) => {
                    let what = "the connection to the source's QEMU was lost";
                    return Err(Failure::new(FailureKind::Qemu, what, "restart the agent if the VM does not go on"));
                }
            },
            _ = look.tick() => {}
        }
        let info = match guest.vm.qmp().query_migrate().await {
            Ok(info) => info,
            Err(error) if error.is_connection_lost() => return Err(qmp_failure("say how far it is", &error)),
            // It is busy, as while it sends the last of the memory: the limits tell when that is too long.
            Err(error) => {
                tracing::debug!(migration = %migration.id(), %error, "QEMU does not say how far it is");
                watch.limits(migration)?;
                continue;
            }
        };
        if watch.look(agent, migration, &guest, &info).await? {
            return Ok(());
        }
    }
}

/// Gives worker and QEMU their orders.
async fn begin(agent: &Arc<Agent>, migration: &Arc<Migration>, guest: &Arc<Guest>) -> Result<(), Failure> {
    let record = migration.record();
    let options = record.order.options;
    let Some(end) = record.stream else {
        return Err(Failure::new(
            FailureKind::Peer,
            "the destination has not said where it listens",
            "try again",
        ));
    };
    let peer = end.fingerprint.parse().map_err(|_| {
        Failure::new(
            FailureKind::Peer,
            "the destination's worker has no valid fingerprint",
            "see its host's log",
        )
    })?;
    let dir = agent.worker_dir(migration.id());
    let start = Start::Source {
        migration: migration.id(),
        peer,
        addresses: end.addresses,
        tcp: TcpOptions::default(),
    };
    let mut worker = Worker::connect(&dir).await.map_err(|e| worker_failure("reached", &e))?;
    worker.start(start).await.map_err(|e| worker_failure("started", &e))?;
    let qmp = guest.vm.qmp();
    let channels = options.channels;
    qmp.migrate_set_capabilities(&capabilities(channels, options.throttle))
        .await
        .map_err(|e| qmp_failure("take its capabilities", &e))?;
    let parameters = MigrationParameters {
        downtime_limit_ms: Some(options.downtime_limit_ms.get()),
        max_bandwidth_bytes_per_second: Some(options.bandwidth.map_or(0, Bandwidth::as_bytes_per_second)),
        multifd_channels: (channels > 0).then_some(channels),
        ..MigrationParameters::default()
    };
    qmp.migrate_set_parameters(&parameters).await.map_err(|e| qmp_failure("take its parameters", &e))?;
    qmp.migrate(&format!("unix:{}", dir.stream().display()))
        .await
        .map_err(|e| qmp_failure("begin to send", &e))
}

/// What is remembered from one look at QEMU to the next.
struct Watch {
    passes: Vec<Pass>,
    dirty_sync_count: u64,
    percent: u8,
    first_remaining: Option<u64>,
    moved: (u64, Instant),
    began: Instant,
    said_stopped: bool,
    /// QEMU's clock when the guest's CPUs last stopped, in microseconds since 1970.
    stop_us: Option<u64>,
    phase: Phase,
}

impl Watch {
    fn new(migration: &Migration) -> Self {
        let percent = lock(&migration.live).progress.as_ref().map_or(0, |p| p.percent);
        let now = Instant::now();
        Self {
            passes: Vec::new(),
            dirty_sync_count: 0,
            percent,
            first_remaining: None,
            moved: (0, now),
            began: now,
            said_stopped: false,
            stop_us: None,
            phase: Phase::Transfer,
        }
    }

    /// Takes what QEMU says. True once it has sent everything.
    async fn look(
        &mut self,
        agent: &Arc<Agent>,
        migration: &Arc<Migration>,
        guest: &Arc<Guest>,
        info: &MigrationInfo,
    ) -> Result<bool, Failure> {
        match &info.status {
            MigrationStatus::PreSwitchover | MigrationStatus::Device => self.stopped(agent, migration, guest),
            MigrationStatus::Completed => {
                self.stopped(agent, migration, guest);
                self.sent(agent, migration, guest).await?;
                return Ok(true);
            }
            MigrationStatus::Failed | MigrationStatus::Cancelled => {
                let why = info.error_desc.clone().unwrap_or_else(|| "its stream broke".into());
                return Err(Failure::new(
                    FailureKind::Peer,
                    format!("QEMU stopped sending: {why}"),
                    "check the network between the hosts and the destination's log, then try again",
                ));
            }
            MigrationStatus::Active => {
                self.figures(migration, info);
                self.converge(migration)?;
            }
            _ => {}
        }
        self.limits(migration)?;
        Ok(false)
    }

    fn stopped(&mut self, agent: &Agent, migration: &Migration, guest: &Guest) {
        if self.said_stopped {
            return;
        }
        self.said_stopped = true;
        self.phase = Phase::Switchover;
        let paused = agent.record(guest.id()).is_some_and(|record| record.paused);
        let ran = !paused && !guest.is_held();
        // Without the event, as after a restart of the agent, the time that it was noticed is the nearest known.
        let at = self.stop_us.unwrap_or_else(now_us);
        migration.measure(|m| m.stopped_us = m.stopped_us.or(Some(at)));
        migration.post_source(Event::Stopped { ran });
    }

    async fn sent(
        &self,
        agent: &Arc<Agent>,
        migration: &Arc<Migration>,
        guest: &Arc<Guest>,
    ) -> Result<(), Failure> {
        let state = guest.vm.run_state().await.map_err(|e| {
            Failure::new(FailureKind::Qemu, format!("QEMU on the source does not answer: {e}"), "see its log")
        })?;
        if state != RunState::PostMigrate {
            return Err(Failure::new(
                FailureKind::Qemu,
                format!("QEMU on the source has completed, but is in `{state}` and not in `postmigrate`"),
                "try again",
            ));
        }
        if migration.record().order.options.compare_memory {
            let digest = memory::digest_of(&guest.vm).await?;
            lock(&migration.live).own_memory = Some(digest);
        }
        migration.post_source(Event::Sent);
        migration.compare_memory();
        keep_figures(agent, migration).await;
        Ok(())
    }

    fn figures(&mut self, migration: &Migration, info: &MigrationInfo) {
        let Some(ram) = &info.ram else { return };
        if ram.transferred_bytes != self.moved.0 {
            self.moved = (ram.transferred_bytes, Instant::now());
        }
        let rate = Bandwidth::bits_per_second((ram.throughput_mbit_per_second.max(0.0) * 1e6) as u64);
        let dirty_rate = Bandwidth::bits_per_second(ram.dirty_pages_per_second * ram.page_size_bytes * 8);
        let remaining = ByteSize::bytes(ram.remaining_bytes);
        let throttle_percent = info.cpu_throttle_percentage.unwrap_or(0).min(99) as u8;
        if ram.dirty_sync_count > self.dirty_sync_count {
            self.dirty_sync_count = ram.dirty_sync_count;
            self.passes.push(Pass { remaining, rate, dirty_rate, throttle_percent });
            migration.measure(|m| m.passes = ram.dirty_sync_count);
        }
        // By what is left of the most that ever was: it comes down to nothing, and never goes back.
        let most = self.first_remaining.unwrap_or(ram.total_bytes).max(ram.remaining_bytes).max(1);
        self.first_remaining = Some(most);
        let done = (most - ram.remaining_bytes) * 90 / most;
        self.percent = self.percent.max(done.min(90) as u8);
        let progress = Progress {
            phase: self.phase,
            percent: self.percent,
            wire: ByteSize::bytes(ram.transferred_bytes),
            remaining,
            rate,
            dirty_rate,
            left_ms: (rate > dirty_rate)
                .then(|| {
                    let net = Bandwidth::bits_per_second(
                        rate.as_bits_per_second() - dirty_rate.as_bits_per_second(),
                    );
                    time_to_send(remaining, net)
                })
                .flatten(),
            expected_downtime_ms: info.expected_downtime_ms.map(Millis::new),
            throttle_percent,
        };
        lock(&migration.live).progress = Some(progress);
    }

    /// Climbs the ladder where the guest dirties memory faster than the link carries it.
    fn converge(&self, migration: &Migration) -> Result<(), Failure> {
        let options = migration.record().order.options;
        let allowed = Allowed { downtime_limit_ms: options.downtime_limit_ms, throttle: options.throttle };
        match advise(&self.passes, allowed) {
            Advice::GoOn => Ok(()),
            Advice::GiveUp { downtime_ms } => {
                let last = self.passes[self.passes.len() - 1];
                Err(Failure::new(
                    FailureKind::NotConverging,
                    format!(
                        "the guest dirties {} and the link carries {}: with {} left it would stand still for {}, and {} is allowed",
                        last.dirty_rate.human(),
                        last.rate.human(),
                        last.remaining.human(),
                        downtime_ms.human(),
                        options.downtime_limit_ms.human(),
                    ),
                    "allow more downtime, allow throttling, move it when it is less busy, or over a faster link",
                ))
            }
        }
    }

    fn limits(&self, migration: &Migration) -> Result<(), Failure> {
        if self.moved.1.elapsed() > STALL_LIMIT && !self.said_stopped {
            return Err(Failure::new(
                FailureKind::Timeout,
                format!("nothing was sent for {}", Millis::from(STALL_LIMIT).human()),
                "check the network between the hosts",
            ));
        }
        match migration.record().order.options.deadline_ms {
            Some(deadline) if self.began.elapsed() > deadline.duration() && !self.said_stopped => {
                Err(Failure::new(
                    FailureKind::Timeout,
                    format!("the deadline of {} has passed", deadline.human()),
                    "allow more time, or more downtime",
                ))
            }
            _ => Ok(()),
        }
    }
}

/// Lets QEMU, which has stopped the guest, send the rest; and ends it where that takes too long.
pub(super) async fn continue_switchover(agent: &Arc<Agent>, migration: &Arc<Migration>) {
    let limit = migration.record().order.options.switchover_limit_ms;
    {
        let migration = migration.clone();
        let timer = tokio::spawn({
            let migration = migration.clone();
            async move {
                tokio::time::sleep(limit.duration()).await;
                if !is_decided(&migration) {
                    migration.abort_source(Failure::new(
                        FailureKind::Timeout,
                        format!("the switchover took longer than {}", limit.human()),
                        "check the network between the hosts; the guest was resumed on the source",
                    ));
                }
            }
        });
        if let Some(before) = lock(&migration.live).switchover_limit.replace(timer) {
            before.abort();
        }
    }
    // By this there is a connection when there is something to tell: making one then would cost downtime.
    telling::ask(agent, migration, false);
    let Some(guest) = guest_of(agent, migration) else { return };
    // After a restart it may not wait any more; what it does then is seen by whoever watches it.
    start(agent, migration);
    let waits =
        guest.vm.qmp().query_migrate().await.map(|info| info.status == MigrationStatus::PreSwitchover);
    let still = migration
        .machine::<Source>()
        .is_some_and(|machine| matches!(machine.state, State::Switching { sent: false, .. }));
    if matches!(waits, Ok(true))
        && still
        && let Err(error) = guest.vm.qmp().migrate_continue(&MigrationStatus::PreSwitchover).await
    {
        migration.abort_source(qmp_failure("go on with the switchover", &error));
    }
}

/// Notes the worker's figures, while it is there to tell them.
pub(super) async fn keep_figures(agent: &Agent, migration: &Migration) {
    let Ok(mut worker) = Worker::connect(&agent.worker_dir(migration.id())).await else { return };
    if let Ok(status) = worker.status().await {
        migration.measure(|m| m.wire_bytes = m.wire_bytes.max(status.bytes_to_peer + status.bytes_from_peer));
    }
}

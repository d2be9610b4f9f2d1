//! One end of a migration: a pure machine, the journal under it, and what it asks for done in order.
//!
//! ```text
//!  signals, QEMU, worker, timer ──events──▶ conductor ──step, stored──▶ effects ──▶ performer
//!                                              ▲                                       │
//!                                              └──────────────── events ───────────────┘
//! ```
//!
//! The conductor takes one event after the other and is never busy with anything else, so that a fact that arrives
//! is stored and answered at once. The performer does one effect after the other, in the order in which they were
//! asked for. An event whose step cannot be stored (a full disk) is held and tried again; those behind it wait.

mod destination;
mod memory;
mod source;
mod stream;
mod telling;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use limosa_api::agent::{Measured, MigrationStatus, Signal};
use limosa_migration::{Destination, Source, destination as destination_core, source as source_core};
use limosa_model::migration::PhaseTime;
use limosa_model::{Epoch, Fact, Failure, FailureKind, MigrationId, Phase, Progress, VmId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::agent::{Agent, now_us};
use crate::ledger::{End, MigrationRecord, Part, StreamEnd};

/// How long a state waits before it asks or tells again.
const TICK: Duration = Duration::from_millis(500);

/// The longest text of a failure that is kept: the record that it is part of must fit the journal.
const FAILURE_CHARACTERS: usize = 2000;

/// How many addresses a destination may listen on, and how long the fingerprint of its worker may be.
const ADDRESSES_MAX: usize = 16;
const FINGERPRINT_BYTES_MAX: usize = 128;

/// How long a step that could not be stored waits before it is tried again.
const STORE_AGAIN: Duration = Duration::from_millis(200);

/// One end of a migration, as the rest of the agent sees it.
pub(crate) struct Migration {
    record: Mutex<MigrationRecord>,
    live: Mutex<Live>,
    inbox: Inbox,
}

type Mail<E> = (E, Option<oneshot::Sender<()>>);

enum Inbox {
    Source(mpsc::UnboundedSender<Mail<source_core::Event>>),
    Destination(mpsc::UnboundedSender<Mail<destination_core::Event>>),
}

/// What need not survive the agent.
#[derive(Default)]
struct Live {
    progress: Option<Progress>,
    /// The phase and when it began, in microseconds since 1970.
    phase: Option<(Phase, u64)>,
    told_peer: Option<Fact>,
    told_server: Option<Fact>,
    telling: bool,
    asking: bool,
    own_memory: Option<String>,
    peer_memory: Option<String>,
    loaded_waits: bool,
    /// The task that watches the stream; ended with it.
    stream: Option<JoinHandle<()>>,
    switchover_limit: Option<JoinHandle<()>>,
}

/// One end's machine with what performs its effects.
trait Conducted: End + Send + 'static
where
    Self::Event: Copy + Send + 'static,
    Self::Effect: Copy + Send + 'static,
{
    const TICK: Self::Event;

    /// Does one effect. What it finds out comes back as events.
    fn perform(
        agent: &Arc<Agent>,
        migration: &Arc<Migration>,
        effect: Self::Effect,
    ) -> impl Future<Output = ()> + Send;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes up a migration whose record is in the journal. `first` is the event that it begins or goes on with.
pub(crate) fn take_up(agent: &Arc<Agent>, record: MigrationRecord, first: First) -> Arc<Migration> {
    match record.part {
        Part::Source(_) => {
            let (sender, receiver) = mpsc::unbounded_channel();
            let migration = Arc::new(Migration::new(record, Inbox::Source(sender)));
            agent.add_migration(migration.clone());
            if let First::Restarted(Sight::Source(sight)) = first {
                migration.post_source(source_core::Event::Restarted(sight));
            }
            tokio::spawn(conduct::<Source>(agent.clone(), migration.clone(), receiver, vec![]));
            migration
        }
        Part::Destination(_) => {
            let (sender, receiver) = mpsc::unbounded_channel();
            let migration = Arc::new(Migration::new(record, Inbox::Destination(sender)));
            agent.add_migration(migration.clone());
            let mut effects = vec![];
            match first {
                First::Begun => effects.push(destination_core::Effect::Reserve),
                First::Restarted(Sight::Destination(sight)) => {
                    migration.post_destination(destination_core::Event::Restarted(sight));
                }
                First::Restarted(Sight::Source(_)) | First::Silent => {}
            }
            tokio::spawn(conduct::<Destination>(agent.clone(), migration.clone(), receiver, effects));
            migration
        }
    }
}

/// How a migration is taken up.
pub(crate) enum First {
    /// The order has just come.
    Begun,
    /// It was found in the journal, or found out from QEMU.
    Restarted(Sight),
    /// It was found in the journal, and its QEMU does not answer: what it does will be told later.
    Silent,
}

/// What QEMU is found doing.
pub(crate) enum Sight {
    Source(source_core::Sight),
    Destination(destination_core::Sight),
}

async fn conduct<E: Conducted>(
    agent: Arc<Agent>,
    migration: Arc<Migration>,
    mut inbox: mpsc::UnboundedReceiver<Mail<E::Event>>,
    first: Vec<E::Effect>,
) where
    E::Event: Copy + Send + 'static,
    E::Effect: Copy + Send + 'static,
{
    let (work, mut to_do) = mpsc::unbounded_channel();
    let performer = {
        let (agent, migration) = (agent.clone(), migration.clone());
        tokio::spawn(async move {
            while let Some(effect) = to_do.recv().await {
                E::perform(&agent, &migration, effect).await;
            }
        })
    };
    for effect in first {
        let _ = work.send(effect);
    }
    let mut held: VecDeque<Mail<E::Event>> = VecDeque::new();
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + TICK, TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let mail = if held.is_empty() {
            tokio::select! {
                mail = inbox.recv() => mail,
                _ = tick.tick() => Some((E::TICK, None)),
            }
        } else {
            tokio::time::sleep(STORE_AGAIN).await;
            while let Ok(mail) = inbox.try_recv() {
                held.push_back(mail);
            }
            held.pop_front()
        };
        let Some((event, heard)) = mail else { break };
        if agent.migration(migration.id()).is_none() {
            break;
        }
        match migration.step::<E>(&agent, event) {
            Ok(effects) => {
                for effect in effects {
                    let _ = work.send(effect);
                }
                if let Some(heard) = heard {
                    let _ = heard.send(());
                }
            }
            Err(error) => {
                tracing::error!(migration = %migration.id(), %error, "a step is held until it can be stored");
                held.push_front((event, heard));
            }
        }
    }
    drop(work);
    let _ = performer.await;
}

impl Migration {
    fn new(record: MigrationRecord, inbox: Inbox) -> Self {
        let live = Live { phase: Some((phase_of(&record.part), now_us())), ..Live::default() };
        Self { record: Mutex::new(record), live: Mutex::new(live), inbox }
    }

    pub(crate) fn id(&self) -> MigrationId {
        lock(&self.record).part.ticket().migration
    }

    pub(crate) fn vm(&self) -> VmId {
        lock(&self.record).part.ticket().vm
    }

    pub(crate) fn record(&self) -> MigrationRecord {
        lock(&self.record).clone()
    }

    /// The state of the machine, if it is that of this end.
    fn machine<E: End>(&self) -> Option<E> {
        E::of(&lock(&self.record).part)
    }

    fn step<E: Conducted>(
        &self,
        agent: &Agent,
        event: E::Event,
    ) -> Result<Vec<E::Effect>, limosa_journal::JournalError>
    where
        E::Event: Copy + Send + 'static,
        E::Effect: Copy + Send + 'static,
    {
        // The journal is read and written in this thread: others take over what else there is to do meanwhile.
        // The record is held until it is stored, so that nobody stores an older one behind it.
        let (before, part, effects) = tokio::task::block_in_place(|| {
            let mut record = lock(&self.record);
            let before = record.part;
            let effects = agent.ledger.step::<E>(&mut record, event)?;
            Ok::<_, limosa_journal::JournalError>((before, record.part, effects))
        })?;
        if part != before {
            tracing::info!(migration = %self.id(), from = before.state_name(), to = part.state_name(), "step");
            self.enter(phase_of(&part));
            agent.changed.notify_one();
        }
        Ok(effects)
    }

    /// Notes the phase, and how long the one before it took.
    fn enter(&self, phase: Phase) {
        let now = now_us();
        let mut live = lock(&self.live);
        match live.phase {
            Some((current, began)) if current < phase => {
                let micros = now.saturating_sub(began);
                lock(&self.record).measured.phases.push(PhaseTime { phase: current, micros });
                live.phase = Some((phase, now));
            }
            Some(_) => {}
            None => live.phase = Some((phase, now)),
        }
    }

    fn measure(&self, change: impl FnOnce(&mut Measured)) {
        change(&mut lock(&self.record).measured);
    }

    fn set_stream(&self, agent: &Agent, stream: StreamEnd) {
        lock(&self.record).stream = Some(stream);
        self.note(agent);
    }

    /// Stores what surrounds the machine.
    fn note(&self, agent: &Agent) {
        let record = lock(&self.record);
        if let Err(error) = agent.ledger.note_migration(&record) {
            tracing::warn!(migration = %record.part.ticket().migration, %error, "progress could not be noted");
        }
    }

    /// Why it will fail. The first reason stays.
    fn fail(&self, failure: Failure) {
        let mut record = lock(&self.record);
        if record.failure.is_none() {
            let phase = phase_of(&record.part);
            tracing::warn!(migration = %record.part.ticket().migration, %failure, %phase, "the migration fails");
            record.failure = Some(failure.during(phase).clipped(FAILURE_CHARACTERS));
        }
    }

    fn post_source(&self, event: source_core::Event) {
        if let Inbox::Source(inbox) = &self.inbox {
            let _ = inbox.send((event, None));
        }
    }

    fn post_destination(&self, event: destination_core::Event) {
        if let Inbox::Destination(inbox) = &self.inbox {
            let _ = inbox.send((event, None));
        }
    }

    /// Posts an event, and returns once it has been stepped and stored.
    async fn post_and_wait(&self, signal: SignalEvent) {
        let (heard, stored) = oneshot::channel();
        let sent = match (&self.inbox, signal) {
            (Inbox::Source(inbox), SignalEvent::Source(event)) => inbox.send((event, Some(heard))).is_ok(),
            (Inbox::Destination(inbox), SignalEvent::Destination(event)) => {
                inbox.send((event, Some(heard))).is_ok()
            }
            _ => false,
        };
        if sent {
            let _ = stored.await;
        }
    }

    /// What the VM's QEMU does has become known.
    pub(crate) fn restarted(&self, sight: Sight) {
        match sight {
            Sight::Source(sight) => self.post_source(source_core::Event::Restarted(sight)),
            Sight::Destination(sight) => self.post_destination(destination_core::Event::Restarted(sight)),
        }
    }

    /// The QEMU of the VM at this epoch is gone.
    pub(crate) fn qemu_gone(&self, epoch: Epoch) {
        let ticket = self.record().part.ticket();
        match self.inbox {
            Inbox::Source(_) if epoch == ticket.source_epoch => {
                self.post_source(source_core::Event::QemuGone)
            }
            Inbox::Destination(_) if epoch == ticket.epoch => {
                self.post_destination(destination_core::Event::QemuGone);
            }
            _ => {}
        }
    }

    /// Takes a signal of the peer or the server. Returns once what it changes is stored.
    pub(crate) async fn signal(self: &Arc<Self>, agent: &Arc<Agent>, signal: Signal) -> Result<(), Failure> {
        use SignalEvent::{Destination as D, Source as S};
        let ticket = self.record().part.ticket();
        let is_source = matches!(self.inbox, Inbox::Source(_));
        let event = match signal {
            Signal::Ready { ticket: of, addresses, fingerprint } if is_source && of == ticket => {
                if addresses.len() > ADDRESSES_MAX || fingerprint.len() > FINGERPRINT_BYTES_MAX {
                    return Err(Failure::new(
                        FailureKind::Invalid,
                        format!("the destination of migration {} names no place to send to", self.id()),
                        "see the destination's log",
                    ));
                }
                if self.record().stream.is_none() {
                    self.set_stream(agent, StreamEnd { addresses, fingerprint });
                }
                Some(S(source_core::Event::Ready))
            }
            Signal::Loaded { ticket: of, memory } if is_source && of == ticket => {
                lock(&self.live).peer_memory = memory;
                lock(&self.live).loaded_waits = true;
                self.compare_memory();
                None
            }
            Signal::Told(told) if is_source => Some(S(source_core::Event::Heard(told))),
            Signal::Told(told) => Some(D(destination_core::Event::Heard(told))),
            Signal::GiveUp if !is_source => Some(D(destination_core::Event::GiveUp)),
            Signal::SourceLost if !is_source => Some(D(destination_core::Event::SourceLost)),
            Signal::Abandon if is_source => Some(S(source_core::Event::Abandon)),
            Signal::Cancel => {
                self.cancel()?;
                Some(if is_source {
                    S(source_core::Event::Abort)
                } else {
                    D(destination_core::Event::GiveUp)
                })
            }
            other => {
                return Err(Failure::new(
                    FailureKind::Invalid,
                    format!("the signal {other:?} is not for this end of migration {}", self.id()),
                    "this is a fault of the sender",
                ));
            }
        };
        if let Some(event) = event {
            self.post_and_wait(event).await;
        }
        Ok(())
    }

    fn cancel(&self) -> Result<(), Failure> {
        let record = self.record();
        let too_late = match record.part {
            Part::Source(machine) => !machine.can_cancel() && record.failure.is_none(),
            Part::Destination(machine) => machine.fact() == Some(Fact::Running),
        };
        if too_late {
            return Err(Failure::new(
                FailureKind::Conflict,
                format!(
                    "it is too late to cancel migration {}: it is in `{}`",
                    self.id(),
                    record.part.state_name()
                ),
                "wait for its end; then move the VM back if you wish",
            ));
        }
        self.fail(Failure::new(
            FailureKind::Cancelled,
            "the migration was cancelled",
            "start it again when you wish",
        ));
        Ok(())
    }

    /// Whether a VM that this host runs is still this host's alone.
    pub(crate) fn is_undecided(&self) -> bool {
        match self.record().part {
            Part::Source(machine) => machine.can_cancel() || machine.fact() == Some(Fact::Resumed),
            Part::Destination(machine) => machine.fact() == Some(Fact::Running),
        }
    }

    /// How this end stands.
    pub(crate) fn status(&self) -> MigrationStatus {
        let record = self.record();
        let live = lock(&self.live);
        MigrationStatus {
            ticket: record.part.ticket(),
            role: record.part.role(),
            state: record.part.state_name(),
            phase: phase_of(&record.part),
            fact: record.part.fact(),
            ended: record.part.has_ended(),
            progress: live.progress.clone(),
            fingerprint: record.fingerprint,
            failure: record.failure,
            measured: record.measured,
            now_us: now_us(),
        }
    }

    /// Ends the tasks that watch the stream.
    fn stop_watching(&self) {
        let mut live = lock(&self.live);
        for task in [live.stream.take(), live.switchover_limit.take()].into_iter().flatten() {
            task.abort();
        }
    }
}

enum SignalEvent {
    Source(source_core::Event),
    Destination(destination_core::Event),
}

/// The phase that a state belongs to.
fn phase_of(part: &Part) -> Phase {
    use destination_core::State as D;
    use source_core::State as S;
    match part {
        Part::Source(machine) => match machine.state {
            S::Planned => Phase::Reserve,
            S::Transferring => Phase::Transfer,
            S::Switching { .. } => Phase::Switchover,
            S::HandedOver { .. } | S::InDoubt => Phase::Handover,
            S::Resumed { .. } | S::Releasing | S::Released => Phase::Finish,
        },
        Part::Destination(machine) => match machine.state {
            D::Reserving => Phase::Reserve,
            D::Ready => Phase::Transfer,
            D::Loaded => Phase::Switchover,
            D::Activating { .. } | D::InDoubt | D::Running { continued: false, .. } => Phase::Handover,
            D::Running { .. } | D::Refusing | D::Refused | D::Lost => Phase::Finish,
        },
    }
}

//! What lies behind the agents: their VMs, and the streams between them, in one place.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use limosa_api::agent::{Measured, MigrationOrder, MigrationStatus, Role, Signal, VmStatus};
use limosa_migration::{Destination, Source, Told, destination, source};
use limosa_model::Machine as _;
use limosa_model::migration::PhaseTime;
use limosa_model::{
    BootId, Epoch, Fact, Failure, FailureKind, HostId, JournalId, MigrationId, Phase, PowerState, VmId,
    VmSpec,
};
use tokio::sync::Notify;

/// All hosts of a cluster.
pub(crate) struct World {
    hosts: Mutex<BTreeMap<HostId, HostState>>,
    /// Something has changed anywhere.
    pub(crate) happened: Notify,
}

/// Where a migration is held until a test lets it go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hold {
    /// The destination is ready, nothing is sent.
    Transfer,
    /// The source has handed over, the destination has not heard.
    Handover,
}

/// One host.
pub(crate) struct HostState {
    pub(crate) journal: JournalId,
    pub(crate) boot: BootId,
    pub(crate) machine_types: Vec<String>,
    pub(crate) vms: BTreeMap<VmId, VmStatus>,
    pub(crate) parts: BTreeMap<MigrationId, Part>,
    pub(crate) disks: BTreeSet<VmId>,
    pub(crate) sequence: u64,
    pub(crate) highest: Epoch,
    /// Orders as they came.
    pub(crate) orders: Vec<String>,
    pub(crate) holds: BTreeSet<Hold>,
    pub(crate) refuses_start: bool,
    pub(crate) refuses_source: bool,
    pub(crate) fails_reserve: bool,
    pub(crate) silent: bool,
}

pub(crate) struct Part {
    pub(crate) machine: Machine,
    pub(crate) order: MigrationOrder,
    pub(crate) failure: Option<Failure>,
    pub(crate) measured: Measured,
}

#[derive(Clone, Copy)]
pub(crate) enum Machine {
    Source(Source),
    Destination(Destination),
}

enum Event {
    Source(source::Event),
    Destination(destination::Event),
}

impl World {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { hosts: Mutex::new(BTreeMap::new()), happened: Notify::new() })
    }

    pub(crate) fn add(&self, host: HostId) {
        let state = HostState {
            journal: JournalId::new(),
            boot: BootId(format!("boot-{host}")),
            machine_types: ["pc-q35-9.2", "pc-q35-10.0", "pc-i440fx-10.0"].map(String::from).to_vec(),
            vms: BTreeMap::new(),
            parts: BTreeMap::new(),
            disks: BTreeSet::new(),
            sequence: 0,
            highest: Epoch(0),
            orders: Vec::new(),
            holds: BTreeSet::new(),
            refuses_start: false,
            refuses_source: false,
            fails_reserve: false,
            silent: false,
        };
        self.hosts.lock().unwrap().insert(host, state);
    }

    pub(crate) fn hosts(&self) -> MutexGuard<'_, BTreeMap<HostId, HostState>> {
        self.hosts.lock().unwrap()
    }

    pub(crate) fn with<T>(&self, host: HostId, change: impl FnOnce(&mut HostState) -> T) -> T {
        let result = change(self.hosts().get_mut(&host).unwrap());
        self.happened.notify_waiters();
        result
    }

    /// Lets a migration go on from where it is held.
    pub(crate) fn release(&self, host: HostId, hold: Hold) {
        self.with(host, |host| host.holds.remove(&hold));
        let parts: Vec<_> = self.hosts()[&host].parts.keys().copied().collect();
        for migration in parts {
            self.tick(host, migration);
        }
    }

    /// Waits for a state of the hosts. Each look waits for something to have happened.
    pub(crate) async fn until(&self, is_so: impl Fn(&BTreeMap<HostId, HostState>) -> bool) {
        loop {
            let happens = self.happened.notified();
            if is_so(&self.hosts()) {
                return;
            }
            happens.await;
        }
    }

    /// How many hosts run this VM.
    pub(crate) fn runners(&self, vm: VmId) -> usize {
        let hosts = self.hosts();
        let runs = |host: &&HostState| host.vms.get(&vm).is_some_and(|vm| vm.power == PowerState::Running);
        hosts.values().filter(runs).count()
    }

    /// Takes part; as an agent would.
    pub(crate) fn take_part(&self, host: HostId, order: MigrationOrder) -> Result<MigrationStatus, Failure> {
        let ticket = order.ticket;
        let id = ticket.migration;
        let is_source = ticket.source == host;
        let refused = self.with(host, |state| {
            let how = if order.recover { "recover" } else { "take-part" };
            state.orders.push(format!("{how} {}", if is_source { "source" } else { "destination" }));
            if state.parts.contains_key(&id) {
                return None;
            }
            state.highest = state.highest.max(ticket.epoch);
            if is_source && state.refuses_source && !order.recover {
                return Some(Failure::new(
                    FailureKind::Incompatible,
                    "the VM has a device that cannot move",
                    "remove it",
                ));
            }
            let vm = state.vms.get(&ticket.vm).filter(|vm| vm.power != PowerState::Stopped);
            let machine = match (is_source, order.recover) {
                (true, false) => Machine::Source(Source::planned(ticket)),
                (false, false) => Machine::Destination(Destination::reserving(ticket)),
                (true, true) => {
                    let sight = match vm.filter(|vm| vm.epoch == ticket.source_epoch) {
                        Some(_) => source::Sight::NotMigrating,
                        None => source::Sight::Gone,
                    };
                    Machine::Source(Source::orphaned(ticket, sight))
                }
                (false, true) => {
                    let sight = match vm.filter(|vm| vm.epoch == ticket.epoch) {
                        Some(_) => destination::Sight::Running,
                        None => destination::Sight::Gone,
                    };
                    Machine::Destination(Destination::orphaned(ticket, sight))
                }
            };
            state.parts.insert(id, Part { machine, order, failure: None, measured: Measured::default() });
            None
        });
        match refused {
            Some(failure) => Err(failure),
            None => {
                self.tick(host, id);
                self.status(host, id)
                    .ok_or_else(|| Failure::new(FailureKind::NotFound, "no such migration", "none"))
            }
        }
    }

    pub(crate) fn signal(&self, host: HostId, id: MigrationId, signal: &Signal) -> Option<MigrationStatus> {
        self.with(host, |state| {
            let kind = match signal {
                Signal::Told(told) => format!("told {}", told.fact),
                other => serde_json::to_value(other).unwrap().as_str().unwrap_or("signal").to_owned(),
            };
            state.orders.push(kind);
        });
        let is_source = matches!(self.hosts()[&host].parts.get(&id)?.machine, Machine::Source(_));
        let event = match (signal, is_source) {
            (Signal::Told(told), true) => Event::Source(source::Event::Heard(*told)),
            (Signal::Told(told), false) => Event::Destination(destination::Event::Heard(*told)),
            (Signal::Cancel, true) => Event::Source(source::Event::Abort),
            (Signal::Cancel, false) => Event::Destination(destination::Event::Abort),
            (Signal::Abandon, true) => Event::Source(source::Event::Abandon),
            (Signal::SourceLost, false) => Event::Destination(destination::Event::SourceLost),
            _ => return self.status(host, id),
        };
        self.post(host, id, event);
        self.status(host, id)
    }

    fn tick(&self, host: HostId, id: MigrationId) {
        let event = match self.hosts()[&host].parts.get(&id).map(|part| part.machine) {
            Some(Machine::Source(_)) => Event::Source(source::Event::Restarted(source::Sight::NotMigrating)),
            Some(Machine::Destination(d)) if d.state == destination::State::Reserving => {
                Event::Destination(destination::Event::Restarted(destination::Sight::Gone))
            }
            Some(Machine::Destination(_)) => Event::Destination(destination::Event::Tick),
            None => return,
        };
        self.post(host, id, event);
    }

    /// Steps a machine, and does what follows, on both hosts, until nothing more does.
    fn post(&self, host: HostId, id: MigrationId, event: Event) {
        let mut queue = VecDeque::from([(host, event)]);
        while let Some((at, event)) = queue.pop_front() {
            let mut hosts = self.hosts();
            let Some(part) = hosts.get_mut(&at).and_then(|host| host.parts.get_mut(&id)) else { continue };
            let mut effects: Vec<(HostId, Effect)> = Vec::new();
            match (&mut part.machine, event) {
                (Machine::Source(machine), Event::Source(event)) => {
                    let step = machine.step(event);
                    *machine = step.next;
                    effects.extend(step.effects.into_iter().map(|effect| (at, Effect::Source(effect))));
                }
                (Machine::Destination(machine), Event::Destination(event)) => {
                    let step = machine.step(event);
                    *machine = step.next;
                    effects.extend(step.effects.into_iter().map(|effect| (at, Effect::Destination(effect))));
                }
                _ => continue,
            }
            for (at, effect) in effects {
                queue.extend(perform(&mut hosts, at, id, effect));
            }
        }
        self.happened.notify_waiters();
    }

    pub(crate) fn status(&self, host: HostId, id: MigrationId) -> Option<MigrationStatus> {
        self.hosts()[&host].parts.get(&id).map(Part::status)
    }
}

enum Effect {
    Source(source::Effect),
    Destination(destination::Effect),
}

/// What an effect does to the hosts, and which events follow.
fn perform(
    hosts: &mut BTreeMap<HostId, HostState>,
    at: HostId,
    id: MigrationId,
    effect: Effect,
) -> Vec<(HostId, Event)> {
    use Event::{Destination as ToDestination, Source as ToSource};
    let host = hosts.get_mut(&at).unwrap();
    let ticket = host.parts[&id].order.ticket;
    let (from, to) = (ticket.source, ticket.destination);
    let arrived = |vm: &VmSpec, run: bool| VmStatus {
        vm: ticket.vm,
        name: vm.name.clone(),
        epoch: ticket.epoch,
        power: if run { PowerState::Running } else { PowerState::Paused },
        reason: None,
        migration: None,
        machine_type: vm.machine.machine_type.clone(),
        pid: None,
        pending: Vec::new(),
    };
    match effect {
        Effect::Source(source::Effect::StartStream) if host.holds.contains(&Hold::Transfer) => Vec::new(),
        Effect::Source(source::Effect::StartStream) => {
            let part = host.parts.get_mut(&id).unwrap();
            part.measured.phases = vec![PhaseTime { phase: Phase::Transfer, micros: 5_000 }];
            (part.measured.wire_bytes, part.measured.passes) = (1 << 20, 2);
            part.measured.stopped_us = Some(1_000_000);
            vec![(at, ToSource(source::Event::Stopped { ran: true }))]
        }
        Effect::Source(source::Effect::ContinueSwitchover) => {
            let loaded = ToDestination(destination::Event::Arrived);
            vec![(at, ToSource(source::Event::Sent)), (to, loaded)]
        }
        Effect::Source(source::Effect::KillQemu) => {
            if host.vms.get(&ticket.vm).is_some_and(|vm| vm.epoch == ticket.source_epoch) {
                host.vms.remove(&ticket.vm);
            }
            vec![(at, ToSource(source::Event::QemuGone))]
        }
        Effect::Source(source::Effect::Tell(fact)) => {
            if matches!(fact, Fact::HandedOver { .. }) {
                if let Some(vm) = host.vms.get_mut(&ticket.vm) {
                    vm.power = PowerState::Paused;
                }
                if host.holds.contains(&Hold::Handover) {
                    return Vec::new();
                }
            }
            vec![(to, ToDestination(destination::Event::Heard(ticket.tell(fact))))]
        }
        Effect::Source(source::Effect::ResumeGuest) => {
            if let Some(vm) = host.vms.get_mut(&ticket.vm) {
                vm.power = PowerState::Running;
            }
            vec![(at, ToSource(source::Event::Going))]
        }
        Effect::Source(_) => Vec::new(),
        Effect::Destination(destination::Effect::Reserve) => {
            let part = host.parts.get_mut(&id).unwrap();
            if host.fails_reserve {
                let what = "the disk of the VM is locked by another program";
                part.failure =
                    Some(Failure::new(FailureKind::Storage, what, "end that program").during(Phase::Reserve));
                return vec![(at, ToDestination(destination::Event::Abort))];
            }
            part.measured.phases = vec![PhaseTime { phase: Phase::Reserve, micros: 7_000 }];
            vec![(at, ToDestination(destination::Event::Reserved))]
        }
        Effect::Destination(destination::Effect::TellReady) => vec![(from, ToSource(source::Event::Ready))],
        Effect::Destination(destination::Effect::TellLoaded) => {
            vec![(from, ToSource(source::Event::Loaded(ticket)))]
        }
        Effect::Destination(destination::Effect::ActivateDisks) => {
            vec![(at, ToDestination(destination::Event::Activated))]
        }
        Effect::Destination(destination::Effect::Continue { run }) => {
            let part = host.parts.get_mut(&id).unwrap();
            part.measured.continued_us = Some(1_050_000);
            part.measured.peer_clock_ahead_us = Some(-10_000);
            let vm = arrived(&part.order.target.spec, run);
            host.vms.insert(ticket.vm, vm);
            vec![(at, ToDestination(destination::Event::Continued))]
        }
        Effect::Destination(destination::Effect::KillQemu) => {
            vec![(at, ToDestination(destination::Event::QemuGone))]
        }
        Effect::Destination(destination::Effect::Tell(fact)) => {
            vec![(from, ToSource(source::Event::Heard(ticket.tell(fact))))]
        }
        Effect::Destination(_) => Vec::new(),
    }
}

impl Part {
    pub(crate) fn told(&self) -> Option<Told> {
        let fact = match &self.machine {
            Machine::Source(machine) => machine.fact(),
            Machine::Destination(machine) => machine.fact(),
        };
        fact.map(|fact| self.order.ticket.tell(fact))
    }

    pub(crate) fn status(&self) -> MigrationStatus {
        let (role, state, ended) = match &self.machine {
            Machine::Source(machine) => (Role::Source, format!("{:?}", machine.state), machine.has_ended()),
            Machine::Destination(machine) => {
                (Role::Destination, format!("{:?}", machine.state), machine.has_ended())
            }
        };
        MigrationStatus {
            ticket: self.order.ticket,
            role,
            state,
            phase: Phase::Transfer,
            fact: self.told(),
            ended,
            progress: None,
            fingerprint: (role == Role::Source).then(|| "fingerprint".to_owned()),
            failure: self.failure.clone(),
            measured: self.measured.clone(),
            now_us: u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap(),
        }
    }
}

//! One VM, its hosts, the server and the network between them: what there is, at one moment.
//!
//! Everything that changes it is elsewhere: a host's agent (`host.rs`), the server (`server.rs`), and what happens to
//! them, faults included (`actions.rs`).

use std::collections::BTreeSet;

use limosa_migration::custody::{Custody, Passage};
use limosa_migration::{Destination, Source, Ticket, Told, destination, source};
use limosa_model::{Epoch, HostId, Incarnation, MigrationId, VmId};

use crate::variants::Variant;

/// How often each thing may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Faults {
    /// Migrations that the server begins.
    pub(crate) moves: u8,
    /// Agents killed and started again.
    pub(crate) crashes: u8,
    /// Hosts that lose power and come back.
    pub(crate) reboots: u8,
    /// Agents that come back without their journal.
    pub(crate) lost_journals: u8,
    /// QEMUs that die by themselves.
    pub(crate) qemu_deaths: u8,
    /// Streams that break.
    pub(crate) breaks: u8,
    /// Cancels, limits that run out, errors on either end.
    pub(crate) aborts: u8,
    /// Hosts that are gone for good.
    pub(crate) burnt: u8,
    /// Servers restored from an old backup.
    pub(crate) restores: u8,
    /// Starts of a VM that runs nowhere, at a new epoch.
    pub(crate) starts: u8,
}

impl Faults {
    /// Some of everything.
    pub(crate) fn many() -> Self {
        Self {
            moves: 4,
            crashes: 3,
            reboots: 2,
            lost_journals: 2,
            qemu_deaths: 1,
            breaks: 2,
            aborts: 2,
            burnt: 1,
            restores: 1,
            starts: 3,
        }
    }
}

/// A QEMU process of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Qemu {
    pub(crate) epoch: Epoch,
    pub(crate) mode: Mode,
    /// The VM has run elsewhere since this image was made: to run it would undo what the VM has done.
    pub(crate) stale: bool,
}

/// What a QEMU does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Mode {
    Running,
    Sending(MigrationId),
    /// Stopped for the switchover; `true` once it may go on.
    Stopped(MigrationId, bool),
    PostMigrate,
    Incoming(MigrationId),
    Loaded,
    Activated,
}

/// One migration's machine on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Source(Source),
    Destination(Destination),
}

/// What an agent still has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Todo {
    Source(MigrationId, source::Effect),
    Destination(MigrationId, destination::Effect),
}

/// A host with its agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Host {
    /// Gone for good.
    pub(crate) burnt: bool,
    /// The agent runs.
    pub(crate) agent: bool,
    /// Which journal this is: another number after the journal was lost.
    pub(crate) journal: u8,
    /// What an agent finds after `kill -9`.
    pub(crate) roles: Vec<Role>,
    /// What an agent finds after the host lost power: what was synced.
    pub(crate) synced: Vec<Role>,
    /// The highest epoch seen, synced.
    pub(crate) seen: u64,
    /// The epoch that this host has said it will not run again.
    pub(crate) stopped: Option<Epoch>,
    pub(crate) qemu: Option<Qemu>,
    pub(crate) todo: Vec<Todo>,
}

/// What travels. Nothing is ever taken out of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Message {
    /// Server to host, for one journal of it only.
    BeSource(MigrationId, u8),
    BeDestination(MigrationId, u8),
    Recover(MigrationId, HostId, u8),
    Start(HostId, Epoch, u8),
    SourceLost(MigrationId),
    Abandon(MigrationId),
    /// Host to server.
    Stopped(HostId, Epoch),
    JournalLost(HostId, u8),
    /// Host to host.
    Ready(MigrationId),
    Loaded(MigrationId),
    GiveUp(MigrationId),
    /// Host to everybody.
    Fact(Told),
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) hosts: Vec<Host>,
    pub(crate) custody: Custody,
    pub(crate) passages: Vec<Passage>,
    /// All tickets ever given: messages name them by their migration.
    pub(crate) tickets: Vec<Ticket>,
    /// The journal of each host, as the server knows it.
    pub(crate) journals: Vec<u8>,
    pub(crate) incarnation: u64,
    pub(crate) backup: Option<(Custody, Vec<Passage>)>,
    /// Restored, and waiting for every host's report.
    pub(crate) restored: bool,
    /// The migrations whose destination has at some time loaded everything.
    pub(crate) loaded: BTreeSet<MigrationId>,
    pub(crate) network: BTreeSet<Message>,
    pub(crate) left: Faults,
}

/// The rules of the world.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) hosts: usize,
    pub(crate) faults: Faults,
    pub(crate) variant: Variant,
}

pub(crate) fn host_id(n: usize) -> HostId {
    HostId::from_u128(n as u128 + 1)
}

pub(crate) fn number(host: HostId) -> usize {
    (0..8).find(|n| host_id(*n) == host).expect("a host of this world")
}

impl World {
    pub(crate) fn new(hosts: usize, faults: Faults) -> Self {
        Self { hosts, faults, variant: Variant::AsDesigned }
    }

    pub(crate) fn with(mut self, variant: Variant) -> Self {
        self.variant = variant;
        self
    }

    pub(crate) fn start(&self) -> State {
        let vm = VmId::from_u128(1);
        let custody = Custody::new(vm, Incarnation(0)).start(host_id(0)).expect("nowhere");
        let mut hosts = vec![Host { agent: true, ..Host::default() }; self.hosts];
        hosts[0].qemu = Some(Qemu { epoch: custody.last, mode: Mode::Running, stale: false });
        hosts[0].seen = custody.last.0;
        State {
            journals: vec![0; self.hosts],
            hosts,
            custody,
            passages: Vec::new(),
            tickets: Vec::new(),
            incarnation: 0,
            backup: None,
            restored: false,
            loaded: BTreeSet::new(),
            network: BTreeSet::new(),
            left: self.faults,
        }
    }
}

impl State {
    pub(crate) fn ticket(&self, migration: MigrationId) -> Ticket {
        *self.tickets.iter().find(|t| t.migration == migration).expect("a ticket that was given")
    }

    pub(crate) fn runners(&self) -> usize {
        self.hosts.iter().filter(|h| h.qemu.is_some_and(Qemu::runs)).count()
    }

    pub(crate) fn runs_stale(&self) -> bool {
        self.hosts.iter().any(|h| h.qemu.is_some_and(|q| q.runs() && q.stale))
    }

    /// A QEMU lets its guest run: every other image is older than the VM from here on.
    pub(crate) fn run(&mut self, on: usize) {
        for (n, host) in self.hosts.iter_mut().enumerate() {
            if let Some(qemu) = host.qemu.as_mut() {
                if n == on { qemu.mode = Mode::Running } else { qemu.stale = true }
            }
        }
    }

    pub(crate) fn send(&mut self, message: Message) {
        self.network.insert(message);
    }

    /// The server looks at all passages again, and concludes what can be concluded.
    pub(crate) fn conclude(&mut self, world: &World) {
        for passage in &self.passages {
            self.custody = world.variant.follow(&self.custody, passage);
        }
    }
}

impl Qemu {
    fn runs(self) -> bool {
        matches!(self.mode, Mode::Running | Mode::Sending(_))
    }

    pub(crate) fn source_sight(qemu: Option<Self>, ticket: &Ticket) -> source::Sight {
        match qemu.filter(|q| q.epoch == ticket.source_epoch).map(|q| q.mode) {
            None => source::Sight::Gone,
            Some(Mode::Running) => source::Sight::NotMigrating,
            Some(Mode::Sending(m)) if m == ticket.migration => source::Sight::Sending,
            Some(Mode::Stopped(m, _)) if m == ticket.migration => source::Sight::Stopped,
            Some(Mode::PostMigrate) => source::Sight::PostMigrate,
            Some(_) => source::Sight::NotMigrating,
        }
    }

    pub(crate) fn destination_sight(qemu: Option<Self>, ticket: &Ticket) -> destination::Sight {
        match qemu.filter(|q| q.epoch == ticket.epoch).map(|q| q.mode) {
            None => destination::Sight::Gone,
            Some(Mode::Incoming(_)) => destination::Sight::Incoming,
            Some(Mode::Loaded) => destination::Sight::Loaded,
            Some(Mode::Activated) => destination::Sight::Activated,
            Some(_) => destination::Sight::Running,
        }
    }
}

impl Role {
    pub(crate) fn ticket(&self) -> Ticket {
        match self {
            Self::Source(s) => s.ticket,
            Self::Destination(d) => d.ticket,
        }
    }

    pub(crate) fn fact(&self) -> Option<Told> {
        let fact = match self {
            Self::Source(s) => s.fact(),
            Self::Destination(d) => d.fact(),
        };
        fact.map(|fact| self.ticket().tell(fact))
    }

    pub(crate) fn has_ended(&self) -> bool {
        match self {
            Self::Source(s) => s.has_ended(),
            Self::Destination(d) => d.has_ended(),
        }
    }
}

//! One VM, its hosts, the server, and what can go wrong.

use std::collections::BTreeSet;

use limosa_migration::custody::{At, Custody, Passage, Request};
use limosa_migration::{Destination, Source, Ticket, Told, destination, source};
use limosa_model::{Epoch, HostId, Incarnation, MigrationId, VmId};
use stateright::{Model, Property};

use crate::settle;
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

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Deliver(Message, usize),
    DeliverToServer(Message),
    Perform(usize),
    Move(usize),
    StartOn(usize),
    ServerAsks,
    StopForSwitchover(usize),
    Load(usize),
    Complete(usize),
    Break(usize),
    Abort(usize),
    QemuDies(usize),
    Crash(usize),
    Restart(usize),
    LoseJournal(usize),
    Reboot(usize),
    Burn(usize),
    OperatorSaysLost(usize),
    Backup,
    Restore,
    Reconcile,
    Report(usize),
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

fn number(host: HostId) -> usize {
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
    fn run(&mut self, on: usize) {
        for (n, host) in self.hosts.iter_mut().enumerate() {
            if let Some(qemu) = host.qemu.as_mut() {
                if n == on { qemu.mode = Mode::Running } else { qemu.stale = true }
            }
        }
    }

    fn send(&mut self, message: Message) {
        self.network.insert(message);
    }

    /// The server looks at all passages again, and concludes what can be concluded.
    fn conclude(&mut self, world: &World) {
        for passage in &self.passages {
            self.custody = world.variant.follow(&self.custody, passage);
        }
    }
}

impl Qemu {
    fn runs(self) -> bool {
        matches!(self.mode, Mode::Running | Mode::Sending(_))
    }

    fn source_sight(qemu: Option<Self>, ticket: &Ticket) -> source::Sight {
        match qemu.filter(|q| q.epoch == ticket.source_epoch).map(|q| q.mode) {
            None => source::Sight::Gone,
            Some(Mode::Running) => source::Sight::NotMigrating,
            Some(Mode::Sending(m)) if m == ticket.migration => source::Sight::Sending,
            Some(Mode::Stopped(m, _)) if m == ticket.migration => source::Sight::Stopped,
            Some(Mode::PostMigrate) => source::Sight::PostMigrate,
            Some(_) => source::Sight::NotMigrating,
        }
    }

    fn destination_sight(qemu: Option<Self>, ticket: &Ticket) -> destination::Sight {
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

/// The agent's shell: steps, writes, notes what is to be done.
impl Host {
    fn role(&mut self, migration: MigrationId) -> Option<&mut Role> {
        self.roles.iter_mut().find(|r| r.ticket().migration == migration)
    }

    fn sync(&mut self) {
        self.synced.clone_from(&self.roles);
    }

    fn take(&mut self, role: Role) {
        self.seen = self.seen.max(role.ticket().epoch.0);
        self.roles.push(role);
        self.sync();
    }

    fn source(&mut self, world: &World, migration: MigrationId, event: source::Event) {
        let Some(Role::Source(machine)) = self.role(migration) else { return };
        let step = world.variant.source(machine, event);
        *machine = step.next;
        if step.decisive {
            self.sync();
        }
        for effect in step.effects {
            let todo = Todo::Source(migration, effect);
            if !self.todo.contains(&todo) {
                self.todo.push(todo);
            }
        }
    }

    fn destination(&mut self, world: &World, migration: MigrationId, event: destination::Event) {
        let Some(Role::Destination(machine)) = self.role(migration) else { return };
        let step = world.variant.destination(machine, event);
        *machine = step.next;
        if step.decisive {
            self.sync();
        }
        for effect in step.effects {
            let todo = Todo::Destination(migration, effect);
            if !self.todo.contains(&todo) {
                self.todo.push(todo);
            }
        }
    }

    fn qemu_gone(&mut self, world: &World) {
        for role in self.roles.clone() {
            let m = role.ticket().migration;
            match role {
                Role::Source(_) => self.source(world, m, source::Event::QemuGone),
                Role::Destination(_) => self.destination(world, m, destination::Event::QemuGone),
            }
        }
    }

    pub(crate) fn restart(&mut self, world: &World, rebooted: bool) {
        self.agent = true;
        self.todo.clear();
        for role in self.roles.clone() {
            let ticket = role.ticket();
            match role {
                Role::Source(_) => {
                    let sight = Qemu::source_sight(self.qemu, &ticket);
                    self.source(world, ticket.migration, source::Event::Restarted(sight));
                }
                Role::Destination(_) => {
                    let sight = match rebooted {
                        true => destination::Sight::Rebooted,
                        false => Qemu::destination_sight(self.qemu, &ticket),
                    };
                    self.destination(world, ticket.migration, destination::Event::Restarted(sight));
                }
            }
        }
    }

    fn idle(&self) -> bool {
        self.roles.iter().all(Role::has_ended) && self.todo.is_empty()
    }
}

impl World {
    /// A message reaches a host's agent.
    fn deliver(&self, state: &mut State, n: usize, message: Message) {
        let me = host_id(n);
        let highest = state.hosts[n].seen;
        let journal = state.hosts[n].journal;
        let idle = state.hosts[n].idle();
        let qemu = state.hosts[n].qemu;
        match message {
            Message::BeSource(m, j) if j == journal => {
                let ticket = state.ticket(m);
                let known = state.hosts[n].role(m).is_some();
                let fits = qemu.is_some_and(|q| q.epoch == ticket.source_epoch && q.mode == Mode::Running);
                if ticket.source == me && !known && idle && ticket.epoch.0 > highest {
                    let source = Source::planned(ticket);
                    state.hosts[n].take(Role::Source(source));
                    if !fits {
                        state.hosts[n].source(self, m, source::Event::QemuGone);
                    }
                }
            }
            Message::BeDestination(m, j) if j == journal => {
                let ticket = state.ticket(m);
                let known = state.hosts[n].role(m).is_some();
                if ticket.destination == me && !known && idle && qemu.is_none() && ticket.epoch.0 > highest {
                    state.hosts[n].take(Role::Destination(Destination::reserving(ticket)));
                    state.hosts[n].todo.push(Todo::Destination(m, destination::Effect::Reserve));
                }
            }
            Message::Recover(m, to, j) if to == me && j == journal => {
                let ticket = state.ticket(m);
                if state.hosts[n].role(m).is_some() {
                    return;
                }
                if ticket.source == me {
                    let sight = Qemu::source_sight(qemu, &ticket);
                    state.hosts[n].take(Role::Source(Source::orphaned(ticket, sight)));
                    state.hosts[n].source(self, m, source::Event::Restarted(sight));
                } else {
                    let sight = Qemu::destination_sight(qemu, &ticket);
                    state.hosts[n].take(Role::Destination(Destination::orphaned(ticket, sight)));
                    state.hosts[n].destination(self, m, destination::Event::Restarted(sight));
                }
            }
            Message::Start(to, epoch, j)
                if to == me && j == journal && epoch.0 > highest && qemu.is_none() && idle =>
            {
                state.hosts[n].seen = epoch.0;
                state.hosts[n].qemu = Some(Qemu { epoch, mode: Mode::Running, stale: false });
                state.run(n);
            }
            Message::SourceLost(m) => state.hosts[n].destination(self, m, destination::Event::SourceLost),
            Message::Abandon(m) => state.hosts[n].source(self, m, source::Event::Abandon),
            Message::Ready(m) => state.hosts[n].source(self, m, source::Event::Ready),
            Message::Loaded(m) => {
                let ticket = state.ticket(m);
                state.hosts[n].source(self, m, source::Event::Loaded(ticket));
            }
            Message::GiveUp(m) => state.hosts[n].destination(self, m, destination::Event::GiveUp),
            Message::Fact(told) => {
                for role in state.hosts[n].roles.clone() {
                    let m = role.ticket().migration;
                    match role {
                        Role::Source(_) => state.hosts[n].source(self, m, source::Event::Heard(told)),
                        Role::Destination(_) => {
                            state.hosts[n].destination(self, m, destination::Event::Heard(told));
                        }
                    }
                }
            }
            _ => {}
        }
    }

    /// An agent does the first thing that it has to do.
    pub(crate) fn perform(&self, state: &mut State, n: usize) {
        let todo = state.hosts[n].todo.remove(0);
        match todo {
            Todo::Source(m, effect) => self.perform_source(state, n, m, effect),
            Todo::Destination(m, effect) => self.perform_destination(state, n, m, effect),
        }
    }

    fn perform_source(&self, state: &mut State, n: usize, m: MigrationId, effect: source::Effect) {
        use source::Effect;
        let ticket = state.ticket(m);
        let mode = state.hosts[n].qemu.filter(|q| q.epoch == ticket.source_epoch).map(|q| q.mode);
        let set = |state: &mut State, mode| {
            if let Some(qemu) = state.hosts[n].qemu.as_mut() {
                qemu.mode = mode;
            }
        };
        match effect {
            Effect::StartStream => match mode {
                Some(Mode::Running) => set(state, Mode::Sending(m)),
                Some(_) => {}
                None => state.hosts[n].source(self, m, source::Event::QemuGone),
            },
            Effect::ContinueSwitchover => {
                if mode == Some(Mode::Stopped(m, false)) {
                    set(state, Mode::Stopped(m, true));
                }
            }
            Effect::StopStream => {
                if matches!(mode, Some(Mode::Sending(_) | Mode::Stopped(..))) {
                    state.run(n);
                }
            }
            Effect::ResumeGuest => {
                let still = matches!(state.hosts[n].role(m), Some(Role::Source(s)) if matches!(s.state, source::State::Resumed { .. }));
                if mode.is_some() && still {
                    state.run(n);
                }
                state.hosts[n].source(self, m, source::Event::Going);
            }
            Effect::ClosePort | Effect::Ask => {}
            Effect::KillQemu => {
                if mode.is_some() {
                    state.hosts[n].qemu = None;
                }
                state.hosts[n].source(self, m, source::Event::QemuGone);
            }
            Effect::Tell(fact) => state.send(Message::Fact(ticket.tell(fact))),
            Effect::AskToRefuse => state.send(Message::GiveUp(m)),
        }
    }

    fn perform_destination(&self, state: &mut State, n: usize, m: MigrationId, effect: destination::Effect) {
        use destination::Effect;
        let ticket = state.ticket(m);
        let mode = state.hosts[n].qemu.filter(|q| q.epoch == ticket.epoch).map(|q| q.mode);
        match effect {
            Effect::Reserve => {
                if state.hosts[n].qemu.is_none() {
                    state.hosts[n].qemu =
                        Some(Qemu { epoch: ticket.epoch, mode: Mode::Incoming(m), stale: false });
                }
                state.hosts[n].destination(self, m, destination::Event::Reserved);
            }
            Effect::TellReady => state.send(Message::Ready(m)),
            Effect::AwaitArrival => {
                if mode == Some(Mode::Loaded) {
                    state.hosts[n].destination(self, m, destination::Event::Arrived);
                }
            }
            Effect::TellLoaded => state.send(Message::Loaded(m)),
            Effect::ActivateDisks => match mode {
                Some(Mode::Loaded | Mode::Activated) => {
                    if let Some(qemu) = state.hosts[n].qemu.as_mut() {
                        qemu.mode = Mode::Activated;
                    }
                    state.hosts[n].destination(self, m, destination::Event::Activated);
                }
                _ => state.hosts[n].destination(self, m, destination::Event::Abort),
            },
            Effect::Continue { run } => {
                if mode == Some(Mode::Activated) && run {
                    state.run(n);
                }
                state.hosts[n].destination(self, m, destination::Event::Continued);
            }
            Effect::KillQemu => {
                if mode.is_some() {
                    state.hosts[n].qemu = None;
                }
                state.hosts[n].destination(self, m, destination::Event::QemuGone);
            }
            Effect::Tell(fact) => state.send(Message::Fact(ticket.tell(fact))),
            Effect::Ask => {}
        }
    }

    /// A message reaches the server.
    fn deliver_to_server(&self, state: &mut State, message: Message) {
        match message {
            Message::Fact(told) => {
                for passage in &mut state.passages {
                    *passage = self.variant.hear(passage, told);
                }
                state.conclude(self);
            }
            Message::Stopped(host, epoch) if !state.restored => {
                state.custody = state.custody.stopped(host, epoch);
            }
            Message::JournalLost(host, journal) if !state.restored => {
                let n = number(host);
                state.journals[n] = state.journals[n].max(journal);
                for passage in state.passages.clone() {
                    let at_end = passage.ticket.source == host || passage.ticket.destination == host;
                    if at_end && !passage.is_settled() {
                        state.send(Message::Recover(passage.ticket.migration, host, journal));
                    }
                }
            }
            _ => {}
        }
    }

    /// A server restored from a backup builds its picture anew from what every host reports.
    fn reconcile(&self, state: &mut State) {
        let mut sightings = Vec::new();
        for (n, host) in state.hosts.iter().enumerate() {
            if host.burnt {
                continue;
            }
            let mut parts: Vec<_> = host.roles.iter().map(|r| (r.ticket(), r.fact())).collect();
            if let Some(q) = host.qemu {
                for t in state.tickets.iter().filter(|t| t.epoch == q.epoch) {
                    if !parts.iter().any(|(p, _)| p == t) {
                        parts.push((*t, None));
                    }
                }
            }
            sightings.push(limosa_migration::custody::Sighting {
                host: host_id(n),
                qemus: host.qemu.iter().map(|q| q.epoch).collect(),
                parts,
            });
        }
        let lost: Vec<_> =
            state.hosts.iter().enumerate().filter(|(_, h)| h.burnt).map(|(n, _)| host_id(n)).collect();
        let (custody, passages) = limosa_migration::custody::reconcile(
            state.custody.vm,
            Incarnation(state.incarnation),
            state.passages.clone(),
            &sightings,
            &lost,
        );
        state.custody = custody;
        // An end that knows nothing of a migration that the other end is in never took the order: it takes it
        // as one that has lost its journal would.
        for passage in &passages {
            let ticket = passage.ticket;
            for end in [ticket.source, ticket.destination] {
                let host = &state.hosts[number(end)];
                if !host.burnt && !host.roles.iter().any(|r| r.ticket() == ticket) {
                    state.network.insert(Message::Recover(ticket.migration, end, host.journal));
                }
            }
        }
        state.passages = passages;
        state.journals = state.hosts.iter().map(|h| h.journal).collect();
        state.restored = false;
        // Whoever has reported to this incarnation takes no order of an earlier one: their epochs are lower.
        for host in state.hosts.iter_mut().filter(|h| !h.burnt) {
            host.seen = host.seen.max(state.custody.last.0);
        }
        state.conclude(self);
    }

    /// The server sends again what has not been answered, and asks for what is missing.
    pub(crate) fn server_asks(&self, state: &mut State) {
        for passage in state.passages.clone() {
            let ticket = passage.ticket;
            for host in [ticket.source, ticket.destination] {
                if let Some(told) = passage.for_host(host) {
                    state.send(Message::Fact(told));
                }
            }
            match passage.request() {
                Some((_, Request::SourceLost)) => state.send(Message::SourceLost(ticket.migration)),
                Some((_, Request::Abandon)) => state.send(Message::Abandon(ticket.migration)),
                None => {}
            }
        }
    }

    /// Host `n` says what it must say unasked: that its VM has ended, that its journal is another.
    pub(crate) fn report(&self, state: &mut State, n: usize) {
        let host = &state.hosts[n];
        if host.journal != state.journals[n] {
            let message = Message::JournalLost(host_id(n), host.journal);
            state.send(message);
        }
        let host = &state.hosts[n];
        if let At::On { host: at, epoch } = state.custody.at {
            let holds = host.qemu.is_some_and(|q| q.epoch == epoch);
            let wanted = state
                .network
                .iter()
                .any(|m| matches!(m, Message::Start(_, e, j) if *e == epoch && *j == host.journal));
            if at == host_id(n) && !holds && host.idle() && (host.seen >= epoch.0 || !wanted) {
                state.hosts[n].seen = state.hosts[n].seen.max(epoch.0);
                state.hosts[n].stopped = Some(epoch);
                state.send(Message::Stopped(host_id(n), epoch));
            }
        }
    }

    fn server_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.restored {
            if state.hosts.iter().all(|h| h.agent || h.burnt) {
                actions.push(Action::Reconcile);
            }
            return;
        }
        for n in 0..self.hosts {
            let here = match state.custody.at {
                At::On { host, .. } => host == host_id(n),
                _ => false,
            };
            let idle = matches!(state.custody.at, At::On { .. });
            if state.left.moves > 0 && idle && !here && !state.hosts[n].burnt {
                actions.push(Action::Move(n));
            }
            let free = self.variant.start(&state.custody, &state.passages, host_id(n)).is_some();
            if state.left.starts > 0 && free && !state.hosts[n].burnt {
                actions.push(Action::StartOn(n));
            }
        }
        if state.passages.iter().any(|p| p.request().is_some()) {
            actions.push(Action::ServerAsks);
        }
    }

    fn host_actions(&self, state: &State, n: usize, actions: &mut Vec<Action>) {
        let host = &state.hosts[n];
        if host.burnt {
            return;
        }
        if host.agent {
            if !host.todo.is_empty() {
                actions.push(Action::Perform(n));
            }
            for message in &state.network {
                actions.push(Action::Deliver(*message, n));
            }
            let at_work = host.roles.iter().any(|r| match r {
                Role::Source(s) => s.can_cancel(),
                Role::Destination(d) => d.fact().is_none(),
            });
            if state.left.aborts > 0 && at_work {
                actions.push(Action::Abort(n));
            }
            actions.push(Action::Report(n));
        } else {
            actions.push(Action::Restart(n));
        }
        match host.qemu.map(|q| q.mode) {
            Some(Mode::Sending(_)) => actions.push(Action::StopForSwitchover(n)),
            Some(Mode::Stopped(_, true)) => actions.push(Action::Complete(n)),
            Some(Mode::Incoming(_)) => actions.push(Action::Load(n)),
            _ => {}
        }
        if state.left.breaks > 0
            && matches!(host.qemu.map(|q| q.mode), Some(Mode::Sending(_) | Mode::Stopped(..)))
        {
            actions.push(Action::Break(n));
        }
        if state.left.qemu_deaths > 0 && host.qemu.is_some() {
            actions.push(Action::QemuDies(n));
        }
        if state.left.crashes > 0 && host.agent {
            actions.push(Action::Crash(n));
        }
        if state.left.lost_journals > 0 && host.agent {
            actions.push(Action::LoseJournal(n));
        }
        if state.left.reboots > 0 {
            actions.push(Action::Reboot(n));
        }
        if state.left.burnt > 0 {
            actions.push(Action::Burn(n));
        }
    }

    /// What happens, or `None` where nothing does.
    pub(crate) fn act(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Deliver(message, n) => self.deliver(&mut state, n, message),
            Action::DeliverToServer(message) => self.deliver_to_server(&mut state, message),
            Action::Perform(n) => self.perform(&mut state, n),
            Action::ServerAsks => self.server_asks(&mut state),
            Action::Report(n) => self.report(&mut state, n),
            Action::Move(n) => {
                state.left.moves -= 1;
                let migration = MigrationId::from_u128(state.tickets.len() as u128 + 1);
                let (custody, passage) = state.custody.begin(migration, host_id(n)).ok()?;
                let ticket = passage.ticket;
                let journal_of = |host: HostId| state.journals[number(host)];
                let (source, destination) = (journal_of(ticket.source), journal_of(ticket.destination));
                state.custody = custody;
                state.passages.push(passage);
                state.tickets.push(ticket);
                state.send(Message::BeSource(migration, source));
                state.send(Message::BeDestination(migration, destination));
            }
            Action::StartOn(n) => {
                state.left.starts -= 1;
                state.custody = self.variant.start(&state.custody, &state.passages, host_id(n))?;
                let message = Message::Start(host_id(n), state.custody.last, state.journals[n]);
                state.send(message);
            }
            Action::StopForSwitchover(n) => {
                let qemu = state.hosts[n].qemu.as_mut()?;
                let Mode::Sending(m) = qemu.mode else { return None };
                qemu.mode = Mode::Stopped(m, false);
                if state.hosts[n].agent {
                    state.hosts[n].source(self, m, source::Event::Stopped { ran: true });
                }
            }
            Action::Load(n) => {
                let Some(Qemu { mode: Mode::Incoming(m), .. }) = state.hosts[n].qemu else { return None };
                let source_epoch = state.ticket(m).source_epoch;
                let sends = state.hosts.iter().filter_map(|h| h.qemu).any(|q| {
                    q.epoch == source_epoch
                        && (q.mode == Mode::Stopped(m, true) || q.mode == Mode::PostMigrate)
                });
                if !sends {
                    return None;
                }
                let qemu = state.hosts[n].qemu.as_mut()?;
                (qemu.mode, qemu.stale) = (Mode::Loaded, false);
                state.loaded.insert(m);
                if state.hosts[n].agent {
                    state.hosts[n].destination(self, m, destination::Event::Arrived);
                }
            }
            Action::Complete(n) => {
                let Some(Qemu { mode: Mode::Stopped(m, true), .. }) = state.hosts[n].qemu else {
                    return None;
                };
                state.hosts[n].qemu.as_mut()?.mode = Mode::PostMigrate;
                if state.hosts[n].agent {
                    state.hosts[n].source(self, m, source::Event::Sent);
                }
            }
            Action::Break(n) => {
                state.left.breaks -= 1;
                self.break_stream(&mut state, n);
            }
            Action::Abort(n) => {
                state.left.aborts -= 1;
                for role in state.hosts[n].roles.clone() {
                    let m = role.ticket().migration;
                    match role {
                        Role::Source(_) => state.hosts[n].source(self, m, source::Event::Abort),
                        Role::Destination(_) => {
                            state.hosts[n].destination(self, m, destination::Event::Abort)
                        }
                    }
                }
            }
            Action::QemuDies(n) => {
                state.left.qemu_deaths -= 1;
                state.hosts[n].qemu = None;
                if state.hosts[n].agent {
                    state.hosts[n].qemu_gone(self);
                }
            }
            Action::Crash(n) => {
                state.left.crashes -= 1;
                state.hosts[n].agent = false;
                state.hosts[n].todo.clear();
            }
            Action::Restart(n) => state.hosts[n].restart(self, false),
            Action::LoseJournal(n) => {
                state.left.lost_journals -= 1;
                let host = &mut state.hosts[n];
                host.journal += 1;
                host.roles.clear();
                host.synced.clear();
                host.todo.clear();
                host.stopped = None;
                host.seen = host.qemu.map_or(0, |q| q.epoch.0);
            }
            Action::Reboot(n) => {
                state.left.reboots -= 1;
                let host = &mut state.hosts[n];
                host.qemu = None;
                host.roles.clone_from(&host.synced);
                host.restart(self, true);
            }
            Action::Burn(n) => {
                state.left.burnt -= 1;
                state.hosts[n] = Host { burnt: true, journal: state.hosts[n].journal, ..Host::default() };
            }
            Action::OperatorSaysLost(n) => {
                let lost = host_id(n);
                state.custody = state.custody.host_lost(lost);
                for passage in &mut state.passages {
                    *passage = passage.host_lost(lost);
                }
                state.conclude(self);
            }
            Action::Backup => state.backup = Some((state.custody.clone(), state.passages.clone())),
            Action::Restore => {
                state.left.restores -= 1;
                let (custody, passages) = state.backup.clone()?;
                state.custody = custody;
                state.passages = passages;
                state.incarnation += 1;
                state.restored = true;
            }
            Action::Reconcile => self.reconcile(&mut state),
        }
        (state != *before).then_some(state)
    }

    /// The stream breaks: before `postmigrate` QEMU resumes its guest by itself, whoever thinks what.
    fn break_stream(&self, state: &mut State, n: usize) {
        let Some(Mode::Sending(m) | Mode::Stopped(m, _)) = state.hosts[n].qemu.map(|q| q.mode) else {
            return;
        };
        state.run(n);
        if state.hosts[n].agent {
            state.hosts[n].source(self, m, source::Event::Abort);
        }
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.start()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.server_actions(state, actions);
        for message in &state.network {
            actions.push(Action::DeliverToServer(*message));
        }
        for n in 0..self.hosts {
            self.host_actions(state, n, actions);
            if state.hosts[n].burnt {
                actions.push(Action::OperatorSaysLost(n));
            }
        }
        if state.left.restores > 0 {
            if state.backup.is_none() {
                actions.push(Action::Backup);
            } else {
                actions.push(Action::Restore);
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        self.act(before, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two runners", |_, state: &State| state.runners() <= 1),
            Property::always("never a stale image run", |_, state: &State| !state.runs_stale()),
            Property::always("never a handover of what has not arrived", |_, state: &State| {
                let mut roles = state.hosts.iter().flat_map(|h| &h.roles);
                !roles.any(|r| {
                    matches!(r, Role::Source(s) if matches!(s.state, source::State::HandedOver { .. }))
                        && !state.loaded.contains(&r.ticket().migration)
                })
            }),
            Property::always("no doubt that stays", |world: &World, state: &State| {
                settle::doubt_left(world, state).is_none()
            }),
        ]
    }
}

//! A host's agent: it steps its machines, writes what they say, and does to QEMU what they ask for.
//!
//! A write is synced only where the step is decisive, and an effect waits in [`Host::todo`] until it is performed:
//! between the two an agent can crash, and a host can lose power.

use limosa_migration::custody::At;
use limosa_migration::{Destination, Source, destination, source};
use limosa_model::MigrationId;

use crate::world::{Host, Message, Mode, Qemu, Role, State, Todo, World, host_id};

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

    pub(crate) fn source(&mut self, world: &World, migration: MigrationId, event: source::Event) {
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

    pub(crate) fn destination(&mut self, world: &World, migration: MigrationId, event: destination::Event) {
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

    pub(crate) fn qemu_gone(&mut self, world: &World) {
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
    pub(crate) fn deliver(&self, state: &mut State, n: usize, message: Message) {
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
}

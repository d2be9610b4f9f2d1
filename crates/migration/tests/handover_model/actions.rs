//! What can happen in each state, what it does, and what must hold whatever has happened.

use limosa_migration::custody::At;
use limosa_migration::{destination, source};
use limosa_model::{HostId, MigrationId};
use stateright::{Model, Property};

use crate::settle;
use crate::world::{Host, Message, Mode, Qemu, Role, State, World, host_id, number};

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

impl World {
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

//! What is left of the doubt once nothing more goes wrong, and walks far beyond what can be explored whole.

use limosa_migration::custody::At;

use crate::actions::Action;
use crate::world::{Mode, Role, State, World, host_id};

/// Lets the world run on without faults, every message delivered, until nothing changes.
/// Says what is still in doubt then.
pub(crate) fn doubt_left(world: &World, state: &State) -> Option<String> {
    let mut state = state.clone();
    for _ in 0..60 {
        let before = state.clone();
        round(world, &mut state);
        if state == before {
            break;
        }
    }
    describe(&state)
}

fn apply(world: &World, state: &mut State, action: Action) {
    if let Some(next) = world.act(state, action) {
        *state = next;
    }
}

/// Everything that can go on by itself goes on once.
fn round(world: &World, state: &mut State) {
    if state.restored {
        for n in 0..state.hosts.len() {
            if !state.hosts[n].agent && !state.hosts[n].burnt {
                apply(world, state, Action::Restart(n));
            }
        }
        apply(world, state, Action::Reconcile);
    }
    for n in 0..state.hosts.len() {
        if state.hosts[n].burnt {
            apply(world, state, Action::OperatorSaysLost(n));
            continue;
        }
        if !state.hosts[n].agent {
            apply(world, state, Action::Restart(n));
        }
        for message in state.network.clone() {
            apply(world, state, Action::Deliver(message, n));
        }
        tick(world, state, n);
        while !state.hosts[n].todo.is_empty() {
            world.perform(state, n);
        }
        apply(world, state, Action::StopForSwitchover(n));
        apply(world, state, Action::Load(n));
        apply(world, state, Action::Complete(n));
        apply(world, state, Action::Report(n));
    }
    for message in state.network.clone() {
        apply(world, state, Action::DeliverToServer(message));
    }
    world.server_asks(state);
}

/// An agent that comes back does all that its states ask for again, as it does on its timer. An order that
/// never arrives, and a stream to an end that is not there any more, run into their limits.
fn tick(world: &World, state: &mut State, n: usize) {
    let mut host = state.hosts[n].clone();
    host.restart(world, false);
    state.hosts[n] = host;
    for role in state.hosts[n].roles.clone() {
        let ticket = role.ticket();
        let other = if ticket.source == host_id(n) { ticket.destination } else { ticket.source };
        let peer = state.hosts.iter().enumerate().find(|(m, _)| host_id(*m) == other).map(|(_, h)| h);
        let peer_works = peer.is_some_and(|p| {
            p.roles.iter().any(|r| r.ticket() == ticket && !r.has_ended())
                || state.passages.iter().any(|p| p.ticket == ticket && !p.is_settled())
        });
        let stuck = match role {
            Role::Source(s) => s.can_cancel() && (!peer_works || lacks_peer(state, &role)),
            Role::Destination(_) => false,
        };
        if stuck {
            let action = Action::Abort(n);
            state.left.aborts += 1;
            apply(world, state, action);
        }
    }
}

/// The other end cannot be receiving this stream.
fn lacks_peer(state: &State, role: &Role) -> bool {
    let ticket = role.ticket();
    !state.hosts.iter().any(|h| {
        h.qemu.is_some_and(|q| {
            q.epoch == ticket.epoch && matches!(q.mode, Mode::Incoming(_) | Mode::Loaded) && !q.stale
        })
    })
}

fn describe(state: &State) -> Option<String> {
    for (n, host) in state.hosts.iter().enumerate() {
        if let Some(role) = host.roles.iter().find(|r| !r.has_ended()) {
            return Some(format!("host {n} still waits: {role:?}"));
        }
    }
    match state.custody.at {
        At::Moving(migration) => Some(format!("the server does not know how {migration} ended")),
        At::On { host, epoch } => {
            let n = (0..state.hosts.len()).find(|n| host_id(*n) == host)?;
            match state.hosts[n].qemu {
                Some(q) if q.epoch == epoch => None,
                other => Some(format!(
                    "the server thinks that host {n} runs the VM at {epoch}; there is {other:?}"
                )),
            }
        }
        At::Nowhere => {
            let left = state.hosts.iter().position(|h| h.qemu.is_some())?;
            Some(format!("host {left} has a QEMU that the server knows nothing of"))
        }
    }
}

/// What walks found.
pub(crate) struct Walks {
    /// States seen.
    pub(crate) states: u64,
    /// The first state that breaks a promise, with the way to it.
    pub(crate) broken: Option<String>,
}

/// Walks at random, each seed its own way, and checks every state.
pub(crate) fn walk(world: &World, seeds: u64, length: usize) -> Walks {
    use stateright::Model;

    let mut states = 0;
    for seed in 0..seeds {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut draw = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % below as u64) as usize
        };
        let mut state = world.start();
        let mut way = Vec::new();
        for _ in 0..length {
            let mut actions = Vec::new();
            world.actions(&state, &mut actions);
            // Faults are rare beside the many things that go on by themselves.
            let faults: Vec<_> = actions.iter().copied().filter(is_fault).collect();
            actions.retain(|a| !is_fault(a));
            let pool =
                if !faults.is_empty() && (actions.is_empty() || draw(12) == 0) { &faults } else { &actions };
            if pool.is_empty() {
                break;
            }
            let action = pool[draw(pool.len())];
            let Some(next) = world.act(&state, action) else { continue };
            way.push(action);
            state = next;
            states += 1;
            let wrong = if state.runners() > 1 {
                Some("two QEMUs run the VM".to_owned())
            } else if state.runs_stale() {
                Some("a stale image runs".to_owned())
            } else {
                doubt_left(world, &state)
            };
            if let Some(wrong) = wrong {
                let way: Vec<_> = way.iter().map(|a| format!("  {a:?}")).collect();
                let broken = format!("seed {seed}: {wrong}\n{}", way.join("\n"));
                return Walks { states, broken: Some(broken) };
            }
        }
    }
    Walks { states, broken: None }
}

fn is_fault(action: &Action) -> bool {
    matches!(
        action,
        Action::Crash(_)
            | Action::LoseJournal(_)
            | Action::Reboot(_)
            | Action::Burn(_)
            | Action::QemuDies(_)
            | Action::Break(_)
            | Action::Abort(_)
            | Action::Restore
    )
}

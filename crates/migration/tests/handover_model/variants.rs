//! The handover with one rule left out, for each rule.

use limosa_migration::custody::{At, Custody, Passage};
use limosa_migration::{Destination, Source, Told, destination, source};
use limosa_model::{Fact, HostId, Machine, Step};

use crate::world::Faults;

/// Which rule is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    AsDesigned,
    /// Rule 0: facts of another migration or epoch are ignored.
    FactsOfAnyMigration,
    /// Rule 1: until the end the VM counts as possibly on either host.
    StartWhileMoving,
    /// Rule 2: `handed-over` needs the destination's `loaded`.
    HandOverUnloaded,
    /// Rule 2: `handed-over` needs the own QEMU in `postmigrate`.
    HandOverUnsent,
    /// Rule 3: `handed-over` is durable before anybody hears of it.
    HandOverUnsynced,
    /// Rule 3: the destination writes `running` before the guest's first instruction.
    RunUnsynced,
    /// Rule 4: only `refused` lets the source resume after `handed-over`.
    ResumeAfterWaiting,
    /// Rule 4: the destination kills its QEMU before it says `refused`.
    RefuseUnkilled,
    /// Rule 5: a destination that learns `resumed` discards.
    KeepAfterResumed,
    /// Rule 5: a destination whose source is gone for good discards.
    RunAfterSourceLost,
    /// Rule 6: a VM that ran on the destination is never resumed from the old image.
    RefuseAfterRunning,
    /// Rule 7: only an operator's word, never silence, stands in for a fact.
    StartAfterSilence,
}

impl Variant {
    pub(crate) fn source(self, machine: &Source, event: source::Event) -> Step<Source, source::Effect> {
        use source::{Event, State};
        let hand_over = |ran| {
            let ready = Source { state: State::Switching { loaded: true, sent: false, ran }, ..*machine };
            ready.step(Event::Sent)
        };
        match (self, machine.state, event) {
            (Self::FactsOfAnyMigration, _, Event::Heard(told)) => {
                machine.step(Event::Heard(machine.ticket.tell(told.fact)))
            }
            (Self::HandOverUnloaded, State::Switching { ran, .. }, Event::Sent) => hand_over(ran),
            (Self::HandOverUnsent, State::Switching { ran, .. }, Event::Loaded(_)) => hand_over(ran),
            (Self::HandOverUnsynced, ..) => {
                let step = machine.step(event);
                let handed = matches!(step.next.state, State::HandedOver { .. });
                Step { decisive: step.decisive && !handed, ..step }
            }
            (Self::ResumeAfterWaiting, State::HandedOver { .. }, Event::Restarted(_)) => {
                machine.step(Event::Heard(machine.ticket.tell(Fact::Refused)))
            }
            _ => machine.step(event),
        }
    }

    pub(crate) fn destination(
        self,
        machine: &Destination,
        event: destination::Event,
    ) -> Step<Destination, destination::Effect> {
        use destination::{Effect, Event, State};
        match (self, machine.state, event) {
            (Self::FactsOfAnyMigration, _, Event::Heard(told)) => {
                machine.step(Event::Heard(machine.ticket.tell(told.fact)))
            }
            (Self::RunUnsynced, ..) => {
                let step = machine.step(event);
                let running = matches!(step.next.state, State::Running { .. });
                Step { decisive: step.decisive && !running, ..step }
            }
            (
                Self::RefuseUnkilled,
                State::Activating { .. } | State::Loaded,
                Event::GiveUp | Event::Abort,
            ) => {
                let mut effects = vec![Effect::Tell(Fact::Refused)];
                effects.extend(machine.step(event).effects);
                Step { next: *machine, decisive: false, effects }
            }
            (Self::KeepAfterResumed, _, Event::Heard(Told { fact: Fact::Resumed, .. })) => {
                Step { next: *machine, decisive: false, effects: vec![] }
            }
            (Self::RunAfterSourceLost, State::Loaded, Event::SourceLost) => {
                machine.step(Event::Heard(machine.ticket.tell(Fact::HandedOver { run: true })))
            }
            (
                Self::RefuseAfterRunning,
                State::Running { .. },
                Event::QemuGone | Event::Restarted(destination::Sight::Gone),
            ) => {
                let refusing = Destination { state: State::Refusing, ..*machine };
                refusing.step(Event::QemuGone)
            }
            _ => machine.step(event),
        }
    }

    pub(crate) fn hear(self, passage: &Passage, told: Told) -> Passage {
        match self {
            Self::FactsOfAnyMigration => passage.hear(passage.ticket.tell(told.fact)),
            _ => passage.hear(told),
        }
    }

    pub(crate) fn follow(self, custody: &Custody, passage: &Passage) -> Custody {
        custody.follow(passage)
    }

    pub(crate) fn start(self, custody: &Custody, passages: &[Passage], host: HostId) -> Option<Custody> {
        let silent = || {
            let At::Moving(migration) = custody.at else { return false };
            passages.iter().any(|p| p.ticket.migration == migration && p.destination.is_none())
        };
        let free = match self {
            Self::StartWhileMoving => matches!(custody.at, At::Moving(_)),
            Self::StartAfterSilence => silent(),
            _ => false,
        };
        let custody = if free { Custody { at: At::Nowhere, ..custody.clone() } } else { custody.clone() };
        custody.start(host).ok()
    }
}

/// Each variant, with the faults, hosts and depth in which it must be noticed.
pub(crate) fn all() -> Vec<(Variant, Faults, usize, usize)> {
    let one = Faults { moves: 1, ..Faults::default() };
    vec![
        (Variant::FactsOfAnyMigration, Faults { moves: 2, breaks: 1, ..one }, 2, 40),
        (Variant::StartWhileMoving, Faults { starts: 1, ..one }, 3, 40),
        (Variant::HandOverUnloaded, one, 2, 40),
        (Variant::HandOverUnsent, Faults { breaks: 1, ..one }, 2, 40),
        (Variant::HandOverUnsynced, Faults { reboots: 1, starts: 1, ..one }, 2, 40),
        (Variant::RunUnsynced, Faults { reboots: 1, ..one }, 2, 40),
        (Variant::ResumeAfterWaiting, Faults { crashes: 1, ..one }, 2, 40),
        (Variant::RefuseUnkilled, Faults { aborts: 1, ..one }, 2, 40),
        (Variant::KeepAfterResumed, Faults { aborts: 1, ..one }, 2, 40),
        (Variant::RunAfterSourceLost, Faults { burnt: 1, breaks: 1, ..one }, 2, 40),
        (Variant::RefuseAfterRunning, Faults { qemu_deaths: 1, ..one }, 2, 40),
        (Variant::StartAfterSilence, Faults { starts: 1, ..one }, 3, 40),
    ]
}

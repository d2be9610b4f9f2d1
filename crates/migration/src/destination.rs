//! The destination of a migration: the host that the VM comes to. It runs the VM on the source's word alone.
//!
//! ```text
//!  Reserving ──reserved──▶ Ready ──arrived──▶ Loaded ──handed-over──▶ Activating ──activated──▶ Running
//!      │                     │                   │                        │                        ▲
//!      │ failed · told to give up · resumed · source lost · QEMU gone     │ failed · QEMU gone     │
//!      ▼                     ▼                   ▼                        ▼                        │
//!  Refusing ◀────────────────┴───────────────────┴────────────────────────┘                        │
//!      │ QEMU dead                                                                                 │
//!      ▼                    handed-over (source still waits) · released, running                   │
//!  Refused       InDoubt ──────────────────────────────────────────────────────────────────────────┘
//!                (journal lost, QEMU stands still with active disks)
//! ```
//!
//! `Refused` is written after QEMU is dead, never before: it lets the source resume. `Running` is written
//! before the guest's first instruction, never after: from then on there is no way back to the old image.

use limosa_model::{Fact, Machine, Step};
use serde::{Deserialize, Serialize};

use crate::ticket::{Ticket, Told};

/// The destination's part of one migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Destination {
    /// The migration.
    pub ticket: Ticket,
    /// How far it is.
    pub state: State,
}

/// How far the destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The order is accepted; memory, disks and QEMU are being made ready.
    Reserving,
    /// QEMU waits for the stream.
    Ready,
    /// QEMU has loaded everything and stands still, its disks not taken.
    Loaded,
    /// The right to run has come; the disks are being taken.
    Activating {
        /// Whether the guest is to run.
        run: bool,
    },
    /// The VM is here.
    Running {
        /// Whether the guest is to run.
        run: bool,
        /// Whether it has been let go, so that it is not let go again against a user's later pause.
        continued: bool,
    },
    /// QEMU is being killed.
    Refusing,
    /// No QEMU of this migration is left, and none will be.
    Refused,
    /// The journal was lost and QEMU stands still with its disks taken: it may have run. The source knows.
    InDoubt,
    /// The journal was lost and there is no QEMU: the VM may have run here.
    Lost,
}

/// What the destination's QEMU is found to be doing when an agent comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sight {
    /// The host has been booted since: no QEMU is left.
    Rebooted,
    /// There is no QEMU.
    Gone,
    /// It waits for the stream or receives it.
    Incoming,
    /// It has loaded everything, and its disks are not active.
    Loaded,
    /// It stands still with active disks.
    Activated,
    /// The guest runs.
    Running,
}

/// What can happen to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// Everything is reserved and QEMU waits for the stream.
    Reserved,
    /// QEMU has loaded everything, and it was verified.
    Arrived,
    /// The peer or the server told a fact.
    Heard(Told),
    /// The disks are active.
    Activated,
    /// The guest has been let go.
    Continued,
    /// Something failed, or a limit ran out.
    Abort,
    /// The source or the server asks that the destination gives up, unless it has the right already.
    GiveUp,
    /// The source is gone for good, and nobody knows of a `handed-over`.
    SourceLost,
    /// The QEMU of this migration is gone.
    QemuGone,
    /// The agent has come back and looked at its QEMU.
    Restarted(Sight),
    /// Time has passed without an answer.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Reserve memory, open disks, start QEMU and the worker; then say [`Event::Reserved`] or [`Event::Abort`].
    Reserve,
    /// Tell the server that the stream may come, and where to.
    TellReady,
    /// Watch QEMU load, verify, then say [`Event::Arrived`].
    AwaitArrival,
    /// Tell the source that everything is loaded.
    TellLoaded,
    /// Take the disks, then say [`Event::Activated`] or [`Event::Abort`].
    ActivateDisks,
    /// Let the guest go if it is to run, open its port, announce it; then say [`Event::Continued`]. Cannot fail:
    /// what goes wrong here is a warning.
    Continue {
        /// Whether the guest is to run.
        run: bool,
    },
    /// Kill the QEMU of this migration and release what was reserved, then say [`Event::QemuGone`].
    KillQemu,
    /// Tell the source and the server, again and again until they have heard.
    Tell(Fact),
    /// Ask the source, and the server, what they know.
    Ask,
}

impl Machine for Destination {
    type Event = Event;
    type Effect = Effect;

    fn step(&self, event: Event) -> Step<Self, Effect> {
        let next = self.next(event).unwrap_or(self.state);
        let machine = Self { state: next, ..*self };
        let changed = next != self.state;
        let effects = match event {
            Event::Restarted(_) | Event::Tick => machine.duties(event),
            _ if changed => machine.duties(event),
            _ => Vec::new(),
        };
        let decisive = changed && machine.fact().is_some() && !matches!(self.state, State::Running { .. });
        Step { next: machine, decisive, effects }
    }
}

impl Destination {
    /// A migration as it begins.
    pub fn reserving(ticket: Ticket) -> Self {
        Self { ticket, state: State::Reserving }
    }

    /// A migration of which the journal knows nothing any more, by what QEMU is found doing.
    ///
    /// A guest that runs was allowed to: `running` is written first. A QEMU whose disks are not active never
    /// ran. One that stands still with active disks may have run and been paused, so it is in doubt; and where
    /// there is none, it may have run and died, so it must not be called refused.
    pub fn orphaned(ticket: Ticket, sight: Sight) -> Self {
        let state = match sight {
            Sight::Rebooted | Sight::Gone => State::Lost,
            Sight::Incoming => State::Refusing,
            Sight::Loaded => State::Loaded,
            Sight::Activated => State::InDoubt,
            Sight::Running => State::Running { run: true, continued: true },
        };
        Self { ticket, state }
    }

    /// The fact that this state stands for, if it decides anything.
    pub fn fact(&self) -> Option<Fact> {
        match self.state {
            State::Running { .. } => Some(Fact::Running),
            State::Refused => Some(Fact::Refused),
            State::Lost => Some(Fact::Lost),
            State::Reserving
            | State::Ready
            | State::Loaded
            | State::Activating { .. }
            | State::Refusing
            | State::InDoubt => None,
        }
    }

    /// Whether nothing more happens here.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Running { continued: true, .. } | State::Refused | State::Lost)
    }

    /// The destination's whole crash recovery: where an agent that has come back goes on.
    fn recover(&self, sight: Sight) -> Option<State> {
        match (self.state, sight) {
            (State::Reserving, Sight::Gone) => None,
            (State::Reserving | State::Ready | State::Loaded | State::Activating { .. }, Sight::Rebooted) => {
                Some(State::Refusing)
            }
            (State::Ready | State::Loaded | State::Activating { .. }, Sight::Gone) => Some(State::Refusing),
            (State::Reserving | State::Ready, Sight::Incoming) => None,
            (State::Loaded | State::Activating { .. }, Sight::Incoming) => Some(State::Refusing),
            (State::Reserving | State::Ready, Sight::Loaded | Sight::Activated) => Some(State::Loaded),
            (State::Loaded | State::Activating { .. }, Sight::Loaded | Sight::Activated) => None,
            (State::Reserving | State::Ready | State::Loaded | State::Activating { .. }, Sight::Running) => {
                Some(State::Running { run: true, continued: true })
            }
            (State::Refusing, Sight::Gone | Sight::Rebooted) => Some(State::Refused),
            (State::InDoubt, Sight::Gone | Sight::Rebooted) => Some(State::Lost),
            (State::Running { .. } | State::Refusing | State::Refused | State::InDoubt | State::Lost, _) => {
                None
            }
        }
    }

    fn next(&self, event: Event) -> Option<State> {
        match (self.state, event) {
            (_, Event::Restarted(sight)) => self.recover(sight),
            (_, Event::Heard(told)) if !self.ticket.concerns(&told) => None,

            (State::Reserving, Event::Reserved) => Some(State::Ready),
            (State::Ready, Event::Arrived) => Some(State::Loaded),
            (State::Loaded | State::InDoubt, Event::Heard(Told { fact: Fact::HandedOver { run }, .. })) => {
                Some(State::Activating { run })
            }
            // The source hands over what was loaded here. Nothing is: the host lost power since.
            (State::Reserving | State::Ready, Event::Heard(Told { fact: Fact::HandedOver { .. }, .. })) => {
                Some(State::Refusing)
            }
            (State::Activating { run }, Event::Activated) => Some(State::Running { run, continued: false }),
            (State::Running { run, continued: false }, Event::Continued) => {
                Some(State::Running { run, continued: true })
            }
            (State::InDoubt, Event::Heard(Told { fact: Fact::Released, .. })) => {
                Some(State::Running { run: false, continued: true })
            }

            (
                State::Reserving | State::Ready | State::Loaded,
                Event::Abort
                | Event::GiveUp
                | Event::SourceLost
                | Event::QemuGone
                | Event::Heard(Told { fact: Fact::Resumed | Fact::Released, .. }),
            ) => Some(State::Refusing),
            (State::Activating { .. }, Event::Abort | Event::QemuGone) => Some(State::Refusing),
            (State::Refusing, Event::QemuGone) => Some(State::Refused),
            (State::InDoubt, Event::QemuGone) => Some(State::Lost),
            _ => None,
        }
    }

    /// What this state asks for: on entering it, on coming back to it, and when time has passed in it.
    fn duties(&self, event: Event) -> Vec<Effect> {
        let tick = event == Event::Tick;
        match self.state {
            State::Reserving if tick => vec![],
            State::Reserving => vec![Effect::Reserve],
            State::Ready if tick => vec![Effect::TellReady, Effect::Ask],
            State::Ready => vec![Effect::AwaitArrival, Effect::TellReady],
            State::Loaded if tick => vec![Effect::TellLoaded, Effect::Ask],
            State::Loaded => vec![Effect::TellLoaded],
            State::Activating { .. } if tick => vec![],
            State::Activating { .. } => vec![Effect::ActivateDisks],
            State::Running { run, continued: false } if !tick => {
                vec![Effect::Continue { run }, Effect::Tell(Fact::Running)]
            }
            State::Running { .. } => vec![Effect::Tell(Fact::Running)],
            State::Refusing => vec![Effect::KillQemu],
            State::Refused => vec![Effect::Tell(Fact::Refused)],
            State::InDoubt => vec![Effect::Ask],
            State::Lost => vec![Effect::Tell(Fact::Lost)],
        }
    }
}

//! The source of a migration: the host that the VM leaves, and the only one that decides that it has left.
//!
//! ```text
//!             ready               stopped             loaded and sent
//!  Planned ──────────▶ Transferring ──────▶ Switching ───────────────▶ HandedOver
//!     │                     │                   │                       │      │
//!     │ failed, cancelled, QEMU gone            │ · too long            │      │ running · abandoned
//!     ▼                     ▼                   ▼         refused       │      ▼
//!  Resumed ◀────────────────┴───────────────────┴───────────────────────┘  Releasing ──QEMU dead──▶ Released
//!     ▲                                                                        ▲                      ▲
//!     │ refused                                                        running │                      │
//!  InDoubt ────────────────────────────────────────────────────────────────────┘                      │
//!  (journal lost, QEMU stands in postmigrate)                         (journal lost, no QEMU) ────────┘
//! ```
//!
//! `HandedOver` is the point of no return: no event that this host can bring about by itself leads back from
//! it, only the destination's word that it will never run the VM.

use limosa_model::{Fact, Machine, Step};
use serde::{Deserialize, Serialize};

use crate::ticket::{Ticket, Told};

/// The source's part of one migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Source {
    /// The migration.
    pub ticket: Ticket,
    /// How far it is.
    pub state: State,
}

/// How far the source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The order is accepted; the destination is not ready.
    Planned,
    /// Memory is being sent; the guest runs.
    Transferring,
    /// The guest stands still.
    Switching {
        /// The destination has loaded and verified everything.
        loaded: bool,
        /// The own QEMU is in `postmigrate`: from here on it does not resume the guest by itself.
        sent: bool,
        /// Whether the guest ran before it was stopped, and so is to run on the destination.
        ran: bool,
    },
    /// The right to run has passed.
    HandedOver {
        /// Whether the guest is to run on the destination.
        run: bool,
    },
    /// The right to run stays here for good, as far as this migration is concerned.
    Resumed {
        /// Whether the guest goes on as it was before, so that it is not let go again against a user's later pause.
        going: bool,
    },
    /// The VM is on the destination, or lost with it: the own QEMU is being ended.
    Releasing,
    /// No QEMU of this VM is left here.
    Released,
    /// The journal was lost and QEMU stands in `postmigrate`: the right may have passed. The destination knows.
    InDoubt,
}

/// What the source's QEMU is found to be doing when an agent comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sight {
    /// There is no QEMU.
    Gone,
    /// QEMU has not begun to send.
    NotMigrating,
    /// QEMU's stream broke or was cancelled; the guest is as it was before.
    Failed,
    /// QEMU sends memory, guest not yet stopped for the switchover.
    Sending,
    /// QEMU has stopped the guest and waits for leave to go on, or sends the rest.
    Stopped,
    /// QEMU has sent everything.
    PostMigrate,
}

/// What can happen to the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The destination is ready to receive.
    Ready,
    /// QEMU has stopped the guest for the switchover.
    Stopped {
        /// Whether the guest ran before.
        ran: bool,
    },
    /// QEMU is in `postmigrate`.
    Sent,
    /// The destination has loaded and verified everything.
    Loaded(Ticket),
    /// The peer or the server told a fact.
    Heard(Told),
    /// Something failed, a user cancelled, or the switchover took too long.
    Abort,
    /// After the migration's end the guest goes on as it was before it.
    Going,
    /// The own QEMU is gone.
    QemuGone,
    /// The server says that the destination will never tell a fact, and that the VM is to be taken as crashed.
    Abandon,
    /// The agent has come back and looked at its QEMU.
    Restarted(Sight),
    /// Time has passed without an answer.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Let QEMU send to the destination. Nothing to do where it already does.
    StartStream,
    /// Watch QEMU, which has stopped the guest, send the rest, and let it if it waits; end it as [`Event::Abort`]
    /// after the limit.
    ContinueSwitchover,
    /// End the stream and whatever carries it, so that nothing more reaches the destination.
    StopStream,
    /// Let the guest go on as before, running if it ran, its port open; then say [`Event::Going`].
    ResumeGuest,
    /// Cut the guest off the network here: it is about to appear elsewhere.
    ClosePort,
    /// End the QEMU of this VM, then say [`Event::QemuGone`].
    KillQemu,
    /// Tell the destination and the server, again and again until they have heard.
    Tell(Fact),
    /// Ask the destination what it knows.
    Ask,
    /// Ask the destination to refuse, unless it runs the VM.
    AskToRefuse,
}

impl Machine for Source {
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
        let decisive = changed && machine.fact() != self.fact();
        Step { next: machine, decisive, effects }
    }
}

impl Source {
    /// A migration as it begins.
    pub fn planned(ticket: Ticket) -> Self {
        Self { ticket, state: State::Planned }
    }

    /// A migration of which the journal knows nothing any more, by what QEMU is found doing.
    ///
    /// A QEMU that is not in `postmigrate` has not been given away, or has been given back: `handed-over` is
    /// written in `postmigrate` only, and only the destination's refusal leads out of it.
    pub fn orphaned(ticket: Ticket, sight: Sight) -> Self {
        let state = match sight {
            Sight::Gone => State::Released,
            Sight::PostMigrate => State::InDoubt,
            Sight::NotMigrating | Sight::Failed | Sight::Sending | Sight::Stopped => {
                State::Resumed { going: false }
            }
        };
        Self { ticket, state }
    }

    /// The fact that this state stands for, if it decides anything.
    pub fn fact(&self) -> Option<Fact> {
        match self.state {
            State::HandedOver { run } => Some(Fact::HandedOver { run }),
            State::Resumed { .. } => Some(Fact::Resumed),
            State::Released => Some(Fact::Released),
            State::Planned
            | State::Transferring
            | State::Switching { .. }
            | State::Releasing
            | State::InDoubt => None,
        }
    }

    /// Whether a cancel can still be obeyed.
    pub fn can_cancel(&self) -> bool {
        matches!(self.state, State::Planned | State::Transferring | State::Switching { .. })
    }

    /// Whether nothing more happens here.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Resumed { going: true } | State::Released)
    }

    /// What to do when an agent has come back and found this state in its journal; before `Restarted`.
    ///
    /// One arm for each state: this is the source's whole crash recovery.
    fn recover(&self, sight: Sight) -> Option<State> {
        match (self.state, sight) {
            (State::Planned | State::Transferring | State::Switching { .. }, Sight::Gone | Sight::Failed) => {
                Some(State::Resumed { going: false })
            }
            (State::Switching { .. }, Sight::NotMigrating) => Some(State::Resumed { going: false }),
            (State::Planned, _) => None,
            (State::Transferring, Sight::NotMigrating | Sight::Sending) => None,
            (State::Transferring, Sight::Stopped) => {
                Some(State::Switching { loaded: false, sent: false, ran: true })
            }
            (State::Transferring, Sight::PostMigrate) => {
                Some(State::Switching { loaded: false, sent: true, ran: true })
            }
            (State::Switching { .. }, Sight::Sending | Sight::Stopped) => None,
            (State::Switching { loaded, ran, .. }, Sight::PostMigrate) => {
                Some(State::Switching { loaded, sent: true, ran })
            }
            (State::Releasing | State::InDoubt, Sight::Gone) => Some(State::Released),
            (
                State::HandedOver { .. }
                | State::Resumed { .. }
                | State::Releasing
                | State::Released
                | State::InDoubt,
                _,
            ) => None,
        }
    }

    fn next(&self, event: Event) -> Option<State> {
        match (self.state, event) {
            (_, Event::Restarted(sight)) => self.recover(sight),
            (_, Event::Heard(told)) if !self.ticket.concerns(&told) => None,
            (_, Event::Loaded(ticket)) if ticket != self.ticket => None,

            (State::Planned, Event::Ready) => Some(State::Transferring),
            (State::Transferring, Event::Stopped { ran }) => {
                Some(State::Switching { loaded: false, sent: false, ran })
            }
            (State::Switching { sent: true, ran, .. }, Event::Loaded(_))
            | (State::Switching { loaded: true, ran, .. }, Event::Sent) => {
                Some(State::HandedOver { run: ran })
            }
            (State::Switching { sent, ran, .. }, Event::Loaded(_)) => {
                Some(State::Switching { loaded: true, sent, ran })
            }
            (State::Switching { loaded, ran, .. }, Event::Sent) => {
                Some(State::Switching { loaded, sent: true, ran })
            }

            (
                State::Planned | State::Transferring | State::Switching { .. },
                Event::Abort | Event::QemuGone | Event::Abandon,
            ) => Some(State::Resumed { going: false }),
            (
                State::Planned | State::Transferring | State::Switching { .. },
                Event::Heard(Told { fact: Fact::Refused | Fact::Lost, .. }),
            ) => Some(State::Resumed { going: false }),

            (State::HandedOver { .. } | State::InDoubt, Event::Heard(Told { fact: Fact::Refused, .. })) => {
                Some(State::Resumed { going: false })
            }
            (State::HandedOver { .. } | State::InDoubt, Event::Heard(Told { fact: Fact::Running, .. })) => {
                Some(State::Releasing)
            }
            (State::HandedOver { .. } | State::InDoubt, Event::Abandon) => Some(State::Releasing),
            (State::Resumed { going: false }, Event::Going | Event::QemuGone) => {
                Some(State::Resumed { going: true })
            }
            (State::Releasing | State::InDoubt, Event::QemuGone) => Some(State::Released),
            _ => None,
        }
    }

    /// What this state asks for: on entering it, on coming back to it, and when time has passed in it.
    fn duties(&self, event: Event) -> Vec<Effect> {
        let tick = event == Event::Tick;
        match self.state {
            State::Planned => vec![],
            State::Transferring if tick => vec![],
            State::Transferring => vec![Effect::StartStream],
            State::Switching { sent, loaded, .. } => match event {
                Event::Stopped { .. } | Event::Restarted(_) => vec![Effect::ContinueSwitchover],
                _ if sent && !loaded => vec![Effect::Ask],
                _ => vec![],
            },
            State::HandedOver { run } if tick => vec![Effect::Tell(Fact::HandedOver { run }), Effect::Ask],
            State::HandedOver { run } => vec![Effect::Tell(Fact::HandedOver { run }), Effect::ClosePort],
            State::Resumed { going: true } => vec![Effect::Tell(Fact::Resumed)],
            State::Resumed { going: false } => {
                vec![Effect::StopStream, Effect::ResumeGuest, Effect::Tell(Fact::Resumed)]
            }
            State::Releasing => vec![Effect::KillQemu],
            State::Released => vec![Effect::Tell(Fact::Released)],
            State::InDoubt => vec![Effect::AskToRefuse],
        }
    }
}

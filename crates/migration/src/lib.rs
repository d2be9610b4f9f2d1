//! Who may run a VM while it moves: the handover, as three pure machines.
//!
//! * [`source`]: the host that a VM leaves. It alone decides that the right to run passes.
//! * [`destination`]: the host that a VM comes to. It runs the VM only after the source's word.
//! * [`custody`]: what the server knows of a VM's whereabouts, and when it may give the right anew.
//!
//! Each is a [`Machine`](limosa_model::Machine): a value with a `step(event)` that returns the next value and what to do. Nothing here waits,
//! sends, writes or looks at a clock. The caller makes the next value durable where [`Step::decisive`](limosa_model::Step) says so,
//! **then** performs the effects; effects may be performed again after a crash and must bear that.
//! ADR-0001 tells the rules, `tests/handover_model` checks them by exploring what can happen.

pub mod converge;
pub mod custody;
pub mod destination;
pub mod source;
mod ticket;

pub use custody::Custody;
pub use destination::Destination;
pub use source::Source;
pub use ticket::{Ticket, Told};

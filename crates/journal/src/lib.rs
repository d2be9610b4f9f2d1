//! Makes a machine's next state durable before anything is done about it.
//!
//! A [`Journal`] is a file of keyed values, the latest of each key counting. [`Journal::put`] survives the death of
//! the process, [`Journal::put_synced`] the death of the host. [`drive`] is the one way in which a daemon lets a
//! pure core take a step: append, sync if the step decides something, and only then hand out the effects.
//!
//! **When a write fails** nothing has happened: the old state stands, no effect is handed out, and the same or another
//! step may be tried again, which overwrites whatever the failed one left in the file. A crash in between may find
//! the failed step in the journal after all; that is a step that nobody has acted against, so it may be taken up.
//!
//! **What is found at the start** is read up to the first record that is not whole. Behind a torn end there is
//! nothing; where whole records follow, the file has been damaged in its middle and is refused, since decisions
//! would be missing from it. Space for the records of a migration is set aside before it begins, so that a full disk
//! does not stand in the way of its end.

mod frame;
mod journal;
mod medium;

pub use journal::{Journal, JournalError};
pub use medium::Medium;

use limosa_model::{Machine, Step};
use serde::Serialize;

/// Lets a machine take a step and makes it durable as far as the step asks for it.
///
/// `record` makes of the next state what is stored under `key`. The effects are handed out only when the state is
/// stored; with an error, `machine` is unchanged and the event has not happened.
pub fn drive<M, R>(
    journal: &mut Journal,
    key: &str,
    machine: &mut M,
    event: M::Event,
    record: impl FnOnce(&M) -> R,
) -> Result<Vec<M::Effect>, JournalError>
where
    M: Machine + PartialEq,
    R: Serialize,
{
    let Step { next, decisive, effects } = machine.step(event);
    if decisive {
        journal.put_synced(key, &record(&next))?;
    } else if next != *machine {
        journal.put(key, &record(&next))?;
    }
    *machine = next;
    Ok(effects)
}

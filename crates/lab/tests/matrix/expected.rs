//! What the design demands of each cell.

use crate::fault::Fault;
use crate::hold::Hold;

/// Where the VM is, once everything has settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// It runs on the source, as if nothing had been tried.
    Source,
    /// It runs on the destination.
    Destination,
    /// It runs on one of the two: two things race, and both ends are right.
    Either,
    /// It runs nowhere: its QEMU or its guest was ended.
    Stopped,
    /// It runs on the destination, or it was ended before it got there.
    DestinationOrStopped,
    /// It runs on one of the two, or was ended.
    Anything,
    /// There is nothing to which it could happen.
    CannotHappen(&'static str),
}

/// Exhaustive: a hold or a fault that is added must be thought about here.
pub(crate) fn expected(hold: Hold, fault: Fault) -> Expected {
    use Expected::{Anything, CannotHappen, Destination, DestinationOrStopped, Either, Source, Stopped};
    let sent = hold >= Hold::Loaded;
    let decided = hold >= Hold::HandedOver;
    match fault {
        Fault::Nothing => Destination,
        Fault::Cancel if decided => Destination,
        Fault::Cancel if sent => Either,
        Fault::Cancel => Source,

        Fault::KillSourceAgent | Fault::KillDestinationAgent => Destination,

        Fault::KillDestinationWorker | Fault::StopDestinationWorker if !hold.has_destination() => {
            CannotHappen("the destination has no worker yet")
        }
        Fault::KillDestinationWorker | Fault::StopDestinationWorker if hold == Hold::Arrived => {
            CannotHappen("the destination's worker has gone")
        }
        Fault::KillSourceWorker | Fault::KillDestinationWorker if sent => Destination,
        Fault::KillSourceWorker | Fault::KillDestinationWorker => Source,

        Fault::KillSourceQemu if hold == Hold::Loaded => DestinationOrStopped,
        Fault::KillSourceQemu if decided => Destination,
        Fault::KillSourceQemu => Stopped,

        Fault::KillDestinationQemu | Fault::StopDestinationQemu if !hold.has_destination() => {
            CannotHappen("the destination has no QEMU yet")
        }
        Fault::KillDestinationQemu if hold == Hold::Arrived => Stopped,
        Fault::KillDestinationQemu => Source,

        Fault::StopSourceAgent
        | Fault::StopDestinationAgent
        | Fault::StopSourceWorker
        | Fault::StopDestinationWorker
        | Fault::StopSourceQemu
        | Fault::StopDestinationQemu => match hold {
            // The guest stands still meanwhile, and is resumed where that takes too long.
            Hold::PreSwitchover | Hold::Switching | Hold::Loaded => Either,
            _ => Destination,
        },

        Fault::CutManagement | Fault::CutMigration => match hold {
            Hold::PreSwitchover | Hold::Switching | Hold::Loaded => Either,
            _ => Destination,
        },

        Fault::ImageLocked if !hold.image_is_free() => CannotHappen("a QEMU of the VM holds the lock"),
        Fault::ImageLocked => Source,

        Fault::GuestPowersOff | Fault::GuestReboots | Fault::GuestPanics if hold.guest_stands() => {
            CannotHappen("the guest stands still")
        }
        Fault::GuestPowersOff => Stopped,
        Fault::GuestReboots | Fault::GuestPanics => Destination,

        Fault::UserStops if hold.guest_stands() => Anything,
        Fault::UserStops => Stopped,
        Fault::UserKills if decided => Destination,
        Fault::UserKills if sent => DestinationOrStopped,
        Fault::UserKills => Stopped,
        Fault::UserPauses | Fault::UserDeletes if sent && !decided => Either,
        Fault::UserPauses | Fault::UserDeletes => Destination,
    }
}

//! What happens to a migration that is held.

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing: the hold alone does no harm.
    Nothing,
    Cancel,
    KillSourceAgent,
    KillDestinationAgent,
    KillSourceWorker,
    KillDestinationWorker,
    KillSourceQemu,
    KillDestinationQemu,
    /// Stopped for a while, then let go on.
    StopSourceAgent,
    StopDestinationAgent,
    StopSourceWorker,
    StopDestinationWorker,
    StopSourceQemu,
    StopDestinationQemu,
    /// The destination is cut off, then connected again.
    CutManagement,
    CutMigration,
    /// Another process locks the VM's disk for a while.
    ImageLocked,
    GuestPowersOff,
    GuestReboots,
    GuestPanics,
    UserStops,
    UserKills,
    UserPauses,
    UserDeletes,
}

impl Fault {
    pub(crate) const ALL: [Self; 24] = [
        Self::Nothing,
        Self::Cancel,
        Self::KillSourceAgent,
        Self::KillDestinationAgent,
        Self::KillSourceWorker,
        Self::KillDestinationWorker,
        Self::KillSourceQemu,
        Self::KillDestinationQemu,
        Self::StopSourceAgent,
        Self::StopDestinationAgent,
        Self::StopSourceWorker,
        Self::StopDestinationWorker,
        Self::StopSourceQemu,
        Self::StopDestinationQemu,
        Self::CutManagement,
        Self::CutMigration,
        Self::ImageLocked,
        Self::GuestPowersOff,
        Self::GuestReboots,
        Self::GuestPanics,
        Self::UserStops,
        Self::UserKills,
        Self::UserPauses,
        Self::UserDeletes,
    ];
}

//! What every machine of one migration shares.

use limosa_model::{Epoch, Fact, HostId, MigrationId, VmId};
use serde::{Deserialize, Serialize};

/// The server's word that a migration may be: who, from where, to where, under which right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ticket {
    /// The migration.
    pub migration: MigrationId,
    /// The VM.
    pub vm: VmId,
    /// The host that runs the VM.
    pub source: HostId,
    /// The epoch under which the source runs it, and under which it would go on.
    pub source_epoch: Epoch,
    /// The host that is to run the VM.
    pub destination: HostId,
    /// The epoch under which the destination would run it: never given before.
    pub epoch: Epoch,
}

impl Ticket {
    /// Whether something told is about this migration. What is not about it is ignored.
    pub fn concerns(&self, told: &Told) -> bool {
        told.migration == self.migration && told.epoch == self.epoch
    }

    /// A fact about this migration, as it is told to others.
    pub fn tell(&self, fact: Fact) -> Told {
        Told { migration: self.migration, epoch: self.epoch, fact }
    }
}

/// A fact as it travels: with the migration and the epoch that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Told {
    /// The migration.
    pub migration: MigrationId,
    /// The epoch that the migration was given.
    pub epoch: Epoch,
    /// What is so.
    pub fact: Fact,
}

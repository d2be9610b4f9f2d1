//! The agent's journal, by what it holds: which VMs are here by which right, and how far each migration is.

use std::path::Path;
use std::sync::Mutex;

use limosa_api::agent::{Measured, MigrationOrder, Role, VmOnHost};
use limosa_journal::{Journal, JournalError, drive};
use limosa_migration::{Destination, Source, Ticket, Told};
use limosa_model::{BootId, Epoch, Failure, Incarnation, JournalId, Machine, MigrationId, VmId};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Space for the records that bring one migration to its end, in bytes.
const MIGRATION_SPACE: u64 = 256 * 1024;

/// A VM that is here, or was, by a right of the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct VmRecord {
    /// The VM with everything that its spec names.
    pub target: VmOnHost,
    /// The right.
    pub epoch: Epoch,
    /// The boot in which it was started. In another one it is not here any more.
    pub boot: BootId,
    /// A user has paused it.
    pub paused: bool,
    /// It does not run any more and will not run again under this epoch, and why.
    pub ended: Option<String>,
}

/// One end of a migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MigrationRecord {
    /// The order.
    pub order: MigrationOrder,
    /// How far it is.
    pub part: Part,
    /// The boot in which it began.
    pub boot: BootId,
    /// The own worker's fingerprint.
    pub fingerprint: Option<String>,
    /// Source: where the stream goes. Destination: where the own worker listens.
    pub stream: Option<StreamEnd>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// What was measured.
    pub measured: Measured,
}

/// Where a worker listens and who it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StreamEnd {
    pub addresses: Vec<SocketAddr>,
    pub fingerprint: String,
}

/// The machine of one end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Part {
    Source(Source),
    Destination(Destination),
}

impl Part {
    pub(crate) fn ticket(&self) -> Ticket {
        match self {
            Self::Source(machine) => machine.ticket,
            Self::Destination(machine) => machine.ticket,
        }
    }

    pub(crate) fn role(&self) -> Role {
        match self {
            Self::Source(_) => Role::Source,
            Self::Destination(_) => Role::Destination,
        }
    }

    pub(crate) fn fact(&self) -> Option<Told> {
        let fact = match self {
            Self::Source(machine) => machine.fact(),
            Self::Destination(machine) => machine.fact(),
        };
        fact.map(|fact| self.ticket().tell(fact))
    }

    pub(crate) fn has_ended(&self) -> bool {
        match self {
            Self::Source(machine) => machine.has_ended(),
            Self::Destination(machine) => machine.has_ended(),
        }
    }

    /// The state's name, for people.
    pub(crate) fn state_name(&self) -> String {
        let text = match self {
            Self::Source(machine) => format!("{:?}", machine.state),
            Self::Destination(machine) => format!("{:?}", machine.state),
        };
        text.split([' ', '{']).next().unwrap_or_default().to_lowercase()
    }
}

/// A machine that is one end of a migration.
pub(crate) trait End: Machine + Copy + PartialEq {
    fn of(part: &Part) -> Option<Self>;
    fn into_part(self) -> Part;
}

impl End for Source {
    fn of(part: &Part) -> Option<Self> {
        if let Part::Source(machine) = part { Some(*machine) } else { None }
    }

    fn into_part(self) -> Part {
        Part::Source(self)
    }
}

impl End for Destination {
    fn of(part: &Part) -> Option<Self> {
        if let Part::Destination(machine) = part { Some(*machine) } else { None }
    }

    fn into_part(self) -> Part {
        Part::Destination(self)
    }
}

/// The agent's journal.
pub(crate) struct Ledger {
    journal: Mutex<Journal>,
    id: JournalId,
    fresh: bool,
}

impl Ledger {
    /// Opens the journal in the state directory, or begins one.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, JournalError> {
        let journal = Journal::open(&state_dir.join("journal"))?;
        Ok(Self { id: journal.id()?, fresh: journal.is_fresh(), journal: Mutex::new(journal) })
    }

    pub(crate) fn id(&self) -> JournalId {
        self.id
    }

    /// Whether the journal was begun just now: whatever runs here is not in it.
    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh
    }

    fn with<T>(&self, act: impl FnOnce(&mut Journal) -> T) -> T {
        let mut journal = self.journal.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        act(&mut journal)
    }

    pub(crate) fn vms(&self) -> Result<Vec<VmRecord>, JournalError> {
        self.with(|j| Ok(j.list("vm/")?.into_iter().map(|(_, record)| record).collect()))
    }

    pub(crate) fn put_vm(&self, record: &VmRecord) -> Result<(), JournalError> {
        self.with(|j| j.put_synced(&format!("vm/{}", record.target.vm), record))
    }

    pub(crate) fn remove_vm(&self, vm: VmId) -> Result<(), JournalError> {
        self.with(|j| j.remove(&format!("vm/{vm}")))
    }

    pub(crate) fn migrations(&self) -> Result<Vec<MigrationRecord>, JournalError> {
        self.with(|j| Ok(j.list("migration/")?.into_iter().map(|(_, record)| record).collect()))
    }

    /// Stores a migration as it begins, and sets aside the space for its end.
    pub(crate) fn begin_migration(&self, record: &MigrationRecord) -> Result<(), JournalError> {
        self.with(|j| {
            j.set_aside(MIGRATION_SPACE)?;
            j.put_synced(&migration_key(record), record)
        })
    }

    /// Stores what surrounds a migration's machine, such as what was measured.
    pub(crate) fn note_migration(&self, record: &MigrationRecord) -> Result<(), JournalError> {
        self.with(|j| j.put(&migration_key(record), record))
    }

    pub(crate) fn remove_migration(&self, migration: MigrationId) -> Result<(), JournalError> {
        self.with(|j| j.remove(&format!("migration/{migration}")))
    }

    /// Lets one end of a migration take a step: stored first, synced where it decides, then the effects.
    pub(crate) fn step<E: End>(
        &self,
        record: &mut MigrationRecord,
        event: E::Event,
    ) -> Result<Vec<E::Effect>, JournalError> {
        let Some(mut machine) = E::of(&record.part) else { return Ok(Vec::new()) };
        let key = migration_key(record);
        let whole = |m: &E| MigrationRecord { part: m.into_part(), ..record.clone() };
        let effects = self.with(|j| drive(j, &key, &mut machine, event, whole))?;
        record.part = machine.into_part();
        Ok(effects)
    }

    /// The epoch of a VM that has left: what is ordered under it or a lower one is late, and is refused for good.
    pub(crate) fn floor(&self, vm: VmId) -> Result<Epoch, JournalError> {
        self.with(|j| Ok(j.get(&format!("floor/{vm}"))?.unwrap_or(Epoch(0))))
    }

    pub(crate) fn put_floor(&self, vm: VmId, epoch: Epoch) -> Result<(), JournalError> {
        self.with(|j| j.put_synced(&format!("floor/{vm}"), &epoch))
    }

    /// The highest incarnation of the server that was seen.
    pub(crate) fn incarnation(&self) -> Result<Incarnation, JournalError> {
        self.with(|j| Ok(j.get("incarnation")?.unwrap_or(Incarnation(0))))
    }

    pub(crate) fn put_incarnation(&self, incarnation: Incarnation) -> Result<(), JournalError> {
        self.with(|j| j.put_synced("incarnation", &incarnation))
    }

    /// The highest epoch that was seen, of any VM.
    pub(crate) fn highest_epoch(&self) -> Result<Epoch, JournalError> {
        self.with(|j| Ok(j.get("epoch")?.unwrap_or(Epoch(0))))
    }

    pub(crate) fn put_highest_epoch(&self, epoch: Epoch) -> Result<(), JournalError> {
        self.with(|j| j.put("epoch", &epoch))
    }
}

fn migration_key(record: &MigrationRecord) -> String {
    format!("migration/{}", record.part.ticket().migration)
}

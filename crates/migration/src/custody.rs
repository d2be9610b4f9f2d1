//! What the server knows of a VM's whereabouts, and when it may give the right to run anew.
//!
//! ```text
//!            start (new epoch)            move (new epoch)
//!  Nowhere ───────────────────▶ On(host) ─────────────────▶ Moving(passage)
//!     ▲                           │   ▲                        │   │
//!     │ stopped, crashed          │   │ resumed · running      │   │
//!     ├───────────────────────────┘   └────────────────────────┘   │
//!     │ no end can run it any more: facts, or an end lost for good  │
//!     └──────────────────────────────────────────────────────────────┘
//! ```
//!
//! While a VM is `Moving` it counts as possibly on either host: it is started nowhere else until facts about
//! both ends say that neither runs it. No timeout ever stands in for a fact.

use limosa_model::{Epoch, Fact, HostId, Incarnation, MigrationId, VmId};
use serde::{Deserialize, Serialize};

use crate::ticket::{Ticket, Told};

/// The whereabouts of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Custody {
    /// The VM.
    pub vm: VmId,
    /// The highest epoch ever given for this VM.
    pub last: Epoch,
    /// Who has the right to run it.
    pub at: At,
}

/// Who has the right to run a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum At {
    /// Nobody.
    Nowhere,
    /// One host.
    On {
        /// The host.
        host: HostId,
        /// The epoch of its right.
        epoch: Epoch,
    },
    /// One of two hosts: which one, the passage will tell.
    Moving(MigrationId),
}

/// What the server has heard of one migration. Kept after its end, so that a host that asks late is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Passage {
    /// The migration.
    pub ticket: Ticket,
    /// The source's latest fact.
    pub source: Option<Fact>,
    /// The destination's latest fact.
    pub destination: Option<Fact>,
    /// The source is gone for good, by an operator's word or a fence.
    pub source_lost: bool,
    /// The destination is gone for good, by an operator's word or a fence.
    pub destination_lost: bool,
}

/// What a host that lives can be asked for so that a passage comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// To the destination: the source is gone for good; give up unless you have the right.
    SourceLost,
    /// To the source: the destination will never tell a fact; take the VM as crashed.
    Abandon,
}

/// Why a right is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Somebody has it.
    #[error("a host has the right to run the VM")]
    Given,
    /// Two hosts have yet to agree.
    #[error("migration {0} of the VM has not ended")]
    Moving(MigrationId),
    /// Nobody has it, so it cannot move.
    #[error("the VM does not run")]
    Nowhere,
}

/// The first epoch of a server's incarnation: higher than all that earlier ones can have given.
///
/// Incarnations are seconds since 1970, so a million epochs for a VM in each of them stay below 2^53, which
/// every reader of JSON takes exactly.
pub fn first_epoch(incarnation: Incarnation) -> Epoch {
    Epoch(incarnation.0 << 20)
}

/// What one host reports of one VM to a server that was restored from a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The host.
    pub host: HostId,
    /// The epochs of the QEMUs of the VM that are there, whatever they do.
    pub qemus: Vec<Epoch>,
    /// The host's parts in migrations of the VM, with what it has decided in them.
    pub parts: Vec<(Ticket, Option<Told>)>,
}

/// Builds the picture of a VM anew from the passages that a backup holds and from what **every** known host that is
/// not lost for good has reported since.
///
/// What the backup holds was so once, and facts stay so; whom the VM belonged to is not among them. The newest right
/// that anybody shows decides: a migration, which then has to come to its end, or a QEMU that runs under a later
/// right. An end that shows no part in a migration that the other end is in never took its order, or has forgotten
/// it: it is to be found out from its QEMU (`recover`) before the passage can end.
pub fn reconcile(
    vm: VmId,
    incarnation: Incarnation,
    backup: Vec<Passage>,
    sightings: &[Sighting],
    lost: &[HostId],
) -> (Custody, Vec<Passage>) {
    let mut passages = backup;
    for (ticket, _) in sightings.iter().flat_map(|sighting| &sighting.parts) {
        if !passages.iter().any(|passage| passage.ticket == *ticket) {
            passages.push(Passage::new(*ticket));
        }
    }
    for passage in &mut passages {
        let told = sightings.iter().flat_map(|sighting| &sighting.parts).filter_map(|(_, told)| *told);
        *passage = told.fold(*passage, |passage, told| passage.hear(told));
        *passage = lost.iter().fold(*passage, |passage, host| passage.host_lost(*host));
    }
    let qemus = sightings.iter().flat_map(|s| s.qemus.iter().map(|epoch| (*epoch, s.host)));
    let newest_qemu = qemus.max();
    let newest_passage = passages.iter().max_by_key(|passage| passage.ticket.epoch);
    let at = match (newest_passage, newest_qemu) {
        (Some(passage), qemu) if qemu.is_none_or(|(epoch, _)| epoch <= passage.ticket.epoch) => {
            At::Moving(passage.ticket.migration)
        }
        (_, Some((epoch, host))) => At::On { host, epoch },
        (_, None) => At::Nowhere,
    };
    let custody = Custody { at, ..Custody::new(vm, incarnation) };
    let custody = passages.iter().fold(custody, |custody, passage| custody.follow(passage));
    (custody, passages)
}

impl Custody {
    /// A VM that has never run.
    pub fn new(vm: VmId, incarnation: Incarnation) -> Self {
        Self { vm, last: first_epoch(incarnation), at: At::Nowhere }
    }

    /// Gives `host` the right to start the VM from its disks, at an epoch never given before.
    pub fn start(&self, host: HostId) -> Result<Self, Refusal> {
        match self.at {
            At::Nowhere => {
                let epoch = self.last.next();
                Ok(Self { last: epoch, at: At::On { host, epoch }, ..self.clone() })
            }
            At::On { .. } => Err(Refusal::Given),
            At::Moving(migration) => Err(Refusal::Moving(migration)),
        }
    }

    /// The host with the right says that the VM does not run there any more and that it will not start it again.
    pub fn stopped(&self, by: HostId, under: Epoch) -> Self {
        match self.at {
            At::On { host, epoch } if host == by && epoch == under => {
                Self { at: At::Nowhere, ..self.clone() }
            }
            _ => self.clone(),
        }
    }

    /// The host with the right is gone for good, by an operator's word or a fence.
    pub fn host_lost(&self, lost: HostId) -> Self {
        match self.at {
            At::On { host, .. } if host == lost => Self { at: At::Nowhere, ..self.clone() },
            _ => self.clone(),
        }
    }

    /// Begins a migration at an epoch never given before.
    pub fn begin(&self, migration: MigrationId, destination: HostId) -> Result<(Self, Passage), Refusal> {
        match self.at {
            At::On { host: source, epoch: source_epoch } => {
                let epoch = self.last.next();
                let ticket = Ticket { migration, vm: self.vm, source, source_epoch, destination, epoch };
                Ok((Self { last: epoch, at: At::Moving(migration), ..self.clone() }, Passage::new(ticket)))
            }
            At::Nowhere => Err(Refusal::Nowhere),
            At::Moving(other) => Err(Refusal::Moving(other)),
        }
    }

    /// Takes over what `passage` has come to, if the VM is in it.
    pub fn follow(&self, passage: &Passage) -> Self {
        match (self.at, passage.end()) {
            (At::Moving(migration), Some(at)) if migration == passage.ticket.migration => {
                Self { at, ..self.clone() }
            }
            _ => self.clone(),
        }
    }
}

impl Passage {
    /// A migration of which nothing has been heard.
    pub fn new(ticket: Ticket) -> Self {
        Self { ticket, source: None, destination: None, source_lost: false, destination_lost: false }
    }

    /// Takes a fact that a host told. Facts of other migrations or epochs change nothing.
    pub fn hear(&self, told: Told) -> Self {
        if !self.ticket.concerns(&told) {
            return *self;
        }
        let mut next = *self;
        match told.fact {
            Fact::HandedOver { .. } if self.source.is_none() => next.source = Some(told.fact),
            Fact::HandedOver { .. } => {}
            Fact::Resumed | Fact::Released => next.source = Some(told.fact),
            Fact::Running => next.destination = Some(told.fact),
            Fact::Refused | Fact::Lost if self.destination.is_none() => next.destination = Some(told.fact),
            Fact::Refused | Fact::Lost => {}
        }
        next
    }

    /// A host is gone for good.
    pub fn host_lost(&self, lost: HostId) -> Self {
        Self {
            source_lost: self.source_lost || lost == self.ticket.source,
            destination_lost: self.destination_lost || lost == self.ticket.destination,
            ..*self
        }
    }

    /// Who has the right to run the VM, once the facts say it.
    ///
    /// One arm for each pair of facts: this is the whole of what the server may conclude.
    pub fn end(&self) -> Option<At> {
        let Ticket { source, source_epoch, destination, epoch, .. } = self.ticket;
        let source_says = self.source;
        let on_source = At::On { host: source, epoch: source_epoch };
        let on_destination = At::On { host: destination, epoch };
        match (source_says, self.destination) {
            (_, Some(Fact::Running)) if self.destination_lost => Some(At::Nowhere),
            (_, Some(Fact::Running)) => Some(on_destination),
            (Some(Fact::Resumed), _) if self.source_lost => Some(At::Nowhere),
            (Some(Fact::Resumed), _) => Some(on_source),
            (Some(Fact::Released), Some(Fact::Refused | Fact::Lost)) => Some(At::Nowhere),
            (Some(Fact::Released), _) if self.destination_lost => Some(At::Nowhere),
            (None | Some(Fact::HandedOver { .. }), Some(Fact::Refused | Fact::Lost)) if self.source_lost => {
                Some(At::Nowhere)
            }
            (None | Some(Fact::HandedOver { .. }), _) if self.source_lost && self.destination_lost => {
                Some(At::Nowhere)
            }
            (None | Some(Fact::HandedOver { .. } | Fact::Released), _) => None,
            (Some(Fact::Running | Fact::Refused | Fact::Lost), _) => None,
        }
    }

    /// What to ask of a host so that the passage ends, where only its word is missing and can come.
    pub fn request(&self) -> Option<(HostId, Request)> {
        if self.end().is_some() {
            return None;
        }
        match (self.source, self.destination) {
            (None, None) if self.source_lost => Some((self.ticket.destination, Request::SourceLost)),
            (None | Some(Fact::HandedOver { .. }), Some(Fact::Lost)) => {
                Some((self.ticket.source, Request::Abandon))
            }
            (None | Some(Fact::HandedOver { .. }), _) if self.destination_lost => {
                Some((self.ticket.source, Request::Abandon))
            }
            _ => None,
        }
    }

    /// What to tell a host that asks, or that may not have heard: the facts of the other end.
    pub fn for_host(&self, host: HostId) -> Option<Told> {
        let fact = if host == self.ticket.source { self.destination } else { self.source };
        fact.map(|fact| self.ticket.tell(fact))
    }

    /// Whether both ends have said their last, so that nobody will ask again.
    pub fn is_settled(&self) -> bool {
        let source = self.source_lost || matches!(self.source, Some(Fact::Resumed | Fact::Released));
        let destination = self.destination_lost || self.destination.is_some();
        source && destination && self.end().is_some()
    }
}

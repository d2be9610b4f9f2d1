//! What a host is and has, as its agent reports it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::ByteSize;

/// Whether a VM runs, as observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PowerState {
    /// No QEMU.
    Stopped,
    /// The guest's CPUs run.
    Running,
    /// A user paused it, or it waits for the two ends of a migration to agree.
    Paused,
    /// A disk failed it: it stands still until the disk works again and it is resumed.
    IoError,
    /// The guest crashed and stands still.
    Crashed,
    /// The guest has suspended itself to memory.
    Suspended,
}

/// How much a host has, or how much of it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Capacity {
    /// Memory for guests.
    pub memory: ByteSize,
    /// Virtual CPUs.
    pub cpus: u32,
}

impl Capacity {
    /// What is left of this when `taken` is taken. Never below nothing.
    pub fn less(self, taken: Self) -> Self {
        Self {
            memory: ByteSize::bytes(self.memory.as_bytes().saturating_sub(taken.memory.as_bytes())),
            cpus: self.cpus.saturating_sub(taken.cpus),
        }
    }

    /// Both together.
    pub fn plus(self, more: Self) -> Self {
        Self {
            memory: ByteSize::bytes(self.memory.as_bytes().saturating_add(more.memory.as_bytes())),
            cpus: self.cpus.saturating_add(more.cpus),
        }
    }

    /// Whether `wanted` fits into this.
    pub fn holds(self, wanted: Self) -> bool {
        wanted.memory <= self.memory && wanted.cpus <= self.cpus
    }
}

/// What does not change while an agent runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostFacts {
    /// The version of Limosa.
    pub limosa_version: String,
    /// The kernel's release.
    pub kernel: String,
    /// QEMU's version, `MAJOR.MINOR.MICRO`.
    pub qemu_version: String,
    /// The pinned machine types that this QEMU has.
    pub machine_types: Vec<String>,
    /// `kvm` or `tcg`, as the CPU's flags and a probe decided.
    pub accelerator: Accelerator,
    /// The CPU's model name.
    pub cpu_model: String,
    /// The CPU's feature flags as the kernel names them, sorted.
    pub cpu_flags: Vec<String>,
    /// What the host has for guests.
    pub capacity: Capacity,
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// The CPU's own virtualisation.
    Kvm,
    /// QEMU's translator: right, and slow.
    Tcg,
}

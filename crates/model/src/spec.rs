//! The spec of a VM: what its owner wants. Written as TOML by people and as JSON by programs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{Mac, Name};
use crate::units::{ByteSize, Millis};

/// What a VM should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// The name, unique in the cluster.
    pub name: Name,
    /// Virtual CPUs.
    #[schemars(range(min = 1, max = 240))]
    pub cpus: u16,
    /// Memory. A multiple of 2 MiB.
    pub memory: ByteSize,
    /// The machine: chipset, CPU model, firmware.
    #[serde(default)]
    pub machine: MachineSpec,
    /// The disks, in the order in which the guest finds them.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// The NICs, in the order in which the guest finds them.
    #[serde(default)]
    pub nics: Vec<NicSpec>,
    /// What the VM boots from.
    #[serde(default)]
    pub boot: BootSpec,
    /// What happens by itself.
    #[serde(default)]
    pub policy: PolicySpec,
    /// Free words of the owner, for selection and for people.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// The machine that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MachineSpec {
    /// The chipset.
    pub chipset: Chipset,
    /// The pinned machine type, as `pc-q35-10.0`. Filled in at creation with the newest that the first host has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_type: Option<String>,
    /// QEMU's CPU model. The default can be migrated between all x86-64 hosts of the last decade;
    /// `host` cannot, unless the hosts' CPUs are the same.
    pub cpu_model: String,
}

impl Default for MachineSpec {
    fn default() -> Self {
        Self { chipset: Chipset::Q35, machine_type: None, cpu_model: "default".into() }
    }
}

/// The chipset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Chipset {
    /// PCI Express. The default.
    Q35,
    /// The classic PC, for old guests.
    Pc,
}

/// How a disk's bytes are laid out in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// As the guest sees them.
    Raw,
    /// QEMU's own format: grows as it is written, has snapshots.
    Qcow2,
}

impl DiskFormat {
    /// QEMU's name of the format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The name, unique within the VM.
    pub name: Name,
    /// The datastore that it lives on.
    pub datastore: Name,
    /// The layout of its file.
    #[serde(default = "DiskSpec::default_format")]
    pub format: DiskFormat,
    /// Its size as the guest sees it. Needed unless `from` is given; with `from`, the disk is grown to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// Where its first content comes from: a template or image in the datastore's `templates` folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ImageRef>,
    /// Whether the guest may write to it.
    #[serde(default)]
    pub read_only: bool,
}

impl DiskSpec {
    fn default_format() -> DiskFormat {
        DiskFormat::Qcow2
    }
}

/// An image that lies on a datastore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// The file's name in the datastore's `templates` folder.
    pub template: Name,
    /// Its format. Never guessed: a guest can make a raw disk look like anything.
    pub format: DiskFormat,
}

/// A NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// The network that it attaches to.
    pub network: Name,
    /// Its address. Derived from the VM's id where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// The IP addresses that the guest has on it, announced after a move. Others are announced by MAC alone.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// What the VM boots from. With nothing given, from its first disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BootSpec {
    /// A CD image to boot from, tried before the disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iso: Option<BootFile>,
    /// A Linux kernel to boot directly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelBoot>,
}

/// A file that the firmware reads, in a datastore's `templates` folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BootFile {
    /// The datastore.
    pub datastore: Name,
    /// The file's name.
    pub file: Name,
}

/// A kernel with its initial file system and command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelBoot {
    /// The datastore that has both files in its `templates` folder.
    pub datastore: Name,
    /// The kernel image.
    pub image: Name,
    /// The initial file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Name>,
    /// The kernel's command line, at most 2,000 bytes.
    #[serde(default)]
    pub command_line: String,
}

/// What happens by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySpec {
    /// Whether the VM is started when its host boots.
    pub start_at_boot: bool,
    /// What happens when QEMU dies.
    pub restart: RestartPolicy,
    /// How long a stop waits for the guest to power off before it is ended by force.
    pub stop_timeout_ms: Millis,
}

impl Default for PolicySpec {
    fn default() -> Self {
        Self { start_at_boot: false, restart: RestartPolicy::Never, stop_timeout_ms: Millis::new(60_000) }
    }
}

/// What happens when QEMU dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// The VM stays stopped.
    Never,
    /// It is started again, at a new epoch, at most three times in ten minutes.
    OnFailure,
}

/// Why a spec cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct InvalidSpec {
    /// The key, as in `disks[1].name`.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub why: String,
}

impl VmSpec {
    /// The limits that no single key can hold by itself.
    pub fn validate(&self) -> Result<(), InvalidSpec> {
        let invalid = |field: &str, why: String| Err(InvalidSpec { field: field.into(), why });
        if !(1..=240).contains(&self.cpus) {
            return invalid("cpus", format!("{} is outside 1 to 240", self.cpus));
        }
        let memory = self.memory.as_bytes();
        if !memory.is_multiple_of(2 << 20) || !(16 << 20..=1 << 40).contains(&memory) {
            return invalid(
                "memory",
                format!("{} is not a multiple of 2MiB from 16MiB to 1TiB", self.memory),
            );
        }
        if self.disks.len() > 16 {
            return invalid("disks", format!("{} disks are more than 16", self.disks.len()));
        }
        for (n, disk) in self.disks.iter().enumerate() {
            let field = format!("disks[{n}]");
            if self.disks[..n].iter().any(|other| other.name == disk.name) {
                return invalid(&format!("{field}.name"), format!("{:?} is used twice", disk.name.as_str()));
            }
            match disk.size {
                None if disk.from.is_none() => {
                    return invalid(
                        &format!("{field}.size"),
                        "a size is needed where no template is given".into(),
                    );
                }
                Some(size) if !size.as_bytes().is_multiple_of(512) || size.as_bytes() < 1 << 20 => {
                    return invalid(
                        &format!("{field}.size"),
                        format!("{size} is not a multiple of 512B from 1MiB"),
                    );
                }
                _ => {}
            }
        }
        if self.nics.len() > 8 {
            return invalid("nics", format!("{} NICs are more than 8", self.nics.len()));
        }
        for (n, nic) in self.nics.iter().enumerate() {
            if nic.mac.is_some() && self.nics[..n].iter().any(|other| other.mac == nic.mac) {
                return invalid(&format!("nics[{n}].mac"), "the address is used twice".into());
            }
            if nic.addresses.len() > 16 {
                return invalid(&format!("nics[{n}].addresses"), "more than 16 addresses".into());
            }
        }
        let word = |text: &str| {
            !text.is_empty()
                && text.len() <= 64
                && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
        };
        if !word(&self.machine.cpu_model) {
            return invalid(
                "machine.cpu_model",
                format!("{:?} is not a CPU model's name", self.machine.cpu_model),
            );
        }
        if let Some(machine_type) = self.machine.machine_type.as_deref().filter(|t| !word(t)) {
            return invalid("machine.machine_type", format!("{machine_type:?} is not a machine type's name"));
        }
        if let Some(kernel) = &self.boot.kernel {
            let line = &kernel.command_line;
            if line.len() > 2000 || line.bytes().any(|c| c.is_ascii_control()) {
                return invalid(
                    "boot.kernel.command_line",
                    "more than 2,000 bytes or control characters".into(),
                );
            }
        }
        if self.labels.len() > 64 || self.labels.iter().any(|(k, v)| !word(k) || v.len() > 256) {
            return invalid(
                "labels",
                "at most 64 labels, keys of 64 plain characters, values of 256 bytes".into(),
            );
        }
        Ok(())
    }
}

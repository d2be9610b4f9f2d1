//! What is needed to start a VM's QEMU: the spec with everything that it names resolved on this host.
//!
//! The agent has the plan in its journal, and a copy is written to the runtime directory before QEMU starts, so that a
//! QEMU found after a loss of the journal can still be understood.

use std::path::PathBuf;

use limosa_model::host::Accelerator;
use limosa_model::{DiskFormat, Epoch, Mac, MigrationId, Name, VmId, VmSpec};
use limosa_net::IfName;
use serde::{Deserialize, Serialize};

/// A QEMU to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchPlan {
    /// Which VM.
    pub vm: VmId,
    /// By which right.
    pub epoch: Epoch,
    /// The migration that it is started to receive. With one, QEMU waits for `migrate-incoming` and takes no image
    /// lock; without, it waits for `cont`.
    pub migration: Option<MigrationId>,
    /// What the VM should be. The machine type is pinned.
    pub spec: VmSpec,
    /// The disks, one for each in the spec, in the same order.
    pub disks: Vec<DiskPlan>,
    /// The NICs, one for each in the spec, in the same order.
    pub nics: Vec<NicPlan>,
    /// The files that the VM boots from, where the spec names any.
    pub boot: BootPlan,
    /// The VM's own directory, a direct child of the agent's runtime root. Made by the launch.
    pub runtime_dir: PathBuf,
    /// The QEMU program.
    pub qemu: PathBuf,
    /// What runs the guest's instructions.
    pub accelerator: Accelerator,
    /// Whom QEMU runs as.
    pub user: QemuUser,
    /// The cgroup under which the VM's own is made; `limosa.slice` by default.
    pub cgroup_parent: Option<PathBuf>,
    /// A library that QEMU loads before all others.
    pub preload: Option<PathBuf>,
}

/// An unprivileged user and its group, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuUser {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// A disk, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskPlan {
    /// Its name in the spec.
    pub name: Name,
    /// Its file.
    pub path: PathBuf,
    /// The layout of the file. Never guessed.
    pub format: DiskFormat,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether the host's page cache is passed by. Needed where two hosts share the file: a cache on the destination
    /// would hold what the source has since overwritten.
    pub direct: bool,
    /// The images behind it, the nearest first; opened for reading only.
    #[serde(default)]
    pub backing: Vec<BackingPlan>,
}

/// An image behind a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackingPlan {
    /// Its file.
    pub path: PathBuf,
    /// The layout of the file.
    pub format: DiskFormat,
}

/// A NIC, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicPlan {
    /// The bridge of its network on this host.
    pub bridge: IfName,
    /// The tap to be made; see [`tap_name`].
    pub tap: IfName,
    /// The guest's address.
    pub mac: Mac,
}

/// The files that a VM boots from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootPlan {
    /// A CD image, tried before the disks.
    pub iso: Option<PathBuf>,
    /// A kernel to boot directly.
    pub kernel: Option<KernelPlan>,
}

/// A kernel with its initial file system. Both must be readable by QEMU's user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelPlan {
    /// The kernel image.
    pub image: PathBuf,
    /// The initial file system.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: String,
}

/// The name of the tap of a VM's NIC: short enough for a device, and the same each time for one epoch. Another epoch
/// has another, since a QEMU that the VM has left may hold its taps still when the VM comes back.
pub fn tap_name(vm: VmId, epoch: Epoch, nic: u8) -> IfName {
    let id = vm.to_string();
    let tail = u32::from_str_radix(&id[id.len() - 8..], 16).expect("a UUID ends in hexadecimal digits");
    // An odd factor spreads the epochs, which are small and close together, over all 32 bits and makes no two meet.
    let tag = tail ^ (epoch.0 as u32).wrapping_mul(0x9e37_79b1);
    format!("lm{tag:08x}n{nic}")
        .parse()
        .expect("2 + 8 + 1 + at most 3 letters and digits are a device's name")
}

impl LaunchPlan {
    /// Whether QEMU waits for a migration.
    pub fn is_incoming(&self) -> bool {
        self.migration.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nic_has_a_tap_of_its_own_in_each_epoch_with_a_name_that_fits() {
        let vm = VmId::from_u128(0x0190_f3c2_3c8e_7bbb_8e5f_1111_89ab_cdef);
        assert_eq!(tap_name(vm, Epoch(0), 0).as_str(), "lm89abcdefn0");
        let names: std::collections::BTreeSet<_> =
            (0..1000).flat_map(|epoch| [0, 1, u8::MAX].map(|nic| tap_name(vm, Epoch(epoch), nic))).collect();
        assert_eq!(names.len(), 3000);
    }
}

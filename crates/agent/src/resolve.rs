//! From a spec as the server sends it to what QEMU is started with on this host.
//!
//! Names from outside become paths here and nowhere else. They are [`Name`](limosa_model::Name)s, which cannot leave
//! their folder, under a datastore's path, which must be absolute.

use std::path::{Component, Path, PathBuf};

use limosa_api::agent::{DatastoreAt, VmOnHost};
use limosa_model::host::Accelerator;
use limosa_model::spec::BootFile;
use limosa_model::{Epoch, Failure, FailureKind, Mac, MigrationId, Name, VmId};
use limosa_vm::{BootPlan, DiskPlan, KernelPlan, LaunchPlan, NicPlan, QemuUser, tap_name};

use crate::config::Config;

/// The folder of a VM's disks.
pub(crate) fn disks_dir(datastore: &DatastoreAt, vm: VmId) -> PathBuf {
    datastore.path.join("vms").join(vm.to_string())
}

/// The folder of a datastore's templates.
pub(crate) fn templates_dir(datastore: &DatastoreAt) -> PathBuf {
    datastore.path.join("templates")
}

/// The datastore of this name.
pub(crate) fn datastore<'t>(target: &'t VmOnHost, name: &Name) -> Result<&'t DatastoreAt, Failure> {
    let found = target.datastores.iter().find(|d| d.name == *name).ok_or_else(|| {
        Failure::new(
            FailureKind::NotFound,
            format!("datastore {name} of VM {} is not known on this host", target.spec.name),
            "add the datastore to the host, or choose another one",
        )
    })?;
    let plain = found.path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !found.path.is_absolute() || !plain {
        return Err(Failure::new(
            FailureKind::Invalid,
            format!(
                "the path {} of datastore {name} is not an absolute path without `..`",
                found.path.display()
            ),
            "correct the path of the datastore",
        ));
    }
    Ok(found)
}

/// The file of a disk.
pub(crate) fn disk_path(target: &VmOnHost, disk: &limosa_model::spec::DiskSpec) -> Result<PathBuf, Failure> {
    let datastore = datastore(target, &disk.datastore)?;
    Ok(disks_dir(datastore, target.vm).join(format!("{}.{}", disk.name, disk.format.name())))
}

fn boot_path(target: &VmOnHost, file: &BootFile) -> Result<PathBuf, Failure> {
    existing(templates_dir(datastore(target, &file.datastore)?).join(file.file.as_str()), target)
}

fn existing(path: PathBuf, target: &VmOnHost) -> Result<PathBuf, Failure> {
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure::new(
        FailureKind::Storage,
        format!("the file {} of VM {} is not there", path.display(), target.spec.name),
        "is the datastore mounted on this host, and the file in its `templates` folder?",
    ))
}

/// What a launch needs to know beside the VM.
pub(crate) struct Place<'c> {
    pub config: &'c Config,
    pub runtime_root: &'c Path,
    pub accelerator: Accelerator,
}

/// The plan by which QEMU is started.
pub(crate) fn launch_plan(
    target: &VmOnHost,
    epoch: Epoch,
    migration: Option<MigrationId>,
    place: &Place<'_>,
) -> Result<LaunchPlan, Failure> {
    let spec = &target.spec;
    spec.validate().map_err(|error| {
        Failure::new(
            FailureKind::Invalid,
            format!("the spec of VM {}: {error}", spec.name),
            "correct the spec",
        )
    })?;
    let mut disks = Vec::new();
    for disk in &spec.disks {
        disks.push(DiskPlan {
            name: disk.name.clone(),
            path: disk_path(target, disk)?,
            format: disk.format,
            read_only: disk.read_only,
            direct: true,
            backing: Vec::new(),
        });
    }
    let mut nics = Vec::new();
    for (n, nic) in spec.nics.iter().enumerate() {
        let network = target.networks.iter().find(|net| net.name == nic.network).ok_or_else(|| {
            Failure::new(
                FailureKind::NotFound,
                format!("network {} of VM {} is not known on this host", nic.network, spec.name),
                "add the network to the host, or choose another one",
            )
        })?;
        let bridge = network.bridge.parse().map_err(|error| {
            Failure::new(
                FailureKind::Invalid,
                format!("network {}: {error}", nic.network),
                "correct the bridge of the network",
            )
        })?;
        let number = u8::try_from(n).unwrap_or(u8::MAX);
        let mac = nic.mac.unwrap_or_else(|| Mac::derived(target.vm, number));
        nics.push(NicPlan { bridge, tap: tap_name(target.vm, epoch, number), mac });
    }
    let kernel = match &spec.boot.kernel {
        None => None,
        Some(kernel) => {
            let folder = templates_dir(datastore(target, &kernel.datastore)?);
            Some(KernelPlan {
                image: existing(folder.join(kernel.image.as_str()), target)?,
                initrd: kernel
                    .initrd
                    .as_ref()
                    .map(|name| existing(folder.join(name.as_str()), target))
                    .transpose()?,
                command_line: kernel.command_line.clone(),
            })
        }
    };
    let iso = spec.boot.iso.as_ref().map(|file| boot_path(target, file)).transpose()?;
    Ok(LaunchPlan {
        vm: target.vm,
        epoch,
        migration,
        spec: spec.clone(),
        disks,
        nics,
        boot: BootPlan { iso, kernel },
        runtime_dir: place.runtime_root.join(target.vm.to_string()),
        qemu: place.config.qemu.clone(),
        accelerator: place.accelerator,
        user: QemuUser { uid: place.config.vm_user.uid, gid: place.config.vm_user.gid },
        cgroup_parent: place.config.cgroup_parent.clone(),
        preload: None,
    })
}

//! From a launch plan and its open descriptors to QEMU's command line.
//!
//! Source and destination of a migration must build the same machine: everything that the guest can see comes from
//! the spec alone.

use std::os::fd::{AsRawFd, OwnedFd};

use limosa_model::DiskFormat;
use limosa_model::host::Accelerator;
use limosa_qemu::Identity;
use limosa_qemu::command_line::{
    self, Cdrom, CommandLine, Cpu, Disk, DiskBus, FileSource, Firmware, Image, ImageFormat, Kernel, Memory,
    Nic, NicModel, OnIoError, Serial, Start, Vga,
};

use crate::descriptors::Descriptors;
use crate::{LaunchPlan, RuntimeDir, VmError};

/// What every x86-64 CPU of the last decade has beyond QEMU's oldest model: x86-64-v2 and AES.
const DEFAULT_FEATURES: [(&str, bool); 6] =
    [("ssse3", true), ("sse4.1", true), ("sse4.2", true), ("popcnt", true), ("aes", true), ("svm", false)];

/// The command line of the QEMU that this plan describes.
pub(crate) fn build(
    plan: &LaunchPlan,
    dir: &RuntimeDir,
    descriptors: &Descriptors,
) -> Result<CommandLine, VmError> {
    let invalid = |why: &str| VmError::InvalidPlan { vm: plan.vm, why: why.to_owned() };
    let spec = &plan.spec;
    let machine = spec.machine.machine_type.clone().ok_or_else(|| invalid("no machine type is pinned"))?;
    if plan.disks.len() != spec.disks.len() || plan.nics.len() != spec.nics.len() {
        return Err(invalid("its disks and NICs are not those of the spec"));
    }
    let kernel = plan.boot.kernel.as_ref().zip(descriptors.kernel.as_ref());
    Ok(CommandLine {
        binary: plan.qemu.clone(),
        identity: Identity {
            vm: plan.vm.to_string(),
            epoch: plan.epoch.0,
            migration: plan.migration.map(|migration| migration.to_string()),
        },
        name: spec.name.to_string(),
        uuid: plan.vm.to_string(),
        machine,
        accelerator: match plan.accelerator {
            Accelerator::Kvm => command_line::Accelerator::Kvm,
            Accelerator::Tcg => command_line::Accelerator::Tcg,
        },
        cpu: cpu(&spec.machine.cpu_model, plan.accelerator),
        vcpus: spec.cpus.into(),
        memory: Memory { bytes: spec.memory.as_bytes(), memfd: descriptors.memory.as_raw_fd() },
        qmp_socket: dir.qmp_socket(),
        serial: Some(Serial { socket: dir.serial_socket(), log: None }),
        vga: Vga::Std,
        vnc_socket: Some(dir.vnc_socket()),
        rng: true,
        balloon: true,
        firmware: Firmware::SeaBios,
        kernel: kernel.map(|(kernel, image)| Kernel {
            kernel: source(image),
            initrd: descriptors.initrd.as_ref().map(source),
            append: kernel.command_line.clone(),
        }),
        disks: disks(plan, descriptors),
        cdroms: descriptors
            .iso
            .iter()
            .map(|iso| Cdrom { index: 0, image: Some(source(iso)), boot_index: Some(1) })
            .collect(),
        nics: (0..)
            .zip(plan.nics.iter().zip(&descriptors.taps))
            .map(|(index, (nic, tap))| Nic {
                index,
                model: NicModel::Virtio,
                mac: nic.mac.octets(),
                tap: tap.as_raw_fd(),
                vhost: None,
                mtu: None,
                boot_index: None,
            })
            .collect(),
        start: if plan.is_incoming() { Start::Incoming } else { Start::Paused },
        stay_after_shutdown: true,
        globals: Vec::new(),
        extra: Vec::new(),
    })
}

fn disks(plan: &LaunchPlan, descriptors: &Descriptors) -> Vec<Disk> {
    let boot_index_of_first = if plan.boot.iso.is_some() { 2 } else { 1 };
    let disks = plan.disks.iter().zip(&descriptors.disks);
    (0u8..)
        .zip(disks)
        .map(|(index, (disk, chain))| {
            let formats = [disk.format].into_iter().chain(disk.backing.iter().map(|behind| behind.format));
            Disk {
                index,
                image: image(&formats.zip(chain).collect::<Vec<_>>()),
                bus: DiskBus::Virtio,
                direct: disk.direct,
                read_only: disk.read_only,
                discard: true,
                on_write_error: OnIoError::Stop,
                on_read_error: OnIoError::Stop,
                boot_index: Some(boot_index_of_first + u16::from(index)),
                serial: Some(disk.name.to_string()).filter(|name| name.len() <= 20),
            }
        })
        .collect()
}

fn image(chain: &[(DiskFormat, &OwnedFd)]) -> Image {
    let ((format, descriptor), behind) = chain.split_first().expect("a disk has an image of its own");
    Image {
        source: source(descriptor),
        format: match format {
            DiskFormat::Raw => ImageFormat::Raw,
            DiskFormat::Qcow2 => ImageFormat::Qcow2,
        },
        backing: (!behind.is_empty()).then(|| Box::new(image(behind))),
    }
}

fn source(descriptor: &OwnedFd) -> FileSource {
    FileSource::Descriptor(descriptor.as_raw_fd())
}

fn cpu(model: &str, accelerator: Accelerator) -> Cpu {
    match (model, accelerator) {
        ("default", _) => Cpu {
            model: "qemu64".into(),
            features: DEFAULT_FEATURES.map(|(feature, on)| (feature.to_owned(), on)).into(),
        },
        // What `host` means where no CPU of the host is used.
        ("host", Accelerator::Tcg) => Cpu { model: "max".into(), features: Vec::new() },
        (model, _) => Cpu { model: model.to_owned(), features: Vec::new() },
    }
}

//! The command line of a new QEMU: a pure function from a [`CommandLine`] to arguments.
//!
//! No shell reads it. What a user has chosen travels as JSON, or with its commas doubled, or in an argument of
//! its own; what QEMU cannot take is [`Error::Invalid`](crate::Error::Invalid). Nothing is left to QEMU's
//! defaults (`-nodefaults`), and every device has an id and a PCI address by its own number, so that the same VM
//! looks the same to its guest on every host, and after devices have come and gone.
//!
//! | slot | device | slot | device |
//! |---|---|---|---|
//! | 0x02 | VGA | 0x06 | USB (tablet) |
//! | 0x03 | virtio-rng | 0x08 + n | NIC n (8) |
//! | 0x04 | virtio-balloon | 0x10 + n | disk n (12) |
//! | 0x05 | virtio-scsi | | |
//!
//! All of these are on the machine's own bus. On a pc machine they can be plugged and unplugged while it runs;
//! QEMU's q35 machine can do that only with what is on the virtio-scsi controller.
//!
//! Descriptors are named by the numbers under which QEMU inherits them; who starts QEMU sees to that.

mod arguments;
mod disk;
mod nic;
mod properties;

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

pub use disk::{Cdrom, Disk, DiskBus, FileSource, Image, ImageFormat, OnIoError};
pub use nic::{Nic, NicModel};
pub use properties::Properties;

use crate::Identity;

/// Everything about a QEMU to be started.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandLine {
    /// The program.
    pub binary: PathBuf,
    /// By what the agent recognises it.
    pub identity: Identity,
    /// The VM's name, for people.
    pub name: String,
    /// The UUID that the guest sees (SMBIOS).
    pub uuid: String,
    /// A machine type with its version, such as `pc-q35-10.0` or `pc-i440fx-10.0`.
    pub machine: String,
    /// What runs the guest's instructions.
    pub accelerator: Accelerator,
    /// The CPU that the guest sees.
    pub cpu: Cpu,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// The guest's memory.
    pub memory: Memory,
    /// Where the monitor listens.
    pub qmp_socket: PathBuf,
    /// The serial console.
    pub serial: Option<Serial>,
    /// The screen.
    pub vga: Vga,
    /// Where VNC listens; needs a [`Vga`].
    pub vnc_socket: Option<PathBuf>,
    /// Does the guest get randomness from the host (virtio-rng)?
    pub rng: bool,
    /// Can the guest give memory back (virtio-balloon)?
    pub balloon: bool,
    /// What the guest boots by.
    pub firmware: Firmware,
    /// A kernel started without a boot loader.
    pub kernel: Option<Kernel>,
    /// Disks.
    pub disks: Vec<Disk>,
    /// CD-ROM drives.
    pub cdroms: Vec<Cdrom>,
    /// NICs.
    pub nics: Vec<Nic>,
    /// What happens at the start.
    pub start: Start,
    /// Does QEMU stay, paused, when the guest has powered off, so that an agent that was away can see it?
    pub stay_after_shutdown: bool,
    /// Settings of device properties (`-global`).
    pub globals: Vec<Global>,
    /// Further arguments, as they are.
    pub extra: Vec<OsString>,
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's CPU.
    Kvm,
    /// QEMU's translator, a thread for each virtual CPU.
    Tcg,
}

/// The CPU that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// A model of QEMU's, such as `qemu64` or `Skylake-Server-v2`.
    pub model: String,
    /// Features turned on or off.
    pub features: Vec<(String, bool)>,
}

/// The guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// How much: whole MiB.
    pub bytes: u64,
    /// The memfd that it is in, of at least that size, as QEMU inherits it.
    pub memfd: RawFd,
}

/// The serial console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serial {
    /// Where it listens.
    pub socket: PathBuf,
    /// A file to which its output is appended.
    pub log: Option<PathBuf>,
}

/// The screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vga {
    /// There is none.
    None,
    /// The one that every guest knows.
    Std,
    /// virtio-vga.
    Virtio,
}

/// What the guest boots by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS, which QEMU brings.
    SeaBios,
    /// UEFI in two flashes, raw images.
    Uefi {
        /// The program, only read.
        code: FileSource,
        /// The VM's own variables, written.
        vars: FileSource,
    },
}

/// A kernel started without a boot loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The kernel.
    pub kernel: FileSource,
    /// Its initial file system.
    pub initrd: Option<FileSource>,
    /// Its command line.
    pub append: String,
}

/// What happens at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The guest runs.
    Run,
    /// The guest waits for `cont`.
    Paused,
    /// QEMU waits for `migrate-incoming`; the guest then waits for `cont`.
    Incoming,
}

/// A setting of a property for all devices of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Global {
    /// The kind, such as `virtio-net-pci` or `migration`.
    pub driver: String,
    /// The property.
    pub property: String,
    /// Its value, as it is.
    pub value: String,
}

#[cfg(test)]
mod tests;

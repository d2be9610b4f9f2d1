//! From a [`CommandLine`] to arguments, in the order in which QEMU makes things: what refers to another comes
//! behind it.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::disk::{DISKS, NodeOptions};
use super::nic::NICS;
use super::{
    Accelerator, CommandLine, DiskBus, FileSource, Firmware, Global, Image, ImageFormat, Properties, Start,
    Vga,
};
use crate::Error;

const SLOT_VGA: u8 = 0x02;
const SLOT_RNG: u8 = 0x03;
const SLOT_BALLOON: u8 = 0x04;
const SLOT_SCSI: u8 = 0x05;
const SLOT_USB: u8 = 0x06;
pub(super) const SLOT_NIC: u8 = 0x08;
pub(super) const SLOT_DISK: u8 = 0x10;
const FDSET_FIRMWARE: u32 = 10;
/// Everything that a QEMU with its descriptors handed to it has no need of.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

impl CommandLine {
    /// The arguments, with the program as the first.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the value, and what is wrong with it.
    pub fn to_arguments(&self) -> Result<Vec<OsString>, Error> {
        let mut line = Line(vec![self.binary.clone().into()]);
        let [option, identity] = self.identity.arguments()?;
        line.option(&option, identity);
        self.push_machine(&mut line)?;
        self.push_monitor(&mut line)?;
        self.push_firmware_and_kernel(&mut line)?;
        self.push_disks(&mut line)?;
        self.push_nics(&mut line)?;
        self.push_screen_and_small_devices(&mut line)?;
        for global in &self.globals {
            line.option("-global", global.argument()?);
        }
        match self.start {
            Start::Run => {}
            Start::Paused => line.flag("-S"),
            Start::Incoming => {
                line.flag("-S");
                line.option("-incoming", "defer");
            }
        }
        line.0.extend(self.extra.iter().cloned());
        match line.0.iter().find(|argument| argument.as_bytes().contains(&0)) {
            Some(argument) => {
                Err(Error::invalid("argument", argument.to_string_lossy(), "it holds a zero byte"))
            }
            None => Ok(line.0),
        }
    }

    fn push_machine(&self, line: &mut Line) -> Result<(), Error> {
        if !self.machine.starts_with("pc-q35-") && !self.machine.starts_with("pc-i440fx-") {
            let why = "a pc-q35 or pc-i440fx machine type with its version is expected, such as pc-q35-10.0";
            return Err(Error::invalid("machine type", &self.machine, why));
        }
        if self.vcpus == 0 {
            return Err(Error::invalid("number of virtual CPUs", "0", "at least one is needed"));
        }
        let megabytes = self.memory.bytes >> 20;
        if megabytes == 0 || megabytes << 20 != self.memory.bytes {
            return Err(Error::invalid("memory", self.memory.bytes.to_string(), "whole MiB are expected"));
        }
        let is_uuid = self.uuid.len() == 36
            && self.uuid.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            });
        if !is_uuid {
            return Err(Error::invalid("UUID", &self.uuid, "8-4-4-4-12 hexadecimal digits are expected"));
        }

        line.flag("-nodefaults");
        line.flag("-no-user-config");
        line.option("-sandbox", SANDBOX);
        line.option("-msg", "timestamp=on");
        line.option("-name", format!("guest={},debug-threads=on", self.name.replace(',', ",,")));
        line.option("-uuid", &self.uuid);
        let mut machine = format!("{},memory-backend=ram0", word("machine type", &self.machine)?);
        if matches!(self.firmware, Firmware::Uefi { .. }) {
            machine += ",pflash0=firmware0,pflash1=firmware1";
        }
        line.option("-machine", machine);
        line.option(
            "-accel",
            match self.accelerator {
                Accelerator::Kvm => "kvm",
                Accelerator::Tcg => "tcg,thread=multi",
            },
        );
        let mut cpu = word("CPU model", &self.cpu.model)?.to_owned();
        for (feature, on) in &self.cpu.features {
            cpu += &format!(",{}={}", word("CPU feature", feature)?, if *on { "on" } else { "off" });
        }
        line.option("-cpu", cpu);
        line.option("-smp", format!("cpus={0},sockets=1,cores={0},threads=1,maxcpus={0}", self.vcpus));
        line.option("-m", format!("size={megabytes}M"));
        let memory = Properties::new()
            .with("qom-type", "memory-backend-file")
            .with("id", "ram0")
            .with("size", self.memory.bytes)
            .with("share", true)
            .with("mem-path", format!("/proc/self/fd/{}", descriptor("memfd", self.memory.memfd)?))
            .with("prealloc", false);
        line.option("-object", memory.to_json());
        line.option("-boot", "strict=on");
        if self.stay_after_shutdown {
            line.flag("-no-shutdown");
        }
        Ok(())
    }

    fn push_monitor(&self, line: &mut Line) -> Result<(), Error> {
        line.option("-chardev", socket_chardev("qmp", &self.qmp_socket)?);
        line.option("-mon", "chardev=qmp,mode=control");
        if let Some(serial) = &self.serial {
            let mut chardev = socket_chardev("serial0", &serial.socket)?;
            if let Some(log) = &serial.log {
                chardev.push(",logfile=");
                chardev.push(doubled(absolute("console log", log)?));
                chardev.push(",logappend=on");
            }
            line.option("-chardev", chardev);
            let device = Properties::new()
                .with("driver", "isa-serial")
                .with("id", "console0")
                .with("chardev", "serial0");
            line.option("-device", device.to_json());
        }
        Ok(())
    }

    fn push_firmware_and_kernel(&self, line: &mut Line) -> Result<(), Error> {
        if let Firmware::Uefi { code, vars } = &self.firmware {
            for (fdset, name, source, read_only) in
                [(FDSET_FIRMWARE, "firmware0", code, true), (FDSET_FIRMWARE + 1, "firmware1", vars, false)]
            {
                let image = Image { source: source.clone(), format: ImageFormat::Raw, backing: None };
                let options = NodeOptions { read_only, ..NodeOptions::default() };
                line.image(&image, fdset, image.nodes(name, fdset, options)?)?;
            }
        }
        if let Some(kernel) = &self.kernel {
            line.option("-kernel", loadable("kernel", &kernel.kernel)?);
            if let Some(initrd) = &kernel.initrd {
                line.option("-initrd", loadable("initrd", initrd)?);
            }
            line.option("-append", &kernel.append);
        }
        Ok(())
    }

    fn push_disks(&self, line: &mut Line) -> Result<(), Error> {
        all_different("disk", self.disks.iter().map(|disk| disk.index), DISKS)?;
        all_different("CD-ROM drive", self.cdroms.iter().map(|cdrom| cdrom.index), 2)?;
        if self.disks.iter().any(|disk| disk.bus == DiskBus::Scsi) {
            line.option("-device", pci("virtio-scsi-pci", "scsi0", &self.machine, SLOT_SCSI).to_json());
        }
        for disk in &self.disks {
            line.image(&disk.image, disk.fdset(), disk.nodes()?)?;
            line.option("-device", disk.device(&self.machine)?.to_json());
        }
        for cdrom in &self.cdroms {
            if let Some(source) = &cdrom.image {
                let image = Image { source: source.clone(), format: ImageFormat::Raw, backing: None };
                line.image(&image, cdrom.fdset(), cdrom.nodes()?)?;
            }
            line.option("-device", cdrom.device().to_json());
        }
        Ok(())
    }

    fn push_nics(&self, line: &mut Line) -> Result<(), Error> {
        all_different("NIC", self.nics.iter().map(|nic| nic.index), NICS)?;
        for nic in &self.nics {
            let tap = descriptor("tap", nic.tap)?.to_string();
            let vhost = nic.vhost.map(|fd| descriptor("vhost-net", fd)).transpose()?.map(|fd| fd.to_string());
            line.option("-netdev", nic.netdev(&tap, vhost.as_deref()).to_json());
            line.option("-device", nic.device(&self.machine)?.to_json());
        }
        Ok(())
    }

    fn push_screen_and_small_devices(&self, line: &mut Line) -> Result<(), Error> {
        line.option("-display", "none");
        match self.vga {
            Vga::None => {}
            Vga::Std => line.option("-device", pci("VGA", "vga0", &self.machine, SLOT_VGA).to_json()),
            Vga::Virtio => {
                line.option("-device", pci("virtio-vga", "vga0", &self.machine, SLOT_VGA).to_json())
            }
        }
        if let Some(socket) = &self.vnc_socket {
            if self.vga == Vga::None {
                return Err(Error::invalid(
                    "VNC socket",
                    socket.to_string_lossy(),
                    "the VM has no screen to show",
                ));
            }
            let mut vnc = OsString::from("unix:");
            vnc.push(doubled(absolute("VNC socket", socket)?));
            line.option("-vnc", vnc);
            // Without a tablet the pointer in a VNC viewer is never where the guest's is.
            line.option("-device", pci("qemu-xhci", "usb0", &self.machine, SLOT_USB).to_json());
            let tablet = Properties::new()
                .with("driver", "usb-tablet")
                .with("id", "tablet0")
                .with("bus", "usb0.0")
                .with("port", "1");
            line.option("-device", tablet.to_json());
        }
        if self.rng {
            let source = Properties::new()
                .with("qom-type", "rng-random")
                .with("id", "rng0-source")
                .with("filename", "/dev/urandom");
            line.option("-object", source.to_json());
            let device = pci("virtio-rng-pci", "rng0", &self.machine, SLOT_RNG).with("rng", "rng0-source");
            line.option("-device", device.to_json());
        }
        if self.balloon {
            line.option(
                "-device",
                pci("virtio-balloon-pci", "balloon0", &self.machine, SLOT_BALLOON).to_json(),
            );
        }
        Ok(())
    }
}

impl Global {
    fn argument(&self) -> Result<String, Error> {
        let driver = word("driver of a global", &self.driver)?;
        // QEMU splits at the first dot and takes all behind the first equals sign as it is.
        if driver.contains('.') {
            return Err(Error::invalid("driver of a global", driver, "it holds a dot"));
        }
        Ok(format!("{driver}.{}={}", word("property of a global", &self.property)?, self.value))
    }
}

struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn option(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.0.push(name.into());
        self.0.push(value.as_ref().to_owned());
    }

    /// The descriptors of an image and of those behind it, and the nodes on them.
    fn image(&mut self, image: &Image, first_fdset: u32, nodes: Vec<Properties>) -> Result<(), Error> {
        for (fdset, image) in (first_fdset..).zip(image.chain()) {
            if let FileSource::Descriptor(fd) = image.source {
                self.option("-add-fd", format!("set={fdset},fd={}", descriptor("image", fd)?));
            }
        }
        for node in nodes {
            self.option("-blockdev", node.to_json());
        }
        Ok(())
    }
}

/// A PCI device in its place on the bus that the machine has by itself.
pub(super) fn pci(driver: &str, id: &str, machine: &str, slot: u8) -> Properties {
    Properties::new()
        .with("driver", driver)
        .with("id", id)
        .with("bus", if machine.starts_with("pc-q35-") { "pcie.0" } else { "pci.0" })
        .with("addr", format!("{slot:#04x}"))
}

fn socket_chardev(id: &str, socket: &Path) -> Result<OsString, Error> {
    let mut chardev = OsString::from(format!("socket,id={id},path="));
    chardev.push(doubled(absolute("socket", socket)?));
    chardev.push(",server=on,wait=off");
    Ok(chardev)
}

/// A file that QEMU opens by name.
fn loadable(what: &'static str, source: &FileSource) -> Result<OsString, Error> {
    match source {
        FileSource::Descriptor(fd) => Ok(format!("/proc/self/fd/{}", descriptor(what, *fd)?).into()),
        FileSource::Path(path) => absolute(what, path).map(OsString::from),
    }
}

/// A path with its commas doubled: QEMU's way to put one into a value.
fn doubled(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes().iter();
    OsString::from_vec(
        bytes.flat_map(|byte| if *byte == b',' { vec![b',', b','] } else { vec![*byte] }).collect(),
    )
}

pub(super) fn absolute<'a>(what: &'static str, path: &'a Path) -> Result<&'a Path, Error> {
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(Error::invalid(what, path.to_string_lossy(), "an absolute path is expected"))
    }
}

pub(super) fn utf8<'a>(what: &'static str, path: &'a Path) -> Result<&'a str, Error> {
    path.to_str().ok_or_else(|| Error::invalid(what, path.to_string_lossy(), "it is not UTF-8"))
}

/// A name of QEMU's, which needs no escaping.
fn word<'a>(what: &'static str, text: &'a str) -> Result<&'a str, Error> {
    let is_word =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if is_word {
        Ok(text)
    } else {
        Err(Error::invalid(what, text, "letters, digits, '-', '_' and '.' are expected"))
    }
}

fn descriptor(what: &'static str, fd: RawFd) -> Result<RawFd, Error> {
    if fd > 2 {
        Ok(fd)
    } else {
        Err(Error::invalid(what, fd.to_string(), "a descriptor above 2 is expected"))
    }
}

fn all_different(what: &'static str, indices: impl Iterator<Item = u8>, count: u8) -> Result<(), Error> {
    let mut seen = HashSet::new();
    for index in indices {
        if index >= count {
            return Err(Error::invalid(what, index.to_string(), "its number is too high"));
        }
        if !seen.insert(index) {
            return Err(Error::invalid(what, index.to_string(), "another one has the same number"));
        }
    }
    Ok(())
}

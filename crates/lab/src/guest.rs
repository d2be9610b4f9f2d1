//! The page-stamping guest, seen from outside: started with plain QEMU, and asked over the guest network.
//!
//! Plain QEMU (no agent, no preload library, RAM of its own) is for trying the lab itself out; VMs that move are
//! the agent's. [`GuestConnection`] serves both.

mod connection;
mod monitor;

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

pub use connection::{DiskStatus, GuestConnection, PageFault, Status, TimeStatus, Verified};
pub use monitor::qmp_execute;

use crate::assets::Assets;
use crate::command::ip;
use crate::error::{Error, Result};
use crate::lab::Lab;
use crate::names::{Network, Room};
use crate::process::Process;
use crate::topology::HOST_BRIDGE;

/// What a guest is started with.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// Letters, digits and hyphens, at most 11 of them: `tap-NAME` is an interface's name.
    pub name: String,
    /// The host that it runs on.
    pub host: Room,
    /// Its RAM.
    pub memory_mib: u32,
    /// How much of that it stamps.
    pub fill_mib: u32,
    /// How fast it rewrites that.
    pub dirty_mib_s: u32,
    /// Its address on the guest network.
    pub address: Ipv4Addr,
    /// A raw image whose first blocks it stamps, if any. What is in them is overwritten.
    pub disk: Option<PathBuf>,
    /// A file that becomes its RAM, where others can look at it; RAM of QEMU's own if none.
    pub memory_file: Option<PathBuf>,
}

impl GuestConfig {
    /// A guest with 256 MiB, 128 of them stamped, 8 MiB/s rewritten, no disk, at 10.77.0.50.
    pub fn new(name: &str, host: Room) -> Self {
        Self {
            name: name.to_owned(),
            host,
            memory_mib: 256,
            fill_mib: 128,
            dirty_mib_s: 8,
            address: Ipv4Addr::new(10, 77, 0, 50),
            disk: None,
            memory_file: None,
        }
    }

    /// The kernel's command line: what [`limosa-lab-guest`](crate::assets) reads there.
    pub fn command_line(&self) -> String {
        format!(
            "console=ttyS0 quiet limosa.ip={}/{} limosa.fill_mib={} limosa.dirty_mib_s={} limosa.disk={}",
            self.address,
            Network::PREFIX_BITS,
            self.fill_mib,
            self.dirty_mib_s,
            u8::from(self.disk.is_some())
        )
    }

    /// A MAC address that follows from the IP address.
    pub fn mac(&self) -> String {
        let [a, b, c, d] = self.address.octets();
        format!("52:54:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }

    fn check(&self) -> Result<()> {
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if !(1..=11).contains(&self.name.len()) || !self.name.chars().all(valid) {
            return Err(Error::invalid(
                "guest's name",
                &self.name,
                "1 to 11 letters, digits and hyphens are expected",
            ));
        }
        if !matches!(self.host, Room::Host(_)) {
            return Err(Error::invalid("guest's host", &self.host.to_string(), "guests run on h1, h2, …"));
        }
        // In an option of QEMU's a comma would begin the next.
        for path in [&self.disk, &self.memory_file].into_iter().flatten() {
            let path = path.to_string_lossy();
            if path.contains(',') {
                return Err(Error::invalid("guest's file", &path, "a path without commas is expected"));
            }
        }
        Ok(())
    }
}

/// A guest under plain QEMU. Dropping this leaves it running.
#[derive(Debug)]
pub struct BootedGuest {
    /// The QEMU process.
    pub process: Process,
    /// Its QMP socket, which [`qmp_execute`] takes.
    pub qmp: PathBuf,
    /// What the guest writes to its console.
    pub console: PathBuf,
}

/// Starts a guest on a host of the lab, on TCG, with a tap in the host's bridge.
///
/// # Errors
/// When the configuration makes no sense or QEMU cannot be started. A guest that does not boot says so on its
/// console.
pub fn boot(lab: &Lab, assets: &Assets, config: &GuestConfig) -> Result<BootedGuest> {
    config.check()?;
    let namespace = lab.namespace(config.host)?;
    let directory = lab.room_directory(config.host)?;
    let tap = format!("tap-{}", config.name);
    ip(namespace.name(), &["tuntap", "add", "dev", &tap, "mode", "tap"])?;
    ip(namespace.name(), &["link", "set", &tap, "master", HOST_BRIDGE, "up"])?;

    let qmp = directory.join(format!("{}.qmp", config.name));
    let console = directory.join(format!("{}.console", config.name));
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg,thread=multi"]);
    set_memory(&mut qemu, config)?;
    qemu.arg("-kernel").arg(&assets.kernel).arg("-initrd").arg(&assets.initramfs);
    qemu.arg("-append").arg(config.command_line());
    qemu.arg("-netdev").arg(format!("tap,id=net0,ifname={tap},script=no,downscript=no"));
    qemu.arg("-device").arg(format!("virtio-net-pci,netdev=net0,mac={},romfile=", config.mac()));
    qemu.arg("-serial").arg(format!("file:{}", console.display()));
    qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
    if let Some(disk) = &config.disk {
        qemu.arg("-drive").arg(format!("if=virtio,format=raw,file={}", disk.display()));
    }
    let process = lab.spawn(config.host, &format!("qemu-{}", config.name), qemu)?;
    Ok(BootedGuest { process, qmp, console })
}

fn set_memory(qemu: &mut Command, config: &GuestConfig) -> Result<()> {
    let size = config.memory_mib;
    qemu.arg("-m").arg(format!("{size}M"));
    let Some(file) = &config.memory_file else {
        qemu.args(["-machine", "q35"]);
        return Ok(());
    };
    // QEMU would unlink a file that it has made itself.
    File::create(file).map_err(Error::path("create", file))?;
    let backend = format!("memory-backend-file,id=ram0,size={size}M,share=on,mem-path={}", file.display());
    qemu.args(["-machine", "q35,memory-backend=ram0", "-object", &backend]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_that_would_change_qemus_options_are_refused() {
        for name in ["", "a,b", "a b", "../x", "abcdefghijkl"] {
            assert!(GuestConfig::new(name, Room::Host(1)).check().is_err(), "{name}");
        }
        let good = GuestConfig::new("vm-1", Room::Host(1));
        assert!(good.check().is_ok());
        let path = PathBuf::from("/tmp/disk,readonly=on");
        assert!(GuestConfig { disk: Some(path), ..good.clone() }.check().is_err());
        assert!(GuestConfig { host: Room::Client, ..good }.check().is_err());
    }
}

//! The guest's network: `lo` and `eth0`, set up once at boot. ARP and ping are the kernel's own.

use std::io;
use std::net::Ipv4Addr;

use crate::settings::Settings;
use crate::sys;

const NIC: &str = "eth0";

/// Sets both interfaces up.
///
/// # Errors
/// Which interface could not be set up; a guest without a NIC reports `eth0`.
pub(crate) fn configure(settings: &Settings) -> io::Result<()> {
    let named = |name: &'static str| move |error| io::Error::other(format!("{name}: {error}"));
    sys::set_interface("lo", None, Some((Ipv4Addr::LOCALHOST, 8))).map_err(named("lo"))?;
    sys::set_interface(NIC, settings.mac, settings.ip).map_err(named(NIC))
}

/// Sets `eth0` down, before the machine is powered off or restarted.
///
/// At that point Linux 6.1 marks virtio devices as broken, and a packet that is being sent just then has the
/// driver wait for ever for a queue that never moves: the guest would hang in place of ending.
pub(crate) fn take_down() {
    // Without a NIC there is nothing that could hang.
    drop(sys::set_interface_down(NIC));
}

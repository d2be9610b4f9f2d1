//! The guest's network: `lo` and `eth0`, set up once at boot. ARP and ping are the kernel's own.

use std::io;
use std::net::Ipv4Addr;

use crate::settings::Settings;
use crate::sys;

/// Sets both interfaces up.
///
/// # Errors
/// Which interface could not be set up; a guest without a NIC reports `eth0`.
pub(crate) fn configure(settings: &Settings) -> io::Result<()> {
    let named = |name: &'static str| move |error| io::Error::other(format!("{name}: {error}"));
    sys::set_interface("lo", None, Some((Ipv4Addr::LOCALHOST, 8))).map_err(named("lo"))?;
    sys::set_interface("eth0", settings.mac, settings.ip).map_err(named("eth0"))
}

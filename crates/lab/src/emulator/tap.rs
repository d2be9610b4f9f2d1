//! A tap that exists already, opened to read and write whole frames.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use crate::error::{Error, Result};

/// Opens the tap of this name, non-blocking, without checksum or segmentation offload: what is read from it is
/// what would be on a wire.
pub(super) fn open(name: &str) -> Result<File> {
    let opening = || Error::io(format!("open the tap {name}"));
    let options =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    let tap = options.map_err(opening())?;
    attach(&tap, name).map_err(opening())?;
    Ok(tap)
}

fn attach(tap: &File, name: &str) -> io::Result<()> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: TUNSETIFF reads and writes an `ifreq`, which this is, and which outlives the call.
    let attached = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    if attached < 0 {
        return Err(io::Error::last_os_error());
    }
    let no_offload: libc::c_ulong = 0;
    // SAFETY: TUNSETOFFLOAD takes a number by value.
    let set = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, no_offload) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

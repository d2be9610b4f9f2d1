//! Hears announcements on a network: the RARP frames by which a host says that a VM is behind it.
//!
//! A guest never sends these; QEMU and agents do. So one that is heard before a handover was sent too early.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RawProtocol, RecvFlags, SocketFlags, SocketType, recv, socket_with,
};

use super::{Seen, Watch};
use crate::error::{Error, Result};
use crate::namespace::Namespace;

/// RARP's EtherType (RFC 903).
const RARP: u16 = 0x8035;
const LOOK: Duration = Duration::from_millis(50);

/// Counts announcements until stopped.
#[derive(Debug)]
pub struct Announcements {
    watch: Watch<Vec<[u8; 6]>>,
}

impl Announcements {
    /// Starts to listen in a namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered or gives no packet socket (it takes root).
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let socket = namespace.run(open)?.map_err(Error::io("open a socket to hear announcements"))?;
        let watch = Watch::start("announcements", move |seen| listen(&socket, seen))?;
        Ok(Self { watch })
    }

    /// How many were heard that came from this address.
    pub fn from(&self, mac: [u8; 6]) -> usize {
        self.watch.snapshot().iter().filter(|source| **source == mac).count()
    }
}

fn open() -> std::result::Result<OwnedFd, Errno> {
    let protocol = RawProtocol::new(RARP.to_be().into()).map(Protocol::from_raw);
    socket_with(
        AddressFamily::PACKET,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        protocol,
    )
}

fn listen(socket: &OwnedFd, seen: &Seen<Vec<[u8; 6]>>) {
    let start = Instant::now();
    let timeout = Timespec::try_from(LOOK).ok();
    while !seen.is_over(start) {
        // An interrupted wait is a short one.
        let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], timeout.as_ref());
        let mut frame = [0; 256];
        while let Ok((_, length)) = recv(socket, frame.as_mut_slice(), RecvFlags::empty()) {
            // Destination, source, EtherType.
            if let Some(source) = frame[..length.min(frame.len())].get(6..12) {
                let mut mac = [0; 6];
                mac.copy_from_slice(source);
                seen.update(|heard| heard.push(mac));
            }
        }
    }
}

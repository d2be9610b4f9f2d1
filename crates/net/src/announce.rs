//! Announcing a VM after its handover: the frames of [`crate::frames`], sent on the bridge several times over.
//!
//! The first round goes out at once, the others at growing distances, as QEMU's own `announce-self` does it: a switch
//! that was busy, or a port that was still being set up, hears a later one.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use limosa_model::Mac;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use tokio::task::JoinHandle;

use crate::{Bridge, NetError, frames};

/// When the rounds of an announcement are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// How often everything is sent.
    pub rounds: u32,
    /// The distance between the first round and the second.
    pub initial_ms: u64,
    /// By how much each distance is longer than the one before.
    pub step_ms: u64,
    /// The longest distance.
    pub max_ms: u64,
}

impl Default for Schedule {
    /// QEMU's own: 5 rounds, 50, 150, 250 and 350 ms apart.
    fn default() -> Self {
        Self { rounds: 5, initial_ms: 50, step_ms: 100, max_ms: 550 }
    }
}

impl Schedule {
    /// How long is waited before each round; nothing before the first.
    pub fn delays(self) -> impl Iterator<Item = Duration> {
        (0..self.rounds).map(move |round| match round {
            0 => Duration::ZERO,
            n => {
                let grown = self.initial_ms.saturating_add(self.step_ms.saturating_mul(u64::from(n - 1)));
                Duration::from_millis(grown.min(self.max_ms))
            }
        })
    }
}

/// An announcement under way. Dropping it ends it.
#[derive(Debug)]
pub struct Announcement {
    rounds: JoinHandle<Result<(), NetError>>,
}

impl Announcement {
    /// Waits for the last round.
    ///
    /// # Errors
    /// When a frame could not be sent, as when the bridge has gone.
    pub async fn finished(mut self) -> Result<(), NetError> {
        match (&mut self.rounds).await {
            Ok(result) => result,
            Err(e) => Err(NetError::kernel("announce a VM", io::Error::other(e))),
        }
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        self.rounds.abort();
    }
}

/// Announces on a bridge that the NIC with this MAC and these addresses is behind it. The first round has been sent
/// when this returns; the others are sent by a task of their own.
///
/// # Errors
/// When no packet socket can be opened on the bridge, or the first round cannot be sent.
pub fn announce(
    bridge: &Bridge,
    mac: Mac,
    addresses: &[IpAddr],
    schedule: Schedule,
) -> Result<Announcement, NetError> {
    let doing = format!("announce {mac} on {}", bridge.name());
    let socket = packet_socket(bridge.index()).map_err(|e| NetError::kernel(&*doing, e))?;
    let frames = frames::announcement(mac, addresses);
    let mut delays = schedule.delays();
    if delays.next().is_some() {
        send(&socket, &frames).map_err(|e| NetError::kernel(&*doing, e))?;
    }
    let rest: Vec<Duration> = delays.collect();
    let rounds = tokio::spawn(async move {
        for delay in rest {
            tokio::time::sleep(delay).await;
            send(&socket, &frames).map_err(|e| NetError::kernel(&*doing, e))?;
        }
        Ok(())
    });
    Ok(Announcement { rounds })
}

/// A socket that sends whole frames out of one device and receives nothing.
fn packet_socket(index: u32) -> io::Result<Socket> {
    let index = i32::try_from(index).map_err(io::Error::other)?;
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket.set_nonblocking(true)?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is a plain struct that fits into a `sockaddr_storage` and is aligned no stricter; all of
    // its bit patterns are valid.
    let link_layer = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link_layer.sll_family = libc::AF_PACKET as libc::sa_family_t;
    link_layer.sll_ifindex = index;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage holds an initialised `sockaddr_ll`, and `length` is that type's size.
    let address = unsafe { SockAddr::new(storage, length) };
    socket.bind(&address)?;
    Ok(socket)
}

fn send(socket: &Socket, frames: &[Vec<u8>]) -> io::Result<()> {
    for frame in frames {
        match socket.send(frame) {
            // A full queue: a later round says it again.
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock)
                    || e.raw_os_error() == Some(libc::ENOBUFS) => {}
            sent => {
                sent?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_schedule_is_that_of_qemu() {
        let delays: Vec<_> = Schedule::default().delays().map(|d| d.as_millis()).collect();
        assert_eq!(delays, [0, 50, 150, 250, 350]);
    }

    #[test]
    fn distances_grow_no_further_than_the_longest() {
        let schedule = Schedule { rounds: 4, initial_ms: 100, step_ms: u64::MAX, max_ms: 200 };
        assert_eq!(schedule.delays().map(|d| d.as_millis()).collect::<Vec<_>>(), [0, 100, 200, 200]);
        assert_eq!(Schedule { rounds: 0, ..schedule }.delays().count(), 0);
    }
}

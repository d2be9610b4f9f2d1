//! Proof that packets of a size reach another host whole: an echo that may not be fragmented.
//!
//! A migration between hosts whose path drops large packets stalls after its handshake, so the prepare checks ask
//! first. The probe is an ICMP echo with don't-fragment set and the kernel's own path-MTU guesses ignored
//! (`IP_PMTUDISC_PROBE`); it goes out several times, since any packet may be lost. It needs `CAP_NET_RAW`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::{NetError, frames};

/// How often the echo is asked for, and how long each answer is waited for.
const ATTEMPTS: u16 = 4;
const ANSWER_LIMIT: Duration = Duration::from_millis(400);
const ECHO_HEADER: usize = 8;

/// What a probe of a path found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathMtu {
    /// A packet of this size went there and an equal one came back.
    Proven,
    /// The packet is too large for this host's own device, or a router on the way said so.
    TooLarge,
    /// No answer came: a smaller MTU on the way, a firewall, or a host that is down.
    NoAnswer,
}

/// Whether an IP packet of `size` bytes, header included, reaches `address` and comes back in one piece.
///
/// # Errors
/// When no raw socket can be had, or there is no way to the address.
pub async fn path_mtu_probe(address: IpAddr, size: u16) -> Result<PathMtu, NetError> {
    probe(address, size).await.map_err(|e| NetError::kernel(format!("probe the path to {address}"), e))
}

async fn probe(address: IpAddr, size: u16) -> io::Result<PathMtu> {
    static PROBES: AtomicU16 = AtomicU16::new(0);
    let identifier = (std::process::id() as u16) ^ PROBES.fetch_add(1, Ordering::Relaxed).rotate_left(8);
    let ip_header = if address.is_ipv4() { 20 } else { 40 };
    let length = usize::from(size).saturating_sub(ip_header).max(ECHO_HEADER);

    let socket = echo_socket(address)?;
    let mut packet = vec![0; usize::from(u16::MAX)];
    for sequence in 0..ATTEMPTS {
        match socket.send(&echo_request(address, identifier, sequence, length)).await {
            Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => return Ok(PathMtu::TooLarge),
            sent => sent?,
        };
        let answer = async {
            loop {
                let received = socket.recv(&mut packet).await?;
                if is_reply(address, &packet[..received], identifier, length) {
                    return io::Result::Ok(());
                }
            }
        };
        match timeout(ANSWER_LIMIT, answer).await {
            Err(_) => {}
            Ok(Ok(())) => return Ok(PathMtu::Proven),
            Ok(Err(e)) if e.raw_os_error() == Some(libc::EMSGSIZE) => return Ok(PathMtu::TooLarge),
            Ok(Err(e)) => return Err(e),
        }
    }
    Ok(PathMtu::NoAnswer)
}

fn echo_request(address: IpAddr, identifier: u16, sequence: u16, length: usize) -> Vec<u8> {
    let mut echo = vec![0x4c; length];
    echo[..4].copy_from_slice(&[if address.is_ipv4() { 8 } else { 128 }, 0, 0, 0]);
    echo[4..6].copy_from_slice(&identifier.to_be_bytes());
    echo[6..8].copy_from_slice(&sequence.to_be_bytes());
    // The kernel fills in the checksum of ICMPv6, and that one alone.
    if address.is_ipv4() {
        let checksum = frames::internet_checksum(&echo);
        echo[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    echo
}

/// Whether a packet that a raw socket received answers the probe. Such a socket hears every ICMP message from that
/// host, and with IPv4 it gets the IP header too.
fn is_reply(address: IpAddr, packet: &[u8], identifier: u16, length: usize) -> bool {
    let (reply, message) = match address {
        IpAddr::V4(_) => {
            let header = packet.first().map_or(0, |first| usize::from(first & 0xf) * 4);
            (0, packet.get(header..))
        }
        IpAddr::V6(_) => (129, Some(packet)),
    };
    message.is_some_and(|m| m.len() == length && m[0] == reply && m[4..6] == identifier.to_be_bytes())
}

/// A raw ICMP socket towards one address. Tokio knows it as any datagram socket.
fn echo_socket(address: IpAddr) -> io::Result<UdpSocket> {
    let (domain, protocol, level, option, probe) = match address {
        IpAddr::V4(_) => {
            (Domain::IPV4, Protocol::ICMPV4, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
        }
        IpAddr::V6(_) => (
            Domain::IPV6,
            Protocol::ICMPV6,
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_PROBE,
        ),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    // SAFETY: the option's value is one `c_int`, which `probe` is, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(&probe).cast(),
            size_of_val(&probe) as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    socket.connect(&SocketAddr::new(address, 0).into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_reply_to_this_probe_counts() {
        let v4: IpAddr = "192.0.2.1".parse().unwrap();
        let mut reply = echo_request(v4, 7, 0, 64);
        reply[0] = 0;
        let packet = |message: &[u8]| [&[0x45][..], &[0; 19], message].concat();
        assert!(is_reply(v4, &packet(&reply), 7, 64));
        assert!(!is_reply(v4, &packet(&reply), 8, 64), "another probe's");
        assert!(!is_reply(v4, &packet(&reply[..63]), 7, 64), "cut short");
        assert!(!is_reply(v4, &packet(&echo_request(v4, 7, 0, 64)), 7, 64), "our own request");
        for rubbish in [&[][..], &[0x4f], &[0xff; 3], &[0; 8]] {
            assert!(!is_reply(v4, rubbish, 7, 64));
        }
    }

    #[test]
    fn an_echo_request_carries_its_own_checksum_where_the_kernel_makes_none() {
        let request = echo_request("192.0.2.1".parse().unwrap(), 1, 2, 64);
        assert_eq!(frames::internet_checksum(&request), 0);
    }
}

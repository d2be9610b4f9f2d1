//! Pings a guest every 10 ms: how many were lost, and the longest time without a reply.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrV4, SocketFlags, SocketType, connect, ipproto, recv, send,
    socket_with,
};

use super::{Seen, TIME_LIMIT, Watch, micros};
use crate::error::{Error, Result};
use crate::namespace::Namespace;

const INTERVAL: Duration = Duration::from_millis(10);
/// How long replies may lag behind before what is missing counts as lost.
const LAST_REPLIES: Duration = Duration::from_secs(1);
/// Type, code, checksum, identifier, sequence (RFC 792), then our own: which pinger, and which of its pings.
const MESSAGE_BYTES: usize = 24;
/// How many pingers this process has had.
static PINGERS: AtomicU32 = AtomicU32::new(0);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// What pinging showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PingSummary {
    /// Requests sent (or that could not be sent: the network was unreachable).
    pub sent: u64,
    /// Requests answered.
    pub received: u64,
    /// Requests not answered; those still on their way count as lost until they are answered.
    pub lost: u64,
    /// The longest time between two replies, or from the last reply to the last request, in microseconds.
    pub longest_gap_us: u64,
    /// The shortest and the longest round trip, in microseconds.
    pub round_trip_us: Option<(u64, u64)>,
}

/// Pings an address every 10 ms until stopped.
#[derive(Debug)]
pub struct Pinger {
    watch: Watch<PingSummary>,
}

impl Pinger {
    /// Starts to ping from a namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered or gives no raw socket (it takes root).
    pub fn start(namespace: &Namespace, address: Ipv4Addr) -> Result<Self> {
        let socket = namespace
            .run(|| open(address))?
            .map_err(Error::io(format!("open a socket to ping {address}")))?;
        let watch = Watch::start("pinger", move |seen| Pings::new(&socket).run(seen))?;
        Ok(Self { watch })
    }

    /// What it has seen so far.
    pub fn snapshot(&self) -> PingSummary {
        self.watch.snapshot()
    }

    /// Stops, waits at most a second for replies on their way, and says what it has seen.
    pub fn stop(mut self) -> PingSummary {
        self.watch.stop()
    }
}

fn open(address: Ipv4Addr) -> std::result::Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::ICMP))?;
    // A connected raw socket is given this address's messages only, and keeps its network namespace.
    connect(&socket, &SocketAddrV4::new(address, 0))?;
    Ok(socket)
}

/// The pings of one run.
struct Pings<'a> {
    socket: &'a OwnedFd,
    /// Tells this pinger's replies from those to any other, in this process or another.
    pinger: u64,
    start: Instant,
    /// When each was sent; none once it was answered.
    sent: Vec<Option<Instant>>,
    last_reply: Instant,
}

impl<'a> Pings<'a> {
    fn new(socket: &'a OwnedFd) -> Self {
        let start = Instant::now();
        let number = PINGERS.fetch_add(1, Ordering::Relaxed);
        let pinger = u64::from(std::process::id()) << 32 | u64::from(number);
        Self { socket, pinger, start, sent: Vec::new(), last_reply: start }
    }

    fn run(&mut self, seen: &Seen<PingSummary>) {
        let mut next = self.start;
        while !seen.is_over(self.start) {
            let now = Instant::now();
            if now >= next {
                self.request(now, seen);
                // After a pause of this very process the rate goes on; it is not caught up with.
                next = (next + INTERVAL).max(now);
            }
            self.receive_until(next, seen);
        }
        let deadline = Instant::now() + LAST_REPLIES;
        while seen.read(|summary| summary.lost > 0) && Instant::now() < deadline {
            self.receive_until(deadline.min(Instant::now() + INTERVAL), seen);
        }
    }

    fn request(&mut self, now: Instant, seen: &Seen<PingSummary>) {
        let message = request(self.pinger, self.sent.len() as u64);
        // One that cannot be sent is one that is not answered.
        let _ = send(self.socket, &message, SendFlags::empty());
        self.sent.push(Some(now));
        let gap_us = micros(now - self.last_reply);
        seen.update(|summary| {
            summary.sent += 1;
            summary.lost += 1;
            summary.longest_gap_us = summary.longest_gap_us.max(gap_us);
        });
    }

    fn receive_until(&mut self, deadline: Instant, seen: &Seen<PingSummary>) {
        let left = deadline.saturating_duration_since(Instant::now()).min(TIME_LIMIT);
        let timeout = Timespec::try_from(left).ok();
        let mut polled = [PollFd::new(self.socket, PollFlags::IN)];
        // An interrupted wait is a short one.
        let _ = poll(&mut polled, timeout.as_ref());
        let mut packet = [0; 1500];
        while let Ok((_, length)) = recv(self.socket, packet.as_mut_slice(), RecvFlags::empty()) {
            if let Some(number) = reply(&packet[..length.min(packet.len())], self.pinger) {
                self.note_reply(number, seen);
            }
        }
    }

    fn note_reply(&mut self, number: u64, seen: &Seen<PingSummary>) {
        // A reply that was never asked for, or that came before, says nothing.
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        let Some(sent) = self.sent.get_mut(index).and_then(Option::take) else { return };
        let now = Instant::now();
        let gap_us = micros(now - self.last_reply);
        let round_us = micros(now - sent);
        self.last_reply = now;
        seen.update(|summary| {
            summary.received += 1;
            summary.lost -= 1;
            summary.longest_gap_us = summary.longest_gap_us.max(gap_us);
            let (shortest, longest) = summary.round_trip_us.unwrap_or((round_us, round_us));
            summary.round_trip_us = Some((shortest.min(round_us), longest.max(round_us)));
        });
    }
}

/// An echo request with a number.
fn request(pinger: u64, number: u64) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    message[0] = ECHO_REQUEST;
    message[4..6].copy_from_slice(&pinger.to_be_bytes()[6..]);
    message[6..8].copy_from_slice(&number.to_be_bytes()[6..]);
    message[8..16].copy_from_slice(&pinger.to_be_bytes());
    message[16..].copy_from_slice(&number.to_be_bytes());
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// The number in a reply to one of our requests, from an IPv4 packet as a raw socket gives it.
fn reply(packet: &[u8], pinger: u64) -> Option<u64> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let message: &[u8; MESSAGE_BYTES] = packet.get(header..)?.try_into().ok()?;
    let ours = message[0] == ECHO_REPLY && message[8..16] == pinger.to_be_bytes() && checksum(message) == 0;
    ours.then(|| u64::from_be_bytes(message[16..].try_into().expect("the last 8 of 24 bytes")))
}

/// The Internet's checksum (RFC 1071); 0 over a message that carries a right one.
fn checksum(message: &[u8; MESSAGE_BYTES]) -> u16 {
    let mut sum: u32 =
        message.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(number: u64) -> Vec<u8> {
        let mut message = request(7, number);
        message[0] = ECHO_REPLY;
        message[2..4].fill(0);
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet.extend_from_slice(&message);
        packet
    }

    #[test]
    fn a_reply_gives_the_number_of_its_request_beyond_16_bits() {
        assert_eq!(reply(&answered(70_000), 7), Some(70_000));
    }

    #[test]
    fn what_is_not_our_reply_is_passed_over() {
        assert_eq!(reply(&answered(5), 8), None, "another pinger's");
        let mut damaged = answered(5);
        damaged[30] ^= 1;
        assert_eq!(reply(&damaged, 7), None, "a damaged one");
        let mut request_itself = vec![0; 20];
        request_itself[0] = 0x45;
        request_itself.extend_from_slice(&request(7, 5));
        assert_eq!(reply(&request_itself, 7), None, "a request");
        for length in 0..answered(5).len() {
            assert_eq!(reply(&answered(5)[..length], 7), None, "cut off at {length}");
        }
    }
}

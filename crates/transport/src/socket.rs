//! TCP sockets set up for a migration.

use std::fmt::Write;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::Error;

/// How much the kernel takes beyond what the link has room for (`TCP_NOTSENT_LOWAT`). What waits there has to drain
/// while the guest stands still.
const UNSENT_BYTES: u32 = 256 * 1024;

/// How the TCP connections of a migration are set up. Everything has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TcpOptions {
    /// How long each of the destination's addresses may take to answer a connect.
    pub connect_limit_ms: u32,
    /// How long sent bytes may stay without an acknowledgement before the connection counts as lost
    /// (`TCP_USER_TIMEOUT`), and about how long a silent one may stay without a sign of life.
    pub user_timeout_ms: u32,
    /// The congestion control to use, such as `bbr`; the host's own if absent or not available.
    pub congestion_control: Option<String>,
    /// The size of the send and receive buffers in the kernel, in bytes. If absent the kernel tunes them.
    pub buffer_bytes: Option<u32>,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            connect_limit_ms: 5_000,
            user_timeout_ms: 20_000,
            congestion_control: None,
            buffer_bytes: None,
        }
    }
}

impl TcpOptions {
    /// Sets up a socket. What only makes it quicker may be refused by the kernel and is then left out.
    fn apply(&self, socket: SockRef<'_>) -> io::Result<()> {
        // Three unanswered probes, the first after half of the time, end within the user timeout.
        let idle = Duration::from_millis(u64::from(self.user_timeout_ms / 2)).max(Duration::from_secs(1));
        let interval = (idle / 3).max(Duration::from_secs(1));
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
        socket.set_tcp_user_timeout(Some(Duration::from_millis(self.user_timeout_ms.into())))?;
        socket.set_tcp_keepalive(
            &TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(3),
        )?;
        if let Some(name) = &self.congestion_control
            && let Err(error) = socket.set_tcp_congestion(name.as_bytes())
        {
            tracing::warn!(name, %error, "this congestion control is not available: the host's own is used");
        }
        if let Some(bytes) = self.buffer_bytes {
            let bytes = bytes as usize;
            if let Err(error) = socket.set_send_buffer_size(bytes).and(socket.set_recv_buffer_size(bytes)) {
                tracing::warn!(bytes, %error, "the kernel's own buffer sizes are used");
            }
        }
        Ok(())
    }

    /// Sets up a connection that was accepted.
    pub(crate) fn apply_to(&self, tcp: &TcpStream) -> io::Result<()> {
        self.apply(SockRef::from(tcp))
    }

    /// Connects to the first of `addresses` that answers, in their order, each tried once.
    pub(crate) fn connect(&self, addresses: &[SocketAddr]) -> Result<TcpStream, Error> {
        let mut tried = String::new();
        for address in addresses {
            match self.connect_one(address) {
                Ok(tcp) => return Ok(tcp),
                Err(error) => {
                    tracing::info!(%address, %error, "an address of the destination does not answer");
                    let gap = if tried.is_empty() { "" } else { ", " };
                    write!(tried, "{gap}{address}: {error}").expect("a String takes all");
                }
            }
        }
        if tried.is_empty() {
            tried.push_str("none was given");
        }
        Err(Error::Unreachable { tried })
    }

    fn connect_one(&self, address: &SocketAddr) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
        // Before the connect, for the receive buffer decides what window scale is offered.
        self.apply(SockRef::from(&socket))?;
        socket.connect_timeout(&(*address).into(), Duration::from_millis(self.connect_limit_ms.into()))?;
        Ok(socket.into())
    }
}

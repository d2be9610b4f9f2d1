//! What every TCP connection of ours is set to.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// How long sent bytes may stay unacknowledged, and silence unexplained, until a connection counts as dead.
const DEAD_AFTER: Duration = Duration::from_secs(15);

/// Small messages leave at once, and a peer that has vanished is noticed.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let interval = DEAD_AFTER / 3;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(interval).with_interval(interval).with_retries(2),
    )?;
    socket.set_tcp_user_timeout(Some(DEAD_AFTER))
}

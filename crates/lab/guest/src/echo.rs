//! TCP echo on port 7: what a client outside holds on to while the guest moves.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::spawn;

const PORT: u16 = 7;
const CONNECTIONS_LIMIT: usize = 256;

static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// Listens, and serves each connection in a thread of its own; one above the limit is closed at once.
pub(crate) fn serve() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    spawn("echo", move || {
        for stream in listener.incoming().flatten() {
            if CONNECTIONS.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_LIMIT {
                CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let served = spawn("echo-client", move || {
                // A client that goes away ends its own thread and nothing else.
                drop(echo(stream));
                CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
            });
            if served.is_err() {
                CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
            }
        }
    })
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 16 * 1024];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count])?;
    }
}

//! The socket to a monitor: whole lines in, whole lines and descriptors out.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::protocol::{LineBuffer, Message, parse};
use crate::{Greeting, Loss};

/// The id of the handshake's command; later commands have higher ones.
pub(crate) const HANDSHAKE_ID: u64 = 0;
const READ_BYTES: usize = 16 * 1024;

/// Takes the greeting and asks for commands to be taken.
pub(crate) async fn shake_hands(stream: &UnixStream, lines: &mut LineBuffer) -> Result<Greeting, Loss> {
    let Message::Greeting(greeting) = receive(stream, lines).await? else {
        return Err(Loss::Malformed("no greeting came first".to_owned()));
    };
    let request = format!("{{\"execute\": \"qmp_capabilities\", \"id\": {HANDSHAKE_ID}}}\n");
    send(stream, request.as_bytes(), None).await.map_err(io_loss)?;
    loop {
        match receive(stream, lines).await? {
            Message::Reply { id: HANDSHAKE_ID, outcome: Ok(_) } => return Ok(greeting),
            Message::Reply { id: HANDSHAKE_ID, outcome: Err(refusal) } => {
                return Err(Loss::Malformed(format!("qmp_capabilities: {}", refusal.description)));
            }
            Message::Event(_) => {}
            other => return Err(Loss::Malformed(format!("unexpected in the handshake: {other:?}"))),
        }
    }
}

/// Waits for the next message.
pub(crate) async fn receive(stream: &UnixStream, lines: &mut LineBuffer) -> Result<Message, Loss> {
    loop {
        if let Some(line) = lines.next_line().map_err(|error| Loss::Malformed(error.to_string()))? {
            return parse(line).map_err(|error| Loss::Malformed(error.to_string()));
        }
        stream.readable().await.map_err(io_loss)?;
        let mut bytes = [0; READ_BYTES];
        match stream.try_read(&mut bytes) {
            Ok(0) => return Err(Loss::ClosedByQemu),
            Ok(count) => lines.push(&bytes[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(io_loss(error)),
        }
    }
}

/// Sends a whole line, and the descriptor with its first byte.
pub(crate) async fn send(
    stream: &UnixStream,
    mut line: &[u8],
    descriptor: Option<OwnedFd>,
) -> io::Result<()> {
    if let Some(descriptor) = descriptor {
        let sent =
            stream.async_io(Interest::WRITABLE, || send_with(stream, line, descriptor.as_fd())).await?;
        line = &line[sent..];
    }
    while !line.is_empty() {
        stream.writable().await?;
        match stream.try_write(line) {
            Ok(sent) => line = &line[sent..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One `sendmsg` whose first byte carries the descriptor.
fn send_with(stream: &UnixStream, line: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = control.push(SendAncillaryMessage::ScmRights(&descriptors));
    debug_assert!(fits, "the space was made for one descriptor");
    Ok(rustix::net::sendmsg(stream, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?)
}

pub(crate) fn io_loss(error: io::Error) -> Loss {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Loss::ClosedByQemu,
        _ => Loss::Io(Arc::new(error)),
    }
}

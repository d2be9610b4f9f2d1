//! The socket from which the stream comes. Its family says which end of the migration this is.

use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::net::AddressFamily;

use crate::Error;
use crate::control::Role;

/// Where the stream comes from.
pub(crate) enum Listening {
    /// This is the source: QEMU connects.
    Qemu(UnixListener),
    /// This is the destination: the other worker connects.
    Peer(TcpListener),
}

impl Listening {
    pub(crate) fn new(socket: OwnedFd) -> Result<Self, Error> {
        let wrong = Error::Descriptor("stream", "Unix or TCP");
        let nonblocking = Error::io("set up the stream's socket");
        match family(&socket) {
            Some(AddressFamily::UNIX) => {
                let listener = UnixListener::from(socket);
                listener.set_nonblocking(true).map_err(nonblocking)?;
                Ok(Self::Qemu(listener))
            }
            Some(AddressFamily::INET | AddressFamily::INET6) => {
                let listener = TcpListener::from(socket);
                listener.set_nonblocking(true).map_err(nonblocking)?;
                Ok(Self::Peer(listener))
            }
            _ => Err(wrong),
        }
    }

    pub(crate) fn role(&self) -> Role {
        match self {
            Self::Qemu(_) => Role::Source,
            Self::Peer(_) => Role::Destination,
        }
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Qemu(listener) => listener.as_fd(),
            Self::Peer(listener) => listener.as_fd(),
        }
    }
}

/// The address family of a listening socket; `None` if it is something else.
pub(crate) fn family(socket: &OwnedFd) -> Option<AddressFamily> {
    let listens = rustix::net::sockopt::socket_acceptconn(socket).ok()?;
    listens.then(|| rustix::net::sockopt::socket_domain(socket).ok()).flatten()
}

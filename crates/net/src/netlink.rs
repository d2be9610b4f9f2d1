//! The connection to the kernel's routing socket, and what is read over it.

use std::io;

use futures_util::StreamExt;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use tokio::task::AbortHandle;

use crate::{IfName, NetError};

/// A connection to the kernel's network configuration, in the network namespace in which it was opened.
///
/// Must be made, and used, within a tokio runtime.
#[derive(Debug)]
pub struct Net {
    pub(crate) handle: rtnetlink::Handle,
    driver: AbortHandle,
}

impl Drop for Net {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A network device as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) is_up: bool,
    pub(crate) mtu: u32,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) kind: Option<InfoKind>,
    pub(crate) info: Vec<LinkInfo>,
    /// The index of the bridge that it is a port of.
    pub(crate) controller: Option<u32>,
}

impl Net {
    /// Connects to the kernel in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the process has no more descriptors, or may not open routing sockets.
    pub fn connect() -> Result<Self, NetError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|e| NetError::kernel("open a routing socket to the kernel", e))?;
        let driver = tokio::spawn(connection).abort_handle();
        Ok(Self { handle, driver })
    }

    /// The device of this name, or [`NetError::NotFound`].
    pub(crate) async fn link(&self, name: &IfName) -> Result<Link, NetError> {
        let answers = self.handle.link().get().match_name(name.as_str()).execute();
        let mut answers = std::pin::pin!(answers);
        match answers.next().await {
            Some(Ok(message)) => Ok(Link::from(message)),
            Some(Err(e)) => Err(translate(e, name, "look up the network device")),
            None => Err(NetError::NotFound { name: name.to_string() }),
        }
    }

    /// Changes a device that exists.
    pub(crate) async fn change(
        &self,
        name: &IfName,
        doing: &str,
        message: LinkMessage,
    ) -> Result<(), NetError> {
        self.handle.link().change(message).execute().await.map_err(|e| translate(e, name, doing))
    }
}

/// The kernel's answer as an error of ours. `doing` is completed by the device's name.
pub(crate) fn translate(error: rtnetlink::Error, name: &IfName, doing: &str) -> NetError {
    let source = match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    };
    if source.raw_os_error() == Some(libc::ENODEV) {
        return NetError::NotFound { name: name.to_string() };
    }
    NetError::kernel(format!("{doing} {name}"), source)
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            is_up: message.header.flags.contains(LinkFlags::Up),
            mtu: 0,
            mac: None,
            kind: None,
            info: Vec::new(),
            controller: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(address) => link.mac = address.try_into().ok(),
                LinkAttribute::Controller(index) => link.controller = Some(index).filter(|i| *i != 0),
                LinkAttribute::LinkInfo(info) => link.info = info,
                _ => {}
            }
        }
        link.kind = link.info.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind.clone()),
            _ => None,
        });
        link
    }
}

//! Ports: a tap on a bridge, closed until its VM has the right to run here.
//!
//! Opening is part of a migration's downtime: two requests, sent together, and no waiting for any timer. An open port
//! has a forwarding entry for the guest's MAC that is static (does not age) and sticky (does not wander): until the
//! network has learned where the VM is, frames with the guest's address still arrive on the uplink, and a bridge that
//! believed them would send the guest's traffic away.

use std::io;

use limosa_model::Mac;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use crate::netlink::translate;
use crate::{Bridge, Net, NetError, Tap};

/// A tap's port, as it was when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortState {
    /// The tap is no port of any bridge.
    Detached,
    /// It is one, and carries nothing.
    Closed,
    /// It is one, and carries the guest's traffic.
    Open,
}

impl Net {
    /// Looks at a tap's port.
    ///
    /// # Errors
    /// [`NetError::NotFound`] when the tap is gone.
    pub async fn port_state(&self, tap: &Tap) -> Result<PortState, NetError> {
        let link = self.link(&tap.name).await?;
        Ok(match link.controller {
            None => PortState::Detached,
            Some(_) if link.is_up => PortState::Open,
            Some(_) => PortState::Closed,
        })
    }

    /// Makes a tap a port of a bridge, closed. One that is attached there already stays as it is.
    ///
    /// # Errors
    /// [`NetError::NotFound`] when the tap or the bridge is gone; [`NetError::Kernel`].
    pub async fn attach(&self, tap: &Tap, bridge: &Bridge) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(tap.index).controller(bridge.index()).build();
        self.change(&tap.name, &format!("attach to the bridge {} the tap", bridge.name()), message).await
    }

    /// Opens a tap's port for the guest with this MAC address: from here on the bridge carries its traffic, whatever
    /// it has learned before. May be repeated.
    ///
    /// # Errors
    /// [`NetError::NotFound`] when the tap is gone, which it is when QEMU is; [`NetError::Kernel`].
    pub async fn open_port(&self, tap: &Tap, guest_mac: Mac) -> Result<(), NetError> {
        let pin = self
            .handle
            .neighbours()
            .add_bridge(tap.index, &guest_mac.octets())
            .state(NeighbourState::Noarp)
            .flags(NeighbourFlags::Controller | NeighbourFlags::Sticky)
            .replace()
            .execute();
        let up = self.change(
            &tap.name,
            "open the port of the tap",
            LinkUnspec::new_with_index(tap.index).up().build(),
        );
        let (pinned, is_up) = futures_util::future::join(pin, up).await;
        pinned.map_err(|e| translate(e, &tap.name, &format!("pin {guest_mac} to the port of the tap")))?;
        is_up
    }

    /// Closes a tap's port: from here on nothing of the guest leaves through it, and the bridge looks for the guest
    /// elsewhere. May be repeated; a tap that is gone is closed.
    ///
    /// # Errors
    /// [`NetError::Kernel`].
    pub async fn close_port(&self, tap: &Tap, guest_mac: Mac) -> Result<(), NetError> {
        let down = self.change(
            &tap.name,
            "close the port of the tap",
            LinkUnspec::new_with_index(tap.index).down().build(),
        );
        let mut entry = NeighbourMessage::default();
        entry.header.family = AddressFamily::Bridge;
        entry.header.ifindex = tap.index;
        entry.header.flags = NeighbourFlags::Controller;
        entry.attributes.push(NeighbourAttribute::LinkLayerAddress(guest_mac.octets().to_vec()));
        let unpin = self.handle.neighbours().del(entry).execute();
        let (is_down, unpinned) = futures_util::future::join(down, unpin).await;
        match is_down {
            Err(NetError::NotFound { .. }) => return Ok(()),
            closed => closed?,
        }
        match unpinned.map_err(|e| translate(e, &tap.name, &format!("forget {guest_mac} on the tap"))) {
            Err(NetError::Kernel { source, .. }) if is_absent(&source) => Ok(()),
            Err(NetError::NotFound { .. }) => Ok(()),
            unpinned => unpinned,
        }
    }
}

/// No such entry, or no longer a port of any bridge.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP))
}

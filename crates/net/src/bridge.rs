//! Bridges: what the NICs of one network attach to on one host.

use std::fmt;
use std::fs;

use limosa_model::Mac;
use rtnetlink::packet_route::link::{BridgeStpState, InfoBridge, InfoData, InfoKind, LinkInfo};
use rtnetlink::{LinkBridge, LinkUnspec};

use crate::netlink::{Link, translate};
use crate::{IfName, Net, NetError};

/// A bridge of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    name: IfName,
    index: u32,
    mac: [u8; 6],
    mtu: u32,
    is_up: bool,
    forward_delay_ms: u64,
    mac_is_pinned: Option<bool>,
}

/// Something about a bridge that will make VMs lose packets, though it does not stop them from running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BridgeWarning {
    /// The bridge is down.
    Down,
    /// The bridge's own MAC address changes when taps come and go, which breaks its peers' ARP. The remedy is
    /// [`Net::pin_mac`].
    MacNotPinned,
    /// With STP on, a port that opens carries nothing for twice this time: a VM that moves here is cut off so long.
    ForwardDelay {
        /// The bridge's forward delay.
        forward_delay_ms: u64,
    },
}

impl fmt::Display for BridgeWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down => f.write_str("the bridge is down: set it up"),
            Self::MacNotPinned => f.write_str(
                "the bridge's MAC address changes with its ports: set it explicitly (`ip link set BRIDGE address MAC`)",
            ),
            Self::ForwardDelay { forward_delay_ms } => write!(
                f,
                "STP is on with a forward delay of {forward_delay_ms} ms: a VM that moves here is cut off for twice \
                 that; turn STP off or set the delay to 0"
            ),
        }
    }
}

impl Bridge {
    /// The device's name.
    pub fn name(&self) -> &IfName {
        &self.name
    }

    /// The device's number in its network namespace.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The largest packet in bytes.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// The bridge's own MAC address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Whether the MAC address stays as it is when ports come and go. `None` where `/sys` does not show this network
    /// namespace.
    pub fn mac_is_pinned(&self) -> Option<bool> {
        self.mac_is_pinned
    }

    /// What an administrator should know before VMs run on this bridge.
    pub fn warnings(&self) -> Vec<BridgeWarning> {
        let mut warnings = Vec::new();
        if !self.is_up {
            warnings.push(BridgeWarning::Down);
        }
        if self.mac_is_pinned == Some(false) {
            warnings.push(BridgeWarning::MacNotPinned);
        }
        if self.forward_delay_ms > 0 {
            warnings.push(BridgeWarning::ForwardDelay { forward_delay_ms: self.forward_delay_ms });
        }
        warnings
    }
}

impl Net {
    /// The bridge of this name.
    ///
    /// # Errors
    /// [`NetError::NotFound`] or [`NetError::NotABridge`].
    pub async fn bridge(&self, name: &IfName) -> Result<Bridge, NetError> {
        let link = self.link(name).await?;
        let (Some(InfoKind::Bridge), Some(mac)) = (&link.kind, link.mac) else {
            return Err(NetError::NotABridge { name: name.to_string() });
        };
        Ok(Bridge {
            name: name.clone(),
            index: link.index,
            mac,
            mtu: link.mtu,
            is_up: link.is_up,
            forward_delay_ms: forward_delay_ms(&link),
            mac_is_pinned: mac_is_pinned(name, link.index),
        })
    }

    /// Makes a bridge with a pinned MAC address and without STP, and sets it up. One that is there already is left as
    /// it is.
    ///
    /// # Errors
    /// [`NetError::NotABridge`] when the name is taken by something else; [`NetError::Kernel`].
    pub async fn create_bridge(&self, name: &IfName, mac: Mac, mtu: u32) -> Result<Bridge, NetError> {
        match self.bridge(name).await {
            Err(NetError::NotFound { .. }) => {}
            found => return found,
        }
        let message = LinkBridge::new(name.as_str()).address(mac.octets().to_vec()).build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(|e| translate(e, name, "create the bridge"))?;
        // Apart from the creation: only an MTU that was set later is the bridge's own, kept when ports come and go.
        let message = LinkUnspec::new_with_name(name.as_str()).mtu(mtu).build();
        self.change(name, "set the MTU of the bridge", message).await?;
        self.bridge(name).await
    }

    /// Pins a bridge's MAC address to what it is at this moment.
    ///
    /// # Errors
    /// [`NetError::NotFound`], [`NetError::Kernel`].
    pub async fn pin_mac(&self, bridge: &Bridge) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(bridge.index).address(bridge.mac.to_vec()).build();
        self.change(&bridge.name, "pin the MAC address of the bridge", message).await
    }
}

/// How long an opening port waits before it forwards; nothing without STP.
fn forward_delay_ms(link: &Link) -> u64 {
    let details = link.info.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Bridge(details)) => Some(details.as_slice()),
        _ => None,
    });
    let details = details.unwrap_or_default();
    let stp_is_on =
        details.iter().any(|d| matches!(d, InfoBridge::StpState(s) if *s != BridgeStpState::Disabled));
    let hundredths = details.iter().find_map(|d| match d {
        InfoBridge::ForwardDelay(hundredths) => Some(u64::from(*hundredths)),
        _ => None,
    });
    if stp_is_on { hundredths.unwrap_or(0) * 10 } else { 0 }
}

/// Whether the address was set by somebody (`NET_ADDR_SET`). Only `/sys` tells, and it may show another namespace than
/// ours: then the index there is not this one's.
fn mac_is_pinned(name: &IfName, index: u32) -> Option<bool> {
    const NET_ADDR_SET: u32 = 3;
    let number = |file| -> Option<u32> {
        fs::read_to_string(format!("/sys/class/net/{name}/{file}")).ok()?.trim().parse().ok()
    };
    if number("ifindex")? != index {
        return None;
    }
    Some(number("addr_assign_type")? == NET_ADDR_SET)
}

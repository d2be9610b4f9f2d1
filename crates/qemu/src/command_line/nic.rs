//! NICs on taps.

use std::os::fd::RawFd;

use super::Properties;
use super::arguments::{SLOT_NIC, pci};
use crate::Error;

/// What the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicModel {
    /// virtio-net: the fast one.
    Virtio,
    /// An Intel 82574L, for guests without virtio drivers.
    E1000e,
}

/// A NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// The NIC's number, kept for its life: the guest knows the NIC by the place that this gives it. Up to 7.
    pub index: u8,
    /// What the guest sees.
    pub model: NicModel,
    /// Its address; not multicast, not all zeros.
    pub mac: [u8; 6],
    /// The descriptor of its tap, as QEMU inherits it.
    pub tap: RawFd,
    /// The descriptor of `/dev/vhost-net`, if the kernel is to move the packets.
    pub vhost: Option<RawFd>,
    /// The MTU that a virtio guest is told.
    pub mtu: Option<u16>,
    /// Its place in the boot order, from 1; `None` if it is not booted from. (A NIC carries no boot ROM: only
    /// firmware that brings its own network stack boots from it.)
    pub boot_index: Option<u16>,
}

/// The most NICs.
pub(super) const NICS: u8 = 8;

impl Nic {
    /// Its id as a device.
    pub fn id(&self) -> String {
        format!("nic{}", self.index)
    }

    /// The id of its netdev.
    pub fn netdev_id(&self) -> String {
        format!("net{}", self.index)
    }

    /// Its netdev, whose descriptors QEMU knows by these names: numbers that it inherited, or names given by
    /// [`Qmp::getfd`](crate::Qmp::getfd) for `netdev_add`.
    pub fn netdev(&self, tap: &str, vhost: Option<&str>) -> Properties {
        Properties::new()
            .with("type", "tap")
            .with("id", self.netdev_id())
            .with("fd", tap)
            .with("vhost", vhost.is_some())
            .with_some("vhostfd", vhost)
    }

    /// Its device, for the command line and for `device_add` (which a q35 machine refuses, see [`super`]).
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn device(&self, machine: &str) -> Result<Properties, Error> {
        if self.index >= NICS {
            return Err(Error::invalid("NIC", self.index.to_string(), "its number is too high"));
        }
        let mac = self.mac.map(|byte| format!("{byte:02x}")).join(":");
        if self.mac[0] & 1 == 1 || self.mac == [0; 6] {
            return Err(Error::invalid(
                "MAC address",
                mac,
                "it must be that of one NIC: even first byte, not zero",
            ));
        }
        if self.mtu.is_some() && self.model != NicModel::Virtio {
            return Err(Error::invalid("MTU of NIC", self.id(), "only a virtio NIC can tell its guest"));
        }
        let driver = match self.model {
            NicModel::Virtio => "virtio-net-pci",
            NicModel::E1000e => "e1000e",
        };
        Ok(pci(driver, &self.id(), machine, SLOT_NIC + self.index)
            .with("netdev", self.netdev_id())
            .with("mac", mac)
            .with("romfile", "")
            .with_some("host_mtu", self.mtu)
            .with_some("bootindex", self.boot_index))
    }
}

//! Taps: the host's end of a VM's NIC.
//!
//! A tap is made through `/dev/net/tun` and lives as long as a descriptor of it: QEMU's, once the agent has passed it
//! on and closed its own. So a VM's taps survive the agent and vanish with QEMU, and nothing needs to be tidied up.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use limosa_model::Mac;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute};

use crate::netlink::translate;
use crate::{IfName, Net, NetError};

/// What a tap should be.
#[derive(Debug, Clone)]
pub struct TapSpec {
    /// The device's name.
    pub name: IfName,
    /// The MAC address of the guest's NIC. The tap's own differs from it in the first octet, which is `fe`: a
    /// higher one than any bridge has, so that no bridge takes it for its own.
    pub guest_mac: Mac,
    /// The largest packet in bytes, that of the bridge: a bridge without an MTU of its own takes the smallest of its
    /// ports.
    pub mtu: u32,
    /// The user that may open the tap beside root.
    pub owner: u32,
}

/// A tap of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    pub(crate) name: IfName,
    pub(crate) index: u32,
}

impl Tap {
    /// The device's name.
    pub fn name(&self) -> &IfName {
        &self.name
    }
}

impl Net {
    /// Makes a tap: down, attached to nothing, without any IP address of its own. It lives as long as the descriptor,
    /// which is to be given to QEMU and then closed.
    ///
    /// # Errors
    /// [`NetError::Busy`] when the name is taken by a tap that somebody holds; [`NetError::Kernel`] when
    /// `/dev/net/tun` is missing or not allowed.
    pub async fn create_tap(&self, spec: &TapSpec) -> Result<(Tap, OwnedFd), NetError> {
        let name = &spec.name;
        let descriptor = open_tap(spec)?;
        self.link(name).await?;
        forbid_ipv6(name)?;
        let mut mac = spec.guest_mac.octets();
        mac[0] = 0xfe;
        let no_addresses = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let message = LinkUnspec::new_with_name(name.as_str())
            .down()
            .mtu(spec.mtu)
            .address(mac.to_vec())
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![no_addresses]))
            .build();
        self.change(name, "set up the tap", message).await?;
        Ok((self.adopt_tap(name).await?, descriptor))
    }

    /// Finds a tap that exists, as after a restart of the agent.
    ///
    /// # Errors
    /// [`NetError::NotFound`] when there is none of this name.
    pub async fn adopt_tap(&self, name: &IfName) -> Result<Tap, NetError> {
        let link = self.link(name).await?;
        if link.kind != Some(InfoKind::Tun) {
            return Err(NetError::kernel(
                format!("adopt {name} as a tap"),
                io::Error::other("the device is of another kind; a VM's taps are made by the agent alone"),
            ));
        }
        Ok(Tap { name: name.clone(), index: link.index })
    }

    /// Removes a tap, whoever still holds it. One that is gone already is removed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_tap(&self, name: &IfName) -> Result<(), NetError> {
        let tap = match self.adopt_tap(name).await {
            Ok(tap) => tap,
            Err(NetError::NotFound { .. }) => return Ok(()),
            Err(e) => return Err(e),
        };
        match self.handle.link().del(tap.index).execute().await {
            Ok(()) => Ok(()),
            Err(e) => match translate(e, name, "remove the tap") {
                NetError::NotFound { .. } => Ok(()),
                e => Err(e),
            },
        }
    }
}

/// The host must not take part in the guest's network through the tap.
fn forbid_ipv6(name: &IfName) -> Result<(), NetError> {
    match fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(NetError::kernel(format!("turn IPv6 off on {name}"), e))
        }
        _ => Ok(()),
    }
}

fn open_tap(spec: &TapSpec) -> Result<OwnedFd, NetError> {
    let name = &spec.name;
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(|e| NetError::kernel(format!("open /dev/net/tun for the tap {name}"), e))?;
    set_interface(tun.as_fd(), name).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => NetError::Busy { name: name.to_string() },
        _ => NetError::kernel(format!("make the tap {name}"), e),
    })?;
    let set = |request, value: libc::c_ulong, doing| {
        set_number(tun.as_fd(), request, value)
            .map_err(|e| NetError::kernel(format!("{doing} of the tap {name}"), e))
    };
    set(libc::TUNSETPERSIST, 0, "limit the life")?;
    set(libc::TUNSETOWNER, spec.owner.into(), "set the owner")?;
    // Whoever used the tap's queue before may have left checksum offload on; QEMU asks for what its guest wants.
    set(libc::TUNSETOFFLOAD, 0, "turn off the offloads")?;
    Ok(tun.into())
}

fn set_interface(tun: BorrowedFd<'_>, name: &IfName) -> io::Result<()> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is; its name is at most 15 bytes, so it ends
    // in a zero. The descriptor is open for as long as it is borrowed.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_number(tun: BorrowedFd<'_>, request: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: these requests take a number by value and touch no memory of ours. The descriptor is open for as long
    // as it is borrowed.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), request, value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

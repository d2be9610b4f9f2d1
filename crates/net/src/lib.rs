//! The network of one host, as far as VMs need it: taps, the bridges that they attach to, and the announcements
//! that tell the network where a VM is.
//!
//! A NIC of a VM is a tap, enslaved to a bridge. The bridge carries traffic to and from the VM only while the tap's
//! port is *open*. **Nothing may announce a VM before the handover**, so on the destination of a migration the tap is
//! attached but closed, and QEMU's own announcement after loading goes nowhere:
//!
//! ```text
//!   create_tap ──▶ attach ──▶ open_port ◀──▶ close_port ──▶ remove (or: the last descriptor closes)
//!                  (closed)   handover      handed-over
//! ```
//!
//! Everything here works in the network namespace of the thread that called [`Net::connect`], which for an agent is
//! the namespace that it was started in. Operations are idempotent where the kernel allows it; each failure names the
//! device and what was being done to it.

mod announce;
mod bridge;
mod error;
pub mod frames;
mod name;
mod netlink;
mod path_mtu;
mod port;
mod tap;

pub use announce::{Announcement, Schedule, announce};
pub use bridge::{Bridge, BridgeWarning};
pub use error::NetError;
pub use name::IfName;
pub use netlink::Net;
pub use path_mtu::{PathMtu, path_mtu_probe};
pub use port::PortState;
pub use tap::{Tap, TapSpec};

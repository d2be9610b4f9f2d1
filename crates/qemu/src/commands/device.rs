//! Devices that come and go, their backends, and the descriptors that these need.

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use crate::command_line::Properties;
use crate::{Error, Qmp};

impl Qmp {
    /// `device_add`: plugs a device in. The guest sees it when it looks.
    pub async fn device_add(&self, device: &Properties) -> Result<(), Error> {
        self.order_with("device_add", device).await
    }

    /// `device_del`: asks the guest to let go; [`Event::DeviceDeleted`](crate::Event::DeviceDeleted) says when it has.
    pub async fn device_del(&self, id: &str) -> Result<(), Error> {
        self.order_with("device_del", &Id { id }).await
    }

    /// `netdev_add`.
    pub async fn netdev_add(&self, netdev: &Properties) -> Result<(), Error> {
        self.order_with("netdev_add", netdev).await
    }

    /// `netdev_del`.
    pub async fn netdev_del(&self, id: &str) -> Result<(), Error> {
        self.order_with("netdev_del", &Id { id }).await
    }

    /// `object-add`.
    pub async fn object_add(&self, object: &Properties) -> Result<(), Error> {
        self.order_with("object-add", object).await
    }

    /// `object-del`.
    pub async fn object_del(&self, id: &str) -> Result<(), Error> {
        self.order_with("object-del", &Id { id }).await
    }

    /// `set_link`: plugs or pulls the cable of a NIC or netdev.
    pub async fn set_link(&self, name: &str, up: bool) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            name: &'a str,
            up: bool,
        }
        self.order_with("set_link", &Arguments { name, up }).await
    }

    /// `balloon`: asks the guest to make do with this much memory.
    pub async fn balloon(&self, bytes: u64) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Arguments {
            value: u64,
        }
        self.order_with("balloon", &Arguments { value: bytes }).await
    }

    /// `query-balloon`: the memory that the guest has, in bytes; `None` if it has no balloon, or no driver for it.
    pub async fn query_balloon(&self) -> Result<Option<u64>, Error> {
        #[derive(Deserialize)]
        struct Balloon {
            actual: u64,
        }
        match self.query::<Balloon>("query-balloon").await {
            Ok(balloon) => Ok(Some(balloon.actual)),
            Err(Error::Refused { class: crate::ErrorClass::DeviceNotActive, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives QEMU a duplicate of a descriptor under a name, for `fd:name` in URIs and netdevs.
    pub async fn getfd(&self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), Error> {
        self.pass("getfd", &FdName { fdname: name }, descriptor).await
    }

    /// Takes a name given by [`Self::getfd`] back, if QEMU has not used it.
    pub async fn closefd(&self, name: &str) -> Result<(), Error> {
        self.order_with("closefd", &FdName { fdname: name }).await
    }

    /// Gives QEMU a duplicate of a descriptor as `/dev/fdset/FDSET`, for disks.
    pub async fn add_fd(&self, fdset: u32, descriptor: BorrowedFd<'_>) -> Result<(), Error> {
        self.pass("add-fd", &FdSet { fdset_id: fdset }, descriptor).await
    }

    /// Closes QEMU's descriptors of that set as soon as no disk uses them.
    pub async fn remove_fd(&self, fdset: u32) -> Result<(), Error> {
        self.order_with("remove-fd", &FdSet { fdset_id: fdset }).await
    }
}

#[derive(Serialize)]
struct Id<'a> {
    id: &'a str,
}

#[derive(Serialize)]
struct FdName<'a> {
    fdname: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct FdSet {
    fdset_id: u32,
}

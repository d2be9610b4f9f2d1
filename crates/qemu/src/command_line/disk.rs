//! Disks, CD-ROMs and flash: images given as descriptors or paths, and the devices in front of them.
//!
//! An image is never probed: its format is always said, and a qcow2 image uses a backing file only if the caller
//! gives it one, whatever its header names. (A qcow2 header can also name an external data file, which no
//! option refuses: look at foreign images before they get here.)

use std::os::fd::RawFd;
use std::path::PathBuf;

use super::Properties;
use super::arguments::{SLOT_DISK, absolute, pci, utf8};
use crate::Error;

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileSource {
    /// The descriptor that QEMU inherits under this number, opened as the image is used: for reading and
    /// writing or for reading only, with or without `O_DIRECT`. Image locks stay until the last duplicate of a
    /// descriptor is closed, so it is opened anew for each QEMU, and one's own copy is closed once QEMU has
    /// started.
    Descriptor(RawFd),
    /// An absolute path that QEMU opens itself.
    Path(PathBuf),
}

/// How an image is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// Bytes as they are.
    Raw,
    /// QEMU's format.
    Qcow2,
}

/// An image, and those behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it is.
    pub source: FileSource,
    /// Its layout.
    pub format: ImageFormat,
    /// The image that holds what this one does not, opened for reading only.
    pub backing: Option<Box<Image>>,
}

/// What a disk is plugged into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskBus {
    /// A PCI device of its own: virtio-blk.
    Virtio,
    /// A place on the VM's virtio-scsi controller.
    Scsi,
}

/// What becomes of a failed read or write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnIoError {
    /// The guest is told.
    Report,
    /// The VM is paused, so that a storage failure can be mended; the request is then repeated.
    Stop,
    /// Paused if space ran out, else the guest is told.
    StopIfFull,
    /// The guest is told that it succeeded.
    Ignore,
}

impl OnIoError {
    fn as_str(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Stop => "stop",
            Self::StopIfFull => "enospc",
            Self::Ignore => "ignore",
        }
    }
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The disk's number, kept for its life: the guest knows the disk by the place that this gives it. Up to 11.
    pub index: u8,
    /// Its image.
    pub image: Image,
    /// What it is plugged into.
    pub bus: DiskBus,
    /// Past the host's page cache? QEMU 10 takes a descriptor for it only if it was opened with `O_DIRECT`, and
    /// one that was for nothing else; all images of a chain are opened alike.
    pub direct: bool,
    /// Can it only be read?
    pub read_only: bool,
    /// Does a discard of the guest's free space in the image?
    pub discard: bool,
    /// What becomes of a failed write. `StopIfFull` is QEMU's default.
    pub on_write_error: OnIoError,
    /// What becomes of a failed read: all but `StopIfFull`.
    pub on_read_error: OnIoError,
    /// Its place in the boot order, from 1; `None` if it is not booted from.
    pub boot_index: Option<u16>,
    /// A serial number for the guest, up to 20 bytes.
    pub serial: Option<String>,
}

/// The most disks.
pub(super) const DISKS: u8 = 12;

impl Disk {
    /// Its block nodes, the lowest first: for the command line, and for `blockdev-add` in this order.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn nodes(&self) -> Result<Vec<Properties>, Error> {
        let options = NodeOptions { direct: self.direct, read_only: self.read_only, discard: self.discard };
        self.image.nodes(&self.id(), self.fdset(), options)
    }

    /// Its id, as a device and as its uppermost node.
    pub fn id(&self) -> String {
        format!("disk{}", self.index)
    }

    /// The first fdset of its images; each one behind has the next number.
    pub fn fdset(&self) -> u32 {
        100 + u32::from(self.index) * IMAGES_IN_CHAIN
    }

    /// Its device, for the command line and for `device_add` (where a q35 machine takes [`DiskBus::Scsi`] only,
    /// see [`super`]).
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn device(&self, machine: &str) -> Result<Properties, Error> {
        if self.index >= DISKS {
            return Err(Error::invalid("disk", self.index.to_string(), "its number is too high"));
        }
        if self.on_read_error == OnIoError::StopIfFull {
            return Err(Error::invalid("on_read_error", "enospc", "only a write can run out of space"));
        }
        if let Some(serial) = self.serial.as_ref().filter(|serial| serial.len() > 20) {
            return Err(Error::invalid("disk serial", serial, "at most 20 bytes are expected"));
        }
        let id = self.id();
        let device = match self.bus {
            DiskBus::Virtio => pci("virtio-blk-pci", &id, machine, SLOT_DISK + self.index),
            DiskBus::Scsi => Properties::new()
                .with("driver", "scsi-hd")
                .with("id", id.as_str())
                .with("bus", "scsi0.0")
                .with("scsi-id", self.index)
                .with("lun", 0),
        };
        Ok(device
            .with("drive", id)
            .with("werror", self.on_write_error.as_str())
            .with("rerror", self.on_read_error.as_str())
            .with_some("bootindex", self.boot_index)
            .with_some("serial", self.serial.as_deref()))
    }
}

/// A CD-ROM drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cdrom {
    /// The drive's number: 0 or 1.
    pub index: u8,
    /// The ISO image in it; `None` if it is empty.
    pub image: Option<FileSource>,
    /// Its place in the boot order, from 1; `None` if it is not booted from.
    pub boot_index: Option<u16>,
}

impl Cdrom {
    pub(super) fn nodes(&self) -> Result<Vec<Properties>, Error> {
        let Some(source) = &self.image else { return Ok(Vec::new()) };
        let image = Image { source: source.clone(), format: ImageFormat::Raw, backing: None };
        image.nodes(&self.id(), self.fdset(), NodeOptions { read_only: true, ..NodeOptions::default() })
    }

    pub(super) fn id(&self) -> String {
        format!("cdrom{}", self.index)
    }

    pub(super) fn fdset(&self) -> u32 {
        20 + u32::from(self.index)
    }

    pub(super) fn device(&self) -> Properties {
        Properties::new()
            .with("driver", "ide-cd")
            .with("id", self.id())
            .with("bus", format!("ide.{}", self.index))
            .with_some("drive", self.image.is_some().then(|| self.id()))
            .with_some("bootindex", self.boot_index)
    }
}

/// How many images may stand behind one another, the first included.
const IMAGES_IN_CHAIN: u32 = 16;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct NodeOptions {
    pub(super) direct: bool,
    pub(super) read_only: bool,
    pub(super) discard: bool,
}

impl Image {
    /// The nodes, the lowest first; the uppermost is called `name`, and its descriptor is in `fdset`.
    pub(super) fn nodes(
        &self,
        name: &str,
        fdset: u32,
        options: NodeOptions,
    ) -> Result<Vec<Properties>, Error> {
        let mut nodes = Vec::new();
        for (depth, image) in (0..).zip(self.chain()) {
            if depth == IMAGES_IN_CHAIN {
                return Err(Error::invalid("disk", name, "at most 16 images may stand behind one another"));
            }
            let options = NodeOptions { read_only: options.read_only || depth > 0, ..options };
            nodes.push(image.format_node(name, depth, options)?);
            nodes.push(image.file_node(name, depth, fdset + depth, options)?);
        }
        nodes.reverse();
        Ok(nodes)
    }

    /// This image and those behind it.
    pub(super) fn chain(&self) -> impl Iterator<Item = &Image> {
        std::iter::successors(Some(self), |image| image.backing.as_deref())
    }

    fn file_node(
        &self,
        name: &str,
        depth: u32,
        fdset: u32,
        options: NodeOptions,
    ) -> Result<Properties, Error> {
        let filename = match &self.source {
            FileSource::Descriptor(_) => format!("/dev/fdset/{fdset}"),
            FileSource::Path(path) => utf8("image path", absolute("image path", path)?)?.to_owned(),
        };
        let node = Properties::new()
            .with("driver", "file")
            .with("node-name", format!("{}-file", node_name(name, depth)))
            .with("filename", filename);
        Ok(with_options(node, options))
    }

    fn format_node(&self, name: &str, depth: u32, options: NodeOptions) -> Result<Properties, Error> {
        let own_name = node_name(name, depth);
        let node = Properties::new()
            .with(
                "driver",
                match self.format {
                    ImageFormat::Raw => "raw",
                    ImageFormat::Qcow2 => "qcow2",
                },
            )
            .with("node-name", own_name.as_str())
            .with("file", format!("{own_name}-file"));
        let node = with_options(node, options);
        match (self.format, &self.backing) {
            (ImageFormat::Raw, None) => Ok(node),
            (ImageFormat::Raw, Some(_)) => {
                Err(Error::invalid("disk", name, "a raw image has nothing behind it"))
            }
            (ImageFormat::Qcow2, None) => Ok(node.with("backing", serde_json::Value::Null)),
            (ImageFormat::Qcow2, Some(_)) => Ok(node.with("backing", node_name(name, depth + 1))),
        }
    }
}

fn with_options(node: Properties, options: NodeOptions) -> Properties {
    node.with("read-only", options.read_only)
        .with("discard", if options.discard && !options.read_only { "unmap" } else { "ignore" })
        .with_properties("cache", Properties::new().with("direct", options.direct).with("no-flush", false))
}

fn node_name(name: &str, depth: u32) -> String {
    if depth == 0 { name.to_owned() } else { format!("{name}-backing{depth}") }
}

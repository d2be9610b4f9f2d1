//! Everything that a QEMU is handed open: its memory, disks, boot files and taps.
//!
//! Each is opened anew for each QEMU. Image locks belong to the open file and live until its last duplicate is
//! closed, so the agent's copies, which are in here, are dropped as soon as QEMU has its own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::{LaunchPlan, QemuUser, VmError, memory};

pub(crate) struct Descriptors {
    pub(crate) memory: OwnedFd,
    /// For each disk, its own image and those behind it.
    pub(crate) disks: Vec<Vec<OwnedFd>>,
    pub(crate) iso: Option<OwnedFd>,
    pub(crate) kernel: Option<OwnedFd>,
    pub(crate) initrd: Option<OwnedFd>,
    pub(crate) taps: Vec<OwnedFd>,
}

impl Descriptors {
    /// Opens everything but the taps, which are given. Blocks for as long as the storage does.
    pub(crate) fn open(plan: &LaunchPlan, taps: Vec<OwnedFd>) -> Result<Self, VmError> {
        let size = plan.spec.memory;
        let memory = memory::create(size)
            .map_err(|e| VmError::system(format!("make {size} of memory for VM {}", plan.vm), e))?;
        let mut disks = Vec::new();
        for disk in &plan.disks {
            let failed = |path: &Path, source| VmError::Disk {
                name: disk.name.to_string(),
                path: path.to_owned(),
                source,
            };
            let mut chain = vec![
                open_image(&disk.path, !disk.read_only, disk.direct).map_err(|e| failed(&disk.path, e))?,
            ];
            for behind in &disk.backing {
                chain
                    .push(open_image(&behind.path, false, disk.direct).map_err(|e| failed(&behind.path, e))?);
            }
            disks.push(chain);
        }
        let boot_file = |what, path: &Path, opened: io::Result<OwnedFd>| {
            opened.map_err(|source| VmError::BootFile { what, path: path.to_owned(), source })
        };
        let iso = plan.boot.iso.as_deref();
        let kernel = plan.boot.kernel.as_ref();
        let initrd = kernel.and_then(|kernel| kernel.initrd.as_deref());
        let kernel = kernel.map(|kernel| kernel.image.as_path());
        Ok(Self {
            memory,
            disks,
            iso: iso.map(|path| boot_file("ISO image", path, open_image(path, false, false))).transpose()?,
            kernel: kernel
                .map(|path| boot_file("kernel", path, open_readable(path, plan.user)))
                .transpose()?,
            initrd: initrd
                .map(|path| boot_file("initrd", path, open_readable(path, plan.user)))
                .transpose()?,
            taps,
        })
    }

    /// All of them.
    pub(crate) fn into_all(self) -> Vec<OwnedFd> {
        let boot = [self.iso, self.kernel, self.initrd].into_iter().flatten();
        [self.memory]
            .into_iter()
            .chain(self.disks.into_iter().flatten())
            .chain(boot)
            .chain(self.taps)
            .collect()
    }
}

/// QEMU takes only a descriptor that was opened with or without `O_DIRECT` as it would open the image itself.
fn open_image(path: &Path, writable: bool, direct: bool) -> io::Result<OwnedFd> {
    let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).write(writable).custom_flags(flags).open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(io::Error::other("it is neither a file nor a block device"));
    }
    Ok(file.into())
}

/// QEMU opens kernels once more, through `/proc/self/fd`: there its own rights count.
fn open_readable(path: &Path, user: QemuUser) -> io::Result<OwnedFd> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let shift = match () {
        () if metadata.uid() == user.uid => 6,
        () if metadata.gid() == user.gid => 3,
        () => 0,
    };
    if user.uid != 0 && metadata.mode() >> shift & 0o4 == 0 {
        let why = format!("QEMU's user {} may not read it; make it readable for all", user.uid);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(file.into())
}

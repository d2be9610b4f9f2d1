//! What can go wrong with a VM's process.

use std::io;
use std::path::PathBuf;

use limosa_model::{Failure, FailureKind, VmId};
use limosa_net::NetError;

use crate::Exit;

/// Why something could not be done with a VM's QEMU.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The plan cannot be carried out by any host.
    #[error("the launch plan of VM {vm} is wrong: {why}")]
    InvalidPlan {
        /// Whose.
        vm: VmId,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// A socket's path is longer than the system takes.
    #[error(
        "the path {path} is longer than the 107 bytes that a socket may have; use a shorter runtime directory"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// A QEMU of this runtime directory lives.
    #[error("VM {vm} has a QEMU already (process {pid}); adopt it, or kill it first")]
    AlreadyRunning {
        /// Whose.
        vm: VmId,
        /// The process.
        pid: u32,
    },
    /// A disk could not be opened.
    #[error("the disk {name:?} ({path}) cannot be opened")]
    Disk {
        /// The disk's name in the spec.
        name: String,
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else has the disk open.
    #[error("the disk {name:?} ({path}) is locked by another process; find it with `lslocks`, and end it")]
    DiskLocked {
        /// The disk's name in the spec.
        name: String,
        /// Its file.
        path: PathBuf,
    },
    /// A file to boot from could not be opened.
    #[error("the {what} {path} cannot be read")]
    BootFile {
        /// `kernel`, `initrd` or `ISO image`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The host lacks memory or descriptors, or a directory could not be used.
    #[error("could not {doing}")]
    System {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// A NIC could not be attached.
    #[error("the network of VM {vm} could not be set up")]
    Net {
        /// Whose.
        vm: VmId,
        /// Why.
        source: NetError,
    },
    /// QEMU ended while it was being started or spoken to.
    #[error("QEMU of VM {vm} ended ({exit}): {log}")]
    QemuExited {
        /// Whose.
        vm: VmId,
        /// How it ended.
        exit: Exit,
        /// The last that it said.
        log: String,
    },
    /// QEMU's monitor refused, or cannot be reached.
    #[error("QEMU of VM {vm} did not do as it was asked")]
    Qemu {
        /// Whose.
        vm: VmId,
        /// Why.
        source: limosa_qemu::Error,
    },
    /// QEMU lives and does not answer.
    #[error("QEMU of VM {vm} did not {what} within {limit_ms} ms; if it stays so, kill it")]
    Unresponsive {
        /// Whose.
        vm: VmId,
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit_ms: u64,
    },
    /// What listens on a VM's socket is not the VM's QEMU.
    #[error("the socket {path} belongs to process {found}, not to QEMU (process {expected})")]
    WrongPeer {
        /// The socket.
        path: PathBuf,
        /// The QEMU's process.
        expected: u32,
        /// The process that listens.
        found: String,
    },
    /// The plan beside a running QEMU cannot be read, or is another one's.
    #[error("the launch plan {path} is of no use: {why}; the VM runs on, and can only be killed")]
    PlanLost {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl VmError {
    pub(crate) fn system(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { doing: doing.into(), source: source.into() }
    }

    /// The kind that users see and that decides what is tried next.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::InvalidPlan { .. } | Self::PathTooLong { .. } => FailureKind::Invalid,
            Self::AlreadyRunning { .. } => FailureKind::Conflict,
            Self::Disk { .. } | Self::DiskLocked { .. } | Self::BootFile { .. } => FailureKind::Storage,
            Self::System { .. } => FailureKind::Resource,
            Self::Net { source, .. } => source.kind(),
            Self::QemuExited { .. } | Self::Qemu { .. } | Self::WrongPeer { .. } | Self::PlanLost { .. } => {
                FailureKind::Qemu
            }
            Self::Unresponsive { .. } => FailureKind::Timeout,
        }
    }
}

impl VmError {
    /// What to do next.
    fn remedy(&self) -> &'static str {
        match self.kind() {
            FailureKind::NotFound => "correct the network's definition, or make the bridge on this host",
            FailureKind::Invalid => "correct the VM's spec or the agent's configuration",
            FailureKind::Conflict => "wait until the VM's other QEMU has ended",
            FailureKind::Storage => {
                "make the datastore and its files available on this host, and to QEMU's user"
            }
            FailureKind::Resource => "run `limosa host check` on this host",
            FailureKind::Timeout => "look at the load of this host, and at the storage that it waits for",
            _ => "look into qemu.log in the VM's runtime directory",
        }
    }
}

impl From<VmError> for Failure {
    fn from(error: VmError) -> Self {
        use std::error::Error;
        let mut what = error.to_string();
        let mut cause = error.source();
        while let Some(source) = cause {
            what = format!("{what}: {source}");
            cause = source.source();
        }
        Failure::new(error.kind(), what, error.remedy())
    }
}

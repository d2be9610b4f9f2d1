//! The runtime directory of a VM: what is where in it, who owns it, and how it goes.
//!
//! ```text
//!   DIR/            root, 0711
//!     plan.json     root, 0600   the launch plan, durable before QEMU starts
//!     qemu.log      root, 0600   what QEMU says; QEMU holds it open
//!     q/            QEMU's user, 0700
//!       qmp.sock  serial.sock  vnc.sock
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::{LaunchPlan, QemuUser, VmError, adopt, cgroup, log};

/// The longest path of a socket, without the zero byte behind it (unix(7)).
const SOCKET_PATH_MAX: usize = 107;
/// The longest plan that is read back.
const PLAN_LIMIT_BYTES: u64 = 1 << 20;

/// The files in a VM's runtime directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDir(PathBuf);

impl RuntimeDir {
    /// The runtime directory at this path, which need not exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The launch plan.
    pub fn plan(&self) -> PathBuf {
        self.0.join("plan.json")
    }

    /// What QEMU wrote to its standard output and error.
    pub fn log(&self) -> PathBuf {
        self.0.join("qemu.log")
    }

    /// QEMU's monitor.
    pub fn qmp_socket(&self) -> PathBuf {
        self.sockets().join("qmp.sock")
    }

    /// The serial console.
    pub fn serial_socket(&self) -> PathBuf {
        self.sockets().join("serial.sock")
    }

    /// The screen.
    pub fn vnc_socket(&self) -> PathBuf {
        self.sockets().join("vnc.sock")
    }

    /// The last that QEMU said, at most so many bytes, on one line.
    pub fn log_tail(&self, limit_bytes: u64) -> String {
        log::tail(&self.log(), limit_bytes)
    }

    fn sockets(&self) -> PathBuf {
        self.0.join("q")
    }

    /// The runtime directory whose monitor has this path.
    pub(crate) fn of_qmp_socket(socket: &Path) -> Option<Self> {
        let directory = Self(socket.parent()?.parent()?.to_owned());
        (directory.qmp_socket() == socket).then_some(directory)
    }

    /// Makes the directory, and makes the plan durable in it.
    pub(crate) fn create(&self, plan: &LaunchPlan) -> Result<(), VmError> {
        if !self.0.is_absolute() {
            let why = format!("the runtime directory {} is not an absolute path", self.0.display());
            return Err(VmError::InvalidPlan { vm: plan.vm, why });
        }
        for path in [self.qmp_socket(), self.serial_socket(), self.vnc_socket()] {
            if path.as_os_str().as_bytes().len() > SOCKET_PATH_MAX {
                return Err(VmError::PathTooLong { path });
            }
        }
        self.create_directories(plan.user)
            .and_then(|()| self.write_plan(plan))
            .inspect_err(|_| {
                // As on a full disk: what was made is in nobody's way, so its removal may fail too.
                let _ = remove_runtime(self);
            })
            .map_err(|e| VmError::system(format!("set up the runtime directory {}", self.0.display()), e))
    }

    fn create_directories(&self, user: QemuUser) -> io::Result<()> {
        make_directory(&self.0, 0o711)?;
        // Of an earlier QEMU, which has ended: a socket that is left would keep the next one from listening.
        remove_if_there(fs::remove_dir_all(self.sockets()))?;
        make_directory(&self.sockets(), 0o700)?;
        chown(self.sockets(), Some(user.uid), Some(user.gid))
    }

    fn write_plan(&self, plan: &LaunchPlan) -> io::Result<()> {
        let unfinished = self.0.join("plan.json.new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(&serde_json::to_vec_pretty(plan)?)?;
        file.sync_all()?;
        fs::rename(unfinished, self.plan())?;
        File::open(&self.0)?.sync_all()
    }

    /// Reads the plan back.
    pub(crate) fn read_plan(&self) -> Result<LaunchPlan, VmError> {
        let lost = |why: String| VmError::PlanLost { path: self.plan(), why };
        let mut text = Vec::new();
        File::open(self.plan())
            .and_then(|file| file.take(PLAN_LIMIT_BYTES).read_to_end(&mut text))
            .map_err(|e| lost(e.to_string()))?;
        let plan: LaunchPlan = serde_json::from_slice(&text).map_err(|e| lost(e.to_string()))?;
        if plan.runtime_dir != self.0 {
            return Err(lost(format!("it is the plan for {}", plan.runtime_dir.display())));
        }
        Ok(plan)
    }

    /// A file for what QEMU says, empty.
    pub(crate) fn create_log(&self) -> io::Result<File> {
        remove_if_there(fs::remove_file(self.log()))?;
        OpenOptions::new().append(true).create_new(true).mode(0o600).open(self.log())
    }
}

/// Removes what a VM's QEMU that has ended has left on this host: sockets, plan, log, cgroup. (Its taps went with it.)
/// May be repeated, and goes on where an earlier call was interrupted: the plan, which says what is left, goes last.
///
/// # Errors
/// [`VmError::AlreadyRunning`] while the QEMU lives; [`VmError::System`] names what could not be removed.
pub fn remove_runtime(dir: &RuntimeDir) -> Result<(), VmError> {
    let plan = dir.read_plan().ok();
    if let (Some(plan), Some(pid)) = (&plan, adopt::find(dir)) {
        return Err(VmError::AlreadyRunning { vm: plan.vm, pid });
    }
    if let Some(group) =
        plan.and_then(|plan| cgroup::path(plan.cgroup_parent.as_deref(), plan.vm, plan.epoch))
    {
        remove_if_there(fs::remove_dir(&group))
            .map_err(|e| VmError::system(format!("remove the cgroup {}", group.display()), e))?;
    }
    let remove = || {
        remove_if_there(fs::remove_dir_all(dir.sockets()))?;
        remove_if_there(fs::remove_file(dir.log()))?;
        remove_if_there(fs::remove_dir_all(dir.path()))
    };
    remove().map_err(|e| VmError::system(format!("remove the runtime directory {}", dir.path().display()), e))
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        // The umask, or an earlier life, may have left other rights.
        _ => fs::set_permissions(path, Permissions::from_mode(mode)),
    }
}

fn remove_if_there(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

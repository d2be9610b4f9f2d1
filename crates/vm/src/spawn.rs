//! Starting a program so that it stands on its own: detached, unprivileged, with exactly the descriptors it is given.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::Mode;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Resource, Rlimit, geteuid, setrlimit, setsid, umask};
use rustix::thread::set_no_new_privs;

use crate::{QemuUser, process};

/// A program to be started.
pub(crate) struct Spawn<'a> {
    /// The program and its arguments.
    pub(crate) arguments: &'a [OsString],
    /// What it inherits, under the numbers that they have here. Closed here as soon as it has them.
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Whom it runs as.
    pub(crate) user: QemuUser,
    /// A library that it loads first.
    pub(crate) preload: Option<&'a Path>,
    /// Where its standard output and error go.
    pub(crate) log: &'a File,
    /// The list of processes of the cgroup that it moves into.
    pub(crate) cgroup: Option<OwnedFd>,
}

impl Spawn<'_> {
    /// Starts it. It is a child, in a session of its own; its end must be waited for.
    pub(crate) fn start(self) -> io::Result<(u32, OwnedFd)> {
        let (program, arguments) =
            self.arguments.split_first().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(self.log.try_clone()?)
            .stderr(self.log.try_clone()?);
        if let Some(library) = self.preload {
            command.env("LD_PRELOAD", library);
        }
        if geteuid().as_raw() != self.user.uid {
            // This drops the supplementary groups as well.
            command.uid(self.user.uid).gid(self.user.gid);
        }
        let Self { descriptors, cgroup, .. } = self;
        let detach = move || {
            setsid()?;
            set_no_new_privs(true)?;
            umask(Mode::RWXG | Mode::RWXO);
            setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
            if let Some(cgroup) = &cgroup {
                rustix::io::write(cgroup, b"0")?;
            }
            for descriptor in &descriptors {
                fcntl_setfd(descriptor, FdFlags::empty())?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls only: it allocates nothing, takes no lock and
        // touches nothing that another thread may have been changing.
        unsafe { command.pre_exec(detach) };
        let child = command.spawn()?;
        let pid = child.id();
        // Until it has been waited for, the number cannot pass to another process.
        let pidfd = process::hold(pid).inspect_err(|_| process::end_child(pid))?;
        // The agent may be protected from the kernel's choice of whom to kill; a VM is not.
        if let Err(e) = fs::write(format!("/proc/{pid}/oom_score_adj"), "0") {
            tracing::debug!(pid, error = %e, "the OOM score of a VM could not be set");
        }
        Ok((pid, pidfd))
    }
}

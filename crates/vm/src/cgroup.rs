//! A cgroup of its own for each VM, where the host has cgroup v2: so that a VM is not ended with the agent's service,
//! and can be accounted for and limited.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use limosa_model::{Epoch, VmId};

/// Where cgroup v2 is mounted: alone, or beside v1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
const PARENT: &str = "limosa.slice";
const WANTED_CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];

/// Whether a VM has a cgroup of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupState {
    /// It is in this one.
    Own(PathBuf),
    /// It is in the agent's.
    Shared {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for CgroupState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(path) => write!(f, "{}", path.display()),
            Self::Shared { reason } => write!(f, "none of its own: {reason}"),
        }
    }
}

/// The mount of cgroup v2 and those of the wanted controllers that it has, or why there is none to use.
pub(crate) fn mount() -> Result<(PathBuf, Vec<&'static str>), String> {
    for mount in MOUNTS {
        if let Ok(controllers) = fs::read_to_string(Path::new(mount).join("cgroup.controllers")) {
            let has = |wanted: &&str| controllers.split_whitespace().any(|controller| controller == *wanted);
            let controllers: Vec<_> = WANTED_CONTROLLERS.into_iter().filter(has).collect();
            if controllers.is_empty() {
                return Err(format!(
                    "the cgroup v2 at {mount} has none of the controllers; cgroup v1 has them"
                ));
            }
            return Ok((mount.into(), controllers));
        }
    }
    Err("cgroup v2 is not mounted".into())
}

/// Where the cgroup of a VM's QEMU is, if the host has any. The epoch tells two QEMUs of a VM on one kernel apart.
pub(crate) fn path(parent: Option<&Path>, vm: VmId, epoch: Epoch) -> Option<PathBuf> {
    let parent = match parent {
        Some(parent) => parent.to_owned(),
        None => mount().ok()?.0.join(PARENT),
    };
    Some(parent.join(format!("vm-{vm}-{epoch}")))
}

/// Makes the cgroup of a VM's QEMU. A process that writes `0` to the descriptor moves into it. A parent that was given
/// need have no controllers: it keeps VM and agent apart all the same.
pub(crate) fn create(parent: Option<&Path>, vm: VmId, epoch: Epoch) -> (CgroupState, Option<OwnedFd>) {
    let made = match (mount(), path(parent, vm, epoch)) {
        (Err(reason), _) if parent.is_none() => Err(reason),
        (_, None) => Err("cgroup v2 is not mounted".into()),
        (mount, Some(group)) => {
            let controllers = mount.map(|(_, controllers)| controllers).unwrap_or_default();
            match make(&group, &controllers) {
                Ok(procs) => Ok((group, procs)),
                Err(e) => Err(format!("the cgroup {} cannot be made: {e}", group.display())),
            }
        }
    };
    match made {
        Ok((group, procs)) => (CgroupState::Own(group), Some(procs)),
        Err(reason) => (CgroupState::Shared { reason }, None),
    }
}

fn make(group: &Path, controllers: &[&str]) -> io::Result<OwnedFd> {
    fs::create_dir_all(group)?;
    if let Some(parent) = group.parent() {
        for controller in WANTED_CONTROLLERS.iter().filter(|wanted| controllers.iter().any(|c| c == *wanted))
        {
            // A controller that is not delegated to us is not to be had; the rest still is.
            if let Err(e) = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}")) {
                tracing::debug!(controller, error = %e, "a cgroup controller could not be enabled");
            }
        }
    }
    Ok(OpenOptions::new().write(true).open(group.join("cgroup.procs"))?.into())
}

/// The cgroup that a running process is in, if it is one of a VM.
pub(crate) fn of_process(pid: u32, expected: Option<PathBuf>) -> CgroupState {
    let Some(expected) = expected else {
        return CgroupState::Shared { reason: mount().err().unwrap_or_default() };
    };
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"));
    match own {
        Some(own) if expected.ends_with(own.trim_start_matches('/')) && own != "/" => {
            CgroupState::Own(expected)
        }
        _ => CgroupState::Shared { reason: "it was started without one".into() },
    }
}

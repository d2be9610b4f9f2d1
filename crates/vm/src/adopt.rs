//! Finding the QEMUs of an earlier agent.
//!
//! A process is one of ours if its command line says so, and its monitor is in a runtime directory under our root:
//! several agents may live on one kernel, and each must find its own. What the command line says is a claim. It is
//! believed when the process itself listens on the monitor in that directory (which the kernel knows) and the plan
//! there, which only root can write, says the same.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use limosa_model::{Epoch, MigrationId, VmId};
use limosa_net::Net;
use limosa_qemu::parse_identity;

use crate::monitor::ADOPT_LIMIT;
use crate::{LaunchPlan, Process, RuntimeDir, Vm, VmError, VmNic, cgroup, monitor, process};

/// The longest command line that is read: several times what a VM with all its devices has.
const COMMAND_LINE_LIMIT_BYTES: u64 = 1 << 20;

/// A QEMU of this agent that was found running.
#[derive(Debug)]
pub struct Adopted {
    /// Which VM, as its command line says.
    pub vm: VmId,
    /// By which right, as its command line says.
    pub epoch: Epoch,
    /// The migration that it was started to receive, as its command line says.
    pub migration: Option<MigrationId>,
    /// The process. It can be killed even where nothing else is possible.
    pub process: Process,
    /// Where its files are.
    pub runtime_dir: RuntimeDir,
    /// The VM; or why it cannot be spoken to: it hangs, another client has its monitor, its plan is lost.
    pub handle: Result<Vm, VmError>,
}

impl Adopted {
    /// Speaks once more to a QEMU that did not answer.
    pub async fn try_again(&mut self, net: &Net) {
        let claim = Claim { vm: self.vm, epoch: self.epoch, migration: self.migration };
        self.handle = adopt(&claim, &self.process, &self.runtime_dir, net).await;
    }
}

/// Finds all running QEMUs that have their runtime directory directly under `runtime_root`, and connects to them. A VM
/// that is found twice is there twice: what that means, the caller decides.
///
/// # Errors
/// When the list of processes cannot be read. What goes wrong with a single QEMU is in its [`Adopted::handle`].
pub async fn adopt_all(runtime_root: &Path, net: &Net) -> Result<Vec<Adopted>, VmError> {
    let found: Vec<Found> =
        running()?.into_iter().filter(|found| found.dir.path().parent() == Some(runtime_root)).collect();
    // Beside each other: one that hangs must not keep the agent from the others.
    let adopted = found.into_iter().map(|Found { pid, pidfd, claim, dir }| async move {
        let process = Process::watch(pid, pidfd, dir.log())
            .map_err(|e| VmError::system(format!("watch process {pid}"), e))?;
        let handle = adopt(&claim, &process, &dir, net).await;
        let Claim { vm, epoch, migration } = claim;
        Ok(Adopted { vm, epoch, migration, process, runtime_dir: dir, handle })
    });
    futures_util::future::try_join_all(adopted).await
}

/// The number of the process that has its monitor in this runtime directory.
pub(crate) fn find(dir: &RuntimeDir) -> Option<u32> {
    running().ok()?.into_iter().find(|found| found.dir == *dir).map(|found| found.pid)
}

async fn adopt(claim: &Claim, process: &Process, dir: &RuntimeDir, net: &Net) -> Result<Vm, VmError> {
    let plan = dir.read_plan()?;
    if *claim != Claim::of(&plan) {
        let why = format!("it is that of VM {} at epoch {}", plan.vm, plan.epoch);
        return Err(VmError::PlanLost { path: dir.plan(), why });
    }
    let qmp = monitor::connect(plan.vm, process, dir, ADOPT_LIMIT).await?;
    let mut nics = Vec::new();
    for (number, nic) in plan.nics.iter().enumerate() {
        match net.adopt_tap(&nic.tap).await {
            Ok(tap) => nics.push(VmNic::new(&plan, number, tap)),
            // A VM that has lost a NIC is still one that must be held.
            Err(e) => tracing::warn!(vm = %plan.vm, tap = %nic.tap, error = %e, "a tap could not be adopted"),
        }
    }
    let group = cgroup::path(plan.cgroup_parent.as_deref(), plan.vm, plan.epoch);
    let cgroup = cgroup::of_process(process.pid(), group);
    Ok(Vm { plan, dir: dir.clone(), process: process.clone(), qmp, nics, cgroup })
}

/// Who a process says that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    vm: VmId,
    epoch: Epoch,
    migration: Option<MigrationId>,
}

impl Claim {
    fn of(plan: &LaunchPlan) -> Self {
        Self { vm: plan.vm, epoch: plan.epoch, migration: plan.migration }
    }

    fn parse(command_line: &[u8]) -> Option<Self> {
        let identity = parse_identity(command_line)?;
        Some(Self {
            vm: identity.vm.parse().ok()?,
            epoch: Epoch(identity.epoch),
            migration: identity.migration.map(|migration| migration.parse()).transpose().ok()?,
        })
    }
}

struct Found {
    pid: u32,
    pidfd: OwnedFd,
    claim: Claim,
    dir: RuntimeDir,
}

/// All processes of this kernel that claim to be Limosa's.
fn running() -> Result<Vec<Found>, VmError> {
    let failed = |e| VmError::system("list the processes of this host", e);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        found.extend(pid.and_then(look_at));
    }
    Ok(found)
}

fn look_at(pid: u32) -> Option<Found> {
    let mut command_line = Vec::new();
    let path = format!("/proc/{pid}/cmdline");
    File::open(&path).ok()?.take(COMMAND_LINE_LIMIT_BYTES).read_to_end(&mut command_line).ok()?;
    Claim::parse(&command_line)?;
    // Again, with the process held: what is read from here on until it is found alive is about that process, whatever
    // became of the number before. A zombie has no command line, and does not live.
    let pidfd = process::hold(pid).ok()?;
    command_line.clear();
    File::open(&path).ok()?.take(COMMAND_LINE_LIMIT_BYTES).read_to_end(&mut command_line).ok()?;
    let claim = Claim::parse(&command_line)?;
    let dir = runtime_dir(&command_line)?;
    process::is_alive(&pidfd).then_some(Found { pid, pidfd, claim, dir })
}

/// The runtime directory that the monitor's socket is in: `-chardev socket,id=qmp,path=PATH,…`, commas doubled.
fn runtime_dir(command_line: &[u8]) -> Option<RuntimeDir> {
    const MONITOR: &[u8] = b"socket,id=qmp,path=";
    let mut arguments = command_line.split(|byte| *byte == 0);
    let mut socket = None;
    while let Some(option) = arguments.next() {
        if option == b"-chardev" {
            socket = arguments.next().and_then(|value| value.strip_prefix(MONITOR));
        }
        if socket.is_some() {
            break;
        }
    }
    let mut path = Vec::new();
    let mut bytes = socket?.iter().peekable();
    while let Some(byte) = bytes.next() {
        if *byte == b',' && bytes.next_if_eq(&&b',').is_none() {
            break;
        }
        path.push(*byte);
    }
    RuntimeDir::of_qmp_socket(Path::new(OsStr::from_bytes(&path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_directory_is_read_from_the_monitors_path() {
        let of = |text: &str| runtime_dir(text.replace(' ', "\0").as_bytes()).map(|d| d.path().to_owned());
        let expected = Some("/run/a,b/vm".into());
        assert_eq!(
            of("q -chardev null,id=x -chardev socket,id=qmp,path=/run/a,,b/vm/q/qmp.sock,server=on"),
            expected
        );
        for bad in [
            "",
            "q",
            "q -chardev",
            "q -chardev socket,id=qmp,path=",
            "q -chardev socket,id=qmp,path=/qmp.sock",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
        assert_eq!(of("q -chardev socket,id=qmp,path=/run/vm/other/qmp.sock"), None);
    }
}

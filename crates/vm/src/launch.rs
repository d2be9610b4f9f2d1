//! Starting a VM's QEMU.

use std::io;
use std::os::fd::OwnedFd;

use limosa_net::{Net, TapSpec};
use limosa_qemu::command_line::Disk;
use limosa_qemu::commands::run::RunState;

use crate::descriptors::Descriptors;
use crate::monitor::START_LIMIT;
use crate::spawn::Spawn;
use crate::{
    CgroupState, LaunchPlan, Process, RuntimeDir, Vm, VmError, VmNic, adopt, cgroup, command_line, monitor,
    process, remove_runtime,
};

/// Starts the QEMU of a plan. When this returns, QEMU waits for `cont`, or for `migrate-incoming`; its CPUs stand
/// still and its NICs' ports are closed.
///
/// A launch that fails leaves nothing behind. One whose future is dropped leaves what it has done so far, which
/// [`adopt_all`](crate::adopt_all) finds or [`remove_runtime`] removes.
///
/// # Errors
/// [`VmError`] names the disk, file, bridge or value that is in the way.
pub async fn launch(plan: LaunchPlan, net: &Net) -> Result<Vm, VmError> {
    let dir = RuntimeDir::at(&plan.runtime_dir);
    if let Some(pid) = adopt::find(&dir) {
        return Err(VmError::AlreadyRunning { vm: plan.vm, pid });
    }
    dir.create(&plan)?;
    let mut process = None;
    match start(&plan, &dir, net, &mut process).await {
        Ok(vm) => Ok(vm),
        Err(error) => {
            if let Some(process) = process {
                process
                    .kill()
                    .await
                    .map_err(|e| VmError::system(format!("end QEMU of VM {}", plan.vm), e))?;
            }
            if let Err(e) = remove_runtime(&dir) {
                tracing::warn!(vm = %plan.vm, error = %e, "a failed launch has left something behind");
            }
            Err(error)
        }
    }
}

/// `started` is the process from the moment on that there is one.
async fn start(
    plan: &LaunchPlan,
    dir: &RuntimeDir,
    net: &Net,
    started: &mut Option<Process>,
) -> Result<Vm, VmError> {
    let mut nics = Vec::new();
    let mut taps = Vec::new();
    for (number, nic) in plan.nics.iter().enumerate() {
        let failed = |source| VmError::Net { vm: plan.vm, source };
        let bridge = net.bridge(&nic.bridge).await.map_err(failed)?;
        let spec =
            TapSpec { name: nic.tap.clone(), guest_mac: nic.mac, mtu: bridge.mtu(), owner: plan.user.uid };
        let (tap, descriptor) = net.create_tap(&spec).await.map_err(failed)?;
        net.attach(&tap, &bridge).await.map_err(failed)?;
        nics.push(VmNic::new(plan, number, tap));
        taps.push(descriptor);
    }
    let spawned = {
        let (plan, dir) = (plan.clone(), dir.clone());
        let blocking = tokio::task::spawn_blocking(move || open_and_spawn(&plan, &dir, taps));
        blocking.await.map_err(|e| VmError::system("start QEMU", io::Error::other(e)))??
    };
    let process = Process::watch(spawned.pid, spawned.pidfd, dir.log())
        .inspect_err(|_| process::end_child(spawned.pid))
        .map_err(|e| VmError::system(format!("watch QEMU of VM {}", plan.vm), e))?;
    *started = Some(process.clone());
    let explain = |error| explain(error, plan, &spawned.fdsets);
    let qmp = monitor::connect(plan.vm, &process, dir, START_LIMIT).await.map_err(explain)?;
    let status = match qmp.query_status().await {
        Ok(status) => status.status,
        Err(source) => return Err(explain(monitor::lost(plan.vm, source, &process, dir).await)),
    };
    let expected = if plan.is_incoming() { RunState::InMigrate } else { RunState::Prelaunch };
    if status != expected {
        let why = format!("QEMU is {status} after its start, and should be {expected}");
        return Err(VmError::InvalidPlan { vm: plan.vm, why });
    }
    Ok(Vm { plan: plan.clone(), dir: dir.clone(), process, qmp, nics, cgroup: spawned.cgroup })
}

struct Spawned {
    pid: u32,
    pidfd: OwnedFd,
    cgroup: CgroupState,
    /// The first fdset of each disk.
    fdsets: Vec<u32>,
}

fn open_and_spawn(plan: &LaunchPlan, dir: &RuntimeDir, taps: Vec<OwnedFd>) -> Result<Spawned, VmError> {
    let descriptors = Descriptors::open(plan, taps)?;
    let command_line = command_line::build(plan, dir, &descriptors)?;
    let arguments = command_line.to_arguments().map_err(|source| VmError::Qemu { vm: plan.vm, source })?;
    let log =
        dir.create_log().map_err(|e| VmError::system(format!("make the log {}", dir.log().display()), e))?;
    let (cgroup, procs) = cgroup::create(plan.cgroup_parent.as_deref(), plan.vm, plan.epoch);
    if let CgroupState::Shared { reason } = &cgroup {
        tracing::info!(vm = %plan.vm, reason, "the VM gets no cgroup of its own");
    }
    let spawn = Spawn {
        arguments: &arguments,
        descriptors: descriptors.into_all(),
        user: plan.user,
        preload: plan.preload.as_deref(),
        log: &log,
        cgroup: procs,
    };
    let (pid, pidfd) =
        spawn.start().map_err(|e| VmError::system(format!("start {}", plan.qemu.display()), e))?;
    Ok(Spawned { pid, pidfd, cgroup, fdsets: command_line.disks.iter().map(Disk::fdset).collect() })
}

/// QEMU's end in the words of the user: a lock that was not to be had names its disk.
fn explain(error: VmError, plan: &LaunchPlan, fdsets: &[u32]) -> VmError {
    let VmError::QemuExited { log, .. } = &error else { return error };
    let disk = fdset_of_refused_lock(log)
        .and_then(|fdset| fdsets.iter().rposition(|first| *first <= fdset))
        .and_then(|number| plan.disks.get(number));
    match disk {
        Some(disk) => VmError::DiskLocked { name: disk.name.to_string(), path: disk.path.clone() },
        None => error,
    }
}

/// Reads `Failed to get "write" lock; Is another process using the image [/dev/fdset/100]?`, with `shared` before the
/// lock's name where the other process would not share it.
fn fdset_of_refused_lock(log: &str) -> Option<u32> {
    let (_, refusal) = log.split_once("Failed to get ")?;
    let (_, number) = refusal.split_once("[/dev/fdset/")?;
    number.split_once(']')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_lock_names_its_fdset() {
        let log = "qemu-system-x86_64: -device {}: Failed to get \"write\" lock; \
                   Is another process using the image [/dev/fdset/116]?";
        assert_eq!(fdset_of_refused_lock(log), Some(116));
        assert_eq!(fdset_of_refused_lock(&log.replace("get ", "get shared ")), Some(116));
        for other in
            ["", "Failed to get \"", "Could not open [/dev/fdset/1]", "Failed to get \"x\" [/dev/fdset/"]
        {
            assert_eq!(fdset_of_refused_lock(other), None, "{other}");
        }
    }
}

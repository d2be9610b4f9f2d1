//! A VM's running QEMU, as the agent holds it.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use limosa_model::{Epoch, Mac, MigrationId, PowerState, VmId};
use limosa_net::{Announcement, IfName, Net, Schedule, Tap};
use limosa_qemu::Qmp;
use limosa_qemu::commands::run::RunState;

use crate::monitor::ADOPT_LIMIT;
use crate::{CgroupState, Exit, LaunchPlan, Process, RuntimeDir, VmError, memory, monitor};

/// A QEMU and the connection to its monitor. Dropping it disturbs nobody: QEMU runs on.
#[derive(Debug)]
pub struct Vm {
    pub(crate) plan: LaunchPlan,
    pub(crate) dir: RuntimeDir,
    pub(crate) process: Process,
    pub(crate) qmp: Qmp,
    pub(crate) nics: Vec<VmNic>,
    pub(crate) cgroup: CgroupState,
}

/// A NIC of a VM on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmNic {
    /// The host's end of it.
    pub tap: Tap,
    /// The bridge that it is attached to.
    pub bridge: IfName,
    /// The guest's MAC address.
    pub mac: Mac,
    /// The IP addresses that the guest is known to have on it.
    pub addresses: Vec<IpAddr>,
}

impl VmNic {
    pub(crate) fn new(plan: &LaunchPlan, number: usize, tap: Tap) -> Self {
        let nic = &plan.nics[number];
        let addresses = plan.spec.nics.get(number).map(|nic| nic.addresses.clone()).unwrap_or_default();
        Self { tap, bridge: nic.bridge.clone(), mac: nic.mac, addresses }
    }
}

impl Vm {
    /// Which VM.
    pub fn id(&self) -> VmId {
        self.plan.vm
    }

    /// The right by which it was started.
    pub fn epoch(&self) -> Epoch {
        self.plan.epoch
    }

    /// The migration that it was started to receive.
    pub fn migration(&self) -> Option<MigrationId> {
        self.plan.migration
    }

    /// What it was started from.
    pub fn plan(&self) -> &LaunchPlan {
        &self.plan
    }

    /// Where its files are.
    pub fn runtime_dir(&self) -> &RuntimeDir {
        &self.dir
    }

    /// QEMU's process; may be kept when the VM is dropped.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The number of QEMU's process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The monitor.
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// Its NICs, in the order of the spec. One whose tap somebody has removed is left out when a VM is adopted.
    pub fn nics(&self) -> &[VmNic] {
        &self.nics
    }

    /// Whether it has a cgroup of its own.
    pub fn cgroup(&self) -> &CgroupState {
        &self.cgroup
    }

    /// Connects to the monitor again, after the connection was lost.
    ///
    /// # Errors
    /// [`VmError::QemuExited`] if there is no QEMU any more, [`VmError::Unresponsive`] if it hangs.
    pub async fn reconnect(&mut self) -> Result<(), VmError> {
        self.qmp = monitor::connect(self.plan.vm, &self.process, &self.dir, ADOPT_LIMIT).await?;
        Ok(())
    }

    /// Waits until QEMU has ended.
    pub async fn exited(&self) -> Exit {
        self.process.exited().await
    }

    /// Ends QEMU by force, and waits until it is gone. May be repeated.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub async fn kill(&self) -> Result<Exit, VmError> {
        let killed = self.process.kill().await;
        killed.map_err(|e| VmError::system(format!("end QEMU of VM {}", self.plan.vm), e))
    }

    /// QEMU's state, in its own words.
    ///
    /// # Errors
    /// [`VmError::QemuExited`] if it has ended, [`VmError::Qemu`] if it does not answer.
    pub async fn run_state(&self) -> Result<RunState, VmError> {
        match self.qmp.query_status().await {
            Ok(status) => Ok(status.status),
            Err(source) => Err(monitor::lost(self.plan.vm, source, &self.process, &self.dir).await),
        }
    }

    /// Whether the guest runs. `Stopped` if it has powered off, or QEMU has ended.
    ///
    /// # Errors
    /// When QEMU lives and does not answer.
    pub async fn power_state(&self) -> Result<PowerState, VmError> {
        match self.run_state().await {
            Ok(state) => Ok(power_state(&state)),
            Err(VmError::QemuExited { .. }) => Ok(PowerState::Stopped),
            Err(e) => Err(e),
        }
    }

    /// The guest's memory, to be read, written and mapped.
    ///
    /// # Errors
    /// [`VmError::System`], as when QEMU has ended.
    pub fn ram_file(&self) -> Result<OwnedFd, VmError> {
        let found = memory::find(self.pid()).and_then(|memory| {
            // While the process that is held lives, its number is its own.
            if self.process.is_alive() { Ok(memory) } else { Err(io::ErrorKind::NotFound.into()) }
        });
        found.map_err(|e| VmError::system(format!("open the memory of VM {}", self.plan.vm), e))
    }

    /// Opens the ports of all NICs: the guest's traffic flows. Part of the downtime.
    ///
    /// # Errors
    /// [`VmError::Net`] for the first that could not be opened; the others are.
    pub async fn open_ports(&self, net: &Net) -> Result<(), VmError> {
        let mut result = Ok(());
        for nic in &self.nics {
            result = result.and(net.open_port(&nic.tap, nic.mac).await);
        }
        result.map_err(|source| VmError::Net { vm: self.plan.vm, source })
    }

    /// Closes the ports of all NICs: nothing of the guest leaves this host.
    ///
    /// # Errors
    /// [`VmError::Net`] for the first that could not be closed; the others are.
    pub async fn close_ports(&self, net: &Net) -> Result<(), VmError> {
        let mut result = Ok(());
        for nic in &self.nics {
            result = result.and(net.close_port(&nic.tap, nic.mac).await);
        }
        result.map_err(|source| VmError::Net { vm: self.plan.vm, source })
    }

    /// Tells the networks of all NICs that the guest is here. To be called after the handover, with the ports open.
    /// The announcements go on until they are dropped.
    ///
    /// # Errors
    /// [`VmError::Net`] when a bridge is gone or cannot be sent to.
    pub async fn announce(&self, net: &Net, schedule: Schedule) -> Result<Vec<Announcement>, VmError> {
        let failed = |source| VmError::Net { vm: self.plan.vm, source };
        let mut announcements = Vec::new();
        for nic in &self.nics {
            let bridge = net.bridge(&nic.bridge).await.map_err(failed)?;
            announcements
                .push(limosa_net::announce(&bridge, nic.mac, &nic.addresses, schedule).map_err(failed)?);
        }
        Ok(announcements)
    }
}

fn power_state(state: &RunState) -> PowerState {
    match state {
        RunState::Running => PowerState::Running,
        RunState::IoError => PowerState::IoError,
        RunState::InternalError | RunState::GuestPanicked => PowerState::Crashed,
        RunState::Suspended => PowerState::Suspended,
        RunState::Shutdown => PowerState::Stopped,
        // All others stand still, and so does what a later QEMU may invent: only `running` runs.
        _ => PowerState::Paused,
    }
}

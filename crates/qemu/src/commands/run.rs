//! Running, pausing and ending a VM.

use serde::Deserialize;

use crate::open_enum::open_enum;
use crate::{Error, Greeting, Identity, Qmp};

open_enum! {
    /// What QEMU is doing with the VM.
    pub enum RunState {
        /// It runs.
        Running = "running",
        /// We paused it.
        Paused = "paused",
        /// Started with its CPUs stopped, and never continued.
        Prelaunch = "prelaunch",
        /// Waits for, or receives, an incoming migration.
        InMigrate = "inmigrate",
        /// Stopped after an outgoing migration that has completed.
        PostMigrate = "postmigrate",
        /// Stopped to complete an outgoing migration.
        FinishMigrate = "finish-migrate",
        /// Paused because of a failing disk.
        IoError = "io-error",
        /// Cannot run on: KVM or a device failed.
        InternalError = "internal-error",
        /// Switched off, with QEMU kept.
        Shutdown = "shutdown",
        /// The guest's kernel has crashed.
        GuestPanicked = "guest-panicked",
        /// The guest sleeps (ACPI S3).
        Suspended = "suspended",
        /// Paused by its watchdog.
        Watchdog = "watchdog",
        /// Saves its state.
        SaveVm = "save-vm",
        /// Loads its state.
        RestoreVm = "restore-vm",
        /// Under COLO.
        Colo = "colo",
        /// Stopped by a debugger.
        Debug = "debug",
    }
}

/// The answer to `query-status`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct StatusInfo {
    /// Do the virtual CPUs run?
    pub running: bool,
    /// The state in QEMU's own words.
    pub status: RunState,
}

impl Qmp {
    /// `query-version`.
    pub async fn query_version(&self) -> Result<Greeting, Error> {
        self.query("query-version").await
    }

    /// `query-status`.
    pub async fn query_status(&self) -> Result<StatusInfo, Error> {
        self.query("query-status").await
    }

    /// The identity on this QEMU's command line, asked from QEMU itself; `None` if it was not started by Limosa.
    pub async fn query_identity(&self) -> Result<Option<Identity>, Error> {
        #[derive(Deserialize)]
        struct Chardev {
            label: String,
        }
        let chardevs: Vec<Chardev> = self.query("query-chardev").await?;
        Ok(chardevs.iter().find_map(|chardev| Identity::from_label(&chardev.label)))
    }

    /// Pauses the VM. When it returns, the CPUs stand still and the disks are drained.
    pub async fn stop(&self) -> Result<(), Error> {
        self.order("stop").await
    }

    /// Lets the VM run.
    pub async fn cont(&self) -> Result<(), Error> {
        self.order("cont").await
    }

    /// Ends QEMU at once. It answers before it ends: wait for the process, or for the loss of the connection.
    pub async fn quit(&self) -> Result<(), Error> {
        self.order("quit").await
    }

    /// Presses the power button; whether anything follows is up to the guest.
    pub async fn system_powerdown(&self) -> Result<(), Error> {
        self.order("system_powerdown").await
    }

    /// Presses the reset button.
    pub async fn system_reset(&self) -> Result<(), Error> {
        self.order("system_reset").await
    }
}

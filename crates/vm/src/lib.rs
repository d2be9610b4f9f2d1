//! One QEMU: its process, memory, disks, taps and cgroup; found again after a restart of the agent.
//!
//! A VM's QEMU belongs to nobody but the kernel. [`launch`] opens everything that needs rights, starts QEMU detached
//! and unprivileged with those descriptors, and closes its own copies; from then on the agent is only a client of
//! QEMU's monitor, and may die and come back ([`adopt_all`]) without the guest noticing.
//!
//! ```text
//!   LaunchPlan ──launch──▶ Vm ──drop, or the agent dies──▶ (QEMU runs on) ──adopt_all──▶ Vm
//!       │                   │                                                             │
//!       │                   └───────────────── kill, or QEMU ends ────────────────────────┤
//!       └── plan.json, written before QEMU starts              remove_runtime ◀───────────┘
//! ```
//!
//! The runtime directory of a VM is root's; QEMU's user owns only the `q` in it, where its sockets are, so that a
//! QEMU that a guest has taken over cannot rewrite what the agent will believe.
//!
//! Nothing here decides whether a VM may run: a QEMU is always started with its CPUs stopped and its NICs' ports
//! closed, and whoever holds the right to run continues it.

pub mod accelerator;
mod adopt;
mod cgroup;
mod command_line;
mod descriptors;
mod error;
pub mod host_check;
mod host_facts;
mod launch;
mod log;
mod memory;
mod monitor;
mod plan;
mod process;
mod runtime;
mod spawn;
mod vm;

pub use accelerator::accelerator;
pub use adopt::{Adopted, adopt_all};
pub use cgroup::CgroupState;
pub use error::VmError;
pub use host_check::{HostCheck, Verdict, check_host};
pub use host_facts::host_facts;
pub use launch::launch;
pub use plan::{BackingPlan, BootPlan, DiskPlan, KernelPlan, LaunchPlan, NicPlan, QemuUser, tap_name};
pub use process::{Exit, Process};
pub use runtime::{RuntimeDir, remove_runtime};
pub use vm::{Vm, VmNic};

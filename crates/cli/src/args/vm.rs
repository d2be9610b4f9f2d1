//! `limosa vm …`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use limosa_model::{ByteSize, Millis, Name};

/// What to do with VMs.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Make a VM with its disks
    Create(CreateArgs),
    /// List all VMs
    List,
    /// Show one VM
    Show {
        /// Its name or id
        vm: String,
    },
    /// Start a VM
    Start {
        /// Its name or id
        vm: String,
        /// The host to start it on; the one with the most room, where none is given
        #[arg(long, value_name = "HOST")]
        on: Option<String>,
        /// Whether to wait.
        #[command(flatten)]
        wait: Wait,
    },
    /// Ask the guest to power off, and end it by force after a time
    Stop {
        /// Its name or id
        vm: String,
        /// How long the guest has; the VM's own policy decides, where nothing is given
        #[arg(long, value_name = "TIME")]
        timeout: Option<Millis>,
        /// End it at once, as `vm kill` does
        #[arg(long, conflicts_with = "timeout")]
        force: bool,
        /// Whether to wait.
        #[command(flatten)]
        wait: Wait,
    },
    /// End a VM at once, as if its power were cut
    Kill {
        /// Its name or id
        vm: String,
        /// Whether to wait.
        #[command(flatten)]
        wait: Wait,
    },
    /// Reset the guest; it is not asked
    Reboot {
        /// Its name or id
        vm: String,
        /// Not used: a guest that is reset has no time
        #[arg(long, value_name = "TIME")]
        timeout: Option<Millis>,
        /// Whether to wait.
        #[command(flatten)]
        wait: Wait,
    },
    /// Stop a VM's CPUs
    Pause {
        /// Its name or id
        vm: String,
        /// Whether to wait.
        #[command(flatten)]
        wait: Wait,
    },
    /// Let a paused VM's CPUs go on
    Resume {
        /// Its name or id
        vm: String,
        /// Whether to wait.
        #[command(flatten)]
        wait: Wait,
    },
    /// Change a VM: at once where QEMU can, else at its next start
    Set(SetArgs),
    /// Remove a stopped VM with its disks
    Delete {
        /// Its name or id
        vm: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Whether to wait.
        #[command(flatten)]
        wait: Wait,
    },
    /// Attach to a VM's serial console, or make its screen reachable by VNC
    Console(ConsoleArgs),
    /// Decide where a VM is when its host is gone for good and no fact can ever come
    Resolve(ResolveArgs),
}

/// Whether to wait for a task.
#[derive(Debug, Clone, Copy, Args)]
pub struct Wait {
    /// Return as soon as the server has accepted it, and print the task
    #[arg(long)]
    pub no_wait: bool,
}

/// `limosa vm create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The spec, as TOML; `-` reads the standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Change a key of the spec, as in `cpus=4` or `disks.0.size="20GiB"`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Start it at once
    #[arg(long)]
    pub start: bool,
    /// The host to start it on
    #[arg(long, value_name = "HOST", requires = "start")]
    pub on: Option<String>,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: Wait,
}

/// `limosa vm set`
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Its name or id
    pub vm: String,
    /// Another name
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,
    /// Virtual CPUs
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<u16>,
    /// Memory, as in 4GiB
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// A NIC, as NETWORK or NETWORK,MAC; give all that the VM should have
    #[arg(long = "nic", value_name = "NETWORK[,MAC]", conflicts_with = "no_nics")]
    pub nics: Vec<String>,
    /// Take all NICs away
    #[arg(long)]
    pub no_nics: bool,
    /// Set a label
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Take a label away
    #[arg(long = "unlabel", value_name = "KEY")]
    pub unlabels: Vec<String>,
}

/// `limosa vm console`
#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// Its name or id
    pub vm: String,
    /// The screen instead of the serial console: VNC clients connect to the address that is printed
    #[arg(long)]
    pub vnc: bool,
    /// Where VNC clients connect
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0", requires = "vnc")]
    pub listen: std::net::SocketAddr,
}

/// `limosa vm resolve`
#[derive(Debug, Args)]
pub struct ResolveArgs {
    /// Its name or id
    pub vm: String,
    /// The host that is gone for good: it does not run the VM and never will again
    #[arg(long, value_name = "HOST")]
    pub host_lost: String,
    /// Do not ask: you are sure
    #[arg(long)]
    pub yes: bool,
}

//! The agent's configuration file.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use limosa_model::toml_spec::from_toml;
use limosa_model::{Capacity, Name};
use serde::Deserialize;

use crate::AgentError;

/// What an administrator says about a host. All but the addresses has a default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The host's name in the cluster.
    pub name: Name,
    /// Where the agent listens, on the management network.
    pub listen: SocketAddr,
    /// The host's address on the migration network. By default the management address.
    pub migration_address: Option<IpAddr>,
    /// The servers, by address. Written by `limosa host join`.
    #[serde(default)]
    pub servers: Vec<SocketAddr>,
    /// Where the agent keeps its identity and its journal.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Where the sockets of VMs and workers are. Short: a socket's path has at most 107 bytes.
    #[serde(default = "default_runtime_dir")]
    pub runtime_dir: PathBuf,
    /// The QEMU program.
    #[serde(default = "default_qemu")]
    pub qemu: PathBuf,
    /// The user and group that QEMU and workers run as, by number.
    #[serde(default = "default_vm_user")]
    pub vm_user: UserConfig,
    /// The program that is run as `PROGRAM worker`. By default the agent's own.
    pub program: Option<PathBuf>,
    /// What the host has for guests. By default its CPUs, and its memory less an eighth.
    pub capacity: Option<Capacity>,
    /// The cgroup under which VMs get their own.
    pub cgroup_parent: Option<PathBuf>,
}

/// An unprivileged user and its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserConfig {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

fn default_state_dir() -> PathBuf {
    "/var/lib/limosa/agent".into()
}

fn default_runtime_dir() -> PathBuf {
    "/run/limosa".into()
}

fn default_qemu() -> PathBuf {
    "/usr/bin/qemu-system-x86_64".into()
}

/// The number that Debian gives to nobody: no file belongs to it, and no one logs in as it.
fn default_vm_user() -> UserConfig {
    UserConfig { uid: 64_880, gid: 64_880 }
}

impl Config {
    /// Reads the configuration at `path`.
    pub fn read(path: &Path) -> Result<Self, AgentError> {
        let text = std::fs::read_to_string(path).map_err(|source| AgentError::Io {
            doing: "read the configuration",
            path: path.to_owned(),
            source,
        })?;
        from_toml(&text).map_err(|error| AgentError::Config { path: path.to_owned(), why: error.to_string() })
    }

    /// The host's address on the migration network.
    pub fn migration_address(&self) -> IpAddr {
        self.migration_address.unwrap_or(self.listen.ip())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_configuration_is_a_name_and_an_address() {
        let config: Config = from_toml("name = \"h1\"\nlisten = \"10.0.0.1:7601\"").unwrap();
        assert_eq!(config.migration_address(), config.listen.ip());
        assert_eq!(config.state_dir, Path::new("/var/lib/limosa/agent"));
    }

    #[test]
    fn a_typo_names_the_nearest_key() {
        let error =
            from_toml::<Config>("name = \"h1\"\nlisten = \"10.0.0.1:7601\"\nstatedir = \"/x\"").unwrap_err();
        assert!(error.message.contains("did you mean `state_dir`?"), "{error}");
    }
}

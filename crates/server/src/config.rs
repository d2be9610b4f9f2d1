//! The server's settings, as TOML. A misspelt key is an error that names the nearest one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use limosa_api::rest::SERVER_PORT;
use limosa_model::{Millis, toml_spec};
use serde::Deserialize;

use crate::ServerError;

/// The settings of one server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The address at which hosts and users reach it; its port too, where that differs from `listen`. Needed where
    /// `listen` names no address.
    pub advertise: Option<SocketAddr>,
    /// Where everything is kept that has to stay. One server at a time has it.
    pub state_dir: PathBuf,
    /// What the cluster is called. Fixed by `init`.
    pub cluster: String,
    /// How many migrations one host takes part in at once. More wait.
    pub migrations_per_host: u32,
    /// How often an agent is expected to report.
    pub report_interval_ms: Millis,
    /// How many reports may be missing until a host is shown as offline.
    pub missed_reports: u32,
    /// How often everything is looked at again, changed or not.
    pub reconcile_interval_ms: Millis,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), SERVER_PORT),
            advertise: None,
            state_dir: PathBuf::from("/var/lib/limosa/server"),
            cluster: "limosa".into(),
            migrations_per_host: 2,
            report_interval_ms: Millis::new(1_000),
            missed_reports: 5,
            reconcile_interval_ms: Millis::new(1_000),
        }
    }
}

impl Config {
    /// Reads the settings from a file.
    ///
    /// # Errors
    /// [`ServerError::File`] and [`ServerError::Config`].
    pub fn load(path: &Path) -> Result<Self, ServerError> {
        let text = std::fs::read_to_string(path).map_err(|source| ServerError::File {
            doing: "read",
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|why| ServerError::Config { path: path.to_owned(), why })
    }

    /// Reads the settings from TOML.
    ///
    /// # Errors
    /// What is wrong, with its line, and the nearest key where one was misspelt.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml_spec::from_toml(text).map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let spans = [
            ("report_interval_ms", self.report_interval_ms),
            ("reconcile_interval_ms", self.reconcile_interval_ms),
        ];
        for (key, span) in spans {
            if !(10..=60_000).contains(&span.get()) {
                return Err(format!("{key}: {span} is outside 10ms to 1m"));
            }
        }
        if !(1..=1_000).contains(&self.missed_reports) {
            return Err(format!("missed_reports: {} is outside 1 to 1000", self.missed_reports));
        }
        if !(1..=64).contains(&self.migrations_per_host) {
            return Err(format!("migrations_per_host: {} is outside 1 to 64", self.migrations_per_host));
        }
        if self.cluster.is_empty() || self.cluster.len() > 63 || self.cluster.chars().any(char::is_control) {
            return Err("cluster: a name of 1 to 63 plain characters is needed".into());
        }
        Ok(())
    }

    /// The address at which hosts and users reach the server.
    pub fn advertised(&self) -> SocketAddr {
        self.advertise.unwrap_or(self.listen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_in_a_key_names_the_nearest_one() {
        let error = Config::parse("state_dri = \"/x\"").unwrap_err();
        assert_eq!(error, "line 1: there is no key `state_dri` here; did you mean `state_dir`?");
    }

    #[test]
    fn nothing_said_means_the_defaults() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
        assert_eq!(Config::default().listen.port(), 7600);
    }

    #[test]
    fn limits_are_held() {
        assert!(Config::parse("migrations_per_host = 0").unwrap_err().starts_with("migrations_per_host"));
        assert!(Config::parse("reconcile_interval_ms = \"1ms\"").is_err());
    }
}

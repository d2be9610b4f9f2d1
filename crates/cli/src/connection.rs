//! Which server, with which token, trusted by which authority.
//!
//! In this order: the command line, `LIMOSA_SERVER`, `LIMOSA_TOKEN` and `LIMOSA_CA`, then the file that
//! `limosa login` writes. The authority is a certificate or its fingerprint; nothing is trusted at first sight.

use std::env;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use limosa_api::client::HttpClient;
use limosa_api::rest::SERVER_PORT;
use limosa_api::tls::{CaCertificate, CaFingerprint, Identity, client_config, client_config_pinned};
use limosa_model::toml_spec::from_toml;
use serde::{Deserialize, Serialize};

use crate::args::ConnectionArgs;
use crate::cluster::Cluster;
use crate::error::CliError;

/// Longest answer that is taken, in bytes: lists of a large cluster.
const ANSWER_LIMIT_BYTES: usize = 64 << 20;

/// What `~/.config/limosa/config.toml` says.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// The server, as HOST or HOST:PORT.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    /// The API token.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// The authority: the path of its certificate, or its fingerprint.
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
}

impl Settings {
    /// What is given on the command line or in the environment, and for the rest what the file says.
    fn find(given: &ConnectionArgs) -> Result<Self, CliError> {
        let file = match path() {
            Some(path) => Self::read(&path)?,
            None => Self::default(),
        };
        Ok(Self {
            server: given.server.clone().or(file.server),
            token: given.token.clone().or(file.token),
            ca: given.ca.clone().or(file.ca),
        })
    }

    fn read(path: &Path) -> Result<Self, CliError> {
        match fs::read_to_string(path) {
            Ok(text) => from_toml(&text).map_err(|error| {
                CliError::invalid(format!("{}: {error}", path.display()), "correct the file, or remove it")
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(CliError::File { doing: "read", path: path.to_owned(), source }),
        }
    }

    fn open(&self) -> Result<Cluster, CliError> {
        let missing = |what: &str, option: &str, variable: &str| {
            CliError::invalid(
                format!("{what} is not known"),
                format!("give `--{option}`, set {variable}, or remember it with `limosa login`"),
            )
        };
        let server =
            self.server.as_deref().ok_or_else(|| missing("the server", "server", "LIMOSA_SERVER"))?;
        let token = self.token.as_deref().ok_or_else(|| missing("the API token", "token", "LIMOSA_TOKEN"))?;
        let ca = self.ca.as_deref().ok_or_else(|| missing("the cluster's authority", "ca", "LIMOSA_CA"))?;
        let tls = match ca.parse::<CaFingerprint>() {
            Ok(fingerprint) => client_config_pinned(fingerprint)?,
            Err(_) => client_config(None, &CaCertificate::load(Path::new(ca))?, Identity::Server)?,
        };
        let http = HttpClient::new(with_port(server), tls).with_token(token.trim())?;
        Ok(Cluster::new(http.with_answer_limit(ANSWER_LIMIT_BYTES)))
    }
}

/// The server that the settings name. Nothing is sent yet.
///
/// # Errors
/// [`CliError::Invalid`] if something is not known, [`CliError::Tls`] or [`CliError::File`] if the authority cannot
/// be read.
pub fn open(given: &ConnectionArgs) -> Result<Cluster, CliError> {
    Settings::find(given)?.open()
}

/// Remembers the settings in force, once the server has answered under them.
///
/// # Errors
/// As [`open`], and whatever the server answers.
pub async fn login(given: &ConnectionArgs) -> Result<PathBuf, CliError> {
    let settings = Settings::find(given)?;
    settings.open()?.cluster().await?;
    let path = path().ok_or_else(|| {
        CliError::invalid("there is no home directory to remember them in", "set HOME or XDG_CONFIG_HOME")
    })?;
    let text = toml::to_string(&absolute(settings)?).expect("three texts are always TOML");
    write_private(&path, &text).map_err(|source| CliError::File {
        doing: "write",
        path: path.clone(),
        source,
    })?;
    Ok(path)
}

/// A path of a certificate is meant from here; from elsewhere it would be another one.
fn absolute(settings: Settings) -> Result<Settings, CliError> {
    let ca = match settings.ca {
        Some(ca) if ca.parse::<CaFingerprint>().is_err() => {
            let path = fs::canonicalize(&ca).map_err(|source| CliError::File {
                doing: "find",
                path: ca.into(),
                source,
            })?;
            Some(path.to_string_lossy().into_owned())
        }
        ca => ca,
    };
    Ok(Settings { ca, ..settings })
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn path() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")))?;
    Some(folder.join("limosa/config.toml"))
}

fn with_port(server: &str) -> String {
    let server = server.strip_prefix("https://").unwrap_or(server).trim_end_matches('/');
    let has_port = match server.rsplit_once(':') {
        Some((host, port)) => port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')),
        None => false,
    };
    if has_port {
        server.to_owned()
    } else if server.contains(':') && !server.starts_with('[') {
        format!("[{server}]:{SERVER_PORT}")
    } else {
        format!("{server}:{SERVER_PORT}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_a_port_is_meant_at_the_usual_one() {
        for (given, meant) in [
            ("10.0.0.1", "10.0.0.1:7600"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("https://limosa.example.org/", "limosa.example.org:7600"),
            ("fd00::1", "[fd00::1]:7600"),
            ("[fd00::1]", "[fd00::1]:7600"),
            ("[fd00::1]:80", "[fd00::1]:80"),
        ] {
            assert_eq!(with_port(given), meant);
        }
    }

    #[test]
    fn what_is_missing_is_named_with_the_ways_to_give_it() {
        let settings = Settings { server: Some("a".into()), ..Settings::default() };
        match settings.open().unwrap_err() {
            CliError::Invalid { what, remedy } => {
                assert_eq!(what, "the API token is not known");
                assert!(remedy.contains("LIMOSA_TOKEN"), "{remedy}");
            }
            error => panic!("{error}"),
        }
    }

    #[test]
    fn a_typo_in_the_settings_names_the_nearest_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, "sever = \"a\"").unwrap();
        let error = Settings::read(&path).err().unwrap();
        assert!(error.to_string().ends_with("did you mean `server`?"), "{error}");
        assert!(Settings::read(&folder.path().join("none")).unwrap() == Settings::default());
    }

    #[test]
    fn settings_are_written_for_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("limosa/config.toml");
        write_private(&path, "token = \"secret\"\n").unwrap();
        write_private(&path, "token = \"another\"\n").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Settings::read(&path).unwrap().token.as_deref() == Some("another"));
    }
}

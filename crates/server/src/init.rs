//! The state directory: what `init` makes, and what a start finds.
//!
//! ```text
//! STATE/                0700, locked by the server that runs on it
//!   store.db            everything that the cluster is
//!   ca.pem              the authority, its key included        0600
//!   server.pem          the server's certificate and key       0600
//!   admin.token         the administrator's token, for the CLI on this machine   0600
//!   lock
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use limosa_api::tls::{Ca, CaFingerprint, Credential, Identity};
use limosa_store::{Embedded, Store as _, Typed as _};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::records::{ClusterRecord, keys};
use crate::secret::Secret;
use crate::{Config, ServerError};

/// What a new cluster's first user needs. Shown once.
#[derive(Debug)]
pub struct Initialised {
    /// The administrator's token.
    pub admin_token: Secret,
    /// The file that has it too.
    pub admin_token_file: PathBuf,
    /// By what users and hosts know the cluster.
    pub ca_fingerprint: CaFingerprint,
}

/// Makes a cluster: its authority, its store, its administrator's token.
///
/// Interrupted, it can be done again: the cluster is there once the store says so, which is written last.
///
/// # Errors
/// [`ServerError::Exists`], [`ServerError::InUse`], and whatever fails on the way.
pub async fn init(config: &Config) -> Result<Initialised, ServerError> {
    let state = StateDir::take(&config.state_dir)?;
    let store = Embedded::open(state.file("store.db"))?;
    if store.get(keys::CLUSTER).await?.is_some() {
        return Err(ServerError::Exists { path: state.path });
    }
    let ca = Ca::create(&config.cluster)?;
    ca.store(&state.file("ca.pem"))?;
    let admin_token = Secret::new();
    let admin_token_file = state.file("admin.token");
    write_secret(&admin_token_file, &admin_token)?;
    let cluster = ClusterRecord {
        name: config.cluster.clone(),
        incarnation: store.incarnation().await?,
        restoring: false,
        admin_token: admin_token.digest(),
    };
    store.put_json(keys::CLUSTER, &cluster).await?;
    Ok(Initialised { admin_token, admin_token_file, ca_fingerprint: ca.certificate().fingerprint() })
}

/// The state directory, held by this process.
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the directory if there is none, and locks it.
    pub(crate) fn take(path: &Path) -> Result<Self, ServerError> {
        let failed = |doing| move |source| ServerError::File { doing, path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make"))?;
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(failed("protect"))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(failed("lock"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(Errno::WOULDBLOCK) => Err(ServerError::InUse { path: path.to_owned() }),
            Err(error) => Err(failed("lock")(error.into())),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens what [`init`] made.
    pub(crate) async fn open(&self) -> Result<(Embedded, Ca, ClusterRecord), ServerError> {
        let missing = || ServerError::NotInitialised { path: self.path.clone() };
        if !self.file("ca.pem").exists() {
            return Err(missing());
        }
        let store = Embedded::open(self.file("store.db"))?;
        let cluster = store.get_json(keys::CLUSTER).await?.ok_or_else(missing)?.value;
        Ok((store, Ca::load(&self.file("ca.pem"))?, cluster))
    }

    /// A certificate for the addresses that the settings name. Made anew at each start, so that they can change.
    pub(crate) fn credential(&self, ca: &Ca, config: &Config) -> Result<Credential, ServerError> {
        let mut addresses: Vec<IpAddr> = vec![config.advertised().ip(), config.listen.ip()];
        addresses.extend([IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)]);
        addresses.retain(|address| !address.is_unspecified());
        addresses.sort();
        addresses.dedup();
        let credential = ca.issue(Identity::Server, &addresses)?;
        credential.store(&self.file("server.pem"))?;
        Ok(credential)
    }
}

fn write_secret(path: &Path, secret: &Secret) -> Result<(), ServerError> {
    let failed = |source| ServerError::File { doing: "write", path: path.to_owned(), source };
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(format!("{}\n", secret.reveal()).as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)
}

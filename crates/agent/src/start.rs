//! Starting an agent.

use std::fs::File;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use limosa_api::client::ServerClient;
use limosa_api::http::{Limits, serve};
use limosa_api::tls::{
    CaCertificate, ClientAuth, Credential, Identity, TlsError, client_config, server_config,
};
use limosa_model::{BootId, HostId};
use limosa_net::Net;
use limosa_vm::host_facts;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::net::TcpListener;

use crate::agent::{Agent, Parts};
use crate::config::Config;
use crate::ledger::Ledger;
use crate::{AgentError, http, recovery, report};

/// The file of the host's key and certificate in the state directory. Written by `limosa host join`.
pub const CREDENTIAL: &str = "host.pem";

/// The file of the cluster's CA certificate in the state directory. Written by `limosa host join`.
pub const CA: &str = "ca.pem";

fn io<'p>(doing: &'static str, path: &'p Path) -> impl FnOnce(std::io::Error) -> AgentError + 'p {
    move |source| AgentError::Io { doing, path: path.to_owned(), source }
}

/// Makes a folder that exists afterwards with this mode.
fn folder(path: &Path, mode: u32) -> Result<(), AgentError> {
    std::fs::create_dir_all(path).map_err(io("make the folder", path))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(io("set the mode of", path))
}

/// Keeps a second agent from the same state.
fn lock_state(state_dir: &Path) -> Result<File, AgentError> {
    let path = state_dir.join("lock");
    let file = File::options().create(true).append(true).open(&path).map_err(io("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(AgentError::Locked { path: state_dir.to_owned() }),
        Err(error) => Err(io("lock", &path)(error.into())),
    }
}

fn identity(state_dir: &Path) -> Result<(Credential, CaCertificate, HostId), AgentError> {
    for name in [CREDENTIAL, CA] {
        let path = state_dir.join(name);
        if !path.exists() {
            return Err(AgentError::NotJoined { path });
        }
    }
    let unusable = |why: String| AgentError::Identity { path: state_dir.to_owned(), why };
    let credential = Credential::load(&state_dir.join(CREDENTIAL)).map_err(|e| unusable(e.to_string()))?;
    let ca = CaCertificate::load(&state_dir.join(CA)).map_err(|e| unusable(e.to_string()))?;
    match credential.identity() {
        Identity::Host(host) => Ok((credential, ca, host)),
        other @ Identity::Server => {
            Err(unusable(format!("the certificate is not that of a host, but {other:?}")))
        }
    }
}

/// Everything that an agent needs before it looks at its VMs. The lock is held for as long as it lives.
pub(crate) async fn prepare(config: Config) -> Result<(Arc<Agent>, File), AgentError> {
    folder(&config.state_dir, 0o700)?;
    let lock = lock_state(&config.state_dir)?;
    let (credential, ca, host) = identity(&config.state_dir)?;
    folder(&config.runtime_dir, 0o711)?;
    folder(&config.runtime_dir.join("vms"), 0o711)?;
    folder(&config.runtime_dir.join("migrations"), 0o711)?;
    let ledger = Ledger::open(&config.state_dir)?;
    let boot_path = Path::new("/proc/sys/kernel/random/boot_id");
    let boot = std::fs::read_to_string(boot_path).map_err(io("read", boot_path))?;
    let mut facts = host_facts(&config.qemu, env!("CARGO_PKG_VERSION")).await?;
    if let Some(capacity) = config.capacity {
        facts.capacity = capacity;
    }
    let tls = client_config(Some(&credential), &ca, Identity::Server).map_err(unusable(&config))?;
    let servers = config.servers.iter().map(|a| ServerClient::new(a.to_string(), tls.clone())).collect();
    let agent = Agent::new(Parts {
        host,
        boot: BootId(boot.trim().to_owned()),
        facts,
        net: Net::connect()?,
        ledger,
        credential,
        ca,
        servers,
        config,
    });
    Ok((Arc::new(agent), lock))
}

fn unusable(config: &Config) -> impl FnOnce(TlsError) -> AgentError + use<> {
    let path = config.state_dir.clone();
    move |error| AgentError::Identity { path, why: error.to_string() }
}

/// Runs an agent until `shutdown` completes. VMs and workers go on when it returns.
///
/// # Errors
/// [`AgentError`] when it cannot start; each names what is in the way and the remedy.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
    let (agent, _lock) = prepare(config).await?;
    let tls =
        server_config(&agent.credential, &agent.ca, ClientAuth::Required).map_err(unusable(&agent.config))?;
    let address = agent.config.listen;
    let listener =
        TcpListener::bind(address).await.map_err(|source| AgentError::Listen { address, source })?;
    tracing::info!(host = %agent.host, journal = %agent.ledger.id(), "the agent starts");
    recovery::recover(&agent).await?;
    let reports = tokio::spawn(report::keep_reporting(agent.clone()));
    serve(listener, tls, http::router(agent), Limits::default(), shutdown).await;
    reports.abort();
    Ok(())
}

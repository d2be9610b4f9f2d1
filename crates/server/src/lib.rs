//! The server: the REST API for users, the word of command for agents, and the reconcilers between the two.
//!
//! ```text
//!  users ──REST, token──▶ http ──┐                                   ┌──▶ orders ──mutual TLS──▶ agents
//!                                ├─▶ tx ─▶ store ─▶ snapshot ─▶ reconcile                           │
//!  agents ─reports, facts▶ hear ─┘        (durable)                  └──▶ tx (rights, tasks)        │
//!     ▲                                                                                             │
//!     └─────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! **Architecture Invariant:** a right to run a VM changes in one transaction with what it follows from, by the pure
//! cores of `limosa_migration::custody`, and is durable before any order leaves. **Architecture Invariant:** nothing
//! is concluded from silence: a host that does not report is shown as offline, its VMs stay where they are.
//!
//! Killed at any time, a server goes on where the store says that things are. It holds nothing else that decides.

mod config;
mod error;
mod hear;
mod http;
mod init;
mod join;
mod live;
mod orders;
mod predict;
mod prepare;
mod reconcile;
mod records;
mod refused;
mod restore;
mod secret;
mod server;
mod snapshot;
mod tasks;
mod tx;
mod views;
mod whereabouts;

use std::net::SocketAddr;
use std::sync::Arc;

use limosa_api::http::{Limits, serve};
use limosa_api::tls::{ClientAuth, server_config};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub use config::Config;
pub use error::ServerError;
pub use init::{Initialised, init};
pub use secret::Secret;

use init::StateDir;
use server::Server;

/// The API's description (OpenAPI 3.1), as `GET /v1/openapi.json` answers it.
pub fn openapi() -> serde_json::Value {
    http::openapi::document()
}

/// A server at work.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    shutdown: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops it: requests under way end, orders under way are dropped and given again after the next start.
    pub async fn stop(self) {
        let _ = self.shutdown.send(());
        if let Err(error) = self.serving.await {
            tracing::error!(%error, "the server did not end well");
        }
    }
}

/// Starts a server on the cluster that [`init`] made.
///
/// # Errors
/// [`ServerError::NotInitialised`], [`ServerError::InUse`], [`ServerError::Listen`], and those of store and TLS.
pub async fn start(config: Config) -> Result<Running, ServerError> {
    let state = StateDir::take(&config.state_dir)?;
    let (store, ca, cluster) = state.open().await?;
    let credential = state.credential(&ca, &config)?;
    let listening =
        TcpListener::bind(config.listen).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
    let (address, listener) =
        listening.map_err(|source| ServerError::Listen { address: config.listen, source })?;
    let server = Arc::new(Server::new(config, cluster, ca, credential, store).await?);
    restore::note(&server).await?;
    let tls = server_config(server.credential(), server.ca.certificate(), ClientAuth::Optional)?;
    let (shutdown, asked) = oneshot::channel();
    let serving = tokio::spawn(async move {
        let reconciling = tokio::spawn(reconcile::run(server.clone()));
        let asked = {
            let server = server.clone();
            async move {
                // An error says that nobody can ask any more: the same as having asked.
                let _ = asked.await;
                server.close().await;
            }
        };
        serve(listener, tls, http::router(server.clone()), Limits::default(), asked).await;
        if let Err(error) = reconciling.await {
            tracing::error!(%error, "the reconcilers did not end well");
        }
        drop(server);
        drop(state);
    });
    Ok(Running { address, shutdown, serving })
}

/// Runs a server until `shutdown` completes.
///
/// # Errors
/// As [`start`].
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
    let running = start(config).await?;
    tracing::info!(address = %running.address(), "the server listens");
    shutdown.await;
    running.stop().await;
    Ok(())
}

//! The calling side: typed calls over connections that stay open.
//!
//! [`AgentClient`] calls one agent, [`ServerClient`] is what an agent has of its server; both are typed views of an
//! [`HttpClient`]. Every call has a limit in time. [`CallError::Refused`] is the peer's word; with any other error
//! it is unknown whether the request had its effect, and it may be repeated.

mod connection;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use limosa_model::{Failure, FailureKind, MigrationId, VmId};
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};

pub use connection::HttpClient;

use crate::Problem;
use crate::agent::{
    ActOnVm, CheckOrder, CheckReport, DeleteDisks, DisksMade, FactAnswer, FactReport, HostReport, MakeDisks,
    MigrationOrder, MigrationStatus, Order, ReportAnswer, Signal, StartVm, VmStatus,
};
use crate::http::UpgradedStream;

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody answered, or not in time, or it was somebody else.
    #[error("{address} does not answer: {}", chain(source.as_ref()))]
    Unreachable {
        /// Who was called.
        address: String,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The peer said no.
    #[error(transparent)]
    Refused(Box<Problem>),
    /// The peer does not speak as it should.
    #[error("{address} cannot be understood: {why}")]
    Protocol {
        /// Who was called.
        address: String,
        /// What is wrong.
        why: String,
    },
}

/// The error with its causes, each told once. (HTTP's and TLS's errors keep theirs apart.)
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let what = error.to_string();
        match error {
            CallError::Unreachable { address, .. } => Self::new(
                FailureKind::Peer,
                what,
                format!("check that Limosa runs at {address} and that it can be reached from here"),
            ),
            CallError::Refused(problem) => (*problem).into(),
            CallError::Protocol { .. } => {
                Self::new(FailureKind::Peer, what, "check that both ends run the same version of Limosa")
            }
        }
    }
}

/// Which console of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleKind {
    /// The first serial port.
    Serial,
    /// The screen, as VNC.
    Vnc,
}

impl ConsoleKind {
    /// The word in paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Serial => "serial",
            Self::Vnc => "vnc",
        }
    }
}

/// What `GET /v1/vms/VM/console/KIND` is upgraded to: the console's bytes, as they are.
pub const CONSOLE_PROTOCOL: &str = "limosa-console";

const QUICK: Duration = Duration::from_secs(5);
const STARTS_QEMU: Duration = Duration::from_secs(60);
const COPIES_DISKS: Duration = Duration::from_secs(60 * 60);

/// Nothing, as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Empty {}

/// Calls one agent: as the server, or as another agent.
#[derive(Debug)]
pub struct AgentClient {
    http: HttpClient,
}

impl AgentClient {
    /// A client for the agent at `address`; `tls` fixes whose it must be.
    pub fn new(address: SocketAddr, tls: Arc<ClientConfig>) -> Self {
        Self { http: HttpClient::new(address.to_string(), tls) }
    }

    /// `GET /v1/host`.
    ///
    /// # Errors
    /// [`CallError`], as with every call.
    pub async fn host(&self) -> Result<HostReport, CallError> {
        self.http.call(Method::GET, "/v1/host", None::<&()>, QUICK).await
    }

    /// `PUT /v1/vms/VM`: run it.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn start_vm(&self, order: &Order<StartVm>) -> Result<VmStatus, CallError> {
        let path = format!("/v1/vms/{}", order.order.target.vm);
        self.http.call(Method::PUT, &path, Some(order), STARTS_QEMU).await
    }

    /// `PUT /v1/vms/VM/disks`: make those that do not exist.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn make_disks(&self, order: &Order<MakeDisks>) -> Result<DisksMade, CallError> {
        let path = format!("/v1/vms/{}/disks", order.order.target.vm);
        self.http.call(Method::PUT, &path, Some(order), COPIES_DISKS).await
    }

    /// `POST /v1/vms/VM/delete-disks`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn delete_disks(&self, order: &Order<DeleteDisks>) -> Result<(), CallError> {
        let path = format!("/v1/vms/{}/delete-disks", order.order.target.vm);
        self.http.call(Method::POST, &path, Some(order), STARTS_QEMU).await.map(|Empty {}| ())
    }

    /// `POST /v1/vms/VM/actions`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn act(&self, vm: VmId, order: &Order<ActOnVm>) -> Result<VmStatus, CallError> {
        self.http.call(Method::POST, &format!("/v1/vms/{vm}/actions"), Some(order), STARTS_QEMU).await
    }

    /// `GET /v1/vms/VM/console/KIND`, upgraded to the console's bytes.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn console(&self, vm: VmId, kind: ConsoleKind) -> Result<UpgradedStream, CallError> {
        let path = format!("/v1/vms/{vm}/console/{}", kind.name());
        self.http.upgrade(&path, CONSOLE_PROTOCOL, QUICK).await
    }

    /// `PUT /v1/migrations/M`: take part.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn put_migration(&self, order: &Order<MigrationOrder>) -> Result<MigrationStatus, CallError> {
        let path = format!("/v1/migrations/{}", order.order.ticket.migration);
        self.http.call(Method::PUT, &path, Some(order), STARTS_QEMU).await
    }

    /// `GET /v1/migrations/M`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn migration(&self, migration: MigrationId) -> Result<MigrationStatus, CallError> {
        self.http.call(Method::GET, &format!("/v1/migrations/{migration}"), None::<&()>, QUICK).await
    }

    /// `DELETE /v1/migrations/M`: forget it. Answered with an empty object.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn delete_migration(&self, migration: MigrationId) -> Result<(), CallError> {
        let path = format!("/v1/migrations/{migration}");
        self.http.call(Method::DELETE, &path, None::<&()>, QUICK).await.map(|Empty {}| ())
    }

    /// `POST /v1/migrations/M/signals`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn signal(
        &self,
        migration: MigrationId,
        signal: &Signal,
    ) -> Result<MigrationStatus, CallError> {
        let path = format!("/v1/migrations/{migration}/signals");
        self.http.call(Method::POST, &path, Some(signal), QUICK).await
    }

    /// `POST /v1/migrations/M/check`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn check(&self, migration: MigrationId, order: &CheckOrder) -> Result<CheckReport, CallError> {
        let path = format!("/v1/migrations/{migration}/check");
        self.http.call(Method::POST, &path, Some(order), STARTS_QEMU).await
    }
}

/// Calls the server, as an agent.
#[derive(Debug)]
pub struct ServerClient {
    http: HttpClient,
}

impl ServerClient {
    /// A client for the server at `HOST:PORT`.
    pub fn new(address: impl Into<String>, tls: Arc<ClientConfig>) -> Self {
        Self { http: HttpClient::new(address, tls) }
    }

    /// `POST /agent/v1/reports`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn report(&self, report: &HostReport) -> Result<ReportAnswer, CallError> {
        self.http.call(Method::POST, "/agent/v1/reports", Some(report), QUICK).await
    }

    /// `POST /agent/v1/facts`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn fact(&self, report: &FactReport) -> Result<FactAnswer, CallError> {
        self.http.call(Method::POST, "/agent/v1/facts", Some(report), QUICK).await
    }
}

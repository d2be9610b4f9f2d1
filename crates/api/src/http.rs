//! The listening side: HTTP/2 and HTTP/1.1 over TLS, with a limit on everything that a peer decides.
//!
//! A peer must finish its handshake, its headers and its body within [`Limits`]; a body is read whole before a
//! handler runs. Who shows no certificate shares connections and memory for bodies with others like it alone, so
//! that strangers cannot crowd out agents. A peer that breaks the rules loses its connection or gets a [`Problem`]; nobody else notices.
//!
//! Handlers find out who calls by `Extension<Caller>`. [`Json`] reads bodies, and [`upgrade`] turns a request into
//! a stream of bytes (consoles).

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::header::{CONNECTION, CONTENT_LENGTH, UPGRADE};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use futures_util::StreamExt as _;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use limosa_model::FailureKind;
use rustls::ServerConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::Problem;
use crate::agent::BODY_LIMIT_BYTES;
use crate::socket;
use crate::tls::{Identity, peer_identity};

/// Who sends a request: an extension of every one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Whom the client's certificate vouches for. `None` for users.
    pub identity: Option<Identity>,
    /// From where.
    pub address: SocketAddr,
}

/// What peers may take of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long the headers of a request may take, and how long an HTTP/1.1 connection may idle.
    pub headers: Duration,
    /// How long the body of a request may take.
    pub body: Duration,
    /// How long requests under way may take once the listener shuts down.
    pub drain: Duration,
    /// The longest body, in bytes.
    pub body_bytes: usize,
    /// How many bytes of bodies are held at once: so many from callers with a certificate, and so many from those
    /// without. What comes on top is refused.
    pub all_bodies_bytes: usize,
    /// How many handshakes are under way at once. More wait.
    pub handshakes: usize,
    /// How many connections may be open without a certificate. More are closed.
    pub anonymous: usize,
    /// How many connections may be open with a certificate of the cluster. More are closed.
    pub identified: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            headers: Duration::from_secs(10),
            body: Duration::from_secs(10),
            drain: Duration::from_secs(5),
            body_bytes: BODY_LIMIT_BYTES,
            all_bodies_bytes: 64 * BODY_LIMIT_BYTES,
            handshakes: 64,
            anonymous: 256,
            identified: 1024,
        }
    }
}

/// Serves `router` until `shutdown` completes, then lets requests under way end. A connection that fails is logged
/// and dropped.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let handshakes = Arc::new(Semaphore::new(limits.handshakes));
    let (close, closing) = watch::channel(false);
    let shared = Arc::new(Shared {
        acceptor: TlsAcceptor::from(tls),
        router,
        limits,
        anonymous: Share::new(limits.anonymous, limits.all_bodies_bytes),
        identified: Share::new(limits.identified, limits.all_bodies_bytes),
        closing,
    });
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &handshakes) => accepted,
            Some(_) = connections.join_next() => continue,
            () = &mut shutdown => break,
        };
        let (stream, address, handshake) = accepted;
        connections.spawn(shared.clone().connection(stream, address, handshake));
    }
    drop(listener);
    close.send_replace(true);
    let drained = timeout(limits.drain, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::debug!(open = connections.len(), "connections outlast the shutdown and are closed");
    }
}

async fn accept(
    listener: &TcpListener,
    handshakes: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let permit = handshakes.clone().acquire_owned().await.expect("nobody closes it");
    loop {
        match listener.accept().await {
            Ok((stream, address)) => return (stream, address, permit),
            Err(error) => {
                // Out of descriptors, most likely: some come back as connections end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// What one class of callers may take together.
struct Share {
    connections: Arc<Semaphore>,
    body_bytes: Arc<Semaphore>,
}

impl Share {
    fn new(connections: usize, body_bytes: usize) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(connections)),
            body_bytes: Arc::new(Semaphore::new(body_bytes)),
        }
    }
}

struct Shared {
    acceptor: TlsAcceptor,
    router: Router,
    limits: Limits,
    anonymous: Share,
    identified: Share,
    closing: watch::Receiver<bool>,
}

impl Shared {
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        handshake: OwnedSemaphorePermit,
    ) {
        let handshaken = async {
            socket::tune(&stream)?;
            self.acceptor.accept(stream).await
        };
        let stream = match timeout(self.limits.handshake, handshaken).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%address, %error, "a handshake failed"),
            Err(_) => return tracing::debug!(%address, "a handshake took too long"),
        };
        drop(handshake);
        let identity = stream.get_ref().1.peer_certificates().and_then(peer_identity);
        let Ok(_slot) = self.share(identity).connections.clone().try_acquire_owned() else {
            return tracing::warn!(%address, ?identity, "too many connections: one more is closed");
        };

        let caller = Caller { identity, address };
        let service = hyper::service::service_fn(|request| {
            let shared = self.clone();
            async move { Ok::<_, Infallible>(shared.answer(request, caller).await) }
        });
        let builder = self.builder();
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let mut closing = self.closing.clone();
        let closing = async {
            let _ = closing.wait_for(|closing| *closing).await;
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = closing => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%address, %error, "a connection broke");
        }
    }

    fn share(&self, identity: Option<Identity>) -> &Share {
        if identity.is_some() { &self.identified } else { &self.anonymous }
    }

    fn builder(&self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.headers)
            .max_buf_size(64 * 1024);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .max_concurrent_streams(64)
            .max_header_list_size(16 * 1024);
        builder
    }

    async fn answer(&self, request: hyper::Request<Incoming>, caller: Caller) -> Response<Body> {
        let (mut parts, body) = request.into_parts();
        let stated = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let body = if stated.is_some_and(|length: usize| length > self.limits.body_bytes) {
            Err(too_long(self.limits.body_bytes))
        } else {
            let memory = &self.share(caller.identity).body_bytes;
            match timeout(self.limits.body, whole(body, self.limits.body_bytes, memory)).await {
                Ok(read) => read,
                Err(_) => Err(Problem::new(
                    FailureKind::Timeout,
                    "the body of the request did not arrive in time",
                    "send it faster",
                )
                .with_status(StatusCode::REQUEST_TIMEOUT)),
            }
        };
        match body {
            Err(problem) => problem.into_response(),
            // The memory counts as taken until the handler is through with it.
            Ok((body, _memory)) => {
                parts.extensions.insert(caller);
                let request = Request::from_parts(parts, Body::from(body));
                match self.router.clone().oneshot(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                }
            }
        }
    }
}

/// A body with the memory that it takes.
async fn whole(
    body: Incoming,
    limit_bytes: usize,
    memory: &Arc<Semaphore>,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Problem> {
    let mut pieces = Body::new(body).into_data_stream();
    let mut read = Vec::new();
    let mut held: Option<OwnedSemaphorePermit> = None;
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| {
            let why = format!("the body of the request broke off: {error}");
            Problem::new(FailureKind::Invalid, why, "send it again")
        })?;
        if read.len() + piece.len() > limit_bytes {
            return Err(too_long(limit_bytes));
        }
        let more =
            u32::try_from(piece.len()).ok().and_then(|n| memory.clone().try_acquire_many_owned(n).ok());
        let more = more.ok_or_else(|| {
            Problem::new(FailureKind::Resource, "too many requests are being read at once", "try again later")
        })?;
        match &mut held {
            Some(held) => held.merge(more),
            None => held = Some(more),
        }
        read.extend_from_slice(&piece);
    }
    Ok((read.into(), held))
}

fn too_long(limit_bytes: usize) -> Problem {
    Problem::new(
        FailureKind::Invalid,
        format!("the body of the request is longer than {limit_bytes} bytes"),
        "send less at once",
    )
    .with_status(StatusCode::PAYLOAD_TOO_LARGE)
}

/// A JSON body, read with a [`Problem`] where it is not what it should be, and answered as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let invalid = |why: String| {
            Problem::new(
                FailureKind::Invalid,
                format!("the body of the request is not what it should be: {why}"),
                "compare it with the API's description",
            )
        };
        let body = Bytes::from_request(request, state).await.map_err(|error| invalid(error.to_string()))?;
        serde_json::from_slice(&body).map(Self).map_err(|error| invalid(error.to_string()))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response<Body> {
        axum::Json(self.0).into_response()
    }
}

/// The bytes of a connection that was upgraded.
pub type UpgradedStream = TokioIo<Upgraded>;

/// Turns a request into a stream of bytes: the answer to give, and the stream that there is once it was sent.
///
/// # Errors
/// `invalid` (426) if the request does not ask for this protocol; it must come by HTTP/1.1.
pub fn upgrade(
    request: &mut Request,
    protocol: &'static str,
) -> Result<(Response<Body>, impl Future<Output = io::Result<UpgradedStream>> + use<>), Problem> {
    let asked = request.headers().get(UPGRADE).and_then(|name| name.to_str().ok());
    if !asked.is_some_and(|name| name.eq_ignore_ascii_case(protocol)) {
        return Err(Problem::new(
            FailureKind::Invalid,
            format!("this address speaks {protocol} alone"),
            format!("ask for it over HTTP/1.1 with `Connection: upgrade` and `Upgrade: {protocol}`"),
        )
        .with_status(StatusCode::UPGRADE_REQUIRED));
    }
    let upgraded = hyper::upgrade::on(request);
    let answer = (StatusCode::SWITCHING_PROTOCOLS, [(CONNECTION, "upgrade"), (UPGRADE, protocol)]);
    let stream = async { upgraded.await.map(TokioIo::new).map_err(io::Error::other) };
    Ok((answer.into_response(), stream))
}

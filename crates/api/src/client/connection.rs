//! One HTTP/2 connection to one peer, kept open and made anew when it has ended.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::CallError;
use crate::Problem;
use crate::agent::BODY_LIMIT_BYTES;
use crate::http::UpgradedStream;
use crate::problem;
use crate::socket;

type Sender = http2::SendRequest<Body>;

/// How often an open connection is asked for a sign of life, and how long that may take.
const PROBE: Duration = Duration::from_secs(5);

/// Calls one peer, whose identity the TLS settings fix. Cheap to call when warm: one round trip.
///
/// A connection that has ended is replaced at the next call. A request is sent a second time only if it is certain
/// that not a byte of it went out the first time.
pub struct HttpClient {
    address: String,
    tls: Arc<ClientConfig>,
    authorization: Option<HeaderValue>,
    answer_limit_bytes: usize,
    sender: Mutex<Option<Sender>>,
}

impl HttpClient {
    /// A client for `HOST:PORT`. Nothing is sent yet.
    pub fn new(address: impl Into<String>, tls: Arc<ClientConfig>) -> Self {
        Self {
            address: address.into(),
            tls,
            authorization: None,
            answer_limit_bytes: BODY_LIMIT_BYTES,
            sender: Mutex::new(None),
        }
    }

    /// The same client with a user's token, sent with every request.
    ///
    /// # Errors
    /// [`CallError::Protocol`] if the token has characters that cannot be sent.
    pub fn with_token(mut self, token: &str) -> Result<Self, CallError> {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| self.protocol("the token has characters that no token has"))?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(self)
    }

    /// The same client, taking answers of at most so many bytes. By default [`BODY_LIMIT_BYTES`].
    pub fn with_answer_limit(mut self, bytes: usize) -> Self {
        self.answer_limit_bytes = bytes;
        self
    }

    /// Where it calls.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// One request with a JSON body and its JSON answer, within `limit`. An empty answer is read as `null`.
    ///
    /// # Errors
    /// [`CallError`]. Unless it is `Refused`, the request may have had its effect.
    pub async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        limit: Duration,
    ) -> Result<A, CallError> {
        let request = self.request(method, path, body)?;
        let answer = async {
            let response = self.send(request).await?;
            self.read(response).await
        };
        let body = self.within(limit, answer).await?;
        let body = if body.is_empty() { b"null" } else { body.as_ref() };
        serde_json::from_slice(body)
            .map_err(|error| self.protocol(&format!("its answer is not as expected: {error}")))
    }

    /// One request whose answer has no end: its pieces as they come. The limit is for the first one's headers.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn stream(
        &self,
        path: &str,
        limit: Duration,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + Unpin + use<>, CallError> {
        let request = self.request(Method::GET, path, None::<&()>)?;
        let response = self.within(limit, self.send(request)).await?;
        if !response.status().is_success() {
            return Err(self.within(limit, self.refusal(response)).await?);
        }
        Ok(Body::new(response.into_body()).into_data_stream().map_err(io::Error::other))
    }

    /// Turns a request into a stream of bytes, on a connection of its own.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn upgrade(
        &self,
        path: &str,
        protocol: &'static str,
        limit: Duration,
    ) -> Result<UpgradedStream, CallError> {
        self.within(limit, async {
            let mut tls = ClientConfig::clone(&self.tls);
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            let stream = self.dial(Arc::new(tls)).await?;
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.unreachable(error))?;
            tokio::spawn(connection.with_upgrades());
            let mut request = self.request(Method::GET, path, None::<&()>)?;
            *request.uri_mut() = path.parse().map_err(|_| self.protocol("the path is malformed"))?;
            let headers = request.headers_mut();
            headers.insert(HOST, HeaderValue::from_static(AUTHORITY));
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static(protocol));
            let response = sender.send_request(request).await.map_err(|error| self.unreachable(error))?;
            match response.status() {
                StatusCode::SWITCHING_PROTOCOLS => {
                    let upgraded =
                        hyper::upgrade::on(response).await.map_err(|error| self.unreachable(error))?;
                    Ok(TokioIo::new(upgraded))
                }
                status if status.is_success() => Err(self.protocol("it does not open the stream")),
                _ => Err(self.refusal(response).await?),
            }
        })
        .await
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Request<Body>, CallError> {
        let mut request = Request::builder().method(method).uri(format!("https://{AUTHORITY}{path}"));
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let body = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                let body = serde_json::to_vec(body)
                    .map_err(|error| self.protocol(&format!("the request cannot be written: {error}")))?;
                Body::from(body)
            }
            None => Body::empty(),
        };
        request.body(body).map_err(|error| self.protocol(&format!("the request cannot be sent: {error}")))
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, CallError> {
        let mut sender = self.sender(false).await?;
        match sender.try_send_request(request).await {
            Ok(response) => Ok(response),
            Err(mut error) => match error.take_message() {
                Some(unsent) => {
                    let mut sender = self.sender(true).await?;
                    sender.send_request(unsent).await.map_err(|error| self.unreachable(error))
                }
                None => Err(self.unreachable(error.into_error())),
            },
        }
    }

    async fn sender(&self, anew: bool) -> Result<Sender, CallError> {
        let mut slot = self.sender.lock().await;
        if let Some(sender) = slot.as_ref().filter(|sender| !anew && !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = self.dial(self.tls.clone()).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(self.protocol("it does not speak HTTP/2"));
        }
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PROBE)
            .keep_alive_timeout(PROBE)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unreachable(error))?;
        // Its end is seen by the sender.
        tokio::spawn(connection);
        *slot = Some(sender.clone());
        Ok(sender)
    }

    async fn dial(&self, tls: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, CallError> {
        let dial = async {
            let stream = TcpStream::connect(&self.address).await?;
            socket::tune(&stream)?;
            // The verifier knows whom to expect; this name is neither sent nor looked at.
            let name = ServerName::try_from(AUTHORITY).expect("a fixed name");
            TlsConnector::from(tls).connect(name, stream).await
        };
        dial.await.map_err(|error| self.unreachable(error))
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Bytes, CallError> {
        if response.status().is_success() {
            self.body(response).await
        } else {
            Err(self.refusal(response).await?)
        }
    }

    async fn refusal(&self, response: Response<Incoming>) -> Result<CallError, CallError> {
        let status = response.status();
        let is_problem = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == problem::MEDIA_TYPE);
        let body = self.body(response).await?;
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) if is_problem => Ok(CallError::Refused(Box::new(problem))),
            _ => Ok(self.protocol(&format!("it answers {status} without saying why"))),
        }
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, CallError> {
        let mut pieces = Body::new(response.into_body()).into_data_stream();
        let mut read = Vec::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| self.unreachable(error))?;
            if read.len() + piece.len() > self.answer_limit_bytes {
                let limit = self.answer_limit_bytes;
                return Err(self.protocol(&format!("its answer is longer than {limit} bytes")));
            }
            read.extend_from_slice(&piece);
        }
        Ok(read.into())
    }

    /// After a timeout the connection is not trusted any more: the next call makes another one.
    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        match tokio::time::timeout(limit, work).await {
            Ok(done) => done,
            Err(_) => {
                if let Ok(mut slot) = self.sender.try_lock() {
                    *slot = None;
                }
                let why = format!("no answer within {limit:?}");
                Err(self.unreachable(io::Error::new(io::ErrorKind::TimedOut, why)))
            }
        }
    }

    fn unreachable(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> CallError {
        CallError::Unreachable { address: self.address.clone(), source: source.into() }
    }

    fn protocol(&self, why: &str) -> CallError {
        CallError::Protocol { address: self.address.clone(), why: why.to_owned() }
    }
}

/// The authority in our requests: identities are proven by certificates, not by names.
const AUTHORITY: &str = "cluster.limosa";

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpClient({})", self.address)
    }
}

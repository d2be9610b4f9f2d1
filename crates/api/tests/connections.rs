//! Who gets through to a listener, and what happens to those who do not keep to the rules.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::routing::{any, get, post};
use axum::{Extension, Router};
use hyper::Method;
use limosa_api::client::{CallError, HttpClient};
use limosa_api::http::{Caller, Json, Limits, serve, upgrade};
use limosa_api::tls::{
    Ca, ClientAuth, Credential, Identity, client_config, client_config_pinned, server_config,
};
use limosa_api::{Problem, agent::BODY_LIMIT_BYTES};
use limosa_model::{Failure, FailureKind, HostId, Phase};
use rustls::ClientConfig;
use rustls::version::TLS13;
use rustls_pki_types::ServerName;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;

const LIMIT: Duration = Duration::from_secs(20);
const ECHO: &str = "limosa-test-echo";

struct Cluster {
    ca: Ca,
    host: Identity,
}

impl Cluster {
    fn new() -> Self {
        Self { ca: Ca::create("test").unwrap(), host: Identity::Host(HostId::new()) }
    }

    fn issue(&self, identity: Identity) -> Credential {
        self.ca.issue(identity, &[IpAddr::V4(Ipv4Addr::LOCALHOST)]).unwrap()
    }

    /// A listener under `identity`; it ends when the sender is dropped.
    async fn listen(
        &self,
        identity: Identity,
        clients: ClientAuth,
        limits: Limits,
    ) -> (SocketAddr, oneshot::Sender<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = server_config(&self.issue(identity), self.ca.certificate(), clients).unwrap();
        let (end, ended) = oneshot::channel();
        tokio::spawn(serve(listener, tls, router(), limits, async {
            let _ = ended.await;
        }));
        (address, end)
    }

    fn client(&self, address: SocketAddr, own: Option<Identity>, expected: Identity) -> HttpClient {
        let own = own.map(|own| self.issue(own));
        HttpClient::new(
            address.to_string(),
            client_config(own.as_ref(), self.ca.certificate(), expected).unwrap(),
        )
    }
}

fn router() -> Router {
    Router::new()
        .route(
            "/who",
            get(|Extension(caller): Extension<Caller>| async move {
                Json(caller.identity.map(|identity| identity.dns_name()))
            }),
        )
        .route("/from", get(|Extension(caller): Extension<Caller>| async move { Json(caller.address) }))
        .route("/length", post(|Json(text): Json<String>| async move { Json(text.len()) }))
        .route(
            "/refuse",
            get(|| async {
                let failure = Failure::new(FailureKind::Conflict, "VM web moves already", "wait")
                    .during(Phase::Prepare);
                Problem::from(failure)
            }),
        )
        .route(
            "/echo",
            any(|mut request: Request| async move {
                let (answer, stream) = upgrade(&mut request, ECHO)?;
                tokio::spawn(async move {
                    let (mut reader, mut writer) = tokio::io::split(stream.await.unwrap());
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
                Ok::<_, Problem>(answer)
            }),
        )
}

async fn who(client: &HttpClient) -> Result<Option<String>, CallError> {
    client.call(Method::GET, "/who", None::<&()>, LIMIT).await
}

fn is_unreachable<T: std::fmt::Debug>(answer: Result<T, CallError>, why: &str) {
    let error = answer.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(why), "{error}");
}

#[tokio::test]
async fn a_handler_knows_the_identity_of_who_calls() {
    let cluster = Cluster::new();
    let (address, _end) = cluster.listen(Identity::Server, ClientAuth::Optional, Limits::default()).await;
    let host = cluster.client(address, Some(cluster.host), Identity::Server);
    assert_eq!(who(&host).await.unwrap(), Some(cluster.host.dns_name()));
    let user = cluster.client(address, None, Identity::Server);
    assert_eq!(who(&user).await.unwrap(), None);
}

#[tokio::test]
async fn an_agent_lets_nobody_in_without_a_certificate() {
    let cluster = Cluster::new();
    let (address, _end) = cluster.listen(cluster.host, ClientAuth::Required, Limits::default()).await;
    let server = cluster.client(address, Some(Identity::Server), cluster.host);
    assert_eq!(who(&server).await.unwrap(), Some(Identity::Server.dns_name()));
    is_unreachable(who(&cluster.client(address, None, cluster.host)).await, "CertificateRequired");
}

#[tokio::test]
async fn another_clusters_authority_is_refused_by_both_ends() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let (address, _end) = ours.listen(ours.host, ClientAuth::Required, Limits::default()).await;
    is_unreachable(
        who(&theirs.client(address, Some(Identity::Server), ours.host)).await,
        "invalid peer certificate",
    );

    let foreign = theirs.issue(Identity::Server);
    let tls = client_config(Some(&foreign), ours.ca.certificate(), ours.host).unwrap();
    is_unreachable(who(&HttpClient::new(address.to_string(), tls)).await, "received fatal alert");
}

#[tokio::test]
async fn another_identity_than_the_expected_is_refused_whatever_the_address() {
    let cluster = Cluster::new();
    let (address, _end) = cluster.listen(cluster.host, ClientAuth::Required, Limits::default()).await;
    for expected in [Identity::Server, Identity::Host(HostId::new())] {
        let client = cluster.client(address, Some(Identity::Server), expected);
        is_unreachable(who(&client).await, "not valid for name");
    }
}

#[tokio::test]
async fn a_pinned_fingerprint_admits_its_authority_alone() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let (address, _end) = ours.listen(Identity::Server, ClientAuth::Optional, Limits::default()).await;
    let client = |cluster: &Cluster| {
        let fingerprint = cluster.ca.certificate().fingerprint().to_string().parse().unwrap();
        HttpClient::new(address.to_string(), client_config_pinned(fingerprint).unwrap())
    };
    assert_eq!(who(&client(&ours)).await.unwrap(), None);
    is_unreachable(who(&client(&theirs)).await, "UnknownIssuer");

    let (host, _end) = ours.listen(ours.host, ClientAuth::Optional, Limits::default()).await;
    let tls = client_config_pinned(ours.ca.certificate().fingerprint()).unwrap();
    is_unreachable(who(&HttpClient::new(host.to_string(), tls)).await, "not valid for name");
}

#[tokio::test]
async fn plain_text_is_refused() {
    let cluster = Cluster::new();
    let (address, _end) = cluster.listen(cluster.host, ClientAuth::Required, Limits::default()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /who HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test]
async fn any_client_can_verify_the_server_by_its_address() {
    let cluster = Cluster::new();
    let (address, _end) = cluster.listen(Identity::Server, ClientAuth::Optional, Limits::default()).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(PemObject::from_pem_slice(cluster.ca.certificate().to_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]).unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(address.ip().into(), stream).await.unwrap();
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let cluster = Cluster::new();
    let (address, _end) = cluster.listen(Identity::Server, ClientAuth::Optional, Limits::default()).await;
    // A ClientHello of TLS 1.2: one suite, no compression, one group, one signature scheme (RFC 5246, 7.4.1.2).
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    hello.extend([0, 16, 0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3]);
    let mut record = vec![22, 3, 1, 0, hello.len() as u8 + 4, 1, 0, 0, hello.len() as u8];
    record.extend(hello);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    const FATAL: u8 = 2;
    const PROTOCOL_VERSION: u8 = 70;
    assert_eq!((answer[0], &answer[5..]), (21, [FATAL, PROTOCOL_VERSION].as_slice()));
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_the_connection_serves_on() {
    let cluster = Cluster::new();
    let (address, _end) = cluster.listen(Identity::Server, ClientAuth::Optional, Limits::default()).await;
    let client = cluster.client(address, None, Identity::Server);
    let length = async |bytes: usize| -> Result<usize, CallError> {
        client.call(Method::POST, "/length", Some(&"x".repeat(bytes)), LIMIT).await
    };
    assert_eq!(length(BODY_LIMIT_BYTES - 2).await.unwrap(), BODY_LIMIT_BYTES - 2);
    match length(BODY_LIMIT_BYTES - 1).await.unwrap_err() {
        CallError::Refused(problem) => {
            assert_eq!((problem.status, problem.code), (413, FailureKind::Invalid))
        }
        error => panic!("{error}"),
    }
    assert_eq!(length(1).await.unwrap(), 1);
}

#[tokio::test]
async fn a_refusal_arrives_as_the_failure_that_it_was() {
    let cluster = Cluster::new();
    let (address, _end) = cluster.listen(Identity::Server, ClientAuth::Optional, Limits::default()).await;
    let client = cluster.client(address, None, Identity::Server);
    let error = client.call::<()>(Method::GET, "/refuse", None::<&()>, LIMIT).await.unwrap_err();
    let failure = Failure::from(error);
    assert_eq!(
        failure,
        Failure::new(FailureKind::Conflict, "VM web moves already", "wait").during(Phase::Prepare)
    );

    let error = client.call::<()>(Method::GET, "/nowhere", None::<&()>, LIMIT).await.unwrap_err();
    assert!(matches!(&error, CallError::Protocol { why, .. } if why.contains("404")), "{error}");
    let error = client.call::<usize>(Method::POST, "/length", Some(&7), LIMIT).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(problem) if problem.status == 400), "{error}");
}

#[tokio::test]
async fn a_client_finds_its_peer_again_after_a_restart() {
    let cluster = Cluster::new();
    let (address, end) = cluster.listen(Identity::Server, ClientAuth::Optional, Limits::default()).await;
    let client = cluster.client(address, None, Identity::Server);
    who(&client).await.unwrap();
    drop(end);
    let tls = server_config(&cluster.issue(Identity::Server), cluster.ca.certificate(), ClientAuth::Optional)
        .unwrap();
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    tokio::spawn(serve(listener, tls, router(), Limits::default(), std::future::pending()));
    // The old connection may still be on its way out at the first call; then the call says so and the next works.
    if who(&client).await.is_err() {
        who(&client).await.unwrap();
    }
}

#[tokio::test]
async fn a_console_carries_bytes_both_ways() {
    let cluster = Cluster::new();
    let (address, _end) = cluster.listen(cluster.host, ClientAuth::Required, Limits::default()).await;
    let client = cluster.client(address, Some(Identity::Server), cluster.host);
    let mut stream = client.upgrade("/echo", ECHO, LIMIT).await.unwrap();
    let sent: Vec<u8> = (0..3 * BODY_LIMIT_BYTES).map(|n| n as u8).collect();
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let (mut received, expected) = (vec![0; sent.len()], sent.clone());
    let (wrote, read) = tokio::join!(writer.write_all(&sent), reader.read_exact(&mut received));
    wrote.unwrap();
    read.unwrap();
    assert!(received == expected);

    let error = client.upgrade("/echo", "something-else", LIMIT).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(problem) if problem.status == 426), "{error}");
}

#[tokio::test]
async fn who_never_shakes_hands_blocks_nobody_for_long() {
    let cluster = Cluster::new();
    let limits = Limits { handshakes: 1, handshake: Duration::from_millis(50), ..Limits::default() };
    let (address, _end) = cluster.listen(Identity::Server, ClientAuth::Optional, limits).await;
    let _silent = TcpStream::connect(address).await.unwrap();
    who(&cluster.client(address, None, Identity::Server)).await.unwrap();
}

#[tokio::test]
async fn strangers_cannot_crowd_out_agents() {
    let cluster = Cluster::new();
    let limits = Limits { anonymous: 1, ..Limits::default() };
    let (address, _end) = cluster.listen(Identity::Server, ClientAuth::Optional, limits).await;
    let [first, second] = [(); 2].map(|()| cluster.client(address, None, Identity::Server));
    who(&first).await.unwrap();
    who(&second).await.unwrap_err();
    who(&cluster.client(address, Some(cluster.host), Identity::Server)).await.unwrap();
}

#[tokio::test]
async fn bodies_take_no_more_memory_than_they_may_and_give_it_back() {
    let cluster = Cluster::new();
    let limits = Limits { all_bodies_bytes: 20, ..Limits::default() };
    let (address, _end) = cluster.listen(Identity::Server, ClientAuth::Optional, limits).await;
    let client = cluster.client(address, None, Identity::Server);
    for (length, taken) in [(10, true), (30, false), (10, true), (18, true), (10, true)] {
        let answer = client.call::<usize>(Method::POST, "/length", Some(&"x".repeat(length)), LIMIT).await;
        match answer {
            Ok(_) => assert!(taken, "{length} bytes were taken"),
            Err(CallError::Refused(problem)) => assert_eq!((taken, problem.status), (false, 503)),
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn one_connection_serves_many_calls() {
    let cluster = Cluster::new();
    let (address, _end) = cluster.listen(Identity::Server, ClientAuth::Optional, Limits::default()).await;
    let client = cluster.client(address, None, Identity::Server);
    let from = async || client.call::<SocketAddr>(Method::GET, "/from", None::<&()>, LIMIT).await.unwrap();
    let first = from().await;
    assert_eq!([from().await, from().await], [first, first]);
}

#[tokio::test]
async fn slow_requests_are_cut_off() {
    let cluster = Cluster::new();
    let limits =
        Limits { headers: Duration::from_millis(50), body: Duration::from_millis(50), ..Limits::default() };
    let (address, _end) = cluster.listen(Identity::Server, ClientAuth::Optional, limits).await;
    let mut tls =
        ClientConfig::clone(&client_config(None, cluster.ca.certificate(), Identity::Server).unwrap());
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = TlsConnector::from(Arc::new(tls));
    for (begun, answer_begins) in [
        ("POST /length HTTP/1.1\r\nHo", ""),
        ("POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx", "HTTP/1.1 408"),
    ] {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("any.limosa").unwrap();
        let mut stream = connector.connect(name, stream).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.starts_with(answer_begins.as_bytes()), "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn a_peer_that_speaks_rubbish_is_an_error_and_nothing_else() {
    let cluster = Cluster::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let client = cluster.client(listener.local_addr().unwrap(), None, Identity::Server);
    let tls = server_config(&cluster.issue(Identity::Server), cluster.ca.certificate(), ClientAuth::Optional)
        .unwrap();
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(tls);
        loop {
            let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
            let _ = stream.write_all(&[0xa5; 4096]).await;
        }
    });
    is_unreachable(who(&client).await, "http2");
    is_unreachable(client.upgrade("/echo", ECHO, LIMIT).await.map(drop), "invalid");
}

#[tokio::test]
async fn a_silent_peer_is_given_up_after_the_calls_limit() {
    let cluster = Cluster::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let client = cluster.client(listener.local_addr().unwrap(), None, Identity::Server);
    let answer = client.call::<()>(Method::GET, "/who", None::<&()>, Duration::from_millis(50)).await;
    is_unreachable(answer, "no answer within 50ms");
}

#[tokio::test]
async fn an_answer_over_the_limit_is_not_taken() {
    let cluster = Cluster::new();
    let (address, _end) = cluster.listen(Identity::Server, ClientAuth::Optional, Limits::default()).await;
    let client = cluster.client(address, Some(cluster.host), Identity::Server).with_answer_limit(16);
    let error = who(&client).await.unwrap_err();
    assert!(
        matches!(&error, CallError::Protocol { why, .. } if why.contains("longer than 16 bytes")),
        "{error}"
    );
}

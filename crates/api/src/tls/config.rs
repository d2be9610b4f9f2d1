//! The settings of every connection.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, PeerIncompatible, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::identity::peer_identity;
use super::{CaCertificate, CaFingerprint, Credential, Identity, TlsError};

/// Whether a client must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// Agents: none but the server and other hosts talk to them.
    Required,
    /// The server: users bring a token instead.
    Optional,
}

/// What a listening process brings to the handshake. The authority's certificate is sent along, so that who knows
/// but its fingerprint can verify the rest.
///
/// # Errors
/// [`TlsError::Settings`] if key and certificate do not belong together.
pub fn server_config(
    own: &Credential,
    ca: &CaCertificate,
    clients: ClientAuth,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(ca.roots()?, provider.clone());
    let verifier = match clients {
        ClientAuth::Required => verifier,
        ClientAuth::Optional => verifier.allow_unauthenticated(),
    };
    let verifier =
        verifier.build().map_err(|error| TlsError::Settings(rustls::Error::General(error.to_string())))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Settings)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![own.certificate().clone(), ca.der().clone()], own.key())
        .map_err(TlsError::Settings)?;
    config.alpn_protocols = alpn();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// What a connecting process brings to the handshake: its own credential, unless it is a user's, and whom it
/// expects.
///
/// # Errors
/// [`TlsError::Settings`] if key and certificate do not belong together.
pub fn client_config(
    own: Option<&Credential>,
    ca: &CaCertificate,
    expected: Identity,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let anchor = Anchor::Authority(ca.roots()?);
    config(own, Expect { identity: expected, anchor, provider })
}

/// What a process brings to the handshake that knows nothing of the cluster yet but the fingerprint of its
/// authority: `host join`, and a user's first contact. It expects the server.
///
/// # Errors
/// None that can be expected.
pub fn client_config_pinned(fingerprint: CaFingerprint) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    config(None, Expect { identity: Identity::Server, anchor: Anchor::Fingerprint(fingerprint), provider })
}

fn config(own: Option<&Credential>, expect: Expect) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(expect.provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Settings)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(expect));
    let mut config = match own {
        Some(own) => builder
            .with_client_auth_cert(vec![own.certificate().clone()], own.key())
            .map_err(TlsError::Settings)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

fn alpn() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec(), b"http/1.1".to_vec()]
}

/// Whether `certificate` was issued by `ca` for `identity` and is valid at `now`.
pub(super) fn verify(
    certificate: &CertificateDer<'_>,
    ca: &CaCertificate,
    identity: Identity,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let roots = ca.roots().map_err(|_| CertificateError::UnknownIssuer)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    Expect { identity, anchor: Anchor::Authority(roots), provider }.check(certificate, &[], now)
}

/// Accepts the certificate that the authority issued for the expected identity, and no other. The address that was
/// dialled plays no part.
#[derive(Debug)]
struct Expect {
    identity: Identity,
    anchor: Anchor,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Anchor {
    Authority(Arc<RootCertStore>),
    /// The authority's certificate is the one with this fingerprint among those that the peer sends.
    Fingerprint(CaFingerprint),
}

impl Expect {
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let roots = match &self.anchor {
            Anchor::Authority(roots) => roots.clone(),
            Anchor::Fingerprint(pinned) => {
                let authority = others.iter().find(|other| CaFingerprint::of(other) == *pinned);
                let mut roots = RootCertStore::empty();
                roots.add(authority.ok_or(CertificateError::UnknownIssuer)?.clone().into_owned())?;
                Arc::new(roots)
            }
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(certificate, &[], &self.identity.server_name(), &[], now)?;
        if peer_identity(std::slice::from_ref(certificate)) == Some(self.identity) {
            Ok(())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }
}

impl ServerCertVerifier for Expect {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(certificate, others, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use limosa_model::HostId;

    use super::*;
    use crate::tls::Ca;

    #[test]
    fn a_certificate_is_taken_for_its_identity_within_its_time_alone() {
        let ca = Ca::create("test").unwrap();
        let host = Identity::Host(HostId::new());
        let credential = ca.issue(host, &[]).unwrap();
        let at = |days: i64, identity| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            let day = Duration::from_secs(24 * 60 * 60);
            let shift = day * u32::try_from(days.abs()).unwrap();
            let time = if days < 0 { now - shift } else { now + shift };
            verify(credential.certificate(), ca.certificate(), identity, UnixTime::since_unix_epoch(time))
        };
        at(0, host).unwrap();
        at(729, host).unwrap();
        for (days, identity) in
            [(-2, host), (731, host), (0, Identity::Server), (0, Identity::Host(HostId::new()))]
        {
            at(days, identity).unwrap_err();
        }
    }
}

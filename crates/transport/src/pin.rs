//! TLS settings in which the other end is known by its fingerprint and by nothing else.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, PeerIncompatible, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{Credential, Error, Fingerprint};

/// The application protocol that both ends name in the handshake.
pub const ALPN: &[u8] = b"limosa-migration/1";

/// What the source, which connects, brings to the handshake.
pub(crate) fn client_config(own: &Credential, peer: Fingerprint) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(settings)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pin { peer, provider }))
        .with_client_auth_cert(own.chain(), own.key())
        .map_err(settings)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// What the destination, which is connected to, brings to the handshake.
pub(crate) fn server_config(own: &Credential, peer: Fingerprint) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(provider());
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(settings)?
        .with_client_cert_verifier(Arc::new(Pin { peer, provider }))
        .with_single_cert(own.chain(), own.key())
        .map_err(settings)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn settings(source: rustls::Error) -> Error {
    Error::Tls { during: "the choice of settings", source }
}

/// The quickest suite first: AES-128-GCM where the CPU has AES, else ChaCha20-Poly1305. All three are of equal
/// worth for a connection that lives as long as a migration.
fn provider() -> CryptoProvider {
    #[cfg(target_arch = "x86_64")]
    let has_aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has_aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has_aes = false;

    let mut cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    if !has_aes {
        cipher_suites.reverse();
    }
    CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() }
}

/// Accepts the one certificate with the pinned fingerprint, whatever is written in it.
///
/// The fingerprint alone would prove nothing, for a certificate is public: the handshake's signature proves that
/// the other end holds its key, and is checked here with the certificate's public key.
#[derive(Debug)]
struct Pin {
    peer: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl Pin {
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        if others.is_empty() && Fingerprint::of(certificate) == self.peer {
            Ok(())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn signature(
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

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(certificate, others).map(|()| ServerCertVerified::assertion())
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
        self.signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Pin {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(certificate, others).map(|()| ClientCertVerified::assertion())
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
        self.signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::client::ResolvesClientCert;
    use rustls::sign::CertifiedKey;
    use rustls::{ClientConnection, ServerConnection};

    /// Carries a handshake in memory, to its end or to the first error on either end.
    fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<(), rustls::Error> {
        let mut client = ClientConnection::new(client, ServerName::try_from("any.example").unwrap())?;
        let mut server = ServerConnection::new(server)?;
        for _ in 0..8 {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            let mut bytes = bytes.as_slice();
            while !bytes.is_empty() {
                server.read_tls(&mut bytes).unwrap();
                server.process_new_packets()?;
            }
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            let mut bytes = bytes.as_slice();
            while !bytes.is_empty() {
                client.read_tls(&mut bytes).unwrap();
                client.process_new_packets()?;
            }
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok(())
    }

    fn refused() -> rustls::Error {
        CertificateError::ApplicationVerificationFailure.into()
    }

    #[test]
    fn each_end_accepts_the_pinned_certificate_and_no_other() {
        let [source, destination, other] = [(); 3].map(|()| Credential::generate().unwrap());
        let client = |own, peer: &Credential| client_config(own, peer.fingerprint()).unwrap();
        let server = |own, peer: &Credential| server_config(own, peer.fingerprint()).unwrap();

        assert_eq!(shake(client(&source, &destination), server(&destination, &source)), Ok(()));
        assert_eq!(shake(client(&source, &destination), server(&other, &source)), Err(refused()));
        assert_eq!(shake(client(&other, &destination), server(&destination, &source)), Err(refused()));
    }

    #[derive(Debug)]
    struct Stolen(Arc<CertifiedKey>);

    impl ResolvesClientCert for Stolen {
        fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }

        fn has_certs(&self) -> bool {
            true
        }
    }

    #[test]
    fn the_pinned_certificate_without_its_key_is_refused() {
        let [source, destination, thief] = [(); 3].map(|()| Credential::generate().unwrap());
        let server = server_config(&destination, source.fingerprint()).unwrap();
        let mut client = ClientConfig::clone(&client_config(&thief, destination.fingerprint()).unwrap());
        let key = provider().key_provider.load_private_key(thief.key()).unwrap();
        client.client_auth_cert_resolver = Arc::new(Stolen(Arc::new(CertifiedKey::new(source.chain(), key))));

        assert_eq!(shake(Arc::new(client), server), Err(CertificateError::BadSignature.into()));
    }

    #[derive(Debug)]
    struct Nameless;

    impl ResolvesClientCert for Nameless {
        fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            None
        }

        fn has_certs(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_client_without_a_certificate_or_with_another_protocol_is_refused() {
        let [source, destination] = [(); 2].map(|()| Credential::generate().unwrap());
        let server = server_config(&destination, source.fingerprint()).unwrap();
        let client = ClientConfig::clone(&client_config(&source, destination.fingerprint()).unwrap());

        let mut nameless = client.clone();
        nameless.client_auth_cert_resolver = Arc::new(Nameless);
        assert_eq!(shake(Arc::new(nameless), server.clone()), Err(rustls::Error::NoCertificatesPresented));

        let mut foreign = client;
        foreign.alpn_protocols = vec![b"h2".to_vec()];
        assert_eq!(shake(Arc::new(foreign), server), Err(rustls::Error::NoApplicationProtocol));
    }
}

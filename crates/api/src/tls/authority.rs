//! The cluster's authority, what it issues, and how each is kept.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, date_time_ymd,
};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use super::file::{self, Secrecy};
use super::{Identity, TlsError, config, identity};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a host's or the server's certificate is valid.
const CREDENTIAL_LIFE: Duration = Duration::from_secs(2 * 365 * 24 * 60 * 60);
/// How long the authority's own certificate is valid.
const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);
/// Longest certificate request that is read, in bytes.
const REQUEST_LIMIT_BYTES: usize = 16 * 1024;

/// The cluster's certificate authority, its private key included. The server keeps it.
pub struct Ca {
    certificate: CaCertificate,
    key: KeyPair,
}

impl Ca {
    /// Makes the authority of a new cluster.
    ///
    /// # Errors
    /// [`TlsError::Make`] if the system has no randomness to give.
    pub fn create(cluster: &str) -> Result<Self, TlsError> {
        let make = |source| TlsError::Make { what: "certificate authority", source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = called(&format!("Limosa cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, AUTHORITY_LIFE);
        let certificate = params.self_signed(&key).map_err(make)?;
        Ok(Self { certificate: CaCertificate(certificate.der().clone()), key })
    }

    /// Reads what [`store`](Self::store) wrote.
    ///
    /// # Errors
    /// [`TlsError::File`] or [`TlsError::Malformed`].
    pub fn load(path: &Path) -> Result<Self, TlsError> {
        let text = file::read(path)?;
        let certificate = CaCertificate::from_pem(&text)?;
        let key = KeyPair::try_from(&private_key(&text)?)
            .map_err(|error| TlsError::Malformed { what: "private key", why: error.to_string() })?;
        Ok(Self { certificate, key })
    }

    /// Writes certificate and key into one file that its owner alone can read. Atomic and durable.
    ///
    /// # Errors
    /// [`TlsError::File`].
    pub fn store(&self, path: &Path) -> Result<(), TlsError> {
        let text = self.certificate.to_pem() + &self.key.serialize_pem();
        file::write(path, &text, Secrecy::Secret)
    }

    /// The public half.
    pub fn certificate(&self) -> &CaCertificate {
        &self.certificate
    }

    /// Makes a key and a certificate for an identity, valid for about two years. `addresses` are those at which
    /// users reach it, so that they can verify it with any client.
    ///
    /// # Errors
    /// [`TlsError::Make`].
    pub fn issue(&self, identity: Identity, addresses: &[IpAddr]) -> Result<Credential, TlsError> {
        let make = |source| TlsError::Make { what: "certificate", source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let certificate = self.sign(&key, identity, addresses)?;
        Ok(Credential { identity, certificate, key: key.into() })
    }

    /// Answers a host's request with a certificate in PEM, valid for about two years. Whatever names or uses the
    /// request asks for are ignored: the certificate is for `identity` and nothing else.
    ///
    /// # Errors
    /// [`TlsError::Malformed`] if the request is none, is not signed by its own key, or its key is not ECDSA P-256.
    pub fn sign_request(&self, request_pem: &str, identity: Identity) -> Result<String, TlsError> {
        let malformed = |why: String| TlsError::Malformed { what: "certificate request", why };
        if request_pem.len() > REQUEST_LIMIT_BYTES {
            return Err(malformed(format!("it is longer than {REQUEST_LIMIT_BYTES} bytes")));
        }
        let request = CertificateSigningRequestParams::from_pem(request_pem)
            .map_err(|error| malformed(error.to_string()))?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(malformed("its key is not an ECDSA P-256 key".into()));
        }
        let certificate = self.sign(&request.public_key, identity, &[])?;
        Ok(pem("CERTIFICATE", &certificate))
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        identity: Identity,
        addresses: &[IpAddr],
    ) -> Result<CertificateDer<'static>, TlsError> {
        let make = |source| TlsError::Make { what: "certificate", source };
        let name = identity.dns_name();
        let mut params = CertificateParams::new([name.clone()]).map_err(make)?;
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        params.distinguished_name = called(&name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, CREDENTIAL_LIFE);
        let issuer = Issuer::from_ca_cert_der(&self.certificate.0, &self.key).map_err(make)?;
        Ok(params.signed_by(key, &issuer).map_err(make)?.der().clone())
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ca({})", self.certificate.fingerprint())
    }
}

/// The authority's certificate: what everybody in the cluster trusts.
#[derive(Clone, PartialEq, Eq)]
pub struct CaCertificate(CertificateDer<'static>);

impl CaCertificate {
    /// Reads the first certificate in a PEM text.
    ///
    /// # Errors
    /// [`TlsError::Malformed`].
    pub fn from_pem(text: &str) -> Result<Self, TlsError> {
        let certificate = Self(certificate(text)?);
        certificate.roots()?;
        Ok(certificate)
    }

    /// The certificate as PEM.
    pub fn to_pem(&self) -> String {
        pem("CERTIFICATE", &self.0)
    }

    /// Reads what [`store`](Self::store) wrote.
    ///
    /// # Errors
    /// [`TlsError::File`] or [`TlsError::Malformed`].
    pub fn load(path: &Path) -> Result<Self, TlsError> {
        Self::from_pem(&file::read(path)?)
    }

    /// Writes the certificate into a file that everybody can read. Atomic and durable.
    ///
    /// # Errors
    /// [`TlsError::File`].
    pub fn store(&self, path: &Path) -> Result<(), TlsError> {
        file::write(path, &self.to_pem(), Secrecy::Public)
    }

    /// By what a join token names it.
    pub fn fingerprint(&self) -> CaFingerprint {
        CaFingerprint::of(&self.0)
    }

    pub(super) fn der(&self) -> &CertificateDer<'static> {
        &self.0
    }

    pub(super) fn roots(&self) -> Result<Arc<RootCertStore>, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.clone()).map_err(|error| TlsError::Malformed {
            what: "certificate of an authority",
            why: error.to_string(),
        })?;
        Ok(Arc::new(roots))
    }
}

impl fmt::Debug for CaCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaCertificate({})", self.fingerprint())
    }
}

/// The SHA-256 of the authority's certificate; as text, 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CaFingerprint([u8; 32]);

impl CaFingerprint {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl fmt::Display for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text that is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 hexadecimal digits")]
pub struct InvalidFingerprint;

impl FromStr for CaFingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        let digits = text.as_bytes();
        let mut bytes = [0; 32];
        if digits.len() != 2 * bytes.len() {
            return Err(InvalidFingerprint);
        }
        let value = |digit: u8| char::from(digit).to_digit(16).ok_or(InvalidFingerprint);
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (value(pair[0])? << 4 | value(pair[1])?) as u8;
        }
        Ok(Self(bytes))
    }
}

/// A certificate with its private key: what the server and each agent show in every handshake.
pub struct Credential {
    identity: Identity,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Credential {
    /// Whose it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Reads what [`store`](Self::store) wrote.
    ///
    /// # Errors
    /// [`TlsError::File`] or [`TlsError::Malformed`].
    pub fn load(path: &Path) -> Result<Self, TlsError> {
        let text = file::read(path)?;
        let certificate = certificate(&text)?;
        let identity = identity::peer_identity(std::slice::from_ref(&certificate)).ok_or_else(|| {
            TlsError::Malformed { what: "certificate of this cluster", why: "it names no identity".into() }
        })?;
        Ok(Self { identity, certificate, key: private_key(&text)? })
    }

    /// Writes certificate and key into one file that its owner alone can read, so that the two never come apart.
    /// Atomic and durable.
    ///
    /// # Errors
    /// [`TlsError::File`].
    pub fn store(&self, path: &Path) -> Result<(), TlsError> {
        let text = pem("CERTIFICATE", &self.certificate) + &pem("PRIVATE KEY", self.key.secret_der());
        file::write(path, &text, Secrecy::Secret)
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({})", self.identity)
    }
}

/// A new private key, on its way to a certificate.
pub struct CertificateRequest {
    key: KeyPair,
    pem: String,
}

impl CertificateRequest {
    /// Makes the key and the request.
    ///
    /// # Errors
    /// [`TlsError::Make`] if the system has no randomness to give.
    pub fn new() -> Result<Self, TlsError> {
        let make = |source| TlsError::Make { what: "certificate request", source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = called("Limosa host");
        let pem = params.serialize_request(&key).and_then(|request| request.pem()).map_err(make)?;
        Ok(Self { key, pem })
    }

    /// What is sent to the server. The key is not in it.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// Takes the server's answer.
    ///
    /// # Errors
    /// [`TlsError::WrongCertificate`] if it is for another key or identity, or from another authority.
    pub fn complete(
        self,
        certificate_pem: &str,
        ca: &CaCertificate,
        identity: Identity,
    ) -> Result<Credential, TlsError> {
        let wrong = |why: String| TlsError::WrongCertificate { expected: identity, why };
        let certificate = certificate(certificate_pem)?;
        config::verify(&certificate, ca, identity, UnixTime::now())
            .map_err(|error| wrong(error.to_string()))?;
        let parsed =
            webpki::EndEntityCert::try_from(&certificate).map_err(|error| wrong(error.to_string()))?;
        if parsed.subject_public_key_info().as_ref() != self.key.subject_public_key_info() {
            return Err(wrong("it is for another key".into()));
        }
        Ok(Credential { identity, certificate, key: self.key.into() })
    }
}

impl fmt::Debug for CertificateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateRequest")
    }
}

fn called(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Valid from yesterday, for the clocks of a new cluster need not agree.
fn set_validity(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(DAY);
    params.not_after = epoch + now + life;
}

fn certificate(text: &str) -> Result<CertificateDer<'static>, TlsError> {
    CertificateDer::from_pem_slice(text.as_bytes())
        .map_err(|error| TlsError::Malformed { what: "certificate", why: error.to_string() })
}

fn private_key(text: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|error| TlsError::Malformed { what: "private key", why: error.to_string() })
}

fn pem(label: &str, der: &[u8]) -> String {
    pem::encode(&pem::Pem::new(label, der))
}

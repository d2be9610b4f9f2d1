//! What the authority issues, to whom, and how it is kept.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use limosa_api::tls::{
    Ca, CaCertificate, CertificateRequest, ClientAuth, Credential, Identity, TlsError, peer_identity,
    server_config,
};
use limosa_model::HostId;
use rustls_pki_types::pem::PemObject;

fn cluster() -> (Ca, Identity) {
    (Ca::create("test").unwrap(), Identity::Host(HostId::new()))
}

#[test]
fn a_request_is_answered_for_the_given_identity_alone() {
    let (ca, host) = cluster();
    let request = CertificateRequest::new().unwrap();
    let certificate = ca.sign_request(request.to_pem(), host).unwrap();
    let credential = request.complete(&certificate, ca.certificate(), host).unwrap();
    assert_eq!(credential.identity(), host);

    let complete = |certificate: &str, ca: &CaCertificate, identity| {
        CertificateRequest::new().unwrap().complete(certificate, ca, identity)
    };
    for refused in [
        complete(&certificate, ca.certificate(), host),
        complete(&certificate, cluster().0.certificate(), host),
        complete(&certificate, ca.certificate(), Identity::Server),
    ] {
        assert!(matches!(refused, Err(TlsError::WrongCertificate { .. })), "{refused:?}");
    }
}

#[test]
fn names_that_a_request_asks_for_are_ignored() {
    let (ca, host) = cluster();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new([Identity::Server.dns_name()]).unwrap();
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let certificate = ca.sign_request(&request, host).unwrap();
    let certificate = PemObject::from_pem_slice(certificate.as_bytes()).unwrap();
    assert_eq!(peer_identity(&[certificate]), Some(host));
}

#[test]
fn rubbish_is_no_request() {
    let (ca, host) = cluster();
    let good = CertificateRequest::new().unwrap().to_pem().to_owned();
    let weak = {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
    };
    let damaged: String = good
        .char_indices()
        .map(|(n, c)| if n == 120 { if c == 'A' { 'B' } else { 'A' } } else { c })
        .collect();
    for bad in [
        "",
        "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n",
        &weak,
        &damaged,
        &good.repeat(99),
    ] {
        let answer = ca.sign_request(bad, host);
        assert!(matches!(answer, Err(TlsError::Malformed { .. })), "{answer:?}");
    }
}

#[test]
fn what_is_stored_is_loaded_the_same_and_secrets_stay_secret() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (ca, host) = cluster();
    let path = |name: &str| folder.path().join(name);
    ca.store(&path("ca-key.pem")).unwrap();
    ca.store(&path("ca-key.pem")).unwrap();
    ca.certificate().store(&path("ca.pem")).unwrap();
    ca.issue(host, &[]).unwrap().store(&path("host.pem")).unwrap();

    let loaded = Ca::load(&path("ca-key.pem")).unwrap();
    assert_eq!(loaded.certificate(), &CaCertificate::load(&path("ca.pem")).unwrap());
    let credential = Credential::load(&path("host.pem")).unwrap();
    assert_eq!(credential.identity(), host);
    server_config(&credential, ca.certificate(), ClientAuth::Required).unwrap();
    let request = CertificateRequest::new().unwrap();
    let certificate = loaded.sign_request(request.to_pem(), host).unwrap();
    request.complete(&certificate, ca.certificate(), host).unwrap();

    let mode = |name: &str| std::fs::metadata(path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca-key.pem"), mode("host.pem")), (0o600, 0o600));
    assert!(matches!(Ca::load(&path("none.pem")), Err(TlsError::File { .. })));
    assert!(matches!(Credential::load(&path("ca.pem")), Err(TlsError::Malformed { .. })));
}

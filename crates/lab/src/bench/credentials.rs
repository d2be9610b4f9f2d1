//! Credentials for QEMU's own TLS, as its manual has an administrator make them with `certtool`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use limosa_vm::QemuUser;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::error::{Error, Result};

/// The name of every destination in its certificate; what sources expect with `tls-hostname`.
pub(super) const DESTINATION: &str = "destination";

/// Writes a CA's certificate, and a server's and a client's credential, into a folder that QEMU's user may read, under
/// the names that `tls-creds-x509` looks for.
pub(super) fn write(folder: &Path, user: QemuUser) -> Result<()> {
    let doing = || Error::io("make certificates for QEMU");
    let files = make().map_err(std::io::Error::other).map_err(doing())?;
    fs::create_dir_all(folder).map_err(Error::path("create", folder))?;
    for (name, text) in files {
        let path = folder.join(name);
        fs::write(&path, text).map_err(Error::path("write", &path))?;
        let private = Permissions::from_mode(0o400);
        let given =
            fs::set_permissions(&path, private).and_then(|()| chown(&path, Some(user.uid), Some(user.gid)));
        given.map_err(Error::path("give away", &path))?;
    }
    Ok(())
}

fn make() -> std::result::Result<[(&'static str, String); 5], rcgen::Error> {
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_key = KeyPair::generate()?;
    let ca_certificate = ca.self_signed(&ca_key)?.pem();
    let issuer = Issuer::new(ca, ca_key);

    let issue = |name: &str, purpose| {
        let mut end = CertificateParams::new(vec![name.to_owned()])?;
        // QEMU asks for both.
        end.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        end.extended_key_usages = vec![purpose];
        let key = KeyPair::generate()?;
        Ok::<_, rcgen::Error>((end.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
    };
    let (server, server_key) = issue(DESTINATION, ExtendedKeyUsagePurpose::ServerAuth)?;
    let (client, client_key) = issue("source", ExtendedKeyUsagePurpose::ClientAuth)?;
    Ok([
        ("ca-cert.pem", ca_certificate),
        ("server-cert.pem", server),
        ("server-key.pem", server_key),
        ("client-cert.pem", client),
        ("client-key.pem", client_key),
    ])
}

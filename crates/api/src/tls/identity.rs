//! Identities, and the names by which certificates carry them.

use std::fmt;
use std::str::FromStr;

use limosa_model::HostId;
use rustls_pki_types::{CertificateDer, ServerName};

/// Whom a certificate of the cluster vouches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The cluster's server.
    Server,
    /// The agent of a host.
    Host(HostId),
}

/// The zone of all names in the cluster's certificates. It is in no DNS.
const ZONE: &str = ".limosa";

impl Identity {
    /// The DNS name that stands for this identity in its certificate.
    pub fn dns_name(self) -> String {
        match self {
            Self::Server => format!("server{ZONE}"),
            Self::Host(host) => format!("host-{host}{ZONE}"),
        }
    }

    pub(super) fn server_name(self) -> ServerName<'static> {
        ServerName::try_from(self.dns_name()).expect("letters, digits, '-' and '.' make a DNS name")
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server => f.write_str("the server"),
            Self::Host(host) => write!(f, "host {host}"),
        }
    }
}

impl FromStr for Identity {
    type Err = ();

    /// Reads a [`dns_name`](Self::dns_name), and only in the form in which that writes it.
    fn from_str(name: &str) -> Result<Self, ()> {
        let identity = match name.strip_suffix(ZONE).ok_or(())? {
            "server" => Self::Server,
            label => Self::Host(label.strip_prefix("host-").and_then(|id| id.parse().ok()).ok_or(())?),
        };
        if identity.dns_name() == name { Ok(identity) } else { Err(()) }
    }
}

/// The identity in a certificate that a handshake has already verified. `None` where there is none, or where the
/// certificate is not clear about it.
pub fn peer_identity(certificates: &[CertificateDer<'_>]) -> Option<Identity> {
    let certificate = webpki::EndEntityCert::try_from(certificates.first()?).ok()?;
    let mut names = certificate.valid_dns_names().filter(|name| name.ends_with(ZONE));
    let identity = names.next()?.parse().ok()?;
    names.next().is_none().then_some(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_name_and_no_other_name_is_one() {
        let host = Identity::Host(HostId::new());
        for identity in [Identity::Server, host] {
            assert_eq!(identity.dns_name().parse(), Ok(identity));
        }
        let upper = host.dns_name().to_uppercase();
        for bad in
            ["", ".limosa", "server", "server.limosa.", "host-.limosa", "host-1.limosa", "x.limosa", &upper]
        {
            assert_eq!(bad.parse::<Identity>(), Err(()), "{bad:?} was taken");
        }
    }
}

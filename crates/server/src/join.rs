//! How a host becomes one of the cluster: by a token that is for it alone, for a time, once.

use jiff::{SignedDuration, Timestamp};
use limosa_api::rest::{CreateToken, JoinHost, JoinToken, JoinedHost};
use limosa_api::tls::Identity;
use limosa_model::HostId;

use crate::records::{HostRecord, TokenRecord, keys};
use crate::refused::{Answer, Refused};
use crate::secret::{Digest, Secret};
use crate::server::Server;

const LONGEST_VALIDITY: SignedDuration = SignedDuration::from_hours(24);

/// Makes a token. What is kept of it is its digest.
pub(crate) async fn create_token(server: &Server, ask: CreateToken) -> Answer<JoinToken> {
    let valid_for = SignedDuration::try_from(ask.valid_for_ms.duration())
        .ok()
        .filter(|span| *span <= LONGEST_VALIDITY && !span.is_zero())
        .ok_or_else(|| {
            Refused::invalid(
                format!("a token for {} cannot be valid for {}", ask.host, ask.valid_for_ms),
                "choose a time up to 24h",
            )
        })?;
    let (secret, expires) = (Secret::new(), Timestamp::now() + valid_for);
    let mut tx = server.begin().await;
    refuse_known(&mut tx, &ask.host).await?;
    let key = keys::of(keys::TOKENS, secret.digest().as_str());
    tx.put(&key, &TokenRecord { host: ask.host.clone(), expires })?;
    server.commit(tx).await?;
    Ok(JoinToken {
        token: secret.reveal().to_owned(),
        host: ask.host,
        expires,
        server: server.config.advertised(),
        ca_fingerprint: server.ca.certificate().fingerprint().to_string(),
    })
}

/// Takes a host in: the token is used up and the host known by one change.
pub(crate) async fn join(server: &Server, ask: JoinHost) -> Answer<JoinedHost> {
    let remedy = format!("make another one with `limosa token create {}`", ask.name);
    let key = keys::of(keys::TOKENS, Digest::of(&ask.token).as_str());
    let mut tx = server.begin().await;
    let token: TokenRecord = tx.get(&key).await?.ok_or_else(|| {
        Refused::denied("the token is not one of this cluster, or it has been used", remedy.clone())
    })?;
    if token.expires < Timestamp::now() {
        return Err(Refused::denied(format!("the token expired at {}", token.expires), remedy));
    }
    if token.host != ask.name {
        return Err(Refused::denied(
            format!("the token is for host {}, not for {}", token.host, ask.name),
            remedy,
        ));
    }
    refuse_known(&mut tx, &ask.name).await?;
    let host = HostId::new();
    let certificate_pem = server
        .ca
        .sign_request(&ask.request_pem, Identity::Host(host))
        .map_err(|error| Refused::invalid(error.to_string(), "let `limosa host join` make the request"))?;
    let record = HostRecord {
        id: host,
        name: ask.name.clone(),
        joined: Timestamp::now(),
        cordoned: false,
        lost: false,
        quarantined: None,
        journal: None,
        boot: None,
        address: None,
        migration_address: None,
        facts: None,
        evacuation: None,
    };
    tx.delete(&key);
    tx.put(&keys::name(keys::HOSTS, &ask.name), &host)?;
    tx.event("host-joined", record.subject(), format!("host {} has joined", ask.name))?;
    tx.put(&keys::of(keys::HOSTS, host), &record)?;
    server.commit(tx).await?;
    Ok(JoinedHost {
        host,
        certificate_pem,
        ca_pem: server.ca.certificate().to_pem(),
        cluster: server.cluster.name.clone(),
    })
}

async fn refuse_known(tx: &mut crate::tx::Tx<'_>, name: &limosa_model::Name) -> Answer<()> {
    match tx.get::<HostId>(&keys::name(keys::HOSTS, name)).await? {
        None => Ok(()),
        Some(host) => Err(Refused::conflict(
            format!("there is a host {name} already: {host}"),
            format!("choose another name, or remove it first with `limosa host remove {name}`"),
        )),
    }
}

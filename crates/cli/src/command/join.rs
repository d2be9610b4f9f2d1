//! `limosa host join`: makes this machine a host of a cluster.
//!
//! The private key is made here and stays here. The server is known by the fingerprint in the token, and this
//! machine by the secret in it. The credential is written last: a join that was interrupted before that has joined
//! nothing here, and is done again with another token.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use hyper::Method;
use limosa_agent::{CA, CREDENTIAL, Config};
use limosa_api::client::HttpClient;
use limosa_api::rest::{JoinHost, JoinToken, JoinedHost};
use limosa_api::tls::{CaCertificate, CaFingerprint, CertificateRequest, Identity, client_config_pinned};
use limosa_model::Name;
use limosa_model::toml_spec::from_toml;

use crate::args::JoinArgs;
use crate::error::CliError;
use crate::output::Output;

const LIMIT: Duration = Duration::from_secs(30);

/// Everything that a joining host needs to know, as one word that survives every shell.
pub(super) struct Ticket {
    host: Name,
    server: SocketAddr,
    ca_fingerprint: String,
    secret: String,
}

const PREFIX: &str = "limosa-join/1/";

impl From<&JoinToken> for Ticket {
    fn from(token: &JoinToken) -> Self {
        Self {
            host: token.host.clone(),
            server: token.server,
            ca_fingerprint: token.ca_fingerprint.clone(),
            secret: token.token.clone(),
        }
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, server, ca_fingerprint, secret } = self;
        write!(f, "{PREFIX}{host}/{server}/{ca_fingerprint}/{secret}")
    }
}

impl FromStr for Ticket {
    type Err = CliError;

    fn from_str(text: &str) -> Result<Self, CliError> {
        let parse = || {
            let mut parts = text.strip_prefix(PREFIX)?.splitn(4, '/');
            let ticket = Self {
                host: parts.next()?.parse().ok()?,
                server: parts.next()?.parse().ok()?,
                ca_fingerprint: parts.next()?.parse::<CaFingerprint>().ok()?.to_string(),
                secret: parts.next()?.to_owned(),
            };
            (!ticket.secret.is_empty()).then_some(ticket)
        };
        parse().ok_or_else(|| {
            CliError::invalid(
                "this is no join token",
                "make one on the server with `limosa token create HOST`",
            )
        })
    }
}

pub(super) async fn run(args: JoinArgs, output: Output) -> Result<(), CliError> {
    let ticket: Ticket = args.token.parse()?;
    let text = settings(&ticket, &args)?;
    let config: Config = from_toml(&text).map_err(|error| {
        CliError::invalid(format!("{}: {error}", args.config.display()), "correct the settings")
    })?;
    if config.name != ticket.host {
        return Err(CliError::invalid(
            format!(
                "the token is for host {}, and {} calls this one {}",
                ticket.host,
                args.config.display(),
                config.name
            ),
            "change the name there, or make a token for this one",
        ));
    }
    let credential_path = config.state_dir.join(CREDENTIAL);
    if credential_path.exists() {
        return Err(CliError::invalid(
            format!("this machine is a host already: {} exists", credential_path.display()),
            "to join another cluster, remove the host from its own first, and then that folder",
        ));
    }
    let file = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| CliError::File { doing, path, source }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.state_dir)
        .map_err(file("make", &config.state_dir))?;

    let fingerprint = ticket.ca_fingerprint.parse().expect("checked when it was read");
    let http = HttpClient::new(ticket.server.to_string(), client_config_pinned(fingerprint)?);
    let request = CertificateRequest::new()?;
    let join = JoinHost {
        name: ticket.host.clone(),
        token: ticket.secret,
        request_pem: request.to_pem().to_owned(),
    };
    let joined: JoinedHost = http.call(Method::POST, "/agent/v1/join", Some(&join), LIMIT).await?;
    let ca = CaCertificate::from_pem(&joined.ca_pem)?;
    if ca.fingerprint() != fingerprint {
        return Err(CliError::invalid(
            "the server sent the certificate of another authority than its token names",
            "do not trust this server; make another token on the right one",
        ));
    }
    let credential = request.complete(&joined.certificate_pem, &ca, Identity::Host(joined.host))?;

    write(&args.config, &text).map_err(file("write", &args.config))?;
    ca.store(&config.state_dir.join(CA))?;
    credential.store(&credential_path)?;
    output.show(&joined, |joined| {
        format!(
            "This machine is host {} of cluster {}. Start its agent: limosa agent --config {}",
            ticket.host,
            joined.cluster,
            args.config.display()
        )
    })
}

/// The agent's settings as they should be: the file's own with the server in them, or the shortest that will do.
fn settings(ticket: &Ticket, args: &JoinArgs) -> Result<String, CliError> {
    let (path, server) = (&args.config, ticket.server);
    if !path.exists() {
        let listen = args.listen.ok_or_else(|| {
            CliError::invalid(
                format!("{} does not exist, and where the agent is to listen is not known", path.display()),
                "give `--listen ADDRESS`: the address of this machine on the management network",
            )
        })?;
        let mut text =
            format!("name = \"{}\"\nlisten = \"{listen}\"\nservers = [\"{server}\"]\n", ticket.host);
        if let Some(address) = args.migration_address {
            text += &format!("migration_address = \"{address}\"\n");
        }
        return Ok(text);
    }
    let text = fs::read_to_string(path).map_err(|source| CliError::File {
        doing: "read",
        path: path.clone(),
        source,
    })?;
    let config: Config = from_toml(&text)
        .map_err(|error| CliError::invalid(format!("{}: {error}", path.display()), "correct the settings"))?;
    if args.listen.is_some_and(|listen| listen != config.listen)
        || args.migration_address.is_some_and(|address| address != config.migration_address())
    {
        return Err(CliError::invalid(
            format!("{} says another address than the command line", path.display()),
            "change it there, or leave it out here",
        ));
    }
    if config.servers.contains(&server) {
        Ok(text)
    } else if config.servers.is_empty() && !text.contains("servers") {
        // Before the first table, where a key belongs to the whole file.
        Ok(format!("servers = [\"{server}\"]\n{text}"))
    } else {
        Err(CliError::invalid(
            format!("{} names other servers than {server}", path.display()),
            format!("set `servers = [\"{server}\"]` there"),
        ))
    }
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension("new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        Ticket {
            host: "h1".parse().unwrap(),
            server: "[fd00::1]:7600".parse().unwrap(),
            ca_fingerprint: "ab".repeat(32),
            secret: "s/e+c=ret".into(),
        }
    }

    fn args(config: &Path, listen: Option<&str>) -> JoinArgs {
        let listen = listen.map(|listen| listen.parse().unwrap());
        JoinArgs { token: String::new(), listen, migration_address: None, config: config.to_owned() }
    }

    #[test]
    fn a_join_token_survives_its_text_and_rubbish_is_none() {
        let text = ticket().to_string();
        let read: Ticket = text.parse().unwrap();
        assert_eq!((read.to_string(), read.secret), (text.clone(), "s/e+c=ret".to_owned()));
        let cut = &text[..text.len() - "/s/e+c=ret".len()];
        for bad in ["", "limosa-join/1/", "x", cut, &text.replace("ab", "xy"), &text.replace("/1/", "/2/")] {
            assert!(bad.parse::<Ticket>().is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn settings_are_made_where_there_are_none_and_completed_where_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        assert!(settings(&ticket(), &args(&path, None)).is_err());
        let made = settings(&ticket(), &args(&path, Some("10.0.0.1:7601"))).unwrap();
        let config: Config = from_toml(&made).unwrap();
        assert_eq!((config.name.as_str(), config.servers), ("h1", vec![ticket().server]));

        let own = "# mine\nname = \"h1\"\nlisten = \"10.0.0.1:7601\"\n[vm_user]\nuid = 1\ngid = 1\n";
        write(&path, own).unwrap();
        let completed = settings(&ticket(), &args(&path, None)).unwrap();
        assert!(completed.ends_with(own));
        assert_eq!(from_toml::<Config>(&completed).unwrap().servers, [ticket().server]);
        write(&path, &completed).unwrap();
        assert_eq!(settings(&ticket(), &args(&path, None)).unwrap(), completed);

        write(&path, &completed.replace("fd00::1", "fd00::2")).unwrap();
        assert!(settings(&ticket(), &args(&path, None)).is_err());
        assert!(settings(&ticket(), &args(&path, Some("10.0.0.2:7601"))).is_err());
    }
}

//! `limosa datastore|network|cluster|token …`

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::tz::TimeZone;
use limosa_api::rest::{ConfirmRestore, CreateDatastore, CreateNetwork, CreateToken, NetworkKind};

use super::{join, name, pair};
use crate::args::{ClusterCommand, DatastoreCommand, NetworkCommand, TokenCommand};
use crate::cluster::Cluster;
use crate::error::CliError;
use crate::output::Output;
use crate::render;

pub(super) async fn datastore(
    cluster: &Cluster,
    command: DatastoreCommand,
    output: Output,
) -> Result<(), CliError> {
    let one = |datastore: &_| render::datastores(std::slice::from_ref(datastore));
    match command {
        DatastoreCommand::List => {
            output.show(&cluster.datastores().await?, |datastores| render::datastores(&datastores.items))
        }
        DatastoreCommand::Show { datastore } => output.show(&cluster.datastore(&datastore).await?, one),
        DatastoreCommand::Add { name, kind, path, on } => {
            let mut hosts = BTreeMap::new();
            for text in &on {
                let (host, folder) = pair(text)?;
                hosts.insert(self::name(host)?, PathBuf::from(folder));
            }
            let request = CreateDatastore { name, kind: kind.into(), path, hosts };
            output.show(&cluster.create_datastore(&request).await?, one)
        }
        DatastoreCommand::Remove { datastore } => {
            cluster.remove_datastore(&datastore).await?;
            output.say(&format!(
                "{datastore} is no datastore of the cluster any more; its files are still there"
            ))
        }
    }
}

pub(super) async fn network(
    cluster: &Cluster,
    command: NetworkCommand,
    output: Output,
) -> Result<(), CliError> {
    match command {
        NetworkCommand::List => {
            output.show(&cluster.networks().await?, |networks| render::networks(&networks.items))
        }
        NetworkCommand::Add { name, bridge, on } => {
            let mut hosts = BTreeMap::new();
            for text in &on {
                let (host, bridge) = pair(text)?;
                hosts.insert(self::name(host)?, bridge.to_owned());
            }
            let request = CreateNetwork { name, kind: NetworkKind::Bridge, bridge, hosts };
            output.show(&cluster.create_network(&request).await?, |network| {
                render::networks(std::slice::from_ref(network))
            })
        }
        NetworkCommand::Remove { network } => {
            cluster.remove_network(&network).await?;
            output.say(&format!("{network} is no network of the cluster any more"))
        }
    }
}

pub(super) async fn cluster(
    cluster: &Cluster,
    command: ClusterCommand,
    output: Output,
) -> Result<(), CliError> {
    let shown = match command {
        ClusterCommand::Show => cluster.cluster().await?,
        ClusterCommand::ConfirmRestore { no_other_hosts } => {
            cluster.confirm_restore(&ConfirmRestore { no_other_hosts }).await?
        }
    };
    output.show(&shown, render::cluster)
}

pub(super) async fn token(cluster: &Cluster, command: TokenCommand, output: Output) -> Result<(), CliError> {
    let TokenCommand::Create { host, valid_for } = command;
    let token = cluster.create_token(&CreateToken { host, valid_for_ms: valid_for }).await?;
    output.show(&token, |token| {
        let expires = token.expires.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string();
        format!(
            "On {}, before {}:\n\n  limosa host join --listen ADDRESS {}\n\n\
             ADDRESS is that of the host on the management network. The token can be used once.",
            token.host,
            expires,
            join::Ticket::from(token)
        )
    })
}

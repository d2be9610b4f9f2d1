//! The cluster, its datastores and its networks.

use std::collections::BTreeMap;

use limosa_api::agent::DatastoreKind;
use limosa_api::rest::{Cluster, ClusterState, Datastore, Network, NetworkKind};
use limosa_model::Name;

use super::{facts, or_dash, table};

/// The cluster as a whole.
pub fn cluster(cluster: &Cluster) -> String {
    let missing: Vec<_> = cluster.missing.iter().map(ToString::to_string).collect();
    facts([
        ("name", cluster.name.clone()),
        (
            "state",
            match cluster.state {
                ClusterState::Running => "running".into(),
                ClusterState::Restoring => "restoring: nothing is started or moved until \
                 `limosa cluster confirm-restore`"
                    .into(),
            },
        ),
        ("missing hosts", missing.join(", ")),
        ("version", cluster.version.clone()),
        ("incarnation", cluster.incarnation.0.to_string()),
    ])
}

/// Datastores, a line each.
pub fn datastores(datastores: &[Datastore]) -> String {
    table(
        ["NAME", "KIND", "PATH", "ON SINGLE HOSTS"],
        datastores.iter().map(|datastore| {
            let kind = match datastore.kind {
                DatastoreKind::Dir => "dir",
                DatastoreKind::Shared => "shared",
            };
            let paths = datastore.hosts.iter().map(|(host, path)| (host, path.display()));
            [
                datastore.name.to_string(),
                kind.into(),
                or_dash(datastore.path.as_ref().map(|path| path.display())),
                on_hosts(paths.collect()),
            ]
        }),
    )
}

/// Networks, a line each.
pub fn networks(networks: &[Network]) -> String {
    table(
        ["NAME", "KIND", "BRIDGE", "ON SINGLE HOSTS"],
        networks.iter().map(|network| {
            let kind = match network.kind {
                NetworkKind::Bridge => "bridge",
            };
            let bridges = network.hosts.iter().collect();
            [network.name.to_string(), kind.into(), network.bridge.clone(), on_hosts(bridges)]
        }),
    )
}

fn on_hosts<T: ToString>(hosts: BTreeMap<&Name, T>) -> String {
    let hosts: Vec<_> =
        hosts.into_iter().map(|(host, what)| format!("{host}={}", what.to_string())).collect();
    hosts.join(", ")
}

#[cfg(test)]
mod tests {
    use limosa_model::{DatastoreId, Incarnation, NetworkId};

    use super::*;

    #[test]
    fn a_cluster_that_is_being_restored_says_what_it_waits_for() {
        let restoring = Cluster {
            name: "home".into(),
            state: ClusterState::Restoring,
            incarnation: Incarnation(2),
            version: "0.1.0".into(),
            missing: vec!["h2".parse().unwrap()],
        };
        assert_eq!(
            cluster(&restoring),
            "name           home\n\
             state          restoring: nothing is started or moved until `limosa cluster confirm-restore`\n\
             missing hosts  h2\n\
             version        0.1.0\n\
             incarnation    2\n"
        );
    }

    #[test]
    fn datastores_and_networks_name_the_hosts_that_differ() {
        let name = |name: &str| name.parse::<Name>().unwrap();
        let datastore = Datastore {
            id: DatastoreId::from_u128(1),
            name: name("fast"),
            kind: DatastoreKind::Shared,
            path: None,
            hosts: BTreeMap::from([(name("h1"), "/a".into()), (name("h2"), "/b".into())]),
        };
        assert_eq!(
            datastores(&[datastore]),
            "NAME  KIND    PATH  ON SINGLE HOSTS\n\
             fast  shared  -     h1=/a, h2=/b\n"
        );
        let network = Network {
            id: NetworkId::from_u128(1),
            name: name("lan"),
            kind: NetworkKind::Bridge,
            bridge: "br0".into(),
            hosts: BTreeMap::new(),
        };
        assert_eq!(networks(&[network]), "NAME  KIND    BRIDGE  ON SINGLE HOSTS\nlan   bridge  br0\n");
    }
}

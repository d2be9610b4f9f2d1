//! The whole state at one revision, for those who look at much of it.

use std::collections::BTreeMap;

use limosa_api::rest::{Datastore, Network};
use limosa_model::{DatastoreId, HostId, MigrationId, Name, NetworkId, TaskId, VmId};
use limosa_store::{KeyValue, Range, Revision, Store, StoreError};
use serde::de::DeserializeOwned;

use crate::records::{HostRecord, MigrationRecord, TaskRecord, VmRecord, keys};

/// Everything that reconcilers and lists look at.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) revision: u64,
    pub(crate) hosts: BTreeMap<HostId, HostRecord>,
    pub(crate) datastores: BTreeMap<DatastoreId, Datastore>,
    pub(crate) networks: BTreeMap<NetworkId, Network>,
    pub(crate) vms: BTreeMap<VmId, VmRecord>,
    pub(crate) migrations: BTreeMap<MigrationId, MigrationRecord>,
    pub(crate) tasks: BTreeMap<TaskId, TaskRecord>,
}

impl Snapshot {
    pub(crate) async fn read(store: &dyn Store) -> Result<Self, StoreError> {
        let hosts = store.range(Range::prefix(keys::HOSTS)).await?;
        let at = hosts.revision;
        Ok(Self {
            revision: at.0,
            hosts: values(&hosts.entries, |host: &HostRecord| host.id)?,
            datastores: read(store, keys::DATASTORES, at, |datastore: &Datastore| datastore.id).await?,
            networks: read(store, keys::NETWORKS, at, |network: &Network| network.id).await?,
            vms: read(store, keys::VMS, at, |vm: &VmRecord| vm.id).await?,
            migrations: read(store, keys::MIGRATIONS, at, MigrationRecord::id).await?,
            tasks: read(store, keys::TASKS, at, |task: &TaskRecord| task.task.id).await?,
        })
    }

    /// The host with this name or id.
    pub(crate) fn host(&self, named: &str) -> Option<&HostRecord> {
        find(&self.hosts, named, |host| &host.name)
    }

    /// The VM with this name or id.
    pub(crate) fn vm(&self, named: &str) -> Option<&VmRecord> {
        find(&self.vms, named, |vm| &vm.spec.name)
    }

    /// The datastore with this name or id.
    pub(crate) fn datastore(&self, named: &str) -> Option<&Datastore> {
        find(&self.datastores, named, |datastore| &datastore.name)
    }

    /// The network with this name or id.
    pub(crate) fn network(&self, named: &str) -> Option<&Network> {
        find(&self.networks, named, |network| &network.name)
    }

    /// What a host is called; its id where it is gone.
    pub(crate) fn host_name(&self, host: HostId) -> String {
        self.hosts.get(&host).map_or_else(|| host.to_string(), |host| host.name.to_string())
    }

    /// The host that has the right to run a VM; during a migration, the source.
    pub(crate) fn host_of(&self, vm: &VmRecord) -> Option<HostId> {
        match vm.moving() {
            Some(migration) => self.migrations.get(&migration).map(|m| m.passage.ticket.source),
            None => vm.on().map(|(host, _)| host),
        }
    }

    /// The VMs that are on a host, or may be, or are on their way to it.
    pub(crate) fn vms_on(&self, host: HostId) -> impl Iterator<Item = &VmRecord> {
        self.vms.values().filter(move |vm| match vm.moving().and_then(|m| self.migrations.get(&m)) {
            Some(m) => [m.passage.ticket.source, m.passage.ticket.destination].contains(&host),
            None => vm.on().is_some_and(|(on, _)| on == host),
        })
    }
}

async fn read<I: Ord, T: DeserializeOwned>(
    store: &dyn Store,
    prefix: &str,
    at: Revision,
    id: impl Fn(&T) -> I,
) -> Result<BTreeMap<I, T>, StoreError> {
    values(&store.range(Range::prefix(prefix).at(at)).await?.entries, id)
}

fn values<I: Ord, T: DeserializeOwned>(
    entries: &[KeyValue],
    id: impl Fn(&T) -> I,
) -> Result<BTreeMap<I, T>, StoreError> {
    entries.iter().map(|entry| entry.json::<T>().map(|found| (id(&found.value), found.value))).collect()
}

fn find<'a, I: Ord + std::str::FromStr, T>(
    all: &'a BTreeMap<I, T>,
    named: &str,
    name: impl Fn(&T) -> &Name,
) -> Option<&'a T> {
    let by_id = named.parse::<I>().ok().and_then(|id| all.get(&id));
    by_id.or_else(|| all.values().find(|one| name(one).as_str() == named))
}

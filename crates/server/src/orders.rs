//! How orders leave: one of a kind at a time, repeated until answered, each for one journal of its host.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use limosa_api::agent::{DatastoreAt, NetworkAt, Order, VmOnHost};
use limosa_api::client::{AgentClient, CallError};
use limosa_api::rest::{Datastore, Network};
use limosa_model::{Failure, FailureKind, Name, VmId, VmSpec};

use crate::live::{Attempt, OrderKey};
use crate::records::HostRecord;
use crate::server::Server;
use crate::snapshot::Snapshot;

/// What came of an order that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// Something is other than before: the reconcilers look at once.
    Changed,
    /// Nothing is.
    Same,
}

impl Server {
    /// Sends an order unless it is on its way, or has failed a moment ago. What fails is repeated by the reconcilers
    /// as long as they still want it.
    pub(crate) fn dispatch<F>(self: &Arc<Self>, key: OrderKey, order: F)
    where
        F: Future<Output = Result<Done, Failure>> + Send + 'static,
    {
        let before = {
            let mut live = self.live();
            if !live.may_order(key) {
                return;
            }
            let before = live.trouble(key).map_or(0, |(_, times)| times);
            live.orders.insert(key, Attempt::UnderWay { failed: before });
            before
        };
        let server = self.clone();
        self.spawn(async move {
            let done = order.await;
            let pause = server.config.reconcile_interval_ms.duration();
            let mut live = server.live();
            match done {
                Ok(Done::Changed) => {
                    live.orders.remove(&key);
                    drop(live);
                    server.changed();
                }
                Ok(Done::Same) => {
                    live.orders.insert(key, Attempt::Answered { not_before: Instant::now() + pause });
                }
                Err(failure) => {
                    tracing::debug!(?key, %failure, "an order failed");
                    live.order_failed(key, failure, pause, before);
                }
            }
        });
    }

    /// The agent of a host, where it can be given orders.
    pub(crate) fn agent_of(&self, host: &HostRecord) -> Result<Arc<AgentClient>, Failure> {
        let unusable = |why: String| {
            Failure::new(
                FailureKind::Peer,
                format!("host {} cannot be given orders: {why}", host.name),
                "see `limosa host show`",
            )
        };
        if let Some(why) = host.refusal() {
            return Err(unusable(why));
        }
        let address = host.address.ok_or_else(|| unusable("it has never reported".into()))?;
        self.agent(host.id, address).map_err(|error| unusable(error.to_string()))
    }

    /// An order for the journal that the host has now.
    pub(crate) fn order<T>(&self, host: &HostRecord, order: T) -> Result<Order<T>, Failure> {
        let journal = host.journal.ok_or_else(|| {
            let what = format!("host {} has never reported", host.name);
            Failure::new(FailureKind::Peer, what, "start its agent")
        })?;
        Ok(Order { journal, incarnation: self.incarnation, order })
    }
}

/// A refusal is the host's own word; anything else leaves open what has happened.
pub(crate) fn was_refused(error: &CallError) -> bool {
    matches!(error, CallError::Refused(_))
}

/// A VM with everything that its spec names, as a host sees it.
pub(crate) fn target(
    snapshot: &Snapshot,
    vm: VmId,
    spec: &VmSpec,
    host: &HostRecord,
) -> Result<VmOnHost, Failure> {
    let mut datastores = Vec::new();
    for name in datastores_of(spec) {
        let datastore = snapshot.datastore(name.as_str()).ok_or_else(|| missing("datastore", name))?;
        let path = path_on(datastore, &host.name).ok_or_else(|| {
            Failure::new(
                FailureKind::Storage,
                format!("datastore {name} is not on host {}", host.name),
                format!("choose a host that has {name}, or put the disks on a shared datastore"),
            )
        })?;
        datastores.push(DatastoreAt { id: datastore.id, name: name.clone(), kind: datastore.kind, path });
    }
    let mut networks = Vec::new();
    for name in spec.nics.iter().map(|nic| &nic.network).collect::<BTreeSet<_>>() {
        let network = snapshot.network(name.as_str()).ok_or_else(|| missing("network", name))?;
        networks.push(NetworkAt {
            id: network.id,
            name: name.clone(),
            bridge: bridge_on(network, &host.name),
        });
    }
    Ok(VmOnHost { vm, spec: spec.clone(), datastores, networks })
}

/// The datastores that a spec names.
pub(crate) fn datastores_of(spec: &VmSpec) -> BTreeSet<&Name> {
    let disks = spec.disks.iter().map(|disk| &disk.datastore);
    let iso = spec.boot.iso.iter().map(|iso| &iso.datastore);
    let kernel = spec.boot.kernel.iter().map(|kernel| &kernel.datastore);
    disks.chain(iso).chain(kernel).collect()
}

/// Where a host has a datastore, if it does.
pub(crate) fn path_on(datastore: &Datastore, host: &Name) -> Option<PathBuf> {
    datastore.hosts.get(host).or(datastore.path.as_ref()).cloned()
}

fn bridge_on(network: &Network, host: &Name) -> String {
    network.hosts.get(host).unwrap_or(&network.bridge).clone()
}

fn missing(kind: &str, name: &Name) -> Failure {
    let remedy = format!("make it with `limosa {kind} add {name}`, or correct the spec");
    Failure::new(FailureKind::NotFound, format!("there is no {kind} {name}"), remedy)
}

//! After the state was restored from a backup: nothing is concluded until all have been heard, and an operator has
//! spoken. Then the picture is built anew from what runs.

use std::sync::atomic::Ordering;

use limosa_api::rest::{ConfirmRestore, HostState};
use limosa_migration::custody::{At, Passage, Sighting, reconcile};
use limosa_model::{Name, PowerState, VmId};
use limosa_store::StoreError;

use crate::records::{ClusterRecord, MigrationRecord, VmRecord, keys};
use crate::refused::{Answer, Refused};
use crate::server::Server;
use crate::snapshot::Snapshot;
use crate::whereabouts;

/// Notes durably that this is another incarnation than the state was written by.
pub(crate) async fn note(server: &Server) -> Result<(), StoreError> {
    if !server.is_restoring() {
        return Ok(());
    }
    let mut tx = server.begin().await;
    let Some(cluster) = tx.get::<ClusterRecord>(keys::CLUSTER).await? else { return Ok(()) };
    if !cluster.restoring {
        tx.event(
            "restored",
            subject(server),
            "the state was restored from a backup: nothing is started or moved",
        )?;
        tx.put(keys::CLUSTER, &ClusterRecord { restoring: true, ..cluster })?;
    }
    server.commit(tx).await
}

/// The hosts that have not been heard of since, and are not lost.
pub(crate) fn missing(server: &Server, snapshot: &Snapshot) -> Vec<Name> {
    let heard = |state| matches!(state, HostState::Online | HostState::Lost);
    snapshot
        .hosts
        .values()
        .filter(|host| !heard(server.host_state(host)))
        .map(|host| host.name.clone())
        .collect()
}

/// An operator confirms that no host has joined since the backup was made.
pub(crate) async fn confirm(server: &Server, ask: ConfirmRestore) -> Answer<()> {
    if !server.is_restoring() {
        return Err(Refused::conflict(
            "the server was not restored from a backup",
            "there is nothing to confirm",
        ));
    }
    if !ask.no_other_hosts {
        return Err(Refused::invalid(
            "it was not confirmed that no host has joined since the backup was made",
            "let such a host join again first; then confirm with no_other_hosts",
        ));
    }
    let snapshot = server.snapshot().await?;
    let missing = missing(server, &snapshot);
    if !missing.is_empty() {
        let names: Vec<_> = missing.iter().map(Name::as_str).collect();
        return Err(Refused::conflict(
            format!("these hosts have not reported since the restore: {}", names.join(", ")),
            "start their agents, or declare them lost with `limosa host declare-lost`",
        ));
    }
    for vm in snapshot.vms.keys() {
        rebuild(server, &snapshot, *vm).await?;
    }
    let mut tx = server.begin().await;
    if let Some(cluster) = tx.get::<ClusterRecord>(keys::CLUSTER).await? {
        let cluster = ClusterRecord { restoring: false, incarnation: server.incarnation, ..cluster };
        tx.put(keys::CLUSTER, &cluster)?;
        tx.event("restore-confirmed", subject(server), "the restored state is confirmed: work goes on")?;
    }
    server.commit(tx).await?;
    server.restoring.store(false, Ordering::SeqCst);
    server.changed();
    Ok(())
}

fn subject(server: &Server) -> limosa_api::rest::Subject {
    limosa_api::rest::Subject {
        kind: limosa_api::rest::SubjectKind::Cluster,
        id: server.cluster.name.clone(),
        name: server.cluster.name.parse().ok(),
    }
}

/// Builds what is known of one VM anew.
async fn rebuild(server: &Server, snapshot: &Snapshot, id: VmId) -> Answer<()> {
    let mut tx = server.begin().await;
    let vm_key = keys::of(keys::VMS, id);
    let Some(mut vm) = tx.get::<VmRecord>(&vm_key).await? else { return Ok(()) };
    let mut backup: Vec<Passage> = Vec::new();
    for migration in snapshot.migrations.values().filter(|migration| migration.passage.ticket.vm == id) {
        let now = tx.get::<MigrationRecord>(&keys::of(keys::MIGRATIONS, migration.id())).await?;
        backup.extend(now.map(|record| record.passage));
    }
    let sightings: Vec<Sighting> = {
        let live = server.live();
        let hosts =
            live.hosts.iter().filter(|(host, _)| snapshot.hosts.get(host).is_some_and(|record| !record.lost));
        hosts
            .map(|(host, live)| {
                let here = live.report.vms.iter().filter(|vm| vm.vm == id && vm.power != PowerState::Stopped);
                let parts = live.report.migrations.iter().filter(|status| status.ticket.vm == id);
                Sighting {
                    host: *host,
                    qemus: here.map(|vm| vm.epoch).collect(),
                    parts: parts.map(|status| (status.ticket, status.fact)).collect(),
                }
            })
            .collect()
    };
    let lost: Vec<_> = snapshot.hosts.values().filter(|host| host.lost).map(|host| host.id).collect();
    let (custody, passages) = reconcile(id, server.incarnation, backup, &sightings, &lost);
    for passage in passages {
        let key = keys::of(keys::MIGRATIONS, passage.ticket.migration);
        let record = match tx.get::<MigrationRecord>(&key).await? {
            Some(known) => {
                MigrationRecord { passage, source_journal: None, destination_journal: None, ..known }
            }
            None => unheard_of(&vm, passage),
        };
        tx.put(&key, &record)?;
    }
    vm.custody = custody;
    (vm.journal, vm.by_start, vm.boot) = (None, false, None);
    vm.confirmed = vm.on().is_some();
    vm.reported = vm.confirmed;
    if let At::Nowhere = vm.custody.at {
        let end = crate::tasks::TaskEnd::Failed(limosa_model::Failure::new(
            limosa_model::FailureKind::Conflict,
            "the server was restored from a backup meanwhile",
            "ask again",
        ));
        whereabouts::finish(&mut tx, &mut vm, end).await?;
    } else {
        vm.desired = limosa_api::rest::DesiredPower::Running;
    }
    tx.put(&vm_key, &vm)?;
    server.commit(tx).await?;
    Ok(())
}

/// A migration that began after the backup was made.
fn unheard_of(vm: &VmRecord, passage: Passage) -> MigrationRecord {
    let now = jiff::Timestamp::now();
    MigrationRecord {
        passage,
        options: limosa_api::agent::MigrationOptions::default(),
        task: limosa_model::TaskId::new(),
        vm_name: vm.spec.name.clone(),
        spec: vm.spec.clone(),
        prediction: None,
        created: now,
        ended: None,
        prepare_us: 0,
        cancel_asked: false,
        failure: None,
        report: None,
        source_journal: None,
        destination_journal: None,
        closed: false,
    }
}

//! What an operator's word that a host is gone for good means for each VM that was on it, or on its way.

use std::sync::Arc;

use limosa_store::StoreError;

use crate::records::{HostRecord, MigrationRecord};
use crate::server::Server;
use crate::whereabouts;

pub(super) async fn lost(server: &Arc<Server>) -> Result<(), StoreError> {
    let snapshot = server.snapshot().await?;
    for host in snapshot.hosts.values().filter(|host| host.lost) {
        for vm in snapshot.vms.values() {
            let of_vm = snapshot.migrations.values().filter(|record| record.passage.ticket.vm == vm.id);
            let unheard: Vec<_> =
                of_vm.filter(|record| is_news(record, host)).map(MigrationRecord::id).collect();
            if !unheard.is_empty() || vm.on().is_some_and(|(on, _)| on == host.id) {
                let mut tx = server.begin().await;
                whereabouts::lost_under(&mut tx, vm.id, unheard.into_iter(), host).await?;
                server.commit(tx).await?;
            }
        }
    }
    Ok(())
}

fn is_news(record: &MigrationRecord, host: &HostRecord) -> bool {
    !record.closed && record.passage.host_lost(host.id) != record.passage
}

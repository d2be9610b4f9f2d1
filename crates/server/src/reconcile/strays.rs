//! VMs that run without a right. One that a later right has overtaken is ended; all others are shown, and left.

use std::sync::Arc;

use limosa_api::agent::{ActOnVm, VmAction, VmStatus};
use limosa_api::rest::HostState;
use limosa_model::{HostId, PowerState};
use limosa_store::StoreError;

use crate::live::OrderKey;
use crate::orders::Done;
use crate::server::Server;
use crate::snapshot::Snapshot;

/// Whether a host may have the VM that it shows.
pub(crate) fn is_entitled(snapshot: &Snapshot, host: HostId, status: &VmStatus) -> bool {
    let Some(vm) = snapshot.vms.get(&status.vm) else { return false };
    vm.on() == Some((host, status.epoch)) || is_end_of_passage(snapshot, host, status)
}

/// An end of a migration that is not over at both ends does what it must by itself.
fn is_end_of_passage(snapshot: &Snapshot, host: HostId, status: &VmStatus) -> bool {
    snapshot.migrations.values().filter(|migration| !migration.closed).any(|migration| {
        let ticket = migration.passage.ticket;
        ticket.vm == status.vm
            && [(ticket.source, ticket.source_epoch), (ticket.destination, ticket.epoch)]
                .contains(&(host, status.epoch))
    })
}

pub(super) async fn strays(server: &Arc<Server>) -> Result<(), StoreError> {
    let snapshot = server.snapshot().await?;
    for host in snapshot.hosts.values().filter(|host| server.host_state(host) == HostState::Online) {
        let (shown, sequence) = match server.live().hosts.get(&host.id) {
            Some(live) => (live.report.vms.clone(), live.report.sequence),
            None => continue,
        };
        for status in shown {
            if status.power == PowerState::Stopped || is_entitled(&snapshot, host.id, &status) {
                continue;
            }
            let key = (host.id, status.vm, status.epoch);
            let (first, is_told) = *server.live().strays.entry(key).or_insert((sequence, false));
            // The report may be older than what has just ended: a later one has to show it still.
            if first == sequence {
                continue;
            }
            if !is_told {
                let message = format!(
                    "{} runs on host {} under epoch {} without a right that the server knows of",
                    status.name, host.name, status.epoch
                );
                let mut tx = server.begin().await;
                tx.event("stray", host.subject(), message)?;
                server.commit(tx).await?;
                server.live().strays.insert(key, (first, true));
            }
            let overtaken = snapshot.vms.get(&status.vm).is_some_and(|vm| status.epoch < vm.custody.last);
            if overtaken {
                let (server_, host) = (server.clone(), host.clone());
                server.dispatch(OrderKey::Vm(status.vm, "end-stray"), async move {
                    let order = ActOnVm { epoch: status.epoch, action: VmAction::Kill };
                    let order = server_.order(&host, order)?;
                    server_.agent_of(&host)?.act(status.vm, &order).await?;
                    Ok(Done::Same)
                });
            }
        }
    }
    Ok(())
}

//! The prepare checks that only a host itself can make. They change nothing.

use std::sync::Arc;
use std::time::Instant;

use limosa_api::agent::{CheckOrder, CheckReport, Role};
use limosa_api::client::AgentClient;
use limosa_api::tls::{Identity, client_config};
use limosa_model::{Failure, FailureKind, MigrationId};
use limosa_net::{IfName, PathMtu, path_mtu_probe};

use crate::agent::Agent;
use crate::{life, resolve};

/// The packet that must pass unbroken: a full Ethernet frame, or what the sender's own link carries.
const PROBE_BYTES: u16 = 1500;

/// Would this host do?
pub(crate) async fn check(agent: &Arc<Agent>, order: &CheckOrder) -> CheckReport {
    let mut report = CheckReport {
        failed: vec![],
        warnings: vec![],
        round_trip_us: None,
        path_mtu: None,
        dirty_rate: None,
    };
    match order.role {
        Role::Source => check_source(agent, order, &mut report),
        Role::Destination => check_destination(agent, order, &mut report),
    }
    check_disks(order, &mut report);
    check_networks(agent, order, &mut report).await;
    check_peer(agent, order, &mut report).await;
    check_path(order, &mut report).await;
    report
}

fn check_source(agent: &Agent, order: &CheckOrder, report: &mut CheckReport) {
    let name = &order.target.spec.name;
    match agent.guest(order.target.vm) {
        Some(guest) if guest.epoch() == order.epoch => {}
        Some(guest) => report.failed.push(Failure::new(
            FailureKind::Conflict,
            format!("VM {name} runs under epoch {}, the server thinks {}", guest.epoch(), order.epoch),
            "wait for the host's next report and try again",
        )),
        None => report.failed.push(Failure::new(
            FailureKind::Conflict,
            format!("VM {name} does not run on its host"),
            "start it, or wait for the host's next report",
        )),
    }
    if let Some(migration) = agent.open_migration_of(order.target.vm) {
        report.failed.push(Failure::new(
            FailureKind::Conflict,
            format!("migration {} of VM {name} has not ended on the source", migration.id()),
            "wait for its end, or cancel it",
        ));
    }
    let pending = agent.record(order.target.vm).map(|record| record.target.spec);
    if let (Some(guest), Some(wanted)) = (agent.guest(order.target.vm), pending)
        && (guest.vm.plan().spec.cpus, guest.vm.plan().spec.memory) != (wanted.cpus, wanted.memory)
    {
        report.failed.push(Failure::new(
            FailureKind::Incompatible,
            format!("VM {name} runs with other CPUs or memory than its spec says"),
            "restart it first, so that both ends make the same machine",
        ));
    }
}

fn check_destination(agent: &Agent, order: &CheckOrder, report: &mut CheckReport) {
    let spec = &order.target.spec;
    if let Some(guest) = agent.guest(order.target.vm) {
        report.failed.push(Failure::new(
            FailureKind::Conflict,
            format!("VM {} has a QEMU on the destination already, under epoch {}", spec.name, guest.epoch()),
            "wait until it is gone",
        ));
    }
    if let Err(failure) = life::admit(agent, &order.target) {
        report.failed.push(failure);
    }
    if let Some(pinned) = &spec.machine.machine_type
        && !agent.facts.machine_types.contains(pinned)
    {
        report.failed.push(Failure::new(
            FailureKind::Incompatible,
            format!("the destination's QEMU {} has no machine type {pinned}", agent.facts.qemu_version),
            "install the QEMU version of the source there, or choose another host",
        ));
    }
    if agent.facts.accelerator != order.peer_facts.accelerator {
        report.failed.push(Failure::new(
            FailureKind::Incompatible,
            format!(
                "the source runs under {:?}, the destination under {:?}",
                order.peer_facts.accelerator, agent.facts.accelerator
            ),
            "choose a host with the same accelerator",
        ));
    }
    if spec.machine.cpu_model == "host" {
        let missing: Vec<_> = order
            .peer_facts
            .cpu_flags
            .iter()
            .filter(|flag| !agent.facts.cpu_flags.contains(flag))
            .take(8)
            .cloned()
            .collect();
        if !missing.is_empty() {
            report.failed.push(Failure::new(
                FailureKind::Incompatible,
                format!(
                    "VM {} has the source's own CPU model, and the destination's CPU lacks {}",
                    spec.name,
                    missing.join(", ")
                ),
                "choose a host with the same CPU, or give the VM a CPU model that both have",
            ));
        }
        report.warnings.push("the CPU model `host` moves only between hosts with the same CPU".into());
    }
}

fn check_disks(order: &CheckOrder, report: &mut CheckReport) {
    let target = &order.target;
    for disk in &target.spec.disks {
        match resolve::disk_path(target, disk) {
            Err(failure) => report.failed.push(failure),
            Ok(path) if !path.is_file() => report.failed.push(Failure::new(
                FailureKind::Storage,
                format!(
                    "disk {} of VM {} is not at {} on this host",
                    disk.name,
                    target.spec.name,
                    path.display()
                ),
                format!("mount datastore {} on this host, or choose one that has it", disk.datastore),
            )),
            Ok(_) => {}
        }
    }
}

async fn check_networks(agent: &Agent, order: &CheckOrder, report: &mut CheckReport) {
    for nic in &order.target.spec.nics {
        let Some(network) = order.target.networks.iter().find(|n| n.name == nic.network) else {
            report.failed.push(Failure::new(
                FailureKind::NotFound,
                format!("network {} is not known on this host", nic.network),
                "add it to the host",
            ));
            continue;
        };
        let found = match network.bridge.parse::<IfName>() {
            Ok(name) => agent.net.bridge(&name).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match found {
            Ok(bridge) => report.warnings.extend(bridge.warnings().iter().map(ToString::to_string)),
            Err(why) => report.failed.push(Failure::new(
                FailureKind::Incompatible,
                format!(
                    "network {} has no working bridge {} on this host: {why}",
                    network.name, network.bridge
                ),
                "make the bridge, or choose another host",
            )),
        }
    }
}

/// Whether the other end's agent answers this one, and how soon.
async fn check_peer(agent: &Agent, order: &CheckOrder, report: &mut CheckReport) {
    let tls = match client_config(Some(&agent.credential), &agent.ca, Identity::Host(order.peer.host)) {
        Ok(tls) => tls,
        Err(error) => {
            report.failed.push(Failure::new(FailureKind::Peer, error.to_string(), "join the host again"));
            return;
        }
    };
    let client = AgentClient::new(order.peer.address, tls);
    // What it says does not matter: that it is who it should be, and answers, does. The second answer is timed,
    // over the connection that the first has made.
    let unknown = MigrationId::new();
    if let Err(error) = client.migration(unknown).await
        && let limosa_api::client::CallError::Unreachable { .. } = error
    {
        report.failed.push(Failure::new(
            FailureKind::Peer,
            format!("the other host's agent at {} does not answer this host: {error}", order.peer.address),
            "check the management network between the two hosts",
        ));
        return;
    }
    let asked = Instant::now();
    let _ = client.migration(unknown).await;
    report.round_trip_us = Some(asked.elapsed().as_micros() as u64);
}

/// Whether full packets pass between the two on the migration network.
async fn check_path(order: &CheckOrder, report: &mut CheckReport) {
    let address = order.peer_migration_address.ip();
    match path_mtu_probe(address, PROBE_BYTES).await {
        Ok(PathMtu::Proven) => report.path_mtu = Some(PROBE_BYTES.into()),
        Ok(PathMtu::TooLarge) => report.warnings.push(format!(
            "packets of {PROBE_BYTES} bytes do not reach {address} unbroken: the migration network has a smaller MTU on the way"
        )),
        Ok(PathMtu::NoAnswer) => report.warnings.push(format!(
            "{address} on the migration network does not answer to echo requests: its path could not be proven"
        )),
        Err(error) => report.failed.push(Failure::new(
            FailureKind::Peer,
            format!("the other host cannot be reached at {address} on the migration network: {error}"),
            "check the migration network and the addresses in the agents' configurations",
        )),
    }
}

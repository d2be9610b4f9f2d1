//! What is checked before a VM starts or moves, and where it goes.
//!
//! Pure comparisons of what hosts have reported come first; then both ends of a migration are asked to look for
//! themselves. Each failed check names the object, the two values and the remedy.

use limosa_api::agent::{CheckOrder, Peer, Role};
use limosa_api::client::CallError;
use limosa_api::rest::{HostRef, HostState, MigrationPlan, RejectedHost, VmRef};
use limosa_model::spec::Chipset;
use limosa_model::{Bandwidth, Capacity, Failure, FailureKind, HostId, MigrationId, Phase, VmSpec};
use limosa_placement::{Candidate, Choice, choose, no_room};

use crate::orders::target;
use crate::predict;
use crate::records::{HostRecord, VmRecord, takes};
use crate::refused::Refused;
use crate::server::Server;
use crate::snapshot::Snapshot;

/// Chooses a host for a VM that starts; `only` where a user has named one.
pub(crate) fn place(
    server: &Server,
    snapshot: &Snapshot,
    vm: &VmRecord,
    only: Option<HostId>,
) -> Result<HostId, Failure> {
    let hosts = snapshot.hosts.values().filter(|host| only.is_none_or(|only| only == host.id));
    let candidates: Vec<_> = hosts
        .map(|host| {
            let failed = fits(server, snapshot, &vm.spec, vm, host).into_iter().next();
            candidate(server, snapshot, host, failed)
        })
        .collect();
    let choice = choose(vm.takes(), &candidates);
    choice.host.ok_or_else(|| no_host(vm, &choice))
}

fn no_host(vm: &VmRecord, choice: &Choice) -> Failure {
    let reasons: Vec<_> = choice.rejected.iter().map(|host| format!("{}: {}", host.name, host.why)).collect();
    let reasons = if reasons.is_empty() { "there are no hosts".to_owned() } else { reasons.join("; ") };
    Failure::new(
        FailureKind::Resource,
        format!("no host can take {}: {reasons}", vm.spec.name),
        "add a host, stop VMs that are not needed, or make the VM smaller",
    )
}

/// What a host has, and what is taken of it: by what it says, and by what the server has promised.
pub(crate) fn taken(server: &Server, snapshot: &Snapshot, host: HostId) -> Capacity {
    let promised = snapshot.vms_on(host).fold(Capacity::default(), |sum, vm| sum.plus(vm.takes()));
    let said = server.live().hosts.get(&host).map_or(Capacity::default(), |live| live.report.taken);
    Capacity { memory: promised.memory.max(said.memory), cpus: promised.cpus.max(said.cpus) }
}

fn candidate(server: &Server, snapshot: &Snapshot, host: &HostRecord, failed: Option<Failure>) -> Candidate {
    Candidate {
        host: host.id,
        name: host.name.clone(),
        capacity: host.facts.as_ref().map_or(Capacity::default(), |facts| facts.capacity),
        taken: taken(server, snapshot, host.id),
        refusal: failed.map(|failure| failure.what),
    }
}

/// Why a VM cannot be on a host, wherever it comes from.
fn fits(
    server: &Server,
    snapshot: &Snapshot,
    spec: &VmSpec,
    vm: &VmRecord,
    host: &HostRecord,
) -> Vec<Failure> {
    let name = &host.name;
    let fail =
        |kind, what: String, remedy: &str| vec![Failure::new(kind, what, remedy).during(Phase::Prepare)];
    match server.host_state(host) {
        HostState::Online => {}
        HostState::Joined => {
            return fail(FailureKind::Peer, format!("host {name} has never reported"), "start its agent");
        }
        HostState::Offline => {
            return fail(
                FailureKind::Peer,
                format!("host {name} is offline"),
                "start its agent, or look at its network",
            );
        }
        HostState::Quarantined | HostState::Lost => {
            let why = host.refusal().unwrap_or_default();
            return fail(
                FailureKind::Denied,
                format!("host {name} cannot be used: {why}"),
                "see `limosa host show`",
            );
        }
    }
    let mut failed = Vec::new();
    if host.cordoned {
        let remedy = format!("`limosa host uncordon {name}`, or choose another host");
        failed.extend(fail(
            FailureKind::Denied,
            format!("host {name} is cordoned: it takes no VMs"),
            &remedy,
        ));
    }
    if let Err(failure) = target(snapshot, vm.id, spec, host) {
        failed.push(failure.during(Phase::Prepare));
    }
    let machine_types = host.facts.as_ref().map(|facts| facts.machine_types.as_slice()).unwrap_or_default();
    match &spec.machine.machine_type {
        Some(wanted) if !machine_types.contains(wanted) => failed.extend(fail(
            FailureKind::Incompatible,
            format!("{} is pinned to machine type {wanted}; QEMU on host {name} does not have it", spec.name),
            "install a QEMU on that host that has it, or choose another host",
        )),
        None if newest(spec.machine.chipset, machine_types.iter()).is_none() => failed.extend(fail(
            FailureKind::Incompatible,
            format!("QEMU on host {name} has no machine type for chipset {:?}", spec.machine.chipset),
            "choose the other chipset, or another host",
        )),
        _ => {}
    }
    failed
}

/// The machine type to pin at a first start: the newest that all hosts online have, else the newest of this host.
pub(crate) fn machine_type(
    server: &Server,
    snapshot: &Snapshot,
    spec: &VmSpec,
    host: &HostRecord,
) -> Option<String> {
    let own = &host.facts.as_ref()?.machine_types;
    let others: Vec<_> = snapshot
        .hosts
        .values()
        .filter(|other| server.host_state(other) == HostState::Online)
        .filter_map(|other| other.facts.as_ref())
        .collect();
    let shared = own.iter().filter(|kind| others.iter().all(|facts| facts.machine_types.contains(kind)));
    newest(spec.machine.chipset, shared).or_else(|| newest(spec.machine.chipset, own.iter()))
}

fn newest<'a>(chipset: Chipset, types: impl Iterator<Item = &'a String>) -> Option<String> {
    let family = match chipset {
        Chipset::Q35 => "pc-q35-",
        Chipset::Pc => "pc-i440fx-",
    };
    let version = |name: &str| -> Option<Vec<u32>> {
        name.strip_prefix(family)?.split('.').map(|part| part.parse().ok()).collect()
    };
    types.filter_map(|name| Some((version(name)?, name))).max().map(|(_, name)| name.clone())
}

/// Why a VM cannot move from `source` to `destination`.
fn unfit(
    server: &Server,
    snapshot: &Snapshot,
    vm: &VmRecord,
    source: &HostRecord,
    destination: &HostRecord,
) -> Vec<Failure> {
    let (from, to, name) = (&source.name, &destination.name, &vm.spec.name);
    if source.id == destination.id {
        let what = format!("{name} is on host {to} already");
        return vec![Failure::new(FailureKind::Conflict, what, "choose another host").during(Phase::Prepare)];
    }
    let mut failed = fits(server, snapshot, &vm.spec, vm, destination);
    let mut fail = |what: String, remedy: &str| {
        failed.push(Failure::new(FailureKind::Incompatible, what, remedy).during(Phase::Prepare));
    };
    let (Some(here), Some(there)) = (&source.facts, &destination.facts) else { return failed };
    if here.accelerator != there.accelerator {
        fail(
            format!(
                "host {from} runs VMs with {:?}, host {to} with {:?}",
                here.accelerator, there.accelerator
            ),
            "choose a host with the same accelerator",
        );
    }
    let major = |version: &str| version.split('.').next().and_then(|part| part.parse::<u32>().ok());
    if major(&there.qemu_version) < major(&here.qemu_version) {
        fail(
            format!("host {from} has QEMU {}, host {to} the older {}", here.qemu_version, there.qemu_version),
            "upgrade QEMU on the destination, or choose another host",
        );
    }
    if vm.spec.machine.cpu_model != "default" {
        let missing: Vec<_> = here.cpu_flags.iter().filter(|flag| !there.cpu_flags.contains(flag)).collect();
        if !missing.is_empty() {
            let shown: Vec<_> = missing.iter().take(6).map(|flag| flag.as_str()).collect();
            fail(
                format!(
                    "{name} has CPU model {}, and the CPU of host {to} ({}) lacks {} features of that of host {from} \
                     ({}): {}",
                    vm.spec.machine.cpu_model,
                    there.cpu_model,
                    missing.len(),
                    here.cpu_model,
                    shown.join(", "),
                ),
                "choose a host with the same CPU, or give the VM the default CPU model",
            );
        }
    }
    failed
}

/// Plans a migration from what is known; nobody is asked. `to` where a user has named the destination.
pub(crate) fn plan(
    server: &Server,
    snapshot: &Snapshot,
    vm: &VmRecord,
    source: &HostRecord,
    to: Option<&HostRecord>,
) -> MigrationPlan {
    let mut plan = MigrationPlan {
        vm: VmRef { id: vm.id, name: vm.spec.name.clone() },
        source: host_ref(source),
        destination: None,
        why: String::new(),
        rejected: Vec::new(),
        failed: Vec::new(),
        warnings: Vec::new(),
        prediction: None,
        round_trip_us: None,
        path_mtu: None,
    };
    if let Err(failure) = target(snapshot, vm.id, &vm.spec, source) {
        plan.failed.push(failure.during(Phase::Prepare));
    }
    if vm.spec.machine.cpu_model == "host" {
        plan.warnings.push("CPU model `host` moves between hosts with the same CPU only".into());
    }
    match to {
        Some(to) => {
            plan.destination = Some(host_ref(to));
            plan.why = "it was asked for".into();
            plan.failed.extend(unfit(server, snapshot, vm, source, to));
            let room = no_room(takes(&vm.spec), &candidate(server, snapshot, to, None));
            if let Some(why) = room.filter(|_| plan.failed.is_empty()) {
                let failure = Failure::new(
                    FailureKind::Resource,
                    format!("host {} has no room for {}: {why}", to.name, vm.spec.name),
                    "choose another host, or move VMs away from it first",
                );
                plan.failed.push(failure.during(Phase::Prepare));
            }
        }
        None => {
            let others = snapshot.hosts.values().filter(|host| host.id != source.id);
            let candidates: Vec<_> = others
                .map(|host| {
                    let failed = unfit(server, snapshot, vm, source, host).into_iter().next();
                    candidate(server, snapshot, host, failed)
                })
                .collect();
            let choice = choose(vm.takes(), &candidates);
            plan.destination = choice.host.and_then(|host| snapshot.hosts.get(&host)).map(host_ref);
            if plan.destination.is_none() {
                plan.failed.push(no_host(vm, &choice).during(Phase::Prepare));
            }
            plan.why = choice.why;
            plan.rejected = choice
                .rejected
                .into_iter()
                .map(|host| RejectedHost { host: HostRef { id: host.host, name: host.name }, why: host.why })
                .collect();
        }
    }
    plan
}

/// Has both ends look for themselves, and adds what they find and what is to be expected.
pub(crate) async fn ask_hosts(
    server: &Server,
    snapshot: &Snapshot,
    vm: &VmRecord,
    limit: Option<Bandwidth>,
    plan: &mut MigrationPlan,
) {
    let Some(destination) = plan.destination.as_ref().and_then(|host| snapshot.hosts.get(&host.id)) else {
        return;
    };
    let Some(source) = snapshot.hosts.get(&plan.source.id) else { return };
    let migration = MigrationId::new();
    let asked = [(Role::Source, source, destination), (Role::Destination, destination, source)];
    let [of_source, of_destination] =
        asked.map(|(role, host, peer)| check(server, snapshot, vm, migration, role, host, peer));
    let (of_source, of_destination) = tokio::join!(of_source, of_destination);
    let mut dirty_rate = None;
    for (host, answer) in [(source, of_source), (destination, of_destination)] {
        match answer {
            Ok(Some(report)) => {
                plan.failed.extend(report.failed);
                plan.warnings.extend(report.warnings);
                plan.round_trip_us = plan.round_trip_us.or(report.round_trip_us);
                plan.path_mtu = plan.path_mtu.or(report.path_mtu);
                dirty_rate = dirty_rate.or(report.dirty_rate);
            }
            Ok(None) => {
                plan.warnings.push(format!(
                    "host {} cannot check by itself; only what it reports was compared",
                    host.name
                ));
            }
            Err(failure) => plan.failed.push(failure.during(Phase::Prepare)),
        }
    }
    plan.prediction = predict::predict(snapshot, vm, source.id, destination.id, limit, dirty_rate);
}

/// `None`: the host's agent does not know this question.
async fn check(
    server: &Server,
    snapshot: &Snapshot,
    vm: &VmRecord,
    migration: MigrationId,
    role: Role,
    host: &HostRecord,
    peer: &HostRecord,
) -> Result<Option<limosa_api::agent::CheckReport>, Failure> {
    let silent = |host: &HostRecord| {
        let what = format!("host {} has never reported", host.name);
        Failure::new(FailureKind::Peer, what, "start its agent")
    };
    let (Some(address), Some(peer_facts), Some(peer_migration_address)) =
        (peer.address, peer.facts.clone(), peer.migration_address)
    else {
        return Err(silent(peer));
    };
    let (_, epoch) = vm.on().ok_or_else(|| {
        Failure::new(FailureKind::Conflict, format!("{} does not run", vm.spec.name), "start it first")
    })?;
    let order = CheckOrder {
        role,
        target: target(snapshot, vm.id, &vm.spec, host)?,
        epoch,
        peer: Peer { host: peer.id, address },
        peer_facts,
        peer_migration_address,
    };
    match server.agent_of(host)?.check(migration, &order).await {
        Ok(report) => Ok(Some(report)),
        Err(CallError::Refused(problem)) if [404, 405, 501].contains(&problem.status) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The first failed check as a refusal that names the others too.
pub(crate) fn refusal(plan: &MigrationPlan) -> Option<Refused> {
    let mut failures = plan.failed.iter();
    let mut first = failures.next()?.clone();
    for other in failures {
        first.what = format!("{}; also: {}", first.what, other.what);
    }
    Some(first.into())
}

pub(crate) fn host_ref(host: &HostRecord) -> HostRef {
    HostRef { id: host.id, name: host.name.clone() }
}

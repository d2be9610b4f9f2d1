//! Hosts that forget, are gone, or are two; a server restored from a backup.

mod common;

use common::world::Hold;
use common::{Cluster, name};
use limosa_api::rest::{
    Cluster as ClusterView, ClusterState, ConfirmRestore, DeclareLost, DesiredPower, Host, HostState,
    ResolveVm, Task, TaskState, Vm,
};
use limosa_model::{BootId, FailureKind, JournalId, PowerState};
use limosa_store::{Embedded, restore_from};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_journal_on_the_source_ends_the_migration_by_what_its_qemu_does() {
    let cluster = Cluster::with_hosts(&["a", "b"]).await;
    let vm = cluster.run("web", "a").await;
    let source = cluster.agent("a").host;
    cluster.world.with(source, |host| host.holds.insert(Hold::Transfer));
    let task = cluster.migrate("web", "b").await.unwrap();
    cluster.event("migration-began").await;
    cluster.task_until(&task, |task| task.percent > 0).await;
    cluster.world.with(source, |host| {
        host.journal = JournalId::new();
        host.parts.clear();
    });
    cluster.event("journal-lost").await;
    let task = cluster.end_of(&task).await;
    assert_eq!(task.state, TaskState::Failed);
    assert!(cluster.world.hosts()[&source].orders.contains(&"recover source".to_owned()));
    assert_eq!(cluster.vm("web").await.host, Some(name("a")));
    assert_eq!(cluster.world.runners(vm.id), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_went_with_the_journal_counts_as_stopped_and_can_be_started() {
    let cluster = Cluster::with_hosts(&["a"]).await;
    let vm = cluster.run("web", "a").await;
    let host = cluster.agent("a").host;
    cluster.world.with(host, |host| {
        host.journal = JournalId::new();
        host.vms.clear();
    });
    let stopped = cluster.vm_until("web", |vm| vm.host.is_none()).await;
    assert_eq!(stopped.desired, DesiredPower::Stopped);
    let task: Task = cluster.post("/v1/vms/web/start", &json!({})).await.unwrap();
    assert_eq!(cluster.end_of(&task).await.state, TaskState::Succeeded);
    assert!(cluster.vm("web").await.epoch > vm.epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_concluded_from_silence() {
    let cluster = Cluster::with_hosts(&["a", "b"]).await;
    cluster.run("web", "a").await;
    let host = cluster.agent("a").host;
    cluster.world.with(host, |host| host.silent = true);
    cluster.host_until("a", |host| host.state == HostState::Offline).await;
    let vm = cluster.vm("web").await;
    assert_eq!((vm.host, vm.power), (Some(name("a")), None));
    let refused = cluster.post::<Task>("/v1/vms/web/stop", &json!({})).await.unwrap_err();
    assert!(refused.code == FailureKind::Peer && refused.detail.contains("offline"), "{refused}");
    cluster.world.with(host, |host| host.silent = false);
    cluster.vm_until("web", |vm| vm.power == Some(PowerState::Running)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_with_one_identity_are_quarantined_and_conclude_nothing_meanwhile() {
    let cluster = Cluster::with_hosts(&["a", "b"]).await;
    cluster.run("web", "a").await;
    let agent = cluster.agent("a");
    // A clone of the disk reports in between: another boot, and no VM.
    let mut sequence = 1_000_000;
    loop {
        sequence += 1;
        let answer = agent
            .report_as(|report| {
                report.boot = BootId("the clone's boot".into());
                report.sequence = sequence;
                report.vms.clear();
            })
            .await;
        if answer.is_err() {
            break;
        }
        cluster.world.happened.notified().await;
    }
    cluster.event("host-quarantined").await;
    assert_eq!(cluster.host("a").await.state, HostState::Quarantined);
    assert_eq!(cluster.vm("web").await.host, Some(name("a")));
    let host: Host = cluster.post("/v1/hosts/a/readmit", &json!({})).await.unwrap();
    assert_eq!(host.reason, None);
    cluster.host_until("a", |host| host.state == HostState::Online).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_word_starts_a_vm_of_a_lost_host_elsewhere_at_a_higher_epoch() {
    let cluster = Cluster::with_hosts(&["a", "b"]).await;
    let vm = cluster.run("web", "a").await;
    let resolve = ResolveVm { host_lost: "a".into(), confirmed: true };
    let refused = cluster.post::<Vm>("/v1/vms/web/resolve", &resolve).await.unwrap_err();
    assert!(refused.detail.contains("it is not gone"), "{refused}");

    cluster.agent("a").vanish();
    let host = cluster.agent("a").host;
    cluster.world.with(host, |host| host.vms.clear());
    cluster.host_until("a", |host| host.state == HostState::Offline).await;
    let unsure = ResolveVm { confirmed: false, ..resolve.clone() };
    assert_eq!(
        cluster.post::<Vm>("/v1/vms/web/resolve", &unsure).await.unwrap_err().code,
        FailureKind::Invalid
    );
    let elsewhere = ResolveVm { host_lost: "b".into(), confirmed: true };
    assert_eq!(
        cluster.post::<Vm>("/v1/vms/web/resolve", &elsewhere).await.unwrap_err().code,
        FailureKind::Conflict
    );

    let _: Vm = cluster.post("/v1/vms/web/resolve", &resolve).await.unwrap();
    let moved = cluster.vm_until("web", |vm| vm.host == Some(name("b")) && vm.power.is_some()).await;
    assert!(moved.epoch > vm.epoch);
    assert!(cluster.codes().await.contains(&"vm-resolved".to_owned()));
    assert_eq!(cluster.world.runners(vm.id), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_a_later_right_has_overtaken_is_ended_and_one_that_nobody_knows_is_only_shown() {
    let cluster = Cluster::with_hosts(&["a", "b"]).await;
    let vm = cluster.run("web", "a").await;
    let b = cluster.agent("b").host;
    let overtaken = cluster.world.hosts()[&cluster.agent("a").host].vms[&vm.id].clone();
    let unknown =
        limosa_api::agent::VmStatus { vm: limosa_model::VmId::new(), name: name("who"), ..overtaken.clone() };
    let old = limosa_model::Epoch(overtaken.epoch.0 - 1);
    let overtaken = limosa_api::agent::VmStatus { epoch: old, ..overtaken };
    cluster.world.with(b, |host| {
        host.vms.insert(overtaken.vm, overtaken);
        host.vms.insert(unknown.vm, unknown.clone());
    });
    cluster.event("stray").await;
    cluster.world.until(|hosts| hosts[&b].vms[&vm.id].power == PowerState::Stopped).await;
    let host = cluster.host_until("b", |host| host.strays.len() == 1).await;
    assert_eq!(host.strays[0].name, name("who"));
    assert_eq!(cluster.world.hosts()[&b].vms[&unknown.vm].power, PowerState::Running);
    assert_eq!(cluster.vm("web").await.host, Some(name("a")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_gone_in_the_middle_is_resolved_by_the_destinations_refusal() {
    let cluster = Cluster::with_hosts(&["a", "b"]).await;
    let vm = cluster.run("web", "a").await;
    let source = cluster.agent("a").host;
    cluster.world.with(source, |host| host.holds.insert(Hold::Transfer));
    let task = cluster.migrate("web", "b").await.unwrap();
    cluster.task_until(&task, |task| task.percent > 0).await;
    cluster.agent("a").vanish();
    cluster.host_until("a", |host| host.state == HostState::Offline).await;
    cluster.world.with(source, |host| host.vms.clear());
    let lost = DeclareLost { confirmed: true };
    let _: Host = cluster.post("/v1/hosts/a/declare-lost", &lost).await.unwrap();
    let task = cluster.end_of(&task).await;
    assert_eq!(task.state, TaskState::Failed);
    let restarted = cluster.vm_until("web", |vm| vm.power == Some(PowerState::Running)).await;
    assert_eq!(restarted.host, Some(name("b")));
    assert_eq!(cluster.world.runners(vm.id), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_server_does_nothing_until_it_is_confirmed_and_then_finds_what_runs() {
    let mut cluster = Cluster::with_hosts(&["a", "b"]).await;
    let vm = cluster.run("web", "a").await;
    let store = cluster.config.state_dir.join("store.db");
    let backup = cluster.config.state_dir.join("backup.db");
    cluster.stop_server().await;
    Embedded::open(&store).unwrap().backup_to(&backup).await.unwrap();
    cluster.start_server().await;
    cluster.host_until("b", |host| host.state == HostState::Online).await;
    cluster.host_until("a", |host| host.state == HostState::Online).await;
    // The VM moves after the backup was made, which therefore is wrong about it.
    let task = cluster.end_of(&cluster.migrate("web", "b").await.unwrap()).await;
    assert_eq!(task.state, TaskState::Succeeded, "{:?}", task.failure);

    cluster.stop_server().await;
    for host in ["a", "b"] {
        cluster.world.with(cluster.agent(host).host, |host| host.silent = true);
    }
    restore_from(&backup, &store).unwrap();
    cluster.start_server().await;
    let view: ClusterView = cluster.get("/v1/cluster").await.unwrap();
    assert_eq!((view.state, view.missing.len()), (ClusterState::Restoring, 2));
    let refused = cluster.post::<Task>("/v1/vms/web/stop", &json!({})).await.unwrap_err();
    assert!(refused.detail.contains("restored from a backup"), "{refused}");
    let confirm = ConfirmRestore { no_other_hosts: true };
    let refused = cluster.post::<ClusterView>("/v1/cluster/confirm-restore", &confirm).await.unwrap_err();
    assert!(refused.detail.contains("a, b"), "{refused}");

    for host in ["a", "b"] {
        cluster.world.with(cluster.agent(host).host, |host| host.silent = false);
        cluster.host_until(host, |host| host.state == HostState::Online).await;
    }
    assert_eq!(cluster.vm("web").await.host, Some(name("a")), "the backup's word, not acted on");
    assert_eq!(cluster.world.runners(vm.id), 1);
    let unsure = ConfirmRestore { no_other_hosts: false };
    assert!(cluster.post::<ClusterView>("/v1/cluster/confirm-restore", &unsure).await.is_err());
    let view: ClusterView = cluster.post("/v1/cluster/confirm-restore", &confirm).await.unwrap();
    assert_eq!(view.state, ClusterState::Running);
    let found = cluster.vm_until("web", |vm| vm.power == Some(PowerState::Running)).await;
    assert_eq!(found.host, Some(name("b")));
    assert_eq!(cluster.world.runners(vm.id), 1);
    // What it gives from here on is higher than all before.
    let task = cluster.end_of(&cluster.migrate("web", "a").await.unwrap()).await;
    assert_eq!(task.state, TaskState::Succeeded, "{:?}", task.failure);
    assert!(cluster.vm("web").await.epoch > found.epoch);
}

//! A VM's life without moves: made, started, changed, stopped, removed.

mod common;

use common::{Cluster, name, spec};
use limosa_api::rest::{CreateVm, DesiredPower, List, SetVm, Task, TaskResult, TaskState, Vm};
use limosa_model::{FailureKind, PowerState};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_made_started_stopped_and_removed_with_its_disks() {
    let cluster = Cluster::with_hosts(&["a"]).await;
    let vm = cluster.run("web", "a").await;
    assert_eq!(vm.host, Some(name("a")));
    assert_eq!(vm.spec.machine.machine_type.as_deref(), Some("pc-q35-10.0"));
    assert!(vm.spec.nics[0].mac.is_some());
    let running = cluster.vm_until("web", |vm| vm.power == Some(PowerState::Running)).await;
    assert_eq!(running.epoch, vm.epoch);

    let refused = cluster.delete::<Task>("/v1/vms/web").await.unwrap_err();
    assert_eq!((refused.status, refused.code), (409, FailureKind::Conflict));
    assert!(refused.detail.contains("web") && refused.remedy.contains("limosa vm stop web"), "{refused}");

    let task: Task = cluster.post("/v1/vms/web/stop", &json!({})).await.unwrap();
    assert_eq!(cluster.end_of(&task).await.state, TaskState::Succeeded);
    let vm = cluster.vm("web").await;
    assert_eq!((vm.host, vm.power, vm.desired), (None, Some(PowerState::Stopped), DesiredPower::Stopped));

    let task: Task = cluster.delete("/v1/vms/web").await.unwrap();
    assert_eq!(cluster.end_of(&task).await.state, TaskState::Succeeded);
    assert!(cluster.world.hosts()[&cluster.agent("a").host].disks.is_empty());
    let vms: List<Vm> = cluster.get("/v1/vms").await.unwrap();
    assert_eq!(vms.items, []);
    // Its name and its addresses are free again.
    cluster.run("web", "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_made_without_a_start_has_its_disks_and_stays_stopped() {
    let cluster = Cluster::with_hosts(&["a"]).await;
    let ask = CreateVm { spec: spec("web"), start: false, host: None };
    let task: Task = cluster.post("/v1/vms", &ask).await.unwrap();
    let task = cluster.end_of(&task).await;
    assert!(matches!(task.result, Some(TaskResult::Created(_))), "{task:?}");
    assert_eq!(cluster.world.hosts()[&cluster.agent("a").host].disks.len(), 1);
    assert_eq!(cluster.vm("web").await.desired, DesiredPower::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_vm_without_disks_needs_no_host() {
    let cluster = Cluster::with_hosts(&[]).await;
    let mut bare = spec("web");
    bare.disks.clear();
    let task: Task =
        cluster.post("/v1/vms", &CreateVm { spec: bare, start: false, host: None }).await.unwrap();
    assert_eq!(cluster.end_of(&task).await.state, TaskState::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_start_has_a_higher_epoch() {
    let cluster = Cluster::with_hosts(&["a"]).await;
    let first = cluster.run("web", "a").await.epoch;
    let task: Task = cluster.post("/v1/vms/web/kill", &json!({})).await.unwrap();
    cluster.end_of(&task).await;
    let task: Task = cluster.post("/v1/vms/web/start", &json!({})).await.unwrap();
    cluster.end_of(&task).await;
    assert!(cluster.vm("web").await.epoch > first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_the_host_refuses_fails_with_the_hosts_reason_and_leaves_the_vm_stopped() {
    let cluster = Cluster::with_hosts(&["a"]).await;
    cluster.world.with(cluster.agent("a").host, |host| host.refuses_start = true);
    let ask = CreateVm { spec: spec("web"), start: true, host: None };
    let task: Task = cluster.post("/v1/vms", &ask).await.unwrap();
    let task = cluster.end_of(&task).await;
    assert_eq!(task.state, TaskState::Failed);
    assert_eq!(task.failure.unwrap().what, "the disk is locked");
    let vm = cluster.vm("web").await;
    assert_eq!((vm.host, vm.desired), (None, DesiredPower::Stopped));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_qemu_dies_is_restarted_where_its_policy_says_so() {
    let cluster = Cluster::with_hosts(&["a"]).await;
    let first = cluster.run("web", "a").await;
    let policy = json!({"policy": {"restart": "on-failure"}});
    let _: Vm = changed(&cluster, "/v1/vms/web", &policy).await;
    cluster.world.with(cluster.agent("a").host, |host| {
        let vm = host.vms.get_mut(&first.id).unwrap();
        (vm.power, vm.reason) = (PowerState::Stopped, Some("QEMU ended: signal 9".into()));
    });
    cluster.event("vm-restarting").await;
    let vm =
        cluster.vm_until("web", |vm| vm.epoch > first.epoch && vm.power == Some(PowerState::Running)).await;
    assert_eq!(vm.reason, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_powers_itself_off_stays_off() {
    let cluster = Cluster::with_hosts(&["a"]).await;
    let vm = cluster.run("web", "a").await;
    let _: Vm = changed(&cluster, "/v1/vms/web", &json!({"policy": {"restart": "on-failure"}})).await;
    cluster.world.with(cluster.agent("a").host, |host| {
        let vm = host.vms.get_mut(&vm.id).unwrap();
        (vm.power, vm.reason) = (PowerState::Stopped, Some("the guest powered off".into()));
    });
    cluster.event("vm-stopped").await;
    assert_eq!(cluster.vm("web").await.desired, DesiredPower::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_still_being_started_is_not_taken_for_one_that_has_ended() {
    let mut cluster = Cluster::with_hosts(&["a"]).await;
    let vm = cluster.run("web", "a").await;
    // As an agent reports between writing the right down and having started QEMU.
    cluster.world.with(cluster.agent("a").host, |host| {
        let vm = host.vms.get_mut(&vm.id).unwrap();
        (vm.power, vm.reason) = (PowerState::Stopped, None);
    });
    cluster.restart_server().await;
    cluster.heard_anew("a").await;
    assert_eq!(cluster.vm("web").await.host, Some(name("a")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_was_on_its_way_while_the_vm_was_started_says_nothing_about_it() {
    let cluster = Cluster::with_hosts(&["a"]).await;
    let host = cluster.agent("a").host;
    cluster.world.with(host, |host| host.silent = true);
    cluster.run("web", "a").await;
    for _ in 0..3 {
        cluster.agent("a").report_as(|report| report.vms.clear()).await.unwrap();
    }
    assert_eq!(cluster.vm("web").await.host, Some(name("a")));
    cluster.world.with(host, |host| host.silent = false);
    cluster.heard_anew("a").await;
    assert_eq!(cluster.vm("web").await.power, Some(PowerState::Running));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_goes_on_with_what_it_had_accepted() {
    let mut cluster = Cluster::with_hosts(&["a"]).await;
    let host = cluster.agent("a").host;
    cluster.stop_server().await;
    cluster.start_server().await;
    cluster.host_until("a", |host| host.state == limosa_api::rest::HostState::Online).await;
    let ask = CreateVm { spec: spec("web"), start: true, host: None };
    let task: Task = cluster.post("/v1/vms", &ask).await.unwrap();
    cluster.restart_server().await;
    let task = cluster.end_of(&task).await;
    assert_eq!(task.state, TaskState::Succeeded, "{:?}", task.failure);
    let id = cluster.vm("web").await.id;
    assert_eq!(cluster.world.runners(id), 1);
    assert_eq!(cluster.world.hosts()[&host].disks.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_was_accepted_waits_for_hosts_that_have_yet_to_report_to_a_server_that_comes_back() {
    let mut cluster = Cluster::with_hosts(&["a"]).await;
    let host = cluster.agent("a").host;
    let mut bare = spec("web");
    bare.disks.clear();
    let ask = CreateVm { spec: bare, start: true, host: None };
    let task: Task = cluster.post("/v1/vms", &ask).await.unwrap();
    cluster.stop_server().await;
    cluster.world.with(host, |host| host.silent = true);
    cluster.start_server().await;
    cluster.codes().await;
    cluster.world.with(host, |host| host.silent = false);
    assert_eq!(cluster.end_of(&task).await.state, TaskState::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_spec_reaches_the_host_and_keeps_addresses_unique() {
    let cluster = Cluster::with_hosts(&["a"]).await;
    let web = cluster.run("web", "a").await;
    cluster.run("db", "a").await;
    let set = SetVm { name: Some(name("www")), cpus: Some(4), ..SetVm::default() };
    let vm: Vm = changed(&cluster, "/v1/vms/web", &serde_json::to_value(set).unwrap()).await;
    assert_eq!((vm.id, vm.spec.cpus), (web.id, 4));
    let taken = json!({"nics": [{"network": "lan", "mac": web.spec.nics[0].mac}]});
    let refused = patch(&cluster, "/v1/vms/db", &taken).await.unwrap_err();
    assert!(refused.detail.contains("in use by VM www"), "{refused}");
    let refused = patch(&cluster, "/v1/vms/db", &json!({"name": "www"})).await.unwrap_err();
    assert_eq!(refused.code, FailureKind::Conflict);
}

async fn patch(cluster: &Cluster, path: &str, body: &serde_json::Value) -> Result<Vm, limosa_api::Problem> {
    let limit = std::time::Duration::from_secs(60);
    common::refused(cluster.user.call(hyper::Method::PATCH, path, Some(body), limit).await)
}

async fn changed(cluster: &Cluster, path: &str, body: &serde_json::Value) -> Vm {
    patch(cluster, path, body).await.expect("the change is taken")
}

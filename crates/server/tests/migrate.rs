//! Migrations: to the end, refused, failed, cancelled, and through a server that dies.

mod common;

use common::world::Hold;
use common::{Cluster, name, spec};
use limosa_api::rest::{
    CreateVm, EvacuateHost, HostState, List, MigrateRequest, Migration, MigrationPlan, Task, TaskResult,
    TaskState,
};
use limosa_model::{FailureKind, Outcome, Phase, PowerState};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_moves_and_the_report_is_what_both_ends_measured() {
    let cluster = Cluster::with_hosts(&["a", "b"]).await;
    let vm = cluster.run("web", "a").await;
    let task = cluster.end_of(&cluster.migrate("web", "b").await.unwrap()).await;
    let Some(TaskResult::Migrated(report)) = task.result else { panic!("{:?}", task.failure) };
    assert_eq!(report.outcome, Outcome::RunningOnDestination);
    // Stopped at 1.00 s by a clock that is 10 ms behind the one by which the guest went on at 1.05 s.
    assert_eq!(report.downtime_us, Some(40_000));
    let phases: Vec<_> = report.phases.iter().map(|time| time.phase).collect();
    assert_eq!(phases, [Phase::Prepare, Phase::Reserve, Phase::Transfer]);
    assert_eq!((report.wire.as_bytes(), report.passes), (1 << 20, 2));
    let moved = cluster.vm_until("web", |vm| vm.power == Some(PowerState::Running)).await;
    assert_eq!(moved.host, Some(name("b")));
    assert!(moved.epoch > vm.epoch);
    assert_eq!(cluster.world.runners(vm.id), 1);
    // Both ends are told to forget it, and an immediate way back is free.
    let task = cluster.end_of(&cluster.migrate("web", "a").await.unwrap()).await;
    assert_eq!(task.state, TaskState::Succeeded, "{:?}", task.failure);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_refuses_leaves_the_vm_where_it_is() {
    let cluster = Cluster::with_hosts(&["a", "b"]).await;
    let vm = cluster.run("web", "a").await;
    cluster.world.with(cluster.agent("a").host, |host| host.refuses_source = true);
    let task = cluster.end_of(&cluster.migrate("web", "b").await.unwrap()).await;
    assert_eq!(task.state, TaskState::Failed);
    let failure = task.failure.unwrap();
    assert_eq!(
        (failure.kind, failure.what.as_str()),
        (FailureKind::Incompatible, "the VM has a device that cannot move")
    );
    let after = cluster.vm("web").await;
    assert_eq!((after.host, after.epoch, after.task), (Some(name("a")), vm.epoch, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_fails_in_reserve_leaves_the_vm_running_and_a_retry_succeeds() {
    let cluster = Cluster::with_hosts(&["a", "b"]).await;
    let vm = cluster.run("web", "a").await;
    let destination = cluster.agent("b").host;
    cluster.world.with(destination, |host| host.fails_reserve = true);
    let task = cluster.end_of(&cluster.migrate("web", "b").await.unwrap()).await;
    assert_eq!(task.failure.unwrap().kind, FailureKind::Storage);
    assert_eq!(cluster.world.runners(vm.id), 1);
    cluster.world.with(destination, |host| host.fails_reserve = false);
    let task = cluster.end_of(&cluster.migrate("web", "b").await.unwrap()).await;
    assert_eq!(task.state, TaskState::Succeeded, "{:?}", task.failure);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_in_the_middle_goes_on_to_the_end() {
    for hold in [Hold::Transfer, Hold::Handover] {
        let mut cluster = Cluster::with_hosts(&["a", "b"]).await;
        let vm = cluster.run("web", "a").await;
        let source = cluster.agent("a").host;
        cluster.world.with(source, |host| host.holds.insert(hold));
        let task = cluster.migrate("web", "b").await.unwrap();
        cluster.event("migration-began").await;
        cluster.stop_server().await;
        cluster.start_server().await;
        cluster.world.release(source, hold);
        let task = cluster.end_of(&task).await;
        assert_eq!(task.state, TaskState::Succeeded, "held at {hold:?}: {:?}", task.failure);
        assert_eq!(cluster.vm("web").await.host, Some(name("b")));
        assert_eq!(cluster.world.runners(vm.id), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fact_is_relayed_by_the_server_where_the_hosts_cannot_reach_each_other() {
    let cluster = Cluster::with_hosts(&["a", "b"]).await;
    let vm = cluster.run("web", "a").await;
    // The source never tells the destination itself.
    cluster.world.with(cluster.agent("a").host, |host| host.holds.insert(Hold::Handover));
    let task = cluster.end_of(&cluster.migrate("web", "b").await.unwrap()).await;
    assert_eq!(task.state, TaskState::Succeeded, "{:?}", task.failure);
    assert_eq!(cluster.world.runners(vm.id), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_before_the_handover_leaves_the_vm_on_its_source() {
    let cluster = Cluster::with_hosts(&["a", "b"]).await;
    let vm = cluster.run("web", "a").await;
    cluster.world.with(cluster.agent("a").host, |host| host.holds.insert(Hold::Transfer));
    let task = cluster.migrate("web", "b").await.unwrap();
    cluster.event("migration-began").await;
    let _: Task = cluster.post(&format!("/v1/tasks/{}/cancel", task.id), &json!({})).await.unwrap();
    let task = cluster.end_of(&task).await;
    assert_eq!(task.state, TaskState::Cancelled);
    let after = cluster.vm("web").await;
    assert_eq!((after.host, after.epoch), (Some(name("a")), vm.epoch));
    assert_eq!(cluster.world.runners(vm.id), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_behind_the_handover_is_answered_too_late_and_the_vm_is_shown_in_doubt() {
    let cluster = Cluster::with_hosts(&["a", "b"]).await;
    let vm = cluster.run("web", "a").await;
    let source = cluster.agent("a").host;
    cluster.world.with(source, |host| host.holds.insert(Hold::Transfer));
    let task = cluster.migrate("web", "b").await.unwrap();
    cluster.world.until(|hosts| hosts.values().filter(|host| !host.parts.is_empty()).count() == 2).await;
    cluster.heard_anew("b").await;
    // From here on nobody can tell the destination that the source has handed over.
    cluster.agent("b").vanish();
    cluster.host_until("b", |host| host.state == HostState::Offline).await;
    cluster.world.with(source, |host| host.holds.insert(Hold::Handover));
    cluster.world.release(source, Hold::Transfer);
    let doubtful = cluster.vm_until("web", |vm| vm.in_doubt).await;
    assert_eq!((doubtful.power, doubtful.migration), (Some(PowerState::Paused), task.migration));
    let refused =
        cluster.post::<Task>(&format!("/v1/tasks/{}/cancel", task.id), &json!({})).await.unwrap_err();
    assert!(refused.status == 409 && refused.detail.starts_with("too late"), "{refused}");
    assert_eq!(cluster.world.runners(vm.id), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_migration_is_refused_with_the_first_ones_id() {
    let cluster = Cluster::with_hosts(&["a", "b", "c"]).await;
    cluster.run("web", "a").await;
    let source = cluster.agent("a").host;
    cluster.world.with(source, |host| host.holds.insert(Hold::Transfer));
    let first = cluster.migrate("web", "b").await.unwrap();
    let refused = cluster.migrate("web", "c").await.unwrap_err();
    let id = first.migration.unwrap().to_string();
    assert!(refused.status == 409 && refused.detail.contains(&id), "{refused}");
    cluster.event("migration-began").await;
    let refused = cluster.post::<Task>("/v1/vms/web/stop", &json!({})).await.unwrap_err();
    assert!(refused.detail.contains(&id), "{refused}");
    cluster.world.release(source, Hold::Transfer);
    assert_eq!(cluster.end_of(&first).await.state, TaskState::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_before_anything_begins() {
    let cluster = Cluster::with_hosts(&["a", "b"]).await;
    cluster.run("web", "a").await;
    let refused = cluster.migrate("web", "nowhere").await.unwrap_err();
    assert!(refused.status == 404 && refused.detail.contains("nowhere"), "{refused}");
    let refused = cluster.migrate("nobody", "b").await.unwrap_err();
    assert!(refused.status == 404 && refused.detail.contains("nobody"), "{refused}");
    let refused = cluster.migrate("web", "a").await.unwrap_err();
    assert!(refused.status == 409 && refused.detail.contains("web is on host a already"), "{refused}");
    let refused = cluster.post::<Value>("/v1/vms/web/migrate", &json!({})).await.unwrap_err();
    assert_eq!(refused.code, FailureKind::Invalid);
    let both = json!({"to": "b", "best": true});
    assert_eq!(
        cluster.post::<Value>("/v1/vms/web/migrate", &both).await.unwrap_err().code,
        FailureKind::Invalid
    );
    cluster.world.with(cluster.agent("b").host, |host| host.machine_types = vec!["pc-q35-9.2".into()]);
    cluster
        .host_until("b", |host| host.facts.as_ref().is_some_and(|facts| facts.machine_types.len() == 1))
        .await;
    let refused = cluster.migrate("web", "b").await.unwrap_err();
    assert!(refused.code == FailureKind::Incompatible && refused.detail.contains("pc-q35-10.0"), "{refused}");
    let _: Value = cluster.post("/v1/hosts/b/cordon", &json!({})).await.unwrap();
    let refused = cluster.migrate("web", "b").await.unwrap_err();
    assert!(refused.detail.contains("cordoned"), "{refused}");
    let migrations: List<Migration> = cluster.get("/v1/migrations").await.unwrap();
    assert_eq!(migrations.items, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_room_is_refused_with_both_figures() {
    let cluster = Cluster::with_hosts(&["a", "b"]).await;
    cluster.run("web", "a").await;
    let mut big = spec("big");
    big.memory = "15.5GiB".parse().unwrap();
    let ask = CreateVm { spec: big.clone(), start: true, host: Some("b".into()) };
    let task = cluster.post::<Task>("/v1/vms", &ask).await.unwrap();
    assert_eq!(cluster.end_of(&task).await.state, TaskState::Succeeded);
    let refused = cluster.migrate("web", "b").await.unwrap_err();
    assert_eq!(refused.code, FailureKind::Resource);
    assert!(refused.detail.contains("1.0 GiB") && refused.detail.contains("512 MiB"), "{refused}");
    let ask = CreateVm { spec: limosa_model::VmSpec { name: name("huge"), ..big }, start: true, host: None };
    let refused = cluster.post::<Task>("/v1/vms", &ask).await.unwrap_err();
    assert!(refused.detail.contains("a: ") && refused.detail.contains("b: "), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_where_why_and_changes_nothing() {
    let cluster = Cluster::with_hosts(&["a", "b", "c"]).await;
    let vm = cluster.run("web", "a").await;
    cluster.run("other", "b").await;
    let ask = MigrateRequest { best: true, dry_run: true, ..MigrateRequest::default() };
    let plan: MigrationPlan = cluster.post("/v1/vms/web/migrate", &ask).await.unwrap();
    assert_eq!(plan.destination.unwrap().name, name("c"));
    assert_eq!((plan.failed, plan.path_mtu), (Vec::new(), Some(1500)));
    assert_eq!(plan.prediction, None);
    assert_eq!(cluster.vm("web").await.epoch, vm.epoch);
    let tasks: List<Task> = cluster.get("/v1/tasks").await.unwrap();
    assert!(tasks.items.iter().all(|task| task.migration.is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_migrations_than_a_host_may_have_wait_their_turn() {
    let cluster = Cluster::with_hosts(&["a", "b"]).await;
    let source = cluster.agent("a").host;
    for vm in ["one", "two", "three"] {
        cluster.run(vm, "a").await;
    }
    cluster.world.with(source, |host| host.holds.insert(Hold::Transfer));
    let mut tasks = Vec::new();
    for vm in ["one", "two", "three"] {
        tasks.push(cluster.migrate(vm, "b").await.unwrap());
    }
    let waits = cluster.task_until(&tasks[2], |task| task.message.is_some()).await;
    assert_eq!(waits.state, TaskState::Queued);
    assert!(waits.message.unwrap().contains("2 migrations already"));
    cluster.world.release(source, Hold::Transfer);
    for task in &tasks {
        assert_eq!(cluster.end_of(task).await.state, TaskState::Succeeded);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evacuated_host_is_empty_and_stays_cordoned() {
    let cluster = Cluster::with_hosts(&["a", "b", "c"]).await;
    for vm in ["one", "two", "three"] {
        cluster.run(vm, "a").await;
    }
    let task: Task = cluster.post("/v1/hosts/a/evacuate", &EvacuateHost::default()).await.unwrap();
    let task = cluster.end_of(&task).await;
    assert_eq!(task.result, Some(TaskResult::Evacuated(3)), "{:?}", task.failure);
    let host = cluster.host("a").await;
    assert_eq!((host.vms, host.cordoned, host.evacuation, host.state), (0, true, None, HostState::Online));
}

//! What live migration stands on: two QEMUs of one VM with the same disk.

use std::process::Command;

use limosa_model::{DiskFormat, Epoch, MigrationId, PowerState};
use limosa_qemu::commands::migration::{Capability, MigrationStatus};
use limosa_qemu::commands::run::RunState;
use limosa_vm::{BackingPlan, LaunchPlan, Vm, adopt_all, launch};

use crate::host::{Host, with_qemu};

#[test]
fn a_vm_moves_to_a_second_qemu_on_the_same_raw_disk() {
    with_qemu(|| async {
        let host = Host::new();
        let plan = host.plan("source");
        move_between_qemus(&host, plan).await;
    });
}

#[test]
fn a_vm_moves_to_a_second_qemu_on_the_same_image_of_a_template() {
    with_qemu(|| async {
        let host = Host::new();
        let mut plan = host.plan("source");
        let template = std::mem::replace(&mut plan.disks[0].path, host.directory.path().join("disk.qcow2"));
        plan.disks[0].format = DiskFormat::Qcow2;
        plan.disks[0].backing = vec![BackingPlan { path: template.clone(), format: DiskFormat::Raw }];
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .args([&template, &plan.disks[0].path])
            .status();
        assert!(made.unwrap().success());
        move_between_qemus(&host, plan).await;
    });
}

/// The destination starts on the disk that the source has locked, and takes it over when it is continued.
async fn move_between_qemus(host: &Host, plan: LaunchPlan) {
    let source = launch(plan.clone(), &host.net).await.unwrap();
    source.qmp().cont().await.unwrap();
    let incoming = LaunchPlan {
        epoch: Epoch(2),
        migration: Some(MigrationId::new()),
        runtime_dir: host.root().join("destination"),
        ..plan
    };
    let destination = launch(incoming, &host.net).await.unwrap();
    assert_eq!(destination.run_state().await.unwrap(), RunState::InMigrate);

    let capabilities = [Capability::Events, Capability::LateBlockActivate, Capability::PauseBeforeSwitchover];
    source.qmp().migrate_set_capabilities(&capabilities).await.unwrap();
    destination.qmp().migrate_set_capabilities(&capabilities).await.unwrap();
    let uri = format!("unix:{}", destination.runtime_dir().path().join("q/in.sock").display());
    destination.qmp().migrate_incoming(&uri).await.unwrap();
    source.qmp().migrate(&uri).await.unwrap();
    until(&source, MigrationStatus::PreSwitchover).await;
    source.qmp().migrate_continue(&MigrationStatus::PreSwitchover).await.unwrap();
    until(&source, MigrationStatus::Completed).await;
    until(&destination, MigrationStatus::Completed).await;
    assert_eq!(source.run_state().await.unwrap(), RunState::PostMigrate);
    assert_ne!(destination.run_state().await.unwrap(), RunState::Running);

    let (source, destination) = let_go_and_adopt(host, source, destination).await;
    destination.qmp().cont().await.unwrap();
    assert_eq!(destination.power_state().await.unwrap(), PowerState::Running);
    assert_eq!(source.power_state().await.unwrap(), PowerState::Paused);

    // The lock has moved along: nobody else gets the disk.
    let third =
        LaunchPlan { epoch: Epoch(3), runtime_dir: host.root().join("third"), ..source.plan().clone() };
    let error = launch(third, &host.net).await.unwrap_err();
    assert!(error.to_string().contains("is locked by another process"), "{error}");
}

/// An agent that comes back in the middle finds both QEMUs of the VM, and can tell which is which.
async fn let_go_and_adopt(host: &Host, source: Vm, destination: Vm) -> (Vm, Vm) {
    let (id, epoch) = (source.id(), source.epoch());
    let right = (destination.epoch(), destination.migration());
    drop((source, destination));
    let mut found = adopt_all(&host.root(), &host.net).await.unwrap();
    found.sort_by_key(|adopted| adopted.epoch);
    let [source, destination] = <[_; 2]>::try_from(found).unwrap();
    assert_eq!((source.vm, source.epoch, source.migration), (id, epoch, None));
    assert_eq!((destination.vm, destination.epoch, destination.migration), (id, right.0, right.1));
    (source.handle.unwrap(), destination.handle.unwrap())
}

async fn until(vm: &Vm, wanted: MigrationStatus) {
    loop {
        let migration = vm.qmp().query_migrate().await.unwrap();
        assert_ne!(migration.status, MigrationStatus::Failed, "{:?}", migration.error_desc);
        if migration.status == wanted {
            return;
        }
        tokio::task::yield_now().await;
    }
}

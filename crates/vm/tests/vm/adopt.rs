//! Finding QEMUs again.

use std::fs::{self};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use limosa_model::PowerState;
use limosa_net::Net;
use limosa_vm::{Exit, VmError, adopt_all, launch, remove_runtime};
use rustix::process::Signal;

use crate::host::{Host, plan, with_nic, with_qemu};

/// Where the helper process launches its VM.
const HELPER_ROOT: &str = "LIMOSA_VM_TEST_ROOT";

#[test]
fn a_vm_that_was_let_go_is_found_by_its_own_agent_alone() {
    with_qemu(|| async {
        let host = Host::new();
        let stranger = Host::new();
        host.net
            .create_bridge(&"br0".parse().unwrap(), "52:54:00:00:00:ff".parse().unwrap(), 1500)
            .await
            .unwrap();
        let vm = launch(with_nic(host.plan("web"), "br0"), &host.net).await.unwrap();
        vm.qmp().cont().await.unwrap();
        let (plan, nics, cgroup) = (vm.plan().clone(), vm.nics().to_vec(), vm.cgroup().clone());
        let pid = vm.pid();
        drop(vm);

        assert!(adopt_all(&stranger.root(), &host.net).await.unwrap().is_empty());
        assert!(adopt_all(Path::new("/tmp"), &host.net).await.unwrap().is_empty());
        let mut found = adopt_all(&host.root(), &host.net).await.unwrap();
        assert_eq!(found.len(), 1);
        let adopted = found.remove(0);
        assert_eq!((adopted.vm, adopted.epoch, adopted.migration), (plan.vm, plan.epoch, None));
        let vm = adopted.handle.unwrap();
        assert_eq!(vm.plan(), &plan);
        assert_eq!(vm.nics(), nics);
        assert_eq!(vm.pid(), pid);
        assert_eq!(std::mem::discriminant(vm.cgroup()), std::mem::discriminant(&cgroup));
        assert_eq!(vm.power_state().await.unwrap(), PowerState::Running);

        vm.kill().await.unwrap();
        assert!(adopt_all(&host.root(), &host.net).await.unwrap().is_empty());
    });
}

#[test]
fn a_vm_survives_the_kill_of_the_process_that_launched_it() {
    with_qemu(|| async {
        let host = Host::new();
        let mut helper = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "adopt::helper_that_launches_a_vm_and_waits", "--ignored", "--nocapture"])
            .env(HELPER_ROOT, host.directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(helper.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("launched")), "the helper launched nothing");
        helper.kill().unwrap();
        helper.wait().unwrap();

        let found = adopt_all(&host.root(), &host.net).await.unwrap();
        let vm = found.into_iter().next().unwrap().handle.unwrap();
        assert_eq!(vm.power_state().await.unwrap(), PowerState::Running);
        assert_eq!(vm.kill().await.unwrap(), Exit::Unknown);
    });
}

/// Not a test of its own: the agent that is killed in the test above.
#[test]
#[ignore = "it is run by another test"]
fn helper_that_launches_a_vm_and_waits() {
    let Some(directory) = std::env::var_os(HELPER_ROOT).map(PathBuf::from) else { return };
    with_qemu(|| async move {
        let plan = plan(&directory.join("run"), "web", &directory.join("disk.raw"));
        let vm = launch(plan, &Net::connect().unwrap()).await.unwrap();
        vm.qmp().cont().await.unwrap();
        println!("launched");
        vm.exited().await;
    });
}

#[test]
fn a_vm_without_its_plan_is_found_and_can_be_killed() {
    with_qemu(|| async {
        let host = Host::new();
        let vm = launch(host.plan("web"), &host.net).await.unwrap();
        let (id, plan) = (vm.id(), vm.runtime_dir().plan());
        drop(vm);
        fs::write(plan, "{ rubbish").unwrap();
        let found = adopt_all(&host.root(), &host.net).await.unwrap().remove(0);
        assert_eq!(found.vm, id);
        assert!(matches!(found.handle, Err(VmError::PlanLost { .. })));
        found.process.kill().await.unwrap();
        remove_runtime(&found.runtime_dir).unwrap();
        assert_eq!(host.leftovers(), Vec::<PathBuf>::new());
    });
}

#[test]
fn a_qemu_that_hangs_is_found_and_can_be_killed() {
    with_qemu(|| async {
        let host = Host::new();
        let vm = launch(host.plan("web"), &host.net).await.unwrap();
        let pid = rustix::process::Pid::from_raw(vm.pid() as i32).unwrap();
        rustix::process::kill_process(pid, Signal::STOP).unwrap();
        drop(vm);
        let found = adopt_all(&host.root(), &host.net).await.unwrap().remove(0);
        assert!(matches!(found.handle, Err(VmError::Unresponsive { .. })), "{:?}", found.handle);
        assert!(found.process.is_alive());
        assert_eq!(found.process.kill().await.unwrap(), Exit::Signal(9));
    });
}

//! Real QEMUs under TCG: launched, adopted, killed. Needs root, for namespaces and for QEMU's user.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use limosa_model::host::Accelerator;
use limosa_model::{ByteSize, DiskFormat, Epoch, Failure, Mac, MigrationId, PowerState, VmId, VmSpec};
use limosa_net::{Net, PortState};
use limosa_qemu::commands::migration::{Capability, MigrationStatus};
use limosa_qemu::commands::run::RunState;
use limosa_vm::{
    BootPlan, CgroupState, DiskPlan, Exit, KernelPlan, LaunchPlan, NicPlan, QemuUser, RuntimeDir, Verdict,
    VmError, adopt_all, check_host, launch, remove_runtime, tap_name,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const NOBODY: QemuUser = QemuUser { uid: 65534, gid: 65534 };
/// Where the helper process launches its VM.
const HELPER_ROOT: &str = "LIMOSA_VM_TEST_ROOT";

/// Runs a test on a thread with a network namespace of its own, if this machine has what it takes.
fn with_qemu<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !rustix::process::geteuid().is_root() || !Path::new(QEMU).exists() {
        assert!(std::env::var_os("CI").is_none(), "these tests need root and QEMU, and CI must run them");
        eprintln!("SKIPPED: this needs root and {QEMU}");
        return;
    }
    let thread = std::thread::spawn(move || {
        // SAFETY: a new network namespace for the calling thread touches no memory and no descriptors.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A host with a runtime root and a datastore. What QEMU is left on it ends with it.
struct Host {
    directory: tempfile::TempDir,
    net: Net,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("lmvm").tempdir_in("/tmp").unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let host = Self { directory, net: Net::connect().unwrap() };
        fs::create_dir(host.root()).unwrap();
        File::create(host.disk()).unwrap().set_len(1 << 20).unwrap();
        host
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    fn disk(&self) -> PathBuf {
        self.directory.path().join("disk.raw")
    }

    fn plan(&self, name: &str) -> LaunchPlan {
        plan(&self.root(), name, &self.disk())
    }

    fn leftovers(&self) -> Vec<PathBuf> {
        fs::read_dir(self.root()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for pid in qemus_under(&self.root()) {
            let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            let _ = pidfd_send_signal(&process, Signal::KILL);
            let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], None);
        }
        for left in self.leftovers() {
            if let Err(e) = remove_runtime(&RuntimeDir::at(left)) {
                eprintln!("something is left behind: {e}");
            }
        }
    }
}

/// The processes whose command lines name this test's own directory, which no other process knows of.
fn qemus_under(root: &Path) -> Vec<rustix::process::Pid> {
    let numbers =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_ours = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(QEMU.as_bytes()) && String::from_utf8_lossy(&line).contains(root.to_str().unwrap())
    };
    numbers.filter(is_ours).filter_map(rustix::process::Pid::from_raw).collect()
}

fn plan(root: &Path, name: &str, disk: &Path) -> LaunchPlan {
    let spec = serde_json::json!({
        "name": name,
        "cpus": 1,
        "memory": "32MiB",
        "machine": { "chipset": "q35", "machine_type": "pc-q35-7.2", "cpu_model": "default" },
        "disks": [{ "name": "root", "datastore": "local", "format": "raw", "size": "1MiB" }],
    });
    let spec: VmSpec = serde_json::from_value(spec).unwrap();
    spec.validate().unwrap();
    LaunchPlan {
        vm: VmId::new(),
        epoch: Epoch(1),
        migration: None,
        spec,
        disks: vec![DiskPlan {
            name: "root".parse().unwrap(),
            path: disk.to_owned(),
            format: DiskFormat::Raw,
            read_only: false,
            direct: true,
            backing: Vec::new(),
        }],
        nics: Vec::new(),
        boot: BootPlan::default(),
        runtime_dir: root.join(name),
        qemu: QEMU.into(),
        accelerator: Accelerator::Tcg,
        user: NOBODY,
        cgroup_parent: None,
        preload: None,
    }
}

fn with_nic(mut plan: LaunchPlan, bridge: &str) -> LaunchPlan {
    let mac = Mac::derived(plan.vm, 0);
    plan.nics.push(NicPlan { bridge: bridge.parse().unwrap(), tap: tap_name(plan.vm, plan.epoch, 0), mac });
    let nic = serde_json::json!({ "network": "lan", "addresses": ["192.0.2.7"] });
    plan.spec.nics.push(serde_json::from_value(nic).unwrap());
    plan
}

fn status_of(pid: u32, key: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_vm_is_started_paused_and_unprivileged_and_leaves_nothing_behind() {
    with_qemu(|| async {
        let host = Host::new();
        let net = &host.net;
        net.create_bridge(&"br0".parse().unwrap(), "52:54:00:00:00:ff".parse().unwrap(), 1400).await.unwrap();
        let vm = launch(with_nic(host.plan("web"), "br0"), net).await.unwrap();

        assert_eq!(vm.run_state().await.unwrap(), RunState::Prelaunch);
        assert_eq!(vm.power_state().await.unwrap(), PowerState::Paused);
        vm.qmp().cont().await.unwrap();
        assert_eq!(vm.power_state().await.unwrap(), PowerState::Running);
        vm.qmp().stop().await.unwrap();
        assert_eq!(vm.power_state().await.unwrap(), PowerState::Paused);

        let pid = vm.pid();
        assert_eq!(status_of(pid, "Uid"), "65534 65534 65534 65534");
        assert_eq!(status_of(pid, "Gid"), "65534 65534 65534 65534");
        assert_eq!(status_of(pid, "Groups"), "");
        assert_eq!(status_of(pid, "NoNewPrivs"), "1");
        assert_eq!(status_of(pid, "CapEff").trim_start_matches('0'), "");
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "0");
        assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let session: u32 =
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().parse().unwrap();
        assert_eq!(session, pid, "QEMU is in the agent's session");

        let nic = &vm.nics()[0];
        assert_eq!(net.port_state(&nic.tap).await.unwrap(), PortState::Closed);
        vm.open_ports(net).await.unwrap();
        assert_eq!(net.port_state(&nic.tap).await.unwrap(), PortState::Open);
        vm.close_ports(net).await.unwrap();
        assert_eq!(net.port_state(&nic.tap).await.unwrap(), PortState::Closed);
        assert!(matches!(remove_runtime(vm.runtime_dir()), Err(VmError::AlreadyRunning { .. })));

        // The agent keeps no copy of what it has handed over: locks and taps go with QEMU alone.
        let own: Vec<_> = fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .filter(|target| target.to_string_lossy().contains("limosa-ram") || *target == host.disk())
            .collect();
        assert_eq!(own, Vec::<PathBuf>::new());

        assert_eq!(vm.kill().await.unwrap(), Exit::Signal(9));
        assert_eq!(vm.kill().await.unwrap(), Exit::Signal(9));
        assert_eq!(vm.power_state().await.unwrap(), PowerState::Stopped);
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "a zombie was left");
        assert!(net.adopt_tap(nic.tap.name()).await.is_err());
        remove_runtime(vm.runtime_dir()).unwrap();
        remove_runtime(vm.runtime_dir()).unwrap();
        assert_eq!(host.leftovers(), Vec::<PathBuf>::new());
    });
}

#[test]
fn a_guests_memory_can_be_opened_while_it_runs() {
    with_qemu(|| async {
        let host = Host::new();
        let vm = launch(host.plan("web"), &host.net).await.unwrap();
        let memory = vm.ram_file().unwrap();
        assert_eq!(rustix::fs::fstat(&memory).unwrap().st_size, ByteSize::mib(32).as_bytes() as i64);
        // The firmware's reset vector shadows no guest memory, so 1 MiB is untouched until the guest runs.
        rustix::io::pwrite(&memory, b"from outside", 1 << 20).unwrap();
        let dump = host.directory.path().join("dump");
        File::create(&dump).unwrap();
        fs::set_permissions(&dump, Permissions::from_mode(0o666)).unwrap();
        let arguments = serde_json::json!({ "val": 1 << 20, "size": 12, "filename": dump });
        let _: serde_json::Value = vm.qmp().execute("pmemsave", &arguments).await.unwrap();
        assert_eq!(fs::read(&dump).unwrap(), b"from outside");
        vm.kill().await.unwrap();
        assert!(vm.ram_file().is_err());
    });
}

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
            .args(["--exact", "helper_that_launches_a_vm_and_waits", "--ignored", "--nocapture"])
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

#[test]
fn a_vm_has_a_cgroup_of_its_own_where_one_can_be_made() {
    with_qemu(|| async {
        let mount = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .into_iter()
            .find(|mount| Path::new(mount).join("cgroup.procs").exists());
        let Some(parent) =
            mount.map(|mount| Path::new(mount).join(format!("limosa-test-{}", std::process::id())))
        else {
            eprintln!("SKIPPED: cgroup v2 is not mounted");
            return;
        };
        if let Err(e) = fs::create_dir(&parent) {
            eprintln!("SKIPPED: {} cannot be made: {e}", parent.display());
            return;
        }
        let host = Host::new();
        let plan = LaunchPlan { cgroup_parent: Some(parent.clone()), ..host.plan("web") };
        let vm = launch(plan, &host.net).await.unwrap();
        let CgroupState::Own(group) = vm.cgroup().clone() else { panic!("{}", vm.cgroup()) };
        assert_eq!(fs::read_to_string(group.join("cgroup.procs")).unwrap().trim(), vm.pid().to_string());
        drop(vm);

        let vm = adopt_all(&host.root(), &host.net).await.unwrap().remove(0).handle.unwrap();
        assert_eq!(*vm.cgroup(), CgroupState::Own(group.clone()));
        vm.kill().await.unwrap();
        remove_runtime(vm.runtime_dir()).unwrap();
        assert!(!group.exists());
        fs::remove_dir(parent).unwrap();
    });
}

#[test]
fn a_runtime_directory_has_one_qemu() {
    with_qemu(|| async {
        let host = Host::new();
        let first = launch(host.plan("web"), &host.net).await.unwrap();
        let second = launch(host.plan("web"), &host.net).await.unwrap_err();
        assert!(matches!(second, VmError::AlreadyRunning { pid, .. } if pid == first.pid()), "{second}");
        assert_eq!(first.run_state().await.unwrap(), RunState::Prelaunch);
    });
}

#[test]
fn a_disk_that_cannot_be_opened_is_named() {
    with_qemu(|| async {
        let host = Host::new();
        let mut plan = host.plan("web");
        for bad in [Path::new("/nonexistent/disk.raw"), Path::new("/tmp"), Path::new("/dev/null")] {
            plan.disks[0].path = bad.to_owned();
            let error = launch(plan.clone(), &host.net).await.unwrap_err();
            assert!(
                matches!(&error, VmError::Disk { name, path, .. } if name == "root" && path == bad),
                "{error}"
            );
            assert_eq!(host.leftovers(), Vec::<PathBuf>::new());
        }
    });
}

#[test]
fn a_disk_that_another_vm_has_is_refused_by_name() {
    with_qemu(|| async {
        let host = Host::new();
        let first = launch(host.plan("first"), &host.net).await.unwrap();
        let error = launch(host.plan("second"), &host.net).await.unwrap_err();
        assert!(error.to_string().contains("is locked by another process"), "{error}");
        assert!(
            matches!(&error, VmError::DiskLocked { name, path } if name == "root" && *path == host.disk())
        );
        assert_eq!(host.leftovers(), [host.root().join("first")]);
        assert_eq!(first.run_state().await.unwrap(), RunState::Prelaunch);

        first.kill().await.unwrap();
        launch(host.plan("second"), &host.net).await.unwrap();
    });
}

#[test]
fn a_qemu_that_does_not_start_says_why_and_leaves_nothing_behind() {
    with_qemu(|| async {
        let host = Host::new();
        let mut plan = host.plan("web");
        plan.spec.machine.machine_type = Some("pc-q35-99.9".into());
        let error = launch(plan, &host.net).await.unwrap_err();
        let VmError::QemuExited { exit: Exit::Code(1), log, .. } = &error else { panic!("{error}") };
        assert!(log.contains("pc-q35-99.9"), "{log}");

        let mut plan = host.plan("web");
        plan.qemu = "/nonexistent/qemu".into();
        let failure = Failure::from(launch(plan, &host.net).await.unwrap_err());
        assert!(failure.what.contains("/nonexistent/qemu: No such file"), "{failure}");

        let failure = Failure::from(launch(with_nic(host.plan("web"), "br7"), &host.net).await.unwrap_err());
        assert!(failure.what.contains("br7"), "{failure}");
        assert_eq!(host.leftovers(), Vec::<PathBuf>::new());
    });
}

#[test]
fn a_plan_that_cannot_be_is_refused_before_anything_is_made() {
    with_qemu(|| async {
        let host = Host::new();
        let mut long = host.plan("web");
        long.runtime_dir = host.root().join("x".repeat(80));
        assert!(matches!(launch(long, &host.net).await, Err(VmError::PathTooLong { .. })));
        let mut relative = host.plan("web");
        relative.runtime_dir = "web".into();
        assert!(matches!(launch(relative, &host.net).await, Err(VmError::InvalidPlan { .. })));
        assert_eq!(host.leftovers(), Vec::<PathBuf>::new());
    });
}

#[test]
fn a_kernel_that_qemus_user_may_not_read_is_refused_by_name() {
    with_qemu(|| async {
        let host = Host::new();
        let image = host.directory.path().join("vmlinuz");
        File::create(&image).unwrap();
        fs::set_permissions(&image, Permissions::from_mode(0o600)).unwrap();
        let mut plan = host.plan("web");
        plan.boot.kernel =
            Some(KernelPlan { image: image.clone(), initrd: None, command_line: String::new() });
        let error = launch(plan, &host.net).await.unwrap_err();
        assert!(
            matches!(&error, VmError::BootFile { what: "kernel", path, .. } if *path == image),
            "{error}"
        );
    });
}

/// What live migration stands on: the destination's QEMU starts on the disk that the source has locked, and takes it
/// over when it is activated.
#[test]
fn a_vm_moves_to_a_second_qemu_on_the_same_disk() {
    with_qemu(|| async {
        let host = Host::new();
        let plan = host.plan("source");
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

        let capabilities =
            [Capability::Events, Capability::LateBlockActivate, Capability::PauseBeforeSwitchover];
        source.qmp().migrate_set_capabilities(&capabilities).await.unwrap();
        destination.qmp().migrate_set_capabilities(&capabilities).await.unwrap();
        let socket = destination.runtime_dir().path().join("q/in.sock");
        let uri = format!("unix:{}", socket.display());
        destination.qmp().migrate_incoming(&uri).await.unwrap();
        source.qmp().migrate(&uri).await.unwrap();
        until(&source, MigrationStatus::PreSwitchover).await;
        source.qmp().migrate_continue(&MigrationStatus::PreSwitchover).await.unwrap();
        until(&source, MigrationStatus::Completed).await;
        until(&destination, MigrationStatus::Completed).await;
        assert_eq!(source.run_state().await.unwrap(), RunState::PostMigrate);

        let found = adopt_twice(&host, source, destination).await;
        let (source, destination) = found;
        destination.qmp().cont().await.unwrap();
        assert_eq!(destination.power_state().await.unwrap(), PowerState::Running);
        assert_eq!(source.power_state().await.unwrap(), PowerState::Paused);
    });
}

/// Both QEMUs of the VM are found by an agent that comes back in the middle.
async fn adopt_twice(
    host: &Host,
    source: limosa_vm::Vm,
    destination: limosa_vm::Vm,
) -> (limosa_vm::Vm, limosa_vm::Vm) {
    let ids = (source.id(), source.epoch(), destination.epoch(), destination.migration());
    drop((source, destination));
    let mut found = adopt_all(&host.root(), &host.net).await.unwrap();
    found.sort_by_key(|adopted| adopted.epoch);
    let [source, destination] = <[_; 2]>::try_from(found).unwrap();
    assert_eq!((source.vm, destination.vm), (ids.0, ids.0));
    assert_eq!((source.epoch, destination.epoch, destination.migration), (ids.1, ids.2, ids.3));
    (source.handle.unwrap(), destination.handle.unwrap())
}

async fn until(vm: &limosa_vm::Vm, wanted: MigrationStatus) {
    loop {
        let migration = vm.qmp().query_migrate().await.unwrap();
        assert_ne!(migration.status, MigrationStatus::Failed, "{:?}", migration.error_desc);
        if migration.status == wanted {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[test]
fn this_host_has_all_that_limosa_needs() {
    with_qemu(|| async {
        for check in check_host(Path::new(QEMU), NOBODY).await {
            eprintln!("{:?} {}: {} {}", check.verdict, check.name, check.found, check.remedy);
            assert_ne!(check.verdict, Verdict::Missing, "{}: {}", check.name, check.found);
        }
    });
}

#[test]
fn a_runtime_directory_that_never_was_is_removed() {
    with_qemu(|| async {
        let host = Host::new();
        remove_runtime(&RuntimeDir::at(host.root().join("never"))).unwrap();
    });
}

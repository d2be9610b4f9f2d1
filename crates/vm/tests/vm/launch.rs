//! Starting and ending a QEMU, and what keeps one from starting.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use limosa_model::{ByteSize, Failure, PowerState};
use limosa_net::{PortState, Schedule};
use limosa_qemu::commands::run::RunState;
use limosa_vm::{
    CgroupState, Exit, KernelPlan, LaunchPlan, RuntimeDir, Verdict, VmError, adopt_all, check_host,
    host_facts, launch, remove_runtime,
};

use crate::host::{Host, NOBODY, QEMU, status_of, with_nic, with_qemu};

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

        let rights = |path: &Path| {
            let metadata = fs::metadata(path).unwrap();
            (metadata.uid(), metadata.mode() & 0o777)
        };
        assert_eq!(rights(vm.runtime_dir().path()), (0, 0o711));
        assert_eq!(rights(&vm.runtime_dir().plan()), (0, 0o600));
        assert_eq!(rights(vm.runtime_dir().qmp_socket().parent().unwrap()), (65534, 0o700));

        let nic = &vm.nics()[0];
        assert_eq!(net.port_state(&nic.tap).await.unwrap(), PortState::Closed);
        vm.open_ports(net).await.unwrap();
        assert_eq!(net.port_state(&nic.tap).await.unwrap(), PortState::Open);
        assert_eq!(vm.announce(net, Schedule::default()).await.unwrap().len(), 1);
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
fn a_vm_with_the_default_cpu_starts_without_complaint_and_with_its_library() {
    with_qemu(|| async {
        let host = Host::new();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let library = maps.split_whitespace().find(|word| word.contains("/libgcc_s.so")).unwrap();
        let plan = LaunchPlan { preload: Some(library.into()), ..host.plan("web") };
        let vm = launch(plan, &host.net).await.unwrap();
        vm.qmp().cont().await.unwrap();
        assert_eq!(vm.power_state().await.unwrap(), PowerState::Running);
        assert_eq!(vm.runtime_dir().log_tail(1000), "it said nothing");
        let environment = fs::read_to_string(format!("/proc/{}/environ", vm.pid())).unwrap();
        assert_eq!(environment.trim_end_matches('\0'), format!("LD_PRELOAD={library}"));
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

#[test]
fn this_host_has_all_that_limosa_needs() {
    with_qemu(|| async {
        for check in check_host(Path::new(QEMU), NOBODY).await {
            eprintln!("{:?} {}: {} {}", check.verdict, check.name, check.found, check.remedy);
            assert_ne!(check.verdict, Verdict::Missing, "{}: {}", check.name, check.found);
        }
        let facts = host_facts(Path::new(QEMU), "0.1.0").await.unwrap();
        eprintln!("{facts:?}");
        assert!(facts.machine_types.iter().any(|name| name == "pc-q35-7.2"));
        assert!(!facts.qemu_version.is_empty() && facts.capacity.memory > ByteSize::mib(0));
    });
}

#[test]
fn a_runtime_directory_that_never_was_is_removed() {
    with_qemu(|| async {
        let host = Host::new();
        remove_runtime(&RuntimeDir::at(host.root().join("never"))).unwrap();
    });
}

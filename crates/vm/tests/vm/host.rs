//! A host for one test: a network namespace, a runtime root, a datastore with one disk.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use limosa_model::host::Accelerator;
use limosa_model::{DiskFormat, Epoch, Mac, VmId, VmSpec};
use limosa_net::Net;
use limosa_vm::{BootPlan, DiskPlan, LaunchPlan, NicPlan, QemuUser, RuntimeDir, remove_runtime, tap_name};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

pub(crate) const QEMU: &str = "/usr/bin/qemu-system-x86_64";
pub(crate) const NOBODY: QemuUser = QemuUser { uid: 65534, gid: 65534 };

/// Runs a test on a thread with a network namespace of its own, if this machine has what it takes.
pub(crate) fn with_qemu<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
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
pub(crate) struct Host {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) net: Net,
}

impl Host {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("lmvm").tempdir_in("/tmp").unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let host = Self { directory, net: Net::connect().unwrap() };
        fs::create_dir(host.root()).unwrap();
        File::create(host.disk()).unwrap().set_len(1 << 20).unwrap();
        host
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.directory.path().join("disk.raw")
    }

    pub(crate) fn plan(&self, name: &str) -> LaunchPlan {
        plan(&self.root(), name, &self.disk())
    }

    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
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

pub(crate) fn plan(root: &Path, name: &str, disk: &Path) -> LaunchPlan {
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

pub(crate) fn with_nic(mut plan: LaunchPlan, bridge: &str) -> LaunchPlan {
    let mac = Mac::derived(plan.vm, 0);
    plan.nics.push(NicPlan { bridge: bridge.parse().unwrap(), tap: tap_name(plan.vm, plan.epoch, 0), mac });
    let nic = serde_json::json!({ "network": "lan", "addresses": ["192.0.2.7"] });
    plan.spec.nics.push(serde_json::from_value(nic).unwrap());
    plan
}

pub(crate) fn status_of(pid: u32, key: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

//! What agents are given that is wrong: each is refused by name, with the remedy; nothing is lost or left behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::{HOST_1, HOST_2, LIMIT, can_run, up};
use limosa_api::agent::MigrationOptions;
use limosa_api::client::CallError;
use limosa_lab::assets::Assets;
use limosa_lab::bare::{BareCluster, guest_spec, program};
use limosa_lab::guest::GuestConfig;
use limosa_lab::{Lab, Room, wait};
use limosa_model::{Fact, FailureKind, PowerState, VmId};

fn ready() -> Option<Assets> {
    can_run(&["qemu-system-x86_64", "qemu-nbd", "ip", "apt-get", "dpkg-deb"])
        .then(|| Assets::prepare().unwrap())
}

/// Starts one more agent on a host, with this in its configuration in place of that, and gives what it says at its end.
fn last_words(lab: &Lab, room: Room, replace: &[(&str, &str)]) -> String {
    let directory = lab.room_directory(room).unwrap();
    let mut config = fs::read_to_string(directory.join("agent.toml")).unwrap();
    for (from, to) in replace {
        assert!(config.contains(from), "{from:?} is not in {config}");
        config = config.replace(from, to);
    }
    let path = directory.join("other.toml");
    fs::write(&path, config).unwrap();
    let mut command = Command::new(program().unwrap());
    command.arg("agent").arg("--config").arg(path);
    let agent = lab.spawn(room, "other-agent", command).unwrap();
    agent.wait_exit(LIMIT).unwrap();
    fs::read_to_string(agent.log()).unwrap()
}

/// A state directory with the identity of a host's agent: a cloned disk.
fn cloned_state(lab: &Lab, room: Room) -> PathBuf {
    let directory = lab.room_directory(room).unwrap();
    let clone = directory.join("clone");
    fs::create_dir_all(&clone).unwrap();
    for name in ["host.pem", "ca.pem"] {
        fs::copy(directory.join("state").join(name), clone.join(name)).unwrap();
    }
    clone
}

#[test]
fn an_agent_that_cannot_start_says_what_is_in_the_way_and_what_to_do() {
    let Some(assets) = ready() else { return };
    let lab = up("bad-start", 1);
    let _cluster = BareCluster::start(&lab, &assets).unwrap();
    let state = lab.room_directory(HOST_1).unwrap().join("state");
    let state = state.to_str().unwrap();

    let said = last_words(&lab, HOST_1, &[]);
    assert!(said.contains("another agent has the state directory") && said.contains(state), "{said}");

    let clone = cloned_state(&lab, HOST_1);
    let said = last_words(&lab, HOST_1, &[(state, clone.to_str().unwrap())]);
    assert!(said.contains("cannot listen on 10.76.0.11:7601") && said.contains("another agent"), "{said}");

    let empty = lab.room_directory(HOST_1).unwrap().join("empty");
    let said = last_words(&lab, HOST_1, &[(state, empty.to_str().unwrap())]);
    assert!(said.contains("has not joined a cluster") && said.contains("limosa host join"), "{said}");

    let qemu = format!("state_dir = \"{}\"\nqemu = \"/nowhere/qemu\"", clone.display());
    let said = last_words(&lab, HOST_1, &[(&format!("state_dir = \"{state}\""), &qemu)]);
    assert!(said.contains("/nowhere/qemu"), "{said}");

    let said = last_words(&lab, HOST_1, &[("state_dir", "statedir")]);
    assert!(said.contains("did you mean `state_dir`?"), "{said}");

    fs::write(clone.join("journal"), "this is no journal, though it is long enough to be one").unwrap();
    let said = last_words(&lab, HOST_1, &[(state, clone.to_str().unwrap())]);
    assert!(said.contains("is damaged") && said.contains("move it aside"), "{said}");
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, CallError>) -> (FailureKind, String) {
    match answer.unwrap_err() {
        CallError::Refused(problem) => (problem.code, format!("{}; {}", problem.detail, problem.remedy)),
        other => panic!("not refused: {other}"),
    }
}

fn is_clean(lab: &Lab, room: Room) -> bool {
    let run = lab.room_directory(room).unwrap().join("run");
    let entries = |folder: &str| fs::read_dir(run.join(folder)).map_or(0, Iterator::count);
    let processes = lab.processes_in(room).unwrap();
    entries("vms") == 0 && entries("migrations") == 0 && processes.len() == 1
}

#[test]
fn a_vm_that_cannot_start_is_refused_by_name_and_leaves_nothing() {
    let Some(assets) = ready() else { return };
    let lab = up("bad-vm", 1);
    let mut cluster = BareCluster::start(&lab, &assets).unwrap();
    let mut config = GuestConfig::new("stamp", HOST_1);
    config.disk = Some("on-the-shared-datastore".into());
    let good = guest_spec(&config);

    let mut spec = good.clone();
    spec.boot.kernel.as_mut().unwrap().image = "no-such-kernel".parse().unwrap();
    let (kind, said) = refusal(cluster.start_vm(0, &cluster.target(VmId::new(), &spec)));
    assert_eq!(kind, FailureKind::Storage);
    assert!(said.contains("no-such-kernel"), "{said}");

    let mut spec = good.clone();
    spec.nics[0].network = "no-such-network".parse().unwrap();
    let (kind, said) = refusal(cluster.start_vm(0, &cluster.target(VmId::new(), &spec)));
    assert_eq!(kind, FailureKind::NotFound);
    assert!(said.contains("no-such-network"), "{said}");

    let mut spec = good.clone();
    spec.memory = "16GiB".parse().unwrap();
    let (kind, said) = refusal(cluster.start_vm(0, &cluster.target(VmId::new(), &spec)));
    assert_eq!(kind, FailureKind::Resource);
    assert!(said.contains("needs 16GiB of memory, the host has 4GiB left"), "{said}");

    let mut spec = good.clone();
    spec.machine.machine_type = Some("pc-q35-1.0".into());
    let (kind, said) = refusal(cluster.start_vm(0, &cluster.target(VmId::new(), &spec)));
    assert_eq!(kind, FailureKind::Incompatible);
    assert!(said.contains("pc-q35-1.0"), "{said}");

    let mut target = cluster.target(VmId::new(), &good);
    target.datastores[0].path = "/nowhere/../etc".into();
    let (kind, said) = refusal(cluster.start_vm(0, &target));
    assert_eq!(kind, FailureKind::Invalid);
    assert!(said.contains("without `..`"), "{said}");

    // The disk is there, and another process has it open for writing.
    let target = cluster.target(VmId::new(), &good);
    let image = cluster.shared().join("vms").join(target.vm.to_string()).join("root.raw");
    fs::create_dir_all(image.parent().unwrap()).unwrap();
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let locker = Locker::of(&lab, &image);
    let (kind, said) = refusal(cluster.start_vm(0, &target));
    drop(locker);
    assert_eq!(kind, FailureKind::Storage, "{said}");
    assert!(said.contains("root"), "{said}");

    wait::until("nothing to be left", LIMIT, || Ok(is_clean(&lab, HOST_1).then_some(()))).unwrap();
    assert_eq!(cluster.start_vm(0, &target).unwrap().power, PowerState::Running);
}

/// A process that holds an image's lock for as long as this lives.
struct Locker(i32);

impl Locker {
    fn of(lab: &Lab, image: &std::path::Path) -> Self {
        let pid_file = lab.directory().join("locker.pid");
        let status = Command::new("qemu-nbd")
            .args(["--fork", "--persistent", "--format=raw"])
            .arg(format!("--socket={}", lab.directory().join("locker").display()))
            .arg(format!("--pid-file={}", pid_file.display()))
            .arg(image)
            .status()
            .unwrap();
        assert!(status.success());
        Self(fs::read_to_string(pid_file).unwrap().trim().parse().unwrap())
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.0).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
}

#[test]
fn a_full_disk_under_the_journal_does_not_stand_in_the_way_of_a_migrations_end() {
    let Some(assets) = ready() else { return };
    let lab = up("full-disk", 2);
    let disks: Vec<_> = [HOST_1, HOST_2].map(|room| SmallDisk::mount(&lab, room)).into();
    let mut cluster = BareCluster::start(&lab, &assets).unwrap();
    let mut config = GuestConfig::new("stamp", HOST_1);
    config.memory_mib = 128;
    config.fill_mib = 16;
    let mut target = cluster.target(VmId::new(), &guest_spec(&config));
    let started = cluster.start_vm(0, &target).unwrap();
    target.spec.machine.machine_type = started.machine_type;

    // From the order on there is not a byte to be had on either host's disk.
    let slow = limosa_lab::Shape { rate: Some("100Mbit".parse().unwrap()), ..Default::default() };
    lab.shape(HOST_1, limosa_lab::Network::Migration, &slow).unwrap();
    let ticket = cluster.migrate(0, 1, &target, started.epoch, &MigrationOptions::default()).unwrap();
    for disk in &disks {
        disk.fill();
    }
    let (source, destination) = cluster.await_end(0, 1, ticket).unwrap();
    assert_eq!(source.fact.map(|told| told.fact), Some(Fact::Released), "{source:?}");
    assert_eq!(destination.fact.map(|told| told.fact), Some(Fact::Running), "{destination:?}");

    let report = cluster.report(1).unwrap();
    assert_eq!(report.vms.iter().find(|vm| vm.vm == target.vm).unwrap().power, PowerState::Running);
}

/// A file system of 3 MiB as a host's state directory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(lab: &Lab, room: Room) -> Self {
        let path = lab.room_directory(room).unwrap().join("state");
        fs::create_dir_all(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"])
            .arg(&path)
            .status()
            .unwrap();
        assert!(mounted.success());
        Self(path)
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        let block = vec![1; 64 * 1024];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Agents have their journals open in it: detached, it goes with them.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

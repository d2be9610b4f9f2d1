//! The client and the command line against the QEMU of this machine. Skips, loudly, where there is none; fails
//! there if `CI` is set.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails by panicking")]

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use limosa_qemu::command_line::*;
use limosa_qemu::commands::host::{CpuExpansion, CpuModel};
use limosa_qemu::commands::migration::{Announcement, Capability, MigrationParameters, MigrationStatus};
use limosa_qemu::commands::run::RunState;
use limosa_qemu::{Error, Event, Identity, Qmp, Severity, check_version, parse_identity};
use rustix::fs::{MemfdFlags, OFlags};

/// So long that only a hanging QEMU reaches it.
const TIMEOUT: Duration = Duration::from_secs(60);
const MEMORY_BYTES: u64 = 64 << 20;
const DISK_BYTES: usize = 1 << 20;

/// The QEMU to test with: `LIMOSA_TEST_QEMU`, or the one in the path.
fn binary() -> Option<PathBuf> {
    let name = std::env::var_os("LIMOSA_TEST_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into());
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&directories).map(|path| path.join(&name)).find(|path| path.is_file());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{name:?} is missing, and CI needs it");
        eprintln!("SKIPPED: {name:?} is not installed, so nothing here was tested");
    }
    found
}

/// A QEMU that ends with its test.
struct Qemu {
    child: Child,
    socket: PathBuf,
    directory: tempfile::TempDir,
}

impl Qemu {
    fn start(directory: tempfile::TempDir, arguments: &[OsString], descriptors: Vec<OwnedFd>) -> Self {
        let socket = directory.path().join("qmp");
        let child = Command::new(&arguments[0]).args(&arguments[1..]).stdin(Stdio::null()).spawn().unwrap();
        drop(descriptors);
        Self { child, socket, directory }
    }

    /// Connects as soon as QEMU listens.
    async fn connect(&mut self) -> Qmp {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        loop {
            match Qmp::connect(&self.socket, TIMEOUT).await {
                Ok(qmp) => return qmp,
                Err(Error::Connect { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("QEMU has ended: {status}");
            }
            pause.tick().await;
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes a descriptor that a child inherits; its number is the child's too.
fn inheritable(descriptor: BorrowedFd<'_>) -> OwnedFd {
    // `dup` gives a descriptor without close-on-exec.
    rustix::io::dup(descriptor).unwrap()
}

/// The newest machine type with a version of a kind.
fn machine(binary: &Path, kind: &str) -> String {
    let output = Command::new(binary).args(["-machine", "help"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter_map(|line| line.split_whitespace().next());
    let version = |name: &str| {
        let mut numbers = name.rsplit('-').next()?.split('.').map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    let newest = names.filter(|name| name.starts_with(kind)).max_by_key(|name| version(name)).unwrap();
    newest.to_owned()
}

struct Guest {
    command_line: CommandLine,
    descriptors: Vec<OwnedFd>,
    directory: tempfile::TempDir,
}

impl Guest {
    fn new(binary: &Path, kind: &str, start: Start) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let memory = rustix::fs::memfd_create("ram", MemfdFlags::empty()).unwrap();
        rustix::fs::ftruncate(&memory, MEMORY_BYTES).unwrap();
        let path = directory.path().join("disk, the first");
        File::create(&path).unwrap().write_all(&vec![7; DISK_BYTES]).unwrap();
        let disk = File::options().read(true).write(true).open(&path).unwrap();
        let disk = inheritable(disk.as_fd());
        let command_line = CommandLine {
            binary: binary.to_owned(),
            identity: Identity { vm: "0190f3c2-3c8e-7aaa".into(), epoch: 7, migration: Some("m1".into()) },
            name: "a name, with a comma".into(),
            uuid: "0190f3c2-3c8e-7aaa-8e5f-4d2f9a1b0c3d".into(),
            machine: machine(binary, kind),
            accelerator: Accelerator::Tcg,
            cpu: Cpu { model: "qemu64".into(), features: vec![("x2apic".into(), false)] },
            vcpus: 2,
            memory: Memory { bytes: MEMORY_BYTES, memfd: memory.as_raw_fd() },
            qmp_socket: directory.path().join("qmp"),
            serial: Some(Serial {
                socket: directory.path().join("serial, one"),
                log: Some(directory.path().join("console.log")),
            }),
            vga: Vga::Std,
            vnc_socket: Some(directory.path().join("vnc, one")),
            rng: true,
            balloon: true,
            firmware: Firmware::SeaBios,
            kernel: None,
            disks: vec![raw_disk(0, DiskBus::Virtio, FileSource::Descriptor(disk.as_raw_fd()))],
            cdroms: vec![Cdrom { index: 0, image: None, boot_index: None }],
            nics: vec![],
            start,
            stay_after_shutdown: true,
            globals: vec![],
            extra: vec![],
        };
        Self { command_line, descriptors: vec![memory, disk], directory }
    }

    fn start(self) -> Qemu {
        Qemu::start(self.directory, &self.command_line.to_arguments().unwrap(), self.descriptors)
    }
}

fn raw_disk(index: u8, bus: DiskBus, source: FileSource) -> Disk {
    Disk {
        index,
        image: Image { source, format: ImageFormat::Raw, backing: None },
        bus,
        direct: false,
        read_only: false,
        discard: true,
        on_write_error: OnIoError::Stop,
        on_read_error: OnIoError::Report,
        boot_index: None,
        serial: Some("limosa".into()),
    }
}

#[tokio::test]
async fn a_bare_qemu_is_spoken_to() {
    let Some(binary) = binary() else { return };
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("qmp");
    let qmp_option = format!("unix:{},server=on,wait=off", socket.display());
    let arguments =
        ["-M", "q35", "-nodefaults", "-display", "none", "-S", "-accel", "tcg", "-qmp", &qmp_option];
    let arguments: Vec<OsString> =
        std::iter::once(binary.into()).chain(arguments.map(OsString::from)).collect();
    let mut qemu = Qemu::start(directory, &arguments, vec![]);
    let qmp = qemu.connect().await;
    let mut events = qmp.subscribe();

    check_version(qmp.greeting().version).unwrap();
    assert_eq!(&qmp.query_version().await.unwrap(), qmp.greeting());
    let schema = qmp.query_schema().await.unwrap();
    let missing = schema.missing();
    assert!(missing.iter().all(|missing| missing.severity == Severity::Wanted), "{missing:?}");
    assert!(schema.capabilities().iter().any(|capability| capability == "multifd"));
    assert!(schema.multifd_compressions().iter().any(|compression| compression == "none"));

    assert_eq!(qmp.query_status().await.unwrap().status, RunState::Prelaunch);
    qmp.cont().await.unwrap();
    assert!(qmp.query_status().await.unwrap().running);
    qmp.stop().await.unwrap();
    assert_eq!(qmp.query_status().await.unwrap().status, RunState::Paused);
    assert_eq!(events.next().await.unwrap().event, Event::Resume);
    assert_eq!(events.next().await.unwrap().event, Event::Stop);

    let unknown = qmp.execute::<_, ()>("limosa-unknown", &Properties::new()).await.unwrap_err();
    assert!(unknown.is_command_not_found(), "{unknown}");
    assert_eq!(qmp.query_identity().await.unwrap(), None);

    let held = Qmp::connect(&qemu.socket, Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(held, Error::NoGreeting { .. }), "a monitor serves one client: {held}");
    drop(qmp);
    let again = Qmp::connect(&qemu.socket, TIMEOUT).await.unwrap();
    assert_eq!(again.query_status().await.unwrap().status, RunState::Paused);

    let mut events = again.subscribe();
    again.quit().await.unwrap();
    assert!(matches!(events.next().await.unwrap().event, Event::Shutdown(cause) if !cause.guest));
    assert!(qemu.child.wait().unwrap().success());
}

#[tokio::test]
async fn what_the_builder_makes_starts_and_every_query_is_understood() {
    let Some(binary) = binary() else { return };
    for kind in ["pc-q35-", "pc-i440fx-"] {
        let guest = Guest::new(&binary, kind, Start::Paused);
        let identity = guest.command_line.identity.clone();
        let mut qemu = guest.start();
        let qmp = qemu.connect().await;

        let cmdline = std::fs::read(format!("/proc/{}/cmdline", qemu.child.id())).unwrap();
        assert_eq!(parse_identity(&cmdline).as_ref(), Some(&identity));
        assert_eq!(qmp.query_identity().await.unwrap(), Some(identity));
        for socket in ["serial, one", "vnc, one"] {
            assert!(qemu.directory.path().join(socket).exists(), "{socket} is served");
        }

        let nodes = qmp.query_named_block_nodes().await.unwrap();
        assert!(nodes.iter().any(|node| node.node_name == "disk0" && !node.is_read_only), "{nodes:?}");
        let blocks = qmp.ram_blocks().await.unwrap();
        let ram = blocks.iter().find(|block| block.name == "ram0").unwrap();
        assert_eq!(ram.used_bytes, MEMORY_BYTES);
        assert_eq!(qmp.query_balloon().await.unwrap(), Some(MEMORY_BYTES));
        assert_eq!(qmp.query_cpus_fast().await.unwrap().len(), 2);
        assert!(!qmp.query_kvm().await.unwrap().enabled);
        assert!(qmp.query_block_jobs().await.unwrap().is_empty());
        assert!(qmp.query_machines().await.unwrap().iter().any(|machine| machine.name.starts_with(kind)));
        assert!(qmp.query_cpu_definitions().await.unwrap().iter().any(|cpu| cpu.name == "qemu64"));
        let model = CpuModel { name: "qemu64".into(), properties: serde_json::Map::new() };
        let model = qmp.query_cpu_model_expansion(&CpuExpansion::Static, &model).await.unwrap();
        assert_eq!((model.name.as_str(), model.properties["sse2"].as_bool()), ("base", Some(true)));
        qmp.announce_self(&Announcement::default()).await.unwrap();
        qmp.quit().await.unwrap();
        assert!(qemu.child.wait().unwrap().success());
    }
}

#[tokio::test]
async fn devices_come_and_go_with_their_descriptors() {
    let Some(binary) = binary() else { return };
    let mut qemu = Guest::new(&binary, "pc-i440fx-", Start::Paused).start();
    let qmp = qemu.connect().await;

    let path = qemu.directory.path().join("second");
    File::create(&path).unwrap().set_len(DISK_BYTES as u64).unwrap();
    let image = File::options().read(true).write(true).open(&path).unwrap();
    let disk = raw_disk(1, DiskBus::Virtio, FileSource::Descriptor(image.as_raw_fd()));
    qmp.add_fd(disk.fdset(), image.as_fd()).await.unwrap();
    for node in disk.nodes().unwrap() {
        qmp.blockdev_add(&node).await.unwrap();
    }
    let held = qmp.remove_fd(disk.fdset()).await;
    qmp.blockdev_del("disk1").await.unwrap();
    qmp.blockdev_del("disk1-file").await.unwrap();
    assert!(qmp.blockdev_del("disk1").await.is_err(), "it is gone");
    drop(held);

    let (pipe, _other_end) = std::io::pipe().unwrap();
    qmp.getfd("pipe", pipe.as_fd()).await.unwrap();
    qmp.closefd("pipe").await.unwrap();
    assert!(qmp.closefd("pipe").await.is_err(), "it is gone");

    let rng = Properties::new().with("qom-type", "rng-builtin").with("id", "rng9");
    qmp.object_add(&rng).await.unwrap();
    qmp.object_del("rng9").await.unwrap();
    let netdev = Properties::new().with("type", "hubport").with("id", "net7").with("hubid", 0);
    qmp.netdev_add(&netdev).await.unwrap();
    let nic = Properties::new().with("driver", "virtio-net-pci").with("id", "nic7").with("netdev", "net7");
    qmp.device_add(&nic.with("bus", "pci.0").with("addr", "0x0f").with("romfile", "")).await.unwrap();
    qmp.set_link("nic7", false).await.unwrap();
    assert!(qmp.device_del("nic8").await.unwrap_err().is_device_not_found());
    qmp.device_del("nic7").await.unwrap();
    qmp.balloon(MEMORY_BYTES).await.unwrap();
}

#[tokio::test]
async fn disks_of_every_kind_are_opened() {
    let Some(binary) = binary() else { return };
    let mut guest = Guest::new(&binary, "pc-q35-", Start::Paused);
    let template = guest.directory.path().join("template.raw");
    let overlay = guest.directory.path().join("overlay.qcow2");
    File::create(&template).unwrap().set_len(DISK_BYTES as u64).unwrap();
    let created = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/nonexistent", "-u"])
        .arg(&overlay)
        .arg(DISK_BYTES.to_string())
        .status()
        .unwrap();
    assert!(created.success());

    let overlay = inheritable(File::options().read(true).write(true).open(overlay).unwrap().as_fd());
    let iso = inheritable(File::open(&template).unwrap().as_fd());
    let mut system = raw_disk(5, DiskBus::Scsi, FileSource::Descriptor(overlay.as_raw_fd()));
    system.image.format = ImageFormat::Qcow2;
    system.image.backing = Some(Box::new(Image {
        source: FileSource::Path(template.clone()),
        format: ImageFormat::Raw,
        backing: None,
    }));
    let read_only = Disk { read_only: true, ..raw_disk(11, DiskBus::Virtio, FileSource::Path(template)) };
    guest.command_line.disks.extend([system, read_only]);
    let direct = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(guest.directory.path().join("disk, the first"));
    let direct = inheritable(direct.unwrap().as_fd());
    guest.command_line.disks[0].direct = true;
    guest.command_line.disks[0].image.source = FileSource::Descriptor(direct.as_raw_fd());
    guest.command_line.cdroms[0].image = Some(FileSource::Descriptor(iso.as_raw_fd()));
    guest.descriptors.extend([overlay, iso, direct]);
    let mut qemu = guest.start();

    let nodes = qemu.connect().await.query_named_block_nodes().await.unwrap();
    let node = |name: &str| nodes.iter().find(|node| node.node_name == name).expect(name);
    assert_eq!((node("disk5").driver.as_str(), node("disk5").is_read_only), ("qcow2", false));
    assert!(
        node("disk5-backing1").is_read_only && node("disk11").is_read_only && node("cdrom0").is_read_only
    );
    assert!(node("disk5-backing1").file.ends_with("template.raw"), "not the one that the header names");
}

/// Memory stays in the memfd of the destination's own here; only the conversation of a migration is tested.
#[tokio::test]
async fn a_migration_is_held_before_the_switchover_and_completes() {
    let Some(binary) = binary() else { return };
    let mut source_qemu = Guest::new(&binary, "pc-q35-", Start::Paused).start();
    // The destination opens the same image, as on a shared datastore.
    let image = source_qemu.directory.path().join("disk, the first");
    let image = File::options().read(true).write(true).open(image).unwrap();
    let image = inheritable(image.as_fd());
    let mut guest = Guest::new(&binary, "pc-q35-", Start::Incoming);
    guest.command_line.disks[0].image.source = FileSource::Descriptor(image.as_raw_fd());
    guest.descriptors.push(image);
    let mut destination_qemu = guest.start();
    let (source, destination) = (source_qemu.connect().await, destination_qemu.connect().await);
    assert_eq!(destination.query_status().await.unwrap().status, RunState::InMigrate);
    assert_eq!(source.query_migrate().await.unwrap().status, MigrationStatus::None);

    let uri = format!("unix:{}", destination_qemu.directory.path().join("stream").display());
    let capabilities = [Capability::Events, Capability::ReturnPath, Capability::LateBlockActivate];
    destination.migrate_set_capabilities(&capabilities).await.unwrap();
    destination.migrate_incoming(&uri).await.unwrap();
    let capabilities = [Capability::Events, Capability::ReturnPath, Capability::PauseBeforeSwitchover];
    source.migrate_set_capabilities(&capabilities).await.unwrap();
    let parameters = MigrationParameters {
        downtime_limit_ms: Some(500),
        max_bandwidth_bytes_per_second: Some(0),
        ..MigrationParameters::default()
    };
    source.migrate_set_parameters(&parameters).await.unwrap();
    assert_eq!(source.query_migrate_parameters().await.unwrap().downtime_limit_ms, Some(500));

    source.cont().await.unwrap();
    let mut events = source.subscribe();
    source.migrate(&uri).await.unwrap();
    wait_for(&mut events, Event::Migration(MigrationStatus::PreSwitchover)).await;
    assert_eq!(source.query_migrate().await.unwrap().status, MigrationStatus::PreSwitchover);
    source.migrate_continue(&MigrationStatus::PreSwitchover).await.unwrap();
    wait_for(&mut events, Event::Migration(MigrationStatus::Completed)).await;

    let info = source.query_migrate().await.unwrap();
    assert!(info.ram.unwrap().transferred_bytes > 0 && info.downtime_ms.is_some());
    assert_eq!(source.query_status().await.unwrap().status, RunState::PostMigrate);
    if destination.query_schema().await.unwrap().has_command("blockdev-set-active") {
        destination.blockdev_set_active(true, None).await.unwrap();
        let nodes = destination.query_named_block_nodes().await.unwrap();
        assert!(nodes.iter().all(|node| node.is_active == Some(true)), "{nodes:?}");
    }
    destination.cont().await.unwrap();
    assert!(destination.query_status().await.unwrap().running);
}

async fn wait_for(events: &mut limosa_qemu::Events, wanted: Event) {
    while events.next().await.unwrap().event != wanted {}
}

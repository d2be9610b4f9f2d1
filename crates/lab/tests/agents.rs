//! Two agents without a server: a running guest moves between them, and nobody notices.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::process::Command;

use common::{LIMIT, can_run, up};
use limosa_api::agent::MigrationOptions;
use limosa_lab::assets::Assets;
use limosa_lab::bare::{BareCluster, guest_spec, program};
use limosa_lab::guest::{GuestConfig, GuestConnection};
use limosa_lab::{EchoConnection, Network, Pinger, Room, Shape, wait};
use limosa_model::{Fact, FailureKind, Millis, PowerState, VmId};

#[test]
fn a_running_guest_moves_there_and_back_and_nobody_notices() {
    if !can_run(&["qemu-system-x86_64", "ip", "apt-get", "dpkg-deb"]) {
        return;
    }
    let assets = Assets::prepare().unwrap();
    let lab = up("agents", 2);
    let mut cluster = BareCluster::start(&lab, &assets).unwrap();
    let mut config = GuestConfig::new("stamp", Room::Host(1));
    config.disk = Some("on-the-shared-datastore".into());
    let mut target = cluster.target(VmId::new(), &guest_spec(&config));
    let started = cluster.start_vm(0, &target).unwrap();
    target.spec.machine.machine_type = started.machine_type;
    let mut epoch = started.epoch;
    let client = lab.namespace(Room::Client).unwrap();
    let mut guest = GuestConnection::wait(&client, config.address, LIMIT).unwrap();
    wait::until("the guest to have filled its memory", LIMIT, || {
        let status = guest.status()?;
        Ok((status.pages_filled == status.pages).then_some(()))
    })
    .unwrap();
    let pinger = Pinger::start(&client, config.address).unwrap();
    let echo = EchoConnection::start(&client, config.address).unwrap();

    let options = MigrationOptions { compare_memory: true, ..MigrationOptions::default() };
    for (from, to) in [(0, 1), (1, 0)] {
        let ticket = cluster.migrate(from, to, &target, epoch, &options).unwrap();
        let (source, destination) = cluster.await_end(from, to, ticket).unwrap();
        println!("{source:#?}\n{destination:#?}");
        assert_eq!(source.fact.map(|told| told.fact), Some(Fact::Released));
        assert_eq!(destination.fact.map(|told| told.fact), Some(Fact::Running));
        assert!(source.measured.memory_compared, "the two memories were not compared");
        assert!(destination.measured.warnings.is_empty(), "{:?}", destination.measured.warnings);
        let report = cluster.report(to).unwrap();
        let vm = report.vms.iter().find(|vm| vm.vm == target.vm).unwrap();
        assert_eq!((vm.power, vm.epoch), (PowerState::Running, ticket.epoch));
        assert!(cluster.report(from).unwrap().vms.is_empty(), "the source still knows the VM");
        epoch = ticket.epoch;
    }

    // The VM has left host 2. An order to start it there under an earlier right comes late, when nothing of the
    // migrations is known any more.
    for migration in cluster.report(1).unwrap().migrations {
        cluster.forget(1, migration.ticket.migration).unwrap();
    }
    let late = cluster.start_vm_under(1, &target, started.epoch).unwrap_err();
    assert!(late.to_string().contains("has left this host"), "{late}");

    let verified = guest.verify().unwrap();
    assert!(verified.ok, "{verified:?}");
    let echo = echo.stop();
    assert_eq!(echo.error, None, "the TCP connection did not live: {echo:?}");
    let ping = pinger.stop();
    println!("{ping:?}\n{echo:?}");
    assert!(ping.received > 0);
}

#[test]
fn a_guest_that_outruns_the_link_is_given_up_with_the_numbers_and_runs_on() {
    if !can_run(&["qemu-system-x86_64", "ip", "apt-get", "dpkg-deb"]) {
        return;
    }
    let assets = Assets::prepare().unwrap();
    let lab = up("outrun", 2);
    let mut cluster = BareCluster::start(&lab, &assets).unwrap();
    let mut config = GuestConfig::new("stamp", Room::Host(1));
    (config.memory_mib, config.fill_mib, config.dirty_mib_s) = (128, 32, 64);
    let mut target = cluster.target(VmId::new(), &guest_spec(&config));
    let started = cluster.start_vm(0, &target).unwrap();
    target.spec.machine.machine_type = started.machine_type;
    let client = lab.namespace(Room::Client).unwrap();
    let mut guest = GuestConnection::wait(&client, config.address, LIMIT).unwrap();
    wait::until("the guest to have filled its memory", LIMIT, || {
        let status = guest.status()?;
        Ok((status.pages_filled == status.pages).then_some(()))
    })
    .unwrap();

    let slow = Shape { rate: Some("60Mbit".parse().unwrap()), ..Shape::default() };
    lab.shape(Room::Host(1), Network::Migration, &slow).unwrap();
    let options = MigrationOptions {
        throttle: false,
        downtime_limit_ms: Millis::new(50),
        ..MigrationOptions::default()
    };
    let ticket = cluster.migrate(0, 1, &target, started.epoch, &options).unwrap();
    let (source, destination) = cluster.await_end(0, 1, ticket).unwrap();
    let failure = source.failure.unwrap();
    assert_eq!(failure.kind, FailureKind::NotConverging, "{failure}");
    assert!(failure.what.contains("Mbit/s") && failure.what.contains("50 ms is allowed"), "{failure}");
    assert_eq!(source.fact.map(|told| told.fact), Some(Fact::Resumed));
    assert_eq!(destination.fact.map(|told| told.fact), Some(Fact::Refused));
    let verified = guest.verify().unwrap();
    assert!(verified.ok, "{verified:?}");
}

#[test]
fn the_guests_of_a_host_that_is_switched_off_power_off_and_stay_off() {
    if !can_run(&["qemu-system-x86_64", "ip", "apt-get", "dpkg-deb"]) {
        return;
    }
    let assets = Assets::prepare().unwrap();
    let lab = up("switched-off", 1);
    let mut cluster = BareCluster::start(&lab, &assets).unwrap();
    let config = GuestConfig::new("stamp", Room::Host(1));
    let target = cluster.target(VmId::new(), &guest_spec(&config));
    cluster.start_vm(0, &target).unwrap();
    GuestConnection::wait(&lab.namespace(Room::Client).unwrap(), config.address, LIMIT).unwrap();

    cluster.hosts()[0].agent.terminate().unwrap();
    cluster.hosts()[0].agent.wait_exit(LIMIT).unwrap();
    let mut command = Command::new(program().unwrap());
    let settings = lab.room_directory(Room::Host(1)).unwrap().join("agent.toml");
    command.arg("agent").arg("--stop-guests").arg("--config").arg(settings);
    let stop = lab.spawn(Room::Host(1), "stop-guests", command).unwrap();
    stop.wait_exit(LIMIT).unwrap();
    let said = std::fs::read_to_string(stop.log()).unwrap();
    assert!(said.contains("cleanly: 1, by_force: 0"), "{said}");

    cluster.restart_agent(0).unwrap();
    let report = cluster.report(0).unwrap();
    assert_eq!(report.vms[0].power, PowerState::Stopped);
    assert_eq!(report.vms[0].reason.as_deref(), Some("the host was switched off"));
}

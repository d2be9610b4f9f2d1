//! Two agents without a server: a running guest moves between them, and nobody notices.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::{LIMIT, can_run, up};
use limosa_api::agent::MigrationOptions;
use limosa_lab::assets::Assets;
use limosa_lab::bare::{BareCluster, guest_spec};
use limosa_lab::guest::{GuestConfig, GuestConnection};
use limosa_lab::{EchoConnection, Pinger, Room, wait};
use limosa_model::{Fact, PowerState, VmId};

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

    let verified = guest.verify().unwrap();
    assert!(verified.ok, "{verified:?}");
    let echo = echo.stop();
    assert_eq!(echo.error, None, "the TCP connection did not live: {echo:?}");
    let ping = pinger.stop();
    println!("{ping:?}\n{echo:?}");
    assert!(ping.received > 0);
}

//! A cluster as users have it: a guest moves around its hosts while its server and its agents come and go.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::{can_run, up};
use limosa_api::agent::MigrationOptions;
use limosa_api::rest::DesiredPower;
use limosa_lab::assets::Assets;
use limosa_lab::cluster::Cluster;
use limosa_lab::demo::{GUEST, Journey, start_guest};
use limosa_lab::{Room, wait};
use limosa_model::{Outcome, PowerState};

const PROGRAMS: [&str; 4] = ["qemu-system-x86_64", "ip", "apt-get", "dpkg-deb"];

#[test]
fn a_guest_moves_around_three_hosts_and_nobody_notices() {
    if !can_run(&PROGRAMS) {
        return;
    }
    let assets = Assets::prepare().unwrap();
    let lab = up("cluster", 3);
    let cluster = Cluster::start(&lab, &assets).unwrap();
    let (guest, mut connection) = start_guest(&cluster, &lab).unwrap();
    let mut journey = Journey::begin(&cluster, &lab, &guest).unwrap();
    journey.go_round(&MigrationOptions { compare_memory: true, ..MigrationOptions::default() }).unwrap();
    let seen = journey.end(&mut connection).unwrap();
    assert_eq!(seen.faults(), Vec::<String>::new());
    assert_eq!(seen.migrations.len(), 3);
    for migration in &seen.migrations {
        let report = migration.report.as_ref().unwrap();
        assert_eq!(report.outcome, Outcome::RunningOnDestination);
        assert!(report.memory_compared, "{report:?}");
        assert!(report.downtime_us.is_some() && report.wire.as_bytes() > 0, "{report:?}");
    }
}

#[test]
fn a_move_goes_on_while_the_server_and_both_agents_are_killed_and_started_again() {
    if !can_run(&PROGRAMS) {
        return;
    }
    let assets = Assets::prepare().unwrap();
    let lab = up("restarts", 2);
    let mut cluster = Cluster::start(&lab, &assets).unwrap();
    let (_, mut connection) = start_guest(&cluster, &lab).unwrap();
    let boot = connection.status().unwrap().boot_id;
    for (from, to) in [(Room::Host(1), Room::Host(2)), (Room::Host(2), Room::Host(1))] {
        let task = cluster.migrate(GUEST, to, &MigrationOptions::default()).unwrap();
        for daemon in [cluster.server(), cluster.agent(from), cluster.agent(to)] {
            daemon.kill().unwrap();
        }
        for host in [from, to] {
            cluster.restart_agent(host).unwrap();
        }
        cluster.restart_server().unwrap();
        cluster.await_hosts().unwrap();
        // Whichever way it went: the task has an end, the guest is on one of the two, and can move.
        let _ = cluster.see_through("move a VM", task);
        let vm = wait::until("the guest to be seen running", common::LIMIT, || {
            let vm = cluster.vm(GUEST)?;
            Ok((vm.power == Some(PowerState::Running) && vm.migration.is_none()).then_some(vm))
        })
        .unwrap();
        assert_eq!(vm.desired, DesiredPower::Running);
        let is_there = vm.host.clone().unwrap();
        if is_there.to_string() != to.to_string() {
            let task = cluster.migrate(GUEST, to, &MigrationOptions::default()).unwrap();
            cluster.await_migration(task).unwrap();
        }
    }
    let verified = connection.verify().unwrap();
    assert!(verified.ok, "{verified:?}");
    assert_eq!(verified.status.boot_id, boot, "the guest has restarted");
}

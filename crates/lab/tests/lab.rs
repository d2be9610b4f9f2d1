//! The lab itself: what it makes works, what it cuts is cut, and nothing of it stays behind.
//!
//! Needs root, `ip` and `tc`. Where those are missing the tests say so and pass; under `CI=true` they fail.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{
    HOST_1, HOST_2, LIMIT, address, await_replies, can_run, config, pinger, remains, replies_within, sleeper,
    up,
};
use limosa_lab::{Error, Lab, Network, Process, Room, Shape, wait};

#[test]
fn every_network_carries_what_is_meant_for_it_and_a_pulled_cable_carries_nothing() {
    if !can_run(&["ip", "tc"]) {
        return;
    }
    let lab = up("test-wires", 2);
    for (network, from, to) in [
        (Network::Management, Room::Server, HOST_1),
        (Network::Management, HOST_1, HOST_2),
        (Network::Migration, HOST_1, HOST_2),
    ] {
        let pinger = pinger(&lab, from, address(network, to));
        await_replies(&pinger, 5);
        lab.partition(to, network).unwrap();
        // What was on its way when the cable was pulled may still arrive.
        replies_within(&pinger, 5);
        assert_eq!(replies_within(&pinger, 20), 0, "{network} carries pings through a pulled cable");
        lab.heal(to, network).unwrap();
        await_replies(&pinger, 5);
    }
}

#[test]
fn a_partition_of_one_network_leaves_the_others_alone() {
    if !can_run(&["ip", "tc"]) {
        return;
    }
    let lab = up("test-apart", 2);
    let management = pinger(&lab, HOST_1, address(Network::Management, HOST_2));
    let migration = pinger(&lab, HOST_1, address(Network::Migration, HOST_2));
    await_replies(&management, 5);
    await_replies(&migration, 5);
    lab.partition(HOST_2, Network::Management).unwrap();
    await_replies(&migration, 20);
    lab.heal(HOST_2, Network::Management).unwrap();
    await_replies(&management, 5);
}

#[test]
fn a_shaped_link_delays_loses_and_is_plain_again_afterwards() {
    if !can_run(&["ip", "tc"]) {
        return;
    }
    let lab = up("test-shape", 2);
    let link = (HOST_2, Network::Migration);
    let to = address(Network::Migration, HOST_2);
    let shortest_us = || {
        let pinger = pinger(&lab, HOST_1, to);
        await_replies(&pinger, 20);
        pinger.stop().round_trip_us.unwrap().0
    };

    let shape =
        Shape { rate: Some("200Mbit".parse().unwrap()), delay: "20ms".parse().unwrap(), ..Shape::default() };
    lab.shape(link.0, link.1, &shape).unwrap();
    // Not a judgement of speed: no ping can be faster than the delay of both directions.
    assert!(shortest_us() >= 40_000);

    let pinger = pinger(&lab, HOST_1, to);
    await_replies(&pinger, 5);
    lab.shape(link.0, link.1, &Shape { cut: true, ..shape }).unwrap();
    replies_within(&pinger, 10);
    assert_eq!(replies_within(&pinger, 20), 0, "a cut link carries pings");
    lab.shape(link.0, link.1, &Shape { loss: "50%".parse().unwrap(), ..Shape::default() }).unwrap();
    await_replies(&pinger, 5);
    assert!(lab.emulator_counters(link.0, link.1).unwrap().unwrap().lost > 20);

    lab.unshape(link.0, link.1).unwrap();
    assert_eq!(lab.emulator_counters(link.0, link.1).unwrap(), None);
    assert!(lab.processes().unwrap().is_empty(), "the emulator is still there");
    await_replies(&pinger, 20);
}

#[test]
fn a_link_whose_emulator_was_killed_is_cut_and_can_be_shaped_again() {
    if !can_run(&["ip", "tc"]) {
        return;
    }
    let lab = up("test-emulator", 2);
    let shape = Shape { delay: "1ms".parse().unwrap(), ..Shape::default() };
    lab.shape(HOST_2, Network::Migration, &shape).unwrap();
    let pinger = pinger(&lab, HOST_1, address(Network::Migration, HOST_2));
    await_replies(&pinger, 5);
    lab.processes().unwrap()[0].kill().unwrap();
    replies_within(&pinger, 5);
    assert_eq!(replies_within(&pinger, 20), 0, "a dead emulator passes frames");
    lab.shape(HOST_2, Network::Migration, &shape).unwrap();
    await_replies(&pinger, 5);
}

#[test]
fn a_process_sees_its_rooms_interfaces_and_keeps_its_control_groups() {
    if !can_run(&["ip", "tc"]) {
        return;
    }
    let lab = up("test-host", 1);
    let mut list = Command::new("ls");
    list.args(["/sys/class/net", "/sys/fs/cgroup"]);
    let process = lab.spawn(HOST_1, "list", list).unwrap();
    process.wait_exit(LIMIT).unwrap();
    let seen = fs::read_to_string(process.log()).unwrap();
    for interface in ["br0", "guest0", "lo", "mgmt0", "migr0"] {
        assert!(seen.lines().any(|line| line == interface), "{interface} is missing: {seen}");
    }
    for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap();
        assert!(seen.lines().any(|line| line == name), "/sys/fs/cgroup/{name} is missing: {seen}");
    }
}

#[test]
fn down_leaves_nothing_and_may_be_repeated() {
    if !can_run(&["ip", "tc"]) {
        return;
    }
    let config = config("test-down", 2);
    let lab = Lab::up(&config).unwrap();
    let recorded = sleeper(&lab, HOST_1);
    let stopped = sleeper(&lab, HOST_2);
    stopped.stop().unwrap();
    let mut unrecorded =
        lab.namespace(HOST_2).unwrap().run(|| Command::new("sleep").arg("600").spawn()).unwrap().unwrap();
    lab.shape(HOST_1, Network::Migration, &Shape { delay: "1ms".parse().unwrap(), ..Shape::default() })
        .unwrap();

    lab.down().unwrap();
    assert_eq!(remains(&config.name), Vec::<String>::new());
    assert!(!recorded.is_alive().unwrap());
    assert!(!stopped.is_alive().unwrap());
    assert!(
        !unrecorded.wait().unwrap().success(),
        "a process of the lab that nobody recorded was left running"
    );
    Lab::remove(&config.name, &config.state_root).unwrap();
    assert!(matches!(Lab::open(&config.name, &config.state_root), Err(Error::NotUp { .. })));
}

#[test]
fn a_lab_outlives_whoever_made_it_and_is_found_by_name() {
    if !can_run(&["ip", "tc"]) {
        return;
    }
    let guard = up("test-open", 2);
    let pid = sleeper(&guard, HOST_2).pid();
    let opened = Lab::open(guard.name(), &limosa_lab::default_state_root()).unwrap();
    assert_eq!(opened.hosts().collect::<Vec<_>>(), [HOST_1, HOST_2]);
    assert_eq!(opened.processes().unwrap().iter().map(Process::pid).collect::<Vec<_>>(), [pid]);
    assert!(matches!(opened.namespace(Room::Host(3)), Err(Error::NoSuchRoom { .. })));
}

#[test]
fn what_a_kill_in_the_middle_of_up_left_is_taken_away_by_down_and_by_up() {
    if !can_run(&["ip", "tc"]) {
        return;
    }
    let config = config("test-killed", 9);
    let switch = Path::new("/run/netns").join(config.name.namespace(Room::Switch));
    for last in [Room::Switch, Room::Host(3), Room::Host(9)] {
        let program = env!("CARGO_BIN_EXE_limosa-lab");
        let mut up =
            Command::new(program).args(["--name", "test-killed", "up", "--hosts", "9"]).spawn().unwrap();
        let file = Path::new("/run/netns").join(config.name.namespace(last));
        wait::until("a half-built lab", LIMIT, || Ok(file.exists().then_some(()))).unwrap();
        up.kill().unwrap();
        up.wait().unwrap();
        assert!(switch.exists(), "nothing was made before the kill: this tests nothing");
        Lab::remove(&config.name, &config.state_root).unwrap();
        assert_eq!(remains(&config.name), Vec::<String>::new(), "killed when {last} was made");
    }
    let lab = Lab::up(&config).unwrap();
    let old = sleeper(&lab, HOST_1);
    fs::remove_file(lab.directory().join("lab.json")).unwrap();
    let again = up("test-killed", 1);
    assert!(!old.is_alive().unwrap(), "up left a process of the lab before it");
    assert!(!Path::new("/run/netns").join(config.name.namespace(HOST_2)).exists());
    drop(again);
    assert_eq!(remains(&config.name), Vec::<String>::new());
}

#[test]
fn a_process_with_threads_cannot_be_moved_into_a_namespace() {
    if !can_run(&["ip", "tc"]) {
        return;
    }
    let lab = up("test-enter", 1);
    // The test itself runs in a thread of its own.
    let entered = lab.namespace(HOST_1).unwrap().enter_process();
    assert!(matches!(entered, Err(Error::TooManyThreads { .. })));
    let listed = Command::new(env!("CARGO_BIN_EXE_limosa-lab"))
        .args(["--name", "test-enter", "exec", "h1", "cat", "/sys/class/net/br0/address"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "02:4c:00:00:03:01\n", "{listed:?}");
}

#[test]
fn a_lab_that_is_not_up_is_an_error_that_says_how_to_bring_it_up() {
    let program = env!("CARGO_BIN_EXE_limosa-lab");
    let output = Command::new(program).args(["--name", "test-absent", "status"]).output().unwrap();
    assert!(!output.status.success());
    let expected =
        "limosa-lab: the lab `test-absent` is not up: start it with `limosa-lab up --name test-absent`\n";
    assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
}

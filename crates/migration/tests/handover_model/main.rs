//! Explores what the three handover machines do together, with everything that can go wrong around them.
//!
//! The world (see `world.rs`) has one VM, two or three hosts and a server. Messages are never taken out of the
//! network once sent, so every one can be late, lost, doubled and out of order. Agents crash between a write and
//! its effect, hosts reboot, journals vanish, the server is restored from an old backup, QEMU dies, the stream
//! breaks, hosts burn down. In every state:
//!
//! * at most one QEMU runs the VM;
//! * no QEMU runs from an image that is older than what the VM has done since;
//! * once messages flow again and nothing more goes wrong, the doubt ends.
//!
//! Each rule of ADR-0001 is then left out once, and the same exploration must find what it is there to prevent.

mod actions;
mod host;
mod server;
mod settle;
mod variants;
mod world;

use stateright::{Checker, Model};

use crate::variants::Variant;
use crate::world::{Faults, World};

fn holds(world: World, depth: usize) {
    let checker = world.checker().target_max_depth(depth).threads(2).spawn_bfs().join();
    println!("{} states, depth {}", checker.unique_state_count(), checker.max_depth());
    if let Some((property, path)) = checker.discoveries().into_iter().next() {
        let doubt = settle::doubt_left(checker.model(), path.last_state()).unwrap_or_default();
        let way: Vec<_> = path.into_actions().iter().map(|a| format!("  {a:?}")).collect();
        panic!("{property} is broken after\n{}\n{doubt}", way.join("\n"));
    }
}

fn holds_on_long_paths(world: World, seeds: u64, length: usize) {
    let paths = settle::walk(&world, seeds, length);
    println!("{seeds} walks, {} states", paths.states);
    assert!(paths.broken.is_none(), "{}", paths.broken.unwrap_or_default());
}

fn is_caught(variant: Variant, faults: Faults, hosts: usize, depth: usize) {
    let world = World::new(hosts, faults).with(variant);
    let checker = world.checker().target_max_depth(depth).threads(2).spawn_bfs().join();
    let found = checker.discoveries();
    assert!(!found.is_empty(), "{variant:?} is not noticed in {} states", checker.unique_state_count());
}

#[test]
fn one_move_with_a_crash_a_reboot_and_a_broken_stream_is_safe() {
    let faults = Faults { moves: 1, crashes: 1, reboots: 1, breaks: 1, ..Faults::default() };
    holds(World::new(2, faults), 60);
}

#[test]
fn one_move_with_a_lost_journal_is_safe() {
    let faults = Faults { moves: 1, lost_journals: 1, qemu_deaths: 1, ..Faults::default() };
    holds(World::new(2, faults), 60);
}

#[test]
fn one_move_with_a_burnt_host_is_safe() {
    let faults = Faults { moves: 1, burnt: 1, breaks: 1, starts: 1, ..Faults::default() };
    holds(World::new(2, faults), 60);
}

#[test]
fn one_move_with_a_restored_server_is_safe() {
    let faults = Faults { moves: 1, restores: 1, starts: 1, reboots: 1, ..Faults::default() };
    holds(World::new(2, faults), 60);
}

#[test]
fn a_retry_to_the_same_or_another_host_is_safe() {
    let faults = Faults { moves: 2, breaks: 1, aborts: 1, ..Faults::default() };
    holds(World::new(3, faults), 60);
}

#[test]
fn long_paths_with_many_faults_are_safe() {
    holds_on_long_paths(World::new(3, Faults::many()), 3_000, 600);
}

#[test]
fn without_a_rule_the_checker_finds_what_it_prevents() {
    for (variant, faults, hosts, depth) in variants::all() {
        println!("{variant:?}");
        is_caught(variant, faults, hosts, depth);
    }
}

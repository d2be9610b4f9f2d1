//! Every phase of a migration × everything that can happen in it, on real QEMU with a real guest.
//!
//! A cell brings a migration to a point of its phase and holds it there ([`hold`]), lets something happen
//! ([`fault`]), lets everything go on, and looks ([`aftermath`]): exactly one copy runs, or the outcome that the
//! design demands; the guest's memory is whole and is that of the same boot; nothing is left over on either host;
//! and an immediate retry succeeds. The guest stays up from cell to cell, where it may.
//!
//! Production has no hooks for this: a migration is held by stopping processes (SIGSTOP) and narrowing links.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/mod.rs"]
mod common;

mod aftermath;
mod expected;
mod fault;
mod hold;
mod processes;
mod stage;

use std::time::Instant;

use common::{LIMIT, can_run, up};
use limosa_lab::assets::Assets;
use limosa_lab::{Announcements, Room, wait};
use limosa_model::{Mac, Phase};

use expected::{Expected, expected};
use fault::{Fault, GuestIs};
use hold::Hold;
use stage::Stage;

#[test]
fn every_phase_has_its_cells() {
    for phase in Phase::ALL {
        assert!(Hold::ALL.iter().any(|hold| hold.phase() == phase), "no cell reaches the phase {phase}");
    }
    for hold in Hold::ALL {
        for fault in Fault::ALL {
            if let Expected::CannotHappen(why) = expected(hold, fault) {
                assert!(!why.is_empty());
            }
        }
    }
}

/// Runs the cells of these holds. `LIMOSA_MATRIX` (as in `switching/cancel`) picks one of them.
fn run(name: &str, holds: &[Hold]) {
    if !can_run(&["qemu-system-x86_64", "qemu-nbd", "ip", "apt-get", "dpkg-deb"]) {
        return;
    }
    let only = std::env::var("LIMOSA_MATRIX").ok();
    let assets = Assets::prepare().unwrap();
    let lab = up(name, 2);
    let mut stage = Stage::start(&lab, &assets);
    let mut failed = Vec::new();
    let mut cells = 0;
    for hold in holds {
        for fault in Fault::ALL {
            let cell = format!("{hold:?}/{fault:?}").to_lowercase();
            if only.as_deref().is_some_and(|only| !cell.contains(only)) {
                continue;
            }
            let expected = expected(*hold, fault);
            if let Expected::CannotHappen(why) = expected {
                println!("{cell}: cannot happen: {why}");
                continue;
            }
            cells += 1;
            let began = Instant::now();
            match stage.cell(*hold, fault, expected) {
                Ok(outcome) => println!("{cell}: {outcome} ({:.1} s)", began.elapsed().as_secs_f64()),
                Err(why) => {
                    println!("{cell}: FAILED: {why}");
                    println!("{}", stage.evidence());
                    failed.push(format!("{cell}: {why}"));
                    stage.start_over();
                }
            }
        }
    }
    assert!(failed.is_empty(), "{} of {cells} cells failed:\n{}", failed.len(), failed.join("\n"));
    println!("{cells} cells held");
}

#[test]
fn nothing_that_happens_before_the_transfer_hurts() {
    run("matrix-a", &[Hold::Ordered, Hold::Reserved]);
}

#[test]
fn nothing_that_happens_in_the_transfer_hurts() {
    run("matrix-b", &[Hold::Transferring, Hold::PreSwitchover]);
}

#[test]
fn nothing_that_happens_in_the_switchover_hurts() {
    run("matrix-c", &[Hold::Switching, Hold::Loaded]);
}

#[test]
fn nothing_that_happens_in_the_handover_and_after_it_hurts() {
    run("matrix-d", &[Hold::HandedOver, Hold::Arrived]);
}

#[test]
fn nothing_is_announced_before_the_handover() {
    if !can_run(&["qemu-system-x86_64", "ip", "apt-get", "dpkg-deb"]) {
        return;
    }
    let assets = Assets::prepare().unwrap();
    let lab = up("announce", 2);
    let mut stage = Stage::start(&lab, &assets);
    let announced = Announcements::start(&lab.namespace(Room::Client).unwrap()).unwrap();
    let mac: Mac = stage.config.mac().parse().unwrap();
    // QEMU has loaded everything, and has announced the guest by itself; the right to run has not passed.
    stage.hold(Hold::Loaded).unwrap();
    assert_eq!(announced.from(mac.octets()), 0, "the destination was announced before the handover");
    stage.release();
    stage.settle(Expected::Destination, GuestIs::Well).unwrap();
    wait::until("the destination to be announced", LIMIT, || {
        Ok((announced.from(mac.octets()) > 0).then_some(()))
    })
    .unwrap();
}

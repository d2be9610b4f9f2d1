//! Repetition: what is rare needs many tries. `make soak` runs it; it takes minutes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::{can_run, up};
use limosa_api::agent::MigrationOptions;
use limosa_lab::assets::Assets;
use limosa_lab::cluster::Cluster;
use limosa_lab::demo::{Journey, start_guest};

/// Three moves each.
const ROUNDS: usize = 17;

#[test]
#[ignore = "takes minutes: make soak"]
fn fifty_moves_in_a_row_lose_no_page_no_block_and_no_connection() {
    if !can_run(&["qemu-system-x86_64", "ip", "apt-get", "dpkg-deb"]) {
        return;
    }
    let assets = Assets::prepare().unwrap();
    let lab = up("soak", 3);
    let cluster = Cluster::start(&lab, &assets).unwrap();
    let (guest, mut connection) = start_guest(&cluster, &lab).unwrap();
    let boot = connection.status().unwrap().boot_id;
    let mut journey = Journey::begin(&cluster, &lab, &guest).unwrap();
    for round in 0..ROUNDS {
        let compare_memory = round % 2 == 1;
        journey.go_round(&MigrationOptions { compare_memory, ..MigrationOptions::default() }).unwrap();
    }
    let seen = journey.end(&mut connection).unwrap();
    assert_eq!(seen.faults(), Vec::<String>::new());
    assert_eq!(seen.migrations.len(), 3 * ROUNDS);
    assert_eq!(seen.verified.status.boot_id, boot, "the guest has restarted");
}

//! The page-stamping guest under plain QEMU: it boots, proves what it should, finds what was damaged, and ends when
//! told to.
//!
//! Needs root, `ip`, `tc`, QEMU, and Debian's packages. Where those are missing the tests say so and pass; under
//! `CI=true` they fail.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use common::{HOST_1, LIMIT, await_replies, can_run, remains, replies_within, up};
use limosa_lab::{
    Assets, BootedGuest, EchoConnection, GuestConfig, GuestConnection, Lab, Network, Pinger, Room, guest,
    wait,
};

const PROGRAMS: [&str; 6] = ["ip", "tc", "qemu-system-x86_64", "apt-get", "dpkg-deb", "cargo"];
const PAGE_BYTES: usize = 4096;

/// Boots a guest and waits until it answers.
fn boot(lab: &Lab, config: &GuestConfig) -> (BootedGuest, GuestConnection) {
    let assets = Assets::prepare().unwrap();
    let start = Instant::now();
    let booted = guest::boot(lab, &assets, config).unwrap();
    let connection = connect(lab, &booted, config);
    eprintln!("from the start of QEMU to the guest's answer: {:.2} s", start.elapsed().as_secs_f64());
    (booted, connection)
}

fn connect(lab: &Lab, booted: &BootedGuest, config: &GuestConfig) -> GuestConnection {
    let client = lab.namespace(Room::Client).unwrap();
    GuestConnection::wait(&client, config.address, LIMIT)
        .unwrap_or_else(|error| panic!("{}; its console: {}", error.with_cause(), console(booted)))
}

fn console(booted: &BootedGuest) -> String {
    fs::read_to_string(&booted.console).unwrap_or_default()
}

fn await_console(booted: &BootedGuest, text: &str) {
    let enough = || Ok(console(booted).contains(text).then_some(()));
    wait::until(text, LIMIT, enough).unwrap_or_else(|error| panic!("{error}: {}", console(booted)));
}

fn disk(lab: &Lab) -> std::path::PathBuf {
    let disk = lab.room_directory(HOST_1).unwrap().join("disk.raw");
    File::create(&disk).unwrap().set_len(32 << 20).unwrap();
    disk
}

fn await_written(connection: &mut GuestConnection, blocks: u64) {
    let enough = || {
        let written = connection.status()?.disk.map_or(0, |disk| disk.written);
        Ok((written > blocks).then_some(()))
    };
    wait::until("blocks written", LIMIT, enough).unwrap();
}

#[test]
fn the_guest_boots_proves_its_memory_and_disk_survives_a_partition_and_obeys_the_power_button() {
    if !can_run(&PROGRAMS) {
        return;
    }
    let lab = up("test-guest", 2);
    let client = lab.namespace(Room::Client).unwrap();
    let config = GuestConfig { disk: Some(disk(&lab)), ..GuestConfig::new("stamper", HOST_1) };
    let (booted, mut connection) = boot(&lab, &config);

    await_written(&mut connection, 20);
    // Waits for the first fill; pages are rewritten and blocks written all the while.
    let verified = connection.verify().unwrap();
    assert!(verified.ok, "{verified:?}, console: {}", console(&booted));
    assert_eq!(verified.status.pages, 128 * 256);
    assert!(verified.status.passes >= 1 && verified.status.generation > verified.status.pages);
    assert!(verified.status.disk.as_ref().is_some_and(|disk| disk.verified > 40), "{verified:?}");
    assert_eq!(connection.set_dirty_mib_s(20).unwrap().dirty_mib_s, 20);

    let pinger = Pinger::start(&client, config.address).unwrap();
    let echo = EchoConnection::start(&client, config.address).unwrap();
    let await_echoes = |more: u64| {
        let before = echo.snapshot().received;
        let enough = || Ok((echo.snapshot().received >= before + more).then_some(()));
        wait::until("echoes", LIMIT, enough).unwrap();
    };
    await_replies(&pinger, 20);
    await_echoes(20);

    lab.partition(HOST_1, Network::Guest).unwrap();
    replies_within(&pinger, 10);
    let stalled = echo.snapshot().received;
    assert_eq!(replies_within(&pinger, 50), 0, "a partitioned guest answers pings");
    assert_eq!(echo.snapshot().received, stalled, "a partitioned guest echoes");
    lab.heal(HOST_1, Network::Guest).unwrap();
    await_replies(&pinger, 20);
    await_echoes(20);
    let (pings, echoes) = (pinger.stop(), echo.stop());
    eprintln!("{pings:?}\n{echoes:?}");
    assert!(pings.lost >= 50, "{pings:?}");
    assert_eq!(echoes.error, None);

    let after = connection.verify().unwrap();
    assert!(after.ok, "{after:?}");
    assert_eq!(after.status.boot_id, verified.status.boot_id, "the guest has restarted");

    guest::qmp_execute(&booted.qmp, "system_powerdown").unwrap();
    booted.process.wait_exit(LIMIT).unwrap();
    assert!(console(&booted).contains("\"event\":\"power-button\""), "{}", console(&booted));
    let name = lab.name().clone();
    drop(lab);
    assert_eq!(remains(&name), Vec::<String>::new());
}

#[test]
fn pages_and_blocks_that_change_behind_the_guests_back_are_found() {
    if !can_run(&PROGRAMS) {
        return;
    }
    let lab = up("test-damage", 1);
    let memory = lab.room_directory(HOST_1).unwrap().join("memory");
    let disk = disk(&lab);
    let config = GuestConfig {
        disk: Some(disk.clone()),
        memory_file: Some(memory.clone()),
        dirty_mib_s: 0,
        ..GuestConfig::new("damaged", HOST_1)
    };
    let (_booted, mut connection) = boot(&lab, &config);
    await_written(&mut connection, 20);
    assert!(connection.verify().unwrap().ok);

    let pages = stamped_pages(&fs::read(&memory).unwrap());
    assert!(
        pages.len() >= 128 * 256,
        "only {} of the guest's pages are where they are looked for",
        pages.len()
    );
    let ram = File::options().read(true).write(true).open(&memory).unwrap();
    let mut other = [0; PAGE_BYTES];
    ram.read_exact_at(&mut other, pages[100]).unwrap();
    // Several, since the kernel may have left a copy of a page where it has moved it away.
    for number in 200..205 {
        ram.write_all_at(&other, pages[number]).unwrap();
        ram.write_all_at(&[0; PAGE_BYTES], pages[number + 100]).unwrap();
    }
    File::options().write(true).open(&disk).unwrap().write_all_at(&vec![0; 16 << 20], 0).unwrap();

    let verified = connection.verify().unwrap();
    assert!(!verified.ok);
    let mut found: Vec<_> = verified.status.errors.iter().map(|fault| fault.found.as_str()).collect();
    found.sort_unstable();
    found.dedup();
    assert!(found.len() == 2 && found[0].starts_with("page ") && found[1] == "zero page", "{verified:?}");
    let blocks = verified.status.disk.unwrap();
    assert!(blocks.error_count > 0 && blocks.errors[0].ends_with("found zero page"), "{blocks:?}");
    assert!(!connection.verify().unwrap().ok, "a fault was forgotten");
}

/// Where in the guest's memory its stamps are: a page number, a generation, and words that grow by one step.
fn stamped_pages(memory: &[u8]) -> Vec<u64> {
    let word =
        |page: &[u8], index: usize| u64::from_ne_bytes(page[index * 8..index * 8 + 8].try_into().unwrap());
    let is_stamp = |page: &[u8]| {
        let step = word(page, 3).wrapping_sub(word(page, 2));
        let grows = (3..511).all(|index| word(page, index + 1).wrapping_sub(word(page, index)) == step);
        grows && step != 0 && word(page, 0) < 128 * 256 && word(page, 1) > 0
    };
    let pages = memory.chunks_exact(PAGE_BYTES).enumerate();
    pages.filter(|(_, page)| is_stamp(page)).map(|(index, _)| (index * PAGE_BYTES) as u64).collect()
}

#[test]
fn a_guest_reboots_as_another_run_and_panics_when_told_to() {
    if !can_run(&PROGRAMS) {
        return;
    }
    let lab = up("test-reboot", 1);
    let config = GuestConfig { fill_mib: 16, ..GuestConfig::new("reboot", HOST_1) };
    let (booted, mut connection) = boot(&lab, &config);
    let before = connection.status().unwrap().boot_id;
    connection.reboot().unwrap();
    await_console(&booted, "\"event\":\"reboot\"");
    let again = wait::until("another run of the guest", LIMIT, || {
        let mut connection = connect(&lab, &booted, &config);
        // The kernel before the reboot may still take a connection that it then never answers.
        Ok(connection.status().ok().filter(|status| status.boot_id != before).map(|_| connection))
    });
    again.unwrap().panic().unwrap();
    await_console(&booted, "Kernel panic - not syncing: sysrq triggered crash");
    assert!(booted.process.is_alive().unwrap(), "QEMU ended with the panic");
}

#[test]
fn a_guest_that_is_asked_for_more_than_it_has_says_so_and_powers_off() {
    if !can_run(&PROGRAMS) {
        return;
    }
    let lab = up("test-greedy", 1);
    let config = GuestConfig { memory_mib: 128, fill_mib: 512, ..GuestConfig::new("greedy", HOST_1) };
    let booted = guest::boot(&lab, &Assets::prepare().unwrap(), &config).unwrap();
    booted.process.wait_exit(LIMIT).unwrap();
    assert!(console(&booted).contains("limosa.fill_mib=512 but"), "{}", console(&booted));
}

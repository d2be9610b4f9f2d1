//! Repetition: many moves in a row, each proven, of a guest that stamps its memory and of one with a database.
//!
//! The stamping guest goes round three hosts under load. At each move the two memories are compared whole while it
//! stands still (which is in its downtime), afterwards it checks every page and disk block itself, and one TCP
//! connection lives through all of it. The database's client outside holds one connection too, and in the end every
//! transfer that was acknowledged must be there. The first thing that is wrong ends the soak as an error.

mod summary;

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use clap::Args;
use limosa_api::agent::MigrationOptions;
use limosa_model::VmId;

use crate::bare::{self, BareCluster, guest_spec};
use crate::bench::{ByAgents, profile_of, target_folder};
use crate::error::{Error, Result};
use crate::postgres::{self, Bank, Image};
use crate::{Assets, Config, EchoConnection, GuestConfig, GuestConnection, Lab, LabName, Pinger, Room, wait};
use summary::{Moves, Summary};

/// Enough for anything on a busy machine.
const LIMIT: Duration = Duration::from_secs(600);
const HOSTS: u8 = 3;
/// Replies to pings between the order of a move and whatever comes before and after it.
const REPLIES: u64 = 20;
/// Transfers that must be acknowledged between two moves: each move is under load.
const TRANSFERS: u64 = 20;

/// How much is repeated.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Moves of the stamping guest.
    #[arg(long, default_value_t = 50)]
    pub moves: u32,
    /// Moves of the guest with PostgreSQL.
    #[arg(long, default_value_t = 20)]
    pub postgres_moves: u32,
    /// How fast the stamping guest rewrites its memory.
    #[arg(long, default_value_t = 20)]
    pub dirty_mib_s: u32,
}

/// Runs the soak in a lab of its own, of this name, prints its summary, and writes it to `target/soak/summary.md`.
///
/// # Errors
/// What could not be done, or the first thing that was wrong.
pub fn run(lab: &LabName, options: &Options) -> Result<()> {
    let begin = Instant::now();
    let assets = Assets::prepare()?;
    let mut summary = Summary { profile: profile_of(&bare::program()?), ..Summary::default() };
    if options.moves > 0 {
        let lab = Lab::up_until_dropped(&Config::new(lab.clone(), HOSTS))?;
        stamping_guest(&lab, &assets, options, &mut summary)?;
    }
    if options.postgres_moves > 0 {
        let folder = assets.initramfs.parent().expect("assets lie in a folder");
        let image = Image::prepare(folder)?;
        let lab = Lab::up_until_dropped(&Config::new(lab.clone(), HOSTS))?;
        postgres_guest(&lab, &assets, &image, options, &mut summary)?;
    }
    summary.took = begin.elapsed();
    println!("\n{summary}");
    let folder = target_folder().join("soak");
    fs::create_dir_all(&folder).map_err(Error::path("create", &folder))?;
    let path = folder.join("summary.md");
    fs::write(&path, summary.to_string()).map_err(Error::path("write", &path))
}

fn stamping_guest(lab: &Lab, assets: &Assets, options: &Options, summary: &mut Summary) -> Result<()> {
    let config = GuestConfig {
        dirty_mib_s: options.dirty_mib_s,
        disk: Some("on-the-shared-datastore".into()),
        ..GuestConfig::new("stamp", Room::Host(1))
    };
    let mut vm = ByAgents::start(BareCluster::start(lab, assets)?, VmId::new(), &guest_spec(&config))?;
    let client = lab.namespace(Room::Client)?;
    let mut guest = GuestConnection::wait(&client, config.address, LIMIT)?;
    let booted = wait::until("the guest to have filled its memory", LIMIT, || {
        let status = guest.status()?;
        Ok((status.pages_filled == status.pages).then_some(status))
    })?;
    let echo = EchoConnection::start(&client, config.address)?;
    let migration = MigrationOptions { compare_memory: true, ..MigrationOptions::default() };
    let mut moves = Moves::default();
    for number in 1..=options.moves {
        one_move(lab, &mut vm, config.address, &migration, &mut moves)?;
        let verified = guest.verify()?;
        if !verified.ok || verified.status.boot_id != booted.boot_id {
            return Err(wrong("stamping guest", number, &format!("{verified:?}")));
        }
        if let Some(error) = echo.snapshot().error {
            return Err(wrong("TCP connection to the stamping guest", number, &error));
        }
        println!("stamping guest, move {number}: {}", moves.latest());
    }
    let (status, echo) = (guest.status()?, echo.stop());
    summary.stamping = Some(moves);
    summary.notes.push(format!(
        "The stamping guest ({} MiB, {} of them stamped, {} MiB/s rewritten) checked {} pages and {} disk blocks, none wrong; both memories were compared whole at each move.",
        config.memory_mib,
        config.fill_mib,
        options.dirty_mib_s,
        status.pages_verified,
        status.disk.map_or(0, |disk| disk.verified),
    ));
    summary.notes.push(format!(
        "Its TCP connection lived throughout: {} numbers sent, {} back in order, the longest stall {} ms.",
        echo.sent,
        echo.received,
        echo.longest_stall_us / 1000
    ));
    Ok(())
}

fn postgres_guest(
    lab: &Lab,
    assets: &Assets,
    image: &Image,
    options: &Options,
    summary: &mut Summary,
) -> Result<()> {
    let config = GuestConfig { memory_mib: 1024, ..GuestConfig::new("postgres", Room::Host(1)) };
    let cluster = BareCluster::start(lab, assets)?;
    let id = VmId::new();
    let templates = cluster.shared().join("templates");
    let disks = cluster.shared().join("vms").join(id.to_string());
    fs::create_dir_all(&disks).map_err(Error::path("create", &disks))?;
    for (from, to) in [
        (&image.kernel, templates.join(postgres::KERNEL)),
        (&image.initrd, templates.join(postgres::INITRD)),
        (&image.disk, disks.join("root.raw")),
    ] {
        crate::command::run("cp", &[std::path::Path::new("--sparse=always"), from, &to])?;
    }
    let mut vm = ByAgents::start(cluster, id, &postgres::spec(&config))?;
    let bank = Bank::open(&lab.namespace(Room::Client)?, config.address, LIMIT)?;
    let mut moves = Moves::default();
    for number in 1..=options.postgres_moves {
        let before = bank.acknowledged();
        wait::until("transfers to be acknowledged", LIMIT, || {
            let enough = bank.acknowledged() >= before + TRANSFERS;
            Ok((enough || !bank.is_alive()).then_some(()))
        })?;
        one_move(lab, &mut vm, config.address, &MigrationOptions::default(), &mut moves)?;
        println!("PostgreSQL guest, move {number}: {}", moves.latest());
    }
    let audit = bank.audit()?;
    if !audit.is_clean() {
        return Err(wrong("database", options.postgres_moves, &format!("{audit:?}")));
    }
    summary.postgres = Some(moves);
    summary.notes.push(format!(
        "PostgreSQL acknowledged {} transfers over one connection, and holds each of them; balances, ledger, amcheck and page checksums are right. The longest transfer took {} ms.",
        audit.acknowledged,
        audit.longest.as_millis()
    ));
    Ok(())
}

fn one_move(
    lab: &Lab,
    vm: &mut ByAgents<'_>,
    address: Ipv4Addr,
    options: &MigrationOptions,
    moves: &mut Moves,
) -> Result<()> {
    let pinger = Pinger::start(&lab.namespace(Room::Client)?, address)?;
    await_replies(&pinger)?;
    let moved = vm.move_to((vm.at() + 1) % usize::from(HOSTS), options)?;
    await_replies(&pinger)?;
    moves.add(&moved, &pinger.stop());
    Ok(())
}

fn await_replies(pinger: &Pinger) -> Result<()> {
    let wanted = pinger.snapshot().received + REPLIES;
    wait::until("replies to pings", LIMIT, || Ok((pinger.snapshot().received >= wanted).then_some(())))
}

fn wrong(what: &'static str, number: u32, why: &str) -> Error {
    Error::answer(format!("the {what}, at move {number}"), why, "this must not be")
}

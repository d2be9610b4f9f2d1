//! The demo: a VM moves around three hosts while it works, and somebody outside watches.
//!
//! It succeeds only if nobody could notice: every page of the guest's memory holds what was last written to it, one
//! TCP connection lived through every move, and no block of its disk was lost. What is shown is what was measured.

mod supervisor;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use limosa_api::agent::MigrationOptions;
use limosa_api::rest::Migration;
use limosa_cli::render;

use crate::assets::Assets;
use crate::bare::guest_spec;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::guest::{GuestConfig, GuestConnection, Verified};
use crate::lab::{Config, Lab};
use crate::names::Room;
use crate::observe::{EchoConnection, EchoSummary, PingSummary, Pinger};
use crate::wait;

pub use supervisor::{End, supervise};

/// How long a guest may take to boot and to fill its memory on a busy machine.
const GUEST_LIMIT: Duration = Duration::from_secs(120);
/// Pings that are answered before a move begins, so that what is lost is lost to the move.
const PINGS_BEFORE: u64 = 50;
/// What the guest is called.
pub const GUEST: &str = "demo";

/// What came of moving a guest around.
#[derive(Debug)]
pub struct Seen {
    /// The moves.
    pub migrations: Vec<Migration>,
    /// What the guest says of its memory and its disk after a full check.
    pub verified: Verified,
    /// What became of the TCP connection.
    pub echo: EchoSummary,
    /// Pings that nobody answered, of how many, over all moves.
    pub pings: (u64, u64),
}

impl Seen {
    /// What somebody could have noticed. Nothing, if all is well.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let status = &self.verified.status;
        if !self.verified.ok || status.error_count > 0 {
            faults.push(format!("{} pages did not hold what was last written to them", status.error_count));
        }
        if let Some(error) = &self.echo.error {
            faults.push(format!("the TCP connection did not live: {error}"));
        }
        match &status.disk {
            Some(disk) if disk.error_count > 0 => {
                faults.push(format!(
                    "{} disk blocks were lost: {}",
                    disk.error_count,
                    disk.errors.join("; ")
                ));
            }
            Some(_) => {}
            None => faults.push("the guest has lost its disk".into()),
        }
        let is_compared =
            |migration: &Migration| migration.report.as_ref().is_some_and(|r| r.memory_compared);
        if self.migrations.iter().any(|migration| migration.options.compare_memory && !is_compared(migration))
        {
            faults.push("the two memories were not compared where that was asked for".into());
        }
        faults
    }
}

/// Brings a lab up and shows it all, on the standard output. The lab is left up, however this ends.
///
/// # Errors
/// When something could not be done, or somebody could have noticed a move.
pub fn run(config: &Config, rounds: u8) -> Result<()> {
    let start = Instant::now();
    say("Limosa moves a running virtual machine from host to host.\n");
    let assets = Assets::prepare()?;
    let lab =
        timed("bringing up the lab: a server, hosts and a client, each in a network namespace", || {
            Lab::up(config)
        })?;
    let cluster = timed("starting the server, joining the hosts", || Cluster::start(&lab, &assets))?;
    let (guest, mut connection) = timed("starting a guest on h1", || start_guest(&cluster, &lab))?;
    say(&format!(
        "\nThe guest has {} MiB of memory. It stamped {} MiB of it and goes on rewriting that, {} MiB every second;\n\
         it writes and reads stamped blocks of a disk that all hosts share. A client outside holds a TCP connection\n\
         to it and pings it every 10 ms.",
        guest.memory_mib, guest.fill_mib, guest.dirty_mib_s
    ));
    let mut journey = Journey::begin(&cluster, &lab, &guest)?;
    for _ in 0..rounds {
        journey.go_round(&MigrationOptions::default())?;
    }
    say(
        "\nOnce more around, with a proof: before each handover the two memories are compared whole. The guest stands\n\
         still meanwhile, and so for longer than it otherwise would.",
    );
    journey.go_round(&MigrationOptions { compare_memory: true, ..MigrationOptions::default() })?;
    let seen = journey.end(&mut connection)?;
    tell(&seen, start.elapsed());
    match seen.faults().as_slice() {
        [] => Ok(()),
        faults => Err(Error::answer("the demo", &faults.join("; "), "somebody could have noticed")),
    }
}

/// The guest that moves around, with a disk on the shared datastore.
pub fn guest() -> GuestConfig {
    let mut guest = GuestConfig::new(GUEST, Room::Host(1));
    (guest.memory_mib, guest.fill_mib, guest.dirty_mib_s) = (512, 256, 16);
    guest.disk = Some("on-the-shared-datastore".into());
    guest
}

/// Starts the guest, and waits until it has filled its memory.
///
/// # Errors
/// When it does not start or does not answer.
pub fn start_guest(cluster: &Cluster<'_>, lab: &Lab) -> Result<(GuestConfig, GuestConnection)> {
    let guest = guest();
    cluster.create_vm(&guest_spec(&guest), guest.host)?;
    let mut connection = GuestConnection::wait(&lab.namespace(Room::Client)?, guest.address, GUEST_LIMIT)?;
    wait::until("the guest to fill its memory", GUEST_LIMIT, || {
        let status = connection.status()?;
        Ok((status.pages_filled == status.pages).then_some(()))
    })?;
    Ok((guest, connection))
}

/// A guest's way around the hosts, watched from outside.
pub struct Journey<'a> {
    cluster: &'a Cluster<'a>,
    lab: &'a Lab,
    guest: &'a GuestConfig,
    echo: EchoConnection,
    migrations: Vec<Migration>,
    pings: (u64, u64),
}

impl<'a> Journey<'a> {
    /// Opens the TCP connection that is to live through all of it.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn begin(cluster: &'a Cluster<'a>, lab: &'a Lab, guest: &'a GuestConfig) -> Result<Self> {
        let echo = EchoConnection::start(&lab.namespace(Room::Client)?, guest.address)?;
        Ok(Self { cluster, lab, guest, echo, migrations: Vec::new(), pings: (0, 0) })
    }

    /// Moves the guest from the first host over all others back to the first.
    ///
    /// # Errors
    /// When a move fails, or the guest cannot be reached.
    pub fn go_round(&mut self, options: &MigrationOptions) -> Result<()> {
        for to in self.lab.hosts().skip(1).chain([Room::Host(1)]) {
            self.go_to(to, options)?;
        }
        Ok(())
    }

    fn go_to(&mut self, to: Room, options: &MigrationOptions) -> Result<()> {
        let pinger = Pinger::start(&self.lab.namespace(Room::Client)?, self.guest.address)?;
        await_replies(&pinger, PINGS_BEFORE)?;
        let task = self.cluster.migrate(GUEST, to, options)?;
        let migration = self.cluster.await_migration(task)?;
        await_replies(&pinger, PINGS_BEFORE)?;
        let seen = pinger.stop();
        self.pings = (self.pings.0 + seen.lost, self.pings.1 + seen.sent);
        let report = render::report(&migration);
        self.migrations.push(migration);
        let number = self.migrations.len();
        say(&format!("\nMove {number}: {report}{}", from_outside(&seen, &self.echo)));
        Ok(())
    }

    /// Has the guest check itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn end(self, connection: &mut GuestConnection) -> Result<Seen> {
        let verified = connection.verify()?;
        let Self { migrations, echo, pings, .. } = self;
        Ok(Seen { migrations, verified, echo: echo.stop(), pings })
    }
}

fn await_replies(pinger: &Pinger, more: u64) -> Result<()> {
    let before = pinger.snapshot().received;
    wait::until("answers to pings", GUEST_LIMIT, || {
        Ok((pinger.snapshot().received >= before + more).then_some(()))
    })
}

/// What somebody outside saw of a move.
fn from_outside(pings: &PingSummary, echo: &EchoConnection) -> String {
    let connection = match echo.snapshot().error {
        None => "alive".to_owned(),
        Some(error) => format!("broken: {error}"),
    };
    format!(
        "  pings        {} of {} lost, longest time without a reply {} ms\n  connection   {connection}",
        pings.lost,
        pings.sent,
        pings.longest_gap_us / 1000
    )
}

fn tell(seen: &Seen, took: Duration) {
    let status = &seen.verified.status;
    let verdict = |is_good: bool| if is_good { "intact" } else { "DAMAGED" };
    let memory = verdict(seen.verified.ok && status.error_count == 0);
    say(&format!(
        "\nAfter {} moves:\n  memory       {memory}: {} pages, each checked against what was last written to it",
        seen.migrations.len(),
        status.pages
    ));
    if let Some(disk) = &status.disk {
        let (is_good, written, read) = (disk.error_count == 0, disk.written, disk.verified);
        say(&format!(
            "  disk         {}: {written} blocks written, {read} read back, {} lost",
            verdict(is_good),
            disk.error_count
        ));
    }
    let echo = &seen.echo;
    say(&format!(
        "  connection   {}: {} numbers sent, {} came back, longest wait {} ms",
        echo.error.as_deref().map_or("the same one all the way", |_| "BROKEN"),
        echo.sent,
        echo.received,
        echo.longest_stall_us / 1000
    ));
    say(&format!("  pings        {} of {} lost", seen.pings.0, seen.pings.1));
    let verdict = if seen.faults().is_empty() { "Success" } else { "FAILURE" };
    say(&format!("\n{verdict}, after {} s.", took.as_secs()));
}

fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    print!("  {what} … ");
    let _ = io::stdout().flush();
    let done = work();
    say(&match &done {
        Ok(_) => format!("{:.1} s", start.elapsed().as_secs_f64()),
        Err(_) => "failed".to_owned(),
    });
    done
}

/// A reader that has gone away is no reason to stop half way.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

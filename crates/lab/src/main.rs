//! `limosa-lab`: hosts as network namespaces, from the command line.

use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use limosa_lab::cluster::{Access, Cluster};
use limosa_lab::demo::{self, End};
use limosa_lab::emulator::{self, Loss};
use limosa_lab::{bench, soak};

use limosa_lab::{
    Assets, Config, GuestConfig, GuestConnection, Lab, LabName, Network, Room, Shape, bare, guest,
};
use limosa_model::{Bandwidth, Millis};

/// Hosts as network namespaces, with links that can be slowed, delayed, made lossy and cut. Takes root.
#[derive(Parser)]
#[command(name = "limosa-lab", version)]
struct Arguments {
    /// The lab's name: several stand side by side under different names.
    #[arg(long, global = true, default_value_t, env = "LIMOSA_LAB_NAME")]
    name: LabName,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Bring the lab up; what is left of an earlier one of that name is taken away first.
    Up {
        /// How many hosts it has.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=99))]
        hosts: u8,
        /// Rooms and wires alone, without a server and agents.
        #[arg(long)]
        bare: bool,
    },
    /// Show a VM that moves around the hosts while it works, watched from outside.
    Demo {
        /// How many hosts it moves around.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=9))]
        hosts: u8,
        /// How often it goes all the way round.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=20))]
        rounds: u8,
        /// Leave the lab with its cluster and the guest up, and say how to use it.
        #[arg(long)]
        keep: bool,
        /// Leave the lab up whatever happens: somebody else takes it down.
        #[arg(long, hide = true)]
        supervised: bool,
    },
    /// Take the lab away, whole or in pieces: its processes, namespaces and files.
    Down,
    /// Show the lab's rooms, addresses, processes and link emulators.
    Status,
    /// Run a command in a room (h1, h2, …, server, client, switch).
    Exec {
        /// The room.
        room: Room,
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Pull a room's cable out of a network.
    Partition(Link),
    /// Put it back.
    Heal(Link),
    /// Limit a link's rate, delay it, lose frames; both directions alike.
    Shape {
        #[command(flatten)]
        link: Link,
        /// The most that it carries each way, such as 200Mbit.
        #[arg(long)]
        rate: Option<Bandwidth>,
        /// One way, such as 75ms: the round trip grows by twice that.
        #[arg(long, default_value = "0ms")]
        delay: Millis,
        /// Up to how much more delay, at random.
        #[arg(long, default_value = "0ms")]
        jitter: Millis,
        /// The share of frames that are lost, such as 0.1%.
        #[arg(long, default_value = "0%")]
        loss: Loss,
        /// Lose everything, while both ends see the link up.
        #[arg(long)]
        cut: bool,
    },
    /// Make a link plain again.
    Unshape(Link),
    /// Start the page-stamping guest on a host with plain QEMU and wait until it answers.
    BootGuest {
        /// The host.
        #[arg(default_value = "h1")]
        host: Room,
        /// What the guest is called.
        #[arg(long, default_value = "guest")]
        guest: String,
        /// Its address on the guest network.
        #[arg(long, default_value = "10.77.0.50")]
        address: Ipv4Addr,
        /// Its RAM.
        #[arg(long, default_value_t = 256)]
        memory_mib: u32,
        /// How much of that it stamps.
        #[arg(long, default_value_t = 128)]
        fill_mib: u32,
        /// How fast it rewrites that.
        #[arg(long, default_value_t = 8)]
        dirty_mib_s: u32,
        /// A raw image that it stamps too; what is in it is overwritten.
        #[arg(long)]
        disk: Option<PathBuf>,
    },
    /// Measure Limosa beside what it is built on, in a lab of its own.
    Bench {
        /// What to measure.
        #[command(subcommand)]
        benchmark: bench::Benchmark,
    },
    /// Move guests many times in a row, in labs of their own, and prove each move.
    Soak(soak::Options),
    /// Be the link emulator between two taps; the lab starts this itself.
    #[command(hide = true)]
    Emulate {
        /// The tap towards the room.
        inner: String,
        /// The tap towards the network.
        outer: String,
    },
}

/// A room's link to a network.
#[derive(Args)]
struct Link {
    /// The room: h1, h2, …, server, client.
    room: Room,
    /// mgmt, migration or guest.
    #[arg(long, default_value = "migration")]
    network: Network,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("limosa-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Arguments { name, action }: Arguments) -> anyhow::Result<()> {
    let state_root = limosa_lab::default_state_root();
    let open = || Lab::open(&name, &state_root);
    match action {
        Action::Up { hosts, bare } => up(&Config { name: name.clone(), hosts, state_root }, bare)?,
        Action::Demo { hosts, rounds, keep, supervised } => {
            let config = Config { name: name.clone(), hosts, state_root };
            if supervised {
                demo::run(&config, rounds)?;
            } else {
                supervise_demo(&config, rounds, keep)?;
            }
        }
        Action::Down => Lab::remove(&name, &state_root)?,
        Action::Status => show(&open()?)?,
        Action::Exec { room, command } => exec(&open()?, room, &command)?,
        Action::Partition(link) => open()?.partition(link.room, link.network)?,
        Action::Heal(link) => open()?.heal(link.room, link.network)?,
        Action::Shape { link, rate, delay, jitter, loss, cut } => {
            open()?.shape(link.room, link.network, &Shape { rate, delay, jitter, loss, cut })?;
        }
        Action::Unshape(link) => open()?.unshape(link.room, link.network)?,
        Action::BootGuest { host, guest, address, memory_mib, fill_mib, dirty_mib_s, disk } => {
            let base = GuestConfig::new(&guest, host);
            let config = GuestConfig { memory_mib, fill_mib, dirty_mib_s, address, disk, ..base };
            boot(&open()?, &config)?;
        }
        Action::Bench { benchmark } => bench::run(&name, &benchmark)?,
        Action::Soak(options) => soak::run(&name, &options)?,
        Action::Emulate { inner, outer } => emulator::run(&inner, &outer)?,
    }
    Ok(())
}

fn up(config: &Config, bare: bool) -> anyhow::Result<()> {
    if bare {
        return show(&Lab::up(config)?);
    }
    let assets = Assets::prepare()?;
    let lab = Lab::up(config)?;
    Cluster::start(&lab, &assets)?;
    let spec = lab.directory().join("demo.toml");
    fs::write(&spec, bare::guest_spec_as_toml(&demo::guest()))
        .with_context(|| format!("write {}", spec.display()))?;
    show(&lab)?;
    print!("{}", usage(&lab, &format!("vm create -f {} --start", spec.display())));
    Ok(())
}

fn supervise_demo(config: &Config, rounds: u8, keep: bool) -> anyhow::Result<()> {
    let (hosts, rounds) = (config.hosts.to_string(), rounds.to_string());
    let arguments =
        ["--name", config.name.as_str(), "demo", "--supervised", "--hosts", &hosts, "--rounds", &rounds];
    match demo::supervise(config, &arguments, keep)? {
        End::Success if keep => print!("{}", usage(&Lab::open(&config.name, &config.state_root)?, "vm list")),
        End::Success => {}
        End::Failure => bail!("the demo failed; what it said is above"),
        End::Interrupted => bail!("the demo was interrupted; nothing is left of it"),
    }
    Ok(())
}

/// How to use a lab with a cluster, with what to try first.
fn usage(lab: &Lab, first: &str) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "limosa-lab".into());
    let name =
        if lab.name() == &LabName::default() { String::new() } else { format!(" --name {}", lab.name()) };
    let lab_command = format!("{program}{name}");
    format!(
        "\nThe cluster is up. Commands run in one of its rooms, where LIMOSA_SERVER, LIMOSA_CA and LIMOSA_TOKEN are set:\n\n  \
         {lab_command} exec server limosa host list\n  \
         {lab_command} exec server limosa {first}\n  \
         {lab_command} exec server limosa migrate demo --best --watch\n  \
         {lab_command} exec server bash\n\n\
         Links can be slowed and cut:  {lab_command} shape h2 --rate 200Mbit --delay 10ms\n\
         To take it all down:          {lab_command} down\n"
    )
}

fn show(lab: &Lab) -> anyhow::Result<()> {
    println!("lab {}, files in {}", lab.name(), lab.directory().display());
    for room in lab.rooms() {
        let networks = Network::ALL.into_iter().filter(|network| network.reaches(room));
        let links = networks.map(|network| match network.address(room) {
            Some(address) => format!("{network} {address}"),
            None => network.to_string(),
        });
        println!("  {room:<7} {:<36} {}", lab.namespace(room)?.name(), links.collect::<Vec<_>>().join(", "));
    }
    for process in lab.processes()? {
        let record = process.record();
        println!(
            "  process {} in {}: {}, log {}",
            record.pid,
            record.room,
            record.label,
            record.log.display()
        );
    }
    for room in lab.rooms() {
        for network in Network::ALL {
            if let Some(counters) = lab.emulator_counters(room, network)? {
                let (passed, lost, overflowed) = (counters.passed, counters.lost, counters.overflowed);
                println!(
                    "  link {room} {network}: {passed} frames passed, {lost} lost, {overflowed} beyond the queue"
                );
            }
        }
    }
    Ok(())
}

/// Becomes the command, in the room; returns only if it cannot.
fn exec(lab: &Lab, room: Room, words: &[OsString]) -> anyhow::Result<()> {
    let Some((program, arguments)) = words.split_first() else { bail!("no command was given") };
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(access) = Access::find(lab) {
        command.envs(access.environment()?).env("PATH", path_with_limosa()?);
    }
    lab.namespace(room)?.enter_process()?;
    let error = command.exec();
    Err(error).with_context(|| format!("run {} in {room}", program.to_string_lossy()))
}

/// The search path, with the folder of the lab's `limosa` first.
fn path_with_limosa() -> anyhow::Result<OsString> {
    let program = bare::program()?;
    let folder = program.parent().map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths(folder.into_iter().chain(std::env::split_paths(&path)))?)
}

fn boot(lab: &Lab, config: &GuestConfig) -> anyhow::Result<()> {
    const BOOT_LIMIT: Duration = Duration::from_secs(120);
    let assets = Assets::prepare()?;
    let start = Instant::now();
    let booted = guest::boot(lab, &assets, config)?;
    let status =
        GuestConnection::wait(&lab.namespace(Room::Client)?, config.address, BOOT_LIMIT)?.status()?;
    println!("{} answers at {} after {:.1} s", config.name, config.address, start.elapsed().as_secs_f64());
    println!("  boot id {}, QEMU is pid {}", status.boot_id, booted.process.pid());
    println!("  QMP {}, console {}", booted.qmp.display(), booted.console.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_link_is_shaped_as_it_is_said_in_words() {
        let line = "limosa-lab shape h2 --rate 200Mbit --delay 75ms --loss 0.1%";
        let parsed = Arguments::try_parse_from(line.split(' ')).unwrap();
        let Action::Shape { link, rate, delay, loss, .. } = parsed.action else { panic!("another action") };
        assert_eq!((link.room, link.network), (Room::Host(2), Network::Migration));
        assert_eq!(rate, Some(Bandwidth::bits_per_second(200_000_000)));
        assert_eq!((delay, loss), (Millis::new(75), Loss::millionths(1_000).unwrap()));
    }

    #[test]
    fn rubbish_is_refused() {
        for line in [
            "shape h0",
            "shape h1 --loss 101%",
            "up --hosts 0",
            "up --hosts 100",
            "down --name ../x",
            "exec h1",
        ] {
            let words = std::iter::once("limosa-lab").chain(line.split(' '));
            assert!(Arguments::try_parse_from(words).is_err(), "{line}");
        }
    }
}

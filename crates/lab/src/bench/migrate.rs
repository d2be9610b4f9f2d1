//! `bench migrate`: one guest, moved by QMP alone, by QMP alone with QEMU's own TLS, and by Limosa, over links of
//! several rates.
//!
//! Two VMs of the same spec take turns on the same two hosts, one under QMP and one under agents; the one whose turn
//! it is not stands still. Every round moves each way once, and every round begins with another way. A total runs
//! from the order, on either side before the destination's QEMU is started, to the destination's CPUs running.
//!
//! Everything runs cubic, since that is what most users' hosts run and one side cannot choose. The guest rewrites
//! [`DIRTY_MIB_S`], or a fifth of the link where that is less: the subject is what Limosa adds, not who converges.

use std::fmt;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use limosa_api::agent::{MigrationOptions, VmOnHost};
use limosa_model::host::Accelerator;
use limosa_model::migration::PhaseTime;
use limosa_model::{Bandwidth, Epoch, Millis, Phase, VmId};
use limosa_qemu::commands::migration::MigrationParameters;
use limosa_vm::{BootPlan, DiskPlan, KernelPlan, LaunchPlan, NicPlan, QemuUser};

use super::by_qmp::ByQmp;
use super::gauge::{Gauge, Spent};
use super::{ByAgents, Figure, Moved, median, profile_of, write_figures};
use crate::bare::{self, BareCluster, guest_spec};
use crate::command::ip;
use crate::error::{Error, Result};
use crate::{
    Assets, Config, GuestConfig, GuestConnection, Lab, LabName, Namespace, Network, Pinger, Room, Shape, wait,
};

/// How fast the guest rewrites its memory, at most.
pub const DIRTY_MIB_S: u64 = 20;
/// What every way may take at the end: little, so that what is left of the last pass does not hide what is added.
const DOWNTIME_LIMIT_MS: Millis = Millis::new(50);
/// The guest's RAM, and how much of it is stamped.
const MEMORY_MIB: u32 = 1024;
const FILL_MIB: u32 = 700;

/// Enough for anything on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);
/// Replies before the order and after the move, so that a gap has two ends.
const REPLIES: u64 = 30;

/// What is measured.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How often each way is taken on each link; the table shows medians.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub rounds: u8,
    /// The migration links: rates such as 1Gbit, or unshaped.
    #[arg(long = "link", value_delimiter = ',', default_value = "unshaped,1Gbit,200Mbit")]
    pub links: Vec<Link>,
}

/// A migration link: as fast as the machine can, or of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link(Option<Bandwidth>);

impl FromStr for Link {
    type Err = <Bandwidth as FromStr>::Err;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        if text == "unshaped" { Ok(Self(None)) } else { text.parse().map(|rate| Self(Some(rate))) }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(rate) => rate.fmt(f),
            None => f.write_str("unshaped"),
        }
    }
}

/// How a guest is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Qemu,
    QemuTls,
    Limosa,
}

impl Way {
    const ALL: [Self; 3] = [Self::Qemu, Self::QemuTls, Self::Limosa];

    fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::QemuTls => "qemu-tls",
            Self::Limosa => "limosa",
        }
    }
}

/// One move, measured.
#[derive(Debug, Clone)]
struct Run {
    way: Way,
    moved: Moved,
    ping_gap_ms: f64,
    spent: Spent,
}

/// What is shown of a run: its name, its unit, how it is read.
type Column = (&'static str, &'static str, fn(&Run) -> f64);

const TOTAL: Column = ("total", "ms", |run| ms(run.moved.ordered_us, run.moved.continued_us));
const DOWNTIME: Column = ("downtime", "ms", |run| ms(run.moved.stopped_us, run.moved.continued_us));
const COLUMNS: [Column; 6] = [
    TOTAL,
    ("stream", "ms", |run| ms(run.moved.streaming_us, run.moved.continued_us)),
    DOWNTIME,
    ("ping gap", "ms", |run| run.ping_gap_ms),
    ("wire", "MB", |run| run.spent.wire_mb),
    ("CPU", "s", |run| run.spent.cpu_s),
];

fn ms(from_us: u64, to_us: u64) -> f64 {
    to_us.saturating_sub(from_us) as f64 / 1e3
}

/// Measures, prints the table, writes the figures.
///
/// # Errors
/// When the lab, a guest or a move fails; never for a figure.
pub fn run(lab: &LabName, options: &Options) -> Result<()> {
    let program = bare::program()?;
    let (own, its) = (std::env::current_exe().unwrap_or_default(), profile_of(&program));
    println!("limosa: {} (profile {its}); bench: profile {}", program.display(), profile_of(&own));
    let assets = Assets::prepare()?;
    let lab = Lab::up_until_dropped(&Config::new(lab.clone(), 2))?;
    use_cubic(&lab)?;
    let mut guests = Guests::start(&lab, &assets)?;
    let mut figures = Vec::new();
    for link in &options.links {
        let runs = guests.measure_link(*link, options.rounds)?;
        print_table(*link, &runs);
        figures.extend(figures_of(*link, &runs));
    }
    let path = write_figures("migrate", &figures)?;
    println!("figures: {}", path.display());
    Ok(())
}

/// Sets the congestion control by route: a namespace's own default can only be one that the machine allows to
/// everyone, and cubic need not be.
fn use_cubic(lab: &Lab) -> Result<()> {
    for host in lab.hosts() {
        for peer in lab.hosts().filter(|peer| *peer != host) {
            let peer =
                Network::Migration.address(peer).expect("hosts are on the migration network").to_string();
            let (namespace, interface) = (lab.namespace(host)?, Network::Migration.interface());
            let route = ["route", "replace", &peer, "dev", &interface, "congctl", "cubic"];
            ip(namespace.name(), &route)?;
        }
    }
    Ok(())
}

/// The two VMs, both standing still between moves.
struct Guests<'l> {
    lab: &'l Lab,
    client: Namespace,
    by_agents: ByAgents<'l>,
    by_qmp: ByQmp,
}

const LIMOSAS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);
const QEMUS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 51);

impl<'l> Guests<'l> {
    fn start(lab: &'l Lab, assets: &Assets) -> Result<Self> {
        let client = lab.namespace(Room::Client)?;
        let cluster = BareCluster::start(lab, assets)?;
        let shared = cluster.shared().to_owned();
        let by_agents = ByAgents::start(cluster, VmId::new(), &guest_spec(&config("limosa", LIMOSAS)))?;
        await_filled(&client, LIMOSAS)?;
        by_agents.pause()?;
        let target = VmOnHost {
            vm: VmId::new(),
            spec: limosa_model::VmSpec {
                machine: by_agents.target().spec.machine.clone(),
                ..guest_spec(&config("qemu", QEMUS))
            },
            ..by_agents.target().clone()
        };
        let parameters = MigrationParameters {
            downtime_limit_ms: Some(DOWNTIME_LIMIT_MS.get()),
            max_bandwidth_bytes_per_second: Some(0),
            multifd_channels: Some(options().channels),
            ..MigrationParameters::default()
        };
        let by_qmp = ByQmp::start(lab, launch_plan(&target, &shared)?, parameters)?;
        await_filled(&client, QEMUS)?;
        by_qmp.pause()?;
        Ok(Self { lab, client, by_agents, by_qmp })
    }

    fn measure_link(&mut self, link: Link, rounds: u8) -> Result<Vec<Run>> {
        for host in self.lab.hosts() {
            self.lab.shape(host, Network::Migration, &Shape { rate: link.0, ..Shape::default() })?;
        }
        let fifth = link.0.map_or(u64::MAX, |rate| rate.as_bytes_per_second() / 5 / (1 << 20));
        let dirty_mib_s = DIRTY_MIB_S.min(fifth);
        println!("\n{link}: the guest rewrites {dirty_mib_s} MiB/s");
        let mut runs = Vec::new();
        for round in 0..rounds {
            for turn in 0..Way::ALL.len() {
                let way = Way::ALL[(usize::from(round) + turn) % Way::ALL.len()];
                let run = self.measure(way, dirty_mib_s)?;
                let columns =
                    COLUMNS.map(|(figure, unit, value)| format!("{figure} {:.0} {unit}", value(&run)));
                println!("  {} {:<8} {}", round + 1, way.name(), columns.join(", "));
                runs.push(run);
            }
        }
        Ok(runs)
    }

    fn measure(&mut self, way: Way, dirty_mib_s: u64) -> Result<Run> {
        let address = self.resume(way)?;
        GuestConnection::wait(&self.client, address, LIMIT)?.set_dirty_mib_s(dirty_mib_s)?;
        let pinger = Pinger::start(&self.client, address)?;
        await_replies(&pinger)?;
        let before = Gauge::read(self.lab)?;
        let moved = match way {
            Way::Limosa => self.by_agents.move_to(1 - self.by_agents.at(), &options())?,
            Way::Qemu | Way::QemuTls => self.by_qmp.move_to(1 - self.by_qmp.at(), way == Way::QemuTls)?,
        };
        let spent = Gauge::read(self.lab)?.since(before);
        await_replies(&pinger)?;
        let ping_gap_ms = pinger.stop().longest_gap_us as f64 / 1e3;
        self.pause(way)?;
        Ok(Run { way, moved, ping_gap_ms, spent })
    }

    fn resume(&self, way: Way) -> Result<Ipv4Addr> {
        match way {
            Way::Limosa => self.by_agents.resume().map(|()| LIMOSAS),
            Way::Qemu | Way::QemuTls => self.by_qmp.resume().map(|()| QEMUS),
        }
    }

    fn pause(&self, way: Way) -> Result<()> {
        match way {
            Way::Limosa => self.by_agents.pause(),
            Way::Qemu | Way::QemuTls => self.by_qmp.pause(),
        }
    }
}

fn options() -> MigrationOptions {
    MigrationOptions { downtime_limit_ms: DOWNTIME_LIMIT_MS, ..MigrationOptions::default() }
}

fn config(name: &str, address: Ipv4Addr) -> GuestConfig {
    GuestConfig {
        memory_mib: MEMORY_MIB,
        fill_mib: FILL_MIB,
        dirty_mib_s: DIRTY_MIB_S as u32,
        address,
        disk: Some("on-the-shared-datastore".into()),
        ..GuestConfig::new(name, Room::Host(1))
    }
}

fn await_filled(client: &Namespace, address: Ipv4Addr) -> Result<()> {
    let mut guest = GuestConnection::wait(client, address, LIMIT)?;
    wait::until("the guest to have filled its memory", LIMIT, || {
        let status = guest.status()?;
        Ok((status.pages_filled == status.pages).then_some(()))
    })
}

fn await_replies(pinger: &Pinger) -> Result<()> {
    let wanted = pinger.snapshot().received + REPLIES;
    wait::until("replies to pings", LIMIT, || Ok((pinger.snapshot().received >= wanted).then_some(())))
}

/// The plan of the VM that nobody manages; what the agents' would be, by the same spec.
fn launch_plan(target: &VmOnHost, shared: &Path) -> Result<LaunchPlan> {
    let templates = shared.join("templates");
    let kernel = target.spec.boot.kernel.as_ref().map(|kernel| KernelPlan {
        image: templates.join(kernel.image.as_str()),
        initrd: kernel.initrd.as_ref().map(|name| templates.join(name.as_str())),
        command_line: kernel.command_line.clone(),
    });
    let disks = target.spec.disks.iter().map(|disk| {
        let path = shared.join(format!("by-qmp-{}.raw", disk.name));
        let size = disk.size.map_or(0, |size| size.as_bytes());
        File::create(&path).and_then(|file| file.set_len(size)).map_err(Error::path("create", &path))?;
        let (name, format) = (disk.name.clone(), disk.format);
        Ok(DiskPlan { name, path, format, read_only: false, direct: true, backing: Vec::new() })
    });
    let no_mac = || Error::invalid("guest", target.spec.name.as_str(), "its NICs have no address");
    let nics = target.spec.nics.iter().map(|nic| {
        let bridge = target.networks.iter().find(|network| network.name == nic.network);
        let bridge = bridge.and_then(|network| network.bridge.parse().ok()).ok_or_else(no_mac)?;
        // The tap's name is that of each launch.
        let tap = limosa_vm::tap_name(target.vm, Epoch(0), 0);
        Ok(NicPlan { bridge, tap, mac: nic.mac.ok_or_else(no_mac)? })
    });
    Ok(LaunchPlan {
        vm: target.vm,
        epoch: Epoch(0),
        migration: None,
        disks: disks.collect::<Result<_>>()?,
        nics: nics.collect::<Result<_>>()?,
        spec: target.spec.clone(),
        boot: BootPlan { iso: None, kernel },
        runtime_dir: Path::new("/").into(),
        qemu: "/usr/bin/qemu-system-x86_64".into(),
        accelerator: Accelerator::Tcg,
        user: QemuUser { uid: 64_880, gid: 64_880 },
        cgroup_parent: None,
        preload: None,
    })
}

fn medians(runs: &[Run], way: Way, (_, _, value): Column) -> f64 {
    median(&runs.iter().filter(|run| run.way == way).map(value).collect::<Vec<_>>())
}

fn print_table(link: Link, runs: &[Run]) {
    println!("\n{link}, medians of {}:", runs.len() / Way::ALL.len());
    let headings = COLUMNS.map(|(figure, unit, _)| format!("{:>13}", format!("{figure} {unit}")));
    println!("  {:<10}{}", "", headings.concat());
    for way in Way::ALL {
        let values = COLUMNS.map(|column| format!("{:>13.1}", medians(runs, way, column)));
        println!("  {:<10}{}", way.name(), values.concat());
    }
    for against in [Way::Qemu, Way::QemuTls] {
        let ratio = medians(runs, Way::Limosa, TOTAL) / medians(runs, against, TOTAL);
        let added = medians(runs, Way::Limosa, DOWNTIME) - medians(runs, against, DOWNTIME);
        println!("  limosa to {}: total {ratio:.2} times, downtime {added:+.1} ms", against.name());
    }
    let phases = Phase::ALL.map(|phase| (phase, median(&phase_ms(runs, phase))));
    let phases =
        phases.iter().filter(|(_, ms)| *ms > 0.0).map(|(phase, ms)| format!("{} {ms:.1} ms", phase.name()));
    println!("  limosa's phases: {}", phases.collect::<Vec<_>>().join(", "));
}

fn phase_ms(runs: &[Run], phase: Phase) -> Vec<f64> {
    let phases = runs.iter().flat_map(|run| &run.moved.phases);
    phases.filter(|time: &&PhaseTime| time.phase == phase).map(|time| time.micros as f64 / 1e3).collect()
}

fn figures_of(link: Link, runs: &[Run]) -> Vec<Figure> {
    let rounds = runs.len() / Way::ALL.len();
    let figure = |way: Way, what: &str| format!("migrate/{link}/{}/{}", way.name(), what.replace(' ', "-"));
    let mut figures = Vec::new();
    for way in Way::ALL {
        for column @ (what, unit, _) in COLUMNS {
            let value = medians(runs, way, column);
            figures.push(Figure { figure: figure(way, what), value, unit, runs: rounds, against: None });
        }
    }
    for against in [Way::Qemu, Way::QemuTls] {
        let compared = |what: &str, value, unit| Figure {
            figure: figure(Way::Limosa, what),
            value,
            unit,
            runs: rounds,
            against: Some(against.name()),
        };
        let ratio = medians(runs, Way::Limosa, TOTAL) / medians(runs, against, TOTAL);
        let added = medians(runs, Way::Limosa, DOWNTIME) - medians(runs, against, DOWNTIME);
        figures.push(compared("total ratio", ratio, "ratio"));
        figures.push(compared("downtime added", added, "ms"));
    }
    for phase in Phase::ALL {
        let values = phase_ms(runs, phase);
        if !values.is_empty() {
            let figure = figure(Way::Limosa, &format!("phase {}", phase.name()));
            figures.push(Figure {
                figure,
                value: median(&values),
                unit: "ms",
                runs: values.len(),
                against: None,
            });
        }
    }
    figures
}

//! What is done to a room's link at run time: made slow, late or lossy, cut, mended.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;

use limosa_model::{Bandwidth, Millis};

use crate::command::{ip, tc};
use crate::emulator::{self, Counters, Impairment, Loss};
use crate::error::{Error, Result};
use crate::lab::Lab;
use crate::names::{Network, PREFIX, Room};
use crate::topology::add_bridge;

/// How a link is shaped; both directions alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shape {
    /// The most that it carries, each way; as much as the machine can if none.
    pub rate: Option<Bandwidth>,
    /// How long each frame takes, one way: the round trip grows by twice that.
    pub delay: Millis,
    /// Up to how much longer, at random. Frames are never reordered.
    pub jitter: Millis,
    /// The share of frames that are lost, each way.
    pub loss: Loss,
    /// Loses everything while both ends see the link up, unlike [`Lab::partition`].
    pub cut: bool,
}

impl Shape {
    fn impairment(&self) -> Impairment {
        Impairment {
            delay_us: self.delay.get().saturating_mul(1000),
            jitter_us: self.jitter.get().saturating_mul(1000),
            loss: self.loss,
            cut: self.cut,
        }
    }
}

impl Lab {
    /// Pulls the cable: takes down the switch's port of a room's link. Both ends see it.
    ///
    /// # Errors
    /// When the room has no such link.
    pub fn partition(&self, room: Room, network: Network) -> Result<()> {
        self.set_port(room, network, "down")
    }

    /// Puts the cable back.
    ///
    /// # Errors
    /// When the room has no such link.
    pub fn heal(&self, room: Room, network: Network) -> Result<()> {
        self.set_port(room, network, "up")
    }

    /// Shapes a room's link from here on, in place of how it was shaped before. The rate is kept by a token
    /// bucket at either end, the rest by a link emulator, which is put in when it is first needed and stays until
    /// [`Self::unshape`]; frames on their way are lost when it is put in or taken out.
    ///
    /// # Errors
    /// When the room has no such link, or the emulator cannot be started.
    pub fn shape(&self, room: Room, network: Network, shape: &Shape) -> Result<()> {
        self.check_link(room, network)?;
        self.set_rate(room, network, shape.rate)?;
        let impairment = shape.impairment();
        let socket = self.emulator_socket(room, network);
        if socket.exists() {
            if emulator::ask(&socket, Some(&impairment)).is_ok() {
                return Ok(());
            }
            // It is dead, or out of its mind: the link needs another.
            self.remove_emulator(room, network)?;
        }
        if impairment == Impairment::default() {
            return Ok(());
        }
        self.insert_emulator(room, network)?;
        emulator::ask(&socket, Some(&impairment)).map(drop)
    }

    /// Makes a room's link plain again. What was partitioned stays so.
    ///
    /// # Errors
    /// When the room has no such link.
    pub fn unshape(&self, room: Room, network: Network) -> Result<()> {
        self.check_link(room, network)?;
        self.set_rate(room, network, None)?;
        self.remove_emulator(room, network)
    }

    /// What the emulator of a link has done; none if the link has no emulator.
    ///
    /// # Errors
    /// When the emulator does not answer.
    pub fn emulator_counters(&self, room: Room, network: Network) -> Result<Option<Counters>> {
        let socket = self.emulator_socket(room, network);
        if socket.exists() { emulator::ask(&socket, None).map(Some) } else { Ok(None) }
    }

    fn set_port(&self, room: Room, network: Network, state: &str) -> Result<()> {
        self.check_link(room, network)?;
        ip(self.namespace(Room::Switch)?.name(), &["link", "set", &network.port(room), state])
    }

    fn check_link(&self, room: Room, network: Network) -> Result<()> {
        self.namespace(room)?;
        if network.reaches(room) {
            return Ok(());
        }
        let why = "this room is not on that network";
        Err(Error::invalid("link of the lab", &network.port(room), why))
    }

    /// Sets or clears the token buckets: what the room sends is held back in the room, what it is sent in the
    /// switch.
    fn set_rate(&self, room: Room, network: Network, rate: Option<Bandwidth>) -> Result<()> {
        let inside = self.namespace(room)?;
        let switch = self.namespace(Room::Switch)?;
        let ends = [(inside.name(), network.interface()), (switch.name(), network.port(room))];
        for (namespace, device) in ends {
            match rate {
                Some(rate) => {
                    let (rate, burst) =
                        (format!("{}bit", rate.as_bits_per_second()), format!("{}b", burst_bytes(rate)));
                    let bucket = ["tbf", "rate", &rate, "burst", &burst, "latency", "50ms"];
                    tc(namespace, &[&["qdisc", "replace", "dev", &device, "root"], &bucket[..]].concat())?;
                }
                // `replace` by what veth has by default: unlike `del`, it also succeeds when there is no bucket.
                None => tc(namespace, &["qdisc", "replace", "dev", &device, "root", "noqueue"])?,
            }
        }
        Ok(())
    }

    fn insert_emulator(&self, room: Room, network: Network) -> Result<()> {
        let switch = self.namespace(Room::Switch)?;
        let switch = switch.name();
        let wires = Wires::of(room, network);
        add_bridge(switch, &wires.bridge, &network.emulator_mac(room))?;
        for (tap, bridge) in [(&wires.inner, wires.bridge.as_str()), (&wires.outer, network.bridge())] {
            ip(switch, &["tuntap", "add", "dev", tap, "mode", "tap"])?;
            ip(switch, &["link", "set", tap, "txqueuelen", "4000", "master", bridge, "up"])?;
        }
        ip(switch, &["link", "set", &wires.port, "master", &wires.bridge])?;

        let socket = self.emulator_socket(room, network);
        // Bound here and handed over listening: whoever asks from here on is answered, without waiting for a start.
        let listener = UnixListener::bind(&socket).map_err(Error::path("bind", &socket))?;
        let mut command = Command::new(own_program()?);
        command.args(["emulate", &wires.inner, &wires.outer]).stdin(OwnedFd::from(listener));
        self.spawn_with_input(Room::Switch, &wires.label, command).map(drop)
    }

    fn remove_emulator(&self, room: Room, network: Network) -> Result<()> {
        let socket = self.emulator_socket(room, network);
        if !socket.exists() {
            return Ok(());
        }
        let wires = Wires::of(room, network);
        for process in self.processes()?.iter().filter(|process| process.record().label == wires.label) {
            process.kill()?;
        }
        let switch = self.namespace(Room::Switch)?;
        ip(switch.name(), &["link", "set", &wires.port, "master", network.bridge()])?;
        for device in [&wires.inner, &wires.outer, &wires.bridge] {
            ip(switch.name(), &["link", "delete", device])?;
        }
        std::fs::remove_file(&socket).map_err(Error::path("remove", &socket))
    }

    fn emulator_socket(&self, room: Room, network: Network) -> PathBuf {
        self.directory().join(format!("{}.sock", network.port(room)))
    }
}

/// What an emulator needs in the switch.
struct Wires {
    port: String,
    bridge: String,
    inner: String,
    outer: String,
    label: String,
}

impl Wires {
    fn of(room: Room, network: Network) -> Self {
        let port = network.port(room);
        Self {
            bridge: format!("{port}-b"),
            inner: format!("{port}-i"),
            outer: format!("{port}-o"),
            label: format!("emulator-{port}"),
            port,
        }
    }
}

/// The `limosa-lab` program, which is also the emulator: this one, or the one that lies beside it or one folder up
/// (where cargo puts it next to its tests), or what `LIMOSA_LAB_PROGRAM` says.
fn own_program() -> Result<PathBuf> {
    if let Some(told) = std::env::var_os("LIMOSA_LAB_PROGRAM") {
        return Ok(told.into());
    }
    let this = std::env::current_exe().map_err(Error::io("find this program's file"))?;
    let mut beside = this.ancestors().skip(1).take(2).map(|folder| folder.join(PREFIX));
    beside.find(|program| program.is_file()).ok_or_else(|| Error::Asset {
        what: format!("the program limosa-lab, which emulates links, is not beside {}", this.display()),
        remedy: "build it with `cargo build -p limosa-lab`, or say where it is in LIMOSA_LAB_PROGRAM",
    })
}

/// What a token bucket may send at once: 4 ms of the rate, and never less than the largest packet that a
/// virtual interface sends in one piece.
fn burst_bytes(rate: Bandwidth) -> u64 {
    (rate.as_bytes_per_second() / 250).max(68 * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_links_bucket_still_takes_the_largest_packet() {
        assert_eq!(burst_bytes(Bandwidth::bits_per_second(1_000_000)), 68 * 1024);
        assert_eq!(burst_bytes(Bandwidth::bits_per_second(1_000_000_000)), 500_000);
    }
}

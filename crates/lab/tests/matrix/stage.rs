//! The lab, the agents and the guest of the matrix, and one cell from its beginning to its end.

use limosa_api::agent::{MigrationOptions, MigrationStatus, VmOnHost};
use limosa_lab::assets::Assets;
use limosa_lab::bare::{BareCluster, guest_spec};
use limosa_lab::guest::{GuestConfig, GuestConnection};
use limosa_lab::{Lab, Network, Room, wait};
use limosa_migration::Ticket;
use limosa_model::{Epoch, Millis, PowerState, VmId};
use rustix::process::Signal;

use crate::common::LIMIT;
use crate::expected::Expected;
use crate::fault::{Fault, GuestIs};
use crate::hold::Hold;
use crate::processes::Part;

/// What limits a switchover in the matrix.
const SWITCHOVER_LIMIT_MS: u64 = 20_000;

pub(crate) struct Stage<'l> {
    pub(crate) lab: &'l Lab,
    pub(crate) cluster: BareCluster<'l>,
    pub(crate) target: VmOnHost,
    pub(crate) config: GuestConfig,
    /// Where the VM is, and by which right.
    pub(crate) at: usize,
    pub(crate) epoch: Epoch,
    pub(crate) guest: Option<GuestConnection>,
    pub(crate) boot_id: String,
    /// What was stopped and must be let go.
    pub(crate) stopped: Vec<i32>,
    pub(crate) last: Option<Ticket>,
}

impl<'l> Stage<'l> {
    pub(crate) fn start(lab: &'l Lab, assets: &Assets) -> Self {
        let cluster = BareCluster::start(lab, assets).unwrap();
        let mut config = GuestConfig::new("stamp", Room::Host(1));
        config.memory_mib = 128;
        config.fill_mib = 24;
        config.dirty_mib_s = 4;
        config.disk = Some("on-the-shared-datastore".into());
        let target = cluster.target(VmId::new(), &guest_spec(&config));
        let mut stage = Self {
            lab,
            cluster,
            target,
            config,
            at: 0,
            epoch: Epoch(0),
            guest: None,
            boot_id: String::new(),
            stopped: Vec::new(),
            last: None,
        };
        stage.boot();
        stage
    }

    /// Starts the VM on the first host, and waits for its guest.
    pub(crate) fn boot(&mut self) {
        let started = self.cluster.start_vm(0, &self.target).unwrap();
        self.target.spec.machine.machine_type = started.machine_type;
        self.epoch = started.epoch;
        self.at = 0;
        self.connect();
    }

    /// Connects to the guest, and notes which boot of it this is.
    pub(crate) fn connect(&mut self) {
        let client = self.lab.namespace(Room::Client).unwrap();
        let mut guest = GuestConnection::wait(&client, self.config.address, LIMIT).unwrap();
        let filled = || {
            let status = guest.status()?;
            Ok((status.pages_filled == status.pages).then_some(status.boot_id))
        };
        self.boot_id = wait::until("the guest to have filled its memory", LIMIT, filled).unwrap();
        self.guest = Some(guest);
    }

    pub(crate) fn other(&self) -> usize {
        1 - self.at
    }

    pub(crate) fn room(n: usize) -> Room {
        Room::Host(n as u8 + 1)
    }

    pub(crate) fn options(&self) -> MigrationOptions {
        MigrationOptions {
            compare_memory: true,
            switchover_limit_ms: Millis::new(SWITCHOVER_LIMIT_MS),
            ..MigrationOptions::default()
        }
    }

    pub(crate) fn status(&self, n: usize) -> Option<MigrationStatus> {
        self.cluster.migration(n, self.last?.migration).ok()
    }

    pub(crate) fn await_state(&self, n: usize, states: &[&str]) -> Result<(), String> {
        wait::until(&format!("host {n} to be in {states:?}"), LIMIT, || {
            Ok(self.status(n).filter(|status| states.contains(&status.state.as_str())).map(drop))
        })
        .map_err(|error| {
            let at = [0, 1].map(|n| self.status(n).map(|s| (s.state, s.failure)));
            format!("{error}; they are {at:?}")
        })
    }

    /// Everything that was stopped goes on, every link is whole.
    pub(crate) fn release(&mut self) {
        for pid in std::mem::take(&mut self.stopped) {
            self.send(pid, Signal::CONT);
        }
        for n in [0, 1] {
            for network in [Network::Management, Network::Migration] {
                self.lab.heal(Self::room(n), network).unwrap();
            }
            self.lab.unshape(Self::room(n), Network::Migration).unwrap();
        }
    }

    /// One cell.
    pub(crate) fn cell(&mut self, hold: Hold, fault: Fault, expected: Expected) -> Result<String, String> {
        self.hold(hold)?;
        let guest = self.inflict(hold, fault)?;
        self.release();
        if hold == Hold::Ordered {
            self.order_destination();
        }
        let outcome = self.settle(expected, guest)?;
        self.retry()?;
        Ok(outcome)
    }

    /// The server orders the destination, late. Where the source has given up meanwhile, it need not come to anything.
    fn order_destination(&mut self) {
        let (from, to) = (self.at, self.other());
        let Some(ticket) = self.last else { return };
        let Some(fingerprint) = self.status(from).map(|status| status.fingerprint) else { return };
        let _ = self.cluster.order_end(to, from, ticket, &self.target, &self.options(), fingerprint);
    }

    /// Moves the VM once more, undisturbed.
    fn retry(&mut self) -> Result<(), String> {
        let expected = Expected::Destination;
        self.hold(Hold::Ordered)?;
        self.order_destination();
        self.settle(expected, GuestIs::Well).map(drop).map_err(|error| format!("the retry: {error}"))
    }

    /// After a cell that failed: everything anew.
    pub(crate) fn start_over(&mut self) {
        self.release();
        for n in [0, 1] {
            for part in [Part::Agent, Part::Qemu, Part::Worker] {
                while self.process(n, part).is_some() {
                    self.kill(n, part);
                }
            }
            let directory = self.lab.room_directory(Self::room(n)).unwrap();
            let _ = std::fs::remove_file(directory.join("state/journal"));
            let _ = std::fs::remove_dir_all(directory.join("run"));
            self.cluster.restart_agent(n).unwrap();
        }
        self.guest = None;
        self.boot();
    }

    /// The ends of both agents' logs.
    pub(crate) fn evidence(&self) -> String {
        let mut text = String::new();
        for host in self.cluster.hosts() {
            let log = std::fs::read_to_string(host.agent.log()).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(25).collect();
            text.push_str(&format!("--- {}\n", host.room));
            for line in lines.iter().rev() {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }

    /// What the agents report of the VM.
    pub(crate) fn powers(&self) -> Result<Vec<(usize, PowerState, Epoch)>, String> {
        let mut found = Vec::new();
        for n in [0, 1] {
            let report =
                self.cluster.report(n).map_err(|error| format!("host {n} does not report: {error}"))?;
            found.extend(
                report.vms.iter().filter(|vm| vm.vm == self.target.vm).map(|vm| (n, vm.power, vm.epoch)),
            );
        }
        Ok(found)
    }
}

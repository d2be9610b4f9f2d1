//! A VM that Limosa's agents start and move.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use limosa_api::agent::{MigrationOptions, MigrationStatus, VmAction, VmOnHost};
use limosa_api::client::CallError;
use limosa_migration::Ticket;
use limosa_model::migration::PhaseTime;
use limosa_model::{Epoch, Fact, Phase, VmId, VmSpec};

use crate::bare::BareCluster;
use crate::error::{Error, Result};

/// A move may take this long, on the slowest link and the busiest machine.
pub(super) const MOVE_LIMIT: Duration = Duration::from_secs(600);

/// How often the two ends are asked whether they are through. Seldom: on a small machine, who asks takes time from
/// what is measured.
const ASK: Duration = Duration::from_millis(100);

/// When a move passed its marks, in microseconds since 1970 (all hosts of a lab have one clock), and what else is
/// known of it.
#[derive(Debug, Clone)]
pub(crate) struct Moved {
    /// The order was given.
    pub(crate) ordered_us: u64,
    /// Everything was ready, and memory began to flow.
    pub(crate) streaming_us: u64,
    /// The source's CPUs stood still.
    pub(crate) stopped_us: u64,
    /// The destination's CPUs ran.
    pub(crate) continued_us: u64,
    /// The phases, where there are any, as the source timed them.
    pub(crate) phases: Vec<PhaseTime>,
}

/// A VM under agents, and where it is.
pub(crate) struct ByAgents<'l> {
    cluster: BareCluster<'l>,
    target: VmOnHost,
    epoch: Epoch,
    at: usize,
}

impl<'l> ByAgents<'l> {
    /// Starts a VM on the first host. Disks that lie in its place already are taken as they are.
    pub(crate) fn start(mut cluster: BareCluster<'l>, vm: VmId, spec: &VmSpec) -> Result<Self> {
        let mut target = cluster.target(vm, spec);
        let started = cluster.start_vm(0, &target).map_err(refused("start the VM"))?;
        target.spec.machine.machine_type = started.machine_type;
        Ok(Self { cluster, target, epoch: started.epoch, at: 0 })
    }

    /// The VM, its machine type pinned.
    pub(crate) fn target(&self) -> &VmOnHost {
        &self.target
    }

    /// The host that it is on.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Makes it stand still.
    pub(crate) fn pause(&self) -> Result<()> {
        self.act(VmAction::Pause)
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) -> Result<()> {
        self.act(VmAction::Resume)
    }

    fn act(&self, action: VmAction) -> Result<()> {
        let done = self.cluster.act(self.at, self.target.vm, self.epoch, action);
        done.map(drop).map_err(refused("pause or resume the VM"))
    }

    /// Moves it to another host, and returns when both ends are through and have forgotten the migration.
    pub(crate) fn move_to(&mut self, to: usize, options: &MigrationOptions) -> Result<Moved> {
        let from = self.at;
        let ordered_us = now_us();
        let ticket = self
            .cluster
            .migrate(from, to, &self.target, self.epoch, options)
            .map_err(refused("order a migration"))?;
        let source = self.await_end(from, ticket)?;
        let destination = self.await_end(to, ticket)?;
        let moved = moved(ordered_us, &source, &destination)?;
        for host in [from, to] {
            self.cluster.forget(host, ticket.migration).map_err(refused("have a migration forgotten"))?;
        }
        (self.at, self.epoch) = (to, ticket.epoch);
        Ok(moved)
    }

    fn await_end(&self, host: usize, ticket: Ticket) -> Result<MigrationStatus> {
        let begin = Instant::now();
        while begin.elapsed() < MOVE_LIMIT {
            // An agent that does not answer is asked again.
            if let Ok(status) = self.cluster.migration(host, ticket.migration)
                && status.ended
            {
                return Ok(status);
            }
            thread::sleep(ASK);
        }
        let what =
            format!("the end of migration {} on {}", ticket.migration, self.cluster.hosts()[host].room);
        Err(Error::TimedOut { what, limit: MOVE_LIMIT })
    }
}

fn refused(doing: &'static str) -> impl FnOnce(CallError) -> Error {
    move |error| Error::io(doing)(std::io::Error::other(error))
}

fn moved(ordered_us: u64, source: &MigrationStatus, destination: &MigrationStatus) -> Result<Moved> {
    let facts = (source.fact.map(|told| told.fact), destination.fact.map(|told| told.fact));
    let marks = (source.measured.stopped_us, destination.measured.continued_us);
    let ((Some(Fact::Released), Some(Fact::Running)), (Some(stopped_us), Some(continued_us))) =
        (facts, marks)
    else {
        let ends = format!("source {source:?}, destination {destination:?}");
        return Err(Error::answer("the agents", &ends, "the VM did not move"));
    };
    let phases = source.measured.phases.clone();
    let transfer = phases.iter().find(|time| time.phase == Phase::Transfer).map_or(0, |time| time.micros);
    Ok(Moved {
        ordered_us,
        streaming_us: stopped_us.saturating_sub(transfer),
        stopped_us,
        continued_us,
        phases,
    })
}

pub(super) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

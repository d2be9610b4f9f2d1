//! What is only in memory: the latest reports, progress, and which orders are on their way.
//!
//! All of it comes back by itself: hosts report again, orders are given again. Nothing that decides is here alone.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use limosa_api::agent::{HostReport, MigrationStatus, Role, VmStatus};
use limosa_model::{BootId, Epoch, Failure, HostId, JournalId, MigrationId, Phase, Progress, VmId};

/// How long it is remembered how an order fared that is not given any more.
const KEPT: Duration = Duration::from_secs(600);

/// What is only in memory.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) hosts: HashMap<HostId, LiveHost>,
    pub(crate) migrations: HashMap<MigrationId, Ends>,
    pub(crate) orders: HashMap<OrderKey, Attempt>,
    /// Starts whose every order so far was answered: only then does a refusal mean that nothing was started.
    pub(crate) clean_starts: HashSet<(VmId, Epoch)>,
    /// Strays, by the report that first showed them, and whether they were told of.
    pub(crate) strays: HashMap<(HostId, VmId, Epoch), (u64, bool)>,
    /// Actions that their host has taken on, and until when they have time to come true.
    pub(crate) taken_on: HashMap<(VmId, Epoch, &'static str), Instant>,
}

/// What a host last said.
#[derive(Debug)]
pub(crate) struct LiveHost {
    pub(crate) report: HostReport,
    pub(crate) heard: Instant,
    pub(crate) heard_at: jiff::Timestamp,
    /// Who has claimed to be this host, and how far each had counted.
    pub(crate) claims: Vec<(Claim, u64)>,
    /// How often a claim has gone on counting after another one had come between.
    pub(crate) alternations: u32,
    /// How many reports the present one has sent since.
    pub(crate) in_a_row: u64,
}

/// What tells one machine from another that has the same identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) journal: JournalId,
    pub(crate) boot: BootId,
    pub(crate) address: std::net::SocketAddr,
}

/// Both ends of a migration, as last heard of.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub(crate) source: Option<MigrationStatus>,
    pub(crate) destination: Option<MigrationStatus>,
    /// The hosts have forgotten it.
    pub(crate) source_forgot: bool,
    pub(crate) destination_forgot: bool,
    percent: u8,
    phase: Option<Phase>,
}

/// What an order is about. One of a kind is on its way at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum OrderKey {
    Vm(VmId, &'static str),
    Migration(MigrationId, Role, &'static str),
    Prepare(MigrationId),
}

/// How an order stands.
#[derive(Debug)]
pub(crate) enum Attempt {
    UnderWay {
        /// How often it has failed before.
        failed: u32,
    },
    /// It was answered, and nothing is new: not again before.
    Answered { not_before: Instant },
    /// It failed: not again before.
    Failed { not_before: Instant, failure: Failure, times: u32 },
}

impl Live {
    /// A VM on a host, as its agent last saw it.
    pub(crate) fn vm(&self, host: HostId, vm: VmId) -> Option<&VmStatus> {
        self.hosts.get(&host)?.report.vms.iter().find(|status| status.vm == vm)
    }

    /// A newer word about a VM than the last report.
    pub(crate) fn note_vm(&mut self, host: HostId, status: VmStatus) {
        let Some(live) = self.hosts.get_mut(&host) else { return };
        match live.report.vms.iter_mut().find(|known| known.vm == status.vm) {
            Some(known) => *known = status,
            None => live.report.vms.push(status),
        }
    }

    /// A host has lost its journal: what it said of migrations is to be asked anew.
    pub(crate) fn forget_ends(&mut self, host: HostId) {
        for ends in self.migrations.values_mut() {
            ends.source.take_if(|status| status.ticket.source == host);
            ends.destination.take_if(|status| status.ticket.destination == host);
        }
    }

    /// A newer word about one end of a migration. Whether it says anything new, progress aside.
    pub(crate) fn note_migration(&mut self, status: MigrationStatus) -> bool {
        let ends = self.migrations.entry(status.ticket.migration).or_default();
        ends.advance(&status);
        let end = match status.role {
            Role::Source => &mut ends.source,
            Role::Destination => &mut ends.destination,
        };
        let told = |status: &MigrationStatus| {
            (status.state.clone(), status.phase, status.fact, status.ended, status.fingerprint.clone())
        };
        let is_new = end.as_ref().map(told) != Some(told(&status));
        if end.as_ref().is_none_or(|known| known.now_us <= status.now_us) {
            *end = Some(status);
        }
        is_new
    }

    /// Whether an order may go out now.
    pub(crate) fn may_order(&mut self, key: OrderKey) -> bool {
        match self.orders.get(&key) {
            None => true,
            Some(Attempt::UnderWay { .. }) => false,
            Some(Attempt::Answered { not_before } | Attempt::Failed { not_before, .. }) => {
                Instant::now() >= *not_before
            }
        }
    }

    /// An order failed; it is given again after a while that grows with each failure.
    pub(crate) fn order_failed(&mut self, key: OrderKey, failure: Failure, pause: Duration, before: u32) {
        let times = before.saturating_add(1);
        let not_before = Instant::now() + pause * times.min(10);
        self.orders.insert(key, Attempt::Failed { not_before, failure, times });
    }

    /// How often an order that is under way has failed before.
    pub(crate) fn trouble_before(&self, key: OrderKey) -> u32 {
        match self.orders.get(&key) {
            Some(Attempt::UnderWay { failed }) => *failed,
            _ => 0,
        }
    }

    /// Forgets what is about rights that are no more, and how old orders fared.
    pub(crate) fn tidy(&mut self, holds: impl Fn(VmId, Epoch) -> bool) {
        let now = Instant::now();
        self.clean_starts.retain(|(vm, epoch)| holds(*vm, *epoch));
        self.taken_on.retain(|(vm, epoch, _), _| holds(*vm, *epoch));
        self.orders.retain(|_, attempt| match attempt {
            Attempt::UnderWay { .. } => true,
            Attempt::Answered { not_before } | Attempt::Failed { not_before, .. } => {
                now.saturating_duration_since(*not_before) < KEPT
            }
        });
        let shown = |host: &HostId, vm: VmId, epoch| {
            let live = self.hosts.get(host);
            live.is_some_and(|live| live.report.vms.iter().any(|s| s.vm == vm && s.epoch == epoch))
        };
        self.strays.retain(|(host, vm, epoch), _| shown(host, *vm, *epoch));
    }

    /// Why an order does not get through, and how often it has not.
    pub(crate) fn trouble(&self, key: OrderKey) -> Option<(&Failure, u32)> {
        match self.orders.get(&key)? {
            Attempt::UnderWay { .. } | Attempt::Answered { .. } => None,
            Attempt::Failed { failure, times, .. } => Some((failure, *times)),
        }
    }
}

impl Ends {
    /// Progress only goes forward, whatever comes late.
    fn advance(&mut self, status: &MigrationStatus) {
        self.phase = self.phase.max(Some(status.phase));
        let share = match status.phase {
            Phase::Prepare => 0,
            Phase::Reserve => 2,
            Phase::Transfer => 5,
            Phase::Switchover => 95,
            Phase::Handover => 98,
            Phase::Finish => 99,
        };
        let told = status.progress.as_ref().map_or(0, |progress| progress.percent.min(99));
        self.percent = self.percent.max(share).max(told);
    }

    pub(crate) fn percent(&self) -> u8 {
        self.percent
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.unwrap_or(Phase::Reserve)
    }

    /// The source's figures, with a percentage that never goes back.
    pub(crate) fn progress(&self) -> Option<Progress> {
        let progress = self.source.as_ref()?.progress.clone()?;
        Some(Progress { percent: self.percent, phase: self.phase(), ..progress })
    }
}

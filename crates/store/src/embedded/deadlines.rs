//! When each lease runs out. Kept in memory: after a restart every lease begins its time anew, since
//! nobody could keep it alive meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::port::LeaseId;

pub(super) struct Deadlines {
    clock: Arc<dyn Clock>,
    leases: BTreeMap<LeaseId, Deadline>,
}

#[derive(Clone, Copy)]
struct Deadline {
    ttl: Duration,
    at: Duration,
}

impl Deadlines {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, leases: BTreeMap::new() }
    }

    pub(super) fn start(&mut self, id: LeaseId, ttl: Duration) {
        self.leases.insert(id, Deadline { ttl, at: self.clock.now() + ttl });
    }

    pub(super) fn forget(&mut self, id: LeaseId) {
        self.leases.remove(&id);
    }

    /// Begins the lease's time anew, unless it has run out. Its time to live.
    pub(super) fn keep_alive(&mut self, id: LeaseId) -> Option<Duration> {
        let now = self.clock.now();
        let lease = self.leases.get_mut(&id).filter(|lease| lease.at > now)?;
        lease.at = now + lease.ttl;
        Some(lease.ttl)
    }

    /// A lease's time to live and what is left of it.
    pub(super) fn of(&self, id: LeaseId) -> Option<(Duration, Duration)> {
        let now = self.clock.now();
        let lease = self.leases.get(&id).filter(|lease| lease.at > now)?;
        Some((lease.ttl, lease.at - now))
    }

    /// The leases that have run out.
    pub(super) fn due(&self) -> Vec<LeaseId> {
        let now = self.clock.now();
        self.leases.iter().filter(|(_, lease)| lease.at <= now).map(|(id, _)| *id).collect()
    }

    /// How long until the next one runs out.
    pub(super) fn until_next(&self) -> Option<Duration> {
        let next = self.leases.values().map(|lease| lease.at).min()?;
        Some(next.saturating_sub(self.clock.now()))
    }
}

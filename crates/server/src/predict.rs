//! What is to be expected of a migration: from what earlier ones between the same hosts measured.

use limosa_api::rest::Prediction;
use limosa_model::{Bandwidth, ByteSize, HostId, Millis, Outcome, Phase};

use crate::records::{MigrationRecord, VmRecord};
use crate::snapshot::Snapshot;

/// `None` where nothing was ever measured that would tell.
pub(crate) fn predict(
    snapshot: &Snapshot,
    vm: &VmRecord,
    source: HostId,
    destination: HostId,
    limit: Option<Bandwidth>,
    dirty_rate: Option<Bandwidth>,
) -> Option<Prediction> {
    let done = |migration: &&MigrationRecord| {
        migration.report.as_ref().is_some_and(|report| report.outcome == Outcome::RunningOnDestination)
    };
    let done: Vec<_> = snapshot.migrations.values().filter(done).collect();
    let between = done.iter().rev().find(|migration| {
        let ticket = migration.passage.ticket;
        [(source, destination), (destination, source)].contains(&(ticket.source, ticket.destination))
    });
    let measured = between.and_then(|migration| link_rate(migration));
    let rate = match (measured, limit) {
        (Some(measured), Some(limit)) => measured.min(limit),
        (measured, limit) => measured.or(limit)?,
    };
    let own = done.iter().rev().find(|migration| migration.passage.ticket.vm == vm.id);
    let own = own.and_then(|migration| migration.report.as_ref());
    let wire = own.map_or(vm.spec.memory, |report| report.wire);
    let left = rate.as_bits_per_second().saturating_sub(dirty_rate.map_or(0, Bandwidth::as_bits_per_second));
    if left == 0 {
        return None;
    }
    let transfer_ms = u128::from(wire.as_bytes()) * 8 * 1000 / u128::from(left);
    // Where the two memories were compared the guest stood still for longer than it otherwise does.
    let mut reports = done.iter().rev().filter_map(|migration| migration.report.as_ref());
    let plain = reports.find(|report| report.vm == vm.id && !report.memory_compared);
    let downtime = plain.and_then(|report| report.downtime_us).map(|us| Millis::new(us.div_ceil(1000)));
    let basis = match (own.is_some(), between.is_some()) {
        (true, _) => "this VM's last migration",
        (false, true) => "the last migration between these hosts, and the VM's memory",
        (false, false) => "the bandwidth limit, and the VM's memory",
    };
    Some(Prediction {
        total_ms: Millis::new(u64::try_from(transfer_ms).ok()?),
        downtime_ms: downtime?,
        wire: ByteSize::bytes(wire.as_bytes()),
        basis: basis.to_owned(),
    })
}

/// What the link carried while memory was sent.
fn link_rate(migration: &MigrationRecord) -> Option<Bandwidth> {
    let report = migration.report.as_ref()?;
    let transfer = report.phases.iter().find(|time| time.phase == Phase::Transfer)?;
    let bits = u128::from(report.wire.as_bytes()) * 8 * 1_000_000;
    let rate = bits.checked_div(transfer.micros.into())?;
    Some(Bandwidth::bits_per_second(u64::try_from(rate).ok()?)).filter(|rate| rate.as_bits_per_second() > 0)
}

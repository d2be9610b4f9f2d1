//! Migrations: what one would be, and what one was.

use limosa_api::rest::{Migration, MigrationPlan};
use limosa_model::{Outcome, Phase, Report};

use super::{facts, micros, sentence};

/// What a migration would be: the answer to a dry run.
pub fn plan(plan: &MigrationPlan) -> String {
    let vm = &plan.vm.name;
    let mut text = match (&plan.destination, plan.failed.is_empty()) {
        (Some(to), true) => {
            format!("{vm} can move from {} to {}: {}\n", plan.source.name, to.name, sentence(&plan.why))
        }
        (Some(to), false) => format!("{vm} cannot move from {} to {}.\n", plan.source.name, to.name),
        (None, _) => format!("{vm} cannot move from {}: {}\n", plan.source.name, sentence(&plan.why)),
    };
    for failure in &plan.failed {
        text += &format!("\n  {} ({})\n    {}\n", failure.what, failure.kind, failure.remedy);
    }
    if !plan.rejected.is_empty() {
        text += "\nHosts that will not do:\n";
        for rejected in &plan.rejected {
            text += &format!("  {}: {}\n", rejected.host.name, rejected.why);
        }
    }
    for warning in &plan.warnings {
        text += &format!("\nwarning: {warning}\n");
    }
    let mut measured = Vec::new();
    if let Some(prediction) = &plan.prediction {
        measured.push(("expected time", prediction.total_ms.human()));
        measured.push(("expected downtime", prediction.downtime_ms.human()));
        measured.push(("expected bytes", prediction.wire.human()));
        measured.push(("concluded from", prediction.basis.clone()));
    }
    measured.extend(plan.round_trip_us.map(|round_trip| ("round trip", micros(round_trip))));
    measured.extend(plan.path_mtu.map(|bytes| ("largest packet", format!("{bytes} bytes"))));
    if !measured.is_empty() {
        text += &format!("\n{}", facts(measured));
    }
    text
}

/// What a migration was, once it has ended, for somebody who sees one for the first time.
pub fn report(migration: &Migration) -> String {
    let Some(report) = &migration.report else {
        return format!("The migration of {} has not ended yet.\n", migration.vm.name);
    };
    let mut text = headline(migration, report);
    if !report.phases.is_empty() {
        text.push('\n');
    }
    for time in &report.phases {
        text += &format!("  {:<10}  {:>10}   {}\n", time.phase, micros(time.micros), meaning(time.phase));
    }
    text += &format!("  {:<10}  {:>10}\n", "total", report.total_ms.human());
    let bytes = format!("{} for {} of guest memory", report.wire.human(), report.memory.human());
    let passes = if report.passes == 1 { "pass" } else { "passes" };
    let figures = facts([
        (
            "downtime",
            report.downtime_us.map(|downtime| downtime_line(migration, downtime)).unwrap_or_default(),
        ),
        (
            "on the wire",
            match percent(report) {
                Some(percent) => format!("{bytes} ({percent} %), in {} {passes}", report.passes),
                None => bytes,
            },
        ),
        (
            "memory",
            if report.memory_compared {
                "compared whole before the handover: the same on both hosts".into()
            } else {
                String::new()
            },
        ),
    ]);
    text += "\n";
    for line in figures.lines() {
        text += &format!("  {line}\n");
    }
    text
}

fn headline(migration: &Migration, report: &Report) -> String {
    let (vm, from, to) = (&migration.vm.name, &migration.source.name, &migration.destination.name);
    let why = report.failure.as_ref().map(|failure| {
        let what = sentence(&format!("{} ({})", failure.what, failure.kind));
        format!("  Why: {what}\n  What to do: {}\n", sentence(&failure.remedy))
    });
    let line = match (report.outcome, report.downtime_us) {
        (Outcome::RunningOnDestination, Some(downtime)) => {
            format!("{vm} moved from {from} to {to} while it ran; it stood still for {}.", micros(downtime))
        }
        (Outcome::RunningOnDestination, None) => format!("{vm} moved from {from} to {to}."),
        (Outcome::RunningOnSource, _) => format!("{vm} was not moved to {to}: it is on {from}, as before."),
        (Outcome::PausedInDoubt, _) => {
            format!("{vm} is paused: {from} and {to} have yet to agree who may run it.")
        }
        (Outcome::Stopped, _) => format!("{vm} is stopped, on {from} and on {to}."),
        (Outcome::Unchanged, _) => format!("{vm} was not moved: nothing was changed."),
    };
    format!("{line}\n{}", why.unwrap_or_default())
}

fn downtime_line(migration: &Migration, downtime_us: u64) -> String {
    let limit = migration.options.downtime_limit_ms.human();
    let expected = migration.prediction.as_ref().map(|prediction| prediction.downtime_ms.human());
    match expected {
        Some(expected) => format!("{} (expected {expected}, allowed {limit})", micros(downtime_us)),
        None => format!("{} (allowed {limit})", micros(downtime_us)),
    }
}

fn percent(report: &Report) -> Option<u64> {
    let memory = u128::from(report.memory.as_bytes());
    let percent = (u128::from(report.wire.as_bytes()) * 100 + memory / 2).checked_div(memory)?;
    u64::try_from(percent).ok()
}

fn meaning(phase: Phase) -> &'static str {
    match phase {
        Phase::Prepare => "both hosts are checked",
        Phase::Reserve => "the destination makes room and starts an empty QEMU",
        Phase::Transfer => "memory is sent while the VM runs",
        Phase::Switchover => "the VM stands still; its last pages and devices are sent",
        Phase::Handover => "the right to run it passes to the destination",
        Phase::Finish => "the source lets go",
    }
}

#[cfg(test)]
mod tests {
    use limosa_api::agent::MigrationOptions;
    use limosa_api::rest::{HostRef, Prediction, RejectedHost, VmRef};
    use limosa_model::migration::PhaseTime;
    use limosa_model::{
        ByteSize, Epoch, Failure, FailureKind, HostId, MigrationId, MigrationKind, Millis, Stream, TaskId,
        VmId,
    };

    use super::*;

    fn host(number: u128) -> HostRef {
        HostRef { id: HostId::from_u128(number), name: format!("h{number}").parse().unwrap() }
    }

    fn vm() -> VmRef {
        VmRef { id: VmId::from_u128(1), name: "web".parse().unwrap() }
    }

    fn prediction() -> Prediction {
        Prediction {
            total_ms: Millis::new(2_800),
            downtime_ms: Millis::new(120),
            wire: ByteSize::mib(600),
            basis: "dirty rate 50 Mbit/s, link 940 Mbit/s".into(),
        }
    }

    fn example() -> Migration {
        let micros = [210_000, 620_400, 1_430_000, 81_000, 6_040, 110_000];
        let phases = Phase::ALL.into_iter().zip(micros).map(|(phase, micros)| PhaseTime { phase, micros });
        Migration {
            id: MigrationId::from_u128(1),
            vm: vm(),
            kind: MigrationKind::Live,
            source: host(1),
            source_epoch: Epoch(1),
            destination: host(2),
            epoch: Epoch(2),
            options: MigrationOptions::default(),
            phase: Phase::Finish,
            progress: None,
            source_fact: None,
            destination_fact: None,
            cancel_asked: false,
            prediction: Some(prediction()),
            report: Some(Report {
                migration: MigrationId::from_u128(1),
                vm: VmId::from_u128(1),
                epoch: Epoch(2),
                source: HostId::from_u128(1),
                destination: HostId::from_u128(2),
                stream: Stream::Qemu,
                outcome: Outcome::RunningOnDestination,
                failure: None,
                phases: phases.collect(),
                total_ms: Millis::new(2_460),
                downtime_us: Some(87_040),
                wire: ByteSize::mib(570),
                memory: ByteSize::mib(1024),
                passes: 3,
                memory_compared: true,
            }),
            task: TaskId::from_u128(1),
            created: "2030-01-01T00:00:00Z".parse().unwrap(),
            ended: None,
        }
    }

    #[test]
    fn a_stranger_understands_the_report_of_a_migration() {
        assert_eq!(
            report(&example()),
            "\
web moved from h1 to h2 while it ran; it stood still for 87 ms.

  prepare         210 ms   both hosts are checked
  reserve         620 ms   the destination makes room and starts an empty QEMU
  transfer         1.4 s   memory is sent while the VM runs
  switchover       81 ms   the VM stands still; its last pages and devices are sent
  handover        6.0 ms   the right to run it passes to the destination
  finish          110 ms   the source lets go
  total            2.5 s

  downtime     87 ms (expected 120 ms, allowed 300 ms)
  on the wire  570 MiB for 1.0 GiB of guest memory (56 %), in 3 passes
  memory       compared whole before the handover: the same on both hosts
"
        );
    }

    #[test]
    fn the_report_of_a_failure_says_where_the_vm_is_and_what_to_do() {
        let mut failed = example();
        let told = failed.report.as_mut().unwrap();
        told.outcome = Outcome::RunningOnSource;
        told.failure = Some(Failure::new(FailureKind::Peer, "h2 does not answer", "look after h2"));
        told.phases.truncate(1);
        told.downtime_us = None;
        told.memory_compared = false;
        told.wire = ByteSize::bytes(0);
        told.passes = 0;
        assert_eq!(
            report(&failed),
            "\
web was not moved to h2: it is on h1, as before.
  Why: h2 does not answer (peer).
  What to do: look after h2.

  prepare         210 ms   both hosts are checked
  total            2.5 s

  on the wire  0 B for 1.0 GiB of guest memory (0 %), in 0 passes
"
        );
    }

    #[test]
    fn a_dry_run_says_what_would_be() {
        let possible = MigrationPlan {
            vm: vm(),
            source: host(1),
            destination: Some(host(2)),
            why: "it has the most room".into(),
            rejected: vec![RejectedHost { host: host(3), why: "it is cordoned".into() }],
            failed: vec![],
            warnings: vec!["the clocks are 80 ms apart".into()],
            prediction: Some(prediction()),
            round_trip_us: Some(210),
            path_mtu: Some(1500),
        };
        assert_eq!(
            plan(&possible),
            "\
web can move from h1 to h2: it has the most room.

Hosts that will not do:
  h3: it is cordoned

warning: the clocks are 80 ms apart

expected time      2.8 s
expected downtime  120 ms
expected bytes     600 MiB
concluded from     dirty rate 50 Mbit/s, link 940 Mbit/s
round trip         0.2 ms
largest packet     1500 bytes
"
        );
        let failure =
            Failure::new(FailureKind::Incompatible, "h2 has no CPU feature avx2", "choose another host");
        let impossible = MigrationPlan {
            failed: vec![failure],
            rejected: vec![],
            warnings: vec![],
            prediction: None,
            round_trip_us: None,
            path_mtu: None,
            ..possible
        };
        assert_eq!(
            plan(&impossible),
            "web cannot move from h1 to h2.\n\n  h2 has no CPU feature avx2 (incompatible)\n    choose another host\n"
        );
    }
}

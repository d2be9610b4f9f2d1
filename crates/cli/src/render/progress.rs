//! How far something is, on one line.

use limosa_api::rest::{Task, TaskState};
use limosa_model::Phase;

use super::plain;
use super::task::doing;

/// One line of progress, in its parts: a terminal puts a bar between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is done, as in `migrate web`.
    pub doing: String,
    /// 0 to 100.
    pub percent: u8,
    /// The phase, figures, or what it waits for.
    pub figures: String,
}

/// How far a task is.
pub fn progress(task: &Task) -> Progress {
    let mut parts = Vec::new();
    match (task.state, task.phase) {
        (TaskState::Succeeded, _) => parts.push("done".to_owned()),
        (TaskState::Failed, _) => parts.push("failed".to_owned()),
        (TaskState::Cancelled, _) => parts.push("cancelled".to_owned()),
        (TaskState::Queued | TaskState::Running, Some(phase)) => parts.push(phase.to_string()),
        (TaskState::Queued, None) => parts.push("queued".to_owned()),
        (TaskState::Running, None) => {}
    }
    // Later phases move no memory: the last figures say nothing any more.
    let transfers = task.state == TaskState::Running && task.phase == Some(Phase::Transfer);
    if let Some(progress) = task.progress.as_ref().filter(|_| transfers) {
        parts.push(format!("{} sent, {} left", progress.wire.human(), progress.remaining.human()));
        parts.push(format!("{}, dirtied at {}", progress.rate.human(), progress.dirty_rate.human()));
        if let Some(left) = progress.left_ms {
            parts.push(format!("{} to go", left.human()));
        }
        if let Some(downtime) = progress.expected_downtime_ms {
            parts.push(format!("downtime {} expected", downtime.human()));
        }
        if progress.throttle_percent > 0 {
            parts.push(format!("guest slowed by {} %", progress.throttle_percent));
        }
    } else if let Some(message) = &task.message {
        parts.push(message.clone());
    }
    if task.cancel_asked && !task.state.has_ended() {
        parts.push("being cancelled".into());
    }
    Progress {
        doing: doing(task),
        percent: task.percent.min(100),
        figures: plain(&parts.join(" | ")).into_owned(),
    }
}

impl Progress {
    /// The whole on one line, for where there is no terminal.
    pub fn line(&self) -> String {
        let Self { doing, percent, figures } = self;
        format!("{doing}: {percent:>3} % {figures}").trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use limosa_model::{Bandwidth, ByteSize, Millis};

    use super::super::task::tests::example;
    use super::*;

    #[test]
    fn a_migration_shows_phase_bytes_rates_time_left_and_downtime() {
        let measured = limosa_model::Progress {
            phase: Phase::Transfer,
            percent: 43,
            wire: ByteSize::mib(412),
            remaining: ByteSize::mib(188),
            rate: Bandwidth::bits_per_second(940_000_000),
            dirty_rate: Bandwidth::bits_per_second(120_000_000),
            left_ms: Some(Millis::new(2_100)),
            expected_downtime_ms: Some(Millis::new(45)),
            throttle_percent: 0,
        };
        let moving =
            Task { phase: Some(Phase::Transfer), percent: 43, progress: Some(measured.clone()), ..example() };
        assert_eq!(
            progress(&moving).line(),
            "migrate web:  43 % transfer | 412 MiB sent, 188 MiB left | 940 Mbit/s, dirtied at 120 Mbit/s | \
             2.1 s to go | downtime 45 ms expected"
        );
        let unknown = limosa_model::Progress {
            left_ms: None,
            expected_downtime_ms: None,
            throttle_percent: 20,
            ..measured
        };
        let slowed = Task { progress: Some(unknown), cancel_asked: true, ..moving };
        assert_eq!(
            progress(&slowed).figures,
            "transfer | 412 MiB sent, 188 MiB left | 940 Mbit/s, dirtied at 120 Mbit/s | guest slowed by 20 % | \
             being cancelled"
        );
    }

    #[test]
    fn figures_of_the_transfer_are_not_shown_after_it() {
        let switching = Task { phase: Some(Phase::Switchover), percent: 95, ..example() };
        assert_eq!(progress(&switching).line(), "migrate web:  95 % switchover");
        let done = Task { state: TaskState::Succeeded, percent: 100, cancel_asked: true, ..example() };
        assert_eq!(progress(&done).line(), "migrate web: 100 % done");
    }

    #[test]
    fn what_waits_says_for_what() {
        let queued = Task {
            state: TaskState::Queued,
            phase: None,
            percent: 0,
            message: Some("h1 moves two".into()),
            ..example()
        };
        assert_eq!(progress(&queued).line(), "migrate web:   0 % queued | h1 moves two");
    }
}

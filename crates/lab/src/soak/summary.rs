//! What a soak showed, as a page for docs.

use std::fmt;
use std::time::Duration;

use crate::bench::{Moved, median};
use crate::observe::PingSummary;

/// The figures of the moves of one guest.
#[derive(Debug, Default)]
pub(super) struct Moves {
    total_ms: Vec<f64>,
    downtime_ms: Vec<f64>,
    ping_gap_ms: Vec<f64>,
    pings_lost: u64,
}

impl Moves {
    pub(super) fn add(&mut self, moved: &Moved, pings: &PingSummary) {
        let ms = |from: u64| moved.continued_us.saturating_sub(from) as f64 / 1e3;
        self.total_ms.push(ms(moved.ordered_us));
        self.downtime_ms.push(ms(moved.stopped_us));
        self.ping_gap_ms.push(pings.longest_gap_us as f64 / 1e3);
        self.pings_lost += pings.lost;
    }

    /// The latest move, in words.
    pub(super) fn latest(&self) -> String {
        let last = |values: &[f64]| values.last().copied().unwrap_or_default();
        format!(
            "total {:.0} ms, downtime {:.0} ms, ping gap {:.0} ms",
            last(&self.total_ms),
            last(&self.downtime_ms),
            last(&self.ping_gap_ms)
        )
    }
}

/// The whole soak.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) profile: String,
    pub(super) stamping: Option<Moves>,
    pub(super) postgres: Option<Moves>,
    pub(super) notes: Vec<String>,
    pub(super) took: Duration,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = self.took.as_secs() / 60;
        writeln!(
            f,
            "Built with the profile {}; {minutes} min {} s in all.\n",
            self.profile,
            self.took.as_secs() % 60
        )?;
        writeln!(f, "| guest | moves | figure | min | median | max |")?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        for (name, moves) in [("stamping", &self.stamping), ("PostgreSQL", &self.postgres)] {
            let Some(moves) = moves else { continue };
            let figures = [
                ("total ms", &moves.total_ms),
                ("downtime ms", &moves.downtime_ms),
                ("longest ping gap ms", &moves.ping_gap_ms),
            ];
            for (figure, values) in figures {
                let min = values.iter().copied().fold(f64::INFINITY, f64::min);
                let max = values.iter().copied().fold(0.0, f64::max);
                let middle = median(values);
                writeln!(f, "| {name} | {} | {figure} | {min:.0} | {middle:.0} | {max:.0} |", values.len())?;
            }
            writeln!(
                f,
                "| {name} | {} | pings lost, all moves | | {} | |",
                moves.total_ms.len(),
                moves.pings_lost
            )?;
        }
        writeln!(f)?;
        self.notes.iter().try_for_each(|note| writeln!(f, "- {note}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_shows_the_extremes_and_the_middle() {
        let moves = Moves { total_ms: vec![3.0, 1.0, 2.0], ..Moves::default() };
        let summary = Summary { stamping: Some(moves), notes: vec!["well".into()], ..Summary::default() };
        let text = summary.to_string();
        assert!(text.contains("| stamping | 3 | total ms | 1 | 2 | 3 |"), "{text}");
        assert!(text.contains("- well") && !text.contains("PostgreSQL"), "{text}");
    }
}
